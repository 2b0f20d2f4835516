"""The gateway: listeners, certificate, clients and what was counted, put together."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, Self

from mqttquic_lab.broker.waiting import Waiting
from mqttquic_lab.errors import UsageError
from mqttquic_lab.gateway.client import Client
from mqttquic_lab.gateway.config import DEFAULT_PORTS
from mqttquic_lab.gateway.status import GatewayError, GatewayStats
from mqttquic_lab.net.address import Address, reachable_host
from mqttquic_lab.net.listening import Listening
from mqttquic_lab.net.throw_away import ThrowAwayIdentity

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from mqttquic_lab.gateway.config import GatewayConfig
    from mqttquic_lab.gateway.status import GatewayClient
    from mqttquic_lab.net.stream import Connection, Listener

MAX_ERRORS = 200
"""Errors kept; older ones are dropped."""


class GatewayServer(Listening):
    """A gateway on the running event loop.

    Parameters
    ----------
    config : GatewayConfig
        Settings.

    Attributes
    ----------
    counters : GatewayStats
        Running counters; :meth:`stats` returns them together with what is held now.
    errors : deque of GatewayError
        What went wrong, newest last; bounded.
    """

    NOT_LISTENING = "this gateway does not listen: start() it"

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self.counters = GatewayStats()
        self.errors: deque[GatewayError] = deque(maxlen=MAX_ERRORS)
        self.loop: asyncio.AbstractEventLoop
        self._clients: dict[Client, None] = {}
        self._listeners: list[Listener] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = Waiting(self)
        self._identity: ThrowAwayIdentity | None = None
        self._urls: dict[str, str] = {}
        self._started_at: float | None = None
        self._state: Literal["new", "open", "closed"] = "new"

    def __repr__(self) -> str:
        where = ", ".join(self._urls.values()) if self._state == "open" and self._urls else self._state
        return f"<GatewayServer {where} to {self.config.address}, {len(self._clients)} clients>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *details: object) -> None:
        await self.close()

    # --- life

    async def start(self) -> None:
        """Make a certificate authority and listen. The broker is not asked: it may start later.

        Raises
        ------
        PortInUseError
            A port that was asked for is taken. Usual ports that are taken are replaced by free ones instead.
        UsageError
            The gateway was started before, or the host cannot be listened on.
        """
        if self._state != "new":
            raise UsageError("this gateway was started before: make a new one")
        self._state = "open"
        self.loop = asyncio.get_running_loop()
        self._started_at = self.loop.time()
        config = self.config
        try:
            self._identity = ThrowAwayIdentity("mqttquic-lab gateway CA", config.host, config.server_names)
            for transport in config.transports:
                listener = await self._listen_on(transport, getattr(config, f"{transport}_port"))
                self._listeners.append(listener)
                address = Address.of(transport, reachable_host(config.host), listener.port)
                self._urls[address.scheme] = address.url
        except BaseException:
            await self.close()
            raise

    async def _listen_on(self, transport: Literal["quic", "tls"], port: int | None) -> Listener:
        from mqttquic_lab.net.listen import listen_usual
        from mqttquic_lab.quic.limits import ReceiveLimits

        config = self.config
        assert self._identity is not None
        limits = ReceiveLimits(max_streams_bidi=config.max_streams, max_streams_uni=0)
        options = {"limits": limits, "retry": config.retry, "idle_timeout": config.idle_timeout}
        return await listen_usual(
            transport,
            config.host,
            port,
            DEFAULT_PORTS[transport],
            identity=self._identity.identity,
            on_connection=self.accept,
            tuning=config.tuning,
            max_connections=config.max_connections,
            quic_options=options if transport == "quic" else None,
        )

    async def close(self) -> None:
        """Close every connection on both sides, and stop listening. Safe to repeat.

        QUIC clients are told: application code 0x8B, server shutting down.
        """
        if self._state == "closed":
            return
        self._state = "closed"
        await asyncio.gather(*(client.close() for client in self._clients))
        await asyncio.gather(*(listener.close() for listener in self._listeners))
        while self._tasks:
            await asyncio.wait(list(self._tasks))
        self._waiting.close("the gateway was closed")
        if self._identity is not None:
            self._identity.close()

    # --- where and who

    @property
    def ca_file(self) -> Path:
        """PEM file with the certificate to trust for this gateway, for other programs; gone after :meth:`close`.

        Raises
        ------
        UsageError
            The gateway was not started.
        """
        if self._identity is None:
            raise UsageError("this gateway has no certificate yet: start() it")
        return self._identity.ca_file

    @property
    def is_full(self) -> bool:
        """Whether there are as many connections to the broker as there may be."""
        return self._streams >= self.config.max_upstream

    @property
    def _streams(self) -> int:
        return sum(len(client.relays) for client in self._clients)

    def clients(self) -> list[GatewayClient]:
        """Return who is connected, in the order in which they came."""
        return [client.info() for client in self._clients]

    def stats(self) -> GatewayStats:
        """Return all counters, and what is held now."""
        return dataclasses.replace(
            self.counters,
            uptime=self.loop.time() - self._started_at if self._started_at is not None else 0.0,
            connections=len(self._clients),
            streams=self._streams,
            pending=sum(relay.pending for client in self._clients for relay in client.relays),
            connections_refused=self.counters.connections_refused + sum(one.refused for one in self._listeners),
            handshakes_failed=sum(one.failed for one in self._listeners),
        )

    async def wait_for(self, condition: Callable[[], object], timeout: float | None = 10.0) -> None:
        """Wait until `condition()` is true; asked again whenever a client or a stream came, went or got on.

        Raises
        ------
        OperationTimeoutError
            It did not become true within `timeout` seconds.
        DisconnectedError
            The gateway was closed meanwhile.
        """
        await self._waiting.wait_for(condition, timeout)

    # --- for its parts

    def accept(self, connection: Connection) -> None:
        """Serve a new connection. Called by the listeners; tests bring connections of their own."""
        if self._state != "open":
            self.counters.connections_refused += 1
            connection.abort("the gateway closes")
            return
        self.counters.connections_total += 1
        self._clients[Client(self, connection)] = None
        self.changed()

    def client_gone(self, client: Client) -> None:
        """Forget a client whose connection has ended."""
        self._clients.pop(client, None)
        self.changed()

    def note(self, where: str, message: str) -> None:
        """Keep what went wrong."""
        self.errors.append(GatewayError(time.time(), where, message))

    def changed(self) -> None:
        """Let those look again who wait for something."""
        if self._waiting:
            self._waiting.check()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something in the background; :meth:`close` waits for it."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
