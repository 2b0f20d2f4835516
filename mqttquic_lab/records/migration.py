"""What came of moving a connection to another address (RFC 9000 section 9)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class MigrationResult:
    """How a connection came to use another path."""

    kind: Literal["migration", "rebinding", "preferred address"]
    """``"migration"``: new local address and new connection id, validated before it was used (RFC 9000 section 9.2).
    ``"rebinding"``: new port and nothing else, as a NAT does that has forgotten its mapping.
    ``"preferred address"``: the server's other address (section 9.6)."""
    old_local: tuple[str, int]
    new_local: tuple[str, int]
    old_peer: tuple[str, int]
    new_peer: tuple[str, int]
    """Differs from :attr:`old_peer` for a preferred address only."""
    old_sequence: int
    """Sequence number of the server's connection id that packets carried before (section 5.1.1)."""
    new_sequence: int
    """The same after; equal after a rebinding, which is what lets an observer link the two paths (section 9.5)."""
    seconds: float
    """From the first PATH_CHALLENGE to its PATH_RESPONSE; for a rebinding from the change of port to the first
    datagram that arrived there."""
    challenges: int
    """PATH_CHALLENGE frames sent, one every probe timeout (section 8.2.1); 0 for a rebinding, where the server sends
    them."""
    congestion_reset: bool
    """Whether congestion window and round-trip estimate began anew: they do unless only a port changed
    (section 9.4)."""

    def sentence(self) -> str:
        """Say in one sentence what happened."""
        (old_host, old_port), (new_host, new_port) = self.old_local, self.new_local
        return f"{self.kind} from {old_host} port {old_port} to {new_host} port {new_port} in {self.seconds:.3f} s"

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain data."""
        return asdict(self)
