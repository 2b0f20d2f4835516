"""Packet identifiers of one session (MQTT 5.0 section 2.2.1): 1 to 65535, each in use for one exchange at a time.

PUBLISH at QoS 1 and 2, SUBSCRIBE and UNSUBSCRIBE of one sender draw from the same numbers. The other
direction has numbers of its own and never meets these.
"""

from __future__ import annotations

MAX_PACKET_ID = 65_535
"""Largest packet identifier; it is a two-byte integer and zero is not allowed [MQTT-2.2.1-3]."""

_FIRST_WINDOW = 1024


class PacketIds:
    """The packet identifiers that one sender has in use.

    Identifiers are handed out in rising order and start again at 1, so that a number that has just become free rests
    before it comes back: a late acknowledgement then shows as unknown instead of ending the wrong exchange. The
    window of numbers in turn starts at 1023 and doubles while more than half of it is taken, which keeps a session
    that never has much in flight at about one kilobyte.

    Examples
    --------
    >>> ids = PacketIds()
    >>> ids.allocate(), ids.allocate()
    (1, 2)
    >>> ids.release(1)
    >>> 1 in ids, 2 in ids, len(ids)
    (False, True, 1)
    """

    __slots__ = ("_count", "_next", "_used")

    def __init__(self) -> None:
        self._used = bytearray(_FIRST_WINDOW)  # one byte per number; `find` for a free one runs at memory speed
        self._used[0] = 1
        self._next = 1
        self._count = 0

    def allocate(self) -> int | None:
        """Take a free identifier, or return None if all 65535 are in use."""
        used = self._used
        packet_id = used.find(0, self._next)
        if packet_id < 0:
            if self._count * 2 >= len(used) and len(used) <= MAX_PACKET_ID:
                packet_id = len(used)
                used.extend(bytes(min(len(used), MAX_PACKET_ID + 1 - len(used))))
            else:
                packet_id = used.find(0)
                if packet_id < 0:
                    return None
        used[packet_id] = 1
        self._next = packet_id + 1
        self._count += 1
        return packet_id

    def take(self, packet_id: int) -> bool:
        """Mark `packet_id` as in use, when a stored session is read back; False if it is in use already."""
        if not 0 < packet_id <= MAX_PACKET_ID:
            return False
        used = self._used
        if packet_id >= len(used):
            size = len(used)
            while size <= packet_id:
                size *= 2
            used.extend(bytes(size - len(used)))
        if used[packet_id]:
            return False
        used[packet_id] = 1
        self._count += 1
        return True

    def release(self, packet_id: int) -> bool:
        """Give an identifier back; False if it was not in use (a peer may name any number)."""
        used = self._used
        if 0 < packet_id < len(used) and used[packet_id]:
            used[packet_id] = 0
            self._count -= 1
            return True
        return False

    def __contains__(self, packet_id: int) -> bool:
        return 0 < packet_id < len(self._used) and self._used[packet_id] == 1

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"<PacketIds: {self._count} in use>"
