"""Enhanced authentication at the client: SCRAM with a broker of ours, and brokers that are not what they should be."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.server import BrokerServer
from mqttquic_lab.errors import (
    AuthenticationError,
    ConnectError,
    ConnectRefusedError,
    DisconnectedError,
    OperationTimeoutError,
    UsageError,
)
from mqttquic_lab.mqtt import Auth, ConnAck, Connect, Disconnect, Publish
from mqttquic_lab.mqtt.authentication import Challenge, Failure, Success
from mqttquic_lab.mqtt.scram import ScramClient
from mqttquic_lab.quic.tickets import TicketStore
from mqttquic_lab.session import AsyncSession
from mqttquic_lab.session.options import SessionOptions
from tests.helpers.memory import memory_pair
from tests.session.scripted import ScriptedBroker, hang

SCRAM = "SCRAM-SHA-256"


class Word:
    """Says its word, then the broker has to say the same."""

    name = "WORD"

    def __init__(self, word: bytes = b"mellon") -> None:
        self.word = word

    def start(self) -> Word:
        return self

    def step(self, data: bytes | None) -> bytes | None:
        if data == b"boom":
            raise RuntimeError("a bug of the user's")
        return None if data is None else self.word

    def finish(self, data: bytes | None) -> None:
        if data != self.word:
            raise AuthenticationError("the broker does not know the word")


class Asking:
    """The broker's side of it."""

    name = "WORD"

    def start(self, applicant: Any) -> Asking:
        return self

    def step(self, data: bytes | None) -> Any:
        if data is None:
            return Challenge(b"?")
        return Success(data, "friend") if data == b"mellon" else Failure()


@pytest.mark.parametrize("scheme", ["quic", "mqtt"])
async def test_scram_with_a_broker(scheme: str) -> None:
    config = BrokerConfig(tls=False, quic_port=0, tcp_port=0, users={"ann": "secret"}, auth_methods=[SCRAM])
    async with BrokerServer(config) as broker:
        url = broker.urls[scheme]
        ca_file = broker.ca_file
        session = await hang(
            AsyncSession.open(url, username="ann", password="secret", auth=SCRAM, ca_file=ca_file, trace_detail=True)
        )
        async with session:
            assert broker.clients()[0].username == "ann"
            connect = {name: value for name, _, _, value in session.handshake.connect_fields}
            assert connect["authentication_method"] == SCRAM
            assert "password" not in connect
            assert connect["authentication_data"] == "(hidden)"
            assert session.handshake.round_trips == 3
            ladder = [(flight.sender, flight.content[-1]) for flight in session.handshake.flights[-4:]]
            assert ladder == [("client", "CONNECT"), ("server", "AUTH"), ("client", "AUTH"), ("server", "CONNACK")]
            feed = await session.subscribe("a")
            await session.reauthenticate()
            await session.publish("a", "still here", 1)
            await feed.wait(1)
            assert broker.stats().authentications == 2
            seen = repr([(event.name, event.data) for event in session.trace])
            assert "AUTH" in seen
            assert "r=" not in seen
        with pytest.raises(ConnectRefusedError) as refused:
            await hang(AsyncSession.open(url, username="ann", password="wrong", auth=SCRAM, ca_file=ca_file))
        assert refused.value.reason_code == 0x87
        with pytest.raises(ConnectRefusedError, match="auth="):
            await hang(AsyncSession.open(url, auth=Word(), ca_file=ca_file))


async def opened(broker: BrokerServer, **options: Any) -> AsyncSession:
    return await hang(AsyncSession.open(broker.url, **options))


async def test_again_with_other_credentials_and_a_refusal() -> None:
    config = BrokerConfig(quic=False, tls=False, tcp_port=0, auth_methods=[Asking()])
    async with BrokerServer(config) as broker, await opened(broker, auth=Word(), reconnect=False) as session:
        with pytest.raises(UsageError, match="WORD"):
            await session.reauthenticate(ScramClient("ann", "x"))
        await session.reauthenticate(Word())
        with pytest.raises(DisconnectedError) as refused:
            await hang(session.reauthenticate(Word(b"sesame")))
        assert refused.value.reason_code == 0x87


async def test_it_is_done_anew_on_a_new_connection() -> None:
    config = BrokerConfig(quic=False, tls=False, tcp_port=0, users={"ann": "secret"}, auth_methods=[SCRAM])
    async with BrokerServer(config) as broker:
        url = broker.url.replace("//", "//ann:secret@")
        async with await hang(AsyncSession.open(url, auth=SCRAM)) as session:
            await hang(session.reconnect())
            assert broker.stats().authentications == 2
            assert session.state == "connected"


async def begin(**options: Any) -> tuple[asyncio.Task[AsyncSession], ScriptedBroker, Connect]:
    client, server = memory_pair(transport="tcp")
    broker = ScriptedBroker(server, 5)
    opening = asyncio.create_task(AsyncSession.over(client, reconnect=False, **options))
    return opening, broker, await broker.expect(Connect)


def said(data: bytes | None, method: str = "WORD") -> dict[str, Any]:
    return {"authentication_method": method, **({} if data is None else {"authentication_data": data})}


async def test_a_broker_that_cannot_show_who_it_is() -> None:
    opening, broker, connect = await begin(auth=Word())
    assert connect.properties == {"authentication_method": "WORD"}
    broker.send(Auth(0x18, said(b"?")))
    assert (await broker.expect(Auth)).properties == said(b"mellon")
    broker.send(ConnAck(False, 0, said(b"eve")))
    with pytest.raises(AuthenticationError, match="does not know"):
        await hang(opening)


@pytest.mark.parametrize(
    "answer",
    [
        ConnAck(False, 0),
        ConnAck(False, 0, said(b"mellon", "OTHER")),
        Auth(0x18, said(b"?", "OTHER")),
        Auth(0x18, said(b"boom")),
        Auth(0x00, said(b"mellon")),
    ],
    ids=["no method", "other method", "other in AUTH", "bug", "success before CONNACK"],
)
async def test_a_broker_that_breaks_a_rule(answer: Any) -> None:
    opening, broker, _ = await begin(auth=Word())
    broker.send(answer)
    with pytest.raises(ConnectError):
        await hang(opening)


async def test_a_broker_that_does_not_wait_for_the_answer() -> None:
    opening, broker, _ = await begin(auth=Word())
    broker.send(Auth(0x18, said(b"?")))
    broker.send(Auth(0x18, said(b"?")))
    with pytest.raises(AuthenticationError, match="again"):
        await hang(opening)


async def test_scram_without_a_proof_of_the_broker_is_refused() -> None:
    opening, broker, connect = await begin(username="ann", password="x", auth=SCRAM)
    assert connect.username is None
    assert connect.password is None
    assert connect.properties["authentication_data"].startswith(b"n,,n=ann,r=")
    broker.send(ConnAck(False, 0, said(None, SCRAM)))
    with pytest.raises(AuthenticationError, match="without asking"):
        await hang(opening)


async def connected() -> tuple[AsyncSession, ScriptedBroker]:
    opening, broker, _ = await begin(auth=Word())
    broker.send(ConnAck(False, 0, said(b"mellon")))
    return await hang(opening), broker


async def test_again_goes_on_while_messages_do() -> None:
    session, broker = await connected()
    again = asyncio.create_task(session.reauthenticate())
    assert (await broker.expect(Auth)).reason_code == 0x19
    with pytest.raises(UsageError, match="under way"):
        await session.reauthenticate()
    await session.publish("a", "meanwhile")
    await broker.expect(Publish)
    broker.send(Auth(0x18, said(b"?")))
    assert (await broker.expect(Auth)).properties == said(b"mellon")
    broker.send(Auth(0, said(b"mellon")))
    await hang(again)
    await session.close()


async def test_again_shows_a_broker_that_is_another_one() -> None:
    session, broker = await connected()
    again = asyncio.create_task(session.reauthenticate())
    await broker.expect(Auth)
    broker.send(Auth(0, said(b"eve")))
    with pytest.raises(AuthenticationError):
        await hang(again)
    assert (await broker.expect(Disconnect)).reason_code >= 0x80
    assert session.state == "closed"


async def test_again_takes_no_longer_than_asked() -> None:
    session, broker = await connected()
    with pytest.raises(OperationTimeoutError):
        await session.reauthenticate(timeout=0.01)
    await broker.expect(Auth)
    await session.close()


async def test_again_ends_with_the_session() -> None:
    session, broker = await connected()
    again = asyncio.create_task(session.reauthenticate(timeout=None))
    await broker.expect(Auth)
    await session.close()
    with pytest.raises(DisconnectedError):
        await hang(again)


async def test_not_without_a_method_in_connect() -> None:
    config = BrokerConfig(quic=False, tls=False, tcp_port=0)
    async with BrokerServer(config) as broker, await opened(broker) as session:
        with pytest.raises(UsageError, match=r"MQTT-4\.12\.0-7"):
            await session.reauthenticate()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"auth": "PLAIN"}, "SCRAM-SHA-256"),
        ({"auth": 7}, "no method"),
        ({"auth": SCRAM, "version": "3.1.1"}, "MQTT 5.0"),
        ({"auth": Word(), "publish_early": [("a", "b")], "early_data": "publish"}, "before CONNACK"),
        ({"properties": {"authentication_method": "X"}}, "auth="),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        SessionOptions(**options)


@pytest.mark.parametrize(
    "options", [{}, {"username": "ann"}, {"password": "x"}, {"username": "a", "password": b"\xff"}]
)
def test_scram_needs_user_and_password(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        SessionOptions(auth=SCRAM, **options).auth_method()


async def test_scram_begins_in_the_first_flight() -> None:
    """CONNECT with the first message goes as early data; what the password protects comes later."""
    config = BrokerConfig(
        tls=False, tcp=False, quic_port=0, users={"ann": "secret"}, auth_methods=[SCRAM], early_data=True
    )
    tickets = TicketStore()
    async with BrokerServer(config) as broker:

        async def again() -> AsyncSession:
            return await opened(
                broker, auth=SCRAM, username="ann", password="secret", tickets=tickets, early_data=True,
                ca_file=broker.ca_file,
            )  # fmt: skip

        async with await again() as session:
            while not session.handshake.tickets:
                await session.ping()
        async with await again() as session:
            assert session.handshake.early_data == "accepted"
            assert session.handshake.round_trips == 2
            await session.publish("a", "x", 1)
        assert broker.stats().authentications == 2
