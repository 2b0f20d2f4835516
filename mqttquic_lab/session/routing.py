"""Which feeds a message belongs to.

A topic is matched against the filters of every feed, once; the outcome is remembered. That is enough as long as the
broker sends one copy of a message, whatever number of subscriptions it matched. Some brokers send one copy per
matching subscription (MQTT 5.0 section 3.3.4 lets them), and every feed would get each copy. So subscriptions that
overlap are given Subscription Identifiers, which the broker returns with each PUBLISH (section 3.3.2.3.8) and which
say whose copy it is. Subscriptions that overlap no other do without: an identifier costs the broker a message of its
own for each subscriber.

A second SUBSCRIBE for the same filter *replaces* the first one at the broker, its identifier included
[MQTT-3.8.4-3]. Two feeds for one filter are therefore one subscription, and this module hands its messages to both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttquic_lab.mqtt import TopicTrie, matches, split_shared

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mqttquic_lab.mqtt import Subscription
    from mqttquic_lab.session.feed import AsyncFeed

CACHE_LIMIT = 8192
"""Routes remembered; at the limit all are forgotten, which costs one match per topic to rebuild."""

CACHED_TOPIC = 512
"""Characters of the longest topic whose route is remembered: long ones would cost too much memory."""

CACHED_IDENTIFIERS = 16
"""The same for identifiers, of which a PUBLISH may carry any number."""

MAX_IDENTIFIER = 268_435_455
"""Largest Subscription Identifier (MQTT 5.0 section 3.8.2.1.2)."""


def filters_overlap(one: str, other: str) -> bool:
    """Whether some topic matches both filters (given without ``$share/group/``)."""
    levels, others = one.split("/"), other.split("/")
    if levels[0].startswith("$") != others[0].startswith("$"):
        return False  # a wildcard at the first level does not match topics that begin with $ [MQTT-4.7.2-1]
    for level, matching in zip(levels, others, strict=False):
        if "#" in (level, matching):
            return True
        if level != matching and "+" not in (level, matching):
            return False
    shorter, longer = sorted((levels, others), key=len)
    # "a/#" matches its parent "a", too [MQTT-4.7.1-2].
    return len(shorter) == len(longer) or longer[len(shorter)] == "#"


class Router:
    """Feeds by filter and by subscription identifier. One session's; used on its loop only."""

    def __init__(self) -> None:
        self._feeds: dict[str, list[AsyncFeed]] = {}
        self._subscriptions: dict[str, Subscription] = {}
        self._identifier_of: dict[str, int] = {}
        self._filters_of: dict[int, list[str]] = {}
        self._trie: TopicTrie[str] = TopicTrie()
        self._last_identifier = 0
        self.cache: dict[str, tuple[AsyncFeed, ...]] = {}
        """Topic -> feeds, of messages without identifier. Read directly where every nanosecond counts."""
        self._identified: dict[tuple[object, ...], tuple[AsyncFeed, ...]] = {}

    identifies_all = False
    """Whether each subscription gets an identifier, not only those that overlap others."""

    def knows(self, identifiers: Iterable[int]) -> bool:
        """Whether one of these Subscription Identifiers is of a subscription here."""
        return any(identifier in self._filters_of for identifier in identifiers)

    def next_identifier(self) -> int:
        """Return a Subscription Identifier that no live subscription has."""
        while True:
            self._last_identifier = self._last_identifier % MAX_IDENTIFIER + 1
            if self._last_identifier not in self._filters_of:
                return self._last_identifier

    def add(self, feed: AsyncFeed, subscriptions: Iterable[Subscription], identifier: int | None) -> None:
        """Route messages of `subscriptions` to `feed`; `identifier` is what the broker now has for them."""
        for subscription in subscriptions:
            topic_filter = subscription.filter
            holders = self._feeds.setdefault(topic_filter, [])
            if feed not in holders:
                holders.append(feed)
            self._trie.add(split_shared(topic_filter)[1], topic_filter, topic_filter)
            self.identify(subscription, identifier)
        self._forget_routes()

    def remove(self, feed: AsyncFeed, filters: Iterable[str]) -> list[str]:
        """Stop routing messages of `filters` to `feed`; return those that no feed holds any more."""
        orphans = []
        for topic_filter in filters:
            holders = self._feeds.get(topic_filter)
            if holders is None or feed not in holders:
                continue
            holders.remove(feed)
            if not holders:
                orphans.append(topic_filter)
                del self._feeds[topic_filter]
                del self._subscriptions[topic_filter]
                self._trie.remove(split_shared(topic_filter)[1], topic_filter)
                self._set_identifier(topic_filter, None)
        self._forget_routes()
        return orphans

    def identify(self, subscription: Subscription, identifier: int | None) -> None:
        """Note that the broker has been told `subscription` anew, with this identifier."""
        self._subscriptions[subscription.filter] = subscription
        self._set_identifier(subscription.filter, identifier)
        self._forget_routes()

    def current(self, topic_filter: str) -> tuple[Subscription, int | None] | None:
        """Return what the broker now has for `topic_filter`, or None if no feed holds it."""
        subscription = self._subscriptions.get(topic_filter)
        return None if subscription is None else (subscription, self._identifier_of.get(topic_filter))

    def holders(self, topic_filter: str) -> tuple[AsyncFeed, ...]:
        """Return the feeds that hold exactly this filter, oldest first."""
        return tuple(self._feeds.get(topic_filter, ()))

    def overlapping(self, filters: Iterable[str]) -> list[Subscription]:
        """Return the subscriptions held that overlap one of `filters` without being equal to it."""
        new = [(topic_filter, split_shared(topic_filter)[1]) for topic_filter in filters]
        found = []
        for held, subscription in self._subscriptions.items():
            plain = split_shared(held)[1]
            for topic_filter, other in new:
                if held != topic_filter and filters_overlap(plain, other):
                    found.append(subscription)
                    break
        return found

    def route(self, topic: str, identifiers: Sequence[int] | None, retain: bool) -> tuple[AsyncFeed, ...]:
        """Return the feeds that get a message, each once.

        Parameters
        ----------
        topic : str
            Topic name, aliases resolved.
        identifiers : sequence of int or None
            The PUBLISH's Subscription Identifiers, if it had any.
        retain : bool
            Its RETAIN flag.
        """
        if not identifiers:
            feeds = self.cache.get(topic)
            if feeds is None:
                feeds = self._by_topic(topic)
                if len(self.cache) >= CACHE_LIMIT:
                    self.cache.clear()
                if len(topic) <= CACHED_TOPIC:
                    self.cache[topic] = feeds
            return feeds
        key = (topic, retain, *identifiers)
        feeds = self._identified.get(key)
        if feeds is None:
            feeds = self._by_identifier(topic, identifiers, retain)
            if len(self._identified) >= CACHE_LIMIT:
                self._identified.clear()
            if len(topic) <= CACHED_TOPIC and len(identifiers) <= CACHED_IDENTIFIERS:
                self._identified[key] = feeds
        return feeds

    def _by_topic(self, topic: str) -> tuple[AsyncFeed, ...]:
        found: dict[AsyncFeed, None] = {}  # a dict as an ordered set
        for topic_filter in self._trie.match(topic):
            found.update(dict.fromkeys(self._feeds[topic_filter]))
        return tuple(found)

    def _by_identifier(self, topic: str, identifiers: Sequence[int], retain: bool) -> tuple[AsyncFeed, ...]:
        found: dict[AsyncFeed, None] = {}
        known = False
        for identifier in identifiers:
            for topic_filter in self._filters_of.get(identifier, ()):
                known = True
                if matches(split_shared(topic_filter)[1], topic):
                    holders = self._feeds[topic_filter]
                    if retain and not self._subscriptions[topic_filter].retain_as_published:
                        holders = holders[-1:]  # sent because the newest of them subscribed; the others had it
                    found.update(dict.fromkeys(holders))
        # An identifier that nobody has is of a session resumed, or from just before a filter was subscribed anew.
        return tuple(found) if known else self._by_topic(topic)

    def _forget_routes(self) -> None:
        self.cache.clear()
        self._identified.clear()

    def _set_identifier(self, topic_filter: str, identifier: int | None) -> None:
        old = self._identifier_of.pop(topic_filter, None)
        if old is not None:
            siblings = self._filters_of[old]
            siblings.remove(topic_filter)
            if not siblings:
                del self._filters_of[old]
        if identifier is not None:
            self._identifier_of[topic_filter] = identifier
            self._filters_of.setdefault(identifier, []).append(topic_filter)
