"""The handshake card, its text twin and its frame: every state, the same facts, nothing unescaped."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.records.handshake import Flight, HandshakeReport, TicketInfo
from mqttquic_lab.views import facts
from mqttquic_lab.views.card import handshake_html
from mqttquic_lab.views.frame import handshake_frame
from mqttquic_lab.views.html import visible
from mqttquic_lab.views.text import handshake_line, handshake_text
from tests.helpers import samples
from tests.helpers.samples import NOW
from tests.views.markup import HIDDEN, check

if TYPE_CHECKING:
    from collections.abc import Callable

REPORTS: dict[str, Callable[[], HandshakeReport]] = {
    "quic": samples.quic_report,
    "early data": samples.early_report,
    "tls fallback": samples.tls_report,
    "tcp": samples.tcp_report,
    "failed": samples.failed_report,
    "empty": HandshakeReport,
    "verification off": lambda: samples.quic_report(verification="off", verification_detail="", verified_chain=()),
    "refused certificate": lambda: samples.quic_report(
        state="failed",
        verification="failed",
        verification_detail="self-signed certificate",
        error="the certificate of broker.example was refused: self-signed certificate; pass ca_file=",
        verified_chain=(),
    ),
    "refused by the broker": lambda: samples.quic_report(
        state="failed",
        reason_code=0x87,
        error="the broker refused CONNECT: 0x87 Not authorized",
    ),
    "rejected early data": lambda: samples.quic_report(resumed=True, early_data="rejected", retry=True),
    "version negotiated": lambda: samples.quic_report(quic_version="QUIC v2", version_negotiated=True),
    "closed": lambda: samples.quic_report(state="closed", error="closed by the broker: 0x8b Server shutting down"),
}


@pytest.mark.parametrize("name", REPORTS)
def test_card_is_wellformed_and_its_text_twin_says_the_same(name: str) -> None:
    report = REPORTS[name]()
    html = handshake_html(report, now=NOW)
    shown = check(html)
    text = handshake_text(report, now=NOW)
    for chip in facts.chips(report):
        assert chip.text in shown
        assert chip.text in text
    for notice in facts.notices(report):
        assert notice.text in shown
        assert notice.text in text
    assert facts.headline(report) in shown
    assert facts.headline(report) in text
    flat = " ".join(text.split())
    for label, fact in facts.rows(report, NOW):
        assert fact in shown, label
        for part in fact.replace(" to ", " · ").split(" · ") if label == "addresses" else [fact]:
            assert part.split(" (server key")[0] in flat, label
    for parameter, ours, theirs in facts.parameters(report):
        assert parameter in shown
        assert f"{parameter} {ours or 'not sent'} {theirs or 'not sent'}" in flat
    for what, _ in facts.milestones(report):
        assert what in shown
        assert what in text
    for info in report.certificates:
        for fact in (info.subject, info.issuer, info.signature_algorithm, info.fingerprint_sha256, *info.names):
            assert fact in shown
            assert fact in text
    for field, _, _, _ in (*report.connect_fields, *report.connack_fields):
        assert field.replace("_", " ") in shown
        assert field.replace("_", " ") in text
    line = handshake_line(report)
    assert "\n" not in line
    assert facts.state(report)[0] in line


def test_what_the_openssl_sample_shows() -> None:
    """The facts of openssl s_client's output that apply to us, in its order."""
    text = handshake_text(samples.quic_report(), now=NOW)
    expected = [
        "Connected to: 198.51.100.20:14567",
        "Certificate chain",
        "0 s:CN=*.mqtt.example",
        "i:C=CN,O=Example CA Limited,CN=Example DV Server CA",
        "a:PKEY: RSA, 2048 (bit); sigalg: sha256WithRSAEncryption",
        "v:NotBefore: Apr 3 00:00:00 2025 GMT; NotAfter: May 3 23:59:59 2026 GMT",
        "1 s:",
        "a:PKEY: RSA, 4096 (bit)",
        "Server certificate",
        "-----BEGIN CERTIFICATE-----",
        "-----END CERTIFICATE-----",
        "subject=CN=*.mqtt.example",
        "issuer=",
        "Peer signing digest: SHA256",
        "Peer signature type: rsa_pss_rsae_sha256",
        "Peer Temp Key: X25519, 253 bits",
        "Verification: OK",
        "New, TLSv1.3, Cipher is TLS_AES_256_GCM_SHA384",
        "Protocol: QUICv1",
        "Server public key: RSA 2048",
        "ALPN protocol: mqtt",
        "Timeout: 7200 (sec)",
        "Max Early Data: 0",
        "Timings",
        "Transport parameters",
    ]
    at = 0
    for fact in expected:
        assert fact in text[at:], f"{fact!r} missing, or out of order"
        at = text.index(fact, at)
    assert "BEGIN CERTIFICATE" not in handshake_text(samples.quic_report(), now=NOW, pem=False)


@pytest.mark.parametrize(
    ("report", "sign", "words"),
    [
        (REPORTS["failed"](), 'mql-dot mql-bad" title="failed"', "nobody answered"),
        (REPORTS["verification off"](), 'mql-chip mql-bad" title="">verification off', "Verification is off"),
        (REPORTS["tls fallback"](), "mql-notice mql-warn", "QUIC was asked for, TLS over TCP is in use"),
        (REPORTS["tcp"](), "mql-chip mql-bad", "Nothing is encrypted"),
        (REPORTS["quic"](), 'mql-dot mql-ok" title="connected"', "104 ms · 2 round trips to CONNACK"),
    ],
)
def test_states_show(report: HandshakeReport, sign: str, words: str) -> None:
    html = handshake_html(report, now=NOW)
    assert sign.replace(' title=""', "") in html
    assert words in check(html)


def test_other_transports_have_no_rows_of_quic() -> None:
    for report in (REPORTS["tls fallback"](), REPORTS["tcp"]()):
        for shown in (check(handshake_html(report, now=NOW)), handshake_text(report, now=NOW)):
            assert "QUIC v1" not in shown
            assert "Transport parameters" not in shown
            assert "0-RTT" not in shown
    assert "TLS 1.3" not in check(handshake_html(REPORTS["tcp"](), now=NOW))


@pytest.mark.parametrize(
    ("tickets", "words"),
    [
        ((), "no: the broker sent no session ticket"),
        ((TicketInfo(7200, 0),), "no: ticket allows 0 bytes (broker setting)"),
        ((TicketInfo(7200, 0), TicketInfo(3600, 0xFFFFFFFF)), "yes, for 1 h: the ticket allows early data"),
    ],
)
def test_early_data_next_time(tickets: tuple[TicketInfo, ...], words: str) -> None:
    assert facts.early_data_next_time(samples.quic_report(tickets=tickets)) == words


def test_enhanced_authentication_is_named() -> None:
    report = samples.quic_report(connack_properties={"authentication_method": "SCRAM-SHA-256"})
    assert "authenticated by SCRAM-SHA-256" in (facts.mqtt(report) or "")
    assert "authenticated" not in (facts.mqtt(samples.quic_report()) or "")


def test_expiry_and_limits_in_words() -> None:
    report = samples.quic_report(
        connack_properties={
            "maximum_qos": 1,
            "retain_available": False,
            "session_expiry_interval": 0xFFFFFFFF,
            "reason_string": "be nice",
            "maximum_packet_size": "not a number",
        }
    )
    assert facts.limits(report) == "session never expires · QoS max 1 · no retain · says: be nice"
    after = dt.datetime(2026, 5, 5, tzinfo=dt.UTC)
    assert facts.certificate(report, after) == "*.mqtt.example · expired 24 hours ago"
    before = dt.datetime(2025, 3, 1)
    assert facts.certificate(report, before) == "*.mqtt.example · not valid before 33 days from now"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("C=CN,O=Example CA Limited,CN=Example CA", "Example CA"),
        (r"CN=Comma\, Inc.,O=x", "Comma, Inc."),
        ("O=no common name", "O=no common name"),
        ("", "(no name)"),
    ],
)
def test_common_name(name: str, shown: str) -> None:
    assert facts.common_name(name) == shown


def test_hostile_everything() -> None:
    report = samples.hostile_report()
    html = handshake_html(report, now=NOW)
    shown = check(html)
    assert "<script>alert(1)" in shown, "it must be readable as what it is"
    assert "<script" not in html
    assert "onerror=alert(2)>" not in html
    text = handshake_text(report, now=NOW)
    assert not HIDDEN.search(text)
    text.encode()
    assert visible(handshake_line(report)) == handshake_line(report)
    handshake_frame(report)


def test_endless_reports_stay_bounded() -> None:
    long = "x" * 100_000
    report = samples.quic_report(
        certificates=samples.chain() * 500,
        local_transport_parameters={f"p{i}": i for i in range(5000)},
        connect_fields=tuple((f"f{i}", i, i + 1, long) for i in range(5000)),
        flights=(Flight("client", 0, 0, (long,) * 10, (long,) * 10),) * 1000,
        tickets=(TicketInfo(1, 0),) * 5000,
        timings={f"t{i}": float(i) for i in range(5000)},
        error=long,
        verification_detail=long,
        url=long,
    )
    assert len(handshake_html(report, now=NOW)) < 700_000
    assert len(handshake_text(report, now=NOW)) < 700_000
    assert len(handshake_line(report)) <= 400


def test_secrets_of_the_report_are_placeholders_already() -> None:
    html = handshake_html(samples.quic_report(), now=NOW)
    assert "(hidden)" in html


def test_frame() -> None:
    frame = handshake_frame(samples.quic_report())
    assert list(frame.columns) == ["fact", "value"]
    facts_of = dict(zip(frame["fact"], frame["value"], strict=True))
    assert facts_of["alpn"] == "mqtt"
    assert facts_of["rtt.minimum"] == 0.0512
    assert facts_of["certificates.0.names"] == "*.mqtt.example, mqtt.example"
    assert facts_of["resumed"] is False
    assert facts_of["connect.client_identifier"] == "lab-7f2c"
    assert facts_of["remote_transport_parameters.max_idle_timeout"] == 180_000
    assert facts_of["peer_address"] == "198.51.100.20, 14567"
    assert not any("pem" in name for name in facts_of)
    assert "error" not in facts_of
    assert len(handshake_frame(HandshakeReport())) > 0


def test_what_is_in_use_beside_the_version() -> None:
    assert facts.quic(samples.tcp_report()) is None
    report = samples.quic_report(congestion_control="cubic", idle_timeout=180.0)
    assert facts.quic(report) == "congestion control cubic · idle timeout 3 min"
    report = samples.quic_report(key_phase=1, key_updates=3, closed_with="the peer closed <script>")
    assert facts.quic(report) == "key phase 1, 3 key updates · the peer closed <script>"
    assert "<script>" not in handshake_html(report)
    assert "key phase 1, 3 key updates" in handshake_text(report)
