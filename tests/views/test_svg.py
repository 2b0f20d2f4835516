"""Pictures: well-formed, escaped, and right about what they show."""

from __future__ import annotations

import math
from xml.etree import ElementTree as ET

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mqttquic_lab.records.handshake import Flight
from mqttquic_lab.views import svg
from tests.helpers.samples import HOSTILE, quic_report
from tests.views.markup import check

VALUES = st.lists(st.one_of(st.floats(allow_nan=True), st.integers(0, 10)), max_size=400)


def elements(picture: str, css: str) -> list[ET.Element]:
    return [e for e in ET.fromstring(picture).iter() if css in e.get("class", "").split()]


@pytest.mark.parametrize("width", [520, 290])
def test_ladder_has_an_arrow_per_flight_and_a_bracket_per_round_trip(width: int) -> None:
    flights = quic_report().flights
    picture = svg.ladder(flights, width)
    text = check(picture)
    client, server = elements(picture, "head")[::2], elements(picture, "head")[1::2]
    assert {e.get("class") for e in client} == {"head c"}
    assert {e.get("class") for e in server} == {"head s"}
    assert text.count("1 RTT") == 2
    for words in ("Initial + Handshake", "CONNACK", "51.2 ms", "50.9 ms", "Sequence of 4 flights in 2 round trips"):
        assert words in text or words in picture


def test_arrows_point_where_they_went() -> None:
    picture = svg.ladder(quic_report().flights)
    lines = elements(picture, "fl")
    directions = [float(line.attrib["x2"]) > float(line.attrib["x1"]) for line in lines]
    assert directions == [True, False, True, False]
    assert all(float(line.attrib["y2"]) > float(line.attrib["y1"]) for line in lines), "time runs down"


def test_an_unanswered_flight_ends_in_a_cross() -> None:
    flights = (Flight("client", 0.0, 0.0, ("Initial",), ("ClientHello",)),)
    picture = svg.ladder(flights, unanswered="no answer")
    assert "no answer" in check(picture)
    assert len(elements(picture, "loss")) == 1
    assert elements(picture, "head") == []
    assert elements(svg.ladder(flights), "loss") == []


def test_a_ladder_stays_bounded() -> None:
    many = [Flight("client" if i % 2 else "server", i, i, ("Initial",) * 50, ("x" * 9999,) * 50) for i in range(500)]
    picture = svg.ladder(many)
    assert f"and {500 - svg.FLIGHTS_SHOWN} flights more" in check(picture)
    assert len(picture) < 60_000


def test_hostile_flights() -> None:
    for width in (520, 290):
        check(svg.ladder([Flight("client", 0.0, math.nan, (HOSTILE,), (HOSTILE,) * 9)], width, unanswered=HOSTILE))
    check(svg.ladder([]))


@given(VALUES)
@example([1.7e308, -1.7e308])
@example([5e-324])
def test_sparkline_and_plot_take_any_numbers(values: list[float]) -> None:
    check(svg.sparkline(values))
    picture = svg.line_plot([svg.Series("p50", values), svg.Series("p99", values[::-1], 2, "2 3")], unit="ms", span="x")
    check(picture)
    assert "nan" not in picture.replace("unknown", "")
    assert "inf" not in picture


def test_a_plot_says_what_it_shows() -> None:
    picture = svg.line_plot([svg.Series("rate", [1.0, 2.0, 480.0])], unit="messages/s", span="60 s ago")
    text = check(picture)
    assert "600 messages/s" in text
    assert "60 s ago" in text
    assert "now" in text
    assert 'aria-label="rate 480 messages/s, since 60 s ago"' in picture


def test_gaps_break_the_line() -> None:
    (path,) = elements(svg.line_plot([svg.Series("a", [1, 2, math.nan, 3, math.nan, 4])], unit="", span=""), "line")
    assert path.attrib["d"].count("M") == 3
    assert path.attrib["d"].count("h0.1") == 2, "a point alone shows as a dot"


@pytest.mark.parametrize(
    ("highest", "scale"),
    [(0, (1, 0.5)), (1, (1, 0.5)), (3, (3, 1)), (0.07, (0.1, 0.05)), (480, (600, 200)), (12_480, (15_000, 5000))],
)
def test_nice_scale(highest: float, scale: tuple[float, float]) -> None:
    assert svg.nice_scale(highest) == pytest.approx(scale)


@given(st.floats(1e-9, 1e15))
def test_nice_scale_holds_the_highest(highest: float) -> None:
    top, step = svg.nice_scale(highest)
    assert top >= highest * (1 - 1e-6)
    assert 1 <= round(top / step) <= 5


@given(st.lists(st.floats(0, 10), min_size=1, max_size=500), st.integers(1, 100))
def test_condense_keeps_the_range(values: list[float], most: int) -> None:
    points = svg.condense(values, most)
    assert len(points) == min(most, len(values))
    assert min(values) - 1e-9 <= min(points) <= max(points) <= max(values) + 1e-9


@given(st.text(max_size=300), st.integers(5, 60), st.integers(1, 4))
def test_wrap_bounds(text: str, room: int, most: int) -> None:
    assert len(svg.wrap(text, room, most)) <= most
