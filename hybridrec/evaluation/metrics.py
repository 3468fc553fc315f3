"""How good ranked lists are, user by user: hit rate, NDCG, reciprocal rank, recall, precision.

Always over the full ranking that a stage gave, never over sampled negatives: sampling changes
which of two models wins (Krichene & Rendle, KDD 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hybridrec.checks import InputError, InputTypeError, frozen, whole_number

if TYPE_CHECKING:
    from hybridrec.ragged import Items, Ragged

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Metrics:
    """What each of B users got, in the first k places of their list.

    The definitions are those of trec_eval, cut at k, with every target worth the same.

    Attributes:
        hr: (B,) float64, 1 where any target is there, else 0.
        ndcg: (B,) float64, sum of 1 / log2(rank + 1) over the targets there, divided by the best
            that min(k, targets) places allow.
        mrr: (B,) float64, 1 / rank of the first target there, 0 where there is none.
        recall: (B,) float64, the share of the user's targets that is there.
        map: (B,) float64, average precision: the sum over the targets there of the share of
            targets among the places down to it, divided by the number of the user's targets. With
            one target a user it is the reciprocal rank.
    """

    hr: Values
    ndcg: Values
    mrr: Values
    recall: Values
    map: Values


@dataclass(frozen=True, eq=False)
class TargetRanks:
    """Where each target stands in its user's list; every metric is read off it.

    Attributes:
        indptr: (B + 1,) int64; the distinct targets of user b are ``indptr[b]:indptr[b + 1]``.
        ranks: (nnz,) int64, from 1; 0 where the target is not in the list.
    """

    indptr: NDArray[np.int64]
    ranks: NDArray[np.int64]

    @classmethod
    def of(cls, items: Items, targets: Ragged) -> Self:
        """Find ``targets`` in ``items``; see :func:`per_user` for the arguments and errors.

        O(B * K * log(targets)) time.
        """
        items = np.asarray(items)
        if items.ndim != 2 or len(items) != len(targets):
            raise InputError(
                f"items has shape {items.shape} for {len(targets)} rows of targets; wanted one "
                "ranked list a row, (B, K)"
            )
        if not np.issubdtype(items.dtype, np.integer):
            raise InputTypeError(f"items has dtype {items.dtype}; wanted integer codes")
        indptr, wanted = _distinct(targets)
        ranks = np.zeros(len(wanted), dtype=np.int64)
        ranked = np.ascontiguousarray(items, dtype=np.int64)
        # Views of one kind (read-only), so that Numba compiles the kernel once and not per caller.
        _find(frozen(ranked), frozen(indptr), frozen(wanted), ranks)
        return cls(frozen(indptr), frozen(ranks))

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def metrics(self, k: int) -> Metrics:
        """What the first ``k`` places are worth to each user."""
        k = whole_number("k", k, least=1)
        there = (self.ranks > 0) & (self.ranks <= k)
        rank = np.where(there, self.ranks, 1)
        sizes = np.diff(self.indptr)
        hits = self._sums(there)
        reciprocal = np.where(there, 1.0 / rank, 0.0)
        gain = self._sums(np.where(there, 1.0 / np.log2(rank + 1), 0.0))
        first = np.maximum.reduceat(reciprocal, self.indptr[:-1]) if len(self) else hits
        out = (
            (hits > 0).astype(np.float64),
            gain / _ideal(np.minimum(sizes, k)),
            first,
            hits / sizes,
            self._sums(self._targets_down_to() * reciprocal) / sizes,
        )
        return Metrics(*map(frozen, out))

    def recall_by_depth(self, depth: int) -> Values:
        """(depth,) float64, the mean over users of recall@1, recall@2, ... recall@depth."""
        share = np.repeat(1.0 / np.diff(self.indptr), np.diff(self.indptr))
        there = (self.ranks > 0) & (self.ranks <= depth)
        found = np.bincount(self.ranks[there] - 1, weights=share[there], minlength=depth)
        return frozen(np.cumsum(found) / max(1, len(self)))

    def oracle_ndcg(self, k: int, depth: int) -> Values:
        """(B,) float64, the NDCG@k of the first ``depth`` places if their targets stood on top.

        What the best order of these very candidates would be worth.
        """
        hits = self._sums((self.ranks > 0) & (self.ranks <= depth)).astype(np.int64)
        sizes = np.minimum(np.diff(self.indptr), k)
        return frozen(_ideal(np.minimum(hits, k)) / _ideal(sizes))

    def _sums(self, values: NDArray[Any]) -> Values:
        """(B,) the sum of ``values`` (nnz,) over each user's targets."""
        if not len(self):
            return np.zeros(0)
        sums: Values = np.add.reduceat(values, self.indptr[:-1], dtype=np.float64)
        return sums

    def _targets_down_to(self) -> NDArray[np.int64]:
        """(nnz,) how many targets of the user stand at this one's rank or above it."""
        rows = np.repeat(np.arange(len(self)), np.diff(self.indptr))
        last = np.where(self.ranks > 0, self.ranks, np.iinfo(np.int64).max)
        order = np.lexsort((last, rows))
        place = np.empty(len(order), dtype=np.int64)
        place[order] = 1 + np.arange(len(order)) - self.indptr[:-1][rows]
        return place


def per_user(items: Items, targets: Ragged, k: int) -> Metrics:
    """Score the first ``k`` places of each list against the items the user truly took.

    Args:
        items: (B, K) integer codes, best first, -1 where there is no item. K below ``k`` is a
            shorter list, not an error. An item that stands in a list twice counts once.
        targets: B rows of at least one code each; repeats in a row count once.
        k: places that count, at least 1.

    Raises:
        InputTypeError: ``items`` are not integers.
        InputError: shapes that do not fit, a user without a target, or a negative target.

    O(B * k * log(targets)) time.
    """
    k = whole_number("k", k, least=1)
    items = np.asarray(items)
    return TargetRanks.of(items[:, :k] if items.ndim == 2 else items, targets).metrics(k)


def _ideal(n: NDArray[np.int64]) -> Values:
    """(B,) the sum of 1 / log2(rank + 1) over the first ``n`` (B,) ranks."""
    gains = 1.0 / np.log2(np.arange(2, 2 + n.max(initial=0)))
    sums: Values = np.concatenate([[0.0], np.cumsum(gains)])[n]
    return sums


def _distinct(targets: Ragged) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(B + 1,) indptr and codes of the targets, each row sorted and free of repeats."""
    lengths = targets.lengths
    if (lengths == 0).any():
        row = int(np.flatnonzero(lengths == 0)[0])
        raise InputError(f"targets[{row}] is empty; wanted >= 1 item: leave that user out")
    if (targets.items < 0).any():
        place = int(np.flatnonzero(targets.items < 0)[0])
        raise InputError(f"targets.items[{place}] is {targets.items[place]}; wanted a code >= 0")
    rows = targets.row_of()
    order = np.lexsort((targets.items, rows))
    rows, wanted = rows[order], targets.items[order].astype(np.int64)
    new = np.ones(len(wanted), dtype=np.bool_)
    new[1:] = (rows[1:] != rows[:-1]) | (wanted[1:] != wanted[:-1])
    counts = np.bincount(rows[new], minlength=len(targets))
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), wanted[new]


@njit(nogil=True, cache=True)
def _find(items: Any, indptr: Any, targets: Any, ranks: Any) -> None:
    """Fill ``ranks`` (nnz,): the first rank of each of the sorted ``targets`` in its row."""
    B, K = items.shape
    for row in range(B):
        start, stop = indptr[row], indptr[row + 1]
        wanted = targets[start:stop]
        for rank in range(K):
            place = np.searchsorted(wanted, items[row, rank])
            if place == len(wanted) or wanted[place] != items[row, rank]:
                continue
            if ranks[start + place] == 0:
                ranks[start + place] = rank + 1
