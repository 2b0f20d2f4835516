"""Filters, subscription options, identifiers, shared subscriptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.mqtt import Disconnect, Publish, Subscribe, Subscription

if TYPE_CHECKING:
    from mqttquic_lab.mqtt import Packet, Version
    from tests.broker.conftest import Bench, MakeBench
    from tests.broker.peer import Peer


def payloads(packets: list[Packet]) -> list[bytes]:
    return [packet.payload for packet in packets if isinstance(packet, Publish)]


@pytest.mark.parametrize("version", [4, 5])
async def test_wildcards(bench: Bench, version: Version) -> None:
    subscriber = await bench.join("s", version)
    await subscriber.subscribe("a/+/c", "b/#", "d")
    publisher = await bench.join("p", version)
    for topic in ("a/b/c", "a/b", "b", "b/x/y", "d", "d/e", "$SYS/b"):
        await publisher.publish(topic, topic.encode())
    assert payloads(await subscriber.sync()) == [b"a/b/c", b"b", b"b/x/y", b"d"]


async def test_wildcards_at_the_start_leave_out_dollar_topics(bench: Bench) -> None:
    subscriber = await bench.join("s")
    await subscriber.subscribe("#", "+/x", "$lab/x")
    publisher = await bench.join("p")
    await publisher.publish("$lab/x", b"1")
    assert len(await subscriber.sync()) == 1


async def test_overlapping_subscriptions_give_one_copy_with_the_highest_qos(bench: Bench) -> None:
    subscriber = await bench.join("s")
    await subscriber.subscribe("a/#", qos=0, subscription_identifier=7)
    await subscriber.subscribe("a/b", qos=1, subscription_identifier=3)
    await subscriber.subscribe("+/b", qos=2)
    publisher = await bench.join("p")
    await publisher.publish("a/b", b"x", 1)
    message = await subscriber.message()
    assert message.qos == 1
    assert message.properties["subscription_identifier"] == (3, 7)
    assert await subscriber.sync() == []


@pytest.mark.parametrize("options", [{"overlapping": "each"}, {"profile": "emqx"}])
async def test_overlapping_subscriptions_give_a_copy_each(make_bench: MakeBench, options: dict[str, Any]) -> None:
    bench = await make_bench(**options)
    subscriber = await bench.join("s")
    await subscriber.subscribe("a/#", qos=0, subscription_identifier=7)
    await subscriber.subscribe("a/b", qos=1, subscription_identifier=3)
    publisher = await bench.join("p")
    for qos in (0, 1):
        await publisher.publish("a/b", b"x", qos)
        copies = [await subscriber.message(), await subscriber.message()]
        told = {copy.properties["subscription_identifier"]: copy.qos for copy in copies}
        assert told == {(7,): 0, (3,): qos}
    assert await subscriber.sync() == []


async def test_subscription_identifiers_are_each_clients_own(bench: Bench) -> None:
    subscribers = [await bench.join(f"s{number}") for number in range(3)]
    for number, subscriber in enumerate(subscribers):
        properties: dict[str, Any] = {"subscription_identifier": number} if number else {}
        await subscriber.subscribe("a", **properties)
    publisher = await bench.join("p")
    await publisher.publish("a", b"x")
    found = [(await subscriber.message()).properties.get("subscription_identifier") for subscriber in subscribers]
    assert found == [None, (1,), (2,)]


async def test_subscribing_again_replaces_qos_and_identifier(bench: Bench) -> None:
    subscriber = await bench.join("s")
    await subscriber.subscribe("a", qos=2, subscription_identifier=1)
    await subscriber.subscribe("a", qos=0)
    publisher = await bench.join("p")
    await publisher.publish("a", b"x", 1)
    message = await subscriber.message()
    assert message.qos == 0
    assert not message.properties
    assert bench.server.stats().subscriptions == 1


async def test_no_local(bench: Bench) -> None:
    peer = await bench.join("x")
    await peer.subscribe("a", qos=1, no_local=True)
    other = await bench.join("y")
    await peer.publish("a", b"mine")
    await peer.publish("a", b"mine too", 1)
    await other.publish("a", b"theirs")
    assert payloads(await peer.sync()) == [b"theirs"]


async def test_no_local_beside_an_ordinary_subscription(bench: Bench) -> None:
    peer = await bench.join("x")
    await peer.subscribe("a", no_local=True, subscription_identifier=1)
    await peer.subscribe("+", subscription_identifier=2)
    peer.send(Publish("a", b"mine"))
    assert (await peer.message()).properties["subscription_identifier"] == (2,)


async def test_retain_as_published(bench: Bench) -> None:
    plain, kept = await bench.join("s"), await bench.join("t")
    await plain.subscribe("a")
    await kept.subscribe("a", retain_as_published=True)
    publisher = await bench.join("p")
    await publisher.publish("a", b"x", retain=True)
    assert not (await plain.message()).retain
    assert (await kept.message()).retain


async def test_unsubscribe(bench: Bench) -> None:
    subscriber = await bench.join("s")
    await subscriber.subscribe("a", "b")
    assert await subscriber.unsubscribe("a", "never") == [0x00, 0x11]
    publisher = await bench.join("p")
    await publisher.publish("a", b"a")
    await publisher.publish("b", b"b")
    assert payloads(await subscriber.sync()) == [b"b"]


async def test_routes_follow_every_change(bench: Bench) -> None:
    """The route of a topic is remembered; each step here would find a stale one."""
    publisher = await bench.join("p")
    subscriber = await bench.join("s", session_expiry_interval=100)
    await publisher.publish("a", b"0")
    await subscriber.subscribe("a", qos=1)
    await publisher.publish("a", b"1")
    assert payloads([await subscriber.message()]) == [b"1"]
    await subscriber.vanish()
    await publisher.publish("a", b"2")
    await publisher.publish("a", b"3", 1)
    back = await bench.join("s", clean_start=False)
    assert payloads([await back.message()]) == [b"3"]
    await publisher.publish("a", b"4")
    assert payloads([await back.message()]) == [b"4"]
    await back.unsubscribe("a")
    assert await publisher.publish("a", b"5", 1) == 0x10
    assert await back.sync() == []
    assert bench.server.stats().dropped_qos0 == 0  # which a message to a client that is gone would count as


async def test_the_number_of_subscriptions_is_bounded(make_bench: MakeBench) -> None:
    bench = await make_bench(max_subscriptions=2)
    subscriber = await bench.join("s")
    assert await subscriber.subscribe("a", "b", "c", "a") == [0, 0, 0x97, 0]
    older = await bench.join("t", 4)
    assert await older.subscribe("a", "b", "c") == [0, 0, 0x80]
    assert bench.server.stats().subscriptions_refused == 2


async def join_group(bench: Bench, count: int, qos: int = 0) -> list[Peer]:
    members = [await bench.join(f"m{number}", session_expiry_interval=100) for number in range(count)]
    for member in members:
        await member.subscribe("$share/g/a/#", qos=qos)
    return members


async def test_a_shared_subscription_goes_round(bench: Bench) -> None:
    members = await join_group(bench, 3)
    outside = await bench.join("o", 4)
    await outside.subscribe("a/#")
    publisher = await bench.join("p")
    for number in range(6):
        await publisher.publish(f"a/{number}", b"%d" % number)
    found = [payloads(await member.sync()) for member in members]
    assert sorted(found) == [[b"0", b"3"], [b"1", b"4"], [b"2", b"5"]]
    assert len(await outside.sync()) == 6


async def test_groups_are_told_apart_by_name_and_filter(bench: Bench) -> None:
    peers = [await bench.join(f"m{number}") for number in range(3)]
    for peer, shared in zip(peers, ("$share/g/a", "$share/h/a", "$share/g/+"), strict=True):
        await peer.subscribe(shared)
    publisher = await bench.join("p")
    await publisher.publish("a", b"x")
    assert [len(await peer.sync()) for peer in peers] == [1, 1, 1]


async def test_a_member_that_is_away_is_passed_over(bench: Bench) -> None:
    members = await join_group(bench, 3, qos=1)
    publisher = await bench.join("p")
    await members[1].vanish()
    for number in range(4):
        await publisher.publish("a/x", b"%d" % number, 1)
    assert [len(await members[number].sync()) for number in (0, 2)] == [2, 2]


async def test_messages_wait_when_all_members_are_away(bench: Bench) -> None:
    members = await join_group(bench, 2, qos=1)
    publisher = await bench.join("p")
    for member in members:
        await member.vanish()
    for number in range(4):
        await publisher.publish("a/x", b"%d" % number, number % 2)
    back = [await bench.join(f"m{number}", clean_start=False) for number in range(2)]
    found = [payloads(await peer.sync()) for peer in back]
    assert sorted(found) == [[b"1"], [b"3"]]


async def test_a_shared_subscription_ends_with_its_last_member(bench: Bench) -> None:
    members = await join_group(bench, 2)
    publisher = await bench.join("p")
    assert await members[0].unsubscribe("$share/g/a/#") == [0]
    await publisher.publish("a/x", b"1")
    assert payloads(await members[1].sync()) == [b"1"]
    await members[1].leave(session_expiry_interval=0)
    assert await publisher.publish("a/x", b"2", 1) == 0x10


async def test_shared_subscriptions_work_for_311_clients_too(bench: Bench) -> None:
    members = [await bench.join(f"m{number}", 4) for number in range(2)]
    for member in members:
        assert await member.subscribe("$share/g/a", qos=1) == [1]
    publisher = await bench.join("p", 4)
    for _ in range(2):
        await publisher.publish("a", b"x", 1)
    assert [len(await member.sync()) for member in members] == [1, 1]


async def test_no_local_on_a_shared_subscription_is_a_protocol_error(bench: Bench) -> None:
    peer = await bench.join("x")
    packet = Subscribe(1, (Subscription("$share/g/a", 0),)).encode()
    peer.send(packet[:-1] + bytes((packet[-1] | 4,)))
    assert [p.reason_code for p in await peer.closed() if isinstance(p, Disconnect)] == [0x82]
