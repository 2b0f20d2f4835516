"""Topic names and filters, the subscription trie and the topic map, against the plain definition of matching."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttquic_lab.errors import ProtocolError, UsageError
from mqttquic_lab.mqtt import TopicMap, TopicTrie, check_topic_filter, check_topic_name, matches, split_shared
from tests.wire.strategies import light

# A small alphabet, so that filters and topics meet; empty levels and '$' topics included.
levels = st.sampled_from(["", "a", "b", "$s"])
topics = st.lists(levels, min_size=1, max_size=4).map("/".join).filter(bool)


@st.composite
def filters(draw: st.DrawFn) -> str:
    parts = draw(st.lists(levels | st.just("+"), max_size=4))
    if not parts or draw(st.booleans()):
        parts.append("#")
    return "/".join(parts) or "+"


def plainly_matches(topic_filter: str, topic: str) -> bool:
    """Whether a filter selects a topic, level by level as section 4.7 tells it."""
    wanted, given_levels = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in {"+", "#"}:
        return False
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(given_levels) or level not in {"+", given_levels[index]}:
            return False
        if index + 1 == len(given_levels) and wanted[index + 1 :] == ["#"]:
            return True
    return len(wanted) == len(given_levels)


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/#", "sport", True),
        ("sport/tennis/+", "sport/tennis/player1", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("#", "$SYS/uptime", False),
        ("+/monitor/Clients", "$SYS/monitor/Clients", False),
        ("$SYS/#", "$SYS/uptime", True),
        ("$SYS/monitor/+", "$SYS/monitor/Clients", True),
        ("ACCOUNTS", "Accounts", False),
        ("$share/readers/sport/#", "sport/tennis", True),
        ("$share/readers/#", "$SYS/uptime", False),
        ("a/$b/#", "a/$b/c", True),
        ("+/$b", "a/$b", True),
    ],
)
def test_examples_of_the_standard(topic_filter: str, topic: str, expected: bool) -> None:
    assert matches(topic_filter, topic) is expected
    trie: TopicTrie[str] = TopicTrie()
    trie.add(split_shared(topic_filter)[1], "k", "v")
    assert trie.match(topic) == (["v"] if expected else [])
    stored: TopicMap[int] = TopicMap()
    stored.set(topic, 1)
    assert list(stored.matching(split_shared(topic_filter)[1])) == ([(topic, 1)] if expected else [])


@light(300)
@given(topic_filter=filters(), topic=topics)
def test_matches(topic_filter: str, topic: str) -> None:
    check_topic_filter(topic_filter)
    check_topic_name(topic)
    assert matches(topic_filter, topic) == plainly_matches(topic_filter, topic)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), filters(), st.integers(0, 2)),
        st.tuples(st.just("remove"), filters(), st.integers(0, 2)),
        st.tuples(st.just("match"), topics, st.just(0)),
    ),
    max_size=30,
)


@light(200)
@given(steps=steps)
def test_trie_finds_what_brute_force_finds(steps: list[tuple[str, str, int]]) -> None:
    trie: TopicTrie[tuple[str, int, int]] = TopicTrie()
    held: dict[tuple[str, int], tuple[str, int, int]] = {}
    for number, (verb, text, key) in enumerate(steps):
        if verb == "add":
            value = (text, key, number)
            assert trie.add(text, key, value) is ((text, key) not in held)
            held[text, key] = value
        elif verb == "remove":
            assert trie.remove(text, key) == held.pop((text, key), None)
        else:
            found = trie.match(text)
            assert sorted(found) == sorted(v for (f, _), v in held.items() if plainly_matches(f, text))
            found.append(("mine", 0, 0))  # what match returned is the caller's
            assert ("mine", 0, 0) not in trie.match(text)
        assert len(trie) == len(held)
        assert sorted(trie) == sorted((f, k, v) for (f, k), v in held.items())
    for text, key in list(held):
        trie.remove(text, key)
    assert trie._root.is_empty(), "nothing may stay behind"


@light(200)
@given(steps=st.lists(st.tuples(st.booleans(), topics), max_size=20), wanted=filters() | topics)
def test_topic_map_finds_what_brute_force_finds(steps: list[tuple[bool, str]], wanted: str) -> None:
    stored: TopicMap[int] = TopicMap()
    held: dict[str, int] = {}
    for number, (keep, topic) in enumerate(steps):
        if keep:
            stored.set(topic, number)
            held[topic] = number
        else:
            assert stored.remove(topic) == held.pop(topic, None)
        assert stored.get(topic) == held.get(topic)
        assert (topic in stored) is (topic in held)
    assert len(stored) == len(held)
    assert dict(stored) == held
    assert dict(stored.matching(wanted)) == {t: v for t, v in held.items() if plainly_matches(wanted, t)}
    for topic in list(held):
        stored.remove(topic)
    assert not stored._root.children, "nothing may stay behind"


def test_topic_map_may_change_while_it_is_iterated() -> None:
    stored: TopicMap[int] = TopicMap()
    for number in range(10):
        stored.set(f"a/{number}", number)
    for topic, _ in stored.matching("a/+"):
        stored.remove(topic)
    assert len(stored) == 0


class CountingDict(dict[str, Any]):
    """Counts lookups, as a measure of work that does not depend on the machine's load."""

    lookups = 0

    def get(self, key: str, default: Any = None) -> Any:
        CountingDict.lookups += 1
        return super().get(key, default)


def work(subscriptions: int) -> int:
    """Return the node lookups of one match among that many subscriptions, of which two match."""
    trie: TopicTrie[int] = TopicTrie()
    for number in range(subscriptions):
        trie.add(f"plant/{number}/temp", 0, number)
    trie.add("plant/+/temp", 0, -1)
    stack = [trie._root]
    while stack:
        node = stack.pop()
        if node.children is not None:
            stack += node.children.values()
            node.children = CountingDict(node.children)
        if node.plus is not None:
            stack.append(node.plus)
    CountingDict.lookups = 0
    assert sorted(trie.match("plant/7/temp")) == [-1, 7]
    return CountingDict.lookups


def test_match_cost_does_not_grow_with_the_number_of_subscriptions() -> None:
    assert work(10) == work(10_000)


def test_remembered_matches_are_bounded_and_forgotten_on_change() -> None:
    trie: TopicTrie[int] = TopicTrie()
    trie.add("t/#", "a", 1)
    for number in range(3000):
        assert trie.match(f"t/{number}") == [1]
    assert len(trie._recent) <= 1024
    trie.add("t/+", "b", 2)
    assert sorted(trie.match("t/2999")) == [1, 2]
    trie.remove("t/#", "a")
    assert trie.match("t/2999") == [2]
    for key in range(100):
        trie.add("t/+", key, key)
    trie.match("t/1")
    assert not trie._recent  # a match with many values is not remembered


@pytest.mark.parametrize("topic", ["", "a/+", "#", "a\0", "a\ud800", "x" * 65_536])
def test_bad_topic_names(topic: str) -> None:
    with pytest.raises(UsageError):
        check_topic_name(topic)
    with pytest.raises(ProtocolError) as caught:
        check_topic_name(topic, from_peer=True)
    assert caught.value.rule.startswith("MQTT-")
    assert caught.value.reason_code


@pytest.mark.parametrize(
    "topic_filter",
    ["", "a#", "#/a", "a/#/b", "##", "a+", "+a/b", "a/b+", "a\0", "$share/", "$share//a", "$share/g", "$share/g/",
     "$share/+/a", "$share/g#/a", "$share/g/a#", "x" * 65_536],
)  # fmt: skip
def test_bad_topic_filters(topic_filter: str) -> None:
    with pytest.raises(UsageError):
        check_topic_filter(topic_filter)
    with pytest.raises(ProtocolError) as caught:
        check_topic_filter(topic_filter, from_peer=True)
    assert caught.value.rule.startswith("MQTT-")


@pytest.mark.parametrize("topic_filter", ["a", "/", "#", "+", "a/#", "+/+/#", "/+", "$share", "$share/g/#", "ä/+"])
def test_good_topic_filters(topic_filter: str) -> None:
    check_topic_filter(topic_filter)


def test_levels_may_be_limited() -> None:
    check_topic_name("a/b/c", max_levels=3)
    with pytest.raises(UsageError, match="at most 2 levels"):
        check_topic_name("a/b/c", max_levels=2)
    with pytest.raises(ProtocolError, match="more levels"):
        check_topic_filter("a/b/#", from_peer=True, max_levels=2)


def test_dollar_share_has_no_meaning_in_3_1_1() -> None:
    check_topic_filter("$share/g", shared=False)


@pytest.mark.parametrize(
    ("topic_filter", "expected"),
    [
        ("$share/g/a/#", ("g", "a/#")),
        ("$share/g//a", ("g", "/a")),
        ("$share/g", (None, "$share/g")),
        ("$share/g/", (None, "$share/g/")),
        ("share/g/a", (None, "share/g/a")),
    ],
)
def test_split_shared(topic_filter: str, expected: tuple[str | None, str]) -> None:
    assert split_shared(topic_filter) == expected


def test_types_are_checked() -> None:
    with pytest.raises(UsageError, match="is a str, not bytes"):
        check_topic_name(b"a")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="is a str, not int"):
        check_topic_filter(1)  # type: ignore[arg-type]
