"""The facts of one handshake: filled by the transport and the session, drawn by the views.

Plain data without behaviour beyond :meth:`HandshakeReport.to_dict`; every time is in seconds after the first packet
(or SYN) left, every size in bytes.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class CertificateInfo:
    """One X.509 certificate, as far as a person looks at it (RFC 5280)."""

    subject: str
    """Distinguished name, RFC 4514 text."""
    issuer: str
    """Distinguished name of the issuer."""
    serial_number: str
    """Hexadecimal."""
    not_before: dt.datetime
    """Start of validity, UTC."""
    not_after: dt.datetime
    """End of validity, UTC."""
    names: tuple[str, ...]
    """Subject alternative names: DNS names and IP addresses."""
    key_type: str
    """``"RSA 2048"``, ``"EC secp256r1"``, ``"Ed25519"``."""
    signature_algorithm: str
    """Algorithm that signed this certificate, such as ``"sha256WithRSAEncryption"``."""
    is_ca: bool
    """basicConstraints says CA."""
    fingerprint_sha256: str
    """SHA-256 of the DER form, hexadecimal."""
    pem: str
    """The certificate itself."""


@dataclass(frozen=True, slots=True)
class RttInfo:
    """Round-trip time estimates in seconds (RFC 9002 section 5)."""

    latest: float
    minimum: float
    smoothed: float
    variance: float


@dataclass(frozen=True, slots=True)
class Flight:
    """One arrow of the ladder: what one side sent before it had to wait for the other."""

    sender: Literal["client", "server"]
    start: float
    """When its first byte left (or, for the server's flights as the client sees them, arrived), seconds."""
    end: float
    """When its last byte left or arrived, seconds."""
    packets: tuple[str, ...]
    """QUIC packet types in it: ``"Initial"``, ``"0-RTT"``, ``"Handshake"``, ``"1-RTT"``, ``"Retry"``."""
    content: tuple[str, ...]
    """TLS messages and MQTT packets in it, in order: ``"ClientHello"``, ``"CONNECT"``."""


@dataclass(frozen=True, slots=True)
class TicketInfo:
    """A session ticket received (RFC 8446 section 4.6.1); never the ticket itself."""

    lifetime: int
    """Seconds."""
    max_early_data: int
    """Bytes of 0-RTT data it allows (QUIC: 0 or 0xffffffff, RFC 9001 section 4.6.1)."""


@dataclass(slots=True)
class HandshakeReport:
    """Everything known about how a session came about.

    ``None`` means "not known" or "does not apply to this transport"; :attr:`transport` says which.
    """

    url: str = ""
    transport: Literal["quic", "tls", "tcp"] = "quic"
    state: str = "connecting"
    """``"connecting"``, ``"connected"``, ``"failed"`` or ``"closed"``."""
    error: str | None = None
    """Why it failed or closed, one sentence."""
    local_address: tuple[str, int] | None = None
    peer_address: tuple[str, int] | None = None

    quic_version: str | None = None
    """``"QUIC v1"`` (RFC 9000), ``"QUIC v2"`` (RFC 9369)."""
    tls_version: str | None = None
    """``"TLS 1.3"``."""
    alpn: str | None = None
    offered_alpn: tuple[str, ...] = ()
    cipher_suite: str | None = None
    """IANA name, ``"TLS_AES_256_GCM_SHA384"``."""
    key_exchange_group: str | None = None
    """``"X25519"``, ``"SECP256R1"``."""
    key_exchange_bits: int | None = None
    signature_algorithm: str | None = None
    """Of CertificateVerify: ``"rsa_pss_rsae_sha256"``."""
    server_name: str | None = None
    """SNI that we sent."""

    certificates: tuple[CertificateInfo, ...] = ()
    """Chain as presented, leaf first; empty on resumption."""
    verified_chain: tuple[CertificateInfo, ...] = ()
    """Chain as verified, leaf first, trust anchor last."""
    verification: Literal["verified", "failed", "off", "resumed", "none"] = "none"
    """``"off"``: the user switched it off. ``"resumed"``: proven by the ticket of a verified session."""
    verification_detail: str = ""
    """One sentence: what was checked against what, or why it failed."""

    resumed: bool = False
    early_data: Literal["accepted", "rejected", "not offered"] = "not offered"
    retry: bool = False
    version_negotiated: bool = False
    """Another QUIC version is in use than the client's first packet had."""
    first_quic_version: str | None = None
    """Version of the client's first packet."""
    offered_quic_versions: tuple[str, ...] = ()
    """Versions the client speaks, most wanted first."""
    tickets: tuple[TicketInfo, ...] = ()
    local_transport_parameters: dict[str, Any] = field(default_factory=dict)
    """RFC 9000 section 18.2 names -> values."""
    remote_transport_parameters: dict[str, Any] = field(default_factory=dict)

    timings: dict[str, float] = field(default_factory=dict)
    """Milestone -> seconds after the first packet: ``"client_hello"`` (0.0), ``"server_hello"``,
    ``"handshake_complete"``, ``"handshake_confirmed"``, ``"connect_sent"``, ``"auth_received"`` and
    ``"auth_sent"`` (the last ones), ``"connack"``."""
    flights: tuple[Flight, ...] = ()
    """Up to and including the one with CONNACK."""
    round_trips: int | None = None
    """Round trips from the first packet to CONNACK, counted in flights (not a division of times)."""
    rtt: RttInfo | None = None
    congestion_control: str | None = None
    """``"newreno"``, ``"cubic"``, or the name it was registered by."""
    idle_timeout: float | None = None
    """Seconds without a packet after which the connection ends: the smaller of both sides' (RFC 9000 section 10.1)."""
    key_phase: int | None = None
    """Key phase in use, 0 or 1 (RFC 9001 section 6)."""
    key_updates: int = 0
    """Key updates so far, by either side."""
    closed_with: str | None = None
    """Who closed the QUIC connection, with which code and reason."""

    mqtt_version: str | None = None
    """``"5.0"`` or ``"3.1.1"``."""
    client_id: str | None = None
    session_present: bool | None = None
    reason_code: int | None = None
    """Of CONNACK."""
    connack_properties: dict[str, Any] = field(default_factory=dict)
    """Broker limits in MQTT 5.0's property names (snake case)."""
    connect_fields: tuple[tuple[str, int, int, Any], ...] = ()
    """X-ray of CONNECT: (field, start, end, value); secrets replaced by a placeholder."""
    connack_fields: tuple[tuple[str, int, int, Any], ...] = ()

    fallback_reason: str | None = None
    """Why QUIC was not used although it was asked for."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON-able data: bytes as hex, dates as ISO 8601."""
        result: dict[str, Any] = _plain(self)
        return result


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
