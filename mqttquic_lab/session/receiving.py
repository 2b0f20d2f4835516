"""Receiving: from a PUBLISH to the logs of the feeds it belongs to, each once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttquic_lab.errors import ProtocolError
from mqttquic_lab.mqtt.properties import EARLY_DATA
from mqttquic_lab.records.log import MessageLog
from mqttquic_lab.records.message import Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttquic_lab.mqtt import Deliveries, Publish
    from mqttquic_lab.session.results import SessionStats
    from mqttquic_lab.session.routing import Router

UNROUTED_MESSAGES = 1000
UNROUTED_BYTES = 2**20


class Receiver:
    """The receiving half of one stream's messages. On its loop only.

    Attributes
    ----------
    unrouted : MessageLog
        The newest messages that belonged to no feed: those of a resumed session before anybody subscribed, say.
    name : str
        Client identifier, for the messages.
    watched : bool
        Whether `on_message` wants to be called for every message, whatever feed it belongs to.
    """

    def __init__(
        self,
        router: Router,
        deliveries: Deliveries,
        stats: SessionStats,
        *,
        topic_alias_maximum: int,
        stream_id: int | None,
        on_message: Callable[[Message], None],
        unrouted: MessageLog | None = None,
        otherwise: Router | None = None,
        aliases: dict[int, str] | None = None,
    ) -> None:
        self._router = router
        self._otherwise = otherwise  # of the session, for what comes on a stream that did not subscribe to it
        self._deliveries = deliveries
        self._stats = stats
        self._alias_maximum = topic_alias_maximum
        self.aliases: dict[int, str] = {} if aliases is None else aliases
        """Topic Alias -> topic."""
        self._stream_id = stream_id
        self.name = ""
        if unrouted is None:
            unrouted = MessageLog(decode="raw", max_messages=UNROUTED_MESSAGES, max_bytes=UNROUTED_BYTES)
        self.unrouted = unrouted
        self.watched = False
        self._on_message = on_message

    def restart(self, stream_id: int | None, *, aliases: dict[int, str] | None = None) -> None:
        """Go on over a new connection, for which no topic alias of the old one holds (MQTT 5.0 section 3.3.2.3.4).

        Flows may keep theirs: `aliases` are those that hold.
        """
        if aliases is None:
            self.aliases.clear()
        else:
            self.aliases = aliases
        self._stream_id = stream_id

    def look_up_in(self, router: Router) -> None:
        """Find the feeds of further messages there."""
        self._router = router

    def publish(self, packet: Publish, now: int, replies: list[bytes]) -> None:
        """Take in one PUBLISH.

        Parameters
        ----------
        packet : Publish
            As decoded.
        now : int
            Nanoseconds since the epoch.
        replies : list of bytes
            What is to be sent in answer is appended.

        Raises
        ------
        ProtocolError
            More than our receive maximum, or a topic alias that we did not allow or that was never set.
        """
        if packet.qos:
            received = self._deliveries.receive(packet)
            if received.reply is not None:
                replies.append(received.reply.encode(5 if self._deliveries.version == 5 else 4))
            if not received.deliver:
                self._stats.duplicates += 1
                return
        topic = packet.topic
        properties = packet.properties
        early = False
        if properties:
            # What the broker says of how it came there; our own link to the broker brings no early data.
            early = EARLY_DATA in properties.get("user_property", ())
            if not topic or "topic_alias" in properties:
                topic = self._resolve_alias(packet)
            feeds = self._router.route(topic, properties.get("subscription_identifier"), packet.retain)
        else:
            cached = self._router.cache.get(topic)
            feeds = self._router.route(topic, None, packet.retain) if cached is None else cached
        if not feeds and self._otherwise is not None:
            feeds = self._otherwise.route(topic, properties.get("subscription_identifier"), packet.retain)
        self._stats.messages_received += 1
        for feed in feeds:
            feed.log.append(
                now, topic, packet.payload, packet.qos, packet.retain, packet.dup, packet.packet_id, self._stream_id,
                early, properties,
            )  # fmt: skip
        if not feeds:
            self._stats.unrouted += 1
            self.unrouted.append(
                now, topic, packet.payload, packet.qos, packet.retain, packet.dup, packet.packet_id, self._stream_id,
                early, properties,
            )  # fmt: skip
        if self.watched:
            self._on_message(self._message(packet, topic, now))

    def datagram(self, packet: Publish, now: int) -> None:
        """Take in a PUBLISH at QoS 0 that came in a datagram, on no stream; raises ProtocolError as :meth:`publish`."""
        stream_id, self._stream_id = self._stream_id, None
        try:
            self.publish(packet, now, [])
        finally:
            self._stream_id = stream_id

    def _resolve_alias(self, packet: Publish) -> str:
        """Return the topic that a PUBLISH with a Topic Alias, or with an empty topic, means (section 3.3.2.3.4)."""
        alias = packet.properties.get("topic_alias")
        if alias is None or not 0 < alias <= self._alias_maximum:
            raise ProtocolError(
                f"PUBLISH with Topic Alias {alias}, though CONNECT allowed {self._alias_maximum or 'none'}"
                if alias is not None
                else "PUBLISH with neither topic nor Topic Alias",
                reason_code=0x94 if alias is not None else 0x82,
                rule="MQTT-3.1.2-26" if alias is not None else "",
                section="MQTT 5.0 section 3.3.2.3.4",
                field="topic_alias",
                packet=packet,
            )
        if packet.topic:
            self.aliases[alias] = packet.topic
            return packet.topic
        topic = self.aliases.get(alias)
        if topic is None:
            raise ProtocolError(
                f"PUBLISH with Topic Alias {alias}, which no earlier PUBLISH has set",
                reason_code=0x82,
                section="MQTT 5.0 section 3.3.2.3.4",
                field="topic_alias",
                packet=packet,
            )
        return topic

    def _message(self, packet: Publish, topic: str, now: int) -> Message:
        return Message(
            sequence=self._stats.messages_received - 1,
            time_ns=now,
            topic=topic,
            payload=packet.payload,
            value=None,
            qos=packet.qos,
            retain=packet.retain,
            dup=packet.dup,
            packet_id=packet.packet_id,
            stream_id=self._stream_id,
            properties=packet.properties,
            early_data=EARLY_DATA in packet.properties.get("user_property", ()),
            session=self.name,
        )
