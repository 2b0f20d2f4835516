"""A broker without listeners, reached over in-memory connections, on a clock that tests move."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.server import BrokerServer
from tests.broker.peer import Peer
from tests.helpers.clock import ManualClock
from tests.helpers.memory import memory_pair

if TYPE_CHECKING:
    from mqttquic_lab.mqtt import Version
    from mqttquic_lab.net.stream import TransportName

OFFLINE: dict[str, Any] = {"quic": False, "tls": False, "tcp": False, "sys_interval": None}


class Bench:
    """A started broker, its clock, and clients for it."""

    def __init__(self, server: BrokerServer, clock: ManualClock) -> None:
        self.server = server
        self.clock = clock

    def attach(
        self,
        version: Version = 5,
        *,
        chunk: int | None = None,
        transport: TransportName = "tcp",
        alpn: str = "mqtt",
    ) -> Peer:
        """Return a connection that has not said CONNECT."""
        mine, theirs = memory_pair(chunk=chunk, transport=transport)
        theirs.report.alpn = alpn
        self.server.accept(theirs)
        return Peer(mine, version)

    async def join(
        self, client_id: str = "", version: Version = 5, *, transport: TransportName = "tcp", **connect: Any
    ) -> Peer:
        """Return a connected client."""
        peer = self.attach(version, transport=transport)
        answer = await peer.connect(client_id, **connect)
        assert answer.reason_code == 0
        return peer


MakeBench = Callable[..., Awaitable[Bench]]


@pytest.fixture
async def make_bench() -> AsyncIterator[MakeBench]:
    """Start brokers with settings of one's own."""
    benches: list[Bench] = []

    async def make(**options: Any) -> Bench:
        clock = ManualClock()
        server = BrokerServer(BrokerConfig(**{**OFFLINE, **options}), clock=clock)
        await server.start()
        benches.append(Bench(server, clock))
        return benches[-1]

    yield make
    for bench in benches:
        await bench.server.close()
        # Whatever a test did, nothing may be left over: timers are how sessions and wills would leak.
        assert bench.clock.pending == 0


@pytest.fixture
async def bench(make_bench: MakeBench) -> Bench:
    """A broker with default settings."""
    return await make_bench()
