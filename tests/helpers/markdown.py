"""Tables in Markdown, as the documents that tests write have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int | None = None) -> str:
    """Return a table; the columns from `numbers_from` on are numbers, and stand to the right."""
    first_number = len(columns) if numbers_from is None else numbers_from
    rule = ["---" if place < first_number else "---:" for place in range(len(columns))]
    return "".join(f"| {' | '.join(line)} |\n" for line in (columns, rule, *rows))
