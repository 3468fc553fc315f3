"""ALS against its objective, its reference, and the promises of a recaller."""

import warnings
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from hybridrec import (
    ALS,
    FitError,
    InputError,
    InputTypeError,
    NotFittedError,
    Queries,
    Ragged,
)
from hybridrec.protocols import Recaller
from hybridrec.recall import als as als_module
from hybridrec.recall.als_solver import ALSConfig, FixedSide, loss, transposed


@dataclass
class Data:
    histories: Ragged
    n_items: int
    texts: None = None
    ordered: bool = True


def blocks(users=60, items=40, groups=4, events=8, seed=0, weighted=False):
    """Users of a group take items of its own: what ALS must find."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        mine = np.arange(user % groups, items, groups)
        rows.append(rng.choice(mine, events, replace=False))
    histories = Ragged.from_rows(rows)
    weights = rng.uniform(0.5, 2, len(histories.items)).astype(np.float32) if weighted else None
    return Data(Ragged(histories.indptr, histories.items, weights), items)


def queries_of(data, **more):
    return Queries(data.histories, data.n_items, exclude=data.histories, **more)


@pytest.fixture(scope="module")
def data():
    return blocks()


@pytest.fixture(scope="module")
def model(data):
    return ALS(8, half_life=None, threads=2).fit(data)


def terms(config):
    return {
        "alpha": config.alpha,
        "target": config.target,
        "unobserved": config.unobserved_weight,
        "regularization": config.regularization,
        "power": config.regularization_power,
    }


@given(
    seed=st.integers(0, 1000),
    power=st.sampled_from([0.0, 0.5, 1.0]),
    unobserved=st.sampled_from([0.0, 0.3, 1.0]),
    target=st.sampled_from([1.0, 1.5]),
    weighted=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_loss_and_half_sweep_are_those_of_the_design(seed, power, unobserved, target, weighted):
    rng = np.random.default_rng(seed)
    data = blocks(7, 9, 3, 3, seed, weighted)
    config = ALSConfig(
        factors=3,
        alpha=1.7,
        target=target,
        unobserved_weight=unobserved,
        regularization=0.2,
        regularization_power=power,
    )
    items = rng.standard_normal((9, 3)).astype(np.float32)
    users = rng.standard_normal((7, 3)).astype(np.float32)
    expected = reference.objective(data.histories, users, items, **terms(config))
    assert loss(data.histories, users, items, config) == pytest.approx(expected, rel=1e-5)
    # The half-sweep is where the gradient of that loss vanishes: any step away costs.
    fixed = FixedSide(items.copy(), config, threads=1)
    best = fixed.solve(data.histories, side="user") @ fixed.axes.T
    least = reference.objective(data.histories, best, items, **terms(config))
    for step in rng.standard_normal((5, 7, 3)) * 0.05:
        away = reference.objective(data.histories, best + step, items, **terms(config))
        assert away > least


def test_implicit_minimises_the_same_up_to_a_constant():
    rng = np.random.default_rng(0)
    data = blocks(10, 12, 3, 4)
    model = ALS.like_implicit(alpha=10.0, regularization=0.05, factors=3)
    observed = np.zeros((10, 12))
    observed[data.histories.row_of(), data.histories.items] = 1
    gaps = []
    for _ in range(5):
        users = rng.standard_normal((10, 3)).astype(np.float32)
        items = rng.standard_normal((12, 3)).astype(np.float32)
        fit = users.astype(float) @ items.T.astype(float)
        confidence = np.where(observed, 10.0, 1.0)
        implicit = (confidence * (observed - fit) ** 2).sum()
        implicit += 0.05 * (float((users**2).sum()) + float((items**2).sum()))
        gaps.append(loss(data.histories, users, items, model.config) - implicit)
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-4)


def test_transposing_keeps_repeats_and_order():
    rows = Ragged([0, 3, 3, 5], [1, 0, 1, 1, 2], np.array([1, 2, 3, 4, 5], np.float32))
    columns = transposed(rows, 4)
    assert columns.indptr.tolist() == [0, 1, 4, 5, 5]
    assert columns.items.tolist() == [0, 0, 0, 2, 2]
    assert columns.weights.tolist() == [2, 1, 3, 4, 5]
    assert transposed(Ragged(rows.indptr, rows.items), 4).weights is None


@pytest.mark.parametrize("solver", ["cg", "cholesky"])
def test_every_epoch_lowers_the_objective(data, solver):
    values = [
        ALS(4, epochs=epochs, solver=solver, regularization=0.1).fit(data).objective(data)
        for epochs in (1, 2, 4, 8, 16)
    ]
    assert all(after <= before * 1.0001 for before, after in pairwise(values))
    assert values[-1] < 0.9 * values[0]


def test_both_solvers_arrive_at_the_same_objective(data):
    cg, exact = (ALS(4, epochs=60, solver=s).fit(data).objective(data) for s in ("cg", "cholesky"))
    assert cg == pytest.approx(exact, rel=1e-3)


def test_it_recommends_what_the_group_takes(data, model):
    found = model.recall(queries_of(data), 2)
    groups = np.arange(60) % 4
    assert (found.items % 4 == groups[:, None]).all()
    for row, seen in zip(found.items, np.split(data.histories.items, 60), strict=True):
        assert not set(row) & set(seen)


@pytest.mark.parametrize("solver", ["cg", "cholesky"])
def test_the_same_bits_for_any_number_of_threads(data, solver):
    fits = [ALS(8, solver=solver, threads=threads).fit(data) for threads in (1, 2, 3, 8)]
    queries = queries_of(data)
    for fit in fits[1:]:
        assert fit.item_factors.tobytes() == fits[0].item_factors.tobytes()
        assert fit.recall(queries, 5).scores.tobytes() == (
            fits[0].recall(queries, 5).scores.tobytes()
        )


def test_the_seed_decides(data):
    one, two, other = (ALS(4, seed=seed).fit(data).item_factors for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 1e-3


def test_score_is_what_recall_says(data, model):
    queries = queries_of(data)
    found = model.recall(queries, 50)
    scores = model.score(queries, found.items)
    assert (found.items[:, -1] == -1).all()
    np.testing.assert_allclose(scores, found.scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.signals["als"], np.where(found.valid, found.scores, 0))
    expected = np.take_along_axis(
        model.user_vectors(queries) @ model.item_factors.T, found.items[:, :5], axis=1
    )
    np.testing.assert_allclose(scores[:, :5], expected, rtol=1e-4, atol=1e-5)


def test_batches_do_not_show(data, model, monkeypatch):
    queries = queries_of(data)
    whole = model.recall(queries, 5)
    scores = model.score(queries, whole.items)
    monkeypatch.setattr("hybridrec.recall.promises._VECTORS", 7)
    parts = model.recall(queries, 5)
    assert parts.items.tobytes() == whole.items.tobytes()
    assert parts.scores.tobytes() == whole.scores.tobytes()
    assert model.score(queries, whole.items).tobytes() == scores.tobytes()


def test_an_empty_history_is_answered_in_order_of_the_codes(model):
    queries = Queries(Ragged.empty(1), 40, exclude=Ragged.from_rows([[1]]), allow=np.arange(40) < 5)
    assert not model.user_vectors(queries).any()
    found = model.recall(queries, 6)
    assert found.items.tolist() == [[0, 2, 3, 4, -1, -1]]
    assert found.scores[0, :4].tolist() == [0, 0, 0, 0]


def test_recency_turns_the_answer_to_the_last_items(data):
    model = ALS(4, half_life=None, epochs=30).fit(data)
    # Five items of group 0, then two of group 1.
    history = Ragged.from_rows([[0, 4, 8, 12, 16, 1, 5]])
    queries = Queries(history, 40, exclude=history)
    assert (model.recall(queries, 5).items % 4 == 0).all()
    model.half_life = 0.5
    assert (model.recall(queries, 5).items % 4 == 1).all()
    unordered = Queries(history, 40, exclude=history, ordered=False)
    assert (model.recall(unordered, 5).items % 4 == 0).all()


def test_half_lives_to_try():
    assert ALS().half_lives[0] is None
    assert ALS().half_life is None
    assert (ALS(half_life=7).half_life, ALS(half_life=7).half_lives) == (7, ())
    assert ALS(half_life=None).half_lives == ()


def test_refit_stays_where_its_readers_expect_it(data):
    model = ALS(4, solver="cholesky", epochs=5).fit(data)
    model.half_life = 10.0
    old = model.item_factors
    more = blocks(users=70, items=44, seed=1)
    loss_before = ALS(4, solver="cholesky", epochs=30).fit(more).objective(more)
    model.refit(more)
    new = model.item_factors
    assert model.half_life == 10.0
    assert new.shape == (44, 4)
    assert model.objective(more) <= 1.05 * loss_before
    cosine = (
        (new[:40] * old).sum(1) / np.linalg.norm(new[:40], axis=1) / np.linalg.norm(old, axis=1)
    )
    assert np.median(cosine) > 0.9
    with pytest.raises(InputError, match="data has 40 items; 'als' knows 44"):
        model.refit(data)


def test_refit_undoes_a_rotation(data):
    model = ALS(4, epochs=40, solver="cholesky").fit(data)
    before = model.item_factors
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0].astype(np.float32)
    model._keep(np.ascontiguousarray(before @ turn), len(before))
    turned = model.item_factors
    model.refit(data)
    np.testing.assert_allclose(model.item_factors, turned, atol=0.02)


def test_added_items_are_cold_and_can_be_recalled(data):
    model = ALS(4, half_life=None).fit(data)
    model.add_items(["new"] * 2, 2)
    history = Ragged.from_rows([[0, 4]])
    queries = Queries(history, 42)
    found = model.recall(queries, 42)
    assert set(found.items[0].tolist()) == set(range(42))
    assert model.score(queries, np.array([[40, 41, -1]])).tolist() == [[0.0, 0.0, -np.inf]]
    with pytest.raises(InputError, match=r"queries\.n_items is 40; 'als' knows 42 items"):
        model.recall(queries_of(data), 3)


@pytest.mark.parametrize("index", ["exact", "auto", "HNSW32", "IVF2,Flat"])
def test_a_loaded_model_says_what_the_saved_one_did(data, tmp_path, index):
    if index != "exact":
        pytest.importorskip("faiss")
    model = ALS.like_implicit(alpha=5, regularization=0.1, factors=4, index=index, name="mf")
    model.fit(data).add_items(None, 3)
    model.half_life = 5.0
    model.save_files(tmp_path / "als")
    loaded = ALS.load_files(tmp_path / "als")
    assert loaded.config == model.config
    assert (loaded.half_life, loaded.name) == (5.0, "mf")
    queries = Queries(data.histories, 43, exclude=data.histories)
    one, two = model.recall(queries, 7), loaded.recall(queries, 7)
    assert one.items.tobytes() == two.items.tobytes()
    assert one.scores.tobytes() == two.scores.tobytes()
    assert all(path.suffix in (".json", ".npy") for path in (tmp_path / "als").iterdir())


def test_it_is_a_recaller_and_says_when_it_is_not_fitted(data):
    model = ALS()
    assert isinstance(model, Recaller)
    queries = queries_of(data)
    for ask in (
        lambda: model.recall(queries, 1),
        lambda: model.score(queries, data.histories.items[:60, None]),
        lambda: model.item_factors,
        lambda: model.refit(data),
        lambda: model.add_items(None, 1),
        lambda: model.objective(data),
    ):
        with pytest.raises(NotFittedError, match="'als' is not fitted"):
            ask()


def test_a_row_that_cannot_be_solved_is_named(data):
    model = ALS(12, regularization=0.0, unobserved_weight=0.0, solver="cholesky")
    with pytest.raises(FitError, match=r"user side: the normal matrix of row 0 .*raise regulariz"):
        model.fit(data)


def test_no_events_is_an_error():
    with pytest.raises(InputError, match="data has no events"):
        ALS().fit(Data(Ragged.empty(3), 5))


def test_a_catalogue_of_one_item():
    history = Ragged.from_rows([[0], []])
    model = ALS(4, half_life=None).fit(Data(history, 1))
    found = model.recall(Queries(history, 1), 2)
    assert found.items.tolist() == [[0, -1], [0, -1]]
    assert found.scores[0, 0] > 0.3
    assert found.scores[1, 0] == 0


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"factors": 0}, InputError),
        ({"factors": 2.0}, InputTypeError),
        ({"alpha": 0}, InputError),
        ({"alpha": float("nan")}, InputError),
        ({"unobserved_weight": -1}, InputError),
        ({"regularization": -1e-9}, InputError),
        ({"regularization": "1"}, InputTypeError),
        ({"regularization_power": -1}, InputError),
        ({"epochs": 0}, InputError),
        ({"solver": "lu"}, InputError),
        ({"user_steps": 0}, InputError),
        ({"item_steps": 1.5}, InputTypeError),
        ({"relaxation": 2.0}, InputError),
        ({"half_life": 0}, InputError),
        ({"half_life": "never"}, InputError),
        ({"index": None}, InputTypeError),
        ({"seed": -1}, InputError),
        ({"threads": 0}, InputError),
        ({"name": ""}, InputTypeError),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(setting, error):
    with pytest.raises(error, match=next(iter(setting))):
        ALS(**setting)


def test_like_implicit_needs_alpha_above_one():
    with pytest.raises(InputError, match=r"alpha is 1\.0; wanted a finite number > 1"):
        ALS.like_implicit(alpha=1.0, regularization=0.1, factors=4)
    with pytest.raises(TypeError, match="unobserved_weight"):
        ALS.like_implicit(alpha=2.0, regularization=0.1, factors=4, unobserved_weight=0.5)


def test_implicits_factors_fold_histories_in_as_implicit_does():
    implicit_als = pytest.importorskip("implicit.cpu.als")
    data = blocks(30, 40, 3, 6)
    matrix = csr_matrix(
        (np.ones(180, np.float32), data.histories.items, data.histories.indptr),
        shape=(30, 40),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of BLAS threads
        theirs = implicit_als.AlternatingLeastSquares(
            factors=8, alpha=5.0, regularization=0.1, iterations=3, random_state=0, num_threads=1
        )
        theirs.fit(matrix, show_progress=False)
    wanted = theirs.recalculate_user(np.arange(30), matrix)
    ours = ALS.from_implicit(theirs, half_life=None)
    assert ours.item_factors.tobytes() == np.asarray(theirs.item_factors).tobytes()
    np.testing.assert_allclose(ours.user_vectors(queries_of(data)), wanted, rtol=1e-3, atol=1e-5)
    assert ALS.from_implicit(theirs, epochs=7).config.epochs == 7
    theirs.alpha = 1.0
    with pytest.raises(InputError, match=r"alpha is 1\.0; wanted above 1.*ImplicitModel"):
        ALS.from_implicit(theirs)


@pytest.mark.parametrize("device", ["gpu", "CUDA", None])
def test_another_device_is_refused(device):
    with pytest.raises((InputError, InputTypeError), match="device"):
        ALS(4, device=device)


def test_fitting_on_a_device_that_is_not_there_is_an_error(data):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("torch sees a CUDA device")
    with pytest.raises(InputError, match="torch sees no GPU"):
        ALS(4, device="cuda").fit(data)
    expected = ALS(4).fit(data).item_factors
    assert ALS(4, device="auto").fit(data).item_factors.tobytes() == expected.tobytes()


@pytest.mark.parametrize("solver", ["cg", "cholesky"])
def test_weights_beyond_float32_are_an_error_and_no_model(solver):
    data = blocks(weighted=True)
    weights = data.histories.weights.copy()
    weights[7] = 3e38
    data.histories = Ragged(data.histories.indptr, data.histories.items, weights)
    with pytest.raises(FitError, match=r"side|finite|outgrew"):
        ALS(4, alpha=10, solver=solver).fit(data)


def test_a_faiss_index_is_tuned_to_the_users(data, monkeypatch):
    pytest.importorskip("faiss")
    tuned = []
    make = als_module.make_index

    def spy(vectors, spec, *, queries, threads):
        tuned.append(queries)
        return make(vectors, spec, queries=queries, threads=threads)

    monkeypatch.setattr(als_module, "make_index", spy)
    model = ALS(4, index="HNSW32", half_life=None).fit(data)
    np.testing.assert_array_equal(tuned[0], model.user_vectors(queries_of(data)))


def test_what_a_pair_counts_is_left_to_how_many_are_observed(tmp_path):
    dense, sparse = blocks(7, 9, 3, 3, 0, False), blocks(300, 400, 2, 2, 0, False)
    for data, weight in ((dense, 0.3), (sparse, None)):
        if weight is None:
            users = np.count_nonzero(data.histories.lengths)
            items = len(np.unique(data.histories.items))
            weight = 5 * len(data.histories.items) / (users * items)
            assert weight < 0.3
        left = ALS(4, seed=1).fit(data)
        told = ALS(4, seed=1, unobserved_weight=weight).fit(data)
        np.testing.assert_array_equal(left.item_factors, told.item_factors)
        queries = Queries(data.histories, data.n_items)
        np.testing.assert_array_equal(left.user_vectors(queries), told.user_vectors(queries))
        assert left.objective(data) == told.objective(data)
        left.save_files(tmp_path / str(weight))
        again = ALS.load_files(tmp_path / str(weight))
        assert again.config.unobserved_weight is None
        np.testing.assert_array_equal(again.user_vectors(queries), told.user_vectors(queries))
        more = blocks(7, data.n_items, 3, 3, 1, False)
        np.testing.assert_array_equal(again.refit(more).item_factors, told.refit(more).item_factors)
