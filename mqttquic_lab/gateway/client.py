"""One client's connection to the gateway, with its streams."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from mqttquic_lab.gateway import codes
from mqttquic_lab.gateway.relay import Relay
from mqttquic_lab.gateway.status import GatewayClient
from mqttquic_lab.net.address import host_port
from mqttquic_lab.net.tcp import TcpConnection

if TYPE_CHECKING:
    from mqttquic_lab.errors import LabError
    from mqttquic_lab.gateway.server import GatewayServer
    from mqttquic_lab.net.stream import ByteStream, Connection

SILENCE: Final = 30.0
"""Seconds without a packet after which a client that was sent the end of its last stream is taken to be gone."""


class Client:
    """Serves one connection. Made by :meth:`GatewayServer.accept`."""

    def __init__(self, gateway: GatewayServer, connection: Connection) -> None:
        self.gateway = gateway
        self.connection = connection
        self.connected_at = time.time()
        self.relays: dict[Relay, None] = {}
        self._served = False
        self._ending = False
        timeout = gateway.config.connect_timeout
        assert isinstance(timeout, float)
        self._deadline = gateway.loop.call_later(timeout, self._silent)
        if isinstance(connection, TcpConnection):
            connection.half_open = True
        connection.on_stream = self._accept_stream
        connection.closed.add_done_callback(self._connection_closed)

    @property
    def where(self) -> str:
        """Its address, for messages."""
        return host_port(*self.connection.peer_address)

    def info(self) -> GatewayClient:
        """Return what a person may want to know."""
        connection = self.connection
        streams = tuple(relay.info() for relay in self.relays)
        return GatewayClient(connection.transport, connection.peer_address, self.connected_at, streams)

    async def close(self) -> None:
        """End its streams and its connection, because the gateway closes."""
        self._ending = True
        for relay in tuple(self.relays):
            relay.close()
        await self.connection.close(codes.SHUTTING_DOWN, "the gateway closes")

    def _accept_stream(self, stream: ByteStream) -> None:
        gateway = self.gateway
        self._deadline.cancel()
        if self._ending or len(self.relays) >= gateway.config.max_streams or gateway.is_full or (stream.id or 0) & 2:
            gateway.counters.streams_refused += 1
            gateway.note(f"client {self.where}", f"stream {stream.id} was refused: too many streams")
            if self.relays or self._ending:
                stream.reset(codes.QUOTA_EXCEEDED)
            else:
                self._close(codes.QUOTA_EXCEEDED, "this gateway has too many connections to its broker")
            return
        gateway.counters.streams_total += 1
        self._served = True
        relay = Relay(self, stream)
        self.relays[relay] = None
        relay.begin(control=not stream.id)  # None over TLS
        gateway.changed()

    def ends_with(self, relay: Relay) -> bool:
        """Whether `relay` is the last one: then the connection is closed, which says more than a reset stream."""
        return len(self.relays) == 1 and relay in self.relays

    def relay_over(self, relay: Relay) -> None:
        """Forget a stream; the connection ends with its last one."""
        self.relays.pop(relay, None)
        if not self.relays and not self._ending:
            if relay.code == codes.NORMAL:
                self._end(relay.stream)
            else:
                self._close(relay.code, relay.reason)
        self._forget_when_over()
        self.gateway.changed()

    def _end(self, stream: ByteStream) -> None:
        """Close in order, once the client has all that the broker sent."""
        self._ending = True
        self.gateway.spawn(self._end_when_sent(stream))

    async def _end_when_sent(self, stream: ByteStream) -> None:
        connection: Any = self.connection
        if connection.transport == "quic":
            with suppress(TimeoutError):
                while not connection.is_closed and stream.pending:
                    async with asyncio.timeout(SILENCE):
                        await connection.progress()
        await connection.close(codes.NORMAL)

    def _close(self, code: int, reason: str) -> None:
        self._ending = True
        self.gateway.spawn(self.connection.close(code, reason))

    def _silent(self) -> None:
        if not self._served:
            self.gateway.counters.connect_timeouts += 1
            self._close(codes.CONNECT_TIMEOUT, "no stream came")

    def _connection_closed(self, closed: asyncio.Future[LabError | None]) -> None:
        self._deadline.cancel()
        self._ending = True
        reason = closed.result()
        info = getattr(self.connection, "close_info", None)  # QUIC's
        orderly = reason is None or (info is not None and info.application and info.by_peer and not info.error_code)
        for relay in tuple(self.relays):
            relay.client_gone(reason, orderly=orderly)
        self._forget_when_over()
        self.gateway.changed()

    def _forget_when_over(self) -> None:
        # A client that left in order is here until its broker has read what it wrote.
        if not self.relays and self.connection.is_closed:
            self.gateway.client_gone(self)
