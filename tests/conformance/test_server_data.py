"""Strings, packet identifiers and property lengths as the server has to treat them (MQTT 5.0 sections 1.5 and 2.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.mqtt import (
    ConnAck,
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
from tests.conformance.octets import block, connect, packet, text

if TYPE_CHECKING:
    from mqttquic_lab.mqtt import Version
    from tests.conformance.conftest import Served

VERSIONS = pytest.mark.parametrize("version", [4, 5])

BAD_STRINGS = {
    "surrogate": b"a\xed\xa0\x80",
    "overlong": b"a\xc0\xaf",
    "cut off": b"a\xe2\x82",
    "null": b"a\0b",
}
BAD = pytest.mark.parametrize("bad", list(BAD_STRINGS))
ID = b"\0\x07"


def bad_connects(bad: bytes, level: int) -> dict[str, bytes]:
    """CONNECT packets with a bad string in one field."""
    no_properties = b"\0" if level == 5 else b""
    found = {
        "client identifier": connect(level=level, client_id=bad),
        "will topic": connect(no_properties, text(bad), text("payload"), level=level, flags=0x06),
        "user name": connect(text(bad), level=level, flags=0x82),
    }
    if level == 5:
        found["user property name"] = connect(properties=block(b"\x26", text(bad), text("v")))
        found["user property value"] = connect(properties=block(b"\x26", text("n"), text(bad)))
        found["authentication method"] = connect(properties=block(b"\x15", text(bad)))
        found["will content type"] = connect(block(b"\x03", text(bad)), text("w"), text("payload"), flags=0x06)
        found["will response topic"] = connect(block(b"\x08", text(bad)), text("w"), text("payload"), flags=0x06)
    return found


def bad_packets(bad: bytes, level: int) -> dict[str, bytes]:
    """Other packets with a bad string in one field."""
    nothing = b"\0" if level == 5 else b""
    found = {
        "topic": packet(0x30, text(bad), nothing),
        "filter": packet(0x82, ID, nothing, text(bad), b"\0"),
        "filter to unsubscribe": packet(0xA2, ID, nothing, text(bad)),
    }
    if level == 5:
        found["response topic"] = packet(0x30, text("a"), block(b"\x08", text(bad)))
        found["content type"] = packet(0x30, text("a"), block(b"\x03", text(bad)))
        found["user property name"] = packet(0x30, text("a"), block(b"\x26", text(bad), text("v")))
        found["user property value"] = packet(0x82, ID, block(b"\x26", text("n"), text(bad)), text("a"), b"\0")
        found["reason string"] = packet(0xE0, b"\0", block(b"\x1f", text(bad)))
    return found


@BAD
@pytest.mark.parametrize("field", list(bad_connects(b"", 5)))
async def test_a_bad_string_in_connect_ends_the_connection(served: Served, field: str, bad: str) -> None:
    peer = await served.attach()
    peer.send(bad_connects(BAD_STRINGS[bad], 5)[field])
    (answer,) = await peer.closed()
    assert isinstance(answer, ConnAck)
    assert answer.reason_code == 0x81
    assert served.server.stats().sessions == 0


@BAD
@pytest.mark.parametrize("field", list(bad_connects(b"", 4)))
async def test_a_bad_string_in_connect_of_311_ends_the_connection(served: Served, field: str, bad: str) -> None:
    peer = await served.attach(4)
    peer.send(bad_connects(BAD_STRINGS[bad], 4)[field])
    assert await peer.closed() == []
    assert served.server.stats().sessions == 0


@BAD
@pytest.mark.parametrize("field", list(bad_packets(b"", 5)))
async def test_a_bad_string_in_any_packet_ends_the_connection(served: Served, field: str, bad: str) -> None:
    peer = await served.join("x")
    peer.send(bad_packets(BAD_STRINGS[bad], 5)[field])
    (last,) = await peer.closed()
    assert isinstance(last, Disconnect)
    assert last.reason_code == 0x81


@BAD
@pytest.mark.parametrize("field", list(bad_packets(b"", 4)))
async def test_a_bad_string_in_any_packet_of_311_ends_the_connection(served: Served, field: str, bad: str) -> None:
    peer = await served.join("x", 4)
    peer.send(bad_packets(BAD_STRINGS[bad], 4)[field])
    assert await peer.closed() == []


@VERSIONS
async def test_a_byte_order_mark_is_a_character_like_others(served: Served, version: Version) -> None:
    peer = await served.join("\ufeffx", version)
    assert await peer.subscribe("\ufeffa", "a") == [0, 0]
    assert [client.client_id for client in served.server.clients()] == ["\ufeffx"]
    peer.send(Publish("\ufeffa", b"with"))
    assert ((await peer.message()).topic, await peer.sync()) == ("\ufeffa", [])
    peer.send(Publish("a", b"without"))
    assert ((await peer.message()).topic, await peer.sync()) == ("a", [])


async def test_a_byte_order_mark_in_a_property_stays(served: Served) -> None:
    peer = await served.join("x")
    await peer.subscribe("a", qos=1)
    pairs = (("\ufeffn", "\ufeffv"), ("n\ufeff", ""))
    await peer.publish("other", b"", 1, user_property=pairs)
    peer.send(Publish("a", b"", 1, packet_id=2, properties={"content_type": "\ufefft", "user_property": pairs}))
    await peer.expect(PubAck)
    message = await peer.message()
    assert dict(message.properties) == {"content_type": "\ufefft", "user_property": pairs}


@VERSIONS
async def test_topics_are_taken_literally(served: Served, version: Version) -> None:
    """No normalization, no folding of case, no trimming of levels or blanks."""
    spellings = [
        "caf\u00e9",
        "cafe\u0301",
        "CAF\u00c9",
        "caf\u00e9/",
        "/caf\u00e9",
        " caf\u00e9",
        "caf\u00e9 ",
        "caf\u00e9//",
    ]
    peer = await served.join("x", version)
    for spelling in spellings:
        assert await peer.subscribe(spelling) == [0]
        peer.send(Publish(spelling, b"x"))
        assert (await peer.message()).topic == spelling
        for other in spellings:
            if other != spelling:
                peer.send(Publish(other, b"x"))
        assert await peer.sync() == []
        await peer.unsubscribe(spelling)


@VERSIONS
async def test_the_longest_topic(served: Served, version: Version) -> None:
    peer = await served.join("x", version)
    topic = "t" * 65_535
    assert await peer.subscribe(topic) == [0]
    peer.send(Publish(topic, b"x"))
    assert (await peer.message()).topic == topic


# Packet identifiers


@VERSIONS
async def test_identifiers_of_the_server_are_not_zero_and_not_in_use(served: Served, version: Version) -> None:
    subscriber = await served.join("s", version)
    await subscriber.subscribe("a", qos=2)
    publisher = await served.join("p")
    used: set[int] = set()
    for number in range(40):
        await publisher.publish("a", b"%d" % number, 1 + number % 2, packet_id=number + 1)
        message = await subscriber.message(acknowledge=False)
        assert message.packet_id
        assert message.packet_id not in used
        used.add(message.packet_id)
        if number % 4 == 2:
            subscriber.send(PubAck(message.packet_id))
            used.discard(message.packet_id)
    assert len(used) == 30


@VERSIONS
async def test_every_answer_has_the_identifier_of_its_question(served: Served, version: Version) -> None:
    peer = await served.join("x", version)
    for packet_id in (1, 300, 65_535):
        peer.send(Publish("a", b"", 1, packet_id=packet_id))
        assert (await peer.expect(PubAck)).packet_id == packet_id
        peer.send(Publish("a", b"", 2, packet_id=packet_id))
        assert (await peer.expect(PubRec)).packet_id == packet_id
        peer.send(PubRel(packet_id))
        assert (await peer.expect(PubComp)).packet_id == packet_id
        peer.send(Subscribe(packet_id, (Subscription("b"),)))
        assert (await peer.expect(SubAck)).packet_id == packet_id
        peer.send(Unsubscribe(packet_id, ("b", "never")))
        assert (await peer.expect(UnsubAck)).packet_id == packet_id


@VERSIONS
async def test_the_server_releases_with_the_identifier_of_the_message(served: Served, version: Version) -> None:
    subscriber = await served.join("s", version)
    await subscriber.subscribe("a", qos=2)
    publisher = await served.join("p")
    for number in range(3):
        await publisher.publish("a", b"%d" % number, 2)
    ids = [(await subscriber.message(acknowledge=False)).packet_id or 0 for _ in range(3)]
    for packet_id in (ids[2], ids[0], ids[1]):
        subscriber.send(PubRec(packet_id))
        assert (await subscriber.expect(PubRel)).packet_id == packet_id


@VERSIONS
@pytest.mark.parametrize("first", [0x32, 0x34, 0x82, 0xA2], ids=["QoS 1", "QoS 2", "SUBSCRIBE", "UNSUBSCRIBE"])
async def test_packet_identifier_0_ends_the_connection(served: Served, version: Version, first: int) -> None:
    peer = await served.join("x", version)
    properties = b"\0" if version == 5 else b""
    if first & 0xF0 == 0x30:
        peer.send(packet(first, text("a"), b"\0\0", properties))
    else:
        peer.send(packet(first, b"\0\0", properties, text("a"), b"\0" if first == 0x82 else b""))
    assert [type(last) for last in await peer.closed()] == ([Disconnect] if version == 5 else [])


async def test_without_properties_the_length_is_zero(served: Served) -> None:
    """What the server sends has a property length of zero, or leaves it out where section 3.4.2.2.1 allows that."""
    peer = await served.join("x", will=Will("w"))
    await peer.subscribe("a", qos=1)
    peer.send(Publish("a", b"payload", 1, packet_id=3))
    answer = await peer.expect(PubAck)
    message = await peer.message()
    assert answer.raw == b"\x40\x02\x00\x03"
    assert message.raw == packet(0x32, text("a"), message.raw[5:7], b"\0", b"payload")
    peer.send(Unsubscribe(4, ("a",)))
    assert (await peer.expect(UnsubAck)).raw == b"\xb0\x04\x00\x04\x00\x00"
