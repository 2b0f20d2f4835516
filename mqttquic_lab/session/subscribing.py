"""Subscribing and unsubscribing: the requests under way, and what the broker's answers do to the feeds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mqttquic_lab.errors import OperationTimeoutError, ProtocolError, SubscribeError, UsageError
from mqttquic_lab.mqtt import Subscribe, Subscription, Unsubscribe, check_topic_filter
from mqttquic_lab.session.feed import AsyncFeed
from mqttquic_lab.session.limits import ServerLimits, printable, said

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from mqttquic_lab.errors import LabError
    from mqttquic_lab.mqtt import PacketIds, SubAck, UnsubAck
    from mqttquic_lab.session.packet_stream import PacketStream
    from mqttquic_lab.session.results import SessionStats
    from mqttquic_lab.session.routing import Router

MAX_FILTERS = 10_000
"""Filters in one call of ``subscribe``."""

NEVER_RETAINED = 2
"""Retain Handling: send no retained messages (MQTT 5.0 section 3.8.3.1)."""


class Request:
    """A SUBSCRIBE or UNSUBSCRIBE whose answer has not come."""

    __slots__ = ("filters", "future", "kind", "on_late_answer", "packet")

    def __init__(
        self,
        kind: type[Subscribe | Unsubscribe],
        filters: tuple[str, ...],
        packet: Subscribe | Unsubscribe,
        future: asyncio.Future[Any] | None,
    ) -> None:
        self.kind = kind
        self.packet = packet
        self.filters = filters
        self.future = future
        self.on_late_answer: Callable[[Any], None] | None = None
        """Called with an answer that comes when nobody waits for it any more."""


class Subscriber:
    """The subscriptions of one stream. On its loop only."""

    def __init__(self, channel: PacketStream, router: Router, ids: PacketIds, stats: SessionStats) -> None:
        self.limits = ServerLimits()
        self._channel = channel
        self._router = router
        self._ids = ids
        self._stats = stats
        self._requests: dict[int, Request] = {}
        self._leaving: set[AsyncFeed] = set()
        self._stale: dict[str, None] = {}  # given up without a connection: the broker may still have them
        self.feeds: list[AsyncFeed] = []
        self.ready = asyncio.Event()
        """Not set while the session moves from one connection to another."""
        self.ready.set()
        self.renewals: set[asyncio.Future[Any]] = set()
        """Answers to come for what is subscribed anew after a reconnect."""
        self.on_refused: Callable[[UsageError | SubscribeError], None] = _ignore
        """Told when one of those is a refusal."""
        self.asker: Callable[[int], Subscriber | None] = _nobody
        """Who else asked under a packet identifier; mqttv5 answers on the control stream, wherever that was."""

    # Subscribing

    async def subscribe(
        self,
        wanted: Sequence[Subscription],
        make_feed: Callable[[tuple[str, ...]], AsyncFeed],
        timeout: float | None,
    ) -> AsyncFeed:
        """Subscribe to `wanted` and return the feed that gets the messages. See :meth:`AsyncSession.subscribe`."""
        for subscription in wanted:
            self.limits.check_subscription(subscription)
        filters = tuple(subscription.filter for subscription in wanted)
        feed = make_feed(filters)
        try:
            async with asyncio.timeout(timeout):
                identifier = await self._identifier(filters)
                merged = [self._merge(subscription) for subscription in wanted]
                before = {f: current for f in filters if (current := self._router.current(f)) is not None}
                # Routed before the broker is asked: retained messages may come before SUBACK [MQTT-3.8.4-2].
                self._router.add(feed, merged, identifier)
                try:
                    answer = await self._ask_to_subscribe(merged, identifier)
                except BaseException:
                    self._undo(feed, before)
                    raise
        except TimeoutError:
            raise OperationTimeoutError(f"no SUBACK for {', '.join(filters)} within {timeout:g} s") from None
        refused = [(f, code) for f, code in zip(filters, answer.reason_codes, strict=True) if code >= 0x80]
        if refused:
            self._undo(feed, before, still_ours=[f for f in filters if f not in dict(refused)])
            raise _refusal("subscribe to", refused, len(filters), answer)
        feed.granted = dict(zip(filters, map(int, answer.reason_codes), strict=True))
        feed.retain_handling = wanted[0].retain_handling
        self.feeds.append(feed)
        return feed

    async def _identifier(self, filters: tuple[str, ...]) -> int | None:
        """Return the Subscription Identifier for a SUBSCRIBE, and see that overlapping subscriptions have one too."""
        if not self.limits.identifiers_available:
            return None
        overlapping = self._router.overlapping(filters)
        replaces_identified = any((current := self._router.current(f)) and current[1] is not None for f in filters)
        if not overlapping and not replaces_identified and not self._router.identifies_all:
            return None
        renewals = []
        for subscription in overlapping:
            current = self._router.current(subscription.filter)
            if current is not None and current[1] is None:
                old = current[0]
                renewed = Subscription(old.filter, old.qos, old.no_local, old.retain_as_published, NEVER_RETAINED)
                identifier = self._router.next_identifier()
                self._router.identify(renewed, identifier)
                renewals.append(self._ask_to_subscribe([renewed], identifier))
        for answer in await asyncio.gather(*renewals):
            refused = [code for code in answer.reason_codes if code >= 0x80]
            if refused:
                raise SubscribeError(
                    f"the broker refused to renew an overlapping subscription: {said(refused[0], None)}",
                    reason_code=refused[0],
                    packet=answer,
                )
        return self._router.next_identifier()

    def _merge(self, wanted: Subscription) -> Subscription:
        """Return what to ask for when another feed has the same filter: it must not lose anything by this."""
        current = self._router.current(wanted.filter)
        if current is None:
            return wanted
        held = current[0]
        return Subscription(
            wanted.filter,
            max(wanted.qos, held.qos),
            wanted.no_local and held.no_local,
            wanted.retain_as_published or held.retain_as_published,
            wanted.retain_handling,
        )

    async def _ask_to_subscribe(self, subscriptions: Sequence[Subscription], identifier: int | None) -> SubAck:
        properties = {} if identifier is None else {"subscription_identifier": [identifier]}
        filters = tuple(subscription.filter for subscription in subscriptions)

        def drop(answer: SubAck) -> None:
            # The caller gave up, the broker did not: nobody wants these messages.
            granted = [f for f, code in zip(filters, answer.reason_codes, strict=True) if code < 0x80]
            self._send_unsubscribe([f for f in granted if not self._router.holders(f)])

        answer: SubAck = await self._ask(
            Subscribe, filters, lambda packet_id: Subscribe(packet_id, tuple(subscriptions), properties), drop
        )
        return answer

    def _undo(
        self, feed: AsyncFeed, before: dict[str, tuple[Subscription, int | None]], still_ours: Sequence[str] = ()
    ) -> None:
        """Take a feed out of the routes; `still_ours` are filters that the broker has granted it nevertheless."""
        orphans = self._router.remove(feed, feed.filters)
        for topic_filter, (subscription, identifier) in before.items():
            if topic_filter not in still_ours and topic_filter not in orphans:
                self._router.identify(subscription, identifier)
        self._send_unsubscribe([f for f in orphans if f in still_ours])

    # Unsubscribing

    @property
    def is_waiting(self) -> bool:
        """Whether an answer of the broker is missing."""
        return bool(self._requests)

    def asked(self, packet_id: int) -> bool:
        """Whether a request under this packet identifier was sent here and is not answered."""
        return packet_id in self._requests

    def holds(self, what: AsyncFeed | str) -> bool:
        """Whether a feed, or some feed with this filter, is subscribed here."""
        return what in self.feeds if isinstance(what, AsyncFeed) else bool(self._router.holders(what))

    async def unsubscribe(self, what: AsyncFeed | str | Iterable[str], timeout: float | None) -> tuple[int, ...]:
        """End a feed, or every feed's interest in a filter; returns what the broker answered.

        See :meth:`AsyncSession.unsubscribe`.
        """
        if isinstance(what, AsyncFeed):
            if what not in self.feeds:
                return ()  # it has ended before
            leaving, filters = [what], what.filters
        else:
            filters = filters_of(what)
            leaving = [feed for feed in self.feeds if set(feed.filters) & set(filters)]
            unknown = [f for f in filters if not self._router.holders(f)]
            if unknown:
                raise UsageError(f"no feed of this session is subscribed to {', '.join(unknown)}")
        codes: tuple[int, ...] = ()
        whole = [feed for feed in leaving if set(feed.filters) <= set(filters)]
        self._leaving.update(whole)
        try:
            # A filter that some other feed holds stays subscribed at the broker.
            dropped = [f for f in filters if self._is_leaving(f, leaving)]
            if dropped and self._channel.ended:
                self._note_stale(dropped)
            elif dropped:
                codes = await self.ask_to_unsubscribe(dropped, timeout)
        finally:
            self._leaving.difference_update(whole)
            self._forget(leaving, filters)
        return codes

    def dropped(self, filters: Iterable[str]) -> None:
        """Take in that the broker has ended subscriptions that were asked to end elsewhere."""
        gone = set(filters)
        self._forget([feed for feed in self.feeds if gone & set(feed.filters)], tuple(gone))

    def _forget(self, leaving: Iterable[AsyncFeed], filters: Sequence[str]) -> None:
        for feed in leaving:
            self._router.remove(feed, filters)
            rest = tuple(f for f in feed.filters if f not in filters)
            feed.filters = rest or feed.filters
            if not rest and feed in self.feeds:
                self.feeds.remove(feed)
                feed.end(None)

    def _is_leaving(self, topic_filter: str, leaving: Sequence[AsyncFeed]) -> bool:
        return all(feed in leaving or feed in self._leaving for feed in self._router.holders(topic_filter))

    async def ask_to_unsubscribe(self, filters: Sequence[str], timeout: float | None) -> tuple[int, ...]:
        """Send UNSUBSCRIBE and return the reason codes of the answer; raises SubscribeError for a refusal."""
        wanted = tuple(filters)
        try:
            async with asyncio.timeout(timeout):
                answer: UnsubAck = await self._ask(
                    Unsubscribe, wanted, lambda packet_id: Unsubscribe(packet_id, wanted, {}), None
                )
        except TimeoutError:
            raise OperationTimeoutError(f"no UNSUBACK for {', '.join(wanted)} within {timeout:g} s") from None
        refused = [(f, code) for f, code in zip(wanted, answer.reason_codes, strict=False) if code >= 0x80]
        if refused:
            raise _refusal("unsubscribe from", refused, len(wanted), answer)
        return tuple(map(int, answer.reason_codes))

    def _send_unsubscribe(self, filters: Sequence[str]) -> None:
        """Send UNSUBSCRIBE without waiting for the answer."""
        if not filters:
            return
        packet_id = self._ids.allocate() if not self._channel.ended and self.ready.is_set() else None
        if packet_id is None:
            self._note_stale(filters)
            return
        packet = Unsubscribe(packet_id, tuple(filters), {})
        self._requests[packet_id] = Request(Unsubscribe, tuple(filters), packet, None)
        self._channel.send(packet)

    # Requests and answers

    async def _ask(
        self,
        kind: type[Subscribe | Unsubscribe],
        filters: tuple[str, ...],
        make: Callable[[int], Subscribe | Unsubscribe],
        on_late_answer: Callable[[Any], None] | None,
    ) -> Any:
        """Send a request and wait for its answer."""
        await self.ready.wait()
        request = self._request(kind, filters, make)
        assert request.future is not None
        try:
            return await request.future
        except BaseException:
            request.on_late_answer = on_late_answer
            raise

    def _request(
        self,
        kind: type[Subscribe | Unsubscribe],
        filters: tuple[str, ...],
        make: Callable[[int], Subscribe | Unsubscribe],
    ) -> Request:
        if self._channel.ended:
            raise self._channel.gone(f"cannot {kind.NAME.lower()}")
        packet_id = self._ids.allocate()
        if packet_id is None:
            raise SubscribeError("all 65535 packet identifiers are in use: wait for earlier publishes to finish")
        try:
            packet = make(packet_id)
            request = Request(kind, filters, packet, asyncio.get_running_loop().create_future())
            self._requests[packet_id] = request
            self._channel.send(packet)
        except BaseException:
            self._requests.pop(packet_id, None)
            self._ids.release(packet_id)
            raise
        return request

    def answered(self, packet: SubAck | UnsubAck) -> None:
        """Take in SUBACK or UNSUBACK; raises ProtocolError for one that does not fit."""
        request = self._requests.get(packet.packet_id)
        if request is None:
            other = self.asker(packet.packet_id)
            if other is not None:
                other.answered(packet)
            else:
                self._stats.stray += 1
            return
        fits = ("SUBACK" if request.kind is Subscribe else "UNSUBACK") == packet.NAME
        # UNSUBACK of 3.1.1 has no reason codes (MQTT 3.1.1 section 3.11).
        counts = len(packet.reason_codes) == len(request.filters) or (
            packet.NAME == "UNSUBACK" and self._channel.version == 4
        )
        if not fits or not counts:
            raise ProtocolError(
                f"{packet.NAME} with {len(packet.reason_codes)} reason codes answers {request.kind.NAME} "
                f"of {len(request.filters)} filters",
                reason_code=0x82,
                rule="MQTT-3.9.3-1" if request.kind is Subscribe else "MQTT-3.11.3-1",
                section="MQTT 5.0 section 3.9.3" if request.kind is Subscribe else "MQTT 5.0 section 3.11.3",
                packet=packet,
            )
        del self._requests[packet.packet_id]
        self._ids.release(packet.packet_id)
        if request.future is not None and not request.future.done():
            request.future.set_result(packet)
        elif request.on_late_answer is not None:
            request.on_late_answer(packet)

    def lost(self) -> None:
        """Fail everybody who waits, end every feed: the connection has ended."""
        for packet_id, request in self._requests.items():
            self._ids.release(packet_id)
            self._note_stale(request.filters)
            if request.future is not None and not request.future.done():
                request.future.set_exception(self._channel.gone(f"{request.kind.NAME} was not answered"))
                request.future.exception()  # marked as seen: nobody waits for what is subscribed anew
        self._requests.clear()
        for feed in self.feeds:
            feed.end(self._channel.reason)

    # From one connection to the next

    def suspend(self) -> None:
        """Take in that the connection is lost and another on its way: requests of the user's wait for that."""
        for future in self.renewals:
            future.cancel()

    def _note_stale(self, filters: Iterable[str]) -> None:
        self._stale.update(dict.fromkeys(filters))
        while len(self._stale) > MAX_FILTERS:
            del self._stale[next(iter(self._stale))]

    def resume(self, channel: PacketStream, kept: bool) -> int:
        """Go on over `channel`; returns how many filters are subscribed anew.

        Parameters
        ----------
        channel : PacketStream
            Of the new connection.
        kept : bool
            Whether the broker still has the session, and with it the subscriptions.
        """
        self._channel = channel
        self.ready.set()
        for feed in self.feeds:
            feed.revive()
        asked, self._requests = self._requests, {}
        waiting = {number: r for number, r in asked.items() if r.future is not None and not r.future.done()}
        for packet_id in asked.keys() - waiting.keys():
            self._ids.release(packet_id)
            self._note_stale(asked[packet_id].filters)
        stale, self._stale = self._stale, {}
        count = 0
        # What was subscribed anew and lost its connection before the answer, the broker may never have got.
        if kept and not any(future.cancelled() for future in self.renewals):
            self._send_unsubscribe([f for f in stale if not self._router.holders(f)])
        else:
            count = self._renew()
        for packet_id, request in waiting.items():
            try:
                channel.send(request.packet)
            except UsageError as error:  # it is too large for this connection
                self._ids.release(packet_id)
                assert request.future is not None
                request.future.set_exception(error)
            else:
                self._requests[packet_id] = request
        return count

    async def wait_renewed(self, deadline: float | None) -> None:
        """Wait until what was subscribed anew is answered; raises OperationTimeoutError after `deadline`."""
        try:
            async with asyncio.timeout_at(deadline):
                while pending := [future for future in self.renewals if not future.done()]:
                    await asyncio.wait(pending)
        except TimeoutError:
            raise OperationTimeoutError(
                "the session is connected again, but the broker did not answer all that was subscribed anew in time"
            ) from None

    def adopt(self, feeds: Sequence[AsyncFeed], router: Router) -> None:
        """Take over the feeds of a stream that cannot go on, and subscribe here to what they had in `router`."""
        for feed in feeds:
            wanted = []
            for topic_filter in feed.filters:
                held = router.current(topic_filter)
                if held is not None:
                    wanted.append(self._merge(held[0]))
            identifier = self._identify_overlapping(feed.filters)
            self._router.add(feed, wanted, identifier)
            self.feeds.append(feed)
            feed.revive()
            self._renew_together(tuple(wanted), identifier)

    def _identify_overlapping(self, filters: Sequence[str]) -> int | None:
        """Do what :meth:`_identifier` does without waiting for the answers."""
        if not self.limits.identifiers_available:
            return None
        for held in self._router.overlapping(filters):
            current = self._router.current(held.filter)
            if current is not None and current[1] is None:
                old = current[0]
                renewed = Subscription(old.filter, old.qos, old.no_local, old.retain_as_published, NEVER_RETAINED)
                identifier = self._router.next_identifier()
                self._router.identify(renewed, identifier)
                self._renew_together((renewed,), identifier)
        return self._router.next_identifier()

    def end_all(self, reason: LabError | None) -> None:
        """End every feed for good: the broker does not keep these subscriptions."""
        feeds, self.feeds = self.feeds, []
        for feed in feeds:
            self._router.remove(feed, feed.filters)
            feed.end(reason)

    def _renew(self) -> int:
        """Subscribe everything anew, feed by feed, so that no packet grows larger than the first time."""
        self.renewals.clear()
        done: set[str] = set()
        for feed in tuple(self.feeds):
            groups: dict[int | None, list[Subscription]] = {}
            for topic_filter in feed.filters:
                current = self._router.current(topic_filter)
                if current is None or topic_filter in done:
                    continue
                done.add(topic_filter)
                held, identifier = current
                if not self.limits.identifiers_available:
                    identifier = None
                # The newest retained messages tell what was missed; not wanted by those that never wanted them.
                handling = min(holder.retain_handling for holder in self._router.holders(topic_filter))
                wanted = Subscription(held.filter, held.qos, held.no_local, held.retain_as_published, handling)
                self._router.identify(wanted, identifier)
                groups.setdefault(identifier, []).append(wanted)
            for identifier, subscriptions in groups.items():
                self._renew_together(tuple(subscriptions), identifier)
        return len(done)

    def _renew_together(self, subscriptions: tuple[Subscription, ...], identifier: int | None) -> None:
        properties = {} if identifier is None else {"subscription_identifier": [identifier]}
        filters = tuple(subscription.filter for subscription in subscriptions)

        def answered(future: asyncio.Future[Any]) -> None:
            if not future.cancelled() and future.exception() is None:
                self._renewed(filters, future.result())

        try:
            request = self._request(
                Subscribe, filters, lambda packet_id: Subscribe(packet_id, subscriptions, properties)
            )
        except (UsageError, SubscribeError) as error:  # too large for this connection, or no identifier is free
            for feed in [feed for feed in self.feeds if set(feed.filters) & set(filters)]:
                self._give_up(feed, error, {})
            return
        assert request.future is not None
        request.future.add_done_callback(answered)
        self.renewals.add(request.future)

    def _renewed(self, filters: Sequence[str], answer: SubAck) -> None:
        """Take the answer to a renewal: feeds that the broker does not serve any more end, and say why."""
        codes = dict(zip(filters, map(int, answer.reason_codes), strict=True))
        for feed in [feed for feed in self.feeds if set(feed.filters) & set(filters)]:
            refused = [(f, codes[f]) for f in feed.filters if codes.get(f, 0) >= 0x80]
            if not refused:
                feed.granted = {**feed.granted, **{f: codes[f] for f in feed.filters if f in codes}}
                continue
            self._give_up(feed, _refusal("subscribe anew to", refused, len(filters), answer), codes)

    def _give_up(self, feed: AsyncFeed, error: UsageError | SubscribeError, codes: Mapping[str, int]) -> None:
        """End a feed that cannot be subscribed anew; `codes` are what the broker answered for its filters."""
        orphans = self._router.remove(feed, feed.filters)
        self._send_unsubscribe([f for f in orphans if codes.get(f, 0x80) < 0x80])
        self.feeds.remove(feed)
        self.on_refused(error)
        feed.end(error)


def _ignore(_: UsageError | SubscribeError) -> None:
    """Nobody wants to know."""


def _nobody(_: int) -> None:
    """All answers are for who gets them."""


def parse_filters(
    wanted: Any, qos: int, no_local: bool, retain_as_published: bool, retain_handling: int, level: int
) -> list[Subscription]:
    """Return what the first argument of ``subscribe`` asks for.

    Parameters
    ----------
    wanted : str, (str, int) or a list of these
        Filters, each with its own QoS or with `qos`.
    qos, no_local, retain_as_published, retain_handling
        Subscription options (MQTT 5.0 section 3.8.3.1).
    level : int
        Protocol level; 3.1.1 (4) has QoS only.

    Raises
    ------
    UsageError
        Something of it cannot be used.
    """
    if level != 5 and (no_local or retain_as_published or retain_handling):
        raise UsageError(
            "no_local, retain_as_published and retain_handling are of MQTT 5.0: leave them out, "
            'or connect with version="5.0"'
        )
    if retain_handling not in (0, 1, 2):
        raise UsageError(f"retain_handling={retain_handling!r}: must be 0 (send), 1 (if new) or 2 (never)")
    entries = [wanted] if isinstance(wanted, str) or _is_pair(wanted) else wanted
    try:
        entries = list(entries)
    except TypeError:
        raise UsageError(f"subscribe() takes a filter, (filter, qos) or a list of these, not {wanted!r}") from None
    if not entries:
        raise UsageError("subscribe() needs at least one topic filter [MQTT-3.8.3-2]")
    if len(entries) > MAX_FILTERS:
        raise UsageError(f"{len(entries)} filters in one call; {MAX_FILTERS} is the limit: use a wildcard")
    found: dict[str, Subscription] = {}
    for entry in entries:
        topic_filter, asked = entry if _is_pair(entry) else (entry, qos)
        if not isinstance(topic_filter, str):
            raise UsageError(f"subscribe() takes a filter, (filter, qos) or a list of these, not {entry!r}")
        if asked not in (0, 1, 2) or isinstance(asked, bool):
            raise UsageError(f"qos={asked!r} for {topic_filter!r}: must be 0, 1 or 2")
        check_topic_filter(topic_filter)
        found[topic_filter] = Subscription(
            topic_filter, asked, bool(no_local), bool(retain_as_published), retain_handling
        )
    return list(found.values())


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str) and not isinstance(entry[1], str)


def filters_of(what: str | Iterable[str]) -> tuple[str, ...]:
    """Return the filters that ``unsubscribe`` was given; raises UsageError if it was something else."""
    filters = (what,) if isinstance(what, str) else tuple(what)
    if not filters or not all(isinstance(f, str) for f in filters):
        raise UsageError("unsubscribe() takes a feed, a topic filter or a list of filters")
    return filters


def _refusal(what: str, refused: Sequence[tuple[str, int]], of: int, answer: SubAck | UnsubAck) -> SubscribeError:
    words = answer.properties.get("reason_string")
    each = "; ".join(f"{f!r}: {said(code, None)}" for f, code in refused[:10])
    more = f" and {len(refused) - 10} more" if len(refused) > 10 else ""
    rest = f" (the other {of - len(refused)} were given back)" if of > len(refused) and what.startswith("sub") else ""
    return SubscribeError(
        f"the broker refused to {what} {each}{more}{rest}{f': {printable(words)}' if words else ''}",
        reason_code=refused[0][1],
        reason_string=words,
        packet=answer,
    )
