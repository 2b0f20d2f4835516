"""Two connected in-memory transports: what net/ and quic/ offer, without sockets, certificates or packets.

Bytes written on one side arrive on the other a loop tick later, in pieces of a chosen size. Flow control is real: a
reader that pauses lets the writer's :attr:`MemoryStream.pending` grow, and :meth:`MemoryStream.drain` waits for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from mqttquic_lab.errors import DisconnectedError, LabError
from mqttquic_lab.net.stream import ByteStream, Connection, DatagramCounters
from mqttquic_lab.records.handshake import HandshakeReport
from mqttquic_lab.trace import Trace

if TYPE_CHECKING:
    from mqttquic_lab.net.stream import TransportName

HIGH_WATER = 64 * 1024
"""Bytes pending above which :meth:`MemoryStream.drain` waits."""


class MemoryStream(ByteStream):
    """One end of a stream; the other end is :attr:`peer`."""

    peer: MemoryStream

    def __init__(self, connection: MemoryConnection, stream_id: int | None) -> None:
        super().__init__()
        self.id = stream_id
        self.connection: MemoryConnection = connection
        self.written = bytearray()
        """Everything ever written here, for tests that look at the bytes."""
        self.writes = 0
        """How many calls of write() there were."""
        self.reset_code: int | None = None
        """Error code with which this side gave the stream up."""
        self.ended = False
        self._out: deque[bytes] = deque()
        self._pending = 0
        self._paused = False
        self._end_delivered = False
        self._scheduled = False
        self._drained: asyncio.Future[None] | None = None

    def write(self, data: bytes) -> None:
        if self.ended or self.reset_code is not None or self.connection.is_closed or not data:
            return
        self.writes += 1
        self.written += data
        size = self.connection.chunk
        if size:
            self._out.extend(data[start : start + size] for start in range(0, len(data), size))
        else:
            self._out.append(data)
        self._pending += len(data)
        self._schedule()

    @property
    def pending(self) -> int:
        return self._pending

    @property
    def reading_paused(self) -> bool:
        """Whether the owner of this side has paused reading."""
        return self._paused

    async def drain(self) -> None:
        while self._pending >= HIGH_WATER:
            if self.connection.is_closed:
                raise self.connection.closed.result() or DisconnectedError("closed locally")
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self.peer._schedule()

    @property
    def is_writable(self) -> bool:
        gone = self.ended or self.reset_code is not None or self.peer.reset_code is not None
        return not gone and not self.connection.is_closed

    def end(self) -> None:
        self.ended = True
        self._schedule()

    def reset(self, error_code: int = 0) -> None:
        if self.reset_code is None:
            self.reset_code = error_code
            self._out.clear()
            self._pending = 0
            peer = self.peer
            asyncio.get_running_loop().call_soon(lambda: peer.on_reset(error_code))

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        peer = self.peer
        while self._out and not peer._paused and not peer.connection.is_closed and self.reset_code is None:
            piece = self._out.popleft()
            self._pending -= len(piece)
            peer.on_data(piece)
            peer.connection._progressed()
            self.connection._progressed()  # what acknowledgements are to QUIC
        if self._drained is not None and self._pending < HIGH_WATER:
            self._drained.set_result(None)
            self._drained = None
        if not self._out and not peer._paused and not peer.connection.is_closed:
            if self.ended and not self._end_delivered:
                self._end_delivered = True
                peer.on_end()
                peer.connection._progressed()
            self.connection._flushed()

    def _wake(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
            self._drained = None


class MemoryConnection(Connection):
    """One side of :func:`memory_pair`."""

    peer: MemoryConnection
    transport: TransportName  # type: ignore[misc]  # a ClassVar there; here each pair chooses

    def __init__(self, transport: TransportName, chunk: int | None, address: tuple[str, int]) -> None:
        super().__init__()
        self.transport = transport
        self.chunk = chunk
        self.trace = Trace()
        self.report = HandshakeReport(transport=transport, state="connected")
        self.closed = asyncio.get_running_loop().create_future()
        self.close_code: int | None = None
        """Error code of our own close()."""
        self.streams: list[MemoryStream] = []
        self.next_ids = {False: 4, True: 2}
        """Direction -> id of the next stream opened here (RFC 9000 section 2.1)."""
        self._credit = {False: 100, True: 100}
        self._moved = asyncio.Event()
        self._address = address
        self._closing: asyncio.Future[None] | None = None
        self.datagram_size: int | None = None
        """Bytes of the largest datagram that the other side takes; None for a side that takes none."""
        self.datagram_counters = DatagramCounters()
        self.datagram_queue_full = False
        """Whether datagrams sent here are dropped, as when too many wait."""

    @property
    def max_datagram_size(self) -> int | None:
        return None if self.is_closed else self.datagram_size

    @property
    def datagram_frames(self) -> DatagramCounters | None:
        return self.datagram_counters if self.transport == "quic" else None

    def send_datagram(self, data: bytes) -> bool:
        """Hand a datagram to the peer, in a later tick as everything else."""
        if self.datagram_size is None or self.transport != "quic":
            return super().send_datagram(data)
        assert len(data) <= self.datagram_size
        if self.datagram_queue_full:
            self.datagram_counters.dropped += 1
            return False
        self.datagram_counters.sent += 1
        asyncio.get_running_loop().call_soon(self.peer.on_datagram, data)
        return True

    @property
    def peer_address(self) -> tuple[str, int]:
        return self.peer._address

    @property
    def local_address(self) -> tuple[str, int]:
        return self._address

    @property
    def is_closed(self) -> bool:
        return self.closed.done()

    def refresh_report(self) -> HandshakeReport:
        return self.report

    def open_stream(self, *, unidirectional: bool = False) -> MemoryStream:
        """Open a further stream towards the peer, which hears of it through ``on_stream``."""
        assert self._credit[unidirectional] > 0, "beyond what the peer allows"
        self._credit[unidirectional] -= 1
        number = self.next_ids[unidirectional]
        self.next_ids[unidirectional] = number + 4
        mine, theirs = self._pair(number)
        asyncio.get_running_loop().call_soon(lambda: self.peer.on_stream(theirs))
        return mine

    def stream_credit(self, *, unidirectional: bool = False) -> int:
        return self._credit[unidirectional]

    def grant(self, credit: int, *, unidirectional: bool = False) -> None:
        """Set how many more streams the other side lets this one open."""
        self._credit[unidirectional] = credit
        self._progressed()

    async def progress(self) -> None:
        """Wait until something has arrived, or been granted, or the end has come."""
        if not self.is_closed:
            await self._moved.wait()

    def _progressed(self) -> None:
        self._moved.set()
        self._moved.clear()

    def _pair(self, number: int | None) -> tuple[MemoryStream, MemoryStream]:
        mine, theirs = MemoryStream(self, number), MemoryStream(self.peer, number)
        mine.peer, theirs.peer = theirs, mine
        self.streams.append(mine)
        self.peer.streams.append(theirs)
        return mine, theirs

    async def close(self, error_code: int = 0, reason: str = "") -> None:
        if self.is_closed:
            return
        if self.close_code is None:
            self.close_code = error_code
        if any(stream.pending for stream in self.streams):
            self._closing = self._closing or asyncio.get_running_loop().create_future()
            await asyncio.wait([self._closing], timeout=1.0)
        self._finish(None, DisconnectedError(reason or "the peer closed the connection"))

    def abort(self, reason: str = "") -> None:
        self._finish(None, DisconnectedError(reason or "the peer aborted the connection"))

    def _flushed(self) -> None:
        idle = not any(stream.pending for stream in self.streams)
        if idle and self._closing is not None and not self._closing.done():
            self._closing.set_result(None)

    def _finish(self, mine: LabError | None, theirs: LabError | None) -> None:
        for side, result in ((self, mine), (self.peer, theirs)):
            if not side.closed.done():
                side.closed.set_result(result)
            side._progressed()
            for stream in side.streams:
                stream._wake()


def memory_pair(
    *, chunk: int | None = None, transport: TransportName = "tcp"
) -> tuple[MemoryConnection, MemoryConnection]:
    """Return two connected sides, client first.

    Parameters
    ----------
    chunk : int, optional
        Largest number of bytes handed over in one piece; None leaves writes as they are.
    transport : {"tcp", "tls", "quic"}
        What the connections claim to be; ``"quic"`` numbers its control stream 0 and can open more.
    """
    client = MemoryConnection(transport, chunk, ("192.0.2.1", 50000))
    server = MemoryConnection(transport, chunk, ("192.0.2.2", 14567))
    client.peer, server.peer = server, client
    server.next_ids = {False: 1, True: 3}
    client.control, server.control = client._pair(0 if transport == "quic" else None)
    asyncio.get_running_loop().call_soon(lambda: server.on_stream(server.control))
    return client, server
