"""Messages that came in 0-RTT packets, before the client had shown that it is there and not a recording of it.

A broker that takes early data marks them, as an HTTP server marks requests for whoever comes after it (RFC 8470 section
5.1): with the User Property ``early_data = 1`` beside the publisher's own. Subscribers over MQTT 5.0 can tell them
apart; our feeds do, in the column ``early_data``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttquic_lab.mqtt import Publish
from mqttquic_lab.mqtt.properties import EARLY_DATA

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mqttquic_lab.mqtt import Packet


class EarlyPublish(Publish):
    """A PUBLISH that came as early data. A type of its own, so that all others go their usual, fast way."""

    __slots__ = ()


def marked(packets: Iterable[Packet]) -> list[Packet]:
    """Return `packets` with every PUBLISH marked."""
    return [_mark(packet) if type(packet) is Publish else packet for packet in packets]


def _mark(packet: Publish) -> EarlyPublish:
    properties = dict(packet.properties)
    others = [pair for pair in properties.get("user_property", ()) if pair != EARLY_DATA]
    properties["user_property"] = [*others, EARLY_DATA]
    return EarlyPublish(
        packet.topic, packet.payload, packet.qos, packet.retain, packet.dup, packet.packet_id, properties
    )
