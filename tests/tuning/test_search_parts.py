"""The parts of a search that need no model: time, sets of recallers, ranges of settings."""

import pytest

import hybridrec as hr
from hybridrec.tuning.clock import Clock, Limits, weights_of
from hybridrec.tuning.members import next_members, options_of
from hybridrec.tuning.space import SPACES, settings_in, space_of, varied
from hybridrec.tuning.trials import Trial


def searched_by(options, worth):
    ended = []
    while (members := next_members(options, ended)) is not None:
        assert members not in [trial.params for trial in ended]
        assert set(members.values()) != {"out"}
        ended.append(Trial(members, worth(members), 1.0))
    return [trial.params for trial in ended]


def test_sets_begin_with_what_was_given_then_tuned_then_everything():
    options = options_of({"a": {"x": 1}, "b": {}, "c": {"x": 1}}, ["c"], [])
    assert options == {"a": ("given", "tuned", "out"), "b": ("given", "out"), "c": ("out", "tuned")}
    tried = searched_by(options, lambda members: 0.5)
    assert tried[:4] == [
        {"a": "given", "b": "given", "c": "out"},
        {"a": "tuned", "b": "given", "c": "out"},
        {"a": "tuned", "b": "given", "c": "tuned"},
        {"a": "given", "b": "given", "c": "tuned"},
    ]


def test_the_best_set_is_found_one_recaller_at_a_time():
    options = options_of({name: {"x": 1} for name in "abcdef"}, ["e", "f"], [])
    best = dict(zip("abcdef", ["out", "tuned", "given", "out", "tuned", "out"], strict=True))

    def worth(members):
        return float(sum(members[name] == best[name] for name in best))

    tried = searched_by(options, worth)
    assert best in tried
    assert len(tried) < 40  # of 324 sets


def test_what_the_reranker_reads_stays_and_one_recaller_always_does():
    options = options_of({"a": {"x": 1}, "b": {}}, [], {"a"})
    assert options["a"] == ("given", "tuned")
    assert len(searched_by(options, lambda members: members["b"] == "out")) == 4
    assert searched_by(options_of({"a": {}}, [], []), lambda members: 0.5) == [{"a": "given"}]


def test_a_set_that_fails_is_no_better_than_any():
    options = options_of({"a": {}, "b": {}}, ["b"], [])
    tried = searched_by(options, lambda members: None if members["b"] == "out" else 0.1)
    assert {"a": "out", "b": "given"} in tried


def test_time_is_dealt_by_weight_and_what_is_left_over_goes_on():
    clock = Clock(10.0, {"a": 1.0, "b": 2.0, "c": 1.0})
    assert clock.share("a") == 150.0
    clock.ended("a", 30.0)
    assert clock.share("b") == 380.0
    clock.ended("b", 600.0)
    assert clock.share("c") == 0.0
    assert Clock(None, {"a": 1.0}).share("a") is None
    assert Clock(1.0, {"a": 0.0}).share("a") == 0.0


@pytest.mark.parametrize("reranker", [True, False])
def test_all_time_is_dealt_out(reranker):
    weights = weights_of(["r1", "r2"], ["f1"], reranker=reranker)
    assert sum(weights.values()) == pytest.approx(1.0)
    assert list(weights)[:3] == ["given", "r1", "r2"]
    assert weights["r1"] == weights["r2"]
    assert ("reranker" in weights) == reranker


def test_a_reranker_gets_a_quarter_of_the_trials():
    limits = Limits.checked(None, 10)
    assert [limits.trials_of(part) for part in ("recaller als", "recallers", "reranker")] == [
        10,
        10,
        3,
    ]
    assert Limits.checked(None, 1).trials_of("reranker") == 1
    assert Limits.checked(1.0, None).trials_of("fusion TreeFusion") == 60


STAGES = [
    hr.ALS(),
    hr.EASE(),
    hr.ItemKNN(),
    hr.ItemTransitions(),
    hr.LinearTransitions(),
    hr.SequenceRecall(),
    hr.LinearFusion(),
    hr.ReciprocalRankFusion(),
    hr.TreeFusion(),
    hr.CrossEncoder("some/model"),
]


def test_every_kind_with_a_space_is_held_to_it():
    assert {type(stage).__name__ for stage in STAGES} == set(SPACES)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: type(stage).__name__)
def test_the_defaults_lie_in_their_space_and_both_ends_are_settings(stage):
    space = space_of("stage", stage, None)
    for setting, value in settings_in(stage, space).items():
        values = space[setting]
        assert values == SPACES[type(stage).__name__][setting]  # as it is wide enough
        ends = (values.low, values.high) if isinstance(values, hr.Range) else values
        assert isinstance(values, hr.Range) or value in ends
        for end in ends:
            changed = varied(stage, {setting: end})
            assert settings_in(changed, [setting]) == {setting: end}
            assert type(changed) is type(stage)
    assert varied(stage, {}).config == stage.config


def test_a_space_is_widened_to_what_is_there():
    stage = hr.EASE(5.0)
    found = space_of("ease", stage, {"ease": {"regularization": hr.Range(low=10.0, high=20.0)}})
    assert found == {"regularization": hr.Range(low=5.0, high=20.0)}
    found = space_of("ease", stage, {"ease": {"max_items": [10, 20]}})
    assert found == {"max_items": (10, 20, None)}
    assert space_of("ease", stage, {"ease": {}}) == {}


def test_a_stage_with_other_settings_is_another_stage():
    reranker = hr.CrossEncoder("some/model")
    changed = varied(reranker, {"finetuning.epochs": 5, "history": 7})
    assert (changed.config.finetuning.epochs, changed.config.history) == (5, 7)
    assert (reranker.config.finetuning.epochs, reranker.config.history) == (2, 10)
    assert (
        hr.ALS(device="cpu", threads=1)._threads
        == varied(hr.ALS(threads=1), {"factors": 3})._threads
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"low": 2.0, "high": 1.0}, "low is 2.0 and high 1.0"),
        ({"low": 0, "high": 5, "log": True}, "from above 0"),
        ({"low": float("nan"), "high": 1.0}, "low is nan"),
        ({"low": "a", "high": 1.0}, "low is 'a'"),
        ({"low": True, "high": 1}, "low is True"),
    ],
)
def test_a_range_refuses_nonsense(settings, message):
    with pytest.raises(hr.HybridrecError, match=message):
        hr.Range(**settings)
