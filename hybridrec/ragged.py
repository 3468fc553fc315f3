"""Rows of any length, and the array types that every stage speaks in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from hybridrec.checks import InputError, InputTypeError, frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

Items = NDArray[np.int32]
Scores = NDArray[np.float32]
Mask = NDArray[np.bool_]


def integers(name: str, value: object, dtype: type[np.signedinteger[Any]]) -> NDArray[Any]:
    """``value`` as a C-contiguous array of ``dtype``; every number stays what it was.

    Raises:
        InputTypeError: not integers.
        InputError: a number that ``dtype`` cannot hold; names its position.
    """
    array = np.asarray(value)
    if array.dtype != dtype and array.size:
        if not np.issubdtype(array.dtype, np.integer):
            raise InputTypeError(
                f"{name} has dtype {array.dtype}; wanted integers: give codes, not ids or scores"
            )
        limits = np.iinfo(dtype)
        # Compared as Python numbers: NumPy would compare uint64 with int64 as floats.
        if int(array.max()) > limits.max or int(array.min()) < limits.min:
            wrong = np.argwhere((array > limits.max) | (array < limits.min))[0]
            raise InputError(
                f"{name}[{', '.join(map(str, wrong))}] is {array[tuple(wrong)]}; wanted a number "
                f"from {limits.min} to {limits.max}"
            )
    return np.ascontiguousarray(array, dtype=dtype)


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of item codes of any length (CSR), oldest event first.

    Attributes:
        indptr: (rows + 1,) int64; row r is ``items[indptr[r]:indptr[r + 1]]``.
        items: (nnz,) int32 codes.
        weights: (nnz,) float32, finite and > 0; None means 1 everywhere and takes no storage.
        times: (nnz,) int64, the caller's unit, never falling within a row; None if there are none.
    """

    indptr: NDArray[np.int64]
    items: Items
    weights: Scores | None = None
    times: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        indptr = integers("indptr", self.indptr, np.int64)
        items = integers("items", self.items, np.int32)
        if indptr.ndim != 1 or indptr.size == 0 or indptr[0] != 0 or indptr[-1] != items.size:
            raise InputError(
                f"indptr has shape {indptr.shape} for {items.size} items; wanted one dimension, "
                "from 0 to the number of items"
            )
        if (np.diff(indptr) < 0).any():
            raise InputError("indptr falls somewhere; wanted a sequence that never falls")
        object.__setattr__(self, "indptr", frozen(indptr))
        object.__setattr__(self, "items", frozen(items))
        for name in ("weights", "times"):
            values = getattr(self, name)
            if values is None:
                continue
            array: NDArray[Any] = (
                np.ascontiguousarray(values, dtype=np.float32)
                if name == "weights"
                else integers(name, values, np.int64)
            )
            if array.shape != items.shape:
                raise InputError(f"{name} has shape {array.shape}; wanted {items.shape}")
            object.__setattr__(self, name, frozen(array))
        if self.weights is not None:
            wrong = np.flatnonzero(~(np.isfinite(self.weights) & (self.weights > 0)))
            if wrong.size:
                raise InputError(
                    f"weights[{wrong[0]}] is {self.weights[wrong[0]]}; weights must be finite and "
                    "> 0: drop or clip that row first"
                )

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(rows,) events a row."""
        return np.diff(self.indptr)

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[int] | NDArray[Any]]) -> Self:
        """Unit-weight rows from a list of code lists."""
        indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        parts = [integers("items", row, np.int32) for row in rows]
        return cls(indptr, np.concatenate(parts) if parts else np.empty(0, dtype=np.int32))

    @classmethod
    def empty(cls, rows: int) -> Self:
        """``rows`` rows with nothing in them."""
        return cls(np.zeros(rows + 1, dtype=np.int64), np.empty(0, dtype=np.int32))

    def row_of(self) -> NDArray[np.int64]:
        """(nnz,) the row each event stands in."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    def from_end(self) -> NDArray[np.int64]:
        """(nnz,) how many events of its row are newer than each event: 0 is the newest."""
        return np.repeat(self.indptr[1:], self.lengths) - 1 - np.arange(len(self.items))

    def keep(self, mask: Mask) -> Self:
        """The same rows with only the events where ``mask`` (nnz,) is true."""
        kept = np.concatenate([[0], np.cumsum(mask)])[self.indptr].astype(np.int64)
        return replace(
            self,
            indptr=kept,
            items=self.items[mask],
            weights=None if self.weights is None else self.weights[mask],
            times=None if self.times is None else self.times[mask],
        )

    def select(self, rows: NDArray[Any]) -> Self:
        """Rows ``rows`` (n,), in that order, repeats allowed."""
        rows = np.asarray(rows, dtype=np.int64)
        return self.spans(self.indptr[:-1][rows], self.indptr[1:][rows])

    def spans(self, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> Self:
        """Row i of the answer is the events ``starts[i]:stops[i]``, wherever rows begin here."""
        lengths = stops - starts
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        place = np.arange(indptr[-1]) + np.repeat(starts - indptr[:-1], lengths)
        return replace(
            self,
            indptr=indptr,
            items=self.items[place],
            weights=None if self.weights is None else self.weights[place],
            times=None if self.times is None else self.times[place],
        )

    def newest(self, n: int) -> Self:
        """At most the ``n`` newest events of every row."""
        if not len(self.items) or self.lengths.max() <= n:
            return self
        return self.keep(self.from_end() < n)

    def merged(self, other: Ragged) -> Ragged:
        """Row by row, the items of both; weights and times are dropped."""
        if len(other) != len(self):
            raise InputError(f"cannot merge {len(other)} rows into {len(self)}")
        rows = np.concatenate([self.row_of(), other.row_of()])
        items = np.concatenate([self.items, other.items])
        order = np.argsort(rows, kind="stable")
        return Ragged(self.indptr + other.indptr, items[order])
