"""ALS on a GPU: the sweeps of :mod:`hybridrec.recall.als_solver` in batched torch operations.

The same code runs on the CPU, where the tests hold it against the compiled core. Rows of like
length are padded to one length and solved together, as many at a time as a memory budget allows.
Shapes: J rows of the side held fixed, F factors; R rows of a block, L events of the longest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding

from hybridrec.bars import track
from hybridrec.checks import FitError, one_of, resolved_device
from hybridrec.recall.als_solver import ALSConfig, transposed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hybridrec.ragged import Ragged, Scores

__all__ = ["factorise", "resolved"]

_LIKE = 1.25
"""How many times as long as the shortest the longest row of a block may be."""
_ROWS = 1 << 14
"""Factors that are turned at once, or whose products are added up before float64 takes over."""


def resolved(device: str) -> str:
    """The device that "auto", "cpu" or "cuda" stands for here: "cpu" or "cuda".

    Raises:
        InputError: "cuda" where torch sees no GPU, or another word.
    """
    one_of("device", device, ("auto", "cpu", "cuda"))
    return resolved_device("ALS", device, cuda=torch.cuda.is_available())


@torch.inference_mode()
def factorise(
    rows: Ragged, items: Scores, config: ALSConfig, *, device: str, budget: int | None = None
) -> Scores:
    """``config.epochs`` sweeps over both sides; the item factors that come out.

    What :func:`hybridrec.recall.als_solver.factorise` does, to rounding, on ``device``.

    Args:
        rows: U histories, not all of them empty.
        items: (I, F) float32, the start.
        config: the objective and the solver.
        device: "cpu", "cuda" or "auto".
        budget: bytes for the rows that are solved together, but at least for one event of a row;
            None takes a quarter of what is free on the GPU, 64 MiB on the CPU.

    Returns:
        (I, F) float32, on the axes of the start; zeros for an item nobody took.

    Raises:
        InputError: a device that is not there.
        FitError: a row cannot be solved, or the factors outgrew float32.

    O(nnz·F + (U + I)·F²) time an epoch with "cg", O(nnz·F² + (U + I)·F³) with "cholesky". Memory
    beside the budget: (U + I)·F floats, and 8 bytes an event, or 16 where there are weights.
    """
    device = resolved(device)
    takers = transposed(rows, len(items))
    sides = (
        _Side("user", rows, len(items), config, device),
        _Side("item", takers, len(rows), config, device),
    )
    x = torch.zeros((len(rows), items.shape[1]), device=device)
    y = torch.tensor(items, device=device)
    if budget is None:
        budget = torch.cuda.mem_get_info()[0] // 4 if device == "cuda" else 1 << 26
    of_users, of_items = (side.blocks(config, budget) for side in sides)
    # Both sides are turned together, half-sweep by half-sweep: in the end they are turned back.
    turned = torch.eye(items.shape[1], dtype=torch.float64, device=device)
    for _ in track(range(config.epochs), "ALS"):
        turned = turned @ _half_sweep(sides[0], of_users, x, y, config).double()
        turned = turned @ _half_sweep(sides[1], of_items, y, x, config).double()
    _turn(y, turned.T.float())
    return np.asarray(y.cpu().numpy())


@dataclass(frozen=True, eq=False)
class _Block:
    """Rows (R,) of a side that are solved together; their events are gathered ``width`` at a time.

    ``width`` is less than ``length``, the L of the block, only where R is 1.
    """

    rows: Tensor
    length: int
    width: int


class _Side:
    """The rows of one side and what regularises them, on the device."""

    def __init__(
        self, name: str, rows: Ragged, others: int, config: ALSConfig, device: str
    ) -> None:
        self.name = name
        self.lengths = rows.lengths
        self.indptr = torch.tensor(rows.indptr, device=device)
        self.items = torch.tensor(rows.items, device=device)
        self.weights = None if rows.weights is None else torch.tensor(rows.weights, device=device)
        ridge = config.ridge(rows.lengths, others).astype(np.float32)
        self.ridge = torch.tensor(ridge, device=device)

    def blocks(self, config: ALSConfig, budget: int) -> list[_Block]:
        """Every row that has events, in blocks of like length that fit into ``budget`` bytes."""
        event, row = _bytes(config)
        blocks = []
        for bucket in _alike(self.lengths):
            size = max(1, budget // (int(self.lengths[bucket[-1]]) * event + row))
            for start in range(0, len(bucket), size):
                part = bucket[start : start + size]
                length = width = int(self.lengths[part[-1]])
                if size == 1:
                    # A slab is still there while the next one is gathered.
                    width = min(length, max(1, (budget - row) // (2 * event)))
                blocks.append(_Block(torch.tensor(part, device=self.ridge.device), length, width))
        return blocks


class _Events:
    """The events of a block, to go through slab by slab and again.

    A slab is the factors (R, width, F) of ``other`` and c = alpha · weight (R, width), which is 0
    on the padding. A single slab is gathered once and kept.
    """

    def __init__(self, side: _Side, block: _Block, other: Tensor, alpha: float) -> None:
        self._side, self._block, self._other, self._alpha = side, block, other, alpha
        self._kept = list(self._slabs()) if block.width == block.length else None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._slabs() if self._kept is None else iter(self._kept)

    def _slabs(self) -> Iterator[tuple[Tensor, Tensor]]:
        side, block = self._side, self._block
        first, end = side.indptr[block.rows, None], side.indptr[block.rows + 1, None]
        for start in range(0, block.length, block.width):
            stop = min(block.length, start + block.width)
            place = first + torch.arange(start, stop, device=first.device)
            there = place < end
            place = torch.where(there, place, first)
            weights = there.float() if side.weights is None else side.weights[place] * there
            yield embedding(side.items[place], self._other), self._alpha * weights


def _half_sweep(
    side: _Side, blocks: list[_Block], x: Tensor, other: Tensor, config: ALSConfig
) -> Tensor:
    """Solve ``x`` (rows, F) against ``other`` (J, F), both in place.

    Returns:
        (F, F) float32: the axes that both were turned to, where what rows share is diagonal.
    """
    spectrum, axes = _principal(other, config)
    shared = (config.everywhere * spectrum).float()
    _turn(other, axes)
    x.masked_fill_((side.indptr.diff() == 0)[:, None], 0.0)
    solve = partial(_exact, config=config)
    if config.solver == "cg":
        _turn(x, axes)
        solve = partial(_improved, config=config, steps=config.steps[side.name])
    lost = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for block in blocks:
        diagonal = shared + side.ridge[block.rows, None]
        # The events have no name here: they must be gone before the next block's are gathered.
        x[block.rows], lost[block.rows] = solve(
            _Events(side, block, other, config.alpha), diagonal, x[block.rows]
        )
    if lost.any():
        raise FitError(
            f"{side.name} side: the normal matrix of row {int(lost.nonzero()[0])} is not positive "
            f"definite in float32; raise regularization (now {config.regularization:g}) or lower "
            f"factors (now {config.factors})"
        )
    return axes


def _improved(
    events: _Events, diagonal: Tensor, x: Tensor, config: ALSConfig, steps: int
) -> tuple[Tensor, Tensor]:
    """``steps`` conjugate-gradient steps from ``x`` (R, F) on every row of a block, over-relaxed.

    Solves (diag(``diagonal``) + Σ c y y') x = Σ c t y, preconditioned by the diagonal. A row stops
    where float32 tells no more. Returns x, and (R,) where that failed: nowhere.
    """
    first = x
    # An axis that nothing holds moves by its events alone.
    inverse = torch.where(diagonal > 0, 1 / diagonal, 1.0)
    residual = -diagonal * x
    for y, c in events:
        residual += _sums(y, c * (config.target - _dots(y, x)))
    p = inverse * residual
    rz = (residual * p).sum(1)
    live = torch.ones_like(rz, dtype=torch.bool)
    for step in range(1, steps + 1):
        last = step == steps
        ap = diagonal * p
        curvature = (p * ap).sum(1)
        for y, c in events:
            along = _dots(y, p)
            curvature += (c * along**2).sum(1)
            if not last:
                ap += _sums(y, c * along)
        size = rz / curvature
        live &= (curvature > 0) & size.isfinite()
        x = torch.where(live[:, None], x + size[:, None] * p, x)
        if last:
            break
        residual -= size[:, None] * ap
        z = inverse * residual
        before, rz = rz, (residual * z).sum(1)
        live &= rz > 0
        p = z + (rz / before)[:, None] * p
    far = torch.where(first.any(1), config.relaxation, 1.0)
    return first + far[:, None] * (x - first), torch.zeros_like(live)


def _exact(
    events: _Events, diagonal: Tensor, x: Tensor, config: ALSConfig
) -> tuple[Tensor, Tensor]:
    """The same systems solved by Cholesky, wherever ``x`` is: the solution, and where it failed."""
    a = torch.diag_embed(diagonal)
    b = torch.zeros_like(diagonal)
    for y, c in events:
        a.baddbmm_(y.mT, c[:, :, None] * y)
        b += _sums(y, config.target * c)
    factor, failed = torch.linalg.cholesky_ex(a)
    # As the compiled core does: a pivot lost in the rounding of its diagonal is no pivot.
    pivots = factor.diagonal(dim1=1, dim2=2) ** 2
    kept = pivots > torch.finfo(a.dtype).eps * a.diagonal(dim1=1, dim2=2)
    solved = torch.cholesky_solve(b[:, :, None], factor)[:, :, 0]
    return solved, (failed != 0) | ~kept.all(1)


def _dots(y: Tensor, x: Tensor) -> Tensor:
    """(R, L): y.x of every event, from (R, L, F) and (R, F)."""
    return torch.bmm(y, x[:, :, None])[:, :, 0]


def _sums(y: Tensor, s: Tensor) -> Tensor:
    """(R, F): Σ s y over the events, from (R, L, F) and (R, L)."""
    return torch.bmm(s[:, None, :], y)[:, 0]


def _principal(factors: Tensor, config: ALSConfig) -> tuple[Tensor, Tensor]:
    """The Gramian of ``factors`` (J, F) by its axes: (F,) float64 >= 0, and (F, F) float32."""
    width = factors.shape[1]
    gram = torch.zeros((width, width), dtype=torch.float64, device=factors.device)
    for part in torch.split(factors, _ROWS):
        gram += part.T @ part
    if not gram.isfinite().all():
        raise FitError(
            "the factors are not finite: scale the weights down or raise regularization (now "
            f"{config.regularization:g})"
        )
    spectrum, axes = torch.linalg.eigh(gram)
    # Rounding may leave an eigenvalue of nothing just below 0.
    return spectrum.clamp(min=0.0), axes.float()


def _turn(factors: Tensor, axes: Tensor) -> None:
    """``factors`` (J, F) times ``axes`` (F, F), in place."""
    for part in torch.split(factors, _ROWS):
        part.copy_(part @ axes)


def _alike(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The rows that have events by length, in parts of like length."""
    order = np.argsort(lengths, kind="stable")[np.count_nonzero(lengths == 0) :]
    steps = np.ceil(np.log(lengths[order]) / math.log(_LIKE))
    return np.split(order, np.flatnonzero(np.diff(steps)) + 1)


def _bytes(config: ALSConfig) -> tuple[int, int]:
    """What an event and a row take while a block is solved, work space of the solver included."""
    factor = 4 * config.factors
    if config.solver == "cg":
        return factor + 48, 12 * factor
    return 2 * factor + 48, 4 * factor * config.factors
