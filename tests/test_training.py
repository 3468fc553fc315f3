"""What each fit sees, and what a fit does where there is nothing to learn from."""

import logging

import numpy as np
import pyarrow as pa
import pytest

import hybridrec as hr
from hybridrec.candidates import Candidates
from hybridrec.data.learning import LearningPlan


class Spy:
    """A recaller that answers every item, and keeps what it was shown."""

    name = "spy"
    half_life = None
    half_lives = ()

    def __init__(self):
        self.fitted, self.refitted, self.asked = [], [], []

    def fit(self, data):
        self.fitted.append(data.histories)
        self.n_items = data.n_items
        return self

    def refit(self, data):
        self.refitted.append(data.histories)
        return self

    def score(self, queries, items):
        # Like no item's code: the list must not be flat, or the blend leaves it out.
        return np.where(items >= 0, np.sin(items.astype(np.float64)), -np.inf).astype(np.float32)

    def recall(self, queries, k):
        self.asked.append(queries)
        items = np.tile(np.arange(self.n_items, dtype=np.int32), (len(queries), 1))
        barred = np.zeros(items.shape, dtype=bool)
        barred[queries.exclude.row_of(), queries.exclude.items] = True
        items[barred] = -1
        return Candidates.ranked(items, self.score(queries, items)).head(k)


def data_of(lengths):
    """One item an event, so that an item says which event it was."""
    users = np.repeat(np.arange(len(lengths)), lengths)
    table = pa.table({"u": users, "i": np.arange(len(users)), "t": np.arange(len(users))})
    return hr.Dataset.from_frame(table, user="u", item="i", time="t")


def events(histories):
    return set(zip(histories.row_of().tolist(), histories.items.tolist(), strict=True))


def rows_of(histories):
    return [
        histories.items[start:end].tolist()
        for start, end in zip(histories.indptr[:-1], histories.indptr[1:], strict=True)
    ]


def test_fit_a_sees_no_event_that_anything_learns_from_and_fit_d_sees_all():
    data = data_of([*range(1, 31), *[12] * 20])
    spy = Spy()
    hr.HybridRecommender([spy], None, hr.LinearFusion(), depth=data.n_items).fit(data)
    unseen = LearningPlan.of(data, 0).unseen
    held = set(zip(unseen.users.tolist(), unseen.targets.tolist(), strict=True))
    learning = sum(min(8, n // 5) for n in data.histories.lengths)
    assert len(held) == learning + (data.histories.lengths > 1).sum()
    (base,), (everything,) = spy.fitted, spy.refitted
    assert not events(base) & held
    assert events(base) | held == events(everything) == events(data.histories)


def test_every_question_of_training_is_asked_with_what_came_before_the_row():
    data = data_of([*range(2, 31), *[12] * 20])
    spy = Spy()
    engine = hr.HybridRecommender([spy], None, hr.LinearFusion(), depth=data.n_items).fit(data)
    plan = LearningPlan.of(data, 0)
    everyone = rows_of(data.histories)
    expected = {
        (int(user), int(target)): everyone[user][: len(everyone[user]) - 1 - int(position)]
        for user, target, position in zip(
            plan.unseen.users, plan.unseen.targets, plan.unseen.positions, strict=True
        )
    }
    asked = set()
    for queries in spy.asked:
        kept = zip(
            queries.users.tolist(),
            rows_of(queries.histories),
            rows_of(queries.exclude),
            strict=True,
        )
        for user, history, exclude in kept:
            (target,) = set(everyone[user]) - set(exclude)
            assert history == expected[user, target]
            asked.add((user, target))
    # Choices are asked of every event fit A has not seen, the fusion's lists are among them.
    assert asked == set(expected)
    assert engine.report.asked["fusion"] == engine.report.rows["fusion"] == len(plan.learning)


@pytest.mark.parametrize(("lengths", "short"), [([4] * 30, 30), ([1, 4, 3], 3)])
def test_without_a_list_to_fuse_by_the_blends_order_stands(lengths, short, caplog):
    data = data_of(lengths)
    engine = hr.HybridRecommender([Spy()], None, hr.LinearFusion())
    with caplog.at_level(logging.WARNING, "hybridrec"):
        engine.fit(data)
    assert "keep the blend's order: of 0 learning events asked recall missed 0" in caplog.text
    assert f"{short} of {len(lengths)} users have fewer than 5 events" in caplog.text
    assert engine.pipeline.fusion is None
    queries = data.queries([0])
    ranked = engine.pipeline.rank(queries)
    np.testing.assert_array_equal(
        ranked.items, engine.pipeline.blend.candidates(queries, 100).items
    )


def test_repeat_consumption_leaves_something_to_learn_from():
    users = np.repeat(np.arange(40), 10)
    table = pa.table({"u": users, "i": np.arange(400) % 5, "t": np.arange(400)})
    data = hr.Dataset.from_frame(table, user="u", item="i", time="t")
    engine = hr.HybridRecommender([Spy()], None, hr.LinearFusion()).fit(data)
    assert engine.report.rows["fusion"] == engine.report.asked["fusion"] > 0
