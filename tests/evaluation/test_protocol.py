"""evaluate() over an engine of known lists, and the table it prints."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hybridrec.candidates import Candidates, Queries
from hybridrec.checks import InputError, InputTypeError
from hybridrec.data.split import Split
from hybridrec.evaluation.protocol import StageList, evaluate
from hybridrec.ragged import Ragged

SECOND = 1 / math.log2(3)  # the gain of rank 2


def lists(*rows: list[int]) -> Candidates:
    wide = max(len(row) for row in rows)
    items = np.array([row + [-1] * (wide - len(row)) for row in rows], dtype=np.int32)
    return Candidates.ranked(items, np.tile(-np.arange(wide, dtype=np.float32), (len(rows), 1)))


class Engine:
    def __init__(self, *stages: StageList) -> None:
        self.stages = stages
        self.asked: list[int] = []

    def stage_lists(self, queries: Queries, k: int) -> Iterator[StageList]:
        self.asked.append(k)
        yield from self.stages


def split(**queries: Any) -> Split:
    """Two users of five items; the targets are 4 for the first, 3 and 0 for the second."""
    histories = Ragged.from_rows([[0, 1], [2]])
    train: Any = SimpleNamespace(histories=histories)
    return Split(
        train=train,
        queries=Queries(histories, 5, **queries),
        targets=Ragged.from_rows([[4], [3, 0]]),
    )


POPULARITY = StageList("popularity", lists([2, 3, 4], [3, 4, 1]), 0.002, "single")
ALS = StageList("als", lists([2, 4, 3], [4, 1, 0]), 0.004, "single")
BLEND = StageList("blend (recall stage)", lists([2, 3, 4], [3, 4, 1, 0]), 0.01, "recall")
ALONE = StageList("llm alone", lists([4, 2, 3], [1, 4, 0, 3]), 0.4, "llm")
PLAIN = StageList("fused, no LLM", lists([2, 4, 3], [3, 4, 0, 1]), 0.02, "fused")
FUSED = StageList("fused, with LLM", lists([4, 2, 3], [3, 0, 4, 1]), 0.42, "fused")

TABLE = """\
stage                     Recall@4     HR@2   NDCG@2  [95 % CI]         ms/user
popularity                  0.7500   0.5000   0.3066  [0.0000, 0.6131]     1.00
als                         0.7500   0.5000   0.3155  [0.0000, 0.6309]     2.00
blend (recall stage)        1.0000   0.5000   0.3066  [0.0000, 0.6131]     5.00  \
(ceiling of everything below)
llm alone                   1.0000   0.5000   0.5000  [0.0000, 1.0000]   200.00  \
(the cross-encoder ordering what it is given)
fused, no LLM               1.0000   1.0000   0.6220  [0.6131, 0.6309]    10.00
fused, with LLM             1.0000   1.0000   1.0000  [1.0000, 1.0000]   210.00

Δ NDCG@2 of 'fused, with LLM', paired over users [95 % CI], p corrected by Holm
  against fused, no LLM  +0.3780  [+0.3691, +0.3869]  p = 1.000
  against als            +0.6845  [+0.3691, +1.0000]  p = 1.000

1 users: no target may be recommended, a miss for every stage"""


def test_every_stage_by_hand() -> None:
    engine = Engine(POPULARITY, ALS, BLEND, ALONE, PLAIN, FUSED)
    report = evaluate(engine, split(), k=2, depth=4)
    popularity, als, blend, _, plain, fused = report.stages
    both = 1 + SECOND
    assert engine.asked == [4]
    assert (popularity.hr, popularity.recall, popularity.mrr) == (0.5, 0.75, 0.5)
    assert popularity.ndcg == pytest.approx((0 + 1 / both) / 2)
    assert als.ndcg == pytest.approx((SECOND + 0) / 2)
    assert (blend.recall, fused.ndcg, fused.ms_per_user) == (1.0, 1.0, 210.0)
    np.testing.assert_allclose(report.per_user["fused, no LLM"], [SECOND, 1 / both])
    assert [row.against for row in report.deltas] == ["fused, no LLM", "als"]
    assert report.deltas[0].delta.mean == pytest.approx(fused.ndcg - plain.ndcg)


def test_table() -> None:
    exclude = Ragged.from_rows([[4], [0]])
    engine = Engine(POPULARITY, ALS, BLEND, ALONE, PLAIN, FUSED)
    assert str(evaluate(engine, split(exclude=exclude), k=2, depth=4)) == TABLE


def test_k_beyond_the_usual_depth_makes_the_lists_as_deep() -> None:
    engine = Engine(ALS)
    assert (evaluate(engine, split(), k=200).depth, evaluate(engine, split()).depth) == (200, 100)
    assert engine.asked == [200, 100]


def test_columns_stand_under_their_heads_when_k_is_wide() -> None:
    lines = str(evaluate(Engine(POPULARITY), split(), k=1000, depth=100_000)).splitlines()
    for head in ("Recall@100000", "HR@1000", "NDCG@1000"):
        end = lines[0].index(head) + len(head)
        assert float(lines[1][end - 7 : end]) >= 0.3
        assert lines[1][end] == " "


def test_json() -> None:
    report = evaluate(Engine(ALS, PLAIN, FUSED), split(), k=2, depth=4).to_json()
    assert json.loads(json.dumps(report)) == report
    assert report["data"]["users"] == 2
    assert report["data"]["items"] == 5
    assert report["data"]["unreachable"] == 0
    assert report["data"]["queries"] == 2
    assert list(report["stages"][0]) == [
        "name",
        "kind",
        "recall@4",
        "hr@2",
        "ndcg@2",
        "ndcg@2_ci",
        "mrr@2",
        "map@2",
        "coverage@2",
        "novelty@2",
        "gini@2",
        "long_tail@2",
        "oracle_ndcg@2",
        "recall_by_depth",
        "ms_per_user",
    ]
    assert report["stages"][0]["recall_by_depth"] == {"1": 0.0, "2": 0.5, "4": 0.75}
    assert [row["against"] for row in report["deltas"]] == ["fused, no LLM", "als"]
    assert len(report["deltas"][0]["ndcg@2_ci"]) == 2
    assert report["deltas"][0]["p"] <= report["deltas"][0]["p_holm"] <= 1
    assert report["slices"] == []


@pytest.mark.parametrize(
    ("stages", "against"),
    [((ALS,), []), ((ALS, BLEND), []), ((ALS, BLEND, PLAIN), ["als"]), ((PLAIN,), [])],
)
def test_engines_with_fewer_stages(stages: tuple[StageList, ...], against: list[str]) -> None:
    report = evaluate(Engine(*stages), split(), k=2, depth=4)
    assert [stage.name for stage in report.stages] == [stage.name for stage in stages]
    assert [row.against for row in report.deltas] == against
    assert str(report)


@pytest.mark.parametrize(
    ("queries", "lost"),
    [
        ({"exclude": Ragged.from_rows([[4], [3]])}, 1),  # the second can still get 0
        ({"exclude": Ragged.from_rows([[3], [0, 3]])}, 1),
        ({"allow": np.array([True, True, True, True, False])}, 1),
        ({"exclude": Ragged.from_rows([[], [3]]), "allow": np.arange(5) == 3}, 2),
    ],
)
def test_unreachable_users_are_counted(queries: dict[str, Any], lost: int) -> None:
    assert evaluate(Engine(ALS), split(**queries), k=2, depth=4).data["unreachable"] == lost


def test_refusals() -> None:
    with pytest.raises(InputTypeError, match="no stage_lists"):
        evaluate(object(), split())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="depth is 5"):
        evaluate(Engine(ALS), split(), k=10, depth=5)
    with pytest.raises(InputError, match="gave no stage"):
        evaluate(Engine(), split())
    with pytest.raises(InputError, match="came twice"):
        evaluate(Engine(ALS, ALS), split())
    with pytest.raises(InputError, match="gave 1 lists"):
        evaluate(Engine(StageList("als", lists([0]), 0.0, "single")), split())
    with pytest.raises(InputError, match="kind is 'other'"):
        StageList("als", lists([0]), 0.0, "other")  # type: ignore[arg-type]
    empty = replace(split(), queries=Queries(Ragged.empty(0), 5), targets=Ragged.empty(0))
    with pytest.raises(InputError, match="no queries"):
        evaluate(Engine(ALS), empty)
    data: Any = SimpleNamespace(histories=Ragged.empty(0))
    with pytest.raises(InputTypeError, match=r"split is SimpleNamespace.*split\.leave_last"):
        evaluate(Engine(ALS), data)
    strange = replace(split(), targets=Ragged.from_rows([[4], [5]]))
    with pytest.raises(InputError, match=r"targets\.items\[1\] is 5"):
        evaluate(Engine(ALS), strange)
