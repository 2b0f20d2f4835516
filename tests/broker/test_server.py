"""The broker on real sockets: every transport, ports, certificate file, orderly end."""

from __future__ import annotations

import asyncio
import socket
import ssl
import stat
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.broker.config import DEFAULT_PORTS, BrokerConfig
from mqttquic_lab.broker.server import BrokerServer
from mqttquic_lab.errors import CertificateError, OperationTimeoutError, PortInUseError, UsageError
from mqttquic_lab.mqtt import Disconnect, Publish, Will, encode_publish
from mqttquic_lab.net.address import parse_url
from mqttquic_lab.net.certificates import Trust
from mqttquic_lab.net.open import open_connection
from tests.broker.peer import Peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

FREE: dict[str, Any] = {"quic_port": 0, "tls_port": 0, "tcp_port": 0}
SCHEMES = ("quic", "mqtts", "mqtt")


async def dial(broker: BrokerServer, scheme: str, **options: Any) -> Peer:
    connection = await open_connection(parse_url(broker.urls[scheme]), trust=Trust(ca_file=broker.ca_file), **options)
    return Peer(connection)


@pytest.fixture
async def broker() -> AsyncIterator[BrokerServer]:
    async with BrokerServer(BrokerConfig(**FREE)) as server:
        yield server


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_message_over_every_transport(broker: BrokerServer, scheme: str) -> None:
    peer = await dial(broker, scheme)
    answer = await peer.connect("x")
    assert answer.reason_code == 0
    assert await peer.subscribe("a/#", qos=2) == [2]
    for qos in (0, 1, 2):
        peer.send(Publish("a/b", b"%d" % qos, qos, packet_id=qos or None))
    found = {packet.payload for packet in await peer.sync() if isinstance(packet, Publish)}
    assert found == {b"0", b"1", b"2"}
    (client,) = broker.clients()
    assert client.transport == {"quic": "quic", "mqtts": "tls", "mqtt": "tcp"}[scheme]
    assert client.address[0] == "127.0.0.1"
    await peer.leave()
    await broker.wait_for(lambda: not broker.clients())
    await peer.connection.close()


async def test_between_transports(broker: BrokerServer) -> None:
    peers = {scheme: await dial(broker, scheme) for scheme in SCHEMES}
    for scheme, peer in peers.items():
        await peer.connect(scheme)
        await peer.subscribe("#")
    for sender in SCHEMES:
        peers[sender].send(encode_publish("from", sender.encode()))
        for peer in peers.values():
            assert (await peer.message()).payload == sender.encode()
    for peer in peers.values():
        await peer.connection.close()


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_many_messages_all_arrive(broker: BrokerServer, scheme: str) -> None:
    """More than any buffer on the way holds: back-pressure, not loss."""
    publisher, subscriber = await dial(broker, scheme), await dial(broker, scheme)
    await publisher.connect("p")
    await subscriber.connect("s")
    await subscriber.subscribe("a")
    count = 3000

    async def publish() -> None:
        for number in range(count):
            publisher.send(encode_publish("a", number.to_bytes(4, "big") + bytes(1000)))
            await publisher.connection.control.drain()

    task = asyncio.create_task(publish())
    numbers = [int.from_bytes((await subscriber.message()).payload[:4], "big") for _ in range(count)]
    await task
    assert numbers == list(range(count))
    assert broker.stats().dropped_qos0 == 0
    for peer in (publisher, subscriber):
        await peer.connection.close()


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_lost_connection_publishes_the_will(broker: BrokerServer, scheme: str) -> None:
    watcher = await dial(broker, "mqtt")
    await watcher.connect("watcher")
    await watcher.subscribe("will")
    peer = await dial(broker, scheme)
    await peer.connect("x", will=Will("will", b"gone"))
    peer.connection.abort()
    assert (await watcher.message()).payload == b"gone"
    await watcher.connection.close()


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_the_reason_arrives_before_the_end(broker: BrokerServer, scheme: str) -> None:
    peer = await dial(broker, scheme)
    await peer.connect("x")
    peer.send(b"\x00\x00" + bytes(1000))
    packets = await peer.closed()
    assert [packet.reason_code for packet in packets if isinstance(packet, Disconnect)] == [0x81]
    await peer.connection.close()


async def test_the_ca_file_is_what_other_programs_need(broker: BrokerServer) -> None:
    path = broker.ca_file
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    context = ssl.create_default_context(cafile=str(path))
    port = parse_url(broker.urls["mqtts"]).port
    for name in ("localhost", "127.0.0.1", "::1"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
        del reader
        writer.close()
        await writer.wait_closed()
    with pytest.raises(CertificateError):
        await open_connection(parse_url(broker.urls["mqtts"]), trust=Trust(ca_file=path, server_name="broker.example"))


async def test_further_names_in_the_certificate() -> None:
    async with BrokerServer(BrokerConfig(quic=False, tcp=False, tls_port=0, server_names=("lab.example",))) as broker:
        trust = Trust(ca_file=broker.ca_file, server_name="lab.example")
        connection = await open_connection(parse_url(broker.url), trust=trust)
        assert connection.report.certificates[0].names == ("localhost", "127.0.0.1", "::1", "lab.example")
        await connection.close()


async def test_the_folder_goes_with_the_broker() -> None:
    async with BrokerServer(BrokerConfig(**FREE)) as broker:
        folder: Path = broker.ca_file.parent
        assert [path.name for path in folder.iterdir()] == ["ca.pem"]
    assert not folder.exists()


async def test_ports_are_closed_afterwards() -> None:
    async with BrokerServer(BrokerConfig(**FREE)) as broker:
        ports = {scheme: parse_url(url).port for scheme, url in broker.urls.items()}
    for scheme, port in ports.items():
        kind = socket.SOCK_DGRAM if scheme == "quic" else socket.SOCK_STREAM
        with socket.socket(socket.AF_INET, kind) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))


async def test_a_usual_port_that_is_taken_is_replaced(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setitem(DEFAULT_PORTS, "tcp", free_port)
    options: dict[str, Any] = {"quic": False, "tls": False}
    async with BrokerServer(BrokerConfig(**options)) as first, BrokerServer(BrokerConfig(**options)) as second:
        assert first.url == f"mqtt://127.0.0.1:{free_port}"
        assert second.url != first.url
        third = BrokerServer(BrokerConfig(**options, tcp_port=free_port))
        with pytest.raises(PortInUseError):
            await third.start()


async def test_a_start_that_fails_half_way_leaves_nothing(free_port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port))
        taken.listen()
        broker = BrokerServer(BrokerConfig(quic_port=0, tls_port=0, tcp_port=free_port))
        with pytest.raises(PortInUseError):
            await broker.start()
        folder = broker.ca_file.parent
        assert not folder.exists()
        port = parse_url(broker.urls["mqtts"]).port
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))


async def test_without_tls_there_is_no_certificate() -> None:
    async with BrokerServer(BrokerConfig(quic=False, tls=False, tcp_port=0)) as broker:
        assert list(broker.urls) == ["mqtt"]
        with pytest.raises(UsageError, match="no certificate"):
            _ = broker.ca_file


async def test_a_broker_starts_once(broker: BrokerServer) -> None:
    with pytest.raises(UsageError, match="make a new one"):
        await broker.start()
    with pytest.raises(UsageError, match="does not listen"):
        _ = BrokerServer().url


async def test_ipv6() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 loopback here")
    async with BrokerServer(BrokerConfig(host="::1", **FREE)) as broker:
        for scheme in SCHEMES:
            assert broker.urls[scheme].startswith(f"{scheme}://[::1]:")
            peer = await dial(broker, scheme)
            assert (await peer.connect("x")).reason_code == 0
            await peer.connection.close()


async def test_wait_for_gives_up(broker: BrokerServer) -> None:
    with pytest.raises(OperationTimeoutError):
        await broker.wait_for(lambda: broker.clients(), timeout=0.01)


async def test_an_error_in_a_condition_reaches_the_one_who_waits(broker: BrokerServer) -> None:
    asked = 0

    def condition() -> bool:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise ZeroDivisionError
        return False

    waiting = asyncio.create_task(broker.wait_for(condition))
    await asyncio.sleep(0)
    peer = await dial(broker, "mqtt")
    await peer.connect("x")
    with pytest.raises(ZeroDivisionError):
        await waiting
    assert await peer.sync() == []
    await peer.connection.close()


async def test_hostile_bytes_on_real_sockets(broker: BrokerServer) -> None:
    witness = await dial(broker, "quic")
    await witness.connect("witness")
    port = parse_url(broker.urls["mqtt"]).port
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x10\xff\xff\xff\xff", bytes(100_000), b"\x10"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        if data == b"\x10":
            writer.close()
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()
    assert await witness.sync() == []
    await broker.wait_for(lambda: broker.stats().connections == 1)
    await witness.connection.close()


async def test_messages_leave_without_nagles_delay(broker: BrokerServer) -> None:
    peer = await dial(broker, "mqtt")
    await peer.connect("x")
    (client,) = broker._clients
    sock = client.connection._sock  # type: ignore[attr-defined]
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    await peer.connection.close()


async def test_closing_with_a_client_that_reads_nothing_is_bounded(broker: BrokerServer) -> None:
    peer = await dial(broker, "mqtt")
    await peer.connect("x")
    await peer.subscribe("a")
    peer.connection.control.pause_reading()
    for _ in range(100):
        peer.send(encode_publish("a", bytes(100_000)))
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await broker.close()
    peer.connection.abort()
