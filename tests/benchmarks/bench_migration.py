"""What a session's receiver notices when the sender's connection changes its address: the longest silence."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from typing import TYPE_CHECKING, Any, cast

from mqttquic_lab.broker import BrokerConfig, BrokerServer
from mqttquic_lab.session import AsyncSession
from tests.helpers.lossy import LossyRelay
from tests.helpers.netns import CLIENT, two_cables
from tests.helpers.numbered import Gap, NumberedLoad, longest_gap

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.helpers.netns import Cable

RATE = 500.0
"""QoS 1 messages per second."""

DELAYS = (0.0, 0.025)
"""Of the relay, one way, seconds."""

RUNS = 15


async def _does_nothing(session: AsyncSession, relay: LossyRelay, host: str) -> None:
    """What a silence is worth: on a busy machine there are some without any reason."""


async def _migrates(session: AsyncSession, relay: LossyRelay, host: str) -> None:
    await session.migrate(host)


async def _leaves_a_dead_path(session: AsyncSession, relay: LossyRelay, host: str) -> None:
    relay.blocked.add(session.connection.local_address[0])
    await session.migrate(host)
    relay.blocked.clear()


async def _rebinds(session: AsyncSession, relay: LossyRelay, host: str) -> None:
    await session.rebind()


async def _is_forgotten(session: AsyncSession, relay: LossyRelay, host: str) -> None:
    relay.rebind()


MOVES: dict[str, Callable[[AsyncSession, LossyRelay, str], Awaitable[None]]] = {
    "(nothing happens)": _does_nothing,
    "migrate, old path works": _migrates,
    "migrate, old path dead": _leaves_a_dead_path,
    "rebind": _rebinds,
    "NAT forgets": _is_forgotten,
}


async def _relayed(delay: float, runs: int) -> dict[str, list[Gap]]:
    gaps: dict[str, list[Gap]] = {}
    config = BrokerConfig(quic_port=0, tcp_port=0, tls=False)
    async with BrokerServer(config) as broker, LossyRelay(_quic_address(broker), delay=delay) as relay:
        url = f"quic://127.0.0.1:{relay.address[1]}"
        sender = await AsyncSession.open(url, ca_file=broker.ca_file)
        receiver = await AsyncSession.open(broker.urls["mqtt"])
        feed = await receiver.subscribe("numbered", 1, decode="raw", max_messages=10_000_000)
        # As many under way as the longest silence may need: the load must not stop for it.
        load = NumberedLoad(sender, qos=1, window=256, rate=RATE)
        load.start()
        await load.reached(200)
        for _ in range(runs):
            for name, move in MOVES.items():
                host = "127.0.0.3" if sender.connection.local_address[0] == "127.0.0.2" else "127.0.0.2"
                await load.reached(50)  # what looking at the last gap has held up
                begun = time.time()
                await move(sender, relay, host)
                await load.reached(100)
                arrivals = (feed.df["time"].astype("int64") / 1e9).tolist()
                gap = longest_gap(arrivals[-2000:], after=begun, before=time.time(), rate=RATE)
                gaps.setdefault(name, []).append(gap)
        await load.stop()
        await sender.close()
        await receiver.close()
    return gaps


def _quic_address(broker: BrokerServer) -> tuple[str, int]:
    address: tuple[str, int] = cast("Any", broker._listeners[0]).addresses[0]
    return address


async def _unplugged(runs: int) -> list[Gap]:
    gaps = []
    async with two_cables() as cables, cables.worker("server", "1") as server:
        where = (server.hello["url"], server.hello["ca_file"])
        async with cables.worker("client", *where, CLIENT["first"], "1", str(RATE)) as client:
            await client.ask("reached", count=200)
            here: Cable = "first"
            there: Cable = "second"
            for _ in range(runs):
                begun = time.time()
                cables.unplug(here)
                result = await client.ask("migrate", local=CLIENT[there])
                assert "error" not in result, result
                await client.ask("reached", count=200)
                arrivals = [at for _, at in (await server.ask("report"))["arrivals"]]
                gaps.append(longest_gap(arrivals[-2000:], after=begun, before=time.time(), rate=RATE))
                cables.plug(here)
                here, there = there, here
            await client.ask("stop")
    return gaps


def _figures(gaps: list[Gap]) -> dict[str, float]:
    return {
        "gap_ms_median": statistics.median(gap.seconds for gap in gaps) * 1e3,
        "gap_ms_worst": max(gap.seconds for gap in gaps) * 1e3,
        "messages_median": statistics.median(gap.messages for gap in gaps),
        "usual_ms": statistics.median(gap.usual for gap in gaps) * 1e3,
        "runs": len(gaps),
    }


def run(runs: int = RUNS) -> dict[str, Any]:
    """Return the figures per round-trip time and kind of move; those of two interfaces need root."""
    figures: dict[str, Any] = {"rate": RATE}
    for delay in DELAYS:
        gaps = asyncio.run(_relayed(delay, runs))
        figures[f"RTT {delay * 2e3:.0f} ms"] = {name: _figures(found) for name, found in gaps.items()}
    if os.geteuid() == 0:
        figures["network namespaces"] = {"interface down, migrate": _figures(asyncio.run(_unplugged(runs)))}
    return figures


def tables(figures: dict[str, Any]) -> str:
    """Return the figures as text."""
    lines = [
        f"\nMigration gap: longest silence at the receiver, QoS 1 at {figures['rate']:g} messages/s",
        f"  {'':44}{'median ms':>10}{'worst ms':>10}{'messages':>10}{'usual ms':>10}{'runs':>6}",
    ]
    for where, moves in figures.items():
        if isinstance(moves, dict):
            for name, found in moves.items():
                lines.append(
                    f"  {where + ': ' + name:44}{found['gap_ms_median']:10.1f}{found['gap_ms_worst']:10.1f}"
                    f"{found['messages_median']:10.0f}{found['usual_ms']:10.1f}{found['runs']:6}"
                )
    return "\n".join(lines)
