"""Payload bytes to values, without ever raising: a peer decides what arrives, a bad payload must not end a feed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mqttquic_lab.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

Decode = Literal["text", "json", "raw"] | Callable[[bytes], Any]
"""How payloads become values: UTF-8 text, JSON, the bytes themselves, or a function of the bytes."""

NAMES = ("text", "json", "raw")

SCALARS = frozenset((int, float, str, bool))
"""Types of JSON members that become columns; null is a missing value."""

_EXACT_INTEGER = 2**53
_from_json = json.JSONDecoder().decode  # json.loads() without guessing the encoding: MQTT says UTF-8

TEXT_OVERHEAD = 56
"""Bytes a str needs beyond its characters, rounded up to the allocator's grain."""


class Decoded(NamedTuple):
    """What :func:`decode_all` made of a run of payloads."""

    values: list[Any]
    errors: int
    sizes: list[int] | None
    """Estimated memory of each value, bytes; None when it follows from the payload's size."""


def check_decode(decode: object) -> Decode:
    """Return `decode` if it can be used; raise UsageError, naming the choices, if not."""
    if callable(decode) or (isinstance(decode, str) and decode in NAMES):
        return decode  # type: ignore[return-value]
    raise UsageError(f'decode={decode!r}: use "text", "json", "raw" or a function of the payload bytes')


def decode_one(decode: Decode, payload: bytes) -> tuple[Any, bool]:
    """Return (value, it worked); the value is None where it did not."""
    try:
        if decode == "raw":
            return payload, True
        if decode == "text":
            return payload.decode(), True
        if decode == "json":
            return _from_json(payload.decode()), True
        return decode(payload), True
    except Exception:  # noqa: BLE001 - a user's function may raise anything, and json raises RecursionError
        return None, False


def decode_all(decode: Decode, payloads: Sequence[bytes]) -> Decoded:
    """Decode a run of payloads; the fast way first, one by one only when one of them is bad."""
    if decode == "raw":
        return Decoded(list(payloads), 0, None)
    if decode == "text":
        try:
            return Decoded([payload.decode() for payload in payloads], 0, None)
        except UnicodeDecodeError:
            pass
    if decode == "json":
        try:
            values = [_from_json(payload.decode()) for payload in payloads]
            return Decoded(values, 0, list(map(json_bytes, payloads)))
        except (ValueError, RecursionError):
            pass
    pairs = [decode_one(decode, payload) for payload in payloads]
    values = [value for value, _ in pairs]
    errors = sum(not worked for _, worked in pairs)
    if decode == "text":
        return Decoded(values, errors, None)
    if decode == "json":
        return Decoded(values, errors, [json_bytes(p) if ok else 0 for p, (_, ok) in zip(payloads, pairs, strict=True)])
    return Decoded(values, errors, [value_bytes(value) for value in values])


def json_bytes(payload: bytes) -> int:
    """Estimate from above the memory that a JSON text takes once decoded, without looking at what came out.

    A payload of ``[[],[],[]...]`` takes twenty times its length once decoded, so the log must charge what comes out,
    not what went in; but walking each value would cost more than decoding it. Punctuation tells enough.
    """
    wide = not payload.isascii() or b"\\u" in payload  # one wide character makes a whole str two or four bytes each
    return (
        64
        + len(payload) * (4 if wide else 1)
        + 72 * payload.count(b",")
        + 104 * payload.count(b":")
        + 200 * payload.count(b"{")
        + 88 * payload.count(b"[")
    )


def value_bytes(value: Any) -> int:
    """Estimate the memory that what a user's function returned holds: plain containers followed, objects shallow."""
    total = 0
    stack = [value]
    seen: set[int] = set()  # a user's function may return something that contains itself
    while stack:
        item = stack.pop()
        total += sys.getsizeof(item, 64)
        if isinstance(item, (dict, list, tuple)):
            if id(item) in seen:
                continue
            seen.add(id(item))
            if isinstance(item, dict):
                stack.extend(item.keys())
                stack.extend(item.values())
            else:
                stack.extend(item)
    return total


def sent_ns(properties: Any) -> int | None:
    """Return the sender's clock from the user property ``sent_ns``, or None.

    The value comes from the network: only decimal digits, of a number that 63 bits hold, count.
    """
    for name, text in properties.get("user_property", ()):
        if name == "sent_ns":
            return _digits(text)
    return None


def only_stamp(properties: Any) -> int | None:
    """Return the sender's clock if these properties are nothing but that, spelt as ``str(int)`` spells it."""
    if len(properties) != 1:
        return None
    pairs = properties.get("user_property")
    if pairs is None or len(pairs) != 1 or pairs[0][0] != "sent_ns":
        return None
    text = pairs[0][1]
    return _digits(text) if text == "0" or text[:1] != "0" else None


def _digits(text: str) -> int | None:
    if len(text) <= 19 and text.isascii() and text.isdigit():
        number = int(text)
        return number if number < 2**63 else None
    return None


def fits_float(members: list[Any]) -> bool:
    """Whether all of these are numbers that a double holds exactly (integers to 2**53); a bool is no number."""
    kinds = set(map(type, members))
    if kinds == {float}:
        return True
    return kinds <= {int, float} and all(
        -_EXACT_INTEGER <= member <= _EXACT_INTEGER for member in members if type(member) is int
    )
