"""What goes out to one client: batched writes, and what happens when it reads too slowly.

Packets are collected while a chunk of input is worked on and written in one go afterwards. Three marks bound what
is written but not taken, each answering a different question:

- full (:data:`FULL`): publishers that send to this client are not read from for a while. That makes a short burst
  lossless. It lasts for ``slow_consumer_grace`` seconds at most; a client that needs longer is *lagging* and holds
  nobody back until it has caught up.
- full also stops QoS 1 and 2 messages from leaving the session's own, bounded queue.
- overflow (``max_pending_bytes``): QoS 0 messages for it are dropped and counted, and it is not read from itself:
  a client that does not take its answers may not ask for more.

Where the broker has a store, packets that attest something wait here until that is on disk, and what comes after them
on the same stream waits behind them: see :mod:`mqttquic_lab.broker.store.journal`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from mqttquic_lab.broker.tracing import note_sent
from mqttquic_lab.errors import LabError
from mqttquic_lab.mqtt import ConnAck
from mqttquic_lab.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttquic_lab.broker.aliases import OutgoingAliases
    from mqttquic_lab.broker.clock import Clock, TimerHandle
    from mqttquic_lab.broker.config import BrokerConfig
    from mqttquic_lab.broker.status import BrokerStats
    from mqttquic_lab.broker.store.journal import Journal
    from mqttquic_lab.net.stream import ByteStream

FULL = 256 * 1024
"""Bytes pending at which a client counts as full."""


class Holdable:
    """Something that can be kept from reading: a client. See :class:`mqttquic_lab.broker.client.Client`."""

    __slots__ = ()

    @property
    def client_id(self) -> str:
        """Whose it is; empty before CONNECT was accepted."""
        raise NotImplementedError

    def block(self, reason: object) -> None:
        """Stop reading until every reason has been taken back."""
        raise NotImplementedError

    def unblock(self, reason: object) -> None:
        """Take a reason back."""
        raise NotImplementedError

    def cut_off(self, code: int, reason: str, *, unanswered: bool) -> None:
        """End: what it was to be told cannot be kept. `unanswered` if CONNACK was among it."""
        raise NotImplementedError


class FlushQueue:
    """The outboxes with something to write.

    During a batch the flush is left to its end; an outbox used outside of one (a timer published a will) gets it on
    the next loop tick.
    """

    def __init__(self) -> None:
        self.waiting: list[Outbox] = []
        self.journal: Journal | None = None
        """The store's, where the broker has one."""
        self.trace = Trace()
        """The broker's."""
        self.in_batch = False
        """Whether packets are being worked on."""
        self._recorded = 0

    def add(self, outbox: Outbox) -> None:
        """Note that an outbox wants to be flushed."""
        if not self.waiting and not self.in_batch:
            asyncio.get_running_loop().call_soon(self.flush)
        self.waiting.append(outbox)

    def begin(self) -> None:
        """Start a batch; :meth:`flush` ends it."""
        self.in_batch = True
        if self.journal is not None:
            self._recorded = self.journal.recorded

    def flush(self, publisher: Holdable | None = None) -> None:
        """Write everything, and hold `publisher` for those who are full now."""
        self.in_batch = False
        waiting, self.waiting = self.waiting, []
        for outbox in waiting:
            outbox.flush()
            if publisher is not None and outbox.wants_relief:
                outbox.hold(publisher)
        journal = self.journal
        if journal is not None and publisher is not None and journal.is_behind and journal.recorded != self._recorded:
            journal.hold(publisher)


class Outbox:
    """The way out to one client.

    Parameters
    ----------
    stream : ByteStream
        Where the bytes go.
    owner : Holdable
        The client itself, not read from while its outbox overflows.
    on_room : callable()
        Called when there is room again after the outbox was full.
    """

    __slots__ = (
        "_clock", "_dirty", "_flushes", "_full_reason", "_grace", "_held", "_is_closed", "_is_ending", "_is_unsettled",
        "_journal", "_limit", "_messages", "_on_room", "_owner", "_parts", "_queue_is_short", "_stats", "_stream",
        "_task", "_timer", "_unsettled", "_unsettled_bytes", "aliases", "bytes_out", "dropped", "is_full",
        "is_lagging", "is_overflowing", "messages_out", "queue_is_long", "total_pending",
    )  # fmt: skip

    def __init__(
        self,
        stream: ByteStream,
        owner: Holdable,
        flushes: FlushQueue,
        config: BrokerConfig,
        stats: BrokerStats,
        clock: Clock,
        on_room: Callable[[], None],
    ) -> None:
        self._stream = stream
        self._owner = owner
        self._flushes = flushes
        self._limit = config.max_pending_bytes
        self._grace = config.slow_consumer_grace
        self._stats = stats
        self._clock = clock
        self._on_room = on_room
        self._parts: list[bytes] = []
        self._messages = 0
        self._dirty = False
        self._held: set[Holdable] = set()
        self._journal = flushes.journal
        self._is_unsettled = False  # whether a packet among the parts attests something
        self._unsettled: deque[tuple[int, bytes]] = deque()  # transaction and packets
        self._unsettled_bytes = 0
        self._is_closed = False
        self._is_ending = False
        self._full_reason = object()
        self._task: asyncio.Task[None] | None = None
        self._timer: TimerHandle | None = None
        self._queue_is_short: asyncio.Event | None = None
        self.is_full = False
        """More than :data:`FULL` bytes are pending."""
        self.is_lagging = False
        """It has been full for longer than the grace."""
        self.is_overflowing = False
        """More than ``max_pending_bytes`` are pending."""
        self.queue_is_long = False
        """The session's queue of QoS 1 and 2 messages is more than half full."""
        self.total_pending: Callable[[], int] | None = None
        """Bytes pending on all streams of the client, where the bound holds for them together."""
        self.aliases: OutgoingAliases | None = None
        """Topic aliases of this stream, where the client takes any."""
        self.messages_out = 0
        self.bytes_out = 0
        self.dropped = 0

    def write(self, packet: bytes, *, settled: bool = False) -> None:
        """Queue a packet that may not be dropped; `settled` if it attests nothing that has to be on disk first."""
        self._parts.append(packet)
        if not settled:
            self._is_unsettled = True
        if not self._dirty:
            self._dirty = True
            self._flushes.add(self)

    def push(self, packets: bytes, count: int, size: int = 0) -> None:
        """Queue `count` QoS 0 messages with `size` payload bytes, unless the client has too much to read already."""
        if self.is_overflowing or self._unsettled_bytes > self._limit:
            self.dropped += count
            self._stats.dropped_qos0 += count
            return
        if self.aliases is not None:
            packets = self.aliases.apply(packets)
        self._stats.payload_bytes_out += size
        self._stats.packets_out += count - 1  # what is queued counts as one
        self._parts.append(packets)
        self._messages += count
        if not self._dirty:
            self._dirty = True
            self._flushes.add(self)

    def send(self, packet: bytes, *, kept: bool = False) -> None:
        """Queue one QoS 1 or 2 message; `kept` if its session is."""
        if self.aliases is not None:
            packet = self.aliases.apply(packet)
        self._messages += 1
        self.write(packet, settled=not kept)

    def flush(self) -> None:
        """Write what was queued."""
        self._dirty = False
        parts = self._parts
        if not parts:
            return
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        self._parts = []
        self._stats.packets_out += len(parts)
        trace = self._flushes.trace
        if trace.detail:
            note_sent(trace, self._owner.client_id, self._stream.id, parts)
        self.messages_out += self._messages
        self._stats.messages_out += self._messages
        self._messages = 0
        self.bytes_out += len(data)
        self._stats.bytes_out += len(data)
        journal = self._journal
        if journal is not None and (self._is_unsettled or self._unsettled):
            ticket = journal.ticket(in_batch=self._flushes.in_batch) if self._is_unsettled else self._unsettled[-1][0]
            self._is_unsettled = False
            if ticket:
                self._unsettled.append((ticket, data))
                self._unsettled_bytes += len(data)
                journal.wait(ticket, self)
                return
        self._write_out(data)

    def _write_out(self, data: bytes) -> None:
        self._stream.write(data)
        pending = self._stream.pending
        if pending > FULL and not self._is_closed:
            self.is_full = True
            if self.total_pending is not None:
                pending = self.total_pending()
            if pending > self._limit and not self.is_overflowing:
                self.is_overflowing = True
                self._owner.block(self)
            self._seek_relief()

    @property
    def pending(self) -> int:
        """Bytes queued or written that the client has not taken yet."""
        return self._stream.pending + self._unsettled_bytes + sum(map(len, self._parts))

    # --- what waits for the disk --------------------------------------------------------------------------------

    def settle(self, ticket: int) -> None:
        """Write what waited for this transaction or an earlier one."""
        ready: list[bytes] = []
        while self._unsettled and self._unsettled[0][0] <= ticket:
            ready.append(self._unsettled.popleft()[1])
        if ready:
            data = ready[0] if len(ready) == 1 else b"".join(ready)
            self._unsettled_bytes -= len(data)
            self._write_out(data)
        if self._is_ending and not self._unsettled:
            self._is_ending = False
            self._stream.end()

    def cut_off(self, code: int, reason: str) -> None:
        """Drop what waits, because it cannot be kept, and end the connection."""
        unanswered = any(data[0] >> 4 == ConnAck.TYPE for _, data in self._unsettled)
        self._unsettled.clear()
        self._unsettled_bytes = 0
        self._journal = None
        if self._is_ending:
            self._is_ending = False
            self._stream.end()
        self._owner.cut_off(code, reason, unanswered=unanswered)

    def finish(self) -> None:
        """Write what was queued, then FIN."""
        self.flush()
        if self._unsettled:
            self._is_ending = True
        else:
            self._stream.end()

    @property
    def wants_relief(self) -> bool:
        """Whether publishers should wait for this client."""
        return (self.is_full or self.queue_is_long) and not self.is_lagging and not self._is_closed

    def hold(self, publisher: Holdable) -> None:
        """Keep a publisher from being read until there is room, or the grace is over.

        Not the client itself: what makes room may be the acknowledgements that it sends.
        """
        if publisher is not self._owner and publisher not in self._held and not self._is_closed:
            self._held.add(publisher)
            publisher.block(self._full_reason)

    def note_queue(self, share: float) -> None:
        """Learn how much of the session's queue is in use, 0 to 1."""
        if self._is_closed:
            return  # nobody would ever let go of those who wait for it
        if share > 0.5:
            if not self.queue_is_long:
                self.queue_is_long = True
                self._seek_relief()
            if not self._dirty:  # so that the publisher of this batch is held
                self._dirty = True
                self._flushes.add(self)
        elif self.queue_is_long and share < 0.25:
            self.queue_is_long = False
            if self._queue_is_short is not None:
                self._queue_is_short.set()

    def _seek_relief(self) -> None:
        if self._task is None:
            self._timer = self._clock.call_later(self._grace, self._give_up)
            self._task = asyncio.get_running_loop().create_task(self._relieve())

    async def _relieve(self) -> None:
        """Wait until the client has caught up. One task per client that is behind, none for the others."""
        try:
            while self.is_full or self.queue_is_long:
                if self.is_full:
                    await self._stream.drain()
                    self.is_full = False
                    if self.is_overflowing:
                        self.is_overflowing = False
                        self._owner.unblock(self)
                    self._on_room()
                    self.flush()  # what just got room may fill it again
                else:
                    self._queue_is_short = asyncio.Event()
                    await self._queue_is_short.wait()
                    self._queue_is_short = None
        except LabError:
            self._give_up()  # the connection ended, and close() does not come for a stream that was replaced before
            return
        self._task = None
        self.is_lagging = False
        self._release()

    def _give_up(self) -> None:
        self.is_lagging = True
        self._release()

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        held = list(self._held)
        self._held.clear()
        for publisher in held:
            publisher.unblock(self._full_reason)

    def close(self) -> None:
        """Forget what is queued and let go of everybody; the connection ends."""
        self.is_overflowing = self._is_closed = True
        self._parts.clear()
        self._messages = 0
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._release()
