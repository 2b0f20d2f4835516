"""Sessions that survive connections: resume, resend, queues, expiry, take-over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.errors import DisconnectedError
from mqttquic_lab.mqtt import ConnAck, Connect, Disconnect, PubAck, PubComp, Publish, PubRec, PubRel, encode_publish

if TYPE_CHECKING:
    from mqttquic_lab.mqtt import Packet, Version
    from tests.broker.conftest import Bench, MakeBench
    from tests.broker.peer import Peer


def payloads(packets: list[Packet]) -> list[bytes]:
    return [packet.payload for packet in packets if isinstance(packet, Publish)]


async def lose(bench: Bench, peer: Peer, client_id: str = "s") -> None:
    await peer.vanish()
    await bench.server.wait_for(lambda: client_id not in {client.client_id for client in bench.server.clients()})


async def join_lasting(bench: Bench, client_id: str = "s", version: Version = 5, **connect: Any) -> Peer:
    if version == 5:
        return await bench.join(client_id, session_expiry_interval=100, clean_start=False, **connect)
    return await bench.join(client_id, 4, clean_start=False, **connect)


@pytest.mark.parametrize("version", [4, 5])
async def test_messages_wait_for_a_client_that_is_away(bench: Bench, version: Version) -> None:
    subscriber = await join_lasting(bench, version=version)
    await subscriber.subscribe("a", qos=2)
    await lose(bench, subscriber)
    publisher = await bench.join("p")
    for qos in (0, 1, 2):
        await publisher.publish("a", b"%d" % qos, qos)
    assert bench.server.stats().queued == 2
    back = bench.attach(version)
    answer = await back.connect("s", clean_start=False)
    assert answer.session_present
    # QoS 0 messages do not wait (MQTT 5.0 section 4.1, non-normative).
    assert [((m := await back.message()).payload, m.qos, m.dup) for _ in range(2)] == [
        (b"1", 1, False),
        (b"2", 2, False),
    ]
    assert bench.server.stats().queued == 0


@pytest.mark.parametrize("version", [4, 5])
async def test_what_was_not_acknowledged_is_sent_again(bench: Bench, version: Version) -> None:
    subscriber = await join_lasting(bench, version=version)
    await subscriber.subscribe("a", qos=2)
    publisher = await bench.join("p")
    for number, qos in enumerate((1, 2, 2, 1)):
        await publisher.publish("a", b"%d" % number, qos)
    first = [await subscriber.message(acknowledge=False) for _ in range(4)]
    ids = [message.packet_id for message in first]
    assert None not in ids
    subscriber.send(PubRec(ids[1] or 0))
    assert isinstance(await subscriber.next(), PubRel)
    await lose(bench, subscriber)
    back = await join_lasting(bench, version=version)
    packets = [await back.next() for _ in range(4)]
    assert isinstance(packets[0], PubRel)
    assert packets[0].packet_id == ids[1]
    again = [(p.payload, p.packet_id, p.dup, p.qos) for p in packets[1:] if isinstance(p, Publish)]
    assert again == [(b"0", ids[0], True, 1), (b"2", ids[2], True, 2), (b"3", ids[3], True, 1)]


async def test_messages_in_flight_change_version_with_the_client(bench: Bench) -> None:
    subscriber = await join_lasting(bench)
    await subscriber.subscribe("a", qos=1, subscription_identifier=5)
    publisher = await bench.join("p")
    await publisher.publish("a", b"x", 1, content_type="t")
    await subscriber.message(acknowledge=False)
    await lose(bench, subscriber)
    older = await join_lasting(bench, version=4)
    message = await older.message(acknowledge=False)
    assert (message.payload, message.dup) == (b"x", True)
    await lose(bench, older)
    back = await join_lasting(bench)
    assert dict((await back.message()).properties) == {"content_type": "t", "subscription_identifier": (5,)}


async def test_a_smaller_receive_maximum_holds_on_resume(bench: Bench) -> None:
    subscriber = await join_lasting(bench)
    await subscriber.subscribe("a", qos=1)
    publisher = await bench.join("p")
    for number in range(3):
        await publisher.publish("a", b"%d" % number, 1)
    await subscriber.sync()
    await lose(bench, subscriber)
    back = await join_lasting(bench, receive_maximum=1)
    await publisher.publish("a", b"3", 1)
    found = []
    for _ in range(4):
        (packet,) = await back.sync()
        assert isinstance(packet, Publish)
        assert packet.packet_id is not None
        found.append((packet.payload, packet.dup))
        back.send(PubAck(packet.packet_id))
    assert found == [(b"0", True), (b"1", True), (b"2", True), (b"3", False)]


async def test_a_smaller_packet_size_on_resume_gives_up_what_does_not_fit(bench: Bench) -> None:
    subscriber = await join_lasting(bench)
    await subscriber.subscribe("a", qos=2)
    publisher = await bench.join("p")
    for qos in (1, 2):
        await publisher.publish("a", bytes(100), qos)
    await subscriber.sync()
    await lose(bench, subscriber)
    back = await join_lasting(bench, maximum_packet_size=60)
    assert await back.sync() == []
    assert bench.server.stats().dropped_size == 2
    assert bench.server.clients()[-1].inflight == 0
    await publisher.publish("a", b"fits", 1)
    assert (await back.message()).payload == b"fits"


async def test_an_unreleased_qos_2_message_is_not_delivered_twice(bench: Bench) -> None:
    watcher = await bench.join("w")
    await watcher.subscribe("a", qos=2)
    publisher = await join_lasting(bench, "p")
    publisher.send(Publish("a", b"x", 2, packet_id=7))
    await publisher.expect(PubRec)
    await lose(bench, publisher, "p")
    back = await join_lasting(bench, "p")
    back.send(Publish("a", b"x", 2, dup=True, packet_id=7))
    await back.expect(PubRec)
    back.send(PubRel(7))
    assert (await back.expect(PubComp)).reason_code == 0
    await watcher.message()
    assert await watcher.sync() == []


async def test_clean_start_forgets(bench: Bench) -> None:
    subscriber = await join_lasting(bench)
    await subscriber.subscribe("a", qos=1)
    await lose(bench, subscriber)
    publisher = await bench.join("p")
    await publisher.publish("a", b"x", 1)
    back = bench.attach()
    assert not (await back.connect("s")).session_present
    assert await back.sync() == []
    assert bench.server.stats().subscriptions == 0
    assert bench.server.stats().dropped_session == 1


@pytest.mark.parametrize("version", [4, 5])
async def test_a_session_without_expiry_ends_with_its_connection(bench: Bench, version: Version) -> None:
    peer = await bench.join("s", version)
    await peer.subscribe("a")
    await lose(bench, peer)
    assert (bench.server.stats().sessions, bench.server.stats().subscriptions) == (0, 0)
    back = bench.attach(version)
    assert not (await back.connect("s", clean_start=False)).session_present


async def test_a_session_expires(bench: Bench) -> None:
    peer = await bench.join("s", session_expiry_interval=50)
    await peer.subscribe("a")
    await lose(bench, peer)
    bench.clock.advance(49)
    assert bench.server.stats().sessions == 1
    bench.clock.advance(1)
    stats = bench.server.stats()
    assert (stats.sessions, stats.sessions_expired, stats.subscriptions) == (0, 1, 0)


async def test_coming_back_stops_the_expiry(bench: Bench) -> None:
    peer = await bench.join("s", session_expiry_interval=50)
    await lose(bench, peer)
    bench.clock.advance(49)
    await bench.join("s", clean_start=False, session_expiry_interval=50)
    bench.clock.advance(1000)
    assert bench.server.stats().sessions == 1


async def test_the_longest_expiry_is_ours_to_say(make_bench: MakeBench) -> None:
    bench = await make_bench(max_session_expiry=60)
    peer = bench.attach()
    answer = await peer.connect("s", session_expiry_interval=0xFFFFFFFF)
    assert answer.properties["session_expiry_interval"] == 60
    older = await bench.join("t", 4, clean_start=False)
    for client, name in ((peer, "s"), (older, "t")):
        await lose(bench, client, name)
    bench.clock.advance(60)
    assert bench.server.stats().sessions == 0


async def test_disconnect_may_change_the_expiry(bench: Bench) -> None:
    peer = await bench.join("s", session_expiry_interval=50)
    await peer.leave(session_expiry_interval=10)
    bench.clock.advance(10)
    assert bench.server.stats().sessions == 0


async def test_disconnect_may_not_begin_an_expiry(bench: Bench) -> None:
    peer = await bench.join("s")
    peer.send(Disconnect(0, {"session_expiry_interval": 10}))
    assert [p.reason_code for p in await peer.closed() if isinstance(p, Disconnect)] == [0x82]


async def test_queued_messages_expire(bench: Bench) -> None:
    subscriber = await join_lasting(bench)
    await subscriber.subscribe("a", qos=1)
    await lose(bench, subscriber)
    publisher = await bench.join("p")
    await publisher.publish("a", b"short", 1, message_expiry_interval=5)
    await publisher.publish("a", b"long", 1, message_expiry_interval=50)
    bench.clock.advance(10)
    back = await join_lasting(bench)
    message = await back.message()
    assert (message.payload, message.properties["message_expiry_interval"]) == (b"long", 40)
    assert await back.sync() == []
    assert bench.server.stats().expired == 1


async def test_the_queue_drops_its_oldest(make_bench: MakeBench) -> None:
    bench = await make_bench(max_queued=3)
    subscriber = await join_lasting(bench)
    await subscriber.subscribe("a", qos=1)
    await lose(bench, subscriber)
    publisher = await bench.join("p")
    for number in range(5):
        await publisher.publish("a", b"%d" % number, 1)
    assert (bench.server.stats().queued, bench.server.stats().dropped_queue) == (3, 2)
    back = await join_lasting(bench)
    assert payloads(await back.sync()) == [b"2", b"3", b"4"]


async def test_the_queue_is_bounded_in_bytes(make_bench: MakeBench) -> None:
    bench = await make_bench(max_queued_bytes=1000)
    subscriber = await join_lasting(bench)
    await subscriber.subscribe("a", qos=1)
    await lose(bench, subscriber)
    publisher = await bench.join("p")
    for number in range(4):
        await publisher.publish("a", bytes((number,)) * 400, 1)
    assert (bench.server.stats().queued_bytes, bench.server.stats().dropped_queue) == (802, 2)
    await publisher.publish("a", bytes(2000), 1)
    assert (bench.server.stats().queued_bytes, bench.server.stats().queued) == (0, 0)


async def test_all_queues_together_are_bounded(make_bench: MakeBench) -> None:
    bench = await make_bench(max_total_queued_bytes=1000)
    for number in range(3):
        peer = await join_lasting(bench, f"s{number}")
        await peer.subscribe("a", qos=1)
        await lose(bench, peer, f"s{number}")
    publisher = await bench.join("p")
    await publisher.publish("a", bytes(400), 1)
    assert (bench.server.stats().queued, bench.server.stats().queued_bytes) == (2, 802)
    assert bench.server.stats().dropped_queue == 1
    await bench.join("s0")
    assert (bench.server.stats().queued, bench.server.stats().queued_bytes) == (1, 401)
    await bench.join("s1", clean_start=False)
    assert (bench.server.stats().queued, bench.server.stats().queued_bytes) == (0, 0)


async def test_bytes_in_flight_are_bounded_too(make_bench: MakeBench) -> None:
    bench = await make_bench(max_queued_bytes=1000)
    subscriber = await bench.join("s")
    await subscriber.subscribe("a", qos=1)
    publisher = await bench.join("p")
    publisher.send(b"".join(encode_publish("a", bytes(400), 1, packet_id=number) for number in (1, 2, 3, 4)))
    await bench.server.wait_for(lambda: bench.server.stats().messages_in == 4)
    packets = await subscriber.sync()
    assert len(packets) == 2
    for packet in packets:
        assert isinstance(packet, Publish)
        assert packet.packet_id is not None
        subscriber.send(PubAck(packet.packet_id))
    assert len(await subscriber.sync()) == 2
    assert bench.server.stats().dropped_queue == 0


async def test_take_over(bench: Bench) -> None:
    first = await join_lasting(bench)
    await first.subscribe("a")
    second = bench.attach()
    assert (await second.connect("s", clean_start=False)).session_present
    (last,) = await first.closed()
    assert isinstance(last, Disconnect)
    assert last.reason_code == 0x8E
    publisher = await bench.join("p")
    await publisher.publish("a", b"x")
    assert (await second.message()).payload == b"x"
    assert bench.server.stats().takeovers == 1


async def test_take_over_of_a_311_client_just_closes(bench: Bench) -> None:
    first = await bench.join("s", 4)
    second = bench.attach(4)
    assert not (await second.connect("s", clean_start=False)).session_present
    assert await first.closed() == []


async def test_a_client_that_takes_over_itself_in_one_chunk(bench: Bench) -> None:
    """Two connections racing with the same id must leave exactly one."""
    peers = [bench.attach() for _ in range(5)]
    for peer in peers:
        peer.send(Connect("s", keepalive=0))
    await peers[-1].expect(ConnAck)
    for peer in peers[:-1]:
        packets = await peer.closed()
        assert isinstance(packets[-1], Disconnect)
    assert len(bench.server.clients()) == 1


async def test_the_number_of_sessions_is_bounded(make_bench: MakeBench) -> None:
    bench = await make_bench(max_sessions=2)
    for client_id, expiry in (("long", 100), ("short", 10)):
        await lose(bench, await bench.join(client_id, session_expiry_interval=expiry), client_id)
    third = await bench.join("third")
    assert bench.server.stats().sessions_evicted == 1
    assert {session.client_id for session in bench.server.sessions} == {"long", "third"}
    await bench.join("long")
    refused = bench.attach()
    assert (await refused.connect("fourth")).reason_code == 0x97
    await refused.closed()
    assert await third.sync() == []


async def test_closing_tells_every_client(bench: Bench) -> None:
    newer, older = await bench.join("a"), await bench.join("b", 4)
    silent = bench.attach()
    await bench.server.close()
    assert [p.reason_code for p in await newer.closed() if isinstance(p, Disconnect)] == [0x8B]
    assert await older.closed() == []
    assert await silent.closed() == []
    with pytest.raises(DisconnectedError):
        await bench.server.wait_for(lambda: False)
