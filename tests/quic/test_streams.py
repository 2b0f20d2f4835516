"""Streams: order, ends, resets, back-pressure in both directions, and handlers that fail."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.errors import DisconnectedError, UsageError
from mqttquic_lab.quic.client import CONNECTION_WINDOW, STREAM_WINDOW
from mqttquic_lab.quic.stream import HIGH_WATER, QuicStream
from tests.helpers.lossy import Ills, LossyRelay
from tests.helpers.quic import HANG, Inbox, connected, echo, serving, settle

if TYPE_CHECKING:
    from tests.helpers.certs import Identities

MIB = 1024 * 1024


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("tuning", ["realistic", "loopback"])
async def test_five_megabytes_each_way_in_order(identities: Identities, tuning: str) -> None:
    data = noise(5 * MIB)
    async with serving(identities, tuning=tuning) as server:
        server.on_stream = echo
        async with connected(server, identities, tuning=tuning) as (client, _):
            inbox = Inbox(client.control)
            rest = memoryview(data)
            while rest:
                client.control.write(bytes(rest[:50_000]))
                rest = rest[50_000:]
                await client.control.drain()
            client.control.end()
            assert await inbox.read(len(data)) == data
            await inbox.until(lambda: inbox.ended)


async def test_transfer_through_a_link_that_mistreats_datagrams(identities: Identities) -> None:
    data = noise(400_000)
    ills = Ills(drop=0.03, duplicate=0.03, reorder=0.05, corrupt=0.02)
    async with serving(identities) as server, LossyRelay(server.listener.addresses[0], ills, seed=7) as relay:
        server.on_stream = echo
        from mqttquic_lab.net.address import Address

        async with connected(server, identities, address=Address.of("quic", *relay.address)) as (client, _):
            inbox = Inbox(client.control)
            client.control.write(data)
            client.control.end()
            assert await inbox.read(len(data)) == data
            await inbox.until(lambda: inbox.ended)
        assert min(relay.dropped, relay.duplicated, relay.reordered, relay.corrupted) > 5


async def test_small_writes_of_a_tick_share_packets(identities: Identities) -> None:
    async with serving(identities) as server, connected(server, identities) as (client, _):
        client.control.write(b"x")
        inbox = Inbox(await server.stream())
        await inbox.read(1)
        await settle(lambda: client.control.pending == 0)
        chunks = inbox.chunks
        for _ in range(100):
            client.control.write(b"0123456789")
        assert client.control.pending == 1000
        await inbox.read(1000)
        assert inbox.chunks - chunks == 1  # one packet's worth


async def test_many_streams_in_both_directions(identities: Identities) -> None:
    async with serving(identities) as server:
        server.on_stream = echo
        async with connected(server, identities) as (client, accepted):
            inboxes = [Inbox(client.open_stream()) for _ in range(8)]
            assert [inbox.stream.id for inbox in inboxes] == [4, 8, 12, 16, 20, 24, 28, 32]
            for number, inbox in enumerate(inboxes):
                inbox.stream.write(b"%d" % number * 1000)
                inbox.stream.end()
            for number, inbox in enumerate(inboxes):
                assert await inbox.read(1000) == b"%d" % number * 1000
                await inbox.until(lambda inbox=inbox: inbox.ended)  # type: ignore[misc]
            theirs: asyncio.Queue[QuicStream] = asyncio.Queue()
            client.on_stream = theirs.put_nowait  # type: ignore[assignment]
            pushed = accepted.open_stream(unidirectional=True)
            assert pushed.id == 3
            pushed.write(b"news")
            pushed.end()
            stream = await asyncio.wait_for(theirs.get(), HANG)
            inbox = Inbox(stream)
            assert await inbox.read(4) == b"news"
            stream.write(b"no way back")
            assert stream.pending == 0
            # Finished streams are forgotten on both sides; CPU per packet grows with each that is not.
            client.control.write(b"still here")
            await settle(lambda: len(client.streams) == 1)
            await settle(lambda: len(accepted.streams) == 1)


async def test_the_peers_limit_of_streams(identities: Identities) -> None:
    async with serving(identities) as server, connected(server, identities) as (client, _):
        assert client.stream_credit() == 128
        client.control.write(b"a")
        while client.stream_credit() > 0:
            client.open_stream()
        with pytest.raises(UsageError, match="no more streams"):
            client.open_stream()
        assert client.stream_credit(unidirectional=True) == 128


async def test_bytes_that_come_before_anybody_wants_them_are_kept(identities: Identities) -> None:
    async with serving(identities) as server, connected(server, identities) as (client, accepted):
        early = accepted.open_stream()
        early.write(b"hello from the server")
        early.end()
        await settle(lambda: any(stream.held for stream in client.streams))
        found: asyncio.Queue[QuicStream] = asyncio.Queue()
        client.on_stream = found.put_nowait  # type: ignore[assignment]
        inbox = Inbox(await asyncio.wait_for(found.get(), HANG))
        assert await inbox.read(21) == b"hello from the server"
        await inbox.until(lambda: inbox.ended)


# --- ends and resets


async def test_half_close(identities: Identities) -> None:
    async with serving(identities) as server, connected(server, identities) as (client, _):
        client.control.write(b"last words")
        client.control.end()
        client.control.end()
        client.control.write(b"dropped")
        theirs = Inbox(await server.stream())
        assert await theirs.read(10) == b"last words"
        await theirs.until(lambda: theirs.ended)
        assert not theirs.data
        ours = Inbox(client.control)
        theirs.stream.write(b"answer")
        assert await ours.read(6) == b"answer"
        assert not ours.ended


async def test_reset_reaches_the_peer_in_both_directions(identities: Identities) -> None:
    async with serving(identities) as server, connected(server, identities) as (client, accepted):
        stream = client.open_stream()
        ours = Inbox(stream)
        stream.write(b"begin")
        theirs = Inbox(await server.stream())
        await theirs.read(5)
        stream.reset(0x1234)
        stream.reset(1)
        await theirs.until(lambda: theirs.reset_code is not None)
        assert theirs.reset_code == 0x1234
        theirs.stream.write(b"into the void")
        theirs.stream.write(b"more")
        await theirs.stream.drain()
        assert theirs.stream.pending == 0
        await settle(lambda: (not client.streams and not accepted.streams) or len(accepted.streams) <= 1)
        assert ours.reset_code is None  # we know
        assert not client.is_closed
        assert not accepted.is_closed


async def test_reset_of_a_paused_stream_discards_what_was_held(identities: Identities) -> None:
    async with serving(identities) as server, connected(server, identities) as (client, accepted):
        stream = client.open_stream()
        stream.write(b"x" * 1000)
        theirs = Inbox(await server.stream())
        await theirs.read(1000)
        theirs.stream.pause_reading()
        stream.write(b"y" * 1000)
        held: QuicStream = theirs.stream  # type: ignore[assignment]
        await settle(lambda: held.held == 1000)
        stream.reset(5)
        await theirs.until(lambda: theirs.reset_code == 5)
        assert held.held == 0
        theirs.stream.resume_reading()
        client.control.write(b"z")
        await server.stream()
        assert not theirs.data
        assert stream.id not in accepted.engine.held


async def test_stop_sending_ends_writing(identities: Identities) -> None:
    async with serving(identities) as server, connected(server, identities) as (client, _):
        ours = Inbox(client.open_stream())
        ours.stream.write(b"x")
        theirs = await server.stream()
        theirs.connection.engine.stop_stream(theirs.id, 77)
        theirs.connection.transmit()
        await ours.until(lambda: ours.reset_code == 77)
        ours.stream.write(b"too late")
        assert ours.stream.pending == 0


async def test_last_words_are_read_before_stop_sending(identities: Identities) -> None:
    """As a broker built on quinn ends a session: STOP_SENDING, DISCONNECT and FIN in one packet, in this order."""
    async with serving(identities) as server, connected(server, identities) as (client, _):
        told: list[object] = []
        client.control.on_data = told.append
        client.control.on_end = lambda: told.append("end")
        client.control.on_reset = lambda code: told.append(("reset", code))
        client.control.write(b"hello")
        stream = await server.stream()
        stream.connection.engine.stop_stream(stream.id, 7)
        stream.write(b"goodbye")
        stream.end()
        await settle(lambda: len(told) == 3)
        assert told == [b"goodbye", "end", ("reset", 7)]


async def test_reset_told_to_a_handler_that_comes_later(identities: Identities) -> None:
    async with serving(identities) as server, connected(server, identities) as (client, _):
        stream = client.open_stream()
        stream.write(b"x")
        theirs = await server.stream()
        stream.reset(9)
        await settle(lambda: theirs.finished or theirs._reset_code is not None)
        codes: list[int] = []
        theirs.on_reset = codes.append
        await settle(lambda: codes == [9])


def test_reset_codes_are_62_bits(identities: Identities) -> None:
    async def run() -> None:
        async with serving(identities) as server, connected(server, identities) as (client, _):
            with pytest.raises(UsageError, match=r"2\*\*62"):
                client.open_stream().reset(1 << 62)

    asyncio.run(run())


# --- back-pressure


async def test_drain_waits_for_acknowledgements(identities: Identities) -> None:
    async with serving(identities) as server, LossyRelay(server.listener.addresses[0]) as relay:
        from mqttquic_lab.net.address import Address

        async with connected(server, identities, address=Address.of("quic", *relay.address)) as (client, _):
            server.on_stream = Inbox  # type: ignore[assignment]
            client.control.write(b"open")
            await settle(lambda: client.control.pending == 0)
            relay.blackhole = True
            client.control.write(bytes(HIGH_WATER + 1))
            drained = asyncio.ensure_future(client.control.drain())
            await asyncio.sleep(0.05)
            assert not drained.done()
            assert client.control.pending == HIGH_WATER + 1
            relay.blackhole = False
            async with asyncio.timeout(HANG):
                await drained
            assert client.control.pending <= HIGH_WATER


async def test_one_cancelled_drain_does_not_disturb_another(identities: Identities) -> None:
    async with serving(identities) as server, connected(server, identities) as (client, _):
        server.on_stream = Inbox  # type: ignore[assignment]
        client.control.write(bytes(4 * MIB))
        first, second = (asyncio.ensure_future(client.control.drain()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        async with asyncio.timeout(HANG):
            await second
        assert first.cancelled()


async def test_drain_raises_the_reason_of_the_end(identities: Identities) -> None:
    async with serving(identities) as server, connected(server, identities) as (client, accepted):
        client.control.write(bytes(8 * MIB))  # nobody reads
        waiting = asyncio.ensure_future(client.control.drain())
        await server.stream()
        accepted.abort("enough", error_code=3)
        with pytest.raises(DisconnectedError, match="the peer closed the connection with application code 0x3: enough"):
            async with asyncio.timeout(HANG):
                await waiting
        client.control.write(b"no-op")
        assert client.control.pending == 0
        with pytest.raises(DisconnectedError, match="enough"):
            await client.control.drain()


@pytest.mark.parametrize("tuning", ["realistic", "loopback"])
async def test_a_reader_that_pauses_stops_the_peer(identities: Identities, tuning: str) -> None:
    total = 3 * STREAM_WINDOW
    async with (
        serving(identities, tuning=tuning) as server,
        connected(server, identities, tuning=tuning) as (client, _),
    ):
        client.control.write(b"!")
        stream = await server.stream()
        inbox = Inbox(stream)
        await inbox.read(1)
        stream.pause_reading()
        data = noise(total)
        client.control.write(data)
        # The peer's window is used up, and nothing more comes until somebody reads.
        window = STREAM_WINDOW
        await settle(lambda: stream.held >= window - 1)
        await client.ping()
        await client.ping()
        held = stream.held
        assert window - 1 <= held <= window
        assert client.control.pending == total - held
        assert not inbox.data
        # The other streams go on meanwhile.
        other = client.open_stream()
        other.write(b"unaffected")
        assert await Inbox(await server.stream()).read(10) == b"unaffected"
        stream.resume_reading()
        assert await inbox.read(total) == data
        assert stream.held == 0


async def test_pausing_inside_on_data_keeps_the_rest(identities: Identities) -> None:
    async with serving(identities) as server, connected(server, identities) as (client, _):
        client.control.write(b"!")
        stream = await server.stream()
        taken: list[bytes] = []

        def take_one(data: bytes) -> None:
            taken.append(data)
            stream.pause_reading()

        stream.on_data = take_one
        await settle(lambda: len(taken) == 1)
        for number in range(3):
            client.control.write(b"%d" % number)
            await settle(lambda: client.control.pending == 0)
        assert len(taken) == 1
        for number in range(3):
            stream.resume_reading()
            await settle(lambda number=number: len(taken) == number + 2)  # type: ignore[misc]
        assert b"".join(taken) == b"!012"


async def test_streams_that_nobody_reads_cost_one_window_at_most(identities: Identities) -> None:
    async with serving(identities) as server, connected(server, identities) as (client, accepted):
        server.on_stream = lambda _: None
        streams = [client.open_stream() for _ in range(10)]
        for stream in streams:
            stream.write(bytes(STREAM_WINDOW))
        await settle(lambda: sum(stream.held for stream in accepted.streams) >= CONNECTION_WINDOW)
        await client.ping()
        await client.ping()
        assert sum(stream.held for stream in accepted.streams) == CONNECTION_WINDOW


async def test_credit_comes_back_after_resets(identities: Identities) -> None:
    """What is discarded by a reset counts as read, else the connection would run dry."""
    async with serving(identities) as server, connected(server, identities) as (client, accepted):
        server.on_stream = lambda stream: stream.pause_reading()
        for number in range(2 * CONNECTION_WINDOW // STREAM_WINDOW + 2):
            stream = client.open_stream()
            stream.write(bytes(STREAM_WINDOW))
            await settle(lambda number=number: any(s.held >= STREAM_WINDOW for s in accepted.streams))  # type: ignore[misc]
            stream.reset(1)
            await settle(lambda: not any(s.held for s in accepted.streams))
        server.on_stream = server.streams.put_nowait
        last = client.open_stream()
        last.write(bytes(STREAM_WINDOW))
        assert len(await Inbox(await server.stream()).read(STREAM_WINDOW)) == STREAM_WINDOW


# --- handlers that fail


async def test_a_failing_handler_closes_its_connection_only(
    identities: Identities, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(identities) as server:
        server.on_stream = echo
        async with connected(server, identities) as (healthy, _), connected(server, identities) as (victim, accepted):

            def fail(_: bytes) -> None:
                raise KeyError("a bug in the broker")

            server.on_stream = lambda stream: setattr(stream, "on_data", fail)
            with caplog.at_level(logging.ERROR):
                victim.control.write(b"trigger")
                async with asyncio.timeout(HANG):
                    error = await victim.closed
                    cause = await accepted.closed
            assert "INTERNAL_ERROR 0x1" in str(error)
            assert "a bug in the broker" in str(cause)
            assert isinstance(cause, DisconnectedError)
            assert isinstance(cause.__cause__, KeyError)
            assert any(event.name == "internal_error" for event in accepted.trace)
            assert "a handler of this connection failed" in caplog.text
            # The listener and the other connection live on.
            server.on_stream = echo
            inbox = Inbox(healthy.control)
            healthy.control.write(b"still alive")
            assert await inbox.read(11) == b"still alive"


async def test_a_failing_on_connection_is_contained(identities: Identities) -> None:
    async with serving(identities) as server:
        accept = server.listener._on_connection

        def fail(_: object) -> None:
            raise RuntimeError("no room")

        server.listener._on_connection = fail
        from mqttquic_lab.quic.client import open_quic

        first = await open_quic(server.address, trust=identities.trust)
        async with asyncio.timeout(HANG):
            assert "INTERNAL_ERROR" in str(await first.closed)
        server.listener._on_connection = accept
        async with connected(server, identities):
            assert len(server.listener.connections) == 1
