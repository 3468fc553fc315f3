"""How histories are cut and put together for a transformer: integers only, no torch.

Shapes: B rows of a group, T events of its longest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hybridrec.ragged import Items, Ragged

__all__ = ["Group", "grouped", "padded", "steps", "training_windows"]

_ALIKE = 16
"""Windows of a step that are padded to one length."""


@dataclass(frozen=True, eq=False)
class Group:
    """Rows padded on the right to one length.

    Attributes:
        items: (B, T) int32 codes; 0 on the padding, which nothing before it ever reads.
        lengths: (B,) int64 events of each row, at least 1.
    """

    items: Items
    lengths: NDArray[np.int64]


def training_windows(histories: Ragged, length: int) -> tuple[NDArray[np.int64], ...]:
    """Windows that hold each event with its successor once: starts and sizes, both (W,).

    A window of n events is n - 1 pairs of an event and what followed it. Each history is cut from
    its newest end into windows of ``length`` pairs; what is left over is the oldest window.
    """
    pairs = np.maximum(histories.lengths - 1, 0)
    windows = -(-pairs // length)
    row = np.repeat(np.arange(len(histories)), windows)
    # 0 is the newest window of its history.
    age = np.arange(len(row)) - np.repeat(np.cumsum(windows) - windows, windows)
    last = histories.indptr[1:][row] - 1 - age * length
    starts = np.maximum(last - length, histories.indptr[:-1][row])
    return starts, last - starts + 1


def steps(
    sizes: NDArray[np.int64], batch: int, generator: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """The windows of an epoch, shuffled, in steps of about ``batch`` pairs: places in ``sizes``.

    Steps hold whole windows, and those of an epoch are of like size.
    """
    order = generator.permutation(len(sizes))
    total = np.cumsum(sizes[order] - 1)
    count = max(1, round(int(total[-1]) / batch))
    cuts = np.searchsorted(total, total[-1] * np.arange(1, count) / count)
    yield from (part for part in np.split(order, cuts) if len(part))


def grouped(items: Items, starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> Iterator[Group]:
    """Windows ``items[start:start + size]`` in groups of like size, so that little is padded."""
    order = np.argsort(sizes, kind="stable")
    for first in range(0, len(order), _ALIKE):
        rows = order[first : first + _ALIKE]
        yield padded(items, starts[rows], sizes[rows])


def padded(items: Items, starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> Group:
    """One group of the windows ``items[start:start + size]``, none of them empty."""
    step = np.arange(sizes.max())
    there = step < sizes[:, None]
    place = np.where(there, starts[:, None] + step, 0)
    return Group(np.where(there, items[place], 0).astype(np.int32), sizes)
