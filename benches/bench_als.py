"""One epoch of implicit ALS, on the same objective from the same factors, against implicit's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from contract import SCALE, THREADS, epoch, scaled
from implicit.cpu import _als
from implicit.cpu.als import AlternatingLeastSquares
from inputs import Interactions, interactions, synthetic
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

import hybridrec as hr

ALPHA, REGULARIZATION = 10.0, 0.05
FACTORS = [64, 128] if SCALE == "full" else [64]


def implicit_model(factors: int, epochs: int, *, cg: bool = True) -> AlternatingLeastSquares:
    return AlternatingLeastSquares(
        factors=factors,
        regularization=REGULARIZATION,
        alpha=ALPHA,
        iterations=epochs,
        use_cg=cg,
        num_threads=THREADS,
        random_state=0,
    )


def start(n_items: int, factors: int) -> NDArray[np.float32]:
    """(I, F) the item factors that ``ALS(seed=0)`` starts from; its user factors start at 0."""
    drawn = np.random.default_rng(0).standard_normal((n_items, factors), dtype=np.float32)
    return (drawn * (0.1 / np.sqrt(factors))).astype(np.float32)


def compare(duel: Any, data: Interactions, factors: int, solver: str) -> None:
    user_items = data.csr()
    first = start(data.n_items, factors)

    def ours(epochs: int) -> NDArray[np.float32]:
        model = hr.ALS.like_implicit(
            alpha=ALPHA,
            regularization=REGULARIZATION,
            factors=factors,
            epochs=epochs,
            solver=solver,
            half_life=None,
            threads=THREADS,
        )
        return model.fit(data).item_factors

    def theirs(epochs: int) -> NDArray[np.float32]:
        model = implicit_model(factors, epochs, cg=solver == "cg")
        model.item_factors = first.copy()
        model.user_factors = np.zeros((user_items.shape[0], factors), np.float32)
        model.fit(user_items, show_progress=False)
        return model.item_factors

    def objective(items: NDArray[np.float32]) -> float:
        """Implicit's own loss of these items, their users solved exactly by implicit."""
        with threadpool_limits(1, user_api="blas"):
            judge = implicit_model(factors, 1)
            judge.item_factors = items.copy()
            users = judge.recalculate_user(np.arange(user_items.shape[0]), user_items)
        loss = _als.calculate_loss(
            ALPHA * user_items, users, items.copy(), REGULARIZATION, num_threads=THREADS
        )
        return float(loss)

    def check(items: NDArray[np.float32], peer_items: NDArray[np.float32]) -> str:
        mine, other = objective(items), objective(peer_items)
        assert mine <= other * (1 + 1e-3), f"objective {mine} after 3 epochs, the peer's {other}"
        return f"objective after 3 epochs {mine:.6f} / {other:.6f}"

    duel(
        f"ALS epoch, {solver}, F={factors}",
        ("ALS.like_implicit", epoch(ours)),
        ("implicit ALS", epoch(theirs, blas_threads=1)),
        check=check,
        data=str(data),
        parameters=f"alpha {ALPHA:g}, lambda {REGULARIZATION:g}, float32, same initial factors, "
        f"{'3 CG steps' if solver == 'cg' else 'exact solves'}, implicit's BLAS at 1 thread",
        unit="epoch",
    )


@pytest.mark.parametrize("factors", FACTORS)
def test_conjugate_gradients(duel: Any, factors: int) -> None:
    compare(duel, interactions(), factors, "cg")


def test_cholesky(duel: Any) -> None:
    shape = scaled(
        smoke=(400, 700, 12_000), default=(6_000, 6_000, 300_000), full=(13_800, 20_000, 1_000_000)
    )
    compare(duel, synthetic(*shape), 64, "cholesky")
