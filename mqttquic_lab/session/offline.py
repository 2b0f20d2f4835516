"""Messages published while the session has no connection: kept within bounds, sent when it has one again."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mqttquic_lab.errors import LabError, PublishError
from mqttquic_lab.mqtt import ReasonCode
from mqttquic_lab.session.limits import said
from mqttquic_lab.session.results import PublishResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mqttquic_lab.mqtt import Delivery, PubAck, PubComp, PubRec
    from mqttquic_lab.session.happenings import Happenings
    from mqttquic_lab.session.mapping import MappedPublisher
    from mqttquic_lab.session.publishing import Publisher
    from mqttquic_lab.session.results import SessionStats

MAX_OFFLINE_BYTES: Final = 64 * 2**20
"""Payload bytes that wait at most, whatever the number of messages."""

QUEUED: Final = PublishResult(0, None, None, queued=True)


class OfflineMessage(NamedTuple):
    """One message that waits; its arguments were checked when it was published."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: Mapping[str, Any] | None
    since: float
    """When it was published, on the monotonic clock."""

    @classmethod
    def now(
        cls, topic: str, payload: bytes, qos: int, retain: bool, properties: Mapping[str, Any] | None
    ) -> OfflineMessage:
        """Make one with the present time."""
        return cls(topic, payload, qos, retain, properties, monotonic())

    def aged(self) -> OfflineMessage | None:
        """Return it with what is left of its Message Expiry Interval (MQTT 5.0 section 3.3.2.3.3); None if none is."""
        expiry = (self.properties or {}).get("message_expiry_interval")
        if expiry is None:
            return self
        left = expiry - int(monotonic() - self.since)
        if left <= 0:
            return None
        return self._replace(properties={**(self.properties or {}), "message_expiry_interval": left})


class OfflineQueue:
    """The messages of one session that wait for a connection. On its loop only.

    Parameters
    ----------
    bound : int
        Messages at most; 0 takes none.
    stats : SessionStats
        Counted into.
    happenings : Happenings
        Told what became of a message that cannot be sent: nobody waits for it.

    Attributes
    ----------
    outstanding : int
        Messages that wait, or are sent and not acknowledged.
    """

    abandoned = False  # as a token of deliveries: what it has sent stays until it is acknowledged

    def __init__(self, bound: int, stats: SessionStats, happenings: Happenings) -> None:
        self.bound = bound
        self.outstanding = 0
        self._stats = stats
        self._happenings = happenings
        self._messages: deque[OfflineMessage] = deque()
        self._bytes = 0
        self._done = asyncio.Event()
        self._done.set()
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: OfflineMessage) -> None:
        """Add a message.

        Raises
        ------
        PublishError
            The queue is full (Quota exceeded, 0x97).
        """
        if len(self._messages) >= self.bound or self._bytes + len(message.payload) > MAX_OFFLINE_BYTES:
            raise PublishError(
                f"the session has no connection, and {len(self._messages)} messages ({self._bytes} bytes) wait for one "
                f"already: the message on {message.topic!r} was not taken (offline_queue={self.bound})",
                reason_code=ReasonCode.QUOTA_EXCEEDED,
            )
        self._messages.append(message)
        self._bytes += len(message.payload)
        self._stats.queued += 1
        self.outstanding += 1
        self._done.clear()

    def drain(self, outlet: Publisher | MappedPublisher, control: Publisher) -> None:
        """Send everything, in its order: at once on the control stream, else as its streams allow."""
        if not self._messages:
            return
        if outlet is control:
            while (message := self._take()) is not None:
                self._put(message, control)
        elif self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._publish_all(outlet), name="mqttquic-offline")

    def clear(self) -> None:
        """Drop all: the session is closed."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._messages:
            self._stats.queued_dropped += len(self._messages)
            self._happenings.record_error(
                "offline_queue", f"{len(self._messages)} messages were never sent: the session was closed first"
            )
        self.outstanding -= len(self._messages)
        self._messages.clear()
        self._bytes = 0
        self._settle()

    async def wait_done(self) -> None:
        """Wait until everything is sent, and acknowledged at QoS 1 and 2."""
        await self._done.wait()

    # Sending

    def _take(self) -> OfflineMessage | None:
        """Take out the oldest message that has not expired."""
        while self._messages:
            message = self._messages.popleft()
            self._bytes -= len(message.payload)
            aged = message.aged()
            if aged is not None:
                return aged
            self._dropped(f"the message on {message.topic!r} expired before there was a connection")
        return None

    def _put(self, message: OfflineMessage, control: Publisher) -> None:
        topic, payload, qos, retain, properties, _ = message
        try:
            control.put(topic, payload, qos, retain, properties, self if qos else None)
        except LabError as error:  # what the new connection does not allow, the old one may have
            self._dropped(str(error))
        else:
            if not qos:
                self._finished()

    async def _publish_all(self, outlet: Publisher | MappedPublisher) -> None:
        try:
            while (message := self._take()) is not None:
                topic, payload, qos, retain, properties, _ = message
                try:
                    await outlet.publish(topic, payload, qos, retain, properties, False, None)
                except LabError as error:
                    self._dropped(f"the message on {topic!r} may be lost: {error}")
                else:
                    self._finished()
        finally:
            if self._task is asyncio.current_task():
                self._task = None

    def _finished(self) -> None:
        self.outstanding -= 1
        self._settle()

    def _dropped(self, why: str) -> None:
        self._stats.queued_dropped += 1
        self._happenings.record_error("offline_queue", why)
        self._finished()

    def _settle(self) -> None:
        if self.outstanding <= 0:
            self._done.set()

    # What the deliveries tell

    def sent(self) -> None:
        """Nobody times it."""

    def finished(self, delivery: Delivery, code: int, packet: PubAck | PubRec | PubComp) -> None:
        """Take the last acknowledgement of a message."""
        if code >= 0x80:
            words = packet.properties.get("reason_string")
            self._dropped(f"the broker refused the message on {delivery.topic!r}: {said(code, words)}")
        else:
            self._finished()

    def lost(self, error: LabError) -> None:
        """Take that the session was closed before a message was acknowledged."""
        self._stats.queued_dropped += 1
        self._finished()
