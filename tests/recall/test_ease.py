"""EASE against the closed form spelled out in numpy."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridrec import (
    EASE,
    DataSourceError,
    FitError,
    InputError,
    InputTypeError,
    Queries,
    Ragged,
    StorageError,
    public,
    split,
)
from hybridrec.recall import ease, item_tables

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


def weighted(rows, seed):
    """Rows with small whole weights."""
    ragged = Ragged.from_rows(rows)
    weights = np.random.default_rng(seed).integers(1, 4, len(ragged.items)).astype(np.float32)
    return replace(ragged, weights=weights)


rows_of_items = st.lists(st.lists(st.integers(0, I - 1), max_size=9), min_size=1, max_size=8)


@settings(max_examples=80, deadline=None)
@given(
    rows=rows_of_items,
    asked=rows_of_items,
    regularization=st.sampled_from([0.5, 3.0, 300.0]),
    half_life=st.sampled_from([None, 0.5, 3.0]),
    seed=st.integers(0, 9),
)
def test_scores_are_the_closed_form(rows, asked, regularization, half_life, seed):
    histories = weighted(rows, seed)
    model = EASE(regularization, half_life=half_life).fit(Data(histories))
    queries = Queries(weighted(asked, seed + 1), I)
    table = reference.item_weights_ease(histories, I, regularization)
    wanted = reference.history_scores(table, queries.histories, half_life)
    got = every_score(model, queries)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    best = model.recall(queries, I)
    np.testing.assert_array_equal(best.scores, -np.sort(-got, axis=1))


def test_a_table_larger_than_a_tile_is_the_closed_form():
    rng = np.random.default_rng(0)
    size = 2 * ease._TILE + 5
    rows = [rng.integers(0, size, rng.integers(1, 30)) for _ in range(150)]
    histories = Ragged.from_rows(rows)
    model = EASE(5.0, half_life=None).fit(Data(histories, size))
    one_each = Queries(Ragged.from_rows(np.arange(size)[:, None]), size)
    wanted = reference.item_weights_ease(histories, size, 5.0)
    np.testing.assert_allclose(every_score(model, one_each), wanted, rtol=1e-4, atol=1e-6)


def test_an_item_does_not_speak_for_itself_and_one_nobody_took_is_silent():
    rows = [[0, 1], [0, 1, 2], [2, 3], [0, 3]]
    model = EASE(1.0, half_life=None).fit(Data(Ragged.from_rows(rows)))
    scores = every_score(model, Queries(Ragged.from_rows([[i] for i in range(I)]), I))
    assert not scores.diagonal().any()
    assert not scores[4:].any()
    assert not scores[:, 4:].any()
    assert scores[0, 1] == scores[0].max() > 0


def test_max_items_is_a_fit_to_the_items_with_the_most_events():
    rows = [[0, 1, 2], [0, 1, 2, 3], [1, 2, 5], [5, 2], [0, 3]]
    # Events: 0 has 3, 1 has 3, 2 has 4, 3 and 5 have 2: of a tie the lower code is kept.
    cut = [[i for i in row if i in (0, 1, 2, 3)] for row in rows]
    queries = Queries(Ragged.from_rows([[0, 5], [2, 3], [5]]), I)
    got = every_score(EASE(1.0, max_items=4).fit(Data(Ragged.from_rows(rows))), queries)
    wanted = every_score(EASE(1.0).fit(Data(Ragged.from_rows(cut))), queries)
    np.testing.assert_array_equal(got, wanted)
    assert not got[2].any()


def test_order_is_not_read_when_fitting_and_not_needed_when_asked():
    histories = Ragged.from_rows([[0, 1, 2], [2, 1], [1, 3, 0]])
    backwards = Ragged.from_rows([[2, 1, 0], [1, 2], [0, 3, 1]])
    model = EASE(1.0).fit(Data(histories, ordered=False))
    queries = Queries(histories, I, ordered=False)
    wanted = every_score(model, queries)
    np.testing.assert_array_equal(every_score(EASE(1.0).fit(Data(backwards)), queries), wanted)
    plain = EASE(1.0, half_life=None).fit(Data(histories))
    np.testing.assert_array_equal(every_score(plain, replace(queries, ordered=True)), wanted)


def test_a_catalogue_too_large_is_refused_with_the_memory_and_the_remedy(monkeypatch):
    monkeypatch.setattr(item_tables, "_MOST_ITEMS", 3)
    data = Data(Ragged.from_rows([[0, 1], [2, 4]]))
    with pytest.raises(FitError, match=r"'ease' would hold 4 x 4 .* GB\).*max_items="):
        EASE().fit(data)
    EASE().fit(replace(data, histories=Ragged.from_rows([[0, 1], [2, 2]])))
    EASE(max_items=4).fit(data)


def test_equations_that_cannot_be_solved_are_a_fit_error():
    for weight in (1e18, 1e30):  # two rows alike; and squares that float32 cannot hold
        heavy = Ragged.from_rows([[0, 1], [0, 1]])
        heavy = replace(heavy, weights=np.full(4, weight, np.float32))
        with pytest.raises(FitError, match=r"'ease' cannot be solved.*regularization"):
            EASE(0.1).fit(Data(heavy))


def test_no_event_at_all_is_answered_with_zeros(tmp_path):
    model = EASE().fit(Data(Ragged.empty(3)))
    queries = Queries(Ragged.from_rows([[0, 1], []]), I)
    assert not every_score(model, queries).any()
    model.save_files(tmp_path / "stage")
    np.testing.assert_array_equal(
        EASE.load_files(tmp_path / "stage").recall(queries, 3).items, [[0, 1, 2]] * 2
    )


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"regularization": 0}, InputError),
        ({"regularization": -3.0}, InputError),
        ({"regularization": float("nan")}, InputError),
        ({"regularization": "much"}, InputTypeError),
        ({"max_items": 0}, InputError),
        ({"max_items": 2.5}, InputTypeError),
        ({"half_life": 0}, InputError),
        ({"half_life": "soon"}, InputError),
        ({"name": ""}, InputTypeError),
    ],
)
def test_nonsense_is_refused_when_made(setting, error):
    with pytest.raises(error, match=next(iter(setting))):
        EASE(**setting)


def test_half_life_is_tried_only_where_it_was_left_open():
    assert EASE().half_life == 5.0
    assert {None, 5.0} <= set(EASE().half_lives)
    assert EASE(half_life=None).half_life is None
    assert EASE(half_life=None).half_lives == ()


def test_damaged_files_are_refused(tmp_path):
    EASE().fit(Data(Ragged.from_rows([[0, 1], [2]]))).save_files(tmp_path)
    np.save(tmp_path / "codes.npy", np.array([0, 1, I], np.int32))
    with pytest.raises(StorageError, match="damaged"):
        EASE.load_files(tmp_path)


@pytest.mark.data
def test_movielens_100k_reaches_the_figure_of_the_design():
    try:
        data = public.movielens_100k()
    except DataSourceError as error:
        pytest.skip(str(error))
    held_out = split.leave_last(data)
    best = EASE(half_life=5).fit(held_out.train).recall(held_out.queries, 10)
    hits = best.items == held_out.targets.items[:, None]
    assert (hits / np.log2(np.arange(2, 12))).sum(axis=1).mean() >= 0.097
