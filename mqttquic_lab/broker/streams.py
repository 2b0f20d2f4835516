"""The streams of a client beside its control stream.

Which of them are served, and by which rules, stands in the broker's
:class:`~mqttquic_lab.mqtt.profiles.BrokerProfile`. What all profiles have in common: data waits until CONNACK; an
acknowledgement goes back on the stream of its PUBLISH; only PUBLISH and what belongs to it, SUBSCRIBE and UNSUBSCRIBE
are allowed; whoever breaks a rule on a data stream loses that stream, not the session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from mqttquic_lab.broker.pipeline import PINGRESP, Pipeline
from mqttquic_lab.errors import ProtocolError
from mqttquic_lab.mqtt import PingReq, ReasonCode
from mqttquic_lab.mqtt.state import ConnectionState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mqttquic_lab.broker.client import Client
    from mqttquic_lab.broker.outbox import Outbox
    from mqttquic_lab.broker.server import BrokerServer
    from mqttquic_lab.broker.sessions import Outgoing
    from mqttquic_lab.mqtt import Packet
    from mqttquic_lab.net.stream import ByteStream

RESET_CODE = 0
"""Application error code of RESET_STREAM and STOP_SENDING; EMQX uses no other."""


class DataStream(Pipeline):
    """A stream beside the control stream.

    Parameters
    ----------
    client : Client
        Whose stream it is; CONNECT was accepted.
    streams : Streams
        Told when it ends.
    stream : ByteStream
        The stream.
    """

    def __init__(self, client: Client, streams: Streams, stream: ByteStream, server: BrokerServer) -> None:
        super().__init__(server, client.version)
        self._streams = streams
        self._is_fin_waiting = False
        self._keepalive = client.keepalive if server.profile.keepalive == "any" else self._keepalive
        self.state = ConnectionState.CONNECTED
        self.size_limit = client.size_limit
        self.rights, self.explains = client.rights, client.explains
        self.is_plain = client.size_limit is None
        self.can_answer = (stream.id or 0) & 3 != 2
        """False on a unidirectional stream of the client's: acknowledgements go out on the control stream."""
        self.outbox = self.answers = self._make_outbox(stream) if self.can_answer else client.outbox
        if self.can_answer:
            self.outbox.total_pending = streams.pending
        is_ours = bool((stream.id or 0) & 1)
        self.owns_session = server.profile.state_per_stream and self.can_answer and not is_ours
        if self.owns_session:
            self.outbox.aliases = client.new_aliases()
        self._handlers = self.HANDLERS if self.can_answer else self.UNIDIRECTIONAL
        self._attach(stream)
        self._join_session(client)

    def _join_session(self, client: Client) -> None:
        """Find the session whose packet identifiers and subscriptions are this stream's."""
        assert client.session is not None
        if self.owns_session:
            self.session = self._server.sessions.of_stream(client.session)
            self.session.connected(self, client.receive_maximum)
        else:
            self.session = client.session

    def _leave_session(self) -> None:
        """Let go of it; one of the stream's own ends."""
        if self.owns_session:
            assert self.session is not None
            self._server.end_stream_session(self.session)

    def __repr__(self) -> str:
        assert self.session is not None
        return f"<DataStream {self.stream.id if self.stream else None} of {self.session.client_id!r}>"

    @property
    def is_held(self) -> bool:
        """Whether we are not reading from it."""
        return bool(self._reasons)

    # --- how it ends --------------------------------------------------------------------------------------------

    def _on_end(self) -> None:
        if self._waiting or self._reasons:
            self._is_fin_waiting = True  # what came before it has not been worked on yet
        else:
            self.finish()

    def _batch(self, packets: Any) -> None:
        super()._batch(packets)
        if self._is_fin_waiting and not self._waiting and not self._reasons:
            self.finish()

    def finish(self) -> None:
        """Answer FIN with FIN, once everything before it is answered."""
        if self.is_ended:
            return
        assert self.stream is not None
        if self.can_answer:
            self.outbox.finish()
        self.close()

    def _on_reset(self, error_code: int) -> None:
        if self._server.profile.resets_keep_subscriptions:
            # RESET_STREAM and STOP_SENDING are two frames: see what is left of the stream when both were read.
            self._server.call_soon(self._was_reset)
        else:
            self.abort()

    def _was_reset(self) -> None:
        if self.stream is not None and not self.stream.is_writable:
            self.abort()

    def abort(self) -> None:
        """Give the stream up in both directions; the session lives on."""
        if self.is_ended:
            return
        assert self.stream is not None
        self.stream.reset(RESET_CODE)
        self.close()

    def disconnect(self, code: int, reason: str = "") -> None:
        """Give the stream up: on a data stream there is no DISCONNECT to say why."""
        self.abort()

    def _fail(self, error: ProtocolError) -> None:
        self._stats.stream_errors += 1
        self.abort()

    def close(self) -> None:
        """Let go of everything; subscriptions and messages of a stream with its own session end with it."""
        if self.is_ended:
            return
        self.is_ended = True
        self.state = ConnectionState.CLOSED
        self._detach()
        if self.can_answer:
            self.outbox.close()
        self._streams.left(self)
        self._leave_session()

    # --- packets ------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take bytes that came together with what stands before the first packet."""
        self._on_data(data)

    def _handle(self, packet: Packet) -> None:
        handler = self._handlers.get(type(packet))
        if handler is None:
            raise ProtocolError(
                f"{packet.NAME} on a data stream: it belongs on the control stream",
                reason_code=ReasonCode.PROTOCOL_ERROR,
                packet=packet,
            )
        handler(self, packet)

    def replies_elsewhere(self, outbox: Outbox) -> None:
        """Answer through another outbox from now on: ours has said its last word."""
        self.outbox.flush()
        self.can_answer = False
        self.outbox = self.answers = outbox

    def _on_pingreq(self, packet: PingReq) -> None:
        self.answers.write(PINGRESP, settled=True)

    UNIDIRECTIONAL: ClassVar[dict[type, Callable[[Any, Any], None]]] = {**Pipeline.HANDLERS, PingReq: _on_pingreq}
    """What mqttv5's client sends on its streams; the subscriptions are those of the control stream."""


class Totals:
    """What passed through streams that have ended."""

    __slots__ = ("bytes_in", "bytes_out", "dropped", "early_messages", "messages_in", "messages_out")

    def __init__(self) -> None:
        self.messages_in = self.messages_out = self.bytes_in = self.bytes_out = self.dropped = 0
        self.early_messages = 0


class Opens(Protocol):
    """A connection on which we can open streams; QUIC's."""

    def open_stream(self, *, unidirectional: bool = False) -> ByteStream:
        """Open a stream."""
        ...

    def stream_credit(self, *, unidirectional: bool = False) -> int:
        """Return how many more the client allows now."""
        ...

    async def progress(self) -> None:
        """Wait until something has arrived."""
        ...


class Streams:
    """The streams of one client, except its control stream.

    Attributes
    ----------
    carry_deliveries : bool
        Whether messages for the client go out on streams that we open: :meth:`take` and :meth:`way` are asked then.
    past : Totals
        Counters of those that have ended.
    """

    CLOSE_CODES: ClassVar[Mapping[str, int]] = {}
    """Cause of the connection's end -> application error code of CONNECTION_CLOSE; 0 for all others."""

    def __init__(self, client: Client, server: BrokerServer) -> None:
        self._client = client
        self._server = server
        self._profile = server.profile
        self._open: dict[int, DataStream] = {}
        self._early: list[ByteStream] = []
        self.carry_deliveries = False
        self.past = Totals()

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[DataStream]:
        return iter(self._open.values())

    @property
    def sessions(self) -> list[Any]:
        """The sessions of streams that have their own."""
        return [stream.session for stream in self if stream.owns_session]

    @property
    def outboxes(self) -> list[Outbox]:
        """The outboxes of streams that have their own."""
        return [stream.outbox for stream in self if stream.can_answer]

    @property
    def are_held(self) -> bool:
        """Whether we are not reading from one of them."""
        return any(stream.is_held for stream in self)

    def take_early(self, other: Streams) -> None:
        """Take over the streams that wait for CONNACK in another one's place."""
        self._early, other._early = other._early, []

    def pending(self) -> int:
        """Return the bytes written to all of them that the client has not taken yet."""
        return sum(outbox.pending for outbox in self.outboxes)

    # --- the client's -------------------------------------------------------------------------------------------

    def open_control(self, stream: ByteStream, begin: Callable[[bytes], None]) -> None:
        """Call `begin` when packets may come on the control stream: at once."""
        begin(b"")

    def serves(self, stream: ByteStream) -> bool:
        """Whether the profile serves such streams."""
        if (stream.id or 0) & 2:
            return self._profile.unidirectional
        return self._profile.bidirectional == "data"

    def opened(self, stream: ByteStream) -> None:
        """Serve a stream that the client opened, or refuse it."""
        profile, client = self._profile, self._client
        limit = profile.max_streams_bidi + profile.max_streams_uni
        is_quic = client.connection.transport == "quic"
        if not self.serves(stream) or not is_quic or len(self._open) + len(self._early) >= limit:
            self._server.counters.streams_refused += 1
            stream.reset(profile.refusal_code)
        elif client.session is not None:
            self._serve(stream)
        elif client.state is ConnectionState.IDLE and profile.before_connect == "close":
            client.abandon("data stream before CONNECT")
        else:
            stream.pause_reading()  # flow control bounds what waits until CONNACK
            self._early.append(stream)

    def admitted(self) -> None:
        """Serve the streams that waited for CONNACK."""
        session = self._client.session
        assert session is not None
        if session.flows is not None:
            session.flows.connected_without()
        self._serve_early()

    def _serve_early(self) -> None:
        early, self._early = self._early, []
        for stream in early:
            self._serve(stream)
            stream.resume_reading()

    def _serve(self, stream: ByteStream) -> None:
        self._add(stream)

    def _add(self, stream: ByteStream) -> DataStream:
        served = DataStream(self._client, self, stream, self._server)
        self._open[stream.id or 0] = served
        self._server.counters.streams_total += 1
        return served

    def left(self, stream: DataStream) -> None:
        """Forget a stream that has ended."""
        assert stream.stream is not None
        self._open.pop(stream.stream.id or 0, None)
        past = self.past
        past.messages_in += stream.messages_in
        past.early_messages += stream.early_messages
        past.bytes_in += stream.bytes_in
        if stream.can_answer:
            past.messages_out += stream.outbox.messages_out
            past.bytes_out += stream.outbox.bytes_out
            past.dropped += stream.outbox.dropped

    def close(self) -> None:
        """End all of them; the client is gone, or what is left of its connection is nobody's."""
        for stream in self._early:
            stream.reset(RESET_CODE)
        self._early.clear()
        for served in list(self._open.values()):
            served.finish()

    # --- ours ---------------------------------------------------------------------------------------------------

    def take(self, outgoing: Outgoing) -> bool:
        """Send a message on a flow of ours, which has a session of its own; returns False if it goes another way."""
        return False

    def way(self, topic: str) -> Outbox:
        """Return where messages of a topic go out that :meth:`take` leaves."""
        return self._client.outbox
