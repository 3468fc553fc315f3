"""Transitions against the definition spelled out in plain Python."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridrec import (
    DataSourceError,
    FitError,
    InputError,
    InputTypeError,
    ItemTransitions,
    Queries,
    Ragged,
    public,
    split,
)

I = 7  # noqa: E741


@dataclass
class Data:
    histories: Ragged
    n_items: int = I
    texts: None = None
    ordered: bool = True


def slow_table(rows, n_items, window, smoothing):
    table = np.zeros((n_items, n_items))
    counts = np.zeros(n_items)
    for row in rows:
        for here, a in enumerate(row):
            counts[a] += 1
            for gap in range(1, window + 1):
                if here + gap < len(row) and row[here + gap] != a:
                    table[a, row[here + gap]] += 1 / gap
    return table / np.sqrt(np.maximum(counts, 1) + smoothing)


def slow_scores(table, row, weights, half_life):
    score = np.zeros(len(table))
    for here, item in enumerate(row):
        since = len(row) - 1 - here
        recency = 1.0 if half_life is None else 0.5 ** (since / half_life)
        score += weights[here] * recency * table[item]
    return score


def every_score(model, queries):
    """(B, I) what the model says of every item."""
    catalogue = np.tile(np.arange(queries.n_items, dtype=np.int32), (len(queries), 1))
    return model.score(queries, catalogue)


rows_of_items = st.lists(st.lists(st.integers(0, I - 1), max_size=9), min_size=1, max_size=6)


@settings(max_examples=80, deadline=None)
@given(
    rows=rows_of_items,
    asked=rows_of_items,
    window=st.integers(1, 12),
    smoothing=st.sampled_from([0.0, 1.0, 20.0]),
    half_life=st.sampled_from([None, 0.5, 3.0]),
    seed=st.integers(0, 9),
)
def test_scores_are_the_definition(rows, asked, window, smoothing, half_life, seed):
    model = ItemTransitions(window=window, smoothing=smoothing, half_life=half_life)
    model.fit(Data(Ragged.from_rows(rows)))
    histories = Ragged.from_rows(asked)
    weights = np.random.default_rng(seed).uniform(0.5, 2, len(histories.items)).astype(np.float32)
    queries = Queries(replace(histories, weights=weights), I)
    table = slow_table(rows, I, window, smoothing)
    wanted = [
        slow_scores(table, row, weights[start:], half_life)
        for row, start in zip(asked, histories.indptr, strict=False)
    ]
    got = every_score(model, queries)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)
    best = model.recall(queries, I)
    np.testing.assert_array_equal(best.scores, -np.sort(-got, axis=1))


def test_order_counts_and_an_item_does_not_follow_itself():
    model = ItemTransitions(window=2, smoothing=0).fit(Data(Ragged.from_rows([[0, 0, 1, 2]])))
    asked = Queries(Ragged.from_rows([[0], [1], [2]]), I)
    #  0 -> 1 at gaps 2 and 1, 0 -> 2 at gap 2; 1 -> 2 at gap 1; nothing follows 2.
    wanted = np.zeros((3, I), dtype=np.float32)
    wanted[0, 1], wanted[0, 2], wanted[1, 2] = 1.5, 0.5, 1.0
    np.testing.assert_array_equal(every_score(model, asked), wanted)


def test_one_users_last_event_does_not_lead_to_the_next_users_first():
    model = ItemTransitions().fit(Data(Ragged.from_rows([[0, 1], [], [2, 3]])))
    scores = every_score(model, Queries(Ragged.from_rows([[1]]), I))
    assert not scores.any()


def test_histories_without_order_are_refused_with_a_remedy():
    data = Data(Ragged.from_rows([[0, 1]]), ordered=False)
    with pytest.raises(FitError, match=r"'item transitions' was given.*time=\.\.\."):
        ItemTransitions().fit(data)
    model = ItemTransitions().fit(replace(data, ordered=True))
    asked = Queries(data.histories, I, ordered=False)
    with pytest.raises(InputError, match=r"unordered histories.*time=\.\.\."):
        model.recall(asked, 3)
    with pytest.raises(InputError, match="unordered histories"):
        model.score(asked, np.zeros((1, 1), np.int32))


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"window": 0}, InputError),
        ({"window": 2.5}, InputTypeError),
        ({"smoothing": -1}, InputError),
        ({"smoothing": float("nan")}, InputError),
        ({"half_life": 0}, InputError),
        ({"half_life": "soon"}, InputError),
        ({"half_life": [3]}, InputTypeError),
        ({"name": ""}, InputTypeError),
    ],
)
def test_nonsense_is_refused_when_made(setting, error):
    with pytest.raises(error, match=next(iter(setting))):
        ItemTransitions(**setting)


def test_half_life_is_tried_only_where_it_was_left_open():
    assert ItemTransitions().half_life == 3.0
    assert 3.0 in ItemTransitions().half_lives
    assert ItemTransitions(half_life=None).half_life is None
    assert ItemTransitions(half_life=None).half_lives == ()
    assert ItemTransitions(half_life=8).half_lives == ()


def test_half_life_chosen_survives_a_refit_and_a_save(tmp_path):
    data = Data(Ragged.from_rows([[0, 1, 2], [1, 2, 3]]))
    model = ItemTransitions().fit(data)
    model.half_life = 1.0
    assert model.refit(data).half_life == 1.0
    model.save_files(tmp_path / "stage")
    loaded = ItemTransitions.load_files(tmp_path / "stage")
    assert loaded.half_life == 1.0
    assert loaded.half_lives == model.half_lives


@pytest.mark.data
def test_movielens_100k_reaches_the_figure_of_the_design():
    try:
        data = public.movielens_100k()
    except DataSourceError as error:
        pytest.skip(str(error))
    held_out = split.leave_last(data)
    best = ItemTransitions(half_life=3).fit(held_out.train).recall(held_out.queries, 10)
    hits = best.items == held_out.targets.items[:, None]
    assert (hits / np.log2(np.arange(2, 12))).sum(axis=1).mean() >= 0.100
