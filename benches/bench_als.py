"""Implicit ALS against implicit's own: the same objective, from the same initial factors."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pytest
from contract import PAIRS, THREADS, core_build, epoch, other_builds, scaled, timed
from implicit.cpu import _als
from implicit.cpu.als import AlternatingLeastSquares
from inputs import Interactions, interactions, synthetic
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

import hybridrec as hr

ALPHA, REGULARIZATION = 10.0, 0.05
SETTING = f"alpha {ALPHA:g}, lambda {REGULARIZATION:g}, float32"
OURS = hr.ALS().config
CG_FACTORS = scaled(smoke=[64], default=[64, 128], full=[64, 128, 256])
EXACT = scaled(smoke=[(64, 2)], default=[(64, 5)], full=[(64, 5), (128, 3)])
"""(factors, pairs): an epoch of implicit's is most of a minute at 128."""
SLOW_SHAPE = scaled(
    smoke=(400, 700, 12_000), default=(6_000, 6_000, 300_000), full=(138_000, 20_000, 10_000_000)
)
"""Of the data where implicit takes longest; those of every other suite at the full scale."""
LONG = scaled(smoke=32, default=128, full=128)
WIDE = scaled(smoke=96, default=256, full=1024)
JUDGED = 1000
"""Users whose part of the objective stands for the whole where a solve costs F^3."""

Factors = NDArray[np.float32]


def like_implicit(factors: int, epochs: int, *, solver: str = "cg") -> hr.ALS:
    """``implicit_model``'s objective in our ALS, its defaults otherwise."""
    return hr.ALS.like_implicit(
        alpha=ALPHA,
        regularization=REGULARIZATION,
        factors=factors,
        epochs=epochs,
        solver=solver,
        half_life=None,
        threads=THREADS,
    )


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


@dataclass(frozen=True)
class Race:
    """Both libraries on one problem."""

    data: Interactions
    factors: int
    solver: str = "cg"

    @cached_property
    def user_items(self) -> csr_matrix:
        """(U, I) as implicit takes it."""
        return self.data.csr()

    @cached_property
    def start(self) -> Factors:
        """(I, F) the item factors that ``ALS(seed=0)`` starts from; its user factors start at 0."""
        shape = (self.data.n_items, self.factors)
        drawn = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        return (drawn * (0.1 / np.sqrt(self.factors))).astype(np.float32)

    def ours(self, epochs: int) -> Factors:
        """(I, F) after a whole fit."""
        return like_implicit(self.factors, epochs, solver=self.solver).fit(self.data).item_factors

    def theirs(self, epochs: int) -> Factors:
        """(I, F) after a whole fit; to be called with BLAS at one thread."""
        model = implicit_model(self.factors, epochs, cg=self.solver == "cg")
        model.item_factors = self.start.copy()
        model.user_factors = np.zeros((self.user_items.shape[0], self.factors), np.float32)
        model.fit(self.user_items, show_progress=False)
        return model.item_factors

    def objective(self, items: Factors, users: NDArray[Any] | None = None) -> float:
        """Implicit's own loss of these items, their users (None: all) solved exactly by implicit.

        It is divided by the weight of all pairs, as implicit reports it.
        """
        user_items = self.user_items if users is None else self.user_items[users]
        with threadpool_limits(1, user_api="blas"):
            judge = implicit_model(self.factors, 1)
            judge.item_factors = items.copy()
            vectors = judge.recalculate_user(np.arange(user_items.shape[0]), user_items)
        loss = _als.calculate_loss(
            ALPHA * user_items, vectors, items.copy(), REGULARIZATION, num_threads=THREADS
        )
        return float(loss)

    def compared(self, items: Factors, peer_items: Factors, when: str) -> str:
        """Prove our objective no more than 0.1 % above the peer's; says both."""
        mine, other = self.objective(items), self.objective(peer_items)
        assert mine <= other * (1 + 1e-3), f"objective {mine} {when}, the peer's {other}"
        return f"objective {when} {mine:.6f} / {other:.6f}"

    @property
    def parameters(self) -> str:
        """Of both sides."""
        work = "both solve exactly"
        if self.solver == "cg":
            work = (
                f"{OURS.user_steps} (users) and {OURS.item_steps} (items) preconditioned CG steps, "
                f"over-relaxed {OURS.relaxation:g} / 3 plain CG steps"
            )
        return f"{SETTING}, {work}, same initial factors, implicit's BLAS at 1 thread"


def one_epoch(duel: Any, race: Race, *, ours: str, more: int = 2, pairs: int = PAIRS) -> None:
    duel(
        f"ALS epoch, {race.solver}, F={race.factors}",
        (ours, epoch(race.ours, more=more)),
        ("implicit ALS", epoch(race.theirs, more=more, blas_threads=1)),
        check=lambda items, other: race.compared(items, other, f"after {1 + more} epochs"),
        data=str(race.data),
        parameters=race.parameters,
        unit="epoch",
        pairs=pairs,
    )


@pytest.mark.parametrize("factors", CG_FACTORS)
def test_conjugate_gradients(duel: Any, factors: int) -> None:
    one_epoch(duel, Race(interactions(), factors), ours="ALS.like_implicit")


@pytest.mark.parametrize("build", other_builds())
def test_conjugate_gradients_of_other_builds(duel: Any, build: str) -> None:
    """What a CPU without AVX-512 would run; the peer still picks its code for this one."""
    with core_build(build):
        one_epoch(duel, Race(interactions(), 64), ours=f"ALS.like_implicit, {build} build")


@pytest.mark.parametrize(("factors", "pairs"), EXACT)
def test_cholesky(duel: Any, factors: int, pairs: int) -> None:
    """An epoch is fit(2) - fit(1) and the pairs are few: at the full scale one takes minutes."""
    race = Race(synthetic(*SLOW_SHAPE), factors, "cholesky")
    one_epoch(duel, race, ours="ALS.like_implicit", more=1, pairs=pairs)


def test_time_to_objective(duel: Any) -> None:
    """Whole fits: ours of as few epochs as reach what implicit's default of 15 reaches."""
    race = Race(synthetic(*SLOW_SHAPE), LONG)
    theirs = timed(lambda: race.theirs(15), blas_threads=1)
    goal = race.objective(theirs()[1])
    # An epoch does not raise the objective, so the search may bisect; ``check`` proves its end.
    tried = range(1, 31)
    reached = bisect_left(tried, True, key=lambda n: race.objective(race.ours(n)) <= goal)
    assert reached < len(tried), f"{len(tried)} epochs do not reach the peer's {goal}"
    epochs = tried[reached]

    def check(items: Factors, peer_items: Factors) -> str:
        mine, other = race.objective(items), race.objective(peer_items)
        assert mine <= other, f"objective {mine} after {epochs} epochs, the peer's {other} after 15"
        return f"objective after {epochs} / 15 epochs {mine:.6f} / {other:.6f}"

    duel(
        f"time to implicit's objective of 15 epochs, F={LONG}",
        (f"ALS.like_implicit, {epochs} epochs", timed(lambda: race.ours(epochs))),
        ("implicit ALS, 15 epochs", theirs),
        check=check,
        data=str(race.data),
        parameters=race.parameters,
        unit="fit",
        pairs=min(PAIRS, 5),
    )


def test_wide_factors(duel: Any) -> None:
    """Implicit would take minutes an epoch here: no peer, one run, no warm-up."""
    race = Race(interactions(), WIDE)
    active = np.flatnonzero(race.data.histories.lengths > 0)
    users = np.random.default_rng(1).permutation(active)[:JUDGED]

    def check(items: Factors, _: None) -> str:
        before, after = race.objective(race.start, users), race.objective(items, users)
        assert after < before, f"objective {after} after 2 epochs, {before} at the start"
        return f"objective of {len(users)} users {before:.4f} at the start, {after:.4f} after 2"

    duel(
        f"ALS epoch, wide, F={WIDE}",
        ("ALS.like_implicit", epoch(race.ours, more=1)),
        None,
        check=check,
        data=str(race.data),
        parameters=f"{SETTING}, ours: {OURS.user_steps} (users) and {OURS.item_steps} (items) CG "
        f"steps, over-relaxed {OURS.relaxation:g}; no warm-up",
        unit="epoch",
        pairs=1,
        warm_up=False,
    )
