"""What holds for every packet of both versions: round trips, chunking, field spans, and hostile bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttquic_lab.errors import MalformedPacketError
from mqttquic_lab.mqtt import SECRET, Connect, Packet, PacketDecoder, Receiver, Version, decoder
from tests.wire.strategies import ENDS, connects, light, packets

ends = pytest.mark.parametrize(("version", "receiver"), ENDS)


def decode(
    data: bytes, version: Version | None, receiver: Receiver
) -> tuple[list[Packet], MalformedPacketError | None]:
    """Return the packets in `data`, and the error that ended decoding."""
    try:
        return PacketDecoder(version, receiver=receiver).feed(data), None
    except MalformedPacketError as error:
        return error.packets, error


def forget() -> None:
    """Empty the decoder's caches, so that the strict reader does the work."""
    decoder._topics.clear()
    for blocks in decoder._blocks.values():
        blocks.clear()


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """Return `data` in pieces, cut at the given positions."""
    edges = sorted({0, len(data), *(position % (len(data) + 1) for position in cuts)})
    return [data[start:end] for start, end in pairwise(edges)]


@ends
@light(50)
@given(data=st.data())
def test_what_is_encoded_decodes_to_the_same_packet(version: Version, receiver: Receiver, data: st.DataObject) -> None:
    packet = data.draw(packets(version, receiver))
    wire = packet.encode(version)
    for attempt in ("strict", "cached"):
        if attempt == "strict":
            forget()
        (decoded,) = PacketDecoder(version, receiver=receiver).feed(wire)
        assert decoded == packet, attempt
        assert decoded.raw == wire
        assert decoded.wire_version == version
        assert decoded.encode(version) == wire


@ends
@light(50)
@given(data=st.data())
def test_chunking_does_not_matter(version: Version, receiver: Receiver, data: st.DataObject) -> None:
    sent = data.draw(st.lists(packets(version, receiver), max_size=5))
    wire = b"".join(packet.encode(version) for packet in sent)
    unit = PacketDecoder(version, receiver=receiver)
    received: list[Packet] = []
    for chunk in cut(wire, data.draw(st.lists(st.integers(0, 10_000), max_size=30))):
        received += unit.feed(chunk)
    assert received == sent
    assert [packet.raw for packet in received] == [packet.encode(version) for packet in sent]
    assert unit.buffered == 0


@ends
@light(50)
@given(data=st.data())
def test_field_spans_tile_the_packet(version: Version, receiver: Receiver, data: st.DataObject) -> None:
    packet = data.draw(packets(version, receiver))
    assert packet.fields() == ()
    (decoded,) = PacketDecoder(version, receiver=receiver).feed(packet.encode(version))
    fields = decoded.fields()
    assert fields[0].start == 0
    assert fields[-1].end == len(decoded.raw)
    assert all(before.end == after.start for before, after in pairwise(fields))
    assert all(field.start <= field.end for field in fields)
    for field in fields:
        if field.bits:
            assert field.end == field.start + 1
            assert [bit.high for bit in field.bits] == [7, *(bit.low - 1 for bit in field.bits[:-1])]
            assert field.bits[-1].low == 0
    assert decoded.fields() == fields


@light(50)
@given(packet=connects(5) | connects(4))
def test_no_field_and_no_repr_shows_a_password(packet: Connect) -> None:
    packet.password = b"correct horse battery"
    packet.username = "u"
    (decoded,) = PacketDecoder(packet.version, receiver="server").feed(packet.encode())
    assert [field.value for field in decoded.fields() if field.name == "password"] == [SECRET]
    assert "horse" not in repr(decoded)
    assert "horse" not in repr(decoded.fields())
    assert isinstance(decoded, Connect)
    assert decoded.password == b"correct horse battery"


@ends
@light(50)
@given(data=st.binary(max_size=80))
def test_arbitrary_bytes_decode_or_are_malformed(version: Version, receiver: Receiver, data: bytes) -> None:
    decode(data, version, receiver)


@ends
@light(120)
@given(data=st.data())
def test_mutated_packets_decode_or_are_malformed(version: Version, receiver: Receiver, data: st.DataObject) -> None:
    wire = bytearray()
    for packet in data.draw(st.lists(packets(version, receiver), min_size=1, max_size=3)):
        wire += packet.encode(version)
    decode(bytes(wire), version, receiver)  # fills the caches with what is good
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(wire) - 1))
        wire[position] = data.draw(st.integers(0, 255))
    mutated = bytes(wire)
    quick, quick_error = decode(mutated, version, receiver)
    forget()
    strict, strict_error = decode(mutated, version, receiver)
    assert quick == strict
    assert [packet.raw for packet in quick] == [packet.raw for packet in strict]
    assert str(quick_error) == str(strict_error)
    unit = PacketDecoder(version, receiver=receiver)
    one_by_one: list[Packet] = []
    try:
        for byte in mutated:
            one_by_one += unit.feed(bytes((byte,)))
        error = None
    except MalformedPacketError as caught:
        one_by_one += caught.packets
        error = caught
    assert one_by_one == strict
    assert str(error) == str(strict_error)
    if strict_error is not None:
        assert strict_error.reason_code is not None
        assert strict_error.reason_code >= 0x80
        assert strict_error.section
        assert strict_error.field
        assert strict_error.offset is not None
    for packet in strict:
        assert packet.fields()[-1].end == len(packet.raw)
        assert repr(packet)
