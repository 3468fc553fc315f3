"""Real models of ``implicit`` as recallers: they answer as they do at home, and stay untouched."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from hybridrec import (
    FitError,
    HybridRecommender,
    ImplicitModel,
    InputError,
    InputTypeError,
    MissingExtraError,
    NotFittedError,
    Popularity,
    Queries,
    Ragged,
    UnknownIdError,
    load,
)
from hybridrec.recall.implicit_model import item_factors

implicit = pytest.importorskip("implicit")

from implicit.cpu.als import AlternatingLeastSquares  # noqa: E402
from implicit.cpu.bpr import BayesianPersonalizedRanking  # noqa: E402
from implicit.cpu.lmf import LogisticMatrixFactorization  # noqa: E402
from implicit.nearest_neighbours import (  # noqa: E402
    BM25Recommender,
    CosineRecommender,
    ItemItemRecommender,
    TFIDFRecommender,
)
from scipy.sparse import csr_matrix  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

U, I = 50, 30  # noqa: E741
OF_USERS = {"bpr": BayesianPersonalizedRanking, "lmf": LogisticMatrixFactorization}
ITEM_ITEM = {
    "item-item": ItemItemRecommender,
    "cosine": CosineRecommender,
    "tfidf": TFIDFRecommender,
    "bm25": BM25Recommender,
}
SETTINGS = {"factors": 5, "iterations": 4, "num_threads": 1, "random_state": 0}

pytestmark = pytest.mark.filterwarnings("ignore:Method expects CSR input")


@pytest.fixture(autouse=True)
def one_blas_thread():
    """``implicit`` warns of more."""
    with threadpool_limits(1, user_api="blas"):
        yield


class Data:
    """Weighted histories in which items repeat; the last user and the last item have no event."""

    n_items = I
    texts = None
    ordered = True

    def __init__(self, seed=0, users=U):
        rng = np.random.default_rng(seed)
        rows = [rng.integers(0, I - 1, n) for n in (*rng.integers(1, 12, users - 1), 0)]
        plain = Ragged.from_rows(rows)
        weights = rng.integers(1, 5, len(plain.items)) / 2
        self.histories = Ragged(plain.indptr, plain.items, weights)

    @property
    def matrix(self):
        """(U, I) the weights of every pair, added up."""
        rows = self.histories
        dense = np.zeros((len(rows), I))
        np.add.at(dense, (rows.row_of(), rows.items), rows.weights)
        return csr_matrix(dense)

    @property
    def queries(self):
        return Queries(self.histories, I, users=np.arange(len(self.histories)))


def fitted(kind, data, **settings):
    given = {"K": 5, "num_threads": 1} if kind in ITEM_ITEM.values() else SETTINGS
    model = kind(**{**given, **settings})
    model.fit(data.matrix, show_progress=False)
    return model


def every_score(model, queries):
    return model.score(queries, np.tile(np.arange(queries.n_items), (len(queries), 1)))


@pytest.fixture(scope="module")
def data():
    return Data()


@pytest.mark.parametrize("alpha", [0.25, 1.0, 8.0])
@pytest.mark.parametrize("regularization", [0.01, 2.0])
def test_als_folds_a_history_in_as_recalculate_user_does(data, alpha, regularization):
    theirs = fitted(AlternatingLeastSquares, data, alpha=alpha, regularization=regularization)
    ours = ImplicitModel(theirs)
    strangers = Data(seed=1, users=20)
    users = theirs.recalculate_user(np.arange(20), strangers.matrix.astype(np.float32))
    got = every_score(ours, replace(strangers.queries, users=np.full(20, -1)))
    np.testing.assert_allclose(got, users @ theirs.item_factors.T, atol=2e-4)
    assert not got[-1].any()


def test_als_recalls_what_implicit_recommends(data):
    theirs = fitted(AlternatingLeastSquares, data)
    strangers = Data(seed=2)
    found = ImplicitModel(theirs).recall(replace(strangers.queries, exclude=strangers.histories), 8)
    told = np.flatnonzero(strangers.histories.lengths)
    ids, scores = theirs.recommend(
        told, strangers.matrix[told].astype(np.float32), N=8, recalculate_user=True
    )
    np.testing.assert_array_equal(found.items[told], ids)
    np.testing.assert_allclose(found.scores[told], scores, atol=1e-4)


@pytest.mark.parametrize("kind", ITEM_ITEM.values(), ids=ITEM_ITEM.keys())
def test_item_item_models_answer_as_at_home(data, kind):
    theirs = fitted(kind, data)
    strangers = Data(seed=3)
    got = every_score(ImplicitModel(theirs), strangers.queries)
    wanted = strangers.matrix.toarray() @ theirs.similarity.toarray()
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    for user in range(5):
        ids, scores = theirs.recommend(
            user, strangers.matrix[user], N=6, filter_already_liked_items=False
        )
        np.testing.assert_allclose(got[user, ids], scores, rtol=1e-5, atol=1e-5)
        found = ImplicitModel(theirs).recall(strangers.queries.select(np.array([user])), 6)
        np.testing.assert_allclose(found.scores[0, : len(scores)], scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", OF_USERS.values(), ids=OF_USERS.keys())
def test_models_of_users_answer_for_those_they_know(data, kind):
    theirs = fitted(kind, data)
    queries = Data(seed=4).queries.select(np.array([7, 3, U - 1]))
    got = every_score(ImplicitModel(theirs), queries)
    wanted = theirs.user_factors[[7, 3, U - 1]] @ theirs.item_factors.T
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", OF_USERS.values(), ids=OF_USERS.keys())
@pytest.mark.parametrize("stranger", [-1, U])
def test_models_of_users_refuse_a_stranger(data, kind, stranger):
    model = ImplicitModel(fitted(kind, data), name="bpr")
    queries = replace(data.queries.select(np.arange(3)), users=np.array([0, 1, stranger]))
    wanted = rf"queries\.users\[2\] is {stranger}; 'bpr' knows users 0 to {U - 1}.*cannot fold"
    for ask in (lambda: model.recall(queries, 3), lambda: every_score(model, queries)):
        with pytest.raises(UnknownIdError, match=wanted):
            ask()


@pytest.mark.parametrize("kind", [AlternatingLeastSquares, *OF_USERS.values(), TFIDFRecommender])
def test_fit_is_what_implicit_fits_and_leaves_the_model_alone(data, kind):
    theirs, more = fitted(kind, data), Data(seed=5)
    before = {name: repr(value) for name, value in vars(theirs).items()}
    ours = ImplicitModel(theirs)
    wanted = every_score(ImplicitModel(fitted(kind, more)), more.queries)
    assert ours.fit(more) is ours
    np.testing.assert_array_equal(every_score(ours, more.queries), wanted)
    assert {name: repr(value) for name, value in vars(theirs).items()} == before
    ours.refit(data)
    np.testing.assert_array_equal(
        every_score(ours, data.queries), every_score(ImplicitModel(theirs), data.queries)
    )


@pytest.mark.parametrize("kind", [AlternatingLeastSquares, *OF_USERS.values(), TFIDFRecommender])
def test_what_happens_to_the_model_later_is_not_seen(data, kind):
    theirs = fitted(kind, data)
    ours = ImplicitModel(theirs)
    wanted = every_score(ours, data.queries)
    learnt = (
        [theirs.similarity.data]
        if kind is TFIDFRecommender
        else [theirs.item_factors, theirs.user_factors]
    )
    for array in learnt:
        array[:] = 1
    np.testing.assert_array_equal(every_score(ours, data.queries), wanted)


@pytest.mark.parametrize("kind", [AlternatingLeastSquares, *OF_USERS.values(), BM25Recommender])
def test_added_items_are_like_one_that_nobody_took(data, kind):
    model = ImplicitModel(fitted(kind, data))
    model.add_items(None, 2)
    scores = every_score(model, replace(data.queries, n_items=I + 2))
    # Nobody took item I - 1 either.
    np.testing.assert_array_equal(scores[:, I:], scores[:, [I - 1]].repeat(2, axis=1))


def test_every_setting_is_kept(data):
    theirs = fitted(
        AlternatingLeastSquares,
        data,
        alpha=3.0,
        dtype=np.float64,
        use_cg=False,
        factors=np.int64(4),
    )
    config = ImplicitModel(theirs, half_life=4.0, name="mf").config
    assert (config.name, config.half_life) == ("mf", 4.0)
    assert config.settings == {
        "factors": 4,
        "regularization": 0.01,
        "alpha": 3.0,
        "dtype": "float64",
        "use_native": True,
        "use_cg": False,
        "iterations": 4,
        "calculate_training_loss": False,
        "num_threads": 1,
        "random_state": 0,
    }


def test_a_generator_gives_a_seed_and_is_left_alone(data):
    generator = np.random.default_rng(3)
    theirs = AlternatingLeastSquares(**{**SETTINGS, "random_state": generator})
    one, two = ImplicitModel(theirs), ImplicitModel(theirs)
    seed = one.config.settings["random_state"]
    assert seed == two.config.settings["random_state"] == generator.integers(1 << 31)


@pytest.mark.parametrize("kind", [AlternatingLeastSquares, BayesianPersonalizedRanking])
def test_loading_and_asking_need_no_implicit(data, kind, tmp_path, monkeypatch):
    model = ImplicitModel(fitted(kind, data))
    model.save_files(tmp_path / "stage")
    assert {path.suffix for path in (tmp_path / "stage").iterdir()} == {".json", ".npy"}
    for name in [name for name in sys.modules if name.partition(".")[0] == "implicit"]:
        monkeypatch.setitem(sys.modules, name, None)
    loaded = ImplicitModel.load_files(tmp_path / "stage")
    np.testing.assert_array_equal(
        every_score(loaded, data.queries), every_score(model, data.queries)
    )
    with pytest.raises(MissingExtraError, match=r"pip install 'hybridrec\[implicit\]'"):
        loaded.fit(data)
    monkeypatch.undo()
    loaded.fit(data)
    np.testing.assert_array_equal(
        every_score(loaded, data.queries), every_score(model, data.queries)
    )


def test_half_lives_belong_to_models_that_read_a_history(data):
    assert len(ImplicitModel(CosineRecommender()).half_lives) > 1
    assert ImplicitModel(CosineRecommender(), half_life=None).half_lives == ()
    assert ImplicitModel(BayesianPersonalizedRanking()).half_lives == ()
    with pytest.raises(InputError, match=r"half_life is 5\.0; .*Bayesian.* does not read"):
        ImplicitModel(BayesianPersonalizedRanking(), half_life=5.0)
    model = ImplicitModel(fitted(CosineRecommender, data), half_life=1.0)
    history = Ragged.from_rows([[3, 8]])
    table = ImplicitModel(fitted(CosineRecommender, data), half_life=None)
    one, two = (every_score(table, Queries(Ragged.from_rows([[i]]), I))[0] for i in (3, 8))
    np.testing.assert_allclose(
        every_score(model, Queries(history, I))[0], 0.5 * one + two, rtol=1e-6
    )


@pytest.mark.parametrize("model", [None, object(), AlternatingLeastSquares, "als"])
def test_anything_else_is_refused(model):
    with pytest.raises(
        InputTypeError, match=r"model is of class .*; wanted one of implicit\.cpu\.als"
    ):
        ImplicitModel(model)


def test_what_is_not_finite_is_refused(data):
    factors = fitted(AlternatingLeastSquares, data)
    factors.item_factors[4, 1] = np.nan
    with pytest.raises(InputError, match=r"item_factors\[4\] has a NaN"):
        ImplicitModel(factors)
    table = fitted(CosineRecommender, data)
    table.similarity.data[table.similarity.indptr[4]] = np.inf
    with pytest.raises(InputError, match=r"similarity\[4\] has a NaN or infinite value"):
        ImplicitModel(table)


def test_a_fit_that_implicit_gives_up_says_so_and_changes_nothing(data):
    model = ImplicitModel(LogisticMatrixFactorization(**SETTINGS, learning_rate=1e38), name="lmf")
    model._state = ImplicitModel(fitted(LogisticMatrixFactorization, data))._state
    before = every_score(model, data.queries)
    with pytest.raises(FitError, match=r"'lmf' cannot be fitted as Logistic.*NaN"):
        model.fit(data)
    np.testing.assert_array_equal(every_score(model, data.queries), before)


def test_no_events_is_an_error(data):
    data = Data()
    data.histories = Ragged.empty(3)
    with pytest.raises(InputError, match="data has no events"):
        ImplicitModel(CosineRecommender()).fit(data)


def test_a_history_that_cannot_be_folded_in_is_named(data):
    model = fitted(AlternatingLeastSquares, data, factors=5)
    model.regularization = -1e9
    with pytest.raises(FitError, match=r"history of query 0.*more regularization \(now -1e\+09\)"):
        ImplicitModel(model).recall(data.queries, 3)


def test_item_factors_are_a_copy_of_those_of_als(data):
    model = fitted(AlternatingLeastSquares, data, dtype=np.float64)
    items = item_factors(model)
    assert items.dtype == np.float32
    np.testing.assert_allclose(items, model.item_factors, rtol=1e-6)
    assert not np.shares_memory(items, model.item_factors)
    with pytest.raises(NotFittedError, match="model is not fitted"):
        item_factors(AlternatingLeastSquares())
    with pytest.raises(
        InputTypeError, match=r"model is of class implicit\.cpu\.bpr.*wanted one of"
    ):
        item_factors(BayesianPersonalizedRanking())


def test_in_an_engine_saved_and_loaded(dataset, tmp_path):
    engine = HybridRecommender(
        [
            ImplicitModel(AlternatingLeastSquares(**SETTINGS), name="als"),
            ImplicitModel(BM25Recommender(num_threads=1), name="bm25"),
        ],
        depth=12,
    ).fit(dataset)
    wanted = engine.recommend(["u3", "u9"], k=5)
    assert wanted.num_rows == 10
    stranger = {"histories": [["i2", "i3", "i4"]], "k": 5}
    engine.save(tmp_path / "model", histories=True)
    loaded = load(tmp_path / "model")
    assert loaded.recommend(["u3", "u9"], k=5).equals(wanted)
    assert loaded.recommend(**stranger).equals(engine.recommend(**stranger))


def test_in_an_engine_a_model_of_users_refuses_strangers(dataset, tmp_path):
    model = ImplicitModel(BayesianPersonalizedRanking(**SETTINGS), name="bpr")
    engine = HybridRecommender([Popularity(), model], depth=12).fit(dataset)
    engine.save(tmp_path / "model", histories=True)
    for one in (engine, load(tmp_path / "model")):
        assert one.recommend(["u3"], k=5).num_rows == 5
        # Nobody knows this one at all: popularity answers before any recaller is asked.
        assert one.recommend(["nobody"], k=5, unknown="popular").num_rows == 5
        with pytest.raises(UnknownIdError, match=r"queries\.users\[0\] is -1; 'bpr' knows users"):
            one.recommend(histories=[["i2", "i3"]], k=5)


@pytest.mark.gpu
@pytest.mark.skipif(not implicit.gpu.HAS_CUDA, reason="implicit finds no CUDA device or no rmm")
@pytest.mark.parametrize("kind", ["als.AlternatingLeastSquares", "bpr.BayesianPersonalizedRanking"])
def test_models_of_the_gpu_build(data, kind):
    module, name = kind.split(".")
    theirs = getattr(getattr(implicit.gpu, module), name)(factors=8, iterations=4, random_state=0)
    theirs.fit(data.matrix, show_progress=False)
    ours = ImplicitModel(theirs)
    users = theirs.user_factors.to_numpy()
    if module == "als":
        users = theirs.recalculate_user(np.arange(U), data.matrix.astype(np.float32)).to_numpy()
    wanted = users @ theirs.item_factors.to_numpy().T
    np.testing.assert_allclose(every_score(ours, data.queries), wanted, atol=1e-3)
    ours.fit(data)
    assert ours.recall(data.queries, 5).valid.all()
