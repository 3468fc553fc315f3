"""The fusion learns what is there, ignores scale, and refuses what is missing."""

import numpy as np
import pytest

import hybridrec as hr
from hybridrec.candidates import Candidates
from hybridrec.fuse.linear import LinearFusion


def lists(n=300, k=20, seed=0, weights=(2.0, -1.0, 0.0)):
    """Lists whose target is drawn from the softmax of a known linear model of their signals."""
    generator = np.random.default_rng(seed)
    raw = generator.normal(size=(n, k, len(weights)))
    standard = (raw - raw.mean(axis=1, keepdims=True)) / raw.std(axis=1, keepdims=True)
    place = (standard @ np.asarray(weights) + generator.gumbel(size=(n, k))).argmax(axis=1)
    items = np.tile(np.arange(k, dtype=np.int32), (n, 1))
    signals = {f"s{column}": raw[:, :, column] for column in range(len(weights))}
    candidates = Candidates.ranked(items, np.zeros((n, k), np.float32), signals)
    return candidates, place.astype(np.int32)


def test_finds_the_weights_that_drew_the_targets():
    candidates, targets = lists(n=3000)
    fusion = LinearFusion(regularization=0.0).fit(candidates, targets)
    by_signal = dict(
        zip(fusion.signals, fusion.coefficients[:3] + fusion.coefficients[3:], strict=True)
    )
    assert by_signal["s0"] == pytest.approx(2.0, abs=0.25)
    assert by_signal["s1"] == pytest.approx(-1.0, abs=0.25)
    assert by_signal["s2"] == pytest.approx(0.0, abs=0.25)


def test_the_gradient_is_zero_where_it_stops():
    candidates, targets = lists(n=50)
    fusion = LinearFusion(regularization=0.01).fit(candidates, targets)
    best = fusion.coefficients

    def loss(weights):
        fusion.coefficients = weights
        logits = fusion.score(candidates).astype(np.float64)
        place = (candidates.items == targets[:, None]).argmax(axis=1)
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_share = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return -log_share[np.arange(len(place)), place].mean() + 0.01 * weights @ weights

    for direction in np.eye(len(best)):
        assert loss(best) <= loss(best + 0.05 * direction) + 1e-6
        assert loss(best) <= loss(best - 0.05 * direction) + 1e-6


def test_linear_rescaling_of_a_positive_signal_changes_no_order():
    candidates, targets = lists(weights=(2.0, -1.0))
    positive = Candidates(
        candidates.items,
        candidates.scores,
        {name: np.exp(values) for name, values in candidates.signals.items()},
    )
    scaled = Candidates(
        candidates.items,
        candidates.scores,
        {name: 1000 * values for name, values in positive.signals.items()},
    )
    fusion = LinearFusion().fit(positive, targets)
    np.testing.assert_array_equal(fusion.rank(positive).items, fusion.rank(scaled).items)


def test_padding_and_flat_signals_are_left_alone():
    items = np.array([[4, 2, -1], [1, -1, -1]], dtype=np.int32)
    scores = np.array([[2, 1, -np.inf], [1, -np.inf, -np.inf]], dtype=np.float32)
    signal = np.array([[1, 5, 0], [3, 0, 0]], dtype=np.float32)
    flat = np.full((2, 3), 7, dtype=np.float32)
    candidates = Candidates(items, scores, {"a": signal, "flat": flat})
    fusion = LinearFusion().fit(candidates, np.array([2, 1]))
    ranked = fusion.rank(candidates)
    assert ranked.items.tolist() == [[2, 4, -1], [1, -1, -1]]
    assert np.isneginf(ranked.scores[ranked.items < 0]).all()
    assert np.isfinite(ranked.scores[ranked.items >= 0]).all()


def test_errors_say_what_to_do(tmp_path):
    candidates, targets = lists(n=5)
    fusion = LinearFusion()
    with pytest.raises(hr.NotFittedError, match="call fit"):
        fusion.score(candidates)
    with pytest.raises(hr.NotFittedError, match="nothing to save"):
        fusion.save_files(tmp_path)
    with pytest.raises(hr.InputError, match="does not hold its target"):
        fusion.fit(candidates, np.full(5, 99, dtype=np.int32))
    with pytest.raises(hr.FitError, match="no list"):
        fusion.fit(candidates.select(np.arange(0)), targets[:0])
    fusion.fit(candidates, targets)
    bare = Candidates(candidates.items, candidates.scores, {"s0": candidates.signals["s0"]})
    with pytest.raises(hr.InputError, match="no signal 's1'"):
        fusion.score(bare)
    with pytest.raises(ValueError, match="regularization"):
        LinearFusion(regularization=-1)


def test_comes_back_from_its_files(tmp_path):
    candidates, targets = lists(n=40)
    fusion = LinearFusion(regularization=0.5).fit(candidates, targets)
    fusion.save_files(tmp_path / "fusion")
    back = LinearFusion.load_files(tmp_path / "fusion")
    np.testing.assert_array_equal(back.score(candidates), fusion.score(candidates))
    assert back.config == fusion.config
