"""quiche at the other end: our client through it to mosquitto, mosquitto's clients and paho through it to us."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.server import BrokerServer
from mqttquic_lab.errors import AlpnError, CertificateError, DisconnectedError
from mqttquic_lab.mqtt import Will
from mqttquic_lab.net.address import parse_url
from mqttquic_lab.quic.tickets import TicketStore
from mqttquic_lab.session import AsyncSession
from tests.helpers.peers import PATIENCE, run, running
from tests.helpers.quic import settle
from tests.interop import quic_peers
from tests.interop.test_paho import Paho
from tests.interop.test_paho import running as paho_running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from mqttquic_lab.broker.status import ClientInfo
    from tests.helpers.certs import Identities
    from tests.helpers.peers import Program
    from tests.interop.quic_peers import QuicPeer

pytestmark = [pytest.mark.mosquitto, pytest.mark.matrix("MQTT {version}")]

VERSIONS = {"3.1.1": "mqttv311", "5.0": "mqttv5"}
"""Our name -> what mosquitto's option -V takes."""

LARGE = bytes(range(256)) * 5000
"""1.28 MB: more than the flow-control window of any stream on the way."""


@pytest.fixture(params=list(VERSIONS))
def version(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


# --- our client, quiche, mosquitto


@pytest.fixture
async def broker(identities: Identities, tmp_path: Path, free_port: int) -> AsyncIterator[QuicPeer]:
    """Run mosquitto behind a QUIC listener of quiche."""
    async with (
        quic_peers.mosquitto(tmp_path, free_port),
        quic_peers.relay_to_tcp(free_port, identities.good, tmp_path) as peer,
    ):
        yield peer


@pytest.fixture
def ca_file(identities: Identities, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    identities.authority.write_ca(path)
    return path


@pytest.mark.matrix("handshake", "single stream", ours="client", peer="mosquitto behind quiche")
async def test_the_handshake(broker: QuicPeer, ca_file: Path, record_property: Callable[[str, object], None]) -> None:
    async with await AsyncSession.open(broker.url, ca_file=ca_file) as session:
        report = session.handshake
        assert (session.transport, report.alpn, report.quic_version) == ("quic", "mqtt", "QUIC v1")
        assert report.verification == "verified"
        # It validates every address by a Retry, which costs one round trip more.
        assert (report.retry, report.round_trips) == (True, 3)
        record_property("matrix handshake", f"a Retry, so {report.round_trips} round trips to CONNACK")
        assert report.remote_transport_parameters["initial_max_streams_bidi"] == 100
        assert await session.ping() > 0


@pytest.mark.matrix("QoS 0", "QoS 1", "QoS 2", ours="client", peer="mosquitto behind quiche")
async def test_every_qos(broker: QuicPeer, ca_file: Path, version: str) -> None:
    async with await AsyncSession.open(broker.url, ca_file=ca_file, version=version) as session:
        feed = await session.subscribe("plant/+/temp", 2)
        for qos in (0, 1, 2):
            await session.publish(f"plant/{qos}/temp", str(qos), qos)
        await session.publish("plant/9/pressure", "not subscribed", 1)
        await feed.wait(3)
        frame = feed.df
        assert list(zip(frame["topic"], frame["payload"], frame["qos"], strict=True)) == [
            (f"plant/{qos}/temp", b"%d" % qos, qos) for qos in (0, 1, 2)
        ]
        assert feed.total == 3
        assert session.errors == []


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.matrix("many messages", "QoS {qos}", ours="client", peer="mosquitto behind quiche")
async def test_many_messages_stay_in_order(broker: QuicPeer, ca_file: Path, qos: int) -> None:
    count = 500  # mosquitto drops QoS 0 messages when more than a thousand wait
    async with await AsyncSession.open(broker.url, ca_file=ca_file) as session:
        feed = await session.subscribe("bulk", qos, decode="raw")
        summary = await session.publish_many((("bulk", b"%d" % number) for number in range(count)), qos)
        assert summary.refused == 0
        await feed.wait(count)
        assert feed.df["payload"].tolist() == [b"%d" % number for number in range(count)]


@pytest.mark.matrix("large message", ours="client", peer="mosquitto behind quiche", note="1.28 MB")
async def test_a_large_message(broker: QuicPeer, ca_file: Path) -> None:
    async with await AsyncSession.open(broker.url, ca_file=ca_file) as session:
        feed = await session.subscribe("big", 1, decode="raw")
        await session.publish("big", LARGE, 1)
        await feed.wait(1)
        assert feed.log.message(0).payload == LARGE


@pytest.mark.matrix("retained", ours="client", peer="mosquitto behind quiche")
async def test_retained(broker: QuicPeer, ca_file: Path, version: str) -> None:
    async with await AsyncSession.open(broker.url, ca_file=ca_file, version=version) as session:
        await session.publish("a/b", "kept", 1, retain=True)
        feed = await session.subscribe("a/#", 1)
        await feed.wait(1)
        message = feed.log.message(0)
        assert (message.payload, message.qos, message.retain) == (b"kept", 1, True)


@pytest.mark.matrix("will", "take-over", ours="client", peer="mosquitto behind quiche")
async def test_will_and_take_over(broker: QuicPeer, ca_file: Path, version: str) -> None:
    async with await AsyncSession.open(broker.url, ca_file=ca_file) as watcher:
        feed = await watcher.subscribe("will/#", 1)
        options: dict[str, Any] = {"ca_file": ca_file, "client_id": "x", "version": version, "reconnect": False}
        first = await AsyncSession.open(broker.url, will=Will("will/x", b"gone", 1), **options)
        async with await AsyncSession.open(broker.url, **options):
            await feed.wait(1)
            assert feed.log.message(0).payload == b"gone"
            assert isinstance(await first.wait_closed(), DisconnectedError)
        await first.close()


@pytest.mark.matrix("session resumed", ours="client", peer="mosquitto behind quiche")
async def test_a_session_is_resumed(broker: QuicPeer, ca_file: Path) -> None:
    kept = {"ca_file": ca_file, "client_id": "lasting", "clean_start": False, "session_expiry_interval": 300}
    first = await AsyncSession.open(broker.url, **kept)
    await first.subscribe("a", 2)
    await first.close()
    async with await AsyncSession.open(broker.url, ca_file=ca_file) as publisher:
        for qos in (1, 2):
            await publisher.publish("a", str(qos), qos)
    async with await AsyncSession.open(broker.url, **kept) as again:
        assert again.handshake.session_present
        # They come right after CONNACK, before any feed can ask for them.
        await settle(lambda: again.unrouted.total == 2)
        assert sorted(again.unrouted.frame()["payload"]) == [b"1", b"2"]


@pytest.mark.matrix("0-RTT", ours="client", peer="mosquitto behind quiche", refused=True)
async def test_early_data_that_is_refused_is_sent_again_once(
    broker: QuicPeer, ca_file: Path, record_property: Callable[[str, object], None]
) -> None:
    """Its tickets allow 0-RTT, but it has a new key for every connection; and every connection begins with a Retry."""
    tickets = TicketStore()
    async with await AsyncSession.open(broker.url, ca_file=ca_file, tickets=tickets) as watcher:
        feed = await watcher.subscribe("a", 2)
        assert len(tickets) == 2
        early: dict[str, Any] = {"early_data": "publish", "publish_early": [("a", "early", qos) for qos in (0, 1, 2)]}
        async with await AsyncSession.open(broker.url, ca_file=ca_file, tickets=tickets, **early) as session:
            report = session.handshake
            assert (report.resumed, report.early_data, report.retry) == (False, "rejected", True)
            record_property("matrix", f"{report.early_data} behind a Retry, then sent again: each message comes once")
            assert len(await session.early_published()) == 3
            await session.publish("a", "last", 2)
        await settle(lambda: b"last" in set(feed.df["payload"]))
        assert feed.df["payload"].tolist() == [b"early"] * 3 + [b"last"]


@pytest.mark.matrix("end of the broker", ours="client", peer="mosquitto behind quiche", note="an error at once")
async def test_the_end_of_the_broker_is_noticed(
    identities: Identities, tmp_path: Path, free_port: int, ca_file: Path
) -> None:
    async with AsyncExitStack() as stack:
        mosquitto = await stack.enter_async_context(quic_peers.mosquitto(tmp_path, free_port))
        relay = await stack.enter_async_context(quic_peers.relay_to_tcp(free_port, identities.good, tmp_path))
        session = await AsyncSession.open(relay.url, ca_file=ca_file, reconnect=False)
        feed = await session.subscribe("a", 1)
        mosquitto.kill()
        with pytest.raises(DisconnectedError):
            await feed.wait(1, timeout=PATIENCE)
        assert session.state == "closed"


@pytest.mark.matrix(
    "refusals told apart", ours="client", peer="mosquitto behind quiche", note="ALPN, unknown authority"
)
async def test_refusals_are_told_apart(broker: QuicPeer, ca_file: Path, identities: Identities, tmp_path: Path) -> None:
    with pytest.raises(AlpnError):
        await AsyncSession.open(broker.url, ca_file=ca_file, alpn=("MQTT-next",))
    with pytest.raises(CertificateError) as caught:
        await AsyncSession.open(broker.url)
    assert caught.value.problem == "untrusted"


# --- mosquitto's clients and paho, quiche, our broker


@dataclass
class Relayed:
    """Our broker, and a TCP port from which quiche carries to its QUIC listener."""

    server: BrokerServer
    port: int
    ca_file: str | None = None
    """What a client of the TCP port needs: nothing."""

    def client(self, client_id: str) -> ClientInfo | None:
        return next((client for client in self.server.clients() if client.client_id == client_id), None)

    async def subscribed(self, count: int = 1) -> None:
        """Wait until so many subscriptions stand."""
        await self.server.wait_for(lambda: self.server.stats().subscriptions >= count, timeout=PATIENCE)


@pytest.fixture
async def relayed() -> AsyncIterator[Relayed]:
    async with (
        BrokerServer(BrokerConfig(quic_port=0, tls=False, tcp=False)) as server,
        quic_peers.relay_to_quic(parse_url(server.url).port, server.ca_file) as port,
    ):
        yield Relayed(server, port)


def arguments(relayed: Relayed, version: str, *more: str) -> list[str]:
    return ["-h", "127.0.0.1", "-p", str(relayed.port), "-V", VERSIONS[version], *more]


def subscriber(relayed: Relayed, version: str, *more: str) -> AbstractAsyncContextManager[Program]:
    return running("mosquitto_sub", *arguments(relayed, version, "-F", "%t %q %r %p", *more))


async def publish(relayed: Relayed, version: str, *more: str) -> None:
    await run("mosquitto_pub", *arguments(relayed, version, *more))


@pytest.mark.parametrize("qos", ["0", "1", "2"])
@pytest.mark.matrix("single stream", "QoS {qos}", ours="broker", peer="mosquitto_pub/sub behind quiche")
async def test_mosquittos_clients(relayed: Relayed, version: str, qos: str) -> None:
    count = 100
    async with subscriber(relayed, version, "-t", "plant/+/temp", "-q", qos, "-C", str(count), "-i", "sub") as reader:
        await relayed.subscribed()
        info = relayed.client("sub")
        assert info is not None
        assert (info.transport, info.version) == ("quic", version)
        async with running("mosquitto_pub", *arguments(relayed, version, "-t", "plant/1/temp", "-q", qos, "-l")) as pub:
            for number in range(count):
                await pub.write(str(number))
            pub.end_input()
            assert (await pub.end())[0] == 0
        assert [await reader.line() for _ in range(count)] == [f"plant/1/temp {qos} 0 {n}" for n in range(count)]
        assert (await reader.end())[0] == 0


@pytest.mark.matrix("large message", ours="broker", peer="mosquitto_pub/sub behind quiche", note="1.28 MB")
async def test_a_large_message_both_ways(relayed: Relayed, tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    payload.write_bytes(b"x" * 1_280_000)
    async with subscriber(relayed, "5.0", "-t", "a", "-q", "1", "-C", "1") as reader:
        await relayed.subscribed()
        await publish(relayed, "5.0", "-t", "a", "-q", "1", "-f", str(payload))
        code, output = await reader.end()
        assert (code, len(output.strip())) == (0, len("a 1 0 ") + 1_280_000)


@pytest.mark.matrix("retained", "will", ours="broker", peer="mosquitto_pub/sub behind quiche")
async def test_retained_and_will(relayed: Relayed, version: str) -> None:
    await publish(relayed, version, "-t", "a/b", "-m", "kept", "-r", "-q", "1")
    async with subscriber(relayed, version, "-t", "a/#", "-t", "will/#", "-q", "2", "-C", "2") as watcher:
        assert await watcher.line() == "a/b 1 1 kept"
        will = ("--will-topic", "will/x", "--will-payload", "gone", "--will-qos", "2")
        async with subscriber(relayed, version, "-t", "b", "-i", "x", *will) as lost:
            await relayed.subscribed(3)
            lost.kill()
            assert await watcher.line() == "will/x 2 0 gone"


@pytest.mark.matrix("shared subscription", ours="broker", peer="mosquitto_pub/sub behind quiche")
async def test_a_shared_subscription(relayed: Relayed, version: str) -> None:
    async with AsyncExitStack() as stack:
        members = [
            await stack.enter_async_context(subscriber(relayed, version, "-t", "$share/g/a", "-C", "2"))
            for _ in range(2)
        ]
        await relayed.subscribed(2)
        for number in range(4):
            await publish(relayed, version, "-t", "a", "-m", str(number))
        assert {(await member.line())[-1] for member in members for _ in range(2)} == {"0", "1", "2", "3"}


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.matrix("single stream", "QoS {qos}", ours="broker", peer="paho-mqtt behind quiche")
async def test_paho(relayed: Relayed, version: str, qos: int) -> None:
    listening: Any = relayed  # has what Paho asks of a listener
    client = Paho(listening, version, "x")
    with paho_running(client):
        assert await client.start() == (0, False)
        assert await client.subscribe("a/#", qos) == [qos]
        for number in range(20):
            await client.publish(f"a/{number}", str(number), qos)
        messages = [await client.message() for _ in range(20)]
        assert [(m.topic, m.payload, m.qos) for m in messages] == [(f"a/{n}", b"%d" % n, qos) for n in range(20)]
