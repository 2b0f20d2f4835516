"""A live view that holds still: static HTML for a notebook that is saved, text for everything else."""

from __future__ import annotations

import datetime as dt
import math
from pathlib import Path
from typing import TYPE_CHECKING

from mqttquic_lab.views.html import page
from mqttquic_lab.views.live import Row, Snapshot, freeze_html, freeze_text
from mqttquic_lab.widgets.aggregate import BIN_NS, BINS

if TYPE_CHECKING:
    from typing import Any

    from mqttquic_lab.widgets.collector import Collector

ROWS = 50
TOPICS = 60


class FrozenView:
    """One moment of a live view: no script, no kernel, nothing loaded from anywhere.

    Attributes
    ----------
    snapshot : Snapshot
        The moment as data.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    @property
    def html(self) -> str:
        """HTML fragment with its own style sheet; everything that came from the network is escaped in it."""
        return freeze_html(self.snapshot)

    def page(self) -> str:
        """Return a whole HTML document."""
        return page(self.html, self.snapshot.title)

    def save(self, path: str | Path) -> Path:
        """Write :meth:`page` to a file; returns its path."""
        target = Path(path)
        target.write_text(self.page(), encoding="utf-8")
        return target

    def text(self) -> str:
        """Return the same as text."""
        return freeze_text(self.snapshot)

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text()


def file_name(snapshot: Snapshot, kind: str) -> str:
    """Return a file name that says what and when: ``live-view-20261122-120409.html``."""
    moment = dt.datetime.fromtimestamp(snapshot.taken_ns // 1_000_000_000, dt.UTC)
    return f"{kind.replace(' ', '-')}-{moment:%Y%m%d-%H%M%S}.html"


def snapshot_of(collector: Collector, now_ns: int, **more: Any) -> Snapshot:
    """Return the moment that a collector has just read.

    Parameters
    ----------
    collector : Collector
    now_ns : int
        Nanoseconds since the epoch.
    **more
        Further fields of :class:`mqttquic_lab.views.live.Snapshot`; at least ``title``.
    """
    totals, topics = collector.totals(), collector.topics
    rate, quantiles = collector.rates.series(now_ns)
    latency = {}
    if collector.rates.latencies:
        latency = {name: tuple(line.tolist()) for name, line in zip(("p50", "p95", "p99"), quantiles.T, strict=True)}
    counters = dict(more.pop("counters", {}))
    if topics.beyond:
        counters["messages on topics beyond the table"] = topics.beyond
    if totals.uncounted:
        counters["not in the counts"] = totals.uncounted
    shown = topics.top(now_ns, TOPICS)
    rows = [
        Row(
            row.time_ns,
            row.topic,
            row.head,
            row.size,
            qos=row.flags & 3,
            retain=bool(row.flags & 4),
            dup=bool(row.flags & 8),
            early_data=bool(row.flags & 16),
            stream_id=row.stream_id if row.stream_id >= 0 else None,
            latency=row.latency if math.isfinite(row.latency) else None,
        )
        for row in reversed(collector.newest(ROWS))
    ]
    return Snapshot(
        taken_ns=now_ns,
        rows=tuple(rows),
        topics=tuple(shown),
        topics_hidden=len(topics.names) - len(shown),
        rate=tuple(rate.tolist()) if totals.received else (),
        latency=latency,
        span=BINS * BIN_NS / 1e9,
        received=totals.received,
        held=totals.held,
        dropped=totals.dropped,
        counters=counters,
        **more,
    )
