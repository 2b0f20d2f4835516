"""Publishing: from a payload to bytes on the stream, and from acknowledgements back to whoever waits for them."""

from __future__ import annotations

import asyncio
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any

from mqttquic_lab.errors import DisconnectedError, LabError, OperationTimeoutError, PublishError, UsageError
from mqttquic_lab.mqtt import Deliveries, check_topic_name, encode_publish
from mqttquic_lab.session.limits import ServerLimits, said
from mqttquic_lab.session.offline import OfflineQueue
from mqttquic_lab.session.options import check_timeout
from mqttquic_lab.session.payload import encode_payload
from mqttquic_lab.session.results import PublishResult, PublishSummary

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Mapping

    from mqttquic_lab.mqtt import Delivery, PubAck, PubComp, PubRec, Version
    from mqttquic_lab.session.aliases import TopicAliases
    from mqttquic_lab.session.data_stream import DataChannel
    from mqttquic_lab.session.packet_stream import PacketStream
    from mqttquic_lab.session.quic_options import EarlyMessage
    from mqttquic_lab.session.results import SessionStats

HIGH_WATER = 256 * 1024
"""Bytes written but not taken by the transport above which a publisher waits."""

BATCH_BYTES = 32 * 1024
"""Bytes that ``publish_many`` collects before it writes them and lets the loop run."""

MAX_QUEUED = 65_536
"""QoS 1 and 2 messages that may wait for the broker's receive maximum; more are refused at once."""

MAX_WINDOW = 4096
"""QoS 1 and 2 messages that one ``publish_many`` has under way at most, whatever the broker would take."""

TOPIC_CACHE = 4096
CACHED_TOPIC = 512
"""Topic names remembered as valid, and characters of the longest of them."""

_SENT = PublishResult(0, None, None)


class Waiting:
    """Somebody who waits for the acknowledgement of one message."""

    __slots__ = ("abandoned", "future", "sent_at")

    def __init__(self, future: asyncio.Future[PublishResult]) -> None:
        self.future = future
        self.sent_at = perf_counter()
        self.abandoned = False

    def sent(self) -> None:
        """Note that the message leaves now, after it had to wait for the receive maximum."""
        self.sent_at = perf_counter()

    def finished(self, delivery: Delivery, code: int, packet: PubAck | PubRec | PubComp) -> None:
        """Take the last acknowledgement; `code` is what the broker said of the message (at QoS 2 in its PUBREC)."""
        if self.future.done():
            return
        if code >= 0x80:
            words = packet.properties.get("reason_string")
            self.future.set_exception(
                PublishError(
                    f"the broker refused the message on {delivery.topic!r}: {said(code, words)}",
                    reason_code=code,
                    reason_string=words,
                    packet=packet,
                )
            )
        else:
            self.future.set_result(PublishResult(code, packet.packet_id, perf_counter() - self.sent_at))

    def lost(self, error: DisconnectedError) -> None:
        """Take the end of the connection."""
        if not self.future.done():
            self.future.set_exception(error)


class Bulk:
    """All the messages of one ``publish_many`` at QoS 1 or 2."""

    __slots__ = ("abandoned", "error", "outstanding", "progress", "summary")

    def __init__(self, summary: PublishSummary) -> None:
        self.summary = summary
        self.outstanding = 0
        self.abandoned = False
        self.error: DisconnectedError | None = None
        self.progress = asyncio.Event()

    def sent(self) -> None:
        """Single messages are not timed."""

    def finished(self, delivery: Delivery, code: int, packet: PubAck | PubRec | PubComp) -> None:
        """Count one acknowledgement."""
        self.outstanding -= 1
        self.summary.reason_codes[code] += 1
        self.progress.set()

    def lost(self, error: DisconnectedError) -> None:
        """Take the end of the connection."""
        self.error = error
        self.progress.set()


class Publisher:
    """The sending half of one stream's messages. On its loop only."""

    def __init__(
        self, channel: PacketStream, deliveries: Deliveries, stats: SessionStats, *, topics: set[str] | None = None
    ) -> None:
        self.limits = ServerLimits()
        self.ready = asyncio.Event()
        """Not set while the session moves from one connection to another."""
        self.ready.set()
        self._channel = channel
        self._version: Version = channel.version
        self._deliveries = deliveries
        self._stats = stats
        self.aliases: TopicAliases | None = None
        """Of the present connection; None if none are used."""
        self.topics: set[str] = set() if topics is None else topics
        self._unknown = 0
        self.lane_of: Callable[[str], DataChannel | None] = _no_lane
        """Which unidirectional stream a message goes on that had to wait; its acknowledgements come here."""
        deliveries.skip = _is_abandoned

    async def publish(
        self,
        topic: str,
        payload: Any,
        qos: int,
        retain: bool,
        properties: Mapping[str, Any] | None,
        timestamp: bool,
        timeout: float | str | None,
        lane: DataChannel | None = None,
    ) -> PublishResult:
        """See :meth:`AsyncSession.publish`; the PUBLISH goes on `lane` if that is given, all else on our own stream."""
        channel = self._channel
        data = payload if type(payload) is bytes else encode_payload(payload)
        if topic not in self.topics:
            self.check_topic(topic)
        if qos or retain or properties or timestamp:
            properties = self.check(qos, retain, properties, timestamp)
        if channel.ended:
            raise channel.gone("cannot publish")
        if not qos:
            self._send(topic, data, retain, properties, lane)
            if (lane or channel).stream.pending > HIGH_WATER:
                await self._drain(check_timeout(timeout), lane)
            return _SENT
        return await self._publish_acknowledged(topic, data, qos, retain, properties, check_timeout(timeout), lane)

    async def _publish_acknowledged(
        self,
        topic: str,
        data: bytes,
        qos: int,
        retain: bool,
        properties: Mapping[str, Any] | None,
        timeout: float | None,
        lane: DataChannel | None,
    ) -> PublishResult:
        waiting = Waiting(asyncio.get_running_loop().create_future())
        self._begin(topic, data, qos, retain, properties, waiting, lane)
        try:
            async with asyncio.timeout(timeout):
                return await waiting.future
        except TimeoutError:
            raise OperationTimeoutError(
                f"the broker did not acknowledge the message on {topic!r} (QoS {qos}) within {timeout:g} s; "
                f"{len(self._deliveries)} messages are unacknowledged"
            ) from None
        finally:
            # What was sent stays in flight until its acknowledgement; what still waits is not sent any more.
            waiting.abandoned = True
            if lane is not None:
                lane.riders.discard(waiting)

    def adopt(self, message: EarlyMessage, packet_id: int | None, at: float) -> asyncio.Future[PublishResult]:
        """Take over a message that was written `at` the time the connection was opened; its result will be there."""
        outcome: asyncio.Future[PublishResult] = asyncio.get_running_loop().create_future()
        self._stats.messages_sent += 1
        if packet_id is None:
            outcome.set_result(_SENT)
            return outcome
        waiting = Waiting(outcome)
        waiting.sent_at = at
        outcome.add_done_callback(_seen)
        given = self._deliveries.send(message.topic, message.payload, message.qos, message.retain, None, waiting)
        assert given == packet_id, "the session was not new"
        return outcome

    def _begin(
        self,
        topic: str,
        data: bytes,
        qos: int,
        retain: bool,
        properties: Mapping[str, Any] | None,
        token: Waiting | Bulk | OfflineQueue,
        lane: DataChannel | None = None,
    ) -> None:
        # Encoded before it gets an identifier, so that a packet that cannot be sent takes none.
        packet = encode_publish(topic, data, qos, retain, False, 1, properties, self._version)
        if len(packet) > self._channel.limit:
            self.limits.check_size(len(packet), len(data))
        packet_id = self._deliveries.send(topic, data, qos, retain, properties, token)
        if packet_id is not None:
            if self.aliases is not None and lane is None:
                packet = self.aliases.encode(topic, data, qos, retain, packet_id, properties, self._channel.limit)
            elif packet_id != 1:
                packet = encode_publish(topic, data, qos, retain, False, packet_id, properties, self._version)
            (lane or self._channel).write(packet)
            self._stats.messages_sent += 1
            if lane is not None and not isinstance(token, OfflineQueue):
                lane.riders.add(token)

    def put(
        self,
        topic: str,
        data: bytes,
        qos: int,
        retain: bool,
        properties: Mapping[str, Any] | None,
        token: Bulk | OfflineQueue | None,
        lane: DataChannel | None = None,
    ) -> None:
        """Send one message that was checked, without waiting; at QoS 1 and 2 `token` is told how it ended."""
        if token is not None:
            self._begin(topic, data, qos, retain, properties, token, lane)
            return
        self._send(topic, data, retain, properties, lane)

    def _send(
        self, topic: str, data: bytes, retain: bool, properties: Mapping[str, Any] | None, lane: DataChannel | None
    ) -> None:
        """Send one message at QoS 0."""
        channel = self._channel
        if self.aliases is None or lane is not None:
            packet = encode_publish(topic, data, 0, retain, False, None, properties, self._version)
        else:
            packet = self.aliases.encode(topic, data, 0, retain, None, properties, channel.limit)
        if len(packet) > channel.limit:
            self.limits.check_size(len(packet), len(data))
        (lane or channel).write(packet)
        self._stats.messages_sent += 1

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
        summary = PublishSummary()
        self.check(qos, retain, properties, timestamp)
        started = perf_counter()
        if qos:
            bulk = Bulk(summary)
            try:
                await self._many_acknowledged(messages, qos, retain, properties, timestamp, bulk, timeout)
            finally:
                bulk.abandoned = True
        else:
            await self._many_at_most_once(messages, retain, properties, timestamp, summary, timeout)
        summary.seconds = perf_counter() - started
        return summary

    async def _many_at_most_once(
        self,
        messages: Iterable[tuple[str, Any]] | AsyncIterable[tuple[str, Any]],
        retain: bool,
        properties: Mapping[str, Any] | None,
        timestamp: bool,
        summary: PublishSummary,
        timeout: float | None,
    ) -> None:
        version, topics = self._version, self.topics
        parts: list[bytes] = []
        size = 0
        try:
            async for topic, payload in each(messages):
                data = payload if type(payload) is bytes else encode_payload(payload)
                if topic not in topics:
                    self.check_topic(topic)
                block = stamped(properties) if timestamp else properties
                if self.aliases is not None:
                    # What names an alias must leave before anybody else uses it, and on this very connection.
                    await self._connected(timeout)
                    self.put(topic, data, 0, retain, block, None)
                    summary.count += 1
                    summary.payload_bytes += len(data)
                    if not summary.count % 128:
                        await self.let_run(timeout)
                    continue
                packet = encode_publish(topic, data, 0, retain, False, None, block, version)
                if len(packet) > self._channel.limit:
                    self.limits.check_size(len(packet), len(data))
                parts.append(packet)
                size += len(packet)
                summary.payload_bytes += len(data)
                if size >= BATCH_BYTES:
                    await self._connected(timeout)
                    self._flush(parts, summary)
                    size = 0
                    await self.let_run(timeout)
            await self._connected(timeout)
        finally:
            # Also when a message cannot be sent: those before it were accepted.
            if parts and not self._channel.ended and self.ready.is_set():
                self._flush(parts, summary)
        await self.let_run(timeout)

    async def _many_acknowledged(
        self,
        messages: Iterable[tuple[str, Any]] | AsyncIterable[tuple[str, Any]],
        qos: int,
        retain: bool,
        properties: Mapping[str, Any] | None,
        timestamp: bool,
        bulk: Bulk,
        timeout: float | None,
    ) -> None:
        summary = bulk.summary
        window = min(self.limits.receive_maximum, MAX_WINDOW)
        async for topic, payload in each(messages):
            data = payload if type(payload) is bytes else encode_payload(payload)
            if topic not in self.topics:
                self.check_topic(topic)
            while bulk.outstanding >= window:
                await self.acknowledgements(bulk, timeout)
            if self._channel.ended and self.ready.is_set():
                raise self._channel.gone("cannot publish")
            # Between two connections it queues.
            self._begin(topic, data, qos, retain, stamped(properties) if timestamp else properties, bulk)
            bulk.outstanding += 1
            summary.count += 1
            summary.payload_bytes += len(data)
            if not summary.count % 128 or self._channel.stream.pending > HIGH_WATER:
                await self.let_run(timeout)
        while bulk.outstanding:
            await self.acknowledgements(bulk, timeout)

    async def acknowledgements(self, bulk: Bulk, timeout: float | None) -> None:
        """Wait until something came back."""
        if bulk.error is None:
            bulk.progress.clear()
            try:
                async with asyncio.timeout(timeout):
                    await bulk.progress.wait()
            except TimeoutError:
                raise OperationTimeoutError(
                    f"the broker acknowledged nothing for {timeout:g} s: of {bulk.summary.count} messages "
                    f"{bulk.outstanding} are unacknowledged"
                ) from None
        if bulk.error is not None:
            raise bulk.error

    def _flush(self, parts: list[bytes], summary: PublishSummary) -> None:
        if self._channel.ended:
            raise self._channel.gone(f"publish_many stopped after {summary.count} messages")
        self._channel.write(b"".join(parts), len(parts))
        self._stats.messages_sent += len(parts)
        summary.count += len(parts)
        parts.clear()

    async def let_run(self, timeout: float | None) -> None:
        """Let the loop send what was written, and wait if the broker takes it too slowly."""
        await asyncio.sleep(0)
        await self._connected(timeout)
        if self._channel.stream.pending > HIGH_WATER:
            await self._drain(timeout)

    async def _connected(self, timeout: float | None) -> None:
        """Wait while the session changes connections; raises DisconnectedError if it has none then."""
        if not self.ready.is_set():
            try:
                async with asyncio.timeout(timeout):
                    await self.ready.wait()
            except TimeoutError:
                raise OperationTimeoutError(f"the session was still reconnecting after {timeout:g} s") from None
        if self._channel.ended:
            raise self._channel.gone("cannot publish")

    async def _drain(self, timeout: float | None, lane: DataChannel | None = None) -> None:
        channel, stream = self._channel, (lane or self._channel).stream
        try:
            async with asyncio.timeout(timeout):
                await stream.drain()
        except TimeoutError:
            raise OperationTimeoutError(
                f"the broker takes no more data: {stream.pending} bytes wait since {timeout:g} s"
            ) from None
        except LabError as error:
            if self._channel is not channel:
                return  # another connection carries the session on
            if self._channel.ended:
                raise self._channel.gone("cannot publish") from error
            raise DisconnectedError(f"cannot publish: {error}") from error

    def acknowledge(self, packet: PubAck | PubRec | PubComp) -> None:
        """Take in PUBACK, PUBREC or PUBCOMP; raises ProtocolError for one that does not fit."""
        outcome = self._deliveries.acknowledge(packet)
        if outcome.reply is not None:
            self._channel.write(outcome.reply.encode(self._version))
        for delivery in outcome.sendable:
            delivery.token.sent()
            (self.lane_of(delivery.topic) or self._channel).write(delivery.encode(self._version))
            self._stats.messages_sent += 1
        if outcome.finished is not None:
            outcome.finished.token.finished(outcome.finished, outcome.reason_code, packet)
        if self._deliveries.unknown != self._unknown:
            self._stats.stray += self._deliveries.unknown - self._unknown
            self._unknown = self._deliveries.unknown

    def move(self, channel: PacketStream) -> None:
        """Go on over another connection."""
        self._channel = channel
        self.lane_of = _no_lane
        self.aliases = None

    def lost(self) -> None:
        """Fail everybody who waits: the connection has ended."""
        for delivery in self._deliveries.clear():
            delivery.token.lost(self._channel.gone(f"the message on {delivery.topic!r} was not acknowledged"))

    def check_topic(self, topic: str) -> None:
        """Raise UsageError unless `topic` is a topic name; it is remembered as one."""
        if topic in self.topics:
            return
        check_topic_name(topic)
        if len(self.topics) >= TOPIC_CACHE:
            self.topics.clear()
        if len(topic) <= CACHED_TOPIC:
            self.topics.add(topic)

    def check(
        self, qos: int, retain: bool, properties: Mapping[str, Any] | None, timestamp: bool
    ) -> Mapping[str, Any] | None:
        """Check all but topic and payload; returns the properties to send."""
        if qos not in (0, 1, 2) or isinstance(qos, bool):
            raise UsageError(f"qos={qos!r}: must be 0, 1 or 2")
        if self._version != 5 and (properties or timestamp):
            what = "timestamp=True needs a User Property, which" if timestamp else "properties are something that"
            raise UsageError(f'{what} MQTT 3.1.1 does not have: leave it out, or connect with version="5.0"')
        if properties and "subscription_identifier" in properties:
            raise UsageError("subscription_identifier is set by brokers only [MQTT-3.3.4-6]: leave it out")
        if properties and "topic_alias" in properties:
            raise UsageError("topic_alias belongs to the connection, not to a message: leave it out")
        self.limits.check_publish(qos, retain)
        return stamped(properties) if timestamp else properties


def stamped(properties: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return `properties` with the time of sending, from which the receiving feed works out the latency."""
    block = dict(properties or {})
    block["user_property"] = [*block.get("user_property", ()), ("sent_ns", str(time_ns()))]
    return block


def _no_lane(topic: str) -> None:
    """Have everything go on the publisher's own stream."""


def _seen(outcome: asyncio.Future[PublishResult]) -> None:
    """Look at an error that perhaps nobody asks for."""
    if not outcome.cancelled():
        outcome.exception()


def _is_abandoned(delivery: Delivery) -> bool:
    return bool(delivery.token.abandoned)


async def each(messages: Iterable[tuple[str, Any]] | AsyncIterable[tuple[str, Any]]) -> Any:
    """Iterate over either kind of iterable."""
    if hasattr(messages, "__aiter__"):
        async for message in messages:
            yield message
    else:
        for message in messages:
            yield message
