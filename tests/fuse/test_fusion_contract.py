"""One suite, every fusion: the promises of ``protocols.Fusion``."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import hybridrec as hr
from hybridrec.candidates import Candidates
from hybridrec.persistence import known_kinds
from hybridrec.protocols import Fusion
from hybridrec.state import config_from_json, config_to_json

B, K = 240, 12
MAKERS = {
    "linear": hr.LinearFusion,
    "trees": lambda: hr.TreeFusion(trees=12, leaves=4, least_in_leaf=20, seeds=2),
    "rrf": hr.ReciprocalRankFusion,
    "convex": hr.ConvexFusion,
}


def make_lists(seed=0, rows=B, padded=True):
    """Lists with three signals that tell and one about the query; some are short.

    A target is drawn by the first two signals, so that larger is better.
    """
    rng = np.random.default_rng(seed)
    raw = np.exp(rng.normal(size=(3, rows, K))).astype(np.float32)
    sizes = rng.integers(2, K + 1, rows) if padded else np.full(rows, K)
    valid = np.arange(K) < sizes[:, None]
    standard = (raw - raw.mean(axis=2, keepdims=True)) / raw.std(axis=2, keepdims=True)
    chance = 2 * standard[0] + standard[1] + rng.gumbel(size=(rows, K))
    place = np.where(valid, chance, -np.inf).argmax(axis=1)
    items = np.argsort(rng.random((rows, 50)), axis=1)[:, :K].astype(np.int32)
    signals = {f"s{n}": np.where(valid, values, 0) for n, values in enumerate(raw)}
    signals["about the query"] = np.where(valid, rng.normal(size=(rows, 1)), 0).astype(np.float32)
    targets = items[np.arange(rows), place]
    # Columns in an order that has nothing to do with the signals.
    scores = np.where(valid, -np.arange(K, dtype=np.float32), -np.inf)
    return Candidates(np.where(valid, items, -1), scores, signals), targets


def changed(candidates, **signals):
    return Candidates(candidates.items, candidates.scores, {**candidates.signals, **signals})


def digest(fusion, folder):
    fusion.save_files(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@pytest.fixture(scope="module", params=MAKERS)
def new(request):
    """Makes a fusion that is not fitted."""
    return MAKERS[request.param]


@pytest.fixture(scope="module")
def fusion(new):
    """Fitted; tests only ask it."""
    return new().fit(*make_lists())


def test_it_is_a_fusion_that_a_model_folder_can_hold(fusion):
    assert isinstance(fusion, Fusion)
    assert fusion.signals == ("s0", "s1", "s2", "about the query")
    assert known_kinds()[type(fusion).__name__] is type(fusion)


def test_the_same_candidates_come_back_in_the_order_of_their_scores(fusion):
    candidates, _ = make_lists(1)
    ranked, scores = fusion.rank(candidates), fusion.score(candidates)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(np.isneginf(scores), candidates.items < 0)
    assert np.isfinite(scores[candidates.valid]).all()
    np.testing.assert_array_equal(np.sort(ranked.items, axis=1), np.sort(candidates.items, axis=1))
    for row, size in enumerate(candidates.valid.sum(axis=1)):
        order = np.lexsort((ranked.items[row, :size], -ranked.scores[row, :size]))
        np.testing.assert_array_equal(order, np.arange(size))
        assert (ranked.items[row, size:] == -1).all()
    by_item = dict(zip(candidates.items[0], candidates.signals["s0"][0], strict=True))
    assert ranked.signals["s0"][0].tolist() == [by_item[item] for item in ranked.items[0]]


def test_it_finds_the_targets_of_lists_it_has_not_seen(fusion):
    candidates, targets = make_lists(2, padded=False)
    first = (fusion.rank(candidates).items[:, 0] == targets).mean()
    best_single = max(
        (candidates.items[np.arange(B), values.argmax(axis=1)] == targets).mean()
        for values in candidates.signals.values()
    )
    # Reciprocal ranks learn nothing: the third signal, which tells nothing, is heard alike.
    least = 1.5 / K if isinstance(fusion, hr.ReciprocalRankFusion) else best_single - 0.02
    assert first > least


def test_padding_may_hold_anything(fusion):
    candidates, _ = make_lists(3)
    noise = np.random.default_rng(0).normal(size=candidates.items.shape).astype(np.float32)
    noisy = {
        name: np.where(candidates.valid, values, noise)
        for name, values in candidates.signals.items()
    }
    np.testing.assert_array_equal(
        fusion.score(changed(candidates, **noisy)), fusion.score(candidates)
    )


def test_a_list_is_ordered_alone_as_among_others(fusion):
    candidates, _ = make_lists(4, rows=7)
    scores = fusion.score(candidates)
    for row, size in enumerate(candidates.valid.sum(axis=1)):
        alone = candidates.select(np.array([row])).head(size)
        np.testing.assert_array_equal(fusion.score(alone)[0], scores[row, :size])


def test_no_list_and_an_empty_list_are_scored(fusion):
    candidates, _ = make_lists()
    assert fusion.score(candidates.select(np.arange(0))).shape == (0, K)
    nothing = Candidates(
        np.full((2, 3), -1, np.int32),
        np.full((2, 3), -np.inf, np.float32),
        dict.fromkeys(fusion.signals, np.zeros((2, 3), np.float32)),
    )
    assert np.isneginf(fusion.score(nothing)).all()


@pytest.mark.parametrize("scale", [0.25, 1024.0])
def test_a_signal_that_a_refit_rescales_changes_no_order(fusion, scale):
    """Powers of four: so that not even the last bit may change."""
    candidates, _ = make_lists(5)
    rescaled = changed(candidates, s0=scale * candidates.signals["s0"])
    np.testing.assert_array_equal(fusion.score(rescaled), fusion.score(candidates))


def test_the_order_in_which_candidates_came_is_not_read(fusion):
    candidates, _ = make_lists(6)
    shuffled = candidates.reordered(candidates.signals["s2"])
    np.testing.assert_array_equal(fusion.rank(shuffled).items, fusion.rank(candidates).items)


def test_fitted_twice_the_bits_are_the_same(new, fusion, tmp_path):
    again = new().fit(*make_lists())
    assert digest(again, tmp_path / "a") == digest(fusion, tmp_path / "b")
    # And fitted to other lists in between.
    other = new().fit(*make_lists(8)).fit(*make_lists())
    assert digest(other, tmp_path / "c") == digest(fusion, tmp_path / "b2")


def test_saved_and_loaded_the_bits_are_the_same(fusion, tmp_path):
    candidates, _ = make_lists(7)
    before = digest(fusion, tmp_path / "a")
    loaded = type(fusion).load_files(tmp_path / "a")
    assert loaded.config == fusion.config
    assert loaded.signals == fusion.signals
    np.testing.assert_array_equal(loaded.score(candidates), fusion.score(candidates))
    assert digest(loaded, tmp_path / "b") == before


def test_threads_asking_together_hear_what_one_hears(fusion):
    asked = [make_lists(seed, rows=40)[0] for seed in range(8)]
    wanted = [fusion.score(candidates) for candidates in asked]
    with ThreadPoolExecutor(4) as pool:
        for got, one in zip(pool.map(fusion.score, asked), wanted, strict=True):
            np.testing.assert_array_equal(got, one)


def test_more_signals_than_were_learned_from_do_no_harm(fusion):
    candidates, _ = make_lists()
    more = changed(candidates, new=np.ones(candidates.items.shape, np.float32))
    np.testing.assert_array_equal(fusion.score(more), fusion.score(candidates))


def test_errors_say_what_to_do(new, fusion, tmp_path):
    candidates, targets = make_lists()
    unfitted = new()
    assert unfitted.signals == ()
    with pytest.raises(hr.NotFittedError, match="call fit"):
        unfitted.score(candidates)
    with pytest.raises(hr.NotFittedError, match="nothing to save"):
        unfitted.save_files(tmp_path / "fusion")
    with pytest.raises(hr.InputError, match="list 3 does not hold its target"):
        new().fit(candidates, np.where(np.arange(B) == 3, 99, targets))
    with pytest.raises(hr.InputError, match=r"list 0 does not hold its target"):
        new().fit(candidates, np.full(B, -1))
    with pytest.raises(hr.InputError, match=r"targets has shape \(7,\)"):
        new().fit(candidates, targets[:7])
    with pytest.raises(hr.FitError, match="no list"):
        new().fit(candidates.select(np.arange(0)), targets[:0])
    with pytest.raises(hr.FitError, match="0 signals"):
        new().fit(Candidates(candidates.items, candidates.scores), targets)
    bare = Candidates(candidates.items, candidates.scores, {"s0": candidates.signals["s0"]})
    with pytest.raises(hr.InputError, match="no signal 's1'"):
        fusion.score(bare)


def test_settings_are_frozen_and_round_trip(new):
    config = new().config
    assert config_from_json(type(config), config_to_json(config)) == config
    with pytest.raises(AttributeError):
        config.lists = 3
