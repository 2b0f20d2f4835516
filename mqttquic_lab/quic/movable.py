"""What makes a connection one that can move: the verbs of a client, which its mover carries out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttquic_lab.errors import UsageError
from mqttquic_lab.net.stream import Connection

if TYPE_CHECKING:
    from mqttquic_lab.quic.migration import Mover
    from mqttquic_lab.records.migration import MigrationResult


class Movable(Connection):
    """A connection whose client's side can change its address (RFC 9000 section 9).

    Attributes
    ----------
    mover : Mover or None
        Does it; None on the server's side.
    """

    mover: Mover | None = None

    async def migrate(
        self, local: tuple[str, int] | str | None = None, *, force: bool = False, timeout: float | None = 5.0
    ) -> MigrationResult:
        """Go on from another local address; the path is validated first, meanwhile everything goes on as before.

        Parameters
        ----------
        local : (str, int), str or None
            IP address of ours, with a port or without; None for what routing chooses now.
        force : bool
            Also when the server asks not to (``disable_active_migration``).
        timeout : float or None
            Seconds for all of it: confirmed handshake, a spare connection id, validation.

        Raises
        ------
        MigrationError
            It did not come about, and the connection goes on as it was; ``problem`` says why.
        UsageError
            `local` is not an address of this machine; or we are the server.
        DisconnectedError
            The connection ended, or has ended.
        """
        return await self._client_mover().migrate(local, force=force, timeout=timeout)

    async def rebind(self, *, timeout: float | None = 5.0) -> MigrationResult:
        """Go on from another port with the same connection id, as if a NAT had forgotten us.

        Raises
        ------
        MigrationError
            Nothing came back there within `timeout` seconds: the connection has its old port again.
        UsageError
            We are the server.
        DisconnectedError
            The connection ended, or has ended.
        """
        return await self._client_mover().rebind(timeout)

    def _client_mover(self) -> Mover:
        if self.mover is None:
            raise UsageError("only the client's side of a QUIC connection can move (RFC 9000 section 9)")
        return self.mover
