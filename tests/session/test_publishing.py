"""Publishing, towards a broker that answers only what a test wrote."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.errors import DisconnectedError, OperationTimeoutError, ProtocolError, PublishError, UsageError
from mqttquic_lab.mqtt import ConnAck, Disconnect, PubAck, PubComp, Publish, PubRec, PubRel, Version
from mqttquic_lab.session import AsyncSession, publishing
from tests.session.scripted import ScriptedBroker, hang, scripted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

VERSIONS: list[Version] = [5, 4]


async def acknowledge(broker: ScriptedBroker, code: int = 0, properties: dict[str, Any] | None = None) -> Publish:
    """Take a PUBLISH of QoS 1 and acknowledge it."""
    packet = await broker.expect(Publish)
    assert packet.packet_id is not None
    broker.send(PubAck(packet.packet_id, code, properties or {}))
    return packet


@pytest.mark.parametrize("version", VERSIONS)
async def test_at_most_once(version: Version) -> None:
    async with scripted(version=version) as (session, broker):
        result = await session.publish("a/b", {"c": 1})
        assert (result.reason_code, result.packet_id, result.round_trip) == (0, None, None)
        packet = await broker.expect(Publish)
        assert (packet.topic, packet.payload, packet.qos, packet.retain) == ("a/b", b'{"c":1}', 0, False)
        assert session.stats.messages_sent == 1


@pytest.mark.parametrize("version", VERSIONS)
async def test_at_least_once(version: Version) -> None:
    async with scripted(version=version) as (session, broker):
        publishing = asyncio.create_task(session.publish("a", "x", 1, retain=True))
        packet = await broker.expect(Publish)
        assert (packet.qos, packet.retain, packet.dup, packet.packet_id) == (1, True, False, 1)
        await broker.sync(session)
        assert not publishing.done()
        broker.send(PubAck(1))
        result = await hang(publishing)
        assert (result.reason_code, result.packet_id) == (0, 1)
        assert result.round_trip is not None
        assert result.round_trip > 0


@pytest.mark.parametrize("version", VERSIONS)
async def test_exactly_once(version: Version) -> None:
    async with scripted(version=version) as (session, broker):
        publishing = asyncio.create_task(session.publish("a", "x", 2))
        packet = await broker.expect(Publish)
        assert packet.packet_id is not None
        broker.send(PubRec(packet.packet_id))
        release = await broker.expect(PubRel)
        assert release.packet_id == packet.packet_id
        await broker.sync(session)
        assert not publishing.done()
        broker.send(PubComp(packet.packet_id))
        assert (await hang(publishing)).reason_code == 0


@pytest.mark.parametrize(("qos", "answer"), [(1, PubAck), (2, PubRec)])
async def test_a_refused_message(qos: int, answer: Any) -> None:
    async with scripted() as (session, broker):
        publishing = asyncio.create_task(session.publish("a", "x", qos))
        packet = await broker.expect(Publish)
        broker.send(answer(packet.packet_id, 0x87, {"reason_string": "read only"}))
        with pytest.raises(PublishError, match=r"Not authorized \(0x87\): read only") as caught:
            await hang(publishing)
        assert caught.value.reason_code == 0x87
        assert caught.value.reason_string == "read only"
        assert isinstance(caught.value.packet, answer)
        assert session.state == "connected"


async def test_nobody_listening_is_a_success() -> None:
    async with scripted() as (session, broker):
        publishing = asyncio.create_task(session.publish("a", "x", 1))
        await acknowledge(broker, 0x10)
        assert (await hang(publishing)).reason_code == 0x10


@pytest.mark.parametrize(("received", "completed"), [(0x10, 0), (0, 0x92)])
async def test_what_counts_at_qos_2_is_the_pubrec(received: int, completed: int) -> None:
    async with scripted() as (session, broker):
        publishing = asyncio.create_task(session.publish("a", "x", 2))
        packet = await broker.expect(Publish)
        assert packet.packet_id is not None
        broker.send(PubRec(packet.packet_id, received))
        await broker.expect(PubRel)
        broker.send(PubComp(packet.packet_id, completed))
        assert (await hang(publishing)).reason_code == received


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("a/#",), "a/#"),
        (("",), "topic"),
        (("a\0",), "topic"),
        (("a", object()), "payload"),
        (("a", "x", 3), "qos=3"),
        (("a", "x", True), "qos=True"),
        (("a", "x", 0, False, {"topic_alias": 1}), "topic_alias"),
        (("a", "x", 0, False, {"subscription_identifier": [1]}), "MQTT-3.3.4-6"),
        (("a", "x", 1, False, {"message_expiry": 1}), "message_expiry_interval"),
    ],
)
async def test_bad_arguments_send_nothing(arguments: tuple[Any, ...], says: str) -> None:
    async with scripted() as (session, broker):
        with pytest.raises(UsageError, match=says):
            await session.publish(*arguments)
        topic, *rest = arguments
        with pytest.raises(UsageError, match=says):
            await session.publish_many([(topic, rest[0] if rest else b"")], *rest[1:])
        assert await broker.sync(session) == []
        assert session.state == "connected"


@pytest.mark.parametrize("qos", [0, 1])
async def test_bad_timeout(qos: int) -> None:
    async with scripted() as (session, _):
        with pytest.raises(UsageError, match="timeout"):
            await session.publish_many([("a", b"x")], qos, timeout=-1)


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_payload_over_the_limit_is_refused_at_once(qos: int) -> None:
    async with scripted(ConnAck(properties={"maximum_packet_size": 100})) as (session, broker):
        with pytest.raises(PublishError, match=r"100 \(Maximum Packet Size") as caught:
            await session.publish("a", b"x" * 100, qos)
        assert caught.value.reason_code == 0x95
        with pytest.raises(PublishError, match="Maximum Packet Size"):
            await session.publish_many([("a", b"x" * 100)], qos)
        assert await broker.sync(session) == []
        await session.publish("a", b"x" * 90)
        await broker.expect(Publish)


async def test_maximum_qos_and_retain_available() -> None:
    async with scripted(ConnAck(properties={"maximum_qos": 1, "retain_available": 0})) as (session, broker):
        with pytest.raises(PublishError, match="QoS 1 at most") as caught:
            await session.publish("a", b"", 2)
        assert caught.value.reason_code == 0x9B
        with pytest.raises(PublishError, match="no retained") as caught:
            await session.publish("a", b"", retain=True)
        assert caught.value.reason_code == 0x9A
        assert await broker.sync(session) == []


async def test_receive_maximum_is_respected() -> None:
    async with scripted(ConnAck(properties={"receive_maximum": 2})) as (session, broker):
        tasks = [asyncio.create_task(session.publish("a", str(number), 1)) for number in range(5)]
        sent = await broker.sync(session)
        assert [packet.payload for packet in sent if isinstance(packet, Publish)] == [b"0", b"1"]
        first = sent[0]
        assert isinstance(first, Publish)
        assert first.packet_id is not None
        broker.send(PubAck(first.packet_id))
        (third,) = await broker.sync(session)
        assert isinstance(third, Publish)
        assert third.payload == b"2"
        for packet in (sent[1], third):
            assert isinstance(packet, Publish)
            assert packet.packet_id is not None
            broker.send(PubAck(packet.packet_id))
        await acknowledge(broker)
        await acknowledge(broker)
        await hang(asyncio.gather(*tasks))


async def test_no_acknowledgement_in_time() -> None:
    async with scripted() as (session, broker):
        with pytest.raises(OperationTimeoutError, match=r"did not acknowledge.*'a'.*0\.02 s"):
            await session.publish("a", b"x", 1, timeout=0.02)
        packet = await acknowledge(broker)  # late, and taken as what it is
        publishing = asyncio.create_task(session.publish("a", b"y", 1))
        assert (await acknowledge(broker)).packet_id != packet.packet_id
        await hang(publishing)
        assert session.stats.stray == 0


async def test_a_message_given_up_while_it_waits_is_not_sent() -> None:
    async with scripted(ConnAck(properties={"receive_maximum": 1})) as (session, broker):
        first = asyncio.create_task(session.publish("a", b"first", 1))
        packet = await broker.expect(Publish)
        with pytest.raises(OperationTimeoutError):
            await session.publish("a", b"given up", 1, timeout=0.02)
        third = asyncio.create_task(session.publish("a", b"third", 1))
        await asyncio.sleep(0)
        assert packet.packet_id is not None
        broker.send(PubAck(packet.packet_id))
        assert (await acknowledge(broker)).payload == b"third"
        await hang(asyncio.gather(first, third))


async def test_too_many_waiting_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted(ConnAck(properties={"receive_maximum": 1})) as (session, _):
        monkeypatch.setattr(session._deliveries, "max_queued", 2)
        tasks = [asyncio.create_task(session.publish("a", b"x", 1)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(PublishError, match="wait") as caught:
            await session.publish("a", b"x", 1)
        assert caught.value.reason_code == 0x97
        await hang(session.close())
        for result in await hang(asyncio.gather(*tasks, return_exceptions=True)):
            assert isinstance(result, DisconnectedError)


async def test_the_end_of_the_connection_fails_those_who_wait() -> None:
    async with scripted() as (session, broker):
        tasks = [asyncio.create_task(session.publish("a", b"x", qos)) for qos in (1, 2)]
        tasks.append(asyncio.create_task(session.publish_many([("a", b"x")] * 3, 1)))  # type: ignore[arg-type]
        await broker.sync(session)
        broker.send(Disconnect(0x8B, {"reason_string": "maintenance"}))
        for result in await hang(asyncio.gather(*tasks, return_exceptions=True)):
            assert isinstance(result, DisconnectedError)
            assert result.reason_code == 0x8B
            assert result.reason_string == "maintenance"
            assert isinstance(result.__cause__, DisconnectedError)
            assert "Server shutting down" in str(result)


async def test_an_acknowledgement_of_the_wrong_kind() -> None:
    async with scripted() as (session, broker):
        publishing = asyncio.create_task(session.publish("a", b"x", 1))
        packet = await broker.expect(Publish)
        assert packet.packet_id is not None
        broker.send(PubRec(packet.packet_id))
        with pytest.raises(DisconnectedError) as caught:
            await hang(publishing)
        assert isinstance(caught.value.__cause__, ProtocolError)
        assert caught.value.__cause__.rule == "MQTT-4.3.2-4"


async def test_acknowledgements_for_nothing_are_counted() -> None:
    async with scripted() as (session, broker):
        broker.send(PubAck(77))
        await broker.sync(session)
        assert session.stats.stray == 1
        assert session.state == "connected"


async def test_timestamp() -> None:
    async with scripted() as (session, broker):
        await session.publish("a", b"x", timestamp=True, properties={"user_property": [("k", "v")]})
        packet = await broker.expect(Publish)
        (first, (name, value)) = packet.properties["user_property"]
        assert first == ("k", "v")
        assert name == "sent_ns"
        assert int(value) > 1_700_000_000_000_000_000


@pytest.mark.parametrize("options", [{"timestamp": True}, {"properties": {"content_type": "x"}}])
async def test_what_3_1_1_cannot_carry(options: dict[str, Any]) -> None:
    async with scripted(version=4) as (session, broker):
        with pytest.raises(UsageError, match="3\\.1\\.1"):
            await session.publish("a", b"x", **options)
        assert await broker.sync(session) == []


# publish_many


async def test_many_at_most_once() -> None:
    async with scripted() as (session, broker):
        summary = await hang(session.publish_many(((f"a/{n % 3}", n) for n in range(5000)), timestamp=True))
        assert (summary.count, summary.refused) == (5000, 0)
        assert summary.payload_bytes == sum(len(str(n)) for n in range(5000))
        assert summary.rate > 0
        assert session.stats.messages_sent == 5000
        packets = [p for p in await broker.sync(session) if isinstance(p, Publish)]
        assert [p.payload for p in packets] == [b"%d" % n for n in range(5000)]
        assert packets[4].topic == "a/1"
        assert packets[0].properties["user_property"][0][0] == "sent_ns"


@pytest.mark.parametrize("qos", [1, 2])
async def test_many_acknowledged(qos: int) -> None:
    async with scripted(ConnAck(properties={"receive_maximum": 10})) as (session, broker):
        many = asyncio.create_task(session.publish_many([("a", b"x")] * 100, qos))
        open_ids: list[int] = []
        for number in range(100):
            packet = await broker.expect(Publish)
            assert packet.packet_id is not None
            open_ids.append(packet.packet_id)
            assert len(open_ids) <= 10
            if len(open_ids) == 10:
                for packet_id in open_ids:
                    if qos == 1:
                        broker.send(PubAck(packet_id, 0x10 if number == 99 else 0))
                    else:
                        broker.send(PubRec(packet_id), PubComp(packet_id))
                if qos == 2:
                    for _ in open_ids:
                        await broker.expect(PubRel)
                open_ids.clear()
        summary = await hang(many)
        assert summary.count == 100
        assert summary.reason_codes.total() == 100
        assert summary.refused == 0


async def test_refusals_are_counted() -> None:
    async with scripted() as (session, broker):
        many = asyncio.create_task(session.publish_many([("a", b"1"), ("b", b"2"), ("c", b"3")], 1))
        await acknowledge(broker)
        await acknowledge(broker, 0x87)
        await acknowledge(broker)
        summary = await hang(many)
        assert summary.refused == 1
        assert summary.reason_codes == {0: 2, 0x87: 1}


async def test_many_from_an_async_source() -> None:
    async def source() -> AsyncIterator[tuple[str, int]]:
        for number in range(3):
            await asyncio.sleep(0)
            yield "a", number

    async with scripted() as (session, broker):
        assert (await hang(session.publish_many(source()))).count == 3
        assert len(await broker.sync(session)) == 3


@pytest.mark.parametrize("qos", [0, 1])
async def test_a_bad_one_among_many(qos: int) -> None:
    async with scripted() as (session, broker):
        with pytest.raises(UsageError, match="set"):
            await hang(session.publish_many([("a", b"good"), ("a", {1}), ("a", b"never")], qos))
        (packet,) = await broker.sync(session)
        assert isinstance(packet, Publish)
        assert packet.payload == b"good"


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("size", [1024, 50_000])
async def test_many_wait_for_a_slow_broker(qos: int, size: int) -> None:
    async with scripted() as (session, broker):
        broker.connection.control.pause_reading()
        many = asyncio.create_task(session.publish_many([("a", b"x" * size)] * 600, qos))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not many.done()
        pending = session.connection.control.pending
        assert publishing.HIGH_WATER < pending < 2 * publishing.HIGH_WATER
        broker.connection.control.resume_reading()
        for _ in range(600):
            packet = await broker.expect(Publish)
            if packet.packet_id is not None:
                broker.send(PubAck(packet.packet_id))
        assert (await hang(many)).count == 600


async def test_single_publishes_wait_for_a_slow_broker() -> None:
    async with scripted() as (session, broker):
        broker.connection.control.pause_reading()

        async def flood() -> None:
            for _ in range(2000):
                await session.publish("a", b"x" * 1024, timeout=0.05)

        with pytest.raises(OperationTimeoutError, match="takes no more data"):
            await flood()
        assert session.connection.control.pending < 2 * publishing.HIGH_WATER
        assert session.state == "connected"


@pytest.mark.parametrize("qos", [0, 1])
async def test_many_without_progress(qos: int) -> None:
    async with scripted() as (session, broker):
        broker.connection.control.pause_reading()
        with pytest.raises(OperationTimeoutError, match=r"0\.05 s"):
            await session.publish_many([("a", b"x" * 1024)] * 2000, qos, timeout=0.05)
        broker.connection.control.resume_reading()


@pytest.mark.parametrize("qos", [0, 1])
async def test_the_connection_ends_during_many(qos: int) -> None:
    async with scripted() as (session, broker):

        def source() -> Iterator[tuple[str, bytes]]:
            while True:
                yield "a", b"x" * 1024

        many = asyncio.create_task(session.publish_many(source(), qos))
        await broker.expect(Publish)
        broker.connection.abort("gone")
        with pytest.raises(DisconnectedError, match="gone"):
            await hang(many)


async def test_cancelling_many_leaves_the_session_usable() -> None:
    async with scripted() as (session, broker):
        many = asyncio.create_task(session.publish_many([("a", b"x")] * 10, 1))
        packets = [await broker.expect(Publish) for _ in range(10)]
        many.cancel()
        with pytest.raises(asyncio.CancelledError):
            await many
        for packet in packets:
            assert packet.packet_id is not None
            broker.send(PubAck(packet.packet_id))
        await broker.sync(session)
        assert len(session._deliveries) == 0
        again = asyncio.create_task(session.publish("a", b"y", 1))
        await acknowledge(broker)
        await hang(again)


async def test_topics_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "TOPIC_CACHE", 10)
    async with scripted() as (session, _):
        for number in range(50):
            await session.publish(f"t/{number}")
        assert len(_publisher(session).topics) <= 10


def _publisher(session: AsyncSession) -> publishing.Publisher:
    return session._publisher
