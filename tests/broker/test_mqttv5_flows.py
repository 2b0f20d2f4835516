"""Flows at a broker with the profile ``mqttv5``: each row of what mqttv5-cli 0.29 was seen to do with subscriptions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.mqtt import PubAck, Publish, SubAck, Subscribe, Subscription, UnsubAck, Unsubscribe

if TYPE_CHECKING:
    from tests.broker.conftest import Bench, MakeBench
    from tests.broker.peer import Peer


@pytest.fixture
async def lab(make_bench: MakeBench) -> Bench:
    return await make_bench(profile="mqttv5")


def header(flow_id: int = 2, expire: int = 0, flags: int = 1) -> bytes:
    return bytes((0x12, flow_id, expire, flags))


async def flow(control: Peer, head: bytes, topic_filter: str = "a", qos: int = 1) -> Peer:
    """Return a unidirectional stream with a flow on which something is subscribed."""
    stream = control.open(unidirectional=True)
    stream.send(head + Subscribe(3, (Subscription(topic_filter, qos),)).encode())
    assert (await control.expect(SubAck)).packet_id == 3
    return stream


async def connected(lab: Bench, **connect: object) -> Peer:
    return await lab.join("x", transport="quic", session_expiry_interval=1000, **connect)  # type: ignore[arg-type]


@pytest.mark.parametrize("deliveries", ["per-topic", "control-only", "per-publish"])
async def test_a_flow_has_a_stream_for_its_deliveries(make_bench: MakeBench, deliveries: str) -> None:
    lab = await make_bench(profile="mqttv5", deliveries=deliveries)
    control = await connected(lab)
    await flow(control, header(), "a/#")
    writer = await lab.join("writer")
    for topic in ("a/1", "a/2"):
        await writer.publish(topic, b"x", 1)
    lane = await control.was_opened()
    assert [(await lane.message()).topic for _ in range(2)] == ["a/1", "a/2"]
    assert lane.header is not None
    assert lane.header.encode() == b"\x13\x03\x41\x2c\x00"  # its own flow id, not the client's
    assert control.opened.empty()
    assert lab.server.clients()[0].subscriptions == ("a/#",)


async def test_the_same_filter_on_control_and_on_a_flow_is_two_copies(make_bench: MakeBench) -> None:
    lab = await make_bench(profile="mqttv5", deliveries="control-only")
    control = await connected(lab)
    await control.subscribe("a")
    await flow(control, header())
    await (await lab.join("writer")).publish("a", b"x", 1)
    assert (await control.message()).qos == 0
    message = await (await control.was_opened()).message(acknowledge=False)
    assert message.packet_id == 1
    control.send(PubAck(1))  # taken anywhere
    await lab.server.wait_for(lambda: all(client.inflight == 0 for client in lab.server.clients()))


async def test_unsubscribe_counts_on_the_flow_that_subscribed(lab: Bench) -> None:
    control = await connected(lab)
    first = await flow(control, header(2))
    other = control.open(unidirectional=True)
    other.send(header(4) + Unsubscribe(5, ("a",)).encode())
    assert (await control.expect(UnsubAck)).reason_codes == (0x11,)
    assert await control.unsubscribe("a") == [0x11]
    first.send(Unsubscribe(6, ("a",)).encode())
    assert (await control.expect(UnsubAck)).reason_codes == (0,)


async def test_fin_ends_subscriptions_and_their_stream(lab: Bench) -> None:
    control = await connected(lab)
    stream = await flow(control, header(expire=60))
    await (await lab.join("writer")).publish("a", b"x", 1)
    lane = await control.was_opened()
    await lane.message()
    stream.stream.end()
    assert await lane.was_reset() is None
    assert lab.server.stats().subscriptions == 0


@pytest.mark.parametrize("expire", [0, 50])
async def test_a_reset_keeps_a_flow_until_it_expires(lab: Bench, expire: int) -> None:
    control = await connected(lab)
    stream = await flow(control, header(expire=expire))
    stream.stream.reset(0)
    await lab.server.wait_for(lambda: lab.server.clients()[0].streams == 0)
    assert lab.server.stats().subscriptions == (1 if expire else 0)
    if expire:
        await (await lab.join("writer")).publish("a", b"still", 1)
        assert (await (await control.was_opened()).message()).payload == b"still"
        lab.clock.advance(51)
        assert lab.server.stats().subscriptions == 0
    again = control.open(unidirectional=True)
    again.send(header(flags=2))
    assert await again.was_reset() == 0xB3


async def test_queued_deliveries_of_a_kept_flow_come_without_recovery(lab: Bench) -> None:
    control = await connected(lab)
    await flow(control, header(2, expire=50))
    await flow(control, header(4, expire=0), "b")
    await control.vanish()
    writer = await lab.join("writer")
    await writer.publish("a", b"kept", 1)
    await writer.publish("b", b"forgotten", 1)
    control = await connected(lab, clean_start=False)
    assert (await (await control.was_opened()).message()).payload == b"kept"
    again = control.open(unidirectional=True)
    again.send(header(2, expire=50, flags=2))
    again.send(Publish("c", b"", 1, packet_id=7).encode())
    assert (await control.expect(PubAck)).packet_id == 7  # recovery is silent
    gone = control.open(unidirectional=True)
    gone.send(header(4, flags=2))
    assert await gone.was_reset() == 0xB3


async def test_a_flow_is_taken_over(lab: Bench) -> None:
    control = await connected(lab)
    old = await flow(control, header(expire=50))
    new = control.open(unidirectional=True)
    new.send(header(expire=50, flags=0) + Publish("c", b"", 1, packet_id=7).encode())
    await control.expect(PubAck)
    old.send(Publish("c", b"", 1, packet_id=8).encode())
    assert (await control.expect(PubAck)).packet_id == 8  # the old stream is still read
    old.stream.end()
    await lab.server.wait_for(lambda: lab.server.clients()[0].streams == 1)
    assert lab.server.stats().subscriptions == 1
    new.stream.end()
    await lab.server.wait_for(lambda: lab.server.stats().subscriptions == 0)


async def test_the_discard_handshake_forgets_a_flow(lab: Bench) -> None:
    control = await connected(lab)
    stream = await flow(control, header(expire=50))
    stream.stream.reset(0)
    await lab.server.wait_for(lambda: lab.server.clients()[0].streams == 0)
    discard = control.open()
    discard.send(header())
    discard.stream.end()
    assert await discard.was_reset() is None
    assert lab.server.stats().subscriptions == 0


async def test_a_clean_flow_begins_without_subscriptions(lab: Bench) -> None:
    control = await connected(lab)
    stream = await flow(control, header(expire=50))
    stream.stream.reset(0)
    await lab.server.wait_for(lambda: lab.server.clients()[0].streams == 0)
    again = control.open(unidirectional=True)
    again.send(header(expire=50) + Publish("c", b"", 1, packet_id=7).encode())
    await control.expect(PubAck)
    assert lab.server.stats().subscriptions == 0


async def test_flows_end_with_their_session(lab: Bench) -> None:
    control = await connected(lab)
    await flow(control, header(expire=60))
    await control.vanish()
    assert lab.server.stats().subscriptions == 1
    control = await connected(lab, clean_start=True)
    assert lab.server.stats().subscriptions == 0
    assert await control.sync() == []


async def test_retained_messages_of_a_flow_take_the_usual_way(make_bench: MakeBench) -> None:
    lab = await make_bench(profile="mqttv5", deliveries="control-only")
    await (await lab.join("writer")).publish("a", b"x", 1, retain=True)
    control = await connected(lab)
    await flow(control, header())
    assert (await control.message()).retain
