"""What a search tries things on: fit A, its lists, and the validation events."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from hybridrec.checks import FitError
from hybridrec.data.learning import LearningPlan
from hybridrec.evaluation.metrics import per_user
from hybridrec.protocols import Recaller
from hybridrec.ragged import Ragged
from hybridrec.training import train
from hybridrec.tuning.folder import mark_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hybridrec.candidates import Candidates
    from hybridrec.data.dataset import Dataset
    from hybridrec.data.learning import LearningRows
    from hybridrec.engine import HybridRecommender
    from hybridrec.pipeline import Pipeline
    from hybridrec.protocols import Fusion
    from hybridrec.ragged import Items

S = TypeVar("S")

Measured = tuple[float, float]
"""A mean over validation events, and its standard error."""

K = 10
"""Places that count."""
_ALONE = 5000
"""Events that a recaller alone is asked of at most."""
_SERVED = 10_000
"""Validation events that the served order is measured on at most."""
_RERANKED = 1000
"""The same where a reranker has to read the lists."""
_KEPT = 3
"""Sets of recallers whose lists are kept at hand."""


class Workbench:
    """Measures stages of one data set. Nothing here is fitted to a validation event.

    Newcomers stay out of it: no event tells whether they were well placed.

    A recaller alone is asked of all events that fit A has not seen, as a fit does to choose its
    half-life: one event a user is too few to tell recallers apart. The served order is measured
    on validation events, which no fusion and no reranker has learned from.

    Raises:
        FitError: no user has two events.
    """

    def __init__(self, data: Dataset, engine: HybridRecommender) -> None:
        self.data = data
        self.mark = mark_of(data)
        self.settings = replace(engine.settings, calibrated=False)
        seed = self.settings.seed
        plan = LearningPlan.of(data, seed)
        if not len(plan.validation):
            raise FitError(
                "no user has two events, so there is no validation event to choose settings by: "
                "give users with longer histories"
            )
        self._base = data.keep_events(plan.base)
        # The rows that a fit itself chooses half-lives and kinds of fusion by.
        self._alone = plan.unseen.sample(_ALONE, np.random.default_rng(seed + 2))
        self._rows = plan.validation.sample(_SERVED, np.random.default_rng(seed + 3))
        self._few = plan.validation.sample(_RERANKED, np.random.default_rng(seed + 3))
        self._ready: dict[str, Any] = {}
        self._lists: dict[str, _Lists] = {}

    def events(self, *, reranker: bool) -> int:
        """Validation events that the served order is measured on."""
        return len(self._few if reranker else self._rows)

    def alone(self, recaller: Any) -> tuple[float, dict[str, Any]]:
        """NDCG@10 of ``recaller`` (fitted in place), and beside it Recall at the depth of lists."""
        depth = self.settings.depth
        self._learnt([recaller], [], None, [])
        queries = self._alone.queries(self.data)
        ranked = recaller.recall(queries, depth)
        found = per_user(ranked.items, _targets(self._alone), depth).recall.mean()
        note = {f"recall@{depth}": float(found), "half_life": recaller.half_life}
        return _ndcg(ranked, self._alone)[0], note

    def fused(self, engine: HybridRecommender, fusion: Fusion | None) -> Measured:
        """NDCG@10 of the order that a kind of ``fusion`` gives what the recallers bring."""
        lists = self._lists_of(engine)
        if fusion is None or lists.learned is None:
            return _ndcg(lists.held, self._rows)
        fitted = copy.deepcopy(fusion).fit(*lists.learned)
        return _ndcg(fitted.rank(lists.held), self._rows)

    def teaches(self, engine: HybridRecommender) -> bool:
        """Whether there is a list that a fusion could learn from."""
        return self._lists_of(engine).learned is not None

    def reranked(self, engine: HybridRecommender) -> Measured:
        """NDCG@10 of the order that ``engine`` would serve, its reranker and all."""
        stages = self._stages(engine)
        pipeline = self._learnt(*stages, engine.reranker, engine.fusions)
        return _ndcg(pipeline.rank(self._few.queries(self.data)), self._few)

    def _learnt(
        self,
        recallers: Sequence[Any],
        signals: Sequence[Any],
        reranker: Any,
        fusions: Sequence[Fusion],
    ) -> Pipeline:
        """What a fit would make of these stages before it sees everything."""
        stages = (recallers, signals, reranker, fusions, None)
        return train(*stages, self.data, self.settings, refit=False)[0]

    def _lists_of(self, engine: HybridRecommender) -> _Lists:
        stages = self._stages(engine)
        key = "\n".join(_key(stage) for part in stages for stage in part)
        if key not in self._lists:
            while len(self._lists) >= _KEPT:
                del self._lists[next(iter(self._lists))]
            listener: Any = _Listener()
            pipeline = self._learnt(*stages, None, [listener])
            held = pipeline.blend.candidates(self._rows.queries(self.data), self.settings.depth)
            heard: Any = pipeline.fusion  # a copy of the listener; None where nothing was taught
            learned = None if heard is None else heard.heard
            self._lists[key] = _Lists(held, learned)
        return self._lists[key]

    def _stages(self, engine: HybridRecommender) -> tuple[list[Any], list[Any]]:
        """Recallers and signals of ``engine``, fitted to what fit A sees."""
        return (
            [self._fitted(stage) for stage in engine.recallers],
            [self._fitted(stage) for stage in engine.signals],
        )

    def _fitted(self, stage: Any) -> Any:
        key = _key(stage)
        if key not in self._ready:
            twin = copy.copy(stage)
            if isinstance(twin, Recaller):
                self._learnt([twin], [], None, [])
            else:
                twin.fit(self._base)
            self._ready[key] = _taught(twin)
        return self._ready[key]


@dataclass(frozen=True, eq=False)
class _Lists:
    """Of one set of recallers: validation lists, and those to learn from if there are any."""

    held: Candidates
    learned: tuple[Candidates, Items] | None


def _taught(stage: S) -> S:
    """A copy of a fitted stage that training asks and teaches no more.

    Its class is a child of its own, because training also looks at what a class can do.
    """
    kind: type = type(stage)
    twin: Any = copy.copy(stage)
    # No slots and no state: the child lies in memory as its parent does.
    own = {"__slots__": (), "half_lives": (), "fit": lambda self, data: self}
    twin.__class__ = type(kind.__name__, (kind,), own)
    return twin  # type: ignore[no-any-return]


class _Listener:
    """As much of a fusion as training asks for: it keeps the lists that it is to learn from."""

    signals: tuple[str, ...] = ()
    heard: tuple[Candidates, Items]

    def fit(self, candidates: Candidates, targets: Items) -> Self:
        self.heard, self.signals = (candidates, targets), tuple(candidates.signals)
        return self


def _key(stage: Any) -> str:
    """Tells stages of other settings apart."""
    return f"{type(stage).__name__} {getattr(stage, 'config', None)!r} {stage.name}"


def _targets(rows: LearningRows) -> Ragged:
    return Ragged.from_rows([[target] for target in rows.targets])


def _ndcg(ranked: Candidates, rows: LearningRows) -> Measured:
    """A list without its target counts 0."""
    values = per_user(ranked.items, _targets(rows), K).ndcg
    return float(values.mean()), float(values.std() / np.sqrt(len(values)))
