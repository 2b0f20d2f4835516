"""Reading the fields of one packet, strictly, and noting where each stood when that is asked for.

Every packet is decoded by this one reader; with ``spans`` it also notes the byte span of each field, which is how
``packet.fields()`` is answered from the wire bytes long after the packet was decoded. PUBLISH has
a faster way for well-formed packets (:mod:`mqttquic_lab.mqtt.decoder`) and comes here for all else, so that there is
one place that says what is wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mqttquic_lab.mqtt import rules

if TYPE_CHECKING:
    from mqttquic_lab.mqtt.rules import Rule

Version = Literal[4, 5]
"""Protocol level byte of CONNECT: 4 is MQTT 3.1.1, 5 is MQTT 5.0."""

V311: Version = 4
V5: Version = 5

Receiver = Literal["client", "server"]
"""Which end reads; some packets and properties are wrong at one end only."""

SECRET = "<secret>"  # noqa: S105 -- what stands in a field map instead of one
"""Value of password and authentication data fields in a field map."""


class Bits(NamedTuple):
    """A bit field inside a one-byte field.

    Attributes
    ----------
    name : str
        Such as ``"qos"``.
    high, low : int
        Positions of its most and least significant bit, 7 to 0.
    value : object
        What the bits mean.
    """

    name: str
    high: int
    low: int
    value: Any


class Field(NamedTuple):
    """One field of a packet and the bytes it occupies.

    Attributes
    ----------
    name : str
        The standard's name in snake case, such as ``"packet_id"``; ``..._length`` for the length before a string.
    start, end : int
        Half-open byte span inside ``packet.raw``. The spans of a packet follow each other without gap or overlap.
    value : object
        The decoded value; :data:`SECRET` for passwords and authentication data.
    bits : tuple of Bits
        For bytes that hold several values (fixed header, connect flags, subscription options).
    """

    name: str
    start: int
    end: int
    value: Any
    bits: tuple[Bits, ...] = ()


class Reader:
    """A cursor over the bytes of one packet.

    Parameters
    ----------
    raw : bytes
        The whole packet, fixed header included; offsets in errors count from its start.
    pos : int
        Where the variable header starts.
    version : int or None
        Protocol version; None before CONNECT told.
    receiver : str or None
        Which end reads; None skips the rules that hold at one end only.
    spans : list of Field or None
        When given, each field read is appended to it.
    """

    __slots__ = ("end", "pos", "raw", "receiver", "spans", "version")

    def __init__(
        self, raw: bytes, pos: int, version: Version | None, receiver: Receiver | None, spans: list[Field] | None = None
    ) -> None:
        self.raw = raw
        self.pos = pos
        self.end = len(raw)
        self.version = version
        self.receiver = receiver
        self.spans = spans

    def note(self, name: str, start: int, value: Any, bits: tuple[Bits, ...] = ()) -> None:
        """Note that the field `name` reaches from `start` to here."""
        if self.spans is not None:
            self.spans.append(Field(name, start, self.pos, value, bits))

    def breaks(self, rule: Rule, field: str, offset: int, detail: str = "") -> Exception:
        """Return the error for a broken rule."""
        return rule.broken(self.version, field=field, offset=offset, detail=detail)

    def truncated(self, field: str, wanted: int) -> Exception:
        """Return the error for a field that needs `wanted` bytes from here and has fewer."""
        return self.breaks(rules.TRUNCATED, field, self.pos, f"{wanted} bytes needed, {self.end - self.pos} left")

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return self.end - self.pos

    def byte(self, name: str) -> int:
        """Read a byte; the caller notes it, since most bytes are bit fields."""
        if self.pos >= self.end:
            raise self.truncated(name, 1)
        value = self.raw[self.pos]
        self.pos += 1
        return value

    def integer(self, name: str, size: int) -> int:
        """Read a big-endian integer of `size` bytes."""
        start = self.pos
        if start + size > self.end:
            raise self.truncated(name, size)
        self.pos += size
        value = int.from_bytes(self.raw[start : self.pos], "big")
        self.note(name, start, value)
        return value

    def packet_id(self) -> int:
        """Read a packet identifier, which is never 0."""
        start = self.pos
        value = self.integer("packet_id", 2)
        if not value:
            raise self.breaks(rules.PACKET_ID, "packet_id", start)
        return value

    def varint(self, name: str) -> int:
        """Read a variable byte integer of one to four bytes in its shortest form (section 1.5.5)."""
        start = self.pos
        if start < self.end and self.raw[start] < 0x80:
            self.pos = start + 1
            if self.spans is not None:
                self.note(name, start, self.raw[start])
            return self.raw[start]
        value = shift = 0
        while True:
            if self.pos >= self.end:
                raise self.truncated(name, 1)
            byte = self.raw[self.pos]
            self.pos += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 21:
                raise self.breaks(rules.VARINT_LONG, name, start)
        if shift and not byte:
            raise self.breaks(rules.VARINT_OVERLONG, name, start)
        self.note(name, start, value)
        return value

    def _prefixed(self, name: str) -> bytes:
        """Read two bytes of length and that many bytes; stands behind them then."""
        start = self.pos
        begin = start + 2
        if begin > self.end:
            raise self.truncated(f"{name}_length", 2)
        length = self.raw[start] << 8 | self.raw[start + 1]
        self.pos = begin
        if self.spans is not None:
            self.note(f"{name}_length", start, length)
        if begin + length > self.end:
            raise self.truncated(name, length)
        self.pos = begin + length
        return self.raw[begin : self.pos]

    def binary(self, name: str, *, secret: bool = False) -> bytes:
        """Read two bytes of length and that many bytes."""
        value = self._prefixed(name)
        if self.spans is not None:
            self.note(name, self.pos - len(value), SECRET if secret else value)
        return value

    def utf8(self, name: str) -> str:
        """Read a UTF-8 encoded string (section 1.5.4; 1.5.3 in 3.1.1)."""
        data = self._prefixed(name)
        try:
            # Python's strict decoder refuses surrogates and over-long forms, as MQTT-1.5.4-1 asks.
            value = str(data, "utf-8")
        except UnicodeDecodeError as error:
            raise self.breaks(rules.UTF8, name, self.pos - len(data) + error.start, error.reason) from None
        if "\0" in value:
            raise self.breaks(rules.UTF8_NULL, name, self.pos - len(data) + data.index(0))
        if self.spans is not None:
            self.note(name, self.pos - len(data), value)
        return value

    def rest(self, name: str) -> bytes:
        """Read all bytes that are left."""
        start = self.pos
        self.pos = self.end
        value = self.raw[start:]
        self.note(name, start, value)
        return value

    def finish(self) -> None:
        """Check that nothing is left."""
        if self.pos < self.end:
            raise self.breaks(rules.TRAILING, "remaining_length", self.pos, f"{self.end - self.pos} of them")
