"""What the TLS messages of a handshake say that Python's ``ssl`` does not: group, signature, chain, flights, tickets.

OpenSSL shows each handshake message, decrypted, to a callback that CPython exposes as ``SSLContext._msg_callback``
(private, in every release from 3.8 on). :class:`HandshakeObserver` reads from it what a person wants to know. Nothing
depends on it: without that attribute the report is only less complete.

Formats: RFC 8446 section 4 (TLS 1.3), RFC 5246 section 7.4 and RFC 8422 section 5.4 (TLS 1.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from cryptography import x509

from mqttquic_lab.records.handshake import Flight, TicketInfo
from mqttquic_lab.trace import CLOCK

if TYPE_CHECKING:
    import ssl

    from mqttquic_lab.trace import Trace

GROUPS: dict[int, tuple[str, int | None]] = {
    0x0017: ("SECP256R1", 256),
    0x0018: ("SECP384R1", 384),
    0x0019: ("SECP521R1", 521),
    0x001D: ("X25519", 253),
    0x001E: ("X448", 448),
    0x0100: ("FFDHE2048", 2048),
    0x0101: ("FFDHE3072", 3072),
    0x0102: ("FFDHE4096", 4096),
    0x11EB: ("SECP256R1MLKEM768", None),
    0x11EC: ("X25519MLKEM768", None),
    0x11ED: ("SECP384R1MLKEM1024", None),
}
"""TLS Supported Groups (IANA): code -> name, bits as OpenSSL counts them (None where one number says nothing)."""

SIGNATURE_SCHEMES: dict[int, str] = {
    0x0201: "rsa_pkcs1_sha1",
    0x0203: "ecdsa_sha1",
    0x0401: "rsa_pkcs1_sha256",
    0x0501: "rsa_pkcs1_sha384",
    0x0601: "rsa_pkcs1_sha512",
    0x0403: "ecdsa_secp256r1_sha256",
    0x0503: "ecdsa_secp384r1_sha384",
    0x0603: "ecdsa_secp521r1_sha512",
    0x0804: "rsa_pss_rsae_sha256",
    0x0805: "rsa_pss_rsae_sha384",
    0x0806: "rsa_pss_rsae_sha512",
    0x0807: "ed25519",
    0x0808: "ed448",
    0x0809: "rsa_pss_pss_sha256",
    0x080A: "rsa_pss_pss_sha384",
    0x080B: "rsa_pss_pss_sha512",
    0x0904: "mldsa44",
    0x0905: "mldsa65",
    0x0906: "mldsa87",
}
"""TLS SignatureScheme (IANA): code -> name."""

CIPHER_SUITES: dict[int, str] = {
    0x1301: "TLS_AES_128_GCM_SHA256",
    0x1302: "TLS_AES_256_GCM_SHA384",
    0x1303: "TLS_CHACHA20_POLY1305_SHA256",
    0x1304: "TLS_AES_128_CCM_SHA256",
    0x1305: "TLS_AES_128_CCM_8_SHA256",
    0x009E: "TLS_DHE_RSA_WITH_AES_128_GCM_SHA256",
    0x009F: "TLS_DHE_RSA_WITH_AES_256_GCM_SHA384",
    0xC023: "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    0xC024: "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA384",
    0xC027: "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    0xC028: "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA384",
    0xC02B: "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    0xC02C: "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    0xC02F: "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    0xC030: "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    0xCCA8: "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    0xCCA9: "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
}
"""TLS Cipher Suites (IANA): code -> name, those that OpenSSL offers by default."""

ALERTS: dict[int, str] = {
    0: "close_notify",
    10: "unexpected_message",
    20: "bad_record_mac",
    22: "record_overflow",
    40: "handshake_failure",
    42: "bad_certificate",
    43: "unsupported_certificate",
    44: "certificate_revoked",
    45: "certificate_expired",
    46: "certificate_unknown",
    47: "illegal_parameter",
    48: "unknown_ca",
    49: "access_denied",
    50: "decode_error",
    51: "decrypt_error",
    70: "protocol_version",
    71: "insufficient_security",
    80: "internal_error",
    86: "inappropriate_fallback",
    90: "user_canceled",
    109: "missing_extension",
    110: "unsupported_extension",
    112: "unrecognized_name",
    113: "bad_certificate_status_response",
    115: "unknown_psk_identity",
    116: "certificate_required",
    120: "no_application_protocol",
}
"""TLS alerts (RFC 8446 section 6): code -> name."""

_MESSAGES: dict[int, str] = {
    0: "HelloRequest",
    1: "ClientHello",
    2: "ServerHello",
    4: "NewSessionTicket",
    5: "EndOfEarlyData",
    8: "EncryptedExtensions",
    11: "Certificate",
    12: "ServerKeyExchange",
    13: "CertificateRequest",
    14: "ServerHelloDone",
    15: "CertificateVerify",
    16: "ClientKeyExchange",
    20: "Finished",
    22: "CertificateStatus",
    24: "KeyUpdate",
    25: "CompressedCertificate",
}

_HELLO_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""The random value that makes a ServerHello a HelloRetryRequest (RFC 8446 section 4.1.3)."""

_CONTENT_ALERT = 21
_CONTENT_HANDSHAKE = 22
_EXTENSION_EARLY_DATA = 42
_EXTENSION_KEY_SHARE = 51
_NAMED_CURVE = 3

_MAX_MESSAGES = 64
"""Messages remembered for the ladder; an ordinary handshake has ten."""

_MAX_TICKETS = 16


class HandshakeObserver:
    """Collects facts from the TLS messages that one client context sends and receives.

    Attributes
    ----------
    group, signature_scheme : int or None
        Codes of the key exchange and of the server's signature.
    cipher_suite : int or None
        Code chosen by the server.
    chain : tuple of cryptography.x509.Certificate
        What the server presented, leaf first.
    tickets : list of TicketInfo
        Session tickets that came.
    alert : str
        Name of the last alert that the peer sent.
    started : float
        Zero of the times in :meth:`flights`, on :data:`mqttquic_lab.trace.CLOCK`.
    """

    def __init__(self, trace: Trace) -> None:
        self.group: int | None = None
        self.signature_scheme: int | None = None
        self.cipher_suite: int | None = None
        self.chain: tuple[x509.Certificate, ...] = ()
        self.tickets: list[TicketInfo] = []
        self.alert = ""
        self.started = CLOCK()
        self._trace = trace
        self._messages: list[tuple[Literal["client", "server"], str, float]] = []

    def attach(self, context: ssl.SSLContext) -> None:
        """Watch what connections of a client context send and receive."""
        if hasattr(context, "_msg_callback"):
            context._msg_callback = self._on_message  # noqa: SLF001 - see the module

    def detach(self, context: ssl.SSLContext) -> None:
        """Stop watching: afterwards OpenSSL's callback costs next to nothing per record."""
        if hasattr(context, "_msg_callback"):
            context._msg_callback = None  # noqa: SLF001

    def time_of(self, name: str) -> float | None:
        """Return when the first message of this name was sent or received, seconds after :attr:`started`."""
        return next((time for _, message, time in self._messages if message == name), None)

    def flights(self) -> tuple[Flight, ...]:
        """Return the messages of the handshake, those without a change of direction in between together."""
        result: list[Flight] = []
        for sender, name, time in self._messages:
            if result and result[-1].sender == sender:
                last = result.pop()
                result.append(Flight(sender, last.start, time, last.packets, (*last.content, name)))
            else:
                result.append(Flight(sender, time, time, ("TLS",), (name,)))
        return tuple(result)

    def _on_message(
        self, _conn: Any, direction: str, version: int, content_type: int, _message_type: int, data: bytes
    ) -> None:
        """Take a message from OpenSSL; called for record headers too, which are of no interest."""
        sent = direction == "write"
        if content_type == _CONTENT_ALERT:
            if len(data) >= 2:  # level, description
                name = ALERTS.get(data[1], str(data[1]))
                self._trace.emit("tls", "alert", direction="sent" if sent else "received", alert=name)
                if not sent:
                    self.alert = name
        elif content_type == _CONTENT_HANDSHAKE and data:
            name = _MESSAGES.get(data[0], f"type {data[0]}")
            if not sent:
                try:
                    name = self._read(data, name, int(version))
                except ValueError:
                    # OpenSSL shows messages before it has checked them; it will refuse this one itself.
                    name += " (malformed)"
            self._trace.emit("tls", "message", direction="sent" if sent else "received", message=name, size=len(data))
            if len(self._messages) < _MAX_MESSAGES and data[0] != 4:
                self._messages.append(("client" if sent else "server", name, CLOCK() - self.started))

    def _read(self, data: bytes, name: str, version: int) -> str:
        """Note what a message from the server says; returns its name."""
        reader = _Reader(data)
        reader.skip(4)  # msg_type, length
        tls13 = version >= 0x0304
        if name == "ServerHello":
            return self._read_server_hello(reader)
        if name == "Certificate":
            self._read_certificate(reader, tls13=tls13)
        elif name == "CertificateVerify":
            self.signature_scheme = reader.integer(2)
        elif name == "ServerKeyExchange" and reader.integer(1) == _NAMED_CURVE:
            self.group = reader.integer(2)
            reader.vector(1)  # public key
            self.signature_scheme = reader.integer(2)
        elif name == "NewSessionTicket" and tls13 and len(self.tickets) < _MAX_TICKETS:
            lifetime = reader.integer(4)
            reader.skip(4)  # ticket_age_add
            reader.vector(1)  # nonce
            reader.vector(2)  # ticket
            early = reader.extensions().get(_EXTENSION_EARLY_DATA)
            self.tickets.append(TicketInfo(lifetime, int.from_bytes(early, "big") if early else 0))
        return name

    def _read_server_hello(self, reader: _Reader) -> str:
        reader.skip(2)  # legacy_version
        random = reader.take(32)
        reader.vector(1)  # session id
        self.cipher_suite = reader.integer(2)
        reader.skip(1)  # compression
        key_share = reader.extensions().get(_EXTENSION_KEY_SHARE) if reader.left else None
        if key_share:
            self.group = _Reader(key_share).integer(2)
        return "HelloRetryRequest" if random == _HELLO_RETRY else "ServerHello"

    def _read_certificate(self, reader: _Reader, *, tls13: bool) -> None:
        if tls13:
            reader.vector(1)  # certificate_request_context
        entries = _Reader(reader.vector(3))
        chain = []
        while entries.left:
            chain.append(x509.load_der_x509_certificate(entries.vector(3)))
            if tls13:
                entries.vector(2)  # extensions
        self.chain = tuple(chain)


class _Reader:
    """Reads TLS presentation language (RFC 8446 section 3) from bytes that may be anything."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise ValueError(f"{size} bytes wanted, {self.left} left")
        self._at += size
        return self._data[self._at - size : self._at]

    def skip(self, size: int) -> None:
        self.take(size)

    def integer(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, length_size: int) -> bytes:
        """Return a vector with a length of this many bytes before it."""
        return self.take(self.integer(length_size))

    def extensions(self) -> dict[int, bytes]:
        inner = _Reader(self.vector(2))
        result = {}
        while inner.left:
            code = inner.integer(2)
            result[code] = inner.vector(2)
        return result
