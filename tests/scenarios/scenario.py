"""What a scenario is, and how every one of them runs."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from mqttquic_lab.broker import BrokerConfig, BrokerServer
from mqttquic_lab.session import AsyncSession
from tests.helpers.lossy import Ills, LossyRelay
from tests.scenarios.load import PATIENCE, Load, carry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from mqttquic_lab.quic.server import QuicListener
    from mqttquic_lab.records.handshake import HandshakeReport
    from mqttquic_lab.session.stream import AsyncStream

HANG = 50.0
"""Seconds for a whole scenario; none takes a quarter of it."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One row of the QUIC interop runner's list.

    Attributes
    ----------
    name : str
        The interop runner's.
    what : str
        What is in the way, or different; for the matrix.
    ills : Ills
        What the relay does to datagrams.
    relay : mapping
        Further arguments of :class:`LossyRelay`.
    broker : mapping
        Settings of the broker.
    connect : mapping
        Options of the sessions.
    each : int
        Messages of either QoS and session.
    window : int
        Messages under way at a time, of each session.
    sessions : int
        Sessions side by side, each with a load of its own.
    topics : int
        Topics that a load uses.
    streams : int
        Streams that the first session opens beside its own, each with a load of its own.
    before : callable(Run), optional
        Awaited before the sessions are opened.
    during : callable(Run), optional
        Awaited when a third of the load was acknowledged.
    happened : callable(Run) -> str
        Asserts that what the scenario is about did happen, and says what it was.
    """

    name: str
    what: str
    happened: Callable[[Run], str]
    ills: Ills = field(default_factory=Ills)
    relay: Mapping[str, Any] = field(default_factory=dict)
    broker: Mapping[str, Any] = field(default_factory=dict)
    connect: Mapping[str, Any] = field(default_factory=dict)
    each: int = 300
    window: int = 32
    sessions: int = 1
    topics: int = 1
    streams: int = 0
    before: Callable[[Run], Awaitable[None]] | None = None
    during: Callable[[Run], Awaitable[None]] | None = None


@dataclass
class Run:
    """One scenario while it runs."""

    scenario: Scenario
    broker: BrokerServer
    relay: LossyRelay
    stack: AsyncExitStack
    """Closes what was opened."""
    sessions: list[AsyncSession] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the sessions, beside the scenario's, that ``before`` has made."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What ``before`` and ``during`` want ``happened`` to know."""

    async def open(self, **options: Any) -> AsyncSession:
        """Open a session through the relay."""
        host, port = self.relay.address
        url = f"quic://[{host}]:{port}" if ":" in host else f"quic://{host}:{port}"
        options = {
            "ca_file": self.broker.ca_file,
            "timeout": PATIENCE,
            **self.scenario.connect,
            **self.options,
            **options,
        }
        session = await AsyncSession.open(url, **options)
        self.stack.push_async_callback(session.close)
        return session

    @property
    def session(self) -> AsyncSession:
        """The session, or the first of several."""
        return self.sessions[0]

    @property
    def report(self) -> HandshakeReport:
        """How the first session came about."""
        return self.session.handshake

    @property
    def listener(self) -> QuicListener:
        """The broker's QUIC listener."""
        return cast("QuicListener", self.broker._listeners[0])

    @property
    def client_addresses(self) -> set[tuple[str, int]]:
        """Where the broker takes its clients to be."""
        return {client.address[:2] for client in self.broker.clients() if client.address is not None}


async def run(scenario: Scenario) -> tuple[Run, str]:
    """Run a scenario; returns what there was, and in words what happened."""
    async with asyncio.timeout(HANG), AsyncExitStack() as stack:
        config = BrokerConfig(**{"quic_port": 0, "tls": False, "tcp": False, **scenario.broker})
        broker = await stack.enter_async_context(BrokerServer(config))
        host, port = cast("QuicListener", broker._listeners[0]).addresses[0]
        relay = LossyRelay((host, port), scenario.ills, **scenario.relay)
        this = Run(scenario, broker, await stack.enter_async_context(relay), stack)
        if scenario.before is not None:
            await scenario.before(this)
        this.sessions = await asyncio.gather(*(this.open() for _ in range(scenario.sessions)))
        carriers: list[AsyncSession | AsyncStream] = list(this.sessions)
        carriers += [await this.session.open_stream() for _ in range(scenario.streams)]
        this.loads = [Load(f"load{n}", scenario.each, scenario.topics) for n in range(len(carriers))]
        during = None if scenario.during is None else partial(scenario.during, this)
        async with asyncio.TaskGroup() as group:
            for carrier, load in zip(carriers, this.loads, strict=True):
                # One of them sees to what happens: it befalls the relay, or the connection, and so all.
                disturbance = during if carrier is this.session else None
                group.create_task(carry(carrier, load, window=scenario.window, during=disturbance))
        for session in this.sessions:
            # What the broker had sent before PINGRESP is here with it: a second delivery would be seen.
            await session.ping(timeout=PATIENCE)
            assert session.state == "connected"
            assert not session.errors
        for load in this.loads:
            while load.take():
                pass
            load.check()
        return this, scenario.happened(this)
