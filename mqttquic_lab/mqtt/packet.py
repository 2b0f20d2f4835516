"""What all control packets have in common: the fixed header, the wire bytes, equality, a safe repr."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from mqttquic_lab.errors import UsageError
from mqttquic_lab.mqtt import rules
from mqttquic_lab.mqtt.reader import SECRET, Bits, Field, Reader
from mqttquic_lab.mqtt.reason_codes import ALLOWED, CLIENT_ONLY, CODES, SERVER_ONLY, ReasonCode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mqttquic_lab.mqtt.reader import Receiver, Version

TYPE_NAMES: Final = (
    "RESERVED", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP", "SUBSCRIBE", "SUBACK",
    "UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH",
)  # fmt: skip
"""Control packet types by number (table 2-1)."""

_FLAGS: Final = (0, 0, 0, None, 0, 0, 2, 0, 2, 0, 2, 0, 0, 0, 0, 0)
"""Flags of the fixed header by packet type (table 2-2); None for PUBLISH, whose flags mean something."""

_NEVER_AT: Final[dict[str, frozenset[str]]] = {
    "server": frozenset({"CONNACK", "SUBACK", "UNSUBACK", "PINGRESP"}),
    "client": frozenset({"CONNECT", "SUBSCRIBE", "UNSUBSCRIBE", "PINGREQ"}),
}


def check_fixed_header(first: int, version: Version | None, receiver: Receiver | None) -> None:
    """Check type, flags and direction of a packet from its first byte.

    Parameters
    ----------
    first : int
        The byte.
    version : int or None
        None when CONNECT has to come first.
    receiver : str or None
        None skips the check of the direction.

    Raises
    ------
    MalformedPacketError
        For a reserved type, flags that are not as the type demands, or a packet that only the other end receives.
    """
    kind = first >> 4
    name = TYPE_NAMES[kind]
    if not kind:
        raise rules.TYPE_RESERVED.broken(version, field="packet_type", offset=0)
    if kind == 15 and version == 4:
        raise rules.AUTH_IN_V311.broken(version, field="packet_type", offset=0)
    if version is None and kind != 1:
        raise rules.FIRST_PACKET.broken(version, field="packet_type", offset=0, detail=f"it is {name}")
    if _FLAGS[kind] not in (None, first & 0x0F):
        detail = f"0b{first & 0x0F:04b}, must be 0b{_FLAGS[kind]:04b}"
        raise rules.FLAGS[name].broken(version, field="flags", offset=0, detail=detail)
    if receiver is not None and name in _NEVER_AT[receiver]:
        raise rules.DIRECTION.broken(version, field="packet_type", offset=0, detail=f"{name} at a {receiver}")
    if kind == 14 and version == 4 and receiver == "client":
        raise rules.DISCONNECT_FROM_SERVER.broken(version, field="packet_type", offset=0)


def note_fixed_header(reader: Reader) -> None:
    """Note the fields of the fixed header; the reader stands at byte 0 of a packet known to be good."""
    first = reader.byte("packet_type")
    kind = first >> 4
    bits = [Bits("packet_type", 7, 4, TYPE_NAMES[kind])]
    if kind == 3:
        bits += [
            Bits("dup", 3, 3, bool(first & 8)),
            Bits("qos", 2, 1, first >> 1 & 3),
            Bits("retain", 0, 0, bool(first & 1)),
        ]
    else:
        bits.append(Bits("reserved", 3, 0, first & 0x0F))
    reader.note("packet_type", 0, TYPE_NAMES[kind], tuple(bits))
    reader.varint("remaining_length")


def plain(value: Any) -> Any:
    """Return `value` with sequences as tuples and mappings as dicts, so that blocks of either origin compare equal."""
    if isinstance(value, (list, tuple)):
        return tuple(map(plain, value))
    if hasattr(value, "items"):
        return {name: plain(item) for name, item in value.items()}
    return value


def shown(name: str, value: Any) -> str:
    """Return what a repr shows of a field: no secret, and no more than a few bytes of a payload."""
    if name in {"password", "authentication_data"}:
        return "None" if value is None else SECRET
    if name == "properties":
        return "{" + ", ".join(f"{key!r}: {shown(key, item)}" for key, item in value.items()) + "}"
    if name == "payload" and len(value) > 32:
        return f"{bytes(value[:32])!r}...({len(value)} bytes)"
    if isinstance(value, ReasonCode):
        return f"0x{value:02x} {value.text}"
    return repr(value)


class Structure:
    """A slotted value with equality over its :attr:`FIELDS` and a repr that shows no secret."""

    __slots__ = ()
    FIELDS: ClassVar[tuple[str, ...]] = ()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(plain(getattr(self, name)) == plain(getattr(other, name)) for name in self.FIELDS)

    __hash__ = None  # type: ignore[assignment]  # fields may be assigned

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={shown(name, getattr(self, name))}" for name in self.FIELDS)
        return f"{type(self).__name__}({inner})"


class Packet(Structure):
    """Base of the control packets.

    Attributes
    ----------
    raw : bytes
        The packet as it arrived, fixed header included; ``b""`` when built by hand.
    wire_version : int or None
        Protocol version `raw` was read with; None when built by hand.
    """

    __slots__ = ("raw", "wire_version")
    TYPE: ClassVar[int]
    NAME: ClassVar[str]

    raw: bytes
    wire_version: Version | None

    def encode(self, version: Version = 5) -> bytes:
        """Return the packet as bytes for the wire.

        Parameters
        ----------
        version : int
            5, or 4 for MQTT 3.1.1. Reason codes of acknowledgements do not exist there and are left out.

        Raises
        ------
        UsageError
            When a field cannot be sent; the message says what to change.
        """
        raise NotImplementedError

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """Read variable header and payload; the reader stands behind the fixed header.

        Raises
        ------
        MalformedPacketError
            When the bytes break a rule of the standard.
        """
        raise NotImplementedError

    def fields(self) -> tuple[Field, ...]:
        """Return the fields with their byte spans inside :attr:`raw`, in order; empty when built by hand.

        The spans follow each other without gap or overlap from byte 0 to the last. They are found anew at each call.
        """
        if not self.raw:
            return ()
        spans: list[Field] = []
        reader = Reader(self.raw, 0, self.wire_version, None, spans)
        note_fixed_header(reader)
        self.read(reader)
        return tuple(spans)


def as_reason_code(value: int, packet: str) -> ReasonCode:
    """Return `value` as a reason code that `packet` may carry.

    Raises
    ------
    UsageError
        When 5.0 does not list it for that packet.
    """
    if value not in ALLOWED[packet]:
        listed = ", ".join(f"0x{code:02x}" for code in sorted(ALLOWED[packet]))
        raise UsageError(f"{value!r} is no reason code of {packet}: it takes {listed}")
    return ReasonCode(value)


def read_reason_code(reader: Reader, packet: str, name: str = "reason_code") -> ReasonCode:
    """Read a reason code of MQTT 5.0 and check that `packet` may carry it in this direction."""
    start = reader.pos
    value = reader.byte(name)
    code = CODES[value]
    if code is None or code not in ALLOWED[packet]:
        raise reader.breaks(rules.REASON_CODES[packet], name, start, f"0x{value:02x}")
    elsewhere: Mapping[str, frozenset[ReasonCode]] = {}
    if reader.receiver is not None:
        elsewhere = CLIENT_ONLY if reader.receiver == "client" else SERVER_ONLY
    if code in elsewhere.get(packet, ()):
        sender = "server" if reader.receiver == "client" else "client"
        raise reader.breaks(rules.REASON_CODES[packet], name, start, f"a {sender} never sends 0x{value:02x}")
    reader.note(name, start, code)
    return code
