"""Which feeds a message belongs to that came on another stream than the one that subscribed.

A flow subscribes for itself, but its messages may come on a flow that the broker opened, and there nothing tells whom
they are for. So where the broker knows Subscription Identifiers (MQTT 5.0), each subscription made on a flow has one,
unique in the session. Without them (MQTT 3.1.1), subscriptions of the control stream come first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttquic_lab.session.routing import MAX_IDENTIFIER, Router

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mqttquic_lab.session.feed import AsyncFeed

FIRST_IDENTIFIER = 100_000
"""Subscription Identifiers of flows begin here; those below are the control stream's."""


def identifiers() -> Iterator[int]:
    """Return the identifiers of one session's flows, again and again."""
    while True:
        yield from range(FIRST_IDENTIFIER, MAX_IDENTIFIER + 1)


class FlowRouter(Router):
    """The feeds of one flow; each of its subscriptions has an identifier of the session's own."""

    identifies_all = True

    def __init__(self, numbers: Iterator[int]) -> None:
        super().__init__()
        self._numbers = numbers

    def next_identifier(self) -> int:
        """Return a Subscription Identifier that nobody else in the session has."""
        return next(self._numbers)


class EveryRouter(Router):
    """Looks messages up for all streams of a session. Keeps nothing itself.

    Parameters
    ----------
    routers : callable() -> sequence of Router
        The control stream's first, then those of the flows.
    """

    def __init__(self, routers: Callable[[], Sequence[Router]]) -> None:
        super().__init__()
        self._routers = routers

    def route(self, topic: str, identifiers: Sequence[int] | None, retain: bool) -> tuple[AsyncFeed, ...]:
        """See :meth:`Router.route`."""
        routers = self._routers()
        if identifiers:
            knowing = [router for router in routers if router.knows(identifiers)]
            if knowing:
                return _together(router.route(topic, identifiers, retain) for router in knowing)
        control = routers[0].route(topic, None, retain)
        return control or _together(router.route(topic, None, retain) for router in routers[1:])


def _together(found: Iterator[tuple[AsyncFeed, ...]]) -> tuple[AsyncFeed, ...]:
    return tuple(dict.fromkeys(feed for feeds in found for feed in feeds))
