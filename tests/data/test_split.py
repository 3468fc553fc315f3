"""Splits against a row-by-row reading, and the promises that evaluation relies on."""

import logging
from datetime import date, datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridrec.checks import InputError, InputTypeError
from hybridrec.data import split
from hybridrec.data.dataset import Dataset
from hybridrec.data.held_out import repeats

rows = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(0, 5), st.integers(0, 6)),
    min_size=1,
    max_size=40,
)


def dataset(events, *, timed=True, **more):
    users, items, times = map(list, zip(*events, strict=True))
    table = pa.table({"u": users, "i": items, "t": times, "row": range(len(events))} | more)
    time = {"time": "t"} if timed else {}
    ratings = {"rating": "stars", "positive": 3} if "stars" in more else {}
    return Dataset.from_frame(table, user="u", item="i", context=["row"], **time, **ratings)


def by_user(data, ragged, users):
    """user id -> item ids of the row that stands for that user."""
    ids = data.items.ids_of(ragged.items).tolist()
    spans = zip(users, ragged.indptr[:-1], ragged.indptr[1:], strict=True)
    return {user: ids[start:end] for user, start, end in spans}


def read(data, result):
    """(train histories, query histories, targets) by user, and the users asked, in order."""
    everyone = data.users.ids.tolist()
    asked = data.users.ids_of(result.queries.users).tolist()
    return (
        by_user(data, result.train.histories, everyone),
        by_user(data, result.queries.histories, asked),
        by_user(data, result.targets, asked),
        asked,
    )


def sorted_rows(events):
    users = dict.fromkeys(user for user, _, _ in events)
    return {
        user: sorted((r for r, e in enumerate(events) if e[0] == user), key=lambda r: events[r][2])
        for user in users
    }


@settings(deadline=None)  # the first call imports
@given(rows)
def test_leave_last_holds_out_exactly_the_last_event_of_everyone_with_two(events):
    data = dataset(events)
    order = sorted_rows(events)
    if max(map(len, order.values())) < 2:
        with pytest.raises(InputError, match="no user has 2 events"):
            split.leave_last(data)
        return
    result = split.leave_last(data)
    train, queries, targets, asked = read(data, result)
    assert asked == [user for user, mine in order.items() if len(mine) > 1]
    for user, mine in order.items():
        items = [events[r][1] for r in mine]
        assert train[user] == (items[:-1] if len(items) > 1 else items)
        if user in asked:
            assert targets[user] == items[-1:]
            assert queries[user] == items[:-1]
    assert result.queries.context["row"] == [order[user][-1] for user in asked]
    assert result.train.items is data.items
    assert result.train.users is data.users


@settings(deadline=None)
@given(rows, st.integers(0, 7))
def test_by_time_cuts_everyone_at_one_moment(events, at):
    data = dataset(events)
    order = sorted_rows(events)
    before = {u: [events[r][1] for r in mine if events[r][2] < at] for u, mine in order.items()}
    after = {u: [events[r][1] for r in mine if events[r][2] >= at] for u, mine in order.items()}
    expected = [user for user in order if before[user] and after[user]]
    if not expected:
        with pytest.raises(InputError, match=r"leaves nothing|no user has both"):
            split.by_time(data, at)
        return
    train, queries, targets, asked = read(data, split.by_time(data, at))
    assert asked == expected
    assert train == before
    assert queries == {user: before[user] for user in asked}
    assert targets == {user: after[user] for user in asked}


@settings(deadline=None)
@given(rows, st.floats(0.01, 0.99), st.integers(0, 3))
def test_random_gives_up_a_part_of_every_user_and_loses_nothing(events, fraction, seed):
    data = dataset(events, timed=False)
    sizes = data.histories.lengths
    if sizes.max() < 2:
        with pytest.raises(InputError, match="no user has 2 events"):
            split.random(data, fraction, seed=seed)
        return
    result = split.random(data, fraction, seed=seed)
    train, queries, targets, asked = read(data, result)
    whole = by_user(data, data.histories, data.users.ids.tolist())
    for user, items in whole.items():
        if len(items) < 2:
            assert train[user] == items
            assert user not in asked
            continue
        wanted = min(max(round(fraction * len(items)), 1), len(items) - 1)
        assert len(targets[user]) == wanted
        assert sorted(targets[user] + train[user]) == sorted(items)
        assert queries[user] == train[user]
    again = split.random(data, fraction, seed=seed)
    assert np.array_equal(again.targets.items, result.targets.items)


def test_random_draws_evenly():
    data = dataset([("a", item, 0) for item in range(2000)])
    held = split.random(data, 0.25).targets.items
    assert len(held) == 500
    assert 200 < np.sum(held < 1000) < 300  # 250 expected, standard deviation 10
    assert not np.array_equal(held, split.random(data, 0.25, seed=1).targets.items)


def test_what_needs_order_says_so():
    data = dataset([("a", 1, 1), ("a", 2, 2)], timed=False)
    with pytest.raises(InputError, match=r"leave_last needs order.*give from_frame time="):
        split.leave_last(data)
    with pytest.raises(InputError, match="by_time needs order"):
        split.by_time(data, 2)
    assert not split.random(data).queries.ordered


def test_users_who_are_not_asked_are_counted(caplog):
    data = dataset([("a", 1, 1), ("a", 2, 2), ("b", 1, 1), ("c", 2, 2)])
    with caplog.at_level(logging.INFO, "hybridrec"):
        split.by_time(data, 2)
    assert "1 of 3 users are asked; 1 have nothing held out, 1 no history before it" in caplog.text


def test_a_repeat_is_counted_unless_seen_items_may_come_back(caplog):
    data = dataset([("a", 1, 1), ("a", 2, 2), ("a", 1, 3), ("b", 1, 1), ("b", 2, 2)])
    with caplog.at_level(logging.WARNING, "hybridrec"):
        assert split.leave_last(data).queries.exclude is not None
    assert "1 of 2 held-out events repeat" in caplog.text
    assert "exclude_seen=False" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "hybridrec"):
        assert split.leave_last(data, exclude_seen=False).queries.exclude is None
    assert not caplog.text


@settings(deadline=None)
@given(rows, st.integers(0, 6))
def test_repeats_are_counted_one_by_one(events, at):
    data = dataset(events)
    try:
        result = split.by_time(data, at)
    except InputError:
        return
    _, queries, targets, asked = read(data, result)
    expected = sum(item in queries[user] for user in asked for item in targets[user])
    assert repeats(result.queries, result.targets) == expected


def test_a_dislike_still_to_come_takes_no_item_out_of_the_race():
    events = [("a", 1, 1), ("a", 7, 2), ("a", 2, 3), ("a", 3, 4), ("a", 8, 5), ("b", 8, 9)]
    data = dataset(events, stars=[5, 1, 5, 5, 1, 5])
    for result in (split.leave_last(data), split.by_time(data, 4)):
        barred = by_user(data, result.queries.exclude, ["a"])["a"]
        assert sorted(barred) == [1, 2, 7]


def test_dates_are_cut_by_dates():
    days = [datetime(2024, 5, 30), datetime(2024, 5, 31), datetime(2024, 6, 1)]
    data = dataset([("a", i, day) for i, day in enumerate(days)])
    zone = timezone(timedelta(hours=2))
    for at in (
        date(2024, 5, 31),
        datetime(2024, 5, 31),
        "2024-05-31",
        "2024-05-31T02:00+02:00",
        np.datetime64("2024-05-31"),
        datetime(2024, 5, 31, 2, tzinfo=zone),
    ):
        assert split.by_time(data, at).targets.items.tolist() == [1, 2]
    with pytest.raises(InputTypeError, match="the time column holds dates"):
        split.by_time(data, 1717113600)
    with pytest.raises(InputError, match="wanted a date such as"):
        split.by_time(data, "yesterday")
    with pytest.raises(InputTypeError, match="the time column holds numbers"):
        split.by_time(dataset([("a", 1, 1), ("a", 2, 2)]), "2024-05-31")


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 2, float("nan")])
def test_a_fraction_lies_between_none_and_all(fraction):
    with pytest.raises(InputError, match="fraction is"):
        split.random(dataset([("a", 1, 1), ("a", 2, 2)]), fraction)


def test_a_moment_outside_the_data_says_where_they_lie():
    data = dataset([("a", 1, 1), ("a", 2, 5)])
    with pytest.raises(InputError, match="nothing to hold out; times go from 1 to 5"):
        split.by_time(data, 6)
    with pytest.raises(InputError, match="nothing to learn from"):
        split.by_time(data, 1)


def test_rows_of_a_split_belong_together():
    result = split.leave_last(dataset([("a", 1, 1), ("a", 2, 2)]))
    with pytest.raises(InputError, match="1 queries and 2 rows of targets"):
        split.Split(result.train, result.queries, result.targets.select([0, 0]))


@pytest.mark.parametrize(
    "call",
    [
        split.leave_last,
        split.random,
        split.cold_items,
        split.cold_users,
        lambda data: split.by_time(data, 3),
        lambda data: split.replay(data, 3),
    ],
)
def test_a_frame_is_not_taken_for_a_data_set(call):
    with pytest.raises(InputTypeError, match=r"data is Table; wanted a Dataset.*from_frame"):
        call(pa.table({"u": [1], "i": [2], "t": [3]}))
