"""Whoever asks beside whom gets what the engine alone gives; who is late, less."""

import itertools
import shutil
from dataclasses import replace

import numpy as np
import pytest

import hybridrec as hr
from hybridrec.deadline import Deadline, Pace
from hybridrec.fuse.baselines import OrderBefore
from hybridrec.pipeline import BEFORE
from hybridrec.rerank import reading
from hybridrec.serve.answers.answering import answer
from hybridrec.serve.answers.asking import Answer, Ask
from hybridrec.serve.versions.models import load_model

ITEMS = [f"i{number}" for number in range(30)]


@pytest.fixture(scope="module")
def retiring(model_folder, tmp_path_factory):
    """A model of which three items are retired, as the service and as an application hold it."""
    folder = shutil.copytree(model_folder, tmp_path_factory.mktemp("retiring") / "model")
    engine = hr.load(folder)
    engine.retire_items(["i3", "i4", "i25"])
    engine.save(folder, histories=True)
    return load_model(folder), engine


@pytest.fixture(scope="module")
def welcoming(dataset, tiny_encoder, tmp_path_factory):
    """A model with items that nobody has met, which have places of their own."""
    split = hr.split.cold_items(dataset, 0.2)
    engine = hr.HybridRecommender(
        [hr.Popularity(), hr.ALS(factors=8, epochs=5), hr.TextRecall(tiny_encoder)],
        None,
        hr.LinearFusion(),
        newcomers=hr.Newcomers(first=3, every=2, depth=4),
        depth=12,
    ).fit(split.train)
    folder = tmp_path_factory.mktemp("welcoming") / "model"
    engine.save(folder, histories=True)
    return load_model(folder), engine


def test_a_reranker_that_is_not_asked_is_not_missed(model_folder, tmp_path):
    """Its use did not show when the model was fitted: no answer lacks it, however late it is."""
    folder = shutil.copytree(model_folder, tmp_path / "model")
    engine = hr.load(folder)
    before = OrderBefore(signals=[BEFORE])
    before.signals = (BEFORE,)
    pipeline = replace(engine.pipeline, fusion_with_reranker=before)
    engine._hold(replace(engine._model, pipeline=pipeline))
    engine.save(folder, histories=True)
    loaded = load_model(folder)
    asks = [Ask(history=("i1", "i2"), k=5, deadline=Deadline(ms)) for ms in (60_000, 50)]
    loaded.pace.observe(0.001)
    for found in answer(loaded, asks):
        assert found.degraded is None
        assert not any(item.reranked for item in found.items)
        assert [item.item for item in found.items] == of_engine(engine, asks[0])[0]


def of_engine(engine, ask):
    """(items, scores) that the engine gives to the same request, asked alone."""
    block = [*ask.block, *(ask.disliked if ask.exclude_seen else ())]
    found = engine.recommend(
        histories=[list(ask.history)],
        k=ask.k,
        depth=ask.depth,
        exclude_seen=ask.exclude_seen,
        allow=None if ask.allow is None else list(ask.allow),
        block=block or None,
    ).to_pydict()
    return found["item"], found["score"]


def of_pipeline(engine, ask):
    """The same with stages left out, which the engine has no argument for."""
    data = engine.data
    queries = replace(
        data.queries([], exclude_seen=False),
        histories=hr.Ragged.from_rows([data.items.codes(list(ask.history))]),
        users=np.array([-1], np.int32),
        exclude=hr.Ragged.from_rows([data.items.codes(list(ask.history))]),
    )
    ranking = engine.pipeline.ranking(queries, 20, rerank=ask.rerank, fuse=ask.fuse)
    best = ranking.answer.head(ask.k)
    return data.items.ids_of(best.items[best.valid]).tolist(), best.scores[best.valid].tolist()


def same(found, expected):
    items, scores = expected
    assert isinstance(found, Answer), found
    assert [each.item for each in found.items] == items
    np.testing.assert_allclose([each.score for each in found.items], scores, rtol=1e-5, atol=1e-5)


def drawn(generator, ids=ITEMS):
    """A random ask."""

    def some(most):
        n = int(generator.integers(0, most + 1))
        return tuple(generator.choice(ids, n, replace=False).tolist())

    return Ask(
        history=some(12),
        disliked=some(3),
        k=int(generator.choice([1, 5, 10, 60])),
        depth=[None, None, 8, 25][generator.integers(4)],
        exclude_seen=bool(generator.integers(4)),
        allow=[None, None, some(20), tuple(ids[:15])][generator.integers(4)],
        block=some(4),
    )


def test_every_combination_of_options_is_answered_as_the_engine_does(loaded, engine):
    histories = [(), ("i1",), tuple(ITEMS[5:14]), ("i2", "i2", "i9")]
    options = itertools.product(
        histories, (3, 40), (None, 8), (True, False), (None, tuple(ITEMS[:12])), ((), ("i1", "i15"))
    )
    asks = [
        Ask(history=h, k=k, depth=d, exclude_seen=e, allow=a, block=b, disliked=("i20",))
        for h, k, d, e, a, b in options
    ]
    for ask, found in zip(asks, answer(loaded, asks), strict=True):
        same(found, of_engine(engine, ask))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["plain", "retiring", "welcoming"])
def test_a_random_batch_is_answered_as_if_each_came_alone(request, loaded, engine, kind, seed):
    held, alone = (loaded, engine) if kind == "plain" else request.getfixturevalue(kind)
    generator = np.random.default_rng(seed)
    asks = [drawn(generator, alone.data.items.ids.tolist()) for _ in range(12)]
    retired = set(alone.data.items.ids[alone.retired].tolist())
    for ask, found in zip(asks, answer(held, asks), strict=True):
        same(found, of_engine(alone, ask))
        assert found.popular is (not ask.history)
        assert found.degraded is None
        assert not retired & {each.item for each in found.items}


@pytest.mark.parametrize(("rerank", "fuse"), list(itertools.product((True, False), repeat=2)))
def test_stages_are_left_out_for_those_who_say_so(loaded, engine, rerank, fuse):
    ask = Ask(history=tuple(ITEMS[3:9]), k=12, rerank=rerank, fuse=fuse)
    neighbour = Ask(history=("i7",))
    found, beside = answer(loaded, [ask, neighbour])
    same(found, of_pipeline(engine, ask))
    same(beside, of_engine(engine, neighbour))
    assert any(each.reranked for each in found.items) is rerank


def test_a_known_user_is_answered_by_the_history_that_is_given(loaded, engine):
    user = engine.data.users.ids[4].item()
    taken = engine.data.items.ids_of(engine.data.histories.select([4]).items).tolist()
    (found,) = answer(loaded, [Ask(user=user, history=tuple(taken), lenient=True)])
    expected = engine.recommend([user], k=10).to_pydict()
    same(found, (expected["item"], expected["score"]))
    assert found.version == loaded.version
    assert {"recall", "fuse", "rerank"} <= set(found.seconds)


def test_who_shares_a_batch_shares_one_ranking(loaded, monkeypatch):
    sizes = []
    ranking = type(loaded.pipeline).ranking

    def counted(self, queries, *args, **kwargs):
        sizes.append(len(queries))
        return ranking(self, queries, *args, **kwargs)

    monkeypatch.setattr(type(loaded.pipeline), "ranking", counted)
    asks = [
        Ask(history=(ITEMS[n],), k=1 + n, block=(ITEMS[n + 5],), exclude_seen=bool(n % 2))
        for n in range(8)
    ]
    answer(loaded, [*asks, Ask(), Ask(history=("i1",), allow=("i2", "i3"))])
    assert sorted(sizes) == [1, 9]


# -- what is wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["history", "disliked", "allow", "block", "candidates"])
def test_an_unknown_item_is_named_and_fails_nobody_else(loaded, engine, field):
    good = Ask(history=("i1", "i2"))
    wrong = replace(good, **{field: ("i1", "nothing like it")})
    first, error, last = answer(loaded, [good, wrong, good])
    assert isinstance(error, hr.UnknownIdError)
    assert f"{field}[1] is 'nothing like it'" in str(error)
    for found in (first, last):
        same(found, of_engine(engine, good))


def test_numbers_that_make_no_sense_are_errors_of_their_own(loaded):
    first, second, good = answer(loaded, [Ask(k=0), Ask(depth=0), Ask(k=2)])
    assert "k is 0" in str(first)
    assert "depth is 0" in str(second)
    assert len(good.items) == 2


def test_stored_items_that_the_model_does_not_know_are_left_out(loaded, engine):
    stored = Ask(
        history=("i1", "of tomorrow", "i2"), disliked=("unheard", "i5"), lenient=True, k=40
    )
    (found,) = answer(loaded, [stored])
    same(found, of_engine(engine, Ask(history=("i1", "i2"), disliked=("i5",), k=40)))
    (nothing,) = answer(loaded, [replace(stored, history=("of tomorrow",), disliked=())])
    assert nothing.popular


def test_what_fails_a_ranking_fails_those_alone_who_brought_it(loaded, engine, monkeypatch):
    """One row of a packed batch cannot be answered: the others are asked again without it."""
    ranking = type(loaded.pipeline).ranking

    def failing(self, queries, *args, **kwargs):
        if (queries.histories.items == 13).any():
            raise hr.InputError("thirteen")
        return ranking(self, queries, *args, **kwargs)

    monkeypatch.setattr(type(loaded.pipeline), "ranking", failing)
    asks = [Ask(history=(f"i{n}",)) for n in (12, 13, 14)]
    outcomes = answer(loaded, asks)
    assert [isinstance(found, hr.InputError) for found in outcomes] == [False, True, False]
    monkeypatch.undo()
    same(outcomes[2], of_engine(engine, asks[2]))


# -- ranking the caller's own candidates -------------------------------------------------------


def test_candidates_are_ranked_all_and_each_once(loaded, engine):
    candidates = ("i9", "i1", "i22", "i9", "i2", "i17")
    ask = Ask(history=("i1", "i2", "i3"), candidates=candidates, k=1, block=("i9",))
    (found,) = answer(loaded, [ask])
    items = [each.item for each in found.items]
    assert sorted(items) == sorted(set(candidates))
    expected = engine.recommend(
        histories=[["i1", "i2", "i3"]], k=5, depth=5, allow=list(candidates), exclude_seen=False
    ).to_pydict()
    same(found, (expected["item"], expected["score"]))


@pytest.mark.parametrize("kind", ["plain", "welcoming"])
def test_lists_of_candidates_share_a_ranking_and_not_a_word_of_it(
    request, loaded, engine, kind, monkeypatch
):
    held, alone = (loaded, engine) if kind == "plain" else request.getfixturevalue(kind)
    generator = np.random.default_rng(5)
    ids = alone.data.items.ids.tolist()
    asks = [
        Ask(
            history=tuple(generator.choice(ids, n, replace=False)),
            candidates=tuple(generator.choice(ids, 1 + 4 * n, replace=False)),
        )
        for n in range(6)
    ]
    expected = [answer(held, [ask])[0] for ask in asks]
    sizes = []
    ranking = type(held.pipeline).ranking

    def counted(self, queries, *args, **kwargs):
        sizes.append(len(queries))
        return ranking(self, queries, *args, **kwargs)

    monkeypatch.setattr(type(held.pipeline), "ranking", counted)
    for ask, found, single in zip(asks, answer(held, asks), expected, strict=True):
        same(found, ([e.item for e in single.items], [e.score for e in single.items]))
        assert {each.item for each in found.items} == set(ask.candidates)
        assert [e.newcomer for e in found.items] == [e.newcomer for e in single.items]
    assert sizes == [6]


def test_candidates_that_no_stage_places_stand_behind_without_a_score(retiring):
    """Retired items are never recommended; the caller's own list has them all the same."""
    candidates = ("i25", "i3", "i9", "i8", "i3")
    found, nobody = answer(
        retiring[0],
        [
            Ask(history=("i1",), candidates=candidates, explain=True),
            Ask(candidates=candidates),
        ],
    )
    for each in (found, nobody):
        assert {item.item for item in each.items[:2]} == {"i8", "i9"}
        assert [item.item for item in each.items[2:]] == ["i25", "i3"]
        assert [item.score is None for item in each.items] == [False, False, True, True]
        assert all(item.title for item in each.items)
    assert found.items[2].why.signals == {}
    assert nobody.popular


# -- when time is short --------------------------------------------------------------------------


class Ticking:
    """Seconds that pass by looking at them."""

    def __init__(self, *looks):
        self.looks = list(looks)

    def __call__(self):
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]


def until_reranking():
    """A deadline that is over when the reranker looks at the clock for the first time."""
    return Deadline(1000, Ticking(*[0.0] * 4, 2.0))


def test_time_enough_changes_nothing(loaded, engine):
    ask = Ask(history=("i1", "i2"), k=20, deadline=Deadline(60_000))
    (found,) = answer(loaded, [ask])
    same(found, of_engine(engine, ask))
    assert found.degraded is None
    assert sum(each.reranked for each in found.items) == loaded.pipeline.rerank_depth


def test_first_fewer_are_reranked(loaded, monkeypatch):
    monkeypatch.setattr(reading, "STEP_COLUMNS", 4)
    hurried = Deadline(1000, Ticking(*[0.0] * 7, 2.0))
    short = Ask(history=("i4",), allow=("i5", "i6", "i7"), deadline=Deadline(60_000))
    found, few = answer(loaded, [Ask(history=("i1", "i2"), k=20, deadline=hurried), short])
    assert found.degraded == "fewer_reranked"
    assert [each.reranked for each in found.items] == [place < 4 for place in range(20)]
    # All that there was has been read, though it is less than the reranker's depth.
    assert few.degraded is None
    assert all(each.reranked for each in few.items)


def test_then_none_is_reranked(loaded, engine):
    ask = Ask(history=("i1", "i2"), k=20, deadline=until_reranking(), explain=True)
    (found,) = answer(replace(loaded, pace=Pace()), [ask])
    assert found.degraded == "no_reranker"
    same(found, of_pipeline(engine, replace(ask, rerank=False)))
    moved = [each.why.moved_by for each in found.items]
    assert moved == [("degraded",)] * 10 + [()] * 10


def test_no_reranker_is_lacking_where_none_was_asked_for(loaded, welcoming):
    ask = Ask(history=("i1",), deadline=until_reranking(), rerank=False)
    (found,) = answer(replace(loaded, pace=Pace()), [ask])
    assert found.degraded is None
    held = replace(welcoming[0], pace=Pace())
    ask = Ask(history=(held.item_id(0),), deadline=until_reranking())
    (found,) = answer(held, [ask])
    assert found.degraded is None


def test_at_last_the_popular_items_are_answered(retiring, engine):
    held, alone = retiring
    pace = Pace()
    pace.observe(5.0)
    slow = replace(held, pace=pace)
    hurried = Deadline(4000, Ticking(0.0))
    asks = [
        Ask(history=("i1", "i2"), disliked=("i9",), block=("i7",), k=40, deadline=hurried),
        Ask(history=("i1", "i2"), allow=("i3", "i5", "i6", "i1"), k=5, deadline=hurried),
        Ask(history=("i1", "i2"), deadline=Deadline(60_000, Ticking(0.0))),
        Ask(history=("i1", "i2")),
        Ask(deadline=hurried),
    ]
    late, within, early, patient, nobody = answer(slow, asks)
    popular = alone.recommend(histories=[[]], k=40, block=["i1", "i2", "i9", "i7"]).to_pydict()
    same(late, (popular["item"], popular["score"]))
    assert {each.item for each in within.items} == {"i5", "i6"}
    for found in (late, within):
        assert found.degraded == "popularity"
        assert not found.popular
    for found in (early, patient):
        same(found, of_engine(alone, asks[3]))
        assert found.degraded is None
    assert nobody.popular
    assert nobody.degraded is None


def test_who_has_no_deadline_waits_for_no_clock(loaded, engine, monkeypatch):
    """Those in a hurry are ranked first and apart, by how much of a hurry they are in."""
    seen = []
    ranking = type(loaded.pipeline).ranking

    def noted(self, queries, *args, deadline=None, **kwargs):
        seen.append((len(queries), None if deadline is None else deadline.left()))
        return ranking(self, queries, *args, deadline=deadline, **kwargs)

    monkeypatch.setattr(type(loaded.pipeline), "ranking", noted)
    fixed = {name: Deadline(1000 * name, Ticking(0.0)) for name in (1, 50, 60, 90, 120)}
    plain = Ask(history=("i1",))
    asks = [plain, *(replace(plain, deadline=limit) for limit in reversed(fixed.values())), plain]
    found = answer(replace(loaded, pace=Pace()), asks)
    assert seen == [(1, 1.0), (3, 50.0), (1, 120.0), (2, None)]
    for one in (found[0], found[-1]):
        same(one, of_engine(engine, plain))


def test_the_pace_is_learnt_from_what_recall_took(loaded):
    held = replace(loaded, pace=Pace())
    assert held.pace.expected(20) == 0.0
    (found,) = answer(held, [Ask(history=("i1",))])
    spent = found.seconds["recall"] + found.seconds["fuse"]
    assert held.pace.expected(20) == pytest.approx(spent)
    answer(held, [Ask()])
    assert held.pace.expected(20) == pytest.approx(spent)


def test_what_was_too_slow_for_a_while_is_tried_again(loaded):
    """Whoever is refused teaches nothing: an estimate that never ends would refuse for ever."""
    now = [0.0]
    held = replace(loaded, pace=Pace(memory=30.0, clock=lambda: now[0]))
    held.pace.observe(5.0)
    ask = Ask(history=("i1",), deadline=Deadline(4000, Ticking(0.0)))
    assert answer(held, [ask])[0].degraded == "popularity"
    now[0] = 31.0
    assert answer(held, [ask])[0].degraded is None
    assert 0 < held.pace.expected(20) < 4


def test_who_asks_for_little_is_not_told_what_much_took(loaded):
    held = replace(loaded, pace=Pace())
    held.pace.observe(5.0, 20 * 32)
    hurried = Ask(history=("i1",), deadline=Deadline(1000, Ticking(0.0)))
    assert answer(held, [hurried])[0].degraded is None
    crowd = [Ask(history=(f"i{n % 30}",), deadline=hurried.deadline) for n in range(40)]
    held = replace(loaded, pace=Pace())
    held.pace.observe(5.0, 20 * 32)
    assert {found.degraded for found in answer(held, crowd)} == {"popularity"}
