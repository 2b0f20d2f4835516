"""Words for the ways in which connections end, and the error classes of failed handshakes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.errors import (
    AlpnError,
    CertificateError,
    ConnectError,
    ConnectTimeoutError,
    HandshakeError,
)
from mqttquic_lab.net.certificates import Trust
from mqttquic_lab.quic.reasons import CloseInfo, certificate_error, disconnected, handshake_failed, short_reason

if TYPE_CHECKING:
    from tests.helpers.certs import Identities


@pytest.mark.parametrize(
    ("code", "application", "text"),
    [
        (0x0, False, "NO_ERROR 0x0"),
        (0xA, False, "PROTOCOL_VIOLATION 0xa"),
        (0x178, False, "CRYPTO_ERROR 0x178 (no_application_protocol)"),
        (0x15A, False, "CRYPTO_ERROR 0x15a (user_canceled)"),
        (0x1FF, False, "CRYPTO_ERROR 0x1ff (alert 255)"),
        (0x7777, False, "transport error 0x7777"),
        (0xB3, True, "application code 0xb3"),
    ],
)
def test_codes_have_names(code: int, application: bool, text: str) -> None:
    assert CloseInfo(code, application, "", by_peer=True).code_text == text


def test_who_closed_and_why() -> None:
    assert CloseInfo(1, False, "boom", by_peer=True).sentence() == (
        "the peer closed the connection with INTERNAL_ERROR 0x1: boom"
    )
    assert str(disconnected(CloseInfo(1, False, "Idle timeout", by_peer=True), 5)).startswith("the peer closed")
    assert "for 5 s" in str(disconnected(CloseInfo(1, False, "Idle timeout", by_peer=False), 5))


@pytest.mark.parametrize(
    ("code", "by_peer", "reason", "expected"),
    [
        (0x178, True, "", AlpnError),
        (0x178, False, "", AlpnError),  # the server chose what we did not offer
        (0x12A, False, "unable to get local issuer certificate", CertificateError),
        (0x12A, True, "", HandshakeError),  # the server did not like *our* certificate
        (0x2, True, "busy", HandshakeError),
        (0x1, False, "Idle timeout", ConnectTimeoutError),
        (0x128, True, "", HandshakeError),
    ],
)
def test_classes(code: int, by_peer: bool, reason: str, expected: type[ConnectError]) -> None:
    info = CloseInfo(code, False, reason, by_peer)
    error = handshake_failed(info, where="h:1", alpn=("mqtt",), trust=Trust(), name="h", chain=[])
    assert type(error) is expected
    assert "h:1" in str(error)


def test_an_application_code_is_not_an_alert() -> None:
    info = CloseInfo(0x178, True, "", by_peer=True)
    error = handshake_failed(info, where="h:1", alpn=("mqtt",), trust=Trust(), name="h", chain=[])
    assert type(error) is HandshakeError


@pytest.mark.parametrize(
    ("reason", "problem"),
    [
        ("self-signed certificate in certificate chain", "untrusted"),
        ("unable to get local issuer certificate", "untrusted"),
        ("certificate has expired", "expired"),
        ("hostname 'a' doesn't match 'b'", "name"),
        ("unsupported certificate purpose", "other"),
    ],
)
def test_certificate_problems(identities: Identities, reason: str, problem: str) -> None:
    chain = [identities.good.certificate]
    error = certificate_error(reason, where="h:1", trust=identities.trust, name="a", chain=chain)
    assert error.problem == problem
    assert error.chain[0].subject == "CN=localhost"


def test_certificate_without_names() -> None:
    error = certificate_error("VerificationError", where="h:1", trust=Trust(), name="a", chain=[])
    assert "but for no host at all" in str(error)


def test_reasons_are_cut_at_whole_characters() -> None:
    assert short_reason("a" * 300) == "a" * 256
    assert short_reason("ä" * 200) == "ä" * 128
    assert short_reason("x" + "ä" * 200) == "x" + "ä" * 127
    assert short_reason("a\nb\x00c\u202e") == "a b c "
