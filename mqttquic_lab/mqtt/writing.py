"""Writing the data types of section 1.5: integers, strings, binary data.

What does not fit is local input, so it raises :class:`~mqttquic_lab.errors.UsageError` before anything is sent.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from mqttquic_lab.errors import UsageError

if TYPE_CHECKING:
    from mqttquic_lab.mqtt.reader import Version

MAX_REMAINING_LENGTH: Final = 268_435_455
"""Largest value of a four-byte variable byte integer."""

U16: Final = Struct(">H")
U32: Final = Struct(">I")

_LENGTHS: Final = U16.pack
_ONE_BYTE: Final = tuple(bytes((value,)) for value in range(256))


def version_name(version: Version) -> str:
    """Return ``"MQTT 5.0"`` or ``"MQTT 3.1.1"``."""
    return "MQTT 3.1.1" if version == 4 else "MQTT 5.0"


def varint(value: int) -> bytes:
    """Return `value` as a variable byte integer of one to four bytes (section 1.5.5).

    Raises
    ------
    UsageError
        When it is negative or above 268,435,455.
    """
    if 0 <= value < 128:
        return _ONE_BYTE[value]
    if 0 <= value < 16_384:
        return bytes((value & 0x7F | 0x80, value >> 7))
    if 0 <= value < 2_097_152:
        return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14))
    if 0 <= value <= MAX_REMAINING_LENGTH:
        return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14 & 0x7F | 0x80, value >> 21))
    raise UsageError(f"{value} does not fit a variable byte integer: it ends at {MAX_REMAINING_LENGTH}")


def integer(value: Any, size: int, name: str, *, least: int = 0) -> bytes:
    """Return `value` as a big-endian integer of `size` bytes.

    Raises
    ------
    UsageError
        When it is no integer or out of range.
    """
    top = (1 << 8 * size) - 1
    if not isinstance(value, int) or not least <= value <= top:
        raise UsageError(f"{name} is {value!r}: it must be an integer from {least} to {top}")
    return value.to_bytes(size, "big")


def utf8(value: Any, name: str) -> bytes:
    """Return `value` as a UTF-8 encoded string with its length in front.

    Raises
    ------
    UsageError
        When it is no ``str``, holds a surrogate or U+0000, or takes more than 65,535 bytes.
    """
    try:
        data: bytes = value.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{name} holds a surrogate at character {error.start}: MQTT strings are UTF-8") from None
    except AttributeError:
        raise UsageError(f"{name} is {type(value).__name__}: it must be a str") from None
    if b"\0" in data:
        raise UsageError(f"{name} holds U+0000 at character {value.index(chr(0))}: MQTT strings must not")
    if len(data) > 65_535:
        raise UsageError(f"{name} takes {len(data)} bytes: an MQTT string ends at 65535")
    return _LENGTHS(len(data)) + data


def octets(value: Any, name: str) -> bytes:
    """Return any bytes-like object as ``bytes``.

    Raises
    ------
    UsageError
        When it is something else.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    raise UsageError(f"{name} is {type(value).__name__}: it must be bytes (encode text first)")


def binary(value: Any, name: str) -> bytes:
    """Return `value` as binary data with its length in front.

    Raises
    ------
    UsageError
        When it is not bytes-like or longer than 65,535 bytes.
    """
    data = octets(value, name)
    if len(data) > 65_535:
        raise UsageError(f"{name} has {len(data)} bytes: MQTT binary data ends at 65535")
    return U16.pack(len(data)) + data


def packet_id(value: Any, name: str) -> bytes:
    """Return a packet identifier.

    Raises
    ------
    UsageError
        Unless it is an integer from 1 to 65,535.
    """
    if type(value) is not int or not 0 < value < 65_536:
        raise bad_packet_id(value, name)
    return U16.pack(value)


def bad_packet_id(value: Any, name: str) -> UsageError:
    """Return the error for a packet identifier that cannot be sent."""
    return UsageError(f"{name} has packet_id {value!r}: it must be an integer from 1 to 65535")


def packet(first: int, body: bytes, name: str) -> bytes:
    """Return a packet: first byte, remaining length, `body`.

    Raises
    ------
    UsageError
        When `body` is longer than a remaining length can say.
    """
    if len(body) > MAX_REMAINING_LENGTH:
        raise UsageError(f"{name} would have {len(body)} bytes: MQTT packets end at {MAX_REMAINING_LENGTH}")
    return _ONE_BYTE[first] + varint(len(body)) + body
