"""Reads one or more message logs into running totals and a bounded choice of rows for the table."""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mqttquic_lab.widgets.aggregate import NAME_LIMIT, Rates, TopicTable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from mqttquic_lab.records.log import ColumnBatch, MessageLog
    from mqttquic_lab.records.message import Message

READ_AT_ONCE = 200_000
"""Messages read from one log in one go; older ones are received and counted, but not by topic."""

TABLE_ROWS = 100
"""Rows that one update hands to the table; if more arrive it gets every N-th."""

PREVIEW_BYTES = 256
"""Bytes of each payload that go with a row."""

RECENT_ROWS = 50
"""Rows remembered here, for what a view shows when its feed is gone."""

STRIDE_MEMORY_NS = 3_000_000_000
"""How long "view shows 1 in N" remembers the largest N."""

SEQUENCE_BITS = 40
"""A row is known to the browser by log number and sequence number in one float64."""


class Row(NamedTuple):
    """One message as the table shows it."""

    id: int
    """Log number << 40 | sequence number in its log."""
    time_ns: int
    topic: str
    """At most 200 characters."""
    flags: int
    """As :class:`mqttquic_lab.records.log.ColumnBatch` packs them."""
    size: int
    """Bytes of the whole payload."""
    stream_id: int
    latency: float
    """Seconds, NaN if unknown."""
    head: bytes
    """The payload's first 256 bytes."""


@dataclass(slots=True)
class Totals:
    """Exact counters over all logs of a view."""

    received: int = 0
    dropped: int = 0
    held: int = 0
    uncounted: int = 0
    """Received, but gone from the log (or too many at once) before this view could read them."""


class _Source:
    """One log, how far it was read, and its topic codes in the view's own numbers."""

    def __init__(self, number: int, log: MessageLog) -> None:
        self.number = number
        self.log = weakref.ref(log)
        self.next = 0
        self.totals = Totals()
        self._epoch: int | None = None
        self._names: list[str] = []
        self._numbers: NDArray[np.int64] = np.zeros(0, np.int64)

    def read(self, limit: int, log: MessageLog, topics: TopicTable) -> ColumnBatch:
        batch = log.columns_since(self.next, limit)
        while not self._learn(batch, log, topics):
            batch = log.columns_since(self.next, limit)  # the dictionary was rebuilt in between: codes mean others now
        return batch

    def _learn(self, batch: ColumnBatch, log: MessageLog, topics: TopicTable) -> bool:
        if batch.topic_epoch == self._epoch and batch.topic_count <= len(self._names):
            return True
        names = log.topics
        if log.columns_since(batch.first + batch.count, 0).topic_epoch != batch.topic_epoch:
            return False
        known = len(self._names) if batch.topic_epoch == self._epoch else 0
        numbers = np.fromiter((topics.identify(name) for name in names[known:]), np.int64, len(names) - known)
        self._numbers = np.concatenate([self._numbers[:known], numbers])
        self._names, self._epoch = names, batch.topic_epoch
        return True

    def numbers(self, batch: ColumnBatch) -> NDArray[np.int64]:
        return self._numbers[batch.topic]

    def rows(self, batch: ColumnBatch, places: Sequence[int]) -> list[Row]:
        base = self.number << SEQUENCE_BITS | batch.first
        return [
            Row(
                base + i,
                int(batch.time_ns[i]),
                _short(self._names[batch.topic[i]]),
                int(batch.qos_flags[i]),
                int(batch.size[i]),
                int(batch.stream_id[i]),
                float(batch.latency[i]),
                bytes(batch.payloads[i][:PREVIEW_BYTES]),
            )
            for i in places
        ]


class Collector:
    """Everything a live view knows: running totals, and rows that wait for the next update.

    Holds the logs weakly. Not thread-safe; the view that owns it has a lock.

    Parameters
    ----------
    logs : callable
        Returns the logs there are now.
    keep : int
        Rows that the browser keeps; no more than these wait here.

    Attributes
    ----------
    rates : Rates
    topics : TopicTable
    stride : int
        The table shows 1 in so many messages.
    """

    def __init__(self, logs: Callable[[], Sequence[MessageLog]], keep: int) -> None:
        self.rates = Rates()
        self.topics = TopicTable()
        self.stride = 1
        self._logs = logs
        self._keep = keep
        self._sources: list[_Source] = []
        self._numbered = 0
        self._gone = Totals()
        self._waiting: deque[Row] = deque(maxlen=keep)
        self._recent: deque[Row] = deque(maxlen=RECENT_ROWS)
        self._strides: deque[tuple[int, int]] = deque()

    def read(self, now_ns: int) -> int:
        """Fold in what is new in all logs; returns how many messages that was."""
        self._find_logs()
        readable = [(source, log) for source in self._sources if (log := source.log()) is not None]
        new = {source: max(0, log.total - source.next) for source, log in readable}
        # What was there before the view is history: its newest rows go into the table as they are.
        stride = max(1, -(-sum(n for source, n in new.items() if source.next) // TABLE_ROWS))
        found: list[Row] = []
        for source, log in readable:
            is_history = source.next == 0
            batch = source.read(READ_AT_ONCE, log, self.topics)
            source.next = batch.first + batch.count
            totals = source.totals
            totals.uncounted += batch.skipped
            totals.received, totals.dropped, totals.held = log.total, log.dropped, len(log)
            if batch.count:
                self.rates.add(batch.time_ns, batch.size, batch.latency, now_ns)
                self.topics.add(source.numbers(batch), batch.time_ns, batch.payloads, now_ns)
                start = max(0, batch.count - self._keep) if is_history else -batch.first % stride
                found += source.rows(batch, range(start, batch.count, 1 if is_history else stride))
        found.sort(key=lambda row: row.time_ns)
        self._waiting.extend(found)
        self._recent.extend(found)
        self._remember(now_ns, stride)
        return sum(new.values())

    def totals(self) -> Totals:
        """Return the counters over all logs, those that are gone by now included."""
        every = [self._gone, *(source.totals for source in self._sources)]
        return Totals(
            sum(t.received for t in every),
            sum(t.dropped for t in every),
            sum(t.held for t in every),
            sum(t.uncounted for t in every),
        )

    def take(self) -> list[Row]:
        """Return the rows that wait for the table, oldest first, and forget them."""
        rows = list(self._waiting)
        self._waiting.clear()
        return rows

    def newest(self, limit: int) -> list[Row]:
        """Return the newest `limit` messages among those read so far, oldest first.

        Of logs that are gone by now nothing can be read: if all are, these are the last 50 that the table got.
        """
        found: list[Row] = []
        for source in self._sources:
            log = source.log()
            if log is None or limit < 1:
                continue
            end, source.next = source.next, max(0, source.next - limit)
            try:
                # What arrived meanwhile is read too and cut off again: the next update brings it.
                batch = source.read(limit + max(0, log.total - end), log, self.topics)
            finally:
                source.next = end
            found += source.rows(batch, range(max(0, min(batch.count, end - batch.first))))
        found.sort(key=lambda row: row.time_ns)
        return (found or list(self._recent))[-limit:]

    def message(self, row_id: int) -> Message | None:
        """Return the whole message behind a row, None if its log holds it no longer."""
        number, sequence = row_id >> SEQUENCE_BITS, row_id & ((1 << SEQUENCE_BITS) - 1)
        for source in self._sources:
            log = source.log()
            if source.number == number and log is not None:
                messages, _ = log.messages_since(sequence, 1)
                if messages and messages[0].sequence == sequence:
                    return messages[0]
        return None

    def _find_logs(self) -> None:
        logs = list(self._logs())
        known = [source.log() for source in self._sources]
        for log in logs:
            if not any(log is other for other in known):
                self._sources.append(_Source(self._numbered, log))
                self._numbered += 1
        for source in [s for s in self._sources if not any(s.log() is log for log in logs)]:
            self._sources.remove(source)
            self._gone.received += source.totals.received
            self._gone.dropped += source.totals.dropped
            self._gone.uncounted += source.totals.uncounted

    def _remember(self, now_ns: int, stride: int) -> None:
        strides = self._strides
        strides.append((now_ns, stride))
        while strides[0][0] < now_ns - STRIDE_MEMORY_NS or len(strides) > TABLE_ROWS:
            strides.popleft()
        self.stride = max(n for _, n in strides)


def _short(name: str) -> str:
    return name if len(name) <= NAME_LIMIT else f"{name[: NAME_LIMIT - 1]}…"


def describe(message: Message) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return what the detail pane says beyond a row: facts, and the MQTT properties, as short texts."""
    facts = []
    if message.packet_id is not None:
        facts.append(("packet id", str(message.packet_id)))
    if message.session:
        facts.append(("session", message.session))
    properties: list[tuple[str, str]] = []
    for name, value in message.properties.items():
        pairs: list[tuple[str, Any]] = [(name.replace("_", " "), value)]
        if name == "user_property":
            with contextlib.suppress(TypeError, ValueError):  # whatever else it may hold is shown as it is
                pairs = [(f"user property {key}", text) for key, text in value]
        properties += [(key[:NAME_LIMIT], _text(item)) for key, item in pairs]
    return facts, properties[:NAME_LIMIT]


def _text(value: object) -> str:
    text = value.hex(" ") if isinstance(value, bytes) else str(value)
    return text if len(text) <= PREVIEW_BYTES else f"{text[: PREVIEW_BYTES - 1]}…"
