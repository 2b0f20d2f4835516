"""PUBLISH in datagrams: one QoS 0 message per datagram, within the peer's limit, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttquic_lab.errors import MalformedPacketError, ProtocolError, PublishError, UsageError
from mqttquic_lab.mqtt import (
    Datagram,
    FlowError,
    PingReq,
    PubAck,
    Publish,
    encode_datagram,
    encode_publish,
    read_datagram,
)
from tests.wire.strategies import light, packets, payloads, topics
from tests.wire.test_state import PACKETS


@light(100)
@given(topics, payloads, st.booleans())
def test_round_trip(topic: str, payload: bytes, retain: bool) -> None:
    data = encode_datagram(topic, payload, retain, {"content_type": "x"}, max_size=2000)
    read = read_datagram(data, receiver="server")
    assert read == Datagram("mqtt", Publish(topic, payload, 0, retain, properties={"content_type": "x"}))
    assert read_datagram(memoryview(data), receiver="server") == read


def test_the_three_kinds_of_payload() -> None:
    assert read_datagram(b"", receiver="client") == Datagram("empty")
    assert read_datagram(b"\x00", receiver="client") == Datagram("other")
    assert read_datagram(b"\x00\x30\x00", receiver="client") == Datagram("other", data=b"\x30\x00")
    assert read_datagram(b"\x30\x05\x00\x01a\x00x", receiver="client").kind == "mqtt"


def test_size_limit() -> None:
    assert len(encode_datagram("t", b"x" * 19, max_size=25)) == 25
    with pytest.raises(PublishError, match="takes 26 bytes, and a datagram to this peer ends at 25") as caught:
        encode_datagram("t", b"x" * 20, max_size=25)
    assert caught.value.reason_code == 0x95
    with pytest.raises(PublishError, match="takes no datagrams"):
        encode_datagram("t", b"", max_size=0)


def test_topic_aliases_belong_to_flows() -> None:
    with pytest.raises(UsageError, match="topic_alias"):
        encode_datagram("t", b"", properties={"topic_alias": 1}, max_size=1200)
    wire = encode_publish("t", b"", properties={"topic_alias": 1})
    with pytest.raises(FlowError, match="topic alias") as caught:
        read_datagram(wire, receiver="client")
    assert caught.value.reason_code == 0x94


@pytest.mark.parametrize("name", sorted(set(PACKETS) - {"publish"}))
def test_other_packets_are_refused(name: str) -> None:
    packet = PACKETS[name]
    for receiver in ("client", "server"):
        with pytest.raises(ProtocolError) as caught:
            read_datagram(packet.encode(5), receiver=receiver)
        assert caught.value.reason_code in {0x81, 0x82, 0x83, 0x85}


@pytest.mark.parametrize("packet", [Publish("t", b"", 1, packet_id=1), Publish("t", b"", 2, packet_id=1), PubAck(1)])
def test_what_the_draft_allows_but_this_end_does_not_take(packet: Any) -> None:
    with pytest.raises(FlowError, match="PUBLISH at QoS 0 only") as caught:
        read_datagram(packet.encode(5), receiver="server")
    assert caught.value.reason_code == 0x83


def test_what_the_draft_forbids() -> None:
    with pytest.raises(FlowError, match="PINGREQ on a datagram"):
        read_datagram(PingReq().encode(5), receiver="server")


@pytest.mark.parametrize("extra", [b"\x30", b"\x30\x04\x00\x01a\x00", b"\x00", b"\xff\xff\xff"])
def test_more_than_one_packet(extra: bytes) -> None:
    with pytest.raises(MalformedPacketError, match="instead of one"):
        read_datagram(b"\x30\x04\x00\x01a\x00" + extra, receiver="server")


@pytest.mark.parametrize("size", range(1, 6))
def test_an_incomplete_packet(size: int) -> None:
    with pytest.raises(MalformedPacketError, match="incomplete"):
        read_datagram(b"\x30\x04\x00\x01a\x00"[:size], receiver="server")


@light(200)
@given(st.one_of(st.binary(max_size=40), packets(5, "server").map(lambda packet: packet.encode(5))), st.data())
def test_hostile_datagrams_raise_only_protocol_errors(data: bytes, draw: st.DataObject) -> None:
    wire = bytearray(data)
    for _ in range(draw.draw(st.integers(0, 3)) if wire else 0):
        wire[draw.draw(st.integers(0, len(wire) - 1))] = draw.draw(st.integers(0, 255))
    try:
        read = read_datagram(wire, receiver=draw.draw(st.sampled_from(["client", "server"])))
    except ProtocolError:
        return
    assert (read.publish is not None) == (read.kind == "mqtt")
    assert read.publish is None or read.publish.qos == 0
