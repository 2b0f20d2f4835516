"""The books of one session, case by case."""

from __future__ import annotations

import pytest

from mqttquic_lab.errors import ProtocolError, PublishError, UsageError
from mqttquic_lab.mqtt.deliveries import Deliveries, Delivery
from mqttquic_lab.mqtt.packet_ids import MAX_PACKET_ID, PacketIds
from mqttquic_lab.mqtt.packets import PubAck, PubComp, Publish, PubRec, PubRel, encode_publish


def send(deliveries: Deliveries, text: str, qos: int = 1) -> int | None:
    return deliveries.send("t", text.encode(), qos, token=text)


def arrived(packet_id: int, qos: int = 2, dup: bool = False) -> Publish:
    return Publish("t", b"x", qos, False, dup, packet_id)


def texts(deliveries: list[Delivery | PubRel] | list[Delivery]) -> list[str]:
    return [item.payload.decode() if isinstance(item, Delivery) else f"PUBREL {item.packet_id}" for item in deliveries]


def identifier_of(delivery: Delivery) -> int:
    assert delivery.packet_id is not None
    return delivery.packet_id


# Sender ---------------------------------------------------------------------------------------------------------------


def test_qos_1_ends_with_puback() -> None:
    deliveries = Deliveries()
    assert send(deliveries, "a") == 1
    assert len(deliveries) == 1
    outcome = deliveries.acknowledge(PubAck(1))
    assert outcome.reply is None
    assert outcome.finished is not None
    assert outcome.token == "a"
    assert outcome.reason_code == 0
    assert not outcome.sendable
    assert (len(deliveries), len(deliveries.ids), deliveries.finished) == (0, 0, 1)


def test_qos_2_goes_through_pubrec_and_pubcomp() -> None:
    deliveries = Deliveries()
    assert send(deliveries, "a", 2) == 1
    outcome = deliveries.acknowledge(PubRec(1))
    assert outcome.reply == PubRel(1)
    assert outcome.finished is None
    assert outcome.token is None
    assert 1 in deliveries.ids
    outcome = deliveries.acknowledge(PubComp(1))
    assert outcome.reply is None
    assert outcome.token == "a"
    assert len(deliveries.ids) == 0


def test_a_repeated_pubrec_gets_pubrel_again() -> None:
    deliveries = Deliveries()
    send(deliveries, "a", 2)
    for _ in range(3):
        assert deliveries.acknowledge(PubRec(1)).reply == PubRel(1)
    assert len(deliveries) == 1
    assert deliveries.acknowledge(PubComp(1)).token == "a"


@pytest.mark.parametrize(("qos", "refusal"), [(1, PubAck(1, 0x87)), (2, PubRec(1, 0x97))])
def test_a_failing_code_ends_the_exchange(qos: int, refusal: PubAck | PubRec) -> None:
    deliveries = Deliveries(peer_receive_maximum=1)
    send(deliveries, "a", qos)
    assert send(deliveries, "b", qos) is None
    outcome = deliveries.acknowledge(refusal)
    assert outcome.reply is None
    assert outcome.token == "a"
    assert outcome.reason_code == refusal.reason_code
    assert texts(list(outcome.sendable)) == ["b"]
    assert (deliveries.refused, deliveries.finished) == (1, 0)
    assert 1 not in deliveries.ids


def test_no_matching_subscribers_is_a_success_that_is_told() -> None:
    deliveries = Deliveries()
    send(deliveries, "a", 2)
    assert deliveries.acknowledge(PubRec(1, 0x10)).reply == PubRel(1)
    outcome = deliveries.acknowledge(PubComp(1))
    assert (outcome.token, outcome.reason_code) == ("a", 0x10)
    assert deliveries.finished == 1


def test_pubcomp_that_knows_nothing_any_more_is_a_success() -> None:
    """The peer had finished, its PUBCOMP was lost with the connection, and PUBREL came again."""
    deliveries = Deliveries()
    send(deliveries, "a", 2)
    deliveries.acknowledge(PubRec(1))
    deliveries.suspend()
    deliveries.resume()
    outcome = deliveries.acknowledge(PubComp(1, 0x92))
    assert (outcome.token, outcome.reason_code) == ("a", 0)
    assert (deliveries.finished, deliveries.refused, deliveries.unknown) == (1, 0, 1)


def test_unknown_identifiers_are_answered_and_counted_not_punished() -> None:
    deliveries = Deliveries()
    send(deliveries, "a")
    assert deliveries.acknowledge(PubRec(9)).reply == PubRel(9, 0x92)
    for packet in (PubAck(9), PubRec(9, 0x80), PubComp(9)):
        outcome = deliveries.acknowledge(packet)
        assert outcome.reply is None
        assert outcome.finished is None
    assert deliveries.unknown == 4
    assert deliveries.release(PubRel(9)) == PubComp(9, 0x92)
    assert deliveries.unknown == 5
    assert len(deliveries) == 1


@pytest.mark.parametrize(
    ("qos", "before", "wrong"),
    [
        (1, [], PubRec(1)),
        (1, [], PubRec(1, 0x80)),
        (1, [], PubComp(1)),
        (2, [], PubAck(1)),
        (2, [], PubComp(1)),
        (2, [PubRec(1)], PubAck(1)),
        (2, [PubRec(1)], PubRec(1, 0x80)),
    ],
)
def test_an_acknowledgement_of_the_wrong_kind_is_a_protocol_error(
    qos: int, before: list[PubRec], wrong: PubAck | PubRec | PubComp
) -> None:
    deliveries = Deliveries()
    send(deliveries, "a", qos)
    for packet in before:
        deliveries.acknowledge(packet)
    with pytest.raises(ProtocolError, match=f"{wrong.NAME} for packet identifier 1") as caught:
        deliveries.acknowledge(wrong)
    assert caught.value.reason_code == 0x82
    assert caught.value.packet is wrong
    assert len(deliveries) == 1  # nothing has changed: a reconnect goes on from here


def test_quota_queues_in_order_and_pubrec_does_not_free_it() -> None:
    deliveries = Deliveries(peer_receive_maximum=2)
    assert [send(deliveries, text, 2) for text in "abcde"] == [1, 2, None, None, None]
    assert (deliveries.quota, deliveries.queued) == (0, 3)
    assert not deliveries.acknowledge(PubRec(1)).sendable
    first = deliveries.acknowledge(PubComp(1)).sendable
    assert [(item.token, item.packet_id, item.dup) for item in first] == [("c", 3, False)]
    assert first[0].encode() == encode_publish("t", b"c", 2, packet_id=3)
    assert texts(list(deliveries.acknowledge(PubRec(2, 0x83)).sendable)) == ["d"]
    assert send(deliveries, "f", 2) is None  # behind e, though quota may come


def test_a_full_queue_says_so_and_changes_nothing() -> None:
    deliveries = Deliveries(peer_receive_maximum=1, max_queued=2)
    full = []
    for text in "abc":
        full.append(deliveries.is_full)
        send(deliveries, text)
    assert [*full, deliveries.is_full] == [False, False, False, True]
    with pytest.raises(PublishError, match="max_queued") as caught:
        send(deliveries, "d")
    assert caught.value.reason_code == 0x97
    assert deliveries.queued == 2
    assert texts(list(deliveries.acknowledge(PubAck(1)).sendable)) == ["b"]
    assert not deliveries.is_full
    assert send(deliveries, "d") is None


def test_identifiers_are_shared_with_subscribe_and_some_are_left_to_it() -> None:
    ids = PacketIds()
    deliveries = Deliveries(ids=ids, max_queued=MAX_PACKET_ID)
    subscribe_id = ids.allocate()
    assert subscribe_id == 1
    sent = [deliveries.send("t", b"", 1) for _ in range(MAX_PACKET_ID)]
    in_flight = [packet_id for packet_id in sent if packet_id is not None]
    assert subscribe_id not in in_flight
    assert len(set(in_flight)) == len(in_flight) == len(deliveries)
    assert deliveries.queued == MAX_PACKET_ID - len(in_flight) > 0
    assert ids.allocate() is not None  # UNSUBSCRIBE still works


def test_when_subscribe_has_taken_every_identifier_messages_wait_for_one() -> None:
    ids = PacketIds()
    while len(ids) < MAX_PACKET_ID:
        ids.allocate()
    deliveries = Deliveries(ids=ids)
    assert send(deliveries, "a") is None
    assert deliveries.take_sendable() == []
    ids.release(77)
    assert send(deliveries, "b") is None  # not past the one that waits
    assert [(item.token, item.packet_id) for item in deliveries.take_sendable()] == [("a", 77)]


def test_skip_drops_what_has_expired_without_spending_quota() -> None:
    deliveries = Deliveries(peer_receive_maximum=1)
    expired = {"b", "c"}
    deliveries.skip = lambda delivery: delivery.token in expired
    for text in "abcd":
        send(deliveries, text)
    assert texts(list(deliveries.acknowledge(PubAck(1)).sendable)) == ["d"]
    assert (deliveries.skipped, deliveries.queued, len(deliveries.ids)) == (2, 0, 1)


def test_drop_queued_leaves_what_was_sent() -> None:
    deliveries = Deliveries(peer_receive_maximum=2)
    for text in "abcd":
        send(deliveries, text)
    deliveries.suspend()
    deliveries.resume(1)  # a is sent again; b, which was sent, waits for quota before c and d
    assert texts(deliveries.drop_queued(lambda delivery: delivery.token != "d")) == ["c"]
    assert texts(list(deliveries.acknowledge(PubAck(1)).sendable)) == ["b"]
    assert texts(list(deliveries.acknowledge(PubAck(2)).sendable)) == ["d"]


# Receiver -------------------------------------------------------------------------------------------------------------


def test_each_qos_gets_its_answer() -> None:
    deliveries = Deliveries()
    assert deliveries.receive(Publish("t", b"")) == (True, None)
    assert deliveries.receive(arrived(5, qos=1)) == (True, PubAck(5))
    assert deliveries.receive(arrived(5, qos=1)) == (True, PubAck(5))  # QoS 1 promises no more
    assert deliveries.receive(arrived(5, qos=2)) == (True, PubRec(5))
    assert deliveries.awaiting_release == 1
    assert deliveries.release(PubRel(5)) == PubComp(5)
    assert deliveries.awaiting_release == 0
    assert deliveries.received == 3


def test_qos_2_is_delivered_once_until_pubrel() -> None:
    deliveries = Deliveries()
    assert deliveries.receive(arrived(5)).deliver
    for dup in (True, False):
        assert deliveries.receive(arrived(5, dup=dup)) == (False, PubRec(5))
    assert deliveries.duplicates == 2
    deliveries.release(PubRel(5))
    assert deliveries.receive(arrived(5)).deliver  # a new message under an old number


def test_reason_codes_of_answers() -> None:
    deliveries = Deliveries()
    assert deliveries.receive(arrived(1, qos=1), 0x10) == (True, PubAck(1, 0x10))
    assert deliveries.receive(arrived(2), 0x10) == (True, PubRec(2, 0x10))
    assert deliveries.receive(arrived(2), 0x87) == (False, PubRec(2))  # accepted before: no way back
    assert deliveries.receive(arrived(3, qos=1), 0x87) == (False, PubAck(3, 0x87))
    assert deliveries.receive(arrived(4), 0x87) == (False, PubRec(4, 0x87))
    assert deliveries.receive(arrived(4)) == (True, PubRec(4))  # a refusal ended that exchange [MQTT-4.3.3-9]
    assert deliveries.awaiting_release == 2


def test_an_identifier_of_an_open_qos_2_message_cannot_be_reused_at_qos_1() -> None:
    deliveries = Deliveries()
    deliveries.receive(arrived(5))
    assert deliveries.receive(arrived(5, qos=1)) == (False, PubAck(5, 0x91))
    assert deliveries.release(PubRel(5)) == PubComp(5)
    v311 = Deliveries(version=4)
    v311.receive(arrived(5))
    with pytest.raises(ProtocolError, match="identifier 5") as caught:
        v311.receive(arrived(5, qos=1))
    assert caught.value.reason_code == 0x82


@pytest.mark.parametrize("last_qos", [1, 2])
def test_our_receive_maximum_is_enforced(last_qos: int) -> None:
    deliveries = Deliveries(2)
    deliveries.receive(arrived(1))
    deliveries.receive(arrived(2))
    deliveries.receive(Publish("t", b""))  # QoS 0 is not counted
    deliveries.receive(arrived(1, dup=True))  # nor is a repetition
    with pytest.raises(ProtocolError, match="Receive Maximum is 2") as caught:
        deliveries.receive(arrived(3, last_qos))
    assert caught.value.reason_code == 0x93
    deliveries.release(PubRel(1))
    assert deliveries.receive(arrived(3, last_qos)).deliver


def test_v311_has_no_receive_maximum() -> None:
    deliveries = Deliveries(2, version=4)
    assert all(deliveries.receive(arrived(packet_id)).deliver for packet_id in range(1, 10))


def test_messages_of_an_earlier_connection_do_not_count() -> None:
    deliveries = Deliveries(2)
    deliveries.receive(arrived(1))
    deliveries.receive(arrived(2))
    deliveries.suspend()
    deliveries.resume()
    assert not deliveries.receive(arrived(1, dup=True)).deliver  # sent again: counts from now on
    assert deliveries.receive(arrived(3)).deliver
    with pytest.raises(ProtocolError, match="Receive Maximum"):
        deliveries.receive(arrived(4))


def test_a_peer_that_counts_every_pubcomp_is_not_punished() -> None:
    """By the letter of section 4.9, PUBCOMP for a PUBREL of an earlier connection gives the sender quota."""
    deliveries = Deliveries(2)
    deliveries.receive(arrived(1))
    deliveries.suspend()
    deliveries.resume()
    assert deliveries.receive(arrived(2)).deliver  # the peer's quota: 1 left
    assert deliveries.release(PubRel(1)) == PubComp(1)  # and back at 2, though 2 is unanswered
    assert deliveries.receive(arrived(3)).deliver
    assert deliveries.receive(arrived(4)).deliver
    with pytest.raises(ProtocolError, match="Receive Maximum"):
        deliveries.receive(arrived(5))


# Connections ----------------------------------------------------------------------------------------------------------


def test_resume_sends_pubrels_then_messages_then_what_waited() -> None:
    deliveries = Deliveries(peer_receive_maximum=6)
    for number, text in enumerate("abcdefg"):
        send(deliveries, text, 1 + number % 2)  # b, d and f at QoS 2
    assert send(deliveries, "h", 2) is None
    deliveries.acknowledge(PubRec(4))
    deliveries.acknowledge(PubRec(2))
    deliveries.acknowledge(PubAck(3))  # c is done, g goes out
    deliveries.suspend()
    assert deliveries.quota == 0
    assert send(deliveries, "i") is None
    resumed = deliveries.resume()
    assert texts(resumed) == ["PUBREL 4", "PUBREL 2", "a", "e", "f", "g", "h", "i"]
    again = [item for item in resumed if isinstance(item, Delivery)]
    assert [item.dup for item in again] == [True] * 4 + [False] * 2
    assert [item.packet_id for item in again][:4] == [1, 5, 6, 7]
    assert again[0].encode() == encode_publish("t", b"a", 1, dup=True, packet_id=1)
    assert deliveries.quota == 0
    assert deliveries.resent == 6


def test_pubcomp_of_an_earlier_connection_gives_no_quota() -> None:
    """Else the peer would be sent more than it said: its count began anew with the connection."""
    deliveries = Deliveries(peer_receive_maximum=1)
    send(deliveries, "a", 2)
    deliveries.acknowledge(PubRec(1))
    send(deliveries, "b", 2)
    send(deliveries, "c", 2)
    deliveries.suspend()
    assert texts(deliveries.resume()) == ["PUBREL 1", "b"]
    assert not deliveries.acknowledge(PubComp(1)).sendable
    assert deliveries.quota == 0
    deliveries.acknowledge(PubRec(2))
    assert texts(list(deliveries.acknowledge(PubComp(2)).sendable)) == ["c"]


def test_a_smaller_receive_maximum_after_reconnect_keeps_order_and_identifiers() -> None:
    deliveries = Deliveries(peer_receive_maximum=4)
    for text in "abcdef":
        send(deliveries, text)
    deliveries.suspend()
    assert texts(deliveries.resume(2)) == ["a", "b"]
    outcome = deliveries.acknowledge(PubAck(1))
    assert [(item.token, item.packet_id, item.dup) for item in outcome.sendable] == [("c", 3, True)]
    deliveries.suspend()
    assert texts(deliveries.resume(1)) == ["b"]
    order = []
    packet_id = 2
    while sendable := deliveries.acknowledge(PubAck(packet_id)).sendable:
        (delivery,) = sendable
        packet_id = identifier_of(delivery)
        order.append((delivery.token, delivery.dup))
    assert order == [("c", True), ("d", True), ("e", False), ("f", False)]
    assert len(deliveries.ids) == 0


def test_nothing_is_sent_between_connections_whatever_is_still_acknowledged() -> None:
    deliveries = Deliveries(peer_receive_maximum=1)
    send(deliveries, "a")
    send(deliveries, "b")
    deliveries.suspend()
    outcome = deliveries.acknowledge(PubAck(1))  # was read before the loss showed
    assert outcome.token == "a"
    assert not outcome.sendable
    assert send(deliveries, "c") is None
    assert deliveries.take_sendable() == []
    assert texts(deliveries.resume()) == ["b"]


def test_without_a_connection_messages_wait_whatever_the_quota_was() -> None:
    deliveries = Deliveries()
    assert deliveries.quota > 0
    deliveries.suspend()
    assert deliveries.quota == 0
    assert send(deliveries, "a") is None
    assert [(item.token, item.dup) for item in deliveries.resume() if isinstance(item, Delivery)] == [("a", False)]


def test_qos_2_state_of_the_receiver_survives() -> None:
    deliveries = Deliveries()
    deliveries.receive(arrived(5))
    deliveries.suspend()
    deliveries.resume()
    assert deliveries.receive(arrived(5, dup=True)) == (False, PubRec(5))
    deliveries.suspend()
    deliveries.resume()
    assert deliveries.release(PubRel(5)) == PubComp(5)


def test_clear_gives_everything_up_and_frees_its_identifiers() -> None:
    ids = PacketIds()
    deliveries = Deliveries(peer_receive_maximum=2, ids=ids)
    send(deliveries, "a", 2)
    send(deliveries, "b")
    send(deliveries, "c")
    deliveries.acknowledge(PubRec(1))
    deliveries.receive(arrived(5))
    subscribe_id = ids.allocate()
    deliveries.suspend()
    assert texts(deliveries.clear()) == ["a", "b", "c"]
    assert (len(deliveries), deliveries.queued, deliveries.awaiting_release) == (0, 0, 0)
    assert len(ids) == 1
    assert subscribe_id is not None
    assert subscribe_id in ids
    assert deliveries.resume() == []
    assert deliveries.quota == 2
    assert deliveries.receive(arrived(5)).deliver  # the peer has forgotten as well


def test_resume_takes_the_limits_of_the_new_connection() -> None:
    deliveries = Deliveries()
    assert deliveries.resume(3, receive_maximum=1, version=4) == []
    assert (deliveries.quota, deliveries.receive_maximum, deliveries.version) == (3, 1, 4)


@pytest.mark.parametrize("value", [0, -1, 65_536])
def test_limits_out_of_range(value: int) -> None:
    with pytest.raises(UsageError, match="receive_maximum"):
        Deliveries(value)
    with pytest.raises(UsageError, match="peer_receive_maximum"):
        Deliveries(peer_receive_maximum=value)
    with pytest.raises(UsageError, match="peer_receive_maximum"):
        Deliveries().resume(value)
    with pytest.raises(UsageError, match="max_queued"):
        Deliveries(max_queued=-1)


def test_reprs_show_no_payload() -> None:
    deliveries = Deliveries(peer_receive_maximum=1)
    deliveries.send("door/code", b"1234", 1)
    deliveries.send("door/code", b"5678", 2)
    deliveries.suspend()
    shown = repr(deliveries.resume()) + repr(deliveries) + repr(deliveries.acknowledge(PubAck(1)))
    assert "1234" not in shown
    assert "5678" not in shown
    assert "door/code" in shown


def test_messages_before_the_limit_is_known_count() -> None:
    """What went before CONNACK is not sent again, and uses up the Receive Maximum that CONNACK tells."""
    deliveries = Deliveries(10)
    early = [deliveries.send("t", b"", 1, token=number) for number in range(3)]
    assert early == [1, 2, 3]
    deliveries.begin(2)
    assert (deliveries.quota, len(deliveries), deliveries.resent) == (0, 3, 0)
    assert deliveries.send("t", b"later", 1) is None
    assert deliveries.acknowledge(PubAck(1)).sendable == []
    assert deliveries.acknowledge(PubAck(2)).sendable != []
    assert deliveries.quota == 0
    with pytest.raises(UsageError):
        deliveries.begin(0)
