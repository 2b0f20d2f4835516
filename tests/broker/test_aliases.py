"""Topic aliases towards subscribers, and what else CONNECT and CONNACK agree on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttquic_lab.broker.aliases import OutgoingAliases
from mqttquic_lab.mqtt import PacketDecoder, PubAck, Publish

if TYPE_CHECKING:
    from mqttquic_lab.mqtt import Version
    from tests.broker.conftest import Bench, MakeBench
    from tests.broker.peer import Peer


def _given(**properties: Any) -> dict[str, Any]:
    return {name: value for name, value in properties.items() if value is not None}


async def seen(peer: Peer, count: int) -> list[tuple[str, int | None]]:
    packets = [await peer.message(acknowledge=False) for _ in range(count)]
    return [(packet.topic, packet.properties.get("topic_alias")) for packet in packets]


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_the_first_message_introduces_the_alias(bench: Bench, qos: int) -> None:
    peer = await bench.join("x", topic_alias_maximum=4)
    await peer.subscribe("#", qos=qos)
    other = await bench.join("y")
    for topic in ("plant/1", "plant/1", "plant/2", "plant/1"):
        await other.publish(topic, b"x", qos)
    assert await seen(peer, 4) == [("plant/1", 1), ("", 1), ("plant/2", 2), ("", 1)]


async def test_the_least_recently_used_gives_its_number_away(bench: Bench) -> None:
    peer = await bench.join("x", topic_alias_maximum=2)
    await peer.subscribe("#")
    other = await bench.join("y")
    for topic in "abaca":
        await other.publish(topic, b"x")
    assert await seen(peer, 5) == [("a", 1), ("b", 2), ("", 1), ("c", 2), ("", 1)]


@pytest.mark.parametrize(("version", "told"), [(5, None), (5, 0), (4, None)])
async def test_none_without_leave(bench: Bench, version: Version, told: int | None) -> None:
    peer = await bench.join("x", version, **_given(topic_alias_maximum=told))
    await peer.subscribe("a")
    other = await bench.join("y")
    for _ in range(2):
        await other.publish("a", b"x")
    assert await seen(peer, 2) == [("a", None), ("a", None)]


async def test_no_more_than_the_broker_wants_to_remember(make_bench: MakeBench) -> None:
    bench = await make_bench(topic_alias_maximum=1)
    peer = await bench.join("x", topic_alias_maximum=65535)
    await peer.subscribe("#")
    other = await bench.join("y")
    for topic in "abb":
        await other.publish(topic, b"x")
    assert await seen(peer, 3) == [("a", 1), ("b", 1), ("", 1)]


async def test_aliases_do_not_outlive_the_connection(bench: Bench) -> None:
    peer = await bench.join("x", topic_alias_maximum=4, session_expiry_interval=60)
    await peer.subscribe("a", qos=1)
    other = await bench.join("y")
    await other.publish("a", b"1", 1)
    await other.publish("a", b"2", 1)
    assert [(await peer.message(acknowledge=False)).topic for _ in range(2)] == ["a", ""]
    await peer.vanish()
    peer = await bench.join("x", clean_start=False, topic_alias_maximum=4)
    again = [await peer.expect(Publish) for _ in range(2)]
    assert [(packet.topic, packet.payload, packet.dup) for packet in again] == [("a", b"1", True), ("", b"2", True)]


async def test_a_dropped_message_introduces_nothing(bench: Bench) -> None:
    peer = await bench.join("x", topic_alias_maximum=4, maximum_packet_size=30)
    await peer.subscribe("#")
    other = await bench.join("y")
    await other.publish("topic", bytes(30))  # does not fit
    await other.publish("topic", bytes(20))  # fits without an alias only
    await other.publish("topic", bytes(10))
    await other.publish("topic", bytes(10))
    assert await seen(peer, 3) == [("topic", None), ("topic", 1), ("", 1)]
    assert bench.server.stats().dropped_size == 1


async def test_runs_of_messages_and_the_properties_they_have(bench: Bench) -> None:
    peer = await bench.join("x", topic_alias_maximum=4)
    plain = await bench.join("z")
    await peer.subscribe("a")
    await plain.subscribe("a")
    other = await bench.join("y")
    properties = {"user_property": [("k", "v" * 100)]}
    other.send(b"".join(Publish("a", b"%d" % n, properties=properties if n % 2 else {}).encode() for n in range(5)))
    packets = [await peer.message() for _ in range(5)]
    assert [packet.payload for packet in packets] == [b"0", b"1", b"2", b"3", b"4"]
    assert [packet.topic for packet in packets] == ["a", "", "", "", ""]
    assert [len(packet.properties.get("user_property", ())) for packet in packets] == [0, 1, 0, 1, 0]
    assert await seen(plain, 5) == [("a", None)] * 5


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b/c", "d" * 200, "é"]), st.integers(0, 2), st.binary(max_size=300)),
        max_size=12,
    ),
    st.integers(1, 3),
)
def test_what_a_client_reads_is_what_was_sent(messages: list[tuple[str, int, bytes]], maximum: int) -> None:
    aliases, decoder = OutgoingAliases(maximum), PacketDecoder(5, receiver="client")
    topics: dict[int, str] = {}
    for topic, qos, payload in messages:
        packet = Publish(topic, payload, qos, packet_id=7 if qos else None, properties={"content_type": "x"})
        (read,) = decoder.feed(aliases.apply(packet.encode()))
        assert isinstance(read, Publish)
        alias = read.properties["topic_alias"]
        assert 1 <= alias <= maximum
        if read.topic:
            topics[alias] = read.topic
        assert (topics[alias], read.qos, read.payload) == (topic, qos, payload)
        assert read.properties["content_type"] == "x"
    assert len(aliases) <= maximum


# --- response information -------------------------------------------------------------------------------------------


async def test_response_information_for_those_who_ask(bench: Bench) -> None:
    told = [
        (await bench.attach().connect("ann", **_given(request_response_information=asked)))
        .properties.get("response_information")
        for asked in (1, 0, None)
    ]  # fmt: skip
    assert told == ["response/ann", None, None]
    assigned = await bench.attach().connect("", request_response_information=1)
    name = assigned.properties["assigned_client_identifier"]
    assert assigned.properties["response_information"] == f"response/{name}"


async def test_no_response_information_that_would_be_a_wildcard(make_bench: MakeBench) -> None:
    bench = await make_bench(response_information="to/%u")
    for username, told in (("ann", "to/ann"), ("#", None), (None, None)):
        answer = await bench.attach().connect("x", username=username, request_response_information=1)
        assert answer.properties.get("response_information") == told
    silent = await make_bench(response_information="")
    assert "response_information" not in (await silent.attach().connect("x", request_response_information=1)).properties


async def test_an_alias_of_the_client_and_one_of_the_broker_are_apart(bench: Bench) -> None:
    peer = await bench.join("x", topic_alias_maximum=1)
    await peer.subscribe("#", qos=1)
    peer.send(Publish("mine", b"", properties={"topic_alias": 5}))
    assert (await peer.message()).properties["topic_alias"] == 1
    peer.send(Publish("", b"", 1, packet_id=3, properties={"topic_alias": 5}))
    first, second = [await peer.next() for _ in range(2)]
    assert {type(first), type(second)} == {PubAck, Publish}


async def test_streams_that_number_their_own_have_aliases_of_their_own(bench: Bench) -> None:
    control = await bench.join("x", transport="quic", topic_alias_maximum=4)
    await control.subscribe("a", "b")
    data = control.open()
    await data.subscribe("b", "c")
    other = await bench.join("y")
    for topic in "abcbc":
        await other.publish(topic, b"x")
    assert await seen(control, 3) == [("a", 1), ("b", 2), ("", 2)]
    assert await seen(data, 4) == [("b", 1), ("c", 2), ("", 1), ("", 2)]
