"""Topic aliases towards a client: a number in place of a topic that it has been told before (section 3.3.2.3.4).

A client that gives a Topic Alias Maximum gets them, on the control stream and on each data stream that numbers its own.
The least recently used topic gives its number away when all are taken. Packets are changed as they are about to be
queued, one by one and after it is certain that they go: an alias must not be introduced by a packet that was dropped.
"""

from __future__ import annotations

from collections import OrderedDict

ALIAS_SIZE = 3
"""Bytes of the property."""
MAX_LENGTH = 268_435_455
"""Largest Remaining Length (section 1.5.5)."""


class OutgoingAliases:
    """The aliases of one stream.

    Parameters
    ----------
    maximum : int
        Aliases at a time, 1 or more.
    size_limit : int or None
        Largest packet that the client takes, bytes.

    Attributes
    ----------
    used : int
        Packets that went without their topic.
    """

    __slots__ = ("_maximum", "_numbers", "_size_limit", "used")

    def __init__(self, maximum: int, size_limit: int | None = None) -> None:
        self._maximum = maximum
        self._size_limit = size_limit
        self._numbers: OrderedDict[bytes, int] = OrderedDict()
        self.used = 0

    def __len__(self) -> int:
        return len(self._numbers)

    def apply(self, packets: bytes) -> bytes:
        """Return PUBLISH packets of MQTT 5.0, one or several, with aliases."""
        parts: list[bytes] = []
        start = 0
        while start < len(packets):
            length, body = _read_varint(packets, start + 1)
            parts.append(self._one(packets, start, body, body + length))
            start = body + length
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _one(self, packets: bytes, start: int, body: int, end: int) -> bytes:
        after_topic = body + 2 + int.from_bytes(packets[body : body + 2], "big")
        topic = packets[body + 2 : after_topic]
        number = self._numbers.get(topic)
        is_known = number is not None
        if number is None:
            number = len(self._numbers) + 1
            if number > self._maximum:
                number = next(iter(self._numbers.values()))
        before = after_topic + (2 if packets[start] & 0b110 else 0)  # a packet identifier, at QoS 1 and 2
        properties, after = _read_varint(packets, before)
        head = b"\0\0" + packets[after_topic:before] if is_known else packets[body:before]
        rest = b"".join(
            (head, _varint(properties + ALIAS_SIZE), b"\x23", number.to_bytes(2, "big"), packets[after:end])
        )
        if len(rest) > MAX_LENGTH:
            return packets[start:end]
        changed = packets[start : start + 1] + _varint(len(rest)) + rest
        if self._size_limit is not None and len(changed) > self._size_limit:
            return packets[start:end]  # as it was, it fits
        if is_known:
            self._numbers.move_to_end(topic)
            self.used += 1
        else:
            if len(self._numbers) == self._maximum:
                self._numbers.popitem(last=False)
            self._numbers[topic] = number
        return changed


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a Variable Byte Integer (section 1.5.5) and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _varint(value: int) -> bytes:
    """Return a Variable Byte Integer."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
