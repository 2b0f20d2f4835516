"""What ``connect`` and ``probe`` accept as a target: a URL, or a broker of ours."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mqttquic_lab.errors import UsageError
from mqttquic_lab.net.address import Address, parse_url
from mqttquic_lab.net.certificates import Trust

if TYPE_CHECKING:
    from mqttquic_lab.session.options import SessionOptions


@dataclass(frozen=True, slots=True)
class Target:
    """Where a session goes, whom it trusts there, and as whom it logs in if the URL says so."""

    address: Address
    trust: Trust
    ssl_context: ssl.SSLContext | None = None
    """For TLS over TCP, to be used as it is; QUIC takes over what it says about trust."""
    username: str | None = field(default=None, repr=False)
    password: bytes | None = field(default=None, repr=False)


def resolve_target(target: Any, options: SessionOptions) -> Target:
    """Return where `target` leads to.

    Parameters
    ----------
    target : str or object with ``url`` and ``ca_file``
        A URL (see :func:`mqttquic_lab.net.address.parse_url`), or a broker: its handle, or a ``BrokerServer``. A
        broker's own certificate authority is trusted for this session only, and only if the options name no other.
    options : SessionOptions
        Of the session; ``ca_file``, ``ssl_context``, ``verify`` and ``server_name`` make the trust.

    Raises
    ------
    UsageError
        It is neither, the URL cannot be parsed, or the trust options contradict each other.
    """
    if isinstance(target, str):
        url = target
    else:
        its_url = getattr(target, "url", None)
        if not isinstance(its_url, str) or not its_url:
            raise UsageError(
                f"cannot connect to a {type(target).__name__}: pass a URL such as 'quic://localhost:14567', "
                "or what start_broker() returned (and make sure it was started)"
            )
        url = its_url
    address = parse_url(url)
    password = address.password.encode() if address.password is not None else None
    is_tls = address.transport == "tls"
    # A broker that listens on plain TCP only has no certificate to ask for.
    own_ca = getattr(target, "ca_file", None) if address.transport != "tcp" else None
    trust = _trust(options, own_ca, carry_over=not is_tls)
    return Target(address, trust, options.ssl_context if is_tls else None, address.username, password)


def _trust(options: SessionOptions, own_ca: Any, *, carry_over: bool) -> Trust:
    ca_file, ca_data, verify = options.ca_file, None, options.verify
    context = options.ssl_context
    if context is not None:
        if ca_file is not None or not verify:
            raise UsageError("ssl_context says whom to trust: leave ca_file and verify out, or leave ssl_context out")
        if not isinstance(context, ssl.SSLContext):
            raise UsageError(f"ssl_context must be an ssl.SSLContext, not {type(context).__name__}")
        if carry_over:
            ca_data, verify = _from_context(context)
    elif ca_file is None:
        ca_file = own_ca
    trust = Trust(ca_file=ca_file, ca_data=ca_data, verify=verify, server_name=options.server_name)
    if verify:
        trust.anchors_pem()  # an unreadable file is said now, not after a handshake
    return trust


def _from_context(context: ssl.SSLContext) -> tuple[bytes | None, bool]:
    """Return the authorities of a context in PEM form, and whether it verifies."""
    verifies = context.verify_mode == ssl.CERT_REQUIRED
    if verifies and not context.check_hostname:
        raise UsageError(
            "ssl_context verifies certificates but no host names (check_hostname=False), which QUIC cannot take over: "
            "use ca_file= and server_name= instead"
        )
    pem = "".join(ssl.DER_cert_to_PEM_cert(der) for der in context.get_ca_certs(binary_form=True))
    return (pem.encode() or None), verifies
