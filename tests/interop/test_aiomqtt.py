"""aiomqtt against our broker: paho's protocol code, on the loop of its user."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

import aiomqtt
import pytest
from paho.mqtt import packettypes
from paho.mqtt import properties as paho_properties_module

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.server import BrokerServer
from tests.interop.conftest import Listening

paho_properties: Any = paho_properties_module  # typed in part only, and aiomqtt takes it as it is

PATIENCE = 15.0

pytestmark = pytest.mark.matrix("MQTT {version}", "{listening}", ours="broker", peer="aiomqtt")

VERSIONS = {"3.1.1": aiomqtt.ProtocolVersion.V311, "5.0": aiomqtt.ProtocolVersion.V5}


@pytest.fixture(params=list(VERSIONS))
def version(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def client(listening: Listening, version: str, client_id: str, *, expiry: int | None = None, **options: Any) -> Any:
    """Return a client; `expiry`: the session outlives the connection by so many seconds."""
    if listening.ca_file:
        options["tls_context"] = ssl.create_default_context(cafile=listening.ca_file)
    if version == "5.0":
        options["clean_start"] = expiry is None
        if expiry is not None:
            options["properties"] = properties(packettypes.PacketTypes.CONNECT, SessionExpiryInterval=expiry)
    elif expiry is not None:
        options["clean_session"] = False
    return aiomqtt.Client("localhost", listening.port, identifier=client_id, protocol=VERSIONS[version], **options)


def properties(packet_type: int, **values: Any) -> Any:
    made = paho_properties.Properties(packet_type)
    for name, value in values.items():
        setattr(made, name, value)
    return made


async def messages(of: Any, count: int) -> list[Any]:
    """Wait for the next messages of a client."""
    async with asyncio.timeout(PATIENCE):
        return [await anext(of.messages) for _ in range(count)]


def granted(reasons: Any) -> list[int]:
    """Return what SUBACK said; with 5.0 aiomqtt hands paho's objects on."""
    return [getattr(reason, "value", reason) for reason in reasons]


def cut(of: Any) -> None:
    """Break the connection of a client off, without DISCONNECT."""
    of._client.socket().shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.matrix("QoS {qos}")
async def test_publish_and_subscribe(listening: Listening, version: str, qos: int) -> None:
    async with client(listening, version, "x") as ours:
        assert granted(await ours.subscribe("a/#", qos)) == [qos]
        for number in range(20):
            await ours.publish(f"a/{number}", str(number), qos)
        got = [(str(m.topic), m.payload, m.qos) for m in await messages(ours, 20)]
        assert got == [(f"a/{n}", b"%d" % n, qos) for n in range(20)]
        info = listening.client("x")
        assert info is not None
        assert (info.version, info.transport) == (version, "tls" if listening.ca_file else "tcp")
        await ours.unsubscribe("a/#")
        await listening.server.wait_for(lambda: listening.server.stats().subscriptions == 0)


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.matrix("many messages", note="1000 at once at each QoS, in order")
async def test_many_messages_at_once(listening: Listening, version: str, qos: int) -> None:
    async with client(listening, version, "s") as reader, client(listening, version, "p") as writer:
        writer.pending_calls_threshold = 2000  # it warns beyond
        await reader.subscribe("a", qos)
        await asyncio.gather(*(writer.publish("a", str(number), qos) for number in range(1000)))
        assert [int(message.payload) for message in await messages(reader, 1000)] == list(range(1000))
        assert listening.server.stats().dropped_qos0 == 0


@pytest.mark.matrix("large message", note="1 MB")
async def test_a_large_message(listening: Listening, version: str) -> None:
    payload = bytes(range(256)) * 4096
    async with client(listening, version, "x") as ours:
        await ours.subscribe("a", 1)
        await ours.publish("a", payload, 1)
        assert (await messages(ours, 1))[0].payload == payload


@pytest.mark.matrix("retained")
async def test_retained(listening: Listening, version: str) -> None:
    async with client(listening, version, "p") as writer:
        await writer.publish("a/b", b"kept", 1, retain=True)
        async with client(listening, version, "late") as late:
            await late.subscribe("a/+", 1)
            [message] = await messages(late, 1)
            assert (message.payload, message.retain) == (b"kept", True)
        await writer.publish("a/b", None, 1, retain=True)
    assert listening.server.stats().retained == 0


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.matrix("will")
async def test_will(listening: Listening, version: str, qos: int) -> None:
    async with client(listening, version, "watcher") as watcher:
        await watcher.subscribe("will/#", 2)
        lost = client(listening, version, "lost", will=aiomqtt.Will("will/x", b"gone", qos))
        async with lost:
            cut(lost)
            [message] = await messages(watcher, 1)
        assert (str(message.topic), message.payload, message.qos) == ("will/x", b"gone", qos)


@pytest.mark.matrix("will", note="not after DISCONNECT")
async def test_disconnect_removes_the_will(listening: Listening, version: str) -> None:
    async with client(listening, version, "x", will=aiomqtt.Will("will/x", b"gone", 1)):
        assert listening.client("x") is not None
    await listening.gone("x")
    assert listening.server.stats().wills_published == 0


@pytest.mark.matrix("session resumed")
async def test_a_persistent_session_is_resumed(listening: Listening, version: str) -> None:
    async with client(listening, version, "lasting", expiry=300) as first:
        await first.subscribe("a", 2)
        cut(first)
        await listening.gone("lasting")
    async with client(listening, version, "p") as writer:
        for number in range(5):
            await writer.publish("a", str(number), 1 + number % 2)
    assert listening.server.stats().queued == 5
    async with client(listening, version, "lasting", expiry=300) as again:
        # paho hands a QoS 2 message on when it is released, so the two kinds may overtake each other.
        got = sorted((m.payload, m.qos) for m in await messages(again, 5))
        assert got == [(b"%d" % n, 1 + n % 2) for n in range(5)]


@pytest.mark.matrix("take-over")
async def test_a_session_is_taken_over(listening: Listening, version: str) -> None:
    first = client(listening, version, "same")
    async with first, client(listening, version, "same") as second:
        with pytest.raises(aiomqtt.MqttError):
            await messages(first, 1)
        await second.publish("a", b"x", 1)
    assert listening.server.stats().takeovers == 1


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.matrix("shared subscription")
async def test_a_shared_subscription(listening: Listening, version: str, qos: int) -> None:
    async with (
        client(listening, version, "m0") as one,
        client(listening, version, "m1") as other,
        client(listening, version, "p") as writer,
    ):
        for member in (one, other):
            assert granted(await member.subscribe("$share/g/a", qos)) == [qos]
        for number in range(10):
            await writer.publish("a", str(number), qos)
        found = [{message.payload for message in await messages(member, 5)} for member in (one, other)]
        assert found[0] | found[1] == {b"%d" % number for number in range(10)}


@pytest.mark.matrix("properties")
async def test_properties_of_5_0(listening: Listening) -> None:
    async with client(listening, "5.0", "x") as ours:
        identified = properties(packettypes.PacketTypes.SUBSCRIBE, SubscriptionIdentifier=17)
        await ours.subscribe("a", 1, properties=identified)
        sent = properties(
            packettypes.PacketTypes.PUBLISH,
            UserProperty=[("k", "1"), ("k", "2")],
            ContentType="text",
            ResponseTopic="answers",
            CorrelationData=b"\x00\x01",
            MessageExpiryInterval=60,
        )
        await ours.publish("a", b"x", 1, properties=sent)
        [message] = await messages(ours, 1)
        got = message.properties
        assert got.UserProperty == [("k", "1"), ("k", "2")]
        assert (got.ContentType, got.ResponseTopic, got.CorrelationData) == ("text", "answers", b"\x00\x01")
        assert (got.MessageExpiryInterval, got.SubscriptionIdentifier) == (60, [17])


@pytest.mark.matrix("password")
async def test_password(version: str) -> None:
    config = BrokerConfig(quic=False, tls=False, tcp_port=0, users={"ann": "geheim"})
    async with BrokerServer(config) as server:
        listening = Listening(server, "mqtt")
        async with client(listening, version, "x", username="ann", password="geheim") as ours:
            await ours.publish("a", b"x", 1)
        with pytest.raises(aiomqtt.MqttError):
            async with client(listening, version, "y", username="ann", password="falsch"):
                pass
        assert server.stats().connects_refused == 1
