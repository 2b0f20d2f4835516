"""Packets that break a rule: each must be refused with its reason code, conformance statement and field."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from mqttquic_lab.errors import MalformedPacketError, ProtocolError
from mqttquic_lab.mqtt import PacketDecoder, Receiver, Version


class Bad(NamedTuple):
    """A packet, who receives it in which version, and what has to be said about it."""

    name: str
    version: Version | None
    receiver: Receiver
    wire: bytes
    code: int
    rule: str
    section: str
    field: str
    offset: int


def packet(first: int, *parts: bytes | str | int) -> bytes:
    """Return a packet with the right remaining length; str parts are MQTT strings, int parts single bytes."""
    body = b""
    for part in parts:
        if isinstance(part, str):
            body += len(part.encode()).to_bytes(2, "big") + part.encode()
        else:
            body += bytes((part,)) if isinstance(part, int) else part
    assert len(body) < 128
    return bytes((first, len(body))) + body


def connect(level: int, flags: int, *payload: bytes | str | int, properties: bytes = b"\0") -> bytes:
    return packet(0x10, "MQTT", level, flags, b"\0\x3c", properties if level == 5 else b"", *payload)


def publish(properties: bytes, first: int = 0x30) -> bytes:
    return packet(first, "a", len(properties), properties, b"x")


ID = b"\0\x07"
E = "MQTT-1.5.4-1"
N = "MQTT-1.5.4-2"

TABLE = [
    # fixed header
    Bad("type 0", 5, "server", b"\x00\0", 0x81, "", "2.1.2", "packet_type", 0),
    Bad("AUTH in 3.1.1", 4, "server", b"\xf0\0", 0x81, "", "2.2.1", "packet_type", 0),
    Bad("flags of CONNECT", None, "server", b"\x11\0", 0x81, "MQTT-2.1.3-1", "2.1.3", "flags", 0),
    Bad("flags of PUBACK", 5, "client", b"\x41\2\0\1", 0x81, "MQTT-2.1.3-1", "2.1.3", "flags", 0),
    Bad("flags of PUBACK, 3.1.1", 4, "client", b"\x41\2\0\1", 0x81, "MQTT-2.2.2-1", "2.2.2", "flags", 0),
    Bad("flags of PUBREL", 5, "server", b"\x60\2\0\1", 0x81, "MQTT-3.6.1-1", "3.6.1", "flags", 0),
    Bad("flags of SUBSCRIBE", 5, "server", b"\x80\2\0\1", 0x81, "MQTT-3.8.1-1", "3.8.1", "flags", 0),
    Bad("flags of UNSUBSCRIBE", 4, "server", b"\xa0\2\0\1", 0x81, "MQTT-3.10.1-1", "3.10.1", "flags", 0),
    Bad("flags of DISCONNECT", 5, "server", b"\xe1\0", 0x81, "MQTT-3.14.1-1", "3.14.1", "flags", 0),
    Bad("flags of AUTH", 5, "client", b"\xf1\0", 0x81, "MQTT-3.15.1-1", "3.15.1", "flags", 0),
    Bad("first packet is not CONNECT", None, "server", b"\xc0\0", 0x82, "MQTT-3.1.0-1", "3.1", "packet_type", 0),
    Bad("CONNACK at a server", 5, "server", b"\x20\3\0\0\0", 0x82, "", "2.1.2", "packet_type", 0),
    Bad("SUBACK at a server", 4, "server", b"\x90\3\0\1\0", 0x82, "", "2.2.1", "packet_type", 0),
    Bad("CONNECT at a client", 5, "client", connect(5, 2, "x"), 0x82, "", "2.1.2", "packet_type", 0),
    Bad("PINGREQ at a client", 5, "client", b"\xc0\0", 0x82, "", "2.1.2", "packet_type", 0),
    Bad("DISCONNECT from a 3.1.1 server", 4, "client", b"\xe0\0", 0x82, "", "3.14", "packet_type", 0),
    Bad("five bytes of length", 5, "server", b"\x30\xff\xff\xff\xff\1", 0x81, "", "1.5.5", "remaining_length", 1),
    Bad("over-long length", 5, "server", b"\xc0\x80\0", 0x81, "MQTT-1.5.5-1", "1.5.5", "remaining_length", 1),
    Bad("over-long length, 3.1.1", 4, "server", b"\xc0\x80\0", 0x81, "", "2.2.3", "remaining_length", 1),
    Bad("bytes after PINGREQ", 5, "server", b"\xc0\1\0", 0x81, "", "2.1.4", "remaining_length", 2),
    Bad("bytes after PUBACK in 3.1.1", 4, "client", b"\x40\3\0\1\0", 0x81, "", "2.2.3", "remaining_length", 4),
    # strings
    Bad("surrogate in a topic", 5, "server", packet(0x30, b"\0\3\xed\xa0\x80\0"), 0x81, E, "1.5.4", "topic", 4),
    Bad("lone continuation byte", 5, "server", packet(0x30, b"\0\2a\x80\0"), 0x81, E, "1.5.4", "topic", 5),
    Bad("over-long UTF-8", 5, "server", packet(0x30, b"\0\2\xc0\xaf\0"), 0x81, E, "1.5.4", "topic", 4),
    Bad("bad UTF-8 in 3.1.1", 4, "server", packet(0x30, b"\0\1\xff"), 0x81, "MQTT-1.5.3-1", "1.5.3", "topic", 4),
    Bad("U+0000 in a topic", 5, "server", packet(0x30, b"\0\3a\0b\0"), 0x81, N, "1.5.4", "topic", 5),
    Bad("U+0000 in 3.1.1", 4, "server", packet(0x30, b"\0\1\0"), 0x81, "MQTT-1.5.3-2", "1.5.3", "topic", 4),
    Bad("string past the end", 5, "server", packet(0x30, b"\0\x09ab"), 0x81, "", "2.1.4", "topic", 4),
    Bad("U+0000 in a user property", 5, "server", publish(b"\x26\0\1a\0\1\0"), 0x81, N, "1.5.4", "user_property", 12),
    # CONNECT
    Bad("protocol name", None, "server", packet(0x10, "MQIsdp", 3, 2, b"\0\0", "x"), 0x84, "MQTT-3.1.2-1", "3.1.2.1",
        "protocol_name", 2),
    Bad("protocol level 3", None, "server", packet(0x10, "MQTT", 3, 2, b"\0\0", "x"), 0x84, "MQTT-3.1.2-2", "3.1.2.2",
        "protocol_version", 8),
    Bad("protocol level 6", None, "server", packet(0x10, "MQTT", 6, 2, b"\0\0\0", "x"), 0x84, "MQTT-3.1.2-2",
        "3.1.2.2", "protocol_version", 8),
    Bad("reserved connect flag", None, "server", connect(5, 3, "x"), 0x81, "MQTT-3.1.2-3", "3.1.2.3",
        "connect_flags", 9),
    Bad("will QoS 3", None, "server", connect(5, 0x1E, "x", 0, "w", ""), 0x81, "MQTT-3.1.2-12", "3.1.2.6",
        "connect_flags", 9),
    Bad("will QoS 3 in 3.1.1", None, "server", connect(4, 0x1E, "x", "w", ""), 0x81, "MQTT-3.1.2-14", "3.1.2.6",
        "connect_flags", 9),
    Bad("will QoS without will", None, "server", connect(5, 0x0A, "x"), 0x81, "MQTT-3.1.2-11", "3.1.2.6",
        "connect_flags", 9),
    Bad("will QoS without will in 3.1.1", None, "server", connect(4, 0x0A, "x"), 0x81, "MQTT-3.1.2-13", "3.1.2.6",
        "connect_flags", 9),
    Bad("will retain without will", None, "server", connect(5, 0x22, "x"), 0x81, "MQTT-3.1.2-13", "3.1.2.7",
        "connect_flags", 9),
    Bad("will topic with a wildcard", None, "server", connect(5, 6, "x", 0, "w/#", ""), 0x90, "MQTT-4.7.0-1", "4.7",
        "will_topic", 19),
    Bad("empty will topic", None, "server", connect(4, 6, "x", "", ""), 0x82, "MQTT-4.7.3-1", "4.7.3",
        "will_topic", 15),
    Bad("password alone in 3.1.1", None, "server", connect(4, 0x42, "x", "p"), 0x81, "MQTT-3.1.2-22", "3.1.2.9",
        "connect_flags", 9),
    Bad("empty client id, clean session 0", None, "server", connect(4, 0, ""), 0x85, "MQTT-3.1.3-8", "3.1.3.1",
        "client_id", 12),
    Bad("user name missing", None, "server", connect(5, 0x82, "x"), 0x81, "", "2.1.4", "username_length", 16),
    Bad("bytes after CONNECT", None, "server", connect(5, 2, "x", 0), 0x81, "", "2.1.4", "remaining_length", 16),
    Bad("receive maximum 0", None, "server", connect(5, 2, "x", properties=b"\3\x21\0\0"), 0x82, "", "3.1.2.11.3",
        "receive_maximum", 14),
    Bad("maximum packet size 0", None, "server", connect(5, 2, "x", properties=b"\5\x27\0\0\0\0"), 0x82, "",
        "3.1.2.11.4", "maximum_packet_size", 14),
    Bad("request problem information 2", None, "server", connect(5, 2, "x", properties=b"\2\x17\2"), 0x82, "",
        "3.1.2.11.7", "request_problem_information", 14),
    Bad("request response information 2", None, "server", connect(5, 2, "x", properties=b"\2\x19\2"), 0x82, "",
        "3.1.2.11.6", "request_response_information", 14),
    Bad("authentication data alone", None, "server", connect(5, 2, "x", properties=b"\4\x16\0\1z"), 0x82, "",
        "3.1.2.11.10", "authentication_data", 13),
    Bad("will property in CONNECT", None, "server", connect(5, 2, "x", properties=b"\5\x18\0\0\0\1"), 0x81, "",
        "2.2.2.2", "will_delay_interval", 13),
    # CONNACK
    Bad("reserved acknowledge flags", 5, "client", b"\x20\3\2\0\0", 0x81, "MQTT-3.2.2-1", "3.2.2.1",
        "connect_acknowledge_flags", 2),
    Bad("session present and refused", 5, "client", b"\x20\3\1\x87\0", 0x82, "MQTT-3.2.2-6", "3.2.2.1.1",
        "connect_acknowledge_flags", 2),
    Bad("session present and refused, 3.1.1", 4, "client", b"\x20\2\1\5", 0x82, "MQTT-3.2.2-4", "3.2.2.2",
        "connect_acknowledge_flags", 2),
    Bad("return code 6", 4, "client", b"\x20\2\0\6", 0x82, "", "3.2.2.3", "return_code", 3),
    Bad("reason code of PUBACK in CONNACK", 5, "client", b"\x20\3\0\x10\0", 0x82, "MQTT-3.2.2-8", "3.2.2.2",
        "reason_code", 3),
    Bad("CONNACK without properties", 5, "client", b"\x20\2\0\0", 0x81, "", "2.1.4", "property_length", 4),
    Bad("maximum QoS 2", 5, "client", b"\x20\5\0\0\2\x24\2", 0x82, "", "3.2.2.3.4", "maximum_qos", 6),
    Bad("retain available 2", 5, "client", b"\x20\5\0\0\2\x25\2", 0x82, "", "3.2.2.3.5", "retain_available", 6),
    # PUBLISH
    Bad("QoS 3", 5, "server", packet(0x36, "a", ID, 0), 0x81, "MQTT-3.3.1-4", "3.3.1.2", "qos", 0),
    Bad("DUP with QoS 0", 5, "server", packet(0x38, "a", 0), 0x81, "MQTT-3.3.1-2", "3.3.1.1", "dup", 0),
    Bad("packet identifier 0", 5, "server", packet(0x32, "a", b"\0\0\0"), 0x82, "MQTT-2.2.1-3", "2.2.1",
        "packet_id", 5),
    Bad("packet identifier 0 in 3.1.1", 4, "server", packet(0x32, "a", b"\0\0"), 0x82, "MQTT-2.3.1-1", "2.3.1",
        "packet_id", 5),
    Bad("packet identifier cut off", 5, "server", packet(0x32, "a", b"\0"), 0x81, "", "2.1.4", "packet_id", 5),
    Bad("+ in a topic", 5, "server", packet(0x30, "a/+", 0), 0x90, "MQTT-3.3.2-2", "3.3.2.1", "topic", 4),
    Bad("# in a topic", 4, "client", packet(0x30, "#"), 0x90, "MQTT-3.3.2-2", "3.3.2.1", "topic", 4),
    Bad("empty topic, no alias", 5, "server", packet(0x30, "", 0), 0x82, "", "3.3.2.1", "topic", 2),
    Bad("empty topic in 3.1.1", 4, "server", packet(0x30, ""), 0x82, "MQTT-4.7.3-1", "4.7.3", "topic", 2),
    Bad("no property length", 5, "server", packet(0x30, "a"), 0x81, "", "2.1.4", "property_length", 5),
    Bad("properties past the end", 5, "server", packet(0x30, "a", 9, b"\1\1"), 0x81, "", "2.1.4", "properties", 6),
    Bad("over-long property length", 5, "server", packet(0x30, "a", b"\x80\0"), 0x81, "MQTT-1.5.5-1", "1.5.5",
        "property_length", 5),
    Bad("topic alias 0", 5, "server", publish(b"\x23\0\0"), 0x94, "MQTT-3.3.2-8", "3.3.2.3.4", "topic_alias", 7),
    Bad("payload format 2", 5, "client", publish(b"\1\2"), 0x82, "", "3.3.2.3.2", "payload_format_indicator", 7),
    Bad("subscription identifier 0", 5, "client", publish(b"\x0b\0"), 0x82, "", "3.8.2.1.2",
        "subscription_identifier", 7),
    Bad("subscription identifier from a client", 5, "server", publish(b"\x0b\1"), 0x82, "MQTT-3.3.4-6", "3.3.4",
        "subscription_identifier", 6),
    Bad("response topic with a wildcard", 5, "server", publish(b"\x08\0\3r/#"), 0x82, "MQTT-3.3.2-14", "3.3.2.3.5",
        "response_topic", 9),
    Bad("empty response topic", 5, "server", publish(b"\x08\0\0"), 0x82, "MQTT-4.7.3-1", "4.7.3",
        "response_topic", 7),
    Bad("content type twice", 5, "server", publish(b"\3\0\1a\3\0\1a"), 0x82, "", "2.2.2.2", "content_type", 10),
    Bad("unknown property", 5, "server", publish(b"\x7e\0"), 0x81, "", "2.2.2.2", "property_identifier", 6),
    Bad("property of CONNACK in PUBLISH", 5, "client", publish(b"\x24\1"), 0x81, "", "2.2.2.2", "maximum_qos", 6),
    Bad("property cut off", 5, "server", publish(b"\2\0\0\0"), 0x81, "", "2.1.4", "message_expiry_interval", 7),
    # acknowledgements
    Bad("PUBACK identifier 0", 5, "client", b"\x40\2\0\0", 0x82, "MQTT-2.2.1-3", "2.2.1", "packet_id", 2),
    Bad("PUBACK cut off", 5, "client", b"\x40\1\0", 0x81, "", "2.1.4", "packet_id", 2),
    Bad("reason code of PUBREL in PUBACK", 5, "client", b"\x40\3\0\1\x92", 0x82, "MQTT-3.4.2-1", "3.4.2.1",
        "reason_code", 4),
    Bad("undefined reason code in PUBREC", 5, "client", b"\x50\3\0\1\x7f", 0x82, "MQTT-3.5.2-1", "3.5.2.1",
        "reason_code", 4),
    Bad("reason code of PUBACK in PUBREL", 5, "server", b"\x62\3\0\1\x10", 0x82, "MQTT-3.6.2-1", "3.6.2.1",
        "reason_code", 4),
    Bad("reason code of PUBACK in PUBCOMP", 5, "client", b"\x70\3\0\1\x10", 0x82, "MQTT-3.7.2-1", "3.7.2.1",
        "reason_code", 4),
    Bad("bytes after PUBACK", 5, "client", b"\x40\5\0\1\0\0\0", 0x81, "", "2.1.4", "remaining_length", 6),
    # SUBSCRIBE and SUBACK
    Bad("no subscription", 5, "server", packet(0x82, ID, 0), 0x82, "MQTT-3.8.3-2", "3.8.3", "topic_filter", 5),
    Bad("no subscription in 3.1.1", 4, "server", packet(0x82, ID), 0x82, "MQTT-3.8.3-3", "3.8.3", "topic_filter", 4),
    Bad("options missing", 5, "server", packet(0x82, ID, 0, "a"), 0x81, "", "2.1.4", "subscription_options", 8),
    Bad("reserved option bits", 5, "server", packet(0x82, ID, 0, "a", 0x40), 0x81, "MQTT-3.8.3-5", "3.8.3.1",
        "subscription_options", 8),
    Bad("5.0 options in 3.1.1", 4, "server", packet(0x82, ID, "a", 4), 0x81, "MQTT-3.8.3-4", "3.8.3",
        "requested_qos", 7),
    Bad("QoS 3 asked for", 5, "server", packet(0x82, ID, 0, "a", 3), 0x82, "", "3.8.3.1", "subscription_options", 8),
    Bad("QoS 3 asked for in 3.1.1", 4, "server", packet(0x82, ID, "a", 3), 0x82, "MQTT-3.8.3-4", "3.8.3",
        "requested_qos", 7),
    Bad("retain handling 3", 5, "server", packet(0x82, ID, 0, "a", 0x30), 0x82, "", "3.8.3.1",
        "subscription_options", 8),
    Bad("no local when shared", 5, "server", packet(0x82, ID, 0, "$share/g/a", 4), 0x82, "MQTT-3.8.3-4", "3.8.3.1",
        "subscription_options", 17),
    Bad("empty filter", 5, "server", packet(0x82, ID, 0, "", 0), 0x82, "MQTT-4.7.3-1", "4.7.3", "topic_filter", 5),
    Bad("# not last", 5, "server", packet(0x82, ID, 0, "a/#/b", 0), 0x8F, "MQTT-4.7.1-1", "4.7.1.2",
        "topic_filter", 7),
    Bad("# beside a name", 4, "server", packet(0x82, ID, "a#", 0), 0x8F, "MQTT-4.7.1-2", "4.7.1.2",
        "topic_filter", 6),
    Bad("+ beside a name", 5, "server", packet(0x82, ID, 0, "a/b+", 0), 0x8F, "MQTT-4.7.1-2", "4.7.1.3",
        "topic_filter", 7),
    Bad("empty share name", 5, "server", packet(0x82, ID, 0, "$share//a", 0), 0x8F, "MQTT-4.8.2-1", "4.8.2",
        "topic_filter", 7),
    Bad("share name without filter", 5, "server", packet(0x82, ID, 0, "$share/g/", 0), 0x8F, "MQTT-4.8.2-2", "4.8.2",
        "topic_filter", 7),
    Bad("two subscription identifiers", 5, "server", packet(0x82, ID, 4, b"\x0b\1\x0b\2", "a", 0), 0x82, "",
        "2.2.2.2", "subscription_identifier", 7),
    Bad("SUBSCRIBE identifier 0", 5, "server", packet(0x82, b"\0\0\0", "a", 0), 0x82, "MQTT-2.2.1-3", "2.2.1",
        "packet_id", 2),
    Bad("empty SUBACK", 5, "client", b"\x90\3\0\1\0", 0x82, "", "3.9.3", "reason_code", 5),
    Bad("reason code 3 in SUBACK", 5, "client", b"\x90\4\0\1\0\3", 0x82, "MQTT-3.9.3-2", "3.9.3", "reason_code", 5),
    Bad("return code 0x87 in 3.1.1 SUBACK", 4, "client", b"\x90\3\0\1\x87", 0x82, "MQTT-3.9.3-2", "3.9.3",
        "return_code", 4),
    Bad("no filter to unsubscribe", 5, "server", packet(0xA2, ID, 0), 0x82, "MQTT-3.10.3-2", "3.10.3",
        "topic_filter", 5),
    Bad("empty UNSUBACK", 5, "client", b"\xb0\3\0\1\0", 0x82, "", "3.11.3", "reason_code", 5),
    Bad("reason code 1 in UNSUBACK", 5, "client", b"\xb0\4\0\1\0\1", 0x82, "MQTT-3.11.3-2", "3.11.3",
        "reason_code", 5),
    Bad("bytes after 3.1.1 UNSUBACK", 4, "client", b"\xb0\3\0\1\0", 0x81, "", "2.2.3", "remaining_length", 4),
    # DISCONNECT and AUTH
    Bad("undefined reason code in DISCONNECT", 5, "client", b"\xe0\1\x01", 0x82, "MQTT-3.14.2-1", "3.14.2.1",
        "reason_code", 2),
    Bad("server's reason code from a client", 5, "server", b"\xe0\1\x8b", 0x82, "MQTT-3.14.2-1", "3.14.2.1",
        "reason_code", 2),
    Bad("client's reason code from a server", 5, "client", b"\xe0\1\x04", 0x82, "MQTT-3.14.2-1", "3.14.2.1",
        "reason_code", 2),
    Bad("session expiry from a server", 5, "client", b"\xe0\7\0\5\x11\0\0\0\1", 0x82, "MQTT-3.14.2-2", "3.14.2.2.2",
        "session_expiry_interval", 4),
    Bad("bytes in 3.1.1 DISCONNECT", 4, "server", b"\xe0\1\0", 0x81, "", "2.2.3", "remaining_length", 2),
    Bad("reason code in AUTH", 5, "client", b"\xf0\1\x87", 0x82, "MQTT-3.15.2-1", "3.15.2.1", "reason_code", 2),
    Bad("AUTH without method", 5, "client", b"\xf0\2\x18\0", 0x82, "", "3.15.2.2.2", "authentication_method", 3),
    Bad("re-authenticate from a server", 5, "client", packet(0xF0, 0x19, b"\4\x15\0\1m"), 0x82, "MQTT-3.15.2-1",
        "3.15.2.1", "reason_code", 2),
]  # fmt: skip


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.name)
@pytest.mark.parametrize("piecewise", [False, True], ids=["whole", "bytewise"])
def test_refused_with_the_rule(bad: Bad, piecewise: bool) -> None:
    unit = PacketDecoder(bad.version, receiver=bad.receiver)
    chunks = [bytes((byte,)) for byte in bad.wire] if piecewise else [bad.wire]
    with pytest.raises(MalformedPacketError) as caught:  # noqa: PT012 -- any of the bytes may be the one that shows it
        for chunk in chunks:
            unit.feed(chunk)
    error = caught.value
    assert isinstance(error, ProtocolError)
    assert (error.reason_code, error.rule, error.field, error.offset) == (bad.code, bad.rule, bad.field, bad.offset)
    v311 = bad.version == 4 or (bad.version is None and b"MQTT\4" in bad.wire)
    assert error.section == f"MQTT {'3.1.1' if v311 else '5.0'} section {bad.section}"
    assert error.packets == []


def test_the_message_says_what_where_and_which_rule() -> None:
    with pytest.raises(MalformedPacketError) as caught:
        PacketDecoder(5, receiver="server").feed(b"\x36\x06\0\1a\0\1\0")
    assert str(caught.value) == "QoS 3 (qos at byte 0) - [MQTT-3.3.1-4], MQTT 5.0 section 3.3.1.2"


@pytest.mark.parametrize(
    ("version", "receiver", "wire"),
    [
        (5, "client", b"\x40\2\0\1"),
        (5, "client", b"\x40\3\0\1\x10"),
        (5, "client", b"\x40\4\0\1\x10\0"),
        (5, "server", b"\xe0\0"),
        (5, "server", b"\xe0\1\x04"),
        (5, "server", b"\xe0\2\x04\0"),
        (5, "client", b"\xf0\0"),
        (None, "server", connect(5, 0x42, "x", "p")),
        (None, "server", connect(5, 0x00, "")),
        (None, "server", connect(4, 0x02, "")),
        (4, "server", packet(0x82, ID, "$share/g", 1)),
        (5, "server", packet(0x30, "\N{ZERO WIDTH NO-BREAK SPACE}", 0)),
        (5, "client", publish(b"\x0b\1\x0b\1")),
    ],
    ids=lambda value: value.hex() if isinstance(value, bytes) else str(value),
)
def test_unusual_but_allowed(version: Version | None, receiver: Receiver, wire: bytes) -> None:
    (decoded,) = PacketDecoder(version, receiver=receiver).feed(wire)
    assert decoded.raw == wire


def test_a_server_of_3_1_1_may_refuse_a_5_0_connect_in_its_own_way() -> None:
    (refusal,) = PacketDecoder(5, receiver="client").feed(b"\x20\2\0\1")
    assert refusal.fields()[-1].name == "return_code"
    assert repr(refusal).startswith("ConnAck(session_present=False, reason_code=0x84 Unsupported Protocol Version")
