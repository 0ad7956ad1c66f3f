"""`PersistentMap`: an immutable map of named objects whose edits share almost all structure with the old map.

It exists for `changed`, the difference of two maps in time proportional to the difference: parts that are the same
object are skipped. Persistent-map libraries (immutables, pyrsistent) share structure as well, but give no difference
without a walk over all items.

Names are spread over 32 × 32 small dictionaries by CRC-32, so an edit copies two tuples of 32 and one dictionary with
a thousandth of the map. The order of iteration depends on the names alone, not on the edits that led to the map.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, TypeVar
from zlib import crc32

Value = TypeVar("Value")

_FANOUT = 32
_EMPTY_LEAF: dict[str, object] = {}
_EMPTY_ROW: tuple[dict[str, object], ...] = (_EMPTY_LEAF,) * _FANOUT
_EMPTY: tuple[tuple[dict[str, object], ...], ...] = (_EMPTY_ROW,) * _FANOUT


def _place(name: str) -> tuple[int, int]:
    """Return (row, column) of a name."""
    spread = crc32(name.encode("utf-8", "surrogatepass"))
    return spread & 31, (spread >> 5) & 31


class PersistentMap(Mapping[str, Value], Generic[Value]):
    """name → value. `put` and `remove` return a new map, or this one if nothing differs.

    An equal value is kept, so the identity of a value tells whether it changed.
    """

    __slots__ = ("_rows", "_size")

    def __init__(self, items: Iterable[tuple[str, Value]] = ()) -> None:
        rows: list[list[dict[str, Value]] | None] = [None] * _FANOUT
        size = 0
        for name, value in items:
            row, column = _place(name)
            leaves = rows[row]
            if leaves is None:
                leaves = rows[row] = [{} for _ in range(_FANOUT)]
            size += name not in leaves[column]
            leaves[column][name] = value
        # Empty leaves are one shared object, so that two empty places compare by identity.
        self._rows: tuple[tuple[dict[str, Value], ...], ...] = tuple(
            tuple(leaf or _EMPTY_LEAF for leaf in leaves) if leaves is not None else _EMPTY_ROW  # type: ignore[misc]
            for leaves in rows
        )
        self._size = size

    @classmethod
    def _of(cls, rows: tuple[tuple[dict[str, Value], ...], ...], size: int) -> PersistentMap[Value]:
        made = cls.__new__(cls)
        made._rows, made._size = rows, size
        return made

    def __getitem__(self, name: str) -> Value:
        row, column = _place(name)
        return self._rows[row][column][name]

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[str]:
        for leaves in self._rows:
            if leaves is not _EMPTY_ROW:
                for leaf in leaves:
                    # The order inside a leaf would depend on earlier edits.
                    yield from sorted(leaf) if len(leaf) > 1 else leaf

    def put(self, name: str, value: Value) -> PersistentMap[Value]:
        """Return a map with this item added or replaced."""
        row, column = _place(name)
        leaves = self._rows[row]
        leaf = leaves[column]
        known = name in leaf
        if known and (leaf[name] is value or leaf[name] == value):
            return self
        return self._with(row, column, {**leaf, name: value}, self._size + (not known))

    def remove(self, name: str) -> PersistentMap[Value]:
        """Return a map without this name; no effect if it is not there."""
        row, column = _place(name)
        leaf = self._rows[row][column]
        if name not in leaf:
            return self
        kept = {other: value for other, value in leaf.items() if other != name}
        return self._with(row, column, kept or _EMPTY_LEAF, self._size - 1)  # type: ignore[arg-type]

    def _with(self, row: int, column: int, leaf: dict[str, Value], size: int) -> PersistentMap[Value]:
        leaves = self._rows[row]
        leaves = (*leaves[:column], leaf, *leaves[column + 1 :])
        return self._of((*self._rows[:row], leaves, *self._rows[row + 1 :]), size)

    def changed(self, earlier: PersistentMap[Value]) -> set[str]:
        """Return the names whose value is another object than in `earlier`, and those that only one map has."""
        names: set[str] = set()
        if self._rows is earlier._rows:
            return names
        for mine, theirs in zip(self._rows, earlier._rows, strict=True):
            if mine is theirs:
                continue
            for leaf, old in zip(mine, theirs, strict=True):
                if leaf is not old:
                    names.update(name for name, value in leaf.items() if old.get(name) is not value)
                    names.update(name for name in old if name not in leaf)
        return names

    def __eq__(self, other: object) -> bool:
        """Compare by value; equal parts that are the same object cost nothing."""
        if not isinstance(other, PersistentMap):
            return NotImplemented
        if len(self) != len(other):
            return False
        return all(name in self and name in other and self[name] == other[name] for name in self.changed(other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"PersistentMap({dict(self)!r})"
