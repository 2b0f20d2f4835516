"""CPU per message with 1, 16 and 100 open streams, at the client and at the broker, over QUIC with realistic tuning.

Every open stream is used in turn. Publishing waits for each acknowledgement ("one by one": a packet per message) or is
limited by the broker's receive maximum only ("in bulk": many messages in a packet). TLS with its one stream is the
yardstick of the same run, in which the kinds take turns, so that a slow minute meets each of them. The broker runs in a
process of its own, whose processor time is read before and after. Run it with
``python -m tests.benchmarks --only streams``.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import time
from typing import TYPE_CHECKING, Any, Literal

from mqttquic_lab.broker import BrokerConfig, BrokerServer
from mqttquic_lab.session import AsyncSession

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from mqttquic_lab.session import AsyncStream

STREAMS = (1, 16, 100)
ONE_BY_ONE = 1000
BULK = 10_000
REPEATS = 3
SIZE = 64

Load = Literal["one by one", "in bulk"]


def serve(pipe: Connection) -> None:
    """Run a broker, and tell the processor time that this process has used whenever asked."""

    async def main() -> None:
        async with BrokerServer(BrokerConfig(quic_port=0, tls_port=0, tcp=False)) as broker:
            pipe.send((broker.urls, str(broker.ca_file)))
            while await asyncio.to_thread(pipe.recv) == "time":
                pipe.send(time.process_time())

    asyncio.run(main())


async def publish(senders: list[AsyncSession] | list[AsyncStream], load: Load, count: int) -> None:
    """Publish `count` messages at QoS 1, in turn on all senders."""
    payload = bytes(SIZE)
    if load == "one by one":
        for number in range(count):
            await senders[number % len(senders)].publish("t", payload, 1)
    else:
        share = count // len(senders)
        await asyncio.gather(*(s.publish_many((("t", payload) for _ in range(share)), 1) for s in senders))


async def measure(
    urls: dict[str, str], ca_file: str, pipe: Connection, scale: float, repeats: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Return for each load and kind the microseconds of processor time per message of both sides, medians."""
    sessions: dict[str, AsyncSession] = {"TLS": await AsyncSession.open(urls["mqtts"], ca_file=ca_file)}
    senders: dict[str, list[AsyncSession] | list[AsyncStream]] = {"TLS": [sessions["TLS"]]}
    for streams in STREAMS:
        name = f"QUIC, {streams} stream{'s' if streams > 1 else ''}"
        session = sessions[name] = await AsyncSession.open(urls["quic"], ca_file=ca_file)
        senders[name] = [await session.open_stream() for _ in range(streams)]
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    counts: dict[Load, int] = {"one by one": max(200, int(ONE_BY_ONE * scale)), "in bulk": max(2000, int(BULK * scale))}
    for load, count in counts.items():
        found[load] = {name: {"client": [], "broker": []} for name in senders}
        for turn in range(repeats + 1):
            for name, through in senders.items():
                pipe.send("time")
                broker_before = pipe.recv()
                before = time.process_time()
                await publish(through, load, count)
                spent = time.process_time() - before
                pipe.send("time")
                if turn:  # the first one opens windows and fills caches
                    found[load][name]["client"].append(spent / count * 1e6)
                    found[load][name]["broker"].append((pipe.recv() - broker_before) / count * 1e6)
                else:
                    pipe.recv()
    for session in sessions.values():
        await session.close()
    return {
        load: {name: {side: statistics.median(of) for side, of in sides.items()} for name, sides in kinds.items()}
        for load, kinds in found.items()
    }


def run(scale: float = 1.0, repeats: int = REPEATS) -> dict[str, Any]:
    """Return the medians, in microseconds per message, and their ratios to one stream and to TLS."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        urls, ca_file = ours.recv()
        figures: dict[str, Any] = asyncio.run(measure(urls, ca_file, ours, scale, repeats))
    finally:
        ours.send("end")
        process.join(10)
    for kinds in figures.values():
        tls, single = kinds["TLS"], kinds["QUIC, 1 stream"]
        for sides in kinds.values():
            sides["ratios"] = {
                side: {"to_one_stream": sides[side] / single[side], "to_tls": sides[side] / tls[side]}
                for side in ("client", "broker")
            }
    return figures


def tables(figures: dict[str, Any]) -> str:
    """Return the tables."""
    lines = []
    for load, kinds in figures.items():
        lines += [
            f"\nProcessor time per message (QoS 1, {SIZE} B, {load}), realistic tuning",
            f"  {'':20}"
            + "".join(f"{side + ' us':>12}{'to 1 stream':>13}{'to TLS':>8}" for side in ("client", "broker")),
        ]
        for name, sides in kinds.items():
            row = f"  {name:20}"
            for side in ("client", "broker"):
                ratios = sides["ratios"][side]
                row += f"{sides[side]:12.0f}{ratios['to_one_stream']:13.2f}{ratios['to_tls']:8.2f}"
            lines.append(row)
    return "\n".join(lines)


if __name__ == "__main__":
    print(tables(run()))
