"""Traffic that runs while connections come and go."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from tests.session.scripted import hang

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mqttquic_lab.session import AsyncFeed, AsyncSession


class Load:
    """Publishes at QoS 1 and 2 to a feed of another session, and knows what must have come."""

    COUNT = 1500

    def __init__(self, sender: AsyncSession, receiver: AsyncSession, feeds: dict[int, AsyncFeed]) -> None:
        self._receiver = receiver
        self._feeds = feeds
        self._tasks = [asyncio.create_task(self._run(sender, qos)) for qos in (1, 2)]

    @classmethod
    async def start(cls, sender: AsyncSession, receiver: AsyncSession) -> Load:
        feeds = {qos: await receiver.subscribe(f"load/{qos}", qos, decode="raw") for qos in (1, 2)}
        return cls(sender, receiver, feeds)

    async def _run(self, sender: AsyncSession, qos: int) -> int:
        async def messages() -> AsyncIterator[tuple[str, bytes]]:
            for n in range(self.COUNT):
                yield f"load/{qos}", b"%d" % n
                if n % 50 == 0:
                    await asyncio.sleep(0.01)  # so that connections change while it runs

        return (await sender.publish_many(messages(), qos)).count

    async def until(self, share: float) -> None:
        await hang(self._feeds[2].wait(int(self.COUNT * share)))

    async def check(self) -> None:
        """Wait for the end: everything acknowledged has come, nothing at QoS 2 twice."""
        async with asyncio.timeout(30):
            assert await asyncio.gather(*self._tasks) == [self.COUNT] * 2
            expected = {b"%d" % n for n in range(self.COUNT)}
            for qos, feed in self._feeds.items():
                await feed.wait(self.COUNT)
                while set(feed.df["payload"]) != expected:
                    await feed.wait(feed.count + 1)
                await self._receiver.ping()  # what was sent again stands before the answer
                assert qos == 1 or max(Counter(feed.df["payload"]).values()) == 1
