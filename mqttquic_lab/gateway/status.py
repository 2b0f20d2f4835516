"""What a gateway tells about itself: whose streams it carries, and what was counted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mqttquic_lab.net.stream import TransportName


@dataclass(frozen=True, slots=True)
class RelayedStream:
    """One stream of a client, and the connection to the broker that carries it."""

    stream_id: int | None
    """QUIC stream id, or None over TLS."""
    state: str
    """``"waiting"`` for its first byte, ``"connecting"``, ``"open"``, ``"client ended"``, ``"broker ended"``,
    ``"client left"``."""
    local_port: int | None
    """Our TCP port towards the broker, by which its log names the client."""
    opened_at: float
    """Seconds since the epoch."""
    bytes_to_broker: int
    bytes_from_broker: int
    pending_to_broker: int
    """Bytes that the broker has not taken yet."""
    pending_from_broker: int
    """Bytes that the client has not taken (QUIC: acknowledged) yet."""
    pauses: int
    """Times that one side was not read because the other one was slower."""


@dataclass(frozen=True, slots=True)
class GatewayClient:
    """One connected client."""

    transport: TransportName
    address: tuple[str, int]
    """Its address now (it may change by QUIC migration)."""
    connected_at: float
    """Seconds since the epoch."""
    streams: tuple[RelayedStream, ...]


@dataclass(frozen=True, slots=True)
class GatewayError:
    """Something that went wrong, in words."""

    time: float
    """Seconds since the epoch."""
    where: str
    """``"upstream"`` or ``"client"``, and the client's address."""
    message: str


@dataclass(slots=True)
class GatewayStats:
    """Counters since the start, and how much is held now."""

    uptime: float = 0.0
    """Seconds."""
    connections: int = 0
    """Client connections now."""
    streams: int = 0
    """Streams carried now, each with a connection to the broker or about to have one."""
    pending: int = 0
    """Bytes held now because the side that they are for has not taken them."""
    connections_total: int = 0
    streams_total: int = 0
    bytes_to_broker: int = 0
    bytes_from_broker: int = 0
    pauses: int = 0
    """Times that one side was not read because the other one was slower."""
    ended: int = 0
    """Streams that both sides brought to an orderly end."""
    upstream_failures: int = 0
    """Streams reset because no connection to the broker came about."""
    upstream_resets: int = 0
    """Streams reset because the connection to the broker broke."""
    client_resets: int = 0
    """Connections to the broker broken off because the client reset its stream, or was lost."""
    connections_refused: int = 0
    """Client connections closed because of ``max_connections``."""
    handshakes_failed: int = 0
    """Client connections that ended in their handshake."""
    streams_refused: int = 0
    """Streams reset because of ``max_upstream``, or because they were no MQTT connection."""
    connect_timeouts: int = 0
    """Client connections closed because no stream came in time."""

    def to_dict(self) -> dict[str, Any]:
        """Return the counters as plain data."""
        return asdict(self)
