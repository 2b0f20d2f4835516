"""Opens QUIC connections: name resolution, one UDP socket, the handshake, and errors that say what happened."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import socket
import ssl
from typing import TYPE_CHECKING, Any

from aioquic.quic.configuration import QuicConfiguration

from mqttquic_lab.errors import ConnectError, ConnectTimeoutError, UnreachableError, UsageError
from mqttquic_lab.net.address import host_port, resolve
from mqttquic_lab.quic import applied, private
from mqttquic_lab.quic import report as facts
from mqttquic_lab.quic.connection import QuicConnection
from mqttquic_lab.quic.flights import FlightRecorder
from mqttquic_lab.quic.knobs import Knobs
from mqttquic_lab.quic.migration import Mover, first_path
from mqttquic_lab.quic.private import Engine
from mqttquic_lab.quic.reasons import CloseInfo, handshake_failed
from mqttquic_lab.quic.resumption import resumption
from mqttquic_lab.quic.tracing import QuicTracer
from mqttquic_lab.quic.tuning import tuning_named
from mqttquic_lab.records.handshake import HandshakeReport
from mqttquic_lab.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aioquic.tls import SessionTicket

    from mqttquic_lab.net.address import Address, SocketAddress
    from mqttquic_lab.net.certificates import Trust
    from mqttquic_lab.quic.tickets import TicketStore
    from mqttquic_lab.quic.tuning import Tuning

DEFAULT_KNOBS = Knobs()

CONNECT_TIMEOUT = 10.0
"""Seconds for name resolution and handshake together."""

IDLE_TIMEOUT = 60.0
"""Seconds without a packet after which a connection is given up (RFC 9000 section 10.1)."""

STREAM_WINDOW = 1024 * 1024
"""Bytes a peer may send on one stream ahead of the reader."""
CONNECTION_WINDOW = 4 * 1024 * 1024
"""The same for all streams together: what an unread connection can cost in memory."""

MAX_ADDRESSES = 4
"""Addresses of one name that are tried."""

STAGGER = 0.25
"""Seconds after which the next address of a name is tried beside the first (RFC 8305 section 5)."""

_UNREACHABLE = {
    errno.ECONNREFUSED: "nothing listens on UDP port {port} there",
    errno.EHOSTUNREACH: "no route to that host",
    errno.ENETUNREACH: "no route to that network",
    errno.EACCES: "the operating system forbids it (a firewall, or a broadcast address)",
    errno.EPERM: "the operating system forbids it (a firewall)",
    errno.EADDRNOTAVAIL: "this machine has no address that could be used for it",
    errno.EINVAL: "this machine cannot send there from that local address",
    errno.EAFNOSUPPORT: "this machine does not speak that address family",
}


async def open_quic(
    address: Address,
    *,
    trust: Trust,
    alpn: Sequence[str] = ("mqtt",),
    timeout: float = CONNECT_TIMEOUT,
    trace: Trace | None = None,
    tuning: str = "realistic",
    idle_timeout: float = IDLE_TIMEOUT,
    local_address: tuple[str, int] | None = None,
    keep_alive: bool = True,
    knobs: Knobs = DEFAULT_KNOBS,
    tickets: TicketStore | None = None,
    early_data: bytes = b"",
    early_content: Sequence[str] = (),
    report: HandshakeReport | None = None,
) -> QuicConnection:
    """Connect to a QUIC server and complete the handshake.

    Parameters
    ----------
    address : Address
        Where to; ``host`` is also the name that the certificate must have, unless ``trust.server_name`` is given.
    trust : Trust
        What the server's certificate is checked against.
    alpn : sequence of str
        Application protocols to offer, most wanted first (RFC 7301).
    timeout : float
        Seconds for name resolution and handshake together.
    trace : Trace, optional
        Receives QUIC events.
    tuning : str
        ``"realistic"`` or ``"loopback"`` (:mod:`mqttquic_lab.quic.tuning`).
    idle_timeout : float
        Seconds; the connection is given up when nothing was heard for so long, or for the peer's idle timeout if that
        is shorter.
    local_address : tuple of str and int, optional
        Address to send from.
    keep_alive : bool
        Send a PING when nothing was heard for a third of the idle timeout.
    knobs : Knobs
        QUIC version, cipher suites, key-exchange groups and congestion controller.
    tickets : TicketStore, optional
        Makes resumption possible: where tickets are taken from and kept.
    early_data : bytes
        Written to the control stream first. Leaves in 0-RTT packets if a ticket allows it - and can then be replayed
        by an attacker (RFC 9001 section 9.2) - else right after the handshake. What a server does not take, and what
        a Retry makes void, the engine sends again: it arrives once.
    early_content : sequence of str
        What that is, for the ladder: ``("CONNECT",)``. With it the milestone ``"connect_sent"`` is noted, too.
    report : HandshakeReport, optional
        The report to fill; it is also filled as far as possible when this fails.

    Raises
    ------
    UnreachableError
        The name does not resolve, there is no route, or nothing listens on the port.
    ConnectTimeoutError
        No answer within `timeout`.
    CertificateError
        The certificate was refused; says why, and holds what was presented.
    AlpnError
        The server speaks none of `alpn`.
    HandshakeError
        The handshake failed otherwise.
    UsageError
        An argument cannot be used; nothing was sent.
    """
    report = report if report is not None else HandshakeReport()
    report.url, report.transport, report.state = address.url, "quic", "connecting"
    if not alpn:
        raise UsageError("QUIC needs at least one ALPN protocol: alpn=('mqtt',)")
    if idle_timeout <= 0 or timeout <= 0:
        raise UsageError("timeout and idle_timeout are seconds and above 0")
    tuning_named(tuning)
    attempt = _Attempt(
        address=address,
        trust=trust,
        alpn=tuple(alpn),
        trace=trace if trace is not None else Trace(),
        tuning=tuning,
        idle_timeout=idle_timeout,
        local_address=local_address,
        keep_alive=keep_alive,
        knobs=knobs,
        tickets=tickets,
        early_data=early_data,
        early_content=tuple(early_content),
        report=report,
        anchors=facts.anchors(trust) if trust.verify else {},
    )
    error: ConnectError
    try:
        async with asyncio.timeout(timeout):
            return await attempt.run()
    except ConnectError as failure:
        error = failure
    except TimeoutError:
        error = attempt.timed_out(timeout)
    report.state, report.error = "failed", str(error)
    raise error


@dataclasses.dataclass
class _Attempt:
    """One call of :func:`open_quic`: tries the addresses of a name, and keeps the first that answers."""

    address: Address
    trust: Trust
    alpn: tuple[str, ...]
    trace: Trace
    tuning: str
    idle_timeout: float
    local_address: tuple[str, int] | None
    keep_alive: bool
    knobs: Knobs
    tickets: TicketStore | None
    early_data: bytes = dataclasses.field(repr=False)
    early_content: tuple[str, ...]
    report: HandshakeReport
    anchors: dict[str, Any] = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        self.committed = False
        self.resumption = resumption(
            self.tickets,
            self.address,
            name=self.trust.server_name or self.address.host.partition("%")[0],
            alpn=self.alpn,
            anchors=self.anchors,
            verify=self.trust.verify,
            knobs=self.knobs,
        )
        self.name = self.trust.server_name or self.address.host.partition("%")[0]
        self.where = host_port(self.address.host, self.address.port)
        self.live: list[QuicConnection] = []
        self.changed = asyncio.Event()
        self.answered = False

    async def run(self) -> QuicConnection:
        """Return the established connection; leave no other behind."""
        waiting = await self.candidates()
        failure: ConnectError | None = None
        winner: QuicConnection | None = None
        try:
            while True:
                if waiting:
                    try:
                        self.live.append(self.start(*waiting.pop(0)))
                    except UnreachableError as error:
                        failure = failure or error
                        continue
                elif not self.live:
                    assert failure is not None
                    raise failure
                # Not the next address at once: the first one usually answers (RFC 8305 section 5). And none beside one
                # that has had early data: what is in it would happen twice.
                await self.wait(STAGGER if waiting and not self.committed else None)
                for connection in tuple(self.live):
                    if connection.is_closed:
                        self.live.remove(connection)
                        reason = self.failed(connection)
                        if not isinstance(reason, UnreachableError):
                            raise reason
                        self.committed = False
                        failure = failure or reason
                    elif connection.is_established:
                        winner = connection
                        self.established(connection)
                        return connection
        finally:
            for connection in self.live:
                if connection is not winner:
                    self.answered = self.answered or connection.datagrams_received > 0
                    connection.abort("the connection attempt was given up")

    async def candidates(self) -> list[tuple[socket.AddressFamily, SocketAddress]]:
        """Return the addresses to try."""
        found = await resolve(self.address.host, self.address.port, kind=socket.SOCK_DGRAM)
        if self.local_address is not None:
            family = socket.AF_INET6 if ":" in self.local_address[0] else socket.AF_INET
            found = [entry for entry in found if entry[0] == family]
            if not found:
                raise UsageError(f"{self.where} has no address of the family of {self.local_address[0]}")
        return found[:MAX_ADDRESSES]

    async def wait(self, seconds: float | None) -> None:
        """Wait until a connection is established or has failed, or `seconds` have passed."""
        try:
            async with asyncio.timeout(seconds):
                await self.changed.wait()
        except TimeoutError:
            pass
        self.changed.clear()

    def start(self, family: socket.AddressFamily, target: SocketAddress) -> QuicConnection:
        """Send the first packet to one address."""
        tuning = tuning_named(self.tuning, str(target[0]))
        sock = self.connected_socket(family, target)
        try:
            return self.begin(sock, target, tuning)
        except BaseException:
            sock.close()
            raise

    def connected_socket(self, family: socket.AddressFamily, target: SocketAddress) -> socket.socket:
        """Return a UDP socket for one address only, so that the kernel reports ICMP's "port unreachable" to us."""
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            if self.local_address is not None:
                self.bind(sock, self.local_address)
            sock.connect(target)
        except OSError as error:
            sock.close()
            raise self.unreachable(error) from error
        except BaseException:
            sock.close()
            raise
        return sock

    def bind(self, sock: socket.socket, local_address: tuple[str, int]) -> None:
        """Bind to our own address."""
        try:
            sock.bind(local_address)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UsageError(f"cannot send from local_address {host_port(*local_address)}: {reason}") from error

    def begin(self, sock: socket.socket, target: SocketAddress, tuning: Tuning) -> QuicConnection:
        """Make the connection and send its first packet."""
        recorder = FlightRecorder()
        tracer = QuicTracer("client", self.trace, recorder)
        ticket = self.resumption.take() if self.resumption is not None else None
        early = bool(self.early_data) and ticket is not None and ticket.allows_early_data and not self.live
        session = ticket.session if ticket is not None else None
        if session is not None and not early:
            session = dataclasses.replace(session, max_early_data_size=None)
        configuration = QuicConfiguration(
            is_client=True,
            alpn_protocols=list(self.alpn),
            idle_timeout=self.idle_timeout,
            max_data=CONNECTION_WINDOW,
            max_stream_data=STREAM_WINDOW,
            quic_logger=tracer.logger,
            server_name=self.name,
            session_ticket=session,
            verify_mode=None if self.trust.verify else ssl.CERT_NONE,
            **applied.configuration(self.knobs, tuning),
            **self.anchors,
        )

        def ticket_received(session: SessionTicket) -> None:
            connection.ticket_received(session)
            if self.resumption is not None:
                self.resumption.keep(connection, session, ticket)

        endpoint, path = first_path(sock, target)

        def changed(_: QuicConnection) -> None:
            self.changed.set()

        def finished(_: QuicConnection) -> None:
            mover.close()
            never_arrived = isinstance(connection.closed.result(), UnreachableError)  # nobody listens there
            if self.resumption is not None and ticket is not None and never_arrived:
                self.resumption.give_back(ticket)
            self.changed.set()

        connection = QuicConnection(
            Engine(
                configuration=configuration,
                groups=applied.groups(self.knobs),
                session_ticket_handler=ticket_received,
            ),
            endpoint,
            role="client",
            tuning=tuning,
            report=HandshakeReport(
                url=self.address.url,
                state="connecting",
                offered_alpn=self.alpn,
                congestion_control=applied.congestion_name(self.knobs, tuning),
            ),
            trace=self.trace,
            recorder=recorder,
            tracer=tracer,
            keep_alive=self.keep_alive,
            on_established=changed,
            on_finished=finished,
        )

        connection.mover = mover = Mover(connection, endpoint, may_follow=tuning.suits)

        def socket_failed(error: OSError) -> None:
            # Forged ICMP could close an established connection; QUIC does not trust it (RFC 9000 section 21.1).
            if not connection.is_established and error.errno in _UNREACHABLE:
                info = CloseInfo(0, application=False, reason=str(error), by_peer=False)
                connection.finish(self.unreachable(error), info)

        endpoint.route = lambda _data, _address: connection
        endpoint.on_error = socket_failed
        if early:
            self.committed = True
            connection.control.write(self.early_data)
        connection.begin(path, early_content=self.early_content if early else None)
        return connection

    def established(self, connection: QuicConnection) -> None:
        """Make the report the caller's."""
        if self.early_data and not connection.engine.early_data_offered:
            # Not before: several addresses may have been tried at the same time, and this is to arrive once.
            connection.control.write(self.early_data)
            connection.first_words(self.early_content)
        self.copy_report(connection)
        report = connection.report = self.report
        engine, trust, name = connection.engine, self.trust, self.name
        connection.complete_report(lambda: facts.fill_verification(report, engine, trust=trust, name=name))

    def failed(self, connection: QuicConnection) -> ConnectError:
        """Return the error for a connection that ended before it was established, and fill the report with facts."""
        result = connection.closed.result()
        if isinstance(result, UnreachableError):
            return result
        engine = connection.engine
        info = connection.close_info
        assert info is not None
        error = handshake_failed(
            info,
            where=self.where,
            alpn=self.alpn,
            trust=self.trust,
            name=self.name,
            chain=private.peer_chain(engine),
        )
        error.__cause__ = result.__cause__ if result is not None else None
        facts.fill_handshake(connection.report, engine)
        facts.fill_verification(connection.report, engine, trust=self.trust, name=self.name, failure=str(error))
        self.copy_report(connection)
        return error

    def copy_report(self, connection: QuicConnection) -> None:
        """Write a connection's report into the caller's."""
        for field in dataclasses.fields(HandshakeReport):
            if field.name != "fallback_reason":
                setattr(self.report, field.name, getattr(connection.report, field.name))

    def unreachable(self, error: OSError) -> UnreachableError:
        """Return the error for a refused or unroutable address."""
        meaning = _UNREACHABLE.get(error.errno or 0, error.strerror or str(error)).format(port=self.address.port)
        return UnreachableError(f"{self.where} cannot be reached over UDP: {meaning}")

    def timed_out(self, timeout: float) -> ConnectTimeoutError:
        """Return the error for an attempt that took too long."""
        unknown = "; early data was sent, and may have been taken all the same" if self.committed else ""
        if self.answered:
            return ConnectTimeoutError(
                f"{self.where} answered, but the handshake did not complete within {timeout:g} s: "
                f"packets get lost on the path, or the server is overloaded{unknown}"
            )
        return ConnectTimeoutError(
            f"no answer from {self.where} over UDP within {timeout:g} s: wrong port, server down, or UDP blocked "
            f"on the path (mqtts:// uses TCP){unknown}"
        )
