"""What is TLS's own: handshake report, versions, contexts of the user's, third-party peers, messages read."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.errors import AlpnError, DisconnectedError, HandshakeError, UsageError
from mqttquic_lab.net.address import Address
from mqttquic_lab.net.certificates import Trust
from mqttquic_lab.net.open import open_connection
from mqttquic_lab.net.tls import TlsConnection, client_context
from mqttquic_lab.net.tls_messages import HandshakeObserver
from mqttquic_lab.records.handshake import HandshakeReport
from mqttquic_lab.trace import Trace
from tests.helpers.sockets import HANG, Owner, connect, pair, serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.certs import Identities

OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")


async def test_report_of_a_handshake(identities: Identities) -> None:
    async with serving("tls", identities, identity=identities.with_intermediate) as server:
        client = await connect(server, identities, host="localhost")
        report = client.report
        assert report.transport == "tls"
        assert report.url == f"mqtts://localhost:{server.listener.port}"
        assert report.state == "connected"
        assert report.error is None
        assert report.tls_version == "TLS 1.3"
        assert report.cipher_suite in {"TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256"}
        assert report.alpn == "mqtt"
        assert report.offered_alpn == ("mqtt",)
        assert report.server_name == "localhost"
        assert report.key_exchange_group in {"X25519", "X25519MLKEM768"}
        assert report.signature_algorithm == "ecdsa_secp256r1_sha256"
        assert report.quic_version is None
        assert not report.resumed
        assert [c.subject for c in report.certificates] == ["CN=localhost", "CN=mqttquic-lab intermediate CA"]
        assert [c.subject for c in report.verified_chain] == [
            "CN=localhost",
            "CN=mqttquic-lab intermediate CA",
            "CN=mqttquic-lab test CA",
        ]
        assert report.verification == "verified"
        assert "'localhost'" in report.verification_detail
        assert "ca_data" in report.verification_detail
        there = (await server.connected()).report
        assert (there.tls_version, there.alpn, there.cipher_suite) == ("TLS 1.3", "mqtt", report.cipher_suite)
        assert there.peer_address == report.local_address
        assert report.to_dict()["alpn"] == "mqtt"
        await client.close()


async def test_flights_and_milestones(identities: Identities) -> None:
    async with pair("tls", identities) as (client, _, _, _):
        report = client.report
        names = ["tcp_connected", "client_hello", "server_hello", "handshake_complete"]
        assert list(report.timings) == names
        times = list(report.timings.values())
        assert times == sorted(times)
        assert [flight.sender for flight in report.flights] == ["client", "server"] * 2 + ["client"]
        assert [flight.packets for flight in report.flights] == [("SYN",), ("SYN-ACK",)] + [("TLS",)] * 3
        assert [flight.content for flight in report.flights] == [
            (),
            (),
            ("ClientHello",),
            ("ServerHello", "EncryptedExtensions", "Certificate", "CertificateVerify", "Finished"),
            ("Finished",),
        ]
        assert report.to_dict()["round_trips"] is None, "known only at CONNACK"
        client.mark("connect_sent", "CONNECT")
        client.mark("connack", "CONNACK", sender="server")
        assert report.flights[-2].content == ("Finished", "CONNECT"), "nobody waits between the two"
        assert report.flights[-1].content == ("CONNACK",)
        assert report.round_trips == 3
        starts = [flight.start for flight in report.flights]
        assert starts == sorted(starts)
        client.mark("later", "PUBLISH")
        assert report.flights[-1].content == ("CONNACK",), "the ladder ends with CONNACK"


async def test_report_of_plain_tcp(identities: Identities) -> None:
    async with pair("tcp", identities) as (client, there, _, _):
        report = client.report
        assert (report.tls_version, report.alpn, report.verification) == (None, None, "none")
        client.mark("connect_sent", "CONNECT")
        client.mark("connack", "CONNACK", sender="server")
        assert [(flight.sender, flight.packets, flight.content) for flight in report.flights] == [
            ("client", ("SYN",), ()),
            ("server", ("SYN-ACK",), ()),
            ("client", ("TCP",), ("CONNECT",)),
            ("server", ("TCP",), ("CONNACK",)),
        ]
        assert report.round_trips == 2
        assert list(report.timings) == ["tcp_connected", "connect_sent", "connack"]
        there.mark("connack", "CONNACK")
        assert there.report.flights[-1].sender == "server"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="TCP_INFO")
@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_rtt_comes_from_the_kernel(transport: Any, identities: Identities) -> None:
    async with pair(transport, identities) as (client, _, _, _):
        rtt = client.refresh_report().rtt
        assert rtt is not None
        assert 0 < rtt.minimum <= rtt.smoothed < 1
        assert rtt.latest == rtt.smoothed
        await client.close()
        assert client.refresh_report().rtt == rtt, "the last known value stays"


async def test_tickets_and_observer_end_with_the_first_data(identities: Identities) -> None:
    async with pair("tls", identities) as (client, there, here, _):
        there.control.write(b"x")
        await here.received(1)
        assert client.report.tickets
        assert client.report.tickets[0].lifetime > 0
        assert client._context._msg_callback is None  # type: ignore[attr-defined]
        messages = [event.data["message"] for event in client.trace if event.name == "message"]
        assert messages[0] == "ClientHello"
        assert "NewSessionTicket" in messages


async def test_trace_names_the_tls_messages(identities: Identities) -> None:
    trace = Trace()
    async with serving("tls", identities) as server:
        client = await connect(server, identities, trace=trace)
        assert client.trace is trace
        sent = [event.data["message"] for event in trace if event.layer == "tls" and event.data["direction"] == "sent"]
        assert sent == ["ClientHello", "Finished"]
        await client.close()


async def test_verification_off_is_said(identities: Identities) -> None:
    async with serving("tls", identities, identity=identities.untrusted) as server:
        client = await connect(server, identities, trust=Trust(verify=False))
        assert client.report.verification == "off"
        assert "anybody" in client.report.verification_detail
        assert client.report.certificates[0].issuer == "CN=some other CA"
        assert client.report.verified_chain == ()
        await client.close()


async def test_server_name_overrides_the_host(identities: Identities) -> None:
    trust = Trust(ca_data=identities.authority.pem, server_name="broker.example")
    async with serving("tls", identities, identity=identities.wrong_name) as server:
        client = await connect(server, identities, trust=trust)
        assert client.report.server_name == "broker.example"
        assert client.report.verification == "verified"
        await client.close()


async def test_an_ip_address_is_checked_but_not_sent_as_sni(identities: Identities) -> None:
    async with pair("tls", identities) as (client, _, _, _):
        assert client.report.server_name is None
        assert client.report.verification == "verified"


async def test_ca_file(identities: Identities, tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    # What real CA files look like: several certificates, text between them, CRLF.
    text = identities.untrusted.chain_pem + b"\r\nSome CA\r\n=======\r\n" + identities.authority.pem
    ca_file.write_bytes(text.replace(b"\n", b"\r\n"))
    async with serving("tls", identities) as server:
        client = await connect(server, identities, trust=Trust(ca_file=ca_file))
        assert str(ca_file) in client.report.verification_detail
        await client.close()
        with pytest.raises(UsageError, match="cannot be read"):
            await connect(server, identities, trust=Trust(ca_file=tmp_path / "nosuch"))


async def test_no_alpn_offered(identities: Identities) -> None:
    async with serving("tls", identities) as server:
        client = await connect(server, identities, alpn=())
        assert client.report.alpn is None
        assert client.report.offered_alpn == ()
        await client.close()


async def test_a_server_that_knows_no_alpn_is_accepted(identities: Identities) -> None:
    async with serving("tls", identities, alpn=()) as server:
        client = await connect(server, identities)
        assert client.report.alpn is None
        assert client.report.offered_alpn == ("mqtt",)
        await client.close()


async def test_tls_1_2_on_request_only(identities: Identities) -> None:
    context = identities.good.ssl_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving("tls", identities, ssl_context=context) as server:
        with pytest.raises(HandshakeError, match=r"minimum_tls='1\.2'"):
            await connect(server, identities)
        client = await connect(server, identities, minimum_tls="1.2")
        report = client.report
        assert report.tls_version == "TLS 1.2"
        assert report.cipher_suite == "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "IANA's name, not OpenSSL's"
        assert report.key_exchange_group == "X25519"
        assert report.signature_algorithm is not None
        assert report.signature_algorithm.startswith("ecdsa")
        assert len(report.verified_chain) == 2
        assert "ServerHelloDone" in report.flights[3].content
        far = (await server.connected()).control
        owner = Owner(far)
        client.control.write(b"old but fine")
        assert await owner.received(12) == b"old but fine"
        await client.close()
        with pytest.raises(UsageError, match="RFC 8996"):
            await connect(server, identities, minimum_tls="1.1")


async def test_a_context_of_the_users_is_used_as_it_is(identities: Identities) -> None:
    context = ssl.create_default_context(cadata=identities.authority.pem.decode())
    context.set_alpn_protocols(["x", "mqtt"])
    async with serving("tls", identities, identity=identities.with_intermediate) as server:
        client = await connect(server, identities, ssl_context=context)
        report = client.report
        assert report.alpn == "mqtt"
        assert report.verification == "verified"
        assert "ssl_context" in report.verification_detail
        assert report.certificates[0].subject == "CN=localhost"
        assert report.verified_chain[-1].subject == "CN=mqttquic-lab test CA"
        assert context._msg_callback is None  # type: ignore[attr-defined]
        assert [flight.sender for flight in report.flights] == ["client", "server"] * 2 + ["client"]
        await client.close()
        plain = Address.of("tcp", "127.0.0.1", server.listener.port)
        with pytest.raises(UsageError, match="ssl_context is for mqtts:// only"):
            await open_connection(plain, trust=Trust(), ssl_context=context)
        quic = Address.of("quic", "127.0.0.1", server.listener.port)
        with pytest.raises(UsageError, match="ca_file, verify and server_name"):
            await open_connection(quic, trust=Trust(), ssl_context=context)


async def test_a_context_that_does_not_check_names_is_said_to(identities: Identities) -> None:
    context = ssl.create_default_context(cadata=identities.authority.pem.decode())
    context.check_hostname = False
    async with serving("tls", identities, identity=identities.wrong_name) as server:
        client = await connect(server, identities, ssl_context=context)
        assert "name not checked" in client.report.verification_detail
        await client.close()


async def test_a_server_that_demands_a_client_certificate(identities: Identities) -> None:
    context = identities.good.ssl_context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=identities.authority.pem.decode())
    async with serving("tls", identities, ssl_context=context) as server:
        # In TLS 1.3 the client is done before the server has looked: the refusal comes after the handshake.
        client = await connect(server, identities)
        Owner(client.control)
        async with asyncio.timeout(HANG):
            reason = await asyncio.shield(client.closed)
        assert isinstance(reason, DisconnectedError)
        assert "client certificate" in str(reason)
        assert server.listener.failed == 1
        assert server.connections == []


async def test_keys_are_not_logged_unasked(
    identities: Identities, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    async with serving("tls", identities) as server:
        client = await connect(server, identities)
        await client.close()
    assert list(tmp_path.iterdir()) == []


async def test_without_the_private_callback_the_report_is_only_shorter(
    identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HandshakeObserver, "attach", lambda *_: None)
    async with pair("tls", identities) as (client, _, _, _):
        report = client.report
        assert report.cipher_suite is not None
        assert report.cipher_suite.startswith("TLS_")
        assert report.key_exchange_group is None
        assert report.certificates[0].subject == "CN=localhost"
        assert report.verified_chain[-1].subject == "CN=mqttquic-lab test CA"
        assert [flight.content for flight in report.flights[2:]] == [
            ("ClientHello",),
            ("ServerHello", "Finished"),
            ("Finished",),
        ]


@needs_openssl
@pytest.mark.parametrize("version", ["-tls1_3", "-tls1_2"])
async def test_openssl_s_client_against_our_listener(version: str, identities: Identities, tmp_path: Path) -> None:
    ca_file = identities.authority.write_ca(tmp_path / "ca.pem")
    async with serving("tls", identities, host="localhost") as server:
        where = f"localhost:{server.listener.port}"
        process = await asyncio.create_subprocess_exec(
            *(str(OPENSSL), "s_client", "-connect", where, "-servername", "localhost", version),
            *("-alpn", "mqtt", "-CAfile", str(ca_file), "-verify_return_error", "-verify_hostname", "localhost"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        async with asyncio.timeout(HANG):
            await server.connected()
            owner = server.owners[0]
            assert process.stdin is not None
            process.stdin.write(b"from openssl\n")
            await owner.received(13)
            owner.stream.write(b"from us\n")
            await owner.stream.drain()
            await server.connections[0].close()
            output, _ = await process.communicate()
        text = output.decode()
        assert "Verify return code: 0 (ok)" in text
        assert "ALPN protocol: mqtt" in text
        assert "from us" in text


@needs_openssl
async def test_our_client_against_openssl_s_server(identities: Identities, tmp_path: Path, free_port: int) -> None:
    certificate_file, key_file = identities.good.pem_files(tmp_path)
    process = await asyncio.create_subprocess_exec(
        *(str(OPENSSL), "s_server", "-accept", f"127.0.0.1:{free_port}", "-alpn", "mqtt", "-rev"),
        *("-cert", str(certificate_file), "-key", str(key_file), "-groups", "P-384"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(HANG):
            while b"ACCEPT" not in await process.stdout.readline():
                pass
        client = await open_connection(Address.of("tls", "127.0.0.1", free_port), trust=identities.trust)
        owner = Owner(client.control)
        client.control.write(b"reverse this\n")
        assert await owner.received(13) == b"siht esrever\n"
        report = client.report
        assert report.alpn == "mqtt"
        assert report.key_exchange_group == "SECP384R1"
        # Our key share was for another group: the server asked again (RFC 8446 section 4.1.4).
        contents = [flight.content for flight in report.flights[2:]]
        assert contents[:3] == [("ClientHello",), ("HelloRetryRequest",), ("ClientHello",)]
        client.mark("connack", "CONNACK", sender="server")
        assert report.round_trips == 4
        await client.close()
    finally:
        process.kill()
        await process.communicate()


@needs_openssl
async def test_openssl_s_server_with_another_alpn(identities: Identities, tmp_path: Path, free_port: int) -> None:
    certificate_file, key_file = identities.good.pem_files(tmp_path)
    process = await asyncio.create_subprocess_exec(
        *(str(OPENSSL), "s_server", "-accept", f"127.0.0.1:{free_port}", "-alpn", "h2"),
        *("-cert", str(certificate_file), "-key", str(key_file)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(HANG):
            while b"ACCEPT" not in await process.stdout.readline():
                pass
        with pytest.raises(AlpnError, match=r"none of the application protocols offered \('mqtt'\)"):
            await open_connection(Address.of("tls", "127.0.0.1", free_port), trust=identities.trust)
    finally:
        process.kill()
        await process.communicate()


@needs_openssl
async def test_openssl_refuses_our_untrusted_server(identities: Identities, tmp_path: Path) -> None:
    ca_file = identities.authority.write_ca(tmp_path / "ca.pem")
    async with serving("tls", identities, identity=identities.untrusted) as server:
        process = await asyncio.create_subprocess_exec(
            *(str(OPENSSL), "s_client", "-connect", f"127.0.0.1:{server.listener.port}"),
            *("-CAfile", str(ca_file), "-verify_return_error"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        async with asyncio.timeout(HANG):
            output, _ = await process.communicate()
        assert b"verify error" in output
        assert server.connections == []
        async with asyncio.timeout(HANG):
            while not server.listener.failed:
                await asyncio.sleep(0.01)


# --- messages that anybody may have written


def hear(observer: HandshakeObserver, data: bytes, version: int = 0x0304) -> None:
    observer._on_message(None, "read", version, 22, data[0] if data else 0, data)


def message(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + len(body).to_bytes(3, "big") + body


@pytest.mark.parametrize("version", [0x0303, 0x0304])
@pytest.mark.parametrize("kind", [2, 4, 8, 11, 12, 15, 20, 99])
def test_malformed_messages_are_survived(kind: int, version: int, identities: Identities) -> None:
    observer = HandshakeObserver(Trace(8))
    bodies = [b"", b"\0", b"\xff" * 3, b"\xff" * 200, bytes(200), b"\0\0\0\x05\0\0\x02ab"]
    for body in bodies:
        hear(observer, message(kind, body), version)
    hear(observer, bytes([kind]), version)
    hear(observer, b"", version)
    assert observer.chain == ()


def test_messages_are_bounded() -> None:
    observer = HandshakeObserver(Trace(8))
    ticket = message(4, bytes(4) + bytes(4) + b"\0" + b"\0\x01t" + b"\0\x08" + b"\0\x2a\0\x04" + b"\xff" * 4)
    for _ in range(1000):
        hear(observer, message(20, b"x"))
        hear(observer, ticket)
    assert len(observer.flights()[0].content) == 64
    assert len(observer.tickets) == 16
    assert observer.tickets[0].max_early_data == 0xFFFFFFFF


def test_alerts_are_named() -> None:
    trace = Trace(8)
    observer = HandshakeObserver(trace)
    observer._on_message(None, "read", 0x0304, 21, 0, b"\x02\x78")
    assert observer.alert == "no_application_protocol"
    observer._on_message(None, "write", 0x0304, 21, 0, b"\x02\x2a")
    assert observer.alert == "no_application_protocol"
    assert [event.data["alert"] for event in trace] == ["no_application_protocol", "bad_certificate"]


def test_client_context_does_not_touch_the_disk(identities: Identities) -> None:
    context = client_context(identities.trust)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert len(context.get_ca_certs()) == 1
    assert not context.keylog_filename


async def test_system_authorities_are_the_default(identities: Identities) -> None:
    context = client_context(Trust())
    assert context.verify_mode == ssl.CERT_REQUIRED
    async with serving("tls", identities) as server:
        report = HandshakeReport()
        with pytest.raises(ConnectionError, match="the system's authorities"):
            await connect(server, identities, trust=Trust(), report=report)
        assert report.verification == "failed"
        assert report.state == "failed"


def test_a_connection_is_a_tls_connection() -> None:
    assert TlsConnection.transport == "tls"
