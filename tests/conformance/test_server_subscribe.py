"""SUBSCRIBE, UNSUBSCRIBE and shared subscriptions as the server has to treat them (sections 3.8 to 3.11, 4.7, 4.8)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.mqtt import (
    Disconnect,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    Subscription,
    UnsubAck,
    Unsubscribe,
    Will,
)
from tests.conformance.exchange import taken
from tests.conformance.octets import block, packet, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqttquic_lab.mqtt import Packet, Version
    from tests.broker.peer import Peer
    from tests.conformance.conftest import MakeServed, Served

VERSIONS = pytest.mark.parametrize("version", [4, 5])
ID = b"\0\x07"


def payloads(packets: Sequence[Packet]) -> list[bytes]:
    return [each.payload for each in packets if isinstance(each, Publish)]


def nothing(version: Version) -> bytes:
    """Return the empty property block, where there is one."""
    return b"\0" if version == 5 else b""


async def ends(peer: Peer, version: Version, code: int) -> None:
    """Expect the end of the connection, and at 5.0 this reason."""
    found = [each.reason_code for each in await peer.closed() if isinstance(each, Disconnect)]
    assert found == ([code] if version == 5 else [])


# 3.8: what a SUBSCRIBE has to look like


@VERSIONS
@pytest.mark.parametrize("flags", [0, 1, 3, 4, 8, 10, 15])
async def test_flags_of_subscribe(served: Served, version: Version, flags: int) -> None:
    peer = await served.join("x", version)
    peer.send(packet(0x80 | flags, ID, nothing(version), text("a"), b"\0"))
    await ends(peer, version, 0x81)


@VERSIONS
@pytest.mark.parametrize("flags", [0, 1, 3, 6, 8, 15])
async def test_flags_of_unsubscribe(served: Served, version: Version, flags: int) -> None:
    peer = await served.join("x", version)
    peer.send(packet(0xA0 | flags, ID, nothing(version), text("a")))
    await ends(peer, version, 0x81)


@VERSIONS
@pytest.mark.parametrize("first", [0x82, 0xA2])
async def test_without_a_filter(served: Served, version: Version, first: int) -> None:
    peer = await served.join("x", version)
    peer.send(packet(first, ID, nothing(version)))
    await ends(peer, version, 0x82)


@pytest.mark.parametrize(
    ("options", "code"),
    [(0x03, 0x82), (0x07, 0x82), (0x30, 0x82), (0x40, 0x81), (0x80, 0x81), (0xC1, 0x81), (0xFF, 0x81)],
)
async def test_subscription_options_that_must_not_be(served: Served, options: int, code: int) -> None:
    peer = await served.join("x")
    peer.send(packet(0x82, ID, b"\0", text("a"), bytes((options,))))
    await ends(peer, 5, code)
    assert served.server.stats().subscriptions == 0


@pytest.mark.parametrize("options", [0x03, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xFF])
async def test_of_the_options_311_has_but_the_qos(served: Served, options: int) -> None:
    peer = await served.join("x", 4)
    peer.send(packet(0x82, ID, text("a"), bytes((options,))))
    await ends(peer, 4, 0x81)
    assert served.server.stats().subscriptions == 0


async def test_no_local_on_a_shared_subscription(served: Served) -> None:
    peer = await served.join("x")
    peer.send(packet(0x82, ID, b"\0", text("$share/g/a"), b"\x04"))
    await ends(peer, 5, 0x82)


BAD_FILTERS = ["", "a#", "a/#/b", "#/", "##", "a+", "+a", "a/+b/c", "++", "a/b#"]


@VERSIONS
@pytest.mark.parametrize("first", [0x82, 0xA2], ids=["SUBSCRIBE", "UNSUBSCRIBE"])
@pytest.mark.parametrize("topic_filter", BAD_FILTERS)
async def test_wildcards_must_be_whole_levels(served: Served, version: Version, first: int, topic_filter: str) -> None:
    peer = await served.join("x", version)
    peer.send(packet(first, ID, nothing(version), text(topic_filter), b"\0" if first == 0x82 else b""))
    await ends(peer, version, 0x8F if topic_filter else 0x82)


@VERSIONS
@pytest.mark.parametrize("topic_filter", ["#", "+", "/", "+/+", "+/#", "a/+/#", "/#", "a//b", "/+/", " ", "$x/#"])
async def test_filters_that_may_be(served: Served, version: Version, topic_filter: str) -> None:
    peer = await served.join("x", version)
    assert await peer.subscribe(topic_filter, qos=1) == [1]
    assert await peer.unsubscribe(topic_filter) == ([0] if version == 5 else [])


@pytest.mark.parametrize("topic_filter", ["$share//a", "$share/g", "$share/g/", "$share/+/a", "$share/g#/a", "$share/"])
async def test_filters_of_shared_subscriptions_that_must_not_be(served: Served, topic_filter: str) -> None:
    peer = await served.join("x")
    peer.send(packet(0x82, ID, b"\0", text(topic_filter), b"\0"))
    await ends(peer, 5, 0x8F)


# 3.8.4 and 3.9: what becomes of it


@VERSIONS
async def test_suback_has_a_code_for_each_filter_in_order(make_served: MakeServed, version: Version) -> None:
    served = await make_served(max_subscriptions=3)
    peer = await served.join("x", version)
    wanted = (("a", 2), ("b", 0), ("c", 1), ("too many", 1), ("a", 1))
    peer.send(Subscribe(0x1234, tuple(Subscription(name, qos) for name, qos in wanted)))
    answer = await peer.expect(SubAck)
    assert answer.packet_id == 0x1234
    assert answer.raw[-5:] == bytes((2, 0, 1, 0x97 if version == 5 else 0x80, 1))


@VERSIONS
async def test_filters_of_one_subscribe_count_one_after_the_other(served: Served, version: Version) -> None:
    """As if each had come in a packet of its own, save that there is one answer."""
    publisher = await served.join("p")
    await publisher.publish("a", b"kept", 2, retain=True)
    peer = await served.join("x", version)
    peer.send(Subscribe(1, (Subscription("a", 2), Subscription("b", 1), Subscription("a", 0))))
    assert list((await peer.expect(SubAck)).reason_codes) == [2, 1, 0]
    brought = [each for each in await peer.sync() if isinstance(each, Publish)]
    assert payloads(brought)
    assert brought[-1].qos == 0
    await publisher.publish("a", b"live", 2)
    message = await peer.message()
    assert (message.payload, message.qos) == (b"live", 0)
    assert served.server.stats().subscriptions == 2


@VERSIONS
@pytest.mark.parametrize("granted", [0, 1, 2])
async def test_a_message_comes_at_the_lower_qos_of_the_two(served: Served, version: Version, granted: int) -> None:
    peer = await served.join("x", version)
    await peer.subscribe("a", qos=granted)
    publisher = await served.join("p")
    for qos in (0, 1, 2):
        await publisher.publish("a", b"live", qos, retain=True)
        message = await peer.message()
        assert (message.qos, message.retain) == (min(qos, granted), False)
        await peer.subscribe("a", qos=granted)
        again = await peer.message()
        assert (again.qos, again.retain) == (min(qos, granted), True)


@VERSIONS
async def test_the_same_filter_again_replaces_the_subscription(served: Served, version: Version) -> None:
    publisher = await served.join("p")
    await publisher.publish("a/b", b"kept", 1, retain=True)
    peer = await served.join("x", version)
    for qos in (2, 0, 1):
        assert await peer.subscribe("a/+", qos=qos) == [qos]
        assert (await peer.message()).payload == b"kept"
        await publisher.publish("a/b", b"live", 2)
        assert (await peer.message()).qos == qos
        assert await peer.sync() == []
    assert served.server.stats().subscriptions == 1


async def test_the_same_filter_again_replaces_options_and_identifier(served: Served) -> None:
    peer = await served.join("x")
    await peer.subscribe("a", qos=1, no_local=True, retain_as_published=True, subscription_identifier=5)
    peer.send(Publish("a", b"mine"))
    assert await peer.sync() == []
    await peer.subscribe("a", qos=1, subscription_identifier=6)
    peer.send(Publish("a", b"mine", retain=True))
    message = await peer.message()
    assert (message.retain, message.properties["subscription_identifier"]) == (False, (6,))
    await peer.subscribe("a", qos=1, retain_handling=2)
    peer.send(Publish("a", b"mine"))
    assert not (await peer.message()).properties


@VERSIONS
async def test_nothing_is_lost_while_a_subscription_is_replaced(served: Served, version: Version) -> None:
    peer = await served.join("x", version)
    await peer.subscribe("a", qos=1)
    publisher = await served.join("p")
    seen: list[bytes] = []
    count = 0

    async def take() -> None:
        while isinstance(each := await peer.next(), Publish):
            seen.append(each.payload)
            if each.packet_id is not None:
                peer.send(PubAck(each.packet_id))
        assert isinstance(each, SubAck)

    for _ in range(10):
        publisher.send(
            b"".join(Publish("a", b"%d" % (count + n), 1, packet_id=count + n + 1).encode() for n in range(5))
        )
        peer.send(Subscribe(1, (Subscription("a", 1),)))
        count += 5
        await take()
    seen += payloads(await peer.sync())
    while len(seen) < count:
        seen.append((await peer.message()).payload)
    assert seen == [b"%d" % number for number in range(count)]


async def test_no_local(served: Served) -> None:
    peer, other = await served.join("x"), await served.join("y")
    await peer.subscribe("a", qos=2, no_local=True)
    await other.subscribe("a", qos=2, no_local=True)
    for qos in (0, 1, 2):
        await peer.publish("a", b"from x", qos)
        assert (await other.message()).payload == b"from x"
        assert await peer.sync() == []


async def test_no_local_for_retained_messages_and_wills(served: Served) -> None:
    """What was published on a connection of the same client identifier stays away, however it comes."""
    options: dict[str, Any] = {"clean_start": False, "session_expiry_interval": 100, "will": Will("w", b"gone", 1)}
    peer, other = await served.join("x", **options), await served.join("y")
    await peer.publish("a", b"mine", 1, retain=True)
    await other.publish("b", b"theirs", 1, retain=True)
    await peer.subscribe("a", "b", "w", qos=1, no_local=True)
    await other.subscribe("a", "w", qos=1, no_local=True)
    assert (await peer.message()).payload == b"theirs"
    assert await peer.sync() == []
    assert (await other.message()).payload == b"mine"
    await served.lose(peer, "x")
    assert (await other.message()).payload == b"gone"
    back = await served.join("x", clean_start=False)
    assert await back.sync() == []


async def test_a_suback_larger_than_the_client_takes_is_not_sent(served: Served) -> None:
    for filters, answered in ((15, True), (100, False)):
        peer = await served.join("x", maximum_packet_size=40)
        peer.send(Subscribe(1, tuple(Subscription(f"a/{number}") for number in range(filters))))
        if answered:
            assert len((await peer.expect(SubAck)).reason_codes) == filters
            peer.send(Unsubscribe(2, tuple(f"a/{number}" for number in range(filters))))
            assert len((await peer.expect(UnsubAck)).reason_codes) == filters
            await peer.subscribe("b")
            peer.send(Unsubscribe(2, tuple(f"a/{number}" for number in range(100))))
        # The client would wait for ever: it is told why there is no answer.
        await ends(peer, 5, 0x95)


@VERSIONS
async def test_reason_strings_of_suback_do_not_make_it_too_large(make_served: MakeServed, version: Version) -> None:
    served = await make_served(max_subscriptions=1)
    for limit in (30, 400):
        options = {"maximum_packet_size": limit} if version == 5 else {}
        peer = await served.join(f"x{limit}", version, **options)
        await peer.subscribe("a")
        peer.send(Subscribe(1, (Subscription("b"),)))
        answer = await peer.expect(SubAck)
        assert len(answer.raw) <= limit
        assert answer.reason_codes == (0x97 if version == 5 else 0x80,)
        if limit == 30:
            assert not answer.properties


# 3.10 and 3.11: UNSUBSCRIBE


@VERSIONS
async def test_unsuback_has_a_code_for_each_filter_in_order(served: Served, version: Version) -> None:
    peer = await served.join("x", version)
    await peer.subscribe("a", "b/#")
    peer.send(Unsubscribe(0x4321, ("never", "b/#", "a", "a")))
    answer = await peer.expect(UnsubAck)
    assert answer.packet_id == 0x4321
    assert answer.raw[-4:] == (b"\x11\x00\x00\x11" if version == 5 else b"\xb0\x02\x43\x21")
    assert served.server.stats().subscriptions == 0


@VERSIONS
async def test_where_nothing_was_subscribed_there_is_an_answer_all_the_same(served: Served, version: Version) -> None:
    peer = await served.join("x", version)
    assert await peer.unsubscribe("never") == ([0x11] if version == 5 else [])


@VERSIONS
async def test_filters_are_compared_character_by_character(served: Served, version: Version) -> None:
    filters = ("a/+", "a/#", "a/b", "A/b", "caf\u00e9")
    peer = await served.join("x", version)
    await peer.subscribe(*filters)
    others = ("a/c", "#", "a/+/", "A/B", "cafe\u0301", "+/b", "a")
    codes = await peer.unsubscribe(*others)
    assert codes == ([0x11] * len(others) if version == 5 else [])
    assert served.server.stats().subscriptions == len(filters)
    assert await peer.unsubscribe(*filters) == ([0] * len(filters) if version == 5 else [])
    assert served.server.stats().subscriptions == 0


@VERSIONS
async def test_after_unsubscribe_nothing_new_comes(served: Served, version: Version) -> None:
    peer = await served.join("x", version)
    await peer.subscribe("a/+", "b", qos=1)
    publisher = await served.join("p")
    await peer.unsubscribe("a/+", "never")
    for topic in ("a/1", "b"):
        await publisher.publish(topic, topic.encode(), 1)
    assert payloads(await peer.sync()) == [b"b"]


@VERSIONS
async def test_what_was_begun_is_completed_after_unsubscribe(served: Served, version: Version) -> None:
    peer = await served.join("x", version)
    await peer.subscribe("a", qos=2)
    publisher = await served.join("p")
    await publisher.publish("a", b"1", 1)
    await publisher.publish("a", b"2", 2)
    one, two = [await peer.message(acknowledge=False) for _ in range(2)]
    assert one.packet_id
    assert two.packet_id
    await peer.unsubscribe("a")
    peer.send(PubAck(one.packet_id))
    peer.send(PubRec(two.packet_id))
    assert (await peer.expect(PubRel)).packet_id == two.packet_id
    peer.send(PubComp(two.packet_id))
    assert await peer.sync() == []
    assert served.server.clients()[0].inflight == 0


async def test_what_was_begun_is_sent_again_though_unsubscribed(served: Served) -> None:
    peer = await served.join("x", clean_start=False, session_expiry_interval=100)
    await peer.subscribe("a", qos=1)
    publisher = await served.join("p")
    await publisher.publish("a", b"1", 1)
    begun = await peer.message(acknowledge=False)
    await peer.unsubscribe("a")
    await served.lose(peer, "x")
    back = await served.join("x", clean_start=False, session_expiry_interval=100)
    again = await back.message()
    assert (again.payload, again.packet_id, again.dup) == (b"1", begun.packet_id, True)


# 4.7: topics


@VERSIONS
async def test_wildcards_at_the_start_leave_out_dollar_topics(served: Served, version: Version) -> None:
    peer = await served.join("x", version)
    await peer.subscribe("#", "+/x", "+", "+/#")
    publisher = await served.join("p", version)
    for topic in ("$lab/x", "$lab", "$"):
        await publisher.publish(topic, b"hidden", 1)
    assert await peer.sync() == []
    await peer.subscribe("$lab/#", "$lab/+", "$")
    for topic in ("$lab/x", "$lab", "$", "a/$lab"):
        await publisher.publish(topic, topic.encode(), 1)
    assert set(payloads(await peer.sync())) == {b"$lab/x", b"$lab", b"$", b"a/$lab"}


@VERSIONS
async def test_a_wildcard_is_no_topic_name(served: Served, version: Version) -> None:
    for topic in ("a/+", "#", "a#", "+"):
        peer = await served.join("x", version)
        peer.send(packet(0x30, text(topic), nothing(version)))
        await ends(peer, version, 0x90)


# 4.8.2: shared subscriptions


async def share(served: Served, count: int, qos: int = 1, shared: str = "$share/g/a/#") -> list[Peer]:
    members = []
    for number in range(count):
        members.append(await served.join(f"m{number}", clean_start=False, session_expiry_interval=1000))
        assert await members[-1].subscribe(shared, qos=qos) == [qos]
    return members


async def test_a_message_goes_to_one_member(served: Served) -> None:
    members = await share(served, 3)
    publisher = await served.join("p")
    for number in range(9):
        await publisher.publish("a/x", b"%d" % number, 1)
    found = [payloads(await member.sync()) for member in members]
    assert sorted(sum(found, [])) == [b"%d" % number for number in range(9)]  # noqa: RUF017
    assert all(found)


@pytest.mark.parametrize("granted", [0, 1, 2])
async def test_a_member_gets_its_granted_qos(served: Served, granted: int) -> None:
    (member,) = await share(served, 1, granted)
    publisher = await served.join("p")
    for qos in (0, 1, 2):
        await publisher.publish("a", b"x", qos)
        assert (await member.message()).qos == min(qos, granted)


async def test_members_of_one_group_may_have_different_qos(served: Served) -> None:
    members = []
    for qos in (0, 1, 2):
        members.append(await served.join(f"m{qos}"))
        await members[-1].subscribe("$share/g/a", qos=qos)
    publisher = await served.join("p")
    for _ in range(3):
        await publisher.publish("a", b"x", 2)
    assert sorted([(await member.message()).qos for member in members]) == [0, 1, 2]


async def test_a_delivery_that_was_begun_is_completed_with_that_member(served: Served) -> None:
    members = await share(served, 2, 2)
    publisher = await served.join("p")
    for number in range(4):
        await publisher.publish("a", b"%d" % number, 2)
    begun = [await members[0].message(acknowledge=False) for _ in range(2)]
    assert begun[0].packet_id
    members[0].send(PubRec(begun[0].packet_id))
    assert (await members[0].expect(PubRel)).packet_id == begun[0].packet_id
    await served.lose(members[0], "m0")
    assert len(await taken(members[1], 2)) == 2
    assert await members[1].sync() == []
    back = await served.join("m0", clean_start=False, session_expiry_interval=1000)
    assert (await back.expect(PubRel)).packet_id == begun[0].packet_id
    back.send(PubComp(begun[0].packet_id))
    again = await back.message()
    assert (again.payload, again.packet_id, again.dup) == (begun[1].payload, begun[1].packet_id, True)


async def test_what_a_member_leaves_behind_goes_to_nobody_else(served: Served) -> None:
    """Its session ends in the middle of a delivery."""
    members = await share(served, 2, 2)
    publisher = await served.join("p")
    for number in range(2):
        await publisher.publish("a", b"%d" % number, 2)
    await members[0].message(acknowledge=False)
    await members[1].message()
    await members[0].leave(session_expiry_interval=0)
    await served.gone("m0")
    assert await members[1].sync() == []


@pytest.mark.parametrize("qos", [1, 2])
async def test_what_a_member_refuses_goes_to_nobody_else(served: Served, qos: int) -> None:
    members = await share(served, 2, qos)
    publisher = await served.join("p")
    await publisher.publish("a", b"x", qos)
    message = await members[0].message(acknowledge=False)
    assert message.packet_id
    members[0].send(PubAck(message.packet_id, 0x83) if qos == 1 else PubRec(message.packet_id, 0x83))
    assert await members[0].sync() == []
    assert await members[1].sync() == []
    await served.lose(members[0], "m0")
    back = await served.join("m0", clean_start=False, session_expiry_interval=1000)
    assert await back.sync() == []


async def test_a_shared_subscription_is_told_apart_by_name_and_filter(served: Served) -> None:
    peers = {}
    for shared in ("$share/g/a", "$share/G/a", "$share/g/+", "$share/g/a/#", "a"):
        peers[shared] = await served.join(shared)
        await peers[shared].subscribe(shared)
    publisher = await served.join("p")
    await publisher.publish("a", b"x")
    for peer in peers.values():
        assert payloads(await peer.sync()) == [b"x"]


async def test_dollar_topics_and_wildcards_of_shared_subscriptions(served: Served) -> None:
    (member,) = await share(served, 1, shared="$share/g/#")
    publisher = await served.join("p")
    await publisher.publish("$lab/x", b"hidden")
    await publisher.publish("lab/x", b"seen")
    assert payloads(await member.sync()) == [b"seen"]


async def test_a_subscription_identifier_of_0_or_two(served: Served) -> None:
    for properties in (block(b"\x0b\x00"), block(b"\x0b\x01\x0b\x02")):
        peer = await served.join("x")
        peer.send(packet(0x82, ID, properties, text("a"), b"\0"))
        await ends(peer, 5, 0x82)
