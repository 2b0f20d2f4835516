"""What a gateway carries: bytes, ends and aborts of each stream, both ways, and no faster than the slower side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.gateway import client as client_module
from mqttquic_lab.gateway import codes, relay
from mqttquic_lab.mqtt import Connect
from mqttquic_lab.net.address import parse_url
from mqttquic_lab.net.certificates import Trust
from mqttquic_lab.net.open import open_connection
from tests.gateway.conftest import client, closed, gateway, newest, upstream
from tests.helpers.quic import Inbox, echo, settle

if TYPE_CHECKING:
    from tests.helpers.certs import Identities

CONNECT = Connect("x", 5, clean_start=True, keepalive=60).encode(5)
LARGE = bytes(range(256)) * 20_000
"""5 MB: more than all windows and buffers on the way together."""

SCHEMES = pytest.mark.parametrize("scheme", ["quic", "mqtts"])


@SCHEMES
async def test_bytes_both_ways_and_their_ends(scheme: str) -> None:
    async with upstream() as server, gateway(server, tls=True, tls_port=0) as front, client(front, scheme) as ours:
        here = Inbox(ours.control)
        ours.control.write(b"\x00anything at all\xff")
        there = await server.arrived()
        assert await there.read(17) == b"\x00anything at all\xff"
        there.stream.write(b"answer")
        assert await here.read(6) == b"answer"
        [info] = front.clients()
        assert (info.transport, info.streams[0].state) == ("quic" if scheme == "quic" else "tls", "open")
        assert info.streams[0].local_port == there.stream.connection.peer_address[1]
        # One half ends, the other goes on.
        ours.control.end()
        await there.until(lambda: there.ended)
        assert not here.ended
        there.stream.write(b"after the end")
        assert await here.read(13) == b"after the end"
        there.stream.end()
        await here.until(lambda: here.ended)
        await closed(ours)  # no stream is left
        await front.wait_for(lambda: not front.clients())
        stats = front.stats()
        assert (stats.bytes_to_broker, stats.bytes_from_broker, stats.ended) == (17, 19, 1)
        assert (stats.streams_total, stats.client_resets, stats.upstream_resets) == (1, 0, 0)
        assert not front.errors


async def test_the_brokers_end_comes_first() -> None:
    async with upstream() as server, gateway(server) as front, client(front) as ours:
        here = Inbox(ours.control)
        ours.control.write(b"x")
        there = await server.arrived()
        there.stream.write(b"bye")
        there.stream.end()
        await here.until(lambda: here.ended)
        assert bytes(here.data) == b"bye"
        ours.control.write(b"still here")
        assert await there.read(11) == b"xstill here"
        ours.control.end()
        await there.until(lambda: there.ended)
        await closed(ours)
        assert ours.close_info.error_code == codes.NORMAL


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_large_load_both_ways(identities: Identities, encrypted: bool) -> None:
    async with upstream(identities if encrypted else None) as server:
        server.on_stream = echo
        options = {"verify": False} if encrypted else {}
        async with gateway(server, **options) as front, client(front) as ours:
            here = Inbox(ours.control)
            ours.control.write(LARGE)
            ours.control.end()
            await here.until(lambda: here.ended)
            assert bytes(here.data) == LARGE
            assert front.stats().bytes_to_broker == front.stats().bytes_from_broker == len(LARGE)


async def test_a_slow_client_stops_the_broker() -> None:
    async with upstream() as server, gateway(server) as front, client(front) as ours:
        here = Inbox(ours.control)
        ours.control.write(b"x")
        there = await server.arrived()
        ours.control.pause_reading()
        there.stream.write(LARGE * 4)
        await settle(lambda: front.stats().pauses > 0)
        held = front.stats()
        assert held.pending < 3_000_000
        assert there.stream.pending > len(LARGE)  # what is not taken stays with the broker
        ours.control.resume_reading()
        assert await here.read(len(LARGE) * 4) == LARGE * 4


async def test_a_slow_broker_stops_the_client() -> None:
    async with upstream() as server, gateway(server) as front, client(front) as ours:
        ours.control.write(b"x")
        there = await server.arrived()
        await there.read(1)
        there.stream.pause_reading()
        ours.control.write(LARGE * 4)
        await settle(lambda: front.stats().pauses > 0)
        assert front.stats().pending < 3_000_000
        assert ours.control.pending > len(LARGE)
        there.stream.resume_reading()
        assert await there.read(len(LARGE) * 4) == LARGE * 4


@SCHEMES
async def test_a_reset_of_the_client(scheme: str) -> None:
    async with upstream() as server, gateway(server, tls=True, tls_port=0) as front, client(front, scheme) as ours:
        ours.control.write(b"x")
        there = await server.arrived()
        await there.read(1)
        ours.control.reset(7)
        await there.until(lambda: there.reset_code is not None)  # RST
        await front.wait_for(lambda: not front.clients())
        assert front.stats().client_resets == 1


async def test_a_client_that_closes_in_order() -> None:
    async with upstream() as server, gateway(server) as front, client(front) as ours:
        ours.control.write(b"last words")
        await ours.close(0)  # perhaps before there is a connection to the broker
        there = await server.arrived()
        assert await there.read(10) == b"last words"
        await there.until(lambda: there.ended)
        there.stream.write(b"nobody reads this")
        there.stream.end()
        await front.wait_for(lambda: not front.clients())
        assert there.reset_code is None
        assert (front.stats().ended, front.stats().client_resets) == (1, 0)


async def test_what_a_client_left_behind_reaches_a_slow_broker() -> None:
    async with upstream() as server, gateway(server) as front, client(front) as ours:
        ours.control.write(b"x")
        there = await server.arrived()
        await there.read(1)
        there.stream.pause_reading()
        ours.control.write(LARGE * 4)
        await settle(lambda: front.stats().pauses > 0)
        sent = front.stats().bytes_to_broker
        await ours.close(0)
        await front.wait_for(lambda: front.clients()[0].streams[0].state == "client left")
        there.stream.resume_reading()
        await there.until(lambda: there.ended)
        assert len(there.data) > sent  # all that was acknowledged to the client
        assert there.data == (LARGE * 4)[: len(there.data)]
        there.stream.end()
        await front.wait_for(lambda: not front.clients())
        assert front.stats().client_resets == 0


async def test_a_client_that_is_gone_when_its_last_stream_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "SILENCE", 0.05)
    async with upstream() as server, gateway(server) as front, client(front) as ours:
        ours.control.write(b"x")
        ours.control.end()
        there = await server.arrived()
        await there.until(lambda: there.ended)
        ours.receive = lambda *_: None  # deaf, so that nothing is acknowledged
        there.stream.write(b"bye")
        there.stream.end()
        await front.wait_for(lambda: not front.clients())
        assert front.stats().ended == 1


async def test_a_client_leaves_with_much_on_its_way_to_it() -> None:
    async with upstream() as server, gateway(server) as front, client(front) as ours:
        ours.control.write(b"x")
        there = await server.arrived()
        ours.control.pause_reading()
        there.stream.write(LARGE * 4)
        await settle(lambda: front.stats().pauses > 0)
        await ours.close(0)
        await there.until(lambda: there.ended)
        there.stream.end()
        await front.wait_for(lambda: not front.clients())
        assert (front.stats().ended, front.stats().client_resets) == (1, 0)


async def test_a_broker_that_never_takes_what_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "FAREWELL", 0.05)
    async with upstream() as server, gateway(server) as front, client(front) as ours:
        ours.control.write(b"x")
        there = await server.arrived()
        await there.read(1)
        await ours.close(0)
        await there.until(lambda: there.ended)  # and does nothing about it
        await front.wait_for(lambda: not front.clients())
        assert front.stats().client_resets == 1
        assert "did not take" in newest(front).message


async def test_a_client_that_breaks_off() -> None:
    async with upstream() as server, gateway(server) as front, client(front) as ours:
        ours.control.write(b"x")
        there = await server.arrived()
        await there.read(1)
        await ours.close(0x15, "had enough")
        await there.until(lambda: there.reset_code is not None)
        assert front.stats().client_resets == 1
        assert "had enough" in newest(front).message


async def test_a_broker_that_breaks_off() -> None:
    async with upstream() as server, gateway(server) as front, client(front) as ours:
        ours.control.write(b"x")
        there = await server.arrived()
        await there.read(1)
        there.stream.reset()
        assert "broke the connection off" in str(await closed(ours))
        assert ours.close_info.error_code == codes.UNSPECIFIED
        assert front.stats().upstream_resets == 1
        assert "reset" in newest(front).message


async def test_a_broker_that_is_not_there(free_port: int) -> None:
    async with gateway(f"mqtt://127.0.0.1:{free_port}") as front:
        async with client(front) as ours:
            ours.control.write(b"x")
            assert "cannot be reached" in str(await closed(ours))
            assert ours.close_info.error_code == codes.SERVER_UNAVAILABLE
        assert front.stats().upstream_failures == 1
        assert "nothing listens" in newest(front).message


async def test_a_broker_that_is_not_trusted(identities: Identities) -> None:
    async with upstream(identities) as server, gateway(server) as front:
        async with client(front) as ours:
            ours.control.write(b"x")
            await closed(ours)
            assert ours.close_info.error_code == codes.SERVER_UNAVAILABLE
        assert "certificate" in newest(front).message


# --- several streams


async def test_each_stream_is_a_connection_of_its_own() -> None:
    async with upstream() as server, gateway(server) as front, client(front) as ours:
        ours.control.write(CONNECT)
        first = await server.arrived()
        further = ours.open_stream()
        here = Inbox(further)
        further.write(CONNECT)
        second = await server.arrived()
        assert await first.read(len(CONNECT)) == await second.read(len(CONNECT)) == CONNECT
        second.stream.write(b"for the second")
        assert await here.read(14) == b"for the second"
        [info] = front.clients()
        assert [stream.stream_id for stream in info.streams] == [0, 4]
        # The end of one is not that of the other.
        second.stream.reset()
        await here.until(lambda: here.reset_code is not None)
        assert here.reset_code == codes.UNSPECIFIED
        first.stream.write(b"alive")
        assert await Inbox(ours.control).read(5) == b"alive"


async def test_a_data_stream_is_refused() -> None:
    async with upstream() as server, gateway(server) as front, client(front) as ours:
        ours.control.write(CONNECT)
        first = await server.arrived()
        data_stream = ours.open_stream()
        here = Inbox(data_stream)
        data_stream.write(b"\x30\x03\x00\x01a")  # PUBLISH
        await here.until(lambda: here.reset_code is not None)
        assert here.reset_code == codes.STREAM_TYPE
        assert (front.stats().streams_refused, front.stats().streams) == (1, 1)
        assert "CONNECT" in newest(front).message
        first.stream.write(b"alive")
        assert await Inbox(ours.control).read(5) == b"alive"
        assert server.is_idle


async def test_no_unidirectional_streams() -> None:
    async with upstream() as server, gateway(server, max_streams=3) as front, client(front) as ours:
        assert (ours.stream_credit(unidirectional=True), ours.stream_credit()) == (0, 3)


async def test_too_many_connections_to_the_broker() -> None:
    async with upstream() as server, gateway(server, max_upstream=1) as front, client(front) as ours:
        ours.control.write(b"x")
        await server.arrived()
        async with client(front) as another:
            another.control.write(b"x")
            assert "too many" in str(await closed(another))
            assert another.close_info.error_code == codes.QUOTA_EXCEEDED
        assert front.stats().streams_refused == 1
        assert server.is_idle


async def test_a_client_that_says_nothing() -> None:
    async with upstream() as server, gateway(server, connect_timeout=0.05) as front, client(front) as ours:
        await closed(ours)
        assert ours.close_info.error_code == codes.CONNECT_TIMEOUT
        assert front.stats().connect_timeouts == 1
        assert server.is_idle


async def test_the_end_of_the_gateway() -> None:
    async with upstream() as server, gateway(server) as front, client(front) as ours:
        ours.control.write(b"last words")
        there = await server.arrived()
        await there.read(10)
        await front.close()
        await there.until(lambda: there.ended)
        assert "the gateway closes" in str(await closed(ours))
        assert ours.close_info.error_code == codes.SHUTTING_DOWN
        assert not front.clients()
        await front.close()


async def test_too_many_clients() -> None:
    options = {"quic": False, "tls": True, "tls_port": 0, "max_connections": 1}
    async with upstream() as server, gateway(server, **options) as front, client(front, "mqtts") as ours:
        ours.control.write(b"x")
        await server.arrived()
        with pytest.raises(ConnectionError):
            await open_connection(parse_url(front.url), trust=Trust(ca_file=front.ca_file))
        assert front.stats().connections_refused == 1
