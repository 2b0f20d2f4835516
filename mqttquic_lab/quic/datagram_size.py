"""How large a datagram may be (RFC 9221 section 3)."""

from __future__ import annotations

from aioquic.buffer import size_uint_var


def max_datagram_payload(max_datagram_frame_size: int | None, packet_room: int | None = None) -> int:
    """Return how many bytes a datagram may carry (RFC 9221 section 3).

    Parameters
    ----------
    max_datagram_frame_size : int or None
        The peer's transport parameter, which counts frame type and length too; 0 or None: no datagrams.
    packet_room : int, optional
        Bytes of frames that fit one QUIC packet on this path: a DATAGRAM frame is never split.

    Returns
    -------
    int
        0 where datagrams cannot be used.
    """
    size = max_datagram_frame_size or 0
    if packet_room is not None:
        size = min(size, packet_room)
    room = size - 1  # frame type
    payload = max(0, room - 1)
    while payload and payload + size_uint_var(payload) > room:
        payload -= 1
    return payload
