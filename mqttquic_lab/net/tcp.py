"""MQTT over plain TCP: one connection with one stream, for comparison with QUIC.

What TLS needs as well stands here too: coalescing of writes, back-pressure both ways, an orderly end with a bound.
:mod:`mqttquic_lab.net.tls` puts its records in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from mqttquic_lab.errors import ConnectTimeoutError, DisconnectedError, LabError
from mqttquic_lab.net.address import host_port
from mqttquic_lab.net.dial import dial
from mqttquic_lab.net.sockets import close_with_reset, set_no_delay, tcp_rtt
from mqttquic_lab.net.stream import Connection, TransportName
from mqttquic_lab.net.tcp_stream import TcpStream
from mqttquic_lab.records.handshake import Flight, HandshakeReport
from mqttquic_lab.trace import Trace

if TYPE_CHECKING:
    import socket

    from mqttquic_lab.net.address import Address
    from mqttquic_lab.net.dial import Dialled, LocalAddress

HIGH_WATER = 256 * 1024
"""Bytes not yet taken by the kernel above which :meth:`TcpStream.drain` waits."""

LOW_WATER = 64 * 1024
"""Bytes at which it goes on."""

FLUSH_SIZE = 64 * 1024
"""Bytes of small writes that are sent without waiting for the end of the loop tick."""

CLOSE_TIMEOUT = 1.0
"""Seconds that an orderly close may take before the connection is aborted."""

Ready = Callable[["TcpConnection", LabError | None], None]
"""Called once: with None when a connection is established, else with the reason why it never was."""

TcpConnectionT = TypeVar("TcpConnectionT", bound="TcpConnection")


class TcpConnection(Connection, asyncio.Protocol):
    """A TCP connection, client or server side.

    Made by :func:`open_tcp` and by listeners; every public method beyond those of :class:`Connection` is for its
    stream, its listener and :class:`mqttquic_lab.net.tls.TlsConnection`.

    Parameters
    ----------
    report : HandshakeReport
        To be filled.
    trace : Trace
        To be told.
    ready : callable(TcpConnection, LabError or None)
        Called once: with None when the connection is established, else with the reason why it never was.

    Attributes
    ----------
    server_side : bool
        Which side this is.
    half_open : bool
        Whether what we send may go on after the peer's FIN, until our owner ends it too. MQTT itself has no use for
        half a connection: without this our FIN follows at once.
    """

    transport: ClassVar[TransportName] = "tcp"
    control: TcpStream
    server_side = False
    half_open = False

    def __init__(self, *, report: HandshakeReport, trace: Trace, ready: Ready) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self.report = report
        self.trace = trace
        self.closed = self._loop.create_future()
        self.control = TcpStream(self)
        self._ready: Ready | None = ready
        self._wire: asyncio.Transport | None = None
        self._sock: socket.socket | None = None
        self._out: list[bytes] = []
        self._out_size = 0
        self._flush_scheduled = False
        self._drainers: set[asyncio.Future[None]] = set()
        self._reading = True
        self._write_ended = False
        self._peer_ended = False
        self._end_told = False
        self._closing = False
        self._reason: LabError | None = None
        self._close_timer: asyncio.TimerHandle | None = None
        report.transport = self.transport

    def __repr__(self) -> str:
        state = "closed" if self.closed.done() else "closing" if self._closing else "open"
        peer = host_port(*self.report.peer_address) if self.report.peer_address else "?"
        return f"<{type(self).__name__} {peer} {state}>"

    # --- facts

    @property
    def peer_address(self) -> tuple[str, int]:
        """Address of the peer."""
        return self.report.peer_address or ("", 0)

    @property
    def local_address(self) -> tuple[str, int]:
        """Our own address."""
        return self.report.local_address or ("", 0)

    @property
    def is_closed(self) -> bool:
        """Whether :attr:`closed` is done."""
        return self.closed.done()

    @property
    def is_closing(self) -> bool:
        """Whether the end has begun: nothing more is delivered or accepted."""
        return self._closing

    @property
    def is_established(self) -> bool:
        """Whether the handshake is complete (or failed)."""
        return self._ready is None

    @property
    def pending(self) -> int:
        """Bytes queued here and in the transport."""
        return self._out_size + (self._wire.get_write_buffer_size() if self._wire is not None else 0)

    def mark(
        self, milestone: str, content: str | None = None, *, sender: Literal["client", "server"] | None = None
    ) -> None:
        """Note a milestone, and in which flight its content travelled; see :meth:`Connection.mark`."""
        super().mark(milestone, content, sender=sender)
        if content is None or self.report.round_trips is not None:
            return
        time = self.report.timings[milestone]
        side: Literal["client", "server"] = sender or ("server" if self.server_side else "client")
        flights = self.report.flights
        if flights and flights[-1].sender == side:
            # Nobody waited in between: CONNECT leaves beside the client's Finished.
            last = flights[-1]
            self.report.flights = (*flights[:-1], replace(last, end=time, content=(*last.content, content)))
        else:
            self.report.flights = (*flights, Flight(side, time, time, (self.transport.upper(),), (content,)))
        if milestone == "connack":
            self.report.round_trips = sum(flight.sender == "server" for flight in self.report.flights)

    def refresh_report(self) -> HandshakeReport:
        """Bring the round-trip time in :attr:`report` up to date (Linux only) and return the report."""
        if self._sock is not None and not self.closed.done():
            self.report.rtt = tcp_rtt(self._sock) or self.report.rtt
        return self.report

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over the connected socket."""
        assert isinstance(transport, asyncio.Transport)
        if self.closed.done():  # cancelled while asyncio made the transport
            transport.abort()
            return
        self._wire = transport
        transport.set_write_buffer_limits(high=HIGH_WATER, low=LOW_WATER)
        self._sock = transport.get_extra_info("socket")
        if self._sock is not None:
            with suppress(OSError):  # a peer that has reset meanwhile; connection_lost says so
                set_no_delay(self._sock)
        for name, key in (("peer_address", "peername"), ("local_address", "sockname")):
            address = transport.get_extra_info(key)
            # A peer that is gone already leaves no name behind.
            setattr(self.report, name, (str(address[0]), int(address[1])) if address else None)
        self.start()

    def start(self) -> None:
        """Begin the handshake; TCP itself has finished its own."""
        self.established()

    def established(self) -> None:
        """Report the connection as established."""
        self.report.state = "connected"
        self.refresh_report()
        self.trace.emit("net", "connected", transport=self.transport, peer=host_port(*self.peer_address))
        self._call_ready(None)

    def data_received(self, data: bytes) -> None:
        """Pass on what arrived."""
        if self._closing:
            return
        if self.trace.detail:
            self.trace.emit("net", "data_received", size=len(data))
        self.control.deliver(data)

    def eof_received(self) -> bool:
        """Note the peer's FIN."""
        if self._closing:
            return False
        self._peer_ended = True
        self.control.deliver_end()
        return True

    def pause_writing(self) -> None:
        """Nothing to do: :meth:`drain` looks at :attr:`pending`."""

    def resume_writing(self) -> None:
        """Wake those who wait in :meth:`drain`."""
        self._wake_drainers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Settle everything: asyncio closes the socket right after this."""
        if self.closed.done():
            return
        if self._close_timer is not None:
            self._close_timer.cancel()
        if not self._closing:
            self._closing = True
            if isinstance(exc, ConnectionResetError | BrokenPipeError):
                self._reason = DisconnectedError("the peer reset the connection")
            else:
                self._reason = DisconnectedError(f"the connection broke: {exc}" if exc else "the connection ended")
            self._reason.__cause__ = exc
            if self._ready is None and isinstance(exc, ConnectionResetError):
                self.control.deliver_reset()
        self._write_ended = True
        self._out.clear()
        self._out_size = 0
        self.control.discard()
        self.report.state = "closed" if self.is_established else "failed"
        self._call_ready(self._reason or DisconnectedError("the connection was closed"))
        if self._reason is not None:
            self.report.error = self.report.error or str(self._reason)
        self.trace.emit("net", "closed", transport=self.transport, reason=str(self._reason or ""))
        self.closed.set_result(self._reason)
        self._wake_drainers()

    # --- sending

    def queue(self, data: bytes) -> None:
        """Send bytes at the end of this loop tick, or at once when there are many."""
        if self._write_ended:
            return
        self._out.append(data)
        self._out_size += len(data)
        if self._out_size >= FLUSH_SIZE:
            self.flush()
        elif not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._end_of_tick)

    def _end_of_tick(self) -> None:
        self._flush_scheduled = False
        self.flush()

    def flush(self) -> None:
        """Hand everything queued to the transport."""
        out = self._out
        if not out:
            return
        self._out = []
        self._out_size = 0
        data = out[0] if len(out) == 1 else b"".join(out)
        if self.trace.detail:
            self.trace.emit("net", "data_sent", size=len(data))
        self.send(data)

    def send(self, data: bytes) -> None:
        """Write application bytes to the transport."""
        self.send_raw(data)

    def send_raw(self, data: bytes) -> None:
        """Write bytes of the wire to the transport."""
        if self._wire is not None and data:
            self._wire.write(data)

    async def drain(self) -> None:
        """Wait until :attr:`pending` is at most :data:`HIGH_WATER`; raises the close reason if the end came first."""
        while not self._closing and self.pending > HIGH_WATER:
            self.flush()
            if self.pending <= HIGH_WATER:
                break
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._drainers.add(waiter)
            try:
                await waiter
            finally:
                self._drainers.discard(waiter)
        if self._closing:
            raise self._reason or DisconnectedError("the connection was closed by us")

    def _wake_drainers(self) -> None:
        for waiter in self._drainers:
            if not waiter.done():
                waiter.set_result(None)

    def end_writing(self) -> None:
        """Send everything queued, then FIN."""
        if self._write_ended or self._wire is None:
            return
        self.flush()
        self._write_ended = True
        self.send_end()
        if self._end_told:
            self.finish(None)

    def send_end(self) -> None:
        """Write the end of the stream to the transport."""
        if self._wire is None or self._wire.is_closing():
            return
        try:
            self._wire.write_eof()
        except OSError:
            # The peer has reset the connection, and we had not looked (reading was paused): nothing left to end.
            self._wire.abort()

    # --- receiving

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run something in the next loop tick."""
        self._loop.call_soon(callback)

    def update_reading(self) -> None:
        """Pause or resume the transport as the stream wants it."""
        if self._wire is None or self._wire.is_closing() or self._closing or self._peer_ended:
            return
        wanted = self.control.wants_data or not self.is_established
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                self._wire.resume_reading()
            else:
                self._wire.pause_reading()

    def peer_ended(self) -> None:
        """Follow the peer's FIN, once its owner knows of it."""
        self._end_told = True
        if not self._closing and (self._write_ended or not self.half_open):
            local = self._write_ended
            self.finish(None if local else DisconnectedError("the peer closed the connection"))

    def callback_failed(self, name: str, error: Exception) -> None:
        """End this connection because its owner's callback raised; the listener and other connections go on."""
        if isinstance(error, LabError):
            self.fail(error)
            return
        self._loop.call_exception_handler(
            {"message": f"{name} callback of {self!r} raised", "exception": error, "protocol": self}
        )
        reason = DisconnectedError(f"the {name} callback raised {type(error).__name__}: {error}")
        reason.__cause__ = error
        self.fail(reason)

    # --- the end

    async def close(self, error_code: int = 0, reason: str = "") -> None:
        """Send what was written, then FIN, and wait for the peer's, all within :data:`CLOSE_TIMEOUT`.

        TCP has no room for `error_code` and `reason`. Waiting for the peer's FIN matters: closing a socket with
        unread input makes the kernel send RST, which can destroy our last packet before the peer has read it.
        """
        if not self._closing:
            if self._wire is None or not self.is_established:
                self.abort(reason)
            else:
                self.finish(None)
        await asyncio.wait([self.closed])

    def abort(self, reason: str = "") -> None:
        """Close at once; what was not sent yet is lost."""
        self.fail(DisconnectedError(reason or "the connection was aborted by us"))

    def reset(self, reason: str) -> None:
        """Close at once with RST."""
        if self._sock is not None and not self.closed.done():
            close_with_reset(self._sock)
        self.fail(DisconnectedError(reason))

    def finish(self, reason: LabError | None) -> None:
        """Begin the orderly end: flush, FIN, then wait for the peer's FIN for a bounded time."""
        if self._closing:
            return
        self.flush()
        if self.is_closing:  # flushing found the connection broken
            return
        self._closing = True
        self._reason = reason
        self._wake_drainers()
        self.control.discard()
        if self._wire is None:
            self.connection_lost(None)
            return
        if not self._write_ended:
            self._write_ended = True
            self.send_end()
        if self._peer_ended:
            self._wire.close()
        elif not self._reading:
            self._reading = True
            self._wire.resume_reading()
        self._close_timer = self._loop.call_later(CLOSE_TIMEOUT, self._wire.abort)

    def fail(self, reason: LabError) -> None:
        """End at once with this reason."""
        if self.closed.done():
            return
        if not self._closing:
            self._closing = True
            self._reason = reason
        self._write_ended = True
        self._out.clear()
        self._out_size = 0
        self._wake_drainers()
        if self._wire is None:
            self.connection_lost(None)
        else:
            self._wire.abort()

    def _call_ready(self, error: LabError | None) -> None:
        ready, self._ready = self._ready, None
        if ready is not None:
            ready(self, error)
            self.update_reading()


def note_dialled(connection: TcpConnection, dialled: Dialled) -> None:
    """Put the TCP handshake into the report: SYN left at zero, SYN-ACK came at ``timings["tcp_connected"]``."""
    connection.started = dialled.started
    round_trip = dialled.connected - dialled.started
    connection.report.timings["tcp_connected"] = round_trip
    connection.report.flights = (
        Flight("client", 0.0, 0.0, ("SYN",), ()),
        Flight("server", round_trip, round_trip, ("SYN-ACK",), ()),
    )


async def establish(dialled: Dialled, make: Callable[[Ready], TcpConnectionT]) -> TcpConnectionT:
    """Turn a connected socket into an established connection; leaves no socket behind if that fails.

    Parameters
    ----------
    dialled : Dialled
        The socket; owned by the connection from here on.
    make : callable
        Makes the connection, given the `ready` callback to pass to it.

    Raises
    ------
    LabError
        Why the handshake failed.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[LabError | None] = loop.create_future()

    def ready(_: TcpConnection, error: LabError | None) -> None:
        if not outcome.done():
            outcome.set_result(error)

    try:
        connection = make(ready)
    except BaseException:
        dialled.sock.close()
        raise
    note_dialled(connection, dialled)
    try:
        await loop.create_connection(lambda: connection, sock=dialled.sock)
        error = await outcome
    except BaseException:
        connection.abort()
        dialled.sock.close()
        raise
    if error is not None:
        raise error
    return connection


async def open_tcp(
    address: Address,
    *,
    timeout: float = 10.0,
    trace: Trace | None = None,
    local_address: LocalAddress | None = None,
    report: HandshakeReport | None = None,
) -> TcpConnection:
    """Open a plain TCP connection.

    Parameters
    ----------
    address : Address
        Where to; its scheme is not looked at.
    timeout : float
        Seconds for name resolution and connecting together.
    trace : Trace, optional
        Trace to use; one of its own by default.
    local_address : tuple of (str, int), optional
        Our own IP address and port to connect from.
    report : HandshakeReport, optional
        The report to fill; it is also filled as far as possible when this fails.

    Raises
    ------
    UnreachableError, ConnectTimeoutError, UsageError
        See :func:`mqttquic_lab.net.dial.dial`.
    """
    facts = report if report is not None else HandshakeReport()
    facts.url, facts.transport, facts.state = address.url, "tcp", "connecting"
    try:
        async with asyncio.timeout(timeout):
            dialled = await dial(address.host, address.port, local_address=local_address)
            return await establish(
                dialled,
                lambda ready: TcpConnection(report=facts, trace=trace if trace is not None else Trace(), ready=ready),
            )
    except LabError as error:
        failed(facts, error)
        raise
    except TimeoutError:
        raise failed(facts, no_answer(address, timeout)) from None


def failed(report: HandshakeReport, error: LabError) -> LabError:
    """Note in the report why no connection came about; returns the error."""
    report.state, report.error = "failed", str(error)
    return error


def no_answer(address: Address, timeout: float) -> ConnectTimeoutError:
    """Return the error for a TCP connect that nobody answered."""
    return ConnectTimeoutError(
        f"{host_port(address.host, address.port)} did not answer within {timeout:g} s (TCP): wrong host or port, or a "
        "firewall drops what is sent there"
    )
