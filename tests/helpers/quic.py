"""What the QUIC tests share: a listener that echoes or records, and a way to wait for bytes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, cast

from mqttquic_lab.net.address import Address
from mqttquic_lab.quic.client import open_quic
from mqttquic_lab.quic.server import QuicListener, listen_quic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mqttquic_lab.net.stream import ByteStream, Connection
    from mqttquic_lab.quic.connection import QuicConnection
    from mqttquic_lab.quic.stream import QuicStream
    from tests.helpers.certs import Identities

HANG = 20.0
"""Seconds after which a wait in a test counts as a hang; no test depends on how long things take."""


class Inbox:
    """Collects what a stream delivers, and lets a test wait for it."""

    def __init__(self, stream: ByteStream) -> None:
        self.data = bytearray()
        self.chunks = 0
        self.ended = False
        self.reset_code: int | None = None
        self._changed = asyncio.Event()
        self.stream = stream
        stream.on_data = self._on_data
        stream.on_end = self._on_end
        stream.on_reset = self._on_reset

    def _on_data(self, data: bytes) -> None:
        self.data += data
        self.chunks += 1
        self._changed.set()

    def _on_end(self) -> None:
        self.ended = True
        self._changed.set()

    def _on_reset(self, error_code: int) -> None:
        self.reset_code = error_code
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(HANG):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def read(self, size: int) -> bytes:
        """Wait for `size` bytes and take them."""
        await self.until(lambda: len(self.data) >= size)
        data = bytes(self.data[:size])
        del self.data[:size]
        return data


class Server:
    """A listener whose connections and streams a test can wait for."""

    def __init__(self) -> None:
        self.listener: QuicListener
        self.connections: asyncio.Queue[QuicConnection] = asyncio.Queue()
        self.streams: asyncio.Queue[QuicStream] = asyncio.Queue()
        self.on_stream: Callable[[QuicStream], None] = self.streams.put_nowait

    def accept(self, connection: Connection) -> None:
        connection.on_stream = self._stream
        self.connections.put_nowait(cast("QuicConnection", connection))

    def _stream(self, stream: ByteStream) -> None:
        self.on_stream(cast("QuicStream", stream))

    @property
    def address(self) -> Address:
        return Address.of("quic", self.listener.host, self.listener.port)

    async def connection(self) -> QuicConnection:
        async with asyncio.timeout(HANG):
            return await self.connections.get()

    async def stream(self) -> QuicStream:
        async with asyncio.timeout(HANG):
            return await self.streams.get()


def echo(stream: ByteStream) -> None:
    """Write back whatever comes."""
    stream.on_data = stream.write
    stream.on_end = stream.end


@contextlib.asynccontextmanager
async def serving(
    identities: Identities, host: str = "127.0.0.1", *, port: int = 0, **options: Any
) -> AsyncIterator[Server]:
    """Run a listener for the duration of a test; closes it afterwards."""
    server = Server()
    identity = options.pop("identity", identities.good)
    server.listener = await listen_quic(host, port, identity=identity, on_connection=server.accept, **options)
    try:
        yield server
    finally:
        await server.listener.close()


@contextlib.asynccontextmanager
async def connected(
    server: Server, identities: Identities, **options: Any
) -> AsyncIterator[tuple[QuicConnection, QuicConnection]]:
    """Connect to a server; yields our end and the server's, closes ours afterwards."""
    options.setdefault("trust", identities.trust)
    address = options.pop("address", server.address)
    client = await open_quic(address, **options)
    try:
        yield client, await server.connection()
    finally:
        await client.close()


async def settle(condition: Callable[[], bool]) -> None:
    """Let the loop run until something that has no event of its own is true."""
    async with asyncio.timeout(HANG):
        while not condition():
            await asyncio.sleep(0.002)
