"""What the verbs of a session return, and what it counts."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class PublishResult:
    """How one PUBLISH ended."""

    reason_code: int
    """Of PUBACK or PUBREC/PUBCOMP; 0 at QoS 0, and of a message that is `queued`. 0x10 (no matching subscribers) is a
    success."""
    packet_id: int | None
    """Packet identifier it travelled under; None at QoS 0."""
    round_trip: float | None
    """Seconds from handing it to the transport to its last acknowledgement; None at QoS 0."""
    queued: bool = False
    """The session had no connection: the message waits for one, and has gone nowhere yet."""
    datagram: bool = False
    """It went in a DATAGRAM frame: whether it arrived, nobody says."""


@dataclass(slots=True)
class PublishSummary:
    """How a ``publish_many`` ended."""

    count: int = 0
    """Messages handed to the transport."""
    payload_bytes: int = 0
    """Their payloads together."""
    seconds: float = 0.0
    """From the first message to the last acknowledgement, or to the last byte handed over at QoS 0."""
    reason_codes: Counter[int] = field(default_factory=Counter)
    """How often each reason code was answered; empty at QoS 0."""
    datagrams: int = 0
    """Of `count`, those that went in DATAGRAM frames."""

    def add(self, other: PublishSummary) -> PublishSummary:
        """Return both together, as one after the other."""
        return PublishSummary(
            self.count + other.count,
            self.payload_bytes + other.payload_bytes,
            self.seconds + other.seconds,
            self.reason_codes + other.reason_codes,
            self.datagrams + other.datagrams,
        )

    @property
    def refused(self) -> int:
        """Messages answered with a failure (reason code 0x80 or more)."""
        return sum(count for code, count in self.reason_codes.items() if code >= 0x80)

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.count / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """Something that went wrong where nobody was waiting for it (or was also told)."""

    time: float
    """Seconds since the epoch."""
    where: str
    """Part of the session: ``"decoder"``, ``"keep-alive"``, ``"on_message"``, ``"transport"``, ``"broker"``."""
    message: str
    """One sentence."""

    @classmethod
    def now(cls, where: str, message: str) -> ErrorRecord:
        """Make one with the present time."""
        return cls(time.time(), where, message)


EventName = Literal[
    "connected", "fallback", "mapping", "resumed", "renewed", "flow", "moved", "lost", "retrying", "closed"
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class EventRecord:
    """A change in what connects the session to its broker."""

    time: float
    """Seconds since the epoch."""
    what: EventName
    """``"resumed"``: connected again, and the broker had kept the session; ``"renewed"``: it had not, and was told
    everything anew. ``"moved"``: the same connection goes on from another address. ``"fallback"``: QUIC did not get
    through, and `transport` carries the session instead. ``"mapping"``: ``streams="flows"`` is not to be had.
    ``"flow"``: a flow was recovered, or had to begin again. ``"closed"`` was asked for here, ``"lost"`` was not.
    ``"retrying"``: about to connect anew; told again only when the reason changes."""
    transport: str
    """``"quic"``, ``"tls"`` or ``"tcp"``."""
    detail: str
    """One sentence, or where to."""


@dataclass(slots=True)
class SessionStats:
    """Counters of one session since it was opened."""

    packets_sent: int = 0
    packets_received: int = 0
    bytes_sent: int = 0
    """MQTT bytes handed to the transport (not those of QUIC, TLS or TCP around them)."""
    bytes_received: int = 0
    messages_sent: int = 0
    """PUBLISH packets sent."""
    messages_received: int = 0
    """PUBLISH packets received, without QoS 2 duplicates."""
    duplicates: int = 0
    """QoS 2 messages that came again and were not delivered again [MQTT-4.3.3-10]."""
    unrouted: int = 0
    """Messages that belonged to no feed; the newest of them are in ``session.unrouted``."""
    stray: int = 0
    """Acknowledgements for packet identifiers that nothing was waiting under."""
    datagrams_sent: int = 0
    """Messages sent in DATAGRAM frames (RFC 9221), counted in `messages_sent` as well."""
    datagrams_received: int = 0
    """Messages that came in DATAGRAM frames, counted in `messages_received` as well."""
    datagrams_lost: int = 0
    """Of those sent, the ones whose packet counts as lost (RFC 9002 section 6.1); they are not sent again."""
    datagrams_dropped: int = 0
    """Of those sent, the ones that never left: the path had become too narrow for them."""
    datagrams_refused: int = 0
    """DATAGRAM frames of the broker with anything but one PUBLISH at QoS 0, or before CONNACK."""
    pings: int = 0
    """PINGREQs sent."""
    reconnects: int = 0
    """Connections after the first that the broker accepted."""
    queued: int = 0
    """Messages published without a connection, taken to be sent later."""
    queued_dropped: int = 0
    """Of these, messages that could not be sent, that the broker refused, or that expired before they were sent."""
    errors: int = 0
    """Errors ever recorded; ``session.errors`` holds the newest."""

    def to_dict(self) -> dict[str, Any]:
        """Return the counters as plain data."""
        return asdict(self)
