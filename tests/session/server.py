"""A listener on a TCP port that says what a test tells it to: for sessions that connect again and again."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from mqttquic_lab.mqtt import ConnAck, Connect, PacketDecoder, PubAck
from mqttquic_lab.session import AsyncSession

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mqttquic_lab.mqtt import Packet, Publish

P = TypeVar("P")


class ScriptedServer:
    """Takes one connection after the other; the newest is the one that is spoken on."""

    def __init__(self) -> None:
        self.port = 0
        self._connections: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._decoder = PacketDecoder(5, receiver="server")
        self._packets: list[Any] = []

    async def took(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take note of a connection."""
        self._writers.append(writer)
        self._connections.put_nowait((reader, writer))

    async def accept(self, **options: Any) -> AsyncSession:
        """Return a session that is connected here."""
        opening = asyncio.create_task(AsyncSession.open(f"mqtt://127.0.0.1:{self.port}", **options))
        await self.connected()
        await self.expect(Connect)
        self.send(ConnAck())
        return await opening

    async def connected(self) -> None:
        """Wait for the next connection, and speak on that."""
        self._reader, self._writer = await self._connections.get()
        self._decoder = PacketDecoder(5, receiver="server")
        self._packets = []

    async def expect(self, kind: type[P]) -> P:
        """Return the next packet, which must be of this kind."""
        while not self._packets:
            data = await self._reader.read(65_536)
            assert data, f"the session closed the connection instead of sending {kind.__name__}"
            self._packets += self._decoder.feed(data)
        packet = self._packets.pop(0)
        assert isinstance(packet, kind), f"{packet!r} came instead of {kind.__name__}"
        return packet

    def send(self, *packets: Packet | bytes) -> None:
        """Send packets, all in one piece."""
        self._writer.write(b"".join(p if isinstance(p, bytes) else p.encode(5) for p in packets))

    def refuse(self, packet: Publish, code: int) -> None:
        """Answer a QoS 1 message with a failure."""
        self.send(PubAck(packet.packet_id or 0, code))

    def drop(self) -> None:
        """Cut the connection."""
        self._writer.transport.abort()

    def close(self) -> None:
        """Cut all of them."""
        for writer in self._writers:
            writer.transport.abort()


@asynccontextmanager
async def scripted_server() -> AsyncIterator[ScriptedServer]:
    """Yield a listener on a free port."""
    scripted = ScriptedServer()
    server = await asyncio.start_server(scripted.took, "127.0.0.1", 0)
    scripted.port = server.sockets[0].getsockname()[1]
    async with server:
        try:
            yield scripted
        finally:
            scripted.close()
