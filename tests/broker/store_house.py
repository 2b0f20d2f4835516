"""A broker with a store that can be closed, or killed, and started again; on a clock that tests move."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.server import BrokerServer
from tests.broker.conftest import OFFLINE, Bench
from tests.helpers.clock import ManualClock

if TYPE_CHECKING:
    from pathlib import Path

    from mqttquic_lab.broker.store import Journal

EPOCH = 1_700_000_000.0
"""Seconds since the epoch when the first broker starts."""


class House:
    """Where one broker after the other uses the same store.

    Attributes
    ----------
    path : Path
        The file that the broker of now has.
    bench : Bench
        The broker of now.
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.path = folder / "store0.db"
        self.options = options
        self.bench: Bench
        self._count = 0
        self._epoch = EPOCH
        self._killed: list[BrokerServer] = []

    @property
    def server(self) -> BrokerServer:
        return self.bench.server

    @property
    def journal(self) -> Journal:
        assert self.server.journal is not None
        return self.server.journal

    async def start(self, **options: Any) -> Bench:
        """Start a broker; its clock begins anywhere but where the last one stood."""
        self._count += 1
        clock = ManualClock(1000.0 * self._count)
        began, epoch = clock.time(), self._epoch

        def now() -> float:
            return epoch + clock.time() - began

        settings = {**OFFLINE, "store": self.path, **self.options, **options}
        server = BrokerServer(BrokerConfig(**settings), clock=clock, epoch=now)
        await server.start()
        self.bench = Bench(server, clock)
        self._now = now
        return self.bench

    async def restart(self, *, after: float = 0.0, **options: Any) -> Bench:
        """Close the broker and start it again `after` so many seconds."""
        await self.server.close()
        assert self.bench.clock.pending == 0
        self._epoch = self._now() + after
        return await self.start(**options)

    async def kill(self, *, after: float = 0.0, **options: Any) -> Bench:
        """Start a broker on what is on disk now, as if the process had been killed."""
        await self.journal.settled()
        older, self.path = self.path, self.folder / f"store{self._count}.db"
        for suffix in ("", "-wal"):
            shutil.copy(f"{older}{suffix}", f"{self.path}{suffix}")
        self._killed.append(self.server)
        self._epoch = self._now() + after
        return await self.start(**options)

    async def end(self) -> None:
        """Close everything."""
        for server in (*self._killed, self.server):
            await server.close()
