"""One data stream: MQTT packets beside the control stream, with exchanges and subscriptions of its own.

A data stream brings its own packet identifiers, in-flight messages and subscriptions: two streams may both have a
message 1 under way. What ends a data stream fails what was in flight on it and nothing else; the session lives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mqttquic_lab.errors import LabError, ProtocolError, StreamClosedError
from mqttquic_lab.mqtt import FlowHeaderDecoder
from mqttquic_lab.session.packet_stream import PacketStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttquic_lab.mqtt import Packet
    from mqttquic_lab.net.stream import ByteStream
    from mqttquic_lab.session.channel import PacketChannel
    from mqttquic_lab.session.publishing import Bulk, Waiting
    from mqttquic_lab.session.results import SessionStats

PUBLISH_TYPE: Final = 3

FROM_BROKER: Final = frozenset({3, 4, 5, 6, 7, 9, 11})
"""Packet types that a broker may send on a data stream: PUBLISH to PUBCOMP, SUBACK, UNSUBACK."""


class DataChannel(PacketStream):
    """The client's end of one data stream. On its connection's loop only.

    Parameters
    ----------
    control : PacketChannel
        Of the same connection.
    stream : ByteStream
        The data stream.
    stats : SessionStats
        Counted into.
    max_packet_size : int
        Largest packet that the broker may send, bytes.
    on_packets : callable(list of Packet)
        Packets that arrived together, in order.
    on_error : callable(str, LabError)
        Something went wrong: where, and what.
    on_end : callable()
        The stream is over in both directions, once.
    is_ours : bool
        Whether we opened it: the side that did ends it in order.

    Attributes
    ----------
    over : bool
        Whether nothing can arrive either.
    sent_end : bool
        Whether FIN was sent.
    riders : set
        Messages that went out here and are acknowledged on the control stream (unidirectional streams).
    is_muted : bool
        Whether the broker takes nothing more on a stream that it opened: answers go on the control stream.
    bytes_in, bytes_out, messages_out : int
        MQTT bytes, and PUBLISH packets sent.
    """

    def __init__(
        self,
        control: PacketChannel,
        stream: ByteStream,
        stats: SessionStats,
        *,
        max_packet_size: int,
        on_packets: Callable[[list[Packet]], None],
        on_error: Callable[[str, LabError], None],
        on_end: Callable[[], None],
        is_ours: bool = True,
    ) -> None:
        super().__init__(
            stream,
            control.version,
            stats,
            max_packet_size=max_packet_size,
            on_packets=on_packets,
            clock=control.clock,
        )
        self.limit = control.limit
        self.over = False
        self._is_ours = is_ours
        self.is_muted = False
        self._header = None if is_ours else FlowHeaderDecoder(required=False)
        self.bytes_in = self.bytes_out = self.messages_out = 0
        self.riders: set[Waiting | Bulk] = set()
        self._control = control
        self.keepalive = control.keepalive
        self._on_error = on_error
        self._on_end = on_end
        self.sent_end = False
        stream.on_data = self._on_data
        stream.on_end = self._on_stream_end
        stream.on_reset = self._on_stream_reset

    def send(self, packet: Packet) -> bytes:
        """Send one packet and return its bytes; raises UsageError if it is larger than the broker accepts."""
        data = packet.encode(self.version)
        self.check_size(data, packet.NAME)
        trace = self.connection.trace
        if trace.detail:
            trace.emit("mqtt", "packet_sent", type=packet.NAME, size=len(data), stream=self.stream.id)
        self.write(data)
        return data

    def write(self, data: bytes, packets: int = 1) -> None:
        """Write bytes that are `packets` whole packets, all PUBLISH or none.

        Not noted for keep-alive: brokers disagree on whether packets on data streams count, so PINGREQ goes out on the
        control stream when that is silent.
        """
        self.stream.write(data)
        self.bytes_out += len(data)
        if data[0] >> 4 == PUBLISH_TYPE:
            self.messages_out += packets
        stats = self._stats
        stats.packets_sent += packets
        stats.bytes_sent += len(data)

    def feed(self, data: bytes) -> None:
        """Take bytes that came together with what stands before the first packet."""
        self._on_data(data)

    def _on_data(self, data: bytes) -> None:
        self.bytes_in += len(data)
        if self._header is not None:
            # mqttv5 begins the streams it opens with a flow header, whatever ALPN says.
            try:
                self._header.feed(data)
            except ProtocolError as error:
                self.fail("decoder", error)
                return
            if not self._header.done:
                return
            data, self._header = self._header.rest, None
        if data:
            super()._on_data(data)

    @property
    def _still_reads(self) -> bool:
        return not self.over

    # Ending

    def end_sending(self) -> None:
        """Send FIN after what was written; the stream is over when the broker has done the same. Safe to repeat."""
        self.ended = True
        if not self.sent_end and not self.over:
            self.sent_end = True
            self.stream.end()

    def fail(self, where: str, error: LabError) -> None:
        """Give the stream up because of `error`: it is recorded, the broker told by RESET_STREAM (code 0)."""
        if self.over:
            return
        self.stream.reset(0)
        self._lost(where, error)

    def finish(self, reason: LabError | None = None) -> None:
        """Take the end of both directions, once; `reason` is None if that was asked for."""
        if self.over:
            return
        self.ended = self.over = True
        self.reason = reason
        if reason is not None:
            for rider in self.riders:
                rider.lost(self.gone("a message was not acknowledged"))
        self.riders.clear()
        self._on_end()

    def gone(self, what: str) -> StreamClosedError:
        """Return an error that names the stream, chained to why it ended."""
        reason: LabError | None = self.reason
        if reason is None and self._control.ended:
            reason = self._control.reason
        error = StreamClosedError(
            f"{what} on stream {self.stream.id}: {reason if reason is not None else 'the stream was closed'}",
            reason_code=getattr(reason, "reason_code", None),
        )
        error.stream_id = self.stream.id
        error.__cause__ = reason
        return error

    def closed_by(self, why: str) -> StreamClosedError:
        """Return what is to be said when this stream ended because of `why`."""
        error = StreamClosedError(why)
        error.stream_id = self.stream.id
        return error

    def _on_stream_end(self) -> None:
        if self.sent_end or not self._is_ours:
            self.end_sending()
            self.finish()
        elif not self.over:
            self.stream.end()
            self._lost("broker", self.closed_by(f"the broker ended stream {self.stream.id} (FIN)"))

    def _on_stream_reset(self, code: int) -> None:
        if self.over:
            return
        if not self._is_ours:
            # It may be STOP_SENDING only, with messages still on their way: mqttv5 ends streams like this.
            self.is_muted = True
            return
        self.stream.reset(0)
        self._lost("broker", self.closed_by(f"the broker reset stream {self.stream.id} (error code {code})"))

    def _lost(self, where: str, error: LabError) -> None:
        self._on_error(where, error)
        if isinstance(error, ProtocolError):
            error = self.closed_by(f"stream {self.stream.id} was given up: {error}")
        self.finish(error)


def check_from_broker(packet: Packet) -> None:
    """Raise ProtocolError for a packet that no broker sends on a data stream."""
    if packet.TYPE not in FROM_BROKER:
        raise ProtocolError(
            f"{packet.NAME} on a data stream: it belongs on the control stream",
            reason_code=0x82,
            section="MQTT over QUIC draft section 9.19",
            packet=packet,
        )
