"""Each signal against a slow reading of what it says it is."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from timed_data import I, make_data, make_items, make_queries

import hybridrec as hr
from hybridrec.candidates import Queries
from hybridrec.ragged import Ragged


def rows_of(histories):
    return [
        list(zip(histories.items[start:end], histories.times[start:end], strict=True))
        for start, end in zip(histories.indptr[:-1], histories.indptr[1:], strict=True)
    ]


def catalogue(rows):
    return np.tile(np.arange(I, dtype=np.int32), (rows, 1))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 99), st.sampled_from([0.01, 0.2, 1.0, 3.0]))
def test_recent_popularity_counts_what_is_within_the_horizon_and_nothing_later(seed, share):
    data, queries = make_data(seed=seed), make_queries(seed + 1)
    events = [event for row in rows_of(data.histories) for event in row]
    times = [time for _, time in events]
    horizon = max(int(share * (max(times) - min(times))), 1)
    scores = hr.RecentPopularity(share).fit(data).score(queries, catalogue(len(queries)))
    for row, history in enumerate(rows_of(queries.histories)):
        now = history[-1][1] if history else max(times)
        for item in range(I):
            n = sum(it == item and now - horizon < time <= now for it, time in events)
            assert scores[row, item] == pytest.approx(math.log1p(n), abs=1e-6)


def test_a_refit_keeps_the_horizon_and_the_unit_of_age():
    data = make_data()
    late = replace(data.histories, times=data.histories.times * 4)
    more = replace(data, histories=late)
    for kind, scale in ((hr.RecentPopularity(0.2), "horizon"), (hr.ItemAge(), "unit")):
        before = kind.fit(data)._state[scale]
        assert kind.refit(more)._state[scale] == before
        assert kind.fit(more)._state[scale] != before


def test_item_age_runs_from_the_first_event():
    data, queries = make_data(), make_queries()
    events = [event for row in rows_of(data.histories) for event in row]
    times = [time for _, time in events]
    unit = (max(times) - min(times)) / 1000
    first = {}
    for item, time in events:
        first[item] = min(time, first.get(item, time))
    scores = hr.ItemAge().fit(data).score(queries, catalogue(len(queries)))
    for row, history in enumerate(rows_of(queries.histories)):
        now = history[-1][1] if history else max(times)
        for item in range(I):
            age = max(now - first[item], 0) / unit if item in first else 0
            assert scores[row, item] == pytest.approx(-math.log1p(age), abs=1e-5)


def test_newest_gap_and_history_length_are_the_same_all_along_a_list():
    data, queries = make_data(), make_queries()
    gap = hr.NewestGap().fit(data).score(queries, catalogue(len(queries)))
    length = hr.HistoryLength().fit(data).score(queries, catalogue(len(queries)))
    for row, history in enumerate(rows_of(queries.histories)):
        wanted = math.log1p(history[-1][1] - history[-2][1]) if len(history) > 1 else -1
        np.testing.assert_allclose(gap[row], wanted, rtol=1e-6)
        np.testing.assert_allclose(length[row], math.log1p(len(history)), rtol=1e-6)


def test_history_stage_is_the_log_of_a_share_by_a_share():
    data, queries = make_data(), make_queries()
    counts = np.zeros((I, 20))
    for row in rows_of(data.histories):
        for place, (item, _) in enumerate(row):
            counts[item, math.floor(2 * math.log2(place + 1))] += 1
    share = (counts.sum(0) + 1) / (counts.sum() + 20)
    of_item = (counts + 3 * share) / (counts.sum(1, keepdims=True) + 3)
    scores = hr.HistoryStage(3).fit(data).score(queries, catalogue(len(queries)))
    for row, history in enumerate(rows_of(queries.histories)):
        stage = math.floor(2 * math.log2(len(history) + 1))
        np.testing.assert_allclose(scores[row], np.log(of_item / share)[:, stage], atol=1e-5)
    np.testing.assert_array_equal(scores[:, I - 1], 0)


def test_a_stage_beyond_the_last_is_the_last():
    data = make_data()
    long = Ragged.from_rows([np.arange(I).repeat(40)])
    scores = hr.HistoryStage().fit(data).score(Queries(long, I), catalogue(1))
    assert np.isfinite(scores).all()


def test_at_half_life_is_the_recaller_with_that_half_life(dataset):
    recaller = hr.ItemTransitions(half_life=3.0).fit(dataset)
    queries = dataset.queries()
    items = np.tile(np.arange(dataset.n_items, dtype=np.int32), (len(queries), 1))
    signal = hr.AtHalfLife("item transitions", 0.5).use(recaller)
    wanted = hr.ItemTransitions(half_life=0.5).fit(dataset).score(queries, items)
    np.testing.assert_array_equal(signal.score(queries, items), wanted)
    assert recaller.half_life == 3.0
    assert (wanted != recaller.score(queries, items)).any()
    assert signal.name == "item transitions, for 0.5"
    assert hr.AtHalfLife("als", None).name == "als, for ever"
    with pytest.raises(hr.NotFittedError, match="put 'als' beside it"):
        hr.AtHalfLife("als", 2.0).score(queries, items)


@pytest.mark.parametrize("kind", [hr.RecentPopularity, hr.ItemAge, hr.NewestGap])
def test_data_without_times_are_refused_with_a_remedy(kind):
    data = make_data()
    bare = replace(data, histories=replace(data.histories, times=None))
    with pytest.raises(hr.FitError, match=r"time=\.\.\."):
        kind().fit(bare)


def test_data_without_an_order_have_no_stages():
    with pytest.raises(hr.FitError, match=r"time=\.\.\."):
        hr.HistoryStage().fit(replace(make_data(), ordered=False))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: hr.RecentPopularity(0), hr.InputError),
        (lambda: hr.RecentPopularity(float("nan")), hr.InputError),
        (lambda: hr.HistoryStage(-1), hr.InputError),
        (lambda: hr.AtHalfLife("", 1), hr.InputTypeError),
        (lambda: hr.AtHalfLife("als", 0), hr.InputError),
        (lambda: hr.AtHalfLife("als", 1, name=""), hr.InputTypeError),
    ],
)
def test_nonsense_is_refused_when_made(make, error):
    with pytest.raises(error):
        make()


def test_codes_of_padding_are_not_read():
    items = make_items()
    signal = hr.HistoryStage().fit(make_data())
    scores = signal.score(make_queries(), items)
    assert np.isneginf(scores[items < 0]).all()
