"""A clock that stands still until a test moves it."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Timer:
    """What :meth:`ManualClock.call_later` returns."""

    def __init__(self, when: float, number: int, run: Callable[[], Any]) -> None:
        self.when = when
        self.number = number
        self.run = run
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def __lt__(self, other: Timer) -> bool:
        return (self.when, self.number) < (other.when, other.number)


class ManualClock:
    """Time and timers for a broker under test; start anywhere but zero, so that nobody takes zero for "never"."""

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now
        self._timers: list[Timer] = []
        self._count = 0

    def time(self) -> float:
        return self._now

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> Timer:
        self._count += 1
        timer = Timer(self._now + delay, self._count, lambda: callback(*args))
        heapq.heappush(self._timers, timer)
        return timer

    def advance(self, seconds: float) -> None:
        """Let time pass; timers run in order, each at its own moment."""
        end = self._now + seconds
        while self._timers and self._timers[0].when <= end:
            timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                self._now = max(self._now, timer.when)
                timer.run()
        self._now = end

    @property
    def pending(self) -> int:
        """Timers that are set and not cancelled."""
        return sum(not timer.cancelled for timer in self._timers)
