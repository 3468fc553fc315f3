"""The blend against a dictionary that does the same slowly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridrec.candidates import Candidates, Queries
from hybridrec.checks import InputError
from hybridrec.ragged import Ragged
from hybridrec.recall.blend import Blend


class Fixed:
    """A recaller with a fixed score for each item."""

    half_life = None
    half_lives = ()

    def __init__(self, name, scores):
        self.name = name
        self.scores = np.asarray(scores, dtype=np.float32)

    def score(self, queries, items):
        return np.where(items >= 0, self.scores[items], -np.inf).astype(np.float32)

    def recall(self, queries, k):
        n = len(self.scores)
        items = np.tile(np.arange(n, dtype=np.int32), (len(queries), 1))
        for row in range(len(queries)):
            seen = queries.exclude.items[
                queries.exclude.indptr[row] : queries.exclude.indptr[row + 1]
            ]
            items[row, seen] = -1
        return Candidates.ranked(items, self.score(queries, items)).head(k)


def slow_blend(lists, weights, depth):
    total = {}
    for candidates, weight in zip(lists, weights, strict=True):
        told = len(set(candidates)) > 0 and weight > 0
        for rank, item in enumerate(candidates, start=1):
            if told:
                total[item] = total.get(item, 0.0) + weight / (60 + rank)
    return sorted(total, key=lambda item: (-total[item], item))[:depth]


def queries_of(seen, n_items):
    history = Ragged.from_rows(seen)
    return Queries(history, n_items, exclude=history)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_agrees_with_a_dictionary(data):
    n_items = data.draw(st.integers(2, 25))
    depth = data.draw(st.integers(1, 30))
    count = data.draw(st.integers(1, 4))
    weights = [data.draw(st.sampled_from([0.5, 1.0, 2.0])) for _ in range(count)]
    recallers = [
        Fixed(f"r{place}", data.draw(st.permutations(range(n_items)))) for place in range(count)
    ]
    seen = [data.draw(st.lists(st.integers(0, n_items - 1), unique=True)) for _ in range(3)]
    queries = queries_of(seen, n_items)
    blend = Blend(recallers, {r.name: w for r, w in zip(recallers, weights, strict=True)})
    found = blend.candidates(queries, depth)
    assert found.items.shape == (3, depth)
    for row in range(3):
        lists = [r.recall(queries, depth).items[row] for r in recallers]
        lists = [[item for item in one.tolist() if item >= 0] for one in lists]
        expected = slow_blend(lists, weights, depth)
        got = [item for item in found.items[row].tolist() if item >= 0]
        assert got == expected
        for recaller in recallers:
            np.testing.assert_array_equal(
                found.signals[recaller.name][row, : len(got)], recaller.scores[got]
            )


def test_a_list_without_order_takes_no_part():
    told = Fixed("told", [1, 2, 3, 4])
    flat = Fixed("flat", [0, 0, 0, 0])
    queries = queries_of([[]], 4)
    assert Blend([flat, told]).candidates(queries, 4).items.tolist() == [[3, 2, 1, 0]]
    assert Blend([flat]).candidates(queries, 4).items.tolist() == [[0, 1, 2, 3]]


def test_names_and_weights_are_checked():
    recaller = Fixed("a", [1, 2])
    with pytest.raises(InputError, match="a name of its own"):
        Blend([recaller, recaller])
    with pytest.raises(InputError, match="at least one"):
        Blend([])
    with pytest.raises(InputError, match="weights"):
        Blend([recaller], {"b": 1.0})
    with pytest.raises(InputError, match="weights"):
        Blend([recaller], {"a": -1.0})
