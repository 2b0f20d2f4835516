"""One network connection as the broker sees it: bytes in, packets worked on in order, answers out.

All packets of a chunk are worked on in one go, without a task or an await in between. Plain QoS 0 messages, which are
most of the traffic where speed matters, take a short cut: their bytes are passed on as they came, a run of them for
the same topic at a time.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Awaitable
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from mqttquic_lab.broker.connecting import (
    RECEIVE_MAXIMUM,
    authenticate,
    connack_properties,
    granted_expiry,
    granted_keepalive,
    new_client_id,
)
from mqttquic_lab.broker.message import Message
from mqttquic_lab.broker.outbox import Holdable, Outbox
from mqttquic_lab.broker.status import ClientInfo
from mqttquic_lab.broker.subscribing import RetainedDelivery, subscribe, unsubscribe
from mqttquic_lab.errors import MalformedPacketError, ProtocolError
from mqttquic_lab.mqtt import (
    ConnAck,
    Connect,
    Disconnect,
    PacketDecoder,
    PingReq,
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
    reason_text,
)
from mqttquic_lab.mqtt.keepalive import ServerKeepAlive
from mqttquic_lab.mqtt.reason_codes import ALLOWED
from mqttquic_lab.mqtt.state import ConnectionState, Role, check_packet

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from mqttquic_lab.broker.clock import TimerHandle
    from mqttquic_lab.broker.router import Route
    from mqttquic_lab.broker.server import BrokerServer
    from mqttquic_lab.broker.sessions import Session
    from mqttquic_lab.errors import LabError
    from mqttquic_lab.mqtt import Packet, Version, Will
    from mqttquic_lab.net.stream import ByteStream, Connection

log = logging.getLogger(__name__)

VERSION_NAMES = {4: "3.1.1", 5: "5.0"}
MAX_CONNECT = 512 * 1024
"""Bytes that a client may send before its CONNECT is complete: five properties and texts of 64 KiB each."""
MAX_FILTERS_SHOWN = 1000
"""Topic filters of one client that :class:`ClientInfo` lists."""


def _ignore(*_: object) -> None:
    """Drop what comes from a client that we are done with."""


class Client(Holdable):
    """One network connection and, once CONNECT was accepted, the MQTT client behind it.

    Parameters
    ----------
    server : BrokerServer
        The broker.
    connection : Connection
        Its transport; the client takes over its callbacks.
    """

    def __init__(self, server: BrokerServer, connection: Connection) -> None:
        self._server = server
        self._stats = server.counters
        self._router = server.router
        self.connection = connection
        self.stream: ByteStream | None = None
        self.outbox: Outbox
        self.state = ConnectionState.IDLE
        self.version: Version = 5
        self.session: Session | None = None
        self.size_limit: int | None = None
        """Maximum Packet Size that the client takes, bytes; None for any (MQTT 5.0 section 3.1.2.11.4)."""
        self.is_ended = False
        self.messages_in = 0
        self.bytes_in = 0
        self._username: str | None = None
        self._clean_start = True
        self._connected_at = 0.0
        self._will: Will | None = None
        self._aliases: dict[int, str] = {}
        self._decoder = PacketDecoder(None, max_packet_size=server.config.max_packet_size, receiver="server")
        self._failure: ProtocolError | None = None
        self._reasons: set[object] = set()
        self._verdict_pending = object()
        self._verdict_task: asyncio.Task[None] | None = None
        self._waiting: deque[Packet] = deque()
        self._keepalive = ServerKeepAlive(0)
        self._keepalive_timer: TimerHandle | None = None
        self._pending_seen = 0
        self._retained = RetainedDelivery(self, server)
        self._connect_timer = server.clock.call_later(server.config.connect_timeout, self._connect_timed_out)
        connection.on_stream = self._on_stream
        connection.closed.add_done_callback(self._on_closed)

    def __repr__(self) -> str:
        who = repr(self.session.client_id) if self.session is not None else self.state.name.lower()
        return f"<Client {who} over {self.connection.transport}>"

    # --- the transport's events ---------------------------------------------------------------------------------

    def _on_stream(self, stream: ByteStream) -> None:
        if stream.id or self.stream is not None:  # only the control stream is served so far
            self._stats.streams_refused += 1
            stream.reset(0)
            return
        self.stream = stream
        server = self._server
        self.outbox = Outbox(stream, self, server.flushes, server.config, self._stats, server.clock, self.on_room)
        stream.on_data = self._on_data
        stream.on_end = self._on_end
        stream.on_reset = self._on_reset

    def _on_data(self, data: bytes) -> None:
        size = len(data)
        self.bytes_in += size
        self._stats.bytes_in += size
        self._keepalive.received(self._server.clock.time())
        try:
            packets = self._decoder.feed(data)
        except MalformedPacketError as error:
            packets = error.packets
            self._failure = error
        if self.state is ConnectionState.IDLE and self._decoder.buffered > MAX_CONNECT:
            self._failure = ProtocolError(
                f"CONNECT of more than {MAX_CONNECT} bytes", reason_code=ReasonCode.PACKET_TOO_LARGE
            )
        if self._reasons:  # it was on its way when reading was paused
            self._waiting.extend(packets)
        else:
            self._batch(packets)

    def _on_end(self) -> None:
        self._lost()

    def _on_reset(self, error_code: int) -> None:
        self._lost()

    def _on_closed(self, closed: asyncio.Future[LabError | None]) -> None:
        self._end()

    def _lost(self) -> None:
        """End without DISCONNECT: the client is gone, or wants to be."""
        self._end()
        self._server.spawn(self.connection.close())

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
                ):
                    route = route_of(packet.topic)
                    if route.fast:
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
        for version, clients in route.plain.items():
            if version == self.version:
                packets = run[0].raw if count == 1 else b"".join([packet.raw for packet in run])
            else:
                packets = b"".join([encode_publish(p.topic, p.payload, version=version) for p in run])
            for client in clients:
                client.outbox.push(packets, count)

    def _handle(self, packet: Packet) -> None:
        self.state = check_packet(Role.CLIENT, self.state, packet, self.version)
        self._HANDLERS[type(packet)](self, packet)

    # --- CONNECT and DISCONNECT ---------------------------------------------------------------------------------

    def _on_connect(self, packet: Connect) -> None:
        self.version = packet.version
        try:
            verdict = authenticate(self._server.config, packet)
        except Exception:  # whatever the user's function raises, nobody gets in by it
            log.exception("the broker's authenticate function failed")
            verdict = ReasonCode.UNSPECIFIED_ERROR
        if isinstance(verdict, Awaitable):
            self.block(self._verdict_pending)
            self._verdict_task = self._server.spawn(self._await_verdict(packet, verdict))
        else:
            self._admit(packet, verdict)

    async def _await_verdict(self, packet: Connect, verdict: Awaitable[int]) -> None:
        try:
            code = await verdict
        except Exception:  # as above
            log.exception("the broker's authenticate function failed")
            code = ReasonCode.UNSPECIFIED_ERROR
        self._verdict_task = None
        self._admit(packet, code)
        self.unblock(self._verdict_pending)
        self._server.changed()

    def _admit(self, packet: Connect, code: int) -> None:
        self._connect_timer.cancel()
        if code:
            self._refuse(code)
            return
        server = self._server
        config = server.config
        assigned_id = None if packet.client_id else new_client_id()
        client_id = assigned_id or packet.client_id
        session, present = server.open_session(client_id, packet.clean_start)
        if session is None:
            self._refuse(ReasonCode.QUOTA_EXCEEDED)
            return
        session.expiry_interval = granted_expiry(config, packet)
        answer = ConnAck(present, ReasonCode.SUCCESS, connack_properties(config, packet, assigned_id))
        self.state = check_packet(Role.SERVER, self.state, answer, self.version)
        self.outbox.write(answer.encode(self.version))
        self.session = session
        self._username = packet.username
        self._clean_start = packet.clean_start
        self._connected_at = time.time()
        self._will = packet.will
        self.size_limit = packet.properties.get("maximum_packet_size")
        self._keepalive = ServerKeepAlive(granted_keepalive(config, packet), server.clock.time())
        self._watch_keepalive()
        self._stats.connects_total += 1
        session.connected(self, min(packet.properties.get("receive_maximum", RECEIVE_MAXIMUM), config.max_inflight))
        if session.subscriptions:
            self._router.forget_routes()

    def _refuse(self, code: int) -> None:
        """Answer CONNECT with a failure and close [MQTT-3.1.4-6]."""
        self._stats.connects_refused += 1
        self.outbox.write(ConnAck(False, code).encode(self.version))
        self._close(reason_text(code))

    def _on_disconnect(self, packet: Disconnect) -> None:
        session = self.session
        expiry = packet.properties.get("session_expiry_interval")
        if session is not None and expiry is not None:
            if expiry and not session.expiry_interval:
                raise ProtocolError(
                    "DISCONNECT sets a session expiry interval that CONNECT set to zero",
                    reason_code=ReasonCode.PROTOCOL_ERROR,
                    section="MQTT 5.0 section 3.14.2.2.2",
                )
            session.expiry_interval = min(expiry, self._server.config.max_session_expiry)
        if packet.reason_code == ReasonCode.NORMAL_DISCONNECTION:
            self._will = None  # [MQTT-3.14.4-3]
        self._close("the client disconnected")

    def disconnect(self, code: int, reason: str = "") -> None:
        """End the connection, telling a 5.0 client why [MQTT-4.13.1-1]."""
        if self.is_ended:
            return
        if self.version == 5 and self.session is not None:
            if code not in ALLOWED["DISCONNECT"]:  # a second CONNECT of another version is 0x84, say
                code = ReasonCode.PROTOCOL_ERROR
            packet = Disconnect(code, {"reason_string": _as_text(reason)} if reason else {}).encode(5)
            if not self.takes(len(packet), count=False):
                packet = Disconnect(code).encode(5)
            self.outbox.write(packet)
        self._close(reason)

    def _fail(self, error: ProtocolError) -> None:
        """End the connection of a client that broke a rule."""
        self._stats.protocol_errors += 1
        code = error.reason_code or ReasonCode.PROTOCOL_ERROR
        if self.stream is not None and self.state is ConnectionState.IDLE:
            # A CONNECT that is no good. Bytes that are no CONNECT at all get no answer (section 4.13.1).
            if code == ReasonCode.UNSUPPORTED_PROTOCOL_VERSION:
                self.outbox.write(ConnAck(False, code).encode(4))  # the form that older clients read
            elif self._decoder.version is not None:
                answer = code if code in ALLOWED["CONNACK"] else ReasonCode.UNSPECIFIED_ERROR
                self.outbox.write(ConnAck(False, answer).encode(self._decoder.version))
        self.disconnect(code, str(error))

    def _close(self, reason: str) -> None:
        if self.is_ended:
            return
        if self.stream is not None:
            self.outbox.flush()
        self._end()
        self._server.spawn(self.connection.close(0, reason))

    def _connect_timed_out(self) -> None:
        self._stats.connect_timeouts += 1
        self._end()
        self._server.spawn(self.connection.close(0, "no CONNECT in time"))

    def _end(self) -> None:
        """Let go of everything; publishes the will unless a DISCONNECT removed it."""
        if self.is_ended:
            return
        self.is_ended = True
        self.state = ConnectionState.CLOSED
        self._connect_timer.cancel()
        if self._keepalive_timer is not None:
            self._keepalive_timer.cancel()
        if self._verdict_task is not None:
            self._verdict_task.cancel()
        self._waiting.clear()
        self._failure = None
        self.connection.on_stream = lambda stream: stream.reset(0)
        if self.stream is not None:
            self.stream.on_data = self.stream.on_end = self.stream.on_reset = _ignore
            self.outbox.close()
        will, self._will = self._will, None
        self._server.connection_ended(self, will)

    # --- keep-alive ---------------------------------------------------------------------------------------------

    def _watch_keepalive(self) -> None:
        deadline = self._keepalive.next_deadline()
        if deadline is not None:
            clock = self._server.clock
            self._keepalive_timer = clock.call_later(deadline - clock.time(), self._check_keepalive)

    def _check_keepalive(self) -> None:
        now = self._server.clock.time()
        if self._reasons and (not self.outbox.is_overflowing or self.outbox.pending != self._pending_seen):
            # We are not reading from it, so its silence is our doing. One that overflows has to take something.
            self._keepalive.received(now)
            self._pending_seen = self.outbox.pending
        if self._keepalive.poll(now) == "dead":
            self._stats.keepalive_timeouts += 1
            self.disconnect(ReasonCode.KEEP_ALIVE_TIMEOUT, f"nothing heard for 1.5 x {self._keepalive.interval} s")
            self._server.changed()
        else:
            self._watch_keepalive()

    def _on_pingreq(self, packet: PingReq) -> None:
        self.outbox.write(PINGRESP)

    # --- PUBLISH and acknowledgements ---------------------------------------------------------------------------

    def _on_publish(self, packet: Publish) -> None:
        session = self.session
        assert session is not None
        self.messages_in += 1
        self._stats.messages_in += 1
        topic = packet.topic
        if "topic_alias" in packet.properties or not topic:
            topic = self._resolve_alias(packet)
        if packet.qos:
            nobody = self.version == 5 and self._router.route(topic).is_empty
            received = session.deliveries.receive(packet, ReasonCode.NO_MATCHING_SUBSCRIBERS if nobody else 0)
            assert received.reply is not None
            self.outbox.write(received.reply.encode(self.version))
            if not received.deliver:
                return
        now = self._server.clock.time()
        message = Message(topic, packet.payload, packet.qos, packet.retain, packet.properties, now)
        self._server.publish(message, session)

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
            self.outbox.write(reply.encode(self.version))
        self.on_room()

    def _on_pubrel(self, packet: PubRel) -> None:
        assert self.session is not None
        self.outbox.write(self.session.deliveries.release(packet).encode(self.version))

    def on_room(self) -> None:
        """Send what waited for room: in the connection, or among the unacknowledged messages."""
        if self.session is not None and not self.is_ended:
            self.session.pump()
            self._retained.pump()

    # --- SUBSCRIBE and UNSUBSCRIBE ------------------------------------------------------------------------------

    def _on_subscribe(self, packet: Subscribe) -> None:
        assert self.session is not None
        answer = subscribe(self._server, self.session, packet, self._retained)
        self.outbox.write(answer.encode(self.version))
        self._retained.pump()

    def _on_unsubscribe(self, packet: Unsubscribe) -> None:
        assert self.session is not None
        self.outbox.write(unsubscribe(self._server, self.session, packet).encode(self.version))

    # --- what others ask ----------------------------------------------------------------------------------------

    def takes(self, size: int, *, count: bool = True) -> bool:
        """Whether the client accepts a packet of `size` bytes; `count` one that it does not as dropped."""
        if self.size_limit is None or size <= self.size_limit:
            return True
        if count:
            self._stats.dropped_size += 1
            self.outbox.dropped += 1
        return False

    def info(self) -> ClientInfo:
        """Return what is known about the client now."""
        session = self.session
        assert session is not None
        return ClientInfo(
            client_id=session.client_id,
            transport=self.connection.transport,
            address=self.connection.peer_address,
            version=VERSION_NAMES[self.version],
            username=self._username,
            connected_at=self._connected_at,
            keepalive=int(self._keepalive.interval),
            clean_start=self._clean_start,
            session_expiry_interval=session.expiry_interval,
            subscriptions=tuple(islice(session.subscriptions, MAX_FILTERS_SHOWN)),
            messages_in=self.messages_in,
            messages_out=self.outbox.messages_out,
            bytes_in=self.bytes_in,
            bytes_out=self.outbox.bytes_out,
            inflight=session.inflight,
            queued=len(session.queue),
            pending=self.outbox.pending,
            dropped=self.outbox.dropped,
        )

    _HANDLERS: ClassVar[dict[type, Callable[[Client, Any], None]]] = {
        Connect: _on_connect,
        Publish: _on_publish,
        PubAck: _on_acknowledgement,
        PubRec: _on_acknowledgement,
        PubComp: _on_acknowledgement,
        PubRel: _on_pubrel,
        Subscribe: _on_subscribe,
        Unsubscribe: _on_unsubscribe,
        PingReq: _on_pingreq,
        Disconnect: _on_disconnect,
    }
    """Packet type -> what to do. Not AUTH: without enhanced authentication the state table refuses it."""


def _as_text(reason: str) -> str:
    """Return `reason` as a reason string that can be sent."""
    return reason[:1000].encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


PINGRESP = PingResp().encode()
