"""What a peer may do in any order: the state tables raise protocol errors and nothing else, and keep their books."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttquic_lab.errors import MalformedPacketError, ProtocolError
from mqttquic_lab.mqtt import Packet, PacketDecoder, PubAck, PubComp, Publish, PubRec, PubRel, Version
from mqttquic_lab.mqtt.deliveries import Deliveries
from mqttquic_lab.mqtt.flow_header import FlowFlags, FlowHeader, FlowType
from mqttquic_lab.mqtt.flows import FlowTable
from mqttquic_lab.mqtt.state import CONNECTION_TABLE, ConnectionState, Role, Violation, check_packet, packet_kind
from tests.wire.strategies import connects, light, packets

ANY_PACKET = st.one_of([packets(5, receiver) for receiver in ("client", "server")])


def told(error: ProtocolError) -> None:
    """Check that an error says what a peer can be told, and where that is written."""
    assert error.reason_code is not None
    assert error.reason_code >= 0x80
    assert error.section


@pytest.mark.parametrize("version", [5, 4])
@light(60)
@given(steps=st.lists(st.tuples(st.sampled_from(Role), ANY_PACKET), max_size=12))
def test_any_sequence_of_packets_follows_the_table(version: Version, steps: list[tuple[Role, Packet]]) -> None:
    """Both ends see the same packets, so one walk through the table is both ends' walk."""
    state = ConnectionState.IDLE
    for role, packet in steps:
        entry = CONNECTION_TABLE[role, state, packet_kind(packet, version)]
        try:
            after = check_packet(role, state, packet, version)
        except ProtocolError as error:
            told(error)
            if error.packet is not packet or not (isinstance(entry, Violation) or version == 4):
                pytest.fail(f"{packet!r} is allowed: {error}")
            continue
        assert after is entry
        if state is ConnectionState.CLOSED:
            pytest.fail(f"{packet!r} after the end")
        state = after


ids = st.integers(1, 4)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 2)),
        st.tuples(st.just(PubAck), ids, st.sampled_from((0, 0, 0x10, 0x80, 0x97))),
        st.tuples(st.just(PubRec), ids, st.sampled_from((0, 0, 0x10, 0x80, 0x97))),
        st.tuples(st.just(PubComp), ids, st.sampled_from((0, 0, 0x92))),
        st.tuples(st.just("release"), ids),
        st.tuples(st.just("receive"), ids, st.integers(1, 2), st.booleans()),
        st.tuples(st.sampled_from(("suspend", "resume", "clear"))),
    ),
    max_size=60,
)


@pytest.mark.parametrize("version", [5, 4])
@light(60)
@given(events=EVENTS)
def test_exchanges_with_a_peer_that_acknowledges_anything(version: Version, events: list[Any]) -> None:
    books = Deliveries(3, 1000, peer_receive_maximum=2, version=version)
    sent, ended = 0, Counter[int]()
    online = True
    for name, *rest in events:
        try:
            if name == "send":
                books.send("t", b"", rest[0], token=sent)
                sent += 1
            elif name == "release":
                assert books.release(PubRel(rest[0])).packet_id == rest[0]
            elif name == "receive":
                number, qos, dup = rest
                received = books.receive(Publish("t", b"", qos, False, dup, number))
                assert received.reply is not None
                assert received.reply.packet_id == number
            elif name == "suspend":
                books.suspend()
                online = False
            elif name == "resume":
                books.resume(2)
                online = True
            elif name == "clear":
                ended.update(delivery.token for delivery in books.clear())
            else:
                outcome = books.acknowledge(name(*rest))
                if outcome.finished is not None:
                    ended[outcome.finished.token] += 1
        except ProtocolError as error:
            told(error)
        assert 0 <= books.quota <= 2 if online else books.quota == 0
        assert books.awaiting_release <= 4
        assert len(books.unfinished()) + sum(ended.values()) == sent
        assert max(ended.values(), default=0) <= 1, "an exchange ended twice"
        numbers = [delivery.packet_id for delivery in books.unfinished() if delivery.packet_id is not None]
        assert len(numbers) == len(set(numbers))
    ended.update(delivery.token for delivery in books.clear())
    assert ended == Counter(range(sent))


headers = st.builds(
    lambda kind, number, interval, flags: (
        FlowHeader(kind, number)
        if kind is FlowType.USER_DEFINED
        else FlowHeader(kind, number, 0 if kind is FlowType.CONTROL else interval, flags)
    ),
    st.sampled_from(FlowType),
    st.integers(0, 9),
    st.sampled_from((0, 1, 100)),
    st.integers(0, 127).map(FlowFlags.from_byte),
)
FLOW_EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("accept"), headers),
        st.tuples(st.just("open"), st.booleans()),
        st.tuples(st.just("packet"), st.integers(0, 12), ANY_PACKET),
        st.tuples(st.just("fin"), st.integers(0, 12), st.integers(0, 1)),
        st.tuples(st.just("reset"), st.integers(0, 12), st.sampled_from((0, 0xB3, 0xBC, 0xBD, 0xC0, 0xC1, 1 << 40))),
        st.tuples(st.sampled_from(("time", "lost", "clear"))),
    ),
    max_size=40,
)


@pytest.mark.parametrize("role", Role)
@light(60)
@given(events=FLOW_EVENTS)
def test_flows_of_a_peer_that_does_anything(role: Role, events: list[Any]) -> None:
    table = FlowTable(role, max_flows=4, open_idle_timeout=50)
    peer = Role(1 - role)
    streams: list[int] = []
    counts = {True: 0, False: 0}
    now = 0.0

    def fresh(*, ours: bool, unidirectional: bool = False) -> int:
        number = counts[ours] * 4 | (role if ours else peer) | (2 if unidirectional else 0)
        counts[ours] += 1
        streams.append(number)
        return number

    for name, *rest in events:
        now += 1.0
        stream = 0
        try:
            if name == "accept":
                stream = fresh(ours=False)
                table.accept(rest[0], stream, now=now)
            elif name == "open" and len(table) < table.max_flows:
                stream = fresh(ours=True, unidirectional=rest[0])
                change = table.open(stream, now=now, expire_interval=100, flags=FlowFlags(persistent_qos=True))
                assert change.flow is not None
                change.flow.deliveries.send("t", b"", 1, token=now)
            elif name in ("packet", "fin", "reset") and streams:
                stream = streams[rest[0] % len(streams)]
                if name == "packet":
                    table.check_packet(stream, rest[1], peer)
                elif name == "fin":
                    change = table.fin_received(stream, buffered=rest[1])
                    if change.finish:
                        table.finish(stream)
                else:
                    table.reset_received(stream, rest[1], now=now)
            elif name == "time":
                now += 200.0
                table.poll(now)
            elif name == "lost":
                table.connection_lost(now=now)
                streams.clear()
            elif name == "clear":
                table.clear()
        except ProtocolError as error:
            change = table.fail(stream, error, now=now)
            if not (change.close is not None or change.resets):
                pytest.fail(f"no consequence: {error}")
            if change.close is not None:
                table.connection_lost(now=now)
                streams.clear()
        assert len(table) <= table.max_flows
        for flow in table:
            if flow.stream_id is None:
                assert flow.is_control or flow.expires_at is not None
            else:
                assert table.flow_of(flow.stream_id) is flow
    table.connection_lost(now=now)
    table.poll(now + 1000)
    assert all(flow.is_control for flow in table), "state that never expires"


@light(60)
@given(data=st.data())
def test_what_a_server_reads_before_connect_is_bounded_in_any_chunking(data: st.DataObject) -> None:
    """Version unknown, so that the first packet must be CONNECT; its size is checked however it comes."""
    version: Version = data.draw(st.sampled_from((5, 4)))
    wire = bytearray(data.draw(connects(version)).encode(version))
    for packet in data.draw(st.lists(packets(version, "server"), max_size=2)):
        wire += packet.encode(version)
    for _ in range(data.draw(st.integers(0, 2))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    limit = data.draw(st.integers(10, 200))

    def decode(pieces: list[bytes]) -> tuple[list[Packet], str]:
        unit = PacketDecoder(None, max_connect_size=limit, receiver="server")
        found: list[Packet] = []
        for piece in pieces:
            try:
                found += unit.feed(piece)
            except MalformedPacketError as error:
                return found + error.packets, str(error)
            if unit.version is None:
                assert unit.buffered <= limit
        return found, ""

    cuts = sorted({0, len(wire), *data.draw(st.lists(st.integers(0, len(wire)), max_size=6))})
    whole = decode([bytes(wire)])
    assert decode([bytes(wire[a:b]) for a, b in pairwise(cuts)]) == whole
    assert decode([wire[at : at + 1] for at in range(len(wire))]) == whole  # type: ignore[misc]
    if whole[0]:
        assert len(whole[0][0].raw) <= limit
