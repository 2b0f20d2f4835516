"""Brokers: messages/s from one publisher to many subscribers, beside amqtt and mosquitto in the same run.

Each broker runs in a process of its own and is asked the same over plain TCP by MQTT 3.1.1, which all of them speak,
with TCP_NODELAY on every side. The load comes from bare sockets in another process that count bytes, so that no client
library is measured. A publisher is never more than a window ahead of the slowest subscriber: nobody's queue overflows,
and no broker gets away with dropping. It sends in batches; what a broker makes of that is part of the figure.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from mqttquic_lab.broker import BrokerConfig, BrokerProcess
from mqttquic_lab.mqtt import Connect, Subscribe, Subscription, encode_publish

if TYPE_CHECKING:
    from collections.abc import Iterator

SUBSCRIBERS = (1, 10, 50)
SECONDS = 1.0
"""How long the publisher publishes, for each figure."""
WINDOW = 200
"""Messages that the publisher is ahead of the slowest subscriber at most."""
TOPIC, PAYLOAD = "bench/fan/out", bytes(64)
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
AMQTT = shutil.which("amqtt") or shutil.which("amqtt", path=str(Path(sys.executable).parent))


# Brokers


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def lab() -> Iterator[tuple[int, int]]:
    """Run ours; yields port and process id."""
    loop = asyncio.new_event_loop()
    broker = BrokerProcess(BrokerConfig(quic=False, tls=False, tcp_port=0))
    loop.run_until_complete(broker.start())
    try:
        assert broker.pid is not None
        yield int(broker.urls["mqtt"].rpartition(":")[2]), broker.pid
    finally:
        loop.run_until_complete(broker.close())
        loop.close()


@contextlib.contextmanager
def command(arguments: list[str], port: int) -> Iterator[tuple[int, int]]:
    """Run a broker that is a program; yields port and process id once it listens."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{arguments[0]} does not listen")
            time.sleep(0.05)  # there is nothing to wait for but the port itself
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def mosquitto(folder: Path) -> Iterator[tuple[int, int]]:
    """Run Debian's mosquitto, without limits to its queues."""
    assert MOSQUITTO is not None
    port, configuration = free_port(), folder / "mosquitto.conf"
    configuration.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nmax_queued_messages 0\n"
        "max_inflight_messages 0\nuser root\nlog_type none\n"
    )
    with command([MOSQUITTO, "-c", str(configuration)], port) as running:
        yield running


@contextlib.contextmanager
def amqtt(folder: Path) -> Iterator[tuple[int, int]]:
    """Run amqtt's broker; asyncio sets TCP_NODELAY for it."""
    assert AMQTT is not None
    port, configuration = free_port(), folder / "amqtt.yaml"
    configuration.write_text(
        f"listeners:\n  default:\n    type: tcp\n    bind: 127.0.0.1:{port}\n"
        "plugins:\n  amqtt.plugins.authentication.AnonymousAuthPlugin:\n    allow_anonymous: true\n"
    )
    with command([AMQTT, "-c", str(configuration)], port) as running:
        yield running


# Load


async def _open(port: int, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    writer.write(Connect(name, 4, True, 0).encode(4))
    answer = await reader.readexactly(4)
    assert answer[0] == 0x20, answer
    assert answer[3] == 0, answer
    return reader, writer


class _Subscriber(asyncio.Protocol):
    """Counts the bytes of deliveries, all of one size."""

    def __init__(self, size: int, progress: asyncio.Event) -> None:
        self._size = size
        self._bytes = 0
        self._progress = progress
        self.count = 0

    def data_received(self, data: bytes) -> None:
        self._bytes += len(data)
        self.count = self._bytes // self._size
        self._progress.set()


async def _load(port: int, subscribers: int, lasting: float, qos: int) -> tuple[int, float]:
    """Publish for `lasting` seconds; returns how many deliveries there were in how many seconds."""
    delivered = len(encode_publish(TOPIC, PAYLOAD, 0, version=4))
    progress = asyncio.Event()
    sinks, writers = [], []
    for number in range(subscribers):
        reader, writer = await _open(port, f"sink-{number}")
        writer.write(Subscribe(1, (Subscription(TOPIC, 0),)).encode(4))
        await reader.readexactly(5)  # SUBACK
        sink = _Subscriber(delivered, progress)
        writer.transport.set_protocol(sink)
        sinks.append(sink)
        writers.append(writer)
    reader, writer = await _open(port, "source")
    writers.append(writer)
    answers = asyncio.create_task(_discard(reader))
    started = time.perf_counter()
    sent = 0
    while (done := min(sink.count for sink in sinks)) < sent or time.perf_counter() - started < lasting:
        batch = done + WINDOW - sent
        if batch >= WINDOW // 4 and time.perf_counter() - started < lasting:
            writer.write(
                b"".join(
                    encode_publish(TOPIC, PAYLOAD, qos, packet_id=(sent + n) % 60_000 + 1 if qos else None, version=4)
                    for n in range(batch)
                )
            )
            sent += batch
        progress.clear()
        async with asyncio.timeout(60):
            await progress.wait()
    seconds = time.perf_counter() - started
    answers.cancel()
    for writer in writers:
        writer.transport.abort()
    return sent * subscribers, seconds


async def _discard(reader: asyncio.StreamReader) -> None:
    while await reader.read(65_536):
        pass


def _measure(port: int, pid: int, subscribers: int, lasting: float, qos: int) -> dict[str, float]:
    """Return deliveries/s and the broker's processor time per delivery, µs."""
    process = psutil.Process(pid)
    before = sum(process.cpu_times()[:2])
    total, seconds = asyncio.run(_load(port, subscribers, lasting, qos))
    used = sum(process.cpu_times()[:2]) - before
    return {"rate": total / seconds, "cpu_us": used / total * 1e6}


def run(scale: float = 1.0, repeats: int = 3) -> dict[str, Any]:
    """Return the figures: broker, workload -> median deliveries/s and µs of processor time."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        brokers = {"mqttquic_lab": stack.enter_context(lab())}
        if AMQTT is not None:
            brokers["amqtt"] = stack.enter_context(amqtt(folder))
        if MOSQUITTO is not None:
            brokers["mosquitto (C)"] = stack.enter_context(mosquitto(folder))
        for qos in (0, 1):
            for subscribers in SUBSCRIBERS:
                rounds: dict[str, list[dict[str, float]]] = {broker: [] for broker in brokers}
                for _ in range(repeats):  # one round after the other, so that the machine's moods hit all alike
                    for broker, (port, pid) in brokers.items():
                        rounds[broker].append(_measure(port, pid, subscribers, SECONDS * scale, qos))
                workload = f"published at QoS {qos}, 1 to {subscribers}"
                figures[workload] = {
                    broker: {key: statistics.median(one[key] for one in runs) for key in ("rate", "cpu_us")}
                    for broker, runs in rounds.items()
                }
    return figures


def tables(figures: dict[str, Any]) -> str:
    """Return the figures as text; ours as a multiple of each."""
    lines = ["\nBroker fan-out over TCP, 64 B, delivered at QoS 0 (deliveries/s; ours is ... times as fast)"]
    for workload, brokers in figures.items():
        lines.append(f"  {workload}")
        ours = brokers["mqttquic_lab"]["rate"]
        lines += [
            f"    {broker:20}{one['rate']:12,.0f}{ours / one['rate']:9.2f} x{one['cpu_us']:10.1f} µs CPU each"
            for broker, one in brokers.items()
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    result = run()
    print(tables(result))
    print(json.dumps(result, indent=2))
