"""PING frames that somebody waits for, and key updates, which need one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mqttquic_lab.errors import DisconnectedError, OperationTimeoutError
from mqttquic_lab.quic import private
from mqttquic_lab.quic.private_keys import key_phase
from mqttquic_lab.trace import CLOCK

if TYPE_CHECKING:
    from mqttquic_lab.quic.connection import QuicConnection


class Pings:
    """Sends PINGs on one connection and tells who waits when they are acknowledged."""

    def __init__(self, connection: QuicConnection) -> None:
        self._connection = connection
        self._waiters: dict[int, asyncio.Future[None]] = {}
        self._next = 1
        self._updating = asyncio.Lock()

    def acknowledged(self, uid: int) -> None:
        """Take the acknowledgement of a PING."""
        waiter = self._waiters.pop(uid, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def ping(self, timeout: float | None) -> float:
        """Send a PING and return the seconds until it is acknowledged."""
        connection = self._connection
        if connection.is_closed:
            raise connection.closed.result() or DisconnectedError("the connection is closed")
        uid = self._next
        self._next += 1
        waiter = self._waiters[uid] = asyncio.get_running_loop().create_future()
        begun = CLOCK()
        connection.engine.send_ping(uid)
        connection.transmit()
        try:
            async with asyncio.timeout(timeout):
                await asyncio.wait((waiter, connection.closed), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise OperationTimeoutError(f"no answer to a QUIC PING within {timeout:g} s") from None
        finally:
            self._waiters.pop(uid, None)
            waiter.cancel()
        if connection.is_closed:
            raise connection.closed.result() or DisconnectedError("the connection was closed")
        return CLOCK() - begun

    async def update_keys(self, timeout: float | None) -> int:
        """Update the keys of both directions and return the new key phase.

        One after the other: an update may begin only when a packet under the keys before it was acknowledged
        (RFC 9001 section 6.1), which the PING at the end of each sees to.
        """
        connection = self._connection
        try:
            async with asyncio.timeout(timeout):
                await self._updating.acquire()
                try:
                    while not connection.is_closed and not private.handshake_confirmed(connection.engine):
                        await connection.progress()
                    if connection.is_closed:
                        raise connection.closed.result() or DisconnectedError("the connection is closed")
                    connection.engine.request_key_update()
                    await self.ping(None)
                finally:
                    self._updating.release()
        except TimeoutError:
            raise OperationTimeoutError(f"the peer acknowledged nothing under new keys within {timeout:g} s") from None
        return key_phase(connection.engine) or 0
