"""Packets that cannot be sent: each is refused before a byte leaves, with a message that names the fix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.errors import UnknownOptionError, UsageError
from mqttquic_lab.mqtt import (
    Auth,
    ConnAck,
    Connect,
    Disconnect,
    PubAck,
    Publish,
    PubRel,
    SubAck,
    Subscribe,
    Subscription,
    UnsubAck,
    Unsubscribe,
    Version,
    Will,
    encode_publish,
)

if TYPE_CHECKING:
    from collections.abc import Callable

BAD: list[tuple[Callable[[], Any], str]] = [
    # PUBLISH
    (lambda: encode_publish("a/+", b""), "wildcard"),
    (lambda: encode_publish("#", b""), "wildcard"),
    (lambda: encode_publish("", b""), "topic is empty"),
    (lambda: encode_publish("", b"", properties={"content_type": "x"}), "topic is empty"),
    (lambda: encode_publish("", b"", version=4), "topic is empty"),
    (lambda: encode_publish("a\0b", b""), "leave out U\\+0000"),
    (lambda: encode_publish("a\ud800b", b""), "leave out surrogates"),
    (lambda: encode_publish("x" * 65_536, b""), "within 65535 bytes"),
    (lambda: encode_publish(7, b""), "is a str"),  # type: ignore[arg-type]
    (lambda: encode_publish("a", "text"), "must be bytes"),  # type: ignore[arg-type]
    (lambda: encode_publish("a", None), "must be bytes"),  # type: ignore[arg-type]
    (lambda: encode_publish("a", b"", 3, packet_id=1), "0, 1 or 2"),
    (lambda: encode_publish("a", b"", 1), "packet_id None"),
    (lambda: encode_publish("a", b"", 1, packet_id=0), "from 1 to 65535"),
    (lambda: encode_publish("a", b"", 2, packet_id=65_536), "from 1 to 65535"),
    (lambda: encode_publish("a", b"", 2, packet_id=True), "from 1 to 65535"),
    (lambda: encode_publish("a", b"", 0, packet_id=1), "neither dup nor packet_id"),
    (lambda: encode_publish("a", b"", 0, dup=True), "neither dup nor packet_id"),
    (lambda: encode_publish("a", b"", properties={"content_type": "x"}, version=4), "use version='5.0'"),
    (lambda: encode_publish("a", b"", version=3), "4 \\(MQTT 3.1.1\\) or 5"),  # type: ignore[arg-type]
    (lambda: encode_publish("a", b"", properties={"topic_alias": 0}), "from 1 to 65535"),
    (lambda: encode_publish("a", b"", properties={"payload_format_indicator": 2}), "from 0 to 1"),
    (lambda: encode_publish("a", b"", properties={"message_expiry_interval": -1}), "from 0 to 4294967295"),
    (lambda: encode_publish("a", b"", properties={"message_expiry_interval": 1.5}), "must be an integer"),
    (lambda: encode_publish("a", b"", properties={"subscription_identifier": [0]}), "from 1 to 268435455"),
    (lambda: encode_publish("a", b"", properties={"response_topic": "r/#"}), "without wildcards"),
    (lambda: encode_publish("a", b"", properties={"response_topic": ""}), "must be a topic name"),
    (lambda: encode_publish("a", b"", properties={"content_type": b"x"}), "must be a str"),
    (lambda: encode_publish("a", b"", properties={"correlation_data": "x"}), "must be bytes"),
    (lambda: encode_publish("a", b"", properties={"correlation_data": b"x" * 65_536}), "ends at 65535"),
    (lambda: encode_publish("a", b"", properties={"user_property": ["ab"]}), "\\(name, value\\) pairs"),
    (lambda: encode_publish("a", b"", properties={"user_property": {"ab": "c"}}), "\\(name, value\\) pairs"),
    (lambda: encode_publish("a", b"", properties={"user_property": [("a", 1)]}), "must be a str"),
    (lambda: encode_publish("a", b"", properties={"user_property": [("a\0", "b")]}), "U\\+0000"),
    (lambda: encode_publish("a", b"", properties={"receive_maximum": 1}), "belongs in CONNACK, CONNECT"),
    (lambda: Publish("a", b"", 1).encode(), "packet_id None"),
    # CONNECT and CONNACK
    (lambda: Connect("c", 4, password=b"p").encode(), "without a user name"),
    (lambda: Connect("", 4, clean_start=False).encode(), "give a client_id"),
    (lambda: Connect("c", keepalive=65_536).encode(), "from 0 to 65535"),
    (lambda: Connect("c", keepalive=-1).encode(), "from 0 to 65535"),
    (lambda: Connect("c", 3).encode(), "use 4 or 5"),  # type: ignore[arg-type]
    (lambda: Connect("c", 4).encode(5), "use 4 or 5 in both"),
    (lambda: Connect("c", will=Will("w/#")).encode(), "wildcard"),
    (lambda: Connect("c", will=Will("w", qos=3)).encode(), "0, 1 or 2"),
    (lambda: Connect("c", will=Will("w", b"x" * 65_536)).encode(), "ends at 65535"),
    (lambda: Connect("c", properties={"receive_maximum": 0}).encode(), "from 1 to"),
    (lambda: Connect("c", properties={"authentication_data": b"x"}).encode(), "needs authentication_method"),
    (lambda: Connect("c\0").encode(), "U\\+0000"),
    (lambda: ConnAck(True, 0x87).encode(), "session_present needs"),
    (lambda: ConnAck(False, 0x10), "no reason code of CONNACK"),
    # SUBSCRIBE and others
    (lambda: Subscribe(1, []).encode(), "at least one"),
    (lambda: Subscribe(0, [Subscription("a")]).encode(), "from 1 to 65535"),
    (lambda: Subscribe(1, [Subscription("a/#/b")]).encode(), "'a/#'"),
    (lambda: Subscribe(1, [Subscription("a", 3)]).encode(), "0, 1 or 2"),
    (lambda: Subscribe(1, [Subscription("a", retain_handling=3)]).encode(), "0, 1 or 2"),
    (lambda: Subscribe(1, [Subscription("$share/g/a", no_local=True)]).encode(), "leave it out"),
    (lambda: Subscribe(1, [Subscription("a", no_local=True)]).encode(4), "leave the others out"),
    (lambda: Subscribe(1, [Subscription("$share/g/")]).encode(), "share"),
    (lambda: Subscribe(1, [Subscription("a")], {"subscription_identifier": [1, 2]}).encode(), "one subscription"),
    (lambda: SubAck(1, []).encode(), "one reason code per"),
    (lambda: SubAck(1, [3]), "no reason code of SUBACK"),
    (lambda: Unsubscribe(1, []).encode(), "at least one"),
    (lambda: Unsubscribe(1, [""]).encode(), "write filters like"),
    (lambda: UnsubAck(1).encode(), "one reason code per"),
    (lambda: PubAck(0).encode(), "from 1 to 65535"),
    (lambda: PubRel(1, 0x10), "no reason code of PUBREL"),
    (lambda: Disconnect(0x01), "no reason code of DISCONNECT"),
    (lambda: Disconnect(0, {"reason_string": "bye"}).encode(4), "MQTT 3.1.1 has none"),
    (lambda: Auth(0x18).encode(), "needs the property authentication_method"),
    (lambda: Auth(0x18, {"authentication_method": "m"}).encode(4), "does not exist in MQTT 3.1.1"),
]


@pytest.mark.parametrize(("build", "message"), BAD, ids=range(len(BAD)))
def test_refused_with_the_fix(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build()


def test_a_misspelt_property_is_suggested() -> None:
    with pytest.raises(UnknownOptionError, match="did you mean 'message_expiry_interval'") as caught:
        encode_publish("a", b"", properties={"mesage_expiry": 5})
    assert caught.value.suggestion == "message_expiry_interval"


def test_a_packet_may_not_be_larger_than_a_remaining_length_can_say() -> None:
    huge = bytes(268_435_455)
    with pytest.raises(UsageError, match="268435455"):
        encode_publish("a", huge)


@pytest.mark.parametrize("payload", [b"xyz", bytearray(b"xyz"), memoryview(b"xyz")])
def test_payload_may_be_any_bytes(payload: bytes | bytearray | memoryview) -> None:
    assert encode_publish("a", payload) == b"\x30\x07\0\1a\0xyz"


@pytest.mark.parametrize(
    ("packet", "version", "wire"),
    [
        (PubAck(1), 5, "40020001"),
        (PubAck(1, 0x10), 5, "4003000110"),
        (PubAck(1, 0x10, {"reason_string": "n"}), 5, "40080001" + "10" + "04" + "1f00016e"),
        (PubAck(1, 0x87), 4, "40020001"),
        (PubRel(1), 5, "62020001"),
        (Disconnect(), 5, "e000"),
        (Disconnect(0x81), 5, "e00181"),
        (Disconnect(0x81), 4, "e000"),
        (Auth(), 5, "f000"),
        (UnsubAck(1, [0x11]), 5, "b00400010011"),
        (UnsubAck(1, [0x11]), 4, "b0020001"),
        (SubAck(1, [0, 1, 2, 0x87]), 4, "900600010001" + "0280"),
        (ConnAck(False, 0x8A), 4, "20020005"),
        (ConnAck(False, 0x97), 4, "20020003"),
        (ConnAck(True), 4, "20020100"),
        (Publish("a", b"", 1, True, True, 2), 5, "3b0600016100" + "0200"),
    ],
    ids=repr,
)
def test_wire_bytes(packet: Publish, version: Version, wire: str) -> None:
    assert packet.encode(version).hex() == wire


def test_text_passwords_are_sent_as_utf8() -> None:
    assert Connect("c", username="u", password="pässword").password == b"p\xc3\xa4ssword"
