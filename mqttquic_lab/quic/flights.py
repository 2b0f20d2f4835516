"""The ladder of a handshake: which side sent what before it had to wait for the other.

Packets of the two directions overlap on the wire (an acknowledgement of the first half of a flight leaves before its
second half arrives), so flights are not told apart by time but by cause: a ServerHello answers the ClientHello before
it, the client's Finished answers the server's, HANDSHAKE_DONE and session tickets answer the client's Finished
(RFC 8446 section 2, RFC 9001 section 4), and application data answers the application data that was sent before it,
unless it was written before that came: what needs many packets, or is sent again after a loss, is one flight. Packets
that carry acknowledgements only belong to no flight.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mqttquic_lab.records.handshake import Flight

if TYPE_CHECKING:
    from collections.abc import Iterable

Side = Literal["client", "server"]

MAX_FLIGHTS = 32
"""Kept per connection; a handshake with its MQTT packets has four, or six after a Retry."""

MAX_PACKETS = 256
"""Packets looked at per connection, for a layer above that never says that its handshake is over."""

PACKET_TYPES = {
    "initial": "Initial",
    "0RTT": "0-RTT",
    "handshake": "Handshake",
    "1RTT": "1-RTT",
    "retry": "Retry",
    "version_negotiation": "Version Negotiation",
}
"""qlog's names of packet types -> RFC 9000's."""

TLS_MESSAGES = {
    1: "ClientHello",
    2: "ServerHello",
    4: "NewSessionTicket",
    5: "EndOfEarlyData",
    8: "EncryptedExtensions",
    11: "Certificate",
    13: "CertificateRequest",
    15: "CertificateVerify",
    20: "Finished",
    24: "KeyUpdate",
    25: "CompressedCertificate",
}
"""TLS HandshakeType -> the name in RFC 8446 section 4."""


def message_name(message_type: int) -> str:
    """Return the name of a TLS HandshakeType."""
    return TLS_MESSAGES.get(message_type, f"TLS message {message_type}")


@dataclass(slots=True, eq=False)
class _Open:
    """A flight that may still grow."""

    sender: Side
    start: float
    end: float
    packets: list[str] = field(default_factory=list)
    content: list[str] = field(default_factory=list)
    hello: bool = False
    """It holds the sender's handshake before its peer's Finished: ClientHello, Retry, ServerHello..Finished."""
    application: bool = False
    """It holds stream data, other than 0-RTT."""


class FlightRecorder:
    """Sorts packets and TLS messages of one connection into flights, in causal order.

    Feed it with :meth:`message`, :meth:`packet` and :meth:`content`; it stops by itself after :meth:`freeze`.
    """

    def __init__(self) -> None:
        self._flights: list[_Open] = []
        self._expected: dict[Side, list[str]] = {"client": [], "server": []}
        self._early: list[str] = []
        self._frozen = False
        self._packets = 0
        self._named: _Open | None = None
        self._answering: dict[Side, bool] = {}

    def message(self, sender: Side, message_type: int, time: float) -> None:
        """Record a TLS message (HandshakeType) that `sender` sent."""
        name = message_name(message_type)
        if self._frozen:
            return
        if name == "ClientHello":
            flight = self._hello("client", time)
            if name in flight.content:
                return  # sent again after a loss
        elif sender == "client" or name == "NewSessionTicket":
            flight = self._finish(sender, time)
        else:
            flight = self._hello("server", time)
        flight.content.append(name)

    def packet(self, sender: Side, packet_type: str, frames: Iterable[str], time: float) -> None:
        """Record a packet: qlog's name of its type and of its frames' types."""
        if self._frozen:
            return
        self._packets += 1
        if self._packets >= MAX_PACKETS:
            self._frozen = True
        kinds = set(frames)
        if packet_type in ("retry", "version_negotiation"):
            self.void_early_data()
            flight = self._add(sender, time)
            flight.hello = True
            flight.content.append(PACKET_TYPES[packet_type])
        elif "stream" in kinds:
            flight = self._application(sender, packet_type, time)
            peer: Side = "server" if sender == "client" else "client"
            if peer in self._answering and flight.application:
                self._answering[peer] = False
            if packet_type == "0RTT":
                self._early += self._expected[sender]
            self._fulfil(flight)
        elif "crypto" in kinds or "handshake_done" in kinds:
            before_finish = packet_type == "initial" or (packet_type == "handshake" and sender == "server")
            flight = (self._hello if before_finish else self._finish)(sender, time)
            if packet_type == "initial" and sender == "client" and "ClientHello" not in flight.content:
                flight.content.append("ClientHello")  # the same one again, after a Retry
        else:
            return
        if "handshake_done" in kinds and "HANDSHAKE_DONE" not in flight.content:
            flight.content.append("HANDSHAKE_DONE")
        name = PACKET_TYPES.get(packet_type, packet_type)
        if name not in flight.packets:
            flight.packets.append(name)
        flight.end = max(flight.end, time)

    def wrote(self, sender: Side) -> None:
        """Note that stream data was written by `sender`, of whom this is known because it is our side.

        Without new data after the peer's, later packets of that side go on with its flight.
        """
        if not self._frozen:
            self._answering[sender] = True

    def content(self, sender: Side, name: str, *, sent_already: bool) -> None:
        """Name what the stream data of `sender` is: ``"CONNECT"``.

        Parameters
        ----------
        sender : str
            Whose data.
        name : str
            What it is.
        sent_already : bool
            True for what has passed (it goes into that side's newest flight with stream data), False for what is
            about to be sent.
        """
        if self._frozen:
            return
        if sent_already:
            for flight in reversed(self._flights):
                if flight.sender == sender and flight.application:
                    flight.content.append(name)
                    self._named = flight
                    return
        self._expected[sender].append(name)

    def void_early_data(self) -> None:
        """Note that what was in 0-RTT packets is sent again: the server did not take it, or asked for a Retry."""
        self._expected["client"][:0] = self._early
        self._early.clear()

    def freeze(self) -> None:
        """Stop recording: the handshake's story is told, and ends with the flight named last by :meth:`content`."""
        self._frozen = True
        if self._named is not None:
            del self._flights[self._flights.index(self._named) + 1 :]

    @property
    def frozen(self) -> bool:
        """Whether :meth:`freeze` was called."""
        return self._frozen

    def flights(self, origin: float) -> tuple[Flight, ...]:
        """Return the flights so far, with times in seconds after `origin`."""
        return tuple(
            Flight(
                sender=flight.sender,
                start=max(0.0, flight.start - origin),
                end=max(0.0, flight.end - origin),
                packets=tuple(flight.packets),
                content=tuple(flight.content),
            )
            for flight in self._flights
        )

    def round_trips(self) -> int:
        """Return how often the client waited for the server so far: the number of the server's flights."""
        return sum(flight.sender == "server" for flight in self._flights)

    # --- which flight

    def _last(self) -> _Open | None:
        return self._flights[-1] if self._flights else None

    def _add(self, sender: Side, time: float) -> _Open:
        if len(self._flights) >= MAX_FLIGHTS:
            self._frozen = True
            return self._flights[-1]
        flight = _Open(sender, time, time)
        self._flights.append(flight)
        return flight

    def _hello(self, sender: Side, time: float) -> _Open:
        """Return the flight with this side's hello that answers the peer's newest."""
        for flight in reversed(self._flights):
            if flight.sender == sender and flight.hello:
                newest = flight
                break
        else:
            newest = None
        last = self._last()
        # A Retry or a Version Negotiation packet makes the client, and then the server, say hello again.
        answers = last is not None and last.sender != sender and last.hello
        if newest is None or answers:
            newest = self._add(sender, time)
            newest.hello = True
        return newest

    def _finish(self, sender: Side, time: float) -> _Open:
        """Return the flight that completes the handshake: the client's Finished, or what the server answers to it."""
        last = self._last()
        if last is not None and last.sender == sender and not last.hello:
            return last
        for flight in reversed(self._flights):
            if flight.sender == sender and not flight.hello:
                return flight
        return self._add(sender, time)

    def _application(self, sender: Side, packet_type: str, time: float) -> _Open:
        """Return the flight for a packet with stream data."""
        last = self._last()
        if sender == "client":
            if packet_type == "0RTT":
                return self._hello("client", time)
            if last is not None and last.sender == "server" and last.application and self._may_answer("client"):
                flight = self._add("client", time)
            else:
                flight = self._finish("client", time)
        elif not any(flight.sender == "client" and flight.application for flight in self._flights):
            # Half a round trip after the ClientHello: what 0-RTT data asked for (RFC 9001 section 4.1.4).
            flight = self._hello("server", time)
        elif last is not None and last.sender == "client" and last.application and self._may_answer("server"):
            flight = self._add("server", time)
        else:
            flight = self._finish("server", time)
        flight.application = True
        return flight

    def _may_answer(self, sender: Side) -> bool:
        """Whether `sender` has written anything since the peer's application data came, or it is not known."""
        return self._answering.get(sender, True)

    def _fulfil(self, flight: _Open) -> None:
        waiting = self._expected[flight.sender]
        if waiting:
            flight.content.extend(waiting)
            waiting.clear()
            self._named = flight
