"""Item-item neighbours against every cosine spelled out in numpy."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridrec import InputError, InputTypeError, ItemKNN, Queries, Ragged, StorageError
from hybridrec.recall import item_knn

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
    weights = np.random.default_rng(seed).integers(1, 3, len(ragged.items)).astype(np.float32)
    return replace(ragged, weights=weights)


rows_of_items = st.lists(st.lists(st.integers(0, I - 1), max_size=6), min_size=1, max_size=8)


@settings(max_examples=120, deadline=None)
@given(
    rows=rows_of_items,
    asked=rows_of_items,
    neighbours=st.integers(1, 8),
    shrinkage=st.sampled_from([0.0, 1.0, 10.0]),
    half_life=st.sampled_from([None, 0.5, 3.0]),
    seed=st.integers(0, 9),
)
def test_scores_are_the_definition(rows, asked, neighbours, shrinkage, half_life, seed):
    histories = weighted(rows, seed)
    model = ItemKNN(neighbours, shrinkage=shrinkage, half_life=half_life).fit(Data(histories))
    queries = Queries(weighted(asked, seed + 1), I)
    table = reference.item_weights_knn(histories, I, neighbours, shrinkage)
    wanted = reference.history_scores(table, queries.histories, half_life)
    got = every_score(model, queries)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)
    best = model.recall(queries, I)
    np.testing.assert_array_equal(best.scores, -np.sort(-got, axis=1))


def test_of_equal_neighbours_the_lower_codes_are_kept():
    # Item 3 meets every other item once, all of them alike.
    rows = [[3, item] for item in (6, 5, 4, 2, 1, 0)]
    model = ItemKNN(2, shrinkage=0).fit(Data(Ragged.from_rows(rows)))
    scores = every_score(model, Queries(Ragged.from_rows([[3]]), I))
    np.testing.assert_array_equal(np.flatnonzero(scores[0]), [0, 1])


def test_the_size_of_a_block_is_not_seen(monkeypatch):
    rng = np.random.default_rng(3)
    rows = [rng.integers(0, 30, rng.integers(0, 9)) for _ in range(60)]
    data = Data(Ragged.from_rows(rows), 30)
    queries = Queries(data.histories, 30)
    wanted = every_score(ItemKNN(5).fit(data), queries)
    monkeypatch.setattr(item_knn, "_ITEMS", 4)
    np.testing.assert_array_equal(every_score(ItemKNN(5).fit(data), queries), wanted)


def test_order_is_not_read_when_fitting_and_not_needed_when_asked():
    data = Data(Ragged.from_rows([[0, 1, 2], [2, 1], [1, 3, 0]]), ordered=False)
    backwards = Data(Ragged.from_rows([[2, 1, 0], [1, 2], [0, 3, 1]]))
    queries = Queries(data.histories, I, ordered=False)
    wanted = every_score(ItemKNN().fit(data), queries)
    assert wanted.any()
    np.testing.assert_array_equal(every_score(ItemKNN().fit(backwards), queries), wanted)


def test_no_event_at_all_is_answered_with_zeros():
    model = ItemKNN().fit(Data(Ragged.empty(3)))
    assert not every_score(model, Queries(Ragged.from_rows([[0, 1], []]), I)).any()


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"neighbours": 0}, InputError),
        ({"neighbours": 2.5}, InputTypeError),
        ({"shrinkage": -1}, InputError),
        ({"shrinkage": float("nan")}, InputError),
        ({"half_life": 0}, InputError),
        ({"half_life": "soon"}, InputError),
        ({"name": ""}, InputTypeError),
    ],
)
def test_nonsense_is_refused_when_made(setting, error):
    with pytest.raises(error, match=next(iter(setting))):
        ItemKNN(**setting)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("items", lambda a: np.where(a == a.max(), I, a)),
        ("items", lambda a: a[:-1]),
        ("values", lambda a: a[:-1]),
        ("indptr", lambda a: a[::-1].copy()),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, damage):
    ItemKNN().fit(Data(Ragged.from_rows([[0, 1, 2], [2, 1]]))).save_files(tmp_path)
    path = tmp_path / f"{name}.npy"
    np.save(path, damage(np.load(path)))
    with pytest.raises(StorageError, match="damaged"):
        ItemKNN.load_files(tmp_path)
