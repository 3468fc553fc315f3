"""What follows what: item-to-item transitions counted from the order of the histories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hybridrec.checks import FitError, InputError, real_number, whole_number
from hybridrec.recall.promises import (
    check_half_life,
    check_name,
    check_queries,
    fitted,
    recall_rows,
    score_rows,
)
from hybridrec.state import config_from_json, config_to_json, read_state, write_state

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hybridrec.candidates import Candidates, Queries
    from hybridrec.protocols import FitData
    from hybridrec.ragged import Items, Ragged, Scores

_HALF_LIVES = (1.0, 2.0, 3.0, 5.0, 8.0, 15.0)
_ORDER = (
    "transitions are about what follows what: give the interactions a time column "
    "(time=...), or leave ItemTransitions out of the recallers"
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


class _Table(NamedTuple):
    """T as CSR: row a holds the items that follow a. ``indptr`` (I + 1,), the others (nnz,)."""

    indptr: NDArray[np.int64]
    items: NDArray[np.int32]
    values: Scores

    @property
    def n_items(self) -> int:
        return len(self.indptr) - 1


class ItemTransitions:
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

    half_life: float | None

    def __init__(
        self,
        *,
        window: int = 10,
        smoothing: float = 20.0,
        half_life: float | Literal["auto"] | None = "auto",
        name: str = "item transitions",
    ) -> None:
        self.config = TransitionsConfig(
            window=window, smoothing=smoothing, half_life=half_life, name=name
        )
        self.half_life = 3.0 if half_life == "auto" else half_life
        self._table: _Table | None = None

    @property
    def name(self) -> str:
        """The column that its scores fill."""
        return self.config.name

    @property
    def half_lives(self) -> tuple[float | None, ...]:
        """Values worth trying on validation events; () where the caller fixed one."""
        return _HALF_LIVES if self.config.half_life == "auto" else ()

    def fit(self, data: FitData) -> Self:
        """Count the transitions of ``data``; event weights are not read.

        O(nnz * window) time; memory is the table's and a few arrays of nnz and I.

        Raises:
            FitError: the histories of ``data`` carry no order.
        """
        if not data.ordered:
            raise FitError(f"{self.name!r} was given interactions without an order; {_ORDER}")
        self._table = _count(data.histories, data.n_items, self.config)
        return self

    def refit(self, data: FitData) -> Self:
        """The same as :meth:`fit`; the half-life in use is kept."""
        return self.fit(data)

    def recall(self, queries: Queries, k: int) -> Candidates:
        """The best ``k`` items of the catalogue that a query does not exclude.

        Raises:
            InputError: unordered histories, or queries about another catalogue.
        """
        self._check(queries)
        return recall_rows(self.name, self._rows, queries, k)

    def score(self, queries: Queries, items: Items) -> Scores:
        """(B, K) float32 for (B, K) codes; 0 where nothing in the history leads there."""
        self._check(queries)
        return score_rows(self._rows, queries, items)

    def add_items(self, texts: Sequence[str] | None, n: int) -> None:
        """``n`` items that follow nothing yet: score 0."""
        indptr, items, values = fitted(self.name, self._table)
        room = np.full(whole_number("n", n), indptr[-1])
        self._table = _Table(np.concatenate([indptr, room]), items, values)

    def save_files(self, folder: Path) -> None:
        """Write the settings, the half-life in use and the table."""
        table = fitted(self.name, self._table)
        settings = {"config": config_to_json(self.config), "half_life": self.half_life}
        write_state(folder, settings, table._asdict())

    @classmethod
    def load_files(cls, folder: Path) -> Self:
        """Read what :meth:`save_files` wrote."""
        settings, arrays = read_state(folder)
        config = config_from_json(TransitionsConfig, settings["config"])
        model = cls(**config_to_json(config))
        model.half_life = settings["half_life"]
        model._table = _Table(arrays["indptr"], arrays["items"], arrays["values"])
        return model

    def _check(self, queries: Queries) -> None:
        check_queries(self.name, fitted(self.name, self._table).n_items, queries)
        if not queries.ordered:
            raise InputError(f"{self.name!r} was asked with unordered histories; {_ORDER}")

    def _rows(self, queries: Queries) -> Scores:
        table = fitted(self.name, self._table)
        out = np.zeros((len(queries), table.n_items), dtype=np.float32)
        history = queries.histories
        weights = queries.recency_weights(self.half_life)
        _add_rows(history.indptr, history.items, weights, *table, out)
        return out


def _count(histories: Ragged, n_items: int, config: TransitionsConfig) -> _Table:
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
    return _Table(indptr, followers, values)


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


@njit(nogil=True, cache=True)
def _add_rows(
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
