"""How a pipeline is fitted: the eight steps of training without leakage.

1.  :class:`~hybridrec.data.learning.LearningPlan` divides the events.
2.  Fit A: every recaller on the base events only.
3.  Each learning event is asked of fit A with the history before it.
4.  The reranker learns from the lists of the users in R, early-stopped on a tenth of them.
5.  Two fusions, without and with the reranker's signal, learn from the same lists of users in F.
6.  Half-lives and blend weights are chosen on the events that fit A has not seen; validation
    events train no weight.
7.  Fit D: the recallers again, on everything given, every choice kept.
8.  The test is the caller's: :func:`hybridrec.evaluate`.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridrec.bars import track
from hybridrec.checks import FitError
from hybridrec.data.learning import EVENTS_A_LEARNING_EVENT, LearningPlan, LearningRows
from hybridrec.evaluation.metrics import per_user
from hybridrec.pipeline import Pipeline
from hybridrec.ragged import Ragged
from hybridrec.recall.blend import Blend
from hybridrec.recall.popularity import Popularity
from hybridrec.rerank.vectors import give_vectors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hybridrec.candidates import Candidates, Queries
    from hybridrec.data.dataset import Dataset
    from hybridrec.fuse.linear import LinearFusion
    from hybridrec.pipeline import Reranker
    from hybridrec.protocols import Recaller

_log = logging.getLogger("hybridrec")

_CHOICE_DEPTH = 10
_STOPPING_LISTS = 100
_CHOICE_EVENTS = 5000
_BLEND_WEIGHTS = (0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Training:
    """What to train and how much of it.

    Attributes:
        depth: candidates a list.
        rerank_depth: candidates that the reranker reads.
        reranker_examples: lists to fine-tune on at most; None takes all.
        fusion_examples: lists to fit the fusions on at most; None takes all.
        seed: of the deal of users to R and F, and of the samples.
    """

    depth: int
    rerank_depth: int
    reranker_examples: int | None
    fusion_examples: int | None
    seed: int


@dataclass
class TrainingReport:
    """What happened in ``fit``.

    Attributes:
        users: users in the data.
        users_without_rows: of them, those with too few events to learn from.
        rows: lists that each part learnt from.
        asked: learning events asked of recall for them.
        missed: of those asked, positives that recall missed.
        half_lives: the choice for each recaller.
        blend_weights: the choice for each recaller.
        reranker: the log of its fine-tuning.
    """

    users: int = 0
    users_without_rows: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    half_lives: dict[str, float | None] = field(default_factory=dict)
    blend_weights: dict[str, float] = field(default_factory=dict)
    reranker: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Lists:
    """Learning rows with the candidates that fit A gave them: those whose target recall found."""

    rows: LearningRows
    queries: Queries
    candidates: Candidates


def train(
    recallers: Sequence[Recaller],
    reranker: Reranker | None,
    fusion: LinearFusion | None,
    data: Dataset,
    settings: Training,
) -> tuple[Pipeline, TrainingReport]:
    """Fit every stage to ``data`` (steps 1 to 7).

    Raises:
        FitError: there is nothing that the reranker could learn from.
    """
    plan = LearningPlan.of(data, settings.seed)
    report = TrainingReport(users=len(data.histories), users_without_rows=plan.users_without_rows)
    base = data.keep_events(plan.base)
    for recaller in track(recallers, "fit A", len(recallers)):
        recaller.fit(base)
    blend = _choose(recallers, plan, data, settings, report)
    if reranker is not None:
        reranker = _finetuned(reranker, blend, plan, data, settings, report)
    fusions = _fusions(fusion, reranker, blend, plan, data, settings, report)
    for recaller in track(recallers, "fit D", len(recallers)):
        recaller.refit(data)
    popularity = Popularity().fit(data)
    depths = (settings.depth, settings.rerank_depth)
    return Pipeline(blend, popularity, reranker, *fusions, *depths), report


def learning_lists(
    name: str,
    rows: LearningRows,
    most: int | None,
    blend: Blend,
    data: Dataset,
    depth: int,
    report: TrainingReport,
    generator: np.random.Generator,
) -> Lists:
    """Step 3: at most ``most`` of ``rows``, each with the top ``depth`` of the blend.

    Only lists that hold their target are kept: a positive that recall missed would teach, against
    negatives from inside the list, to prefer what recall dislikes. So twice as many are asked.
    """
    rows = rows.sample(None if most is None else 2 * most, generator)
    queries = rows.queries(data)
    candidates = blend.candidates(queries, depth)
    found = np.flatnonzero((candidates.items == rows.targets[:, None]).any(axis=1))
    kept = found
    if most is not None and len(found) > most:
        kept = np.sort(generator.choice(found, most, replace=False))
    report.rows[name] = len(kept)
    report.asked[name] = len(rows)
    report.missed[name] = len(rows) - len(found)
    _log.info(
        "%s: %d lists of %d candidates to learn from; of %d events asked recall missed %d",
        name,
        len(kept),
        depth,
        len(rows),
        report.missed[name],
    )
    return Lists(rows.select(kept), queries.select(kept), candidates.select(kept))


def _finetuned(
    reranker: Reranker,
    blend: Blend,
    plan: LearningPlan,
    data: Dataset,
    settings: Training,
    report: TrainingReport,
) -> Reranker:
    """Step 4."""
    if data.texts is None:
        raise FitError(
            "the reranker reads item text and this data set has none: build it with "
            "Dataset.from_frame(..., items=, item_text=), or leave the reranker out"
        )
    reranker = reranker.untuned().prepare(data.texts)
    give_vectors(reranker, blend.recallers)
    generator = np.random.default_rng(settings.seed)
    depth, most = settings.rerank_depth, settings.reranker_examples
    lists = learning_lists("reranker", plan.reranker, most, blend, data, depth, report, generator)
    if not len(lists.rows):
        raise FitError(
            f"recall found none of the {len(plan.reranker)} learning events of "
            f"{report.users} users, so the reranker has nothing to learn from: give it more "
            "events a user (5 at least), a greater depth, or leave the reranker out"
        )
    held = learning_lists(
        "stopping", plan.stopping, _STOPPING_LISTS, blend, data, depth, report, generator
    )
    held_out = (held.queries, held.candidates, held.rows.targets) if len(held.rows) else None
    log = reranker.finetune(lists.queries, lists.candidates, lists.rows.targets, held_out=held_out)
    report.reranker = log.to_json()
    return reranker


def _fusions(
    fusion: LinearFusion | None,
    reranker: Reranker | None,
    blend: Blend,
    plan: LearningPlan,
    data: Dataset,
    settings: Training,
    report: TrainingReport,
) -> tuple[LinearFusion | None, LinearFusion | None]:
    """Step 5: the fusion without the reranker's signal and, where there is one, with it.

    Without a list to learn from there is none, and the order of the stage before it stands.
    """
    if fusion is None:
        return None, None
    generator = np.random.default_rng(settings.seed + 1)
    depth = settings.depth if reranker is None else settings.rerank_depth
    most = settings.fusion_examples
    lists = learning_lists("fusion", plan.fusion, most, blend, data, depth, report, generator)
    if not len(lists.rows):
        _log.warning(
            "no list to fit the fusion to, so candidates keep the %s order: of %d learning events "
            "asked recall missed %d; %d of %d users have fewer than %d events, and the fusion "
            "learns from a quarter of the others",
            "blend's" if reranker is None else "reranker's",
            report.asked["fusion"],
            report.missed["fusion"],
            report.users_without_rows,
            report.users,
            EVENTS_A_LEARNING_EVENT,
        )
        return None, None
    without = copy.deepcopy(fusion).fit(lists.candidates, lists.rows.targets)
    if reranker is None:
        return without, None
    scores = reranker.score(lists.queries, lists.candidates.items)
    candidates = lists.candidates.with_signal(reranker.name, scores)
    return without, copy.deepcopy(fusion).fit(candidates, lists.rows.targets)


def _choose(
    recallers: Sequence[Recaller],
    plan: LearningPlan,
    data: Dataset,
    settings: Training,
    report: TrainingReport,
) -> Blend:
    """Step 6: half-lives by NDCG@10 of each recaller alone, then the weights of the blend.

    Asked of events that fit A has not seen, learning events among them: one event a user decides a
    half-life by noise (on ML-100k the standard error is twice the difference to be seen).
    """
    rows = plan.unseen.sample(_CHOICE_EVENTS, np.random.default_rng(settings.seed + 2))
    if not len(rows):
        _log.warning("no user has two events: half-lives and blend weights stay at their defaults")
        return Blend(recallers)
    queries = rows.queries(data)
    targets = Ragged.from_rows([[target] for target in rows.targets])
    for recaller in track(recallers, "half-lives", len(recallers)):
        found: dict[float | None, float] = {}
        for half_life in recaller.half_lives if data.ordered else ():
            recaller.half_life = half_life
            ranked = recaller.recall(queries, _CHOICE_DEPTH)
            found[half_life] = float(per_user(ranked.items, targets, _CHOICE_DEPTH).ndcg.mean())
        if found:
            recaller.half_life = max(found, key=lambda half_life: found[half_life])
            _log.info(
                "%s: half-life %s events, NDCG@10 by half-life: %s",
                recaller.name,
                recaller.half_life,
                {str(half_life): round(ndcg, 4) for half_life, ndcg in found.items()},
            )
        report.half_lives[recaller.name] = recaller.half_life
    blend = _weighted(recallers, queries, targets, settings)
    report.blend_weights = blend.weights
    _log.info("blend weights: %s", blend.weights)
    return blend


def _weighted(
    recallers: Sequence[Recaller], queries: Queries, targets: Ragged, settings: Training
) -> Blend:
    """The blend whose weights bring the most targets into the part that the reranker reads.

    One round over the recallers, each weight in turn. No weight is 0: what these events cannot
    show, such as items nobody has met yet, must still have a way in.
    """
    blend = Blend(recallers)
    lists = blend.lists(queries, settings.depth)
    best = -1.0
    for name in [recaller.name for recaller in recallers] if len(recallers) > 1 else []:
        for weight in _BLEND_WEIGHTS:
            tried = Blend(recallers, {**blend.weights, name: weight})
            items, _ = tried.merge(lists, settings.depth)
            head = per_user(items, targets, settings.rerank_depth).recall.mean()
            whole = per_user(items, targets, settings.depth).recall.mean()
            if head + whole > best:
                best, blend = head + whole, tried
    return blend
