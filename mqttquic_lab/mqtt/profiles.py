"""How brokers differ in MQTT over QUIC: one declarative table, read by the embedded broker and by the client.

There is no OASIS document for MQTT over QUIC, so each broker has rules of its own: how many streams, which directions,
where deliveries go, what ends what. The embedded broker reproduces the rules of a profile that can be observed from
outside; the client asks :meth:`BrokerProfile.refusal` before a call that this broker is known to refuse.

Sources are named per profile. Where the text about a broker and a running one disagree, the running one wins.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from mqttquic_lab.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ProfileName = Literal["generic", "emqx", "rocketmq", "mqttv5"]

Action = Literal[
    "enhanced_authentication",
    "data_stream",
    "unidirectional_stream",
    "subscribe_on_data_stream",
    "unsubscribe_on_other_stream",
    "ping_on_data_stream",
    "early_data",
    "datagram",
    "flows",
]
"""Things that some broker refuses."""

DeliveryStrategy = Literal["subscribing-stream", "control-only", "per-topic", "per-publish"]
"""Where a message to a subscriber goes out.

``"subscribing-stream"``: on the stream that carried the SUBSCRIBE. ``"control-only"``: on the control stream.
``"per-topic"``: on a bidirectional stream that the server opens for the topic and keeps. ``"per-publish"``: on a stream
that the server opens for the message; unidirectional at QoS 0.
"""


@dataclass(frozen=True, slots=True)
class BrokerProfile:
    """The rules of one broker, as far as a peer can see them.

    Attributes
    ----------
    name : str
        What ``profile=`` takes.
    title : str
        The broker, in words.
    bidirectional : {"data", "connection", "none"}
        What a client-opened bidirectional stream after the control stream is: ``"data"``, a further stream of the same
        MQTT connection; ``"connection"``, an MQTT connection of its own that needs its own CONNECT; ``"none"``, reset.
    unidirectional : bool
        Whether client-opened unidirectional streams are served (PUBLISH; acknowledgements on the control stream).
        False: answered with STOP_SENDING, code 0.
    refusal_code : int
        Application error code with which streams that are not served are reset.
    state_per_stream : bool
        Whether each data stream has packet identifiers, in-flight messages and subscriptions of its own. False: they
        are those of the session, on whichever stream a packet comes.
    before_connect : {"hold", "close"}
        What data on a data stream means while the control stream has brought no CONNECT at all: it waits, or the
        connection is closed with code 0. Between CONNECT and CONNACK it always waits.
    deliveries : tuple of str
        Where messages to subscribers can go out; see :data:`DeliveryStrategy`. The first one unless
        ``start_broker(deliveries=...)`` says another.
    max_delivery_streams : int
        Server-opened streams per connection; the least recently used one of a topic ends.
    max_inflight : int or None
        QoS 1 and 2 messages sent to a client and not acknowledged, whatever its Receive Maximum; None: no such bound.
    overlapping : {"once", "each"}
        What a client gets whose subscriptions overlap: one message, or a copy for each that matches [MQTT-3.3.4-2].
    names_publisher : bool
        Whether each delivery has a User Property ``x-mqtt-client-id`` with the publisher's client identifier.
    resets_keep_subscriptions : bool
        Whether a data stream that the client reset (RESET_STREAM, but not STOP_SENDING) still gets deliveries.
    control_end : {"connection", "stream"}
        What ends together with the control stream: the QUIC connection, or only the stream (FIN).
    keepalive : {"any", "control"}
        Packets of which streams count for the MQTT keep-alive.
    max_streams_bidi, max_streams_uni : int
        Streams that a client may have open at a time (RFC 9000 section 4.6).
    connection_window, stream_window : int or None
        Flow-control windows in bytes (RFC 9000 section 4.1); None leaves our own.
    idle_timeout : float or None
        QUIC idle timeout in seconds; None leaves our own.
    retry : bool or None
        Whether addresses are validated by a Retry (RFC 9000 section 8.1.2); None: only under load.
    early_data : bool
        Whether 0-RTT data is accepted.
    enhanced_authentication : bool
        Whether the broker itself knows AUTH (MQTT 5.0 section 4.12). The embedded broker serves it in no profile.
    datagrams : bool
        Whether PUBLISH at QoS 0 is taken from DATAGRAM frames (RFC 9221), whatever the ALPN.
    flows : bool
        Whether the broker speaks ``MQTT-next`` with flow headers.
    close_codes : mapping of int to str
        QUIC application error codes and what the broker means by them.
    notes : tuple of str
        What else a person should know.
    sources : tuple of str
        Where these rules come from.
    """

    name: ProfileName
    title: str
    bidirectional: Literal["data", "connection", "none"] = "data"
    unidirectional: bool = False
    refusal_code: int = 0
    state_per_stream: bool = True
    before_connect: Literal["hold", "close"] = "hold"
    deliveries: tuple[DeliveryStrategy, ...] = ("subscribing-stream",)
    max_delivery_streams: int = 64
    max_inflight: int | None = None
    overlapping: Literal["once", "each"] = "once"
    names_publisher: bool = False
    resets_keep_subscriptions: bool = False
    control_end: Literal["connection", "stream"] = "connection"
    keepalive: Literal["any", "control"] = "any"
    max_streams_bidi: int = 128
    max_streams_uni: int = 128
    connection_window: int | None = None
    stream_window: int | None = None
    idle_timeout: float | None = None
    retry: bool | None = None
    early_data: bool = False
    enhanced_authentication: bool = False
    datagrams: bool = False
    flows: bool = False
    close_codes: Mapping[int, str] = field(default_factory=lambda: {0: "normal"})
    notes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def max_data_streams(self) -> int:
        """Bidirectional data streams that a client may have beside the control stream."""
        return self.max_streams_bidi - 1 if self.bidirectional == "data" else 0

    def refusal(self, action: Action) -> str | None:
        """Return why this broker refuses an action, in words that can be shown; None if it serves it.

        Raises
        ------
        UsageError
            There is no such action.
        """
        if action not in _REFUSALS:
            raise UsageError(f"there is no action {action!r}: use one of {', '.join(_REFUSALS)}")
        served, reason = _REFUSALS[action]
        if action == "data_stream" and self.bidirectional == "none":
            reason = f"refuses bidirectional data streams with 0x{self.refusal_code:X}: use unidirectional ones"
        return None if served(self) else f"{self.title} {reason}"


_REFUSALS: Final[Mapping[Action, tuple[Callable[[BrokerProfile], bool], str]]] = {
    "enhanced_authentication": (
        lambda p: p.enhanced_authentication,
        "does not support AUTH: connect with a user name and password or a certificate",
    ),
    "data_stream": (
        lambda p: p.bidirectional == "data",
        "takes every stream for an MQTT connection of its own, which needs its own CONNECT: use streams='single'",
    ),
    "unidirectional_stream": (
        lambda p: p.unidirectional,
        "answers unidirectional streams with STOP_SENDING(0): use bidirectional ones",
    ),
    "subscribe_on_data_stream": (
        lambda p: p.bidirectional == "data" or p.unidirectional,
        "serves no data streams: subscribe on the control stream",
    ),
    "unsubscribe_on_other_stream": (
        lambda p: not p.state_per_stream or p.bidirectional != "data",
        "keeps subscriptions per stream and answers UNSUBSCRIBE elsewhere with 0x11: send it where you subscribed",
    ),
    "ping_on_data_stream": (
        lambda p: False,
        "answers PINGREQ on the control stream only",
    ),
    "early_data": (lambda p: p.early_data, "accepts no 0-RTT data: the handshake takes its full round trip"),
    "datagram": (lambda p: p.datagrams, "takes no DATAGRAM frames: publish on a stream"),
    "flows": (lambda p: p.flows, "does not speak MQTT-next: flow headers would be read as malformed packets"),
}  # fmt: skip


PROFILES: Final[Mapping[str, BrokerProfile]] = {
    profile.name: profile
    for profile in (
        BrokerProfile(
            "generic",
            "The embedded broker",
            unidirectional=True,
            deliveries=("subscribing-stream", "per-topic", "per-publish"),
            datagrams=True,
            flows=True,
            notes=("Our own and the most permissive: client bidirectional and unidirectional data streams.",),
            sources=("this project",),
        ),
        BrokerProfile(
            "emqx",
            "EMQX",
            before_connect="close",
            overlapping="each",
            resets_keep_subscriptions=True,
            control_end="stream",
            max_streams_bidi=10,
            max_streams_uni=1,
            connection_window=16 * 1024 * 1024,
            stream_window=64 * 1024,
            early_data=True,
            enhanced_authentication=True,
            close_codes={0: "normal", 1: "control stream down", 2: "overloaded"},
            notes=(
                "9 data streams beside the control stream; one more waits for credit until another one closes.",
                "Keep-alive counts packets on any stream since 5.8.2, before that on the control stream only.",
                "Deliveries on a stream that the client has reset go on, on the server's sending side.",
                "EMQX announces no QUIC idle timeout; the embedded broker keeps its own, so that all things end.",
                "Migration works, but EMQX keeps showing the old client address.",
            ),
            sources=("EMQX source, apps/emqx/src/emqx_quic_*.erl", "observed on EMQX 5.0.26"),
        ),
        BrokerProfile(
            "rocketmq",
            "rocketmq-mqtt (Tencent Cloud TDMQ)",
            bidirectional="connection",
            control_end="stream",
            retry=True,
            notes=(
                "Use exactly one bidirectional stream; a Retry, one round trip, is to be expected.",
                "Connection migration is said to be not fully implemented.",
                "TDMQ resends unacknowledged deliveries after 120 s; MQTT 5.0 section 4.4 forbids it, we do not.",
            ),
            sources=("apache/rocketmq-mqtt, develop branch", "Tencent Cloud, MQTT over QUIC"),
        ),
        BrokerProfile(
            "mqttv5",
            "mqttv5",
            bidirectional="none",
            unidirectional=True,
            refusal_code=0xB5,
            state_per_stream=False,
            deliveries=("per-topic", "control-only", "per-publish"),
            max_delivery_streams=100,
            max_inflight=64,
            overlapping="each",
            names_publisher=True,
            max_streams_bidi=100,
            max_streams_uni=100,
            connection_window=1024 * 1024,
            stream_window=256 * 1024,
            idle_timeout=60.0,
            early_data=True,
            enhanced_authentication=True,
            datagrams=True,
            flows=True,
            close_codes={0: "normal", 0xB2: "unspecified", 0xB3: "too many recover attempts", 0xB4: "protocol error"},
            notes=(
                "Deliveries come on bidirectional streams that the server opens, one per topic, with a flow header.",
                "Who stops such a stream (STOP_SENDING) loses the session.",
                "All answers come on the control stream; packet identifiers are the session's.",
                "0-RTT data only if it was started with --quic-early-data.",
                "A malformed packet on a data stream closes the connection.",
                "It announces packets of up to 268435456 bytes and 65535 topic aliases, we our own bounds.",
                "What is subscribed on a flow is the flow's: it ends with FIN, and outlives a reset until it expires.",
            ),
            sources=("LabOverWire/mqtt-lib, crates.io mqttv5-cli", "observed on mqttv5-cli 0.29.10"),
        ),
    )
}
"""All profiles by name."""


def profile_named(name: str) -> BrokerProfile:
    """Return a profile by its name.

    Raises
    ------
    UsageError
        There is none of this name.
    """
    profile = PROFILES.get(name)
    if profile is None:
        hint = " (QUIC tuning is tuning=)" if name in ("realistic", "loopback") else ""
        raise UsageError(f"there is no profile {name!r}{hint}: use one of {', '.join(PROFILES)}")
    return profile
