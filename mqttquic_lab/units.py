"""Quantities as a person writes them: ``"50ms"``, ``"2s"``, ``1.5``."""

from __future__ import annotations

import math
import re

from mqttquic_lab.errors import UsageError

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_QUANTITY = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([a-zµ]*)\s*", re.IGNORECASE)


def parse_seconds(value: float | str, *, name: str = "duration") -> float:
    """Return a duration in seconds.

    Parameters
    ----------
    value : float or str
        Seconds, or a string with a unit: ns, us, ms, s, min, h, d. A string without a unit is in seconds.
    name : str
        What it is, for the error.

    Raises
    ------
    UsageError
        If it is no duration, negative, or not finite.

    Examples
    --------
    >>> parse_seconds("50ms"), parse_seconds("1.5min"), parse_seconds(2)
    (0.05, 90.0, 2.0)
    """
    if isinstance(value, str):
        match = _QUANTITY.fullmatch(value)
        unit = match[2].lower() or "s" if match else ""
        if match is None or unit not in _SECONDS:
            raise UsageError(f'{name} {value!r} is no duration: write seconds, or for example "50ms", "2s", "1.5min"')
        seconds = float(match[1]) * _SECONDS[unit]
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(f'{name} must be seconds or a string such as "50ms", not {type(value).__name__}')
    else:
        seconds = float(value)
    if not math.isfinite(seconds) or seconds < 0:
        raise UsageError(f"{name} must be finite and not negative: {value!r}")
    return seconds
