"""UNSUBSCRIBE where several streams have subscriptions: who has to say it for what, and what ends with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqttquic_lab.errors import UsageError
from mqttquic_lab.session.feed import AsyncFeed
from mqttquic_lab.session.subscribing import filters_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mqttquic_lab.session.subscribing import Subscriber


async def unsubscribe_everywhere(
    subscribers: Sequence[Subscriber], what: AsyncFeed | str | Iterable[str], timeout: float | None
) -> None:
    """End a feed, or filters in all feeds that have them, on each stream that subscribed them.

    Parameters
    ----------
    subscribers : sequence of Subscriber
        The control stream's first, then those of the data streams.
    what : AsyncFeed, str or iterable of str
        As for :meth:`AsyncSession.unsubscribe`, which says what is raised as well.
    timeout : float or None
        Seconds to wait for each UNSUBACK.
    """
    if len(subscribers) == 1:
        await subscribers[0].unsubscribe(what, timeout)
        return
    if isinstance(what, AsyncFeed):
        for subscriber in subscribers:
            if subscriber.holds(what):
                await subscriber.unsubscribe(what, timeout)
        return
    filters = filters_of(what)
    holders = {id(s): [f for f in filters if s.holds(f)] for s in subscribers}
    unknown = [f for f in filters if not any(f in held for held in holders.values())]
    if unknown:
        raise UsageError(f"no feed of this session is subscribed to {', '.join(unknown)}")
    for subscriber in subscribers:
        # Streams that share their books hold the same filters, and the first one may have ended them for all.
        held = [f for f in holders[id(subscriber)] if subscriber.holds(f)]
        if held:
            await subscriber.unsubscribe(held, timeout)


async def unsubscribe_here(
    subscriber: Subscriber,
    everyone: Callable[[], Sequence[Subscriber]],
    what: AsyncFeed | str | Iterable[str],
    timeout: float | None,
    on_elsewhere: Callable[[], None],
) -> tuple[int, ...]:
    """Send UNSUBSCRIBE on one stream, whichever one subscribed, and return the broker's reason codes.

    Parameters
    ----------
    subscriber : Subscriber
        The stream's.
    everyone : callable
        Returns those of all streams; called when the answer is there, for streams may have come and gone meanwhile.
    what : AsyncFeed, str or iterable of str
        A feed, or filters.
    timeout : float or None
        Seconds to wait for UNSUBACK.
    on_elsewhere : callable
        Called first if another stream subscribed it.
    """
    filters = what.filters if isinstance(what, AsyncFeed) else filters_of(what)
    here = subscriber.holds(what) if isinstance(what, AsyncFeed) else all(subscriber.holds(f) for f in filters)
    if here:
        return await subscriber.unsubscribe(what, timeout)
    on_elsewhere()
    codes = await subscriber.ask_to_unsubscribe(filters, timeout)
    ended = [f for f, code in zip(filters, codes, strict=False) if code == 0]
    if ended:
        for other in everyone():
            other.dropped(ended)
    return codes
