"""Enhanced authentication (MQTT 5.0 section 4.12): before CONNACK and on a live connection, packet by packet."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.process import BrokerProcess
from mqttquic_lab.broker.server import BrokerServer
from mqttquic_lab.errors import UsageError
from mqttquic_lab.mqtt import Auth, ConnAck, Connect, Disconnect, PingReq, PubAck, Publish
from mqttquic_lab.mqtt.authentication import Applicant, Challenge, Failure, Success
from mqttquic_lab.mqtt.scram import ScramClient, ScramServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.broker.conftest import Bench, MakeBench
    from tests.broker.peer import Peer

SCRAM = "SCRAM-SHA-256"


class Word:
    """A method that asks for one word."""

    name = "WORD"

    def __init__(self, answer: Callable[[bytes | None], Any] | None = None) -> None:
        self.applicants: list[Applicant] = []
        self._answer = answer

    def start(self, applicant: Applicant) -> Word:
        self.applicants.append(applicant)
        return self

    def step(self, data: bytes | None) -> Any:
        if self._answer is not None:
            return self._answer(data)
        if data is None:
            return Challenge(b"the word?")
        return Success(b"welcome", "friend") if data == b"mellon" else Failure(0x87, "wrong word")


def hello(method: str = "WORD", data: bytes | None = None, **properties: Any) -> Connect:
    given = {"authentication_method": method, **properties}
    if data is not None:
        given["authentication_data"] = data
    return Connect("x", 5, True, 0, properties=given)


def auth(data: bytes | None, code: int = 0x18, method: str = "WORD") -> Auth:
    given: dict[str, Any] = {"authentication_method": method}
    if data is not None:
        given["authentication_data"] = data
    return Auth(code, given)


async def authenticated(bench: Bench) -> Peer:
    peer = bench.attach()
    peer.send(hello())
    assert dict((await peer.expect(Auth)).properties)["authentication_data"] == b"the word?"
    peer.send(auth(b"mellon"))
    assert (await peer.expect(ConnAck)).reason_code == 0
    return peer


async def test_an_exchange_before_connack(make_bench: MakeBench) -> None:
    word = Word()
    bench = await make_bench(auth_methods=[word])
    peer = bench.attach()
    peer.send(hello())
    challenge = await peer.expect(Auth)
    assert challenge.reason_code == 0x18
    assert dict(challenge.properties) == {"authentication_method": "WORD", "authentication_data": b"the word?"}
    assert bench.server.clients() == []
    peer.send(auth(b"mellon"))
    answer = await peer.expect(ConnAck)
    assert answer.reason_code == 0
    assert answer.properties["authentication_method"] == "WORD"  # [MQTT-4.12.0-5]
    assert answer.properties["authentication_data"] == b"welcome"
    assert bench.server.clients()[0].username == "friend"
    (applicant,) = word.applicants
    assert (applicant.client_id, applicant.transport, applicant.is_again) == ("x", "tcp", False)
    assert bench.server.stats().authentications == 1


async def test_no_exchange_needed(make_bench: MakeBench) -> None:
    bench = await make_bench(auth_methods=[Word(lambda data: Success() if data == b"token" else Failure())])
    peer = bench.attach()
    peer.send(hello(data=b"token"))
    answer = await peer.expect(ConnAck)
    assert answer.properties["authentication_method"] == "WORD"
    assert "authentication_data" not in answer.properties


async def test_failure_is_connack_with_the_reason(make_bench: MakeBench) -> None:
    bench = await make_bench(auth_methods=[Word()])
    peer = bench.attach()
    peer.send(hello())
    await peer.expect(Auth)
    peer.send(auth(b"sesame"))
    answer = await peer.expect(ConnAck)
    assert (answer.reason_code, answer.properties["reason_string"]) == (0x87, "wrong word")
    assert await peer.closed() == []
    stats = bench.server.stats()
    assert (stats.authentications_refused, stats.connects_refused, stats.connects_total) == (1, 1, 0)


@pytest.mark.parametrize("methods", [[], [Word()]])
async def test_unknown_method(make_bench: MakeBench, methods: list[Any]) -> None:
    bench = await make_bench(auth_methods=methods)
    peer = bench.attach()
    peer.send(hello("KERBEROS"))
    answer = await peer.expect(ConnAck)
    assert answer.reason_code == 0x8C
    assert answer.properties["reason_string"].endswith("WORD" if methods else "none")
    await peer.closed()


async def test_without_a_method_nobody_gets_in_unless_others_are_served(make_bench: MakeBench) -> None:
    only = await make_bench(auth_methods=[Word()])
    assert (await only.attach().connect("x", username="a", password=b"b")).reason_code == 0x87
    assert (await only.attach(4).connect("x")).reason_code == 0x87
    both = await make_bench(auth_methods=[Word()], users={"ann": "secret"})
    assert (await both.attach().connect("x", username="ann", password=b"secret")).reason_code == 0
    assert (await both.attach().connect("x", username="ann", password=b"no")).reason_code == 0x86


@pytest.mark.parametrize(
    ("packet", "code"),
    [
        (auth(b"mellon", method="OTHER"), 0x8C),  # [MQTT-4.12.0-5]
        (auth(b"mellon", 0x19), 0x82),
        (auth(b"mellon", 0x00), 0x82),
        (Publish("a", b""), 0x82),  # [MQTT-3.1.2-30]
        (PingReq(), 0x82),
        (hello(), 0x82),
    ],
    ids=["other method", "re-authenticate", "success", "publish", "pingreq", "connect"],
)
async def test_only_auth_goes_on(make_bench: MakeBench, packet: Any, code: int) -> None:
    bench = await make_bench(auth_methods=[Word()])
    peer = bench.attach()
    peer.send(hello())
    await peer.expect(Auth)
    peer.send(packet)
    assert [(type(one), one.reason_code) for one in await peer.closed() if isinstance(one, ConnAck)] == [
        (ConnAck, code)
    ]
    assert bench.server.stats().protocol_errors == 1


async def test_disconnect_ends_the_exchange(make_bench: MakeBench) -> None:
    bench = await make_bench(auth_methods=[Word()])
    peer = bench.attach()
    peer.send(hello())
    await peer.expect(Auth)
    peer.send(Disconnect())
    assert await peer.closed() == []
    assert bench.server.stats().connections == 0


async def test_an_exchange_has_as_long_as_connect(make_bench: MakeBench) -> None:
    bench = await make_bench(auth_methods=[Word()], connect_timeout=3)
    peer = bench.attach()
    peer.send(hello())
    await peer.expect(Auth)
    bench.clock.advance(3.1)
    assert await peer.closed() == []
    assert bench.server.stats().connect_timeouts == 1


async def test_a_large_auth_of_a_stranger_is_not_collected(make_bench: MakeBench) -> None:
    bench = await make_bench(auth_methods=[Word()])
    peer = bench.attach()
    peer.send(hello())
    await peer.expect(Auth)
    peer.send(b"\xf0\x80\x80\x80\x01" + bytes(600_000))
    assert any(isinstance(one, ConnAck) for one in await peer.closed())


async def test_a_client_that_takes_no_such_auth(make_bench: MakeBench) -> None:
    bench = await make_bench(auth_methods=[Word()])
    peer = bench.attach()
    peer.send(hello(maximum_packet_size=20))
    assert await peer.closed() == []


# --- again, on a live connection ------------------------------------------------------------------------------------


async def test_authenticating_again(make_bench: MakeBench) -> None:
    word = Word()
    bench = await make_bench(auth_methods=[word])
    peer = await authenticated(bench)
    peer.send(auth(None, 0x19))
    assert (await peer.expect(Auth)).reason_code == 0x18
    assert await peer.publish("a", b"meanwhile", 1) == 0x10  # the former authentication holds on
    peer.send(auth(b"mellon"))
    done = await peer.expect(Auth)
    assert done.reason_code == 0
    assert dict(done.properties) == {"authentication_method": "WORD", "authentication_data": b"welcome"}
    assert [one.is_again for one in word.applicants] == [False, True]
    assert bench.server.stats().authentications == 2
    assert await peer.sync() == []


async def test_failing_again_ends_the_connection(make_bench: MakeBench) -> None:
    bench = await make_bench(auth_methods=[Word()])
    peer = await authenticated(bench)
    peer.send(auth(None, 0x19))
    await peer.expect(Auth)
    peer.send(auth(b"sesame"))
    (goodbye,) = await peer.closed()
    assert isinstance(goodbye, Disconnect)
    assert goodbye.reason_code == 0x87


async def test_authenticating_again_takes_no_longer_than_connect(make_bench: MakeBench) -> None:
    bench = await make_bench(auth_methods=[Word()], connect_timeout=3)
    peer = await authenticated(bench)
    bench.clock.advance(100)
    peer.send(auth(None, 0x19))
    await peer.expect(Auth)
    bench.clock.advance(3.1)
    (goodbye,) = await peer.closed()
    assert isinstance(goodbye, Disconnect)
    assert goodbye.reason_code == 0x87


@pytest.mark.parametrize(
    "packet", [auth(None, 0x19, "OTHER"), auth(b"mellon"), auth(None, 0)], ids=["method", "continue", "success"]
)
async def test_authenticating_again_has_rules(make_bench: MakeBench, packet: Auth) -> None:
    bench = await make_bench(auth_methods=[Word()])
    peer = await authenticated(bench)
    peer.send(packet)
    (goodbye,) = await peer.closed()
    assert isinstance(goodbye, Disconnect)
    assert goodbye.reason_code == 0x82


async def test_no_auth_without_a_method_in_connect(make_bench: MakeBench) -> None:
    bench = await make_bench(auth_methods=[Word()], users={"ann": "x"})
    peer = await bench.join("x", username="ann", password=b"x")
    peer.send(auth(None, 0x19))
    (goodbye,) = await peer.closed()  # [MQTT-4.12.0-7]
    assert isinstance(goodbye, Disconnect)
    assert goodbye.reason_code == 0x82


# --- methods of one's own -------------------------------------------------------------------------------------------


async def test_a_method_may_be_async_and_packets_wait(make_bench: MakeBench) -> None:
    decision: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def decide(_: bytes | None) -> Any:
        return await decision

    bench = await make_bench(auth_methods=[Word(decide)])
    peer = bench.attach()
    peer.send(hello().encode() + Disconnect().encode())
    await asyncio.sleep(0)
    assert not peer.inbox
    decision.set_result(Success())
    assert (await peer.expect(ConnAck)).reason_code == 0
    await peer.closed()


async def test_a_client_that_leaves_while_a_method_thinks(make_bench: MakeBench) -> None:
    cancelled = asyncio.Event()

    async def think(_: bytes | None) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    bench = await make_bench(auth_methods=[Word(think)])
    peer = bench.attach()
    peer.send(hello())
    await bench.server.wait_for(lambda: bench.server.stats().bytes_in)
    await asyncio.sleep(0)
    await peer.vanish()
    await asyncio.wait_for(cancelled.wait(), 5)


def explode(_: bytes | None) -> Any:
    raise RuntimeError("a bug of the user's")


async def explode_later(_: bytes | None) -> Any:
    raise RuntimeError("a bug of the user's")


@pytest.mark.parametrize("answer", [explode, explode_later, lambda _: None, lambda _: Failure(0x10)])
async def test_a_method_with_a_bug_lets_nobody_in(
    make_bench: MakeBench, answer: Callable[[bytes | None], Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    bench = await make_bench(auth_methods=[Word(answer)])
    peer = bench.attach()
    peer.send(hello())
    assert (await peer.expect(ConnAck)).reason_code >= 0x80
    await peer.closed()


# --- SCRAM ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"auth_methods": [SCRAM], "users": {"ann": "secret"}},
        {"auth_methods": {SCRAM: {"ann": "secret"}}},
        {"auth_methods": [ScramServer({"ann": "secret"})]},
    ],
    ids=["by name", "with users", "made"],
)
@pytest.mark.parametrize("password", ["secret", "wrong"])
async def test_scram(make_bench: MakeBench, options: dict[str, Any], password: str) -> None:
    bench = await make_bench(**options)
    client, peer = ScramClient("ann", password).start(), bench.attach()
    peer.send(hello(SCRAM, client.step(None)))
    challenge = await peer.expect(Auth)
    peer.send(auth(client.step(challenge.properties["authentication_data"]), method=SCRAM))
    answer = await peer.expect(ConnAck)
    if password == "wrong":
        assert answer.reason_code == 0x87
        await peer.closed()
        return
    client.finish(answer.properties["authentication_data"])
    assert bench.server.clients()[0].username == "ann"
    peer.send(Publish("a", b"", 1, packet_id=1))
    await peer.expect(PubAck)


@pytest.mark.parametrize(
    "methods",
    ["SCRAM-SHA-256", 7, ["PLAIN"], [object()], {"X": 7}, [SCRAM]],
    ids=["text", "number", "unknown", "object", "mapping", "users"],
)
def test_what_is_no_method(methods: Any) -> None:
    with pytest.raises(UsageError):
        BrokerServer(BrokerConfig(auth_methods=methods))


def test_a_method_cannot_move_to_another_process() -> None:
    BrokerProcess(BrokerConfig(auth_methods={SCRAM: {"ann": "x"}}))
    with pytest.raises(UsageError, match="another process"):
        BrokerProcess(BrokerConfig(auth_methods=[Word()]))
    assert "xyzzy" not in repr(BrokerConfig(auth_methods={SCRAM: {"ann": "xyzzy"}}))
