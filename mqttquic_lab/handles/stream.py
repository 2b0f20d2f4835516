"""A data stream as a person meets it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from mqttquic_lab.handles.chunks import hop_chunks, publish_chunks
from mqttquic_lab.handles.feed import Feed
from mqttquic_lab.session.advice import called_from_here

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Iterable, Mapping
    from types import TracebackType

    from mqttquic_lab.handles.calling import Caller
    from mqttquic_lab.handles.session import Session
    from mqttquic_lab.records.decode import Decode
    from mqttquic_lab.session import AsyncStream, FlowInfo, PublishResult, PublishSummary, StreamInfo


class Stream:
    """One data stream of a session: what is published on it is acknowledged on it, what is subscribed comes on it.

    Made by :meth:`Session.open_stream`; a context manager. A lost packet holds up its own stream and no other (RFC 9000
    section 2.2). The stream lives until :meth:`close` or the session's end, whether or not anybody keeps this handle.
    """

    def __init__(self, core: AsyncStream, session: Session, caller: Caller) -> None:
        self._core = core
        self._session = session
        self._caller = caller

    # What it is

    @property
    def id(self) -> int:
        """QUIC stream id (RFC 9000 section 2.1)."""
        return self._core.id

    @property
    def session(self) -> Session:
        """The session it belongs to."""
        return self._session

    @property
    def state(self) -> str:
        """``"open"``, ``"closing"`` (ended here, not yet by the broker), ``"closed"``, or ``"failed"``."""
        return self._core.state

    @property
    def flow(self) -> FlowInfo | None:
        """With ``streams="flows"``: the flow's id, flags, where it stands, and whether its state was recovered."""
        core = self._core
        return self._caller.look(lambda: core.flow)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way on it that needs an acknowledgement."""
        return self._core.is_idle

    @property
    def feeds(self) -> tuple[Feed, ...]:
        """Feeds that were subscribed on it, oldest first."""
        return tuple(self._session.handle_of(feed) for feed in self._core.feeds)

    @property
    def close_reason(self) -> Exception | None:
        """Why it has ended; None while it has not, or if that was asked for."""
        return self._core.close_reason

    @property
    def info(self) -> StreamInfo:
        """What it carries and has carried, as of now."""
        core = self._core
        return self._caller.look(lambda: core.info)

    @property
    def aio(self) -> StreamAio:
        """The same verbs, awaitable from any event loop."""
        return StreamAio(self)

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
        timeout: float | str | None = 10.0,
    ) -> PublishResult:
        """Publish one message on this stream; parameters and errors as for :meth:`Session.publish`.

        Raises
        ------
        StreamClosedError
            The stream has ended, or ended before the acknowledgement came; the session lives.
        """
        return self._caller.call(
            timeout, self._core.publish, topic, payload, qos, retain, properties, timestamp=timestamp, timeout=timeout
        )

    def publish_many(
        self,
        messages: Iterable[tuple[str, Any]] | AsyncIterable[tuple[str, Any]],
        qos: int = 0,
        retain: bool = False,
        properties: Mapping[str, Any] | None = None,
        *,
        timestamp: bool = False,
        timeout: float | str | None = 30.0,
    ) -> PublishSummary:
        """Publish many messages on this stream; parameters and errors as for :meth:`Session.publish_many`."""
        verb = self._core.publish_many
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
        timeout: float | str | None = 10.0,
    ) -> Feed:
        """Subscribe on this stream: the messages come on it. Parameters and errors as for :meth:`Session.subscribe`.

        The subscription is the stream's own: the same filter on two streams gives two copies of a message where the
        broker keeps subscriptions per stream (EMQX), and it ends with the stream.
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
                timeout=timeout,
            )
        return self._session.handle_of(feed)

    def unsubscribe(self, what: Feed | str | Iterable[str], *, timeout: float | str | None = 10.0) -> tuple[int, ...]:
        """Send UNSUBSCRIBE on this stream, even for what was subscribed on another one.

        Parameters
        ----------
        what : Feed, str or a list of str
            A feed, or filters as they were subscribed.
        timeout : float, str or None
            Seconds to wait for the broker's answer.

        Returns
        -------
        tuple of int
            Reason codes of the broker. 0x11 (No subscription existed) is what brokers that keep subscriptions per
            stream answer on another stream; nothing ends then.
        """
        with called_from_here():
            return self._caller.call(timeout, self._core.unsubscribe, core_of(what), timeout=timeout)

    def abort(self, code: str | int | None = None, *, timeout: float | str | None = 5.0) -> None:
        """End the stream abortively (RESET_STREAM and STOP_SENDING); who waits for something on it is told at once.

        Parameters
        ----------
        code : str or int, optional
            With ``streams="flows"``, a code of the draft: ``"FLOW_PACKET_CANCELLED"`` (default) keeps the flow's state,
            so that :meth:`take_over` goes on with it; ``"FLOW_CANCELLED"`` discards it. Elsewhere any number, or 0.

        Raises
        ------
        UsageError, StreamClosedError
            See :meth:`mqttquic_lab.session.AsyncStream.abort`.
        """
        self._caller.call(timeout, self._core.abort, code, timeout=timeout)

    def take_over(self, *, timeout: float | str | None = 10.0) -> Stream:
        """Put the flow on a new QUIC stream and return this stream, whose id has changed (``streams="flows"`` only).

        A take-over if its present stream lives, else a recovery. What is not acknowledged is sent again, and
        subscriptions hold.

        Raises
        ------
        UsageError, StreamLimitError, OperationTimeoutError, DisconnectedError
            See :meth:`mqttquic_lab.session.AsyncStream.take_over`.
        """
        self._caller.call(timeout, self._core.take_over, timeout=timeout)
        return self

    def discard(self, *, timeout: float | str | None = 10.0) -> None:
        """Have the broker forget the flow with all its state (``streams="flows"`` only).

        Raises
        ------
        UsageError, OperationTimeoutError
            See :meth:`mqttquic_lab.session.AsyncStream.discard`.
        """
        self._caller.call(timeout, self._core.discard, timeout=timeout)

    def close(self, *, timeout: float | str | None = 5.0) -> None:
        """End the stream in order: FIN once all that was sent is acknowledged. Its subscriptions end with it.

        Raises
        ------
        OperationTimeoutError
            The broker did not acknowledge everything, or did not end its side, in time; the stream was reset.
        """
        self._caller.call(timeout, self._core.close, timeout=timeout)

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

    def __repr__(self) -> str:
        info = self.info
        flow = "" if info.flow_id is None else f", flow {info.flow_id},"
        return (
            f"<Stream {self.id}{flow} of {self._session.client_id[:60]!r}: {self.state}, "
            f"{info.messages_in:,} messages in, {info.messages_out:,} out>"
        )


class StreamAio:
    """The verbs of a :class:`Stream`, awaitable from any event loop."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._session = stream.session
        self._core = stream._core  # noqa: SLF001 - a twin of the same module
        self._caller = stream._caller  # noqa: SLF001

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
        """See :meth:`Stream.publish`."""
        return await self._caller.hop(
            self._core.publish, topic, payload, qos, retain, properties, timestamp=timestamp, timeout=timeout
        )

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
        """See :meth:`Stream.publish_many`; either kind of iterable runs on the awaiting loop."""
        verb = self._core.publish_many
        return await hop_chunks(self._caller, verb, messages, qos, retain, properties, timestamp, timeout)

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
    ) -> Feed:
        """See :meth:`Stream.subscribe`."""
        with called_from_here():
            feed = await self._caller.hop(
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
                timeout=timeout,
            )
        return self._session.handle_of(feed)

    async def unsubscribe(
        self, what: Feed | str | Iterable[str], *, timeout: float | str | None = 10.0
    ) -> tuple[int, ...]:
        """See :meth:`Stream.unsubscribe`."""
        with called_from_here():
            return await self._caller.hop(self._core.unsubscribe, core_of(what), timeout=timeout)

    async def abort(self, code: str | int | None = None, *, timeout: float | str | None = 5.0) -> None:
        """See :meth:`Stream.abort`."""
        await self._caller.hop(self._core.abort, code, timeout=timeout)

    async def take_over(self, *, timeout: float | str | None = 10.0) -> Stream:
        """See :meth:`Stream.take_over`."""
        await self._caller.hop(self._core.take_over, timeout=timeout)
        return self._stream

    async def discard(self, *, timeout: float | str | None = 10.0) -> None:
        """See :meth:`Stream.discard`."""
        await self._caller.hop(self._core.discard, timeout=timeout)

    async def close(self, *, timeout: float | str | None = 5.0) -> None:
        """See :meth:`Stream.close`."""
        await self._caller.hop(self._core.close, timeout=timeout)


def core_of(what: Any) -> Any:
    """Return what a handle wraps, and anything else as it is."""
    return what._core if isinstance(what, (Feed, Stream)) else what  # noqa: SLF001
