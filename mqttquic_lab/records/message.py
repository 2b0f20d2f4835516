"""One received application message as an object: what iterating a feed yields."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_PAYLOAD_SHOWN = 40
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class Message:
    """One application message as it arrived (MQTT 5.0 section 3.3)."""

    sequence: int
    """How many messages of the same feed came before it; the row label in ``feed.df``."""
    time_ns: int
    """When it was decoded, nanoseconds since the Unix epoch, UTC."""
    topic: str
    payload: bytes
    value: Any
    """The payload decoded as the feed was told to; None where that failed."""
    qos: int = 0
    retain: bool = False
    dup: bool = False
    packet_id: int | None = None
    """None at QoS 0, which has no packet identifier."""
    stream_id: int | None = None
    """QUIC stream that carried it; None over TCP and TLS, and for what came in a datagram (RFC 9221)."""
    early_data: bool = False
    """It travelled in 0-RTT packets (RFC 9001 section 4.6), which an attacker can replay."""
    latency: float | None = None
    """Seconds since the sender's ``sent_ns`` user property; None when it has none. Both clocks enter into it."""
    properties: Mapping[str, Any] = field(default_factory=dict)
    """MQTT 5.0 properties, snake case; empty for 3.1.1."""
    session: str = ""

    @property
    def time(self) -> dt.datetime:
        """:attr:`time_ns` as an aware datetime, microsecond resolution."""
        return _EPOCH + dt.timedelta(microseconds=self.time_ns // 1000)

    @property
    def size(self) -> int:
        """Payload length in bytes."""
        return len(self.payload)

    @property
    def text(self) -> str:
        """The payload as UTF-8 text, bytes that are not valid UTF-8 shown as U+FFFD."""
        return self.payload.decode("utf-8", "replace")

    def __repr__(self) -> str:
        shown = repr(self.payload[:_PAYLOAD_SHOWN])
        if self.size > _PAYLOAD_SHOWN:
            shown += f"... ({self.size} bytes)"
        flags = "".join(f", {name}" for name in ("retain", "dup", "early_data") if getattr(self, name))
        return f"<Message {self.topic!r} {shown} qos={self.qos}{flags}>"
