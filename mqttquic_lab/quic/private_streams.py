"""Streams of an engine: which are looked at, and in what order they fill packets; a part of ``private.py``.

aioquic looks at every open stream for every packet, twice: whether it has something to send, and whether its
flow-control limit may rise. With a hundred streams that costs several times what the packet does. Here streams *tell*
when there is something to do (:class:`Sender`, :class:`Receiver`), and only those are looked at.

The order is that of RFC 9218 section 10: streams of smaller urgency first, and within one urgency a packet's worth each
in turn, as if all were incremental. Nothing of it goes over the wire: it orders what this side sends.
"""

# ruff: noqa: SLF001 - reading private names is what this module is for

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.stream import QuicStream, QuicStreamReceiver

from mqttquic_lab.net.stream import DEFAULT_URGENCY, MAX_URGENCY
from mqttquic_lab.quic.private_recovery import Resender

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from aioquic.quic.events import StreamDataReceived, StreamReset
    from aioquic.quic.packet import QuicErrorCode, QuicStreamFrame
    from aioquic.quic.packet_builder import QuicPacketBuilder
    from aioquic.quic.stream import QuicStreamSender

    from mqttquic_lab.quic.private import Engine

URGENCIES: Final = range(MAX_URGENCY + 1)
"""RFC 9218 section 4.1; smaller is sooner."""

MAX_PASSED_OVER: Final = 32
"""Packets in a row that streams of one urgency wait for more urgent ones; the packet after those is theirs."""

MAX_GRANTED: Final = 128
"""Streams of the peer for which it may have credit back before it has acknowledged their end."""

FULL: Final = 16
"""Bytes: with less room than this in a packet, no further stream is asked to fill it."""


class Streams(dict[int, QuicStream]):
    """The streams of an engine by id; :meth:`values` are those only whose flow-control limits may have to rise.

    aioquic asks for all values in one place: to write MAX_STREAM_DATA.

    Attributes
    ----------
    limits_due : dict of int to None
        Ids of those streams.
    """

    def __init__(self) -> None:
        super().__init__()
        self.limits_due: dict[int, None] = {}

    def values(self) -> Collection[QuicStream]:  # type: ignore[override]
        """Return the streams whose receiver has something to grant."""
        if not self.limits_due:
            return ()
        return [self[stream_id] for stream_id in self.limits_due if stream_id in self]


class Schedule:
    """In what order streams fill packets; stands where aioquic keeps its queue of streams.

    Parameters
    ----------
    streams : Streams
        The engine's.
    grant : callable(int, int)
        Lets the peer open so many more streams of the type of the one with this id.
    is_ours : callable(int) -> bool
        Whether a stream is one that we have opened.

    Attributes
    ----------
    freed : bool
        Whether streams ended in the last packet, so that the peer may open others.
    """

    def __init__(self, streams: Streams, grant: Callable[[int, int], None], is_ours: Callable[[int], bool]) -> None:
        self._streams = streams
        self._grant = grant
        self._is_ours = is_ours
        self._granted: set[int] = set()
        self._ready: list[OrderedDict[int, QuicStream]] = [OrderedDict() for _ in URGENCIES]
        self._unsettled: dict[int, QuicStream] = {}
        self._urgencies: dict[int, int] = {}
        self._passed_over = [0] * len(URGENCIES)
        self._serving = False
        self._full = False
        self._written = False
        self.freed = False

    # --- what streams tell

    def append(self, stream: QuicStream) -> None:
        """Take a stream that has just come into being: from now on it tells when there is something to do."""
        stream.sender = Sender(self, stream.stream_id, writable=not stream.sender.is_finished)
        stream.receiver = Receiver(self, stream.stream_id, readable=not stream.receiver.is_finished)

    def written(self, stream_id: int) -> None:
        """Note that a stream has data or FIN to send."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._ready[self.urgency(stream_id)][stream_id] = stream

    def unsettled(self, stream_id: int) -> None:
        """Note that a stream is to be reset, to be stopped, or may be over."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._unsettled[stream_id] = stream

    def received(self, stream_id: int) -> None:
        """Note that a stream's flow-control limit may rise."""
        if stream_id in self._streams:
            self._streams.limits_due[stream_id] = None

    @property
    def has_data(self) -> bool:
        """Whether a stream has data or FIN to send."""
        return any(self._ready)

    # --- urgency

    def urgency(self, stream_id: int) -> int:
        """Return a stream's urgency."""
        return self._urgencies.get(stream_id, DEFAULT_URGENCY)

    def set_urgency(self, stream_id: int, urgency: int) -> None:
        """Let a stream go before those of larger urgency."""
        waiting = self._ready[self.urgency(stream_id)].pop(stream_id, None)
        if urgency == DEFAULT_URGENCY:
            self._urgencies.pop(stream_id, None)
        else:
            self._urgencies[stream_id] = urgency
        if waiting is not None:
            self._ready[urgency][stream_id] = waiting

    # --- what aioquic does with its queue, for each packet: go through it, then rearrange it

    def __iter__(self) -> Iterator[QuicStream]:
        """Offer streams until the packet is full; within aioquic's rearranging afterwards, none."""
        if self._serving:
            return iter(())
        self._serving = True
        self._full = self._written = self.freed = False
        return self._serve()

    def extend(self, _served: object) -> None:
        """Take the end of a packet: the new order is there already."""
        self._serving = False

    def frame_written(self, builder: QuicPacketBuilder, room_before: int) -> None:
        """Note what the stream that was offered did to the packet."""
        self._written = self._written or builder.remaining_buffer_space < room_before
        self._full = builder.remaining_flight_space < FULL

    def _serve(self) -> Iterator[QuicStream]:
        if self._unsettled:
            for stream_id, stream in tuple(self._unsettled.items()):
                yield stream
                self._give_back(stream_id, stream)
                if stream_id not in self._streams:
                    self._forget(stream_id)
                    self.freed = True
                elif not (stream.is_finished or stream.sender.reset_pending or stream.receiver.stop_pending):
                    del self._unsettled[stream_id]
        order = self._order()
        for place, urgency in enumerate(order):
            ready = self._ready[urgency]
            for _ in range(len(ready)):
                stream_id, stream = next(iter(ready.items()))
                yield stream
                self._give_back(stream_id, stream)
                self._served(ready, stream_id, stream.sender)
                if self._full:
                    break
            self._passed_over[urgency] = 0
            if self._full:
                if self._written:
                    for later in order[place + 1 :]:
                        self._passed_over[later] += 1
                break

    def _order(self) -> list[int]:
        order = [urgency for urgency, ready in enumerate(self._ready) if ready]
        if len(order) > 1:
            order.sort(key=lambda urgency: self._passed_over[urgency] < MAX_PASSED_OVER)
        return order

    def _served(self, ready: OrderedDict[int, QuicStream], stream_id: int, sender: QuicStreamSender) -> None:
        """Put a stream that was offered at the end, or away if nothing of it is left to send."""
        if stream_id not in self._streams:
            self._forget(stream_id)
        elif sender.reset_pending or sender._reset_error_code is not None or not (
            len(sender._pending) or sender._pending_eof
        ):  # fmt: skip
            sender.buffer_is_empty = True
            del ready[stream_id]
        else:
            ready.move_to_end(stream_id)

    def _give_back(self, stream_id: int, stream: QuicStream) -> None:
        """Let the peer open another stream once all of this one has arrived, and has left (RFC 9000 section 4.6).

        aioquic does so a round trip later, when the peer has acknowledged our FIN as well.
        """
        sender = stream.sender
        if (
            stream.receiver.is_finished
            and sender._buffer_fin is not None
            and not (len(sender._pending) or sender._pending_eof)
            and stream_id not in self._granted
            and stream_id in self._streams
            and not self._is_ours(stream_id)
            and len(self._granted) < MAX_GRANTED
        ):
            self._granted.add(stream_id)
            self._grant(stream_id, 1)
            self.freed = True

    def _forget(self, stream_id: int) -> None:
        """Drop what is kept for a stream that aioquic has discarded."""
        if stream_id in self._granted:
            self._granted.discard(stream_id)
            self._grant(stream_id, -1)  # aioquic has done it now
        self._unsettled.pop(stream_id, None)
        self._ready[self.urgency(stream_id)].pop(stream_id, None)
        self._urgencies.pop(stream_id, None)
        self._streams.limits_due.pop(stream_id, None)


class Sender(Resender):
    """aioquic's sending side of a stream, which tells the schedule when there is something to send."""

    def __init__(self, schedule: Schedule, stream_id: int | None, *, writable: bool) -> None:
        super().__init__(stream_id, writable)
        self._schedule = schedule
        self._id = stream_id or 0

    def write(self, data: bytes, end_stream: bool = False) -> None:
        """Take data to send."""
        super().write(data, end_stream)
        if not self.buffer_is_empty:
            self._schedule.written(self._id)

    def reset(self, error_code: int) -> None:
        """Give up sending."""
        super().reset(error_code)
        self._schedule.unsettled(self._id)

    def on_data_delivery(self, delivery: QuicDeliveryState, start: int, stop: int, fin: bool) -> None:
        """Take what became of data that was sent."""
        super().on_data_delivery(delivery, start, stop, fin)
        if delivery is not QuicDeliveryState.ACKED:
            if not self.buffer_is_empty:
                self._schedule.written(self._id)
        elif self.is_finished:
            self._schedule.unsettled(self._id)

    def on_reset_delivery(self, delivery: QuicDeliveryState) -> None:
        """Take what became of a RESET_STREAM."""
        super().on_reset_delivery(delivery)
        self._schedule.unsettled(self._id)


class Receiver(QuicStreamReceiver):
    """aioquic's receiving side of a stream, which tells the schedule what arrived and what is to be stopped."""

    def __init__(self, schedule: Schedule, stream_id: int | None, *, readable: bool) -> None:
        super().__init__(stream_id, readable)
        self._schedule = schedule
        self._id = stream_id or 0

    def handle_frame(self, frame: QuicStreamFrame) -> StreamDataReceived | None:
        """Take data that arrived."""
        event = super().handle_frame(frame)
        if self.is_finished:
            self._schedule.unsettled(self._id)
        else:
            self._schedule.received(self._id)
        return event

    def handle_reset(self, *, final_size: int, error_code: QuicErrorCode | int = 0) -> StreamReset | None:
        """Take RESET_STREAM."""
        event = super().handle_reset(final_size=final_size, error_code=error_code)
        self._schedule.unsettled(self._id)
        return event

    def stop(self, error_code: QuicErrorCode | int = 0) -> None:
        """Ask the peer to send no more."""
        super().stop(error_code)
        self._schedule.unsettled(self._id)

    def on_stop_sending_delivery(self, delivery: QuicDeliveryState) -> None:
        """Take what became of a STOP_SENDING."""
        super().on_stop_sending_delivery(delivery)
        if self.stop_pending:
            self._schedule.unsettled(self._id)


# --- facts and knobs


def stream_credit(engine: Engine, *, unidirectional: bool = False) -> int:
    """Return how many more streams the peer lets us open now (RFC 9000 section 4.6)."""
    if unidirectional:
        return engine._remote_max_streams_uni - engine._local_next_stream_id_uni // 4
    return engine._remote_max_streams_bidi - engine._local_next_stream_id_bidi // 4


def unacknowledged(engine: Engine, stream_id: int) -> int:
    """Return the bytes given to the engine for this stream which the peer has not acknowledged."""
    stream = engine._streams.get(stream_id)
    if stream is None or stream.sender._reset_error_code is not None:
        return 0
    return stream.sender._buffer_stop - stream.sender._buffer_start


def unacknowledged_total(engine: Engine) -> int:
    """Return the bytes of all streams which the peer has not acknowledged."""
    return sum(unacknowledged(engine, stream_id) for stream_id in tuple(engine._streams))


def undelivered(engine: Engine, stream_id: int) -> int:
    """Return the bytes that count against flow control but will never be delivered, after a reset."""
    stream = engine._streams.get(stream_id)
    if stream is None:
        return 0
    return stream.receiver.highest_offset - stream.receiver.starting_offset()


def stream_exists(engine: Engine, stream_id: int) -> bool:
    """Whether the stream is open, or finished but not yet forgotten."""
    return stream_id in engine._streams


def can_send(engine: Engine, stream_id: int) -> bool:
    """Whether data can still be written to the stream: no FIN was, and neither side has reset it."""
    stream = engine._streams.get(stream_id)
    return (
        stream is not None
        and not stream.sender.is_finished
        and stream.sender._buffer_fin is None
        and stream.sender._reset_error_code is None
    )


def limit_streams(engine: Engine, bidirectional: int, unidirectional: int) -> None:
    """Let the peer have so many streams open at a time; only before the handshake announces it."""
    for limit, value in (
        (engine._local_max_streams_bidi, bidirectional),
        (engine._local_max_streams_uni, unidirectional),
    ):
        limit.value = limit.sent = value
