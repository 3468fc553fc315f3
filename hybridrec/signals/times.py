"""Signals of when events were: what is popular now, what is new, how fast a user goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from hybridrec.checks import frozen, real_number
from hybridrec.recall.promises import check_name
from hybridrec.signals.signal import StoredSignal, need_times, now_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hybridrec.candidates import Queries
    from hybridrec.protocols import FitData
    from hybridrec.ragged import Items, Scores
    from hybridrec.signals.signal import State

__all__ = ["ItemAge", "NewestGap", "RecentPopularity"]

_NEVER = np.iinfo(np.int64).max
_PARTS = 1000
"""Ages are told apart down to this part of the time that the data span."""


@dataclass(frozen=True, kw_only=True)
class RecentPopularityConfig:
    """Settings of :class:`RecentPopularity`."""

    horizon: float = 0.05
    name: str = "recent popularity"

    def __post_init__(self) -> None:
        real_number("horizon", self.horizon, above=0.0)
        check_name(self.name)


class RecentPopularity(StoredSignal[RecentPopularityConfig]):
    """Scores an item by log(1 + its events of late), up to the query's newest event.

    Nothing after the query's newest event is counted, whoever did it. Times must mean the same for
    all users: where they only number the events of each user, leave this signal out.

    Args:
        horizon: how far back events count, as a share of the time that the data span when first
            fitted; a refit keeps the span of time.
        name: the column that the scores fill.
    """

    _config = RecentPopularityConfig

    def __init__(self, horizon: float = 0.05, *, name: str = "recent popularity") -> None:
        super().__init__(RecentPopularityConfig(horizon=horizon, name=name))

    def _learned(self, data: FitData, before: State | None) -> State:
        times = need_times(self.name, data.histories)
        span = self.config.horizon * (int(times.max()) - int(times.min()))
        order = np.lexsort((times, data.histories.items))
        counts = np.bincount(data.histories.items, minlength=data.n_items)
        return {
            "indptr": np.concatenate([[0], np.cumsum(counts)]),
            "times": times[order],
            "newest": np.array(times.max()),
            "horizon": np.array(max(int(span), 1)) if before is None else before["horizon"],
        }

    def _scored(self, queries: Queries, items: Items, state: State) -> Scores:
        out: Scores = np.zeros(items.shape, dtype=np.float32)
        now = now_of(queries, int(state["newest"]))
        indptr, times = frozen(state["indptr"]), frozen(state["times"])
        _count_recent(indptr, times, frozen(items), now, int(state["horizon"]), out)
        return np.log1p(out)

    def _widened(self, state: State, n: int) -> State:
        room = np.full(n, state["indptr"][-1])
        return {**state, "indptr": np.concatenate([state["indptr"], room])}


@dataclass(frozen=True, kw_only=True)
class ItemAgeConfig:
    """Settings of :class:`ItemAge`."""

    name: str = "item age"

    def __post_init__(self) -> None:
        check_name(self.name)


class ItemAge(StoredSignal[ItemAgeConfig]):
    """Scores an item by how new it is: -log(1 + age), 0 for one that nobody has met yet.

    The age is the time from an item's first event to the query's newest one, in thousandths of the
    time that the data span when first fitted. Times must mean the same for all users.
    """

    _config = ItemAgeConfig

    def __init__(self, *, name: str = "item age") -> None:
        super().__init__(ItemAgeConfig(name=name))

    def _learned(self, data: FitData, before: State | None) -> State:
        times = need_times(self.name, data.histories)
        first = np.full(data.n_items, _NEVER, dtype=np.int64)
        np.minimum.at(first, data.histories.items, times)
        unit = np.array(max((int(times.max()) - int(times.min())) / _PARTS, 1e-9))
        return {
            "first": first,
            "newest": np.array(times.max()),
            "unit": unit if before is None else before["unit"],
        }

    def _scored(self, queries: Queries, items: Items, state: State) -> Scores:
        first = state["first"][items]
        now = now_of(queries, int(state["newest"]))[:, None]
        age = np.where(first < now, now - np.minimum(first, now), 0)
        return -np.log1p(age / state["unit"]).astype(np.float32)

    def _widened(self, state: State, n: int) -> State:
        return {**state, "first": np.append(state["first"], np.full(n, _NEVER))}


@dataclass(frozen=True, kw_only=True)
class NewestGapConfig:
    """Settings of :class:`NewestGap`."""

    name: str = "newest gap"

    def __post_init__(self) -> None:
        check_name(self.name)


class NewestGap(StoredSignal[NewestGapConfig]):
    """The time between the two newest events of a history: log(1 + gap), -1 where there is none.

    The same for every candidate, so only a fusion that weighs signals by one another can use it:
    trees.
    """

    _config = NewestGapConfig

    def __init__(self, *, name: str = "newest gap") -> None:
        super().__init__(NewestGapConfig(name=name))

    def _learned(self, data: FitData, before: State | None) -> State:
        need_times(self.name, data.histories)
        return {}

    def _scored(self, queries: Queries, items: Items, state: State) -> Scores:
        histories = queries.histories
        gaps = np.full(len(queries), -1.0, dtype=np.float32)
        if histories.times is not None:
            rows = np.flatnonzero(histories.lengths > 1)
            last = histories.indptr[1:][rows] - 1
            gaps[rows] = np.log1p(histories.times[last] - histories.times[last - 1])
        return np.tile(gaps[:, None], (1, items.shape[1]))


@njit(nogil=True, cache=True)
def _count_recent(
    indptr: Any, times: Any, items: Any, now: NDArray[np.int64], horizon: int, out: Any
) -> None:
    """Events of each item (B, K) in (now - horizon, now]; ``times`` rise within an item."""
    for row in range(items.shape[0]):
        for place in range(items.shape[1]):
            item = items[row, place]
            if item < 0:
                continue
            events = times[indptr[item] : indptr[item + 1]]
            until = np.searchsorted(events, now[row], side="right")
            since = np.searchsorted(events, now[row] - horizon, side="right")
            out[row, place] = until - since
