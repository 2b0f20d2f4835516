"""The columnar store behind a feed: cheap to append to, bounded, and a DataFrame whenever one looks.

Appending puts a tuple on a list. Some thousand of those at a time become rows of NumPy columns (`columns.py`),
topics dictionary-encoded, payloads as they are. Frames are slices of one master frame over these columns
(`frames.py`), so that looking costs what is new and not what is held. Payloads are decoded when somebody looks.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from mqttquic_lab.errors import UsageError
from mqttquic_lab.records.batch import ColumnBatch
from mqttquic_lab.records.columns import GROWTH, Columns, Topics, objects
from mqttquic_lab.records.decode import (
    TEXT_OVERHEAD,
    check_decode,
    decode_all,
    decode_one,
    only_stamp,
    sent_ns,
    value_bytes,
)
from mqttquic_lab.records.expand import Expansion
from mqttquic_lab.records.message import Message

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pandas as pd
    from numpy.typing import NDArray

    from mqttquic_lab.records.decode import Decode
    from mqttquic_lab.records.frames import Master

__all__ = ["ROW_BYTES", "STAGED_ROWS", "TOPIC_LIMIT", "VALUE_FACTOR", "ColumnBatch", "MessageLog"]

ROW_BYTES = 96
"""What one message is charged beyond its topic, payload and properties."""

VALUE_FACTOR = 2
"""Decoded values may be charged this many times ``max_bytes``."""

STAGED_ROWS = 2048
"""Rows waiting as tuples before they are put into columns."""

TOPIC_LIMIT = 100_000
"""Distinct topics in the dictionary before those that no row held uses are forgotten."""

_DECODED_AT_ONCE = 65_536
_NO_PROPERTIES: Mapping[str, Any] = MappingProxyType({})

_ROW_COLUMNS: dict[str, tuple[Any, Any]] = {
    "time": (np.int64, 0),
    "topic": (np.int8, 0),
    "payload": (object, None),
    "qos": (np.uint8, 0),
    "retain": (np.bool_, 0),
    "dup": (np.bool_, 0),
    "packet_id": (np.uint16, 0),
    "stream_id": (np.int32, -1),
    "early_data": (np.bool_, 0),
    "size": (np.uint32, 0),
    "latency": (np.float64, np.nan),
    "session": (np.int8, 0),
}


class MessageLog:
    """Received messages, oldest first, within bounds.

    One thread appends; any thread may read.

    Parameters
    ----------
    session : str
        What the ``session`` column says.
    decode : {"text", "json", "raw"} or callable
        How the ``value`` column comes from the payload; lazily, and None where it fails (:attr:`decode_errors`).
    expand : bool
        Give each top-level scalar member of a decoded JSON object a column of its own, named ``value.<member>``.
    max_messages : int
        Messages held at most; the oldest go first.
    max_bytes : int
        Bytes charged at most for what arrived (:attr:`nbytes`); the oldest go first. What is decoded from it may
        take twice as much again (:attr:`value_nbytes`): room for ordinary JSON, a bound for ``[[],[],[],...]``.

    Attributes
    ----------
    dropped : int
        Messages that a bound pushed out.
    cleared : int
        Messages that :meth:`clear` removed.
    decode_errors : int
        Payloads seen so far that could not be decoded.

    Raises
    ------
    UsageError
        A parameter that cannot be used.
    """

    def __init__(
        self,
        *,
        session: str = "",
        decode: Decode = "text",
        expand: bool = False,
        max_messages: int = 1_000_000,
        max_bytes: int = 256 * 2**20,
    ) -> None:
        self.decode = check_decode(decode)
        if expand and decode in ("text", "raw"):
            raise UsageError(f'expand=True has nothing to expand with decode={decode!r}: use decode="json"')
        if max_messages < 1 or max_bytes < 1:
            raise UsageError("max_messages and max_bytes must be at least 1")
        self.session = session
        self.expand = expand
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.dropped = self.cleared = self.decode_errors = 0

        self._staged: list[tuple[Any, ...]] = []
        self._stage_limit = self._fold_at = min(STAGED_ROWS, max(64, max_messages))
        # No payload larger than this waits as a tuple, so that what is staged stays a fraction of max_bytes.
        self._stage_payload = max(256, min(16_384, max_bytes // (8 * STAGED_ROWS)))

        self._lock = threading.Lock()  # columns, counters, dictionary
        self._look = threading.RLock()  # one reader decodes at a time; re-entrant for a decoder that looks
        self._columns = Columns(_ROW_COLUMNS, 2 * self._stage_limit)
        self._topics = Topics()
        self._topic_limit = TOPIC_LIMIT
        self._topic_bytes_limit = max(2**16, max_bytes // 8)
        self._first = 0  # sequence number of the row at columns.head
        self._decoded = 0  # sequence number of the first row not yet decoded
        self._expansion = Expansion()
        self._charged = 0  # for what arrived
        self._values_charged = 0  # for what was decoded from it
        self._dead_bytes = 0  # payloads of dropped rows that their buffer still holds
        self._master: Master | None = None

    # Writing

    def append(
        self,
        time_ns: int,
        topic: str,
        payload: bytes,
        qos: int = 0,
        retain: bool = False,
        dup: bool = False,
        packet_id: int | None = None,
        stream_id: int | None = None,
        early_data: bool = False,
        properties: Mapping[str, Any] | None = None,
    ) -> None:
        """Record one message: about 0.5 us on average, nearly all of it when a couple of thousand become columns."""
        staged = self._staged
        staged.append((time_ns, topic, payload, qos, retain, dup, packet_id, stream_id, early_data, properties or None))
        if len(staged) >= self._fold_at or len(payload) > self._stage_payload:
            with self._lock:
                self._fold()
                self._make_room()

    def clear(self) -> None:
        """Forget all messages held; :attr:`total` and sequence numbers go on."""
        with self._lock:
            self._fold()
            held = len(self._columns)
            self._columns.head = self._columns.tail
            self._first += held
            self.cleared += held
            self._charged = self._values_charged = self._dead_bytes = 0
            self._expansion.names.clear()
            for name in [n for n in self._columns.arrays if n not in _ROW_COLUMNS]:
                del self._columns.arrays[name]
            self._columns.relocate(2 * self._stage_limit)
            self._topics.compact(self._columns.held("topic"))
            self._columns.replace("topic", np.zeros(self._columns.capacity, self._topics.code_dtype))
            self._topic_limit = TOPIC_LIMIT
            self._master = None

    # Counting

    @property
    def total(self) -> int:
        """Messages ever received: held, dropped and cleared ones."""
        with self._lock:
            return self._first + len(self._columns) + len(self._staged)

    def __len__(self) -> int:
        with self._lock:
            self._fold()
            return len(self._columns)

    @property
    def nbytes(self) -> int:
        """Bytes charged for what is held: topics, payloads, properties, and 96 per message."""
        with self._lock:
            self._fold()
            return self._charged

    @property
    def value_nbytes(self) -> int:
        """Bytes charged for decoded values: an estimate from above, and 8 per message and expanded column."""
        return self._values_charged + 8 * len(self._expansion.names) * len(self._columns)

    @property
    def topics(self) -> list[str]:
        """Code -> topic name, as :class:`ColumnBatch` uses codes. A copy."""
        with self._lock:
            self._fold()
            return list(self._topics.names)

    def topic_counts(self) -> dict[str, int]:
        """Return how many of the messages held each topic has, most first."""
        with self._lock:
            self._fold()
            counts = np.bincount(self._columns.held("topic"), minlength=1)
            order = np.argsort(-counts, kind="stable")
            return {self._topics.names[i]: int(counts[i]) for i in order.tolist() if counts[i]}

    @property
    def expand_skipped(self) -> int:
        """Members that got no column: there are 64 already, or the name is longer than 128 characters."""
        return self._expansion.skipped

    # Looking

    def frame(self, *, properties: bool = False) -> pd.DataFrame:
        """Return everything held as a DataFrame.

        The cost grows with what is new since the last look. The frame is the caller's: changing it, in place or
        not, leaves the log alone, and what arrives later does not appear in it. (Objects inside ``value``, such as a
        decoded dict, are shared with the log; ``payload`` is the truth.)

        Row labels are sequence numbers: a message keeps its label when older ones are dropped.

        Parameters
        ----------
        properties : bool
            Add a column ``properties`` of dicts; built anew each time, at a cost that grows with what is held.

        Returns
        -------
        DataFrame
            Columns: ``time`` (datetime64[ns, UTC]), ``topic`` (category), ``payload`` (bytes), ``value`` (decoded),
            the expanded ``value.*``, ``qos``, ``retain``, ``dup``, ``packet_id`` (0: none), ``stream_id`` (-1: none,
            over TCP and TLS, or in a QUIC datagram), ``early_data``, ``size`` (bytes), ``latency`` (seconds, NaN:
            unknown), ``session`` (category).
        """
        from mqttquic_lab.records.frames import Master  # pandas only when wanted

        with self._look:
            with self._lock:
                self._fold()
            if self.decode != "raw":
                self._decode_new()
            with self._lock:
                if self._master is None:
                    self._master = Master(self.session)
                columns = self._columns
                raw = self.decode == "raw"
                stop = columns.tail if raw else columns.head + max(0, self._decoded - self._first)
                frame = self._master.slice(
                    columns,
                    self._topics,
                    self._first,
                    stop,
                    raw=raw,
                    expanded=list(self._expansion.names.values()),
                )
                if properties:
                    rows = range(columns.head, stop)
                    dicts = objects((dict(self._properties(row)) for row in rows), len(rows))
                    frame = frame.assign(properties=dicts)
                return frame

    def tail(self, n: int = 10) -> pd.DataFrame:
        """Return the newest `n` messages as a DataFrame of their own memory."""
        return self.frame().tail(n).copy()

    def message(self, i: int) -> Message:
        """Return the message at position `i` among those held; negative counts from the newest.

        Raises
        ------
        IndexError
            Fewer are held.
        """
        with self._lock:
            self._fold()
            held = len(self._columns)
            if not -held <= i < held:
                raise IndexError(f"message {i} of {held} held")
            row = self._columns.head + (i if i >= 0 else held + i)
            message = self._pick(row)
        return self._with_value(message)

    def messages_since(self, sequence: int, limit: int = 1000) -> tuple[list[Message], int]:
        """Return the oldest messages from sequence number `sequence` on, at most `limit`, and how many were missed.

        What :class:`ColumnBatch` is to a view this is to a loop: nothing held is skipped. Messages missed had been
        dropped or cleared before they were asked for; the next call asks for the last message's ``sequence + 1``.
        """
        with self._lock:
            self._fold()
            columns = self._columns
            start = max(sequence, self._first)
            begin = columns.head + start - self._first
            picked = [self._pick(row) for row in range(begin, min(columns.tail, begin + limit))]
        return [self._with_value(message) for message in picked], start - sequence

    def __iter__(self) -> Iterator[Message]:
        """Yield what is held now and what arrives while iterating, oldest first; ends when it has caught up."""
        sequence = 0
        while True:
            batch, _ = self.messages_since(sequence)
            if not batch:
                return
            yield from batch
            sequence = batch[-1].sequence + 1

    def columns_since(self, sequence: int, limit: int) -> ColumnBatch:
        """Return the newest messages from sequence number `sequence` on, at most `limit`, as columns.

        All arrays are copies.
        """
        with self._lock:
            self._fold()
            columns = self._columns
            end = self._first + len(columns)
            first = min(end, max(sequence, self._first, end - limit))
            rows = slice(columns.head + first - self._first, columns.tail)
            held = {name: columns.arrays[name][rows] for name in _ROW_COLUMNS}
            flags = held["qos"].astype(np.uint8)
            for bit, name in ((2, "retain"), (3, "dup"), (4, "early_data")):
                flags |= held[name].astype(np.uint8) << np.uint8(bit)
            return ColumnBatch(
                first=first,
                count=end - first,
                skipped=max(0, first - sequence),
                time_ns=held["time"].copy(),
                topic=held["topic"].astype(np.uint32),
                qos_flags=flags,
                size=held["size"].copy(),
                stream_id=held["stream_id"].astype(np.int64),
                latency=held["latency"].copy(),
                payloads=held["payload"].tolist(),
                topic_epoch=self._topics.epoch,
                topic_count=len(self._topics.names),
            )

    # Inside: all below with self._lock held, unless said otherwise

    def _fold(self) -> None:
        """Put the staged tuples into columns, then keep the bounds."""
        count = len(self._staged)
        if not count:
            return
        # The appending thread may add behind `count` meanwhile: both list operations are atomic.
        staged = self._staged[:count]
        del self._staged[:count]
        times, topics, payloads, qos, retain, dup, packet_ids, streams, early, properties = zip(*staged, strict=True)
        columns = self._columns
        columns.reserve(count)
        codes = np.fromiter(map(self._topics.__getitem__, topics), np.int32, count)
        if columns.arrays["topic"].dtype != self._topics.code_dtype:
            columns.replace("topic", columns.arrays["topic"].astype(self._topics.code_dtype))
        stream_ids = _integers(streams, np.int64, none=-1)
        if stream_ids.max() > np.iinfo(columns.arrays["stream_id"].dtype).max:
            columns.replace("stream_id", columns.arrays["stream_id"].astype(np.int64), -1)

        rows = slice(columns.tail, columns.tail + count)
        arrays = columns.arrays
        sizes = np.fromiter(map(len, payloads), np.uint32, count)
        arrays["time"][rows] = np.fromiter(times, np.int64, count)
        arrays["topic"][rows] = codes
        arrays["payload"][rows] = objects(payloads, count)
        arrays["qos"][rows] = _integers(qos, np.uint8)
        arrays["retain"][rows] = _integers(retain, np.bool_)
        arrays["dup"][rows] = _integers(dup, np.bool_)
        arrays["packet_id"][rows] = _integers(packet_ids, np.uint16, none=0)
        arrays["stream_id"][rows] = stream_ids
        arrays["early_data"][rows] = _integers(early, np.bool_)
        arrays["size"][rows] = sizes
        columns.tail += count
        charge = int(sizes.sum()) + int(self._topics.sizes[codes].sum()) + ROW_BYTES * count
        if any(properties):
            charge += self._fold_properties(rows.start, times, properties)
        self._charged += charge
        self._keep_bounds()
        if self._wants_room:
            self._fold_at = 1  # a reader folded: let the next append make room, readers should not wait for that

    @property
    def _wants_room(self) -> bool:
        columns = self._columns
        return (
            columns.tail + self._stage_limit > columns.capacity
            or columns.head > max(4 * self._stage_limit, len(columns) // 8)
            or self._dead_bytes > self.max_bytes // 8
        )

    def _make_room(self) -> None:
        """Move to new buffers when these are nearly full or hold too much that was dropped; on the appending side."""
        columns = self._columns
        if self._wants_room:
            columns.relocate(len(columns) + max(len(columns) // GROWTH, 2 * self._stage_limit))
            self._dead_bytes = 0
            self._master = None  # it would keep the old buffers, and the payloads dropped from them, alive
        self._fold_at = self._stage_limit

    def _fold_properties(self, row: int, times: tuple[int, ...], properties: tuple[Any, ...]) -> int:
        """Store latencies and properties; returns the bytes charged for them.

        A message that carries nothing but a timestamp is the common case at full speed: its properties are not
        kept, but made again from the latency (exactly: a double holds every difference below 2**53 ns).
        """
        columns = self._columns
        latency = columns.arrays["latency"]
        stamped: list[int] = []
        stamps: list[int] = []
        others: list[int] = []
        for i, block in enumerate(properties):
            if block:
                stamp = only_stamp(block)
                if stamp is None:
                    others.append(i)
                else:
                    stamped.append(i)
                    stamps.append(stamp)
        if stamped:
            rows = np.array(stamped) + row
            sent, arrived = np.array(stamps, np.int64), columns.arrays["time"][rows]
            latency[rows] = (arrived - sent) / 1e9
            inexact = arrived - np.rint(latency[rows] * 1e9).astype(np.int64) != sent
            others += [stamped[i] for i in np.flatnonzero(inexact).tolist()]
        if others and "properties" not in columns:
            columns.add("properties", object, None)
            columns.add("properties_size", np.uint32, 0)
        charge = 0
        for i in others:
            block = properties[i]
            stamp = sent_ns(block)
            if stamp is not None:
                latency[row + i] = (times[i] - stamp) / 1e9
            size = min(value_bytes(dict(block)), 2**32 - 1)
            columns.arrays["properties"][row + i] = block
            columns.arrays["properties_size"][row + i] = size
            charge += size
        return charge

    def _properties(self, row: int) -> Mapping[str, Any]:
        columns = self._columns
        if "properties" in columns and (kept := columns.arrays["properties"][row]) is not None:
            return kept  # type: ignore[no-any-return]
        latency = columns.arrays["latency"][row]
        if latency == latency:  # not NaN
            return {"user_property": [("sent_ns", _sent(int(columns.arrays["time"][row]), latency))]}
        return _NO_PROPERTIES

    def _charges(self, rows: slice) -> NDArray[np.int64]:
        """Return what each of these rows is charged for what arrived."""
        arrays = self._columns.arrays
        charges: NDArray[np.int64] = arrays["size"][rows].astype(np.int64)
        charges += self._topics.sizes[arrays["topic"][rows]]
        charges += ROW_BYTES
        if "properties_size" in arrays:
            charges += arrays["properties_size"][rows]
        return charges

    def _value_sizes(self, rows: slice) -> NDArray[np.int64]:
        """Return what each of these rows is charged for its decoded value."""
        arrays = self._columns.arrays
        if "value" not in arrays:  # nobody has looked yet, or nothing is to be decoded
            return np.zeros(rows.stop - rows.start, np.int64)
        if self.decode != "text":
            return arrays["value_size"][rows].astype(np.int64)  # 0 until decoded
        sizes: NDArray[np.int64] = arrays["size"][rows].astype(np.int64) + TEXT_OVERHEAD
        decoded = self._decoded - self._first + self._columns.head - rows.start
        sizes[max(0, decoded) :] = 0
        return sizes

    def _keep_bounds(self) -> None:
        """Drop the oldest rows until all bounds hold."""
        columns = self._columns
        if len(columns) > self.max_messages:
            self._drop(len(columns) - self.max_messages)
        while len(columns):
            excess = self._charged - self.max_bytes
            value_excess = self.value_nbytes - VALUE_FACTOR * self.max_bytes
            if excess <= 0 and value_excess <= 0:
                break
            block = slice(columns.head, min(columns.tail, columns.head + 4096))
            count = np.searchsorted(np.cumsum(self._charges(block)), excess) + 1 if excess > 0 else 1
            if value_excess > 0:
                freed = np.cumsum(self._value_sizes(block) + 8 * len(self._expansion.names))
                count = max(count, np.searchsorted(freed, value_excess) + 1)
            self._drop(min(int(count), block.stop - block.start))
        if len(self._topics.names) > self._topic_limit or self._topics.nbytes > self._topic_bytes_limit:
            self._compact_topics()

    def _drop(self, count: int) -> None:
        columns = self._columns
        rows = slice(columns.head, columns.head + count)
        freed, values_freed = int(self._charges(rows).sum()), int(self._value_sizes(rows).sum())
        self._charged -= freed
        self._values_charged -= values_freed
        self._dead_bytes += freed + values_freed
        columns.head += count
        self._first += count
        self.dropped += count

    def _compact_topics(self) -> None:
        columns = self._columns
        codes = np.zeros(columns.capacity, np.int32)
        codes[columns.head : columns.tail] = self._topics.compact(columns.held("topic"))
        columns.replace("topic", codes.astype(self._topics.code_dtype))
        # Rows held may really have that many: next time when as many again are dead.
        self._topic_limit = max(TOPIC_LIMIT, 2 * len(self._topics.names))
        self._topic_bytes_limit = max(2**16, self.max_bytes // 8, 2 * self._topics.nbytes)

    def _decode_new(self) -> None:
        """Decode what came since the last look; takes the lock only to read and to store."""
        with self._lock:
            end = self._first + len(self._columns)
        while True:
            with self._lock:
                columns = self._columns
                if "value" not in columns:
                    columns.add("value", object, None)
                    if self.decode != "text":
                        columns.add("value_size", np.uint32, 0)
                start = max(self._decoded, self._first)
                row = columns.head + start - self._first
                payloads = columns.arrays["payload"][row : row + min(end - start, _DECODED_AT_ONCE)]
            if start >= end or not len(payloads):
                break
            decoded = decode_all(self.decode, payloads.tolist())
            with self._lock:
                self._store(start, decoded.values, decoded.sizes)
                self.decode_errors += decoded.errors
                self._keep_bounds()

    def _store(self, start: int, values: list[Any], sizes: list[int] | None) -> None:
        """Put decoded values into the rows from sequence number `start` on, as far as they are still held."""
        columns = self._columns
        gone = min(len(values), max(0, self._first - start))
        values = values[gone:]
        row = columns.head + start + gone - self._first
        rows = slice(row, row + len(values))
        self._decoded = start + gone + len(values)
        if "value" not in columns or not values:
            return  # cleared meanwhile
        columns.arrays["value"][rows] = objects(values, len(values))
        if sizes is not None:
            columns.arrays["value_size"][rows] = np.minimum(sizes[gone:], 2**32 - 1)
        self._values_charged += int(self._value_sizes(rows).sum())
        if self.expand:
            self._expansion.write(columns, row, values)

    def _pick(self, row: int) -> Message:
        """Return one row as a message whose value is still to be decoded."""
        columns = self._columns
        of = {name: column[row] for name, column in columns.arrays.items() if name in _ROW_COLUMNS}
        return Message(
            sequence=self._first + row - columns.head,
            time_ns=int(of["time"]),
            topic=self._topics.names[of["topic"]],
            payload=of["payload"],
            value=None,
            qos=int(of["qos"]),
            retain=bool(of["retain"]),
            dup=bool(of["dup"]),
            packet_id=int(of["packet_id"]) or None,
            stream_id=int(of["stream_id"]) if of["stream_id"] >= 0 else None,
            early_data=bool(of["early_data"]),
            latency=None if np.isnan(of["latency"]) else float(of["latency"]),
            properties=self._properties(row),
            session=self.session,
        )

    def _with_value(self, message: Message) -> Message:
        """Decode for one message, without the lock; its value is its own, not the one that frames share."""
        return replace(message, value=decode_one(self.decode, message.payload)[0])


def _integers(items: tuple[Any, ...], dtype: Any, none: int | None = None) -> NDArray[Any]:
    """Return an array of `items`, None replaced by `none`; of one element when all are the same, as they often are."""
    first = items[0]
    if items.count(first) == len(items):
        return np.full(1, none if first is None else first, dtype)
    if none is not None:
        items = tuple([none if item is None else item for item in items])
    return np.fromiter(items, dtype, len(items))


def _sent(time_ns: int, latency: float) -> str:
    """Return the timestamp that this latency came from."""
    return str(time_ns - round(float(latency) * 1e9))
