"""Fills the handshake report of a QUIC connection from the engine's facts."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import certifi
from aioquic import tls
from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # public, but not in its __all__
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import crypto

from mqttquic_lab.net.certificates import chain_info
from mqttquic_lab.quic import private
from mqttquic_lab.records.handshake import TicketInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aioquic.quic.packet import QuicTransportParameters

    from mqttquic_lab.net.certificates import Trust
    from mqttquic_lab.quic.private import Engine
    from mqttquic_lab.records.handshake import HandshakeReport

_GROUP_BITS = {
    tls.Group.X25519: 253,
    tls.Group.X448: 448,
    tls.Group.SECP256R1: 256,
    tls.Group.SECP384R1: 384,
    tls.Group.SECP521R1: 521,
}
"""Size of the group's order in bits, as OpenSSL counts."""

HIDDEN = "(hidden)"
"""Stands for a value that could be used to attack the connection."""


def fill_handshake(report: HandshakeReport, engine: Engine) -> None:
    """Write what the handshake has settled so far; also useful after it failed."""
    version = private.version(engine)
    if version is not None:
        report.quic_version = version_name(version)
    suite = private.cipher_suite(engine)
    if suite is not None:
        report.tls_version = "TLS 1.3"
        report.cipher_suite = f"TLS_{suite.name}"
    report.retry = private.retried(engine)
    first = engine.first_version
    if first is not None:
        report.first_quic_version = version_name(first)
        report.version_negotiated = version is not None and version != first
    report.offered_quic_versions = tuple(version_name(v) for v in engine.configuration.supported_versions)
    for message in engine.transcript:
        _read_message(report, message.type, message.raw)
    for whose, field in (("local", "local_transport_parameters"), ("remote", "remote_transport_parameters")):
        parameters = private.transport_parameters(engine, "local" if whose == "local" else "remote")
        if parameters is not None:
            setattr(report, field, parameter_dict(parameters))


def fill_verification(
    report: HandshakeReport, engine: Engine, *, trust: Trust, name: str, failure: str | None = None
) -> None:
    """Write what the server presented, and what became of it (client side)."""
    presented = private.peer_chain(engine)
    report.certificates = chain_info(presented)
    if failure is not None:
        if presented and not private.server_identified(engine):
            report.verification, report.verification_detail = "failed", failure
        return
    if report.resumed:
        report.verification = "resumed"
        report.verification_detail = "resumed by a ticket of an earlier session; the server showed no certificate"
    elif not trust.verify:
        report.verification = "off"
        report.verification_detail = "not checked: verification was switched off, anybody could be the other end"
    elif presented:
        chain = verified_chain(presented, trust)
        report.verified_chain = chain_info(chain)
        anchor = report.verified_chain[-1].subject if chain else "an authority"
        report.verification = "verified"
        report.verification_detail = f"valid for {name!r} now; issued below {anchor!r}, trusted by {trust.describe()}"


def _read_message(report: HandshakeReport, kind: int, raw: bytes) -> None:
    """Read what aioquic parses and forgets."""
    try:
        if kind == tls.HandshakeType.SERVER_HELLO:
            share = tls.pull_server_hello(Buffer(data=raw)).key_share
            if share is not None:
                group = share[0]
                known = group in set(tls.Group)
                report.key_exchange_group = tls.Group(group).name if known else f"0x{group:04x}"
                report.key_exchange_bits = _GROUP_BITS.get(tls.Group(group)) if known else None
        elif kind == tls.HandshakeType.CERTIFICATE_VERIFY:
            algorithm = tls.pull_certificate_verify(Buffer(data=raw)).algorithm
            known = algorithm in set(tls.SignatureAlgorithm)
            report.signature_algorithm = (
                tls.SignatureAlgorithm(algorithm).name.lower() if known else f"0x{algorithm:04x}"
            )
        elif kind == tls.HandshakeType.CLIENT_HELLO:
            hello = tls.pull_client_hello(Buffer(data=raw))
            report.offered_alpn = tuple(hello.alpn_protocols or ())
            report.server_name = hello.server_name
    except (ValueError, tls.Alert):
        return  # malformed: the handshake fails by itself


def version_name(version: int) -> str:
    """Return ``"QUIC v1"`` for 1; a number in hexadecimal for an unknown version."""
    for known, name in private.VERSION_NAMES.items():
        if version == known:
            return name
    return f"QUIC 0x{version:08x}"


def parameter_dict(parameters: QuicTransportParameters) -> dict[str, Any]:
    """Return transport parameters by their RFC 9000 section 18.2 names.

    Connection ids become hexadecimal text, the stateless reset token a placeholder; times are in milliseconds as on
    the wire. Parameters that were not sent are left out.
    """
    result: dict[str, Any] = {}
    for name, value in vars(parameters).items():
        if value is None or name == "quantum_readiness":
            continue
        if name == "stateless_reset_token":
            result[name] = HIDDEN
        elif name == "preferred_address":
            result[name] = {"ipv4": value.ipv4_address, "ipv6": value.ipv6_address}
        elif name == "version_information":
            result[name] = {
                "chosen_version": version_name(value.chosen_version),
                "available_versions": [version_name(version) for version in value.available_versions],
            }
        else:
            result[name] = value.hex() if isinstance(value, bytes) else value
    return result


def ticket_info(ticket: tls.SessionTicket) -> TicketInfo:
    """Return the facts of a session ticket, without the ticket."""
    lifetime = ticket.not_valid_after - ticket.not_valid_before
    return TicketInfo(lifetime=int(lifetime.total_seconds()), max_early_data=ticket.max_early_data_size or 0)


# --- trust anchors


def anchors(trust: Trust) -> dict[str, Any]:
    """Return the trust anchors as ``QuicConfiguration`` takes them: ``cadata``, or the system's files.

    Raises
    ------
    UsageError
        The CA file cannot be read, or holds no certificate.
    """
    pem = trust.anchors_pem()
    if pem is not None:
        # Parsed and written again: aioquic splits at lines, and files have comments and CRLF.
        certificates = x509.load_pem_x509_certificates(pem)
        return {"cadata": b"".join(_pem(certificate) for certificate in certificates)}
    paths = ssl.get_default_verify_paths()
    file = paths.cafile if paths.cafile and Path(paths.cafile).is_file() else None
    folder = paths.capath if paths.capath and Path(paths.capath).is_dir() else None
    if file is None and folder is None:
        file = certifi.where()  # no OpenSSL-style store (Windows, macOS): Mozilla's list, which aioquic brings
    return {"cafile": file, "capath": None if file else folder}


def verified_chain(presented: Sequence[x509.Certificate], trust: Trust) -> list[x509.Certificate]:
    """Build the path from the leaf to the trust anchor once more (aioquic throws it away); empty if there is none."""
    store = crypto.X509Store()
    found = anchors(trust)
    if "cadata" in found:
        for anchor in x509.load_pem_x509_certificates(found["cadata"]):
            store.add_cert(crypto.X509.from_cryptography(anchor))
    else:
        store.load_locations(found["cafile"], found["capath"])
    leaf, *rest = (crypto.X509.from_cryptography(certificate) for certificate in presented)
    try:
        chain = crypto.X509StoreContext(store, leaf, rest).get_verified_chain()
    except crypto.X509StoreContextError:
        return []
    return [certificate.to_cryptography() for certificate in chain]


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)
