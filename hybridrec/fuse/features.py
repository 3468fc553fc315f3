"""What a fusion reads of a list: every signal relative to its list, so that a refit does no harm.

Shapes: B lists, K candidates, S signals. ``Candidates`` keep padding on the right, so a list is
its first n columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from hybridrec.checks import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hybridrec.candidates import Candidates
    from hybridrec.ragged import Items, Mask, Scores

_FLAT = 1e-9
"""Deviation, as a share of the largest value, below which a signal is the same all along a list."""


def stacked(candidates: Candidates, names: Sequence[str]) -> Scores:
    """(S, B, K) float32, the signals ``names``.

    Raises:
        InputError: one of them is missing.
    """
    missing = [name for name in names if name not in candidates.signals]
    if missing:
        raise InputError(
            f"candidates carry no signal {missing[0]!r}; the fusion was fitted on {list(names)}: "
            "use the one fitted without it"
        )
    columns: Scores = np.empty((len(names), *candidates.items.shape), dtype=np.float32)
    for place, name in enumerate(names):
        columns[place] = candidates.signals[name]
    return columns


def lengths(candidates: Candidates) -> NDArray[np.int64]:
    """(B,) real candidates of each list."""
    return np.asarray(candidates.valid.sum(axis=1), dtype=np.int64)


def target_places(candidates: Candidates, targets: Items) -> NDArray[np.int64]:
    """(B,) where each list holds its target.

    Raises:
        InputError: a list does not hold its target, or another number of targets than of lists.
    """
    targets = np.asarray(targets)
    if targets.shape != (len(candidates),):
        raise InputError(f"targets has shape {targets.shape}; wanted ({len(candidates)},)")
    hit = candidates.valid & (candidates.items == targets[:, None])
    if not hit.any(axis=1).all():
        raise InputError(
            f"list {int(np.flatnonzero(~hit.any(axis=1))[0])} does not hold its target; leave out "
            "the lists whose positive recall missed"
        )
    return np.asarray(hit.argmax(axis=1), dtype=np.int64)


def standardised(columns: Scores, sizes: NDArray[np.int64], *, roots: bool = True) -> Scores:
    """(B, K, S) float32 of mean 0 and deviation 1 over each list, 0 on padding.

    With ``roots`` (B, K, 2 S): behind the signals their signed square roots, standardised too
    (heavy-tailed counts and sums tell more on the root's scale). A signal that is the same all
    along a list tells nothing apart: it stays 0.
    """
    signals, rows, width = columns.shape
    out: Scores = np.zeros((rows, width, signals * (2 if roots else 1)), dtype=np.float32)
    _standardise(columns, sizes, roots, out)
    return out


def ranks(columns: Scores, sizes: NDArray[np.int64]) -> Scores:
    """(B, K, S) float32, how many candidates of its list a candidate is below; 0 on padding.

    Equal ones have equal ranks, so that the order in which candidates came does not tell.
    """
    signals, rows, width = columns.shape
    out: Scores = np.zeros((rows, width, signals), dtype=np.float32)
    _rank(columns, sizes, out)
    return out


def flat_signals(columns: Scores, sizes: NDArray[np.int64]) -> Mask:
    """(S,) true for a signal that is the same all along every list: it is about the query."""
    valid = np.arange(columns.shape[2]) < sizes[:, None]
    return np.array(
        [(np.where(valid, column, column[:, :1]) == column[:, :1]).all() for column in columns],
        dtype=np.bool_,
    )


@njit(nogil=True, cache=True)
def _standardise(columns: Any, sizes: Any, roots: Any, out: Any) -> None:
    n_signals, rows, width = columns.shape
    values = np.empty(width, dtype=np.float64)
    for row in range(rows):
        size = sizes[row]
        for feature in range(out.shape[2]):
            signal = feature % n_signals
            total, largest = 0.0, 1e-30
            for place in range(size):
                value = float(columns[signal, row, place])
                if feature >= n_signals:
                    value = np.sqrt(value) if value >= 0 else -np.sqrt(-value)
                values[place] = value
                total += value
                largest = max(largest, abs(value))
            mean = total / max(size, 1)
            squares = 0.0
            for place in range(size):
                squares += (values[place] - mean) ** 2
            deviation = np.sqrt(squares / max(size, 1))
            if deviation > _FLAT * largest:
                for place in range(size):
                    out[row, place, feature] = (values[place] - mean) / deviation


@njit(nogil=True, cache=True)
def _rank(columns: Any, sizes: Any, out: Any) -> None:
    n_signals, rows, _ = columns.shape
    for row in range(rows):
        size = sizes[row]
        for signal in range(n_signals):
            values = columns[signal, row, :size]
            order = np.argsort(-values)
            rank = 0
            for place in range(size):
                if place and values[order[place]] != values[order[place - 1]]:
                    rank = place
                out[row, order[place], signal] = rank
