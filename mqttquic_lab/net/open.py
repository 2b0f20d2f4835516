"""Opening a connection to a broker, over whichever transport its URL names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttquic_lab.errors import UsageError
from mqttquic_lab.net.tcp import open_tcp
from mqttquic_lab.net.tls import open_tls
from mqttquic_lab.quic.knobs import Knobs

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from mqttquic_lab.net.address import Address
    from mqttquic_lab.net.certificates import Trust
    from mqttquic_lab.net.dial import LocalAddress
    from mqttquic_lab.net.stream import Connection
    from mqttquic_lab.net.tls import TlsVersionName
    from mqttquic_lab.quic.tickets import TicketStore
    from mqttquic_lab.records.handshake import HandshakeReport
    from mqttquic_lab.trace import Trace


async def open_connection(
    address: Address,
    *,
    trust: Trust,
    alpn: Sequence[str] = ("mqtt",),
    timeout: float = 10.0,
    trace: Trace | None = None,
    tuning: str = "realistic",
    idle_timeout: float = 60.0,
    local_address: LocalAddress | None = None,
    minimum_tls: TlsVersionName = "1.3",
    ssl_context: ssl.SSLContext | None = None,
    knobs: Knobs | None = None,
    keep_alive: bool = True,
    tickets: TicketStore | None = None,
    early_data: bytes = b"",
    early_content: Sequence[str] = (),
    report: HandshakeReport | None = None,
) -> Connection:
    """Open a connection and complete its handshake.

    Parameters
    ----------
    address : Address
        Where to, and by ``address.transport`` how: ``"quic"``, ``"tls"`` or ``"tcp"``.
    trust : Trust
        What to demand of the server's certificate (QUIC, TLS).
    alpn : sequence of str
        Application protocols to offer (RFC 7301). QUIC demands that the server takes one (RFC 9001 section 8.1); over
        TLS a server may ignore them.
    timeout : float
        Seconds for name resolution and all handshakes together.
    trace : Trace, optional
        Trace to use; one of its own by default.
    tuning : {"realistic", "loopback"}
        Tuning of QUIC; see :mod:`mqttquic_lab.quic.tuning`.
    idle_timeout : float
        QUIC: seconds without a sign of life after which the connection is given up (RFC 9000 section 10.1).
    local_address : tuple of (str, int), optional
        Our own IP address and port (0 for any) to connect from.
    minimum_tls : {"1.3", "1.2"}
        TLS over TCP: oldest version to accept. QUIC is always TLS 1.3.
    ssl_context : ssl.SSLContext, optional
        TLS over TCP: a client context to use as it is.
    knobs : Knobs, optional
        QUIC: version, cipher suites, key-exchange groups and congestion controller.
    keep_alive : bool
        QUIC: send a PING when nothing was heard for a third of the idle timeout.
    tickets : TicketStore, optional
        QUIC: where session tickets are taken from and kept.
    early_data : bytes
        QUIC: written first, if possible in 0-RTT packets; ``connection.spoke_first`` tells that it was. Other
        transports do not write it.
    early_content : sequence of str
        QUIC: names of what that is.
    report : HandshakeReport, optional
        The report to fill; it is also filled as far as possible when this fails.

    Raises
    ------
    UnreachableError
        The name does not resolve, nothing listens, or there is no way to the host.
    ConnectTimeoutError
        Nobody answered within `timeout`.
    CertificateError
        The certificate was refused; says why, and holds the chain.
    AlpnError
        The peer speaks none of `alpn`.
    HandshakeError
        TLS or QUIC failed otherwise.
    UsageError
        An argument cannot be used.
    """
    if timeout <= 0:
        raise UsageError(f"timeout={timeout!r} leaves no time to connect: give a positive number of seconds")
    if ssl_context is not None and address.transport != "tls":
        raise UsageError(
            f"ssl_context is for mqtts:// only: {address.url} uses "
            + ("QUIC, which takes ca_file, verify and server_name" if address.transport == "quic" else "no TLS")
        )
    if address.transport == "quic":
        # Here, because aioquic costs a tenth of a second to import and plain MQTT does not need it.
        from mqttquic_lab.quic.client import open_quic

        return await open_quic(
            address,
            trust=trust,
            alpn=alpn,
            timeout=timeout,
            trace=trace,
            tuning=tuning,
            idle_timeout=idle_timeout,
            local_address=local_address,
            keep_alive=keep_alive,
            knobs=Knobs() if knobs is None else knobs,
            tickets=tickets,
            early_data=early_data,
            early_content=early_content,
            report=report,
        )
    if address.transport == "tls":
        return await open_tls(
            address,
            trust=trust,
            alpn=alpn,
            timeout=timeout,
            trace=trace,
            local_address=local_address,
            minimum_tls=minimum_tls,
            ssl_context=ssl_context,
            report=report,
        )
    return await open_tcp(address, timeout=timeout, trace=trace, local_address=local_address, report=report)
