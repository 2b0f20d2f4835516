"""Small SVG pictures: the ladder of a handshake, a sparkline, a line plot with axes and units.

Every function takes data and returns one ``<svg>`` element as text. Colours are classes of ``views.css``; what colour
says is repeated by arrow direction, dash pattern or words. Text comes from the network and is escaped here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from mqttquic_lab.views.html import escape, visible
from mqttquic_lab.views.quantities import milliseconds, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqttquic_lab.records.handshake import Flight

FLIGHTS_SHOWN = 16
"""Flights drawn; a handshake has four to eight, but a peer may answer in as many as it likes."""

_CHARACTER = 5.9  # px, mean width of a character of 11 px system-ui
_LINES = 4  # content lines of one flight


class Series(NamedTuple):
    """One line of a plot."""

    label: str
    values: Sequence[float]
    """NaN leaves a gap."""
    color: int = 1
    """1 blue, 2 orange, 3 green, 4 pink (Okabe-Ito)."""
    dash: str = ""
    """SVG dash pattern, so that lines differ without colour."""


def ladder(flights: Sequence[Flight], width: int = 520, *, unanswered: str = "") -> str:
    """Draw the flights of a handshake between two lifelines, round trips bracketed.

    Parameters
    ----------
    flights : sequence of Flight
        In order; the first :data:`FLIGHTS_SHOWN` are drawn.
    width : int
        Pixels at natural size. Below 400 the times move from the left margin into the lines.
    unanswered : str
        What to write at the end of a last client flight that got no answer; empty when that is as it should be.
    """
    wide = width >= 400
    left, right = (66, width - 74) if wide else (6, width - 68)
    room = int((right - left - 16) / _CHARACTER)
    parts: list[str] = []
    brackets: list[str] = []
    y = 26.0
    asked: tuple[float, float] | None = None
    shown = flights[:FLIGHTS_SHOWN]
    for number, flight in enumerate(shown):
        client = flight.sender == "client"
        when = milliseconds(flight.start if client else flight.end)
        packets = " + ".join(flight.packets)
        lines = wrap(", ".join(flight.content), room, _LINES)
        heading = packets or (lines.pop(0) if lines else "")  # TCP has no packet types worth a line of their own
        lost = bool(unanswered) and client and number == len(flights) - 1
        title = (
            f"{'client to broker' if client else 'broker to client'}, {when}: {packets}; {', '.join(flight.content)}"
        )
        parts.append(f"<g><title>{escape(title, 400)}</title>")
        middle = (left + right) / 2
        if wide:
            parts.append(_text(middle, y, heading, "t1", "middle", room))
        else:
            parts.append(
                f'<text x="{left + 8}" y="{y:g}"><tspan class="t3">{escape(when)}</tspan> '
                f'<tspan class="t1">{escape(heading, room - len(when))}</tspan></text>'
            )
        for line in lines:
            y += 13.5
            anchor, x = ("middle", middle) if wide else ("start", left + 8)
            parts.append(_text(x, y, line, "t2", anchor, room))
        start, y = y + 8, y + 20
        a, b = (left, right) if client else (right, left)
        parts.append(_arrow(a, start, b, y, "c" if client else "s", lost=lost))
        if lost:
            parts.append(_text(middle, y + 12, unanswered, "tbad", "middle", room))
        if wide:
            parts.append(_text(left - 8, (start if client else y) + 4, when, "t3", "end", 12))
        parts.append("</g>")
        if client:
            asked = (start, flight.start)
        elif asked is not None:
            brackets.append(_bracket(right + 10, asked[0], y, milliseconds(flight.end - asked[1])))
            asked = None
        y += 22
    if len(flights) > len(shown):
        parts.append(_text(left + 8, y, f"and {plural(len(flights) - len(shown), 'flight')} more", "t2", "start", room))
        y += 16
    bottom = y - 8
    lifelines = "".join(
        f'<line x1="{x}" x2="{x}" y1="14" y2="{bottom:g}" class="life"/>'
        + _text(x, 9, who, "t2", anchor if not wide else "middle", 12)
        for x, who, anchor in ((left, "client", "start"), (right, "broker", "middle"))
    )
    label = f"Sequence of {plural(len(flights), 'flight')} in {plural(len(brackets), 'round trip')}"
    return (
        f'<svg class="mql-ladder mql-ladder-{"wide" if wide else "narrow"}" viewBox="0 0 {width} {bottom + 4:g}" '
        f'role="img" aria-label="{escape(label)}">{lifelines}{"".join(parts)}{"".join(brackets)}</svg>'
    )


def _arrow(x1: float, y1: float, x2: float, y2: float, who: str, *, lost: bool) -> str:
    """Draw a line with a dot where it began and a head where it ended, or a cross if it never did."""
    sign = 1 if x2 > x1 else -1
    dot = f'<circle cx="{x1:g}" cy="{y1:g}" r="2.6" class="dot {who}"/>'
    if lost:
        x2 -= sign * (abs(x2 - x1) * 0.18)
        cross = f'<path d="M{x2 - 4:g} {y2 - 4:g} l8 8 m0 -8 l-8 8" class="loss"/>'
        return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" class="fl {who} lost"/>{dot}{cross}'
    length = math.hypot(x2 - x1, y2 - y1)
    ux, uy = (x2 - x1) / length, (y2 - y1) / length
    bx, by = x2 - 9 * ux, y2 - 9 * uy
    head = f"{x2:g},{y2:g} {bx - 3.6 * uy:.1f},{by + 3.6 * ux:.1f} {bx + 3.6 * uy:.1f},{by - 3.6 * ux:.1f}"
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{bx:.1f}" y2="{by:.1f}" class="fl {who}"/>{dot}'
        f'<polygon points="{head}" class="head {who}"/>'
    )


def _bracket(x: float, y1: float, y2: float, took: str) -> str:
    middle = (y1 + y2) / 2
    return (
        f'<path d="M{x:g} {y1:g} h6 v{y2 - y1:g} h-6" class="life" fill="none"/>'
        f'<text x="{x + 11:g}" y="{middle - 2:g}" class="t1">1 RTT</text>'
        f'<text x="{x + 11:g}" y="{middle + 11:g}" class="t3">{escape(took)}</text>'
    )


def _text(x: float, y: float, text: str, css: str, anchor: str, limit: int) -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{css}" text-anchor="{anchor}">{escape(text, limit)}</text>'


def wrap(text: str, room: int, most: int) -> list[str]:
    """Break text at spaces into at most `most` lines of `room` characters; the last one ends in an ellipsis if cut."""
    lines: list[str] = []
    for word in visible(text[: room * (most + 1)]).split():
        if lines and len(lines[-1]) + 1 + len(word) <= room:
            lines[-1] += f" {word}"
        elif len(lines) == most:
            lines[-1] = lines[-1][: room - 2] + " …"
            break
        else:
            lines.append(word)
    return lines


def sparkline(values: Sequence[float], width: int = 70, height: int = 16, color: int = 1) -> str:
    """Draw values as a thin line without axes; the highest of them touches the top."""
    points = condense(values, width // 2)
    known = [value for value in points if math.isfinite(value)]
    top = max(known, default=0.0)
    paths = _paths(points, width, height - 2, max(top, 1e-12), offset=1)
    return (
        f'<svg class="mql-spark" style="width:{width}px;height:{height}px" '
        f'viewBox="0 0 {width} {height}" aria-hidden="true">'
        f'<path d="{paths}" class="line c{color}"/></svg>'
    )


def line_plot(series: Sequence[Series], *, unit: str, span: str, height: int = 112) -> str:
    """Draw lines over a common time axis, as wide as what surrounds it.

    Parameters
    ----------
    series : sequence of Series
        Values at equal distances; the newest last.
    unit : str
        Of the values; stands at the top of the axis.
    span : str
        Words for the age of the first value, such as ``"60 s ago"``.
    height : int
        Pixels.
    """
    lines = [(one, condense(one.values, 240)) for one in series]
    known = [value for _, points in lines for value in points if math.isfinite(value)]
    top, step = nice_scale(max(known, default=0.0))
    below, above = 16, 8
    tall = height - below - above
    grid, labels = [], []
    for i in range(round(top / step) + 1):
        y = above + tall * (1 - i * step / top)
        grid.append(f'<line x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        words = f"{i * step:,.12g}" + (f" {unit}" if i == round(top / step) else "")
        if i:
            labels.append(f'<text x="2" y="{y + 11:.1f}" class="t3 halo">{escape(words)}</text>')
    paths = "".join(
        f'<path d="{_paths(points, 1000, 100, top)}" class="line c{one.color}"'
        + (f' stroke-dasharray="{escape(one.dash)}"' if one.dash else "")
        + f"><title>{escape(one.label)}</title></path>"
        for one, points in lines
    )
    newest = ", ".join(f"{one.label} {_last(points)}" for one, points in lines)
    return (
        f'<svg class="mql-plot" style="width:100%;height:{height}px" role="img" '
        f'aria-label="{escape(f"{newest} {unit}, since {span}")}">{"".join(grid)}'
        f'<svg x="0" y="{above}" width="100%" height="{tall}" style="width:100%;height:{tall}px" '
        f'viewBox="0 0 1000 100" preserveAspectRatio="none" '
        f'overflow="visible">{paths}</svg>{"".join(labels)}'
        f'<text x="0" y="{height - 3}" class="t3">{escape(span)}</text>'
        f'<text x="100%" y="{height - 3}" class="t3" text-anchor="end">now</text></svg>'
    )


def _last(points: Sequence[float]) -> str:
    known = [value for value in points if math.isfinite(value)]
    return f"{known[-1]:.3g}" if known else "unknown"


def _paths(points: Sequence[float], width: float, height: float, top: float, offset: float = 0) -> str:
    """Return an SVG path through the points; a point alone between gaps becomes a dot."""
    step = width / max(1, len(points) - 1)
    out: list[str] = []
    pen = False
    for i, value in enumerate(points):
        if not math.isfinite(value):
            pen = False
            continue
        y = offset + height * (1 - min(max(value / top, 0.0), 1.0))
        alone = not pen and (i + 1 == len(points) or not math.isfinite(points[i + 1]))
        out.append(f"{'L' if pen else 'M'}{i * step:.1f} {y:.1f}{'h0.1' if alone else ''}")
        pen = True
    return "".join(out)


def condense(values: Sequence[float], most: int) -> list[float]:
    """Return at most `most` values: means of equal runs, NaN where a run has none."""
    if len(values) <= most:
        return [float(value) for value in values]
    out = []
    for i in range(most):
        run = [v for v in values[i * len(values) // most : (i + 1) * len(values) // most] if math.isfinite(v)]
        out.append(sum(run) / len(run) if run else math.nan)
    return out


def nice_scale(highest: float) -> tuple[float, float]:
    """Return (top of the axis, distance of its ticks): 1, 2 or 5 times a power of ten, two to five ticks."""
    if not highest > 1e-300 or not math.isfinite(highest):
        return 1.0, 0.5
    highest = min(highest, 1e300)  # so that no step below leaves the range of a double
    power = 10.0 ** math.floor(math.log10(highest))
    for factor in (0.5, 1, 2, 5, 10):
        step = power * factor
        if highest <= 3 * step:
            return math.ceil(highest / step - 1e-9) * step, step
    return 10 * power, 5 * power
