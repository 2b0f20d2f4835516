"""Who may publish and subscribe what: rules in plain Python.

A list of rules is read from the top, and the first that fits decides; what no rule fits is denied::

    start_broker(users={"ann": "secret", "eve": "x"}, acl=[
        ("ann", "all", "#"),                      # user, action, topic filter
        ("*", "subscribe", "news/#"),             # everybody, also clients without a user name
        ("*", "all", "home/%u/#"),                # %u: user name, %c: client identifier
        AclRule("subscribe", "plant/secret/#", user="eve", allow=False),
        ("eve", "subscribe", "plant/#"),
    ])

A SUBSCRIBE is granted if one rule allows all that its filter can match; a rule that denies a part of that holds for
what is delivered, message by message. Instead of a list a function may decide, ``acl(client, action, topic) -> bool``,
with an :class:`AclClient` and the action ``"publish"``, ``"subscribe"`` (topic is the filter asked for) or
``"receive"`` (topic is that of a message about to be delivered). It is asked each time, so it should be quick.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from mqttquic_lab.errors import UsageError
from mqttquic_lab.mqtt import check_topic_filter, matches, split_shared

log = logging.getLogger(__name__)

Action = Literal["publish", "subscribe", "all"]
ACTIONS = ("publish", "subscribe", "all")

MAX_REMEMBERED = 1024
"""Decisions remembered per client and action."""


class AclClient(NamedTuple):
    """Whom a function given as ``acl`` is asked about."""

    client_id: str
    username: str | None
    transport: str
    """``"quic"``, ``"tls"`` or ``"tcp"``."""
    address: tuple[str, int]


AclFunction = Callable[[AclClient, str, str], bool]


@dataclass(frozen=True, slots=True)
class AclRule:
    """One rule.

    Parameters
    ----------
    action : {"publish", "subscribe", "all"}
        What it is about. "subscribe" covers the messages that come of it.
    topic : str
        Topic filter. ``%u`` stands for the user name and ``%c`` for the client identifier; for a client that has none,
        or one with ``/``, ``+`` or ``#`` in it, the rule does not hold.
    user : str
        User name; ``"*"`` for everybody, ``""`` for those without one.
    client : str
        Client identifier; ``"*"`` for all.
    allow : bool
        False denies.

    Raises
    ------
    UsageError
        An action or filter that does not exist.
    """

    action: Action
    topic: str
    user: str = "*"
    client: str = "*"
    allow: bool = True

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise UsageError(f"acl: action {self.action!r} must be one of {', '.join(map(repr, ACTIONS))}")
        for name in ("topic", "user", "client"):
            if not isinstance(getattr(self, name), str):
                raise UsageError(f"acl: {name}={getattr(self, name)!r} must be text")
        check_topic_filter(self.topic)
        if split_shared(self.topic)[0] is not None:
            raise UsageError(f"acl: {self.topic!r}: name the filter itself, shared subscriptions are meant as well")

    def filter_for(self, client: AclClient) -> str | None:
        """Return the filter with what is to stand in it; None if the rule is not about this client."""
        if self.user not in ("*", client.username or "") or self.client not in ("*", client.client_id):
            return None
        return fill_in(self.topic, client.client_id, client.username)


def fill_in(text: str, client_id: str, username: str | None) -> str | None:
    """Replace ``%c`` and ``%u``; None if what would stand there is empty, or would be more than one level's name."""
    values = {"%c": client_id, "%u": username or ""}
    for mark, value in values.items():
        if mark in text and (not value or any(c in value for c in "/+#")):
            return None
    return re.sub("%[cu]", lambda mark: values[mark[0]], text)


def parse_acl(acl: Any) -> AclFunction | tuple[AclRule, ...] | None:
    """Return the setting ``acl`` as rules, or the function that it is.

    Raises
    ------
    UsageError
        It is neither.
    """
    if acl is None:
        return None
    if callable(acl):
        if inspect.iscoroutinefunction(acl):
            raise UsageError("acl: a coroutine function cannot be asked for each message: give a plain function")
        function: AclFunction = acl
        return function
    if isinstance(acl, (str, bytes, Mapping)) or not isinstance(acl, Iterable):
        raise UsageError('acl takes a list of rules, such as [("ann", "publish", "plant/#")], or a function')
    return tuple(map(_rule, acl))


def _rule(given: Any) -> AclRule:
    if isinstance(given, AclRule):
        return given
    try:
        if isinstance(given, Mapping):
            return AclRule(**given)
        user, action, topic = given
    except (TypeError, ValueError):
        raise UsageError(f"acl: {given!r} is no rule: (user, action, topic filter), or AclRule(...)") from None
    return AclRule(action, topic, user)


class Rights:
    """What one client may do. On the broker's loop only.

    Attributes
    ----------
    is_fixed : bool
        Whether the answers hold for as long as the client is who it is: by rules, not by a function.
    """

    __slots__ = ("_allows", "_client", "_function", "_remembered", "_rules", "is_fixed")

    def __init__(self, acl: AclFunction | tuple[AclRule, ...], client: AclClient) -> None:
        self._function = None if isinstance(acl, tuple) else acl
        self._rules = acl if isinstance(acl, tuple) else ()
        self.is_fixed = self._function is None
        self.become(client)

    def __repr__(self) -> str:
        return f"<Rights of {self._client.client_id!r}>"

    def become(self, client: AclClient) -> None:
        """Judge as somebody else from now on."""
        self._client = client
        self._allows: dict[str, list[tuple[bool, str]]] = {"publish": [], "subscribe": []}
        self._remembered: dict[str, dict[str, bool]] = {"publish": {}, "subscribe": {}, "receive": {}}
        for rule in self._rules:
            topic = rule.filter_for(client)
            for action, rules in self._allows.items():
                if topic is not None and rule.action in (action, "all"):
                    rules.append((rule.allow, topic))

    def renamed(self, username: str) -> None:
        """Judge as the same client under another user name."""
        self.become(self._client._replace(username=username))

    def may_publish(self, topic: str) -> bool:
        """Whether the client may publish to a topic."""
        known = self._remembered["publish"].get(topic)
        return self._ask("publish", topic) if known is None else known

    def may_subscribe(self, topic_filter: str) -> bool:
        """Whether the client may subscribe to a filter, shared or not."""
        return self._ask("subscribe", split_shared(topic_filter)[1])

    def may_receive(self, topic: str) -> bool:
        """Whether messages of a topic may be delivered to the client."""
        known = self._remembered["receive"].get(topic)
        return self._ask("receive", topic) if known is None else known

    def _ask(self, action: str, topic: str) -> bool:
        if self._function is not None:
            try:
                return self._function(self._client, action, topic) is True
            except Exception:  # whatever the user's function raises, nothing is allowed by it
                log.exception("the broker's acl function failed")
                return False
        allowed = self._decide(action, topic)
        remembered = self._remembered[action]
        if len(remembered) >= MAX_REMEMBERED:
            remembered.clear()
        remembered[topic] = allowed
        return allowed

    def _decide(self, action: str, topic: str) -> bool:
        if action == "publish":
            return next((allow for allow, rule in self._allows["publish"] if matches(rule, topic)), False)
        fits = covers if action == "subscribe" else matches
        return next((allow for allow, rule in self._allows["subscribe"] if fits(rule, topic)), False)


def covers(one: str, other: str) -> bool:
    """Whether a topic filter matches every topic that another one can match."""
    mine, theirs = one.split("/"), other.split("/")
    if theirs[0].startswith("$") and mine[0] in ("+", "#"):
        return False  # [MQTT-4.7.2-1]
    for index, level in enumerate(mine):
        if level == "#":
            return True
        if index >= len(theirs) or theirs[index] == "#" or (level != "+" and level != theirs[index]):
            return False
    return len(mine) == len(theirs)
