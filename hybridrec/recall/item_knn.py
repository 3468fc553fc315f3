"""Item-item nearest neighbours: who took this also took that."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numba import njit
from scipy.sparse import csr_array

from hybridrec.checks import real_number, whole_number
from hybridrec.recall.item_tables import SparseTable
from hybridrec.recall.item_to_item import ItemToItem
from hybridrec.recall.promises import check_half_life, check_name

if TYPE_CHECKING:
    from hybridrec.protocols import FitData
    from hybridrec.ragged import Ragged

_ITEMS = 4096
"""Items whose neighbours are sought at once: 10 MB at 300 neighbours."""


@dataclass(frozen=True, kw_only=True)
class KNNConfig:
    """Settings of :class:`ItemKNN`."""

    neighbours: int = 200
    shrinkage: float = 10.0
    half_life: float | Literal["auto"] | None = "auto"
    name: str = "item knn"

    def __post_init__(self) -> None:
        whole_number("neighbours", self.neighbours, least=1)
        real_number("shrinkage", self.shrinkage, least=0.0)
        check_half_life(self.half_life)
        check_name(self.name)


class ItemKNN(ItemToItem[KNNConfig]):
    """Scores item b by its cosine with the items of the history (Sarwar et al., WWW 2001).

    S[a, b] = x_a · x_b / (|x_a| |x_b| + shrinkage), where x_a (U,) holds what each user's events of
    item a weigh together; of every row only the ``neighbours`` largest are kept (of equal ones,
    those with the lower code). The score of b is the sum of S[h, b] over the history's events h,
    each with its weight and its recency.

    Args:
        neighbours: entries kept of every item.
        shrinkage: added to the product of norms, in events: without it two items that one user
            took and nobody else are as alike as can be.
        half_life: events after which a history item counts half; "auto" starts at 3 and lets
            the engine choose on validation events; None weighs all alike.
        name: the column that the scores fill.
    """

    _config = KNNConfig
    _table = SparseTable
    _half_lives = (None, 40.0, 20.0, 10.0, 5.0, 3.0, 2.0, 1.0)
    _first_half_life = 3.0

    def __init__(
        self,
        neighbours: int = 200,
        *,
        shrinkage: float = 10.0,
        half_life: float | Literal["auto"] | None = "auto",
        name: str = "item knn",
    ) -> None:
        super().__init__(
            KNNConfig(neighbours=neighbours, shrinkage=shrinkage, half_life=half_life, name=name)
        )

    def fit(self, data: FitData) -> Self:
        """Find every item's neighbours; the order of events is not read.

        O(Σ_u n_u²) time; memory is the table's and a few arrays of nnz and I.
        """
        self._fitted = _neighbours(data.histories, data.n_items, self.config)
        return self


def _neighbours(histories: Ragged, n_items: int, config: KNNConfig) -> SparseTable:
    """The table of neighbours, the items of each row rising."""
    weights = np.ones(len(histories.items)) if histories.weights is None else histories.weights
    taken = csr_array(
        (np.asarray(weights, dtype=np.float64), histories.items.copy(), histories.indptr.copy()),
        shape=(len(histories), n_items),
    )
    taken.sum_duplicates()  # in place
    by_item = taken.T.tocsr()
    norms = np.sqrt(np.asarray(by_item.power(2).sum(axis=1)).ravel())
    most = min(config.neighbours, max(n_items - 1, 1))
    sizes = np.zeros(n_items, dtype=np.int64)
    rows, values = [], []
    for start in range(0, n_items, _ITEMS):
        stop = min(start + _ITEMS, n_items)
        found = np.empty((stop - start, most), dtype=np.int32)
        alike = np.empty((stop - start, most), dtype=np.float32)
        _nearest(
            (by_item.indptr, by_item.indices, by_item.data),
            (taken.indptr, taken.indices, taken.data),
            norms,
            config.shrinkage,
            start,
            sizes[start:stop],
            found,
            alike,
        )
        filled = np.arange(most) < sizes[start:stop, None]
        rows.append(found[filled])
        values.append(alike[filled])
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    return SparseTable(indptr, np.concatenate(rows), np.concatenate(values))


@njit(nogil=True, cache=True)
def _nearest(
    by_item: Any,
    by_user: Any,
    norms: Any,
    shrinkage: float,
    start: int,
    sizes: Any,
    found: Any,
    alike: Any,
) -> None:
    """Fill the neighbours of items ``start``, ``start + 1``, ... and how many there are.

    ``by_item`` and ``by_user`` are X by columns and by rows: indptr, codes, values. A dense row of
    sums serves every item in turn: only the items met are cleared again.
    """
    item_indptr, users, item_values = by_item
    user_indptr, items, user_values = by_user
    sums = np.zeros(len(norms), dtype=np.float64)
    met = np.empty(len(norms), dtype=np.int64)
    for row in range(len(sizes)):
        a = start + row
        count = 0
        for event in range(item_indptr[a], item_indptr[a + 1]):
            user = users[event]
            for other in range(user_indptr[user], user_indptr[user + 1]):
                b = items[other]
                if sums[b] == 0.0:
                    met[count] = b
                    count += 1
                sums[b] += item_values[event] * user_values[other]
        best = [(0.0, 0) for _ in range(0)]  # a heap of (similarity, -code), the worst first
        for place in range(count):
            b = met[place]
            if b != a:
                entry = (sums[b] / (norms[a] * norms[b] + shrinkage), -b)
                if len(best) < found.shape[1]:
                    heapq.heappush(best, entry)
                elif entry > best[0]:
                    heapq.heapreplace(best, entry)
            sums[b] = 0.0
        sizes[row] = len(best)
        codes = np.array([-code for _, code in best])
        for place, entry in enumerate(np.argsort(codes)):
            found[row, place] = codes[entry]
            alike[row, place] = best[entry][0]
