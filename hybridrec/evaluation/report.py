"""The stage table: what each stage is worth alone, and what the last one adds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hybridrec.evaluation.compare import Delta
    from hybridrec.evaluation.lists import ListMetrics
    from hybridrec.evaluation.metrics import Metrics, Values
    from hybridrec.ragged import Items

Kind = Literal["single", "recall", "llm", "fused"]

_NOTES: Mapping[Kind, str] = {
    "single": "",
    "recall": "(ceiling of everything below)",
    "llm": "(the cross-encoder ordering what it is given)",
    "fused": "",
}


_JSON_DEPTHS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class StageResult:
    """The means of one stage over all queries.

    Attributes:
        name: as the stage calls itself.
        kind: one recaller ("single"), their union ("recall"), the cross-encoder's own order
            ("llm"), or a learned fusion ("fused").
        recall: recall@depth.
        hr: hit rate@k.
        ndcg: NDCG@k.
        ndcg_ci: the ends of its 95 % bootstrap interval.
        mrr: mean reciprocal rank@k.
        map: mean average precision@k.
        lists: what the first k places of all lists are like together.
        oracle: NDCG@k if the targets among the first ``depth`` places stood on top.
        recall_by_depth: recall@1, recall@2, ... recall@depth.
        ms_per_user: wall time from a query to this list, in milliseconds.
    """

    name: str
    kind: Kind
    recall: float
    hr: float
    ndcg: float
    ndcg_ci: tuple[float, float]
    mrr: float
    map: float
    lists: ListMetrics
    oracle: float
    recall_by_depth: tuple[float, ...]
    ms_per_user: float


@dataclass(frozen=True)
class Comparison:
    """NDCG@k of ``stage`` minus that of ``against``, paired over the same users.

    Attributes:
        stage: the one that should be better.
        against: the other.
        delta: the mean difference and its 95 % bootstrap interval.
        p: of a two-sided randomisation test, for this comparison alone.
        p_holm: the same, corrected for all the comparisons of the table it stands in.
    """

    stage: str
    against: str
    delta: Delta
    p: float
    p_holm: float


@dataclass(frozen=True)
class Slice:
    """The same figures over a part of the targets.

    Attributes:
        group: what the slices beside it divide by: "history", "target", "user".
        label: which part: "6-20 events", "rare (1-5 training events)", "cold".
        n: queries with a target in this part.
        ndcg: stage name -> mean NDCG@k over them, where the targets of the part alone count.
        deltas: the last fused stage against each earlier one and the single stage that is best on
            this slice; ``p_holm`` corrects over all slices.
    """

    group: str
    label: str
    n: int
    ndcg: Mapping[str, float]
    deltas: tuple[Comparison, ...]


@dataclass(frozen=True, eq=False)
class Report:
    """What ``evaluate`` found; ``print`` it for the table, ``to_json`` it for the record.

    Attributes:
        k: places that HR, NDCG, MRR, MAP and the list metrics look at.
        depth: places that recall looks at.
        data: sizes of what was evaluated; ``unreachable`` counts the queries none of whose targets
            may be recommended (excluded or not allowed), a miss for every stage.
        stages: in the order the engine runs them.
        deltas: the last fused stage against each earlier one and the best single stage.
        slices: the parts of the targets, where they were asked for.
        users: (B,) int32, the user of each query, -1 unknown: ``groups`` of the functions of
            :mod:`hybridrec.evaluation.compare`, for comparisons of your own.
        metrics: stage name -> the metrics@k of each query.
        lists: stage name -> (B, k) int32, the items it put first.
    """

    k: int
    depth: int
    data: Mapping[str, Any]
    stages: tuple[StageResult, ...]
    deltas: tuple[Comparison, ...]
    slices: tuple[Slice, ...]
    users: Items
    metrics: Mapping[str, Metrics]
    lists: Mapping[str, Items]

    @property
    def per_user(self) -> dict[str, Values]:
        """Stage name -> (B,) float64 NDCG@k of each query."""
        return {name: metrics.ndcg for name, metrics in self.metrics.items()}

    def to_json(self) -> dict[str, Any]:
        """The report as plain dicts, lists and numbers, without what is known of each user."""
        return {
            "data": dict(self.data),
            "stages": [self._stage_json(stage) for stage in self.stages],
            "deltas": [self._delta_json(row) for row in self.deltas],
            "slices": [
                {
                    "group": part.group,
                    "label": part.label,
                    "n": part.n,
                    f"ndcg@{self.k}": dict(part.ndcg),
                    "deltas": [self._delta_json(row) for row in part.deltas],
                }
                for part in self.slices
            ],
        }

    def _stage_json(self, stage: StageResult) -> dict[str, Any]:
        k, depths = self.k, sorted({*_JSON_DEPTHS, self.depth})
        return {
            "name": stage.name,
            "kind": stage.kind,
            f"recall@{self.depth}": stage.recall,
            f"hr@{k}": stage.hr,
            f"ndcg@{k}": stage.ndcg,
            f"ndcg@{k}_ci": list(stage.ndcg_ci),
            f"mrr@{k}": stage.mrr,
            f"map@{k}": stage.map,
            **{f"{name}@{k}": _number(value) for name, value in asdict(stage.lists).items()},
            f"oracle_ndcg@{k}": stage.oracle,
            "recall_by_depth": {
                str(depth): stage.recall_by_depth[depth - 1]
                for depth in depths
                if depth <= self.depth
            },
            "ms_per_user": stage.ms_per_user,
        }

    def _delta_json(self, row: Comparison) -> dict[str, Any]:
        ndcg = f"ndcg@{self.k}"
        return {
            "stage": row.stage,
            "against": row.against,
            ndcg: row.delta.mean,
            f"{ndcg}_ci": [row.delta.low, row.delta.high],
            "p": row.p,
            "p_holm": row.p_holm,
        }

    def __str__(self) -> str:
        lines = [*self._table(), *self._delta_lines(), *self._slice_lines()]
        if lost := self.data.get("unreachable", 0):
            who = "users" if self.data.get("users") == self.data.get("queries") else "queries"
            lines += ["", f"{lost} {who}: no target may be recommended, a miss for every stage"]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        names = ("stage", *(stage.name for stage in self.stages))
        wide = max(24, *map(len, names))
        heads = (f"Recall@{self.depth}", f"HR@{self.k}", f"NDCG@{self.k}")
        columns = [f"{head:>{max(7, len(head))}}" for head in heads]
        lines = ["  ".join((f"{'stage':<{wide}}", *columns, f"{'[95 % CI]':<16}", "ms/user"))]
        for stage in self.stages:
            values = zip((stage.recall, stage.hr, stage.ndcg), columns, strict=True)
            cells = [
                f"{stage.name:<{wide}}",
                *(f"{value:>{len(column)}.4f}" for value, column in values),
                f"[{stage.ndcg_ci[0]:.4f}, {stage.ndcg_ci[1]:.4f}]",
                f"{stage.ms_per_user:>7.2f}",
                _NOTES[stage.kind],
            ]
            lines.append("  ".join(cells).rstrip())
        return lines

    def _delta_lines(self) -> list[str]:
        if not self.deltas:
            return []
        wide = max(len(row.against) for row in self.deltas)
        return [
            "",
            f"Δ NDCG@{self.k} of {self.deltas[0].stage!r}, paired over users [95 % CI], "
            "p corrected by Holm",
            *(
                f"  against {row.against:<{wide}}  {row.delta.mean:+.4f}  "
                f"[{row.delta.low:+.4f}, {row.delta.high:+.4f}]  p {_p(row.p_holm)}"
                for row in self.deltas
            ),
        ]

    def _slice_lines(self) -> list[str]:
        if not self.slices:
            return []
        last = last_stage(self.stages).name
        names = [f"{part.group}: {part.label}" for part in self.slices]
        wide = max(map(len, names))
        head = f"NDCG@{self.k} of {last!r} by slice, with its queries; Δ against others [95 % CI]"
        lines = ["", head]
        for name, part in zip(names, self.slices, strict=True):
            lines.append(f"  {name:<{wide}}  {part.n:>7}  {part.ndcg[last]:.4f}")
            lines[-1] += "".join(
                f"   {row.delta.mean:+.4f} [{row.delta.low:+.4f}, {row.delta.high:+.4f}] "
                f"{row.against}"
                for row in part.deltas
            )
        return lines


def last_stage(stages: Sequence[StageResult]) -> StageResult:
    """The stage whose figures stand for the engine: the last fused one, or the last of all."""
    fused = [stage for stage in stages if stage.kind == "fused"]
    return (fused or list(stages))[-1]


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if value != value else value
