"""Tables of what leads from an item to an item, and what a history makes of one.

The score of item b is the sum of T[h, b] over the events h of the history, each times its weight.
Shapes: B queries, K candidates, I items, M items that a dense table knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hybridrec.checks import FitError, StorageError, frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hybridrec.protocols import FitData
    from hybridrec.ragged import Items, Ragged, Scores


_MOST_ITEMS = 30_000
"""Items of a dense table unless ``max_items`` asks for more: 3.6 GB of float32."""


class ItemTable(Protocol):
    """T, of whatever shape in memory."""

    @property
    def n_items(self) -> int:
        """I, cold items included."""

    def rows(self, histories: Ragged, weights: Scores) -> Scores:
        """(B, I) float32 scores by ``histories``, whose events have ``weights`` (nnz,)."""

    def pairs(self, histories: Ragged, weights: Scores, items: Items) -> Scores:
        """(B, K) float32: what :meth:`rows` has at ``items`` (B, K), to the bit; 0 at code -1."""

    def widened(self, n: int) -> Self:
        """The same with ``n`` items more, which lead nowhere and are led to from nowhere."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is saved."""

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """What :meth:`arrays` gave."""


@dataclass(frozen=True, eq=False)
class SparseTable:
    """T as CSR: row a holds the items that follow a, no item twice.

    Attributes:
        indptr: (I + 1,) int64.
        items: (nnz,) int32.
        values: (nnz,) float32.
    """

    indptr: NDArray[np.int64]
    items: NDArray[np.int32]
    values: Scores

    @property
    def n_items(self) -> int:
        """I."""
        return len(self.indptr) - 1

    def rows(self, histories: Ragged, weights: Scores) -> Scores:
        """(B, I) float32 scores. O(entries of the histories' rows)."""
        out = np.zeros((len(histories), self.n_items), dtype=np.float32)
        table = (self.indptr, self.items, self.values)
        _sparse_rows(histories.indptr, histories.items, weights, *table, out)
        return out

    def pairs(self, histories: Ragged, weights: Scores, items: Items) -> Scores:
        """(B, K) float32 scores at ``items``. O(I) memory."""
        out = np.zeros(items.shape, dtype=np.float32)
        table = (self.indptr, self.items, self.values)
        _sparse_pairs(histories.indptr, histories.items, weights, *table, frozen(items), out)
        return out

    def widened(self, n: int) -> SparseTable:
        """The same with ``n`` items more."""
        room = np.full(n, self.indptr[-1])
        return SparseTable(np.concatenate([self.indptr, room]), self.items, self.values)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is saved."""
        return {"indptr": self.indptr, "items": self.items, "values": self.values}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> SparseTable:
        """What :meth:`arrays` gave.

        Raises:
            StorageError: the arrays do not fit together.
        """
        indptr, items, values = (arrays[name] for name in ("indptr", "items", "values"))
        if (
            indptr[0] != 0
            or indptr[-1] != len(items)
            or (np.diff(indptr) < 0).any()
            or len(items) != len(values)
            or items.min(initial=0) < 0
            or items.max(initial=-1) >= len(indptr) - 1
        ):
            raise StorageError("the item table of this stage is damaged: save the model again")
        return cls(indptr, items, values)


@dataclass(frozen=True, eq=False)
class DenseTable:
    """T over M of the items; any other leads nowhere and is led to from nowhere.

    Attributes:
        codes: (M,) int32, rising: the items that rows and columns stand for.
        weights: (M, M) float32.
        n_items: I.
    """

    codes: NDArray[np.int32]
    weights: Scores
    n_items: int

    def rows(self, histories: Ragged, weights: Scores) -> Scores:
        """(B, I) float32 scores. O(events * M + I) a query."""
        out = np.zeros((len(histories), self.n_items), dtype=np.float32)
        _dense_rows(*self._asked(histories, weights), self.codes, self.weights, out)
        return out

    def pairs(self, histories: Ragged, weights: Scores, items: Items) -> Scores:
        """(B, K) float32 scores at ``items``. O(events * K) a query."""
        out = np.zeros(items.shape, dtype=np.float32)
        _dense_pairs(*self._asked(histories, weights), self._places(items), self.weights, out)
        return out

    def widened(self, n: int) -> DenseTable:
        """The same with ``n`` items more."""
        return DenseTable(self.codes, self.weights, self.n_items + n)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is saved."""
        return {"codes": self.codes, "weights": self.weights, "n_items": np.array(self.n_items)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> DenseTable:
        """What :meth:`arrays` gave.

        Raises:
            StorageError: the arrays do not fit together.
        """
        codes, weights, n_items = (arrays[name] for name in ("codes", "weights", "n_items"))
        if (
            weights.shape != (len(codes), len(codes))
            or codes.min(initial=0) < 0
            or codes.max(initial=-1) >= n_items
        ):
            raise StorageError("the item table of this stage is damaged: save the model again")
        return cls(codes, weights, int(n_items))

    def _asked(
        self, histories: Ragged, weights: Scores
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], Scores]:
        return histories.indptr, self._places(histories.items), weights

    def _places(self, items: Items) -> NDArray[np.int64]:
        """Where each code stands among ``codes``; -1 for one that does not."""
        place = np.full(self.n_items + 1, -1, dtype=np.int64)  # the last entry is code -1's
        place[self.codes] = np.arange(len(self.codes))
        return np.asarray(place[items])


def kept_items(name: str, data: FitData, max_items: int | None, bytes_a_pair: int) -> Items:
    """(M,) rising codes of the items with events, at most the ``max_items`` with the most of them.

    Of items with as many events those with the lower codes are kept.

    Raises:
        FitError: ``max_items`` is None and a dense table would be too large; names the memory that
            fitting would take at ``bytes_a_pair`` of them.
    """
    events = np.bincount(data.histories.items, minlength=data.n_items)
    found = np.count_nonzero(events)
    if max_items is None and found > _MOST_ITEMS:
        raise FitError(
            f"{name!r} would hold {found} x {found} numbers while it is fitted "
            f"({bytes_a_pair * found**2 / 1e9:.0f} GB); wanted at most {_MOST_ITEMS} items with "
            "events: pass max_items=20000 to fit those with the most events and score the others "
            "0 (a larger max_items is taken at its word), or leave this recaller out"
        )
    ranked = np.argsort(-events, kind="stable")[:found]
    return np.sort(ranked[:max_items]).astype(np.int32)


@njit(nogil=True, cache=True)
def _sparse_rows(
    indptr: Any,
    history: Any,
    weights: Any,
    table_indptr: Any,
    followers: Any,
    values: Any,
    out: Any,
) -> None:
    """Add weight x T[h, :] to ``out`` (B, I) for every event h of each history, oldest first."""
    for row in range(len(indptr) - 1):
        for event in range(indptr[row], indptr[row + 1]):
            h = history[event]
            weight = weights[event]
            for entry in range(table_indptr[h], table_indptr[h + 1]):
                out[row, followers[entry]] += weight * values[entry]


@njit(nogil=True, cache=True)
def _sparse_pairs(
    indptr: Any,
    history: Any,
    weights: Any,
    table_indptr: Any,
    followers: Any,
    values: Any,
    items: Any,
    out: Any,
) -> None:
    """What ``_sparse_rows`` would leave at ``items`` (B, K), in ``out`` (B, K)."""
    sums = np.zeros(len(table_indptr) - 1, dtype=np.float32)
    wanted = np.zeros(len(table_indptr) - 1, dtype=np.bool_)
    for row in range(len(indptr) - 1):
        for item in items[row]:
            if item >= 0:
                wanted[item] = True
        for event in range(indptr[row], indptr[row + 1]):
            h = history[event]
            weight = weights[event]
            for entry in range(table_indptr[h], table_indptr[h + 1]):
                if wanted[followers[entry]]:
                    sums[followers[entry]] += weight * values[entry]
        for place in range(items.shape[1]):
            if items[row, place] >= 0:
                out[row, place] = sums[items[row, place]]
        for item in items[row]:
            if item >= 0:
                wanted[item] = False
                sums[item] = 0.0


@njit(nogil=True, cache=True)
def _dense_rows(indptr: Any, history: Any, weights: Any, codes: Any, table: Any, out: Any) -> None:
    """Add weight x T[h, :] to ``out`` (B, I) for every event h of each history, oldest first."""
    size = len(codes)
    sums = np.empty(size, dtype=np.float32)
    for row in range(len(indptr) - 1):
        sums[:] = 0.0
        for event in range(indptr[row], indptr[row + 1]):
            h = history[event]
            if h >= 0:
                weight = weights[event]
                for place in range(size):
                    sums[place] += weight * table[h, place]
        for place in range(size):
            out[row, codes[place]] = sums[place]


@njit(nogil=True, cache=True)
def _dense_pairs(
    indptr: Any, history: Any, weights: Any, places: Any, table: Any, out: Any
) -> None:
    """What ``_dense_rows`` would leave at ``places`` (B, K) of the table, in ``out`` (B, K)."""
    for row in range(len(indptr) - 1):
        for event in range(indptr[row], indptr[row + 1]):
            h = history[event]
            if h < 0:
                continue
            weight = weights[event]
            for place in range(places.shape[1]):
                if places[row, place] >= 0:
                    out[row, place] += weight * table[h, places[row, place]]
