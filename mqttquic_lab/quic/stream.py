"""One QUIC stream as the MQTT floor sees it.

Writes are gathered here and given to the engine once per loop tick, so that many small messages share a packet.
Received bytes wait here while nobody wants them - the owner paused, or has not assigned :attr:`QuicStream.on_data`
yet - and count against flow control until they are taken.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from mqttquic_lab.errors import DisconnectedError, UsageError
from mqttquic_lab.net.stream import DEFAULT_URGENCY, ByteStream, _ignore, check_urgency

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttquic_lab.quic.connection import QuicConnection
    from mqttquic_lab.quic.table import StreamTable

HIGH_WATER = 1024 * 1024
"""Bytes written and not acknowledged above which :meth:`QuicStream.drain` waits."""


class QuicStream(ByteStream):
    """A bidirectional or unidirectional QUIC stream (RFC 9000 section 2).

    Made by :meth:`QuicConnection.open_stream` or when the peer opens one. Bytes that arrive before
    :attr:`on_data` is assigned are kept, not lost.

    Parameters
    ----------
    connection : QuicConnection
        The connection it belongs to.
    table : StreamTable
        That connection's streams.
    stream_id : int
        RFC 9000 section 2.1: bit 0 tells who opened it, bit 1 whether it is unidirectional.
    opened : bool
        Whether the engine knows the stream already.
    """

    id: int
    connection: QuicConnection

    def __init__(self, connection: QuicConnection, table: StreamTable, stream_id: int, *, opened: bool) -> None:
        self._held: deque[bytes] = deque()
        self._held_size = 0
        self._paused = False
        self._delivering = False
        self._peer_ended = False
        self._end_told = False
        self._reset_code: int | None = None
        self._reset_told = False
        self._chunks: list[bytes] = []
        self._queued = 0
        self._fin = False
        self._fin_sent = False
        self._discarding = False
        self._urgency = DEFAULT_URGENCY
        self.id = stream_id
        self.connection = connection
        self._table = table
        self.opened = opened
        ours = (stream_id & 1) == (0 if connection.role == "client" else 1)
        unidirectional = bool(stream_id & 2)
        self.readable = not (unidirectional and ours)
        self.sends = self._writable = not (unidirectional and not ours)
        super().__init__()

    def __repr__(self) -> str:
        return f"<QuicStream {self.id}>"

    # --- callbacks

    @property
    def on_data(self) -> Callable[[bytes], None]:
        """Called with bytes as they arrive, in order."""
        return self._on_data

    @on_data.setter
    def on_data(self, handler: Callable[[bytes], None]) -> None:
        self._on_data = handler
        self._claimed = handler is not _ignore
        self._schedule_delivery()

    @property
    def on_end(self) -> Callable[[], None]:
        """Called once when the peer has sent everything (FIN)."""
        return self._on_end

    @on_end.setter
    def on_end(self, handler: Callable[[], None]) -> None:
        self._on_end = handler
        self._schedule_delivery()

    @property
    def on_reset(self) -> Callable[[int], None]:
        """Called with the peer's error code on RESET_STREAM or STOP_SENDING."""
        return self._on_reset

    @on_reset.setter
    def on_reset(self, handler: Callable[[int], None]) -> None:
        self._on_reset = handler
        self._schedule_delivery()

    # --- sending

    def write(self, data: bytes) -> None:
        """Queue bytes; small writes of one loop tick leave together. Never blocks. No-op once closed."""
        if not data or not self._writable:
            return
        chunks = self._chunks
        if not chunks:
            self._table.mark_dirty(self)
        chunks.append(data)
        self._queued += len(data)
        self.connection.written(len(data))

    @property
    def is_writable(self) -> bool:
        """Whether the sending side is open: neither ended, nor reset, nor stopped by the peer."""
        return self._writable

    @property
    def unsent(self) -> int:
        """Bytes written and not yet given to the engine."""
        return self._queued

    @property
    def pending(self) -> int:
        """Bytes written and not yet acknowledged by the peer."""
        return self._queued + self._table.unacknowledged(self.id)

    @property
    def urgency(self) -> int:
        """Whose data goes before this stream's: that of streams with a smaller number; see :meth:`prioritize`."""
        return self._urgency

    def prioritize(self, urgency: int) -> None:
        """Let this stream's data leave before, or after, that of others (RFC 9218 sections 4.1 and 10).

        Streams of the smallest urgency that have something to send fill the next packet; those of one urgency take
        turns, a packet's worth each. So that nobody waits for ever, streams that were passed over in 32 packets running
        get the next one. Data that was lost goes with its stream's other data.

        This is the order in which this side sends. The peer is not told: MQTT has nothing to tell it with, and orders
        its own packets as it likes.

        Parameters
        ----------
        urgency : int
            0 (first) to 7 (last); a stream that was never told has 3.

        Raises
        ------
        UsageError
            Not such a number.
        """
        self._urgency = check_urgency(urgency)
        self._table.set_urgency(self.id, urgency)

    async def drain(self) -> None:
        """Wait until :attr:`pending` is at most :data:`HIGH_WATER`; raises the close reason if the end came first."""
        connection = self.connection
        while not connection.is_closed and self.pending > HIGH_WATER:
            await connection.progress()
        if connection.is_closed:
            raise connection.closed.result() or DisconnectedError("the connection is closed")

    def end(self) -> None:
        """Send FIN after what was written. Safe to repeat."""
        if self._writable:
            self._writable = False
            self._fin = True
            self._table.mark_dirty(self)
            self.connection.written(0)

    def reset(self, error_code: int = 0) -> None:
        """Abort both directions: RESET_STREAM and STOP_SENDING with this application error code. Safe to repeat."""
        if not 0 <= error_code < 1 << 62:
            raise UsageError(f"a QUIC application error code is an integer from 0 to 2**62 - 1, not {error_code}")
        if self._discarding:
            return
        self._discarding = True
        self._drop_unsent()
        self._take_held()
        self._table.reset(self, error_code)

    def _drop_unsent(self) -> None:
        self._writable = False
        self._chunks.clear()
        self._queued = 0
        self._fin = False

    def take_unsent(self) -> tuple[bytes, bool] | None:
        """Hand what was written since the last call, and whether FIN follows, to the connection."""
        if not self._chunks and not self._fin:
            return None
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        fin, self._fin = self._fin, False
        self._fin_sent = self._fin_sent or fin
        self._chunks.clear()
        self._queued = 0
        return data, fin

    def sending_over(self) -> None:
        """Note that the engine takes no more data for this stream."""
        self._drop_unsent()

    # --- receiving

    def pause_reading(self) -> None:
        """Stop :attr:`on_data`; what arrives is kept, and flow control stops the peer at a window of it."""
        self._paused = True

    def resume_reading(self) -> None:
        """Undo :meth:`pause_reading`; what was kept is delivered in the next loop tick."""
        if self._paused:
            self._paused = False
            self._schedule_delivery()

    @property
    def held(self) -> int:
        """Bytes that arrived and were not taken."""
        return self._held_size

    @property
    def finished(self) -> bool:
        """Whether both directions are over, as far as this side knows."""
        received = not self.readable or self._peer_ended or self._reset_code is not None or self._discarding
        return received and not self._writable and not self._chunks and not self._fin

    def received(self, data: bytes, *, fin: bool) -> None:
        """Take what the engine delivers."""
        if self._discarding:
            self._table.took(self, len(data))
            return
        self._peer_ended = self._peer_ended or fin
        if data:
            if self._paused or not self._claimed or self._held:
                self._held.append(data)
                self._held_size += len(data)
                self._table.holding(self)
            else:
                self._table.took(self, len(data))
                self.connection.call(self._on_data, data)
        if fin:
            self._tell_end()

    def was_reset(self, error_code: int) -> None:
        """Take RESET_STREAM: what was not delivered yet is void (RFC 9000 section 3.2)."""
        self._take_held()
        self._tell_reset(error_code)

    def was_stopped(self, error_code: int) -> None:
        """Take STOP_SENDING: the engine answers with RESET_STREAM (RFC 9000 section 3.5)."""
        self._drop_unsent()
        self._tell_reset(error_code)

    def _tell_reset(self, error_code: int) -> None:
        if self._reset_code is None:
            self._reset_code = error_code
        if not self._reset_told and not self._discarding and self._on_reset is not _ignore:
            self._reset_told = True
            self.connection.call(self._on_reset, self._reset_code)

    def _tell_end(self) -> None:
        if self._peer_ended and not self._end_told and not self._held and self._on_end is not _ignore:
            self._end_told = True
            self.connection.call(self._on_end)

    def _take_held(self) -> None:
        size, self._held_size = self._held_size, 0
        self._held.clear()
        if size:
            self._table.took(self, size)

    def _schedule_delivery(self) -> None:
        waiting = self._held or (self._peer_ended and not self._end_told)
        if (waiting or (self._reset_code is not None and not self._reset_told)) and not self._delivering:
            self._delivering = True
            self.connection.soon(self._deliver)

    def _deliver(self) -> None:
        """Deliver what was kept, one chunk at a time: the handler may pause again."""
        self._delivering = False
        held = self._held
        while held and self._claimed and not self._paused:
            data = held.popleft()
            self._held_size -= len(data)
            self._table.took(self, len(data))
            self.connection.call(self._on_data, data)
        self._tell_end()
        if self._reset_code is not None:
            self._tell_reset(self._reset_code)
        self.connection.written(0)  # flow control may have something to say
