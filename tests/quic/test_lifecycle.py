"""How connections live and end: close, abort, the peer's reason, idle timeout, keep-alive, PING, socket errors."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.errors import DisconnectedError, OperationTimeoutError
from mqttquic_lab.net.address import Address
from mqttquic_lab.quic.client import open_quic
from mqttquic_lab.quic.reasons import CloseInfo
from tests.helpers.lossy import LossyRelay
from tests.helpers.quic import HANG, Inbox, connected, serving, settle

if TYPE_CHECKING:
    from tests.helpers.certs import Identities


async def ended(connection: object) -> BaseException | None:
    async with asyncio.timeout(HANG):
        return await connection.closed  # type: ignore[attr-defined, no-any-return]


async def test_close_flushes_and_tells_the_peer_why(identities: Identities) -> None:
    async with serving(identities) as server, connected(server, identities) as (client, accepted):
        inbox: list[Inbox] = []
        server.on_stream = lambda stream: inbox.append(Inbox(stream))
        client.control.write(bytes(300_000))
        await client.close(0, "good bye")
        # Everything was acknowledged before CONNECTION_CLOSE left.
        assert len(inbox[0].data) == 300_000
        assert client.closed.result() is None
        assert client.is_closed
        error = await ended(accepted)
        assert isinstance(error, DisconnectedError)
        assert str(error) == "the peer closed the connection with application code 0x0: good bye"
        assert accepted.close_info == CloseInfo(0, application=True, reason="good bye", by_peer=True)
        assert client.close_info == CloseInfo(0, application=True, reason="good bye", by_peer=False)
        assert accepted.report.state == client.report.state == "closed"
        await client.close()
        client.abort()
        assert client.closed.result() is None
        assert not server.listener.connections


async def test_close_does_not_wait_for_a_peer_that_never_acknowledges(identities: Identities) -> None:
    async with serving(identities) as server, LossyRelay(server.listener.addresses[0]) as relay:
        client = await open_quic(Address.of("quic", *relay.address), trust=identities.trust)
        relay.blackhole = True
        client.control.write(b"never seen")
        async with asyncio.timeout(HANG):
            await asyncio.gather(client.close(), client.close())
        assert client.closed.result() is None


async def test_cancelling_close_still_releases(identities: Identities) -> None:
    async with serving(identities) as server, LossyRelay(server.listener.addresses[0]) as relay:
        client = await open_quic(Address.of("quic", *relay.address), trust=identities.trust)
        relay.blackhole = True
        client.control.write(b"never seen")
        closing = asyncio.ensure_future(client.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait((closing,))
        assert client.is_closed


async def test_abort_does_not_flush(identities: Identities) -> None:
    async with serving(identities) as server, connected(server, identities) as (client, accepted):
        client.abort("out of memory", error_code=2)
        assert isinstance(client.closed.result(), DisconnectedError)
        assert str(client.closed.result()) == "aborted: out of memory"
        error = await ended(accepted)
        assert str(error) == "the peer closed the connection with application code 0x2: out of memory"


async def test_data_before_the_peers_close_is_delivered_first(identities: Identities) -> None:
    async with serving(identities) as server, connected(server, identities) as (client, accepted):
        inbox = Inbox(client.control)
        client.control.write(b"?")
        stream = await server.stream()
        order: list[str] = []
        inbox.stream.on_data = lambda _: order.append("data")
        client.closed.add_done_callback(lambda _: order.append("closed"))
        stream.write(b"DISCONNECT")
        await accepted.close(0)
        await ended(client)
        await asyncio.sleep(0)
        assert order == ["data", "closed"]


async def test_reason_phrases_are_bounded_and_printable(identities: Identities) -> None:
    async with serving(identities) as server, connected(server, identities) as (client, accepted):
        client.abort("\x1b[31m" + "ä" * 4000)
        error = await ended(accepted)
        assert "\x1b" not in str(error)
        assert accepted.close_info is not None
        assert 100 < len(accepted.close_info.reason.encode()) <= 256


async def test_closing_the_listener_closes_its_connections(identities: Identities) -> None:
    async with serving(identities) as server:
        clients = [await open_quic(server.address, trust=identities.trust) for _ in range(3)]
        await server.listener.close(0, "going home")
        for client in clients:
            assert "going home" in str(await ended(client))
        await server.listener.close()
        with pytest.raises(ConnectionError):
            await open_quic(server.address, trust=identities.trust, timeout=5)


async def test_a_lost_connection_close_is_repeated(identities: Identities) -> None:
    async with serving(identities) as server, LossyRelay(server.listener.addresses[0]) as relay:
        address = Address.of("quic", *relay.address)
        async with connected(server, identities, address=address) as (client, accepted):
            await client.ping()
            relay.blackhole = True
            accepted.abort("lost words", 7)
            await asyncio.sleep(0)
            relay.blackhole = False
            client.control.write(b"anybody there?")
            assert "0x7: lost words" in str(await ended(client))


# --- time


async def test_idle_timeout(identities: Identities) -> None:
    async with serving(identities) as server, LossyRelay(server.listener.addresses[0]) as relay:
        address = Address.of("quic", *relay.address)
        async with connected(server, identities, address=address, idle_timeout=0.4) as (client, accepted):
            relay.blackhole = True
            error = await ended(client)
            assert str(error).startswith("nothing was heard from the peer for 0.4 s (QUIC idle timeout)")
            assert "idle timeout" in str(await ended(accepted))
        assert not server.listener.connections


async def test_keep_alive_keeps_a_quiet_session(identities: Identities) -> None:
    async with serving(identities) as server, connected(server, identities, idle_timeout=0.3) as (client, accepted):
        received = accepted.datagrams_received
        await asyncio.sleep(1.2)  # four idle timeouts of silence from the application
        assert not client.is_closed
        assert not accepted.is_closed
        assert accepted.datagrams_received > received + 4


async def test_without_keep_alive_a_quiet_session_ends(identities: Identities) -> None:
    async with (
        serving(identities, idle_timeout=0.3) as server,
        connected(server, identities, keep_alive=False) as (client, accepted),
    ):
        assert "for 0.3 s" in str(await ended(client))
        assert "for 0.3 s" in str(await ended(accepted))


async def test_the_shorter_idle_timeout_counts_for_keep_alive(identities: Identities) -> None:
    async with serving(identities, idle_timeout=0.3) as server, connected(server, identities) as (client, _):
        await asyncio.sleep(0.9)
        assert not client.is_closed


async def test_slow_handshakes_are_given_up(identities: Identities) -> None:
    async with (
        serving(identities, handshake_timeout=0.2) as server,
        LossyRelay(server.listener.addresses[0]) as relay,
    ):
        opening = asyncio.ensure_future(
            open_quic(Address.of("quic", *relay.address), trust=identities.trust, timeout=1)
        )
        await settle(lambda: bool(relay.to_server))
        relay.blackhole = True  # the client's second flight never arrives
        await settle(lambda: server.listener.failed == 1)
        assert server.listener.handshakes == 0
        opening.cancel()
        await asyncio.wait((opening,))
        if not opening.cancelled() and opening.exception() is None:
            opening.result().abort()


# --- PING


async def test_ping(identities: Identities) -> None:
    async with serving(identities) as server, LossyRelay(server.listener.addresses[0], delay=0.02) as relay:
        address = Address.of("quic", *relay.address)
        async with connected(server, identities, address=address) as (client, accepted):
            assert await client.ping() >= 0.039
            assert await accepted.ping() >= 0.039
            both = await asyncio.gather(client.ping(), client.ping())
            assert min(both) >= 0.039


async def test_ping_times_out_by_itself(identities: Identities) -> None:
    async with (
        serving(identities) as server,
        LossyRelay(server.listener.addresses[0]) as relay,
        connected(server, identities, address=Address.of("quic", *relay.address)) as (client, _),
    ):
        relay.blackhole = True
        with pytest.raises(OperationTimeoutError, match=r"no answer to a QUIC PING within 0\.1 s"):
            await client.ping(0.1)
        assert not client.is_closed
        relay.blackhole = False
        await client.ping()


async def test_ping_ends_with_the_connection(identities: Identities) -> None:
    async with (
        serving(identities) as server,
        LossyRelay(server.listener.addresses[0]) as relay,
        connected(server, identities, address=Address.of("quic", *relay.address)) as (client, _),
    ):
        relay.blackhole = True
        ping = asyncio.ensure_future(client.ping())
        await asyncio.sleep(0)
        client.abort("bored")
        with pytest.raises(DisconnectedError, match="bored"):
            await ping
        with pytest.raises(DisconnectedError, match="bored"):
            await client.ping()
        with pytest.raises(DisconnectedError, match="bored"):
            client.open_stream()


# --- the path


async def test_the_server_follows_a_client_behind_a_nat_that_forgets(identities: Identities) -> None:
    async with (
        serving(identities) as server,
        LossyRelay(server.listener.addresses[0]) as relay,
        connected(server, identities, address=Address.of("quic", *relay.address)) as (client, accepted),
    ):
        inbox = Inbox(client.control)
        client.control.write(b"before")
        stream = await server.stream()
        theirs = Inbox(stream)
        await theirs.read(6)
        before = accepted.peer_address
        relay.rebind()
        client.control.write(b"after")
        assert await theirs.read(5) == b"after"
        assert accepted.peer_address != before
        stream.write(bytes(100_000))
        assert await inbox.read(100_000) == bytes(100_000)
        assert accepted.refresh_report().peer_address == accepted.peer_address


# --- the socket


async def test_icmp_after_the_handshake_is_ignored(identities: Identities) -> None:
    async with serving(identities) as server, connected(server, identities) as (client, _):
        client.paths.endpoint.on_error(ConnectionRefusedError(111, "Connection refused"))
        assert not client.is_closed
        await client.ping()


async def test_a_server_that_dies_without_a_word(identities: Identities) -> None:
    """Its port answers with ICMP from now on, which an established connection does not trust."""
    async with serving(identities) as server:
        client = await open_quic(server.address, trust=identities.trust, idle_timeout=0.5)
        for endpoint in server.listener._endpoints:
            endpoint.close()
        client.control.write(b"hello?")
        assert "idle timeout" in str(await ended(client))


async def test_garbage_between_established_peers_is_ignored(identities: Identities) -> None:
    async with serving(identities) as server, connected(server, identities) as (client, _):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for size in (0, 1, 2, 20, 1200, 9000):
                for first in (0x00, 0x40, 0x80, 0xC0, 0xE0, 0xF0, 0xFF):
                    payload = bytes([first]) + b"\x00\x00\x00\x01\x08" + bytes(size)
                    stranger.sendto(payload[:size], server.listener.addresses[0])
        await client.ping()
        assert not client.is_closed
        inbox: list[Inbox] = []
        server.on_stream = lambda stream: inbox.append(Inbox(stream))
        client.control.write(b"fine")
        await settle(lambda: bool(inbox) and inbox[0].data == b"fine")
