"""SUBSCRIBE, UNSUBSCRIBE and their acknowledgements (sections 3.8 to 3.11)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from mqttquic_lab.errors import UsageError
from mqttquic_lab.mqtt import rules, writing
from mqttquic_lab.mqtt.packet import Packet, as_reason_code, read_reason_code
from mqttquic_lab.mqtt.properties import EMPTY, read_properties, write_properties
from mqttquic_lab.mqtt.reader import Bits
from mqttquic_lab.mqtt.reason_codes import CODES, ReasonCode
from mqttquic_lab.mqtt.topics import SHARE_PREFIX, check_topic_filter, filter_problem

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mqttquic_lab.mqtt.properties import Properties
    from mqttquic_lab.mqtt.reader import Reader, Version


@dataclass(frozen=True, slots=True)
class Subscription:
    """One topic filter with its subscription options (section 3.8.3.1).

    Attributes
    ----------
    filter : str
        Topic filter; ``$share/group/filter`` for a shared subscription.
    qos : int
        Largest QoS the client wants, 0 to 2.
    no_local : bool
        Whether the client's own messages stay away (MQTT 5.0).
    retain_as_published : bool
        Whether forwarded messages keep the retain flag they came with (MQTT 5.0).
    retain_handling : int
        Retained messages at subscribe time: 0 send, 1 send when the subscription is new, 2 do not send (MQTT 5.0).
    """

    filter: str
    qos: int = 0
    no_local: bool = False
    retain_as_published: bool = False
    retain_handling: int = 0

    def options(self, version: Version) -> int:
        """Return the options byte.

        Raises
        ------
        UsageError
            For values out of range, options that MQTT 3.1.1 lacks, and no local on a shared subscription.
        """
        if self.qos not in (0, 1, 2):
            raise UsageError(f"qos of {self.filter!r} is {self.qos!r}: it must be 0, 1 or 2")
        if self.retain_handling not in (0, 1, 2):
            raise UsageError(f"retain_handling of {self.filter!r} is {self.retain_handling!r}: it must be 0, 1 or 2")
        byte = self.qos | bool(self.no_local) << 2 | bool(self.retain_as_published) << 3 | self.retain_handling << 4
        if version == 4 and byte > 2:
            raise UsageError(
                "MQTT 3.1.1 has no subscription option but qos: leave the others out, or use version='5.0'"
            )
        if self.no_local and self.filter.startswith(SHARE_PREFIX):
            raise UsageError(f"no_local is not allowed on the shared subscription {self.filter!r}: leave it out")
        return byte


class Subscribe(Packet):
    """A client asks for messages (section 3.8).

    Parameters
    ----------
    packet_id : int
        1 to 65,535.
    subscriptions : iterable of Subscription
        At least one.
    properties : mapping or None
        ``subscription_identifier`` and ``user_property`` (MQTT 5.0).
    """

    __slots__ = ("packet_id", "properties", "subscriptions")
    TYPE = 8
    NAME = "SUBSCRIBE"
    FIELDS: ClassVar = ("packet_id", "subscriptions", "properties")

    def __init__(
        self,
        packet_id: int,
        subscriptions: Iterable[Subscription],
        properties: Properties | None = None,
        raw: bytes = b"",
        wire_version: Version | None = None,
    ) -> None:
        self.packet_id = packet_id
        self.subscriptions = tuple(subscriptions)
        self.properties: Properties = EMPTY if properties is None else properties
        self.raw = raw
        self.wire_version = wire_version

    def encode(self, version: Version = 5) -> bytes:
        """Return the packet as bytes for the wire (see :meth:`Packet.encode`)."""
        if not self.subscriptions:
            raise UsageError("SUBSCRIBE needs at least one subscription")
        parts = [writing.packet_id(self.packet_id, self.NAME), write_properties(self.properties, self.NAME, version)]
        for subscription in self.subscriptions:
            check_topic_filter(subscription.filter, shared=version == 5)
            parts.append(writing.utf8(subscription.filter, "topic filter"))
            parts.append(bytes((subscription.options(version),)))
        return writing.packet(0x82, b"".join(parts), self.NAME)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read variable header and payload (see :meth:`Packet.read`)."""
        packet_id = reader.packet_id()
        properties = read_properties(reader, cls.NAME) if reader.version != 4 else EMPTY
        if not reader.left:
            raise reader.breaks(rules.SUBSCRIBE_EMPTY, "topic_filter", reader.pos)
        subscriptions = []
        while reader.left:
            topic_filter = _read_filter(reader)
            subscriptions.append(_read_options(reader, topic_filter))
        return cls(packet_id, subscriptions, properties, reader.raw, reader.version)


def _read_filter(reader: Reader) -> str:
    start = reader.pos
    topic_filter = reader.utf8("topic_filter")
    problem = filter_problem(topic_filter, shared=reader.version != 4)
    if problem is not None:
        at = start + 2 if topic_filter else start
        raise reader.breaks(problem, "topic_filter", at, repr(topic_filter[:64]))
    return topic_filter


def _read_options(reader: Reader, topic_filter: str) -> Subscription:
    start = reader.pos
    name = "requested_qos" if reader.version == 4 else "subscription_options"
    options = reader.byte(name)
    qos, no_local, as_published, handling = options & 3, bool(options & 4), bool(options & 8), options >> 4 & 3
    if options & (0xFC if reader.version == 4 else 0xC0):
        raise reader.breaks(rules.SUBSCRIPTION_OPTIONS, name, start, f"0b{options:08b}")
    if qos == 3:
        raise reader.breaks(rules.SUBSCRIPTION_QOS_3, name, start)
    if handling == 3:
        raise reader.breaks(rules.RETAIN_HANDLING_3, name, start)
    if no_local and topic_filter.startswith(SHARE_PREFIX):
        raise reader.breaks(rules.NO_LOCAL_SHARED, name, start, repr(topic_filter[:64]))
    if reader.version == 4:
        bits: tuple[Bits, ...] = (Bits("reserved", 7, 2, 0), Bits("qos", 1, 0, qos))
    else:
        bits = (
            Bits("reserved", 7, 6, 0),
            Bits("retain_handling", 5, 4, handling),
            Bits("retain_as_published", 3, 3, as_published),
            Bits("no_local", 2, 2, no_local),
            Bits("qos", 1, 0, qos),
        )
    reader.note(name, start, options, bits)
    return Subscription(topic_filter, qos, no_local, as_published, handling)


class SubAck(Packet):
    """A server's answer to SUBSCRIBE (section 3.9).

    Parameters
    ----------
    packet_id : int
        Identifier of the SUBSCRIBE.
    reason_codes : iterable of ReasonCode or int
        One per subscription, in order: the granted QoS, or a failure.
    properties : mapping or None
        ``reason_string`` and ``user_property`` (MQTT 5.0).
    """

    __slots__ = ("packet_id", "properties", "reason_codes")
    TYPE = 9
    NAME = "SUBACK"
    FIELDS: ClassVar = ("packet_id", "reason_codes", "properties")

    def __init__(
        self,
        packet_id: int,
        reason_codes: Iterable[int],
        properties: Properties | None = None,
        raw: bytes = b"",
        wire_version: Version | None = None,
    ) -> None:
        self.packet_id = packet_id
        self.reason_codes: tuple[ReasonCode, ...] = tuple(as_reason_code(code, self.NAME) for code in reason_codes)
        self.properties: Properties = EMPTY if properties is None else properties
        self.raw = raw
        self.wire_version = wire_version

    def encode(self, version: Version = 5) -> bytes:
        """Return the packet as bytes for the wire (see :meth:`Packet.encode`).

        MQTT 3.1.1 has one failure only, so there each becomes 0x80.
        """
        if not self.reason_codes:
            raise UsageError("SUBACK needs one reason code per subscription")
        codes = bytes(0x80 if version == 4 and code.is_failure else code for code in self.reason_codes)
        head = writing.packet_id(self.packet_id, self.NAME)
        return writing.packet(0x90, head + write_properties(self.properties, self.NAME, version) + codes, self.NAME)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read variable header and payload (see :meth:`Packet.read`)."""
        packet_id = reader.packet_id()
        properties = read_properties(reader, cls.NAME) if reader.version != 4 else EMPTY
        if not reader.left:
            raise reader.breaks(rules.SUBACK_EMPTY, "reason_code", reader.pos)
        codes: list[ReasonCode] = []
        while reader.left:
            if reader.version == 4:
                codes.append(_read_return_code(reader))
            else:
                codes.append(read_reason_code(reader, cls.NAME))
        return cls(packet_id, codes, properties, reader.raw, reader.version)


def _read_return_code(reader: Reader) -> ReasonCode:
    start = reader.pos
    value = reader.byte("return_code")
    code = CODES[value]
    if code is None or value not in (0, 1, 2, 0x80):
        raise reader.breaks(rules.REASON_CODES["SUBACK"], "return_code", start, f"0x{value:02x}")
    reader.note("return_code", start, code)
    return code


class Unsubscribe(Packet):
    """A client wants no more messages for some filters (section 3.10).

    Parameters
    ----------
    packet_id : int
        1 to 65,535.
    filters : iterable of str
        The topic filters as they were subscribed to; at least one.
    properties : mapping or None
        ``user_property`` (MQTT 5.0).
    """

    __slots__ = ("filters", "packet_id", "properties")
    TYPE = 10
    NAME = "UNSUBSCRIBE"
    FIELDS: ClassVar = ("packet_id", "filters", "properties")

    def __init__(
        self,
        packet_id: int,
        filters: Iterable[str],
        properties: Properties | None = None,
        raw: bytes = b"",
        wire_version: Version | None = None,
    ) -> None:
        self.packet_id = packet_id
        self.filters: tuple[str, ...] = (filters,) if isinstance(filters, str) else tuple(filters)
        self.properties: Properties = EMPTY if properties is None else properties
        self.raw = raw
        self.wire_version = wire_version

    def encode(self, version: Version = 5) -> bytes:
        """Return the packet as bytes for the wire (see :meth:`Packet.encode`)."""
        if not self.filters:
            raise UsageError("UNSUBSCRIBE needs at least one topic filter")
        parts = [writing.packet_id(self.packet_id, self.NAME), write_properties(self.properties, self.NAME, version)]
        for topic_filter in self.filters:
            check_topic_filter(topic_filter, shared=version == 5)
            parts.append(writing.utf8(topic_filter, "topic filter"))
        return writing.packet(0xA2, b"".join(parts), self.NAME)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read variable header and payload (see :meth:`Packet.read`)."""
        packet_id = reader.packet_id()
        properties = read_properties(reader, cls.NAME) if reader.version != 4 else EMPTY
        if not reader.left:
            raise reader.breaks(rules.UNSUBSCRIBE_EMPTY, "topic_filter", reader.pos)
        filters = []
        while reader.left:
            filters.append(_read_filter(reader))
        return cls(packet_id, filters, properties, reader.raw, reader.version)


class UnsubAck(Packet):
    """A server's answer to UNSUBSCRIBE (section 3.11).

    Parameters
    ----------
    packet_id : int
        Identifier of the UNSUBSCRIBE.
    reason_codes : iterable of ReasonCode or int
        One per filter, in order; none in MQTT 3.1.1, which has none on the wire.
    properties : mapping or None
        ``reason_string`` and ``user_property`` (MQTT 5.0).
    """

    __slots__ = ("packet_id", "properties", "reason_codes")
    TYPE = 11
    NAME = "UNSUBACK"
    FIELDS: ClassVar = ("packet_id", "reason_codes", "properties")

    def __init__(
        self,
        packet_id: int,
        reason_codes: Iterable[int] = (),
        properties: Properties | None = None,
        raw: bytes = b"",
        wire_version: Version | None = None,
    ) -> None:
        self.packet_id = packet_id
        self.reason_codes: tuple[ReasonCode, ...] = tuple(as_reason_code(code, self.NAME) for code in reason_codes)
        self.properties: Properties = EMPTY if properties is None else properties
        self.raw = raw
        self.wire_version = wire_version

    def encode(self, version: Version = 5) -> bytes:
        """Return the packet as bytes for the wire (see :meth:`Packet.encode`)."""
        body = writing.packet_id(self.packet_id, self.NAME) + write_properties(self.properties, self.NAME, version)
        if version == 5:
            if not self.reason_codes:
                raise UsageError("UNSUBACK needs one reason code per topic filter")
            body += bytes(self.reason_codes)
        return writing.packet(0xB0, body, self.NAME)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read variable header and payload (see :meth:`Packet.read`)."""
        packet_id = reader.packet_id()
        if reader.version == 4:
            reader.finish()
            return cls(packet_id, (), EMPTY, reader.raw, reader.version)
        properties = read_properties(reader, cls.NAME)
        if not reader.left:
            raise reader.breaks(rules.UNSUBACK_EMPTY, "reason_code", reader.pos)
        codes = []
        while reader.left:
            codes.append(read_reason_code(reader, cls.NAME))
        return cls(packet_id, codes, properties, reader.raw, reader.version)
