"""Which feeds a message belongs to."""

from __future__ import annotations

import itertools
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttquic_lab.mqtt import Subscription, matches
from mqttquic_lab.session import routing
from mqttquic_lab.session.routing import Router, filters_overlap

LEVEL = st.sampled_from(["a", "b", ""])
TOPICS = st.lists(LEVEL, min_size=1, max_size=4).map("/".join).filter(bool)


@st.composite
def filters(draw: st.DrawFn) -> str:
    levels = draw(st.lists(st.sampled_from(["a", "b", "", "+"]), max_size=3))
    if draw(st.booleans()) or not any(levels):
        levels.append("#")
    return "/".join(levels)


ALL_TOPICS = ["/".join(levels) for n in range(1, 6) for levels in itertools.product(("a", "b", ""), repeat=n)]


@given(filters(), filters(), TOPICS)
def test_filters_that_a_topic_matches_overlap(one: str, other: str, topic: str) -> None:
    if matches(one, topic) and matches(other, topic):
        assert filters_overlap(one, other)
        assert filters_overlap(other, one)


@given(filters(), filters())
def test_filters_overlap_only_where_a_topic_matches_both(one: str, other: str) -> None:
    if filters_overlap(one, other):
        assert any(matches(one, topic) and matches(other, topic) for topic in ALL_TOPICS)


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a/+", "a/b", True),
        ("a/+", "+/b", True),
        ("a/+", "b/+", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/#", "b/#", False),
        ("a/b", "a", False),
        ("a/+", "a", False),
        ("+", "a/b", False),
        ("#", "a/b", True),
        ("#", "$SYS/a", False),
        ("+/a", "$SYS/a", False),
        ("$SYS/#", "$SYS/a", True),
        ("a/+/c", "a/b", False),
        ("a/+/#", "a/b", True),
        ("a/b/#", "a/+", True),
    ],
)
def test_overlap(one: str, other: str, overlap: bool) -> None:
    assert filters_overlap(one, other) is overlap
    assert filters_overlap(other, one) is overlap


class FakeFeed:
    def __init__(self, *filters: str) -> None:
        self.filters = filters

    def __repr__(self) -> str:
        return f"feed of {self.filters}"


def feed(*filters: str) -> Any:
    return cast("Any", FakeFeed(*filters))


def add(router: Router, *filters: str, identifier: int | None = None, **options: Any) -> Any:
    made = feed(*filters)
    router.add(made, [Subscription(f, **options) for f in filters], identifier)
    return made


def test_each_feed_once_however_many_filters_match() -> None:
    router = Router()
    one, two = add(router, "a/#", "a/b", "+/b"), add(router, "#")
    assert set(router.route("a/b", None, False)) == {one, two}
    assert router.route("c", None, False) == (two,)


def test_identifiers_say_whose_copy_it_is() -> None:
    router = Router()
    one, two = add(router, "a/#", identifier=1), add(router, "a/b", identifier=2)
    assert router.route("a/b", (1,), False) == (one,)
    assert router.route("a/b", (2,), False) == (two,)
    assert set(router.route("a/b", (1, 2), False)) == {one, two}


def test_two_feeds_of_one_filter_are_one_subscription() -> None:
    router = Router()
    one = add(router, "a/#", "b", identifier=1)
    two = add(router, "a/#", identifier=2)
    assert router.route("a/x", (2,), False) == (one, two)
    assert router.route("b", (1,), False) == (one,)
    # What the broker sends again because the second one subscribed goes to the second one only.
    assert router.route("a/x", (2,), True) == (two,)


def test_retain_as_published_tells_nothing_about_who_subscribed() -> None:
    router = Router()
    one = add(router, "a", identifier=1, retain_as_published=True)
    two = add(router, "a", identifier=2, retain_as_published=True)
    assert router.route("a", (2,), True) == (one, two)


def test_an_unknown_identifier_falls_back_to_the_topic() -> None:
    router = Router()
    one = add(router, "a/#")
    assert router.route("a/b", (99,), False) == (one,)


def test_shared_subscriptions_match_by_their_filter() -> None:
    router = Router()
    one = add(router, "$share/g/a/+")
    assert router.route("a/b", None, False) == (one,)
    assert router.overlapping(["a/b"]) == [Subscription("$share/g/a/+")]


def test_removal_returns_filters_nobody_holds() -> None:
    router = Router()
    one, two = add(router, "a", "b", identifier=1), add(router, "a", identifier=2)
    assert router.remove(one, one.filters) == ["b"]
    assert router.route("a", (2,), False) == (two,)
    assert router.remove(one, one.filters) == []
    assert router.remove(two, ["a"]) == ["a"]
    assert router.route("a", (2,), False) == ()
    assert router.current("a") is None
    assert router.next_identifier() == 1  # all free again


def test_identifiers_in_use_are_not_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "MAX_IDENTIFIER", 3)
    router = Router()
    assert router.next_identifier() == 1
    add(router, "a", identifier=1)
    add(router, "b", identifier=2)
    assert router.next_identifier() == 3
    assert router.next_identifier() == 3


def test_routes_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "CACHE_LIMIT", 10)
    router = Router()
    one = add(router, "#", identifier=1)
    for number in range(50):
        assert router.route(f"t/{number}", None, False) == (one,)
        assert router.route(f"t/{number}", (1,), False) == (one,)
    assert len(router.cache) <= 10
    assert len(router._identified) <= 10
    router.cache.clear()
    router._identified.clear()
    assert router.route("x" * 600, None, False) == router.route("x" * 600, (1,), False) == (one,)
    assert router.route("x", tuple(range(1, 100)), False) == (one,)
    assert not router.cache
    assert not router._identified


def test_a_change_is_seen_at_once() -> None:
    router = Router()
    assert router.route("a", None, False) == ()
    one = add(router, "a")
    assert router.route("a", None, False) == (one,)
