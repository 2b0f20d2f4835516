"""Control packets in the broker's trace, as sessions have them in theirs: types and sizes, never contents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttquic_lab.mqtt import TYPE_NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mqttquic_lab.mqtt import Packet
    from mqttquic_lab.trace import Trace


def note_received(trace: Trace, client_id: str, stream_id: int | None, packets: Iterable[Packet]) -> None:
    """Record packets from a client; call it only where ``trace.detail`` is set."""
    for packet in packets:
        trace.emit(
            "mqtt", "packet_received", type=packet.NAME, size=len(packet.raw), client_id=client_id, stream_id=stream_id
        )


def note_sent(trace: Trace, client_id: str, stream_id: int | None, parts: Iterable[bytes]) -> None:
    """Record packets to a client, whole ones in each part; call it only where ``trace.detail`` is set."""
    for part in parts:
        for name, size in _packets(part):
            trace.emit("mqtt", "packet_sent", type=name, size=size, client_id=client_id, stream_id=stream_id)


def _packets(data: bytes) -> Iterator[tuple[str, int]]:
    """Return names and sizes of the packets in `data`."""
    start = 0
    while start < len(data):
        length, shift, at = 0, 0, start + 1
        while True:
            length |= (data[at] & 0x7F) << shift
            shift += 7
            at += 1
            if data[at - 1] < 0x80:
                break
        yield TYPE_NAMES[data[start] >> 4], at + length - start
        start = at + length
