"""Clients that break rules, on purpose or not: each ends alone, and nobody else notices."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.mqtt import (
    ConnAck,
    Connect,
    Disconnect,
    PingReq,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    Subscribe,
    Subscription,
    Unsubscribe,
    Will,
    encode_publish,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.broker.conftest import Bench
    from tests.broker.peer import Peer

CONNECT = Connect("hostile", keepalive=0).encode()


@pytest.fixture
async def witness(bench: Bench) -> AsyncIterator[Peer]:
    """Another client, which must still get its messages at the end of every test."""
    peer = await bench.join("witness")
    await peer.subscribe("witness", qos=1)
    yield peer
    helper = await bench.join("helper")
    await helper.publish("witness", b"still here", 1)
    assert (await peer.message()).payload == b"still here"
    assert bench.server.stats().messages_out == 1


@pytest.mark.usefixtures("witness")
@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 10,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS ClientHello on the plain port
        b"\x10\xff\xff\xff\xff\x7f",
        b"\x10\xff\xff\xff\x7f",
        b"\x1f\x02\x00\x00",
        Publish("a", b"x").encode(),
        Publish("a", b"x", 1, packet_id=1).encode(),
        Subscribe(1, (Subscription("#"),)).encode(),
        PingReq().encode(),
        Disconnect().encode(),
        ConnAck(False, 0, {}).encode(),
    ],
    ids=lambda data: data[:12].hex(),
)
async def test_what_is_no_connect_gets_no_answer(bench: Bench, data: bytes) -> None:
    peer = bench.attach()
    peer.send(data)
    assert await peer.closed() == []
    assert bench.server.stats().protocol_errors == 1
    assert bench.server.stats().sessions == 1


@pytest.mark.usefixtures("witness")
@pytest.mark.parametrize(
    ("name", "level"), [(b"MQIsdp", 3), (b"MQTT", 3), (b"MQTT", 6), (b"mqtt", 5), (b"HTTP", 4)], ids=str
)
async def test_another_protocol_is_told_so(bench: Bench, name: bytes, level: int) -> None:
    later = name == b"MQTT" and level > 5  # answered in the form of the latest version that we speak
    peer = bench.attach(5 if later else 4)
    body = len(name).to_bytes(2, "big") + name + bytes((level, 2, 0, 60, 0, 0)) + b"\0\0"
    peer.send(bytes((0x10, len(body))) + body)
    packets = await peer.closed()
    assert [packet.raw for packet in packets] == [b"\x20\x03\x00\x84\x00" if later else b"\x20\x02\x00\x01"]


@pytest.mark.usefixtures("witness")
async def test_a_bad_connect_of_5_0_is_answered(bench: Bench) -> None:
    peer = bench.attach()
    peer.send(CONNECT[:9] + bytes((CONNECT[9] | 1,)) + CONNECT[10:])
    (answer,) = await peer.closed()
    assert isinstance(answer, ConnAck)
    assert answer.reason_code == 0x81


@pytest.mark.usefixtures("witness")
async def test_a_second_connect(bench: Bench) -> None:
    peer = await bench.join("x")
    peer.send(CONNECT)
    assert [p.reason_code for p in await peer.closed() if isinstance(p, Disconnect)] == [0x82]


@pytest.mark.usefixtures("witness")
async def test_a_second_connect_of_another_protocol(bench: Bench) -> None:
    peer = await bench.join("x")
    peer.send(CONNECT.replace(b"MQTT\x05", b"MQTT\x03"))
    assert [p.reason_code for p in await peer.closed() if isinstance(p, Disconnect)] == [0x82]


@pytest.mark.usefixtures("witness")
async def test_two_connects_in_one_chunk(bench: Bench) -> None:
    peer = bench.attach()
    peer.send(CONNECT + CONNECT)
    answer, last = await peer.closed()
    assert isinstance(answer, ConnAck)
    assert isinstance(last, Disconnect)


BAD_PACKETS = {
    "reserved type": (b"\x00\x00", 0x81),
    "reserved flags": (b"\xc1\x00", 0x81),
    "QoS 3": (b"\x36\x06\x00\x01a\x00\x01\x00", 0x81),
    "packet identifier 0": (b"\x32\x06\x00\x01a\x00\x00\x00", 0x82),
    "wildcard in a topic": (b"\x30\x05\x00\x02a#\x00", 0x90),
    "invalid UTF-8": (b"\x30\x05\x00\x02\xc3\x28\x00", 0x81),
    "subscription without filter": (b"\x82\x03\x00\x01\x00", 0x82),
    "bad filter": (b"\x82\x09\x00\x01\x00\x00\x03a#b\x00", 0x8F),
    "subscription identifier in PUBLISH": (b"\x30\x06\x00\x01a\x02\x0b\x01", 0x82),
    "SUBACK": (b"\x90\x04\x00\x01\x00\x00", 0x82),
    "PINGRESP": (b"\xd0\x00", 0x82),
    "server-only reason code": (b"\xe0\x01\x8e", None),
    "huge remaining length": (b"\x30\xff\xff\xff\xff", 0x81),
    "too large": (b"\x30\xff\xff\xff\x7f", 0x95),
    "empty topic": (b"\x30\x03\x00\x00\x00", 0x82),
    "unknown alias": (b"\x30\x06\x00\x00\x03\x23\x00\x05", 0x82),
    "alias 0": (b"\x30\x07\x00\x01a\x03\x23\x00\x00", 0x94),
}


@pytest.mark.usefixtures("witness")
@pytest.mark.parametrize("name", BAD_PACKETS)
async def test_a_bad_packet_is_answered_with_its_reason(bench: Bench, name: str) -> None:
    data, code = BAD_PACKETS[name]
    peer = await bench.join("x")
    peer.send(data)
    (last,) = await peer.closed()
    assert isinstance(last, Disconnect)
    assert last.reason_code >= 0x80 if code is None else last.reason_code == code
    assert last.properties["reason_string"]
    assert bench.server.stats().protocol_errors == 1


@pytest.mark.usefixtures("witness")
@pytest.mark.parametrize("name", ["reserved type", "QoS 3", "invalid UTF-8", "PINGRESP", "huge remaining length"])
async def test_a_bad_packet_of_311_just_ends_the_connection(bench: Bench, name: str) -> None:
    peer = await bench.join("x", 4)
    peer.send(BAD_PACKETS[name][0])
    assert await peer.closed() == []


@pytest.mark.usefixtures("witness")
async def test_what_came_before_the_bad_packet_counts(bench: Bench) -> None:
    subscriber = await bench.join("s")
    await subscriber.subscribe("a")
    peer = await bench.join("x")
    peer.send(encode_publish("a", b"1") + encode_publish("a", b"2") + b"\x00\x00" + encode_publish("a", b"3"))
    await peer.closed()
    assert [packet.payload for packet in await subscriber.sync() if isinstance(packet, Publish)] == [b"1", b"2"]
    bench.server.counters.messages_out -= 2  # the fixture counts its own


@pytest.mark.usefixtures("witness")
async def test_no_connect_in_time(bench: Bench) -> None:
    silent, half = bench.attach(), bench.attach()
    seen = bench.server.stats().bytes_in
    half.send(CONNECT[:-2])
    await bench.server.wait_for(lambda: bench.server.stats().bytes_in > seen)
    bench.clock.advance(9.9)
    assert bench.server.stats().connections == 3
    bench.clock.advance(0.1)
    for peer in (silent, half):
        assert await peer.closed() == []
    assert bench.server.stats().connect_timeouts == 2


@pytest.mark.usefixtures("witness")
async def test_half_a_packet_and_then_nothing(bench: Bench) -> None:
    subscriber = await bench.join("s")
    await subscriber.subscribe("a")
    peer = await bench.join("x")
    peer.send(encode_publish("a", bytes(1000))[:-1])
    await peer.vanish()
    await bench.server.wait_for(lambda: len(bench.server.clients()) == 2)
    assert await subscriber.sync() == []


@pytest.mark.usefixtures("witness")
async def test_a_connect_that_goes_on_and_on(bench: Bench) -> None:
    peer = bench.attach()
    peer.send(b"\x10\x80\x80\xc0\x07" + b"\x00\x04MQTT\x05\x02\x00\x3c" + bytes(600_000))
    await peer.closed()
    assert bench.server.stats().bytes_in < 700_000


@pytest.mark.usefixtures("witness")
@pytest.mark.parametrize(
    "packet", [PubAck(77), PubRec(77), PubRel(77), PubComp(77), Unsubscribe(5, ("never",))], ids=lambda p: p.NAME
)
async def test_acknowledgements_for_nothing_do_no_harm(bench: Bench, packet: PubAck) -> None:
    peer = await bench.join("x")
    peer.send(packet)
    await peer.sync()


@pytest.mark.usefixtures("witness")
async def test_the_wrong_acknowledgement_is_a_protocol_error(bench: Bench) -> None:
    peer = await bench.join("x")
    await peer.subscribe("a", qos=2)
    peer.send(Publish("a", b"", 1, packet_id=1))
    await peer.expect(PubAck)
    message = await peer.message(acknowledge=False)
    assert message.packet_id is not None
    peer.send(PubRec(message.packet_id))
    assert [p.reason_code for p in await peer.closed() if isinstance(p, Disconnect)] == [0x82]
    bench.server.counters.messages_out -= 1


@pytest.mark.usefixtures("witness")
async def test_random_bytes(bench: Bench) -> None:
    """Whatever comes, the broker neither raises nor hangs."""
    chance = random.Random(7)
    connect = Connect("", keepalive=0).encode()
    samples = [
        encode_publish("a/b", b"payload", 1, packet_id=3, properties={"content_type": "t", "topic_alias": 1}),
        Subscribe(1, (Subscription("a/#", 1), Subscription("$share/g/b", 0)), {"subscription_identifier": 1}).encode(),
        Connect("w", will=Will("t", b"p"), properties={"session_expiry_interval": 5}).encode(),
        Disconnect(0, {"reason_string": "x"}).encode(),
        Unsubscribe(1, ("a/#",)).encode(),
        PubRel(1).encode(),
    ]
    for round_number in range(300):
        peer = bench.attach(chunk=chance.choice((None, 1, 7)))
        data = bytearray(connect if round_number % 3 else b"")
        for _ in range(3):
            sample = bytearray(chance.choice(samples))
            for _ in range(chance.randrange(3)):
                sample[chance.randrange(len(sample))] = chance.randrange(256)
            data += sample
        peer.send(bytes(data))
        peer.connection.control.end()
        async with asyncio.timeout(10):
            await peer.connection.control.connection.closed
    await bench.server.wait_for(lambda: bench.server.stats().connections == 1)
    bench.server.counters.messages_out = 0
