"""Numbers with units, as they are read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttquic_lab.views import quantities as q

if TYPE_CHECKING:
    import datetime as dt


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "0.0 ms"),
        (0.00042, "0.42 ms"),
        (0.0512, "51.2 ms"),
        (0.1039, "104 ms"),
        (0.9996, "1 s"),
        (1.25, "1.25 s"),
        (1234.5, "1,234 s"),
        (math.nan, "unknown"),
        (-0.02, "-20.0 ms"),
    ],
)
def test_milliseconds(seconds: float, words: str) -> None:
    assert q.milliseconds(seconds) == words


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (64, "64 B"), (1023, "1,023 B"), (1536, "1.5 KiB"), (1_048_576, "1 MiB"), (268_435_460, "256 MiB")],
)
def test_byte_size(size: int, words: str) -> None:
    assert q.byte_size(size) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.5, "0.5 s"), (60, "1 min"), (90, "90 s"), (7200, "2 h"), (3600, "1 h"), (86_400 * 3, "3 days")],
)
def test_duration(seconds: float, words: str) -> None:
    assert q.duration(seconds) == words


def test_a_number_before_words() -> None:
    assert q.counted(1, "messages queued") == "1 message queued"
    assert q.counted(2000, "messages queued") == "2,000 messages queued"
    assert q.counted(1, "decode errors") == "1 decode error"
    assert q.counted(1, "data streams open") == "1 data stream open"
    assert q.counted(1, "dropped from full queues") == "1 dropped from full queues"
    assert q.counted(1, "dropped as too large") == "1 dropped as too large"


def test_clock_and_time_of_day() -> None:
    assert q.clock(134) == "02:14"
    assert q.clock(3734) == "1:02:14"
    assert q.time_of_day(1_790_000_000_217_000_000) == "14:13:20.217"
    assert q.time_of_day(2**80) == "?"


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_any_float_has_words(value: float) -> None:
    assert q.milliseconds(value)


@given(st.datetimes(), st.datetimes(), st.datetimes())
def test_any_validity_has_words(before: dt.datetime, after: dt.datetime, now: dt.datetime) -> None:
    assert q.expiry(before, after, now)
