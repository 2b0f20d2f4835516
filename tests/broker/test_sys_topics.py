"""``$SYS`` topics: names as mosquitto has them, figures that are right, and nobody pays who does not look."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.server import BrokerServer
from mqttquic_lab.broker.sys_topics import MAX_TOPICS, ROOT
from mqttquic_lab.errors import UsageError
from mqttquic_lab.net.address import parse_url
from mqttquic_lab.net.certificates import Trust
from mqttquic_lab.net.open import open_connection
from tests.broker.peer import Peer
from tests.helpers.peers import running

if TYPE_CHECKING:
    from pathlib import Path

    from tests.broker.conftest import Bench, MakeBench

OURS = ("quic/", "transports/")
NOT_OURS = ("heap/",)


async def figures(peer: Peer, topic_filter: str = "$SYS/#") -> dict[str, str]:
    """Return what is retained now, without the root."""
    await peer.subscribe(topic_filter)
    found: dict[str, str] = {}
    for packet in await peer.sync():
        found[packet.topic.removeprefix(ROOT)] = packet.payload.decode()  # type: ignore[attr-defined]
        assert packet.retain  # type: ignore[attr-defined]
    return found


async def test_the_figures_are_those_of_the_broker(make_bench: MakeBench) -> None:
    bench = await make_bench(sys_interval=10)
    busy = await bench.join("busy", session_expiry_interval=100)
    await busy.subscribe("a", "$share/g/b")
    other = await bench.join("other")
    await other.publish("a", b"12345", 1)
    await busy.message()
    await other.publish("a", b"123")
    await busy.message()
    await other.publish("r", b"kept", 1, retain=True)
    await busy.leave()
    bench.clock.advance(10)
    stats = bench.server.stats()
    found = await figures(other)
    expected = {
        "uptime": "10 seconds", "clients/connected": "1", "clients/active": "1", "clients/disconnected": "1",
        "clients/inactive": "1", "clients/total": "2", "clients/maximum": "2", "clients/expired": "0",
        "messages/received": "8", "messages/sent": "8", "publish/messages/received": "3",
        "publish/messages/sent": "2", "publish/bytes/received": "12", "publish/bytes/sent": "8",
        "publish/messages/dropped": "0", "retained messages/count": "1", "subscriptions/count": "2",
        "shared_subscriptions/count": "1", "store/messages/count": "1", "store/messages/bytes": "5",
        "bytes/received": str(stats.bytes_in), "bytes/sent": str(stats.bytes_out), "transports/tcp": "1",
        "transports/quic": "0",
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert found["version"].startswith("mqttquic-lab version ")
    assert len(found) < MAX_TOPICS


async def test_moving_averages_per_minute(make_bench: MakeBench) -> None:
    bench = await make_bench(sys_interval="10s")
    peer = await bench.join("x")
    for _ in range(12):
        await peer.publish("a", b"")
    bench.clock.advance(10)
    found = await figures(peer, "$SYS/broker/load/#")
    rates = [float(found[f"load/publish/received/{level}"]) for level in ("1min", "5min", "15min")]
    assert rates == [11.05, 2.36, 0.80]  # 72 a minute for ten seconds, after nothing
    bench.clock.advance(3600)
    assert bench.server.sys_topics.retained.get(ROOT + "load/publish/received/15min", 0) is not None
    await peer.sync()
    assert float((await figures(peer, "$SYS/broker/load/publish/received/1min")).popitem()[1]) == 0.0


async def test_only_what_changed_is_told(make_bench: MakeBench) -> None:
    bench = await make_bench(sys_interval=1)
    peer = await bench.join("x")
    await peer.subscribe("$SYS/broker/uptime", "$SYS/broker/version", "$SYS/broker/clients/+")
    await peer.sync()
    bench.clock.advance(1)
    topics = [packet.topic for packet in await peer.sync()]  # type: ignore[attr-defined]
    assert "$SYS/broker/uptime" in topics
    assert "$SYS/broker/version" not in topics
    bench.clock.advance(1)
    assert [packet.topic for packet in await peer.sync()] == ["$SYS/broker/uptime"]  # type: ignore[attr-defined]


async def test_wildcards_at_the_first_level_do_not_match(make_bench: MakeBench) -> None:
    bench = await make_bench(sys_interval=1)
    peer = await bench.join("x")
    await peer.subscribe("#", "+/broker/uptime", "$share/g/#")
    bench.clock.advance(1)
    assert await peer.sync() == []  # [MQTT-4.7.2-1]


async def test_they_count_nowhere_and_take_no_room(make_bench: MakeBench) -> None:
    bench = await make_bench(sys_interval=1, max_retained=1)
    peer = await bench.join("x")
    assert await peer.publish("a", b"x", 1, retain=True) == 0x10
    stats = bench.server.stats()
    assert (stats.retained, stats.retained_refused) == (1, 0)


@pytest.mark.parametrize("interval", [0, None])
async def test_off(make_bench: MakeBench, interval: float | None) -> None:
    bench = await make_bench(sys_interval=interval)
    assert await figures(await bench.join("x")) == {}
    assert bench.clock.pending == 0


def test_an_interval_that_is_none() -> None:
    with pytest.raises(UsageError, match="sys_interval"):
        BrokerConfig(sys_interval="soon")
    assert BrokerConfig(sys_interval="500ms").sys_interval == 0.5


async def connected(url: str) -> Peer:
    peer = Peer(await open_connection(parse_url(url), trust=Trust()))
    await peer.connect("x")
    return peer


@pytest.mark.mosquitto
async def test_names_are_those_of_mosquitto(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = tmp_path / "mosquitto.conf"
    settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nsys_interval 1\n")
    async with running("mosquitto", "-c", str(settings), merge_errors=True) as program:
        await program.until("running")
        peer = await connected(f"mqtt://127.0.0.1:{port}")
        theirs = await figures(peer)
        while not {"load/messages/received/1min", "clients/maximum"} <= set(theirs):  # told from the second account on
            packet = await peer.message()
            theirs[packet.topic.removeprefix(ROOT)] = packet.payload.decode()
        for later in await peer.sync():
            theirs[later.topic.removeprefix(ROOT)] = later.payload.decode()  # type: ignore[attr-defined]
    async with BrokerServer(BrokerConfig(quic=False, tls=False, tcp_port=0)) as broker:
        ours = await figures(await connected(broker.url))
    assert {name for name in theirs if not name.startswith(NOT_OURS)} - set(ours) == set()
    assert {name for name in ours if not name.startswith(OURS)} - set(theirs) == set()
    for name in ("uptime", "load/messages/received/1min", "clients/connected"):
        assert type_of(ours[name]) == type_of(theirs[name])


def type_of(value: str) -> str:
    """Return digits as 0, the rest as it is."""
    return "".join("0" if c.isdigit() else c for c in value).replace("00", "0").replace("00", "0")


async def test_dropped_messages_are_told(make_bench: MakeBench) -> None:
    bench = await make_bench(sys_interval=1)
    small = await bench.join("small", maximum_packet_size=30)
    await small.subscribe("a")
    other = await bench.join("other")
    await other.publish("a", bytes(100))
    bench.clock.advance(1)
    assert await figures(other, "$SYS/broker/publish/messages/dropped") == {"publish/messages/dropped": "1"}


async def test_the_cost_is_bounded(make_bench: MakeBench) -> None:
    bench: Bench = await make_bench(sys_interval=1)
    bench.clock.advance(1000)
    assert len(bench.server.sys_topics.retained) < MAX_TOPICS
    assert bench.clock.pending == 1
