"""Session tickets that servers gave us, kept for resumption and 0-RTT (RFC 8446 section 4.6.1).

A ticket is proof that its server's certificate was verified, so it serves only the same host, name, protocols, version
and trust that it was obtained with. Each is used once: a second use would show an observer that both connections are
of the same client (RFC 8446 appendix C.4), and servers refuse it anyway.
"""

from __future__ import annotations

import datetime as dt
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mqttquic_lab.quic.ticket_file import TicketFile

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from aioquic.tls import SessionTicket

CAPACITY = 64
"""Tickets that a store keeps by default."""

PER_SERVER = 4
"""Tickets kept for one server; a newer one takes the place of the oldest."""


@dataclass(frozen=True, slots=True)
class TicketKey:
    """What a connection must have in common with the one that a ticket came from.

    Attributes
    ----------
    host : str
        Host of the URL.
    port : int
        UDP port.
    name : str
        Name that the certificate was verified for.
    alpn : tuple of str
        Application protocols offered.
    version : str
        QUIC version, ``"v1"`` (RFC 9369 section 5).
    trust : str
        Digest of what the certificate was verified against, ``"off"`` if it was not.
    """

    host: str
    port: int
    name: str
    alpn: tuple[str, ...]
    version: str
    trust: str


@dataclass(frozen=True, slots=True)
class Ticket:
    """A ticket, and what else is known of the connection that it came from.

    Attributes
    ----------
    key : TicketKey
        What it is for.
    session : SessionTicket
        The secret itself, as aioquic takes it.
    alpn : str or None
        Application protocol that was agreed on.
    certificate_expires : datetime or None
        When the certificate that stands behind it ends.
    """

    key: TicketKey
    session: SessionTicket = field(repr=False)
    alpn: str | None = None
    certificate_expires: dt.datetime | None = None

    @property
    def expires(self) -> dt.datetime:
        """When it can no longer be used, UTC."""
        end: dt.datetime = self.session.not_valid_after
        return end if self.certificate_expires is None else min(end, self.certificate_expires)

    @property
    def is_valid(self) -> bool:
        """Whether it can be used now."""
        return bool(self.session.is_valid) and dt.datetime.now(dt.UTC) < self.expires

    @property
    def allows_early_data(self) -> bool:
        """Whether the server said that it takes 0-RTT data."""
        return bool(self.session.max_early_data_size)


class TicketStore:
    """Where tickets are kept between connections.

    Parameters
    ----------
    path : path, optional
        File to keep them in, so that they outlive this process; created with permissions for its owner only (0600),
        and refused when others may read it. Default: in memory.
    capacity : int
        Tickets kept; the oldest are dropped.

    Raises
    ------
    UsageError
        The file cannot be used: others may read it, it holds something else, or its folder does not exist.

    Examples
    --------
    >>> store = mq.TicketStore()                            # or mq.TicketStore("tickets.json")
    >>> mq.connect(broker, tickets=store).close()           # full handshake; the broker gives a ticket
    >>> mq.connect(broker, tickets=store).handshake.resumed
    True
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._tickets: list[Ticket] = []  # oldest first
        self._file = TicketFile(path) if path is not None else None
        if self._file is not None:
            self._file.read()

    def __repr__(self) -> str:
        where = f" in {str(self._file.path)!r}" if self._file is not None else ""
        return f"<TicketStore of {len(self)}{where}>"

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        # An empty store is a store: `store or TicketStore()` must not replace the one that was given.
        return True

    def __iter__(self) -> Iterator[TicketKey]:
        """Iterate over what the tickets are for, oldest first."""
        with self._lock:
            tickets = self._tickets if self._file is None else self._file.read()
        return iter([ticket.key for ticket in tickets if ticket.is_valid])

    def clear(self) -> None:
        """Forget all tickets."""
        self._change(lambda _: ([], None))

    def put(self, ticket: Ticket) -> None:
        """Keep a ticket.

        Raises
        ------
        UsageError
            The file cannot be written, or can be read by others now.
        """

        def add(tickets: list[Ticket]) -> tuple[list[Ticket], None]:
            same = [other for other in tickets if other.key == ticket.key]
            surplus = same[: len(same) - PER_SERVER + 1] if len(same) >= PER_SERVER else []
            kept = [other for other in tickets if other.is_valid and not any(other is one for one in surplus)]
            return [*kept, ticket][-self._capacity :], None

        self._change(add)

    def take(self, key: TicketKey, suits: Callable[[Ticket], bool] = lambda _: True) -> Ticket | None:
        """Return the newest valid ticket for `key` that `suits`, and forget it; None if there is none."""

        def remove(tickets: list[Ticket]) -> tuple[list[Ticket], Ticket | None]:
            for index in range(len(tickets) - 1, -1, -1):
                ticket = tickets[index]
                if ticket.key == key and ticket.is_valid and suits(ticket):
                    return tickets[:index] + tickets[index + 1 :], ticket
            return tickets, None

        found: Ticket | None = self._change(remove)
        return found

    def _change(self, change: Callable[[list[Ticket]], tuple[list[Ticket], Any]]) -> Any:
        with self._lock:
            if self._file is not None:
                return self._file.change(change)
            self._tickets, result = change(self._tickets)
            return result


_of_this_process = TicketStore()


def process_tickets() -> TicketStore:
    """Return the store in memory that every session of this process shares unless it is given another one."""
    return _of_this_process
