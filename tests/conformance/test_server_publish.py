"""PUBLISH as the server has to treat it: flags, retained messages, properties, aliases (section 3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.mqtt import Disconnect, PubAck, PubComp, Publish, PubRec, PubRel, Subscribe, Subscription
from tests.conformance.exchange import taken
from tests.conformance.octets import block, packet, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqttquic_lab.mqtt import Packet, Version
    from tests.broker.peer import Peer
    from tests.conformance.conftest import MakeServed, Served

VERSIONS = pytest.mark.parametrize("version", [4, 5])
QOS = pytest.mark.parametrize("qos", [0, 1, 2])


def payloads(packets: Sequence[Packet]) -> list[bytes]:
    return [each.payload for each in packets if isinstance(each, Publish)]


async def last_code(peer: Peer) -> int:
    (last,) = await peer.closed()
    assert isinstance(last, Disconnect)
    return last.reason_code


async def received(peer: Peer, version: Version, qos: int) -> list[Publish]:
    """Everything that came up to a ping, each exchange completed."""
    found = []
    for each in await peer.sync():
        assert isinstance(each, Publish)
        assert each.qos <= qos
        if each.packet_id is not None:
            peer.send((PubAck if each.qos == 1 else PubRec)(each.packet_id))
            if each.qos == 2:
                assert (await peer.expect(PubRel)).packet_id == each.packet_id
                peer.send(PubComp(each.packet_id))
        found.append(each)
    return found


# 3.3.1: DUP, QoS, RETAIN


@VERSIONS
@pytest.mark.parametrize("qos", [1, 2])
async def test_dup_does_not_travel_on(served: Served, version: Version, qos: int) -> None:
    peer = await served.join("x", version)
    await peer.subscribe("a", qos=2)
    publisher = await served.join("p", version)
    publisher.send(Publish("a", b"again", qos, dup=True, packet_id=9))
    message = await peer.message()
    assert (message.payload, message.qos, message.dup) == (b"again", qos, False)


@VERSIONS
@QOS
async def test_the_first_time_a_message_is_sent_it_is_no_duplicate(served: Served, version: Version, qos: int) -> None:
    peer = await served.join("x", version)
    await peer.subscribe("a", qos=qos)
    publisher = await served.join("p")
    await publisher.publish("a", b"x", qos)
    message = await peer.message()
    assert (message.qos, message.dup, message.packet_id is None) == (qos, False, qos == 0)


BAD_PUBLISHES = {
    "QoS 3": (packet(0x36, text("a"), b"\0\1", b"\0"), 0x81),
    "DUP at QoS 0": (packet(0x38, text("a"), b"\0"), 0x81),
    "+ in the topic": (packet(0x30, text("a/+/c"), b"\0"), 0x90),
    "# in the topic": (packet(0x30, text("a/#"), b"\0"), 0x90),
    "# alone": (packet(0x32, text("#"), b"\0\1", b"\0"), 0x90),
    "no topic": (packet(0x30, text(""), b"\0"), 0x82),
    "U+0000 in the topic": (packet(0x30, text("a\0"), b"\0"), 0x81),
    "no packet identifier": (packet(0x32, text("a")), 0x81),
    "nothing": (packet(0x30), 0x81),
}


@pytest.mark.parametrize("case", BAD_PUBLISHES)
async def test_a_publish_that_must_not_be_ends_the_connection(served: Served, case: str) -> None:
    data, code = BAD_PUBLISHES[case]
    watcher = await served.join("w")
    await watcher.subscribe("#")
    peer = await served.join("x")
    peer.send(data)
    assert await last_code(peer) == code
    assert await watcher.sync() == []


@pytest.mark.parametrize("case", BAD_PUBLISHES)
async def test_a_publish_of_311_that_must_not_be_ends_the_connection(served: Served, case: str) -> None:
    data, _ = BAD_PUBLISHES[case]
    watcher = await served.join("w")
    await watcher.subscribe("#")
    peer = await served.join("x", 4)
    peer.send(data)
    assert await peer.closed() == []
    assert await watcher.sync() == []


@VERSIONS
@QOS
async def test_a_retained_message_replaces_the_one_before(served: Served, version: Version, qos: int) -> None:
    publisher = await served.join("p", version)
    for number, payload in enumerate((b"old", b"new")):
        await publisher.publish("a", payload, qos, retain=True, packet_id=number + 1)
        late = await served.join(f"late{number}", version)
        await late.subscribe("a", qos=2)
        message = await late.message()
        assert (message.payload, message.qos, message.retain) == (payload, qos, True)
        assert await late.sync() == []


@VERSIONS
async def test_a_qos_0_message_replaces_a_retained_one_of_qos_2(served: Served, version: Version) -> None:
    publisher = await served.join("p", version)
    await publisher.publish("a", b"kept", 2, retain=True)
    await publisher.publish("a", b"newer", 0, retain=True)
    late = await served.join("late", version)
    await late.subscribe("a", qos=2)
    assert payloads(await late.sync()) == [b"newer"]


@VERSIONS
async def test_an_empty_retained_message_removes_and_is_passed_on(served: Served, version: Version) -> None:
    publisher = await served.join("p", version)
    await publisher.publish("a", b"x", 1, retain=True)
    watcher = await served.join("w", version)
    await watcher.subscribe("a", qos=1, retain_handling=0)
    assert (await watcher.message()).payload == b"x"
    await publisher.publish("a", b"", 1, retain=True)
    message = await watcher.message()
    assert (message.payload, message.retain) == (b"", False)
    assert served.server.stats().retained == 0
    late = await served.join("late", version)
    await late.subscribe("a", qos=1)
    assert await late.sync() == []


@VERSIONS
@QOS
async def test_a_message_that_is_not_retained_leaves_what_is(served: Served, version: Version, qos: int) -> None:
    publisher = await served.join("p", version)
    await publisher.publish("a", b"not kept", qos)
    assert served.server.stats().retained == 0
    await publisher.publish("a", b"kept", qos, retain=True)
    await publisher.publish("a", b"later", qos)
    await publisher.publish("a", b"", qos)
    late = await served.join("late", version)
    await late.subscribe("a", qos=2)
    assert payloads(await received(late, version, 2)) == [b"kept"]


@VERSIONS
async def test_every_matching_topic_brings_its_retained_message(served: Served, version: Version) -> None:
    publisher = await served.join("p", version)
    for topic in ("a/1", "a/2", "a/2/b", "c/1", "$x/1"):
        await publisher.publish(topic, topic.encode(), retain=True)
    late = await served.join("late", version)
    await late.subscribe("a/#")
    found = await received(late, version, 0)
    assert sorted(each.topic for each in found) == ["a/1", "a/2", "a/2/b"]
    assert all(each.retain for each in found)
    await late.subscribe("+/1")
    assert sorted(each.topic for each in await received(late, version, 0)) == ["a/1", "c/1"]


@pytest.mark.parametrize(("handling", "first", "again"), [(0, 1, 1), (1, 1, 0), (2, 0, 0)])
async def test_retain_handling(served: Served, handling: int, first: int, again: int) -> None:
    publisher = await served.join("p")
    await publisher.publish("a", b"x", 1, retain=True)
    peer = await served.join("x", clean_start=False, session_expiry_interval=100)
    for expected in (first, again, again):
        await peer.subscribe("a", qos=1, retain_handling=handling)
        assert len(await received(peer, 5, 1)) == expected
    await peer.sync()
    await served.lose(peer, "x")
    back = await served.join("x", clean_start=False, session_expiry_interval=100)
    await back.subscribe("a", qos=1, retain_handling=handling)
    assert len(await received(back, 5, 1)) == again  # the subscription has lasted
    await back.unsubscribe("a")
    await back.subscribe("a", qos=1, retain_handling=handling)
    assert len(await received(back, 5, 1)) == first


async def test_retain_as_published(served: Served) -> None:
    plain, kept = await served.join("s"), await served.join("t")
    await plain.subscribe("a", qos=1)
    await kept.subscribe("a", qos=1, retain_as_published=True)
    publisher = await served.join("p")
    for qos in (0, 1):
        for retain in (False, True):
            await publisher.publish("a", b"x", qos, retain=retain)
            assert not (await plain.message()).retain
            assert (await kept.message()).retain == retain


@VERSIONS
async def test_for_311_only_what_comes_by_subscribing_is_retained(served: Served, version: Version) -> None:
    publisher = await served.join("p", version)
    await publisher.publish("a", b"1", retain=True)
    peer = await served.join("x", 4)
    await peer.subscribe("a")
    assert (await peer.message()).retain
    await publisher.publish("a", b"2", retain=True)
    assert not (await peer.message()).retain


@VERSIONS
async def test_retained_messages_outlive_the_session_that_sent_them(served: Served, version: Version) -> None:
    publisher = await served.join("p", version)
    await publisher.publish("a", b"x", retain=True)
    await publisher.leave()
    await served.gone("p")
    assert (served.server.stats().sessions, served.server.stats().retained) == (0, 1)
    late = await served.join("late", version)
    await late.subscribe("a")
    assert payloads(await late.sync()) == [b"x"]


# 3.3.2: topics and properties


@VERSIONS
async def test_what_is_delivered_matches_the_filter(served: Served, version: Version) -> None:
    peer = await served.join("x", version)
    await peer.subscribe("sport/+/score", "finance/#", "/+")
    publisher = await served.join("p", version)
    topics = [
        "sport/tennis/score", "sport/score", "sport//score", "sport/a/b/score", "finance", "finance/x/y", "financed",
        "/a", "a", "/", "//", "/a/b", "Sport/tennis/score", "sport/tennis/Score",
    ]  # fmt: skip
    for topic in topics:
        await publisher.publish(topic, b"x")
    expected = ["sport/tennis/score", "sport//score", "finance", "finance/x/y", "/a", "/"]
    assert [each.topic for each in await peer.sync() if isinstance(each, Publish)] == expected


TRAVELLING: dict[str, Any] = {
    "payload_format_indicator": 0,
    "content_type": "application/x; a=\u20ac",
    "response_topic": "answers/to/me",
    "correlation_data": bytes(range(256)),
    "user_property": (("b", "1"), ("a", "2"), ("b", "1"), ("b", "0"), ("", "")),
}


@QOS
@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.parametrize("name", [*TRAVELLING, "all"])
async def test_properties_travel_unaltered(served: Served, qos: int, retain: bool, name: str) -> None:
    told = TRAVELLING if name == "all" else {name: TRAVELLING[name]}
    subscribers = [await served.join(f"s{number}") for number in range(2)]
    publisher = await served.join("p")
    if not retain:
        for subscriber in subscribers:
            await subscriber.subscribe("a", qos=qos)
    await publisher.publish("a", b"x", qos, retain=retain, **told)
    if retain:
        for subscriber in subscribers:
            await subscriber.subscribe("a", qos=qos)
    for subscriber in subscribers:
        assert dict((await subscriber.message()).properties) == told


async def test_a_payload_format_of_1_is_told_even_where_the_payload_is_none(served: Served) -> None:
    """The server may look at the payload (section 3.3.2.3.2); ours hands both on."""
    peer = await served.join("x")
    await peer.subscribe("a")
    publisher = await served.join("p")
    await publisher.publish("a", b"\xff", payload_format_indicator=1)
    message = await peer.message()
    assert (message.payload, message.properties["payload_format_indicator"]) == (b"\xff", 1)


async def test_a_message_is_not_delivered_after_its_expiry(served: Served) -> None:
    peer = await served.join("x", clean_start=False, session_expiry_interval=1000)
    await peer.subscribe("a", qos=2)
    await served.lose(peer, "x")
    publisher = await served.join("p")
    for qos in (1, 2):
        for expiry in (0, 5, 10, 50):
            await publisher.publish("a", b"%d" % expiry, qos, message_expiry_interval=expiry)
    served.clock.advance(10)
    back = await served.join("x", clean_start=False, session_expiry_interval=1000)
    assert payloads(await back.sync()) == [b"50", b"50"]
    assert served.server.stats().queued == 0


async def test_the_expiry_interval_counts_down_while_a_message_waits(served: Served) -> None:
    peer = await served.join("x", clean_start=False, session_expiry_interval=1000)
    await peer.subscribe("a", qos=1)
    publisher = await served.join("p")
    for qos in (0, 1):
        await publisher.publish("a", b"at once", qos, message_expiry_interval=30)
        assert (await peer.message()).properties["message_expiry_interval"] == 30
    await served.lose(peer, "x")
    await publisher.publish("a", b"waits", 1, message_expiry_interval=30, retain=True)
    served.clock.advance(12)
    back = await served.join("x", clean_start=False, session_expiry_interval=1000)
    assert (await back.message()).properties["message_expiry_interval"] == 18
    served.clock.advance(10)
    late = await served.join("late")
    await late.subscribe("a")
    assert (await late.message()).properties["message_expiry_interval"] == 8
    served.clock.advance(8)
    later = await served.join("later")
    await later.subscribe("a")
    assert await later.sync() == []


@QOS
async def test_an_expiry_interval_of_0_is_for_those_who_are_there(served: Served, qos: int) -> None:
    peer = await served.join("x")
    await peer.subscribe("a", qos=qos)
    publisher = await served.join("p")
    await publisher.publish("a", b"now", qos, retain=True, message_expiry_interval=0)
    message = await peer.message()
    assert (message.payload, message.properties["message_expiry_interval"]) == (b"now", 0)
    late = await served.join("late")
    await late.subscribe("a", qos=qos)
    assert await late.sync() == []


# 3.3.2.3.4: topic aliases that a client sets


async def test_every_alias_up_to_the_maximum_is_taken(make_served: MakeServed) -> None:
    served = await make_served(topic_alias_maximum=9)
    watcher = await served.join("w")
    await watcher.subscribe("t/#")
    peer = await served.attach()
    assert (await peer.connect("x")).properties["topic_alias_maximum"] == 9
    for alias in range(1, 10):
        peer.send(Publish(f"t/{alias}", b"set", properties={"topic_alias": alias}))
    for alias in range(9, 0, -1):
        peer.send(Publish("", b"used", properties={"topic_alias": alias}))
    peer.send(Publish("t/new", b"changed", properties={"topic_alias": 4}))
    peer.send(Publish("", b"used", properties={"topic_alias": 4}))
    assert await peer.sync() == []
    found = [(each.topic, each.payload) for each in await watcher.sync() if isinstance(each, Publish)]
    assert found[:9] == [(f"t/{alias}", b"set") for alias in range(1, 10)]
    assert found[9:18] == [(f"t/{alias}", b"used") for alias in range(9, 0, -1)]
    assert found[18:] == [("t/new", b"changed"), ("t/new", b"used")]


@pytest.mark.parametrize(("alias", "code"), [(0, 0x94), (10, 0x94), (65_535, 0x94)])
async def test_an_alias_of_0_or_beyond_the_maximum(make_served: MakeServed, alias: int, code: int) -> None:
    served = await make_served(topic_alias_maximum=9)
    peer = await served.join("x")
    peer.send(packet(0x30, text("t"), block(b"\x23", alias.to_bytes(2, "big"))))
    assert await last_code(peer) == code


async def test_aliases_end_with_their_connection(served: Served) -> None:
    options: dict[str, Any] = {"clean_start": False, "session_expiry_interval": 100}
    peer = await served.join("x", **options)
    peer.send(Publish("t", b"", properties={"topic_alias": 1}))
    await peer.sync()
    await served.lose(peer, "x")
    back = await served.join("x", **options)
    back.send(Publish("", b"", properties={"topic_alias": 1}))
    assert await last_code(back) == 0x82


async def test_aliases_are_each_connections_own(served: Served) -> None:
    watcher = await served.join("w")
    await watcher.subscribe("t/#")
    peers = [await served.join(f"x{number}") for number in range(2)]
    for number, peer in enumerate(peers):
        peer.send(Publish(f"t/{number}", b"", properties={"topic_alias": 1}))
        await peer.sync()
    for peer in peers:
        peer.send(Publish("", b"", properties={"topic_alias": 1}))
        await peer.sync()
    assert [each.topic for each in await watcher.sync() if isinstance(each, Publish)] == ["t/0", "t/1"] * 2


async def test_no_alias_reaches_a_client_that_takes_none(served: Served) -> None:
    peer = await served.join("x")
    await peer.subscribe("a", qos=1)
    publisher = await served.join("p")
    publisher.send(Publish("a", b"1", properties={"topic_alias": 1}))
    publisher.send(Publish("", b"2", properties={"topic_alias": 1}))
    publisher.send(Publish("", b"3", 1, packet_id=1, properties={"topic_alias": 1}))
    for payload in (b"1", b"2", b"3"):
        message = await peer.message()
        assert (message.topic, message.payload, dict(message.properties)) == ("a", payload, {})


# 3.3.4: what a PUBLISH brings about


@VERSIONS
async def test_each_qos_gets_its_answer(served: Served, version: Version) -> None:
    watcher = await served.join("w")
    await watcher.subscribe("a")
    peer = await served.join("x", version)
    peer.send(Publish("a", b"0"))
    assert await peer.sync() == []
    peer.send(Publish("a", b"1", 1, packet_id=1))
    assert (await peer.expect(PubAck)).reason_code == 0
    peer.send(Publish("a", b"2", 2, packet_id=2))
    assert (await peer.expect(PubRec)).reason_code == 0
    assert await peer.sync() == []
    peer.send(PubRel(2))
    assert (await peer.expect(PubComp)).reason_code == 0


async def test_overlapping_subscriptions_bring_the_highest_qos_and_all_identifiers(served: Served) -> None:
    peer = await served.join("x")
    await peer.subscribe("a/+", qos=1, subscription_identifier=10)
    await peer.subscribe("a/#", qos=2, subscription_identifier=300)
    await peer.subscribe("a/b", qos=0)
    await peer.subscribe("+/b", qos=0, subscription_identifier=268_435_455)
    publisher = await served.join("p")
    for qos in (0, 1, 2):
        await publisher.publish("a/b", b"x", qos)
        message = await peer.message()
        assert message.qos == qos
        assert sorted(message.properties["subscription_identifier"]) == [10, 300, 268_435_455]
        assert await peer.sync() == []


async def test_shared_and_plain_subscriptions_each_bring_a_copy_with_their_identifier(served: Served) -> None:
    """Two copies: each has the identifier of the subscription that it came by."""
    peer = await served.join("x")
    await peer.subscribe("a", qos=1, subscription_identifier=1)
    await peer.subscribe("$share/g/a", qos=1, subscription_identifier=2)
    publisher = await served.join("p")
    await publisher.publish("a", b"x", 1)
    found = [each.properties["subscription_identifier"] for each in await received(peer, 5, 1)]
    assert sorted(found) == [(1,), (2,)]


async def test_where_each_subscription_brings_a_copy_it_has_its_identifier_and_qos(make_served: MakeServed) -> None:
    """The other way that section 3.3.4 allows; the broker has a setting for it."""
    served = await make_served(overlapping="each")
    peer = await served.join("x")
    await peer.subscribe("a/+", qos=1, subscription_identifier=1)
    await peer.subscribe("a/#", qos=2, subscription_identifier=2)
    await peer.subscribe("a/b", qos=0)
    publisher = await served.join("p")
    for qos in (0, 1, 2):
        await publisher.publish("a/b", b"x", qos)
        copies = await taken(peer, 3)
        found = {each.properties.get("subscription_identifier", (0,)): each.qos for each in copies}
        assert found == {(1,): min(qos, 1), (2,): qos, (0,): 0}


async def test_overlapping_subscriptions_of_311_bring_the_highest_qos(served: Served) -> None:
    peer = await served.join("x", 4)
    for topic_filter, qos in (("a/+", 1), ("a/#", 2), ("a/b", 0)):
        await peer.subscribe(topic_filter, qos=qos)
    publisher = await served.join("p", 4)
    for qos in (0, 1, 2):
        await publisher.publish("a/b", b"x", qos)
        assert max([each.qos for each in await received(peer, 4, 2)]) == qos


async def test_a_subscription_identifier_from_a_client_ends_the_connection(served: Served) -> None:
    peer = await served.join("x")
    peer.send(packet(0x30, text("a"), block(b"\x0b\x01")))
    assert await last_code(peer) == 0x82


@pytest.mark.parametrize("limit", [1, 3, 10])
async def test_no_more_than_receive_maximum_are_sent(served: Served, limit: int) -> None:
    peer = await served.join("x", receive_maximum=limit)
    await peer.subscribe("a", qos=2)
    publisher = await served.join("p")
    for number in range(20):
        await publisher.publish("a", b"%d" % number, 1 + number % 2, packet_id=number + 1)
    unanswered: list[Publish] = []
    seen: list[bytes] = []
    while len(seen) < 20:
        arrived = [each for each in await peer.sync() if isinstance(each, Publish)]
        seen += payloads(list(arrived))
        unanswered += arrived
        assert len(unanswered) == min(limit, 20 - len(seen) + len(unanswered))
        oldest = unanswered.pop(0)
        assert oldest.packet_id is not None
        if oldest.qos == 1:
            peer.send(PubAck(oldest.packet_id))
        else:
            peer.send(PubRec(oldest.packet_id, 0x80 if len(seen) % 3 else 0))
            if not len(seen) % 3:
                # PUBREC alone makes no room.
                assert [type(each) for each in await peer.sync()] == [PubRel]
                peer.send(PubComp(oldest.packet_id))
    assert seen == [b"%d" % number for number in range(20)]


async def test_without_room_all_but_publish_goes_on(served: Served) -> None:
    peer = await served.join("x", receive_maximum=1)
    await peer.subscribe("a", qos=2)
    publisher = await served.join("p")
    for number in range(3):
        await publisher.publish("a", b"%d" % number, 2, packet_id=number + 1)
    held = await peer.message(acknowledge=False)
    assert await peer.subscribe("b", qos=1) == [1]
    assert await peer.unsubscribe("b") == [0]
    for qos in (1, 2):
        peer.send(Publish("c", b"", qos, packet_id=qos))
        answer = await peer.next()
        assert isinstance(answer, (PubAck, PubRec))
        assert answer.packet_id == qos
    peer.send(PubRel(2))
    assert (await peer.expect(PubComp)).packet_id == 2
    await publisher.publish("a", b"at most once", 0)  # QoS 0 is not counted
    assert (await peer.message()).payload == b"at most once"
    assert held.packet_id is not None
    peer.send(PubRec(held.packet_id))
    assert (await peer.expect(PubRel)).packet_id == held.packet_id
    peer.send(PubComp(held.packet_id))
    assert (await peer.message()).payload == b"1"


async def test_more_than_the_servers_receive_maximum_ends_the_connection(make_served: MakeServed) -> None:
    served = await make_served(max_inflight=3)
    peer = await served.attach()
    assert (await peer.connect("x")).properties["receive_maximum"] == 3
    for packet_id in (1, 2, 3):
        peer.send(Publish("a", b"", 2, packet_id=packet_id))
        assert (await peer.expect(PubRec)).packet_id == packet_id
    peer.send(Publish("a", b"", 0))
    assert await peer.sync() == []
    peer.send(Publish("a", b"", 2, packet_id=4))
    assert await last_code(peer) == 0x93


# 3.4 to 3.7: reason codes of the answers


async def test_reason_codes_of_the_answers(served: Served) -> None:
    """The decoder of the peer takes no code that the packet may not have."""
    peer = await served.join("x")
    assert await peer.publish("nobody", b"", 1) == 0x10
    assert await peer.publish("nobody", b"", 2) == 0x10
    await peer.subscribe("a")
    peer.send(Publish("a", b"", 2, packet_id=7))
    assert [type(await peer.next()) for _ in range(2)] == [PubRec, Publish]
    peer.send(Publish("a", b"", 1, packet_id=7))
    assert (await peer.expect(PubAck)).reason_code == 0x91
    peer.send(PubRel(7))
    assert (await peer.expect(PubComp)).reason_code == 0
    peer.send(PubRel(7))
    assert (await peer.expect(PubComp)).reason_code == 0x92
    peer.send(PubRec(7))
    assert (await peer.expect(PubRel)).reason_code == 0x92
    for code in (0x80, 0x10):
        peer.send(PubAck(7, code))
    assert await peer.sync() == []


@pytest.mark.parametrize("qos", [1, 2])
async def test_reason_strings_of_answers_are_left_out_where_they_do_not_fit(served: Served, qos: int) -> None:
    """A refusal says why: here, that clients do not publish to the server's own topics."""
    seen = set()
    for limit in (30, 500):
        peer = await served.join("x", maximum_packet_size=limit)
        peer.send(Publish("$SYS/mine", b"", qos, packet_id=1))
        answer: Any = await peer.next()
        assert (answer.packet_id, answer.reason_code) == (1, 0x87)
        assert len(answer.raw) <= limit
        assert set(answer.properties) <= {"reason_string"}
        seen.add(bool(answer.properties))
    assert seen == {False, True}


@VERSIONS
async def test_a_message_that_waits_in_one_topic_does_not_overtake_another(served: Served, version: Version) -> None:
    """Order holds per topic and QoS, also where messages have to wait for their acknowledgements."""
    peer = await served.join("x", version, **({"receive_maximum": 2} if version == 5 else {}))
    await peer.subscribe("t/#", qos=2)
    publishers = [await served.join(f"p{number}", version) for number in range(2)]
    for number in range(12):
        for which, publisher in enumerate(publishers):
            await publisher.publish(f"t/{which}", b"%d" % number, 1 + number % 2, packet_id=number + 1)
    found: dict[tuple[str, int], list[int]] = {}
    for message in await taken(peer, 24):
        found.setdefault((message.topic, message.qos), []).append(int(message.payload))
    assert all(numbers == sorted(numbers) for numbers in found.values())
    assert len(found) == 4


async def test_a_subscribe_in_between_is_answered_in_its_place(served: Served) -> None:
    peer = await served.join("x")
    peer.send(
        Publish("a", b"before", 1, packet_id=1).encode()
        + Subscribe(2, (Subscription("a", 1),)).encode()
        + Publish("a", b"after", 1, packet_id=3).encode()
    )
    assert payloads([await peer.next() for _ in range(4)]) == [b"after"]
