"""Opening and listening: several addresses of a name, cancelling at every stage, ports, limits, what is refused."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.errors import (
    ConnectTimeoutError,
    HandshakeError,
    LabError,
    PortInUseError,
    UnreachableError,
    UsageError,
)
from mqttquic_lab.net import dial as dialling
from mqttquic_lab.net.address import Address
from mqttquic_lab.net.certificates import Trust
from mqttquic_lab.net.listen import listen
from mqttquic_lab.net.open import open_connection
from tests.helpers.sockets import HANG, Owner, connect, open_sockets, raw_server, serving, settle, stay_silent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.helpers.certs import Identities

BOTH = pytest.mark.parametrize("transport", ["tcp", "tls"])
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's loopback and backlog")


@pytest.fixture
def black_hole() -> Iterator[int]:
    """A port of 127.0.0.1 that does not answer SYN: its listener's backlog is full (Linux drops further ones)."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = []
        for _ in range(8):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
            fillers.append(filler)
        try:
            yield port
        finally:
            for filler in fillers:
                filler.close()


def names(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    """Make every name resolve to these addresses, in this order."""

    async def resolve(*_: object, **__: object) -> Any:
        return [(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, port)) for host, port in addresses]

    monkeypatch.setattr(dialling, "resolve", resolve)


# --- connecting


async def test_the_next_address_is_tried_when_one_refuses(
    identities: Identities, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving("tcp", identities) as server:
        names(monkeypatch, ("127.0.0.1", free_port), ("127.0.0.1", server.listener.port))
        before = open_sockets()
        client = await open_connection(Address.of("tcp", "two.example", 1), trust=Trust())
        assert client.peer_address == ("127.0.0.1", server.listener.port)
        await client.close()
        await settle()
        assert open_sockets() <= before + 1  # the server's end may still be there


@linux
async def test_the_next_address_is_tried_beside_a_silent_one(
    identities: Identities, black_hole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving("tcp", identities) as server:
        names(monkeypatch, ("127.0.0.1", black_hole), ("127.0.0.1", server.listener.port))
        before = open_sockets()
        client = await open_connection(Address.of("tcp", "two.example", 1), trust=Trust(), timeout=HANG)
        assert client.peer_address == ("127.0.0.1", server.listener.port)
        assert client.report.timings["tcp_connected"] < dialling.STAGGER, "counted from its own SYN"
        there = await server.connected()
        await client.close()
        await asyncio.wait([there.closed], timeout=HANG)
        await settle()
        assert open_sockets() <= before, "the attempt that was given up is closed"


async def test_a_refusal_says_more_than_a_missing_route(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = dialling._attempt

    async def no_ipv6(family: socket.AddressFamily, *rest: Any) -> Any:
        if family == socket.AF_INET6:
            raise OSError(errno.ENETUNREACH, "Network is unreachable")
        return await attempt(family, *rest)

    monkeypatch.setattr(dialling, "_attempt", no_ipv6)
    names(monkeypatch, ("2001:db8::1", free_port), ("127.0.0.1", free_port))
    with pytest.raises(UnreachableError, match="connection refused"):
        await open_connection(Address.of("tcp", "two.example", free_port), trust=Trust())
    names(monkeypatch, ("2001:db8::1", free_port))
    with pytest.raises(UnreachableError, match=r"there is no way to two\.example"):
        await open_connection(Address.of("tcp", "two.example", free_port), trust=Trust())


@BOTH
async def test_local_address(transport: Any, identities: Identities) -> None:
    async with serving(transport, identities) as server:
        client = await connect(server, identities, local_address=("127.0.0.1", 0))
        assert client.local_address[0] == "127.0.0.1"
        await client.close()
        with pytest.raises(UsageError, match="is IPv6, but"):
            await connect(server, identities, local_address=("::1", 0))
        with pytest.raises(UsageError, match="takes an IP address"):
            await connect(server, identities, local_address=("localhost", 0))
        with pytest.raises(UsageError, match="cannot connect from"):
            await connect(server, identities, local_address=("192.0.2.1", 0))


@BOTH
@pytest.mark.parametrize("timeout", [0, -1])
async def test_no_time_to_connect(transport: Any, timeout: float) -> None:
    with pytest.raises(UsageError, match="no time to connect"):
        await open_connection(Address.of(transport, "127.0.0.1", 1), trust=Trust(), timeout=timeout)


async def cancel_while_opening(address: Address, identities: Identities, when: asyncio.Event | None) -> None:
    """Cancel open_connection when `when` is set, or after each number of loop ticks up to twenty."""
    for ticks in range(20) if when is None else range(1):
        task = asyncio.create_task(open_connection(address, trust=identities.trust))
        if when is not None:
            async with asyncio.timeout(HANG):
                await when.wait()
        else:
            await settle(ticks)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=HANG)
        assert done, "cancelling takes effect at once"
        if not task.cancelled():
            await task.result().close()


@BOTH
async def test_cancelling_at_any_tick_leaves_no_socket(transport: Any, identities: Identities) -> None:
    async with serving(transport, identities) as server:
        await cancel_while_opening(Address.of(transport, "127.0.0.1", server.listener.port), identities, None)
        for connection in tuple(server.connections):
            Owner(connection.control)
        await settle(50)
        before = open_sockets()
        await cancel_while_opening(Address.of(transport, "127.0.0.1", server.listener.port), identities, None)
        for connection in tuple(server.connections):
            await asyncio.wait([connection.closed], timeout=HANG)
        await settle(50)
        assert open_sockets() <= before


@linux
@BOTH
async def test_cancelling_while_nobody_answers(transport: Any, black_hole: int, identities: Identities) -> None:
    before = open_sockets()
    await cancel_while_opening(Address.of(transport, "127.0.0.1", black_hole), identities, None)
    await settle()
    assert open_sockets() == before


async def test_cancelling_in_the_tls_handshake(identities: Identities) -> None:
    hello = asyncio.Event()

    async def handler(sock: socket.socket) -> None:
        assert await asyncio.get_running_loop().sock_recv(sock, 1) == b"\x16"
        hello.set()
        await stay_silent(sock)

    async with raw_server(handler) as port:
        before = open_sockets()
        await cancel_while_opening(Address.of("tls", "127.0.0.1", port), identities, hello)
        await settle()
        assert open_sockets() == before + 1, "only the server's end is left"


@BOTH
async def test_a_cancelled_caller_in_a_timeout_of_its_own(transport: Any, identities: Identities) -> None:
    """wait_for around it, as a session does, gets its TimeoutError and not one of ours."""
    async with raw_server(stay_silent) as port:
        if transport == "tls":
            with pytest.raises(TimeoutError) as caught:
                await asyncio.wait_for(
                    open_connection(Address.of("tls", "127.0.0.1", port), trust=identities.trust), 0.05
                )
            assert not isinstance(caught.value, LabError)
        else:
            client = await asyncio.wait_for(open_connection(Address.of("tcp", "127.0.0.1", port), trust=Trust()), HANG)
            client.abort()
            await asyncio.wait([client.closed])


# --- listening


@BOTH
async def test_port_in_use(transport: Any, identities: Identities) -> None:
    async with serving(transport, identities) as server:
        with pytest.raises(PortInUseError, match=f"TCP port {server.listener.port} .* is in use: choose another"):
            await listen(
                transport, "127.0.0.1", server.listener.port, identity=identities.good, on_connection=lambda _: None
            )
        port = server.listener.port
    again = await listen(transport, "127.0.0.1", port, identity=identities.good, on_connection=lambda _: None)
    assert again.port == port, "a closed listener's port is free at once"
    await again.close()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"transport": "tls"}, "needs identity="),
        ({"transport": "quic"}, "needs identity="),
        ({"transport": "udp"}, "use 'quic', 'tls' or 'tcp'"),
        ({"port": 65536}, r"not in 0\.\.65535"),
        ({"port": -1}, r"not in 0\.\.65535"),
        ({"host": "192.0.2.1"}, "cannot listen on 192"),
        ({"host": "nosuch.invalid"}, "does not resolve"),
        ({"max_connections": 0}, "at least 1"),
    ],
)
async def test_refused_listeners_name_the_fix(options: dict[str, Any], expected: str) -> None:
    arguments = {"transport": "tcp", "host": "127.0.0.1", "port": 0, **options}
    before = open_sockets()
    with pytest.raises(UsageError, match=expected):
        await listen(on_connection=lambda _: None, **arguments)
    assert open_sockets() == before


@pytest.mark.parametrize("host", ["", "::", "localhost", "0.0.0.0"])
async def test_every_address_of_a_listener_has_the_same_port(host: str, identities: Identities) -> None:
    try:
        server_context = serving("tcp", identities, host=host)
        async with server_context as server:
            addresses = server.listener.addresses  # type: ignore[attr-defined]
            assert {port for _, port in addresses} == {server.listener.port}
            assert server.listener.port > 0
            for target in [name for name, _ in addresses if name in {"127.0.0.1", "::1"}] or ["127.0.0.1"]:
                client = await connect(server, identities, host=target)
                await client.close()
    except UsageError:
        assert host == "::", "only a machine without IPv6 cannot listen there"


async def test_a_port_that_is_free_on_one_address_only(identities: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    """Port 0 of a name with two addresses: the port found for the first may be taken on the second."""
    from mqttquic_lab.net import listen as listening

    bind_one = listening._bind_one
    calls: list[Any] = []

    def unlucky(family: Any, address: Any, **options: Any) -> Any:
        calls.append(address)
        if len(calls) == 2:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        return bind_one(family, address, **options)

    async def two_addresses(*_: object, **__: object) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("127.0.0.1", "127.0.0.2")]

    monkeypatch.setattr(listening, "_bind_one", unlucky)
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", two_addresses)
    if sys.platform == "darwin":
        pytest.skip("127.0.0.2 is not an address here")
    async with serving("tcp", identities, host="two.example") as server:
        assert len(server.listener.addresses) == 2  # type: ignore[attr-defined]
    assert len(calls) == 4


@pytest.fixture
async def mute_client(identities: Identities) -> AsyncIterator[tuple[Any, socket.socket]]:
    """A TLS listener with a short handshake timeout, and a client that has connected and says nothing."""
    async with serving("tls", identities, handshake_timeout=0.2) as server:
        with socket.socket() as sock:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", server.listener.port))
            yield server, sock


async def test_a_client_that_never_speaks_is_dropped(
    mute_client: tuple[Any, socket.socket], identities: Identities
) -> None:
    server, sock = mute_client
    async with asyncio.timeout(HANG):
        assert await asyncio.get_running_loop().sock_recv(sock, 1) == b"", "dropped"
    assert server.listener.failed == 1
    assert server.connections == []
    client = await connect(server, identities)
    await server.connected()
    await client.close()


async def test_closing_a_listener_does_not_wait_for_handshakes(identities: Identities) -> None:
    async with serving("tls", identities) as server:
        with socket.socket() as sock:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", server.listener.port))
            async with asyncio.timeout(HANG):
                while not server.listener._alive:  # type: ignore[attr-defined]
                    await asyncio.sleep(0)
            async with asyncio.timeout(1.0):
                await server.listener.close()
            assert server.listener.failed == 1


async def test_garbage_from_a_client_fails_its_handshake_only(identities: Identities) -> None:
    async with serving("tls", identities) as server:
        with socket.socket() as sock:
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, ("127.0.0.1", server.listener.port))
            await loop.sock_sendall(sock, b"\x10\x0c\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x00")  # CONNECT, unencrypted
            async with asyncio.timeout(HANG):
                answer = await loop.sock_recv(sock, 100)
                assert answer == b"" or answer[0] == 21, "an alert, or nothing"
                while not server.listener.failed:
                    await asyncio.sleep(0)
        client = await connect(server, identities)
        await client.close()


async def test_timeouts_are_the_right_class(identities: Identities) -> None:
    assert issubclass(ConnectTimeoutError, TimeoutError)
    async with raw_server(stay_silent) as port:
        before = open_sockets()
        with pytest.raises(ConnectTimeoutError, match=r"did not finish the TLS handshake within 0\.1 s"):
            await open_connection(Address.of("tls", "127.0.0.1", port), trust=identities.trust, timeout=0.1)
        await settle()
        assert open_sockets() <= before + 1
    with pytest.raises(HandshakeError):
        async with raw_server(_hang_up) as port:
            await open_connection(Address.of("tls", "127.0.0.1", port), trust=identities.trust)


async def _hang_up(_: socket.socket) -> None:
    """Accept and close at once."""
