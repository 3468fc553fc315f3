"""Popularity is a count: everything else about it is in the contract."""

from dataclasses import dataclass

import numpy as np
import pytest

from hybridrec import InputTypeError, Popularity, Queries, Ragged


@dataclass
class Data:
    histories: Ragged
    n_items: int
    texts: None = None
    ordered: bool = True


def test_score_is_log_of_one_plus_events_the_same_for_everybody():
    model = Popularity().fit(Data(Ragged.from_rows([[1, 1, 2], [1], []]), n_items=4))
    best = model.recall(Queries(Ragged.from_rows([[], [3, 3]]), 4), 4)
    np.testing.assert_array_equal(best.items, [[1, 2, 0, 3]] * 2)
    np.testing.assert_allclose(best.scores[0], np.log([4, 2, 1, 1]), rtol=1e-6)
    np.testing.assert_array_equal(best.scores[0], best.scores[1])


def test_weights_are_not_events():
    events = Ragged(np.array([0, 2]), np.array([0, 1]), weights=np.array([9.0, 0.5]))
    model = Popularity().fit(Data(events, n_items=2))
    scores = model.score(Queries(Ragged.empty(1), 2), np.array([[0, 1, -1]], np.int32))
    np.testing.assert_allclose(scores, [[np.log(2), np.log(2), -np.inf]], rtol=1e-6)


def test_nothing_to_choose():
    assert Popularity().half_life is None
    assert Popularity().half_lives == ()
    with pytest.raises(InputTypeError, match="name"):
        Popularity(name=3)
