"""Flows that the broker opens: ``deliveries="per-topic"`` and ``"per-publish"`` for clients that speak MQTT-next."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.server import BrokerServer
from mqttquic_lab.broker.server_flows import MAX_RECOVERIES, ServerFlowStreams
from mqttquic_lab.errors import UsageError
from mqttquic_lab.mqtt import PubAck, PubComp, Publish, PubRec, PubRel, Subscribe, Subscription
from mqttquic_lab.mqtt.flow_codes import ConnectionCode, StreamCode
from mqttquic_lab.mqtt.flow_header import FlowFlags, FlowHeader, FlowType
from mqttquic_lab.net.address import parse_url
from mqttquic_lab.net.certificates import Trust
from mqttquic_lab.quic.client import open_quic
from mqttquic_lab.session.client import AsyncSession
from tests.broker.peer import Peer
from tests.broker.test_flows import closed_with, flowing, start

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.broker.conftest import Bench, MakeBench
    from tests.helpers.memory import MemoryConnection


@pytest.fixture
async def topical(make_bench: MakeBench) -> Bench:
    """A broker that opens a flow per topic."""
    return await make_bench(deliveries="per-topic")


@pytest.fixture
async def single(make_bench: MakeBench) -> Bench:
    """A broker that opens a flow per message."""
    return await make_bench(deliveries="per-publish")


async def reader_and_writer(bench: Bench, *filters: str, qos: int = 2) -> tuple[Peer, Peer]:
    reader = await flowing(bench)
    await reader.subscribe(*(filters or ("#",)), qos=qos)
    return reader, await bench.join("writer")


def broker_side(bench: Bench, reader: Peer) -> MemoryConnection:
    """Return the broker's end of a connection: it opens the streams."""
    return cast("MemoryConnection", reader.connection).peer


def grant(bench: Bench, reader: Peer, credit: int, *, unidirectional: bool = False) -> None:
    broker_side(bench, reader).grant(credit, unidirectional=unidirectional)


def streams_of(bench: Bench, client_id: str = "x") -> ServerFlowStreams:
    (client,) = [each for each in bench.server._clients if each.session and each.session.client_id == client_id]
    return cast("ServerFlowStreams", client._streams)


async def settled(bench: Bench, condition: Callable[[], object]) -> None:
    await bench.server.wait_for(condition)


def header_of(peer: Peer) -> FlowHeader:
    assert peer.header is not None
    return peer.header


# --- a flow per topic -------------------------------------------------------------------------------------------------


async def test_each_topic_gets_a_flow(topical: Bench) -> None:
    reader, writer = await reader_and_writer(topical)
    for number, topic in enumerate(("a", "b", "a")):
        await writer.publish(topic, b"%d" % number, number)
    one, two = await reader.was_opened(), await reader.was_opened()
    assert [(await one.message()).payload for _ in range(2)] == [b"0", b"2"]
    assert (await two.message()).payload == b"1"
    flags = FlowFlags(clean=True, persistent_qos=True)
    assert header_of(one) == FlowHeader(FlowType.SERVER_DATA, 1, 1000, flags)
    assert header_of(two) == FlowHeader(FlowType.SERVER_DATA, 3, 1000, flags)
    assert await reader.sync() == []
    await settled(topical, lambda: all(client.inflight == 0 for client in topical.server.clients()))
    assert next(c for c in topical.server.clients() if c.client_id == "x").messages_out == 3


async def test_packet_identifiers_are_the_flows_own(topical: Bench) -> None:
    reader, writer = await reader_and_writer(topical)
    for topic in ("a", "b"):
        await writer.publish(topic, b"", 2)
    flows = [await reader.was_opened(), await reader.was_opened()]
    assert [(await flow.message(acknowledge=False)).packet_id for flow in flows] == [1, 1]
    for flow in flows:
        flow.send(PubRec(1))
        assert (await flow.expect(PubRel)).packet_id == 1
        flow.send(PubComp(1))
    await settled(topical, lambda: all(client.inflight == 0 for client in topical.server.clients()))


async def test_a_flow_without_a_session_to_keep_keeps_nothing(topical: Bench) -> None:
    reader = await flowing(topical, session_expiry_interval=0)
    await reader.subscribe("a")
    await reader.publish("a", b"x", 1)
    flow = await reader.was_opened()
    assert (await flow.message()).payload == b"x"
    assert header_of(flow) == FlowHeader(FlowType.SERVER_DATA, 1, 0, FlowFlags(clean=True))


async def test_subscriptions_on_data_flows_are_delivered_there(topical: Bench) -> None:
    """MQoQ 9.1.2: the subscriber expects the messages on the flow it subscribed on."""
    reader, writer = await reader_and_writer(topical, "control/#")
    data = start(reader, 2)
    await data.subscribe("data/#", qos=1)
    await writer.publish("data/a", b"x", 1)
    assert (await data.message()).payload == b"x"
    assert reader.opened.empty()


async def test_other_clients_get_everything_as_ever(topical: Bench) -> None:
    plain = await topical.join("plain", transport="quic")
    await plain.subscribe("#")
    await (await topical.join("writer")).publish("a", b"x", 1)
    assert (await plain.message()).payload == b"x"
    assert plain.opened.empty()


async def test_retained_messages_come_on_flows(topical: Bench) -> None:
    writer = await topical.join("writer")
    await writer.publish("a", b"x", 1, retain=True)
    reader = await flowing(topical)
    await reader.subscribe("a", qos=1)
    assert (await (await reader.was_opened()).message()).retain


# --- bounds -----------------------------------------------------------------------------------------------------------


async def test_without_credit_messages_come_on_the_control_flow(topical: Bench) -> None:
    reader, writer = await reader_and_writer(topical)
    grant(topical, reader, 1)
    for topic in ("a", "b", "c", "a"):
        await writer.publish(topic, b"", 1)
    flow = await reader.was_opened()
    assert [(await flow.message()).topic for _ in range(2)] == ["a", "a"]
    assert [(await reader.message()).topic for _ in range(2)] == ["b", "c"]


async def test_a_topic_keeps_its_order_when_it_moves_to_a_flow(topical: Bench) -> None:
    reader, writer = await reader_and_writer(topical)
    grant(topical, reader, 0)
    reader.stream.pause_reading()
    await writer.publish("a", b"1", 1)
    grant(topical, reader, 5)
    await writer.publish("a", b"2", 1)  # the first one has not been taken yet
    reader.stream.resume_reading()
    assert [(await reader.message()).payload for _ in range(2)] == [b"1", b"2"]
    await writer.publish("a", b"3", 1)
    assert (await (await reader.was_opened()).message()).payload == b"3"


async def test_the_topic_used_longest_ago_makes_room(topical: Bench) -> None:
    reader, writer = await reader_and_writer(topical)
    streams_of(topical)._bound = 2
    flows: list[Peer] = []
    for topic in ("a", "b"):
        await writer.publish(topic, b"", 1)
        flows.append(await reader.was_opened())
        await flows[-1].message()
    await writer.publish("a", b"", 0)
    await flows[0].message()
    await writer.publish("c", b"", 1)
    assert await flows[1].was_reset() is None  # FIN: the graceful end
    flows[1].stream.end()
    third = await reader.was_opened()
    assert (await third.message()).topic == "c"
    await settled(topical, lambda: len(streams_of(topical)) == 2)
    assert {flow.id for flow in streams_of(topical).book.table if not flow.is_control} == {1, 5}


async def test_a_busy_flow_makes_no_room(topical: Bench) -> None:
    reader, writer = await reader_and_writer(topical)
    streams_of(topical)._bound = 1
    await writer.publish("a", b"1", 1)
    flow = await reader.was_opened()
    await flow.message(acknowledge=False)
    await writer.publish("b", b"2", 1)
    assert (await reader.message()).payload == b"2"
    flow.send(PubAck(1))
    await settled(topical, lambda: next(c for c in topical.server.clients() if c.client_id == "x").inflight == 0)
    await writer.publish("b", b"3", 1)
    assert (await (await reader.was_opened()).message()).payload == b"3"


async def test_a_client_that_answers_no_fin_is_not_waited_for_forever(topical: Bench) -> None:
    reader, writer = await reader_and_writer(topical)
    streams_of(topical)._bound = 1
    flows = []
    for topic in ("a", "b", "c"):
        await writer.publish(topic, b"", 1)
        flows.append(await reader.was_opened())
        await flows[-1].message()
    assert await flows[0].was_reset() == StreamCode.FLOW_CANCELLED
    assert len(streams_of(topical)) == 2  # "b" waits for FIN


async def test_as_many_flows_as_the_table_takes(topical: Bench) -> None:
    reader, writer = await reader_and_writer(topical)
    streams_of(topical).book.table.max_flows = 2  # the control flow and one more
    for topic in ("a", "b"):
        await writer.publish(topic, b"", 1)
    assert (await (await reader.was_opened()).message()).topic == "a"
    assert (await reader.message()).topic == "b"


# --- recovery ---------------------------------------------------------------------------------------------------------


async def test_flows_are_recovered_on_the_next_connection(topical: Bench) -> None:
    reader, writer = await reader_and_writer(topical)
    await writer.publish("a", b"1", 1)
    await writer.publish("b", b"2", 2)
    one, two = await reader.was_opened(), await reader.was_opened()
    await one.message(acknowledge=False)
    await two.message(acknowledge=False)
    two.send(PubRec(1))
    await two.expect(PubRel)
    await reader.vanish()
    await writer.publish("a", b"3", 1)
    await writer.publish("c", b"4", 1)
    again = await flowing(topical, clean_start=False)
    flows = {header_of(flow).flow_id: flow for flow in await opened(again, 3)}
    assert sorted(flows) == [1, 3, 5]
    assert not header_of(flows[1]).flags.clean
    assert not header_of(flows[3]).flags.clean
    assert header_of(flows[5]).flags.clean
    first, second = await flows[1].message(), await flows[1].message()
    assert (first.payload, first.dup, first.packet_id) == (b"1", True, 1)
    assert (second.payload, second.dup) == (b"3", False)
    assert (await flows[3].expect(PubRel)).packet_id == 1
    flows[3].send(PubComp(1))
    assert (await flows[5].message()).payload == b"4"
    assert await again.sync() == []


async def opened(control: Peer, count: int) -> list[Peer]:
    """Return the streams that the broker opens, each with its header."""
    streams = [await control.was_opened() for _ in range(count)]
    for stream in streams:
        while stream.header is None:
            await asyncio.sleep(0)
    return streams


async def test_idle_flows_come_back_with_their_next_message(topical: Bench) -> None:
    reader, writer = await reader_and_writer(topical)
    await writer.publish("a", b"1", 1)
    await (await reader.was_opened()).message()
    await settled(topical, lambda: next(c for c in topical.server.clients() if c.client_id == "x").inflight == 0)
    await reader.vanish()
    again = await flowing(topical, clean_start=False)
    assert await again.sync() == []
    assert again.opened.empty()
    await writer.publish("a", b"2", 1)
    flow = await again.was_opened()
    assert (await flow.message()).payload == b"2"
    assert (header_of(flow).flow_id, header_of(flow).flags.clean) == (1, False)


async def test_recovery_waits_for_credit(topical: Bench) -> None:
    reader, writer = await reader_and_writer(topical)
    await writer.publish("a", b"1", 1)
    await (await reader.was_opened()).message(acknowledge=False)
    await reader.vanish()
    again = topical.attach(transport="quic", alpn="MQTT-next")
    again.send(FlowHeader.control().encode())
    grant(topical, again, 0)
    await again.connect("x", clean_start=False, session_expiry_interval=1000)
    await writer.publish("a", b"2", 1)
    assert await again.sync() == []
    grant(topical, again, 1)
    flow = await again.was_opened()
    first, second = await flow.message(), await flow.message()
    assert (first.payload, first.dup, second.payload) == (b"1", True, b"2")


async def test_the_next_connection_may_be_another_transport(topical: Bench) -> None:
    reader, writer = await reader_and_writer(topical)
    await writer.publish("a", b"1", 1)
    await writer.publish("b", b"2", 2)
    for _ in range(2):
        await (await reader.was_opened()).message(acknowledge=False)
    await reader.vanish()
    await writer.publish("c", b"3", 1)
    over_tls = await topical.join("x", transport="tls", clean_start=False, session_expiry_interval=1000)
    got = [await over_tls.message(), await over_tls.message()]
    assert sorted(message.payload for message in got) == [b"1", b"3"]
    # "2" may have been taken, and its flow knows: on another stream it could arrive twice.
    assert await over_tls.sync() == []
    await over_tls.vanish()
    again = await flowing(topical, clean_start=False)
    flow = await again.was_opened()
    message = await flow.message()
    assert (message.payload, message.dup, header_of(flow).flow_id) == (b"2", True, 3)


async def test_a_stream_that_the_client_resets_is_replaced(topical: Bench) -> None:
    reader, writer = await reader_and_writer(topical)
    await writer.publish("a", b"1", 2)
    flow = await reader.was_opened()
    await flow.message(acknowledge=False)
    flow.stream.reset(StreamCode.FLOW_PACKET_CANCELLED)
    again = await reader.was_opened()
    message = await again.message()
    assert (message.payload, message.dup, header_of(again).flow_id) == (b"1", True, 1)
    assert not header_of(again).flags.clean
    await writer.publish("a", b"2", 1)
    assert (await again.message()).payload == b"2"


async def test_a_client_that_resets_every_time_gets_it_on_the_control_flow(topical: Bench) -> None:
    reader, writer = await reader_and_writer(topical)
    await writer.publish("a", b"1", 1)
    for _ in range(MAX_RECOVERIES + 1):
        (await reader.was_opened()).stream.reset(StreamCode.FLOW_PACKET_CANCELLED)
    message = await reader.message()
    assert (message.payload, message.dup) == (b"1", False)
    await settled(topical, lambda: all(client.inflight == 0 for client in topical.server.clients()))


@pytest.mark.parametrize("code", [StreamCode.SERVER_PUSH_NOT_WELCOME, StreamCode.FLOW_REFUSED])
async def test_a_client_that_wants_no_flows_of_ours(topical: Bench, code: StreamCode) -> None:
    reader, writer = await reader_and_writer(topical)
    await writer.publish("a", b"1", 1)
    (await reader.was_opened()).stream.reset(code)
    assert (await reader.message()).payload == b"1"
    await writer.publish("b", b"2", 1)
    assert (await reader.message()).payload == b"2"
    assert reader.opened.empty()


async def test_a_cancelled_flow_takes_no_message_with_it(topical: Bench) -> None:
    reader, writer = await reader_and_writer(topical)
    await writer.publish("a", b"1", 1)
    flow = await reader.was_opened()
    await flow.message(acknowledge=False)
    flow.stream.reset(StreamCode.FLOW_CANCELLED)
    message = await next_anywhere(reader)
    assert (message.payload, message.dup) == (b"1", False)
    assert topical.server.stats().dropped_session == 0


async def next_anywhere(control: Peer) -> Publish:
    """Return the next message, on the control flow or a new one."""
    on_control, stream = asyncio.ensure_future(control.message()), asyncio.ensure_future(control.was_opened())
    await asyncio.wait([on_control, stream], return_when=asyncio.FIRST_COMPLETED)
    if on_control.done():
        stream.cancel()
        return on_control.result()
    on_control.cancel()
    return await stream.result().message()


async def test_a_flow_is_taken_over_by_a_new_stream(topical: Bench) -> None:
    reader, writer = await reader_and_writer(topical)
    await writer.publish("a", b"1", 1)
    old = await reader.was_opened()
    await old.message(acknowledge=False)
    streams = streams_of(topical)
    streams._attach_flow(streams.book.topics["a"])
    new = await reader.was_opened()
    message = await new.message()
    assert (message.payload, message.dup, header_of(new).flow_id) == (b"1", True, 1)
    assert await old.was_reset() == StreamCode.FLOW_PACKET_CANCELLED
    await writer.publish("a", b"2", 1)
    assert (await new.message()).payload == b"2"


# --- errors -----------------------------------------------------------------------------------------------------------


async def a_flow(bench: Bench) -> tuple[Peer, Peer]:
    reader, writer = await reader_and_writer(bench)
    await writer.publish("a", b"1", 1)
    flow = await reader.was_opened()
    await flow.message(acknowledge=False)
    return reader, flow


async def test_only_the_owner_ends_a_flow(topical: Bench) -> None:
    reader, flow = await a_flow(topical)
    flow.stream.end()
    assert await closed_with(reader) == ConnectionCode.PROTOCOL_L0


async def test_no_flow_state_may_be_said_only_if_asked_for(topical: Bench) -> None:
    reader, flow = await a_flow(topical)
    flow.stream.reset(StreamCode.NO_FLOW_STATE)
    assert await closed_with(reader) == ConnectionCode.PROTOCOL_L0


@pytest.mark.parametrize(
    "data", [b"\xf7\x00", Subscribe(1, (Subscription("b"),)).encode(5)], ids=["malformed", "SUBSCRIBE"]
)
async def test_an_error_on_a_flow_of_ours_costs_the_stream(topical: Bench, data: bytes) -> None:
    reader, flow = await a_flow(topical)
    flow.send(data)
    assert await flow.was_reset() == StreamCode.FLOW_PACKET_CANCELLED
    again = await reader.was_opened()
    message = await again.message()
    assert (message.payload, message.dup) == (b"1", True)
    assert topical.server.stats().stream_errors == 1


async def test_pings_and_messages_on_a_flow_of_ours(topical: Bench) -> None:
    """MQoQ 9.19 lets the client publish there."""
    reader, flow = await a_flow(topical)
    assert await flow.publish("a", b"2", 1) == 0
    assert (await flow.message()).payload == b"2"
    assert await flow.sync() == []
    assert await reader.sync() == []


async def test_deliveries_must_fit_the_profile() -> None:
    with pytest.raises(UsageError, match="'subscribing-stream' or 'per-topic' or 'per-publish'"):
        BrokerConfig(deliveries="control-only")
    with pytest.raises(UsageError, match="profile='emqx'"):
        BrokerConfig(profile="emqx", deliveries="per-topic")


# --- a flow per message -----------------------------------------------------------------------------------------------


async def test_each_message_gets_a_flow(single: Bench) -> None:
    reader, writer = await reader_and_writer(single)
    for qos in (0, 1, 2):
        await writer.publish("a", b"%d" % qos, qos)
    flows = await opened(reader, 3)
    assert [cast("int", flow.stream.id) & 2 for flow in flows] == [2, 0, 0]
    assert [header_of(flow).flow_id for flow in flows] == [1, 3, 5]
    for number, flow in enumerate(flows):
        message = await flow.message()
        assert (message.payload, message.qos) == (b"%d" % number, number)
        assert await flow.was_reset() is None
        if number:
            flow.stream.end()
    await settled(single, lambda: len(streams_of(single).book.table) == 1)
    client = next(c for c in single.server.clients() if c.client_id == "x")
    assert (client.streams, client.inflight, client.messages_out) == (0, 0, 3)
    assert streams_of(single).book.ours == 0


async def test_single_messages_are_recovered(single: Bench) -> None:
    reader, writer = await reader_and_writer(single)
    for number in range(3):
        await writer.publish("a", b"%d" % number, 2)
    for flow in await opened(reader, 3):
        await flow.message(acknowledge=header_of(flow).flow_id == 1)
    await settled(single, lambda: next(c for c in single.server.clients() if c.client_id == "x").inflight == 2)
    await reader.vanish()
    again = await flowing(single, clean_start=False)
    flows = {header_of(flow).flow_id: flow for flow in await opened(again, 3)}
    assert header_of(flows[1]).flags.discards  # its exchange was over: MQoQ 9.16
    for flow_id in (3, 5):
        assert (await flows[flow_id].message()).dup
        assert await flows[flow_id].was_reset() is None


async def test_single_messages_are_bounded(single: Bench) -> None:
    reader, writer = await reader_and_writer(single)
    streams_of(single)._bound = 2
    grant(single, reader, 1, unidirectional=True)
    for number in range(4):
        await writer.publish("a", b"%d" % number, 1)
    for number in range(3):
        await writer.publish("b", b"%d" % number)
    await opened(reader, 3)
    assert [(await reader.message()).payload for _ in range(4)] == [b"2", b"3", b"1", b"2"]


async def test_a_message_that_the_client_does_not_take(single: Bench) -> None:
    reader = await flowing(single, maximum_packet_size=40)
    await reader.subscribe("#", qos=1)
    for qos in (0, 1):
        await reader.publish("a", bytes(100), qos)
    assert single.server.stats().dropped_size == 2
    for flow in await opened(reader, 1):
        assert await flow.was_reset() is None
        flow.stream.end()
    await settled(single, lambda: streams_of(single).book.ours == 0)


# --- over QUIC --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deliveries", ["per-topic", "per-publish"])
async def test_flows_of_ours_over_quic(deliveries: Any) -> None:
    config = BrokerConfig(tls=False, tcp=False, quic_port=0, deliveries=deliveries)
    async with BrokerServer(config) as server:
        trust = Trust(ca_file=server.ca_file)
        connection = await open_quic(parse_url(server.url), trust=trust, alpn=("MQTT-next", "mqtt"))
        control = Peer(connection)
        control.send(FlowHeader.control().encode())
        await control.connect("x", session_expiry_interval=100)
        await control.subscribe("#", qos=2)
        for qos in (0, 1, 2):
            control.send(Publish(f"t/{qos}", b"x", qos, False, False, qos or None, {}))
        flows = await opened_over_quic(control, 3)
        for flow in flows:
            message = await flow.message()
            assert message.topic == f"t/{message.qos}"
        await server.wait_for(lambda: server.clients()[0].inflight == 0)
        await connection.close()


async def opened_over_quic(control: Peer, count: int) -> list[Peer]:
    return [await control.was_opened() for _ in range(count)]


@pytest.mark.parametrize("deliveries", ["per-topic", "per-publish"])
async def test_our_client_loses_nothing_over_reconnects(deliveries: Any) -> None:
    """At QoS 2, with flows that both ends opened, the connection cut in the middle of it."""
    config = BrokerConfig(tls=False, quic_port=0, tcp_port=0, deliveries=deliveries)
    async with BrokerServer(config) as server:
        ca_file = str(server.ca_file)
        reader = await AsyncSession.open(
            server.url, ca_file=ca_file, streams="flows", session_expiry_interval=100, client_id="reader"
        )
        feed = await reader.subscribe("t/#", qos=2, decode="raw")
        writer = await AsyncSession.open(server.urls["mqtt"])
        for number in range(120):
            if number % 40 == 20:
                await server.wait_for(lambda: any(each.client_id == "reader" for each in server.clients()))
                for client in server._clients:
                    if client.session is not None and client.session.client_id == "reader":
                        client.connection.abort()
            await writer.publish(f"t/{number % 7}", b"%d" % number, qos=2)
        async with asyncio.timeout(20):
            while feed.log.total < 120:
                await asyncio.sleep(0.02)
        await writer.ping()
        numbers = [int(payload) for payload in feed.log.columns_since(0, 1000).payloads]
        assert sorted(numbers) == list(range(120))
        for rest in range(7) if deliveries == "per-topic" else ():
            own = [number for number in numbers if number % 7 == rest]
            assert own == sorted(own)
        await server.wait_for(lambda: all(client.inflight == 0 for client in server.clients()))
        await reader.close()
        await writer.close()


async def test_what_a_member_did_not_take_goes_to_another_one(topical: Bench) -> None:
    """Section 4.8.2: a shared subscription's messages do not end with the session, on whatever flow they were."""
    reader = await flowing(topical)
    await reader.subscribe("$share/g/a", qos=1)
    writer = await topical.join("writer")
    await writer.publish("a", b"x", 1)
    await (await reader.was_opened()).message(acknowledge=False)
    other = await topical.join("other")
    await other.subscribe("$share/g/a", qos=1)
    await reader.vanish()
    topical.clock.advance(1001)  # the session expires
    assert (await other.message()).payload == b"x"
