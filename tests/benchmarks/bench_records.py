"""The message log: cost per append, per refresh of a large frame, and memory per stored message."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import pandas as pd

from mqttquic_lab.records.log import MessageLog

HELD = 1_000_000
NEW = 1_000


def _fill(log: MessageLog, start: int, count: int) -> None:
    append = log.append
    topics = [f"bench/sensor/{number}" for number in range(16)]
    for i in range(start, start + count):
        append(i, topics[i & 15], b"%064d" % i, 0, False, False, None, 0, False, {})


def run(held: int = HELD) -> dict[str, Any]:
    """Return figures for this log and, in the same run, for a list of dicts made into a frame anew."""
    figures: dict[str, Any] = {"held": held, "new": NEW}
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    log = MessageLog(decode="raw", max_messages=2 * held)
    _fill(log, 0, held)
    log.frame()
    payload_and_topic = held * (64 + len("bench/sensor/0"))
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    figures["overhead_bytes_per_message"] = (used - payload_and_topic) / held
    figures["overhead_bytes_per_message_payload_only"] = (used - held * 64) / held
    refreshes = []
    for number in range(20):
        _fill(log, held + number * NEW, NEW)
        started = time.perf_counter()
        log.frame()
        refreshes.append(time.perf_counter() - started)
    figures["refresh_ms_median"] = sorted(refreshes)[10] * 1e3
    figures["refresh_ms_worst"] = max(refreshes) * 1e3
    started = time.perf_counter()
    _fill(log, 0, 100_000)
    figures["append_ns"] = (time.perf_counter() - started) / 100_000 * 1e9

    rows: list[dict[str, Any]] = [
        {"time": i, "topic": f"bench/sensor/{i & 15}", "payload": b"%064d" % i, "qos": 0} for i in range(held)
    ]
    started = time.perf_counter()
    pd.DataFrame(rows)
    figures["list_of_dicts_ms"] = (time.perf_counter() - started) * 1e3
    figures["ratio_to_list_of_dicts"] = figures["refresh_ms_median"] / figures["list_of_dicts_ms"]
    return figures


def tables(figures: dict[str, Any]) -> str:
    """Return the figures as text."""
    return "\n".join(["\nMessage log"] + [f"  {name:44}{value:14,.3f}" for name, value in figures.items()])
