"""Drives one QUIC connection: events in, one transmission per loop tick out, timers, and what it all means.

The engine (:class:`mqttquic_lab.quic.private.Engine`) is sans-IO; an :class:`~mqttquic_lab.quic.endpoint.Endpoint`
reads and writes the socket. This class stands between: it turns the engine's events into callbacks of streams, gathers
writes, keeps the one timer, sends keep-alive PINGs, and ends things so that nothing is left behind.

Handshake milestones of the layer above go through :meth:`QuicConnection.mark`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, ClassVar

from aioquic.quic import events
from aioquic.quic.packet import QuicErrorCode, QuicFrameType

from mqttquic_lab.errors import DisconnectedError, LabError
from mqttquic_lab.quic import private, private_streams
from mqttquic_lab.quic.chronicle import Chronicle
from mqttquic_lab.quic.datagrams import DatagramQueue
from mqttquic_lab.quic.endpoint import plain_address
from mqttquic_lab.quic.movable import Movable
from mqttquic_lab.quic.paths import Ends, Paths
from mqttquic_lab.quic.pings import Pings
from mqttquic_lab.quic.reasons import CloseInfo, disconnected, short_reason
from mqttquic_lab.quic.table import StreamTable
from mqttquic_lab.quic.timers import DeadlineTimer, KeepAlive, WriteGatherer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mqttquic_lab.net.stream import ByteStream, DatagramCounters, TransportName
    from mqttquic_lab.quic.endpoint import Datagrams, Endpoint, NetworkAddress
    from mqttquic_lab.quic.flights import FlightRecorder, Side
    from mqttquic_lab.quic.private import Engine
    from mqttquic_lab.quic.stream import QuicStream
    from mqttquic_lab.quic.tracing import QuicTracer
    from mqttquic_lab.quic.tuning import Tuning
    from mqttquic_lab.records.handshake import HandshakeReport
    from mqttquic_lab.trace import Trace

logger = logging.getLogger(__name__)

FLUSH_TIMEOUT = 1.0
"""Seconds that :meth:`QuicConnection.close` waits for acknowledgements."""


class QuicConnection(Movable):
    """A QUIC connection, client or server side.

    Made by :func:`mqttquic_lab.quic.client.open_quic` and :func:`mqttquic_lab.quic.server.listen_quic`.

    Attributes
    ----------
    role : str
        ``"client"`` or ``"server"``: which side we are.
    close_info : CloseInfo or None
        How it ended: code, reason and side.
    engine : Engine
        The sans-IO engine below; its facts are read through :mod:`mqttquic_lab.quic.private`.
    paths : Paths
        Which sockets it uses.
    last_words : list
        The datagrams with our CONNECTION_CLOSE, for a server to repeat (RFC 9000 section 10.2.1).
    trace : Trace
        Receives QUIC events during the handshake, and after it while ``trace.detail`` is set.
    """

    transport: ClassVar[TransportName] = "quic"

    def __init__(
        self,
        engine: Engine,
        endpoint: Endpoint,
        *,
        role: Side,
        tuning: Tuning,
        report: HandshakeReport,
        trace: Trace,
        recorder: FlightRecorder,
        tracer: QuicTracer | None,
        keep_alive: bool,
        on_established: Callable[[QuicConnection], None],
        on_finished: Callable[[QuicConnection], None],
        on_connection_id: Callable[[QuicConnection, bytes, bool], None] | None = None,
        on_limited: Callable[[QuicConnection], None] | None = None,
    ) -> None:
        self.role: Side = role
        self.trace = trace
        self.report = report
        self.close_info: CloseInfo | None = None
        self.engine = engine
        self.paths = Paths(engine, endpoint, trace, self._path_changed)
        self._tuning = tuning
        self._tuning_due = False
        self._chronicle = Chronicle(self, recorder, tracer, on_limited)
        self._keep_alive = keep_alive
        self._on_established: Callable[[QuicConnection], None] | None = on_established
        self._on_finished = on_finished
        self._on_connection_id = on_connection_id
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[LabError | None] = self._loop.create_future()
        self._closing = False
        self._moved = asyncio.Event()
        self._begun = False
        self._broken = False
        self._handshake_complete = False

        self._last_heard = self._loop.time()
        self._pings = Pings(self)
        self.datagrams_received = 0
        self.last_words: Datagrams = []

        self._gatherer = WriteGatherer(self._loop, self.transmit)
        self.written = self._gatherer.written
        self._timer = DeadlineTimer(self._loop, engine.get_timer, self._deadline_passed)
        self._keep_alive_timer: KeepAlive | None = None
        self._table = StreamTable(self, engine)
        self._datagram_queue = DatagramQueue(self)
        super().__init__()
        self.control = self._table.control

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else "established" if self._handshake_complete else "connecting"
        return f"<QuicConnection {self.role} {state}>"

    # --- facts

    @property
    def peer_address(self) -> tuple[str, int]:
        """Address of the peer now (it changes when the peer migrates)."""
        address = self.engine.get_peer_address()
        return plain_address(address) if address else self.report.peer_address or ("", 0)

    @property
    def local_address(self) -> tuple[str, int]:
        """Our own address now."""
        return self.paths.local_address

    @property
    def is_closed(self) -> bool:
        """Whether :attr:`closed` is done."""
        return self.closed.done()

    @property
    def is_established(self) -> bool:
        """Whether the handshake is complete (RFC 9001 section 4.1.1)."""
        return self._handshake_complete

    @property
    def is_early(self) -> bool:
        """Whether what is delivered now is 0-RTT data, which may be a replay until the handshake is complete."""
        return self.role == "server" and not self._handshake_complete

    @property
    def congestion_window(self) -> int:
        """Bytes that may be in flight (RFC 9002 section 7)."""
        return private.congestion_window(self.engine)

    @property
    def bytes_in_flight(self) -> int:
        """Bytes sent and neither acknowledged nor lost."""
        return private.bytes_in_flight(self.engine)

    def complete_report(self, fill: Callable[[], None]) -> None:
        """Have `fill` write facts that take long to find out, before the report is looked at for the first time.

        Reading and building certificate chains takes milliseconds, which CONNECT should not have to wait for.
        """
        self._chronicle.complete_later(fill)

    def refresh_report(self) -> HandshakeReport:
        """Bring :attr:`report` up to date and return it."""
        self._chronicle.refresh()
        return self.report

    def mark(self, milestone: str, content: str | None = None, *, sender: Side | None = None) -> None:
        """Note a milestone of the layer above in the handshake report.

        The session calls ``mark("connect_sent", "CONNECT")`` right after it wrote CONNECT, and
        ``mark("connack", "CONNACK", sender="server")`` from ``on_data`` once it has decoded CONNACK. The latter
        ends the recording of flights: :attr:`HandshakeReport.round_trips` counts up to there.

        Parameters
        ----------
        milestone : str
            Key of :attr:`HandshakeReport.timings`; ``"connack"`` is the last one.
        content : str, optional
            Name for what was written or has arrived, for the flight that carries it.
        sender : str, optional
            Whose content it is; default: ours.
        """
        super().mark(milestone)
        self._chronicle.mark(milestone, content, sender)

    # --- streams

    @property
    def on_stream(self) -> Callable[[ByteStream], None]:
        """Called with each stream that the peer opened; those opened before it was assigned are not lost."""
        return self._table.on_stream

    @on_stream.setter
    def on_stream(self, handler: Callable[[ByteStream], None]) -> None:
        self._table.on_stream = handler

    def open_stream(self, *, unidirectional: bool = False) -> QuicStream:
        """Open a stream; the client's first bidirectional one is :attr:`control`.

        Raises
        ------
        DisconnectedError
            The connection has ended.
        UsageError
            The peer lets us open no more streams (:meth:`stream_credit`).
        """
        if self.is_closed:
            raise self.closed.result() or DisconnectedError("the connection is closed")
        return self._table.open(unidirectional=unidirectional, limited=self._handshake_complete)

    def stream_credit(self, *, unidirectional: bool = False) -> int:
        """How many more streams the peer lets us open now (RFC 9000 section 4.6)."""
        return private_streams.stream_credit(self.engine, unidirectional=unidirectional)

    @property
    def streams(self) -> tuple[QuicStream, ...]:
        """The streams that are open."""
        return self._table.open_ones

    # --- datagrams (RFC 9221)

    @property
    def max_datagram_size(self) -> int | None:
        """Bytes that one datagram may carry now; None where none can be sent."""
        return self._datagram_queue.max_size

    @property
    def datagram_frames(self) -> DatagramCounters:
        """What became of the datagrams of this connection."""
        return self._datagram_queue.counters

    def send_datagram(self, data: bytes) -> bool:
        """Send a datagram: see :meth:`~mqttquic_lab.quic.datagrams.DatagramQueue.send`."""
        return self._datagram_queue.send(data)

    async def datagram_room(self) -> None:
        """Wait until a datagram can be sent without being dropped, or the connection has ended."""
        await self._datagram_queue.room()

    def _datagram_received(self, data: bytes) -> None:
        if not self._handshake_complete:  # as with early data on a stream
            self.report.alpn = self.engine.tls.alpn_negotiated
            self._tell_established()
        self.datagram_frames.received += 1
        self.call(self.on_datagram, data)

    def soon(self, callback: Callable[[], None]) -> None:
        """Run `callback` in the next loop tick."""
        self._loop.call_soon(callback)

    def call(self, handler: Callable[..., None], *arguments: Any) -> None:
        """Call a handler of the owner; an exception from it ends this connection, and only this one."""
        if self._broken:
            return
        try:
            handler(*arguments)
        except Exception as error:  # noqa: BLE001 - a handler's bug must not stop the loop or the other connections
            self._crashed(error, "a handler of this connection failed")

    async def progress(self) -> None:
        """Wait until something was acknowledged or received, or the connection ended."""
        if not self.is_closed:
            await self._moved.wait()

    # --- work

    def begin(self, address: NetworkAddress, *, early_content: Sequence[str] | None = None) -> None:
        """Send the first packet (client side).

        Parameters
        ----------
        address : address
            Where to.
        early_content : sequence of str, optional
            What was written so far leaves as 0-RTT data; these are its names for the ladder, if it has any.
        """
        self.engine.early_data_offered = early_content is not None
        self.engine.connect(address, now=self._loop.time())
        self._begun = True
        self._chronicle.begun()
        if early_content is not None:
            self.first_words(early_content)
        self.transmit()

    def first_words(self, content: Sequence[str]) -> None:
        """Note that `content` was written first, and is about to leave."""
        self.spoke_first = True
        for name in content:
            self.mark("connect_sent", name)

    def receive(self, data: bytes, address: NetworkAddress, now: float) -> None:
        """Take one datagram from the endpoint."""
        if self.closed.done():
            return
        self._last_heard = now
        self.datagrams_received += 1
        if not self._begun:
            self._begun = True
            self._chronicle.begun()
        try:
            self.engine.receive_datagram(data, address, now)
        except Exception as error:  # noqa: BLE001 - aioquic raises its own for what it foresees; peers find others
            self._crashed(error, "the QUIC engine could not handle a datagram")

    def pump(self) -> None:
        """Deliver what was received, then send what is due."""
        quiet = self._chronicle.is_confirmed  # a handshake does not wait
        if self._deliver():
            if quiet and not self._table.has_data and not self.engine.schedule.has_data:
                self._gatherer.received()
            else:
                self.transmit()

    def _deliver(self) -> bool:
        """Deliver what was received; returns whether the connection lives on."""
        if self.closed.done():
            return False
        self._deliver_events()
        if self.closed.done():
            return False
        if private.close_event(self.engine) is not None:
            self._terminated()
            return False
        self.paths.check()
        self._moved.set()
        self._moved.clear()
        return True

    def transmit(self) -> None:
        """Give the engine what was written and the socket what the engine makes of it."""
        self._gatherer.transmitting()
        if self.closed.done():
            return
        endpoint = self.paths.endpoint
        if endpoint.blocked:
            endpoint.when_writable(self)
            return
        self._chronicle.switch_tap()
        now = self._loop.time()
        try:
            if self._table.has_data:
                self._chronicle.wrote()
            self._table.flush()
            datagrams = self.engine.datagrams_to_send(now)
        except Exception as error:  # noqa: BLE001 - see receive()
            self._crashed(error, "the QUIC engine could not build a packet")
            return
        if datagrams:
            self._gatherer.sent(now)
            self.paths.send(datagrams)
            if self.closed.done():
                return
            if self._on_connection_id is not None:
                self._deliver_events()  # new connection ids must be routed before the peer can use them
            if self._tuning_due:
                self._apply_tuning()
        if not self._handshake_complete:
            self._chronicle.look_at_limit()
        self._table.forget_finished()
        self._timer.arm()

    def _deliver_events(self) -> None:
        """Hand the engine's events to whom they concern; runs of data for one stream as one piece."""
        engine = self.engine
        run: list[bytes] = []
        run_id = -1
        stops: list[events.QuicEvent] = []
        while (event := engine.next_event()) is not None:
            if type(event) is events.StreamDataReceived:
                if run and event.stream_id != run_id:
                    self._stream_data(run_id, run, fin=False)
                    run = []
                run_id = event.stream_id
                run.append(event.data)
                if not event.end_stream:
                    continue
                self._stream_data(run_id, run, fin=True)
                run = []
            elif type(event) is events.StopSendingReceived:
                stops.append(event)
            else:
                if run:
                    self._stream_data(run_id, run, fin=False)
                    run = []
                self._handle_event(event)
            if self.closed.done():
                return
        if run:
            self._stream_data(run_id, run, fin=False)
        # STOP_SENDING comes first in a packet, and does not void what the peer itself sent there: its DISCONNECT.
        for event in stops:
            self._handle_event(event)
        self._chronicle.flush()
        if not self._chronicle.is_confirmed and private.handshake_confirmed(engine):
            self._handshake_is_confirmed()

    def _stream_data(self, stream_id: int, chunks: list[bytes], *, fin: bool) -> None:
        if not self._handshake_complete:
            # 0-RTT data comes before the handshake completes; who takes it has to know the protocol.
            self.report.alpn = self.engine.tls.alpn_negotiated
            self._tell_established()
        stream = self._table.of(stream_id)
        stream.received(chunks[0] if len(chunks) == 1 else b"".join(chunks), fin=fin)
        if fin:
            self._table.note_finished(stream)

    def _handle_event(self, event: events.QuicEvent) -> None:
        if isinstance(event, events.ConnectionIdIssued):
            if self._on_connection_id is not None:
                self._on_connection_id(self, event.connection_id, True)
        elif isinstance(event, events.ConnectionIdRetired):
            if self._on_connection_id is not None:
                self._on_connection_id(self, event.connection_id, False)
        elif isinstance(event, events.DatagramFrameReceived):
            self._datagram_received(event.data)
        elif isinstance(event, events.StreamReset):
            self._table.was_reset(event.stream_id, event.error_code)
        elif isinstance(event, events.StopSendingReceived):
            self._table.was_stopped(event.stream_id, event.error_code)
        elif isinstance(event, events.PingAcknowledged):
            self._pings.acknowledged(event.uid)
        elif isinstance(event, events.HandshakeCompleted):
            self._handshake_is_complete(event)

    # --- handshake

    def _handshake_is_complete(self, event: events.HandshakeCompleted) -> None:
        self._handshake_complete = True
        self._chronicle.completed(event)
        self._tuning_due = True
        self._start_keep_alive()
        self._tell_established()

    def _handshake_is_confirmed(self) -> None:
        self._chronicle.confirmed()
        if self.mover is not None:
            self.mover.confirmed()

    def _tell_established(self) -> None:
        tell, self._on_established = self._on_established, None
        if tell is not None:
            self.refresh_report()
            self.call(tell, self)

    def _apply_tuning(self) -> None:
        self._tuning_due = False
        if not self._tuning.pacing:
            private.stop_pacing(self.engine)
        if self._tuning.max_datagram_size > 1200:
            remote = private.transport_parameters(self.engine, "remote")
            limit = (remote.max_udp_payload_size if remote is not None else None) or 65_527
            private.set_datagram_size(self.engine, min(self._tuning.max_datagram_size, limit))

    def ticket_received(self, ticket: Any) -> None:
        """Note a session ticket (client side)."""
        self._chronicle.ticket_received(ticket)

    # --- time

    def _deadline_passed(self, now: float) -> None:
        """Let the engine handle a timeout: loss, delayed acknowledgement, pacing, or the end of an idle connection."""
        try:
            self.engine.handle_timer(now=now)
        except Exception as error:  # noqa: BLE001 - see receive()
            self._crashed(error, "the QUIC engine could not handle its timer")
            return
        if self._deliver():
            self.transmit()

    def _start_keep_alive(self) -> None:
        interval = private.idle_timeout(self.engine) / 3
        if self._keep_alive and interval > 0:
            self._keep_alive_timer = KeepAlive(self._loop, interval, lambda: self._last_heard, self._send_keep_alive)

    def _send_keep_alive(self) -> None:
        self.engine.send_ping(0)
        self.transmit()

    async def ping(self, timeout: float = 5.0) -> float:
        """Send a PING frame and wait for its acknowledgement.

        Returns
        -------
        float
            Seconds until it was acknowledged; includes what the peer delayed it (RFC 9000 section 13.2.1).

        Raises
        ------
        OperationTimeoutError
            No acknowledgement within `timeout` seconds.
        DisconnectedError
            The connection ended, or has ended.
        """
        return await self._pings.ping(timeout)

    async def update_keys(self, timeout: float | None = 5.0) -> int:
        """Update the packet protection keys (RFC 9001 section 6) and return the new key phase, 0 or 1.

        Returns when the peer has acknowledged a packet under the new keys.

        Raises
        ------
        OperationTimeoutError
            No acknowledgement within `timeout` seconds.
        DisconnectedError
            The connection ended, or has ended.
        """
        return await self._pings.update_keys(timeout)

    def _path_changed(self, old: Ends, new: Ends) -> None:
        if old.peer != new.peer:
            self.call(self.on_migrated, old.peer, new.peer)

    # --- the end

    async def close(self, error_code: int = 0, reason: str = "") -> None:
        """Flush what was written (at most 1 s), send CONNECTION_CLOSE and release everything. Safe to repeat.

        Parameters
        ----------
        error_code : int
            Application error code (RFC 9000 section 20.2); 0 is an orderly end.
        reason : str
            Reason phrase for the peer, cut to 256 bytes.
        """
        if self.is_closed:
            return
        if self._closing:
            await asyncio.wait((self.closed,))
            return
        self._closing = True
        try:
            # With early data a server may have an answer, such as a refusal, before the handshake is complete: closed
            # then, all that the client would be told is that the application had an error (RFC 9000 section 10.2.3).
            if self._handshake_complete or self._on_established is None:
                self.transmit()
                async with asyncio.timeout(FLUSH_TIMEOUT):
                    while not self.is_closed and (
                        self._table.pending or self.engine.datagrams_waiting or not self._handshake_complete
                    ):
                        await self.progress()
        except TimeoutError:
            pass  # the peer does not acknowledge: closing must not wait for it
        finally:
            self._close_now(error_code, reason, None)

    def abort(self, reason: str = "", error_code: int = 0) -> None:
        """Close at once without flushing. Safe to repeat."""
        why = f"aborted: {reason}" if reason else "aborted by this side"
        self._close_now(error_code, reason, DisconnectedError(why))

    def _close_now(self, error_code: int, reason: str, result: LabError | None) -> None:
        if self.is_closed:
            return
        reason = short_reason(reason)
        self.engine.close(error_code=error_code, reason_phrase=reason)
        self._send_close()
        self.finish(result, CloseInfo(error_code, application=True, reason=reason, by_peer=False))

    def _send_close(self) -> None:
        """Send CONNECTION_CLOSE, once; the server's endpoint repeats it when packets still come."""
        try:
            self.last_words = self.engine.datagrams_to_send(self._loop.time())
        except Exception:
            logger.exception("CONNECTION_CLOSE could not be built")
            self.last_words = []
        self.paths.endpoint.send(self.last_words)

    def _terminated(self) -> None:
        """End because the engine did: the peer closed, an error was found, or the idle timeout passed."""
        event = private.close_event(self.engine)
        assert event is not None
        by_peer = private.closed_by_peer(self.engine)
        info = CloseInfo(event.error_code, event.frame_type is None, short_reason(event.reason_phrase), by_peer)
        if not by_peer:
            self._send_close()
        self.finish(disconnected(info, private.idle_timeout(self.engine)), info)

    def _crashed(self, error: Exception, what: str) -> None:
        """End because something raised that should not have."""
        self._broken = True
        logger.error("%s", what, exc_info=error)
        self.trace.emit("net", "internal_error", what=what, error=type(error).__name__)
        if self.is_closed:
            return
        self.engine.close(
            error_code=QuicErrorCode.INTERNAL_ERROR, frame_type=QuicFrameType.PADDING, reason_phrase="internal error"
        )
        self._send_close()
        result = DisconnectedError(f"closed by this side: {what}: {error!r}")
        result.__cause__ = error
        self.finish(result, CloseInfo(QuicErrorCode.INTERNAL_ERROR, False, "internal error", by_peer=False))

    def finish(self, result: LabError | None, info: CloseInfo) -> None:
        """Release everything and tell everybody. Safe to repeat."""
        if self.closed.done():
            return
        self.refresh_report()
        established = self._handshake_complete
        self.report.state = "closed" if established else "failed"
        self.report.error = str(result) if result is not None else None
        self.close_info = info
        self.report.closed_with = info.sentence()
        self.closed.set_result(result)
        self._timer.cancel()
        if self._keep_alive_timer is not None:
            self._keep_alive_timer.cancel()
        self._table.connection_over()
        self._moved.set()
        self.paths.forget(self)
        self.trace.emit(
            "quic",
            "connection_closed",
            error_code=info.error_code,
            application=info.application,
            reason=info.reason,
            by_peer=info.by_peer,
        )
        self._on_finished(self)
