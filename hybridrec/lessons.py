"""What a fit is told, what it reports, and the lists that its parts learn from."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from hybridrec.candidates import Candidates, Queries
    from hybridrec.data.dataset import Dataset
    from hybridrec.data.learning import LearningRows

_log = logging.getLogger("hybridrec")


@dataclass(frozen=True)
class Training:
    """What to train and how much of it.

    Attributes:
        depth: candidates a list.
        rerank_depth: candidates that the reranker reads.
        reranker_examples: lists to fine-tune on at most; None takes all.
        fusion_examples: lists to fit the fusion without the reranker on at most; None takes all.
        reranked_examples: the same for the fusion with it, which it has to read; None takes all.
        seed: of the deal of users to R and F, and of the samples.
        calibrated: learn what fused scores mean as probabilities.
    """

    depth: int
    rerank_depth: int
    reranker_examples: int | None
    fusion_examples: int | None
    seed: int
    calibrated: bool = False
    reranked_examples: int | None = None


@dataclass
class TrainingReport:
    """What happened in ``fit``.

    Attributes:
        users: users in the data.
        users_without_rows: of them, those with too few events to learn from.
        users_without_history: of them, those with none at all; None in models of before this field.
        rows: lists that each part learnt from.
        asked: learning events asked of recall for them.
        missed: of those asked, positives that recall missed.
        half_lives: the choice for each recaller.
        blend_weights: the choice for each recaller.
        reranker: the log of its fine-tuning.
        fusion: NDCG@10 on validation lists of every kind of fusion that was tried, by its name, for
            the fusion "without" the reranker's signal and the one "with" it.
        fused_by: which kind won each.
    """

    users: int = 0
    users_without_rows: int = 0
    users_without_history: int | None = None
    rows: dict[str, int] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    half_lives: dict[str, float | None] = field(default_factory=dict)
    blend_weights: dict[str, float] = field(default_factory=dict)
    reranker: dict[str, Any] = field(default_factory=dict)
    fusion: dict[str, dict[str, float]] = field(default_factory=dict)
    fused_by: dict[str, str] = field(default_factory=dict)

    @property
    def cold_share(self) -> float | None:
        """Share of the users who had no history; None where that was not counted."""
        if self.users_without_history is None or not self.users:
            return None
        return self.users_without_history / self.users

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Lists:
    """Learning rows with the candidates that fit A gave them: those whose target recall found."""

    rows: LearningRows
    queries: Queries
    candidates: Candidates


def learning_lists(
    name: str,
    rows: LearningRows,
    most: int | None,
    recall: Callable[[Queries], Candidates],
    data: Dataset,
    report: TrainingReport,
    generator: np.random.Generator,
) -> Lists:
    """Step 3: at most ``most`` of ``rows``, each with the candidates that ``recall`` gives it.

    Only lists that hold their target are kept: a positive that recall missed would teach, against
    negatives from inside the list, to prefer what recall dislikes. So twice as many are asked.
    """
    rows = rows.sample(None if most is None else 2 * most, generator)
    queries = rows.queries(data)
    candidates = recall(queries)
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
        candidates.depth,
        len(rows),
        report.missed[name],
    )
    return Lists(rows.select(kept), queries.select(kept), candidates.select(kept))
