"""Flows: the streams of a client that speaks ``MQTT-next``, and what of them outlives stream and connection.

A flow is to the broker what a data stream is, with a state of its own that may be recovered: packet identifiers,
messages under way, subscriptions. The rules stand in :class:`~mqttquic_lab.mqtt.flows.FlowTable`; here its changes
are carried out. *MQoQ* is the draft; see :mod:`mqttquic_lab.mqtt.flow_codes`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from mqttquic_lab.broker.pipeline import PINGRESP, ignore
from mqttquic_lab.broker.session_flows import SessionFlows
from mqttquic_lab.broker.streams import DataStream, Streams
from mqttquic_lab.errors import ProtocolError
from mqttquic_lab.mqtt import PingReq, Subscribe, Unsubscribe
from mqttquic_lab.mqtt.flow_codes import ConnectionCode, StreamCode
from mqttquic_lab.mqtt.flow_header import FlowHeader, FlowType
from mqttquic_lab.mqtt.flow_reader import HeaderReader
from mqttquic_lab.mqtt.state import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mqttquic_lab.broker.client import Client
    from mqttquic_lab.broker.server import BrokerServer
    from mqttquic_lab.mqtt import Packet
    from mqttquic_lab.mqtt.flow_book import Change
    from mqttquic_lab.mqtt.flow_state import Flow
    from mqttquic_lab.net.stream import ByteStream

ALPN = "MQTT-next"


class FlowStream(DataStream):
    """The stream that a flow is on now."""

    _streams: FlowStreams

    def __init__(
        self, client: Client, streams: FlowStreams, stream: ByteStream, server: BrokerServer, flow: Flow
    ) -> None:
        self.flow = flow
        super().__init__(client, streams, stream, server)

    def __repr__(self) -> str:
        return f"<FlowStream {self.flow!r}>"

    def _join_session(self, client: Client) -> None:
        self.session = self._streams.book.session_of(self.flow)
        self.owns_session = True
        if self.can_answer:
            self.session.connected(self, client.receive_maximum)
            if self.session.subscriptions:
                self._router.forget_routes()

    def _leave_session(self) -> None:
        session = self.session
        if session is not None and session.client is self:
            session.disconnected()
            if session.subscriptions:
                self._router.forget_routes()

    @property
    def _id(self) -> int:
        assert self.stream is not None
        return self.stream.id or 0

    # --- packets ------------------------------------------------------------------------------------------------

    def _handle(self, packet: Packet) -> None:
        if self._streams.book.table.check_packet(self._id, packet, Role.CLIENT) is None:
            return  # another stream has taken the flow over (MQoQ 9.14)
        if type(packet) is PingReq:
            self.answers.write(PINGRESP, settled=True)
            return
        super()._handle(packet)

    def _on_subscribe(self, packet: Subscribe) -> None:
        super()._on_subscribe(packet)
        assert self.session is not None
        for subscription in packet.subscriptions:
            if subscription.filter in self.session.subscriptions:
                self.flow.subscriptions[subscription.filter] = None

    def _on_unsubscribe(self, packet: Unsubscribe) -> None:
        super()._on_unsubscribe(packet)
        for topic_filter in packet.filters:
            self.flow.subscriptions.pop(topic_filter, None)

    HANDLERS: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        **DataStream.HANDLERS,
        Subscribe: _on_subscribe,
        Unsubscribe: _on_unsubscribe,
    }

    # --- ends ---------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Answer the owner's FIN with ours (MQoQ 9.13.1)."""
        if self.is_ended:
            return
        table, stream = self._streams.book.table, self.stream
        assert stream is not None
        try:
            change = table.fin_received(self._id, buffered=self._decoder.buffered)
        except ProtocolError as error:
            self._fail(error)
            return
        if change.finish:
            self.outbox.finish()
            change = table.finish(self._id)
        self.close()
        self._streams.apply(change)

    def _on_reset(self, error_code: int) -> None:
        try:
            change = self._streams.book.table.reset_received(self._id, error_code, now=self._server.clock.time())
        except ProtocolError as error:
            self._fail(error)
        else:
            self._streams.apply(change)

    def abort(self) -> None:
        """Give the stream up; the flow's state is kept as its flags ask."""
        if not self.is_ended:
            self._streams.apply(self._streams.book.table.abort(self._id, now=self._server.clock.time()))

    def _fail(self, error: ProtocolError) -> None:
        self._stats.stream_errors += 1
        self._streams.failed(self._id, error)


class FlowStreams(Streams):
    """The streams of one client that speaks ``MQTT-next``.

    Attributes
    ----------
    book : SessionFlows
        The session's flows; there once CONNECT was accepted.
    """

    CLOSE_CODES: ClassVar[Mapping[str, int]] = {
        "silence": ConnectionCode.UNSPECIFIED,
        "reset": ConnectionCode.UNSPECIFIED,
        "protocol error": ConnectionCode.PROTOCOL_L0,
    }

    book: SessionFlows

    def __init__(self, client: Client, server: BrokerServer) -> None:
        super().__init__(client, server)
        self._control_header = FlowHeader.control()
        self._unread: dict[int, ByteStream] = {}

    # --- the control flow ---------------------------------------------------------------------------------------

    def open_control(self, stream: ByteStream, begin: Callable[[bytes], None]) -> None:
        """Read the control flow's header, then let the client begin."""

        def done(header: FlowHeader | None, rest: bytes) -> None:
            if header is None:  # mqttv5's client: no header on the control stream, and all answers are expected there
                self._client.is_without_control_header(self)
                begin(rest)
                return
            self._control_header = header
            if header.type is not FlowType.CONTROL:
                self._client.abandon("the first flow is not the control flow", StreamCode.STREAM_TYPE)
            else:
                begin(rest)

        def failed(error: ProtocolError) -> None:
            self._client.abandon(str(error), StreamCode.NOT_FLOW_OWNER)

        HeaderReader(
            stream,
            required=False,
            done=done,
            failed=failed,
            gone=lambda: self._client.abandon("control stream reset"),
        )

    def admitted(self) -> None:
        """Put the control flow on its stream and serve the streams that waited for CONNACK."""
        server = self._server
        self._enter_session()
        # Whether the session goes on is for CONNECT to say, not for the control flow's flags.
        flags = replace(self._control_header.flags, clean=False, abort_if_no_state=False)
        header = replace(self._control_header, flags=flags)
        try:
            self.book.table.accept(header, 0, now=server.clock.time())
        except ProtocolError as error:
            self.failed(0, error)
            return
        self._serve_early()

    def _enter_session(self) -> None:
        """Take over the session's flows."""
        session = self._client.session
        assert session is not None
        if not isinstance(session.flows, SessionFlows):
            session.flows = SessionFlows(self._server, session)
        self.book = session.flows

    # --- data flows ---------------------------------------------------------------------------------------------

    def serves(self, stream: ByteStream) -> bool:
        """Whether such streams are served; flows may be on any."""
        return True

    def _serve(self, stream: ByteStream) -> None:
        number = stream.id or 0
        self._unread[number] = stream

        def gone() -> None:
            self._unread.pop(number, None)
            stream.reset(0)

        HeaderReader(
            stream,
            required=True,
            done=lambda header, rest: self._begin(stream, header, rest),
            failed=lambda error: self.failed(number, error),
            gone=gone,
        )

    def _begin(self, stream: ByteStream, header: FlowHeader | None, rest: bytes) -> None:
        """Serve the flow that begins, goes on, or is taken over by this stream."""
        assert header is not None  # it is required
        number, table = stream.id or 0, self.book.table
        now = self._server.clock.time()
        try:
            change = table.accept(header, number, now=now)
        except ProtocolError as error:
            self.failed(number, error)
            return
        if header.type is FlowType.USER_DEFINED:  # carries no MQTT, and we know no other use for it
            change = table.abort(number, StreamCode.FLOW_REFUSED, now=now)
        self.apply(change)
        flow = table.flow_of(number)
        if flow is None:
            return
        del self._unread[number]
        served = FlowStream(self._client, self, stream, self._server, flow)
        self._open[number] = served
        self._server.counters.streams_total += 1
        if rest:
            served.feed(rest)

    def failed(self, number: int, error: ProtocolError) -> None:
        """Draw the consequences of an error on a stream: the three levels of MQoQ 11."""
        self.apply(self.book.table.fail(number, error, now=self._server.clock.time()))

    def apply(self, change: Change) -> None:
        """Carry a change out."""
        for number, code in change.resets:
            served = self._open.get(number)
            stream = self._unread.pop(number, None)
            if served is not None:
                stream = served.stream
                served.close()
            if stream is not None:
                stream.on_data = stream.on_end = stream.on_reset = ignore
                stream.reset(code)
        if change.close is not None:
            self._client.abandon("", change.close)
        else:
            self.book.settle(change)
            self.book.arm()
        self._server.changed()

    def close(self) -> None:
        """End all of them with the connection."""
        for stream in (*self._early, *self._unread.values()):
            stream.on_data = stream.on_end = stream.on_reset = ignore
            stream.reset(0)
        self._early.clear()
        self._unread.clear()
        for served in list(self._open.values()):
            served.close()
        session = self._client.session
        if session is not None and session.flows is not None:
            session.flows.connection_lost()
