"""The paths of one connection (RFC 9000 section 9): which socket leads where, and what a change brings along."""

from __future__ import annotations

import asyncio
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from mqttquic_lab.quic import private_paths as private
from mqttquic_lab.quic.endpoint import Endpoint, Via, plain_address
from mqttquic_lab.quic.private_paths import PathAnnouncement
from mqttquic_lab.trace import CLOCK

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from mqttquic_lab.quic.endpoint import DatagramReceiver, Datagrams, NetworkAddress
    from mqttquic_lab.quic.private import Engine
    from mqttquic_lab.trace import Trace

PlainAddress = tuple[str, int]

SILENCE = 0.25
"""Part of the time that validating a new path took for which nothing came by the old one: then it is taken to be dead.
A quarter, because what was on its way when it died still came for half a round trip."""


class Ends(NamedTuple):
    """Both ends of a path, as (host, port)."""

    local: PlainAddress
    peer: PlainAddress

    @property
    def hosts(self) -> tuple[str, str]:
        """Without the ports: a change of nothing but a port is usually a NAT's, and the way stays the same."""
        return self.local[0], self.peer[0]


class Paths:
    """Sends on the right socket, and notices when the engine has taken another path into use.

    A change is traced as ``path_updated`` at once, and as ``path_validated`` when the peer has shown that it is reached
    there. Only then congestion control and round-trip times begin anew (RFC 9000 section 9.4), and `on_moved` is
    called: before, it may be an attacker who sent a copy of a packet from elsewhere (section 9.3.2).

    Parameters
    ----------
    engine : Engine
        Decides about paths.
    endpoint : Endpoint
        The socket of the first path.
    trace : Trace
        Receives the events.
    on_moved : callable(Ends, Ends)
        Called with the old and the new path once the new one is validated.

    Attributes
    ----------
    resets : int
        How often congestion control began anew.
    """

    def __init__(
        self, engine: Engine, endpoint: Endpoint, trace: Trace, on_moved: Callable[[Ends, Ends], None]
    ) -> None:
        self._engine = engine
        self._first = endpoint
        self._trace = trace
        self._on_moved = on_moved
        self._address: NetworkAddress | None = None
        self._ends: Ends | None = None
        self._validated: Ends | None = None
        self._changed_at: float | None = None
        self._loop = asyncio.get_running_loop()
        self._listening: tuple[Endpoint, float] | None = None
        self.resets = 0

    # --- sockets

    def endpoint_of(self, address: NetworkAddress | None) -> Endpoint:
        """Return the socket that leads to an address."""
        if address is not None and type(address[-1]) is Via:
            endpoint: Endpoint = address[-1].endpoint
            return endpoint
        return self._first

    @property
    def endpoint(self) -> Endpoint:
        """The socket of the path in use."""
        return self.endpoint_of(self._engine.get_peer_address())

    @property
    def local_address(self) -> PlainAddress:
        """Our end of the path in use."""
        address = self._engine.get_peer_address()
        return self.endpoint_of(address).local_address_towards(address)

    def send(self, datagrams: Datagrams) -> None:
        """Send what the engine built, each datagram on its own path."""
        first = datagrams[0][1]
        if datagrams[-1][1] is first:  # probes of other paths come last
            self.endpoint_of(first).send(datagrams)
            return
        for endpoint, group in groupby(datagrams, lambda datagram: self.endpoint_of(datagram[1])):
            endpoint.send(list(group))

    def forget(self, receiver: DatagramReceiver) -> None:
        """Undo ``when_writable`` of every socket."""
        self._first.forget(receiver)
        self.endpoint.forget(receiver)

    # --- changes

    @property
    def ends(self) -> Ends:
        """Both ends of the path in use."""
        address = self._engine.get_peer_address()
        peer = plain_address(address) if address is not None else ("", 0)
        return Ends(self.local_address, peer)

    def check(self) -> None:
        """Notice changes; to be called when datagrams or timers were handled, before anything is sent."""
        address = self._engine.get_peer_address()
        if address is not self._address:
            self._address = address
            self._note_change()
        if self._changed_at is not None and private.path_validated(self._engine):
            self._settle()

    def listen(self) -> None:
        """From now on notice whether anything still comes by the path in use, which is about to be left."""
        self._listening = self.endpoint, self._loop.time()

    def _fell_silent(self) -> bool:
        """Whether nothing came any more in the last part of the round trips since :meth:`listen`."""
        if self._listening is None:
            return False
        (endpoint, begun), self._listening = self._listening, None
        now = self._loop.time()
        return now - endpoint.last_heard > SILENCE * (now - begun)

    def note_rebinding(self) -> None:
        """Take in that the path in use has another socket; whether packets still arrive, only the peer can tell."""
        old, new = self._ends, self.ends
        self._ends = self._validated = new
        if old is not None:
            self._updated(old, new)

    def _note_change(self) -> None:
        """Take in that another path is in use."""
        old, new = self._ends, self.ends
        self._ends = new
        if old is None:
            self._validated = new  # where the handshake takes place
        else:
            if self._changed_at is None:
                self._changed_at = CLOCK()
            self._updated(old, new)

    def _updated(self, old: Ends, new: Ends) -> None:
        self._trace.emit(
            "quic",
            "path_updated",
            old_local=old.local,
            new_local=new.local,
            old_peer=old.peer,
            new_peer=new.peer,
            validated=private.path_validated(self._engine),
        )

    def _settle(self) -> None:
        """Begin to rely on the path in use: it is validated."""
        assert self._ends is not None
        assert self._validated is not None
        assert self._changed_at is not None
        seconds = CLOCK() - self._changed_at
        old, new = self._validated, self._ends
        self._changed_at = None
        self._validated = new
        anew = new.hosts != old.hosts
        if self._fell_silent():
            private.give_up_in_flight(self._engine)  # a wrong guess costs packets that arrive twice, no more
        if anew:
            self.resets += 1
            private.start_path(self._engine)
        else:
            private.resend_soon(self._engine)
        if new != old:  # equal: the engine gave a path up that was never validated
            self._trace.emit(
                "quic", "path_validated", local=new.local, peer=new.peer, seconds=seconds, congestion_reset=anew
            )
            self._on_moved(old, new)


# --- a server's preferred address (RFC 9000 section 9.6)


def announcement(preferred: Sequence[socket.socket], *, disable_active_migration: bool) -> PathAnnouncement | None:
    """Return what a server tells its clients about paths, None for nothing.

    Parameters
    ----------
    preferred : sequence of socket
        Bound to the preferred address, at most one of each family.
    disable_active_migration : bool
        Whether to ask clients not to migrate.
    """
    if not preferred and not disable_active_migration:
        return None
    names = [plain_address(sock.getsockname()) for sock in preferred]
    ipv4 = next((name for name in names if ":" not in name[0]), None)
    ipv6 = next((name for name in names if ":" in name[0]), None)
    return PathAnnouncement(disable_active_migration, ipv4, ipv6)


def further_endpoint(sock: socket.socket) -> Endpoint:
    """Return the endpoint of a socket beside the one where connections begin: its paths are told apart."""
    via = Via()
    via.endpoint = Endpoint(sock, via=via)
    return via.endpoint
