"""Shared subscriptions whose members come and go (MQTT 5.0 section 4.8.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.mqtt import PubAck, Publish, PubRec, PubRel

if TYPE_CHECKING:
    from tests.broker.conftest import Bench, MakeBench
    from tests.broker.peer import Peer

SHARED = "$share/g/a"


async def payloads(peer: Peer, count: int) -> list[bytes]:
    return [(await peer.message()).payload for _ in range(count)]


async def test_everybody_has_a_fair_share(bench: Bench) -> None:
    members = [await bench.join(f"m{number}") for number in range(3)]
    for member in members:
        await member.subscribe(SHARED, qos=1)
    other = await bench.join("other")
    for number in range(30):
        await other.publish("a", b"%d" % number, 1)
    assert [len(await payloads(member, 10)) for member in members] == [10, 10, 10]
    for member in members:
        assert await member.sync() == []


async def test_what_a_member_did_not_acknowledge_goes_to_another(bench: Bench) -> None:
    one, two = await bench.join("one"), await bench.join("two")
    await one.subscribe(SHARED, qos=1)
    other = await bench.join("other")
    for number in range(3):
        await other.publish("a", b"%d" % number, 1)
    first = [await one.message(acknowledge=False) for _ in range(3)]
    assert first[0].packet_id is not None
    one.send(PubAck(first[0].packet_id, 0, {}))
    await one.sync()
    await two.subscribe(SHARED, qos=1)
    await one.vanish()
    assert await payloads(two, 2) == [b"1", b"2"]
    assert await two.sync() == []
    stats = bench.server.stats()
    assert (stats.shared_returned, stats.dropped_session) == (2, 0)


async def test_what_was_sent_at_qos_2_stays_with_its_session(bench: Bench) -> None:
    one, two = await bench.join("one"), await bench.join("two")
    await one.subscribe(SHARED, qos=2)
    other = await bench.join("other")
    await other.publish("a", b"0", 2)
    await one.message(acknowledge=False)
    await two.subscribe(SHARED, qos=2)
    await one.vanish()
    assert await two.sync() == []  # [MQTT-4.8.2-5]
    assert bench.server.stats().dropped_session == 1


async def test_a_member_that_comes_back_goes_on(bench: Bench) -> None:
    one, two = [await bench.join(name, session_expiry_interval=60) for name in ("one", "two")]
    await one.subscribe(SHARED, qos=2)
    other = await bench.join("other")
    await other.publish("a", b"0", 2)
    await other.publish("a", b"1", 1, packet_id=2)
    sent = [await one.message(acknowledge=False) for _ in range(2)]
    assert sent[0].packet_id is not None
    one.send(PubRec(sent[0].packet_id, 0, {}))
    await one.expect(PubRel)
    await one.vanish()
    await two.subscribe(SHARED, qos=2)
    assert await two.sync() == []
    one = await bench.join("one", clean_start=False)  # [MQTT-4.8.2-4]
    again = [await one.next() for _ in range(2)]
    assert {type(packet).__name__ for packet in again} == {"PubRel", "Publish"}


async def test_a_session_that_expires_leaves_its_messages_to_the_others(bench: Bench) -> None:
    one, two = [await bench.join(name, session_expiry_interval=60) for name in ("one", "two")]
    await one.subscribe(SHARED, qos=1)
    await one.vanish()
    other = await bench.join("other")
    for number in range(3):
        await other.publish("a", b"%d" % number, 1 + number % 2, packet_id=1 + number)
    assert bench.server.stats().queued == 3
    await two.subscribe(SHARED, qos=2)
    bench.clock.advance(61)
    assert [(await two.message(acknowledge=False)).payload for _ in range(3)] == [b"0", b"1", b"2"]
    assert bench.server.stats().queued == 0


async def test_what_waits_for_room_goes_to_others_when_a_member_leaves(make_bench: MakeBench) -> None:
    bench = await make_bench()
    one = await bench.join("one", session_expiry_interval=60, receive_maximum=1)
    await one.subscribe(SHARED, qos=1)
    other = await bench.join("other")
    for number in range(3):
        await other.publish("a", b"%d" % number, 1)
    await one.message(acknowledge=False)
    two = await bench.join("two")
    await two.subscribe(SHARED, qos=1)
    await one.vanish()
    assert await payloads(two, 2) == [b"1", b"2"]
    one = await bench.join("one", clean_start=False)
    assert (await one.message()).payload == b"0"
    assert await one.sync() == []
    assert bench.server.stats().shared_returned == 2


async def test_an_expired_message_is_not_handed_on(bench: Bench) -> None:
    one, two = await bench.join("one"), await bench.join("two")
    await one.subscribe(SHARED, qos=1)
    other = await bench.join("other")
    await other.publish("a", b"old", 1, message_expiry_interval=5)
    await one.message(acknowledge=False)
    await two.subscribe(SHARED, qos=1)
    bench.clock.advance(6)
    await one.vanish()
    assert await two.sync() == []


async def test_with_nobody_left_messages_end_with_the_session(bench: Bench) -> None:
    one = await bench.join("one")
    await one.subscribe(SHARED, qos=1)
    other = await bench.join("other")
    await other.publish("a", b"0", 1)
    await one.message(acknowledge=False)
    await one.vanish()
    assert bench.server.stats().dropped_session == 1
    assert bench.server.stats().shared_returned == 0


async def test_a_refused_message_goes_to_nobody_else(bench: Bench) -> None:
    one, two = await bench.join("one"), await bench.join("two")
    await one.subscribe(SHARED, qos=1)
    other = await bench.join("other")
    await other.publish("a", b"0", 1)
    packet = await one.expect(Publish)
    assert packet.packet_id is not None
    await two.subscribe(SHARED, qos=1)
    one.send(PubAck(packet.packet_id, 0x80, {}))  # [MQTT-4.8.2-6]
    await one.sync()
    await one.vanish()
    assert await two.sync() == []


@pytest.mark.parametrize("end", ["leave", "vanish"])
async def test_the_message_is_kept_by_the_store_of_the_one_who_has_it(
    make_bench: MakeBench, tmp_path_factory: pytest.TempPathFactory, end: str
) -> None:
    bench = await make_bench(store=tmp_path_factory.mktemp("store") / "broker.db")
    one, two = [await bench.join(name, session_expiry_interval=60) for name in ("one", "two")]
    await one.subscribe(SHARED, qos=1)
    other = await bench.join("other")
    await other.publish("a", b"0", 1)
    await one.message(acknowledge=False)
    await two.subscribe(SHARED, qos=1)
    await two.vanish()
    if end == "vanish":
        await one.vanish()
    else:
        await one.leave(session_expiry_interval=0)
    bench.clock.advance(1)
    two = await bench.join("two", clean_start=False, session_expiry_interval=60)
    assert [type(packet) for packet in await two.sync()] == ([Publish] if end == "leave" else [])
