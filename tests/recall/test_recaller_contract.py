"""One suite, every recaller: the promises of ``protocols.Recaller``."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pytest

from hybridrec import (
    ALS,
    EASE,
    ImplicitModel,
    InputError,
    ItemKNN,
    ItemTransitions,
    LinearTransitions,
    NotFittedError,
    Popularity,
    Queries,
    Ragged,
    SequenceRecall,
    TextRecall,
)
from hybridrec.protocols import Recaller
from hybridrec.recall import als, implicit_state, promises, text
from hybridrec.state import config_from_json, config_to_json

I, B = 60, 9  # noqa: E741 - a depth of 16 is below I / 2: FAISS' graph is used where it is asked for
WORDS = ("heat", "fargo", "alien", "brazil", "casino", "clue", "rope")
MAKERS = {
    "als": lambda encoder: ALS(6, epochs=4),
    "als-hnsw": lambda encoder: ALS(6, epochs=4, index="HNSW32"),
    "ease": lambda encoder: EASE(2.0),
    "ease-cut": lambda encoder: EASE(2.0, max_items=20),
    "item-knn": lambda encoder: ItemKNN(8, shrinkage=1),
    "linear-transitions": lambda encoder: LinearTransitions(2.0),
    "transitions": lambda encoder: ItemTransitions(),
    "popularity": lambda encoder: Popularity(),
    "implicit-als": lambda encoder: of_implicit(
        "cpu.als", "AlternatingLeastSquares", factors=6, iterations=4, random_state=0
    ),
    "implicit-bpr": lambda encoder: of_implicit(
        "cpu.bpr", "BayesianPersonalizedRanking", factors=6, iterations=4, random_state=0
    ),
    "implicit-cosine": lambda encoder: of_implicit("nearest_neighbours", "CosineRecommender", K=5),
    "sequence": lambda encoder: sequence_model(),
    "sequence-text": lambda encoder: sequence_model(encoder=encoder),
    "sequence-hnsw": lambda encoder: sequence_model(index="HNSW32"),
    "text": lambda encoder: TextRecall(encoder),
    "text-hnsw": lambda encoder: TextRecall(encoder, index="HNSW32"),
}


def of_implicit(module, kind, **settings):
    """On one thread: with more, two fits of BPR differ."""
    kind = getattr(pytest.importorskip(f"implicit.{module}"), kind)
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):  # implicit warns of more
        return ImplicitModel(kind(num_threads=1, **settings))


def sequence_model(**settings):
    return SequenceRecall(
        8, layers=2, heads=2, max_length=6, epochs=2, refit_epochs=1, batch_size=100, **settings
    )


@dataclass
class Data:
    histories: Ragged
    n_items: int
    texts: list[str] | None
    ordered: bool = True


def make_data(users=80, n_items=I, seed=0):
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, n_items, rng.integers(0, 12)) for _ in range(users)]
    rows.append(np.arange(min(n_items, 3)))
    texts = [f"{WORDS[i % 7]} {WORDS[i // 7 % 7]} {i}" if i % 9 else "" for i in range(n_items)]
    return Data(Ragged.from_rows(rows), n_items, texts)


def make_queries(n_items=I, seed=1, rows=B, **fields):
    """Histories with repeats, one of them empty; what was seen is excluded.

    The users are three that every data set here has: not every recaller answers to others.
    """
    rng = np.random.default_rng(seed)
    seen = [rng.integers(0, n_items, n) for n in (0, *rng.integers(1, 8, rows - 1))]
    histories = Ragged.from_rows(seen[:rows])
    users = np.arange(len(histories)) % 3
    return Queries(histories, n_items, **{"users": users, "exclude": histories, **fields})


@pytest.fixture(scope="module", params=MAKERS)
def new(request, tiny_encoder):
    """Makes a recaller that is not fitted."""
    return lambda: MAKERS[request.param](tiny_encoder)


@pytest.fixture(scope="module")
def model(new):
    """Fitted; tests only ask it."""
    return new().fit(make_data())


def check(model, queries, k):
    """The promises about one answer; returns it."""
    found = model.recall(queries, k)
    assert found.items.shape == found.scores.shape == (len(queries), k)
    assert set(found.signals) == {model.name}
    for row, (items, scores) in enumerate(zip(found.items, found.scores, strict=True)):
        barred = set()
        if queries.exclude is not None:
            barred = set(queries.exclude.select(np.array([row])).items)
        allowed = set(range(queries.n_items))
        if queries.allow is not None:
            allowed = set(np.flatnonzero(queries.allow))
        n = min(k, len(allowed - barred))
        assert (items[:n] >= 0).all()
        assert (items[n:] == -1).all()
        assert (scores[n:] == -np.inf).all()
        assert np.isfinite(scores[:n]).all()
        assert len(set(items[:n])) == n
        assert set(items[:n]) <= allowed - barred
        np.testing.assert_array_equal(np.lexsort((items[:n], -scores[:n])), np.arange(n))
        np.testing.assert_array_equal(found.signals[model.name][row, :n], scores[:n])
    return found


def assert_same(got, wanted):
    np.testing.assert_array_equal(got.items, wanted.items)
    np.testing.assert_array_equal(got.scores, wanted.scores)


def digest(model, folder):
    """A hash of everything that the model would write."""
    model.save_files(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def every_score(model, queries):
    catalogue = np.tile(np.arange(queries.n_items, dtype=np.int32), (len(queries), 1))
    return model.score(queries, catalogue)


def test_it_is_a_recaller(model):
    assert isinstance(model, Recaller)
    assert model.name
    assert model.half_life is None or model.half_life in model.half_lives


@pytest.mark.parametrize("k", [1, 5, 16, I - 1, I, I + 7])
def test_ranked_padded_and_what_was_seen_left_out(model, k):
    check(model, make_queries(), k)


def test_seen_items_may_come_back_where_nothing_is_excluded(model):
    check(model, make_queries(exclude=None), I)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("k", [3, 20])
def test_allow_is_honoured(model, share, k):
    allow = np.random.default_rng(5).random(I) < share
    check(model, make_queries(allow=allow), k)
    check(model, make_queries(allow=allow, exclude=None), k)


def test_blocked_for_one_is_not_blocked_for_another(model):
    queries = make_queries(exclude=None)
    free = model.recall(queries, 4)
    first = Ragged.from_rows([[row[0]] if r % 2 else [] for r, row in enumerate(free.items)])
    found = check(model, replace(queries, exclude=first), 3)
    np.testing.assert_array_equal(found.items[1::2], free.items[1::2, 1:])
    np.testing.assert_array_equal(found.items[::2], free.items[::2, :3])


def test_everything_seen_leaves_nothing(model):
    queries = make_queries(exclude=Ragged.from_rows([range(I)] * B))
    found = check(model, queries, 5)
    assert not found.valid.any()


def test_no_query_at_all(model):
    queries = Queries(Ragged.empty(0), I)
    assert model.recall(queries, 4).items.shape == (0, 4)
    assert model.score(queries, np.empty((0, 3), np.int32)).shape == (0, 3)


def test_an_empty_history_is_answered(model):
    found = check(model, Queries(Ragged.empty(2), I, users=np.zeros(2, np.int32)), 10)
    np.testing.assert_array_equal(found.items[0], found.items[1])
    assert found.valid.all()


def test_the_answer_is_the_best_of_the_scores(model):
    queries = make_queries(exclude=None)
    found = model.recall(queries, I)
    wanted = -np.sort(-every_score(model, queries), axis=1)
    np.testing.assert_allclose(found.scores, wanted, rtol=1e-5, atol=1e-6)


def test_score_agrees_with_recall(model):
    queries = make_queries()
    found = model.recall(queries, I + 2)
    scores = model.score(queries, found.items)
    assert scores.dtype == np.float32
    assert (scores[~found.valid] == -np.inf).all()
    assert np.isfinite(scores[found.valid]).all()
    np.testing.assert_allclose(scores[found.valid], found.scores[found.valid], rtol=1e-5, atol=1e-6)


def test_asked_twice_or_fitted_twice_the_answer_is_the_same(new, model):
    queries = make_queries()
    wanted = model.recall(queries, 10)
    assert_same(model.recall(queries, 10), wanted)
    assert_same(new().fit(make_data()).recall(queries, 10), wanted)


def test_a_query_is_answered_alone_as_in_a_batch(model):
    queries = make_queries(rows=40)
    wanted, scores = model.recall(queries, 10), every_score(model, queries)
    for row in range(len(queries)):
        alone = queries.select(np.array([row]))
        assert_same(model.recall(alone, 10), wanted.select(np.array([row])))
        np.testing.assert_array_equal(every_score(model, alone)[0], scores[row])


def test_the_size_of_a_batch_is_not_seen(model, monkeypatch):
    queries = make_queries(rows=40)
    wanted, scores = model.recall(queries, 10), every_score(model, queries)
    for module in (als, implicit_state, promises, text):
        monkeypatch.setattr(module, "_BATCH", 3, raising=False)
        monkeypatch.setattr(module, "_VECTORS", 3, raising=False)
        monkeypatch.setattr(module, "_CELLS", 3 * I, raising=False)
    assert_same(model.recall(queries, 10), wanted)
    np.testing.assert_array_equal(every_score(model, queries), scores)


def test_threads_asking_together_hear_what_one_hears(model):
    asked = [make_queries(seed=seed) for seed in range(8)]
    wanted = [model.recall(queries, 10) for queries in asked]
    with ThreadPoolExecutor(4) as pool:
        for got, one in zip(pool.map(lambda q: model.recall(q, 10), asked), wanted, strict=True):
            assert_same(got, one)


def test_a_query_changes_nothing(model, tmp_path):
    before = digest(model, tmp_path / "before")
    queries = make_queries()
    found = model.recall(queries, 10)
    model.score(queries, found.items)
    assert digest(model, tmp_path / "after") == before


def test_saved_and_loaded_the_bits_are_the_same(model, tmp_path):
    queries = make_queries()
    model.save_files(tmp_path / "stage")
    loaded = type(model).load_files(tmp_path / "stage")
    assert loaded.config == model.config
    assert loaded.half_life == model.half_life
    assert loaded.half_lives == model.half_lives
    assert_same(loaded.recall(queries, 20), model.recall(queries, 20))
    np.testing.assert_array_equal(every_score(loaded, queries), every_score(model, queries))
    assert digest(loaded, tmp_path / "again") == digest(model, tmp_path / "first")


def test_settings_are_frozen_and_round_trip(model):
    kind = type(model.config)
    assert config_from_json(kind, config_to_json(model.config)) == model.config
    with pytest.raises(AttributeError):
        model.config.name = "other"
    with pytest.raises(InputError, match="no setting 'colour'"):
        config_from_json(kind, {"colour": 1})


def test_a_chosen_half_life_is_used_and_kept(new):
    model = new().fit(make_data())
    queries = make_queries(rows=20)
    plain = model.recall(queries, 10)
    for half_life in model.half_lives:
        model.half_life = half_life
        check(model, queries, 10)
    if model.half_lives:
        model.half_life = 0.1
        assert (model.recall(queries, 10).scores != plain.scores).any()
        assert model.refit(make_data()).half_life == 0.1


def test_a_refit_learns_what_a_fit_would_and_answers(new):
    model = new().fit(make_data(users=30))
    model.refit(make_data())
    check(model, make_queries(), 10)
    grown = make_data(n_items=I + 5, seed=3)
    model.refit(grown)
    check(model, make_queries(I + 5), 10)


def test_items_added_can_be_recalled(new, tmp_path):
    model = new().fit(make_data())
    model.add_items(["heat", "", "clue rope"], 3)
    found = check(model, replace(make_queries(), n_items=I + 3), I + 3)
    assert {I, I + 1, I + 2} <= set(found.items[0])
    with pytest.raises(InputError, match="n_items"):
        model.recall(make_queries(), 3)
    model.add_items(None, 2)
    queries = make_queries(I + 5)
    check(model, queries, 10)
    model.save_files(tmp_path / "stage")
    loaded = type(model).load_files(tmp_path / "stage")
    assert_same(loaded.recall(queries, I + 5), model.recall(queries, I + 5))


def test_items_added_leave_the_other_scores_as_they_were(new):
    model = new().fit(make_data())
    queries = make_queries()
    before = every_score(model, queries)
    model.add_items(["heat", "", "clue rope"], 3)
    after = every_score(model, replace(queries, n_items=I + 3))
    np.testing.assert_array_equal(after[:, :I], before)
    assert np.isfinite(after).all()


def test_a_catalogue_of_one_item(new):
    model = new().fit(Data(Ragged.from_rows([[0], [0, 0], []]), 1, ["heat"]))
    found = check(model, Queries(Ragged.from_rows([[0], []]), 1, users=np.arange(2)), 3)
    np.testing.assert_array_equal(found.items, [[0, -1, -1]] * 2)
    check(model, make_queries(1), 3)


def test_before_fit_everything_says_so(new, tmp_path):
    model, queries = new(), make_queries()
    for ask in (
        lambda: model.recall(queries, 3),
        lambda: model.score(queries, np.zeros((B, 1), np.int32)),
        lambda: model.add_items(None, 1),
        lambda: model.save_files(tmp_path / "stage"),
    ):
        with pytest.raises(NotFittedError, match=rf"'{model.name}' is not fitted.*fit\("):
            ask()
    assert not (tmp_path / "stage").exists()


@pytest.mark.parametrize("n_items", [I - 1, I + 1])
def test_another_catalogue_is_refused(model, n_items):
    queries = make_queries(n_items)
    with pytest.raises(InputError, match=rf"n_items is {n_items}; .* knows {I} items"):
        model.recall(queries, 3)
    with pytest.raises(InputError, match=rf"n_items is {n_items}; .* knows {I} items"):
        model.score(queries, np.zeros((B, 1), np.int32))


def test_wrong_arguments_are_refused(model):
    queries = make_queries()
    with pytest.raises(InputError, match="k is 0"):
        model.recall(queries, 0)
    with pytest.raises(TypeError, match=r"k is 2\.5"):
        model.recall(queries, 2.5)
    with pytest.raises(InputError, match=rf"items\[0, 0\] is {I}"):
        model.score(queries, np.full((B, 1), I, np.int32))
    with pytest.raises(InputError, match="items has shape"):
        model.score(queries, np.zeros((B + 1, 2), np.int32))
    with pytest.raises(InputError, match="n is -1"):
        model.add_items(None, -1)
