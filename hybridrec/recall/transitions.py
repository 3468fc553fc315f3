"""What follows what: item-to-item transitions counted from the order of the histories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numba import njit

from hybridrec.checks import FitError, InputError, real_number, whole_number
from hybridrec.recall.item_tables import SparseTable
from hybridrec.recall.item_to_item import ItemToItem
from hybridrec.recall.promises import check_half_life, check_name

if TYPE_CHECKING:
    from hybridrec.candidates import Queries
    from hybridrec.protocols import FitData
    from hybridrec.ragged import Ragged

NEEDS_ORDER = (
    "transitions are about what follows what: give the interactions a time column "
    "(time=...), or leave this recaller out"
)


@dataclass(frozen=True, kw_only=True)
class TransitionsConfig:
    """Settings of :class:`ItemTransitions`."""

    window: int = 10
    smoothing: float = 20.0
    half_life: float | Literal["auto"] | None = "auto"
    name: str = "item transitions"

    def __post_init__(self) -> None:
        whole_number("window", self.window, least=1)
        real_number("smoothing", self.smoothing, least=0.0)
        check_half_life(self.half_life)
        check_name(self.name)


class ItemTransitions(ItemToItem[TransitionsConfig]):
    """Scores item b by how often it came soon after the items of the history.

    T[a, b] is the sum of 1 / gap over every time b follows a within ``window`` events of one user
    (adjacent events have gap 1; a after a does not count), divided by
    sqrt(events of b + ``smoothing``) so that popular items do not follow everything. The score of
    b is the sum of T[h, b] over the history's events h, each with its recency weight.

    Args:
        window: how many events later an item may stand to count as following.
        smoothing: added to an item's events before the square root; rare items need it.
        half_life: events after which a history item counts half; "auto" starts at 3 and lets
            the engine choose on validation events; None weighs all alike.
        name: the column that the scores fill.
    """

    _config = TransitionsConfig
    _table = SparseTable
    _half_lives = (1.0, 2.0, 3.0, 5.0, 8.0, 15.0)
    _first_half_life = 3.0

    def __init__(
        self,
        *,
        window: int = 10,
        smoothing: float = 20.0,
        half_life: float | Literal["auto"] | None = "auto",
        name: str = "item transitions",
    ) -> None:
        super().__init__(
            TransitionsConfig(window=window, smoothing=smoothing, half_life=half_life, name=name)
        )

    def fit(self, data: FitData) -> Self:
        """Count the transitions of ``data``; event weights are not read.

        O(nnz * window) time; memory is the table's and a few arrays of nnz and I.

        Raises:
            FitError: the histories of ``data`` carry no order.
        """
        if not data.ordered:
            raise FitError(f"{self.name!r} was given interactions without an order; {NEEDS_ORDER}")
        self._fitted = _count(data.histories, data.n_items, self.config)
        return self

    def _check(self, queries: Queries) -> None:
        super()._check(queries)
        if not queries.ordered:
            raise InputError(f"{self.name!r} was asked with unordered histories; {NEEDS_ORDER}")


def _count(histories: Ragged, n_items: int, config: TransitionsConfig) -> SparseTable:
    """The transition table of ``histories``, its rows in the order the followers were met."""
    place = np.argsort(histories.items, kind="stable")
    counts = np.bincount(histories.items, minlength=n_items)
    first = np.concatenate([[0], np.cumsum(counts)])
    ends = np.repeat(histories.indptr[1:], histories.lengths)
    events = (histories.items, ends, place, first, config.window)
    indptr = np.concatenate([[0], np.cumsum(_row_sizes(*events))])
    followers = np.empty(indptr[-1], dtype=np.int32)
    values = np.empty(indptr[-1], dtype=np.float32)
    # Smoothing may be 0 and an item may have no events: what it scales is then empty anyway.
    scale = 1.0 / np.sqrt(np.maximum(counts, 1) + config.smoothing)
    _fill_rows(*events, indptr, scale, followers, values)
    return SparseTable(indptr, followers, values)


@njit(nogil=True, cache=True)
def _row_sizes(items: Any, ends: Any, place: Any, first: Any, window: int) -> Any:
    """(I,) different followers of every item.

    ``place[first[a]:first[a + 1]]`` are the positions of item a's events; ``ends`` (nnz,) is
    where each event's history stops.
    """
    n_items = len(first) - 1
    sizes = np.zeros(n_items, dtype=np.int64)
    met_by = np.full(n_items, -1, dtype=np.int64)
    for a in range(n_items):
        for at in place[first[a] : first[a + 1]]:
            for later in range(at + 1, min(at + window + 1, ends[at])):
                b = items[later]
                if b != a and met_by[b] != a:
                    met_by[b] = a
                    sizes[a] += 1
    return sizes


@njit(nogil=True, cache=True)
def _fill_rows(
    items: Any,
    ends: Any,
    place: Any,
    first: Any,
    window: int,
    indptr: Any,
    scale: Any,
    followers: Any,
    values: Any,
) -> None:
    """Write each item's followers and what they come to, one item at a time.

    A dense row of sums serves every item in turn: only the followers met are cleared again.
    """
    sums = np.zeros(len(first) - 1, dtype=np.float64)
    for a in range(len(first) - 1):
        end = indptr[a]
        for at in place[first[a] : first[a + 1]]:
            for later in range(at + 1, min(at + window + 1, ends[at])):
                b = items[later]
                if b == a:
                    continue
                if sums[b] == 0.0:
                    followers[end] = b
                    end += 1
                sums[b] += 1.0 / (later - at)
        for place_of_b in range(indptr[a], end):
            b = followers[place_of_b]
            values[place_of_b] = sums[b] * scale[b]
            sums[b] = 0.0
