"""TextBridge against a ridge regression that is solved anew for every item it leaves out."""

import numpy as np
import pytest

from hybridrec.candidates import Queries
from hybridrec.ragged import Ragged
from hybridrec.recall.text_bridge import TextBridge

ITEMS, WIDTH, MET = 24, 5, 18


class Known:
    """A recaller whose scores are given."""

    name = "known"
    half_life = 2.0

    def __init__(self, scores):
        self._scores = scores

    def score(self, queries, items):
        rows = self._scores[queries.users]
        return np.where(items >= 0, np.take_along_axis(rows, items.astype(int), 1), -np.inf)


@pytest.fixture
def scene():
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(ITEMS, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[[4, 20]] = 0
    events = np.where(np.arange(ITEMS) < MET, rng.integers(1, 60, ITEMS), 0)
    scores = rng.normal(size=(7, ITEMS)).astype(np.float32)
    queries = Queries(
        Ragged.from_rows([[0]] * 7),
        ITEMS,
        np.arange(7, dtype=np.int32),
        Ragged.from_rows([[1]] * 7),
    )
    return vectors, events, scores, queries


def slow(vectors, events, scores, item, *, regularization=3.0):
    """(B,) what the other items with events say of ``item``."""
    x = np.concatenate([vectors, (vectors != 0).any(axis=1)[:, None]], axis=1).astype(np.float64)
    others = np.array([other for other in range(ITEMS) if events[other] and other != item])
    weight = events[others] / (events[others] + 20.0)
    penalty = np.array([regularization] * WIDTH + [regularization * 1e-3])
    rows = x[others] * np.sqrt(weight)[:, None]
    wanted = scores[:, others].astype(np.float64) * np.sqrt(weight)
    full = np.concatenate([rows, np.diag(np.sqrt(penalty))])
    wanted = np.concatenate([wanted.T, np.zeros((WIDTH + 1, len(scores)))])
    solved = np.linalg.lstsq(full, wanted, rcond=None)[0]
    return x[item] @ solved


def test_every_item_is_predicted_from_the_others(scene):
    vectors, events, scores, queries = scene
    bridge = TextBridge(Known(scores), vectors, events)
    items = np.tile(np.arange(ITEMS, dtype=np.int32), (7, 1))
    wanted = np.stack([slow(vectors, events, scores, item) for item in range(ITEMS)], axis=1)
    np.testing.assert_allclose(bridge.score(queries, items), wanted, atol=2e-5)
    assert (wanted[:, 20] == 0).all()


def test_an_items_own_score_says_nothing_of_it(scene):
    vectors, events, scores, queries = scene
    items = np.full((7, 1), 9, dtype=np.int32)
    before = TextBridge(Known(scores), vectors, events).score(queries, items)
    other = scores.copy()
    other[:, 9] += 100
    after = TextBridge(Known(other), vectors, events).score(queries, items)
    np.testing.assert_allclose(after, before, atol=1e-3)


def test_recall_is_the_top_of_the_scores_without_what_is_excluded(scene):
    vectors, events, scores, queries = scene
    bridge = TextBridge(Known(scores), vectors, events)
    found = bridge.recall(queries, 6)
    items = np.tile(np.arange(ITEMS, dtype=np.int32), (7, 1))
    every = bridge.score(queries, items)
    every[:, 1] = -np.inf
    np.testing.assert_array_equal(found.items, np.argsort(-every, axis=1, kind="stable")[:, :6])
    assert bridge.name == "known, by text"
    assert bridge.half_lives == ()


def test_padding_scores_minus_infinity(scene):
    vectors, events, scores, queries = scene
    items = np.full((7, 2), -1, dtype=np.int32)
    assert (TextBridge(Known(scores), vectors, events).score(queries, items) == -np.inf).all()
