"""What :class:`mqttquic_lab.broker.process.BrokerProcess` runs: ``python -m mqttquic_lab.broker.child``.

Reads its settings as one line of JSON from stdin, serves until stdin ends, and tells its state on stdout.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
from typing import Any

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.server import BrokerServer
from mqttquic_lab.errors import LabError, UsageError

TELL_INTERVAL = 0.05
"""Seconds between two accounts of the state at least."""
TELL_SHARE = 10
"""An account that took long to give is followed by so many times as long without one."""


def main() -> None:
    """Run the broker until the parent closes our stdin."""
    with contextlib.suppress(ValueError, OSError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    told = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever prints must not get between the lines that the parent reads
    settings = json.loads(sys.stdin.buffer.readline())
    settings["server_names"] = tuple(settings["server_names"])
    with contextlib.suppress(BrokenPipeError):  # the parent is gone
        asyncio.run(_serve(BrokerConfig(**settings), told))


async def _serve(config: BrokerConfig, out: Any) -> None:
    loop = asyncio.get_running_loop()
    parent_left = asyncio.Event()

    def watch_stdin() -> None:
        sys.stdin.buffer.read()
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(parent_left.set)

    async def tell(message: dict[str, Any]) -> None:
        # In a thread: a parent that is stopped (a debugger, ^Z) does not read, and must not stop the broker.
        await asyncio.to_thread(out.write, json.dumps(message).encode() + b"\n")

    async def tell_state() -> None:
        while True:
            started = loop.time()
            seen = server.changes
            clients = [dataclasses.asdict(client) for client in server.clients()]
            stats = server.stats().to_dict()
            await tell({"event": "state", "clients": clients, "stats": stats})
            await asyncio.sleep(max(TELL_INTERVAL, TELL_SHARE * (loop.time() - started)))
            if server.changes == seen:
                await server.next_change()

    threading.Thread(target=watch_stdin, name="parent-watch", daemon=True).start()
    server = BrokerServer(config)
    try:
        await server.start()
    except (LabError, OSError) as error:
        kind = type(error).__name__ if isinstance(error, LabError) else UsageError.__name__
        await tell({"event": "failed", "type": kind, "message": str(error)})
        return
    teller: asyncio.Task[None] | None = None
    try:
        ca_file = str(server.ca_file) if config.quic or config.tls else None
        await tell({"event": "started", "urls": server.urls, "ca_file": ca_file})
        teller = asyncio.create_task(tell_state())
        leaving = asyncio.create_task(parent_left.wait())
        await asyncio.wait([teller, leaving], return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
    finally:
        if teller is not None:
            teller.cancel()
            with contextlib.suppress(asyncio.CancelledError, BrokenPipeError):
                await teller
        await server.close()


if __name__ == "__main__":
    main()
