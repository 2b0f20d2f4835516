"""The load that every scenario carries: messages at QoS 1 and 2 that come back, and what must be true of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from mqttquic_lab.session import AsyncFeed, AsyncSession
    from mqttquic_lab.session.stream import AsyncStream

PATIENCE = 30.0
"""Seconds for one acknowledgement, or one message: a hang, not a measurement."""

PADDING = 300
"""Bytes that make several hundred messages several hundred packets."""

Message = tuple[int, str, bytes]
"""QoS, topic, payload; every payload is unique."""


@dataclass
class Load:
    """What was sent through one session, acknowledged, and received back on it."""

    name: str
    each: int
    """Messages of either QoS."""
    topics: int = 1
    acknowledged: set[Message] = field(default_factory=set)
    received: Counter[Message] = field(default_factory=Counter)
    seconds: float = 0.0
    """From the first PUBLISH to the last message that came back."""
    feed: AsyncFeed = field(init=False)

    def messages(self) -> Iterator[Message]:
        """Yield the messages, both QoS in turns."""
        for number in range(self.each):
            for qos in (1, 2):
                topic = f"{self.name}/{number % self.topics}"
                yield qos, topic, f"{self.name} {qos} {number} ".encode().ljust(PADDING, b"%d" % (number % 10))

    def take(self) -> bool:
        """Take one message out of the feed if there is one."""
        message = self.feed.cursor.take()
        if message is not None:
            self.received[message.qos, message.topic, message.payload] += 1
        return message is not None

    def check(self) -> None:
        """Assert what MQTT promises, whatever happened to the packets."""
        sent = set(self.messages())
        assert len(sent) == 2 * self.each, "payloads must be unique, else nothing is shown"
        assert self.acknowledged == sent
        assert self.acknowledged <= self.received.keys(), "an acknowledged message was not delivered"
        assert self.received.keys() <= sent, "a message came that nobody sent"
        twice = [message for message, times in self.received.items() if message[0] == 2 and times > 1]
        assert not twice, f"{len(twice)} QoS 2 messages were delivered more than once"

    @property
    def repeated(self) -> int:
        """QoS 1 messages that came once more, as they may."""
        return self.received.total() - len(self.received)


async def carry(
    carrier: AsyncSession | AsyncStream,
    load: Load,
    *,
    window: int,
    during: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Send a load through a session, or one stream of it, and receive it on the same one.

    Parameters
    ----------
    carrier : AsyncSession or AsyncStream
        Connected.
    load : Load
        Filled with what comes of it.
    window : int
        Messages under way at a time.
    during : callable, optional
        Awaited when a third of the messages are acknowledged, while the others go on.
    """
    load.feed = await carrier.subscribe(f"{load.name}/#", qos=2, decode="raw", timeout=PATIENCE)
    messages = load.messages()
    started = perf_counter()
    is_time = asyncio.Event()

    async def publish() -> None:
        for message in messages:  # shared: each message is taken by one of the publishers
            qos, topic, payload = message
            result = await carrier.publish(topic, payload, qos=qos, timeout=PATIENCE)
            assert result.reason_code == 0
            load.acknowledged.add(message)
            if 3 * len(load.acknowledged) >= 2 * load.each:
                is_time.set()

    async def disturb() -> None:
        await is_time.wait()
        if during is not None:
            await during()

    async def receive() -> None:
        while len(load.received) < 2 * load.each:
            if not load.take():
                await load.feed.wait_next(PATIENCE)

    async with asyncio.TaskGroup() as group:
        group.create_task(receive())
        group.create_task(disturb())
        for _ in range(window):
            group.create_task(publish())
    load.seconds = perf_counter() - started
