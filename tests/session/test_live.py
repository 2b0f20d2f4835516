"""Sessions over real sockets: all transports, both versions, the embedded broker."""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.broker import BrokerConfig, BrokerServer
from mqttquic_lab.errors import (
    AlpnError,
    CertificateError,
    ConnectError,
    ConnectRefusedError,
    ConnectTimeoutError,
    DisconnectedError,
    HandshakeError,
    LabError,
    MalformedPacketError,
    PublishError,
    UnreachableError,
)
from mqttquic_lab.mqtt import Will
from mqttquic_lab.net.listen import listen
from mqttquic_lab.session import AsyncSession
from tests.session.conftest import SCHEMES, Open
from tests.session.scripted import hang

if TYPE_CHECKING:
    from tests.helpers.certs import Identities

TRANSPORTS = {"quic": "quic", "mqtts": "tls", "mqtt": "tcp"}
ROUND_TRIPS = {"quic": 2, "mqtts": 3, "mqtt": 2}


@pytest.mark.parametrize("version", ["5.0", "3.1.1"])
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_every_qos_over_every_transport(connect: Open, scheme: str, version: str) -> None:
    session = await connect(scheme, version=version, client_id="all")
    assert (session.transport, session.version, session.state) == (TRANSPORTS[scheme], version, "connected")
    report = session.handshake
    assert (report.state, report.mqtt_version, report.client_id) == ("connected", version, "all")
    assert report.round_trips == ROUND_TRIPS[scheme]
    assert report.flights[-1].content[-1] == "CONNACK"
    assert any("CONNECT" in flight.content for flight in report.flights)
    feed = await session.subscribe("a/#", 2, decode="json")
    for qos in (0, 1, 2):
        result = await session.publish("a/b", {"qos": qos}, qos)
        assert (result.round_trip is None) == (qos == 0)
    await hang(feed.wait(3))
    frame = feed.df
    assert frame["value"].tolist() == [{"qos": 0}, {"qos": 1}, {"qos": 2}]
    assert frame["qos"].tolist() == [0, 1, 2]
    assert frame["stream_id"].tolist() == [0 if scheme == "quic" else -1] * 3
    assert await hang(session.ping()) > 0
    await hang(session.unsubscribe(feed))
    await session.publish("a/b", b"nobody", 1)
    assert (feed.total, session.stats.unrouted) == (3, 0)
    await hang(session.close())
    assert session.errors == []
    assert (session.handshake.state, session.handshake.error) == ("closed", None)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_many_messages_arrive_in_order(connect: Open, scheme: str) -> None:
    sender, receiver = await connect(scheme), await connect(scheme)
    feed = await receiver.subscribe("bulk", 1, decode="raw")
    for qos in (0, 1):
        summary = await hang(sender.publish_many((("bulk", b"%d" % n) for n in range(3000)), qos))
        assert (summary.count, summary.refused) == (3000, 0)
        await hang(feed.wait(3000))
        assert feed.df["payload"].tolist() == [b"%d" % n for n in range(3000)]
        feed.clear()
    assert sender.errors == receiver.errors == []


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_large_message(connect: Open, scheme: str) -> None:
    session = await connect(scheme)
    feed = await session.subscribe("big", 1, decode="raw")
    payload = bytes(range(256)) * 8192  # 2 MiB
    await session.publish("big", payload, 1)
    await hang(feed.wait(1))
    assert feed.log.message(0).payload == payload


@pytest.mark.parametrize("qos", [1, 2])
async def test_more_at_once_than_the_broker_takes(qos: int) -> None:
    async with (
        BrokerServer(BrokerConfig(quic=False, tls=False, tcp_port=0, max_inflight=3)) as broker,
        await AsyncSession.open(broker) as session,
    ):
        assert session.limits.receive_maximum == 3
        feed = await session.subscribe("a", 2)
        await hang(asyncio.gather(*(session.publish("a", n, qos) for n in range(50))))
        await hang(feed.wait(50))
        assert sorted(map(int, feed.df["value"])) == list(range(50))
        assert session.state == "connected"


async def test_payload_over_the_brokers_limit() -> None:
    config = BrokerConfig(quic=False, tls=False, tcp_port=0, max_packet_size=1000)
    async with BrokerServer(config) as broker, await AsyncSession.open(broker) as session:
        with pytest.raises(PublishError, match="1000"):
            await session.publish("a", b"x" * 1000, 1)
        assert (await session.publish("a", b"x" * 900, 1)).reason_code in (0, 0x10)


async def test_a_broker_of_ours_is_trusted_by_itself(broker: BrokerServer) -> None:
    async with await AsyncSession.open(broker) as session:
        assert session.transport == "quic"
        report = session.handshake
        assert report.verification == "verified"
        assert report.verified_chain[-1].is_ca
    with pytest.raises(CertificateError) as caught:
        await hang(AsyncSession.open(broker.url))
    assert caught.value.problem == "untrusted"
    assert caught.value.chain


async def test_verification_switched_off(broker: BrokerServer) -> None:
    async with await AsyncSession.open(broker.url, verify=False) as session:
        assert session.handshake.verification == "off"


@pytest.mark.parametrize("scheme", ["quic", "mqtts"])
async def test_an_ssl_context(broker: BrokerServer, scheme: str) -> None:
    context = ssl.create_default_context(cafile=str(broker.ca_file))
    async with await AsyncSession.open(broker.urls[scheme], ssl_context=context) as session:
        assert session.handshake.verification == "verified"


@pytest.mark.parametrize("version", ["5.0", "3.1.1"])
async def test_wrong_password(version: str) -> None:
    config = BrokerConfig(quic=False, tls=False, tcp_port=0, users={"me": "right"})
    async with BrokerServer(config) as broker:
        for credentials in ({"username": "me", "password": "wrong"}, {}):
            with pytest.raises(ConnectRefusedError, match="username and password") as caught:
                await hang(AsyncSession.open(broker, version=version, **credentials))
            assert caught.value.reason_code in (0x86, 0x87)
            assert "wrong" not in str(caught.value)
        async with await AsyncSession.open(broker, version=version, username="me", password="right") as session:
            assert "right" not in str(session.handshake.to_dict())
        url = broker.url.replace("mqtt://", "mqtt://me:right@")
        async with await AsyncSession.open(url, version=version) as session:
            assert "right" not in session.url


async def test_the_will_is_published_when_the_connection_breaks(connect: Open) -> None:
    watcher = await connect("mqtt")
    feed = await watcher.subscribe("status/#", 1)
    dying = await connect("quic", will=Will("status/dying", {"state": "gone"}, 1))  # type: ignore[arg-type]
    dying.connection.abort("power cut")
    await hang(feed.wait(1))
    assert feed.df["value"].tolist() == ['{"state":"gone"}']
    leaving = await connect("quic", will=Will("status/leaving", b"", 1))
    await hang(leaving.disconnect())
    asked = await connect("quic", will=Will("status/asked", b"", 1))
    await hang(asked.disconnect(0x04))
    await hang(feed.wait(2))
    assert feed.df["topic"].tolist() == ["status/dying", "status/asked"]


async def test_a_session_taken_over(connect: Open) -> None:
    first = await connect("quic", client_id="same")
    feed = await first.subscribe("a")
    waiting = asyncio.create_task(feed.wait(1))
    await asyncio.sleep(0)
    await connect("mqtt", client_id="same")
    with pytest.raises(DisconnectedError, match="taken over") as caught:
        await hang(waiting)
    assert caught.value.reason_code == 0x8E
    assert first.state == "closed"
    assert "taken over" in str(first.handshake.error)


async def test_a_resumed_session_gets_what_it_missed(connect: Open) -> None:
    options: dict[str, Any] = {"client_id": "sleeper", "clean_start": False, "session_expiry_interval": 60}
    first = await connect("quic", **options)
    assert first.handshake.session_present is False
    await first.subscribe("news", 1)
    await hang(first.close())
    sender = await connect("mqtt")
    await sender.publish("news", b"missed", 1)
    second = await connect("quic", **options)
    assert second.handshake.session_present is True
    await second.ping()  # what the broker sent right after CONNACK has arrived by then
    assert second.stats.unrouted == 1
    assert second.unrouted.message(0).payload == b"missed"


async def test_retained_messages_reach_each_feed_once(connect: Open) -> None:
    session = await connect("quic")
    await session.publish("r/1", b"kept", 1, retain=True)
    first = await session.subscribe("r/#", 1)
    await hang(first.wait(1))
    second = await session.subscribe("r/+", 1)
    await hang(second.wait(1))
    await session.publish("r/1", b"live", 1)
    await hang(asyncio.gather(first.wait(2), second.wait(2)))
    assert (first.total, second.total) == (2, 2)
    assert first.df["retain"].tolist() == [True, False]


async def test_the_broker_closes() -> None:
    broker = BrokerServer(BrokerConfig(quic_port=0, tls=False, tcp=False))
    await broker.start()
    session = await hang(AsyncSession.open(broker, reconnect=False))
    waiting = asyncio.create_task(session.wait_closed())
    await hang(broker.close())
    reason = await hang(waiting)
    assert isinstance(reason, DisconnectedError)
    assert reason.reason_code == 0x8B


# Targets that do not work out


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_closed_port(scheme: str, free_port: int) -> None:
    with pytest.raises((UnreachableError, ConnectTimeoutError)):
        await hang(AsyncSession.open(f"{scheme}://127.0.0.1:{free_port}", timeout=5))


async def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(UnreachableError, match=r"no-such-host\.invalid"):
        await hang(AsyncSession.open("quic://no-such-host.invalid", timeout=5))


async def test_an_application_protocol_nobody_speaks(broker: BrokerServer) -> None:
    with pytest.raises(AlpnError):
        await hang(AsyncSession.open(broker, alpn=("h3",)))


@pytest.mark.parametrize(
    ("which", "problem"), [("expired", "expired"), ("wrong_name", "name"), ("untrusted", "untrusted")]
)
@pytest.mark.parametrize("scheme", ["quic", "mqtts"])
async def test_a_bad_certificate(identities: Identities, tmp_path: Any, scheme: str, which: str, problem: str) -> None:
    ca_file = identities.authority.write_ca(tmp_path / "ca.pem")
    listener = await listen(
        "quic" if scheme == "quic" else "tls",
        "127.0.0.1",
        0,
        identity=getattr(identities, which),
        on_connection=lambda _: None,
    )
    try:
        with pytest.raises(CertificateError) as caught:
            await hang(AsyncSession.open(f"{scheme}://127.0.0.1:{listener.port}", ca_file=ca_file))
        assert caught.value.problem == problem
    finally:
        await listener.close()


async def test_the_wrong_scheme_for_the_port(broker: BrokerServer) -> None:
    tls, tcp = broker.urls["mqtts"], broker.urls["mqtt"]
    with pytest.raises((HandshakeError, ConnectError)):
        await hang(AsyncSession.open(tcp.replace("mqtt://", "mqtts://"), ca_file=broker.ca_file))
    with pytest.raises(ConnectError):
        await hang(AsyncSession.open(tls.replace("mqtts://", "mqtt://"), timeout=5))


async def misbehave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accept the CONNECT, then send a PUBLISH whose topic runs past its end."""
    await reader.read(1)
    writer.write(b"\x20\x03\0\0\0" + b"\x30\x03\xff\xffa")
    await writer.drain()
    await reader.read(-1)
    writer.close()


async def test_a_peer_that_sends_nonsense_over_tcp() -> None:
    async with await asyncio.start_server(misbehave, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        session = await hang(AsyncSession.open(f"mqtt://127.0.0.1:{port}"))
        reason = await hang(session.wait_closed())
        assert isinstance(reason, MalformedPacketError)
        with pytest.raises(DisconnectedError) as caught:
            await session.publish("a", b"x", 1)
        assert caught.value.__cause__ is reason
        await hang(session.close())


async def test_cancelled_while_connecting_leaves_no_socket(broker: BrokerServer) -> None:
    opening = asyncio.create_task(AsyncSession.open(broker))
    await asyncio.sleep(0.001)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await broker.wait_for(lambda: broker.stats().connections == 0)


async def test_errors_have_one_base() -> None:
    assert all(
        issubclass(error, LabError) and issubclass(error, ConnectionError)
        for error in (ConnectError, DisconnectedError, ConnectRefusedError)
    )
    assert dataclasses.is_dataclass(BrokerConfig)
