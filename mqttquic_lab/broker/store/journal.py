"""What has to be on disk, and what waits for that.

The rule: *no packet leaves before that which it attests is on disk*. So these wait for the transaction with
everything that had changed when they were written, and on their stream whatever comes after them:

- CONNACK: the session is there, or the one before it is gone; the will is known;
- SUBACK, UNSUBACK: the subscription is there, or gone;
- PUBACK, PUBREC: the message is kept for each session that outlives its connection, and as retained message; PUBREC
  also: its packet identifier is known, so that the message is not taken twice;
- PUBCOMP: the packet identifier is forgotten, so that the next message under it is taken;
- PUBLISH at QoS 1 and 2 to a kept session: under this identifier. Otherwise it could come again under another one;
- PUBREL: from now on there is no PUBLISH any more, for its receiver has forgotten the identifier.

Messages at QoS 0 and clients with sessions that are not kept wait for nothing, except behind such a packet.

When a transaction fails (the disk is full), none of this may leave: the packets are dropped, and who would have got
them is disconnected, with 0x97 or 0x80 where the version can say so. The changes are kept and tried again every
:data:`RETRY_INTERVAL`; until that works, QoS 1 and 2 messages are refused.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import sqlite3
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from mqttquic_lab.broker.store.delta import Delta, SessionRow, WillRow
from mqttquic_lab.broker.store.kept import KeptSession
from mqttquic_lab.mqtt import ReasonCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttquic_lab.broker.clock import Clock, TimerHandle
    from mqttquic_lab.broker.message import Message
    from mqttquic_lab.broker.outbox import Holdable, Outbox
    from mqttquic_lab.broker.status import BrokerStats
    from mqttquic_lab.broker.store.file import StoreFile
    from mqttquic_lab.mqtt import Will

log = logging.getLogger(__name__)

RETRY_INTERVAL = 1.0
"""Seconds after which a transaction that failed is tried again."""
MUCH = 20_000
"""Changes waiting for the disk at which publishers that cause more are not read from."""
MUCH_BYTES = 8 * 1024 * 1024
"""The same in topic and payload bytes."""


class Journal:
    """Collects what has changed, has it written, and lets go of what waited for it. Used on the broker's loop.

    Parameters
    ----------
    file : StoreFile
        Where to; not opened yet.
    stats : BrokerStats
        Counters.
    clock : Clock
        The broker's clock.
    epoch : callable()
        Seconds since the epoch.

    Attributes
    ----------
    delta : Delta
        What has changed since the last transaction began.
    recorded : int
        Changes noted ever: whether it has moved tells whether something is to be written.
    is_failing : bool
        Whether the last transaction failed.
    next_message, next_delivery, next_session, next_release : int
        The next numbers to be given out.
    """

    def __init__(
        self, file: StoreFile, stats: BrokerStats, clock: Clock, epoch: Callable[[], float] = time.time
    ) -> None:
        self.file = file
        self.stats = stats
        self._clock = clock
        self._epoch = epoch
        self._offset = epoch() - clock.time()
        self._loop: asyncio.AbstractEventLoop
        self._executor = ThreadPoolExecutor(1, "mqttquic-lab store")
        self.next_message = self.next_delivery = self.next_session = 1
        self.next_release = 0
        self.delta = Delta(1, 1)
        self.recorded = 0
        self.is_failing = False
        self._copies: dict[Message, list[int]] = {}  # message -> its number, and how often it is needed
        self._wills: set[str] = set()
        self._number = 1  # of the delta that fills up
        self._is_forced = False
        self._is_scheduled = False
        self._writing: asyncio.Future[None] | None = None
        self._waiting: deque[tuple[int, Outbox]] = deque()
        self._watchers: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._held: set[Holdable] = set()
        self._retry_timer: TimerHandle | None = None

    def __repr__(self) -> str:
        state = "failing" if self.is_failing else "writing" if self._writing is not None else "idle"
        return f"<Journal of {self.file.path!r}, {state}, {self.delta!r}>"

    # --- life ---------------------------------------------------------------------------------------------------

    async def in_thread(self, call: Callable[..., Any], *args: Any) -> Any:
        """Run something on the thread that the file belongs to."""
        return await self._loop.run_in_executor(self._executor, call, *args)

    async def open(self) -> None:
        """Open the file.

        Raises
        ------
        StoreError
            It cannot be used.
        """
        self._loop = asyncio.get_running_loop()
        try:
            await self.in_thread(self.file.open)
        except BaseException:
            self._executor.shutdown(wait=False)
            raise

    async def close(self) -> None:
        """Write what is left, and close the file."""
        tried = False
        while self._writing is not None or (self.delta and not tried):
            if self._writing is None:
                tried = self.is_failing
                self._begin()
            assert self._writing is not None
            await asyncio.wait([self._writing])
        if self._retry_timer is not None:
            self._retry_timer.cancel()
        if self.delta:
            log.error("%d changes could not be written to %s before it was closed", self.delta.count, self.file.path)
        await self.in_thread(self.file.close)
        self._executor.shutdown(wait=False)

    # --- times --------------------------------------------------------------------------------------------------

    def to_epoch(self, when: float | None) -> float | None:
        """Return a time of the broker's clock in seconds since the epoch."""
        return None if when is None else when + self._offset

    def from_epoch(self, when: float | None) -> float | None:
        """Return seconds since the epoch as a time of the broker's clock."""
        return None if when is None else when - self._offset

    # --- what has changed ---------------------------------------------------------------------------------------

    def note(self) -> None:
        """Count a change that was put into :attr:`delta`, and have it written soon."""
        self.delta.count += 1
        self.recorded += 1
        if not self._is_scheduled and self._writing is None and not self.is_failing:
            self._schedule()

    def take(self, message: Message) -> int:
        """Note that a message is needed once more; returns its number. It is written once, however often needed."""
        entry = self._copies.get(message)
        if entry is not None:
            entry[1] += 1
            return entry[0]
        number = self.next_message
        self.next_message += 1
        self._copies[message] = [number, 1]
        self.delta.messages[number] = (message, self.to_epoch(message.expires_at))
        self.delta.nbytes += message.size
        self.stats.stored_messages += 1
        self.stats.stored_bytes += message.size
        return number

    def give_back(self, message: Message) -> None:
        """Note that a message is needed once less."""
        entry = self._copies[message]
        entry[1] -= 1
        if not entry[1]:
            self._forget(message, entry[0])

    def _forget(self, message: Message, number: int) -> None:
        del self._copies[message]
        self.delta.remove_message(number)
        self.stats.stored_messages -= 1
        self.stats.stored_bytes -= message.size

    def number_of(self, message: Message) -> int:
        """Return the number of a message that is kept."""
        return self._copies[message][0]

    def retain(self, message: Message) -> None:
        """Note the retained message of a topic."""
        self.delta.retained[message.topic] = self.take(message)
        self.note()

    def unretain(self, message: Message) -> None:
        """Note that a topic's retained message is retained no more."""
        self.delta.retained[message.topic] = None
        self.give_back(message)
        self.note()

    def keep_session(self, client_id: str, expiry_interval: int) -> KeptSession:
        """Note a session that outlives its connection; its client is connected."""
        kept = KeptSession(self, self.next_session)
        self.next_session += 1
        kept.changed(client_id, expiry_interval, None)
        return kept

    def session_changed(self, key: int, client_id: str, expiry_interval: int, expires_at: float | None) -> None:
        """Note when a session expires; see :meth:`KeptSession.changed`."""
        self.delta.sessions[key] = SessionRow(key, client_id, expiry_interval, self.to_epoch(expires_at))
        self.note()

    def keep_will(self, client_id: str, will: Will, due_at: float | None = None) -> None:
        """Note the will of a connected client, or one that is published at `due_at` on the broker's clock."""
        self._wills.add(client_id)
        self.delta.wills[client_id] = WillRow(client_id, will, self.to_epoch(due_at))
        self.note()

    def drop_will(self, client_id: str) -> None:
        """Note that a client has no will any more: it was published, or is not to be."""
        if client_id in self._wills:
            self._wills.remove(client_id)
            self.delta.wills[client_id] = None
            self.note()

    # --- what was there when the broker started -----------------------------------------------------------------

    def adopt(self, message: Message, number: int) -> None:
        """Take over a message that is on disk; :meth:`take` counts who needs it."""
        self._copies[message] = [number, 0]
        self.stats.stored_messages += 1
        self.stats.stored_bytes += message.size

    def adopt_will(self, client_id: str) -> None:
        """Take over a will that is on disk."""
        self._wills.add(client_id)

    def begin(self) -> None:
        """Begin to note changes: what is on disk is known."""
        self.delta = Delta(self.next_message, self.next_delivery)

    def drop_unneeded(self) -> None:
        """Remove messages on disk that nobody needs."""
        for message, (number, needed) in list(self._copies.items()):
            if not needed:
                self._forget(message, number)
                self.note()

    # --- what waits ---------------------------------------------------------------------------------------------

    def ticket(self, *, in_batch: bool) -> int:
        """Return which transaction a packet has to wait for, 0 if for none.

        Parameters
        ----------
        in_batch : bool
            Whether packets are being worked on: what the packet attests may not be noted yet.
        """
        if in_batch and not self._is_forced:
            self._is_forced = True
            if self._writing is None and not self._is_scheduled and not self.is_failing:
                self._schedule()
        if self.delta or self._is_forced:
            return self._number
        return self._number - 1 if self._writing is not None else 0

    def wait(self, ticket: int, outbox: Outbox) -> None:
        """Call ``outbox.settle(ticket)`` when that transaction is done."""
        self._waiting.append((ticket, outbox))

    async def settled(self) -> None:
        """Wait until everything noted up to now is on disk, or cannot be written."""
        ticket = self.ticket(in_batch=False)
        if ticket and not self.is_failing:
            done = self._loop.create_future()
            self._watchers.append((ticket, done))
            await done

    @property
    def is_behind(self) -> bool:
        """Whether so much waits for the disk that publishers should wait as well."""
        return self.delta.count > MUCH or self.delta.nbytes > MUCH_BYTES

    def hold(self, publisher: Holdable) -> None:
        """Keep a publisher from being read until the disk has caught up."""
        if publisher not in self._held:
            self._held.add(publisher)
            publisher.block(self)

    # --- transactions -------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        self._is_scheduled = True
        # In the next loop tick: what happens in this one belongs together, and the changes to one packet always do.
        self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._is_scheduled = False
        if self._writing is None and not self.is_failing and (self.delta or self._is_forced):
            self._begin()

    def _begin(self) -> None:
        delta, self.delta = self.delta, Delta(self.next_message, self.next_delivery)
        self._is_forced = False
        number, self._number = self._number, self._number + 1
        started = time.perf_counter()
        self._writing = asyncio.ensure_future(self.in_thread(self.file.commit, delta))
        self._writing.add_done_callback(lambda written: self._written(written, delta, number, started))

    def _written(self, written: asyncio.Future[None], delta: Delta, number: int, started: float) -> None:
        self._writing = None
        if written.cancelled():
            return
        error = written.exception()
        if error is not None:
            self._failed(error, delta)
            return
        stats = self.stats
        took = time.perf_counter() - started
        stats.store_commits += 1
        stats.store_seconds += took
        stats.store_slowest = max(stats.store_slowest, took)
        stats.store_committed_at = self._epoch()
        if self.is_failing:
            self.is_failing = False
            stats.store_error = ""
            log.warning("%s can be written again", self.file.path)
        if self.delta or self._is_forced:
            self._begin()  # before anything else: the disk is what everybody waits for
        while self._watchers and self._watchers[0][0] <= number:
            _, done = self._watchers.popleft()
            if not done.done():
                done.set_result(None)
        while self._waiting and self._waiting[0][0] <= number:
            _, outbox = self._waiting.popleft()
            outbox.settle(number)
        if self._held and not self.is_behind:
            held = list(self._held)
            self._held.clear()
            for publisher in held:
                publisher.unblock(self)

    def _failed(self, error: BaseException, delta: Delta) -> None:
        """Keep the changes for the next attempt, and end the connections that wait for them."""
        delta.absorb(self.delta)
        self.delta = delta
        if not self.is_failing:
            log.error("%s cannot be written: %s", self.file.path, error)
        self.is_failing = True
        self.stats.store_errors += 1
        self.stats.store_error = f"{type(error).__name__}: {error}"
        code, reason = _as_reason(error)
        self._retry_timer = self._clock.call_later(RETRY_INTERVAL, self._retry)
        for _, done in self._watchers:
            if not done.done():
                done.set_result(None)
        self._watchers.clear()
        waiting, self._waiting = self._waiting, deque()
        for outbox in dict.fromkeys(outbox for _, outbox in waiting):
            outbox.cut_off(code, reason)
        held = list(self._held)
        self._held.clear()
        for publisher in held:
            publisher.unblock(self)

    def _retry(self) -> None:
        self._retry_timer = None
        if self._writing is None:
            self._begin()


def _as_reason(error: BaseException) -> tuple[ReasonCode, str]:
    """Return what a client is told."""
    if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
        return ReasonCode.QUOTA_EXCEEDED, "the broker has no room to store messages"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return ReasonCode.QUOTA_EXCEEDED, "the broker has no room to store messages"
    return ReasonCode.UNSPECIFIED_ERROR, "the broker cannot store messages"
