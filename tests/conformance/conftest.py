"""A broker on real sockets, and a peer that sends it what a test wrote: over TCP and over QUIC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.server import BrokerServer
from mqttquic_lab.net.address import parse_url
from mqttquic_lab.net.certificates import Trust
from mqttquic_lab.net.open import open_connection
from tests.broker.peer import Peer
from tests.helpers.clock import ManualClock

if TYPE_CHECKING:
    from mqttquic_lab.mqtt import Version

TRANSPORTS = {"tcp": "mqtt", "quic": "quic"}
"""Transport -> scheme of its URL."""


class Served:
    """A started broker that listens on one transport, its clock, and clients for it."""

    def __init__(self, server: BrokerServer, clock: ManualClock, scheme: str) -> None:
        self.server = server
        self.clock = clock
        self.scheme = scheme
        self.peers: list[Peer] = []

    async def attach(self, version: Version = 5) -> Peer:
        """Return a connection that has not said CONNECT."""
        trust = Trust(ca_file=self.server.ca_file) if self.scheme == "quic" else Trust()
        peer = Peer(await open_connection(parse_url(self.server.urls[self.scheme]), trust=trust), version)
        self.peers.append(peer)
        return peer

    async def join(self, client_id: str = "", version: Version = 5, **connect: Any) -> Peer:
        """Return a connected client."""
        peer = await self.attach(version)
        answer = await peer.connect(client_id, **connect)
        assert answer.reason_code == 0
        return peer

    async def gone(self, *client_ids: str) -> None:
        """Wait until the broker has noticed that these clients are gone."""
        await self.server.wait_for(
            lambda: not {client.client_id for client in self.server.clients()}.intersection(client_ids)
        )

    async def lose(self, peer: Peer, client_id: str) -> None:
        """Break a client's connection off and wait until the broker has noticed."""
        await peer.vanish()
        await self.gone(client_id)


MakeServed = Callable[..., Awaitable[Served]]


@pytest.fixture(params=list(TRANSPORTS))
async def make_served(request: pytest.FixtureRequest) -> AsyncIterator[MakeServed]:
    """Start brokers with settings of one's own; each test runs over every transport."""
    transport: str = request.param
    started: list[Served] = []

    async def make(**options: Any) -> Served:
        settings: dict[str, Any] = {"quic": False, "tls": False, "tcp": False, transport: True, f"{transport}_port": 0}
        settings["sys_interval"] = None  # some tests let years pass
        clock = ManualClock()
        server = BrokerServer(BrokerConfig(**{**settings, **options}), clock=clock)
        await server.start()
        started.append(Served(server, clock, TRANSPORTS[transport]))
        return started[-1]

    yield make
    for served in started:
        for peer in served.peers:
            await peer.connection.close()
        await served.server.close()
        assert served.clock.pending == 0


@pytest.fixture
async def served(make_served: MakeServed) -> Served:
    """A broker with default settings."""
    return await make_served()
