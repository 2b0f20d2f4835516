"""When a connection works without being asked: gathered writes, the engine's deadlines, keep-alive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

BUSY_WITHIN: Final = 5e-4
"""Seconds after a transmission within which writes are gathered for longer than one tick."""
GATHER_TICKS: Final = 32
"""Ticks for which writes that keep coming are gathered at most."""
GATHER_BYTES: Final = 16 * 1024
"""Bytes gathered before they are sent without waiting for the next tick."""

TIMER_SLACK: Final = 1e-4
"""Seconds by which a deadline may be met early."""


class WriteGatherer:
    """Lets writes of one loop tick leave together, and a little later while more keep coming.

    One packet per message costs far more than the message. The next tick is the right moment; a timer is not, because
    the loop rounds it to a millisecond. When nothing was sent lately, a write leaves in the next tick at once.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        Gives ticks.
    transmit : callable()
        Sends everything; it calls :meth:`sent`.
    """

    __slots__ = ("_at_once", "_bytes", "_due", "_fresh", "_last_sent", "_loop", "_ticks", "_transmit")

    def __init__(self, loop: asyncio.AbstractEventLoop, transmit: Callable[[], None]) -> None:
        self._loop = loop
        self._transmit = transmit
        self._due = False
        self._at_once = False
        self._fresh = False
        self._ticks = 0
        self._bytes = 0
        self._last_sent = 0.0

    def written(self, size: int) -> None:
        """Note that `size` bytes were written, or with 0 that something else is to be sent."""
        self._bytes += size
        self._fresh = True
        if not self._due:
            self._due = True
            self._ticks = 0
            self._loop.call_soon(self._tick)

    def received(self) -> None:
        """Note that something has arrived to which nothing was to be sent yet.

        Whoever was woken by it runs in the next tick, and what they write leaves at the end of that: an answer is not
        held up for others to follow.
        """
        self._at_once = True
        if not self._due:
            self._due = True
            self._loop.call_soon(self._tick)

    def transmitting(self) -> None:
        """Note that everything written so far is being sent."""
        self._due = self._at_once = False
        self._bytes = 0

    def sent(self, now: float) -> None:
        """Note that a packet has left."""
        self._last_sent = now

    def _tick(self) -> None:
        if not self._due:
            return
        if (
            self._fresh
            and not self._at_once
            and self._bytes < GATHER_BYTES
            and self._ticks < GATHER_TICKS
            and self._loop.time() - self._last_sent < BUSY_WITHIN
        ):
            self._fresh = False
            self._ticks += 1
            self._loop.call_soon(self._tick)
        else:
            self._transmit()


class DeadlineTimer:
    """One timer for a deadline that moves with every packet.

    Setting a timer costs more than letting it fire too early: one that does looks again, and only one that would fire
    too late is replaced.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        Sets timers.
    deadline : callable() -> float or None
        When there is something to do, on the loop's clock.
    fire : callable(now)
        Does it.
    """

    __slots__ = ("_at", "_deadline", "_fire", "_handle", "_loop")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, deadline: Callable[[], float | None], fire: Callable[[float], None]
    ) -> None:
        self._loop = loop
        self._deadline = deadline
        self._fire = fire
        self._at = 0.0
        self._handle: asyncio.TimerHandle | None = None

    def arm(self) -> None:
        """Look at the deadline again."""
        at = self._deadline()
        if at is None:
            return
        if self._handle is None or at < self._at:
            if self._handle is not None:
                self._handle.cancel()
            self._at = at
            self._handle = self._loop.call_at(at, self._expired)

    def cancel(self) -> None:
        """Stop."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _expired(self) -> None:
        self._handle = None
        at = self._deadline()
        if at is None:
            return
        now = self._loop.time()
        if at - now > TIMER_SLACK:
            self._at = at
            self._handle = self._loop.call_at(at, self._expired)
        else:
            self._fire(max(now, at))


class KeepAlive:
    """Sends a PING when nothing was heard for an interval (RFC 9000 section 10.1.2).

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        Sets timers.
    interval : float
        Seconds.
    last_heard : callable() -> float
        When the peer was heard last, on the loop's clock.
    ping : callable()
        Sends a PING.
    """

    __slots__ = ("_handle", "_interval", "_last_heard", "_loop", "_ping")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        interval: float,
        last_heard: Callable[[], float],
        ping: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._interval = interval
        self._last_heard = last_heard
        self._ping = ping
        self._handle: asyncio.TimerHandle | None = loop.call_later(interval, self._due)

    def cancel(self) -> None:
        """Stop."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _due(self) -> None:
        due = self._last_heard() + self._interval
        now = self._loop.time()
        if due - now <= 0.001:
            due = now + self._interval
            self._handle = self._loop.call_at(due, self._due)
            self._ping()  # may end the connection, and cancel
        else:
            self._handle = self._loop.call_at(due, self._due)
