"""The life of a session: from CONNECT over changes of its connection to the end, and the parts that live that long."""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import TYPE_CHECKING, Any, Self, cast

from mqttquic_lab.errors import (
    AuthenticationError,
    ConnectError,
    LabError,
    OperationTimeoutError,
    StreamMappingWarning,
    UsageError,
)
from mqttquic_lab.mqtt import MAX_PACKET_SIZE, Deliveries
from mqttquic_lab.mqtt.profiles import profile_named
from mqttquic_lab.session.advice import warn_of
from mqttquic_lab.session.aliases import TopicAliases
from mqttquic_lab.session.channel import PacketChannel
from mqttquic_lab.session.close_codes import explained
from mqttquic_lab.session.connecting import Connecting
from mqttquic_lab.session.datagrams import SessionDatagrams
from mqttquic_lab.session.early import EarlyPublished
from mqttquic_lab.session.ending import farewell
from mqttquic_lab.session.facts import SessionFacts
from mqttquic_lab.session.flow_book import SessionFlows
from mqttquic_lab.session.flow_spec import FLOW_ALPN
from mqttquic_lab.session.flow_streams import FlowStreams
from mqttquic_lab.session.happenings import Happenings
from mqttquic_lab.session.incoming import Incoming
from mqttquic_lab.session.limits import ServerLimits
from mqttquic_lab.session.mapping import MappedPublisher
from mqttquic_lab.session.offline import OfflineQueue
from mqttquic_lab.session.options import SessionOptions, check_timeout
from mqttquic_lab.session.publishing import Publisher
from mqttquic_lab.session.receiving import Receiver
from mqttquic_lab.session.reconnecting import Reconnector
from mqttquic_lab.session.requesting import Requester
from mqttquic_lab.session.resending import Resender
from mqttquic_lab.session.results import SessionStats
from mqttquic_lab.session.routing import Router
from mqttquic_lab.session.streams import StreamContext, Streams
from mqttquic_lab.session.subscribing import Subscriber

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from mqttquic_lab.mqtt import Auth, ConnAck, Disconnect
    from mqttquic_lab.mqtt.authentication import ClientMethod
    from mqttquic_lab.mqtt.profiles import Action
    from mqttquic_lab.net.stream import Connection
    from mqttquic_lab.records.message import Message
    from mqttquic_lab.session.client import AsyncSession
    from mqttquic_lab.session.early import FirstFlight
    from mqttquic_lab.session.feed import AsyncFeed
    from mqttquic_lab.session.results import EventName
    from mqttquic_lab.session.target import Target


class SessionLifecycle(SessionFacts):
    """What an :class:`AsyncSession` is made of, and what becomes of it: connected, carried on elsewhere, ended."""

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
        self._happenings = Happenings(self._stats)
        self._connected_at = None
        self._accepted_at = 0.0
        self._close_reason = None
        self._state = "connecting"
        self._ended = asyncio.Event()
        self._router = Router()
        self._deliveries = Deliveries(options.receive_maximum or 65_535, version=options.level)
        self._channel = self._make_channel(connection)
        self._connecting = Connecting(self._channel, options, self.url)
        self._reconnector = Reconnector(self)
        self._requester = Requester(cast("AsyncSession", self))
        self._offline = OfflineQueue(options.offline_queue, self._stats, self._happenings)
        self._early: EarlyPublished
        self._on_message = None
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
        self._incoming = Incoming(
            self._channel,
            self._receiver,
            self._deliveries,
            self._publisher,
            self._subscriber,
            options.level,
            on_connack=self._on_connack,
            on_disconnect=self._on_disconnect,
            on_auth=self._on_auth,
        )
        self._ready = self._subscriber.ready = self._publisher.ready  # not set while the session changes connections
        self._subscriber.on_refused = lambda error: self._happenings.record("broker", error)
        self._datagrams = SessionDatagrams(
            options, self.profile, self._stats, self._publisher, self._receiver,
            wake=self._incoming.wake_feeds, record=self._happenings.record,
        )  # fmt: skip
        self._datagrams.move(self._channel)
        self._outlet: Publisher | MappedPublisher
        self._flows = None
        self._open_streams()

    def _make_channel(self, connection: Connection) -> PacketChannel:
        return PacketChannel(
            connection,
            self.options.level,
            self._stats,
            max_packet_size=self.options.maximum_packet_size or MAX_PACKET_SIZE,
            on_packets=lambda packets: self._incoming.on_packets(packets),  # the first channel is there before it
            on_error=self._happenings.record,
            on_end=self._on_end,
        )

    def _open_streams(self) -> None:
        """Make ready for data streams of the present connection."""
        options, connection = self.options, self._connection
        carried = self._streams.carried if self.has_been_connected else ()
        context = StreamContext(
            session=cast("AsyncSession", self),  # the only class that is ever made of this one
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
            record=self._happenings.record,
            wake=self._incoming.wake_feeds,
            limits=lambda: self.limits,
            publisher=self._publisher,
            subscriber=self._subscriber,
            usable=self._usable,
            outlet=lambda: self._outlet,
        )
        self._mapping = self._mapping_of(connection)
        if self._mapping == "flows":
            if self._flows is None:
                self._flows = SessionFlows(context, lambda: self.limits.receive_maximum)
            streams = FlowStreams(context, self._flows, carried, lambda detail: self._note("flow", detail))
            self._channel.explain = lambda error: explained(error, self._connection)
            self._streams = streams
            self._receiver.look_up_in(streams.every_router if context.is_one_way else self._router)
        else:
            self._streams = Streams(context, carried)
            self._receiver.look_up_in(self._router)
        self._outlet = self._publisher
        if self._mapping != "single":
            if not self.has_been_connected and options.streams != "flows":
                self._advise(self._streams.action)
            self._outlet = MappedPublisher(
                self._streams,
                self._publisher,
                per_publish=self._mapping == "per-publish",
                bound=options.topic_streams,
            )
        elif options.streams not in ("single", "flows"):
            self.record_error(
                "streams", f"streams={options.streams!r} needs QUIC: {connection.transport.upper()} carries one stream"
            )

    def _mapping_of(self, connection: Connection) -> str:
        """Return how streams are used on a connection, which may not be what was asked for."""
        wanted = self.options.streams
        if connection.transport != "quic":
            return "single"
        if wanted != "flows" or connection.report.alpn == FLOW_ALPN:
            return wanted
        action: Action = "unidirectional_stream" if self.profile.bidirectional != "data" else "data_stream"
        return "single" if self.profile.refusal(action) else "per-topic"

    def _tell_mapping(self) -> None:
        """Say it if there are no flows though they were asked for."""
        if self.options.streams != "flows" or self._mapping == "flows":
            return
        connection = self._connection
        if connection.transport == "quic":
            why = f"the broker chose the protocol {connection.report.alpn or 'mqtt'!r}, which has no flow headers"
        else:
            why = f"{connection.transport.upper()} carries one stream"
        instead = "one stream" if self._mapping == "single" else "plain data streams, one per topic"
        text = f'streams="flows" is not to be had, since {why}: the session uses {instead}, and nothing is recovered'
        self._note("mapping", text)
        self.record_error("streams", text)
        if not self._reconnector.is_retrying:  # else nobody has called
            warn_of(text, StreamMappingWarning)

    # Connecting

    @classmethod
    async def _begin(
        cls,
        connection: Connection,
        options: SessionOptions,
        first: FirstFlight,
        url: str,
        deadline: float | None,
        target: Target | None = None,
    ) -> Self:
        try:
            session = cls(connection, options, url)
            if options.early_data and session.profile.name != "generic":  # of one nobody knows it is not known either
                session._advise("early_data")
            if options.datagrams and connection.transport == "quic":
                session._advise("datagram")
        except BaseException:  # a warning as well, where somebody makes errors of them
            connection.abort("the session could not be made")
            raise
        session._reconnector.target = target
        session._early = EarlyPublished(first.messages, session._publisher, connection)
        session._streams.begin()
        try:
            await session._connecting.run(first, deadline)
        except ConnectError as error:
            if session._mapping == "flows" and session.profile.name == "generic" and error.reason_code is None:
                error.add_note(
                    'If that broker is mqttv5, which takes no header on the control stream: profile="mqttv5".'
                )
            raise
        try:
            session._tell_mapping()
        except StreamMappingWarning:  # somebody has made an error of it
            await session.close()
            raise
        return session

    def _on_connack(self, packet: ConnAck) -> None:
        told: Mapping[str, Any] = packet.properties
        self.client_id = told.get("assigned_client_identifier") or self.client_id
        try:
            refusal = self._connecting.answered(packet, self.client_id)
        except AuthenticationError as error:
            self._channel.fail("authentication", error)
            return
        if refusal is not None:
            self._happenings.record("broker", refusal)
            self._channel.finish(refusal)
            return
        self.limits = ServerLimits.from_connack(packet, self.options)
        self._channel.limit = self.limits.maximum_packet_size
        self._publisher.limits = self._subscriber.limits = self.limits
        if self.options.alias_topics and self.limits.topic_alias_maximum:
            self._publisher.aliases = TopicAliases(self.limits.topic_alias_maximum)
        self._receiver.name = self.client_id
        self._channel.start_keepalive(self.limits.keepalive)
        self._state = "connected"
        self._connected_at = dt.datetime.now(dt.UTC)
        self._accepted_at = asyncio.get_running_loop().time()
        self.handshake.state = "connected"
        no_datagrams = self._datagrams.accepted()
        if no_datagrams is not None:
            self.record_error("datagrams", f"datagrams=True: {no_datagrams}, so all messages go on streams")
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
            self._streams.admitted(bool(packet.session_present))
        self.has_been_connected = True
        self._connecting.accepted()

    def _on_auth(self, packet: Auth) -> None:
        authenticator = self._connecting.authenticator
        assert authenticator is not None  # without it the state table allows none
        authenticator.received(packet, self._channel)

    async def reauthenticate(self, auth: ClientMethod | None = None, *, timeout: float | str | None = 10.0) -> None:
        """Authenticate again on the live connection (MQTT 5.0 section 4.12.1); messages go on meanwhile.

        Parameters
        ----------
        auth : object, optional
            A method of the same name with other credentials; the session's own by default.
        timeout : float, str or None
            Seconds until the broker must have accepted.

        Raises
        ------
        UsageError
            The session was opened without ``auth=``, or another method is named, or it is under way already.
        AuthenticationError
            The broker did not show that it is the one meant; the session is closed.
        DisconnectedError
            The broker refused, and has closed the session.
        OperationTimeoutError
            It did not answer in time.
        """
        seconds = check_timeout(timeout)
        if self._state != "connected":
            await self._usable("cannot authenticate", seconds)
        authenticator = self._connecting.authenticator
        if authenticator is None:
            raise UsageError("this session was opened without auth=, so it cannot authenticate again [MQTT-4.12.0-7]")
        await authenticator.again(self._channel, auth, seconds)

    # Changing connections

    async def reconnect(self, url: Any = None, *, timeout: float | str | None = 10.0) -> None:
        """Connect anew and go on with the session: one that was lost or closed, or that is to change its transport.

        Feeds go on where they were, and messages at QoS 1 and 2 that the broker has not acknowledged are sent again.
        :mod:`mqttquic_lab.session.reconnecting` says what holds if the broker no longer has the session: it keeps it as
        long as ``session_expiry_interval`` asks for. Data streams that were opened explicitly go on on fresh ones, with
        their subscriptions, but without what was not acknowledged on them. Verbs that are called meanwhile wait.

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
        self._suspend()
        self._ended.clear()
        self._close_reason = None
        self._state = "connecting"
        self._connection, self.trace, self.url = connection, connection.trace, url
        self._channel = self._incoming.channel = self._make_channel(connection)
        self._connecting = Connecting(self._channel, options, url)
        self._publisher.move(self._channel)
        self._receiver.restart(self._channel.stream.id)
        self._datagrams.move(self._channel)
        self._open_streams()
        self._streams.begin()
        try:
            await self._connecting.run(first, deadline)
        finally:
            old.release()
        self._tell_mapping()
        await self._subscriber.wait_renewed(deadline)
        await self._streams.wait_renewed(deadline)

    def _suspend(self) -> None:
        """Keep everything as it is until there is a connection again."""
        self._deliveries.suspend()
        self._streams.lost(moving=True)
        self._subscriber.suspend()
        self._ready.clear()

    def _resume(self, kept: bool) -> None:
        self._stats.reconnects += 1
        filters = self._subscriber.resume(self._channel, kept)
        if self._flows is not None and self._mapping != "flows":
            handed = self._flows.surrender(self._subscriber, self._resender.begin_anew)
            self._flows = None
            self._note("flow", f"{handed} flows ended, and what was on them goes on on the control stream")
        packets = self._resender.resume(self._channel, self.limits.receive_maximum, kept)
        self._streams.admitted(kept)
        self._ready.set()
        self._offline.drain(self._outlet, self._publisher)
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

    @property
    def _keeps_messages(self) -> bool:
        """Whether a message that is published now waits for a connection."""
        return bool(self._offline) or (self._reconnector.is_retrying and self._offline.bound > 0)

    def note_retry(self, attempt: int, why: str) -> None:
        """Tell that the session is about to connect anew, and why it has to."""
        self._note("retrying", f"attempt {attempt}: {why}")

    # Ending

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
        if self._channel.ended:
            self.conclude(None)
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
        return self._close_reason

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _on_end(self, reason: LabError | None) -> None:
        connected_for = None
        if self._state == "connected":
            self._note("closed" if reason is None else "lost", str(reason) if reason is not None else "asked for here")
            connected_for = asyncio.get_running_loop().time() - self._accepted_at
        self._connecting.ended(reason)
        self._suspend()
        self._state = "reconnecting"
        if not self._reconnector.take_over(reason, connected_for):
            self.conclude(reason)

    def conclude(self, reason: LabError | None) -> None:
        """Close the session for good: no connection is there, and none will be made unless somebody asks for it."""
        if self._state == "closed":
            return
        self._state = "closed"
        self._close_reason = reason
        self._streams.lost()
        self._resender.suspend(self._channel.gone)
        self._offline.clear()
        self._subscriber.lost()
        self._ready.set()
        self._incoming.feeds.clear()
        self._ended.set()

    # What the parts tell

    def notify(self, feed: AsyncFeed) -> None:
        """Wake `feed` after packets have arrived, as long as it has somebody waiting."""
        self._incoming.feeds.add(feed)

    def record_error(self, where: str, message: str) -> None:
        """Add to :attr:`errors`."""
        self._happenings.record_error(where, message)

    def _note(self, what: EventName, detail: str) -> None:
        self._happenings.note(what, self.transport, detail)

    def _on_disconnect(self, packet: Disconnect) -> None:
        error = farewell(packet)
        self._happenings.record("broker", error)
        self._channel.finish(error)

    def _tell(self, message: Message) -> None:
        try:
            if self._on_message is not None:
                self._on_message(message)
        except Exception as error:  # noqa: BLE001 - the user's: one bad callback must not end the session
            self.record_error("on_message", f"{type(error).__name__}: {error}")

    def _advise(self, action: Action) -> None:
        """Warn if this broker is known to refuse `action`."""
        refusal = self.profile.refusal(action)
        if refusal is not None:
            warn_of(refusal)
