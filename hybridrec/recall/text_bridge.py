"""What a recaller would say of items it has never met, by what their texts have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hybridrec.recall.promises import recall_rows, score_rows

if TYPE_CHECKING:
    from hybridrec.candidates import Candidates, Queries
    from hybridrec.protocols import Recaller
    from hybridrec.ragged import Items, Scores

_SMOOTHING = 20.0
"""Events of an item at which its scores count half in the regression."""
_INTERCEPT = 1e-3
"""Ridge on the intercept, as a share of that on the rest: next to none."""

_LEAST = 0.1
"""Of 1 - h: an item that its own score decides is not predicted by dividing by next to nothing."""


class TextBridge:
    """A recaller's scores, predicted for every item from the items' texts.

    For each query a ridge regression explains the scores s (I,) that the recaller gives the items
    with events by their text embeddings x (I, E), an item of n events weighing n / (n + 20); what
    it predicts is the score of an item that nobody has met. An item with events is predicted from
    the others alone (leave-one-out, by the diagonal h of the hat matrix: (p - h s) / (1 - h)), so
    that what is learned on items with events holds for those without.

    Args:
        source: fitted; asked at its half-life.
        vectors: (I, E) float32 of length 1; an item whose vector is 0 scores 0.
        events: (I,) how often each item has been met.
        regularization: of the ridge, in items.

    A query takes O(I E) time and O(I) memory; making the regression O(I E² + E³) once.
    """

    def __init__(
        self,
        source: Recaller,
        vectors: Scores,
        events: NDArray[np.int64],
        *,
        regularization: float = 3.0,
    ) -> None:
        self.name = f"{source.name}, by text"
        self.half_life = source.half_life
        self._source = source
        self._vectors = _with_intercept(vectors)
        self._met = np.flatnonzero(events > 0).astype(np.int32)
        met = self._vectors[self._met].astype(np.float64)
        weighted = met * (events[self._met] / (events[self._met] + _SMOOTHING))[:, None]
        ridge = np.full(met.shape[1], regularization)
        ridge[-1] *= _INTERCEPT
        solved = np.linalg.solve(met.T @ weighted + np.diag(ridge), weighted.T)
        self._weights = np.ascontiguousarray(solved.T, dtype=np.float32)
        self._hat = np.einsum("ie,ei->i", met, solved).astype(np.float32)

    @property
    def half_lives(self) -> tuple[float | None, ...]:
        """Nothing to try: the recaller's own has been chosen."""
        return ()

    def recall(self, queries: Queries, k: int) -> Candidates:
        """The best ``k`` items by the predicted score that a query does not exclude."""
        return recall_rows(self.name, self._rows, queries, k)

    def score(self, queries: Queries, items: Items) -> Scores:
        """(B, K) float32 for (B, K) codes; -inf where the code is -1."""
        return score_rows(self._rows, queries, items)

    def _rows(self, queries: Queries) -> Scores:
        """(B, I) predicted scores."""
        asked = np.broadcast_to(self._met, (len(queries), len(self._met)))
        scores = self._source.score(queries, asked)
        rows = np.asarray((scores @ self._weights) @ self._vectors.T, dtype=np.float32)
        left = np.maximum(1.0 - self._hat, _LEAST)
        rows[:, self._met] = (rows[:, self._met] - self._hat * scores) / left
        return rows


def _with_intercept(vectors: Scores) -> Scores:
    """(I, E + 1): an item without text has no intercept either, and scores 0."""
    there = (vectors != 0).any(axis=1)
    return np.concatenate([vectors, there[:, None]], axis=1).astype(np.float32)
