"""Round trips from the first packet to CONNACK, and to the first PUBLISH at the broker, at an emulated 100 ms.

Over a real path with a delay (tests/helpers/tunnel.py), so that TCP's handshake counts. The broker and the path run in
a process of their own. Run it with ``python -m tests.benchmarks.bench_round_trips``; it needs the right to make a
network device.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from typing import TYPE_CHECKING, Any

from mqttquic_lab.broker import BrokerConfig, BrokerServer
from mqttquic_lab.quic.tickets import TicketStore
from mqttquic_lab.session import AsyncSession
from tests.helpers import tunnel

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

ROUND_TRIP = 0.1
REPEATS = 5

THEORY = {"TCP": (2, 2.5), "TLS 1.3": (3, 3.5), "QUIC": (2, 2.5), "QUIC resumed": (2, 2.5), "QUIC 0-RTT": (1, 0.5)}
"""Kind -> round trips to CONNACK, and to the first PUBLISH at the broker."""


def serve(pipe: Connection) -> None:
    """Run the path and a broker on it, and tell when each PUBLISH arrived."""

    async def run(repeats: int = REPEATS) -> dict[str, Any]:
    """Return the medians of all kinds; nothing where a network device cannot be made."""
    if not tunnel.available():
        return {}
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    try:
        urls, ca_file = ours.recv()
        return asyncio.run(measure(urls, ca_file, ours, repeats))
    finally:
        ours.send("end")
        process.join(10)


def tables(figures: dict[str, Any]) -> str:
    """Return the table."""
    if not figures:
        return "round trips: skipped, it takes the right to make a network device (root on Linux)"
    lines = [
        f"Round trips at an emulated {ROUND_TRIP * 1000:g} ms (theory in brackets)",
        f"{'':14}{'CONNACK':>14}{'flights':>9}{'first PUBLISH at the broker':>29}",
    ]
    for kind, values in figures.items():
        connack, publish = THEORY[kind]
        lines.append(
            f"{kind:14}{values['connack']:8.2f} {f'({connack})':>5}{values['counted']:9.0f}"
            f"{values['publish']:22.2f} {f'({publish})':>6}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(tables(run()))
