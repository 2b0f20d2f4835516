"""A gateway in front of a TCP or TLS server that does what a test says, and QUIC clients of it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from mqttquic_lab.gateway import GatewayConfig, GatewayServer
from mqttquic_lab.net.address import parse_url
from mqttquic_lab.net.certificates import Trust
from mqttquic_lab.net.listen import listen
from mqttquic_lab.net.open import open_connection
from mqttquic_lab.net.tcp import TcpConnection
from tests.helpers.quic import HANG, Inbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mqttquic_lab.errors import LabError
    from mqttquic_lab.gateway import GatewayError
    from mqttquic_lab.net.stream import ByteStream, Connection, Listener
    from tests.helpers.certs import Identities


class Upstream:
    """What stands behind the gateway: each of its connections is an inbox."""

    def __init__(self) -> None:
        self.listener: Listener
        self.on_stream: Callable[[ByteStream], None] | None = None
        self._arrived: asyncio.Queue[Inbox] = asyncio.Queue()

    def accept(self, connection: Connection) -> None:
        assert isinstance(connection, TcpConnection)
        connection.half_open = True
        connection.on_stream = self._stream

    def _stream(self, stream: ByteStream) -> None:
        if self.on_stream is not None:
            self.on_stream(stream)
        else:
            self._arrived.put_nowait(Inbox(stream))

    @property
    def url(self) -> str:
        return f"{'mqtts' if self.listener.transport == 'tls' else 'mqtt'}://127.0.0.1:{self.listener.port}"

    @property
    def is_idle(self) -> bool:
        """Whether nobody came that no test has asked for."""
        return self._arrived.empty()

    async def arrived(self) -> Inbox:
        """Wait for the next connection."""
        async with asyncio.timeout(HANG):
            return await self._arrived.get()


@contextlib.asynccontextmanager
async def upstream(identities: Identities | None = None) -> AsyncIterator[Upstream]:
    """Listen on TCP, or with `identities` on TLS."""
    server = Upstream()
    server.listener = await listen(
        "tls" if identities else "tcp",
        "127.0.0.1",
        0,
        identity=identities.good if identities else None,
        on_connection=server.accept,
    )
    try:
        yield server
    finally:
        await server.listener.close()


@contextlib.asynccontextmanager
async def gateway(to: Upstream | str, **options: Any) -> AsyncIterator[GatewayServer]:
    """Run a gateway."""
    url = to if isinstance(to, str) else to.url
    async with GatewayServer(GatewayConfig(url, **{"quic_port": 0, **options})) as server:
        yield server


@contextlib.asynccontextmanager
async def client(of: GatewayServer, scheme: str = "quic") -> AsyncIterator[Any]:
    """Connect to a gateway; yields the connection."""
    connection = await open_connection(parse_url(of.urls[scheme]), trust=Trust(ca_file=of.ca_file))
    if isinstance(connection, TcpConnection):
        connection.half_open = True
    try:
        yield connection
    finally:
        await connection.close()


async def closed(connection: Connection) -> LabError | None:
    """Wait for the end of a connection."""
    async with asyncio.timeout(HANG):
        return await asyncio.shield(connection.closed)


def newest(of: GatewayServer) -> GatewayError:
    return of.errors[-1]
