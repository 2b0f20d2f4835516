"""Gathered writes, deadlines and keep-alive on a clock that stands still until told."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

from mqttquic_lab.quic.timers import GATHER_BYTES, GATHER_TICKS, DeadlineTimer, KeepAlive, WriteGatherer

if TYPE_CHECKING:
    from collections.abc import Callable


class Handle:
    def __init__(self, callback: Callable[..., Any]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """The four methods of an event loop that timers use."""

    def __init__(self) -> None:
        self.now = 100.0
        self.soon: list[Callable[..., Any]] = []
        self.timers: list[tuple[float, int, Handle]] = []
        self.set = 0

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[..., Any]) -> None:
        self.soon.append(callback)

    def call_at(self, when: float, callback: Callable[..., Any]) -> Handle:
        self.set += 1
        handle = Handle(callback)
        heapq.heappush(self.timers, (when, self.set, handle))
        return handle

    def call_later(self, delay: float, callback: Callable[..., Any]) -> Handle:
        return self.call_at(self.now + delay, callback)

    def tick(self) -> None:
        ready, self.soon = self.soon, []
        for callback in ready:
            callback()

    def run_until(self, now: float) -> None:
        while self.timers and self.timers[0][0] <= now:
            when, _, handle = heapq.heappop(self.timers)
            self.now = when
            if not handle.cancelled:
                handle.callback()
        self.now = now


class Sender:
    """A gatherer and what it sent."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.sent = 0
        self.gatherer = WriteGatherer(self.loop, self._transmit)  # type: ignore[arg-type]

    def _transmit(self) -> None:
        self.gatherer.transmitting()
        self.gatherer.sent(self.loop.now)
        self.sent += 1


def test_a_write_after_silence_leaves_in_the_next_tick() -> None:
    sender = Sender()
    for _ in range(3):
        sender.gatherer.written(10)
    assert len(sender.loop.soon) == 1
    before = sender.sent
    sender.loop.tick()
    assert (before, sender.sent) == (0, 1)
    assert not sender.loop.soon


def test_writes_that_keep_coming_are_gathered_for_some_ticks() -> None:
    sender = Sender()
    sender.gatherer.sent(sender.loop.now)
    ticks = 0
    while not sender.sent:
        sender.gatherer.written(10)
        sender.loop.tick()
        ticks += 1
    assert ticks == GATHER_TICKS + 1


def test_gathering_ends_when_the_writes_do() -> None:
    sender = Sender()
    sender.gatherer.sent(sender.loop.now)
    sender.gatherer.written(10)
    seen = []
    for _ in range(2):
        sender.loop.tick()
        seen.append(sender.sent)
    assert seen == [0, 1]


def test_a_packets_worth_of_packets_does_not_wait() -> None:
    sender = Sender()
    sender.gatherer.sent(sender.loop.now)
    sender.gatherer.written(GATHER_BYTES)
    sender.loop.tick()
    assert sender.sent == 1


def test_gathering_ends_when_time_passes() -> None:
    sender = Sender()
    sender.gatherer.sent(sender.loop.now)
    sender.gatherer.written(10)
    sender.loop.now += 0.001
    sender.loop.tick()
    assert sender.sent == 1


def test_what_an_arrival_gives_rise_to_leaves_in_the_next_tick() -> None:
    sender = Sender()
    sender.gatherer.sent(sender.loop.now)
    sender.gatherer.received()
    sender.gatherer.written(10)  # by whoever was woken
    assert len(sender.loop.soon) == 1
    sender.loop.tick()
    assert sender.sent == 1
    sender.gatherer.written(10)  # later, on its own account: may be followed by more
    sender.loop.tick()
    assert sender.sent == 1
    sender.loop.tick()
    assert sender.sent == 2


def test_what_was_sent_meanwhile_is_not_sent_again() -> None:
    sender = Sender()
    sender.gatherer.written(10)
    sender.gatherer.transmitting()  # something arrived, and its answer took the write along
    sender.loop.tick()
    assert sender.sent == 0


class Deadline:
    def __init__(self) -> None:
        self.loop = Loop()
        self.at: float | None = None
        self.fired: list[float] = []
        self.timer = DeadlineTimer(self.loop, lambda: self.at, self.fired.append)  # type: ignore[arg-type]

    def move(self, at: float | None) -> None:
        self.at = at
        self.timer.arm()


def test_a_deadline_that_moves_away_costs_no_new_timer() -> None:
    deadline = Deadline()
    deadline.move(101)
    for step in range(50):
        deadline.move(101 + step / 100)
    assert deadline.loop.set == 1
    deadline.loop.run_until(110)
    assert deadline.fired == [101.49]


def test_a_deadline_that_comes_nearer_replaces_the_timer() -> None:
    deadline = Deadline()
    deadline.move(110)
    deadline.move(101)
    deadline.loop.run_until(105)
    assert deadline.fired == [101]


def test_no_deadline() -> None:
    deadline = Deadline()
    deadline.move(None)
    assert deadline.loop.set == 0
    deadline.move(101)
    deadline.at = None
    deadline.loop.run_until(105)
    assert deadline.fired == []
    deadline.move(106)
    deadline.timer.cancel()
    deadline.loop.run_until(110)
    assert deadline.fired == []


def test_keep_alive_pings_after_an_interval_of_silence_only() -> None:
    loop = Loop()
    heard = loop.now
    pings: list[float] = []
    keep_alive = KeepAlive(loop, 10, lambda: heard, lambda: pings.append(loop.now))  # type: ignore[arg-type]
    loop.run_until(108)
    heard = loop.now
    loop.run_until(117)
    assert pings == []
    loop.run_until(119)
    assert pings == [118]
    loop.run_until(140)  # still nothing heard: once per interval
    assert pings == [118, 128, 138]
    keep_alive.cancel()
    loop.run_until(200)
    assert len(pings) == 3
