"""The flow table: starting, recovering, taking over, ending and expiring."""

from __future__ import annotations

from typing import Any

import pytest

from mqttquic_lab.errors import UsageError
from mqttquic_lab.mqtt import (
    Change,
    ConnectionCode,
    ErrorLevel,
    Flow,
    FlowError,
    FlowFlags,
    FlowHeader,
    FlowPhase,
    FlowTable,
    FlowType,
    PingReq,
    Publish,
    Role,
    StreamCode,
    Subscribe,
    Subscription,
)
from mqttquic_lab.mqtt.flow_book import NO_CHANGE
from mqttquic_lab.mqtt.flow_state import Part

C, S = Role.CLIENT, Role.SERVER
KEEP = FlowFlags(persistent_qos=True, persistent_topic_alias=True, persistent_subscriptions=True)
CODE = StreamCode


def client_flow(flow_id: int = 2, interval: int = 60, flags: FlowFlags = KEEP) -> FlowHeader:
    return FlowHeader(FlowType.CLIENT_DATA, flow_id, interval, flags)


def the_flow(change: Change) -> Flow:
    assert change.flow is not None
    return change.flow


def fill(flow: Flow) -> None:
    """Give a flow state of every kind."""
    flow.subscriptions["a/#"] = 1
    flow.aliases_in[1] = "a"
    flow.aliases_out["b"] = 1
    assert flow.deliveries.send("t", b"x", 1, token="told") == 1


def state(flow: Flow) -> tuple[bool, bool, bool]:
    """Return whether (messages, aliases, subscriptions) are there."""
    assert bool(flow.aliases_in) == bool(flow.aliases_out)
    return bool(len(flow.deliveries) or flow.deliveries.queued), bool(flow.aliases_in), bool(flow.subscriptions)


def fails(table: FlowTable, stream_id: int, header: FlowHeader, now: float = 0) -> FlowError:
    before = list(table)
    with pytest.raises(FlowError) as caught:
        table.accept(header, stream_id, now=now)
    assert list(table) == before
    return caught.value


# Starting -----------------------------------------------------------------------------------------------------------


def test_new_flows_get_ids_of_their_owner_and_the_clean_flag() -> None:
    client, server = FlowTable(C), FlowTable(S)
    ids = [the_flow(client.open(stream, now=0, flags=KEEP)).header for stream in (4, 8, 2)]
    assert [header.flow_id for header in ids] == [2, 4, 6]
    assert all(header.flags.clean and header.flags.persistent_qos for header in ids)
    assert all(header.type is FlowType.CLIENT_DATA and header.owner is C for header in ids)
    flow = the_flow(server.open(1, now=0))
    assert (flow.id, flow.type, flow.owner, flow.is_ours) == (1, FlowType.SERVER_DATA, S, True)


def test_an_id_given_by_hand_is_not_given_again() -> None:
    client = FlowTable(C)
    client.open(4, now=0, flow_id=6)
    assert the_flow(client.open(8, now=0)).id == 8


@pytest.mark.parametrize(
    ("stream_id", "ours", "sending", "receiving"),
    [(4, True, Part.OPEN, Part.OPEN), (2, True, Part.OPEN, Part.NONE), (3, False, Part.NONE, Part.OPEN)],
)
def test_directions_of_a_flow(stream_id: int, ours: bool, sending: Part, receiving: Part) -> None:
    client = FlowTable(C)
    header = FlowHeader(FlowType.SERVER_DATA, 1)
    flow = the_flow(client.open(stream_id, now=0) if ours else client.accept(header, stream_id, now=0))
    assert (flow.sending, flow.receiving, flow.phase) == (sending, receiving, FlowPhase.OPEN)
    assert flow.unidirectional == bool(stream_id & 2)
    assert client.flow_of(stream_id) is flow is client.get(flow.id)


def test_the_control_flow() -> None:
    client, server = FlowTable(C), FlowTable(S)
    change = client.open(0, now=0, flow_id=0)
    assert the_flow(change).header == FlowHeader.control()
    assert client.control is change.flow
    assert the_flow(server.accept(FlowHeader.control(), 0, now=0)).is_control
    assert len(server) == 1
    error = fails(server, 4, FlowHeader.control())
    assert error.level is ErrorLevel.CONNECTION
    assert "second control flow" in str(error)
    with pytest.raises(UsageError, match="second control flow"):
        client.open(4, now=0, flow_id=0)


@pytest.mark.parametrize(
    ("stream_id", "options", "match"),
    [
        (1, {}, "opened by the peer"),
        (4, {"flow_id": 3}, "id 3 on a stream that the client opened"),
        (4, {"flow_id": -2}, "does not fit"),
        (4, {"expire_interval": 2**62}, "does not fit"),
        (4, {"flags": FlowFlags(abort_if_no_state=True)}, "both set"),
        (2, {"flow_id": 0}, "unidirectional"),
        (8, {}, "carries flow 2 already"),
        (4, {"flow_id": 2}, "its id must be higher"),
        (10, {"flow_id": 2}, "another type"),
        (12, {"flow_id": 2, "user_defined": True}, "CLIENT DATA FLOW's"),
    ],
)
def test_flows_that_cannot_be_opened(stream_id: int, options: dict[str, Any], match: str) -> None:
    client = FlowTable(C)
    client.open(8, now=0)
    with pytest.raises(UsageError, match=match):
        client.open(stream_id, now=0, **options)
    assert len(client) == 1


def test_a_server_cannot_ask_for_persistent_subscriptions() -> None:
    with pytest.raises(UsageError, match="persistent_subscriptions"):
        FlowTable(S).open(1, now=0, flags=KEEP)


def test_accept_refuses_what_is_no_remote_start() -> None:
    server = FlowTable(S)
    server.accept(client_flow(), 4, now=0)
    for stream_id in (1, 4):
        with pytest.raises(UsageError, match="ours, or carries a flow"):
            server.accept(client_flow(4), stream_id, now=0)


def test_the_number_of_flows_is_bounded() -> None:
    server, client = FlowTable(S, max_flows=2), FlowTable(C, max_flows=1)
    server.accept(client_flow(2), 4, now=0)
    server.accept(client_flow(4), 8, now=0)
    error = fails(server, 12, client_flow(6))
    assert (error.code, error.level, server.refused) == (CODE.FLOW_REFUSED, ErrorLevel.STREAM, 1)
    assert server.fail(12, error, now=0) == Change(resets=((12, CODE.FLOW_REFUSED),))
    client.open(4, now=0)
    with pytest.raises(UsageError, match="max_flows is 1"):
        client.open(8, now=0)
    with pytest.raises(UsageError, match="control flow alone"):
        FlowTable(C, max_flows=0)


def test_a_kept_state_counts_and_makes_room_when_it_expires() -> None:
    server = FlowTable(S, max_flows=1)
    server.accept(client_flow(2), 4, now=0)
    server.connection_lost(now=0)
    fails(server, 4, client_flow(4))
    server.poll(60)
    assert the_flow(server.accept(client_flow(4), 4, now=60)).id == 4


def test_an_id_belongs_to_one_type_of_flow() -> None:
    server = FlowTable(S)
    server.accept(client_flow(2), 4, now=0)
    error = fails(server, 8, FlowHeader(FlowType.USER_DEFINED, 2))
    assert (error.code, error.level) == (CODE.BAD_FLOW_ID, ErrorLevel.FLOW)
    assert server.fail(8, error, now=0) == Change(resets=((8, CODE.BAD_FLOW_ID),))
    assert server.get(2) is not None


# Recovery -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(8))
def test_flags_decide_what_survives_a_reconnect(bits: int) -> None:
    kept = bool(bits & 1), bool(bits & 2), bool(bits & 4)
    flags = FlowFlags(persistent_qos=kept[0], persistent_topic_alias=kept[1], persistent_subscriptions=kept[2])
    server = FlowTable(S)
    flow = the_flow(server.accept(client_flow(flags=flags), 4, now=0))
    fill(flow)
    (change,) = server.connection_lost(now=10)
    assert change.flow is flow
    assert not change.resets
    assert state(flow) == kept
    assert [delivery.token for delivery in change.given_up] == ([] if kept[0] else ["told"])
    assert change.unsubscribed == (() if kept[2] else ("a/#",))
    assert (flow.stream_id, flow.phase, server.next_deadline()) == (None, FlowPhase.IDLE, 70)
    assert flow.deliveries.quota == 0  # what is sent meanwhile waits
    flow.active = True
    again = server.accept(client_flow(flags=flags), 4, now=69)
    assert (again.flow, again.recovered) == (flow, True)
    assert state(flow) == kept
    assert (flow.active, flow.expires_at) == (False, None)
    resent = flow.deliveries.resume()
    assert [(item.packet_id, getattr(item, "dup", None)) for item in resent] == ([(1, True)] if kept[0] else [])
    assert server.next_deadline() is None


def test_clean_discards_what_was_kept() -> None:
    server = FlowTable(S)
    flow = the_flow(server.accept(client_flow(), 4, now=0))
    fill(flow)
    server.connection_lost(now=0)
    clean = FlowFlags(clean=True, persistent_qos=True)
    change = server.accept(client_flow(flags=clean), 4, now=1)
    assert (change.flow, change.recovered) == (flow, False)
    assert state(flow) == (False, False, False)
    assert [delivery.token for delivery in change.given_up] == ["told"]
    assert change.unsubscribed == ("a/#",)


def test_state_expires() -> None:
    server = FlowTable(S, max_expire_interval=100)
    for stream_id, flow_id, interval in ((4, 2, 50), (8, 4, 10**6), (12, 6, 0)):
        fill(the_flow(server.accept(client_flow(flow_id, interval), stream_id, now=0)))
    lost = server.connection_lost(now=1000)
    assert [(the_flow(change).id, change.removed) for change in lost] == [(2, False), (4, False), (6, True)]
    assert lost[2].unsubscribed == ("a/#",)
    assert server.next_deadline() == 1050
    assert server.poll(1049.9) == []
    (change,) = server.poll(1050)
    assert (the_flow(change).id, change.removed, change.unsubscribed) == (2, True, ("a/#",))
    assert [delivery.token for delivery in change.given_up] == ["told"]
    assert server.next_deadline() == 1100
    assert len(server.poll(1100)) == 1
    assert (len(server), server.expired, server.next_deadline()) == (0, 2, None)


def test_recovery_without_state_starts_afresh_unless_told_to_abort() -> None:
    server = FlowTable(S)
    change = server.accept(client_flow(2), 4, now=0)
    assert (the_flow(change).id, change.recovered) == (2, False)
    insisting = client_flow(4, flags=FlowFlags(abort_if_no_state=True))
    error = fails(server, 8, insisting)
    assert (error.code, error.level) == (CODE.NO_FLOW_STATE, ErrorLevel.STREAM)
    assert server.fail(8, error, now=0) == Change(resets=((8, CODE.NO_FLOW_STATE),))


def test_recovering_again_after_no_flow_state_closes_the_connection() -> None:
    server = FlowTable(S)
    insisting = client_flow(4, flags=FlowFlags(abort_if_no_state=True))
    fails(server, 8, insisting)
    error = fails(server, 12, client_flow(4))
    assert (error.level, error.close) == (ErrorLevel.CONNECTION, ConnectionCode.TOO_MANY_RECOVER_ATTEMPTS)
    assert server.fail(12, error, now=0).close is ConnectionCode.TOO_MANY_RECOVER_ATTEMPTS
    assert the_flow(server.accept(client_flow(4, flags=FlowFlags(clean=True)), 16, now=0)).id == 4
    server.abort(16, CODE.FLOW_CANCELLED, now=0)
    error = fails(server, 20, insisting)
    assert error.level is ErrorLevel.STREAM  # a clean start wipes the slate: this is a first attempt again


def test_failed_recoveries_are_remembered_within_bounds() -> None:
    server = FlowTable(S, max_flows=3)
    insisting = FlowFlags(abort_if_no_state=True)
    for n in range(5):
        fails(server, 4 * n, client_flow(2 * n + 2, flags=insisting))
    assert fails(server, 40, client_flow(10)).level is ErrorLevel.CONNECTION
    assert the_flow(server.accept(client_flow(2), 44, now=0)).id == 2  # the oldest is forgotten


def test_the_owner_learns_that_there_is_no_state() -> None:
    client = FlowTable(C)
    client.open(0, now=0, flow_id=0)
    flow = the_flow(client.open(4, now=0, flags=KEEP, expire_interval=60))
    client.accept(FlowHeader(FlowType.SERVER_DATA, 1, 60), 1, now=0)
    fill(flow)
    client.connection_lost(now=0)
    assert (len(client), client.recoverable) == (3, [flow])
    insisting = FlowFlags(abort_if_no_state=True, persistent_qos=True)
    change = client.open(4, now=1, flow_id=2, flags=insisting)
    assert change.recovered
    assert client.recoverable == []
    change = client.reset_received(4, 0xC1, now=2)  # the other number of NO_FLOW_STATE
    assert change.removed
    assert [delivery.token for delivery in change.given_up] == ["told"]
    with pytest.raises(UsageError, match="clean=True"):
        client.open(8, now=3, flow_id=2)
    assert the_flow(client.open(8, now=3, flow_id=2, flags=FlowFlags(clean=True))).id == 2


def test_a_peer_must_not_refuse_a_silent_start() -> None:
    client = FlowTable(C)
    client.open(4, now=0)
    with pytest.raises(FlowError, match="abort_if_no_state was not set") as caught:
        client.reset_received(4, CODE.NO_FLOW_STATE, now=0)
    assert client.fail(4, caught.value, now=0).close is ConnectionCode.PROTOCOL_L0


def test_recovery_keeps_flags_and_interval_by_default() -> None:
    client = FlowTable(C)
    flow = the_flow(client.open(4, now=0, flags=KEEP, expire_interval=60))
    client.connection_lost(now=0)
    client.open(4, now=0, flow_id=2)
    assert flow.header == client_flow()
    assert not flow.header.flags.clean


# Take-over ----------------------------------------------------------------------------------------------------------


def test_the_higher_stream_takes_over() -> None:
    client, server = FlowTable(C), FlowTable(S)
    mine = the_flow(client.open(4, now=0, flags=KEEP, expire_interval=60))
    theirs = the_flow(server.accept(mine.header, 4, now=0))
    fill(theirs)
    change = client.open(12, now=1, flow_id=2, expire_interval=90)
    assert (change.flow, change.recovered, mine.stream_id) == (mine, True, 12)
    assert change.resets == ((4, CODE.FLOW_PACKET_CANCELLED),)
    change = server.accept(mine.header, 12, now=1)
    assert (change.flow, change.recovered, theirs.stream_id) == (theirs, True, 12)
    assert change.resets == ((4, CODE.FLOW_PACKET_CANCELLED),)
    assert theirs.header.expire_interval == 90
    assert state(theirs) == (True, True, True)
    # what the old stream still says concerns nobody
    assert server.reset_received(4, CODE.FLOW_CANCELLED, now=1) == NO_CHANGE
    assert server.fin_received(4, buffered=3) == NO_CHANGE
    assert server.check_packet(4, Publish("t"), C) is None
    assert server.stale == 3


def test_a_late_lower_stream_changes_nothing() -> None:
    server = FlowTable(S)
    server.accept(client_flow(), 12, now=0)
    change = server.accept(client_flow(flags=FlowFlags(clean=True)), 8, now=0)
    assert change == Change(change.flow, resets=((8, CODE.FLOW_PACKET_CANCELLED),))
    assert the_flow(change).stream_id == 12
    assert the_flow(change).header.flags == KEEP


def test_take_over_by_another_type_of_stream_harms_only_that_stream() -> None:
    server = FlowTable(S)
    flow = the_flow(server.accept(client_flow(), 4, now=0))
    error = fails(server, 6, client_flow())
    assert server.fail(6, error, now=0) == Change(resets=((6, CODE.STREAM_TYPE),))
    assert flow.stream_id == 4


def test_after_an_abort_any_stream_may_recover() -> None:
    server = FlowTable(S)
    flow = the_flow(server.accept(client_flow(), 12, now=0))
    server.reset_received(12, 0, now=0)
    assert server.accept(client_flow(), 2, now=0).recovered
    assert flow.unidirectional


# Packets ------------------------------------------------------------------------------------------------------------

SUBSCRIBE = Subscribe(1, (Subscription("a", 0),), {})


def test_check_packet_finds_the_flow_and_knows_its_kind() -> None:
    server = FlowTable(S)
    flow = the_flow(server.accept(client_flow(), 4, now=0))
    idle = flow.active
    assert server.check_packet(4, SUBSCRIBE, C) is flow
    assert (idle, flow.active) == (False, True)
    push = the_flow(server.open(1, now=0))
    with pytest.raises(FlowError, match="SUBSCRIBE on a server data flow"):
        server.check_packet(1, SUBSCRIBE, C)
    assert not push.active


@pytest.mark.parametrize("packet", [SUBSCRIBE, PingReq(), Publish("t", qos=1, packet_id=1)], ids=lambda p: p.NAME)
def test_what_cannot_be_answered_is_refused_on_unidirectional_streams(packet: Any) -> None:
    for table, sender in ((FlowTable(C), C), (FlowTable(S), C)):
        if table.role is C:
            table.open(2, now=0)
        else:
            table.accept(client_flow(), 2, now=0)
        with pytest.raises(FlowError, match="unidirectional") as caught:
            table.check_packet(2, packet, sender)
        assert caught.value.code is CODE.STREAM_TYPE
        assert table.check_packet(2, Publish("t"), sender) is table.flow_of(2)
    lenient = FlowTable(S, strict=False)
    lenient.accept(client_flow(), 2, now=0)
    assert lenient.check_packet(2, packet, C) is lenient.flow_of(2)


def test_nothing_is_sent_where_nothing_can_be() -> None:
    server = FlowTable(S)
    server.accept(client_flow(), 2, now=0)
    with pytest.raises(UsageError, match="sending direction is not open"):
        server.check_packet(2, Publish("t"), S)
    server.open(1, now=0)
    server.finish(1)
    with pytest.raises(UsageError, match="sending direction is not open"):
        server.check_packet(1, Publish("t"), S)


# Ends ---------------------------------------------------------------------------------------------------------------


def test_graceful_end_of_a_bidirectional_flow() -> None:
    client, server = FlowTable(C), FlowTable(S)
    mine = the_flow(client.open(4, now=0, flags=KEEP, expire_interval=60))
    theirs = the_flow(server.accept(mine.header, 4, now=0))
    fill(theirs)
    assert client.finish(4) == Change(mine)
    assert mine.phase is FlowPhase.HALF_CLOSED_LOCAL_GRACEFUL
    assert server.fin_received(4) == Change(theirs, finish=True)
    assert theirs.phase is FlowPhase.HALF_CLOSED_REMOTE_GRACEFUL
    assert server.fin_received(4) == NO_CHANGE
    change = server.finish(4)
    assert (change.removed, change.unsubscribed, len(change.given_up)) == (True, ("a/#",), 1)
    assert client.fin_received(4).removed
    assert (len(client), len(server)) == (0, 0)


def test_graceful_end_of_a_unidirectional_flow() -> None:
    client, server = FlowTable(C), FlowTable(S)
    header = the_flow(client.open(2, now=0)).header
    server.accept(header, 2, now=0)
    assert client.finish(2).removed
    assert server.fin_received(2).removed


def test_discarding_a_state_at_the_peer() -> None:
    client, server = FlowTable(C), FlowTable(S)
    flow = the_flow(client.open(4, now=0, flags=KEEP, expire_interval=60))
    fill(the_flow(server.accept(flow.header, 4, now=0)))
    client.abort(4, now=1)
    server.reset_received(4, CODE.FLOW_PACKET_CANCELLED, now=1)
    assert len(server) == 1
    header = the_flow(client.open(8, now=2, flow_id=2, flags=FlowFlags(clean=True))).header
    assert header.flags.discards
    client.finish(8)
    assert server.accept(header, 8, now=2).unsubscribed == ("a/#",)
    assert server.fin_received(8).finish
    assert server.finish(8).removed
    assert client.fin_received(8).removed
    assert (len(client), len(server)) == (0, 0)


def test_only_the_owner_begins_a_graceful_end() -> None:
    client, server = FlowTable(C), FlowTable(S)
    client.open(4, now=0)
    server.accept(client_flow(), 4, now=0)
    with pytest.raises(UsageError, match="only its owner ends it"):
        server.finish(4)
    with pytest.raises(FlowError) as caught:
        client.fin_received(4)
    assert (caught.value.code, caught.value.level) == (CODE.NOT_FLOW_OWNER, ErrorLevel.CONNECTION)


@pytest.mark.parametrize(("control", "level"), [(True, ErrorLevel.CONNECTION), (False, ErrorLevel.STREAM)])
def test_fin_inside_a_packet(control: bool, level: ErrorLevel) -> None:
    server = FlowTable(S)
    flow = the_flow(server.accept(FlowHeader.control() if control else client_flow(), 0, now=0))
    with pytest.raises(FlowError, match="3 bytes into it") as caught:
        server.fin_received(0, buffered=3)
    assert (caught.value.level, caught.value.code) == (level, CODE.INCOMPLETE_PACKET)
    change = server.fail(0, caught.value, now=0)
    if control:
        assert change == Change(flow, close=ConnectionCode.PROTOCOL_L0)
    else:
        assert change == Change(flow, resets=((0, CODE.INCOMPLETE_PACKET),))
        assert server.accept(client_flow(), 4, now=1).recovered


def test_finish_twice_is_a_mistake_of_ours() -> None:
    client = FlowTable(C)
    client.open(4, now=0)
    client.finish(4)
    with pytest.raises(UsageError, match="no open sending direction"):
        client.finish(4)
    assert client.finish(400) == NO_CHANGE


@pytest.mark.parametrize("code", list(StreamCode))
def test_abort_keeps_or_discards_as_the_code_says(code: StreamCode) -> None:
    client, server = FlowTable(C), FlowTable(S)
    header = the_flow(client.open(4, now=0, flags=FlowFlags(abort_if_no_state=False), expire_interval=60)).header
    server.accept(header, 4, now=0)
    change = server.abort(4, code, now=0)
    assert change.resets == ((4, code),)
    assert change.removed is (len(server) == 0) is code.discards_state
    if code is not CODE.NO_FLOW_STATE:
        change = client.reset_received(4, code, now=0)
        assert change.resets == ((4, CODE.NO_ERROR),)
        assert change.removed is (len(client) == 0) is code.discards_state


def test_unknown_reset_codes_keep_the_state() -> None:
    server = FlowTable(S)
    server.accept(client_flow(), 4, now=0)
    assert not server.reset_received(4, 2**62 - 1, now=0).removed
    assert server.reset_received(4, 0, now=0) == NO_CHANGE


def test_losing_the_control_stream_closes_the_connection_but_not_the_session() -> None:
    server = FlowTable(S)
    flow = the_flow(server.accept(FlowHeader.control(FlowFlags()), 0, now=0))
    fill(flow)
    change = server.reset_received(0, 0, now=0)
    assert (change.close, change.removed) == (ConnectionCode.UNSPECIFIED, False)
    assert state(flow) == (True, False, True)  # whatever its flags: CONNECT decides
    assert server.next_deadline() is None
    assert server.control is flow
    assert server.accept(FlowHeader.control(), 0, now=10**9).recovered


def test_a_graceful_disconnect_keeps_the_session() -> None:
    client, server = FlowTable(C), FlowTable(S)
    client.open(0, now=0, flow_id=0)
    flow = the_flow(server.accept(FlowHeader.control(), 0, now=0))
    fill(flow)
    client.finish(0)
    assert server.fin_received(0).finish
    change = server.finish(0)
    assert not change.removed
    assert change.close is None
    assert state(flow) == (True, False, True)
    assert not client.fin_received(0).removed
    assert client.control is not None
    assert client.control.stream_id is None


def test_clear_empties_what_is_open_and_removes_the_rest() -> None:
    client = FlowTable(C)
    for flow_id in (2, 4):
        flow = the_flow(client.open(2 * flow_id, now=0, flow_id=flow_id, flags=KEEP, expire_interval=60))
        fill(flow)
    client.connection_lost(now=0)
    control = the_flow(client.open(0, now=1, flow_id=0))
    client.open(4, now=1, flow_id=2)
    changes = client.clear()
    assert [(the_flow(change).id, change.removed, len(change.given_up)) for change in changes] == [
        (2, False, 1),
        (4, True, 1),
        (0, False, 0),
    ]
    assert {flow.id for flow in client} == {2, 0}
    assert control.stream_id == 0
    client.connection_lost(now=2)
    client.clear()
    assert len(client) == 0


def test_idle_flows_of_the_peer_are_aborted() -> None:
    server = FlowTable(S, open_idle_timeout=5)
    server.accept(FlowHeader.control(), 0, now=0)
    server.accept(client_flow(2), 4, now=1)
    server.accept(client_flow(4), 8, now=2)
    server.open(1, now=0)
    server.check_packet(0, PingReq(), C)
    server.check_packet(8, Publish("t"), C)
    assert server.next_deadline() == 6
    assert server.poll(5.9) == []
    (change,) = server.poll(6)
    assert (the_flow(change).id, change.resets) == (2, ((4, CODE.FLOW_OPEN_IDLE),))
    assert server.next_deadline() == 66  # its state expires
