"""A load of numbered messages that runs until it is told to stop, for tests that do something to the connection."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqttquic_lab.session import AsyncFeed, AsyncSession

PATIENCE = 30.0
"""Seconds for one acknowledgement: a hang, not a measurement."""


@dataclass
class NumberedLoad:
    """Publishes 0, 1, 2 ... and remembers which were acknowledged.

    Attributes
    ----------
    sender : AsyncSession
        Publishes.
    topic : str
        Where to.
    qos : int
        1 or 2.
    window : int
        Messages under way at a time.
    rate : float or None
        Messages per second; None for as many as are acknowledged.
    acknowledged : dict of int to float
        Number -> when, seconds since the epoch.
    """

    sender: AsyncSession
    topic: str = "numbered"
    qos: int = 2
    window: int = 32
    rate: float | None = None
    acknowledged: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self._stopping = asyncio.Event()
        self._more = asyncio.Event()
        self._work: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._work = [asyncio.create_task(self._publish(place)) for place in range(self.window)]

    async def _publish(self, place: int) -> None:
        loop = asyncio.get_running_loop()
        step = self.window / self.rate if self.rate else 0.0
        due = loop.time() + step * place / self.window
        while not self._stopping.is_set():
            if step:
                await asyncio.sleep(max(0.0, due - loop.time()))
                # Who was held up keeps its place in the order: else everybody goes at once ever after.
                while due <= loop.time():
                    due += step
            number = next(self._numbers)
            await self.sender.publish(self.topic, b"%d" % number, self.qos, timeout=PATIENCE)
            self.acknowledged[number] = time.time()
            self._more.set()

    async def reached(self, count: int) -> None:
        """Wait until so many more are acknowledged."""
        target = len(self.acknowledged) + count
        async with asyncio.timeout(PATIENCE):
            while len(self.acknowledged) < target:
                for task in self._work:
                    if task.done():
                        task.result()
                self._more.clear()
                await self._more.wait()

    async def stop(self) -> set[int]:
        """Let what is under way come to its end; returns the numbers acknowledged."""
        self._stopping.set()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*self._work)
        return set(self.acknowledged)


def numbers(payloads: Sequence[bytes]) -> Counter[int]:
    return Counter(int(payload) for payload in payloads)


async def check_delivered(acknowledged: set[int], feed: AsyncFeed, *, exactly_once: bool) -> Counter[int]:
    """Assert that everything acknowledged arrives, and at QoS 2 once."""
    async with asyncio.timeout(PATIENCE):
        while not acknowledged <= (received := numbers(feed.df["payload"].tolist())).keys():
            await feed.wait(feed.total + 1, timeout=PATIENCE)
    if exactly_once:
        assert set(received.values()) == {1}, "a QoS 2 message was delivered twice"
    return received


@dataclass(frozen=True)
class Gap:
    """The longest silence among arrivals."""

    seconds: float
    messages: int
    """That were due in it, at the rate of the load."""
    usual: float
    """Median time between two arrivals, seconds."""

    def to_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "messages": self.messages, "usual": self.usual}


def longest_gap(arrivals: Sequence[float], *, after: float, before: float, rate: float) -> Gap:
    """Return the longest silence that begins between two times.

    Parameters
    ----------
    arrivals : sequence of float
        When messages arrived, seconds, in order.
    after, before : float
        Where to look.
    rate : float
        Messages per second that were sent.
    """
    steps = [(later - earlier, earlier) for earlier, later in itertools.pairwise(arrivals)]
    usual = statistics.median(step for step, _ in steps)
    around = [step for step, begun in steps if begun <= before and begun + step >= after]
    longest = max(around, default=0.0)
    return Gap(longest, max(0, round(longest * rate) - 1), usual)
