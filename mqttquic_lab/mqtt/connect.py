"""CONNECT and CONNACK (sections 3.1 and 3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from mqttquic_lab.errors import UsageError
from mqttquic_lab.mqtt import rules, writing
from mqttquic_lab.mqtt.packet import Packet, Structure, as_reason_code, read_reason_code
from mqttquic_lab.mqtt.properties import EMPTY, read_properties, write_properties
from mqttquic_lab.mqtt.reader import Bits
from mqttquic_lab.mqtt.reason_codes import ReasonCode
from mqttquic_lab.mqtt.topics import check_topic_name, name_problem

if TYPE_CHECKING:
    from mqttquic_lab.mqtt.properties import Properties
    from mqttquic_lab.mqtt.reader import Reader, Version


class Will(Structure):
    """The message a server publishes when the client goes without saying goodbye (section 3.1.2.5).

    Parameters
    ----------
    topic : str
        Topic name.
    payload : bytes
        At most 65,535 bytes.
    qos : int
        0, 1 or 2.
    retain : bool
        Whether it becomes the topic's retained message.
    properties : mapping or None
        Will properties (section 3.1.3.2), such as ``will_delay_interval`` in seconds.
    """

    __slots__ = ("payload", "properties", "qos", "retain", "topic")
    FIELDS: ClassVar = ("topic", "payload", "qos", "retain", "properties")

    def __init__(
        self,
        topic: str,
        payload: bytes = b"",
        qos: int = 0,
        retain: bool = False,
        properties: Properties | None = None,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.properties: Properties = EMPTY if properties is None else properties


class Connect(Packet):
    """A client asks for a session (section 3.1).

    Parameters
    ----------
    client_id : str
        Client identifier; empty asks the server to assign one.
    version : int
        5, or 4 for MQTT 3.1.1.
    clean_start : bool
        Whether to drop an existing session (Clean Session in 3.1.1).
    keepalive : int
        Longest silence of the client in seconds; 0 for none.
    username : str or None
        User name.
    password : bytes, str or None
        Password; text is stored as its UTF-8 bytes.
    will : Will or None
        Will message.
    properties : mapping or None
        CONNECT properties (section 3.1.2.11).
    """

    __slots__ = ("clean_start", "client_id", "keepalive", "password", "properties", "username", "version", "will")
    TYPE = 1
    NAME = "CONNECT"
    FIELDS: ClassVar = (
        "client_id", "version", "clean_start", "keepalive", "username", "password", "will", "properties",
    )  # fmt: skip

    def __init__(
        self,
        client_id: str = "",
        version: Version = 5,
        clean_start: bool = True,
        keepalive: int = 60,
        username: str | None = None,
        password: bytes | str | None = None,
        will: Will | None = None,
        properties: Properties | None = None,
        raw: bytes = b"",
        wire_version: Version | None = None,
    ) -> None:
        self.client_id = client_id
        self.version: Version = version
        self.clean_start = clean_start
        self.keepalive = keepalive
        self.username = username
        self.password: bytes | None = password.encode() if isinstance(password, str) else password
        self.will = will
        self.properties: Properties = EMPTY if properties is None else properties
        self.raw = raw
        self.wire_version = wire_version

    def encode(self, version: Version | None = None) -> bytes:
        """Return the packet as bytes for the wire.

        Parameters
        ----------
        version : int or None
            Must be :attr:`version`, which is also the default: this packet is the one that tells it.

        Raises
        ------
        UsageError
            When a field cannot be sent.
        """
        if version is None:
            version = self.version
        if version != self.version or version not in (4, 5):
            raise UsageError(f"CONNECT of version {self.version!r} cannot be sent as {version!r}: use 4 or 5 in both")
        if version == 4 and self.password is not None and self.username is None:
            raise UsageError("MQTT 3.1.1 takes no password without a user name: give username, or use version='5.0'")
        if version == 4 and not self.client_id and not self.clean_start:
            raise UsageError("MQTT 3.1.1 takes no empty client_id with clean_start=False: give a client_id")
        flags = bool(self.clean_start) << 1
        payload = [writing.utf8(self.client_id, "client_id")]
        if self.will is not None:
            flags |= _will_flags(self.will)
            payload.append(write_properties(self.will.properties, "WILL", version))
            payload.append(writing.utf8(self.will.topic, "will topic"))
            payload.append(writing.binary(self.will.payload, "will payload"))
        if self.username is not None:
            flags |= 0x80
            payload.append(writing.utf8(self.username, "username"))
        if self.password is not None:
            flags |= 0x40
            payload.append(writing.binary(self.password, "password"))
        head = b"\0\4MQTT" + bytes((version, flags)) + writing.integer(self.keepalive, 2, "keepalive")
        return writing.packet(
            0x10, head + write_properties(self.properties, "CONNECT", version) + b"".join(payload), "CONNECT"
        )

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read variable header and payload (see :meth:`Packet.read`); sets the reader's version."""
        start = reader.pos
        name = reader.utf8("protocol_name")
        if name != "MQTT":
            raise reader.breaks(rules.PROTOCOL_NAME, "protocol_name", start, repr(name[:32]))
        start = reader.pos
        level = reader.byte("protocol_version")
        if level not in (4, 5):
            # The answer is in the form of the nearest that we speak. Bridges add 0x80 to 3 or 4, and try again without
            # when they are refused in the form of 3.1.1.
            if level > 5 and level not in (0x83, 0x84):
                reader.version = 5
            raise reader.breaks(rules.PROTOCOL_LEVEL, "protocol_version", start, f"{level}; 4 and 5 are supported")
        version: Version = 4 if level == 4 else 5
        reader.version = version
        reader.note("protocol_version", start, level)
        flags = _read_connect_flags(reader)
        keepalive = reader.integer("keep_alive", 2)
        properties = read_properties(reader, "CONNECT") if version == 5 else EMPTY
        start = reader.pos
        client_id = reader.utf8("client_id")
        if version == 4 and not client_id and not flags & 0x02:
            raise reader.breaks(rules.CLIENT_ID_EMPTY, "client_id", start)
        will = _read_will(reader, flags) if flags & 0x04 else None
        username = reader.utf8("username") if flags & 0x80 else None
        password = reader.binary("password", secret=True) if flags & 0x40 else None
        reader.finish()
        clean_start = bool(flags & 0x02)
        return cls(
            client_id, version, clean_start, keepalive, username, password, will, properties, reader.raw, version
        )


def _will_flags(will: Will) -> int:
    if will.qos not in (0, 1, 2):
        raise UsageError(f"will qos is {will.qos!r}: it must be 0, 1 or 2")
    check_topic_name(will.topic)
    return 0x04 | will.qos << 3 | bool(will.retain) << 5


def _read_connect_flags(reader: Reader) -> int:
    start = reader.pos
    flags = reader.byte("connect_flags")
    qos = flags >> 3 & 3
    if flags & 0x01:
        raise reader.breaks(rules.CONNECT_RESERVED, "connect_flags", start)
    if qos == 3:
        raise reader.breaks(rules.WILL_QOS_3, "connect_flags", start)
    if not flags & 0x04:
        if qos:
            raise reader.breaks(rules.WILL_QOS_ALONE, "connect_flags", start)
        if flags & 0x20:
            raise reader.breaks(rules.WILL_RETAIN_ALONE, "connect_flags", start)
    if reader.version == 4 and flags & 0x40 and not flags & 0x80:
        raise reader.breaks(rules.PASSWORD_ALONE, "connect_flags", start)
    if reader.spans is not None:
        names = ("username", "password", "will_retain")
        bits = [Bits(name, 7 - i, 7 - i, bool(flags >> (7 - i) & 1)) for i, name in enumerate(names)]
        bits += [Bits("will_qos", 4, 3, qos), Bits("will", 2, 2, bool(flags & 4))]
        clean = "clean_session" if reader.version == 4 else "clean_start"
        bits += [Bits(clean, 1, 1, bool(flags & 2)), Bits("reserved", 0, 0, 0)]
        reader.note("connect_flags", start, flags, tuple(bits))
    return flags


def _read_will(reader: Reader, flags: int) -> Will:
    properties = read_properties(reader, "WILL") if reader.version == 5 else EMPTY
    start = reader.pos
    topic = reader.utf8("will_topic")
    problem = name_problem(topic)
    if problem is not None:
        if not topic:
            raise reader.breaks(problem, "will_topic", start)
        raise reader.breaks(rules.WILL_TOPIC_WILDCARD, "will_topic", start + 2, repr(topic[:64]))
    payload = reader.binary("will_payload")
    return Will(topic, payload, flags >> 3 & 3, bool(flags & 0x20), properties)


class ConnAck(Packet):
    """A server's answer to CONNECT (section 3.2).

    Parameters
    ----------
    session_present : bool
        Whether the server had a session of this client.
    reason_code : ReasonCode or int
        0x00 when connected. In MQTT 3.1.1 the return code, mapped to the 5.0 code of the same meaning.
    properties : mapping or None
        CONNACK properties (section 3.2.2.3).
    """

    __slots__ = ("properties", "reason_code", "session_present")
    TYPE = 2
    NAME = "CONNACK"
    FIELDS: ClassVar = ("session_present", "reason_code", "properties")

    def __init__(
        self,
        session_present: bool = False,
        reason_code: int = ReasonCode.SUCCESS,
        properties: Properties | None = None,
        raw: bytes = b"",
        wire_version: Version | None = None,
    ) -> None:
        self.session_present = session_present
        self.reason_code: ReasonCode = as_reason_code(reason_code, "CONNACK")
        self.properties: Properties = EMPTY if properties is None else properties
        self.raw = raw
        self.wire_version = wire_version

    def encode(self, version: Version = 5) -> bytes:
        """Return the packet as bytes for the wire (see :meth:`Packet.encode`).

        For MQTT 3.1.1 the reason code becomes the nearest of its five return codes.
        """
        if self.session_present and self.reason_code:
            raise UsageError(f"session_present needs reason code 0x00, not 0x{self.reason_code:02x}")
        code = self.reason_code.to_v311() if version == 4 else int(self.reason_code)
        head = bytes((bool(self.session_present), code))
        return writing.packet(0x20, head + write_properties(self.properties, "CONNACK", version), "CONNACK")

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read variable header and payload (see :meth:`Packet.read`)."""
        start = reader.pos
        flags = reader.byte("connect_acknowledge_flags")
        if flags > 1:
            raise reader.breaks(rules.CONNACK_RESERVED, "connect_acknowledge_flags", start, f"0b{flags:08b}")
        session_present = bool(flags)
        bits = (Bits("reserved", 7, 1, 0), Bits("session_present", 0, 0, session_present))
        reader.note("connect_acknowledge_flags", start, flags, bits)
        properties: Any = EMPTY
        start = reader.pos
        if reader.version == 4 or reader.raw[2:] == b"\0\1":
            # The latter is how a server that only knows 3.1.1 answers a CONNECT of 5.0 (its MQTT-3.1.2-2).
            value = reader.byte("return_code")
            if value > 5:
                raise reader.breaks(rules.REASON_CODES["CONNACK"], "return_code", start, f"{value} is reserved")
            code = ReasonCode.from_v311(value)
            reader.note("return_code", start, code)
        else:
            code = read_reason_code(reader, "CONNACK")
            properties = read_properties(reader, "CONNACK")
        if code and session_present:
            raise reader.breaks(rules.SESSION_PRESENT, "connect_acknowledge_flags", start - 1)
        reader.finish()
        return cls(session_present, code, properties, reader.raw, reader.version)
