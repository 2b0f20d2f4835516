"""Packet identifiers: each in use once, all 65535 of them, and no linear search when they run short."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mqttquic_lab.mqtt.packet_ids import MAX_PACKET_ID, PacketIds


def test_all_identifiers_and_then_none() -> None:
    ids = PacketIds()
    taken = [ids.allocate() for _ in range(MAX_PACKET_ID)]
    assert sorted(taken, key=lambda packet_id: packet_id or 0) == list(range(1, MAX_PACKET_ID + 1))
    assert len(ids) == MAX_PACKET_ID
    assert ids.allocate() is None
    assert ids.release(40_000)
    assert ids.allocate() == 40_000
    assert ids.allocate() is None


def test_an_identifier_rests_before_it_comes_back() -> None:
    ids = PacketIds()
    for expected in range(1, 1001):
        packet_id = ids.allocate()
        assert packet_id == expected
        ids.release(packet_id)


def test_release_of_what_a_peer_made_up_changes_nothing() -> None:
    ids = PacketIds()
    assert ids.allocate() == 1
    for packet_id in (0, -1, 2, 1024, MAX_PACKET_ID, MAX_PACKET_ID + 1):
        assert not ids.release(packet_id)
        assert packet_id not in ids
    assert len(ids) == 1
    assert 1 in ids


def test_take_marks_identifiers_of_a_stored_session() -> None:
    ids = PacketIds()
    assert ids.take(1)
    assert ids.take(MAX_PACKET_ID)
    assert not ids.take(1)
    assert not ids.take(0)
    assert not ids.take(MAX_PACKET_ID + 1)
    assert len(ids) == 2
    assert ids.allocate() == 2


@given(st.lists(st.integers(0, 3000), max_size=4000), st.integers(1, 70_000))
def test_against_a_set(releases: list[int], start: int) -> None:
    """Every step either takes an identifier or releases one that is in use; a set keeps the books beside it."""
    ids, used = PacketIds(), dict.fromkeys([0], True)
    used.clear()
    for _ in range(min(start, 1500)):
        packet_id = ids.allocate()
        assert packet_id is not None
        used[packet_id] = True
    for choice in releases:
        if choice % 3 and used:
            packet_id = choice if choice in used else next(iter(used))
            assert ids.release(packet_id)
            del used[packet_id]
        else:
            packet_id = ids.allocate()
            assert packet_id is not None
            assert 1 <= packet_id <= MAX_PACKET_ID
            assert packet_id not in used
            used[packet_id] = True
    assert len(ids) == len(used)
    assert all(packet_id in ids for packet_id in used)
