"""From what a person passes to ``publish`` to the bytes of a PUBLISH (MQTT 5.0 section 3.3.3)."""

from __future__ import annotations

import json
import math
from typing import Any

from mqttquic_lab.errors import UsageError

TAKES = "str, bytes, a number, None, or a dict or list that JSON can express"


def encode_payload(payload: Any) -> bytes:
    """Return `payload` as bytes.

    Text becomes UTF-8, a number its decimal text, None no bytes at all, a dict or list JSON (with separators without
    blanks, non-ASCII characters as UTF-8). A bool becomes ``true`` or ``false``, as JSON writes it.

    Raises
    ------
    UsageError
        For anything else, for text that UTF-8 cannot express (lone surrogates), and for JSON that is not standard
        (NaN or infinity inside a dict or list).
    """
    if type(payload) is bytes:
        return payload
    if payload is None:
        return b""
    if isinstance(payload, str):
        try:
            return payload.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"the payload is not text that UTF-8 can express ({error.reason}): pass bytes") from None
    if isinstance(payload, (bytearray, memoryview)):
        return bytes(payload)
    if isinstance(payload, bool):
        return b"true" if payload else b"false"
    if isinstance(payload, (int, float)):
        return _number(payload)
    if isinstance(payload, (dict, list, tuple)):
        return _json(payload)
    if isinstance(payload, bytes):
        return bytes(payload)
    item = getattr(payload, "item", None)  # a NumPy scalar is a number too, and this module need not know NumPy
    if callable(item) and getattr(payload, "ndim", None) == 0:
        plain = item()
        if isinstance(plain, (bool, int, float, str, bytes)):
            return encode_payload(plain)
    raise UsageError(f"a payload cannot be a {type(payload).__name__}: it takes {TAKES}; convert it first")


def _number(payload: float) -> bytes:
    text = repr(float(payload)) if isinstance(payload, float) else repr(int(payload))
    return text.encode()


def _json(payload: Any) -> bytes:
    try:
        return json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode()
    except (TypeError, ValueError, RecursionError) as error:
        # UnicodeEncodeError is a ValueError too: lone surrogates end here.
        raise UsageError(f"the payload cannot be written as JSON: {error}; convert it first, or pass bytes") from None


def _plain(value: Any) -> Any:
    """Let NumPy and pandas scalars through, which people take from a DataFrame and publish."""
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", 0) == 0:
        plain = item()
        if isinstance(plain, (bool, int, float, str)) and not (isinstance(plain, float) and not math.isfinite(plain)):
            return plain
    raise TypeError(f"a {type(value).__name__} in it")
