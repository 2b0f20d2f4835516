"""``expand=True``: the scalar members of decoded JSON objects as columns of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mqttquic_lab.records.columns import objects
from mqttquic_lab.records.decode import SCALARS, fits_float

if TYPE_CHECKING:
    from mqttquic_lab.records.columns import Columns

PREFIX = "value."
"""What names of expanded columns begin with."""

EXPANDED_LIMIT = 64
"""Columns that a log may add; what a peer puts into further members stays in ``value`` and is counted."""

NAME_LIMIT = 128
"""Longest member name, characters, that becomes a column."""


class Expansion:
    """Which members have columns, and how values get there.

    Numbers make a float64 column, NaN where a message has no such member; anything else, or a mixture, makes a column
    of objects, None where there is none.

    Attributes
    ----------
    names : dict of str to str
        Member name -> column name, in order of appearance.
    skipped : int
        Members that got no column.
    """

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.skipped = 0

    def write(self, columns: Columns, row: int, values: list[Any]) -> None:
        """Write the scalar members of `values`, the first of which belongs to buffer row `row`."""
        found: dict[str, tuple[list[int], list[Any]]] = {}
        for i, value in enumerate(values, row):
            if type(value) is not dict:
                continue
            for name, member in value.items():
                if type(member) in SCALARS:
                    cells = found.get(name)
                    if cells is None:
                        if not self._may_add(name, found):
                            self.skipped += 1
                            continue
                        cells = found[name] = ([], [])
                    cells[0].append(i)
                    cells[1].append(member)
        for name, (rows, members) in found.items():
            numeric = fits_float(members)
            column = self._column(columns, name, numeric=numeric)
            # An object column takes numbers as they are.
            columns.arrays[column][rows] = members if numeric else objects(members, len(members))

    def _may_add(self, name: Any, found: dict[str, Any]) -> bool:
        if name in self.names:
            return True
        new = sum(other not in self.names for other in found)
        return type(name) is str and len(name) <= NAME_LIMIT and len(self.names) + new < EXPANDED_LIMIT

    def _column(self, columns: Columns, name: str, *, numeric: bool) -> str:
        """Return the member's column, made or turned into one of objects if need be."""
        column = self.names.get(name)
        if column is None:
            column = self.names[name] = PREFIX + name
            columns.add(column, np.float64 if numeric else object, np.nan if numeric else None)
        elif not numeric and columns.arrays[column].dtype != object:
            old = columns.arrays[column]
            new = old.astype(object)
            new[np.isnan(old)] = None
            columns.replace(column, new)
        return column
