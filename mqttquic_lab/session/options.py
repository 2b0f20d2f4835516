"""The keywords of ``connect``: checked as a whole before anything is sent, then turned into a CONNECT packet."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from mqttquic_lab.errors import UnknownOptionError, UsageError
from mqttquic_lab.mqtt import Connect, Will, check_topic_name
from mqttquic_lab.mqtt.authentication import ClientMethod
from mqttquic_lab.mqtt.datagram import READS_DATAGRAMS
from mqttquic_lab.mqtt.profiles import profile_named
from mqttquic_lab.mqtt.scram import NAME as SCRAM
from mqttquic_lab.mqtt.scram import ScramClient
from mqttquic_lab.session.backoff import Backoff
from mqttquic_lab.session.flow_spec import FLOW_ALPN
from mqttquic_lab.session.payload import encode_payload
from mqttquic_lab.session.quic_options import settle_quic_options
from mqttquic_lab.units import parse_seconds

if TYPE_CHECKING:
    import os
    import ssl
    from collections.abc import Mapping, Sequence

    from mqttquic_lab.mqtt import Version
    from mqttquic_lab.quic.knobs import QuicVersion

VERSIONS: dict[object, Version] = {"5.0": 5, "5": 5, 5: 5, "3.1.1": 4, 4: 4}
"""What the option ``version`` takes -> protocol level of CONNECT (MQTT 5.0 section 3.1.2.2)."""

VERSION_NAMES: dict[int, str] = {5: "5.0", 4: "3.1.1"}

ONLY_V5 = (
    "auth", "session_expiry_interval", "receive_maximum", "maximum_packet_size", "topic_alias_maximum",
    "user_properties", "properties", "alias_topics",
)  # fmt: skip
"""Options that MQTT 3.1.1 has no field for."""

STREAM_MAPPINGS = ("single", "per-topic", "per-publish", "flows")

_RANGES = {
    "keepalive": (0, 65_535, "seconds; 0 switches it off"),
    "session_expiry_interval": (0, 0xFFFF_FFFF, "seconds; 4294967295 means never"),
    "receive_maximum": (1, 65_535, "messages"),
    "maximum_packet_size": (16, 268_435_460, "bytes"),
    "topic_alias_maximum": (0, 65_535, "aliases"),
    "topic_streams": (1, 128, "streams"),
    "offline_queue": (0, 1_000_000, "messages; 0 takes none"),
    "trace_capacity": (1, 10_000_000, "events"),
}

_OWN_PROPERTIES = {
    "session_expiry_interval": "session_expiry_interval=",
    "receive_maximum": "receive_maximum=",
    "maximum_packet_size": "maximum_packet_size=",
    "topic_alias_maximum": "topic_alias_maximum=",
    "user_property": "user_properties=",
}
"""CONNECT properties that have an option of their own."""

MAX_TEXT = 65_535
"""Bytes of an MQTT UTF-8 string at most (MQTT 5.0 section 1.5.4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """Options of one session.

    Parameters
    ----------
    client_id : str
        Client identifier; empty lets a 5.0 broker assign one (MQTT 5.0 section 3.1.3.1).
    username : str, optional
        User name; wins over one in the URL.
    password : str or bytes, optional
        Never shown by any repr, log or trace.
    auth : str or object, optional
        Enhanced authentication (section 4.12): ``"SCRAM-SHA-256"`` shows the broker that we know the password of
        `username` without sending it, and has the broker show that it knows it, too. Or a method of one's own, as
        :mod:`mqttquic_lab.mqtt.authentication` describes it.
    keepalive : int
        Seconds between packets at most; 0 switches keep-alive off (section 3.1.2.10).
    clean_start : bool
        Begin anew, forgetting a session that the broker may hold (3.1.1: Clean Session).
    session_expiry_interval : int, optional
        Seconds for which the broker keeps the session after the connection ended (5.0 only; absent means 0).
    receive_maximum : int, optional
        QoS 1 and 2 messages that the broker may have under way to us (5.0 only; absent means 65535).
    maximum_packet_size : int, optional
        Largest packet the broker may send, bytes (5.0 only).
    topic_alias_maximum : int, optional
        Topic aliases the broker may use (5.0 only; absent means none).
    alias_topics : bool
        Send the name of a topic once per connection and a number from then on, for as many topics as the broker allows
        (5.0 only; the control stream's messages).
    will : Will, optional
        Message that the broker publishes when this session ends without DISCONNECT. Its payload may be whatever
        ``publish`` takes.
    user_properties : sequence of (str, str)
        User Properties of CONNECT (5.0 only); repeats are legal.
    properties : mapping, optional
        Further CONNECT properties by their snake-case name (5.0 only).
    version : {"5.0", "3.1.1"}
        Protocol version.
    ca_file : path, optional
        PEM file with the certificate authorities to trust instead of the system's.
    ssl_context : ssl.SSLContext, optional
        TLS over TCP uses it as it is. QUIC does its own TLS (RFC 9001) and takes over its authorities and whether it
        verifies.
    verify : bool
        False accepts any certificate; the handshake card shows that in red.
    server_name : str, optional
        Name to send (SNI) and to expect in the certificate, where it is not the URL's host.
    timeout : float, str or None
        Seconds (or a string with a unit, ``"500ms"``) until CONNACK must have arrived, name resolution and handshake
        included. None waits for ever.
    tuning : {"realistic", "loopback"}
        Tuning of the QUIC endpoint; ``"loopback"`` only towards our own broker on this machine.
    alpn : sequence of str
        Application protocols offered (RFC 7301); ``("mqtt",)``, and with ``streams="flows"`` ``("MQTT-next", "mqtt")``.
    local_address : tuple of (str, int), optional
        Our own IP address and port (0 for any) to connect from.
    fallback : bool, str or sequence of str
        What to try when QUIC does not get through: ``mqtts://`` URLs, or True for TLS on the same host (port 8883; a
        broker of ours knows its own). Never plain TCP. A refused certificate or CONNECT does not lead there.
    quic_timeout : float, str or None
        With a fallback: seconds that QUIC has, within `timeout`, and at most half of it.
    reconnect : bool or Backoff
        What happens when the connection is lost: by default the session connects anew, with growing pauses, and goes on
        where it was. ``mq.Backoff(...)`` says how long to wait and how often to try; False leaves it closed.
    offline_queue : int
        Messages that may be published while the session has no connection; they are sent when it has one again.
    streams : {"single", "per-topic", "per-publish", "flows"}
        Which QUIC stream a PUBLISH goes on: the control stream, its topic's, or a new one. What is subscribed stays on
        the control stream unless ``subscribe(stream=...)`` says otherwise. ``"flows"`` is per topic, too, in the
        protocol ``MQTT-next`` (MQoQ draft): streams begin with flow headers, and what is under way on a flow is
        recovered after :meth:`AsyncSession.reconnect`. A broker without it makes a
        :class:`~mqttquic_lab.errors.StreamMappingWarning`, and ``session.mapping`` tells how streams are used instead.
    topic_streams : int
        Topics that have a stream at a time with ``"per-topic"`` and ``"flows"``; the least recently used one ends.
    profile : {"generic", "emqx", "rocketmq", "mqttv5"}
        Which broker this is: a :class:`~mqttquic_lab.errors.BrokerProfileWarning` tells before something that it is
        known to refuse; ``"mqttv5"`` also publishes on unidirectional streams and reads those that the broker opens.
    tickets : True, path or TicketStore, optional
        Resume earlier QUIC connections with the session tickets kept here, and keep those that the broker gives:
        True is a store in memory that this process shares, a path is a file for its owner only. Default: each
        connection makes a full handshake, unless `early_data` is set.
    early_data : {False, True, "publish"}
        True: with a ticket that allows it, CONNECT goes in the first flight (0-RTT), so that CONNACK is there after one
        round trip. ``"publish"``: the messages of `publish_early`, too. Whoever records that flight can send it again
        (RFC 9001 section 9.2): the broker has to prevent the rest. What it does not take is sent again by itself, once;
        ``handshake.early_data`` tells which it was.
    publish_early : sequence of (topic, payload[, qos[, retain]])
        Messages that are sent right behind CONNECT without waiting for CONNACK, with ``early_data="publish"``;
        ``session.early_published()`` has their results. Only what may happen twice: a replay is a message, too.
    quic_version : str or sequence of str, optional
        ``"v1"``, ``"v2"``, ``("v2", "v1")`` (begin with v2, take v1 where Version Negotiation asks for it), or
        ``"v1-to-v2"`` (RFC 9368 section 2.3). Default: v1, and v2 with a broker that speaks nothing else.
    cipher_suites : sequence of str, optional
        TLS 1.3 cipher suites to offer over QUIC, most wanted first: ``"CHACHA20_POLY1305_SHA256"``.
    groups : sequence of str, optional
        Key-exchange groups to offer over QUIC, most wanted first: ``"X25519"``, ``"SECP256R1"``.
    congestion : str, optional
        Congestion controller over QUIC: ``"newreno"`` (default), ``"cubic"``, or one that
        ``mq.register_congestion_control`` added.
    idle_timeout : float or str, optional
        Seconds without a packet after which QUIC gives the connection up (RFC 9000 section 10.1), if the broker's is
        not shorter. Default: three keep-alive intervals, at least 60.
    quic_keepalive : bool
        Send a QUIC PING when nothing was heard for a third of the idle timeout.
    datagrams : bool
        Send messages at QoS 0 in DATAGRAM frames (RFC 9221) wherever they fit, and others on streams as ever; and tell
        the broker that we read datagrams: by the transport parameter, and by a User Property of CONNECT for brokers
        of ours. Lost ones are not sent again: ``session.stats`` counts them.
    trace_detail : bool
        Record every packet in ``session.trace`` after the handshake, too; costs throughput.
    trace_capacity : int
        Events that ``session.trace`` holds.

    Raises
    ------
    UsageError
        A value that cannot be used, or an option of MQTT 5.0 together with ``version="3.1.1"``.
    """

    client_id: str = ""
    username: str | None = None
    password: str | bytes | None = field(default=None, repr=False)
    auth: str | ClientMethod | None = field(default=None, repr=False)
    keepalive: int = 60
    clean_start: bool = True
    session_expiry_interval: int | None = None
    receive_maximum: int | None = None
    maximum_packet_size: int | None = None
    topic_alias_maximum: int | None = None
    alias_topics: bool = False
    will: Will | None = None
    user_properties: Sequence[tuple[str, str]] = ()
    properties: Mapping[str, Any] | None = field(default=None, repr=False)
    version: str | int = "5.0"
    ca_file: str | os.PathLike[str] | None = None
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False)
    verify: bool = True
    server_name: str | None = None
    timeout: float | str | None = 10.0
    tuning: str = "realistic"
    alpn: Sequence[str] = ("mqtt",)
    local_address: tuple[str, int] | None = None
    fallback: bool | str | Sequence[str] = False
    quic_timeout: float | str | None = 3.0
    reconnect: bool | Backoff = True
    offline_queue: int = 1000
    streams: str = "single"
    topic_streams: int = 16
    profile: str = "generic"
    tickets: Any = None
    early_data: bool | str = False
    publish_early: Sequence[Any] = field(default=(), repr=False)
    quic_version: QuicVersion | None = None
    cipher_suites: str | Sequence[str] | None = None
    groups: str | Sequence[str] | None = None
    congestion: str | None = None
    idle_timeout: float | str | None = None
    quic_keepalive: bool = True
    datagrams: bool = False
    trace_detail: bool = False
    trace_capacity: int = 4096

    @classmethod
    def from_keywords(cls, verb: str, keywords: Mapping[str, Any]) -> SessionOptions:
        """Build from the keywords that `verb` was called with; a misspelt one is answered with the nearest name."""
        known = [f.name for f in fields(cls)]
        for name in keywords:
            if name not in known:
                raise UnknownOptionError(verb, name, known)
        return cls(**keywords)

    @property
    def level(self) -> Version:
        """Protocol level: 5, or 4 for 3.1.1."""
        return VERSIONS[self.version]

    def __post_init__(self) -> None:
        if self.version not in VERSIONS:
            raise UsageError(f'version={self.version!r}: MQTT versions are "5.0" (default) and "3.1.1"')
        for name in ("keepalive", "session_expiry_interval"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, round(parse_seconds(getattr(self, name), name=name)))
        for name, (lowest, highest, unit) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not (_is_int(value) and lowest <= value <= highest):
                raise UsageError(f"{name}={value!r}: must be a whole number from {lowest} to {highest} ({unit})")
        if self.keepalive is None or self.trace_capacity is None:
            raise UsageError("keepalive and trace_capacity take numbers; keepalive=0 switches it off")
        object.__setattr__(self, "timeout", check_timeout(self.timeout))
        for name in ("clean_start", "verify", "trace_detail"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name}={getattr(self, name)!r}: must be True or False")
        if self.tuning not in ("realistic", "loopback"):
            raise UsageError(f'tuning={self.tuning!r}: must be "realistic" (default) or "loopback"')
        if isinstance(self.alpn, (str, bytes)) or not self.alpn or not all(isinstance(p, str) and p for p in self.alpn):
            raise UsageError('alpn takes a sequence of protocol names, such as ("mqtt",)')
        object.__setattr__(self, "quic_timeout", check_timeout(self.quic_timeout, name="quic_timeout"))
        self._check_fallback()
        if not isinstance(self.reconnect, (bool, Backoff)):
            raise UsageError(f"reconnect={self.reconnect!r}: must be True, False or mq.Backoff(...)")
        if self.streams not in STREAM_MAPPINGS:
            raise UsageError(f"streams={self.streams!r}: must be one of {', '.join(map(repr, STREAM_MAPPINGS))}")
        profile_named(self.profile)
        self._check_flows()
        self._check_texts()
        self._check_version()
        self._check_will()
        settle_quic_options(self)

    def _check_flows(self) -> None:
        if self.streams != "flows":
            return
        if tuple(self.alpn) == ("mqtt",):
            object.__setattr__(self, "alpn", (FLOW_ALPN, "mqtt"))
        elif FLOW_ALPN not in self.alpn:
            raise UsageError(
                f'streams="flows" needs the protocol {FLOW_ALPN!r}: put it first in alpn, or leave alpn out'
            )
        if self.early_data and self.profile != "mqttv5":
            raise UsageError(
                "early_data leaves before the handshake has told whether flow headers are spoken: leave it or "
                'streams="flows" out (with profile="mqttv5" no header comes before CONNECT, and both work)'
            )

    def alpn_over(self, transport: str) -> tuple[str, ...]:
        """Return the application protocols to offer; flows are QUIC's."""
        if transport == "quic" or self.streams != "flows":
            return tuple(self.alpn)
        return tuple(name for name in self.alpn if name != FLOW_ALPN) or ("mqtt",)

    def _check_fallback(self) -> None:
        fallback = self.fallback
        if isinstance(fallback, (bool, str)):
            return
        if not isinstance(fallback, (list, tuple)) or not all(isinstance(url, str) for url in fallback):
            raise UsageError("fallback takes an mqtts:// URL, a list of these, or True (TLS on the same host)")
        object.__setattr__(self, "fallback", tuple(fallback))

    def _check_texts(self) -> None:
        for name in ("client_id", "username", "server_name"):
            value = getattr(self, name)
            if value is not None or name == "client_id":
                check_text(name, value)
        if self.password is not None:
            if not isinstance(self.password, (str, bytes)):
                raise UsageError(f"password must be str or bytes, not {type(self.password).__name__}")
            try:
                size = len(self.password_bytes or b"")
            except UnicodeEncodeError:
                raise UsageError("the password is not text that UTF-8 can express: pass bytes") from None
            if size > MAX_TEXT:
                raise UsageError(f"the password has {size} bytes, MQTT allows {MAX_TEXT}")
        for pair in check_pairs(self.user_properties):
            for part in pair:
                check_text("user_properties", part)

    def _check_version(self) -> None:
        if self.level == 5:
            for name, option in _OWN_PROPERTIES.items():
                if self.properties and name in self.properties:
                    raise UsageError(f"properties[{name!r}]: use the option {option} instead")
            if self.properties and {"authentication_method", "authentication_data"} & set(self.properties):
                raise UsageError("enhanced authentication takes several steps: use the option auth= for it")
            self._check_auth()
            return
        for name in ONLY_V5:
            if getattr(self, name):
                raise UsageError(f'{name} is an option of MQTT 5.0: leave it out, or use version="5.0"')
        if self.password is not None and self.username is None:
            raise UsageError("MQTT 3.1.1 sends no password without a user name [MQTT-3.1.2-22]: give username too")
        if not self.client_id and not self.clean_start:
            raise UsageError("MQTT 3.1.1 keeps no session without a name [MQTT-3.1.3-7]: give client_id")

    def _check_auth(self) -> None:
        if self.auth is None:
            return
        if isinstance(self.auth, str) and self.auth != SCRAM:
            raise UsageError(f"auth={self.auth!r}: by its name there is {SCRAM!r}; give others as objects")
        if not isinstance(self.auth, (str, ClientMethod)):
            raise UsageError(f"auth={self.auth!r} is no method: it needs a name and start()")
        if self.publish_early:
            raise UsageError("with auth= nothing may be sent before CONNACK [MQTT-3.1.2-30]: leave publish_early out")

    def _check_will(self) -> None:
        will = self.will
        if will is None:
            return
        if not isinstance(will, Will):
            raise UsageError(f"will must be mq.Will(topic, payload, qos, retain), not {type(will).__name__}")
        check_topic_name(will.topic)
        if will.qos not in (0, 1, 2):
            raise UsageError(f"will: qos={will.qos!r} must be 0, 1 or 2")
        if len(encode_payload(will.payload)) > MAX_TEXT:
            raise UsageError(f"the will's payload has more than {MAX_TEXT} bytes (MQTT 5.0 section 3.1.3.4)")
        if will.properties and self.level != 5:
            raise UsageError('will properties are of MQTT 5.0: leave them out, or use version="5.0"')

    @property
    def password_bytes(self) -> bytes | None:
        """The password as it travels."""
        return self.password.encode() if isinstance(self.password, str) else self.password

    def credentials(self, username: str | None, password: bytes | None) -> tuple[str | None, bytes | None]:
        """Return user name and password; those given stand in where the options have none."""
        if self.username is not None:
            return self.username, self.password_bytes
        return username, self.password_bytes if self.password is not None else password

    def auth_method(self, username: str | None = None, password: bytes | None = None) -> ClientMethod | None:
        """Return the method of enhanced authentication, if one is wanted.

        Raises
        ------
        UsageError
            It needs a user name and a password.
        """
        if not isinstance(self.auth, str):
            return self.auth
        username, password = self.credentials(username, password)
        if not username or password is None:
            raise UsageError(f"auth={self.auth!r} needs username= and password=")
        try:
            return ScramClient(username, password.decode())
        except UnicodeDecodeError:
            raise UsageError(f"auth={self.auth!r} takes a password that is text") from None

    def connect_packet(self, username: str | None = None, password: bytes | None = None) -> Connect:
        """Return CONNECT; `username` and `password` stand in where the options have none (those of the URL)."""
        username, password = self.credentials(username, password)
        if isinstance(self.auth, str):
            username = password = None  # the method sends the one, and keeps the other to itself
        properties: dict[str, Any] = {}
        if self.level == 5:
            properties.update(self.properties or {})
            for name in ("session_expiry_interval", "receive_maximum", "maximum_packet_size", "topic_alias_maximum"):
                value = getattr(self, name)
                if value is not None:
                    properties[name] = value
            if self.user_properties:
                properties["user_property"] = [tuple(pair) for pair in self.user_properties]
            if self.datagrams:
                properties["user_property"] = [*properties.get("user_property", ()), READS_DATAGRAMS]
        will = self.will
        if will is not None:
            will = Will(will.topic, encode_payload(will.payload), will.qos, will.retain, dict(will.properties or {}))
        return Connect(
            self.client_id, self.level, self.clean_start, self.keepalive, username, password, will, properties
        )


def check_timeout(timeout: float | str | None, *, zero: bool = False, name: str = "timeout") -> float | None:
    """Return `timeout` in seconds; raises UsageError unless it is positive, a string like ``"500ms"``, or None.

    With `zero`, 0 is good as well: for verbs that may just look whether something is there.
    """
    if timeout is None:
        return None
    seconds = parse_seconds(timeout, name=name)
    if seconds == 0 and not zero:
        raise UsageError(f"{name} must be more than 0 seconds, or None to wait for ever")
    return seconds


def check_text(name: str, value: Any) -> None:
    """Raise UsageError unless `value` can travel as an MQTT UTF-8 string (MQTT 5.0 section 1.5.4)."""
    if not isinstance(value, str):
        raise UsageError(f"{name} must be text (str), not {type(value).__name__}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise UsageError(f"{name} is not text that UTF-8 can express [MQTT-1.5.4-1]") from None
    if "\0" in value:
        raise UsageError(f"{name} contains the character U+0000 [MQTT-1.5.4-2]")
    if size > MAX_TEXT:
        raise UsageError(f"{name} has {size} bytes, MQTT allows {MAX_TEXT}")


def check_pairs(pairs: Any) -> list[tuple[str, str]]:
    """Return User Properties as a list of pairs, or raise UsageError."""
    try:
        checked = [(name, value) for name, value in pairs]
    except (TypeError, ValueError):
        raise UsageError('user_properties takes a list of pairs, such as [("unit", "C"), ("room", "12")]') from None
    return checked


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
