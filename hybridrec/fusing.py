"""Fusions learn, before the reranker and after it; of several kinds the best serves."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridrec.bars import track
from hybridrec.data.learning import EVENTS_A_LEARNING_EVENT
from hybridrec.evaluation.metrics import per_user
from hybridrec.fuse.baselines import ConvexFusion, OrderBefore, ReciprocalRankFusion
from hybridrec.fuse.calibration import Calibration
from hybridrec.fuse.linear import LinearFusion
from hybridrec.fuse.trees import TreeFusion
from hybridrec.lessons import Lists, learning_lists
from hybridrec.pipeline import BEFORE, with_reranker
from hybridrec.ragged import Ragged

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hybridrec.candidates import Candidates, Queries
    from hybridrec.data.dataset import Dataset
    from hybridrec.data.learning import LearningPlan, LearningRows
    from hybridrec.evaluation.metrics import Values
    from hybridrec.lessons import Training, TrainingReport
    from hybridrec.pipeline import Reranker
    from hybridrec.protocols import Fusion
    from hybridrec.recall.blend import Blend

_log = logging.getLogger("hybridrec")

_CHOICE_DEPTH = 10
_CHOICE_LISTS = 10_000
"""Validation lists that a choice among kinds looks at."""
KEPT = "the order before"
"""What the report calls the choice to leave the reranker unasked."""


def every_kind() -> list[Fusion]:
    """The kinds that ``fusion="auto"`` tries; trees only where LightGBM is installed."""
    kinds: list[Fusion] = [ReciprocalRankFusion(), ConvexFusion(), LinearFusion()]
    if find_spec("lightgbm") is None:
        _log.warning(
            "fusion='auto' leaves trees out: LightGBM is not installed; "
            "pip install 'hybridrec[trees]'"
        )
        return kinds
    return [*kinds, TreeFusion()]


@dataclass(frozen=True)
class Fusing:
    """What the fusions of one fit have in common.

    Attributes:
        kinds: unfitted fusions, one of which is to serve.
        blend: fitted to the base events (fit A).
        plan: which events teach what.
        data: everything that was given.
        settings: of the fit.
        report: filled as it goes.
    """

    kinds: Sequence[Fusion]
    blend: Blend
    plan: LearningPlan
    data: Dataset
    settings: Training
    report: TrainingReport

    def before(self, *, reranker: bool) -> dict[str, Any]:
        """The fusion that reads no reranker, by the names of the pipeline's fields.

        It learns from the lists of all users; where a ``reranker`` follows, from those that it
        learns from: the lists of F, which neither has seen, teach how the two go together, and
        those in ``stopping`` tell when to stop.
        """
        rows = self.plan.reranker if reranker else self.plan.learning
        return self._learned("fusion", rows, self.settings.fusion_examples, self.recalled, None)

    def after(self, reranker: Reranker, before: Fusion | None) -> dict[str, Any]:
        """The fusion that reads the reranker and what the one ``before`` it made of a list."""
        most = self.settings.reranked_examples
        recall = partial(self.ordered, before=before)
        found = self._learned("reranked fusion", self.plan.fusion, most, recall, reranker)
        return {f"{name}_with_reranker": value for name, value in found.items()}

    def recalled(self, queries: Queries) -> Candidates:
        """What recall brings."""
        return self.blend.candidates(queries, self.settings.depth)

    def ordered(self, queries: Queries, before: Fusion | None) -> Candidates:
        """What the reranker reads: the top of the order before it."""
        candidates = self.recalled(queries)
        ordered = candidates if before is None else before.rank(candidates)
        return ordered.head(self.settings.rerank_depth)

    def _learned(
        self,
        name: str,
        rows: LearningRows,
        most: int | None,
        recall: Callable[[Queries], Candidates],
        reranker: Reranker | None,
    ) -> dict[str, Any]:
        """The best fusion by lists of ``rows``; none without a list, and the order before stands.

        Choosing looks at as many lists at most as learning where the reranker has to read them.
        """
        if not self.kinds:
            return {"fusion": None}
        draw = np.random.default_rng(self.settings.seed + 1)
        learned = learning_lists(name, rows, most, recall, self.data, self.report, draw)
        if not len(learned.rows):
            self._warn(name, "blend's" if reranker is None else "reranker's")
            return {"fusion": None}
        held = self._held_lists(recall, None if reranker is None else len(learned.rows))
        if reranker is not None:
            learned, held = _scored(learned, reranker), held and _scored(held, reranker)
        return self._best("without" if reranker is None else "with", learned, held)

    def _held_lists(
        self, recall: Callable[[Queries], Candidates], most: int | None
    ) -> Lists | None:
        """At most ``most`` validation lists, with their target or without; None if not needed."""
        settings = self.settings
        if (len(self.kinds) < 2 and not settings.calibrated) or not len(self.plan.validation):
            return None
        n = _CHOICE_LISTS if most is None else min(most, _CHOICE_LISTS)
        rows = self.plan.validation.sample(n, np.random.default_rng(settings.seed + 3))
        queries = rows.queries(self.data)
        return Lists(rows, queries, recall(queries))

    def _best(self, label: str, learned: Lists, held: Lists | None) -> dict[str, Any]:
        """Of all kinds, fitted to ``learned``, the one with the best NDCG@10 on ``held``.

        With its calibration by ``held``, which changes no order, where that is asked for, and with
        all of them by name. With the reranker, the order before it stands unless the best kind is
        better by more than chance.
        """
        targets = learned.rows.targets
        fitted = {
            name: copy.deepcopy(kind).fit(learned.candidates, targets)
            for name, kind in track(_named(self.kinds), f"fusion {label}", len(self.kinds))
        }
        best = next(iter(fitted))
        if held is not None:
            ndcg = {name: _ndcg(fusion, held) for name, fusion in fitted.items()}
            found = {name: float(values.mean()) for name, values in ndcg.items()}
            best = max(found, key=lambda name: found[name])
            if label == "with" and len(self.kinds) > 1:
                before = OrderBefore(signals=[BEFORE]).fit(learned.candidates, targets)
                fitted[KEPT], values = before, _ndcg(before, held)
                found[KEPT] = float(values.mean())
                best = best if _clearly_better(ndcg[best], values) else KEPT
            self.report.fusion[label] = found
            _log.info(
                "fusion %s the reranker's signal: %s; NDCG@10 on %d validation lists: %s",
                label,
                best,
                len(held.rows),
                {name: round(ndcg, 4) for name, ndcg in found.items()},
            )
            if best == KEPT:
                _log.warning(
                    "the reranker brings nothing that these lists show, so it is not asked, and "
                    "the order before it stands; one fusion rather than several always asks it"
                )
        self.report.fused_by[label] = best
        calibration = None
        if held is not None and self.settings.calibrated:
            ranked = fitted[best].rank(held.candidates)
            calibration = Calibration().fit(ranked, held.rows.targets)
        return {"fusion": fitted[best], "calibration": calibration, "tried": fitted}

    def _warn(self, name: str, order: str) -> None:
        report = self.report
        _log.warning(
            "no list to fit the %s to, so candidates keep the %s order: of %d learning events "
            "asked recall missed %d; %d of %d users have fewer than %d events, which teach nothing",
            name,
            order,
            report.asked[name],
            report.missed[name],
            report.users_without_rows,
            report.users,
            EVENTS_A_LEARNING_EVENT,
        )


def _named(kinds: Sequence[Fusion]) -> list[tuple[str, Fusion]]:
    """Each kind with its class's name, numbered where several are of one class."""
    names = [type(kind).__name__ for kind in kinds]
    return [
        (name if names.count(name) == 1 else f"{name} {names[: place + 1].count(name)}", kind)
        for place, (name, kind) in enumerate(zip(names, kinds, strict=True))
    ]


def _scored(lists: Lists, reranker: Reranker) -> Lists:
    """``lists`` with what the fusion after the reranker reads: its score and the order before it.

    That order has weighed the other signals already, on many lists. Few are read by the reranker,
    and from so few every further column teaches noise (MovieLens 100k, 400 lists and all columns:
    NDCG@10 .124 where the order before has .140).
    """
    scores = reranker.score(lists.queries, lists.candidates.items)
    head = replace(lists.candidates, signals={})
    return replace(lists, candidates=with_reranker(head, reranker.name, scores))


def _ndcg(fusion: Fusion, held: Lists) -> Values:
    """(n,) of each list; one without its target counts 0, for every kind alike."""
    targets = Ragged.from_rows([[target] for target in held.rows.targets])
    ranked = fusion.rank(held.candidates)
    return per_user(ranked.items, targets, _CHOICE_DEPTH).ndcg


def _clearly_better(values: Values, others: Values) -> bool:
    """Whether ``values`` are greater by more than the standard error of the difference.

    A reranker is the dearest stage by far: chance alone must not bring it in.
    """
    difference = values - others
    error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else np.inf
    return bool(difference.mean() > error)
