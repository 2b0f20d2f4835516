"""Streams as the mqttv5 broker serves them (profile ``mqttv5``), observed on mqttv5-cli 0.29.

The client publishes and subscribes on unidirectional streams, with or without a flow header; every answer comes on the
control stream. Deliveries come on streams that the broker opens, one per topic or per message, each with a header of
its own, whatever the ALPN. Packet identifiers and subscriptions are the session's.

Of its flows only the headers are reproduced: a flow keeps no subscriptions of its own here.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any, ClassVar, cast

from mqttquic_lab.broker.flows import HeaderReader
from mqttquic_lab.broker.outbox import FULL
from mqttquic_lab.broker.pipeline import ignore
from mqttquic_lab.broker.streams import DataStream, Opens, Streams
from mqttquic_lab.errors import LabError
from mqttquic_lab.mqtt import Connect, Disconnect, ReasonCode
from mqttquic_lab.mqtt.flow_codes import ConnectionCode, FlowError, StreamCode
from mqttquic_lab.mqtt.flow_header import FlowHeader, FlowType

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mqttquic_lab.broker.client import Client
    from mqttquic_lab.broker.outbox import Outbox
    from mqttquic_lab.broker.server import BrokerServer
    from mqttquic_lab.errors import ProtocolError
    from mqttquic_lab.net.stream import ByteStream

FLOW_EXPIRE_INTERVAL = 300
"""Seconds that its delivery streams announce."""
FIRST_FLOW_ID = 3
"""Flow id of the first delivery stream of a connection; 1 is never used."""
MAX_FLOWS = 256
"""Flows of a session that are remembered."""


class Mqttv5Stream(DataStream):
    """A unidirectional stream of the client's, or one that we opened for a topic."""

    def __init__(self, client: Client, streams: Streams, stream: ByteStream, server: BrokerServer) -> None:
        self._client = client
        super().__init__(client, streams, stream, server)
        self.answers = client.outbox
        self._handlers = self._HANDLERS
        self.share_aliases(client.share_aliases())  # one space, as the packet identifiers are

    def _on_connect(self, packet: Connect) -> None:
        self._client.disconnect(ReasonCode.PROTOCOL_ERROR, "CONNECT on a data stream", "protocol error")

    def _on_disconnect(self, packet: Disconnect) -> None:
        self._client.end_by(packet)

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
        elif not self.stream.is_writable:  # it cannot deliver, and takes that for the end of the client
            self._client.abandon("a delivery stream was stopped", ConnectionCode.UNSPECIFIED)

    _HANDLERS: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        **DataStream.UNIDIRECTIONAL,
        Connect: _on_connect,
        Disconnect: _on_disconnect,
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
        self._known: set[int] = set()
        self._failed: set[int] = set()
        self._unread: dict[int, ByteStream] = {}
        self._topics: OrderedDict[str, DataStream] = OrderedDict()
        self._retired: deque[DataStream] = deque()
        self._per_publish = PerPublish(self) if server.deliveries == "per-publish" else None
        is_ours = server.deliveries in ("per-topic", "per-publish")
        self.carry_deliveries = is_ours and client.connection.transport == "quic"

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
            served = self._add(stream)
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
            done,
            lambda error: refuse(error.code if isinstance(error, FlowError) else StreamCode.NO_ERROR),
            lambda: refuse(StreamCode.NO_ERROR),
            required=False,
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
            if header.flow_id not in self._known:
                if header.flow_id in self._failed:
                    self._client.abandon("recovered again", ConnectionCode.TOO_MANY_RECOVER_ATTEMPTS)
                elif len(self._failed) < MAX_FLOWS:
                    self._failed.add(header.flow_id)
                return StreamCode.NO_FLOW_STATE
        if len(self._known) < MAX_FLOWS:
            self._known.add(header.flow_id)
        return None

    def _bidirectional_refusal(self, header: FlowHeader | None) -> int | None:
        """Return the code with which a bidirectional stream of the client's is refused; None if it is a discard."""
        if header is None or header.type is FlowType.CONTROL:
            return self._profile.refusal_code
        if header.type is FlowType.SERVER_DATA or header.flow_id & 1:
            return StreamCode.BAD_FLOW_ID
        if header.type is FlowType.CLIENT_DATA and header.flags.discards and not header.expire_interval:
            self._known.discard(header.flow_id)
            return None
        return StreamCode.FLOW_REFUSED

    def _add(self, stream: ByteStream) -> DataStream:
        number = stream.id or 0
        served = Mqttv5Stream(self._client, self, stream, self._server)
        self._open[number] = served
        self._server.counters.streams_total += 1
        if number & 1:
            served.outbox.write(FlowHeader(FlowType.SERVER_DATA, self._next_flow_id, FLOW_EXPIRE_INTERVAL).encode())
            self._next_flow_id += 2
        return served

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
        if self._per_publish is not None:
            return cast("Outbox", self._per_publish)
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
