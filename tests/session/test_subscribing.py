"""Subscribing and unsubscribing, towards a broker that answers only what a test wrote."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.errors import (
    DisconnectedError,
    OperationTimeoutError,
    ProtocolError,
    SubscribeError,
    UsageError,
)
from mqttquic_lab.mqtt import ConnAck, Publish, SubAck, Subscribe, Subscription, UnsubAck, Unsubscribe, Version
from tests.session.scripted import ScriptedBroker, hang, scripted, subscribed

if TYPE_CHECKING:
    from mqttquic_lab.session import AsyncSession


async def unsubscribed(broker: ScriptedBroker, *codes: int) -> Unsubscribe:
    """Take an UNSUBSCRIBE and agree to it."""
    packet = await broker.expect(Unsubscribe)
    broker.send(UnsubAck(packet.packet_id, codes or (0,) * len(packet.filters)))
    return packet


@pytest.mark.parametrize("version", [5, 4])
async def test_subscribe(version: Version) -> None:
    async with scripted(version=version) as (session, broker):
        asking = asyncio.create_task(session.subscribe(["a/+", ("b", 2)], 1))
        packet = await broker.grant(1, 0)
        assert packet.subscriptions == (Subscription("a/+", 1), Subscription("b", 2))
        assert packet.properties == {}
        feed = await hang(asking)
        assert feed.filters == ("a/+", "b")
        assert feed.granted == {"a/+": 1, "b": 0}
        assert session.feeds == (feed,)
        broker.send(Publish("a/x", b"1"), Publish("b", b"2"))
        assert await hang(feed.wait(2)) == 2


async def test_subscription_options_travel() -> None:
    async with scripted() as (session, broker):
        asking = asyncio.create_task(session.subscribe("a", 2, True, True, 1))
        assert (await broker.grant()).subscriptions == (Subscription("a", 2, True, True, 1),)
        await hang(asking)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("a/#/b",), "a/#/b"),
        (("",), "filter"),
        (([],), "at least one"),
        ((5,), "filter"),
        (([5],), "filter"),
        ((("a", 3),), "qos=3"),
        (("a", -1), "qos=-1"),
        (("a", 0, False, False, 3), "retain_handling"),
        (("$share/g/a", 0, True), "MQTT-3.8.3-4"),
        (("$share/a",), "share"),
        (([f"t/{n}" for n in range(10_001)],), "wildcard"),
    ],
)
async def test_bad_arguments_send_nothing(arguments: tuple[Any, ...], says: str) -> None:
    async with scripted() as (session, broker):
        with pytest.raises(UsageError, match=says):
            await session.subscribe(*arguments)
        assert await broker.sync(session) == []
        assert session.feeds == ()


@pytest.mark.parametrize("options", [{"decode": "xml"}, {"expand": True}, {"max_messages": 0}, {"timeout": "x"}])
async def test_bad_options_send_nothing(options: dict[str, Any]) -> None:
    async with scripted() as (session, broker):
        with pytest.raises(UsageError):
            await session.subscribe("a", **options)
        assert await broker.sync(session) == []


async def test_what_3_1_1_does_not_have() -> None:
    async with scripted(version=4) as (session, broker):
        with pytest.raises(UsageError, match="no_local"):
            await session.subscribe("a", no_local=True)
        assert await broker.sync(session) == []


@pytest.mark.parametrize(
    ("missing", "topic_filter"),
    [("wildcard_subscription_available", "a/+"), ("shared_subscription_available", "$share/g/a")],
)
async def test_what_the_broker_does_not_serve(missing: str, topic_filter: str) -> None:
    async with scripted(ConnAck(properties={missing: 0})) as (session, broker):
        with pytest.raises(SubscribeError, match="serves no") as caught:
            await session.subscribe(topic_filter)
        assert caught.value.reason_code in (0x9E, 0xA2)
        assert await broker.sync(session) == []


async def test_a_subscribe_larger_than_the_broker_accepts() -> None:
    async with scripted(ConnAck(properties={"maximum_packet_size": 50})) as (session, broker):
        with pytest.raises(UsageError, match=r"SUBSCRIBE has 10. bytes, the broker accepts 50"):
            await session.subscribe("x" * 93)
        assert await broker.sync(session) == []
        assert len(session._deliveries.ids) == 0
        await subscribed(session, broker, "fits")


async def test_every_packet_identifier_in_use() -> None:
    async with scripted() as (session, broker):
        while session._deliveries.ids.allocate() is not None:
            pass
        with pytest.raises(SubscribeError, match="65535 packet identifiers"):
            await session.subscribe("a")
        assert await broker.sync(session) == []


@pytest.mark.parametrize("version", [5, 4])
async def test_refused(version: Version) -> None:
    async with scripted(version=version) as (session, broker):
        asking = asyncio.create_task(session.subscribe("secret/#"))
        await broker.grant(0x87 if version == 5 else 0x80)
        with pytest.raises(SubscribeError, match="secret/#") as caught:
            await hang(asking)
        assert caught.value.reason_code == (0x87 if version == 5 else 0x80)
        assert isinstance(caught.value.packet, SubAck)
        assert session.feeds == ()
        assert await broker.sync(session) == []


async def test_partly_refused_gives_the_rest_back() -> None:
    async with scripted() as (session, broker):
        asking = asyncio.create_task(session.subscribe(["a", "secret", "b"]))
        await broker.grant(0, 0x87, 1)
        with pytest.raises(SubscribeError, match=r"'secret': Not authorized \(0x87\).*other 2 were given back"):
            await hang(asking)
        assert (await unsubscribed(broker)).filters == ("a", "b")
        assert await broker.sync(session) == []
        broker.send(Publish("a", b"late"))
        await broker.sync(session)
        assert session.stats.unrouted == 1


async def test_partly_refused_keeps_what_another_feed_has() -> None:
    async with scripted() as (session, broker):
        feed = await subscribed(session, broker, "a", 1)
        asking = asyncio.create_task(session.subscribe(["a", "secret"]))
        await broker.grant(0, 0x87)
        with pytest.raises(SubscribeError):
            await hang(asking)
        assert await broker.sync(session) == []
        broker.send(Publish("a", b"still"))
        assert await hang(feed.wait(1)) == 1


async def test_retained_messages_may_come_before_suback() -> None:
    async with scripted() as (session, broker):
        asking = asyncio.create_task(session.subscribe("a"))
        packet = await broker.expect(Subscribe)
        broker.send(Publish("a", b"kept", retain=True), SubAck(packet.packet_id, (0,)))
        feed = await hang(asking)
        assert feed.total == 1
        assert bool(feed.df["retain"][0])


async def test_the_wrong_number_of_answers() -> None:
    async with scripted() as (session, broker):
        asking = asyncio.create_task(session.subscribe(["a", "b"]))
        packet = await broker.expect(Subscribe)
        broker.send(SubAck(packet.packet_id, (0,)))
        with pytest.raises(DisconnectedError) as caught:
            await hang(asking)
        assert isinstance(caught.value.__cause__, ProtocolError)


async def test_an_answer_of_the_wrong_kind() -> None:
    async with scripted() as (session, broker):
        asking = asyncio.create_task(session.subscribe("a"))
        packet = await broker.expect(Subscribe)
        broker.send(UnsubAck(packet.packet_id, (0,)))
        with pytest.raises(DisconnectedError) as caught:
            await hang(asking)
        assert isinstance(caught.value.__cause__, ProtocolError)


async def test_an_answer_to_nothing_is_counted() -> None:
    async with scripted() as (session, broker):
        broker.send(SubAck(7, (0,)))
        await broker.sync(session)
        assert session.stats.stray == 1


async def test_no_answer_in_time_and_then_a_late_one() -> None:
    async with scripted() as (session, broker):
        with pytest.raises(OperationTimeoutError, match=r"no SUBACK for a, b within 0\.02 s"):
            await session.subscribe(["a", "b"], timeout=0.02)
        assert session.feeds == ()
        packet = await broker.expect(Subscribe)
        broker.send(SubAck(packet.packet_id, (0, 0x87)))
        # The broker has granted what nobody waits for any more.
        assert (await unsubscribed(broker)).filters == ("a",)
        assert await broker.sync(session) == []


async def test_the_connection_ends_meanwhile() -> None:
    async with scripted() as (session, broker):
        asking = asyncio.create_task(session.subscribe("a"))
        await broker.expect(Subscribe)
        broker.connection.abort("gone")
        with pytest.raises(DisconnectedError, match="gone"):
            await hang(asking)


# Overlaps


async def test_overlapping_subscriptions_get_identifiers() -> None:
    async with scripted() as (session, broker):
        first = await subscribed(session, broker, "a/#", 1)
        lonely = await subscribed(session, broker, "b")
        asking = asyncio.create_task(session.subscribe("a/b"))
        renewal = await broker.grant()
        # The older one is told again with an identifier, without its retained messages.
        assert renewal.subscriptions == (Subscription("a/#", 1, False, False, 2),)
        old = renewal.properties["subscription_identifier"][0]
        packet = await broker.grant()
        new = packet.properties["subscription_identifier"][0]
        assert old != new
        second = await hang(asking)
        # A broker that sends a copy per subscription, and one that sends one for all.
        broker.send(Publish("a/b", b"1", properties={"subscription_identifier": [old]}))
        broker.send(Publish("a/b", b"1", properties={"subscription_identifier": [new]}))
        broker.send(Publish("a/b", b"2", properties={"subscription_identifier": [new, old]}))
        broker.send(Publish("b", b"3"))
        await hang(lonely.wait(1))
        assert (first.total, second.total, lonely.total) == (2, 2, 1)


async def test_a_refused_renewal() -> None:
    async with scripted() as (session, broker):
        await subscribed(session, broker, "a/#")
        asking = asyncio.create_task(session.subscribe("a/b"))
        await broker.grant(0x97)
        with pytest.raises(SubscribeError, match="renew"):
            await hang(asking)
        assert len(session.feeds) == 1


@pytest.mark.parametrize("version", [5, 4])
async def test_without_identifiers_the_topic_decides(version: Version) -> None:
    connack = ConnAck(properties={"subscription_identifier_available": 0} if version == 5 else {})
    async with scripted(connack, version=version) as (session, broker):
        first = await subscribed(session, broker, "a/#")
        second = await subscribed(session, broker, "a/b")
        broker.send(Publish("a/b", b"1"))
        await hang(asyncio.gather(first.wait(1), second.wait(1)))
        assert (first.total, second.total) == (1, 1)


async def test_two_feeds_of_one_filter_share_what_satisfies_both() -> None:
    async with scripted() as (session, broker):
        first = await subscribed(session, broker, "a", 2)
        asking = asyncio.create_task(session.subscribe("a", 0, True, True))
        packet = await broker.grant()
        assert packet.subscriptions == (Subscription("a", 2, False, True, 0),)
        second = await hang(asking)
        broker.send(Publish("a", b"1"))
        await hang(second.wait(1))
        assert (first.total, second.total) == (1, 1)
        # The broker has one subscription: it ends with the second of the two feeds.
        await hang(session.unsubscribe(first))
        assert await broker.sync(session) == []
        leaving = asyncio.create_task(second.unsubscribe())
        assert (await unsubscribed(broker)).filters == ("a",)
        await hang(leaving)


# Unsubscribing


@pytest.mark.parametrize("version", [5, 4])
async def test_unsubscribe(version: Version) -> None:
    async with scripted(version=version) as (session, broker):
        feed = await subscribed(session, broker, ["a", "b"])
        leaving = asyncio.create_task(session.unsubscribe(feed))
        packet = await broker.expect(Unsubscribe)
        assert packet.filters == ("a", "b")
        broker.send(Publish("a", b"just in time"), UnsubAck(packet.packet_id, (0, 0x11) if version == 5 else ()))
        await hang(leaving)
        assert (feed.is_active, feed.total, session.feeds) == (False, 1, ())
        await hang(session.unsubscribe(feed))  # again is no error
        assert await broker.sync(session) == []


async def test_one_filter_of_several() -> None:
    async with scripted() as (session, broker):
        feed = await subscribed(session, broker, ["a", "b"])
        leaving = asyncio.create_task(session.unsubscribe("a"))
        await unsubscribed(broker)
        await hang(leaving)
        assert feed.is_active
        assert feed.filters == ("b",)
        broker.send(Publish("a", b""), Publish("b", b""))
        await hang(feed.wait(1))
        assert feed.total == 1


async def test_a_filter_nobody_has() -> None:
    async with scripted() as (session, broker):
        with pytest.raises(UsageError, match=r"no feed.*x/y"):
            await session.unsubscribe("x/y")
        with pytest.raises(UsageError):
            await session.unsubscribe([])
        assert await broker.sync(session) == []


async def test_a_refused_unsubscribe() -> None:
    async with scripted() as (session, broker):
        feed = await subscribed(session, broker, "a")
        leaving = asyncio.create_task(session.unsubscribe(feed))
        await unsubscribed(broker, 0x87)
        with pytest.raises(SubscribeError, match="unsubscribe from 'a'"):
            await hang(leaving)
        assert not feed.is_active


async def test_no_unsuback_in_time() -> None:
    async with scripted() as (session, broker):
        feed = await subscribed(session, broker, "a")
        with pytest.raises(OperationTimeoutError, match="no UNSUBACK"):
            await session.unsubscribe(feed, timeout=0.02)
        assert not feed.is_active
        await unsubscribed(broker)
        assert await broker.sync(session) == []


async def test_two_feeds_of_one_filter_leave_at_once() -> None:
    async with scripted() as (session, broker):
        first = await subscribed(session, broker, "a")
        second = await subscribed(session, broker, "a")
        leaving = asyncio.gather(first.unsubscribe(), second.unsubscribe())
        assert (await unsubscribed(broker)).filters == ("a",)
        await hang(leaving)
        assert await broker.sync(session) == []


async def test_unsubscribing_after_the_end() -> None:
    session: AsyncSession
    async with scripted() as (session, broker):
        feed = await subscribed(session, broker, "a")
        await hang(session.close())
        assert not feed.is_active
        await hang(feed.unsubscribe())
        assert session.feeds == ()
