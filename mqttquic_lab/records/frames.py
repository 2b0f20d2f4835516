"""The master DataFrame over a log's buffers, and the slices of it that are handed out.

pandas 3 protects data that two objects share: the first write to either copies. It knows of sharing only between
*its own* live objects, though. So one Series per column over the **whole** buffer is kept here for as long as the log
writes into that buffer, and every frame handed out is a slice of those: copy-on-write then sees the sharing, and a
user's ``df.loc[...] = x`` lands in a copy. A buffer that the log has left behind needs no such guard.

(`Series.array` and `Categorical.codes` reach below copy-on-write; who assigns through them writes into the log.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mqttquic_lab.records.columns import Columns, Topics

_BEFORE_VALUE = ("time", "topic", "payload")
_AFTER_VALUE = ("qos", "retain", "dup", "packet_id", "stream_id", "early_data", "size", "latency", "session")
_UTC = pd.DatetimeTZDtype("ns", "UTC")


class Master:
    """Keeps the master frame in step with the buffers; all calls under the log's lock."""

    def __init__(self, session: str) -> None:
        self._session = pd.CategoricalDtype(pd.Index([session], dtype="str"))
        self._series: dict[str, pd.Series[Any]] = {}
        self._buffers: dict[str, NDArray[Any]] = {}
        self._topics_seen = (-1, -1)
        self._first = -1
        self._frame = pd.DataFrame()

    def slice(
        self, columns: Columns, topics: Topics, first: int, stop: int, *, raw: bool, expanded: list[str]
    ) -> pd.DataFrame:
        """Return rows ``columns.head:stop`` as a frame whose row labels begin at `first`.

        Costs some 50 us whatever the length, and about 1 ms when a buffer was replaced or a new topic came.
        """
        changed = self._update(columns, topics, raw=raw, expanded=expanded)
        base = first - columns.head  # the label of buffer row 0
        if changed or base != self._first:
            index = pd.RangeIndex(base, base + columns.capacity)
            for series in self._series.values():
                series.index = index
            order = [*_BEFORE_VALUE, "value", *expanded, *_AFTER_VALUE]
            self._frame = pd.DataFrame({name: self._series[name] for name in order}, copy=False)
            self._first = base
        return self._frame.iloc[columns.head : stop]

    def _update(self, columns: Columns, topics: Topics, *, raw: bool, expanded: list[str]) -> bool:
        """Bring the Series in step; True when any was replaced."""
        arrays = dict(columns.arrays)
        arrays["value"] = arrays["payload"] if raw else arrays["value"]
        changed = False
        for name in (*_BEFORE_VALUE, "value", *expanded, *_AFTER_VALUE):
            if name == "topic":
                seen = (topics.epoch, len(topics.names))
                if self._buffers.get(name) is arrays[name] and seen == self._topics_seen:
                    continue
                if self._buffers.get(name) is arrays[name]:
                    # Frames handed out with the old categories share this buffer, and the Series that guards them
                    # goes now: leave the buffer to them.
                    columns.replace(name, arrays[name].copy())
                    arrays[name] = columns.arrays[name]
                self._topics_seen = seen
                made = _categorical(arrays[name], pd.CategoricalDtype(pd.Index(topics.names, dtype="str")))
            elif self._buffers.get(name) is arrays[name]:
                continue
            elif name == "time":
                made = pd.Series(pd.array(arrays[name], dtype=_UTC, copy=False), copy=False)
            elif name == "session":
                made = _categorical(arrays[name], self._session)
            else:
                # dtype said, or pandas would look for strings among objects, and copy them.
                made = pd.Series(arrays[name], dtype=arrays[name].dtype, copy=False)
            self._buffers[name] = arrays[name]
            self._series[name] = made
            changed = True
        return changed


def _categorical(codes: NDArray[Any], dtype: pd.CategoricalDtype) -> pd.Series[Any]:
    # from_codes keeps the buffer only if its integer is the one pandas would choose for so many categories.
    values = pd.Categorical.from_codes(codes, dtype=dtype, validate=False)
    assert np.shares_memory(values.codes, codes), "pandas copied the topic codes"
    return pd.Series(values, copy=False)
