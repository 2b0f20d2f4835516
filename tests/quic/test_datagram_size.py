"""How many bytes a datagram may carry (RFC 9221 section 3)."""

from __future__ import annotations

import pytest
from aioquic.buffer import encode_uint_var
from hypothesis import given
from hypothesis import strategies as st

from mqttquic_lab.quic.datagram_size import max_datagram_payload
from tests.wire.strategies import light


@pytest.mark.parametrize(("size", "room"), [(0, 0), (None, 0), (1, 0), (2, 0), (3, 1), (65, 63), (66, 63), (67, 64)])
def test_room_of_a_datagram(size: int | None, room: int) -> None:
    assert max_datagram_payload(size) == room


@light(100)
@given(st.integers(2, 70_000))
def test_room_is_what_fits_the_frame_exactly(size: int) -> None:
    def frame(payload: int) -> int:
        return 1 + len(encode_uint_var(payload)) + payload

    room = max_datagram_payload(size)
    assert frame(room) <= size
    assert frame(room + 1) > size


def test_a_datagram_is_never_split_over_packets() -> None:
    assert max_datagram_payload(65_535, packet_room=1200) == max_datagram_payload(1200) == 1197
