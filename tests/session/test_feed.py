"""Waiting for messages and going through them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.errors import DisconnectedError, OperationTimeoutError, UsageError
from mqttquic_lab.mqtt import Disconnect, Publish, UnsubAck, Unsubscribe
from tests.session.scripted import ScriptedBroker, hang, scripted, subscribed

if TYPE_CHECKING:
    from mqttquic_lab.records.message import Message
    from mqttquic_lab.session import AsyncFeed


def send(broker: ScriptedBroker, *payloads: bytes) -> None:
    broker.send(*(Publish("a", payload) for payload in payloads))


async def test_wait_returns_when_enough_came() -> None:
    async with scripted() as (session, broker):
        feed = await subscribed(session, broker, "a")
        assert await feed.wait(0) == 0
        waiting = [asyncio.create_task(feed.wait(n)) for n in (1, 3, 2)]
        await asyncio.sleep(0)
        send(broker, b"1", b"2")
        assert await hang(waiting[0]) == 2
        assert await hang(waiting[2]) == 2
        assert not waiting[1].done()
        send(broker, b"3")
        assert await hang(waiting[1]) == 3
        assert await hang(feed.wait(3)) == 3  # they are still there


async def test_wait_says_how_many_came() -> None:
    async with scripted() as (session, broker):
        feed = await subscribed(session, broker, "a")
        send(broker, b"1", b"2")
        await hang(feed.wait(2))
        with pytest.raises(OperationTimeoutError, match=r"after 0\.02 s 2 of 3 messages on a had come"):
            await feed.wait(3, timeout=0.02)


@pytest.mark.parametrize("n", [-1, 1.5, True, "3"])
async def test_wait_for_what(n: Any) -> None:
    async with scripted() as (session, broker):
        feed = await subscribed(session, broker, "a")
        with pytest.raises(UsageError, match="number of messages"):
            await feed.wait(n)


async def test_clear_begins_anew() -> None:
    async with scripted() as (session, broker):
        feed = await subscribed(session, broker, "a")
        send(broker, b"1", b"2")
        await hang(feed.wait(2))
        feed.clear()
        assert (len(feed), feed.total, feed.count, feed.dropped) == (0, 2, 0, 0)
        assert bool(feed)
        with pytest.raises(OperationTimeoutError, match="0 of 1"):
            await feed.wait(1, timeout=0.02)
        send(broker, b"3")
        await hang(feed.wait(1))
        assert [message.payload async for message in taking(feed, 1)] == [b"3"]
        assert feed.missed == 0


async def test_dropped_messages_count_for_wait() -> None:
    async with scripted() as (session, broker):
        feed = await subscribed(session, broker, "a", max_messages=64)
        send(broker, *(b"%d" % number for number in range(200)))
        assert await hang(feed.wait(200)) == 200
        assert len(feed) == 64
        assert feed.dropped == 136


async def taking(feed: Any, count: int) -> Any:
    async for message in feed.messages(timeout=5):
        yield message
        count -= 1
        if not count:
            return


async def following(feed: AsyncFeed) -> Message:
    """Return the feed's next message."""
    return await anext(aiter(feed))


async def test_iteration_waits_and_goes_on_where_it_stopped() -> None:
    async with scripted() as (session, broker):
        feed = await subscribed(session, broker, "a")
        send(broker, b"1", b"2", b"3")
        assert [message.payload async for message in taking(feed, 2)] == [b"1", b"2"]
        rest = asyncio.create_task(following(feed))
        assert (await hang(rest)).payload == b"3"
        late = asyncio.create_task(following(feed))
        await asyncio.sleep(0)
        assert not late.done()
        send(broker, b"4")
        assert (await hang(late)).payload == b"4"


async def test_iteration_with_a_timeout() -> None:
    async with scripted() as (session, broker):
        feed = await subscribed(session, broker, "a")
        with pytest.raises(OperationTimeoutError, match=r"no message on a for 0\.02 s"):
            await anext(aiter(feed.messages(timeout=0.02)))


async def test_what_iteration_misses_is_counted() -> None:
    async with scripted() as (session, broker):
        feed = await subscribed(session, broker, "a", max_messages=64)
        send(broker, b"first")
        assert [message.payload async for message in taking(feed, 1)] == [b"first"]
        send(broker, *(b"%d" % number for number in range(300)))
        await hang(feed.wait(301))
        seen = [message.payload async for message in taking(feed, 64)]
        assert seen == [b"%d" % number for number in range(236, 300)]
        assert feed.missed == 236


async def test_iteration_ends_with_the_feed() -> None:
    async with scripted() as (session, broker):
        feed = await subscribed(session, broker, "a")
        send(broker, b"1")

        async def collect() -> list[bytes]:
            return [message.payload async for message in feed]

        collecting = asyncio.create_task(collect())
        leaving = asyncio.create_task(feed.unsubscribe())
        packet = await broker.expect(Unsubscribe)
        broker.send(UnsubAck(packet.packet_id, (0,)))
        await hang(leaving)
        assert await hang(collecting) == [b"1"]


async def test_iteration_ends_when_the_session_is_closed_here() -> None:
    async with scripted() as (session, broker):
        feed = await subscribed(session, broker, "a")
        collecting = asyncio.create_task(following(feed))
        await asyncio.sleep(0)
        await hang(session.close())
        with pytest.raises(StopAsyncIteration):
            await hang(collecting)


async def test_a_lost_connection_is_not_a_quiet_end() -> None:
    async with scripted() as (session, broker):
        feed = await subscribed(session, broker, "a")
        send(broker, b"1")
        await hang(feed.wait(1))
        waiting = asyncio.create_task(feed.wait(2))
        await asyncio.sleep(0)
        broker.send(Disconnect(0x8E))
        with pytest.raises(DisconnectedError, match=r"1 of 2 messages on a had come.*taken over") as caught:
            await hang(waiting)
        assert isinstance(caught.value.__cause__, DisconnectedError)
        assert (await hang(following(feed))).payload == b"1"  # what came is still there
        with pytest.raises(DisconnectedError, match="taken over"):
            await hang(following(feed))
        assert len(feed.df) == 1


async def test_nobody_is_woken_for_nothing() -> None:
    async with scripted() as (session, broker):
        feed = await subscribed(session, broker, "a")
        waiting = asyncio.create_task(feed.wait(2))
        await asyncio.sleep(0)
        assert session._incoming.feeds == {feed}
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert feed._waiters == []
        send(broker, b"1")
        await broker.sync(session)
        assert session._incoming.feeds == set()
