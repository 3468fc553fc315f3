"""Grown trees as arrays, scored without LightGBM: many candidates through few small trees.

Lucchese et al., "QuickScorer" (SIGIR 2015): every node whose condition fails rules out the leaves
to its left, all nodes are asked in any order, and the first leaf left is where the candidate ends.
One node is asked of all candidates at once, so nothing branches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hybridrec.checks import StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hybridrec.ragged import Scores

MOST_LEAVES = 64
"""Leaves that fit in the bits of a word."""
_PLACES = 67
"""2 is a primitive root of this prime: the powers of two below 2^66 leave different remainders."""
_BLOCK = 512
"""Candidates that are scored at once: their features and leaves stay in cache."""


class Forest(NamedTuple):
    """T trees; the score of a candidate is the sum of the leaves it ends in, in order.

    Attributes:
        features: (nodes,) int64, the feature that a node asks for.
        thresholds: (nodes,) float64; a value above it rules out the leaves to the left.
        kept: (nodes,) uint64, a bit a leaf: those that are left then.
        starts: (T + 1,) int64; tree t has nodes ``starts[t]:starts[t + 1]``.
        leaves: (T, 67) float64; the leaf of bit 2^n, counted from the left, stands at 2^n mod 67.
    """

    features: NDArray[np.int64]
    thresholds: NDArray[np.float64]
    kept: NDArray[np.uint64]
    starts: NDArray[np.int64]
    leaves: NDArray[np.float64]

    @classmethod
    def from_text(cls, text: str) -> Forest:
        """The trees of a LightGBM model in its text format.

        Raises:
            StorageError: not such a text, or trees of a kind that is not grown here.
        """
        try:
            trees = [_Tree.of(part) for part in _parts(text)]
        except (KeyError, ValueError, IndexError, RecursionError) as error:
            raise StorageError(f"the trees of this model cannot be read: {error!r}") from error
        width = max((len(tree.leaves) for tree in trees), default=1)
        if width > MOST_LEAVES:
            raise StorageError(f"a tree has {width} leaves; wanted at most {MOST_LEAVES}")
        leaves = np.zeros((len(trees), _PLACES))
        for row, tree in zip(leaves, trees, strict=True):
            row[[2**place % _PLACES for place in range(len(tree.leaves))]] = tree.leaves
        nodes = [node for tree in trees for node in tree.nodes]
        return cls(
            np.array([feature for feature, _, _ in nodes], dtype=np.int64),
            np.array([threshold for _, threshold, _ in nodes], dtype=np.float64),
            np.array([kept & (2**64 - 1) for _, _, kept in nodes], dtype=np.uint64),
            np.concatenate([[0], np.cumsum([len(tree.nodes) for tree in trees])]).astype(np.int64),
            leaves,
        )

    def score(self, table: Scores) -> NDArray[np.float64]:
        """(n,) float64 sums for the candidates of ``table`` (F, n), a feature a row.

        What LightGBM predicts, to the bit. O(n * nodes) time.
        """
        out: NDArray[np.float64] = np.zeros(table.shape[1])
        _score(*self, table, out, np.empty(_BLOCK, dtype=np.uint64))
        return out


class _Tree(NamedTuple):
    """Nodes as (feature, threshold, leaves kept above it), and the leaves from left to right."""

    nodes: list[tuple[int, float, int]]
    leaves: list[float]

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> _Tree:
        if int(fields["num_cat"]) or int(fields.get("is_linear", "0")):
            raise ValueError("trees with categories or linear leaves are not grown here")
        values = [float(value) for value in fields["leaf_value"].split()]
        if int(fields["num_leaves"]) == 1:
            return cls([], values)
        left, right, feature = (
            [int(value) for value in fields[name].split()]
            for name in ("left_child", "right_child", "split_feature")
        )
        threshold = [float(value) for value in fields["threshold"].split()]
        if {int(kind) & ~2 for kind in fields["decision_type"].split()} != {0}:
            raise ValueError("trees that tell missing values apart are not grown here")
        tree = cls([], [])

        def visit(node: int) -> int:
            """Number the leaves below ``node`` in order; returns their bits."""
            if node < 0:
                tree.leaves.append(values[~node])
                return 1 << (len(tree.leaves) - 1)
            below = visit(left[node])
            tree.nodes.append((feature[node], threshold[node], ~below))
            return below | visit(right[node])

        visit(0)
        return tree


def _parts(text: str) -> list[dict[str, str]]:
    """The fields of every tree.

    Raises:
        ValueError: the text does not begin as LightGBM's does, or breaks off.
    """
    head, *parts = text.split("\nTree=")
    if not head.startswith("tree\n") or "end of trees" not in text:
        raise ValueError("not a LightGBM model in text format")
    return [
        dict(line.split("=", 1) for line in part.split("\n\n")[0].splitlines()[1:] if "=" in line)
        for part in parts
    ]


@njit(nogil=True, cache=True)
def _score(
    features: Any,
    thresholds: Any,
    kept: Any,
    starts: Any,
    leaves: Any,
    table: Any,
    out: Any,
    left: Any,
) -> None:
    """Add up the leaves of ``table`` (F, n) in ``out`` (n,); ``left`` (block,) is room for bits."""
    n = table.shape[1]
    every, one, places = np.uint64(2**64 - 1), np.uint64(1), np.uint64(_PLACES)
    for first in range(0, n, len(left)):
        size = min(len(left), n - first)
        for tree in range(len(starts) - 1):
            left[:size] = every
            for node in range(starts[tree], starts[tree + 1]):
                values = table[features[node], first : first + size]
                threshold, bits = thresholds[node], kept[node]
                for place in range(size):
                    left[place] &= bits if values[place] > threshold else every
            for place in range(size):
                lowest = left[place] & (~left[place] + one)
                out[first + place] += leaves[tree, lowest % places]
