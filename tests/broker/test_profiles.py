"""Profiles over real QUIC: each row of the table of what EMQX does is one test, and so are the others' rules."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import pytest

import mqttquic_lab as mq
from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.server import BrokerServer
from mqttquic_lab.errors import UsageError
from mqttquic_lab.mqtt import (
    Connect,
    Disconnect,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    Subscription,
)
from mqttquic_lab.mqtt.profiles import PROFILES, profile_named
from mqttquic_lab.net.address import parse_url
from mqttquic_lab.net.certificates import Trust
from mqttquic_lab.quic import private
from mqttquic_lab.quic.client import open_quic
from tests.broker.peer import PATIENCE, Peer
from tests.helpers.quic import settle

if TYPE_CHECKING:
    from mqttquic_lab.mqtt.profiles import ProfileName
    from mqttquic_lab.quic.connection import QuicConnection


class Lab:
    """A broker on the loopback and raw QUIC connections to it."""

    def __init__(self, server: BrokerServer) -> None:
        self.server = server
        self.connections: list[QuicConnection] = []

    async def attach(self, **options: Any) -> Peer:
        """Return a connection that has not said CONNECT."""
        trust = Trust(ca_file=self.server.ca_file)
        connection = await open_quic(parse_url(self.server.url), trust=trust, **options)
        self.connections.append(connection)
        return Peer(connection)

    async def join(self, client_id: str = "x", **connect: Any) -> Peer:
        """Return a connected client."""
        peer = await self.attach()
        assert (await peer.connect(client_id, **connect)).reason_code == 0
        return peer


MakeLab = Callable[..., Awaitable[Lab]]


@pytest.fixture
async def make_lab() -> AsyncIterator[MakeLab]:
    """Start brokers with a profile."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(profile: ProfileName, **options: Any) -> Lab:
            server = BrokerServer(BrokerConfig(profile=profile, tls=False, tcp=False, quic_port=0, **options))
            lab = Lab(await stack.enter_async_context(server))
            stack.push_async_callback(close_all, lab)
            return lab

        yield make


async def close_all(lab: Lab) -> None:
    for connection in lab.connections:
        await connection.close()


@pytest.fixture
async def emqx(make_lab: MakeLab) -> Lab:
    return await make_lab("emqx")


def quic(peer: Peer) -> QuicConnection:
    return cast("QuicConnection", peer.connection)


def publish(topic: str, payload: bytes = b"", qos: int = 0, packet_id: int | None = None) -> Publish:
    return Publish(topic, payload, qos, False, False, packet_id, {})


# --- EMQX: what it does on the wire -----------------------------------------------------------------------------------


async def test_emqx_handshake(emqx: Lab) -> None:
    peer = await emqx.join()
    parameters = private.transport_parameters(quic(peer).engine, "remote")
    assert parameters is not None
    assert (parameters.initial_max_streams_bidi, parameters.initial_max_streams_uni) == (10, 1)
    assert parameters.initial_max_data == 16 * 1024 * 1024
    assert parameters.initial_max_stream_data_bidi_remote == 64 * 1024
    assert parameters.max_datagram_frame_size is None


async def test_emqx_answers_on_the_stream_that_asked(emqx: Lab) -> None:
    control = await emqx.join()
    streams = {stream.stream.id: stream for stream in (control.open(), control.open(), control.open())}
    assert list(streams) == [4, 8, 12]
    assert await streams[4].subscribe("a", qos=1) == [1]
    streams[8].send(publish("a", b"0"))
    assert (await streams[4].message()).qos == 0
    streams[12].send(publish("a", b"1", 1, 1))
    await streams[12].expect(PubAck)
    assert (await streams[4].message()).payload == b"1"
    assert not streams[8].inbox
    assert await control.sync() == []


@pytest.mark.parametrize(
    "data",
    [Connect("y", 5, True, 0, None, None, None, {}).encode(5), Disconnect(0, {}).encode(5), b"\xf0\x02\x18\x00"],
    ids=["CONNECT", "DISCONNECT", "type 15"],
)
async def test_emqx_resets_data_streams_that_break_rules(emqx: Lab, data: bytes) -> None:
    control = await emqx.join()
    stream, other = control.open(), control.open()
    stream.send(data)
    assert await stream.was_reset() == 0
    assert await other.publish("a", b"", 1) == 0x10
    assert await control.sync() == []


async def test_emqx_answers_fin_with_fin(emqx: Lab) -> None:
    control = await emqx.join()
    stream = control.open()
    await stream.subscribe("a")
    stream.stream.end()
    assert await stream.was_reset() is None
    assert emqx.server.stats().subscriptions == 0
    assert await control.publish("a", b"", 1) == 0x10


async def test_emqx_delivers_on_after_a_reset(emqx: Lab) -> None:
    control = await emqx.join()
    stream = control.open()
    await stream.subscribe("a")
    quic(control).engine.reset_stream(cast("int", stream.stream.id), 0)  # RESET_STREAM without STOP_SENDING
    quic(control).transmit()
    await control.publish("a", b"still", 1)
    assert (await stream.message()).payload == b"still"


async def test_emqx_stops_delivering_when_told_to_stop(emqx: Lab) -> None:
    control = await emqx.join()
    stream = control.open()
    await stream.subscribe("a")
    stream.stream.reset(0)
    await emqx.server.wait_for(lambda: emqx.server.stats().subscriptions == 0)
    assert await control.sync() == []


async def test_emqx_closes_on_data_before_connect(emqx: Lab) -> None:
    peer = await emqx.attach()
    stream = peer.open()
    stream.send(publish("a", b"x"))
    await peer.closed()
    info = quic(peer).close_info
    assert info is not None
    assert info.error_code == 0
    assert emqx.server.stats().messages_in == 0


async def test_emqx_stops_unidirectional_streams(emqx: Lab) -> None:
    control = await emqx.join()
    stream = control.open(unidirectional=True)
    stream.send(publish("a", b"x"))
    assert await stream.was_reset() == 0
    assert await control.sync() == []
    assert emqx.server.stats().messages_in == 0


@pytest.mark.parametrize("how", ["garbage", "fin", "disconnect"])
async def test_emqx_ends_only_stream_0(emqx: Lab, how: str) -> None:
    control = await emqx.join()
    stream = control.open()
    await stream.subscribe("a")
    if how == "fin":
        control.stream.end()
    else:
        control.send(b"\xff\xff\xff\xff\xff" if how == "garbage" else Disconnect(0, {}))
    assert await control.was_reset() is None
    await quic(control).ping()
    assert not quic(control).is_closed
    assert emqx.server.clients() == []
    assert emqx.server.stats().subscriptions == 0
    assert await control.open().send_and_reset(publish("a")) == 0


async def test_emqx_ends_only_stream_0_when_keep_alive_expires(emqx: Lab) -> None:
    control = await emqx.join(keepalive=1)
    assert await control.was_reset() is None
    await quic(control).ping()
    assert emqx.server.stats().keepalive_timeouts == 1


async def test_emqx_keep_alive_counts_packets_on_any_stream(emqx: Lab) -> None:
    control = await emqx.join(keepalive=1)
    stream = control.open()
    for number in range(1, 9):
        assert await stream.publish("a", b"", 1, packet_id=number) == 0x10
        await asyncio.sleep(0.25)  # the time that passes is what is tested
    assert emqx.server.stats().keepalive_timeouts == 0


# --- EMQX: limits and per-stream state --------------------------------------------------------------------------------


async def test_emqx_an_eleventh_stream_waits_for_credit(emqx: Lab) -> None:
    control = await emqx.join()
    streams = [control.open() for _ in range(9)]
    assert quic(control).stream_credit() == 0
    with pytest.raises(UsageError, match="no more streams"):
        control.open()
    for stream in streams:
        assert await stream.publish("a", b"", 1) == 0x10
    streams[0].stream.end()
    await streams[0].closed()
    await settle(lambda: quic(control).stream_credit() == 1)
    assert await control.open().publish("a", b"", 1) == 0x10


async def test_emqx_why_the_unsubscribe_of_nanomq_fails(emqx: Lab) -> None:
    """NanoMQ's client subscribes on a data stream and sends all else on the control stream."""
    control = await emqx.join()
    data = control.open()
    await data.subscribe("a")
    assert await control.unsubscribe("a") == [0x11]
    await control.publish("a", b"still", 1)
    assert (await data.message()).payload == b"still"
    assert profile_named("emqx").refusal("unsubscribe_on_other_stream") is not None


async def test_emqx_same_packet_id_on_two_streams(emqx: Lab) -> None:
    control = await emqx.join()
    streams = [control.open(), control.open()]
    for stream in streams:
        await stream.subscribe("a", qos=2)
    await control.publish("a", b"x", 1)
    copies = [await stream.message(acknowledge=False) for stream in streams]
    assert [copy.packet_id for copy in copies] == [1, 1]
    streams[0].send(PubAck(1, 0, {}))
    await emqx.server.wait_for(lambda: emqx.server.clients()[0].inflight == 1)
    streams[1].send(PubAck(1, 0, {}))
    await emqx.server.wait_for(lambda: emqx.server.clients()[0].inflight == 0)


async def test_emqx_pingreq_on_a_data_stream_gets_no_pingresp(emqx: Lab) -> None:
    control = await emqx.join()
    stream = control.open()
    stream.send(PingReq())
    assert await stream.closed() == []
    assert await control.sync() == []


# --- rocketmq ---------------------------------------------------------------------------------------------------------


async def test_rocketmq_asks_for_a_retry(make_lab: MakeLab) -> None:
    lab = await make_lab("rocketmq")
    peer = await lab.join()
    assert peer.connection.refresh_report().retry


async def test_rocketmq_every_stream_needs_its_own_connect(make_lab: MakeLab) -> None:
    lab = await make_lab("rocketmq")
    first = await lab.join("first")
    stream = first.open()
    stream.send(publish("a", b"x", 1, 1))
    assert await stream.closed() == []  # the first packet must be CONNECT
    second = first.open()
    assert (await second.connect("second")).reason_code == 0
    await second.subscribe("a")
    await first.publish("a", b"x", 1)
    assert (await second.message()).payload == b"x"
    assert {client.client_id for client in lab.server.clients()} == {"first", "second"}
    await second.leave()
    assert await first.sync() == []
    assert [client.client_id for client in lab.server.clients()] == ["first"]


async def test_rocketmq_serves_no_unidirectional_streams(make_lab: MakeLab) -> None:
    lab = await make_lab("rocketmq")
    control = await lab.join()
    assert await control.open(unidirectional=True).send_and_reset(publish("a")) == 0


# --- mqttv5 -----------------------------------------------------------------------------------------------------------


async def test_mqttv5_delivers_on_a_stream_per_topic(make_lab: MakeLab) -> None:
    lab = await make_lab("mqttv5")
    control = await lab.join()
    await control.subscribe("a/#", qos=2)
    writer = await lab.join("writer")
    for number, topic in enumerate(("a/1", "a/2", "a/1")):
        await writer.publish(topic, b"%d" % number, number)
    one, two = await control.was_opened(), await control.was_opened()
    assert [cast("int", stream.stream.id) & 3 for stream in (one, two)] == [1, 1]
    assert (await one.message()).payload == b"0"
    second = await one.expect(Publish)
    assert (second.topic, second.payload, second.qos) == ("a/1", b"2", 2)
    assert (await two.message()).topic == "a/2"
    assert one.header is not None
    assert one.header.encode() == b"\x13\x03\x41\x2c\x00"
    assert two.header is not None
    assert two.header.flow_id == 5
    assert second.packet_id is not None
    one.send(PubRec(second.packet_id, 0, {}))
    assert (await control.expect(PubRel)).packet_id == second.packet_id  # every answer comes on the control stream
    one.send(PubComp(second.packet_id, 0, {}))
    await lab.server.wait_for(lambda: all(client.inflight == 0 for client in lab.server.clients()))
    assert await control.sync() == []
    assert next(client for client in lab.server.clients() if client.client_id == "x").messages_out == 3


async def test_mqttv5_handshake(make_lab: MakeLab) -> None:
    lab = await make_lab("mqttv5")
    peer = await lab.attach(alpn=("mqtt", "MQTT-next"))
    assert peer.connection.report.alpn == "MQTT-next"  # the server's preference
    assert (await peer.connect("x")).reason_code == 0  # and no flow header on stream 0, whatever the ALPN
    parameters = private.transport_parameters(quic(peer).engine, "remote")
    assert parameters is not None
    assert (parameters.initial_max_streams_bidi, parameters.initial_max_streams_uni) == (100, 100)
    assert parameters.initial_max_stream_data_bidi_remote == 256 * 1024
    assert parameters.initial_max_stream_data_uni == 256 * 1024
    assert parameters.initial_max_data == 1024 * 1024
    assert parameters.max_idle_timeout == 60_000


async def test_mqttv5_has_64_unacknowledged_deliveries_at_most(make_lab: MakeLab) -> None:
    lab = await make_lab("mqttv5")
    control, greedy = await lab.join("x"), await lab.join("y", receive_maximum=3)
    for reader in (control, greedy):
        await reader.subscribe("a", qos=1)
    writer = await lab.join("writer")
    for number in range(70):
        await writer.publish("a", b"%d" % number, 1, packet_id=number + 1)
    waiting = {client.client_id: (client.inflight, client.queued) for client in lab.server.clients()}
    assert waiting == {"writer": (0, 0), "x": (64, 6), "y": (3, 67)}
    stream = await control.was_opened()
    assert [(await stream.message()).payload for _ in range(70)] == [b"%d" % number for number in range(70)]


async def test_mqttv5_per_publish(make_lab: MakeLab) -> None:
    lab = await make_lab("mqttv5", deliveries="per-publish")
    control = await lab.join()
    await control.subscribe("a", qos=2)
    writer = await lab.join("writer")
    for qos in (0, 1, 2):
        await writer.publish("a", b"%d" % qos, qos)
        stream = await control.was_opened()
        assert (cast("int", stream.stream.id) & 3) == (1 if qos else 3)
        message = await stream.message(acknowledge=False)
        assert (message.payload, message.qos) == (b"%d" % qos, qos)
        assert await stream.was_reset() is None  # FIN right behind the message
        assert stream.header is not None
        assert stream.header.encode() == bytes((0x13, 3 + 2 * qos)) + b"\x41\x2c\x00"
        if qos == 1:
            stream.send(PubAck(message.packet_id or 0))
        elif qos == 2:
            stream.send(PubRec(message.packet_id or 0))
            assert (await control.expect(PubRel)).packet_id == message.packet_id
            control.send(PubComp(message.packet_id or 0))
    await lab.server.wait_for(lambda: all(client.inflight == 0 for client in lab.server.clients()))
    assert next(client for client in lab.server.clients() if client.client_id == "x").messages_out == 3


async def test_mqttv5_control_only(make_lab: MakeLab) -> None:
    lab = await make_lab("mqttv5", deliveries="control-only")
    control = await lab.join()
    await control.subscribe("a", qos=1)
    control.send(publish("a", b"x", 1, 1))
    assert {(await control.next()).NAME for _ in range(2)} == {"PUBLISH", "PUBACK"}
    assert control.opened.empty()


@pytest.mark.parametrize("qos", [0, 1])
async def test_mqttv5_names_the_publisher(make_lab: MakeLab, qos: int) -> None:
    lab = await make_lab("mqttv5", deliveries="control-only")
    control, writer = await lab.join(), await lab.join("writer")
    await control.subscribe("a", qos=qos)
    await writer.publish("a", b"x", qos, user_property=[("k", "v")])
    message = await control.message()
    assert list(message.properties["user_property"]) == [("k", "v"), ("x-mqtt-client-id", "writer")]


async def test_mqttv5_obeys_disconnect_on_a_data_stream(make_lab: MakeLab) -> None:
    lab = await make_lab("mqttv5")
    control = await lab.join()
    control.open(unidirectional=True).send(Disconnect(0, {}))
    assert await closed_with(control) == 0


async def closed_with(control: Peer) -> int:
    """Return the error code with which the broker closed the connection."""
    await control.closed()
    async with asyncio.timeout(PATIENCE):
        await asyncio.shield(quic(control).closed)
    info = quic(control).close_info
    assert info is not None
    return info.error_code


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (Connect("y", 5, True, 0, None, None, None, {}).encode(5), 0xB4),
        (b"\xf7\x02xx", 0xB4),
        (PubAck(1).encode()[:-1], None),
    ],
    ids=["a second CONNECT", "garbage", "half a packet"],
)
async def test_mqttv5_close_codes_on_data_streams(make_lab: MakeLab, data: bytes, code: int | None) -> None:
    lab = await make_lab("mqttv5")
    control = await lab.join()
    stream = control.open(unidirectional=True)
    stream.send(data)
    if code is None:
        stream.stream.end()
        assert await control.sync() == []
    else:
        assert await closed_with(control) == code


@pytest.mark.parametrize(
    ("how", "code"),
    [("garbage", 0xB4), ("fin", 0), ("reset", 0xB2), ("silence", 0xB2), ("taken over", 0), ("flow header", 0xB4),
     ("no CONNECT", 0xB4)],
)  # fmt: skip
async def test_mqttv5_close_codes(make_lab: MakeLab, how: str, code: int) -> None:
    lab = await make_lab("mqttv5")
    if how in ("flow header", "no CONNECT"):
        control = await lab.attach()
        control.send(b"\x11\x00\x00" if how == "flow header" else PingReq())
    else:
        control = await lab.join(keepalive=1 if how == "silence" else 0)
        if how == "garbage":
            control.send(b"\xff\xff")
        elif how == "fin":
            control.stream.end()
        elif how == "reset":
            control.stream.reset(0)
        elif how == "taken over":
            await lab.join()
    assert await closed_with(control) == code


async def test_mqttv5_recovery_that_fails_twice(make_lab: MakeLab) -> None:
    lab = await make_lab("mqttv5")
    control = await lab.join()
    header = b"\x12\x02\x00\x02"
    assert await control.open(unidirectional=True).send_and_reset(header) == 0xB3
    control.open(unidirectional=True).send(header)
    assert await closed_with(control) == 0xB3


@pytest.mark.parametrize(
    ("header", "code"),
    [(b"\x12\x02\x00\x00", 0xBE), (b"\x14\x02", 0xBE), (b"\x11\x00\x00", 0xB5), (b"\x12\x03\x00\x01", 0xB6),
     (b"\x13\x03\x00\x01", 0xB6), (b"\x12\x02\x00\x01", None), (b"\x12\x02\x05\x01", 0xBE)],
)  # fmt: skip
async def test_mqttv5_bidirectional_streams_with_headers(make_lab: MakeLab, header: bytes, code: int | None) -> None:
    lab = await make_lab("mqttv5")
    control = await lab.join()
    assert await control.open().send_and_reset(header) == code
    assert await control.sync() == []


async def test_mqttv5_has_one_space_of_topic_aliases(make_lab: MakeLab) -> None:
    lab = await make_lab("mqttv5", deliveries="control-only")
    control = await lab.join()
    await control.subscribe("a")
    stream = control.open(unidirectional=True)
    stream.send(Publish("a", b"1", 0, False, False, None, {"topic_alias": 1}))
    assert (await control.message()).payload == b"1"
    control.send(Publish("", b"2", 0, False, False, None, {"topic_alias": 1}))
    message = await control.message()
    assert (message.topic, message.payload) == ("a", b"2")


async def test_mqttv5_holds_what_comes_before_connect(make_lab: MakeLab) -> None:
    lab = await make_lab("mqttv5")
    control = await lab.attach()
    control.open(unidirectional=True).send(publish("a", b"x", 1, 7))
    assert (await control.connect("x")).reason_code == 0
    assert (await control.expect(PubAck)).packet_id == 7


async def test_mqttv5_refuses_bidirectional_data_streams(make_lab: MakeLab) -> None:
    lab = await make_lab("mqttv5")
    control = await lab.join()
    assert await control.open().send_and_reset(publish("a", b"", 1, 1)) == 0xB5
    assert await control.sync() == []


@pytest.mark.parametrize("header", [b"", b"\x12\x02\x00\x00"], ids=["plain", "with a flow header"])
async def test_mqttv5_answers_unidirectional_streams_on_the_control_stream(make_lab: MakeLab, header: bytes) -> None:
    lab = await make_lab("mqttv5")
    control = await lab.join()
    stream = control.open(unidirectional=True)
    stream.send(header + Subscribe(3, (Subscription("a", 1, False, False, 0),), {}).encode(5))
    assert (await control.expect(SubAck)).packet_id == 3
    stream.send(publish("b", b"x", 2, 5))
    assert (await control.expect(PubRec)).packet_id == 5
    stream.send(PingReq())
    await control.expect(PingResp)
    stream.stream.end()
    control.send(PubRel(5, 0, {}))
    assert (await control.expect(PubComp)).reason_code == 0
    assert await control.unsubscribe("a") == [0x11 if header else 0]  # a flow's ended with its FIN


@pytest.mark.parametrize(
    ("header", "code"),
    [(b"\x11\x00\x00", 0xB5), (b"\x14\x02", 0xBE), (b"\x12\x03\x00\x00", 0xB6), (b"\x13\x03\x00\x00", 0xB6),
     (b"\x12\x02\x00\x03", 0xBF), (b"\x12\x02\x00\x02", 0xB3)],
)  # fmt: skip
async def test_mqttv5_refuses_headers(make_lab: MakeLab, header: bytes, code: int) -> None:
    lab = await make_lab("mqttv5")
    control = await lab.join()
    assert await control.open(unidirectional=True).send_and_reset(header) == code
    assert await control.sync() == []


async def test_mqttv5_closes_the_connection_for_garbage_on_a_data_stream(make_lab: MakeLab) -> None:
    lab = await make_lab("mqttv5")
    control = await lab.join()
    control.open(unidirectional=True).send(b"\xf7\x02xx")
    await control.closed()
    info = quic(control).close_info
    assert info is not None
    assert info.error_code == 0xB4


async def test_mqttv5_ends_who_stops_a_delivery_stream(make_lab: MakeLab) -> None:
    lab = await make_lab("mqttv5")
    control = await lab.join()
    await control.subscribe("a")
    control.send(publish("a", b"x"))
    (await control.was_opened()).stream.reset(0)
    await control.closed()
    info = quic(control).close_info
    assert info is not None
    assert info.error_code == 0xB2


async def test_mqttv5_retires_the_topic_used_longest_ago(make_lab: MakeLab) -> None:
    lab = await make_lab("mqttv5")
    control = await lab.join()
    await control.subscribe("#", qos=2)
    writer = await lab.join("writer")
    limit = profile_named("mqttv5").max_delivery_streams
    for number in range(limit + 1):
        await writer.publish(f"t/{number}", b"", 0 if number else 2)
    oldest = await control.was_opened()
    await oldest.expect(Publish)
    await oldest.closed()
    oldest.send(PubRec(1, 0, {}))  # what is acknowledged there is still read
    assert (await control.expect(PubRel)).packet_id == 1


async def test_mqttv5_retired_streams_are_bounded(make_lab: MakeLab) -> None:
    lab = await make_lab("mqttv5")
    control = await lab.join()
    await control.subscribe("#")
    writer = await lab.join("writer")
    limit = profile_named("mqttv5").max_delivery_streams
    for number in range(2 * limit + 3):
        await writer.publish(f"t/{number}", b"", 1)
    client = next(client for client in lab.server.clients() if client.client_id == "x")
    assert client.streams <= 2 * limit
    assert (client.messages_out, client.dropped) == (2 * limit + 3, 0)


async def test_a_client_that_lets_no_streams_be_opened_gets_all_on_the_control_stream(make_lab: MakeLab) -> None:
    lab = await make_lab("mqttv5")
    control = await lab.join()
    (client,) = lab.server._clients
    cast("Any", client.connection).engine._remote_max_streams_bidi = 0
    await control.subscribe("a")
    control.send(publish("a", b"x", 1, 1))
    assert {(await control.next()).NAME for _ in range(2)} == {"PUBLISH", "PUBACK"}


# --- the table --------------------------------------------------------------------------------------------------------


def test_profiles_by_name() -> None:
    assert profile_named("generic").max_data_streams == 127
    assert profile_named("emqx").max_data_streams == 9
    assert profile_named("rocketmq").max_data_streams == 0
    with pytest.raises(UsageError, match="tuning="):
        profile_named("loopback")
    with pytest.raises(UsageError, match="one of generic, emqx, rocketmq, mqttv5"):
        profile_named("mosquitto")
    with pytest.raises(UsageError, match="profile"):
        BrokerConfig(profile=cast("Any", "nanomq"))


def test_every_profile_names_its_sources() -> None:
    assert all(profile.sources and profile.notes for profile in PROFILES.values())


@pytest.mark.parametrize(
    ("name", "action", "says"),
    [
        ("emqx", "unidirectional_stream", r"STOP_SENDING\(0\)"),
        ("emqx", "unsubscribe_on_other_stream", "0x11"),
        ("emqx", "flows", "MQTT-next"),
        ("emqx", "data_stream", None),
        ("emqx", "enhanced_authentication", None),
        ("rocketmq", "data_stream", "its own CONNECT"),
        ("mqttv5", "data_stream", "0xB5: use unidirectional"),
        ("mqttv5", "subscribe_on_data_stream", None),
        ("rocketmq", "subscribe_on_data_stream", "control stream"),
        ("rocketmq", "enhanced_authentication", "AUTH"),
        ("rocketmq", "early_data", "0-RTT"),
        ("mqttv5", "unsubscribe_on_other_stream", None),
        ("mqttv5", "flows", None),
        ("generic", "unidirectional_stream", None),
        ("generic", "ping_on_data_stream", "control stream only"),
    ],
)
def test_what_a_profile_refuses(name: str, action: Any, says: str | None) -> None:
    refusal = profile_named(name).refusal(action)
    if says is None:
        assert refusal is None
    else:
        assert refusal is not None
        assert refusal.startswith(profile_named(name).title)
        assert re.search(says, refusal)


def test_an_action_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match="no action 'fly'"):
        profile_named("emqx").refusal(cast("Any", "fly"))


def test_start_broker_takes_a_profile() -> None:
    with mq.start_broker(profile="emqx", quic_port=0, tls=False, tcp=False) as broker, mq.connect(broker) as session:
        feed = session.subscribe("a", qos=1)
        session.publish("a", b"x", qos=1)
        feed.wait(1)
    with pytest.raises(UsageError, match="no profile 'nanomq'"):
        mq.start_broker(profile="nanomq")


async def test_all_profiles_serve_a_single_stream(make_lab: MakeLab) -> None:
    for name in PROFILES:
        lab = await make_lab(cast("Any", name))
        peer = await lab.join()
        assert await peer.subscribe("b") == [0]
        async with asyncio.timeout(PATIENCE):
            await peer.publish("a", b"", 2, packet_id=4)
