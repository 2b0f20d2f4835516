"""What a ClientHello says about resumption and early data."""

from __future__ import annotations

from dataclasses import dataclass, field

from aioquic import tls
from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # public, but not in its __all__


@dataclass(frozen=True, slots=True)
class TicketOffer:
    """A session ticket that is offered, or none (RFC 8446 sections 4.2.10 and 4.2.11).

    Attributes
    ----------
    identity : bytes or None
        The ticket.
    obfuscated_age : int
        Its age in milliseconds plus the ticket's ``age_add``, modulo 2**32.
    early_data : bool
        Whether 0-RTT packets come along.
    """

    identity: bytes | None = field(default=None, repr=False)
    obfuscated_age: int = 0
    early_data: bool = False


def ticket_offer(client_hello: bytes) -> TicketOffer:
    """Read a ClientHello, with its 4-byte header; one that is malformed offers nothing (aioquic refuses it anyway)."""
    try:
        hello = tls.pull_client_hello(Buffer(data=client_hello))
    except (ValueError, tls.Alert):
        return TicketOffer()
    if hello.pre_shared_key is None or not hello.pre_shared_key.identities:
        return TicketOffer(early_data=hello.early_data)
    identity, age = hello.pre_shared_key.identities[0]
    return TicketOffer(identity, age, hello.early_data)
