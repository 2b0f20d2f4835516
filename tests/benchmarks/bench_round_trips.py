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

    async def main() -> None:
        config = BrokerConfig(
            host=tunnel.SERVER, quic_port=0, tls_port=0, tcp_port=0, early_data=True, server_names=(tunnel.MIRROR,)
        )
        async with tunnel.DelayTunnel(ROUND_TRIP), BrokerServer(config) as broker:
            publish = broker.publish

            def told(message: Any, publisher: Any) -> None:
                pipe.send(("publish", time.perf_counter(), message.payload.decode()))
                publish(message, publisher)

            broker.publish = told  # type: ignore[method-assign]
            pipe.send((broker.urls, str(broker.ca_file)))
            await asyncio.to_thread(pipe.recv)

    asyncio.run(main())


async def measure(urls: dict[str, str], ca_file: str, pipe: Connection, repeats: int) -> dict[str, dict[str, float]]:
    """Return the medians for each kind of connection, in round trips."""
    urls = {scheme: url.replace(tunnel.SERVER, tunnel.MIRROR) for scheme, url in urls.items()}
    common: dict[str, Any] = {"ca_file": ca_file}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "TCP": ("mqtt", {}),
        "TLS 1.3": ("mqtts", {}),
        "QUIC": ("quic", {}),
        "QUIC resumed": ("quic", {"tickets": TicketStore()}),
        "QUIC 0-RTT": ("quic", {"tickets": TicketStore(), "early_data": "publish"}),
    }
    found: dict[str, dict[str, list[float]]] = {}
    for kind, (scheme, options) in kinds.items():
        found[kind] = {"counted": [], "connack": [], "publish": []}
        for number in range(repeats + 1):
            early = {"publish_early": [("t", f"{kind} {number}", 1)]} if "early_data" in options else {}
            begun = time.perf_counter()
            session = await AsyncSession.open(urls[scheme], **common, **options, **early)
            connected = time.perf_counter()
            if not early:
                await session.publish("t", f"{kind} {number}", 1)
            _, arrived, payload = await asyncio.to_thread(pipe.recv)
            assert payload == f"{kind} {number}"
            while scheme == "quic" and not session.handshake.tickets:
                await session.ping()
            report = session.handshake
            if number:  # the first one has no ticket
                assert report.resumed is ("tickets" in options)
                assert (report.early_data == "accepted") is bool(early)
                found[kind]["counted"].append(report.round_trips or 0)
                found[kind]["connack"].append((connected - begun) / ROUND_TRIP)
                found[kind]["publish"].append((arrived - begun) / ROUND_TRIP)
            await session.close()
    return {kind: {name: statistics.median(of) for name, of in values.items()} for kind, values in found.items()}


def run(repeats: int = REPEATS) -> dict[str, Any]:
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
