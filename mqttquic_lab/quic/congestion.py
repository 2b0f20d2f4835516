"""Congestion controllers of one's own (RFC 9002 section 7).

aioquic has NewReno and CUBIC. A lesson, or an experiment, may bring another::

    class Fixed(mq.CongestionControl):
        def __init__(self, *, max_datagram_size):
            super().__init__(max_datagram_size=max_datagram_size)
            self.congestion_window = 20 * max_datagram_size
        def on_packet_sent(self, *, packet):
            self.bytes_in_flight += packet.sent_bytes
        def on_packet_acked(self, *, now, packet):
            self.bytes_in_flight -= packet.sent_bytes
        def on_packets_expired(self, *, packets):
            self.bytes_in_flight -= sum(packet.sent_bytes for packet in packets)
        def on_packets_lost(self, *, now, packets):
            self.bytes_in_flight -= sum(packet.sent_bytes for packet in packets)

    mq.register_congestion_control("fixed", Fixed)
    session = mq.connect(broker, congestion="fixed")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aioquic.quic.congestion.base import QuicCongestionControl
from aioquic.quic.congestion.base import register_congestion_control as register_with_engine

from mqttquic_lab.errors import UsageError
from mqttquic_lab.quic import knobs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from aioquic.quic.packet_builder import QuicSentPacket

_PREFIX = "mqttquic-lab:"
"""Before registered names in aioquic's own registry, so that they cannot replace what is there."""

_ENGINE_NAMES = {"newreno": "reno", "cubic": "cubic"}


class CongestionControl(QuicCongestionControl):
    """Base of a controller: decides how many bytes may be in flight.

    The engine sends while :attr:`bytes_in_flight` is below :attr:`congestion_window`; keeping both is the
    controller's work. Packets have ``sent_bytes`` and ``sent_time`` (seconds). The four methods that count bytes must
    be there; the other two do nothing by default.

    Parameters
    ----------
    max_datagram_size : int
        Bytes of a full packet; the window begins at ten of them.

    Attributes
    ----------
    congestion_window : int
        Bytes that may be in flight.
    bytes_in_flight : int
        Bytes sent and neither acknowledged, lost nor expired.
    ssthresh : int or None
        Slow start threshold, if there is such a thing; only shown.
    """

    def on_packet_sent(self, *, packet: QuicSentPacket) -> None:
        """Take note of a packet that leaves: add its bytes."""
        raise NotImplementedError

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        """Take note of a packet that arrived: subtract its bytes, and perhaps open the window."""
        raise NotImplementedError

    def on_packets_expired(self, *, packets: Iterable[QuicSentPacket]) -> None:
        """Take note of packets that no longer matter (their keys are gone): subtract their bytes, that is all."""
        raise NotImplementedError

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        """Take note of lost packets: subtract their bytes, and perhaps close the window."""
        raise NotImplementedError

    def on_persistent_congestion(self) -> None:
        """Take note that everything was lost for three probe timeouts (RFC 9002 section 7.6)."""

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        """Take note of a round-trip time in seconds."""


def register_congestion_control(name: str, factory: Callable[..., Any]) -> None:
    """Make a congestion controller available as ``connect(..., congestion=name)`` and on brokers of this process.

    Parameters
    ----------
    name : str
        Its name; registering it again replaces it for connections made from then on.
    factory : callable
        Called with ``max_datagram_size=`` for each connection; returns a :class:`CongestionControl`. The class itself
        will do.

    Raises
    ------
    UsageError
        The name is taken by a built-in controller or no name at all, or what `factory` makes is no controller.
    """
    if not isinstance(name, str) or not name.strip():
        raise UsageError(f"a congestion controller needs a name, not {name!r}")
    if name in (*knobs.CONGESTION, *_ENGINE_NAMES.values()):
        raise UsageError(f"the name {name!r} belongs to a built-in congestion controller: take another one")
    try:
        sample = factory(max_datagram_size=1200)
    except Exception as error:
        raise UsageError(f"congestion control {name!r}: factory(max_datagram_size=1200) raised {error!r}") from error
    if not isinstance(sample, QuicCongestionControl):
        raise UsageError(
            f"congestion control {name!r}: the factory must return an mq.CongestionControl, not {type(sample).__name__}"
        )
    missing = [method for method in _NEEDED if getattr(type(sample), method) is getattr(CongestionControl, method)]
    if missing:
        raise UsageError(f"congestion control {name!r} lacks {', '.join(missing)}")
    register_with_engine(_PREFIX + name, factory)
    knobs.registered[name] = factory


_NEEDED = ("on_packet_sent", "on_packet_acked", "on_packets_expired", "on_packets_lost")


def engine_name(name: str) -> str:
    """Return the name under which aioquic knows a controller."""
    return _ENGINE_NAMES.get(name) or _PREFIX + name
