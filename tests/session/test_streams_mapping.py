"""Which stream a PUBLISH goes on, and when that stream ends."""

from __future__ import annotations

import asyncio
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.errors import (
    BrokerProfileWarning,
    OperationTimeoutError,
    PublishError,
    StreamClosedError,
    StreamLimitError,
    UsageError,
)
from mqttquic_lab.mqtt import ConnAck, PubAck, PubComp, Publish, PubRec, PubRel
from mqttquic_lab.session import SessionOptions
from tests.session.scripted import hang
from tests.session.scripted_streams import opened, scripted_streams

if TYPE_CHECKING:
    from tests.session.scripted_streams import ScriptedStream


async def acknowledge(end: ScriptedStream) -> Publish:
    """Take a QoS 1 PUBLISH and acknowledge it on its stream."""
    packet = await end.expect(Publish)
    end.send(PubAck(packet.packet_id or 0))
    return packet


# per-topic


async def test_each_topic_has_its_stream() -> None:
    async with scripted_streams(streams="per-topic") as (session, broker):
        for topic in ("a", "b", "a"):
            await session.publish(topic, topic)
        assert [(await (await broker.stream(4)).expect(Publish)).topic for _ in range(2)] == ["a", "a"]
        assert (await (await broker.stream(8)).expect(Publish)).topic == "b"
        assert [(info.id, info.kind, info.topics) for info in session.streams[1:]] == [
            (4, "topic", ("a",)),
            (8, "topic", ("b",)),
        ]
        assert not await broker.sync(session)


async def test_many_at_once_for_a_new_topic_share_one_stream_in_order() -> None:
    async with scripted_streams(streams="per-topic") as (session, broker):
        publishing = [asyncio.create_task(session.publish("a", str(n), qos=1)) for n in range(20)]
        end = await broker.stream(4)
        assert [(await acknowledge(end)).payload for _ in range(20)] == [str(n).encode() for n in range(20)]
        for task in publishing:
            await hang(task)
        assert list(broker.streams) == [4]


async def test_the_least_recently_used_stream_ends_when_it_is_idle() -> None:
    async with scripted_streams(streams="per-topic", topic_streams=2) as (session, broker):
        busy = asyncio.create_task(session.publish("a", "1", qos=1))
        first = await broker.stream(4)
        held = await first.expect(Publish)
        await session.publish("b", "1")
        second = await broker.stream(8)
        await session.publish("c", "1")  # a is older, but waits for its acknowledgement: b's stream ends
        await second.fin()
        assert not first.ended
        waiting = asyncio.create_task(session.publish("d", "1", qos=1))
        third = await broker.stream(12)
        await third.fin()
        first.send(PubAck(held.packet_id or 0))
        await hang(busy)
        await acknowledge(await broker.stream(16))
        await hang(waiting)
        # a's stream is now the oldest one, and idle.
        await session.publish("e", "1")
        await first.fin()


async def test_it_waits_for_a_busy_stream_where_there_is_no_other() -> None:
    async with scripted_streams(streams="per-topic", topic_streams=1) as (session, broker):
        busy = asyncio.create_task(session.publish("a", "1", qos=2))
        first = await broker.stream(4)
        await first.expect(Publish)
        with pytest.raises(OperationTimeoutError, match="no stream became free for 'b'"):
            await session.publish("b", "lost", timeout=0.05)
        waiting = asyncio.create_task(session.publish("b", "1"))
        first.send(PubRec(1))
        await first.expect(PubRel)
        assert not first.ended
        first.send(PubComp(1))
        await hang(busy)
        await first.fin()
        await hang(waiting)
        assert (await (await broker.stream(8)).expect(Publish)).payload == b"1"


async def test_topics_within_the_brokers_limit() -> None:
    async with scripted_streams(streams="per-topic", credit=2) as (session, broker):
        for topic in ("a", "b"):
            await session.publish(topic, "1")
            await (await broker.stream({"a": 4, "b": 8}[topic])).expect(Publish)
        waiting = asyncio.create_task(session.publish("c", "1"))
        await (await broker.stream(4)).fin()
        broker.connection.peer.grant(1)
        await hang(waiting)
        assert (await (await broker.stream(12)).expect(Publish)).topic == "c"
        # A stream that the user asks for is worth more than one that is kept for a topic.
        opening = asyncio.create_task(session.open_stream())
        await (await broker.stream(8)).fin()
        broker.connection.peer.grant(1)
        assert (await hang(opening)).id == 16


async def test_a_limit_that_explicit_streams_have_used_up_is_told_at_once() -> None:
    async with scripted_streams(streams="per-topic", credit=1) as (session, broker):
        await opened(session, broker)
        with pytest.raises(StreamLimitError, match="allows 1 data streams at a time and 1 are open"):
            await session.publish("a", "1")


async def test_a_topic_whose_stream_was_reset_gets_a_new_one() -> None:
    async with scripted_streams(streams="per-topic") as (session, broker):
        publishing = asyncio.create_task(session.publish("a", "1", qos=1))
        end = await broker.stream(4)
        await end.expect(Publish)
        end.stream.reset(1)
        with pytest.raises(StreamClosedError, match="stream 4"):
            await hang(publishing)
        again = asyncio.create_task(session.publish("a", "2", qos=1))
        assert (await acknowledge(await broker.stream(8))).payload == b"2"
        await hang(again)


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("streams", ["per-topic", "per-publish"])
async def test_publish_many_spreads_over_streams(streams: str, qos: int) -> None:
    async with scripted_streams(streams=streams) as (session, broker):
        many = asyncio.create_task(session.publish_many(((f"t{n % 3}", str(n)) for n in range(9)), qos=qos))
        got: dict[str, list[bytes]] = {}
        count = 3 if streams == "per-topic" else 9
        for number in range(count):
            end = await broker.stream(4 + 4 * number)
            for _ in range(9 // count):
                packet = await acknowledge(end) if qos else await end.expect(Publish)
                got.setdefault(packet.topic, []).append(packet.payload)
            if streams == "per-publish":
                await end.fin()
        summary = await hang(many)
        assert (summary.count, summary.payload_bytes) == (9, 9)
        assert got == {f"t{k}": [str(n).encode() for n in range(k, 9, 3)] for k in range(3)}
        assert summary.reason_codes == ({0: 9} if qos else {})


async def test_publish_many_fails_with_its_stream() -> None:
    async with scripted_streams(streams="per-topic") as (session, broker):
        many = asyncio.create_task(session.publish_many([("a", "1"), ("b", "1")], qos=1))
        await acknowledge(await broker.stream(4))
        (await broker.stream(8)).stream.reset(1)
        with pytest.raises(StreamClosedError, match="stream 8"):
            await hang(many)


# per-publish


async def test_a_stream_for_each_publish() -> None:
    async with scripted_streams(streams="per-publish") as (session, broker):
        await session.publish("a", "0")
        end = await broker.stream(4)
        await end.expect(Publish)
        await end.fin()  # at once

        once = asyncio.create_task(session.publish("a", "1", qos=1))
        end = await broker.stream(8)
        packet = await end.expect(Publish)
        await broker.sync(session)
        assert not end.ended
        end.send(PubAck(packet.packet_id or 0))
        await hang(once)
        await end.fin()

        exactly = asyncio.create_task(session.publish("a", "2", qos=2))
        end = await broker.stream(12)
        packet = await end.expect(Publish)
        end.send(PubRec(packet.packet_id or 0))
        await end.expect(PubRel)
        await broker.sync(session)
        assert not end.ended
        end.send(PubComp(packet.packet_id or 0))
        await hang(exactly)
        await end.fin()
        await broker.sync(session)
        assert [(info.kind, info.state) for info in session.streams[1:]] == [("publish", "closed")] * 3


async def test_a_refused_message_ends_its_stream_too() -> None:
    async with scripted_streams(streams="per-publish") as (session, broker):
        publishing = asyncio.create_task(session.publish("a", "1", qos=1))
        end = await broker.stream(4)
        end.send(PubAck((await end.expect(Publish)).packet_id or 0, 0x87))
        with pytest.raises(PublishError, match="Not authorized"):
            await hang(publishing)
        await end.fin()


async def test_a_message_given_up_ends_its_stream_when_it_is_acknowledged() -> None:
    async with scripted_streams(streams="per-publish") as (session, broker):
        with pytest.raises(OperationTimeoutError):
            await session.publish("a", "1", qos=1, timeout=0.05)
        end = await broker.stream(4)
        packet = await end.expect(Publish)
        assert not end.ended
        end.send(PubAck(packet.packet_id or 0))
        await end.fin()


async def test_more_publishes_than_streams_wait_for_one_another() -> None:
    async with scripted_streams(streams="per-publish", credit=2) as (session, broker):
        publishing = [asyncio.create_task(session.publish("a", str(n), qos=1)) for n in range(6)]
        for number in range(6):
            end = await broker.stream(4 + 4 * number)
            await acknowledge(end)
            await end.fin()
            broker.connection.peer.grant(1 if number < 4 else 0)
        for task in publishing:
            await hang(task)


@pytest.mark.parametrize("bad", [{"topic": "a/#"}, {"topic": "a", "qos": 3}, {"topic": "a", "payload": object()}])
async def test_what_cannot_be_sent_opens_no_stream(bad: dict[str, Any]) -> None:
    async with scripted_streams(streams="per-publish") as (session, broker):
        with pytest.raises(UsageError):
            await session.publish(**bad)
        await broker.sync(session)
        assert not broker.streams


async def test_too_large_a_packet_costs_an_empty_stream_at_most() -> None:
    connack = ConnAck(False, 0, {"maximum_packet_size": 100})
    async with scripted_streams(connack, streams="per-publish") as (session, broker):
        with pytest.raises(PublishError, match="split the payload"):
            await session.publish("a", b"x" * 200)
        await (await broker.stream(4)).fin()
        await session.publish("a", b"x")
        await (await broker.stream(8)).expect(Publish)
        with pytest.raises(PublishError, match="split the payload"):
            await session.publish_many([("a", b"x"), ("a", b"x" * 200)])
        await (await broker.stream(12)).fin()
        await (await broker.stream(16)).fin()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"streams": "per-client"}, "per-topic"), ({"topic_streams": 0}, "topic_streams=0"), ({"profile": "x"}, "mqttv5")],
)
def test_options_that_do_not_exist(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SessionOptions(**options)


# Profiles


async def test_rocketmq_refuses_data_streams_and_we_say_so_first() -> None:
    async with scripted_streams(profile="rocketmq") as (session, _):
        with pytest.warns(BrokerProfileWarning, match="use streams='single'") as caught:
            await session.open_stream()
        assert caught[0].filename == __file__
    with pytest.warns(BrokerProfileWarning, match="streams='single'"):
        async with scripted_streams(profile="rocketmq", streams="per-topic"):
            pass


async def test_a_warning_is_given_once_for_each_line() -> None:
    async with scripted_streams(profile="rocketmq") as (session, _):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            for _ in range(3):
                await session.open_stream()
                stream = await session.open_stream()
            with pytest.raises(OperationTimeoutError):
                await stream.subscribe("a", timeout=0.01)
        assert len(caught) == len({w.lineno for w in caught}) == 3
        assert {w.filename for w in caught} == {__file__}


# mqttv5: unidirectional streams, and those that the broker opens


@pytest.mark.parametrize("streams", ["per-topic", "per-publish"])
async def test_mqttv5_reads_unidirectional_streams_and_answers_on_control(streams: str) -> None:
    async with scripted_streams(profile="mqttv5", streams=streams) as (session, broker):
        await session.publish("a", "0")
        end = await broker.stream(2)
        await end.expect(Publish)
        publishing = asyncio.create_task(session.publish("a", "1", qos=2))
        if streams == "per-publish":
            await end.fin()
            end = await broker.stream(6)
        packet = await end.expect(Publish)
        broker.send(PubRec(packet.packet_id or 0))
        await broker.expect(PubRel)
        broker.send(PubComp(packet.packet_id or 0))
        await hang(publishing)
        if streams == "per-publish":
            await end.fin()
        assert session.state == "connected"
        many = asyncio.create_task(session.publish_many([("a", "2"), ("b", "3")], qos=1))
        for number in range(1, 3):
            end = await broker.stream((2, 2, 6)[number] if streams == "per-topic" else 6 + 4 * number)
            broker.send(PubAck((await end.expect(Publish)).packet_id or 0))
        assert (await hang(many)).count == 2


async def test_a_unidirectional_stream_that_is_stopped_fails_what_it_carried() -> None:
    async with scripted_streams(profile="mqttv5", streams="per-topic") as (session, broker):
        publishing = asyncio.create_task(session.publish("a", "1", qos=1))
        end = await broker.stream(2)
        await end.expect(Publish)
        end.stream.reset(0)  # STOP_SENDING
        with pytest.raises(StreamClosedError, match="stream 2"):
            await hang(publishing)
        assert session.state == "connected"


@pytest.mark.parametrize("profile", ["mqttv5", "generic"])
@pytest.mark.parametrize("header", [b"", bytes.fromhex("1303412c00")], ids=["plain", "flow-header"])
async def test_deliveries_on_streams_the_broker_opened(profile: str, header: bytes) -> None:
    async with scripted_streams(profile=profile) as (session, broker):
        asking = asyncio.create_task(session.subscribe("t/#", qos=2))
        await broker.grant()
        feed = await hang(asking)
        both = broker.open()
        for byte in header:  # mqttv5 sends one whatever ALPN says
            both.send(bytes([byte]))
        both.send(Publish("t/1", b"x", 2, False, False, 9, {}))
        await both.expect(PubRec)
        broker.send(PubRel(9))  # mqttv5 sends it here
        await broker.expect(PubComp)
        one_way = broker.open(unidirectional=True)
        one_way.send(header, Publish("t/2", b"y", 0, False, False, None, {}))
        one_way.stream.end()
        await hang(feed.wait(2))
        assert list(feed.df["stream_id"]) == [1, 3]
        both.stream.end()
        await both.fin()
        await broker.sync(session)
        assert [(info.id, info.kind, info.state) for info in session.streams[1:]] == [
            (3, "server", "closed"),
            (1, "server", "closed"),
        ]
        assert session.errors == []


async def test_a_delivery_behind_stop_sending_is_acknowledged_on_control() -> None:
    async with scripted_streams(profile="mqttv5") as (session, broker):
        asking = asyncio.create_task(session.subscribe("t", qos=1))
        await broker.grant()
        feed = await hang(asking)
        end = broker.open()
        await broker.sync(session)
        end.stream.peer.on_reset(0)  # STOP_SENDING: what the broker sent before is still on its way
        end.send(Publish("t", b"x", 1, False, False, 3, {}))
        assert (await broker.expect(PubAck)).packet_id == 3
        assert feed.total == 1


async def test_an_unknown_flow_header_costs_its_stream() -> None:
    async with scripted_streams(profile="mqttv5") as (session, broker):
        end = broker.open()
        end.send(b"\x14\x01hello")
        await end.was_reset()
        assert session.errors
        assert session.state == "connected"


async def test_an_explicit_stream_at_mqttv5_is_unidirectional() -> None:
    async with scripted_streams(profile="mqttv5") as (session, broker):
        stream, end = await opened(session, broker)
        assert stream.id == 2
        publishing = asyncio.create_task(stream.publish("a", "1", qos=1))
        one = (await end.expect(Publish)).packet_id or 0
        other = asyncio.create_task(session.publish("a", "1", qos=1))
        two = (await broker.expect(Publish)).packet_id or 0
        assert one != two  # identifiers are the session's
        broker.send(PubAck(one), PubAck(two))
        await hang(publishing)
        await hang(other)
        many = asyncio.create_task(stream.publish_many([("a", "1"), ("b", "2")], qos=1))
        for _ in range(2):
            broker.send(PubAck((await end.expect(Publish)).packet_id or 0))
        assert (await hang(many)).count == 2
        with pytest.raises(UsageError, match="unidirectional"):
            await stream.subscribe("a")
        await hang(stream.close())
        await end.fin()
        with pytest.raises(StreamClosedError, match="stream 2"):
            await stream.publish("a", "1")
