"""MessageLog against the simplest thing that could work: a list of tuples."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mqttquic_lab.records.log import ROW_BYTES, MessageLog

T0 = 1_790_000_000_000_000_000
PAYLOADS = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([b'{"c": 1}', b'{"c": "x", "d": 2.5}', b"[1, 2]", b"{", b"21.5", b"x" * 5000]),
)
TOPICS = st.one_of(st.sampled_from(["a", "a/b", "$SYS/x", "é/ü"]), st.text(min_size=1, max_size=8))


class LogAgainstList(RuleBasedStateMachine):
    @initialize(
        decode=st.sampled_from(["text", "json", "raw"]),
        max_messages=st.integers(1, 300),
        max_bytes=st.sampled_from([500, 5_000, 50_000, 10**7]),
    )
    def start(self, decode: Any, max_messages: int, max_bytes: int) -> None:
        # Decoded values have a bound of their own; the list has none, so keep it out of reach where they are charged.
        self.decode = decode
        self.max_messages = max_messages
        self.max_bytes = max_bytes if decode == "raw" else 10**7
        self.log = MessageLog(
            decode=decode,
            expand=decode == "json",
            max_messages=self.max_messages,
            max_bytes=self.max_bytes,
        )
        self.rows: list[tuple[int, str, bytes, int, int]] = []
        self.total = self.removed = 0

    @rule(topic=TOPICS, payload=PAYLOADS, qos=st.integers(0, 2), packet_id=st.integers(1, 65535), n=st.integers(1, 120))
    def append(self, topic: str, payload: bytes, qos: int, packet_id: int, n: int) -> None:
        for _ in range(n):
            self.log.append(T0 + self.total, topic, payload, qos, packet_id=packet_id if qos else None)
            self.rows.append((T0 + self.total, topic, payload, qos, packet_id if qos else 0))
            self.total += 1
            while len(self.rows) > self.max_messages or self.charge() > self.max_bytes:
                del self.rows[0]
                self.removed += 1

    def charge(self) -> int:
        return sum(len(topic.encode()) + len(payload) + ROW_BYTES for _, topic, payload, _, _ in self.rows)

    @rule()
    def clear(self) -> None:
        self.log.clear()
        self.removed += len(self.rows)
        self.rows.clear()

    @rule()
    def look(self) -> None:
        frame = self.log.frame()
        assert list(frame.index) == list(range(self.removed, self.total))
        assert frame["time"].astype("int64").to_list() == [row[0] for row in self.rows]
        assert frame["topic"].astype(object).to_list() == [row[1] for row in self.rows]
        assert frame["payload"].to_list() == [row[2] for row in self.rows]
        assert frame["qos"].to_list() == [row[3] for row in self.rows]
        assert frame["packet_id"].to_list() == [row[4] for row in self.rows]
        assert frame["size"].to_list() == [len(row[2]) for row in self.rows]
        values = frame["value"].to_list()
        assert values == [m.value for m in self.log]
        if self.decode == "json" and "value.c" in frame.columns:
            expected = [v["c"] if isinstance(v, dict) and "c" in v else None for v in values]
            assert frame["value.c"].astype(object).where(frame["value.c"].notna(), None).to_list() == expected

    @rule(at=st.integers(0, 400), limit=st.integers(1, 200))
    def batch(self, at: int, limit: int) -> None:
        at += max(0, self.removed - 100)
        batch = self.log.columns_since(at, limit)
        newest = [(i, row) for i, row in enumerate(self.rows, self.removed) if i >= at][-limit:]
        assert batch.count == len(newest)
        assert batch.payloads == [row[2] for _, row in newest]
        assert [self.log.topics[code] for code in batch.topic] == [row[1] for _, row in newest]
        if newest:
            assert batch.first == newest[0][0]
            assert batch.skipped == batch.first - at

    @invariant()
    def counters_agree(self) -> None:
        assert self.log.total == self.total
        assert len(self.log) == len(self.rows)
        assert self.log.dropped + self.log.cleared == self.removed
        assert self.log.nbytes == self.charge()
        counts = self.log.topic_counts()
        assert sum(counts.values()) == len(self.rows)
        assert np.all(np.diff(list(counts.values())) <= 0)


LogAgainstList.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestLogAgainstList = LogAgainstList.TestCase
