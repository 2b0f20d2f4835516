"""The table of statements: each with the tests that hold it up, or the reason why it does not apply.

The rows stand in ``v5.toml`` and ``v311.toml``, one per statement:

``binds``
    ``"client"``, ``"server"`` or ``"both"``: who has to obey.
``says``
    What it asks for, in words of ours; the standard's own are in the standard.
``tests``
    Node ids below ``tests/``. One without ``[...]`` stands for all parameters of that test. ``malformed: X`` is short
    for the two runs of row X of ``wire/test_malformed.py``.
``reason``
    Why there are no tests: the statement binds what this project does not have.
``open``
    What is missing, where something is. Counted, and to be gone.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
FILES: Final = {"5.0": HERE / "v5.toml", "3.1.1": HERE / "v311.toml"}
MALFORMED: Final = "wire/test_malformed.py::test_refused_with_the_rule[{}-{}]"


@dataclass(frozen=True, slots=True)
class Statement:
    """One row."""

    name: str
    binds: str
    says: str
    tests: tuple[str, ...] = ()
    reason: str = ""
    open: str = ""

    @property
    def standing(self) -> str:
        """``"covered"``, ``"not applicable"`` or ``"open"``."""
        if self.open or not (self.tests or self.reason):
            return "open"
        return "covered" if self.tests else "not applicable"

    @property
    def node_ids(self) -> list[str]:
        """The tests as pytest names them."""
        found = []
        for test in self.tests:
            short, _, row = test.partition("malformed: ")
            found += [test] if short or not row else [MALFORMED.format(how, row) for how in ("whole", "bytewise")]
        return [f"tests/{each}" for each in found]


def read(path: Path) -> list[Statement]:
    """Return the rows of one file, in its order. A name that stands twice is no TOML, so it cannot be there."""
    rows = tomllib.loads(path.read_text(encoding="utf-8"))
    return [Statement(name, **{**row, "tests": tuple(row.get("tests", ()))}) for name, row in rows.items()]


def figures(rows: list[Statement]) -> dict[str, int]:
    """Return how many statements stand how."""
    counts = dict.fromkeys(("covered", "not applicable", "open"), 0)
    for row in rows:
        counts[row.standing] += 1
    return counts
