"""Signals of where in its history a query stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hybridrec.checks import real_number
from hybridrec.recall.promises import check_name
from hybridrec.signals.signal import StoredSignal, need_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hybridrec.candidates import Queries
    from hybridrec.protocols import FitData
    from hybridrec.ragged import Items, Scores
    from hybridrec.signals.signal import State

__all__ = ["HistoryLength", "HistoryStage"]

_STAGES = 20
"""Half octaves of the number of events: the last begins at 724."""


@dataclass(frozen=True, kw_only=True)
class HistoryLengthConfig:
    """Settings of :class:`HistoryLength`."""

    name: str = "history length"

    def __post_init__(self) -> None:
        check_name(self.name)


class HistoryLength(StoredSignal[HistoryLengthConfig]):
    """log(1 + events of the history).

    The same for every candidate, so only a fusion that weighs signals by one another can use it:
    trees.
    """

    _config = HistoryLengthConfig

    def __init__(self, *, name: str = "history length") -> None:
        super().__init__(HistoryLengthConfig(name=name))

    def _learned(self, data: FitData, before: State | None) -> State:
        return {}

    def _scored(self, queries: Queries, items: Items, state: State) -> Scores:
        length = np.log1p(queries.histories.lengths).astype(np.float32)
        return np.tile(length[:, None], (1, items.shape[1]))


@dataclass(frozen=True, kw_only=True)
class HistoryStageConfig:
    """Settings of :class:`HistoryStage`."""

    smoothing: float = 5.0
    name: str = "history stage"

    def __post_init__(self) -> None:
        real_number("smoothing", self.smoothing, above=0.0)
        check_name(self.name)


class HistoryStage(StoredSignal[HistoryStageConfig]):
    """Scores an item by how much it belongs to this stage of a history.

    Some items are taken early and some late: the first games of a console, the films that a
    rating page shows first. With n events before it, an event is at stage floor(2 log2(n + 1));
    the score is log P(stage | item) - log P(stage), counted over all events and smoothed.

    Args:
        smoothing: events that every item is given, spread over the stages as all events are.
        name: the column that the scores fill.
    """

    _config = HistoryStageConfig

    def __init__(self, smoothing: float = 5.0, *, name: str = "history stage") -> None:
        super().__init__(HistoryStageConfig(smoothing=smoothing, name=name))

    def _learned(self, data: FitData, before: State | None) -> State:
        need_order(self.name, data.ordered)
        histories = data.histories
        place = np.arange(len(histories.items)) - np.repeat(
            histories.indptr[:-1], histories.lengths
        )
        cell = histories.items.astype(np.int64) * _STAGES + _stages(place)
        counts = np.bincount(cell, minlength=data.n_items * _STAGES).astype(np.float64)
        counts = counts.reshape(data.n_items, _STAGES)
        # One event more at every stage: a stage that nobody has reached yet has a share, too.
        share = (counts.sum(axis=0) + 1) / (counts.sum() + _STAGES)
        smoothing = self.config.smoothing
        of_item = (counts + smoothing * share) / (counts.sum(axis=1, keepdims=True) + smoothing)
        table = np.log(of_item / share).astype(np.float32)
        table[counts.sum(axis=1) == 0] = 0.0  # to the bit: nothing is known of them
        return {"table": table}

    def _scored(self, queries: Queries, items: Items, state: State) -> Scores:
        table: Scores = state["table"]
        return table[items, _stages(queries.histories.lengths)[:, None]]

    def _widened(self, state: State, n: int) -> State:
        room = np.zeros((n, _STAGES), dtype=np.float32)
        return {"table": np.concatenate([state["table"], room])}


def _stages(events: NDArray[np.int64]) -> NDArray[np.int64]:
    """The stage of each number of events before an event."""
    return np.asarray(np.minimum(2 * np.log2(events + 1.0), _STAGES - 1), dtype=np.int64)
