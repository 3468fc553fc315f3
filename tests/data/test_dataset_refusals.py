"""What from_frame refuses, and that the message says where and what to do."""

import math

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from hybridrec.checks import InputError, InputTypeError
from hybridrec.data.dataset import Dataset

GOOD = {"u": ["a", "b", "a"], "i": [1, 2, 3], "t": [1, 2, 3], "w": [1.0, 2.0, 3.0], "r": [1, 2, 3]}


def make(frame=pa.table, items=None, changed=None, **arguments):
    columns = GOOD | (changed or {})
    if items is not None:
        arguments["items"] = frame(items)
    return Dataset.from_frame(frame(columns), **({"user": "u", "item": "i"} | arguments))


@pytest.mark.parametrize("frame", [pa.table, pd.DataFrame, pl.DataFrame])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 0.0, -1.0, 1e39, 1e-50, None])
def test_weights_are_finite_and_positive(frame, wrong):
    with pytest.raises(InputError, match=r"interactions\['w'\] row 1 is .*finite and > 0"):
        make(frame, changed={"w": [1.0, wrong, wrong]}, weight="w")


@pytest.mark.parametrize("frame", [pa.table, pd.DataFrame, pl.DataFrame])
def test_ids_and_times_are_never_missing(frame):
    with pytest.raises(InputError, match=r"interactions\['u'\] row 2 is missing"):
        make(frame, changed={"u": ["a", "b", None]})
    with pytest.raises((InputError, InputTypeError), match=r"interactions\['i'\] row 1 is missing"):
        make(frame, changed={"i": [1, None, 3]})
    with pytest.raises(InputError, match=r"interactions\['t'\] row 0 is missing.*leave time= out"):
        make(frame, changed={"t": [None, 2, 3]}, time="t")
    with pytest.raises(InputError, match=r"interactions\['r'\] row 0 is missing"):
        make(frame, changed={"r": [None, 2, 3]}, rating="r", positive=2)


def test_ids_do_not_mix_types():
    with pytest.raises(
        InputTypeError, match=r"interactions\['u'\] mixes types: row 1 is 7 \(int\)"
    ):
        make(pd.DataFrame, changed={"u": ["a", 7, "b"]})
    mixed = pl.Series([1, "x", 2], dtype=pl.Object)
    with pytest.raises(InputTypeError, match=r"row 1 is 'x' \(str\) where earlier rows are int"):
        make(pl.DataFrame, changed={"i": mixed})
    with pytest.raises(InputTypeError, match="item ids are integers in interactions and strings"):
        make(items={"i": ["1", "2"]})
    with pytest.raises(InputTypeError, match=r"\['i'\] has type double; ids are integers or str"):
        make(changed={"i": [1.0, 2.0, 3.0]})
    with pytest.raises(InputTypeError, match=r"\['i'\] has type bool"):
        make(changed={"i": [True, False, True]})


@pytest.mark.parametrize(
    "arguments",
    [
        {"user": "nope"},
        {"item": "nope"},
        {"weight": "nope"},
        {"time": "nope"},
        {"rating": "nope", "positive": 1},
        {"context": ["nope"]},
    ],
)
def test_a_missing_column_lists_those_there_are(arguments):
    pattern = r"='nope' is not a column of interactions; it has \['u', 'i', 't', 'w', 'r'\]"
    with pytest.raises(InputError, match=next(iter(arguments)) + pattern):
        make(**arguments)


@pytest.mark.parametrize(
    "arguments", [{"item_id": "nope"}, {"item_text": "{nope}"}, {"item_columns": ["nope"]}]
)
def test_a_missing_column_of_the_items_lists_those_there_are(arguments):
    pattern = r"='nope' is not a column of items; it has \['i', 'title'\]"
    with pytest.raises(InputError, match=next(iter(arguments)) + pattern):
        make(items={"i": [1], "title": ["x"]}, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rating": "r"}, "without positive=: give the rating from which"),
        ({"positive": 4}, "positive=4 without rating="),
        ({"positive": math.nan, "rating": "r"}, "positive is nan"),
        ({"positive": 9, "rating": "r"}, "leaves no event: the highest rating is 3"),
        ({"item_text": "{title}"}, "item_text='{title}' without items="),
        ({"item_id": "i"}, "item_id='i' without items="),
        ({"item_columns": ["a"]}, r"item_columns=\('a',\) without items="),
        ({"items": {"i": pa.array([], pa.int64())}}, "items has no rows"),
        ({"items": {"i": [4, 5, 6, 5, 4]}}, r"items\['i'\] row 3 is 5 again \(2 repeats\)"),
        ({"items": {"i": [4, None]}}, r"items\['i'\] row 1 is missing"),
        ({"items": {"i": [4]}, "item_text": "{i.real}"}, "wanted a bare column name"),
        ({"changed": {k: pa.array([], pa.int64()) for k in GOOD}}, "interactions has no rows"),
        ({"changed": {"t": [1.0, 2.5, 3.0]}, "time": "t"}, "row 1 is 2.5; times are whole"),
        ({"changed": {"t": [1.0, math.inf, 3.0]}, "time": "t"}, "row 1 is inf; times are whole"),
        ({"changed": {"t": [math.nan, 2.0, 3.0]}, "time": "t"}, "row 0 is nan; times are whole"),
    ],
)
def test_wrong_values(arguments, message):
    with pytest.raises(InputError, match=message):
        make(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"user": 3}, "user is 3; wanted a column name of interactions"),
        ({"user": None}, "user is None; wanted a column name"),
        ({"context": "t"}, "context is 't'; wanted a list of column names"),
        ({"item_columns": "t"}, "item_columns is 't'"),
        ({"weight": "u"}, r"\['u'\] has type large_string; wanted numbers"),
        ({"time": "u"}, r"\['u'\] has type large_string; wanted integers or dates"),
        ({"rating": "u", "positive": 1}, "wanted numbers"),
        ({"positive": "4", "rating": "r"}, "positive is '4'"),
        ({"items": {"i": [4]}, "item_text": 5}, "wanted a template"),
    ],
)
def test_wrong_types(arguments, message):
    with pytest.raises(InputTypeError, match=message):
        make(**arguments)


def test_what_is_no_frame(tmp_path):
    for thing in (None, 5, [1, 2], {"u": [1]}, np.zeros((2, 2))):
        with pytest.raises(InputTypeError, match=r"interactions is .*wanted a data frame"):
            Dataset.from_frame(thing, user="u", item="i")
    with pytest.raises(InputError, match="is not a file"):
        Dataset.from_frame(tmp_path / "none.csv", user="u", item="i")
    text = tmp_path / "events.txt"
    text.write_text("u,i\n1,2\n")
    with pytest.raises(InputError, match=r"ends in '.txt'; wanted .csv"):
        Dataset.from_frame(text, user="u", item="i")
    broken = tmp_path / "events.parquet"
    broken.write_text("no parquet")
    with pytest.raises(InputError, match="cannot be read"):
        Dataset.from_frame(str(broken), user="u", item="i")
    empty = tmp_path / "events.csv"
    empty.write_text("u,i\n")
    with pytest.raises(InputError, match="interactions has no rows"):
        Dataset.from_frame(empty, user="u", item="i")


def test_two_columns_of_one_name():
    frame = pd.DataFrame([[1, 2, 3]], columns=["u", "i", "i"])
    with pytest.raises(InputError, match="two columns of one name"):
        Dataset.from_frame(frame, user="u", item="i")
    table = pa.table([[1], [2], [3]], names=["u", "i", "i"])
    with pytest.raises(InputError, match="two columns of one name"):
        Dataset.from_frame(table, user="u", item="i")


def test_a_mask_that_does_not_fit():
    data = make()
    with pytest.raises(InputTypeError, match="wanted bool of shape"):
        data.keep_events(np.array([1, 0, 1]))
    with pytest.raises(InputTypeError, match="wanted bool of shape"):
        data.keep_events(np.array([True]))
