"""Several kinds of fusion, signals beside the recallers, and scores that are probabilities."""

import logging
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

import hybridrec as hr
from hybridrec.data.learning import LearningPlan
from hybridrec.evaluation.metrics import per_user
from hybridrec.fuse.calibration import PROBABILITY, Calibration
from hybridrec.fusing import KEPT, every_kind
from hybridrec.pipeline import BEFORE

KINDS = {
    "LinearFusion": hr.LinearFusion,
    "TreeFusion": lambda: hr.TreeFusion(trees=15, leaves=4, least_in_leaf=20),
    "ReciprocalRankFusion": hr.ReciprocalRankFusion,
    "ConvexFusion": hr.ConvexFusion,
}


def recallers():
    return [hr.Popularity(), hr.ALS(factors=8, epochs=5), hr.ItemTransitions()]


def signals():
    return [
        hr.AtHalfLife("item transitions", 0.5),
        hr.LinearTransitions(10.0, name="linear"),
        hr.AtHalfLife("linear", 8.0),
        hr.RecentPopularity(0.3),
        hr.ItemAge(),
        hr.NewestGap(),
        hr.HistoryLength(),
        hr.HistoryStage(),
    ]


@pytest.fixture(scope="module")
def split(dataset):
    return hr.split.leave_last(dataset)


@pytest.fixture(scope="module")
def chosen(split):
    """Every kind was tried, and scores are calibrated."""
    kinds = [make() for make in KINDS.values()]
    return hr.HybridRecommender(recallers(), None, kinds, signals=signals(), calibrated=True).fit(
        split.train
    )


def answer(model, users, **more):
    return model.recommend(users, k=9, frame="pandas", **more)


def test_the_best_kind_on_validation_lists_serves_and_is_reported(chosen, split):
    found = chosen.report.fusion["without"]
    assert set(found) == set(KINDS)
    best = max(found, key=found.get)
    assert chosen.report.fused_by == {"without": best}
    assert type(chosen.fusion).__name__ == best
    assert chosen.fusion is chosen.pipeline.fusion is chosen.pipeline.tried[best]
    assert set(chosen.pipeline.tried) == set(KINDS)
    assert 0 < found[best] <= 1


def test_the_report_is_what_the_validation_lists_give(split):
    """One recaller whose fit A can be made again by hand."""
    model = hr.HybridRecommender(
        [hr.Popularity()], None, [hr.ReciprocalRankFusion(), hr.LinearFusion()], depth=8
    ).fit(split.train)
    plan = LearningPlan.of(split.train, 0)
    popular = hr.Popularity().fit(split.train.keep_events(plan.base))
    lists = popular.recall(plan.validation.queries(split.train), 8)
    targets = hr.Ragged.from_rows([[target] for target in plan.validation.targets])
    wanted = per_user(lists.items, targets, 10).ndcg.mean()
    found = model.report.fusion["without"]
    assert found["ReciprocalRankFusion"] == pytest.approx(wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_any_kind_comes_back_from_its_folder(kind, split, tmp_path):
    model = hr.HybridRecommender(recallers(), None, KINDS[kind](), signals=signals(), seed=3).fit(
        split.train
    )
    assert model.report.fusion == {}
    assert model.report.fused_by == {"without": kind}
    model.save(tmp_path / "model", histories=True)
    loaded = hr.load(tmp_path / "model")
    assert type(loaded.fusion) is type(model.fusion)
    assert [signal.name for signal in loaded.signals] == [signal.name for signal in signals()]
    users = split.train.users.ids
    assert answer(loaded, users).equals(answer(model, users))
    again = loaded.fit(split.train)
    assert answer(again, users).equals(answer(model, users))


def test_new_items_reach_the_signals_and_the_readers_read_the_widened(chosen, split, tmp_path):
    chosen.save(tmp_path / "model", histories=True)
    model = hr.load(tmp_path / "model")
    users = split.train.users.ids
    assert model.add_items(pa.table({"item_id": ["n0"], "title": ["new"], "genres": ["x"]})) == 1
    after = model.recommend(users, k=31, frame="pandas")
    assert "n0" in set(after.item)
    readers = [signal for signal in model.signals if isinstance(signal, hr.AtHalfLife)]
    sources = {stage.name: stage for stage in (*model.recallers, *model.signals)}
    assert all(signal._source is sources[signal.reads] for signal in readers)
    model.save(tmp_path / "model", histories=True)
    assert hr.load(tmp_path / "model").recommend(users, k=31, frame="pandas").equals(after)


class Spy(hr.Popularity):
    """Keeps what it was fitted to."""

    def __init__(self):
        super().__init__(name="spy")
        self.fitted, self.refitted, self.asked = [], [], []

    def fit(self, data):
        self.fitted.append(data.histories)
        return super().fit(data)

    def refit(self, data):
        self.refitted.append(data.histories)
        return super().fit(data)

    def score(self, queries, items):
        self.asked.append(queries)
        return super().score(queries, items)


def test_a_signal_is_fitted_to_what_recallers_are_and_asked_with_what_came_before(split):
    spy = Spy()
    data = split.train
    model = hr.HybridRecommender([hr.Popularity()], None, hr.LinearFusion(), signals=[spy])
    model.fit(data)
    plan = LearningPlan.of(data, 0)
    base = data.keep_events(plan.base).histories
    (fitted,), (refitted,) = spy.fitted, spy.refitted
    np.testing.assert_array_equal(fitted.items, base.items)
    np.testing.assert_array_equal(fitted.indptr, base.indptr)
    np.testing.assert_array_equal(refitted.items, data.histories.items)
    asked = {
        (int(user), int(length))
        for queries in spy.asked
        for user, length in zip(queries.users, queries.histories.lengths, strict=True)
    }
    rows = plan.learning
    lengths = data.histories.lengths[rows.users] - 1 - rows.positions
    assert asked == set(zip(rows.users.tolist(), lengths.tolist(), strict=True))


def test_signals_bring_no_candidates(split):
    model = hr.HybridRecommender([hr.Popularity()], signals=[hr.ItemTransitions()], depth=7)
    model.fit(split.train)
    popular = hr.Popularity().fit(split.train).recall(split.queries, 7)
    lists = model.pipeline.blend.candidates(split.queries, 7)
    np.testing.assert_array_equal(lists.items, popular.items)
    assert list(lists.signals) == ["popularity", "item transitions"]
    assert model.report.half_lives["item transitions"] in hr.ItemTransitions().half_lives


def test_calibrated_scores_are_probabilities_and_change_no_order(chosen, split):
    users = split.train.users.ids
    got = answer(chosen, users)
    plain = hr.HybridRecommender(
        recallers(), None, KINDS[chosen.report.fused_by["without"]](), signals=signals()
    ).fit(split.train)
    wanted = answer(plain, users)
    assert got.drop(columns="score").equals(wanted.drop(columns="score"))
    assert ((got.score >= 0) & (got.score <= 1)).all()
    assert (wanted.score < 0).any()
    falls = got.groupby("user").score.apply(lambda scores: (np.diff(scores) <= 0).all())
    assert falls.all()


def test_calibrated_popular_items_are_shares_of_events(chosen, split):
    got = chosen.recommend(["nobody", "u1"], k=30, unknown="popular", frame="pandas")
    counts = np.bincount(split.train.histories.items, minlength=30)
    mine = got[got.user == "nobody"]
    codes = split.train.items.codes(mine.item.to_numpy())
    np.testing.assert_allclose(mine.score, counts[codes] / counts.sum(), rtol=1e-5)
    known = got[got.user == "u1"]
    alone = chosen.recommend(["u1"], k=30, frame="pandas")
    np.testing.assert_array_equal(known.score, alone.score)


def test_a_calibrated_model_comes_back_from_its_folder(chosen, split, tmp_path):
    chosen.save(tmp_path / "model", histories=True)
    users = split.train.users.ids
    assert answer(hr.load(tmp_path / "model"), users).equals(answer(chosen, users))


def test_calibration_is_right_on_average():
    """Scores whose odds are known: the map must find them."""
    rng = np.random.default_rng(0)
    scores = -np.sort(-rng.normal(size=(4000, 10)), axis=1).astype(np.float32)
    chance = 1 / (1 + np.exp(-(scores - 2)))
    hit = rng.random(scores.shape) < chance
    # A list has one target at most: take the lists with one hit, or none.
    keep = hit.sum(axis=1) <= 1
    scores, hit = scores[keep], hit[keep]
    items = np.tile(np.arange(10, dtype=np.int32), (len(scores), 1))
    targets = np.where(hit.any(axis=1), hit.argmax(axis=1), 99)
    calibration = Calibration().fit(hr.Candidates(items, scores), targets)
    found = calibration.probabilities(scores)
    assert found.dtype == np.float32
    assert found.mean() == pytest.approx(hit.mean(), rel=0.02)
    for low, high in ((-1, 0), (0, 1), (1, 2)):
        band = (scores >= low) & (scores < high)
        assert found[band].mean() == pytest.approx(hit[band].mean(), abs=0.02)
    assert calibration.probabilities(np.array([-np.inf, -9, 9], np.float32))[0] == 0
    assert (np.diff(calibration.probabilities(np.linspace(-9, 9, 99, dtype=np.float32))) >= 0).all()
    with pytest.raises(hr.NotFittedError):
        Calibration().probabilities(scores)
    with pytest.raises(hr.FitError, match="no candidate"):
        Calibration().fit(hr.Candidates(items, scores).select(np.arange(0)), targets[:0])


def test_with_a_reranker_both_fusions_are_chosen_and_calibrated(split, tiny_encoder, tmp_path):
    model = hr.HybridRecommender(
        recallers(),
        hr.CrossEncoder(tiny_encoder, history=3, finetuning={"negatives": 4}, max_item_tokens=12),
        [hr.LinearFusion(), hr.ReciprocalRankFusion()],
        depth=12,
        rerank_depth=6,
        reranker_examples=40,
        calibrated=True,
    ).fit(split.train)
    report = model.report
    assert set(report.fusion) == set(report.fused_by) == {"without", "with"}
    assert model.reranker.name not in model.pipeline.fusion.signals
    plan = LearningPlan.of(split.train, 0)
    assert report.asked["fusion"] == len(plan.reranker)
    assert report.asked["reranked fusion"] == len(plan.fusion)
    tried = model.pipeline.tried_with_reranker
    kinds = {"LinearFusion", "ReciprocalRankFusion", KEPT}
    assert set(tried) == set(report.fusion["with"]) == kinds
    assert tried["LinearFusion"].signals == (BEFORE, model.reranker.name)
    assert model.pipeline.fusion_with_reranker is tried[report.fused_by["with"]]
    users = split.train.users.ids[:9]
    got = answer(model, users)
    assert ((got.score >= 0) & (got.score <= 1)).all()
    ranked = model.pipeline.rank(split.train.queries(users))
    assert ranked.signals[PROBABILITY].shape == ranked.items.shape
    model.save(tmp_path / "model", histories=True)
    back = answer(hr.load(tmp_path / "model"), users)
    np.testing.assert_array_equal(back.item, got.item)
    np.testing.assert_allclose(back.score, got.score, atol=1e-4)


def test_auto_tries_every_kind_and_says_what_is_missing(monkeypatch, caplog):
    assert [type(kind).__name__ for kind in every_kind()] == [
        "ReciprocalRankFusion",
        "ConvexFusion",
        "LinearFusion",
        "TreeFusion",
    ]
    assert len(hr.HybridRecommender([hr.Popularity()], None, "auto").fusions) == 4
    monkeypatch.setattr("hybridrec.fusing.find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING, "hybridrec"):
        assert len(every_kind()) == 3
    assert "hybridrec[trees]" in caplog.text


def test_two_of_one_kind_are_told_apart_by_number(split):
    kinds = [hr.LinearFusion(regularization=10.0), hr.LinearFusion()]
    model = hr.HybridRecommender(recallers(), None, kinds).fit(split.train)
    assert set(model.report.fusion["without"]) == {"LinearFusion 1", "LinearFusion 2"}
    assert model.fusion.config == kinds[int(model.report.fused_by["without"][-1]) - 1].config


def test_what_cannot_be_is_refused_when_the_recommender_is_made():
    for make, message in (
        (lambda: hr.HybridRecommender([hr.Popularity()], None, "best"), "fusion is 'best'"),
        (lambda: hr.HybridRecommender([hr.Popularity()], None, [hr.LinearFusion]), "the class"),
        (lambda: hr.HybridRecommender([hr.Popularity()], signals=hr.ItemAge()), "signals is"),
        (lambda: hr.HybridRecommender([hr.Popularity()], signals=[3]), r"signals\[0\] is 3"),
        (
            lambda: hr.HybridRecommender([hr.Popularity()], signals=[hr.Popularity()]),
            "a name of its own",
        ),
        (
            lambda: hr.HybridRecommender([hr.Popularity()], signals=[hr.AtHalfLife("als", 3)]),
            r"reads 'als', which is not among .*\['popularity'\]",
        ),
        (lambda: hr.HybridRecommender([hr.Popularity()], calibrated=True), "there is no fusion"),
    ):
        with pytest.raises((hr.InputError, hr.InputTypeError), match=message):
            make()


def test_data_without_an_order_name_the_signal_that_needs_it(split):
    unordered = replace(split.train, ordered=False)
    model = hr.HybridRecommender([hr.Popularity()], signals=[hr.HistoryStage()])
    with pytest.raises(hr.FitError, match="history stage"):
        model.fit(unordered)


def test_a_recommender_that_was_told_nothing_takes_what_suits_the_data(split):
    model = hr.HybridRecommender().fit(split.train)
    assert {"linear transitions", "item transitions", "ease", "als", "popularity"} == {
        recaller.name for recaller in model.recallers
    }
    assert set(model.report.fusion["without"]) == set(KINDS)
    report = hr.evaluate(model, split)
    assert report.per_user["fused"].mean() > 2 * report.per_user["popularity"].mean()
    unordered = replace(split.train, ordered=False)
    plain = model.fit(unordered)
    assert {recaller.name for recaller in plain.recallers} == {"ease", "als", "popularity"}
    again = plain.fit(split.train)
    assert "item transitions" in {recaller.name for recaller in again.recallers}


def test_signals_stand_beside_the_default_stages(split):
    model = hr.HybridRecommender(signals=[hr.NewestGap(), hr.AtHalfLife("als", 7.0)])
    assert [signal.name for signal in model.signals][-2:] == ["newest gap", "als, for 7"]
    model.fit(split.train)
    assert [signal.name for signal in model.signals][-2:] == ["newest gap", "als, for 7"]
    model = hr.HybridRecommender(signals=[hr.AtHalfLife("item transitions", 7.0)])
    with pytest.raises(hr.InputError, match="reads 'item transitions', which is not among"):
        model.fit(replace(split.train, ordered=False))
    with pytest.raises(hr.InputError, match="reads 'nothing'"):
        hr.HybridRecommender(signals=[hr.AtHalfLife("nothing", 7.0)])


def test_without_a_fusion_scores_are_the_blends_whoever_asks_beside(chosen, split):
    told = split.train.queries(split.train.users.ids[:2])
    both = replace(
        told, histories=hr.Ragged.from_rows([[], told.histories.select([1]).items]), exclude=None
    )
    alone = chosen.pipeline.ranking(both.select(np.array([1])), fuse=False).answer
    beside = chosen.pipeline.ranking(both, fuse=False).answer
    np.testing.assert_array_equal(beside.signals[PROBABILITY][1], alone.scores[0])
    assert (alone.scores[0] > 0).any()


class Reader:
    """A reranker that scores by a table (users, items), and counts what it is asked."""

    name = "reader"

    def __init__(self, table):
        self.table, self.asked = table, 0

    def untuned(self):
        return self

    def prepare(self, texts):
        return self

    def finetune(self, queries, candidates, targets, *, held_out=None):
        return self

    def to_json(self):
        return {}

    def score(self, queries, items):
        self.asked += len(items)
        scores = np.take_along_axis(self.table[queries.users], np.maximum(items, 0), axis=1)
        return np.where(items >= 0, scores, -np.inf).astype(np.float32)


def with_reader(split, table, fusion):
    engine = hr.HybridRecommender(
        recallers(), Reader(table.astype(np.float32)), fusion, depth=20, seed=1
    )
    return engine.fit(split.train)


def test_a_reranker_that_shows_nothing_is_not_asked(split, caplog, tmp_path):
    data = split.train
    noise = np.random.default_rng(0).normal(size=(data.n_users, data.n_items))
    kinds = [hr.ReciprocalRankFusion(), hr.LinearFusion()]
    with caplog.at_level(logging.WARNING, logger="hybridrec"):
        engine = with_reader(split, noise, kinds)
    assert engine.report.fused_by["with"] == KEPT
    assert "the reranker brings nothing that these lists show" in caplog.text
    assert set(engine.report.fusion["with"]) == {"ReciprocalRankFusion", "LinearFusion", KEPT}
    asked = engine.reranker.asked
    ranking = engine.pipeline.ranking(split.queries)
    assert engine.reranker.asked == asked
    assert not engine.pipeline.asks_reranker
    assert ranking.head is None
    assert not ranking.reranked.any()
    np.testing.assert_array_equal(ranking.answer.items, ranking.ordered.items)
    report = hr.evaluate(engine, split)  # what it would say is still shown
    np.testing.assert_array_equal(
        report.per_user["fused, with LLM"], report.per_user["fused, no LLM"]
    )
    assert (report.per_user["llm alone"] != report.per_user["fused, no LLM"]).any()


def test_a_reranker_that_knows_is_asked_and_one_fusion_always_asks(split):
    data = split.train
    rows, columns = data.histories.row_of(), data.histories.items
    known = np.zeros((data.n_users, data.n_items))
    known[rows, columns] = 1.0
    knowing = with_reader(split, known, [hr.ConvexFusion(), hr.LinearFusion()])
    assert knowing.pipeline.asks_reranker
    assert knowing.report.fused_by["with"] in ("ConvexFusion", "LinearFusion")
    found = knowing.report.fusion["with"]
    assert found[knowing.report.fused_by["with"]] > found[KEPT] + 0.1
    noise = np.random.default_rng(0).normal(size=known.shape)
    alone = with_reader(split, noise, hr.LinearFusion())
    assert alone.pipeline.asks_reranker
    assert alone.pipeline.ranking(split.queries).reranked.any()
