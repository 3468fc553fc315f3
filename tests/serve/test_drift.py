import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridrec import InputError
from hybridrec.serve.watch.drift import (
    TOP,
    Drift,
    DriftConfig,
    binned,
    edges,
    population_stability,
)

SMALL = DriftConfig(reference=4, window=6, step=2, bins=3)


def slow_bins(scores, cuts):
    counts = [0] * (len(cuts) + 1)
    for score in scores:
        counts[sum(cut < score for cut in cuts)] += 1
    return counts


def slow_stability(expected, actual):
    total = 0.0
    for before, now in zip(expected, actual, strict=True):
        before = (before + 0.5) / (sum(expected) + 0.5 * len(expected))
        now = (now + 0.5) / (sum(actual) + 0.5 * len(actual))
        total += (now - before) * math.log(now / before)
    return total


class SlowDrift:
    """Remembers every answer and looks at all of them each time."""

    def __init__(self, config):
        self.config = config
        self.answers = []

    def add(self, scores, items, cold):
        kept = [s for s in scores[:TOP] if s is not None and math.isfinite(s)]
        self.answers.append((kept, set(items), cold))

    def figures(self):
        config = self.config
        whole = len(self.answers) // config.step * config.step
        shown = self.answers[:whole][-config.window :]
        if not shown:
            return 0, math.nan, 0, math.nan
        items = set().union(*(items for _, items, _ in shown))
        cold = sum(cold for *_, cold in shown) / len(shown)
        later = self.answers[config.reference : whole][-config.window :]
        stability = math.nan
        if len(later) >= min(config.reference, config.window):
            early = [s for scores, *_ in self.answers[: config.reference] for s in scores]
            now = [s for scores, *_ in later for s in scores]
            if early and now:
                cuts = edges(np.array(early), config.bins).tolist()
                stability = slow_stability(slow_bins(early, cuts), slow_bins(now, cuts))
        return len(shown), stability, len(items), cold


score = st.one_of(st.none(), st.integers(-3, 3).map(float), st.just(math.nan))
answers = st.lists(
    st.tuples(st.lists(score, max_size=13), st.lists(st.integers(0, 8)), st.booleans()),
    max_size=25,
)


@settings(max_examples=200, deadline=None)
@given(answers)
def test_figures_are_those_of_who_remembers_everything(given_answers):
    fast, slow = Drift(SMALL), SlowDrift(SMALL)
    for number, (scores, items, cold) in enumerate(given_answers, 1):
        looked = fast.add(scores, items, cold=cold)
        slow.add(scores, items, cold)
        assert looked is (number % SMALL.step == 0)
        found = fast.figures
        shown = (found.answers, found.scores, found.items, found.cold)
        np.testing.assert_allclose(shown, slow.figures(), rtol=1e-12, atol=1e-15)


@given(
    st.lists(st.integers(-4, 4).map(float)),
    st.lists(st.integers(-4, 4).map(float), max_size=6, unique=True).map(sorted),
)
def test_bins_count_every_score_once(scores, cuts):
    found = binned(np.array(scores), np.array(cuts))
    assert found.tolist() == slow_bins(scores, cuts)


def test_edges_cut_the_reference_in_equal_parts_and_leave_room_outside():
    scores = np.random.default_rng(0).normal(size=1000)
    cuts = edges(scores, 10)
    counts = binned(scores, cuts)
    assert len(cuts) == 12
    assert counts[0] == counts[-1] == 0  # nothing is below the least or above the greatest
    assert counts[1] == 1  # the least alone
    assert set(counts[2:-1]) <= {99, 100, 101}
    low, high = binned(np.array([-99.0, 99.0]), cuts)[[0, -1]]
    assert (low, high) == (1, 1)


def test_equal_scores_still_tell_of_others():
    cuts = edges(np.full(50, 0.25), 10)
    before = binned(np.full(50, 0.25), cuts)
    assert population_stability(before, binned(np.full(50, 0.25), cuts)) == 0
    for moved in (0.2, 0.3):
        assert population_stability(before, binned(np.full(50, moved), cuts)) > 1


@pytest.mark.parametrize("shift", [0.0, 0.25, 0.5, 1.0])
def test_a_shifted_normal_has_its_squared_shift_as_index(shift):
    # The divergence of two normals of variance 1 both ways is the square of what is between them;
    # bins lose a little of it, and sampling adds about bins * (1/n + 1/m).
    generator = np.random.default_rng(1)
    scores = generator.normal(size=(2, 200_000))
    cuts = edges(scores[0], 10)
    found = population_stability(binned(scores[0], cuts), binned(scores[1] + shift, cuts))
    assert 0.85 * shift**2 <= found <= shift**2 + 0.001


def test_the_index_is_symmetric_and_needs_the_same_bins():
    one, other = np.array([5, 1, 0]), np.array([2, 2, 9])
    assert population_stability(one, other) == pytest.approx(population_stability(other, one))
    assert math.isnan(population_stability(one, np.zeros(3, dtype=int)))
    with pytest.raises(InputError, match="bins"):
        population_stability(one, np.array([1, 2]))


def test_without_drift_the_index_stays_below_what_counts_as_none():
    generator = np.random.default_rng(2)
    drift = Drift()
    for _ in range(3000):
        scores = np.sort(generator.normal(size=10))[::-1].tolist()
        drift.add(scores, generator.integers(0, 500, size=10).tolist(), cold=False)
    assert drift.figures.answers == 3000
    assert drift.figures.scores < 0.02
    for _ in range(10_000):
        scores = np.sort(generator.normal(1.0, size=10))[::-1].tolist()
        drift.add(scores, [7], cold=True)
    assert drift.figures.scores > 0.25
    assert (drift.figures.answers, drift.figures.items, drift.figures.cold) == (10_000, 1, 1.0)


def test_one_long_list_does_not_outweigh_the_others():
    drift = Drift(SMALL)
    drift.add([1.0] * 1000, range(1000), cold=False)
    drift.add([2.0], [1], cold=False)
    assert sorted(drift.newest) == [1.0] * TOP + [2.0]
    assert drift.figures.items == 1000


@pytest.mark.parametrize(
    "wrong", [{"step": 0}, {"bins": 1}, {"window": 150}, {"reference": 50}, {"window": 0}]
)
def test_windows_are_made_of_steps(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        DriftConfig(**wrong)
