"""The kernel against metrics written the slow, obvious way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridrec.checks import InputError, InputTypeError
from hybridrec.evaluation.metrics import Metrics, TargetRanks, per_user
from hybridrec.ragged import Ragged


def slow(ranked: list[int], targets: list[int], k: int) -> tuple[float, ...]:
    """hr, ndcg, mrr, recall, map of one user."""
    wanted = set(targets)
    hits = [rank for rank, item in enumerate(ranked[:k], start=1) if item in wanted]
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(wanted)) + 1))
    return (
        float(bool(hits)),
        sum(1 / math.log2(rank + 1) for rank in hits) / ideal,
        1 / hits[0] if hits else 0.0,
        len(hits) / len(wanted),
        sum(place / rank for place, rank in enumerate(hits, start=1)) / len(wanted),
    )


user = st.tuples(
    st.lists(st.integers(0, 11), unique=True, max_size=8),
    st.lists(st.integers(0, 11), min_size=1, max_size=6),
)


def lists_of(users: list[tuple[list[int], list[int]]]) -> tuple[Any, Ragged]:
    """(B, 8) items and B rows of targets."""
    items = np.full((len(users), 8), -1, dtype=np.int32)
    for row, (ranked, _) in enumerate(users):
        items[row, : len(ranked)] = ranked
    return items, Ragged.from_rows([targets for _, targets in users])


def columns(got: Metrics) -> list[Any]:
    return [got.hr, got.ndcg, got.mrr, got.recall, got.map]


@settings(deadline=None)  # the first call compiles the kernel
@given(st.lists(user, min_size=1, max_size=6), st.integers(1, 10))
def test_agrees_with_the_obvious_way(users: list[tuple[list[int], list[int]]], k: int) -> None:
    got = per_user(*lists_of(users), k)
    want = np.array([slow(ranked, targets, k) for ranked, targets in users]).T
    np.testing.assert_allclose(columns(got), want, rtol=1e-12)


@settings(deadline=None)
@given(st.lists(user, min_size=1, max_size=6), st.integers(1, 10), st.integers(1, 10))
def test_ranks_tell_recall_at_every_depth_and_the_best_order(
    users: list[tuple[list[int], list[int]]], k: int, depth: int
) -> None:
    ranks = TargetRanks.of(*lists_of(users))
    recalls = [
        np.mean([slow(ranked, targets, d)[3] for ranked, targets in users])
        for d in range(1, depth + 1)
    ]
    np.testing.assert_allclose(ranks.recall_by_depth(depth), recalls, rtol=1e-12, atol=1e-15)
    ordered = [
        (sorted(ranked[:depth], key=lambda item: item not in targets), targets)
        for ranked, targets in users
    ]
    best = [slow(ranked, targets, k)[1] for ranked, targets in ordered]
    np.testing.assert_allclose(ranks.oracle_ndcg(k, depth), best, rtol=1e-12)


@settings(deadline=None, max_examples=200)
@given(st.lists(user, min_size=1, max_size=6), st.sampled_from([1, 3, 5, 10]), st.booleans())
def test_agrees_with_trec_eval_through_ir_measures(
    users: list[tuple[list[int], list[int]]], k: int, tied: bool
) -> None:
    """Users of many targets, lists shorter than k, empty lists, and scores that are all tied."""
    import ir_measures as measures

    if tied:  # trec_eval orders ties by falling id, we by rising code
        users = [(sorted(ranked), targets) for ranked, targets in users]
    qrels = [
        measures.Qrel(str(row), f"{99 - item}", 1)
        for row, (_, targets) in enumerate(users)
        for item in set(targets)
    ]

    def run(depth: int) -> list[Any]:
        return [
            measures.ScoredDoc(str(row), f"{99 - item}", 0.5 if tied else -float(rank))
            for row, (ranked, _) in enumerate(users)
            for rank, item in enumerate(ranked[:depth])
        ]

    # RR@k is MS MARCO's, which orders ties another way: trec_eval's RR of k documents is meant.
    cut = [measures.Success @ k, measures.nDCG @ k, measures.R @ k, measures.AP @ k]
    names = [*cut[:2], measures.RR, *cut[2:]]
    want = np.zeros((len(names), len(users)))
    for asked, documents in ((cut, run(8)), ([measures.RR], run(k))):
        for value in measures.iter_calc(asked, qrels, documents):
            want[names.index(value.measure), int(value.query_id)] = value.value
    np.testing.assert_allclose(columns(per_user(*lists_of(users), k)), want, rtol=0, atol=1e-9)


def test_known_values() -> None:
    got = per_user(np.array([[5, 7, 9, -1]]), Ragged.from_rows([[9, 5]]), k=3)
    assert got.ndcg[0] == pytest.approx((1 + 0.5) / (1 + 1 / math.log2(3)))
    assert (got.hr[0], got.mrr[0], got.recall[0]) == (1, 1, 1)
    assert got.map[0] == pytest.approx((1 + 2 / 3) / 2)


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
