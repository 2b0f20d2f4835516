"""The session as a person meets it."""

from __future__ import annotations

import weakref
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self, Unpack

from mqttquic_lab.callbacks import CallbackRunner
from mqttquic_lab.errors import BlockingCallError
from mqttquic_lab.handles.calling import Caller, on_thread
from mqttquic_lab.handles.chunks import publish_chunks
from mqttquic_lab.handles.feed import Feed
from mqttquic_lab.handles.session_aio import SessionAio
from mqttquic_lab.handles.session_facts import SessionFacts
from mqttquic_lab.handles.stream import Stream, core_of
from mqttquic_lab.session.advice import called_from_here

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Mapping
    from types import TracebackType

    from mqttquic_lab.mqtt.authentication import ClientMethod
    from mqttquic_lab.records.decode import Decode
    from mqttquic_lab.records.message import Message
    from mqttquic_lab.records.migration import MigrationResult
    from mqttquic_lab.runtime import Runtime
    from mqttquic_lab.session import (
        AsyncFeed,
        AsyncSession,
        PublishResult,
        PublishSummary,
    )
    from mqttquic_lab.session.flow_spec import FlowKeywords
    from mqttquic_lab.widgets import Dashboard

__all__ = ["Session", "SessionAio"]


class Session(SessionFacts):
    """One MQTT session. Made by :func:`mqttquic_lab.connect`.

    Every verb blocks until it is done, with a timeout of its own, and has an awaitable twin under :attr:`aio`. A
    context manager; a session that nobody keeps closes itself.
    """

    def __init__(self, core: AsyncSession, runtime: Runtime, target: object = None) -> None:
        self._core = core
        self._runtime = runtime
        self._caller = Caller(runtime)
        self._target = target  # a broker of ours lives as long as its sessions
        self._feeds: weakref.WeakValueDictionary[AsyncFeed, Feed] = weakref.WeakValueDictionary()
        self._callbacks: CallbackRunner | None = None
        self._callback: Callable[[Message], object] | None = None
        self._is_open()

    @property
    def on_message(self) -> Callable[[Message], object] | None:
        """Function to call for every message received, on a thread of its own, one after the other; None for none.

        It may block and may call blocking verbs. When 10,000 calls wait, further messages are not told to it (the feeds
        have them) and counted in :attr:`callbacks_dropped`. What it raises goes to :attr:`errors` and the log. A
        function that refers to this session keeps it from closing by itself.
        """
        return self._callback

    @on_message.setter
    def on_message(self, callback: Callable[[Message], object] | None) -> None:
        core, runtime = self._core, self._runtime
        if callback is None or not callable(callback):
            core.on_message = callback
            self._callback = callback
            return
        if self._callbacks is None:

            def failed(error: BaseException) -> None:
                runtime.post(core.record_error, "on_message", f"{type(error).__name__}: {error}")

            self._callbacks = CallbackRunner(on_error=failed, name="on_message")
        runner = self._callbacks
        self._callback = callback

        def pass_on(message: Message) -> None:
            runner.submit(callback, message)

        core.on_message = pass_on

    @property
    def callbacks_dropped(self) -> int:
        """Messages that :attr:`on_message` was not told because too many calls waited."""
        return self._callbacks.dropped if self._callbacks is not None else 0

    @property
    def aio(self) -> SessionAio:
        """The same verbs, awaitable from any event loop."""
        return SessionAio(self)

    # Verbs

    def publish(
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
            PUBLISH properties by their snake-case name (MQTT 5.0 only).
        timestamp : bool
            Send the time along, from which the receiving feed works out ``latency`` (MQTT 5.0 only).
        datagram : bool, optional
            True sends it in a DATAGRAM frame (QUIC and QoS 0 only, RFC 9221): if that is lost, so is the message, and
            nothing waits for it. False never does. Default: True with ``connect(datagrams=True)`` where it fits.
        timeout : float, str or None
            Seconds to wait for the acknowledgement, or at QoS 0 for the transport to take more. While the session is
            reconnecting nothing waits: the message is queued, and the result says so.

        Raises
        ------
        UsageError, PublishError, OperationTimeoutError, DisconnectedError
            See :meth:`mqttquic_lab.session.AsyncSession.publish`.
        """
        return self._caller.call(
            timeout,
            self._core.publish,
            topic,
            payload,
            qos,
            retain,
            properties,
            timestamp=timestamp,
            datagram=datagram,
            timeout=timeout,
        )

    def publish_many(
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

        Parameters
        ----------
        messages : iterable or async iterable of (topic, payload)
            An iterable runs on your thread, in steps of 1000 messages; an async one on the session's loop.
        qos, retain, properties, timestamp, datagram
            As for :meth:`publish`, for all of them.
        timeout : float, str or None
            Seconds for which the broker may take and acknowledge nothing at all.

        Raises
        ------
        UsageError, PublishError, OperationTimeoutError, DisconnectedError
            See :meth:`mqttquic_lab.session.AsyncSession.publish_many`.
        """
        verb = partial(self._core.publish_many, datagram=datagram)
        return publish_chunks(self._caller, verb, messages, qos, retain, properties, timestamp, timeout)

    def subscribe(
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
        stream: Stream | None = None,
        timeout: float | str | None = 10.0,
    ) -> Feed:
        """Subscribe, and return the feed that collects what arrives.

        Parameters
        ----------
        topic_filter : str, (str, int) or a list of these
            One or several topic filters, each with its own maximum QoS or with `qos`; ``$share/group/filter``
            literally.
        qos : {0, 1, 2}
            Largest QoS wanted.
        no_local : bool
            Leave out what this session publishes itself (MQTT 5.0 only).
        retain_as_published : bool
            Keep the RETAIN flag as it was published (MQTT 5.0 only).
        retain_handling : {0, 1, 2}
            Retained messages: send them, only if the subscription is new, or not at all (MQTT 5.0 only).
        decode : {"text", "json", "raw"} or callable
            How ``value`` comes from the payload; lazily, when somebody looks.
        expand : bool
            Give each member of a decoded JSON object a column of its own.
        max_messages, max_bytes : int
            Bounds of the feed; the oldest messages are dropped first, and counted.
        stream : Stream, optional
            Data stream to subscribe on (:meth:`open_stream`); by default the control stream.
        timeout : float, str or None
            Seconds to wait for the broker's answer.

        Raises
        ------
        UsageError, SubscribeError, OperationTimeoutError, DisconnectedError
            See :meth:`mqttquic_lab.session.AsyncSession.subscribe`.
        """
        with called_from_here():
            feed = self._caller.call(
                timeout,
                self._core.subscribe,
                topic_filter,
                qos,
                no_local,
                retain_as_published,
                retain_handling,
                decode=decode,
                expand=expand,
                max_messages=max_messages,
                max_bytes=max_bytes,
                stream=core_of(stream),
                timeout=timeout,
            )
        return self.handle_of(feed)

    def unsubscribe(self, what: Feed | str | Iterable[str], *, timeout: float | str | None = 10.0) -> None:
        """End a feed, or a filter in all feeds that have it; what they received stays.

        Parameters
        ----------
        what : Feed, str or a list of str
            The feed (again is no error), or filters as they were subscribed.
        timeout : float, str or None
            Seconds to wait for the broker's answer. The feed has ended even if none comes.

        Raises
        ------
        UsageError, SubscribeError, OperationTimeoutError
            See :meth:`mqttquic_lab.session.AsyncSession.unsubscribe`.
        """
        self._caller.call(timeout, self._core.unsubscribe, core_of(what), timeout=timeout)

    def request(
        self,
        topic: str,
        payload: Any = None,
        qos: int = 1,
        properties: Mapping[str, Any] | None = None,
        *,
        timeout: float | str | None = 10.0,
    ) -> Message:
        """Publish a request and return the response (MQTT 5.0 section 4.10).

        Parameters
        ----------
        topic, payload, qos, properties
            As for :meth:`publish`. Response Topic and Correlation Data are added.
        timeout : float, str or None
            Seconds for all of it.

        Raises
        ------
        UsageError, PublishError, OperationTimeoutError, DisconnectedError
            See :meth:`mqttquic_lab.session.AsyncSession.request`.
        """
        return self._caller.call(timeout, self._core.request, topic, payload, qos, properties, timeout=timeout)

    def respond(
        self,
        topic_filter: str,
        handler: Callable[[Message], Any],
        qos: int = 1,
        *,
        decode: Decode = "text",
        timeout: float | str | None = 10.0,
    ) -> Feed:
        """Answer the requests on a topic filter, until the feed returned is unsubscribed (MQTT 5.0 section 4.10).

        Parameters
        ----------
        topic_filter, qos, decode, timeout
            As for :meth:`subscribe`.
        handler : callable
            Called with each request, one after the other, on a thread where it may block; what it returns is published
            to the request's Response Topic. What it raises goes to :attr:`errors`, and that request gets no response.

        Raises
        ------
        UsageError, SubscribeError, OperationTimeoutError, DisconnectedError
            See :meth:`mqttquic_lab.session.AsyncSession.respond`.
        """
        feed = self._caller.call(
            timeout, self._core.respond, topic_filter, on_thread(handler), qos, decode=decode, timeout=timeout
        )
        return self.handle_of(feed)

    def open_stream(
        self, *, priority: int = 3, timeout: float | str | None = 10.0, **flow: Unpack[FlowKeywords]
    ) -> Stream:
        """Open a data stream, to publish and subscribe on; QUIC only.

        With ``streams="flows"`` it carries a flow, and takes the keywords `flow_id`, `clean`, `abort_if_no_state`,
        `persistent_qos`, `persistent_topic_alias`, `persistent_subscriptions`, `expire_interval`, `err_tolerance` and
        `unidirectional`: see :class:`mqttquic_lab.session.flow_spec.FlowOptions`.

        Parameters
        ----------
        priority : int
            0 to 7, the urgency of what this session sends on it among all its streams (RFC 9218 section 4.1): data of
            the smallest leaves first, and streams of the same, usually 3, take turns. Nothing of it goes over the wire:
            it does not order the broker's deliveries.
        timeout : float, str or None
            Seconds to wait for credit that the broker owes for streams that have ended (RFC 9000 section 4.6).

        Raises
        ------
        StreamLimitError
            The broker allows no more streams at a time.
        UsageError, OperationTimeoutError, DisconnectedError
            See :meth:`mqttquic_lab.session.AsyncSession.open_stream`.
        """
        with called_from_here():
            core = self._caller.call(timeout, self._core.open_stream, priority=priority, timeout=timeout, **flow)
        return Stream(core, self, self._caller)

    def ping(self, *, timeout: float | str | None = 10.0) -> float:
        """Send PINGREQ and return the seconds until the answer."""
        return self._caller.call(timeout, self._core.ping, timeout=timeout)

    def flush(self, *, timeout: float | str | None = 30.0) -> None:
        """Wait until every message that was published without a connection is sent, and acknowledged at QoS 1 and 2.

        Raises
        ------
        OperationTimeoutError, DisconnectedError
            See :meth:`mqttquic_lab.session.AsyncSession.flush`.
        """
        self._caller.call(timeout, self._core.flush, timeout=timeout)

    def reauthenticate(self, auth: ClientMethod | None = None, *, timeout: float | str | None = 10.0) -> None:
        """Authenticate again on the live connection (MQTT 5.0 section 4.12.1); messages go on meanwhile.

        Parameters
        ----------
        auth : object, optional
            A method of the same name with other credentials; the session's own by default.
        timeout : float, str or None
            Seconds until the broker must have accepted.

        Raises
        ------
        UsageError, AuthenticationError, DisconnectedError, OperationTimeoutError
            See :meth:`mqttquic_lab.session.AsyncSession.reauthenticate`.
        """
        self._caller.call(timeout, self._core.reauthenticate, auth, timeout=timeout)

    def early_published(self, *, timeout: float | str | None = 10.0) -> list[PublishResult]:
        """Wait until the messages of ``publish_early`` are acknowledged, and return their results in order.

        Raises
        ------
        PublishError, OperationTimeoutError, DisconnectedError
            See :meth:`mqttquic_lab.session.AsyncSession.early_published`.
        """
        return self._caller.call(timeout, self._core.early_published, timeout=timeout)

    def update_keys(self, *, timeout: float | str | None = 5.0) -> int:
        """Update the keys that protect the packets (QUIC only, RFC 9001 section 6) and return the key phase, 0 or 1.

        Raises
        ------
        UsageError, OperationTimeoutError, DisconnectedError
            See :meth:`mqttquic_lab.session.AsyncSession.update_keys`.
        """
        return self._caller.call(timeout, self._core.update_keys, timeout=timeout)

    def migrate(
        self, local: tuple[str, int] | str | None = None, *, force: bool = False, timeout: float | str | None = 5.0
    ) -> MigrationResult:
        """Go on from another local address, with everything as it is (QUIC only, RFC 9000 section 9).

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
        MigrationError, UsageError, DisconnectedError
            See :meth:`mqttquic_lab.session.AsyncSession.migrate`.
        """
        return self._caller.call(timeout, self._core.migrate, local, force=force, timeout=timeout)

    def rebind(self, *, timeout: float | str | None = 5.0) -> MigrationResult:
        """Go on from another port, as if a NAT on the way had forgotten the session (QUIC only).

        Raises
        ------
        MigrationError, UsageError, DisconnectedError
            See :meth:`mqttquic_lab.session.AsyncSession.rebind`.
        """
        return self._caller.call(timeout, self._core.rebind, timeout=timeout)

    def reconnect(self, url: Any = None, *, timeout: float | str | None = 10.0) -> None:
        """Connect anew and go on with the session: one that was lost or closed, or that is to change its transport.

        Feeds go on where they were, and messages at QoS 1 and 2 that the broker has not acknowledged are sent again. A
        broker that has forgotten the session (it keeps it for ``session_expiry_interval``) is told everything anew;
        such a message may then arrive twice, even at QoS 2. ``session.events`` says which it was.

        Parameters
        ----------
        url : str or Broker, optional
            Where to, over any transport; the last place by default, with its ``fallback``. A URL of the same host
            inherits user name and password (unless it is plain TCP), and the certificate authority of a broker of ours.
        timeout : float, str or None
            Seconds until the broker must have answered.

        Raises
        ------
        UsageError, ConnectError, OperationTimeoutError, DisconnectedError
            See :meth:`mqttquic_lab.session.AsyncSession.reconnect`. As long as no connection came about, a session that
            was connected still is.
        """
        self._listen_again()
        with called_from_here():
            self._caller.call(timeout, self._core.reconnect, url, timeout=timeout)
        self._moved(url)

    def disconnect(self, reason_code: int = 0, *, timeout: float | str | None = 5.0) -> None:
        """Say DISCONNECT and close the connection in order; again is no error.

        Parameters
        ----------
        reason_code : int
            0 is a normal end; 0x04 has the broker publish the will (MQTT 5.0 section 3.14.2.1).
        timeout : float, str or None
            Seconds for what was written to leave; then the connection is cut.
        """
        try:
            self._caller.call(timeout, self._core.disconnect, reason_code, timeout=timeout)
        except BlockingCallError:
            if self._runtime.is_alive:
                raise
            # The runtime has ended, and closed everything with it.
        self._is_closed()

    def close(self, *, timeout: float | str | None = 5.0) -> None:
        """Do :meth:`disconnect` with a normal end."""
        self.disconnect(timeout=timeout)

    def wait_closed(self, *, timeout: float | str | None = None) -> Exception | None:
        """Wait until the session has ended for whatever reason, and return that (None: it was asked for).

        Raises
        ------
        OperationTimeoutError
            It goes on after `timeout` seconds.
        """
        return self._caller.call(timeout, self._core.wait_closed, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aio.close()

    # Showing

    def dashboard(self, **options: Any) -> Dashboard:
        """Open the dashboard of this session; needs a notebook. See :class:`mqttquic_lab.widgets.Dashboard`."""
        from mqttquic_lab.widgets import Dashboard

        return Dashboard(self, **options)

    # Inside

    def handle_of(self, feed: AsyncFeed) -> Feed:
        """Return the handle of a feed; the same one as long as somebody keeps it."""
        handle = self._feeds.get(feed)
        if handle is None:
            handle = self._feeds[feed] = Feed(feed, self, self._caller)
        return handle

    def _is_open(self) -> None:
        core, runtime = self._core, self._runtime
        self._withdraw = runtime.on_exit(core.close)
        self._finalizer = weakref.finalize(self, _forgotten, core, self._caller, self._withdraw)
        self._finalizer.atexit = False  # the runtime's own end closes what is open then

    def _listen_again(self) -> None:
        """Have :attr:`on_message` called again if closing has ended that: messages may come with the connection."""
        if not self._finalizer.alive and self._callbacks is not None:
            self._callbacks = None
            self.on_message = self._callback

    def _moved(self, url: Any) -> None:
        """Take in that the session is connected anew, which it may not have been before."""
        if url is not None and not isinstance(url, str):
            self._target = url
        if not self._finalizer.alive:
            self._is_open()

    def _is_closed(self) -> None:
        self._finalizer.detach()
        self._withdraw()
        if self._callbacks is not None:
            self._callbacks.close()


def _forgotten(core: AsyncSession, caller: Caller, withdraw: Callable[[], None]) -> None:
    """Close a session whose handle is gone, without waiting: this may run in a garbage collection on any thread."""
    withdraw()
    with suppress(BlockingCallError):
        caller.spawn(core.close)
