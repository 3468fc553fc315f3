"""Items without events: who finds them, and where they stand."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

import hybridrec as hr
from hybridrec.candidates import Candidates, Queries

pytest.importorskip("transformers")


def stages(encoder):
    return [
        hr.Popularity(),
        hr.ALS(factors=8, epochs=5),
        hr.ItemTransitions(),
        hr.TextRecall(encoder),
    ]


@pytest.fixture(scope="module")
def split(dataset):
    return hr.split.cold_items(dataset, 0.2)


@pytest.fixture(scope="module")
def engine(split, tiny_encoder):
    return hr.HybridRecommender(
        stages(tiny_encoder),
        None,
        hr.LinearFusion(),
        newcomers=hr.Newcomers(first=3, every=2, depth=4),
        depth=12,
    ).fit(split.train)


def lists(rows):
    """Candidates of the codes in ``rows``, scores falling from 10."""
    width = max(map(len, rows))
    items = np.array([[*row, *[-1] * (width - len(row))] for row in rows], dtype=np.int32)
    scores = np.where(items >= 0, 10.0 - np.arange(width), -np.inf)
    return Candidates(items, scores)


def placed(first, every, main, new, width):
    got, are_new = hr.Newcomers(first=first, every=every).beside(lists(main), lists(new), width)
    assert (np.isin(got.items, np.concatenate(new)) == are_new).all()
    Candidates.ranked(got.items, got.scores)  # a row that is not in order would be put in order
    np.testing.assert_array_equal(Candidates.ranked(got.items, got.scores).items, got.items)
    return [row[row >= 0].tolist() for row in got.items]


def test_newcomers_get_their_places_and_the_others_keep_their_order():
    main = [[50, 3, 41, 2, 40, 1]]
    assert placed(3, 2, main, [[90, 10, 91]], 9) == [[50, 3, 90, 41, 10, 2, 91, 40, 1]]
    assert placed(3, 2, main, [[90, 10, 91]], 5) == [[50, 3, 90, 41, 10]]
    assert placed(1, 4, main, [[10, 90]], 8) == [[10, 50, 3, 41, 90, 2, 40, 1]]


def test_what_is_found_beyond_the_places_follows_where_the_others_end():
    found = placed(2, 3, [[5, 4], [7, 6], [9]], [[20, 21, 22], [23], [24, 25]], 5)
    assert found == [[5, 20, 4, 21, 22], [7, 23, 6], [9, 24, 25]]


def test_a_list_without_the_others_is_newcomers_alone():
    main = Candidates(np.full((1, 3), -1, np.int32), np.full((1, 3), -np.inf, np.float32))
    got, new = hr.Newcomers().beside(main, lists([[8, 3]]), 3)
    assert got.items.tolist() == [[8, 3, -1]]
    assert new.tolist() == [[True, True, False]]


def test_an_answer_holds_newcomers_at_their_places_only(engine, split):
    unmet = engine.newcomers.unmet
    assert 0 < unmet.sum() < len(unmet)
    ranked = engine.pipeline.rank(split.train.queries(split.train.users.ids))
    new = unmet[ranked.items]
    np.testing.assert_array_equal(np.flatnonzero(new[0, :8]), [2, 4, 6])
    assert (new[:, :8] == new[0, :8]).all()
    first = engine.pipeline.fused(
        engine.pipeline.blend.candidates(
            engine.newcomers.others(split.train.queries(split.train.users.ids)), 12
        )
    )
    np.testing.assert_array_equal(ranked.items[:, [0, 1, 3, 5]], first.items[:, :4])


def test_their_order_is_learned_from_items_with_events(engine, split):
    report = engine.report
    assert report.rows["newcomers"] > 0
    names = engine.newcomers.fusion.signals
    assert set(names) == {
        "text",
        "popularity, by text",
        "als, by text",
        "item transitions, by text",
    }


def test_a_list_to_learn_from_holds_items_of_its_targets_pool(engine, split):
    newcomers = engine.newcomers
    queries = split.train.queries(split.train.users.ids[:9])
    pools = np.where(newcomers.unmet, -1, np.arange(len(newcomers.unmet)) % 3)
    chosen = np.array([2, 0, 1, 0, 2, 2, 1, 0, 1])
    found = newcomers.among(queries, pools, chosen)
    assert found.valid[:, :3].all()
    wide = np.repeat(chosen[:, None], 4, axis=1)
    np.testing.assert_array_equal(pools[found.items][found.valid], wide[found.valid])
    for row in (0, 3, 8):
        alone = replace(queries.select(np.array([row])), allow=pools == chosen[row])
        wanted = newcomers.candidates(alone)
        np.testing.assert_array_equal(found.items[row], wanted.items[0])
        for name, values in wanted.signals.items():
            np.testing.assert_allclose(found.signals[name][row], values[0], rtol=1e-5)
    none = newcomers.among(queries.select(np.arange(0)), pools, chosen[:0])
    assert len(none) == 0


def test_pools_are_dealt_evenly_and_never_too_small(engine):
    wide = hr.Newcomers(depth=2)
    wide._known = np.arange(400) >= 40
    pools = wide.pools(np.random.default_rng(0))
    assert (pools[:40] == -1).all()
    counts = np.bincount(pools[40:])
    assert len(counts) == 10
    assert counts.min() > 20
    assert set(engine.newcomers.pools(np.random.default_rng(0)).tolist()) == {-1, 0}


def test_only_allowed_newcomers_come(engine, split):
    unmet = np.flatnonzero(engine.newcomers.unmet)
    ids = engine.data.items.ids_of(unmet)
    answer = engine.recommend(["u1"], k=9, allow=ids.tolist(), frame="pandas")
    assert set(answer.item) == set(ids)
    blocked = engine.recommend(["u1"], k=12, block=ids.tolist(), frame="pandas")
    assert not set(blocked.item) & set(ids)


def test_stages_show_what_newcomers_bring(engine, split):
    report = hr.evaluate(engine, split)
    by_name = {stage.name: stage for stage in report.stages}
    assert report.stages[-1].name == "with newcomers"
    assert by_name["fused"].recall == 0
    assert by_name["with newcomers"].recall > 0
    assert by_name["with newcomers"].recall_by_depth[1] == 0


def test_a_model_with_newcomers_comes_back_and_takes_in_more(engine, split, tmp_path):
    engine.save(tmp_path / "model", histories=True)
    loaded = hr.load(tmp_path / "model")
    users = split.train.users.ids
    asked = {"k": 12, "frame": "pandas"}
    assert loaded.recommend(users, **asked).equals(engine.recommend(users, **asked))
    before = loaded.newcomers.unmet.sum()
    loaded.add_items(pa.table({"item_id": ["n0"], "title": ["heat 99"], "genres": ["crime"]}))
    assert loaded.newcomers.unmet.sum() == before + 1
    assert engine.newcomers.unmet.sum() == before
    assert "n0" in set(loaded.recommend(users, k=12, allow=["n0"], frame="pandas").item)
    loaded.save(tmp_path / "model", histories=True)
    again = hr.load(tmp_path / "model")
    assert again.recommend(users, **asked).equals(loaded.recommend(users, **asked))


def test_what_was_reranked_is_said_of_each_item(split, tiny_encoder):
    engine = hr.HybridRecommender(
        stages(tiny_encoder),
        hr.CrossEncoder(tiny_encoder, history=3, finetuning={"negatives": 4}, max_item_tokens=12),
        hr.LinearFusion(),
        newcomers=hr.Newcomers(first=2, every=3, depth=5),
        depth=12,
        rerank_depth=4,
        reranker_examples=40,
    ).fit(split.train)
    answer = engine.recommend(["u1", "u2"], k=12, budget_ms=60_000, frame="pandas")
    for _, mine in answer.groupby("user"):
        assert mine.reranked.tolist()[:7] == [True, False, True, True, False, True, False]
        assert not mine.reranked[7:].any()


def test_text_recall_may_be_a_signal_that_brings_no_candidates(split, tiny_encoder, tmp_path):
    *known, texts = stages(tiny_encoder)
    engine = hr.HybridRecommender(
        known,
        None,
        hr.LinearFusion(),
        signals=[texts],
        newcomers=hr.Newcomers(first=1, every=2, reads=["als"]),
    ).fit(split.train)
    assert set(engine.newcomers.fusion.signals) == {"text", "als, by text"}
    answer = engine.recommend(["u1"], k=4, frame="pandas")
    new = engine.newcomers.unmet[engine.data.items.codes(answer.item.to_numpy())]
    assert new.tolist() == [True, False, True, False]
    engine.save(tmp_path / "model", histories=True)
    assert hr.load(tmp_path / "model").recommend(["u1"], k=4, frame="pandas").equals(answer)


def test_an_answer_that_ends_before_their_places_is_the_start_of_a_longer_one(engine, split):
    users = split.train.users.ids
    short = engine.recommend(users, k=2, frame="pandas")
    long = engine.recommend(users, k=9, frame="pandas")
    start = long[long["rank"] <= 2].reset_index(drop=True)
    assert short[["user", "item"]].equals(start[["user", "item"]])


def test_who_else_asks_changes_no_answer(engine, split):
    data = split.train
    everything = data.items.ids.tolist()
    met = [item for item, new in zip(everything, engine.newcomers.unmet, strict=True) if not new]
    histories = {"few": met[:3], "nearly all": met[:-2]}
    both = engine.recommend(histories=histories, k=12, frame="pandas")
    for name, history in histories.items():
        alone = engine.recommend(histories={name: history}, k=12, frame="pandas")
        assert both[both.user == name].item.tolist() == alone.item.tolist()


def test_an_item_that_was_only_disliked_is_no_newcomer(frames, tiny_encoder):
    events, items = frames
    rating = [1 if item == "i5" else 5 for item in events["item_id"].to_pylist()]
    data = hr.Dataset.from_frame(
        events.append_column("rating", pa.array(rating)),
        user="user_id",
        item="item_id",
        time="timestamp",
        rating="rating",
        positive=4,
        items=items,
        item_text="{title}. {genres}",
    )
    newcomers = hr.Newcomers().fit(data)
    (code,) = data.items.codes(["i5"])
    assert newcomers.events[code] == 0
    assert not newcomers.unmet.any()


def test_a_newcomer_on_top_stands_above_the_scale_of_the_others():
    got, _ = hr.Newcomers(first=1, every=2).beside(lists([[5, 4, 3]]), lists([[9]]), 4)
    assert got.items.tolist() == [[9, 5, 4, 3]]
    assert got.scores[0, 1:].tolist() == [10.0, 9.0, 8.0]


def test_nobody_without_a_history_gets_newcomers(engine):
    answer = engine.recommend(["stranger"], k=8, unknown="popular", frame="pandas")
    codes = engine.data.items.codes(answer.item.to_numpy())
    assert not engine.newcomers.unmet[codes].any()


def test_what_cannot_be_is_refused(tiny_encoder):
    texts = hr.TextRecall(tiny_encoder)
    for recallers, more, message in (
        ([hr.Popularity()], {}, "add hybridrec.TextRecall"),
        ([texts], {}, "at least one recaller of interactions"),
        ([texts, hr.ALS()], {"newcomers": hr.Newcomers(reads=["text"])}, "at least one recaller"),
        ([texts, hr.Popularity()], {"calibrated": True, "fusion": "auto"}, "leave out one"),
    ):
        with pytest.raises(hr.InputError, match=message):
            hr.HybridRecommender(recallers, **{"newcomers": hr.Newcomers(), **more})
    with pytest.raises(hr.InputTypeError, match=r"newcomers is Newcomers; wanted"):
        hr.HybridRecommender([texts, hr.Popularity()], newcomers=hr.Newcomers)
    with pytest.raises(hr.InputError, match=r"read 'als', which is not among .*'popularity'"):
        hr.HybridRecommender([texts, hr.Popularity()], newcomers=hr.Newcomers(reads=["als"]))
    with pytest.raises(hr.InputTypeError, match="reads is 'als'"):
        hr.Newcomers(reads="als")
    with pytest.raises(hr.InputError, match="every is 1"):
        hr.Newcomers(every=1)
    with pytest.raises(hr.NotFittedError):
        hr.Newcomers().rank(Queries(hr.Ragged.empty(1), 3))
