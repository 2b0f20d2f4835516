"""Enhanced authentication, packet by packet, at the server and at our client (MQTT 5.0 sections 3.15 and 4.12)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.mqtt import Auth, ConnAck, Connect, Disconnect, PingReq, Publish, Subscribe, Subscription
from mqttquic_lab.session import AsyncSession
from tests.broker.test_authentication import Word, auth, hello
from tests.helpers.memory import memory_pair
from tests.session.scripted import ScriptedBroker, hang
from tests.session.test_authenticating import Word as SpokenWord

if TYPE_CHECKING:
    from mqttquic_lab.mqtt import Packet
    from tests.broker.peer import Peer
    from tests.conformance.conftest import MakeServed, Served


@pytest.fixture
async def guarded(make_served: MakeServed) -> Served:
    """A broker that asks for a word, and serves those who name user and password instead."""
    return await make_served(auth_methods=[Word()], users={"ann": "secret"})


async def challenged(served: Served) -> Peer:
    """Return a client that was asked for the word."""
    peer = await served.attach()
    peer.send(hello())
    challenge = await peer.expect(Auth)
    assert challenge.reason_code == 0x18
    assert dict(challenge.properties) == {"authentication_method": "WORD", "authentication_data": b"the word?"}
    return peer


async def admitted(served: Served) -> Peer:
    peer = await challenged(served)
    peer.send(auth(b"mellon"))
    answer = await peer.expect(ConnAck)
    assert (answer.reason_code, answer.properties["authentication_method"]) == (0, "WORD")
    return peer


async def test_an_exchange_step_by_step(guarded: Served) -> None:
    peer = await admitted(guarded)
    assert await peer.subscribe("a", qos=1) == [1]
    assert guarded.server.clients()[0].username == "friend"


@pytest.mark.parametrize(
    "packet",
    [
        auth(b"mellon", method="OTHER"), auth(b"mellon", 0x19), auth(b"mellon", 0x00), Publish("a", b""),
        Subscribe(1, (Subscription("a"),)), PingReq(), hello(), Connect("x"),
    ],
    ids=["other method", "again", "success", "PUBLISH", "SUBSCRIBE", "PINGREQ", "CONNECT with method", "CONNECT"],
)  # fmt: skip
async def test_before_connack_only_auth_goes_on(guarded: Served, packet: Packet) -> None:
    peer = await challenged(guarded)
    peer.send(packet.encode(5) + auth(b"mellon").encode())
    answers = await peer.closed()
    assert all(isinstance(answer, ConnAck) and answer.reason_code >= 0x80 for answer in answers)
    assert guarded.server.stats().sessions == 0


async def test_an_unknown_method_ends_the_connection(guarded: Served) -> None:
    peer = await guarded.attach()
    peer.send(hello("NOT-THERE"))
    (answer,) = await peer.closed()
    assert isinstance(answer, ConnAck)
    assert answer.reason_code == 0x8C


async def test_a_refusal_ends_the_connection(guarded: Served) -> None:
    peer = await challenged(guarded)
    peer.send(auth(b"sesame").encode() + PingReq().encode())
    (answer,) = await peer.closed()
    assert isinstance(answer, ConnAck)
    assert answer.reason_code == 0x87
    assert guarded.server.stats().sessions == 0


async def test_without_a_method_there_is_no_word_of_one(guarded: Served) -> None:
    peer = await guarded.attach()
    answer = await peer.connect("x", username="ann", password=b"secret")
    assert answer.reason_code == 0
    assert not {"authentication_method", "authentication_data"} & set(answer.properties)
    peer.send(auth(b"mellon", 0x19))
    (last,) = await peer.closed()
    assert isinstance(last, Disconnect)
    assert last.reason_code == 0x82


async def test_authenticating_again(guarded: Served) -> None:
    peer = await admitted(guarded)
    for _ in range(2):
        peer.send(auth(None, 0x19))
        assert (await peer.expect(Auth)).reason_code == 0x18
        assert await peer.publish("a", b"meanwhile", 1) == 0x10
        peer.send(auth(b"mellon"))
        done = await peer.expect(Auth)
        assert (done.reason_code, done.properties["authentication_method"]) == (0, "WORD")
    assert await peer.sync() == []


async def test_authenticating_again_and_failing(guarded: Served) -> None:
    for wrong in (auth(b"sesame"), auth(b"mellon", method="OTHER")):
        peer = await admitted(guarded)
        peer.send(auth(None, 0x19))
        await peer.expect(Auth)
        peer.send(wrong.encode() + PingReq().encode())
        (last,) = await peer.closed()
        assert isinstance(last, Disconnect)
        assert last.reason_code >= 0x80


async def test_our_client_step_by_step() -> None:
    def said(data: bytes) -> dict[str, Any]:
        return {"authentication_method": "WORD", "authentication_data": data}

    client, server = memory_pair(transport="tcp")
    broker = ScriptedBroker(server)
    opening = asyncio.create_task(AsyncSession.over(client, auth=SpokenWord(), reconnect=False))
    asked = await broker.expect(Connect)
    assert asked.properties["authentication_method"] == "WORD"
    for _ in range(2):  # as often as the server wants
        assert not broker.inbox
        broker.send(Auth(0x18, said(b"?")))
        answer = await broker.expect(Auth)
        assert (answer.reason_code, dict(answer.properties)) == (0x18, said(b"mellon"))
    broker.send(ConnAck(False, 0, said(b"mellon")))
    session = await hang(opening)
    again = asyncio.create_task(session.reauthenticate())
    first = await broker.expect(Auth)
    assert (first.reason_code, first.properties["authentication_method"]) == (0x19, "WORD")
    broker.send(Auth(0x18, said(b"?")))
    second = await broker.expect(Auth)
    assert (second.reason_code, dict(second.properties)) == (0x18, said(b"mellon"))
    broker.send(Auth(0, said(b"mellon")))
    await hang(again)
    await hang(session.close())
