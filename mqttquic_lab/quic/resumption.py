"""Which ticket a client's connection begins with, and what becomes of those that it is given."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mqttquic_lab.errors import UsageError
from mqttquic_lab.quic import private
from mqttquic_lab.quic.knobs import VERSIONS
from mqttquic_lab.quic.tickets import Ticket, TicketKey

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aioquic.tls import SessionTicket

    from mqttquic_lab.net.address import Address
    from mqttquic_lab.quic.connection import QuicConnection
    from mqttquic_lab.quic.knobs import Knobs
    from mqttquic_lab.quic.tickets import TicketStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Resumption:
    """Tickets for connections to one server.

    Attributes
    ----------
    store : TicketStore
        Where they are kept.
    key : TicketKey
        What they are for.
    cipher_suites : tuple of str
        Those that the ticket may be of; empty for all.
    """

    store: TicketStore
    key: TicketKey
    cipher_suites: tuple[str, ...]

    def take(self) -> Ticket | None:
        """Take a ticket that suits, if there is one."""
        suites = self.cipher_suites
        return self.store.take(self.key, lambda ticket: not suites or ticket.session.cipher_suite.name in suites)

    def give_back(self, ticket: Ticket) -> None:
        """Keep a ticket that was taken but did not reach the server."""
        self._put(ticket)

    def keep(self, connection: QuicConnection, session: SessionTicket, used: Ticket | None) -> None:
        """Keep a ticket that the server has given.

        Parameters
        ----------
        connection : QuicConnection
            The one that it came on.
        session : SessionTicket
            The ticket.
        used : Ticket or None
            The ticket that this connection began with.
        """
        if private.version(connection.engine) != VERSIONS[self.key.version]:
            return  # of no use to who begins with another version (RFC 9369 section 5)
        chain = private.peer_chain(connection.engine)
        # On a resumed connection no certificate was shown; that of the first one still counts.
        expires = used.certificate_expires if used is not None else None
        if chain:
            expires = chain[0].not_valid_after_utc
        reason = self._put(Ticket(self.key, session, connection.report.alpn, expires))
        if reason:
            connection.trace.emit("net", "ticket_not_kept", reason=reason)

    def _put(self, ticket: Ticket) -> str | None:
        """Put a ticket into the store; returns why that failed: no reason to end a connection."""
        try:
            self.store.put(ticket)
        except UsageError as error:
            logger.warning("a session ticket could not be kept: %s", error)
            return str(error)
        return None


def resumption(
    store: TicketStore | None,
    address: Address,
    *,
    name: str,
    alpn: tuple[str, ...],
    anchors: Mapping[str, Any],
    verify: bool,
    knobs: Knobs,
) -> Resumption | None:
    """Return where tickets for a server are kept, None if none can be used.

    Parameters
    ----------
    store : TicketStore or None
        None switches resumption off.
    address : Address
        The server.
    name : str
        Name that its certificate must have.
    alpn : tuple of str
        Application protocols offered.
    anchors : mapping
        Trust anchors, as ``QuicConfiguration`` takes them.
    verify : bool
        Whether the certificate is verified.
    knobs : Knobs
        Of the connection.
    """
    version = knobs.ticket_version
    if store is None or version is None:
        return None
    trust = hashlib.sha256(repr(sorted(anchors.items())).encode()).hexdigest() if verify else "off"
    return Resumption(store, TicketKey(address.host, address.port, name, alpn, version, trust), knobs.cipher_suites)
