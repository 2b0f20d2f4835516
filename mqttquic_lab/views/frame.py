"""Reports as DataFrames, to compare or to keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd

    from mqttquic_lab.records.handshake import HandshakeReport


def handshake_frame(report: HandshakeReport) -> pd.DataFrame:
    """Return every known fact as one row.

    Returns
    -------
    DataFrame
        ``fact``: its name, nested ones joined by dots (``"rtt.minimum"``, ``"certificates.0.subject"``); ``value``:
        plain data (text, numbers, booleans), bytes in hexadecimal, times in seconds. What is not known has no row; the
        certificates themselves (PEM) are left out.
    """
    import pandas as pd

    plain = report.to_dict()
    for packet in ("connect", "connack"):
        plain[packet] = {name: value for name, _, _, value in plain.pop(f"{packet}_fields")}
    facts = list(_flatten("", plain))
    return pd.DataFrame(
        {
            "fact": pd.Series([name for name, _ in facts], dtype="str"),
            "value": pd.Series([value for _, value in facts], dtype=object),
        }
    )


def rows_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row per mapping, one column per name."""
    import pandas as pd

    return pd.DataFrame(list(rows))


def _flatten(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list):
        if all(isinstance(item, (str, int, float)) for item in value):
            # A list of plain values is one fact, unless it says nothing.
            if value:
                yield name, ", ".join(map(str, value))
            return
        items = enumerate(value)
    else:
        if value is not None and value != "" and not name.endswith(".pem"):
            yield name, value
        return
    for key, item in items:
        yield from _flatten(f"{name}.{key}" if name else str(key), item)
