"""The matrix of what happened: tests put rows into the stash of the run, and its end writes them down."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers import markdown

if TYPE_CHECKING:
    from tests.scenarios.scenario import Run

FILE = Path(__file__).parents[2] / "artifacts" / "scenarios.md"


@dataclass(frozen=True)
class Row:
    """One scenario that passed."""

    name: str
    what: str
    happened: str
    messages: int
    """Acknowledged and received, both QoS together."""
    repeated: int
    """Of those at QoS 1, received once more."""
    forwarded: int
    lost: int
    corrupted: int
    reordered: int
    """Datagrams at the relay, both directions together."""
    round_trips: str
    """From the first packet to CONNACK."""
    seconds: float
    """From the first PUBLISH to the last message."""

    @classmethod
    def of(cls, run: Run, happened: str) -> Row:
        """Collect the figures of a run."""
        relay = run.relay
        trips = sorted({session.handshake.round_trips for session in run.sessions} - {None}, key=lambda n: n or 0)
        return cls(
            run.scenario.name,
            run.scenario.what,
            happened,
            sum(len(load.acknowledged) for load in run.loads),
            sum(load.repeated for load in run.loads),
            relay.passed,
            relay.dropped,
            relay.corrupted,
            relay.reordered,
            " to ".join(dict.fromkeys(str(n) for n in (trips[:1] + trips[-1:]))),
            max(load.seconds for load in run.loads),
        )


ROWS = pytest.StashKey[list[Row]]()

_COLUMNS = (
    "Scenario", "In the way", "What happened", "Messages", "Repeated (QoS 1)", "Datagrams", "Lost", "Corrupted",
    "Reordered", "Round trips to CONNACK", "Seconds",
)  # fmt: skip


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    return markdown.table(
        _COLUMNS,
        [
            (
                row.name, row.what, row.happened, str(row.messages), str(row.repeated), str(row.forwarded),
                str(row.lost), str(row.corrupted), str(row.reordered), row.round_trips, f"{row.seconds:.1f}",
            )
            for row in rows
        ],
        numbers_from=3,
    )  # fmt: skip


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what the scenarios of this run came to."""
    rows = session.config.stash.get(ROWS, [])
    if not rows:
        return
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(
        "Half the messages at QoS 1, half at QoS 2; every one acknowledged and received, none twice at QoS 2.\n"
        "Written by tests/scenarios.\n\n" + table(rows)
    )
