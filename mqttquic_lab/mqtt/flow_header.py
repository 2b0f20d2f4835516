"""Flow headers: the first bytes of every stream when the ALPN is ``MQTT-next`` (MQoQ 9.4 to 9.9).

In use, sending::

    header = FlowHeader(FlowType.CLIENT_DATA, 2, expire_interval=300, flags=FlowFlags(clean=True))
    stream.write(header.encode())

and receiving, in whatever pieces the bytes come::

    decoder = FlowHeaderDecoder()                  # required=False where the peer may send none (mqttv5's control)
    header = decoder.feed(data)                    # None: more bytes are needed
    if header is not None:                         # with required=False: `if decoder.done`, and header may be None
        check_header(header, initiator=Role.CLIENT, unidirectional=False)      # FlowTable.accept does this
        packets = packet_decoder.feed(decoder.rest)

The integers are those of RFC 9000 section 16, not MQTT's variable byte integers. ``header.fields()`` gives byte spans
and bits, as ``packet.fields()`` does for packets.

Types 0x11 to 0x14 read as an MQTT fixed header would be CONNECT with reserved flags set, so no packet begins like a
header. That holds for types in their shortest form only: 0x40 0x11 is the same integer, but also begins a PUBACK.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Final

from mqttquic_lab.errors import UsageError
from mqttquic_lab.mqtt import flow_rules
from mqttquic_lab.mqtt.flow_codes import FlowError
from mqttquic_lab.mqtt.reader import Bits, Field
from mqttquic_lab.mqtt.state import Role

MAX_VARINT: Final = (1 << 62) - 1
"""Largest RFC 9000 variable-length integer, so also the largest flow id and expire interval."""

CONTROL_FLOW_ID: Final = 0
"""Flow id of the control flow (MQoQ 9.6.1)."""

MAX_HEADER_SIZE: Final = 25
"""Bytes of the longest header without optional headers: three integers of eight and the flags."""


class FlowType(IntEnum):
    """Types of flows (MQoQ 9.20)."""

    CONTROL = 0x11
    CLIENT_DATA = 0x12
    SERVER_DATA = 0x13
    USER_DEFINED = 0x14


_NAMES: Final = {
    FlowType.CONTROL: "CONTROL FLOW",
    FlowType.CLIENT_DATA: "CLIENT DATA FLOW",
    FlowType.SERVER_DATA: "SERVER DATA FLOW",
    FlowType.USER_DEFINED: "USER-DEFINED FLOW",
}


def encode_varint(value: int) -> bytes:
    """Return `value` as a variable-length integer in its shortest form (RFC 9000 section 16).

    Raises
    ------
    UsageError
        When it is no integer, negative or above 2**62 - 1.
    """
    if not isinstance(value, int) or not 0 <= value <= MAX_VARINT:
        raise UsageError(f"{value!r} does not fit a variable-length integer: it must be from 0 to 2**62 - 1")
    if value < 0x40:
        return bytes((value,))
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2, "big")
    if value < 0x4000_0000:
        return (value | 0x8000_0000).to_bytes(4, "big")
    return (value | 0xC000_0000_0000_0000).to_bytes(8, "big")


def decode_varint(data: bytes | bytearray, start: int = 0) -> tuple[int, int] | None:
    """Read the variable-length integer at `start` (RFC 9000 section 16).

    Longer forms than needed are allowed there.

    Returns
    -------
    tuple of int or None
        The value and where it ends; None when bytes are missing.
    """
    if start >= len(data):
        return None
    end = start + (1 << (data[start] >> 6))
    if end > len(data):
        return None
    return int.from_bytes(data[start:end], "big") & ((1 << (8 * (end - start) - 2)) - 1), end


@dataclass(frozen=True, slots=True)
class FlowFlags:
    """Flags of a flow header, bit 0 first (MQoQ 9.8).

    Attributes
    ----------
    clean : bool
        Both ends discard what they kept of the flow. Unset asks to recover it (9.15).
    abort_if_no_state : bool
        The peer aborts the flow with NO_FLOW_STATE if there is nothing to recover, instead of starting afresh.
    err_tolerance : int
        0 to 3. The draft does not say what the values mean; see :class:`mqttquic_lab.mqtt.flows.FlowTable`.
    persistent_qos, persistent_topic_alias, persistent_subscriptions : bool
        Which parts of the state outlive an abortive end of the flow. The last is for client flows only.
    optional_headers : bool
        Optional headers follow (9.9). The draft does not say how many, so no receiver can read past them.
    """

    clean: bool = False
    abort_if_no_state: bool = False
    err_tolerance: int = 0
    persistent_qos: bool = False
    persistent_topic_alias: bool = False
    persistent_subscriptions: bool = False
    optional_headers: bool = False

    def to_byte(self) -> int:
        """Return the flags byte.

        Raises
        ------
        UsageError
            When `err_tolerance` does not fit two bits.
        """
        if not 0 <= self.err_tolerance <= 3:
            raise UsageError(f"err_tolerance is {self.err_tolerance!r}: it must be from 0 to 3")
        return sum(int(getattr(self, name)) << low for name, low, _ in _FLAG_BITS)

    @classmethod
    def from_byte(cls, value: int) -> FlowFlags:
        """Return the flags of a byte; every value has a meaning."""
        return cls(
            clean=bool(value & 1),
            abort_if_no_state=bool(value & 2),
            err_tolerance=value >> 2 & 3,
            persistent_qos=bool(value & 0x10),
            persistent_topic_alias=bool(value & 0x20),
            persistent_subscriptions=bool(value & 0x40),
            optional_headers=bool(value & 0x80),
        )

    @property
    def keeps_nothing(self) -> bool:
        """Whether no part of the state is to outlive an abortive end."""
        return not (self.persistent_qos or self.persistent_topic_alias or self.persistent_subscriptions)

    @property
    def discards(self) -> bool:
        """Whether the header, followed by FIN at once, tells the peer to forget the flow (MQoQ 9.16)."""
        return self.clean and self.keeps_nothing

    def bits(self) -> tuple[Bits, ...]:
        """Return the bit fields, most significant first, as in ``Field.bits``."""
        return tuple(Bits(name, low + width - 1, low, getattr(self, name)) for name, low, width in reversed(_FLAG_BITS))

    def __repr__(self) -> str:
        shown = [
            f.name if getattr(self, f.name) is True else f"{f.name}={getattr(self, f.name)}"
            for f in fields(self)
            if getattr(self, f.name)
        ]
        return f"FlowFlags({', '.join(shown)})"


_FLAG_BITS: Final = (
    ("clean", 0, 1), ("abort_if_no_state", 1, 1), ("err_tolerance", 2, 2), ("persistent_qos", 4, 1),
    ("persistent_topic_alias", 5, 1), ("persistent_subscriptions", 6, 1), ("optional_headers", 7, 1),
)  # fmt: skip
"""Name, lowest bit and width of each flag."""

CONTROL_FLAGS: Final = FlowFlags(persistent_qos=True, persistent_subscriptions=True)
"""Flags under which a control flow keeps what an MQTT 5.0 session keeps (section 4.1): no topic aliases."""


@dataclass(frozen=True, slots=True)
class FlowHeader:
    """The header of one flow (MQoQ 9.6).

    Attributes
    ----------
    type : FlowType
        Kind of flow.
    flow_id : int
        0 for the control flow. Its least significant bit is 0 for flows that the client owns, 1 for the server's (9.4).
    expire_interval : int
        Seconds for which both ends keep the state after an abortive end (9.7); only data flows have it.
    flags : FlowFlags
        User-defined flows have none.
    optional : tuple of bytes
        Optional headers (9.9), for headers built by hand to see what a peer makes of them.
    raw : bytes
        The header as it arrived; ``b""`` when built by hand. Does not count in comparisons.
    """

    type: FlowType
    flow_id: int
    expire_interval: int = 0
    flags: FlowFlags = field(default_factory=FlowFlags)
    optional: tuple[bytes, ...] = ()
    raw: bytes = field(default=b"", compare=False, repr=False)

    @classmethod
    def control(cls, flags: FlowFlags = CONTROL_FLAGS) -> FlowHeader:
        """Return a control flow's header; also what stands for it where the peer sends none (mqttv5)."""
        return cls(FlowType.CONTROL, CONTROL_FLOW_ID, flags=flags)

    @property
    def name(self) -> str:
        """Name in capitals, as packets have: ``"CLIENT DATA FLOW"``."""
        return _NAMES[self.type]

    @property
    def owner(self) -> Role:
        """Who owns a flow with this id: the end that starts and ends it (MQoQ 9.3, 9.4)."""
        return flow_owner(self.flow_id)

    def encode(self) -> bytes:
        """Return the header as bytes for the wire; only syntax is checked, so that hostile headers can be built.

        Raises
        ------
        UsageError
            When a field does not fit, or a header type has no such field.
        """
        head = encode_varint(FlowType(self.type)) + encode_varint(self.flow_id)
        if self.type is not FlowType.CLIENT_DATA and self.type is not FlowType.SERVER_DATA and self.expire_interval:
            raise UsageError(f"a {self.name} header has no expire interval: only those of data flows have")
        if self.type is FlowType.USER_DEFINED:
            if self.flags != FlowFlags() or self.optional:
                raise UsageError("a USER-DEFINED FLOW header has no flags and no optional headers")
            return head
        if self.type is not FlowType.CONTROL:
            head += encode_varint(self.expire_interval)
        if self.optional and (self.type is FlowType.CONTROL or not self.flags.optional_headers):
            raise UsageError("optional headers need a data flow and the flag optional_headers")
        head += bytes((self.flags.to_byte(),))
        for value in self.optional:
            if len(value) > 255:
                raise UsageError(f"an optional header has {len(value)} bytes: it ends at 255")
            head += bytes((len(value),)) + value
        return head

    def fields(self) -> tuple[Field, ...]:
        """Return the fields with their byte spans inside :attr:`raw`, in order; empty when built by hand."""
        return tuple(_fields(self.raw)) if self.raw else ()


def flow_owner(flow_id: int) -> Role:
    """Return who owns the flow: the least significant bit of its id says it (MQoQ 9.4)."""
    return Role.SERVER if flow_id & 1 else Role.CLIENT


def _fields(raw: bytes) -> list[Field]:
    """Lay a complete header out; optional headers are no part of it (see :class:`FlowHeaderDecoder`)."""
    spans: list[Field] = []
    pos = 0

    def varint(name: str) -> int:
        nonlocal pos
        read = decode_varint(raw, pos)
        assert read is not None
        value, end = read
        spans.append(Field(name, pos, end, value))
        pos = end
        return value

    kind = varint("flow_type")
    spans[0] = spans[0]._replace(value=_NAMES[FlowType(kind)])
    varint("flow_id")
    owner = flow_owner(spans[1].value).name.lower()
    low = Bits("owner", 0, 0, owner)
    if spans[1].end - spans[1].start == 1:
        spans[1] = spans[1]._replace(bits=(low,))
    if kind in (FlowType.CLIENT_DATA, FlowType.SERVER_DATA):
        varint("flow_expire_interval")
    if kind != FlowType.USER_DEFINED:
        name = "flow_persistent_flag" if kind == FlowType.CONTROL else "flow_flags"
        flags = FlowFlags.from_byte(raw[pos])
        spans.append(Field(name, pos, pos + 1, raw[pos], flags.bits()))
    return spans


class FlowHeaderDecoder:
    """Reads the flow header at the start of one stream, in whatever pieces it comes.

    Parameters
    ----------
    required : bool
        Whether every stream begins with a header, as the draft wants. False takes a stream whose first byte is none of
        0x11 to 0x14 for plain MQTT: mqttv5 sends no header on the control stream.

    Attributes
    ----------
    header : FlowHeader or None
        The header, once it is complete; None before, and for a stream without one.
    done : bool
        Whether the header has been read, or found missing.
    rest : bytes
        When :attr:`done`: what came behind the header with the same chunk. Later chunks are the packet decoder's.
    """

    __slots__ = ("_buffer", "_error", "done", "header", "required", "rest")

    def __init__(self, *, required: bool = True) -> None:
        self.required = required
        self.header: FlowHeader | None = None
        self.done = False
        self.rest = b""
        self._buffer = b""
        self._error: FlowError | None = None

    @property
    def buffered(self) -> int:
        """Bytes of an incomplete header held; 25 at most."""
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> FlowHeader | None:
        """Take bytes and return the header if it is complete with them (MQoQ 9.6).

        Raises
        ------
        FlowError
            For an unknown flow type (level 2, STREAM_TYPE) and for optional headers, whose end nobody can tell (level
            1, OPTIONAL_HEADER). From then on each call raises it again.
        UsageError
            When :attr:`done` already.
        """
        if self._error is not None:
            raise self._error
        if self.done:
            raise UsageError("the flow header has been read: give further bytes to the packet decoder")
        data = b"".join((self._buffer, data))
        try:
            self._read(data)
        except FlowError as error:
            self._error = error
            raise
        return self.header

    def finish(self) -> None:
        """Check, when FIN arrives, that the header is complete (MQoQ 9.13.1).

        Raises
        ------
        FlowError
            When it is not: level 2, INCOMPLETE_PACKET. Whose flow it would have been is unknown.
        """
        if not self.done:
            raise flow_rules.HEADER_CUT.broken(f"{len(self._buffer)} bytes of it came", offset=len(self._buffer))

    def _read(self, data: bytes) -> None:
        if not self.required and data and not 0x11 <= data[0] <= 0x14:
            self._finish(None, data, 0)
            return
        self._buffer = data
        kind = decode_varint(data)
        if kind is None:
            return
        if kind[0] not in _NAMES:
            # 0x1f * N + 0x21 are reserved (9.20), so that receivers learn to live with types they do not know.
            reserved = kind[0] >= 0x21 and (kind[0] - 0x21) % 0x1F == 0
            detail = f"0x{kind[0]:x}, one of the reserved ones" if reserved else f"0x{kind[0]:x}"
            raise flow_rules.TYPE_UNKNOWN.broken(detail, field="flow_type", offset=0)
        type_ = FlowType(kind[0])
        flow = decode_varint(data, kind[1])
        if flow is None:
            return
        flow_id, end = flow
        interval = 0
        flags = FlowFlags()
        if type_ is FlowType.CLIENT_DATA or type_ is FlowType.SERVER_DATA:
            expire = decode_varint(data, end)
            if expire is None:
                return
            interval, end = expire
        if type_ is not FlowType.USER_DEFINED:
            if end >= len(data):
                return
            flags = FlowFlags.from_byte(data[end])
            end += 1
        header = FlowHeader(type_, flow_id, interval, flags, raw=data[:end])
        if flags.optional_headers:
            raise flow_rules.OPTIONAL_HEADERS.broken(header=header, field="flow_flags", offset=end - 1)
        self._finish(header, data, end)

    def _finish(self, header: FlowHeader | None, data: bytes, end: int) -> None:
        self.header = header
        self.rest = data[end:]
        self._buffer = b""
        self.done = True


def check_header(header: FlowHeader, *, initiator: Role, unidirectional: bool, strict: bool = True) -> None:
    """Check a header against the stream it came on (MQoQ 9.4, 9.8, 9.10, 9.20).

    Parameters
    ----------
    header : FlowHeader
        As decoded.
    initiator : Role
        Who opened the stream (bit 0 of its id, RFC 9000 section 2.1).
    unidirectional : bool
        Whether the stream is (bit 1 of its id).
    strict : bool
        False allows what mqttv5 does: a server flow with the id of the client flow it answers.

    Raises
    ------
    FlowError
        Level 0 for a control flow that is none, else level 1.
    """
    flag_field = "flow_flags"
    if header.type is FlowType.CONTROL:
        flag_field = "flow_persistent_flag"
        if initiator is not Role.CLIENT:
            raise flow_rules.CONTROL_BY_SERVER.broken(header=header, field="flow_type")
        if header.flow_id != CONTROL_FLOW_ID:
            raise flow_rules.CONTROL_ID.broken(str(header.flow_id), header=header, field="flow_id")
        if unidirectional:
            raise flow_rules.CONTROL_UNIDIRECTIONAL.broken(header=header, field="flow_type")
    else:
        if _OPENED_BY.get(header.type, initiator) is not initiator:
            detail = f"{header.name} on a stream that the {initiator.name.lower()} opened"
            raise flow_rules.INITIATOR.broken(detail, header=header, field="flow_type")
        if header.flow_id == CONTROL_FLOW_ID:
            raise flow_rules.ID_ZERO.broken(header=header, field="flow_id")
        if header.owner is not initiator and (strict or header.type is not FlowType.SERVER_DATA):
            detail = f"id {header.flow_id} on a stream that the {initiator.name.lower()} opened"
            raise flow_rules.ID_OWNER.broken(detail, header=header, field="flow_id")
    if header.flags.clean and header.flags.abort_if_no_state:
        raise flow_rules.CLEAN_OR_ABORT.broken(header=header, field=flag_field)
    if header.type is FlowType.SERVER_DATA and header.flags.persistent_subscriptions:
        raise flow_rules.SERVER_SUBSCRIPTIONS.broken(header=header, field=flag_field)


_OPENED_BY: Final = {FlowType.CLIENT_DATA: Role.CLIENT, FlowType.SERVER_DATA: Role.SERVER}
