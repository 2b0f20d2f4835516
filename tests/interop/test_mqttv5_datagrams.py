"""PUBLISH in datagrams between us and mqttv5: its broker takes them and sends none, its client sends and reads none."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.broker import BrokerConfig, BrokerServer
from mqttquic_lab.errors import UsageError
from mqttquic_lab.mqtt import PingReq, Publish
from mqttquic_lab.net.certificates import CertificateAuthority
from mqttquic_lab.session import AsyncSession
from tests.helpers.peers import PATIENCE, require
from tests.helpers.quic import settle
from tests.interop.quic_peers import QuicPeer, mqttv5_broker
from tests.session.scripted import hang

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from mqttquic_lab.mqtt.profiles import ProfileName

MESSAGES = 300


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[tuple[QuicPeer, Path]]:
    """mqttv5's broker, and the file with its certificate authority."""
    authority = CertificateAuthority.create()
    ca_file = tmp_path / "ca.pem"
    authority.write_ca(ca_file)
    async with mqttv5_broker(authority.issue(["localhost", "127.0.0.1"]), tmp_path) as running:
        yield running, ca_file


@contextlib.asynccontextmanager
async def sessions(peer: tuple[QuicPeer, Path], **options: Any) -> AsyncIterator[tuple[AsyncSession, AsyncSession]]:
    """Yield a session with `options` and another one, at mqttv5's broker."""
    broker, ca_file = peer
    one = await hang(AsyncSession.open(broker.url, ca_file=ca_file, profile="mqttv5", **options))
    two = await hang(AsyncSession.open(broker.url, ca_file=ca_file, profile="mqttv5"))
    try:
        yield one, two
    finally:
        await hang(one.close())
        await hang(two.close())


@pytest.mark.parametrize("streams", ["single", "per-topic", "flows"])
@pytest.mark.matrix("datagrams", ours="client", peer="mqttv5")
async def test_our_session_at_its_broker(peer: tuple[QuicPeer, Path], streams: str) -> None:
    async with sessions(peer, datagrams=True, streams=streams) as (writer, reader):
        assert writer.handshake.remote_transport_parameters["max_datagram_frame_size"] == 65_535
        feed = await reader.subscribe("t/#")
        summary = await writer.publish_many([(f"t/{n % 5}", str(n)) for n in range(MESSAGES)])
        assert summary.datagrams == MESSAGES
        await settle(lambda: feed.log.total == MESSAGES)
        assert sorted(map(int, feed.log.frame()["value"])) == list(range(MESSAGES))
        # What does not fit, and what is acknowledged, goes on streams of the same connection.
        assert not (await writer.publish("t/large", bytes(5000))).datagram
        await writer.publish("t/1", "acknowledged", qos=2)
        await settle(lambda: feed.log.total == MESSAGES + 2)
        stats = writer.stats
        assert (stats.datagrams_sent, stats.datagrams_lost, stats.datagrams_received) == (MESSAGES, 0, 0)
        assert writer.errors == []
        with pytest.raises(UsageError, match="fit into a datagram"):
            await writer.publish("t/large", bytes(5000), datagram=True)


async def test_its_broker_sends_none(peer: tuple[QuicPeer, Path]) -> None:
    """Also to a client that announces that it takes them."""
    async with sessions(peer, datagrams=True) as (reader, writer):
        feed = await reader.subscribe("t")
        await writer.publish("t", "x")
        await settle(lambda: feed.log.total == 1)
        assert reader.stats.datagrams_received == 0


async def test_what_our_profile_says_of_its_broker(peer: tuple[QuicPeer, Path]) -> None:
    """The rules that ``profile="mqttv5"`` of our broker reproduces, once more on the real one."""
    async with sessions(peer, reconnect=False) as (writer, reader):
        feed = await reader.subscribe("t", qos=2)
        connection = writer.connection
        one = Publish("t", b"a").encode()
        for data in (b"", b"\x00ignored", one + one, Publish("t", b"abcdef").encode()[:-2], PingReq().encode()):
            connection.send_datagram(data)
            await writer.ping()
        await settle(lambda: feed.log.total == 2)
        assert [feed.log.message(n).payload for n in range(2)] == [b"a" + one, b"abcd"]
        connection.send_datagram(b"\xff" * 5)
        await hang(writer.wait_closed())
        assert writer.close_info is not None
        assert writer.close_info.error_code == 0xB4


@pytest.mark.parametrize("flags", [(), ("--quic-flow-headers",)], ids=["mqtt", "MQTT-next"])
@pytest.mark.parametrize("profile", ["generic", "mqttv5"])
@pytest.mark.matrix("datagrams", ours="broker", peer="mqttv5")
async def test_its_client_at_our_broker(profile: ProfileName, flags: tuple[str, ...]) -> None:
    """It publishes in datagrams, and subscribes at a broker that would send some: it gets everything on streams."""
    program = require("mqttv5")
    config = BrokerConfig(profile=profile, tls=False, tcp=False, quic_port=0, datagram_deliveries=profile == "generic")
    async with BrokerServer(config) as server:
        url = server.url.replace("127.0.0.1", "localhost").replace("quic://", "quics://")

        async def run(verb: str, *options: str) -> asyncio.subprocess.Process:
            return await asyncio.create_subprocess_exec(
                program, verb, "--url", url, "--ca-cert", str(server.ca_file), "--non-interactive",
                "--quic-datagrams", *flags, *options,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip

        reader = await run("sub", "-t", "a/#", "-n", "20")
        try:
            async with asyncio.timeout(3 * PATIENCE):
                await server.wait_for(lambda: server.stats().subscriptions == 1, PATIENCE)
                writer = await run("pub", "-t", "a/1", "-q", "0", "-m", "hello", "--repeat", "20", "--interval", "2")
                _, complaint = await writer.communicate()
                assert writer.returncode == 0, complaint.decode()
                told, _ = await reader.communicate()
        finally:
            with contextlib.suppress(ProcessLookupError):
                reader.kill()
            await reader.wait()
        assert told.decode().count("hello") == 20
        stats = server.stats()
        assert (stats.datagrams_in, stats.datagrams_out, stats.datagrams_refused) == (20, 0, 0)
        assert (stats.messages_in, stats.protocol_errors) == (20, 0)
