"""Data streams against a scripted broker: what goes where, and how each stream ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.errors import (
    DisconnectedError,
    OperationTimeoutError,
    StreamClosedError,
    StreamLimitError,
    UsageError,
)
from mqttquic_lab.mqtt import (
    ConnAck,
    Disconnect,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    UnsubAck,
    Unsubscribe,
)
from tests.session.scripted import hang, scripted
from tests.session.scripted_streams import opened, scripted_streams

if TYPE_CHECKING:
    from mqttquic_lab.session import AsyncSession


def kinds(session: AsyncSession) -> list[tuple[int | None, str, str]]:
    return [(info.id, info.kind, info.state) for info in session.streams]


# Explicit streams


async def test_what_a_stream_publishes_is_acknowledged_on_it() -> None:
    async with scripted_streams() as (session, broker):
        one, its_end = await opened(session, broker)
        other, other_end = await opened(session, broker)
        assert (one.id, other.id) == (4, 8)
        first = asyncio.create_task(one.publish("a", "1", qos=1))
        second = asyncio.create_task(other.publish("a", "2", qos=1))
        ids = [(await end.expect(Publish)).packet_id for end in (its_end, other_end)]
        assert ids == [1, 1]  # each stream has its own identifiers
        other_end.send(PubAck(1))
        assert (await hang(second)).packet_id == 1
        assert not first.done()
        its_end.send(PubAck(1))
        await hang(first)
        assert not await broker.sync(session)


async def test_pubrel_goes_on_the_stream_of_its_publish() -> None:
    async with scripted_streams() as (session, broker):
        stream, end = await opened(session, broker)
        publishing = asyncio.create_task(stream.publish("a", "1", qos=2))
        await end.expect(Publish)
        end.send(PubRec(1))
        await end.expect(PubRel)
        end.send(PubComp(1))
        await hang(publishing)
        assert stream.is_idle


async def test_deliveries_are_acknowledged_where_they_came() -> None:
    async with scripted_streams() as (session, broker):
        stream, end = await opened(session, broker)
        asking = asyncio.create_task(stream.subscribe("t/#", qos=2))
        await end.grant()
        feed = await hang(asking)
        asking = asyncio.create_task(session.subscribe("t/#", qos=2))
        await broker.grant()
        on_control = await hang(asking)
        # The same identifier is under way on both: one message each.
        end.send(Publish("t/1", b"data", 2, False, False, 7, {}))
        broker.send(Publish("t/1", b"control", 2, False, False, 7, {}))
        assert (await end.expect(PubRec)).packet_id == 7
        assert (await broker.expect(PubRec)).packet_id == 7
        end.send(PubRel(7))
        broker.send(PubRel(7))
        await end.expect(PubComp)
        await broker.expect(PubComp)
        assert [bytes(p) for p in feed.df["payload"]] == [b"data"]
        assert list(feed.df["stream_id"]) == [4]
        assert [bytes(p) for p in on_control.df["payload"]] == [b"control"]
        assert list(on_control.df["stream_id"]) == [0]
        assert session.feeds == (feed, on_control)
        assert stream.feeds == (feed,)


async def test_the_same_qos_2_message_twice_is_one() -> None:
    async with scripted_streams() as (session, broker):
        stream, end = await opened(session, broker)
        asking = asyncio.create_task(stream.subscribe("t", qos=2))
        await end.grant()
        feed = await hang(asking)
        end.send(Publish("t", b"x", 2, False, False, 1, {}), Publish("t", b"x", 2, False, True, 1, {}))
        await end.expect(PubRec)
        await end.expect(PubRec)
        assert feed.total == 1
        assert session.stats.duplicates == 1


async def test_unsubscribe_goes_to_the_stream_that_subscribed() -> None:
    async with scripted_streams() as (session, broker):
        stream, end = await opened(session, broker)
        asking = asyncio.create_task(session.subscribe("t", qos=1, stream=stream))
        await end.grant()
        feed = await hang(asking)
        for what in (feed, "t"):
            if what == "t":
                asking = asyncio.create_task(stream.subscribe("t"))
                await end.grant()
                await hang(asking)
            leaving = asyncio.create_task(session.unsubscribe(what))
            packet = await end.expect(Unsubscribe)
            end.send(UnsubAck(packet.packet_id, (0,)))
            await hang(leaving)
        assert session.feeds == ()
        assert not feed.is_active
        with pytest.raises(UsageError, match="no feed of this session"):
            await session.unsubscribe("t")


@pytest.mark.filterwarnings("ignore::mqttquic_lab.errors.BrokerProfileWarning")
async def test_unsubscribe_on_another_stream_ends_nothing_where_the_broker_says_so() -> None:
    async with scripted_streams() as (session, broker):
        stream, end = await opened(session, broker)
        asking = asyncio.create_task(session.subscribe("t"))
        await broker.grant()
        feed = await hang(asking)
        for code, alive in ((0x11, True), (0, False)):
            asked = asyncio.create_task(stream.unsubscribe("t"))
            packet = await end.expect(Unsubscribe)
            end.send(UnsubAck(packet.packet_id, (code,)))
            assert await hang(asked) == (code,)
            assert feed.is_active is alive


async def test_a_message_for_another_streams_subscription_is_not_lost() -> None:
    async with scripted_streams() as (session, broker):
        asking = asyncio.create_task(session.subscribe("t"))
        await broker.grant()
        feed = await hang(asking)
        _, end = await opened(session, broker)
        end.send(Publish("t", b"x", 0, False, False, None, {}))
        await hang(feed.wait(1))
        assert list(feed.df["stream_id"]) == [4]


# How streams end


async def test_close_waits_for_what_is_in_flight_and_for_the_brokers_fin() -> None:
    async with scripted_streams() as (session, broker):
        stream, end = await opened(session, broker)
        asking = asyncio.create_task(stream.subscribe("t"))
        await end.grant()
        feed = await hang(asking)
        publishing = asyncio.create_task(stream.publish("a", "1", qos=1))
        packet_id = (await end.expect(Publish)).packet_id or 0
        closing = asyncio.create_task(stream.close())
        await broker.sync(session)
        assert not end.ended
        assert stream.state == "closing"
        assert not feed.is_active
        with pytest.raises(StreamClosedError, match="stream 4"):
            await stream.publish("a", "2")
        end.send(PubAck(packet_id))
        await hang(publishing)
        await end.fin()
        await hang(closing)
        assert stream.close_reason is None
        assert kinds(session) == [(0, "control", "open"), (4, "explicit", "closed")]
        assert session.feeds == ()
        await stream.close()


async def test_close_resets_a_stream_that_does_not_end() -> None:
    async with scripted_streams() as (session, broker):
        stream, end = await opened(session, broker)
        publishing = asyncio.create_task(stream.publish("a", "1", qos=1))
        await end.expect(Publish)
        with pytest.raises(OperationTimeoutError, match=r"stream 4 was reset after 0\.05 s: 1 messages"):
            await stream.close(timeout=0.05)
        with pytest.raises(StreamClosedError, match="on stream 4"):
            await hang(publishing)
        assert await end.was_reset() == 0
        assert stream.state == "failed"


@pytest.mark.parametrize("how", ["reset", "fin"])
async def test_a_stream_the_broker_ends_fails_what_was_in_flight_and_nothing_else(how: str) -> None:
    async with scripted_streams() as (session, broker):
        stream, end = await opened(session, broker)
        asking = asyncio.create_task(stream.subscribe("t"))
        await end.grant()
        feed = await hang(asking)
        publishing = asyncio.create_task(stream.publish("a", "1", qos=1))
        await end.expect(Publish)
        end.stream.reset(0x85) if how == "reset" else end.stream.end()
        with pytest.raises(DisconnectedError, match="stream 4") as caught:
            await hang(publishing)
        assert isinstance(caught.value, StreamClosedError)
        assert caught.value.stream_id == 4
        assert "stream 4" in session.errors[-1].message
        assert ("error code 133" in session.errors[-1].message) is (how == "reset")
        with pytest.raises(DisconnectedError, match="stream 4"):
            await hang(feed.wait(1))
        assert session.state == "connected"
        assert stream.state == "failed"
        again, its_end = await opened(session, broker)
        publishing = asyncio.create_task(again.publish("a", "1", qos=1))
        its_end.send(PubAck((await its_end.expect(Publish)).packet_id or 0))
        await hang(publishing)


@pytest.mark.parametrize(
    "bad",
    [b"\x00\x00", ConnAck(), PingResp(), Disconnect(0), PubRec(9), bytes.fromhex("3003000000")],
    ids=["malformed", "connack", "pingresp", "disconnect", "stray-pubrec", "no-topic"],
)
async def test_what_does_not_belong_on_a_data_stream_costs_that_stream(bad: Any) -> None:
    async with scripted_streams() as (session, broker):
        stream, end = await opened(session, broker)
        publishing = asyncio.create_task(stream.publish("a", "1", qos=1))
        await end.expect(Publish)
        end.send(bad)
        if isinstance(bad, PubRec):  # an identifier nobody knows: answered, not fatal (MQTT 5.0 section 4.3.3)
            assert (await end.expect(PubRel)).reason_code == 0x92
            end.send(PubAck(1))
            await hang(publishing)
            assert session.stats.stray == 1
            return
        with pytest.raises(StreamClosedError, match="stream 4"):
            await hang(publishing)
        assert await end.was_reset() == 0
        assert session.state == "connected"
        assert session.errors


async def test_the_end_of_the_session_ends_its_streams() -> None:
    async with scripted_streams() as (session, broker):
        stream, end = await opened(session, broker)
        publishing = asyncio.create_task(stream.publish("a", "1", qos=1))
        await end.expect(Publish)
        broker.send(Disconnect(0x8B))
        with pytest.raises(DisconnectedError, match="shutting down"):
            await hang(publishing)
        with pytest.raises(DisconnectedError):
            await stream.publish("a", "1")
        with pytest.raises(DisconnectedError):
            await session.open_stream()
        assert [info.state for info in session.streams] == ["failed", "failed"]


# Limits


async def test_no_more_streams_than_the_broker_allows() -> None:
    async with scripted_streams(credit=2) as (session, broker):
        first, end = await opened(session, broker)
        await opened(session, broker)
        with pytest.raises(StreamLimitError, match=r"allows 2 data streams at a time and 2 are open: close one"):
            await session.open_stream()
        # Credit for a stream that has ended is owed, and comes.
        closing = asyncio.create_task(first.close())
        await end.fin()
        await hang(closing)
        opening = asyncio.create_task(session.open_stream())
        await broker.sync(session)
        assert not opening.done()
        broker.connection.peer.grant(1)
        assert (await hang(opening)).id == 12


async def test_credit_that_never_comes_ends_in_a_clear_error() -> None:
    async with scripted_streams(credit=1) as (session, broker):
        stream, end = await opened(session, broker)
        closing = asyncio.create_task(stream.close())
        await end.fin()
        await hang(closing)
        with pytest.raises(OperationTimeoutError, match=r"no stream became free within 0\.05 s: the broker allows 1"):
            await session.open_stream(timeout=0.05)


async def test_a_broker_without_data_streams() -> None:
    async with scripted_streams(credit=0, streams="per-topic") as (session, _):
        with pytest.raises(StreamLimitError, match="allows no data streams beside the control stream"):
            await session.publish("a", "1")


@pytest.mark.parametrize("transport", ["tls", "tcp"])
async def test_other_transports_carry_one_stream(transport: Any) -> None:
    async with scripted(transport=transport, streams="per-topic") as (session, broker):
        assert "needs QUIC" in session.errors[0].message
        await session.publish("a", "1")
        await broker.expect(Publish)
        with pytest.raises(UsageError, match="carries one stream only"):
            await session.open_stream()
        assert [(info.id, info.kind, info.messages_out) for info in session.streams] == [(None, "control", 1)]


@pytest.mark.parametrize("priority", [-1, 8, True, 2.0, "urgent", None])
async def test_a_priority_is_an_urgency(priority: Any) -> None:
    async with scripted_streams() as (session, _):
        with pytest.raises(UsageError, match=r"priority=.*use an integer from 0 \(sent first\) to 7"):
            await session.open_stream(priority=priority)


@pytest.mark.parametrize("transport", ["tls", "tcp"])
async def test_there_is_nothing_to_go_before_on_other_transports(transport: Any) -> None:
    async with scripted(transport=transport) as (session, _):
        with pytest.raises(UsageError, match="carries one stream only"):
            await session.open_stream(priority=0)
        stream = session._streams.context.control.stream
        assert stream.urgency == 3
        with pytest.raises(UsageError, match="carries one stream, which has nothing to go before"):
            stream.prioritize(0)


async def test_streams_of_others_are_refused() -> None:
    async with scripted_streams() as (session, broker), scripted_streams() as (other, other_broker):
        stream, _ = await opened(other, other_broker)
        with pytest.raises(UsageError, match="belongs to another session"):
            await session.subscribe("a", stream=stream)
        with pytest.raises(UsageError, match="what open_stream"):
            await session.subscribe("a", stream=4)  # type: ignore[arg-type]
        assert not await broker.sync(session)


@pytest.mark.parametrize("code", [None, 7])
async def test_an_abortive_end_costs_the_stream_only(code: int | None) -> None:
    async with scripted_streams() as (session, broker):
        stream, end = await opened(session, broker)
        publishing = asyncio.create_task(stream.publish("a", "x", qos=1))
        await end.expect(Publish)
        for wrong in (-1, "FLOW_CANCELLED", True):
            with pytest.raises(UsageError, match="streams without flows"):
                await stream.abort(wrong)
        await stream.abort(code)
        assert await end.was_reset() == (code or 0)
        with pytest.raises(StreamClosedError, match="was reset here"):
            await hang(publishing)
        with pytest.raises(StreamClosedError):
            await stream.abort()
        for verb in (stream.take_over, stream.discard):
            with pytest.raises(UsageError, match=r'is no flow.*connect with streams="flows"'):
                await verb()
        assert stream.flow is None
        assert session.state == "connected"


async def test_counters_of_streams() -> None:
    async with scripted_streams() as (session, broker):
        stream, end = await opened(session, broker)
        await stream.publish_many((("a", b"x"), ("b", b"yy"), ("c", b"")))
        await session.publish("a", b"x")
        for _ in range(3):
            await end.expect(Publish)
        await broker.expect(Publish)
        end.send(Publish("t", b"x", 0, False, False, None, {}), Publish("t", b"x", 0, False, False, None, {}))
        broker.send(Publish("t", b"x", 0, False, False, None, {}))
        await broker.sync(session)
        control, data = session.streams
        assert (control.messages_in, control.messages_out) == (1, 1)
        assert (data.messages_in, data.messages_out) == (2, 3)
        assert control.bytes_in + data.bytes_in == session.stats.bytes_received
        assert control.bytes_out + data.bytes_out == session.stats.bytes_sent
        assert data.bytes_out == len(end.stream.peer.written)
