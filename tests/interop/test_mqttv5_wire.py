"""What mqttv5's broker does on streams, as far as our own code counts on it; the MQoQ draft says otherwise in places.

A new release that changes one of these changes what the profile ``"mqttv5"`` must do.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.mqtt import Connect, PacketDecoder, PubAck, Publish, SubAck, Subscribe, Subscription, encode_publish
from mqttquic_lab.net.address import Address
from mqttquic_lab.quic.client import open_quic
from tests.helpers.quic import HANG, Inbox
from tests.interop.quic_peers import mqttv5_broker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from mqttquic_lab.mqtt import Packet
    from mqttquic_lab.net.stream import ByteStream
    from mqttquic_lab.quic.connection import QuicConnection
    from tests.helpers.certs import Identities

STREAM_TYPE, FLOW_REFUSED, NO_FLOW_STATE = 0xB5, 0xBE, 0xB3
PROTOCOL_L0, TOO_MANY_RECOVER_ATTEMPTS = 0xB4, 0xB3

SERVER_DATA_HEADER = bytes.fromhex("13 03 412c 00")
"""Server data flow, id 3 (its first), expiry interval 300 s, no flags."""


class Packets:
    """The MQTT packets that come on a stream."""

    def __init__(self, stream: ByteStream) -> None:
        self.inbox = Inbox(stream)
        self._decoder = PacketDecoder(5, receiver="client")
        self._waiting: list[Packet] = []

    async def next(self) -> Packet:
        while not self._waiting:
            await self.inbox.until(lambda: bool(self.inbox.data))
            self._waiting += self._decoder.feed(bytes(self.inbox.data))
            self.inbox.data.clear()
        return self._waiting.pop(0)


class Raw:
    """An MQTT client that sends what a test says, where it says."""

    def __init__(self, connection: QuicConnection) -> None:
        self.connection = connection
        self.control = Packets(connection.control)
        self.opened: asyncio.Queue[ByteStream] = asyncio.Queue()
        connection.on_stream = self.opened.put_nowait

    def write(self, data: bytes, *, unidirectional: bool = True) -> Inbox:
        """Open a stream and write on it."""
        stream = self.connection.open_stream(unidirectional=unidirectional)
        inbox = Inbox(stream)
        stream.write(data)
        return inbox

    async def closed_with(self) -> int:
        """Wait for the end of the connection; return the application error code."""
        async with asyncio.timeout(HANG):
            await self.connection.closed
        assert self.connection.close_info is not None
        assert self.connection.close_info.application
        return self.connection.close_info.error_code


@contextlib.asynccontextmanager
async def talking(
    identities: Identities, folder: Path, *options: str, alpn: Sequence[str] = ("mqtt",), before: bytes = b""
) -> AsyncIterator[Raw]:
    """Run its broker and connect to it."""
    async with mqttv5_broker(identities.good, folder, *options) as peer:
        connection = await open_quic(Address.of("quic", "127.0.0.1", peer.port), trust=identities.trust, alpn=alpn)
        try:
            raw = Raw(connection)
            connect = Connect("raw", 5, clean_start=True, keepalive=60)
            connection.control.write(before + connect.encode(5))
            if not before:
                assert (await raw.control.next()).NAME == "CONNACK"
            yield raw
        finally:
            await connection.close()


def subscribe(packet_id: int, filter_: str) -> bytes:
    return Subscribe(packet_id, (Subscription(filter_, 1),)).encode(5)


def header(flow_id: int, *, expire: int = 0, flags: int = 0) -> bytes:
    """Return a client data flow header; every field fits one byte."""
    return bytes((0x12, flow_id, expire, flags))


@pytest.mark.parametrize("alpn", [("mqtt",), ("mqtt", "MQTT-next")])
async def test_deliveries_come_on_streams_of_the_server_with_headers_whatever_the_alpn(
    identities: Identities, tmp_path: Path, alpn: tuple[str, ...]
) -> None:
    async with talking(identities, tmp_path, alpn=alpn) as raw:
        assert raw.connection.report.alpn == alpn[-1]  # MQTT-next where offered, however late
        raw.connection.control.write(subscribe(1, "a/#"))
        assert isinstance(await raw.control.next(), SubAck)
        raw.connection.control.write(encode_publish("a/1", b"x", 1, packet_id=2))
        assert isinstance(await raw.control.next(), PubAck)
        async with asyncio.timeout(HANG):
            stream = await raw.opened.get()
        assert stream.id == 1  # bidirectional
        packets = Packets(stream)
        assert await packets.inbox.read(len(SERVER_DATA_HEADER)) == SERVER_DATA_HEADER
        delivery = await packets.next()
        assert isinstance(delivery, Publish)
        assert (delivery.topic, bytes(delivery.payload), delivery.qos) == ("a/1", b"x", 1)


async def test_a_unidirectional_stream_is_answered_on_the_control_stream(
    identities: Identities, tmp_path: Path
) -> None:
    async with talking(identities, tmp_path, "--quic-delivery-strategy", "control-only") as raw:
        raw.write(subscribe(1, "a") + encode_publish("a", b"x", 1, packet_id=2))
        names = {(await raw.control.next()).NAME for _ in range(3)}
        assert names == {"SUBACK", "PUBACK", "PUBLISH"}


async def test_bidirectional_data_streams_are_refused(identities: Identities, tmp_path: Path) -> None:
    async with talking(identities, tmp_path) as raw:
        bare = raw.write(encode_publish("a", b"x", 1, packet_id=1), unidirectional=False)
        await bare.until(lambda: bare.reset_code is not None)
        assert (bare.stream.id, bare.reset_code) == (4, STREAM_TYPE)
        flow = raw.write(header(2, expire=9) + encode_publish("a", b"x", 1, packet_id=1), unidirectional=False)
        await flow.until(lambda: flow.reset_code is not None)
        assert flow.reset_code == FLOW_REFUSED


async def test_there_is_no_control_flow_header(identities: Identities, tmp_path: Path) -> None:
    async with talking(identities, tmp_path, alpn=("MQTT-next",), before=bytes((0x11, 0, 0))) as raw:
        assert await raw.closed_with() == PROTOCOL_L0


async def test_a_flow_that_is_not_there_cannot_be_recovered(identities: Identities, tmp_path: Path) -> None:
    async with talking(identities, tmp_path, alpn=("MQTT-next",)) as raw:
        abort_if_no_state = 0b10
        first = raw.write(header(2, expire=9, flags=abort_if_no_state))
        await first.until(lambda: first.reset_code is not None)
        assert first.reset_code == NO_FLOW_STATE
        raw.write(header(2, expire=9, flags=abort_if_no_state))
        assert await raw.closed_with() == TOO_MANY_RECOVER_ATTEMPTS


async def test_packet_ids_are_one_space_for_all_streams(identities: Identities, tmp_path: Path) -> None:
    """Two QoS 2 messages with one id: the first one is lost. Who numbers per stream loses messages here."""
    async with talking(identities, tmp_path, "--quic-delivery-strategy", "control-only") as raw:
        raw.connection.control.write(subscribe(1, "a"))
        assert isinstance(await raw.control.next(), SubAck)
        for payload in (b"one", b"two"):
            raw.write(encode_publish("a", payload, 2, packet_id=7))
            assert (await raw.control.next()).NAME == "PUBREC"
        raw.connection.control.write(bytes.fromhex("62 02 0007"))  # PUBREL
        packets = [await raw.control.next() for _ in range(2)]
        assert {packet.NAME for packet in packets} == {"PUBCOMP", "PUBLISH"}
        delivered = [bytes(packet.payload) for packet in packets if isinstance(packet, Publish)]
        assert delivered == [b"two"]
