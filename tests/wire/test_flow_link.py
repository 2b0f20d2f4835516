"""Two flow tables through a fake network of streams: in order within a stream, in any order between streams."""

from __future__ import annotations

import random
from collections import deque
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttquic_lab.errors import ProtocolError, UsageError
from mqttquic_lab.mqtt import (
    Change,
    FlowFlags,
    FlowHeaderDecoder,
    FlowTable,
    PacketDecoder,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    Role,
    StreamCode,
    encode_publish,
)
from tests.wire.strategies import light

FLAGS = [
    FlowFlags(),
    FlowFlags(persistent_qos=True),
    FlowFlags(persistent_qos=True, persistent_subscriptions=True, persistent_topic_alias=True, err_tolerance=2),
]


class End:
    """One end: a table, and the streams of the connection as the table's owner sees them."""

    def __init__(self, role: Role, **options: Any) -> None:
        self.role = role
        self.table = FlowTable(role, **options)
        self.peer: End
        self.delivered: list[bytes] = []
        self.finished: list[bytes] = []
        self.given_up: list[bytes] = []
        self.closed: int | None = None
        self.connect()

    def connect(self) -> None:
        self.next_stream = {False: int(self.role), True: int(self.role) + 2}
        self.inbox: dict[int, deque[tuple[str, Any]]] = {}
        self.headers: dict[int, FlowHeaderDecoder] = {}
        self.decoders: dict[int, PacketDecoder] = {}
        self.ended: set[int] = set()  # we sent FIN or RESET_STREAM
        self.dead: set[int] = set()  # aborted: nothing more is read

    def send(self, stream_id: int, event: str, value: Any = None) -> None:
        if stream_id in self.ended:
            return
        if event in ("fin", "reset"):
            self.ended.add(stream_id)
        self.peer.inbox.setdefault(stream_id, deque()).append((event, value))

    def apply(self, change: Change) -> None:
        for stream_id, code in change.resets:
            self.dead.add(stream_id)
            # RESET_STREAM drops what was not delivered yet; here half of the time.
            waiting = self.peer.inbox.get(stream_id)
            if waiting and code % 2:
                waiting.clear()
            self.send(stream_id, "reset", code)
        self.given_up += [delivery.payload for delivery in change.given_up]
        if change.close is not None:
            self.closed = change.close
        flow = change.flow
        if change.recovered and flow is not None:
            assert flow.stream_id is not None
            self.write_header(change)
            for item in flow.deliveries.resume():
                self.send(flow.stream_id, "data", item.encode(5))
        if change.finish and flow is not None:
            assert flow.stream_id is not None
            self.send(flow.stream_id, "fin")
            self.apply(self.table.finish(flow.stream_id))

    def write_header(self, change: Change) -> None:
        flow = change.flow
        assert flow is not None
        assert flow.stream_id is not None
        if flow.stream_id & 1 == self.role:
            self.send(flow.stream_id, "data", flow.header.encode())

    def open(self, *, unidirectional: bool = False, **options: Any) -> None:
        stream_id = self.next_stream[unidirectional]
        try:
            change = self.table.open(stream_id, **options)
        except UsageError:
            return
        self.next_stream[unidirectional] += 4
        if not change.recovered:
            self.write_header(change)
        self.apply(change)

    def publish(self, flow: Any, payload: bytes, qos: int) -> None:
        packet_id = flow.deliveries.send("t", payload, qos)
        if packet_id is not None:
            assert flow.can_send
            self.send(flow.stream_id, "data", encode_publish("t", payload, qos, packet_id=packet_id))

    def read(self, stream_id: int, event: str, value: Any, now: float) -> None:
        """Take in one event of a stream."""
        if stream_id in self.dead and event != "reset":
            return
        try:
            if event == "data":
                self.read_data(stream_id, value, now)
            elif event == "fin":
                decoder = self.decoders.get(stream_id)
                self.apply(self.table.fin_received(stream_id, buffered=decoder.buffered if decoder else 0))
            else:
                self.dead.add(stream_id)
                self.apply(self.table.reset_received(stream_id, value, now=now))
        except ProtocolError as error:
            self.apply(self.table.fail(stream_id, error, now=now))

    def read_data(self, stream_id: int, data: bytes, now: float) -> None:
        decoder = self.decoders.get(stream_id)
        if decoder is None:
            receiver = "client" if self.role is Role.CLIENT else "server"
            if stream_id & 1 != self.role:
                header = self.headers.setdefault(stream_id, FlowHeaderDecoder())
                read = header.feed(data)
                if read is None:
                    return
                self.apply(self.table.accept(read, stream_id, now=now))
                data = header.rest
            decoder = self.decoders[stream_id] = PacketDecoder(5, receiver=receiver)  # type: ignore[arg-type]
        for packet in decoder.feed(data):
            flow = self.table.check_packet(stream_id, packet, self.peer.role)
            if flow is None:
                return
            reply = self.handle(flow, packet)
            if reply is not None:
                self.send(stream_id, "data", reply.encode(5))

    def handle(self, flow: Any, packet: Any) -> Any:
        if isinstance(packet, Publish):
            received = flow.deliveries.receive(packet)
            if received.deliver:
                self.delivered.append(packet.payload)
            return received.reply
        if isinstance(packet, PubRel):
            return flow.deliveries.release(packet)
        assert isinstance(packet, (PubAck, PubRec, PubComp))
        outcome = flow.deliveries.acknowledge(packet)
        if outcome.finished is not None:
            self.finished.append(outcome.finished.payload)
        for delivery in outcome.sendable:
            self.send(flow.stream_id, "data", delivery.encode(5))
        return outcome.reply


class Link:
    """Client and server, and what may happen to them, in an order that a seed decides."""

    VERBS: ClassVar = ("open", "publish", "deliver", "deliver", "deliver", "finish", "abort", "take over", "reconnect")

    def __init__(self, seed: int, *, lossy: bool) -> None:
        self.random = random.Random(seed)
        self.client, self.server = End(Role.CLIENT, max_flows=6), End(Role.SERVER, max_flows=6)
        self.client.peer, self.server.peer = self.server, self.client
        self.now = 0.0
        self.lossy = lossy
        self.sent: dict[int, list[bytes]] = {1: [], 2: []}
        self.number = 0

    @property
    def ends(self) -> tuple[End, End]:
        return self.client, self.server

    def step(self, verb: str) -> None:
        self.now += self.random.random()
        end = self.random.choice(self.ends)
        attached = [(flow, flow.stream_id) for flow in end.table if flow.stream_id is not None]
        if verb == "open":
            flags = self.random.choice(FLAGS if end is self.client else FLAGS[:2])
            interval = self.random.choice([0, 5, 10**6])
            uni = self.random.random() < 0.3
            end.open(unidirectional=uni, now=self.now, flags=flags, expire_interval=interval)
        elif verb == "publish" and attached:
            flow, _ = self.random.choice(attached)
            if flow.can_send and not flow.unidirectional:
                self.number += 1
                payload = f"{end.role.name} {self.number}".encode()
                qos = self.random.choice([1, 2])
                self.sent[qos].append(payload)
                end.publish(flow, payload, qos)
        elif verb == "deliver":
            self.deliver(end)
        elif verb == "finish" and attached:
            flow, stream_id = self.random.choice(attached)
            if flow.is_ours and flow.can_send and not len(flow.deliveries):
                end.send(stream_id, "fin")
                end.apply(end.table.finish(stream_id))
        elif verb == "abort" and attached and self.lossy:
            _, stream_id = self.random.choice(attached)
            code = self.random.choice(list(StreamCode))
            if code is not StreamCode.NO_FLOW_STATE:
                end.apply(end.table.abort(stream_id, code, now=self.now))
        elif verb == "take over":
            mine = [flow for flow in end.table if flow.is_ours]
            if mine:
                flow = self.random.choice(mine)
                end.open(unidirectional=flow.unidirectional, now=self.now, flow_id=flow.id)
        elif verb == "reconnect" and self.random.random() < 0.3:
            self.reconnect()

    def deliver(self, end: End) -> bool:
        waiting = [stream_id for stream_id, events in end.inbox.items() if events]
        if not waiting:
            return False
        stream_id = self.random.choice(waiting)
        event, value = end.inbox[stream_id].popleft()
        if event == "data" and len(value) > 1 and self.random.random() < 0.5:
            cut = self.random.randrange(1, len(value))
            end.inbox[stream_id].appendleft((event, value[cut:]))
            value = value[:cut]
        end.read(stream_id, event, value, self.now)
        return True

    def reconnect(self) -> None:
        for end in self.ends:
            for change in end.table.connection_lost(now=self.now):
                assert not change.resets
                assert change.close is None
                end.apply(change)
            end.connect()
        self.recover()

    def recover(self) -> None:
        for end in self.ends:
            for change in end.table.poll(self.now):
                end.apply(change)
            for flow in end.table.recoverable:
                end.open(now=self.now, flow_id=flow.id)

    def settle(self) -> None:
        while self.deliver(self.client) or self.deliver(self.server):
            pass

    def check(self) -> None:
        for end in self.ends:
            assert end.closed is None, f"{end.role.name} closed the connection with {end.closed}"
            table = end.table
            assert len(table) <= 6
            attached = {flow.stream_id: flow for flow in table if flow.stream_id is not None}
            assert {stream_id: table.flow_of(stream_id) for stream_id in attached} == attached
            assert len(end.given_up) == len(set(end.given_up))
            assert not set(end.given_up) & set(end.finished)


@light(80)
@given(st.integers(0, 2**32), st.lists(st.sampled_from(Link.VERBS), max_size=120), st.booleans())
def test_two_well_behaved_ends_never_quarrel(seed: int, verbs: list[str], lossy: bool) -> None:
    link = Link(seed, lossy=lossy)
    for verb in verbs:
        link.step(verb)
        link.check()
    link.settle()
    link.check()
    if not any(end.table.refused for end in link.ends):
        live = [
            {(flow.id, flow.stream_id) for flow in end.table if flow.can_send and not flow.unidirectional}
            for end in link.ends
        ]
        assert live[0] == live[1], "both ends agree which bidirectional flows are open"
    if not lossy and not any(end.given_up or end.table.expired or end.table.refused for end in link.ends):
        for end in link.ends:
            once = [payload for payload in end.delivered if payload in link.sent[2]]
            assert len(once) == len(set(once)), "QoS 2 twice, though no state was lost"


@pytest.mark.parametrize("seed", range(25))
def test_messages_survive_reconnects_on_persistent_flows(seed: int) -> None:
    """All messages on flows that ask for it arrive, each QoS 2 message once, whatever the moment of each cut."""
    link = Link(seed, lossy=False)
    link.client.open(now=0, flags=FLAGS[2], expire_interval=10**6)
    link.server.open(now=0, flags=FLAGS[1], expire_interval=10**6)
    for n in range(60):
        for end in link.ends:
            for flow in end.table:
                if flow.can_send:
                    payload = f"{end.role.name} {flow.id} {n}".encode()
                    qos = 1 + n % 2
                    link.sent[qos].append(payload)
                    end.publish(flow, payload, qos)
        for _ in range(link.random.randrange(20)):
            link.deliver(link.random.choice(link.ends))
        if link.random.random() < 0.2:
            link.reconnect()
        elif link.random.random() < 0.1:
            link.step("take over")
        link.check()
    link.reconnect()
    link.settle()
    link.check()
    for sender, receiver in (link.ends, link.ends[::-1]):
        mine = [
            payload for qos in (1, 2) for payload in link.sent[qos] if payload.startswith(sender.role.name.encode())
        ]
        assert sorted(sender.finished) == sorted(mine)
        assert set(receiver.delivered) == set(mine)
        once = [payload for payload in receiver.delivered if payload in set(link.sent[2])]
        assert len(once) == len(set(once))
        assert sender.given_up == []
