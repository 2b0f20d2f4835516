"""The broker's trace: every packet while it is wanted, nothing otherwise, and nobody's payload."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.process import BrokerProcess
from mqttquic_lab.errors import UsageError
from mqttquic_lab.mqtt import Publish
from tests.helpers.memory import MemoryConnection

if TYPE_CHECKING:
    from tests.broker.conftest import Bench, MakeBench


def seen(bench: Bench) -> list[tuple[str, str, str]]:
    return [(event.name, event.data["type"], event.data["client_id"]) for event in bench.server.trace]


async def test_packets_in_and_out(make_bench: MakeBench) -> None:
    bench = await make_bench(trace=True)
    peer = await bench.join("x", username="u", password=b"s3cret")
    await peer.subscribe("a")
    peer.send(b"".join(Publish("a", b"p4yload").encode() for _ in range(2)))
    await peer.message()
    await peer.message()
    assert seen(bench) == [
        ("packet_received", "CONNECT", ""),
        ("packet_sent", "CONNACK", "x"),
        ("packet_received", "SUBSCRIBE", "x"),
        ("packet_sent", "SUBACK", "x"),
        ("packet_received", "PUBLISH", "x"),
        ("packet_received", "PUBLISH", "x"),
        ("packet_sent", "PUBLISH", "x"),
        ("packet_sent", "PUBLISH", "x"),
    ]
    sizes = [event.data["size"] for event in bench.server.trace]
    stats = bench.server.stats()
    assert sum(sizes) == stats.bytes_in + stats.bytes_out
    shown = repr(list(bench.server.trace))
    assert "s3cret" not in shown
    assert "p4yload" not in shown


async def test_datagrams_count_and_show_as_well(make_bench: MakeBench) -> None:
    bench = await make_bench(trace=True, sys_interval=1)
    peer = await bench.join("x", transport="quic")
    assert isinstance(peer.connection, MemoryConnection)
    peer.connection.datagram_size = peer.connection.peer.datagram_size = 1000
    peer.connection.send_datagram(Publish("a", b"12345").encode())
    await peer.sync()
    assert ("packet_received", "PUBLISH", "x") in seen(bench)
    stats = bench.server.stats()
    assert (stats.packets_in, stats.payload_bytes_in) == (3, 5)
    bench.clock.advance(1)
    told = bench.server.sys_topics.retained.get("$SYS/broker/quic/datagrams/received", bench.clock.time())
    assert told is not None
    assert told.payload == b"1"


async def test_off_until_switched_on(make_bench: MakeBench) -> None:
    bench = await make_bench(trace_capacity=2)
    peer = await bench.join("x")
    assert seen(bench) == []
    bench.server.trace.detail = True
    for _ in range(3):
        await peer.sync()
    assert seen(bench) == [("packet_received", "PINGREQ", "x"), ("packet_sent", "PINGRESP", "x")]
    assert bench.server.trace.dropped == 4


def test_not_from_another_process() -> None:
    with pytest.raises(UsageError, match="another process"):
        BrokerProcess(BrokerConfig(trace=True))
    with pytest.raises(UsageError, match="another process"):
        _ = BrokerProcess(BrokerConfig()).trace


@pytest.mark.parametrize("options", [{"trace": 1}, {"trace_capacity": 0}])
def test_settings_that_cannot_be(options: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        BrokerConfig(**options)  # type: ignore[arg-type]
