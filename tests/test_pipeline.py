"""What evaluation shows is what the pipeline serves, timed alone; neighbours are never invented."""

import time

import numpy as np
import pytest

import hybridrec as hr
from hybridrec.candidates import Candidates, Queries
from hybridrec.pipeline import BEFORE, Pipeline
from hybridrec.ragged import Ragged
from hybridrec.recall.blend import Blend
from hybridrec.stage_lists import stage_lists

ITEMS = 40


class Fixed:
    """A recaller with one score an item and history, the same for every call."""

    half_life = None
    half_lives = ()

    def __init__(self, name, seed):
        self.name = name
        self.table = np.random.default_rng(seed).normal(size=(ITEMS, ITEMS)).astype(np.float32) ** 3

    def scores(self, queries):
        histories = queries.histories
        rows = np.zeros((len(queries), ITEMS), dtype=np.float32)
        np.add.at(rows, histories.row_of(), self.table[histories.items])
        return rows

    def recall(self, queries, k):
        scores = self.scores(queries)
        items = np.tile(np.arange(ITEMS, dtype=np.int32), (len(queries), 1))
        return Candidates.ranked(items, scores).head(k)

    def score(self, queries, items):
        picked = np.take_along_axis(self.scores(queries), np.maximum(items, 0), axis=1)
        return np.where(items >= 0, picked, -np.inf).astype(np.float32)


class Judge(Fixed):
    """Stands in for the reranker: what it was asked is what it read."""

    def __init__(self, *args):
        super().__init__(*args)
        self.read = []

    def score(self, queries, items):
        self.read.append(items.shape[1])
        return super().score(queries, items)


def fusion(names, coefficients):
    made = hr.LinearFusion()
    made.signals, made.coefficients = tuple(names), np.array(coefficients, dtype=np.float64)
    return made


def pipeline(*, reranker=True, depth=12, rerank_depth=5):
    recallers = [Fixed("a", 1), Fixed("b", 2)]
    popularity = hr.Popularity().fit(popular_data())
    return Pipeline(
        Blend(recallers),
        popularity,
        depth,
        rerank_depth,
        reranker=Judge("llm", 3) if reranker else None,
        fusion=fusion("ab", [1.0, -0.5, 0.3, 0.8]),
        fusion_with_reranker=fusion([BEFORE, "b", "llm"], [1.0, -0.5, 2.0, 0.3, 0.8, 0.1])
        if reranker
        else None,
    )


def popular_data():
    import pyarrow as pa

    items = np.repeat(np.arange(ITEMS), np.arange(ITEMS) + 1)
    table = pa.table({"u": np.arange(len(items)), "i": items})
    return hr.Dataset.from_frame(table, user="u", item="i")


def queries(rows=20, *, empty=False):
    generator = np.random.default_rng(9)
    histories = [generator.integers(0, ITEMS, 3) for _ in range(rows)]
    if empty:
        histories[4] = histories[7] = []
    return Queries(Ragged.from_rows(histories), ITEMS)


def by_name(stages):
    return {stage.name: stage for stage in stages}


@pytest.mark.parametrize("reranker", [True, False])
@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize(("depth", "rerank_depth"), [(12, 5), (12, 12), (ITEMS, 5)])
def test_the_last_stage_begins_with_the_list_that_is_served(reranker, empty, depth, rerank_depth):
    line = pipeline(reranker=reranker, depth=depth, rerank_depth=rerank_depth)
    asked = queries(empty=empty)
    served = line.rank(asked)
    stages = by_name(stage_lists(line, asked, 30))
    shown = stages["fused, with LLM" if reranker else "fused"].candidates
    np.testing.assert_array_equal(shown.items[:, :depth], served.items)
    # And what stands behind it makes it as deep as was asked, each item once.
    assert shown.depth == max(30, depth)
    assert all(len(set(row)) == len(row) for row in shown.items.tolist())


def test_stages_behind_recall_only_reorder_its_list():
    line = pipeline()
    stages = by_name(stage_lists(line, queries(), 30))
    ceiling = np.sort(stages["blend (recall stage)"].candidates.items, axis=1)
    assert stages["a"].candidates.depth == ceiling.shape[1] == 30
    for name in ("llm alone", "fused, no LLM", "fused, with LLM"):
        np.testing.assert_array_equal(np.sort(stages[name].candidates.items, axis=1), ceiling)


def test_the_reranker_reads_the_top_of_the_order_before_it():
    line = pipeline()
    asked = queries()
    stages = by_name(stage_lists(line, asked, 12))
    plain, served = (stages[name].candidates for name in ("fused, no LLM", "fused, with LLM"))
    assert line.reranker.read == [5]
    recalled = line.blend.candidates(asked, 12)
    np.testing.assert_array_equal(plain.items, line.fusion.rank(recalled).items)
    assert (plain.items[:, :5] != recalled.items[:, :5]).any()
    np.testing.assert_array_equal(
        np.sort(served.items[:, :5], axis=1), np.sort(plain.items[:, :5], axis=1)
    )
    np.testing.assert_array_equal(served.items[:, 5:], plain.items[:, 5:])


def test_a_judge_without_a_say_leaves_the_order_before_it():
    line = pipeline()
    line.fusion_with_reranker = fusion([BEFORE, "llm"], [1.0, 0.0, 0.0, 0.0])
    stages = by_name(stage_lists(line, queries(), 12))
    np.testing.assert_array_equal(
        stages["fused, no LLM"].candidates.items, stages["fused, with LLM"].candidates.items
    )


def test_the_readers_time_between_stages_is_no_stages_time():
    seconds = []
    for stage in stage_lists(pipeline(), queries(), 30):
        seconds.append(stage.seconds)
        time.sleep(0.2)
    assert len(seconds) == 6
    assert max(seconds[:2]) < 0.2
    # The first call of the blend may compile; every later stage includes it.
    assert max(seconds[3:]) < seconds[2] + 0.2
    assert min(seconds[3:]) >= seconds[2]
