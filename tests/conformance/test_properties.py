"""Which property may stand where, and how often: table 2-4 of MQTT 5.0, written down a second time.

The codec has a table of its own (:mod:`mqttquic_lab.mqtt.properties`); a slip there would agree with itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.errors import MalformedPacketError
from mqttquic_lab.mqtt import (
    Disconnect,
    PacketDecoder,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    Receiver,
    SubAck,
    Subscribe,
    Subscription,
    UnsubAck,
    Unsubscribe,
    Will,
)
from tests.conformance.octets import block, packet, text

if TYPE_CHECKING:
    from tests.conformance.conftest import Served

U16, U32, STRING, DATA, PAIR = b"\0\1", b"\0\0\0\1", text("s"), text(b"d"), text("n") + text("v")

SENT_BY: dict[str, tuple[str, ...]] = {
    "CONNECT": ("client",), "Will": ("client",), "CONNACK": ("server",), "PUBLISH": ("client", "server"),
    "PUBACK": ("client", "server"), "PUBREC": ("client", "server"), "PUBREL": ("client", "server"),
    "PUBCOMP": ("client", "server"), "SUBSCRIBE": ("client",), "SUBACK": ("server",), "UNSUBSCRIBE": ("client",),
    "UNSUBACK": ("server",), "DISCONNECT": ("client", "server"), "AUTH": ("client", "server"),
}  # fmt: skip

TABLE: dict[str, tuple[bytes, str]] = {
    "Payload Format Indicator": (b"\x01\x01", "PUBLISH Will"),
    "Message Expiry Interval": (b"\x02" + U32, "PUBLISH Will"),
    "Content Type": (b"\x03" + STRING, "PUBLISH Will"),
    "Response Topic": (b"\x08" + STRING, "PUBLISH Will"),
    "Correlation Data": (b"\x09" + DATA, "PUBLISH Will"),
    "Subscription Identifier": (b"\x0b\x01", "PUBLISH SUBSCRIBE"),
    "Session Expiry Interval": (b"\x11" + U32, "CONNECT CONNACK DISCONNECT"),
    "Assigned Client Identifier": (b"\x12" + STRING, "CONNACK"),
    "Server Keep Alive": (b"\x13" + U16, "CONNACK"),
    "Authentication Method": (b"\x15" + STRING, "CONNECT CONNACK AUTH"),
    "Authentication Data": (b"\x16" + DATA, "CONNECT CONNACK AUTH"),
    "Request Problem Information": (b"\x17\x01", "CONNECT"),
    "Will Delay Interval": (b"\x18" + U32, "Will"),
    "Request Response Information": (b"\x19\x01", "CONNECT"),
    "Response Information": (b"\x1a" + STRING, "CONNACK"),
    "Server Reference": (b"\x1c" + STRING, "CONNACK DISCONNECT"),
    "Reason String": (b"\x1f" + STRING, "CONNACK PUBACK PUBREC PUBREL PUBCOMP SUBACK UNSUBACK DISCONNECT AUTH"),
    "Receive Maximum": (b"\x21" + U16, "CONNECT CONNACK"),
    "Topic Alias Maximum": (b"\x22" + U16, "CONNECT CONNACK"),
    "Topic Alias": (b"\x23" + U16, "PUBLISH"),
    "Maximum QoS": (b"\x24\x01", "CONNACK"),
    "Retain Available": (b"\x25\x01", "CONNACK"),
    "User Property": (b"\x26" + PAIR, " ".join(SENT_BY)),
    "Maximum Packet Size": (b"\x27" + U32, "CONNECT CONNACK"),
    "Wildcard Subscription Available": (b"\x28\x01", "CONNACK"),
    "Subscription Identifier Available": (b"\x29\x01", "CONNACK"),
    "Shared Subscription Available": (b"\x2a\x01", "CONNACK"),
}
"""Property -> identifier and a value, and the packets that may have it."""

NOT_FROM = {("client", "PUBLISH"): "Subscription Identifier", ("server", "DISCONNECT"): "Session Expiry Interval"}
"""Sender and packet -> what stands in the table, but is the other end's only [MQTT-3.3.4-6, MQTT-3.14.2-2]."""

PLACES = [(place, sender) for place, senders in SENT_BY.items() for sender in senders]
ID = b"\0\7"


def with_properties(place: str, *properties: bytes) -> bytes:
    """Return a packet with these properties in `place`, and what it needs beside them."""
    if place == "AUTH" and not any(each[:1] == b"\x15" for each in properties):
        properties = (b"\x15" + STRING, *properties)
    if any(each[:1] == b"\x16" for each in properties) and not any(each[:1] == b"\x15" for each in properties):
        properties = (b"\x15" + STRING, *properties)
    given = block(*properties)
    return {
        "CONNECT": packet(0x10, text("MQTT"), b"\x05\x02\0\0", given, text("c")),
        "Will": packet(0x10, text("MQTT"), b"\x05\x06\0\0\0", text("c"), given, text("w"), text("")),
        "CONNACK": packet(0x20, b"\0\0", given),
        "PUBLISH": packet(0x30, text("a"), given),
        "PUBACK": packet(0x40, ID, b"\0", given),
        "PUBREC": packet(0x50, ID, b"\0", given),
        "PUBREL": packet(0x62, ID, b"\0", given),
        "PUBCOMP": packet(0x70, ID, b"\0", given),
        "SUBSCRIBE": packet(0x82, ID, given, text("a"), b"\0"),
        "SUBACK": packet(0x90, ID, given, b"\0"),
        "UNSUBSCRIBE": packet(0xA2, ID, given, text("a")),
        "UNSUBACK": packet(0xB0, ID, given, b"\0"),
        "DISCONNECT": packet(0xE0, b"\0", given),
        "AUTH": packet(0xF0, b"\x18", given),
    }[place]


def decode(sender: str, data: bytes) -> object:
    receiver: Receiver = "server" if sender == "client" else "client"
    (found,) = PacketDecoder(5, receiver=receiver).feed(data)
    return found


@pytest.mark.parametrize(("place", "sender"), PLACES)
def test_a_property_stands_where_the_table_has_it_and_nowhere_else(place: str, sender: str) -> None:
    for name, (data, places) in TABLE.items():
        wire = with_properties(place, data)
        if place in places.split() and NOT_FROM.get((sender, place)) != name:
            decode(sender, wire)
        else:
            with pytest.raises(MalformedPacketError) as caught:
                decode(sender, wire)
            assert caught.value.reason_code in (0x81, 0x82), name


@pytest.mark.parametrize(("place", "sender"), PLACES)
def test_a_property_stands_once_unless_the_standard_says_otherwise(place: str, sender: str) -> None:
    for name, (data, places) in TABLE.items():
        if place not in places.split() or NOT_FROM.get((sender, place)) == name:
            continue
        wire = with_properties(place, data, data)
        if name == "User Property" or (name, place) == ("Subscription Identifier", "PUBLISH"):
            decode(sender, wire)
        else:
            with pytest.raises(MalformedPacketError) as caught:
                decode(sender, wire)
            assert caught.value.reason_code == 0x82, name


@pytest.mark.parametrize(("place", "sender"), PLACES)
def test_a_property_that_does_not_exist(place: str, sender: str) -> None:
    known = {data[0] for data, _ in TABLE.values()}
    assert len(known) == len(TABLE) == 27
    for identifier in set(range(128)) - known:
        with pytest.raises(MalformedPacketError) as caught:
            decode(sender, with_properties(place, bytes((identifier,)) + U32))
        assert caught.value.reason_code == 0x81


async def test_the_server_takes_every_property_of_every_packet(served: Served) -> None:
    """In its longest form, each packet with all it may carry."""
    words = {"reason_string": "because", "user_property": (("n", "v"), ("n", "v"))}
    message = {
        "payload_format_indicator": 1, "message_expiry_interval": 100, "content_type": "t", "response_topic": "r",
        "correlation_data": b"c", "user_property": (("n", "v"),),
    }  # fmt: skip
    watcher = await served.join("w")
    await watcher.subscribe("will", qos=1)
    peer = await served.attach()
    answer = await peer.connect(
        "x", will=Will("will", b"1", 1, False, {"will_delay_interval": 0, **message}), session_expiry_interval=100,
        receive_maximum=5, maximum_packet_size=10_000, topic_alias_maximum=3, request_response_information=1,
        request_problem_information=1, user_property=(("n", "v"),),
    )  # fmt: skip
    assert answer.reason_code == 0
    peer.send(Subscribe(1, (Subscription("a", 2),), {"subscription_identifier": 5, "user_property": (("n", "v"),)}))
    assert (await peer.expect(SubAck)).reason_codes == (2,)
    for qos in (1, 2):
        peer.send(Publish("a", b"1", qos, packet_id=qos, properties={"topic_alias": 1, **message}))
        assert (await peer.expect(PubAck if qos == 1 else PubRec)).reason_code == 0
        arrived = await peer.expect(Publish)
        found = {name: value for name, value in arrived.properties.items() if name != "topic_alias"}
        assert found == {**message, "subscription_identifier": (5,)}
        packet_id = arrived.packet_id or 0
        if qos == 1:
            peer.send(PubAck(packet_id, 0, words))
        else:
            peer.send(PubRec(packet_id, 0, words))
            assert (await peer.expect(PubRel)).reason_code == 0
            peer.send(PubComp(packet_id, 0, words))
            peer.send(PubRel(2, 0, words))
            assert (await peer.expect(PubComp)).reason_code == 0
    peer.send(Unsubscribe(7, ("a",), {"user_property": (("n", "v"),)}))
    assert (await peer.expect(UnsubAck)).reason_codes == (0,)
    peer.send(Disconnect(0x04, {"session_expiry_interval": 5, **words}))
    assert await peer.closed() == []
    will = await watcher.message()
    assert (will.payload, dict(will.properties)) == (b"1", message)
