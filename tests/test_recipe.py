"""An unfitted recommender as settings and back."""

import json
from dataclasses import replace

import pytest

import hybridrec as hr
from hybridrec.recipe import default_recommender, further_stages


def everything():
    return hr.HybridRecommender(
        [
            hr.ALS(32, half_life=3.0, seed=4),
            hr.EASE(max_items=100),
            hr.ItemKNN(),
            hr.ItemTransitions(),
            hr.LinearTransitions(),
            hr.SequenceRecall(encoder="some/encoder"),
            hr.TextRecall("some/encoder"),
            hr.Popularity(),
        ],
        hr.CrossEncoder("some/model", soft_tokens="als", finetuning={"report_to": ["wandb"]}),
        [
            hr.ConvexFusion(),
            hr.ReciprocalRankFusion(signals=["als", "ease"]),
            hr.LinearFusion(regularization=0.5),
            hr.TreeFusion(trees=7),
        ],
        signals=[
            hr.AtHalfLife("als", 3),
            hr.HistoryLength(),
            hr.HistoryStage(),
            hr.ItemAge(),
            hr.NewestGap(),
            hr.RecentPopularity(),
        ],
        newcomers=hr.Newcomers(first=5, reads=["als"]),
        depth=50,
        rerank_depth=20,
        seed=3,
    )


def test_a_recommender_of_every_kind_goes_through_json():
    engine = everything()
    told = hr.settings_of(engine)
    again = hr.from_settings(json.loads(json.dumps(told)))
    assert hr.settings_of(again) == told
    assert again.settings == engine.settings
    stages = ("recallers", "signals", "fusions")
    for mine, other in zip(
        [stage for part in stages for stage in getattr(engine, part)] + [engine.reranker],
        [stage for part in stages for stage in getattr(again, part)] + [again.reranker],
        strict=True,
    ):
        assert type(mine) is type(other)
        assert mine.config == other.config
    assert again.newcomers.config == engine.newcomers.config


def test_what_was_learned_is_not_told(dataset):
    engine = hr.HybridRecommender([hr.ALS(8, epochs=2), hr.Popularity()], None, hr.LinearFusion())
    told = hr.settings_of(engine)
    assert hr.settings_of(engine.fit(dataset)) == told


def test_the_default_is_what_a_recommender_takes_that_is_told_nothing(dataset, monkeypatch):
    monkeypatch.setattr("hybridrec.fusing.find_spec", lambda name: None)  # no trees: quick
    engine = default_recommender(dataset, seed=4)
    fitted = hr.HybridRecommender(seed=4).fit(dataset)
    assert hr.settings_of(engine) == hr.settings_of(fitted)
    assert [type(stage) for stage in further_stages(engine)] == [hr.ItemKNN]
    assert further_stages(hr.HybridRecommender([hr.ItemKNN()])) == []


def test_the_default_reads_texts_where_there_is_an_encoder(dataset):
    engine = default_recommender(dataset, encoder="e", reranker=True, factors=8, depth=9, seed=2)
    als = next(stage for stage in engine.recallers if stage.name == "als")
    assert (als.config.factors, als.config.seed, engine.settings.depth) == (8, 2, 9)
    assert engine.recallers[-1].config.encoder == engine.reranker.config.model == "e"
    assert engine.newcomers.config.reads == ("item transitions", "als")
    assert engine.reranker.config.seed == 2
    plain = default_recommender(replace(dataset, ordered=False), encoder="e")
    assert plain.newcomers.config.reads == ("als",)
    assert plain.reranker is None


def refused(told, message, **changes):
    with pytest.raises(hr.HybridrecError, match=message):
        hr.from_settings({**told, **changes})


def test_settings_that_make_no_recommender_are_named():
    told = hr.settings_of(hr.HybridRecommender([hr.ALS()], None, hr.LinearFusion()))
    refused(told, "format 2", format=2)
    refused(told, "'KNN', which hybridrec does not know", recallers=[{"kind": "KNN"}])
    refused(told, "ALS: factors is 0", recallers=[{"kind": "ALS", "settings": {"factors": 0}}])
    refused(told, "'width'", recallers=[{"kind": "ALS", "settings": {"width": 3}}])
    refused(told, "settings is not what settings_of wrote", settings=None)
    del told["recallers"]
    refused(told, "'recallers'")


def test_a_file_that_is_none_is_named(tmp_path):
    path = tmp_path / "best.json"
    with pytest.raises(hr.StorageError, match=r"cannot read the settings in .*best\.json"):
        hr.from_settings(path)
    for text in ("{", "[]", "{}", '{"recommender": 3}'):
        path.write_text(text)
        with pytest.raises(hr.StorageError, match=r"best\.json"):
            hr.from_settings(path)


class Mine(hr.ItemTransitions):
    """A kind of the caller's."""


def test_kinds_of_your_own_are_read_where_they_are_passed():
    told = hr.settings_of(hr.HybridRecommender([Mine(window=3)]))
    with pytest.raises(hr.InputError, match="'Mine'"):
        hr.from_settings(told)
    engine = hr.from_settings(told, kinds={"Mine": Mine})
    assert type(engine.recallers[0]) is Mine
    assert engine.recallers[0].config.window == 3


class Around(hr.ItemTransitions):
    """Made around something that is no setting."""

    def __init__(self, model):
        super().__init__()
        self.model = model


def test_what_settings_cannot_tell_is_named():
    like = hr.ALS.like_implicit(alpha=3.0, regularization=0.1, factors=8)
    with pytest.raises(hr.InputError, match=r"ALS has the target 1\.5"):
        hr.settings_of(hr.HybridRecommender([like]))
    with pytest.raises(hr.InputError, match="Around is made with a 'model' that its settings"):
        hr.settings_of(hr.HybridRecommender([Around(3)]))
