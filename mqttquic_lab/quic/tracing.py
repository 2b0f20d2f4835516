"""A bounded qlog tap: what aioquic logs goes to the flight recorder and, when wanted, into the trace.

The stock logger keeps everything for ever and halves the throughput. This one hands each event on and keeps nothing.
It runs during the handshake, and after that only while :attr:`Trace.detail` is set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aioquic.quic.logger import QuicLogger, QuicLoggerTrace

from mqttquic_lab.trace import CLOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttquic_lab.quic.flights import FlightRecorder, Side
    from mqttquic_lab.trace import Trace

_SECRET_FIELDS = frozenset({"reset_token", "token", "stateless_reset_token", "quantum_readiness"})


class _Tap(QuicLoggerTrace):
    """Passes qlog events on."""

    def __init__(self, sink: Callable[[str, dict[str, Any]], None], *, is_client: bool, odcid: bytes) -> None:
        super().__init__(is_client=is_client, odcid=odcid)
        self.sink = sink

    def log_event(self, *, category: str, event: str, data: dict[str, Any]) -> None:
        """Pass one event on."""
        self.sink(event, data)


class _TapLogger(QuicLogger):
    """Makes taps."""

    def __init__(self, sink: Callable[[str, dict[str, Any]], None]) -> None:
        super().__init__()
        self.sink = sink
        self.tap: _Tap | None = None

    def start_trace(self, is_client: bool, odcid: bytes) -> QuicLoggerTrace:
        """Make the tap of a connection."""
        self.tap = _Tap(self.sink, is_client=is_client, odcid=odcid)
        return self.tap

    def end_trace(self, trace: QuicLoggerTrace) -> None:
        """Nothing was kept."""


class QuicTracer:
    """Turns the qlog events of one connection into trace events and flights.

    Parameters
    ----------
    role : str
        Which side we are.
    trace : Trace
        Where events go.
    recorder : FlightRecorder
        Where packets go until it is frozen.

    Attributes
    ----------
    logger : QuicLogger
        For ``QuicConfiguration.quic_logger``.
    """

    def __init__(self, role: Side, trace: Trace, recorder: FlightRecorder) -> None:
        self.logger = _TapLogger(self._event)
        self._us: Side = role
        self._peer: Side = "server" if role == "client" else "client"
        self._trace = trace
        self._recorder = recorder
        self._arriving: tuple[float, dict[str, Any]] | None = None

    @property
    def tap(self) -> QuicLoggerTrace | None:
        """The tap itself, to switch the engine's logging off and on."""
        return self.logger.tap

    def flush(self) -> None:
        """Pass on the packet received last, whose frames are known only after it was handled."""
        if self._arriving is not None:
            time, data = self._arriving
            self._arriving = None
            self._packet(self._peer, "packet_received", data, time)

    def _event(self, name: str, data: dict[str, Any]) -> None:
        if name == "packet_received":
            self.flush()
            self._arriving = (CLOCK(), data)
        elif name == "packet_sent":
            self.flush()
            self._packet(self._us, name, data, CLOCK())
        elif self._trace.detail or name not in ("metrics_updated", "datagrams_sent", "datagrams_received"):
            self._trace.emit("quic", name, **_without_secrets(data))

    def _packet(self, sender: Side, name: str, data: dict[str, Any], time: float) -> None:
        header = data["header"]
        frames = data["frames"]
        packet_type = header["packet_type"]
        if not self._recorder.frozen:
            self._recorder.packet(sender, packet_type, [frame["frame_type"] for frame in frames], time)
        self._trace.emit(
            "quic",
            name,
            at=time,
            packet_type=packet_type,
            packet_number=header.get("packet_number"),
            length=data["raw"]["length"],
            frames=tuple(_without_secrets(frame) for frame in frames),
        )


def _without_secrets(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key not in _SECRET_FIELDS}
