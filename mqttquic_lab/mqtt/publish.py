"""PUBLISH and its acknowledgements PUBACK, PUBREC, PUBREL and PUBCOMP (sections 3.3 to 3.7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from mqttquic_lab.errors import UsageError
from mqttquic_lab.mqtt import rules, writing
from mqttquic_lab.mqtt.packet import Packet, as_reason_code, read_reason_code
from mqttquic_lab.mqtt.properties import EMPTY, read_properties, write_properties
from mqttquic_lab.mqtt.reason_codes import ReasonCode
from mqttquic_lab.mqtt.topics import check_topic_name

if TYPE_CHECKING:
    from mqttquic_lab.mqtt.properties import Properties
    from mqttquic_lab.mqtt.reader import Reader, Version

_PACK: Final = writing.U16.pack
_CACHED_TOPICS: Final = 4096
_CACHED_TOPIC_LENGTH: Final = 512


class Publish(Packet):
    """A message (section 3.3).

    Parameters
    ----------
    topic : str
        Topic name; empty only with a ``topic_alias`` property that the receiver knows.
    payload : bytes
        The message itself.
    qos : int
        0 (at most once), 1 (at least once) or 2 (exactly once).
    retain : bool
        Whether the server keeps it for later subscribers; towards a client, whether it was kept.
    dup : bool
        Whether this is a further attempt to deliver it.
    packet_id : int or None
        1 to 65,535 with QoS 1 and 2, None with QoS 0.
    properties : mapping or None
        PUBLISH properties (section 3.3.2.3). Decoded blocks are read-only and may be shared between packets.
    """

    __slots__ = ("dup", "packet_id", "payload", "properties", "qos", "retain", "topic")
    TYPE = 3
    NAME = "PUBLISH"
    FIELDS: ClassVar = ("topic", "payload", "qos", "retain", "dup", "packet_id", "properties")

    def __init__(
        self,
        topic: str,
        payload: bytes = b"",
        qos: int = 0,
        retain: bool = False,
        dup: bool = False,
        packet_id: int | None = None,
        properties: Properties | None = EMPTY,
        raw: bytes = b"",
        wire_version: Version | None = None,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.dup = dup
        self.packet_id = packet_id
        self.properties: Properties = EMPTY if properties is None else properties
        self.raw = raw
        self.wire_version = wire_version

    def encode(self, version: Version = 5) -> bytes:
        """Return the packet as bytes for the wire (see :meth:`Packet.encode`)."""
        return encode_publish(
            self.topic, self.payload, self.qos, self.retain, self.dup, self.packet_id, self.properties, version
        )

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read variable header and payload (see :meth:`Packet.read`)."""
        first = reader.raw[0]
        qos = first >> 1 & 3
        if qos == 3:
            raise reader.breaks(rules.QOS_3, "qos", 0)
        if first & 8 and not qos:
            raise reader.breaks(rules.DUP_QOS_0, "dup", 0)
        topic_start = reader.pos
        topic = reader.utf8("topic")
        if "+" in topic or "#" in topic:
            raise reader.breaks(rules.TOPIC_WILDCARD, "topic", topic_start + 2, repr(topic[:64]))
        if not topic and reader.version == 4:
            raise reader.breaks(rules.TOPIC_EMPTY, "topic", topic_start)
        packet_id = reader.packet_id() if qos else None
        properties: Properties = EMPTY
        if reader.version != 4:
            properties = read_properties(reader, "PUBLISH")
            if not topic and "topic_alias" not in properties:
                raise reader.breaks(rules.TOPIC_MISSING, "topic", topic_start)
        payload = reader.rest("payload")
        return cls(
            topic, payload, qos, bool(first & 1), bool(first & 8), packet_id, properties, reader.raw, reader.version
        )

    def check_payload_format(self) -> None:
        """Check that the payload is UTF-8 when ``payload_format_indicator`` says so (section 3.3.2.3.2).

        The standard leaves it to the receiver whether to look; the decoder does not.

        Raises
        ------
        MalformedPacketError
            With reason code 0x99 when it is not.
        """
        if self.properties.get("payload_format_indicator"):
            try:
                str(self.payload, "utf-8")
            except UnicodeDecodeError as error:
                offset = len(self.raw) - len(self.payload) + error.start if self.raw else None
                raise rules.PAYLOAD_FORMAT.broken(5, field="payload", offset=offset, detail=error.reason) from None


_topic_bytes: dict[str, bytes] = {}
"""Topic -> its string on the wire, for topics that passed the check; cleared when full."""


def _encode_topic(topic: str, properties: Properties | None, version: Version) -> bytes:
    if topic == "":
        if version == 5 and properties and "topic_alias" in properties:
            return b"\0\0"
        raise UsageError("topic is empty: give a topic name (or, in MQTT 5.0, a topic_alias the receiver knows)")
    check_topic_name(topic)
    data = writing.utf8(topic, "topic")
    if len(data) <= _CACHED_TOPIC_LENGTH:
        if len(_topic_bytes) >= _CACHED_TOPICS:
            _topic_bytes.clear()
        _topic_bytes[topic] = data
    return data


def encode_publish(
    topic: str,
    payload: bytes | bytearray | memoryview,
    qos: int = 0,
    retain: bool = False,
    dup: bool = False,
    packet_id: int | None = None,
    properties: Properties | None = None,
    version: Version = 5,
) -> bytes:
    """Return a PUBLISH packet as bytes, without building a :class:`Publish` first.

    Parameters
    ----------
    topic, payload, qos, retain, dup, packet_id, properties
        As in :class:`Publish`.
    version : int
        5, or 4 for MQTT 3.1.1.

    Raises
    ------
    UsageError
        When a field cannot be sent; the message says what to change.
    """
    head = _topic_bytes.get(topic)
    if head is None:
        head = _encode_topic(topic, properties, version)
    if type(payload) is not bytes:
        payload = writing.octets(payload, "payload")
    first = 0x31 if retain else 0x30
    if qos:
        if qos not in (1, 2):
            raise UsageError(f"qos is {qos!r}: it must be 0, 1 or 2")
        first |= qos << 1 | (8 if dup else 0)
        if type(packet_id) is not int or not 0 < packet_id < 65_536:
            raise writing.bad_packet_id(packet_id, "PUBLISH with QoS 1 or 2")
        head += _PACK(packet_id)
    elif dup or packet_id is not None:
        raise UsageError("PUBLISH with QoS 0 takes neither dup nor packet_id: leave them out, or set qos=1")
    if version == 5 and not properties:
        head += b"\0"
    else:
        head += write_properties(properties, "PUBLISH", version)
    size = len(head) + len(payload)
    if size < 128:
        return bytes((first, size)) + head + payload
    return bytes((first,)) + writing.varint(size) + head + payload


class Acknowledgement(Packet):
    """What PUBACK, PUBREC, PUBREL and PUBCOMP have in common.

    Parameters
    ----------
    packet_id : int
        Identifier of the PUBLISH it belongs to, 1 to 65,535.
    reason_code : ReasonCode or int
        0x00 by default. MQTT 3.1.1 has none on the wire.
    properties : mapping or None
        ``reason_string`` and ``user_property`` (MQTT 5.0).
    """

    __slots__ = ("packet_id", "properties", "reason_code")
    FIELDS: ClassVar = ("packet_id", "reason_code", "properties")
    FIRST: ClassVar[int]

    def __init__(
        self,
        packet_id: int,
        reason_code: int = ReasonCode.SUCCESS,
        properties: Properties | None = EMPTY,
        raw: bytes = b"",
        wire_version: Version | None = None,
    ) -> None:
        self.packet_id = packet_id
        self.reason_code: ReasonCode = (
            ReasonCode.SUCCESS if reason_code is ReasonCode.SUCCESS else as_reason_code(reason_code, self.NAME)
        )
        self.properties: Properties = EMPTY if properties is None else properties
        self.raw = raw
        self.wire_version = wire_version

    def encode(self, version: Version = 5) -> bytes:
        """Return the packet as bytes for the wire, in its shortest form (see :meth:`Packet.encode`)."""
        body = writing.packet_id(self.packet_id, self.NAME)
        if version == 4:
            return bytes((self.FIRST, 2)) + body + write_properties(self.properties, self.NAME, version)
        if self.properties:
            body += bytes((self.reason_code,)) + write_properties(self.properties, self.NAME, version)
            return writing.packet(self.FIRST, body, self.NAME)
        if self.reason_code:
            return bytes((self.FIRST, 3)) + body + bytes((self.reason_code,))
        return bytes((self.FIRST, 2)) + body

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read variable header and payload (see :meth:`Packet.read`)."""
        packet_id = reader.packet_id()
        reason_code = ReasonCode.SUCCESS
        properties: Any = EMPTY
        # The reason code may be left out when it is 0x00, and the property length when there is none after it.
        if reader.version != 4 and reader.left:
            reason_code = read_reason_code(reader, cls.NAME)
            if reader.left:
                properties = read_properties(reader, cls.NAME)
        reader.finish()
        return cls(packet_id, reason_code, properties, reader.raw, reader.version)


class PubAck(Acknowledgement):
    """Answer to a PUBLISH with QoS 1 (section 3.4); parameters as in :class:`Acknowledgement`."""

    __slots__ = ()
    TYPE = 4
    NAME = "PUBACK"
    FIRST = 0x40


class PubRec(Acknowledgement):
    """First answer to a PUBLISH with QoS 2: received (section 3.5); parameters as in :class:`Acknowledgement`."""

    __slots__ = ()
    TYPE = 5
    NAME = "PUBREC"
    FIRST = 0x50


class PubRel(Acknowledgement):
    """The sender's answer to PUBREC: released (section 3.6); parameters as in :class:`Acknowledgement`."""

    __slots__ = ()
    TYPE = 6
    NAME = "PUBREL"
    FIRST = 0x62


class PubComp(Acknowledgement):
    """Answer to PUBREL: complete (section 3.7); parameters as in :class:`Acknowledgement`."""

    __slots__ = ()
    TYPE = 7
    NAME = "PUBCOMP"
    FIRST = 0x70
