"""A pair of well-behaved clients that exchange numbered messages while all else goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING

from mqttquic_lab.errors import LabError
from mqttquic_lab.session.client import AsyncSession

if TYPE_CHECKING:
    from mqttquic_lab.broker.server import BrokerServer

PAUSE = 0.02
"""Seconds between two messages."""
PATIENCE = 15.0
"""Seconds after which a message that is not acknowledged counts as lost."""


class Witness:
    """Publishes at QoS 1 and 2 over one transport, reads over another, and counts.

    Attributes
    ----------
    sent, received : int
        Messages published and acknowledged, and those that came.
    complaints : list of str
        What should not have happened.
    """

    def __init__(self, name: str, server: BrokerServer) -> None:
        self.name = name
        self.sent = self.received = 0
        self.complaints: list[str] = []
        self._server = server
        self._got: Counter[int] = Counter()
        self._last = {1: -1, 2: -1}
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect and begin."""
        urls, ca_file = self._server.urls, str(self._server.ca_file)
        self._writer = await AsyncSession.open(
            urls["mqtt"], client_id=f"witness-writer-{self.name}", reconnect=False, timeout=PATIENCE
        )
        self._reader = await AsyncSession.open(
            urls["quic"], client_id=f"witness-reader-{self.name}", reconnect=False, ca_file=ca_file, timeout=PATIENCE
        )
        self._feed = await self._reader.subscribe(f"witness/{self.name}/#", qos=2, decode="raw")
        self._feed.log.columns_since(0, 1)  # imports what it needs now, not between two looks at the memory
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while not self._stop.is_set():
                qos = 1 + self.sent % 2
                await self._writer.publish(f"witness/{self.name}/{qos}", b"%d" % self.sent, qos=qos, timeout=PATIENCE)
                self.sent += 1
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), PAUSE)
        except LabError as error:
            self.complaints.append(f"witness {self.name}: publishing failed after {self.sent} messages: {error}")

    async def stop(self) -> None:
        """End, and find out whether each message came once."""
        self._stop.set()
        if self._task is not None:
            await self._task
        log = self._feed.log
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while log.total < self.sent:
                    await asyncio.sleep(0.02)
        numbers = [int(payload) for payload in log.columns_since(0, 1_000_000).payloads]
        self.received = len(numbers)
        counted = Counter(numbers)
        lost = [number for number in range(self.sent) if not counted[number]]
        twice = [number for number, times in counted.items() if times > 1]
        if lost:
            self.complaints.append(f"witness {self.name}: {len(lost)} of {self.sent} messages lost, first {lost[:5]}")
        if twice:
            self.complaints.append(f"witness {self.name}: {len(twice)} messages came twice, first {twice[:5]}")
        for qos in (1, 2):
            own = [number for number in numbers if 1 + number % 2 == qos]
            if own != sorted(own):
                self.complaints.append(f"witness {self.name}: messages at QoS {qos} came out of order")
        for session in (self._reader, self._writer):
            self.complaints += [f"witness {self.name}: {entry.where}: {entry.message}" for entry in session.errors]
            await session.close()
