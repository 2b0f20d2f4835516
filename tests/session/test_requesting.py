"""Requests and responses (MQTT 5.0 section 4.10)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.errors import DisconnectedError, OperationTimeoutError, PublishError, UsageError
from mqttquic_lab.mqtt import ConnAck, PubAck, Publish
from mqttquic_lab.session import Backoff
from tests.session.conftest import SCHEMES
from tests.session.scripted import hang, scripted

if TYPE_CHECKING:
    from mqttquic_lab.records.message import Message
    from tests.session.conftest import Open


def double(message: Message) -> int:
    return 2 * int(message.value)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_question_and_answer(connect: Open, scheme: str) -> None:
    asking, answering = await connect(scheme), await connect("mqtt")
    feed = await answering.respond("double", double)
    answers = await hang(asyncio.gather(*(asking.request("double", number) for number in range(20))))
    assert [answer.text for answer in answers] == [str(2 * number) for number in range(20)]
    assert feed.total == 20
    assert len(asking.feeds) == 1  # one response topic for all of them
    topics = {answer.topic for answer in answers}
    assert topics == set(asking.feeds[0].filters)


async def test_the_properties_of_a_request(connect: Open) -> None:
    session = await connect()
    seen: list[Message] = []

    async def handler(message: Message) -> str:
        seen.append(message)
        await asyncio.sleep(0)
        return "pong"

    await session.respond("ping", handler, 2)
    answer = await hang(session.request("ping", qos=2, properties={"content_type": "x"}))
    assert (answer.text, answer.qos) == ("pong", 1)  # the response topic is subscribed with QoS 1
    assert seen[0].properties["content_type"] == "x"
    assert seen[0].properties["correlation_data"] == answer.properties["correlation_data"]


async def test_what_a_handler_raises_is_recorded_and_the_next_is_served(connect: Open) -> None:
    session = await connect()
    await session.respond("double", double)
    with pytest.raises(OperationTimeoutError, match="no response to the request on 'double'"):
        await session.request("double", "many", timeout=0.3)
    await session.publish("double", "1", 1)  # asks for nothing
    assert (await hang(session.request("double", 21))).text == "42"
    assert [error.where for error in session.errors] == ["respond", "respond"]
    assert "ValueError" in session.errors[0].message
    assert "no response topic" in session.errors[1].message


async def test_nobody_answers(connect: Open) -> None:
    session = await connect()
    with pytest.raises(PublishError, match="nobody is subscribed") as caught:
        await hang(session.request("void"))
    assert caught.value.reason_code == 0x10


async def test_a_responder_ends_with_its_feed(connect: Open) -> None:
    session = await connect()
    feed = await session.respond("double", double)
    assert (await hang(session.request("double", 1))).text == "2"
    await feed.unsubscribe()
    with pytest.raises(PublishError):
        await hang(session.request("double", 1))


async def test_both_go_on_through_a_gap(connect: Open) -> None:
    session = await connect(reconnect=Backoff(first=0.01))
    await session.respond("double", double)
    assert (await hang(session.request("double", 1))).text == "2"
    session.connection.abort("cable pulled")
    assert (await hang(session.request("double", 2))).text == "4"


async def test_closed_while_a_request_waits(connect: Open) -> None:
    session = await connect()
    await session.respond("slow", lambda _: asyncio.Event().wait())
    waiting = asyncio.create_task(session.request("slow"))
    await session.subscribe("x")  # by now it has been sent
    await session.close()
    with pytest.raises(DisconnectedError):
        await hang(waiting)


async def test_where_the_broker_wants_responses() -> None:
    connack = ConnAck(properties={"response_information": "clients/me/"})
    async with scripted(connack, properties={"request_response_information": 1}) as (session, broker):
        asking = asyncio.create_task(session.request("a"))
        wanted = await broker.grant()
        [subscription] = wanted.subscriptions
        assert subscription.filter.startswith("clients/me/")
        request = await broker.expect(Publish)
        assert request.properties["response_topic"] == subscription.filter
        broker.send(
            PubAck(request.packet_id or 0),
            Publish(subscription.filter, b"stray", properties={"correlation_data": b"another"}),
            Publish(subscription.filter, b"stray"),
            Publish(
                subscription.filter,
                b"answer",
                properties={"correlation_data": request.properties["correlation_data"]},
            ),
        )
        assert (await hang(asking)).payload == b"answer"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"topic": "a/#"}, "#"),
        ({"topic": "a", "properties": {"response_topic": "b"}}, "response_topic"),
        ({"topic": "a", "qos": 3}, "qos=3"),
    ],
)
async def test_requests_that_cannot_be_made(connect: Open, arguments: dict[str, Any], match: str) -> None:
    session = await connect()
    with pytest.raises(UsageError, match=match):
        await session.request(**arguments)


async def test_of_5_0_only(connect: Open) -> None:
    session = await connect(version="3.1.1")
    with pytest.raises(UsageError, match=r"MQTT 5\.0"):
        await session.request("a")
    with pytest.raises(UsageError, match=r"MQTT 5\.0"):
        await session.respond("a", double)


async def test_a_handler_that_is_none(connect: Open) -> None:
    session = await connect()
    with pytest.raises(UsageError, match="function"):
        await session.respond("a", None)  # type: ignore[arg-type]
