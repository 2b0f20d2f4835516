"""Clients that do not read what they are sent, and publishers that send faster than anybody reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from mqttquic_lab.broker.outbox import FULL
from mqttquic_lab.mqtt import PingReq, PubAck, Publish, encode_publish

if TYPE_CHECKING:
    from mqttquic_lab.broker.status import ClientInfo
    from tests.broker.conftest import Bench, MakeBench
    from tests.broker.peer import Peer

MESSAGE = encode_publish("a", bytes(10_000))


def info(bench: Bench, client_id: str) -> ClientInfo:
    return next(client for client in bench.server.clients() if client.client_id == client_id)


def stop_reading(peer: Peer) -> None:
    peer.connection.control.pause_reading()


async def flood(bench: Bench, publisher: Peer, count: int) -> None:
    """Send messages one chunk each and wait until the broker has seen them, or stopped looking."""
    seen = bench.server.stats().messages_in
    for _ in range(count):
        publisher.send(MESSAGE)
    await bench.server.wait_for(
        lambda: bench.server.stats().messages_in == seen + count or publisher.connection.control.peer.reading_paused  # type: ignore[attr-defined]
    )


async def test_a_publisher_is_held_for_a_subscriber_that_is_full(bench: Bench) -> None:
    subscriber, publisher = await bench.join("s"), await bench.join("p")
    await subscriber.subscribe("a")
    stop_reading(subscriber)
    await flood(bench, publisher, 100)
    held_at = bench.server.stats().messages_in
    assert held_at * 10_000 < FULL + 50_000
    assert held_at < 100
    assert bench.server.stats().dropped_qos0 == 0
    subscriber.connection.control.resume_reading()
    for _ in range(100):
        await subscriber.message()
    assert bench.server.stats().dropped_qos0 == 0


async def test_after_the_grace_messages_are_dropped_for_it_alone(make_bench: MakeBench) -> None:
    bench = await make_bench(max_pending_bytes=1_000_000)
    slow, quick, publisher = await bench.join("slow"), await bench.join("quick"), await bench.join("p")
    for peer in (slow, quick):
        await peer.subscribe("a")
    stop_reading(slow)
    await flood(bench, publisher, 300)
    assert bench.server.stats().messages_in < 300
    bench.clock.advance(bench.server.config.slow_consumer_grace)
    for _ in range(300):
        assert len((await quick.message()).payload) == 10_000
    assert bench.server.stats().messages_in == 300
    dropped = info(bench, "slow").dropped
    assert dropped == bench.server.stats().dropped_qos0
    assert 150 < dropped < 300
    assert info(bench, "slow").pending < 1_100_000
    assert info(bench, "quick").dropped == 0
    # Once it reads again it gets what was kept, and everything from then on.
    slow.connection.control.resume_reading()
    for _ in range(300 - dropped):
        await slow.message()
    assert await slow.sync() == []
    publisher.send(encode_publish("a", b"new"))
    assert (await slow.message()).payload == b"new"


async def test_a_lagging_subscriber_does_not_hold_anybody_again_until_it_caught_up(bench: Bench) -> None:
    slow, publisher = await bench.join("slow"), await bench.join("p")
    await slow.subscribe("a")
    stop_reading(slow)
    await flood(bench, publisher, 100)
    bench.clock.advance(bench.server.config.slow_consumer_grace)
    await bench.server.wait_for(lambda: bench.server.stats().messages_in == 100)
    for _ in range(50):
        publisher.send(MESSAGE)
        assert await publisher.sync() == []
        assert not publisher.connection.control.peer.reading_paused  # type: ignore[attr-defined]
    assert bench.server.stats().messages_in == 150
    assert bench.server.stats().dropped_qos0 == 0


async def test_qos_1_waits_in_the_queue_and_then_the_oldest_goes(make_bench: MakeBench) -> None:
    bench = await make_bench(max_queued=100)
    slow, publisher = await bench.join("slow", receive_maximum=10), await bench.join("p")
    await slow.subscribe("a", qos=1)
    for number in range(300):
        publisher.send(encode_publish("a", b"%d" % number, 1, packet_id=number + 1))
        if number == 100:
            # Half full: the publisher is held, for as long as the grace.
            await bench.server.wait_for(lambda: publisher.connection.control.peer.reading_paused)  # type: ignore[attr-defined]
            bench.clock.advance(bench.server.config.slow_consumer_grace)
    for _ in range(300):
        await publisher.expect(PubAck)
    assert (info(bench, "slow").inflight, info(bench, "slow").queued) == (10, 100)
    assert bench.server.stats().dropped_queue == 190
    found = [int((await slow.message()).payload) for _ in range(110)]
    assert found == [*range(10), *range(200, 300)]
    assert await slow.sync() == []


async def test_acknowledging_releases_a_publisher_held_for_a_long_queue(make_bench: MakeBench) -> None:
    bench = await make_bench(max_queued=100)
    slow, publisher = await bench.join("slow", receive_maximum=10), await bench.join("p")
    await slow.subscribe("a", qos=1)
    for number in range(500):
        publisher.send(encode_publish("a", b"%d" % number, 1, packet_id=number + 1))
    found = [int((await slow.message()).payload) for _ in range(500)]
    assert found == list(range(500))
    assert bench.server.stats().dropped_queue == 0


async def test_a_client_that_does_not_take_its_answers_is_not_read(make_bench: MakeBench) -> None:
    bench = await make_bench(max_pending_bytes=1000)
    peer = await bench.join("x")
    stop_reading(peer)
    seen = bench.server.stats().bytes_in
    sent = PingReq().encode() * 1000 * 160
    for start in range(0, len(sent), 2000):
        peer.send(sent[start : start + 2000])
    await bench.server.wait_for(lambda: peer.connection.control.peer.reading_paused)  # type: ignore[attr-defined]
    assert info(bench, "x").pending < FULL + 10_000
    peer.connection.control.resume_reading()
    await bench.server.wait_for(lambda: bench.server.stats().bytes_in == seen + len(sent))


async def test_a_held_publisher_is_not_taken_for_dead(make_bench: MakeBench) -> None:
    bench = await make_bench(slow_consumer_grace=10)
    slow, publisher = await bench.join("slow"), await bench.join("p", keepalive=1)
    await slow.subscribe("a")
    stop_reading(slow)
    await flood(bench, publisher, 100)
    assert publisher.connection.control.peer.reading_paused  # type: ignore[attr-defined]
    bench.clock.advance(5)
    publisher.send(PingReq())
    slow.connection.control.resume_reading()
    for _ in range(100):
        await slow.message()
    assert bench.server.stats().keepalive_timeouts == 0


async def test_a_client_that_takes_nothing_is_dead_by_its_keep_alive(make_bench: MakeBench) -> None:
    bench = await make_bench(max_pending_bytes=300_000)
    slow, publisher = await bench.join("slow", keepalive=10), await bench.join("p")
    await slow.subscribe("a")
    stop_reading(slow)
    await flood(bench, publisher, 100)
    bench.clock.advance(bench.server.config.slow_consumer_grace)
    await bench.server.wait_for(lambda: bench.server.stats().messages_in == 100)
    assert slow.connection.control.peer.reading_paused  # type: ignore[attr-defined]
    for _ in range(3):  # each round gives the dead one the benefit of the doubt at most once
        bench.clock.advance(15)
    await bench.server.wait_for(lambda: "slow" not in {client.client_id for client in bench.server.clients()})
    assert bench.server.stats().keepalive_timeouts == 1
    assert await publisher.sync() == []


async def test_losing_the_slow_one_releases_the_publisher(bench: Bench) -> None:
    slow, publisher = await bench.join("slow"), await bench.join("p")
    await slow.subscribe("a")
    stop_reading(slow)
    await flood(bench, publisher, 100)
    assert bench.server.stats().messages_in < 100
    await slow.vanish()
    assert await publisher.sync() == []
    assert bench.server.stats().messages_in == 100


async def test_losing_the_publisher_while_it_is_held(bench: Bench) -> None:
    slow, publisher = await bench.join("slow"), await bench.join("p")
    await slow.subscribe("a")
    stop_reading(slow)
    await flood(bench, publisher, 100)
    await publisher.vanish()
    await bench.server.wait_for(lambda: len(bench.server.clients()) == 1)
    slow.connection.control.resume_reading()
    assert len(await slow.sync()) == bench.server.stats().messages_in


async def test_a_client_may_flood_itself(bench: Bench) -> None:
    peer = await bench.join("x")
    await peer.subscribe("a", qos=1)
    for number in range(2000):
        peer.send(encode_publish("a", bytes(1000), number % 2, packet_id=number + 1 if number % 2 else None))
    count = 0
    while count < 2000:
        packet = await peer.next()
        if isinstance(packet, Publish):
            count += 1
            if packet.packet_id is not None:
                peer.send(PubAck(packet.packet_id))
    assert bench.server.stats().dropped_qos0 == 0


async def test_nobody_waits_for_a_client_that_has_gone(bench: Bench) -> None:
    """Found by the fuzzer: messages that came back to the queue of a client at its end held a publisher for good."""
    reader = await bench.join("reader", session_expiry_interval=100)
    (client,) = bench.server._clients
    outbox = client.outbox
    await reader.vanish()
    await bench.server.wait_for(lambda: client.is_ended)
    outbox.is_full = True
    outbox.note_queue(0.9)
    assert not outbox.wants_relief
    writer = await bench.join("writer")
    (pipeline,) = bench.server._clients
    outbox.hold(pipeline)
    assert not pipeline._reasons
    assert await writer.publish("a", b"", 1) == 0x10


async def test_a_stream_that_was_replaced_holds_nobody_after_its_connection(make_bench: MakeBench) -> None:
    bench = await make_bench(profile="mqttv5")
    reader = await bench.join("reader", transport="quic")
    await reader.subscribe("a")
    writer = await bench.join("writer")
    (client,) = [each for each in bench.server._clients if each.session and each.session.client_id == "reader"]
    await writer.publish("a", b"x")
    lane = await reader.was_opened()
    lane.stream.pause_reading()
    old = next(iter(client._streams)).outbox
    writer.send(Publish("a", bytes(2 * FULL)))
    await bench.server.wait_for(lambda: old._held)  # the writer, for longer than this clock goes on
    cast("Any", client._streams).retire(next(iter(client._streams)))
    await reader.vanish()
    assert await writer.publish("b", b"", 1) == 0x10
