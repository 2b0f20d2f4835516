"""MQTT over TLS over TCP: the same connection as :mod:`mqttquic_lab.net.tcp` with TLS records in between.

The TLS engine works on memory buffers (``ssl.MemoryBIO``): that leaves coalescing and back-pressure where plain TCP
has them, and lets the handshake be watched message by message.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cryptography import x509

from mqttquic_lab.errors import (
    AlpnError,
    ConnectError,
    ConnectTimeoutError,
    DisconnectedError,
    HandshakeError,
    LabError,
    UsageError,
)
from mqttquic_lab.net.address import host_port, is_ip_address
from mqttquic_lab.net.certificates import certificate_refused, chain_info
from mqttquic_lab.net.dial import dial
from mqttquic_lab.net.tcp import Ready, TcpConnection, establish, failed, no_answer
from mqttquic_lab.net.tls_messages import CIPHER_SUITES, GROUPS, SIGNATURE_SCHEMES, HandshakeObserver
from mqttquic_lab.records.handshake import Flight, HandshakeReport
from mqttquic_lab.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqttquic_lab.net.address import Address
    from mqttquic_lab.net.certificates import Trust
    from mqttquic_lab.net.dial import LocalAddress
    from mqttquic_lab.net.stream import TransportName

TlsVersionName = Literal["1.2", "1.3"]

HANDSHAKE_TIMEOUT = 10.0
"""Seconds that a client may take for its handshake with our server."""

_READ_SIZE = 256 * 1024

_VERSIONS: dict[str, ssl.TLSVersion] = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

_VERSION_NAMES = {"TLSv1.2": "TLS 1.2", "TLSv1.3": "TLS 1.3"}

_RECORD_TYPES = range(20, 25)
"""First byte of a TLS record: change_cipher_spec, alert, handshake, application_data, heartbeat."""

_CONNACK = 0x20
"""First byte of MQTT's CONNACK, by which a broker might answer our ClientHello."""

_NOT_YET_VALID = 9
_EXPIRED = 10
_OTHER_NAME = {62, 63, 64}
_UNTRUSTED = {2, 18, 19, 20, 21, 24, 27}
"""X509_V_ERR_* codes of OpenSSL: no issuer found, self-signed, no CA, not trusted."""


class TlsConnection(TcpConnection):
    """A TLS connection, client or server side.

    Parameters
    ----------
    report, trace, ready
        As for :class:`TcpConnection`.
    context : ssl.SSLContext
        Of the right side.
    server_side : bool
        Which side this is.
    server_name : str, optional
        Client: name to check the certificate for and to send as SNI (an IP address is checked, but not sent).
    trust : Trust, optional
        Client: what the certificate is checked against; for messages only, the context does the checking.
    observer : HandshakeObserver, optional
        Client: attached to `context`, which belongs to this connection alone.
    handshake_timeout : float, optional
        Seconds for the handshake; None leaves that to the caller.
    """

    transport: ClassVar[TransportName] = "tls"

    def __init__(
        self,
        *,
        report: HandshakeReport,
        trace: Trace,
        ready: Ready,
        context: ssl.SSLContext,
        server_side: bool,
        server_name: str | None = None,
        trust: Trust | None = None,
        observer: HandshakeObserver | None = None,
        handshake_timeout: float | None = None,
    ) -> None:
        super().__init__(report=report, trace=trace, ready=ready)
        self._context = context
        self.server_side = server_side
        self._server_name = server_name
        self._trust = trust
        self._observer = observer
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_name
        )
        self._handshaking = True
        self._heard = False
        self._handshake_timeout = handshake_timeout
        self._handshake_timer: asyncio.TimerHandle | None = None

    # --- handshake

    def start(self) -> None:
        """Send ClientHello, or wait for it."""
        if self._handshake_timeout is not None:
            self._handshake_timer = self._loop.call_later(self._handshake_timeout, self._handshake_too_slow)
        if not self.server_side:
            self.mark("client_hello")
        if self._observer is not None:
            self._observer.started = self.started
        self._advance()

    def _advance(self) -> None:
        """Take the handshake as far as what has arrived allows."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._push()
            return
        except (ssl.SSLError, ssl.CertificateError) as error:
            self._push()  # the alert
            self._fill_certificates()
            self.fail(self._explain(error))
            return
        self._push()
        self._handshaking = False
        self.mark("handshake_complete")
        self._fill_report()
        self.established()
        self._read()

    def _handshake_too_slow(self) -> None:
        self.fail(HandshakeError(f"no TLS handshake within {self._handshake_timeout:g} s"))

    # --- data

    def data_received(self, data: bytes) -> None:
        """Decrypt and pass on what arrived."""
        if self._closing:
            return
        if not self._heard:
            self._heard = True
            if data[0] not in _RECORD_TYPES and not self.server_side:
                # OpenSSL would wait for a whole record header, and then not know what it is.
                self.fail(self._no_tls(_guess(data)))
                return
        self._incoming.write(data)
        if self._handshaking:
            self._advance()
        else:
            self._read()

    def _read(self) -> None:
        """Deliver what is complete in the buffer, all of it at once."""
        chunks: list[bytes] = []
        ended = False
        failure: ssl.SSLError | None = None
        try:
            # An empty buffer would end in SSLWantReadError, which costs more than decrypting a small record.
            while self._incoming.pending or self._tls.pending():
                chunk = self._tls.read(_READ_SIZE)
                if not chunk:
                    ended = True  # close_notify, after ours
                    break
                chunks.append(chunk)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            ended = True
        except ssl.SSLError as error:
            failure = error
        self._push()  # answers to key updates, alerts
        if chunks and not self._closing:
            if self._observer is not None:
                # Session tickets come before the first data, if at all.
                self.report.tickets = tuple(self._observer.tickets)
                self._observer.detach(self._context)
                self._observer = None
            data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            if self.trace.detail:
                self.trace.emit("net", "data_received", size=len(data))
            self.control.deliver(data)
        if failure is not None:
            self.fail(self._explain_later(failure))
        elif ended and not self._closing and not self._peer_ended:
            self._peer_ended = True
            self.control.deliver_end()

    def eof_received(self) -> bool:
        """Note the peer's FIN, with or without the close_notify that should come before it."""
        if self._closing:
            return False
        if self._handshaking:
            self.fail(
                HandshakeError(
                    f"{self._where} closed the connection during the TLS handshake: it may speak no TLS on this port "
                    "(plain MQTT is mqtt://), or no version and cipher that we offer"
                )
            )
            return False
        if not self._peer_ended:
            self._peer_ended = True
            self.control.deliver_end()
        return True

    def send(self, data: bytes) -> None:
        """Encrypt application bytes and write them to the transport."""
        try:
            written = self._tls.write(data)
            if written < len(data):
                rest = memoryview(data)[written:]
                while rest:
                    rest = rest[self._tls.write(rest) :]
        except ssl.SSLError as error:
            self.fail(self._explain_later(error))
            return
        self._push()

    def send_end(self) -> None:
        """Send close_notify, then FIN (RFC 8446 section 6.1: each direction ends by itself)."""
        with suppress(ssl.SSLError):  # "want read": the peer's own close_notify has not come; nothing waits for it
            self._tls.unwrap()
        self._push()
        super().send_end()

    def _push(self) -> None:
        if self._outgoing.pending:
            self.send_raw(self._outgoing.read())

    def connection_lost(self, exc: Exception | None) -> None:
        """Settle everything; a handshake cut short gets its own error."""
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
        if self._handshaking and not self._closing:
            self._closing = True
            self._reason = HandshakeError(
                f"{self._where} reset the connection during the TLS handshake: it may speak no TLS on this port "
                "(plain MQTT is mqtt://)"
            )
            self._reason.__cause__ = exc
        if self._observer is not None:
            self._observer.detach(self._context)
            self._observer = None
        super().connection_lost(exc)

    # --- report

    def established(self) -> None:
        """Report the connection as established."""
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
        super().established()

    def _fill_report(self) -> None:
        report, tls, observer = self.report, self._tls, self._observer
        version = tls.version()
        report.tls_version = _VERSION_NAMES.get(version or "", version)
        report.alpn = tls.selected_alpn_protocol()
        report.resumed = bool(tls.session_reused)
        cipher = tls.cipher()
        report.cipher_suite = cipher[0] if cipher else None
        if observer is not None and observer.cipher_suite is not None:
            report.cipher_suite = CIPHER_SUITES.get(observer.cipher_suite, report.cipher_suite)
        if self.server_side:
            return
        self._fill_certificates()
        self._fill_verification()
        flights = observer.flights() if observer is not None else ()
        if not flights:
            # The public interface tells no more than that there was a handshake.
            begin, end = report.timings["client_hello"], report.timings["handshake_complete"]
            flights = (
                Flight("client", begin, begin, ("TLS",), ("ClientHello",)),
                Flight("server", end, end, ("TLS",), ("ServerHello", "Finished")),
                Flight("client", end, end, ("TLS",), ("Finished",)),
            )
        report.flights += flights
        if observer is None:
            return
        server_hello = observer.time_of("ServerHello")
        if server_hello is not None:
            timings = {**report.timings, "server_hello": server_hello}
            report.timings = dict(sorted(timings.items(), key=lambda item: item[1]))
        if observer.group is not None:
            unknown = (f"0x{observer.group:04x}", None)
            report.key_exchange_group, report.key_exchange_bits = GROUPS.get(observer.group, unknown)
        if observer.signature_scheme is not None:
            scheme = observer.signature_scheme
            report.signature_algorithm = SIGNATURE_SCHEMES.get(scheme, f"0x{scheme:04x}")
        report.tickets = tuple(observer.tickets)

    def _fill_certificates(self) -> None:
        """Note the chain that the server presented; also after a failure, so that a person can look at it."""
        if self.server_side:
            return
        chain: Sequence[x509.Certificate] = self._observer.chain if self._observer is not None else ()
        if not chain:
            chain = _chain(self._tls, "get_unverified_chain")
        self.report.certificates = chain_info(chain)

    def _fill_verification(self) -> None:
        report, context = self.report, self._context
        if report.resumed:
            report.verification = "resumed"
            report.verification_detail = "resumed by a ticket of an earlier session; the server showed no certificate"
            return
        if context.verify_mode != ssl.CERT_REQUIRED:
            report.verification = "off"
            report.verification_detail = "not checked: verification was switched off, anybody could be the other end"
            return
        report.verified_chain = chain_info(_chain(self._tls, "get_verified_chain"))
        report.verification = "verified"
        name = f"valid for {self._server_name!r} now" if context.check_hostname else "valid now (name not checked)"
        anchor = f" below {report.verified_chain[-1].subject!r}" if report.verified_chain else ""
        source = self._authorities
        report.verification_detail = f"{name}; issued{anchor}, one of {source}"

    # --- errors

    @property
    def _authorities(self) -> str:
        return self._trust.describe() if self._trust is not None else "the authorities of the ssl_context given"

    @property
    def _where(self) -> str:
        host, port = self.report.peer_address or ("the peer", 0)
        name = self._server_name or host
        return host_port(name, port)

    def _explain(self, error: ssl.SSLError | ssl.CertificateError) -> LabError:
        """Return the error for a failed handshake."""
        result = self._explain_certificate(error) or self._explain_handshake(error)
        result.__cause__ = error
        return result

    def _explain_certificate(self, error: Exception) -> ConnectError | None:
        if self.server_side or not isinstance(error, ssl.CertificateError):
            return None
        code = getattr(error, "verify_code", None)
        detail = str(getattr(error, "verify_message", "") or error)
        problem = "other"
        if code == _EXPIRED:
            problem = "expired"
        elif code == _NOT_YET_VALID:
            problem = "not-yet-valid"
        elif code in _OTHER_NAME:
            problem, detail = "name", ""
        elif code in _UNTRUSTED:
            problem = "untrusted"
        self.report.verification = "failed"
        refused = certificate_refused(
            problem,
            where=self._where,
            name=self._server_name or "",
            authorities=self._authorities,
            chain=self.report.certificates,
            detail=detail,
        )
        self.report.verification_detail = str(refused)
        return refused

    def _explain_handshake(self, error: ssl.SSLError | ssl.CertificateError) -> ConnectError:
        where = self._where
        reason = str(getattr(error, "reason", None) or error)
        alert = self._observer.alert if self._observer is not None else ""
        if alert == "no_application_protocol" or reason.endswith("NO_APPLICATION_PROTOCOL"):
            offered = ", ".join(repr(name) for name in self.report.offered_alpn)
            return AlpnError(
                f"{where} speaks none of the application protocols offered ({offered}): it is not MQTT over TLS, "
                "or it wants another ALPN name"
            )
        if alert == "protocol_version" or reason in {"UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION"}:
            return HandshakeError(
                f"{where} and we have no TLS version in common: if it speaks TLS 1.2 only, pass minimum_tls='1.2'"
            )
        if reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST"} and not alert:
            return self._no_tls(_words(reason))
        if alert:
            return HandshakeError(f"the TLS handshake with {where} failed: it sent the alert {alert}")
        return HandshakeError(f"the TLS handshake with {where} failed: {_words(reason)}")

    def _no_tls(self, detail: str) -> HandshakeError:
        return HandshakeError(f"{self._where} does not speak TLS on this port ({detail}): plain MQTT is mqtt://")

    def _explain_later(self, error: ssl.SSLError) -> LabError:
        """Return the error for a connection that TLS ended after the handshake."""
        reason = str(error.reason or error)
        if reason.endswith("CERTIFICATE_REQUIRED"):
            # In TLS 1.3 a server checks the client's certificate after the client has finished.
            text = f"{self._where} demands a client certificate: give one in an ssl_context of your own"
        else:
            text = f"TLS ended the connection: {_words(reason)}"
        result = DisconnectedError(text)
        result.__cause__ = error
        return result


def _guess(data: bytes) -> str:
    """Return what a peer seems to speak that does not speak TLS."""
    for beginning, name in ((b"HTTP/", "it answers in HTTP"), (b"SSH-", "it is an SSH server")):
        if data.startswith(beginning):
            return name
    if data[0] == _CONNACK:
        return "it answers in plain MQTT"
    return f"its first byte is 0x{data[0]:02x}"


def _words(reason: str) -> str:
    """Return OpenSSL's reason code as words."""
    return reason.replace("_", " ").lower() if reason.isupper() or "_" in reason else reason


def _chain(tls: ssl.SSLObject, method: str) -> list[x509.Certificate]:
    """Return a certificate chain of a TLS connection, empty where Python cannot tell.

    ``get_verified_chain`` and ``get_unverified_chain`` are public from Python 3.13 on; before that the object inside
    has them, with another result type.
    """
    getter: Any = getattr(tls, method, None) or getattr(getattr(tls, "_sslobj", None), method, None)
    if getter is None:
        leaf = tls.getpeercert(binary_form=True) if method == "get_unverified_chain" else None
        return [x509.load_der_x509_certificate(leaf)] if leaf else []
    try:
        entries = getter() or ()
        # DER bytes from 3.13 on, before that _ssl.Certificate with public_bytes(); ENCODING_DER is 2.
        encoded = [entry if isinstance(entry, bytes) else entry.public_bytes(2) for entry in entries]
        return [x509.load_der_x509_certificate(entry) for entry in encoded]
    except (ValueError, ssl.SSLError):
        return []


def client_context(
    trust: Trust, *, alpn: Sequence[str] = ("mqtt",), minimum_tls: TlsVersionName = "1.3"
) -> ssl.SSLContext:
    """Return a TLS client context for what `trust` says.

    Parameters
    ----------
    trust : Trust
        Authorities, and whether to verify at all.
    alpn : sequence of str
        Application protocols to offer (RFC 7301); may be empty.
    minimum_tls : {"1.3", "1.2"}
        Oldest version to accept. 1.3 by default, because that is what QUIC uses; some brokers have 1.2 only.

    Raises
    ------
    UsageError
        The CA file cannot be used, or `minimum_tls` is another version.
    """
    if minimum_tls not in _VERSIONS:
        raise UsageError(f"minimum_tls={minimum_tls!r} is not '1.3' or '1.2' (older versions are broken, RFC 8996)")
    # Not ssl.create_default_context(): that would write keys to the file that SSLKEYLOGFILE names, unasked.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = _VERSIONS[minimum_tls]
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if not trust.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    pem = trust.anchors_pem()
    if pem is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        # DER, because OpenSSL stops at text between PEM blocks that it does not expect.
        anchors = x509.load_pem_x509_certificates(pem)
        context.load_verify_locations(cadata=b"".join(_der(anchor) for anchor in anchors))
    return context


def _der(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.DER)


async def open_tls(
    address: Address,
    *,
    trust: Trust,
    alpn: Sequence[str] = ("mqtt",),
    timeout: float = 10.0,
    trace: Trace | None = None,
    local_address: LocalAddress | None = None,
    minimum_tls: TlsVersionName = "1.3",
    ssl_context: ssl.SSLContext | None = None,
    report: HandshakeReport | None = None,
) -> TlsConnection:
    """Open a TLS connection over TCP.

    Parameters
    ----------
    address : Address
        Where to; its scheme is not looked at.
    trust : Trust
        What to demand of the server's certificate.
    alpn : sequence of str
        Application protocols to offer. A server that ignores them is accepted (most MQTT brokers do over TLS); one
        that refuses them is an :class:`AlpnError`.
    timeout : float
        Seconds for name resolution, TCP and TLS together.
    trace : Trace, optional
        Trace to use; one of its own by default.
    local_address : tuple of (str, int), optional
        Our own IP address and port to connect from.
    minimum_tls : {"1.3", "1.2"}
        Oldest version to accept.
    ssl_context : ssl.SSLContext, optional
        A client context of the user's, used as it is: `alpn`, `minimum_tls` and all of `trust` but ``server_name``
        then have no effect. It may carry a client certificate.
    report : HandshakeReport, optional
        The report to fill; it is also filled as far as possible when this fails.

    Raises
    ------
    UnreachableError, ConnectTimeoutError, CertificateError, AlpnError, HandshakeError, UsageError
        At which step it ended, and why.
    """
    own = ssl_context is None
    context = client_context(trust, alpn=alpn, minimum_tls=minimum_tls) if ssl_context is None else ssl_context
    name = (trust.server_name or address.host).rstrip(".")
    trace = trace if trace is not None else Trace()
    facts = report if report is not None else HandshakeReport()
    facts.url, facts.transport, facts.state = address.url, "tls", "connecting"
    facts.offered_alpn = tuple(alpn) if own else ()
    facts.server_name = None if is_ip_address(name) else name
    observer: HandshakeObserver | None = None
    if own:
        # A user's context may serve other connections too; those are not ours to watch.
        observer = HandshakeObserver(trace)
        observer.attach(context)

    def make(ready: Ready) -> TlsConnection:
        return TlsConnection(
            report=facts,
            trace=trace,
            ready=ready,
            context=context,
            server_side=False,
            server_name=name,
            trust=trust if own else None,
            observer=observer,
        )

    connected = False
    try:
        async with asyncio.timeout(timeout):
            dialled = await dial(address.host, address.port, local_address=local_address)
            connected = True
            return await establish(dialled, make)
    except LabError as error:
        failed(facts, error)
        raise
    except TimeoutError:
        if not connected:
            raise failed(facts, no_answer(address, timeout)) from None
        silent = ConnectTimeoutError(
            f"{host_port(address.host, address.port)} accepted the TCP connection but did not finish the TLS handshake "
            f"within {timeout:g} s: it may speak no TLS on this port (plain MQTT is mqtt://)"
        )
        raise failed(facts, silent) from None
