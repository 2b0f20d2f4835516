"""Topic aliases for what we publish: a name once per connection, then a number (MQTT 5.0 section 3.3.2.3.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mqttquic_lab.mqtt import encode_publish

if TYPE_CHECKING:
    from collections.abc import Mapping

MIN_TOPIC = 4
"""Bytes of a topic name from which on an alias, with its three bytes of property, saves any."""


class TopicAliases:
    """The aliases of one connection, first come first served, up to the broker's Topic Alias Maximum.

    Parameters
    ----------
    maximum : int
        Largest alias that the broker takes.
    """

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def encode(
        self,
        topic: str,
        data: bytes,
        qos: int,
        retain: bool,
        packet_id: int | None,
        properties: Mapping[str, Any] | None,
        limit: int,
    ) -> bytes:
        """Return a PUBLISH that is sent next on this connection, unless it has more than `limit` bytes."""
        number = self._numbers.get(topic)
        if number is not None:
            return encode_publish(
                "", data, qos, retain, False, packet_id, {**(properties or {}), "topic_alias": number}, 5
            )
        if len(self._numbers) < self.maximum and len(topic) >= MIN_TOPIC:
            number = len(self._numbers) + 1
            block = {**(properties or {}), "topic_alias": number}
            packet = encode_publish(topic, data, qos, retain, False, packet_id, block, 5)
            if len(packet) <= limit:
                self._numbers[topic] = number
                return packet
        return encode_publish(topic, data, qos, retain, False, packet_id, properties, 5)
