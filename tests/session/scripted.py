"""A broker that does only what a test wrote, at the other end of an in-memory connection."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from mqttquic_lab.mqtt import ConnAck, Connect, PacketDecoder, PingReq, PingResp, SubAck, Subscribe
from mqttquic_lab.session import AsyncSession
from tests.helpers.memory import memory_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from mqttquic_lab.mqtt import Packet, Version
    from mqttquic_lab.net.stream import TransportName
    from mqttquic_lab.session import AsyncFeed
    from tests.helpers.memory import MemoryConnection

P = TypeVar("P")
T = TypeVar("T")

HANG = 10.0
"""Seconds after which something that should happen is taken not to happen any more."""


class ScriptedBroker:
    """The server's end of one connection, packet by packet."""

    def __init__(self, connection: MemoryConnection, version: Version = 5) -> None:
        self.connection = connection
        self.version = version
        self.inbox: deque[Packet] = deque()
        self.ended = asyncio.Event()
        self._decoder = PacketDecoder(version, receiver="server")
        self._arrived = asyncio.Event()
        connection.control.on_data = self._on_data
        connection.control.on_end = self._on_end
        connection.closed.add_done_callback(lambda _: self._on_end())

    def _on_data(self, data: bytes) -> None:
        self.inbox.extend(self._decoder.feed(data))
        self._arrived.set()

    def _on_end(self) -> None:
        self.ended.set()
        self._arrived.set()

    def send(self, *packets: Packet | bytes) -> None:
        """Send packets, all in one piece."""
        self.connection.control.write(b"".join(p if isinstance(p, bytes) else p.encode(self.version) for p in packets))

    async def next(self) -> Packet:
        """Return the next packet, whatever it is."""
        async with asyncio.timeout(HANG):
            while not self.inbox:
                assert not self.ended.is_set(), "the session closed the connection"
                self._arrived.clear()
                await self._arrived.wait()
        return self.inbox.popleft()

    async def expect(self, kind: type[P]) -> P:
        """Return the next packet, which must be of this kind."""
        packet = await self.next()
        assert isinstance(packet, kind), f"{packet!r} came instead of {kind.__name__}"
        return packet

    async def closed(self) -> list[Packet]:
        """Wait until the session has closed; return what it sent before."""
        async with asyncio.timeout(HANG):
            await self.ended.wait()
        packets = list(self.inbox)
        self.inbox.clear()
        return packets

    async def sync(self, session: AsyncSession) -> list[Packet]:
        """Return what the session had sent by the time it pings: how to see that nothing came."""
        ping = asyncio.create_task(session.ping())
        packets: list[Packet] = []
        while not isinstance(packet := await self.next(), PingReq):
            packets.append(packet)
        self.send(PingResp())
        await ping
        return packets

    async def grant(self, *codes: int) -> Subscribe:
        """Take a SUBSCRIBE and grant it; without codes, what it asks for."""
        packet = await self.expect(Subscribe)
        granted = codes or tuple(subscription.qos for subscription in packet.subscriptions)
        self.send(SubAck(packet.packet_id, granted))
        return packet


@asynccontextmanager
async def scripted(
    connack: ConnAck | None = None,
    *,
    version: Version = 5,
    transport: TransportName = "quic",
    chunk: int | None = None,
    **options: Any,
) -> AsyncIterator[tuple[AsyncSession, ScriptedBroker]]:
    """Yield a connected session and its broker; the session is closed at the end."""
    client, server = memory_pair(transport=transport, chunk=chunk)
    broker = ScriptedBroker(server, version)
    options.setdefault("version", "5.0" if version == 5 else "3.1.1")
    opening = asyncio.create_task(AsyncSession.over(client, **options))
    await broker.expect(Connect)
    broker.send(connack or ConnAck())
    session = await hang(opening)
    try:
        yield session, broker
    finally:
        await hang(session.close())


async def subscribed(session: AsyncSession, broker: ScriptedBroker, *args: Any, **options: Any) -> AsyncFeed:
    """Subscribe, with the broker granting what is asked for."""
    asking = asyncio.create_task(session.subscribe(*args, **options))
    await broker.grant()
    return await hang(asking)


async def hang(work: Awaitable[T]) -> T:
    """Await something that must not take long."""
    async with asyncio.timeout(HANG):
        return await work
