"""Step 5 of training: fusions learn, and of several kinds the best on validation lists serves."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridrec.bars import track
from hybridrec.data.learning import EVENTS_A_LEARNING_EVENT
from hybridrec.evaluation.metrics import per_user
from hybridrec.fuse.baselines import ConvexFusion, ReciprocalRankFusion
from hybridrec.fuse.calibration import Calibration
from hybridrec.fuse.linear import LinearFusion
from hybridrec.fuse.trees import TreeFusion
from hybridrec.lessons import Lists, learning_lists
from hybridrec.ragged import Ragged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hybridrec.data.dataset import Dataset
    from hybridrec.data.learning import LearningPlan
    from hybridrec.lessons import Training, TrainingReport
    from hybridrec.pipeline import Reranker
    from hybridrec.protocols import Fusion
    from hybridrec.recall.blend import Blend

_log = logging.getLogger("hybridrec")

_CHOICE_DEPTH = 10
_CHOICE_LISTS = 10_000
"""Validation lists that a choice among kinds looks at."""


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

    def fitted(self, reranker: Reranker | None) -> dict[str, Any]:
        """What the pipeline orders by: fusions without and with the reranker's signal.

        By the names of the pipeline's fields, each with its calibration and with all that were
        tried.

        Both learn from the same lists: those of the users that the reranker did not learn from, or
        of all users where there is none. Without a list there is no fusion, and the order of the
        stage before it stands.
        """
        nothing = {"fusion": None, "fusion_with_reranker": None}
        if not self.kinds:
            return nothing
        learned = self._learning_lists(reranker)
        if not len(learned.rows):
            self._warn("blend's" if reranker is None else "reranker's")
            return nothing
        held = self._held_lists(None if reranker is None else len(learned.rows))
        found = nothing | self._best("without", learned, held)
        if reranker is not None:
            learned, held = _scored(learned, reranker), held and _scored(held, reranker)
            best = self._best("with", learned, held)
            found |= {f"{name}_with_reranker": value for name, value in best.items()}
        return found

    def _learning_lists(self, reranker: Reranker | None) -> Lists:
        """Lists of fit A that hold their target."""
        plan, settings = self.plan, self.settings
        rows = plan.learning if reranker is None else plan.fusion
        depth = settings.depth if reranker is None else settings.rerank_depth
        return learning_lists(
            "fusion",
            rows,
            settings.fusion_examples,
            self.blend,
            self.data,
            depth,
            self.report,
            np.random.default_rng(settings.seed + 1),
        )

    def _held_lists(self, most: int | None) -> Lists | None:
        """Validation lists of fit A, with their target or without; None where none is needed.

        At most ``most`` where the reranker has to read them: no more than it reads to learn from.
        """
        settings = self.settings
        if (len(self.kinds) < 2 and not settings.calibrated) or not len(self.plan.validation):
            return None
        n = _CHOICE_LISTS if most is None else min(most, _CHOICE_LISTS)
        rows = self.plan.validation.sample(n, np.random.default_rng(settings.seed + 3))
        queries = rows.queries(self.data)
        depth = settings.depth if most is None else settings.rerank_depth
        return Lists(rows, queries, self.blend.candidates(queries, depth))

    def _best(self, label: str, learned: Lists, held: Lists | None) -> dict[str, Any]:
        """Of all kinds, fitted to ``learned``, the one with the best NDCG@10 on ``held``.

        With its calibration by ``held``, which changes no order, where that is asked for, and with
        all of them by name.
        """
        targets = learned.rows.targets
        fitted = {
            name: copy.deepcopy(kind).fit(learned.candidates, targets)
            for name, kind in track(_named(self.kinds), f"fusion {label}", len(self.kinds))
        }
        best = next(iter(fitted))
        if held is not None:
            found = {name: _ndcg(fusion, held) for name, fusion in fitted.items()}
            best = max(found, key=lambda name: found[name])
            self.report.fusion[label] = found
            _log.info(
                "fusion %s the reranker's signal: %s; NDCG@10 on %d validation lists: %s",
                label,
                best,
                len(held.rows),
                {name: round(ndcg, 4) for name, ndcg in found.items()},
            )
        self.report.fused_by[label] = best
        calibration = None
        if held is not None and self.settings.calibrated:
            ranked = fitted[best].rank(held.candidates)
            calibration = Calibration().fit(ranked, held.rows.targets)
        return {"fusion": fitted[best], "calibration": calibration, "tried": fitted}

    def _warn(self, order: str) -> None:
        report = self.report
        _log.warning(
            "no list to fit the fusion to, so candidates keep the %s order: of %d learning events "
            "asked recall missed %d; %d of %d users have fewer than %d events, and the fusion "
            "learns from %s",
            order,
            report.asked["fusion"],
            report.missed["fusion"],
            report.users_without_rows,
            report.users,
            EVENTS_A_LEARNING_EVENT,
            "the others" if order == "blend's" else "a quarter of the others",
        )


def _named(kinds: Sequence[Fusion]) -> list[tuple[str, Fusion]]:
    """Each kind with its class's name, numbered where several are of one class."""
    names = [type(kind).__name__ for kind in kinds]
    return [
        (name if names.count(name) == 1 else f"{name} {names[: place + 1].count(name)}", kind)
        for place, (name, kind) in enumerate(zip(names, kinds, strict=True))
    ]


def _scored(lists: Lists, reranker: Reranker) -> Lists:
    """``lists`` with the reranker's score as one more signal."""
    scores = reranker.score(lists.queries, lists.candidates.items)
    return replace(lists, candidates=lists.candidates.with_signal(reranker.name, scores))


def _ndcg(fusion: Fusion, held: Lists) -> float:
    """A list without its target counts 0: for every kind alike."""
    targets = Ragged.from_rows([[target] for target in held.rows.targets])
    ranked = fusion.rank(held.candidates)
    return float(per_user(ranked.items, targets, _CHOICE_DEPTH).ndcg.mean())
