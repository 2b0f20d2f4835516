"""The session tickets that a listener has issued, and whose early data it takes.

A ticket is kept by the server and not sealed into itself, so that using it up is a matter of forgetting it: 0-RTT data
that an attacker recorded and sends again meets a ticket that no longer exists (RFC 8446 section 8.1). A ClientHello
that was held back on its way is recognized by the age of the ticket that it states (section 8.3). Tickets do not
outlive their listener, so that a restart opens no second window (section 8.2).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from mqttquic_lab.errors import UsageError
from mqttquic_lab.net.address import is_loopback

if TYPE_CHECKING:
    from aioquic.tls import SessionTicket

    from mqttquic_lab.quic.ticket_offer import TicketOffer

Policy = Literal["off", "protected", "unprotected"]
"""Whether early data is taken: not at all; once per ticket and while it is fresh; or always, to show what that does."""

WINDOW: Final = 10.0
"""Seconds by which the age that a ClientHello states may differ from the true one (RFC 8446 section 8.3)."""


def early_data_policy(wanted: bool | Policy, host: str) -> Policy:
    """Return the policy that a listener's ``early_data=`` asks for.

    Parameters
    ----------
    wanted : bool or {"off", "protected", "unprotected"}
        True is ``"protected"``.
    host : str
        Where it listens.

    Raises
    ------
    UsageError
        Another value; or ``"unprotected"`` for a listener that others can reach.
    """
    if isinstance(wanted, bool):
        return "protected" if wanted else "off"
    if wanted == "unprotected":
        if not is_loopback("127.0.0.1" if host == "localhost" else host):
            raise UsageError(
                f'early_data="unprotected" lets anybody on the path repeat what was sent: only for a broker on the '
                f"loopback, not on {host or 'every interface'!r}"
            )
        return "unprotected"
    if wanted in ("off", "protected"):
        return wanted
    raise UsageError(f'early_data={wanted!r}: must be True, False, or "unprotected" for a lesson on the loopback')


@dataclass(frozen=True, slots=True)
class _Issued:
    """A ticket, and what the connection was like that it came from."""

    ticket: SessionTicket
    alpn: str | None
    version: int
    at: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a ticket is good for.

    Attributes
    ----------
    ticket : SessionTicket or None
        To resume with; None means a full handshake.
    early_data : bool
        Whether 0-RTT data may be taken.
    """

    ticket: SessionTicket | None
    early_data: bool


@dataclass(slots=True)
class AdmissionCounters:
    """What became of tickets.

    Attributes
    ----------
    issued : int
        Tickets given out.
    resumed : int
        Tickets that were good for a resumption.
    early_data_accepted, early_data_rejected : int
        Connections whose 0-RTT data was taken, and whose was not, for whatever reason.
    replays_refused : int
        Of those rejected: the ticket had been used before.
    stale_refused : int
        Of those rejected: the ticket's stated age was wrong by more than the window.
    """

    issued: int = 0
    resumed: int = 0
    early_data_accepted: int = 0
    early_data_rejected: int = 0
    replays_refused: int = 0
    stale_refused: int = 0


class Admission:
    """Issues and redeems tickets.

    Parameters
    ----------
    capacity : int
        Tickets kept; the oldest are forgotten. As many used ones are remembered, to tell a replay from a stranger.
    policy : {"off", "protected", "unprotected"}
        Whether early data is taken.
    window : float
        Seconds; see :data:`WINDOW`.
    """

    def __init__(self, capacity: int, policy: Policy = "off", window: float = WINDOW) -> None:
        self.counters = AdmissionCounters()
        self.policy: Policy = policy
        self.capacity = capacity
        self._window = window
        self._issued: OrderedDict[bytes, _Issued] = OrderedDict()
        self._used: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._issued)

    def __repr__(self) -> str:
        return f"<Admission {self.policy}: {len(self)} tickets>"

    @property
    def takes_early_data(self) -> bool:
        """Whether tickets say that they allow early data."""
        return self.policy != "off"

    def issue(self, ticket: SessionTicket, *, alpn: str | None, version: int, now: float) -> None:
        """Keep a ticket that has just been made.

        Parameters
        ----------
        ticket : SessionTicket
            As made.
        alpn : str or None
            Application protocol of the connection: early data was written for it (RFC 8446 section 4.2.10).
        version : int
            QUIC version of the connection (RFC 9369 section 5).
        now : float
            Seconds on any monotonic clock.
        """
        self.counters.issued += 1
        self._issued[ticket.ticket] = _Issued(ticket, alpn, version, now)
        _cut(self._issued, self.capacity)

    def redeem(self, offer: TicketOffer, *, alpn: str | None, version: int, now: float) -> Verdict:
        """Return what the ticket of a ClientHello is good for, and use it up.

        Parameters
        ----------
        offer : TicketOffer
            What the ClientHello says.
        alpn, version
            Of the connection that is being made.
        now : float
            Seconds on the same clock.
        """
        assert offer.identity is not None
        issued = self._issued.get(offer.identity)
        if issued is None:
            if offer.identity in self._used:
                self.counters.replays_refused += offer.early_data
            self.counters.early_data_rejected += offer.early_data
            return Verdict(None, False)
        if self.policy != "unprotected":
            del self._issued[offer.identity]
            self._used[offer.identity] = None
            _cut(self._used, self.capacity)
        if issued.version != version or not issued.ticket.is_valid:
            self.counters.early_data_rejected += offer.early_data
            return Verdict(None, False)
        early = offer.early_data and self.takes_early_data and issued.alpn == alpn
        if early and self.policy == "protected" and not self._is_fresh(issued, offer, now):
            self.counters.stale_refused += 1
            early = False
        self.counters.resumed += 1
        return Verdict(issued.ticket, early)

    def early_data_decided(self, accepted: bool) -> None:
        """Count a connection whose ticket was good."""
        if accepted:
            self.counters.early_data_accepted += 1
        else:
            self.counters.early_data_rejected += 1

    def _is_fresh(self, issued: _Issued, offer: TicketOffer, now: float) -> bool:
        stated = ((offer.obfuscated_age - issued.ticket.age_add) % (1 << 32)) / 1000
        return abs((now - issued.at) - stated) <= self._window


def _cut(entries: OrderedDict[bytes, Any], size: int) -> None:
    while len(entries) > size:
        entries.popitem(last=False)
