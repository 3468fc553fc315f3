"""Linear transitions against least squares over states that are written out."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridrec import (
    FitError,
    InputError,
    InputTypeError,
    LinearTransitions,
    Queries,
    Ragged,
)
from hybridrec.recall import item_tables

I = 7  # noqa: E741


@dataclass
class Data:
    histories: Ragged
    n_items: int = I
    texts: None = None
    ordered: bool = True


def every_score(model, queries):
    """(B, I) what the model says of every item."""
    catalogue = np.tile(np.arange(queries.n_items, dtype=np.int32), (len(queries), 1))
    return model.score(queries, catalogue)


rows_of_items = st.lists(st.lists(st.integers(0, I - 1), max_size=9), min_size=1, max_size=8)


@settings(max_examples=80, deadline=None)
@given(
    rows=rows_of_items,
    asked=rows_of_items,
    regularization=st.sampled_from([0.5, 3.0, 100.0]),
    memory=st.sampled_from([0.5, 3.0, 50.0]),
    half_life=st.sampled_from([None, 0.5, 3.0]),
    seed=st.integers(0, 9),
)
def test_scores_are_least_squares(rows, asked, regularization, memory, half_life, seed):
    histories = Ragged.from_rows(rows)
    model = LinearTransitions(regularization, memory=memory, half_life=half_life)
    model.fit(Data(histories))
    asked = Ragged.from_rows(asked)
    weights = np.random.default_rng(seed).uniform(0.5, 2, len(asked.items)).astype(np.float32)
    queries = Queries(replace(asked, weights=weights), I)
    table = reference.item_weights_linear_transitions(histories, I, regularization, memory)
    wanted = reference.history_scores(table, queries.histories, half_life)
    got = every_score(model, queries)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    best = model.recall(queries, I)
    np.testing.assert_array_equal(best.scores, -np.sort(-got, axis=1))


def test_long_histories_forget_and_nothing_else_changes():
    # Longer than 24 half-lives: what the kernel leaves out is below float32.
    rng = np.random.default_rng(1)
    histories = Ragged.from_rows([rng.integers(0, I, 90) for _ in range(3)])
    model = LinearTransitions(5.0, memory=0.7, half_life=None).fit(Data(histories))
    got = every_score(model, Queries(Ragged.from_rows(np.arange(I)[:, None]), I))
    wanted = reference.item_weights_linear_transitions(histories, I, 5.0, 0.7)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)


def test_items_that_come_together_share_what_follows():
    rows = [[0, 1, 2]] * 50 + [[1, 0, 2]] * 50
    model = LinearTransitions(1e-3, memory=1e6, half_life=None)
    model.fit(Data(Ragged.from_rows(rows)))
    both = every_score(model, Queries(Ragged.from_rows([[0, 1]]), I))[0, 2]
    # 2 never follows 0 or 1 alone, always follows both: b each minimises 2·50 b² + 100 (2b - 1)².
    np.testing.assert_allclose(both, 0.8, atol=1e-3)


def test_max_items_keeps_the_distances_between_those_kept():
    rows = [[0, 5, 1, 2], [0, 1, 2], [2, 6, 0], [1, 2, 0]]
    got = LinearTransitions(1.0, max_items=3, half_life=None)
    got.fit(Data(Ragged.from_rows(rows)))
    scores = every_score(got, Queries(Ragged.from_rows([[0], [5]]), I))
    assert not scores[:, 3:].any()
    assert not scores[1].any()
    apart = [[0, 1, 2] if row == [0, 5, 1, 2] else row for row in rows]
    other = LinearTransitions(1.0, max_items=3, half_life=None)
    other.fit(Data(Ragged.from_rows(apart)))
    assert (every_score(other, Queries(Ragged.from_rows([[0]]), I)) != scores[:1]).any()


def test_histories_without_order_are_refused_with_a_remedy():
    data = Data(Ragged.from_rows([[0, 1]]), ordered=False)
    with pytest.raises(FitError, match=r"'linear transitions' was given.*time=\.\.\."):
        LinearTransitions().fit(data)
    model = LinearTransitions().fit(replace(data, ordered=True))
    asked = Queries(data.histories, I, ordered=False)
    with pytest.raises(InputError, match=r"unordered histories.*time=\.\.\."):
        model.recall(asked, 3)
    with pytest.raises(InputError, match="unordered histories"):
        model.score(asked, np.zeros((1, 1), np.int32))


def test_a_catalogue_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(item_tables, "_MOST_ITEMS", 3)
    data = Data(Ragged.from_rows([[0, 1], [2, 4]]))
    with pytest.raises(FitError, match=r"'linear transitions' would hold 4 x 4.*max_items="):
        LinearTransitions().fit(data)
    LinearTransitions(max_items=4).fit(data)


@pytest.mark.parametrize("rows", [[[], []], [[3]]])
def test_nothing_that_follows_is_answered_with_zeros(rows):
    model = LinearTransitions().fit(Data(Ragged.from_rows(rows)))
    assert not every_score(model, Queries(Ragged.from_rows([[0, 3], []]), I)).any()


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"regularization": 0}, InputError),
        ({"regularization": float("nan")}, InputError),
        ({"memory": 0}, InputError),
        ({"memory": float("inf")}, InputError),
        ({"memory": None}, InputTypeError),
        ({"max_items": 0}, InputError),
        ({"half_life": 0}, InputError),
        ({"half_life": "soon"}, InputError),
        ({"name": ""}, InputTypeError),
    ],
)
def test_nonsense_is_refused_when_made(setting, error):
    with pytest.raises(error, match=next(iter(setting))):
        LinearTransitions(**setting)
