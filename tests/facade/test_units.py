"""Durations as people write them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttquic_lab.errors import UsageError
from mqttquic_lab.units import parse_seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (2, 2.0),
        (0.5, 0.5),
        (0, 0.0),
        ("2", 2.0),
        ("50ms", 0.05),
        ("2s", 2.0),
        (" 2 s ", 2.0),
        ("1.5min", 90.0),
        ("1.5 MIN", 90.0),
        (".5h", 1800.0),
        ("1d", 86_400.0),
        ("250us", 0.000_25),
        ("250µs", 0.000_25),
        ("5ns", 5e-9),
        ("1e3ms", 1.0),
    ],
)
def test_durations(value: float | str, seconds: float) -> None:
    assert parse_seconds(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    ["", "s", "2 parsecs", "50 m s", "1,5s", "--2s", "2s3", "nan", "inf", "-1s", -1, float("nan"), float("inf")],
)
def test_what_is_no_duration_says_how_to_write_one(value: float | str) -> None:
    with pytest.raises(UsageError, match="delay"):
        parse_seconds(value, name="delay")


@pytest.mark.parametrize("value", [None, True, b"2s", [2]])
def test_other_types_are_refused(value: Any) -> None:
    with pytest.raises(UsageError, match=type(value).__name__):
        parse_seconds(value)


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_a_usage_error(text: str) -> None:
    try:
        seconds = parse_seconds(text)
    except UsageError:
        return
    assert 0 <= seconds < float("inf")
