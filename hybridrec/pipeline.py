"""The fitted two stages, in codes: recall, blend, rerank, fuse. Reads only: threads may share it.

Ids, frames and storage are :mod:`hybridrec.engine`'s; how the parts come to be fitted is
:mod:`hybridrec.training`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from hybridrec.candidates import Candidates
from hybridrec.fuse.baselines import OrderBefore
from hybridrec.fuse.calibration import PROBABILITY
from hybridrec.neighbours import ItemNeighbours
from hybridrec.ranking import Ranking, Stopwatch
from hybridrec.rerank.vectors import give_vectors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Self

    from numpy.typing import NDArray

    from hybridrec.candidates import Queries
    from hybridrec.deadline import Deadline
    from hybridrec.fuse.calibration import Calibration
    from hybridrec.newcomers import Newcomers
    from hybridrec.protocols import Fusion
    from hybridrec.ragged import Items, Scores
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

    def score_within(self, queries: Queries, items: Items, deadline: Deadline) -> Scores:
        """(B, reached) scores of the first columns of ``items``, as many as there is time for."""

    def add_items(self, texts: Sequence[str] | None, n: int) -> None:
        """Make room for ``n`` new items behind the last code."""

    def save_files(self, folder: Path) -> None:
        """Write the fitted state as plain files."""


BEFORE = "before reranking"
"""The column that tells the fusion with the reranker what the one without it made of a list."""


@dataclass(eq=False)
class Pipeline:
    """Everything that turns queries into a ranked list.

    Attributes:
        blend: the fitted recallers and how their lists merge.
        popularity: the answer to an empty history.
        depth: candidates that recall brings.
        rerank_depth: how many of them, from the top of the order before, the reranker reads.
        reranker: scores the first ``rerank_depth`` candidates; None leaves the stage out.
        fusion: orders candidates by the signals on them; None keeps the blend's order.
        fusion_with_reranker: orders again what the reranker has scored: by that score and by what
            ``fusion`` made of the signals (``BEFORE``). An ``OrderBefore`` here leaves the reranker
            unasked: on validation lists it brought nothing.
        newcomers: finds items without events and gives them places of their own; None leaves such
            items to whichever recaller brings them.
        calibration: fills the column ``PROBABILITY`` of what ``fusion`` orders; None for none.
        calibration_with_reranker: the same for ``fusion_with_reranker``.
        tried: every kind of fusion that was fitted, by name, ``fusion`` among them; what is saved
            and loaded is that one alone.
        tried_with_reranker: the same for ``fusion_with_reranker``.
    """

    blend: Blend
    popularity: Popularity
    depth: int
    rerank_depth: int
    reranker: Reranker | None = None
    fusion: Fusion | None = None
    fusion_with_reranker: Fusion | None = None
    newcomers: Newcomers | None = None
    calibration: Calibration | None = None
    calibration_with_reranker: Calibration | None = None
    tried: Mapping[str, Fusion] = field(default_factory=dict)
    tried_with_reranker: Mapping[str, Fusion] = field(default_factory=dict)

    @property
    def asks_reranker(self) -> bool:
        """Whether requests go through the reranker: there is one, and its fusion reads it."""
        return self.reranker is not None and not isinstance(self.fusion_with_reranker, OrderBefore)

    def __post_init__(self) -> None:
        """Whatever the reranker and the newcomers read are this pipeline's recallers."""
        give_vectors(self.reranker, self.blend.recallers)
        if self.newcomers is not None:
            self.newcomers.use(self.blend.recallers, self.blend.scorers)

    @cached_property
    def neighbours(self) -> ItemNeighbours:
        """Which items are near each other.

        Raises:
            InputError: no recaller has item vectors.
        """
        return ItemNeighbours(self.blend.recallers)

    def rank(self, queries: Queries, depth: int | None = None) -> Candidates:
        """The final order of ``depth`` candidates (default: its own depth).

        An empty history says nothing to rank by: it gets the popular items.
        """
        return self.ranking(queries, depth).answer

    def ranking(
        self,
        queries: Queries,
        depth: int | None = None,
        *,
        deadline: Deadline | None = None,
        k: int | None = None,
        rerank: bool = True,
        fuse: bool = True,
    ) -> Ranking:
        """The best order there is time for, and how it came to be.

        Args:
            queries: B of them.
            depth: candidates a query; default its own.
            deadline: cuts short reranking, and nothing else; what was reranked stands first,
                newcomers aside. None never does.
            k: where no more than the first ``k`` places are wanted, what is behind may lack
                newcomers.
            rerank: False leaves the reranker out.
            fuse: False leaves the fusions out: the blend's order, or the reranker's.
        """
        depth = self.depth if depth is None else depth
        told = queries.histories.lengths > 0
        rows = np.flatnonzero(told)
        asked = queries if len(rows) == len(queries) else queries.select(rows)
        found = None
        if len(rows):
            found = self._ranking(
                asked, depth, deadline, depth if k is None else k, rerank=rerank, fuse=fuse
            )
        if found is not None and len(rows) == len(queries):
            return found
        answer = self._beside_popular(queries, rows, None if found is None else found.answer, depth)
        reranked, newcomers = np.zeros((2, len(queries), depth), dtype=np.bool_)
        if found is None:
            return Ranking(answer, reranked, newcomers, told)
        reranked[rows, : found.answer.depth] = found.reranked
        newcomers[rows, : found.answer.depth] = found.newcomers
        return replace(found, answer=answer, reranked=reranked, newcomers=newcomers, told=told)

    def _beside_popular(
        self, queries: Queries, told: NDArray[np.int64], ranked: Candidates | None, depth: int
    ) -> Candidates:
        """``ranked`` in the rows ``told``, the popular items in the others."""
        items = np.full((len(queries), depth), -1, dtype=np.int32)
        scores = np.full((len(queries), depth), -np.inf, dtype=np.float32)
        if ranked is not None:
            items[told, : ranked.depth] = ranked.items
            scores[told, : ranked.depth] = ranked.scores
        untold = np.setdiff1d(np.arange(len(queries)), told)
        popular = self.popularity.recall(queries.select(untold), depth)
        items[untold, : popular.depth] = popular.items
        scores[untold, : popular.depth] = popular.scores
        if self.calibration is None:
            return Candidates(items, scores)
        share = np.zeros((len(queries), depth), dtype=np.float32)
        share[untold, : popular.depth] = self.popularity.shares(popular.items)
        if ranked is not None:  # without a fusion there is no probability of them
            share[told, : ranked.depth] = ranked.signals.get(PROBABILITY, ranked.scores)
        return Candidates(items, scores, {PROBABILITY: share})

    def _ranking(
        self,
        queries: Queries,
        depth: int,
        deadline: Deadline | None,
        k: int,
        *,
        rerank: bool,
        fuse: bool,
    ) -> Ranking:
        """:meth:`ranking` of queries that have a history."""
        watch = Stopwatch()
        with watch.timing("recall"):
            recalled = self.recalled(queries, depth)
        with watch.timing("fuse"):
            ordered = self.fused(recalled) if fuse else recalled
        found = head = None
        if self.newcomers is not None:  # before the reranker takes what time there is
            with watch.timing("newcomers"):
                found = self.newcomers.wanted(queries, ordered, depth, k)
        if rerank and self.asks_reranker:
            with watch.timing("rerank"):
                head = self.reranked_head(queries, ordered, deadline)
            head = head if head.depth else None
        with watch.timing("fuse"):
            if head is None:
                ranked = self._calibrated(ordered) if fuse else ordered
            elif fuse:
                ranked = self.fused_with_reranker(head, ordered)
            else:
                ranked = self.reranked_alone(head).followed_by(ordered.tail(head.depth))
        reached = 0 if head is None else head.depth
        served, new = ranked, np.zeros(ranked.items.shape, dtype=np.bool_)
        if self.newcomers is not None and found is not None:
            served, new = self.newcomers.beside(ranked, found, depth)
        return Ranking(
            answer=served,
            reranked=(np.cumsum(~new, axis=1) <= reached) & ~new & served.valid,
            newcomers=new,
            told=np.ones(len(queries), dtype=np.bool_),
            recalled=recalled,
            ordered=ordered,
            head=head,
            seconds=watch.seconds,
        )

    def recalled(self, queries: Queries, depth: int) -> Candidates:
        """What recall brings, newcomers left out where they have places of their own."""
        if self.newcomers is not None:
            queries = self.newcomers.others(queries)
        return self.blend.candidates(queries, depth)

    def fused(self, candidates: Candidates) -> Candidates:
        """All candidates in the order that needs no reranker."""
        return candidates if self.fusion is None else self.fusion.rank(candidates)

    def reranked_head(
        self, queries: Queries, ordered: Candidates, deadline: Deadline | None = None
    ) -> Candidates:
        """The top of the list with the reranker's score, and the one before, as two more signals.

        As much of it as there is time for.
        """
        if self.reranker is None:
            raise ValueError("this pipeline has no reranker")
        head = ordered.head(self.rerank_depth)
        if deadline is None:
            scores = self.reranker.score(queries, head.items)
        else:
            scores = self.reranker.score_within(queries, head.items, deadline)
        return with_reranker(head.head(scores.shape[1]), self.reranker.name, scores)

    def fused_with_reranker(self, head: Candidates, ordered: Candidates) -> Candidates:
        """``head`` by the fusion that reads the reranker, then the rest as it was ordered before.

        Only so can a list be part scored: a missing score is never made up.
        """
        if self.fusion_with_reranker is None:
            again = self.reranked_alone(head)
        else:
            again = self.fusion_with_reranker.rank(head)
            again = _calibrated(again, self.calibration_with_reranker)
        tail = ordered.tail(head.depth)
        return again.followed_by(self._calibrated(tail)) if tail.depth else again

    def _calibrated(self, ordered: Candidates) -> Candidates:
        return _calibrated(ordered, self.calibration)

    def reranked_alone(self, head: Candidates) -> Candidates:
        """``head`` in the reranker's own order."""
        if self.reranker is None:
            raise ValueError("this pipeline has no reranker")
        return head.reordered(head.signals[self.reranker.name])

    def popular_where_untold(self, queries: Queries, ranked: Candidates) -> Candidates:
        """``ranked``, and the popular items for those who have no history."""
        told = np.flatnonzero(queries.histories.lengths > 0)
        if len(told) == len(queries):
            return ranked
        return self._beside_popular(queries, told, ranked.select(told), ranked.depth)


def with_reranker(head: Candidates, name: str, scores: Scores) -> Candidates:
    """Lists that the fusion without the reranker has ordered, with what the one with it reads."""
    return head.with_signal(BEFORE, head.scores).with_signal(name, scores)


def _calibrated(ranked: Candidates, calibration: Calibration | None) -> Candidates:
    """``ranked`` with what its scores mean, where that is known."""
    if calibration is None:
        return ranked
    return ranked.with_signal(PROBABILITY, calibration.probabilities(ranked.scores))
