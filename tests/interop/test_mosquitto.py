"""mosquitto_pub and mosquitto_sub against our broker."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.server import BrokerServer
from tests.helpers.peers import run, running
from tests.interop.conftest import Listening

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from tests.helpers.peers import Program

pytestmark = [
    pytest.mark.mosquitto,
    pytest.mark.matrix("MQTT {version}", "{listening}", ours="broker", peer="mosquitto_pub/sub"),
]

FORMAT = "%t %q %r %p"
"""What mosquitto_sub prints: topic, QoS, retain flag, payload."""


@pytest.fixture(params=["mqttv311", "mqttv5"])
def version(request: pytest.FixtureRequest) -> str:
    """What mosquitto's option -V takes."""
    name: str = request.param
    return name


def arguments(listening: Listening, version: str, *more: str) -> list[str]:
    secure = ["--cafile", listening.ca_file] if listening.ca_file else []
    return ["-h", "localhost", "-p", str(listening.port), "-V", version, *secure, *more]


def subscriber(listening: Listening, version: str, *more: str) -> AbstractAsyncContextManager[Program]:
    return running("mosquitto_sub", *arguments(listening, version, "-F", FORMAT, *more))


async def publish(listening: Listening, version: str, *more: str) -> None:
    await run("mosquitto_pub", *arguments(listening, version, *more))


@pytest.mark.parametrize("qos", ["0", "1", "2"])
@pytest.mark.matrix("QoS {qos}")
async def test_publish_and_subscribe(listening: Listening, version: str, qos: str) -> None:
    async with subscriber(listening, version, "-t", "plant/+/temp", "-q", qos, "-C", "2", "-i", "sub") as program:
        await listening.subscribed()
        info = listening.client("sub")
        assert info is not None
        assert info.transport == ("tls" if listening.ca_file else "tcp")
        assert info.version == {"mqttv311": "3.1.1", "mqttv5": "5.0"}[version]
        await publish(listening, version, "-t", "plant/1/temp", "-q", qos, "-m", "21.5")
        await publish(listening, version, "-t", "plant/2/temp", "-q", qos, "-m", "grün")
        assert await program.line() == f"plant/1/temp {qos} 0 21.5"
        assert await program.line() == f"plant/2/temp {qos} 0 grün"
        assert (await program.end())[0] == 0


@pytest.mark.parametrize("qos", ["0", "1", "2"])
@pytest.mark.matrix("many messages", note="500 of one publisher, in order")
async def test_many_messages_of_one_publisher(listening: Listening, version: str, qos: str) -> None:
    count = 500
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(subscriber(listening, version, "-t", "a", "-q", qos, "-C", str(count)))
        await listening.subscribed()
        sender = await stack.enter_async_context(
            running("mosquitto_pub", *arguments(listening, version, "-t", "a", "-q", qos, "-l"))
        )
        for number in range(count):
            await sender.write(str(number))
        assert [await reader.line() for _ in range(count)] == [f"a {qos} 0 {number}" for number in range(count)]
        assert (await reader.end())[0] == 0


@pytest.mark.matrix("large message", note="100 kB")
async def test_a_large_message(listening: Listening, version: str) -> None:
    payload = "x" * 100_000
    async with subscriber(listening, version, "-t", "a", "-q", "1", "-C", "1") as program:
        await listening.subscribed()
        async with running("mosquitto_pub", *arguments(listening, version, "-t", "a", "-q", "1", "-s")) as sender:
            await sender.write(payload)
            sender.end_input()
            assert (await sender.end())[0] == 0
        code, output = await program.end()
        assert code == 0
        assert len(output) > 100_000


@pytest.mark.matrix("retained")
async def test_retained(listening: Listening, version: str) -> None:
    await publish(listening, version, "-t", "a/b", "-m", "kept", "-r", "-q", "1")
    async with subscriber(listening, version, "-t", "a/#", "-q", "1", "-C", "1") as program:
        assert await program.line() == "a/b 1 1 kept"
    await publish(listening, version, "-t", "a/b", "-n", "-r")
    assert listening.server.stats().retained == 0


@pytest.mark.matrix("will")
async def test_will(listening: Listening, version: str) -> None:
    async with subscriber(listening, version, "-t", "will/#", "-q", "2", "-C", "1") as watcher:
        await listening.subscribed()
        will = ("--will-topic", "will/x", "--will-payload", "gone", "--will-qos", "2")
        async with subscriber(listening, version, "-t", "a", "-i", "x", *will) as program:
            await listening.subscribed(2)
            program.kill()
            assert await watcher.line() == "will/x 2 0 gone"


@pytest.mark.matrix("session resumed")
async def test_a_persistent_session_is_resumed(listening: Listening, version: str) -> None:
    lasting = ["-i", "lasting", "-c", "-t", "a", "-q", "1"]
    if version == "mqttv5":
        lasting += ["-x", "300"]
    async with subscriber(listening, version, *lasting) as program:
        await listening.subscribed()
        program.kill()
    await listening.gone("lasting")
    for number in range(3):
        await publish(listening, version, "-t", "a", "-q", "1", "-m", str(number))
    assert listening.server.stats().queued == 3
    async with subscriber(listening, version, *lasting, "-C", "3") as program:
        assert [await program.line() for _ in range(3)] == ["a 1 0 0", "a 1 0 1", "a 1 0 2"]


@pytest.mark.matrix("shared subscription")
async def test_a_shared_subscription(listening: Listening, version: str) -> None:
    async with AsyncExitStack() as stack:
        members = [
            await stack.enter_async_context(subscriber(listening, version, "-t", "$share/g/a", "-C", "2"))
            for _ in range(2)
        ]
        await listening.subscribed(2)
        for number in range(4):
            await publish(listening, version, "-t", "a", "-m", str(number))
        found = {(await member.line())[-1] for member in members for _ in range(2)}
        assert found == {"0", "1", "2", "3"}


@pytest.mark.matrix("take-over")
async def test_a_session_is_taken_over(listening: Listening, version: str) -> None:
    async with subscriber(listening, version, "-t", "a", "-i", "same", "-q", "1") as first:
        await listening.subscribed()
        async with subscriber(listening, version, "-t", "b", "-i", "same", "-q", "1", "-C", "1") as second:
            await listening.server.wait_for(lambda: listening.server.stats().takeovers >= 1)
            first.kill()  # it would come back for ever
            await listening.server.wait_for(
                lambda: (info := listening.client("same")) is not None and info.subscriptions == ("b",)
            )
            await publish(listening, version, "-t", "b", "-m", "x", "-q", "1")
            assert await second.line() == "b 1 0 x"


async def test_between_the_versions(listening: Listening, version: str) -> None:
    other = "mqttv5" if version == "mqttv311" else "mqttv311"
    async with subscriber(listening, version, "-t", "a", "-q", "2", "-C", "1") as program:
        await listening.subscribed()
        await publish(listening, other, "-t", "a", "-q", "2", "-m", "hello")
        assert await program.line() == "a 2 0 hello"


@pytest.mark.matrix("properties")
async def test_properties(listening: Listening) -> None:
    version = "mqttv5"
    shown = "%t %p %A %C %R %P"
    async with running(
        "mosquitto_sub", *arguments(listening, version, "-F", shown, "-t", "a", "-C", "1", "-q", "1")
    ) as program:
        await listening.subscribed()
        properties = []
        for prop in (("content-type", "text"), ("response-topic", "r"), ("user-property", "k", "v")):
            properties += ["-D", "publish", *prop]
        await publish(listening, version, "-t", "a", "-m", "x", "-q", "1", *properties)
        line = await program.line()
    assert line.startswith("a x")
    assert "text" in line
    assert "k:v" in line


@pytest.mark.matrix("password")
async def test_password(version: str) -> None:
    config = BrokerConfig(quic=False, tls=False, tcp_port=0, users={"ann": "geheim"})
    async with BrokerServer(config) as server:
        listening = Listening(server, "mqtt")
        await publish(listening, version, "-t", "a", "-m", "x", "-u", "ann", "-P", "geheim", "-q", "1")
        refused = arguments(listening, version, "-t", "a", "-m", "x", "-u", "ann", "-P", "falsch")
        output = await run("mosquitto_pub", *refused, expect={"mqttv311": 4, "mqttv5": 134}[version])
        assert output
        assert server.stats().connects_refused == 1
