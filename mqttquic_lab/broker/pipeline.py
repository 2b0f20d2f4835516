"""One stream of a client: bytes in, packets worked on in order, answers out on the same stream.

All packets of a chunk are worked on in one go, without a task or an await in between. Plain QoS 0 messages, which are
most of the traffic where speed matters, take a short cut: their bytes are passed on as they came, a run of them for
the same topic at a time.

The control stream is a :class:`mqttquic_lab.broker.client.Client`; the others are
:class:`mqttquic_lab.broker.streams.DataStream`.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar

from mqttquic_lab.broker.early import EarlyPublish, marked
from mqttquic_lab.broker.message import Message, named
from mqttquic_lab.broker.outbox import Holdable, Outbox
from mqttquic_lab.broker.subscribing import RetainedDelivery, subscribe, unsubscribe
from mqttquic_lab.broker.tracing import note_received
from mqttquic_lab.errors import MalformedPacketError, ProtocolError
from mqttquic_lab.mqtt import (
    PacketDecoder,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    ReasonCode,
    Subscribe,
    Unsubscribe,
    encode_publish,
)
from mqttquic_lab.mqtt.keepalive import ServerKeepAlive
from mqttquic_lab.mqtt.state import ConnectionState, Role, check_packet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mqttquic_lab.broker.acl import Rights
    from mqttquic_lab.broker.router import Route
    from mqttquic_lab.broker.server import BrokerServer
    from mqttquic_lab.broker.sessions import Outgoing, Session
    from mqttquic_lab.mqtt import Acknowledgement, Packet, SubAck, UnsubAck, Version
    from mqttquic_lab.net.stream import ByteStream

log = logging.getLogger(__name__)

MAX_CONNECT = 512 * 1024
"""Bytes of a packet from a client that is not known yet: CONNECT has five properties and texts of 64 KiB each."""
LARGE = 1024
"""Bytes of a packet on its way from which its pieces count for the keep-alive: a large one may take longer than that.
What there is of a smaller one does not count: it takes a packet, says MQTT-3.1.2-22."""
UNKNOWN = (ConnectionState.IDLE, ConnectionState.AUTHENTICATING)
"""States in which nobody knows whose bytes these are."""


PINGRESP = PingResp().encode()


def as_text(reason: str) -> str:
    """Return `reason` as a reason string that can be sent."""
    return reason[:1000].encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def ignore(*_: object) -> None:
    """Drop what comes from a client that we are done with."""


class Pipeline(Holdable):
    """What the broker does with one stream.

    Attributes
    ----------
    stream : ByteStream or None
        None until the client has opened its control stream.
    outbox : Outbox
        Where messages for the subscriptions of :attr:`session` go.
    answers : Outbox
        Where answers go: the same, but in some profiles the control stream's.
    session : Session or None
        Whose packet identifiers and subscriptions this stream uses; None before CONNECT was accepted.
    state : ConnectionState
    version : {4, 5}
    size_limit : int or None
        Maximum Packet Size that the client takes, bytes; None for any (MQTT 5.0 section 3.1.2.11.4).
    rights : Rights or None
        What the client may do; None for everything.
    explains : bool
        Whether answers tell the client why it was refused (MQTT 5.0 section 3.1.2.11.7).
    is_plain : bool
        Whether a QoS 0 message may be copied to :attr:`outbox` unseen.
    has_ways : bool
        Whether messages go where :meth:`divert` and :meth:`way` say instead of to :attr:`outbox`.
    """

    def __init__(self, server: BrokerServer, version: Version | None) -> None:
        self._server = server
        self._stats = server.counters
        self._router = server.router
        self.stream: ByteStream | None = None
        self.outbox: Outbox
        self.answers: Outbox
        self.state = ConnectionState.IDLE
        self.version: Version = 5 if version is None else version
        self.session: Session | None = None
        self.size_limit: int | None = None
        self.rights: Rights | None = None
        self.explains = False
        self.is_plain = True
        self.has_ways = False
        self.is_ended = False
        self._names_publisher = server.profile.names_publisher
        self.messages_in = 0
        self.bytes_in = 0
        self.early_messages = 0
        self._aliases: dict[int, str] = {}
        self._decoder = PacketDecoder(
            version,
            max_packet_size=server.config.max_packet_size,
            max_connect_size=MAX_CONNECT,
            receiver="server",
        )
        self._failure: ProtocolError | None = None
        self._reasons: set[object] = set()
        self._waiting: deque[Packet] = deque()
        self._keepalive = ServerKeepAlive(0)
        self._retained = RetainedDelivery(self, server)

    def _attach(self, stream: ByteStream) -> None:
        """Read from `stream` and, unless there is another way out, answer on it."""
        self.stream = stream
        stream.on_data = self._on_data
        stream.on_end = self._on_end
        stream.on_reset = self._on_reset

    def _make_outbox(self, stream: ByteStream) -> Outbox:
        server = self._server
        return Outbox(stream, self, server.flushes, server.config, self._stats, server.clock, self.on_room)

    def _detach(self) -> None:
        """Forget what has not been worked on, and what comes from now on."""
        self._waiting.clear()
        self._failure = None
        if self.stream is not None:
            self.stream.on_data = self.stream.on_end = self.stream.on_reset = ignore

    # --- the transport's events ---------------------------------------------------------------------------------

    def _on_data(self, data: bytes) -> None:
        size = len(data)
        self.bytes_in += size
        self._stats.bytes_in += size
        try:
            packets = self._decoder.feed(data)
        except MalformedPacketError as error:
            packets = error.packets
            self._failure = error
        if packets or self._decoder.buffered > LARGE:
            self._keepalive.received(self._server.clock.time())
        self._stats.packets_in += len(packets)
        trace = self._server.trace
        if trace.detail:
            note_received(trace, self.client_id, self.stream.id if self.stream is not None else None, packets)
        if self.state in UNKNOWN and self._decoder.buffered > MAX_CONNECT:
            self._failure = ProtocolError(
                f"CONNECT or AUTH of more than {MAX_CONNECT} bytes", reason_code=ReasonCode.PACKET_TOO_LARGE
            )
        if self.stream is not None and self.stream.connection.is_early:
            packets = marked(packets)
        if self._reasons:  # it was on its way when reading was paused
            self._waiting.extend(packets)
        else:
            self._batch(packets)

    def _on_end(self) -> None:
        raise NotImplementedError

    def _on_reset(self, error_code: int) -> None:
        raise NotImplementedError

    def disconnect(self, code: int, reason: str = "") -> None:
        """End it, telling the client why if that is possible."""
        raise NotImplementedError

    def _fail(self, error: ProtocolError) -> None:
        """End what has to end because the client broke a rule."""
        raise NotImplementedError

    # --- reading ------------------------------------------------------------------------------------------------

    def block(self, reason: object) -> None:
        """Stop reading until every reason has been taken back."""
        if not self._reasons and self.stream is not None:
            self.stream.pause_reading()
        self._reasons.add(reason)

    def unblock(self, reason: object) -> None:
        """Take a reason back."""
        if reason in self._reasons:
            self._reasons.remove(reason)
            if not self._reasons:
                self._server.call_soon(self._resume)

    def _resume(self) -> None:
        if self._reasons or self.is_ended:
            return
        if self._waiting or self._failure is not None:
            packets, self._waiting = self._waiting, deque()
            self._batch(packets)
        if not self._reasons and not self.is_ended and self.stream is not None:
            self.stream.resume_reading()

    def _batch(self, packets: Iterable[Packet]) -> None:
        """Work on packets, then write what came of it, to whomever."""
        flushes = self._server.flushes
        flushes.begin()
        try:
            self._work(packets)
            self._check_failure()
        except ProtocolError as error:
            self._fail(error)
        except Exception:  # a bug of ours in the handling of one client's packet must not stop the others
            log.exception("internal error while serving %r", self)
            self.disconnect(ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR, "internal error of the broker")
        finally:
            flushes.flush(self)
            self._server.changed()

    def _check_failure(self) -> None:
        """Raise what the decoder found, once everything before it has been worked on."""
        if self._failure is not None and not self._waiting:
            raise self._failure

    def _work(self, packets: Iterable[Packet]) -> None:
        route_of = self._router.route
        connected = ConnectionState.CONNECTED
        run: list[Publish] = []
        run_route: Route | None = None
        remaining = iter(packets)
        try:
            for packet in remaining:
                if (
                    type(packet) is Publish
                    and packet.qos == 0
                    and not packet.retain
                    and self.state is connected
                    and "topic_alias" not in packet.properties
                    and (self.rights is None or self.rights.may_publish(packet.topic))
                ):
                    route = route_of(packet.topic)
                    if route.fast and not self._names_publisher:
                        if route is not run_route:
                            if run_route is not None:
                                self._pass_on(run_route, run)
                                run = []
                            run_route = route
                        run.append(packet)
                        continue
                if run_route is not None:
                    self._pass_on(run_route, run)
                    run = []
                    run_route = None
                self._handle(packet)
                if self.is_ended:
                    return
                if self._reasons:
                    self._waiting.extend(remaining)
                    return
        finally:
            if run_route is not None:
                self._pass_on(run_route, run)

    def _pass_on(self, route: Route, run: list[Publish]) -> None:
        """Copy plain QoS 0 messages of one topic to everybody: joined once per protocol version."""
        count = len(run)
        self.messages_in += count
        self._stats.messages_in += count
        size = sum([len(packet.payload) for packet in run])
        self._stats.payload_bytes_in += size
        for version, clients in route.plain.items():
            if version == self.version:
                packets = run[0].raw if count == 1 else b"".join([packet.raw for packet in run])
            else:
                packets = b"".join([encode_publish(p.topic, p.payload, version=version) for p in run])
            for client in clients:
                client.outbox.push(packets, count, size)

    def _handle(self, packet: Packet) -> None:
        self.state = check_packet(Role.CLIENT, self.state, packet, self.version)
        self.HANDLERS[type(packet)](self, packet)

    # --- PUBLISH and acknowledgements ---------------------------------------------------------------------------

    def _on_publish(self, packet: Publish) -> None:
        session = self.session
        assert session is not None
        self.messages_in += 1
        self._stats.messages_in += 1
        self._stats.payload_bytes_in += len(packet.payload)
        topic = packet.topic
        if "topic_alias" in packet.properties or not topic:
            topic = self._resolve_alias(packet)
        refusal = self._refusal(topic)
        if packet.qos:
            journal = self._server.journal
            if journal is not None and journal.is_failing:
                self._refuse_unkept(packet, session)
                return
            code = 0
            if self.version == 5:
                nobody = not refusal and self._router.route(topic).is_empty
                code = ReasonCode.NOT_AUTHORIZED if refusal else ReasonCode.NO_MATCHING_SUBSCRIBERS if nobody else 0
            # A 3.1.1 client cannot be told that it may not publish: it gets its acknowledgement [MQTT-3.3.5-2].
            received = session.deliveries.receive(packet, code)
            assert received.reply is not None
            self._answer(received.reply, refusal)
            if received.deliver and packet.qos == 2 and session.kept is not None:
                session.kept.received(received.reply.packet_id)
            if not received.deliver and not refusal:
                return
        if refusal:
            self._stats.publishes_refused += 1
            return
        now = self._server.clock.time()
        properties = named(packet.properties, session.client_id) if self._names_publisher else packet.properties
        message = Message(topic, packet.payload, packet.qos, packet.retain, properties, now)
        self._server.publish(message, session.owner)

    def _refusal(self, topic: str) -> str:
        """Return why the client may not publish to a topic, "" if it may."""
        if topic.startswith("$SYS/"):
            return "$SYS topics are the broker's own (section 4.7.2)"
        if self.rights is not None and not self.rights.may_publish(topic):
            return f"publishing to {topic} is not allowed"
        return ""

    def _answer(self, packet: Acknowledgement | SubAck | UnsubAck, reason: str, *, settled: bool = False) -> None:
        """Write an answer, with its reason if the client wants to know and takes it [MQTT-3.4.2-2, MQTT-3.1.2-29].

        See :meth:`Outbox.write` for `settled`.
        """
        data = packet.encode(self.version)
        if not self.takes(len(data), count=False):
            # A SUBACK or UNSUBACK of many filters: not sent [MQTT-3.1.2-24], and the client, which would wait for it
            # for ever, is told why.
            self.disconnect(ReasonCode.PACKET_TOO_LARGE, f"the client takes no packet as large as this {packet.NAME}")
            return
        if reason and self.explains and self.version == 5:
            packet.properties = {"reason_string": as_text(reason)}
            longer = packet.encode(5)
            if self.takes(len(longer), count=False):
                data = longer
        self.answers.write(data, settled=settled)

    def _refuse_unkept(self, packet: Publish, session: Session) -> None:
        """Refuse a message that the store cannot keep now (0x97); 3.1.1 knows no other way than to end."""
        self._stats.store_refused += 1
        reason = "the broker cannot store messages"
        if self.version == 5:
            received = session.deliveries.receive(packet, ReasonCode.QUOTA_EXCEEDED)
            assert received.reply is not None
            # A QoS 2 message that was there before is acknowledged as before, but that has to be on disk.
            refused = received.reply.reason_code >= 0x80
            self._answer(received.reply, reason if refused else "", settled=refused)
        else:
            self.disconnect(ReasonCode.QUOTA_EXCEEDED, reason)

    def cut_off(self, code: int, reason: str, *, unanswered: bool) -> None:
        """See :meth:`Holdable.cut_off`."""
        self.disconnect(code, reason)

    def _on_early_publish(self, packet: EarlyPublish) -> None:
        self.early_messages += 1
        self._stats.early_messages += 1
        self._on_publish(packet)

    def _resolve_alias(self, packet: Publish) -> str:
        """Return the topic of a PUBLISH with a topic alias (MQTT 5.0 section 3.3.2.3.4)."""
        alias = packet.properties.get("topic_alias")
        if alias is not None and not 0 < alias <= self._server.config.topic_alias_maximum:
            raise ProtocolError(
                f"topic alias {alias} is not 1 to {self._server.config.topic_alias_maximum}",
                reason_code=ReasonCode.TOPIC_ALIAS_INVALID,
                rule="MQTT-3.3.2-8",
                section="MQTT 5.0 section 3.3.2.3.4",
            )
        if packet.topic:
            assert alias is not None
            self._aliases[alias] = packet.topic
            return packet.topic
        topic = self._aliases.get(alias) if alias is not None else None
        if topic is None:
            raise ProtocolError(
                f"topic alias {alias} was never given a topic" if alias else "PUBLISH has neither topic nor alias",
                reason_code=ReasonCode.PROTOCOL_ERROR,
                section="MQTT 5.0 section 3.3.2.3.4",
            )
        return topic

    def _on_acknowledgement(self, packet: PubAck | PubRec | PubComp) -> None:
        session = self.session
        assert session is not None
        reply = session.acknowledge(packet)
        if reply is not None:
            self.answers.write(reply.encode(self.version), settled=session.kept is None)
        self.on_room()

    def _on_pubrel(self, packet: PubRel) -> None:
        session = self.session
        assert session is not None
        if session.kept is not None:
            session.kept.completed(packet.packet_id)
        self.answers.write(session.deliveries.release(packet).encode(self.version), settled=session.kept is None)

    def on_room(self) -> None:
        """Send what waited for room: in the connection, or among the unacknowledged messages."""
        if self.session is not None and not self.is_ended:
            self.session.pump()
            self._retained.pump()

    # --- SUBSCRIBE and UNSUBSCRIBE ------------------------------------------------------------------------------

    def _on_subscribe(self, packet: Subscribe) -> None:
        assert self.session is not None
        answer, reason = subscribe(self._server, self.session, packet, self._retained)
        self._answer(answer, reason, settled=self.session.kept is None)
        self._retained.pump()

    def _on_unsubscribe(self, packet: Unsubscribe) -> None:
        assert self.session is not None
        answer = unsubscribe(self._server, self.session, packet)
        self._answer(answer, "", settled=self.session.kept is None)

    # --- what others ask ----------------------------------------------------------------------------------------

    def share_aliases(self, aliases: dict[int, str] | None = None) -> dict[int, str]:
        """Return the topic aliases that the client has set; given another stream's, use those from now on."""
        if aliases is not None:
            self._aliases = aliases
        return self._aliases

    def divert(self, outgoing: Outgoing) -> bool:
        """Hand a message to a flow of ours that has a session of its own; returns whether there is one."""
        return False

    @property
    def client_id(self) -> str:
        """Whose it is; empty before CONNECT was accepted."""
        return self.session.client_id if self.session is not None else ""

    def way(self, topic: str) -> Outbox:
        """Return where messages of a topic go out that :meth:`divert` leaves."""
        return self.outbox

    def takes(self, size: int, *, count: bool = True) -> bool:
        """Whether the client accepts a packet of `size` bytes; `count` one that it does not as dropped."""
        if self.size_limit is None or size <= self.size_limit:
            return True
        if count:
            self._stats.dropped_size += 1
            self.outbox.dropped += 1
        return False

    HANDLERS: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        Publish: _on_publish,
        EarlyPublish: _on_early_publish,
        PubAck: _on_acknowledgement,
        PubRec: _on_acknowledgement,
        PubComp: _on_acknowledgement,
        PubRel: _on_pubrel,
        Subscribe: _on_subscribe,
        Unsubscribe: _on_unsubscribe,
    }
    """Packet type -> what to do."""
