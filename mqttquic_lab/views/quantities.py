"""Numbers with their units, as a person reads them; the same words in every view."""

from __future__ import annotations

import datetime as dt
import math
import re

_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_PLURAL = re.compile(r"^(\S+?|\S+ \S{3,}?)s(?= |$)")
_SINGULAR = r"\1"


def milliseconds(seconds: float) -> str:
    """Return ``"0.42 ms"``, ``"51.2 ms"``, ``"104 ms"``, ``"1.25 s"``: three figures that matter."""
    if not math.isfinite(seconds):
        return "unknown"
    value = abs(seconds) * 1e3
    if value >= 999.5:
        return f"{seconds:.3g} s" if abs(seconds) < 1000 else f"{seconds:,.0f} s"
    if value >= 99.95:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds * 1e3:.1f} ms" if value >= 9.995 or value == 0 else f"{seconds * 1e3:.2f} ms"


def byte_size(count: float) -> str:
    """Return ``"64 B"``, ``"1.5 KiB"``, ``"8.4 MiB"``."""
    value = float(count)
    for unit in _BYTE_UNITS[:-1]:
        if abs(value) < 1024:
            return f"{value:,.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:,.4g} {_BYTE_UNITS[-1]}"


def count(number: float) -> str:
    """Return ``"48,210"``: digits grouped."""
    return f"{number:,.0f}"


def counted(number: int, words: str) -> str:
    """Return a number before words of which the first or second is a plural, ``"3 messages queued"``."""
    return f"{count(number)} {_PLURAL.sub(_SINGULAR, words) if number == 1 else words}"


def plural(number: int, one: str, many: str = "") -> str:
    """Return ``"1 ticket"`` or ``"2 tickets"``."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """Return how long something lasts in its largest unit: ``"7200 s"`` is ``"2 h"``, 90 s is ``"90 s"``."""
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size or (seconds == size and unit != "days"):
            value = seconds / size
            return f"{value:,.0f} {unit}" if abs(value - round(value)) < 0.05 else f"{value:,.1f} {unit}"
    return f"{seconds:,.3g} s" if seconds < 100 else f"{seconds:,.0f} s"


def clock(seconds: float) -> str:
    """Return an elapsed time as ``"02:14"`` or ``"1:02:14"``."""
    whole = max(0, int(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60:02d}:{rest % 60:02d}"


def time_of_day(time_ns: int) -> str:
    """Return nanoseconds since the epoch as UTC ``"12:04:09.217"``; ``"?"`` where no such time exists."""
    try:
        moment = dt.datetime.fromtimestamp(time_ns // 1_000_000_000, dt.UTC)
    except (OverflowError, ValueError, OSError):
        return "?"
    return f"{moment:%H:%M:%S}.{time_ns // 1_000_000 % 1000:03d}"


def date(moment: dt.datetime) -> str:
    """Return ``"2026-05-03 23:59 UTC"``."""
    return f"{_utc(moment):%Y-%m-%d %H:%M} UTC"


def expiry(not_before: dt.datetime, not_after: dt.datetime, now: dt.datetime) -> str:
    """Return how a validity period stands: ``"expires in 128 days"``, ``"expired 3 days ago"``."""
    now = _utc(now)
    if now < _utc(not_before):
        return f"not valid before {_span(_utc(not_before) - now)} from now"
    left = _utc(not_after) - now
    if left < dt.timedelta():
        return f"expired {_span(-left)} ago"
    return f"expires in {_span(left)}"


def _span(delta: dt.timedelta) -> str:
    if delta >= dt.timedelta(days=2):
        return f"{delta.days:,} days"
    return plural(int(delta.total_seconds() // 3600), "hour")


def _utc(moment: dt.datetime) -> dt.datetime:
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)
