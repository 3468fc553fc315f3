"""Slices against a reading query by query, and what evaluate() makes of them."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridrec.candidates import Candidates, Queries
from hybridrec.data.split import Split
from hybridrec.evaluation import protocol
from hybridrec.evaluation.compare import paired_ci
from hybridrec.evaluation.protocol import StageList, evaluate
from hybridrec.evaluation.slices import sliced
from hybridrec.ragged import Ragged

KINDS: dict[str, Any] = {"one": "single", "two": "single", "plain": "fused", "full": "fused"}
ITEMS = 12
POPULARITY = [0, 0, 3, 5, 6, 6, 7, 8, 9, 30, 40, 50]  # 50 + 40 + 30 + 9 < 0.8 * 164 <= ... + 8
KIND_OF = ["cold", "cold", "rare", "rare", "tail", "tail", "tail", *["head"] * 5]


def ndcg(ranked: list[int], targets: set[int], k: int) -> float:
    gain = sum(1 / math.log2(n + 2) for n, item in enumerate(ranked[:k]) if item in targets)
    return gain / sum(1 / math.log2(n + 2) for n in range(min(k, len(targets))))


def split_of(users: list[tuple[int, set[int], int]]) -> Split:
    """Users of a history's length, their targets, and 1 where they are in the training data."""
    events = [item for item, count in enumerate(POPULARITY) for _ in range(count)]
    histories = Ragged.from_rows([[0] * length for length, _, _ in users])
    rows: list[list[int]] = [[0] if warm else [] for _, _, warm in users]
    train: Any = SimpleNamespace(histories=Ragged.from_rows([*rows, events]))
    return Split(
        train=train,
        queries=Queries(histories, ITEMS, users=np.arange(len(users), dtype=np.int32)),
        targets=Ragged.from_rows([sorted(targets) for _, targets, _ in users]),
        item_events=np.array(POPULARITY),
    )


def part_of(length: int) -> str:
    return next(
        label
        for most, label in (
            (5, "up to 5 events"),
            (20, "6 to 20 events"),
            (100, "21 to 100 events"),
            (math.inf, "over 100 events"),
        )
        if length <= most
    )


user = st.tuples(
    st.sampled_from([0, 1, 5, 6, 20, 21, 100, 101]),
    st.sets(st.integers(0, ITEMS - 1), min_size=1, max_size=4),
    st.integers(0, 1),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(user, min_size=1, max_size=6), st.integers(0, 99), st.integers(1, 5))
def test_agrees_with_a_reading_query_by_query(
    users: list[tuple[int, set[int], int]], seed: int, k: int
) -> None:
    rng = np.random.default_rng(seed)
    lists = {
        name: np.array([rng.permutation(ITEMS)[:k] for _ in users], dtype=np.int32)
        for name in KINDS
    }
    # group -> label -> the targets of each query that count
    want: dict[str, dict[str, list[set[int]]]] = {"history": {}, "target": {}, "user": {}}
    for n, (length, targets, warm) in enumerate(users):
        named = {"history": [part_of(length)] * len(targets), "target": [], "user": []}
        named["target"] = [KIND_OF[item] for item in sorted(targets)]
        named["user"] = ["warm" if warm else "cold"] * len(targets)
        for group, labels in named.items():
            for item, label in zip(sorted(targets), labels, strict=True):
                rows = want[group].setdefault(label, [set() for _ in users])
                rows[n].add(item)
    cold = want["target"].get("cold")
    if cold is not None:
        rest = [targets - gone for (_, targets, _), gone in zip(users, cold, strict=True)]
        if any(rest):
            want["target"]["warm"] = rest
    got: dict[str, dict[str, Any]] = {}
    for part in sliced(split_of(users), KINDS, lists, k):
        label = part.label if part.group == "history" else part.label.split(" ")[0]
        got.setdefault(part.group, {})[label] = part
    assert set(got) == {group for group, labels in want.items() if len(labels) > 1}
    for group, labels in got.items():
        assert set(labels) == set(want[group])
        for label, part in labels.items():
            rows = want[group][label]
            asked = [n for n, targets in enumerate(rows) if targets]
            assert part.n == len(asked)
            for name, items in lists.items():
                values = [ndcg(items[n].tolist(), rows[n], k) for n in asked]
                assert part.ndcg[name] == pytest.approx(np.mean(values))
            best = max(("one", "two"), key=lambda name: part.ndcg[name])
            assert part.deltas[0].against == "plain"
            assert part.ndcg[part.deltas[1].against] == part.ndcg[best]
            assert all(
                row.delta.mean == pytest.approx(part.ndcg["full"] - part.ndcg[row.against])
                for row in part.deltas
            )


def lists(rows: list[list[int]]) -> Candidates:
    items = np.array(rows, dtype=np.int32)
    return Candidates.ranked(
        items, np.tile(-np.arange(items.shape[1], dtype=np.float32), (len(items), 1))
    )


class Engine:
    """Puts the target at a place of its own in every stage: reads it off the length of history."""

    def stage_lists(self, queries: Queries, k: int) -> Any:
        for name, kind in KINDS.items():
            target = queries.histories.lengths % ITEMS
            place = 1 if name == "one" else 0
            rows = [[-1] * 2 for _ in target]
            for row, item in zip(rows, target.tolist(), strict=True):
                row[place], row[1 - place] = item, (item + 1) % ITEMS
            yield StageList(name, lists(rows), 0.001 * len(queries), kind)


def many(n: int) -> Split:
    lengths = [1 + place % 40 for place in range(n)]
    return split_of([(length, {length % ITEMS}, place % 3) for place, length in enumerate(lengths)])


def test_parts_of_the_queries_are_asked_apart_and_come_back_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = evaluate(Engine(), many(50), k=2, depth=2, slices=True)
    monkeypatch.setattr(protocol, "_BATCH", 7)
    parts = evaluate(Engine(), many(50), k=2, depth=2, slices=True)
    assert parts.to_json() == {
        **whole.to_json(),
        "stages": [
            {**row, "ms_per_user": pytest.approx(row["ms_per_user"])}
            for row in whole.to_json()["stages"]
        ],
    }
    for name, metrics in whole.metrics.items():
        assert np.array_equal(metrics.map, parts.metrics[name].map)
        assert np.array_equal(whole.lists[name], parts.lists[name])
    assert whole.stages[1].ndcg == whole.stages[1].oracle == 1.0
    assert whole.stages[0].oracle == 1.0 > whole.stages[0].ndcg


def test_slices_are_printed_and_written_and_corrected_as_one_table() -> None:
    report = evaluate(Engine(), many(50), k=2, depth=2, slices=True)
    written = report.to_json()["slices"]
    assert json.loads(json.dumps(written)) == written
    assert {row["group"] for row in written} == {"history", "target", "user"}
    assert sum(row["n"] for row in written if row["group"] == "history") == 50
    text = str(report)
    for row in written:
        assert f"{row['group']}: {row['label']}" in text
    table = [row for part in report.slices for row in part.deltas]
    assert all(row.p <= row.p_holm for row in table)
    assert min(row.p_holm for row in table) == pytest.approx(
        min(1.0, len(table) * min(row.p for row in table))
    )


def test_intervals_draw_users_and_not_queries() -> None:
    once = many(60)
    rows = np.repeat(np.arange(60), 4)
    often = Split(
        once.train, once.queries.select(rows), once.targets.select(rows), once.item_events
    )
    one, four = (evaluate(Engine(), split, k=2, depth=2) for split in (once, often))
    assert (four.data["users"], four.data["queries"]) == (60, 240)
    assert one.stages[0].ndcg_ci == pytest.approx(four.stages[0].ndcg_ci)
    stage, against = four.deltas[1].stage, four.deltas[1].against
    delta = paired_ci(four.per_user[stage], four.per_user[against], groups=four.users)
    assert delta == four.deltas[1].delta
    assert "1 queries: no target" in str(
        evaluate(
            Engine(),
            Split(
                once.train,
                Queries(
                    often.queries.histories.select(np.arange(2)),
                    ITEMS,
                    users=np.zeros(2, np.int32),
                    exclude=Ragged.from_rows([[1], []]),
                ),
                often.targets.select(np.arange(2)),
            ),
            k=2,
            depth=2,
        )
    )
