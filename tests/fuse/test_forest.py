"""Trees as they were read against LightGBM, which grew them."""

import numpy as np
import pytest

import hybridrec as hr
from hybridrec.fuse.forest import MOST_LEAVES, Forest

lightgbm = pytest.importorskip("lightgbm")


def grown(leaves=15, trees=20, n=3000, seed=0, columns=5):
    """A model and a table whose values repeat, so that many lie exactly on a threshold."""
    rng = np.random.default_rng(seed)
    table = rng.integers(-4, 5, (n, columns)).astype(np.float32) / np.float32(3)
    table[:, 0] = rng.normal(size=n)
    target = np.sin(3 * table[:, 0]) + table[:, 1] * table[:, 2] + rng.normal(size=n) / 5
    settings = {
        "objective": "regression",
        "num_leaves": leaves,
        "min_data_in_leaf": 5,
        "verbosity": -1,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
    }
    return lightgbm.train(settings, lightgbm.Dataset(table, target), trees), table


@pytest.mark.parametrize("leaves", [2, 3, 15, 31, 33, MOST_LEAVES])
@pytest.mark.parametrize("n", [1, 512, 513, 3000])
def test_predicts_what_lightgbm_does_to_the_bit(leaves, n):
    model, table = grown(leaves)
    forest = Forest.from_text(model.model_to_string())
    assert (forest.leaves != 0).sum(axis=1).max() == leaves
    near = np.concatenate([table, np.nextafter(table, np.float32(9)), 1e6 * table])[:n]
    got = forest.score(np.ascontiguousarray(near.T))
    np.testing.assert_array_equal(got, model.predict(near, num_threads=1))


def test_trees_without_a_split_are_one_leaf():
    model, table = grown(n=8)
    text = model.model_to_string()
    assert "num_leaves=1\n" in text
    got = Forest.from_text(text).score(np.ascontiguousarray(table.T))
    np.testing.assert_array_equal(got, model.predict(table, num_threads=1))
    assert Forest.from_text(text).score(np.empty((5, 0), np.float32)).shape == (0,)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tree\n", "forest\n"),
        ("end of trees", "end"),
        ("num_cat=0", "num_cat=1"),
        ("is_linear=0", "is_linear=1"),
        ("decision_type=2 ", "decision_type=10 "),
        ("threshold=", "thresholds="),
        ("leaf_value=", "leaf_value=x "),
        ("left_child=", "left_child=99 "),
        ("left_child=", "left_child=0 "),
    ],
)
def test_a_text_that_is_something_else_is_refused(old, new):
    text = grown(leaves=4, trees=2)[0].model_to_string()
    assert old in text
    with pytest.raises(hr.StorageError, match="cannot be read"):
        Forest.from_text(text.replace(old, new, 1))


def test_trees_too_large_for_a_word_are_refused():
    with pytest.raises(hr.StorageError, match="65 leaves; wanted at most 64"):
        Forest.from_text(grown(leaves=65)[0].model_to_string())
