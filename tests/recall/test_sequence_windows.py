"""Cutting histories into windows: every event with its successor, once."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridrec import Ragged
from hybridrec.recall.sequence_windows import grouped, padded, steps, training_windows

rows_of_items = st.lists(st.lists(st.integers(0, 30), max_size=25), min_size=1, max_size=9)


@given(rows_of_items, st.integers(1, 12))
def test_every_event_meets_its_successor_once(rows, length):
    histories = Ragged.from_rows(rows)
    starts, sizes = training_windows(histories, length)
    places = Counter(
        place
        for start, size in zip(starts, sizes, strict=True)
        for place in range(start, start + size - 1)
    )
    wanted = np.setdiff1d(np.arange(len(histories.items)), histories.indptr[1:] - 1)
    assert places == Counter(wanted.tolist())
    assert (sizes > 1).all()
    assert (sizes <= length + 1).all()


@given(rows_of_items, st.integers(1, 12))
def test_the_newest_window_of_a_history_is_full(rows, length):
    histories = Ragged.from_rows(rows)
    starts, sizes = training_windows(histories, length)
    for first, end in zip(histories.indptr[:-1], histories.indptr[1:], strict=True):
        if end - first > 1:
            newest = starts[starts + sizes == end]
            assert newest == max(first, end - 1 - length)


@given(st.lists(st.integers(2, 40), min_size=1, max_size=60), st.integers(1, 200))
def test_an_epoch_is_every_window_once(sizes, batch):
    sizes = np.array(sizes)
    parts = list(steps(sizes, batch, np.random.default_rng(0)))
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(sizes)))
    pairs = [int((sizes[part] - 1).sum()) for part in parts]
    assert max(pairs) <= batch * 1.5 + 2 * sizes.max()


def test_steps_differ_between_epochs_and_not_between_runs():
    sizes = np.arange(2, 60)

    def epochs():
        generator = np.random.default_rng(3)
        return [np.concatenate(list(steps(sizes, 100, generator))) for _ in range(2)]

    one, two = epochs()
    assert (one != two).any()
    np.testing.assert_array_equal([one, two], epochs())


@given(rows_of_items)
def test_groups_hold_the_windows_and_pad_them_with_zeros(rows):
    histories = Ragged.from_rows([[1], *rows])
    sizes = histories.lengths[histories.lengths > 0]
    starts = histories.indptr[:-1][histories.lengths > 0]
    found = []
    for group in grouped(histories.items, starts, sizes):
        assert group.items.dtype == np.int32
        for row, size in zip(group.items, group.lengths, strict=True):
            assert not row[size:].any()
            found.append(row[:size].tolist())
    assert Counter(map(tuple, found)) == Counter(tuple(row) for row in [[1], *rows] if row)


def test_padding_never_reads_beyond_the_items():
    group = padded(np.array([5, 6, 7], np.int32), np.array([2, 0]), np.array([1, 3]))
    np.testing.assert_array_equal(group.items, [[7, 0, 0], [5, 6, 7]])


@pytest.mark.parametrize("length", [1, 7])
def test_no_pairs_no_windows(length):
    starts, sizes = training_windows(Ragged.from_rows([[], [3], [1]]), length)
    assert len(starts) == len(sizes) == 0
