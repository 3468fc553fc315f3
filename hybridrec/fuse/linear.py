"""Learned linear fusion of the signals on a candidate list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridrec.checks import FitError, real_number, whole_number
from hybridrec.fuse.features import standardised
from hybridrec.fuse.fusion import ListFusion, sampled
from hybridrec.fuse.listwise import most_likely

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from hybridrec.fuse.fusion import Arrays
    from hybridrec.ragged import Scores


@dataclass(frozen=True, kw_only=True)
class LinearFusionConfig:
    """Settings of :class:`LinearFusion`.

    Attributes:
        regularization: L2 weight on the coefficients, a list.
        lists: lists learned from at most; None takes all.
    """

    regularization: float = 1e-3
    lists: int | None = 10_000

    def __post_init__(self) -> None:
        real_number("regularization", self.regularization, least=0.0)
        if self.lists is not None:
            whole_number("lists", self.lists, least=1)


class LinearFusion(ListFusion[LinearFusionConfig]):
    """A linear model over standardised signals, trained listwise.

    Every signal gives two features, itself and its signed square root (heavy-tailed counts and
    sums tell more on the root's scale), each standardised within its list, so that a refit which
    rescales a signal leaves the model valid. The coefficients minimise the softmax cross-entropy
    of the target among its list (ListNet's top-one loss: Cao et al., ICML 2007).

    Args:
        regularization: L2 weight on the coefficients, a list.
        lists: lists learned from at most, a seeded sample; a model this small gains nothing from
            more. None takes all.

    Attributes:
        signals: the names it was fitted on, in order.
        coefficients: (2 x signals,) float64: values first, roots behind.
    """

    _config = LinearFusionConfig

    def __init__(self, *, regularization: float = 1e-3, lists: int | None = 10_000) -> None:
        super().__init__(LinearFusionConfig(regularization=regularization, lists=lists))
        self.coefficients: NDArray[np.float64] | None = None

    def _learn(self, columns: Scores, sizes: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        rows = sampled(self.config.lists, len(sizes), 0)
        sizes = sizes[rows]
        features = standardised(np.ascontiguousarray(columns[:, rows]), sizes)
        self.coefficients = most_likely(
            features,
            np.arange(features.shape[1]) < sizes[:, None],
            places[rows],
            regularization=self.config.regularization,
        )

    def _scored(self, columns: Scores, sizes: NDArray[np.int64]) -> NDArray[Any]:
        if self.coefficients is None:
            raise FitError("this fusion holds no coefficients: fit it again")
        scores: NDArray[Any] = standardised(columns, sizes) @ self.coefficients
        return scores

    def _arrays(self) -> Arrays:
        return {} if self.coefficients is None else {"coefficients": self.coefficients}

    def _take(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.coefficients = arrays["coefficients"]
