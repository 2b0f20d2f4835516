"""The handshake as text: for terminals, screen readers and ``grep``.

The order of facts is that of ``openssl s_client``, which people know; below it stands what that tool cannot say:
timings, flights, transport parameters, and what the broker answered. Everything from the network passes through
:func:`mqttquic_lab.views.html.visible`: a certificate must not drive the terminal.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING

from mqttquic_lab.views import facts
from mqttquic_lab.views import quantities as q
from mqttquic_lab.views.html import shorten, visible

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mqttquic_lab.records.handshake import CertificateInfo, HandshakeReport

_LINE = 400
_MOST = 200
_RULE = "---"
_OK = {"verified", "resumed"}


def handshake_line(report: HandshakeReport) -> str:
    """Return the handshake in one line, for reprs and logs."""
    return shorten(f"{report.url or '(no address)'}: {facts.line(report)}", _LINE)


def handshake_text(report: HandshakeReport, *, now: dt.datetime | None = None, pem: bool = True) -> str:
    """Return everything the report knows, as text.

    Parameters
    ----------
    report : HandshakeReport
    now : datetime, optional
        The present, for "expires in 128 days"; default the clock's.
    pem : bool
        Include the server's certificate itself.
    """
    now = now or facts.utc_now()
    blocks = [
        _connection(report),
        _chain(report),
        _server_certificate(report, pem=pem),
        _key_exchange(report),
        _verification(report, now),
        _agreed(report),
        _tickets(report),
        _timings(report),
        _parameters(report),
        _mqtt(report),
    ]
    lines: list[str] = []
    for block in blocks:
        found = [shorten(line, _LINE) for line in block]
        if found:
            lines += [*found, _RULE]
    return "\n".join(lines[:-1])


def _connection(report: HandshakeReport) -> Iterable[str]:
    word, _ = facts.state(report)
    yield f"{report.url or '(no address)'}  [{word}]"
    yield facts.headline(report)
    yield f"In short: {', '.join(item.text for item in facts.chips(report))}"
    for item in facts.notices(report):
        yield f"! {item.text}"
    if report.local_address:
        yield f"From: {facts.endpoint(report.local_address)}"
    if report.peer_address:
        yield f"Connected to: {facts.endpoint(report.peer_address)}"
    if report.server_name:
        yield f"Server name (SNI): {report.server_name}"


def _chain(report: HandshakeReport) -> Iterable[str]:
    if not report.certificates:
        return
    yield "Certificate chain"
    for depth, info in enumerate(report.certificates[:_MOST]):
        yield from _certificate(depth, info)
    if report.verified_chain:
        yield "Verified up to"
        yield from _certificate(len(report.verified_chain) - 1, report.verified_chain[-1])


def _certificate(depth: int, info: CertificateInfo) -> Iterable[str]:
    # s, i, a, v: subject, issuer, algorithms, validity.
    yield f"{depth:2} s:{info.subject or '(empty)'}"
    yield f"   i:{info.issuer or '(empty)'}"
    yield f"   a:PKEY: {_key(info.key_type)}; sigalg: {info.signature_algorithm}"
    yield f"   v:NotBefore: {_gmt(info.not_before)}; NotAfter: {_gmt(info.not_after)}"
    if info.names:
        yield f"   names: {', '.join(info.names)}"
    yield f"   SHA-256: {info.fingerprint_sha256}"


def _key(key_type: str) -> str:
    kind, _, bits = key_type.partition(" ")
    return f"{kind}, {bits} (bit)" if bits.isdigit() else key_type


def _gmt(moment: dt.datetime) -> str:
    utc = moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)
    month = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")[utc.month - 1]
    return f"{month} {utc.day} {utc:%H:%M:%S} {utc.year} GMT"


def _server_certificate(report: HandshakeReport, *, pem: bool) -> Iterable[str]:
    if not report.certificates:
        return
    leaf = report.certificates[0]
    yield "Server certificate"
    if pem:
        yield from (visible(line) for line in leaf.pem[:16_000].splitlines())
    yield f"subject={leaf.subject}"
    yield f"issuer={leaf.issuer}"


def _key_exchange(report: HandshakeReport) -> Iterable[str]:
    if report.signature_algorithm:
        digest = re.search(r"sha\d+", report.signature_algorithm, re.IGNORECASE)
        if digest:
            yield f"Peer signing digest: {digest[0].upper()}"
        yield f"Peer signature type: {report.signature_algorithm}"
    exchange = facts.key_exchange(report)
    if exchange:
        yield f"Peer Temp Key: {exchange}"


def _verification(report: HandshakeReport, now: dt.datetime) -> Iterable[str]:
    if report.verification in _OK:
        yield "Verification: OK"
    elif report.verification == "off":
        yield "Verification: OFF (not checked, switched off by the user)"
    elif report.verification == "failed":
        yield "Verification: FAILED"
    elif report.transport == "tcp":
        yield "Verification: none (TCP has no certificates)"
    else:
        yield "Verification: none (the handshake did not get that far)"
    if report.verification_detail:
        yield f"Verified: {report.verification_detail}" if report.verification in _OK else report.verification_detail
    validity = facts.certificate(report, now)
    if validity:
        yield f"Certificate: {validity}"


def _agreed(report: HandshakeReport) -> Iterable[str]:
    if report.tls_version:
        kind = "Reused" if report.resumed else "New"
        cipher = report.cipher_suite or "(unknown)"
        yield f"{kind}, {report.tls_version.replace(' ', 'v', 1)}, Cipher is {cipher}"
    transport = facts.transport(report).text
    yield f"Protocol: {transport.replace(' ', '', 1) if report.transport == 'quic' else transport}"
    if report.certificates:
        yield f"Server public key: {report.certificates[0].key_type}"
    if report.alpn:
        yield f"ALPN protocol: {report.alpn}"
    elif report.offered_alpn:
        yield "No ALPN negotiated"
    if report.offered_alpn:
        yield f"ALPN offered: {', '.join(report.offered_alpn)}"
    begun = facts.beginning(report)
    if begun:
        yield f"Handshake: {begun.text} ({begun.title})"
    if report.tls_version and report.transport == "quic":
        yield f"Early data: {report.early_data}"
        yield f"Retry: {'yes' if report.retry else 'no'}"
        yield f"Version negotiation: {'yes' if report.version_negotiated else 'no'}"
    in_use = facts.quic(report)
    if in_use:
        yield f"QUIC: {in_use}"


def _tickets(report: HandshakeReport) -> Iterable[str]:
    if not report.tls_version:
        return
    yield f"Session: {facts.session(report)}"
    for ticket in report.tickets[:_MOST]:
        yield f"    Timeout: {ticket.lifetime} (sec)"
        yield f"    Max Early Data: {ticket.max_early_data}"
    next_time = facts.early_data_next_time(report)
    if next_time:
        yield f"0-RTT next time: {next_time}"


def _timings(report: HandshakeReport) -> Iterable[str]:
    rows = facts.milestones(report)
    if rows:
        yield "Timings after the first packet"
        yield from (f"    {q.milliseconds(seconds):>9}  {shorten(what, 60)}" for what, seconds in rows[:_MOST])
    flights = facts.ladder_flights(report)
    if flights:
        yield "Flights"
    for flight in flights[:_MOST]:
        client = flight.sender == "client"
        arrow = "client -> broker" if client else "client <- broker"
        when = q.milliseconds(flight.start if client else flight.end)
        parts = (" + ".join(flight.packets), ", ".join(flight.content))
        yield f"    {when:>9}  {arrow}  {': '.join(part for part in parts if part)}"
    estimates = facts.rtt(report)
    if estimates:
        yield f"RTT: {estimates}"


def _parameters(report: HandshakeReport) -> Iterable[str]:
    rows = facts.parameters(report)
    if rows:
        yield f"{'Transport parameters':40} {'client':26} broker"
    for name, ours, theirs in rows[:_MOST]:
        yield f"    {shorten(name, 60):36} {shorten(ours, 100) or 'not sent':26} {shorten(theirs, 100) or 'not sent'}"


def _mqtt(report: HandshakeReport) -> Iterable[str]:
    said = facts.mqtt(report)
    if said:
        yield said
    allowed = facts.limits(report)
    if allowed:
        yield f"Broker limits: {allowed}"
    for name, fields in (("CONNECT", report.connect_fields), ("CONNACK", report.connack_fields)):
        if fields:
            yield f"{name}, {q.plural(max(end for _, _, end, _ in fields), 'byte')}"
        for field, start, end, value in fields[:_MOST]:
            words = shorten(field.replace("_", " "), 60)
            yield f"    {facts.field_span(start, end):>9}  {words:30} {shorten(facts.field_value(value))}"
