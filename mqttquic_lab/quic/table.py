"""The streams of one connection: who opened them, which have something to send, and which are over.

CPU per packet grows with the streams that the engine knows, so finished ones are forgotten as soon as it forgets them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttquic_lab.errors import UsageError
from mqttquic_lab.net.stream import _ignore
from mqttquic_lab.quic import private_streams
from mqttquic_lab.quic.stream import QuicStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttquic_lab.net.stream import ByteStream
    from mqttquic_lab.quic.connection import QuicConnection
    from mqttquic_lab.quic.private import Engine


class StreamTable:
    """Keeps the streams of a connection and moves their bytes into its engine.

    Attributes
    ----------
    control : QuicStream
        Stream 0; on the server side it exists before the client has opened it.
    on_stream : callable(ByteStream)
        Called with each stream that the peer opened; those opened before it was assigned are announced then.
    """

    def __init__(self, connection: QuicConnection, engine: Engine) -> None:
        self._connection = connection
        self._engine = engine
        self._client = connection.role == "client"
        self.control = QuicStream(connection, self, 0, opened=self._client)
        self._streams: dict[int, QuicStream] = {0: self.control}
        self._dirty: dict[QuicStream, None] = {}
        self._ended: list[QuicStream] = []
        self._unannounced: list[QuicStream] = []
        self._on_stream: Callable[[ByteStream], None] = _ignore

    @property
    def on_stream(self) -> Callable[[ByteStream], None]:
        """The handler."""
        return self._on_stream

    @on_stream.setter
    def on_stream(self, handler: Callable[[ByteStream], None]) -> None:
        self._on_stream = handler
        if self._unannounced:
            self._connection.soon(self._announce)

    @property
    def open_ones(self) -> tuple[QuicStream, ...]:
        """The streams that both sides know."""
        return tuple(stream for stream in self._streams.values() if stream.opened)

    # --- opening

    def open(self, *, unidirectional: bool, limited: bool) -> QuicStream:
        """Open a stream; `limited`: not beyond what the peer allows now.

        Raises
        ------
        UsageError
            The peer allows no more.
        """
        engine = self._engine
        if self._client and not unidirectional and engine.get_next_available_stream_id() == 0:
            engine.send_stream_data(0, b"")  # the control stream's
        if limited and private_streams.stream_credit(engine, unidirectional=unidirectional) <= 0:
            raise UsageError("the peer lets us open no more streams now: close some first, or share one")
        stream_id = engine.get_next_available_stream_id(is_unidirectional=unidirectional)
        engine.send_stream_data(stream_id, b"")  # reserves the id, sends nothing
        stream = self._streams[stream_id] = QuicStream(self._connection, self, stream_id, opened=True)
        return stream

    def of(self, stream_id: int) -> QuicStream:
        """Return the stream of an event; one that is not known is the peer's new one."""
        stream = self._streams.get(stream_id)
        if stream is not None and stream.opened:
            return stream
        if stream is None:
            stream = self._streams[stream_id] = QuicStream(self._connection, self, stream_id, opened=True)
        stream.opened = True
        if self._on_stream is _ignore:
            self._unannounced.append(stream)
        else:
            self._connection.call(self._on_stream, stream)
        return stream

    def _announce(self) -> None:
        while self._unannounced and self._on_stream is not _ignore:
            self._connection.call(self._on_stream, self._unannounced.pop(0))

    # --- sending

    def mark_dirty(self, stream: QuicStream) -> None:
        """Note that a stream has something to send."""
        self._dirty[stream] = None

    @property
    def has_data(self) -> bool:
        """Whether a stream has something to give to the engine."""
        return bool(self._dirty)

    def flush(self) -> None:
        """Give the engine what was written."""
        if not self._dirty:
            return
        engine = self._engine
        waiting: dict[QuicStream, None] = {}
        for stream in self._dirty:
            if not stream.opened:
                waiting[stream] = None  # the peer will open it
                continue
            unsent = stream.take_unsent()
            if unsent is None:
                continue
            if not self._sendable(stream):
                stream.sending_over()
                continue
            data, fin = unsent
            engine.send_stream_data(stream.id, data, fin)
            if fin:
                self.note_finished(stream)
        self._dirty = waiting

    def _sendable(self, stream: QuicStream) -> bool:
        if private_streams.can_send(self._engine, stream.id):
            return True
        # The client's control stream comes into being with its first bytes.
        return stream is self.control and self._client and self._engine.get_next_available_stream_id() == 0

    def set_urgency(self, stream_id: int, urgency: int) -> None:
        """Set the urgency of a stream that is not over."""
        if stream_id in self._streams:
            self._engine.schedule.set_urgency(stream_id, urgency)

    def unacknowledged(self, stream_id: int) -> int:
        """Bytes of a stream that the engine has and the peer has not acknowledged."""
        return 0 if self._connection.is_closed else private_streams.unacknowledged(self._engine, stream_id)

    @property
    def pending(self) -> int:
        """Bytes of all streams that were written and not acknowledged."""
        unsent = sum(stream.unsent for stream in self._dirty if stream.opened)
        return unsent + private_streams.unacknowledged_total(self._engine)

    # --- receiving

    def took(self, stream: QuicStream, size: int) -> None:
        """Note that the application took `size` bytes: flow control may grant as many more."""
        engine = self._engine
        engine.consumed += size
        if engine.held:
            self.holding(stream)

    def holding(self, stream: QuicStream) -> None:
        """Note how many bytes wait in a stream."""
        self._engine.hold(stream.id, stream.held)

    def was_reset(self, stream_id: int, error_code: int) -> None:
        """Take RESET_STREAM."""
        stream = self.of(stream_id)
        # What will never be delivered counts as read, else the connection's window would run dry.
        self._engine.consumed += private_streams.undelivered(self._engine, stream_id)
        stream.was_reset(error_code)
        self.note_finished(stream)

    def was_stopped(self, stream_id: int, error_code: int) -> None:
        """Take STOP_SENDING."""
        stream = self.of(stream_id)
        stream.was_stopped(error_code)
        self.note_finished(stream)

    # --- ending

    def reset(self, stream: QuicStream, error_code: int) -> None:
        """Abort a stream in both directions."""
        if self._connection.is_closed:
            return
        self._dirty.pop(stream, None)
        self.note_finished(stream)
        engine = self._engine
        if stream.opened and private_streams.stream_exists(engine, stream.id):
            if stream.sends:
                engine.reset_stream(stream.id, error_code)
            if stream.readable:
                engine.stop_stream(stream.id, error_code)
        self._connection.written(0)

    def note_finished(self, stream: QuicStream) -> None:
        """Remember to forget a stream that is over, once the engine has: then no more events of it can come."""
        if stream.finished and stream is not self.control and stream not in self._ended:
            self._ended.append(stream)

    def forget_finished(self) -> None:
        """Forget the streams that the engine has forgotten."""
        if not self._ended:
            return
        remaining = []
        for stream in self._ended:
            if private_streams.stream_exists(self._engine, stream.id):
                remaining.append(stream)
            else:
                self._streams.pop(stream.id, None)
                self._engine.hold(stream.id, 0)
        self._ended = remaining

    def connection_over(self) -> None:
        """Stop all sending: nothing will leave any more. What has arrived can still be read."""
        self._dirty.clear()
        for stream in self._streams.values():
            stream.sending_over()
