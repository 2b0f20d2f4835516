"""The listener: routing, limits, Retry, version negotiation, resumption, 0-RTT, and strangers' bytes."""

from __future__ import annotations

import asyncio
import random
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicProtocolVersion

from mqttquic_lab.errors import HandshakeError, PortInUseError, UsageError
from mqttquic_lab.net.address import Address
from mqttquic_lab.net.certificates import Trust
from mqttquic_lab.net.stream import Listener
from mqttquic_lab.quic import client as client_module
from mqttquic_lab.quic.client import open_quic
from mqttquic_lab.quic.server import listen_quic
from mqttquic_lab.quic.tickets import TicketStore
from tests.helpers.lossy import LossyRelay
from tests.helpers.quic import HANG, Inbox, connected, echo, serving, settle

if TYPE_CHECKING:
    from mqttquic_lab.net.stream import Connection
    from tests.helpers.certs import Identities


def ignore(_: Connection) -> None:
    pass


async def test_what_a_listener_tells(identities: Identities) -> None:
    async with serving(identities) as server:
        listener = server.listener
        assert isinstance(listener, Listener)
        assert listener.transport == "quic"
        assert listener.host == "127.0.0.1"
        assert listener.addresses == (("127.0.0.1", listener.port),)
        async with connected(server, identities) as (_, accepted):
            assert listener.connections == (accepted,)
            assert repr(listener) == f"<QuicListener 127.0.0.1:{listener.port} 1 connections>"
            assert repr(accepted) == "<QuicConnection server established>"
        await settle(lambda: listener.connections == ())
        assert listener.accepted == 1


async def test_port_in_use(identities: Identities) -> None:
    async with serving(identities) as server:
        with pytest.raises(PortInUseError, match="in use: choose another one"):
            await listen_quic("127.0.0.1", server.listener.port, identity=identities.good, on_connection=ignore)


@pytest.mark.parametrize(
    ("host", "words"),
    [("192.0.2.1", "cannot listen on 192.0.2.1:0"), ("no-such-host.invalid", "does not resolve")],
)
async def test_hosts_that_are_not_ours(identities: Identities, host: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        await listen_quic(host, 0, identity=identities.good, on_connection=ignore)


async def test_many_clients_on_one_port(identities: Identities) -> None:
    async with serving(identities) as server:
        server.on_stream = echo

        async def client(number: int) -> bytes:
            connection = await open_quic(server.address, trust=identities.trust)
            inbox = Inbox(connection.control)
            connection.control.write(b"%02d" % number)
            answer = await inbox.read(2)
            await connection.close()
            return answer

        answers = await asyncio.gather(*(client(number) for number in range(20)))
        assert answers == [b"%02d" % number for number in range(20)]
        await settle(lambda: not server.listener.connections)
        assert not server.listener._routes
        assert not server.listener._handshakes


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.77", "::1"])
async def test_on_every_interface(identities: Identities, host: str) -> None:
    """Replies leave from the address that was asked, else a connected socket would not take them."""
    if host == "127.0.0.77" and not sys.platform.startswith("linux"):
        pytest.skip("only Linux has all of 127.0.0.0/8 on its loopback")
    async with serving(identities, "") as server:
        server.on_stream = echo
        address = Address.of("quic", host, server.listener.port)
        trust = Trust(ca_data=identities.authority.pem, server_name="localhost")
        async with connected(server, identities, address=address, trust=trust) as (client, accepted):
            assert client.peer_address == accepted.local_address == (host, server.listener.port)
            assert accepted.peer_address == client.local_address
            inbox = Inbox(client.control)
            client.control.write(bytes(50_000))
            assert await inbox.read(50_000) == bytes(50_000)


# --- limits


async def initials(count: int) -> list[bytes]:
    """Return first packets of `count` clients that will never go on."""
    packets: list[bytes] = []
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        for _ in range(count):
            opening = asyncio.ensure_future(
                open_quic(Address.of("quic", *sock.getsockname()), trust=Trust(verify=False), timeout=HANG)
            )
            packets.append(await loop.sock_recv(sock, 65535))
            opening.cancel()
            await asyncio.wait((opening,))
            await loop.sock_recv(sock, 65535)  # its CONNECTION_CLOSE
    return packets


async def test_handshakes_that_pile_up_cost_a_retry_and_then_have_to_wait(identities: Identities) -> None:
    packets = await initials(6)
    async with serving(identities, max_handshakes=4, handshake_timeout=1.0) as server:
        listener = server.listener
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for packet in packets:
                stranger.sendto(packet, listener.addresses[0])
            # Three are taken; from then on more than half of the room is used, and proof of the address is wanted.
            await settle(lambda: listener.handshakes == 3 and listener.retries == 3)
            async with connected(server, identities) as (client, accepted):
                assert client.report.retry
                assert accepted.report.retry
            listener._retry = False
            for packet in await initials(3):
                stranger.sendto(packet, listener.addresses[0])
            await settle(lambda: listener.handshakes == 4 and listener.deferred == 2)
            # A real client repeats its first packet until the strangers' time is up.
            async with connected(server, identities):
                assert listener.deferred > 2
                assert listener.failed >= 3


# --- Retry and version negotiation


async def test_retry(identities: Identities) -> None:
    async with serving(identities, retry=True) as server:
        server.on_stream = echo
        async with (
            LossyRelay(server.listener.addresses[0]) as relay,
            connected(server, identities, address=Address.of("quic", *relay.address)) as (client, accepted),
        ):
            inbox = Inbox(client.control)
            client.control.write(b"after a retry")
            assert await inbox.read(13) == b"after a retry"
            assert server.listener.retries == 1
            assert client.report.retry
            assert accepted.report.retry
            content = [flight.content for flight in client.refresh_report().flights]
            assert content[:3] == [("ClientHello",), ("Retry",), ("ClientHello",)]
            assert content[3][0] == "ServerHello"
            # RFC 9000 section 17.2.5.3: the ClientHello after the Retry is the one before it.
            hellos = {m.raw for m in client.engine.transcript if m.type == 1}
            assert len(hellos) == 1
            assert [m.raw for m in accepted.engine.transcript if m.type == 1] == list(hellos)
            await settle(lambda: client.bytes_in_flight == 0)


async def test_a_forged_retry_token_is_dropped(identities: Identities) -> None:
    async with serving(identities, retry=True) as server:
        genuine = server.listener._tokens
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(genuine, "validate_token", _refuse)
            opening = asyncio.ensure_future(open_quic(server.address, trust=identities.trust, timeout=0.5))
            await settle(lambda: server.listener.retries >= 1)
            with pytest.raises(TimeoutError):
                await opening
        assert server.listener.handshakes == 0


def _refuse(**_: Any) -> bytes:
    raise ValueError("Token is invalid.")


async def test_version_negotiation(identities: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    class OldClient(QuicConfiguration):
        """Begins with a version that nobody speaks (reserved by RFC 9000 section 15)."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.supported_versions = [0x1A2A3A4A, QuicProtocolVersion.VERSION_2]

    async with serving(identities) as server:
        monkeypatch.setattr(client_module, "QuicConfiguration", OldClient)
        async with connected(server, identities) as (client, accepted):
            assert server.listener.version_negotiations == 1
            assert client.report.version_negotiated
            assert client.report.quic_version == accepted.report.quic_version == "QUIC v2"
            content = [flight.content for flight in client.refresh_report().flights]
            assert content[1] == ("Version Negotiation",)


async def test_no_common_version(identities: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(identities) as server:
        server.listener._versions = [0x1A2A3A4A]
        with pytest.raises(HandshakeError, match="Could not find a common protocol version"):
            await open_quic(server.address, trust=identities.trust)


async def test_small_packets_of_unknown_versions_get_no_answer(identities: Identities) -> None:
    async with serving(identities) as server:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.setblocking(False)
            header = b"\xc0\x1a\x2a\x3a\x4a\x08" + bytes(8) + b"\x08" + bytes(8)
            stranger.sendto(header + bytes(100), server.listener.addresses[0])
            stranger.sendto(header.replace(b"\x1a", b"\x2a", 1) + bytes(1300), server.listener.addresses[0])
            answer = await loop.sock_recv(stranger, 65535)
            assert answer[1:5] == bytes(4)
            assert server.listener.version_negotiations == 1
            with pytest.raises(BlockingIOError):
                stranger.recv(65535)


# --- resumption and 0-RTT


async def connect_twice(identities: Identities, server: Any, store: TicketStore, **second: Any) -> Any:
    async with connected(server, identities, tickets=store) as (first, accepted):
        first.control.write(b"x")
        await Inbox(first.control).read(1)
        await settle(lambda: len(first.report.tickets) == 1)
        assert not first.report.resumed
        assert not accepted.report.resumed
        ticket = first.report.tickets[0]
        assert ticket.lifetime == 86400
    assert len(store) == 1
    return ticket


async def test_resumption(identities: Identities) -> None:
    async with serving(identities) as server:
        server.on_stream = echo
        store = TicketStore()
        ticket = await connect_twice(identities, server, store)
        assert ticket.max_early_data == 0
        async with connected(server, identities, tickets=store) as (client, accepted):
            assert client.report.resumed
            assert accepted.report.resumed
            assert client.refresh_report().verification == "resumed"
            assert client.refresh_report().certificates == ()
            assert client.report.early_data == "not offered"


async def test_a_ticket_serves_only_the_trust_it_was_obtained_with(identities: Identities) -> None:
    async with serving(identities) as server:
        server.on_stream = echo
        store = TicketStore()
        async with connected(server, identities, tickets=store, trust=Trust(verify=False)) as (first, _):
            await settle(lambda: len(store) == 1)
            assert first.refresh_report().verification == "off"
        async with connected(server, identities, tickets=store) as (second, _):
            assert not second.report.resumed
            assert second.refresh_report().verification == "verified"


async def test_tickets_are_single_use_and_bounded(identities: Identities) -> None:
    async with serving(identities, max_tickets=2) as server:
        store = TicketStore(capacity=1)
        for _ in range(4):
            async with connected(server, identities) as (client, _accepted):
                await settle(lambda client=client: len(client.report.tickets) == 1)  # type: ignore[misc]
        assert len(server.listener.admission) == 2
        assert repr(store) == "<TicketStore of 0>"
    async with (
        serving(identities, max_tickets=0) as server,
        connected(server, identities, tickets=store) as (client, _accepted),
    ):
        await client.ping()
        assert client.report.tickets == ()


async def test_early_data_accepted(identities: Identities) -> None:
    async with serving(identities, early_data=True) as server:
        server.on_stream = echo
        store = TicketStore()
        ticket = await connect_twice(identities, server, store)
        assert ticket.max_early_data == 0xFFFFFFFF
        async with connected(server, identities, tickets=store, early_data=b"CONNECT") as (client, accepted):
            client.mark("connect_sent", "CONNECT")
            assert await Inbox(client.control).read(7) == b"CONNECT"
            client.mark("connack", "CONNACK", sender="server")
            report = client.refresh_report()
            assert report.early_data == accepted.report.early_data == "accepted"
            assert report.flights[0].packets == ("Initial", "0-RTT")
            assert report.round_trips == 1


async def test_early_data_is_sent_later_when_there_is_no_ticket(identities: Identities) -> None:
    async with serving(identities, early_data=True) as server:
        server.on_stream = echo
        async with connected(server, identities, tickets=TicketStore(), early_data=b"CONNECT") as (client, _):
            assert await Inbox(client.control).read(7) == b"CONNECT"
            assert client.report.early_data == "not offered"


async def test_early_data_rejected_is_sent_again(identities: Identities) -> None:
    async with serving(identities, early_data=True) as server:
        server.on_stream = echo
        store = TicketStore()
        await connect_twice(identities, server, store)
        server.listener.admission.policy = "off"
        async with connected(server, identities, tickets=store, early_data=b"CONNECT") as (client, _):
            assert await Inbox(client.control).read(7) == b"CONNECT"
            assert client.report.early_data == "rejected"
            assert client.report.resumed


async def test_early_data_survives_a_retry(identities: Identities) -> None:
    """aioquic by itself loses what it sent in 0-RTT packets before the Retry."""
    async with serving(identities, early_data=True) as server:
        server.on_stream = echo
        store = TicketStore()
        await connect_twice(identities, server, store)
        server.listener._retry = True
        async with connected(server, identities, tickets=store, early_data=b"CONNECT" * 300) as (client, accepted):
            assert await Inbox(client.control).read(2100) == b"CONNECT" * 300
            assert client.report.retry
            assert client.report.early_data == accepted.report.early_data == "accepted"
            await settle(lambda: client.bytes_in_flight == 0)


async def test_early_data_off_means_none_in_the_ticket_and_none_offered(identities: Identities) -> None:
    async with serving(identities, early_data=True) as server:
        server.on_stream = echo
        store = TicketStore()
        await connect_twice(identities, server, store)
        async with connected(server, identities, tickets=store) as (client, accepted):
            assert client.report.resumed
            assert client.report.early_data == "not offered"
            assert not accepted.engine.early_data_offered


# --- strangers


async def test_random_bytes_leave_nothing_behind(identities: Identities) -> None:
    rng = random.Random(3)
    async with serving(identities, handshake_timeout=0.1) as server:
        listener = server.listener
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for _ in range(300):
                size = rng.choice((1, 5, 21, 40, 1200, 1400))
                data = rng.randbytes(size)
                if rng.random() < 0.7:  # plausible Initial packets of known versions
                    data = bytes([0xC0 | data[0] & 0x0F]) + b"\x00\x00\x00\x01\x08" + data[6:]
                stranger.sendto(data, listener.addresses[0])
        async with connected(server, identities) as (client, _):
            await client.ping()
        await settle(lambda: not listener._connections)
        assert not listener._routes


async def test_mutated_first_packets(identities: Identities) -> None:
    rng = random.Random(4)
    [packet] = await initials(1)
    async with serving(identities, handshake_timeout=0.1) as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for _ in range(100):
                mutated = bytearray(packet)
                for _ in range(rng.randrange(1, 4)):
                    mutated[rng.randrange(len(mutated))] = rng.randrange(256)
                stranger.sendto(bytes(mutated), server.listener.addresses[0])
        async with connected(server, identities) as (client, _):
            await client.ping()
        await settle(lambda: not server.listener._connections)


async def test_a_trace_for_the_listener(identities: Identities) -> None:
    from mqttquic_lab.trace import Trace

    trace = Trace(detail=True)
    async with serving(identities, trace=trace) as server, connected(server, identities) as (_, accepted):
        assert accepted.trace is trace
        assert accepted.refresh_report().flights[0].content == ("ClientHello",)
    names = {event.name for event in trace}
    assert {"packet_sent", "packet_received", "connection_closed"} <= names
