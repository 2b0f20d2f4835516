"""Peers that are not what was hoped for, over TCP and TLS: each gives its own error, at once, saying what to do."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.errors import (
    AlpnError,
    CertificateError,
    ConnectError,
    ConnectTimeoutError,
    DisconnectedError,
    HandshakeError,
    LabError,
    UnreachableError,
)
from mqttquic_lab.net import address as addresses
from mqttquic_lab.net.address import Address
from mqttquic_lab.net.certificates import Trust
from mqttquic_lab.net.open import open_connection
from mqttquic_lab.records.handshake import HandshakeReport
from tests.helpers.sockets import HANG, Owner, connect, open_sockets, raw_server, serving, settle, stay_silent

if TYPE_CHECKING:
    from tests.helpers.certs import Identities

BOTH = pytest.mark.parametrize("transport", ["tcp", "tls"])


@pytest.fixture(autouse=True)
async def no_socket_is_left() -> Any:
    """Whatever happened, nothing stays open; not even until the garbage collector comes."""
    before = open_sockets()
    yield
    await settle()
    assert open_sockets() <= before


async def failure(
    transport: Any, port: int, identities: Identities, **options: Any
) -> tuple[LabError, HandshakeReport]:
    """Return the error of connecting, and the report as far as it got; the error comes well before the timeout."""
    options.setdefault("trust", identities.trust)
    report = HandshakeReport()
    began = time.monotonic()
    with pytest.raises(ConnectError) as caught:
        await open_connection(Address.of(transport, "127.0.0.1", port), timeout=30.0, report=report, **options)
    assert time.monotonic() - began < 15, "at once, not at the timeout"
    assert report.state == "failed"
    assert report.error == str(caught.value)
    return caught.value, report


@BOTH
async def test_closed_port(transport: Any, free_port: int, identities: Identities) -> None:
    error, _ = await failure(transport, free_port, identities)
    assert type(error) is UnreachableError
    assert isinstance(error, ConnectionError)
    assert f"nothing listens on TCP port {free_port} of 127.0.0.1" in str(error)
    assert isinstance(error.__cause__, ConnectionRefusedError)


@BOTH
async def test_unknown_name(transport: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    with pytest.raises(UnreachableError, match=r"'nosuch\.example' does not resolve"):
        await open_connection(Address.of(transport, "nosuch.example", 1), trust=Trust())


@pytest.mark.parametrize(
    ("kind", "problem", "words"),
    [
        ("untrusted", "untrusted", ["'CN=some other CA'", "ca_data", "ca_file"]),
        ("wrong_name", "name", ["'127.0.0.1'", "broker.example", "server_name"]),
        ("expired", "expired", ["expired on", "renewed"]),
        ("not_yet_valid", "not-yet-valid", ["valid only from", "clock"]),
    ],
)
@pytest.mark.parametrize("own_context", [False, True])
async def test_bad_certificates(
    kind: str, problem: str, words: list[str], own_context: bool, identities: Identities
) -> None:
    identity = getattr(identities, kind)
    options: dict[str, Any] = {}
    if own_context:
        import ssl

        options["ssl_context"] = ssl.create_default_context(cadata=identities.authority.pem.decode())
        words = ["ssl_context" if word == "ca_data" else word for word in words]
    async with serving("tls", identities, identity=identity) as server:
        error, report = await failure("tls", server.listener.port, identities, **options)
        assert isinstance(error, CertificateError)
        assert error.problem == problem
        assert str(error).startswith(f"the certificate of 127.0.0.1:{server.listener.port} ")
        for word in words:
            assert word in str(error)
        assert error.chain[0].serial_number == f"{identity.certificate.serial_number:x}", "what was presented"
        assert report.certificates == error.chain
        assert report.verification == "failed"
        assert report.verification_detail == str(error)
        assert server.connections == [], "nothing was told to the server"
        async with asyncio.timeout(HANG):
            while not server.listener.failed:
                await asyncio.sleep(0.01)
        trust = Trust(verify=False)
        client = await connect(server, identities, trust=trust)
        await client.close()


async def test_a_missing_intermediate_is_untrusted(identities: Identities) -> None:
    import dataclasses

    identity = dataclasses.replace(identities.with_intermediate, chain=())
    async with serving("tls", identities, identity=identity) as server:
        error, _ = await failure("tls", server.listener.port, identities)
        assert isinstance(error, CertificateError)
        assert error.problem == "untrusted"
        assert "'CN=mqttquic-lab intermediate CA'" in str(error)


async def test_another_application_protocol(identities: Identities) -> None:
    """Python's own servers ignore foreign ALPN; one that refuses sends this alert (RFC 7301 section 3.2)."""

    async def refuse(sock: socket.socket) -> None:
        await asyncio.get_running_loop().sock_recv(sock, 4096)
        await asyncio.get_running_loop().sock_sendall(sock, b"\x15\x03\x03\x00\x02\x02\x78")
        await stay_silent(sock)

    async with raw_server(refuse) as port:
        error, _ = await failure("tls", port, identities, alpn=("mqtt", "x"))
        assert type(error) is AlpnError
        assert "('mqtt', 'x')" in str(error)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS on this port (it answers in HTTP)"),
        (b"\x20\x02\x00\x05", "(it answers in plain MQTT)"),  # CONNACK
        (b"SSH-2.0-OpenSSH_9.2\r\n", "(it is an SSH server)"),
        (b"\xff", "(its first byte is 0xff)"),
        (b"\x16\x01\x02\x03\x04", "TLS"),  # a record of no known version
        (bytes(600), "does not speak TLS"),
        (b"\x15\x03\x03\x00\x02\x02\x28", "alert handshake_failure"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "no TLS version in common"),
        (b"\x15\x03\x03\x00\x02\x02\xfe", "alert 254"),
        (b"\x16\x03\x03\x00\x04\x02\xff\xff\xff", ""),  # a ServerHello of 16 MiB
        (b"\x16\x03\x03\x00\x04\x02\x00\x00\x00", "TLS handshake"),  # an empty one
        (b"\x17\x03\x03\x00\x01x", "TLS handshake"),  # data before the handshake
    ],
)
async def test_a_peer_that_speaks_something_else(answer: bytes, words: str, identities: Identities) -> None:
    async def speak(sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_recv(sock, 4096)
        await loop.sock_sendall(sock, answer)
        if words:
            await stay_silent(sock)

    async with raw_server(speak) as port:
        error, report = await failure("tls", port, identities)
        assert type(error) is HandshakeError
        assert words in str(error)
        assert f"127.0.0.1:{port}" in str(error)
        assert report.certificates == ()
        assert report.verification == "none"


async def test_a_peer_that_speaks_before_it_is_asked(identities: Identities) -> None:
    async def greet(sock: socket.socket) -> None:
        await asyncio.get_running_loop().sock_sendall(sock, b"220 mail.example ESMTP\r\n")
        await stay_silent(sock)

    async with raw_server(greet) as port:
        error, _ = await failure("tls", port, identities)
        assert type(error) is HandshakeError
        assert "does not speak TLS" in str(error)


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_a_peer_that_hangs_up_in_the_handshake(how: str, identities: Identities) -> None:
    async def hang_up(sock: socket.socket) -> None:
        await asyncio.get_running_loop().sock_recv(sock, 4096)
        if how == "rst":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async with raw_server(hang_up) as port:
        error, _ = await failure("tls", port, identities)
        assert type(error) is HandshakeError
        assert ("reset" if how == "rst" else "closed") in str(error)
        assert "mqtt://" in str(error)


async def test_our_plain_listener_is_no_tls_peer(identities: Identities) -> None:
    """The commonest mistake: mqtts:// to the port of mqtt://, where the broker closes at the first bad byte."""

    async with serving("tcp", identities, on_stream=lambda stream: stream.end()) as server:
        error, _ = await failure("tls", server.listener.port, identities)
        assert type(error) is HandshakeError
        assert "mqtt://" in str(error)


async def test_plain_bytes_to_a_tls_listener(identities: Identities) -> None:
    """The other way round: TCP connects, and the server hangs up at the first byte that is no ClientHello."""
    async with serving("tls", identities) as server:
        client = await open_connection(Address.of("tcp", "127.0.0.1", server.listener.port), trust=Trust())
        owner = Owner(client.control)
        client.control.write(b"\x10\x0c\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x00")
        async with asyncio.timeout(HANG):
            reason = await asyncio.shield(client.closed)
        assert isinstance(reason, DisconnectedError)
        assert len(owner.data) < 100
        assert server.listener.failed == 1


async def test_a_silent_peer(identities: Identities) -> None:
    async with raw_server(stay_silent) as port:
        report = HandshakeReport()
        with pytest.raises(ConnectTimeoutError, match=r"accepted the TCP connection but .* within 0\.1 s") as caught:
            await open_connection(
                Address.of("tls", "127.0.0.1", port), trust=identities.trust, timeout=0.1, report=report
            )
        assert isinstance(caught.value, TimeoutError)
        assert report.state == "failed"
        assert report.error == str(caught.value)


@BOTH
async def test_a_name_that_resolves_too_slowly(transport: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    assert not addresses.is_ip_address("slow.example")
    with pytest.raises(ConnectTimeoutError, match=r"slow\.example:1 did not answer within 0\.05 s"):
        await open_connection(Address.of(transport, "slow.example", 1), trust=Trust(), timeout=0.05)


async def test_garbage_after_the_handshake(identities: Identities) -> None:
    """Bytes that are no TLS record end the connection with an error, and only that connection."""
    async with serving("tls", identities) as server:
        client = await connect(server, identities)
        owner = Owner(client.control)
        there = await server.connected()
        there.send_raw(b"\x17\x03\x03\x00\x20" + bytes(32))  # type: ignore[attr-defined]
        async with asyncio.timeout(HANG):
            reason = await asyncio.shield(client.closed)
        assert isinstance(reason, DisconnectedError)
        assert "TLS ended the connection" in str(reason)
        assert owner.data == b""
        await asyncio.wait([there.closed], timeout=HANG)
        again = await connect(server, identities)
        await again.close()


async def test_a_connection_cut_without_close_notify(identities: Identities) -> None:
    async with serving("tls", identities) as server:
        client = await connect(server, identities)
        owner = Owner(client.control)
        there = await server.connected()
        there.control.write(b"half a sen")
        await owner.received(10)
        there.abort()
        async with asyncio.timeout(HANG):
            reason = await asyncio.shield(client.closed)
        assert isinstance(reason, DisconnectedError)
        assert owner.ended.is_set() or owner.resets == [0]
