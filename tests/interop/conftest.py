"""Our broker on TCP and TLS, for programs that nobody here wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.server import BrokerServer
from mqttquic_lab.net.address import parse_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mqttquic_lab.broker.status import ClientInfo


@dataclass
class Listening:
    """A broker and one of its listeners."""

    server: BrokerServer
    scheme: str

    @property
    def port(self) -> int:
        return parse_url(self.server.urls[self.scheme]).port

    @property
    def ca_file(self) -> str | None:
        """For TLS."""
        return str(self.server.ca_file) if self.scheme == "mqtts" else None

    def client(self, client_id: str) -> ClientInfo | None:
        return next((client for client in self.server.clients() if client.client_id == client_id), None)

    async def subscribed(self, count: int = 1) -> None:
        """Wait until so many subscriptions stand."""
        await self.server.wait_for(lambda: self.server.stats().subscriptions >= count)

    async def gone(self, client_id: str) -> None:
        await self.server.wait_for(lambda: self.client(client_id) is None)


@pytest.fixture(params=["mqtt", "mqtts"])
async def listening(request: pytest.FixtureRequest) -> AsyncIterator[Listening]:
    """Runs a test over TCP and over TLS."""
    config = BrokerConfig(quic=False, tls_port=0, tcp_port=0)
    async with BrokerServer(config) as server:
        yield Listening(server, request.param)
