"""A scripted broker with data streams: what came on which stream, and answers on the stream of one's choice."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from mqttquic_lab.mqtt import ConnAck, Connect, PacketDecoder, SubAck, Subscribe
from mqttquic_lab.session import AsyncSession
from tests.helpers.memory import MemoryStream, memory_pair
from tests.session.scripted import HANG, ScriptedBroker, hang

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mqttquic_lab.mqtt import Packet
    from mqttquic_lab.net.stream import ByteStream
    from mqttquic_lab.session import AsyncStream

P = TypeVar("P")


class ScriptedStream:
    """The broker's end of one data stream."""

    def __init__(self, stream: MemoryStream) -> None:
        self.stream = stream
        self.inbox: deque[Packet] = deque()
        self.ended = False
        self.reset_code: int | None = None
        self._decoder = PacketDecoder(5, receiver="server")
        self._arrived = asyncio.Event()
        stream.on_data = self._on_data
        stream.on_end = self._on_end
        stream.on_reset = self._on_reset

    def _on_data(self, data: bytes) -> None:
        self.inbox.extend(self._decoder.feed(data))
        self._arrived.set()

    def _on_end(self) -> None:
        self.ended = True
        self._arrived.set()

    def _on_reset(self, code: int) -> None:
        self.reset_code = code
        self._arrived.set()

    def send(self, *packets: Packet | bytes) -> None:
        """Send packets on this stream, all in one piece."""
        self.stream.write(b"".join(p if isinstance(p, bytes) else p.encode(5) for p in packets))

    async def expect(self, kind: type[P]) -> P:
        """Return the next packet of this stream, which must be of this kind."""
        async with asyncio.timeout(HANG):
            while not self.inbox:
                self._arrived.clear()
                await self._arrived.wait()
        packet = self.inbox.popleft()
        assert isinstance(packet, kind), f"{packet!r} came instead of {kind.__name__}"
        return packet

    async def fin(self) -> None:
        """Wait for the client's FIN, and answer it with ours as EMQX does."""
        async with asyncio.timeout(HANG):
            while not self.ended:
                self._arrived.clear()
                await self._arrived.wait()
        self.stream.end()

    async def was_reset(self) -> int:
        """Wait until the client has reset the stream; return the code."""
        async with asyncio.timeout(HANG):
            while self.reset_code is None:
                self._arrived.clear()
                await self._arrived.wait()
        return self.reset_code

    async def grant(self) -> Subscribe:
        """Take a SUBSCRIBE and grant what it asks for."""
        packet = await self.expect(Subscribe)
        self.send(SubAck(packet.packet_id, tuple(s.qos for s in packet.subscriptions)))
        return packet


class StreamsBroker(ScriptedBroker):
    """A scripted broker that takes data streams."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self.streams: dict[int, ScriptedStream] = {}
        self._opened = asyncio.Event()
        connection.on_stream = self._on_stream

    def _on_stream(self, stream: ByteStream) -> None:
        if stream is not self.connection.control:
            assert isinstance(stream, MemoryStream)
            assert stream.id is not None
            self.streams[stream.id] = ScriptedStream(stream)
            self._opened.set()

    async def stream(self, stream_id: int) -> ScriptedStream:
        """Return a stream, when the client has opened it."""
        async with asyncio.timeout(HANG):
            while stream_id not in self.streams:
                self._opened.clear()
                await self._opened.wait()
        return self.streams[stream_id]

    def open(self, *, unidirectional: bool = False) -> ScriptedStream:
        """Open a stream towards the client."""
        return ScriptedStream(self.connection.open_stream(unidirectional=unidirectional))


@asynccontextmanager
async def scripted_streams(
    connack: ConnAck | None = None, *, credit: int = 100, **options: Any
) -> AsyncIterator[tuple[AsyncSession, StreamsBroker]]:
    """Yield a connected session and its broker, which allows `credit` data streams."""
    client, server = memory_pair(transport="quic")
    client.grant(credit)
    broker = StreamsBroker(server)
    opening = asyncio.create_task(AsyncSession.over(client, **options))
    await broker.expect(Connect)
    assert not broker.streams, "data streams before CONNACK"
    broker.send(connack or ConnAck())
    session = await hang(opening)
    try:
        yield session, broker
    finally:
        await hang(session.close())


async def opened(session: AsyncSession, broker: StreamsBroker) -> tuple[AsyncStream, ScriptedStream]:
    """Open an explicit stream; return both ends."""
    stream = await hang(session.open_stream())
    return stream, await broker.stream(stream.id)
