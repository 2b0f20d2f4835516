"""Flows packet by packet: headers, books of their own, ends, and the three error levels of the MQoQ draft."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.errors import (
    ConnectError,
    DisconnectedError,
    LabError,
    StreamClosedError,
    StreamLimitError,
    UsageError,
)
from mqttquic_lab.mqtt import (
    CONTROL_FLAGS,
    ConnAck,
    Disconnect,
    FlowFlags,
    FlowHeader,
    FlowType,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    UnsubAck,
    Unsubscribe,
)
from mqttquic_lab.mqtt.flow_codes import ConnectionCode, StreamCode
from mqttquic_lab.session import AsyncSession
from tests.helpers.memory import memory_pair
from tests.session.scripted import hang
from tests.session.scripted_flows import FlowsBroker, opened_flow, scripted_flows

if TYPE_CHECKING:
    from mqttquic_lab.session import AsyncFeed, AsyncStream
    from tests.session.scripted_flows import ScriptedFlow

SUBSCRIBES = FlowFlags(persistent_subscriptions=True)
EXPLICIT = FlowFlags(clean=True, persistent_qos=True, persistent_subscriptions=True)


def message(topic: str, payload: bytes = b"", qos: int = 0, packet_id: int | None = None, **more: Any) -> Publish:
    return Publish(topic, payload, qos, False, more.pop("dup", False), packet_id, more)


async def subscribed(stream: AsyncStream, end: ScriptedFlow, *args: Any, **options: Any) -> AsyncFeed:
    asking = asyncio.create_task(stream.subscribe(*args, **options))
    await end.grant()
    return await hang(asking)


# Headers and books


async def test_headers_as_the_draft_wants_them() -> None:
    async with scripted_flows() as (session, broker):
        assert broker.control_header == FlowHeader(FlowType.CONTROL, 0, flags=CONTROL_FLAGS)
        _, one = await opened_flow(session, broker)
        assert one.header == FlowHeader(FlowType.CLIENT_DATA, 2, 300, EXPLICIT)
        _, two = await opened_flow(
            session, broker, persistent_qos=False, persistent_topic_alias=True, expire_interval="1h", err_tolerance=1
        )
        flags = FlowFlags(clean=True, err_tolerance=1, persistent_topic_alias=True, persistent_subscriptions=True)
        assert two.header == FlowHeader(FlowType.CLIENT_DATA, 4, 3600, flags)
        uni, three = await opened_flow(session, broker, unidirectional=True)
        assert (uni.id, three.header) == (2, FlowHeader(FlowType.CLIENT_DATA, 6, 300, FlowFlags(clean=True)))
        await hang(session.publish("t", "x"))
        topic = await broker.flow(12)
        assert topic.header == FlowHeader(FlowType.CLIENT_DATA, 8, 300, FlowFlags(clean=True, persistent_qos=True))
        assert (await topic.expect(Publish)).topic == "t"
        assert [(info.id, info.flow_id) for info in session.streams] == [(0, 0), (4, 2), (8, 4), (2, 6), (12, 8)]
        assert [event.data["flow"] for event in session.trace if event.name == "flow_opened"] == [0, 2, 4, 6, 8]


async def test_each_flow_numbers_its_own_messages() -> None:
    async with scripted_flows() as (session, broker):
        (one, end1), (two, end2) = [await opened_flow(session, broker) for _ in range(2)]
        work = [asyncio.create_task(stream.publish("t", str(n), qos=n)) for n, stream in ((1, one), (2, two))]
        assert [(await end.expect(Publish)).packet_id for end in (end1, end2)] == [1, 1]
        assert session.unacknowledged == 2
        end2.send(PubRec(1))
        assert (await end2.expect(PubRel)).packet_id == 1
        end1.send(PubAck(1))
        end2.send(PubComp(1), PingResp())  # a PINGRESP that nobody asked for
        for done in work:
            await hang(done)
        assert (session.stats.stray, session.unacknowledged) == (1, 0)


async def test_topic_aliases_are_the_flows_own() -> None:
    async with scripted_flows(topic_alias_maximum=5) as (session, broker):
        (one, end1), (two, end2) = [await opened_flow(session, broker) for _ in range(2)]
        feeds = [await subscribed(one, end1, "a"), await subscribed(two, end2, "b")]
        end1.send(message("a", b"1", topic_alias=1), message("", b"2", topic_alias=1))
        end2.send(message("b", b"3", topic_alias=1), message("", b"4", topic_alias=1))
        for feed in feeds:
            await hang(feed.wait(2))
        assert [set(feed.df["topic"]) for feed in feeds] == [{"a"}, {"b"}]


# Ends


async def test_a_graceful_end_waits_for_what_is_under_way() -> None:
    async with scripted_flows() as (session, broker):
        stream, end = await opened_flow(session, broker)
        feed = await subscribed(stream, end, "t")
        publishing = asyncio.create_task(stream.publish("t", "x", qos=2))
        await end.expect(Publish)
        closing = asyncio.create_task(stream.close())
        end.send(PubRec(2))
        await end.expect(PubRel)
        assert not end.ended
        end.send(PubComp(2))
        await hang(publishing)
        await end.fin()
        await hang(closing)
        assert stream.flow is not None
        assert (stream.state, stream.flow.state, feed.is_active) == ("closed", "gone", False)
        assert stream.close_reason is None
        assert session.errors == []


async def test_a_close_that_takes_too_long_cancels_the_flow() -> None:
    async with scripted_flows() as (session, broker):
        stream, end = await opened_flow(session, broker)
        publishing = asyncio.create_task(stream.publish("t", "x", qos=1))
        await end.expect(Publish)
        with pytest.raises(LabError, match="1 messages are unacknowledged"):
            await stream.close(timeout=0.05)
        assert await end.was_reset() == StreamCode.FLOW_CANCELLED
        with pytest.raises(StreamClosedError, match="did not close in order"):
            await hang(publishing)
        assert stream.flow is not None
        assert stream.flow.state == "gone"


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (StreamCode.FLOW_PACKET_CANCELLED, "kept"),
        (StreamCode.FLOW_CANCELLED, "gone"),
        (StreamCode.PERSISTENT_SUB, "gone"),
        (StreamCode.FLOW_REFUSED, "kept"),
        (0x1234, "kept"),
    ],
)
async def test_who_waits_is_told_at_once_when_the_broker_resets_a_flow(code: int, state: str) -> None:
    async with scripted_flows() as (session, broker):
        stream, end = await opened_flow(session, broker)
        feed = await subscribed(stream, end, "t")
        publishing = asyncio.create_task(stream.publish("t", "x", qos=2))
        asking = asyncio.create_task(stream.subscribe("u"))
        await end.expect(Publish)
        await end.expect(Subscribe)
        end.stream.reset(code)
        name = code.name if isinstance(code, StreamCode) else "unknown stream code"
        with pytest.raises(StreamClosedError, match=rf"flow 2 on stream 4: .*{name}.*MQoQ draft section") as caught:
            await hang(publishing)
        assert caught.value.stream_id == 4
        with pytest.raises(StreamClosedError, match=f"0x{code:X}"):
            await hang(asking)
        assert stream.flow is not None
        assert (stream.flow.state, stream.state, feed.is_active) == (state, "failed", False)
        assert session.state == "connected"
        assert [record.where for record in session.errors] == ["broker"]
        if state == "kept":
            await hang(stream.take_over())
            again = await broker.flow(stream.id)
            assert again.header.flags == FlowFlags(
                abort_if_no_state=True, persistent_qos=True, persistent_subscriptions=True
            )
            resent = await again.expect(Publish)
            assert (resent.packet_id, resent.dup, resent.payload) == (2, True, b"x")
            again.send(message("t", b"y"))
            await hang(feed.wait(1))
            assert feed.is_active


async def test_a_topic_goes_on_on_its_flow_after_a_reset() -> None:
    async with scripted_flows() as (session, broker):
        publishing = asyncio.create_task(session.publish("t", "1", qos=1))
        end = await broker.flow(4)
        await end.expect(Publish)
        end.stream.reset(StreamCode.FLOW_PACKET_CANCELLED)
        with pytest.raises(StreamClosedError):
            await hang(publishing)
        publishing = asyncio.create_task(session.publish("t", "2", qos=1))
        end = await broker.flow(8)
        assert (end.header.flow_id, end.header.flags.clean) == (2, False)
        first, second = await end.expect(Publish), await end.expect(Publish)
        assert [(p.payload, p.dup) for p in (first, second)] == [(b"1", True), (b"2", False)]
        end.send(PubAck(first.packet_id or 0), PubAck(second.packet_id or 0))
        await hang(publishing)


async def test_no_flow_state_begins_again_clean() -> None:
    async with scripted_flows() as (session, broker):
        stream, end = await opened_flow(session, broker)
        feed = await subscribed(stream, end, "t", qos=1)
        work = [asyncio.create_task(stream.publish("u", str(n), qos=2)) for n in range(2)]
        for _ in work:
            await end.expect(Publish)
        end.send(PubRec(2))  # the broker's own from now on
        await end.expect(PubRel)
        await hang(stream.take_over())
        second = await broker.flow(8)
        assert (await second.expect(PubRel)).packet_id == 2
        resent = await second.expect(Publish)
        assert (resent.payload, resent.dup) == (b"1", True)
        second.stream.reset(StreamCode.NO_FLOW_STATE)
        await hang(work[0])
        third = await broker.flow(12)
        assert third.header == FlowHeader(FlowType.CLIENT_DATA, 2, 300, EXPLICIT)
        fresh = await third.expect(Publish)
        assert (fresh.payload, fresh.dup) == (b"1", False)
        assert (await third.grant()).subscriptions[0].filter == "t"
        third.send(PubRec(fresh.packet_id or 0))
        await third.expect(PubRel)
        third.send(PubComp(fresh.packet_id or 0), message("t", b"x"))
        await hang(work[1])
        await hang(feed.wait(1))
        assert stream.flow is not None
        assert (stream.flow.state, stream.flow.recovered, feed.is_active) == ("open", False, True)
        assert [event.detail for event in session.events if event.what == "flow"] == [
            "the broker had no state of flow 2 (NO_FLOW_STATE): it begins again, clean"
        ]


async def test_a_flow_that_begins_again_waits_for_credit() -> None:
    async with scripted_flows(credit=2) as (session, broker):
        stream, _ = await opened_flow(session, broker)
        await hang(stream.take_over())
        second = await broker.flow(8)
        second.stream.reset(StreamCode.NO_FLOW_STATE)
        await second.was_reset()
        broker.connection.peer.grant(1)
        assert (await broker.flow(12)).header.flow_id == 2
        assert stream.state == "open"


async def test_a_flow_that_cannot_begin_again_tells_who_waits() -> None:
    async with scripted_flows(credit=2) as (session, broker):
        stream, end = await opened_flow(session, broker)
        feed = await subscribed(stream, end, "t")
        publishing = asyncio.create_task(stream.publish("u", "x", qos=1))
        await end.expect(Publish)
        await hang(stream.take_over())
        (await broker.flow(8)).stream.reset(StreamCode.NO_FLOW_STATE)
        while not any("NO_FLOW_STATE" in event.detail for event in session.events):
            await asyncio.sleep(0)
        broker.connection.control.end()  # no credit comes any more, nor anything else
        with pytest.raises(StreamClosedError):
            await hang(publishing)
        assert not feed.is_active
        await hang(session.wait_closed())


async def test_a_flow_without_a_stream_can_be_unsubscribed() -> None:
    async with scripted_flows() as (session, broker):
        stream, end = await opened_flow(session, broker)
        feed = await subscribed(stream, end, "t")
        await stream.abort()
        assert list(session.feeds) == [feed]
        await hang(session.unsubscribe(feed))
        assert list(session.feeds) == []
        await hang(stream.take_over())
        again = await broker.flow(8)
        assert (await again.expect(Unsubscribe)).filters == ("t",)


async def test_who_insists_on_state_gets_that_or_an_error() -> None:
    async with scripted_flows() as (session, broker):
        stream, end = await opened_flow(session, broker, flow_id=8, abort_if_no_state=True)
        flags = FlowFlags(abort_if_no_state=True, persistent_qos=True, persistent_subscriptions=True)
        assert end.header == FlowHeader(FlowType.CLIENT_DATA, 8, 300, flags)
        end.stream.reset(StreamCode.NO_FLOW_STATE)
        await end.was_reset()
        with pytest.raises(StreamClosedError, match="NO_FLOW_STATE"):
            await stream.publish("t", "x")
        with pytest.raises(UsageError, match=r"recovery is tried again.*9\.15"):
            await session.open_stream(flow_id=8)
        assert (await opened_flow(session, broker, flow_id=8, clean=True))[1].header.flags.clean


# The three error levels


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\xf0\x00", "AUTH on a client data flow"),
        (b"\x20\x03\x00\x00\x00", "CONNACK"),
        (b"\x30\x01\x00", "PUBLISH"),
        (b"\x90\x03\x00\x01\x00", "SUBACK"),
    ],
)
async def test_level_2_an_error_costs_the_stream_and_keeps_the_state(data: bytes, what: str) -> None:
    async with scripted_flows() as (session, broker):
        (stream, end), (other, other_end) = [await opened_flow(session, broker) for _ in range(2)]
        publishing = asyncio.create_task(stream.publish("t", "x", qos=1))
        await end.expect(Publish)
        end.send(data)
        assert await end.was_reset() == StreamCode.FLOW_PACKET_CANCELLED
        with pytest.raises(
            StreamClosedError, match=r"error of level 2, .*FLOW_PACKET_CANCELLED.*MQoQ draft section 11"
        ):
            await hang(publishing)
        assert stream.flow is not None
        assert (stream.state, stream.flow.state, session.state) == ("failed", "kept", "connected")
        assert any(what.split()[0] in record.message or "packet" in record.message for record in session.errors)
        fine = asyncio.create_task(other.publish("t", "x", qos=1))
        other_end.send(PubAck((await other_end.expect(Publish)).packet_id or 0))
        await hang(fine)


async def test_level_2_an_end_inside_a_packet() -> None:
    async with scripted_flows() as (session, broker):
        end = broker.deliver(1, b"\x30\x05\x00")
        end.stream.end()
        assert await end.was_reset() == StreamCode.INCOMPLETE_PACKET
        assert session.state == "connected"
        assert "inside a packet" in session.errors[-1].message


async def test_level_1_an_error_costs_the_flow_and_its_state() -> None:
    async with scripted_flows() as (session, broker):
        first = broker.deliver(1, message("t", b"x", 1, 1))
        await first.expect(PubAck)
        bad = broker.deliver(1, flags=FlowFlags(clean=True, abort_if_no_state=True))
        assert await bad.was_reset() == StreamCode.DISCARD_STATE
        assert await first.was_reset() == StreamCode.DISCARD_STATE
        assert [flow.type for flow in session.flows] == ["control"]
        assert "section 9.8" in session.errors[-1].message
        assert session.state == "connected"


async def test_level_0_an_error_of_the_broker_closes_the_connection() -> None:
    async with scripted_flows() as (session, broker):
        stream, end = await opened_flow(session, broker)
        publishing = asyncio.create_task(stream.publish("t", "x", qos=1))
        await end.expect(Publish)
        end.stream.end()  # it ends a flow that it does not own
        assert await broker.close_code() == ConnectionCode.PROTOCOL_L0
        with pytest.raises(DisconnectedError, match=r"9\.13\.1"):
            await hang(publishing)
        assert isinstance(session.close_reason, LabError)
        assert "does not own" in str(session.close_reason)
        assert [record.where for record in session.errors] == ["broker"]


async def test_level_0_a_recovery_refused_that_could_not_be() -> None:
    async with scripted_flows() as (session, broker):
        _, end = await opened_flow(session, broker)
        end.stream.reset(StreamCode.NO_FLOW_STATE)  # its header did not allow that
        assert await broker.close_code() == ConnectionCode.PROTOCOL_L0
        assert "abort_if_no_state was not set" in str(session.close_reason)


async def test_level_0_a_malformed_packet_on_the_control_flow() -> None:
    async with scripted_flows() as (session, broker):
        broker.send(b"\x30\x01\x00")
        assert isinstance((await broker.closed())[0], Disconnect)
        assert broker.connection.peer.close_code == ConnectionCode.PROTOCOL_L0
        assert session.state == "closed"


# Flows that the broker opens


async def test_flows_of_the_broker_are_read_and_acknowledged_on_themselves() -> None:
    async with scripted_flows() as (session, broker):
        asking = asyncio.create_task(session.subscribe("t/#", qos=2))
        await broker.grant()
        feed = await hang(asking)
        one = broker.deliver(1, message("t/1", b"a", 1, 7), message("t/1", b"b", 2, 8))
        two = broker.deliver(3, message("t/2", b"c", 1, 7))
        assert (await one.expect(PubAck)).packet_id == 7
        assert (await one.expect(PubRec)).packet_id == 8
        assert (await two.expect(PubAck)).packet_id == 7
        one.send(message("t/1", b"b", 2, 8, dup=True), PubRel(8))
        await one.expect(PubRec)
        await one.expect(PubComp)
        uni = broker.deliver(5, message("t/3", b"d"), unidirectional=True)
        uni.stream.end()
        await hang(feed.wait(4))
        assert sorted(feed.df["stream_id"]) == [1, 1, 3, 5]
        one.stream.end()
        await one.fin()
        await broker.sync(session)
        rows = [(i.id, i.flow_id, i.kind, i.state) for i in session.streams if i.kind == "server"]
        assert rows == [(5, 3, "server", "open"), (3, 5, "server", "closed"), (1, 1, "server", "closed")]
        assert session.errors == []
        (flow,) = [stream for stream in session._streams if stream.kind == "server"]
        with pytest.raises(UsageError, match=r"the broker's, and only its owner"):
            await flow.take_over()
        with pytest.raises(UsageError, match="publish on another one"):
            await flow.publish("t", "x")


async def test_a_message_of_the_brokers_flow_finds_the_flow_that_subscribed() -> None:
    async with scripted_flows() as (session, broker):
        stream, end = await opened_flow(session, broker)
        asking = asyncio.create_task(stream.subscribe("t", qos=1))
        identifier = (await end.expect(Subscribe)).properties["subscription_identifier"][0]
        end.send(SubAck(1, (1,)))
        on_flow = await hang(asking)
        asking = asyncio.create_task(session.subscribe("t", qos=1))
        await broker.grant()
        on_control = await hang(asking)
        broker.deliver(1, message("t", b"f", subscription_identifier=[identifier]), message("t", b"c"))
        await hang(on_flow.wait(1))
        await hang(on_control.wait(1))
        assert [bytes(p) for feed in (on_flow, on_control) for p in feed.df["payload"]] == [b"f", b"c"]


async def test_without_identifiers_a_message_goes_to_the_control_streams_feeds_first() -> None:
    async with scripted_flows(ConnAck(properties={"subscription_identifier_available": 0})) as (session, broker):
        stream, end = await opened_flow(session, broker)
        on_flow = await subscribed(stream, end, "t/#")
        asking = asyncio.create_task(session.subscribe("t/1"))
        await broker.grant()
        on_control = await hang(asking)
        broker.deliver(1, message("t/1"), message("t/2"))
        await hang(on_flow.wait(1))
        await hang(on_control.wait(1))
        assert [set(feed.df["topic"]) for feed in (on_flow, on_control)] == [{"t/2"}, {"t/1"}]


async def test_a_flow_of_the_broker_goes_on_where_it_was() -> None:
    async with scripted_flows() as (session, broker):
        asking = asyncio.create_task(session.subscribe("t", qos=2))
        await broker.grant()
        feed = await hang(asking)
        one = broker.deliver(1, message("t", b"a", 2, 4))
        await one.expect(PubRec)
        one.stream.reset(StreamCode.FLOW_PACKET_CANCELLED)
        await one.was_reset()
        assert [flow.state for flow in session.flows] == ["open", "kept"]
        again = broker.deliver(1, message("t", b"a", 2, 4, dup=True), PubRel(4), flags=FlowFlags(persistent_qos=True))
        await again.expect(PubRec)
        await again.expect(PubComp)
        assert feed.total == 1  # exactly once
        newer = broker.deliver(1, message("t", b"b", 1, 5), flags=FlowFlags(persistent_qos=True))
        assert await again.was_reset() == StreamCode.FLOW_PACKET_CANCELLED
        await newer.expect(PubAck)
        assert session.stats.duplicates == 1


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (FlowHeader(FlowType.USER_DEFINED, 1).encode() + b"whatever", StreamCode.FLOW_REFUSED),
        (b"\x15", StreamCode.STREAM_TYPE),
        (b"\x30\x03\x00\x01t", StreamCode.STREAM_TYPE),
        (FlowHeader(FlowType.CLIENT_DATA, 2).encode(), StreamCode.NOT_FLOW_OWNER),
        (FlowHeader(FlowType.SERVER_DATA, 2).encode(), StreamCode.BAD_FLOW_ID),
        (FlowHeader(FlowType.SERVER_DATA, 1, 0, SUBSCRIBES).encode(), StreamCode.PERSISTENT_SUB),
        (FlowHeader(FlowType.SERVER_DATA, 1, 0, FlowFlags(optional_headers=True)).encode(), StreamCode.OPTIONAL_HEADER),
        (FlowHeader(FlowType.SERVER_DATA, 1).encode() + Disconnect(0).encode(5), StreamCode.FLOW_PACKET_CANCELLED),
        (FlowHeader(FlowType.SERVER_DATA, 9, 0, FlowFlags(abort_if_no_state=True)).encode(), StreamCode.NO_FLOW_STATE),
    ],
)  # fmt: skip
async def test_what_the_broker_may_not_open_costs_its_stream_only(data: bytes, code: StreamCode) -> None:
    async with scripted_flows() as (session, broker):
        end = broker.open()
        end.send(data)
        assert await end.was_reset() == code
        assert session.state == "connected"
        assert len(session.errors) == 1
        await broker.sync(session)


async def test_a_control_flow_of_the_broker_closes_the_connection() -> None:
    async with scripted_flows() as (_, broker):
        broker.open().send(FlowHeader.control().encode())
        assert await broker.close_code() == ConnectionCode.PROTOCOL_L0


async def test_a_flood_of_the_brokers_flows_is_bounded() -> None:
    async with scripted_flows() as (session, broker):
        broker.connection.grant(400)
        ends = [broker.open() for _ in range(300)]
        await broker.sync(session)
        refused = [end for end in ends if end.reset_code is not None]
        assert len(refused) == 44
        for end in ends[:256]:
            end.stream.end()
        await broker.sync(session)
        assert all(end.reset_code == StreamCode.INCOMPLETE_PACKET for end in ends[:256])
        assert broker.deliver(1, message("t")).reset_code is None


async def test_flows_of_the_broker_before_connack_wait_for_it() -> None:
    client, server = memory_pair(transport="quic")
    client.report.alpn = "MQTT-next"
    broker = FlowsBroker(server)
    options: dict[str, Any] = {"client_id": "back", "clean_start": False, "session_expiry_interval": 60}
    opening = asyncio.create_task(AsyncSession.over(client, streams="flows", reconnect=False, **options))
    while not broker.inbox:
        await asyncio.sleep(0)
    end = broker.deliver(1, message("t", b"x", 1, 3))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not end.inbox
    broker.send(ConnAck(True))
    session = await hang(opening)
    assert (await end.expect(PubAck)).packet_id == 3
    assert len(session.unrouted) == 1
    await hang(session.close())


# Limits


async def test_a_stream_limit_is_an_error_that_says_so() -> None:
    async with scripted_flows(credit=1) as (session, broker):
        stream, _ = await opened_flow(session, broker)
        for opening in (session.open_stream(), stream.take_over(), session.publish("t", "x")):
            with pytest.raises(StreamLimitError, match="allows 1 data streams at a time and 1 are open"):
                await opening
        assert stream.state == "open"
        assert (await hang(broker.sync(session))) == []


async def test_flows_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mqttquic_lab.session.flow_book.MAX_FLOWS", 3)
    async with scripted_flows() as (session, broker):
        for _ in range(2):
            await opened_flow(session, broker)
        with pytest.raises(StreamLimitError, match="3 flows"):
            await session.open_stream()
        end = broker.deliver(1)
        assert await end.was_reset() == StreamCode.FLOW_REFUSED


async def test_a_refused_connect_at_a_broker_that_is_perhaps_mqttv5() -> None:
    client, server = memory_pair(transport="quic")
    client.report.alpn = "MQTT-next"
    broker = FlowsBroker(server)
    opening = asyncio.create_task(AsyncSession.over(client, streams="flows", reconnect=False))
    while not broker.inbox:
        await asyncio.sleep(0)
    await server.close(0xB4, "ERROR_PROTOCOL_L0")
    with pytest.raises(ConnectError) as caught:
        await hang(opening)
    assert any('profile="mqttv5"' in note for note in caught.value.__notes__)


# As mqttv5 does it


async def test_flows_of_mqttv5_are_one_way_and_answered_on_control() -> None:
    async with scripted_flows(profile="mqttv5") as (session, broker):
        assert broker.control_header is None
        stream, end = await opened_flow(session, broker)
        assert (stream.id, end.header) == (2, FlowHeader(FlowType.CLIENT_DATA, 2, 300, EXPLICIT))
        asking = asyncio.create_task(stream.subscribe("t", qos=2))
        wish = await end.expect(Subscribe)
        broker.send(SubAck(wish.packet_id, (2,)))
        feed = await hang(asking)
        work = [asyncio.create_task(p("t", "x", qos=2)) for p in (stream.publish, session.publish)]
        ends = [end, await broker.flow(6)]
        numbers = [(await e.expect(Publish)).packet_id or 0 for e in ends]
        assert len({wish.packet_id, *numbers}) == len(numbers) + (wish.packet_id not in numbers)
        for number in numbers:
            broker.send(PubRec(number))
            assert (await broker.expect(PubRel)).packet_id == number
            broker.send(PubComp(number))
        for done in work:
            await hang(done)
        # The answering flow of the broker has the id of the client's (even!).
        identifier = wish.properties["subscription_identifier"]
        delivery = broker.deliver(2, message("t", b"y", 1, 9, subscription_identifier=identifier), flags=FlowFlags())
        assert (await delivery.expect(PubAck)).packet_id == 9
        broker.send(message("t", b"retained", subscription_identifier=identifier))  # those come on control
        await hang(feed.wait(2))
        assert [(i.id, i.flow_id) for i in session.streams] == [(0, 0), (2, 2), (6, 4), (1, 2)]
        leaving = asyncio.create_task(session.unsubscribe(feed))
        broker.send(UnsubAck((await end.expect(Unsubscribe)).packet_id, (0,)))
        await hang(leaving)
        await hang(stream.close())
        await end.fin()
        assert session.stats.stray == 0
        assert session.errors == []


async def test_a_stopped_delivery_stream_of_mqttv5_is_still_read() -> None:
    async with scripted_flows(profile="mqttv5") as (session, broker):
        end = broker.deliver(3, flags=FlowFlags())
        await broker.sync(session)
        end.stream.peer.on_reset(0)  # STOP_SENDING
        end.send(message("t", b"x", 1, 3))
        assert (await broker.expect(PubAck)).packet_id == 3
        end.stream.end()
        await broker.sync(session)
        assert [flow.id for flow in session.flows] == [0]
        plain = broker.open()  # without header
        plain.send(message("t", b"y", 1, 4))
        assert (await plain.expect(PubAck)).packet_id == 4
        assert session.errors == []


async def test_a_flow_that_mqttv5_refuses_to_recover_begins_again_with_what_went_out_on_it() -> None:
    async with scripted_flows(profile="mqttv5") as (session, broker):
        stream, end = await opened_flow(session, broker)
        asking = asyncio.create_task(stream.subscribe("t", qos=1))
        broker.send(SubAck((await end.expect(Subscribe)).packet_id, (1,)))
        feed = await hang(asking)
        await hang(stream.take_over())
        second = await broker.flow(6)
        assert second.header.flags.abort_if_no_state
        publishing = asyncio.create_task(stream.publish("u", "x", qos=1))
        await second.expect(Publish)
        second.stream.peer.on_reset(StreamCode.NO_FLOW_STATE)
        third = await broker.flow(10)
        assert third.header.flags.clean
        broker.send(SubAck((await third.expect(Subscribe)).packet_id, (1,)))
        resent = await third.expect(Publish)
        assert (resent.payload, resent.dup) == (b"x", True)
        broker.send(PubAck(resent.packet_id or 0))
        await hang(publishing)
        assert feed.is_active


async def test_discarding_at_mqttv5_takes_a_bidirectional_stream() -> None:
    async with scripted_flows(profile="mqttv5") as (session, broker):
        stream, end = await opened_flow(session, broker)
        discarding = asyncio.create_task(stream.discard())
        asked = await broker.flow(4)
        assert asked.header == FlowHeader(FlowType.CLIENT_DATA, 2, 0, FlowFlags(clean=True))
        await asked.fin()
        await hang(discarding)
        assert await end.was_reset() == StreamCode.FLOW_PACKET_CANCELLED
        assert stream.flow is not None
        assert stream.flow.state == "gone"
        with pytest.raises(UsageError, match="unidirectional streams only"):
            await session.open_stream(unidirectional=False)
