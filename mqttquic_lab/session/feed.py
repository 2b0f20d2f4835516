"""A feed: what one call of ``subscribe`` receives, as a log that grows, and ways to wait for it."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from typing import TYPE_CHECKING

from mqttquic_lab.errors import OperationTimeoutError, UsageError
from mqttquic_lab.session.ending import gone
from mqttquic_lab.session.options import check_timeout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import pandas as pd

    from mqttquic_lab.errors import DisconnectedError, LabError
    from mqttquic_lab.records.log import MessageLog
    from mqttquic_lab.records.message import Message
    from mqttquic_lab.session.client import AsyncSession

_numbers = itertools.count()

READ_AHEAD = 128
"""Messages a cursor takes out of the log at a time."""


class MessageCursor:
    """Reads a log message by message, each once, whoever asks; from any thread.

    It holds no queue of its own: what it has not reached yet stays in the log, under the log's bounds.
    """

    def __init__(self, log: MessageLog) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._ahead: deque[Message] = deque()
        self._next = 0
        self.missed = 0
        """Messages that a bound pushed out of the log before they were reached."""

    @property
    def is_at_end(self) -> bool:
        """Whether there is nothing to take now."""
        return not self._ahead and self._log.total <= self._next

    @property
    def position(self) -> int:
        """Sequence number of the next message that the log will be asked for."""
        return self._next

    def take(self) -> Message | None:
        """Return the oldest message not taken yet, or None when there is none."""
        with self._lock:
            if not self._ahead:
                batch, missed = self._log.messages_since(self._next, READ_AHEAD)
                self.missed += missed
                self._next += missed + len(batch)
                self._ahead.extend(batch)
            return self._ahead.popleft() if self._ahead else None

    def skip_all(self) -> None:
        """Go to the end, without counting what lies between as missed."""
        with self._lock:
            self._ahead.clear()
            self._next = self._log.total


class AsyncFeed:
    """The messages of one subscription, as they arrive.

    Made by :meth:`mqttquic_lab.session.AsyncSession.subscribe`. Its verbs are awaited on the session's loop; its
    log may be read from any thread.

    Attributes
    ----------
    log : MessageLog
        Everything received, within bounds.
    filters : tuple of str
        Topic filters, as given (``$share/group/filter`` literally).
    granted : mapping of str to int
        Filter -> QoS that the broker granted; may be less than asked for [MQTT-3.8.4-8].
    retain_handling : int
        Retain Handling that it was subscribed with (MQTT 5.0 section 3.8.3.1), for when it has to be done again.
    session : AsyncSession
        The session it belongs to.
    number : int
        Grows from feed to feed.
    """

    def __init__(self, session: AsyncSession, filters: tuple[str, ...], log: MessageLog) -> None:
        self.session = session
        self.number = next(_numbers)
        self.filters = filters
        self.granted: Mapping[str, int] = {}
        self.retain_handling = 0
        self.log = log
        self.cursor = MessageCursor(log)
        self._base = 0
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._ended: tuple[LabError | None] | None = None

    def __repr__(self) -> str:
        state = "ended" if self._ended else "active"
        return f"<AsyncFeed {', '.join(self.filters)!r}: {self.total} messages, {self.dropped} dropped, {state}>"

    # Looking

    @property
    def df(self) -> pd.DataFrame:
        """Everything held, as a DataFrame of the caller's own; see :meth:`MessageLog.frame`."""
        return self.log.frame()

    @property
    def total(self) -> int:
        """Messages ever received, those dropped and cleared included."""
        return self.log.total

    @property
    def dropped(self) -> int:
        """Messages that the bounds (``max_messages``, ``max_bytes``) pushed out."""
        return self.log.dropped

    @property
    def missed(self) -> int:
        """Messages dropped before an iteration over this feed reached them."""
        return self.cursor.missed

    @property
    def count(self) -> int:
        """Messages received since the subscription or the last :meth:`clear`: what :meth:`wait` counts."""
        return self.log.total - self._base

    @property
    def is_active(self) -> bool:
        """Whether more messages can arrive."""
        return self._ended is None

    def __len__(self) -> int:
        return len(self.log)

    def __bool__(self) -> bool:
        return True  # an empty feed is still a feed

    def tail(self, n: int = 10) -> pd.DataFrame:
        """Return the newest `n` messages as a DataFrame."""
        return self.log.tail(n)

    def clear(self) -> None:
        """Forget all messages held; :meth:`wait` counts from zero again."""
        self.log.clear()
        self._base = self.log.total - len(self.log)
        self.cursor.skip_all()

    # Waiting

    async def wait(self, n: int = 1, *, timeout: float | str | None = 10.0) -> int:
        """Wait until `n` messages were received since the subscription or the last :meth:`clear`.

        Messages that the bounds have dropped meanwhile count too, so that ``wait`` ends for every bound.

        Parameters
        ----------
        n : int
            How many in all; at once true if they are there already.
        timeout : float or None
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
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise UsageError(f"wait({n!r}): takes the number of messages to wait for")
        seconds = check_timeout(timeout, zero=True)
        came = await self._reach(self._base + n, seconds)
        if self.count >= n:
            return self.count
        so_far = f"{self.count} of {n} messages on {', '.join(self.filters)} had come"
        if not came:
            raise OperationTimeoutError(f"after {seconds:g} s {so_far}")
        raise self._end_error(f"no more can come, {so_far}")

    async def wait_next(self, timeout: float | str | None = None, cursor: MessageCursor | None = None) -> bool:
        """Wait until :attr:`cursor`, or another one, has something to give; False once the feed was ended here."""
        seconds = check_timeout(timeout, zero=True)
        cursor = self.cursor if cursor is None else cursor
        while cursor.is_at_end:
            if self._ended is not None:
                if self._ended[0] is None:
                    return False
                raise self._end_error("no more messages can come")
            if not await self._reach(cursor.position + 1, seconds):
                raise OperationTimeoutError(f"no message on {', '.join(self.filters)} for {seconds:g} s")
        return True

    async def messages(self, *, timeout: float | str | None = None) -> AsyncIterator[Message]:
        """Iterate over the messages, oldest first, each yielded once per feed; waits for those still to come.

        A second iteration goes on where the first one stopped. What the bounds dropped before it was reached is
        counted in :attr:`missed`. The iteration ends when the feed is unsubscribed or the session closed here.

        Parameters
        ----------
        timeout : float or None
            Seconds to wait for each next message; None waits for ever, 0 yields what is there.

        Raises
        ------
        OperationTimeoutError
            None came for `timeout` seconds.
        DisconnectedError
            The connection was lost.
        """
        while True:
            message = self.cursor.take()
            if message is not None:
                yield message
            elif not await self.wait_next(timeout):
                return

    async def each(self) -> AsyncIterator[Message]:
        """Iterate as :meth:`messages` does, beside whoever does that: all of them come here as well."""
        cursor = MessageCursor(self.log)
        while True:
            message = cursor.take()
            if message is not None:
                yield message
            elif not await self.wait_next(None, cursor):
                return

    def __aiter__(self) -> AsyncIterator[Message]:
        return self.messages()

    async def unsubscribe(self, *, timeout: float | str | None = 10.0) -> None:
        """Stop receiving; what was received stays. See :meth:`AsyncSession.unsubscribe`."""
        await self.session.unsubscribe(self, timeout=timeout)

    async def _reach(self, sequence: int, timeout: float | None) -> bool:
        """Wait until `sequence` messages were received in all or the feed ended; False if time ran out."""
        if self.log.total >= sequence or self._ended is not None:
            return True
        future = asyncio.get_running_loop().create_future()
        entry = (sequence, future)
        self._waiters.append(entry)
        self.session.notify(self)
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            return False
        finally:
            self._waiters.remove(entry)
        return True

    def wake(self) -> bool:
        """Let those go on whose message has come; returns whether any still waits. Called by the session."""
        total = self.log.total
        for sequence, future in self._waiters:
            if not future.done() and (total >= sequence or self._ended is not None):
                future.set_result(None)
        return any(not future.done() for _, future in self._waiters)

    def end(self, reason: LabError | None) -> None:
        """No more messages will come; `reason` is None if that was asked for. Called by the session."""
        if self._ended is None:
            self._ended = (reason,)
            self.wake()

    def revive(self) -> None:
        """More messages can come again: the session is connected anew. Called by the session."""
        self._ended = None

    def _end_error(self, what: str) -> DisconnectedError:
        reason = self._ended[0] if self._ended is not None else None
        return gone(what, reason, "it was unsubscribed, or its session closed")
