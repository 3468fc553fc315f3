"""The items most people took: the floor under every other recaller, and a signal for fusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from hybridrec.checks import whole_number
from hybridrec.recall.promises import check_name, check_pairs, check_queries, fitted, recall_rows
from hybridrec.state import config_from_json, config_to_json, read_state, write_state

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hybridrec.candidates import Candidates, Queries
    from hybridrec.protocols import FitData
    from hybridrec.ragged import Items, Scores


@dataclass(frozen=True, kw_only=True)
class PopularityConfig:
    """Settings of :class:`Popularity`."""

    name: str = "popularity"

    def __post_init__(self) -> None:
        check_name(self.name)


class Popularity:
    """Scores an item by log(1 + its events), the same for everybody.

    The logarithm keeps the order and makes the column one that a linear fusion can use.
    """

    half_life: float | None = None

    def __init__(self, *, name: str = "popularity") -> None:
        self.config = PopularityConfig(name=name)
        self._scores: Scores | None = None

    @property
    def name(self) -> str:
        """The column that its scores fill."""
        return self.config.name

    @property
    def half_lives(self) -> tuple[float | None, ...]:
        """Nothing to try: the history is not read."""
        return ()

    def fit(self, data: FitData) -> Self:
        """Count every item's events."""
        counts = np.bincount(data.histories.items, minlength=data.n_items)
        self._scores = np.log1p(counts).astype(np.float32)
        return self

    def refit(self, data: FitData) -> Self:
        """The same as :meth:`fit`."""
        return self.fit(data)

    def recall(self, queries: Queries, k: int) -> Candidates:
        """The most popular ``k`` items that a query does not exclude."""
        scores = self._checked(queries)
        return recall_rows(self.name, lambda batch: np.tile(scores, (len(batch), 1)), queries, k)

    def score(self, queries: Queries, items: Items) -> Scores:
        """(B, K) float32, log(1 + events); -inf where the code is -1."""
        scores = self._checked(queries)
        items = check_pairs(queries, items)
        return np.where(items < 0, np.float32(-np.inf), scores[items])

    def shares(self, items: Items) -> Scores:
        """float32 of the shape of ``items``, the share of all events that is an item's; 0 at -1."""
        events = np.expm1(fitted(self.name, self._scores).astype(np.float64))
        found = np.where(items < 0, 0.0, events[items]) / max(events.sum(), 1.0)
        shares: Scores = found.astype(np.float32)
        return shares

    def add_items(self, texts: Sequence[str] | None, n: int) -> None:
        """``n`` items that nobody has taken yet: score 0."""
        scores = fitted(self.name, self._scores)
        self._scores = np.append(scores, np.zeros(whole_number("n", n), np.float32))

    def save_files(self, folder: Path) -> None:
        """Write the settings and the scores."""
        scores = fitted(self.name, self._scores)
        write_state(folder, config_to_json(self.config), {"scores": scores})

    @classmethod
    def load_files(cls, folder: Path) -> Self:
        """Read what :meth:`save_files` wrote."""
        settings, arrays = read_state(folder)
        model = cls(**config_to_json(config_from_json(PopularityConfig, settings)))
        model._scores = arrays["scores"]
        return model

    def _checked(self, queries: Queries) -> Scores:
        scores = fitted(self.name, self._scores)
        check_queries(self.name, len(scores), queries)
        return scores
