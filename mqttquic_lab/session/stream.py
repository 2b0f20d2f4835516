"""A data stream with its verbs."""

from __future__ import annotations

import asyncio
from time import time_ns
from typing import TYPE_CHECKING, Any

from mqttquic_lab.errors import OperationTimeoutError, UsageError
from mqttquic_lab.mqtt import MAX_PACKET_SIZE, Deliveries, Publish
from mqttquic_lab.net.stream import DEFAULT_URGENCY
from mqttquic_lab.session.data_stream import DataChannel, check_from_broker
from mqttquic_lab.session.options import check_timeout
from mqttquic_lab.session.publishing import Publisher
from mqttquic_lab.session.receiving import Receiver
from mqttquic_lab.session.routing import Router
from mqttquic_lab.session.subscribing import Subscriber

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Mapping

    from mqttquic_lab.errors import LabError
    from mqttquic_lab.mqtt import Packet
    from mqttquic_lab.net.stream import ByteStream
    from mqttquic_lab.records.decode import Decode
    from mqttquic_lab.session.feed import AsyncFeed
    from mqttquic_lab.session.flow_spec import FlowInfo
    from mqttquic_lab.session.mapping import MappedPublisher
    from mqttquic_lab.session.results import PublishResult, PublishSummary
    from mqttquic_lab.session.streams import StreamContext, StreamInfo, StreamKind, StreamState

MAX_TOPICS = 8
"""Topics of a stream that are listed, the newest."""


class AsyncStream:
    """One data stream of a session, with the acknowledgements of what it carries and subscriptions of its own.

    Made by :meth:`mqttquic_lab.session.AsyncSession.open_stream`, or by the session itself for a topic or a message.
    Messages on one stream arrive in order; a lost packet holds up this stream and no other (RFC 9000 section 2.2).

    One that was opened explicitly goes on after :meth:`AsyncSession.reconnect` on a fresh QUIC stream, with its
    subscriptions; what was not acknowledged on it is lost, and whoever waited was told.

    Attributes
    ----------
    kind : str
        ``"explicit"``, ``"topic"``, ``"publish"`` or ``"server"``.
    unidirectional : bool
        Whether only one side sends.
    session : AsyncSession
        The session it belongs to.
    """

    def __init__(
        self,
        context: StreamContext,
        stream: ByteStream,
        kind: StreamKind,
        on_over: Callable[[AsyncStream], None],
        *,
        unidirectional: bool = False,
    ) -> None:
        options, stats = context.options, context.stats
        self.kind: StreamKind = kind
        self.unidirectional = unidirectional
        self.answers_elsewhere = False
        """Whether what is asked on it is answered on the control stream (flows of mqttv5)."""
        self.session = context.session
        self._context = context
        self._id = stream.id or 0
        self._on_over = on_over
        self._over = asyncio.Event()
        self._topics: dict[str, None] = {}
        self._messages_in = 0
        self._is_moving = False
        self.channel = self._make_channel(stream)
        limits = context.limits()
        self._is_shared = self._shares_books()
        self.deliveries, self.router = self._books()
        self.outlet: Publisher | MappedPublisher
        """Who publishes for the verbs."""
        if self._is_shared:
            self.publisher = context.publisher
        else:
            self.publisher = Publisher(self.channel, self.deliveries, stats, topics=context.topics)
            self.publisher.limits = limits
        self.outlet = self.publisher
        self.subscriber = Subscriber(self.channel, self.router, self.deliveries.ids, stats)
        self.subscriber.limits = limits
        self.subscriber.on_refused = lambda error: self._context.record("broker", error)
        self._receiver = Receiver(
            self.router,
            self.deliveries,
            stats,
            topic_alias_maximum=options.topic_alias_maximum or 0,
            stream_id=stream.id,
            on_message=context.on_message,
            unrouted=context.unrouted,
            otherwise=None if self._is_shared else context.router,
            aliases=context.aliases if self._is_shared else None,
        )
        self._receiver.name = context.session.client_id
        self._handlers: dict[int, Callable[[Any], None]] = {
            4: self.publisher.acknowledge,
            5: self.publisher.acknowledge,
            6: self._on_pubrel,
            7: self.publisher.acknowledge,
            9: self.subscriber.answered,
            11: self.subscriber.answered,
        }
        self._replies: list[bytes] = []

    def _make_channel(self, stream: ByteStream) -> DataChannel:
        context = self._context
        return DataChannel(
            context.control,
            stream,
            context.stats,
            max_packet_size=context.options.maximum_packet_size or MAX_PACKET_SIZE,
            on_packets=self._on_packets,
            on_error=context.record,
            on_end=self._on_end,
            is_ours=self.kind != "server",
        )

    def _shares_books(self) -> bool:
        """Whether it has no packet identifiers and subscriptions of its own.

        Brokers that open streams, or read unidirectional ones, number messages through, and answer on any stream.
        """
        return self.kind == "server" or not self._context.profile.state_per_stream

    def _books(self) -> tuple[Deliveries, Router]:
        context, options = self._context, self._context.options
        if self._is_shared:
            return context.deliveries, context.router
        deliveries = Deliveries(
            options.receive_maximum or 65_535,
            peer_receive_maximum=context.limits().receive_maximum,
            version=options.level,
        )
        return deliveries, Router()

    def __repr__(self) -> str:
        return f"<AsyncStream {self._id} ({self.kind}): {self.state}>"

    # What it is

    @property
    def id(self) -> int:
        """QUIC stream id (RFC 9000 section 2.1)."""
        return self._id

    @property
    def state(self) -> StreamState:
        """``"open"``, ``"closing"`` (ended here, not yet by the broker), ``"closed"``, or ``"failed"``."""
        channel = self.channel
        if channel.over:
            return "closed" if channel.reason is None else "failed"
        return "closing" if channel.ended else "open"

    @property
    def flow(self) -> FlowInfo | None:
        """With ``streams="flows"``: the flow's id, flags, where it stands, and whether its state was recovered."""
        return None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way on it that needs an acknowledgement."""
        if self._is_shared:
            return not self.subscriber.is_waiting
        deliveries = self.deliveries
        return not (len(deliveries) or deliveries.queued or self.subscriber.is_waiting)

    @property
    def feeds(self) -> tuple[AsyncFeed, ...]:
        """Feeds that were subscribed on it, oldest first."""
        return tuple(self.subscriber.feeds)

    @property
    def close_reason(self) -> LabError | None:
        """Why it has ended; None while it has not, or if that was asked for."""
        return self.channel.reason

    @property
    def info(self) -> StreamInfo:
        """What it carries and has carried, as of now."""
        from mqttquic_lab.session.streams import StreamInfo

        channel, flow = self.channel, self.flow
        return StreamInfo(
            id=self._id,
            flow_id=None if flow is None else flow.id,
            kind=self.kind,
            state=self.state,
            topics=tuple(self._topics),
            filters=tuple(f for feed in self.subscriber.feeds for f in feed.filters),
            messages_in=self._messages_in,
            messages_out=channel.messages_out,
            bytes_in=channel.bytes_in,
            bytes_out=channel.bytes_out,
            in_flight=len(channel.riders) if self._is_shared else len(self.deliveries),
            priority=channel.stream.urgency,
        )

    # Verbs

    async def publish(
        self,
        topic: str,
        payload: Any = None,
        qos: int = 0,
        retain: bool = False,
        properties: Mapping[str, Any] | None = None,
        *,
        timestamp: bool = False,
        timeout: float | str | None = 10.0,
    ) -> PublishResult:
        """Publish one message on this stream. See :meth:`AsyncSession.publish`.

        Raises
        ------
        StreamClosedError
            The stream has ended, or ended before the acknowledgement came.
        """
        if self.channel.ended:
            await self._context.usable("cannot publish", check_timeout(timeout))
        self._check_writable()
        self._check_publish(qos)
        self.publisher.check_topic(topic)
        self.note_topic(topic)
        return await self.outlet.publish(topic, payload, qos, retain, properties, timestamp, timeout)

    async def publish_many(
        self,
        messages: Iterable[tuple[str, Any]] | AsyncIterable[tuple[str, Any]],
        qos: int = 0,
        retain: bool = False,
        properties: Mapping[str, Any] | None = None,
        *,
        timestamp: bool = False,
        timeout: float | str | None = 30.0,
    ) -> PublishSummary:
        """Publish many messages on this stream. See :meth:`AsyncSession.publish_many`."""
        seconds = check_timeout(timeout)
        if self.channel.ended:
            await self._context.usable("cannot publish", seconds)
        self._check_writable()
        self._check_publish(qos)
        return await self.outlet.publish_many(messages, qos, retain, properties, timestamp, seconds)

    async def subscribe(
        self,
        topic_filter: str | tuple[str, int] | Iterable[str | tuple[str, int]],
        qos: int = 0,
        no_local: bool = False,
        retain_as_published: bool = False,
        retain_handling: int = 0,
        *,
        decode: Decode = "text",
        expand: bool = False,
        max_messages: int = 1_000_000,
        max_bytes: int = 256 * 2**20,
        timeout: float | str | None = 10.0,
    ) -> AsyncFeed:
        """Subscribe on this stream: the messages come on it. See :meth:`AsyncSession.subscribe`.

        The subscription is the stream's own: the same filter on two streams gives two copies of a message where the
        broker keeps subscriptions per stream (EMQX), and it ends with the stream.
        """
        return await self.session.subscribe(
            topic_filter, qos, no_local, retain_as_published, retain_handling, decode=decode, expand=expand,
            max_messages=max_messages, max_bytes=max_bytes, stream=self, timeout=timeout,
        )  # fmt: skip

    async def unsubscribe(
        self, what: AsyncFeed | str | Iterable[str], *, timeout: float | str | None = 10.0
    ) -> tuple[int, ...]:
        """Send UNSUBSCRIBE on this stream.

        Parameters
        ----------
        what : AsyncFeed, str or a list of str
            A feed, or filters as they were subscribed. If they were subscribed on another stream, UNSUBSCRIBE is sent
            here nevertheless: brokers that keep subscriptions per stream answer 0x11, and nothing ends.
        timeout : float, str or None
            Seconds to wait for UNSUBACK.

        Returns
        -------
        tuple of int
            Reason codes of the broker, one per filter; empty if nothing had to be asked, and from MQTT 3.1.1.
        """
        return await self.session.unsubscribe_on(self, what, check_timeout(timeout))

    async def close(self, *, timeout: float | str | None = 5.0) -> None:
        """End the stream in order: FIN once all that was sent is acknowledged. Its subscriptions end with it.

        Raises
        ------
        OperationTimeoutError
            The broker did not acknowledge everything, or did not end its side, in time; the stream was reset.
        """
        seconds = check_timeout(timeout)
        try:
            async with asyncio.timeout(seconds):
                if self._is_shared and not self.channel.ended:
                    for feed in self.feeds:  # else they would outlive their stream
                        await self.subscriber.unsubscribe(feed, None)
                for feed in self.subscriber.feeds:
                    feed.end(None)
                self.retire()
                if self.unidirectional:
                    self.channel.finish()  # nothing comes back that would tell
                await self._over.wait()
        except TimeoutError:
            unfinished = self.info.in_flight
            what = f"{unfinished} messages are unacknowledged" if unfinished else "the broker did not end its side"
            self._give_up_closing(what)
            raise OperationTimeoutError(f"stream {self._id} was reset after {seconds:g} s: {what}") from None

    async def abort(self, code: str | int | None = None, *, timeout: float | str | None = 5.0) -> None:
        """End the stream abortively: RESET_STREAM and STOP_SENDING; who waits for something on it is told at once.

        Parameters
        ----------
        code : str or int, optional
            With ``streams="flows"``, a code of the MQoQ draft (section 12.2) by name or number. The default,
            ``"FLOW_PACKET_CANCELLED"``, keeps the flow's state as its flags ask: :meth:`take_over` goes on with it.
            ``"FLOW_CANCELLED"`` discards it at both ends. Elsewhere any number; default 0.
        timeout : float, str or None
            Nothing is waited for.

        Raises
        ------
        UsageError
            There is no such code.
        StreamClosedError
            The stream is over already.
        """
        number = 0 if code is None else code
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1 << 62:
            raise UsageError(f"code={code!r}: streams without flows are reset with a number from 0 to 2**62 - 1")
        if self.channel.over:
            raise self.channel.gone("cannot abort")
        self.channel.stream.reset(number)
        self.channel.finish(self.channel.closed_by(f"stream {self._id} was reset here (error code {number})"))

    async def take_over(self, *, timeout: float | str | None = 10.0) -> AsyncStream:
        """Put the flow on a new QUIC stream, whether its present one lives or not (``streams="flows"`` only).

        With a stream that lives this is a take-over: the broker goes on on the new one and drops the old one (MQoQ
        draft section 9.14). Otherwise it is a recovery (9.15). What is not acknowledged is sent again, subscriptions
        hold; :attr:`id` is that of the new stream. If the broker has no state of the flow any more (NO_FLOW_STATE), it
        begins again, clean, and :attr:`AsyncSession.events` says so.

        Parameters
        ----------
        timeout : float, str or None
            Seconds to wait for a stream.

        Raises
        ------
        UsageError
            There are no flows here, or this one is the broker's.
        StreamLimitError, OperationTimeoutError, DisconnectedError
            As for :meth:`AsyncSession.open_stream`.
        """
        raise UsageError(f"stream {self._id} is no flow, there is nothing to go on with: {self.session.without_flows}")

    async def discard(self, *, timeout: float | str | None = 10.0) -> None:
        """Have the broker forget the flow with all its state (``streams="flows"``; MQoQ draft section 9.16).

        What is not acknowledged fails, subscriptions end.

        Raises
        ------
        UsageError
            There are no flows here, this one is the broker's, or nothing is left of it.
        OperationTimeoutError
            The broker did not confirm in time.
        """
        raise UsageError(f"stream {self._id} is no flow, nothing is kept of it: {self.session.without_flows}")

    # Inside

    def _give_up_closing(self, what: str) -> None:
        self.channel.stream.reset(0)
        self.channel.finish(self.channel.closed_by(f"stream {self._id} did not close in order: {what}"))

    def _check_publish(self, qos: int) -> None:
        """Raise UsageError for what cannot be acknowledged."""

    def use_router(self, router: Router) -> None:
        """Find the feeds of what arrives there."""
        self._receiver.look_up_in(router)

    def lose(self, reason: LabError | None, *, moving: bool) -> None:
        """Take the end of the connection; `moving` if another one is there already to go on with."""
        self._is_moving = moving
        if moving:
            self.subscriber.suspend()
        self.channel.finish(reason)

    def give_up(self) -> None:
        """Take that no other connection came: feeds end until there is one."""
        self._is_moving = False
        self.subscriber.lost()

    def carry_on(self, context: StreamContext, stream: ByteStream, on_over: Callable[[AsyncStream], None]) -> None:
        """Go on on a stream of another connection: subscribe anew."""
        self._context, self._on_over = context, on_over
        self._go_on_over(stream)
        self._receiver.restart(stream.id)
        if not self._is_shared:
            self.deliveries.resume(context.limits().receive_maximum)
            self.publisher.limits = context.limits()
            self.publisher.move(self.channel)
        self.subscriber.limits = context.limits()
        self.subscriber.resume(self.channel, kept=False)

    def _go_on_over(self, stream: ByteStream) -> None:
        self._id = stream.id or 0
        self._is_moving = False
        self._over = asyncio.Event()
        self._messages_in = 0
        urgency = self.channel.stream.urgency
        self.channel = self._make_channel(stream)
        if urgency != DEFAULT_URGENCY:
            stream.prioritize(urgency)

    def note_topic(self, topic: str) -> None:
        """Note that something is published on `topic` here, for the listing."""
        topics = self._topics
        if topic not in topics:
            while len(topics) >= MAX_TOPICS:
                del topics[next(iter(topics))]
            topics[topic] = None

    def retire(self) -> None:
        """Take no more verbs, and end when nothing is under way any more. Safe to repeat."""
        self.channel.ended = True
        self._settle()

    def _settle(self) -> None:
        if self.channel.ended and self.is_idle:
            self.channel.end_sending()

    def _check_writable(self) -> None:
        if self.kind == "server":
            raise UsageError(f"the broker opened stream {self._id} for its deliveries: publish on another one")
        if self.channel.ended:
            raise self.channel.gone("cannot publish")

    def _on_packets(self, packets: list[Packet]) -> None:
        now = time_ns()
        channel, replies = self.channel, self._replies
        self._receiver.watched = self.session.on_message is not None
        try:
            for packet in packets:
                if not self._admit(packet):
                    continue
                if type(packet) is Publish:
                    self._messages_in += 1
                    if not channel.sent_end or not packet.qos:
                        # A message that cannot be acknowledged any more is not taken: the broker keeps it.
                        self._receiver.publish(packet, now, replies)
                else:
                    self._handlers[packet.TYPE](packet)
        finally:
            if replies:
                data = b"".join(replies)
                if not (channel.over or channel.sent_end or channel.is_muted or self.unidirectional):
                    channel.write(data, len(replies))
                elif self._is_shared and not self._context.control.ended:
                    # Nothing can be sent back here.
                    self._context.control.write(data, len(replies))
                replies.clear()
            self._context.wake()
        self._settle()

    def _admit(self, packet: Packet) -> bool:
        """Return whether a packet is to be handled; raises ProtocolError for one that may not come here."""
        if type(packet) is not Publish:
            check_from_broker(packet)
        return True

    def _on_pubrel(self, packet: Any) -> None:
        self._replies.append(self.deliveries.release(packet).encode(self._context.options.level))

    def _on_end(self) -> None:
        if not self._is_shared:
            self.publisher.lost()
        if not self._is_moving:
            self.subscriber.lost()
        if self._is_shared and not self._is_moving:
            for feed in self.subscriber.feeds:
                self.router.remove(feed, feed.filters)
        self._over.set()
        self._on_over(self)
