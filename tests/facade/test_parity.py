"""The handles are mechanical: the same verbs and signatures as the asynchronous originals, blocking and awaitable."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import mqttquic_lab as mq
from mqttquic_lab.handles import entry
from mqttquic_lab.handles.broker import Broker, BrokerAio
from mqttquic_lab.handles.feed import Feed, FeedAio
from mqttquic_lab.handles.gateway import Gateway, GatewayAio
from mqttquic_lab.handles.session import Session, SessionAio
from mqttquic_lab.handles.stream import Stream, StreamAio
from mqttquic_lab.session import AsyncFeed, AsyncSession, AsyncStream

INSIDE = {
    "open",
    "open_with",
    "over",
    "notify",
    "wake",
    "end",
    "record_error",
    "wait_next",
    "unsubscribe_on",
    "note_topic",
    "use_router",
    "lose",
    "give_up",
    "without_flows",
    "retire",
    "handle_of",
    "carry_on",
    "conclude",
    "note_retry",
    "each",
    "revive",
}
"""What a person does not call: ways of opening, and what session and feed tell each other."""

PAIRS = [(AsyncSession, Session, SessionAio), (AsyncFeed, Feed, FeedAio), (AsyncStream, Stream, StreamAio)]


def is_awaited(member: Any) -> bool:
    return inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member)


def members(of: type) -> dict[str, Any]:
    bases = reversed(of.__mro__[:-1])  # all but object; its own members come last, and count
    found = {name: member for base in bases for name, member in vars(base).items()}
    return {name: member for name, member in found.items() if not name.startswith("_") and name not in INSIDE}


def verbs(of: type) -> dict[str, Any]:
    return {name: member for name, member in members(of).items() if inspect.isfunction(member)}


def shape(member: Any) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(member).parameters.values()]


@pytest.mark.parametrize(("original", "handle", "twin"), PAIRS)
def test_every_verb_has_both_twins_with_its_signature(original: type, handle: type, twin: type) -> None:
    awaited = {name: verb for name, verb in verbs(original).items() if is_awaited(verb)}
    assert len(awaited) >= 3
    assert set(verbs(twin)) == set(awaited)
    for name, verb in awaited.items():
        assert shape(getattr(handle, name)) == shape(verb), name
        assert shape(getattr(twin, name)) == shape(verb), name
        assert is_awaited(getattr(twin, name)), name
        assert not is_awaited(getattr(handle, name)), name


@pytest.mark.parametrize(("original", "handle", "twin"), PAIRS)
def test_what_does_not_wait_is_there_as_well(original: type, handle: type, twin: type) -> None:
    for name, verb in verbs(original).items():
        if not is_awaited(verb):
            assert shape(getattr(handle, name)) == shape(verb), name


def test_what_a_session_tells_its_handle_tells() -> None:
    hidden = {"connection"}
    assert {name for name, member in members(AsyncSession).items() if isinstance(member, property)} - hidden <= set(
        members(Session)
    )
    for original, handle in ((AsyncFeed, Feed), (AsyncStream, Stream)):
        assert {n for n, member in members(original).items() if isinstance(member, property)} <= set(members(handle))


def test_every_blocking_verb_has_a_timeout() -> None:
    twins = {Session: SessionAio, Feed: FeedAio, Stream: StreamAio, Broker: BrokerAio, Gateway: GatewayAio}
    for handle, twin in twins.items():
        for name in verbs(twin):
            if name != "clients":  # a look at the server, bounded by itself
                assert "timeout" in inspect.signature(getattr(handle, name)).parameters, name


@pytest.mark.parametrize("name", ["connect", "from_env", "probe", "start_broker", "start_gateway"])
def test_the_packages_verbs(name: str) -> None:
    blocking, awaitable = getattr(entry, name), getattr(mq.aio, name)
    assert shape(blocking) == shape(awaitable)
    assert is_awaited(awaitable)
    assert not is_awaited(blocking)
    assert getattr(mq, name) is blocking
    assert set(mq.aio.__all__) == {"connect", "from_env", "probe", "start_broker", "start_gateway"}


def test_every_public_member_says_what_it_is() -> None:
    for handle in (
        Session,
        SessionAio,
        Feed,
        FeedAio,
        Stream,
        StreamAio,
        Broker,
        BrokerAio,
        Gateway,
        GatewayAio,
        mq.Handshake,
    ):
        for name, member in members(handle).items():
            assert inspect.getdoc(member), f"{handle.__name__}.{name}"
