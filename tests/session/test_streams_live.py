"""Data streams between our session and our broker, over real QUIC, also where datagrams get lost."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.broker import BrokerConfig, BrokerServer
from mqttquic_lab.errors import BrokerProfileWarning, StreamClosedError, StreamLimitError
from mqttquic_lab.session import AsyncSession
from tests.helpers.lossy import Ills, LossyRelay
from tests.session.scripted import hang

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mqttquic_lab.mqtt.profiles import ProfileName

MESSAGES = 72
TOPICS = 12

LOSS = Ills(drop=0.08, duplicate=0.05, reorder=0.05)


@asynccontextmanager
async def broker_like(profile: ProfileName) -> AsyncIterator[BrokerServer]:
    """Run a broker with the rules of `profile`."""
    async with BrokerServer(BrokerConfig(quic_port=0, tls=False, tcp=False, profile=profile)) as server:
        yield server


@asynccontextmanager
async def session_at(url: str, broker: BrokerServer, **options: Any) -> AsyncIterator[AsyncSession]:
    """Yield a session that is closed at the end."""
    session = await hang(AsyncSession.open(url, ca_file=broker.ca_file, **options))
    try:
        yield session
    finally:
        await hang(session.close())


@pytest.mark.parametrize("streams", ["single", "per-topic", "per-publish"])
@pytest.mark.parametrize("profile", ["generic", "emqx", "mqttv5"])
async def test_every_acknowledged_message_arrives_and_none_twice_at_qos_2(profile: ProfileName, streams: str) -> None:
    # Twelve topics on nine streams: each message waits until a stream has ended on both sides.
    count = MESSAGES // 3 if (profile, streams) == ("emqx", "per-topic") else MESSAGES
    async with (
        broker_like(profile) as broker,
        LossyRelay(("127.0.0.1", int(broker.urls["quic"].rpartition(":")[2])), LOSS, seed=11) as relay,
        session_at(
            f"quic://127.0.0.1:{relay.address[1]}", broker, streams=streams, profile=profile, server_name="localhost"
        ) as publisher,
        session_at(broker.urls["quic"], broker, profile=profile) as subscriber,
    ):
        feeds = {qos: await subscriber.subscribe(f"load/{qos}/#", qos=qos) for qos in (1, 2)}

        async def publish(qos: int, number: int) -> str:
            topic = f"load/{qos}/{number % TOPICS}"
            await publisher.publish(topic, str(number), qos=qos, timeout=40)
            return str(number)

        for qos, feed in feeds.items():
            async with asyncio.timeout(45):
                sent = []
                for first in range(0, count, 2 * TOPICS):
                    sent += await asyncio.gather(*(publish(qos, n) for n in range(first, first + 2 * TOPICS)))
                many = await publisher.publish_many(
                    ((f"load/{qos}/{n % TOPICS}", str(n)) for n in range(count, 2 * count)), qos=qos
                )
            assert many.count == count
            await feed.wait(2 * count, timeout=20)
            got = [bytes(payload).decode() for payload in feed.df["payload"]]
            expected = [*sent, *map(str, range(count, 2 * count))]
            if qos == 2:
                assert sorted(got) == sorted(expected)
            else:
                assert set(got) == set(expected)
            if streams != "per-publish":
                for topic, rows in feed.df.groupby("topic", observed=True):
                    numbers = [int(bytes(payload)) for payload in rows["payload"]]
                    assert numbers == sorted(numbers), f"{topic} came out of order"
        assert relay.dropped + relay.duplicated + relay.reordered > 0
        assert publisher.errors == []
        assert publisher.stats.stray == 0


async def test_qos_2_towards_us_through_a_lossy_path() -> None:
    async with (
        broker_like("emqx") as broker,
        LossyRelay(("127.0.0.1", int(broker.urls["quic"].rpartition(":")[2])), LOSS, seed=5) as relay,
        session_at(
            f"quic://127.0.0.1:{relay.address[1]}", broker, profile="emqx", server_name="localhost"
        ) as subscriber,
        session_at(broker.urls["quic"], broker) as publisher,
    ):
        streams = [await subscriber.open_stream() for _ in range(4)]
        feeds = [await stream.subscribe(f"load/{n}", qos=2) for n, stream in enumerate(streams)]
        await publisher.publish_many(((f"load/{n % 4}", str(n)) for n in range(400)), qos=2)
        for number, (stream, feed) in enumerate(zip(streams, feeds, strict=True)):
            await feed.wait(100, timeout=30)
            assert [int(bytes(p)) for p in feed.df["payload"]] == list(range(number, 400, 4))
            assert set(feed.df["stream_id"]) == {stream.id}


async def test_nine_data_streams_at_emqx() -> None:
    async with broker_like("emqx") as broker, session_at(broker.urls["quic"], broker, profile="emqx") as session:
        streams = [await session.open_stream() for _ in range(9)]
        with pytest.raises(StreamLimitError, match="allows 9 data streams at a time and 9 are open"):
            await session.open_stream()
        for stream in streams:  # a stream that nothing was written on is not known to the broker
            await stream.publish("a", "1", qos=1)
        await hang(streams[0].close())
        assert (await hang(session.open_stream())).id == 40


async def test_two_copies_for_two_streams_and_0x11_elsewhere_at_emqx() -> None:
    async with broker_like("emqx") as broker, session_at(broker.urls["quic"], broker, profile="emqx") as session:
        stream = await session.open_stream()
        on_stream, on_control = await stream.subscribe("t", qos=1), await session.subscribe("t", qos=1)
        await session.publish("t", "x", qos=1)
        await hang(on_stream.wait(1))
        await hang(on_control.wait(1))
        other = await session.open_stream()
        with pytest.warns(BrokerProfileWarning, match="0x11"):
            assert await other.unsubscribe("t") == (0x11,)
        assert on_stream.is_active
        await stream.close()
        await session.publish("t", "y", qos=1)
        await hang(on_control.wait(2))
        assert [(feed.total, feed.is_active) for feed in (on_stream, on_control)] == [(1, False), (2, True)]


@pytest.mark.parametrize("streams", ["per-topic", "per-publish"])
async def test_streams_go_on_after_a_reconnect(streams: str) -> None:
    async with (
        broker_like("generic") as broker,
        session_at(broker.urls["quic"], broker, streams=streams, session_expiry_interval=60) as session,
    ):
        on_control = await session.subscribe("a", qos=1)
        stream = await session.open_stream()
        on_stream = await stream.subscribe("a", qos=1)
        await session.publish("a", "1", qos=1)
        await hang(on_control.wait(1))
        await hang(on_stream.wait(1))
        waiting = asyncio.create_task(on_stream.wait(3))
        await hang(session.reconnect())
        assert stream.state == "open"
        assert session.feeds == (on_control, on_stream)
        await session.publish("a", "2", qos=2)
        await stream.publish("a", "3", qos=1)
        for feed in (on_control, on_stream):
            await hang(feed.wait(3))
            assert [bytes(payload) for payload in feed.df["payload"]] == [b"1", b"2", b"3"]
        assert await hang(waiting) == 3
        assert session.errors == []


async def test_feeds_of_a_lost_stream_live_on_over_whatever_carries_the_session() -> None:
    async with BrokerServer(BrokerConfig(quic_port=0, tls_port=0, tcp=False)) as broker:  # noqa: SIM117
        async with session_at(broker.urls["quic"], broker, session_expiry_interval=60, reconnect=False) as session:
            on_control = await session.subscribe("a/+", qos=1)
            stream = await session.open_stream()
            on_stream = await stream.subscribe(["a/b", "c"], qos=1)
            session.connection.abort("pulled")
            await hang(session.wait_closed())
            states = [on_stream.is_active]
            await hang(session.reconnect(broker.urls["mqtts"]))
            states.append(on_stream.is_active)
            assert states == [False, True]
            await session.publish("a/b", "1", qos=1)
            await session.publish("c", "2", qos=1)
            await hang(on_stream.wait(2))
            await hang(on_control.wait(1))
            assert (on_stream.total, on_control.total) == (2, 1)
            await session.unsubscribe(on_stream)
            await session.publish("c", "3", qos=1)
            assert on_stream.total == 2
            with pytest.raises(StreamClosedError):
                await stream.publish("a/b", "4")
            await hang(session.reconnect(broker.url))
            await session.publish("a/b", "5", qos=1)
            await hang(on_control.wait(2))


# Priorities


async def test_urgent_messages_overtake_bulk_on_a_slow_link() -> None:
    """Compared at the broker: how many of the bulk's messages arrive between an alarm's publication and the alarm."""
    places: dict[bool, int] = {}
    for urgent in (False, True):
        async with (
            broker_like("generic") as broker,
            LossyRelay(("127.0.0.1", int(broker.urls["quic"].rpartition(":")[2])), delay=0.02) as relay,
            session_at(f"quic://127.0.0.1:{relay.address[1]}", broker, server_name="localhost") as publisher,
            session_at(broker.urls["quic"], broker) as subscriber,
        ):
            order: list[str] = []
            subscriber.on_message = lambda message, order=order: order.append(message.topic)
            feed = await subscriber.subscribe("#", qos=0)
            bulk = await publisher.open_stream(priority=7)
            alarms = await publisher.open_stream(priority=0 if urgent else 7)
            assert [info.priority for info in publisher.streams] == [3, 7, 0 if urgent else 7]
            async with asyncio.TaskGroup() as group:
                group.create_task(bulk.publish_many(("bulk", bytes(1000)) for _ in range(600)))
                await feed.wait(20, timeout=30)  # the path is full
                begun = len(order)
                await alarms.publish_many(("alarm", bytes(1000)) for _ in range(100))
                await feed.wait(700, timeout=30)
        last_alarm = max(place for place, topic in enumerate(order) if topic == "alarm")
        places[urgent] = order[begun:last_alarm].count("bulk")
    # In turns a message of the bulk goes with each alarm; else what was in flight, and now and then one.
    assert places[False] > 80
    assert places[True] < places[False] / 2
