"""Requests and responses (MQTT 5.0 section 4.10): one message asks, another answers, and Correlation Data ties them.

The requester subscribes to a response topic of its own, once, and names it in each request; the responder publishes
its answer there and returns the Correlation Data untouched.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from mqttquic_lab.errors import DisconnectedError, OperationTimeoutError, PublishError, UsageError
from mqttquic_lab.mqtt import ReasonCode, check_topic_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mqttquic_lab.records.decode import Decode
    from mqttquic_lab.records.message import Message
    from mqttquic_lab.session.client import AsyncSession
    from mqttquic_lab.session.feed import AsyncFeed

MAX_REQUESTS: Final = 4096
"""Requests of one session that may wait for their responses at a time."""

KEPT: Final = 1000
"""Messages that the feed of responses holds."""


class Requester:
    """The requests and the responders of one session. On its loop only."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        self._waiting: dict[bytes, asyncio.Future[Message]] = {}
        self._feed: AsyncFeed | None = None
        self._task: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._responders: set[asyncio.Task[None]] = set()
        self._token = secrets.token_hex(8)  # nobody else should be able to guess where answers go

    async def request(
        self,
        topic: str,
        payload: Any,
        qos: int,
        properties: Mapping[str, Any] | None,
        timeout: float | None,
    ) -> Message:
        """See :meth:`AsyncSession.request`."""
        session = self._session
        if session.options.level != 5:
            raise UsageError('requests are of MQTT 5.0 (section 4.10): connect with version="5.0"')
        given = {"response_topic", "correlation_data"} & set(properties or {})
        if given:
            raise UsageError(f"request() sets {' and '.join(sorted(given))} itself: leave it out")
        if len(self._waiting) >= MAX_REQUESTS:
            raise PublishError(
                f"{MAX_REQUESTS} requests wait for a response already", reason_code=ReasonCode.QUOTA_EXCEEDED
            )
        check_topic_name(topic)
        correlation = secrets.token_bytes(12)
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                feed = await self._listen()
                self._waiting[correlation] = answer
                block = {**(properties or {}), "response_topic": feed.filters[0], "correlation_data": correlation}
                result = await session.publish(topic, payload, qos, False, block, timeout=None)
                if result.reason_code == ReasonCode.NO_MATCHING_SUBSCRIBERS:
                    raise PublishError(
                        f"nobody is subscribed to {topic!r}: no response can come", reason_code=result.reason_code
                    )
                return await answer
        except TimeoutError:
            raise OperationTimeoutError(f"no response to the request on {topic!r} within {timeout:g} s") from None
        finally:
            self._waiting.pop(correlation, None)

    async def _listen(self) -> AsyncFeed:
        """Return the feed of responses, subscribing if that has not been done or has ended."""
        async with self._lock:
            if self._feed is None or not self._feed.is_active or self._task is None or self._task.done():
                # A broker may say where responses to its clients belong (section 3.2.2.3.15).
                prefix = self._session.limits.response_information.strip("/") or "response"
                self._feed = await self._session.subscribe(
                    f"{prefix}/{self._token}", 1, decode="raw", max_messages=KEPT, timeout=None
                )
                self._task = asyncio.create_task(self._collect(self._feed), name="mqttquic-responses")
            return self._feed

    async def _collect(self, feed: AsyncFeed) -> None:
        try:
            with suppress(DisconnectedError):  # whoever waits is told below
                async for message in feed.each():
                    waiting = self._waiting.get(message.properties.get("correlation_data", b""))
                    if waiting is not None and not waiting.done():
                        waiting.set_result(message)
        finally:
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(DisconnectedError("no response can come: the feed of responses has ended"))
                    waiting.exception()

    async def respond(
        self, topic_filter: str, handler: Callable[[Message], Any], qos: int, decode: Decode, timeout: float | None
    ) -> AsyncFeed:
        """See :meth:`AsyncSession.respond`."""
        session = self._session
        if session.options.level != 5:
            raise UsageError('responses are of MQTT 5.0 (section 4.10): connect with version="5.0"')
        if not callable(handler):
            raise UsageError(f"respond() takes a function of one message, not {handler!r}")
        feed = await session.subscribe(topic_filter, qos, decode=decode, timeout=timeout)
        task = asyncio.create_task(self._answer(feed, handler), name="mqttquic-responder")
        self._responders.add(task)
        task.add_done_callback(self._responders.discard)
        return feed

    async def _answer(self, feed: AsyncFeed, handler: Callable[[Message], Any]) -> None:
        """Answer requests, one after the other, until the feed or the session has ended."""
        session = self._session
        with suppress(DisconnectedError):  # the session says itself why it ended
            async for message in feed.each():
                topic = message.properties.get("response_topic")
                if topic is None:
                    session.record_error("respond", f"the message on {message.topic!r} names no response topic")
                    continue
                known = message.properties.get("correlation_data")
                block = None if known is None else {"correlation_data": known}
                try:
                    answer = handler(message)
                    if inspect.isawaitable(answer):
                        answer = await answer
                    await session.publish(topic, answer, message.qos, False, block)
                except DisconnectedError:
                    raise
                except Exception as error:  # noqa: BLE001 - the user's: one bad request must not end the others
                    session.record_error("respond", f"{type(error).__name__} on {message.topic!r}: {error}")
