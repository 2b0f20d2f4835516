"""Access control: rules and functions, at PUBLISH, SUBSCRIBE, wills, retained messages and deliveries."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttquic_lab.broker.acl import AclClient, AclRule, Rights, covers, parse_acl
from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.process import BrokerProcess
from mqttquic_lab.broker.server import BrokerServer
from mqttquic_lab.errors import UsageError
from mqttquic_lab.mqtt import PubAck, Publish, PubRec, SubAck, Subscribe, Subscription, Will, matches

if TYPE_CHECKING:
    from mqttquic_lab.mqtt import Version
    from tests.broker.conftest import Bench, MakeBench
    from tests.broker.peer import Peer

ANYBODY: Any = lambda *_: True  # noqa: E731 - whoever says they are ann is ann


def rights(acl: Any, username: str | None = None, client_id: str = "x") -> Rights:
    parsed = parse_acl(acl)
    assert parsed is not None
    return Rights(parsed, AclClient(client_id, username, "tcp", ("127.0.0.1", 1)))


# --- rules ----------------------------------------------------------------------------------------------------------


def test_the_first_rule_that_fits_decides() -> None:
    given = rights([AclRule("publish", "a/secret", allow=False), ("*", "publish", "a/#")])
    assert given.may_publish("a/b")
    assert given.may_publish("a")
    assert not given.may_publish("a/secret")
    assert not given.may_publish("b")
    assert not given.may_subscribe("a/b")
    assert not given.may_receive("a/b")


def test_rules_for_one_user_or_client() -> None:
    acl = [("ann", "all", "a"), {"action": "publish", "topic": "b", "client": "x"}, ("", "publish", "c")]
    assert [rights(acl, "ann").may_publish(topic) for topic in "abc"] == [True, True, False]
    assert [rights(acl, "bob", "y").may_publish(topic) for topic in "abc"] == [False, False, False]
    assert [rights(acl, None, "y").may_publish(topic) for topic in "abc"] == [False, False, True]


@pytest.mark.parametrize(
    ("username", "client_id", "topic", "allowed"),
    [
        ("ann", "x", "u/ann/1", True), ("ann", "x", "u/bob/1", False), ("ann", "x", "c/x", True),
        (None, "x", "u//1", False), ("+", "x", "u/ann/1", False), ("#", "x", "u/#", False),
        ("a/b", "x", "u/a/b", False),
        ("ann", "+", "c/anybody", False), ("%c", "secret", "u/secret/1", False),
    ],
)  # fmt: skip
def test_placeholders(username: str | None, client_id: str, topic: str, allowed: bool) -> None:
    acl = [("*", "publish", "u/%u/#"), ("*", "publish", "c/%c")]
    assert rights(acl, username, client_id).may_publish(topic) is allowed


@pytest.mark.parametrize(
    ("one", "other", "result"),
    [
        ("#", "a/b", True), ("#", "#", True), ("#", "+/a", True), ("a/#", "a", True), ("a/#", "a/+/#", True),
        ("+", "+", True), ("+", "a", True), ("+", "#", False), ("a", "+", False), ("a/+", "a/#", False),
        ("a/b", "a", False), ("a", "a/b", False), ("+/#", "#", False), ("#", "$SYS/#", False), ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/broker", True), ("a/+/c", "a/b/c", True), ("a/+/c", "a/b/d", False),
    ],
)  # fmt: skip
def test_covers(one: str, other: str, result: bool) -> None:
    assert covers(one, other) is result


LEVELS = st.sampled_from(["a", "b", "+", "$x"])
FILTERS = st.tuples(st.lists(LEVELS, max_size=3), st.booleans()).map(lambda p: "/".join([*p[0], *["#"] * p[1]]) or "a")
TOPICS = st.lists(st.sampled_from(["a", "b", "$x"]), min_size=1, max_size=4).map("/".join)


@given(FILTERS, FILTERS, TOPICS)
def test_what_is_covered_matches_nothing_else(one: str, other: str, topic: str) -> None:
    if covers(one, other) and matches(other, topic):
        assert matches(one, topic)


@pytest.mark.parametrize(
    "acl",
    [
        "a", 7, [7], [("a", "b")], [("ann", "write", "a")], [("ann", "publish", "a/#/b")], [{"topic": "a"}],
        [{"action": "publish", "topic": "a", "usr": "x"}], [("ann", "publish", "$share/g/a")], [(None, "publish", "a")],
    ],
)  # fmt: skip
def test_what_is_no_rule(acl: Any) -> None:
    with pytest.raises(UsageError):
        BrokerServer(BrokerConfig(acl=acl))


def test_a_coroutine_function_is_refused() -> None:
    async def decide(*_: Any) -> bool:
        return True

    with pytest.raises(UsageError, match="plain function"):
        BrokerServer(BrokerConfig(acl=decide))  # type: ignore[arg-type]


def test_a_function_cannot_move_to_another_process() -> None:
    with pytest.raises(UsageError, match="acl= is a function"):
        BrokerProcess(BrokerConfig(acl=lambda *_: True))
    BrokerProcess(BrokerConfig(acl=[("ann", "publish", "a")]))


async def test_rules_move_to_another_process() -> None:
    from mqttquic_lab.net.address import parse_url
    from mqttquic_lab.net.certificates import Trust
    from mqttquic_lab.net.open import open_connection
    from tests.broker.peer import Peer

    config = BrokerConfig(quic=False, tls=False, tcp_port=0, acl=[("*", "publish", "a"), AclRule("subscribe", "b")])
    async with BrokerProcess(config) as broker:
        peer = Peer(await open_connection(parse_url(broker.url), trust=Trust()))
        await peer.connect("x")
        assert await peer.publish("a", b"", 1) == 0x10
        assert await peer.publish("b", b"", 1) == 0x87
        assert await peer.subscribe("a", "b") == [0x87, 0]


# --- enforced -------------------------------------------------------------------------------------------------------

ACL = [
    ("ann", "all", "a/#"),
    AclRule("subscribe", "b/secret/#", user="bob", allow=False),
    ("bob", "subscribe", "b/#"),
    ("bob", "subscribe", "a/#"),
    ("root", "all", "#"),
]


@pytest.fixture
async def guarded(make_bench: MakeBench) -> Bench:
    return await make_bench(authenticate=ANYBODY, acl=ACL)


async def join(bench: Bench, username: str, version: Version = 5, **connect: Any) -> Peer:
    return await bench.join(connect.pop("client_id", username), version, username=username, **connect)


async def test_publish(guarded: Bench) -> None:
    root = await join(guarded, "root")
    await root.subscribe("#", qos=2)
    ann = await join(guarded, "ann")
    for qos in (0, 1, 2):
        assert await ann.publish("b", b"no", qos) == (0x87 if qos else 0)
    assert await ann.publish("a/b", b"yes", 2) == 0
    assert (await root.message()).payload == b"yes"
    assert await root.sync() == []
    assert guarded.server.stats().publishes_refused == 3


async def test_publish_by_alias_and_by_retain(guarded: Bench) -> None:
    ann = await join(guarded, "ann")
    assert await ann.publish("b", b"x", topic_alias=1) == 0
    assert await ann.publish("", b"x", 1, topic_alias=1) == 0x87
    assert await ann.publish("b", b"x", 1, retain=True) == 0x87
    assert guarded.server.stats().retained == 0
    assert guarded.server.stats().publishes_refused == 3


async def test_a_refusal_says_why_unless_nobody_asked(guarded: Bench) -> None:
    for wanted in (1, 0):
        ann = await join(guarded, "ann", request_problem_information=wanted)
        ann.send(Publish("b", b"x", 1, packet_id=1))
        assert ("reason_string" in (await ann.expect(PubAck)).properties) == bool(wanted)
        ann.send(Publish("b", b"x", 2, packet_id=1))
        assert ("reason_string" in (await ann.expect(PubRec)).properties) == bool(wanted)
        ann.send(Subscribe(9, (Subscription("b", 0),)))
        assert ("reason_string" in (await ann.expect(SubAck)).properties) == bool(wanted)


async def test_a_reason_too_long_for_the_client_is_left_out(guarded: Bench) -> None:
    ann = await join(guarded, "ann", maximum_packet_size=20)
    ann.send(Publish("b", b"x", 1, packet_id=1))
    answer = await ann.expect(PubAck)
    assert answer.reason_code == 0x87
    assert not answer.properties


async def test_311_publish_is_acknowledged_and_dropped(guarded: Bench) -> None:
    root = await join(guarded, "root")
    await root.subscribe("#")
    ann = await join(guarded, "ann", 4)
    for qos in (0, 1, 2):
        assert await ann.publish("b", b"no", qos) == 0  # [MQTT-3.3.5-2]
    assert await root.sync() == []
    assert guarded.server.stats().publishes_refused == 3


@pytest.mark.parametrize(("version", "refused"), [(5, 0x87), (4, 0x80)])
async def test_subscribe(guarded: Bench, version: Version, refused: int) -> None:
    bob = await join(guarded, "bob", version)
    assert await bob.subscribe("a/+", "#", "c", "$share/g/c", "$share/g/b/x", "b/secret/x", qos=1) == [
        1, refused, refused, refused, 1, refused,
    ]  # fmt: skip
    assert guarded.server.stats().subscriptions_refused == 4


async def test_deliveries_and_retained_messages(guarded: Bench) -> None:
    root, bob = await join(guarded, "root"), await join(guarded, "bob")
    await root.publish("b/secret/1", b"old", 1, retain=True)
    await root.publish("b/open", b"old", 1, retain=True)
    await bob.subscribe("b/#", qos=1)
    assert (await bob.message()).topic == "b/open"
    assert await root.publish("b/secret/1", b"new", 1) == 0x10
    await root.publish("b/secret/1", b"new")
    await root.publish("b/open", b"new", 1)
    assert (await bob.message()).payload == b"new"
    assert await bob.sync() == []
    assert guarded.server.stats().deliveries_refused == 3


async def test_a_shared_subscription_passes_over_who_may_not(guarded: Bench) -> None:
    root, bob = await join(guarded, "root"), await join(guarded, "bob")
    other = await join(guarded, "root", client_id="other")
    await bob.subscribe("$share/g/b/#", qos=1)
    await other.subscribe("$share/g/b/#", qos=1)
    for number in range(4):
        await root.publish("b/secret/1", b"%d" % number, 1)
    assert [(await other.message()).payload for _ in range(4)] == [b"0", b"1", b"2", b"3"]
    assert await bob.sync() == []


async def test_somebody_else_in_the_same_session(guarded: Bench) -> None:
    root = await join(guarded, "root")
    who = await join(guarded, "bob", client_id="shared", session_expiry_interval=60)
    await who.subscribe("b/#", "a/#", qos=1)
    await who.leave()
    who = await join(guarded, "ann", client_id="shared", clean_start=False, session_expiry_interval=60)
    await root.publish("b/open", b"not for ann", 1)
    await root.publish("a/open", b"for ann", 1)
    assert (await who.message()).payload == b"for ann"
    assert await who.sync() == []


async def test_what_waits_is_not_for_somebody_else(guarded: Bench) -> None:
    root = await join(guarded, "root")
    who = await join(guarded, "bob", client_id="shared", session_expiry_interval=60, receive_maximum=2)
    await who.subscribe("b/#", "a/#", qos=2)
    for number, topic in enumerate(("b/1", "b/2", "b/3", "a/4")):
        await root.publish(topic, b"", 1 + number % 2, packet_id=1 + number)
    assert [(await who.message(acknowledge=False)).topic for _ in range(2)] == ["b/1", "b/2"]
    await who.vanish()
    who = await join(guarded, "ann", client_id="shared", clean_start=False)
    assert (await who.message()).topic == "a/4"
    assert await who.sync() == []
    stats = guarded.server.stats()
    assert (stats.deliveries_refused, stats.queued, guarded.server.clients()[1].inflight) == (3, 0, 0)


async def test_a_session_that_is_away_keeps_its_rights(guarded: Bench) -> None:
    root = await join(guarded, "root")
    bob = await join(guarded, "bob", session_expiry_interval=60)
    await bob.subscribe("b/#", qos=1)
    await bob.leave()
    await root.publish("b/secret/1", b"no", 1)
    await root.publish("b/open", b"yes", 1)
    bob = await join(guarded, "bob", clean_start=False)
    assert (await bob.message()).payload == b"yes"
    assert await bob.sync() == []


@pytest.mark.parametrize(("version", "topic"), [(5, "b"), (4, "b"), (5, "$SYS/x")])
async def test_a_will_is_looked_at_when_it_is_given(guarded: Bench, version: Version, topic: str) -> None:
    answer = await guarded.attach(version).connect("x", username="ann", will=Will(topic, b"gone"))
    assert answer.reason_code == 0x87
    if version == 5:
        assert "the will" in answer.properties["reason_string"]
    assert (await guarded.attach(version).connect("x", username="ann", will=Will("a/x", b"gone"))).reason_code == 0
    assert guarded.server.stats().connects_refused == 1


async def test_sys_topics_are_not_for_clients(guarded: Bench) -> None:
    root = await join(guarded, "root")
    for qos in (0, 1, 2):
        assert await root.publish("$SYS/broker/version", b"9", qos) == (0x87 if qos else 0)
    assert guarded.server.stats().publishes_refused == 3


async def test_other_dollar_topics_are_free(bench: Bench) -> None:
    assert await (await bench.join("x")).publish("$other", b"9", 1) == 0x10
    assert await (await bench.join("y")).publish("$SYS/x", b"9", 1) == 0x87


# --- functions ------------------------------------------------------------------------------------------------------


async def test_a_function_is_asked_each_time(make_bench: MakeBench) -> None:
    asked: list[tuple[str, str, str]] = []
    closed: set[str] = set()

    def acl(client: AclClient, action: str, topic: str) -> bool:
        asked.append((client.client_id, action, topic))
        return topic not in closed

    bench = await make_bench(acl=acl)
    one, other = await bench.join("one"), await bench.join("other")
    await one.subscribe("a", "$share/g/a")
    await other.publish("a", b"1")
    assert [(await one.message()).payload for _ in range(2)] == [b"1", b"1"]
    assert asked[0] == ("one", "subscribe", "a")
    assert ("other", "publish", "a") in asked
    assert ("one", "receive", "a") in asked
    closed.add("a")
    assert await other.publish("a", b"2", 1) == 0x87
    assert await one.subscribe("a", qos=1) == [0x87]


async def test_a_function_may_withhold(make_bench: MakeBench) -> None:
    bench = await make_bench(acl=lambda _, action, topic: action != "receive")
    one = await bench.join("one")
    await one.subscribe("a")
    await one.publish("a", b"1")
    assert bench.server.stats().deliveries_refused == 1


@pytest.mark.parametrize("verdict", [None, 1, "yes", ValueError])
async def test_only_true_allows(make_bench: MakeBench, verdict: Any, caplog: pytest.LogCaptureFixture) -> None:
    def acl(*_: Any) -> Any:
        if verdict is ValueError:
            raise ValueError
        return verdict

    caplog.set_level(logging.CRITICAL)
    bench = await make_bench(acl=acl)
    peer = await bench.join("x")
    assert await peer.publish("a", b"", 1) == 0x87
    assert await peer.subscribe("a") == [0x87]
