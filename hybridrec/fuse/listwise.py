"""The listwise loss of the linear fusions: how likely the target is among its list."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hybridrec.checks import FitError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hybridrec.ragged import Mask, Scores

_STEPS = 500


def most_likely(
    features: Scores,
    valid: Mask,
    places: NDArray[np.int64],
    *,
    regularization: float,
    least: float | None = None,
) -> NDArray[np.float64]:
    """(F,) float64 weights that make the targets likeliest: ListNet's top-one loss.

    Minimises the softmax cross-entropy of the target among its list, a list on average (Cao et al.,
    ICML 2007), plus ``regularization`` times the squared weights. The problem is convex.

    Args:
        features: (B, K, F) float32.
        valid: (B, K) true on real candidates.
        places: (B,) where each list holds its target.
        regularization: of the weights, a list.
        least: no weight is below this; None sets no bound.

    Raises:
        FitError: the optimiser does not converge.

    O(B * K * F) time a step.
    """
    from scipy.optimize import minimize

    rows = np.arange(len(features))
    flat = features.reshape(-1, features.shape[2])
    chosen = features[rows, places].sum(axis=0, dtype=np.float64)
    padding = ~valid

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = (flat @ weights.astype(np.float32)).reshape(valid.shape).astype(np.float64)
        logits[padding] = -np.inf
        logits -= logits.max(axis=1, keepdims=True)
        odds = np.exp(logits)
        totals = odds.sum(axis=1)
        value = (np.log(totals) - logits[rows, places]).mean()
        share = (odds / totals[:, None]).astype(np.float32)
        slope = (share.ravel() @ flat - chosen) / len(rows)
        return (
            float(value + regularization * weights @ weights),
            slope + 2 * regularization * weights,
        )

    width = features.shape[2]
    result = minimize(
        loss,
        np.zeros(width),
        jac=True,
        method="L-BFGS-B",
        bounds=None if least is None else [(least, None)] * width,
        options={"maxiter": _STEPS},
    )
    if not np.isfinite(result.x).all():
        raise FitError(f"the fusion did not converge: {result.message}")
    weights: NDArray[np.float64] = result.x
    return weights
