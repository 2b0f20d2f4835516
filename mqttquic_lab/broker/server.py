"""The embedded broker: listeners, certificate, clients, sessions, retained messages and wills, put together."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

from mqttquic_lab.broker.acl import parse_acl
from mqttquic_lab.broker.authenticating import methods_of
from mqttquic_lab.broker.client import Client
from mqttquic_lab.broker.config import DEFAULT_PORTS, BrokerConfig
from mqttquic_lab.broker.flows import ALPN
from mqttquic_lab.broker.outbox import FlushQueue
from mqttquic_lab.broker.quic_options import counted, listener_options
from mqttquic_lab.broker.retained import RetainedMessages
from mqttquic_lab.broker.router import Router
from mqttquic_lab.broker.sessions import SessionStore
from mqttquic_lab.broker.status import BrokerStats
from mqttquic_lab.broker.sys_topics import SysTopics
from mqttquic_lab.broker.waiting import Waiting
from mqttquic_lab.broker.wills import Wills
from mqttquic_lab.errors import UsageError
from mqttquic_lab.mqtt import ReasonCode
from mqttquic_lab.mqtt.profiles import profile_named
from mqttquic_lab.net.address import Address, reachable_host
from mqttquic_lab.net.listening import Listening
from mqttquic_lab.net.throw_away import ThrowAwayIdentity
from mqttquic_lab.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from mqttquic_lab.broker.clock import Clock
    from mqttquic_lab.broker.message import Message
    from mqttquic_lab.broker.sessions import Outgoing, Session
    from mqttquic_lab.broker.status import ClientInfo
    from mqttquic_lab.broker.store import Journal
    from mqttquic_lab.mqtt import Will
    from mqttquic_lab.net.stream import ByteStream, Connection, Listener


class BrokerServer(Listening):
    """An MQTT 3.1.1 and 5.0 broker on the running event loop.

    Parameters
    ----------
    config : BrokerConfig, optional
        Settings; all defaults otherwise.
    clock : Clock, optional
        Time and timers; the running loop's by default. For tests.
    epoch : callable, optional
        Seconds since the epoch, for what has to be known after a restart. For tests.

    Examples
    --------
    >>> async def main():
    ...     async with BrokerServer() as broker:
    ...         print(broker.url, broker.ca_file)
    """

    NOT_LISTENING = "this broker does not listen: start() it, with at least one transport switched on"

    def __init__(
        self,
        config: BrokerConfig | None = None,
        *,
        clock: Clock | None = None,
        epoch: Callable[[], float] = time.time,
    ) -> None:
        self.config = config if config is not None else BrokerConfig()
        self.clock: Clock
        self._given_clock = clock
        self._epoch = epoch
        self.journal: Journal | None = None
        """What keeps sessions and messages on disk, with ``store=``."""
        self.profile = profile_named(self.config.profile)
        self.acl = parse_acl(self.config.acl)
        self.auth_methods = methods_of(self.config)
        """Methods of enhanced authentication by name."""
        self.deliveries = self.config.deliveries or self.profile.deliveries[0]
        self.counters = BrokerStats()
        """Running counters; :meth:`stats` returns them together with what is held now."""
        self.changes = 0
        """Counts what :meth:`next_change` waits for, so that nobody has to wait for what has happened already."""
        self.router = Router(copies=(self.config.overlapping or self.profile.overlapping) == "each")
        self.retained = RetainedMessages(
            self.config.max_retained, self.config.max_retained_bytes, self.config.max_topic_levels
        )
        self.flushes = FlushQueue()
        self.trace = Trace(self.config.trace_capacity, detail=self.config.trace)
        """Control packets, while its ``detail`` is set: from and to whom, of which type and size."""
        self.flushes.trace = self.trace
        self.sys_topics: SysTopics
        self.sessions: SessionStore
        self._wills: Wills
        self._clients: set[Client] = set()
        self._listeners: list[Listener] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._waiting = Waiting(self)
        self._urls: dict[str, str] = {}
        self._identity: ThrowAwayIdentity | None = None
        self._loop: asyncio.AbstractEventLoop
        self._started_at = 0.0
        self._state: Literal["new", "open", "closed"] = "new"

    def __repr__(self) -> str:
        where = ", ".join(self._urls.values()) if self._state == "open" and self._urls else self._state
        return f"<BrokerServer {where}, {sum(client.session is not None for client in self._clients)} clients>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *details: object) -> None:
        await self.close()

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Make a certificate authority and listen.

        Raises
        ------
        PortInUseError
            A port that was asked for is taken. Usual ports that are taken are replaced by free ones instead.
        UsageError
            The broker was started before, or the host cannot be listened on.
        """
        if self._state != "new":
            raise UsageError("this broker was started before: make a new one")
        self._state = "open"
        self._loop = asyncio.get_running_loop()
        self.clock = self._given_clock if self._given_clock is not None else self._loop
        self._started_at = self.clock.time()
        self.sys_topics = SysTopics(self, float(self.config.sys_interval or 0))
        self._wills = Wills(self.clock, self._publish_will)
        self.sessions = SessionStore(self.config, self.counters, self.clock, self._session_ended)
        try:
            if self.config.store is not None:
                await self._open_store(os.fspath(self.config.store))
            await self._listen()
            self.sys_topics.start()
        except BaseException:
            await self.close()
            raise

    async def _open_store(self, path: str) -> None:
        from mqttquic_lab.broker.store import Journal, StoreFile, restore  # here, for who does without

        journal = Journal(StoreFile(path, self.config.store_sync), self.counters, self.clock, self._epoch)
        await journal.open()
        self.journal = self._wills.journal = self.sessions.journal = journal
        await restore(journal, self.sessions, self.router, self.retained, self._wills, self.clock.time())
        self.flushes.journal = journal

    async def _listen(self) -> None:
        config = self.config
        if config.quic or config.tls:
            self._identity = ThrowAwayIdentity(
                "mqttquic-lab embedded broker CA", config.host, config.server_names, kept=config.authority
            )
        for transport in config.transports:
            listener = await self._listen_on(transport, getattr(config, f"{transport}_port"))
            self._listeners.append(listener)
            address = Address.of(transport, reachable_host(config.host), listener.port)
            self._urls[address.scheme] = address.url

    async def _listen_on(self, transport: Literal["quic", "tls", "tcp"], port: int | None) -> Listener:
        from mqttquic_lab.net.listen import listen_usual  # here, because a broker without listeners needs none of it

        return await listen_usual(
            transport,
            self.config.host,
            port,
            DEFAULT_PORTS[transport],
            identity=self._identity.identity if self._identity is not None and transport != "tcp" else None,
            on_connection=self.accept,
            tuning=self.config.tuning,
            max_connections=self.config.max_connections,
            quic_options=self._quic_options() if transport == "quic" else None,
            alpn=(ALPN, "mqtt") if self.profile.flows and transport == "quic" else ("mqtt",),
        )

    def _quic_options(self) -> dict[str, Any]:
        """Return what settings and profile want of the QUIC listener."""
        from mqttquic_lab.quic.limits import ReceiveLimits

        profile = self.profile
        limits = {"max_streams_bidi": profile.max_streams_bidi, "max_streams_uni": profile.max_streams_uni}
        for name in ("connection_window", "stream_window"):
            if getattr(profile, name) is not None:
                limits[name] = getattr(profile, name)
        return {"limits": ReceiveLimits(**limits), **listener_options(self.config, profile)}

    async def close(self) -> None:
        """Tell every client (0x8B, server shutting down), close, and remove the certificate file. Safe to repeat.

        Sessions, retained messages and wills end with the broker, unless it has a store; wills are not published any
        more, or when the broker starts with its store again.
        """
        if self._state == "closed":
            return
        was_open = self._state == "open"
        self._state = "closed"
        if was_open:
            for client in list(self._clients):
                client.disconnect(ReasonCode.SERVER_SHUTTING_DOWN, "the broker closes")
            self.sys_topics.close()
            self._wills.forget_all()
            self.sessions.forget_all()
        # Connections close within a second; then listeners close those that never got as far as a client.
        while self._tasks:
            await asyncio.wait(list(self._tasks))
        await asyncio.gather(*(listener.close() for listener in self._listeners))
        if self.journal is not None:
            await self.journal.close()
        self._waiting.close()
        if self._identity is not None:
            self._identity.close()

    # --- where and who ------------------------------------------------------------------------------------------

    @property
    def ca_file(self) -> Path:
        """PEM file with the certificate to trust for this broker, for other programs; gone after :meth:`close`.

        Raises
        ------
        UsageError
            The broker listens neither on QUIC nor on TLS, so that it has no certificate.
        """
        if self._identity is None:
            raise UsageError("this broker has no certificate: it listens neither on QUIC nor on TLS")
        return self._identity.ca_file

    def clients(self) -> list[ClientInfo]:
        """Return the connected clients, in the order in which they connected."""
        infos = [client.info() for client in self._clients if client.session is not None]
        return sorted(infos, key=lambda info: info.connected_at)

    def stats(self) -> BrokerStats:
        """Return all counters, and what is held now."""
        refused = sum(listener.refused for listener in self._listeners)
        return dataclasses.replace(
            self.counters,
            **counted(self._listeners),
            uptime=self.clock.time() - self._started_at if self._state != "new" else 0.0,
            connections=len(self._clients),
            clients=sum(client.session is not None for client in self._clients),
            sessions=len(self.sessions) if self._state != "new" else 0,
            subscriptions=self.router.count,
            retained=len(self.retained),
            retained_bytes=self.retained.nbytes,
            deliveries_refused=self.counters.deliveries_refused + self.router.withheld,
            datagrams_lost=self.counters.datagrams_lost + sum(c.datagrams.lost for c in self._clients if c.datagrams),
            queued=self.sessions.backlog.count if self._state != "new" else 0,
            queued_bytes=self.sessions.backlog.nbytes if self._state != "new" else 0,
            connections_refused=self.counters.connections_refused + refused,
        )

    async def wait_for(self, condition: Callable[[], object], timeout: float | None = 10.0) -> None:
        """Wait until `condition()` is true; asked again whenever a packet was handled or a client came or went.

        Parameters
        ----------
        condition : callable
            Looks at :meth:`clients` or :meth:`stats`: ``lambda: broker.stats().subscriptions == 2``.
        timeout : float or None
            Seconds.

        Raises
        ------
        OperationTimeoutError
            It did not become true in time.
        DisconnectedError
            The broker was closed meanwhile.
        """
        await self._waiting.wait_for(condition, timeout)

    async def next_change(self) -> None:
        """Wait until a packet is handled, or a client comes or goes.

        Raises
        ------
        DisconnectedError
            The broker was closed meanwhile.
        """
        await self._waiting.next_change()

    # --- for its parts ------------------------------------------------------------------------------------------

    def accept(self, connection: Connection) -> None:
        """Serve a new connection. Called by the listeners; tests bring connections of their own."""
        if self._state != "open" or len(self._clients) >= self.config.max_connections:
            self.counters.connections_refused += 1
            connection.abort("the broker takes no more connections")
            return
        self.counters.connections_total += 1
        if self.profile.bidirectional == "connection" and connection.transport == "quic":
            connection.on_stream = partial(self._accept_stream, connection)
        else:
            self._clients.add(Client(self, connection))

    def _accept_stream(self, connection: Connection, stream: ByteStream) -> None:
        """Serve a stream that is an MQTT connection of its own."""
        if self._state != "open" or (stream.id or 0) & 2 or len(self._clients) >= self.config.max_connections:
            self.counters.streams_refused += 1
            stream.reset(0)
            return
        self.counters.streams_total += 1
        self._clients.add(Client(self, connection, stream))

    def changed(self) -> None:
        """Let those look again who wait for something."""
        self.changes += 1
        if self._waiting:
            self._waiting.check()

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run something in the next loop tick."""
        self._loop.call_soon(callback)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something in the background; :meth:`close` waits for it."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def open_session(self, client_id: str, clean_start: bool) -> tuple[Session | None, bool]:
        """Return the session for a CONNECT and whether it existed; ends the connection that still has it (0x8E)."""
        session = self.sessions.get(client_id)
        if session is not None and session.client is not None:
            self.counters.takeovers += 1
            session.client.disconnect(ReasonCode.SESSION_TAKEN_OVER, "the client connected anew")
        session, present = self.sessions.open(client_id, clean_start)
        if session is not None and present:
            self._wills.session_resumed(session)
        return session, present

    def session_begins(self, session: Session, expiry_interval: int, will: Will | None) -> None:
        """Note what the CONNECT that was just accepted says of its session."""
        self.sessions.begin(session, expiry_interval)
        self._wills.connected(session, will)

    async def hang_up(self, connection: Connection, code: int, reason: str) -> None:
        """Close a connection, once what was written on it has left: it may have to be on disk first."""
        if self.journal is not None:
            await self.journal.settled()
        await connection.close(code, reason)

    def end_stream_session(self, session: Session) -> None:
        """End what belonged to a data stream."""
        shared = session.shared_left()
        self.router.unsubscribe_all(session)
        session.disconnected()
        session.discard()
        self._hand_on(shared, ended=True)
        self.changed()

    def connection_ended(self, client: Client, will: Will | None) -> None:
        """Detach a client from its session; `will` is published unless the broker closes."""
        self._clients.discard(client)
        session, client.session = client.session, None
        if session is not None:
            self.counters.disconnects_total += 1
        if session is not None and self._state == "open":
            if session.subscriptions:
                self.router.forget_routes()
            session.disconnected()
            if will is not None:
                self._wills.connection_lost(session, will)
            else:
                self._wills.withdrawn(session)
            if session.expiry_interval:
                self._hand_on(session.take_shared())
            self.sessions.leave(session)
        self.changed()

    def _hand_on(self, messages: list[Outgoing], *, ended: bool = False) -> None:
        """Give messages of shared subscriptions that their member did not take to others (section 4.8.2)."""
        if messages:
            count = self.router.hand_on(messages, self.clock.time())
            self.counters.shared_returned += count
            if ended:  # they do not end with the session
                self.counters.dropped_session -= count
            elif count < len(messages):
                self.counters.dropped_queue += len(messages) - count

    def publish(self, message: Message, publisher: Session | None) -> None:
        """Retain a message if it says so, and hand it to all who want it."""
        if message.retain:
            message.publisher = None if publisher is None else publisher.client_id
            if not self.retained.store(message, self.clock.time()):
                self.counters.retained_refused += 1
        self.router.publish(message, publisher)

    def retained_for(self, topic: str) -> RetainedMessages:
        """Return where messages retained for a topic, or for what a filter matches, are kept."""
        return self.sys_topics.retained if topic.startswith("$SYS") else self.retained

    def transports(self) -> dict[str, int]:
        """Return how many clients are connected over each transport."""
        counts = dict.fromkeys(("quic", "tls", "tcp"), 0)
        for client in self._clients:
            if client.session is not None:
                counts[client.connection.transport] += 1
        return counts

    def _publish_will(self, will: Message, client_id: str) -> None:
        self.counters.wills_published += 1
        self.publish(will, self.sessions.get(client_id))
        self.changed()

    def _session_ended(self, session: Session) -> None:
        if session.flows is not None:
            session.flows.end()
        shared = session.shared_left()
        self.router.unsubscribe_all(session)
        self._hand_on(shared, ended=True)
        self._wills.session_ended(session)
        self.changed()
