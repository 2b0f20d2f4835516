"""The flow table: what each kind of error costs, and whose books are whose."""

from __future__ import annotations

import pytest

from mqttquic_lab.errors import MalformedPacketError
from mqttquic_lab.mqtt import (
    Change,
    ConnectionCode,
    Deliveries,
    ErrorLevel,
    FlowError,
    FlowFlags,
    FlowHeader,
    FlowTable,
    FlowType,
    Publish,
    StreamCode,
)
from tests.wire.test_flow_table import KEEP, C, S, client_flow, fails, fill, state, the_flow

CODE = StreamCode


# Errors -------------------------------------------------------------------------------------------------------------


def broken(level: ErrorLevel) -> FlowError:
    return FlowError("x", level=level, code=CODE.STREAM_TYPE, section="11")


@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize("tolerance", range(4))
@pytest.mark.parametrize("level", ErrorLevel)
def test_three_levels(level: ErrorLevel, tolerance: int, closing: bool) -> None:
    server = FlowTable(S, closing_tolerance=closing)
    flags = FlowFlags(err_tolerance=tolerance, persistent_subscriptions=True)
    flow = the_flow(server.accept(client_flow(flags=flags), 4, now=0))
    fill(flow)
    change = server.fail(4, broken(level), now=0)
    if level is ErrorLevel.CONNECTION or (closing and tolerance < level):
        assert change == Change(flow, close=ConnectionCode.PROTOCOL_L0)
        return
    assert (change.close, change.resets) == (None, ((4, CODE.STREAM_TYPE),))
    assert change.removed is (level is ErrorLevel.FLOW)
    assert (server.get(2) is flow) is (level is ErrorLevel.STREAM)
    assert state(flow) == (False, False, level is ErrorLevel.STREAM)


@pytest.mark.parametrize("level", ErrorLevel)
def test_on_the_control_flow_every_error_is_level_0(level: ErrorLevel) -> None:
    server = FlowTable(S)
    flow = the_flow(server.accept(FlowHeader.control(), 0, now=0))
    assert server.fail(0, broken(level), now=0) == Change(flow, close=ConnectionCode.PROTOCOL_L0)


def test_a_control_header_that_is_refused_is_level_0() -> None:
    server = FlowTable(S)
    error = fails(server, 0, FlowHeader.control(FlowFlags(abort_if_no_state=True)))
    assert error.code is CODE.NO_FLOW_STATE
    assert server.fail(0, error, now=0).close is ConnectionCode.PROTOCOL_L0


def test_a_malformed_packet_aborts_its_flow_only() -> None:
    server = FlowTable(S)
    control = the_flow(server.accept(FlowHeader.control(), 0, now=0))
    flow = the_flow(server.accept(client_flow(), 4, now=0))
    error = MalformedPacketError("bad")
    assert server.fail(4, error, now=0) == Change(flow, resets=((4, CODE.FLOW_PACKET_CANCELLED),))
    assert server.fail(0, error, now=0) == Change(control, close=ConnectionCode.PROTOCOL_L0)
    assert server.fail(8, error, now=0) == Change(resets=((8, CODE.FLOW_PACKET_CANCELLED),))


@pytest.mark.parametrize("attached", [False, True])
def test_a_bad_header_costs_its_owner_the_state(attached: bool) -> None:
    server = FlowTable(S)
    fill(the_flow(server.accept(client_flow(), 4, now=0)))
    if not attached:
        server.reset_received(4, 0, now=0)
    error = fails(server, 8, client_flow(flags=FlowFlags(clean=True, abort_if_no_state=True)))
    change = server.fail(8, error, now=0)
    assert change.removed
    assert change.unsubscribed == ("a/#",)
    victims = ((4, CODE.DISCARD_STATE),) if attached else ()
    assert change.resets == ((8, CODE.DISCARD_STATE), *victims)


def test_nobody_can_ruin_a_flow_of_the_other_end() -> None:
    client, server = FlowTable(C), FlowTable(S)
    mine = the_flow(client.open(4, now=0, flags=KEEP, expire_interval=60))
    error = fails(client, 5, client_flow())  # the server claims the client's flow
    assert (error.code, error.level) == (CODE.NOT_FLOW_OWNER, ErrorLevel.FLOW)
    assert client.fail(5, error, now=0) == Change(resets=((5, CODE.NOT_FLOW_OWNER),))
    assert client.flow_of(4) is mine
    push = the_flow(server.open(1, now=0, expire_interval=60))
    error = fails(server, 4, FlowHeader(FlowType.SERVER_DATA, 1))
    assert server.fail(4, error, now=0) == Change(resets=((4, CODE.NOT_FLOW_OWNER),))
    assert server.flow_of(1) is push


# Books --------------------------------------------------------------------------------------------------------------


def test_flows_have_packet_ids_of_their_own() -> None:
    asked: list[int] = []

    def make(flow_id: int) -> Deliveries:
        asked.append(flow_id)
        return Deliveries(receive_maximum=7)

    client = FlowTable(C, make_deliveries=make)
    client.open(0, now=0, flow_id=0)
    flows = [the_flow(client.open(stream, now=0)) for stream in (4, 8)]
    assert asked == [0, 2, 4]
    assert [flow.deliveries.send("t", b"", 1) for flow in flows] == [1, 1]
    assert flows[0].deliveries.receive_maximum == 7


def test_shared_books_are_the_caller_s() -> None:
    shared = Deliveries()
    client = FlowTable(C, shared=shared, strict=False)
    for stream_id in (2, 6):
        client.open(stream_id, now=0)
    assert shared.send("t", b"", 1) == 1
    assert client.abort(2, now=0).given_up == ()
    assert client.connection_lost(now=0)[0].given_up == ()
    assert len(shared) == 1
    assert shared.quota > 0


def test_mqttv5_s_answering_flow_stands_beside_the_client_s() -> None:
    client = FlowTable(C, strict=False)
    mine = the_flow(client.open(2, now=0))
    answer = FlowHeader(FlowType.SERVER_DATA, mine.id)
    theirs = the_flow(client.accept(answer, 1, now=0))
    assert theirs is not mine
    assert (theirs.owner, theirs.is_ours, mine.is_ours) == (S, False, True)
    assert client.get(mine.id) is mine
    assert client.get(mine.id, FlowType.SERVER_DATA) is theirs
    assert client.fin_received(1).finish
    assert client.finish(1).removed
    assert client.flow_of(2) is mine


def test_user_defined_flows_are_never_kept() -> None:
    client, server = FlowTable(C), FlowTable(S)
    flow = the_flow(client.open(4, now=0, user_defined=True))
    assert flow.header.encode() == b"\x14\x02"
    server.accept(flow.header, 4, now=0)
    with pytest.raises(FlowError, match="PUBLISH on a user defined flow"):
        server.check_packet(4, Publish("t"), C)
    assert server.connection_lost(now=0)[0].removed
    assert client.reset_received(4, 0, now=0).removed


def test_reprs_tell_what_stands() -> None:
    client = FlowTable(C)
    flow = the_flow(client.open(4, now=0))
    assert repr(flow) == "<Flow 2 CLIENT_DATA, OPEN, stream 4, 0 subscriptions, 0 in flight, 0 queued>"
    assert repr(client) == "<FlowTable of the client: 1 flows, 1 with a stream>"
