"""MQTT packets on one byte stream: what control stream and data streams have in common."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from mqttquic_lab.errors import LabError, MalformedPacketError, ProtocolError, UsageError
from mqttquic_lab.mqtt import MAX_PACKET_SIZE, KeepAlive, PacketDecoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttquic_lab.errors import DisconnectedError
    from mqttquic_lab.mqtt import Packet, Version
    from mqttquic_lab.net.stream import ByteStream
    from mqttquic_lab.session.results import SessionStats

logger = logging.getLogger("mqttquic_lab.session")


class PacketStream(ABC):
    """The client's end of one stream that carries MQTT packets. On its connection's loop only.

    Parameters
    ----------
    stream : ByteStream
        What carries them.
    version : {5, 4}
        Protocol level.
    stats : SessionStats
        Counted into.
    max_packet_size : int
        Largest packet that the broker may send, bytes.
    on_packets : callable(list of Packet)
        Packets that arrived together, in order. A ProtocolError it raises goes to :meth:`fail`.

    Attributes
    ----------
    limit : int
        Largest packet that the broker accepts, bytes.
    keepalive : KeepAlive
        The connection's clockwork of PINGREQ; it does nothing before CONNACK.
    clock : callable() -> float
        The loop's.
    ended : bool
        Whether no verb can use it any more.
    reason : LabError or None
        Why it ended; None while it has not, or if that was asked for.
    """

    def __init__(
        self,
        stream: ByteStream,
        version: Version,
        stats: SessionStats,
        *,
        max_packet_size: int,
        on_packets: Callable[[list[Packet]], None],
        clock: Callable[[], float],
    ) -> None:
        self.connection = stream.connection
        self.stream = stream
        self.version = version
        self.limit = MAX_PACKET_SIZE
        self.ended = False
        self.reason: LabError | None = None
        self._stats = stats
        self._on_packets = on_packets
        self.clock = clock
        self._decoder = PacketDecoder(version, max_packet_size=max_packet_size, receiver="client")
        self.keepalive = KeepAlive(0)

    @abstractmethod
    def send(self, packet: Packet) -> bytes:
        """Send one packet and return its bytes."""

    @abstractmethod
    def write(self, data: bytes, packets: int = 1) -> None:
        """Write bytes that are `packets` whole packets."""

    @abstractmethod
    def fail(self, where: str, error: LabError) -> None:
        """End this because of `error`, which is recorded under `where`."""

    @abstractmethod
    def gone(self, what: str) -> DisconnectedError:
        """Return an error for a verb that cannot go on, chained to why this ended."""

    def check_size(self, data: bytes, what: str) -> None:
        """Raise UsageError if the broker does not accept packets of this size [MQTT-3.2.2-15]."""
        if len(data) > self.limit:
            raise UsageError(
                f"this {what} has {len(data)} bytes, the broker accepts {self.limit} (Maximum Packet Size): "
                "make it smaller"
            )

    def _on_data(self, data: bytes) -> None:
        if self.ended and not self._still_reads:
            return
        # Data on any stream shows that the broker lives.
        self.keepalive.last_received = self.clock()
        stats = self._stats
        stats.bytes_received += len(data)
        fault: ProtocolError | None = None
        try:
            packets = self._decoder.feed(data)
        except MalformedPacketError as error:
            packets, fault = error.packets, error
        if packets:
            stats.packets_received += len(packets)
            if self.connection.trace.detail:
                for packet in packets:
                    self.connection.trace.emit("mqtt", "packet_received", type=packet.NAME, size=len(packet.raw))
            try:
                self._on_packets(packets)
            except ProtocolError as error:
                self.fail("broker", error)
            except Exception as error:
                # A fault of ours. Unless this ends here, everybody who waits for an answer waits in vain.
                logger.exception("internal error while handling packets")
                self.fail("session", LabError(f"internal error: {type(error).__name__}: {error}"))
        if fault is not None:
            self.fail("decoder", fault)

    @property
    def _still_reads(self) -> bool:
        """Whether what arrives counts although nothing can be sent any more."""
        return False
