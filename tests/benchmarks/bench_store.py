"""What durability costs: QoS 1 messages through a broker with and without a store, in one run, and the loop's stalls.

Publisher and subscriber are raw TCP clients in this process, the broker is a process of its own; both sides keep
:data:`WINDOW` messages under way. The subscriber's session outlives its connection, so that every message is kept.
TCP_NODELAY everywhere. A third client pings meanwhile: what a bystander notices of the disk.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mqttquic_lab.broker import BrokerConfig, BrokerProcess
from mqttquic_lab.mqtt import (
    Connect,
    PacketDecoder,
    PingReq,
    PingResp,
    PubAck,
    Publish,
    Subscribe,
    Subscription,
    encode_publish,
)
from mqttquic_lab.net.address import parse_url
from mqttquic_lab.net.certificates import Trust
from mqttquic_lab.net.open import open_connection

if TYPE_CHECKING:
    from mqttquic_lab.net.stream import Connection

COUNT = 20_000
WINDOW = 500
SIZE = 256
KINDS: dict[str, dict[str, Any] | None] = {
    "memory": None,
    "store, synchronous=normal": {"store_sync": "normal"},
    "store, synchronous=full": {"store_sync": "full"},
}


class _Client:
    """A raw client: packets in by a callback, bytes out."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.write = connection.control.write
        self.arrived: asyncio.Queue[Any] = asyncio.Queue()
        self._decoder = PacketDecoder(5, receiver="client")
        connection.control.on_data = self._on_data

    @classmethod
    async def open(cls, url: str, client_id: str, expiry: int) -> _Client:
        self = cls(await open_connection(parse_url(url), trust=Trust()))
        self.write(Connect(client_id, 5, True, 0, properties={"session_expiry_interval": expiry}).encode(5))
        await self.arrived.get()
        return self

    def _on_data(self, data: bytes) -> None:
        for packet in self._decoder.feed(data):
            self.arrived.put_nowait(packet)


async def _receive(client: _Client, count: int) -> None:
    for _ in range(count):
        packet = await client.arrived.get()
        assert isinstance(packet, Publish)
        client.write(PubAck(packet.packet_id or 0).encode(5))


async def _send(client: _Client, count: int) -> None:
    payload = bytes(SIZE)
    begun = answered = 0
    while answered < count:
        burst = b""
        while begun < count and begun - answered < WINDOW:
            burst += encode_publish("bench/store", payload, 1, packet_id=begun % 60_000 + 1)
            begun += 1
        if burst:
            client.write(burst)
        await client.arrived.get()
        answered += 1
        while not client.arrived.empty():
            client.arrived.get_nowait()
            answered += 1


async def _ping(client: _Client, times: list[float]) -> None:
    while True:
        started = time.perf_counter()
        client.write(PingReq().encode())
        assert isinstance(await client.arrived.get(), PingResp)
        times.append(time.perf_counter() - started)
        await asyncio.sleep(0.005)


async def _one(options: dict[str, Any] | None, count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        if options is not None:
            options = {"store": Path(folder) / "bench.db", **options}
        config = BrokerConfig(quic=False, tls=False, tcp_port=0, max_inflight=2 * WINDOW, **(options or {}))
        async with BrokerProcess(config) as broker:
            url = broker.urls["mqtt"]
            subscriber = await _Client.open(url, "subscriber", 3600)
            subscriber.write(Subscribe(1, (Subscription("bench/store", 1),)).encode(5))
            await subscriber.arrived.get()
            publisher = await _Client.open(url, "publisher", 0)
            bystander = await _Client.open(url, "bystander", 0)
            pings: list[float] = []
            pinging = asyncio.create_task(_ping(bystander, pings))
            started = time.perf_counter()
            await asyncio.gather(_send(publisher, count), _receive(subscriber, count))
            took = time.perf_counter() - started
            pinging.cancel()
            await broker.wait_for(lambda: broker.stats().stored_messages == 0)
            stats = broker.stats()
            for client in (publisher, subscriber, bystander):
                client.connection.abort()
    return {
        "rate": count / took,
        "transactions": stats.store_commits,
        "slowest_ms": stats.store_slowest * 1e3,
        "ping_median_ms": statistics.median(pings) * 1e3,
        "ping_worst_ms": max(pings) * 1e3,
    }


def run(scale: float = 1.0, repeats: int = 3) -> dict[str, Any]:
    """Measure; the median round of each kind, kinds in turn."""
    count = max(1000, int(COUNT * scale))
    rounds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for _ in range(repeats):
        for kind, options in KINDS.items():
            rounds[kind].append(asyncio.run(_one(options, count)))
    figures = {kind: sorted(found, key=lambda one: one["rate"])[len(found) // 2] for kind, found in rounds.items()}
    for one in figures.values():
        one["ratio"] = one["rate"] / figures["memory"]["rate"]
    return {"count": count, "size": SIZE, "window": WINDOW, **figures}


def tables(figures: dict[str, Any]) -> str:
    """Return the figures as a table."""
    lines = [
        "QoS 1 to a session that lasts: {count:,} messages of {size} B, {window} under way".format(**figures),
        "",
        "| broker | messages/s | of memory | transactions | slowest, ms | bystander's ping, ms: median | worst |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        one = figures[kind]
        lines.append(
            f"| {kind} | {one['rate']:,.0f} | {one['ratio']:.2f} | {one['transactions']:,} | {one['slowest_ms']:.1f} | "
            f"{one['ping_median_ms']:.2f} | {one['ping_worst_ms']:.1f} |"
        )
    return "\n".join(lines) + "\n"
