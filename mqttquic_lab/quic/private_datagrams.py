"""DATAGRAM frames of an engine: what becomes of those that were sent, and their turn among the streams.

A part of ``private.py``. aioquic writes DATAGRAM frames (RFC 9221) but tells nothing about them: here each has a
delivery handler, so that it is known how many were acknowledged and how many count as lost. They are never sent again
(RFC 9221 section 5.2).

aioquic also writes them before any stream's data, so that a flood of datagrams would starve the streams: here, while
both have something to send, packets go to either in turn.
"""

# ruff: noqa: SLF001 - reading private names is what this module is for

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilderStop

from mqttquic_lab.net.stream import DatagramCounters
from mqttquic_lab.quic.datagram_size import max_datagram_payload

if TYPE_CHECKING:
    from aioquic.quic.connection import QuicNetworkPath
    from aioquic.quic.packet import QuicFrameType
    from aioquic.quic.packet_builder import QuicPacketBuilder

    from mqttquic_lab.quic.private_streams import Schedule

SHORT_HEADER: Final = 3
"""Bytes of a short header beside the connection id, as aioquic writes it: flags and a packet number of two bytes."""

AEAD_TAG: Final = 16
"""Bytes that packet protection adds (RFC 9001 section 5.3)."""


NONE: Final = -2
"""A packet number that is none."""


class DatagramFrames(QuicConnection):
    """The part of an engine that sends DATAGRAM frames.

    Attributes
    ----------
    datagram_frames : DatagramCounters
        What was sent, and what became of it.
    datagram_bytes : int
        Payload bytes that wait to be sent.
    """

    schedule: Schedule

    def __init__(self, **options: Any) -> None:
        self.datagram_frames = DatagramCounters()
        self.datagram_bytes = 0
        self._datagram_packet = NONE
        self._datagrams_yielded = False
        super().__init__(**options)

    def send_datagram_frame(self, data: bytes) -> None:
        """Queue a datagram's payload."""
        super().send_datagram_frame(data)
        self.datagram_bytes += len(data)

    @property
    def datagrams_waiting(self) -> int:
        """How many wait to be sent."""
        return len(self._datagrams_pending)

    def _write_application(self, builder: QuicPacketBuilder, network_path: QuicNetworkPath, now: float) -> None:
        while True:
            self._datagrams_yielded = False
            super()._write_application(builder, network_path, now)
            if not (self._datagrams_yielded and self._datagrams_pending):
                return
            # It was the streams' turn, and flow control or an empty send buffer kept them from taking it.
            self._datagram_packet = NONE

    def _write_datagram_frame(self, builder: QuicPacketBuilder, data: bytes, frame_type: QuicFrameType) -> bool:
        number, counters = builder.packet_number, self.datagram_frames
        room = max_payload(self)
        if room is None or len(data) > room:  # the path has become narrower since it was queued
            counters.too_large += 1
            self.datagram_bytes -= len(data)
            return True
        if number != self._datagram_packet:
            if number == self._datagram_packet + 1 and any(self.schedule._ready):
                self._datagrams_yielded = True
                raise QuicPacketBuilderStop
            self._datagrams_yielded = False
        super()._write_datagram_frame(builder, data, frame_type)
        assert builder._packet is not None
        builder._packet.delivery_handlers.append((self._on_datagram_delivery, ()))
        self._datagram_packet = number
        self.datagram_bytes -= len(data)
        counters.sent += 1
        return True

    def _on_datagram_delivery(self, delivery: QuicDeliveryState) -> None:
        if delivery is QuicDeliveryState.ACKED:
            self.datagram_frames.acknowledged += 1
        else:
            self.datagram_frames.lost += 1


def max_payload(engine: DatagramFrames) -> int | None:
    """Return how many bytes fit into one DATAGRAM frame to the peer now; None if it takes none (RFC 9221 section 3).

    None also before the handshake is complete: what is sent earlier could be replayed, or would be lost if it is not
    taken.
    """
    if not engine._handshake_complete or not engine._remote_max_datagram_frame_size:
        return None
    room = engine._max_datagram_size - SHORT_HEADER - len(engine._peer_cid.cid) - AEAD_TAG
    return max_datagram_payload(engine._remote_max_datagram_frame_size, room) or None
