"""The mathematics of ALS: its settings, the sweeps, its loss, and how two fits are aligned."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hybridrec import _core
from hybridrec.bars import track
from hybridrec.checks import FitError, InputTypeError, one_of, real_number, whole_number
from hybridrec.ragged import Ragged
from hybridrec.recall.blas import blas_threads
from hybridrec.recall.promises import check_half_life, check_name

if TYPE_CHECKING:
    from hybridrec.ragged import Scores

_CELLS = 1 << 22
"""Floats gathered at once to sum the loss: 16 MiB of float32."""

_MOST_UNOBSERVED = 0.3
_UNOBSERVED_A_SHARE = 5.0
"""What every pair counts over the share of pairs that is observed, up to the most it may count."""


@dataclass(frozen=True, kw_only=True)
class ALSConfig:
    """Settings of :class:`~hybridrec.recall.als.ALS`, whose docstring says what they mean.

    ``target`` is t of the objective: 1, except in implicit's parametrisation.
    """

    factors: int = 64
    alpha: float = 1.0
    unobserved_weight: float | None = None
    regularization: float = 0.01
    regularization_power: float = 1.0
    target: float = 1.0
    epochs: int = 15
    solver: str = "cg"
    user_steps: int = 3
    item_steps: int = 1
    relaxation: float = 1.4
    half_life: float | str | None = "auto"
    index: str = "exact"
    seed: int = 0
    name: str = "als"

    def __post_init__(self) -> None:
        whole_number("factors", self.factors, least=1, most=4096)
        real_number("alpha", self.alpha, above=0.0)
        if self.unobserved_weight is not None:
            real_number("unobserved_weight", self.unobserved_weight, least=0.0)
        real_number("regularization", self.regularization, least=0.0)
        real_number("regularization_power", self.regularization_power, least=0.0)
        real_number("target", self.target, above=0.0)
        whole_number("epochs", self.epochs, least=1)
        one_of("solver", self.solver, ("cg", "cholesky"))
        whole_number("user_steps", self.user_steps, least=1, most=1000)
        whole_number("item_steps", self.item_steps, least=1, most=1000)
        real_number("relaxation", self.relaxation, above=0.0, below=2.0)
        check_half_life(self.half_life)
        if not isinstance(self.index, str) or not self.index:
            raise InputTypeError(
                f"index is {self.index!r}; wanted 'exact', 'auto' or a FAISS factory string"
            )
        whole_number("seed", self.seed)
        check_name(self.name)

    @property
    def steps(self) -> dict[str, int]:
        """Conjugate-gradient steps of a row of each side."""
        return {"user": self.user_steps, "item": self.item_steps}

    @property
    def everywhere(self) -> float:
        """What every pair counts; as much as it may where that was left to the data."""
        return _MOST_UNOBSERVED if self.unobserved_weight is None else self.unobserved_weight

    def settled(self, histories: Ragged, n_items: int) -> ALSConfig:
        """The same with what every pair counts settled by ``histories``, if that was left to them.

        Where few pairs are observed, 0.3 for each of the others drowns them: with a half per mille
        of pairs (Amazon games) NDCG@10 is .002, and .067 with this; with six per cent (MovieLens
        100k) 0.3 is the best there is.
        """
        if self.unobserved_weight is not None:
            return self
        users = int(np.count_nonzero(histories.lengths))
        items = int(np.count_nonzero(np.bincount(histories.items, minlength=n_items)))
        share = len(histories.items) / max(1, users * items)
        return replace(self, unobserved_weight=min(_MOST_UNOBSERVED, _UNOBSERVED_A_SHARE * share))

    def ridge(self, events: NDArray[np.int64], others: int) -> NDArray[np.float64]:
        """(rows,) what regularises each row: λ (events + unobserved_weight · others) ^ power."""
        scale = (events + self.everywhere * others) ** self.regularization_power
        return np.asarray(self.regularization * scale, dtype=np.float64)


class FixedSide:
    """One side's factors, held fixed while rows of the other side are solved against them.

    They are turned to the principal axes of their Gramian, where the part of the normal equations
    that all rows share is diagonal: inner products stay, and a row pays nothing for that part.

    Args:
        factors: (J, F) float32, C-contiguous; turned in place.
        config: the objective.
        threads: results have the same bits for any number.
        catalogue: rows that the regularisation counts; None counts them all.

    Attributes:
        axes: (F, F) float32, orthogonal: ``factors`` were multiplied by it.

    O(J·F² + F³) time, O(F²) memory.
    """

    def __init__(
        self, factors: Scores, config: ALSConfig, *, threads: int, catalogue: int | None = None
    ) -> None:
        self.factors = factors
        self._config = config
        self._threads = threads
        self._catalogue = len(factors) if catalogue is None else catalogue
        gram = _core.gram(factors, threads=threads).astype(np.float64)
        if not np.isfinite(gram).all():
            raise FitError(
                "the factors outgrew float32: scale the weights down or raise regularization "
                f"(now {config.regularization:g})"
            )
        # On one thread the axes have the same bits for any number of CPUs.
        with blas_threads(1):
            spectrum, axes = np.linalg.eigh(gram)
        self.axes = np.ascontiguousarray(axes, dtype=np.float32)
        # What rounding leaves of an eigenvalue of nothing is nothing.
        spectrum[spectrum < np.finfo(np.float32).eps * spectrum.max(initial=0.0)] = 0.0
        shared = config.everywhere * spectrum
        self._shared = shared.astype(np.float32)
        _core.rotate(factors, self.axes, threads=threads)

    def solve(self, rows: Ragged, *, side: str) -> Scores:
        """The exact factor of every row, on the principal axes.

        Args:
            rows: who took what: codes of rows of ``factors``.
            side: what a row is, for the error.

        Returns:
            (rows, F) float32. A row with no events gets zeros.

        Raises:
            FitError: a normal matrix is not positive definite; names the first such row.

        O(Σ min(n, F)·n·F + rows·min(n, F)³) time for rows of n events.
        """
        out = np.zeros((len(rows), self.factors.shape[1]), np.float32)
        try:
            _core.solve_exact(*self._system(rows), **self._scalars(), out=out)
        except _core.NotPositiveDefiniteError as error:
            raise FitError(
                f"{side} side: {error}; raise regularization (now {self._config.regularization:g}) "
                f"or lower factors (now {self._config.factors})"
            ) from error
        return out

    def improve(self, rows: Ragged, x: Scores, steps: int, *, side: str) -> None:
        """``steps`` conjugate-gradient steps from ``x``, over-relaxed, in place.

        ``x`` is (rows, F), on the principal axes before and after. The steps are preconditioned by
        the diagonal that is there without events. O((nnz + rows)·F) time a step.

        Raises:
            FitError: the equations of a row are beyond float32.
        """
        system, relaxation = self._system(rows), self._config.relaxation
        try:
            _core.solve_cg(*system, **self._scalars(), x=x, steps=steps, relaxation=relaxation)
        except OverflowError as error:
            raise FitError(f"{side} side: {error}: scale the weights down") from error

    def widened(self, n: int) -> FixedSide:
        """The same with ``n`` rows of zeros behind the last, which the regularisation ignores."""
        wide = copy.copy(self)
        zeros = np.zeros((n, self.factors.shape[1]), np.float32)
        wide.factors = np.concatenate([self.factors, zeros])
        return wide

    def _system(self, rows: Ragged) -> tuple[Any, ...]:
        ridge = self._config.ridge(rows.lengths, self._catalogue).astype(np.float32)
        return rows.indptr, rows.items, rows.weights, self.factors, self._shared, ridge

    def _scalars(self) -> dict[str, Any]:
        config = self._config
        return {"alpha": config.alpha, "target": config.target, "threads": self._threads}


def factorise(rows: Ragged, items: Scores, config: ALSConfig, *, threads: int) -> Scores:
    """``config.epochs`` sweeps over both sides; the item factors that come out.

    Args:
        rows: U histories, not all of them empty.
        items: (I, F) float32, the start.
        config: the objective and the solver.
        threads: results have the same bits for any number.

    Returns:
        (I, F) float32, on the axes of the start; zeros for an item nobody took.

    Raises:
        FitError: a row cannot be solved, or the factors outgrew float32.

    O(nnz·F + (U + I)·F²) time an epoch with "cg"; memory: the events once more, by item, and
    (U + I)·F floats.
    """
    takers = transposed(rows, len(items))
    items = items.copy()
    users = np.zeros((len(rows), items.shape[1]), np.float32)
    # Both sides are turned together, half-sweep by half-sweep: in the end they are turned back.
    turned = np.eye(items.shape[1])
    for _ in track(range(config.epochs), "ALS"):
        users, axes = _half_sweep(rows, users, items, config, "user", threads)
        turned = turned @ axes
        items, axes = _half_sweep(takers, items, users, config, "item", threads)
        turned = turned @ axes
    _core.rotate(items, np.ascontiguousarray(turned.T, dtype=np.float32), threads=threads)
    return items


def _half_sweep(
    rows: Ragged, x: Scores, other: Scores, config: ALSConfig, side: str, threads: int
) -> tuple[Scores, Scores]:
    """``x`` solved against ``other``, and the axes both were turned to. May write into both."""
    fixed = FixedSide(other, config, threads=threads)
    if config.solver == "cholesky":
        return fixed.solve(rows, side=side), fixed.axes
    _core.rotate(x, fixed.axes, threads=threads)
    fixed.improve(rows, x, config.steps[side], side=side)
    return x, fixed.axes


def transposed(rows: Ragged, n_items: int) -> Ragged:
    """The rows of each item: who took it, in order of the users; repeats are kept."""
    return Ragged(*_core.transpose(rows.indptr, rows.items, rows.weights, n_items))


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
    return total + config.everywhere * every + penalty
