"""Sessions that outlive their connection: taken over, lost, closed, forgotten by the broker."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.broker import BrokerConfig, BrokerProcess, BrokerServer
from mqttquic_lab.errors import (
    ConnectError,
    ConnectRefusedError,
    DisconnectedError,
    OperationTimeoutError,
    UnreachableError,
    UsageError,
)
from mqttquic_lab.mqtt import (
    ConnAck,
    Connect,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    UnsubAck,
    Unsubscribe,
)
from mqttquic_lab.quic.tickets import TicketStore
from mqttquic_lab.session import AsyncSession, SessionOptions
from mqttquic_lab.session.connecting import checked_connect
from mqttquic_lab.session.target import resolve_target
from tests.helpers.lossy import Ills, LossyRelay
from tests.helpers.memory import memory_pair
from tests.session.load import Load
from tests.session.scripted import ScriptedBroker, hang, scripted, subscribed

if TYPE_CHECKING:
    from mqttquic_lab.session import AsyncFeed
    from tests.session.conftest import Open

KEPT: dict[str, Any] = {"session_expiry_interval": 60}
"""Options with which the broker keeps the session."""


# Packet by packet


async def lose(session: AsyncSession, broker: ScriptedBroker) -> list[Any]:
    """Cut the connection; returns what the broker had received and not looked at."""
    packets = list(broker.inbox)
    broker.connection.abort("cable")
    await hang(session.wait_closed())
    return packets


async def come_back(
    session: AsyncSession, connack: ConnAck, **pair: Any
) -> tuple[ScriptedBroker, asyncio.Task[None], Connect]:
    """Connect a session anew to a broker that answers with `connack`."""
    client, server = memory_pair(transport="quic", **pair)
    broker = ScriptedBroker(server, session.options.level)
    options = replace(session.options, clean_start=False, client_id=session.client_id)
    going_on = asyncio.create_task(session.carry_on(client, options, checked_connect(options), "quic://b:14567", None))
    asked = await broker.expect(Connect)
    broker.send(connack)
    return broker, going_on, asked


async def unanswered(session: AsyncSession, qos: int, *payloads: bytes) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(session.publish("a", payload, qos)) for payload in payloads]
    await asyncio.sleep(0)
    return tasks


def is_active(feed: AsyncFeed) -> bool:
    return feed.is_active


@pytest.mark.parametrize("qos", [1, 2])
async def test_what_was_not_acknowledged_is_sent_again(qos: int) -> None:
    async with scripted(client_id="c") as (session, broker):
        waiting = await unanswered(session, qos, b"1", b"2")
        first = [await broker.expect(Publish) for _ in waiting]
        await lose(session, broker)
        for task in waiting:
            with pytest.raises(DisconnectedError, match="was not acknowledged"):
                await task
        assert session.unacknowledged == 2
        broker, going_on, asked = await come_back(session, ConnAck(session_present=True))
        assert (asked.client_id, asked.clean_start) == ("c", False)
        again = [await broker.expect(Publish) for _ in waiting]
        assert [(p.packet_id, p.payload, p.dup) for p in again] == [(p.packet_id, p.payload, True) for p in first]
        await hang(going_on)
        for packet in again:
            broker.send(PubAck(packet.packet_id or 0) if qos == 1 else PubRec(packet.packet_id or 0))
            if qos == 2:
                released = await broker.expect(PubRel)
                broker.send(PubComp(released.packet_id))
        assert await broker.sync(session) == []
        assert session.unacknowledged == 0
        assert session.stats.reconnects == 1


async def test_a_release_without_an_answer_is_sent_again_and_the_message_is_not() -> None:
    async with scripted() as (session, broker):
        [waiting] = await unanswered(session, 2, b"x")
        packet = await broker.expect(Publish)
        broker.send(PubRec(packet.packet_id or 0))
        await broker.expect(PubRel)
        await lose(session, broker)
        with pytest.raises(DisconnectedError):
            await waiting
        broker, going_on, _ = await come_back(session, ConnAck(session_present=True))
        again = await broker.expect(PubRel)
        assert again.packet_id == packet.packet_id
        await hang(going_on)
        broker.send(PubComp(again.packet_id, 0x92))  # it had it all before
        assert await broker.sync(session) == []
        assert session.unacknowledged == 0


async def test_a_forgotten_session_begins_anew() -> None:
    async with scripted() as (session, broker):
        waiting = await unanswered(session, 2, b"accepted", b"sent")
        packets = [await broker.expect(Publish) for _ in waiting]
        broker.send(PubRec(packets[0].packet_id or 0))
        await broker.expect(PubRel)
        waiting += await unanswered(session, 1, b"once")
        await broker.expect(Publish)
        await lose(session, broker)
        assert [type(e) for e in await asyncio.gather(*waiting, return_exceptions=True)] == [DisconnectedError] * 3
        broker, going_on, _ = await come_back(session, ConnAck(session_present=False))
        await hang(going_on)
        again = [await broker.expect(Publish) for _ in range(2)]
        # What the broker accepted is its own since PUBREC.
        assert [(p.payload, p.qos, p.dup) for p in again] == [(b"sent", 2, False), (b"once", 1, False)]
        assert await broker.sync(session) == []
        assert session.events[-1].what == "renewed"


async def test_what_was_never_sent_is_dropped_with_its_caller() -> None:
    connack = ConnAck(properties={"receive_maximum": 1})
    async with scripted(connack) as (session, broker):
        waiting = await unanswered(session, 1, b"sent", b"queued")
        await broker.expect(Publish)
        await lose(session, broker)
        assert [type(e) for e in await asyncio.gather(*waiting, return_exceptions=True)] == [DisconnectedError] * 2
        broker, going_on, _ = await come_back(session, connack)
        await hang(going_on)
        again = await broker.expect(Publish)
        assert again.payload == b"sent"
        broker.send(PubAck(again.packet_id or 0))
        assert await broker.sync(session) == []


async def test_who_waits_while_the_session_moves_waits_on() -> None:
    connack = ConnAck(session_present=True, properties={"receive_maximum": 1})
    async with scripted(connack, clean_start=False, client_id="c", **KEPT) as (session, broker):
        waiting = await unanswered(session, 1, b"sent", b"queued")
        await broker.expect(Publish)
        client, server = memory_pair(transport="tls")
        second = ScriptedBroker(server)
        moving = asyncio.create_task(
            session.carry_on(client, session.options, checked_connect(session.options), "mqtts://b:8883", None)
        )
        await second.expect(Connect)
        assert session.state == "connecting"
        late = [
            asyncio.create_task(session.publish("b", b"meanwhile")),
            asyncio.create_task(session.ping()),
            asyncio.create_task(session.subscribe("c")),
        ]
        with pytest.raises(OperationTimeoutError, match="reconnecting"):
            await session.publish("b", b"impatient", timeout=0.01)
        assert not broker.ended.is_set()  # the old connection stays until the new one is accepted
        second.send(connack)
        await hang(moving)
        await broker.closed()
        assert (session.state, session.transport) == ("connected", "tls")
        for payload in (b"sent", b"queued"):
            packet = await second.expect(Publish)
            while packet.payload != payload:  # the late ones are in between
                packet = await second.expect(Publish)
            second.send(PubAck(packet.packet_id or 0))
            if payload == b"sent":
                await second.next()
                await second.next()
                await second.next()
        results = await hang(asyncio.gather(*waiting))
        assert [result.reason_code for result in results] == [0, 0]
        for task in late:
            task.cancel()


async def test_a_qos_2_message_is_received_once_over_two_connections() -> None:
    async with scripted() as (session, broker):
        feed = await subscribed(session, broker, "a", 2)
        broker.send(Publish("a", b"x", 2, packet_id=7))
        await broker.expect(PubRec)
        await lose(session, broker)
        broker, going_on, _ = await come_back(session, ConnAck(session_present=True))
        await hang(going_on)
        broker.send(Publish("a", b"x", 2, dup=True, packet_id=7))
        await broker.expect(PubRec)
        broker.send(PubRel(7))
        await broker.expect(PubComp)
        assert (feed.total, session.stats.duplicates) == (1, 1)


async def test_topic_aliases_do_not_outlive_the_connection() -> None:
    async with scripted(topic_alias_maximum=5) as (session, broker):
        await subscribed(session, broker, "a")
        broker.send(Publish("a", b"x", properties={"topic_alias": 1}))
        await broker.sync(session)
        await lose(session, broker)
        broker, going_on, _ = await come_back(session, ConnAck(session_present=True))
        await hang(going_on)
        broker.send(Publish("", b"x", properties={"topic_alias": 1}))
        reason = await hang(session.wait_closed())
        assert "no earlier PUBLISH has set" in str(reason)


async def test_feeds_end_with_the_connection_and_come_back_to_life() -> None:
    async with scripted() as (session, broker):
        feed = await subscribed(session, broker, "a/#")
        waiting = asyncio.create_task(feed.wait(1))
        await asyncio.sleep(0)
        await lose(session, broker)
        with pytest.raises(DisconnectedError):
            await waiting
        assert not is_active(feed)
        broker, going_on, _ = await come_back(session, ConnAck(session_present=True))
        await hang(going_on)
        assert is_active(feed)
        broker.send(Publish("a/b", b"x"))
        await hang(feed.wait(1))
        assert session.feeds == (feed,)
        assert await broker.sync(session) == []  # the broker still has the subscription


async def test_a_forgotten_session_is_subscribed_as_it_was() -> None:
    async with scripted() as (session, broker):
        await subscribed(session, broker, ["a/#", ("b", 2)], 1, no_local=True, retain_handling=2)
        asking = asyncio.create_task(session.subscribe("a/+", 0))
        await broker.grant()  # the overlapping subscription gets an identifier
        narrow = await broker.grant()
        await hang(asking)
        await lose(session, broker)
        broker, going_on, _ = await come_back(session, ConnAck(session_present=False))
        asked = [await broker.expect(Subscribe) for _ in range(3)]
        wanted = {s.filter: (s.qos, s.no_local, s.retain_handling) for p in asked for s in p.subscriptions}
        assert wanted == {"a/#": (1, True, 2), "b": (2, True, 2), "a/+": (0, False, 0)}
        identified = {s.filter: p.properties.get("subscription_identifier") for p in asked for s in p.subscriptions}
        assert identified["a/+"] == narrow.properties["subscription_identifier"]
        assert identified["b"] is None
        assert not going_on.done()
        for packet in asked:
            broker.send(SubAck(packet.packet_id, [s.qos for s in packet.subscriptions]))
        await hang(going_on)


async def test_a_filter_that_is_refused_now_ends_its_feed() -> None:
    async with scripted() as (session, broker):
        good = await subscribed(session, broker, "good", 1)
        bad = await subscribed(session, broker, ["bad", "also"])
        await lose(session, broker)
        broker, going_on, _ = await come_back(session, ConnAck(session_present=False))
        await broker.grant(0)
        await broker.grant(0x87, 0)
        await hang(going_on)
        unsubscribed = await broker.expect(Unsubscribe)
        assert unsubscribed.filters == ("also",)
        assert session.feeds == (good,)
        assert good.granted == {"good": 0}
        assert not bad.is_active
        with pytest.raises(DisconnectedError, match="subscribe anew"):
            await bad.wait(1)
        assert "Not authorized" in session.errors[-1].message


async def test_what_was_unsubscribed_meanwhile_is_not_left_at_the_broker() -> None:
    async with scripted() as (session, broker):
        feed = await subscribed(session, broker, "a")
        kept = await subscribed(session, broker, "b")
        await lose(session, broker)
        await session.unsubscribe(feed)
        broker, going_on, _ = await come_back(session, ConnAck(session_present=True))
        await hang(going_on)
        packet = await broker.expect(Unsubscribe)
        assert packet.filters == ("a",)
        broker.send(UnsubAck(packet.packet_id, [0]))
        assert session.feeds == (kept,)


async def test_a_subscription_under_way_goes_on() -> None:
    async with scripted() as (session, broker):
        asking = asyncio.create_task(session.subscribe("a"))
        first = await broker.expect(Subscribe)
        second, going_on, _ = await come_back(session, ConnAck(session_present=True))
        await hang(going_on)
        again = await second.grant()
        assert again.packet_id == first.packet_id
        feed = await hang(asking)
        assert is_active(feed)


async def test_the_broker_refuses_the_second_time() -> None:
    async with scripted() as (session, broker):
        feed = await subscribed(session, broker, "a")
        await lose(session, broker)
        _, going_on, _ = await come_back(session, ConnAck(reason_code=0x87))
        with pytest.raises(ConnectRefusedError):
            await hang(going_on)
        assert session.state == "closed"
        assert not is_active(feed)
        with pytest.raises(DisconnectedError):
            await session.publish("a", b"x", 1)
        # Lost once, not twice.
        assert [event.what for event in session.events] == ["connected", "lost"]
        broker, going_on, _ = await come_back(session, ConnAck(session_present=True))
        await hang(going_on)
        assert is_active(feed)


async def test_a_message_too_large_for_the_new_connection_is_given_up() -> None:
    async with scripted() as (session, broker):
        waiting = await unanswered(session, 1, b"x" * 500, b"small")
        await lose(session, broker)
        await asyncio.gather(*waiting, return_exceptions=True)
        connack = ConnAck(session_present=True, properties={"maximum_packet_size": 200})
        broker, going_on, _ = await come_back(session, connack)
        await hang(going_on)
        packet = await broker.expect(Publish)
        assert packet.payload == b"small"
        assert session.unacknowledged == 1


async def test_events_and_moments() -> None:
    before = dt.datetime.now(dt.UTC)
    async with scripted() as (session, broker):
        assert session.connected_at is not None
        assert before <= session.connected_at <= dt.datetime.now(dt.UTC)
        first = session.connected_at
        await lose(session, broker)
        reasons = [session.close_reason]
        _, going_on, _ = await come_back(session, ConnAck(session_present=True))
        await hang(going_on)
        reasons.append(session.close_reason)
        assert [type(reason) for reason in reasons] == [DisconnectedError, type(None)]
        assert session.connected_at >= first
        for _ in range(60):
            session.connection.abort("again")
            await hang(session.wait_closed())
            _, going_on, _ = await come_back(session, ConnAck(session_present=True))
            await hang(going_on)
        events = session.events
        assert len(events) == 100
        assert [event.what for event in events[-3:]] == ["resumed", "lost", "resumed"]
        assert all(event.transport == "quic" for event in events)
        await hang(session.close())
        assert session.events[-1].what == "closed"


# With the embedded broker


@pytest.mark.parametrize("way", [("quic", "mqtts", "quic"), ("mqtts", "quic", "mqtt"), ("quic", "quic", "quic")])
async def test_changing_the_transport_under_load(broker: BrokerServer, connect: Open, way: tuple[str, ...]) -> None:
    sender = await connect(way[0], client_id="sender", **KEPT)
    receiver = await connect(way[0], client_id="receiver", **KEPT)
    load = await Load.start(sender, receiver)
    for position, scheme in enumerate(way[1:]):
        await load.until(0.2 + 0.4 * position)
        await hang(sender.reconnect(broker.urls[scheme]))
        await hang(receiver.reconnect(broker.urls[scheme]))
        assert sender.handshake.session_present
        assert receiver.handshake.session_present
    await load.check()
    transports = {"quic": "quic", "mqtts": "tls", "mqtt": "tcp"}
    assert [event.transport for event in sender.events] == [transports[scheme] for scheme in way]
    assert [event.what for event in sender.events] == ["connected", "resumed", "resumed"]
    assert broker.stats().takeovers == 4


async def test_a_path_that_goes_dark_under_load(broker: BrokerServer, connect: Open) -> None:
    """Datagrams get lost, then all of them: the session goes on over TLS, and nobody who waits notices."""
    host, port = broker.url.removeprefix("quic://").split(":")
    async with LossyRelay((host, int(port)), Ills(drop=0.02, reorder=0.02, duplicate=0.02), seed=3) as relay:
        url = f"quic://{relay.address[0]}:{relay.address[1]}"
        sender = await hang(AsyncSession.open(url, ca_file=broker.ca_file, client_id="sender", **KEPT))
        receiver = await connect("mqtts", client_id="receiver", **KEPT)
        load = await Load.start(sender, receiver)
        await load.until(0.3)
        relay.blackhole = True
        await hang(sender.reconnect(broker.urls["mqtts"]))
        assert sender.transport == "tls"
        await load.check()
        await hang(sender.close())


async def test_a_lost_connection_is_resumed_and_brings_what_was_missed(broker: BrokerServer, connect: Open) -> None:
    session = await connect("quic", client_id="me", reconnect=False, **KEPT)
    other = await connect("mqtt")
    feed = await session.subscribe("news", 1)
    session.connection.abort("cable pulled")
    await hang(session.wait_closed())
    await broker.wait_for(lambda: len(broker.clients()) == 1)
    await other.publish("news", b"missed", 1)
    await hang(session.reconnect())
    await other.publish("news", b"live", 1)
    await hang(feed.wait(2))
    assert feed.df["value"].tolist() == ["missed", "live"]
    assert [event.what for event in session.events] == ["connected", "lost", "resumed"]


@pytest.mark.parametrize("version", ["5.0", "3.1.1"])
async def test_a_closed_session_opens_again(connect: Open, version: str) -> None:
    session = await connect("quic", version=version)
    feed = await session.subscribe("a", 1)
    name = session.client_id
    await hang(session.close())
    await hang(session.reconnect())
    assert (session.state, session.close_reason, session.client_id) == ("connected", None, name)
    assert session.handshake.session_present is False
    await session.publish("a", b"x", 1)
    await hang(feed.wait(1))
    assert session.events[-1].what == "renewed"
    assert session.errors == []


async def test_data_streams_go_on_with_the_next_connection(broker: BrokerServer, connect: Open) -> None:
    session = await connect("quic", streams="per-topic", **KEPT)
    stream = await session.open_stream()
    theirs = await stream.subscribe("a", 1)
    mine = await session.subscribe("b", 1)
    await session.publish("b", b"1", 1)
    await hang(session.reconnect())
    assert is_active(theirs)
    assert is_active(mine)
    assert [info.kind for info in session.streams] == ["control", "explicit"]
    await session.publish("b", b"2", 1)
    await hang(mine.wait(2))
    assert [info.kind for info in session.streams] == ["control", "explicit", "topic"]
    await hang(session.reconnect(broker.urls["mqtts"]))
    assert is_active(theirs)
    await session.publish("b", b"3", 1)
    await hang(mine.wait(3))
    assert [(info.kind, info.id) for info in session.streams] == [("control", None)]


async def test_a_lost_session_comes_back_in_one_round_trip() -> None:
    """With a ticket, the CONNECT that resumes the session goes in the first flight (0-RTT)."""
    options: dict[str, Any] = {"tickets": TicketStore(), "early_data": "publish", "publish_early": [("b", b"once", 1)]}
    options["reconnect"] = False
    # A broker that takes early data.
    config = BrokerConfig(quic_port=0, tls=False, tcp=False, profile="mqttv5")
    async with BrokerServer(config) as broker, await AsyncSession.open(broker, **options, **KEPT) as session:
        await hang(session.early_published())
        feed = await session.subscribe("#", 1)
        session.connection.abort("cable")
        await hang(session.wait_closed())
        await hang(session.reconnect())
        report = session.handshake
        assert (report.early_data, report.round_trips) == ("accepted", 1)
        # While the session is in use CONNECT waits for the handshake: the broker would end the old connection by it.
        await hang(session.reconnect())
        assert (session.handshake.resumed, session.handshake.early_data) == (True, "not offered")
        await session.publish("a", b"x", 1)
        await hang(feed.wait(1))
        assert feed.df["topic"].tolist() == ["a"]  # what went early did so once


async def test_nobody_there_leaves_the_session_as_it_is(connect: Open, free_port: int) -> None:
    session = await connect("quic")
    with pytest.raises(UnreachableError):
        await hang(session.reconnect(f"mqtts://127.0.0.1:{free_port}"))
    assert session.state == "connected"
    assert (await session.publish("a", b"x", 1)).reason_code in (0, 0x10)
    await hang(session.reconnect())  # where it was before


async def test_reconnecting_falls_back_as_connecting_does(broker: BrokerServer, free_port: int) -> None:
    host, port = broker.url.removeprefix("quic://").split(":")
    async with LossyRelay((host, int(port))) as relay:
        url = f"quic://{relay.address[0]}:{relay.address[1]}"
        options = {"fallback": broker.urls["mqtts"], "quic_timeout": 0.5, "ca_file": broker.ca_file, **KEPT}
        async with await hang(AsyncSession.open(url, **options)) as session:
            assert session.transport == "quic"
            relay.blackhole = True
            await hang(session.reconnect())
            assert (session.transport, session.handshake.session_present) == ("tls", True)
            assert "no answer" in (session.handshake.fallback_reason or "")
            relay.blackhole = False
            await hang(session.reconnect())
            assert (session.transport, session.handshake.fallback_reason) == ("quic", None)
            assert [event.what for event in session.events] == ["connected", "fallback", "resumed", "resumed"]


async def test_closing_while_it_reconnects(broker: BrokerServer, connect: Open) -> None:
    session = await connect("quic")
    again = asyncio.create_task(session.reconnect())
    await asyncio.sleep(0)
    with pytest.raises(UsageError, match="reconnecting already"):
        await session.reconnect()
    await hang(session.close())
    with pytest.raises((DisconnectedError, ConnectError)):
        await hang(again)
    assert session.state == "closed"
    await broker.wait_for(lambda: broker.stats().connections == 0)


async def test_a_cancelled_reconnect_leaves_no_connection(broker: BrokerServer, connect: Open) -> None:
    session = await connect("quic")
    again = asyncio.create_task(session.reconnect())
    await asyncio.sleep(0.001)
    again.cancel()
    with pytest.raises(asyncio.CancelledError):
        await again
    await hang(session.close())
    await broker.wait_for(lambda: broker.stats().connections == 0)


async def test_a_broker_of_ours_is_trusted_after_the_move_too(broker: BrokerServer) -> None:
    async with await AsyncSession.open(broker) as session:
        await hang(session.reconnect(broker.urls["mqtts"]))
        assert session.handshake.verification == "verified"
        await hang(session.reconnect(broker))
        assert session.transport == "quic"


async def test_credentials_come_along_to_the_same_host() -> None:
    config = BrokerConfig(quic_port=0, tls_port=0, tcp=False, users={"me": "right"})
    async with BrokerServer(config) as broker:
        url = broker.url.replace("quic://", "quic://me:right@")
        async with await AsyncSession.open(url, ca_file=broker.ca_file) as session:
            await hang(session.reconnect(broker.urls["mqtts"]))
            assert session.transport == "tls"
            assert "right" not in repr(session)


def test_credentials_do_not_follow_into_the_clear() -> None:
    options = SessionOptions()
    secret = resolve_target("quic://me:right@h", options)
    assert resolve_target("mqtts://h", options, secret).username == "me"
    assert resolve_target("mqtt://h", options, secret).username is None
    assert resolve_target("mqtts://elsewhere", options, secret).username is None
    assert resolve_target("mqtt://you@h", options, secret).username == "you"
    plain = resolve_target("mqtt://me@h", options)
    assert resolve_target("mqtt://h:1884", options, plain).username == "me"


async def test_a_session_that_was_given_its_connection_is_told_where_to() -> None:
    async with scripted() as (session, _):
        with pytest.raises(UsageError, match="say where to"):
            await session.reconnect()
        with pytest.raises(UsageError, match="timeout"):
            await session.reconnect("quic://127.0.0.1", timeout=0)


async def test_a_broker_that_is_killed_and_started_again() -> None:
    first = BrokerProcess(BrokerConfig(quic_port=0, tls=False, tcp=False))
    await first.start()
    session = await hang(AsyncSession.open(first, client_id="me", keepalive=1, reconnect=False, **KEPT))
    feed = await session.subscribe("a/#", 2)
    await session.publish("a/1", b"before", 2)
    await hang(feed.wait(1))
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    waiting = asyncio.create_task(session.publish("a/2", b"into the void", 1))
    reason = await hang(session.wait_closed())
    assert isinstance(reason, DisconnectedError)
    with pytest.raises(DisconnectedError):
        await waiting
    assert session.unacknowledged == 1
    await hang(first.close())
    async with BrokerProcess(BrokerConfig(quic_port=0, tls=False, tcp=False)) as second:
        await hang(session.reconnect(second))  # another authority, another port, nothing known of before
        assert session.handshake.session_present is False
        await hang(feed.wait(2))
        await session.publish("a/3", b"after", 2)
        await hang(feed.wait(3))
        assert feed.df["value"].tolist() == ["before", "into the void", "after"]
        assert [event.what for event in session.events] == ["connected", "lost", "renewed"]
        await hang(session.close())
