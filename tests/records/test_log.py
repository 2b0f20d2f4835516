"""MessageLog: what goes in comes out, whoever looks, and nobody who looked can change it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from mqttquic_lab.errors import UsageError
from mqttquic_lab.records.expand import EXPANDED_LIMIT
from mqttquic_lab.records.log import STAGED_ROWS, MessageLog

if TYPE_CHECKING:
    from collections.abc import Callable

T0 = 1_790_000_000_000_000_000


def filled(count: int, **options: Any) -> MessageLog:
    log = MessageLog(**options)
    for i in range(count):
        log.append(T0 + i, f"plant/{i % 3}", b"%d" % i, i % 3, packet_id=(i % 3 and i + 1) or None)
    return log


def test_columns_and_their_types() -> None:
    log = MessageLog(session="lab")
    log.append(T0, "a/b", b"hello", 1, True, True, 7, 4, True, {"user_property": [("sent_ns", str(T0 - 1_500_000))]})
    log.append(T0 + 1, "a/b", b"", 0)
    frame = log.frame()
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {
        "time": "datetime64[ns, UTC]",
        "topic": "category",
        "payload": "object",
        "value": "object",
        "qos": "uint8",
        "retain": "bool",
        "dup": "bool",
        "packet_id": "uint16",
        "stream_id": "int32",
        "early_data": "bool",
        "size": "uint32",
        "latency": "float64",
        "session": "category",
    }
    first, second = frame.iloc[0], frame.iloc[1]
    assert first["time"] == pd.Timestamp(T0, unit="ns", tz="UTC")
    assert first.drop("time").to_dict() == {
        "topic": "a/b",
        "payload": b"hello",
        "value": "hello",
        "qos": 1,
        "retain": True,
        "dup": True,
        "packet_id": 7,
        "stream_id": 4,
        "early_data": True,
        "size": 5,
        "latency": 0.0015,
        "session": "lab",
    }
    assert second[["packet_id", "stream_id", "size"]].to_list() == [0, -1, 0]
    assert np.isnan(second["latency"])


def test_an_empty_log_has_all_columns() -> None:
    log = MessageLog()
    assert len(log.frame()) == len(log.tail()) == len(log) == log.total == 0
    assert "topic" in log.frame().columns
    assert list(log) == []
    assert log.columns_since(0, 10).count == 0
    assert log.topic_counts() == {}
    with pytest.raises(IndexError, match="message 0 of 0 held"):
        log.message(0)


def test_looking_again_copies_nothing_and_decodes_only_what_is_new() -> None:
    seen: list[bytes] = []

    def decode(payload: bytes) -> int:
        seen.append(payload)
        return int(payload)

    log = filled(1000, decode=decode)
    assert seen == []
    before = log.frame()
    assert len(seen) == 1000
    log.append(T0, "plant/0", b"1000")
    after = log.frame()
    assert len(seen) == 1001
    assert len(before) == 1000
    assert after["value"].to_list() == list(range(1001))
    for name in ("payload", "value", "qos", "size", "latency"):
        assert np.shares_memory(before[name].to_numpy(), after[name].to_numpy()), name


def change_series(df: pd.DataFrame) -> None:
    latency = df["latency"]
    latency.iloc[0] = 5.0
    del df
    latency.iloc[1] = 6.0


CHANGES: dict[str, Callable[[pd.DataFrame], object]] = {
    "loc": lambda df: df.loc.__setitem__((df.index[0], "payload"), b"mine"),
    "loc value": lambda df: df.loc.__setitem__((df.index[0], "value"), "mine"),
    "loc column": lambda df: df.loc.__setitem__((slice(None), "qos"), 2),
    "iloc": lambda df: df.iloc.__setitem__((0, 3), "mine"),
    "at": lambda df: df.at.__setitem__((df.index[0], "size"), 99),
    "topic": lambda df: df.loc.__setitem__((df.index[0], "topic"), "plant/2"),
    "time": lambda df: df.loc.__setitem__((df.index[0], "time"), pd.Timestamp(0, tz="UTC")),
    "in place": lambda df: df.fillna(0.0, inplace=True),
    "series": change_series,
    "sort": lambda df: df.sort_values("size", ascending=False, inplace=True),
    "column": lambda df: df.__setitem__("qos", df["qos"] + 1),
    "drop": lambda df: df.drop(columns="value", inplace=True),
    "index": lambda df: setattr(df, "index", range(5, 5 + len(df))),
    "rename": lambda df: setattr(df, "columns", [f"c{i}" for i in range(df.shape[1])]),
}


@pytest.mark.filterwarnings("ignore:The inplace keyword")
@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("decode", ["text", "raw"])
@pytest.mark.parametrize("then", ["nothing", "new topic", "growth", "clear"])
def test_changing_a_frame_leaves_the_log_alone(how: str, decode: Any, then: str) -> None:
    log = filled(50, decode=decode)
    frame = log.frame()
    reference = frame.copy(deep=True)
    # Whatever the log does between look and change, the frame must not become the sole owner of shared memory.
    if then == "new topic":
        log.append(T0, "another", b"50")
        log.frame()
    elif then == "growth":
        for i in range(3 * STAGED_ROWS):
            log.append(T0 + i, "plant/0", b"more")
        log.frame()
    elif then == "clear":
        log.clear()
        log.frame()
    twin = log.frame()
    twin_reference = twin.copy(deep=True)
    CHANGES[how](frame)
    if then != "clear":
        pd.testing.assert_frame_equal(log.frame().iloc[:50].astype({"topic": str}), reference.astype({"topic": str}))
        assert [m.payload for m in log][:50] == [b"%d" % i for i in range(50)]
    pd.testing.assert_frame_equal(log.frame(), twin_reference)
    pd.testing.assert_frame_equal(twin, twin_reference)


def test_a_frame_does_not_see_what_comes_later() -> None:
    log = filled(10)
    frame = log.frame()
    log.append(T0, "plant/9", b"later")
    log.frame()
    assert len(frame) == 10
    assert "plant/9" not in frame["topic"].cat.categories


def test_tail_is_the_newest_with_its_own_memory() -> None:
    log = filled(30)
    tail = log.tail(3)
    assert tail["payload"].to_list() == [b"27", b"28", b"29"]
    assert list(tail.index) == [27, 28, 29]
    assert not np.shares_memory(tail["size"].to_numpy(), log.frame()["size"].to_numpy())
    assert len(log.tail(100)) == 30


def test_decode_failures_are_none_and_counted() -> None:
    log = MessageLog(decode="json")
    for payload in (b'{"a": 1}', b"{", b"\xff", b"[" * 100_000, b"3"):
        log.append(T0, "t", payload)
    assert log.frame()["value"].to_list() == [{"a": 1}, None, None, None, 3]
    assert log.decode_errors == 3
    log.frame()
    assert log.decode_errors == 3


def test_a_decoder_that_raises_or_looks_at_the_log_is_survived() -> None:
    log: MessageLog

    def decode(payload: bytes) -> int:
        if payload == b"0":
            raise RuntimeError("user's fault")
        return len(log)

    log = filled(3, decode=decode)
    assert log.frame()["value"].to_list() == [None, 3, 3]
    assert log.decode_errors == 1


def test_expand_gives_scalar_members_columns() -> None:
    log = MessageLog(decode="json", expand=True)
    log.append(T0, "t", b'{"c": 21.5, "ok": true, "tags": [1], "n": 1, "who": "x", "none": null}')
    log.append(T0, "t", b'"not an object"')
    log.append(T0, "t", b'{"c": 3, "n": 9007199254740993}')
    frame = log.frame()
    assert [n for n in frame.columns if n.startswith("value.")] == ["value.c", "value.ok", "value.n", "value.who"]
    assert frame["value.c"].dtype == np.float64
    assert frame["value.c"].fillna(-1).to_list() == [21.5, -1, 3]
    assert frame["value.ok"].to_list() == [True, None, None]
    assert frame["value.n"].to_list() == [1, None, 9007199254740993], "an integer beyond 2**53 must not be rounded"


def test_an_expanded_number_that_becomes_text_keeps_its_history() -> None:
    log = MessageLog(decode="json", expand=True)
    log.append(T0, "t", b'{"c": 1.5}')
    before = log.frame()
    log.append(T0, "t", b'{"c": "n/a"}')
    assert log.frame()["value.c"].to_list() == [1.5, "n/a"]
    assert before["value.c"].to_list() == [1.5]


def test_expanded_columns_are_bounded_and_counted() -> None:
    log = MessageLog(decode="json", expand=True)
    for i in range(EXPANDED_LIMIT + 10):
        log.append(T0, "t", b'{"k%d": 1}' % i)
    log.append(T0, "t", b'{"%s": 1}' % (b"x" * 1000))
    log.append(T0, "t", b'{"k0": 2}')
    frame = log.frame()
    assert sum(name.startswith("value.") for name in frame.columns) == EXPANDED_LIMIT
    assert log.expand_skipped == 11
    assert frame["value.k0"].iloc[-1] == 2


def test_expanded_columns_survive_growth_and_clear() -> None:
    log = MessageLog(decode="json", expand=True)
    for i in range(3 * STAGED_ROWS):
        log.append(T0, "t", b'{"c": %d}' % i)
        if i % 1500 == 0:
            log.frame()
    assert log.frame()["value.c"].to_list() == list(range(3 * STAGED_ROWS))
    log.clear()
    assert "value.c" not in log.frame().columns
    log.append(T0, "t", b'{"d": 1}')
    assert log.frame()["value.d"].to_list() == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decode": "yaml"}, 'use "text", "json", "raw" or a function'),
        ({"decode": "text", "expand": True}, 'use decode="json"'),
        ({"max_messages": 0}, "at least 1"),
        ({"max_bytes": 0}, "at least 1"),
    ],
)
def test_unusable_parameters(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MessageLog(**options)


def test_properties_on_request_and_as_the_callers_own() -> None:
    log = MessageLog()
    stamp = {"user_property": [("sent_ns", str(T0 - 10))]}
    rich = {"content_type": "text/plain", "user_property": [("a", "1"), ("sent_ns", str(T0)), ("a", "2")]}
    log.append(T0, "t", b"", properties=stamp)
    log.append(T0, "t", b"", properties=rich)
    log.append(T0, "t", b"", properties={})
    assert "properties" not in log.frame().columns
    shown = log.frame(properties=True)["properties"].to_list()
    assert shown == [stamp, rich, {}]
    shown[1].clear()
    assert dict(log.message(1).properties) == rich
    assert log.frame()["latency"].fillna(-1).to_list() == [1e-8, 0.0, -1]


@pytest.mark.parametrize("text", ["", "abc", "1e9", "-5", "٣", "9" * 30, " 1", "+1", str(2**63)])
def test_a_timestamp_that_is_none_gives_no_latency(text: str) -> None:
    log = MessageLog()
    log.append(T0, "t", b"", properties={"user_property": [("sent_ns", text)]})
    assert log.frame()["latency"].isna().all()
    assert log.message(0).properties == {"user_property": [("sent_ns", text)]}


@pytest.mark.parametrize("sent", ["0", "007", str(T0 + 5_000_000_000), str(T0 - 123_456_789), str(2**63 - 1), "1"])
def test_properties_are_given_back_exactly(sent: str) -> None:
    log = MessageLog()
    log.append(T0, "t", b"", properties={"user_property": [("sent_ns", sent)]})
    assert log.message(0).properties == {"user_property": [("sent_ns", sent)]}
    assert log.message(0).latency == pytest.approx((T0 - int(sent)) / 1e9)


def test_message_and_iteration() -> None:
    log = filled(3, session="s")
    log.append(T0, "big", b"x" * 100, 2, True, True, 9, 2**40, True)
    message = log.message(-1)
    assert (message.sequence, message.topic, message.value) == (3, "big", "x" * 100)
    assert (message.packet_id, message.stream_id, message.early_data) == (9, 2**40, True)
    assert message.time.year == 2026
    assert log.frame()["stream_id"].to_list() == [-1, -1, -1, 2**40]
    assert "100 bytes" in repr(message)
    assert len(repr(message)) < 150
    assert [m.payload for m in log][:3] == [b"0", b"1", b"2"]
    assert (log.message(0).packet_id, log.message(0).stream_id, log.message(0).session) == (None, None, "s")


def test_columns_since_gives_the_newest_and_says_what_it_skipped() -> None:
    log = filled(100)
    batch = log.columns_since(0, 10)
    assert (batch.first, batch.count, batch.skipped) == (90, 10, 90)
    assert batch.payloads == [b"%d" % i for i in range(90, 100)]
    assert [log.topics[code] for code in batch.topic] == [f"plant/{i % 3}" for i in range(90, 100)]
    assert batch.topic.dtype == np.uint32
    assert batch.qos_flags.dtype == np.uint8
    assert batch.stream_id.dtype == batch.time_ns.dtype == np.int64
    log.append(T0, "plant/0", b"", 2, True, True, 1, 4, True)
    following = log.columns_since(batch.first + batch.count, 10)
    assert (following.first, following.count, following.skipped) == (100, 1, 0)
    assert following.qos_flags.tolist() == [2 | 4 | 8 | 16]
    assert log.columns_since(101, 10).count == 0
    assert log.columns_since(500, 10).count == 0


def test_messages_since_misses_nothing_that_is_held() -> None:
    log = filled(25, max_messages=20)
    messages, missed = log.messages_since(0, 8)
    assert missed == 5
    assert [m.sequence for m in messages] == list(range(5, 13))
    messages, missed = log.messages_since(13)
    assert (missed, [m.sequence for m in messages]) == (0, list(range(13, 25)))


def test_one_appends_while_others_look() -> None:
    log = MessageLog(decode="json", expand=True, max_messages=5000)
    total = 40_000
    problems: list[str] = []
    done = threading.Event()

    def look() -> None:
        at = 0
        while True:
            last = done.is_set()
            frame = log.frame()
            if len(frame):
                numbers = frame["value.n"].to_numpy()
                if not (np.diff(numbers) == 1).all() or numbers[0] != frame.index[0]:
                    problems.append(f"rows out of order from {frame.index[0]}")
            batch = log.columns_since(at, 1000)
            if batch.first != at + batch.skipped or len(batch.payloads) != batch.count:
                problems.append("batch does not join")
            if batch.count and batch.payloads[0] != b'{"n": %d}' % batch.first:
                problems.append("payload of another message")
            at = batch.first + batch.count
            if last:
                return

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    for i in range(total):
        log.append(T0 + i, f"t/{i % 300}", b'{"n": %d}' % i)
    done.set()
    for reader in readers:
        reader.join(30)
    assert problems == []
    assert (log.total, len(log), log.dropped) == (total, 5000, total - 5000)
    assert log.frame()["value.n"].iloc[-1] == total - 1
