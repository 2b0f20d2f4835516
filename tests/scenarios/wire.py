"""What a relay in the middle can read of QUIC packets without any key: types and versions (RFC 9000 section 17)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # public, but not in its __all__
from aioquic.quic.packet import QuicPacketType, pull_quic_header

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.helpers.lossy import Passage

CID_LENGTH = 8
"""Of both our client and our listener."""


class PacketHeader(NamedTuple):
    """The readable part of one packet."""

    type: QuicPacketType
    version: int | None
    """None in short headers."""


def packets(datagram: bytes) -> list[PacketHeader]:
    """Return the packets coalesced in a datagram; what cannot be read ends the list."""
    found: list[PacketHeader] = []
    at = 0
    while at < len(datagram):
        buffer = Buffer(data=datagram[at:])
        try:
            header = pull_quic_header(buffer, host_cid_length=CID_LENGTH)
        except ValueError:
            break
        found.append(PacketHeader(header.packet_type, header.version))
        at += header.packet_length
    return found


def types(log: Iterable[Passage], *, to_server: bool) -> Counter[QuicPacketType]:
    """Count the packets of each type that came in one direction."""
    return Counter(p.type for passage in log if passage.to_server is to_server for p in packets(passage.data))


def versions(log: Iterable[Passage], *, to_server: bool) -> list[int]:
    """Return the versions of the long headers of one direction, in the order in which they were first seen."""
    seen = dict.fromkeys(
        p.version for passage in log if passage.to_server is to_server for p in packets(passage.data) if p.version
    )
    return list(seen)


def handshakes(log: Iterable[Passage], fate: str) -> int:
    """Count the datagrams with Initial or Handshake packets that met with a fate."""
    kinds = {QuicPacketType.INITIAL, QuicPacketType.HANDSHAKE}
    return sum(passage.fate == fate and any(p.type in kinds for p in packets(passage.data)) for passage in log)


def destination_ids(log: Iterable[Passage]) -> dict[Any, set[bytes]]:
    """Return the connection ids of short headers to the server, by the client's address (RFC 9000 section 5.2)."""
    found: dict[Any, set[bytes]] = {}
    for passage in log:
        if passage.to_server and not passage.data[0] & 0x80:
            found.setdefault(passage.client, set()).add(passage.data[1 : 1 + CID_LENGTH])
    return found


class BeforeValidation(NamedTuple):
    """Bytes exchanged before the server could know that the client's address is its own."""

    to_server: int
    to_client: int
    highest_ratio: float
    """Of bytes sent to bytes received, at its worst moment."""


def before_validation(log: Iterable[Passage]) -> BeforeValidation:
    """Count up to the client's first Handshake packet that went on to the server (RFC 9000 section 8.1)."""
    to_server = to_client = 0
    ratio = 0.0
    for passage in log:
        if passage.to_server:
            if passage.fate != "passed":
                continue
            if any(p.type is QuicPacketType.HANDSHAKE for p in packets(passage.data)):
                break
            to_server += len(passage.data)
        else:
            to_client += len(passage.data)
            ratio = max(ratio, to_client / to_server)
    return BeforeValidation(to_server, to_client, ratio)
