"""The protocol: every stage of an engine on the same held-out users, over the full catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, get_args, runtime_checkable

import numpy as np

from hybridrec.checks import InputError, InputTypeError, codes, one_of, real_number, whole_number
from hybridrec.data.split import Split
from hybridrec.evaluation.compare import bootstrap_ci, paired_ci
from hybridrec.evaluation.metrics import Metrics, per_user
from hybridrec.evaluation.report import Comparison, Kind, Report, StageResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hybridrec.candidates import Candidates, Queries
    from hybridrec.evaluation.metrics import Values
    from hybridrec.ragged import Ragged


@dataclass(frozen=True, eq=False)
class StageList:
    """What one stage of an engine answered.

    Attributes:
        name: "popularity", "als", "blend (recall stage)", "fused, with LLM", ...
        candidates: B ranked lists.
        seconds: wall time from the queries to these lists, earlier stages included.
        kind: one recaller ("single"), their union ("recall"), the cross-encoder ordering that
            ("llm"), or a learned fusion ("fused").
    """

    name: str
    candidates: Candidates
    seconds: float
    kind: Kind

    def __post_init__(self) -> None:
        one_of("kind", self.kind, get_args(Kind))
        real_number("seconds", self.seconds, least=0.0)


@runtime_checkable
class Staged(Protocol):
    """An engine that shows what each of its stages would have answered."""

    def stage_lists(self, queries: Queries, k: int) -> Iterable[StageList]:
        """The lists of every stage, ``k`` deep, in the order the stages run."""


def evaluate(engine: Staged, split: Split, k: int = 10, *, depth: int | None = None) -> Report:
    """Recall ceiling, each stage alone and the fused list, with intervals, on ``split``.

    Full ranking over the catalogue, means over users. The last fused stage is compared, user by
    user, with each fused stage before it and with the single stage that has the best NDCG@k on
    these very users (a choice that favours the single stage, so the gain is not flattered).

    Args:
        engine: fitted on ``split.train``.
        split: the held-out queries and their targets.
        k: places that HR, NDCG and MRR look at.
        depth: places that recall looks at, and how deep the lists are asked for; at least ``k``.
            None takes 100, or ``k`` where that is more.

    Raises:
        InputTypeError: ``engine`` has no ``stage_lists``, or ``split`` is not a Split.
        InputError: nothing to evaluate, a user without a target, or lists that do not fit.
    """
    k = whole_number("k", k, least=1)
    depth = max(100, k) if depth is None else whole_number("depth", depth, least=k)
    if not isinstance(engine, Staged):
        raise InputTypeError(
            f"engine is {type(engine).__name__}, which has no stage_lists(queries, k); wanted a "
            "HybridRecommender: put a single stage in one first"
        )
    if not isinstance(split, Split):
        raise InputTypeError(
            f"split is {type(split).__name__}; wanted a Split: hybridrec.split.leave_last(data)"
        )
    queries, targets = split.queries, split.targets
    if not len(queries):
        raise InputError(
            "split has no queries; wanted at least one: split data in which users have two events "
            "or more"
        )
    codes("split.targets.items", targets.items, queries.n_items)
    stages: list[StageResult] = []
    ndcg: dict[str, Values] = {}
    for stage in engine.stage_lists(queries, depth):
        if len(stage.candidates) != len(queries) or stage.name in ndcg:
            raise InputError(
                f"stage {stage.name!r} gave {len(stage.candidates)} lists for {len(queries)} "
                "queries, or came twice; wanted each stage once, with a list for each query"
            )
        top = per_user(stage.candidates.items, targets, k)
        recall = per_user(stage.candidates.items, targets, depth).recall
        stages.append(_summary(stage, top, recall))
        ndcg[stage.name] = top.ndcg
    if not stages:
        raise InputError("engine gave no stage; wanted at least one recaller in it")
    return Report(k, depth, _sizes(split), tuple(stages), _comparisons(stages, ndcg), ndcg)


def _summary(stage: StageList, top: Metrics, recall: Values) -> StageResult:
    return StageResult(
        name=stage.name,
        kind=stage.kind,
        recall=float(recall.mean()),
        hr=float(top.hr.mean()),
        ndcg=float(top.ndcg.mean()),
        ndcg_ci=bootstrap_ci(top.ndcg),
        mrr=float(top.mrr.mean()),
        ms_per_user=1000.0 * stage.seconds / len(recall),
    )


def _comparisons(stages: Sequence[StageResult], ndcg: dict[str, Values]) -> tuple[Comparison, ...]:
    """The last fused stage against the earlier fused ones and the best single stage."""
    fused = [stage for stage in stages if stage.kind == "fused"]
    if not fused:
        return ()
    last = fused.pop()
    single = [stage for stage in stages if stage.kind == "single"]
    against = [*fused, max(single, key=lambda stage: stage.ndcg)] if single else fused
    return tuple(
        Comparison(last.name, other.name, paired_ci(ndcg[last.name], ndcg[other.name]))
        for other in against
    )


def _sizes(split: Split) -> dict[str, Any]:
    train, queries, targets = split.train, split.queries, split.targets
    return {
        "users": len(queries),
        "items": queries.n_items,
        "train_users": len(train.histories),
        "train_events": len(train.histories.items),
        "targets": len(targets.items),
        "unreachable": _unreachable(queries, targets),
    }


def _unreachable(queries: Queries, targets: Ragged) -> int:
    """Users none of whose targets may be recommended to them."""
    barred = np.zeros(len(targets.items), dtype=np.bool_)
    if queries.exclude is not None:
        key = targets.row_of() * queries.n_items + targets.items
        seen = queries.exclude.row_of() * queries.n_items + queries.exclude.items
        barred |= np.isin(key, seen)
    if queries.allow is not None:
        barred |= ~queries.allow[targets.items]
    reachable = np.bincount(targets.row_of(), weights=~barred, minlength=len(targets))
    return int((reachable == 0).sum())
