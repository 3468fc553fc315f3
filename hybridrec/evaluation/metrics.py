"""How good ranked lists are, user by user: hit rate, NDCG, reciprocal rank, recall.

Always over the full ranking that a stage gave, never over sampled negatives: sampling changes
which of two models wins (Krichene & Rendle, KDD 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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

    Attributes:
        hr: (B,) float64, 1 where any target is there, else 0.
        ndcg: (B,) float64, sum of 1 / log2(rank + 1) over the targets there, divided by the best
            that min(k, targets) places allow.
        mrr: (B,) float64, 1 / rank of the first target there, 0 where there is none.
        recall: (B,) float64, the share of the user's targets that is there.
    """

    hr: Values
    ndcg: Values
    mrr: Values
    recall: Values


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
    if items.ndim != 2 or len(items) != len(targets):
        raise InputError(
            f"items has shape {items.shape} for {len(targets)} rows of targets; wanted one ranked "
            "list a row, (B, K)"
        )
    if not np.issubdtype(items.dtype, np.integer):
        raise InputTypeError(f"items has dtype {items.dtype}; wanted integer codes")
    indptr, wanted = _distinct(targets)
    gains = 1.0 / np.log2(np.arange(2, k + 2))
    out = np.zeros((4, len(items)))
    ranked = np.ascontiguousarray(items[:, :k], dtype=np.int64)
    # Views of one kind (read-only), so that Numba compiles the kernel once and not per caller.
    _score(frozen(ranked), frozen(indptr), frozen(wanted), frozen(gains), out)
    return Metrics(*(frozen(row) for row in out))


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
def _score(items: Any, indptr: Any, targets: Any, gains: Any, out: Any) -> None:
    """Fill ``out`` (4, B): hr, ndcg, mrr, recall."""
    B, K = items.shape
    for row in range(B):
        wanted = targets[indptr[row] : indptr[row + 1]]
        found = np.zeros(len(wanted), dtype=np.bool_)
        hits = 0
        gain = 0.0
        for rank in range(K):
            place = np.searchsorted(wanted, items[row, rank])
            if place == len(wanted) or wanted[place] != items[row, rank] or found[place]:
                continue
            found[place] = True
            if hits == 0:
                out[2, row] = 1.0 / (rank + 1)
            hits += 1
            gain += gains[rank]
        ideal = 0.0
        for rank in range(min(len(wanted), len(gains))):
            ideal += gains[rank]
        out[0, row] = 1.0 if hits else 0.0
        out[1, row] = gain / ideal
        out[3, row] = hits / len(wanted)
