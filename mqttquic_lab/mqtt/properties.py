"""Properties of MQTT 5.0 (section 2.2.2): which exist, where each may stand, how it reads and writes.

Property blocks are mappings from the standard's names in snake case to values; ``user_property`` and
``subscription_identifier`` may repeat and hold sequences, all else stands once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from struct import Struct
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

from mqttquic_lab.errors import UnknownOptionError, UsageError
from mqttquic_lab.mqtt import rules, writing
from mqttquic_lab.mqtt.reader import SECRET, Field

if TYPE_CHECKING:
    from mqttquic_lab.mqtt.reader import Reader, Version

Properties = Mapping[str, Any]
"""Name -> value. Decoded blocks are read-only, because equal ones are shared; repeated values are tuples.

================================  ==============================================
kind of property                  Python value
================================  ==============================================
Byte, two and four byte integers  ``int`` (flags too: 0 or 1)
UTF-8 string                      ``str``
Binary data                       ``bytes``
``subscription_identifier``       sequence of ``int`` (one int is taken as well)
``user_property``                 sequence of ``(name, value)`` pairs
================================  ==============================================
"""

EMPTY: Final[Properties] = MappingProxyType({})
"""The block without a property."""

EARLY_DATA: Final = ("early_data", "1")
"""User Property by which our broker marks a message that came as early data (0-RTT), as RFC 8470 does in HTTP."""

Kind = Literal["byte", "u16", "u32", "varint", "utf8", "binary", "pair"]


@dataclass(frozen=True, slots=True)
class Property:
    """One row of table 2-4.

    Attributes
    ----------
    identifier : int
        Property identifier.
    name : str
        Its name in snake case.
    kind : str
        Data type (section 1.5).
    places : frozenset of str
        Packet names where it may stand, ``"WILL"`` for the will properties.
    least, most : int
        Smallest and largest integer allowed.
    repeats : frozenset of str
        Packets where it may stand more than once.
    section : str
        Where the standard describes it first.
    reason_code : int
        What a value out of range is answered with.
    """

    identifier: int
    name: str
    kind: Kind
    places: frozenset[str]
    least: int
    most: int
    repeats: frozenset[str]
    section: str
    reason_code: int


_TOPS: Final[dict[str, int]] = {
    "byte": 1, "u16": 65_535, "u32": 4_294_967_295, "varint": writing.MAX_REMAINING_LENGTH,
    "utf8": 0, "binary": 0, "pair": 0,
}  # fmt: skip
_WITH_REASON: Final = "CONNACK PUBACK PUBREC PUBREL PUBCOMP SUBACK UNSUBACK DISCONNECT AUTH"


def _row(
    identifier: int, name: str, kind: Kind, places: str, section: str, *, least: int = 0, repeats: str = "",
    reason_code: int = rules.PROTOCOL_ERROR,
) -> Property:  # fmt: skip
    return Property(
        identifier, name, kind, frozenset(places.split()), least, _TOPS[kind], frozenset(repeats.split()), section,
        reason_code,
    )  # fmt: skip


_EVERYWHERE: Final = f"CONNECT PUBLISH WILL SUBSCRIBE UNSUBSCRIBE {_WITH_REASON}"

PROPERTIES: Final = (
    _row(0x01, "payload_format_indicator", "byte", "PUBLISH WILL", "3.3.2.3.2"),
    _row(0x02, "message_expiry_interval", "u32", "PUBLISH WILL", "3.3.2.3.3"),
    _row(0x03, "content_type", "utf8", "PUBLISH WILL", "3.3.2.3.9"),
    _row(0x08, "response_topic", "utf8", "PUBLISH WILL", "3.3.2.3.5"),
    _row(0x09, "correlation_data", "binary", "PUBLISH WILL", "3.3.2.3.6"),
    _row(0x0B, "subscription_identifier", "varint", "PUBLISH SUBSCRIBE", "3.8.2.1.2", least=1, repeats="PUBLISH"),
    _row(0x11, "session_expiry_interval", "u32", "CONNECT CONNACK DISCONNECT", "3.1.2.11.2"),
    _row(0x12, "assigned_client_identifier", "utf8", "CONNACK", "3.2.2.3.7"),
    _row(0x13, "server_keep_alive", "u16", "CONNACK", "3.2.2.3.14"),
    _row(0x15, "authentication_method", "utf8", "CONNECT CONNACK AUTH", "3.1.2.11.9"),
    _row(0x16, "authentication_data", "binary", "CONNECT CONNACK AUTH", "3.1.2.11.10"),
    _row(0x17, "request_problem_information", "byte", "CONNECT", "3.1.2.11.7"),
    _row(0x18, "will_delay_interval", "u32", "WILL", "3.1.3.2.2"),
    _row(0x19, "request_response_information", "byte", "CONNECT", "3.1.2.11.6"),
    _row(0x1A, "response_information", "utf8", "CONNACK", "3.2.2.3.15"),
    _row(0x1C, "server_reference", "utf8", "CONNACK DISCONNECT", "3.2.2.3.16"),
    _row(0x1F, "reason_string", "utf8", _WITH_REASON, "3.2.2.3.9"),
    _row(0x21, "receive_maximum", "u16", "CONNECT CONNACK", "3.1.2.11.3", least=1),
    _row(0x22, "topic_alias_maximum", "u16", "CONNECT CONNACK", "3.1.2.11.5"),
    _row(0x23, "topic_alias", "u16", "PUBLISH", "3.3.2.3.4", least=1, reason_code=0x94),
    _row(0x24, "maximum_qos", "byte", "CONNACK", "3.2.2.3.4"),
    _row(0x25, "retain_available", "byte", "CONNACK", "3.2.2.3.5"),
    _row(0x26, "user_property", "pair", _EVERYWHERE, "3.1.2.11.8", repeats=_EVERYWHERE),
    _row(0x27, "maximum_packet_size", "u32", "CONNECT CONNACK", "3.1.2.11.4", least=1),
    _row(0x28, "wildcard_subscription_available", "byte", "CONNACK", "3.2.2.3.11"),
    _row(0x29, "subscription_identifier_available", "byte", "CONNACK", "3.2.2.3.12"),
    _row(0x2A, "shared_subscription_available", "byte", "CONNACK", "3.2.2.3.13"),
)

BY_IDENTIFIER: Final = {row.identifier: row for row in PROPERTIES}
_PLACES: Final = sorted(frozenset[str]().union(*(row.places for row in PROPERTIES)))
_ROWS: Final = {place: {row.identifier: row for row in PROPERTIES if place in row.places} for place in _PLACES}
BY_NAME: Final = {row.name: row for row in PROPERTIES}

_RANGE_RULES: Final = {
    row.identifier: rules.Rule(
        f"{row.name} out of range",
        ("MQTT-3.3.2-8" if row.name == "topic_alias" else "", row.section),
        ("", "2.3"),
        row.reason_code,
    )
    for row in PROPERTIES
}
_NOT_FROM_THERE: Final[dict[tuple[str, str | None], dict[str, rules.Rule]]] = {
    ("PUBLISH", "server"): {"subscription_identifier": rules.SUBSCRIPTION_ID_FROM_CLIENT},
    ("DISCONNECT", "client"): {"session_expiry_interval": rules.SESSION_EXPIRY_FROM_SERVER},
}
"""(Packet, receiver) -> properties that the other end must not send."""

_SEQUENCES: Final = frozenset({"user_property", "subscription_identifier"})
_SIZES: Final = {"u16": 2, "u32": 4}


def read_properties(reader: Reader, place: str) -> Properties:
    """Read a property length and the properties it covers.

    Parameters
    ----------
    reader : Reader
        Stands at the property length.
    place : str
        Name of the packet, or ``"WILL"``.

    Returns
    -------
    mapping
        Read-only; repeated values as tuples.

    Raises
    ------
    MalformedPacketError
        For what section 2.2.2 and the property's own section forbid.
    """
    length = reader.varint("property_length" if place != "WILL" else "will_property_length")
    if not length:
        return EMPTY
    if length > reader.left:
        raise reader.truncated("properties", length)
    outer_end = reader.end
    reader.end = end = reader.pos + length
    spans, reader.spans = reader.spans, None  # a property is one field, so what is inside it is not noted
    found: dict[str, Any] = {}
    rows = _ROWS[place]
    not_from_there = _NOT_FROM_THERE.get((place, reader.receiver), {})
    data_at = -1
    while reader.pos < end:
        start = reader.pos
        row = rows.get(reader.raw[start]) or _no_row(reader, place)
        reader.pos = start + 1
        name = row.name
        if name in not_from_there:
            raise reader.breaks(not_from_there[name], name, start)
        if name == "authentication_data":
            data_at = start
        value = _value(reader, row)
        if name not in found:
            found[name] = [value] if name in _SEQUENCES else value
        elif place in row.repeats:
            found[name].append(value)
        else:
            raise reader.breaks(rules.PROPERTY_TWICE, name, start)
        if spans is not None:
            spans.append(Field(name, start, reader.pos, SECRET if name == "authentication_data" else value))
    reader.end = outer_end
    reader.spans = spans
    if data_at >= 0 and "authentication_method" not in found:
        raise reader.breaks(rules.AUTH_DATA_ALONE, "authentication_data", data_at)
    for name in _SEQUENCES & found.keys():
        found[name] = tuple(found[name])
    return MappingProxyType(found)


def _no_row(reader: Reader, place: str) -> NoReturn:
    """Say what is wrong with the property identifier here (all that exist are below 0x80, so they take one byte)."""
    start = reader.pos
    identifier = reader.varint("property_identifier")
    row = BY_IDENTIFIER.get(identifier)
    if row is None:
        raise reader.breaks(rules.PROPERTY_UNKNOWN, "property_identifier", start, f"0x{identifier:02x}")
    where = "the will" if place == "WILL" else place
    raise reader.breaks(rules.PROPERTY_MISPLACED, row.name, start, f"{row.name} in {where}")


def _value(reader: Reader, row: Property) -> Any:
    start, name, kind = reader.pos, row.name, row.kind
    if kind == "pair":
        return reader.utf8(name), reader.utf8(name)
    if kind == "utf8":
        text = reader.utf8(name)
        if name == "response_topic":
            if not text:
                raise reader.breaks(rules.TOPIC_EMPTY, name, start)
            if "+" in text or "#" in text:
                raise reader.breaks(rules.RESPONSE_TOPIC_WILDCARD, name, start + 2, repr(text[:64]))
        return text
    if kind == "binary":
        return reader.binary(name)
    if kind == "varint":
        number = reader.varint(name)
    elif kind == "byte":
        number = reader.byte(name)
    else:
        number = reader.integer(name, _SIZES[kind])
    if not row.least <= number <= row.most:
        detail = f"{number}, allowed are {row.least} to {row.most}"
        raise reader.breaks(_RANGE_RULES[row.identifier], name, start, detail)
    return number


def write_properties(properties: Properties | None, place: str, version: Version) -> bytes:
    """Return a property length and the properties, in the order given; nothing at all for MQTT 3.1.1.

    Raises
    ------
    UsageError
        For an unknown or misplaced name, a value of the wrong type or out of range, or any property in 3.1.1.
    """
    if version == 4:
        if properties:
            raise UsageError(
                f"{place} has properties ({', '.join(properties)}): MQTT 3.1.1 has none; use version='5.0'"
            )
        return b""
    if version != 5:
        raise UsageError(f"version is {version!r}: it must be 4 (MQTT 3.1.1) or 5")
    if not properties:
        return b"\0"
    writers = _WRITERS[place]
    parts = []
    for name, value in properties.items():
        writer = writers.get(name)
        if writer is None:
            raise _misplaced(name, place)
        parts.append(writer(value))
    block = b"".join(parts)
    if "authentication_data" in properties and "authentication_method" not in properties:
        raise UsageError("authentication_data needs authentication_method beside it")
    return writing.varint(len(block)) + block


def _misplaced(name: str, place: str) -> UsageError:
    row = BY_NAME.get(name)
    if row is None:
        return UnknownOptionError(f"properties of {place}", str(name), _WRITERS[place])
    return UsageError(f"{name} is no property of {place}: it belongs in {', '.join(sorted(row.places))}")


Writer = Callable[[Any], bytes]

_CACHED_STRINGS: Final = 256
_CACHED_LENGTH: Final = 64


def _out_of_range(value: Any, row: Property) -> UsageError:
    return UsageError(f"{row.name} is {value!r}: it must be an integer from {row.least} to {row.most}")


def _writer(row: Property, place: str) -> Writer:
    """Return the function that writes a property in `place`: its identifier, then the checked value."""
    if row.kind == "pair":
        return _pair_writer(row)
    if row.kind == "utf8":
        return _string_writer(row)
    if row.kind == "binary":
        prefix = bytes((row.identifier,))
        return lambda value: prefix + writing.binary(value, row.name)
    if row.kind == "varint":
        return _identifier_writer(row, place)
    return _number_writer(row)


def _number_writer(row: Property) -> Writer:
    pack = Struct({"byte": ">BB", "u16": ">BH", "u32": ">BI"}[row.kind]).pack
    identifier, least, most = row.identifier, row.least, row.most

    def write(value: Any) -> bytes:
        if not isinstance(value, int) or not least <= value <= most:
            raise _out_of_range(value, row)
        return pack(identifier, value)

    return write


def _identifier_writer(row: Property, place: str) -> Writer:
    prefix = bytes((row.identifier,))

    def write(value: Any) -> bytes:
        numbers = (value,) if isinstance(value, int) else tuple(value)
        if len(numbers) > 1 and place not in row.repeats:
            raise UsageError(f"{place} takes one {row.name}, not {len(numbers)}")
        for number in numbers:
            if not isinstance(number, int) or not row.least <= number <= row.most:
                raise _out_of_range(number, row)
        return b"".join([prefix + writing.varint(number) for number in numbers])

    return write


def _string_writer(row: Property) -> Writer:
    prefix = bytes((row.identifier,))
    known: dict[str, bytes] = {}  # content types and response topics repeat; cleared when full

    def write(value: Any) -> bytes:
        data = known.get(value) if isinstance(value, str) else None
        if data is None:
            data = prefix + writing.utf8(value, row.name)
            if row.name == "response_topic" and (not value or "+" in value or "#" in value):
                raise UsageError(f"response_topic is {value!r}: it must be a topic name, without wildcards")
            _keep(known, value, data)
        return data

    return write


def _pair_writer(row: Property) -> Writer:
    prefix = bytes((row.identifier,))
    known: dict[str, bytes] = {}  # names repeat, values need not

    def write(pairs: Any) -> bytes:
        parts = []
        for pair in pairs:
            try:
                name, value = pair
            except (TypeError, ValueError):
                raise _no_pair(pair) from None
            if isinstance(pair, str):
                raise _no_pair(pair)
            head = known.get(name) if isinstance(name, str) else None
            if head is None:
                head = prefix + writing.utf8(name, "user_property name")
                _keep(known, name, head)
            parts.append(head + writing.utf8(value, "user_property value"))
        return b"".join(parts)

    return write


def _no_pair(pair: Any) -> UsageError:
    return UsageError(f"user_property holds {pair!r}: give a list of (name, value) pairs of str")


def _keep(known: dict[str, bytes], text: str, data: bytes) -> None:
    if len(data) <= _CACHED_LENGTH:
        if len(known) >= _CACHED_STRINGS:
            known.clear()
        known[text] = data


_WRITERS: Final[dict[str, dict[str, Writer]]] = {
    place: {row.name: _writer(row, place) for row in PROPERTIES if place in row.places} for place in _PLACES
}
