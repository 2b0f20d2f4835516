"""QoS 1 and 2 of one session: what is in flight in both directions, and what comes next (MQTT 5.0 section 4.3).

:class:`Deliveries` outlives connections. It knows no clock and no bytes: messages and packets go in, packets to send
come out. What each packet does stands in :data:`mqttquic_lab.mqtt.state.DELIVERY_TABLE`; this module keeps the books:
packet identifiers, the peer's receive maximum and our own, order, and what to send again after a reconnect.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from mqttquic_lab.errors import ProtocolError, PublishError, UsageError
from mqttquic_lab.mqtt.packet_ids import MAX_PACKET_ID, PacketIds
from mqttquic_lab.mqtt.packets import PubAck, PubComp, PubRec, PubRel, encode_publish
from mqttquic_lab.mqtt.reason_codes import ReasonCode
from mqttquic_lab.mqtt.state import DELIVERY_TABLE, DeliveryState, PacketKind, Violation, violation_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mqttquic_lab.mqtt.packets import Publish
    from mqttquic_lab.mqtt.reader import Version

_RESERVED_IDS = 256
"""Identifiers that PUBLISH leaves to SUBSCRIBE and UNSUBSCRIBE, even if the peer would take 65535 messages."""

_OFFLINE = -(1 << 20)
"""Send quota without a connection: late acknowledgements may raise it, but never above zero."""

_NONE = int(DeliveryState.NONE)
_AWAIT_PUBACK = int(DeliveryState.AWAIT_PUBACK)
_AWAIT_PUBREC = int(DeliveryState.AWAIT_PUBREC)
_AWAIT_PUBCOMP = int(DeliveryState.AWAIT_PUBCOMP)
_AWAIT_PUBREL = int(DeliveryState.AWAIT_PUBREL)
_PUBREC = int(PacketKind.PUBREC)
_PUBREL = int(PacketKind.PUBREL)
_PUBLISH_QOS1 = int(PacketKind.PUBLISH_QOS1)
_PUBLISH_QOS2 = int(PacketKind.PUBLISH_QOS2)
_PUBREC_REFUSED = int(PacketKind.PUBREC_REFUSED)

_Step = tuple[int, int | None, ReasonCode]


def _compile() -> tuple[tuple[_Step | None, ...], ...]:
    """Lay DELIVERY_TABLE out by position, None for what must not happen: plain ints, no hashing per packet."""
    rows = []
    for state in DeliveryState:
        row: list[_Step | None] = [None] * (max(PacketKind) + 1)
        for (of, kind), entry in DELIVERY_TABLE.items():
            if of is state and not isinstance(entry, Violation):
                row[kind] = (
                    int(entry.next),
                    None if entry.reply is None else int(entry.reply),
                    ReasonCode(entry.reason_code),
                )
        rows.append(tuple(row))
    return tuple(rows)


_STEPS: Final = _compile()


class Delivery:
    """One outgoing message at QoS 1 or 2, from :meth:`Deliveries.send` until its exchange has ended.

    Reads like a :class:`~mqttquic_lab.mqtt.packets.Publish` and encodes like one, without being built as one.

    Attributes
    ----------
    topic, payload, qos, retain, properties
        Of the PUBLISH. `properties` may be replaced before :meth:`encode` (message expiry counts down in a queue).
    token : object
        Whatever the owner passed to :meth:`Deliveries.send`: a future, a stored message, None.
    packet_id : int or None
        None while the message waits for its first transmission.
    dup : bool
        Whether it has been sent on an earlier connection [MQTT-3.3.1-1].
    state : int
        A :class:`~mqttquic_lab.mqtt.state.DeliveryState`.
    accepted : ReasonCode
        Reason code of the PUBREC that accepted the message (QoS 2).
    """

    __slots__ = ("accepted", "dup", "packet_id", "payload", "properties", "qos", "retain", "state", "token", "topic")

    TYPE: ClassVar[int] = 3
    NAME: ClassVar[str] = "PUBLISH"

    def __init__(
        self, topic: str, payload: bytes, qos: int, retain: bool, properties: Any, token: Any, packet_id: int | None
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.properties = properties
        self.token = token
        self.packet_id = packet_id
        self.dup = False
        self.accepted = ReasonCode.SUCCESS
        self.state = _AWAIT_PUBACK if qos == 1 else _AWAIT_PUBREC

    def encode(self, version: Version = 5) -> bytes:
        """Return the PUBLISH on the wire, with the whole topic (aliases do not outlive a connection)."""
        return encode_publish(
            self.topic, self.payload, self.qos, self.retain, self.dup, self.packet_id, self.properties, version
        )

    def __repr__(self) -> str:
        return (
            f"<Delivery {self.packet_id if self.packet_id is not None else 'queued'}: {self.topic!r} qos={self.qos}, "
            f"{len(self.payload)} B, {DeliveryState(self.state).name}>"
        )


class Outcome:
    """What an acknowledgement brought about.

    Attributes
    ----------
    reply : PubRel or None
        Packet to send in answer.
    finished : Delivery or None
        The message whose exchange this ended; with `reason_code` of 0x80 or more it was refused.
    reason_code : ReasonCode
        What became of the message: the code of PUBACK or PUBREC. PUBCOMP repeats that of the PUBREC before it: its own
        0x92 only tells that the peer had finished before a reconnect, and is counted in :attr:`Deliveries.unknown`.
    sendable : sequence of Delivery
        Messages that may be sent now, in this order; they have their packet identifiers.
    accepted : Delivery or None
        The QoS 2 message that a PUBREC accepted for the first time.
    """

    __slots__ = ("accepted", "finished", "reason_code", "reply", "sendable")

    def __init__(
        self,
        reply: PubRel | None,
        finished: Delivery | None,
        reason_code: ReasonCode,
        sendable: Sequence[Delivery],
        accepted: Delivery | None = None,
    ) -> None:
        self.accepted = accepted
        self.reply = reply
        self.finished = finished
        self.reason_code = reason_code
        self.sendable = sendable

    @property
    def token(self) -> Any:
        """Token of the finished message, or None."""
        return self.finished.token if self.finished is not None else None

    def __repr__(self) -> str:
        return (
            f"<Outcome: reply {self.reply!r}, finished {self.finished!r}, reason code 0x{self.reason_code:02x}, "
            f"{len(self.sendable)} sendable>"
        )


class Received(NamedTuple):
    """What to do with a PUBLISH that arrived.

    Attributes
    ----------
    deliver : bool
        Whether to hand the message on; False for a QoS 2 message that was handed on before.
    reply : PubAck, PubRec or None
        Packet to send in answer; None at QoS 0.
    """

    deliver: bool
    reply: PubAck | PubRec | None


class Deliveries:
    """The QoS 1 and 2 exchanges of one session, both directions, surviving reconnects.

    Parameters
    ----------
    receive_maximum : int
        Our own Receive Maximum, as told to the peer: how many QoS 1 and 2 messages it may have unanswered on one
        connection (MQTT 5.0 section 4.9). Not enforced for 3.1.1, which has no such limit.
    max_queued : int
        Messages that may wait for the send quota, or for a connection.
    peer_receive_maximum : int
        The peer's Receive Maximum: our send quota. 65535 where the peer said nothing.
    version : {5, 4}
        Protocol level.
    ids : PacketIds, optional
        The sender's packet identifiers, to be shared with SUBSCRIBE and UNSUBSCRIBE; own ones by default.

    Attributes
    ----------
    ids : PacketIds
        As above; ``ids.allocate()`` and ``ids.release()`` also serve SUBSCRIBE and UNSUBSCRIBE.
    skip : callable(Delivery) -> bool, or None
        Asked before a queued message is sent for the first time; True drops it (it has expired, or nobody waits for
        it any more) and counts it in `skipped`.
    sent, resent, finished, refused, skipped : int
        Messages sent first and again, ended with success, ended with a failing code, dropped by `skip`.
    received, duplicates, unknown : int
        QoS 1 and 2 messages handed on, repeated QoS 2 messages held back, acknowledgements for unknown identifiers.

    Raises
    ------
    UsageError
        If a limit is out of range.

    Examples
    --------
    On a connection, as sender::

        packet_id = deliveries.send(topic, payload, qos, token=future)
        if packet_id is not None:                      # else it waits for the send quota
            write(encode_publish(topic, payload, qos, packet_id=packet_id))
        ...
        outcome = deliveries.acknowledge(packet)       # PUBACK, PUBREC or PUBCOMP arrived
        if outcome.reply: write(outcome.reply.encode(version))
        for delivery in outcome.sendable: write(delivery.encode(version))
        if outcome.finished: outcome.finished.token.set_result(outcome.reason_code)

    Between connections: :meth:`suspend` when one is lost, :meth:`resume` when the next is accepted with Session
    Present, :meth:`clear` when it is accepted without.
    """

    __slots__ = (
        "_answers_owed",
        "_excused",
        "_incoming",
        "_queue",
        "_quota",
        "_released",
        "_unacknowledged",
        "_uncounted",
        "duplicates",
        "finished",
        "ids",
        "max_queued",
        "peer_receive_maximum",
        "receive_maximum",
        "received",
        "refused",
        "resent",
        "sent",
        "skip",
        "skipped",
        "unknown",
        "version",
    )

    def __init__(
        self,
        receive_maximum: int = MAX_PACKET_ID,
        max_queued: int = 100_000,
        *,
        peer_receive_maximum: int = MAX_PACKET_ID,
        version: Version = 5,
        ids: PacketIds | None = None,
    ) -> None:
        if max_queued < 0:
            raise UsageError(f"max_queued must not be negative: {max_queued!r}")
        self.receive_maximum = _check_maximum("receive_maximum", receive_maximum)
        self.peer_receive_maximum = _check_maximum("peer_receive_maximum", peer_receive_maximum)
        self.max_queued = max_queued
        self.version = version
        self.ids = PacketIds() if ids is None else ids
        self.skip: Callable[[Delivery], bool] | None = None
        # Sender. Both dicts keep order: of the PUBLISH packets, and of the PUBRECs they were answered with.
        self._unacknowledged: dict[int, Delivery] = {}
        self._released: dict[int, Delivery] = {}
        self._uncounted: set[int] = set()  # released on an earlier connection: their PUBCOMP frees no quota
        self._queue: deque[Delivery] = deque()  # those to be resent (with packet id) stand before the new ones
        self._quota = min(self.peer_receive_maximum, MAX_PACKET_ID - _RESERVED_IDS)
        # Receiver. Packet id -> whether its PUBLISH came on this connection.
        self._incoming: dict[int, bool] = {}
        self._answers_owed = 0
        self._excused = 0
        self.sent = self.resent = self.finished = self.refused = self.skipped = 0
        self.received = self.duplicates = self.unknown = 0

    # Sender -------------------------------------------------------------------------------------------------------

    def send(
        self,
        topic: str,
        payload: bytes,
        qos: int,
        retain: bool = False,
        properties: Any = None,
        token: Any = None,
    ) -> int | None:
        """Begin an exchange; returns the packet identifier to send the PUBLISH with now, or None if it must wait.

        A message that waits comes back in :attr:`Outcome.sendable`, or from :meth:`resume`, when its turn has come.

        Parameters
        ----------
        topic, payload, qos, retain, properties
            Of the PUBLISH; `qos` is 1 or 2.
        token : object
            Handed back when the exchange ends.

        Raises
        ------
        PublishError
            If `max_queued` messages wait already; reason code 0x97 (Quota exceeded). Nothing has changed then.
        """
        if self._quota > 0 and not self._queue:
            packet_id = self.ids.allocate()
            if packet_id is not None:
                self._unacknowledged[packet_id] = Delivery(topic, payload, qos, retain, properties, token, packet_id)
                self._quota -= 1
                self.sent += 1
                return packet_id
        if len(self._queue) >= self.max_queued:
            raise PublishError(
                f"{len(self._queue)} messages wait to be sent already and {len(self)} to be acknowledged (the peer "
                f"accepts {self.peer_receive_maximum} at once): wait for earlier ones, or raise max_queued",
                reason_code=0x97,
            )
        self._queue.append(Delivery(topic, payload, qos, retain, properties, token, None))
        return None

    def acknowledge(self, packet: PubAck | PubRec | PubComp) -> Outcome:
        """Take in a PUBACK, PUBREC or PUBCOMP.

        An unknown identifier is no error (MQTT 5.0 section 4.4: it happens in recovery): it is counted, and PUBREC is
        answered by PUBREL with 0x92, Packet Identifier not found.

        Raises
        ------
        ProtocolError
            If the packet does not fit the exchange, such as PUBREC for a QoS 1 message; reason code 0x82.
        """
        packet_id = packet.packet_id
        code = packet.reason_code
        kind = packet.TYPE
        if kind == _PUBREC and code >= 0x80:
            kind = _PUBREC_REFUSED
        delivery = self._unacknowledged.get(packet_id)
        if delivery is None:
            delivery = self._released.get(packet_id)
        state = _NONE if delivery is None else delivery.state
        step = _STEPS[state][kind]
        if step is None:
            raise _delivery_error(state, kind, packet)
        following, reply, reply_code = step
        if delivery is None:
            self.unknown += 1
            return Outcome(PubRel(packet_id, reply_code) if reply is not None else None, None, code, ())
        if following == _NONE:
            if state == _AWAIT_PUBCOMP:
                if code:
                    self.unknown += 1
                code = delivery.accepted
                del self._released[packet_id]
                if packet_id in self._uncounted:
                    self._uncounted.remove(packet_id)
                else:
                    self._quota += 1
            else:
                del self._unacknowledged[packet_id]
                self._quota += 1
            self.ids.release(packet_id)
            if code >= 0x80:
                self.refused += 1
            else:
                self.finished += 1
            delivery.state = _NONE
            return Outcome(None, delivery, code, self.take_sendable() if self._queue else ())
        if state == _AWAIT_PUBREC:
            self._released[packet_id] = self._unacknowledged.pop(packet_id)
            delivery.state = following
            delivery.accepted = code
            return Outcome(PubRel(packet_id, reply_code), None, code, (), delivery)
        return Outcome(PubRel(packet_id, reply_code), None, code, ())

    def take_sendable(self) -> list[Delivery]:
        """Return the waiting messages that may be sent now; :meth:`acknowledge` and :meth:`resume` do it themselves.

        Worth a call after ``ids.release()`` of a SUBSCRIBE, if identifiers had run out.
        """
        sendable: list[Delivery] = []
        queue = self._queue
        while queue and self._quota > 0:
            delivery = queue[0]
            packet_id = delivery.packet_id
            if packet_id is None:
                if self.skip is not None and self.skip(delivery):
                    queue.popleft()
                    self.skipped += 1
                    continue
                packet_id = self.ids.allocate()
                if packet_id is None:
                    break
                delivery.packet_id = packet_id
                self.sent += 1
            else:
                self.resent += 1
            queue.popleft()
            self._unacknowledged[packet_id] = delivery
            self._quota -= 1
            sendable.append(delivery)
        return sendable

    def drop_queued(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        """Take messages that were never sent out of the queue, all for which `unwanted` is true; returns them.

        One pass over the queue. A message that was sent once must stay until its exchange has ended.
        """
        dropped: list[Delivery] = []
        kept: deque[Delivery] = deque()
        for delivery in self._queue:
            (dropped if delivery.packet_id is None and unwanted(delivery) else kept).append(delivery)
        if dropped:
            self._queue = kept
        return dropped

    # Receiver -----------------------------------------------------------------------------------------------------

    def receive(self, publish: Publish, reason_code: int = ReasonCode.SUCCESS) -> Received:
        """Take in a PUBLISH of any QoS.

        Parameters
        ----------
        publish : Publish
            As decoded.
        reason_code : int
            What to answer if the message is new: 0x10 (No matching subscribers) or a failure of 0x80 or more, which
            ends the exchange and refuses the message (`deliver` is False then). MQTT 5.0 only.

        Raises
        ------
        ProtocolError
            If the peer sends more than our receive maximum (0x93), or reuses the identifier of a QoS 2 message that
            it has not released at QoS 1 in MQTT 3.1.1, which cannot refuse it (0x82).
        """
        qos = publish.qos
        if not qos:
            return Received(True, None)
        packet_id = publish.packet_id
        assert packet_id is not None
        counted = self._incoming.get(packet_id)
        if not counted and self._answers_owed >= self.receive_maximum + self._excused and self.version == 5:
            raise ProtocolError(
                f"PUBLISH while {self._answers_owed} are unanswered, though Receive Maximum is {self.receive_maximum}",
                reason_code=0x93,
                rule="MQTT-3.3.4-7, MQTT-3.3.4-9",
                section="MQTT 5.0 section 3.3.4",
                packet=publish,
            )
        step = _STEPS[_NONE if counted is None else _AWAIT_PUBREL][_PUBLISH_QOS1 if qos == 1 else _PUBLISH_QOS2]
        assert step is not None
        following, reply, reply_code = step
        if reply_code >= 0x80 and self.version != 5:
            raise ProtocolError(
                f"PUBLISH at QoS {qos} with identifier {packet_id}, which an unreleased QoS 2 message holds",
                reason_code=0x82,
                rule="MQTT-2.3.1-2",
                section="MQTT 3.1.1 section 2.3.1",
                packet=publish,
            )
        deliver = counted is None
        if deliver:
            reply_code = ReasonCode.SUCCESS if reason_code == 0 else ReasonCode(reason_code)
            if reason_code >= 0x80:
                deliver = False
                following = _NONE
            else:
                self.received += 1
        elif reply == _PUBREC:
            self.duplicates += 1
        if following == _AWAIT_PUBREL and reply == _PUBREC and not counted:
            self._incoming[packet_id] = True
            self._answers_owed += 1
        return Received(deliver, PubRec(packet_id, reply_code) if reply == _PUBREC else PubAck(packet_id, reply_code))

    def release(self, packet: PubRel) -> PubComp:
        """Take in a PUBREL and return its answer, with 0x92 if no exchange has this identifier."""
        counted = self._incoming.pop(packet.packet_id, None)
        step = _STEPS[_NONE if counted is None else _AWAIT_PUBREL][_PUBREL]
        assert step is not None
        if counted:
            self._answers_owed -= 1
        else:
            # The peer's quota may grow by this PUBCOMP though it shrank for no PUBLISH on this connection: the rules
            # of MQTT 5.0 section 4.9 cap the quota but do not tell such a PUBCOMP from others.
            self._excused = min(self._excused + 1, MAX_PACKET_ID)
            if counted is None:
                self.unknown += 1
        return PubComp(packet.packet_id, step[2])

    # Connections --------------------------------------------------------------------------------------------------

    def suspend(self) -> None:
        """Note that the connection is gone: from now on :meth:`send` only queues, until :meth:`resume`."""
        self._quota = _OFFLINE

    def begin(self, peer_receive_maximum: int) -> None:
        """Take the limit of the first CONNACK; messages that went before it count, and are not sent again."""
        self.peer_receive_maximum = _check_maximum("peer_receive_maximum", peer_receive_maximum)
        self._quota = min(self.peer_receive_maximum, MAX_PACKET_ID - _RESERVED_IDS) - len(self)

    def resume(
        self,
        peer_receive_maximum: int | None = None,
        *,
        receive_maximum: int | None = None,
        version: Version | None = None,
    ) -> list[Delivery | PubRel]:
        """Begin a new connection of the same session; returns what to send at once, in order.

        First each PUBREL whose PUBCOMP is missing, in the order of their PUBRECs [MQTT-4.6.0-4]; then unacknowledged
        messages in their first order, with DUP [MQTT-4.4.0-1, MQTT-4.6.0-1]; then messages that waited. Messages
        beyond the peer's receive maximum follow in :attr:`Outcome.sendable`. Not for the first connection: `begin`.

        Parameters
        ----------
        peer_receive_maximum, receive_maximum, version
            As for the class, if they are others than before.

        Raises
        ------
        UsageError
            If a limit is out of range.
        """
        if peer_receive_maximum is not None:
            self.peer_receive_maximum = _check_maximum("peer_receive_maximum", peer_receive_maximum)
        if receive_maximum is not None:
            self.receive_maximum = _check_maximum("receive_maximum", receive_maximum)
        if version is not None:
            self.version = version
        self._quota = min(self.peer_receive_maximum, MAX_PACKET_ID - _RESERVED_IDS)
        self._uncounted = set(self._released)
        self._incoming = dict.fromkeys(self._incoming, False)
        self._answers_owed = self._excused = 0
        for delivery in self._unacknowledged.values():
            delivery.dup = True
        self._queue.extendleft(reversed(self._unacknowledged.values()))
        self._unacknowledged.clear()
        releases: list[Delivery | PubRel] = [PubRel(packet_id) for packet_id in self._released]
        self.resent += len(releases)
        return releases + self.take_sendable()

    def restore(self, sent: Iterable[Delivery], released: Iterable[Delivery], received: Iterable[int]) -> None:
        """Take over exchanges that a store has kept; :meth:`resume` goes on with them.

        Parameters
        ----------
        sent : iterable of Delivery
            Messages without PUBACK or PUBREC, in the order in which they were sent, with their packet identifiers.
        released : iterable of Delivery
            Messages without PUBCOMP, in the order of their PUBRECs.
        received : iterable of int
            Packet identifiers of the QoS 2 messages received without PUBREL.

        Raises
        ------
        ValueError
            A packet identifier is out of range, or used twice.
        """
        for place, deliveries in ((self._unacknowledged, sent), (self._released, released)):
            for delivery in deliveries:
                packet_id = delivery.packet_id
                if packet_id is None or not self.ids.take(packet_id):
                    raise ValueError(f"packet identifier {packet_id} cannot be used, or not twice")
                place[packet_id] = delivery
        self._incoming.update(dict.fromkeys(received, False))

    def clear(self) -> list[Delivery]:
        """Forget all exchanges, as when the peer has lost the session; returns what never finished, oldest first.

        The owner says whether those fail or begin anew with :meth:`send`. Identifiers of SUBSCRIBE and UNSUBSCRIBE
        are the owner's to release. Send quota and connection stay as they are until :meth:`resume`.
        """
        given_up = self.unfinished()
        for delivery in given_up:
            if delivery.packet_id is not None:
                self.ids.release(delivery.packet_id)
                delivery.packet_id = None
        self._released.clear()
        self._unacknowledged.clear()
        self._uncounted.clear()
        self._queue.clear()
        self._incoming.clear()
        self._answers_owed = self._excused = 0
        return given_up

    # What stands --------------------------------------------------------------------------------------------------

    @property
    def quota(self) -> int:
        """Messages that may be sent now without waiting; 0 without a connection."""
        return max(0, self._quota)

    @property
    def queued(self) -> int:
        """Messages that wait for the send quota or a connection."""
        return len(self._queue)

    def unfinished(self) -> list[Delivery]:
        """Return the messages whose exchange has not ended and those that wait to be sent, oldest first."""
        return [*self._released.values(), *self._unacknowledged.values(), *self._queue]

    @property
    def is_full(self) -> bool:
        """Whether :meth:`send` would raise."""
        return (self._quota <= 0 or bool(self._queue)) and len(self._queue) >= self.max_queued

    @property
    def awaiting_release(self) -> int:
        """QoS 2 messages received whose PUBREL has not come."""
        return len(self._incoming)

    def __len__(self) -> int:
        """Messages sent whose exchange has not ended."""
        return len(self._unacknowledged) + len(self._released)

    def __repr__(self) -> str:
        return (
            f"<Deliveries: {len(self)} in flight, {self.queued} queued, quota {self.quota} of "
            f"{self.peer_receive_maximum}, {self.awaiting_release} awaiting PUBREL>"
        )


def _check_maximum(name: str, value: int) -> int:
    if not 1 <= value <= MAX_PACKET_ID:
        raise UsageError(f"{name} must be between 1 and 65535, not {value!r}")
    return value


def _delivery_error(state: int, kind: int, packet: Any) -> ProtocolError:
    entry = DELIVERY_TABLE[DeliveryState(state), PacketKind(kind)]
    assert isinstance(entry, Violation)
    return violation_error(entry, f"{packet.NAME} for packet identifier {packet.packet_id}", packet)
