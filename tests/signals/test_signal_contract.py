"""One suite, every signal: the promises of ``protocols.Signal``."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from timed_data import B, I, make_data, make_items, make_queries

import hybridrec as hr
from hybridrec.candidates import Queries
from hybridrec.persistence import known_kinds
from hybridrec.protocols import Recaller, Signal
from hybridrec.ragged import Ragged
from hybridrec.state import config_from_json, config_to_json

MAKERS = {
    "recent popularity": hr.RecentPopularity,
    "item age": hr.ItemAge,
    "newest gap": hr.NewestGap,
    "history length": hr.HistoryLength,
    "history stage": hr.HistoryStage,
    "at half-life": lambda: hr.AtHalfLife("popularity", 2.0).use(hr.Popularity().fit(make_data())),
}


def digest(signal, folder):
    signal.save_files(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@pytest.fixture(scope="module", params=MAKERS)
def new(request):
    """Makes a signal that is not fitted."""
    return MAKERS[request.param]


@pytest.fixture(scope="module")
def signal(new):
    """Fitted; tests only ask it."""
    return new().fit(make_data())


def test_it_is_a_signal_that_a_model_folder_can_hold(signal):
    assert isinstance(signal, Signal)
    assert not isinstance(signal, Recaller)
    assert signal.name
    assert known_kinds()[type(signal).__name__] is type(signal)


def test_every_real_candidate_has_a_finite_score_and_padding_has_none(signal):
    queries, items = make_queries(), make_items()
    scores = signal.score(queries, items)
    assert scores.dtype == np.float32
    assert scores.shape == items.shape
    np.testing.assert_array_equal(np.isneginf(scores), items < 0)
    assert np.isfinite(scores[items >= 0]).all()


def test_a_query_is_answered_alone_as_in_a_batch(signal):
    queries, items = make_queries(), make_items()
    scores = signal.score(queries, items)
    for row in range(B):
        alone = signal.score(queries.select(np.array([row])), items[row : row + 1])
        np.testing.assert_array_equal(alone[0], scores[row])


def test_no_query_at_all(signal):
    nobody = Queries(Ragged.empty(0), I)
    assert signal.score(nobody, np.empty((0, 3), np.int32)).shape == (0, 3)


def test_a_history_without_times_is_answered(signal):
    queries = make_queries()
    bare = replace(queries, histories=replace(queries.histories, times=None))
    scores = signal.score(bare, make_items())
    assert np.isfinite(scores[make_items() >= 0]).all()


def test_asking_changes_nothing_and_fitting_again_gives_the_same(new, signal, tmp_path):
    before = digest(signal, tmp_path / "a")
    wanted = signal.score(make_queries(), make_items())
    np.testing.assert_array_equal(signal.score(make_queries(), make_items()), wanted)
    assert digest(signal, tmp_path / "b") == before
    again = new().fit(make_data())
    assert digest(again, tmp_path / "c") == before
    assert digest(again.refit(make_data()), tmp_path / "d") == before


def test_saved_and_loaded_the_bits_are_the_same(signal, tmp_path):
    signal.save_files(tmp_path / "a")
    loaded = type(signal).load_files(tmp_path / "a")
    assert loaded.config == signal.config
    if isinstance(signal, hr.AtHalfLife):
        loaded.use(signal._source)
    np.testing.assert_array_equal(
        loaded.score(make_queries(), make_items()), signal.score(make_queries(), make_items())
    )
    assert digest(loaded, tmp_path / "b") == digest(signal, tmp_path / "c")


def test_items_can_be_added_and_those_known_score_as_before(new):
    signal = new().fit(make_data())
    queries, items = make_queries(), make_items()
    before = signal.score(queries, items)
    if isinstance(signal, hr.AtHalfLife):
        signal._source.add_items(None, 4)
    signal.add_items(None, 4)
    wider = replace(queries, n_items=I + 4)
    np.testing.assert_array_equal(signal.score(wider, items), before)
    cold, added = np.full((B, 1), I - 1, np.int32), np.full((B, 1), I + 3, np.int32)
    np.testing.assert_array_equal(signal.score(wider, added), signal.score(wider, cold))
    with pytest.raises(hr.InputError, match=r"queries\.n_items is 30"):
        signal.score(queries, items)


def test_before_fit_and_about_another_catalogue_it_says_so(new, signal, tmp_path):
    if not isinstance(signal, hr.AtHalfLife):
        with pytest.raises(hr.NotFittedError, match="call fit"):
            new().score(make_queries(), make_items())
        with pytest.raises(hr.NotFittedError):
            new().save_files(tmp_path / "a")
    with pytest.raises(hr.InputError, match=r"queries\.n_items is 31"):
        signal.score(make_queries(n_items=31), make_items())
    with pytest.raises(hr.InputError, match="items has shape"):
        signal.score(make_queries(), make_items(rows=4))


def test_settings_are_frozen_and_round_trip(signal):
    config = signal.config
    assert config_from_json(type(config), config_to_json(config)) == config
    with pytest.raises(AttributeError):
        config.name = "other"
    with pytest.raises(hr.InputTypeError, match="name is"):
        replace(config, name="")
