"""What a handshake report says, in words: the one source of card, text twin, line and frame.

Whatever is decided here (what is a warning, what "0-RTT next time" answers, which limits are worth a line) is the same
for eyes, screen readers and ``grep``.
"""

from __future__ import annotations

import datetime as dt
import re
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mqttquic_lab.mqtt.reason_codes import reason_text
from mqttquic_lab.views import quantities as q
from mqttquic_lab.views.html import Chip, Notice

if TYPE_CHECKING:
    from mqttquic_lab.records.handshake import CertificateInfo, Flight, HandshakeReport
    from mqttquic_lab.views.html import Kind

STATES: dict[str, tuple[str, Kind]] = {
    "connecting": ("connecting", "warn"),
    "connected": ("connected", "ok"),
    "reconnecting": ("reconnecting", "warn"),
    "failed": ("failed", "bad"),
    "closed": ("closed", "muted"),
}
"""State -> (word, colour); an unknown state is shown as it is."""

VERIFICATION: dict[str, tuple[str, Kind]] = {
    "verified": ("verified", "ok"),
    "resumed": ("verified by ticket", "ok"),
    "off": ("verification off", "bad"),
    "failed": ("certificate refused", "bad"),
}

_LIMITS: dict[str, tuple[str, str]] = {
    "server_keep_alive": ("keep-alive", "s"),
    "session_expiry_interval": ("session expires after", "s"),
    "receive_maximum": ("receive max", ""),
    "maximum_packet_size": ("packet max", "bytes"),
    "topic_alias_maximum": ("topic aliases", ""),
    "maximum_qos": ("QoS max", ""),
}
_FEATURES = {
    "retain_available": "retain",
    "wildcard_subscription_available": "wildcards",
    "subscription_identifier_available": "subscription ids",
    "shared_subscription_available": "shared subscriptions",
}

_PARAMETER_UNITS = {
    "max_idle_timeout": "ms",
    "max_ack_delay": "ms",
    "max_udp_payload_size": "bytes",
    "initial_max_data": "bytes",
    "initial_max_stream_data_bidi_local": "bytes",
    "initial_max_stream_data_bidi_remote": "bytes",
    "initial_max_stream_data_uni": "bytes",
    "max_datagram_frame_size": "bytes",
}
"""Units on the wire, RFC 9000 section 18.2 and RFC 9221 section 3."""

_COMMON_NAME = re.compile(r"(?:^|,)\s*CN=((?:\\.|[^,\\])*)", re.IGNORECASE)

_MILESTONES = {
    "tcp_connected": "TCP connected",
    "client_hello": "ClientHello sent",
    "server_hello": "ServerHello received",
    "handshake_complete": "handshake complete",
    "handshake_confirmed": "handshake confirmed",
    "connect_sent": "CONNECT sent",
    "auth_received": "AUTH received",
    "auth_sent": "AUTH sent",
    "connack": "CONNACK received",
}


def state(report: HandshakeReport) -> tuple[str, Kind]:
    """Return the state's word and colour."""
    return STATES.get(report.state, (report.state, "muted"))


def transport(report: HandshakeReport) -> Chip:
    """Return what really carries the bytes."""
    if report.transport == "quic":
        return Chip(report.quic_version or "QUIC", "", "UDP carries these packets")
    if report.transport == "tls":
        return Chip("TLS over TCP", "warn" if report.fallback_reason else "", "not QUIC: one TCP connection")
    return Chip("plain TCP", "bad", "not QUIC, and not encrypted")


def beginning(report: HandshakeReport) -> Chip | None:
    """Return how the session began: a full handshake, a resumed one, with early data."""
    if report.transport == "tcp" or report.tls_version is None:
        return None
    if report.early_data == "accepted":
        return Chip("0-RTT", "ok", "CONNECT travelled in the first packets, and the broker took it")
    if report.early_data == "rejected":
        return Chip("0-RTT rejected", "warn", "the broker did not take the early data; it was sent again")
    if report.resumed:
        return Chip("resumed", "", "a ticket of an earlier session stood in for certificates")
    return Chip("full handshake", "", "no ticket of an earlier session was used")


def chips(report: HandshakeReport) -> list[Chip]:
    """Return the words that matter at first glance."""
    found = [transport(report)]
    if report.tls_version:
        found.append(Chip(report.tls_version))
    if report.alpn:
        found.append(Chip(f"ALPN {report.alpn}", "", "application protocol agreed on (RFC 7301)"))
    if report.verification in VERIFICATION:
        word, kind = VERIFICATION[report.verification]
        found.append(Chip(word, kind, report.verification_detail))
    begun = beginning(report)
    if begun:
        found.append(begun)
    if report.retry:
        found.append(Chip("Retry", "warn", "the broker asked to prove the address first: one round trip more"))
    if report.version_negotiated:
        offered = report.first_quic_version or "another version"
        found.append(Chip("version negotiated", "warn", f"the client's first packet was of {offered}"))
    if report.state != "connected":
        word, kind = state(report)
        found.append(Chip(word, kind))
    return found


def notices(report: HandshakeReport) -> list[Notice]:
    """Return what must not be missed, the worst first."""
    found = []
    if report.error:
        found.append(Notice(report.error, "bad" if report.state == "failed" else "warn"))
    elif report.state == "failed":
        found.append(Notice("The connection failed; no reason is known.", "bad"))
    if report.verification == "off":
        found.append(
            Notice("Verification is off: whoever answers at this address is believed to be the broker.", "bad")
        )
    elif report.verification == "failed" and report.verification_detail:
        found.append(Notice(f"Certificate refused: {report.verification_detail}", "bad"))
    if report.transport == "tcp":
        found.append(Notice("Nothing is encrypted: everybody on the path can read and change this session.", "bad"))
    if report.fallback_reason:
        carrier = "TLS over TCP" if report.transport == "tls" else "plain TCP"
        found.append(Notice(f"QUIC was asked for, {carrier} is in use: {report.fallback_reason}", "warn"))
    return found


def headline(report: HandshakeReport) -> str:
    """Return the one number that answers "how long": time and round trips to CONNACK."""
    if report.timings.get("connack") is not None:
        took = q.milliseconds(report.timings["connack"])
        if report.round_trips is None:
            return f"{took} to CONNACK"
        return f"{took} · {q.plural(report.round_trips, 'round trip')} to CONNACK"
    if report.state == "connecting":
        return "no CONNACK yet"
    if report.timings:
        last = max(report.timings, key=lambda name: report.timings[name])
        return f"no CONNACK · got as far as {_MILESTONES.get(last, last)}"
    return "no answer"


def rows(report: HandshakeReport, now: dt.datetime) -> list[tuple[str, str]]:
    """Return the facts worth a line each, those that are known."""
    found: list[tuple[str, str | None]] = [
        ("cipher", report.cipher_suite),
        ("key exchange", key_exchange(report)),
        ("signature", signature(report)),
        ("certificate", certificate(report, now)),
        ("trust", trust(report)),
        ("RTT", rtt(report)),
        ("QUIC", quic(report)),
        ("0-RTT next time", early_data_next_time(report)),
        ("MQTT", mqtt(report)),
        ("broker limits", limits(report)),
        ("addresses", addresses(report)),
    ]
    return [(name, text) for name, text in found if text]


def key_exchange(report: HandshakeReport) -> str | None:
    """Return group and size, ``"X25519, 253 bits"``."""
    if report.key_exchange_group is None:
        return None
    bits = report.key_exchange_bits
    return f"{report.key_exchange_group}, {bits} bits" if bits else report.key_exchange_group


def signature(report: HandshakeReport) -> str | None:
    """Return the algorithm of CertificateVerify and the key behind it."""
    if report.signature_algorithm is None:
        return None
    key = f" (server key {report.certificates[0].key_type})" if report.certificates else ""
    return report.signature_algorithm + key


def common_name(name: str) -> str:
    """Return the CN of an RFC 4514 name, or the whole name if it has none."""
    found = _COMMON_NAME.search(name)
    return re.sub(r"\\(.)", r"\1", found[1]) if found else name or "(no name)"


def certificate(report: HandshakeReport, now: dt.datetime) -> str | None:
    """Return whom the leaf certificate names and how long it is valid."""
    if not report.certificates:
        return None
    leaf = report.certificates[0]
    name = common_name(leaf.subject) if leaf.subject else (leaf.names[0] if leaf.names else "(no name)")
    return f"{name} · {q.expiry(leaf.not_before, leaf.not_after, now)}"


def trust(report: HandshakeReport) -> str | None:
    """Return what was checked, or why nothing was."""
    if report.verification_detail:
        return report.verification_detail
    if report.verification == "off":
        return "not checked"
    if report.verified_chain:
        return f"chain of {len(report.verified_chain)} to {common_name(report.verified_chain[-1].subject)}"
    return None


def rtt(report: HandshakeReport) -> str | None:
    """Return the round-trip time estimates."""
    if report.rtt is None:
        return None
    values = report.rtt
    return (
        f"{q.milliseconds(values.minimum)} min · {q.milliseconds(values.smoothed)} smoothed · "
        f"{q.milliseconds(values.variance)} var"
    )


def quic(report: HandshakeReport) -> str | None:
    """Return what is in use beside the version: congestion controller, idle timeout, key phase after key updates."""
    parts = []
    if report.congestion_control is not None:
        parts.append(f"congestion control {report.congestion_control}")
    if report.idle_timeout is not None:
        parts.append(f"idle timeout {q.duration(report.idle_timeout)}")
    if report.key_updates:
        parts.append(f"key phase {report.key_phase}, {q.plural(report.key_updates, 'key update')}")
    if report.closed_with is not None:
        parts.append(report.closed_with)
    return " · ".join(parts) or None


def early_data_next_time(report: HandshakeReport) -> str | None:
    """Return whether the next connection may send early data, and why not."""
    if report.transport != "quic" or report.tls_version is None:
        return None
    if not report.tickets:
        return "no: the broker sent no session ticket" if report.state != "connecting" else None
    ticket = max(report.tickets, key=lambda ticket: ticket.max_early_data)
    if ticket.max_early_data == 0:
        return "no: ticket allows 0 bytes (broker setting)"
    return f"yes, for {q.duration(ticket.lifetime)}: the ticket allows early data"


def session(report: HandshakeReport) -> str:
    """Return tickets and their lifetime, ``"2 tickets, 7200 s"``."""
    if not report.tickets:
        return "no tickets"
    return f"{q.plural(len(report.tickets), 'ticket')}, {max(t.lifetime for t in report.tickets):,} s"


def mqtt(report: HandshakeReport) -> str | None:
    """Return version, client id, and what became of the session."""
    if report.mqtt_version is None:
        return None
    parts = [f"MQTT {report.mqtt_version}"]
    if report.reason_code is not None:
        parts.append(f"CONNACK 0x{report.reason_code:02x} {reason_text(report.reason_code)}")
    if method := report.connack_properties.get("authentication_method"):
        parts.append(f"authenticated by {method}")
    if report.session_present is not None:
        parts.append("session resumed" if report.session_present else "new session")
    if report.client_id is not None:
        parts.append(f"client id {report.client_id or '(empty)'}")
    return " · ".join(parts)


def limits(report: HandshakeReport) -> str | None:
    """Return what the broker said it allows, in CONNACK's properties."""
    properties = report.connack_properties
    parts = []
    for name, (words, unit) in _LIMITS.items():
        value = properties.get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if unit == "bytes":
            parts.append(f"{words} {q.byte_size(value)}")
        elif name == "session_expiry_interval" and value == 0xFFFFFFFF:
            parts.append("session never expires")
        else:
            parts.append(f"{words} {value:,}{' ' + unit if unit else ''}")
    parts += [f"no {words}" for name, words in _FEATURES.items() if name in properties and not properties[name]]
    if properties.get("reason_string"):
        parts.append(f"says: {properties['reason_string']}")
    return " · ".join(parts) or None


def addresses(report: HandshakeReport) -> str | None:
    """Return both ends, ``"127.0.0.1:50123 to 127.0.0.1:14567"``."""
    ends = [endpoint(address) for address in (report.local_address, report.peer_address) if address]
    return " to ".join(ends) or None


def endpoint(address: tuple[str, int]) -> str:
    """Return ``"host:port"``, IPv6 in brackets."""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def milestones(report: HandshakeReport) -> list[tuple[str, float]]:
    """Return (what happened, seconds after the first packet), in order of time."""
    found = sorted(report.timings.items(), key=lambda item: item[1])
    return [(_MILESTONES.get(name, name.replace("_", " ")), seconds) for name, seconds in found]


def parameter(name: str, value: Any) -> str:
    """Return a transport parameter with its unit."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).hex() or "(empty)"
    if isinstance(value, dict):
        return ", ".join(f"{key} {parameter(str(key), item)}" for key, item in value.items() if item is not None)
    if isinstance(value, (list, tuple)):
        return ", ".join(parameter(name, item) for item in value)
    unit = _PARAMETER_UNITS.get(name)
    if isinstance(value, int) and unit == "bytes":
        human = f" ({q.byte_size(value)})" if value >= 10_240 else ""
        return f"{value:,} B{human}"
    if isinstance(value, (int, float)):
        return f"{value:,}{' ' + unit if unit else ''}"
    return str(value) or "(empty)"


def parameters(report: HandshakeReport) -> list[tuple[str, str, str]]:
    """Return (name, ours, the broker's) of every transport parameter that either side sent."""
    ours, theirs = report.local_transport_parameters, report.remote_transport_parameters
    names = list(dict.fromkeys([*ours, *theirs]))
    return [(name, parameter(name, ours.get(name)), parameter(name, theirs.get(name))) for name in names]


def field_span(start: int, end: int) -> str:
    """Return the bytes a field takes, ``"2-7"``; nothing for an empty one."""
    if end <= start:
        return ""
    return f"{start}-{end - 1}" if end - start > 1 else f"{start}"


def field_value(value: Any) -> str:
    """Return the value of a packet's field as text; bytes in hexadecimal, the long ones cut."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        data = bytes(value)
        return data[:64].hex(" ") + (f" … ({len(data)} bytes)" if len(data) > 64 else "")
    return str(value) if value is not None and value != "" else "(empty)"


def ladder_flights(report: HandshakeReport) -> list[Flight]:
    """Return the flights with what matters of each message beside its name: ``ClientHello (ALPN mqtt)``."""
    offer = [f"SNI {report.server_name}"] if report.server_name else []
    offer += [f"ALPN {', '.join(report.offered_alpn)}"] if report.offered_alpn else []
    added = {
        "ClientHello": f" ({', '.join(offer)})" if offer else "",
        "Certificate": f" \u00d7{len(report.certificates)}" if len(report.certificates) > 1 else "",
        "CONNACK": f" 0x{report.reason_code:02x}" if report.reason_code is not None else "",
    }
    flights = []
    for flight in report.flights:
        counted = Counter(flight.content)
        content = tuple(
            name + added.get(name, "") + (f" \u00d7{times}" if times > 1 else "") for name, times in counted.items()
        )
        flights.append(replace(flight, content=content))
    return flights


def certificate_facts(info: CertificateInfo, now: dt.datetime) -> list[tuple[str, str]]:
    """Return what one certificate says, in rows."""
    return [
        ("subject", info.subject or "(empty)"),
        ("issuer", info.issuer or "(empty)"),
        ("valid", f"{q.date(info.not_before)} to {q.date(info.not_after)}"),
        ("now", q.expiry(info.not_before, info.not_after, now)),
        ("key", info.key_type),
        ("signed with", info.signature_algorithm),
        ("names", ", ".join(info.names) or "(none)"),
        ("serial number", info.serial_number),
        ("SHA-256", info.fingerprint_sha256),
        ("CA", "yes" if info.is_ca else "no"),
    ]


def line(report: HandshakeReport) -> str:
    """Return the handshake in one line, without its URL."""
    word, _ = state(report)
    parts = [word, *(item.text for item in chips(report) if item.text != word), headline(report)]
    return ", ".join(part.replace(" · ", ", ") for part in parts)


def moment(time_ns: int) -> dt.datetime:
    """Return nanoseconds since the epoch as a datetime."""
    return dt.datetime.fromtimestamp(time_ns // 1_000_000_000, dt.UTC)


def utc_now() -> dt.datetime:
    """Return the present, for validity periods."""
    return dt.datetime.now(dt.UTC)
