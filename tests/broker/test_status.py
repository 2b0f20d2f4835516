"""What the broker refused is counted, told in words, and nothing of it is forgotten here."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.broker.status import REFUSALS, BrokerStats
from mqttquic_lab.mqtt import PingReq, Publish

if TYPE_CHECKING:
    from tests.broker.conftest import MakeBench

TESTS = Path(__file__).parent.parent


def test_every_counter_of_a_refusal_has_its_words() -> None:
    names = {field.name for field in dataclasses.fields(BrokerStats)}
    told = re.compile(r"refused$|^dropped_|timeouts$|errors$|evicted$|rejected$|^expired$")
    assert set(REFUSALS) == {name for name in names if told.search(name)}
    assert len(set(REFUSALS.values())) == len(REFUSALS)
    stats = BrokerStats(dropped_size=3)
    assert stats.refusals()["dropped as too large"] == 3
    assert sum(stats.refusals().values()) == 3


@pytest.mark.parametrize("name", sorted(name for name in REFUSALS if not name.startswith("store_")))
def test_every_counter_of_a_refusal_is_looked_at_by_a_test(name: str) -> None:
    looked_at = re.compile(rf"\.{name}\b")
    tests = [path for path in TESTS.rglob("*.py") if "benchmarks" not in path.parts]
    assert any(looked_at.search(path.read_text()) for path in tests), f"no test asserts {name}"


@pytest.mark.parametrize("data", [b"\x10\x0c\0\x04MQTT\x07\x02\0\0\0\0", b"\x10\x0c\0\x04MQTT\x04\0\0\0\0\0"])
async def test_a_connect_that_is_answered_with_a_failure(make_bench: MakeBench, data: bytes) -> None:
    bench = await make_bench()
    peer = bench.attach(5 if data[8] == 7 else 4)
    peer.send(data)
    assert len(await peer.closed()) == 1
    assert bench.server.stats().connects_refused == 1


async def test_a_keep_alive_that_ran_out(make_bench: MakeBench) -> None:
    bench = await make_bench()
    peer = await bench.join("x", keepalive=10)
    peer.send(PingReq())
    await peer.next()
    bench.clock.advance(15.1)
    await peer.closed()
    assert bench.server.stats().keepalive_timeouts == 1


async def test_what_does_not_fit_and_what_is_too_old(make_bench: MakeBench) -> None:
    bench = await make_bench(max_sessions=2, max_retained=1)
    peer = await bench.join("x", maximum_packet_size=30, session_expiry_interval=100)
    await peer.subscribe("#", qos=1)
    other = await bench.join("other")
    other.send(Publish("a", bytes(50)))
    other.send(Publish("a", bytes(50), 1, packet_id=1))
    await other.sync()
    assert bench.server.stats().dropped_size == 2
    await peer.leave()
    await other.publish("a", b"", 1, message_expiry_interval=1)
    bench.clock.advance(2)
    peer = await bench.join("x", clean_start=False, session_expiry_interval=100)
    assert await peer.sync() == []
    assert bench.server.stats().expired == 1
    for topic in ("r/1", "r/2"):
        await other.publish(topic, b"x", 1, retain=True)
    assert bench.server.stats().retained_refused == 1
    await peer.leave()
    await bench.join("third")
    assert bench.server.stats().sessions_evicted == 1
