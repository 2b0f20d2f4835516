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
    from mqttquic_lab.broker.sessions import Outgoing, Session
    from mqttquic_lab.mqtt import Subscription, Version

MAX_ROUTES = 8192
"""Routes remembered; all are forgotten when there are more topics than that."""
MAX_ROUTED_TOPIC = 512
"""Longest topic whose route is remembered, characters: long ones would cost too much memory."""


def may_receive(session: Session, topic: str) -> bool:
    """Whether a session may have the messages of a topic."""
    rights = session.owner.rights
    return rights is None or rights.may_receive(topic)


def is_asked(session: Session) -> bool:
    """Whether that is to be asked for each message, because it is a function that decides."""
    rights = session.owner.rights
    return rights is not None and not rights.is_fixed


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

    def is_served_without(self, session: Session) -> bool:
        """Whether another member is connected."""
        return any(member.client is not None for member in self.members if member is not session)

    def choose(self, message: Message) -> Entry | None:
        """Return the member whose turn it is: round robin among those connected, preferring those that keep up.

        With nobody connected a QoS 0 message has no taker; others wait in the session whose turn it is. Members that
        may not have the message are passed over.
        """
        entries = [entry for entry in self.members.values() if may_receive(entry.session, message.topic)]
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
    withheld : int
        Sessions that subscribed, but may not have the messages.
    is_guarded : bool
        Whether somebody has to be asked for each message.
    """

    __slots__ = ("fast", "groups", "is_guarded", "plain", "targets", "withheld")

    def __init__(self, topic: str, targets: list[Target], groups: list[SharedGroup], withheld: int) -> None:
        self.targets = targets
        self.groups = groups
        self.withheld = withheld
        self.is_guarded = any(is_asked(target.session) for target in targets)
        self.plain: dict[Version, list[Pipeline]] = {}
        # Topics of the broker's own begin with $: whether a client may publish there is looked at (section 4.7.2).
        self.fast = not groups and not withheld and not self.is_guarded and not topic.startswith("$")
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
    """All subscriptions of a broker.

    Parameters
    ----------
    copies : bool
        Whether a client whose subscriptions overlap gets a copy for each that matches; else one message, at the largest
        QoS of them. Either is right [MQTT-3.3.4-2].
    """

    def __init__(self, *, copies: bool = False) -> None:
        self._copies = copies
        self._trie: TopicTrie[Entry | SharedGroup] = TopicTrie()
        self._groups: dict[tuple[str, str], SharedGroup] = {}
        self._routes: dict[str, Route] = {}
        self.count = 0
        """Subscriptions held."""
        self.withheld = 0
        """Messages not delivered because the subscriber may not have them."""

    def subscribe(self, session: Session, subscription: Subscription, identifier: int | None) -> bool:
        """Add or replace a subscription; returns whether it is new (MQTT 5.0 section 3.8.4)."""
        entry = Entry(session, subscription, identifier)
        is_new = subscription.filter not in session.subscriptions
        session.subscriptions[subscription.filter] = entry
        if session.kept is not None:
            session.kept.subscribed(entry)
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
        if session.kept is not None:
            session.kept.unsubscribed(topic_filter)
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

    @property
    def shared_count(self) -> int:
        """Subscriptions to shared subscriptions."""
        return sum(len(group.members) for group in self._groups.values())

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
            found: dict[Session | Entry, list[Entry]] = {}
            groups: list[SharedGroup] = []
            barred: set[Session] = set()
            for value in self._trie.match(topic):
                if isinstance(value, SharedGroup):
                    groups.append(value)
                elif not is_asked(value.session) and not may_receive(value.session, topic):
                    barred.add(value.session)
                else:
                    found.setdefault(value if self._copies else value.session, []).append(value)
            route = Route(topic, [Target(entries) for entries in found.values()], groups, len(barred))
            if len(topic) <= MAX_ROUTED_TOPIC:
                if len(self._routes) >= MAX_ROUTES:
                    self._routes.clear()
                self._routes[topic] = route
        return route

    def publish(self, message: Message, publisher: Session | None) -> None:
        """Hand a message to every session that wants it; `publisher` is the client's, whatever stream it came on."""
        route = self.route(message.topic)
        self.withheld += route.withheld
        for target in route.targets:
            if route.is_guarded and not may_receive(target.session, message.topic):
                self.withheld += 1
                continue
            chosen = target if target.session.owner is not publisher else target.own
            if chosen is not None:
                chosen.session.deliver(
                    message,
                    min(message.qos, chosen.qos),
                    message.retain and chosen.retain_as_published,
                    chosen.identifiers,
                )
        for group in route.groups:
            self._share(message, group)

    def hand_on(self, messages: list[Outgoing], now: float) -> int:
        """Give messages of shared subscriptions to other members; returns how many have somebody now."""
        return sum(
            outgoing.group is not None
            and not outgoing.message.is_expired(now)
            and self._share(outgoing.message, outgoing.group)
            for outgoing in messages
        )

    def _share(self, message: Message, group: SharedGroup) -> bool:
        entry = group.choose(message)
        if entry is None:
            return False
        identifiers = () if entry.identifier is None else (entry.identifier,)
        retain = message.retain and entry.retain_as_published
        entry.session.deliver(message, min(message.qos, entry.qos), retain, identifiers, group)
        return True
