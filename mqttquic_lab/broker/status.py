"""What a broker tells about itself: who is connected over what, and what was counted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mqttquic_lab.net.stream import TransportName


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """One connected client."""

    client_id: str
    transport: TransportName
    """What really carries its bytes."""
    address: tuple[str, int]
    """Its address now (it may change by QUIC migration)."""
    version: str
    """``"5.0"`` or ``"3.1.1"``."""
    username: str | None
    connected_at: float
    """Seconds since the epoch."""
    keepalive: int
    """Seconds; 0 means none."""
    clean_start: bool
    session_expiry_interval: int
    """Seconds the session outlives the connection."""
    subscriptions: tuple[str, ...]
    """Its topic filters, as it wrote them (the first 1000)."""
    streams: int
    """Streams beside the control stream (MQTT over QUIC with several streams)."""
    messages_in: int
    """Application messages it published on this connection."""
    messages_out: int
    """Application messages sent to it on this connection."""
    bytes_in: int
    bytes_out: int
    inflight: int
    """QoS 1 and 2 messages sent to it and not yet acknowledged."""
    queued: int
    """QoS 1 and 2 messages waiting for it."""
    pending: int
    """Bytes written that it has not taken yet."""
    dropped: int
    """Messages it did not get because it was too slow, or they were too large for it."""
    resumed: bool = False
    """Whether its QUIC connection began with a ticket of an earlier one."""
    early_data: str = "not offered"
    """What became of its 0-RTT data: ``"accepted"``, ``"rejected"`` or ``"not offered"``."""
    early_messages: int = 0
    """Application messages that it published as early data."""
    datagrams_in: int = 0
    """DATAGRAM frames from it (RFC 9221)."""
    datagrams_out: int = 0
    """Messages sent to it in DATAGRAM frames."""


REFUSALS = {
    "connections_refused": "connections refused",
    "connect_timeouts": "connections without CONNECT",
    "connects_refused": "CONNECTs refused",
    "authentications_refused": "authentications refused",
    "protocol_errors": "protocol errors",
    "stream_errors": "stream errors",
    "streams_refused": "streams refused",
    "datagrams_refused": "datagrams refused",
    "early_data_rejected": "early data rejected",
    "replays_refused": "replays refused",
    "stale_refused": "stale tickets refused",
    "keepalive_timeouts": "keep-alive timeouts",
    "publishes_refused": "publishes refused",
    "deliveries_refused": "deliveries refused",
    "subscriptions_refused": "subscriptions refused",
    "retained_refused": "messages not retained",
    "store_refused": "messages not stored",
    "store_errors": "store errors",
    "sessions_evicted": "sessions evicted",
    "dropped_qos0": "messages dropped at QoS 0",
    "dropped_queue": "dropped from full queues",
    "dropped_size": "dropped as too large",
    "dropped_session": "ended with their session",
    "expired": "messages expired",
}
"""Counter of :class:`BrokerStats` -> words: whatever somebody wanted and did not get."""


@dataclass(slots=True)
class BrokerStats:
    """Counters since the start, and how much is held now."""

    uptime: float = 0.0
    """Seconds."""
    connections: int = 0
    """Network connections now, including those that have not said CONNECT yet."""
    clients: int = 0
    """MQTT connections now."""
    sessions: int = 0
    """Sessions held, connected or not."""
    subscriptions: int = 0
    """Subscriptions held."""
    retained: int = 0
    """Retained messages held."""
    retained_bytes: int = 0
    """Topic and payload bytes of those."""
    queued: int = 0
    """QoS 1 and 2 messages waiting in all sessions."""
    queued_bytes: int = 0
    stored_messages: int = 0
    """Messages in the store, each counted once: retained, under way, and waiting (``store=``)."""
    stored_bytes: int = 0
    """Topic and payload bytes of those."""
    store_committed_at: float = 0.0
    """When something was written to the store last, seconds since the epoch; 0 if never."""
    store_error: str = ""
    """Why the store cannot be written now; empty when all is well."""

    connections_total: int = 0
    """Network connections ever accepted."""
    connects_total: int = 0
    """CONNECTs answered with success."""
    disconnects_total: int = 0
    """Those of them that have ended, for whatever reason."""
    clients_maximum: int = 0
    """MQTT connections at a time, at most."""
    packets_in: int = 0
    """Control packets received."""
    packets_out: int = 0
    """Control packets sent."""
    messages_in: int = 0
    """Application messages published by clients."""
    messages_out: int = 0
    """Application messages sent to clients, each copy counted."""
    payload_bytes_in: int = 0
    """Payload bytes of the application messages published."""
    payload_bytes_out: int = 0
    """Payload bytes of those sent, each copy counted."""
    bytes_in: int = 0
    bytes_out: int = 0
    shared_returned: int = 0
    """Messages of shared subscriptions given to another member because the first did not take them."""
    wills_published: int = 0
    takeovers: int = 0
    """Connections ended because their client connected anew (0x8E)."""
    migrations: int = 0
    """Times that a client's address changed under a QUIC connection, which went on (RFC 9000 section 9)."""
    keepalive_timeouts: int = 0
    connect_timeouts: int = 0
    """Connections closed because no CONNECT came in time."""
    sessions_expired: int = 0

    connections_refused: int = 0
    """Network connections closed because of ``max_connections``."""
    connects_refused: int = 0
    """CONNECTs answered with a failure: bad credentials, bad client id, unsupported version."""
    authentications: int = 0
    """Enhanced authentications (AUTH) that succeeded, those of clients that did it again included."""
    authentications_refused: int = 0
    """Enhanced authentications that failed, or took too long."""
    protocol_errors: int = 0
    """Connections ended because the client broke a rule or sent bytes that are no packet."""
    publishes_refused: int = 0
    """Messages that a client was not allowed to publish (``acl``, or ``$SYS`` topics)."""
    deliveries_refused: int = 0
    """Messages not sent to a subscriber that is not allowed to have them (``acl``)."""
    subscriptions_refused: int = 0
    """Subscriptions refused: not allowed (``acl``), or too many (``max_subscriptions``)."""
    retained_refused: int = 0
    """Messages not retained because of ``max_retained`` or ``max_retained_bytes``."""
    sessions_evicted: int = 0
    """Disconnected sessions given up because of ``max_sessions``."""
    dropped_qos0: int = 0
    """QoS 0 messages not sent to a client that reads too slowly."""
    dropped_queue: int = 0
    """QoS 1 and 2 messages given up because a session's queue was full."""
    dropped_size: int = 0
    """Messages not sent because the client takes no packets of that size."""
    dropped_session: int = 0
    """QoS 1 and 2 messages that ended with their session."""
    expired: int = 0
    """Messages whose message expiry interval ran out before they could be sent."""
    early_messages: int = 0
    """Application messages that came as early data (0-RTT)."""
    tickets_issued: int = 0
    """Session tickets given to QUIC clients."""
    resumptions: int = 0
    """QUIC connections that began with a ticket of an earlier one."""
    early_data_accepted: int = 0
    """QUIC connections whose 0-RTT data was taken."""
    early_data_rejected: int = 0
    """QUIC connections whose 0-RTT data was not taken, for whatever reason."""
    replays_refused: int = 0
    """Of those rejected: the ticket had been used before."""
    stale_refused: int = 0
    """Of those rejected: the ticket was not as old as the client said (``early_data_window``)."""
    retries: int = 0
    """Retry packets sent: clients asked to prove their address."""
    version_negotiations: int = 0
    """Version Negotiation packets sent."""
    amplification_limited: int = 0
    """QUIC handshakes that had to wait because three times what the client had sent was sent (RFC 9000 section 8.1)."""
    streams_refused: int = 0
    """QUIC streams reset because they are not served: by the profile, or because the client is gone."""
    streams_total: int = 0
    """QUIC streams served beside control streams."""
    store_commits: int = 0
    """Transactions written to the store."""
    store_seconds: float = 0.0
    """Seconds they took together; the broker goes on meanwhile."""
    store_slowest: float = 0.0
    """Seconds the slowest took."""
    store_errors: int = 0
    """Transactions that failed; they are tried again."""
    store_refused: int = 0
    """QoS 1 and 2 messages refused because the store could not keep them."""
    stream_errors: int = 0
    """Data streams reset because of what came on them; their client stayed connected."""

    datagrams_in: int = 0
    """DATAGRAM frames from clients (RFC 9221)."""
    datagrams_out: int = 0
    """Messages sent in DATAGRAM frames; one that too many waited before is counted in `dropped_qos0`."""
    datagrams_lost: int = 0
    """Of those, the ones that count as lost (RFC 9002 section 6.1)."""
    datagrams_refused: int = 0
    """DATAGRAM frames from clients with anything but one PUBLISH at QoS 0, or too many before CONNECT."""

    def refusals(self) -> dict[str, int]:
        """Return what was refused, dropped or cut off: words -> number, zeros included."""
        return {words: getattr(self, name) for name, words in REFUSALS.items()}

    @property
    def dropped(self) -> int:
        """Messages that somebody should have got and did not, for want of room or time."""
        return self.dropped_qos0 + self.dropped_queue + self.dropped_size + self.dropped_session

    def to_dict(self) -> dict[str, Any]:
        """Return the counters as plain data."""
        return asdict(self)
