"""Reasons hold what the stages said, and the events that speak for an item are those that count."""

import numpy as np
import pytest

import hybridrec as hr
from hybridrec.deadline import Deadline
from hybridrec.serve.answers.answering import answer
from hybridrec.serve.answers.asking import Ask
from hybridrec.serve.versions.models import load_model

HISTORY = ("i1", "i2", "i9", "i2", "i14")


def explained(held, **options):
    (found,) = answer(held, [Ask(**{"history": HISTORY, "k": 20, **options}, explain=True)])
    return found


def ranking_of(held, **options):
    data = held.data
    codes = data.items.codes(list(HISTORY))
    rows = hr.Ragged.from_rows([codes])
    return held.pipeline.ranking(hr.Queries(rows, data.n_items, exclude=rows), 20, **options)


def test_signals_are_what_every_stage_said(loaded):
    found, ranking = explained(loaded), ranking_of(loaded)
    names = {stage.name for stage in loaded.pipeline.blend.recallers}
    ordered = dict(zip(ranking.ordered.items[0].tolist(), range(20), strict=True))
    head = dict(zip(ranking.head.items[0].tolist(), range(10), strict=True))
    name = loaded.pipeline.reranker.name
    for each in found.items:
        code = int(loaded.item_codes([each.item])[0])
        said = dict(each.why.signals)
        fused = said.pop("fused")
        assert fused == pytest.approx(ranking.ordered.scores[0, ordered[code]], abs=1e-5)
        assert (name in said) is (code in head) is each.reranked
        if code in head:
            expected = ranking.head.signals[name][0, head[code]]
            assert said.pop(name) == pytest.approx(expected, abs=1e-5)
        assert set(said) == names
        for stage, value in said.items():
            expected = ranking.ordered.signals[stage][0, ordered[code]]
            assert value == pytest.approx(expected, abs=1e-5)


def test_ranks_are_the_places_that_stages_gave(loaded):
    found, ranking = explained(loaded), ranking_of(loaded)
    recalled, ordered = ranking.recalled.items[0].tolist(), ranking.ordered.items[0].tolist()
    reranked = loaded.pipeline.reranked_alone(ranking.head).items[0].tolist()
    for place, each in enumerate(found.items, start=1):
        code = int(loaded.item_codes([each.item])[0])
        expected = {"recall": recalled.index(code) + 1, "fused": ordered.index(code) + 1}
        if code in reranked:
            expected["reranked"] = reranked.index(code) + 1
        assert each.why.ranks == {**expected, "answer": place}
        moved = ("reranker",) if expected["fused"] != place else ()
        assert each.why.moved_by == moved
    assert any(each.why.moved_by for each in found.items)


def test_stages_left_out_say_nothing(loaded):
    recalled = explained(loaded, rerank=False, fuse=False)
    for place, each in enumerate(recalled.items, start=1):
        assert each.why.ranks == {"recall": place, "answer": place}
        assert each.why.moved_by == ()
        assert set(each.why.signals) == {s.name for s in loaded.pipeline.blend.recallers}


def test_what_speaks_for_an_item_is_what_it_loses_without(loaded):
    """Against the plain way: the fused scores of the same list without each event in turn."""
    found, ranking = explained(loaded), ranking_of(loaded)
    items = ranking.ordered.items
    codes = loaded.data.items.codes(list(HISTORY))

    def fused(history):
        queries = hr.Queries(hr.Ragged.from_rows([history]), loaded.data.n_items)
        signals = loaded.pipeline.blend.signals(queries, items)
        listed = hr.Candidates(items, ranking.ordered.scores, signals)
        return dict(
            zip(items[0].tolist(), loaded.pipeline.fusion.score(listed)[0].tolist(), strict=True)
        )

    whole = fused(codes)
    without = [fused(np.delete(codes, event)) for event in range(len(codes))]
    several = 0
    for each in found.items:
        code = int(loaded.item_codes([each.item])[0])
        losses = {}
        for event, scores in zip(HISTORY, without, strict=True):
            losses[event] = losses.get(event, 0.0) + max(0.0, whole[code] - scores[code])
        total = sum(losses.values())
        expected = {event: loss / total for event, loss in losses.items() if loss > 0}
        assert dict(each.why.because) == pytest.approx(expected, abs=1e-4)
        shares = [share for _, share in each.why.because]
        assert shares == sorted(shares, reverse=True)
        several += len(shares) > 1
    assert several


def test_the_event_that_an_item_follows_speaks_for_it(dataset, tmp_path):
    """By transitions alone, i7 comes after i6: of a history that holds it, i6 says so."""
    hr.HybridRecommender([hr.ItemTransitions()]).fit(dataset).save(tmp_path / "model")
    held = load_model(tmp_path / "model")
    (found,) = answer(held, [Ask(history=("i20", "i6"), k=1, explain=True)])
    assert found.items[0].item == "i7"
    assert found.items[0].why.because[0][0] == "i6"
    assert found.items[0].why.because[0][1] > 0.8
    assert set(found.items[0].why.signals) == {"item transitions"}


def test_no_more_than_the_five_that_say_most_of_the_newest_twenty(loaded):
    history = tuple(f"i{n}" for n in range(25))
    (found,) = answer(loaded, [Ask(history=history, k=5, explain=True)])
    for each in found.items:
        assert 0 < len(each.why.because) <= 5
        assert sum(share for _, share in each.why.because) <= 1 + 1e-6
        assert {item for item, _ in each.why.because} <= set(history[5:])


def test_the_history_is_shown_with_titles_as_far_as_it_is_known(loaded):
    found = explained(loaded, history=("i1", "of tomorrow", "i2"), lenient=True)
    assert [item for item, _ in found.history] == ["i1", "i2"]
    assert all(title for _, title in found.history)
    (quiet,) = answer(loaded, [Ask(history=("i1",))])
    assert quiet.history == ()
    assert all(each.why is None for each in quiet.items)


def test_popular_items_are_popular(loaded):
    for found, moved in (
        (explained(loaded, history=()), ("popularity",)),
        (explained(loaded, deadline=Deadline(-1.0)), ("popularity", "degraded")),
    ):
        for place, each in enumerate(found.items, start=1):
            assert each.why.moved_by == moved
            assert each.why.ranks == {"answer": place}
            assert each.why.signals.keys() == {"popularity"}
            assert each.why.because == ()
        said = [each.why.signals["popularity"] for each in found.items]
        assert said == sorted(said, reverse=True)


def test_newcomers_say_what_their_texts_do(dataset, tiny_encoder, tmp_path):
    split = hr.split.cold_items(dataset, 0.2)
    hr.HybridRecommender(
        [hr.ALS(factors=8, epochs=5), hr.ItemTransitions(), hr.TextRecall(tiny_encoder)],
        None,
        hr.LinearFusion(),
        newcomers=hr.Newcomers(first=3, every=2, depth=4),
        depth=12,
    ).fit(split.train).save(tmp_path / "model")
    held = load_model(tmp_path / "model")
    met = held.data.items.ids[~held.pipeline.newcomers.unmet][:4].tolist()
    alone, found = answer(
        held,
        [Ask(history=tuple(met), k=9, explain=True), Ask(history=tuple(met[:1]), explain=True)],
    )
    new = [each for each in alone.items if each.newcomer]
    assert [place for place, each in enumerate(alone.items, 1) if each.newcomer] == [3, 5, 7, 9]
    for each in new:
        assert each.why.moved_by == ("newcomers",)
        assert set(each.why.ranks) == {"answer"}
        assert "fused" in each.why.signals
        assert any(name.endswith("by text") for name in each.why.signals)
        assert each.why.because
    for each in alone.items:
        if not each.newcomer:
            assert each.why.moved_by == ()
    assert any(each.newcomer for each in found.items)
