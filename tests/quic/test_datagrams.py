"""DATAGRAM frames (RFC 9221): what fits, what is counted, and that nothing waits for what got lost."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet_builder import QuicPacketBuilder

from mqttquic_lab.errors import DisconnectedError, UsageError
from mqttquic_lab.net.address import Address
from mqttquic_lab.quic import private_datagrams
from mqttquic_lab.quic.datagrams import MAX_WAITING, MAX_WAITING_BYTES
from mqttquic_lab.quic.knobs import ANNOUNCED_SIZE, Knobs
from mqttquic_lab.quic.private import Engine
from tests.helpers.engines import Engines
from tests.helpers.lossy import Ills, LossyRelay
from tests.helpers.memory import memory_pair
from tests.helpers.quic import Inbox, connected, serving, settle

if TYPE_CHECKING:
    from mqttquic_lab.net.stream import Connection
    from tests.helpers.certs import Identities

TAKEN = Knobs.of(datagrams=True)


def collect(connection: Connection) -> list[bytes]:
    """Have a connection's datagrams put into a list."""
    arrived: list[bytes] = []
    connection.on_datagram = arrived.append
    return arrived


async def test_both_directions_and_the_largest(identities: Identities) -> None:
    async with (
        serving(identities, knobs=TAKEN) as server,
        connected(server, identities, knobs=TAKEN) as (client, other),
    ):
        here, there = collect(client), collect(other)
        largest = client.max_datagram_size
        # A packet of 1200 bytes: short header 3, connection id 8, tag 16, frame type 1, length 2.
        assert largest == 1200 - 3 - 8 - 16 - 1 - 2
        assert client.send_datagram(b"x" * largest)
        assert client.send_datagram(b"")
        assert other.send_datagram(b"answer")
        await settle(lambda: len(there) == 2 and len(here) == 1)
        assert there == [b"x" * largest, b""]
        assert here == [b"answer"]
        await settle(lambda: client.datagram_frames.acknowledged == 2)
        frames = client.datagram_frames
        assert (frames.sent, frames.lost, frames.received, frames.dropped) == (2, 0, 1, 0)
        parameters = client.refresh_report().remote_transport_parameters
        assert parameters["max_datagram_frame_size"] == ANNOUNCED_SIZE == 65_535


async def test_loopback_tuning_has_room_for_more(identities: Identities) -> None:
    async with (
        serving(identities, knobs=TAKEN, tuning="loopback") as server,
        connected(server, identities, tuning="loopback") as (client, other),
    ):
        there = collect(other)
        await settle(lambda: (client.max_datagram_size or 0) > 8000)
        client.send_datagram(b"y" * 8000)
        await settle(lambda: there == [b"y" * 8000])
        assert other.max_datagram_size is None  # this client announced nothing


async def test_what_cannot_be_sent(identities: Identities) -> None:
    async with serving(identities) as server, connected(server, identities, knobs=TAKEN) as (client, other):
        assert client.max_datagram_size is None
        with pytest.raises(UsageError, match="announced no max_datagram_frame_size"):
            client.send_datagram(b"x")
        size = other.max_datagram_size
        assert size is not None
        with pytest.raises(UsageError, match=rf"{size + 1} bytes do not fit .* {size} do"):
            other.send_datagram(b"x" * (size + 1))
        assert other.datagram_frames.too_large == 1
        assert other.datagram_frames.sent == 0
    assert other.max_datagram_size is None
    with pytest.raises(DisconnectedError):
        client.send_datagram(b"x")


async def test_other_transports_have_none() -> None:
    one, _ = memory_pair()
    assert one.max_datagram_size is None
    assert one.datagram_frames is None
    with pytest.raises(UsageError, match="TCP has no datagrams"):
        one.send_datagram(b"x")


async def test_the_queue_is_bounded_and_room_can_be_waited_for(identities: Identities) -> None:
    async with serving(identities, knobs=TAKEN) as server, connected(server, identities) as (client, other):
        there = collect(other)
        taken = sum(client.send_datagram(b"%d" % number) for number in range(MAX_WAITING + 10))
        assert taken == MAX_WAITING
        assert client.datagram_frames.dropped == 10
        await client.datagram_room()
        assert client.send_datagram(b"last")
        await settle(lambda: b"last" in there)
        assert client.engine.datagram_bytes == 0
        large = client.max_datagram_size or 0
        taken = sum(client.send_datagram(bytes(large)) for _ in range(MAX_WAITING_BYTES // large + 10))
        assert taken == MAX_WAITING_BYTES // large + 1


async def test_closing_sends_what_waits(identities: Identities) -> None:
    async with serving(identities, knobs=TAKEN) as server:
        async with connected(server, identities) as (client, other):
            there = collect(other)
            for _ in range(50):  # more than the first congestion window takes
                client.send_datagram(bytes(1000))
        await settle(lambda: other.is_closed)
    assert len(there) == 50


async def test_what_gets_lost_is_counted_and_not_sent_again(identities: Identities) -> None:
    """A fifth of all packets gets lost: about a fifth of the datagrams, and none of the stream's bytes."""
    async with serving(identities, knobs=TAKEN) as server, LossyRelay(server.listener.addresses[0], seed=5) as relay:
        address = Address.of("quic", *relay.address)
        async with connected(server, identities, address=address) as (client, other):
            there = collect(other)
            client.control.write(b"!")
            inbox = Inbox(await server.stream())
            await inbox.read(1)
            relay.ills = Ills(drop=0.2)
            for number in range(400):
                await client.datagram_room()
                client.send_datagram(number.to_bytes(2, "big") + bytes(900))
                client.control.write(number.to_bytes(2, "big") * 50)
                if number % 10 == 9:
                    await client.ping()
            data = await inbox.read(400 * 100)
            assert data == b"".join(number.to_bytes(2, "big") * 50 for number in range(400))
            await settle(lambda: not client.engine.datagrams_waiting)
            relay.ills = Ills()
            await settle(lambda: client.bytes_in_flight == 0)
            frames = client.datagram_frames
            numbers = [int.from_bytes(datagram[:2], "big") for datagram in there]
            assert len(set(numbers)) == len(numbers), "one arrived twice"
            assert frames.sent == 400
            assert frames.acknowledged + frames.lost == 400
            # What counts as lost may have arrived, when acknowledgements got lost; the other way round it cannot be.
            assert frames.acknowledged <= len(there)
            assert 40 <= 400 - len(there) <= 120
            print(f"of 400 datagrams {len(there)} arrived and {frames.lost} count as lost; of the stream everything")


async def test_no_datagram_waits_for_one_that_was_lost(identities: Identities) -> None:
    """The stream stands still behind a lost packet; datagrams sent later arrive all the same."""
    async with serving(identities, knobs=TAKEN) as server, LossyRelay(server.listener.addresses[0]) as relay:
        address = Address.of("quic", *relay.address)
        async with connected(server, identities, address=address) as (client, other):
            there = collect(other)
            client.control.write(b"0")
            inbox = Inbox(await server.stream())
            await inbox.read(1)
            order: list[bytes] = []
            other.on_datagram = order.append
            inbox.stream.on_data = order.append
            relay.blackhole = True
            client.control.write(b"stream 1")
            client.send_datagram(b"datagram 1")
            client.transmit()
            await settle(lambda: any(passage.fate == "dropped" for passage in relay.log))
            relay.blackhole = False
            client.control.write(b", stream 2")
            client.send_datagram(b"datagram 2")
            await settle(lambda: len(order) == 2)
            assert order == [b"datagram 2", b"stream 1, stream 2"]
            assert there == []


async def test_a_flood_of_datagrams_does_not_starve_streams(identities: Identities) -> None:
    async with serving(identities, knobs=TAKEN) as server, connected(server, identities) as (client, other):
        order: list[str] = []
        other.on_datagram = lambda _: order.append("datagram")
        for _ in range(200):
            client.send_datagram(bytes(1100))
        client.control.write(bytes(50_000))
        stream = await server.stream()
        received = 0

        def on_data(data: bytes) -> None:
            nonlocal received
            received += len(data)
            if received == 50_000:
                order.append("stream")

        stream.on_data = on_data
        await settle(lambda: "stream" in order and order.count("datagram") == 200)
        # 43 packets of stream data, each after one with a datagram.
        assert 30 <= order.index("stream") <= 100


def test_datagrams_go_on_when_streams_cannot_use_their_turn(identities: Identities) -> None:
    """Stream data that flow control holds back must not stop datagrams."""
    pair = Engines(identities, window=1000)
    pair.server.configuration.max_datagram_frame_size = 65_535
    pair.deliver()
    client = pair.client
    client.send_stream_data(0, bytes(100_000))
    pair.server.hold(0, 1000)
    for number in range(8):
        client.send_datagram_frame(bytes([number]) * 1000)
    for _ in range(20):  # the pacer spreads them
        pair.deliver()
    received = [e.data[0] for e in Engines.events(pair.server) if type(e).__name__ == "DatagramFrameReceived"]
    assert received == list(range(8))
    assert client.datagrams_waiting == client.datagram_bytes == 0


def test_one_that_fits_no_more_is_dropped(identities: Identities) -> None:
    pair = Engines(identities)
    pair.server.configuration.max_datagram_frame_size = 65_535
    pair.deliver()
    client = pair.client
    size = private_datagrams.max_payload(client)
    assert size is not None
    client.send_datagram_frame(bytes(size + 1))
    client.send_datagram_frame(b"next")
    pair.deliver()
    assert [e.data for e in Engines.events(pair.server) if type(e).__name__ == "DatagramFrameReceived"] == [b"next"]
    assert (client.datagram_frames.too_large, client.datagram_frames.sent) == (1, 1)


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (QuicConnection, "_write_datagram_frame", ["self", "builder", "data", "frame_type"]),
        (QuicConnection, "_write_application", ["self", "builder", "network_path", "now"]),
        (QuicConnection, "send_datagram_frame", ["self", "data"]),
        (QuicPacketBuilder, "start_frame", ["self", "frame_type", "capacity", "handler", "handler_args"]),
    ],
)
def test_private_names(owner: Any, name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(owner, name)).parameters) == parameters
    if owner is QuicConnection:
        assert list(inspect.signature(getattr(Engine, name)).parameters) == parameters


def test_private_attributes(identities: Identities) -> None:
    pair = Engines(identities)
    pair.deliver()
    engine = pair.client
    for name in ("_datagrams_pending", "_handshake_complete", "_remote_max_datagram_frame_size", "_max_datagram_size"):
        assert hasattr(engine, name), f"aioquic no longer has {name}"
    assert engine._peer_cid.cid
    assert "self._write_datagram_frame(" in inspect.getsource(QuicConnection._write_application)
