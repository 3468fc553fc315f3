"""Learned linear fusion of the signals on a candidate list."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from hybridrec.checks import FitError, InputError, NotFittedError, real_number
from hybridrec.state import config_from_json, config_to_json, read_state, write_state

if TYPE_CHECKING:
    from pathlib import Path

    from hybridrec.candidates import Candidates
    from hybridrec.ragged import Items, Scores

_log = logging.getLogger("hybridrec")


@dataclass(frozen=True, kw_only=True)
class LinearFusionConfig:
    """Settings of :class:`LinearFusion`.

    Attributes:
        regularization: L2 weight on the coefficients, a list.
    """

    regularization: float = 1e-3

    def __post_init__(self) -> None:
        real_number("regularization", self.regularization, least=0.0)


class LinearFusion:
    """A linear model over standardised signals, trained listwise.

    Every signal gives two features, itself and its signed square root (heavy-tailed counts and
    sums tell more on the root's scale), each standardised within its list, so that a refit which
    rescales a signal leaves the model valid. The coefficients minimise the softmax cross-entropy
    of the target among its list (ListNet's top-one loss: Cao et al., ICML 2007).

    Attributes:
        signals: the names it was fitted on, in order.
        coefficients: (2 x signals,) float64: values first, roots behind.
    """

    def __init__(self, *, regularization: float = 1e-3) -> None:
        self.config = LinearFusionConfig(regularization=regularization)
        self.signals: tuple[str, ...] = ()
        self.coefficients: NDArray[np.float64] | None = None

    def fit(self, candidates: Candidates, targets: Items) -> Self:
        """Learn from lists that hold their target.

        Args:
            candidates: n lists with the signals to fuse.
            targets: (n,) the item of each list that the user chose.

        Raises:
            InputError: a list does not hold its target.
            FitError: there is no list, or the optimiser does not converge.
        """
        from scipy.optimize import minimize

        if not len(candidates) or not candidates.signals:
            raise FitError(
                f"no list to learn the fusion from ({len(candidates)} lists, "
                f"{len(candidates.signals)} signals): the recall stage missed every learning event"
            )
        hit = candidates.items == np.asarray(targets)[:, None]
        if not hit.any(axis=1).all():
            raise InputError(
                f"list {int(np.flatnonzero(~hit.any(axis=1))[0])} does not hold its target; "
                "leave out the lists whose positive recall missed"
            )
        self.signals = tuple(candidates.signals)
        features = self._features(candidates)
        place = hit.argmax(axis=1)
        rows = np.arange(len(candidates))
        penalty = np.where(candidates.valid, 0.0, -np.inf)

        def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            logits = features @ weights + penalty
            logits -= logits.max(axis=1, keepdims=True)
            odds = np.exp(logits)
            share = odds / odds.sum(axis=1, keepdims=True)
            value = -np.log(np.maximum(share[rows, place], 1e-300)).mean()
            share[rows, place] -= 1.0
            slope = np.einsum("bk,bkf->f", share, features) / len(rows)
            regularization = self.config.regularization
            return value + regularization * weights @ weights, slope + 2 * regularization * weights

        result = minimize(
            loss, np.zeros(features.shape[2]), jac=True, method="L-BFGS-B", options={"maxiter": 500}
        )
        if not np.isfinite(result.x).all():
            raise FitError(f"the fusion did not converge: {result.message}")
        self.coefficients = result.x
        _log.debug("fusion: loss %.4f over %d lists", result.fun, len(rows))
        return self

    def score(self, candidates: Candidates) -> Scores:
        """(B, K) float32, -inf on padding.

        Raises:
            NotFittedError: before ``fit``.
            InputError: a signal it was fitted on is missing.
        """
        if self.coefficients is None:
            raise NotFittedError("this fusion is not fitted: call fit, or load a model that is")
        missing = [name for name in self.signals if name not in candidates.signals]
        if missing:
            raise InputError(
                f"candidates carry no signal {missing[0]!r}; the fusion was fitted on "
                f"{list(self.signals)}: use the one fitted without it"
            )
        fused = self._features(candidates) @ self.coefficients
        return np.where(candidates.valid, fused, -np.inf).astype(np.float32)

    def rank(self, candidates: Candidates) -> Candidates:
        """The candidates in the fused order."""
        return candidates.reordered(self.score(candidates))

    def _features(self, candidates: Candidates) -> NDArray[np.float64]:
        """(B, K, 2 x signals) float64, mean 0 and deviation 1 over each list, 0 on padding."""
        raw = np.stack([candidates.signals[name] for name in self.signals], axis=2)
        raw = raw.astype(np.float64)
        both = np.concatenate([raw, np.sign(raw) * np.sqrt(np.abs(raw))], axis=2)
        valid = candidates.valid[:, :, None]
        count = np.maximum(valid.sum(axis=1, keepdims=True), 1)
        centred = np.where(valid, both, 0.0)
        centred = np.where(valid, both - centred.sum(axis=1, keepdims=True) / count, 0.0)
        deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
        # A signal that is the same on the whole list tells nothing apart: it stays 0.
        flat = deviation <= 1e-9 * np.maximum(np.abs(both).max(axis=1, keepdims=True), 1e-30)
        standard: NDArray[np.float64] = np.where(
            flat, 0.0, centred / np.where(flat, 1.0, deviation)
        )
        return standard

    def save_files(self, folder: Path) -> None:
        """Write settings, signal names and coefficients."""
        if self.coefficients is None:
            raise NotFittedError("this fusion is not fitted: there is nothing to save")
        settings = {"config": config_to_json(self.config), "signals": list(self.signals)}
        write_state(folder, settings, {"coefficients": self.coefficients})

    @classmethod
    def load_files(cls, folder: Path) -> Self:
        """Read what :meth:`save_files` wrote."""
        settings, arrays = read_state(folder)
        fusion = cls()
        fusion.config = config_from_json(LinearFusionConfig, settings["config"])
        fusion.signals = tuple(settings["signals"])
        fusion.coefficients = arrays["coefficients"]
        return fusion
