"""What signals have in common: all but what they learn and how they score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np

from hybridrec.checks import FitError
from hybridrec.recall.promises import check_pairs, check_queries, fitted
from hybridrec.state import config_from_json, config_to_json, read_state, write_state

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from hybridrec.candidates import Queries
    from hybridrec.protocols import FitData
    from hybridrec.ragged import Items, Ragged, Scores

    State = dict[str, NDArray[Any]]


class Named(Protocol):
    """The setting that every signal has."""

    @property
    def name(self) -> str:
        """The column that the scores fill."""


C = TypeVar("C", bound=Named)


class StoredSignal(ABC, Generic[C]):
    """A signal whose fitted state is a few arrays.

    A kind says what its settings are (``_config``), what it learns, how it scores and what an item
    that nobody has met yet looks like.
    """

    _config: ClassVar[type]

    def __init__(self, config: C) -> None:
        self.config = config
        self._state: State | None = None

    @abstractmethod
    def _learned(self, data: FitData, before: State | None) -> State:
        """What ``data`` teach; ``before`` is what was known, where scales are to be kept."""

    @abstractmethod
    def _scored(self, queries: Queries, items: Items, state: State) -> Scores:
        """(B, K) float32; at code -1 anything."""

    def _widened(self, state: State, n: int) -> State:
        """``state`` with ``n`` items more; unchanged where it is not about items."""
        return state

    @property
    def name(self) -> str:
        """The column that its scores fill."""
        return self.config.name

    def fit(self, data: FitData) -> Self:
        """Learn from ``data``.

        Raises:
            FitError: ``data`` lack what the signal is about; says what.
        """
        self._state = {**self._learned(data, None), "n_items": np.array(data.n_items)}
        return self

    def refit(self, data: FitData) -> Self:
        """Learn anew from more data, on the scale in use."""
        learned = self._learned(data, self._state)
        self._state = {**learned, "n_items": np.array(data.n_items)}
        return self

    def score(self, queries: Queries, items: Items) -> Scores:
        """(B, K) float32 for (B, K) codes; -inf where the code is -1.

        Raises:
            NotFittedError: before ``fit``.
            InputError: queries about another catalogue, or without what the signal reads.
        """
        state = fitted(self.name, self._state)
        check_queries(self.name, int(state["n_items"]), queries)
        items = check_pairs(queries, items)
        scores = self._scored(queries, items, state)
        return np.where(items >= 0, scores, np.float32(-np.inf)).astype(np.float32)

    def add_items(self, texts: Sequence[str] | None, n: int) -> None:
        """Make room for ``n`` items that nobody has met yet; their texts are not read."""
        state = fitted(self.name, self._state)
        self._state = {**self._widened(state, n), "n_items": state["n_items"] + n}

    def save_files(self, folder: Path) -> None:
        """Write the settings and what was learned."""
        write_state(folder, config_to_json(self.config), fitted(self.name, self._state))

    @classmethod
    def load_files(cls, folder: Path) -> Self:
        """Read what :meth:`save_files` wrote."""
        settings, arrays = read_state(folder)
        config: Any = config_from_json(cls._config, settings)
        model = cls(**config_to_json(config))
        model._state = arrays
        return model


def need_order(name: str, ordered: bool) -> None:
    """Refuse data without an order.

    Raises:
        FitError: there is none.
    """
    if not ordered:
        raise FitError(
            f"{name!r} is about the order of events and the data have none: give the interactions "
            "a time column (time=...), or leave this signal out"
        )


def need_times(name: str, histories: Ragged) -> NDArray[np.int64]:
    """(nnz,) the times of the events.

    Raises:
        FitError: there is no event, or none has a time.
    """
    if histories.times is None or not len(histories.times):
        raise FitError(
            f"{name!r} is about the times of events and the data have none: give the interactions "
            "a time column (time=...) that means the same for all users, or leave this signal out"
        )
    return histories.times


def now_of(queries: Queries, newest: int) -> NDArray[np.int64]:
    """(B,) when each query is asked: at the newest event of its history.

    That is what is known of it in training, too. ``newest`` where the history tells no time.
    """
    histories = queries.histories
    now = np.full(len(queries), newest, dtype=np.int64)
    if histories.times is not None:
        told = histories.lengths > 0
        now[told] = histories.times[histories.indptr[1:][told] - 1]
    return now
