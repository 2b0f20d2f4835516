"""The table of statements: none forgotten, none invented, and every test that it names is there."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from tests.conformance.numbers import NUMBERS_V5, NUMBERS_V311
from tests.conformance.table import FILES, Statement, figures, read

ROOT = Path(__file__).parents[2]
NUMBERS = {"5.0": NUMBERS_V5, "3.1.1": NUMBERS_V311}
VERSIONS = pytest.mark.parametrize("version", list(FILES))

OPEN: dict[str, list[str]] = {"5.0": [], "3.1.1": []}
"""Statements that are known to be open. Whoever closes one takes it out here as well."""


@cache
def rows(version: str) -> list[Statement]:
    return read(FILES[version])


@cache
def collected(files: tuple[str, ...]) -> frozenset[str]:
    """Every test of these files, with and without its parameters."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    nodes = [line for line in done.stdout.splitlines() if "::" in line]
    return frozenset(nodes) | {node.partition("[")[0] for node in nodes}


def test_how_many_there_are() -> None:
    assert (len(NUMBERS_V5), len(NUMBERS_V311)) == (251, 141)
    by_chapter = Counter(number.removeprefix("MQTT-").partition(".")[0] for number in NUMBERS_V5)
    assert by_chapter == {"1": 5, "2": 7, "3": 175, "4": 60, "6": 4}


@VERSIONS
def test_every_statement_stands_once_and_in_order(version: str) -> None:
    assert [row.name for row in rows(version)] == NUMBERS[version]


@VERSIONS
def test_every_row_is_complete(version: str) -> None:
    for row in rows(version):
        assert row.binds in ("client", "server", "both"), row
        assert len(row.says) > 10, row
        assert not (row.tests and row.reason), f"{row.name} has tests, so it does apply"
        assert not row.reason or len(row.reason) > 20, f"{row.name}: a reason is a sentence"
        assert len(set(row.tests)) == len(row.tests), row


@VERSIONS
def test_what_is_open_is_known(version: str) -> None:
    assert [row.name for row in rows(version) if row.standing == "open"] == OPEN[version]
    assert figures(rows(version))["open"] == len(OPEN[version])


def test_every_test_that_is_named_exists() -> None:
    named = {node: row.name for version in FILES for row in rows(version) for node in row.node_ids}
    there = collected(tuple(sorted({node.partition("::")[0] for node in named})))
    missing = {node: name for node, name in named.items() if node not in there}
    assert not missing, missing
