"""What the MQTT floor sees of a transport: a connection that carries ordered byte streams.

QUIC, TLS over TCP and plain TCP all implement these two classes, so that session and broker are written once. A TCP
or TLS connection has exactly one stream, with id ``None``.

Callbacks instead of awaits on the receiving side: at a hundred thousand small messages a second, a task switch per
chunk would cost more than MQTT itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from mqttquic_lab.errors import UsageError
from mqttquic_lab.trace import CLOCK

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection

    from mqttquic_lab.errors import LabError
    from mqttquic_lab.records.handshake import HandshakeReport
    from mqttquic_lab.records.migration import MigrationResult
    from mqttquic_lab.trace import Trace

TransportName = Literal["quic", "tls", "tcp"]

DEFAULT_URGENCY: Final = 3
"""Of a stream that was given no priority (RFC 9218 section 4.1)."""
MAX_URGENCY: Final = 7
"""The last ones to be sent."""

_BOUND: dict[str, str] = {
    "quic": "this connection does not move",
    "tls": "a TLS session lives on one TCP connection, and that is two addresses and two ports",
    "tcp": "a TCP connection is two addresses and two ports",
}


def check_urgency(urgency: object) -> int:
    """Return `urgency` if it is one of RFC 9218 section 4.1.

    Raises
    ------
    UsageError
        It is not an integer from 0 to 7.
    """
    if isinstance(urgency, bool) or not isinstance(urgency, int) or not 0 <= urgency <= MAX_URGENCY:
        raise UsageError(f"priority={urgency!r}: use an integer from 0 (sent first) to 7 (sent last), usually 3")
    return urgency


def _ignore(*_: object) -> None:
    """Drop an event nobody has asked for yet."""


class ByteStream(ABC):
    """One ordered byte stream of a connection.

    The owner assigns the three callbacks. They run on the connection's loop, never re-entrantly from :meth:`write`.

    Attributes
    ----------
    id : int or None
        QUIC stream id (RFC 9000 section 2.1), or None over TCP and TLS.
    connection : Connection
        The connection it belongs to.
    on_data : callable(bytes)
        Bytes that arrived, in order.
    on_end : callable()
        The peer will send no more (FIN).
    on_reset : callable(int)
        The peer gave up its sending side (RESET_STREAM) or asked us to stop (STOP_SENDING), with its error code.
    """

    id: int | None
    connection: Connection

    def __init__(self) -> None:
        self.on_data: Callable[[bytes], None] = _ignore
        self.on_end: Callable[[], None] = _ignore
        self.on_reset: Callable[[int], None] = _ignore

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Queue bytes; small writes of one loop tick leave together. Never blocks. No-op once closed."""

    @property
    def is_writable(self) -> bool:
        """Whether the sending side is open: neither ended, nor reset, nor stopped by the peer."""
        return not self.connection.is_closed

    @property
    @abstractmethod
    def pending(self) -> int:
        """Bytes written but not yet acknowledged (QUIC) or not yet taken by the kernel (TCP, TLS)."""

    @property
    def urgency(self) -> int:
        """Which streams of the connection go before this one's data: those with a smaller number, 0 to 7."""
        return DEFAULT_URGENCY

    def prioritize(self, urgency: int) -> None:
        """Set :attr:`urgency` (QUIC only): see :meth:`mqttquic_lab.quic.stream.QuicStream.prioritize`."""
        raise UsageError(
            f"{self.connection.transport.upper()} carries one stream, which has nothing to go before: use quic://"
        )

    @abstractmethod
    async def drain(self) -> None:
        """Wait until :attr:`pending` is below the high-water mark; raises the close reason if the end came first."""

    @abstractmethod
    def pause_reading(self) -> None:
        """Stop :attr:`on_data` and let flow control stop the peer."""

    @abstractmethod
    def resume_reading(self) -> None:
        """Undo :meth:`pause_reading`."""

    @abstractmethod
    def end(self) -> None:
        """Send FIN after what was written."""

    @abstractmethod
    def reset(self, error_code: int = 0) -> None:
        """Abort both directions with this application error code."""


@dataclass(slots=True)
class DatagramCounters:
    """What became of the DATAGRAM frames of one connection (RFC 9221); nothing is ever sent twice."""

    sent: int = 0
    """Put into a packet."""
    acknowledged: int = 0
    """Their packet was acknowledged: QUIC at the peer has them. Whether the peer's application took them, nobody says
    (RFC 9221 section 5.2)."""
    lost: int = 0
    """Their packet counts as lost (RFC 9002 section 6.1); now and then one of those is only late."""
    received: int = 0
    dropped: int = 0
    """Not sent because too many waited already: the congestion window did not open fast enough."""
    too_large: int = 0
    """Not sent because they did not fit into one packet, or were larger than the peer takes."""


class Connection(ABC):
    """One transport connection, established.

    Attributes
    ----------
    transport : str
        ``"quic"``, ``"tls"`` or ``"tcp"``: what really carries the bytes.
    control : ByteStream
        The first bidirectional stream (QUIC stream 0), or the only one.
    report : HandshakeReport
        Facts of the handshake so far; :meth:`refresh_report` completes it (certificates) and brings the moving ones
        (RTT) up to date.
    closed : asyncio.Future
        Done when the connection has ended: result None for an orderly local close, else a ``LabError`` *as result*
        (never as exception, so that nobody has to retrieve it).
    on_stream : callable(ByteStream)
        A stream that the peer opened (server side: includes stream 0, and the only stream of TCP and TLS).
    on_migrated : callable((str, int), (str, int))
        QUIC: the peer's address has changed from the first to the second, and it was validated that it is reached there
        (RFC 9000 section 9.3).
    on_datagram : callable(bytes)
        QUIC: the payload of a DATAGRAM frame that arrived (RFC 9221); in no order to those of streams.
    spoke_first : bool
        Whether what was to be written first was written while the connection was opened (QUIC early data).
    started : float
        When the first packet (or SYN) left or arrived, on :data:`mqttquic_lab.trace.CLOCK`: zero of
        ``report.timings``.
    """

    transport: ClassVar[TransportName]
    trace: Trace
    report: HandshakeReport
    control: ByteStream
    closed: asyncio.Future[LabError | None]
    started: float

    def __init__(self) -> None:
        self.on_stream: Callable[[ByteStream], None] = _ignore
        self.on_migrated: Callable[[tuple[str, int], tuple[str, int]], None] = _ignore
        self.on_datagram: Callable[[bytes], None] = _ignore
        self.spoke_first = False
        self.started = CLOCK()

    def mark(
        self, milestone: str, content: str | None = None, *, sender: Literal["client", "server"] | None = None
    ) -> None:
        """Note a milestone in the handshake report: ``report.timings[milestone]`` becomes now.

        The session calls ``mark("connect_sent", "CONNECT")`` right after it wrote CONNECT, and
        ``mark("connack", "CONNACK", sender="server")`` once it has decoded CONNACK, which ends the ladder.

        Parameters
        ----------
        milestone : str
            Key of ``report.timings``; its value is in seconds after :attr:`started`.
        content : str, optional
            Name of what was written or has arrived, for the flight that carries it; transports that know their
            flights put it there.
        sender : {"client", "server"}, optional
            Whose content it is; default: ours.
        """
        self.report.timings[milestone] = CLOCK() - self.started

    @property
    def is_early(self) -> bool:
        """Whether what is delivered now is 0-RTT data (QUIC, server side), which an attacker may be replaying."""
        return False

    @property
    @abstractmethod
    def peer_address(self) -> tuple[str, int]:
        """Address of the peer now (it may change by migration)."""

    @property
    @abstractmethod
    def local_address(self) -> tuple[str, int]:
        """Our own address now."""

    @property
    @abstractmethod
    def is_closed(self) -> bool:
        """Whether :attr:`closed` is done."""

    @property
    def max_datagram_size(self) -> int | None:
        """Bytes that one datagram may carry now; None where none can be sent (RFC 9221 section 3)."""
        return None

    @property
    def datagram_frames(self) -> DatagramCounters | None:
        """What became of datagrams; None where there are none."""
        return None

    def send_datagram(self, data: bytes) -> bool:
        """Send a datagram (QUIC only): see :meth:`mqttquic_lab.quic.datagrams.DatagramQueue.send`."""
        raise UsageError(f"{self.transport.upper()} has no datagrams, only QUIC has (RFC 9221): write to the stream")

    async def datagram_room(self) -> None:
        """Wait until a datagram can be sent without being dropped, or the connection has ended (QUIC only)."""
        return

    @abstractmethod
    def refresh_report(self) -> HandshakeReport:
        """Bring :attr:`report` up to date and return it."""

    async def migrate(
        self, local: tuple[str, int] | str | None = None, *, force: bool = False, timeout: float | None = 5.0
    ) -> MigrationResult:
        """Go on from another local address (QUIC only): see :meth:`mqttquic_lab.quic.movable.Movable.migrate`."""
        raise UsageError(f"{_BOUND[self.transport]}: only a session over QUIC can migrate (quic://)")

    async def rebind(self, *, timeout: float | None = 5.0) -> MigrationResult:
        """Go on from another port (QUIC only): see :meth:`mqttquic_lab.quic.movable.Movable.rebind`."""
        raise UsageError(f"{_BOUND[self.transport]}: only a session over QUIC can change its port (quic://)")

    async def update_keys(self, timeout: float | None = 5.0) -> int:
        """Update the packet protection keys (QUIC only): see :meth:`QuicConnection.update_keys`."""
        raise UsageError(f"only QUIC updates its keys on demand, and this connection is over {self.transport.upper()}")

    @abstractmethod
    async def close(self, error_code: int = 0, reason: str = "") -> None:
        """Flush what was written (bounded, 1 s), close in order, release sockets and timers. Safe to repeat."""

    @abstractmethod
    def abort(self, reason: str = "") -> None:
        """Close at once without flushing. Safe to repeat."""


class Listener(ABC):
    """What accepts connections of one transport on one port.

    Attributes
    ----------
    transport : str
        ``"quic"``, ``"tls"`` or ``"tcp"``.
    host : str
        As it was asked for.
    port : int
        The port really bound.
    refused : int
        Connections turned away because there were too many.
    failed : int
        Connections that ended in the handshake.
    """

    transport: TransportName
    host: str
    port: int
    refused: int = 0
    failed: int = 0

    @property
    @abstractmethod
    def connections(self) -> Collection[Connection]:
        """Connections accepted and not yet closed."""

    @abstractmethod
    async def close(self) -> None:
        """Stop listening, close every connection and wait for that. Safe to repeat."""
