"""Running totals over every message a view has read: rates, latency percentiles, counts per topic.

What the browser shows of single messages may be a sample; these numbers never are. Each batch of columns is folded
in once, so the cost grows with what is new and the memory stays what it was at the start.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from mqttquic_lab.views.live import TopicCount
from mqttquic_lab.views.quantities import byte_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

BINS = 120
"""Points of the plots' time axis."""

BIN_NS = 500_000_000
"""Width of one of them: half a second, so that the axis is a minute long."""

RECENT_BINS = 20
"""Bins that the latency numbers beside the plot cover: 10 s."""

SPARK_BINS = 30
"""Points of a topic's sparkline."""

SPARK_NS = 2_000_000_000
"""Width of one of them: again a minute in all."""

MAX_TOPICS = 1000
"""Topics counted one by one; messages on further ones are counted together."""

NAME_LIMIT = 200
"""Characters kept of a topic name."""

QUANTILES = (0.5, 0.95, 0.99)

_FIRST_NS = 1e-6  # upper edge of the first bucket, seconds
_PER_DECADE = 48
_BUCKETS = 9 * _PER_DECADE  # 1 us to 1000 s, each 4.9 % wide
_VALUE_HEAD = 96
_VALUE_SHOWN = 14


class Rates:
    """Messages and bytes per second, and percentiles of the latency, over the last minute.

    Latencies go into a histogram of buckets 4.9 % wide, so a percentile is off by 2.5 % at most.

    Attributes
    ----------
    latencies : int
        Messages whose latency was known.
    early : int
        Messages that arrived before they were sent: the two clocks differ by more than the path takes.
    """

    def __init__(self) -> None:
        self.latencies = self.early = 0
        self._bin = np.full(BINS, -1, np.int64)  # which bin of absolute time each slot stands for
        self._messages = np.zeros(BINS, np.int64)
        self._bytes = np.zeros(BINS, np.int64)
        self._histogram = np.zeros((BINS, _BUCKETS), np.int64)
        self._quantiles = np.full((BINS, len(QUANTILES)), np.nan)

    def add(
        self,
        time_ns: NDArray[np.int64],
        size: NDArray[np.uint32],
        latency: NDArray[np.float64],
        now_ns: int,
    ) -> None:
        """Fold in messages; those older than the axis, or from the future of a clock set back, are left out."""
        bins = time_ns // BIN_NS
        now = now_ns // BIN_NS
        self.latencies += int(np.count_nonzero(~np.isnan(latency)))
        self.early += int(np.count_nonzero(latency < 0))
        for number in np.unique(bins[(bins > now - BINS) & (bins <= now)]).tolist():
            slot = number % BINS
            if self._bin[slot] != number:
                self._bin[slot] = number
                self._messages[slot] = self._bytes[slot] = 0
                self._histogram[slot] = 0
                self._quantiles[slot] = np.nan
            chosen = bins == number
            self._messages[slot] += int(np.count_nonzero(chosen))
            self._bytes[slot] += int(size[chosen].sum(dtype=np.int64))
            known = latency[chosen]
            known = known[~np.isnan(known)]
            if known.size:
                self._histogram[slot] += np.bincount(_bucket(known), minlength=_BUCKETS)
                self._quantiles[slot] = _quantiles(self._histogram[slot])

    def series(self, now_ns: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return messages/s and the latency percentiles (seconds, one row per bin) of the last complete bins."""
        wanted = np.arange(now_ns // BIN_NS - BINS + 1, now_ns // BIN_NS)
        slots = wanted % BINS
        there = self._bin[slots] == wanted
        rate = np.where(there, self._messages[slots], 0) * (1e9 / BIN_NS)
        return rate, np.where(there[:, None], self._quantiles[slots], np.nan)

    def now(self, now_ns: int) -> tuple[float, float]:
        """Return messages/s and bytes/s over the last two complete bins: one second."""
        wanted = now_ns // BIN_NS - np.array([1, 2])
        slots = wanted % BINS
        there = self._bin[slots] == wanted
        seconds = len(wanted) * BIN_NS / 1e9
        return self._messages[slots][there].sum() / seconds, self._bytes[slots][there].sum() / seconds

    def latency(self, now_ns: int) -> tuple[float, float, float] | None:
        """Return p50, p95 and p99 in seconds over the last 10 s; None if no latency is known there."""
        recent = (self._bin > now_ns // BIN_NS - RECENT_BINS) & (self._bin <= now_ns // BIN_NS)
        total = self._histogram[recent].sum(axis=0)
        if not total.any():
            return None
        low, middle, high = _quantiles(total).tolist()
        return low, middle, high


def _bucket(latency: NDArray[np.float64]) -> NDArray[np.int64]:
    decades = np.log10(np.maximum(latency, _FIRST_NS) / _FIRST_NS)
    buckets: NDArray[np.int64] = np.minimum(np.ceil(decades * _PER_DECADE), _BUCKETS - 1).astype(np.int64)
    return buckets


def _quantiles(histogram: NDArray[np.int64]) -> NDArray[np.float64]:
    cumulated = np.cumsum(histogram)
    ranks = np.ceil(np.array(QUANTILES) * cumulated[-1])
    buckets = np.searchsorted(cumulated, np.maximum(ranks, 1))
    middle: NDArray[np.float64] = _FIRST_NS * 10.0 ** (np.maximum(buckets - 0.5, 0) / _PER_DECADE)
    return middle


class TopicTable:
    """Counts, sparkline and newest payload of each topic, in the order in which topics first appeared.

    Attributes
    ----------
    names : list of str
    beyond : int
        Messages on topics that came after the table was full.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.beyond = 0
        self._index: dict[str, int] = {}
        self._counts = np.zeros(MAX_TOPICS, np.int64)
        self._bin = np.full(SPARK_BINS + 1, -1, np.int64)  # and the one that is still filling
        self._spark = np.zeros((MAX_TOPICS, SPARK_BINS + 1), np.int64)
        self._heads: list[tuple[bytes, int]] = []
        self._last: list[str | None] = []

    def identify(self, name: str) -> int:
        """Return the number of a topic in this table, -1 if the table is full."""
        if len(name) > NAME_LIMIT:
            name = f"{name[: NAME_LIMIT - 10]}…{hash(name) & 0xFFFFFFFF:08x}"
        number = self._index.get(name)
        if number is None:
            if len(self.names) >= MAX_TOPICS:
                return -1
            number = self._index[name] = len(self.names)
            self.names.append(name)
            self._heads.append((b"", 0))
            self._last.append("")
        return number

    def add(
        self, numbers: NDArray[np.int64], time_ns: NDArray[np.int64], payloads: Sequence[bytes], now_ns: int
    ) -> None:
        """Fold in messages; `numbers` comes from :meth:`identify`, in the order of arrival."""
        known = numbers >= 0
        self.beyond += int(np.count_nonzero(~known))
        places = np.flatnonzero(known)
        numbers, bins = numbers[places], time_ns[places] // SPARK_NS
        self._counts += np.bincount(numbers, minlength=MAX_TOPICS)
        now = now_ns // SPARK_NS
        for number in np.unique(bins[(bins >= now - SPARK_BINS) & (bins <= now)]).tolist():
            slot = number % (SPARK_BINS + 1)
            if self._bin[slot] != number:
                self._bin[slot] = number
                self._spark[:, slot] = 0
            self._spark[:, slot] += np.bincount(numbers[bins == number], minlength=MAX_TOPICS)
        newest = np.full(len(self.names), -1, np.int64)
        newest[numbers] = places  # of equal numbers the last one stays
        for number in np.flatnonzero(newest >= 0).tolist():
            payload = payloads[int(newest[number])]
            self._heads[number] = payload[:_VALUE_HEAD], len(payload)
            self._last[number] = None

    @property
    def counts(self) -> NDArray[np.int64]:
        """Messages of each topic, as many as there are names."""
        return np.array(self._counts[: len(self.names)])

    def sparks(self, now_ns: int) -> NDArray[np.int64]:
        """Return messages per topic (rows) and complete two-second bin (columns), oldest bin first."""
        now = now_ns // SPARK_NS
        wanted = np.arange(now - SPARK_BINS, now)
        slots = wanted % (SPARK_BINS + 1)
        found: NDArray[np.int64] = np.where(self._bin[slots] == wanted, self._spark[: len(self.names)][:, slots], 0)
        return found

    def last(self) -> list[str]:
        """Return the newest payload of each topic in a few characters."""
        for number, text in enumerate(self._last):
            if text is None:
                self._last[number] = brief(*self._heads[number])
        return [text or "" for text in self._last]

    def top(self, now_ns: int, limit: int) -> list[TopicCount]:
        """Return the topics with most messages, most first, as a snapshot holds them."""
        sparks, counts = self.sparks(now_ns), self.counts
        order = np.argsort(-counts, kind="stable")[:limit].tolist()
        per_second = 1e9 / SPARK_NS
        return [
            TopicCount(self.names[i], int(counts[i]), self._heads[i][0], tuple((sparks[i] * per_second).tolist()))
            for i in order
        ]


def brief(head: bytes, size: int) -> str:
    """Return a payload in a few characters: a short value as it is, anything else as its size."""
    if size > len(head):
        return byte_size(size)
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        return byte_size(size)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        numbers = [v for v in value.values() if isinstance(v, (int, float)) and not isinstance(v, bool)]
        if len(numbers) != 1:
            return byte_size(size)
        text = _number(numbers[0])
    elif isinstance(value, float):
        text = _number(value)
    text = " ".join(text.split())
    return text if len(text) <= _VALUE_SHOWN else byte_size(size)


def _number(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e4 else str(value)
