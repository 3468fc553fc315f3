"""The stage table: what each stage is worth alone, and what the last one adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hybridrec.evaluation.compare import Delta
    from hybridrec.evaluation.metrics import Values

Kind = Literal["single", "recall", "llm", "fused"]

_NOTES: Mapping[Kind, str] = {
    "single": "",
    "recall": "(ceiling of everything below)",
    "llm": "(the cross-encoder ordering the list above)",
    "fused": "",
}


@dataclass(frozen=True)
class StageResult:
    """The means of one stage over all users.

    Attributes:
        name: as the stage calls itself.
        kind: one recaller ("single"), their union ("recall"), the cross-encoder ordering that
            ("llm"), or a learned fusion ("fused").
        recall: recall@depth.
        hr: hit rate@k.
        ndcg: NDCG@k.
        ndcg_ci: the ends of its 95 % bootstrap interval.
        mrr: mean reciprocal rank@k.
        ms_per_user: wall time from the queries to this list, in milliseconds.
    """

    name: str
    kind: Kind
    recall: float
    hr: float
    ndcg: float
    ndcg_ci: tuple[float, float]
    mrr: float
    ms_per_user: float


@dataclass(frozen=True)
class Comparison:
    """NDCG@k of ``stage`` minus that of ``against``, paired over the same users."""

    stage: str
    against: str
    delta: Delta


@dataclass(frozen=True, eq=False)
class Report:
    """What ``evaluate`` found; ``print`` it for the table, ``to_json`` it for the record.

    Attributes:
        k: places that HR, NDCG and MRR look at.
        depth: places that recall looks at.
        data: sizes of what was evaluated; ``unreachable`` counts the users none of whose targets
            may be recommended to them (excluded or not allowed), a miss for every stage.
        stages: in the order the engine runs them.
        deltas: the last fused stage against each earlier one and the best single stage.
        per_user: stage name -> (B,) float64 NDCG@k, for comparisons of your own with
            :func:`hybridrec.evaluation.compare.paired_ci`.
    """

    k: int
    depth: int
    data: Mapping[str, Any]
    stages: tuple[StageResult, ...]
    deltas: tuple[Comparison, ...]
    per_user: Mapping[str, Values]

    def to_json(self) -> dict[str, Any]:
        """The report as plain dicts, lists and numbers, without the per-user values."""
        ndcg = f"ndcg@{self.k}"
        return {
            "data": dict(self.data),
            "stages": [
                {
                    "name": stage.name,
                    f"recall@{self.depth}": stage.recall,
                    f"hr@{self.k}": stage.hr,
                    ndcg: stage.ndcg,
                    f"{ndcg}_ci": list(stage.ndcg_ci),
                    f"mrr@{self.k}": stage.mrr,
                    "ms_per_user": stage.ms_per_user,
                }
                for stage in self.stages
            ],
            "deltas": [
                {
                    "stage": row.stage,
                    "against": row.against,
                    ndcg: row.delta.mean,
                    f"{ndcg}_ci": [row.delta.low, row.delta.high],
                }
                for row in self.deltas
            ],
        }

    def __str__(self) -> str:
        lines = [*self._table(), *self._delta_lines()]
        if lost := self.data.get("unreachable", 0):
            lines += ["", f"{lost} users: no target may be recommended, a miss for every stage"]
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
            f"Δ NDCG@{self.k} of {self.deltas[0].stage!r}, paired over users [95 % CI]",
            *(
                f"  against {row.against:<{wide}}  {row.delta.mean:+.4f}  "
                f"[{row.delta.low:+.4f}, {row.delta.high:+.4f}]"
                for row in self.deltas
            ),
        ]
