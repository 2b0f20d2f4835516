"""Which stream a PUBLISH goes on: ``streams="per-topic"`` and ``"per-publish"``.

A topic's stream is kept and used again; the least recently used one ends when there are too many. It ends only when
nothing on it is under way, and its topic goes on on a new stream only then: messages of one topic stay in order
(MQTT 5.0 section 4.6). Where the broker reads PUBLISH from unidirectional streams (``profile="mqttv5"``), these are
used, and acknowledgements come on the control stream.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from time import perf_counter
from typing import TYPE_CHECKING, Any

from mqttquic_lab.errors import DisconnectedError, OperationTimeoutError
from mqttquic_lab.session.options import check_timeout
from mqttquic_lab.session.payload import encode_payload
from mqttquic_lab.session.publishing import HIGH_WATER, MAX_WINDOW, Bulk, each, stamped
from mqttquic_lab.session.results import PublishSummary

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Iterable, Mapping

    from mqttquic_lab.session.data_stream import DataChannel
    from mqttquic_lab.session.publishing import Publisher
    from mqttquic_lab.session.results import PublishResult
    from mqttquic_lab.session.stream import AsyncStream
    from mqttquic_lab.session.streams import Streams


class MappedPublisher:
    """Publishes on data streams. On its session's loop only.

    Parameters
    ----------
    streams : Streams
        Of the session.
    control : Publisher
        The control stream's.
    per_publish : bool
        Whether each message gets a stream of its own; otherwise each topic does.
    bound : int
        Topics that have a stream at a time.
    only : AsyncStream, optional
        Publish on this stream whatever the topic.
    """

    def __init__(
        self,
        streams: Streams,
        control: Publisher,
        *,
        per_publish: bool = False,
        bound: int = 1,
        only: AsyncStream | None = None,
    ) -> None:
        self.streams = streams
        self._control = control
        self._per_publish = per_publish
        self._bound = bound
        self._only = only
        self._unidirectional = streams.context.is_one_way
        self._by_topic: OrderedDict[str, AsyncStream] = OrderedDict()
        self._lock = asyncio.Lock()
        self._waiting = 0
        if only is None:
            streams.mapped = self
            streams.spare = self._end_an_idle_one
            control.lane_of = self._lane_of

    # Verbs

    async def publish(
        self,
        topic: str,
        payload: Any,
        qos: int,
        retain: bool,
        properties: Mapping[str, Any] | None,
        timestamp: bool,
        timeout: float | str | None,
    ) -> PublishResult:
        """See :meth:`AsyncSession.publish`."""
        data = payload if type(payload) is bytes else encode_payload(payload)
        # Checked before a stream is opened for it.
        self._control.check_topic(topic)
        self._control.check(qos, retain, properties, timestamp)
        seconds = check_timeout(timeout)
        outlet: MappedPublisher | Publisher = self
        stream = self._ready(topic)
        if stream is None:
            started = perf_counter()
            outlet, stream = await self.place(topic, seconds)
            if seconds is not None:
                seconds = max(0.001, seconds - (perf_counter() - started))
        publisher, lane = _ways(outlet, stream)
        if stream is not None:
            stream.note_topic(topic)
        try:
            return await publisher.publish(topic, data, qos, retain, properties, timestamp, seconds, lane)
        finally:
            if stream is not None and self._per_publish:
                stream.retire()

    async def publish_many(
        self,
        messages: Iterable[tuple[str, Any]] | AsyncIterable[tuple[str, Any]],
        qos: int,
        retain: bool,
        properties: Mapping[str, Any] | None,
        timestamp: bool,
        timeout: float | None,
    ) -> PublishSummary:
        """See :meth:`AsyncSession.publish_many`."""
        control, summary = self._control, PublishSummary()
        control.check(qos, retain, properties, timestamp)
        started = perf_counter()
        bulk = Bulk(summary) if qos else None
        window = min(control.limits.receive_maximum, MAX_WINDOW)
        outlet: MappedPublisher | Publisher = self
        try:
            async for topic, payload in each(messages):
                data = payload if type(payload) is bytes else encode_payload(payload)
                control.check_topic(topic)
                while bulk is not None and bulk.outstanding >= window:
                    await control.acknowledgements(bulk, timeout)
                stream = None
                if isinstance(outlet, MappedPublisher):
                    outlet, stream = await outlet.place(topic, timeout)
                publisher, lane = _ways(outlet, stream)
                block = stamped(properties) if timestamp else properties
                if stream is not None:
                    stream.note_topic(topic)
                try:
                    publisher.put(topic, data, qos, retain, block, bulk, lane)
                finally:
                    if stream is not None and self._per_publish:
                        stream.retire()
                if bulk is not None:
                    bulk.outstanding += 1
                summary.count += 1
                summary.payload_bytes += len(data)
                if stream is not None and not self._per_publish and stream.channel.stream.pending > HIGH_WATER:
                    await publisher.let_run(timeout)
                if not summary.count % 128:
                    await control.let_run(timeout)
            while bulk is not None and bulk.outstanding:
                await control.acknowledgements(bulk, timeout)
        finally:
            if bulk is not None:
                bulk.abandoned = True
                for one in outlet.streams if isinstance(outlet, MappedPublisher) else ():
                    one.channel.riders.discard(bulk)
        await control.let_run(timeout)
        summary.seconds = perf_counter() - started
        return summary

    # Streams

    def adopt(self, topic: str, stream: AsyncStream) -> None:
        """Use a stream that a topic had on an earlier connection."""
        self._by_topic[topic] = stream

    def _ways(self, stream: AsyncStream) -> tuple[Publisher, DataChannel | None]:
        """Return who publishes, and on which unidirectional stream if it is one."""
        return (self._control, stream.channel) if self._unidirectional else (stream.publisher, None)

    def _lane_of(self, topic: str) -> DataChannel | None:
        stream = self._by_topic.get(topic)
        if stream is None or stream.channel.ended or not self._unidirectional:
            return None
        return stream.channel

    def _ready(self, topic: str) -> AsyncStream | None:
        """Return the topic's stream if it has one, and nobody waits who came earlier."""
        if self._only is not None:
            if self._only.channel.ended:
                raise self._only.channel.gone("cannot publish")
            return self._only
        if self._waiting:
            return None
        stream = self._by_topic.get(topic)
        if stream is None or stream.channel.ended:
            return None
        self._by_topic.move_to_end(topic)
        return stream

    async def place(
        self, topic: str, timeout: float | None
    ) -> tuple[MappedPublisher, AsyncStream] | tuple[Publisher, None]:
        """Return who has a stream for a message on `topic`, and that; waits while the session changes connections."""
        try:
            return self, self._ready(topic) or await self._stream_for(topic, timeout)
        except DisconnectedError:
            if self._only is not None:
                raise  # whoever opened a stream means that one
            # Nothing was sent yet.
            context = self.streams.context
            if context.control.connection.is_closed:
                await asyncio.sleep(0)  # the session may be told only now
            await context.usable("cannot publish", timeout)
            outlet = context.outlet()
            if outlet is self:
                raise
        return await outlet.place(topic, timeout) if isinstance(outlet, MappedPublisher) else (outlet, None)

    def ways(self, stream: AsyncStream) -> tuple[Publisher, DataChannel | None]:
        """Return who publishes, and on which unidirectional stream if it is one."""
        return (self._control, stream.channel) if self._unidirectional else (stream.publisher, None)

    async def _stream_for(self, topic: str, timeout: float | None) -> AsyncStream:
        """Return a stream for a message on `topic`, opening one; in the order of asking.

        Raises
        ------
        StreamLimitError
            The broker allows no more streams, and none of ours can end for it.
        OperationTimeoutError
            None became free in time.
        """
        self._waiting += 1
        try:
            async with asyncio.timeout(timeout), self._lock:
                if self._per_publish:
                    return await self.streams.open("publish", unidirectional=self._unidirectional)
                return await self._topic_stream(topic)
        except TimeoutError:
            raise OperationTimeoutError(
                f"no stream became free for {topic!r} within {timeout:g} s: "
                f"{self.streams.limit_reached(unidirectional=self._unidirectional)}"
            ) from None
        finally:
            self._waiting -= 1

    async def _topic_stream(self, topic: str) -> AsyncStream:
        by_topic = self._by_topic
        for name in [name for name, stream in by_topic.items() if stream.channel.ended]:
            del by_topic[name]
        stream = by_topic.get(topic)
        if stream is not None:
            by_topic.move_to_end(topic)
            return stream
        while len(by_topic) >= self._bound or (
            by_topic and self.streams.is_exhausted(unidirectional=self._unidirectional)
        ):
            await self._end_least_recently_used()
        stream = by_topic[topic] = await self.streams.open_topic(topic, unidirectional=self._unidirectional)
        return stream

    async def _end_least_recently_used(self) -> None:
        """End the topic's stream that was idle for the longest time; waits until one is idle."""
        while not self._end_an_idle_one():
            await self.streams.progress()

    def _end_an_idle_one(self) -> bool:
        for name, stream in self._by_topic.items():
            channel = stream.channel
            # What is not acknowledged by QUIC either could still be overtaken by the topic's next stream.
            if channel.ended or (stream.is_idle and not channel.stream.pending):
                del self._by_topic[name]
                stream.retire()
                return True
        return False


def _ways(outlet: MappedPublisher | Publisher, stream: AsyncStream | None) -> tuple[Publisher, DataChannel | None]:
    """Return who publishes, and on which unidirectional stream if it is one."""
    if not isinstance(outlet, MappedPublisher):
        return outlet, None
    assert stream is not None
    return outlet.ways(stream)
