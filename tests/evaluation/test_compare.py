"""Intervals and tests: they hold what they promise, and agree with drawing users one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridrec.checks import InputError
from hybridrec.evaluation import compare
from hybridrec.evaluation.compare import Delta, bootstrap_ci, holm, paired_ci, paired_p


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


def test_users_who_were_asked_often_are_drawn_whole() -> None:
    rng = np.random.default_rng(5)
    sizes = rng.integers(1, 9, 150)
    groups = np.repeat(np.arange(150), sizes)
    values = np.repeat(rng.random(150), sizes) + rng.normal(0, 0.05, len(groups))
    sums, counts = np.bincount(groups, weights=values), np.bincount(groups)
    drawn = rng.integers(0, 150, size=(20_000, 150))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    shuffled = rng.permutation(len(groups))
    got = bootstrap_ci(values[shuffled], groups=groups[shuffled], samples=20_000)
    np.testing.assert_allclose(got, np.quantile(means, [0.025, 0.975]), atol=0.003)
    alone = bootstrap_ci(values, samples=20_000)
    assert got[1] - got[0] > 1.5 * (alone[1] - alone[0])


def test_users_asked_once_or_unknown_stand_alone() -> None:
    values = np.random.default_rng(6).random(40)
    for groups in (np.arange(40)[::-1], np.full(40, -1), np.r_[np.full(20, -1), np.arange(20)]):
        assert bootstrap_ci(values, groups=groups) == bootstrap_ci(values)
        assert paired_p(values, 0.4 + 0 * values, groups=groups) == pytest.approx(
            paired_p(values, 0.4 + 0 * values), abs=0.03
        )


def exact_p(a: np.ndarray, b: np.ndarray, groups: np.ndarray) -> float:
    """Every way to sign the users' differences, one by one."""
    sums = np.array([(a - b)[groups == user].sum() for user in np.unique(groups)])
    signs = np.array(list(itertools.product([-1, 1], repeat=len(sums))))
    return float((np.abs(signs @ sums) >= abs(sums.sum()) - 1e-12).mean())


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 7)), min_size=1, max_size=12
    )
)
def test_the_randomisation_test_agrees_with_every_sign(rows: list[tuple[int, int, int]]) -> None:
    a, b, groups = np.array(rows).T
    got = paired_p(a / 3, b / 3, groups=groups)
    assert got == pytest.approx(exact_p(a / 3, b / 3, groups))
    assert got == paired_p(b / 3, a / 3, groups=groups)


@pytest.mark.parametrize("seed", range(6))
def test_drawn_signs_agree_with_every_sign(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = np.arange(24) % 12
    a, b = rng.integers(0, 4, (2, 24)) / 3
    users = len(np.unique(groups))
    assert 2**users > 4000
    want = exact_p(a + 0.01 * groups, b, groups)
    assert paired_p(a + 0.01 * groups, b, groups=groups, samples=4000) == pytest.approx(
        want, abs=0.03
    )


def test_p_is_as_rarely_small_as_it_says_and_small_where_there_is_a_gain() -> None:
    rng = np.random.default_rng(7)
    found = []
    for trial in range(300):
        a, b = rng.random((2, 60)).round(1)
        found.append(paired_p(a, b, samples=400, seed=trial))
    assert 0.02 <= np.mean(np.array(found) <= 0.05) <= 0.085
    base = rng.random(400)
    assert paired_p(base + rng.normal(0.01, 0.02, 400), base) == 1 / 10_001
    assert paired_p(base, base) == 1.0


def test_p_is_the_same_however_memory_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = np.random.default_rng(8).random((2, 30))
    whole = paired_p(a, b)
    monkeypatch.setattr(compare, "_CELLS", 300)
    assert paired_p(a, b) == whole


def slow_holm(p: list[float]) -> list[float]:
    """The smallest level at which Holm's steps reject each hypothesis."""
    return [
        min(
            1.0,
            max(
                q * (len(p) - sum(other < q for other in p))
                for q in {value for value in p if value <= mine}
            ),
        )
        for mine in p
    ]


@given(st.lists(st.floats(0, 1), max_size=8, unique=True))
def test_holm_agrees_with_its_definition(p: list[float]) -> None:
    assert holm(p) == pytest.approx(slow_holm(p))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.4]) == [0.8, 0.8]
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    with pytest.raises(InputError, match="wanted values from 0 to 1"):
        holm([0.5, float("nan")])


def test_refusals() -> None:
    with pytest.raises(InputError, match=">= 1 users"):
        bootstrap_ci(np.empty(0))
    with pytest.raises(InputError, match=r"values\[1\] is nan"):
        bootstrap_ci(np.array([0.0, np.nan]))
    with pytest.raises(InputError, match="level is 1"):
        bootstrap_ci(np.ones(3), level=1.0)
    for call in (paired_ci, paired_p):
        with pytest.raises(InputError, match="same users"):
            call(np.ones(3), np.ones(4))
        with pytest.raises(InputError, match=r"groups has shape \(2,\)"):
            call(np.ones(3), np.ones(3), groups=np.zeros(2, np.int64))
