"""Flows that the broker opens: a stream per topic, or per message, towards a client that speaks MQTT-next.

What such a client subscribes on its control flow comes on flows of the server's (header 0x13, odd flow ids), each with
packet identifiers of its own (MQoQ 9.1.2, 9.6.3). Subscriptions on data flows of the client's are delivered there all
the same: the draft insists on that.

We own these flows, so we end them in order, and bring them back when a stream or the connection was lost (MQoQ 9.3,
9.15). A message is never given up with its flow: what a client refuses, or lets us open no stream for, goes on the
control stream. The client's stream limit, ``max_delivery_streams`` of the profile and the room in the flow table bound
how many there are; the topic that was used the longest time ago makes room.

Flow control is per flow (MQoQ 6): the client's Receive Maximum holds for each. Where the broker has a store, messages
at QoS 1 and 2 of sessions that are kept go on the control stream, since the books of a flow are not in the store.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, cast

from mqttquic_lab.broker.flows import FlowStream, FlowStreams
from mqttquic_lab.broker.outbox import FULL
from mqttquic_lab.mqtt import PubAck, PubComp, PubRec
from mqttquic_lab.mqtt.flow_codes import StreamCode, as_stream_code
from mqttquic_lab.mqtt.flow_header import FlowFlags

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttquic_lab.broker.client import Client
    from mqttquic_lab.broker.server import BrokerServer
    from mqttquic_lab.broker.sessions import Outgoing
    from mqttquic_lab.broker.streams import Opens
    from mqttquic_lab.mqtt.flow_book import Change
    from mqttquic_lab.mqtt.flow_state import Flow
    from mqttquic_lab.net.stream import ByteStream

MAX_RECOVERIES = 3
"""Times that a flow is brought back without an acknowledgement in between; then its messages go another way."""

LOOKED_AT = 8
"""Topics that are asked whether they are idle when one has to make room."""

UNWELCOME = frozenset({StreamCode.SERVER_PUSH_NOT_WELCOME, StreamCode.FLOW_REFUSED})
"""With these a client says that it wants no flows from us."""


class ServerFlow(FlowStream):
    """The stream of a flow that we opened."""

    _streams: ServerFlowStreams

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way, in either direction."""
        return not self.session_is_busy and not self.outbox.pending

    @property
    def session_is_busy(self) -> bool:
        """Whether a QoS 1 or 2 exchange is under way, or waits."""
        session = self.session
        assert session is not None
        return bool(session.queue or session.inflight or session.deliveries.awaiting_release)

    def _on_acknowledgement(self, packet: PubAck | PubRec | PubComp) -> None:
        super()._on_acknowledgement(packet)
        self._streams.progressed(self)

    def _on_reset(self, error_code: int) -> None:
        if as_stream_code(error_code) in UNWELCOME:
            self._streams.is_welcome = False
        super()._on_reset(error_code)

    def end(self) -> Change:
        """Send FIN: the flow is over when the client has sent its own (MQoQ 9.13.1)."""
        self.outbox.finish()
        return self._streams.book.table.finish(self._id)

    def cancel(self) -> None:
        """Give the flow up, with its state at both ends."""
        table = self._streams.book.table
        self._streams.apply(table.abort(self._id, StreamCode.FLOW_CANCELLED, now=self._server.clock.time()))

    HANDLERS: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        **FlowStream.HANDLERS,
        PubAck: _on_acknowledgement,
        PubRec: _on_acknowledgement,
        PubComp: _on_acknowledgement,
    }


class ServerFlowStreams(FlowStreams):
    """The streams of a client that speaks MQTT-next, at a broker that opens flows itself.

    Attributes
    ----------
    is_welcome : bool
        False once the client has said that it wants no flows from us.
    """

    def __init__(self, client: Client, server: BrokerServer) -> None:
        super().__init__(client, server)
        self.carry_deliveries = True
        self.is_welcome = True
        self._bound = server.profile.max_delivery_streams
        self._is_per_publish = server.deliveries == "per-publish"
        self._fell_back = False
        self._attempts: dict[int, int] = {}
        self._waiting: deque[Flow] = deque()
        self._is_awaiting_credit = False
        self._ending: deque[ServerFlow] = deque()
        self._leaving: deque[ByteStream] = deque()

    @property
    def _connection(self) -> Opens:
        return cast("Opens", self._client.connection)

    def _enter_session(self) -> None:
        if hasattr(self, "book"):
            return
        super()._enter_session()
        session = self._client.session
        assert session is not None
        # What is repeated on the control stream now has to arrive before what is new of the same topic.
        self._fell_back = len(session.deliveries) > 0

    def admitted(self) -> None:
        """Bring the flows back that have something to say."""
        super().admitted()
        topical = set(map(id, self.book.topics.values()))
        for flow in self.book.table.recoverable:
            session = self.book.session_of(flow)
            if session.queue or session.inflight:
                self._recover_soon(flow)
            elif id(flow) not in topical:
                self._discard_at_client(flow)

    # --- messages -----------------------------------------------------------------------------------------------

    def take(self, outgoing: Outgoing) -> bool:
        """Send a message on a flow of ours; returns False if it has to go on the control stream."""
        self._enter_session()  # what waited in the session is sent before CONNACK is worked on further
        if not self._is_per_publish:
            taken = self._take_for_topic(outgoing)
        elif outgoing.qos:
            taken = self._take_alone(outgoing)
        else:
            taken = self._take_one_way(outgoing)
        if not taken:
            self._fell_back = True
        return taken

    def _take_for_topic(self, outgoing: Outgoing) -> bool:
        topics, topic = self.book.topics, outgoing.message.topic
        flow = topics.get(topic)
        if flow is None:
            flow = self._topic_flow()
            if flow is None:
                return False
            topics[topic] = flow
        else:
            topics.move_to_end(topic)
            if flow.stream_id is None:
                self._attach_flow(flow)
        session = self.book.session_of(flow)
        if session.client is None:
            if not outgoing.qos:
                return False
            self._recover_soon(flow)
        session.deliver(*outgoing[:4], outgoing.group)
        return True

    def _take_alone(self, outgoing: Outgoing) -> bool:
        """Send a QoS 1 or 2 message on a flow of its own, which ends with its exchange."""
        if self.book.ours >= self._bound or not self._has_room():
            return False
        flow = self._attach_flow(None)
        if flow is None:
            return False
        self.book.session_of(flow).deliver(*outgoing[:4], outgoing.group)
        served = self._open.get(flow.stream_id or 0)
        if isinstance(served, ServerFlow) and not served.session_is_busy:
            self._end(served)  # larger than the client takes: it was dropped
        return True

    def _take_one_way(self, outgoing: Outgoing) -> bool:
        """Send a QoS 0 message on a unidirectional stream of its own."""
        client, leaving, table = self._client, self._leaving, self.book.table
        message, _, retain, identifiers = outgoing[:4]
        now = self._server.clock.time()
        packet = message.at_most_once(client.version, retain, identifiers, now)
        if not client.takes(len(packet)):
            return True
        while leaving and not leaving[0].pending:
            leaving.popleft()
        if (
            not self._has_room()
            or self._credit(unidirectional=True) <= 0
            or sum(stream.pending for stream in leaving) > FULL
        ):
            return False
        stream = self._connection.open_stream(unidirectional=True)
        stream.on_reset = self._one_way_was_reset
        leaving.append(stream)
        flow = table.open(stream.id or 0, now=now).flow
        assert flow is not None
        self.book.ours += 1
        header = flow.header.encode()
        stream.write(header + packet)
        stream.end()
        size = len(header) + len(packet)
        self.past.messages_out += 1
        self.past.bytes_out += size
        counters = self._server.counters
        counters.streams_total += 1
        counters.messages_out += 1
        counters.bytes_out += size
        counters.payload_bytes_out += len(message.payload)
        self.apply(table.finish(stream.id or 0))
        return True

    def _one_way_was_reset(self, error_code: int) -> None:
        if as_stream_code(error_code) in UNWELCOME:
            self.is_welcome = False

    # --- room ---------------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        table = self.book.table
        return self.is_welcome and len(table) < table.max_flows

    def _topic_flow(self) -> Flow | None:
        """Return a flow for a topic that has none; None while there is no room for it."""
        if self._fell_back:
            if self._control_is_busy():
                return None  # messages of the topic may be under way there, and this one must not overtake them
            self._fell_back = False
        topics = self.book.topics
        if len(topics) >= self._bound and not self._retire():
            return None
        if not self._has_room() or self._credit() <= 0:
            self._retire()
            return None
        return self._attach_flow(None)

    def _control_is_busy(self) -> bool:
        session = self._client.session
        assert session is not None
        return bool(session.queue or session.deliveries.queued or self._client.outbox.pending)

    def _retire(self) -> bool:
        """End the flow of a topic that was not used for long and has nothing under way; returns whether there is one.

        Whatever was sent on it is there (QUIC has the acknowledgements), so that the topic can go on elsewhere.
        """
        topics = self.book.topics
        for topic, flow in list(islice(topics.items(), LOOKED_AT)):
            served = self._open.get(flow.stream_id) if flow.stream_id is not None else None
            if isinstance(served, ServerFlow) and served.is_idle:
                del topics[topic]
                self._end(served)
                return True
            if flow.stream_id is None:
                session = self.book.session_of(flow)
                if not session.queue and not session.inflight:
                    self.apply(self.book.table.drop(flow.id))
                    return True
        return False

    # --- flows and their streams --------------------------------------------------------------------------------

    def _flags(self) -> tuple[FlowFlags, int]:
        """Return the flags and the expire interval of our flows: they are kept as long as the session."""
        session = self._client.session
        assert session is not None
        return FlowFlags(persistent_qos=session.expiry_interval > 0), session.expiry_interval

    def _credit(self, *, unidirectional: bool = False) -> int:
        """Return how many streams the client lets us open: none if it has gone, which we are told later."""
        if self._client.connection.is_closed:
            return 0
        return self._connection.stream_credit(unidirectional=unidirectional)

    def _attach_flow(self, flow: Flow | None) -> Flow | None:
        """Open a stream for a flow, a new one if it is None; returns None if the client lets us open no more.

        A flow that has a stream is taken over by the new one (MQoQ 9.14), one that has none is recovered (9.15).
        """
        if self._credit() <= 0:
            return None
        stream = self._connection.open_stream()
        flags, interval = self._flags()
        flow_id = None if flow is None else flow.id
        change = self.book.table.open(
            stream.id or 0, now=self._server.clock.time(), flow_id=flow_id, flags=flags, expire_interval=interval
        )
        assert change.flow is not None
        if flow is None:
            self.book.ours += 1
        stream.write(change.flow.header.encode())
        if change.resets:
            self.apply(change)
        served = ServerFlow(self._client, self, stream, self._server, change.flow)
        self._open[stream.id or 0] = served
        self._server.counters.streams_total += 1
        return change.flow

    def _recover_soon(self, flow: Flow) -> None:
        if flow not in self._waiting:
            self._waiting.append(flow)
            self._server.call_soon(self._recover)

    def _recover(self) -> None:
        """Give streams to the flows that wait for one, as far as the client allows."""
        while self._waiting and not self._client.is_ended:
            flow = self._waiting[0]
            is_lost = flow.stream_id is None and self.book.table.get(flow.id, flow.type) is flow
            if is_lost and self._attach_flow(flow) is None:
                if not self._is_awaiting_credit:
                    self._is_awaiting_credit = True
                    self._server.spawn(self._await_credit())
                return
            self._waiting.popleft()

    async def _await_credit(self) -> None:
        client = self._client
        while self._waiting and not client.is_ended and not client.connection.is_closed:
            await self._connection.progress()
            if self._credit() > 0:
                self._recover()
        self._is_awaiting_credit = False

    def _discard_at_client(self, flow: Flow) -> None:
        """Tell the client to forget a flow (MQoQ 9.16): it was about to end when the connection was lost."""
        table = self.book.table
        if self._credit() <= 0:
            self.apply(table.drop(flow.id))
            return
        stream = self._connection.open_stream()
        change = table.open(stream.id or 0, now=self._server.clock.time(), flow_id=flow.id, flags=FlowFlags(clean=True))
        assert change.flow is not None
        stream.write(change.flow.header.encode())
        served = ServerFlow(self._client, self, stream, self._server, change.flow)
        self._open[stream.id or 0] = served
        self._end(served)

    def progressed(self, served: ServerFlow) -> None:
        """Take note of an acknowledgement; the flow ends with it if it was for one message."""
        flow = served.flow
        self._attempts.pop(flow.id, None)
        if flow.can_send and not served.session_is_busy and flow not in self.book.topics.values():
            self._end(served)

    def _end(self, served: ServerFlow) -> None:
        self.apply(served.end())
        self._ending.append(served)
        while self._ending and (self._ending[0].is_ended or len(self._ending) > self._bound):
            oldest = self._ending.popleft()
            if not oldest.is_ended:  # the client does not answer our FIN
                oldest.cancel()

    def apply(self, change: Change) -> None:
        """Carry a change out; a flow of ours that lost its stream gets another one."""
        super().apply(change)
        flow = change.flow
        if flow is None or not flow.is_ours or flow.stream_id is not None or change.removed:
            return
        if change.close is not None or self._client.is_ended:
            return
        attempts = self._attempts[flow.id] = self._attempts.get(flow.id, 0) + 1
        session = self.book.session_of(flow)
        if attempts > MAX_RECOVERIES or not self.is_welcome:
            self._attempts.pop(flow.id)
            self._fell_back = True
            self.apply(self.book.table.drop(flow.id))
        elif session.queue or session.inflight:
            self._recover_soon(flow)

    def close(self) -> None:
        """End all of them with the connection."""
        self._waiting.clear()
        self._ending.clear()
        self._leaving.clear()
        super().close()
