"""Topic names and topic filters (MQTT 5.0 sections 4.7 and 4.8.2): validation, matching, shared subscriptions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mqttquic_lab.errors import UsageError
from mqttquic_lab.mqtt import rules

if TYPE_CHECKING:
    from mqttquic_lab.mqtt.rules import Rule

MAX_TOPIC_BYTES: Final = 65_535
"""Longest topic name or filter, in UTF-8 bytes (MQTT-4.7.3-3)."""

SHARE_PREFIX: Final = "$share/"
"""How the filter of a shared subscription starts (section 4.8.2)."""


def name_problem(topic: str) -> Rule | None:
    """Return the rule a topic name breaks, or None. The characters are taken to be valid UTF-8 without U+0000."""
    if not topic:
        return rules.TOPIC_EMPTY
    if "+" in topic or "#" in topic:
        return rules.TOPIC_WILDCARD
    return None


def filter_problem(topic_filter: str, *, shared: bool = True) -> Rule | None:
    """Return the rule a topic filter breaks, or None.

    Parameters
    ----------
    topic_filter : str
        Valid UTF-8 without U+0000.
    shared : bool
        Whether ``$share/...`` must be a well-formed shared subscription; in MQTT 3.1.1 it is a filter like any other.
    """
    if not topic_filter:
        return rules.FILTER_EMPTY
    if shared and topic_filter.startswith(SHARE_PREFIX):
        name, slash, topic_filter = topic_filter[len(SHARE_PREFIX) :].partition("/")
        if not name or "+" in name or "#" in name:
            return rules.SHARE_NAME
        if not slash or not topic_filter:
            return rules.SHARE_FILTER
    if "#" in topic_filter.removesuffix("/#" if len(topic_filter) > 1 else "#"):
        return rules.FILTER_HASH
    if "+" in topic_filter and any("+" in level and level != "+" for level in topic_filter.split("/")):
        return rules.FILTER_PLUS
    return None


def _check(text: str, what: str, problem: Rule | None, fix: str, *, from_peer: bool, max_levels: int | None) -> None:
    detail = ""
    if problem is None:
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            problem, fix = rules.UTF8, "leave out surrogates"
        else:
            if "\0" in text:
                problem, fix = rules.UTF8_NULL, "leave out U+0000"
            elif size > MAX_TOPIC_BYTES:
                problem, fix = rules.TOPIC_LONG, f"keep it within {MAX_TOPIC_BYTES} bytes of UTF-8"
            elif max_levels is not None and text.count("/") >= max_levels:
                problem, fix = rules.TOPIC_LEVELS, f"use at most {max_levels} levels"
    if problem is None:
        return
    shown = repr(text if len(text) <= 64 else f"{text[:64]}...")
    if from_peer:
        raise problem.broken(5, field=what.replace(" ", "_"), offset=None, detail=detail or shown)
    raise UsageError(f"{what} {shown}: {problem.text}; {fix}")


def check_topic_name(topic: str, *, from_peer: bool = False, max_levels: int | None = None) -> None:
    """Check that `topic` can be published to.

    Parameters
    ----------
    topic : str
        A topic name, such as ``"plant/1/temp"``.
    from_peer : bool
        Whether it came over the network: errors are protocol errors then.
    max_levels : int or None
        Levels allowed; no limit by default, as in the standard.

    Raises
    ------
    UsageError
        When it is empty, holds a wildcard, U+0000 or a surrogate, or is longer than 65,535 bytes.
    MalformedPacketError
        The same with `from_peer`.
    """
    if not isinstance(topic, str):
        raise UsageError(f"a topic name is a str, not {type(topic).__name__}")
    fix = "wildcards + and # are for subscriptions" if topic else "give at least one character"
    _check(topic, "topic name", name_problem(topic), fix, from_peer=from_peer, max_levels=max_levels)


def check_topic_filter(
    topic_filter: str, *, from_peer: bool = False, shared: bool = True, max_levels: int | None = None
) -> None:
    """Check that `topic_filter` can be subscribed to.

    Parameters
    ----------
    topic_filter : str
        Such as ``"plant/+/temp"``, ``"plant/#"`` or ``"$share/group/plant/#"``.
    from_peer : bool
        Whether it came over the network: errors are protocol errors then.
    shared : bool
        Whether ``$share/`` has its meaning of MQTT 5.0.
    max_levels : int or None
        Levels allowed; no limit by default, as in the standard.

    Raises
    ------
    UsageError
        When a wildcard shares its level with other characters, ``#`` is not last, the share name is bad, or the
        string itself cannot be sent.
    MalformedPacketError
        The same with `from_peer`.
    """
    if not isinstance(topic_filter, str):
        raise UsageError(f"a topic filter is a str, not {type(topic_filter).__name__}")
    fix = "write filters like 'a/b', 'a/+/c', 'a/#' or '$share/group/a/#'"
    problem = filter_problem(topic_filter, shared=shared)
    _check(topic_filter, "topic filter", problem, fix, from_peer=from_peer, max_levels=max_levels)


def split_shared(topic_filter: str) -> tuple[str | None, str]:
    """Split the filter of a shared subscription.

    Returns
    -------
    tuple
        Share name and the filter behind it, or None and the filter itself when it is not a shared subscription.

    Examples
    --------
    >>> split_shared("$share/readers/plant/#")
    ('readers', 'plant/#')
    >>> split_shared("plant/#")
    (None, 'plant/#')
    """
    if topic_filter.startswith(SHARE_PREFIX):
        name, _, rest = topic_filter[len(SHARE_PREFIX) :].partition("/")
        if name and rest:
            return name, rest
    return None, topic_filter


def matches(topic_filter: str, topic: str) -> bool:
    """Whether `topic_filter` selects `topic` (section 4.7).

    ``+`` stands for one level, ``#`` for the level before it and any number below; neither at the start selects a topic
    that starts with ``$`` (MQTT-4.7.2-1). A shared subscription selects what the filter in it does.

    Parameters
    ----------
    topic_filter : str
        A valid filter.
    topic : str
        A valid topic name.
    """
    topic_filter = split_shared(topic_filter)[1]
    if topic[:1] == "$" and topic_filter[:1] in {"+", "#"}:
        return False
    filter_levels = topic_filter.split("/")
    topic_levels = topic.split("/")
    if filter_levels[-1] == "#":
        del filter_levels[-1]
        if len(topic_levels) < len(filter_levels):
            return False
    elif len(topic_levels) != len(filter_levels):
        return False
    return all(wanted in ("+", level) for wanted, level in zip(filter_levels, topic_levels, strict=False))
