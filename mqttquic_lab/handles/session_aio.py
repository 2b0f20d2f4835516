"""The awaitable twin of a session: the same verbs, from any event loop."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from mqttquic_lab.handles.calling import on_thread
from mqttquic_lab.handles.chunks import hop_chunks
from mqttquic_lab.handles.stream import Stream, core_of
from mqttquic_lab.session.advice import called_from_here

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Mapping

    from mqttquic_lab.handles.feed import Feed
    from mqttquic_lab.handles.session import Session
    from mqttquic_lab.mqtt.authentication import ClientMethod
    from mqttquic_lab.records.decode import Decode
    from mqttquic_lab.records.message import Message
    from mqttquic_lab.records.migration import MigrationResult
    from mqttquic_lab.session import PublishResult, PublishSummary
    from mqttquic_lab.session.flow_spec import FlowKeywords


class SessionAio:
    """The verbs of a :class:`Session`, awaitable from any event loop."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._core = session._core  # noqa: SLF001 - its twin
        self._caller = session._caller  # noqa: SLF001

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
        """See :meth:`Session.publish`."""
        return await self._caller.hop(
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
        """See :meth:`Session.publish_many`; either kind of iterable runs on the awaiting loop."""
        verb = partial(self._core.publish_many, datagram=datagram)
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
        stream: Stream | None = None,
        timeout: float | str | None = 10.0,
    ) -> Feed:
        """See :meth:`Session.subscribe`."""
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
                stream=core_of(stream),
                timeout=timeout,
            )
        return self._session.handle_of(feed)

    async def unsubscribe(self, what: Feed | str | Iterable[str], *, timeout: float | str | None = 10.0) -> None:
        """See :meth:`Session.unsubscribe`."""
        await self._caller.hop(self._core.unsubscribe, core_of(what), timeout=timeout)

    async def request(
        self,
        topic: str,
        payload: Any = None,
        qos: int = 1,
        properties: Mapping[str, Any] | None = None,
        *,
        timeout: float | str | None = 10.0,
    ) -> Message:
        """See :meth:`Session.request`."""
        return await self._caller.hop(self._core.request, topic, payload, qos, properties, timeout=timeout)

    async def respond(
        self,
        topic_filter: str,
        handler: Callable[[Message], Any],
        qos: int = 1,
        *,
        decode: Decode = "text",
        timeout: float | str | None = 10.0,
    ) -> Feed:
        """See :meth:`Session.respond`."""
        feed = await self._caller.hop(
            self._core.respond, topic_filter, on_thread(handler), qos, decode=decode, timeout=timeout
        )
        return self._session.handle_of(feed)

    async def open_stream(
        self, *, priority: int = 3, timeout: float | str | None = 10.0, **flow: Unpack[FlowKeywords]
    ) -> Stream:
        """See :meth:`Session.open_stream`."""
        with called_from_here():
            core = await self._caller.hop(self._core.open_stream, priority=priority, timeout=timeout, **flow)
        return Stream(core, self._session, self._caller)

    async def ping(self, *, timeout: float | str | None = 10.0) -> float:
        """See :meth:`Session.ping`."""
        return await self._caller.hop(self._core.ping, timeout=timeout)

    async def flush(self, *, timeout: float | str | None = 30.0) -> None:
        """See :meth:`Session.flush`."""
        await self._caller.hop(self._core.flush, timeout=timeout)

    async def reauthenticate(self, auth: ClientMethod | None = None, *, timeout: float | str | None = 10.0) -> None:
        """See :meth:`Session.reauthenticate`."""
        await self._caller.hop(self._core.reauthenticate, auth, timeout=timeout)

    async def early_published(self, *, timeout: float | str | None = 10.0) -> list[PublishResult]:
        """See :meth:`Session.early_published`."""
        return await self._caller.hop(self._core.early_published, timeout=timeout)

    async def update_keys(self, *, timeout: float | str | None = 5.0) -> int:
        """See :meth:`Session.update_keys`."""
        return await self._caller.hop(self._core.update_keys, timeout=timeout)

    async def migrate(
        self, local: tuple[str, int] | str | None = None, *, force: bool = False, timeout: float | str | None = 5.0
    ) -> MigrationResult:
        """See :meth:`Session.migrate`."""
        return await self._caller.hop(self._core.migrate, local, force=force, timeout=timeout)

    async def rebind(self, *, timeout: float | str | None = 5.0) -> MigrationResult:
        """See :meth:`Session.rebind`."""
        return await self._caller.hop(self._core.rebind, timeout=timeout)

    async def reconnect(self, url: Any = None, *, timeout: float | str | None = 10.0) -> None:
        """See :meth:`Session.reconnect`."""
        self._session._listen_again()  # noqa: SLF001
        with called_from_here():
            await self._caller.hop(self._core.reconnect, url, timeout=timeout)
        self._session._moved(url)  # noqa: SLF001

    async def disconnect(self, reason_code: int = 0, *, timeout: float | str | None = 5.0) -> None:
        """See :meth:`Session.disconnect`."""
        await self._caller.hop(self._core.disconnect, reason_code, timeout=timeout)
        self._session._is_closed()  # noqa: SLF001

    async def close(self, *, timeout: float | str | None = 5.0) -> None:
        """See :meth:`Session.close`."""
        await self.disconnect(timeout=timeout)

    async def wait_closed(self, *, timeout: float | str | None = None) -> Exception | None:
        """See :meth:`Session.wait_closed`."""
        return await self._caller.hop(self._core.wait_closed, timeout=timeout)
