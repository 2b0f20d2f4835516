"""The flows of one session on the broker: what of them outlives stream and connection, and where it goes when not.

The rules stand in :class:`~mqttquic_lab.mqtt.flows.FlowTable`; here its changes are carried out on sessions and
subscriptions. The streams are in :mod:`mqttquic_lab.broker.flows` and :mod:`mqttquic_lab.broker.server_flows`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from mqttquic_lab.mqtt import PubAck
from mqttquic_lab.mqtt.deliveries import Deliveries
from mqttquic_lab.mqtt.flows import FlowTable
from mqttquic_lab.mqtt.state import DeliveryState, Role

if TYPE_CHECKING:
    from mqttquic_lab.broker.clock import TimerHandle
    from mqttquic_lab.broker.server import BrokerServer
    from mqttquic_lab.broker.sessions import Outgoing, Session
    from mqttquic_lab.mqtt.flow_book import Change
    from mqttquic_lab.mqtt.flow_state import Flow


class SessionFlows:
    """The flows of one MQTT session, with a stream or waiting to be recovered.

    Parameters
    ----------
    server : BrokerServer
        The broker.
    session : Session
        The client's session, whose books are the control flow's.

    Attributes
    ----------
    table : FlowTable
        The flows.
    topics : OrderedDict of str to Flow
        Topic -> the flow of ours that carries it, the least recently used one first. Flows of ours that are not here
        carry what they have and then end.
    ours : int
        Flows that we have opened and that are not over.
    """

    def __init__(self, server: BrokerServer, session: Session) -> None:
        self._server = server
        self.session = session
        self.table = FlowTable(
            Role.SERVER,
            make_deliveries=self._make_deliveries,
            max_expire_interval=server.config.max_session_expiry,
        )
        self.topics: OrderedDict[str, Flow] = OrderedDict()
        self.ours = 0
        self._timer: TimerHandle | None = None

    def _make_deliveries(self, flow_id: int) -> Deliveries:
        return Deliveries(self._server.config.max_inflight) if flow_id else self.session.deliveries

    def session_of(self, flow: Flow) -> Session:
        """Return the state that the broker keeps for a flow."""
        if flow.owner_data is None:
            flow.owner_data = self._server.sessions.of_stream(self.session)
            flow.owner_data.deliveries = flow.deliveries
        session: Session = flow.owner_data
        return session

    def settle(self, change: Change) -> None:
        """Let go of what a change has taken from a flow's state."""
        flow = change.flow
        if flow is None or flow.is_control:
            return
        if flow.is_ours and change.removed:
            self.ours -= 1
            for topic, other in self.topics.items():
                if other is flow:
                    del self.topics[topic]
                    break
        if flow.owner_data is None:
            return
        if flow.is_ours:
            self._save(flow, change)
            return
        session = self.session_of(flow)
        for topic_filter in change.unsubscribed:
            self._server.router.unsubscribe(session, topic_filter)
        session.give_up(change.given_up)
        if change.removed:
            self._server.end_stream_session(session)
            flow.owner_data = None
        elif flow.stream_id is None and not flow.header.flags.persistent_qos:
            session.drop_queue()

    def _save(self, flow: Flow, change: Change) -> None:
        """Take back the messages of a flow of ours that is over: they are the session's, and go another way."""
        session = self.session_of(flow)
        messages: list[Outgoing] = []
        for delivery in change.given_up:
            session.inflight_bytes -= delivery.token.message.size
            if delivery.state != DeliveryState.AWAIT_PUBCOMP:  # the client has those
                messages.append(delivery.token)
        if change.removed:
            messages += session.take_queue()
            self._server.end_stream_session(session)
            flow.owner_data = None
        self._send_elsewhere(messages)

    def _send_elsewhere(self, messages: list[Outgoing]) -> None:
        if messages:
            self.session.requeue(messages)
            self._server.call_soon(self.session.pump)

    def connected_without(self) -> None:
        """Let the control stream carry what waits in flows of ours: this connection has no flows.

        A QoS 2 message that was sent and got no answer has to wait for its flow: here it might arrive twice.
        """
        messages: list[Outgoing] = []
        for flow in [flow for flow in self.table if flow.is_ours and flow.owner_data is not None]:
            session = self.session_of(flow)
            for delivery in session.deliveries.unfinished():
                if delivery.qos == 1 and delivery.packet_id is not None:
                    finished = session.deliveries.acknowledge(PubAck(delivery.packet_id)).finished
                    if finished is not None:
                        session.inflight_bytes -= finished.token.message.size
                        messages.append(finished.token)
            messages += session.take_queue()
            if not session.inflight and flow.stream_id is None:
                self.settle(self.table.drop(flow.id))
        self._send_elsewhere(messages)

    def connection_lost(self) -> None:
        """Keep what is to be recovered, and for how long."""
        for change in self.table.connection_lost(now=self._server.clock.time()):
            self.settle(change)
        self.arm()

    def arm(self) -> None:
        """Run the timer of what expires next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self.table.next_deadline()
        if deadline is not None:
            clock = self._server.clock
            self._timer = clock.call_later(max(0.0, deadline - clock.time()), self._expire)

    def _expire(self) -> None:
        self._timer = None
        for change in self.table.poll(self._server.clock.time()):
            self.settle(change)
        self.arm()
        self._server.changed()

    def end(self) -> None:
        """End every flow: the session ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for flow in self.table:
            if flow.owner_data is not None:
                self._server.end_stream_session(flow.owner_data)
                flow.owner_data = None
