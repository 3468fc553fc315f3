"""Neighbours of items: whose vectors count, who is left out."""

from types import SimpleNamespace

import numpy as np
import pytest

import hybridrec as hr
from hybridrec.neighbours import ItemNeighbours

ITEMS = 9


def known(**vectors):
    """A recaller that has vectors of a few of the items."""
    every = np.zeros((ITEMS, 2), dtype=np.float32)
    for item, vector in vectors.items():
        every[int(item[1:])] = vector
    return SimpleNamespace(name="vectors", item_vectors=every)


def lists(neighbours, items, k, allow=None):
    answer = neighbours.nearest(np.array(items, dtype=np.int32), k, allow)
    return [row[row >= 0].tolist() for row in answer.items]


def test_an_item_nothing_is_known_of_is_nobodys_neighbour_and_has_none():
    behaviour = known(i1=[1, 0], i2=[2, 1], i3=[-1, 0])
    neighbours = ItemNeighbours([SimpleNamespace(name="popularity"), behaviour])
    assert lists(neighbours, [1, 5], 10) == [[2, 3], []]
    allow = np.ones(ITEMS, dtype=bool)
    allow[2] = False
    assert lists(neighbours, [1, 5], 10, allow) == [[3], []]
    # Another recaller may know it, and then answers from what it knows.
    both = ItemNeighbours([behaviour, known(i5=[0, 1], i6=[1, 1])])
    assert lists(both, [1, 5, 7], 10) == [[2, 3], [6], []]


def test_scores_are_cosines_whatever_the_lengths():
    neighbours = ItemNeighbours([known(i1=[3, 0], i2=[2, 2], i3=[0, 0.1])])
    found = neighbours.nearest(np.array([1], dtype=np.int32), 2)
    np.testing.assert_array_equal(found.items, [[2, 3]])
    np.testing.assert_allclose(found.scores, [[np.sqrt(0.5), 0.0]], rtol=1e-6, atol=1e-7)


def test_without_vectors_there_are_none():
    with pytest.raises(hr.InputError, match=r"item vectors \(ALS, TextRecall\).*\['popularity'\]"):
        ItemNeighbours([SimpleNamespace(name="popularity")])
