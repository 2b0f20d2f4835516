"""Moving a client's connection to another address (RFC 9000 section 9).

A migration validates the new path while everything goes on along the old one, and changes over with the answer: where
both work, nothing waits, and where the old one is dead, it takes one round trip. A rebinding changes the port under the
connection's feet, as a NAT does that has forgotten its mapping; what that brings the server finds out for itself.

The old socket is read for three more probe timeouts, for what is still on its way there.
"""

from __future__ import annotations

import asyncio
import ipaddress
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

from mqttquic_lab.errors import DisconnectedError, MigrationError, OperationTimeoutError, UsageError
from mqttquic_lab.net.address import host_port
from mqttquic_lab.quic import private, private_paths
from mqttquic_lab.quic.binding import connected_udp
from mqttquic_lab.quic.endpoint import Endpoint, Via, plain_address
from mqttquic_lab.records.migration import MigrationResult
from mqttquic_lab.trace import CLOCK

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable

    from mqttquic_lab.quic.connection import QuicConnection
    from mqttquic_lab.quic.endpoint import NetworkAddress
    from mqttquic_lab.quic.paths import Ends, PlainAddress

FIRST_PROBE = 0.2
"""Seconds after which a PATH_CHALLENGE is repeated first: the probe timeout of a path of which nothing is known
(RFC 9002 section 6.2.2, with aioquic's initial round-trip time); doubled each time."""

PREFERRED_TIMEOUT = 5.0
"""Seconds in which the path to a server's preferred address must be validated."""

PING_TIMEOUT = 5.0
"""Seconds to wait at most for connection ids that may be on their way."""

LINGER = 0.5
"""Seconds for which the old socket is read at least; else for three probe timeouts."""

MAX_OLD_SOCKETS = 4
"""Sockets of paths no longer used that are still read; the oldest are closed first."""


class Mover:
    """Gives a client's connection other sockets, one move at a time.

    Parameters
    ----------
    connection : QuicConnection
        Of the client side; its first socket belongs to the mover from now on.
    endpoint : Endpoint
        Its first socket (:func:`first_path`).
    may_follow : callable(str) -> bool
        Whether to go to the server's preferred address if that is this IP address (RFC 9000 section 9.6).
    """

    def __init__(
        self,
        connection: QuicConnection,
        endpoint: Endpoint,
        *,
        may_follow: Callable[[str], bool],
    ) -> None:
        self._connection = connection
        self._engine = connection.engine
        self._paths = connection.paths
        self._loop = asyncio.get_running_loop()
        self._turn = asyncio.Lock()
        self._may_follow = may_follow
        self._at_preferred = False
        self._following: asyncio.Task[None] | None = None
        self._sockets: dict[Endpoint, None] = {endpoint: None}
        self._old: dict[Endpoint, tuple[NetworkAddress | None, asyncio.TimerHandle]] = {}

    def close(self) -> None:
        """Release every socket; the connection has ended."""
        if self._following is not None:
            self._following.cancel()
        for _, timer in self._old.values():
            timer.cancel()
        self._old.clear()
        for endpoint in tuple(self._sockets):
            self._close(endpoint)

    # --- migration

    async def migrate(self, local: PlainAddress | str | None, *, force: bool, timeout: float | None) -> MigrationResult:
        """See :meth:`Movable.migrate`."""
        name, deadline = local_name(local), self._deadline(timeout)
        async with self._my_turn(deadline, timeout):
            await self._ready(deadline, timeout, force=force)
            address = self._engine.get_peer_address()
            assert address is not None
            return await self._move("migration", name, address[:-1], deadline, timeout)

    async def _ready(self, deadline: float | None, timeout: float | None, *, force: bool) -> None:
        """Wait until migration is allowed and possible."""
        try:
            async with asyncio.timeout_at(deadline):
                while not private.handshake_confirmed(self._engine):
                    await self._progress()
        except TimeoutError:
            raise MigrationError(
                f"the server has not confirmed the handshake within {timeout} s, before which no client may migrate "
                "(RFC 9000 section 9): try again later",
                problem="unconfirmed",
            ) from None
        remote = private.transport_parameters(self._engine, "remote")
        forbidden = remote is not None and remote.disable_active_migration and not self._at_preferred
        if forbidden and not force:
            raise MigrationError(
                "the server asks its clients not to migrate (transport parameter disable_active_migration, RFC 9000 "
                "section 18.2; often it stands behind a load balancer that routes by address): force=True tries all "
                "the same, rebind() only changes the port",
                problem="disabled",
            )
        if not private_paths.spare_connection_ids(self._engine):
            # They come with the server's first packets, or in return for one that was retired: one round trip.
            with suppress(OperationTimeoutError):
                await self._connection.ping(
                    PING_TIMEOUT if deadline is None else max(0.001, deadline - self._loop.time())
                )
        if not private_paths.spare_connection_ids(self._engine):
            raise MigrationError(
                "the server has given no spare connection id, and a new path needs one of its own (RFC 9000 section "
                "9.5): it supports no migration, or all of its ids are used up; rebind() needs none",
                problem="no spare id",
            )

    async def _move(
        self,
        kind: Literal["migration", "preferred address"],
        local: tuple[Any, ...] | None,
        target: NetworkAddress,
        deadline: float | None,
        timeout: float | None,
    ) -> MigrationResult:
        """Open a socket, validate the path from there and change over, or leave everything as it was."""
        engine, paths = self._engine, self._paths
        via = Via()
        address = (*target, via)
        endpoint = via.endpoint = self._open(local, target, address)
        old_endpoint, old_address = paths.endpoint, engine.get_peer_address()
        before, old_sequence, resets = paths.ends, private_paths.connection_id_sequence(engine), paths.resets
        failures: list[OSError] = []
        endpoint.on_error = failures.append
        begun = CLOCK()
        paths.listen()
        private_paths.probe_path(engine, address)
        challenges = 1
        try:
            challenges = await self._validate(address, endpoint.local_address, deadline)
        except BaseException as error:
            if engine.get_peer_address() is address and not self._connection.is_closed:
                # It has changed over in the very tick in which time ran out, or somebody gave up.
                self._retire(old_endpoint, old_address)
                if isinstance(error, TimeoutError):
                    return self._result(kind, before, old_sequence, CLOCK() - begun, challenges, resets)
                raise
            private_paths.forget_path(engine, address)
            self._close(endpoint)
            self._connection.trace.emit(
                "quic", "path_abandoned", local=endpoint.local_address, peer=plain_address(address)
            )
            if not isinstance(error, TimeoutError):
                raise
            why = f"; the last error of that socket: {failures[-1].strerror or failures[-1]}" if failures else ""
            raise MigrationError(
                f"no answer on the path from {host_port(*endpoint.local_address)} to "
                f"{host_port(*plain_address(address))} within "
                f"{timeout} s{why}: the connection goes on from {host_port(*before.local)}",
                problem="not validated",
            ) from None
        seconds = CLOCK() - begun
        self._retire(old_endpoint, old_address)
        return self._result(kind, before, old_sequence, seconds, challenges, resets)

    async def _validate(self, address: NetworkAddress, local: PlainAddress, deadline: float | None) -> int:
        """Send challenges until the engine has taken the path into use; returns how many."""
        wait, count = FIRST_PROBE, 0
        async with asyncio.timeout_at(deadline):
            while True:
                count += 1
                self._connection.trace.emit(
                    "quic", "path_challenged", local=local, peer=plain_address(address), attempt=count
                )
                self._connection.transmit()
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        while self._engine.get_peer_address() is not address:
                            await self._progress()
                if self._engine.get_peer_address() is address:
                    return count
                wait *= 2
                private_paths.challenge_again(self._engine, address)

    # --- rebinding

    async def rebind(self, timeout: float | None) -> MigrationResult:
        """See :meth:`Movable.rebind`."""
        deadline = self._deadline(timeout)
        async with self._my_turn(deadline, timeout):
            engine, paths = self._engine, self._paths
            old, before, resets = paths.endpoint, paths.ends, paths.resets
            sequence = private_paths.connection_id_sequence(engine)
            address = engine.get_peer_address()
            assert address is not None
            name = old.socket_name
            try:
                new = self._open((name[0], 0, *name[2:]), address[:-1], address)
            except UsageError as error:  # an interface has lost its address meanwhile
                raise MigrationError(str(error), problem="unreachable") from error
            heard = self._loop.create_future()

            def route(_data: bytes, _address: NetworkAddress) -> QuicConnection:
                if not heard.done():
                    heard.set_result(None)
                return self._connection

            new.route = route
            begun = CLOCK()
            self._use(address, new)
            engine.send_ping(0)  # something must leave for the server to notice, and to answer
            self._connection.transmit()
            try:
                async with asyncio.timeout_at(deadline):
                    await asyncio.wait((heard, self._connection.closed), return_when=asyncio.FIRST_COMPLETED)
            except BaseException as error:
                self._use(address, old)
                self._close(new)
                if not isinstance(error, TimeoutError):
                    raise
                raise MigrationError(
                    f"nothing came back to the new port {new.local_address[1]} within {timeout} s: the connection "
                    f"goes on from {host_port(*before.local)}",
                    problem="not validated",
                ) from None
            self._check_open()
            seconds = CLOCK() - begun
            self._retire(old, None)
            return self._result("rebinding", before, sequence, seconds, 0, resets)

    def _use(self, address: NetworkAddress, endpoint: Endpoint) -> None:
        """Put another socket under a path."""
        address[-1].endpoint = endpoint
        self._paths.note_rebinding()

    # --- the server's preferred address

    def confirmed(self) -> None:
        """Begin to follow the server's preferred address: the handshake is confirmed (RFC 9000 section 9.6.1)."""
        preferred = private_paths.take_preferred_address(self._engine)
        if preferred is None or preferred == plain_address(self._engine.get_peer_address()):
            return
        if self._may_follow(preferred[0]):
            self._following = self._loop.create_task(self._follow(preferred))

    async def _follow(self, preferred: PlainAddress) -> None:
        deadline = self._loop.time() + PREFERRED_TIMEOUT
        try:
            async with self._my_turn(deadline, PREFERRED_TIMEOUT):
                await self._ready(deadline, PREFERRED_TIMEOUT, force=True)
                name = self._paths.endpoint.socket_name
                local = (name[0], 0, *name[2:])
                await self._move("preferred address", local, preferred, deadline, PREFERRED_TIMEOUT)
                self._at_preferred = True
        except (MigrationError, UsageError) as error:
            self._connection.trace.emit("quic", "preferred_address_unused", peer=preferred, reason=str(error))
        except DisconnectedError:
            pass  # nobody waits for this, and who uses the connection is told

    # --- what they share

    def _deadline(self, timeout: float | None) -> float | None:
        return None if timeout is None else self._loop.time() + timeout

    @asynccontextmanager
    async def _my_turn(self, deadline: float | None, timeout: float | None) -> AsyncIterator[None]:
        """Wait for the end of another move."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._turn.acquire()
        except TimeoutError:
            raise MigrationError(
                f"another move of this connection is still under way after {timeout} s: one at a time", problem="busy"
            ) from None
        try:
            self._check_open()
            yield
        finally:
            self._turn.release()

    def _check_open(self) -> None:
        connection = self._connection
        if connection.is_closed:
            raise connection.closed.result() or DisconnectedError("the connection is closed")

    async def _progress(self) -> None:
        """Wait until something has arrived; raises when the connection ends."""
        self._check_open()
        await self._connection.progress()
        self._check_open()

    def _open(self, local: tuple[Any, ...] | None, target: NetworkAddress, address: NetworkAddress) -> Endpoint:
        """Return a socket from `local` to `target`, which the engine calls `address`."""
        try:
            sock = connected_udp(target, local)
        except OSError as error:
            where = f" from {host_port(str(local[0]), int(local[1]))}" if local is not None else ""
            raise MigrationError(
                f"{host_port(*plain_address(target))} cannot be reached{where}: {error.strerror or error}",
                problem="unreachable",
            ) from error
        endpoint = Endpoint(sock, peer=address)
        endpoint.route = lambda _data, _address: self._connection
        self._sockets[endpoint] = None
        return endpoint

    def _close(self, endpoint: Endpoint) -> None:
        self._sockets.pop(endpoint, None)
        endpoint.close()

    def _retire(self, endpoint: Endpoint, address: NetworkAddress | None) -> None:
        """Read a socket that is no longer used a little longer, then forget it and its path."""
        delay = max(LINGER, 3 * private.probe_timeout(self._engine))
        self._old[endpoint] = address, self._loop.call_later(delay, self._forget, endpoint)
        while len(self._old) > MAX_OLD_SOCKETS:
            self._forget(next(iter(self._old)))

    def _forget(self, endpoint: Endpoint) -> None:
        address, timer = self._old.pop(endpoint)
        timer.cancel()
        self._close(endpoint)
        if address is not None:
            private_paths.forget_path(self._engine, address)

    def _result(
        self,
        kind: Literal["migration", "rebinding", "preferred address"],
        before: Ends,
        old_sequence: int,
        seconds: float,
        challenges: int,
        resets: int,
    ) -> MigrationResult:
        after = self._paths.ends
        return MigrationResult(
            kind=kind,
            old_local=before.local,
            new_local=after.local,
            old_peer=before.peer,
            new_peer=after.peer,
            old_sequence=old_sequence,
            new_sequence=private_paths.connection_id_sequence(self._engine),
            seconds=seconds,
            challenges=challenges,
            congestion_reset=self._paths.resets > resets,
        )


def first_path(sock: socket.socket, target: NetworkAddress) -> tuple[Endpoint, NetworkAddress]:
    """Return the socket that leads to `target` as an endpoint, and what the engine is to call that path."""
    via = Via()
    address = (*target, via)
    via.endpoint = Endpoint(sock, peer=address)
    return via.endpoint, address


def local_name(local: PlainAddress | str | None) -> tuple[str, int] | None:
    """Return a local address as a socket takes it: (host, port), None for whatever routing chooses.

    Raises
    ------
    UsageError
        It is no IP address, with or without a port.
    """
    if local is None:
        return None
    try:
        host, port = _split(local) if isinstance(local, str) else local
        number = int(port)
        ipaddress.ip_address(host)
    except (ValueError, TypeError):
        number = -1
    if not 0 <= number <= 65535:
        raise UsageError(
            f"local={local!r} is no IP address of ours: give '192.0.2.7', ('192.0.2.7', port), or None for the one "
            "that routing chooses now"
        )
    return host, number


def _split(text: str) -> tuple[str, Any]:
    """Split ``host``, ``host:port`` and ``[host]:port``."""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        return host, port.removeprefix(":") or 0
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, port
    return text, 0
