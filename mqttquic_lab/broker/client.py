"""A client as the broker sees it: its control stream, and with it the connection, CONNECT, keep-alive and the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, ClassVar

from mqttquic_lab.broker.acl import AclClient, Rights
from mqttquic_lab.broker.aliases import OutgoingAliases
from mqttquic_lab.broker.authenticating import Authentication
from mqttquic_lab.broker.connecting import (
    RECEIVE_MAXIMUM,
    authenticate,
    connack_properties,
    granted_expiry,
    granted_keepalive,
    new_client_id,
)
from mqttquic_lab.broker.datagrams import datagrams_of
from mqttquic_lab.broker.flows import ALPN, FlowStreams
from mqttquic_lab.broker.mqttv5 import Mqttv5Streams
from mqttquic_lab.broker.pipeline import PINGRESP, Pipeline, as_text
from mqttquic_lab.broker.server_flows import ServerFlowStreams
from mqttquic_lab.broker.status import ClientInfo
from mqttquic_lab.broker.streams import Streams
from mqttquic_lab.errors import ProtocolError
from mqttquic_lab.mqtt import Auth, ConnAck, Connect, Disconnect, PingReq, ReasonCode, reason_text
from mqttquic_lab.mqtt.keepalive import ServerKeepAlive
from mqttquic_lab.mqtt.reason_codes import ALLOWED
from mqttquic_lab.mqtt.state import ConnectionState, Role, check_packet

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from mqttquic_lab.broker.clock import TimerHandle
    from mqttquic_lab.broker.outbox import Outbox
    from mqttquic_lab.broker.server import BrokerServer
    from mqttquic_lab.broker.sessions import Outgoing
    from mqttquic_lab.errors import LabError
    from mqttquic_lab.mqtt import Packet, Will
    from mqttquic_lab.net.stream import ByteStream, Connection

log = logging.getLogger(__name__)

VERSION_NAMES = {4: "3.1.1", 5: "5.0"}
MAX_FILTERS_SHOWN = 1000
"""Topic filters of one client that :class:`ClientInfo` lists."""


class Client(Pipeline):
    """A control stream and, once CONNECT was accepted, the MQTT client behind it.

    Parameters
    ----------
    server : BrokerServer
        The broker.
    connection : Connection
        Its transport; the client takes over its callbacks.
    stream : ByteStream, optional
        The control stream, where a connection carries several clients (profile ``rocketmq``): the connection's
        callbacks are left alone then, and only the stream ends with the client.
    """

    def __init__(self, server: BrokerServer, connection: Connection, stream: ByteStream | None = None) -> None:
        super().__init__(server, None)
        self.connection = connection
        self.receive_maximum = RECEIVE_MAXIMUM
        """QoS 1 and 2 messages that may be sent at a time, per stream."""
        self._shares_connection = stream is not None
        self._ends_connection = stream is None and (
            server.profile.control_end == "connection" or connection.transport != "quic"
        )
        self._username: str | None = None
        self._clean_start = True
        self._topic_aliases = 0
        self._connected_at = 0.0
        self._will: Will | None = None
        self._verdict_pending = object()
        self._verdict_task: asyncio.Task[None] | None = None
        self._authentication: Authentication | None = None
        self._keepalive_timer: TimerHandle | None = None
        self._pending_seen = 0
        kind: type[Streams] = Streams
        if server.profile.name == "mqttv5":
            kind = Mqttv5Streams
        elif connection.report.alpn == ALPN:
            kind = FlowStreams if server.deliveries == "subscribing-stream" else ServerFlowStreams
        self._streams = kind(self, server)
        self.datagrams = None if stream is not None else datagrams_of(self, server)
        self._connect_timer = server.clock.call_later(server.config.connect_timeout, self._connect_timed_out)
        connection.closed.add_done_callback(self._on_closed)
        if stream is None:
            connection.on_stream = self._on_stream
            connection.on_migrated = self._on_migrated
        else:
            self._open(stream)

    def __repr__(self) -> str:
        who = repr(self.session.client_id) if self.session is not None else self.state.name.lower()
        return f"<Client {who} over {self.connection.transport}>"

    # --- the transport's events ---------------------------------------------------------------------------------

    def _on_stream(self, stream: ByteStream) -> None:
        if stream.id or self.stream is not None:
            self._streams.opened(stream)
        else:
            self._open(stream)

    def _open(self, stream: ByteStream) -> None:
        self.outbox = self.answers = self._make_outbox(stream)
        self.stream = stream
        self._streams.open_control(stream, self._begin)

    def is_without_control_header(self, streams: FlowStreams) -> None:
        """Serve the streams of a client that speaks MQTT-next in mqttv5's way."""
        self._streams = Mqttv5Streams(self, self._server)
        self._streams.take_early(streams)

    def _begin(self, data: bytes) -> None:
        assert self.stream is not None
        self._attach(self.stream)
        if data:
            self._on_data(data)

    def _on_end(self) -> None:
        self._lost()

    def _on_reset(self, error_code: int) -> None:
        self._lost("reset")

    def _on_migrated(self, old: tuple[str, int], new: tuple[str, int]) -> None:
        # Session, subscriptions and what is in flight belong to the connection, not to an address: nothing else to do.
        self._stats.migrations += 1
        self._server.changed()

    def _on_closed(self, closed: asyncio.Future[LabError | None]) -> None:
        self._end()

    def _lost(self, cause: str = "") -> None:
        """End without DISCONNECT: the client is gone, or wants to be."""
        self._end()
        self._hang_up("", cause)

    def _hang_up(self, reason: str, cause: str = "") -> None:
        """Close the connection, or what of it is the client's; the streams know which code goes with the cause."""
        if self._ends_connection or self.stream is None:
            code = self._streams.CLOSE_CODES.get(cause, 0)
            self._server.spawn(self._server.hang_up(self.connection, code, reason))
        else:
            self.outbox.finish()

    def abandon(self, reason: str, code: int = 0) -> None:
        """Close the whole connection: what the client did has no answer on a stream."""
        if self.is_ended:
            return
        self._stats.protocol_errors += 1
        self._end()
        self._server.spawn(self._server.hang_up(self.connection, code, reason))

    # --- CONNECT and DISCONNECT ---------------------------------------------------------------------------------

    def _on_connect(self, packet: Connect) -> None:
        self.version = packet.version
        self.size_limit = packet.properties.get("maximum_packet_size")
        self.explains = packet.properties.get("request_problem_information", 1) == 1
        name = packet.properties.get("authentication_method")
        if name is not None:
            self._authenticate(packet, name)
            return
        try:
            verdict = authenticate(self._server.config, packet)
        except Exception:  # whatever the user's function raises, nobody gets in by it
            log.exception("the broker's authenticate function failed")
            verdict = ReasonCode.UNSPECIFIED_ERROR
        if isinstance(verdict, Awaitable):
            self.block(self._verdict_pending)
            self._verdict_task = self._server.spawn(self._await_verdict(packet, verdict))
        else:
            self.admit(packet, verdict)

    def _authenticate(self, packet: Connect, name: str) -> None:
        """Begin enhanced authentication; a method that is not there is refused (section 4.12)."""
        method = self._server.auth_methods.get(name)
        if method is None:
            known = ", ".join(self._server.auth_methods) or "none"
            self.refuse(ReasonCode.BAD_AUTHENTICATION_METHOD, f"authentication methods of this broker: {known}")
            return
        self._authentication = Authentication(self, self._server, name, method)
        self._authentication.begin(packet)

    def _on_auth(self, packet: Auth) -> None:
        if self._authentication is None:
            raise ProtocolError(
                "AUTH from the client though CONNECT named no Authentication Method",
                reason_code=ReasonCode.PROTOCOL_ERROR,
                rule="MQTT-4.12.0-7",
                section="MQTT 5.0 section 4.12",
                packet=packet,
            )
        self._authentication.received(packet)

    async def _await_verdict(self, packet: Connect, verdict: Awaitable[int]) -> None:
        try:
            code = await verdict
        except Exception:  # as above
            log.exception("the broker's authenticate function failed")
            code = ReasonCode.UNSPECIFIED_ERROR
        self._verdict_task = None
        self.admit(packet, code)
        self.unblock(self._verdict_pending)
        self._server.changed()

    def admit(
        self, packet: Connect, code: int, username: str | None = None, properties: Mapping[str, Any] | None = None
    ) -> None:
        """Answer CONNECT: let the client in if `code` is 0.

        Parameters
        ----------
        packet : Connect
            What it sent.
        code : int
            Reason code for CONNACK.
        username : str, optional
            Who it turned out to be, if that is not CONNECT's user name.
        properties : mapping, optional
            Further properties for CONNACK.
        """
        self._connect_timer.cancel()
        if code:
            self.refuse(code)
            return
        server = self._server
        config = server.config
        assigned_id = None if packet.client_id else new_client_id()
        client_id = assigned_id or packet.client_id
        self._username = packet.username if username is None else username
        if server.acl is not None:
            peer = self.connection
            self.rights = Rights(server.acl, AclClient(client_id, self._username, peer.transport, peer.peer_address))
        refusal = self._refusal(packet.will.topic) if packet.will is not None else ""
        if refusal:
            self.refuse(ReasonCode.NOT_AUTHORIZED, f"the will: {refusal}")
            return
        recorded = 0 if server.journal is None else server.journal.recorded
        told = {**connack_properties(config, packet, assigned_id, self._username), **(properties or {})}
        if not self.takes(len(ConnAck(False, ReasonCode.SUCCESS, told).encode(self.version)), count=False):
            self.refuse(ReasonCode.PACKET_TOO_LARGE, "the client takes no packet as large as the CONNACK")
            return
        session, present = server.open_session(client_id, packet.clean_start)
        if session is None:
            self.refuse(ReasonCode.QUOTA_EXCEEDED, "the broker holds as many sessions as it may")
            return
        server.session_begins(session, granted_expiry(config, packet), packet.will)
        answer = ConnAck(present, ReasonCode.SUCCESS, told)
        self.state = check_packet(Role.SERVER, self.state, answer, self.version)
        settled = server.journal is None or server.journal.recorded == recorded
        self.outbox.write(answer.encode(self.version), settled=settled)
        self.session = session
        session.rights = self.rights
        self._clean_start = packet.clean_start
        self._connected_at = time.time()
        self._will = packet.will
        self._keepalive = ServerKeepAlive(granted_keepalive(config, packet), server.clock.time())
        self._watch_keepalive()
        stats = self._stats
        stats.connects_total += 1
        stats.clients_maximum = max(stats.clients_maximum, stats.connects_total - stats.disconnects_total)
        self.receive_maximum = min(
            packet.properties.get("receive_maximum", RECEIVE_MAXIMUM),
            config.max_inflight,
            server.profile.max_inflight or RECEIVE_MAXIMUM,
        )
        self._topic_aliases = min(packet.properties.get("topic_alias_maximum", 0), config.topic_alias_maximum)
        self.outbox.aliases = self.new_aliases()
        if self.datagrams is not None:
            self.datagrams.meet(packet, reads=isinstance(self._streams, FlowStreams))
        self.has_ways = self._streams.carry_deliveries or (self.datagrams is not None and self.datagrams.delivers)
        self.is_plain = self.size_limit is None and not self.has_ways
        session.connected(self, self.receive_maximum)
        if session.subscriptions:
            self._router.forget_routes()
        self._streams.admitted()
        if self.datagrams is not None:
            self.datagrams.begin()

    def refuse(self, code: int, reason: str = "") -> None:
        """Answer CONNECT with a failure and close [MQTT-3.1.4-6]; `reason` is told where the version can."""
        if self.is_ended:
            return
        self._stats.connects_refused += 1
        refusal = ConnAck(False, code, {"reason_string": as_text(reason)} if reason and self.version == 5 else {})
        if not self.send_checked(refusal):  # [MQTT-3.2.2-19]
            self.send_checked(ConnAck(False, code))
        self._close(reason or reason_text(code))

    def renamed(self, username: str) -> None:
        """Note that a client has authenticated again, as somebody."""
        self._username = username
        if self.rights is not None:
            self.rights.renamed(username)
            self._router.forget_routes()

    def send_checked(self, packet: Packet) -> bool:
        """Send an answer unless it is larger than the client takes [MQTT-3.1.2-24]; returns whether it was sent."""
        data = packet.encode(self.version)
        if not self.takes(len(data), count=False):
            return False
        self.state = check_packet(Role.SERVER, self.state, packet, self.version)
        self.outbox.write(data, settled=True)
        return True

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

    def end_by(self, packet: Disconnect) -> None:
        """Take a DISCONNECT that came on another stream, where the profile knows that."""
        self._on_disconnect(packet)

    def disconnect(self, code: int, reason: str = "", cause: str = "") -> None:
        """End the connection, telling a 5.0 client why [MQTT-4.13.1-1]."""
        if self.is_ended:
            return
        if self.version == 5 and self.session is not None:
            if code not in ALLOWED["DISCONNECT"]:  # a second CONNECT of another version is 0x84, say
                code = ReasonCode.PROTOCOL_ERROR
            packet = Disconnect(code, {"reason_string": as_text(reason)} if reason else {}).encode(5)
            if not self.takes(len(packet), count=False):
                packet = Disconnect(code).encode(5)
            self.outbox.write(packet, settled=True)
        self._close(reason, cause)

    def cut_off(self, code: int, reason: str, *, unanswered: bool) -> None:
        """End the connection of a client that was to be told what cannot be kept."""
        if unanswered and not self.is_ended:
            self._stats.connects_refused += 1
            self.outbox.write(ConnAck(False, code).encode(self.version), settled=True)
            self._close(reason)
        else:
            self.disconnect(code, reason)

    def _fail(self, error: ProtocolError) -> None:
        """End the connection of a client that broke a rule."""
        self._stats.protocol_errors += 1
        code = error.reason_code or ReasonCode.PROTOCOL_ERROR
        if self.stream is not None and self.state in (ConnectionState.IDLE, ConnectionState.AUTHENTICATING):
            # A CONNECT that is no good. Bytes that are no CONNECT at all get no answer (section 4.13.1).
            if code == ReasonCode.UNSUPPORTED_PROTOCOL_VERSION:
                self.outbox.write(
                    ConnAck(False, code).encode(self._decoder.version or 4)
                )  # older clients read that one
                self._stats.connects_refused += 1
            elif self._decoder.version == 5:
                answer = code if code in ALLOWED["CONNACK"] else ReasonCode.UNSPECIFIED_ERROR
                self.outbox.write(ConnAck(False, answer).encode(5))
                self._stats.connects_refused += 1
            elif self._decoder.version == 4 and code == ReasonCode.CLIENT_IDENTIFIER_NOT_VALID:
                # All else that is wrong with a CONNECT of 3.1.1 gets no CONNACK [its MQTT-3.1.4-1, MQTT-3.1.3-8].
                self.outbox.write(ConnAck(False, code).encode(4))
                self._stats.connects_refused += 1
        self.disconnect(code, str(error), "protocol error")

    def _close(self, reason: str, cause: str = "") -> None:
        if self.is_ended:
            return
        if self.stream is not None:
            self.outbox.flush()
        self._end()
        self._hang_up(reason, cause)

    def _connect_timed_out(self) -> None:
        self._stats.connect_timeouts += 1
        self._end()
        self._hang_up("no CONNECT in time")

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
        if self._authentication is not None:
            self._authentication.close()
        self._detach()
        self._streams.close()
        if self.datagrams is not None:
            self.datagrams.close()
        if not self._shares_connection:
            self.connection.on_stream = lambda stream: stream.reset(0)
        if self.stream is not None:
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
        if (self._reasons or self._streams.are_held) and (
            not self.outbox.is_overflowing or self.outbox.pending != self._pending_seen
        ):
            # We are not reading from it, so its silence is our doing. One that overflows has to take something.
            self._keepalive.received(now)
            self._pending_seen = self.outbox.pending
        if self._keepalive.poll(now) == "dead":
            self._stats.keepalive_timeouts += 1
            reason = f"nothing heard for 1.5 x {self._keepalive.interval} s"
            self.disconnect(ReasonCode.KEEP_ALIVE_TIMEOUT, reason, "silence")
            self._server.changed()
        else:
            self._watch_keepalive()

    def _on_pingreq(self, packet: PingReq) -> None:
        self.outbox.write(PINGRESP, settled=True)

    # --- what others ask ----------------------------------------------------------------------------------------

    def divert(self, outgoing: Outgoing) -> bool:
        """Send a message as a datagram, or on a flow that the broker opens; returns whether there is such a way."""
        if self.datagrams is not None and self.datagrams.send(outgoing):
            return True
        return self._streams.take(outgoing)

    def way(self, topic: str) -> Outbox:
        """Return where messages of a topic go out: a stream of the topic's own, if the broker opens such."""
        return self._streams.way(topic) if self.has_ways else self.outbox

    def new_aliases(self) -> OutgoingAliases | None:
        """Return topic aliases for a stream that numbers its own; None if the client takes none."""
        return OutgoingAliases(self._topic_aliases, self.size_limit) if self._topic_aliases else None

    @property
    def keepalive(self) -> ServerKeepAlive:
        """The keep-alive of this connection."""
        return self._keepalive

    def info(self) -> ClientInfo:
        """Return what is known about the client now."""
        session = self.session
        assert session is not None
        datagrams = self.datagrams
        pipelines = (self, *self._streams, *(() if datagrams is None else (datagrams,)))
        sessions = (session, *(other for other in self._streams.sessions))
        outboxes = (self.outbox, *self._streams.outboxes)
        filters = chain.from_iterable(each.subscriptions for each in sessions)
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
            subscriptions=tuple(islice(filters, MAX_FILTERS_SHOWN)),
            streams=len(self._streams),
            messages_in=self._streams.past.messages_in + sum(each.messages_in for each in pipelines),
            messages_out=self._streams.past.messages_out + sum(each.messages_out for each in outboxes),
            bytes_in=self._streams.past.bytes_in + sum(each.bytes_in for each in pipelines),
            bytes_out=self._streams.past.bytes_out + sum(each.bytes_out for each in outboxes),
            inflight=sum(each.inflight for each in sessions),
            queued=sum(len(each.queue) for each in sessions),
            pending=sum(each.pending for each in outboxes),
            dropped=self._streams.past.dropped + sum(each.dropped for each in outboxes),
            resumed=self.connection.report.resumed,
            early_data="accepted" if self.connection.is_early else self.connection.report.early_data,
            datagrams_in=0 if datagrams is None else datagrams.received,
            datagrams_out=0 if datagrams is None else datagrams.sent,
            early_messages=self._streams.past.early_messages + sum(each.early_messages for each in pipelines),
        )

    HANDLERS: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        **Pipeline.HANDLERS,
        Connect: _on_connect,
        PingReq: _on_pingreq,
        Disconnect: _on_disconnect,
        Auth: _on_auth,
    }
    """Packet type -> what to do."""
