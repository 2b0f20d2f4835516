"""Why a QUIC connection ended, in words, and as the error class a caller handles.

Codes are those of RFC 9000 section 20.1 (transport), RFC 9001 section 4.8 (0x100 plus a TLS alert) and, for
application codes, the running protocol's own.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aioquic.quic.packet import QuicErrorCode
from aioquic.tls import AlertDescription

from mqttquic_lab.errors import (
    AlpnError,
    CertificateError,
    ConnectError,
    ConnectTimeoutError,
    DisconnectedError,
    HandshakeError,
)
from mqttquic_lab.net.certificates import chain_info

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography import x509

    from mqttquic_lab.net.certificates import Trust

_CERTIFICATE_ALERTS = frozenset(
    {
        AlertDescription.bad_certificate,
        AlertDescription.unsupported_certificate,
        AlertDescription.certificate_revoked,
        AlertDescription.certificate_expired,
        AlertDescription.certificate_unknown,
        AlertDescription.unknown_ca,
    }
)

_NO_APPLICATION_PROTOCOL = QuicErrorCode.CRYPTO_ERROR + AlertDescription.no_application_protocol

_NO_COMMON_VERSION = "Could not find a common protocol version"
_HANDSHAKE_FAILURE = QuicErrorCode.CRYPTO_ERROR + AlertDescription.handshake_failure

IDLE_TIMEOUT = "Idle timeout"
"""Reason phrase by which aioquic tells that nothing was heard for the idle timeout."""

MAX_REASON = 256
"""Bytes of a reason phrase: what we send (it has to fit the packet), and what of the peer's is shown."""


@dataclass(frozen=True, slots=True)
class CloseInfo:
    """How a connection ended.

    Attributes
    ----------
    error_code : int
        From CONNECTION_CLOSE, or what stands for it locally.
    application : bool
        Whether it is the application protocol's code (frame 0x1d) and not QUIC's (frame 0x1c).
    reason : str
        Reason phrase, shortened to :data:`MAX_REASON`, printable.
    by_peer : bool
        Whether the peer sent it.
    name : str
        What an application code means, if the layer above knows it.
    """

    error_code: int
    application: bool
    reason: str
    by_peer: bool
    name: str = ""

    @property
    def code_text(self) -> str:
        """The code with its name: ``"CRYPTO_ERROR 0x178 (no_application_protocol)"``."""
        code = self.error_code
        if self.application:
            return f"application code 0x{code:x}{f' ({self.name})' if self.name else ''}"
        if 0x100 <= code <= 0x1FF:
            alert = code - 0x100
            name = AlertDescription(alert).name if alert in set(AlertDescription) else f"alert {alert}"
            return f"CRYPTO_ERROR 0x{code:x} ({name})"
        name = QuicErrorCode(code).name if code in set(QuicErrorCode) else "transport error"
        return f"{name} 0x{code:x}"

    def sentence(self) -> str:
        """Say who closed and why."""
        if not self.by_peer and self.reason == IDLE_TIMEOUT:
            return "nothing was heard from the peer for the QUIC idle timeout"
        who = "the peer" if self.by_peer else "this side"
        reason = f": {self.reason}" if self.reason else ""
        return f"{who} closed the connection with {self.code_text}{reason}"


def short_reason(text: str) -> str:
    """Return a reason phrase that fits a packet (UTF-8, at most :data:`MAX_REASON` bytes) and is printable."""
    cut = text.encode("utf-8", "replace")[:MAX_REASON].decode("utf-8", "ignore")
    return "".join(c if c.isprintable() else " " for c in cut)


def disconnected(info: CloseInfo, idle_timeout: float) -> DisconnectedError:
    """Return the error for the end of an established connection."""
    if not info.by_peer and info.reason == IDLE_TIMEOUT:
        return DisconnectedError(
            f"nothing was heard from the peer for {idle_timeout:g} s (QUIC idle timeout): it is gone, or the path is"
        )
    return DisconnectedError(info.sentence())


def handshake_failed(
    info: CloseInfo, *, where: str, alpn: Sequence[str], trust: Trust, name: str, chain: Sequence[x509.Certificate]
) -> ConnectError:
    """Return the error for a handshake that ended early.

    Parameters
    ----------
    info : CloseInfo
        How it ended.
    where : str
        Host and port, for the message.
    alpn : sequence of str
        What we offered.
    trust : Trust
        What the certificate was checked against.
    name : str
        Name the certificate had to have.
    chain : sequence of certificates
        What the server presented.
    """
    alert = info.error_code - QuicErrorCode.CRYPTO_ERROR if not info.application else -1
    if not info.application and info.error_code == _NO_APPLICATION_PROTOCOL:
        offered = ", ".join(repr(protocol) for protocol in alpn)
        return AlpnError(
            f"{where} speaks none of the application protocols offered ({offered}): it is not MQTT over QUIC, "
            "or it wants another ALPN name"
        )
    if not info.by_peer and alert in _CERTIFICATE_ALERTS:
        return certificate_error(info.reason, where=where, trust=trust, name=name, chain=chain)
    if not info.by_peer and info.reason == IDLE_TIMEOUT:
        return ConnectTimeoutError(f"{where} stopped answering during the handshake")
    if not info.application and info.error_code == QuicErrorCode.CONNECTION_REFUSED:
        return HandshakeError(f"{where} refuses connections now: {info.reason or 'it is probably overloaded'}")
    hint = ""
    if not info.by_peer and info.reason == _NO_COMMON_VERSION:
        hint = " (the server said which QUIC versions it speaks: try another quic_version)"
    elif not info.application and info.error_code == _HANDSHAKE_FAILURE:
        hint = " (no cipher suite or key-exchange group in common: offer more with cipher_suites and groups)"
    return HandshakeError(f"the handshake with {where} failed: {info.sentence()}{hint}")


def certificate_error(
    reason: str, *, where: str, trust: Trust, name: str, chain: Sequence[x509.Certificate]
) -> CertificateError:
    """Return the error for a certificate that failed verification, with what to do about it."""
    presented = chain_info(chain)
    leaf = presented[0] if presented else None
    now = dt.datetime.now(dt.UTC)
    if leaf is not None and now > leaf.not_after:
        return CertificateError(
            f"the certificate of {where} expired on {leaf.not_after:%Y-%m-%d %H:%M} UTC: "
            "it has to be renewed there (or this machine's clock is wrong)",
            problem="expired",
            chain=presented,
        )
    if leaf is not None and now < leaf.not_before:
        return CertificateError(
            f"the certificate of {where} is valid only from {leaf.not_before:%Y-%m-%d %H:%M} UTC on: "
            "is this machine's clock right?",
            problem="not-yet-valid",
            chain=presented,
        )
    if "doesn't match" in reason or "VerificationError" in reason or "subjectAltName" in reason:
        names = ", ".join(leaf.names) if leaf is not None and leaf.names else "no host at all"
        return CertificateError(
            f"the certificate of {where} is not for {name!r} but for {names}: connect by one of those names, "
            "or pass it as server_name",
            problem="name",
            chain=presented,
        )
    if "expired" in reason:
        return CertificateError(
            f"a certificate in the chain of {where} has expired ({reason})", problem="expired", chain=presented
        )
    if any(word in reason for word in ("issuer", "self-signed", "self signed", "verify the first")):
        issuer = presented[-1].issuer if presented else "unknown"
        return CertificateError(
            f"the certificate of {where} was issued by {issuer!r}, which is not among {trust.describe()}: "
            "pass its CA certificate as ca_file, or verify=False if you accept anybody",
            problem="untrusted",
            chain=presented,
        )
    return CertificateError(f"the certificate of {where} was refused: {reason}", problem="other", chain=presented)
