"""Keep-alive (MQTT 5.0 section 3.1.2.10): who pings, and when an end is taken for dead.

Both classes know no clock: every verb takes `now`, in seconds on any monotonic clock, and the owner arms one timer for
:meth:`KeepAlive.next_deadline` and calls :meth:`KeepAlive.poll` when it fires.
"""

from __future__ import annotations

from typing import Literal

from mqttquic_lab.errors import UsageError

Verdict = Literal["ping", "dead"]

_PING_SHARE = 0.9
"""Part of the interval after which a ping leaves: a timer fires late, and the interval must not be exceeded."""

_SERVER_FACTOR = 1.5
"""How many intervals of silence a server waits [MQTT-3.1.2-22]."""

_STALL = 1.0
"""Seconds. A timer later than this tells that our own loop stood still (a busy cell, a laptop asleep), not the peer."""


class KeepAlive:
    """The client's keep-alive: sends PINGREQ in time, and notices a server that does not answer.

    A ping is due when nothing was **sent** for 0.9 intervals [MQTT-3.1.2-20], and also when nothing was **received**
    for as long: a client that only publishes at QoS 0 would otherwise never learn that its peer is gone. The server is
    dead when nothing at all arrived within `response_timeout` after a ping.

    If :meth:`poll` runs more than a second late, the loop itself stood still and the answer may be waiting unread in
    a socket: it then gives the peer one more second before it answers "dead".

    Parameters
    ----------
    interval : float
        Keep Alive of CONNECT, or Server Keep Alive of CONNACK, which overrides it [MQTT-3.1.2-21]; seconds, 0 for off.
    now : float
        Time at which the connection was made.
    response_timeout : float, optional
        Seconds to wait for an answer to a ping; half an interval, but at least 2 s, by default.

    Attributes
    ----------
    interval : float
        As given.
    last_sent, last_received : float
        When a packet last went out and came in; may be assigned instead of calling :meth:`sent`, :meth:`received`.
    pings, stalls : int
        Pings asked for, and polls that came too late to tell.

    Raises
    ------
    UsageError
        If the interval is not between 0 and 65535 s.
    """

    __slots__ = (
        "_grace_until",
        "_pinged",
        "interval",
        "last_received",
        "last_sent",
        "pings",
        "response_timeout",
        "stalls",
    )

    def __init__(self, interval: float, now: float = 0.0, *, response_timeout: float | None = None) -> None:
        if not 0 <= interval <= 65_535:
            raise UsageError(f"keepalive must be between 0 (off) and 65535 seconds, not {interval!r}")
        self.interval = interval
        self.response_timeout = max(interval / 2, 2.0) if response_timeout is None else response_timeout
        self.last_sent = now
        self.last_received = now
        self.pings = 0
        self.stalls = 0
        self._pinged: float | None = None
        self._grace_until: float | None = None

    def sent(self, now: float) -> None:
        """Note that a packet has left."""
        self.last_sent = now

    def received(self, now: float) -> None:
        """Note that something arrived; any packet proves the peer alive, not only PINGRESP."""
        self.last_received = now

    def next_deadline(self) -> float | None:
        """When :meth:`poll` next has something to say if nothing happens until then; None if keep-alive is off."""
        if not self.interval:
            return None
        death = self._death()
        ping = self._next_ping()
        return ping if death is None else min(death, ping)

    def poll(self, now: float) -> Verdict | None:
        """Tell what is due: ``"ping"`` (send PINGREQ now), ``"dead"`` (close the connection), or None."""
        if not self.interval:
            return None
        death = self._death()
        if death is not None and now >= death:
            if self._grace_until is not None or now - death <= _STALL:
                return "dead"
            self.stalls += 1
            self._grace_until = now + _STALL
        if now >= self._next_ping():
            self.last_sent = now
            if self._pinged is None:
                self._pinged = now
            self.pings += 1
            return "ping"
        return None

    def _death(self) -> float | None:
        """When the ping that is out counts as unanswered; forgets a ping that was answered."""
        if self._pinged is None:
            return None
        if self.last_received >= self._pinged:
            self._pinged = self._grace_until = None
            return None
        return self._pinged + self.response_timeout if self._grace_until is None else self._grace_until

    def _next_ping(self) -> float:
        quiet_since = self.last_sent if self._pinged is not None else min(self.last_sent, self.last_received)
        return quiet_since + self.interval * _PING_SHARE


class ServerKeepAlive:
    """The server's keep-alive: a client that was silent for one and a half intervals is dead [MQTT-3.1.2-22].

    A :meth:`poll` that runs more than a second late gives the client one more second, as :class:`KeepAlive` does.

    Parameters
    ----------
    interval : float
        Keep Alive of the client's CONNECT, or the Server Keep Alive it was answered; seconds, 0 for off.
    now : float
        Time at which CONNECT arrived.

    Attributes
    ----------
    last_received : float
        When a packet last came in; may be assigned instead of calling :meth:`received`.
    stalls : int
        Polls that came too late to tell.
    """

    __slots__ = ("_grace_until", "_graced", "interval", "last_received", "stalls")

    def __init__(self, interval: float, now: float = 0.0) -> None:
        if not 0 <= interval <= 65_535:
            raise UsageError(f"keepalive must be between 0 (off) and 65535 seconds, not {interval!r}")
        self.interval = interval
        self.last_received = now
        self.stalls = 0
        self._grace_until = now
        self._graced: float | None = None  # the silence (by its first moment) that has had its grace

    def sent(self, now: float) -> None:
        """Do nothing: only what the client sends counts. Here so that both ends have the same verbs."""

    def received(self, now: float) -> None:
        """Note that a packet arrived."""
        self.last_received = now

    def next_deadline(self) -> float | None:
        """When the client is dead if it stays silent; None if keep-alive is off."""
        if not self.interval:
            return None
        return self._grace_until if self._graced == self.last_received else self._death()

    def poll(self, now: float) -> Verdict | None:
        """Tell whether the client is ``"dead"``; None if not."""
        deadline = self.next_deadline()
        if deadline is None or now < deadline:
            return None
        if self._graced != self.last_received and now - deadline > _STALL:
            self.stalls += 1
            self._graced = self.last_received
            self._grace_until = now + _STALL
            return None
        return "dead"

    def _death(self) -> float:
        return self.last_received + self.interval * _SERVER_FACTOR
