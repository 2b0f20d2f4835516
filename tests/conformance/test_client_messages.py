"""Our client against a scripted server: messages both ways, subscriptions, limits, and going on after a loss."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.errors import PublishError, UsageError
from mqttquic_lab.mqtt import (
    ConnAck,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    UnsubAck,
    Unsubscribe,
    Version,
)
from tests.session.scripted import ScriptedBroker, hang, scripted, subscribed
from tests.session.test_reconnect import come_back, lose, unanswered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqttquic_lab.mqtt import Packet

VERSIONS = pytest.mark.parametrize("version", [4, 5])


def ids(packets: Sequence[Packet], kind: type[Any]) -> list[int]:
    return [each.packet_id for each in packets if isinstance(each, kind)]


async def sent(broker: ScriptedBroker, count: int) -> list[Publish]:
    return [await broker.expect(Publish) for _ in range(count)]


# Packet identifiers


@VERSIONS
async def test_identifiers_are_not_zero_and_not_in_use(version: Version) -> None:
    """Over PUBLISH, SUBSCRIBE and UNSUBSCRIBE together."""
    async with scripted(version=version) as (session, broker):
        feed = await subscribed(session, broker, "kept")
        used: set[int] = set()
        tasks: list[asyncio.Task[Any]] = []
        for number in range(30):
            if number % 3 == 0:
                tasks.append(asyncio.create_task(session.subscribe(f"f/{number}")))
            else:
                tasks.append(asyncio.create_task(session.publish("a", b"x", number % 3)))
            asked: Any = await broker.next()
            assert asked.packet_id
            assert asked.packet_id not in used
            used.add(asked.packet_id)
            if number % 6 == 4:
                broker.send(PubAck(asked.packet_id))
                used.discard(asked.packet_id)
        tasks.append(asyncio.create_task(session.unsubscribe(feed)))
        assert (await broker.expect(Unsubscribe)).packet_id not in used
        for task in tasks:
            task.cancel()


@VERSIONS
async def test_an_identifier_is_free_when_its_exchange_has_ended(version: Version) -> None:
    async with scripted(version=version) as (session, broker):
        in_use = session._deliveries.ids
        for qos in (1, 2):
            publishing = asyncio.create_task(session.publish("a", b"x", qos))
            (message,) = await sent(broker, 1)
            packet_id = message.packet_id or 0
            assert packet_id in in_use
            if qos == 2:
                broker.send(PubRec(packet_id))
                assert (await broker.expect(PubRel)).packet_id == packet_id
                assert packet_id in in_use
            broker.send(PubAck(packet_id) if qos == 1 else PubComp(packet_id))
            await hang(publishing)
            assert packet_id not in in_use
        feed = await subscribed(session, broker, "a")
        leaving = asyncio.create_task(session.unsubscribe(feed))
        asked = await broker.expect(Unsubscribe)
        assert asked.packet_id in in_use
        broker.send(UnsubAck(asked.packet_id, [0]))
        await hang(leaving)
        assert len(in_use) == 0


@VERSIONS
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_what_a_message_looks_like_the_first_time(version: Version, qos: int) -> None:
    async with scripted(version=version) as (session, broker):
        tasks = [asyncio.create_task(session.publish("a/b", b"x", qos, retain)) for retain in (False, True)]
        messages = await sent(broker, 2)
        for message, retain in zip(messages, (False, True), strict=True):
            packet_id = (message.packet_id or 0).to_bytes(2, "big") if qos else b""
            body = b"\0\3a/b" + packet_id + (b"\0" if version == 5 else b"") + b"x"
            assert message.raw == bytes((0x30 | qos << 1 | retain, len(body))) + body
        for task in tasks:
            task.cancel()


# Receiving


@VERSIONS
async def test_each_message_is_answered_in_the_order_of_arrival(version: Version) -> None:
    async with scripted(version=version) as (session, broker):
        await subscribed(session, broker, "a", 2)
        broker.send(*(Publish("a", b"", 1 + n % 2, packet_id=100 - n) for n in range(20)))
        answers = await broker.sync(session)
        assert ids(answers, PubAck) == [100 - n for n in range(0, 20, 2)]
        assert ids(answers, PubRec) == [100 - n for n in range(1, 20, 2)]
        released = [97, 99, 81, 95]
        broker.send(*(PubRel(packet_id) for packet_id in released))
        assert ids(await broker.sync(session), PubComp) == released


@VERSIONS
async def test_releases_go_out_in_the_order_of_the_pubrecs(version: Version) -> None:
    async with scripted(version=version) as (session, broker):
        tasks = [asyncio.create_task(session.publish("a", b"%d" % n, 2)) for n in range(6)]
        numbers = [message.packet_id or 0 for message in await sent(broker, 6)]
        order = [numbers[n] for n in (3, 0, 5, 4, 1, 2)]
        broker.send(*(PubRec(packet_id) for packet_id in order))
        assert ids(await broker.sync(session), PubRel) == order
        broker.send(*(PubComp(packet_id) for packet_id in order))
        await hang(asyncio.gather(*tasks))


@VERSIONS
async def test_what_nobody_asked_for_is_answered_as_well(version: Version) -> None:
    async with scripted(version=version) as (session, broker):
        broker.send(Publish("x", b"", 1, packet_id=1), Publish("x", b"", 2, packet_id=2), PubRel(2))
        answers = await broker.sync(session)
        assert [type(each) for each in answers] == [PubAck, PubRec, PubComp]
        assert session.stats.unrouted == 2


@VERSIONS
async def test_qos_1_the_same_identifier_again_is_a_new_message(version: Version) -> None:
    async with scripted(version=version) as (session, broker):
        feed = await subscribed(session, broker, "a", 1)
        for payload, dup in ((b"1", False), (b"2", False), (b"2", True)):
            broker.send(Publish("a", payload, 1, dup=dup, packet_id=5))
            assert (await broker.expect(PubAck)).packet_id == 5
        assert feed.df["payload"].tolist() == [b"1", b"2", b"2"]


@VERSIONS
async def test_qos_2_is_received_once_until_it_is_released(version: Version) -> None:
    async with scripted(version=version) as (session, broker):
        feed = await subscribed(session, broker, "a", 2)
        for round_number in range(2):
            for dup in (False, True, False):
                broker.send(Publish("a", b"%d" % round_number, 2, dup=dup, packet_id=5))
                assert (await broker.expect(PubRec)).packet_id == 5
            broker.send(PubRel(5))
            assert (await broker.expect(PubComp)).packet_id == 5
        assert feed.df["payload"].tolist() == [b"0", b"1"]


@VERSIONS
async def test_a_byte_order_mark_is_a_character_like_others(version: Version) -> None:
    async with scripted(version=version) as (session, broker):
        feed = await subscribed(session, broker, "\ufeffa")
        broker.send(Publish("\ufeffa", b"1"), Publish("a", b"2"))
        await broker.sync(session)
        assert feed.df["topic"].tolist() == ["\ufeffa"]
        await session.publish("\ufeffb", b"")
        assert (await broker.expect(Publish)).topic == "\ufeffb"


async def test_every_alias_up_to_our_maximum_is_taken() -> None:
    async with scripted(topic_alias_maximum=5) as (session, broker):
        feed = await subscribed(session, broker, "t/#")
        broker.send(*(Publish(f"t/{n}", b"", properties={"topic_alias": n}) for n in range(1, 6)))
        broker.send(*(Publish("", b"", properties={"topic_alias": n}) for n in range(5, 0, -1)))
        await broker.sync(session)
        assert feed.df["topic"].tolist() == [f"t/{n}" for n in (1, 2, 3, 4, 5, 5, 4, 3, 2, 1)]


# Sending: what must not be


@pytest.mark.parametrize(
    ("topic", "properties"),
    [
        ("a/#", {}), ("+", {}), ("", {}), ("a\0b", {}), ("\ud800", {}), ("x" * 65_536, {}),
        ("a", {"response_topic": "r/+"}), ("a", {"response_topic": "\0"}), ("a", {"content_type": "\ud800"}),
        ("a", {"user_property": [("a", "\0")]}), ("a", {"topic_alias": 0}), ("a", {"topic_alias": 1}),
        ("a", {"subscription_identifier": 1}), ("a", {"payload_format_indicator": 2}),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
async def test_what_publish_must_not_carry_is_refused_before_it_is_sent(topic: str, properties: dict[str, Any]) -> None:
    async with scripted() as (session, broker):
        for qos in (0, 1):
            with pytest.raises(UsageError):
                await session.publish(topic, b"x", qos, properties=properties)
        assert await broker.sync(session) == []


@VERSIONS
@pytest.mark.parametrize("topic_filter", ["", "a#", "a/#/b", "+a", "a\0", "\ud800", "x" * 65_536, []])
async def test_filters_that_must_not_be_are_refused_before_they_are_sent(version: Version, topic_filter: Any) -> None:
    async with scripted(version=version) as (session, broker):
        with pytest.raises(UsageError):
            await session.subscribe(topic_filter)
        assert await broker.sync(session) == []


@pytest.mark.parametrize("shared", ["$share//a", "$share/g", "$share/g/", "$share/+/a", "$share/g#/a"])
async def test_shared_filters_that_must_not_be(shared: str) -> None:
    async with scripted() as (session, broker):
        with pytest.raises(UsageError):
            await session.subscribe(shared)
        with pytest.raises(UsageError, match="no_local"):
            await session.subscribe("$share/g/a", no_local=True)
        assert await broker.sync(session) == []


async def test_what_subscribe_and_unsubscribe_look_like() -> None:
    async with scripted() as (session, broker):
        asking = asyncio.create_task(
            session.subscribe(["a", ("b/#", 2)], 1, no_local=True, retain_as_published=True, retain_handling=2)
        )
        asked = await broker.expect(Subscribe)
        number = asked.packet_id.to_bytes(2, "big")
        assert asked.raw == b"\x82\x0d" + number + b"\0" + b"\0\1a\x2d" + b"\0\3b/#\x2e"
        broker.send(SubAck(asked.packet_id, [1, 2]))
        feed = await hang(asking)
        leaving = asyncio.create_task(session.unsubscribe(feed))
        asked_to_stop = await broker.expect(Unsubscribe)
        assert asked_to_stop.raw[:1] == b"\xa2"
        assert set(asked_to_stop.filters) == {"a", "b/#"}
        broker.send(UnsubAck(asked_to_stop.packet_id, [0, 0]))
        await hang(leaving)


# What the server allows


@pytest.mark.parametrize("maximum", [0, 1])
async def test_no_qos_above_the_servers_maximum(maximum: int) -> None:
    async with scripted(ConnAck(properties={"maximum_qos": maximum})) as (session, broker):
        for qos in range(maximum + 1, 3):
            with pytest.raises(PublishError) as caught:
                await session.publish("a", b"x", qos)
            assert caught.value.reason_code == 0x9B
            with pytest.raises(PublishError):
                await session.publish_many([("a", b"x")], qos)
        assert await broker.sync(session) == []
        await session.publish("a", b"x", 0)
        assert (await broker.expect(Publish)).qos == 0


async def test_nothing_retained_where_the_server_does_not_retain() -> None:
    async with scripted(ConnAck(properties={"retain_available": 0})) as (session, broker):
        with pytest.raises(PublishError):
            await session.publish("a", b"x", retain=True)
        with pytest.raises(PublishError):
            await session.publish_many([("a", b"x")], retain=True)
        assert await broker.sync(session) == []


async def test_no_packet_larger_than_the_server_takes() -> None:
    async with scripted(ConnAck(properties={"maximum_packet_size": 50})) as (session, broker):
        for qos in (0, 1, 2):
            with pytest.raises(PublishError):
                await session.publish("a", bytes(50), qos)
        with pytest.raises(UsageError, match="Maximum Packet Size"):
            await session.subscribe("x" * 50)
        assert await broker.sync(session) == []
        await session.publish("a", bytes(44))
        assert len((await broker.expect(Publish)).raw) == 50


async def test_no_alias_that_the_server_does_not_allow() -> None:
    for told, expected in (
        ({}, {None}),
        ({"topic_alias_maximum": 0}, {None}),
        ({"topic_alias_maximum": 2}, {None, 1, 2}),
    ):
        async with scripted(ConnAck(properties=told), alias_topics=True) as (session, broker):
            for number in range(12):
                await session.publish(f"long/topic/{number % 4}", b"x")
            messages = await sent(broker, 12)
            assert {message.properties.get("topic_alias") for message in messages} == expected


@pytest.mark.parametrize("limit", [1, 4])
async def test_no_more_than_the_servers_receive_maximum(limit: int) -> None:
    async with scripted(ConnAck(properties={"receive_maximum": limit})) as (session, broker):
        tasks = [asyncio.create_task(session.publish("a", b"%d" % n, 1 + n % 2)) for n in range(10)]
        seen: list[Publish] = []
        done = 0
        while done < 10:
            arrived = [each for each in await broker.sync(session) if isinstance(each, Publish)]
            seen += arrived
            assert len(seen) - done == min(limit, 10 - done)
            oldest = seen[done]
            packet_id = oldest.packet_id or 0
            if oldest.qos == 1:
                broker.send(PubAck(packet_id))
            else:
                broker.send(PubRec(packet_id))
                assert [type(each) for each in await broker.sync(session)] == [PubRel]  # makes no room
                broker.send(PubComp(packet_id))
            done += 1
        await hang(asyncio.gather(*tasks))
        assert [message.payload for message in seen] == [b"%d" % n for n in range(10)]


async def test_without_room_all_but_publish_goes_on() -> None:
    async with scripted(ConnAck(properties={"receive_maximum": 1})) as (session, broker):
        tasks = [asyncio.create_task(session.publish("a", b"%d" % n, 1)) for n in range(2)]
        (message,) = await sent(broker, 1)
        feed = await subscribed(session, broker, "b", 2)
        broker.send(Publish("b", b"", 1, packet_id=1), Publish("b", b"", 2, packet_id=2), PubRel(2))
        assert [type(each) for each in await broker.sync(session)] == [PubAck, PubRec, PubComp]
        await session.publish("c", b"at most once")
        assert (await broker.expect(Publish)).payload == b"at most once"
        pinging = asyncio.create_task(session.ping())
        await broker.expect(PingReq)
        broker.send(PingResp())
        await hang(pinging)
        leaving = asyncio.create_task(session.unsubscribe(feed))
        asked = await broker.expect(Unsubscribe)
        broker.send(UnsubAck(asked.packet_id, [0]), PubAck(message.packet_id or 0))
        await hang(leaving)
        (second,) = await sent(broker, 1)
        broker.send(PubAck(second.packet_id or 0))
        await hang(asyncio.gather(*tasks))


async def test_the_quota_begins_anew_with_each_connection() -> None:
    async with scripted() as (session, broker):
        waiting = await unanswered(session, 1, b"1", b"2", b"3")
        await sent(broker, 3)
        await lose(session, broker)
        await asyncio.gather(*waiting, return_exceptions=True)
        broker, going_on, _ = await come_back(session, ConnAck(session_present=True, properties={"receive_maximum": 2}))
        await hang(going_on)
        again = [each for each in await broker.sync(session) if isinstance(each, Publish)]
        assert [(message.payload, message.dup) for message in again] == [(b"1", True), (b"2", True)]
        broker.send(PubAck(again[0].packet_id or 0))
        (third,) = await sent(broker, 1)
        assert (third.payload, third.dup) == (b"3", True)


# Sending again


@VERSIONS
async def test_nothing_is_sent_again_on_the_same_connection(version: Version) -> None:
    async with scripted(version=version) as (session, broker):
        for qos in (1, 2):
            task = asyncio.create_task(session.publish("a", b"x", qos, timeout=0.02))
            (message,) = await sent(broker, 1)
            if qos == 2:
                broker.send(PubRec(message.packet_id or 0))
                await broker.expect(PubRel)
            assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], TimeoutError)
        assert await broker.sync(session) == []
        assert session.unacknowledged == 2


@VERSIONS
async def test_what_is_sent_again_keeps_its_order_and_identifiers(version: Version) -> None:
    async with scripted(version=version, client_id="x", clean_start=False) as (session, broker):
        waiting: list[asyncio.Task[Any]] = []
        for number in range(8):
            waiting += await unanswered(session, 1 + number % 2, b"%d" % number)
        first = await sent(broker, 8)
        for number in (5, 1):
            broker.send(PubRec(first[number].packet_id or 0))
            await broker.expect(PubRel)
        broker.send(PubAck(first[2].packet_id or 0))
        await hang(waiting[2])
        await lose(session, broker)
        await asyncio.gather(*waiting, return_exceptions=True)
        broker, going_on, _ = await come_back(session, ConnAck(session_present=True))
        await hang(going_on)
        packets = await broker.sync(session)
        assert ids(packets, PubRel) == [first[5].packet_id, first[1].packet_id]
        again = [(each.payload, each.packet_id, each.qos, each.dup) for each in packets if isinstance(each, Publish)]
        left = [first[number] for number in (0, 3, 4, 6, 7)]
        assert again == [(each.payload, each.packet_id, each.qos, True) for each in left]


@pytest.mark.parametrize("qos", [1, 2])
async def test_what_was_refused_is_not_sent_again(qos: int) -> None:
    async with scripted(client_id="x", clean_start=False) as (session, broker):
        (waiting,) = await unanswered(session, qos, b"x")
        (message,) = await sent(broker, 1)
        broker.send((PubAck if qos == 1 else PubRec)(message.packet_id or 0, 0x97))
        with pytest.raises(PublishError):
            await hang(waiting)
        await lose(session, broker)
        broker, going_on, _ = await come_back(session, ConnAck(session_present=True))
        await hang(going_on)
        assert await broker.sync(session) == []


@pytest.mark.parametrize("qos", [1, 2])
async def test_what_was_sent_does_not_expire(qos: int) -> None:
    """It is sent again with the interval it came with: how long that is for the server to judge."""
    async with scripted(client_id="x", clean_start=False) as (session, broker):
        task = asyncio.create_task(session.publish("a", b"x", qos, properties={"message_expiry_interval": 0}))
        (first,) = await sent(broker, 1)
        await lose(session, broker)
        await asyncio.gather(task, return_exceptions=True)
        broker, going_on, _ = await come_back(session, ConnAck(session_present=True))
        await hang(going_on)
        (again,) = await sent(broker, 1)
        assert (again.payload, again.packet_id, again.dup) == (b"x", first.packet_id, True)


async def test_without_a_session_at_the_server_the_clients_is_discarded() -> None:
    """Messages that were never acknowledged are published anew: as new messages, not as duplicates."""
    async with scripted(client_id="x", clean_start=False) as (session, broker):
        feed = await subscribed(session, broker, "a", 2)
        broker.send(Publish("a", b"first", 2, packet_id=5))
        await broker.expect(PubRec)
        waiting = await unanswered(session, 1, b"1")
        await sent(broker, 1)
        await lose(session, broker)
        await asyncio.gather(*waiting, return_exceptions=True)
        broker, going_on, _ = await come_back(session, ConnAck(session_present=False))
        packets = [await broker.next() for _ in range(2)]
        (again,) = [each for each in packets if isinstance(each, Publish)]
        (asked,) = [each for each in packets if isinstance(each, Subscribe)]
        assert (again.payload, again.dup) == (b"1", False)
        broker.send(SubAck(asked.packet_id, [2]))
        await hang(going_on)
        broker.send(Publish("a", b"second", 2, packet_id=5))  # identifier 5 is a new message: the old one is forgotten
        await broker.expect(PubRec)
        assert feed.df["payload"].tolist() == [b"first", b"second"]
