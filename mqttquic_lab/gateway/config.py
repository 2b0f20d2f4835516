"""What a gateway is told before it starts: the broker behind it, where it listens, how much it lets anybody use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mqttquic_lab.errors import UsageError
from mqttquic_lab.net.address import Address, parse_url
from mqttquic_lab.net.certificates import Trust
from mqttquic_lab.units import parse_seconds

if TYPE_CHECKING:
    import os

DEFAULT_PORTS = {"quic": 14567, "tls": 8883}
"""Ports taken when none is asked for and they are free."""


@dataclass(slots=True)
class GatewayConfig:
    """Settings of one gateway.

    Parameters
    ----------
    upstream : str or broker
        The broker behind it: ``mqtt://host[:1883]`` (TCP) or ``mqtts://host[:8883]`` (TLS), or what ``start_broker()``
        returned. Credentials do not belong here: each client's CONNECT carries its own.
    ca_file : path, optional
        PEM file with the authorities to trust for an ``mqtts://`` broker, instead of the system's.
    verify : bool
        False accepts any certificate of that broker.
    server_name : str, optional
        Name to look for in its certificate, where it is not the host of `upstream`.
    minimum_tls : {"1.3", "1.2"}
        Oldest TLS version to speak with it.
    host : str
        Address to listen on. Loopback by default: a gateway lets whoever reaches it reach the broker.
    quic, tls : bool
        Which listeners to have. TLS over TCP is there to compare, and for clients without QUIC.
    quic_port, tls_port : int or None
        Port of each; None takes the usual one (14567, 8883) if it is free and any free one else, 0 takes any free one.
    server_names : tuple of str
        Names and addresses put into the gateway's certificate beside ``localhost``, ``127.0.0.1``, ``::1`` and `host`.
    tuning : {"realistic", "loopback"}
        Tuning of the QUIC listener; ``"loopback"`` only between our own client and gateway on one machine.
    retry : bool, optional
        Whether QUIC clients must prove their address with a Retry (RFC 9000 section 8.1.2). Default: only while many
        handshakes are under way.
    idle_timeout : float or str
        Seconds after which a silent QUIC connection is given up (RFC 9000 section 10.1).
    max_connections : int
        Client connections at a time on each listener; further ones are refused.
    max_streams : int
        Streams of one client connection at a time, each of which is a connection to the broker. 1: only the first one.
    max_upstream : int
        Connections to the broker at a time; a stream beyond that is reset.
    connect_timeout : float or str
        Seconds for a connection to the broker, and for a client's first stream after its handshake.

    Raises
    ------
    UsageError
        For a value that cannot be used.
    """

    upstream: Any
    ca_file: str | os.PathLike[str] | None = None
    verify: bool = True
    server_name: str | None = None
    minimum_tls: Literal["1.3", "1.2"] = "1.3"
    host: str = "127.0.0.1"
    quic: bool = True
    tls: bool = False
    quic_port: int | None = None
    tls_port: int | None = None
    server_names: tuple[str, ...] = ()
    tuning: Literal["realistic", "loopback"] = "realistic"
    retry: bool | None = None
    idle_timeout: float | str = 180.0
    max_connections: int = 256
    max_streams: int = 16
    max_upstream: int = 1000
    connect_timeout: float | str = 10.0
    address: Address = field(init=False, repr=False)
    """Of the broker."""
    trust: Trust = field(init=False, repr=False)
    """What the broker's certificate has to fulfil."""

    def __post_init__(self) -> None:
        if not self.quic and not self.tls:
            raise UsageError("a gateway needs a listener: leave quic=True, or set tls=True")
        for name in ("max_connections", "max_streams", "max_upstream"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"{name}={value!r}: must be an integer of at least 1")
        for name in ("idle_timeout", "connect_timeout"):
            setattr(self, name, parse_seconds(getattr(self, name), name=name))
            if not getattr(self, name):
                raise UsageError(f"{name} must be more than 0 seconds")
        if self.minimum_tls not in ("1.3", "1.2"):
            raise UsageError(f"minimum_tls={self.minimum_tls!r}: must be '1.3' or '1.2'")
        if self.tuning not in ("realistic", "loopback"):
            raise UsageError(f'tuning={self.tuning!r}: must be "realistic" or "loopback"')
        if self.retry not in (None, True, False):
            raise UsageError(f"retry={self.retry!r}: must be True, False, or None to ask only when handshakes pile up")
        for transport in DEFAULT_PORTS:
            port = getattr(self, f"{transport}_port")
            if port is not None and not 0 <= port <= 65535:
                raise UsageError(f"{transport}_port={port!r}: must be 0 to 65535, or None")
        self._settle_upstream()

    def _settle_upstream(self) -> None:
        url, ca_file = _upstream(self.upstream)
        self.address = parse_url(url)
        if self.address.username is not None or self.address.password is not None:
            raise UsageError(
                "upstream= has a user name or password, which MQTT sends in CONNECT: leave it out here, and give "
                "username= and password= to connect()"
            )
        if self.address.transport == "quic":
            raise UsageError(
                f"upstream={self.address.url!r} is QUIC already: connect() to it as it is, or name the broker's TCP or "
                f"TLS listener (mqtt://{self.address.host}:1883, mqtts://{self.address.host}:8883)"
            )
        if self.address.transport == "tcp" and (self.ca_file is not None or not self.verify or self.server_name):
            raise UsageError("ca_file, verify and server_name are for an mqtts:// upstream: mqtt:// has no certificate")
        if self.address.transport == "tls" and self.ca_file is None:
            self.ca_file = ca_file
        self.trust = Trust(ca_file=self.ca_file, verify=self.verify, server_name=self.server_name)
        if self.address.transport == "tls" and self.verify:
            self.trust.anchors_pem()  # an unreadable file is said now, not when the first client comes

    @property
    def transports(self) -> tuple[Literal["quic", "tls"], ...]:
        """The listeners switched on."""
        chosen: list[Literal["quic", "tls"]] = []
        if self.quic:
            chosen.append("quic")
        if self.tls:
            chosen.append("tls")
        return tuple(chosen)


def _upstream(upstream: Any) -> tuple[str, Any]:
    """Return URL and certificate authority of what was named as upstream."""
    if isinstance(upstream, str):
        return upstream, None
    urls = getattr(upstream, "urls", None)
    if isinstance(urls, dict):
        if url := urls.get("mqtts"):
            return url, upstream.ca_file
        if url := urls.get("mqtt"):
            return url, None
        raise UsageError("this broker listens neither on TLS nor on TCP: start it with tls=True, or connect() to it")
    raise UsageError(
        f"upstream= is a URL such as 'mqtt://localhost:1883', or a broker, not a {type(upstream).__name__}"
    )
