"""Dataset.from_frame against a plain Python reading of the same rows, from every kind of frame."""

import logging
from datetime import date, datetime, timedelta, timezone

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridrec.checks import InputError, InputTypeError, UnknownIdError
from hybridrec.data.dataset import Dataset

EVENTS = {
    "user": ["bob", "ann", "bob", "ann", "bob", "cy"],
    "item": [3, 1, 2, 2, 9, 3],
    "time": [5, 4, 5, 1, 2, 0],
    "stars": [5, 1, 4, 5, 2, 3],
    "weight": [1.0, 2.0, 0.5, 1.0, 1.0, 1.0],
    "device": ["tv", "web", "tv", None, "app", "web"],
}
ITEMS = {
    "item": [1, 2, 3, 4],
    "title": ["Alien", "Brazil,  or\nnot", None, "Dune"],
    "year": [1979, 1985, None, 2021],
}


def rows_of(ragged):
    return [row.tolist() for row in np.split(ragged.items, ragged.indptr[1:-1])]


def contents(data):
    """Everything a data set says, in the caller's ids, as plain Python."""
    history = data.histories
    return {
        "users": data.users.ids.tolist(),
        "items": data.items.ids.tolist(),
        "rows": [data.items.ids_of(np.array(row, dtype=int)).tolist() for row in rows_of(history)],
        "weights": None if history.weights is None else history.weights.tolist(),
        "times": None if history.times is None else history.times.tolist(),
        "texts": data.texts,
        "device": data.context["device"].tolist(),
    }


def as_pandas(columns, folder):
    return pd.DataFrame(columns)


def as_polars(columns, folder):
    return pl.DataFrame(columns)


def as_polars_lazy(columns, folder):
    return pl.LazyFrame(columns)


def as_pyarrow(columns, folder):
    return pa.table(columns)


def as_duckdb(columns, folder):
    return duckdb.from_arrow(pa.table(columns))


def as_csv(columns, folder, suffix=".csv", delimiter=","):
    path = folder / f"table{len(columns)}{suffix}"
    frame = pl.DataFrame(columns)
    frame.write_csv(path, separator=delimiter)
    return path


def as_tsv(columns, folder):
    return str(as_csv(columns, folder, ".tsv", "\t"))


def as_parquet(columns, folder):
    path = folder / f"table{len(columns)}.parquet"
    pq.write_table(pa.table(columns), path)
    return path


KINDS = [as_pandas, as_polars, as_polars_lazy, as_pyarrow, as_duckdb, as_csv, as_tsv, as_parquet]


@pytest.mark.parametrize("make", KINDS)
def test_every_kind_of_frame_gives_the_same_data_set(make, tmp_path):
    data = Dataset.from_frame(
        make(EVENTS, tmp_path),
        user="user",
        item="item",
        time="time",
        weight="weight",
        context=["device"],
        items=make(ITEMS, tmp_path),
        item_text="{title} ({year})",
    )
    assert contents(data) == {
        "users": ["bob", "ann", "cy"],
        "items": [1, 2, 3, 4, 9],
        "rows": [[9, 3, 2], [2, 1], [3]],
        "weights": [1.0, 1.0, 0.5, 1.0, 2.0, 1.0],
        "times": [2, 5, 5, 1, 4, 0],
        "texts": ("Alien (1979)", "Brazil, or not (1985)", "()", "Dune (2021)", ""),
        "device": ["app", "tv", "tv", None, "web", "web"],
    }
    kinds = {
        as_pandas: "pandas",
        as_polars: "polars",
        as_polars_lazy: "polars",
        as_duckdb: "duckdb",
    }
    assert data.frame == kinds.get(make, "pyarrow")


events = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(0, 6), st.integers(-2, 2), st.integers(1, 5)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60)
@given(events)
def test_histories_are_stably_sorted_by_time(rows):
    users, items, times, weights = map(list, zip(*rows, strict=True))
    table = pa.table({"u": users, "i": items, "t": times, "w": weights, "row": range(len(rows))})
    data = Dataset.from_frame(table, user="u", item="i", time="t", weight="w", context=["row"])
    assert data.users.ids.tolist() == list(dict.fromkeys(users))
    assert data.items.ids.tolist() == list(dict.fromkeys(items))
    expected = [
        sorted((r for r in range(len(rows)) if users[r] == user), key=lambda r: times[r])
        for user in data.users.ids
    ]
    flat = [row for group in expected for row in group]
    assert data.context["row"].tolist() == flat
    assert data.histories.lengths.tolist() == [len(group) for group in expected]
    assert data.items.ids_of(data.histories.items).tolist() == [items[r] for r in flat]
    assert data.histories.times.tolist() == [times[r] for r in flat]
    kept = data.histories.weights
    assert (kept is None) == (set(weights) == {1})
    assert kept is None or kept.tolist() == [weights[r] for r in flat]


@settings(max_examples=60)
@given(events, st.integers(1, 5))
def test_what_is_rated_below_positive_is_seen_but_no_history(rows, positive):
    users, items, times, stars = map(list, zip(*rows, strict=True))
    table = pa.table({"u": users, "i": items, "t": times, "s": stars})
    arguments = {"user": "u", "item": "i", "time": "t", "rating": "s", "positive": positive}
    if max(stars) < positive:
        with pytest.raises(InputError, match="leaves no event: the highest rating is"):
            Dataset.from_frame(table, **arguments)
        return
    data = Dataset.from_frame(table, **arguments)
    assert set(data.users.ids.tolist()) == set(users)
    seen = data.queries().exclude
    for code, user in enumerate(data.users.ids.tolist()):
        mine = [r for r in range(len(rows)) if users[r] == user]
        liked = sorted((r for r in mine if stars[r] >= positive), key=lambda r: times[r])
        history = data.histories.select([code]).items
        assert data.items.ids_of(history).tolist() == [items[r] for r in liked]
        barred = data.items.ids_of(seen.select([code]).items).tolist()
        assert sorted(barred) == sorted(items[r] for r in mine)


@settings(max_examples=60)
@given(events, st.data())
def test_keep_events_keeps_users_items_and_the_events_asked_for(rows, draw):
    users, items, times, _ = map(list, zip(*rows, strict=True))
    table = pa.table({"u": users, "i": items, "t": times, "row": range(len(rows))})
    data = Dataset.from_frame(table, user="u", item="i", time="t", context=["row"])
    size = len(rows)
    mask = np.array(draw.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    less = data.keep_events(mask)
    assert less.users is data.users
    assert less.items is data.items
    assert less.context["row"].tolist() == data.context["row"][mask].tolist()
    expected = [
        [data.histories.items[e] for e in range(start, end) if mask[e]]
        for start, end in zip(data.histories.indptr, data.histories.indptr[1:], strict=False)
    ]
    assert rows_of(less.histories) == expected


def test_items_known_only_from_interactions_join_the_catalogue_and_are_counted(caplog):
    with caplog.at_level(logging.WARNING, "hybridrec"):
        data = Dataset.from_frame(
            pa.table(EVENTS),
            user="user",
            item="item",
            items=pa.table(ITEMS),
            item_text="{title}",
            item_columns=["year", "title"],
        )
    assert "1 of 4 items occur only in interactions (first: 9)" in caplog.text
    assert data.texts[-1] == ""
    assert np.isnan(data.item_columns["year"][-1])
    assert data.item_columns["title"][-1] is None
    assert 4 in data.items.ids  # a cold item has a code
    assert not data.ordered
    assert data.histories.times is None
    assert data.histories.weights is None


def test_without_items_there_is_no_text():
    data = Dataset.from_frame(pa.table(EVENTS), user="user", item="item")
    assert data.texts is None
    assert data.items.ids.tolist() == [3, 1, 2, 9]
    assert rows_of(data.histories) == [[0, 2, 3], [1, 2], [0]]
    with pytest.raises(InputError, match="no text"):
        data.item_text([0])


def test_a_catalogue_of_one_item_and_one_event():
    data = Dataset.from_frame(pa.table({"u": ["a"], "i": ["x"]}), user="u", item="i")
    assert (data.n_users, data.n_items, data.n_events) == (1, 1, 1)
    assert rows_of(data.queries().exclude) == [[0]]


@pytest.mark.parametrize("make", [as_pandas, as_polars, as_pyarrow])
@pytest.mark.parametrize("unit", [timedelta(days=1), timedelta(microseconds=1)])
def test_dates_become_microseconds(make, unit, tmp_path):
    start = datetime(2024, 5, 31, 12)
    times = [start + unit, start, start + 2 * unit]
    frame = make({"u": ["a"] * 3, "i": [1, 2, 3], "t": times}, tmp_path)
    data = Dataset.from_frame(frame, user="u", item="i", time="t")
    epoch = datetime(1970, 1, 1)
    micro = [(when - epoch) // timedelta(microseconds=1) for when in sorted(times)]
    assert data.dated
    assert data.histories.times.tolist() == micro
    assert data.items.ids_of(data.histories.items).tolist() == [2, 1, 3]


def test_zoned_times_days_and_whole_floats_are_times():
    def times(values):
        table = pa.table({"u": ["a"], "i": [1], "t": values})
        return Dataset.from_frame(table, user="u", item="i", time="t").histories.times.tolist()

    zone = timezone(timedelta(hours=2))
    assert times([datetime(1970, 1, 1, 2, tzinfo=zone)]) == [0]
    assert times([date(1970, 1, 2)]) == [86_400_000_000]
    assert times([881250949.0]) == [881250949]
    assert times(pa.array([1_500], pa.timestamp("ns"))) == [1]


def test_ids_of_a_text_file_are_integers_only_where_nothing_is_lost(tmp_path):
    path = tmp_path / "events.csv"
    path.write_text("u,i\n007,1\n7,12\n,3\n")
    with pytest.raises(InputError, match=r"interactions\['u'\] row 2 is missing"):
        Dataset.from_frame(path, user="u", item="i")
    path.write_text("u,i\n007,1\n7,12\nNA,-3\n")
    data = Dataset.from_frame(path, user="u", item="i")
    assert data.users.ids.tolist() == ["007", "7", "NA"]
    assert data.items.ids.tolist() == [1, 12, -3]


def test_text_fields_of_a_text_file_stay_as_they_are_written(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text('id,title,code\n1,"NA, or ""not""",007\n2,,1e3\n')
    data = Dataset.from_frame(
        pa.table({"u": ["a"], "i": [1]}),
        user="u",
        item="i",
        items=path,
        item_id="id",
        item_text="{title}/{code}",
    )
    assert data.texts == ('NA, or "not"/007', "/1e3")
    assert data.item_id == "id"


def test_queries_for_some_users():
    data = Dataset.from_frame(pa.table(EVENTS), user="user", item="item", time="time")
    asked = data.queries(["cy", "bob"], max_history=2, allow=[1, 9], block=[2, 2])
    assert asked.users.tolist() == [2, 0]
    assert [data.items.ids_of(np.array(r)).tolist() for r in rows_of(asked.histories)] == [
        [3],
        [3, 2],
    ]
    barred = [sorted(data.items.ids_of(np.array(r)).tolist()) for r in rows_of(asked.exclude)]
    assert barred == [[2, 3], [2, 2, 3, 9]]  # all that was seen, not only the newest two
    assert data.items.ids[asked.allow].tolist() == [1, 9]
    assert data.queries(allow=[]).allow.tolist() == [False] * 4
    assert data.queries().allow is None
    assert data.queries(exclude_seen=False).exclude is None
    assert rows_of(data.queries(["cy"], exclude_seen=False, block=[1]).exclude) == [[1]]
    assert len(data.queries([])) == 0
    with pytest.raises(InputError, match="max_history is -1"):
        data.queries(max_history=-1)
    with pytest.raises(UnknownIdError, match=r"users\[0\] is 'zoe'"):
        data.queries(["zoe"])
    with pytest.raises(UnknownIdError, match=r"allow\[1\] is 77"):
        data.queries(allow=[1, 77])


def test_items_are_added_behind_the_catalogue():
    data = Dataset.from_frame(
        pa.table(EVENTS),
        user="user",
        item="item",
        items=pa.table(ITEMS),
        item_text="{title}",
        item_columns=["year"],
    )
    new = data.read_items(pl.DataFrame({"item": [50], "title": ["Solaris"], "year": [1972]}))
    more = data.with_items(new)
    assert more.items.ids.tolist() == [*data.items.ids.tolist(), 50]
    assert more.item_text([5, 0]) == ["Solaris", "Alien"]
    assert more.item_columns["year"][-1] == 1972
    assert more.histories is data.histories
    with pytest.raises(InputError, match="is 2, which is already here"):
        data.read_items(pl.DataFrame({"item": [2], "title": ["x"], "year": [1]}))
    with pytest.raises(InputError, match="'title' is not a column of items"):
        data.read_items(pl.DataFrame({"item": [51], "year": [1]}))


def test_one_side_of_a_text_file_takes_the_ids_of_the_other_as_they_are_written(tmp_path):
    events = pd.DataFrame({"user": [1, 1, 2], "item": [1, 2, 2]})
    items = pd.DataFrame({"item": ["A7", "2", "1"], "title": ["x", "y", "z"]})
    events.to_csv(tmp_path / "log.csv", index=False)
    items.to_csv(tmp_path / "items.tsv", index=False, sep="\t")
    numbers, words = tmp_path / "log.csv", tmp_path / "items.tsv"
    data = Dataset.from_frame(numbers, user="user", item="item", items=words)
    assert data.items.ids.tolist() == ["A7", "2", "1"]
    assert data.histories.items.tolist() == [2, 1, 1]
    assert data.users.ids.tolist() == [1, 2]
    assert data.read_items(as_csv({"item": [123]}, tmp_path)).ids.tolist() == ["123"]
    turned = Dataset.from_frame(
        words, user="title", item="item", items=as_csv({"item": [1, 2]}, tmp_path)
    )
    assert turned.items.ids.tolist() == ["1", "2", "A7"]
    # A frame has types: there a clash is the caller's to solve.
    with pytest.raises(InputTypeError, match="convert one"):
        Dataset.from_frame(events, user="user", item="item", items=words)
    with pytest.raises(InputTypeError, match="convert one"):
        data.read_items(pd.DataFrame({"item": [123]}))


def test_item_columns_that_do_not_fit_are_refused():
    items = pd.DataFrame({"item": [1], "maker": ["x"]})
    events = pd.DataFrame({"user": [1], "item": [1]})
    data = Dataset.from_frame(events, user="user", item="item", items=items, item_columns=["maker"])
    fits = data.read_items(pd.DataFrame({"item": [2], "maker": ["y"]}))
    assert data.with_items(fits).item_columns["maker"].tolist() == ["x", "y"]
    with pytest.raises(InputTypeError, match=r"items\['maker'\] has type int64"):
        data.with_items(data.read_items(pd.DataFrame({"item": [2], "maker": [3]})))
