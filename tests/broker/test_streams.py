"""Data streams: what the broker does with a client's streams beside the control stream, over in-memory connections."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from mqttquic_lab.mqtt import (
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    Subscription,
)

if TYPE_CHECKING:
    from tests.broker.conftest import Bench, MakeBench
    from tests.broker.peer import Peer
    from tests.helpers.memory import MemoryStream

PACKETS_OF_THE_CONTROL_STREAM = [
    Connect("again", 5, True, 0, None, None, None, {}),
    Disconnect(0, {}),
    PingReq(),
    Auth(0x18, {"authentication_method": "x"}),
]


def publish(topic: str, payload: bytes = b"", qos: int = 0, packet_id: int | None = None) -> Publish:
    return Publish(topic, payload, qos, False, False, packet_id, {})


async def streaming(bench: Bench, client_id: str = "x", **connect: Any) -> Peer:
    return await bench.join(client_id, transport="quic", **connect)


async def test_acknowledgements_and_deliveries_keep_to_their_streams(bench: Bench) -> None:
    control = await streaming(bench)
    reader, first, second = control.open(), control.open(), control.open()
    assert await reader.subscribe("a/#", qos=2) == [2]
    first.send(publish("a/1", b"one", 1, 7))
    assert (await first.expect(PubAck)).packet_id == 7
    assert await second.publish("a/2", b"two", 2, packet_id=7) == 0
    assert [(m.topic, m.qos) for m in (await reader.message(), await reader.message())] == [("a/1", 1), ("a/2", 2)]
    assert await control.sync() == []
    assert not first.inbox
    assert not second.inbox
    info = bench.server.clients()[0]
    assert (info.streams, info.messages_in, info.messages_out) == (3, 2, 2)
    assert (info.subscriptions, info.inflight) == (("a/#",), 0)


async def test_the_same_filter_on_two_streams_brings_two_copies(bench: Bench) -> None:
    control = await streaming(bench)
    streams = [control.open(), control.open()]
    for stream in streams:
        await stream.subscribe("a", qos=1)
    await control.publish("a", b"x", 1)
    copies = [await stream.message() for stream in streams]
    assert [copy.packet_id for copy in copies] == [1, 1]  # identifiers are counted per stream
    await control.subscribe("a", qos=0)
    control.send(publish("a", b"y"))
    assert [(await stream.message()).payload for stream in (*streams, control)] == [b"y"] * 3


async def test_unacknowledged_messages_are_kept_by_stream_and_packet_id(make_bench: MakeBench) -> None:
    bench = await make_bench()
    control = await streaming(bench, receive_maximum=1)
    streams = [control.open(), control.open()]
    for stream in streams:
        await stream.subscribe("a", qos=1)
    for payload in (b"1", b"2"):
        await control.publish("a", payload, 1)
    held = [await stream.message(acknowledge=False) for stream in streams]
    assert [message.payload for message in held] == [b"1", b"1"]
    control.send(PubAck(1, 0, {}))  # of nobody: the control stream has no message 1
    assert await control.sync() == []
    assert not streams[0].inbox
    streams[1].send(PubAck(1, 0, {}))
    assert (await streams[1].message()).payload == b"2"
    assert not streams[0].inbox  # its receive maximum is still used up
    streams[0].send(PubAck(1, 0, {}))
    assert (await streams[0].message()).payload == b"2"


async def test_unsubscribe_works_on_the_stream_that_subscribed(bench: Bench) -> None:
    control = await streaming(bench)
    stream, other = control.open(), control.open()
    await stream.subscribe("a")
    assert await other.unsubscribe("a") == [0x11]
    assert await control.unsubscribe("a") == [0x11]
    assert await stream.unsubscribe("a") == [0]
    assert bench.server.stats().subscriptions == 0


@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_closing_a_stream_ends_its_subscriptions(bench: Bench, how: str) -> None:
    control = await streaming(bench)
    stream = control.open()
    await stream.subscribe("a", "b", qos=1)
    await control.subscribe("c")
    await control.publish("a", b"x", 1)
    assert bench.server.stats().subscriptions == 3
    if how == "fin":
        stream.stream.end()
        await stream.closed()
    else:
        stream.stream.reset(5)
        await bench.server.wait_for(lambda: bench.server.stats().subscriptions == 1)
    stats = bench.server.stats()
    assert (stats.subscriptions, stats.dropped_session, stats.queued) == (1, 1, 0)
    assert bench.server.clients()[0].streams == 0
    assert await control.sync() == []


async def test_everything_before_fin_is_answered(bench: Bench) -> None:
    control = await streaming(bench)
    await control.subscribe("a")
    stream = control.open()
    stream.send(publish("a", b"0"))
    stream.send(publish("a", b"1", 1, 3))
    stream.stream.end()
    assert (await stream.expect(PubAck)).packet_id == 3
    assert await stream.was_reset() is None
    assert [(await control.message()).payload for _ in range(2)] == [b"0", b"1"]
    info = bench.server.clients()[0]
    assert (info.messages_in, info.streams) == (2, 0)  # what passed is not forgotten with the stream


@pytest.mark.parametrize("packet", PACKETS_OF_THE_CONTROL_STREAM, ids=lambda packet: packet.NAME)
async def test_what_belongs_on_the_control_stream_resets_a_data_stream(bench: Bench, packet: Any) -> None:
    control = await streaming(bench)
    await control.subscribe("a")
    stream = control.open()
    await stream.subscribe("b")
    stream.send(publish("a", b"before"))
    stream.send(packet)
    assert await stream.was_reset() == 0
    assert (await control.message()).payload == b"before"
    assert await control.sync() == []
    stats = bench.server.stats()
    assert (stats.stream_errors, stats.protocol_errors, stats.subscriptions, stats.clients) == (1, 0, 1, 1)


@pytest.mark.parametrize(
    "data",
    [b"\xf7\x02xx", b"\x30\x80\x80\x80\x80\x01", b"\x20\x03\x00\x00\x00", b"\x32\x05\x00\x01a\x00\x00"],
    ids=["type 15", "length", "CONNACK", "packet id 0"],
)
async def test_garbage_ends_its_stream_only(bench: Bench, data: bytes) -> None:
    control = await streaming(bench)
    stream, other = control.open(), control.open()
    await other.subscribe("a")
    stream.send(data)
    assert await stream.was_reset() == 0
    await control.publish("a", b"x", 1)
    assert (await other.message()).payload == b"x"


async def test_a_packet_too_large_ends_its_stream_only(make_bench: MakeBench) -> None:
    bench = await make_bench(max_packet_size=100)
    control = await streaming(bench)
    stream = control.open()
    stream.send(publish("a", bytes(100)))
    assert await stream.was_reset() == 0
    assert await control.sync() == []


async def test_data_waits_for_connack(make_bench: MakeBench) -> None:
    verdict: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def authenticate(*_: object) -> bool:
        return await verdict

    bench = await make_bench(authenticate=authenticate)
    reader = bench.attach(transport="quic")
    reader.send(Connect("x", 5, True, 0, None, None, None, {}))
    stream = reader.open()
    stream.send(Subscribe(1, (Subscription("a", 0, False, False, 0),), {}))
    stream.send(publish("a", b"held", 1, 2))
    stream.stream.end()
    for _ in range(5):
        await asyncio.sleep(0)
    assert bench.server.stats().messages_in == 0
    assert not stream.inbox
    verdict.set_result(True)
    await reader.expect(ConnAck)
    kinds = [type(packet).__name__ for packet in await stream.closed()]
    assert sorted(kinds) == ["PubAck", "Publish", "SubAck"]


async def test_data_may_come_before_connect(bench: Bench) -> None:
    """In the generic profile: QUIC keeps order within a stream only, so that CONNECT may arrive later."""
    peer = bench.attach(transport="quic")
    stream = peer.open()
    stream.send(publish("a", b"x", 1, 2))
    for _ in range(5):
        await asyncio.sleep(0)
    await peer.connect("x")
    assert (await stream.expect(PubAck)).packet_id == 2


async def test_what_waited_ends_with_a_refused_connect(make_bench: MakeBench) -> None:
    bench = await make_bench(users={})
    peer = bench.attach(transport="quic")
    stream = peer.open()
    stream.send(publish("a", b"x", 1, 2))
    assert (await peer.connect("x")).reason_code == 0x86
    assert await stream.was_reset() == 0
    assert bench.server.stats().messages_in == 0


async def test_the_end_of_the_control_stream_ends_all(bench: Bench) -> None:
    control = await streaming(bench, session_expiry_interval=100)
    stream = control.open()
    await stream.subscribe("a")
    await control.subscribe("b", qos=1)
    control.stream.end()
    await stream.closed()
    assert bench.server.clients() == []
    stats = bench.server.stats()
    assert (stats.subscriptions, stats.sessions) == (1, 1)  # what persists is the control stream's session


async def test_resuming_brings_back_the_control_streams_session_only(bench: Bench) -> None:
    control = await streaming(bench, session_expiry_interval=100)
    stream = control.open()
    await stream.subscribe("a", qos=1)
    await control.subscribe("b", qos=1)
    await control.vanish()
    sender = await bench.join("sender")
    for topic in ("a", "b"):
        await sender.publish(topic, b"x", 1)
    again = bench.attach(transport="quic")
    assert (await again.connect("x", clean_start=False)).session_present
    assert (await again.message()).topic == "b"
    assert await again.sync() == []


async def test_packets_on_any_stream_keep_the_client_alive(bench: Bench) -> None:
    control = await streaming(bench, keepalive=10)
    stream = control.open()
    for number in range(1, 5):
        bench.clock.advance(8)
        assert await stream.publish("a", b"", 1, packet_id=number) == 0x10
    bench.clock.advance(16)
    assert isinstance((await control.closed())[-1], Disconnect)
    assert bench.server.stats().keepalive_timeouts == 1


async def test_no_local_looks_at_the_client_not_the_stream(bench: Bench) -> None:
    control = await streaming(bench)
    reader, writer = control.open(), control.open()
    await reader.subscribe("a", no_local=True)
    await writer.publish("a", b"own", 1)
    other = await bench.join("other")
    await other.publish("a", b"foreign", 1)
    assert (await reader.message()).payload == b"foreign"


async def test_topic_aliases_are_per_stream(bench: Bench) -> None:
    control = await streaming(bench)
    await control.subscribe("#")
    first, second = control.open(), control.open()
    for stream, topic in ((first, "a"), (second, "b")):
        stream.send(Publish(topic, b"", 1, False, False, 1, {"topic_alias": 1}))
        stream.send(Publish("", b"", 1, False, False, 2, {"topic_alias": 1}))
    topics = sorted([(await control.message()).topic for _ in range(4)])
    assert topics == ["a", "a", "b", "b"]


async def test_retained_messages_come_on_the_stream_that_subscribed(bench: Bench) -> None:
    control = await streaming(bench)
    await control.publish("a", b"kept", 1, retain=True)
    stream = control.open()
    await stream.subscribe("a")
    assert (await stream.message()).retain
    assert await control.sync() == []


async def test_a_full_data_stream_holds_nobody_for_long_and_grows_no_memory(make_bench: MakeBench) -> None:
    bench = await make_bench(max_pending_bytes=300_000, slow_consumer_grace=0)
    control = await streaming(bench)
    slow, quick = control.open(), control.open()
    for stream in (slow, quick):
        await stream.subscribe("a")
    slow.stream.pause_reading()
    sender = await bench.join("sender")
    for _ in range(20):
        await sender.publish("a", bytes(50_000), 1)
        bench.clock.advance(0.1)
    assert [len((await quick.message()).payload) for _ in range(20)] == [50_000] * 20
    info = next(info for info in bench.server.clients() if info.client_id == "x")
    assert 10 <= info.dropped < 20
    assert info.pending < 400_000
    slow.stream.resume_reading()
    assert len((await slow.message()).payload) == 50_000


async def test_what_waits_on_all_streams_together_is_bounded(make_bench: MakeBench) -> None:
    bench = await make_bench(max_pending_bytes=600_000, slow_consumer_grace=0)
    control = await streaming(bench)
    streams = [control.open() for _ in range(8)]
    for stream in streams:
        await stream.subscribe("a")
        stream.stream.pause_reading()
    sender = await bench.join("sender")
    for _ in range(20):
        await sender.publish("a", bytes(50_000), 1)
        bench.clock.advance(0.1)
    info = next(info for info in bench.server.clients() if info.client_id == "x")
    assert info.pending < 8 * 320_000  # each may become full, not all of them as much as one
    assert info.dropped > 8 * 10


async def test_unidirectional_streams_publish(bench: Bench) -> None:
    control = await streaming(bench)
    other = await bench.join("other")
    await other.subscribe("a", qos=2)
    for number in range(3):
        stream = control.open(unidirectional=True)
        stream.send(publish("a", b"%d" % number, number, number or None))
        stream.stream.end()
        if number == 1:
            assert (await control.expect(PubAck)).packet_id == 1
    assert (await control.expect(PubRec)).packet_id == 2
    control.send(PubRel(2, 0, {}))
    await control.expect(PubComp)
    assert [(await other.message()).payload for _ in range(3)] == [b"0", b"1", b"2"]
    assert bench.server.stats().streams_total == 3


async def test_subscribing_on_unidirectional_streams_is_for_the_control_stream(bench: Bench) -> None:
    """As mqttv5's client does it."""
    control = await streaming(bench)
    stream = control.open(unidirectional=True)
    stream.send(Subscribe(1, (Subscription("a", 0, False, False, 0),), {}))
    assert (await control.expect(SubAck)).packet_id == 1
    stream.send(PingReq())
    await control.expect(PingResp)
    stream.send(publish("a", b"x"))
    stream.stream.end()
    assert (await control.message()).payload == b"x"
    assert await control.unsubscribe("a") == [0]


async def test_garbage_on_a_unidirectional_stream(bench: Bench) -> None:
    control = await streaming(bench)
    stream = control.open(unidirectional=True)
    stream.send(Disconnect(0, {}))
    await bench.server.wait_for(lambda: bench.server.stats().stream_errors == 1)
    assert cast("MemoryStream", stream.stream).peer.reset_code == 0
    assert await control.sync() == []


async def test_only_quic_has_further_streams(bench: Bench) -> None:
    control = await bench.join("x")
    stream = control.open()
    stream.send(publish("a", b"x", 1, 1))
    assert await stream.was_reset() == 0
    assert bench.server.stats().streams_refused == 1


async def test_streams_of_a_client_that_is_gone_are_reset(make_bench: MakeBench) -> None:
    bench = await make_bench(profile="emqx")
    control = await streaming(bench)
    control.send(Disconnect(0, {}))
    await control.closed()
    assert await control.open().was_reset() == 0


async def test_version_3_1_1_has_data_streams_as_well(bench: Bench) -> None:
    control = await streaming(bench, version=4)
    stream = control.open()
    assert await stream.subscribe("a", qos=1) == [1]
    stream.send(publish("a", b"x"))
    assert (await stream.message()).payload == b"x"
