"""MQTT's part of the handshake report: what CONNECT asked, what CONNACK answered, and when.

The transport has filled its part by then. CONNECT leaves together with the client's last handshake flight where there
is one (TLS and QUIC: beside Finished), so it costs a round trip of its own but no further wait.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mqttquic_lab.mqtt import PacketDecoder
from mqttquic_lab.records.handshake import Flight
from mqttquic_lab.session.options import VERSION_NAMES

if TYPE_CHECKING:
    from mqttquic_lab.mqtt import ConnAck, Packet, Version
    from mqttquic_lab.net.stream import Connection
    from mqttquic_lab.records.handshake import HandshakeReport

SECRET_FIELDS = ("password", "authentication_data")
PLACEHOLDER = "(hidden)"


class ReportFiller:
    """Completes the report of one connection, step by step as CONNECT and CONNACK pass."""

    def __init__(self, connection: Connection, version: Version) -> None:
        self._connection = connection
        self._version = version
        self._connect_flight = 0

    @property
    def report(self) -> HandshakeReport:
        """The report itself."""
        return self._connection.report

    def connect_sent(self, data: bytes, client_id: str) -> None:
        """Note that CONNECT, encoded as `data`, was just handed to the transport."""
        report = self.report
        flights = report.flights
        # With an open client flight at the end, CONNECT travels in it; else it begins one of its own.
        is_open = bool(flights) and flights[-1].sender == "client"
        self._connect_flight = len(flights) - 1 if is_open else len(flights)
        self._connection.mark("connect_sent", "CONNECT")
        self.connect_told(data, client_id)

    def connect_told(self, data: bytes, client_id: str) -> None:
        """Note what CONNECT said, however it was sent."""
        report = self.report
        report.mqtt_version = VERSION_NAMES[self._version]
        report.client_id = client_id
        decoder = PacketDecoder(self._version, receiver="server")
        report.connect_fields = packet_fields(decoder.feed(data)[0])

    def connack_received(self, packet: ConnAck, client_id: str) -> None:
        """Note the broker's answer; the report is whole then, unless the connection is refused."""
        self._connection.mark("connack", "CONNACK", sender="server")
        report = self._connection.refresh_report()
        report.client_id = client_id
        report.session_present = bool(packet.session_present)
        report.reason_code = int(packet.reason_code)
        report.connack_properties = plain_properties(packet.properties)
        report.connack_fields = packet_fields(packet)
        report.flights = self._flights(report)
        report.round_trips = sum(flight.sender == "server" for flight in report.flights)

    def _flights(self, report: HandshakeReport) -> tuple[Flight, ...]:
        """Return the ladder up to CONNACK, whose two packets are named in it."""
        flights = list(report.flights)
        named = {name for flight in flights for name in flight.content}
        sent, answered = report.timings.get("connect_sent", 0.0), report.timings.get("connack", 0.0)
        packets = ("1-RTT",) if report.transport == "quic" else ()
        place = self._connect_flight
        while place < len(flights) and flights[place].sender != "client":
            place += 1
        if "CONNECT" not in named:
            if place == len(flights):
                flights.append(Flight("client", sent, sent, packets, ()))
            flights[place] = _with(flights[place], "CONNECT", packets, sent)
        if "CONNACK" not in named:
            answer = place + 1
            while answer < len(flights) and flights[answer].sender != "server":
                answer += 1
            if answer == len(flights):
                flights.append(Flight("server", answered, answered, packets, ()))
            flights[answer] = _with(flights[answer], "CONNACK", packets, answered)
            del flights[answer + 1 :]  # what followed is no part of the handshake
        return tuple(flights)


def _with(flight: Flight, content: str, packets: tuple[str, ...], time: float) -> Flight:
    more = tuple(packet for packet in packets if packet not in flight.packets)
    return replace(
        flight,
        content=(*flight.content, content),
        packets=flight.packets + more,
        start=min(flight.start, time),
        end=max(flight.end, time),
    )


def packet_fields(packet: Packet) -> tuple[tuple[str, int, int, Any], ...]:
    """Return a packet's field map as (field, start, end, value), secrets replaced."""
    return tuple(
        (field.name, field.start, field.end, PLACEHOLDER if field.name in SECRET_FIELDS else field.value)
        for field in packet.fields()
    )


def plain_properties(properties: Any) -> dict[str, Any]:
    """Return properties as a dict of the caller's own, authentication data replaced."""
    return {name: PLACEHOLDER if name in SECRET_FIELDS else value for name, value in properties.items()}
