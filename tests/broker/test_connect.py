"""CONNECT and CONNACK: identifiers, credentials, limits told, keep-alive."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.errors import UnknownOptionError, UsageError
from mqttquic_lab.mqtt import ConnAck, Connect, Disconnect, PubAck, Publish

if TYPE_CHECKING:
    from mqttquic_lab.mqtt import Version
    from tests.broker.conftest import Bench, MakeBench


async def test_connack_tells_the_limits(make_bench: MakeBench) -> None:
    bench = await make_bench(max_inflight=20, max_packet_size=5000, topic_alias_maximum=8)
    answer = await bench.attach().connect("x")
    assert not answer.session_present
    assert dict(answer.properties) == {
        "receive_maximum": 20,
        "maximum_packet_size": 5000,
        "topic_alias_maximum": 8,
        "shared_subscription_available": 1,
    }


async def test_an_identifier_is_assigned(bench: Bench) -> None:
    first, second = bench.attach(), bench.attach()
    ids = [(await peer.connect("")).properties["assigned_client_identifier"] for peer in (first, second)]
    assert len(set(ids)) == 2
    assert [client.client_id for client in bench.server.clients()] == ids
    older = bench.attach(4)
    assert (await older.connect("")).reason_code == 0


async def test_311_without_identifier_needs_a_clean_session(bench: Bench) -> None:
    peer = bench.attach(4)
    packet = Connect("x", 4, keepalive=0).encode()
    flags = packet[9] & ~2
    packet = packet[:1] + bytes((packet[1] - 1,)) + packet[2:9] + bytes((flags,)) + packet[10:12] + b"\0\0"
    peer.send(packet)
    answer = await peer.expect(ConnAck)
    assert answer.reason_code == 0x85
    assert answer.raw == b"\x20\x02\x00\x02"
    await peer.closed()


@pytest.mark.parametrize(
    ("username", "password", "code"),
    [("ann", b"secret", 0), ("ann", b"wrong", 0x86), ("bob", b"secret", 0x86), (None, None, 0x86), ("ann", None, 0x86)],
)
@pytest.mark.parametrize("version", [4, 5])
async def test_users(
    make_bench: MakeBench, version: Version, username: str | None, password: bytes | None, code: int
) -> None:
    bench = await make_bench(users={"ann": "secret", "eve": ""})
    peer = bench.attach(version)
    answer = await peer.connect("x", username=username, password=password)
    assert answer.reason_code == code
    if code:
        assert await peer.closed() == []
        assert bench.server.stats().connects_refused == 1
        assert bench.server.clients() == []
    else:
        assert bench.server.clients()[0].username == "ann"


async def test_no_password_is_not_the_empty_one(make_bench: MakeBench) -> None:
    bench = await make_bench(users={"eve": ""})
    assert (await bench.attach().connect("x", username="bob")).reason_code == 0x86


@pytest.mark.parametrize(
    ("verdict", "code"), [(True, 0), (0, 0), (False, 0x87), (0x8A, 0x8A), (0x10, 0x87), (7777, 0x87)]
)
async def test_authenticate_function(make_bench: MakeBench, verdict: bool | int, code: int) -> None:
    asked: list[Any] = []

    def authenticate(*credentials: Any) -> bool | int:
        asked.append(credentials)
        return verdict

    bench = await make_bench(authenticate=authenticate)
    answer = await bench.attach().connect("x", username="u", password=b"p")
    assert answer.reason_code == code
    assert asked == [("x", "u", b"p")]


async def test_authenticate_may_be_async_and_packets_wait_for_it(make_bench: MakeBench) -> None:
    decision: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def authenticate(client_id: str, username: str | None, password: bytes | None) -> bool:
        return await decision if client_id == "slow" else True

    bench = await make_bench(authenticate=authenticate)
    slow = bench.attach()
    slow.send(Connect("slow", keepalive=0).encode() + Publish("a", b"x", 1, packet_id=1).encode())
    slow.send(Publish("a", b"y"))
    other = await bench.join("other")
    await other.subscribe("a")
    assert not slow.inbox
    assert bench.server.stats().messages_in == 0
    decision.set_result(True)
    assert (await slow.expect(ConnAck)).reason_code == 0
    await slow.expect(PubAck)
    assert [(await other.message()).payload for _ in range(2)] == [b"x", b"y"]


async def test_a_client_that_leaves_while_it_is_judged(make_bench: MakeBench) -> None:
    decision: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def authenticate(*_: object) -> bool:
        return await decision

    bench = await make_bench(authenticate=authenticate)
    peer = bench.attach()
    peer.send(Connect("x", keepalive=0))
    await bench.server.wait_for(lambda: bench.server.stats().bytes_in)
    await peer.vanish()
    await bench.server.wait_for(lambda: bench.server.stats().connections == 0)
    await asyncio.sleep(0)
    assert decision.cancelled()
    assert bench.server.stats().sessions == 0


async def test_a_verdict_that_does_not_come(make_bench: MakeBench) -> None:
    async def authenticate(*_: object) -> bool:
        await asyncio.get_running_loop().create_future()
        return True

    bench = await make_bench(authenticate=authenticate)
    impatient, waiting = bench.attach(), bench.attach()
    impatient.send(Connect("x", keepalive=0))
    await bench.server.wait_for(lambda: bench.server.stats().bytes_in)
    bench.clock.advance(10)
    await impatient.closed()
    assert bench.server.stats().connect_timeouts == 2
    await waiting.closed()
    third = bench.attach()
    third.send(Connect("y", keepalive=0))
    async with asyncio.timeout(5):
        await bench.server.close()  # does not wait for it either


async def test_an_authenticate_function_that_fails_lets_nobody_in(make_bench: MakeBench) -> None:
    async def authenticate(*_: object) -> bool:
        raise RuntimeError("a bug of the user's")

    def authenticate_at_once(*_: object) -> bool:
        raise RuntimeError("a bug of the user's")

    for function in (authenticate, authenticate_at_once):
        bench = await make_bench(authenticate=function)
        peer = bench.attach()
        assert (await peer.connect("x")).reason_code == 0x80
        await peer.closed()
        assert bench.server.stats().sessions == 0


async def test_enhanced_authentication_is_refused(bench: Bench) -> None:
    answer = await bench.attach().connect("x", authentication_method="SCRAM-SHA-1")
    assert answer.reason_code == 0x8C


async def test_auth_is_a_protocol_error(bench: Bench) -> None:
    peer = await bench.join("x")
    peer.send(b"\xf0\x02\x18\x00")
    assert [p.reason_code for p in await peer.closed() if isinstance(p, Disconnect)] == [0x82]


@pytest.mark.parametrize("version", [4, 5])
async def test_keep_alive_is_one_and_a_half(bench: Bench, version: Version) -> None:
    peer = await bench.join("x", version, keepalive=10)
    for _ in range(3):
        bench.clock.advance(14.9)
        assert await peer.sync() == []
    bench.clock.advance(15)
    packets = await peer.closed()
    assert [p.reason_code for p in packets if isinstance(p, Disconnect)] == ([0x8D] if version == 5 else [])
    assert bench.server.stats().keepalive_timeouts == 1


async def test_without_keep_alive_silence_is_fine(bench: Bench) -> None:
    peer = await bench.join("x", keepalive=0)
    bench.clock.advance(1_000_000)
    assert await peer.sync() == []


async def test_the_longest_keep_alive_is_ours_to_say(make_bench: MakeBench) -> None:
    bench = await make_bench(max_keepalive=30)
    for wanted, told in ((60, 30), (0, 30), (20, None)):
        answer = await bench.attach().connect(f"x{wanted}", keepalive=wanted)
        assert answer.properties.get("server_keep_alive") == told
    assert [client.keepalive for client in bench.server.clients()] == [30, 30, 20]
    bench.clock.advance(45)
    await bench.server.wait_for(lambda: not bench.server.clients())


async def test_who_is_connected_over_what(bench: Bench) -> None:
    peer = await bench.join("x", keepalive=33, session_expiry_interval=44, clean_start=False)
    await peer.subscribe("a/#", "b")
    older = await bench.join("y", 4)
    first, second = bench.server.clients()
    assert (first.client_id, first.version, first.transport, first.keepalive) == ("x", "5.0", "tcp", 33)
    assert (first.session_expiry_interval, first.clean_start, first.subscriptions) == (44, False, ("a/#", "b"))
    assert first.address == ("192.0.2.1", 50000)
    assert (second.client_id, second.version, second.clean_start) == ("y", "3.1.1", True)
    await older.leave()
    await bench.server.wait_for(lambda: len(bench.server.clients()) == 1)


async def test_the_end_of_the_control_stream_ends_the_client(bench: Bench) -> None:
    peer = await bench.join("x")
    peer.connection.control.end()
    await peer.closed()
    assert bench.server.clients() == []


async def test_the_number_of_connections_is_bounded(make_bench: MakeBench) -> None:
    bench = await make_bench(max_connections=2)
    first, second = await bench.join("a"), await bench.join("b")
    third = bench.attach()
    await third.closed()
    assert bench.server.stats().connections_refused == 1
    await first.leave()
    await bench.server.wait_for(lambda: bench.server.stats().connections == 1)
    await bench.join("c")
    assert await second.sync() == []


@pytest.mark.parametrize(
    "options",
    [
        {"max_connections": 0}, {"max_inflight": 70000}, {"max_packet_size": 1}, {"tcp_port": 70000},
        {"connect_timeout": 0}, {"tuning": "fast"}, {"users": {}, "authenticate": print}, {"max_retained": -1},
        {"users": {"ann": 7}},
    ],
)  # fmt: skip
def test_settings_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        BrokerConfig(**options)


def test_a_misspelt_setting_is_corrected() -> None:
    with pytest.raises(UnknownOptionError, match="did you mean 'max_retained'"):
        BrokerConfig.from_options("start_broker", max_retaind=3)
    assert BrokerConfig.from_options(max_retained=3).max_retained == 3


def test_secrets_are_in_no_repr() -> None:
    assert "geheim" not in repr(BrokerConfig(users={"ann": "geheim"}))
