"""Subscription matching: what finding a topic's subscribers costs with 10, 1,000 and 100,000 subscriptions.

The cost must follow what matches, not what is subscribed. Beside it paho-mqtt's own matcher, and the filters compared
one by one. Ours remembers the answers for recent topics until a subscription changes: that figure stands apart.
"""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING, Any

from mqttquic_lab.mqtt import TopicTrie, matches

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = (10, 1_000, 100_000)
TOPICS = 2_000
"""Topics asked for per figure."""


def filters(count: int) -> list[str]:
    """Return `count` filters: of ten, eight name one topic, one has a ``+`` and one ends in ``#``."""
    found = []
    for number in range(count):
        site, device = divmod(number, 100)
        kind = number % 10
        if kind == 8:
            found.append(f"site/{site}/+/temp{device}")
        elif kind == 9:
            found.append(f"site/{site}/device{device}/#")
        else:
            found.append(f"site/{site}/device{device}/temp")
    return found


def topics(count: int) -> list[str]:
    """Return topics that are published to `count` such filters; about nine in ten are subscribed."""
    possible = range(max(1, round(count * 1.1)))
    numbers = [divmod(number, 100) for number in random.Random(1).sample(possible, min(len(possible), TOPICS))]
    return [f"site/{site}/device{device}/temp" for site, device in numbers]


def _nothing() -> None:
    """Leave the matcher as it is."""


def _time(match: Callable[[str], object], asked: list[str], before: Callable[[], object] = _nothing) -> float:
    """Return µs per topic in the fastest of several rounds, each begun with `before`."""
    best = float("inf")
    for _ in range(max(3, TOPICS // len(asked))):
        before()
        started = time.perf_counter()
        for topic in asked:
            match(topic)
        best = min(best, time.perf_counter() - started)
    return best / len(asked) * 1e6


def run(scale: float = 1.0) -> dict[str, Any]:
    """Return µs per topic by number of subscriptions and matcher, and how many filters matched on average."""
    from paho.mqtt.matcher import MQTTMatcher

    figures: dict[str, Any] = {}
    for size in SIZES:
        count = max(10, int(size * scale))
        wanted, asked = filters(count), topics(count)
        ours: TopicTrie[int] = TopicTrie()
        theirs: Any = MQTTMatcher()
        for number, topic_filter in enumerate(wanted):
            ours.add(topic_filter, number, number)
            theirs[topic_filter] = number
        found = [sorted(ours.match(topic)) for topic in asked]
        assert found == [sorted(theirs.iter_match(topic)) for topic in asked]
        few = asked[: max(1, 2_000 // count)]
        figures[f"{count:,}"] = {
            "matching": sum(map(len, found)) / len(found),
            "mqttquic_lab": _time(ours.match, asked, lambda: _change(ours)),  # noqa: B023 - called right here
            "mqttquic_lab, again": _time(ours.match, asked[:500]),
            "paho-mqtt": _time(lambda topic: list(theirs.iter_match(topic)), asked),  # noqa: B023 - called right here
            "one by one": _time(lambda topic: [f for f in wanted if matches(f, topic)], few),  # noqa: B023
        }
    return figures


def _change(trie: TopicTrie[int]) -> None:
    trie.add("another", -1, -1)
    trie.remove("another", -1)


def tables(figures: dict[str, Any]) -> str:
    """Return the figures as text; ours as a multiple."""
    lines = ["\nSubscription matching (µs per topic; ours is ... times as fast)"]
    for size, matchers in figures.items():
        lines.append(f"  {size} subscriptions, {matchers['matching']:.2f} of them matching a topic")
        ours = matchers["mqttquic_lab"]
        lines += [
            f"    {name:20}{value:12,.2f}{value / ours:12,.2f} x"
            for name, value in matchers.items()
            if name != "matching"
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    result = run()
    print(tables(result))
    print(json.dumps(result, indent=2))
