"""The mathematics of ALS: its settings, one half-sweep, its loss, and how two fits are aligned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from hybridrec import _core
from hybridrec.checks import FitError, InputTypeError, one_of, real_number, whole_number
from hybridrec.ragged import Ragged
from hybridrec.recall.promises import check_half_life, check_name

if TYPE_CHECKING:
    from hybridrec.ragged import Scores

_CELLS = 1 << 22
"""Floats gathered at once to sum the loss: 16 MiB of float32."""


@dataclass(frozen=True, kw_only=True)
class ALSConfig:
    """Settings of :class:`~hybridrec.recall.als.ALS`, whose docstring says what they mean.

    ``target`` is t of the objective: 1, except in implicit's parametrisation.
    """

    factors: int = 64
    alpha: float = 1.0
    unobserved_weight: float = 0.3
    regularization: float = 0.01
    regularization_power: float = 1.0
    target: float = 1.0
    epochs: int = 15
    solver: str = "cg"
    cg_steps: int = 3
    half_life: float | str | None = "auto"
    index: str = "exact"
    seed: int = 0
    name: str = "als"

    def __post_init__(self) -> None:
        whole_number("factors", self.factors, least=1, most=4096)
        real_number("alpha", self.alpha, above=0.0)
        real_number("unobserved_weight", self.unobserved_weight, least=0.0)
        real_number("regularization", self.regularization, least=0.0)
        real_number("regularization_power", self.regularization_power, least=0.0)
        real_number("target", self.target, above=0.0)
        whole_number("epochs", self.epochs, least=1)
        one_of("solver", self.solver, ("cg", "cholesky"))
        whole_number("cg_steps", self.cg_steps, least=1, most=1000)
        check_half_life(self.half_life)
        if not isinstance(self.index, str) or not self.index:
            raise InputTypeError(
                f"index is {self.index!r}; wanted 'exact' or a FAISS factory string"
            )
        whole_number("seed", self.seed)
        check_name(self.name)

    def ridge(self, events: NDArray[np.int64], others: int) -> NDArray[np.float64]:
        """(rows,) what regularises each row: λ (events + unobserved_weight · others) ^ power."""
        scale = (events + self.unobserved_weight * others) ** self.regularization_power
        return np.asarray(self.regularization * scale, dtype=np.float64)


def half_sweep(
    rows: Ragged,
    other: Scores,
    gram: Scores,
    config: ALSConfig,
    *,
    side: str,
    start: Scores | None = None,
    catalogue: int | None = None,
    threads: int,
) -> Scores:
    """Solve every row's factor with the other side held fixed.

    Args:
        rows: who took what: codes of rows of ``other``.
        other: (J, F) the factors held fixed.
        gram: (F, F), ``other' other``.
        config: the objective, and the solver used where there is a ``start``.
        side: what a row is, for the error.
        start: (rows, F) where conjugate gradients begin; None solves exactly.
        catalogue: rows of ``other`` that the regularisation counts; None counts them all.
        threads: the result has the same bits for any number.

    Returns:
        (rows, F) float32. A row with no events gets zeros.

    Raises:
        FitError: a normal matrix is not positive definite; names the first such row.
    """
    system = (
        rows.indptr,
        rows.items,
        rows.weights,
        other,
        np.float32(config.unobserved_weight) * gram,
        config.ridge(rows.lengths, catalogue or len(other)).astype(np.float32),
    )
    alpha, target = config.alpha, config.target
    if start is not None and config.solver == "cg":
        return _core.solve_cg(
            *system,
            alpha=alpha,
            target=target,
            start=start,
            steps=config.cg_steps,
            threads=threads,
        )
    try:
        return _core.solve_cholesky(*system, alpha=alpha, target=target, threads=threads)
    except _core.NotPositiveDefiniteError as error:
        raise FitError(
            f"{side} side: {error}; raise regularization (now {config.regularization:g}) or lower "
            f"factors (now {config.factors})"
        ) from error


def transposed(rows: Ragged, n_items: int) -> Ragged:
    """The rows of each item: who took it, in order of the users; repeats are kept."""
    weights = np.ones(len(rows.items), np.bool_) if rows.weights is None else rows.weights
    columns = csr_array((weights, rows.items, rows.indptr), shape=(len(rows), n_items)).tocsc()
    return Ragged(
        columns.indptr.astype(np.int64),
        columns.indices.astype(np.int32),
        None if rows.weights is None else columns.data,
    )


def aligned(new: Scores, old: Scores) -> Scores:
    """``new`` (I, F) rotated onto ``old`` (J <= I, F), over the rows that neither leaves at zero.

    Orthogonal Procrustes: inner products within ``new`` stay as they are.
    """
    known = new[: len(old)].any(axis=1) & old.any(axis=1)
    cross = new[: len(old)][known].astype(np.float64).T @ old[known].astype(np.float64)
    left, _, right = np.linalg.svd(cross)
    return np.ascontiguousarray(new @ (left @ right).astype(np.float32))


def loss(rows: Ragged, users: Scores, items: Scores, config: ALSConfig) -> float:
    """The objective that ALS minimises, on users (U, F) and items (I, F). O(nnz·F) time."""
    weights = np.ones(len(rows.items), np.float32) if rows.weights is None else rows.weights
    row_of = rows.row_of()
    total = 0.0
    step = max(1, _CELLS // config.factors)
    for start in range(0, len(rows.items), step):
        part = slice(start, start + step)
        fit = np.einsum("nf,nf->n", users[row_of[part]], items[rows.items[part]])
        gap = config.target - fit.astype(np.float64)
        total += float((config.alpha * weights[part] * gap**2).sum())
    # The sum over all pairs of (x.y)^2, without making the pairs.
    users64, items64 = users.astype(np.float64), items.astype(np.float64)
    every = float(((users64.T @ users64) * (items64.T @ items64)).sum())
    taken = np.bincount(rows.items, minlength=len(items))
    penalty = float(config.ridge(rows.lengths, len(items)) @ (users64**2).sum(axis=1))
    penalty += float(config.ridge(taken, len(users)) @ (items64**2).sum(axis=1))
    return total + config.unobserved_weight * every + penalty
