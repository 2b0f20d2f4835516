"""What ``publish`` takes as a payload."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from mqttquic_lab.errors import UsageError
from mqttquic_lab.session.payload import encode_payload


@pytest.mark.parametrize(
    ("payload", "wire"),
    [
        (None, b""),
        ("", b""),
        ("grün", "grün".encode()),
        (b"\x00\xff", b"\x00\xff"),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"abcd")[1:3], b"bc"),
        (0, b"0"),
        (-17, b"-17"),
        (21.5, b"21.5"),
        (float("nan"), b"nan"),
        (True, b"true"),
        (False, b"false"),
        ({"c": 21.5, "ü": None}, '{"c":21.5,"ü":null}'.encode()),
        ([1, "a", [True]], b'[1,"a",[true]]'),
        ((1, 2), b"[1,2]"),
        (np.float64(21.5), b"21.5"),
        (np.int16(-3), b"-3"),
        (np.bool_(True), b"true"),
        (np.float32(0.5), b"0.5"),
        ({"c": np.float32(0.5), "n": np.int64(7)}, b'{"c":0.5,"n":7}'),
    ],
)
def test_becomes_bytes(payload: Any, wire: bytes) -> None:
    encoded = encode_payload(payload)
    assert encoded == wire
    assert type(encoded) is bytes


@pytest.mark.parametrize(
    ("payload", "names"),
    [
        (object(), "object"),
        ({1, 2}, "set"),
        (Decimal("1.5"), "Decimal"),
        (np.arange(3), "ndarray"),
        ("\ud800", "UTF-8"),
        ({"x": object()}, "JSON"),
        ({"x": float("nan")}, "JSON"),
        ({"x": np.float64("inf")}, "JSON"),
        ({"x": "\ud800"}, "JSON"),
        ({(1, 2): 3}, "JSON"),
    ],
)
def test_what_cannot_be_sent_says_so(payload: Any, names: str) -> None:
    with pytest.raises(UsageError, match=names):
        encode_payload(payload)


def test_json_that_never_ends() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(UsageError, match="JSON"):
        encode_payload(endless)
