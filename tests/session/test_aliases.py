"""Topic aliases that the session uses towards the broker (MQTT 5.0 section 3.3.2.3.4)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.errors import PublishError, UsageError
from mqttquic_lab.mqtt import ConnAck, PubAck, Publish
from mqttquic_lab.session import SessionOptions
from tests.session.conftest import SCHEMES
from tests.session.scripted import hang, scripted

if TYPE_CHECKING:
    from tests.session.conftest import Open
    from tests.session.scripted import ScriptedBroker

TWO = ConnAck(properties={"topic_alias_maximum": 2})


async def taken(broker: ScriptedBroker, count: int) -> list[tuple[str, int | None]]:
    packets = [await broker.expect(Publish) for _ in range(count)]
    return [(packet.topic, packet.properties.get("topic_alias")) for packet in packets]


async def test_a_name_travels_once() -> None:
    async with scripted(TWO, alias_topics=True) as (session, broker):
        for topic in ("plant/a", "plant/a", "plant/b", "plant/c", "plant/b"):
            await session.publish(topic, b"x", properties={"content_type": "text"})
        assert await taken(broker, 5) == [("plant/a", 1), ("", 1), ("plant/b", 2), ("plant/c", None), ("", 2)]


async def test_in_bulk_and_at_qos_1() -> None:
    async with scripted(TWO, alias_topics=True) as (session, broker):
        assert (await session.publish_many([("plant/a", b"x")] * 3)).count == 3
        assert await taken(broker, 3) == [("plant/a", 1), ("", 1), ("", 1)]
        publishing = asyncio.create_task(session.publish("plant/a", b"x", 1))
        packet = await broker.expect(Publish)
        assert (packet.topic, packet.properties) == ("", {"topic_alias": 1})
        broker.send(PubAck(packet.packet_id or 0))
        assert (await hang(publishing)).reason_code == 0


async def test_none_without_the_option_or_the_brokers_leave() -> None:
    for connack, wanted in ((TWO, False), (ConnAck(), True)):
        async with scripted(connack, alias_topics=wanted) as (session, broker):
            await session.publish_many([("plant/a", b"x")] * 2)
            assert await taken(broker, 2) == [("plant/a", None)] * 2


async def test_what_is_not_sent_names_no_alias() -> None:
    connack = ConnAck(properties={"topic_alias_maximum": 2, "maximum_packet_size": 100})
    async with scripted(connack, alias_topics=True) as (session, broker):
        with pytest.raises(PublishError):
            await session.publish("plant/a", bytes(100))
        # Its packet fits, though not with the property of an alias as well.
        await session.publish("plant/a", bytes(100 - 2 - 2 - 7 - 1))
        await session.publish("plant/a", b"x")
        assert await taken(broker, 2) == [("plant/a", None), ("plant/a", 1)]


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_on_every_connection_anew(connect: Open, scheme: str) -> None:
    session = await connect(scheme, alias_topics=True)
    feed = await session.subscribe("plant/+", 2)
    for qos in (0, 1, 2):
        await session.publish("plant/a", b"x", qos)
    await hang(session.reconnect())
    for qos in (0, 1, 2):
        await session.publish("plant/a", b"x", qos)
    await hang(feed.wait(6))
    assert set(feed.df["topic"]) == {"plant/a"}
    assert session.errors == []


def test_of_5_0_only() -> None:
    with pytest.raises(UsageError, match="alias_topics"):
        SessionOptions(version="3.1.1", alias_topics=True)
