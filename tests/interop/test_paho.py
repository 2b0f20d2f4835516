"""paho-mqtt against our broker, in threads of its own as everybody uses it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as paho_client
import pytest
from paho.mqtt import packettypes, subscribeoptions
from paho.mqtt import properties as paho_properties_module

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.server import BrokerServer
from tests.interop.conftest import Listening

if TYPE_CHECKING:
    from collections.abc import Iterator


# Typed in part only, so that strict checking would refuse calls that paho's own manual shows.
paho: Any = paho_client
paho_properties: Any = paho_properties_module

VERSIONS = {"3.1.1": 4, "5.0": 5}
PATIENCE = 15.0

pytestmark = pytest.mark.matrix("MQTT {version}", "{listening}", ours="broker", peer="paho-mqtt")


@pytest.fixture(params=list(VERSIONS))
def version(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


class Paho:
    """A paho client whose callbacks end up in asyncio queues."""

    def __init__(self, listening: Listening, version: str, client_id: str, clean: bool = True, expiry: int = 0) -> None:
        loop = asyncio.get_running_loop()
        self.connected: asyncio.Future[Any] = loop.create_future()
        self.messages: asyncio.Queue[Any] = asyncio.Queue()
        self.subscribed: asyncio.Queue[list[int]] = asyncio.Queue()
        options: dict[str, Any] = {"clean_session": clean} if version == "3.1.1" else {}
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id, protocol=VERSIONS[version], **options)
        self._version = version
        self._clean = clean
        self._expiry = expiry
        self._listening = listening
        if listening.ca_file:
            self.client.tls_set(ca_certs=listening.ca_file, cert_reqs=ssl.CERT_REQUIRED)

        def tell(function: Any, value: Any) -> None:
            loop.call_soon_threadsafe(function, value)

        def on_connect(_c: Any, _u: Any, flags: Any, reason: Any, _p: Any) -> None:
            tell(self.connected.set_result, (reason.value, flags.session_present))

        def on_subscribe(_c: Any, _u: Any, _mid: Any, reasons: Any, _p: Any) -> None:
            tell(self.subscribed.put_nowait, [reason.value for reason in reasons])

        self.client.on_connect = on_connect
        self.client.on_subscribe = on_subscribe
        self.client.on_message = lambda _c, _u, message: tell(self.messages.put_nowait, message)

    async def start(self) -> tuple[int, bool]:
        options: dict[str, Any] = {}
        if self._version == "5.0":
            properties = paho_properties.Properties(packettypes.PacketTypes.CONNECT)
            properties.SessionExpiryInterval = self._expiry
            options = {"clean_start": self._clean, "properties": properties}
        await asyncio.to_thread(self.client.connect, "localhost", self._listening.port, **options)
        self.client.loop_start()
        result: tuple[int, bool] = await asyncio.wait_for(self.connected, PATIENCE)
        return result

    async def subscribe(self, *arguments: Any, **options: Any) -> list[int]:
        self.client.subscribe(*arguments, **options)
        return await asyncio.wait_for(self.subscribed.get(), PATIENCE)

    async def publish(self, *arguments: Any, **options: Any) -> None:
        info = self.client.publish(*arguments, **options)
        await asyncio.to_thread(info.wait_for_publish, PATIENCE)
        assert info.is_published()

    async def message(self) -> Any:
        return await asyncio.wait_for(self.messages.get(), PATIENCE)

    def vanish(self) -> None:
        """Lose the connection without DISCONNECT, and do not come back."""
        sock = self.client.socket()
        self.client.loop_stop()
        if sock is not None:
            sock.close()


@contextlib.contextmanager
def running(*clients: Paho) -> Iterator[None]:
    try:
        yield
    finally:
        for member in clients:
            member.client.disconnect()
            member.client.loop_stop()


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.matrix("QoS {qos}")
async def test_publish_and_subscribe(listening: Listening, version: str, qos: int) -> None:
    client = Paho(listening, version, "x")
    with running(client):
        assert await client.start() == (0, False)
        assert await client.subscribe("a/#", qos) == [qos]
        for number in range(20):
            await client.publish(f"a/{number}", str(number), qos)
        messages = [await client.message() for _ in range(20)]
        assert [(m.topic, m.payload, m.qos) for m in messages] == [(f"a/{n}", b"%d" % n, qos) for n in range(20)]
        info = listening.client("x")
        assert info is not None
        assert (info.version, info.transport) == (version, "tls" if listening.ca_file else "tcp")


@pytest.mark.matrix("retained")
async def test_retained(listening: Listening, version: str) -> None:
    publisher, late = Paho(listening, version, "p"), Paho(listening, version, "late")
    with running(publisher, late):
        await publisher.start()
        await publisher.publish("a/b", b"kept", 1, retain=True)
        await late.start()
        await late.subscribe("a/+", 1)
        message = await late.message()
        assert (message.payload, message.retain) == (b"kept", True)


@pytest.mark.matrix("will")
async def test_will(listening: Listening, version: str) -> None:
    watcher, lost = Paho(listening, version, "watcher"), Paho(listening, version, "lost")
    lost.client.will_set("will/x", b"gone", 1)
    with running(watcher):
        await watcher.start()
        await watcher.subscribe("will/#", 2)
        await lost.start()
        lost.vanish()
        message = await watcher.message()
        assert (message.topic, message.payload, message.qos) == ("will/x", b"gone", 1)


@pytest.mark.matrix("will", note="not after DISCONNECT")
async def test_disconnect_removes_the_will(listening: Listening, version: str) -> None:
    leaver = Paho(listening, version, "x")
    leaver.client.will_set("will/x", b"gone", 1)
    with running(leaver):
        await leaver.start()
        leaver.client.disconnect()
        await listening.gone("x")
    assert listening.server.stats().wills_published == 0


@pytest.mark.matrix("session resumed")
async def test_a_persistent_session_is_resumed(listening: Listening, version: str) -> None:
    first = Paho(listening, version, "lasting", clean=False, expiry=300)
    publisher = Paho(listening, version, "p")
    with running(publisher):
        assert await first.start() == (0, False)
        await first.subscribe("a", 2)
        first.vanish()
        await listening.gone("lasting")
        await publisher.start()
        for number in range(5):
            await publisher.publish("a", str(number), 1 + number % 2)
        again = Paho(listening, version, "lasting", clean=False, expiry=300)
        with running(again):
            assert await again.start() == (0, True)
            messages = [await again.message() for _ in range(5)]
            # paho hands a QoS 2 message on when it is released, so the two kinds may overtake each other.
            assert sorted((m.payload, m.qos) for m in messages) == [(b"%d" % n, 1 + n % 2) for n in range(5)]


@pytest.mark.matrix("shared subscription")
async def test_a_shared_subscription(listening: Listening, version: str) -> None:
    members = [Paho(listening, version, f"m{number}") for number in range(2)]
    publisher = Paho(listening, version, "p")
    with running(publisher, *members):
        await publisher.start()
        for member in members:
            await member.start()
            await member.subscribe("$share/g/a", 1)
        for number in range(10):
            await publisher.publish("a", str(number), 1)
        found = [{(await member.message()).payload for _ in range(5)} for member in members]
        assert found[0] | found[1] == {b"%d" % number for number in range(10)}


@pytest.mark.matrix("properties")
async def test_options_and_properties_of_5_0(listening: Listening) -> None:
    client = Paho(listening, "5.0", "x")
    with running(client):
        await client.start()
        options = subscribeoptions.SubscribeOptions(qos=1, noLocal=False, retainAsPublished=True, retainHandling=2)
        identified = paho_properties.Properties(packettypes.PacketTypes.SUBSCRIBE)
        identified.SubscriptionIdentifier = 17
        assert await client.subscribe("a", options=options, properties=identified) == [1]
        properties = paho_properties.Properties(packettypes.PacketTypes.PUBLISH)
        properties.UserProperty = [("k", "1"), ("k", "2")]
        properties.ContentType = "text"
        properties.MessageExpiryInterval = 60
        await client.publish("a", b"x", 1, retain=True, properties=properties)
        message = await client.message()
        assert message.retain
        assert message.properties.UserProperty == [("k", "1"), ("k", "2")]
        assert message.properties.ContentType == "text"
        assert message.properties.MessageExpiryInterval == 60
        assert message.properties.SubscriptionIdentifier == [17]


@pytest.mark.matrix("many messages", note="5000 at QoS 0 at once, in order")
async def test_a_burst_is_not_lost(listening: Listening, version: str) -> None:
    subscriber, publisher = Paho(listening, version, "s"), Paho(listening, version, "p")
    with running(subscriber, publisher):
        await subscriber.start()
        await subscriber.subscribe("a", 0)
        await publisher.start()
        for number in range(5000):
            publisher.client.publish("a", str(number))
        payloads = [int((await subscriber.message()).payload) for _ in range(5000)]
        assert payloads == list(range(5000))
        assert listening.server.stats().dropped_qos0 == 0


@pytest.mark.matrix("large message", note="1 MB")
async def test_a_large_message(listening: Listening, version: str) -> None:
    payload = bytes(range(256)) * 4096
    client = Paho(listening, version, "x")
    with running(client):
        await client.start()
        await client.subscribe("a", 1)
        await client.publish("a", payload, 1)
        assert (await client.message()).payload == payload


@pytest.mark.matrix("take-over")
async def test_a_session_is_taken_over(listening: Listening, version: str) -> None:
    first, second = Paho(listening, version, "same"), Paho(listening, version, "same")
    first.client.reconnect_delay_set(60, 60)
    with running(first, second):
        await first.start()
        await second.start()
        await second.publish("a", b"x", 1)
        assert listening.server.stats().takeovers == 1


@pytest.mark.matrix("password")
async def test_password(version: str) -> None:
    config = BrokerConfig(quic=False, tls=False, tcp_port=0, users={"ann": "geheim"})
    async with BrokerServer(config) as server:
        listening = Listening(server, "mqtt")
        for password, expected in (("geheim", 0), ("falsch", 0x86)):
            client = Paho(listening, version, "x")
            client.client.username_pw_set("ann", password)
            with running(client):
                assert await client.start() == (expected, False)
        assert server.stats().connects_refused == 1
