"""What one update says to the browser: small texts as JSON, columns as binary buffers.

The receiving side is live.js. ``columns`` names the buffers in order, each with its type: ``f8`` float64, ``f4``
float32, ``u4`` uint32, ``u2`` uint16, ``u1`` uint8, little-endian as NumPy has them on every platform with a notebook.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mqttquic_lab.views.html import shorten
from mqttquic_lab.views.quantities import byte_size, count, plural
from mqttquic_lab.widgets.aggregate import SPARK_BINS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mqttquic_lab.widgets.collector import Collector, Row, Totals

Tick = tuple[dict[str, Any], list[bytes]]

HEADROOM = 0.94
"""Part of a plot's height that its largest value takes."""

_FORMATS = {"f8": "<f8", "f4": "<f4", "u4": "<u4", "u2": "<u2", "u1": "u1"}


class _Buffers:
    def __init__(self) -> None:
        self.names: list[tuple[str, str]] = []
        self.data: list[bytes] = []

    def add(self, name: str, kind: str, values: Any) -> None:
        self.names.append((name, kind))
        self.data.append(np.asarray(values).astype(_FORMATS[kind]).tobytes())

    def add_bytes(self, name: str, data: bytes) -> None:
        self.names.append((name, "u1"))
        self.data.append(data)


def tick(
    collector: Collector,
    rows: Sequence[Row],
    now_ns: int,
    *,
    errors: int,
    newest_error: str = "",
    topics_from: int | None,
    reset: bool = False,
) -> Tick:
    """Build one update.

    Parameters
    ----------
    collector : Collector
        Where the totals come from.
    rows : sequence of Row
        What the table gets, oldest first.
    now_ns : int
        Nanoseconds since the epoch.
    errors : int
        How many errors the status line tells of.
    newest_error : str
        The newest of them.
    topics_from : int or None
        Send the names of topics from this one on, and the counts of all; None leaves topics out.
    reset : bool
        The browser forgets the rows it has: these are all there are.

    Returns
    -------
    tuple of dict and list of bytes
        Content and buffers of a custom widget message.
    """
    buffers = _Buffers()
    names: dict[str, int] = {}
    if rows:
        buffers.add("id", "f8", [row.id for row in rows])
        buffers.add("time", "f8", [row.time_ns / 1e6 for row in rows])
        buffers.add("name", "u2", [names.setdefault(row.topic, len(names)) for row in rows])
        buffers.add("flags", "u1", [row.flags for row in rows])
        buffers.add("size", "u4", [row.size for row in rows])
        buffers.add("stream", "f8", [row.stream_id for row in rows])
        buffers.add("ms", "f4", [row.latency * 1e3 for row in rows])
        buffers.add("offset", "u4", np.cumsum([0, *(len(row.head) for row in rows)]))
        buffers.add_bytes("payload", b"".join(row.head for row in rows))
    totals = collector.totals()
    rate, quantiles = collector.rates.series(now_ns)
    top = nice_top(float(rate.max()))
    low, high = decades(quantiles)
    buffers.add("rate", "f4", rate / top * HEADROOM if totals.received else np.full(rate.shape, np.nan))
    with np.errstate(invalid="ignore"):
        heights = (np.log10(np.maximum(quantiles, 1e-9)) - low) / (high - low) * HEADROOM
    for name, values in zip(("p50", "p95", "p99"), heights.T, strict=True):
        buffers.add(name, "f4", values)
    content: dict[str, Any] = {
        "kind": "tick",
        "reset": reset,
        "names": list(names),
        "columns": buffers.names,
        "status": {
            "received": totals.received,
            "parts": status_parts(totals, collector.stride, errors, newest_error),
            "plots": [_rate_plot(collector, totals, top, now_ns), _latency_plot(collector, totals, low, high, now_ns)],
        },
    }
    if topics_from is not None:
        topics = collector.topics
        sparks = topics.sparks(now_ns)
        peaks = sparks.max(axis=1, initial=0)
        buffers.add("counts", "f8", topics.counts)
        buffers.add("peaks", "f4", peaks)
        buffers.add("sparks", "u1", np.ceil(sparks * 255 / np.maximum(peaks, 1)[:, None]))
        content["topics"] = {
            "start": topics_from,
            "names": topics.names[topics_from:],
            "last": topics.last(),
            "bins": SPARK_BINS,
            "beyond": topics.beyond,
        }
    return content, buffers.data


def status_parts(totals: Totals, stride: int, errors: int, newest_error: str = "") -> list[dict[str, str]]:
    """Return the pieces of the status line that is always there."""
    parts = [
        {"text": f"{count(totals.received)} received"},
        {
            "text": f"{count(totals.dropped)} dropped",
            "tone": "warn" if totals.dropped else "",
            "title": "Pushed out of the log by max_messages or max_bytes.",
        },
        {
            "text": f"view shows 1 in {count(stride)}" if stride > 1 else "view shows every message",
            "title": "Rows of the table. Counts, rate and latency are made from all messages.",
        },
    ]
    if totals.uncounted:
        parts.append(
            {
                "text": f"{count(totals.uncounted)} not in the counts",
                "tone": "warn",
                "title": "They had left the log before this view could read them.",
            }
        )
    if errors:
        what = (
            f"{plural(errors, 'error')}, newest: {shorten(newest_error, 80)}"
            if newest_error
            else plural(errors, "error")
        )
        parts.append({"text": what, "tone": "bad", "title": newest_error})
    else:
        parts.append({"text": "no errors"})
    return parts


def nice_top(value: float) -> float:
    """Return the end of an axis from 0: 1, 2 or 5 times a power of ten, at least 1."""
    if value <= 1:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return next(factor * unit for factor in (1.0, 2.0, 5.0, 10.0) if factor * unit >= value)


def decades(quantiles: NDArray[np.float64]) -> tuple[int, int]:
    """Return the ends of a logarithmic axis, as powers of ten of a second."""
    known = quantiles[~np.isnan(quantiles)]
    known = known[known > 0]
    if not known.size:
        return -3, -2
    low = math.floor(math.log10(float(known.min())))
    return low, max(low + 1, math.ceil(math.log10(float(known.max()))))


def _rate_plot(collector: Collector, totals: Totals, top: float, now_ns: int) -> dict[str, Any]:
    messages, size = collector.rates.now(now_ns)
    rate = count(messages) if messages >= 10 or messages == int(messages) else f"{messages:.1f}"
    return {
        "label": "messages per second",
        "texts": [["messages/s", rate, ""], ["payload", f"{byte_size(size)}/s", ""]],
        "area": True,
        "marks": [] if not totals.received else [[0, "0"], [HEADROOM / 2, _short(top / 2)], [HEADROOM, _short(top)]],
        "empty": "" if totals.received else "no message yet",
    }


def _latency_plot(collector: Collector, totals: Totals, low: int, high: int, now_ns: int) -> dict[str, Any]:
    rates = collector.rates
    recent = rates.latency(now_ns)
    shown = [_ms(value) for value in recent] if recent else ["-"] * 3
    texts = [["latency ms · p50", shown[0], "p50"], ["p95", shown[1], "p95"], ["p99", shown[2], "p99"]]
    if recent:
        texts.append(["last 10 s", "", ""])
    if rates.early:
        texts.append([f"{plural(rates.early, 'message')} came before they were sent: the clocks differ", "", ""])
    empty = ""
    if not totals.received:
        empty = "no message yet"
    elif not rates.latencies:
        empty = "not known: publish with timestamp=True"
    every = max(1, -(-(high - low) // 3))
    marks = [
        [HEADROOM * (power - low) / (high - low), _short(10.0 ** (power + 3))] for power in range(low, high + 1, every)
    ]
    return {"label": "latency in milliseconds", "texts": texts, "marks": [] if empty else marks, "empty": empty}


def _short(value: float) -> str:
    return count(value) if value >= 10 or value == int(value) else f"{value:g}"


def _ms(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:.{2 if value < 0.995 else 1 if value < 99.5 else 0}f}"
