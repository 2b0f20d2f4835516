"""What is told about a connection while it works: the handshake report, the ladder, and events of the trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aioquic.tls import HandshakeType

from mqttquic_lab.quic import private, private_paths
from mqttquic_lab.quic import report as facts
from mqttquic_lab.quic.flights import message_name
from mqttquic_lab.quic.private_keys import handshake_data_waits, key_phase
from mqttquic_lab.trace import CLOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioquic.quic import events

    from mqttquic_lab.quic.connection import QuicConnection
    from mqttquic_lab.quic.flights import FlightRecorder, Side
    from mqttquic_lab.quic.private import TlsMessage
    from mqttquic_lab.quic.tracing import QuicTracer

MAX_TICKETS = 8
"""Session tickets whose facts are kept in the report."""


class Chronicle:
    """Writes the report of one connection, which may be exchanged for another one meanwhile.

    Parameters
    ----------
    connection : QuicConnection
        The connection.
    recorder : FlightRecorder
        Sorts packets into flights.
    tracer : QuicTracer or None
        Gives them; None on a listener whose connections nobody watches.
    on_limited : callable(QuicConnection), optional
        Server side: told once if the anti-amplification limit makes a handshake wait.
    """

    def __init__(
        self,
        connection: QuicConnection,
        recorder: FlightRecorder,
        tracer: QuicTracer | None,
        on_limited: Callable[[QuicConnection], None] | None,
    ) -> None:
        self._connection = connection
        self._recorder = recorder
        self._tracer = tracer
        self._on_limited = on_limited
        self._limited_at = 0
        self._confirmed = False
        self._tap_on = tracer is not None
        self._unfilled: Callable[[], None] | None = None
        connection.engine.on_message = self._tls_message
        connection.engine.on_key_update = self._keys_updated

    # --- the handshake

    def begun(self) -> None:
        """Note that the first packet leaves or has arrived."""
        self._connection.started = CLOCK()
        self._connection.report.timings["client_hello"] = 0.0

    def completed(self, event: events.HandshakeCompleted) -> None:
        """Note that the handshake is complete."""
        connection, report = self._connection, self._connection.report
        report.timings["handshake_complete"] = self._now
        report.alpn = event.alpn_protocol
        report.resumed = event.session_resumed
        if event.early_data_accepted:
            report.early_data = "accepted"
        elif connection.engine.early_data_offered:
            report.early_data = "rejected"
            self._recorder.void_early_data()
        report.state = "connected"
        report.idle_timeout = private.idle_timeout(connection.engine)
        facts.fill_handshake(report, connection.engine)

    def confirmed(self) -> None:
        """Note that it is confirmed (RFC 9001 section 4.1.2)."""
        self._confirmed = True
        self._connection.report.timings["handshake_confirmed"] = self._now

    @property
    def is_confirmed(self) -> bool:
        """Whether :meth:`confirmed` was called."""
        return self._confirmed

    def ticket_received(self, ticket: Any) -> None:
        """Note a session ticket (client side)."""
        report = self._connection.report
        if len(report.tickets) < MAX_TICKETS:
            report.tickets = (*report.tickets, facts.ticket_info(ticket))

    def mark(self, milestone: str, content: str | None, sender: Side | None) -> None:
        """Note what the layer above says of its own handshake; ``"connack"`` ends the ladder."""
        if self._tracer is None:
            return
        self._tracer.flush()
        if content is not None:
            role = self._connection.role
            sender = sender or role
            self._recorder.content(sender, content, sent_already=sender != role)
        if milestone == "connack":
            self._recorder.freeze()
            self._connection.refresh_report()

    def wrote(self) -> None:
        """Note that stream data was written, before it is sent."""
        if self._tap_on:
            self._recorder.wrote(self._connection.role)

    def complete_later(self, fill: Callable[[], None]) -> None:
        """Have `fill` write facts that take long to find out, when the report is looked at for the first time."""
        self._unfilled = fill

    def refresh(self) -> None:
        """Bring the report up to date."""
        connection, report = self._connection, self._connection.report
        if self._unfilled is not None:
            fill, self._unfilled = self._unfilled, None
            fill()
        if not connection.is_closed:
            report.local_address = connection.local_address
            report.peer_address = connection.peer_address
            report.key_phase = key_phase(connection.engine)
        report.rtt = connection.engine.rtt.info or report.rtt
        if self._tracer is not None:
            self._tracer.flush()
            report.flights = self._recorder.flights(connection.started)
            if self._recorder.frozen:
                report.round_trips = self._recorder.round_trips()

    def _tls_message(self, message: TlsMessage) -> None:
        connection = self._connection
        self._recorder.message(message.sender, message.type, message.time)
        connection.trace.emit(
            "tls",
            "message",
            direction="sent" if message.sender == connection.role else "received",
            message=message_name(message.type),
            size=message.size,
        )
        if message.type == HandshakeType.SERVER_HELLO:
            connection.report.timings.setdefault("server_hello", message.time - connection.started)

    @property
    def _now(self) -> float:
        return CLOCK() - self._connection.started

    # --- later

    def _keys_updated(self, trigger: str) -> None:
        connection = self._connection
        connection.report.key_updates += 1
        by_peer = trigger == "remote_update"
        connection.trace.emit("quic", "key_phase_updated", by_peer=by_peer, count=connection.report.key_updates)

    def look_at_limit(self) -> None:
        """Note that a server may send no more before its client shows that the address is its own."""
        engine = self._connection.engine
        if self._on_limited is None or engine.get_peer_address() is None:
            return
        sums = private_paths.unvalidated_bytes(engine)
        if sums is None or sums[0] == self._limited_at or not handshake_data_waits(engine):
            return
        first, self._limited_at = not self._limited_at, sums[0]
        self._connection.trace.emit("quic", "amplification_limited", received=sums[0], sent=sums[1], limit=3 * sums[0])
        if first:
            self._on_limited(self._connection)

    # --- the tap

    def flush(self) -> None:
        """Pass on the packet received last, whose frames are known only after it was handled."""
        if self._tracer is not None:
            self._tracer.flush()

    def switch_tap(self) -> None:
        """Have the engine log packets while somebody wants them: during the handshake, and with ``trace.detail``."""
        if self._tracer is None:
            return
        wanted = self._connection.trace.detail or not (self._confirmed and self._recorder.frozen)
        if wanted != self._tap_on:
            self._tracer.flush()
            self._tap_on = wanted
            private.set_logger(self._connection.engine, self._tracer.tap if wanted else None)
