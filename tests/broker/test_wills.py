"""Wills: published when a client is lost, not when it leaves; delayed, cancelled, bounded by the session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.mqtt import Publish, Will

if TYPE_CHECKING:
    from mqttquic_lab.mqtt import Packet, Version
    from tests.broker.conftest import Bench
    from tests.broker.peer import Peer


@pytest.fixture
async def watcher(bench: Bench) -> Peer:
    """A client subscribed to all wills."""
    peer = await bench.join("watcher")
    await peer.subscribe("will/#", qos=2)
    return peer


async def gone(bench: Bench, client_id: str) -> None:
    await bench.server.wait_for(lambda: client_id not in {client.client_id for client in bench.server.clients()})


def payloads(packets: list[Packet]) -> list[bytes]:
    return [packet.payload for packet in packets if isinstance(packet, Publish)]


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_a_lost_connection_publishes_the_will(bench: Bench, watcher: Peer, version: Version, qos: int) -> None:
    peer = await bench.join("x", version, will=Will("will/x", b"gone", qos))
    await peer.vanish()
    message = await watcher.message()
    assert (message.topic, message.payload, message.qos) == ("will/x", b"gone", qos)
    assert bench.server.stats().wills_published == 1


@pytest.mark.parametrize("version", [4, 5])
async def test_disconnect_removes_it(bench: Bench, watcher: Peer, version: Version) -> None:
    peer = await bench.join("x", version, will=Will("will/x", b"gone"))
    await peer.leave()
    await gone(bench, "x")
    assert await watcher.sync() == []


@pytest.mark.parametrize("code", [0x04, 0x80])
async def test_disconnect_with_will_message_keeps_it(bench: Bench, watcher: Peer, code: int) -> None:
    peer = await bench.join("x", will=Will("will/x", b"gone"))
    await peer.leave(code)
    assert (await watcher.message()).payload == b"gone"


async def test_a_protocol_error_publishes_it(bench: Bench, watcher: Peer) -> None:
    peer = await bench.join("x", will=Will("will/x", b"gone"))
    peer.send(b"\xf8\x00")
    await peer.closed()
    assert (await watcher.message()).payload == b"gone"


async def test_keep_alive_timeout_publishes_it(bench: Bench, watcher: Peer) -> None:
    peer = await bench.join("x", keepalive=10, will=Will("will/x", b"gone"))
    bench.clock.advance(14)
    assert await watcher.sync() == []
    bench.clock.advance(1)
    assert (await watcher.message()).payload == b"gone"
    await peer.closed()


async def test_a_retained_will_stays(bench: Bench) -> None:
    peer = await bench.join("x", will=Will("will/x", b"gone", retain=True, properties={"content_type": "t"}))
    await peer.vanish()
    await gone(bench, "x")
    late = await bench.join("late")
    await late.subscribe("will/x")
    message = await late.message()
    assert message.retain
    assert dict(message.properties) == {"content_type": "t"}


def delayed(delay: int) -> Will:
    return Will("will/x", b"gone", properties={"will_delay_interval": delay})


async def test_a_delayed_will_waits(bench: Bench, watcher: Peer) -> None:
    peer = await bench.join("x", session_expiry_interval=100, will=delayed(30))
    await peer.vanish()
    await gone(bench, "x")
    bench.clock.advance(29)
    assert await watcher.sync() == []
    bench.clock.advance(1)
    assert (await watcher.message()).payload == b"gone"
    bench.clock.advance(100)
    assert await watcher.sync() == []


async def test_coming_back_in_time_cancels_it(bench: Bench, watcher: Peer) -> None:
    peer = await bench.join("x", session_expiry_interval=100, will=delayed(30))
    await peer.vanish()
    await gone(bench, "x")
    bench.clock.advance(29)
    await bench.join("x", clean_start=False)
    bench.clock.advance(100)
    assert await watcher.sync() == []


async def test_coming_back_with_a_clean_start_publishes_it(bench: Bench, watcher: Peer) -> None:
    """The session ends, and with it the delay (MQTT 5.0 section 3.1.3.2.2)."""
    peer = await bench.join("x", session_expiry_interval=100, will=delayed(30))
    await peer.vanish()
    await gone(bench, "x")
    await bench.join("x")
    assert (await watcher.message()).payload == b"gone"


async def test_the_end_of_the_session_ends_the_delay(bench: Bench, watcher: Peer) -> None:
    peer = await bench.join("x", session_expiry_interval=10, will=delayed(30))
    await peer.vanish()
    await gone(bench, "x")
    bench.clock.advance(10)
    assert (await watcher.message()).payload == b"gone"


async def test_without_a_session_to_come_back_to_there_is_no_delay(bench: Bench, watcher: Peer) -> None:
    peer = await bench.join("x", will=delayed(30))
    await peer.vanish()
    assert (await watcher.message()).payload == b"gone"


@pytest.mark.parametrize(
    ("clean_start", "delay", "published"), [(True, 0, 1), (False, 0, 1), (False, 30, 0), (True, 30, 1)]
)
async def test_take_over(bench: Bench, watcher: Peer, clean_start: bool, delay: int, published: int) -> None:
    await bench.join("x", session_expiry_interval=100, will=delayed(delay))
    await bench.join("x", clean_start=clean_start)
    assert payloads(await watcher.sync()) == [b"gone"] * published


async def test_a_will_reaches_its_own_session(bench: Bench) -> None:
    peer = await bench.join("x", session_expiry_interval=100, will=Will("will/x", b"gone", 1))
    await peer.subscribe("will/x", qos=1)
    await peer.vanish()
    await gone(bench, "x")
    back = await bench.join("x", clean_start=False)
    assert (await back.message()).payload == b"gone"


async def test_closing_the_broker_publishes_none(bench: Bench, watcher: Peer) -> None:
    await bench.join("x", will=Will("will/x", b"gone"))
    await bench.server.close()
    assert payloads(await watcher.closed()) == []
