"""Where to connect: URLs of the three transports, and name resolution with errors that say what to do.

``quic://`` is MQTT over QUIC (UDP, default port 14567), ``mqtts://`` MQTT over TLS (TCP, 8883), ``mqtt://`` MQTT over
plain TCP (1883). 1883 and 8883 are IANA's; 14567 is what brokers with MQTT over QUIC use by convention.
"""

from __future__ import annotations

import asyncio
import difflib
import ipaddress
import re
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast
from urllib.parse import unquote

from mqttquic_lab.errors import UnreachableError, UsageError

if TYPE_CHECKING:
    from mqttquic_lab.net.stream import TransportName

SchemeName = Literal["quic", "mqtts", "mqtt"]

SCHEMES: dict[str, SchemeName] = {
    "quic": "quic",
    "mqtt-quic": "quic",
    "mqtts": "mqtts",
    "ssl": "mqtts",
    "tls": "mqtts",
    "mqtt": "mqtt",
    "tcp": "mqtt",
}
"""Every accepted spelling -> the canonical scheme."""

DEFAULT_PORTS: dict[SchemeName, int] = {"quic": 14567, "mqtts": 8883, "mqtt": 1883}

TRANSPORTS: dict[SchemeName, TransportName] = {"quic": "quic", "mqtts": "tls", "mqtt": "tcp"}

SocketAddress = tuple[str, int] | tuple[str, int, int, int]
"""What ``socket.connect`` takes: (host, port) of IPv4, (host, port, flow info, scope id) of IPv6."""

_SCHEME_OF: dict[TransportName, SchemeName] = {transport: scheme for scheme, transport in TRANSPORTS.items()}

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?\Z")


@dataclass(frozen=True, slots=True)
class Address:
    """A broker's address, parsed and canonical.

    ``repr`` and ``str`` never show the user name or the password that a URL may have carried.

    Attributes
    ----------
    scheme : str
        Canonical: ``"quic"``, ``"mqtts"`` or ``"mqtt"``.
    host : str
        DNS name (lower case, IDNA) or IP address, without brackets.
    port : int
        1 to 65535.
    transport : str
        ``"quic"``, ``"tls"`` or ``"tcp"``.
    url : str
        Canonical URL with port, without user name and password.
    username, password : str or None
        What stood before the ``@``, percent-decoded.
    """

    scheme: SchemeName
    host: str
    port: int
    transport: TransportName
    url: str
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, transport: TransportName, host: str, port: int) -> Address:
        """Return the address of a transport, host and port known by themselves (a listener's, say)."""
        scheme = _SCHEME_OF[transport]
        return cls(scheme, host, port, transport, f"{scheme}://{host_port(host, port)}")

    def __str__(self) -> str:
        return self.url


def host_port(host: str, port: int) -> str:
    """Return ``"host:port"``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable_host(host: str) -> str:
    """Return how a program on this machine reaches what listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared only


def parse_url(url: str) -> Address:
    """Parse a broker's URL.

    Parameters
    ----------
    url : str
        ``scheme://[user[:password]@]host[:port]``; without a scheme it means ``quic://``. An IPv6 address stands in
        brackets (RFC 3986 section 3.2.2). Aliases: ``mqtt-quic`` for ``quic``, ``ssl`` and ``tls`` for ``mqtts``,
        ``tcp`` for ``mqtt``.

    Raises
    ------
    UsageError
        Unknown scheme (suggests the nearest), no host, port not in 1..65535, a path, query or fragment (MQTT has
        none), or characters that no host name has. The message never repeats user name or password.
    """
    if not isinstance(url, str):
        raise UsageError(f"a broker's URL is text such as 'quic://localhost:14567', not {type(url).__name__}")
    if any(c.isspace() or not c.isprintable() for c in url):
        raise UsageError("the URL holds white space or control characters: write it as 'quic://host:14567'")
    given, separator, rest = url.partition("://")
    if not separator:
        given, rest = "quic", url
    scheme = _scheme(given)
    authority, tail = _split_authority(rest)
    userinfo, at, location = authority.rpartition("@")
    if tail.strip("/"):
        if "@" in tail:
            raise UsageError(
                "the URL has a '/', '?' or '#' before its '@': percent-encode those in user name and password "
                "(%2F, %3F, %23)"
            )
        raise UsageError(
            f"an MQTT address has no path or query, but {tail!r} follows the host: use '{scheme}://host:port'"
        )
    host, port = _location(location, scheme)
    username: str | None = None
    password: str | None = None
    if at:
        name, colon, secret = userinfo.partition(":")
        username = unquote(name) or None
        password = unquote(secret) if colon else None
    return Address(scheme, host, port, TRANSPORTS[scheme], f"{scheme}://{host_port(host, port)}", username, password)


def _scheme(given: str) -> SchemeName:
    scheme = SCHEMES.get(given.lower())
    if scheme is not None:
        return scheme
    if "@" in given or ":" in given or "/" in given:
        # Not a scheme but a password with "://" in it, perhaps: nothing of it belongs into a message.
        raise UsageError("the URL does not begin with a scheme: use 'quic://', 'mqtts://' or 'mqtt://'")
    if given.lower() in {"ws", "wss", "http", "https"}:
        raise UsageError(
            f"{given}:// is MQTT over WebSocket, which is not supported: "
            "use 'quic://', 'mqtts://' (TLS) or 'mqtt://' (plain TCP)"
        )
    near = difflib.get_close_matches(given.lower(), SCHEMES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}://?" if near else "use 'quic://', 'mqtts://' (TLS) or 'mqtt://' (plain TCP)"
    raise UsageError(f"unknown URL scheme {given!r}: {hint}")


def _split_authority(rest: str) -> tuple[str, str]:
    for index, character in enumerate(rest):
        if character in "/?#":
            return rest[:index], rest[index:]
    return rest, ""


def _location(location: str, scheme: SchemeName) -> tuple[str, int]:
    """Return (host, port) of ``host[:port]``."""
    if location.startswith("["):
        inside, bracket, after = location[1:].partition("]")
        if not bracket or (after and not after.startswith(":")):
            raise UsageError(f"unbalanced brackets in {location!r}: write an IPv6 address as [::1]:14567")
        host, port_text = _ipv6(inside), after[1:]
    else:
        if location.count(":") > 1:
            raise UsageError(
                f"{location[:60]!r} has more than one ':': write {scheme}://host:port, and an IPv6 address in brackets "
                f"as in {scheme}://[::1]:{DEFAULT_PORTS[scheme]}"
            )
        name, _, port_text = location.partition(":")
        host = _name(name, scheme)
    if not port_text:
        return host, DEFAULT_PORTS[scheme]
    if not (port_text.isascii() and port_text.isdigit()) or len(port_text) > 5 or not 0 < int(port_text) < 65536:
        raise UsageError(
            f"port {port_text[:20]!r} is not a number from 1 to 65535 (default for {scheme}:// is "
            f"{DEFAULT_PORTS[scheme]})"
        )
    return host, int(port_text)


def _ipv6(text: str) -> str:
    try:
        # RFC 6874: the "%" of a zone is itself percent-encoded in a URL; the bare form is common too.
        return str(ipaddress.IPv6Address(text.replace("%25", "%", 1)))
    except ValueError:
        raise UsageError(f"[{text[:60]}] is not an IPv6 address: write one as [::1]") from None


def _name(name: str, scheme: SchemeName) -> str:
    if not name:
        raise UsageError(f"the URL names no host: use '{scheme}://host:{DEFAULT_PORTS[scheme]}'")
    ascii_name = name
    if not name.isascii():
        try:
            ascii_name = name.encode("idna").decode("ascii")
        except UnicodeError:
            raise UsageError(f"{name[:60]!r} is not a host name") from None
    if len(ascii_name) > 254 or not _HOST.match(ascii_name) or ".." in ascii_name:
        raise UsageError(f"{name[:60]!r} is not a host name or IP address")
    return ascii_name.lower()


def is_ip_address(host: str) -> bool:
    """Whether `host` is an IP address (RFC 6066 section 3: those are not sent as SNI)."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether an IP address (also an IPv4-mapped IPv6 one) is of this machine's loopback."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


async def resolve(
    host: str, port: int, *, kind: socket.SocketKind = socket.SOCK_STREAM
) -> list[tuple[socket.AddressFamily, SocketAddress]]:
    """Return the socket addresses of `host`, best first, without doubles.

    Parameters
    ----------
    host : str
        DNS name or IP address; an address does not go through the resolver.
    port : int
        Port to put into them.
    kind : socket.SocketKind
        ``SOCK_STREAM`` or ``SOCK_DGRAM``.

    Raises
    ------
    UnreachableError
        The name does not resolve.
    """
    loop = asyncio.get_running_loop()
    try:
        if is_ip_address(host):
            # AI_NUMERICHOST never leaves the process, so it need not go to a thread.
            found = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_NUMERICHOST)
        else:
            found = await loop.getaddrinfo(host, port, type=kind)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UnreachableError(
            f"the name {host!r} does not resolve ({reason}): check its spelling and this machine's DNS"
        ) from error
    result: dict[tuple[socket.AddressFamily, SocketAddress], None] = {}
    for family, _, _, _, address in found:
        if family in (socket.AF_INET, socket.AF_INET6):
            result[family, cast("SocketAddress", address)] = None
    if not result:
        raise UnreachableError(f"the name {host!r} has no IPv4 or IPv6 address")
    return list(result)
