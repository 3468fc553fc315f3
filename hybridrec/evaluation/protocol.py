"""The protocol: every stage of an engine on the same held-out users, over the full catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, get_args, runtime_checkable

import numpy as np

from hybridrec.checks import (
    InputError,
    InputTypeError,
    codes,
    frozen,
    one_of,
    real_number,
    whole_number,
)
from hybridrec.data.split import Split
from hybridrec.evaluation.compare import bootstrap_ci
from hybridrec.evaluation.lists import list_metrics
from hybridrec.evaluation.metrics import TargetRanks
from hybridrec.evaluation.report import Kind, Report, StageResult
from hybridrec.evaluation.slices import compared, corrected, sliced

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hybridrec.candidates import Candidates, Queries
    from hybridrec.evaluation.metrics import Metrics
    from hybridrec.ragged import Items, Ragged

_BATCH = 8192


@dataclass(frozen=True, eq=False)
class StageList:
    """What one stage of an engine answered.

    Attributes:
        name: "popularity", "als", "blend (recall stage)", "fused, with LLM", ...
        candidates: B ranked lists.
        seconds: wall time from the queries to these lists, earlier stages included.
        kind: one recaller ("single"), their union ("recall"), the cross-encoder's own order
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


def evaluate(
    engine: Staged,
    split: Split,
    k: int = 10,
    *,
    depth: int | None = None,
    slices: bool = False,
) -> Report:
    """Recall ceiling, each stage alone and the fused list, with intervals, on ``split``.

    Full ranking over the catalogue, means over queries. The last fused stage is compared, query by
    query, with each fused stage before it and with the single stage that has the best NDCG@k on
    these very queries (a choice that favours the single stage, so the gain is not flattered).
    Where a user is asked more than once, intervals and tests draw users, not queries.

    Args:
        engine: fitted on ``split.train``.
        split: the held-out queries and their targets.
        k: places that all metrics but recall look at.
        depth: places that recall looks at, and how deep the lists are asked for; at least ``k``.
            None takes 100, or ``k`` where that is more.
        slices: also look at parts of the targets: by length of history, by popularity, and, where
            ``split`` has users the training data lack, warm and cold users apart.

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
    queries = split.queries
    if not len(queries):
        raise InputError(
            "split has no queries; wanted at least one: split data in which users have two events "
            "or more"
        )
    codes("split.targets.items", split.targets.items, queries.n_items)
    answers = _answers(engine, split, k, depth)
    metrics = {name: answer.ranks.metrics(k) for name, answer in answers.items()}
    kinds = {name: answer.kind for name, answer in answers.items()}
    lists = {name: answer.top for name, answer in answers.items()}
    ndcg = {name: values.ndcg for name, values in metrics.items()}
    return Report(
        k=k,
        depth=depth,
        data=_sizes(split),
        stages=tuple(
            _summary(name, answer, metrics[name], split, k, depth)
            for name, answer in answers.items()
        ),
        deltas=corrected(compared(kinds, ndcg, queries.users)),
        slices=sliced(split, kinds, lists, k) if slices else (),
        users=queries.users,
        metrics=metrics,
        lists=lists,
    )


@dataclass(frozen=True, eq=False)
class _Answer:
    """What is kept of a stage's lists: (B, k) items on top, and where the targets stand."""

    kind: Kind
    seconds: float
    top: Items
    ranks: TargetRanks


def _answers(engine: Staged, split: Split, k: int, depth: int) -> dict[str, _Answer]:
    """Stage name -> its answer. Queries are asked in parts: memory does not grow with them."""
    parts: dict[str, list[_Answer]] = {}
    asked = 0
    for asked, (place, queries) in enumerate(split.queries.batches(_BATCH), start=1):
        targets = split.targets.select(np.arange(place.start, place.stop))
        for stage in engine.stage_lists(queries, depth):
            found = parts.setdefault(stage.name, [])
            if len(stage.candidates) != len(queries) or len(found) != asked - 1:
                raise InputError(
                    f"stage {stage.name!r} gave {len(stage.candidates)} lists for {len(queries)} "
                    "queries, or came twice; wanted each stage once, with a list for each query"
                )
            items = stage.candidates.items
            ranks = TargetRanks.of(items[:, :depth], targets)
            found.append(_Answer(stage.kind, stage.seconds, _top(items, k), ranks))
    if not parts:
        raise InputError("engine gave no stage; wanted at least one recaller in it")
    for name, found in parts.items():
        if len(found) != asked:
            raise InputError(
                f"stage {name!r} answered {len(found)} of {asked} parts of the queries"
            )
    return {name: _joined(found) for name, found in parts.items()}


def _top(items: Items, k: int) -> Items:
    """(B, k) the first places, with -1 where a list is shorter. A copy: the rest can be freed."""
    top = np.full((len(items), k), -1, dtype=np.int32)
    top[:, : items.shape[1]] = items[:, :k]
    return frozen(top)


def _joined(parts: Sequence[_Answer]) -> _Answer:
    sizes = np.concatenate([np.diff(part.ranks.indptr) for part in parts])
    indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    ranks = np.concatenate([part.ranks.ranks for part in parts])
    return _Answer(
        kind=parts[0].kind,
        seconds=sum(part.seconds for part in parts),
        top=frozen(np.concatenate([part.top for part in parts])),
        ranks=TargetRanks(frozen(indptr), frozen(ranks)),
    )


def _summary(
    name: str, answer: _Answer, metrics: Metrics, split: Split, k: int, depth: int
) -> StageResult:
    curve = answer.ranks.recall_by_depth(depth)
    return StageResult(
        name=name,
        kind=answer.kind,
        recall=float(curve[-1]),
        hr=float(metrics.hr.mean()),
        ndcg=float(metrics.ndcg.mean()),
        ndcg_ci=bootstrap_ci(metrics.ndcg, groups=split.queries.users),
        mrr=float(metrics.mrr.mean()),
        map=float(metrics.map.mean()),
        lists=list_metrics(answer.top, split.item_events, k),
        oracle=float(answer.ranks.oracle_ndcg(k, depth).mean()),
        recall_by_depth=tuple(curve.tolist()),
        ms_per_user=1000.0 * answer.seconds / len(metrics.ndcg),
    )


def _sizes(split: Split) -> dict[str, Any]:
    train, queries, targets = split.train, split.queries, split.targets
    known = queries.users >= 0
    return {
        "users": len(np.unique(queries.users[known])) + int((~known).sum()),
        "queries": len(queries),
        "items": queries.n_items,
        "train_users": int((train.histories.lengths > 0).sum()),
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
