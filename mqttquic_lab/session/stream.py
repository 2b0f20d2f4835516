"""A data stream with its verbs."""

from __future__ import annotations

import asyncio
from time import time_ns
from typing import TYPE_CHECKING, Any

from mqttquic_lab.errors import OperationTimeoutError, UsageError
from mqttquic_lab.mqtt import MAX_PACKET_SIZE, Deliveries, Publish
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
    from mqttquic_lab.session.mapping import MappedPublisher
    from mqttquic_lab.session.results import PublishResult, PublishSummary
    from mqttquic_lab.session.streams import StreamContext, StreamInfo, StreamKind, StreamState

MAX_TOPICS = 8
"""Topics of a stream that are listed, the newest."""


class AsyncStream:
    """One data stream of a session, with the acknowledgements of what it carries and subscriptions of its own.

    Made by :meth:`mqttquic_lab.session.AsyncSession.open_stream`, or by the session itself for a topic or a message.
    Messages on one stream arrive in order; a lost packet holds up this stream and no other (RFC 9000 section 2.2).

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
        self.session = context.session
        self._context = context
        self._id = stream.id or 0
        self._on_over = on_over
        self._over = asyncio.Event()
        self._topics: dict[str, None] = {}
        self._messages_in = 0
        self.channel = DataChannel(
            context.control,
            stream,
            stats,
            max_packet_size=options.maximum_packet_size or MAX_PACKET_SIZE,
            on_packets=self._on_packets,
            on_error=context.record,
            on_end=self._on_end,
            is_ours=kind != "server",
        )
        limits = context.limits()
        # Brokers that open streams, or read unidirectional ones, number messages through, and answer on any stream.
        self._is_shared = kind == "server" or not context.profile.state_per_stream
        if self._is_shared:
            self.deliveries, self.router = context.deliveries, context.router
        else:
            self.deliveries = Deliveries(
                options.receive_maximum or 65_535,
                peer_receive_maximum=limits.receive_maximum,
                version=options.level,
            )
            self.router = Router()
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

        channel = self.channel
        return StreamInfo(
            id=self._id,
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
        self._check_writable()
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
        self._check_writable()
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
            self.channel.stream.reset(0)
            self.channel.finish(self.channel.closed_by(f"stream {self._id} did not close in order: {what}"))
            raise OperationTimeoutError(f"stream {self._id} was reset after {seconds:g} s: {what}") from None

    # Inside

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
                if type(packet) is Publish:
                    self._messages_in += 1
                    if not channel.sent_end or not packet.qos:
                        # A message that cannot be acknowledged any more is not taken: the broker keeps it.
                        self._receiver.publish(packet, now, replies)
                else:
                    check_from_broker(packet)
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

    def _on_pubrel(self, packet: Any) -> None:
        self._replies.append(self.deliveries.release(packet).encode(self._context.options.level))

    def _on_end(self) -> None:
        if not self._is_shared:
            self.publisher.lost()
        self.subscriber.lost()
        if self._is_shared:
            for feed in self.subscriber.feeds:
                self.router.remove(feed, feed.filters)
        self._over.set()
        self._on_over(self)
