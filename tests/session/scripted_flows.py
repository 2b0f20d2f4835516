"""A scripted broker that speaks MQTT-next: which flow headers came, and answers on the flow of one's choice."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from mqttquic_lab.mqtt import ConnAck, Connect, FlowFlags, FlowHeader, FlowHeaderDecoder, FlowType
from mqttquic_lab.session import AsyncSession
from tests.helpers.memory import memory_pair
from tests.session.scripted import HANG, hang
from tests.session.scripted_streams import ScriptedStream, StreamsBroker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mqttquic_lab.mqtt import Packet
    from mqttquic_lab.net.stream import ByteStream
    from mqttquic_lab.session import AsyncStream
    from tests.helpers.memory import MemoryConnection, MemoryStream


class ScriptedFlow(ScriptedStream):
    """The broker's end of a stream that the client opened for a flow."""

    def __init__(self, stream: MemoryStream) -> None:
        super().__init__(stream)
        self._reader = FlowHeaderDecoder()

    @property
    def header(self) -> FlowHeader:
        """The header that came."""
        assert self._reader.header is not None
        return self._reader.header

    def _on_data(self, data: bytes) -> None:
        if not self._reader.done:
            self._reader.feed(data)
            data = self._reader.rest if self._reader.done else b""
        if data:
            super()._on_data(data)
        self._arrived.set()

    async def began(self) -> FlowHeader:
        """Return the header once it is there."""
        async with asyncio.timeout(HANG):
            while self._reader.header is None:
                self._arrived.clear()
                await self._arrived.wait()
        return self.header


class FlowsBroker(StreamsBroker):
    """A scripted broker whose clients begin every stream with a flow header.

    Attributes
    ----------
    control_header : FlowHeader or None
        What the control stream began with; None where no header comes (mqttv5).
    """

    def __init__(self, connection: MemoryConnection, *, one_way: bool = False) -> None:
        self._reader = None if one_way else FlowHeaderDecoder()
        super().__init__(connection)

    @property
    def control_header(self) -> FlowHeader | None:
        return None if self._reader is None else self._reader.header

    def _on_data(self, data: bytes) -> None:
        if self._reader is not None and not self._reader.done:
            self._reader.feed(data)
            data = self._reader.rest if self._reader.done else b""
        if data:
            super()._on_data(data)

    def _on_stream(self, stream: ByteStream) -> None:
        if stream is not self.connection.control:
            assert stream.id is not None
            self.streams[stream.id] = ScriptedFlow(stream)  # type: ignore[arg-type]  # a memory pair's
            self._opened.set()

    async def flow(self, stream_id: int) -> ScriptedFlow:
        """Return the flow on a stream once its header is there."""
        flow = await self.stream(stream_id)
        assert isinstance(flow, ScriptedFlow)
        await hang(flow.began())
        return flow

    def deliver(
        self, flow_id: int, *packets: Packet | bytes, flags: FlowFlags | None = None, unidirectional: bool = False
    ) -> ScriptedStream:
        """Open a flow towards the client."""
        end = self.open(unidirectional=unidirectional)
        flags = FlowFlags(clean=True, persistent_qos=True) if flags is None else flags
        end.send(FlowHeader(FlowType.SERVER_DATA, flow_id, 300, flags).encode(), *packets)
        return end

    async def close_code(self) -> int | None:
        """Wait until the session has closed the connection; return the QUIC application error code."""
        await self.closed()
        return self.connection.peer.close_code


@asynccontextmanager
async def scripted_flows(
    connack: ConnAck | None = None, *, credit: int = 100, **options: Any
) -> AsyncIterator[tuple[AsyncSession, FlowsBroker]]:
    """Yield a connected session with flows, and its broker."""
    client, server = memory_pair(transport="quic")
    client.grant(credit)
    client.report.alpn = "MQTT-next"
    broker = FlowsBroker(server, one_way=options.get("profile") == "mqttv5")
    options = {"streams": "flows", "reconnect": False, **options}
    opening = asyncio.create_task(AsyncSession.over(client, **options))
    await broker.expect(Connect)
    assert not broker.streams, "flows before CONNACK"
    broker.send(connack or ConnAck())
    session = await hang(opening)
    try:
        yield session, broker
    finally:
        await hang(session.close())


async def opened_flow(session: AsyncSession, broker: FlowsBroker, **options: Any) -> tuple[AsyncStream, ScriptedFlow]:
    """Open an explicit flow; return both ends."""
    stream = await hang(session.open_stream(**options))
    return stream, await broker.flow(stream.id)
