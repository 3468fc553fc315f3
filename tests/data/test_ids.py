"""IdMap against a dictionary, and what it refuses."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridrec.checks import InputError, InputTypeError, UnknownIdError
from hybridrec.data.ids import IdMap

integers = st.integers(-(2**63), 2**63 - 1)
strings = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
known_and_asked = st.one_of(
    st.tuples(st.lists(kind, min_size=1, max_size=20, unique=True), st.lists(kind, max_size=20))
    for kind in (integers, strings)
)


@given(known_and_asked)
def test_codes_are_what_a_dictionary_says(case):
    known, asked = case
    lookup = {value: code for code, value in enumerate(known)}
    asked = asked + known[::-1]
    codes = IdMap(known).codes(asked, "mark")
    assert codes.dtype == np.int32
    assert codes.tolist() == [lookup.get(value, -1) for value in asked]


@given(known_and_asked)
def test_ids_come_back_in_the_type_they_came_in(case):
    known, _ = case
    ids = IdMap(known)
    back = ids.ids_of(ids.codes(known)).tolist()
    assert back == known
    assert [type(value) for value in back] == [type(value) for value in known]
    assert IdMap(ids.ids).ids.tolist() == known  # the array is the saved form


@given(known_and_asked)
def test_extending_leaves_every_code_where_it_was(case):
    known, more = case
    more = list(dict.fromkeys(value for value in more if value not in known))
    ids = IdMap(known).extended(more)
    assert ids.ids.tolist() == known + more
    assert ids.codes(known).tolist() == list(range(len(known)))


@pytest.mark.parametrize(
    "container",
    [
        list,
        tuple,
        np.array,
        pd.Series,
        pl.Series,
        pa.array,
        lambda x: pa.chunked_array([x[:1], x[1:]]),
    ],
)
@pytest.mark.parametrize("values", [[7, 3, 5], ["b", "", "longer than the rest"]])
def test_any_column_of_ids_will_do(container, values):
    ids = IdMap(container(values))
    assert ids.ids.tolist() == values
    assert ids.codes(container(values[::-1])).tolist() == [2, 1, 0]


def test_numpy_string_dtype_and_categories_are_strings():
    assert IdMap(np.array(["b", "a"], dtype=np.dtypes.StringDType())).ids.tolist() == ["b", "a"]
    assert IdMap(pd.Series(["b", "a"], dtype="category")).ids.tolist() == ["b", "a"]
    assert IdMap(pl.Series(["b", "a"], dtype=pl.Categorical)).ids.tolist() == ["b", "a"]


def test_an_unknown_id_is_named_and_counted():
    with pytest.raises(UnknownIdError, match=r"users\[1\] is 'zoe', which is unknown \(2 of 3"):
        IdMap(["ann", "bob"]).codes(["bob", "zoe", "max"], name="users")


def test_an_unknown_id_longer_than_every_known_one_is_not_cut_into_a_known_one():
    assert IdMap(["ab", "cd"]).codes(["abc", "cd"], "mark").tolist() == [-1, 1]


def test_an_empty_map_knows_nobody_and_takes_the_type_of_what_comes():
    empty = IdMap([])
    assert empty.codes(["a"], "mark").tolist() == [-1]
    assert empty.codes([]).tolist() == []
    assert empty.extended(["a"]).ids.tolist() == ["a"]


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (["a", 1], InputTypeError, r"row 1 is 1 \(int\) where earlier rows are str"),
        ([1, "a"], InputTypeError, r"row 1 is 'a' \(str\) where earlier rows are int"),
        ([1, True], InputTypeError, r"row 1 is True \(bool\)"),
        ([True, False], InputTypeError, "type bool; ids are integers or strings"),
        ([1.0, 2.0], InputTypeError, r"type double.*astype\('int64'\)"),
        ([b"a"], InputTypeError, "type binary"),
        ([1, None], InputError, r"row 1 is missing \(1 are\)"),
        (np.array(["a", np.nan], dtype=object), InputError, "row 1 is missing"),
        ([2**70], InputTypeError, "int values that cannot be used"),
        (np.array([2**64 - 1], dtype=np.uint64), InputError, "beyond int64"),
        (["a" * 257], InputError, "at most 256 characters"),
        (["a\0"], InputError, "no NUL"),
        (["a", "b", "a"], InputError, r"ids\[2\] is 'a' again, as ids\[0\] \(1 repeats\)"),
        ("alice", InputTypeError, "wanted a list of ids"),
        (7, InputTypeError, "wanted a list of ids"),
        (np.zeros((2, 2), dtype=int), InputTypeError, "wanted a list of ids"),
    ],
)
def test_what_is_no_id_is_refused(values, error, message):
    with pytest.raises(error, match=message):
        IdMap(values)


def test_integers_asked_of_strings_are_an_error_even_when_unknown_ids_are_marked():
    with pytest.raises(InputTypeError, match="holds integers, but ids here are strings"):
        IdMap(["1", "2"]).codes([1], "mark")
    with pytest.raises(InputTypeError, match="holds strings, but ids here are integers"):
        IdMap([1, 2]).extended(["3"])


def test_an_id_that_is_there_cannot_be_added():
    with pytest.raises(InputError, match=r"new_ids\[1\] is 2, which is already here"):
        IdMap([1, 2]).extended([3, 2])


def test_a_map_does_not_change_with_the_array_it_was_made_of():
    source = np.array([4, 5])
    ids = IdMap(source)
    source[0] = 9
    assert ids.ids.tolist() == [4, 5]
    with pytest.raises(ValueError, match="read-only"):
        ids.ids[0] = 1
