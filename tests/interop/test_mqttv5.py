"""mqttv5 (Rust, quinn) at the other end, all on one stream: our client to its broker, its client to our broker."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.server import BrokerServer
from mqttquic_lab.errors import AlpnError, CertificateError, DisconnectedError
from mqttquic_lab.mqtt import ReasonCode, Will
from mqttquic_lab.net.address import parse_url
from mqttquic_lab.quic.tickets import TicketStore
from mqttquic_lab.session import AsyncSession
from tests.helpers.peers import PATIENCE, run, running
from tests.helpers.quic import settle
from tests.interop.quic_peers import mqttv5_broker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.helpers.certs import Identities
    from tests.helpers.peers import Program
    from tests.interop.quic_peers import QuicPeer

pytestmark = pytest.mark.matrix("MQTT {version}", peer="mqttv5")

LARGE = bytes(range(256)) * 8192
"""2 MiB: more than any flow-control window on the way."""

QUIET = {"RUST_LOG": "off", "NO_COLOR": "1"}
"""Keeps the client's log out of what it prints."""


@pytest.fixture(params=["3.1.1", "5.0"])
def version(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


# --- our client, its broker


@pytest.fixture
async def broker(identities: Identities, tmp_path: Path) -> AsyncIterator[QuicPeer]:
    """Run its broker, told to deliver on the control stream: by default it opens a stream for every topic."""
    async with mqttv5_broker(identities.good, tmp_path, "--quic-delivery-strategy", "control-only") as peer:
        yield peer


@pytest.fixture
def ca_file(identities: Identities, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    identities.authority.write_ca(path)
    return path


@pytest.mark.matrix("handshake", "single stream", ours="client")
async def test_the_handshake(broker: QuicPeer, ca_file: Path, record_property: Callable[[str, object], None]) -> None:
    async with await AsyncSession.open(broker.url, ca_file=ca_file) as session:
        report = session.handshake
        assert (session.transport, report.alpn, report.quic_version) == ("quic", "mqtt", "QUIC v1")
        assert report.verification == "verified"
        assert (report.retry, report.round_trips) == (False, 2)
        record_property("matrix handshake", f"no Retry, {report.round_trips} round trips to CONNACK")
        parameters = report.remote_transport_parameters
        assert (parameters["initial_max_streams_bidi"], parameters["initial_max_streams_uni"]) == (100, 100)
        assert parameters["max_datagram_frame_size"] == 65535
        assert await session.ping() > 0


@pytest.mark.matrix("QoS 0", "QoS 1", "QoS 2", ours="client")
async def test_every_qos(broker: QuicPeer, ca_file: Path, version: str) -> None:
    async with await AsyncSession.open(broker.url, ca_file=ca_file, version=version) as session:
        feed = await session.subscribe("plant/+/temp", 2)
        for qos in (0, 1, 2):
            await session.publish(f"plant/{qos}/temp", str(qos), qos)
        await session.publish("plant/9/pressure", "not subscribed", 1)
        await feed.wait(3)
        frame = feed.df
        # In the order of topics: QoS 0 may come after QoS 1 that was published later.
        assert sorted(zip(frame["topic"], frame["payload"], frame["qos"], frame["stream_id"], strict=True)) == [
            (f"plant/{qos}/temp", b"%d" % qos, qos, 0) for qos in (0, 1, 2)
        ]
        assert feed.total == 3
        assert session.errors == []


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.matrix("many messages", "QoS {qos}", ours="client")
async def test_many_messages_stay_in_order(broker: QuicPeer, ca_file: Path, qos: int) -> None:
    count = 500
    async with await AsyncSession.open(broker.url, ca_file=ca_file) as session:
        feed = await session.subscribe("bulk", qos, decode="raw")
        summary = await session.publish_many((("bulk", b"%d" % number) for number in range(count)), qos)
        assert summary.refused == 0
        await feed.wait(count)
        assert feed.df["payload"].tolist() == [b"%d" % number for number in range(count)]


@pytest.mark.matrix("large message", ours="client", note="2 MiB")
async def test_a_large_message(broker: QuicPeer, ca_file: Path) -> None:
    async with await AsyncSession.open(broker.url, ca_file=ca_file) as session:
        feed = await session.subscribe("big", 1, decode="raw")
        await session.publish("big", LARGE, 1)
        await feed.wait(1)
        assert feed.log.message(0).payload == LARGE


@pytest.mark.matrix("retained", ours="client")
async def test_retained(broker: QuicPeer, ca_file: Path, version: str) -> None:
    async with await AsyncSession.open(broker.url, ca_file=ca_file, version=version) as session:
        await session.publish("a/b", "kept", 1, retain=True)
        feed = await session.subscribe("a/#", 1)
        await feed.wait(1)
        message = feed.log.message(0)
        assert (message.payload, message.qos, message.retain) == (b"kept", 1, True)


@pytest.mark.matrix("will", "take-over", ours="client")
async def test_will_and_take_over(broker: QuicPeer, ca_file: Path) -> None:
    async with AsyncExitStack() as stack:
        watcher = await stack.enter_async_context(await AsyncSession.open(broker.url, ca_file=ca_file))
        feed = await watcher.subscribe("will/#", 1)
        will = Will("will/x", b"gone", 1)
        first = await AsyncSession.open(broker.url, ca_file=ca_file, client_id="x", will=will)
        await stack.enter_async_context(await AsyncSession.open(broker.url, ca_file=ca_file, client_id="x"))
        await feed.wait(1)
        assert feed.log.message(0).payload == b"gone"
        await settle(lambda: first.state == "closed")
        with pytest.raises(DisconnectedError) as caught:
            await first.publish("a", "x", 1)
        assert caught.value.reason_code == ReasonCode.SESSION_TAKEN_OVER


@pytest.mark.matrix("shared subscription", ours="client")
async def test_a_shared_subscription(broker: QuicPeer, ca_file: Path, version: str) -> None:
    async with AsyncExitStack() as stack:
        members = [
            await stack.enter_async_context(await AsyncSession.open(broker.url, ca_file=ca_file, version=version))
            for _ in range(2)
        ]
        feeds = [await member.subscribe("$share/g/a", 1) for member in members]
        for number in range(10):
            await members[0].publish("a", str(number), 1)
        await settle(lambda: sum(feed.total for feed in feeds) == 10)
        assert all(feed.total for feed in feeds)


@pytest.mark.matrix("session resumed", ours="client", note="what waited comes right after CONNACK")
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


@pytest.mark.parametrize(
    ("option", "early_data", "round_trips"), [(["--quic-early-data"], "accepted", 1), ([], "not offered", 2)]
)
@pytest.mark.matrix("resumption", "0-RTT", ours="client")
async def test_resumption_and_early_data(
    identities: Identities,
    tmp_path: Path,
    ca_file: Path,
    option: list[str],
    early_data: str,
    round_trips: int,
    record_property: Callable[[str, object], None],
) -> None:
    tickets = TicketStore()
    early: dict[str, Any] = {"early_data": "publish", "publish_early": [("a", str(qos), qos) for qos in (1, 2)]}
    async with AsyncExitStack() as stack:
        options = ("--quic-delivery-strategy", "control-only", *option)
        peer = await stack.enter_async_context(mqttv5_broker(identities.good, tmp_path, *options))

        async def connect(**more: Any) -> AsyncSession:
            session = await AsyncSession.open(peer.url, ca_file=ca_file, tickets=tickets, **more)
            return await stack.enter_async_context(session)

        feed = await (await connect()).subscribe("a", 2)
        session = await connect(**early)
        report = session.handshake
        assert (report.resumed, report.early_data, report.round_trips) == (True, early_data, round_trips)
        how = "with --quic-early-data" if option else "without"
        record_property("matrix 0-RTT", f"{how}: {early_data}, {round_trips} round trips to CONNACK")
        assert [result.reason_code for result in await session.early_published()] == [0, 0]
        await session.publish("a", "last", 2)
        await settle(lambda: b"last" in set(feed.df["payload"]))
        assert sorted(feed.df["payload"]) == [b"1", b"2", b"last"]


@pytest.mark.matrix("refusals told apart", ours="client", note="ALPN, unknown authority")
async def test_refusals_are_told_apart(broker: QuicPeer, ca_file: Path) -> None:
    with pytest.raises(AlpnError):
        await AsyncSession.open(broker.url, ca_file=ca_file, alpn=("h3",))
    with pytest.raises(CertificateError) as caught:
        await AsyncSession.open(broker.url)
    assert caught.value.problem == "untrusted"


# --- its client, our broker


@pytest.fixture
async def ours() -> AsyncIterator[BrokerServer]:
    async with BrokerServer(BrokerConfig(quic_port=0, tls=False, tcp=False)) as server:
        yield server


def arguments(verb: str, ours: BrokerServer, version: str, *more: str) -> list[str]:
    url = f"quics://localhost:{parse_url(ours.url).port}"  # its quic:// does not verify the certificate
    common = ["--url", url, "--ca-cert", str(ours.ca_file), "--non-interactive"]
    return [verb, *common, "--protocol-version", version, *more]


def subscriber(ours: BrokerServer, version: str, *more: str) -> AbstractAsyncContextManager[Program]:
    return running("mqttv5", *arguments("sub", ours, version, "-v", *more), environment=QUIET)


async def publish(ours: BrokerServer, version: str, *more: str) -> None:
    await run("mqttv5", *arguments("pub", ours, version, *more), environment=QUIET)


async def subscribed(ours: BrokerServer, program: Program, count: int = 1) -> None:
    """Wait until so many subscriptions stand, and `program` has said so."""
    await ours.wait_for(lambda: ours.stats().subscriptions >= count, timeout=PATIENCE)
    await program.until("Subscribed to")


@pytest.mark.parametrize("qos", ["0", "1", "2"])
@pytest.mark.matrix("single stream", "QoS {qos}", ours="broker")
async def test_its_clients(ours: BrokerServer, version: str, qos: str) -> None:
    options = ("-t", "plant/+/temp", "-q", qos, "-n", "2", "-c", "sub", "-s")
    async with subscriber(ours, version, *options) as program:
        await subscribed(ours, program)
        info = next(client for client in ours.clients() if client.client_id == "sub")
        assert (info.transport, info.version) == ("quic", version)
        for number, payload in ((1, "21.5"), (2, "grün")):
            await publish(ours, version, "-t", f"plant/{number}/temp", "-q", qos, "-m", payload)
            assert await program.until("topic:") == f"topic: plant/{number}/temp"
            assert await program.line() == f"  qos: {qos}"
            assert await program.until("payload:") == f"  payload: {payload}"
        assert (await program.end())[0] == 0
    assert ours.stats().protocol_errors == 0


@pytest.mark.parametrize("qos", ["0", "1", "2"])
@pytest.mark.matrix("many messages", ours="broker")
async def test_many_messages_of_its_publisher(ours: BrokerServer, qos: str) -> None:
    count = 200
    async with await AsyncSession.open(ours) as session:
        feed = await session.subscribe("a", 2)
        await publish(ours, "5.0", "-t", "a", "-q", qos, "-m", "x", "--repeat", str(count), "--interval", "0")
        await feed.wait(count)
        assert feed.total == count
        assert feed.df["qos"].eq(int(qos)).all()


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.matrix("many messages", ours="broker")
async def test_many_messages_to_its_subscriber(ours: BrokerServer, qos: int) -> None:
    count = 300
    async with subscriber(ours, "5.0", "-t", "a", "-q", str(qos), "-n", str(count)) as program:
        await subscribed(ours, program)
        async with await AsyncSession.open(ours) as session:
            await session.publish_many((("a", b"%d" % number) for number in range(count)), qos)
            assert [await program.line() for _ in range(count)] == [f"a: {number}" for number in range(count)]
        assert (await program.end())[0] == 0
    assert ours.stats().dropped_qos0 == 0


@pytest.mark.matrix("large message", ours="broker", note="2 MB")
async def test_a_large_message_both_ways(ours: BrokerServer, tmp_path: Path) -> None:
    payload = tmp_path / "payload"
    payload.write_bytes(b"x" * 2_000_000)
    async with subscriber(ours, "5.0", "-t", "a", "-q", "1", "-n", "1") as program:
        await subscribed(ours, program)
        await publish(ours, "5.0", "-t", "a", "-q", "1", "-f", str(payload))
        code, output = await program.end()
        assert code == 0
        assert len(output) > 2_000_000


@pytest.mark.matrix("retained", "will", ours="broker")
async def test_retained_and_will_of_its_client(ours: BrokerServer, version: str) -> None:
    await publish(ours, version, "-t", "a/b", "-m", "kept", "-r", "-q", "1")
    async with await AsyncSession.open(ours) as watcher:
        feed = await watcher.subscribe([("a/#", 1), ("will/#", 1)])
        async with subscriber(ours, version, "-t", "a/+", "-q", "1") as program:
            assert await program.until("a/b") == "a/b: kept"
        will = ("--will-topic", "will/x", "--will-message", "gone", "--will-qos", "1")
        async with subscriber(ours, version, "-t", "b", "-c", "x", *will) as lost:
            await subscribed(ours, lost, 3)
            lost.kill()
        # A QUIC client that is killed says nothing: another one with its name ends its connection.
        async with await AsyncSession.open(ours, client_id="x"):
            await feed.wait(2)
        assert [(m.topic, m.payload) for m in feed.log] == [("a/b", b"kept"), ("will/x", b"gone")]


@pytest.mark.matrix(
    "refusals told apart", ours="broker", note="unknown authority (with quics://; quic:// verifies nothing)"
)
async def test_it_verifies_our_certificate(ours: BrokerServer, ca_file: Path) -> None:
    wrong = arguments("pub", ours, "5.0", "-t", "a", "-m", "x")
    wrong[wrong.index(str(ours.ca_file))] = str(ca_file)
    output = await run("mqttv5", *wrong, expect=1, environment=QUIET)
    assert "UnknownIssuer" in output
    assert ours.stats().connects_total == 0
