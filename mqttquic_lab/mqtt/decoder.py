"""Bytes in, packets out: framing, and the fast way for the packets that come by the thousand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mqttquic_lab.errors import MalformedPacketError, UsageError
from mqttquic_lab.mqtt import rules
from mqttquic_lab.mqtt.packet import check_fixed_header
from mqttquic_lab.mqtt.packets import PACKETS
from mqttquic_lab.mqtt.properties import EMPTY, read_properties
from mqttquic_lab.mqtt.publish import Acknowledgement, PubAck, PubComp, Publish, PubRec, PubRel
from mqttquic_lab.mqtt.reader import Reader
from mqttquic_lab.mqtt.reason_codes import ReasonCode

if TYPE_CHECKING:
    from mqttquic_lab.mqtt.packet import Packet
    from mqttquic_lab.mqtt.properties import Properties
    from mqttquic_lab.mqtt.reader import Receiver, Version

MAX_PACKET_SIZE: Final = 268_435_460
"""Largest MQTT packet: five bytes of fixed header and the largest remaining length."""

_CACHED_TOPICS: Final = 4096
_CACHED_BLOCKS: Final = 1024
_CACHED_LENGTH: Final = 512
"""Bytes of the longest topic that is remembered; property blocks end at 127."""

_ACKNOWLEDGEMENTS: Final[dict[int, type[Acknowledgement]]] = {
    cls.FIRST: cls for cls in (PubAck, PubRec, PubRel, PubComp)
}
_SUCCESS: Final = ReasonCode.SUCCESS

_topics: dict[bytes, str] = {}
"""Wire bytes -> topic that passed all checks; shared by all decoders, cleared when full."""

_blocks: Final[dict[Receiver, dict[bytes, Properties]]] = {"client": {}, "server": {}}
"""Wire bytes of a PUBLISH property block -> properties that are good at this end, likewise."""


def _remember(packet: Publish, body: int, blocks: dict[bytes, Properties]) -> None:
    """Keep topic and property block of a PUBLISH that passed all checks, so that the next one like it is quick."""
    raw = packet.raw
    at = body + 2 + (raw[body] << 8 | raw[body + 1])
    if at - body <= _CACHED_LENGTH:
        if len(_topics) >= _CACHED_TOPICS:
            _topics.clear()
        _topics[raw[body + 2 : at]] = packet.topic
    if packet.properties:
        if packet.qos:
            at += 2
        size = raw[at]
        if size < 128:
            if len(blocks) >= _CACHED_BLOCKS:
                blocks.clear()
            blocks[raw[at + 1 : at + 1 + size]] = packet.properties


class PacketDecoder:
    """Decodes the packets of one byte stream, in whatever pieces they come.

    Parameters
    ----------
    version : int or None
        5, or 4 for MQTT 3.1.1. None at a server before CONNECT: that packet has to come first and sets it.
    max_packet_size : int
        Bytes of the largest packet accepted, fixed header included.
    max_connect_size : int, optional
        The same for the first packet at a server, which comes from nobody knows whom.
    receiver : str
        ``"client"`` or ``"server"``: which end this is.

    Attributes
    ----------
    version : int or None
        Protocol version; set by CONNECT when it was None, as soon as its protocol level is known.
    max_packet_size : int
        May be lowered or raised between calls.
    """

    __slots__ = ("_blocks", "_error", "_rest", "_wanted", "max_connect_size", "max_packet_size", "receiver", "version")

    def __init__(
        self,
        version: Version | None = 5,
        *,
        max_packet_size: int = MAX_PACKET_SIZE,
        max_connect_size: int | None = None,
        receiver: Receiver,
    ) -> None:
        if version not in (4, 5, None):
            raise UsageError(f"version is {version!r}: it must be 4 (MQTT 3.1.1), 5 or None")
        if receiver not in ("client", "server"):
            raise UsageError(f"receiver is {receiver!r}: it must be 'client' or 'server'")
        if version is None and receiver == "client":
            raise UsageError("a client knows its version: give 4 or 5")
        self.version = version
        self.max_packet_size = max_packet_size
        self.max_connect_size = max_connect_size
        self.receiver: Receiver = receiver
        self._blocks = _blocks[receiver]
        self._rest: bytes | bytearray = b""
        self._wanted = 0  # bytes that must be there before looking again makes sense
        self._error: MalformedPacketError | None = None

    @property
    def buffered(self) -> int:
        """Bytes of an incomplete packet held."""
        return len(self._rest)

    def feed(self, data: bytes | bytearray | memoryview) -> list[Packet]:
        """Take bytes and return the packets that are complete with them.

        Raises
        ------
        MalformedPacketError
            At the first bytes that break a rule; its ``packets`` are those before them. From then on each call raises
            it again, because nobody knows where the next packet would start.
        """
        if self._error is not None:
            raise self._again(self._error)
        if not isinstance(data, bytes):
            data = bytes(data)
        rest = self._rest
        if rest:
            if len(rest) + len(data) < self._wanted:
                # Growing in place: a large packet in small pieces must not be copied for each of them.
                self._rest = grown = bytearray(rest) if isinstance(rest, bytes) else rest
                grown += data
                return []
            data = b"".join((rest, data))
            self._rest = b""
        packets: list[Packet] = []
        try:
            end = self._decode(data, packets)
        except MalformedPacketError as error:
            self._error = error
            error.packets = packets
            raise
        if end < len(data):
            self._rest = data[end:]
        return packets

    @staticmethod
    def _again(error: MalformedPacketError) -> MalformedPacketError:
        return MalformedPacketError(
            error.args[0],
            reason_code=error.reason_code,
            rule=error.rule,
            section=error.section,
            offset=error.offset,
            field=error.field,
        )

    def _decode(self, data: bytes, packets: list[Packet]) -> int:
        """Append the packets in `data` and return where the incomplete one starts.

        What is plainly well-formed and was seen before (topic, property block) is decoded right here, in one go:
        a call per packet would cost a tenth of the speed. All else goes to the strict reader, which knows what to say
        about it.
        """
        total = len(data)
        start = 0
        limit = self.max_packet_size
        version = self.version
        if version is None and self.max_connect_size is not None:
            limit = min(limit, self.max_connect_size)
        append = packets.append
        topic_of = _topics.get
        block_of = self._blocks.get
        while start + 2 <= total:
            first = data[start]
            length = data[start + 1]
            body = start + 2
            if length >= 128:
                # Two bytes are usual; one, three, four or too many are not.
                second = data[body] if body < total else 0
                if 0 < second < 128:
                    length += (second << 7) - 128
                    body += 1
                else:
                    length, body = self._remaining_length(data, start)
                    if not body:
                        return start
            end = body + length
            if end - start > limit:
                check_fixed_header(first, version, self.receiver)
                raise self._too_large(end - start, limit)
            if end > total:
                if first >> 4 != 3 or version is None:
                    check_fixed_header(first, version, self.receiver)
                self._wanted = end - start
                return start
            if first >> 4 == 3 and length > 2 and version is not None:
                at = body + 2 + (data[body] << 8 | data[body + 1])
                topic = topic_of(data[body + 2 : at])
                if topic is not None:
                    qos = first >> 1 & 3
                    packet_id: int | None = None
                    properties: Properties | None = EMPTY
                    if qos:
                        at += 2
                        if qos == 3 or at > end:
                            properties = None
                        else:
                            packet_id = data[at - 2] << 8 | data[at - 1]
                            if not packet_id:
                                properties = None
                    elif first & 8:
                        properties = None
                    if version == 5:
                        size = data[at] if at < end else 128
                        at += 1
                        if size:
                            if size < 128 and properties is not None:
                                properties = block_of(data[at : at + size])
                                at += size
                                if properties is None and at <= end:
                                    properties = self._read_block(data[start:end], at - start - size - 1)
                            else:
                                properties = None
                    if properties is not None and at <= end and (topic or "topic_alias" in properties):
                        append(
                            Publish(
                                topic, data[at:end], qos, first & 1 == 1, first & 8 == 8, packet_id, properties,
                                data[start:end], version,
                            )
                        )  # fmt: skip
                        start = end
                        continue
            elif length == 2 and first in _ACKNOWLEDGEMENTS and version is not None:
                packet_id = data[body] << 8 | data[body + 1]
                if packet_id:
                    append(_ACKNOWLEDGEMENTS[first](packet_id, _SUCCESS, EMPTY, data[start:end], version))
                    start = end
                    continue
            append(self._decode_other(data, start, body, end))
            if version is None:
                version = self.version
                limit = self.max_packet_size
            start = end
        if start < total:
            check_fixed_header(data[start], version, self.receiver)
            self._wanted = 2
        return start

    def _decode_other(self, data: bytes, start: int, body: int, end: int) -> Packet:
        first = data[start]
        check_fixed_header(first, self.version, self.receiver)
        reader = Reader(data[start:end], body - start, self.version, self.receiver)
        try:
            packet = PACKETS[first >> 4].read(reader)
        finally:
            if self.version is None:
                self.version = reader.version
        if isinstance(packet, Publish):
            _remember(packet, body - start, self._blocks)
        return packet

    def _read_block(self, raw: bytes, at: int) -> Properties:
        """Read the property block of a PUBLISH from its length at `at`; all before it is known to be good."""
        reader = Reader(raw, at, 5, self.receiver)
        properties = read_properties(reader, "PUBLISH")
        if len(self._blocks) >= _CACHED_BLOCKS:
            self._blocks.clear()
        self._blocks[raw[at + 1 : reader.pos]] = properties
        return properties

    def _remaining_length(self, data: bytes, start: int) -> tuple[int, int]:
        """Return remaining length and where it ends, or (0, 0) when it is not complete."""
        check_fixed_header(data[start], self.version, self.receiver)
        reader = Reader(data[start : start + 5], 1, self.version, self.receiver)
        if reader.end < 5 and min(reader.raw[1:]) >= 128:  # each byte so far says that another follows
            self._wanted = reader.end + 1
            return 0, 0
        length = reader.varint("remaining_length")
        return length, start + reader.pos

    def _too_large(self, size: int, limit: int) -> MalformedPacketError:
        rule = rules.TOO_LARGE if self.receiver == "client" else rules.TOO_LARGE_FOR_SERVER
        detail = f"{size} bytes, {limit} accepted"
        return rule.broken(self.version, field="remaining_length", offset=1, detail=detail)
