"""What ``connect`` and ``probe`` accept as a target: a URL, or a broker of ours."""

from __future__ import annotations

import ssl
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mqttquic_lab.errors import UsageError
from mqttquic_lab.net.address import Address, parse_url
from mqttquic_lab.net.certificates import Trust
from mqttquic_lab.session.fallback import fallback_addresses
from mqttquic_lab.session.quic_options import refuse_without_quic

if TYPE_CHECKING:
    from mqttquic_lab.net.stream import TransportName
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
    own_ca: Any = None
    """File of the certificate authority that a broker of ours brought along."""
    fallbacks: tuple[Target, ...] = ()
    """Where to go when QUIC does not get through; see :mod:`mqttquic_lab.session.fallback`."""


def resolve_target(target: Any, options: SessionOptions, earlier: Target | None = None) -> Target:
    """Return where `target` leads to.

    Parameters
    ----------
    target : str or object with ``url`` and ``ca_file``
        A URL (see :func:`mqttquic_lab.net.address.parse_url`), or a broker: its handle, or a ``BrokerServer``. A
        broker's own certificate authority is trusted for this session only, and only if the options name no other.
    options : SessionOptions
        Of the session; ``ca_file``, ``ssl_context``, ``verify`` and ``server_name`` make the trust.
    earlier : Target, optional
        Where the session was before. A URL of the same host inherits its trust, and unless it is plain TCP its user
        name and password.

    Raises
    ------
    UsageError
        It is neither, the URL cannot be parsed, the trust options contradict each other, or there are options of QUIC
        and it is not a QUIC URL.
    """
    address = parse_url(_url_of(target))
    if earlier is None and address.transport != "quic":
        refuse_without_quic(options, address.url)
    own_ca = None
    if not isinstance(target, str):
        with suppress(UsageError):  # a broker that listens on plain TCP only has no certificate to ask for
            own_ca = getattr(target, "ca_file", None)
    where = _resolve(address, own_ca, options)
    if earlier is not None and isinstance(target, str) and address.host == earlier.address.host:
        where = _inherit(where, earlier, options)
    ways = [_inherit(_resolve(a, None, options), where, options) for a in fallback_addresses(target, address, options)]
    return replace(where, fallbacks=tuple(ways))


def transport_of(target: Any) -> TransportName:
    """Return ``"quic"``, ``"tls"`` or ``"tcp"``; raises UsageError as :func:`resolve_target` does."""
    return parse_url(_url_of(target)).transport


def _url_of(target: Any) -> str:
    if isinstance(target, str):
        return target
    url = getattr(target, "url", None)
    if not isinstance(url, str) or not url:
        raise UsageError(
            f"cannot connect to a {type(target).__name__}: pass a URL such as 'quic://localhost:14567', "
            "or what start_broker() returned (and make sure it was started)"
        )
    return url


def _resolve(address: Address, own_ca: Any, options: SessionOptions) -> Target:
    password = address.password.encode() if address.password is not None else None
    is_tls = address.transport == "tls"
    trust = _trust(options, own_ca if address.transport != "tcp" else None, carry_over=not is_tls)
    context = options.ssl_context if is_tls else None
    return Target(address, trust, context, address.username, password, own_ca)


def _inherit(where: Target, earlier: Target, options: SessionOptions) -> Target:
    """Return `where` with the credentials of `earlier` unless it has its own, and on the same host with its trust."""
    # What was given for an encrypted connection does not go in the clear by itself.
    in_the_clear = where.address.transport == "tcp" and earlier.address.transport != "tcp"
    if where.username is None and where.password is None and not in_the_clear:
        where = replace(where, username=earlier.username, password=earlier.password)
    if where.own_ca is None and where.address.host == earlier.address.host:
        own = _resolve(where.address, earlier.own_ca, options)
        where = replace(where, trust=own.trust, own_ca=earlier.own_ca)
    return where


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
