"""The fitted two stages, in codes: recall, blend, rerank, fuse. Reads only: threads may share it.

Ids, frames and storage are :mod:`hybridrec.engine`'s; how the parts come to be fitted is
:mod:`hybridrec.training`'s.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from hybridrec.candidates import Candidates, Ragged
from hybridrec.checks import InputError
from hybridrec.evaluation.protocol import StageList
from hybridrec.recall.exact_index import top_k

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import Self

    from hybridrec.candidates import Items, Mask, Queries, Scores
    from hybridrec.fuse.linear import LinearFusion
    from hybridrec.recall.blend import Blend
    from hybridrec.recall.popularity import Popularity
    from hybridrec.rerank.finetune import TrainingLog


class Reranker(Protocol):
    """The second stage: a scorer that is fine-tuned on the lists of the first."""

    @property
    def name(self) -> str:
        """The column that its scores fill."""

    def untuned(self) -> Self:
        """A new one of the same settings, before any fine-tuning."""

    def prepare(self, texts: Sequence[str]) -> Self:
        """Take over the text of every item of the catalogue."""

    def finetune(
        self,
        queries: Queries,
        candidates: Candidates,
        targets: Items,
        *,
        held_out: tuple[Queries, Candidates, Items] | None = None,
    ) -> TrainingLog:
        """Learn to put each row's target above the rest of its list."""

    def score(self, queries: Queries, items: Items) -> Scores:
        """(B, K) float32, -inf where the code is -1."""

    def add_items(self, texts: Sequence[str] | None, n: int) -> None:
        """Make room for ``n`` new items behind the last code."""

    def save_files(self, folder: Path) -> None:
        """Write the fitted state as plain files."""


@runtime_checkable
class HasItemVectors(Protocol):
    """A recaller whose items are vectors."""

    @property
    def item_vectors(self) -> Scores:
        """(I, d) float32; zeros for an item that nothing is known of."""


@dataclass(eq=False)
class Pipeline:
    """Everything that turns queries into a ranked list.

    Attributes:
        blend: the fitted recallers and how their lists merge.
        popularity: the answer to an empty history.
        reranker: scores the first ``rerank_depth`` candidates; None leaves the stage out.
        fusion: orders candidates by the recallers' signals; None keeps the blend's order.
        fusion_with_reranker: the same with the reranker's signal, for what it has scored.
        depth: candidates that recall brings.
        rerank_depth: how many of them, from the top of the blend, the reranker reads.
    """

    blend: Blend
    popularity: Popularity
    reranker: Reranker | None
    fusion: LinearFusion | None
    fusion_with_reranker: LinearFusion | None
    depth: int
    rerank_depth: int

    def rank(self, queries: Queries, depth: int | None = None) -> Candidates:
        """The final order of ``depth`` candidates (default: its own depth).

        An empty history says nothing to rank by: it gets the popular items.
        """
        depth = self.depth if depth is None else depth
        told = queries.histories.lengths > 0
        if told.all():
            return self._rank(queries, depth)
        items = np.full((len(queries), depth), -1, dtype=np.int32)
        scores = np.full((len(queries), depth), -np.inf, dtype=np.float32)
        for rows, answer in ((told, self._rank), (~told, self.popularity.recall)):
            places = np.flatnonzero(rows)
            if places.size:
                ranked = answer(queries.select(places), depth)
                items[places, : ranked.depth] = ranked.items
                scores[places, : ranked.depth] = ranked.scores
        return Candidates(items, scores)

    def _rank(self, queries: Queries, depth: int) -> Candidates:
        candidates = self.blend.candidates(queries, depth)
        if self.reranker is None:
            return self.fused(candidates)
        return self.fused_with_reranker(self.reranked_head(queries, candidates), candidates)

    def reranked_head(self, queries: Queries, candidates: Candidates) -> Candidates:
        """The top of the list with the reranker's score as one more signal."""
        if self.reranker is None:
            raise ValueError("this pipeline has no reranker")
        head = candidates.head(self.rerank_depth)
        return head.with_signal(self.reranker.name, self.reranker.score(queries, head.items))

    def fused(self, candidates: Candidates) -> Candidates:
        """All candidates in the order that needs no reranker."""
        return candidates if self.fusion is None else self.fusion.rank(candidates)

    def fused_with_reranker(self, head: Candidates, candidates: Candidates) -> Candidates:
        """``head`` by the fusion that reads the reranker, then the rest by the one that does not.

        Only so can a list be part scored: a missing score is never made up.
        """
        if self.fusion_with_reranker is None:
            ordered = self.reranked_alone(head)
        else:
            ordered = self.fusion_with_reranker.rank(head)
        tail = candidates.tail(self.rerank_depth)
        return ordered.followed_by(self.fused(tail)) if tail.depth else ordered

    def reranked_alone(self, head: Candidates) -> Candidates:
        """``head`` in the reranker's own order."""
        if self.reranker is None:
            raise ValueError("this pipeline has no reranker")
        return head.reordered(head.signals[self.reranker.name])

    def similar_items(self, items: Items, k: int, allow: Mask | None) -> Candidates:
        """The ``k`` items nearest to each of ``items`` (n,) by cosine, itself left out.

        Raises:
            InputError: no recaller has item vectors.
        """
        sources = [
            recaller for recaller in self.blend.recallers if isinstance(recaller, HasItemVectors)
        ]
        if not sources:
            raise InputError(
                "similar_items needs a recaller with item vectors (ALS, TextRecall); this "
                f"recommender has {[recaller.name for recaller in self.blend.recallers]}"
            )
        found = np.full((len(items), k), -1, dtype=np.int32)
        scores = np.full((len(items), k), -np.inf, dtype=np.float32)
        left = np.ones(len(items), dtype=bool)
        for place, source in enumerate(sources):
            unit = _unit_rows(source.item_vectors)
            told = (unit[items] != 0).any(axis=1)
            rows = np.flatnonzero(left & (told | (place == len(sources) - 1)))
            itself = Ragged.from_rows([[item] for item in items[rows]])
            found[rows], scores[rows] = top_k(
                unit[items[rows]], unit, k, exclude=itself, allow=allow
            )
            left[rows] = False
        return Candidates(found, scores)

    def stage_lists(self, queries: Queries, k: int) -> Iterator[StageList]:
        """What each stage, alone and joined to those before it, would have answered.

        Seconds are those a user of that stage alone would wait: everything before it included.
        """
        depth = max(self.depth, k)
        clock = _Clock()
        for recaller in self.blend.recallers:
            lists = recaller.recall(queries, depth)
            yield StageList(recaller.name, lists, clock.lap(), "single")
        clock.lap()
        candidates = self.blend.candidates(queries, depth)
        recall_seconds = clock.lap()
        yield StageList("blend (recall stage)", candidates, recall_seconds, "recall")
        if self.reranker is None:
            if self.fusion is not None:
                yield StageList(
                    "fused", self.fused(candidates), recall_seconds + clock.lap(), "fused"
                )
            return
        clock.lap()
        head = self.reranked_head(queries, candidates)
        rerank_seconds = clock.lap()
        # Behind the head the blend's own order stands, without the blend's help in the head.
        alone = self.reranked_alone(head)
        if candidates.depth > head.depth:
            alone = alone.followed_by(candidates.tail(head.depth))
        yield StageList("llm alone", alone, recall_seconds + rerank_seconds, "llm")
        if self.fusion is None:
            return
        clock.lap()
        fused = self.fused(candidates)
        yield StageList("fused, no LLM", fused, recall_seconds + clock.lap(), "fused")
        clock.lap()
        fused = self.fused_with_reranker(head, candidates)
        seconds = recall_seconds + rerank_seconds + clock.lap()
        yield StageList("fused, with LLM", fused, seconds, "fused")


def _unit_rows(vectors: Scores) -> Scores:
    """Rows of length 1; a zero row stays zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Scores = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    return unit


class _Clock:
    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds
