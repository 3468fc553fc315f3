"""A real recommender on every split: it can be fitted and asked, and knows nothing withheld."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import hybridrec as hr


def fitted(split: Any) -> hr.HybridRecommender:
    recallers = [hr.Popularity(), hr.ALS(factors=4, epochs=2), hr.ItemTransitions()]
    return hr.HybridRecommender(recallers, None, hr.LinearFusion(), depth=10).fit(split.train)


def test_replay_reports_warm_and_cold_users_apart(dataset: hr.Dataset) -> None:
    # Users come one after the other in these data: at this moment half of them have begun.
    split = hr.split.replay(dataset, 30_008)
    report = hr.evaluate(fitted(split), split, depth=10, slices=True)
    parts = {part.label: part for part in report.slices if part.group == "user"}
    assert parts["warm"].n == 8
    assert parts["cold (not in the training data)"].n == 29 * 15
    assert report.data["queries"] == 8 + 29 * 15
    assert report.data["users"] == 30
    assert report.data["train_users"] == 31


def test_withheld_items_are_unknown_to_what_learns_from_events(dataset: hr.Dataset) -> None:
    split = hr.split.cold_items(dataset, seed=1)
    cold = np.unique(split.targets.items)
    engine = fitted(split)
    popularity, als, transitions = engine.recallers
    asked = np.tile(cold.astype(np.int32), (len(split.queries), 1))
    for recaller in (popularity, als, transitions):
        assert not recaller.score(split.queries, asked).any(), recaller.name
    alone = hr.evaluate(engine, hr.split.cold_items(dataset, seed=1, only_cold=True), depth=10)
    for items in alone.lists.values():
        assert set(np.unique(items)) <= {-1, *cold.tolist()}
    report = hr.evaluate(engine, split, depth=10, slices=True)
    assert report.data["unreachable"] == 0
    assert len(split.queries) == len(alone.users) > report.data["users"]


def test_withheld_users_are_asked_by_their_history_alone(dataset: hr.Dataset) -> None:
    split = hr.split.cold_users(dataset, 0.2)
    report = hr.evaluate(fitted(split), split, k=5, depth=10)
    assert report.data["users"] == report.data["queries"] == 12
    assert report.data["train_users"] == 48
    # What follows what is learnt from others: the order of these data helps newcomers as well.
    assert report.stages[2].ndcg > 2 * report.stages[0].ndcg


@pytest.mark.parametrize("make", [hr.split.leave_last, hr.split.random])
def test_other_splits_go_on_as_they_were(dataset: hr.Dataset, make: Any) -> None:
    split = make(dataset)
    report = hr.evaluate(fitted(split), split, depth=10, slices=True)
    assert report.data["users"] == report.data["queries"] == 60
    assert {part.group for part in report.slices} <= {"history", "target"}
