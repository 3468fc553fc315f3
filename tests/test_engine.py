"""The whole path with real stages: tiny data, a tiny random encoder, nothing mocked."""

import subprocess
import sys
import threading

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import hybridrec as hr


def make_engine(encoder, **options):
    return hr.HybridRecommender(
        [
            hr.Popularity(),
            hr.ALS(factors=8, epochs=5),
            hr.ItemTransitions(),
            hr.TextRecall(encoder),
        ],
        hr.CrossEncoder(encoder, history=4, negatives=4, max_item_tokens=12),
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
    assert sum(report.asked[name] for name in ("reranker", "stopping", "fusion")) == 3 * users
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
        ({"histories": ["i1"]}, "wanted a list of item ids"),
        ({"histories": [["nothing"]]}, "'nothing'"),
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
    assert columns(model.recommend(["u1"], k=5))["user"] == before["user"]
    with pytest.raises(hr.InputError, match=r"'n0'.*already here"):
        model.add_items(new)
    model.retire_items(["n0", before["item"][0]])
    rows = columns(model.recommend(["u1"], k=100, depth=100))
    assert "n0" not in rows["item"]
    assert before["item"][0] not in rows["item"]
    assert "n1" in rows["item"]
    # A retired item still tells of taste.
    assert model.recommend(histories=[["n0"]], k=3).num_rows == 3


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


LOADED = """
import sys, json, hybridrec as hr
from dataclasses import replace
engine = hr.load(sys.argv[1])
for recaller in engine.recallers:
    if hasattr(recaller, "config") and hasattr(recaller.config, "threads"):
        recaller.config = replace(recaller.config, threads=1)
answer = engine.recommend(["u1", "u2", "u3"], k=7)
print(json.dumps(answer.to_pydict()))
"""


def test_a_loaded_model_recommends_what_the_saved_one_did_in_another_process(engine, tmp_path):
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
    hr.HybridRecommender([hr.ItemTransitions()]).fit(other).save(tmp_path / "model")
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


class Alphabetical:
    """Somebody's own recaller."""

    name = "alphabetical"
    half_life = None
    half_lives = ()

    def fit(self, data):
        self.n_items = data.n_items
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
        folder.mkdir()
        (folder / "n.txt").write_text(str(self.n_items))

    @classmethod
    def load_files(cls, folder):
        recaller = cls()
        recaller.n_items = int((folder / "n.txt").read_text())
        return recaller


def test_a_researchers_own_recaller_goes_the_whole_way(split, tmp_path):
    model = hr.HybridRecommender([Alphabetical()]).fit(split.train)
    model.save(tmp_path / "model")
    with pytest.raises(hr.StorageError, match="kinds="):
        hr.load(tmp_path / "model")
    loaded = hr.load(tmp_path / "model", kinds={"Alphabetical": Alphabetical})
    assert (
        columns(loaded.recommend(histories=[["i9"]], k=2))["item"]
        == columns(model.recommend(histories=[["i9"]], k=2))["item"]
    )
