"""Loss recovery, round-trip times and pacing of an engine (RFC 9002); a part of ``private.py``.

When a probe timeout expires, aioquic sends one packet, and doubles the timeout each time without an end. Here it sends
two, as section 6.2.4 advises where packets get lost: the second one repeats what is in the first, or what is next; and
the timeout stops growing where waiting longer helps nobody.
"""

# ruff: noqa: SLF001 - reading private names is what this module is for

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aioquic import tls
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketPacer
from aioquic.quic.stream import QuicStreamSender

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioquic.quic.packet_builder import QuicSentPacket
    from aioquic.quic.recovery import QuicPacketSpace

    from mqttquic_lab.quic.private import Engine

MAX_BACKOFF: Final = 2.0
"""Seconds to which probe timeouts grow; on long paths to four times the first one."""


class Pacer(QuicPacketPacer):
    """aioquic's pacer, which also says when there is nothing left to put into a packet.

    aioquic finds that out by building an empty packet, which costs a third of what it costs to build one.

    Parameters
    ----------
    max_datagram_size : int
        Bytes.
    more : callable() -> bool
        Whether anything is left that a packet with something in it has not taken along.

    Attributes
    ----------
    is_done : bool
        Whether building ended for that reason; then there is no time to wait for.
    """

    def __init__(self, *, max_datagram_size: int, more: Callable[[], bool]) -> None:
        super().__init__(max_datagram_size=max_datagram_size)
        self._more = more
        self._sent = False
        self.is_done = False

    def begin(self) -> None:
        """Note that packets are going to be built."""
        self._sent = self.is_done = False

    def update_after_send(self, now: float) -> None:
        """Note that a packet was built."""
        super().update_after_send(now)
        self._sent = True

    def next_send_time(self, now: float) -> float | None:  # type: ignore[override]  # aioquic's own returns None, too
        """Return when the next packet may be built, None for now."""
        if self._sent and not self._more():
            self.is_done = True
            return now
        return super().next_send_time(now)


def measure_rtt(engine: Engine) -> None:
    """Feed the engine's own estimator: aioquic's rounds up to a millisecond."""
    estimator, loss = engine.rtt, engine._loss
    handle_ack = loss.on_ack_received

    def on_ack_received(*, ack_rangeset: RangeSet, ack_delay: float, now: float, space: QuicPacketSpace) -> None:
        estimator.ack_delay = min(ack_delay, loss.max_ack_delay)
        handle_ack(ack_rangeset=ack_rangeset, ack_delay=ack_delay, now=now, space=space)

    loss.on_ack_received = on_ack_received  # type: ignore[method-assign]
    watch_controller(engine)


def watch_controller(engine: Engine) -> None:
    """Take round-trip times from the congestion controller, which has just been made."""
    estimator, controller = engine.rtt, engine._loss._cc
    take_sample = controller.on_rtt_measurement

    def on_rtt_measurement(*, now: float, rtt: float) -> None:
        estimator.sample(rtt)
        take_sample(now=now, rtt=rtt)

    controller.on_rtt_measurement = on_rtt_measurement  # type: ignore[method-assign]


def acknowledge_along(engine: Engine, now: float) -> None:
    """Let an acknowledgement go with data that is sent anyway, when it would soon go alone (RFC 9000, 13.2.1)."""
    space, loss = engine._spaces[tls.Epoch.ONE_RTT], engine._loss
    due = space.ack_at
    if due is not None and now < due <= now + engine._ack_delay / 2:
        room = loss.congestion_window - loss.bytes_in_flight >= engine._max_datagram_size
        if room and loss._pacer.next_send_time(now) is None:
            space.ack_at = now


class Resender(QuicStreamSender):
    """aioquic's sending side of a stream, of which the same data may be in several packets at a time.

    aioquic expects to be told of each byte once, that it was acknowledged or that it was lost.
    """

    _copied = False

    def send_copy(self, start: int, stop: int, fin: bool) -> None:
        """Send data again that is still in flight."""
        self._copied = True
        self.on_data_delivery(QuicDeliveryState.LOST, start, stop, fin)

    def on_data_delivery(self, delivery: QuicDeliveryState, start: int, stop: int, fin: bool) -> None:
        """Take what became of data that was sent."""
        if not self._copied or self._reset_error_code is not None:
            super().on_data_delivery(delivery, start, stop, fin)
            return
        start = min(max(start, self._buffer_start), stop)
        if delivery is QuicDeliveryState.ACKED:
            if start < stop:
                self._pending.subtract(start, stop)  # a copy that has not left
            super().on_data_delivery(delivery, start, stop, fin)
            return
        if start < stop:
            missing = RangeSet()
            missing.add(start, stop)
            for acknowledged in self._acked:
                missing.subtract(acknowledged.start, acknowledged.stop)
            for lost in missing:
                super().on_data_delivery(delivery, lost.start, lost.stop, False)
        if fin and not self._acked_fin:
            super().on_data_delivery(delivery, stop, stop, True)


def can_resend(engine: Engine) -> None:
    """Let the handshake's data be in several packets at a time, too."""
    for stream in engine._crypto_streams.values():
        stream.sender = Resender(None, writable=True)


def limit_backoff(engine: Engine) -> None:
    """Keep probe timeouts from growing without an end (RFC 9002 section 6.2.1)."""
    loss = engine._loss
    timeout = loss.get_probe_timeout(include_max_ack_delay=loss.handshake_confirmed)
    longest = max(MAX_BACKOFF, 4 * timeout)
    while timeout * 2**loss._pto_count > longest:
        loss._pto_count -= 1


def copy_for_probe(engine: Engine) -> None:
    """Have a second probe packet sent: with a copy of the handshake's data, else of the oldest packet in flight."""
    oldest: QuicSentPacket | None = None
    handshake = False
    for space in engine._loss.spaces:
        for packet in space.sent_packets.values():
            if packet.is_crypto_packet:
                _send_copy(packet)
                handshake = True
            elif (
                packet.is_ack_eliciting
                and (engine._loss.handshake_confirmed or not space.is_application_data)
                and (oldest is None or (packet.sent_time or 0.0) < (oldest.sent_time or 0.0))
            ):
                oldest = packet
    if oldest is not None and not handshake:
        _send_copy(oldest)
    engine._send_probe()


def _send_copy(packet: QuicSentPacket) -> None:
    for handler, arguments in packet.delivery_handlers:
        sender = getattr(handler, "__self__", None)
        if isinstance(sender, Resender) and handler == sender.on_data_delivery:
            sender.send_copy(*arguments)
