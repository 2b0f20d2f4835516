"""Retained messages: kept, replaced, removed, expired, bounded, and brought at the client's pace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.broker.message import Message
from mqttquic_lab.broker.retained import RetainedMessages
from mqttquic_lab.mqtt import PubAck, Publish, Subscribe, Subscription, encode_publish

if TYPE_CHECKING:
    from mqttquic_lab.mqtt import Version
    from tests.broker.conftest import Bench, MakeBench


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_the_newest_message_is_brought_to_a_new_subscriber(bench: Bench, version: Version, qos: int) -> None:
    publisher = await bench.join("p", version)
    await publisher.publish("a/b", b"old", qos, retain=True)
    await publisher.publish("a/b", b"new", qos, retain=True)
    await publisher.publish("a/c", b"not kept", qos)
    subscriber = await bench.join("s", version)
    await subscriber.subscribe("a/+", qos=1)
    message = await subscriber.message()
    assert (message.payload, message.qos, message.retain) == (b"new", min(qos, 1), True)
    assert await subscriber.sync() == []


async def test_an_empty_payload_removes(bench: Bench) -> None:
    publisher = await bench.join("p")
    await publisher.publish("a", b"x", retain=True)
    assert bench.server.stats().retained == 1
    await publisher.publish("a", b"", retain=True)
    assert bench.server.stats().retained == 0
    assert bench.server.stats().retained_bytes == 0
    subscriber = await bench.join("s")
    await subscriber.subscribe("a")
    assert await subscriber.sync() == []


@pytest.mark.parametrize(("handling", "first", "again"), [(0, 1, 1), (1, 1, 0), (2, 0, 0)])
async def test_retain_handling(bench: Bench, handling: int, first: int, again: int) -> None:
    publisher = await bench.join("p")
    await publisher.publish("a", b"x", retain=True)
    subscriber = await bench.join("s")
    await subscriber.subscribe("a", retain_handling=handling)
    assert len(await subscriber.sync()) == first
    await subscriber.subscribe("a", retain_handling=handling)
    assert len(await subscriber.sync()) == again


async def test_a_shared_subscription_brings_none(bench: Bench) -> None:
    publisher = await bench.join("p")
    await publisher.publish("a", b"x", retain=True)
    subscriber = await bench.join("s")
    await subscriber.subscribe("$share/g/a")
    assert await subscriber.sync() == []


async def test_properties_and_identifier_come_with_it(bench: Bench) -> None:
    publisher = await bench.join("p")
    await publisher.publish("a", b"x", retain=True, content_type="t", message_expiry_interval=60)
    bench.clock.advance(20)
    subscriber = await bench.join("s")
    await subscriber.subscribe("a", subscription_identifier=4)
    message = await subscriber.message()
    assert dict(message.properties) == {
        "content_type": "t", "message_expiry_interval": 40, "subscription_identifier": (4,)
    }  # fmt: skip


async def test_it_expires(bench: Bench) -> None:
    publisher = await bench.join("p")
    await publisher.publish("a", b"x", retain=True, message_expiry_interval=60)
    bench.clock.advance(60)
    subscriber = await bench.join("s")
    await subscriber.subscribe("a")
    assert await subscriber.sync() == []
    assert bench.server.stats().retained == 0


async def test_it_survives_its_publisher(bench: Bench) -> None:
    publisher = await bench.join("p")
    await publisher.publish("a", b"x", retain=True)
    await publisher.leave()
    subscriber = await bench.join("s")
    await subscriber.subscribe("#")
    assert (await subscriber.message()).payload == b"x"


async def test_more_than_fits_is_refused_and_counted(make_bench: MakeBench) -> None:
    bench = await make_bench(max_retained=2, max_retained_bytes=100)
    publisher = await bench.join("p")
    for topic in ("a", "b", "c"):
        await publisher.publish(topic, topic.encode(), retain=True)
    assert (bench.server.stats().retained, bench.server.stats().retained_refused) == (2, 1)
    await publisher.publish("a", b"x" * 200, retain=True)
    subscriber = await bench.join("s")
    await subscriber.subscribe("#")
    # "a" is gone rather than wrong: what it had was replaced by something that did not fit.
    assert [packet.payload for packet in await subscriber.sync() if isinstance(packet, Publish)] == [b"b"]
    assert bench.server.stats().retained_refused == 2


def test_what_has_expired_makes_room() -> None:
    store = RetainedMessages(2, 1000)
    assert store.store(Message("a", b"x", properties={"message_expiry_interval": 5}, now=0), 0)
    assert store.store(Message("b", b"x"), 0)
    assert not store.store(Message("c", b"x"), 1)
    assert store.store(Message("c", b"x"), 6)
    assert sorted(store.topics("#")) == ["b", "c"]


def test_bytes_are_counted_through_replacement_and_removal() -> None:
    store = RetainedMessages(10, 1000)
    store.store(Message("topic", b"x" * 10), 0)
    store.store(Message("topic", b"x" * 20), 0)
    assert store.nbytes == 25
    store.remove("topic")
    assert (store.nbytes, len(store)) == (0, 0)


async def test_many_are_brought_at_the_pace_of_acknowledgements(bench: Bench) -> None:
    publisher = await bench.join("p")
    publisher.send(b"".join(encode_publish(f"a/{n}", b"x", 1, True, packet_id=n) for n in range(1, 501)))
    for _ in range(500):
        await publisher.expect(PubAck)
    subscriber = await bench.join("s", receive_maximum=10)
    await subscriber.subscribe("#", qos=1)
    assert len(await subscriber.sync()) == 10
    # The rest is not queued, which would be bounded, but looked up when there is room.
    assert bench.server.stats().queued <= 1
    for packet_id in range(1, 501):
        subscriber.send(PubAck(packet_id))
    packets = [*await subscriber.sync()]
    topics = {packet.topic for packet in packets if isinstance(packet, Publish)}
    assert len(topics) == 490


async def test_many_large_ones_do_not_pile_up(bench: Bench) -> None:
    publisher = await bench.join("p")
    for number in range(100):
        await publisher.publish(f"a/{number}", bytes(50_000), retain=True)
    subscriber = bench.attach()
    await subscriber.connect("s")
    subscriber.connection.control.pause_reading()
    subscriber.send(Subscribe(1, (Subscription("#"),)))
    await bench.server.wait_for(lambda: bench.server.stats().subscriptions == 1)
    await publisher.sync()
    info = next(client for client in bench.server.clients() if client.client_id == "s")
    assert 0 < info.pending < 1_000_000
    subscriber.connection.control.resume_reading()
    seen: set[str] = set()
    await subscriber.next()
    while len(seen) < 100:
        seen.add((await subscriber.message()).topic)
    assert bench.server.stats().dropped_qos0 == 0


async def test_a_large_store_is_searched_between_other_work(make_bench: MakeBench) -> None:
    """One hostile SUBSCRIBE is cheap to send and dear to answer, so others must get their turn in between."""
    bench = await make_bench()
    publisher = await bench.join("p")
    publisher.send(b"".join(encode_publish(f"a/{number}", b"x", retain=True) for number in range(2000)))
    await publisher.sync()
    subscriber = await bench.join("s")
    other = await bench.join("o")
    filters = tuple(Subscription(f"+/{number}") for number in range(200))
    subscriber.send(Subscribe(1, filters))
    assert await other.sync() == []
    assert len([p for p in subscriber.inbox if isinstance(p, Publish)]) < 200
    await subscriber.next()
    assert sorted([(await subscriber.message()).topic for _ in range(200)]) == sorted(f"a/{n}" for n in range(200))


async def test_a_change_while_they_are_brought_is_not_overtaken_by_the_old_one(bench: Bench) -> None:
    publisher = await bench.join("p")
    topics = [f"a/{number}" for number in range(10)]
    for topic in topics:
        await publisher.publish(topic, b"old", 1, retain=True)
    subscriber = await bench.join("s", receive_maximum=1)
    await subscriber.subscribe("a/+", qos=1)
    held = await subscriber.message(acknowledge=False)
    for topic in topics:
        await publisher.publish(topic, b"new", 1, retain=True)
    seen: dict[str, list[bytes]] = {held.topic: [held.payload]}
    assert held.packet_id is not None
    subscriber.send(PubAck(held.packet_id))
    while packets := await subscriber.sync():
        for packet in packets:
            assert isinstance(packet, Publish)
            assert packet.packet_id is not None
            seen.setdefault(packet.topic, []).append(packet.payload)
            subscriber.send(PubAck(packet.packet_id))
    assert sorted(seen) == topics
    assert all(b"old" not in values[values.index(b"new") :] for values in seen.values())


async def test_unsubscribing_stops_them(bench: Bench) -> None:
    publisher = await bench.join("p")
    for number in range(10):
        await publisher.publish(f"a/{number}", b"x", 1, retain=True)
    subscriber = await bench.join("s", receive_maximum=1)
    await subscriber.subscribe("a/+", qos=1)
    message: Publish | None = await subscriber.message(acknowledge=False)
    assert await subscriber.unsubscribe("a/+") == [0]
    count = 0
    while message is not None:
        count += 1
        assert message.packet_id is not None
        subscriber.send(PubAck(message.packet_id))
        packets = await subscriber.sync()
        message = packets[0] if packets and isinstance(packets[0], Publish) else None
    assert count == 2  # the one sent and the one that waited already
