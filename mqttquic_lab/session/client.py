"""The session: MQTT's verbs on one connection, whatever carries it."""

from __future__ import annotations

import asyncio
import datetime as dt
from time import time, time_ns
from typing import TYPE_CHECKING, Any, Literal, Self

from mqttquic_lab.errors import LabError, OperationTimeoutError, UsageError
from mqttquic_lab.mqtt import MAX_PACKET_SIZE, ConnectionState, Deliveries, Publish
from mqttquic_lab.mqtt.profiles import profile_named
from mqttquic_lab.records.handshake import HandshakeReport
from mqttquic_lab.records.log import MessageLog
from mqttquic_lab.session.advice import warn_of
from mqttquic_lab.session.channel import PacketChannel
from mqttquic_lab.session.close_codes import with_name
from mqttquic_lab.session.connecting import Connecting, checked_connect, deadline_of, open_transport
from mqttquic_lab.session.early import EarlyPublished
from mqttquic_lab.session.ending import farewell
from mqttquic_lab.session.fallback import first_that_works
from mqttquic_lab.session.feed import AsyncFeed
from mqttquic_lab.session.limits import ServerLimits
from mqttquic_lab.session.mapping import MappedPublisher
from mqttquic_lab.session.options import SessionOptions, check_timeout
from mqttquic_lab.session.publishing import Publisher
from mqttquic_lab.session.receiving import Receiver
from mqttquic_lab.session.reconnecting import Reconnector
from mqttquic_lab.session.resending import Resender
from mqttquic_lab.session.results import ErrorRecord, EventRecord, SessionStats
from mqttquic_lab.session.routing import Router
from mqttquic_lab.session.stream import AsyncStream
from mqttquic_lab.session.streams import StreamContext, Streams
from mqttquic_lab.session.subscribing import Subscriber, filters_of, parse_filters
from mqttquic_lab.session.target import Target, resolve_target

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Mapping
    from types import TracebackType

    from mqttquic_lab.mqtt import ConnAck, Disconnect, Packet
    from mqttquic_lab.mqtt.profiles import Action
    from mqttquic_lab.net.stream import Connection
    from mqttquic_lab.quic.reasons import CloseInfo
    from mqttquic_lab.records.decode import Decode
    from mqttquic_lab.records.message import Message
    from mqttquic_lab.records.migration import MigrationResult
    from mqttquic_lab.session.early import FirstFlight
    from mqttquic_lab.session.results import EventName, PublishResult, PublishSummary
    from mqttquic_lab.session.streams import StreamInfo

MAX_ERRORS = 100
"""Error records kept; older ones are dropped (``stats.errors`` counts all)."""

MAX_EVENTS = 100
"""Event records kept; older ones are dropped."""


class AsyncSession:
    """One MQTT session on one connection. Made by :meth:`open`; used on the loop it was made on.

    Attributes
    ----------
    url : str
        Where it is connected to, without user name and password.
    client_id : str
        The client identifier in use: one's own, or the one that the broker assigned.
    handshake : HandshakeReport
        Everything known about how the session came about.
    limits : ServerLimits
        What the broker allows.
    trace : Trace
        Events of the connection.
    """

    def __init__(self, connection: Connection, options: SessionOptions, url: str = "") -> None:
        self.url = url or connection.report.url
        self.client_id = options.client_id
        self.options = options
        self.limits = ServerLimits()
        self.trace = connection.trace
        self.trace.detail = self.trace.detail or options.trace_detail
        self.profile = profile_named(options.profile)
        """Which broker this is, as far as we were told."""
        self.has_been_connected = False
        """Whether the broker has ever accepted."""
        self._connection = connection
        self._stats = SessionStats()
        self._errors: tuple[ErrorRecord, ...] = ()  # replaced, never changed: other threads look at it
        self._events: tuple[EventRecord, ...] = ()  # the same
        self._connected_at: dt.datetime | None = None
        self._state: Literal["connecting", "connected", "closed"] = "connecting"
        self._ended = asyncio.Event()
        self._notify: set[AsyncFeed] = set()
        self._router = Router()
        self._deliveries = Deliveries(options.receive_maximum or 65_535, version=options.level)
        self._channel = self._make_channel(connection)
        self._connecting = Connecting(self._channel, options, self.url)
        self._reconnector = Reconnector(self)
        self._early: EarlyPublished
        self._handlers: dict[int, Callable[[Any], None]] = {
            2: self._on_connack,
            4: self._on_acknowledgement,
            5: self._on_acknowledgement,
            6: self._on_pubrel,
            7: self._on_acknowledgement,
            9: self._on_answer,
            11: self._on_answer,
            13: lambda _: self._channel.on_pong(),
            14: self._on_disconnect,
        }
        self._replies: list[bytes] = []
        self._on_message: Callable[[Message], None] | None = None
        self._publisher = Publisher(self._channel, self._deliveries, self._stats)
        self._subscriber = Subscriber(self._channel, self._router, self._deliveries.ids, self._stats)
        self._receiver = Receiver(
            self._router,
            self._deliveries,
            self._stats,
            topic_alias_maximum=options.topic_alias_maximum or 0,
            stream_id=self._channel.stream.id,
            on_message=self._tell,
        )
        self._resender = Resender(self._deliveries, self._stats, self._publisher.acknowledge)
        self._ready = self._subscriber.ready = self._publisher.ready  # not set while the session changes connections
        self._subscriber.on_refused = lambda error: self._record("broker", error)
        self._outlet: Publisher | MappedPublisher
        self._open_streams()

    def _make_channel(self, connection: Connection) -> PacketChannel:
        return PacketChannel(
            connection,
            self.options.level,
            self._stats,
            max_packet_size=self.options.maximum_packet_size or MAX_PACKET_SIZE,
            on_packets=self._on_packets,
            on_error=self._record,
            on_end=self._on_end,
        )

    def _open_streams(self) -> None:
        """Make ready for data streams of the present connection."""
        options, connection = self.options, self._connection
        self._streams = Streams(
            StreamContext(
                session=self,
                control=self._channel,
                options=options,
                profile=self.profile,
                stats=self._stats,
                router=self._router,
                deliveries=self._deliveries,
                aliases=self._receiver.aliases,
                topics=self._publisher.topics,
                unrouted=self._receiver.unrouted,
                on_message=self._tell,
                record=self._record,
                wake=self._wake_feeds,
                limits=lambda: self.limits,
                publisher=self._publisher,
            )
        )
        self._outlet = self._publisher
        if options.streams != "single" and connection.transport == "quic":
            if not self.has_been_connected:
                self._advise(self._streams.action)
            self._outlet = MappedPublisher(
                self._streams,
                self._publisher,
                per_publish=options.streams == "per-publish",
                bound=options.topic_streams,
            )
        elif options.streams != "single":
            self.record_error(
                "streams", f"streams={options.streams!r} needs QUIC: {connection.transport.upper()} carries one stream"
            )

    def __repr__(self) -> str:
        instead = " instead of QUIC" if self._connection.report.fallback_reason else ""
        return f"<AsyncSession {self.client_id!r} at {self.url}: {self._state}, over {self.transport.upper()}{instead}>"

    # Opening

    @classmethod
    async def open(cls, target: Any, **options: Any) -> AsyncSession:
        """Connect to a broker and return the session when it has accepted.

        Parameters
        ----------
        target : str or broker
            ``quic://host[:14567]``, ``mqtts://host[:8883]``, ``mqtt://host[:1883]``; without a scheme it is QUIC. Or a
            broker that ``start_broker`` returned, or a ``BrokerServer``: its certificate authority is then trusted, for
            this session only.
        **options
            See :class:`SessionOptions`.

        Raises
        ------
        UsageError, UnknownOptionError
            An option cannot be used; nothing was sent.
        UnreachableError, ConnectTimeoutError, CertificateError, AlpnError, HandshakeError
            No connection came about (see :func:`mqttquic_lab.net.open.open_connection`).
        ConnectRefusedError
            The broker answered CONNECT with a failure.
        ConnectError
            The connection ended before CONNACK, or what came was no MQTT.
        """
        settings = SessionOptions.from_keywords("connect", options)
        return await cls.open_with(resolve_target(target, settings), settings)

    @classmethod
    async def open_with(
        cls, target: Target, options: SessionOptions, *, report: HandshakeReport | None = None
    ) -> AsyncSession:
        """Do what :meth:`open` does, with arguments already checked and a `report` that is filled in any case."""

        async def attempt(way: Target, settings: SessionOptions, reason: str | None) -> AsyncSession:
            first = checked_connect(settings, way, settings.publish_early)
            deadline = deadline_of(settings)
            facts = HandshakeReport(url=way.address.url, fallback_reason=reason) if report is None else report
            connection = await open_transport(way, settings, facts, first=first)
            return await cls._begin(connection, options, first, way.address.url, deadline, target)

        return await first_that_works(target, options, attempt)

    @classmethod
    async def over(cls, connection: Connection, **options: Any) -> AsyncSession:
        """Start a session on a connection that is established already; it is the session's from now on.

        Parameters
        ----------
        connection : Connection
            Any transport.
        **options
            See :class:`SessionOptions`; those about the connection have no effect.
        """
        settings = SessionOptions.from_keywords("over", options)
        if settings.publish_early:
            raise UsageError("publish_early is for a connection that is yet to be opened: publish when connected")
        return await cls._begin(connection, settings, checked_connect(settings), "", deadline_of(settings))

    @classmethod
    async def _begin(
        cls,
        connection: Connection,
        options: SessionOptions,
        first: FirstFlight,
        url: str,
        deadline: float | None,
        target: Target | None = None,
    ) -> AsyncSession:
        try:
            session = cls(connection, options, url)
        except BaseException:
            connection.abort("the session could not be made")
            raise
        session._reconnector.target = target
        session._early = EarlyPublished(first.messages, session._publisher, connection)
        await session._connecting.run(first, deadline)
        return session

    def _on_connack(self, packet: ConnAck) -> None:
        told: Mapping[str, Any] = packet.properties
        self.client_id = told.get("assigned_client_identifier") or self.client_id
        refusal = self._connecting.answered(packet, self.client_id)
        if refusal is not None:
            self._record("broker", refusal)
            self._channel.finish(refusal)
            return
        self.limits = ServerLimits.from_connack(packet, self.options)
        self._channel.limit = self.limits.maximum_packet_size
        self._publisher.limits = self._subscriber.limits = self.limits
        self._receiver.name = self.client_id
        self._channel.start_keepalive(self.limits.keepalive)
        self._state = "connected"
        self._connected_at = dt.datetime.now(dt.UTC)
        self.handshake.state = "connected"
        reason = self._connection.report.fallback_reason
        if reason:
            self._note("fallback", reason)
            self.record_error("fallback", f"{self.transport.upper()} is used instead of QUIC: {reason}")
        if self.has_been_connected:
            self._resume(bool(packet.session_present))
        else:
            # No earlier connection of this session object: a QoS 2 exchange that the broker resumes is new to us.
            self._deliveries.begin(self.limits.receive_maximum)
            self._note("connected", self.url)
        self.has_been_connected = True
        self._connecting.accepted()

    # Changing connections

    async def reconnect(self, url: Any = None, *, timeout: float | str | None = 10.0) -> None:
        """Connect anew and go on with the session: one that was lost or closed, or that is to change its transport.

        Feeds go on where they were, and messages at QoS 1 and 2 that the broker has not acknowledged are sent again.
        :mod:`mqttquic_lab.session.reconnecting` says what holds if the broker no longer has the session: it keeps it as
        long as ``session_expiry_interval`` asks for. Subscriptions and messages of data streams are not carried over.
        Verbs that are called meanwhile wait.

        Parameters
        ----------
        url : str or broker, optional
            Where to, over any transport; the last place by default, with its ``fallback``. A URL of the same host
            inherits user name and password (unless it is plain TCP), and the certificate authority of a broker of ours.
        timeout : float, str or None
            Seconds until CONNACK must have arrived, and the answers to what had to be subscribed anew.

        Raises
        ------
        UsageError
            An argument cannot be used, or the session is reconnecting already.
        UnreachableError, ConnectTimeoutError, CertificateError, AlpnError, HandshakeError
            No connection came about. A session that was connected still is.
        ConnectRefusedError, ConnectError
            The broker did not take the session; it is closed then.
        OperationTimeoutError
            The session is connected, but not all of its subscriptions were answered in time.
        DisconnectedError
            It was closed meanwhile.
        """
        await self._reconnector.reconnect(url, check_timeout(timeout))

    async def carry_on(
        self, connection: Connection, options: SessionOptions, first: FirstFlight, url: str, deadline: float | None
    ) -> None:
        """Go on over `connection`; the old one is left open until the broker, which takes the session over, answers."""
        old = self._channel
        old.retire()
        self._deliveries.suspend()
        self._streams.lost()
        self._ready.clear()
        self._ended.clear()
        self._state = "connecting"
        self._connection, self.trace, self.url = connection, connection.trace, url
        self._channel = self._make_channel(connection)
        self._connecting = Connecting(self._channel, options, url)
        self._publisher.move(self._channel)
        self._receiver.restart(self._channel.stream.id)
        self._open_streams()
        try:
            await self._connecting.run(first, deadline)
        finally:
            old.release()
        await self._subscriber.wait_renewed(deadline)

    def _resume(self, kept: bool) -> None:
        self._stats.reconnects += 1
        filters = self._subscriber.resume(self._channel, kept)
        packets = self._resender.resume(self._channel, self.limits.receive_maximum, kept)
        self._ready.set()
        if kept:
            self._note("resumed", f"the broker has kept the session; {packets} packets sent again")
        else:
            self._note("renewed", f"the broker had no session: {filters} filters, {packets} messages told anew")

    async def _usable(self, what: str, timeout: float | None) -> None:
        """Wait while the session changes connections; raises DisconnectedError unless it is connected then."""
        try:
            async with asyncio.timeout(timeout):
                await self._ready.wait()
        except TimeoutError:
            raise OperationTimeoutError(f"{what}: the session was still reconnecting after {timeout:g} s") from None
        if self._state != "connected":
            raise self._channel.gone(what)

    # What it is

    @property
    def state(self) -> Literal["connecting", "connected", "closed"]:
        """``"connecting"``, ``"connected"`` or ``"closed"``."""
        return self._state

    @property
    def handshake(self) -> HandshakeReport:
        """Everything known about how the session came about; its RTT is that of the moment."""
        if not self._channel.ended:
            return self._connection.refresh_report()
        report = self._connection.report
        if self.has_been_connected:
            # The transport has its own words for the end; what ended the session says more.
            report.state = "closed"
            report.error = str(self._channel.reason) if self._channel.reason is not None else None
        return report

    @property
    def transport(self) -> str:
        """What really carries the bytes: ``"quic"``, ``"tls"`` or ``"tcp"``."""
        return self._connection.transport

    @property
    def connection(self) -> Connection:
        """The transport connection underneath."""
        return self._connection

    @property
    def close_info(self) -> CloseInfo | None:
        """How the QUIC connection ended: code, reason and side; None while it has not, and over TLS and TCP."""
        return with_name(getattr(self._connection, "close_info", None), self._connection.report.alpn)

    @property
    def version(self) -> str:
        """``"5.0"`` or ``"3.1.1"``."""
        return "5.0" if self.options.level == 5 else "3.1.1"

    @property
    def feeds(self) -> tuple[AsyncFeed, ...]:
        """Feeds that were not unsubscribed, oldest first."""
        if not self._streams.streams:
            return tuple(self._subscriber.feeds)
        return tuple(sorted((*self._subscriber.feeds, *self._streams.feeds()), key=lambda feed: feed.number))

    @property
    def streams(self) -> tuple[StreamInfo, ...]:
        """The streams that carry the session: the control stream, data streams, the newest 64 that are over."""
        filters = tuple(f for feed in self._subscriber.feeds for f in feed.filters)
        return self._streams.listing(filters, len(self._deliveries))

    @property
    def errors(self) -> list[ErrorRecord]:
        """What went wrong, oldest first; the newest 100."""
        return list(self._errors)

    @property
    def events(self) -> list[EventRecord]:
        """Connects, losses and resumptions, oldest first; the newest 100."""
        return list(self._events)

    @property
    def connected_at(self) -> dt.datetime | None:
        """When the broker accepted the present connection, or the last one (UTC); None before the first."""
        return self._connected_at

    @property
    def unacknowledged(self) -> int:
        """Messages at QoS 1 and 2 that were sent and not acknowledged: what :meth:`reconnect` sends again."""
        return len(self._deliveries)

    @property
    def stats(self) -> SessionStats:
        """Counters; they go on counting."""
        return self._stats

    @property
    def unrouted(self) -> MessageLog:
        """The newest messages that belonged to no feed (1000 messages or 1 MiB); ``stats.unrouted`` counts all.

        A broker that resumes a session sends what it kept before anybody can subscribe anew: it lands here.
        """
        return self._receiver.unrouted

    @property
    def on_message(self) -> Callable[[Message], None] | None:
        """Called on the loop for every message received, whatever feed it belongs to; its ``value`` is None.

        It must not block. An exception lands in :attr:`errors`.
        """
        return self._on_message

    @on_message.setter
    def on_message(self, callback: Callable[[Message], None] | None) -> None:
        if callback is not None and not callable(callback):
            raise UsageError(f"on_message takes a function of one message, or None; not {callback!r}")
        self._on_message = callback
        self._receiver.watched = callback is not None

    @property
    def close_reason(self) -> LabError | None:
        """Why the session is closed; None while it is not, or if that was asked for."""
        return self._channel.reason

    # Publishing

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
        """Publish one message; at QoS 1 and 2 wait for its acknowledgement.

        Parameters
        ----------
        topic : str
            Topic name.
        payload : str, bytes, number, None, dict or list
            Text becomes UTF-8, a number its decimal text, a dict or list JSON; None is empty.
        qos : {0, 1, 2}
            At most once, at least once, exactly once.
        retain : bool
            Have the broker keep it as the topic's retained message; an empty payload removes that.
        properties : mapping, optional
            PUBLISH properties by their snake-case name (5.0 only).
        timestamp : bool
            Send the time along, as User Property ``sent_ns``, from which the receiving feed works out ``latency``
            (5.0 only).
        timeout : float, str or None
            Seconds to wait for the acknowledgement, or at QoS 0 for the transport to take more. A message that was sent
            may still be delivered after it ran out.

        Returns
        -------
        PublishResult

        Raises
        ------
        UsageError
            An argument cannot be used; nothing was sent.
        PublishError
            The broker refused it, said that it takes no such QoS or no retained messages, or the packet is larger
            than it accepts (then nothing was sent); or too many messages wait already.
        OperationTimeoutError
            No acknowledgement in time.
        DisconnectedError
            The session is closed, or ended before the acknowledgement came. In the second case :meth:`reconnect` sends
            the message again: do not publish it a second time.
        """
        if self._state != "connected":
            await self._usable("cannot publish", check_timeout(timeout))
        return await self._outlet.publish(topic, payload, qos, retain, properties, timestamp, timeout)

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
        """Publish many messages as fast as the broker takes them.

        At QoS 0 this returns when the transport has taken all; at QoS 1 and 2 when all are acknowledged.

        Parameters
        ----------
        messages : iterable or async iterable of (topic, payload)
            Taken from as needed. It runs on the session's loop and must not block.
        qos, retain, properties, timestamp
            As for :meth:`publish`, for all of them.
        timeout : float, str or None
            Seconds for which the broker may take and acknowledge nothing at all.

        Returns
        -------
        PublishSummary
            Refusals are counted in it, not raised.

        Raises
        ------
        UsageError, PublishError
            A message cannot be sent; those before it were.
        OperationTimeoutError
            No progress for `timeout` seconds.
        DisconnectedError
            The session is closed, or ended meanwhile.
        """
        seconds = check_timeout(timeout)
        if self._state != "connected":
            await self._usable("cannot publish", seconds)
        return await self._outlet.publish_many(messages, qos, retain, properties, timestamp, seconds)

    async def early_published(self, *, timeout: float | str | None = 10.0) -> list[PublishResult]:
        """Wait until the messages of ``publish_early`` are acknowledged, and return their results in order.

        Raises
        ------
        PublishError
            The broker refused one.
        OperationTimeoutError
            No acknowledgement in time.
        DisconnectedError
            The session ended before it came.
        """
        return await self._early.results(check_timeout(timeout))

    # Subscribing

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
        stream: AsyncStream | None = None,
        timeout: float | str | None = 10.0,
    ) -> AsyncFeed:
        """Subscribe, and return the feed that collects what arrives.

        The feed belongs to the session and lives until it is unsubscribed, whether or not anybody keeps it. Where two
        feeds have the same filter, the broker is asked for what satisfies both.

        Parameters
        ----------
        topic_filter : str, (str, int) or a list of these
            One or several topic filters, each with its own maximum QoS or with `qos`; ``$share/group/filter``
            literally.
        qos : {0, 1, 2}
            Largest QoS wanted.
        no_local : bool
            Leave out what this session publishes itself (5.0 only).
        retain_as_published : bool
            Keep the RETAIN flag as it was published (5.0 only).
        retain_handling : {0, 1, 2}
            Retained messages: send them, only if the subscription is new, or not at all (5.0 only).
        decode : {"text", "json", "raw"} or callable
            How ``value`` comes from the payload; lazily, when somebody looks.
        expand : bool
            Give each member of a decoded JSON object a column of its own.
        max_messages, max_bytes : int
            Bounds of the feed; the oldest messages are dropped first, and counted.
        stream : AsyncStream, optional
            Data stream of this session to subscribe on; by default the control stream.
        timeout : float, str or None
            Seconds to wait for SUBACK.

        Raises
        ------
        UsageError
            An argument cannot be used; nothing was sent.
        SubscribeError
            The broker refused at least one filter, or serves no such filters. What it granted of the same call is given
            back: either the feed gets all it was made for, or there is none.
        OperationTimeoutError
            No SUBACK in time.
        DisconnectedError
            The session is closed, or ended before the answer came.
        """
        wanted = parse_filters(topic_filter, qos, no_local, retain_as_published, retain_handling, self.options.level)
        log = MessageLog(
            session=self.client_id, decode=decode, expand=expand, max_messages=max_messages, max_bytes=max_bytes
        )
        seconds = check_timeout(timeout)
        if self._state != "connected":
            await self._usable("cannot subscribe", seconds)
        subscriber = self._subscriber if stream is None else self._own(stream).subscriber
        if stream is not None:
            self._advise("subscribe_on_data_stream")
        return await subscriber.subscribe(wanted, lambda filters: AsyncFeed(self, filters, log), seconds)

    async def unsubscribe(self, what: AsyncFeed | str | Iterable[str], *, timeout: float | str | None = 10.0) -> None:
        """End a feed, or a filter in all feeds that have it; what they received stays.

        Parameters
        ----------
        what : AsyncFeed, str or a list of str
            The feed (again is no error), or filters as they were subscribed.
        timeout : float, str or None
            Seconds to wait for UNSUBACK. The feed has ended even if none comes.

        Raises
        ------
        UsageError
            No feed has such a filter.
        SubscribeError
            The broker refused.
        OperationTimeoutError
            No UNSUBACK in time.
        """
        seconds = check_timeout(timeout)
        elsewhere = [stream.subscriber for stream in self._streams]
        if not elsewhere:
            await self._subscriber.unsubscribe(what, seconds)
            return
        everywhere = [self._subscriber, *elsewhere]
        if isinstance(what, AsyncFeed):
            for subscriber in everywhere:
                if subscriber.holds(what):
                    await subscriber.unsubscribe(what, seconds)
            return
        filters = filters_of(what)
        holders = {id(s): [f for f in filters if s.holds(f)] for s in everywhere}
        unknown = [f for f in filters if not any(f in held for held in holders.values())]
        if unknown:
            raise UsageError(f"no feed of this session is subscribed to {', '.join(unknown)}")
        for subscriber in everywhere:
            if holders[id(subscriber)]:
                await subscriber.unsubscribe(holders[id(subscriber)], seconds)

    # Streams

    async def open_stream(self, *, timeout: float | str | None = 10.0) -> AsyncStream:
        """Open a data stream, to publish and subscribe on; QUIC only.

        Parameters
        ----------
        timeout : float, str or None
            Seconds to wait for credit that the broker owes for streams that have ended (RFC 9000 section 4.6).

        Raises
        ------
        StreamLimitError
            The broker allows no more streams at a time.
        UsageError
            The transport is TCP or TLS, which carry one stream.
        OperationTimeoutError
            The credit did not come in time.
        DisconnectedError
            The session is closed.
        """
        seconds = check_timeout(timeout)
        if self._state != "connected":
            raise self._channel.gone("cannot open a stream")
        one_way = self._streams.context.is_one_way
        self._advise(self._streams.action)
        try:
            async with asyncio.timeout(seconds):
                return await self._streams.open("explicit", unidirectional=one_way)
        except TimeoutError:
            raise OperationTimeoutError(
                f"no stream became free within {seconds:g} s: {self._streams.limit_reached(unidirectional=one_way)}"
            ) from None

    async def unsubscribe_on(
        self, stream: AsyncStream, what: AsyncFeed | str | Iterable[str], timeout: float | None
    ) -> tuple[int, ...]:
        """Send UNSUBSCRIBE on a stream, whichever one subscribed. See :meth:`AsyncStream.unsubscribe`."""
        subscriber = self._own(stream).subscriber
        filters = what.filters if isinstance(what, AsyncFeed) else filters_of(what)
        here = subscriber.holds(what) if isinstance(what, AsyncFeed) else all(subscriber.holds(f) for f in filters)
        if here:
            return await subscriber.unsubscribe(what, timeout)
        self._advise("unsubscribe_on_other_stream")
        codes = await subscriber.ask_to_unsubscribe(filters, timeout)
        ended = [f for f, code in zip(filters, codes, strict=False) if code == 0]
        for other in (self._subscriber, *(stream.subscriber for stream in self._streams)):
            if ended:
                other.dropped(ended)
        return codes

    def _own(self, stream: AsyncStream) -> AsyncStream:
        if not isinstance(stream, AsyncStream):
            raise UsageError(f"stream={stream!r}: pass what open_stream() of this session returned")
        if stream.session is not self:
            raise UsageError(f"stream {stream.id} belongs to another session: open one of this one")
        if stream.channel.ended:
            raise stream.channel.gone("cannot subscribe or unsubscribe")
        if stream.unidirectional:
            raise UsageError(f"stream {stream.id} is unidirectional, no answer can come on it: use the session's verb")
        return stream

    def _advise(self, action: Action) -> None:
        """Warn if this broker is known to refuse `action`."""
        refusal = self.profile.refusal(action)
        if refusal is not None:
            warn_of(refusal)

    # Keeping and ending

    async def ping(self, *, timeout: float | str | None = 10.0) -> float:
        """Send PINGREQ and return the seconds until the answer (MQTT 5.0 section 3.12).

        Raises
        ------
        OperationTimeoutError
            No answer in time.
        DisconnectedError
            The session is closed, or ended meanwhile.
        """
        seconds = check_timeout(timeout)
        if self._state != "connected":
            await self._usable("cannot ping", seconds)
        return await self._channel.ping(seconds)

    async def update_keys(self, *, timeout: float | str | None = 5.0) -> int:
        """Update the keys that protect the packets (QUIC only, RFC 9001 section 6) and return the key phase, 0 or 1.

        ``handshake.key_phase`` and ``handshake.key_updates`` tell about it as well.

        Raises
        ------
        UsageError
            Not a session over QUIC.
        OperationTimeoutError
            The broker acknowledged nothing under the new keys in time.
        DisconnectedError
            The session is closed, or ended meanwhile.
        """
        seconds = check_timeout(timeout)
        if self._state != "connected":
            await self._usable("cannot update keys", seconds)
        return await self._connection.update_keys(seconds)

    async def migrate(
        self, local: tuple[str, int] | str | None = None, *, force: bool = False, timeout: float | str | None = 5.0
    ) -> MigrationResult:
        """Go on from another local address, with everything as it is (QUIC only, RFC 9000 section 9).

        The new path is validated while the session goes on along the old one; nothing waits unless that is dead.

        Parameters
        ----------
        local : (str, int), str or None
            IP address of this machine, with a port or without; None for the one that routing chooses now.
        force : bool
            Also when the server asks its clients not to migrate.
        timeout : float, str or None
            Seconds for all of it.

        Raises
        ------
        MigrationError
            It did not come about, and the session goes on where it was; ``problem`` says why.
        UsageError
            Not a session over QUIC, or `local` is no address of this machine.
        DisconnectedError
            The session is closed, or ended meanwhile.
        """
        seconds = check_timeout(timeout)
        if self._state != "connected":
            await self._usable("cannot migrate", seconds)
        return self._moved(await self._connection.migrate(local, force=force, timeout=seconds))

    async def rebind(self, *, timeout: float | str | None = 5.0) -> MigrationResult:
        """Go on from another port, as if a NAT on the way had forgotten the session (QUIC only).

        Raises
        ------
        MigrationError
            Nothing came back to the new port within `timeout` seconds; the session has its old one again.
        UsageError
            Not a session over QUIC.
        DisconnectedError
            The session is closed, or ended meanwhile.
        """
        seconds = check_timeout(timeout)
        if self._state != "connected":
            await self._usable("cannot rebind", seconds)
        return self._moved(await self._connection.rebind(timeout=seconds))

    def _moved(self, result: MigrationResult) -> MigrationResult:
        self._note("moved", result.sentence())
        return result

    async def disconnect(self, reason_code: int = 0, *, timeout: float | str | None = 5.0) -> None:
        """Say DISCONNECT and close the connection in order; again is no error.

        Parameters
        ----------
        reason_code : int
            0 is a normal end; 0x04 has the broker publish the will (MQTT 5.0 section 3.14.2.1). MQTT 3.1.1 has no
            reason: there, anything but 0 closes without DISCONNECT, and the will is published as well.
        timeout : float, str or None
            Seconds for what was written to leave; then the connection is cut.

        Raises
        ------
        UsageError
            Not a reason code of DISCONNECT.
        """
        seconds = check_timeout(timeout)
        self._reconnector.give_up()
        self._channel.say_goodbye(reason_code)
        self._channel.finish(None, 0)
        try:
            async with asyncio.timeout(seconds):
                await self._channel.wait_closed()
        except TimeoutError:
            self._connection.abort("closing took too long")

    async def close(self, *, timeout: float | str | None = 5.0) -> None:
        """Do :meth:`disconnect` with a normal end."""
        await self.disconnect(timeout=timeout)

    async def wait_closed(self, *, timeout: float | str | None = None) -> LabError | None:
        """Wait until the session has ended for whatever reason, and return that (None: it was asked for).

        Raises
        ------
        OperationTimeoutError
            It goes on after `timeout` seconds.
        """
        seconds = check_timeout(timeout, zero=True)
        try:
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        except TimeoutError:
            raise OperationTimeoutError(f"the session is still open after {seconds:g} s") from None
        return self._channel.reason

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # What arrives

    def notify(self, feed: AsyncFeed) -> None:
        """Wake `feed` after packets have arrived, as long as it has somebody waiting."""
        self._notify.add(feed)

    def _on_packets(self, packets: list[Packet]) -> None:
        now = time_ns()
        channel, receiver, replies = self._channel, self._receiver, self._replies
        try:
            for packet in packets:
                if type(packet) is Publish and channel.state == ConnectionState.CONNECTED:
                    receiver.publish(packet, now, replies)
                elif channel.ended:
                    break  # what follows DISCONNECT or a refusal
                else:
                    channel.check_received(packet)
                    if type(packet) is Publish:
                        receiver.publish(packet, now, replies)
                    else:
                        self._handlers[packet.TYPE](packet)
        finally:
            if replies:
                if not channel.ended:
                    channel.write(b"".join(replies), len(replies))
                replies.clear()
            self._wake_feeds()

    def _wake_feeds(self) -> None:
        if self._notify:
            self._notify = {feed for feed in self._notify if feed.wake()}

    def _on_acknowledgement(self, packet: Any) -> None:
        self._publisher.acknowledge(packet)

    def _on_pubrel(self, packet: Any) -> None:
        self._replies.append(self._deliveries.release(packet).encode(self.options.level))

    def _on_answer(self, packet: Any) -> None:
        self._subscriber.answered(packet)

    def _on_disconnect(self, packet: Disconnect) -> None:
        error = farewell(packet)
        self._record("broker", error)
        self._channel.finish(error)

    def _tell(self, message: Message) -> None:
        try:
            if self._on_message is not None:
                self._on_message(message)
        except Exception as error:  # noqa: BLE001 - the user's: one bad callback must not end the session
            self.record_error("on_message", f"{type(error).__name__}: {error}")

    # What goes wrong

    def record_error(self, where: str, message: str) -> None:
        """Add to :attr:`errors`."""
        self._errors = (*self._errors[-MAX_ERRORS + 1 :], ErrorRecord.now(where, message))
        self._stats.errors += 1

    def _record(self, where: str, error: LabError) -> None:
        self.record_error(where, str(error))

    def _note(self, what: EventName, detail: str) -> None:
        self._events = (*self._events[-MAX_EVENTS + 1 :], EventRecord(time(), what, self.transport, detail))

    def _on_end(self, reason: LabError | None) -> None:
        if self._state == "connected":
            self._note("closed" if reason is None else "lost", str(reason) if reason is not None else "asked for here")
        self._state = "closed"
        self._connecting.ended(reason)
        self._streams.lost()
        self._resender.suspend(self._channel.gone)
        self._subscriber.lost()
        self._ready.set()
        self._notify.clear()
        self._ended.set()
