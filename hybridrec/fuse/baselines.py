"""Fusions with little to learn: what a learned one has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridrec.checks import FitError, distinct_names, real_number, whole_number
from hybridrec.fuse.features import ranks, standardised
from hybridrec.fuse.fusion import ListFusion, sampled
from hybridrec.fuse.listwise import most_likely

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from hybridrec.fuse.fusion import Arrays
    from hybridrec.ragged import Scores

__all__ = ["ConvexFusion", "OrderBefore", "ReciprocalRankFusion"]


@dataclass(frozen=True, kw_only=True)
class ReciprocalRankFusionConfig:
    """Settings of :class:`ReciprocalRankFusion`."""

    offset: float = 60.0
    signals: Sequence[str] | None = None

    def __post_init__(self) -> None:
        real_number("offset", self.offset, least=0.0)
        object.__setattr__(self, "signals", distinct_names("signals", self.signals))


class ReciprocalRankFusion(ListFusion[ReciprocalRankFusionConfig]):
    """Σ over signals of 1 / (offset + rank) (Cormack, Clarke & Büttcher, SIGIR 2009).

    Nothing is learned, so every signal counts alike and larger must be better; candidates that a
    signal scores alike have one rank, which begins at 1.

    Args:
        offset: the larger, the less the first places tower over the rest.
        signals: only these; None takes all.
    """

    _config = ReciprocalRankFusionConfig

    def __init__(self, *, offset: float = 60.0, signals: Sequence[str] | None = None) -> None:
        super().__init__(ReciprocalRankFusionConfig(offset=offset, signals=signals))

    def _learn(self, columns: Scores, sizes: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """Only the names of the signals are kept."""

    def _scored(self, columns: Scores, sizes: NDArray[np.int64]) -> NDArray[Any]:
        shares = 1.0 / (self.config.offset + 1.0 + ranks(columns, sizes).astype(np.float64))
        return np.asarray(shares.sum(axis=2))

    def _arrays(self) -> Arrays:
        return {}

    def _take(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class ConvexFusionConfig:
    """Settings of :class:`ConvexFusion`."""

    lists: int | None = 10_000
    signals: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.lists is not None:
            whole_number("lists", self.lists, least=1)
        object.__setattr__(self, "signals", distinct_names("signals", self.signals))


class ConvexFusion(ListFusion[ConvexFusionConfig]):
    """Σ over signals of weight x standardised signal, with weights >= 0 that sum to 1.

    The convex combination of Bruch, Gai & Ingber (arXiv 2210.11934), whose order does not depend on
    how scores are normalised linearly. They tune one weight on a grid; here the weights of any
    number of signals maximise the likelihood of the targets, which is a convex problem. A signal of
    which less is better gets weight 0.

    Args:
        lists: lists learned from at most, a seeded sample; None takes all.
        signals: only these; None takes all.

    Attributes:
        weights: (signals,) float64.
    """

    _config = ConvexFusionConfig

    def __init__(self, *, lists: int | None = 10_000, signals: Sequence[str] | None = None) -> None:
        super().__init__(ConvexFusionConfig(lists=lists, signals=signals))
        self.weights: NDArray[np.float64] | None = None

    def _learn(self, columns: Scores, sizes: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        rows = sampled(self.config.lists, len(sizes), 0)
        sizes = sizes[rows]
        features = standardised(np.ascontiguousarray(columns[:, rows]), sizes, roots=False)
        valid = np.arange(features.shape[1]) < sizes[:, None]
        weights = most_likely(features, valid, places[rows], regularization=1e-6, least=0.0)
        total = weights.sum()
        self.weights = weights / total if total > 0 else np.full(len(weights), 1 / len(weights))

    def _scored(self, columns: Scores, sizes: NDArray[np.int64]) -> NDArray[Any]:
        if self.weights is None:
            raise FitError("this fusion holds no weights: fit it again")
        scores: NDArray[Any] = standardised(columns, sizes, roots=False) @ self.weights
        return scores

    def _arrays(self) -> Arrays:
        return {} if self.weights is None else {"weights": self.weights}

    def _take(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.weights = arrays["weights"]


@dataclass(frozen=True, kw_only=True)
class OrderBeforeConfig:
    """Settings of :class:`OrderBefore`.

    Attributes:
        signals: the one column to order by.
    """

    signals: Sequence[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "signals", distinct_names("signals", self.signals))


class OrderBefore(ListFusion[OrderBeforeConfig]):
    """The order there was, told by one signal: where a later stage has nothing to add to it.

    Args:
        signals: the name of that signal, in a list.
    """

    _config = OrderBeforeConfig

    def __init__(self, *, signals: Sequence[str]) -> None:
        super().__init__(OrderBeforeConfig(signals=signals))

    def _learn(self, columns: Scores, sizes: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """There is nothing to learn."""

    def _scored(self, columns: Scores, sizes: NDArray[np.int64]) -> NDArray[Any]:
        return np.asarray(columns[0])

    def _arrays(self) -> Arrays:
        return {}

    def _take(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        pass
