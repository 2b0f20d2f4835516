"""Round-trip time estimates as RFC 9002 section 5 defines them.

aioquic keeps its own, but rounds every sample up to a millisecond, which is several round trips on a loopback.
"""

from __future__ import annotations

from mqttquic_lab.records.handshake import RttInfo


class RttEstimator:
    """Turns samples into latest, minimum, smoothed and variance.

    Attributes
    ----------
    ack_delay : float
        Seconds for which the peer says it held back the acknowledgement that gives the next sample.
    """

    __slots__ = ("_latest", "_minimum", "_smoothed", "_variance", "ack_delay")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything: the path is another one (RFC 9000 section 9.4)."""
        self.ack_delay = 0.0
        self._latest = self._minimum = self._smoothed = self._variance = -1.0

    def sample(self, seconds: float) -> None:
        """Take the time from sending a packet to its acknowledgement."""
        self._latest = seconds
        if self._smoothed < 0:
            self._minimum = self._smoothed = seconds
            self._variance = seconds / 2
            return
        self._minimum = min(self._minimum, seconds)
        adjusted = seconds - self.ack_delay if seconds >= self._minimum + self.ack_delay else seconds
        self._variance += (abs(self._smoothed - adjusted) - self._variance) / 4
        self._smoothed += (adjusted - self._smoothed) / 8

    @property
    def info(self) -> RttInfo | None:
        """The estimates, None before the first sample."""
        if self._smoothed < 0:
            return None
        return RttInfo(latest=self._latest, minimum=self._minimum, smoothed=self._smoothed, variance=self._variance)
