"""The types that travel between the stages take no number for another."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridrec.candidates import Candidates, Queries
from hybridrec.checks import InputError, InputTypeError
from hybridrec.ragged import Ragged

SCORES = np.zeros((1, 2), dtype=np.float32)
MAKERS = {
    "items of a Ragged": lambda codes: Ragged([0, 2], codes),
    "from_rows": lambda codes: Ragged.from_rows([codes]),
    "users": lambda codes: Queries(Ragged.empty(2), 9, users=codes),
    "items of Candidates": lambda codes: Candidates(np.asarray(codes)[None], SCORES),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize(
    "codes",
    [[0, 2**32 + 1], [2**31, 0], [0, -(2**31) - 1], np.array([0, 2**63 + 1], dtype=np.uint64)],
)
def test_a_code_beyond_int32_is_not_wrapped(make, codes):
    with pytest.raises(InputError, match=r"1\] is|0\] is"):
        make(codes)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("codes", [[0, 1.7], [0.0, 1.0], [True, False], ["0", "1"], [0, 2**70]])
def test_what_is_no_integer_is_not_cut_to_one(make, codes):
    with pytest.raises(InputTypeError, match="wanted integers"):
        make(codes)


def test_indptr_and_times_are_whole_too():
    with pytest.raises(InputTypeError, match="indptr has dtype float64"):
        Ragged([0.0, 1.9], [3])
    with pytest.raises(InputTypeError, match="times has dtype float64"):
        Ragged([0, 1], [3], times=[1.5])
    with pytest.raises(InputError, match=r"times\[0\] is 9223372036854775808"):
        Ragged([0, 1], [3], times=np.array([2**63], dtype=np.uint64))


@given(
    st.lists(st.integers(-1, 2**31 - 1), max_size=5),
    st.sampled_from([np.int32, np.int64, np.uint64, list]),
)
def test_every_code_that_fits_stays_what_it_was(codes, kind):
    if kind is np.uint64:
        codes = [abs(code) for code in codes]
    given_codes = codes if kind is list else np.array(codes, dtype=kind)
    for rows in (Ragged.from_rows([given_codes]), Ragged([0, len(codes)], given_codes)):
        assert rows.items.tolist() == codes
        assert rows.items.dtype == np.int32


def test_int32_codes_are_not_copied():
    codes = np.arange(5, dtype=np.int32)
    assert np.shares_memory(Ragged([0, 5], codes).items, codes)


def test_what_is_forgotten_would_not_be_seen_in_a_float32_sum():
    rng = np.random.default_rng(0)
    histories = Ragged.from_rows([rng.integers(0, 9, n) for n in (0, 3, 200)])
    queries = Queries(histories, 9)
    kept, weights = queries.remembered(2.0)
    assert kept.lengths.tolist() == [0, 3, 49]
    np.testing.assert_array_equal(kept.items, histories.newest(49).items)
    every = queries.recency_weights(2.0)
    np.testing.assert_array_equal(weights[-49:], every[-49:])
    assert np.float32(1) + every[-50] == np.float32(1)
    for half_life, ordered in ((None, True), (2.0, False), (50.0, True)):
        kept, weights = Queries(histories, 9, ordered=ordered).remembered(half_life)
        np.testing.assert_array_equal(kept.items, histories.items)
        assert len(weights) == 203
