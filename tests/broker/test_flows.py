"""Flows on the broker: ALPN MQTT-next with flow headers, over in-memory connections."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.server import BrokerServer
from mqttquic_lab.mqtt import (
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
from mqttquic_lab.mqtt.flow_codes import ConnectionCode, StreamCode
from mqttquic_lab.mqtt.flow_header import FlowFlags, FlowHeader, FlowType
from mqttquic_lab.net.address import parse_url
from mqttquic_lab.net.certificates import Trust
from mqttquic_lab.quic.client import open_quic
from tests.broker.peer import Peer

if TYPE_CHECKING:
    from tests.broker.conftest import Bench, MakeBench
    from tests.helpers.memory import MemoryConnection

KEEP = FlowFlags(clean=True, persistent_qos=True, persistent_subscriptions=True)
GO_ON = FlowFlags(persistent_qos=True, persistent_subscriptions=True)


def data_header(flow_id: int, flags: FlowFlags = KEEP, expire_interval: int = 100) -> bytes:
    return FlowHeader(FlowType.CLIENT_DATA, flow_id, expire_interval, flags).encode()


def publish(topic: str, payload: bytes = b"", qos: int = 0, packet_id: int | None = None) -> Publish:
    return Publish(topic, payload, qos, False, False, packet_id, {})


async def flowing(bench: Bench, client_id: str = "x", *, chunk: int | None = None, **connect: Any) -> Peer:
    """Return a client that speaks MQTT-next, connected on its control flow."""
    control = bench.attach(transport="quic", alpn="MQTT-next", chunk=chunk)
    control.send(FlowHeader.control().encode())
    connect.setdefault("session_expiry_interval", 1000)
    assert (await control.connect(client_id, **connect)).reason_code == 0
    return control


def start(control: Peer, flow_id: int, flags: FlowFlags = KEEP, expire_interval: int = 100) -> Peer:
    stream = control.open()
    stream.send(data_header(flow_id, flags, expire_interval))
    return stream


async def closed_with(control: Peer) -> int | None:
    await control.closed()
    return cast("MemoryConnection", control.connection).peer.close_code


@pytest.mark.parametrize("chunk", [None, 1, 3])
async def test_flows_carry_what_data_streams_carry(bench: Bench, chunk: int | None) -> None:
    control = await flowing(bench, chunk=chunk)
    reader, writer = start(control, 2), start(control, 4)
    assert await reader.subscribe("a", qos=2) == [2]
    assert await writer.publish("a", b"x", 2) == 0
    message = await reader.message()
    assert (message.payload, message.packet_id) == (b"x", 1)
    assert await control.sync() == []
    info = bench.server.clients()[0]
    assert (info.streams, info.subscriptions) == (2, ("a",))


async def test_pings_are_answered_on_any_flow(bench: Bench) -> None:
    control = await flowing(bench)
    stream = start(control, 2)
    stream.send(PingReq())
    await stream.expect(PingResp)


async def test_a_flow_is_recovered_after_a_reset(bench: Bench) -> None:
    control = await flowing(bench)
    stream = start(control, 2)
    await stream.subscribe("a", qos=1)
    await control.publish("a", b"1", 1)
    assert not (await stream.message(acknowledge=False)).dup
    stream.stream.reset(StreamCode.FLOW_PACKET_CANCELLED)
    await bench.server.wait_for(lambda: bench.server.clients()[0].streams == 0)
    await control.publish("a", b"2", 1)
    assert bench.server.stats().subscriptions == 1
    again = start(control, 2, GO_ON)
    first, second = await again.message(), await again.message()
    assert (first.payload, first.dup, second.payload, second.dup) == (b"1", True, b"2", False)
    await control.publish("a", b"3")
    assert (await again.message()).payload == b"3"


async def test_a_flow_is_recovered_on_a_new_connection(bench: Bench) -> None:
    control = await flowing(bench)
    stream = start(control, 2)
    await stream.subscribe("a", qos=2)
    await control.publish("a", b"1", 2)
    assert (await stream.expect(Publish)).packet_id == 1
    stream.send(PubRec(1, 0, {}))
    await stream.expect(PubRel)
    await control.vanish()
    sender = await bench.join("sender")
    await sender.publish("a", b"2", 2)
    control = await flowing(bench, clean_start=False)
    stream = start(control, 2, GO_ON)
    assert (await stream.expect(PubRel)).packet_id == 1
    stream.send(PubComp(1, 0, {}))
    assert (await stream.message()).payload == b"2"


async def test_exactly_once_holds_across_recovery(bench: Bench) -> None:
    control = await flowing(bench)
    await control.subscribe("a")
    stream = start(control, 2)
    stream.send(publish("a", b"x", 2, 9))
    await stream.expect(PubRec)
    await control.vanish()
    control = await flowing(bench, clean_start=False)
    await control.subscribe("a")
    stream = start(control, 2, GO_ON)
    stream.send(Publish("a", b"x", 2, False, True, 9, {}))
    await stream.expect(PubRec)
    stream.send(PubRel(9, 0, {}))
    await stream.expect(PubComp)
    assert await control.sync() == []  # it was delivered on the first connection


async def test_clean_discards_what_was_kept(bench: Bench) -> None:
    control = await flowing(bench)
    stream = start(control, 2)
    await stream.subscribe("a", qos=1)
    await control.publish("a", b"1", 1)
    await stream.message(acknowledge=False)
    stream.stream.reset(StreamCode.FLOW_PACKET_CANCELLED)
    await bench.server.wait_for(lambda: bench.server.clients()[0].streams == 0)
    again = start(control, 2, KEEP)
    assert await again.publish("b", b"", 1) == 0x10
    assert bench.server.stats().subscriptions == 0
    assert bench.server.stats().dropped_session == 1


async def test_flags_say_what_is_kept(bench: Bench) -> None:
    control = await flowing(bench)
    stream = start(control, 2, FlowFlags(clean=True, persistent_qos=True))
    await stream.subscribe("a", qos=1)
    await control.publish("a", b"1", 1)
    await stream.message(acknowledge=False)
    stream.stream.reset(StreamCode.FLOW_PACKET_CANCELLED)
    await bench.server.wait_for(lambda: bench.server.stats().subscriptions == 0)
    again = start(control, 2, FlowFlags(persistent_qos=True))
    assert (await again.message()).dup


async def test_state_expires(bench: Bench) -> None:
    control = await flowing(bench)
    stream = start(control, 2, expire_interval=10)
    await stream.subscribe("a", qos=1)
    stream.stream.reset(StreamCode.FLOW_PACKET_CANCELLED)
    await bench.server.wait_for(lambda: bench.server.clients()[0].streams == 0)
    bench.clock.advance(9)
    assert bench.server.stats().subscriptions == 1
    bench.clock.advance(2)
    assert bench.server.stats().subscriptions == 0
    again = start(control, 2, FlowFlags(abort_if_no_state=True))
    assert await again.was_reset() == StreamCode.NO_FLOW_STATE


async def test_recovering_twice_what_does_not_exist_closes_the_connection(bench: Bench) -> None:
    control = await flowing(bench)
    flags = FlowFlags(abort_if_no_state=True)
    assert await start(control, 2, flags).was_reset() == StreamCode.NO_FLOW_STATE
    assert await control.sync() == []
    start(control, 2, flags)
    assert await closed_with(control) == ConnectionCode.TOO_MANY_RECOVER_ATTEMPTS


async def test_recovery_without_state_starts_afresh(bench: Bench) -> None:
    control = await flowing(bench)
    assert await start(control, 2, FlowFlags()).publish("a", b"", 1) == 0x10


async def test_a_new_stream_takes_a_flow_over(bench: Bench) -> None:
    control = await flowing(bench)
    old = start(control, 2)
    await old.subscribe("a", qos=1)
    await control.publish("a", b"1", 1)
    await old.message(acknowledge=False)
    new = start(control, 2, GO_ON)
    assert await old.was_reset() == StreamCode.FLOW_PACKET_CANCELLED
    message = await new.message()
    assert (message.payload, message.dup) == (b"1", True)
    await control.publish("a", b"2", 1)
    assert (await new.message()).payload == b"2"
    assert bench.server.clients()[0].streams == 1


async def test_a_graceful_end_forgets_the_flow(bench: Bench) -> None:
    control = await flowing(bench)
    stream = start(control, 2)
    await stream.subscribe("a", qos=1)
    stream.send(publish("b", b"", 1, 5))
    stream.stream.end()
    assert (await stream.expect(PubAck)).packet_id == 5
    assert await stream.was_reset() is None
    assert bench.server.stats().subscriptions == 0
    again = start(control, 2, FlowFlags(abort_if_no_state=True))
    assert await again.was_reset() == StreamCode.NO_FLOW_STATE


async def test_an_end_inside_a_packet_keeps_the_state(bench: Bench) -> None:
    control = await flowing(bench)
    stream = start(control, 2)
    await stream.subscribe("a", qos=1)
    stream.send(b"\x30\x05\x00")
    stream.stream.end()
    assert await stream.was_reset() == StreamCode.INCOMPLETE_PACKET
    assert bench.server.stats().subscriptions == 1
    assert await start(control, 2, GO_ON).publish("a", b"", 1) == 0


async def test_an_end_inside_a_header(bench: Bench) -> None:
    control = await flowing(bench)
    stream = control.open()
    stream.send(data_header(2)[:2])
    stream.stream.end()
    assert await stream.was_reset() == StreamCode.INCOMPLETE_PACKET
    assert await control.sync() == []


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x15", StreamCode.STREAM_TYPE),
        (data_header(3), StreamCode.BAD_FLOW_ID),
        (data_header(0), StreamCode.BAD_FLOW_ID),
        (FlowHeader(FlowType.SERVER_DATA, 3).encode(), StreamCode.NOT_FLOW_OWNER),
        (data_header(2, FlowFlags(clean=True, abort_if_no_state=True)), StreamCode.DISCARD_STATE),
        (data_header(2, FlowFlags(optional_headers=True)) + b"\x00", StreamCode.OPTIONAL_HEADER),
        (FlowHeader(FlowType.USER_DEFINED, 2).encode() + b"whatever", StreamCode.FLOW_REFUSED),
        (data_header(2) + b"\xf7\x00", StreamCode.FLOW_PACKET_CANCELLED),
        (data_header(2) + Disconnect(0, {}).encode(5), StreamCode.FLOW_PACKET_CANCELLED),
    ],
)
async def test_errors_of_one_flow_leave_the_others(bench: Bench, data: bytes, code: StreamCode) -> None:
    control = await flowing(bench)
    other = start(control, 6)
    assert await other.publish("a", b"", 1) == 0x10
    stream = control.open()
    stream.send(data)
    assert await stream.was_reset() == code
    assert await other.publish("a", b"", 1) == 0x10
    assert await control.sync() == []


async def test_a_level_1_error_discards_the_state(bench: Bench) -> None:
    control = await flowing(bench)
    stream = start(control, 2)
    await stream.subscribe("a", qos=1)
    bad = start(control, 2, FlowFlags(clean=True, abort_if_no_state=True))
    assert await bad.was_reset() == StreamCode.DISCARD_STATE
    assert await stream.was_reset() == StreamCode.DISCARD_STATE
    assert bench.server.stats().subscriptions == 0


@pytest.mark.parametrize(
    "data",
    [FlowHeader.control().encode(), b"\x11\x02\x00"],
    ids=["a second control flow", "a control flow with another id"],
)
async def test_a_level_0_error_closes_the_connection(bench: Bench, data: bytes) -> None:
    control = await flowing(bench)
    control.open().send(data)
    assert await closed_with(control) == ConnectionCode.PROTOCOL_L0
    assert bench.server.clients() == []


async def test_the_first_stream_must_be_the_control_flow(bench: Bench) -> None:
    peer = bench.attach(transport="quic", alpn="MQTT-next")
    peer.send(data_header(2))
    await peer.closed()
    assert bench.server.stats().protocol_errors == 1


async def test_a_client_of_mqttv5_has_no_header_on_the_control_stream(bench: Bench) -> None:
    """It speaks MQTT-next, but wants every answer on the control stream."""
    control = bench.attach(transport="quic", alpn="MQTT-next")
    stream = control.open(unidirectional=True)
    stream.send(b"\x12\x02\x00\x00")
    stream.send(Subscribe(1, (Subscription("a", 2, False, False, 0),), {}))
    for _ in range(5):
        await asyncio.sleep(0)
    assert (await control.connect("x")).reason_code == 0
    assert (await control.expect(SubAck)).packet_id == 1
    stream.send(publish("a", b"x", 1, 4))
    assert (await control.expect(PubAck)).packet_id == 4
    message = await control.message()
    assert (message.payload, message.qos) == (b"x", 1)


async def test_unidirectional_flows_publish_at_qos_0(bench: Bench) -> None:
    control = await flowing(bench)
    await control.subscribe("a")
    stream = control.open(unidirectional=True)
    stream.send(data_header(2, FlowFlags(clean=True)))
    stream.send(publish("a", b"x"))
    stream.stream.end()
    assert (await control.message()).payload == b"x"
    await bench.server.wait_for(lambda: bench.server.clients()[0].streams == 0)
    stream = control.open(unidirectional=True)
    stream.send(data_header(4, FlowFlags(clean=True)))
    stream.send(publish("a", b"x", 1, 1))  # its answer cannot return (MQoQ 9.1.2)
    await bench.server.wait_for(lambda: bench.server.stats().stream_errors == 1)
    assert await control.sync() == []


async def test_flows_wait_for_connack(make_bench: MakeBench) -> None:
    bench = await make_bench()
    control = bench.attach(transport="quic", alpn="MQTT-next")
    stream = start(control, 2)
    stream.send(Subscribe(1, (Subscription("a", 0, False, False, 0),), {}))
    for _ in range(5):
        await asyncio.sleep(0)
    assert bench.server.stats().subscriptions == 0
    control.send(FlowHeader.control().encode())
    await control.connect("x")
    await stream.expect(SubAck)


async def test_a_clean_start_forgets_all_flows(bench: Bench) -> None:
    control = await flowing(bench)
    await start(control, 2).subscribe("a", qos=1)
    await control.vanish()
    assert bench.server.stats().subscriptions == 1
    control = await flowing(bench, clean_start=True)
    assert bench.server.stats().subscriptions == 0
    again = start(control, 2, FlowFlags(abort_if_no_state=True))
    assert await again.was_reset() == StreamCode.NO_FLOW_STATE


async def test_flows_end_with_their_session(bench: Bench) -> None:
    control = await flowing(bench, session_expiry_interval=50)
    await start(control, 2, expire_interval=1000).subscribe("a", qos=1)
    await control.vanish()
    assert bench.server.stats().subscriptions == 1
    bench.clock.advance(51)
    assert (bench.server.stats().subscriptions, bench.server.stats().sessions) == (0, 0)
    assert bench.clock.pending == 0


async def test_a_detached_flow_queues_no_more_than_allowed(make_bench: MakeBench) -> None:
    bench = await make_bench(max_queued=3)
    control = await flowing(bench)
    stream = start(control, 2)
    await stream.subscribe("a", qos=1)
    stream.stream.reset(StreamCode.FLOW_PACKET_CANCELLED)
    await bench.server.wait_for(lambda: bench.server.clients()[0].streams == 0)
    for number in range(5):
        await control.publish("a", b"%d" % number, 1)
    stats = bench.server.stats()
    assert (stats.queued, stats.dropped_queue) == (3, 2)
    again = start(control, 2, GO_ON)
    assert [(await again.message()).payload for _ in range(3)] == [b"2", b"3", b"4"]


async def test_flows_over_quic() -> None:
    async with BrokerServer(BrokerConfig(tls=False, tcp=False, quic_port=0)) as server:
        trust = Trust(ca_file=server.ca_file)
        connection = await open_quic(parse_url(server.url), trust=trust, alpn=("MQTT-next", "mqtt"))
        assert connection.report.alpn == "MQTT-next"
        control = Peer(connection)
        control.send(FlowHeader.control().encode())
        await control.connect("x")
        stream = start(control, 2)
        await stream.subscribe("a", qos=1)
        await control.publish("a", b"x", 1)
        assert (await stream.message()).payload == b"x"
        stream.stream.end()
        assert await stream.was_reset() is None
        plain = await open_quic(parse_url(server.url), trust=trust)
        assert (await Peer(plain).connect("y")).reason_code == 0
        for each in (connection, plain):
            await each.close()
