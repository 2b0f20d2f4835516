"""Small tables of plain rows as DataFrames, for handles, which know no pandas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pandas as pd


def rows_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row per mapping, one column per name."""
    import pandas as pd

    return pd.DataFrame(list(rows))


def facts_frame(facts: Mapping[str, Any]) -> pd.DataFrame:
    """Return nested plain data as a frame of two columns, ``fact`` and ``value``; names are joined by dots.

    Lists of plain values stay values; lists of mappings are numbered: ``certificates.0.subject``.
    """
    import pandas as pd

    return pd.DataFrame(list(_flat("", facts)), columns=["fact", "value"])


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, member in value.items():
            yield from _flat(f"{name}.{key}" if name else key, member)
    elif isinstance(value, list) and any(isinstance(member, dict) for member in value):
        for number, member in enumerate(value):
            yield from _flat(f"{name}.{number}", member)
    else:
        yield name, value
