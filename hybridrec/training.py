"""How a pipeline is fitted: the eight steps of training without leakage.

1.  :class:`~hybridrec.data.learning.LearningPlan` divides the events.
2.  Fit A: every recaller on the base events only.
3.  Each learning event is asked of fit A with the history before it.
4.  The users in R teach a fusion of the signals that recall gives (:mod:`hybridrec.fusing`); the
    reranker learns from the tops of their lists in that order, which has seen their targets and is
    kinder to them than it will be; a tenth of R, which the fusion has not seen, says when to stop.
5.  The users in F, whose lists neither has learned from, teach a second fusion, which reads the
    reranker and what the first made of a list. Without a reranker all users teach the first.
6.  Half-lives and blend weights are chosen on the events that fit A has not seen; validation
    events train no weight.
7.  Fit D: the recallers again, on everything given, every choice kept.
8.  The test is the caller's: :func:`hybridrec.evaluate`.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hybridrec.bars import track
from hybridrec.checks import FitError
from hybridrec.data.learning import LearningPlan
from hybridrec.evaluation.metrics import per_user
from hybridrec.fusing import Fusing
from hybridrec.lessons import Training, TrainingReport, learning_lists
from hybridrec.pipeline import Pipeline
from hybridrec.protocols import Recaller
from hybridrec.ragged import Ragged
from hybridrec.recall.blend import Blend
from hybridrec.recall.popularity import Popularity
from hybridrec.rerank.vectors import give_vectors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hybridrec.candidates import Candidates, Queries
    from hybridrec.data.dataset import Dataset
    from hybridrec.newcomers import Newcomers
    from hybridrec.pipeline import Reranker
    from hybridrec.protocols import Fusion, Signal

_log = logging.getLogger("hybridrec")

_CHOICE_DEPTH = 10
_STOPPING_LISTS = 100
_CHOICE_EVENTS = 5000
_BLEND_WEIGHTS = (0.25, 0.5, 1.0, 2.0)


def train(
    recallers: Sequence[Recaller],
    signals: Sequence[Signal],
    reranker: Reranker | None,
    fusions: Sequence[Fusion],
    newcomers: Newcomers | None,
    data: Dataset,
    settings: Training,
    *,
    refit: bool = True,
) -> tuple[Pipeline, TrainingReport]:
    """Fit every stage to ``data`` (steps 1 to 7).

    Args:
        recallers: fitted in place; the reranker and the fusions are copied.
        signals: fitted in place; columns beside those of the recallers.
        reranker: None leaves the stage out.
        fusions: kinds to try, the best of which serves; none leaves the order before them.
        newcomers: None leaves them out.
        data: what to learn from.
        settings: how much of it.
        refit: False stops before step 7, with fit A, which validation events can be asked of.

    Raises:
        FitError: there is nothing that the reranker could learn from.
    """
    plan = LearningPlan.of(data, settings.seed)
    report = TrainingReport(
        users=len(data.histories),
        users_without_rows=plan.users_without_rows,
        users_without_history=int(np.count_nonzero(data.histories.lengths == 0)),
    )
    base = data.keep_events(plan.base)
    scorers = [*recallers, *signals]
    for scorer in track(scorers, "fit A", len(scorers)):
        scorer.fit(base)
    # Where a fusion orders the candidates, how the blend orders them decides nothing.
    head = settings.depth if fusions else settings.rerank_depth
    blend = _choose(recallers, signals, plan, data, settings, head, report)
    fusing = Fusing(fusions, blend, plan, data, settings, report)
    fused = fusing.before(reranker=reranker is not None)
    if reranker is not None:
        order = partial(fusing.ordered, before=fused["fusion"])
        reranker = _finetuned(reranker, blend, order, plan, data, settings, report)
        fused |= fusing.after(reranker, fused["fusion"])
    if newcomers is not None:
        newcomers = _acquainted(newcomers, blend, plan, data, base, settings, report)
    for scorer in track(scorers if refit else [], "fit D", len(scorers)):
        scorer.refit(data)
    popularity = Popularity().fit(data if refit else base)
    if newcomers is not None:
        newcomers.fit(data if refit else base)
    pipeline = Pipeline(
        blend=blend,
        popularity=popularity,
        reranker=reranker,
        depth=settings.depth,
        rerank_depth=settings.rerank_depth,
        newcomers=newcomers,
        **fused,
    )
    return pipeline, report


def _finetuned(
    reranker: Reranker,
    blend: Blend,
    order: Callable[[Queries], Candidates],
    plan: LearningPlan,
    data: Dataset,
    settings: Training,
    report: TrainingReport,
) -> Reranker:
    """Step 4: on the lists that ``order`` gives."""
    if data.texts is None:
        raise FitError(
            "the reranker reads item text and this data set has none: build it with "
            "Dataset.from_frame(..., items=, item_text=), or leave the reranker out"
        )
    reranker = reranker.untuned().prepare(data.texts)
    give_vectors(reranker, blend.recallers)
    generator = np.random.default_rng(settings.seed)
    most = settings.reranker_examples
    lists = learning_lists("reranker", plan.reranker, most, order, data, report, generator)
    if not len(lists.rows):
        raise FitError(
            f"recall found none of the {len(plan.reranker)} learning events of "
            f"{report.users} users, so the reranker has nothing to learn from: give it more "
            "events a user (5 at least), a greater depth or rerank_depth, or leave it out"
        )
    held = learning_lists(
        "stopping", plan.stopping, _STOPPING_LISTS, order, data, report, generator
    )
    held_out = (held.queries, held.candidates, held.rows.targets) if len(held.rows) else None
    log = reranker.finetune(lists.queries, lists.candidates, lists.rows.targets, held_out=held_out)
    report.reranker = log.to_json()
    return reranker


def _acquainted(
    newcomers: Newcomers,
    blend: Blend,
    plan: LearningPlan,
    data: Dataset,
    base: Dataset,
    settings: Training,
    report: TrainingReport,
) -> Newcomers:
    """Newcomers whose fusion has learned from the users in R, on items that fit A has met."""
    newcomers = newcomers.unfitted().fit(base).use(blend.recallers, blend.scorers)
    generator, most = np.random.default_rng(settings.seed + 4), newcomers.config.lists
    rows = plan.taught.select(~newcomers.unmet[plan.taught.targets]).sample(2 * most, generator)
    pools = newcomers.pools(generator)
    recall = partial(newcomers.among, pools=pools, chosen=pools[rows.targets])
    lists = learning_lists("newcomers", rows, most, recall, data, report, generator)
    if not len(lists.rows):
        _log.warning("no list to learn from for newcomers: they stand as texts and scores merge")
        return newcomers
    return newcomers.learn(lists.candidates, lists.rows.targets)


def _choose(
    recallers: Sequence[Recaller],
    signals: Sequence[Signal],
    plan: LearningPlan,
    data: Dataset,
    settings: Training,
    head: int,
    report: TrainingReport,
) -> Blend:
    """Step 6: half-lives by NDCG@10 of each recaller alone, then the weights of the blend.

    Asked of events that fit A has not seen, learning events among them: one event a user decides a
    half-life by noise (on ML-100k the standard error is twice the difference to be seen).
    """
    rows = plan.unseen.sample(_CHOICE_EVENTS, np.random.default_rng(settings.seed + 2))
    if not len(rows):
        _log.warning("no user has two events: half-lives and blend weights stay at their defaults")
        return Blend(recallers, scorers=signals)
    queries = rows.queries(data)
    targets = Ragged.from_rows([[target] for target in rows.targets])
    remembering = [*recallers, *(signal for signal in signals if isinstance(signal, Recaller))]
    for recaller in track(remembering, "half-lives", len(remembering)):
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
    weights = _weighted(recallers, queries, targets, settings.depth, head).weights
    report.blend_weights = weights
    _log.info("blend weights: %s", weights)
    return Blend(recallers, weights, signals)


def _weighted(
    recallers: Sequence[Recaller], queries: Queries, targets: Ragged, depth: int, head: int
) -> Blend:
    """The blend whose weights bring the most targets into its ``depth`` and into the ``head``.

    One round over the recallers, each weight in turn. No weight is 0: what these events cannot
    show, such as items nobody has met yet, must still have a way in.
    """
    blend = Blend(recallers)
    lists = blend.lists(queries, depth)
    best = -1.0
    for name in [recaller.name for recaller in recallers] if len(recallers) > 1 else []:
        for weight in _BLEND_WEIGHTS:
            tried = Blend(recallers, {**blend.weights, name: weight})
            items, _ = tried.merge(lists, depth)
            top = per_user(items, targets, head).recall.mean()
            whole = per_user(items, targets, depth).recall.mean()
            if top + whole > best:
                best, blend = top + whole, tried
    return blend
