"""Fused scores as probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np

from hybridrec.checks import FitError, NotFittedError
from hybridrec.state import read_state, write_state

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from hybridrec.candidates import Candidates
    from hybridrec.ragged import Items, Scores

PROBABILITY = "probability"
"""The column that a calibration fills on the candidates it was asked about."""


class Calibration:
    """How often the item with such a fused score was the one chosen next.

    Isotonic regression (Zadrozny & Elkan, KDD 2002): of all maps that never fall, the one nearest
    in squares; between its steps it is drawn straight. So it changes no order, but what lies on one
    step becomes equal. It means something on average over lists, not for each.
    """

    def __init__(self) -> None:
        self._knots: NDArray[np.float64] | None = None

    def fit(self, candidates: Candidates, targets: Items) -> Self:
        """Learn from fused lists that nothing before learned from.

        Args:
            candidates: n lists with fused scores, with or without their target.
            targets: (n,) the item that was chosen.

        Raises:
            FitError: there is no candidate.

        O(c log c) time for c candidates.
        """
        from scipy.optimize import isotonic_regression

        valid = candidates.valid
        scores = candidates.scores[valid].astype(np.float64)
        if not len(scores):
            raise FitError("no candidate to calibrate by: recall brought none")
        hits = (candidates.items == np.asarray(targets)[:, None])[valid].astype(np.float64)
        # Equal scores are one point: they cannot have two probabilities.
        values, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
        share = np.bincount(place, weights=hits) / counts
        steps = isotonic_regression(share, weights=counts).blocks
        size = np.add.reduceat(counts, steps[:-1])
        middle = np.add.reduceat(values * counts, steps[:-1]) / size
        height = np.add.reduceat(share * counts, steps[:-1]) / size
        self._knots = np.stack([middle, height])
        return self

    def probabilities(self, scores: Scores) -> Scores:
        """float32 of the shape of ``scores``, from 0 to 1; 0 where a score is -inf.

        Raises:
            NotFittedError: before ``fit``.
        """
        if self._knots is None:
            raise NotFittedError("this calibration is not fitted: call fit first")
        found = np.interp(scores, *self._knots)
        return np.where(np.isneginf(scores), 0.0, found).astype(np.float32)

    def save_files(self, folder: Path) -> None:
        """Write the steps.

        Raises:
            NotFittedError: before ``fit``.
        """
        if self._knots is None:
            raise NotFittedError("this calibration is not fitted: there is nothing to save")
        write_state(folder, {}, {"knots": self._knots})

    @classmethod
    def load_files(cls, folder: Path) -> Self:
        """Read what :meth:`save_files` wrote."""
        calibration = cls()
        calibration._knots = read_state(folder)[1]["knots"]
        return calibration
