"""Two ends and a link between them that dies whenever hypothesis likes.

Real bytes travel: each end encodes, the other one decodes. When the link dies, what was under way is lost in both
directions (a byte stream loses a tail, never a middle), and both ends resume on a new one, perhaps with other limits.
The ends are watched from outside: what was handed to the application, and how many messages were unanswered on the
wire.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mqttquic_lab.mqtt.decoder import PacketDecoder
from mqttquic_lab.mqtt.deliveries import Deliveries, Delivery
from mqttquic_lab.mqtt.packet_ids import PacketIds
from mqttquic_lab.mqtt.packets import PubAck, PubComp, Publish, PubRec, PubRel

Version = Literal[4, 5]

MAXIMA = st.integers(1, 4)
REFUSED = 0x87


class End:
    """One end: its books, its application, and a count of what is unanswered on its side of the wire."""

    def __init__(self, name: Literal["client", "server"], version: Version) -> None:
        self.name = name
        self.version = version
        self.ids = PacketIds()
        self.deliveries = Deliveries(ids=self.ids, version=version)
        self.wire: deque[bytes] = deque()  # on the way to the other end
        self.decoder: PacketDecoder
        self.peer: End
        self.sent: list[tuple[int, bool]] = []  # QoS and whether the receiver will refuse it; index = message number
        self.handed_over: list[int] = []
        self.first_seen: list[int] = []
        self.outcomes: dict[int, int] = {}
        self.subscribe_ids: set[int] = set()
        self.unanswered: set[int] = set()

    def connect(self, own_maximum: int, peer_maximum: int) -> None:
        self.decoder = PacketDecoder(self.version, receiver=self.name)
        self.wire.clear()
        self.unanswered.clear()
        for packet in self.deliveries.resume(peer_maximum, receive_maximum=own_maximum):
            self.write(packet)

    def write(self, packet: Any) -> None:
        if isinstance(packet, Delivery):
            assert packet.packet_id is not None
            assert packet.packet_id not in self.unanswered
            self.unanswered.add(packet.packet_id)
            assert len(self.unanswered) <= self.deliveries.peer_receive_maximum
        self.wire.append(packet.encode(self.version))

    def publish(self, qos: int, refuse: bool) -> None:
        number = len(self.sent)
        self.sent.append((qos, refuse))
        packet_id = self.deliveries.send("t", b"%d" % number, qos, token=number)
        if packet_id is not None:
            assert packet_id not in self.subscribe_ids
            self.write(Delivery("t", b"%d" % number, qos, False, {}, number, packet_id))

    def read(self, data: bytes) -> None:
        for packet in self.decoder.feed(data):
            if isinstance(packet, Publish):
                number = int(packet.payload)
                refuse = self.peer.sent[number][1]
                deliver, reply = self.deliveries.receive(packet, REFUSED if refuse else 0)
                if number not in self.first_seen:
                    self.first_seen.append(number)
                if deliver:
                    self.handed_over.append(number)
                assert reply is not None
                self.write(reply)
            elif isinstance(packet, PubRel):
                self.write(self.deliveries.release(packet))
            else:
                assert isinstance(packet, (PubAck, PubRec, PubComp))
                if not isinstance(packet, PubRec) or packet.reason_code >= 0x80:
                    self.unanswered.discard(packet.packet_id)
                outcome = self.deliveries.acknowledge(packet)
                if outcome.finished is not None:
                    assert outcome.token not in self.outcomes
                    self.outcomes[outcome.token] = int(outcome.reason_code)
                if outcome.reply is not None:
                    self.write(outcome.reply)
                for delivery in outcome.sendable:
                    assert delivery.packet_id not in self.subscribe_ids
                    self.write(delivery)


class LossyLink(RuleBasedStateMachine):
    """Both ends publish, packets travel or are lost, and nothing may be lost, doubled, reordered or leaked."""

    version: Version = 5

    @initialize(maxima=st.tuples(MAXIMA, MAXIMA))
    def connect(self, maxima: tuple[int, int]) -> None:
        self.client, self.server = End("client", self.version), End("server", self.version)
        self.client.peer, self.server.peer = self.server, self.client
        self.up = False
        self.reconnect(maxima)

    def end(self, of_client: bool) -> End:
        return self.client if of_client else self.server

    @rule(of_client=st.booleans(), messages=st.lists(st.tuples(st.integers(1, 2), st.booleans()), max_size=4))
    def publish(self, of_client: bool, messages: list[tuple[int, bool]]) -> None:
        for qos, refuse in messages:
            self.end(of_client).publish(qos, refuse and self.version == 5)

    @precondition(lambda self: self.up)
    @rule(of_client=st.booleans(), count=st.integers(1, 6), cut=st.integers(0, 3))
    def deliver(self, of_client: bool, count: int, cut: int) -> None:
        """Let some packets through, in pieces that do not end where packets end."""
        sender = self.end(of_client)
        packets = [sender.wire.popleft() for _ in range(min(count, len(sender.wire)))]
        data = b"".join(packets)
        for piece in (data[:cut], data[cut:]):
            sender.peer.read(piece)

    @precondition(lambda self: self.up)
    @rule()
    def lose(self) -> None:
        self.up = False
        for end in (self.client, self.server):
            end.wire.clear()
            end.deliveries.suspend()
            for packet_id in end.subscribe_ids:
                end.ids.release(packet_id)
            end.subscribe_ids.clear()

    @precondition(lambda self: not self.up)
    @rule(maxima=st.tuples(MAXIMA, MAXIMA))
    def reconnect(self, maxima: tuple[int, int]) -> None:
        self.up = True
        self.client.connect(maxima[0], maxima[1])
        self.server.connect(maxima[1], maxima[0])

    @rule(of_client=st.booleans(), give_back=st.booleans())
    def subscribe(self, of_client: bool, give_back: bool) -> None:
        """Take or return an identifier for a SUBSCRIBE, whose exchange is not the deliveries' concern."""
        end = self.end(of_client)
        if give_back and end.subscribe_ids:
            end.ids.release(end.subscribe_ids.pop())
        elif len(end.subscribe_ids) < 5:
            packet_id = end.ids.allocate()
            assert packet_id is not None
            assert packet_id not in end.subscribe_ids
            end.subscribe_ids.add(packet_id)

    @invariant()
    def order_is_kept_and_qos_2_comes_at_most_once(self) -> None:
        for end in (self.client, self.server) if hasattr(self, "client") else ():
            assert end.first_seen == sorted(end.first_seen)
            once = [number for number in end.handed_over if end.peer.sent[number][0] == 2]
            assert once == sorted(set(once))

    def teardown(self) -> None:
        if not hasattr(self, "client"):
            return
        if not self.up:
            self.reconnect((2, 2))
        for _ in range(10_000):
            if not (self.client.wire or self.server.wire):
                break
            for end in (self.client, self.server):
                while end.wire:
                    end.peer.read(end.wire.popleft())
        for end in (self.client, self.server):
            wanted = [number for number, (_, refuse) in enumerate(end.sent) if not refuse]
            assert sorted(set(end.peer.handed_over)) == wanted
            assert end.outcomes == {number: REFUSED if refuse else 0 for number, (_, refuse) in enumerate(end.sent)}
            books = end.deliveries
            assert (len(books), books.queued, books.awaiting_release) == (0, 0, 0)
            assert books.quota == books.peer_receive_maximum
            assert len(end.ids) == len(end.subscribe_ids)
            assert not end.unanswered
            assert (books.sent, books.finished + books.refused) == (len(end.sent), len(end.sent))


class LossyLinkV311(LossyLink):
    version: Version = 4


@pytest.mark.parametrize("machine", [LossyLink, LossyLinkV311])
def test_nothing_is_lost_doubled_reordered_or_leaked(machine: type[LossyLink]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=150,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
            phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],  # to explain takes a minute
        ),
    )
