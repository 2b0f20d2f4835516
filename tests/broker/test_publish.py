"""Messages from one client to others: all QoS, both versions, properties, aliases, flow control."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.mqtt import ConnAck, Disconnect, PubAck, PubComp, Publish, PubRec, PubRel, encode_publish

if TYPE_CHECKING:
    from mqttquic_lab.mqtt import Version
    from tests.broker.conftest import Bench, MakeBench
    from tests.broker.peer import Peer

VERSIONS: tuple[Version, ...] = (4, 5)


@pytest.mark.parametrize(
    ("sender", "receiver", "qos", "granted"),
    list(itertools.product(VERSIONS, VERSIONS, (0, 1, 2), (0, 1, 2))),
)
async def test_every_qos_and_version(bench: Bench, sender: Version, receiver: Version, qos: int, granted: int) -> None:
    subscriber = await bench.join("s", receiver)
    assert await subscriber.subscribe("plant/+/temp", qos=granted) == [granted]
    publisher = await bench.join("p", sender)
    assert await publisher.publish("plant/1/temp", b"21.5", qos) == 0
    message = await subscriber.message()
    assert (message.topic, message.payload) == ("plant/1/temp", b"21.5")
    assert message.qos == min(qos, granted)
    assert not message.retain
    assert not message.dup
    assert await subscriber.sync() == []
    stats = bench.server.stats()
    assert (stats.messages_in, stats.messages_out) == (1, 1)


async def test_plain_messages_pass_through_unchanged(bench: Bench) -> None:
    subscriber = await bench.join("s")
    await subscriber.subscribe("#")
    publisher = await bench.join("p")
    properties = {"content_type": "text/plain", "user_property": [("a", "1"), ("a", "2")], "correlation_data": b"\0\1"}
    sent = encode_publish("a/b", b"payload", properties=properties)
    publisher.send(sent)
    assert (await subscriber.expect(Publish)).raw == sent


async def test_properties_travel_on_at_qos_1(bench: Bench) -> None:
    subscriber = await bench.join("s")
    await subscriber.subscribe("#", qos=1)
    publisher = await bench.join("p")
    await publisher.publish("a", b"x", 1, response_topic="r", payload_format_indicator=1, user_property=[("k", "v")])
    message = await subscriber.message()
    assert dict(message.properties) == {
        "response_topic": "r", "payload_format_indicator": 1, "user_property": (("k", "v"),)
    }  # fmt: skip


async def test_a_311_subscriber_gets_no_properties(bench: Bench) -> None:
    subscriber = await bench.join("s", 4)
    await subscriber.subscribe("#", qos=1)
    publisher = await bench.join("p")
    await publisher.publish("a", b"x", 0, content_type="t")
    await publisher.publish("a", b"y", 1, content_type="t")
    assert [(await subscriber.message()).payload for _ in range(2)] == [b"x", b"y"]


async def test_many_messages_of_one_chunk_keep_their_order_across_topics_and_qos(bench: Bench) -> None:
    subscribers = [await bench.join(f"s{version}", version) for version in VERSIONS]
    for subscriber in subscribers:
        await subscriber.subscribe("a/#", qos=1)
    publisher = await bench.join("p")
    expected = []
    chunk = b""
    for number in range(300):
        topic = f"a/{number // 7 % 3}"
        qos = 1 if number % 10 == 9 else 0
        chunk += encode_publish(topic, b"%d" % number, qos, packet_id=number + 1 if qos else None)
        expected.append((topic, b"%d" % number, qos))
    publisher.send(chunk)
    for subscriber in subscribers:
        messages = [await subscriber.message() for _ in expected]
        assert [(m.topic, m.payload, m.qos) for m in messages] == expected


async def test_a_run_is_written_once_to_each_subscriber(bench: Bench) -> None:
    subscribers = [await bench.join(f"s{number}") for number in range(3)]
    for subscriber in subscribers:
        await subscriber.subscribe("a")
    before = [subscriber.connection.control.peer.writes for subscriber in subscribers]  # type: ignore[attr-defined]
    publisher = await bench.join("p")
    publisher.send(encode_publish("a", b"x") * 100)
    for subscriber in subscribers:
        for _ in range(100):
            await subscriber.message()
    after = [subscriber.connection.control.peer.writes for subscriber in subscribers]  # type: ignore[attr-defined]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 1]


async def test_messages_come_in_any_pieces(bench: Bench) -> None:
    subscriber = bench.attach(chunk=1)
    await subscriber.connect("s")
    await subscriber.subscribe("a", qos=2)
    publisher = bench.attach(chunk=3)
    await publisher.connect("p")
    await publisher.publish("a", b"x" * 1000, 2)
    assert (await subscriber.message()).payload == b"x" * 1000


async def test_qos_2_is_delivered_exactly_once(bench: Bench) -> None:
    subscriber = await bench.join("s")
    await subscriber.subscribe("a", qos=2)
    publisher = await bench.join("p")
    publisher.send(Publish("a", b"x", 2, packet_id=5))
    await publisher.expect(PubRec)
    publisher.send(Publish("a", b"x", 2, dup=True, packet_id=5))
    assert (await publisher.expect(PubRec)).reason_code == 0
    publisher.send(PubRel(5))
    assert (await publisher.expect(PubComp)).reason_code == 0
    assert (await subscriber.message()).payload == b"x"
    assert await subscriber.sync() == []
    publisher.send(PubRel(5))
    assert (await publisher.expect(PubComp)).reason_code == 0x92


async def test_nobody_subscribed_is_said_at_qos_1_and_2_in_v5(bench: Bench) -> None:
    publisher = await bench.join("p")
    assert await publisher.publish("a", b"x", 1) == 0x10
    assert await publisher.publish("a", b"x", 2) == 0x10
    older = await bench.join("q", 4)
    assert await older.publish("a", b"x", 1) == 0


async def test_topic_alias_from_a_client(bench: Bench) -> None:
    subscriber = await bench.join("s")
    await subscriber.subscribe("#", qos=1)
    publisher = await bench.join("p")
    for qos in (0, 1):
        publisher.send(Publish("long/topic", b"1", qos, packet_id=qos or None, properties={"topic_alias": 3}))
        publisher.send(Publish("", b"2", qos, packet_id=qos + 1 if qos else None, properties={"topic_alias": 3}))
        for expected in (b"1", b"2"):
            message = await subscriber.message()
            assert (message.topic, message.payload, dict(message.properties)) == ("long/topic", expected, {})


async def test_an_alias_ends_with_its_connection(bench: Bench) -> None:
    publisher = await bench.join("p", session_expiry_interval=100)
    await publisher.publish("t", b"", topic_alias=1)
    await publisher.vanish()
    publisher = await bench.join("p", clean_start=False)
    publisher.send(Publish("", b"", properties={"topic_alias": 1}))
    assert [p.reason_code for p in await publisher.closed() if isinstance(p, Disconnect)] == [0x82]


async def test_alias_beyond_the_maximum(make_bench: MakeBench) -> None:
    bench = await make_bench(topic_alias_maximum=2)
    peer = bench.attach()
    assert (await peer.connect("p")).properties["topic_alias_maximum"] == 2
    peer.send(Publish("t", b"", properties={"topic_alias": 3}))
    assert [p.reason_code for p in await peer.closed() if isinstance(p, Disconnect)] == [0x94]


async def test_message_expiry_is_sent_on(bench: Bench) -> None:
    subscriber = await bench.join("s")
    await subscriber.subscribe("#", qos=1)
    publisher = await bench.join("p")
    for qos in (0, 1):
        await publisher.publish("a", b"x", qos, message_expiry_interval=60)
        assert (await subscriber.message()).properties["message_expiry_interval"] == 60


async def test_the_receive_maximum_of_a_subscriber_holds(bench: Bench) -> None:
    subscriber = await bench.join("s", receive_maximum=2)
    await subscriber.subscribe("a", qos=2)
    publisher = await bench.join("p")
    for number in range(5):
        await publisher.publish("a", b"%d" % number, 1 + number % 2, packet_id=number + 1)
    first, second = await subscriber.sync()
    assert isinstance(first, Publish)
    assert isinstance(second, Publish)
    assert (first.payload, second.payload) == (b"0", b"1")
    info = next(client for client in bench.server.clients() if client.client_id == "s")
    assert (info.inflight, info.queued) == (2, 3)
    assert first.packet_id is not None
    subscriber.send(PubAck(first.packet_id))
    (third,) = await subscriber.sync()
    assert isinstance(third, Publish)
    assert third.payload == b"2"


async def test_a_publisher_beyond_our_receive_maximum_is_ended(make_bench: MakeBench) -> None:
    bench = await make_bench(max_inflight=2)
    peer = bench.attach()
    assert (await peer.connect("p")).properties["receive_maximum"] == 2
    for packet_id in (1, 2, 3):
        peer.send(Publish("t", b"", 2, packet_id=packet_id))
    packets = await peer.closed()
    assert [type(packet) for packet in packets] == [PubRec, PubRec, Disconnect]
    assert packets[-1].reason_code == 0x93  # type: ignore[attr-defined]


async def test_a_packet_too_large_for_the_subscriber_is_left_out(bench: Bench) -> None:
    subscriber = await bench.join("s", maximum_packet_size=60)
    await subscriber.subscribe("a", qos=1)
    publisher = await bench.join("p")
    for qos in (0, 1):
        await publisher.publish("a", b"x" * 100, qos)
        await publisher.publish("a", b"fits", qos)
        assert (await subscriber.message()).payload == b"fits"
    assert await subscriber.sync() == []
    assert bench.server.stats().dropped_size == 2
    assert next(c.dropped for c in bench.server.clients() if c.client_id == "s") == 2


async def test_a_refusing_acknowledgement_ends_the_exchange(bench: Bench) -> None:
    subscriber = await bench.join("s", receive_maximum=1)
    await subscriber.subscribe("a", qos=2)
    publisher = await bench.join("p")
    await publisher.publish("a", b"1", 2)
    await publisher.publish("a", b"2", 2)
    message = await subscriber.message(acknowledge=False)
    assert message.packet_id is not None
    subscriber.send(PubRec(message.packet_id, 0x83))
    assert (await subscriber.message()).payload == b"2"


async def test_a_packet_larger_than_ours_is_refused_at_its_header(make_bench: MakeBench) -> None:
    bench = await make_bench(max_packet_size=1000)
    peer = bench.attach()
    answer: ConnAck = await peer.connect("p")
    assert answer.properties["maximum_packet_size"] == 1000
    peer.send(encode_publish("a", b"x" * 2000)[:10])
    (last,) = await peer.closed()
    assert isinstance(last, Disconnect)
    assert last.reason_code == 0x95


async def test_a_client_gets_its_own_messages(bench: Bench) -> None:
    peer: Peer = await bench.join("x")
    await peer.subscribe("a", qos=1)
    peer.send(Publish("a", b"me"))
    assert (await peer.message()).payload == b"me"
