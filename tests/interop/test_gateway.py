"""Debian's mosquitto behind our gateway: our client over QUIC, mqttv5's client, mosquitto's own clients over TLS."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.errors import ConnectRefusedError, DisconnectedError, StreamClosedError
from mqttquic_lab.gateway import GatewayConfig, GatewayServer
from mqttquic_lab.mqtt import Will
from mqttquic_lab.net.address import parse_url
from mqttquic_lab.quic.tickets import TicketStore
from mqttquic_lab.session import AsyncSession
from tests.helpers.numbered import NumberedLoad, check_delivered
from tests.helpers.peers import PATIENCE, run, running
from tests.helpers.quic import settle
from tests.interop import quic_peers
from tests.session.test_mosquitto import mosquitto_with

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.helpers.certs import Identities

pytestmark = [
    pytest.mark.mosquitto,
    pytest.mark.matrix("MQTT {version}", ours="client", peer="mosquitto behind our gateway"),
]

LARGE = bytes(range(256)) * 20_000
"""5 MB: more than all windows and buffers on the way together."""


@pytest.fixture(params=["3.1.1", "5.0"])
def version(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@asynccontextmanager
async def gateway_to_mosquitto(
    identities: Identities, folder: Path, *settings: str, upstream: str = "mqtt", **options: Any
) -> AsyncIterator[GatewayServer]:
    """Run mosquitto, and a gateway to its TCP or its TLS listener."""
    async with mosquitto_with(identities, folder, *(settings or ("allow_anonymous true",))) as broker:
        if upstream == "mqtts":
            options["ca_file"] = broker.ca_file
        config = GatewayConfig(broker.urls[upstream], quic_port=0, tls=True, tls_port=0, **options)
        async with GatewayServer(config) as gateway:
            yield gateway


@pytest.fixture
async def gateway(identities: Identities, tmp_path: Path) -> AsyncIterator[GatewayServer]:
    async with gateway_to_mosquitto(identities, tmp_path) as server:
        yield server


@pytest.mark.matrix("handshake", "single stream")
async def test_the_handshake(gateway: GatewayServer, record_property: Callable[[str, object], None]) -> None:
    async with await AsyncSession.open(gateway) as session:
        report = session.handshake
        assert (session.transport, report.alpn, report.verification) == ("quic", "mqtt", "verified")
        assert (report.retry, report.round_trips) == (False, 2)
        record_property("matrix handshake", f"{report.round_trips} round trips to CONNACK, as without a gateway")
        assert await session.ping() > 0


@pytest.mark.parametrize("upstream", ["mqtt", "mqtts"])
@pytest.mark.matrix("QoS 0", "QoS 1", "QoS 2", note="in front of its TCP and its TLS listener")
async def test_every_qos(identities: Identities, tmp_path: Path, upstream: str, version: str) -> None:
    async with (
        gateway_to_mosquitto(identities, tmp_path, upstream=upstream) as gateway,
        await AsyncSession.open(gateway, version=version) as session,
    ):
        feed = await session.subscribe("plant/+/temp", 2)
        for qos in (0, 1, 2):
            await session.publish(f"plant/{qos}/temp", str(qos), qos)
        await feed.wait(3)
        frame = feed.df
        assert list(zip(frame["topic"], frame["payload"], frame["qos"], frame["stream_id"], strict=True)) == [
            (f"plant/{qos}/temp", b"%d" % qos, qos, 0) for qos in (0, 1, 2)
        ]
        assert session.errors == []
        assert not gateway.errors


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.matrix("many messages", note="500 at each QoS, in order")
async def test_many_messages_stay_in_order(gateway: GatewayServer, qos: int) -> None:
    count = 500  # mosquitto drops QoS 0 messages when more than a thousand wait
    async with await AsyncSession.open(gateway) as session:
        feed = await session.subscribe("bulk", qos, decode="raw")
        summary = await session.publish_many((("bulk", b"%d" % number) for number in range(count)), qos)
        assert summary.refused == 0
        await feed.wait(count)
        assert feed.df["payload"].tolist() == [b"%d" % number for number in range(count)]


@pytest.mark.matrix("large message", note="5 MB there and back")
async def test_a_large_message(gateway: GatewayServer) -> None:
    async with await AsyncSession.open(gateway) as session:
        feed = await session.subscribe("big", 1, decode="raw")
        await session.publish("big", LARGE, 1)
        await feed.wait(1)
        assert feed.log.message(0).payload == LARGE
        assert gateway.stats().bytes_from_broker > len(LARGE)


@pytest.mark.matrix("retained")
async def test_retained(gateway: GatewayServer, version: str) -> None:
    async with await AsyncSession.open(gateway, version=version) as session:
        await session.publish("a/b", "kept", 1, retain=True)
        feed = await session.subscribe("a/#", 1)
        await feed.wait(1)
        message = feed.log.message(0)
        assert (message.payload, message.qos, message.retain) == (b"kept", 1, True)


@pytest.mark.parametrize("how", ["abort", "take-over"])
@pytest.mark.matrix("will", note="when the QUIC connection is broken off, and at a take-over")
@pytest.mark.matrix("take-over")
async def test_will(gateway: GatewayServer, version: str, how: str) -> None:
    async with await AsyncSession.open(gateway) as watcher:
        feed = await watcher.subscribe("will/#", 2)
        will = Will("will/x", b"gone", 2)
        options: dict[str, Any] = {"client_id": "x", "version": version, "reconnect": False}
        lost = await AsyncSession.open(gateway, will=will, **options)
        if how == "abort":
            lost.connection.abort("cable")
        else:
            async with await AsyncSession.open(gateway, **options):
                assert isinstance(await lost.wait_closed(), DisconnectedError)
        await feed.wait(1)
        assert (feed.log.message(0).payload, feed.log.message(0).qos) == (b"gone", 2)
        await lost.close()


@pytest.mark.matrix("will", note="not after DISCONNECT")
async def test_an_orderly_end_publishes_no_will(gateway: GatewayServer) -> None:
    async with await AsyncSession.open(gateway) as watcher:
        feed = await watcher.subscribe("will/#", 1)
        async with await AsyncSession.open(gateway, will=Will("will/x", b"gone", 1)):
            pass
        await gateway.wait_for(lambda: len(gateway.clients()) == 1)
        await watcher.publish("will/y", "later", 1)
        await feed.wait(1)
        assert feed.df["payload"].tolist() == [b"later"]
        assert gateway.stats().ended == 1


@pytest.mark.matrix("shared subscription")
async def test_a_shared_subscription(gateway: GatewayServer) -> None:
    async with await AsyncSession.open(gateway) as one, await AsyncSession.open(gateway) as other:
        feeds = [await session.subscribe("$share/g/a", 1) for session in (one, other)]
        for number in range(10):
            await one.publish("a", str(number), 1)
        await settle(lambda: sum(feed.total for feed in feeds) == 10)
        assert all(feed.total for feed in feeds)


@pytest.mark.matrix("session resumed", note="what waited comes right after CONNACK")
async def test_a_session_is_resumed(gateway: GatewayServer) -> None:
    kept: dict[str, Any] = {"client_id": "lasting", "clean_start": False, "session_expiry_interval": 300}
    first = await AsyncSession.open(gateway, **kept)
    await first.subscribe("a", 2)
    await first.close()
    async with await AsyncSession.open(gateway) as publisher:
        for qos in (1, 2):
            await publisher.publish("a", str(qos), qos)
    async with await AsyncSession.open(gateway, **kept) as again:
        assert again.handshake.session_present
        await settle(lambda: again.unrouted.total == 2)
        assert sorted(again.unrouted.frame()["payload"]) == [b"1", b"2"]


@pytest.mark.matrix("resumption", note="tickets of the gateway")
@pytest.mark.matrix(
    "0-RTT",
    refused=True,
    note="its tickets do not allow it: nothing would keep mosquitto from doing twice what is replayed",
)
async def test_resumption(gateway: GatewayServer) -> None:
    tickets = TicketStore()
    for resumed in (False, True):
        async with await AsyncSession.open(gateway, tickets=tickets, early_data=True) as session:
            assert (session.handshake.resumed, session.handshake.early_data) == (resumed, "not offered")
            await settle(lambda: len(tickets) > 0)


@pytest.mark.matrix(
    "migration", "rebinding", note="mosquitto sees one TCP connection all the time; no QoS 2 message lost or doubled"
)
async def test_moving(gateway: GatewayServer) -> None:
    async with asyncio.timeout(PATIENCE), await AsyncSession.open(gateway) as session:
        feed = await session.subscribe("numbered", 2, decode="raw")
        [before] = gateway.clients()
        load = NumberedLoad(session, window=8)
        load.start()
        await load.reached(50)
        for move in (session.migrate("127.0.0.2"), session.rebind()):
            await move
            await load.reached(50)
        await check_delivered(await load.stop(), feed, exactly_once=True)
        [after] = gateway.clients()
        assert after.address[0] == "127.0.0.2"
        assert after.streams[0].local_port == before.streams[0].local_port


@pytest.mark.matrix("password", note="0x87, said by mosquitto itself")
async def test_a_stranger_is_refused(identities: Identities, tmp_path: Path) -> None:
    async with gateway_to_mosquitto(identities, tmp_path, "allow_anonymous false") as gateway:
        with pytest.raises(ConnectRefusedError) as caught:
            await AsyncSession.open(gateway)
        assert caught.value.reason_code == 0x87


@pytest.mark.matrix(
    "slow reader",
    note="mosquitto is not read any more, until its own limits drop messages; then all that was kept comes",
)
async def test_a_slow_reader_stops_mosquitto(identities: Identities, tmp_path: Path) -> None:
    settings = ("allow_anonymous true", "max_queued_messages 0", "max_inflight_messages 0")
    async with (
        gateway_to_mosquitto(identities, tmp_path, *settings) as gateway,
        await AsyncSession.open(gateway) as slow,
        await AsyncSession.open(gateway) as publisher,
    ):
        feed = await slow.subscribe("bulk", 1, decode="raw")
        slow.connection.control.pause_reading()
        count, payload = 300, bytes(50_000)
        summary = await publisher.publish_many((("bulk", payload) for _ in range(count)), 1)
        assert (summary.count, summary.refused) == (count, 0)  # nobody else is held up
        await settle(lambda: gateway.stats().pauses > 0)
        assert gateway.stats().pending < 3_000_000  # of 15 MB
        slow.connection.control.resume_reading()
        await feed.wait(count, timeout=30)
        assert feed.total == count


@pytest.mark.matrix(
    "end of the broker", note="an error at once; with reconnect=True the session goes on when it is back"
)
async def test_mosquitto_is_killed(tmp_path: Path, free_port: int) -> None:
    async with GatewayServer(GatewayConfig(f"mqtt://127.0.0.1:{free_port}", quic_port=0)) as gateway:
        async with quic_peers.mosquitto(tmp_path, free_port) as mosquitto:
            once = await AsyncSession.open(gateway, reconnect=False)
            lasting = await AsyncSession.open(gateway)
            feeds = [await session.subscribe("a", 1) for session in (once, lasting)]
            mosquitto.kill()
            with pytest.raises(DisconnectedError):
                await feeds[0].wait(1, timeout=PATIENCE)
            assert once.state == "closed"
            await settle(lambda: gateway.stats().upstream_failures > 0)  # `lasting` is trying
            assert "nothing listens" in gateway.errors[-1].message
        async with quic_peers.mosquitto(tmp_path, free_port):
            await settle(lambda: lasting.state == "connected")
            await lasting.publish("a", "back", 1)
            await feeds[1].wait(1, timeout=PATIENCE)
            await lasting.close()


@pytest.mark.parametrize("streams", ["per-topic", "per-publish"])
@pytest.mark.matrix(
    "{streams}",
    refused=True,
    note="the gateway resets a stream without CONNECT (0xB5): a broker behind TCP cannot know whose it is",
)
async def test_data_streams_are_refused(gateway: GatewayServer, streams: str) -> None:
    async with await AsyncSession.open(gateway, streams=streams) as session:
        with pytest.raises(StreamClosedError, match="181"):
            await session.publish("a", "x", 1)
        assert gateway.stats().streams_refused == 1
        assert session.state == "connected"
        assert await session.ping() > 0


# --- clients of others


@pytest.mark.parametrize("qos", ["0", "1", "2"])
@pytest.mark.matrix("QoS {qos}", "single stream", ours="gateway", peer="mqttv5 to mosquitto")
async def test_mqttv5s_client(gateway: GatewayServer, version: str, qos: str) -> None:
    url = f"quics://localhost:{parse_url(gateway.url).port}"
    common = ["--url", url, "--ca-cert", str(gateway.ca_file), "--non-interactive", "--protocol-version", version]
    quiet = {"RUST_LOG": "off", "NO_COLOR": "1"}
    async with running("mqttv5", "sub", *common, "-t", "a/#", "-q", qos, "-n", "1", environment=quiet) as program:
        await program.until("Subscribed to")
        await run("mqttv5", "pub", *common, "-t", "a/b", "-q", qos, "-m", "through", environment=quiet)
        assert "through" in await program.until("through")
        assert (await program.end())[0] == 0
    assert gateway.stats().streams_total == 2


@pytest.mark.parametrize("qos", ["0", "1", "2"])
@pytest.mark.matrix("QoS {qos}", "TLS", ours="gateway", peer="mosquitto_pub/sub to mosquitto")
async def test_mosquittos_clients_over_tls(gateway: GatewayServer, version: str, qos: str) -> None:
    port = str(parse_url(gateway.urls["mqtts"]).port)
    names = {"3.1.1": "mqttv311", "5.0": "mqttv5"}
    common = ["-h", "localhost", "-p", port, "-V", names[version], "--cafile", str(gateway.ca_file), "-q", qos]
    count = 15  # more at QoS 2 with 5.0, and mosquitto_sub fails at mosquitto, also without a gateway (README.md)
    # What is retained comes when the subscriptions stand.
    await run("mosquitto_pub", *common, "-t", "ready", "-m", "yes", "-r")
    options = ("-t", "a", "-t", "ready", "-C", str(count + 1), "-F", "%q %p")
    async with running("mosquitto_sub", *common, *options) as reader:
        assert await reader.line() == f"{qos} yes"
        async with running("mosquitto_pub", *common, "-t", "a", "-l") as writer:
            for number in range(count):
                await writer.write(str(number))
            writer.end_input()
            assert (await writer.end())[0] == 0
        for number in range(count):
            assert await reader.line() == f"{qos} {number}"
        assert (await reader.end())[0] == 0
    await gateway.wait_for(lambda: not gateway.clients())
    assert gateway.stats().upstream_resets == 0
