"""What the broker allows, as its CONNACK told, and clear words for what it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mqttquic_lab.errors import PublishError, SubscribeError, UsageError
from mqttquic_lab.mqtt import MAX_PACKET_SIZE, ReasonCode, reason_text, split_shared

if TYPE_CHECKING:
    from mqttquic_lab.mqtt import ConnAck, Subscription
    from mqttquic_lab.session.options import SessionOptions


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """The broker's limits; the defaults are those of MQTT 5.0 section 3.2.2.3 for a property that is absent."""

    receive_maximum: int = 65_535
    """QoS 1 and 2 messages that may be on their way to it at a time."""
    maximum_qos: int = 2
    retain_available: bool = True
    maximum_packet_size: int = MAX_PACKET_SIZE
    """Bytes."""
    wildcards_available: bool = True
    identifiers_available: bool = True
    """Subscription Identifiers; never in 3.1.1."""
    shared_available: bool = True
    topic_alias_maximum: int = 0
    """Topic aliases that we may use towards it; 0 is none."""
    response_information: str = ""
    """Where it wants responses to this client to go, if it was asked and said so."""
    keepalive: int = 60
    """Seconds: the broker's Server Keep Alive if it names one, else what was asked for."""

    @classmethod
    def from_connack(cls, packet: ConnAck, options: SessionOptions) -> ServerLimits:
        """Read them from an accepting CONNACK."""
        if options.level != 5:
            return cls(identifiers_available=False, keepalive=options.keepalive)
        told = packet.properties
        return cls(
            receive_maximum=told.get("receive_maximum", 65_535),
            maximum_qos=told.get("maximum_qos", 2),
            retain_available=bool(told.get("retain_available", 1)),
            maximum_packet_size=min(told.get("maximum_packet_size", MAX_PACKET_SIZE), MAX_PACKET_SIZE),
            wildcards_available=bool(told.get("wildcard_subscription_available", 1)),
            identifiers_available=bool(told.get("subscription_identifier_available", 1)),
            shared_available=bool(told.get("shared_subscription_available", 1)),
            topic_alias_maximum=told.get("topic_alias_maximum", 0),
            response_information=told.get("response_information", ""),
            keepalive=told.get("server_keep_alive", options.keepalive),
        )

    def check_publish(self, qos: int, retain: bool) -> None:
        """Raise PublishError for what the broker said it does not take [MQTT-3.2.2-11, MQTT-3.2.2-14]."""
        if qos > self.maximum_qos:
            raise PublishError(
                f"the broker takes QoS {self.maximum_qos} at most (Maximum QoS), not {qos}: lower qos",
                reason_code=ReasonCode.QOS_NOT_SUPPORTED,
            )
        if retain and not self.retain_available:
            raise PublishError(
                "the broker keeps no retained messages (Retain Available is 0): publish without retain",
                reason_code=ReasonCode.RETAIN_NOT_SUPPORTED,
            )

    def check_size(self, size: int, payload_size: int) -> None:
        """Raise PublishError for a PUBLISH of `size` bytes that the broker does not accept [MQTT-3.2.2-15]."""
        if size > self.maximum_packet_size:
            raise PublishError(
                f"the payload of {payload_size} bytes makes a packet of {size}, and the broker accepts "
                f"{self.maximum_packet_size} (Maximum Packet Size): split the payload",
                reason_code=ReasonCode.PACKET_TOO_LARGE,
            )

    def check_subscription(self, subscription: Subscription) -> None:
        """Raise SubscribeError for a filter of a kind that the broker said it does not serve."""
        group, plain = split_shared(subscription.filter)
        if group is not None and not self.shared_available:
            raise SubscribeError(
                f"the broker serves no shared subscriptions, which {subscription.filter!r} is",
                reason_code=ReasonCode.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED,
            )
        if not self.wildcards_available and ("+" in plain or "#" in plain):
            raise SubscribeError(
                f"the broker serves no wildcards, which {subscription.filter!r} has: name each topic",
                reason_code=ReasonCode.WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED,
            )
        if group is not None and subscription.no_local:
            raise UsageError("a shared subscription cannot have no_local [MQTT-3.8.3-4]: leave it out")


def said(reason_code: int, reason_string: str | None) -> str:
    """Return a reason in words: ``Not authorized (0x87): the broker's own words``."""
    words = f"{reason_text(reason_code)} (0x{reason_code:02x})"
    return f"{words}: {printable(reason_string)}" if reason_string else words


def printable(text: str, limit: int = 500) -> str:
    """Return a peer's words fit for a message on somebody's terminal: shortened, control characters escaped."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:limit])
    return shown if len(text) <= limit else f"{shown}..."
