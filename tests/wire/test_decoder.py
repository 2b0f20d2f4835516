"""The decoder as a unit: errors in the middle of a chunk, size limits, versions, caches, what it costs to be slow."""

from __future__ import annotations

import pytest

from mqttquic_lab.errors import MalformedPacketError, UsageError
from mqttquic_lab.mqtt import (
    Connect,
    Packet,
    PacketDecoder,
    PingReq,
    PubAck,
    Publish,
    ReasonCode,
    Receiver,
    Subscribe,
    Subscription,
    Version,
    decoder,
    encode_publish,
    publish,
)

BAD = b"\x36\x06\0\1a\0\1\0"


def test_packets_before_a_bad_one_are_not_lost() -> None:
    unit = PacketDecoder(5, receiver="server")
    good = encode_publish("a", b"1") + encode_publish("a", b"2")
    with pytest.raises(MalformedPacketError) as caught:
        unit.feed(good + BAD + encode_publish("a", b"3"))
    assert [packet.payload for packet in caught.value.packets] == [b"1", b"2"]


def test_after_an_error_every_call_raises_it_again() -> None:
    unit = PacketDecoder(5, receiver="server")
    with pytest.raises(MalformedPacketError) as first:
        unit.feed(encode_publish("a", b"1") + BAD)
    for data in (b"", encode_publish("a", b"2")):
        with pytest.raises(MalformedPacketError) as again:
            unit.feed(data)
        assert str(again.value) == str(first.value)
        assert again.value.reason_code == 0x81
        assert again.value.packets == []


@pytest.mark.parametrize(("receiver", "rule"), [("client", "MQTT-3.1.2-24"), ("server", "MQTT-3.2.2-15")])
def test_a_packet_over_the_limit_is_refused_from_its_fixed_header(receiver: Receiver, rule: str) -> None:
    unit = PacketDecoder(5, max_packet_size=1000, receiver=receiver)
    assert len(unit.feed(encode_publish("a", bytes(1000 - 7)))) == 1
    wire = encode_publish("a", bytes(1000 - 6))
    assert len(wire) == 1001
    unit.feed(wire[:2])
    with pytest.raises(MalformedPacketError, match="1001 bytes, 1000 accepted") as caught:
        unit.feed(wire[2:3])
    assert caught.value.reason_code == ReasonCode.PACKET_TOO_LARGE
    assert caught.value.rule == rule


def test_a_large_packet_in_small_pieces_costs_no_more_than_its_bytes() -> None:
    wire = encode_publish("a", bytes(4_000_000))
    looks = 0

    class Counting(PacketDecoder):
        __slots__ = ()

        def _decode(self, data: bytes, packets: list[Packet]) -> int:
            nonlocal looks
            looks += 1
            return super()._decode(data, packets)

    unit = Counting(5, receiver="client")
    received = [packet for at in range(0, len(wire), 1000) for packet in unit.feed(wire[at : at + 1000])]
    assert [packet.raw for packet in received] == [wire]
    assert looks == 2  # when its fixed header was there, and when it was complete


def test_a_bad_length_is_refused_whatever_follows_it() -> None:
    with pytest.raises(MalformedPacketError, match="shortest form"):
        PacketDecoder(4, receiver="server").feed(b"\x40\x80\x00\x80")
    unit = PacketDecoder(4, receiver="server")
    assert unit.feed(b"\x30\xff\xff\xff") == []
    with pytest.raises(MalformedPacketError, match="longer than four bytes"):
        unit.feed(b"\xff")


def test_a_server_learns_the_version_from_connect() -> None:
    for version in (4, 5):
        unit = PacketDecoder(None, receiver="server")
        wire = Connect("c", version).encode() + PingReq().encode()
        first, second = unit.feed(wire)
        assert isinstance(first, Connect)
        assert first.version == unit.version == version
        assert second == PingReq()


def test_the_version_is_known_even_when_connect_is_bad() -> None:
    unit = PacketDecoder(None, receiver="server")
    wire = bytearray(Connect("c", 4).encode())
    wire[9] |= 1
    with pytest.raises(MalformedPacketError):
        unit.feed(wire)
    assert unit.version == 4


def test_garbage_is_refused_at_its_first_byte() -> None:
    for first in (b"G", b"\x16", b"\xff"):
        with pytest.raises(MalformedPacketError):
            PacketDecoder(None, receiver="server").feed(first)


@pytest.mark.parametrize(
    ("version", "receiver", "message"),
    [("5.0", "client", "4 .* 5 or None"), (5, "broker", "'client' or 'server'"), (None, "client", "give 4 or 5")],
)
def test_wrong_arguments(version: Version, receiver: Receiver, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PacketDecoder(version, receiver=receiver)


def test_any_bytes_like_object_may_be_fed() -> None:
    wire = encode_publish("a", b"x")
    unit = PacketDecoder(5, receiver="server")
    received = unit.feed(bytearray(wire)) + unit.feed(memoryview(wire)) + unit.feed(wire)
    assert [type(packet.raw) for packet in received] == [bytes] * 3
    assert all(packet == received[0] for packet in received)


def test_cached_property_blocks_are_shared_and_read_only() -> None:
    wire = encode_publish("a", b"x", properties={"user_property": [("k", "v")], "content_type": "t"})
    unit = PacketDecoder(5, receiver="client")
    first, second = unit.feed(wire + wire)
    assert isinstance(first, Publish)
    assert isinstance(second, Publish)
    assert first.properties is second.properties
    assert first.properties == {"user_property": (("k", "v"),), "content_type": "t"}
    with pytest.raises(TypeError):
        first.properties["content_type"] = "other"  # type: ignore[index]
    with pytest.raises(TypeError):
        first.properties["user_property"][0] = ("other", "other")


def test_a_block_that_clients_may_get_is_not_cached_for_servers() -> None:
    wire = encode_publish("a", b"x", properties={"subscription_identifier": 7})
    PacketDecoder(5, receiver="client").feed(wire * 2)
    with pytest.raises(MalformedPacketError, match=r"MQTT-3\.3\.4-6"):
        PacketDecoder(5, receiver="server").feed(wire)


def test_a_cached_empty_topic_still_needs_its_alias() -> None:
    unit = PacketDecoder(5, receiver="server")
    wire = encode_publish("", b"x", properties={"topic_alias": 3})
    assert [packet.properties["topic_alias"] for packet in unit.feed(wire * 2) if isinstance(packet, Publish)] == [3, 3]
    with pytest.raises(MalformedPacketError, match="without topic alias"):
        unit.feed(b"\x30\x03\0\0\0")
    with pytest.raises(MalformedPacketError, match="empty topic name"):
        PacketDecoder(4, receiver="server").feed(b"\x30\x03\0\0\0")


def test_caches_are_bounded() -> None:
    unit = PacketDecoder(5, receiver="client")
    for number in range(10_000):
        unit.feed(encode_publish(f"topic/{number}", b"", properties={"user_property": [(f"name {number}", "v")]}))
        unit.feed(encode_publish("x" * 600 + str(number), b""))
    assert len(decoder._topics) <= 4096
    assert max(map(len, decoder._topics)) <= 512
    assert len(decoder._blocks["client"]) <= 1024
    assert len(publish._topic_bytes) <= 4096


def test_payload_format_is_checked_when_asked() -> None:
    good = encode_publish("a", "grün".encode(), properties={"payload_format_indicator": 1})
    bad = encode_publish("a", b"\xff", properties={"payload_format_indicator": 1})
    raw = encode_publish("a", b"\xff")
    unit = PacketDecoder(5, receiver="server")
    first, second, third = unit.feed(good + bad + raw)
    assert isinstance(first, Publish)
    assert isinstance(second, Publish)
    assert isinstance(third, Publish)
    first.check_payload_format()
    third.check_payload_format()
    with pytest.raises(MalformedPacketError) as caught:
        second.check_payload_format()
    assert caught.value.reason_code == ReasonCode.PAYLOAD_FORMAT_INVALID
    assert caught.value.offset == len(bad) - 1


def test_fields_of_a_publish() -> None:
    wire = encode_publish(
        "a/b", b"hi", 1, True, packet_id=258, properties={"topic_alias": 5, "user_property": [("k", "v")]}
    )
    (packet,) = PacketDecoder(5, receiver="server").feed(wire)
    assert [(field.name, field.start, field.end, field.value) for field in packet.fields()] == [
        ("packet_type", 0, 1, "PUBLISH"),
        ("remaining_length", 1, 2, 20),
        ("topic_length", 2, 4, 3),
        ("topic", 4, 7, "a/b"),
        ("packet_id", 7, 9, 258),
        ("property_length", 9, 10, 10),
        ("topic_alias", 10, 13, 5),
        ("user_property", 13, 20, ("k", "v")),
        ("payload", 20, 22, b"hi"),
    ]
    assert [(bit.name, bit.high, bit.low, bit.value) for bit in packet.fields()[0].bits] == [
        ("packet_type", 7, 4, "PUBLISH"),
        ("dup", 3, 3, False),
        ("qos", 2, 1, 1),
        ("retain", 0, 0, True),
    ]


def test_fields_of_a_subscribe() -> None:
    subscribe = Subscribe(7, [Subscription("a", 1, True, True, 2)])
    (packet,) = PacketDecoder(5, receiver="server").feed(subscribe.encode())
    options = packet.fields()[-1]
    assert (options.name, options.value) == ("subscription_options", 0x2D)
    assert {bit.name: bit.value for bit in options.bits} == {
        "reserved": 0,
        "retain_handling": 2,
        "retain_as_published": True,
        "no_local": True,
        "qos": 1,
    }


def test_reprs_are_short_and_say_the_reason() -> None:
    assert repr(Publish("t", bytes(1000))).endswith(
        "...(1000 bytes), qos=0, retain=False, dup=False, packet_id=None, properties={})"
    )
    assert repr(PubAck(1, 0x87)) == "PubAck(packet_id=1, reason_code=0x87 Not authorized, properties={})"


def test_packets_of_different_types_are_not_equal() -> None:
    assert PubAck(1) != Publish("a")
    assert PubAck(1) != PubAck(2)
    assert Publish("a", properties={"user_property": [("k", "v")]}) == Publish(
        "a", properties={"user_property": (("k", "v"),)}
    )


def test_many_user_properties_are_read_in_linear_time() -> None:
    pairs = [("n", "v")] * 200_000  # appending to a tuple for each would copy 160 GB
    wire = encode_publish("a", b"", properties={"user_property": pairs})
    (packet,) = PacketDecoder(5, receiver="server").feed(wire)
    assert isinstance(packet, Publish)
    assert len(packet.properties["user_property"]) == 200_000
