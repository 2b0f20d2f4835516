"""A client that sends and receives single packets: nothing happens that a test did not write."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar, cast

from mqttquic_lab.mqtt import (
    ConnAck,
    Connect,
    Disconnect,
    PacketDecoder,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    Subscription,
    UnsubAck,
    Unsubscribe,
)
from mqttquic_lab.mqtt.flow_header import FlowHeaderDecoder

if TYPE_CHECKING:
    from mqttquic_lab.mqtt import Packet, Version, Will
    from mqttquic_lab.mqtt.flow_header import FlowHeader
    from mqttquic_lab.net.stream import ByteStream, Connection

P = TypeVar("P")

PATIENCE = 10.0
"""Seconds after which a packet that does not come fails the test."""


class Peer:
    """One stream of a connection to the broker, packet by packet.

    Parameters
    ----------
    connection : Connection
        The client's side.
    version : {4, 5}
        Protocol level.
    stream : ByteStream, optional
        Another stream than the control stream.
    """

    def __init__(self, connection: Connection, version: Version = 5, stream: ByteStream | None = None) -> None:
        self.connection = connection
        self.stream = connection.control if stream is None else stream
        self.version = version
        self.inbox: deque[Packet] = deque()
        self.ended = asyncio.Event()
        """Set when the broker has ended the stream or the connection."""
        self.reset_code: int | None = None
        """Error code with which the broker reset the stream."""
        self.opened: asyncio.Queue[Peer] = asyncio.Queue()
        """Streams that the broker opened."""
        self.header: FlowHeader | None = None
        """The flow header with which a stream that the broker opened began, if there was one."""
        self._header_decoder = FlowHeaderDecoder(required=False)
        self._decoder = PacketDecoder(version, receiver="client")
        self._arrived = asyncio.Event()
        self.stream.on_data = self._on_data
        self.stream.on_end = self._on_end
        self.stream.on_reset = self._on_reset
        if stream is None:
            connection.on_stream = lambda other: self.opened.put_nowait(Peer(connection, version, other))
        connection.closed.add_done_callback(lambda _: self._on_end())

    def open(self, *, unidirectional: bool = False) -> Peer:
        """Open a further stream."""
        connection = cast("Any", self.connection)
        return Peer(self.connection, self.version, connection.open_stream(unidirectional=unidirectional))

    async def was_opened(self) -> Peer:
        """Wait for a stream that the broker opens."""
        async with asyncio.timeout(PATIENCE):
            return await self.opened.get()

    async def was_reset(self) -> int | None:
        """Wait for the end of the stream; return the error code, None if it was FIN."""
        await self.closed()
        return self.reset_code

    async def send_and_reset(self, packet: Packet | bytes) -> int | None:
        """Send something that makes the broker reset the stream; return the error code."""
        self.send(packet)
        return await self.was_reset()

    def _on_data(self, data: bytes) -> None:
        if not self._header_decoder.done:
            self.header = self._header_decoder.feed(data)
            data = self._header_decoder.rest
        self.inbox.extend(self._decoder.feed(data))
        self._arrived.set()

    def _on_reset(self, error_code: int) -> None:
        self.reset_code = error_code
        self._on_end()

    def _on_end(self) -> None:
        self.ended.set()
        self._arrived.set()

    def send(self, packet: Packet | bytes) -> None:
        self.stream.write(packet if isinstance(packet, bytes) else packet.encode(self.version))

    async def next(self) -> Packet:
        """Return the next packet, whatever it is."""
        async with asyncio.timeout(PATIENCE):
            while not self.inbox:
                assert not self.ended.is_set(), "the broker closed the connection"
                self._arrived.clear()
                await self._arrived.wait()
        return self.inbox.popleft()

    async def expect(self, kind: type[P]) -> P:
        """Return the next packet, which must be of this kind."""
        packet = await self.next()
        assert isinstance(packet, kind), f"{packet!r} came instead of {kind.__name__}"
        return packet

    async def closed(self) -> list[Packet]:
        """Wait until the broker has closed; return what it sent before."""
        async with asyncio.timeout(PATIENCE):
            await self.ended.wait()
        packets = list(self.inbox)
        self.inbox.clear()
        return packets

    async def sync(self) -> list[Packet]:
        """Return what the broker had sent by the time it answers a ping: how to see that nothing came."""
        self.send(PingReq())
        packets: list[Packet] = []
        while not isinstance(packet := await self.next(), PingResp):
            packets.append(packet)
        return packets

    async def connect(
        self,
        client_id: str = "",
        *,
        clean_start: bool = True,
        keepalive: int = 0,
        username: str | None = None,
        password: bytes | None = None,
        will: Will | None = None,
        **properties: Any,
    ) -> ConnAck:
        self.send(Connect(client_id, self.version, clean_start, keepalive, username, password, will, properties))
        return await self.expect(ConnAck)

    async def subscribe(
        self,
        *filters: str,
        qos: int = 0,
        no_local: bool = False,
        retain_as_published: bool = False,
        retain_handling: int = 0,
        packet_id: int = 9,
        **properties: Any,
    ) -> list[int]:
        subscriptions = tuple(Subscription(f, qos, no_local, retain_as_published, retain_handling) for f in filters)
        self.send(Subscribe(packet_id, subscriptions, properties))
        answer = await self.expect(SubAck)
        assert answer.packet_id == packet_id
        return list(answer.reason_codes)

    async def unsubscribe(self, *filters: str, packet_id: int = 8) -> list[int]:
        self.send(Unsubscribe(packet_id, filters, {}))
        answer = await self.expect(UnsubAck)
        assert answer.packet_id == packet_id
        return list(answer.reason_codes)

    async def publish(
        self,
        topic: str,
        payload: bytes = b"",
        qos: int = 0,
        *,
        retain: bool = False,
        packet_id: int = 1,
        **properties: Any,
    ) -> int:
        """Publish and complete the exchange; at QoS 0 wait for a ping instead. Returns the reason code."""
        self.send(Publish(topic, payload, qos, retain, False, packet_id if qos else None, properties))
        if qos == 0:
            assert await self.sync() == []
            return 0
        if qos == 1:
            return (await self.expect(PubAck)).reason_code
        received = await self.expect(PubRec)
        if received.reason_code < 0x80:
            self.send(PubRel(packet_id, 0, {}))
            assert (await self.expect(PubComp)).packet_id == packet_id
        return received.reason_code

    async def message(self, *, acknowledge: bool = True) -> Publish:
        """Return the next PUBLISH, completing its exchange."""
        packet = await self.expect(Publish)
        if acknowledge and packet.qos == 1:
            assert packet.packet_id is not None
            self.send(PubAck(packet.packet_id, 0, {}))
        elif acknowledge and packet.qos == 2:
            assert packet.packet_id is not None
            self.send(PubRec(packet.packet_id, 0, {}))
            assert (await self.expect(PubRel)).packet_id == packet.packet_id
            self.send(PubComp(packet.packet_id, 0, {}))
        return packet

    async def leave(self, reason_code: int = 0, **properties: Any) -> None:
        """Say DISCONNECT and wait for the end."""
        self.send(Disconnect(reason_code, properties))
        await self.closed()

    async def vanish(self) -> None:
        """Break off without DISCONNECT."""
        self.connection.abort()
        await self.closed()
