"""Accepting connections over any transport; the listeners for TCP and TLS."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from mqttquic_lab.errors import LabError, PortInUseError, UsageError
from mqttquic_lab.net.address import host_port
from mqttquic_lab.net.stream import Connection, Listener, TransportName
from mqttquic_lab.net.tcp import TcpConnection
from mqttquic_lab.net.tls import HANDSHAKE_TIMEOUT, TlsConnection
from mqttquic_lab.records.handshake import HandshakeReport
from mqttquic_lab.trace import Trace

if TYPE_CHECKING:
    import ssl
    from collections.abc import Collection, Mapping, Sequence

    from mqttquic_lab.net.address import SocketAddress
    from mqttquic_lab.net.certificates import ServerIdentity

OnConnection = Callable[[Connection], None]

MAX_CONNECTIONS = 1000
"""Connections at a time by default, those in the handshake included."""

_BACKLOG = 512
"""Connections that the kernel holds until the loop accepts them; a burst of reconnecting clients fits in."""

_TRACE_CAPACITY = 256
"""Events that each accepted connection's own trace keeps."""

_PORT_ATTEMPTS = 20


async def listen(
    transport: TransportName,
    host: str,
    port: int,
    *,
    identity: ServerIdentity | None = None,
    on_connection: OnConnection,
    alpn: Sequence[str] = ("mqtt",),
    tuning: str = "realistic",
    max_connections: int = MAX_CONNECTIONS,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
    ssl_context: ssl.SSLContext | None = None,
    quic_options: Mapping[str, Any] | None = None,
    trace: Trace | None = None,
) -> Listener:
    """Listen for connections.

    Parameters
    ----------
    transport : {"quic", "tls", "tcp"}
        What to accept.
    host : str
        Address or name to listen on; over TCP and TLS of a name all its addresses. ``"::"`` and ``""`` are every
        interface, with IPv6 and IPv4.
    port : int
        UDP port (QUIC) or TCP port; 0 takes a free one.
    identity : ServerIdentity, optional
        Certificate and key; needed for QUIC, and for TLS without `ssl_context`.
    on_connection : callable(Connection)
        Called when a handshake is complete. It assigns ``on_stream``, which is called with each stream of the peer's;
        over TCP and TLS at once, with the only one.
    alpn : sequence of str
        Application protocols to accept, best first.
    tuning : {"realistic", "loopback"}
        Tuning of QUIC.
    max_connections : int
        Connections at a time; further ones are closed at once and counted in ``refused``.
    handshake_timeout : float
        Seconds that a TLS or QUIC handshake may take.
    ssl_context : ssl.SSLContext, optional
        TLS: a server context to use as it is, instead of `identity` and `alpn`.
    quic_options : mapping, optional
        QUIC: further arguments of :func:`mqttquic_lab.quic.server.listen_quic`, such as ``retry`` and ``limits``.
    trace : Trace, optional
        One trace for all connections; by default each has a small one of its own.

    Raises
    ------
    PortInUseError
        Something listens there already.
    UsageError
        The host is not an address of this machine, the port is not allowed, or there is no identity.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"port {port} is not in 0..65535 (0 takes a free one)")
    if max_connections < 1:
        raise UsageError(f"max_connections={max_connections} lets nobody in: give at least 1")
    if transport == "quic":
        if identity is None:
            raise UsageError("a QUIC listener needs identity=: issue one with CertificateAuthority.create().issue()")
        # Here, because aioquic costs a tenth of a second to import and plain MQTT does not need it.
        from mqttquic_lab.quic.server import listen_quic

        return await listen_quic(
            host,
            port,
            identity=identity,
            on_connection=on_connection,
            alpn=alpn,
            tuning=tuning,
            max_connections=max_connections,
            handshake_timeout=handshake_timeout,
            trace=trace,
            **(quic_options or {}),
        )
    if transport == "tls":
        if ssl_context is None:
            if identity is None:
                raise UsageError("a TLS listener needs identity=: issue one with CertificateAuthority.create().issue()")
            ssl_context = identity.ssl_context(alpn)
    elif transport == "tcp":
        ssl_context = None
    else:
        raise UsageError(f"unknown transport {transport!r}: use 'quic', 'tls' or 'tcp'")
    listener = TcpListener(
        transport,
        host,
        on_connection=on_connection,
        max_connections=max_connections,
        handshake_timeout=handshake_timeout,
        ssl_context=ssl_context,
        trace=trace,
    )
    await listener.start(port)
    return listener


async def listen_usual(transport: TransportName, host: str, port: int | None, usual: int, **options: Any) -> Listener:
    """Listen on `port`; None takes the usual one if it is free and any free one else. See :func:`listen`."""
    if port is not None:
        return await listen(transport, host, port, **options)
    try:
        return await listen(transport, host, usual, **options)
    except PortInUseError:
        return await listen(transport, host, 0, **options)


class TcpListener(Listener):
    """Accepts TCP or TLS connections; made by :func:`listen`."""

    def __init__(
        self,
        transport: TransportName,
        host: str,
        *,
        on_connection: OnConnection,
        max_connections: int,
        handshake_timeout: float,
        ssl_context: ssl.SSLContext | None,
        trace: Trace | None,
    ) -> None:
        self.transport = transport
        self.host = host
        self.port = 0
        self._on_connection = on_connection
        self._max_connections = max_connections
        self._handshake_timeout = handshake_timeout
        self._ssl_context = ssl_context
        self._trace = trace
        self._servers: list[asyncio.Server] = []
        self._alive: set[TcpConnection] = set()
        self._established: dict[TcpConnection, None] = {}
        self._closing = False

    def __repr__(self) -> str:
        return f"<TcpListener {self.transport} {host_port(self.host, self.port)} {len(self._alive)} connections>"

    @property
    def connections(self) -> Collection[Connection]:
        """Connections established and not yet closed, oldest first."""
        return tuple(self._established)

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """The addresses really bound."""
        names = (sock.getsockname() for server in self._servers for sock in server.sockets)
        return tuple((name[0], name[1]) for name in names)

    async def start(self, port: int) -> None:
        """Bind and listen."""
        loop = asyncio.get_running_loop()
        sockets = await _bind(self.host, port)
        self.port = sockets[0].getsockname()[1]
        try:
            while sockets:
                self._servers.append(await loop.create_server(self._accept, sock=sockets[0], backlog=_BACKLOG))
                del sockets[0]
        except BaseException:
            for sock in sockets:
                sock.close()
            for server in self._servers:
                server.close()
            raise

    def _accept(self) -> asyncio.Protocol:
        if self._closing or len(self._alive) >= self._max_connections:
            self.refused += 1
            return _Refusal()
        report = HandshakeReport()
        trace = self._trace if self._trace is not None else Trace(_TRACE_CAPACITY)
        connection: TcpConnection
        if self._ssl_context is None:
            connection = TcpConnection(report=report, trace=trace, ready=self._ready)
        else:
            connection = TlsConnection(
                report=report,
                trace=trace,
                ready=self._ready,
                context=self._ssl_context,
                server_side=True,
                handshake_timeout=self._handshake_timeout,
            )
        connection.server_side = True
        self._alive.add(connection)
        connection.closed.add_done_callback(lambda _: self._forget(connection))
        return connection

    def _ready(self, connection: TcpConnection, error: LabError | None) -> None:
        if error is not None:
            self.failed += 1
            return
        self._established[connection] = None
        try:
            self._on_connection(connection)
            connection.on_stream(connection.control)
        except Exception as failure:  # noqa: BLE001 - the owner's bug ends this connection, not the listener
            connection.callback_failed("on_connection", failure)

    def _forget(self, connection: TcpConnection) -> None:
        self._alive.discard(connection)
        self._established.pop(connection, None)

    async def close(self) -> None:
        """Stop listening, close every connection in order (bounded) and wait until all are gone. Safe to repeat."""
        self._closing = True
        for server in self._servers:
            server.close()
        # close() of a connection aborts one that is still in its handshake.
        await asyncio.gather(*(connection.close() for connection in tuple(self._alive)))


class _Refusal(asyncio.Protocol):
    """What a connection gets when there are too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


async def _bind(host: str, port: int) -> list[socket.socket]:
    """Return a bound socket for every address of `host`, all with the same port."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise UsageError(f"cannot listen on {host!r}: the name does not resolve ({error.strerror})") from error
    addresses: dict[tuple[socket.AddressFamily, SocketAddress], None] = {}
    for family, _, _, _, address in found:
        addresses[family, cast("SocketAddress", address)] = None
    for _ in range(_PORT_ATTEMPTS):
        try:
            return _bind_all(list(addresses), host, port)
        except PortInUseError:
            # Port 0 gave a port for the first address that is taken on another one.
            if port or len(addresses) == 1:
                raise
    raise PortInUseError(f"found no port that is free on every address of {host!r}")


def _bind_all(addresses: list[tuple[socket.AddressFamily, SocketAddress]], host: str, port: int) -> list[socket.socket]:
    bound: list[socket.socket] = []
    missing: list[OSError] = []
    try:
        for family, address in addresses:
            number = bound[0].getsockname()[1] if bound else port
            try:
                bound.append(_bind_one(family, (address[0], number, *address[2:]), alone=len(addresses) == 1))
            except OSError as error:
                if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                    raise
                # "localhost" may name ::1 on a machine without IPv6; one address is enough.
                missing.append(error)
        if not bound:
            raise missing[0]
    except OSError as error:
        for sock in bound:
            sock.close()
        where = host_port(host, port)
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"TCP port {port} of {host!r} is in use: choose another one, or 0 for a free one"
            ) from error
        if error.errno == errno.EACCES:
            raise UsageError(f"not allowed to listen on {where}: ports below 1024 need privileges") from error
        raise UsageError(f"cannot listen on {where}: {error.strerror or error}") from error
    return bound


def _bind_one(family: socket.AddressFamily, address: tuple[str | int, ...], *, alone: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":
            # Lets a broker that was restarted have its port back while old connections are in TIME-WAIT. On Windows
            # the same option would let two programs share a port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # "::" alone means IPv4 too; beside other addresses each family has its own socket.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address[0] == "::" and alone else 1)
        sock.setblocking(False)
        sock.bind(address)
        # A bound port is not yet taken: two sockets with SO_REUSEADDR may bind it, and only one may listen.
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
