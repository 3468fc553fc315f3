"""What lists are like as a whole, against the definitions written out item by item."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridrec.checks import InputError
from hybridrec.evaluation.lists import ListMetrics, gini, head_items, list_metrics

CATALOGUE = 7
rows = st.lists(
    st.lists(st.integers(0, CATALOGUE - 1), unique=True, max_size=5), min_size=1, max_size=6
)
counts = st.lists(st.integers(0, 9), min_size=CATALOGUE, max_size=CATALOGUE)


def slow_gini(values: list[float]) -> float:
    if not sum(values):
        return 0.0
    n, mean = len(values), sum(values) / len(values)
    return sum(abs(a - b) for a in values for b in values) / (n * n) / (2 * mean)


def slow_head(events: list[int]) -> set[int]:
    """Take the most popular item until the taken hold 80 % of the events."""
    head: set[int] = set()
    left = sorted(range(len(events)), key=lambda item: (-events[item], item))
    while sum(events[item] for item in head) < 0.8 * sum(events):
        head.add(left.pop(0))
    return head


@given(rows, counts, st.integers(1, 6))
def test_agrees_with_the_definitions(lists: list[list[int]], events: list[int], k: int) -> None:
    items = np.array([row + [-1] * (5 - len(row)) for row in lists], dtype=np.int32)
    got = list_metrics(items, np.array(events), k)
    shown = [item for row in lists for item in row[:k]]
    if not shown:
        assert (got.coverage, got.gini) == (0, 0)
        assert math.isnan(got.novelty)
        assert math.isnan(got.long_tail)
        return
    share = [(count + 1) / (sum(events) + CATALOGUE) for count in events]
    exposure = Counter(shown)
    assert got.coverage == len(exposure) / CATALOGUE
    assert got.novelty == pytest.approx(np.mean([-math.log2(share[item]) for item in shown]))
    assert got.gini == pytest.approx(slow_gini([exposure[item] for item in range(CATALOGUE)]))
    tail = set(range(CATALOGUE)) - slow_head(events)
    assert got.long_tail == pytest.approx(np.mean([item in tail for item in shown]))


@given(counts)
def test_the_head_holds_its_share_with_the_fewest_items(events: list[int]) -> None:
    assert set(np.flatnonzero(head_items(np.array(events)))) == slow_head(events)


def test_known_values() -> None:
    everything = np.arange(4, dtype=np.int32)[None]
    assert list_metrics(everything, np.array([1, 1, 1, 1]), 4) == ListMetrics(1.0, 2.0, 0.0, 0.0)
    same = np.zeros((9, 1), dtype=np.int32)
    got = list_metrics(same, np.array([97, 1, 1, 1]), 1)
    assert (got.coverage, got.gini, got.long_tail) == (0.25, 0.75, 0.0)
    assert got.novelty == pytest.approx(-math.log2(98 / 104))
    assert gini(np.zeros(3)) == 0.0


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"items\[0, 0\] is 4"):
        list_metrics(np.array([[4]]), np.ones(4, np.int64), 1)
    with pytest.raises(InputError, match="events has a negative"):
        list_metrics(np.array([[0]]), np.array([-1]), 1)
    with pytest.raises(InputError, match="k is 0"):
        list_metrics(np.array([[0]]), np.array([1]), 0)
