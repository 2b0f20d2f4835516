"""Choosing streams: what goes where in each mode, what is evicted, when to wait, and when waiting is in vain."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mqttquic_lab.errors import StreamLimitError, UsageError
from mqttquic_lab.mqtt import CONTROL_STREAM, StreamChoice, StreamKey, StreamMapping, StreamMode
from tests.wire.strategies import light

CONTROL = StreamChoice(CONTROL_STREAM)


def topic(name: str) -> StreamKey:
    return StreamKey("topic", name)


def used(choice: StreamChoice) -> StreamKey:
    assert choice.key is not None
    return choice.key


def test_single_uses_the_control_stream() -> None:
    mapping = StreamMapping(peer_limit=0)
    assert mapping.for_publish("a", 2) == mapping.for_subscribe("a/#") == CONTROL
    assert mapping.on_streams_of("a/#") == ()
    assert len(mapping) == 0


@pytest.mark.parametrize(("mode", "hint"), [("per_topic", "did you mean 'per-topic'"), ("x", "it takes 'single'")])
def test_unknown_modes(mode: Any, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        StreamMapping(mode)


@pytest.mark.parametrize("limits", [{"max_streams": 0}, {"peer_limit": -1}])
def test_impossible_limits(limits: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="must be"):
        StreamMapping("per-topic", **limits)  # type: ignore[arg-type]


# Per topic ----------------------------------------------------------------------------------------------------------


def test_per_topic_reuses_a_topic_s_stream() -> None:
    mapping = StreamMapping("per-topic")
    assert mapping.for_publish("a") == StreamChoice(topic("a"), opens=True)
    assert mapping.for_publish("b") == StreamChoice(topic("b"), opens=True)
    assert mapping.for_publish("a") == StreamChoice(topic("a"))
    assert list(mapping) == [topic("b"), topic("a")]
    assert mapping.opened == 2


def test_per_topic_ends_the_least_recently_used_idle_stream() -> None:
    mapping = StreamMapping("per-topic", max_streams=3)
    for name in "abc":
        mapping.for_publish(name)
    mapping.for_publish("a")
    mapping.for_publish("b", 1)  # busy
    choice = mapping.for_publish("d")
    assert choice == StreamChoice(topic("d"), opens=True, evict=topic("c"))
    assert topic("c") not in mapping
    assert len(mapping) == 4  # "c" takes a place at the peer until it has ended
    mapping.closed(topic("c"))
    assert len(mapping) == 3
    assert mapping.for_publish("e").evict == topic("a")
    assert mapping.for_publish("f").evict == topic("d")
    assert mapping.evictions == 3


def test_per_topic_at_the_peer_s_limit_waits_for_the_evicted_stream_to_end() -> None:
    mapping = StreamMapping("per-topic", peer_limit=2)
    mapping.for_publish("a")
    mapping.for_publish("b")
    assert mapping.for_publish("c") == StreamChoice(None, evict=topic("a"))
    assert mapping.for_publish("c") == StreamChoice(None)  # one is enough
    assert mapping.for_publish("a") == StreamChoice(None)  # and it cannot come back before it has gone
    mapping.closed(topic("a"))
    assert mapping.for_publish("c") == StreamChoice(topic("c"), opens=True)
    assert mapping.waits == 3


def test_a_topic_comes_back_only_after_its_old_stream_has_ended() -> None:
    mapping = StreamMapping("per-topic", max_streams=1)
    mapping.for_publish("a")
    assert mapping.for_publish("b").evict == topic("a")
    assert mapping.for_publish("a") == StreamChoice(None)  # its messages would overtake each other
    assert topic("b") in mapping
    mapping.closed(topic("a"))
    assert mapping.for_publish("a") == StreamChoice(topic("a"), opens=True, evict=topic("b"))


def test_per_topic_waits_for_busy_streams() -> None:
    mapping = StreamMapping("per-topic", max_streams=1)
    mapping.for_publish("a", 1)
    mapping.for_publish("a", 2)
    assert mapping.for_publish("b") == StreamChoice(None)
    assert not mapping.answered(topic("a"))
    assert mapping.for_publish("b") == StreamChoice(None)
    assert not mapping.answered(topic("a"))
    assert mapping.for_publish("b") == StreamChoice(topic("b"), opens=True, evict=topic("a"))


def test_subscriptions_have_streams_of_their_own_and_keep_them() -> None:
    mapping = StreamMapping("per-topic", peer_limit=2)
    key = used(mapping.for_subscribe("a"))
    assert key == StreamKey("filter", "a")
    assert used(mapping.for_publish("a")) == topic("a")
    assert mapping.for_subscribe("a") == StreamChoice(key)
    assert mapping.on_streams_of("a") == (key,)
    assert mapping.for_publish("b").evict == topic("a")  # never the subscription's
    mapping.closed(topic("a"))
    mapping.for_publish("b")
    assert mapping.unsubscribed(key, "a")
    assert mapping.on_streams_of("a") == ()
    assert not mapping.unsubscribed(key, "a")


def test_waiting_in_vain_is_an_error_that_names_the_limit() -> None:
    mapping = StreamMapping("per-topic", peer_limit=9)
    for number in range(8):
        mapping.for_subscribe(f"f/{number}")
    mapping.open_explicit()
    with pytest.raises(
        StreamLimitError, match="9 data streams are open and the peer allows 9; 8 of them are held"
    ) as e:
        mapping.for_subscribe("f/9")
    assert "subscribing to 'f/9'" in str(e.value)
    with pytest.raises(StreamLimitError, match="publishing to 'x'"):
        mapping.for_publish("x")
    with pytest.raises(StreamLimitError, match="an explicit stream"):
        mapping.open_explicit()
    assert len(mapping) == 9


def test_our_own_limit_is_told_as_ours() -> None:
    mapping = StreamMapping("per-topic", max_streams=1)
    mapping.for_subscribe("f")
    with pytest.raises(StreamLimitError, match="max_streams allows 1"):
        mapping.for_publish("x")


def test_a_finishing_stream_does_not_help_when_our_own_limit_is_held() -> None:
    mapping = StreamMapping("per-topic", max_streams=1)
    mapping.for_publish("a")
    assert mapping.for_subscribe("f") == StreamChoice(StreamKey("filter", "f"), opens=True, evict=topic("a"))
    with pytest.raises(StreamLimitError):
        mapping.for_publish("b")


def test_a_peer_without_data_streams() -> None:
    mapping = StreamMapping("per-publish", peer_limit=0)
    with pytest.raises(StreamLimitError, match="use streams='single'"):
        mapping.for_publish("x")


# Per publish --------------------------------------------------------------------------------------------------------


def test_per_publish_gives_each_message_a_stream() -> None:
    mapping = StreamMapping("per-publish")
    first, second = mapping.for_publish("a"), mapping.for_publish("a", 1)
    assert (first.opens, first.finish) == (True, "now")
    assert (second.opens, second.finish) == (True, "answered")
    assert first.key != second.key
    assert mapping.for_subscribe("a") == CONTROL
    assert mapping.finishing(used(first))
    assert not mapping.finishing(used(first))
    assert mapping.answered(used(second))
    assert list(mapping) == []
    assert len(mapping) == 2
    for choice in (first, second):
        assert mapping.closed(used(choice)) == ()
    assert len(mapping) == 0


def test_per_publish_waits_at_the_limit() -> None:
    mapping = StreamMapping("per-publish", peer_limit=1)
    key = used(mapping.for_publish("a", 1))
    assert mapping.for_publish("b") == StreamChoice(None)
    assert mapping.answered(key)
    assert mapping.for_publish("b") == StreamChoice(None)
    mapping.closed(key)
    assert mapping.for_publish("b").opens


def test_streams_whose_answers_come_elsewhere_end_at_once() -> None:
    mapping = StreamMapping("per-publish", answers_elsewhere=True)
    assert mapping.for_publish("a", 2).finish == "now"
    mapping = StreamMapping("per-topic", answers_elsewhere=True, max_streams=1)
    mapping.for_publish("a", 2)
    assert mapping.for_publish("b", 2).evict == topic("a")


# Explicit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["single", "per-topic", "per-publish"])
def test_explicit_streams_in_every_mode(mode: StreamMode) -> None:
    mapping = StreamMapping(mode)
    one, two = used(mapping.open_explicit()), used(mapping.open_explicit())
    assert one != two
    assert mapping.for_publish("a", 1, stream=one) == StreamChoice(one)
    assert mapping.for_publish("a", stream=CONTROL_STREAM) == CONTROL
    for key in (one, two):
        assert mapping.for_subscribe("f", stream=key) == StreamChoice(key)
    assert set(mapping.on_streams_of("f")) == {one, two}
    assert not mapping.answered(one)
    assert not mapping.unsubscribed(one, "f")
    assert one in mapping
    assert mapping.closed(two) == ("f",)
    with pytest.raises(UsageError, match="not open"):
        mapping.for_publish("a", stream=two)


# Connections --------------------------------------------------------------------------------------------------------


def test_reset_tells_what_to_subscribe_again() -> None:
    mapping = StreamMapping("per-topic")
    explicit = used(mapping.open_explicit())
    mapping.for_subscribe("b", stream=explicit)
    mapping.for_subscribe("a", stream=explicit)
    mapping.for_subscribe("c")
    mapping.for_publish("t", 1)
    mapping.finishing(topic("t"))
    assert mapping.reset() == {StreamKey("filter", "c"): ("c",), explicit: ("a", "b")}
    assert len(mapping) == 0
    assert not mapping.answered(topic("t"))
    assert mapping.for_publish("t").opens


def test_credit_is_counted_from_what_is_open() -> None:
    mapping = StreamMapping("per-topic")
    mapping.for_publish("a", 1)
    mapping.credit(1)
    assert mapping.peer_limit == 2
    assert mapping.for_publish("b", 1).opens
    mapping.credit(0)
    assert mapping.for_publish("c") == StreamChoice(None)
    mapping.credit(-3)
    assert mapping.peer_limit == 2
    assert repr(mapping) == "<StreamMapping 'per-topic': 2 of 64 in use, 0 finishing, peer's limit 2>"


class Streams(RuleBasedStateMachine):
    """A caller that does what the choices say, against a peer that counts streams."""

    @initialize(
        mode=st.sampled_from(["single", "per-topic", "per-publish"]),
        bound=st.integers(1, 5),
        limit=st.none() | st.integers(0, 5),
    )
    def begin(self, mode: StreamMode, bound: int, limit: int | None) -> None:
        self.mapping = StreamMapping(mode, max_streams=bound, peer_limit=limit)
        self.bound, self.limit = bound, limit
        self.open: set[StreamKey] = set()
        self.ending: set[StreamKey] = set()
        self.busy: list[StreamKey] = []
        self.subscribed: list[tuple[StreamKey, str]] = []

    def carry_out(self, choice: StreamChoice) -> bool:
        if choice.evict is not None:
            assert choice.evict in self.open
            assert choice.evict not in self.busy
            assert choice.evict.kind == "topic"
            self.end(choice.evict)
        if choice.key is None:
            can_free = self.ending or any(key.kind in ("topic", "publish") for key in self.busy)
            assert can_free, "waiting in vain"
            return False
        if choice.opens:
            assert choice.key not in self.open | self.ending
            self.open.add(choice.key)
        elif choice.key != CONTROL_STREAM:
            assert choice.key in self.open
        return True

    def end(self, key: StreamKey) -> None:
        self.open.remove(key)
        self.ending.add(key)

    @rule(name=st.sampled_from("abcdefg"), qos=st.integers(0, 2), explicit=st.booleans())
    def publish(self, name: str, qos: int, explicit: bool) -> None:
        streams = sorted(key for key in self.open if key.kind == "explicit")
        stream = streams[0] if explicit and streams else None
        try:
            choice = self.mapping.for_publish(name, qos, stream=stream)
        except StreamLimitError:
            self.check_hopeless()
            return
        if self.carry_out(choice) and choice.key != CONTROL_STREAM:
            assert choice.key is not None
            if qos:
                self.busy.append(choice.key)
            if choice.finish == "now":
                assert self.mapping.finishing(choice.key)
                self.end(choice.key)

    @rule(name=st.sampled_from("abc"))
    def subscribe(self, name: str) -> None:
        try:
            choice = self.mapping.for_subscribe(name)
        except StreamLimitError:
            self.check_hopeless()
            return
        if self.carry_out(choice) and choice.key is not None and choice.key != CONTROL_STREAM:
            self.subscribed.append((choice.key, name))

    @rule()
    def explicit(self) -> None:
        try:
            self.carry_out(self.mapping.open_explicit())
        except StreamLimitError:
            self.check_hopeless()

    def check_hopeless(self) -> None:
        place_at_peer = self.limit is None or len(self.open) + len(self.ending) < self.limit
        assert len(self.open) >= self.bound or not place_at_peer
        assert not [key for key in self.open if key.kind in ("topic", "publish")]
        assert not self.ending or len(self.open) >= self.bound

    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        assume(self.busy)
        key = data.draw(st.sampled_from(sorted(self.busy)))
        self.busy.remove(key)
        if self.mapping.answered(key):
            assert key.kind == "publish"
            self.end(key)

    @rule(data=st.data())
    def unsubscribe(self, data: st.DataObject) -> None:
        assume(self.subscribed)
        key, name = data.draw(st.sampled_from(sorted(self.subscribed)))
        assert key in self.mapping.on_streams_of(name)
        self.subscribed = [entry for entry in self.subscribed if entry != (key, name)]
        if self.mapping.unsubscribed(key, name):
            self.end(key)

    @rule(data=st.data())
    def peer_ends(self, data: st.DataObject) -> None:
        assume(self.ending)
        key = data.draw(st.sampled_from(sorted(self.ending)))
        self.ending.remove(key)
        self.mapping.closed(key)

    @rule(data=st.data())
    def peer_resets(self, data: st.DataObject) -> None:
        assume(self.open)
        key = data.draw(st.sampled_from(sorted(self.open)))
        self.open.remove(key)
        lost = self.mapping.closed(key)
        assert lost == tuple(sorted({name for other, name in self.subscribed if other == key}))
        self.subscribed = [entry for entry in self.subscribed if entry[0] != key]
        self.busy = [other for other in self.busy if other != key]

    @invariant()
    def books_agree(self) -> None:
        assert set(self.mapping) == self.open
        assert len(self.mapping) == len(self.open) + len(self.ending)
        assert len(self.open) <= self.bound
        assert self.limit is None or len(self.mapping) <= self.limit


TestStreams = Streams.TestCase
TestStreams.settings = light(80)
