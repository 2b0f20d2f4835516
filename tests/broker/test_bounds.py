"""What a client may make the broker hold: levels of topics, what a message weighs, and what comes before CONNECT."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.broker.message import Message
from mqttquic_lab.broker.pipeline import MAX_CONNECT
from mqttquic_lab.errors import UsageError
from mqttquic_lab.mqtt import Connect, Disconnect, Subscribe, Subscription

if TYPE_CHECKING:
    from mqttquic_lab.mqtt import Version
    from tests.broker.conftest import Bench, MakeBench


@pytest.mark.parametrize(("version", "code"), [(5, 0x8F), (4, 0x80)])
async def test_a_filter_with_too_many_levels_is_refused(bench: Bench, version: Version, code: int) -> None:
    peer = await bench.join("x", version)
    good, deep = "/".join("a" * 128), "/" * 65_000
    assert await peer.subscribe(good, deep, "b") == [0, code, 0]
    assert bench.server.stats().subscriptions_refused == 1
    assert bench.server.stats().subscriptions == 2
    nodes = len(list(bench.server.router._trie))
    assert nodes == 2


async def test_the_levels_may_be_set(make_bench: MakeBench) -> None:
    bench = await make_bench(max_topic_levels=2)
    peer = await bench.join("x")
    assert await peer.subscribe("a/b", "a/b/c") == [0, 0x8F]
    with pytest.raises(UsageError, match="max_topic_levels"):
        await make_bench(max_topic_levels=0)


async def test_a_message_on_a_deep_topic_passes_and_is_not_retained(bench: Bench) -> None:
    peer = await bench.join("x")
    await peer.subscribe("#", qos=1)
    peer_2 = await bench.join("y")
    assert await peer_2.publish("a/" * 200 + "b", b"x", 1, retain=True) == 0
    assert (await peer.message()).topic == "a/" * 200 + "b"
    stats = bench.server.stats()
    assert (stats.retained, stats.retained_refused) == (0, 1)


async def test_a_filter_that_is_not_well_formed_ends_the_connection(bench: Bench) -> None:
    """Sections 4.7.1 and 4.13.1; EMQX answers 0x8F as well, mosquitto 0x81."""
    peer = await bench.join("x")
    peer.send(b"\x82\x09\x00\x01\x00\x00\x03a#b\x00")
    (last,) = await peer.closed()
    assert isinstance(last, Disconnect)
    assert last.reason_code == 0x8F


def test_a_message_weighs_what_it_holds() -> None:
    assert Message("abc", b"1234").size == 7
    assert Message("äöü", b"").size == 6
    properties = {"user_property": [("k" * 10, "ü" * 5)], "correlation_data": bytes(100), "content_type": "text",
                  "payload_format_indicator": 1, "topic_alias": 2}  # fmt: skip
    assert Message("a", b"", properties=properties).size == 1 + 20 + 100 + 4 + 4


async def test_heavy_properties_count_against_the_queue(make_bench: MakeBench) -> None:
    bench = await make_bench(max_queued_bytes=10_000)
    peer = await bench.join("x", session_expiry_interval=100)
    await peer.subscribe("a", qos=1)
    await peer.vanish()
    writer = await bench.join("y")
    for _ in range(5):
        await writer.publish("a", b"", 1, user_property=[("k", "v" * 4000)])
    stats = bench.server.stats()
    assert (stats.queued, stats.dropped_queue) == (2, 3)


@pytest.mark.parametrize("chunk", [None, 10_000])
async def test_a_connect_larger_than_any_needs_to_be(bench: Bench, chunk: int | None) -> None:
    """In one chunk it was there as a whole before anybody looked at its size."""
    peer = bench.attach(chunk=chunk)
    peer.send(Connect("x", properties={"user_property": [("k", "v" * 60_000)] * (MAX_CONNECT // 60_000 + 1)}).encode())
    await peer.closed()
    stats = bench.server.stats()
    assert (stats.protocol_errors, stats.sessions) == (1, 0)


async def test_what_follows_connect_may_be_larger(bench: Bench) -> None:
    peer = bench.attach()
    filters = tuple(Subscription("f" * 60_000 + str(number)) for number in range(MAX_CONNECT // 60_000 + 1))
    peer.send(Connect("x").encode() + Subscribe(1, filters).encode())
    await peer.next()
    assert (await peer.next()).NAME == "SUBACK"


async def test_the_streams_of_a_client_share_the_bound_in_bytes(make_bench: MakeBench) -> None:
    bench = await make_bench(max_queued_bytes=10_000)
    control = await bench.join("x", transport="quic")
    streams = [control.open() for _ in range(3)]
    for stream in streams:
        await stream.subscribe("a", qos=1)
    writer = await bench.join("y")
    for _ in range(2):
        await writer.publish("a", bytes(1900), 1)
    info = next(client for client in bench.server.clients() if client.client_id == "x")
    assert (info.inflight, info.queued) == (5, 1)  # not 2 on each
    for _ in range(2):
        for stream in streams:
            await stream.message()
    await bench.server.wait_for(lambda: all(c.inflight == c.queued == 0 for c in bench.server.clients()))
    (session,) = [each for each in bench.server.sessions if each.client_id == "x"]
    assert session.under_way == 0
