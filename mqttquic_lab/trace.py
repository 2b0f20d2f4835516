"""The one trace hook: whatever happens on the wire can be watched here, and nowhere else.

MQTT packets, QUIC packets and frames, TLS messages, path and stream events are handed to :class:`Trace`, which keeps
the newest of them in a bounded ring and passes each to whoever subscribed. Log, handshake card, timeline and exports
all read from it. A trace that nobody wants costs one attribute test per event: call sites ask :attr:`Trace.detail`
before they build anything.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

CLOCK = time.perf_counter
"""Clock of every trace event and handshake timing: seconds, monotonic, arbitrary origin."""


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """Something that happened.

    Attributes
    ----------
    time : float
        Seconds on :data:`CLOCK`.
    layer : str
        ``"mqtt"``, ``"quic"``, ``"tls"`` or ``"net"``.
    name : str
        What happened, in the words of qlog where it has them (``"packet_sent"``, ``"packet_lost"``).
    data : mapping
        Its particulars; never payloads, keys or passwords.
    """

    time: float
    layer: str
    name: str
    data: Mapping[str, Any]


class Trace:
    """A bounded ring of events with subscribers.

    Parameters
    ----------
    capacity : int
        Events kept; older ones are dropped and counted in :attr:`dropped`.
    detail : bool
        Whether per-packet events are wanted after the handshake. Off by default: at full speed they cost about a
        quarter of the throughput. May be switched at any time.
    """

    def __init__(self, capacity: int = 4096, *, detail: bool = False) -> None:
        self._ring: deque[TraceEvent] = deque(maxlen=capacity)
        self._subscribers: tuple[Callable[[TraceEvent], None], ...] = ()
        self.detail = detail
        self.count = 0

    @property
    def dropped(self) -> int:
        """Events that the ring no longer holds."""
        return self.count - len(self._ring)

    def emit(self, layer: str, name: str, /, **data: Any) -> None:
        """Record an event now."""
        event = TraceEvent(CLOCK(), layer, name, data)
        self.count += 1
        self._ring.append(event)
        for subscriber in self._subscribers:
            subscriber(event)

    def subscribe(self, subscriber: Callable[[TraceEvent], None]) -> Callable[[], None]:
        """Call `subscriber` with every event from now on; returns a function that ends that."""
        self._subscribers = (*self._subscribers, subscriber)

        def unsubscribe() -> None:
            self._subscribers = tuple(s for s in self._subscribers if s is not subscriber)

        return unsubscribe

    def __iter__(self) -> Iterator[TraceEvent]:
        return iter(tuple(self._ring))

    def __len__(self) -> int:
        return len(self._ring)

    def __bool__(self) -> bool:
        # An empty trace is a trace: `trace or Trace()` must not replace the one that was given.
        return True
