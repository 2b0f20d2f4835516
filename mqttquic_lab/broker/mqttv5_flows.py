"""What mqttv5 keeps of a flow: subscriptions of its own, for as long as the header's expire interval says.

Messages for them are the session's all the same: numbered there, queued there, and acknowledged on any stream. They go
out on a stream that the broker opens for the flow, whose own flow id does not tell which flow it is for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttquic_lab.broker.sessions import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mqttquic_lab.broker.clock import TimerHandle
    from mqttquic_lab.broker.message import Message
    from mqttquic_lab.broker.mqttv5 import Mqttv5Stream, Mqttv5Streams
    from mqttquic_lab.broker.router import SharedGroup
    from mqttquic_lab.broker.server import BrokerServer
    from mqttquic_lab.broker.streams import DataStream
    from mqttquic_lab.mqtt.flow_header import FlowHeader

MAX_FLOWS = 256
"""Flows of a session; what comes on further ones is the session's."""


class FlowSubscriptions(Session):
    """The subscriptions made on one flow: a session, as far as the router is concerned.

    Attributes
    ----------
    flow_id : int
    expire_interval : int
        Seconds for which they outlive their stream.
    carrier : Mqttv5Stream or None
        The stream that the flow is on now.
    lane : DataStream or None
        The stream that we opened for its messages.
    streams : Mqttv5Streams or None
        Where to open it; None between connections.
    """

    __slots__ = ("carrier", "expire_interval", "flow_id", "lane", "streams", "timer")

    flow_id: int
    expire_interval: int
    carrier: Mqttv5Stream | None
    lane: DataStream | None
    streams: Mqttv5Streams | None
    timer: TimerHandle | None

    def deliver(
        self,
        message: Message,
        qos: int,
        retain: bool,
        identifiers: tuple[int, ...],
        group: SharedGroup | None = None,
    ) -> None:
        """Let the session send a message, on our stream; retained ones take its usual way."""
        streams = self.streams
        if streams is None or retain:
            self.owner.deliver(message, qos, retain, identifiers, group)
            return
        streams.lane_of = self
        try:
            self.owner.deliver(message, qos, retain, identifiers, group)
        finally:
            streams.lane_of = None


class Mqttv5Flows:
    """The flows of one session.

    Parameters
    ----------
    server : BrokerServer
        The broker.
    session : Session
        The client's.
    """

    def __init__(self, server: BrokerServer, session: Session) -> None:
        self._server = server
        self._session = session
        self._flows: dict[int, FlowSubscriptions] = {}
        self._streams: Mqttv5Streams | None = None

    def __contains__(self, flow_id: object) -> bool:
        return flow_id in self._flows

    def __iter__(self) -> Iterator[FlowSubscriptions]:
        return iter(self._flows.values())

    def connected(self, streams: Mqttv5Streams) -> None:
        """Go on over a new connection."""
        self._streams = streams
        for flow in self:
            flow.streams, flow.client = streams, self._session.client

    def connected_without(self) -> None:
        """Go on without flows: what they subscribed is delivered the usual way."""

    def connection_lost(self) -> None:
        """Keep the flows that are to be kept, each for its time."""
        self._streams = None
        for flow in list(self):
            flow.streams = flow.client = flow.lane = None
            if flow.carrier is not None:
                self.left(flow)

    def begin(self, header: FlowHeader) -> FlowSubscriptions | None:
        """Return the flow that a stream begins, goes on with or takes over; None if there are too many."""
        flow = self._flows.get(header.flow_id)
        if flow is not None and header.flags.clean:
            self.forget(header.flow_id)
            flow = None
        if flow is None:
            if len(self._flows) >= MAX_FLOWS:
                return None
            flow = self._flows[header.flow_id] = self._server.sessions.of_flow(self._session)
            flow.flow_id = header.flow_id
            flow.carrier = flow.lane = flow.timer = None
            flow.streams, flow.client = self._streams, self._session.client
        if flow.timer is not None:
            flow.timer.cancel()
            flow.timer = None
        flow.expire_interval = min(header.expire_interval, self._server.config.max_session_expiry)
        return flow

    def left(self, flow: FlowSubscriptions) -> None:
        """Take the abortive end of a flow's stream: deliveries go on until the flow expires."""
        flow.carrier = None
        if not flow.expire_interval:
            self.forget(flow.flow_id)
        elif flow.timer is None:
            flow.timer = self._server.clock.call_later(flow.expire_interval, self.forget, flow.flow_id)

    def forget(self, flow_id: int) -> None:
        """End a flow, with its subscriptions and its stream."""
        flow = self._flows.pop(flow_id, None)
        if flow is None:
            return
        if flow.timer is not None:
            flow.timer.cancel()
            flow.timer = None
        lane, flow.lane = flow.lane, None
        if lane is not None and not lane.is_ended and self._streams is not None:
            self._streams.retire(lane)
        self._server.end_stream_session(flow)

    def end(self) -> None:
        """End every flow: the session ends."""
        self._streams = None
        for flow_id in list(self._flows):
            self.forget(flow_id)
