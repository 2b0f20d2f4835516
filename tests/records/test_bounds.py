"""MessageLog stays within its bounds, whatever a peer sends, and says what it dropped."""

from __future__ import annotations

import gc
import os
import tracemalloc
from typing import Any

import pytest

from mqttquic_lab.records import log as log_module
from mqttquic_lab.records.log import MessageLog

T0 = 1_790_000_000_000_000_000


def test_oldest_go_first_and_are_counted() -> None:
    log = MessageLog(max_messages=100)
    for i in range(250):
        log.append(T0, "t", b"%d" % i)
    assert (len(log), log.total, log.dropped) == (100, 250, 150)
    frame = log.frame()
    assert frame["payload"].iloc[0] == b"150"
    assert (frame.index[0], frame.index[-1]) == (150, 249), "labels are sequence numbers"


def test_bytes_are_bounded() -> None:
    log = MessageLog(max_bytes=100_000)
    for _ in range(1000):
        log.append(T0, "topic", b"x" * 899)
    assert log.nbytes <= 100_000
    assert len(log) == 100
    assert log.dropped == 900


def test_one_message_beyond_the_bound_is_dropped_and_counted() -> None:
    log = MessageLog(max_bytes=1000)
    log.append(T0, "t", b"x" * 2000)
    assert (len(log), log.dropped, log.total) == (0, 1, 1)
    log.append(T0, "t", b"small")
    assert log.frame()["payload"].to_list() == [b"small"]


def test_large_payloads_do_not_pile_up_before_anyone_looks() -> None:
    log = MessageLog(max_bytes=2**20)
    tracemalloc.start()
    try:
        for _ in range(200):
            log.append(T0, "t", os.urandom(100_000))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * 2**20


def test_clear_keeps_counting() -> None:
    log = MessageLog()
    for i in range(10):
        log.append(T0, f"t/{i}", b"x")
    before = log.frame()
    log.clear()
    assert (len(log), log.total, log.cleared, log.dropped, log.nbytes) == (0, 10, 10, 0, 0)
    assert log.topics == []
    log.append(T0, "new", b"y")
    assert list(log.frame().index) == [10]
    assert log.frame()["topic"].to_list() == ["new"]
    assert before["topic"].to_list() == [f"t/{i}" for i in range(10)]


def test_endless_distinct_topics_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "TOPIC_LIMIT", 200)
    log = MessageLog(max_messages=50)
    epochs = set()
    for i in range(5000):
        log.append(T0, f"hostile/{i}", b"x")
        if i % 100 == 0:
            batch = log.columns_since(i - 5, 10)
            epochs.add(batch.topic_epoch)
            assert [log.topics[code] for code in batch.topic] == [
                f"hostile/{n}" for n in range(batch.first, batch.first + batch.count)
            ]
            assert log.frame()["topic"].astype(str).iloc[-1] == f"hostile/{i}"
    assert len(log.topics) <= 200 + 2 * 64
    assert len(epochs) > 5
    assert log.topic_counts() == {f"hostile/{n}": 1 for n in range(4950, 5000)}


def test_long_distinct_topics_stay_bounded_in_bytes() -> None:
    log = MessageLog(max_bytes=2**20)
    for i in range(500):
        log.append(T0, f"{i:060000d}", b"")
    assert sum(map(len, log.topics)) < 2 * 2**20
    assert log.nbytes <= 2**20
    assert log.frame()["topic"].iloc[-1] == f"{499:060000d}"


def test_topic_codes_widen() -> None:
    log = MessageLog()
    for i in range(40_000):
        log.append(T0, f"t/{i}", b"")
        if i in (100, 127, 128, 1000, 32_767, 32_768):
            assert log.frame()["topic"].iloc[-1] == f"t/{i}"
    frame = log.frame()
    assert frame["topic"].astype(str).to_list() == [f"t/{i}" for i in range(40_000)]


@pytest.mark.parametrize("payload", [b"[" + b"[]," * 3000 + b"[]]", b"{" + b'"a":{},' * 900 + b'"a":{}}'])
def test_json_that_swells_is_bounded(payload: bytes) -> None:
    log = MessageLog(decode="json", max_bytes=2**20)
    for _ in range(100):
        log.append(T0, "t", payload)
    frame = log.frame()
    assert log.value_nbytes <= 2 * 2**20
    assert 0 < len(frame) < 100
    assert log.dropped == 100 - len(log)


def test_looking_at_ordinary_text_drops_nothing() -> None:
    log = MessageLog(max_bytes=1_000_000)
    while not log.dropped:
        log.append(T0, "t", b"x" * 64)
    before = log.dropped
    log.frame()
    assert log.dropped == before


def test_values_of_a_users_function_are_charged() -> None:
    loop: list[Any] = []
    loop.append(loop)

    def decode(payload: bytes) -> Any:
        return loop if payload == b"loop" else [payload] * 1000

    log = MessageLog(decode=decode, max_bytes=100_000)
    log.append(T0, "t", b"loop")
    for _ in range(100):
        log.append(T0, "t", b"x")
    log.frame()
    assert log.value_nbytes <= 200_000
    assert log.dropped > 0


@pytest.mark.parametrize("decode", ["raw", "text", "json"])
def test_dropped_payloads_are_freed(decode: Any) -> None:
    log = MessageLog(decode=decode, max_messages=20_000)

    def fill(count: int) -> None:
        for _ in range(count):
            log.append(T0, "t", b'"%s"' % os.urandom(50).hex().encode())
        log.frame()

    fill(30_000)
    tracemalloc.start()
    try:
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        fill(100_000)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # All of the 20,000 held are new, with an eighth and two stages of slack: nothing of the other 80,000.
    each = {"raw": 230, "text": 400, "json": 400}[decode]
    assert after - before < each * (20_000 * 1.125 + 10_000)


def test_overhead_of_a_stored_message() -> None:
    """At most 96 bytes beyond topic and payload bytes, also just after growth, when the slack is largest."""
    log = MessageLog(decode="raw")
    count = 100_000
    log.append(T0, "t", b"")
    log.frame()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for i in range(count):
            log.append(T0 + i, "plant/1/temp", os.urandom(64), 1, packet_id=5, stream_id=0)
        columns = log._columns
        generation = columns.generation
        while columns.generation == generation:
            log.append(T0, "plant/1/temp", os.urandom(64))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    each = (after - before) / len(log) - 64
    assert each < 96
    assert each > 33, "a measurement that forgot the bytes objects"
