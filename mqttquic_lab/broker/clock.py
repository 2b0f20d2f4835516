"""The broker's clock: the event loop's own, unless a test brings one that it can move."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class TimerHandle(Protocol):
    """What :meth:`Clock.call_later` returns."""

    def cancel(self) -> None:
        """Do not run the callback."""


class Clock(Protocol):
    """Time and timers; an asyncio event loop is one."""

    def time(self) -> float:
        """Return seconds, monotonic, arbitrary origin."""

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> TimerHandle:
        """Run `callback` once, `delay` seconds from now."""
