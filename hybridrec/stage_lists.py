"""What each stage of a pipeline would have answered: what an evaluation compares."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hybridrec.candidates import Candidates
from hybridrec.evaluation.protocol import StageList

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hybridrec.candidates import Queries
    from hybridrec.evaluation.report import Kind
    from hybridrec.pipeline import Pipeline


def stage_lists(pipeline: Pipeline, queries: Queries, k: int) -> Iterator[StageList]:
    """What each stage, alone and joined to those before it, would have answered.

    Every stage behind recall orders the ``depth`` candidates that ``pipeline.rank`` serves, as it
    does; where ``k`` is larger, what a deeper recall adds stands behind them. Seconds are those a
    user of that stage alone would wait: everything before it included, nothing deeper.
    """
    wide = max(pipeline.depth, k)
    for recaller in pipeline.blend.recallers:
        lists, seconds = _timed(partial(recaller.recall, queries, wide))
        yield StageList(recaller.name, lists, seconds, "single")
    served, recalled = _timed(partial(pipeline.recalled, queries, pipeline.depth))
    rest = None
    if wide > pipeline.depth:
        rest = _without(pipeline.recalled(queries, wide), served)
    joined = _Joined(pipeline, queries, rest, wide)
    yield joined.stage("blend (recall stage)", served, recalled, "recall")

    ordered, fusing = _timed(partial(pipeline.fused, served))
    fusing += recalled
    if pipeline.reranker is None:
        if pipeline.fusion is not None:
            yield joined.stage("fused", ordered, fusing, "fused")
        yield from joined.newcomers(ordered, fusing)
        return
    head, reranking = _timed(partial(pipeline.reranked_head, queries, ordered))
    reranking += fusing
    # Behind the head stands what was there before, without its help in the head.
    alone = pipeline.reranked_alone(head).followed_by(ordered.tail(head.depth))
    yield joined.stage("llm alone", alone, reranking, "llm")
    if pipeline.fusion is None:
        yield from joined.newcomers(alone, reranking)
        return
    yield joined.stage("fused, no LLM", ordered, fusing, "fused")
    fused, seconds = _timed(partial(pipeline.fused_with_reranker, head, ordered))
    yield joined.stage("fused, with LLM", fused, reranking + seconds, "fused")
    yield from joined.newcomers(fused, reranking + seconds)


@dataclass(frozen=True, eq=False)
class _Joined:
    """A stage's list with what stands around it in an answer.

    Attributes:
        pipeline: whose stages.
        queries: B of them.
        rest: what a recall of ``wide`` adds to what is served; None where that is all.
        wide: places of a list.
    """

    pipeline: Pipeline
    queries: Queries
    rest: Candidates | None
    wide: int

    def stage(self, name: str, ordered: Candidates, seconds: float, kind: Kind) -> StageList:
        if self.rest is not None:
            ordered = ordered.followed_by(self.rest).head(self.wide)
        if kind != "recall":
            ordered = self.pipeline.popular_where_untold(self.queries, ordered)
        return StageList(name, ordered, seconds, kind)

    def newcomers(self, ranked: Candidates, seconds: float) -> Iterator[StageList]:
        """What is served where newcomers have places of their own; nothing is cut off for them."""
        newcomers = self.pipeline.newcomers
        if newcomers is not None:
            most = newcomers.most(self.pipeline.depth)
            found, more = _timed(partial(newcomers.rank, self.queries, most))
            served, _ = newcomers.beside(ranked, found, ranked.depth + found.depth)
            yield self.stage("with newcomers", served, seconds + more, "fused")


def _without(candidates: Candidates, others: Candidates) -> Candidates:
    """``candidates`` less, row by row, those that stand in ``others``."""
    size = 1 + max(candidates.items.max(initial=0), others.items.max(initial=0))
    rows = np.arange(len(candidates), dtype=np.int64)[:, None] * size
    there = np.isin(rows + candidates.items, (rows + others.items)[others.valid])
    items = np.where(there, -1, candidates.items).astype(np.int32)
    return Candidates.ranked(items, candidates.scores, candidates.signals)


def _timed(call: Callable[[], Candidates]) -> tuple[Candidates, float]:
    """What ``call`` returns and the seconds it took."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start
