"""How a connection uses the path: like QUIC on the internet, or as fast as one machine's loopback allows.

``realistic`` is the default and the only one for lessons about networks: 1200-byte datagrams (RFC 9000 section 14),
NewReno and pacing (RFC 9002 section 7). ``loopback`` is for a client and an embedded broker on the same machine: 8 KiB
datagrams, no pacing, and a window that never exceeds a cap, so that sender and receiver work at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from aioquic.quic.congestion.base import QuicCongestionControl, register_congestion_control

from mqttquic_lab.errors import UsageError
from mqttquic_lab.net.address import is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aioquic.quic.packet_builder import QuicSentPacket

TuningName = Literal["realistic", "loopback"]


@dataclass(frozen=True, slots=True)
class Tuning:
    """Settings of the sending side.

    Attributes
    ----------
    name : str
        ``"realistic"`` or ``"loopback"``.
    congestion_control : str
        Name under which aioquic knows the controller.
    max_datagram_size : int
        UDP payload in bytes after the handshake; during it every tuning uses 1200.
    pacing : bool
        Whether packets are spread over the round trip (RFC 9002 section 7.7).
    """

    name: TuningName
    congestion_control: str
    max_datagram_size: int
    pacing: bool

    def suits(self, peer: str) -> bool:
        """Whether the tuning may be used towards this IP address."""
        return self.name == "realistic" or is_loopback(peer)


TUNINGS: Final[dict[str, Tuning]] = {
    "realistic": Tuning("realistic", "reno", 1200, pacing=True),
    "loopback": Tuning("loopback", "mqttquic-lab-loopback", 8192, pacing=False),
}


def tuning_named(name: str, peer: str | None = None) -> Tuning:
    """Return a tuning by its name.

    Parameters
    ----------
    name : str
        ``"realistic"`` or ``"loopback"``.
    peer : str, optional
        IP address of the other end; ``loopback`` is refused for one that is not on this machine.

    Raises
    ------
    UsageError
        Unknown name, or ``loopback`` for a path that is not the loopback.
    """
    tuning = TUNINGS.get(name)
    if tuning is None:
        raise UsageError(f"there is no tuning {name!r}: use 'realistic' or 'loopback'")
    if peer is not None and not tuning.suits(peer):
        raise UsageError(f"tuning 'loopback' sends 8 KiB datagrams without pacing: not to {peer}, use 'realistic'")
    return tuning


class LoopbackCongestionControl(QuicCongestionControl):
    """A window that starts at its cap, halves on loss and grows back with what is acknowledged.

    Losses on the loopback are full socket buffers only, so there is nothing to probe for.
    """

    CAP = 512 * 1024
    FLOOR = 64 * 1024

    def __init__(self, *, max_datagram_size: int) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self.congestion_window = self.CAP
        self._recovery_began = 0.0

    def on_packet_sent(self, *, packet: QuicSentPacket) -> None:
        """Count a packet that left."""
        self.bytes_in_flight += packet.sent_bytes

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        """Count a packet that arrived; the window grows by half its size."""
        self.bytes_in_flight -= packet.sent_bytes
        if self.congestion_window < self.CAP:
            self.congestion_window = min(self.CAP, self.congestion_window + packet.sent_bytes // 2)

    def on_packets_expired(self, *, packets: Iterable[QuicSentPacket]) -> None:
        """Forget packets of a discarded space."""
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes

    def on_packets_lost(self, *, now: float, packets: Iterable[QuicSentPacket]) -> None:
        """Halve the window, once per round of losses."""
        newest = 0.0
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes
            newest = max(newest, packet.sent_time or 0.0)
        if newest > self._recovery_began:
            self._recovery_began = now
            self.congestion_window = max(self.FLOOR, self.congestion_window // 2)

    def on_persistent_congestion(self) -> None:
        """Fall to the smallest window."""
        self.congestion_window = self.FLOOR

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        """Ignore round-trip times: on the loopback they show the interpreter, not a queue."""


register_congestion_control(TUNINGS["loopback"].congestion_control, LoopbackCongestionControl)
