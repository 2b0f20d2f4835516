"""Growing NumPy columns and the topic dictionary: the memory under :class:`mqttquic_lab.records.log.MessageLog`.

The one rule that makes zero-copy frames safe: a row is written once, when it is appended (a lazily decoded column:
once, when it is decoded), and never again in the same buffer. Dropping rows only moves a mark; making room means new
buffers, and whoever holds a view of the old ones keeps them, unchanged, for as long as they like.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

GROWTH = 8
"""A full buffer is replaced by one an eighth larger: slack stays below 12.5 %, and each row is copied about eight
times in its life, some 40 ns."""


class Columns:
    """Equally long columns with rows ``head:tail`` in use.

    Attributes
    ----------
    arrays : dict of str to ndarray
        The buffers, each :attr:`capacity` long. Replaced, never resized.
    head, tail : int
        First row held, and the row after the last one.
    generation : int
        Counts replacements of all buffers.
    """

    def __init__(self, columns: dict[str, tuple[Any, Any]], capacity: int) -> None:
        self._fills = {name: fill for name, (_, fill) in columns.items()}
        self.capacity = capacity
        self.arrays: dict[str, NDArray[Any]] = {
            name: _filled(capacity, dtype, fill) for name, (dtype, fill) in columns.items()
        }
        self.head = self.tail = 0
        self.generation = 0

    def __len__(self) -> int:
        return self.tail - self.head

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def held(self, name: str) -> NDArray[Any]:
        """Return the rows in use of one column, as a view."""
        return self.arrays[name][self.head : self.tail]

    def reserve(self, rows: int) -> None:
        """Make room for `rows` more after :attr:`tail`."""
        if self.tail + rows > self.capacity:
            held = len(self)
            self.relocate(held + rows + max(held // GROWTH, rows))

    def relocate(self, capacity: int) -> None:
        """Move the rows in use to the front of new buffers of `capacity` rows."""
        held = len(self)
        moved: dict[str, NDArray[Any]] = {}
        for name, old in self.arrays.items():
            new = _filled(capacity, old.dtype, self._fills[name])
            new[:held] = old[self.head : self.tail]
            moved[name] = new
        self.arrays = moved
        self.head, self.tail, self.capacity = 0, held, capacity
        self.generation += 1

    def add(self, name: str, dtype: Any, fill: Any) -> None:
        """Add a column that holds `fill` in every row."""
        self._fills[name] = fill
        self.arrays[name] = _filled(self.capacity, dtype, fill)

    def replace(self, name: str, array: NDArray[Any], fill: Any = None) -> None:
        """Put a new buffer in a column's place: another dtype, or protection of views handed out."""
        assert len(array) == self.capacity
        if fill is not None or array.dtype == object:
            self._fills[name] = fill
        self.arrays[name] = array


def _filled(capacity: int, dtype: Any, fill: Any) -> NDArray[Any]:
    if fill == 0 and np.dtype(dtype) != object:
        return np.zeros(capacity, dtype)
    if fill is None:
        return np.empty(capacity, object)  # NumPy fills it with None
    return np.full(capacity, fill, dtype)


def objects(items: Iterable[Any], count: int) -> NDArray[Any]:
    """Return an object array of `items`, however much they look like sequences themselves."""
    return np.fromiter(items, dtype=object, count=count)


class Topics(dict[str, int]):
    """Topic name -> code, in order of first appearance.

    Bounded by :meth:`compact`: a peer that never repeats a topic makes the owner call it, and only the topics of rows
    still held survive.

    Attributes
    ----------
    names : list of str
        Code -> name.
    nbytes : int
        UTF-8 bytes of all names.
    epoch : int
        Changes whenever codes were given out anew; codes of another epoch mean nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._sizes = np.zeros(64, np.int64)
        self.nbytes = 0
        self.epoch = 0

    def __missing__(self, name: str) -> int:
        code = len(self.names)
        if code == len(self._sizes):
            self._sizes = np.concatenate([self._sizes, np.zeros_like(self._sizes)])
        size = len(name.encode("utf-8", "surrogatepass"))
        self._sizes[code] = size
        self.nbytes += size
        self.names.append(name)
        self[name] = code
        return code

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Code -> UTF-8 length."""
        return self._sizes[: len(self.names)]

    @property
    def code_dtype(self) -> type[np.int8 | np.int16 | np.int32]:
        """The integer pandas uses for a Categorical of that many categories; any other would make it copy."""
        if len(self.names) < 2**7:
            return np.int8
        return np.int16 if len(self.names) < 2**15 else np.int32

    def compact(self, codes: NDArray[Any]) -> NDArray[Any]:
        """Forget every topic not in `codes`; return `codes` in the new numbering."""
        live, renumbered = np.unique(codes, return_inverse=True)
        names = [self.names[code] for code in live.tolist()]
        sizes = self._sizes[live]
        self.names = names
        self._sizes = np.zeros(max(64, len(names)), np.int64)
        self._sizes[: len(names)] = sizes
        self.nbytes = int(sizes.sum())
        self.clear()
        self.update(zip(names, range(len(names)), strict=True))
        self.epoch += 1
        return renumbered.astype(self.code_dtype)
