"""Sessions and QoS as the server has to keep them (MQTT 5.0 sections 4.1, 4.3 to 4.6 and 4.9, 3.1.1 likewise)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.mqtt import PubAck, PubComp, Publish, PubRec, PubRel
from tests.conformance.exchange import taken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqttquic_lab.mqtt import Packet, Version
    from tests.broker.peer import Peer
    from tests.conformance.conftest import MakeServed, Served

VERSIONS = pytest.mark.parametrize("version", [4, 5])


def payloads(packets: Sequence[Packet]) -> list[bytes]:
    return [each.payload for each in packets if isinstance(each, Publish)]


async def join(served: Served, client_id: str, version: Version, **options: Any) -> Peer:
    """Connect a client whose session outlives its connection."""
    if version == 5:
        options = {"session_expiry_interval": 1000, **options}
    return await served.join(client_id, version, clean_start=False, **options)


async def held(peer: Peer) -> Publish:
    """Return the next message, unanswered."""
    message = await peer.message(acknowledge=False)
    assert message.packet_id is not None
    return message


# 4.1: how long a session lasts


async def test_a_session_lasts_while_its_connection_does(served: Served) -> None:
    """However long that is, and however short its expiry interval."""
    peer = await served.join("x", session_expiry_interval=1)
    await peer.subscribe("a", qos=1)
    served.clock.advance(1_000_000)
    publisher = await served.join("p")
    await publisher.publish("a", b"x", 1)
    assert (await peer.message()).payload == b"x"


async def test_a_session_ends_when_its_expiry_interval_has_passed(served: Served) -> None:
    peer = await served.join("x", clean_start=False, session_expiry_interval=60)
    await peer.subscribe("a", qos=1)
    await served.lose(peer, "x")
    served.clock.advance(59)
    back = await served.attach()
    assert (await back.connect("x", clean_start=False, session_expiry_interval=60)).session_present
    await served.lose(back, "x")
    served.clock.advance(60)
    assert (served.server.stats().sessions, served.server.stats().subscriptions) == (0, 0)
    late = await served.attach()
    assert not (await late.connect("x", clean_start=False)).session_present


@pytest.mark.parametrize(
    ("told", "kept"), [({}, 0), ({"session_expiry_interval": 0}, 0), ({"session_expiry_interval": 9}, 1)]
)
async def test_without_an_expiry_interval_a_session_ends_with_its_connection(
    served: Served, told: dict[str, Any], kept: int
) -> None:
    peer = await served.join("x", clean_start=False, **told)
    await served.lose(peer, "x")
    assert served.server.stats().sessions == kept


async def test_the_largest_expiry_interval_does_not_end(make_served: MakeServed) -> None:
    served = await make_served(max_session_expiry=0xFFFFFFFF)
    peer = await served.join("x", session_expiry_interval=0xFFFFFFFF)
    await served.lose(peer, "x")
    served.clock.advance(0xFFFFFFFF * 2)
    assert served.server.stats().sessions == 1


async def test_disconnect_changes_the_expiry_interval(served: Served) -> None:
    for expiry, kept in ((0, 0), (5, 1)):
        peer = await served.join("x", clean_start=False, session_expiry_interval=1000)
        await peer.leave(session_expiry_interval=expiry)
        await served.gone("x")
        assert served.server.stats().sessions == kept
    served.clock.advance(5)
    assert served.server.stats().sessions == 0


@VERSIONS
async def test_the_state_of_a_session_is_all_there_after_a_connection(served: Served, version: Version) -> None:
    """Subscriptions, messages under way in both directions, and messages that wait."""
    peer = await join(served, "x", version)
    await peer.subscribe("a", qos=2)
    peer.send(Publish("b", b"", 2, packet_id=77))
    await peer.expect(PubRec)
    publisher = await served.join("p")
    await publisher.publish("a", b"sent", 1)
    sent = await held(peer)
    await publisher.publish("a", b"released", 2)
    released = await held(peer)
    peer.send(PubRec(released.packet_id or 0))
    await peer.expect(PubRel)
    await served.lose(peer, "x")
    await publisher.publish("a", b"waits", 2)
    back = await join(served, "x", version)
    assert (await back.expect(PubRel)).packet_id == released.packet_id
    again = await held(back)
    assert (again.payload, again.packet_id, again.dup) == (b"sent", sent.packet_id, True)
    waited = await held(back)
    assert (waited.payload, waited.dup) == (b"waits", False)
    back.send(PubRel(77))
    answer = await back.expect(PubComp)
    assert (answer.packet_id, answer.reason_code) == (77, 0)


@VERSIONS
@pytest.mark.parametrize("qos", [1, 2])
async def test_messages_for_a_client_that_is_away_wait(served: Served, version: Version, qos: int) -> None:
    peer = await join(served, "x", version)
    await peer.subscribe("a", qos=2)
    await served.lose(peer, "x")
    publisher = await served.join("p")
    for number in range(10):
        await publisher.publish("a", b"%d" % number, qos)
    back = await join(served, "x", version)
    assert payloads(await taken(back, 10)) == [b"%d" % number for number in range(10)]
    assert await back.sync() == []


# 4.3.2: at least once


@VERSIONS
async def test_qos_1_a_message_stays_until_puback(served: Served, version: Version) -> None:
    peer = await join(served, "x", version)
    await peer.subscribe("a", qos=1)
    publisher = await served.join("p")
    await publisher.publish("a", b"x", 1)
    first = await held(peer)
    assert (first.qos, first.dup) == (1, False)
    for _ in range(3):
        await served.lose(peer, "x")
        peer = await join(served, "x", version)
        again = await held(peer)
        assert (again.payload, again.packet_id, again.dup) == (b"x", first.packet_id, True)
    peer.send(PubAck(first.packet_id or 0))
    await peer.sync()
    await served.lose(peer, "x")
    peer = await join(served, "x", version)
    assert await peer.sync() == []


@VERSIONS
@pytest.mark.parametrize("dup", [False, True])
async def test_qos_1_after_puback_the_same_identifier_is_a_new_message(
    served: Served, version: Version, dup: bool
) -> None:
    watcher = await served.join("w")
    await watcher.subscribe("a", qos=1)
    peer = await served.join("x", version)
    for payload in (b"1", b"2", b"2"):
        peer.send(Publish("a", payload, 1, dup=dup and payload == b"2", packet_id=5))
        assert (await peer.expect(PubAck)).packet_id == 5
        assert (await watcher.message()).payload == payload


# 4.3.3: exactly once


@VERSIONS
async def test_qos_2_as_receiver_step_by_step(served: Served, version: Version) -> None:
    watcher = await served.join("w")
    await watcher.subscribe("a", qos=2)
    peer = await served.join("x", version)
    for round_number in range(2):  # after PUBCOMP the identifier stands for a new message
        for dup in (False, True, False):
            peer.send(Publish("a", b"%d" % round_number, 2, dup=dup, packet_id=5))
            assert (await peer.expect(PubRec)).packet_id == 5
        assert (await watcher.message()).payload == b"%d" % round_number
        peer.send(PubRel(5))
        assert (await peer.expect(PubComp)).packet_id == 5
        assert await watcher.sync() == []


@VERSIONS
async def test_qos_2_as_receiver_over_two_connections(served: Served, version: Version) -> None:
    watcher = await served.join("w")
    await watcher.subscribe("a", qos=2)
    peer = await join(served, "x", version)
    peer.send(Publish("a", b"x", 2, packet_id=5))
    await peer.expect(PubRec)
    await watcher.message()
    await served.lose(peer, "x")
    peer = await join(served, "x", version)
    peer.send(Publish("a", b"x", 2, dup=True, packet_id=5))
    await peer.expect(PubRec)
    peer.send(PubRel(5))
    assert (await peer.expect(PubComp)).reason_code == 0
    assert await watcher.sync() == []


@VERSIONS
async def test_qos_2_as_sender_step_by_step(served: Served, version: Version) -> None:
    peer = await join(served, "x", version)
    await peer.subscribe("a", qos=2)
    publisher = await served.join("p")
    await publisher.publish("a", b"x", 2)
    first = await held(peer)
    assert (first.qos, first.dup) == (2, False)
    await served.lose(peer, "x")
    peer = await join(served, "x", version)  # PUBREC has not come: PUBLISH again
    again = await held(peer)
    assert (again.payload, again.packet_id, again.qos, again.dup) == (b"x", first.packet_id, 2, True)
    peer.send(PubRec(again.packet_id or 0))
    assert (await peer.expect(PubRel)).packet_id == first.packet_id
    for _ in range(2):
        await served.lose(peer, "x")
        peer = await join(served, "x", version)  # PUBCOMP has not come: PUBREL again, and PUBLISH never
        assert (await peer.expect(PubRel)).packet_id == first.packet_id
        assert await peer.sync() == []
    peer.send(PubComp(first.packet_id or 0))
    await peer.sync()
    await served.lose(peer, "x")
    peer = await join(served, "x", version)
    assert await peer.sync() == []


async def test_qos_2_a_repeated_pubrec_is_answered_again(served: Served) -> None:
    peer = await served.join("x")
    await peer.subscribe("a", qos=2)
    publisher = await served.join("p")
    await publisher.publish("a", b"x", 2)
    message = await held(peer)
    for _ in range(3):
        peer.send(PubRec(message.packet_id or 0))
        assert (await peer.expect(PubRel)).packet_id == message.packet_id


async def test_qos_2_after_a_refusal_the_same_identifier_is_a_new_message(served: Served) -> None:
    """The server refuses what is published to its own topics."""
    watcher = await served.join("w")
    await watcher.subscribe("a", qos=2)
    peer = await served.join("x")
    peer.send(Publish("$SYS/mine", b"", 2, packet_id=5))
    assert (await peer.expect(PubRec)).reason_code >= 0x80
    peer.send(Publish("a", b"x", 2, packet_id=5))
    assert (await peer.expect(PubRec)).reason_code == 0
    assert (await watcher.message()).payload == b"x"


@pytest.mark.parametrize("qos", [1, 2])
async def test_what_was_sent_does_not_expire(served: Served, qos: int) -> None:
    peer = await join(served, "x", 5)
    await peer.subscribe("a", qos=qos)
    publisher = await served.join("p")
    await publisher.publish("a", b"x", qos, message_expiry_interval=5)
    first = await held(peer)
    await served.lose(peer, "x")
    served.clock.advance(500)
    back = await join(served, "x", 5)
    again = await back.message()
    assert (again.payload, again.packet_id, again.dup) == (b"x", first.packet_id, True)
    assert await back.sync() == []


async def test_qos_2_goes_on_with_the_publisher_though_the_message_has_expired(served: Served) -> None:
    subscriber = await join(served, "s", 5)
    await subscriber.subscribe("a", qos=2)
    await served.lose(subscriber, "s")
    peer = await served.join("x")
    peer.send(Publish("a", b"x", 2, packet_id=5, properties={"message_expiry_interval": 5}))
    assert (await peer.expect(PubRec)).reason_code == 0
    served.clock.advance(500)
    back = await join(served, "s", 5)
    assert await back.sync() == []
    peer.send(PubRel(5))
    answer = await peer.expect(PubComp)
    assert (answer.packet_id, answer.reason_code) == (5, 0)


# 4.4: sending again


@VERSIONS
async def test_nothing_is_sent_again_on_the_same_connection(served: Served, version: Version) -> None:
    peer = await join(served, "x", version)
    await peer.subscribe("a", qos=2)
    publisher = await served.join("p")
    await publisher.publish("a", b"1", 1)
    await publisher.publish("a", b"2", 2)
    await held(peer)
    two = await held(peer)
    served.clock.advance(100_000)
    assert await peer.sync() == []
    peer.send(PubRec(two.packet_id or 0))
    await peer.expect(PubRel)
    served.clock.advance(100_000)
    assert await peer.sync() == []


@VERSIONS
async def test_what_is_sent_again_keeps_its_order_and_identifiers(served: Served, version: Version) -> None:
    peer = await join(served, "x", version)
    await peer.subscribe("a", qos=2)
    publisher = await served.join("p")
    for number in range(8):
        await publisher.publish("a", b"%d" % number, 1 + number % 2, packet_id=number + 1)
    first = [await held(peer) for _ in range(8)]
    for number in (5, 1):
        peer.send(PubRec(first[number].packet_id or 0))
        await peer.expect(PubRel)
    peer.send(PubAck(first[2].packet_id or 0))
    await peer.sync()
    await served.lose(peer, "x")
    back = await join(served, "x", version)
    packets = await back.sync()
    assert [each.packet_id for each in packets if isinstance(each, PubRel)] == [first[5].packet_id, first[1].packet_id]
    again = [(each.payload, each.packet_id, each.qos, each.dup) for each in packets if isinstance(each, Publish)]
    left = [first[number] for number in (0, 3, 4, 6, 7)]
    assert again == [(each.payload, each.packet_id, each.qos, True) for each in left]


@pytest.mark.parametrize("qos", [1, 2])
async def test_what_was_refused_is_not_sent_again(served: Served, qos: int) -> None:
    peer = await join(served, "x", 5)
    await peer.subscribe("a", qos=qos)
    publisher = await served.join("p")
    await publisher.publish("a", b"x", qos)
    message = await held(peer)
    peer.send((PubAck if qos == 1 else PubRec)(message.packet_id or 0, 0x97))
    assert await peer.sync() == []  # a refusing PUBREC has no PUBREL
    await served.lose(peer, "x")
    back = await join(served, "x", 5)
    assert await back.sync() == []


# 4.5 and 4.6: to everybody, in order


@VERSIONS
async def test_every_session_with_a_matching_subscription_gets_it(served: Served, version: Version) -> None:
    here = [await join(served, f"here{number}", version) for number in range(3)]
    away = [await join(served, f"away{number}", version) for number in range(2)]
    for peer in (*here, *away):
        await peer.subscribe("a/#", qos=1)
    for number, peer in enumerate(away):
        await served.lose(peer, f"away{number}")
    publisher = await served.join("p", version)
    await publisher.publish("a/b", b"x", 1)
    back = [await join(served, f"away{number}", version) for number in range(2)]
    for peer in (*here, *back):
        assert (await peer.message()).payload == b"x"


@VERSIONS
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_messages_of_a_client_keep_their_order(served: Served, version: Version, qos: int) -> None:
    peer = await served.join("x", version)
    await peer.subscribe("a/#", "a/+", qos=qos)
    publisher = await served.join("p", version)
    publisher.send(
        b"".join(Publish("a/b", b"%d" % n, qos, packet_id=n + 1 if qos else None).encode(version) for n in range(200))
    )
    assert payloads(await taken(peer, 200)) == [b"%d" % number for number in range(200)]


@VERSIONS
async def test_order_holds_across_connections(served: Served, version: Version) -> None:
    """What was sent, what waited, and what comes now."""
    peer = await join(served, "x", version)
    await peer.subscribe("a", qos=1)
    publisher = await served.join("p")
    for number in range(3):
        await publisher.publish("a", b"%d" % number, 1)
    for _ in range(3):
        await held(peer)
    await served.lose(peer, "x")
    for number in range(3, 6):
        await publisher.publish("a", b"%d" % number, 1)
    back = await join(served, "x", version)
    for number in range(6, 9):
        await publisher.publish("a", b"%d" % number, 1)
    assert payloads(await taken(back, 9)) == [b"%d" % number for number in range(9)]


# 4.9: the quota


async def test_the_quota_begins_anew_with_each_connection(served: Served) -> None:
    peer = await join(served, "x", 5, receive_maximum=3)
    await peer.subscribe("a", qos=1)
    publisher = await served.join("p")
    for number in range(6):
        await publisher.publish("a", b"%d" % number, 1)
    assert len(await peer.sync()) == 3
    for limit in (1, 5, 2):
        await served.lose(peer, "x")
        peer = await join(served, "x", 5, receive_maximum=limit)
        assert payloads(await peer.sync()) == [b"%d" % number for number in range(limit)]


@pytest.mark.parametrize("make_room", ["PUBACK", "PUBCOMP", "refusing PUBREC"])
async def test_what_gives_the_quota_back(served: Served, make_room: str) -> None:
    peer = await served.join("x", receive_maximum=1)
    await peer.subscribe("a", qos=2)
    publisher = await served.join("p")
    await publisher.publish("a", b"1", 1 if make_room == "PUBACK" else 2)
    await publisher.publish("a", b"2", 1)
    first = await held(peer)
    packet_id = first.packet_id or 0
    assert await peer.sync() == []
    peer.send(PubAck(packet_id % 65_535 + 1))  # of another message: gives nothing
    assert await peer.sync() == []
    if make_room == "PUBACK":
        peer.send(PubAck(packet_id))
    elif make_room == "PUBCOMP":
        peer.send(PubRec(packet_id))
        assert [type(each) for each in await peer.sync()] == [PubRel]
        peer.send(PubComp(packet_id))
    else:
        peer.send(PubRec(packet_id, 0x80))
    assert (await peer.message()).payload == b"2"
