"""The session: MQTT's verbs on one connection, whatever carries it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Unpack

from mqttquic_lab.errors import OperationTimeoutError, UsageError
from mqttquic_lab.net.stream import DEFAULT_URGENCY, check_urgency
from mqttquic_lab.records.handshake import HandshakeReport
from mqttquic_lab.records.log import MessageLog
from mqttquic_lab.session.connecting import checked_connect, deadline_of, open_transport
from mqttquic_lab.session.fallback import first_that_works
from mqttquic_lab.session.feed import AsyncFeed
from mqttquic_lab.session.flow_spec import FlowOptions
from mqttquic_lab.session.lifecycle import SessionLifecycle
from mqttquic_lab.session.offline import QUEUED, OfflineMessage
from mqttquic_lab.session.options import SessionOptions, check_timeout
from mqttquic_lab.session.payload import encode_payload
from mqttquic_lab.session.stream import AsyncStream
from mqttquic_lab.session.subscribing import parse_filters
from mqttquic_lab.session.target import Target, resolve_target
from mqttquic_lab.session.unsubscribing import unsubscribe_everywhere, unsubscribe_here

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Mapping

    from mqttquic_lab.net.stream import Connection
    from mqttquic_lab.records.decode import Decode
    from mqttquic_lab.records.message import Message
    from mqttquic_lab.records.migration import MigrationResult
    from mqttquic_lab.session.flow_spec import FlowKeywords
    from mqttquic_lab.session.results import PublishResult, PublishSummary
    from mqttquic_lab.session.subscribing import Subscriber


class AsyncSession(SessionLifecycle):
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
        datagram: bool | None = None,
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
        datagram : bool, optional
            True sends it in a DATAGRAM frame (QUIC and QoS 0 only, RFC 9221): if that is lost, so is the message, and
            nothing waits for it. False never does. Default: True with ``connect(datagrams=True)`` where it fits.
        timeout : float, str or None
            Seconds to wait for the acknowledgement, or at QoS 0 for the transport to take more. A message that was sent
            may still be delivered after it ran out.

        Returns
        -------
        PublishResult
            With ``queued=True``, at once and at any QoS, if the session is reconnecting: the message waits in the
            queue that the option ``offline_queue`` bounds; :meth:`flush` waits until it is sent. What has to go in
            a datagram is not queued, and waits for the connection.

        Raises
        ------
        UsageError
            An argument cannot be used, or with ``datagram=True`` the message cannot go in a datagram: the text says how
            many bytes could. Nothing was sent.
        PublishError
            The broker refused it, said that it takes no such QoS or no retained messages, or the packet is larger
            than it accepts (then nothing was sent); or too many messages wait already.
        OperationTimeoutError
            No acknowledgement in time. A connection that is lost meanwhile does not end the waiting: the message is
            sent again on the next one.
        DisconnectedError
            The session is closed, or ended before the acknowledgement came. In the second case :meth:`reconnect` sends
            the message again: do not publish it a second time.
        """
        if self._state != "connected" or self._offline:
            if self._keeps_messages and not datagram:
                data = payload if type(payload) is bytes else encode_payload(payload)
                self._publisher.check_topic(topic)
                checked = self._publisher.check(qos, retain, properties, timestamp)
                self._offline.put(OfflineMessage.now(topic, data, qos, retain, checked))
                return QUEUED
            await self._usable("cannot publish", check_timeout(timeout))
        if (datagram is not None or self._datagrams.preferred) and self._datagrams.wanted(datagram, qos):
            sent = await self._datagrams.publish(
                topic, payload, retain, properties, timestamp, timeout, insist=bool(datagram)
            )
            if sent is not None:
                return sent
        return await self._outlet.publish(topic, payload, qos, retain, properties, timestamp, timeout)

    async def publish_many(
        self,
        messages: Iterable[tuple[str, Any]] | AsyncIterable[tuple[str, Any]],
        qos: int = 0,
        retain: bool = False,
        properties: Mapping[str, Any] | None = None,
        *,
        timestamp: bool = False,
        datagram: bool | None = None,
        timeout: float | str | None = 30.0,
    ) -> PublishSummary:
        """Publish many messages as fast as the broker takes them.

        At QoS 0 this returns when the transport has taken all; at QoS 1 and 2 when all are acknowledged.

        Parameters
        ----------
        messages : iterable or async iterable of (topic, payload)
            Taken from as needed. It runs on the session's loop and must not block.
        qos, retain, properties, timestamp, datagram
            As for :meth:`publish`, for all of them. Datagrams leave as fast as congestion control lets them.
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
        if (datagram is not None or self._datagrams.preferred) and self._datagrams.wanted(datagram, qos):
            return await self._datagrams.publish_many(
                messages, retain, properties, timestamp, seconds, insist=bool(datagram), otherwise=self._outlet
            )
        return await self._outlet.publish_many(messages, qos, retain, properties, timestamp, seconds)

    async def flush(self, *, timeout: float | str | None = 30.0) -> None:
        """Wait until every message that was published without a connection is sent, and acknowledged at QoS 1 and 2.

        Messages that the broker refused then, or that could not be sent, are in :attr:`errors` and counted in
        ``stats.queued_dropped``.

        Raises
        ------
        OperationTimeoutError
            Some still wait after `timeout` seconds.
        DisconnectedError
            The session was closed before.
        """
        seconds = check_timeout(timeout)
        dropped = self._stats.queued_dropped
        try:
            async with asyncio.timeout(seconds):
                await self._offline.wait_done()
        except TimeoutError:
            raise OperationTimeoutError(
                f"of the messages published without a connection {self._offline.outstanding} are still not sent or not "
                f"acknowledged after {seconds:g} s; the session is {self._state}"
            ) from None
        if self._state == "closed" and self._stats.queued_dropped > dropped:
            raise self._channel.gone("not all messages were sent")

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
        await unsubscribe_everywhere(self._subscribers(), what, seconds)

    # Requests and responses

    async def request(
        self,
        topic: str,
        payload: Any = None,
        qos: int = 1,
        properties: Mapping[str, Any] | None = None,
        *,
        timeout: float | str | None = 10.0,
    ) -> Message:
        """Publish a request and return the response (5.0 only, MQTT 5.0 section 4.10).

        Responses come to a topic of this session's own, subscribed at the first request; a broker that was asked for
        Response Information (``properties={"request_response_information": 1}`` of ``connect``) says where that is.

        Parameters
        ----------
        topic, payload, qos, properties
            As for :meth:`publish`. Response Topic and Correlation Data are added.
        timeout : float, str or None
            Seconds for all of it.

        Raises
        ------
        UsageError
            An argument cannot be used.
        PublishError
            The broker refused the request, or said that nobody is subscribed to its topic; or too many wait already.
        OperationTimeoutError
            No response in time.
        DisconnectedError
            The session is closed, or ended meanwhile.
        """
        return await self._requester.request(topic, payload, qos, properties, check_timeout(timeout))

    async def respond(
        self,
        topic_filter: str,
        handler: Callable[[Message], Any],
        qos: int = 1,
        *,
        decode: Decode = "text",
        timeout: float | str | None = 10.0,
    ) -> AsyncFeed:
        """Answer the requests on a topic filter, until the feed returned is unsubscribed (5.0 only).

        Parameters
        ----------
        topic_filter, qos, decode, timeout
            As for :meth:`subscribe`.
        handler : callable
            Called with each request, one after the other; what it returns, or what comes of awaiting that, is
            published to the request's Response Topic. What it raises goes to :attr:`errors`, and that request gets no
            response.

        Returns
        -------
        AsyncFeed
            The requests.

        Raises
        ------
        UsageError, SubscribeError, OperationTimeoutError, DisconnectedError
            As for :meth:`subscribe`.
        """
        return await self._requester.respond(topic_filter, handler, qos, decode, check_timeout(timeout))

    # Streams

    async def open_stream(
        self,
        *,
        priority: int = DEFAULT_URGENCY,
        timeout: float | str | None = 10.0,
        **flow: Unpack[FlowKeywords],
    ) -> AsyncStream:
        """Open a data stream, to publish and subscribe on; QUIC only.

        With ``streams="flows"`` it carries a flow (MQoQ draft chapter 9), a new one unless `flow_id` names one, and
        takes the keywords of :class:`mqttquic_lab.session.flow_spec.FlowOptions`; ``stream.flow`` tells about it.

        Parameters
        ----------
        priority : int
            0 to 7, the urgency of what this session sends on it among all its streams (RFC 9218 section 4.1): data of
            the smallest leaves first, streams of the same take turns, and the control stream and every other have 3. It
            is the order in which this side sends, and nothing of it goes over the wire: the broker orders its
            deliveries as it likes. Streams that waited for 32 packets get the next one, however urgent the others are.
        timeout : float, str or None
            Seconds to wait for credit that the broker owes for streams that have ended (RFC 9000 section 4.6).

        Raises
        ------
        StreamLimitError
            The broker allows no more streams at a time.
        UsageError
            The transport is TCP or TLS, which carry one stream; `priority` is not such a number; or a keyword of flows
            that does not fit, or was given without flows.
        OperationTimeoutError
            The credit did not come in time.
        DisconnectedError
            The session is closed.
        """
        seconds = check_timeout(timeout)
        check_urgency(priority)
        wanted = FlowOptions.from_keywords(flow)
        if self._state != "connected":
            await self._usable("cannot open a stream", seconds)
        if self.mapping != "flows":
            self._advise(self._streams.action)
        try:
            async with asyncio.timeout(seconds):
                stream = await self._streams.open_explicit(wanted)
        except TimeoutError:
            one_way = self._streams.context.is_one_way or bool(wanted.unidirectional)
            raise OperationTimeoutError(
                f"no stream became free within {seconds:g} s: {self._streams.limit_reached(unidirectional=one_way)}"
            ) from None
        if priority != DEFAULT_URGENCY:
            stream.channel.stream.prioritize(priority)
        return stream

    async def unsubscribe_on(
        self, stream: AsyncStream, what: AsyncFeed | str | Iterable[str], timeout: float | None
    ) -> tuple[int, ...]:
        """Send UNSUBSCRIBE on a stream, whichever one subscribed. See :meth:`AsyncStream.unsubscribe`."""
        subscriber = self._own(stream).subscriber
        return await unsubscribe_here(
            subscriber, self._subscribers, what, timeout, lambda: self._advise("unsubscribe_on_other_stream")
        )

    def _subscribers(self) -> list[Subscriber]:
        return [self._subscriber, *self._streams.subscribers]

    def _own(self, stream: AsyncStream) -> AsyncStream:
        if not isinstance(stream, AsyncStream):
            raise UsageError(f"stream={stream!r}: pass what open_stream() of this session returned")
        if stream.session is not self:
            raise UsageError(f"stream {stream.id} belongs to another session: open one of this one")
        if stream.channel.ended:
            raise stream.channel.gone("cannot subscribe or unsubscribe")
        if stream.unidirectional and not stream.answers_elsewhere:
            raise UsageError(f"stream {stream.id} is unidirectional, no answer can come on it: use the session's verb")
        return stream

    # The connection

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
