"""When to try again after a connection was lost, and when trying again is of no use."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mqttquic_lab.errors import (
    AlpnError,
    AuthenticationError,
    CertificateError,
    ConnectError,
    DisconnectedError,
    ReasonedError,
    UsageError,
)
from mqttquic_lab.mqtt import ReasonCode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mqttquic_lab.errors import LabError

_PASSING: Final = frozenset(
    {
        ReasonCode.UNSPECIFIED_ERROR,
        ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR,
        ReasonCode.SERVER_UNAVAILABLE,
        ReasonCode.SERVER_BUSY,
        ReasonCode.SERVER_SHUTTING_DOWN,
        ReasonCode.KEEP_ALIVE_TIMEOUT,
        ReasonCode.MESSAGE_RATE_TOO_HIGH,
        ReasonCode.QUOTA_EXCEEDED,
        ReasonCode.CONNECTION_RATE_EXCEEDED,
        ReasonCode.MAXIMUM_CONNECT_TIME,
    }
)
"""Reason codes after which the same CONNECT may well be accepted later. All others say what time does not mend: another
client has the session (0x8E), the credentials are wrong, one end breaks a rule."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between attempts to connect anew: each longer than the one before, none the same for two clients.

    Parameters
    ----------
    first : float
        Longest pause before the first attempt, seconds.
    factor : float
        By how much the longest pause grows from one attempt to the next.
    maximum : float
        What it grows to, seconds.
    jitter : float
        Share of each pause that is random, 0 to 1, so that clients which were lost together do not come back together.
    attempts : int, optional
        How many attempts in a row at most; None for no end.

    Raises
    ------
    UsageError
        One of them cannot be used.
    """

    first: float = 0.5
    factor: float = 2.0
    maximum: float = 30.0
    jitter: float = 0.5
    attempts: int | None = None

    def __post_init__(self) -> None:
        for name, lowest in (("first", 0.0), ("factor", 1.0), ("maximum", 0.0), ("jitter", 0.0)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not lowest <= value < float("inf"):
                raise UsageError(f"Backoff({name}={value!r}): must be a number of at least {lowest:g}")
        if self.jitter > 1:
            raise UsageError(f"Backoff(jitter={self.jitter!r}): must be between 0 and 1")
        if self.attempts is not None and (not isinstance(self.attempts, int) or self.attempts < 1):
            raise UsageError(f"Backoff(attempts={self.attempts!r}): must be 1 or more, or None for no end")

    def pauses(self) -> Iterator[float]:
        """Yield the seconds to wait before each attempt."""
        longest, number = self.first, 0
        while self.attempts is None or number < self.attempts:
            bounded = min(longest, self.maximum)
            yield bounded * (1.0 - self.jitter * random.random())  # noqa: S311 - spreads clients, guards nothing
            longest, number = bounded * self.factor, number + 1


def may_pass(error: LabError) -> bool:
    """Whether an attempt after this end of a connection, or after this failure to connect, may succeed.

    A path, a listener or a broker that is not there may come back. A certificate, a password or a rule that was broken
    does not change by waiting.
    """
    if isinstance(error, (CertificateError, AlpnError, AuthenticationError)):
        return False
    if isinstance(error, (DisconnectedError, ConnectError)):
        return error.reason_code is None or error.reason_code in _PASSING
    # A transport's own words for its end have no reason code. ProtocolError and UsageError are nobody's bad luck.
    return not isinstance(error, (ReasonedError, UsageError))
