"""Learned fusion by gradient-boosted trees: the only door of LightGBM."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hybridrec.checks import (
    FitError,
    StorageError,
    real_number,
    require_extra,
    thread_count,
    whole_number,
)
from hybridrec.fuse.features import flat_signals, ranks, standardised
from hybridrec.fuse.forest import MOST_LEAVES, Forest
from hybridrec.fuse.fusion import ListFusion, sampled
from hybridrec.fuse.listwise import most_likely
from hybridrec.recall.blas import blas_threads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import ModuleType

    from numpy.typing import NDArray

    from hybridrec.fuse.fusion import Arrays
    from hybridrec.ragged import Mask, Scores

_TRUNCATION = 20
"""Pairs count where one of the two stands this high: what is at stake is the first ten places."""
_THREADS = re.compile(r"\[num_threads: \d+\]\n")
"""The one line of a model that tells how many threads grew it."""
_REGULARIZATION = 1e-3
"""Of the linear start, as :class:`~hybridrec.LinearFusion` has it."""
_LINEAR_LISTS = 10_000
"""That the linear start is learned from at most."""
_COMPARED = 1000
"""Candidates on which what was read of LightGBM's text is held against LightGBM."""


@dataclass(frozen=True, kw_only=True)
class TreeFusionConfig:
    """Settings of :class:`TreeFusion`."""

    trees: int = 60
    leaves: int = 15
    learning_rate: float = 0.1
    least_in_leaf: int = 100
    l2: float = 1.0
    features: float = 0.5
    sample: float = 0.7
    seeds: int = 2
    lists: int | None = 20_000
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("trees", "least_in_leaf", "seeds"):
            whole_number(name, getattr(self, name), least=1)
        whole_number("leaves", self.leaves, least=2, most=MOST_LEAVES)
        real_number("learning_rate", self.learning_rate, above=0.0)
        real_number("l2", self.l2, least=0.0)
        for name in ("features", "sample"):
            real_number(name, getattr(self, name), above=0.0, below=1.0 + 1e-9)
        if self.lists is not None:
            whole_number("lists", self.lists, least=1)
        if self.threads is not None:
            thread_count(self.threads)
        whole_number("seed", self.seed)


class TreeFusion(ListFusion[TreeFusionConfig]):
    """A linear fusion, put right by LambdaMART (Burges, MSR-TR-2010-82) that LightGBM grows.

    What a sum of signals can say, a linear model says from few lists (:class:`LinearFusion`); the
    first tree starts from its scores, so trees are left for what a sum cannot say. A candidate's
    features are, of every signal, its value and its signed root, each standardised within the list,
    and how many candidates of the list are above it. A signal that is the same all along a list,
    such as the length of the history, is about the query: it is read as it is. Raw values of the
    others are not read: a refit rescales them. The same lists give the same bits for any number of
    threads.

    Args:
        trees: trees of one seed; each orders what those before it left.
        leaves: of a tree at most.
        learning_rate: how much of a tree counts.
        least_in_leaf: candidates in a leaf at least.
        l2: penalty on the value of a leaf.
        features: share of the features that a tree may look at.
        sample: share of the candidates that a tree is grown on.
        seeds: models whose scores are averaged, each with draws of its own.
        lists: lists learned from at most, a seeded sample; None takes all.
        threads: for growing; None takes every CPU this process may use.
        seed: of every draw.
    """

    _config = TreeFusionConfig

    def __init__(
        self,
        *,
        trees: int = 60,
        leaves: int = 15,
        learning_rate: float = 0.1,
        least_in_leaf: int = 100,
        l2: float = 1.0,
        features: float = 0.5,
        sample: float = 0.7,
        seeds: int = 2,
        lists: int | None = 20_000,
        threads: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            TreeFusionConfig(
                trees=trees,
                leaves=leaves,
                learning_rate=learning_rate,
                least_in_leaf=least_in_leaf,
                l2=l2,
                features=features,
                sample=sample,
                seeds=seeds,
                lists=lists,
                threads=threads,
                seed=seed,
            )
        )
        self._texts: list[str] = []
        self._forests: list[Forest] = []
        self._flat: Mask = np.empty(0, dtype=np.bool_)
        self._coefficients: NDArray[np.float64] = np.empty(0)

    def _learn(self, columns: Scores, sizes: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        config = self.config
        rows = sampled(config.lists, len(sizes), config.seed)
        columns, sizes = np.ascontiguousarray(columns[:, rows]), sizes[rows]
        self._flat = flat_signals(columns, sizes)
        self._coefficients = _linear(columns[~self._flat], sizes, places[rows])
        table = _features(columns, sizes, self._flat)
        chosen = np.zeros(len(table), dtype=np.float32)
        chosen[np.cumsum(sizes) - sizes + places[rows]] = 1.0
        lightgbm = _lightgbm()
        settings = self._settings()
        start = self._start(table)
        lists = lightgbm.Dataset(table, chosen, group=sizes, init_score=start, params=settings)
        models = [
            lightgbm.train({**settings, "seed": config.seed + draw}, lists, config.trees)
            for draw in range(config.seeds)
        ]
        self._plant([_THREADS.sub("", model.model_to_string()) for model in models])
        _compared(models, self._forests, table[:_COMPARED])

    def _plant(self, texts: list[str]) -> None:
        """Take over models in LightGBM's text format."""
        self._texts, self._forests = texts, [Forest.from_text(text) for text in texts]

    def _settings(self) -> dict[str, Any]:
        """LightGBM's parameters."""
        config = self.config
        return {
            "objective": "lambdarank",
            "lambdarank_truncation_level": _TRUNCATION,
            "learning_rate": config.learning_rate,
            "num_leaves": config.leaves,
            "min_data_in_leaf": config.least_in_leaf,
            "lambda_l2": config.l2,
            "feature_fraction": config.features,
            "bagging_fraction": config.sample,
            "bagging_freq": 1,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": thread_count(config.threads),
            "verbosity": -1,
        }

    def _scored(self, columns: Scores, sizes: NDArray[np.int64]) -> NDArray[Any]:
        scores: NDArray[np.float64] = np.zeros(columns.shape[1:])
        real = np.arange(columns.shape[2]) < sizes[:, None]
        if not real.any():
            return scores
        table = _features(columns, sizes, self._flat)
        turned = np.ascontiguousarray(table.T)
        grown = np.mean([forest.score(turned) for forest in self._forests], axis=0)
        scores[real] = self._start(table) + grown
        return scores

    def _start(self, table: Scores) -> NDArray[np.float64]:
        """(candidates,) what the linear model says, of the features that it reads."""
        return table[:, : len(self._coefficients)].astype(np.float64) @ self._coefficients

    def _arrays(self) -> Arrays:
        return {"flat": self._flat, "coefficients": self._coefficients}

    def _take(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._flat = arrays["flat"]
        # Trees that were saved before there was a linear start begin at nothing.
        self._coefficients = arrays.get("coefficients", np.empty(0))

    def save_files(self, folder: Path) -> None:
        """Write settings and signal names, and the trees in LightGBM's text format.

        Raises:
            NotFittedError: before ``fit``.
        """
        super().save_files(folder)
        for place, text in enumerate(self._texts):
            (folder / f"trees_{place}.txt").write_text(text, encoding="utf-8")

    @classmethod
    def load_files(cls, folder: Path) -> Self:
        """Read what :meth:`save_files` wrote; LightGBM is not needed for it.

        Raises:
            StorageError: a file is missing or damaged.
        """
        fusion = super().load_files(folder)
        try:
            fusion._plant(
                [
                    (folder / f"trees_{place}.txt").read_text(encoding="utf-8")
                    for place in range(fusion.config.seeds)
                ]
            )
        except (OSError, ValueError) as error:
            raise StorageError(f"cannot read the trees in {folder}: {error}") from error
        return fusion


def _features(columns: Scores, sizes: NDArray[np.int64], flat: Mask) -> Scores:
    """(candidates, F) float32: the real candidates of all lists, one below the other."""
    real = np.arange(columns.shape[2]) < sizes[:, None]
    telling = np.ascontiguousarray(columns[~flat])
    parts = (standardised(telling, sizes), ranks(telling, sizes), columns[flat].transpose(1, 2, 0))
    return np.concatenate([part[real] for part in parts], axis=1)


def _linear(
    columns: Scores, sizes: NDArray[np.int64], places: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(F,) weights of the standardised signals and their roots: the first of the features."""
    rows = sampled(_LINEAR_LISTS, len(sizes), 0)
    features = standardised(np.ascontiguousarray(columns[:, rows]), sizes[rows])
    if not features.shape[2]:
        return np.empty(0)
    valid = np.arange(features.shape[1]) < sizes[rows, None]
    with blas_threads(1):  # sums of more threads differ in their last bits
        return most_likely(features, valid, places[rows], regularization=_REGULARIZATION)


def _compared(models: Sequence[Any], forests: Sequence[Forest], table: Scores) -> None:
    """Refuse trees that were read otherwise than LightGBM means them.

    Raises:
        FitError: a prediction differs in a bit.
    """
    turned = np.ascontiguousarray(table.T)
    for model, forest in zip(models, forests, strict=True):
        if not np.array_equal(forest.score(turned), model.predict(table, num_threads=1)):
            raise FitError(
                "LightGBM's trees score otherwise than hybridrec reads them: this LightGBM is "
                "newer than it knows; install one that constraints.txt names"
            )


def _lightgbm() -> ModuleType:
    return require_extra("lightgbm", "trees")
