"""What a broker is told before it starts: where it listens and how much it lets anybody use.

Every bound has a default here, so that no client, however hostile or merely busy, can make the broker grow without
end. What a bound refused or dropped is counted in :class:`mqttquic_lab.broker.status.BrokerStats`.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from mqttquic_lab.broker.quic_options import settle_quic_options
from mqttquic_lab.errors import UnknownOptionError, UsageError
from mqttquic_lab.mqtt.profiles import DeliveryStrategy, ProfileName, profile_named
from mqttquic_lab.units import parse_seconds

if TYPE_CHECKING:
    from mqttquic_lab.broker.acl import AclFunction, AclRule
    from mqttquic_lab.mqtt.authentication import ServerMethod
    from mqttquic_lab.quic.admission import Policy

Authenticate = Callable[[str, str | None, bytes | None], bool | int | Awaitable[bool | int]]
"""``authenticate(client_id, username, password)``: True or 0 admits, False or a reason code refuses. May be async."""

DEFAULT_PORTS = {"quic": 14567, "tls": 8883, "tcp": 1883}
"""Ports taken when none is asked for and they are free."""


@dataclass(slots=True)
class BrokerConfig:
    """Settings of one broker.

    Parameters
    ----------
    host : str
        Address to listen on. Loopback by default: the embedded broker is not meant for the open network.
    quic, tls, tcp : bool
        Which transports to listen on.
    quic_port, tls_port, tcp_port : int or None
        Port of each; None takes the usual one (14567, 8883, 1883) if it is free and any free one else, 0 takes any
        free one.
    server_names : tuple of str
        Names and addresses put into the certificate beside ``localhost``, ``127.0.0.1``, ``::1`` and `host`.
    authority : path, optional
        PEM file with the certificate authority that issues the broker's certificate, and its key; made if it is not
        there, readable by its owner only. Clients that trust it trust the broker after a restart as well; ``ca_file``
        is beside it then, its name ending in ``.crt``. Default: the `store`'s name with ``.ca.pem`` after it; without
        a store, an authority that ends with the broker.
    profile : {"generic", "emqx", "rocketmq", "mqttv5"}
        Whose rules for streams, limits and ends the broker follows; see :mod:`mqttquic_lab.mqtt.profiles`.
    deliveries : {"subscribing-stream", "control-only", "per-topic", "per-publish"}, optional
        Which streams messages to subscribers go out on. ``"subscribing-stream"``: the one that brought the SUBSCRIBE.
        ``"per-topic"`` and ``"per-publish"``: the broker opens a stream for each topic, or each message, and begins it
        with a flow header; for clients that speak MQTT-next (and with profile ``"mqttv5"`` all). What such a client
        subscribes on a data flow of its own still comes there (MQoQ 9.1.2), and so does all else where it always did.
        Default: that of the profile.
    tuning : {"realistic", "loopback"}
        Tuning of the QUIC listener; ``"loopback"`` only between our own client and broker on one machine.
    retry : bool, optional
        Whether QUIC clients must prove their address with a Retry, one round trip more (RFC 9000 section 8.1.2).
        Default: that of the profile, else only while many handshakes are under way.
    early_data : bool or "unprotected", optional
        Whether clients may send 0-RTT data, which can be replayed (RFC 9001 section 9.2). True takes it once per
        ticket and within `early_data_window`; what comes again, or late, is not taken. ``"unprotected"`` takes it every
        time, for lessons on the loopback. Default: that of the profile, else not.
    early_data_window : float or str
        Seconds by which the age that a client states for its ticket may be wrong (RFC 8446 section 8.3); beyond it the
        connection resumes without early data.
    quic_version : {"v1", "v2"} or sequence of these, optional
        QUIC versions spoken; default both. Other clients get a Version Negotiation packet.
    cipher_suites : sequence of str, optional
        TLS 1.3 cipher suites accepted over QUIC, most wanted first; default all.
    groups : sequence of str, optional
        Key-exchange groups accepted over QUIC; of those it is the client's order that decides. Default: the usual ones.
    congestion : str, optional
        Congestion controller over QUIC: ``"newreno"``, ``"cubic"``, or one that ``mq.register_congestion_control``
        added.
    idle_timeout : float or str, optional
        Seconds after which a silent QUIC connection is given up. Default: that of the profile, else 180.
    preferred_address : tuple of str and int, optional
        Another address of this machine, where QUIC clients are asked to go after the handshake (RFC 9000 section 9.6);
        port 0 takes any free one.
    disable_active_migration : bool
        Ask QUIC clients not to change their address (RFC 9000 section 18.2). Those that do all the same are served.
    datagrams : bool, optional
        Whether clients may publish in DATAGRAM frames over QUIC, at QoS 0 (RFC 9221). Default: that of the profile.
    datagram_deliveries : bool
        Send messages at QoS 0 in DATAGRAM frames, too, to clients that are known to read them: those that speak
        MQTT-next, and those that ask for it (``connect(datagrams=True)`` does). They can get lost.
    users : mapping of str to str, optional
        User name -> password. When given, everybody else is refused (reason code 0x86).
    authenticate : callable, optional
        ``authenticate(client_id, username, password)``, instead of `users`; may be a coroutine function.
    acl : sequence or callable, optional
        Who may publish and subscribe what: rules such as ``("ann", "publish", "plant/%u/#")``, or a function
        ``acl(client, action, topic)``; see :mod:`mqttquic_lab.broker.acl`. Default: everybody everything.
    auth_methods : sequence or mapping, optional
        Methods of enhanced authentication (MQTT 5.0 section 4.12): ``["SCRAM-SHA-256"]`` lets `users` in without their
        passwords travelling, ``{"SCRAM-SHA-256": {"ann": "secret"}}`` others (a
        :class:`~mqttquic_lab.mqtt.scram.ScramCredentials` will do in place of a password); a method of one's own is an
        object as :mod:`mqttquic_lab.mqtt.authentication` describes it. Clients that use none are asked for user name
        and password by `users` or `authenticate`; if there is neither, they are refused (0x87).
    overlapping : {"once", "each"}, optional
        What a client gets whose subscriptions overlap: one message, at the largest QoS of them and with the identifiers
        of all, or a copy for each that matches. Either is right [MQTT-3.3.4-2]; without Subscription Identifiers, so in
        MQTT 3.1.1, a client cannot tell which copy is for which subscription. Default: that of the profile.
    store : path, optional
        File in which to keep sessions that outlive their connection, with their subscriptions and messages on the way,
        retained messages and wills, so that the broker goes on after a restart, or a crash, where it was. An SQLite
        file, made if it is not there, readable by its owner only; one broker at a time can use it. Passwords are not
        in it, payloads are. Sessions that are kept get QoS 1 and 2 messages on the control stream or their topic's, not
        on flows that the broker opens (`deliveries`): the books of flows are not kept. Default: everything is in memory
        and ends with the broker.
    store_sync : {"full", "normal"}
        ``"full"``: what is acknowledged survives a power cut. ``"normal"``: it survives the end of the process, however
        sudden, and is faster on slow disks.
    trace : bool
        Record every control packet in ``broker.trace``: its type and size, from or to whom; it can be switched while
        the broker runs (``broker.trace.detail``). Not with a broker in a process of its own.
    trace_capacity : int
        Events that it holds.
    sys_interval : float, str or None
        Seconds between two accounts of the broker's figures in its ``$SYS`` topics; 0 or None for none. See
        :mod:`mqttquic_lab.broker.sys_topics`.
    max_connections : int
        Network connections at a time; further ones are closed at once.
    max_sessions : int
        Sessions kept, connected or not. At the bound the disconnected session that would expire first makes room.
    max_session_expiry : int
        Longest session expiry interval granted, seconds (MQTT 5.0 section 3.1.2.11.2). Also how long a persistent
        session of a 3.1.1 client is kept.
    max_packet_size : int
        Largest control packet accepted, bytes; told to 5.0 clients as Maximum Packet Size.
    max_inflight : int
        QoS 1 and 2 messages exchanged at a time per client and direction: our Receive Maximum, and the bound for
        clients that name none.
    max_queued : int
        QoS 1 and 2 messages waiting per session, connected or not. Beyond it the oldest waiting one is dropped.
    max_queued_bytes : int
        Bytes of those: topic, payload and properties.
    max_total_queued_bytes : int
        The same for all sessions together.
    max_pending_bytes : int
        Bytes written to one connection but not yet taken by its peer; beyond it QoS 0 messages for that client are
        dropped.
    slow_consumer_grace : float
        How long a publisher is held back for a subscriber whose connection is full, seconds. After that the
        subscriber is on its own: messages for it are queued and dropped by the bounds above until it has caught up.
    max_subscriptions : int
        Subscriptions per session; further ones are refused (0x97, quota exceeded).
    max_topic_levels : int
        Levels of a topic filter; deeper ones are refused (0x8F in SUBACK, which is for filters that are well-formed but
        not accepted). Messages on deeper topics pass, but are not retained (and counted).
    max_retained : int
        Retained messages kept; further topics are not retained (and counted).
    max_retained_bytes : int
        Bytes of those: topic, payload and properties.
    topic_alias_maximum : int
        Topic aliases accepted per connection (MQTT 5.0 section 3.2.2.3.8), and used at most towards a client that
        takes any.
    response_information : str
        What a client that asks for Response Information is told (section 3.2.2.3.15): the beginning of topics that it
        may have answers sent to. ``%c`` is its client identifier, ``%u`` its user name. Empty: nothing is told.
    connect_timeout : float
        Seconds a connection may stay without CONNECT [MQTT-3.1.4-1].
    max_keepalive : int
        Longest keep-alive granted to 5.0 clients, seconds (Server Keep Alive); 0 accepts whatever they ask for.

    Raises
    ------
    UsageError
        For a value that cannot be used.
    """

    host: str = "127.0.0.1"
    quic: bool = True
    tls: bool = True
    tcp: bool = True
    quic_port: int | None = None
    tls_port: int | None = None
    tcp_port: int | None = None
    server_names: tuple[str, ...] = ()
    authority: str | os.PathLike[str] | None = None
    profile: ProfileName = "generic"
    deliveries: DeliveryStrategy | None = None
    tuning: Literal["realistic", "loopback"] = "realistic"
    retry: bool | None = None
    early_data: bool | Policy | None = None
    early_data_window: float | str = 10.0
    quic_version: str | Sequence[str] | None = None
    cipher_suites: str | Sequence[str] | None = None
    groups: str | Sequence[str] | None = None
    congestion: str | None = None
    idle_timeout: float | str | None = None
    preferred_address: tuple[str, int] | None = None
    disable_active_migration: bool = False
    datagrams: bool | None = None
    datagram_deliveries: bool = False
    users: Mapping[str, str] | None = field(default=None, repr=False)
    authenticate: Authenticate | None = field(default=None, repr=False)
    acl: Sequence[AclRule | tuple[str, str, str] | Mapping[str, Any]] | AclFunction | None = field(
        default=None, repr=False
    )
    auth_methods: Sequence[str | ServerMethod] | Mapping[str, Any] = field(default=(), repr=False)
    overlapping: Literal["once", "each"] | None = None
    store: str | os.PathLike[str] | None = None
    store_sync: Literal["full", "normal"] = "full"
    trace: bool = False
    trace_capacity: int = 4096
    sys_interval: float | str | None = 10.0
    max_connections: int = 1000
    max_sessions: int = 10_000
    max_session_expiry: int = 24 * 3600
    max_packet_size: int = 16 * 1024 * 1024
    max_inflight: int = 1000
    max_queued: int = 10_000
    max_queued_bytes: int = 32 * 1024 * 1024
    max_total_queued_bytes: int = 256 * 1024 * 1024
    max_pending_bytes: int = 4 * 1024 * 1024
    slow_consumer_grace: float = 0.5
    max_subscriptions: int = 10_000
    max_topic_levels: int = 128
    max_retained: int = 100_000
    max_retained_bytes: int = 64 * 1024 * 1024
    topic_alias_maximum: int = 64
    response_information: str = "response/%c"
    connect_timeout: float = 10.0
    max_keepalive: int = 0

    def __post_init__(self) -> None:
        for name in ("max_connections", "max_sessions", "max_queued", "max_queued_bytes", "max_total_queued_bytes",
                     "max_pending_bytes", "max_subscriptions", "max_topic_levels"):  # fmt: skip
            self._need(name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("max_session_expiry", "max_retained", "max_retained_bytes", "slow_consumer_grace"):
            self._need(name, getattr(self, name) >= 0, "must not be negative")
        self._need("max_inflight", 1 <= self.max_inflight <= 65535, "must be 1 to 65535 (MQTT 5.0 section 3.1.2.11.3)")
        self._need("max_packet_size", 64 <= self.max_packet_size <= 268_435_460, "must be 64 to 268435460 bytes")
        self._need("topic_alias_maximum", 0 <= self.topic_alias_maximum <= 65535, "must be 0 to 65535")
        self._need("max_keepalive", 0 <= self.max_keepalive <= 65535, "must be 0 to 65535 seconds")
        self._need("connect_timeout", self.connect_timeout > 0, "must be more than 0 seconds")
        if self.store is not None:
            path = os.fspath(self.store)
            self._need("store", isinstance(path, str) and path != "", "give the path of a file")
            self.store = os.path.abspath(path)  # noqa: PTH100 - symbolic links stay
            self.authority = self.authority or f"{self.store}.ca.pem"
        self._need("store_sync", self.store_sync in ("full", "normal"), 'must be "full" or "normal"')
        self._need("overlapping", self.overlapping in ("once", "each", None), 'must be "once" or "each"')
        choices = profile_named(self.profile).deliveries
        if self.deliveries is not None and self.deliveries not in choices:
            raise UsageError(
                f"deliveries={self.deliveries!r}: with profile={self.profile!r} it must be "
                f"{' or '.join(map(repr, choices))}"
            )
        self._need("tuning", self.tuning in ("realistic", "loopback"), 'must be "realistic" or "loopback"')
        for transport in DEFAULT_PORTS:
            port = getattr(self, f"{transport}_port")
            self._need(f"{transport}_port", port is None or 0 <= port <= 65535, "must be 0 to 65535, or None")
        if self.users is not None and self.authenticate is not None:
            raise UsageError("give either users or authenticate, not both")
        if self.users is not None and not all(isinstance(text, str) for pair in self.users.items() for text in pair):
            raise UsageError("users must be a mapping of user names to passwords, both text")
        self._need("trace", isinstance(self.trace, bool), "must be True or False")
        self._need("trace_capacity", self.trace_capacity >= 1, "must be at least 1 event")
        self.sys_interval = parse_seconds(self.sys_interval or 0, name="sys_interval")
        settle_quic_options(self)

    def _need(self, name: str, good: bool, rule: str) -> None:
        if not good:
            raise UsageError(f"{name}={getattr(self, name)!r}: {rule}")

    @classmethod
    def from_options(cls, verb: str = "BrokerConfig", /, **options: Any) -> BrokerConfig:
        """Build one from keywords; a misspelt one raises :class:`UnknownOptionError` with the nearest name."""
        known = {f.name for f in fields(cls)}
        for name in options:
            if name not in known:
                raise UnknownOptionError(verb, name, known)
        return cls(**options)

    @property
    def transports(self) -> tuple[Literal["quic", "tls", "tcp"], ...]:
        """The transports switched on, most modern first."""
        chosen: list[Literal["quic", "tls", "tcp"]] = []
        if self.quic:
            chosen.append("quic")
        if self.tls:
            chosen.append("tls")
        if self.tcp:
            chosen.append("tcp")
        return tuple(chosen)
