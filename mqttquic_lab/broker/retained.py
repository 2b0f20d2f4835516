"""Retained messages: the newest per topic, for subscribers to come (MQTT 5.0 section 3.3.1.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttquic_lab.mqtt import TopicMap

if TYPE_CHECKING:
    from mqttquic_lab.broker.message import Message
    from mqttquic_lab.broker.store.journal import Journal


SEARCH_INTERVAL = 1.0
"""Seconds between two searches of a full store for expired messages: a search looks at all of them."""


class RetainedMessages:
    """A bounded store.

    Parameters
    ----------
    max_messages : int
        Topics kept.
    max_bytes : int
        Topic, payload and property bytes kept.
    max_levels : int
        Topic levels; each costs memory of its own, though a level may be no more than its ``/``.
    """

    def __init__(self, max_messages: int, max_bytes: int, max_levels: int = 128) -> None:
        self._messages: TopicMap[Message] = TopicMap()
        self._by_topic: dict[str, Message] = {}
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._max_levels = max_levels
        self._searched_at = -SEARCH_INTERVAL
        self.nbytes = 0
        """Topic, payload and property bytes held."""
        self.journal: Journal | None = None
        """The store's, where the broker has one."""

    def __len__(self) -> int:
        return len(self._by_topic)

    def store(self, message: Message, now: float) -> bool:
        """Keep a message instead of the one its topic had; an empty payload removes that [MQTT-3.3.1-6].

        Returns
        -------
        bool
            False when there is no room: nothing is retained for this topic then, not even the older message, which
            would be wrong by now.
        """
        self.remove(message.topic)
        if not message.payload:
            return True
        if message.topic.count("/") >= self._max_levels:
            return False
        if not self._has_room(message):
            if now < self._searched_at + SEARCH_INTERVAL:
                return False
            self._searched_at = now
            for old in [old for old in self._by_topic.values() if old.is_expired(now)]:
                self.remove(old.topic)
            if not self._has_room(message):
                return False
        self._messages.set(message.topic, message)
        self._by_topic[message.topic] = message
        self.nbytes += message.size
        if self.journal is not None:
            self.journal.retain(message)
        return True

    def _has_room(self, message: Message) -> bool:
        return len(self._by_topic) < self._max_messages and self.nbytes + message.size <= self._max_bytes

    def remove(self, topic: str) -> None:
        """Forget what a topic had, if anything."""
        message = self._by_topic.pop(topic, None)
        if message is not None:
            self._messages.remove(topic)
            self.nbytes -= message.size
            if self.journal is not None:
                self.journal.unretain(message)

    def get(self, topic: str, now: float) -> Message | None:
        """Return a topic's message unless it has expired."""
        message = self._by_topic.get(topic)
        if message is not None and message.is_expired(now):
            self.remove(topic)
            return None
        return message

    def topics(self, topic_filter: str) -> list[str]:
        """Return the topics with a retained message that match a filter."""
        if "+" not in topic_filter and "#" not in topic_filter:
            return [topic_filter] if topic_filter in self._by_topic else []
        return [topic for topic, _ in self._messages.matching(topic_filter)]
