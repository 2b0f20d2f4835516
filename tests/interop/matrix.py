"""The matrix of peers and features: tests say what they show, and a run of all of them writes it down.

A test is marked with what it shows, ``@pytest.mark.matrix("QoS {qos}", "retained", ours="client", peer="mqttv5")``.
Names of parameters in braces are filled in; markers of the class or module add to it, and their features count where
the test has the parameters. ``note=`` adds what happened; what is only known while it runs goes to
``record_property("matrix", ...)``, or to ``record_property("matrix 0-RTT", ...)`` for one feature. ``refused=True``:
the test shows that one end refuses this, as it says itself.

:data:`FILE` is written by ``python -m tests.interop.matrix``. Any run in which all marked tests passed, and none was
skipped or left out, fails if the file says something else.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from tests.helpers import markdown

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

FILE = Path(__file__).with_name("MATRIX.md")
TESTS = Path(__file__).parents[1]

QUIC_ONLY = (
    "single stream", "per-topic", "per-publish", "flow headers", "datagrams", "handshake", "resumption",
    "0-RTT", "migration", "rebinding",
)  # fmt: skip
"""Features that a peer without QUIC does not have."""

FEATURES = (
    "TCP", "TLS", *QUIC_ONLY, "refusals told apart", "MQTT 3.1.1", "MQTT 5.0", "QoS 0", "QoS 1", "QoS 2", "retained",
    "will", "shared subscription", "session resumed", "take-over", "properties", "password", "ACL", "large message",
    "many messages", "slow reader", "change of transport", "end of the broker",
)  # fmt: skip
"""Rows, in this order."""

ALIASES = {
    "mqtt": "TCP", "mqtts": "TLS", "tcp": "TCP", "tls": "TLS",
    "MQTT mqttv311": "MQTT 3.1.1", "MQTT mqttv5": "MQTT 5.0",
    "single": "single stream", "per-topic with flow headers": "flow headers",
}  # fmt: skip
"""What parameters make of a feature -> its name."""

Ours = Literal["client", "broker", "gateway"]

PEERS: dict[Ours, dict[str, tuple[str, ...]]] = {
    "client": {
        "mosquitto": ("TCP", "TLS"),
        "mosquitto behind our gateway": ("QUIC",),
        "mosquitto behind quiche": ("QUIC",),
        "mqttv5": ("QUIC",),
        "aioquic": ("QUIC",),
    },
    "broker": {
        "mosquitto_pub/sub": ("TCP", "TLS"),
        "paho-mqtt": ("TCP", "TLS"),
        "aiomqtt": ("TCP", "TLS"),
        "mosquitto_pub/sub behind quiche": ("QUIC",),
        "paho-mqtt behind quiche": ("QUIC",),
        "mqttv5": ("QUIC",),
        "aioquic": ("QUIC",),
    },
    "gateway": {"mqttv5 to mosquitto": ("QUIC",), "mosquitto_pub/sub to mosquitto": ("TLS",)},
}
"""Columns: what of ours -> who was at the other end -> what they speak."""

NOT_MQTT = {"aioquic"}
"""Peers that know nothing of MQTT: for QUIC only."""

HEADINGS: dict[Ours, str] = {
    "client": "Our client with brokers",
    "broker": "Our broker with clients",
    "gateway": "Our gateway between clients and brokers of others",
}

PREFACE = """\
# What was run against whom, and what happened

Each word below is what tests saw when they were last run together: `python -m tests.interop.matrix` runs them and
writes this file, and a run of all tests fails when it no longer says what they saw. Facts about the peers, and where
they deviate: [README.md](README.md).

**yes**: it works. **refused**: one end refuses it, as it says itself. **depends**: both, on what the note says.
\u2013: the peer has no such thing. Empty: no test.
"""


@dataclass(frozen=True)
class Shown:
    """One feature that a test shows."""

    ours: Ours
    peer: str
    feature: str
    refused: bool = False
    note: str = ""

    def check(self, where: str) -> None:
        """Raise UsageError for a name that the matrix does not have."""
        if self.ours not in PEERS or self.peer not in PEERS[self.ours] or self.feature not in FEATURES:
            raise pytest.UsageError(f"{where}: the matrix has no {self} (tests/interop/matrix.py lists the names)")


@dataclass
class Cell:
    """What all tests of one feature came to."""

    outcomes: set[str] = field(default_factory=set)
    notes: dict[str, set[str]] = field(default_factory=dict)
    """Test -> notes, so that they can be put into the order of the tests."""
    files: set[str] = field(default_factory=set)

    @property
    def word(self) -> str:
        """The outcome in a word; what went wrong goes before what went well."""
        for wrong in ("failed", "skipped"):
            if wrong in self.outcomes:
                return wrong
        return "depends" if len(self.outcomes) > 1 else next(iter(self.outcomes))

    def story(self) -> str:
        """Return the notes, each once."""
        notes = dict.fromkeys(note for test in sorted(self.notes) for note in sorted(self.notes[test]))
        return "; ".join(notes).replace("|", "\\|")


Cells = dict[tuple[str, str, str], Cell]


def shown_by(item: pytest.Item) -> list[Shown]:
    """Return what the markers of a test say."""
    markers = list(item.iter_markers("matrix"))  # the nearest one first
    values: dict[str, Any] = dict(getattr(getattr(item, "callspec", None), "params", {}))
    near: dict[str, Any] = {}
    for marker in markers:
        near = {**marker.kwargs, **near}
    found: dict[str, Shown] = {}
    for marker in markers:
        for template in marker.args:
            try:
                name = template.format(**values)
                peer = near["peer"].format(**values)
            except KeyError:
                continue  # of the module's, and this test has no such parameter
            feature = ALIASES.get(name, name)
            refused, note = marker.kwargs.get("refused", False), marker.kwargs.get("note", "")
            found.setdefault(feature, Shown(near["ours"], peer, feature, refused, note))
    return list(found.values())


def tables(cells: Cells) -> str:
    """Return the document."""
    parts = [PREFACE]
    for ours, heading in HEADINGS.items():
        peers = [peer for peer in PEERS[ours] if any(key[:2] == (ours, peer) for key in cells)]
        if not peers:
            continue
        features = [name for name in FEATURES if any((ours, peer, name) in cells for peer in peers)]
        rows = [[name, *(_word(cells, ours, peer, name) for peer in peers)] for name in features]
        parts.append(f"## {heading}\n\n" + markdown.table(["", *peers], rows))
        for peer in peers:
            mine = [(name, cells[ours, peer, name]) for name in features if (ours, peer, name) in cells]
            files = sorted({file for _, cell in mine for file in cell.files})
            told = [[name, cell.word, story] for name, cell in mine if (story := cell.story())]
            part = f"### Our {ours}: {peer}\n\nTests: {', '.join(files)}.\n"
            parts.append(part + ("\n" + markdown.table(["", "", "What happened"], told) if told else ""))
    return "\n".join(parts)


def _word(cells: Cells, ours: Ours, peer: str, feature: str) -> str:
    if (ours, peer, feature) in cells:
        return cells[ours, peer, feature].word
    speaks = PEERS[ours][peer]
    lacking = (
        (feature in QUIC_ONLY and "QUIC" not in speaks)
        or (feature in ("TCP", "TLS") and feature not in speaks)
        or (peer in NOT_MQTT and feature not in QUIC_ONLY)
    )
    return "\u2013" if lacking else ""


def marked_files() -> set[str]:
    """Return the test files with a marker, relative to the folder of the tests."""
    return {
        str(path.relative_to(TESTS)) for path in TESTS.rglob("test_*.py") if "mark.matrix(" in path.read_text("utf-8")
    }


class Matrix:
    """The plugin: collects what marked tests came to, and compares or writes the document at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.cells: Cells = {}
        self.left_out = False
        self.verdict = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            for shown in shown_by(item):
                shown.check(item.nodeid)

    def pytest_deselected(self, items: Iterable[pytest.Item]) -> None:
        self.left_out = self.left_out or any(shown_by(item) for item in items)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.when == "call" or report.outcome != "passed":
            # On the report, because with pytest-xdist another process collects them.
            report.matrix = [[s.ours, s.peer, s.feature, s.refused, s.note] for s in shown_by(item)]  # type: ignore[attr-defined]
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for ours, peer, feature, refused, note in getattr(report, "matrix", ()):
            cell = self.cells.setdefault((ours, peer, feature), Cell())
            word = "refused" if refused else "yes"
            cell.outcomes.add(word if report.outcome == "passed" else report.outcome)
            cell.files.add(report.nodeid.partition("::")[0].removeprefix("tests/"))
            notes = {note, *(str(value) for name, value in report.user_properties if name in _properties(feature))}
            cell.notes[report.nodeid] = notes - {""}

    @property
    def incomplete(self) -> str:
        """Why this run does not speak for all tests, or ``""``."""
        seen = {file for cell in self.cells.values() for file in cell.files}
        if missing := marked_files() - seen:
            return f"without {', '.join(sorted(missing))}"
        if self.left_out or "::" in " ".join(self.config.args):
            return "marked tests were left out"
        wrong = sorted({cell.word for cell in self.cells.values()} & {"failed", "skipped"})
        return f"marked tests were {' and '.join(wrong)}" if wrong else ""

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        writes = self.config.getoption("matrix")
        if hasattr(self.config, "workerinput") or not (self.cells or writes):
            return
        if why := self.incomplete:
            if writes:
                self.verdict = f"{FILE.name} was not written: {why}"
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
            return
        text = tables(self.cells)
        if writes:
            FILE.write_text(text, "utf-8")
            self.verdict = f"{FILE.name} was written: {len(self.cells)} entries"
        elif not FILE.exists() or FILE.read_text("utf-8") != text:
            self.verdict = f"{FILE.name} is not what the tests saw: `python -m tests.interop.matrix` writes it anew"
            if exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.verdict:
            terminalreporter.section("matrix")
            terminalreporter.line(self.verdict)


def _properties(feature: str) -> tuple[str, str]:
    return "matrix", f"matrix {feature}"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", action="store_true", help="write tests/interop/MATRIX.md from what the tests see")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "matrix(*features, ours, peer): what this test shows, for tests/interop/MATRIX.md"
    )
    config.pluginmanager.register(Matrix(config), "matrix-collector")


if __name__ == "__main__":
    sys.exit(
        pytest.main(
            ["-m", "matrix", "--matrix", *sys.argv[1:], *(str(TESTS / file) for file in sorted(marked_files()))]
        )
    )
