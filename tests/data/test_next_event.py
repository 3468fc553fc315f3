"""Splits that ask event by event, against a reading row by row, and what must not leak."""

import logging

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridrec.checks import InputError, InputTypeError
from hybridrec.data import next_event, split
from hybridrec.data.dataset import Dataset

rows = st.lists(
    st.tuples(
        st.sampled_from("abcd"), st.integers(0, 7), st.integers(0, 6), st.sampled_from([1, 5, 5, 5])
    ),
    min_size=1,
    max_size=40,
)


def dataset(events):
    """Events are (user, item, time, stars); below 3 stars is a dislike."""
    users, items, times, stars = map(list, zip(*events, strict=True))
    table = pa.table({"u": users, "i": items, "t": times, "s": stars, "row": range(len(events))})
    names = {"user": "u", "item": "i", "time": "t", "rating": "s", "positive": 3}
    return Dataset.from_frame(table, **names, context=["row"])


def in_order(events):
    """user -> the rows of events that are no dislike, by time, ties as in the input."""
    return {
        user: sorted(
            (r for r, e in enumerate(events) if e[0] == user and e[3] >= 3),
            key=lambda r: events[r][2],
        )
        for user in dict.fromkeys(e[0] for e in events)
    }


def expected(events, asked, hidden=frozenset()):
    """One (user, history, excluded, target, row) for each row in ``asked`` that has a history."""
    found = []
    for user, mine in in_order(events).items():
        for place, row in enumerate(mine):
            history = [events[r][1] for r in mine[:place] if events[r][1] not in hidden]
            if row not in asked or not history:
                continue
            seen = {events[r][1] for r in mine[:place]}
            seen |= {
                item
                for who, item, time, stars in events
                if who == user and stars < 3 and time < events[row][2]
            }
            found.append((user, history, seen, events[row][1], row))
    return found


def read(data, result):
    """The queries of a split in the same form."""
    queries, users = result.queries, data.users.ids_of(result.queries.users).tolist()

    def row(ragged, n):
        return data.items.ids_of(ragged.items[ragged.indptr[n] : ragged.indptr[n + 1]]).tolist()

    return [
        (
            user,
            row(queries.histories, n),
            set(row(queries.exclude, n)),
            row(result.targets, n)[0],
            queries.context["row"][n],
        )
        for n, user in enumerate(users)
    ]


def learnt(result):
    """(user, item) of every event in train, history or dislike."""
    train = result.train
    parts = [train.histories, *([] if train.excluded is None else [train.excluded])]
    users = np.concatenate([train.users.ids_of(part.row_of()) for part in parts])
    items = np.concatenate([train.items.ids_of(part.items) for part in parts])
    return sorted(zip(users.tolist(), items.tolist(), strict=True))


@settings(deadline=None)
@given(rows, st.integers(0, 7))
def test_replay_asks_for_every_later_event_with_all_that_came_before_it(events, at):
    if all(stars < 3 for *_, stars in events):
        return
    data = dataset(events)
    want = expected(events, {r for r, e in enumerate(events) if e[2] >= at})
    liked = [e[2] for e in events if e[3] >= 3]
    if not want or min(liked) >= at:
        with pytest.raises(InputError, match=r"leaves nothing|no held-out event has a history"):
            split.replay(data, at)
        return
    result = split.replay(data, at)
    assert read(data, result) == want
    assert learnt(result) == sorted((u, i) for u, i, t, _ in events if t < at)
    warm = {u for u, _, t, stars in events if t < at and stars >= 3}
    assert result.warm.tolist() == [user in warm for user, *_ in want]
    assert result.queries.allow is None


@settings(deadline=None)
@given(rows, st.floats(0.05, 0.95), st.integers(0, 3), st.booleans())
def test_nothing_of_a_withheld_item_is_learnt_or_read(events, fraction, seed, only_cold):
    taken = {e[1] for e in events if e[3] >= 3}
    if len(taken) < 2:
        return
    data = dataset(events)
    generator = np.random.default_rng(seed)
    size = min(max(1, round(fraction * len(taken))), len(taken) - 1)
    codes = sorted(data.items.codes(list(taken)))
    hidden = set(data.items.ids_of(generator.choice(codes, size, replace=False)).tolist())
    want = expected(events, {r for r, e in enumerate(events) if e[1] in hidden}, hidden)
    if not want:
        with pytest.raises(InputError, match="no held-out event has a history"):
            split.cold_items(data, fraction, seed=seed)
        return
    result = split.cold_items(data, fraction, seed=seed, only_cold=only_cold)
    assert read(data, result) == want
    assert learnt(result) == sorted((u, i) for u, i, _, _ in events if i not in hidden)
    cold = data.items.codes(sorted(hidden))
    assert not result.item_events[cold].any()
    allowed = result.queries.allow
    assert (allowed is not None) == only_cold
    if only_cold:
        assert set(np.flatnonzero(allowed)) == set(cold)


@settings(deadline=None)
@given(rows, st.floats(0.05, 0.95), st.integers(0, 3))
def test_nothing_of_a_withheld_user_is_learnt(events, fraction, seed):
    order = in_order(events)
    able = [user for user, mine in order.items() if len(mine) > 1]
    if len(able) < 2:
        return
    data = dataset(events)
    result = split.cold_users(data, fraction, seed=seed)
    asked = {user for user, *_ in read(data, result)}
    assert len(asked) == min(max(1, round(fraction * len(able))), len(able) - 1)
    assert asked <= set(able)
    assert read(data, result) == expected(events, {order[user][-1] for user in asked})
    assert learnt(result) == sorted((u, i) for u, i, _, _ in events if u not in asked)
    assert not result.warm.any()


def history(users, length):
    return [(f"u{user}", user * length + n, n, 5) for user in range(users) for n in range(length)]


def test_the_draw_is_even_seeded_and_of_items_and_events_apart():
    data = dataset(history(40, 20))
    chosen = [set(split.cold_items(data, seed=seed).targets.items.tolist()) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    few = split.cold_items(data, most=30, seed=0)
    assert len(few.queries) == 30
    assert set(few.targets.items.tolist()) < chosen[0]
    assert learnt(few) == learnt(split.cold_items(data, seed=0))
    again = split.replay(data, 10, most=100, seed=2)
    drawn = again.targets.items
    assert len(again.queries) == len(set(drawn.tolist())) == 100
    assert not np.array_equal(drawn, split.replay(data, 10, most=100).targets.items)
    assert len(split.replay(data, 10, most=10_000).queries) == 400


def test_only_the_newest_events_are_read_and_all_are_excluded(monkeypatch):
    monkeypatch.setattr(next_event, "MAX_HISTORY", 3)
    result = split.replay(dataset(history(1, 9)), 7)
    assert result.queries.histories.items.tolist() == [4, 5, 6, 5, 6, 7]
    assert result.queries.exclude.lengths.tolist() == [7, 8]


def test_what_cannot_be_asked_is_counted(caplog):
    data = dataset([("a", 1, 1, 5), ("a", 2, 2, 5), ("b", 1, 2, 5), ("b", 3, 3, 5)])
    with caplog.at_level(logging.INFO, "hybridrec"):
        result = split.replay(data, 2)
    assert "3 events held out, 1 of them with no history before them" in caplog.text
    assert result.warm.tolist() == [True, False]


def test_repeats_are_asked_for_where_people_consume_again(caplog):
    data = dataset([("a", 1, 1, 5), ("a", 2, 2, 5), ("a", 1, 3, 5)])
    with caplog.at_level(logging.WARNING, "hybridrec"):
        split.replay(data, 2)
    assert "1 of 2 held-out events repeat" in caplog.text
    assert split.replay(data, 2, exclude_seen=False).queries.exclude is None


def test_refusals():
    one = dataset([("a", 1, 1, 5), ("a", 1, 2, 5)])
    with pytest.raises(InputError, match="have 1 items with events; wanted 2"):
        split.cold_items(one)
    with pytest.raises(InputError, match="have 1 users with 2 events or more"):
        split.cold_users(one)
    with pytest.raises(InputError, match="most is 0"):
        split.replay(one, 2, most=0)
    with pytest.raises(InputTypeError, match="the time column holds numbers"):
        split.replay(one, "2024-05-31")
    for fraction in (0, 1, float("nan")):
        for call in (split.cold_items, split.cold_users):
            with pytest.raises(InputError, match="fraction is"):
                call(one, fraction)
    table = pa.table({"u": ["a", "a"], "i": [1, 2]})
    unordered = Dataset.from_frame(table, user="u", item="i")
    for name, call in (
        ("cold_items", split.cold_items),
        ("cold_users", split.cold_users),
        ("replay", lambda data: split.replay(data, 2)),
    ):
        with pytest.raises(InputError, match=f"{name} needs order"):
            call(unordered)


def test_a_sample_of_the_queries_keeps_their_order_and_everything_else():
    data = dataset(history(30, 4))
    whole = split.leave_last(data)
    some = whole.sample(7, seed=3)
    assert len(some.queries) == 7
    assert (np.diff(some.queries.users) > 0).all()
    assert some.train is whole.train
    assert np.isin(some.targets.items, whole.targets.items).all()
    assert np.array_equal(some.targets.items, data.histories.items[4 * some.queries.users + 3])
    assert whole.sample(30) is whole
    assert not np.array_equal(whole.sample(7).targets.items, some.targets.items)


def test_item_events_follow_the_catalogue():
    data = dataset([("a", 1, 1, 5), ("a", 2, 2, 5), ("a", 3, 3, 5), ("b", 2, 1, 5), ("b", 3, 2, 5)])
    result = split.leave_last(data)
    counts = dict(zip(data.items.ids.tolist(), result.item_events.tolist(), strict=True))
    assert counts == {1: 1, 2: 2, 3: 0}
    from hybridrec.data.ids import IdMap

    moved = result.for_catalogue(IdMap(np.array([9, 3, 2])))
    assert moved.item_events.tolist() == [0, 0, 2]
    assert moved.warm.tolist() == [True, True]
    with pytest.raises(InputError, match="item_events has 1 counts; wanted 3"):
        split.Split(result.train, result.queries, result.targets, np.ones(1, np.int64))
