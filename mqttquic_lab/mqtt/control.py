"""PINGREQ, PINGRESP, DISCONNECT and AUTH (sections 3.12 to 3.15)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from mqttquic_lab.errors import UsageError
from mqttquic_lab.mqtt import rules, writing
from mqttquic_lab.mqtt.packet import Packet, as_reason_code, read_reason_code
from mqttquic_lab.mqtt.properties import EMPTY, read_properties, write_properties
from mqttquic_lab.mqtt.reason_codes import ReasonCode

if TYPE_CHECKING:
    from mqttquic_lab.mqtt.properties import Properties
    from mqttquic_lab.mqtt.reader import Reader, Version


class _Bare(Packet):
    """A packet of two bytes."""

    __slots__ = ()

    def __init__(self, raw: bytes = b"", wire_version: Version | None = None) -> None:
        self.raw = raw
        self.wire_version = wire_version

    def encode(self, version: Version = 5) -> bytes:
        """Return the packet as bytes for the wire."""
        return bytes((self.TYPE << 4, 0))

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Check that nothing follows the fixed header (see :meth:`Packet.read`)."""
        reader.finish()
        return cls(reader.raw, reader.version)


class PingReq(_Bare):
    """A client asks whether the server is there (section 3.12)."""

    __slots__ = ()
    TYPE = 12
    NAME = "PINGREQ"


class PingResp(_Bare):
    """The server is there (section 3.13)."""

    __slots__ = ()
    TYPE = 13
    NAME = "PINGRESP"


class Disconnect(Packet):
    """One end says goodbye, in MQTT 3.1.1 the client only (section 3.14).

    Parameters
    ----------
    reason_code : ReasonCode or int
        0x00 by default. MQTT 3.1.1 has none on the wire.
    properties : mapping or None
        ``session_expiry_interval`` (from clients), ``reason_string``, ``user_property``, ``server_reference``.
    """

    __slots__ = ("properties", "reason_code")
    TYPE = 14
    NAME = "DISCONNECT"
    FIELDS: ClassVar = ("reason_code", "properties")

    def __init__(
        self,
        reason_code: int = ReasonCode.NORMAL_DISCONNECTION,
        properties: Properties | None = None,
        raw: bytes = b"",
        wire_version: Version | None = None,
    ) -> None:
        self.reason_code: ReasonCode = as_reason_code(reason_code, self.NAME)
        self.properties: Properties = EMPTY if properties is None else properties
        self.raw = raw
        self.wire_version = wire_version

    def encode(self, version: Version = 5) -> bytes:
        """Return the packet as bytes for the wire, in its shortest form (see :meth:`Packet.encode`)."""
        if version == 4:
            return b"\xe0\0" + write_properties(self.properties, self.NAME, version)
        if self.properties:
            body = bytes((self.reason_code,)) + write_properties(self.properties, self.NAME, version)
            return writing.packet(0xE0, body, self.NAME)
        return bytes((0xE0, 1, self.reason_code)) if self.reason_code else b"\xe0\0"

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read variable header and payload (see :meth:`Packet.read`)."""
        reason_code = ReasonCode.NORMAL_DISCONNECTION
        properties: Properties = EMPTY
        if reader.version != 4 and reader.left:
            reason_code = read_reason_code(reader, cls.NAME)
            if reader.left:
                properties = read_properties(reader, cls.NAME)
        reader.finish()
        return cls(reason_code, properties, reader.raw, reader.version)


class Auth(Packet):
    """A step of an authentication exchange; MQTT 5.0 only (section 3.15).

    Parameters
    ----------
    reason_code : ReasonCode or int
        0x00 success, 0x18 continue, 0x19 re-authenticate.
    properties : mapping or None
        ``authentication_method`` (needed unless this is a bare success), ``authentication_data`` and others.
    """

    __slots__ = ("properties", "reason_code")
    TYPE = 15
    NAME = "AUTH"
    FIELDS: ClassVar = ("reason_code", "properties")

    def __init__(
        self,
        reason_code: int = ReasonCode.SUCCESS,
        properties: Properties | None = None,
        raw: bytes = b"",
        wire_version: Version | None = None,
    ) -> None:
        self.reason_code: ReasonCode = as_reason_code(reason_code, self.NAME)
        self.properties: Properties = EMPTY if properties is None else properties
        self.raw = raw
        self.wire_version = wire_version

    def encode(self, version: Version = 5) -> bytes:
        """Return the packet as bytes for the wire (see :meth:`Packet.encode`)."""
        if version == 4:
            raise UsageError("AUTH does not exist in MQTT 3.1.1: use version='5.0'")
        if not self.properties and not self.reason_code:
            return b"\xf0\0"
        if "authentication_method" not in self.properties:
            raise UsageError("AUTH needs the property authentication_method")
        body = bytes((self.reason_code,)) + write_properties(self.properties, self.NAME, version)
        return writing.packet(0xF0, body, self.NAME)

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read variable header and payload (see :meth:`Packet.read`)."""
        reason_code = ReasonCode.SUCCESS
        properties: Properties = EMPTY
        if reader.left:  # only a success without properties may leave all out
            reason_code = read_reason_code(reader, cls.NAME)
            start = reader.pos
            properties = read_properties(reader, cls.NAME)
            if "authentication_method" not in properties:
                raise reader.breaks(rules.AUTH_METHOD_MISSING, "authentication_method", start)
        reader.finish()
        return cls(reason_code, properties, reader.raw, reader.version)
