"""Listens for QUIC connections on one UDP port.

Datagrams are routed by connection id (RFC 9000 section 5.2). Connections, half-open handshakes and session tickets
are bounded; when handshakes pile up, new clients first have to prove their address with a Retry (section 8.1.2).
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # public, but not in its __all__
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicPacketType,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.retry import QuicRetryTokenHandler

from mqttquic_lab.errors import UsageError
from mqttquic_lab.net.address import host_port
from mqttquic_lab.net.stream import Listener
from mqttquic_lab.quic import applied, private, private_streams
from mqttquic_lab.quic.admission import WINDOW, Admission, early_data_policy
from mqttquic_lab.quic.binding import bind_udp
from mqttquic_lab.quic.connection import QuicConnection
from mqttquic_lab.quic.endpoint import Endpoint, EndpointCounters, plain_address
from mqttquic_lab.quic.flights import FlightRecorder
from mqttquic_lab.quic.knobs import Knobs
from mqttquic_lab.quic.limits import ReceiveLimits
from mqttquic_lab.quic.paths import announcement, further_endpoint
from mqttquic_lab.quic.private import Engine
from mqttquic_lab.quic.tracing import QuicTracer
from mqttquic_lab.quic.tuning import tuning_named
from mqttquic_lab.records.handshake import HandshakeReport
from mqttquic_lab.trace import Trace

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from aioquic.quic.packet import QuicHeader
    from aioquic.tls import SessionTicket

    from mqttquic_lab.net.certificates import ServerIdentity
    from mqttquic_lab.net.stream import Connection
    from mqttquic_lab.quic.admission import Policy
    from mqttquic_lab.quic.endpoint import Datagrams, NetworkAddress
    from mqttquic_lab.quic.private_paths import PathAnnouncement

IDLE_TIMEOUT = 180.0
"""Seconds: three times the usual MQTT keep-alive, for clients that send no QUIC PINGs."""

MIN_INITIAL = 1200
"""Bytes of the smallest datagram with a client's first packet (RFC 9000 section 14.1)."""

SERVER_TRACE = 256
"""Events kept per connection of a listener without a trace of its own."""


async def listen_quic(
    host: str,
    port: int,
    *,
    identity: ServerIdentity,
    on_connection: Callable[[Connection], None],
    alpn: Sequence[str] = ("mqtt",),
    tuning: str = "realistic",
    idle_timeout: float = IDLE_TIMEOUT,
    handshake_timeout: float = 10.0,
    max_connections: int = 1000,
    max_handshakes: int = 256,
    retry: bool | None = None,
    early_data: bool | Policy = False,
    early_data_window: float = WINDOW,
    max_tickets: int = 1024,
    knobs: Knobs | None = None,
    limits: ReceiveLimits | None = None,
    preferred_address: tuple[str, int] | None = None,
    disable_active_migration: bool = False,
    trace: Trace | None = None,
) -> QuicListener:
    """Accept QUIC connections.

    Parameters
    ----------
    host : str
        IP address or name to listen on; of a name all its addresses. ``""`` is every interface.
    port : int
        UDP port; 0 takes a free one.
    identity : ServerIdentity
        Certificate, chain and private key to show.
    on_connection : callable(Connection)
        Called when a handshake has completed, or with the first 0-RTT data if that comes first. It assigns
        ``connection.on_stream``.
    alpn : sequence of str
        Application protocols to accept, most wanted first.
    tuning : str
        ``"realistic"`` or ``"loopback"``; the latter applies to peers on the loopback only, others get ``realistic``.
    idle_timeout : float
        Seconds after which a silent connection is given up (RFC 9000 section 10.1).
    handshake_timeout : float
        Seconds for a handshake.
    max_connections : int
        Connections at a time; more are refused with CONNECTION_REFUSED.
    max_handshakes : int
        Handshakes at a time; the first packet of one more is dropped, and the client repeats it.
    retry : bool, optional
        Whether clients must prove their address before anything is kept for them. Default: only while more than half
        of `max_handshakes` are under way.
    early_data : bool or {"off", "protected", "unprotected"}
        Whether 0-RTT data is taken (which can be replayed, RFC 9001 section 9.2): True is ``"protected"``, once per
        ticket and while it is fresh; ``"unprotected"`` takes it every time, for lessons on the loopback only.
    early_data_window : float
        Seconds by which the ticket age that a client states may be wrong; else it resumes without early data.
    max_tickets : int
        Session tickets kept; the oldest are dropped. 0: no resumption.
    knobs : Knobs, optional
        QUIC versions, cipher suites, key-exchange groups and congestion controller.
    limits : ReceiveLimits, optional
        Streams and bytes that each client may have under way.
    preferred_address : tuple of str and int, optional
        Another address to listen on, where clients are asked to go after the handshake (RFC 9000 section 9.6); port 0
        takes a free one.
    disable_active_migration : bool
        Ask clients not to migrate (RFC 9000 section 18.2). Those that do all the same are served.
    trace : Trace, optional
        Receives the QUIC events of all connections. Without it each has a small one of its own, which records
        per-packet events only while its ``detail`` is set.

    Raises
    ------
    PortInUseError
        Something listens there already.
    UsageError
        The host is not an address of this machine, the port is not allowed, or another argument cannot be used.
    """
    if not alpn:
        raise UsageError("QUIC needs at least one ALPN protocol: alpn=('mqtt',)")
    tuning_named(tuning)
    knobs = Knobs() if knobs is None else knobs
    applied.groups(knobs)  # what this machine cannot do is said now
    policy = early_data_policy(early_data, host)
    if early_data_window < 0:
        raise UsageError("early_data_window is seconds, 0 or more")
    sockets = await bind_udp(host, port)
    preferred: list[socket.socket] = []
    try:
        if preferred_address is not None:
            preferred = await bind_udp(*preferred_address)
        return QuicListener(
            host,
            sockets,
            preferred,
            identity,
            on_connection,
            alpn=tuple(alpn),
            tuning=tuning,
            idle_timeout=idle_timeout,
            handshake_timeout=handshake_timeout,
            max_connections=max_connections,
            max_handshakes=max_handshakes,
            retry=retry,
            admission=Admission(max_tickets, policy, early_data_window),
            knobs=knobs,
            limits=ReceiveLimits() if limits is None else limits,
            announced=announcement(preferred, disable_active_migration=disable_active_migration),
            trace=trace,
        )
    except BaseException:
        for sock in (*sockets, *preferred):
            sock.close()
        raise


class QuicListener(Listener):
    """A UDP port and the connections on it. Made by :func:`listen_quic`.

    Attributes
    ----------
    accepted : int
        Handshakes completed.
    failed : int
        Handshakes that ended early: refused by either side, or too slow.
    refused : int
        Clients turned away because there were too many connections.
    deferred : int
        First packets dropped because there were too many handshakes.
    retries : int
        Retry packets sent.
    version_negotiations : int
        Version Negotiation packets sent.
    amplification_limited : int
        Handshakes that had to wait because three times what the client had sent was sent (RFC 9000 section 8.1).
    admission : Admission
        Session tickets, and what became of early data.
    """

    def __init__(
        self,
        host: str,
        sockets: Sequence[socket.socket],
        preferred: Sequence[socket.socket],
        identity: ServerIdentity,
        on_connection: Callable[[Connection], None],
        *,
        alpn: tuple[str, ...],
        tuning: str,
        idle_timeout: float,
        handshake_timeout: float,
        max_connections: int,
        max_handshakes: int,
        retry: bool | None,
        admission: Admission,
        knobs: Knobs,
        limits: ReceiveLimits,
        announced: PathAnnouncement | None,
        trace: Trace | None,
    ) -> None:
        self.transport = "quic"
        self.host = host
        self.port = sockets[0].getsockname()[1]
        self.accepted = self.failed = self.refused = self.deferred = self.retries = self.version_negotiations = 0
        self.amplification_limited = 0
        self._identity = identity
        self._on_connection = on_connection
        self._alpn = alpn
        self._tuning = tuning
        self._idle_timeout = idle_timeout
        self._handshake_timeout = handshake_timeout
        self._max_connections = max_connections
        self._max_handshakes = max_handshakes
        self._retry = retry
        self.admission = admission
        self._knobs = knobs
        self._limits = limits
        self._announced = announced
        self._trace = trace
        self._loop = asyncio.get_running_loop()
        self._tokens = QuicRetryTokenHandler()
        self._routes: dict[bytes, QuicConnection] = {}
        self._connections: dict[QuicConnection, _Entry] = {}
        self._handshakes: set[QuicConnection] = set()
        self._farewells: dict[bytes, _Farewell] = {}
        self._closing = False
        self._versions = applied.versions(knobs)
        self._cid_length = QuicConfiguration().connection_id_length
        self._endpoints = [*map(Endpoint, sockets), *map(further_endpoint, preferred)]
        for endpoint in self._endpoints:
            endpoint.route = partial(self._route, endpoint)

    def __repr__(self) -> str:
        return f"<QuicListener {host_port(self.host, self.port)} {len(self._connections)} connections>"

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """The addresses really bound."""
        return tuple(endpoint.local_address for endpoint in self._endpoints)

    @property
    def connections(self) -> tuple[QuicConnection, ...]:
        """Connections established and not yet closed, oldest first."""
        return tuple(c for c in self._connections if c not in self._handshakes)

    @property
    def handshakes(self) -> int:
        """Handshakes under way."""
        return len(self._handshakes)

    @property
    def socket_counters(self) -> tuple[EndpointCounters, ...]:
        """What passed through each socket."""
        return tuple(endpoint.counters for endpoint in self._endpoints)

    async def close(self, error_code: int = 0, reason: str = "") -> None:
        """Close every connection in order (at most 1 s for all together) and release the port. Safe to repeat."""
        self._closing = True
        try:
            await asyncio.gather(*(connection.close(error_code, reason) for connection in tuple(self._connections)))
        finally:
            for connection in tuple(self._connections):
                connection.abort(reason, error_code)
            for farewell in set(self._farewells.values()):
                farewell.timer.cancel()
            self._farewells.clear()
            for endpoint in self._endpoints:
                endpoint.close()

    # --- routing

    def _route(self, endpoint: Endpoint, data: bytes, address: NetworkAddress) -> QuicConnection | None:
        if not data[0] & 0x80:  # short header (RFC 9000 section 17.3)
            cid = data[1 : 1 + self._cid_length]
            connection = self._routes.get(cid)
            if connection is None and self._farewells:
                self._repeat_farewell(endpoint, cid)
            return connection
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=self._cid_length)
        except ValueError:
            return None
        if header.packet_type is not QuicPacketType.VERSION_NEGOTIATION and header.version not in self._versions:
            self._negotiate_version(endpoint, header, address, len(data))
            return None
        connection = self._routes.get(header.destination_cid)
        if connection is not None:
            return connection
        if header.destination_cid in self._farewells:
            self._repeat_farewell(endpoint, header.destination_cid)
            return None
        if header.packet_type is not QuicPacketType.INITIAL or len(data) < MIN_INITIAL or self._closing:
            return None
        return self._greet(endpoint, header, address)

    def _negotiate_version(self, endpoint: Endpoint, header: QuicHeader, address: NetworkAddress, size: int) -> None:
        if size < MIN_INITIAL:
            return  # RFC 9000 section 6.1: answering small packets would amplify
        self.version_negotiations += 1
        packet = encode_quic_version_negotiation(
            source_cid=header.destination_cid,
            destination_cid=header.source_cid,
            supported_versions=self._versions,
        )
        endpoint.send([(packet, address)])

    def _greet(self, endpoint: Endpoint, header: QuicHeader, address: NetworkAddress) -> QuicConnection | None:
        """Return a new connection for a client's first packet, or answer with Retry or a refusal."""
        full = len(self._connections) >= self._max_connections
        original, retry_source = header.destination_cid, None
        if header.token:
            try:
                original = self._tokens.validate_token(
                    address=_token_address(address),
                    destination_cid=header.destination_cid,
                    token=header.token,
                    now=self._loop.time(),
                )
                retry_source = header.destination_cid
            except ValueError:
                if self._retry_wanted:
                    return None  # forged or old (RFC 9000 section 8.1.3)
        elif self._retry_wanted and not full:
            self._send_retry(endpoint, header, address)
            return None
        if full:
            self.refused += 1
            refusal = private.refusal_packet(
                header, QuicErrorCode.CONNECTION_REFUSED, "the server has reached its limit of connections"
            )
            endpoint.send([(refusal, address)])
            return None
        if len(self._handshakes) >= self._max_handshakes:
            self.deferred += 1
            return None
        return self._accept(endpoint, header.destination_cid, original, retry_source, address)

    @property
    def _retry_wanted(self) -> bool:
        return self._retry if self._retry is not None else len(self._handshakes) * 2 > self._max_handshakes

    def _send_retry(self, endpoint: Endpoint, header: QuicHeader, address: NetworkAddress) -> None:
        self.retries += 1
        source = os.urandom(self._cid_length)
        token = self._tokens.create_token(
            address=_token_address(address),
            original_destination_connection_id=header.destination_cid,
            retry_source_connection_id=source,
            now=self._loop.time(),
        )
        assert header.version is not None
        packet = encode_quic_retry(
            version=header.version,
            source_cid=source,
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=token,
        )
        endpoint.send([(packet, address)])

    # --- connections

    def _accept(
        self,
        endpoint: Endpoint,
        destination: bytes,
        original: bytes,
        retry_source: bytes | None,
        address: NetworkAddress,
    ) -> QuicConnection:
        host, _ = plain_address(address)
        tuning = tuning_named(self._tuning)
        if tuning.name == "loopback" and not tuning.suits(host):
            tuning = tuning_named("realistic")
        recorder = FlightRecorder()
        trace = self._trace if self._trace is not None else Trace(SERVER_TRACE)
        tracer = QuicTracer("server", trace, recorder) if self._trace is not None else None
        configuration = QuicConfiguration(
            is_client=False,
            alpn_protocols=list(self._alpn),
            certificate=self._identity.certificate,
            certificate_chain=list(self._identity.chain),
            idle_timeout=self._idle_timeout,
            max_data=self._limits.connection_window,
            max_stream_data=self._limits.stream_window,
            private_key=self._identity.private_key,
            quic_logger=tracer.logger if tracer is not None else None,
            **applied.configuration(self._knobs, tuning),
        )

        def take_ticket(_identity: bytes) -> SessionTicket | None:
            verdict = self.admission.redeem(
                engine.offer,
                alpn=engine.tls.alpn_negotiated,
                version=private.version(engine) or 0,
                now=self._loop.time(),
            )
            engine.admit_early_data = verdict.early_data
            return verdict.ticket

        def keep_ticket(ticket: SessionTicket) -> None:
            self.admission.issue(
                ticket,
                alpn=engine.tls.alpn_negotiated,
                version=private.version(engine) or 0,
                now=self._loop.time(),
            )

        engine = Engine(
            configuration=configuration,
            announcement=self._announced,
            accept_early_data=self.admission.takes_early_data,
            groups=applied.groups(self._knobs),
            address_validated=retry_source is not None,
            original_destination_connection_id=original,
            retry_source_connection_id=retry_source,
            session_ticket_fetcher=take_ticket if self.admission.capacity else None,
            session_ticket_handler=keep_ticket if self.admission.capacity else None,
        )
        private_streams.limit_streams(engine, self._limits.max_streams_bidi, self._limits.max_streams_uni)
        connection = QuicConnection(
            engine,
            endpoint,
            role="server",
            tuning=tuning,
            report=HandshakeReport(
                state="connecting",
                peer_address=plain_address(address),
                congestion_control=applied.congestion_name(self._knobs, tuning),
            ),
            trace=trace,
            recorder=recorder,
            tracer=tracer,
            keep_alive=False,
            on_established=self._established,
            on_finished=self._finished,
            on_connection_id=self._connection_id,
            on_limited=self._limited,
        )
        engine.on_early_data = self.admission.early_data_decided
        deadline = self._loop.call_later(self._handshake_timeout, self._too_slow, connection)
        self._connections[connection] = _Entry({destination, engine.host_cid}, deadline)
        for cid in (destination, engine.host_cid):
            self._routes[cid] = connection
        self._handshakes.add(connection)
        return connection

    def _established(self, connection: QuicConnection) -> None:
        # With early data the handshake is not complete, and if it is a replay never will be: the deadline stands.
        if connection.is_established:
            self._connections[connection].deadline.cancel()
        self._handshakes.discard(connection)
        self.accepted += 1
        self._on_connection(connection)

    def _connection_id(self, connection: QuicConnection, cid: bytes, issued: bool) -> None:
        entry = self._connections.get(connection)
        if entry is None:
            return
        if issued:
            entry.cids.add(cid)
            self._routes[cid] = connection
        else:
            entry.cids.discard(cid)
            self._routes.pop(cid, None)

    def _finished(self, connection: QuicConnection) -> None:
        entry = self._connections.pop(connection)
        entry.deadline.cancel()
        if connection in self._handshakes:
            self._handshakes.discard(connection)
            self.failed += 1
        for cid in entry.cids:
            self._routes.pop(cid, None)
        if connection.last_words and not self._closing and len(self._farewells) < 4 * self._max_connections:
            # RFC 9000 section 10.2.1: CONNECTION_CLOSE may get lost; repeat it to who still sends, for three PTO.
            delay = 3 * private.probe_timeout(connection.engine)
            timer = self._loop.call_later(delay, self._forget_farewell, tuple(entry.cids))
            farewell = _Farewell(connection.last_words, timer)
            for cid in entry.cids:
                self._farewells[cid] = farewell

    def _repeat_farewell(self, endpoint: Endpoint, cid: bytes) -> None:
        farewell = self._farewells.get(cid)
        if farewell is None:
            return
        farewell.packets += 1
        if farewell.packets & (farewell.packets - 1) == 0:  # the 1st, 2nd, 4th, 8th ... packet
            endpoint.send(farewell.words)

    def _forget_farewell(self, cids: tuple[bytes, ...]) -> None:
        for cid in cids:
            self._farewells.pop(cid, None)

    def _too_slow(self, connection: QuicConnection) -> None:
        if not connection.is_established:
            connection.abort("the handshake took too long", QuicErrorCode.CONNECTION_REFUSED)

    def _limited(self, _connection: QuicConnection) -> None:
        self.amplification_limited += 1


@dataclass(slots=True)
class _Entry:
    """A connection's connection ids and the end of its handshake."""

    cids: set[bytes]
    deadline: asyncio.TimerHandle


@dataclass(slots=True, eq=False)
class _Farewell:
    """The last words of a closed connection, to be repeated."""

    words: Datagrams
    timer: asyncio.TimerHandle
    packets: int = 0


def _token_address(address: NetworkAddress) -> NetworkAddress:
    """Return (host, port) as Retry tokens take it: without a zone, which ``ipaddress`` may not pack."""
    return str(address[0]).partition("%")[0], address[1]
