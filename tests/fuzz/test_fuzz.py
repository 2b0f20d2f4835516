"""A bounded run of the fuzzer; ``python -m tests.fuzz`` runs for longer, with other seeds."""

from __future__ import annotations

import pytest

from tests.fuzz.mutate import mutate_packets
from tests.fuzz.run import Fuzzer

SECONDS = 20.0
GROWTH = 24.0
"""MiB by which a run may grow after its warm-up: retained messages, tickets and caches fill up to their bounds."""


@pytest.mark.timeout(120)
async def test_nobody_notices_mutated_sessions() -> None:
    report = await Fuzzer("ci").run(SECONDS)
    text = "\n".join(report.lines())
    print(text)
    assert not report.failures, text
    assert report.cases > 50, text
    assert report.witnessed > 50, text
    assert report.refused > 0, text
    assert report.late_rss - report.early_rss < GROWTH, text


def test_the_same_seed_makes_the_same_cases() -> None:
    def plans() -> list[str]:
        made = []
        for number in range(200):
            r, kind, name = Fuzzer("x").kind_of(number)
            if kind != "handshake":
                made.append(repr(Fuzzer.plan(r, kind, name)))
        return made

    first = plans()
    assert first == plans()
    assert len(set(first)) > 0.9 * len(first)


def test_mutations_need_no_packets() -> None:
    r, _, _ = Fuzzer("x").kind_of(0)
    assert mutate_packets(r, [])
