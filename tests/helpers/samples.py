"""Realistic reports and logs for tests of views, and hostile ones."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

from mqttquic_lab.records.handshake import CertificateInfo, Flight, HandshakeReport, RttInfo, TicketInfo
from mqttquic_lab.records.log import MessageLog

NOW = dt.datetime(2025, 12, 26, 12, 0, tzinfo=dt.UTC)
T0 = 1_790_000_000_000_000_000

HOSTILE = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;\x1b[31m\x00\x07\u202etxet\u2066\u2028\ud800]]>--> "
)
"""What a peer would send to break out of HTML, SVG, an attribute, a terminal, or a reader's trust."""

_PEM = "-----BEGIN CERTIFICATE-----\n" + "\n".join(
    ["MIIGPDCCBSSgAwIBAgIRAOk884vcqqt0VUZvXONQjUIwDQYJKoZIhvcNAQELBQAw"] * 12
)
PEM = _PEM + "\n-----END CERTIFICATE-----\n"


def certificate(subject: str, issuer: str, number: int, **changes: Any) -> CertificateInfo:
    """A certificate of the chain."""
    facts: dict[str, Any] = {
        "subject": subject,
        "issuer": issuer,
        "serial_number": f"{number:032x}",
        "not_before": dt.datetime(2025, 4, 3, tzinfo=dt.UTC),
        "not_after": dt.datetime(2026, 5, 3, 23, 59, 59, tzinfo=dt.UTC),
        "names": (),
        "key_type": "RSA 2048",
        "signature_algorithm": "sha256WithRSAEncryption",
        "is_ca": True,
        "fingerprint_sha256": f"{number:02x}" * 32,
        "pem": PEM,
    }
    return CertificateInfo(**(facts | changes))


def chain() -> tuple[CertificateInfo, ...]:
    """A leaf and two intermediates."""
    middle = "C=CN,O=Example CA Limited,CN=Example DV Server CA"
    root = "C=US,ST=New Jersey,L=Jersey City,O=The USERTRUST Network,CN=USERTrust RSA Certification Authority"
    return (
        certificate("CN=*.mqtt.example", middle, 1, names=("*.mqtt.example", "mqtt.example"), is_ca=False),
        certificate(middle, root, 2, signature_algorithm="sha384WithRSAEncryption"),
        certificate(root, "CN=AAA Certificate Services", 3, key_type="RSA 4096"),
    )


def parameters(**changes: Any) -> dict[str, Any]:
    """Transport parameters as the report holds them."""
    return {
        "max_idle_timeout": 60_000,
        "max_udp_payload_size": 1472,
        "initial_max_data": 1_048_576,
        "initial_max_stream_data_bidi_local": 262_144,
        "initial_max_stream_data_bidi_remote": 262_144,
        "initial_max_stream_data_uni": 262_144,
        "initial_max_streams_bidi": 128,
        "initial_max_streams_uni": 128,
        "ack_delay_exponent": 3,
        "max_ack_delay": 25,
        "disable_active_migration": False,
        "active_connection_id_limit": 8,
        "initial_source_connection_id": "8394c8f03e515708",
        "max_datagram_frame_size": 65_536,
    } | changes


def quic_report(**changes: Any) -> HandshakeReport:
    """A full QUIC handshake with a broker far away."""
    ours = chain()
    report = HandshakeReport(
        url="quic://broker.example:14567",
        transport="quic",
        state="connected",
        local_address=("192.0.2.7", 50123),
        peer_address=("198.51.100.20", 14567),
        quic_version="QUIC v1",
        tls_version="TLS 1.3",
        alpn="mqtt",
        offered_alpn=("mqtt",),
        cipher_suite="TLS_AES_256_GCM_SHA384",
        key_exchange_group="X25519",
        key_exchange_bits=253,
        signature_algorithm="rsa_pss_rsae_sha256",
        server_name="broker.example",
        certificates=ours,
        verified_chain=ours,
        verification="verified",
        verification_detail="chain of 3 to USERTrust RSA CA, name matches SAN",
        tickets=(TicketInfo(7200, 0), TicketInfo(7200, 0)),
        local_transport_parameters=parameters(),
        remote_transport_parameters=parameters(
            max_idle_timeout=180_000, initial_max_streams_bidi=10, initial_source_connection_id="f067a5502a4262b5"
        ),
        timings={
            "client_hello": 0.0,
            "server_hello": 0.0512,
            "handshake_complete": 0.0529,
            "connect_sent": 0.053,
            "connack": 0.1039,
            "handshake_confirmed": 0.1038,
        },
        flights=(
            Flight("client", 0.0, 0.0, ("Initial",), ("ClientHello",)),
            Flight(
                "server",
                0.0508,
                0.0512,
                ("Initial", "Handshake"),
                ("ServerHello", "EncryptedExtensions", "Certificate", "CertificateVerify", "Finished"),
            ),
            Flight("client", 0.053, 0.053, ("Handshake", "1-RTT"), ("Finished", "CONNECT")),
            Flight(
                "server",
                0.1038,
                0.1039,
                ("1-RTT",),
                ("HANDSHAKE_DONE", "NewSessionTicket", "NewSessionTicket", "CONNACK"),
            ),
        ),
        round_trips=2,
        rtt=RttInfo(0.0515, 0.0512, 0.0519, 0.0011),
        mqtt_version="5.0",
        client_id="lab-7f2c",
        session_present=False,
        reason_code=0,
        connack_properties={"server_keep_alive": 60, "receive_maximum": 16, "maximum_packet_size": 1_048_576},
        connect_fields=(
            ("packet_type", 0, 1, 1),
            ("remaining_length", 1, 2, 30),
            ("protocol_name", 2, 8, "MQTT"),
            ("protocol_version", 8, 9, 5),
            ("connect_flags", 9, 10, 0xC2),
            ("keep_alive", 10, 12, 60),
            ("properties_length", 12, 13, 0),
            ("client_identifier", 13, 23, "lab-7f2c"),
            ("user_name", 23, 28, "bob"),
            ("password", 28, 32, "(hidden)"),
        ),
        connack_fields=(
            ("packet_type", 0, 1, 2),
            ("remaining_length", 1, 2, 12),
            ("connect_acknowledge_flags", 2, 3, 0),
            ("reason_code", 3, 4, 0),
            ("properties_length", 4, 5, 9),
            ("server_keep_alive", 5, 8, 60),
            ("receive_maximum", 8, 11, 16),
            ("maximum_packet_size", 11, 14, 1_048_576),
        ),
    )
    for name, value in changes.items():
        setattr(report, name, value)
    return report


def early_report(**changes: Any) -> HandshakeReport:
    """A resumed connection whose CONNECT travelled in 0-RTT packets."""
    return quic_report(
        certificates=(),
        verified_chain=(),
        verification="resumed",
        verification_detail="resumed by a ticket of an earlier session; the server showed no certificate",
        resumed=True,
        early_data="accepted",
        signature_algorithm=None,
        tickets=(TicketInfo(7200, 0xFFFFFFFF),),
        timings={"client_hello": 0.0, "connect_sent": 0.0004, "server_hello": 0.0511, "connack": 0.0517},
        flights=(
            Flight("client", 0.0, 0.0004, ("Initial", "0-RTT"), ("ClientHello", "CONNECT")),
            Flight(
                "server",
                0.0511,
                0.0517,
                ("Initial", "Handshake", "1-RTT"),
                ("ServerHello", "EncryptedExtensions", "Finished", "CONNACK"),
            ),
        ),
        round_trips=1,
        **changes,
    )


def tls_report(**changes: Any) -> HandshakeReport:
    """TLS over TCP, after QUIC did not get through."""
    return quic_report(
        url="mqtts://broker.example:8883",
        transport="tls",
        quic_version=None,
        local_transport_parameters={},
        remote_transport_parameters={},
        rtt=None,
        fallback_reason="no answer to QUIC within 3 s (UDP port 14567 closed or blocked on the path)",
        flights=(
            Flight("client", 0.0, 0.0, ("SYN",), ()),
            Flight("server", 0.051, 0.051, ("SYN-ACK",), ()),
            Flight("client", 0.0512, 0.0512, ("TLS",), ("ClientHello",)),
            Flight("server", 0.103, 0.1033, ("TLS",), ("ServerHello", "Certificate", "Finished")),
            Flight("client", 0.105, 0.105, ("TLS",), ("Finished", "CONNECT")),
            Flight("server", 0.156, 0.156, ("TLS",), ("CONNACK",)),
        ),
        round_trips=3,
        timings={"client_hello": 0.0512, "connect_sent": 0.105, "connack": 0.156},
        **changes,
    )


def tcp_report(**changes: Any) -> HandshakeReport:
    """Plain TCP: nothing of QUIC or TLS is known."""
    return HandshakeReport(
        **{
            "url": "mqtt://localhost:1883",
            "transport": "tcp",
            "state": "connected",
            "local_address": ("::1", 50124),
            "peer_address": ("::1", 1883),
            "timings": {"connect_sent": 0.0002, "connack": 0.0009},
            "flights": (
                Flight("client", 0.0, 0.0, ("SYN",), ()),
                Flight("server", 0.0001, 0.0001, ("SYN-ACK",), ()),
                Flight("client", 0.0002, 0.0002, (), ("CONNECT",)),
                Flight("server", 0.0009, 0.0009, (), ("CONNACK",)),
            ),
            "round_trips": 2,
            "mqtt_version": "3.1.1",
            "client_id": "lab",
            "session_present": True,
            "reason_code": 0,
            **changes,
        }
    )


def failed_report(**changes: Any) -> HandshakeReport:
    """Nobody answered."""
    return HandshakeReport(
        **{
            "url": "quic://192.0.2.1:14567",
            "state": "failed",
            "error": "nobody answered at 192.0.2.1:14567 within 10 s: closed or wrong port, or UDP blocked on the path",
            "timings": {"client_hello": 0.0},
            "flights": (Flight("client", 0.0, 3.1, ("Initial",), ("ClientHello",)),),
            "offered_alpn": ("mqtt",),
            **changes,
        }
    )


def hostile_report() -> HandshakeReport:
    """Every text that a peer, or a URL, can choose is :data:`HOSTILE`."""
    evil = certificate(
        HOSTILE,
        HOSTILE,
        7,
        serial_number=HOSTILE,
        names=(HOSTILE, HOSTILE),
        key_type=HOSTILE,
        signature_algorithm=HOSTILE,
        fingerprint_sha256=HOSTILE,
        pem=HOSTILE,
    )
    anchor = certificate(f"CN={HOSTILE}", HOSTILE, 8)
    fields = ((HOSTILE, 0, 1, HOSTILE), ("bytes", 1, 9, HOSTILE.encode("utf-8", "surrogatepass")))
    return quic_report(
        url=f"quic://{HOSTILE}",
        state=HOSTILE,
        error=HOSTILE,
        local_address=(HOSTILE, 1),
        peer_address=(HOSTILE, 2),
        quic_version=HOSTILE,
        tls_version=HOSTILE,
        alpn=HOSTILE,
        offered_alpn=(HOSTILE,),
        cipher_suite=HOSTILE,
        key_exchange_group=HOSTILE,
        signature_algorithm=HOSTILE,
        server_name=HOSTILE,
        certificates=(evil, evil),
        verified_chain=(evil, anchor),
        verification_detail=HOSTILE,
        local_transport_parameters={HOSTILE: HOSTILE},
        remote_transport_parameters={HOSTILE: {HOSTILE: [HOSTILE, b"\x00"]}},
        timings={HOSTILE: 0.1, "connack": 0.2},
        flights=(Flight("client", 0.0, 0.0, (HOSTILE,), (HOSTILE,) * 40), Flight("server", 0, 1, (HOSTILE,), ())),
        mqtt_version=HOSTILE,
        client_id=HOSTILE,
        connack_properties={"reason_string": HOSTILE, "server_keep_alive": HOSTILE, HOSTILE: HOSTILE},
        connect_fields=fields,
        connack_fields=fields,
        fallback_reason=HOSTILE,
    )


def plant_log(count: int = 2000, **options: Any) -> MessageLog:
    """A minute of a small plant's telemetry."""
    log = MessageLog(**({"decode": "json", "session": "lab"} | options))
    for i in range(count):
        share = i / max(1, count)
        time_ns = T0 + int(60e9 * (share + 0.03 * math.sin(share * 31) / 3))  # busier and calmer seconds
        machine, what = 1 + i % 2, ("temp", "rpm")[i // 2 % 2]
        value = 21 + 2 * math.sin(i / 90) if what == "temp" else 1480 + 30 * math.cos(i / 50)
        delay = 2_600_000 + int((1_500_000 + 2e6 * math.sin(share * 17) ** 2) * abs(math.sin(i * 7.1)) ** 6)
        delay += 20_000_000 if i % 61 == 0 else 0
        log.append(
            time_ns,
            f"plant/{machine}/{what}",
            b'{"c": %.1f, "ok": true}' % value if what == "temp" else b"%d" % value,
            i % 3,
            i % 97 == 0,
            i % 211 == 0,
            i % 65535 + 1 if i % 3 else None,
            4 * (i % 2),
            i < 2,
            {"user_property": [("sent_ns", str(time_ns - delay))]},
        )
    return log
