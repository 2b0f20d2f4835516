"""kill -9 in the middle of the load: nothing acknowledged is lost, nothing exactly-once arrives twice."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING

import pytest

from tests.broker.killing import PATIENCE, Paho, Receiver, Sender, Victim

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable
    from pathlib import Path

KILLS = 4


@pytest.mark.timeout(180)
@pytest.mark.filterwarnings(
    "ignore:unclosed <socket:ResourceWarning"
)  # paho's loop_start() leaves its last pair behind
async def test_kill_9(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    chance = random.Random(20261122)
    began = time.monotonic()
    victim = Victim(tmp_path / "store.db")
    await victim.start()
    tcp_port = victim.config.tcp_port
    assert tcp_port is not None
    senders = {name: await Sender.open(url, f"sender-{name}") for name, url in victim.urls.items()}
    receivers = {name: await Receiver.open(url, f"receiver-{name}") for name, url in victim.urls.items()}
    paho_sender = await asyncio.to_thread(Paho, tcp_port, "paho-sender")
    paho_receiver = await asyncio.to_thread(Paho, tcp_port, "paho-receiver")
    try:
        for receiver in receivers.values():
            await receiver.subscribe("load/#")
        await asyncio.to_thread(paho_receiver.subscribe, "load/#")
        for name, sender in senders.items():
            sender.start(f"load/{name}", 8)
        paho_sender.start("load/paho", 8)
        for _ in range(KILLS):
            await asyncio.sleep(chance.uniform(0.3, 1.2))
            await victim.kill()
            await victim.start()
            await asyncio.gather(
                *(ours.come_back() for ours in (*senders.values(), *receivers.values())),
                *(asyncio.to_thread(theirs.come_back) for theirs in (paho_sender, paho_receiver)),
            )
        await asyncio.sleep(0.5)
        for sender in senders.values():
            await sender.stop()
        await asyncio.to_thread(paho_sender.stop)
        acknowledged = {
            (f"load/{name}/{qos}", number) for name, sender in senders.items() for qos, number in sender.acknowledged
        } | {(f"load/paho/{qos}", number) for qos, number in paho_sender.acknowledged}
        assert len(acknowledged) > 1000

        async def arrived(count: Callable[[], Counter[tuple[str, int]]]) -> Counter[tuple[str, int]]:
            deadline = time.monotonic() + PATIENCE
            while True:
                found = count()
                if acknowledged <= found.keys() or time.monotonic() > deadline:
                    return found
                await asyncio.sleep(0.1)

        counted = {name: await arrived(receiver.counts) for name, receiver in receivers.items()}
        counted["paho"] = await arrived(paho_receiver.received.copy)
        for name, found in counted.items():
            missing = acknowledged - found.keys()
            assert not missing, f"{len(missing)} acknowledged messages never came to {name}: {sorted(missing)[:5]}"
            twice = [key for key, times in found.items() if times > 1 and key[0].endswith("/2")]
            assert not twice, f"{len(twice)} QoS 2 messages came twice to {name}: {twice[:5]}"
        await victim.broker.wait_for(lambda: victim.broker.stats().stored_messages == 0, PATIENCE)
        figures = {
            "messages": len(acknowledged),
            "deliveries": sum(sum(found.values()) for found in counted.values()),
            "again_at_qos_1": sum(sum(t - 1 for t in found.values()) for found in counted.values()),
            "kills": victim.kills,
            "seconds": round(time.monotonic() - began, 1),
        }
        record_property("figures", figures)
        print(figures)
    finally:
        await asyncio.to_thread(paho_sender.close)
        await asyncio.to_thread(paho_receiver.close)
        for ours in (*senders.values(), *receivers.values()):
            await ours.session.close()
        await victim.broker.close()
