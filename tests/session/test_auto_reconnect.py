"""Sessions that come back by themselves after their connection was lost, and what is published meanwhile."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.broker import BrokerConfig, BrokerServer
from mqttquic_lab.errors import (
    AuthenticationError,
    CertificateError,
    ConnectRefusedError,
    ConnectTimeoutError,
    DisconnectedError,
    HandshakeError,
    LabError,
    OperationTimeoutError,
    ProtocolError,
    PublishError,
    UnreachableError,
    UsageError,
)
from mqttquic_lab.mqtt import ConnAck, Connect, Disconnect, Publish, SubAck, Subscribe
from mqttquic_lab.session import AsyncSession, Backoff
from mqttquic_lab.session.backoff import may_pass
from mqttquic_lab.session.offline import MAX_OFFLINE_BYTES, OfflineMessage
from tests.session.conftest import SCHEMES
from tests.session.scripted import hang
from tests.session.server import scripted_server

if TYPE_CHECKING:
    from pathlib import Path

    from tests.session.conftest import Open

SOON = Backoff(first=0.02, maximum=0.1)
KEPT: dict[str, Any] = {"session_expiry_interval": 60, "reconnect": SOON}


async def until(session: AsyncSession, state: str) -> None:
    """Wait until a session is in a state; its changes make no other noise than their events."""
    async with asyncio.timeout(10):
        while session.state != state:
            await asyncio.sleep(0.005)


async def events_of(session: AsyncSession, last: str) -> list[str]:
    """Return what happened, once `last` has."""
    async with asyncio.timeout(10):
        while not session.events or session.events[-1].what != last:
            await asyncio.sleep(0.005)
    return [event.what for event in session.events]


async def tcp_broker(port: int = 0) -> BrokerServer:
    broker = BrokerServer(BrokerConfig(quic=False, tls=False, tcp_port=port))
    await broker.start()
    return broker


def port_of(broker: BrokerServer) -> int:
    return int(broker.urls["mqtt"].rpartition(":")[2])


# Coming back


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_lost_connection_comes_back(connect: Open, broker: BrokerServer, scheme: str) -> None:
    session = await connect(scheme, client_id="me", **KEPT)
    other = await connect("mqtt")
    feed = await session.subscribe("news", 1)
    session.connection.abort("cable pulled")
    await until(session, "reconnecting")
    await broker.wait_for(lambda: len(broker.clients()) == 1)
    await other.publish("news", b"missed", 1)
    assert await events_of(session, "resumed") == ["connected", "lost", "retrying", "resumed"]
    await other.publish("news", b"live", 1)
    await hang(feed.wait(2))
    assert feed.df["value"].tolist() == ["missed", "live"]
    assert (session.state, session.close_reason, session.stats.reconnects) == ("connected", None, 1)


async def test_the_broker_restarts() -> None:
    first = await tcp_broker()
    port = port_of(first)
    session = await hang(AsyncSession.open(first, **KEPT))
    feed = await session.subscribe("a/#", 2)
    await hang(first.close())
    await until(session, "reconnecting")
    second = await tcp_broker(port)
    assert (await events_of(session, "renewed"))[:3] == ["connected", "lost", "retrying"]
    await session.publish("a/b", b"x", 2)
    await hang(feed.wait(1))
    await session.close()
    await second.close()


async def test_a_reason_is_told_once_however_often_it_is_tried() -> None:
    broker = await tcp_broker()
    session = await hang(AsyncSession.open(broker, reconnect=Backoff(first=0.001, maximum=0.001, attempts=50)))
    waiting = asyncio.create_task(session.wait_closed())
    await hang(broker.close())
    reason = await hang(waiting)
    assert isinstance(reason, UnreachableError)
    told = [event for event in session.events if event.what == "retrying"]
    assert len(told) == 2  # that the broker shut down, and that nobody listens
    assert told[1].detail.startswith("attempt 2:")
    assert session.state == "closed"
    assert session.close_reason is reason


async def test_a_publisher_waits_through_the_gap(connect: Open) -> None:
    session = await connect("quic", **KEPT)
    publishing = [asyncio.create_task(session.publish("a", b"x", qos)) for qos in (1, 2)]
    await asyncio.sleep(0)
    session.connection.abort("cable pulled")
    results = await hang(asyncio.gather(*publishing))
    assert [result.queued for result in results] == [False, False]
    assert session.stats.reconnects == 1


async def test_publish_many_goes_on_through_the_gap(connect: Open) -> None:
    session = await connect("quic", client_id="source", **KEPT)
    sink = await connect("mqtt")
    feed = await sink.subscribe("a", 2)

    async def source() -> Any:
        for number in range(300):
            if number == 100:
                session.connection.abort("cable pulled")
            yield "a", str(number)

    summary = await hang(session.publish_many(source(), qos=2))
    assert summary.count == 300
    await hang(feed.wait(300))
    assert feed.df["value"].tolist() == [str(number) for number in range(300)]


async def test_subscribe_waits_through_the_gap(connect: Open) -> None:
    session = await connect("quic", **KEPT)
    session.connection.abort("cable pulled")
    await until(session, "reconnecting")
    feed = await hang(session.subscribe("a", 1))
    await session.publish("a", b"x", 1)
    await hang(feed.wait(1))


async def test_verbs_time_out_in_a_gap_that_does_not_end() -> None:
    broker = await tcp_broker()
    session = await hang(AsyncSession.open(broker, reconnect=SOON, offline_queue=0))
    await hang(broker.close())
    await until(session, "reconnecting")
    for verb in (
        session.ping(timeout=0.05),
        session.publish("a", b"", timeout=0.05),
        session.subscribe("a", timeout=0.05),
    ):
        with pytest.raises(OperationTimeoutError, match="still reconnecting"):
            await verb
    for qos in (0, 1):
        with pytest.raises(OperationTimeoutError, match="still reconnecting"):
            await session.publish_many([("a", b"")], qos=qos, timeout=0.05)
    await session.close()


async def test_a_mapped_session_goes_on(connect: Open) -> None:
    session = await connect("quic", streams="per-topic", **KEPT)
    sink = await connect("mqtt")
    feed = await sink.subscribe("#", 1)
    await session.publish("a", b"1", 1)
    session.connection.abort("cable pulled")
    await until(session, "reconnecting")
    results = [await session.publish(topic, b"2", 1) for topic in ("a", "b", "a")]
    assert all(result.queued for result in results)
    await hang(session.flush())
    await hang(feed.wait(4))
    assert sorted(feed.df["topic"]) == ["a", "a", "a", "b"]
    assert {info.kind for info in session.streams} >= {"control", "topic"}


# Not coming back


async def test_asked_to_close_it_closes(connect: Open) -> None:
    session = await connect("quic", reconnect=Backoff(first=30, jitter=0))
    waiting = asyncio.create_task(session.publish("a", b"x", 1))
    await asyncio.sleep(0)
    session.connection.abort("cable pulled")
    await until(session, "reconnecting")
    await session.publish("a", b"later")
    await hang(session.close())
    assert (session.state, session.close_reason, session.queued) == ("closed", None, 0)
    assert session.stats.queued_dropped == 1
    with pytest.raises(DisconnectedError):
        await hang(waiting)
    with pytest.raises(DisconnectedError):
        await session.publish("a", b"x")


async def test_closed_while_it_connects_anew() -> None:
    """A server that takes connections and says nothing: the attempt is under way when the session is closed."""
    async with scripted_server() as server:
        session = await server.accept(reconnect=SOON)
        server.drop()
        await hang(server.connected())
        await hang(server.expect(Connect))
        await hang(session.close())
        assert (session.state, session.close_reason) == ("closed", None)


async def test_another_client_takes_the_session_over(connect: Open) -> None:
    first = await connect("quic", client_id="same", reconnect=SOON)
    await connect("mqtt", client_id="same")
    reason = await hang(first.wait_closed())
    assert isinstance(reason, DisconnectedError)
    assert reason.reason_code == 0x8E
    assert [event.what for event in first.events] == ["connected", "lost"]


async def test_opted_out(connect: Open) -> None:
    session = await connect("quic", reconnect=False)
    session.connection.abort("cable pulled")
    await hang(session.wait_closed())
    assert session.state == "closed"
    with pytest.raises(DisconnectedError):
        await session.publish("a", b"x")


async def test_a_server_that_breaks_the_rules_is_left() -> None:
    async with scripted_server() as server:
        session = await server.accept(reconnect=SOON)
        server.send(b"\xf0\x00\x00")
        assert isinstance(await hang(session.wait_closed()), ProtocolError)


async def test_refused_for_good_on_the_way_back() -> None:
    async with scripted_server() as server:
        session = await server.accept(reconnect=SOON)
        server.drop()
        await hang(server.connected())
        await hang(server.expect(Connect))
        server.send(ConnAck(reason_code=0x87))
        assert isinstance(await hang(session.wait_closed()), ConnectRefusedError)
        assert session.errors[-1].where == "broker"


async def test_refused_for_now_it_tries_again() -> None:
    async with scripted_server() as server:
        session = await server.accept(reconnect=SOON)
        server.send(Disconnect(0x89))
        for answer in (ConnAck(reason_code=0x88), ConnAck()):
            await hang(server.connected())
            asked = await hang(server.expect(Connect))
            assert not asked.clean_start
            server.send(answer)
        assert (await events_of(session, "renewed"))[-2:] == ["retrying", "renewed"]
        await session.close()


async def test_what_was_not_answered_is_subscribed_anew_though_the_session_is_there() -> None:
    """Between two losses a broker may have made a session that knows of no subscription yet."""
    async with scripted_server() as server:
        session = await server.accept(reconnect=SOON)
        subscribing = asyncio.create_task(session.subscribe("a", 1))
        asked = await server.expect(Subscribe)
        server.send(SubAck(asked.packet_id, (1,)))
        feed = await hang(subscribing)
        server.drop()
        for present in (False, True):
            await hang(server.connected())
            await hang(server.expect(Connect))
            server.send(ConnAck(session_present=present))
            again = await hang(server.expect(Subscribe))
            assert [s.filter for s in again.subscriptions] == ["a"]
            if not present:
                server.drop()
        server.send(SubAck(again.packet_id, (1,)), Publish("a", b"x"))
        await hang(feed.wait(1))
        await session.close()


async def test_one_call_of_reconnect_takes_precedence(connect: Open, broker: BrokerServer) -> None:
    session = await connect("quic", reconnect=Backoff(first=30, jitter=0))
    session.connection.abort("cable pulled")
    await until(session, "reconnecting")
    await hang(session.reconnect(broker.urls["mqtts"]))
    assert (session.state, session.transport) == ("connected", "tls")


async def test_one_call_of_reconnect_that_fails_leaves_it_trying(
    connect: Open, broker: BrokerServer, free_port: int
) -> None:
    session = await connect("quic", reconnect=SOON)
    session.connection.abort("cable pulled")
    with pytest.raises((UnreachableError, ConnectTimeoutError)):
        await hang(session.reconnect(f"mqtts://127.0.0.1:{free_port}"))
    assert (await events_of(session, "renewed"))[-1] == "renewed"
    assert session.transport == "quic"


# Messages published meanwhile


async def test_messages_wait_and_arrive_in_order() -> None:
    first = await tcp_broker()
    port = port_of(first)
    session = await hang(AsyncSession.open(first, reconnect=SOON))
    await hang(first.close())
    await until(session, "reconnecting")
    for number in range(30):
        result = await session.publish("a", str(number), qos=number % 3)
        assert (result.queued, result.packet_id) == (True, None)
    assert (session.queued, session.stats.queued) == (30, 30)
    with pytest.raises(OperationTimeoutError, match="30 are still not sent"):
        await session.flush(timeout=0.01)
    with pytest.raises(UsageError, match="qos=3"):
        await session.publish("a", b"", qos=3)
    second = await tcp_broker(port)
    sink = await hang(AsyncSession.open(second))
    feed = await sink.subscribe("a", 2)
    await hang(session.flush())
    await hang(sink.ping())
    assert session.queued == session.unacknowledged == session.stats.queued_dropped == 0
    # Which of the two was faster to connect is open; what came is in order, and the end of it is there.
    assert [event.what for event in session.events][-1] == "renewed"
    got = feed.df["value"].tolist()
    assert got == [str(number) for number in range(30)][30 - len(got) :]
    await session.close()
    await sink.close()
    await second.close()


async def test_the_queue_has_a_bound() -> None:
    broker = await tcp_broker()
    session = await hang(AsyncSession.open(broker, reconnect=SOON, offline_queue=2))
    await hang(broker.close())
    await until(session, "reconnecting")
    for _ in range(2):
        assert (await session.publish("a", b"x", 1)).queued
    with pytest.raises(PublishError, match="offline_queue=2") as caught:
        await session.publish("a", b"x", 1)
    assert caught.value.reason_code == 0x97
    await session.close()
    with pytest.raises(DisconnectedError):
        await session.publish("a", b"x", 1)


async def test_the_queue_has_a_bound_in_bytes() -> None:
    broker = await tcp_broker()
    session = await hang(AsyncSession.open(broker, reconnect=SOON))
    await hang(broker.close())
    await until(session, "reconnecting")
    large = bytes(MAX_OFFLINE_BYTES // 2 + 1)
    assert (await session.publish("a", large)).queued
    with pytest.raises(PublishError):
        await session.publish("a", large)
    await session.close()


async def test_a_queued_message_that_is_refused_is_recorded() -> None:
    async with scripted_server() as server:
        session = await server.accept(reconnect=SOON)
        server.drop()
        await until(session, "reconnecting")
        await session.publish("too/large", bytes(200), 1)
        await session.publish("a", b"x", 1, properties={"message_expiry_interval": 100})
        await hang(server.connected())
        await hang(server.expect(Connect))
        server.send(ConnAck(properties={"maximum_packet_size": 100}))
        packet = await hang(server.expect(Publish))
        assert packet.topic == "a"
        server.refuse(packet, 0x87)
        await hang(session.flush())
        assert session.stats.queued_dropped == 2
        large, refused = (error.message for error in session.errors if error.where == "offline_queue")
        assert "larger" in large or "bytes" in large
        assert "'a'" in refused
        await session.close()


def test_expiry_goes_on_while_a_message_waits() -> None:
    message = OfflineMessage.now("a", b"", 0, False, {"message_expiry_interval": 10, "content_type": "x"})
    later = message._replace(since=message.since - 4.5)
    aged = later.aged()
    assert aged is not None
    assert aged.properties == {"message_expiry_interval": 6, "content_type": "x"}
    assert message._replace(since=message.since - 10).aged() is None
    forever = OfflineMessage.now("a", b"", 0, False, None)
    assert forever._replace(since=0.0).aged() is not None


# Pauses


def test_pauses_grow_to_a_bound_and_are_spread() -> None:
    longest = [0.5, 1, 2, 4, 8, 16, 30, 30]
    seen = list(islice(Backoff().pauses(), len(longest)))
    assert all(most / 2 <= pause <= most for pause, most in zip(seen, longest, strict=True))
    assert list(islice(Backoff(jitter=0).pauses(), len(longest))) == longest
    assert len(list(Backoff(attempts=3).pauses())) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"first": -1},
        {"first": "1"},
        {"first": True},
        {"factor": 0.5},
        {"maximum": float("inf")},
        {"jitter": 2},
        {"attempts": 0},
    ],
)
def test_pauses_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Backoff(**wrong)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DisconnectedError("gone"), True),
        (DisconnectedError("shutting down", reason_code=0x8B), True),
        (DisconnectedError("taken over", reason_code=0x8E), False),
        (DisconnectedError("administrative action", reason_code=0x98), False),
        (UnreachableError("nobody"), True),
        (ConnectTimeoutError("nobody"), True),
        (HandshakeError("no"), True),
        (CertificateError("no"), False),
        (AuthenticationError("the server does not know the password"), False),
        (ConnectRefusedError("busy", reason_code=0x89), True),
        (ConnectRefusedError("password", reason_code=0x86), False),
        (ProtocolError("no"), False),
        (UsageError("no"), False),
        (LabError("the transport broke"), True),
    ],
)
def test_what_waiting_can_change(error: LabError, expected: bool) -> None:
    assert may_pass(error) is expected


async def test_a_connection_that_does_not_last_does_not_shorten_the_pauses() -> None:
    async with scripted_server() as server:
        session = await server.accept(reconnect=Backoff(first=0.001, factor=2, maximum=0.05, jitter=0))
        for _ in range(4):
            server.drop()
            await hang(server.connected())
            await hang(server.expect(Connect))
            server.send(ConnAck())
            await until(session, "connected")
        assert session._reconnector.attempt == 4
        await session.close()


@pytest.mark.parametrize(
    "wrong", [{"reconnect": 5}, {"reconnect": None}, {"offline_queue": -1}, {"offline_queue": True}]
)
def test_options_that_cannot_be_used(wrong: dict[str, Any]) -> None:
    from mqttquic_lab.session import SessionOptions

    with pytest.raises(UsageError, match=next(iter(wrong))):
        SessionOptions(**wrong)


@pytest.mark.parametrize("scheme", ["quic", "mqtts"])
async def test_a_broker_with_a_store_is_trusted_after_its_restart(tmp_path: Path, scheme: str, free_port: int) -> None:
    config = BrokerConfig(tcp=False, quic_port=free_port, tls_port=free_port, store=tmp_path / "lab.db")
    first = BrokerServer(config)
    await first.start()
    session = await hang(AsyncSession.open(first.urls[scheme], ca_file=first.ca_file, client_id="me", **KEPT))
    feed = await session.subscribe("a", 2)
    await hang(first.close())
    await until(session, "reconnecting")
    assert (await session.publish("a", b"meanwhile", 2)).queued
    async with BrokerServer(config) as second:
        assert "resumed" in await events_of(session, "resumed")
        await hang(session.flush())
        await hang(feed.wait(1))
        assert second.ca_file == tmp_path / "lab.db.ca.crt"
        assert b"PRIVATE" not in second.ca_file.read_bytes()
        assert session.handshake.verification == "verified"
        await session.close()
