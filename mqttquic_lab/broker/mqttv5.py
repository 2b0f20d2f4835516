"""Streams as the mqttv5 broker serves them (profile ``mqttv5``), observed on mqttv5-cli 0.29.

The client publishes and subscribes on unidirectional streams, with or without a flow header; every answer comes on the
control stream. Deliveries come on streams that the broker opens, one per topic or per message, each with a header of
its own, whatever the ALPN. Packet identifiers and subscriptions are the session's.

What a client subscribes on a flow is the flow's: see :mod:`mqttquic_lab.broker.mqttv5_flows`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any, ClassVar, cast

from mqttquic_lab.broker.mqttv5_flows import MAX_FLOWS, FlowSubscriptions, Mqttv5Flows
from mqttquic_lab.broker.outbox import FULL
from mqttquic_lab.broker.pipeline import ignore
from mqttquic_lab.broker.streams import DataStream, Opens, Streams
from mqttquic_lab.broker.subscribing import RetainedDelivery, subscribe, unsubscribe
from mqttquic_lab.errors import LabError
from mqttquic_lab.mqtt import Connect, Disconnect, ReasonCode, Subscribe, Unsubscribe
from mqttquic_lab.mqtt.flow_codes import ConnectionCode, FlowError, StreamCode
from mqttquic_lab.mqtt.flow_header import FlowHeader, FlowType
from mqttquic_lab.mqtt.flow_reader import HeaderReader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mqttquic_lab.broker.client import Client
    from mqttquic_lab.broker.outbox import Outbox
    from mqttquic_lab.broker.pipeline import Pipeline
    from mqttquic_lab.broker.server import BrokerServer
    from mqttquic_lab.errors import ProtocolError
    from mqttquic_lab.net.stream import ByteStream

FLOW_EXPIRE_INTERVAL = 300
"""Seconds that its delivery streams announce."""
FIRST_FLOW_ID = 3
"""Flow id of the first delivery stream of a connection; 1 is never used."""


class _RetainedFor:
    """Whom retained messages are brought for that a flow subscribed to."""

    def __init__(self, stream: Mqttv5Stream, flow: FlowSubscriptions) -> None:
        self._stream = stream
        self.session = flow
        self.outbox = stream.answers

    @property
    def is_ended(self) -> bool:
        return self._stream.is_ended


class Mqttv5Stream(DataStream):
    """A unidirectional stream of the client's, or one that we opened for a topic."""

    _streams: Mqttv5Streams

    def __init__(
        self,
        client: Client,
        streams: Streams,
        stream: ByteStream,
        server: BrokerServer,
        flow: FlowSubscriptions | None = None,
    ) -> None:
        self._client = client
        self._flow = flow
        super().__init__(client, streams, stream, server)
        self.answers = client.outbox
        self._handlers = self._HANDLERS
        self.share_aliases(client.share_aliases())  # one space, as the packet identifiers are
        if flow is not None:
            flow.carrier = self
            self._retained = RetainedDelivery(cast("Pipeline", _RetainedFor(self, flow)), server)

    def _on_connect(self, packet: Connect) -> None:
        self._client.disconnect(ReasonCode.PROTOCOL_ERROR, "CONNECT on a data stream", "protocol error")

    def _on_disconnect(self, packet: Disconnect) -> None:
        self._client.end_by(packet)

    def _on_subscribe(self, packet: Subscribe) -> None:
        if self._flow is None:
            super()._on_subscribe(packet)
            return
        answer, reason = subscribe(self._server, self._flow, packet, self._retained)
        self._answer(answer, reason)
        self._retained.pump()

    def _on_unsubscribe(self, packet: Unsubscribe) -> None:
        if self._flow is None:
            super()._on_unsubscribe(packet)
        else:
            self._answer(unsubscribe(self._server, self._flow, packet), "")

    def finish(self) -> None:
        """Take FIN: it ends the flow."""
        super().finish()
        self._streams.flow_ended(self, self._flow)

    def _fail(self, error: ProtocolError) -> None:
        self._stats.stream_errors += 1
        self._client.abandon(str(error), ConnectionCode.PROTOCOL_L0)

    def _on_reset(self, error_code: int) -> None:
        # RESET_STREAM and STOP_SENDING are two frames: see what is left of the stream when both were read.
        self._server.call_soon(self._was_reset)

    def _was_reset(self) -> None:
        if self.is_ended or self.stream is None:
            return
        if not self.can_answer:
            self.close()
            self._streams.flow_aborted(self, self._flow)
        elif not self.stream.is_writable:  # it cannot deliver, and takes that for the end of the client
            self._client.abandon("a delivery stream was stopped", ConnectionCode.UNSPECIFIED)

    _HANDLERS: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        **DataStream.UNIDIRECTIONAL,
        Connect: _on_connect,
        Disconnect: _on_disconnect,
        Subscribe: _on_subscribe,
        Unsubscribe: _on_unsubscribe,
    }


class Mqttv5Streams(Streams):
    """The streams of one client of a broker with the profile ``mqttv5``, or of a client that is mqttv5's."""

    CLOSE_CODES: ClassVar[Mapping[str, int]] = {
        "silence": ConnectionCode.UNSPECIFIED,
        "reset": ConnectionCode.UNSPECIFIED,
        "protocol error": ConnectionCode.PROTOCOL_L0,
    }

    def __init__(self, client: Client, server: BrokerServer) -> None:
        super().__init__(client, server)
        self._next_flow_id = FIRST_FLOW_ID
        self.flows: Mqttv5Flows | None = None
        """The session's flows, with the profile ``mqttv5``; otherwise their headers are read and that is all."""
        self.lane_of: FlowSubscriptions | None = None
        """The flow whose message is being sent."""
        self._failed: set[int] = set()
        self._unread: dict[int, ByteStream] = {}
        self._topics: OrderedDict[str, DataStream] = OrderedDict()
        self._retired: deque[DataStream] = deque()
        self._per_publish = PerPublish(self) if server.deliveries == "per-publish" else None
        self._is_per_topic = server.deliveries == "per-topic"
        has_flows = server.profile.name == "mqttv5"
        is_ours = server.deliveries in ("per-topic", "per-publish")
        self.carry_deliveries = (is_ours or has_flows) and client.connection.transport == "quic"

    @property
    def sessions(self) -> list[Any]:
        """The sessions of streams that have their own, and the flows."""
        return [*super().sessions, *(self.flows or ())]

    def admitted(self) -> None:
        """Serve the streams that waited for CONNACK, and go on with the session's flows."""
        session = self._client.session
        assert session is not None
        if self._profile.name == "mqttv5":
            if not isinstance(session.flows, Mqttv5Flows):
                session.flows = Mqttv5Flows(self._server, session)
            self.flows = session.flows
            self.flows.connected(self)
        super().admitted()

    def serves(self, stream: ByteStream) -> bool:
        """Whether such streams are looked at; what is refused is refused by its header."""
        return True

    def _serve(self, stream: ByteStream) -> None:
        number = stream.id or 0
        self._unread[number] = stream
        is_odd_one = not number & 2 and self._profile.bidirectional != "data"

        def done(header: FlowHeader | None, rest: bytes) -> None:
            if is_odd_one:
                code: int | None = self._bidirectional_refusal(header)
                if code is None:  # the "discard handshake": whatever was known of the flow is forgotten
                    del self._unread[number]
                    stream.end()
                    return
            else:
                code = None if header is None else self._refusal(header)
            if code is not None:
                refuse(code)
                return
            del self._unread[number]
            served = self._add(stream, header)
            if rest:
                served.feed(rest)

        def refuse(code: int) -> None:
            self._unread.pop(number, None)
            self._server.counters.stream_errors += 1
            stream.on_data = stream.on_end = stream.on_reset = ignore
            stream.reset(code)
            self._server.changed()

        HeaderReader(
            stream,
            required=False,
            done=done,
            failed=lambda error: refuse(error.code if isinstance(error, FlowError) else StreamCode.NO_ERROR),
            gone=lambda: refuse(StreamCode.NO_ERROR),
        )

    def _refusal(self, header: FlowHeader) -> StreamCode | None:
        """Return the code with which a header is refused."""
        if header.type is FlowType.CONTROL:
            return StreamCode.STREAM_TYPE
        if header.type is FlowType.USER_DEFINED:
            return StreamCode.FLOW_REFUSED
        if header.type is FlowType.SERVER_DATA or header.flow_id & 1:
            return StreamCode.BAD_FLOW_ID
        if header.flags.abort_if_no_state:
            if header.flags.clean:
                return StreamCode.DISCARD_STATE
            if self.flows is None or header.flow_id not in self.flows:
                if header.flow_id in self._failed:
                    self._client.abandon("recovered again", ConnectionCode.TOO_MANY_RECOVER_ATTEMPTS)
                elif len(self._failed) < MAX_FLOWS:
                    self._failed.add(header.flow_id)
                return StreamCode.NO_FLOW_STATE
        return None

    def _bidirectional_refusal(self, header: FlowHeader | None) -> int | None:
        """Return the code with which a bidirectional stream of the client's is refused; None if it is a discard."""
        if header is None or header.type is FlowType.CONTROL:
            return self._profile.refusal_code
        if header.type is FlowType.SERVER_DATA or header.flow_id & 1:
            return StreamCode.BAD_FLOW_ID
        if header.type is FlowType.CLIENT_DATA and header.flags.discards and not header.expire_interval:
            if self.flows is not None:
                self.flows.forget(header.flow_id)
            return None
        return StreamCode.FLOW_REFUSED

    def _add(self, stream: ByteStream, header: FlowHeader | None = None) -> DataStream:
        number = stream.id or 0
        flow = self.flows.begin(header) if header is not None and self.flows is not None else None
        served = Mqttv5Stream(self._client, self, stream, self._server, flow)
        self._open[number] = served
        self._server.counters.streams_total += 1
        if number & 1:
            served.outbox.write(FlowHeader(FlowType.SERVER_DATA, self._next_flow_id, FLOW_EXPIRE_INTERVAL).encode())
            self._next_flow_id += 2
        return served

    def flow_ended(self, stream: Mqttv5Stream, flow: FlowSubscriptions | None) -> None:
        """Take the orderly end of a stream: its flow ends, if no other stream has taken that over."""
        if flow is not None and flow.carrier is stream and self.flows is not None:
            self.flows.forget(flow.flow_id)
        self._server.changed()

    def flow_aborted(self, stream: Mqttv5Stream, flow: FlowSubscriptions | None) -> None:
        """Take the abortive end of a stream: its flow is kept as its header asked."""
        if flow is not None and flow.carrier is stream and self.flows is not None:
            self.flows.left(flow)
        self._server.changed()

    def left(self, stream: DataStream) -> None:
        """Forget a stream that has ended."""
        super().left(stream)
        if stream in self._retired:
            self._retired.remove(stream)
        for topic, other in self._topics.items():
            if other is stream:
                del self._topics[topic]
                break

    # --- ours ---------------------------------------------------------------------------------------------------

    def way(self, topic: str) -> Outbox:
        """Return the outbox of a topic's own stream; the control stream's if the client lets us open no more."""
        flow = self.lane_of
        if flow is not None:
            if flow.lane is None or flow.lane.is_ended:
                flow.lane = self.opened_for_delivery()
            if flow.lane is not None:
                return flow.lane.outbox
        if self._per_publish is not None:
            return cast("Outbox", self._per_publish)
        if not self._is_per_topic:
            return self._client.outbox
        served = self._topics.get(topic)
        if served is not None:
            self._topics.move_to_end(topic)
            return served.outbox
        if len(self._topics) >= self._profile.max_delivery_streams:
            self.retire(self._topics.popitem(last=False)[1])
        served = self.opened_for_delivery()
        if served is None:
            return self._client.outbox
        self._topics[topic] = served
        return served.outbox

    def opened_for_delivery(self, *, unidirectional: bool = False) -> DataStream | None:
        """Open a stream towards the client; None if it allows no more."""
        try:
            stream = cast("Opens", self._client.connection).open_stream(unidirectional=unidirectional)
        except LabError:
            return None
        return self._add(stream)

    def retire(self, served: DataStream) -> None:
        """End a delivery stream; what the client still acknowledges on it is read."""
        past, outbox = self.past, served.outbox
        served.replies_elsewhere(self._client.outbox)
        past.messages_out += outbox.messages_out
        past.bytes_out += outbox.bytes_out
        past.dropped += outbox.dropped
        assert served.stream is not None
        outbox.finish()
        if (served.stream.id or 0) & 2:
            served.close()  # nothing comes back on it
            return
        self._retired.append(served)
        if len(self._retired) > self._profile.max_delivery_streams:
            self._retired.popleft().abort()

    @property
    def control(self) -> Outbox:
        """The control stream's outbox."""
        return self._client.outbox

    def close(self) -> None:
        """End all of them with the client."""
        for stream in self._unread.values():
            stream.on_data = stream.on_end = stream.on_reset = ignore
            stream.reset(0)
        self._unread.clear()
        if self.flows is not None:
            self.flows.connection_lost()
        super().close()


class PerPublish:
    """The way out with a stream per message: unidirectional at QoS 0, else bidirectional. Used like an outbox.

    Goes over to the control stream while the client allows no more streams, or has too much to read already.
    """

    def __init__(self, streams: Mqttv5Streams) -> None:
        self._streams = streams
        self._leaving: deque[ByteStream] = deque()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._streams.control, name)

    def _stream(self, *, unidirectional: bool) -> DataStream | None:
        leaving = self._leaving
        while leaving and not leaving[0].pending:
            leaving.popleft()
        if sum(stream.pending for stream in leaving) > FULL:
            return None
        served = self._streams.opened_for_delivery(unidirectional=unidirectional)
        if served is not None:
            assert served.stream is not None
            leaving.append(served.stream)
        return served

    def push(self, packets: bytes, count: int, size: int = 0) -> None:
        """Send a QoS 0 message."""
        served = self._stream(unidirectional=True)
        if served is None:
            self._streams.control.push(packets, count, size)
            return
        served.outbox.push(packets, count, size)
        served.outbox.flush()
        self._streams.retire(served)

    def send(self, packet: bytes, **options: Any) -> None:
        """Send a QoS 1 or 2 message."""
        served = self._stream(unidirectional=False)
        if served is None:
            self._streams.control.send(packet, **options)
            return
        served.outbox.send(packet, **options)
        served.outbox.flush()
        self._streams.retire(served)
