"""Nothing a learning row is trained on knew its target."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hybridrec as hr
from hybridrec.data.learning import LearningPlan


def data_of(lengths, seed=0):
    generator = np.random.default_rng(seed)
    users = np.repeat(np.arange(len(lengths)), lengths)
    table = pa.table(
        {
            "user": users,
            "item": generator.integers(0, 40, len(users)),
            "time": np.arange(len(users)),
            "hour": np.arange(len(users)) % 24,
        }
    )
    return hr.Dataset.from_frame(table, user="user", item="item", time="time", context=["hour"])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(0, 2**40))
def test_every_event_has_one_role_and_positions_follow_the_rule(lengths, seed):
    data = data_of(lengths)
    plan = LearningPlan.of(data, seed)
    roles = np.zeros(data.n_events, dtype=int)
    roles[plan.base] += 1
    for rows in (plan.validation, plan.reranker, plan.stopping, plan.fusion):
        roles[rows.events] += 1
        np.testing.assert_array_equal(data.histories.items[rows.events], rows.targets)
        assert (data.histories.indptr[rows.users] <= rows.events).all()
        np.testing.assert_array_equal(
            data.histories.indptr[rows.users + 1] - 1 - rows.events, rows.positions
        )
    assert (roles == 1).all()
    learning = np.concatenate([rows.users for rows in (plan.reranker, plan.stopping, plan.fusion)])
    for user, length in enumerate(lengths):
        assert (learning == user).sum() == min(8, length // 5)
    assert plan.users_without_rows == sum(length < 5 for length in lengths)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(5, 40), min_size=3, max_size=20), st.integers(0, 99))
def test_fit_a_and_the_history_of_a_row_hold_nothing_of_its_target(lengths, seed):
    data = data_of(lengths)
    plan = LearningPlan.of(data, seed)
    base = set(np.flatnonzero(plan.base).tolist())
    for rows in (plan.validation, plan.reranker, plan.stopping, plan.fusion):
        assert not base & set(rows.events.tolist())
        queries = rows.queries(data)
        for row in range(len(rows)):
            start = data.histories.indptr[rows.users[row]]
            older = data.histories.items[start : rows.events[row]]
            own = queries.histories.items[
                queries.histories.indptr[row] : queries.histories.indptr[row + 1]
            ]
            np.testing.assert_array_equal(own, older)
            assert queries.context["hour"][row] == rows.events[row] % 24


def test_a_row_excludes_every_other_event_of_its_user_and_not_its_own():
    table = pa.table({"user": [1] * 10, "item": list(range(10)), "time": list(range(10))})
    data = hr.Dataset.from_frame(table, user="user", item="item", time="time")
    plan = LearningPlan.of(data, 0)
    assert plan.validation.targets.tolist() == [9]
    learning = [*plan.reranker.targets, *plan.stopping.targets, *plan.fusion.targets]
    assert sorted(learning) == [7, 8]
    for rows in (plan.reranker, plan.stopping, plan.fusion):
        for row, queries in enumerate([rows.queries(data)] * len(rows)):
            target = int(rows.targets[row])
            excluded = queries.exclude.items[
                queries.exclude.indptr[row] : queries.exclude.indptr[row + 1]
            ]
            assert sorted(excluded.tolist()) == [item for item in range(10) if item != target]


def test_a_repeated_or_disliked_target_is_not_taken_from_its_own_list():
    table = pa.table(
        {
            "user": [1] * 13,
            "item": [4, 8, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8, 4],
            "time": list(range(13)),
            "stars": [5, 1, 1, *[5] * 10],
        }
    )
    data = hr.Dataset.from_frame(
        table, user="user", item="item", time="time", rating="stars", positive=3
    )
    plan = LearningPlan.of(data, 0)
    names = data.items.ids
    seen = set()
    for rows in (plan.validation, plan.reranker, plan.stopping, plan.fusion):
        assert rows.fit == "A"
        exclude = rows.queries(data).exclude
        for row, target in enumerate(names[rows.targets].tolist()):
            excluded = names[exclude.select(np.array([row])).items].tolist()
            assert set(excluded) == set(range(9)) - {target}
            seen.add(target)
    assert seen == {4, 8, 7}  # had before, disliked before, neither


def test_users_are_dealt_by_a_seeded_hash_and_never_to_both_sides():
    data = data_of([20] * 2000)
    plan = LearningPlan.of(data, 7)
    in_r = set(plan.reranker.users.tolist()) | set(plan.stopping.users.tolist())
    in_f = set(plan.fusion.users.tolist())
    assert not in_r & in_f
    assert not set(plan.reranker.users.tolist()) & set(plan.stopping.users.tolist())
    assert len(in_r) / 2000 == pytest.approx(0.75, abs=0.03)
    assert len(set(plan.stopping.users.tolist())) / len(in_r) == pytest.approx(0.1, abs=0.02)
    again = LearningPlan.of(data, 7)
    np.testing.assert_array_equal(plan.fusion.events, again.fusion.events)
    other = LearningPlan.of(data, 8)
    assert set(other.fusion.users.tolist()) != in_f
