"""What recallers that lead from item to item have in common: all but how they are fitted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeVar

from hybridrec.checks import whole_number
from hybridrec.recall.promises import (
    check_queries,
    fitted,
    recall_rows,
    score_pairs,
)
from hybridrec.state import config_from_json, config_to_json, read_state, write_state

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hybridrec.candidates import Candidates, Queries
    from hybridrec.protocols import FitData
    from hybridrec.ragged import Items, Scores
    from hybridrec.recall.item_tables import ItemTable


class ItemToItemConfig(Protocol):
    """The settings that every one of them has."""

    @property
    def half_life(self) -> float | str | None:
        """Events after which a history item counts half; "auto" leaves it to the engine."""

    @property
    def name(self) -> str:
        """The column that the scores fill."""


C = TypeVar("C", bound=ItemToItemConfig)


class ItemToItem(ABC, Generic[C]):
    """Scores item b by the sum of T[h, b] over the history's events h, each with its recency.

    A kind says what its settings are (``_config``), how its table lies in memory (``_table``),
    which half-lives are worth trying and which one it starts at, and fits T.
    """

    _config: ClassVar[type]
    _table: ClassVar[type[ItemTable]]
    _half_lives: ClassVar[tuple[float | None, ...]]
    _first_half_life: ClassVar[float | None]

    half_life: float | None

    def __init__(self, config: C) -> None:
        self.config = config
        chosen = config.half_life
        self.half_life = self._first_half_life if isinstance(chosen, str) else chosen
        self._fitted: ItemTable | None = None

    @abstractmethod
    def fit(self, data: FitData) -> Self:
        """Learn T (``self._fitted``) from the interactions of ``data``."""

    @property
    def name(self) -> str:
        """The column that its scores fill."""
        return self.config.name

    @property
    def half_lives(self) -> tuple[float | None, ...]:
        """Values worth trying on validation events; () where the caller fixed one."""
        return self._half_lives if self.config.half_life == "auto" else ()

    def refit(self, data: FitData) -> Self:
        """The same as :meth:`fit`; the half-life in use is kept."""
        return self.fit(data)

    def recall(self, queries: Queries, k: int) -> Candidates:
        """The best ``k`` items of the catalogue that a query does not exclude.

        Raises:
            InputError: queries about another catalogue.
        """
        self._check(queries)
        return recall_rows(self.name, self._rows, queries, k)

    def score(self, queries: Queries, items: Items) -> Scores:
        """(B, K) float32 for (B, K) codes; 0 where nothing in the history leads there."""
        self._check(queries)
        return score_pairs(self._pairs, queries, items)

    def add_items(self, texts: Sequence[str] | None, n: int) -> None:
        """``n`` items that nothing leads to yet: score 0."""
        table = fitted(self.name, self._fitted)
        self._fitted = table.widened(whole_number("n", n))

    def save_files(self, folder: Path) -> None:
        """Write the settings, the half-life in use and the table."""
        table = fitted(self.name, self._fitted)
        settings = {"config": config_to_json(self.config), "half_life": self.half_life}
        write_state(folder, settings, table.arrays())

    @classmethod
    def load_files(cls, folder: Path) -> Self:
        """Read what :meth:`save_files` wrote.

        Raises:
            StorageError: a file is missing, or what is there does not fit together.
        """
        settings, arrays = read_state(folder)
        config: Any = config_from_json(cls._config, settings["config"])
        model = cls(**config_to_json(config))
        model.half_life = settings["half_life"]
        model._fitted = cls._table.from_arrays(arrays)
        return model

    def _check(self, queries: Queries) -> None:
        check_queries(self.name, fitted(self.name, self._fitted).n_items, queries)

    def _rows(self, queries: Queries) -> Scores:
        table = fitted(self.name, self._fitted)
        return table.rows(*queries.remembered(self.half_life))

    def _pairs(self, queries: Queries, items: Items) -> Scores:
        table = fitted(self.name, self._fitted)
        return table.pairs(*queries.remembered(self.half_life), items)
