"""Bootstrap intervals: they cover what they promise, and agree with drawing users one by one."""

from __future__ import annotations

import numpy as np
import pytest

from hybridrec.checks import InputError
from hybridrec.evaluation import compare
from hybridrec.evaluation.compare import Delta, bootstrap_ci, paired_ci


def test_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    trials, covered = 400, 0
    for trial in range(trials):
        low, high = bootstrap_ci(rng.binomial(1, 0.3, 200), level=0.9, samples=400, seed=trial)
        covered += low <= 0.3 <= high
    assert 0.84 <= covered / trials <= 0.95


def test_agrees_with_resampling_users_one_by_one() -> None:
    rng = np.random.default_rng(2)
    values = rng.choice([0.0, 0.0, 0.3, 0.5, 1.0], size=300)
    means = values[rng.integers(0, 300, size=(20_000, 300))].mean(axis=1)
    want = np.quantile(means, [0.025, 0.975])
    np.testing.assert_allclose(bootstrap_ci(values, samples=20_000), want, atol=0.003)


def test_same_seed_same_interval_however_memory_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).random(50)
    whole = bootstrap_ci(values)
    assert bootstrap_ci(values, seed=1) != whole
    monkeypatch.setattr(compare, "_CELLS", 120)
    assert bootstrap_ci(values) == whole


def test_pairing_sees_what_two_intervals_hide() -> None:
    rng = np.random.default_rng(4)
    base = rng.random(400)
    better = base + rng.normal(0.01, 0.02, 400)
    assert bootstrap_ci(better)[0] < bootstrap_ci(base)[1]
    delta = paired_ci(better, base)
    assert 0 < delta.low < delta.mean < delta.high
    assert delta.mean == pytest.approx(better.mean() - base.mean())


def test_no_spread_no_width() -> None:
    assert bootstrap_ci(np.array([0.25])) == (0.25, 0.25)
    assert paired_ci(np.ones(5), np.ones(5)) == Delta(0.0, 0.0, 0.0)


def test_refusals() -> None:
    with pytest.raises(InputError, match=">= 1 users"):
        bootstrap_ci(np.empty(0))
    with pytest.raises(InputError, match=r"values\[1\] is nan"):
        bootstrap_ci(np.array([0.0, np.nan]))
    with pytest.raises(InputError, match="level is 1"):
        bootstrap_ci(np.ones(3), level=1.0)
    with pytest.raises(InputError, match="same users"):
        paired_ci(np.ones(3), np.ones(4))
