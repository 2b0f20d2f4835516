"""Totals over all messages, against a plain computation."""

from __future__ import annotations

import random

import numpy as np
import pytest

from mqttquic_lab.records.log import MessageLog
from mqttquic_lab.widgets.aggregate import BIN_NS, BINS, MAX_TOPICS, SPARK_BINS, Rates, TopicTable, brief
from mqttquic_lab.widgets.collector import READ_AT_ONCE, TABLE_ROWS, Collector
from tests.ui.feeds import SECOND, START_NS, FakeFeed


def add(rates: Rates, times: list[int], latencies: list[float], now: int, size: int = 10) -> None:
    count = len(times)
    rates.add(np.array(times), np.full(count, size, np.uint32), np.array(latencies), now)


def test_rate_counts_every_message_of_the_last_minute_once() -> None:
    r = random.Random(1)
    now = START_NS + 60 * SECOND
    times = sorted(START_NS - 5 * SECOND + r.randrange(65 * SECOND) for _ in range(5000))
    rates = Rates()
    for start in range(0, 5000, 617):  # in pieces, as updates bring them
        piece = times[start : start + 617]
        add(rates, piece, [np.nan] * len(piece), now)
    series, quantiles = rates.series(now)
    first, last = now // BIN_NS - BINS + 1, now // BIN_NS
    expected = [sum(t // BIN_NS == number for t in times) * 2 for number in range(first, last)]
    assert series.tolist() == expected
    assert np.isnan(quantiles).all()
    assert rates.now(now)[0] == (expected[-1] + expected[-2]) / 2
    assert rates.latency(now) is None


def test_percentiles_are_within_a_bucket_of_the_true_ones() -> None:
    r = random.Random(2)
    latencies = [r.lognormvariate(-6, 1) for _ in range(20_000)]
    rates = Rates()
    add(rates, [START_NS] * len(latencies), latencies, START_NS)
    found = rates.latency(START_NS)
    assert found is not None
    expected = np.quantile(latencies, [0.5, 0.95, 0.99], method="inverted_cdf")
    assert found == pytest.approx(expected.tolist(), rel=0.03)
    assert rates.latencies == len(latencies)


def test_a_message_that_arrived_before_it_was_sent_is_counted_as_such() -> None:
    rates = Rates()
    add(rates, [START_NS] * 3, [-0.5, 0.001, float("nan")], START_NS)
    assert rates.early == 1
    assert rates.latencies == 2


def test_bins_are_used_again_and_a_clock_that_jumps_leaves_no_ghosts() -> None:
    rates = Rates()
    add(rates, [START_NS], [0.1], START_NS)
    later = START_NS + BINS * BIN_NS
    add(rates, [later], [0.2], later)
    assert rates.series(later + BIN_NS)[0].tolist()[-1] == 2
    assert rates.series(later + BIN_NS)[0].sum() == 2
    earlier = START_NS - 3600 * SECOND
    add(rates, [later, earlier], [0.1, 0.1], earlier)  # one of them lies in the future now
    assert rates.series(earlier + BIN_NS)[0].sum() == 2


def test_topics_count_exactly_up_to_a_bound_and_together_beyond() -> None:
    topics = TopicTable()
    numbers = np.array([topics.identify(f"t/{i}") for i in range(MAX_TOPICS + 5)])
    assert numbers[-1] == -1
    times = np.full(len(numbers), START_NS)
    topics.add(numbers, times, [b"1"] * len(numbers), START_NS)
    topics.add(numbers[:3], times[:3], [b"2"] * 3, START_NS)
    assert topics.beyond == 5
    assert topics.counts.tolist()[:4] == [2, 2, 2, 1]
    assert topics.last()[:4] == ["2", "2", "2", "1"]
    assert topics.sparks(START_NS).sum() == 0  # the bin that is still filling is not shown
    sparks = topics.sparks(START_NS + 2 * SECOND)
    assert sparks.shape == (MAX_TOPICS, SPARK_BINS)
    assert sparks[0, -1] == 2


def test_a_huge_topic_name_is_cut_and_stays_itself() -> None:
    topics = TopicTable()
    a, b = "x" * 60_000 + "a", "x" * 60_000 + "b"
    assert topics.identify(a) != topics.identify(b)
    assert topics.identify(a) == topics.identify(a)
    assert max(map(len, topics.names)) <= 200


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"21.5", "21.5"),
        (b'{"c": 21.4999999}', "21.5"),
        (b'{"c": 1, "ok": true}', "1"),
        (b'{"a": 1, "b": 2}', "16 B"),
        (b"open", "open"),
        (b"", ""),
        (b"\xff\x00", "2 B"),
        (b"x" * 96, "96 B"),
        (b"[" * 96, "96 B"),
    ],
)
def test_the_newest_payload_in_a_few_characters(payload: bytes, text: str) -> None:
    assert brief(payload, len(payload)) == text


def test_a_burst_is_sampled_for_the_table_and_counted_in_full() -> None:
    feed = FakeFeed()
    collector = Collector(lambda: [feed.log], 500)
    feed.put("first", b"")
    collector.read(START_NS)
    collector.take()
    for i in range(20_000):
        feed.put(f"t/{i % 4}", b"%d" % i)
    assert collector.read(START_NS) == 20_000
    rows = collector.take()
    assert len(rows) == TABLE_ROWS
    assert collector.stride == 200
    assert [row.head for row in rows[:2]] == [b"199", b"399"]
    assert collector.totals().received == 20_001
    assert dict(zip(collector.topics.names, collector.topics.counts.tolist(), strict=True)) == {
        "first": 1, "t/0": 5000, "t/1": 5000, "t/2": 5000, "t/3": 5000,
    }  # fmt: skip
    assert collector.take() == []


def test_what_the_log_lost_before_it_was_read_is_counted_too() -> None:
    feed = FakeFeed(log=MessageLog(max_messages=100))
    collector = Collector(lambda: [feed.log], 50)
    for i in range(1000):
        feed.put("t", b"%d" % i)
    collector.read(START_NS)
    totals = collector.totals()
    assert (totals.received, totals.dropped, totals.held, totals.uncounted) == (1000, 900, 100, 900)
    assert collector.topics.counts.tolist() == [100]
    assert len(collector.take()) == 50
    assert READ_AT_ONCE > 100


def test_topic_codes_that_change_their_meaning_are_learnt_anew() -> None:
    feed = FakeFeed()
    collector = Collector(lambda: [feed.log], 50)
    feed.put("a", b"")
    feed.put("b", b"")
    collector.read(START_NS)
    feed.log.clear()  # forgets its dictionary: "c" gets the code that "a" had
    feed.put("c", b"")
    feed.put("b", b"")
    collector.read(START_NS)
    assert dict(zip(collector.topics.names, collector.topics.counts.tolist(), strict=True)) == {"a": 1, "b": 2, "c": 1}
    assert [row.topic for row in collector.take()] == ["a", "b", "c", "b"]


def test_several_logs_are_one_table_in_the_order_of_time_and_keep_their_count_when_gone() -> None:
    one, two = FakeFeed(), FakeFeed()
    logs = [one.log, two.log]
    collector = Collector(lambda: logs, 50)
    for i in range(4):
        (one if i % 2 else two).put("t", b"%d" % i, START_NS + i)
    collector.read(START_NS)
    rows = collector.take()
    assert [row.head for row in rows] == [b"0", b"1", b"2", b"3"]
    assert len({row.id for row in rows}) == 4
    message = collector.message(rows[2].id)
    assert message is not None
    assert message.payload == b"2"
    logs.remove(two.log)
    collector.read(START_NS)
    assert collector.totals().received == 4
    assert collector.message(rows[2].id) is None


def test_newest_shows_only_what_was_read() -> None:
    feed = FakeFeed()
    collector = Collector(lambda: [feed.log], 50)
    for i in range(10):
        feed.put("t", b"%d" % i)
    collector.read(START_NS)
    feed.put("t", b"unread")
    assert [row.head for row in collector.newest(3)] == [b"7", b"8", b"9"]
    assert collector.read(START_NS) == 1
