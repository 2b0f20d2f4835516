"""Connections over real sockets for tests: recording owners, pairs of two ends, peers that misbehave."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psutil

from mqttquic_lab.net.address import Address
from mqttquic_lab.net.listen import listen
from mqttquic_lab.net.open import open_connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mqttquic_lab.net.stream import ByteStream, Connection, Listener, TransportName
    from tests.helpers.certs import Identities

HANG = 10.0
"""Seconds after which something that should happen is taken not to happen any more."""


class Owner:
    """Owns a stream: remembers what arrives on it."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.data = bytearray()
        self.chunks: list[int] = []
        self.ended = asyncio.Event()
        self.resets: list[int] = []
        self._more = asyncio.Event()
        stream.on_end = self.ended.set
        stream.on_reset = self.resets.append
        stream.on_data = self._on_data

    def _on_data(self, data: bytes) -> None:
        assert type(data) is bytes
        self.data += data
        self.chunks.append(len(data))
        self._more.set()

    async def received(self, size: int) -> bytes:
        """Wait until at least `size` bytes have arrived; returns all of them."""
        async with asyncio.timeout(HANG):
            while len(self.data) < size:
                self._more.clear()
                await self._more.wait()
        return bytes(self.data)


class Server:
    """A listener whose connections each get an :class:`Owner`."""

    def __init__(self, on_stream: Callable[[ByteStream], None] | None = None) -> None:
        self.listener: Listener
        self.connections: list[Connection] = []
        self.owners: list[Owner] = []
        self._on_stream = on_stream
        self._more = asyncio.Event()

    def accept(self, connection: Connection) -> None:
        """Be ``on_connection``."""
        self.connections.append(connection)
        connection.on_stream = self._stream
        self._more.set()

    def _stream(self, stream: ByteStream) -> None:
        if self._on_stream is not None:
            self._on_stream(stream)
        else:
            self.owners.append(Owner(stream))
        self._more.set()

    async def connected(self, count: int = 1) -> Connection:
        """Wait for the number of connections; returns the last one."""
        async with asyncio.timeout(HANG):
            while len(self.connections) < count:
                self._more.clear()
                await self._more.wait()
        return self.connections[count - 1]


@asynccontextmanager
async def serving(
    transport: TransportName,
    identities: Identities,
    *,
    host: str = "127.0.0.1",
    on_stream: Callable[[ByteStream], None] | None = None,
    **options: Any,
) -> AsyncIterator[Server]:
    """Run a listener; closes it at the end."""
    server = Server(on_stream)
    options.setdefault("identity", identities.good if transport != "tcp" else None)
    server.listener = await listen(transport, host, 0, on_connection=server.accept, **options)
    try:
        yield server
    finally:
        async with asyncio.timeout(HANG):
            await server.listener.close()


async def connect(server: Server, identities: Identities, *, host: str = "127.0.0.1", **options: Any) -> Connection:
    """Open a connection to `server`."""
    address = Address.of(server.listener.transport, host, server.listener.port)
    options.setdefault("trust", identities.trust)
    return await open_connection(address, **options)


@asynccontextmanager
async def pair(
    transport: TransportName, identities: Identities, *, host: str = "127.0.0.1", **options: Any
) -> AsyncIterator[tuple[Connection, Connection, Owner, Owner]]:
    """Yield (client, server side, client's owner, server side's owner) of one connection."""
    async with serving(transport, identities, host=host, **options) as server:
        client = await connect(server, identities, host=host)
        try:
            there = await server.connected()
            yield client, there, Owner(client.control), server.owners[0]
        finally:
            client.abort()
            await asyncio.wait([client.closed], timeout=HANG)


@asynccontextmanager
async def raw_server(handler: Callable[[socket.socket], Any]) -> AsyncIterator[int]:
    """Accept TCP connections on a free loopback port; ``await handler(sock)`` for each. Yields the port."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[Any]] = set()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)

    async def serve(sock: socket.socket) -> None:
        with sock:
            await handler(sock)

    async def accept() -> None:
        while True:
            sock, _ = await loop.sock_accept(listener)
            sock.setblocking(False)
            task = asyncio.create_task(serve(sock))
            tasks.add(task)

    acceptor = asyncio.create_task(accept())
    try:
        yield listener.getsockname()[1]
    finally:
        acceptor.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(acceptor, *tasks, return_exceptions=True)
        listener.close()


async def stay_silent(_: socket.socket) -> None:
    """Be a handler that accepts and says nothing, ever."""
    await asyncio.Event().wait()


def open_sockets() -> int:
    """Return how many files and sockets this process has open."""
    process = psutil.Process()
    return int(process.num_handles() if hasattr(process, "num_handles") else process.num_fds())


async def settle(ticks: int = 5) -> None:
    """Let the loop run what it has scheduled: asyncio closes sockets in the tick after."""
    for _ in range(ticks):
        await asyncio.sleep(0)
