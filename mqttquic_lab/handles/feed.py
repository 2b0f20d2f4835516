"""The feed as a person meets it: a DataFrame that grows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    import pandas as pd

    from mqttquic_lab.handles.calling import Caller
    from mqttquic_lab.handles.session import Session
    from mqttquic_lab.records.log import MessageLog
    from mqttquic_lab.records.message import Message
    from mqttquic_lab.session import AsyncFeed
    from mqttquic_lab.widgets import LiveView


class Feed:
    """The messages of one subscription, as they arrive. Made by :meth:`Session.subscribe`.

    It belongs to its session and collects until :meth:`unsubscribe` or the session's end, whether or not anybody keeps
    this handle; a handle that is kept keeps its session open.
    """

    def __init__(self, core: AsyncFeed, session: Session, caller: Caller) -> None:
        self._core = core
        self._session = session
        self._caller = caller

    # Looking

    @property
    def df(self) -> pd.DataFrame:
        """Everything held, as a DataFrame: one row per message, oldest first.

        The cost grows with what is new since the last look. The frame is yours: changing it leaves the feed alone.
        See :meth:`mqttquic_lab.records.log.MessageLog.frame` for its columns.
        """
        return self._core.log.frame()

    @property
    def log(self) -> MessageLog:
        """The log behind the feed."""
        return self._core.log

    @property
    def session(self) -> Session:
        """The session it belongs to."""
        return self._session

    @property
    def filters(self) -> tuple[str, ...]:
        """Topic filters, as subscribed."""
        return self._core.filters

    @property
    def granted(self) -> Mapping[str, int]:
        """Filter -> QoS that the broker granted."""
        return self._core.granted

    @property
    def total(self) -> int:
        """Messages ever received, those dropped and cleared included."""
        return self._core.total

    @property
    def dropped(self) -> int:
        """Messages that the bounds (``max_messages``, ``max_bytes``) pushed out."""
        return self._core.dropped

    @property
    def missed(self) -> int:
        """Messages dropped before an iteration over this feed reached them."""
        return self._core.missed

    @property
    def count(self) -> int:
        """Messages received since the subscription or the last :meth:`clear`: what :meth:`wait` counts."""
        return self._core.count

    @property
    def is_active(self) -> bool:
        """Whether more messages can arrive."""
        return self._core.is_active

    def __len__(self) -> int:
        return len(self._core.log)

    def __bool__(self) -> bool:
        return True

    def tail(self, n: int = 10) -> pd.DataFrame:
        """Return the newest `n` messages as a DataFrame."""
        return self._core.tail(n)

    def clear(self) -> None:
        """Forget all messages held; :meth:`wait` counts from zero again."""
        self._core.clear()

    # Waiting

    def wait(self, n: int = 1, *, timeout: float | str | None = 10.0) -> int:
        """Wait until `n` messages were received since the subscription or the last :meth:`clear`.

        Messages that the bounds have dropped meanwhile count too. Returns at once if they are there already.

        Parameters
        ----------
        n : int
            How many in all.
        timeout : float, str or None
            Seconds; None waits for ever, 0 only looks.

        Returns
        -------
        int
            How many there are.

        Raises
        ------
        OperationTimeoutError
            Fewer came in time; says how many.
        DisconnectedError
            The session or the feed ended before.
        """
        return self._caller.call(timeout, self._core.wait, n, timeout=timeout)

    def messages(self, *, timeout: float | str | None = None) -> Iterator[Message]:
        """Iterate over the messages, oldest first, each yielded once per feed; blocks for those still to come.

        A second iteration goes on where the first one stopped. What the bounds dropped before it was reached is counted
        in :attr:`missed`. The iteration ends when the feed is unsubscribed or the session closed here.

        Parameters
        ----------
        timeout : float, str or None
            Seconds to wait for each next message; None waits for ever, 0 yields what is there.

        Raises
        ------
        OperationTimeoutError
            None came for `timeout` seconds.
        DisconnectedError
            The connection was lost.
        """
        core = self._core
        while True:
            message = core.cursor.take()
            if message is not None:
                yield message
            elif not self._caller.call(timeout, core.wait_next, timeout):
                return

    def __iter__(self) -> Iterator[Message]:
        return self.messages()

    def unsubscribe(self, *, timeout: float | str | None = 10.0) -> None:
        """Stop receiving; what was received stays. See :meth:`Session.unsubscribe`."""
        self._caller.call(timeout, self._core.unsubscribe, timeout=timeout)

    @property
    def aio(self) -> FeedAio:
        """The same verbs, awaitable from any event loop."""
        return FeedAio(self)

    # Showing

    def live(self, **options: Any) -> LiveView:
        """Open the live view of this feed; needs a notebook. See :class:`mqttquic_lab.widgets.LiveView`."""
        from mqttquic_lab.widgets import LiveView

        return LiveView(self, **options)

    def __repr__(self) -> str:
        state = "active" if self.is_active else "ended"
        counts = f"{len(self)} messages, {self.total} received, {self.dropped} dropped"
        return f"<Feed {', '.join(self.filters)}: {counts}, {state}>"

    def _repr_html_(self) -> str:
        from mqttquic_lab.views.summary import feed_html

        log = self._core.log
        newest, _ = log.messages_since(max(0, log.total - 5))
        return feed_html(
            self.filters,
            received=log.total,
            held=len(log),
            dropped=log.dropped,
            decode_errors=log.decode_errors,
            newest=[(message.time_ns, message.topic, message.payload) for message in reversed(newest)],
            state="active" if self.is_active else "ended",
        )


class FeedAio:
    """The verbs of a :class:`Feed`, awaitable from any event loop."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._core = feed._core  # noqa: SLF001 - a twin of the same module
        self._caller = feed._caller  # noqa: SLF001

    async def wait(self, n: int = 1, *, timeout: float | str | None = 10.0) -> int:
        """See :meth:`Feed.wait`."""
        return await self._caller.hop(self._core.wait, n, timeout=timeout)

    async def messages(self, *, timeout: float | str | None = None) -> AsyncIterator[Message]:
        """See :meth:`Feed.messages`."""
        while True:
            message = self._core.cursor.take()
            if message is not None:
                yield message
            elif not await self._caller.hop(self._core.wait_next, timeout):
                return

    def __aiter__(self) -> AsyncIterator[Message]:
        return self.messages()

    async def unsubscribe(self, *, timeout: float | str | None = 10.0) -> None:
        """See :meth:`Feed.unsubscribe`."""
        await self._caller.hop(self._core.unsubscribe, timeout=timeout)
