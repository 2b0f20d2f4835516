"""What a live view shows at one moment, as data; and that moment as static HTML or text.

A live widget dies with its kernel, and a committed notebook has none. :func:`snapshot_of` takes what is to be seen out
of a log, :func:`freeze_html` and :func:`freeze_text` write it down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mqttquic_lab.views import facts
from mqttquic_lab.views import html as h
from mqttquic_lab.views import quantities as q
from mqttquic_lab.views.card import card, dot
from mqttquic_lab.views.payload import preview
from mqttquic_lab.views.svg import Series, line_plot, sparkline

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mqttquic_lab.records.handshake import HandshakeReport
    from mqttquic_lab.records.log import ColumnBatch, MessageLog

ROWS = 100
"""Newest messages in a snapshot."""

TOPICS = 60
"""Topics in a snapshot, those with most messages."""

_SAMPLE = 500_000
"""Newest messages that rate and latency are computed from."""

_BINS = 60
_ERRORS = 20
_QUANTILES = ((50, 1, ""), (95, 2, "7 3"), (99, 3, "2 3"))
"""Percentile, colour, dash pattern."""


class Row(NamedTuple):
    """One message of the table."""

    time_ns: int
    topic: str
    payload: bytes
    size: int
    """Bytes; `payload` may be cut."""
    qos: int = 0
    retain: bool = False
    dup: bool = False
    early_data: bool = False
    stream_id: int | None = None
    latency: float | None = None
    """Seconds."""


class TopicCount(NamedTuple):
    """One topic of the list."""

    name: str
    messages: int
    last: bytes = b""
    """Its newest payload, may be cut."""
    rate: tuple[float, ...] = ()
    """Messages per second over the span of the snapshot, for a sparkline."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A moment of a live view; everything in it is plain data of bounded size."""

    title: str
    """Topic filters of a feed, or whose dashboard it is."""
    url: str = ""
    state: str = "connected"
    """``"connecting"``, ``"connected"`` or ``"closed"``."""
    reason: str = ""
    """When not connected: why, since when, what is being tried. One sentence."""
    taken_ns: int = 0
    """Nanoseconds since the epoch."""
    chips: tuple[h.Chip, ...] = ()
    rows: tuple[Row, ...] = ()
    """Newest first."""
    topics: tuple[TopicCount, ...] = ()
    topics_hidden: int = 0
    """Topics beyond those listed."""
    rate: tuple[float, ...] = ()
    """Messages per second, equal steps, newest last."""
    latency: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """``"p50"``, ``"p95"``, ``"p99"`` -> seconds, steps as in `rate`, NaN where unknown."""
    span: float = 60.0
    """Seconds that `rate` and `latency` cover."""
    received: int = 0
    """Messages ever received."""
    held: int = 0
    """Messages in the log."""
    dropped: int = 0
    """Messages that a bound pushed out of the log."""
    counters: Mapping[str, int] = field(default_factory=dict)
    """More for the status line, in words -> number, such as ``"lost packets"``."""
    filter: str = ""
    """Filter of the table, as typed."""
    hidden: int = 0
    """Messages that the filter hides."""
    errors: tuple[tuple[float, str, str], ...] = ()
    """(seconds since the epoch, where, what), newest last."""
    errors_total: int = 0
    handshake: HandshakeReport | None = None
    hint: str = ""
    """Code that would publish a first message, for the empty state."""


def snapshot_of(
    log: MessageLog,
    *,
    title: str,
    now_ns: int | None = None,
    span: float = 60.0,
    rows: int = ROWS,
    errors: Iterable[Any] = (),
    **more: Any,
) -> Snapshot:
    """Take a snapshot of a log.

    Parameters
    ----------
    log : MessageLog
    title : str
    now_ns : int, optional
        The present, nanoseconds since the epoch; default the newest message's time.
    span : float
        Seconds of rate and latency shown.
    rows : int
        Newest messages shown.
    errors : iterable of ErrorRecord
        Anything with ``time``, ``where`` and ``message``.
    **more
        Further fields of :class:`Snapshot`.
    """
    total, held, dropped = log.total, len(log), log.dropped
    batch = log.columns_since(max(0, total - _SAMPLE), _SAMPLE)
    names = log.topics if batch.topic_epoch == log.columns_since(total, 1).topic_epoch else []
    if now_ns is None:
        now_ns = int(batch.time_ns[-1]) if batch.count else 0
    ages = (now_ns - batch.time_ns) / 1e9
    recent = (ages >= 0) & (ages < span)
    bins = np.minimum(((span - ages[recent]) / span * _BINS).astype(np.int64), _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS) * (_BINS / span)
    noted = list(errors)
    counted = log.topic_counts()
    more.setdefault("errors_total", len(noted))
    extra = {"decode errors": log.decode_errors} | dict(more.pop("counters", {}))
    return Snapshot(
        title=title,
        taken_ns=now_ns,
        rows=tuple(_rows(batch, names, rows)),
        topics=tuple(_topics(batch, names, counted, bins, recent, span)),
        topics_hidden=max(0, len(counted) - TOPICS),
        rate=tuple(counts.tolist()) if batch.count else (),
        latency=_latency(batch.latency[recent], bins),
        span=span,
        received=total,
        held=held,
        dropped=dropped,
        counters={words: number for words, number in extra.items() if number},
        errors=tuple((error.time, error.where, error.message) for error in noted[-_ERRORS:]),
        **more,
    )


def _rows(batch: ColumnBatch, names: list[str], most: int) -> Iterable[Row]:
    for i in range(batch.count - 1, max(-1, batch.count - 1 - most), -1):
        code, flags = int(batch.topic[i]), int(batch.qos_flags[i])
        latency, stream = float(batch.latency[i]), int(batch.stream_id[i])
        yield Row(
            time_ns=int(batch.time_ns[i]),
            topic=names[code] if code < len(names) else "?",
            payload=batch.payloads[i][:1024],
            size=int(batch.size[i]),
            qos=flags & 3,
            retain=bool(flags & 4),
            dup=bool(flags & 8),
            early_data=bool(flags & 16),
            stream_id=stream if stream >= 0 else None,
            latency=latency if math.isfinite(latency) else None,
        )


def _topics(
    batch: ColumnBatch, names: list[str], counted: dict[str, int], bins: Any, recent: Any, span: float
) -> Iterable[TopicCount]:
    codes = {name: code for code, name in enumerate(names)}
    newest = dict(zip(batch.topic.tolist(), range(batch.count), strict=True))  # the last one of each stays
    recent_codes = batch.topic[recent]
    for name, number in list(counted.items())[:TOPICS]:
        code = codes.get(name, -1)
        rate = np.bincount(bins[recent_codes == code], minlength=_BINS) * (_BINS / span)
        last = batch.payloads[newest[code]][:256] if code in newest else b""
        yield TopicCount(name, number, last, tuple(rate.tolist()))


def _latency(latency: Any, bins: Any) -> dict[str, tuple[float, ...]]:
    known = np.isfinite(latency)
    if not known.any():
        return {}
    lines = np.full((len(_QUANTILES), _BINS), np.nan)
    latency, bins = latency[known], bins[known]
    for i in np.unique(bins).tolist():
        lines[:, i] = np.percentile(latency[bins == i], [percent for percent, _, _ in _QUANTILES])
    return {f"p{percent}": tuple(line) for (percent, _, _), line in zip(_QUANTILES, lines.tolist(), strict=True)}


# HTML


def freeze_html(snapshot: Snapshot) -> str:
    """Return the snapshot as an HTML fragment that stands alone: no script, nothing loaded, everything escaped."""
    counted = "".join(f"<span>{h.escape(part)}</span>" for part in status(snapshot))
    body = (
        '<div class="mql-card mql-broad">'
        + _head(snapshot)
        + "".join(h.notice(item) for item in _notices(snapshot))
        + _handshake(snapshot)
        + (_main(snapshot) if snapshot.rows or snapshot.topics else _waiting(snapshot))
        + _plots(snapshot)
        + _errors(snapshot)
        + f'<div class="mql-status">{counted}</div></div>'
    )
    return h.fragment(body, f"Frozen view of {snapshot.title}", "mql-live")


def _head(snapshot: Snapshot) -> str:
    word, kind = facts.STATES.get(snapshot.state, (snapshot.state, "muted"))
    chips = [h.Chip(word, kind), *snapshot.chips]
    return (
        '<div class="mql-head">'
        + dot(word, kind)
        + h.clip(snapshot.title, 80, css="mql-url")
        + (h.clip(snapshot.url, 80, css="mql-where") if snapshot.url else "")
        + f'<span class="mql-chips">{"".join(map(h.chip, chips))}</span>'
        + f'<span class="mql-big mql-taken">frozen {h.escape(_taken(snapshot))}</span></div>'
    )


def _taken(snapshot: Snapshot) -> str:
    return f"at {q.time_of_day(snapshot.taken_ns)} UTC" if snapshot.taken_ns else "before the first message"


def _notices(snapshot: Snapshot) -> list[h.Notice]:
    found = []
    if snapshot.state != "connected":
        found.append(h.Notice(snapshot.reason or f"The session is {snapshot.state}.", "warn"))
    if snapshot.handshake is not None:
        # A live session's own error stands above; verification and fallback must be seen here as well.
        found += [item for item in facts.notices(snapshot.handshake) if item.text not in snapshot.reason]
    return found


def _handshake(snapshot: Snapshot) -> str:
    if snapshot.handshake is None:
        return ""
    moment = facts.utc_now() if not snapshot.taken_ns else facts.moment(snapshot.taken_ns)
    line = facts.line(snapshot.handshake)
    return h.details("Handshake", line, card(snapshot.handshake, moment))


def _waiting(snapshot: Snapshot) -> str:
    hint = f"<p>Publish one: <code class='mql-code'>{h.escape(snapshot.hint)}</code></p>" if snapshot.hint else ""
    words = "Waiting for the first message." if snapshot.state == "connected" else "No message was received."
    return f'<div class="mql-empty"><b>{words}</b>{hint}</div>'


def _main(snapshot: Snapshot) -> str:
    topics = [
        (
            h.clip(one.name, 60),
            f'<span class="mql-number">{q.count(one.messages)}</span>',
            sparkline(one.rate) if one.rate else "",
            h.clip(preview(one.last, 24), 24, css="mql-code"),
        )
        for one in snapshot.topics
    ]
    rows = [
        (
            q.time_of_day(row.time_ns),
            h.clip(row.topic, 60),
            h.clip(preview(row.payload, 120, size=row.size), 120, css="mql-code"),
            str(row.qos),
            flags(row),
            "" if row.stream_id is None else str(row.stream_id),
            "" if row.latency is None else f"{row.latency * 1e3:,.1f}",
        )
        for row in snapshot.rows
    ]
    more = f"<p>and {q.plural(snapshot.topics_hidden, 'topic')} more</p>" if snapshot.topics_hidden else ""
    return (
        f'<div class="mql-main"><div>{h.table(("topic", "messages", "", "last"), topics, "mql-topics")}{more}</div>'
        f"<div>{h.table(('time UTC', 'topic', 'payload', 'QoS', '', 'stream', 'ms'), rows, 'mql-messages')}</div></div>"
    )


def flags(row: Row) -> str:
    """Return the flags of a row as letters: R retained, D sent again, 0 early data."""
    return " ".join(letter for letter, set_ in (("R", row.retain), ("D", row.dup), ("0", row.early_data)) if set_)


def _plots(snapshot: Snapshot) -> str:
    if not snapshot.rate:
        return ""
    ago = f"{q.duration(snapshot.span)} ago"
    rate = line_plot([Series("messages/s", snapshot.rate)], unit="messages/s", span=ago)
    figures = [f"<figure><figcaption>{_legend('messages/s', rate_figures(snapshot))}</figcaption>{rate}</figure>"]
    if snapshot.latency:
        styles = {f"p{percent}": (color, dash) for percent, color, dash in _QUANTILES}
        lines = [
            Series(name, [value * 1e3 for value in values], *styles.get(name, (4, "")))
            for name, values in snapshot.latency.items()
        ]
        plot = line_plot(lines, unit="ms", span=ago)
        figures.append(
            f"<figure><figcaption>{_legend('latency ms', latency_figures(snapshot))}</figcaption>{plot}</figure>"
        )
    return f'<div class="mql-plots">{"".join(figures)}</div>'


def _legend(what: str, figures: Sequence[tuple[str, str]]) -> str:
    dashes = {f"p{percent}": (color, dash) for percent, color, dash in _QUANTILES}
    parts = []
    for name, value in figures:
        key = ""
        if name in dashes:
            color, dash = dashes[name]
            key = (
                '<svg class="mql-key" style="width:18px;height:8px" aria-hidden="true">'
                f'<path d="M1 4h16" class="line c{color}" stroke-dasharray="{dash}"/></svg>'
            )
        parts.append(f"<span>{key}{h.escape(name)} <b>{h.escape(value)}</b></span>")
    return f"<span>{h.escape(what)}</span>{''.join(parts)}"


def rate_figures(snapshot: Snapshot) -> list[tuple[str, str]]:
    """Return the rate in numbers: now, and on average."""
    if not snapshot.rate:
        return []
    mean = sum(snapshot.rate) / len(snapshot.rate)
    return [("now", q.count(snapshot.rate[-1])), ("mean", q.count(mean) if mean >= 10 else f"{mean:.2g}")]


def latency_figures(snapshot: Snapshot) -> list[tuple[str, str]]:
    """Return the newest known percentiles in milliseconds."""
    found = []
    for name, values in snapshot.latency.items():
        known = [value for value in values if math.isfinite(value)]
        if known:
            found.append((name, f"{known[-1] * 1e3:.3g}"))
    return found


def _errors(snapshot: Snapshot) -> str:
    if not snapshot.errors:
        return ""
    rows = [
        (q.time_of_day(int(when * 1e9)), h.clip(where, 40), h.clip(what, 300))
        for when, where, what in reversed(snapshot.errors)
    ]
    total = max(snapshot.errors_total, len(rows))
    body = h.table(("time UTC", "where", "what"), rows)
    return f'<div class="mql-errors"><h4>{h.escape(q.plural(total, "error"))}</h4>{body}</div>'


def status(snapshot: Snapshot) -> list[str]:
    """Return the parts of the status line: everything that was counted."""
    parts = [f"{q.count(snapshot.received)} received", f"{q.count(snapshot.dropped)} dropped"]
    if snapshot.rows:
        parts.append(f"table shows the newest {q.count(len(snapshot.rows))} of {q.count(snapshot.held)} held")
    if snapshot.filter:
        parts.append(f"filter {snapshot.filter} hides {q.plural(snapshot.hidden, 'message')}")
    parts += [q.counted(number, words) for words, number in snapshot.counters.items()]
    errors = max(snapshot.errors_total, len(snapshot.errors))
    parts.append(q.plural(errors, "error") if errors else "no errors")
    return parts


# Text


def freeze_text(snapshot: Snapshot, *, rows: int = 20, width: int = 100) -> str:
    """Return the snapshot as text: the same facts, the newest `rows` messages, lines of at most `width` characters."""
    word, _ = facts.STATES.get(snapshot.state, (snapshot.state, "muted"))
    where = f" {snapshot.url}" if snapshot.url else ""
    lines = [f"{snapshot.title}{where} [{word}] frozen {_taken(snapshot)}"]
    lines += [chip.text for chip in snapshot.chips]
    lines += [f"! {item.text}" for item in _notices(snapshot)]
    if snapshot.handshake is not None:
        lines.append(f"handshake: {facts.line(snapshot.handshake)}")
    if not snapshot.rows and not snapshot.topics:
        lines.append("Waiting for the first message." if snapshot.state == "connected" else "No message was received.")
        if snapshot.hint:
            lines.append(f"Publish one: {snapshot.hint}")
    for one in snapshot.topics:
        lines.append(f"{q.count(one.messages):>12}  {h.shorten(one.name, 48):48} {preview(one.last, 30)}")
    if snapshot.topics_hidden:
        lines.append(f"{'':14}and {q.plural(snapshot.topics_hidden, 'topic')} more")
    for row in snapshot.rows[:rows]:
        latency = "" if row.latency is None else f"{row.latency * 1e3:.1f} ms"
        stream = "" if row.stream_id is None else f"stream {row.stream_id}"
        lines.append(
            f"{q.time_of_day(row.time_ns)}  QoS {row.qos} {flags(row):3} {stream:9} {latency:>9}  "
            f"{h.shorten(row.topic, 40)}  {preview(row.payload, 60, size=row.size)}"
        )
    if len(snapshot.rows) > rows:
        lines.append(f"and {q.plural(len(snapshot.rows) - rows, 'row')} more")
    for what, figures in (("messages/s", rate_figures(snapshot)), ("latency ms", latency_figures(snapshot))):
        if figures:
            lines.append(f"{what}: " + ", ".join(f"{name} {value}" for name, value in figures))
    lines += [f"error {q.time_of_day(int(when * 1e9))} {place}: {what}" for when, place, what in snapshot.errors]
    lines.append(" · ".join(status(snapshot)))
    return "\n".join(h.shorten(line, width) for line in lines)
