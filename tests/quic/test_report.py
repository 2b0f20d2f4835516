"""The handshake report against what is known from elsewhere: the CA, the configuration, the other end, openssl."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa

from mqttquic_lab.net.certificates import ServerIdentity, certificate_info
from mqttquic_lab.quic import client as client_module
from mqttquic_lab.quic.report import version_name
from mqttquic_lab.trace import Trace
from tests.helpers.lossy import LossyRelay
from tests.helpers.quic import Inbox, connected, echo, serving, settle

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.certs import Identities


async def test_facts_of_both_sides(identities: Identities) -> None:
    async with serving(identities, idle_timeout=77.0) as server:
        server.on_stream = echo
        async with connected(server, identities, idle_timeout=33.0) as (client, accepted):
            client.control.write(b"CONNECT")
            client.mark("connect_sent", "CONNECT")
            await Inbox(client.control).read(7)
            client.mark("connack", "CONNACK", sender="server")
            ours, theirs = client.refresh_report(), accepted.refresh_report()

    leaf = identities.good.certificate
    assert [info.fingerprint_sha256 for info in ours.certificates] == [leaf.fingerprint(hashes.SHA256()).hex()]
    assert ours.verified_chain == (certificate_info(leaf), certificate_info(identities.authority.certificate))
    assert ours.verification == "verified"
    assert ours.verification_detail == (
        "valid for '127.0.0.1' now; issued below 'CN=mqttquic-lab test CA', trusted by ca_data"
    )
    assert ours.url == f"quic://127.0.0.1:{server.listener.port}"
    assert ours.local_address == theirs.peer_address
    assert ours.peer_address == theirs.local_address == ("127.0.0.1", server.listener.port)
    for report in (ours, theirs):
        assert report.transport == "quic"
        assert report.quic_version == "QUIC v1"
        assert report.tls_version == "TLS 1.3"
        assert report.alpn == "mqtt"
        assert report.offered_alpn == ("mqtt",)
        assert report.cipher_suite == "TLS_AES_256_GCM_SHA384"
        assert report.key_exchange_group == "X25519"
        assert report.key_exchange_bits == 253
        assert report.signature_algorithm == "ecdsa_secp256r1_sha256"
        assert report.server_name is None  # an IP address is not sent as SNI
        assert not report.resumed
        assert not report.retry
        assert not report.version_negotiated
        assert report.state == "closed"

    sent, received = ours.local_transport_parameters, ours.remote_transport_parameters
    assert theirs.local_transport_parameters == received
    assert theirs.remote_transport_parameters == sent
    assert sent["max_idle_timeout"] == 33_000
    assert received["max_idle_timeout"] == 77_000
    assert sent["initial_max_data"] == client_module.CONNECTION_WINDOW
    assert sent["initial_max_stream_data_bidi_local"] == client_module.STREAM_WINDOW
    assert received["stateless_reset_token"] == "(hidden)"
    assert received["original_destination_connection_id"] == client.engine.original_destination_connection_id.hex()
    assert sent["version_information"]["available_versions"] == ["QUIC v1", "QUIC v2"]

    milestones = ["client_hello", "server_hello", "handshake_complete", "connect_sent", "connack"]
    times = [ours.timings[name] for name in milestones]
    assert times[0] == 0.0
    assert times == sorted(times)
    assert ours.timings["handshake_confirmed"] >= ours.timings["handshake_complete"]
    assert ours.round_trips == 2
    assert [flight.sender for flight in ours.flights] == ["client", "server", "client", "server"]
    assert ours.flights[2].content == ("Finished", "CONNECT")
    assert ours.flights[3].content[-1] == "CONNACK"
    assert ours.flights[1].packets == ("Initial", "Handshake")
    assert json.dumps(ours.to_dict())


async def test_rtt_and_timings_come_from_the_path(identities: Identities) -> None:
    from mqttquic_lab.net.address import Address

    async with (
        serving(identities) as server,
        LossyRelay(server.listener.addresses[0], delay=0.03) as relay,
        connected(server, identities, address=Address.of("quic", *relay.address)) as (client, _),
    ):
        for _ in range(3):
            await client.ping()
        report = client.refresh_report()
        assert report.rtt is not None
        assert 0.058 < report.rtt.minimum <= report.rtt.smoothed
        assert report.timings["server_hello"] >= 0.058
        assert report.timings["handshake_confirmed"] >= 0.118


async def test_rsa_and_an_intermediate(identities: Identities) -> None:
    key = rsa.generate_private_key(65537, 2048)
    issued = identities.with_intermediate
    from cryptography import x509

    intermediate = identities.authority.intermediate("RSA helper")
    template = intermediate.issue(["localhost", "127.0.0.1"])
    builder = (
        x509.CertificateBuilder()
        .subject_name(template.certificate.subject)
        .issuer_name(template.certificate.issuer)
        .public_key(key.public_key())
        .serial_number(5)
        .not_valid_before(template.certificate.not_valid_before_utc)
        .not_valid_after(template.certificate.not_valid_after_utc)
        .add_extension(
            template.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value, False
        )
    )
    leaf = builder.sign(intermediate._private_key, hashes.SHA256())
    identity = ServerIdentity(leaf, key, template.chain)  # type: ignore[arg-type]
    async with serving(identities, identity=identity) as server, connected(server, identities) as (client, _):
        report = client.refresh_report()
        assert report.signature_algorithm == "rsa_pss_rsae_sha256"
        assert report.certificates[0].key_type == "RSA 2048"
        assert len(report.certificates) == 1 + len(issued.chain)
        assert [info.subject for info in report.verified_chain] == [
            "CN=localhost", "CN=RSA helper", "CN=mqttquic-lab test CA",
        ]  # fmt: skip


async def test_openssl_agrees_on_the_certificate(identities: Identities, tmp_path: Path) -> None:
    async with serving(identities) as server, connected(server, identities) as (client, _):
        info = client.refresh_report().certificates[0]
    file = tmp_path / "leaf.pem"
    file.write_text(info.pem)
    try:
        shown = subprocess.run(
            ["openssl", "x509", "-in", file, "-noout", "-fingerprint", "-sha256", "-serial", "-subject", "-nameopt",
             "RFC2253"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    assert info.fingerprint_sha256.upper() in shown.replace(":", "")
    assert f"subject={info.subject}" in shown
    assert f"serial={info.serial_number.upper().zfill(2)}" in shown.replace("serial=0", "serial=")


async def test_events_flow_into_the_trace_during_the_handshake_only(identities: Identities) -> None:
    trace = Trace()
    async with serving(identities) as server:
        server.on_stream = echo
        async with connected(server, identities, trace=trace) as (client, _):
            inbox = Inbox(client.control)
            assert {"packet_sent", "packet_received", "key_updated", "parameters_set"} <= {e.name for e in trace}
            first = next(event for event in trace if event.name == "packet_sent")
            assert first.data["packet_type"] == "initial"
            assert first.data["length"] > 100
            assert first.data["frames"][0]["frame_type"] == "crypto"
            client.mark("connack", sender="server")
            await settle(lambda: "handshake_confirmed" in client.report.timings)
            client.control.write(b"1")
            await inbox.read(1)
            count = trace.count
            for _ in range(5):
                client.control.write(b"2")
                await inbox.read(1)
            assert trace.count == count
            trace.detail = True
            client.control.write(b"3")
            await inbox.read(1)
            assert {"packet_sent", "packet_received", "metrics_updated"} <= {e.name for e in list(trace)[count:]}
            text = str([event.data for event in trace])
            assert "reset_token" not in text
    assert [event.name for event in trace][-1] == "connection_closed"


def test_version_names() -> None:
    assert version_name(1) == "QUIC v1"
    assert version_name(0x6B3343CF) == "QUIC v2"
    assert version_name(0x1A2A3A4A) == "QUIC 0x1a2a3a4a"
