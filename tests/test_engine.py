"""The whole path with real stages: tiny data, a tiny random encoder, nothing mocked."""

import shutil
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import hybridrec as hr
from hybridrec.deadline import Deadline
from hybridrec.ragged import Ragged
from hybridrec.rerank import reading
from hybridrec.state import read_state, write_state


def make_engine(encoder, **options):
    return hr.HybridRecommender(
        [
            hr.Popularity(),
            hr.ALS(factors=8, epochs=5),
            hr.ItemTransitions(),
            hr.TextRecall(encoder),
        ],
        hr.CrossEncoder(encoder, history=4, finetuning={"negatives": 4}, max_item_tokens=12),
        hr.LinearFusion(),
        depth=20,
        rerank_depth=10,
        **options,
    )


@pytest.fixture(scope="module")
def split(dataset):
    return hr.split.leave_last(dataset)


@pytest.fixture(scope="module")
def engine(split, tiny_encoder):
    return make_engine(tiny_encoder).fit(split.train)


@pytest.fixture(scope="module")
def light(split):
    """Without the encoder: what most promises can be tested on."""
    return hr.HybridRecommender(
        [hr.Popularity(), hr.ALS(factors=8, epochs=5), hr.ItemTransitions()],
        None,
        hr.LinearFusion(),
    ).fit(split.train)


def test_a_budget_cuts_reranking_short_and_says_so(engine, split):
    users = split.train.users.ids[:20]
    whole = engine.recommend(users, k=20, frame="pandas")
    assert "reranked" not in whole
    enough = engine.recommend(users, k=20, budget_ms=60_000, frame="pandas")
    pd.testing.assert_frame_equal(enough.drop(columns="reranked"), whole)
    np.testing.assert_array_equal(enough.reranked, enough["rank"] <= 10)
    none = engine.recommend(users, k=20, budget_ms=1e-6, frame="pandas")
    assert not none.reranked.any()
    pipeline = engine.pipeline
    queries = split.train.queries(users)
    fused = pipeline.fused(pipeline.blend.candidates(queries, 20))
    items = split.train.items.ids_of(fused.items[fused.valid])
    np.testing.assert_array_equal(none.item, items)
    with pytest.raises(hr.InputError, match="budget_ms is 0"):
        engine.recommend(users, budget_ms=0)


def test_what_was_reranked_in_time_stands_first(engine, split, monkeypatch):
    """Time for one step of three candidates."""
    monkeypatch.setattr(reading, "STEP_COLUMNS", 3)
    queries = split.train.queries(split.train.users.ids[:5])
    looks = iter([0.0, 0.0, 0.0, 1.0])
    deadline = Deadline(1500, lambda: next(looks, 2.0))
    ranking = engine.pipeline.ranking(queries, 20, deadline=deadline)
    assert (ranking.reranked == (np.arange(20) < 3)).all()
    before = engine.pipeline.fused(engine.pipeline.blend.candidates(queries, 20))
    np.testing.assert_array_equal(ranking.ordered.items, before.items)
    for got, first in zip(ranking.answer.items, before.items, strict=True):
        assert set(got[:3]) == set(first[:3])
        np.testing.assert_array_equal(got[3:], first[3:])


def test_a_ranking_says_what_each_stage_made_and_leaves_out_what_it_is_told_to(engine, split):
    pipeline = engine.pipeline
    queries = split.train.queries(split.train.users.ids[:4])
    whole = pipeline.ranking(queries, 20)
    assert whole.told.all()
    assert not whole.newcomers.any()
    assert whole.head.depth == pipeline.rerank_depth
    assert set(whole.seconds) == {"recall", "fuse", "rerank"}
    assert all(seconds > 0 for seconds in whole.seconds.values())
    plain = pipeline.ranking(queries, 20, rerank=False)
    np.testing.assert_array_equal(plain.answer.items, whole.ordered.items)
    assert plain.head is None
    assert "rerank" not in plain.seconds
    recalled = pipeline.ranking(queries, 20, rerank=False, fuse=False)
    np.testing.assert_array_equal(recalled.answer.items, whole.recalled.items)
    alone = pipeline.ranking(queries, 20, fuse=False)
    head = pipeline.reranked_head(queries, whole.recalled)
    np.testing.assert_array_equal(
        alone.answer.items[:, : head.depth], pipeline.reranked_alone(head).items
    )


def test_a_ranking_marks_who_got_the_popular_items(engine, split):
    told = split.train.queries(split.train.users.ids[:2])
    both = replace(told, histories=Ragged.from_rows([[], told.histories.items[:3]]), exclude=None)
    ranking = engine.pipeline.ranking(both, 20)
    assert ranking.told.tolist() == [False, True]
    assert not ranking.reranked[0].any()
    assert ranking.reranked[1].any()
    assert len(ranking.recalled) == 1
    popular = engine.pipeline.popularity.recall(both.select(np.array([0])), 20)
    np.testing.assert_array_equal(ranking.answer.items[0], popular.items[0])
    nobody = engine.pipeline.ranking(both.select(np.array([0])), 20)
    assert nobody.recalled is None
    assert nobody.seconds == {}


def history_of(split, user):
    data = split.train
    return data.items.ids_of(data.histories.select(data.users.codes([user])).items).tolist()


def columns(answer):
    return {name: answer[name].to_pylist() for name in answer.column_names}


def test_the_answer_is_tidy_ranked_and_leaves_the_seen_out(engine, split):
    answer = engine.recommend(["u1", "u7"], k=5)
    assert isinstance(answer, pa.Table)
    assert answer.column_names == ["user", "rank", "item", "score"]
    rows = columns(answer)
    assert rows["user"] == ["u1"] * 5 + ["u7"] * 5
    assert rows["rank"] == [1, 2, 3, 4, 5] * 2
    for user in ("u1", "u7"):
        code = split.train.users.codes([user])
        seen = set(split.train.items.ids_of(split.train.seen(code).items).tolist())
        mine = [row for row in range(10) if rows["user"][row] == user]
        assert not seen & {rows["item"][row] for row in mine}
        scores = [rows["score"][row] for row in mine]
        assert scores == sorted(scores, reverse=True)


def test_every_stage_is_evaluated_on_the_same_users(engine, split):
    report = hr.evaluate(engine, split)
    names = [stage.name for stage in report.stages]
    assert names[-4:] == ["blend (recall stage)", "llm alone", "fused, no LLM", "fused, with LLM"]
    by_name = {stage.name: stage for stage in report.stages}
    # Item i is followed by i + 1 four times out of five: order must be found, popularity cannot.
    assert by_name["fused, no LLM"].ndcg > by_name["popularity"].ndcg + 0.2
    ceiling = by_name["blend (recall stage)"].recall
    assert by_name["fused, with LLM"].recall == pytest.approx(ceiling)
    assert all(stage.hr <= ceiling for stage in report.stages[-3:])
    assert len(report.per_user["fused, with LLM"]) == len(split.queries)


def test_training_counts_its_rows_and_what_recall_missed(engine, split):
    report = engine.report
    users = split.train.n_users
    assert report.users == users
    # The users in R teach what comes before the reranker and itself, those in F what comes after.
    assert report.asked["fusion"] == report.asked["reranker"]
    parts = ("reranker", "stopping", "reranked fusion")
    assert sum(report.asked[name] for name in parts) == 3 * users
    for name, asked in report.asked.items():
        assert report.rows[name] + report.missed[name] == asked
    assert set(report.half_lives) == {recaller.name for recaller in engine.recallers}


def test_a_known_user_and_the_same_history_get_the_same(engine, split):
    data = split.train
    code = data.users.codes(["u3"])
    history = data.items.ids_of(data.histories.select(code).items).tolist()
    known = columns(engine.recommend(["u3"], k=8))
    raw = columns(engine.recommend(histories={"anyone": history}, k=8))
    assert raw["item"] == known["item"]
    np.testing.assert_allclose(raw["score"], known["score"], rtol=1e-5)
    assert raw["user"] == ["anyone"] * 8
    assert columns(engine.recommend(histories=[history], k=8))["user"] == [0] * 8


def test_k_beyond_what_is_possible_gives_fewer_rows_and_never_padding(light, split):
    rows = columns(light.recommend(["u1"], k=1000))
    seen = len(set(split.train.seen(split.train.users.codes(["u1"])).items.tolist()))
    assert len(rows["item"]) == len(set(rows["item"])) == split.train.n_items - seen
    everything = split.train.items.ids.tolist()
    assert light.recommend(histories=[everything], k=5).num_rows == 0
    rows = columns(light.recommend(histories=[everything], k=50, exclude_seen=False))
    assert sorted(rows["item"]) == sorted(everything)


def test_allow_and_block(light):
    only = ["i3", "i4", "i5"]
    rows = columns(light.recommend(histories=[["i0"]], k=10, allow=only))
    assert sorted(rows["item"]) == only
    assert light.recommend(histories=[["i0"]], k=10, allow=[]).num_rows == 0
    rows = columns(light.recommend(histories=[["i0"]], k=10, allow=only, block=["i4"]))
    assert sorted(rows["item"]) == ["i3", "i5"]
    with pytest.raises(hr.UnknownIdError, match="'i999'"):
        light.recommend(histories=[["i0"]], block=["i999"])


def test_an_empty_history_and_a_user_nobody_knows_get_the_popular_items(light, split):
    counts = np.bincount(split.train.histories.items, minlength=split.train.n_items)
    order = sorted(range(len(counts)), key=lambda item: (-counts[item], item))
    popular = split.train.items.ids_of(order[:6]).tolist()
    assert columns(light.recommend(histories=[[]], k=6))["item"] == popular
    rows = columns(light.recommend(["u1", "stranger"], k=6, unknown="popular"))
    assert rows["item"][6:] == popular
    assert rows["user"][6:] == ["stranger"] * 6
    assert rows["item"][:6] == columns(light.recommend(["u1"], k=6))["item"]
    with pytest.raises(hr.UnknownIdError, match="'stranger'"):
        light.recommend(["u1", "stranger"])


def test_any_columns_of_ids_will_do(light):
    wanted = columns(light.recommend(["u1", "u2"], k=3))
    for users in (
        pd.Series(["u1", "u2"], index=[7, 8]),
        pl.Series(["u1", "u2"]),
        pa.array(["u1", "u2"]),
        np.array(["u1", "u2"], dtype=object),
        ("u1", "u2"),
    ):
        assert columns(light.recommend(users, k=3)) == wanted
    history = ["i1", "i2"]
    wanted = columns(light.recommend(histories=[history], k=3))
    for histories in (
        np.array([history]),
        [pd.Series(history, index=[4, 5])],
        [pl.Series(history)],
        [pa.array(history)],
        pd.Series([history]),
        (tuple(history),),
    ):
        assert columns(light.recommend(histories=histories, k=3)) == wanted
    assert light.recommend(histories={}, k=3).num_rows == 0
    assert light.recommend(histories=np.empty((0, 2), dtype=str), k=3).num_rows == 0


def test_nobody_asked_is_an_empty_frame(light):
    answer = light.recommend([], k=3)
    assert answer.num_rows == 0
    assert answer.column_names == ["user", "rank", "item", "score"]
    assert light.recommend(histories=[], k=3).num_rows == 0


@pytest.mark.parametrize("arguments", [{}, {"users": ["u1"], "histories": [["i1"]]}])
def test_users_or_histories_and_not_both(light, arguments):
    with pytest.raises(hr.InputError, match=r"users=.*histories="):
        light.recommend(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": 2.5}, "k is 2.5"),
        ({"depth": 0}, "depth is 0"),
        ({"unknown": "ignore"}, "unknown is 'ignore'"),
        ({"frame": "excel"}, "frame is 'excel'"),
        ({"histories": ["i1"]}, "wanted a list of ids"),
        ({"histories": [["nothing"]]}, "'nothing'"),
        ({"histories": [["i1"], [], ["i2", "nothing"]]}, r"histories\[2\]\[1\] is 'nothing'"),
        ({"histories": {"ann": ["nothing"]}}, r"histories\['ann'\]\[0\] is 'nothing'"),
        ({"histories": {"ann": ["i1"], 3: ["i2"]}}, "histories mixes types: row 1 is 3"),
        ({"histories": {("ann", "bob"): ["i1"]}}, "histories has type list"),
        ({"histories": "i1"}, "histories is 'i1'"),
        ({"histories": [{"i1", "i2"}]}, r"histories\[0\] is a set"),
        ({"users": {"u1", "u2"}, "histories": None}, "users is a set"),
        ({"allow": ["nothing"]}, r"allow\[0\] is 'nothing'"),
        ({"allow": 5}, "allow is 5"),
        ({"block": ["i1", "nothing"]}, r"block\[1\] is 'nothing'"),
        ({"histories": [[1]]}, "strings"),
    ],
)
def test_bad_requests_are_named(light, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        light.recommend(**{"histories": [["i1"]], **arguments})


def test_the_answer_comes_in_the_kind_of_frame_that_went_in(frames):
    events, _ = frames
    for kind, frame in (("pandas", events.to_pandas()), ("polars", pl.from_arrow(events))):
        data = hr.Dataset.from_frame(frame, user="user_id", item="item_id", time="timestamp")
        model = hr.HybridRecommender([hr.Popularity(), hr.ItemTransitions()], fusion=None).fit(data)
        answer = model.recommend(["u1"], k=3)
        assert type(answer) is {"pandas": pd.DataFrame, "polars": pl.DataFrame}[kind]
        assert list(answer["rank"]) == [1, 2, 3]
        assert isinstance(model.recommend(["u1"], k=3, frame="pyarrow"), pa.Table)


def test_integer_ids_stay_integers():
    table = pa.table({"u": [5, 5, 5, 9, 9, 9] * 3, "i": [7, 8, 9, 8, 9, 10] * 3, "t": range(18)})
    data = hr.Dataset.from_frame(table, user="u", item="i", time="t")
    model = hr.HybridRecommender([hr.ItemTransitions()]).fit(data)
    answer = model.recommend([9], k=1)
    assert answer["user"].to_pylist() == [9]
    assert answer["item"].to_pylist() == [7]


def test_similar_items_leave_the_item_out(light, engine):
    answer = columns(light.similar_items(["i3", "i9"], k=4))
    assert answer["item"] == ["i3"] * 4 + ["i9"] * 4
    assert "i3" not in answer["similar_item"][:4]
    assert answer["rank"] == [1, 2, 3, 4] * 2
    popular = hr.HybridRecommender([hr.Popularity()]).fit(light.data)
    with pytest.raises(hr.InputError, match="item vectors"):
        popular.similar_items(["i3"])


def test_new_items_are_found_by_their_text_and_retired_ones_never(split, tiny_encoder):
    model = make_engine(tiny_encoder).fit(split.train)
    before = columns(model.recommend(["u1"], k=5))
    new = pa.table(
        {"item_id": ["n0", "n1"], "title": ["heat 99", "dune 98"], "genres": ["crime"] * 2}
    )
    assert model.add_items(new) == 2
    # Nobody has met it, so it is near others by its text and not among those met together.
    assert len(columns(model.similar_items(["n0"], k=5))["similar_item"]) == 5
    assert "n0" not in columns(model.similar_items(["i0"], k=31))["similar_item"]
    rows = columns(model.recommend(["u1"], k=100, depth=100))
    assert {"n0", "n1"} <= set(rows["item"])
    # The new items are cold: what was known of the others is known as before.
    old = [item for item in rows["item"] if item not in {"n0", "n1"}]
    assert set(old) == set(columns(model.recommend(["u1"], k=100, block=["n0", "n1"]))["item"])
    assert len(old) == split.train.n_items - len(set(history_of(split, "u1")))
    with pytest.raises(hr.InputError, match=r"'n0'.*already here"):
        model.add_items(new)
    model.retire_items(["n0", before["item"][0]])
    rows = columns(model.recommend(["u1"], k=100, depth=100))
    assert "n0" not in rows["item"]
    assert before["item"][0] not in rows["item"]
    assert "n1" in rows["item"]
    # A retired item still tells of taste.
    assert model.recommend(histories=[["n0"]], k=3).num_rows == 3


NEW = pa.table({"item_id": ["n0", "n1"], "title": ["heat 99", "dune 98"], "genres": ["crime"] * 2})


class Failing(hr.Popularity):
    """Refuses what it is told to refuse."""

    refused = ()

    def refit(self, data):
        if "refit" in self.refused:
            raise RuntimeError("the disk is full")
        return super().refit(data)

    def add_items(self, texts, n):
        if "add_items" in self.refused:
            raise RuntimeError("the disk is full")
        super().add_items(texts, n)


@pytest.fixture
def failing(dataset, tiny_encoder):
    """Its last recaller can be made to fail after the others have done their part."""
    recallers = [
        hr.ALS(factors=8, epochs=2),
        hr.ALS(factors=8, epochs=2, index="HNSW32", name="approximate"),
        hr.ItemTransitions(),
        hr.TextRecall(tiny_encoder),
        Failing(name="failing"),
    ]
    return hr.HybridRecommender(recallers, fusion=hr.LinearFusion()).fit(dataset)


def answers(model):
    return columns(model.recommend(["u1", "u2"], k=50, depth=50)), columns(
        model.similar_items(["i3"], k=50)
    )


def test_items_are_added_to_every_stage_or_to_none(failing, tmp_path):
    before = answers(failing)
    failing.recallers[-1].refused = ("add_items",)
    with pytest.raises(RuntimeError, match="disk is full"):
        failing.add_items(NEW)
    assert answers(failing) == before
    failing.save(tmp_path / "model")
    kinds = {"Failing": Failing}
    assert hr.load(tmp_path / "model", kinds=kinds).data.n_items == failing.data.n_items == 30
    failing.recallers[-1].refused = ()
    assert failing.add_items(NEW) == 2
    assert {"n0", "n1"} <= set(columns(failing.recommend(["u1"], k=50, depth=50))["item"])


def test_whoever_asks_while_items_are_added_hears_the_model_before(failing, monkeypatch):
    before, during = answers(failing), []

    def add_items(self, texts, n):
        during.append(answers(failing))
        hr.Popularity.add_items(self, texts, n)

    monkeypatch.setattr(Failing, "add_items", add_items)
    failing.add_items(NEW)
    assert during == [before]
    assert answers(failing) != before


def test_a_fit_that_fails_leaves_the_model_that_was_there(failing, dataset):
    before, report, half_lives = answers(failing), failing.report, failing.report.half_lives
    failing.recallers[-1].refused = ("refit",)
    half = dataset.keep_events(dataset.histories.from_end() > 4)
    with pytest.raises(RuntimeError, match="disk is full"):
        failing.fit(half)
    assert answers(failing) == before
    assert failing.report == report
    assert {r.name: r.half_life for r in failing.recallers} == half_lives
    failing.recallers[-1].refused = ()
    assert answers(failing.fit(half)) != before


def test_retired_items_stand_on_no_stages_list(split):
    model = hr.HybridRecommender([hr.Popularity(), hr.ALS(factors=8, epochs=2)]).fit(split.train)
    model.retire_items(["i4"])
    code = int(split.train.items.codes(["i4"])[0])
    allow = np.arange(30) < 20
    for queries in (split.queries, replace(split.queries, allow=allow)):
        for stage in model.stage_lists(queries, 30):
            found = set(stage.candidates.items.ravel().tolist()) - {-1}
            assert code not in found
            assert queries.allow is None or max(found) < 20
    model.add_items(NEW)
    with pytest.raises(hr.InputError, match="for_catalogue"):
        model.stage_lists(split.queries, 30)


def test_stages_that_cannot_be_are_refused_when_the_recommender_is_made(tiny_encoder):
    reranker = hr.CrossEncoder(tiny_encoder)
    for arguments, message in (
        (([hr.ALS(), hr.ALS()],), "a name of its own"),
        (([hr.ALS(name=reranker.name)], reranker), "a name of its own"),
        ((hr.ALS(),), r"recallers is ALS; wanted a list"),
        (([hr.ALS],), r"recallers\[0\] is the class ALS"),
        (([hr.ALS()], hr.LinearFusion()), "reranker is .*CrossEncoder"),
        (([hr.ALS()], None, reranker), "fusion is .*LinearFusion"),
    ):
        with pytest.raises((hr.InputError, hr.InputTypeError), match=message):
            hr.HybridRecommender(*arguments)


def test_what_is_no_data_set_is_named_with_the_remedy(split, frames):
    model = hr.HybridRecommender([hr.Popularity()])
    with pytest.raises(hr.InputTypeError, match=r"data is Split; .*split\.train"):
        model.fit(split)
    with pytest.raises(hr.InputTypeError, match=r"data is Table; .*from_frame"):
        model.fit(frames[0])


def test_a_reranker_without_text_is_refused_before_anything_is_fitted(frames, tiny_encoder):
    data = hr.Dataset.from_frame(frames[0], user="user_id", item="item_id", time="timestamp")

    class Untouched(hr.Popularity):
        def fit(self, data):
            raise RuntimeError("fitted")

    model = hr.HybridRecommender([Untouched()], hr.CrossEncoder(tiny_encoder))
    with pytest.raises(hr.FitError, match="item_text="):
        model.fit(data)


def test_a_save_without_histories_erases_those_of_the_save_before(light, tmp_path):
    light.save(tmp_path / "model", histories=True)
    light.save(tmp_path / "model")
    assert hr.load(tmp_path / "model").data.n_users == 0
    for path in (tmp_path / "model").rglob("*"):
        assert not path.is_file() or b"u17" not in path.read_bytes(), path


def test_the_fitted_parts_are_those_that_a_load_brings(engine, tmp_path):
    engine.save(tmp_path / "model", histories=True)
    loaded = hr.load(tmp_path / "model")
    assert loaded.report == engine.report
    assert loaded.report.reranker
    for model in (engine, loaded):
        assert model.fusion is model.pipeline.fusion
        assert model.reranker is model.pipeline.reranker
        assert model.recallers == model.pipeline.blend.recallers


def test_before_fit_the_remedy_is_named(tmp_path):
    model = hr.HybridRecommender([hr.Popularity()])
    for call in (
        lambda: model.recommend(["u1"]),
        lambda: model.similar_items(["i1"]),
        lambda: model.save(tmp_path / "m"),
        lambda: model.retire_items(["i1"]),
    ):
        with pytest.raises(hr.NotFittedError, match="call fit"):
            call()
    with pytest.raises(hr.InputError, match="at least one"):
        hr.HybridRecommender([])
    with pytest.raises(hr.InputError, match="rerank_depth is 50"):
        hr.HybridRecommender([hr.Popularity()], depth=10, rerank_depth=50)


def test_a_reranker_needs_text_and_events(frames, tiny_encoder, dataset):
    events, _ = frames
    data = hr.Dataset.from_frame(events, user="user_id", item="item_id", time="timestamp")
    model = hr.HybridRecommender([hr.Popularity()], hr.CrossEncoder(tiny_encoder))
    with pytest.raises(hr.FitError, match="item_text="):
        model.fit(data)
    few = dataset.keep_events(dataset.histories.from_end() < 3)
    with pytest.raises(hr.FitError, match="5 at least"):
        model.fit(few)


def test_a_catalogue_of_one_item():
    table = pa.table({"u": ["a", "b"], "i": ["only", "only"], "t": [1, 2]})
    data = hr.Dataset.from_frame(table, user="u", item="i", time="t")
    model = hr.HybridRecommender([hr.Popularity(), hr.ALS(factors=4), hr.ItemTransitions()]).fit(
        data
    )
    assert model.recommend(["a"], k=5).num_rows == 0
    assert columns(model.recommend(["a"], k=5, exclude_seen=False))["item"] == ["only"]


def test_unordered_data_leave_recency_out(frames):
    events, _ = frames
    data = hr.Dataset.from_frame(events, user="user_id", item="item_id")
    model = hr.HybridRecommender([hr.Popularity(), hr.ALS(factors=8)], fusion=hr.LinearFusion())
    model.fit(data)
    assert model.recallers[1].half_life is None
    assert model.recommend(["u1"], k=3).num_rows == 3
    with pytest.raises(hr.FitError, match="time="):
        hr.HybridRecommender([hr.ItemTransitions()]).fit(data)


def test_the_same_seed_gives_the_same_model(split, light):
    again = hr.HybridRecommender(
        [hr.Popularity(), hr.ALS(factors=8, epochs=5), hr.ItemTransitions()],
        None,
        hr.LinearFusion(),
    ).fit(split.train)
    users = split.train.users.ids
    assert columns(again.recommend(users, k=9)) == columns(light.recommend(users, k=9))
    assert columns(light.recommend(users, k=9)) == columns(light.recommend(users, k=9))


def test_threads_may_share_a_recommender(engine, split):
    users = split.train.users.ids[:12]
    alone = columns(engine.recommend(users, k=6))
    found = [None] * 4

    def ask(place):
        found[place] = columns(engine.recommend(users, k=6))

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answer in found:
        assert answer["item"] == alone["item"]


# One CPU for the whole process: the compiled core takes its thread count from the affinity mask.
LOADED = """
import os, sys, json
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import hybridrec as hr
engine = hr.load(sys.argv[1])
answer = engine.recommend(["u1", "u2", "u3"], k=7)
print(json.dumps(answer.to_pydict()))
"""


def test_a_loaded_model_recommends_what_the_saved_one_did_in_a_process_of_one_thread(
    engine, tmp_path
):
    import json

    engine.save(tmp_path / "model", histories=True)
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADED, str(tmp_path / "model")],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "", "OMP_NUM_THREADS": "1"},
    )
    loaded = json.loads(out.stdout)
    saved = columns(engine.recommend(["u1", "u2", "u3"], k=7))
    assert loaded["item"] == saved["item"]
    np.testing.assert_allclose(loaded["score"], saved["score"], rtol=1e-5, atol=1e-5)


def test_without_torch_the_same_bits_come_back(light, split, tmp_path):
    light.save(tmp_path / "model", histories=True)
    loaded = hr.load(tmp_path / "model")
    users = split.train.users.ids
    assert columns(loaded.recommend(users, k=9)) == columns(light.recommend(users, k=9))
    assert loaded.report == light.report
    assert columns(loaded.similar_items(["i2"])) == columns(light.similar_items(["i2"]))


def test_a_model_holds_no_users_unless_asked(light, tmp_path):
    light.save(tmp_path / "model")
    assert not (tmp_path / "model" / "histories").exists()
    for path in (tmp_path / "model").rglob("*"):
        assert not path.is_file() or b"u17" not in path.read_bytes(), path
    loaded = hr.load(tmp_path / "model")
    with pytest.raises(hr.UnknownIdError, match="histories=True"):
        loaded.recommend(["u1"])
    assert loaded.recommend(histories=[["i1", "i2"]], k=3).num_rows == 3


def test_histories_of_another_catalogue_are_not_taken_for_this_one(light, tmp_path, caplog):
    light.save(tmp_path / "model", histories=True)
    table = pa.table({"u": ["x"] * 4, "i": ["a", "b", "c", "d"], "t": [1, 2, 3, 4]})
    other = hr.Dataset.from_frame(table, user="u", item="i", time="t")
    stranger = hr.HybridRecommender([hr.ItemTransitions()]).fit(other)
    stranger.save(tmp_path / "other", histories=True)
    shutil.rmtree(tmp_path / "model" / "histories")
    shutil.copytree(tmp_path / "other" / "histories", tmp_path / "model" / "histories")
    loaded = hr.load(tmp_path / "model")
    assert "another catalogue" in caplog.text
    assert loaded.data.n_users == 0


def test_added_and_retired_items_survive_a_save(split, tiny_encoder, tmp_path):
    model = make_engine(tiny_encoder).fit(split.train)
    model.add_items(pa.table({"item_id": ["n0"], "title": ["tron 7"], "genres": ["drama"]}))
    model.retire_items(["i4"])
    model.save(tmp_path / "model", histories=True)
    loaded = hr.load(tmp_path / "model")
    rows = columns(loaded.recommend(["u1"], k=100, depth=100))
    assert "n0" in rows["item"]
    assert "i4" not in rows["item"]
    assert rows["item"] == columns(model.recommend(["u1"], k=100, depth=100))["item"]


def test_item_columns_and_times_come_back(tmp_path):
    table = pa.table(
        {
            "u": ["a", "a", "a", "b", "b"],
            "i": [1, 2, 9, 2, 1],
            "t": pa.array([5, 4, 3, 2, 1], pa.timestamp("us")),
            "stars": [5, 5, 5, 5, 1],
        }
    )
    items = pa.table(
        {"i": [1, 2], "year": [1979, 1985], "maker": ["x", None], "tags": [["p", "q"], []]}
    )
    data = hr.Dataset.from_frame(
        table,
        user="u",
        item="i",
        time="t",
        rating="stars",
        positive=2,
        items=items,
        item_columns=["year", "maker", "tags"],
    )
    model = hr.HybridRecommender([hr.Popularity()]).fit(data)
    model.save(tmp_path / "model", histories=True)
    loaded = hr.load(tmp_path / "model").data
    assert loaded.dated
    assert loaded.histories.times.tolist() == data.histories.times.tolist()
    assert loaded.excluded.times.tolist() == data.excluded.times.tolist()
    assert hr.split.by_time(loaded, "1970-01-01T00:00:00.000004").targets.items.tolist() == (
        hr.split.by_time(data, "1970-01-01T00:00:00.000004").targets.items.tolist()
    )
    new = pa.table({"i": [7], "year": [2021], "maker": ["z"], "tags": [["r"]]})
    grown = [part.with_items(part.read_items(new)).item_columns for part in (data, loaded)]
    for name in ("year", "maker", "tags"):
        assert str(grown[0][name].tolist()) == str(grown[1][name].tolist())
    wrong = pa.table({"i": [7], "year": [2021], "maker": [3], "tags": [["r"]]})
    with pytest.raises(hr.InputTypeError, match=r"items\['maker'\] has type int64"):
        model.add_items(wrong)


class Alphabetical:
    """Somebody's own recaller."""

    name = "alphabetical"
    half_life = np.int64(5)
    half_lives = ()

    def fit(self, data):
        self.n_items = np.int64(data.n_items)
        return self

    refit = fit

    def score(self, queries, items):
        return np.where(items >= 0, -items, -np.inf).astype(np.float32)

    def recall(self, queries, k):
        from hybridrec.candidates import Candidates

        items = np.tile(np.arange(min(k, self.n_items), dtype=np.int32), (len(queries), 1))
        return Candidates(items, self.score(queries, items))

    def add_items(self, texts, n):
        self.n_items += n

    def save_files(self, folder):
        write_state(folder, {"n_items": self.n_items, "scale": np.float32(0.5)}, {})

    @classmethod
    def load_files(cls, folder):
        recaller = cls()
        recaller.n_items = read_state(folder)[0]["n_items"]
        return recaller


def test_a_researchers_own_recaller_goes_the_whole_way(split, tmp_path):
    model = hr.HybridRecommender([Alphabetical()]).fit(split.train)
    model.save(tmp_path / "model")
    with pytest.raises(hr.StorageError, match="kinds="):
        hr.load(tmp_path / "model")
    loaded = hr.load(tmp_path / "model", kinds={"Alphabetical": Alphabetical})
    assert loaded.report == model.report
    assert model.report.half_lives == {"alphabetical": 5}
    assert (
        columns(loaded.recommend(histories=[["i9"]], k=2))["item"]
        == columns(model.recommend(histories=[["i9"]], k=2))["item"]
    )
