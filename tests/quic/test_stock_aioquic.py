"""Against aioquic as it comes, which has its own endpoint, timers, windows and ClientHello."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration

from mqttquic_lab.net.address import Address
from mqttquic_lab.quic.client import open_quic
from mqttquic_lab.quic.tickets import TicketStore
from tests.helpers.quic import HANG, Inbox, echo, serving, settle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.helpers.certs import Identities

SIZE = 500_000

pytestmark = pytest.mark.matrix(peer="aioquic")


@pytest.mark.matrix("single stream", "handshake", ours="broker", note="0.5 MB echoed")
async def test_their_client(identities: Identities) -> None:
    async with serving(identities) as server:
        server.on_stream = echo
        configuration = QuicConfiguration(
            is_client=True, alpn_protocols=["mqtt"], cadata=identities.authority.pem, server_name="localhost"
        )
        async with connect("127.0.0.1", server.listener.port, configuration=configuration) as client:
            reader, writer = await client.create_stream()
            writer.write(bytes(SIZE))
            writer.write_eof()
            async with asyncio.timeout(HANG):
                assert await reader.read() == bytes(SIZE)
            [accepted] = server.listener.connections
            assert accepted.report.key_exchange_group == "SECP256R1"  # what they offer first
        await settle(lambda: not server.listener.connections)


class Echo(QuicConnectionProtocol):
    """Their server: echoes each stream."""

    def quic_event_received(self, event: Any) -> None:
        if type(event).__name__ == "StreamDataReceived":
            self._quic.send_stream_data(event.stream_id, event.data, event.end_stream)
            self.transmit()


@contextlib.asynccontextmanager
async def their_server(identities: Identities, **options: Any) -> AsyncIterator[int]:
    configuration = QuicConfiguration(
        is_client=False,
        alpn_protocols=["mqtt"],
        certificate=identities.with_intermediate.certificate,
        certificate_chain=list(identities.with_intermediate.chain),
        private_key=identities.with_intermediate.private_key,
    )
    server = await serve("127.0.0.1", 0, configuration=configuration, create_protocol=Echo, **options)
    try:
        yield server._transport.get_extra_info("sockname")[1]  # type: ignore[union-attr]
    finally:
        server.close()


@pytest.mark.matrix("migration", "rebinding", ours="client")
async def test_their_server_lets_us_move(identities: Identities) -> None:
    async with their_server(identities) as port:
        client = await open_quic(Address.of("quic", "127.0.0.1", port), trust=identities.trust)
        inbox = Inbox(client.control)
        for move in (client.migrate("127.0.0.2"), client.rebind(), client.migrate("127.0.0.1")):
            client.control.write(bytes(SIZE))
            result = await move
            assert result.new_local == client.local_address
            assert await inbox.read(SIZE) == bytes(SIZE)
        await client.close(0, "done")


@pytest.mark.parametrize("retry", [False, True])
@pytest.mark.matrix("single stream", "handshake", ours="client", note="with and without Retry")
async def test_their_server(identities: Identities, retry: bool) -> None:
    async with their_server(identities, retry=retry) as port:
        client = await open_quic(Address.of("quic", "127.0.0.1", port), trust=identities.trust)
        inbox = Inbox(client.control)
        client.control.write(bytes(SIZE))
        client.control.end()
        assert await inbox.read(SIZE) == bytes(SIZE)
        await inbox.until(lambda: inbox.ended)
        assert client.report.retry is retry
        assert len(client.refresh_report().verified_chain) == 3
        await client.close(0, "done")


class Tickets:
    """Their server's store."""

    def __init__(self) -> None:
        self.known: dict[bytes, Any] = {}
        self.forgets = False

    def add(self, ticket: Any) -> None:
        self.known[ticket.ticket] = ticket

    def pop(self, label: bytes) -> Any:
        return None if self.forgets else self.known.pop(label, None)


@pytest.mark.parametrize("retry", [False, True])
@pytest.mark.matrix("0-RTT", "resumption", ours="client")
async def test_early_data_to_their_server(
    identities: Identities, retry: bool, record_property: Callable[[str, object], None]
) -> None:
    theirs, store = Tickets(), TicketStore()
    options = {"session_ticket_fetcher": theirs.pop, "session_ticket_handler": theirs.add, "retry": retry}
    async with their_server(identities, **options) as port:
        address = Address.of("quic", "127.0.0.1", port)
        for expected in ("not offered", "accepted", "rejected"):
            theirs.forgets = expected == "rejected"
            client = await open_quic(address, trust=identities.trust, tickets=store, early_data=b"hello" * 1000)
            assert await Inbox(client.control).read(5000) == b"hello" * 1000
            assert (client.report.early_data, client.report.retry) == (expected, retry)
            known = "with a ticket that it has forgotten" if theirs.forgets else "with one of its tickets"
            if expected != "not offered":
                record_property("matrix 0-RTT", f"{expected} {known}{' and a Retry' * retry}")
            await settle(lambda client=client: bool(client.report.tickets))  # type: ignore[misc]
            await client.close()


@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.matrix("0-RTT", "resumption", ours="broker")
async def test_early_data_of_their_client(identities: Identities, taken: bool) -> None:
    async with serving(identities, early_data=True) as server:
        server.on_stream = echo
        tickets: list[Any] = []
        configuration = QuicConfiguration(
            is_client=True, alpn_protocols=["mqtt"], cadata=identities.authority.pem, server_name="localhost"
        )
        where = ("127.0.0.1", server.listener.port)
        async with connect(*where, configuration=configuration, session_ticket_handler=tickets.append) as client:
            await settle(lambda: bool(tickets))
        if not taken:
            server.listener.admission.policy = "off"
        configuration.session_ticket = tickets[0]
        async with connect(*where, configuration=configuration, wait_connected=False) as client:
            reader, writer = await client.create_stream()
            writer.write(b"hello")
            writer.write_eof()
            async with asyncio.timeout(HANG):
                assert await reader.read() == b"hello"
        counters = server.listener.admission.counters
        assert (counters.early_data_accepted, counters.early_data_rejected) == (taken, not taken)
