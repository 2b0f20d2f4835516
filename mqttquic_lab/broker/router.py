"""Which sessions get a message: subscriptions, shared subscriptions, and routes worked out once per topic.

Walking the subscription trie costs microseconds; a publisher sends on the same topic again and again. So the outcome
is kept per topic as a :class:`Route`, until any subscription or connection changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttquic_lab.mqtt import TopicTrie, split_shared

if TYPE_CHECKING:
    from mqttquic_lab.broker.message import Message
    from mqttquic_lab.broker.pipeline import Pipeline
    from mqttquic_lab.broker.sessions import Session
    from mqttquic_lab.mqtt import Subscription, Version

MAX_ROUTES = 8192
"""Routes remembered; all are forgotten when there are more topics than that."""
MAX_ROUTED_TOPIC = 512
"""Longest topic whose route is remembered, characters: long ones would cost too much memory."""


class Entry:
    """One subscription of one session."""

    __slots__ = ("filter", "identifier", "no_local", "qos", "retain_as_published", "session")

    def __init__(self, session: Session, subscription: Subscription, identifier: int | None) -> None:
        self.session = session
        self.filter = subscription.filter
        self.qos = subscription.qos
        self.no_local = subscription.no_local
        self.retain_as_published = subscription.retain_as_published
        self.identifier = identifier


class Target:
    """What one session gets of a topic: its matching subscriptions merged into one copy (MQTT 5.0 section 3.3.4)."""

    __slots__ = ("identifiers", "own", "qos", "retain_as_published", "session")

    def __init__(self, entries: list[Entry]) -> None:
        self.session = entries[0].session
        self.qos = max(entry.qos for entry in entries)
        self.retain_as_published = any(entry.retain_as_published for entry in entries)
        identifiers = [entry.identifier for entry in entries if entry.identifier is not None]
        self.identifiers = tuple(sorted(identifiers))
        self.own: Target | None = self
        """What the session gets of its own messages: nothing through No Local subscriptions [MQTT-3.8.3-3]."""
        if any(entry.no_local for entry in entries):
            rest = [entry for entry in entries if not entry.no_local]
            self.own = Target(rest) if rest else None


class SharedGroup:
    """The members of one shared subscription, ``$share/<name>/<filter>`` (MQTT 5.0 section 4.8.2)."""

    __slots__ = ("_next", "filter", "members", "name")

    def __init__(self, name: str, topic_filter: str) -> None:
        self.name = name
        self.filter = topic_filter
        self.members: dict[Session, Entry] = {}
        self._next = 0

    def choose(self, message: Message) -> Entry | None:
        """Return the member whose turn it is: round robin among those connected, preferring those that keep up.

        With nobody connected a QoS 0 message has no taker; others wait in the session whose turn it is.
        """
        entries = list(self.members.values())
        count = len(entries)
        busy: int | None = None
        offline: int | None = None
        for step in range(count):
            index = (self._next + step) % count
            client = entries[index].session.client
            if client is None:
                offline = index if offline is None else offline
            elif client.outbox.is_full:
                busy = index if busy is None else busy
            else:
                break
        else:
            if busy is not None:
                index = busy
            elif offline is not None and message.qos and entries[offline].qos:
                index = offline
            else:
                return None
        self._next = (index + 1) % count
        return entries[index]


class Route:
    """Who gets the messages of one topic.

    Attributes
    ----------
    fast : bool
        Whether a plain QoS 0 message can be copied to :attr:`plain` and needs no further thought.
    plain : dict of Version to list of Pipeline
        Protocol version -> streams of connected clients that get a QoS 0 message exactly as it came.
    targets : list of Target
        All sessions with a non-shared subscription.
    groups : list of SharedGroup
        Shared subscriptions.
    """

    __slots__ = ("fast", "groups", "plain", "targets")

    def __init__(self, targets: list[Target], groups: list[SharedGroup]) -> None:
        self.targets = targets
        self.groups = groups
        self.plain: dict[Version, list[Pipeline]] = {}
        self.fast = not groups
        for target in targets:
            client = target.session.client
            if target.identifiers or target.own is not target or (client and not client.is_plain):
                self.fast = False
            elif client is not None:
                self.plain.setdefault(client.version, []).append(client)

    @property
    def is_empty(self) -> bool:
        """Whether no session subscribed to it."""
        return not self.targets and not self.groups


class Router:
    """All subscriptions of a broker."""

    def __init__(self) -> None:
        self._trie: TopicTrie[Entry | SharedGroup] = TopicTrie()
        self._groups: dict[tuple[str, str], SharedGroup] = {}
        self._routes: dict[str, Route] = {}
        self.count = 0
        """Subscriptions held."""

    def subscribe(self, session: Session, subscription: Subscription, identifier: int | None) -> bool:
        """Add or replace a subscription; returns whether it is new (MQTT 5.0 section 3.8.4)."""
        entry = Entry(session, subscription, identifier)
        is_new = subscription.filter not in session.subscriptions
        session.subscriptions[subscription.filter] = entry
        name, topic_filter = split_shared(subscription.filter)
        if name is None:
            self._trie.add(topic_filter, session, entry)
        else:
            group = self._groups.get((name, topic_filter))
            if group is None:
                group = self._groups[name, topic_filter] = SharedGroup(name, topic_filter)
                self._trie.add(topic_filter, group, group)
            group.members[session] = entry
        self.count += is_new
        self.forget_routes()
        return is_new

    def unsubscribe(self, session: Session, topic_filter: str) -> bool:
        """Remove a subscription; returns whether there was one."""
        if session.subscriptions.pop(topic_filter, None) is None:
            return False
        name, plain_filter = split_shared(topic_filter)
        if name is None:
            self._trie.remove(plain_filter, session)
        else:
            group = self._groups[name, plain_filter]
            del group.members[session]
            if not group.members:
                del self._groups[name, plain_filter]
                self._trie.remove(plain_filter, group)
        self.count -= 1
        self.forget_routes()
        return True

    def unsubscribe_all(self, session: Session) -> None:
        """Remove every subscription of a session that ends."""
        for topic_filter in list(session.subscriptions):
            self.unsubscribe(session, topic_filter)

    def forget_routes(self) -> None:
        """Work every route out anew: a subscription changed, or a session with subscriptions came or went."""
        self._routes.clear()

    def route(self, topic: str) -> Route:
        """Return who gets messages of this topic."""
        route = self._routes.get(topic)
        if route is None:
            by_session: dict[Session, list[Entry]] = {}
            groups: list[SharedGroup] = []
            for value in self._trie.match(topic):
                if isinstance(value, SharedGroup):
                    groups.append(value)
                else:
                    by_session.setdefault(value.session, []).append(value)
            route = Route([Target(entries) for entries in by_session.values()], groups)
            if len(topic) <= MAX_ROUTED_TOPIC:
                if len(self._routes) >= MAX_ROUTES:
                    self._routes.clear()
                self._routes[topic] = route
        return route

    def publish(self, message: Message, publisher: Session | None) -> None:
        """Hand a message to every session that wants it; `publisher` is the client's, whatever stream it came on."""
        route = self.route(message.topic)
        for target in route.targets:
            chosen = target if target.session.owner is not publisher else target.own
            if chosen is not None:
                chosen.session.deliver(
                    message,
                    min(message.qos, chosen.qos),
                    message.retain and chosen.retain_as_published,
                    chosen.identifiers,
                )
        for group in route.groups:
            entry = group.choose(message)
            if entry is not None:
                identifiers = () if entry.identifier is None else (entry.identifier,)
                entry.session.deliver(
                    message, min(message.qos, entry.qos), message.retain and entry.retain_as_published, identifiers
                )
