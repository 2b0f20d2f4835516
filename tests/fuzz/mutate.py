"""What can go wrong with bytes: flips, truncation, duplication, reordering, splices, wrong lengths and types."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from tests.fuzz.packets import Plan

INTERESTING = (0x00, 0x01, 0x7F, 0x80, 0xFF, 0x10, 0x20, 0x23, 0x2B, 0x2F)
LENGTHS = (
    b"\xff\xff\xff\x7f",
    b"\xff\xff\xff\xff",
    b"\x80\x80\x80\x01",
    b"\x80\x00",
    b"\xff\x7f",
    b"\x00",
    b"\x80\x01",
)
WORDS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0xFFFF)
WHOLE = (
    b"\x00\x00",
    b"\xc0\x00",
    b"\xe0\x00",
    b"\x10\x00",
    b"\x30\xff\xff\xff\x7f",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x11\x00\x01",
    b"\x12\x02\x00\x01",
)


def _at(r: Random, data: bytes) -> int:
    # The head of a packet says most about it.
    return r.randrange(min(len(data), r.choice((2, 8, 40, len(data)))))


def flip(r: Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(r.choice((1, 1, 2, 8))):
        out[_at(r, data)] ^= 1 << r.randrange(8)
    return bytes(out)


def overwrite(r: Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(r.choice((1, 1, 3))):
        out[_at(r, data)] = r.choice((*INTERESTING, r.randrange(256)))
    return bytes(out)


def word(r: Random, data: bytes) -> bytes:
    """Overwrite two bytes: a string's length, a packet identifier."""
    at = _at(r, data)
    return data[:at] + r.choice(WORDS).to_bytes(2, "big") + data[at + 2 :]


def length(r: Random, data: bytes) -> bytes:
    """Give a packet another remaining length."""
    end = 1
    while end < min(5, len(data)) and data[end] & 0x80:
        end += 1
    if r.random() < 0.5:
        return data[:1] + r.choice(LENGTHS) + data[end + 1 :]
    wrong = max(0, len(data) - end - 1 + r.choice((-3, -1, 1, 2, 50)))
    out = bytearray(data[:1])
    while True:
        wrong, low = divmod(wrong, 128)
        out.append(low | (0x80 if wrong else 0))
        if not wrong:
            return bytes(out) + data[end + 1 :]


def kind(r: Random, data: bytes) -> bytes:
    return bytes((r.randrange(16) << 4 | r.choice((data[0] & 15, r.randrange(16))),)) + data[1:]


def cut(r: Random, data: bytes) -> bytes:
    return data[: _at(r, data)]


def remove(r: Random, data: bytes) -> bytes:
    at = _at(r, data)
    return data[:at] + data[at + r.choice((1, 2, 10)) :]


def insert(r: Random, data: bytes) -> bytes:
    at = _at(r, data)
    return data[:at] + r.randbytes(r.choice((1, 1, 4, 100))) + data[at:]


def repeat(r: Random, data: bytes) -> bytes:
    """Repeat a piece within: properties, topic filters."""
    start = _at(r, data)
    return data[:start] + data[start : start + r.choice((1, 5, 30))] * r.choice((2, 2, 20)) + data[start:]


ONE: tuple[Callable[[Random, bytes], bytes], ...] = (
    flip, flip, flip, overwrite, overwrite, word, length, length, kind, cut, remove, insert, repeat,
)  # fmt: skip


def mutate_packets(r: Random, packets: list[bytes]) -> list[bytes]:
    """Return packets in which one thing has gone wrong."""
    packets = list(packets)
    if not packets:
        return [r.choice(WHOLE)]
    at = r.randrange(len(packets))
    if not at and r.random() < 0.6:  # a session whose CONNECT is broken is over at once
        at = len(packets) - 1
    how = r.randrange(20)
    if how == 0:
        packets.insert(at, packets[r.randrange(len(packets))])
    elif how == 1:
        r.shuffle(packets)
    elif how == 2:
        del packets[at]
    elif how == 3:
        other = packets[r.randrange(len(packets))]
        packets[at] = packets[at][: r.randint(0, len(packets[at]))] + other[r.randint(0, len(other)) :]
    elif how == 4:
        packets.insert(at, r.choice(WHOLE))
    elif how == 5:
        packets[at] *= r.choice((2, 3, 30))
    else:
        if packets[at]:
            packets[at] = r.choice(ONE)(r, packets[at])
    return packets


def mutate(r: Random, plan: Plan) -> Plan:
    """Break a plan in a few places; a tenth of them stay as they are."""
    for _ in range(r.choice((0, 1, 1, 1, 2, 2, 3, 5, 10, 1))):
        lane = r.choice(plan.lanes)
        if lane.header and r.random() < 0.15:
            lane.header = r.choice(ONE)(r, lane.header)
        else:
            lane.packets = mutate_packets(r, lane.packets)
    return plan


def pieces(r: Random, packets: list[bytes], how: str) -> list[bytes]:
    """Cut a stream into what is written at a time."""
    if how == "packets":
        return [packet for packet in packets if packet]
    data = b"".join(packets)
    if how == "all":
        return [data] if data else []
    if how == "bytes":
        head = data[:300]
        return [head[at : at + 1] for at in range(len(head))] + ([data[300:]] if len(data) > 300 else [])
    cuts = sorted(r.randrange(len(data) + 1) for _ in range(r.randrange(1, 8)))
    edges = [0, *cuts, len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if a < b]
