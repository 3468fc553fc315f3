"""The kernel against metrics written the slow, obvious way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridrec.checks import InputError, InputTypeError
from hybridrec.evaluation.metrics import per_user
from hybridrec.ragged import Ragged


def slow(ranked: list[int], targets: list[int], k: int) -> tuple[float, float, float, float]:
    """hr, ndcg, mrr, recall of one user."""
    wanted = set(targets)
    hits = [rank for rank, item in enumerate(ranked[:k], start=1) if item in wanted]
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(wanted)) + 1))
    return (
        float(bool(hits)),
        sum(1 / math.log2(rank + 1) for rank in hits) / ideal,
        1 / hits[0] if hits else 0.0,
        len(hits) / len(wanted),
    )


user = st.tuples(
    st.lists(st.integers(0, 11), unique=True, max_size=8),
    st.lists(st.integers(0, 11), min_size=1, max_size=6),
)


@settings(deadline=None)  # the first call compiles the kernel
@given(st.lists(user, min_size=1, max_size=6), st.integers(1, 10))
def test_agrees_with_the_obvious_way(users: list[tuple[list[int], list[int]]], k: int) -> None:
    items = np.full((len(users), 8), -1, dtype=np.int32)
    for row, (ranked, _) in enumerate(users):
        items[row, : len(ranked)] = ranked
    got = per_user(items, Ragged.from_rows([targets for _, targets in users]), k)
    want = np.array([slow(ranked, targets, k) for ranked, targets in users]).T
    np.testing.assert_allclose([got.hr, got.ndcg, got.mrr, got.recall], want, rtol=1e-12)


def test_known_values() -> None:
    got = per_user(np.array([[5, 7, 9, -1]]), Ragged.from_rows([[9, 5]]), k=3)
    assert got.ndcg[0] == pytest.approx((1 + 0.5) / (1 + 1 / math.log2(3)))
    assert (got.hr[0], got.mrr[0], got.recall[0]) == (1, 1, 1)


def test_an_item_listed_twice_counts_once() -> None:
    got = per_user(np.array([[3, 3, 3]]), Ragged.from_rows([[3, 4]]), k=3)
    assert got.recall[0] == 0.5
    assert got.ndcg[0] <= 1


def test_read_only_and_wide_integers_are_taken() -> None:
    items = np.array([[1, 2]], dtype=np.int64)
    items.flags.writeable = False
    assert per_user(items, Ragged.from_rows([[2]]), k=5).mrr[0] == 0.5


def test_refusals() -> None:
    one = Ragged.from_rows([[0]])
    with pytest.raises(InputError, match=r"targets\[1\] is empty"):
        per_user(np.zeros((2, 3), np.int32), Ragged.from_rows([[0], []]), k=1)
    with pytest.raises(InputError, match="one ranked list a row"):
        per_user(np.zeros((2, 3), np.int32), one, k=1)
    with pytest.raises(InputError, match=r"targets\.items\[0\] is -1"):
        per_user(np.zeros((1, 3), np.int32), Ragged.from_rows([[-1]]), k=1)
    with pytest.raises(InputError, match="k is 0"):
        per_user(np.zeros((1, 3), np.int32), one, k=0)
    with pytest.raises(InputTypeError, match="dtype float64"):
        per_user(np.zeros((1, 3)), one, k=1)
