"""TCP and TLS connections over real sockets: data, back-pressure, the end, and what must not leak."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, cast

import pytest

from mqttquic_lab.errors import DisconnectedError, LabError, ProtocolError
from mqttquic_lab.net.tcp import HIGH_WATER, TcpConnection
from tests.helpers.sockets import HANG, Owner, connect, open_sockets, pair, serving, settle

if TYPE_CHECKING:
    from mqttquic_lab.net.stream import ByteStream, Connection, TransportName
    from tests.helpers.certs import Identities

BOTH = pytest.mark.parametrize("transport", ["tcp", "tls"])


async def ended(connection: Connection) -> LabError | None:
    """Return why a connection closed."""
    async with asyncio.timeout(HANG):
        return await asyncio.shield(connection.closed)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@BOTH
@pytest.mark.parametrize(
    "host", ["127.0.0.1", pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6")), "localhost"]
)
async def test_bytes_go_both_ways(transport: TransportName, host: str, identities: Identities) -> None:
    async with pair(transport, identities, host=host) as (client, there, here, far):
        client.control.write(b"hello")
        assert await far.received(5) == b"hello"
        there.control.write(b"world")
        assert await here.received(5) == b"world"
        assert client.transport == there.transport == transport
        assert client.control.id is None
        assert client.peer_address == there.local_address
        assert client.local_address == there.peer_address
        if host != "localhost":
            assert client.peer_address[0] == host


@BOTH
async def test_big_writes_arrive_whole(transport: TransportName, identities: Identities) -> None:
    payload = bytes(range(256)) * 12_000
    async with pair(transport, identities) as (client, _, _, far):
        client.control.write(payload)
        assert await far.received(len(payload)) == payload


@BOTH
async def test_no_delay_is_set_on_both_ends(transport: TransportName, identities: Identities) -> None:
    async with pair(transport, identities) as (client, there, _, _):
        for connection in (client, there):
            sock = cast("Any", connection)._sock
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


@BOTH
async def test_small_writes_of_one_tick_leave_together(transport: TransportName, identities: Identities) -> None:
    async with pair(transport, identities) as (client, _, _, far):
        raw: list[bytes] = []
        send_raw = client.send_raw  # type: ignore[attr-defined]

        def spy(data: bytes) -> None:
            raw.append(data)
            send_raw(data)

        client.send_raw = spy  # type: ignore[attr-defined]
        for number in range(100):
            client.control.write(b"%03d" % number)
        assert raw == [], "nothing leaves before the end of the tick"
        assert client.control.pending == 300
        assert (await far.received(300))[-3:] == b"099"
        assert len(raw) == 1
        if transport == "tls":
            # One record: type application_data, version, length (RFC 8446 section 5.1).
            assert raw[0][0] == 23
            assert int.from_bytes(raw[0][3:5], "big") == len(raw[0]) - 5
        client.control.write(b"!")
        await far.received(301)
        assert len(raw) == 2


@BOTH
async def test_drain_waits_for_a_slow_reader(transport: TransportName, identities: Identities) -> None:
    chunk = bytes(64 * 1024)
    async with pair(transport, identities) as (client, there, _, far):
        there.control.pause_reading()
        written = 0

        async def write_until_full() -> None:
            nonlocal written
            while written < 64 * 1024 * 1024:
                client.control.write(chunk)
                written += len(chunk)
                await client.control.drain()

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(write_until_full(), 0.5)
        assert client.control.pending > HIGH_WATER
        assert client.control.pending < HIGH_WATER + 4 * len(chunk), "what waits is bounded"
        assert written < 64 * 1024 * 1024
        before = len(far.data)
        await settle()
        assert len(far.data) == before, "a paused stream delivers nothing"
        waiting = asyncio.create_task(client.control.drain())
        there.control.resume_reading()
        async with asyncio.timeout(HANG):
            await waiting
        assert client.control.pending <= HIGH_WATER
        assert len(await far.received(written)) == written


@BOTH
async def test_drain_raises_when_the_end_comes_first(transport: TransportName, identities: Identities) -> None:
    async with pair(transport, identities) as (client, there, _, _):
        there.control.pause_reading()
        while client.control.pending <= HIGH_WATER:
            client.control.write(bytes(1024 * 1024))
        waiting = asyncio.create_task(client.control.drain())
        await settle()
        assert not waiting.done()
        client.abort("test ends it")
        with pytest.raises(DisconnectedError, match="test ends it"):
            await waiting
        with pytest.raises(DisconnectedError, match="test ends it"):
            await client.control.drain()


@BOTH
async def test_pausing_inside_on_data(transport: TransportName, identities: Identities) -> None:
    """The reader takes one chunk at a time; what arrives meanwhile waits."""
    async with serving(transport, identities, on_stream=lambda stream: None) as server:
        client = await connect(server, identities)
        there = await server.connected()
        got = bytearray()
        news = asyncio.Event()

        def on_data(data: bytes) -> None:
            got.extend(data)
            there.control.pause_reading()
            news.set()

        there.control.on_data = on_data
        payload = bytes(range(256)) * 8000
        client.control.write(payload)
        async with asyncio.timeout(HANG):
            while len(got) < len(payload):
                await news.wait()
                news.clear()
                size = len(got)
                await settle()
                assert len(got) == size
                there.control.resume_reading()
        assert got == payload
        await client.close()


@BOTH
async def test_data_that_comes_before_its_owner_is_kept(transport: TransportName, identities: Identities) -> None:
    """A server that speaks first, and a client whose owner takes its time."""

    def greet(stream: ByteStream) -> None:
        stream.write(b"first")
        stream.end()

    async with serving(transport, identities, on_stream=greet) as server:
        client = await connect(server, identities)
        async with asyncio.timeout(HANG):
            while not cast("Any", client.control)._held:
                await asyncio.sleep(0)
        await settle()
        assert not client.is_closed
        owner = Owner(client.control)
        assert await owner.received(5) == b"first"
        async with asyncio.timeout(HANG):
            await owner.ended.wait()
        assert isinstance(await ended(client), DisconnectedError)


@BOTH
async def test_local_close_is_orderly(transport: TransportName, identities: Identities) -> None:
    payload = bytes(500_000)
    async with pair(transport, identities) as (client, there, here, far):
        client.control.write(payload)
        async with asyncio.timeout(HANG):
            await client.close()
            await client.close()
        assert client.is_closed
        assert client.closed.result() is None
        assert client.report.state == "closed"
        assert len(await far.received(len(payload))) == len(payload), "what was written before close() arrives"
        reason = await ended(there)
        assert isinstance(reason, DisconnectedError)
        assert "the peer closed the connection" in str(reason)
        assert far.ended.is_set()
        assert far.resets == here.resets == []
        client.control.write(b"too late")
        client.control.end()
        client.control.pause_reading()
        client.control.resume_reading()
        assert client.control.pending == 0
        with pytest.raises(DisconnectedError, match="closed by us"):
            await client.control.drain()


@BOTH
async def test_close_while_the_peer_keeps_sending(transport: TransportName, identities: Identities) -> None:
    """Unread input must not turn our close into a reset that destroys our last words."""
    async with pair(transport, identities) as (client, there, here, far):
        client.control.pause_reading()
        there.control.write(bytes(300_000))
        await settle(20)
        client.control.write(b"last words")
        async with asyncio.timeout(HANG):
            await client.close()
        assert await far.received(10) == b"last words"
        assert len(here.data) == 0
        assert far.resets == []
        assert isinstance(await ended(there), DisconnectedError)


@BOTH
async def test_close_is_bounded_when_the_peer_does_not_read(transport: TransportName, identities: Identities) -> None:
    async with pair(transport, identities) as (client, there, _, _):
        there.control.pause_reading()
        while client.control.pending <= HIGH_WATER:
            client.control.write(bytes(1024 * 1024))
            await settle()
        async with asyncio.timeout(HANG):
            await client.close()
        assert client.closed.result() is None


@BOTH
async def test_end_lets_the_peer_answer(transport: TransportName, identities: Identities) -> None:
    async with serving(transport, identities, on_stream=lambda stream: None) as server:
        client = await connect(server, identities)
        owner = Owner(client.control)
        there = await server.connected()
        far = Owner(there.control)
        there.control.on_end = lambda: there.control.write(b"answer to " + bytes(far.data))
        client.control.write(b"question")
        client.control.end()
        client.control.end()
        client.control.write(b"not sent")
        assert await owner.received(18) == b"answer to question"
        async with asyncio.timeout(HANG):
            await owner.ended.wait()
        assert await ended(client) is None, "both sides ended in order"


@BOTH
async def test_reset(transport: TransportName, identities: Identities) -> None:
    async with pair(transport, identities) as (client, there, here, far):
        client.control.reset(5)
        assert isinstance(await ended(client), DisconnectedError)
        reason = await ended(there)
        assert isinstance(reason, DisconnectedError)
        assert "reset" in str(reason)
        assert far.resets == [0]
        assert not far.ended.is_set()
        assert here.resets == []


@BOTH
async def test_abort(transport: TransportName, identities: Identities) -> None:
    async with pair(transport, identities) as (client, there, _, _):
        client.abort("enough")
        client.abort("again")
        reason = await ended(client)
        assert isinstance(reason, DisconnectedError)
        assert str(reason) == "enough"
        assert client.report.error == "enough"
        assert isinstance(await ended(there), DisconnectedError)


@BOTH
@pytest.mark.parametrize("callback", ["on_data", "on_end"])
async def test_a_failing_callback_ends_its_connection_only(
    transport: TransportName, callback: str, identities: Identities
) -> None:
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))

    def on_stream(stream: ByteStream) -> None:
        def fail(*_: object) -> None:
            raise ZeroDivisionError("a bug")

        def poisonous(data: bytes) -> None:
            if data == b"poison":
                fail()
            stream.write(data)

        stream.on_data = poisonous
        if callback == "on_end":
            stream.on_end = fail

    async with serving(transport, identities, on_stream=on_stream) as server:
        bystander = await connect(server, identities)
        near = Owner(bystander.control)
        victim = await connect(server, identities)
        there = await server.connected(2)
        if callback == "on_data":
            victim.control.write(b"poison")
        else:
            victim.control.end()
        reason = await ended(there)
        assert isinstance(reason, DisconnectedError)
        assert f"{callback} callback raised ZeroDivisionError: a bug" in str(reason)
        assert isinstance(reason.__cause__, ZeroDivisionError)
        assert isinstance(problems[0]["exception"], ZeroDivisionError)
        bystander.control.write(b"still here")
        assert await near.received(10) == b"still here"
        third = await connect(server, identities)
        for connection in (bystander, victim, third):
            await connection.close()


@BOTH
async def test_a_lab_error_from_a_callback_is_the_reason(transport: TransportName, identities: Identities) -> None:
    async with pair(transport, identities) as (client, there, _, _):
        error = ProtocolError("a broken rule")

        def refuse(_: bytes) -> None:
            raise error

        there.control.on_data = refuse
        client.control.write(b"x")
        assert await ended(there) is error


@BOTH
async def test_failing_on_connection_does_not_stop_the_listener(
    transport: TransportName, identities: Identities
) -> None:
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    async with serving(transport, identities) as server:
        accept = server.listener._on_connection  # type: ignore[attr-defined]

        def refuse(_: Connection) -> None:
            raise ZeroDivisionError("a bug")

        server.listener._on_connection = refuse  # type: ignore[attr-defined]
        client = await connect(server, identities)
        Owner(client.control)
        assert isinstance(await ended(client), DisconnectedError)
        assert isinstance(problems[0]["exception"], ZeroDivisionError)
        server.listener._on_connection = accept  # type: ignore[attr-defined]
        again = await connect(server, identities)
        await server.connected()
        await again.close()


@BOTH
async def test_listener_close_ends_everything(transport: TransportName, identities: Identities) -> None:
    before = open_sockets()
    async with serving(transport, identities) as server:
        clients = [await connect(server, identities) for _ in range(5)]
        for client in clients:
            Owner(client.control)
        await server.connected(5)
        assert len(server.listener.connections) == 5
        async with asyncio.timeout(HANG):
            await server.listener.close()
            await server.listener.close()
        assert server.listener.connections == ()
        assert all(connection.is_closed for connection in server.connections)
        for client in clients:
            assert isinstance(await ended(client), DisconnectedError)
        with pytest.raises(LabError):
            await connect(server, identities)
    await settle()
    assert open_sockets() <= before


@BOTH
async def test_too_many_connections_are_refused_and_counted(transport: TransportName, identities: Identities) -> None:
    async with serving(transport, identities, max_connections=2) as server:
        clients = [await connect(server, identities) for _ in range(2)]
        await server.connected(2)
        try:
            third = await connect(server, identities)
        except LabError:
            assert transport == "tls"
        else:
            assert transport == "tcp", "plain TCP learns of it only after its handshake"
            Owner(third.control)
            assert isinstance(await ended(third), DisconnectedError)
        assert server.listener.refused == 1
        await clients[0].close()
        await ended(server.connections[0])
        clients.append(await connect(server, identities))
        await server.connected(3)
        for client in clients:
            await client.close()


@BOTH
async def test_connections_leave_no_socket_behind(transport: TransportName, identities: Identities) -> None:
    async with serving(transport, identities) as server:
        before = open_sockets()
        for _ in range(10):
            client = await connect(server, identities)
            await client.close()
        for connection in server.connections:
            await ended(connection)
        await settle()
        assert open_sockets() <= before
        assert server.listener.connections == ()


@BOTH
async def test_trace_tells_of_data_only_in_detail(transport: TransportName, identities: Identities) -> None:
    async with pair(transport, identities) as (client, there, here, far):
        client.control.write(b"quiet")
        await far.received(5)
        client.trace.detail = there.trace.detail = True
        client.control.write(b"loud!")
        await far.received(10)
        there.control.write(b"answer")
        await here.received(6)
        assert [e.data["size"] for e in client.trace if e.name == "data_sent"] == [5]
        assert [e.data["size"] for e in there.trace if e.name == "data_received"] == [5]
        assert [e.data["size"] for e in client.trace if e.name == "data_received"] == [6]
        await client.close()
        names = [event.name for event in client.trace if event.layer == "net"]
        assert names[0] == "connected"
        assert names[-1] == "closed"


@BOTH
async def test_repr_says_what_it_is(transport: TransportName, identities: Identities) -> None:
    async with pair(transport, identities) as (client, there, _, _):
        assert isinstance(client, TcpConnection)
        assert f"{client.peer_address[1]} open" in repr(client)
        await client.close()
        assert "closed" in repr(client)
        assert "TcpListener" not in repr(there)
