"""A search from the outside: what it measures, what it keeps, how it goes on, what it refuses."""

import copy
import json
import logging
import sys
from typing import ClassVar

import numpy as np
import optuna
import pyarrow as pa
import pytest

import hybridrec as hr
from hybridrec.data.learning import LearningPlan
from hybridrec.tuning.folder import TRIALS
from hybridrec.tuning.trials import TrialsFile

OFFERED = (hr.EASE(),)


def engine_of(**changes):
    recallers = [hr.Popularity(), hr.ALS(8, epochs=3), hr.ItemTransitions()]
    return hr.HybridRecommender(
        **{"recallers": recallers, "fusion": hr.LinearFusion(), "depth": 20, **changes}
    )


def tune(dataset, folder, engine=None, **changes):
    settings = {"trials": 3, "offered": OFFERED, **changes}
    return hr.tune(dataset, engine or engine_of(), folder=folder, **settings)


def trials_in(folder):
    """Every trial that ended, by its part; what it took left out."""
    file = TrialsFile(folder / TRIALS, 0)
    found = {
        name: [(trial.params, trial.value, trial.note) for trial in file.part(name).ended()]
        for name in file.names()
    }
    file.close()
    return found


@pytest.fixture(scope="module")
def searched(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned") / "search"
    return tune(dataset, folder), folder


def test_what_was_given_is_measured_as_a_fit_measures_it(searched, dataset):
    found, _ = searched
    kinds = [hr.LinearFusion(), hr.ReciprocalRankFusion()]
    fitted = engine_of(fusion=kinds).fit(dataset)
    assert found.given == fitted.report.fusion["without"]["LinearFusion"]
    assert found.events == len(LearningPlan.of(dataset, 0).validation) == 60


def test_told_nothing_it_starts_from_what_a_recommender_takes_that_is_told_nothing(
    dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr("hybridrec.fusing.find_spec", lambda name: None)  # no trees: quick
    found = hr.tune(dataset, folder=tmp_path, trials=1)
    fitted = hr.HybridRecommender().fit(dataset)
    assert found.given == max(fitted.report.fusion["without"].values())
    kinds = ["ReciprocalRankFusion", "ConvexFusion", "LinearFusion"]
    assert [part.name for part in found.parts[-3:]] == [f"fusion {kind}" for kind in kinds]


def test_what_was_found_is_what_a_fit_of_it_measures(searched, dataset):
    found, _ = searched
    engine = found.recommender()
    kinds = [*engine.fusions, hr.ReciprocalRankFusion()]
    again = hr.HybridRecommender(engine.recallers, None, kinds, depth=20).fit(dataset)
    assert found.best == again.report.fusion["without"]["LinearFusion"]
    assert found.best >= found.given


def test_every_part_begins_with_what_was_given(searched):
    found, folder = searched
    names = ["recaller als", "recaller item transitions", "recaller ease", "recallers"]
    assert [part.name for part in found.parts] == [*names, "fusion LinearFusion"]
    firsts = {name.rpartition(" ")[0]: each[0] for name, each in trials_in(folder).items()}
    als = {"factors": 8, "regularization": 0.01}
    assert firsts["recaller als"][0] == als
    assert firsts["recallers"][0] == {
        "popularity": "given",
        "als": "given",
        "item transitions": "given",
        "ease": "out",
    }
    assert firsts["recallers"][1] == firsts["given"][1] == found.given
    for part in found.parts:
        assert part.best >= part.given
        assert 1 <= part.trials <= 3


def test_best_json_makes_the_recommender_that_was_found(searched, dataset):
    found, folder = searched
    told = json.loads((folder / "best.json").read_text())
    assert told["ndcg@10"] == found.best
    engine = hr.from_settings(folder / "best.json")
    assert hr.settings_of(engine) == told["recommender"] == found.settings
    lists = [made.fit(dataset).recommend(["u1"]) for made in (engine, found.recommender())]
    assert lists[0].equals(lists[1])


def test_the_table_says_what_was_tried(searched):
    text = str(searched[0])
    assert "recaller item transitions" in text
    assert "on 60 validation events" in text


def test_the_same_seed_tries_the_same_and_another_does_not(searched, dataset, tmp_path):
    _, folder = searched
    tune(dataset, tmp_path / "again")
    assert trials_in(tmp_path / "again") == trials_in(folder)
    tune(dataset, tmp_path / "other", seed=1)
    assert trials_in(tmp_path / "other") != trials_in(folder)


class Counted(hr.ItemTransitions):
    """Says what it was fitted to, and may be interrupted."""

    fits: ClassVar[list] = []
    interrupted_at: ClassVar[int | None] = None

    def fit(self, data):
        Counted.fits.append(data.histories)
        if len(Counted.fits) == Counted.interrupted_at:
            raise KeyboardInterrupt
        return super().fit(data)

    def refit(self, data):
        raise AssertionError("a search fits nothing to everything")


SPACE = {"item transitions": {"window": hr.Range(low=2, high=9), "smoothing": [1.0, 20.0, 90.0]}}


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setattr(Counted, "fits", [])
    monkeypatch.setattr(Counted, "interrupted_at", None)
    return engine_of(recallers=[Counted(), hr.Popularity()])


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """A search of five trials a part that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    engine = engine_of(recallers=[Counted(), hr.Popularity()])
    return tune(dataset, folder, engine, trials=5, space=SPACE), folder


@pytest.mark.parametrize("at", [1, 3, 6])
def test_an_interrupted_search_goes_on_as_if_it_had_not_been(
    at, whole, counted, dataset, tmp_path, caplog
):
    Counted.interrupted_at = at
    with pytest.raises(KeyboardInterrupt):
        tune(dataset, tmp_path, counted, trials=5, space=SPACE)
    assert len(Counted.fits) == at
    assert f"interrupted: what was found so far is in {tmp_path}" in caplog.text
    resumed = tune(dataset, tmp_path, counted, trials=5, space=SPACE)
    found, folder = whole
    assert trials_in(tmp_path) == trials_in(folder)
    assert str(resumed) == str(found)


def test_a_search_that_has_ended_computes_nothing_anew_and_more_trials_go_on(
    counted, dataset, tmp_path
):
    tune(dataset, tmp_path, counted, trials=3, space=SPACE)
    before = trials_in(tmp_path)
    Counted.fits.clear()
    tune(dataset, tmp_path, counted, trials=3, space=SPACE)
    assert trials_in(tmp_path) == before
    alone = next(name for name in before if name.startswith("recaller item transitions"))
    tune(dataset, tmp_path, counted, trials=6, space=SPACE)
    more = trials_in(tmp_path)[alone]
    assert more[:3] == before[alone]
    assert len(more) == 6


def test_nothing_is_fitted_to_a_validation_event(counted, dataset, tmp_path):
    tune(dataset, tmp_path, counted, space=SPACE)
    plan = LearningPlan.of(dataset, 0)
    base = dataset.histories.keep(plan.base)
    assert len(Counted.fits) > 3
    for seen in Counted.fits:
        np.testing.assert_array_equal(seen.indptr, base.indptr)
        np.testing.assert_array_equal(seen.items, base.items)


def test_a_killed_process_leaves_no_trial_behind(searched, dataset, tmp_path):
    """As SIGKILL would leave it: asked for, never told."""
    _, folder = searched
    url = f"sqlite:///{tmp_path / TRIALS}"
    tune(dataset, tmp_path, trials=1)
    name = next(name for name in trials_in(tmp_path) if name.startswith("recaller als"))
    storage = optuna.storages.RDBStorage(url)
    optuna.load_study(study_name=name, storage=storage).ask()
    storage.remove_session()
    storage.engine.dispose()
    tune(dataset, tmp_path)
    assert trials_in(tmp_path)[name] == trials_in(folder)[name]


def test_time_that_is_up_leaves_the_first_trial_of_every_part(dataset, tmp_path):
    found = tune(dataset, tmp_path, trials=None, minutes=1e-6)
    assert {part.trials for part in found.parts} == {1}
    assert found.best == found.given


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "holds a search with the seed 0, and this one's is 1: choose another"),
        ({"seed": 1, "engine": engine_of(seed=1)}, "with the seed 0, and this one's is 1"),
        ({"offered": ()}, "with another offered"),
        ({"space": SPACE}, "with another space"),
        ({"engine": engine_of(depth=10)}, "with another recommender"),
    ],
)
def test_a_search_with_other_arguments_is_refused(changes, message, searched, dataset):
    _, folder = searched
    before = trials_in(folder)
    with pytest.raises(hr.StorageError, match=message):
        tune(dataset, folder, **changes)
    assert trials_in(folder) == before


def test_a_search_on_other_data_is_refused(searched, dataset):
    _, folder = searched
    fewer = dataset.keep_events(np.arange(dataset.n_events) > 0)
    with pytest.raises(hr.StorageError, match=r"on other data: .*960 events.*959 events"):
        tune(fewer, folder)


def test_somebody_elses_folder_is_refused(dataset, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(hr.StorageError, match=r"thesis\.tex"):
        tune(dataset, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(hr.StorageError, match="is not a folder"):
        tune(dataset, tmp_path / "thesis.tex")


def test_two_searches_in_one_folder_are_one_too_many(dataset, tmp_path):
    class Nested(hr.ItemTransitions):
        def fit(self, data):
            with pytest.raises(hr.StorageError, match="another process"):
                tune(dataset, tmp_path)
            return super().fit(data)

    tune(dataset, tmp_path, engine_of(recallers=[Nested()]), trials=1, offered=())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": None}, "minutes= or trials="),
        ({"trials": 0}, "trials is 0"),
        ({"minutes": -1.0}, "minutes is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"space": {"als ": {}}}, "'als '"),
        ({"space": {"als": {"factor": [3]}}}, "'factor'"),
        ({"space": {"als": {"factors": [0]}}}, "factors is 0"),
        ({"space": {"als": {"factors": hr.Range(low=1, high=9000)}}}, "9000"),
        ({"space": {"als": {"half_life": [3.0]}}}, "every fit chooses"),
        ({"space": {"als": {"name": ["a"]}}}, "no setting to try"),
        ({"offered": [hr.ALS()]}, "'als'"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(changes, message, dataset, tmp_path):
    with pytest.raises(hr.InputError, match=message):
        tune(dataset, tmp_path / "new", **changes)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"als": {"factors": 3}}}, "wanted a hybridrec.Range or a list"),
        ({"space": {"als": {"factors": ["a"]}}}, "factors"),
        ({"space": {"als": {"factors": [(1, 2)]}}}, "wanted numbers, strings or None"),
        ({"offered": [hr.EASE]}, "wanted recallers and fusions"),
        ({"offered": ["ease"]}, "'ease'"),
        ({"engine": "als"}, "engine is str"),
    ],
)
def test_wrong_types_are_named(changes, message, dataset, tmp_path):
    with pytest.raises(hr.HybridrecError, match=message):
        tune(dataset, tmp_path / "new", **changes)


def test_a_split_is_no_data_set(dataset, tmp_path):
    with pytest.raises(hr.InputTypeError, match=r"pass split\.train"):
        tune(hr.split.leave_last(dataset), tmp_path)


def test_without_a_user_of_two_events_there_is_nothing_to_choose_by(tmp_path):
    table = pa.table({"u": np.arange(9), "i": np.arange(9) % 3, "t": np.arange(9)})
    data = hr.Dataset.from_frame(table, user="u", item="i", time="t")
    with pytest.raises(hr.FitError, match="no user has two events"):
        tune(data, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_without_times_what_needs_order_says_so_and_the_rest_is_searched(
    tmp_path, caplog, monkeypatch
):
    users = np.repeat(np.arange(30), 8)
    table = pa.table({"u": users, "i": (users + np.arange(240)) % 12})
    data = hr.Dataset.from_frame(table, user="u", item="i")
    with pytest.raises(hr.FitError, match="time column"):
        tune(data, tmp_path / "a")
    monkeypatch.setattr("hybridrec.fusing.find_spec", lambda name: None)  # no trees: quick
    found = hr.tune(data, folder=tmp_path / "b", trials=1, offered=())
    assert "the events have no time" in caplog.text
    assert {stage.name for stage in found.recommender().recallers} <= {"ease", "als", "popularity"}


def test_an_offer_that_cannot_be_fitted_is_left_out(dataset, tmp_path, caplog):
    class Broken(hr.EASE):
        def fit(self, data):
            raise hr.FitError("no room")

    space = {"ease": {"regularization": [1.0]}}
    found = tune(dataset, tmp_path / "a", offered=[Broken()], space=space)
    assert "recaller ease is left out of the search: no room" in caplog.text
    assert "ease" not in str(found.settings)
    engine = engine_of(recallers=[hr.Popularity(), Broken()])
    with pytest.raises(hr.FitError, match="no room"):
        tune(dataset, tmp_path / "b", engine, offered=())


def test_settings_that_cannot_be_fitted_are_a_failed_trial(dataset, tmp_path):
    class Picky(hr.EASE):
        def fit(self, data):
            if self.config.regularization != 300:
                raise hr.FitError("not these")
            return super().fit(data)

    engine = engine_of(recallers=[Picky()])
    found = tune(dataset, tmp_path, engine, offered=())
    assert (found.parts[0].trials, found.parts[0].failed) == (3, 2)
    assert found.recommender().recallers[0].config.regularization == 300


def test_the_recommender_that_was_given_stays_as_it_was(dataset, tmp_path):
    memory = hr.AtHalfLife("als", 2.0)
    engine = engine_of(signals=[memory, hr.HistoryLength()]).fit(dataset)
    told, lists = hr.settings_of(engine), engine.recommend(["u1"])
    tune(dataset, tmp_path, engine, trials=4)
    assert hr.settings_of(engine) == told
    assert engine.recommend(["u1"]).equals(lists)
    tune(dataset, tmp_path, copy.copy(engine), trials=4)


def test_without_a_fusion_the_order_of_the_blend_is_what_counts(dataset, tmp_path):
    engine = engine_of(fusion=None)
    found = tune(dataset, tmp_path, engine)
    assert not [part for part in found.parts if part.name.startswith("fusion")]
    assert found.recommender().fusions == []
    assert found.best >= found.given > 0


def test_short_histories_leave_fusions_out(tmp_path, caplog):
    users = np.repeat(np.arange(40), 3)
    table = pa.table({"u": users, "i": (users + np.arange(120)) % 12, "t": np.arange(120)})
    data = hr.Dataset.from_frame(table, user="u", item="i", time="t")
    found = tune(data, tmp_path, trials=1, offered=())
    assert "fusion LinearFusion is left out of the search: there is no list" in caplog.text
    assert found.recommender().fusions


def test_what_optuna_says_is_detail_in_our_log(dataset, tmp_path, capfd, caplog):
    with caplog.at_level(logging.DEBUG, "hybridrec"):
        tune(dataset, tmp_path, trials=1)
    assert "optuna: A new study created" in caplog.text
    assert [record.name for record in caplog.records if "optuna" in record.name] == []
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    assert logging.getLogger("optuna").handlers


def test_without_optuna_the_extra_is_named(dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(hr.MissingExtraError, match=r"hybridrec\[tune\]"):
        tune(dataset, tmp_path)


def test_a_reranker_is_searched_over_what_was_given_and_what_was_found(
    dataset, tiny_encoder, tmp_path
):
    reranker = hr.CrossEncoder(tiny_encoder, soft_tokens="als", finetuning={"epochs": 1})
    recallers = [hr.ALS(8, epochs=3), hr.Popularity()]
    limits = {"depth": 10, "rerank_depth": 5, "reranker_examples": 16, "fusion_examples": 16}
    engine = engine_of(recallers=recallers, reranker=reranker, **limits)
    space = {"llm": {"finetuning.learning_rate": hr.Range(low=1e-4, high=1e-3), "history": [3]}}
    space |= {"als": {"regularization": [0.02]}, "LinearFusion": {}}
    found = tune(dataset, tmp_path, engine, trials=9, offered=(), space=space)
    last = found.parts[-1]
    assert (last.name, last.trials) == ("reranker", 3)
    tried = next(each for name, each in trials_in(tmp_path).items() if name.startswith("reranker"))
    assert [params["lists"] for params, _, _ in tried[:2]] == ["given", "found"]
    assert tried[0][0]["history"] == tried[1][0]["history"] == 10
    assert tried[0][2]["choice"]["recallers"] == {"als": {}, "popularity": {}}
    assert found.given == tried[0][1]
    assert found.best == max(value for _, value, _ in tried)
    made = found.recommender()
    assert "als" in [recaller.name for recaller in made.recallers]  # what it reads stays
    assert made.reranker.config.finetuning.epochs == 1
    assert hr.from_settings(tmp_path / "best.json").reranker.config == made.reranker.config
