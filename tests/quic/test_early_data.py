"""0-RTT data: taken, refused, asked for again, lost. It arrives once in each case, and both sides say what happened."""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.errors import ConnectTimeoutError, UsageError
from mqttquic_lab.net.address import Address
from mqttquic_lab.quic.admission import Admission, early_data_policy
from mqttquic_lab.quic.client import open_quic
from mqttquic_lab.quic.flights import FlightRecorder
from mqttquic_lab.quic.knobs import Knobs
from mqttquic_lab.quic.ticket_offer import TicketOffer, ticket_offer
from mqttquic_lab.quic.tickets import TicketStore
from tests.helpers.lossy import Ills, LossyRelay
from tests.helpers.quic import HANG, Inbox, Server, connected, serving, settle
from tests.quic.test_tickets import ticket

if TYPE_CHECKING:
    from mqttquic_lab.quic.connection import QuicConnection
    from mqttquic_lab.quic.stream import QuicStream
    from tests.helpers.certs import Identities

EARLY = {"early_content": ("CONNECT",)}


class Recorder:
    """Notes what a server is given, and whether it still was early data."""

    def __init__(self, server: Server) -> None:
        self.data = bytearray()
        self.early = bytearray()
        self.echo = True
        server.on_stream = self._stream

    def _stream(self, stream: QuicStream) -> None:
        def take(data: bytes) -> None:
            self.data += data
            if stream.connection.is_early:
                self.early += data
            if self.echo:
                stream.write(data)

        stream.on_data = take


async def remember(server: Server, identities: Identities, store: TicketStore, **options: Any) -> None:
    """Connect once, until there is a ticket."""
    async with connected(server, identities, tickets=store, **options) as (client, _accepted):
        await settle(lambda: len(client.report.tickets) == 1)


def ladder(connection: QuicConnection) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    report = connection.refresh_report()
    return [(flight.sender, flight.packets, flight.content) for flight in report.flights]


# --- the three answers


async def test_taken(identities: Identities) -> None:
    async with serving(identities, early_data=True) as server:
        seen, store = Recorder(server), TicketStore()
        await remember(server, identities, store)
        options = {"tickets": store, "early_data": b"hello", **EARLY}
        async with connected(server, identities, **options) as (client, accepted):
            assert client.spoke_first
            await Inbox(client.control).read(5)
            client.mark("connack", "CONNACK", sender="server")
            assert (client.report.early_data, accepted.report.early_data) == ("accepted", "accepted")
            assert seen.data == seen.early == b"hello"
            assert not accepted.is_early  # any more
            assert not client.is_early
            assert client.report.timings["connect_sent"] < client.report.timings["server_hello"]
            assert ladder(client) == [
                ("client", ("Initial", "0-RTT"), ("ClientHello", "CONNECT")),
                (
                    "server",
                    ("Initial", "Handshake", "1-RTT"),
                    ("ServerHello", "EncryptedExtensions", "Finished", "CONNACK"),
                ),
            ]
            assert client.report.round_trips == 1
        counters = server.listener.admission.counters
        assert (counters.early_data_accepted, counters.early_data_rejected, counters.resumed) == (1, 0, 1)


async def test_not_offered(identities: Identities) -> None:
    """Without a ticket it is written when the handshake is complete, once."""
    async with serving(identities, early_data=True) as server:
        seen, store = Recorder(server), TicketStore()
        async with connected(server, identities, tickets=store, early_data=b"hello", **EARLY) as (client, accepted):
            assert client.spoke_first
            await Inbox(client.control).read(5)
            client.mark("connack", "CONNACK", sender="server")
            assert (client.report.early_data, accepted.report.early_data) == ("not offered", "not offered")
            assert (bytes(seen.data), bytes(seen.early)) == (b"hello", b"")
            assert client.report.round_trips == 2
            assert ladder(client)[2][2] == ("Finished", "CONNECT")


async def test_a_ticket_that_allows_none(identities: Identities) -> None:
    async with serving(identities) as server:
        seen, store = Recorder(server), TicketStore()
        await remember(server, identities, store)
        async with connected(server, identities, tickets=store, early_data=b"hello") as (client, _accepted):
            await Inbox(client.control).read(5)
            assert client.report.resumed
            assert client.report.early_data == "not offered"
            assert seen.data == b"hello"


async def test_refused_but_resumed(identities: Identities) -> None:
    """The server drops 0-RTT packets; the engine sends their content again, at once and once."""
    async with serving(identities, early_data=True) as server:
        seen, store = Recorder(server), TicketStore()
        await remember(server, identities, store)
        server.listener.admission.policy = "off"
        options = {"tickets": store, "early_data": b"hello" * 1000, **EARLY}
        async with connected(server, identities, **options) as (client, accepted):
            await Inbox(client.control).read(5000)
            client.mark("connack", "CONNACK", sender="server")
            assert (client.report.early_data, accepted.report.early_data) == ("rejected", "rejected")
            assert client.report.resumed
            assert accepted.report.resumed
            assert (bytes(seen.data), bytes(seen.early)) == (b"hello" * 1000, b"")
            assert client.report.round_trips == 2
            flights = ladder(client)
            assert flights[0] == ("client", ("Initial", "0-RTT"), ("ClientHello", "CONNECT"))
            assert flights[2][2] == ("Finished", "CONNECT")
            await settle(lambda: client.bytes_in_flight == 0)
            assert client.congestion_window >= 12_000  # what was not taken was not lost: no reason to slow down
        counters = server.listener.admission.counters
        assert (counters.early_data_accepted, counters.early_data_rejected, counters.resumed) == (0, 1, 1)


async def test_refused_with_a_full_handshake(identities: Identities) -> None:
    """A server that has forgotten the ticket, as after a restart."""
    async with serving(identities, early_data=True) as server:
        seen, store = Recorder(server), TicketStore()
        await remember(server, identities, store)
        server.listener.admission._issued.clear()
        async with connected(server, identities, tickets=store, early_data=b"hello") as (client, _accepted):
            await Inbox(client.control).read(5)
            assert client.report.early_data == "rejected"
            assert not client.report.resumed
            assert client.refresh_report().verification == "verified"
            assert seen.data == b"hello"
        counters = server.listener.admission.counters
        assert (counters.early_data_rejected, counters.replays_refused) == (1, 0)


async def test_a_refusal_brings_the_servers_new_limits(identities: Identities) -> None:
    """Limits remembered with the ticket end with it (RFC 9000 section 7.4.1)."""
    from mqttquic_lab.quic.limits import ReceiveLimits

    store = TicketStore()
    async with serving(identities, early_data=True) as server:
        await remember(server, identities, store)
        port = server.listener.port
    narrow = ReceiveLimits(stream_window=2000, connection_window=4000)
    async with serving(identities, early_data=True, port=port, limits=narrow) as server:
        seen = Recorder(server)
        async with connected(server, identities, tickets=store, early_data=b"x" * 9000) as (client, _accepted):
            assert client.report.early_data == "rejected"
            await Inbox(client.control).read(9000)
            assert len(seen.data) == 9000
            assert not client.is_closed


# --- Retry, version negotiation, loss


@pytest.mark.parametrize("size", [5, 5000, 40_000])
async def test_retry(identities: Identities, size: int) -> None:
    """A Retry makes the first flight void; all of it comes again and arrives once."""
    async with serving(identities, early_data=True) as server:
        seen, store = Recorder(server), TicketStore()
        await remember(server, identities, store)
        server.listener._retry = True
        data = bytes(range(250)) * (size // 250) + b"x" * (size % 250)
        options = {"tickets": store, "early_data": data, **EARLY}
        async with connected(server, identities, **options) as (client, accepted):
            assert await Inbox(client.control).read(size) == data
            client.mark("connack", "CONNACK", sender="server")
            assert client.report.retry
            assert (client.report.early_data, accepted.report.early_data) == ("accepted", "accepted")
            assert seen.data == data
            assert seen.early
            if size < 1000:  # more takes more round trips, after the handshake
                assert client.report.round_trips == 2
            assert [content for _, _, content in ladder(client)][:3] == [
                ("ClientHello", "CONNECT"),
                ("Retry",),
                ("ClientHello", "CONNECT"),
            ]
        assert server.listener.retries == 1


async def test_retry_and_refusal(identities: Identities) -> None:
    async with serving(identities, early_data=True) as server:
        seen, store = Recorder(server), TicketStore()
        await remember(server, identities, store)
        server.listener._retry = True
        server.listener.admission.policy = "off"
        options = {"tickets": store, "early_data": b"hello" * 500, **EARLY}
        async with connected(server, identities, **options) as (client, _accepted):
            await Inbox(client.control).read(2500)
            client.mark("connack", "CONNACK", sender="server")
            assert (client.report.retry, client.report.early_data) == (True, "rejected")
            assert bytes(seen.data) == b"hello" * 500
            assert client.report.round_trips == 3


async def test_version_negotiation_voids_ticket_and_early_data(identities: Identities) -> None:
    """A ticket of v1 must not open a v2 connection (RFC 9369 section 5)."""
    store = TicketStore()
    async with serving(identities, early_data=True) as server:
        await remember(server, identities, store)
        port = server.listener.port
    async with serving(
        identities, early_data=True, port=port, knobs=Knobs.of(quic_version="v2", server=True)
    ) as server:
        seen = Recorder(server)
        async with connected(server, identities, tickets=store, early_data=b"hello", **EARLY) as (client, accepted):
            await Inbox(client.control).read(5)
            assert client.report.quic_version == "QUIC v2"
            assert client.report.version_negotiated
            assert (client.report.early_data, client.report.resumed) == ("rejected", False)
            assert not accepted.engine.early_data_offered
            assert seen.data == b"hello"


async def test_version_negotiation_and_then_a_retry(identities: Identities) -> None:
    """The second beginning is kept by the third: the same ClientHello, and what was written arrives once."""
    async with serving(identities, knobs=Knobs.of(quic_version="v2", server=True), retry=True) as server:
        seen = Recorder(server)
        async with connected(server, identities, early_data=b"hello" * 1000, **EARLY) as (client, _accepted):
            await Inbox(client.control).read(5000)
            assert bytes(seen.data) == b"hello" * 1000
            report = client.refresh_report()
            assert (report.quic_version, report.retry, report.version_negotiated) == ("QUIC v2", True, True)
            assert [content[0] for _, _, content in ladder(client)][:5] == [
                "ClientHello", "Version Negotiation", "ClientHello", "Retry", "ClientHello",
            ]  # fmt: skip
            hellos = [message.raw for message in client.engine.transcript if message.type == 1]
            assert len(hellos) == 2
            await settle(lambda: client.bytes_in_flight == 0)


async def test_an_upgrade_after_a_retry(identities: Identities) -> None:
    async with serving(identities, retry=True) as server:
        seen = Recorder(server)
        knobs = Knobs.of(quic_version="v1-to-v2")
        async with connected(server, identities, early_data=b"hello", knobs=knobs) as (client, accepted):
            await Inbox(client.control).read(5)
            assert seen.data == b"hello"
            assert client.report.retry
            assert client.report.quic_version == accepted.report.quic_version == "QUIC v2"


async def test_a_ticket_of_version_2(identities: Identities) -> None:
    knobs = Knobs.of(quic_version="v2")
    async with serving(identities, early_data=True) as server:
        seen, store = Recorder(server), TicketStore()
        await remember(server, identities, store, knobs=knobs)
        async with connected(server, identities, tickets=store, early_data=b"hello", knobs=knobs) as (
            client,
            _accepted,
        ):
            await Inbox(client.control).read(5)
            assert (client.report.quic_version, client.report.early_data) == ("QUIC v2", "accepted")
            assert seen.early == b"hello"


@pytest.mark.parametrize("lost", [{1}, {2}, {1, 2}, {2, 3, 4}])
async def test_loss(identities: Identities, lost: set[int]) -> None:
    """0-RTT packets that are lost come again, in whatever packets there are keys for then."""
    async with serving(identities, early_data=True) as server:
        seen, store = Recorder(server), TicketStore()
        data = bytes(range(256)) * 20
        async with LossyRelay(server.listener.addresses[0], lost_to_server=set()) as relay:
            address = Address.of("quic", *relay.address)
            await remember(server, identities, store, address=address)
        async with LossyRelay(server.listener.addresses[0], lost_to_server=lost) as relay:
            old = next(iter(store))
            one = store.take(old)
            assert one is not None
            store.put(replace(one, key=replace(old, port=relay.address[1])))
            address = Address.of("quic", *relay.address)
            options = {"tickets": store, "early_data": data, "address": address}
            async with connected(server, identities, **options) as (client, _accepted):
                assert await Inbox(client.control).read(len(data)) == data
                assert seen.data == data
                assert client.report.early_data == "accepted"


async def test_a_hostile_path(identities: Identities) -> None:
    """Dropped, doubled, reordered and corrupted datagrams: the stream arrives whole, once."""
    async with serving(identities, early_data=True) as server:
        seen, store = Recorder(server), TicketStore()
        async with LossyRelay(server.listener.addresses[0], Ills(0.1, 0.2, 0.2, 0.05), seed=11) as relay:
            address = Address.of("quic", *relay.address)
            for round_ in range(2):
                seen.data.clear()
                data = bytes([round_]) * 3000
                options = {"tickets": store, "early_data": data, "address": address}
                async with connected(server, identities, **options) as (client, _accepted):
                    assert await Inbox(client.control).read(len(data)) == data
                    assert seen.data == data
                    await settle(lambda client=client: len(client.report.tickets) == 1)  # type: ignore[misc]


# --- replays


async def replayed(server: Server, datagrams: list[bytes]) -> bytes:
    """Send a recorded first flight from another address; returns the answer."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attacker:
        attacker.setblocking(False)
        attacker.connect(server.listener.addresses[0])
        for datagram in datagrams:
            attacker.send(datagram)
        async with asyncio.timeout(HANG):
            return await loop.sock_recv(attacker, 65535)


async def record(server: Server, identities: Identities, store: TicketStore) -> list[bytes]:
    """Return the datagrams of a first flight with early data, whose connection is over."""
    async with LossyRelay(server.listener.addresses[0]) as relay:
        address = Address.of("quic", *relay.address)
        await remember(server, identities, store, address=address)
        relay.log.clear()
        async with connected(server, identities, tickets=store, early_data=b"hello", address=address) as (
            client,
            theirs,
        ):
            await Inbox(client.control).read(5)
            first = []
            for passage in relay.log:
                if not passage.to_server:
                    break
                first.append(passage.data)
        async with asyncio.timeout(HANG):
            await theirs.closed
        return first


async def test_a_replay_meets_no_ticket(identities: Identities) -> None:
    async with serving(identities, early_data=True, handshake_timeout=0.5) as server:
        seen, store = Recorder(server), TicketStore()
        first = await record(server, identities, store)
        assert seen.early == b"hello"
        for count in (1, 2):
            await replayed(server, first)
            # While it lasts, further copies are taken for its own packets, sent again.
            await settle(lambda: not server.listener.handshakes and not server.listener._farewells)
            counters = server.listener.admission.counters
            assert (counters.replays_refused, counters.early_data_accepted) == (count, 1)
        assert seen.data == b"hello"


async def test_without_protection_a_replay_is_taken(identities: Identities) -> None:
    async with serving(identities, early_data="unprotected", handshake_timeout=0.2) as server:
        seen, store = Recorder(server), TicketStore()
        first = await record(server, identities, store)
        for count in (2, 3):
            await replayed(server, first)
            await settle(lambda count=count: seen.early == b"hello" * count)  # type: ignore[misc]
            await settle(lambda: not server.listener.connections and not server.listener._farewells)
        assert server.listener.admission.counters.early_data_accepted == 3


async def test_a_replay_does_not_stay(identities: Identities) -> None:
    """Its handshake can never complete: the deadline of handshakes ends it."""
    async with serving(identities, early_data="unprotected", handshake_timeout=1.0) as server:
        Recorder(server)
        first = await record(server, identities, TicketStore())
        await settle(lambda: not server.listener.connections and not server.listener._farewells)
        await replayed(server, first)
        [connection] = server.listener.connections
        assert connection.is_early
        assert not connection.is_established
        async with asyncio.timeout(HANG):
            await connection.closed
        assert server.listener.connections == ()


async def test_an_early_connection_outlives_that_deadline(identities: Identities) -> None:
    async with serving(identities, early_data=True, handshake_timeout=0.5) as server:
        Recorder(server)
        store = TicketStore()
        await remember(server, identities, store)
        async with connected(server, identities, tickets=store, early_data=b"hello") as (client, accepted):
            await Inbox(client.control).read(5)
            await asyncio.sleep(0.6)  # longer than the deadline: that it does not fire is what is tested
            assert not accepted.is_closed


# --- one address at a time


async def test_early_data_goes_to_one_address_only(identities: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a second address tried beside the first, what is in the early data could happen twice."""
    store = TicketStore()
    async with serving(identities, "127.0.0.1", early_data=True) as server:
        seen = Recorder(server)
        port = server.listener.port
        await remember(server, identities, store)
        key = next(iter(store))
        one = store.take(key)
        assert one is not None
        named = replace(key, host="two.example", name="localhost")
        store.put(replace(one, key=named, session=replace(one.session, server_name="localhost")))

        async def two_addresses(*_: object, **__: object) -> list[Any]:
            return [(socket.AF_INET, ("127.0.0.2", port)), (socket.AF_INET, ("127.0.0.1", port))]

        monkeypatch.setattr("mqttquic_lab.quic.client.resolve", two_addresses)
        monkeypatch.setattr("mqttquic_lab.quic.client.STAGGER", 0.01)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.2", port))
            trust = replace(identities.trust, server_name="localhost")
            target = Address.of("quic", "two.example", port)
            with pytest.raises(ConnectTimeoutError, match="early data was sent, and may have been taken"):
                await open_quic(target, trust=trust, tickets=store, early_data=b"hello", timeout=0.5)
            assert seen.data == b""
            assert len(store) == 0
            # Without a ticket the other address is tried, and what was to go first goes where somebody answered.
            client = await open_quic(target, trust=trust, tickets=store, early_data=b"hello", timeout=HANG)
            await Inbox(client.control).read(5)
            assert seen.data == b"hello"
            await client.close()


async def test_a_refused_address_leads_to_the_next(identities: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TicketStore()
    async with serving(identities, "127.0.0.1", early_data=True) as server:
        seen = Recorder(server)
        await remember(server, identities, store)
        port = server.listener.port

        async def two_addresses(*_: object, **__: object) -> list[Any]:
            return [(socket.AF_INET, ("127.0.0.3", port)), (socket.AF_INET, ("127.0.0.1", port))]

        monkeypatch.setattr("mqttquic_lab.quic.client.resolve", two_addresses)
        async with connected(server, identities, tickets=store, early_data=b"hello") as (client, _accepted):
            await Inbox(client.control).read(5)
            assert client.report.early_data == "accepted"
            assert seen.data == b"hello"


# --- what the server keeps


def offer(number: int, *, age: float, early: bool = True) -> TicketOffer:
    return TicketOffer(b"ticket %d" % number, (int(age * 1000) + 12345) % (1 << 32), early)


def test_a_ticket_is_redeemed_once() -> None:
    admission = Admission(4, "protected")
    admission.issue(ticket(1).session, alpn="mqtt", version=1, now=100.0)
    good = admission.redeem(offer(1, age=5.0), alpn="mqtt", version=1, now=105.1)
    assert (good.ticket is not None, good.early_data) == (True, True)
    again = admission.redeem(offer(1, age=5.0), alpn="mqtt", version=1, now=105.2)
    assert (again.ticket, again.early_data) == (None, False)
    unknown = admission.redeem(offer(2, age=5.0), alpn="mqtt", version=1, now=105.2)
    assert (unknown.ticket, unknown.early_data) == (None, False)
    assert (admission.counters.replays_refused, admission.counters.early_data_rejected) == (1, 2)
    assert repr(admission) == "<Admission protected: 0 tickets>"


@pytest.mark.parametrize(("stated", "fresh"), [(5.0, True), (14.9, True), (0.0, True), (15.2, False), (3600.0, False)])
def test_a_stale_hello_resumes_without_early_data(stated: float, fresh: bool) -> None:
    admission = Admission(4, "protected", window=10.0)
    admission.issue(ticket(1).session, alpn="mqtt", version=1, now=100.0)
    verdict = admission.redeem(offer(1, age=stated), alpn="mqtt", version=1, now=105.0)
    assert verdict.ticket is not None
    assert verdict.early_data is fresh
    assert admission.counters.stale_refused == (not fresh)


def test_a_hello_that_was_held_back_is_stale() -> None:
    admission = Admission(4, "protected", window=10.0)
    admission.issue(ticket(1).session, alpn="mqtt", version=1, now=100.0)
    assert not admission.redeem(offer(1, age=5.0), alpn="mqtt", version=1, now=3700.0).early_data


@pytest.mark.parametrize(
    ("alpn", "version", "resumes"), [("mqtt", 1, True), ("MQTT-next", 1, True), ("mqtt", 0x6B3343CF, False)]
)
def test_early_data_is_for_one_protocol_and_a_ticket_for_one_version(alpn: str, version: int, resumes: bool) -> None:
    admission = Admission(4, "protected")
    admission.issue(ticket(1).session, alpn="mqtt", version=1, now=100.0)
    verdict = admission.redeem(offer(1, age=1.0), alpn=alpn, version=version, now=101.0)
    assert (verdict.ticket is not None) is resumes
    assert verdict.early_data is (alpn == "mqtt" and version == 1)


def test_an_expired_ticket_is_none() -> None:
    admission = Admission(4, "protected")
    admission.issue(ticket(1, age=7200.0).session, alpn="mqtt", version=1, now=100.0)
    assert admission.redeem(offer(1, age=1.0), alpn="mqtt", version=1, now=101.0).ticket is None
    assert admission.counters.early_data_rejected == 1


def test_admission_is_bounded() -> None:
    admission = Admission(2, "protected")
    for number in range(5):
        admission.issue(ticket(number).session, alpn="mqtt", version=1, now=100.0)
    assert len(admission) == 2
    for number in (3, 4):
        assert admission.redeem(offer(number, age=0.0), alpn="mqtt", version=1, now=100.0).early_data
    for number in range(10, 13):
        admission.issue(ticket(number).session, alpn="mqtt", version=1, now=100.0)
        admission.redeem(offer(number, age=0.0), alpn="mqtt", version=1, now=100.0)
    assert len(admission._used) == 2


def test_policies() -> None:
    assert early_data_policy(False, "0.0.0.0") == "off"
    assert early_data_policy(True, "0.0.0.0") == "protected"
    assert early_data_policy("protected", "::") == "protected"
    for host in ("127.0.0.1", "::1", "localhost"):
        assert early_data_policy("unprotected", host) == "unprotected"
    for host in ("0.0.0.0", "::", "", "192.0.2.1"):
        with pytest.raises(UsageError, match="only for a broker on the loopback"):
            early_data_policy("unprotected", host)
    with pytest.raises(UsageError, match="must be True, False"):
        early_data_policy("always", "127.0.0.1")  # type: ignore[arg-type]


def test_a_malformed_hello_offers_nothing() -> None:
    for raw in (b"", b"\x01\x00\x00\x00", b"\x01\x00\x00\x05hello"):
        assert ticket_offer(raw) == TicketOffer()
    assert "ticket" not in repr(offer(1, age=0.0)).replace("TicketOffer", "")


# --- the ladder


def test_what_is_void_is_named_again() -> None:
    recorder = FlightRecorder()
    recorder.content("client", "CONNECT", sent_already=False)
    recorder.message("client", 1, 0.0)
    recorder.packet("client", "initial", ["crypto"], 0.0)
    recorder.packet("client", "0RTT", ["stream"], 0.1)
    recorder.packet("server", "retry", [], 0.2)
    recorder.packet("client", "initial", ["crypto"], 0.3)
    recorder.packet("client", "0RTT", ["stream"], 0.3)
    recorder.void_early_data()
    recorder.message("client", 20, 0.5)
    recorder.packet("client", "1RTT", ["stream"], 0.5)
    recorder.packet("client", "1RTT", ["stream"], 0.6)
    contents = [flight.content for flight in recorder.flights(0.0)]
    assert contents == [("ClientHello", "CONNECT"), ("Retry",), ("ClientHello", "CONNECT"), ("Finished", "CONNECT")]


def test_time_is_utc_in_tickets() -> None:
    assert ticket().expires.tzinfo is dt.UTC
