"""Sessions: what outlives a network connection (MQTT 5.0 section 4.1), and the store that bounds how many there are."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from mqttquic_lab.broker.outbox import FULL, Outbox
from mqttquic_lab.mqtt import PubAck, PubRec, PubRel, ReasonCode
from mqttquic_lab.mqtt.deliveries import Deliveries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mqttquic_lab.broker.acl import Rights
    from mqttquic_lab.broker.clock import Clock, TimerHandle
    from mqttquic_lab.broker.config import BrokerConfig
    from mqttquic_lab.broker.message import Message
    from mqttquic_lab.broker.mqttv5_flows import FlowSubscriptions, Mqttv5Flows
    from mqttquic_lab.broker.pipeline import Pipeline
    from mqttquic_lab.broker.router import Entry, SharedGroup
    from mqttquic_lab.broker.session_flows import SessionFlows
    from mqttquic_lab.broker.status import BrokerStats
    from mqttquic_lab.broker.store.journal import Journal
    from mqttquic_lab.broker.store.kept import KeptSession
    from mqttquic_lab.mqtt import PubComp
    from mqttquic_lab.mqtt.deliveries import Delivery

NEVER = 0xFFFFFFFF
"""Session Expiry Interval of a session that does not expire (MQTT 5.0 section 3.1.2.11.2)."""


class Outgoing(NamedTuple):
    """A message on its way to one session with QoS 1 or 2."""

    message: Message
    qos: int
    retain: bool
    identifiers: tuple[int, ...]
    number: int = 0
    """In the store; 0 in a session that is not kept."""
    group: SharedGroup | None = None
    """The shared subscription that it came by: others of it may have the message (MQTT 5.0 section 4.8.2)."""


class Backlog:
    """What waits in all sessions together."""

    __slots__ = ("count", "nbytes")

    def __init__(self) -> None:
        self.count = 0
        self.nbytes = 0


class Session:
    """One client's state; or that of one of its data streams, where those have their own.

    Attributes
    ----------
    client_id : str
    owner : Session
        The client's session: this one, unless it belongs to a data stream.
    flows : SessionFlows, Mqttv5Flows or None
        The flows of a client that speaks MQTT-next, or mqttv5's.
    client : Pipeline or None
        The control stream, or the data stream, that it sends on now.
    rights : Rights or None
        What the client may do; None where nothing is forbidden, or nobody has connected since the broker started.
    subscriptions : dict of str to Entry
        By topic filter as the client wrote it.
    deliveries : Deliveries
        QoS 1 and 2 exchanges under way in both directions.
    queue : deque of Outgoing
        QoS 1 and 2 messages that wait for the client to come back or to acknowledge earlier ones. Deliveries could
        queue them as well, but knows no bound in bytes and would not give up the oldest.
    queued_bytes, inflight_bytes : int
        Topic and payload bytes of those, and of the messages sent and not acknowledged.
    expiry_interval : int
        Seconds the session is kept after the connection has ended.
    kept : KeptSession or None
        Notes every change, where the broker has a store and the session outlives its connection.
    """

    __slots__ = (
        "_backlog", "_clock", "_config", "_inflight_bytes", "_stats", "client", "client_id", "deliveries", "expires_at",
        "expiry_interval", "expiry_timer", "flows", "kept", "owner", "queue", "queued_bytes", "rights", "subscriptions",
        "under_way",
    )  # fmt: skip

    def __init__(
        self,
        client_id: str,
        config: BrokerConfig,
        stats: BrokerStats,
        clock: Clock,
        backlog: Backlog,
        owner: Session | None = None,
    ) -> None:
        self.client_id = client_id
        self.owner = self if owner is None else owner
        self.client: Pipeline | None = None
        self.rights: Rights | None = None if owner is None else owner.rights
        self.flows: SessionFlows | Mqttv5Flows | None = None
        self.kept: KeptSession | None = None
        self.subscriptions: dict[str, Entry] = {}
        self.deliveries = Deliveries(config.max_inflight)
        self.deliveries.suspend()
        self.queue: deque[Outgoing] = deque()
        self.queued_bytes = 0
        self._inflight_bytes = 0
        self.under_way = 0
        """Bytes of the messages sent and not acknowledged on all streams of the client; kept by their owner."""
        self.expiry_interval = 0
        self.expires_at = 0.0
        self.expiry_timer: TimerHandle | None = None
        self._config = config
        self._stats = stats
        self._clock = clock
        self._backlog = backlog

    def __repr__(self) -> str:
        state = "connected" if self.client is not None else "away"
        return f"<Session {self.client_id!r} {state}, {len(self.subscriptions)} subscriptions>"

    @property
    def inflight(self) -> int:
        """QoS 1 and 2 messages sent and not acknowledged."""
        return len(self.deliveries)

    @property
    def inflight_bytes(self) -> int:
        """Topic, payload and property bytes of those."""
        return self._inflight_bytes

    @inflight_bytes.setter
    def inflight_bytes(self, count: int) -> None:
        self.owner.under_way += count - self._inflight_bytes
        self._inflight_bytes = count

    # --- connections --------------------------------------------------------------------------------------------

    def connected(self, client: Pipeline, receive_maximum: int) -> None:
        """Go on over a new connection: repeat what was not acknowledged, then send what waits.

        Parameters
        ----------
        client : Pipeline
            The stream, CONNACK written.
        receive_maximum : int
            QoS 1 and 2 messages that may be sent at a time (MQTT 5.0 section 3.1.2.11.3).
        """
        self.client = client
        for item in self.deliveries.resume(receive_maximum, version=client.version):
            if isinstance(item, PubRel):
                client.outbox.write(item.encode(client.version))
            else:
                self._send(client, item)
        self.pump()

    def disconnected(self) -> None:
        """Note that the connection is gone."""
        self.client = None
        self.deliveries.suspend()

    # --- messages -----------------------------------------------------------------------------------------------

    def deliver(
        self,
        message: Message,
        qos: int,
        retain: bool,
        identifiers: tuple[int, ...],
        group: SharedGroup | None = None,
    ) -> None:
        """Send a message to the client, now or (QoS 1 and 2) when it can take it."""
        client = self.client
        if (
            client is not None
            and client.has_ways
            and (qos == 0 or (not self.queue and self.kept is None))  # the books of a flow are not kept
            and client.divert(Outgoing(message, qos, retain, identifiers, group=group))
        ):
            return
        if qos == 0:
            if client is not None:
                packet = message.at_most_once(client.version, retain, identifiers, self._clock.time())
                if client.takes(len(packet)):
                    client.way(message.topic).push(packet, 1, len(message.payload))
            return
        number = 0 if self.kept is None else self.kept.add(message, qos, retain, identifiers)
        outgoing = Outgoing(message, qos, retain, identifiers, number, group)
        if client is None or self.queue:
            self._enqueue(outgoing)
            return
        outbox = client.way(message.topic) if client.has_ways else client.outbox
        if outbox.is_full or not self._begin(client, outgoing, outbox):
            self._enqueue(outgoing)

    def _begin(self, client: Pipeline, outgoing: Outgoing, outbox: Outbox) -> bool:
        """Send a message for the first time; returns False if as much as allowed is under way already."""
        message, qos, retain, identifiers, _, _ = outgoing
        deliveries, kept = self.deliveries, self.kept
        if deliveries.quota == 0:
            return False
        # The client's streams share the bound. One message is always let through: its acknowledgement brings the next.
        if self._inflight_bytes and self.owner.under_way + message.size > self._config.max_queued_bytes:
            return False
        form = message.form(client.version, qos, retain, identifiers, self._clock.time())
        if not client.takes(form.size):
            if kept is not None:
                kept.remove(outgoing)
            return True  # dropped for good: it would never fit [MQTT-3.1.2-25]
        self.inflight_bytes += message.size
        packet_id = deliveries.send(message.topic, message.payload, qos, token=outgoing)
        if packet_id is not None:
            if kept is not None:
                kept.sending(outgoing, packet_id)
            self._stats.payload_bytes_out += len(message.payload)
            outbox.send(form.encode(packet_id), kept=kept is not None)
        return True  # without an identifier, it comes back among the sendable ones

    def _send(self, client: Pipeline, delivery: Delivery) -> None:
        """Send what Deliveries hands out: a message again, after the client came back, or a postponed one."""
        message, qos, retain, identifiers, _, _ = delivery.token
        packet_id, kept = delivery.packet_id, self.kept
        assert packet_id is not None
        if kept is not None and not delivery.dup:
            kept.sending(delivery.token, packet_id)
        form = message.form(client.version, qos, retain, identifiers, self._clock.time())
        if client.takes(form.size) and self._may_have(message):
            self._stats.payload_bytes_out += len(message.payload)
            client.way(message.topic).send(form.encode(packet_id, delivery.dup), kept=kept is not None)
            return
        # The client came back with a smaller Maximum Packet Size, or as somebody who may not have the message: go on as
        # if it had got this one [MQTT-3.1.2-25].
        kind = PubAck if qos == 1 else PubRec
        self.acknowledge(kind(packet_id, ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR))

    def _may_have(self, message: Message) -> bool:
        """Whether the client, who may be somebody else than when the message began to wait, may have it now."""
        rights = self.owner.rights
        if rights is None or rights.may_receive(message.topic):
            return True
        self._stats.deliveries_refused += 1
        return False

    def acknowledge(self, packet: PubAck | PubRec | PubComp) -> PubRel | None:
        """Take in an acknowledgement; returns the packet to answer with.

        Raises
        ------
        ProtocolError
            It does not fit the exchange.
        """
        outcome = self.deliveries.acknowledge(packet)
        if outcome.finished is not None:
            self.inflight_bytes -= outcome.finished.token.message.size
            if self.kept is not None:
                self.kept.remove(outcome.finished.token)
        elif outcome.accepted is not None and self.kept is not None:
            self.kept.accepted(outcome.accepted.token, packet.packet_id)
        client = self.client
        if client is not None:
            for delivery in outcome.sendable:
                self._send(client, delivery)
        return outcome.reply

    def _enqueue(self, outgoing: Outgoing) -> None:
        backlog = self._backlog
        if self.kept is not None and not outgoing.number:  # it was on its way in a flow
            outgoing = outgoing._replace(number=self.kept.add(*outgoing[:4]))
        self.queue.append(outgoing)
        self.queued_bytes += outgoing.message.size
        backlog.count += 1
        backlog.nbytes += outgoing.message.size
        self.trim()
        self._note_queue()

    def trim(self) -> None:
        """Give up the oldest of what waits, as far as the bounds ask for it."""
        config, backlog = self._config, self._backlog
        while self.queue and (
            len(self.queue) > config.max_queued
            or self.queued_bytes > config.max_queued_bytes
            or backlog.nbytes > config.max_total_queued_bytes
        ):
            outgoing = self._pop()
            if self.kept is not None:
                self.kept.remove(outgoing)
            self._stats.dropped_queue += 1
            if self.client is not None:
                self.client.outbox.dropped += 1

    def _pop(self) -> Outgoing:
        outgoing = self.queue.popleft()
        self.queued_bytes -= outgoing.message.size
        self._backlog.count -= 1
        self._backlog.nbytes -= outgoing.message.size
        return outgoing

    def _note_queue(self) -> None:
        if self.client is not None:
            config = self._config
            used = max(len(self.queue) / config.max_queued, self.queued_bytes / config.max_queued_bytes)
            self.client.outbox.note_queue(used)

    def pump(self) -> None:
        """Send what waits, as far as the client takes it."""
        client = self.client
        if client is None or not self.queue:
            return
        now = self._clock.time()
        batch = 0
        while self.queue:
            outgoing = self.queue[0]
            outbox = client.way(outgoing.message.topic)
            if outbox.is_full:
                break
            if outgoing.message.is_expired(now):
                self._stats.expired += 1
                if self.kept is not None:
                    self.kept.remove(outgoing)
            elif not self._may_have(outgoing.message):
                if self.kept is not None:
                    self.kept.remove(outgoing)
            elif client.has_ways and self.kept is None and client.divert(outgoing):
                pass
            elif not self._begin(client, outgoing, outbox):
                break
            self._pop()
            batch += outgoing.message.size
            if batch > FULL:
                batch = 0
                outbox.flush()  # finds out whether the client keeps up
        self._note_queue()

    def requeue(self, messages: Iterable[Outgoing]) -> None:
        """Let messages wait that were on their way elsewhere, before those that wait already; oldest first."""
        waiting = list(self.queue)
        self.queue.clear()
        for outgoing in waiting:
            self.queued_bytes -= outgoing.message.size
            self._backlog.count -= 1
            self._backlog.nbytes -= outgoing.message.size
        for outgoing in (*messages, *waiting):
            self._enqueue(outgoing)

    def shared_left(self) -> list[Outgoing]:
        """Return what others of its shared subscriptions should have now that the session ends, oldest first.

        Not QoS 2 messages that it was sent: it may have passed them on [MQTT-4.8.2-5].
        """
        sent: list[Outgoing] = [delivery.token for delivery in self.deliveries.unfinished()]
        return [
            *(outgoing for outgoing in sent if outgoing.group is not None and outgoing.qos == 1),
            *(outgoing for outgoing in self.queue if outgoing.group is not None),
        ]

    def take_shared(self) -> list[Outgoing]:
        """Return what waits and another member, who is connected, can have at once; and let go of it."""
        if not any(outgoing.group is not None for outgoing in self.queue):
            return []
        taken: list[Outgoing] = []
        for outgoing in self.take_queue():
            if outgoing.group is not None and outgoing.group.is_served_without(self):
                taken.append(outgoing)
                if self.kept is not None:
                    self.kept.remove(outgoing)
            else:
                self.queue.append(outgoing)
                self.queued_bytes += outgoing.message.size
                self._backlog.count += 1
                self._backlog.nbytes += outgoing.message.size
        return taken

    def take_queue(self) -> list[Outgoing]:
        """Return what waits, and let go of it."""
        return [self._pop() for _ in range(len(self.queue))]

    def restore(
        self,
        sent: Iterable[Delivery],
        released: Iterable[Delivery],
        received: Iterable[int],
        waiting: Iterable[Outgoing],
    ) -> None:
        """Take over what a store has kept: see :meth:`Deliveries.restore`, and what waits, oldest first."""
        sent, released = list(sent), list(released)
        self.deliveries.restore(sent, released, received)
        self.inflight_bytes += sum(delivery.token.message.size for delivery in (*sent, *released))
        self.queue.extend(waiting)
        nbytes = sum(outgoing.message.size for outgoing in self.queue)
        self.queued_bytes += nbytes
        self._backlog.count += len(self.queue)
        self._backlog.nbytes += nbytes

    def unfinished(self) -> list[Outgoing]:
        """Return the messages under way and those that wait."""
        return [*(delivery.token for delivery in self.deliveries.unfinished()), *self.queue]

    def give_up(self, deliveries: Iterable[Delivery]) -> None:
        """Count messages under way whose exchange will never end."""
        for delivery in deliveries:
            self.inflight_bytes -= delivery.token.message.size
            self._stats.dropped_session += 1

    def drop_queue(self) -> None:
        """Forget what waits, and count it."""
        self._stats.dropped_session += len(self.queue)
        self._backlog.count -= len(self.queue)
        self._backlog.nbytes -= self.queued_bytes
        self.queue.clear()
        self.queued_bytes = 0

    def discard(self) -> None:
        """Count what ends with the session."""
        self._stats.dropped_session += len(self.deliveries)
        self.drop_queue()
        self.inflight_bytes = 0
        self.deliveries.clear()


class SessionStore:
    """All sessions, connected or not.

    Parameters
    ----------
    on_end : callable(Session)
        Called when a session ends, before it is forgotten.
    """

    def __init__(
        self, config: BrokerConfig, stats: BrokerStats, clock: Clock, on_end: Callable[[Session], None]
    ) -> None:
        self._config = config
        self._stats = stats
        self._clock = clock
        self._on_end = on_end
        self._sessions: dict[str, Session] = {}
        self.backlog = Backlog()
        """What waits in all of them together."""
        self.journal: Journal | None = None
        """The store's, where the broker has one."""

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def get(self, client_id: str) -> Session | None:
        """Return a client's session, if it has one."""
        return self._sessions.get(client_id)

    def open(self, client_id: str, clean_start: bool) -> tuple[Session | None, bool]:
        """Return the session for a CONNECT and whether it existed before (MQTT 5.0 section 3.1.2.4).

        The session is None if there is no room for another one.
        """
        session = self._sessions.get(client_id)
        if session is not None and clean_start:
            self.end(session)
            session = None
        if session is not None:
            if session.expiry_timer is not None:
                session.expiry_timer.cancel()
                session.expiry_timer = None
            return session, True
        if len(self._sessions) >= self._config.max_sessions and not self._evict():
            return None, False
        session = Session(client_id, self._config, self._stats, self._clock, self.backlog)
        self._sessions[client_id] = session
        return session, False

    def of_stream(self, owner: Session) -> Session:
        """Return a session for a data stream of a client: it lives as long as the stream, and is not kept here."""
        return Session(owner.client_id, self._config, self._stats, self._clock, self.backlog, owner)

    def of_flow(self, owner: Session) -> FlowSubscriptions:
        """Return one for what a client subscribes on a flow at mqttv5."""
        from mqttquic_lab.broker.mqttv5_flows import FlowSubscriptions  # which is a session

        return FlowSubscriptions(owner.client_id, self._config, self._stats, self._clock, self.backlog, owner)

    def _evict(self) -> bool:
        away = [session for session in self._sessions.values() if session.client is None]
        if not away:
            return False
        self._stats.sessions_evicted += 1
        self.end(min(away, key=lambda session: session.expires_at))
        return True

    def begin(self, session: Session, expiry_interval: int) -> None:
        """Note for how long a session is kept whose client has just connected."""
        session.expiry_interval = expiry_interval
        if self.journal is None:
            return
        if session.kept is None:
            if expiry_interval:
                session.kept = self.journal.keep_session(session.client_id, expiry_interval)
        elif expiry_interval:
            session.kept.changed(session.client_id, expiry_interval, None)
        else:  # it ends with this connection, whatever ends that
            session.kept.end(session.unfinished())
            session.kept = None

    def restored(self, client_id: str, expiry_interval: int) -> Session:
        """Return a new session that a store has kept; :meth:`leave` lets it expire."""
        session = Session(client_id, self._config, self._stats, self._clock, self.backlog)
        session.expiry_interval = expiry_interval
        self._sessions[client_id] = session
        return session

    def shrink(self) -> None:
        """End disconnected sessions until there are no more than ``max_sessions``."""
        while len(self._sessions) > self._config.max_sessions and self._evict():
            pass

    def leave(self, session: Session, expires_at: float | None = None) -> None:
        """Note that a session's connection has ended: it ends too, or starts to expire.

        Parameters
        ----------
        session : Session
            The session.
        expires_at : float, optional
            When, on the broker's clock; by default its expiry interval from now.
        """
        session.disconnected()
        interval = session.expiry_interval
        if interval == 0:
            self.end(session)
            return
        if interval == NEVER:
            session.expires_at = math.inf
        else:
            now = self._clock.time()
            session.expires_at = now + interval if expires_at is None else expires_at
            session.expiry_timer = self._clock.call_later(max(0.0, session.expires_at - now), self._expire, session)
        if session.kept is not None and expires_at is None:
            session.kept.changed(session.client_id, interval, session.expires_at)

    def _expire(self, session: Session) -> None:
        session.expiry_timer = None
        self._stats.sessions_expired += 1
        self.end(session)

    def end(self, session: Session) -> None:
        """End a session for good."""
        if session.expiry_timer is not None:
            session.expiry_timer.cancel()
            session.expiry_timer = None
        if self._sessions.get(session.client_id) is session:
            del self._sessions[session.client_id]
            if session.kept is not None:
                session.kept.end(session.unfinished())
                session.kept = None
            self._on_end(session)
            session.discard()

    def forget_all(self) -> None:
        """Drop every session without further ado; the broker closes."""
        for session in self._sessions.values():
            if session.expiry_timer is not None:
                session.expiry_timer.cancel()
            elif session.kept is not None:  # connected until now
                expires_at = self._clock.time() + session.expiry_interval
                session.kept.changed(session.client_id, session.expiry_interval, expires_at)
            if session.flows is not None:
                session.flows.end()
        self._sessions.clear()
