"""The tables of the report page, as HTML; whatever comes from outside is escaped."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hybridrec.evaluation.compare import Delta
    from hybridrec.evaluation.report import Comparison, Kind, Report, StageResult

DASH = "\u2013"
KINDS: dict[Kind, str] = {
    "single": "recaller",
    "recall": "recall stage",
    "llm": "reranker",
    "fused": "fusion",
}


def stage_table(report: Report, last: StageResult) -> str:
    """Every metric of every stage; the row of ``last`` stands out."""
    k = report.k
    heads = ["stage", "kind", f"Recall@{report.depth}", f"HR@{k}", f"NDCG@{k}", "95 % interval"]
    heads += [f"MRR@{k}", f"MAP@{k}", "ms/query"]
    rows = [
        (
            [stage.name, KINDS[stage.kind]]
            + [f"{value:.4f}" for value in (stage.recall, stage.hr, stage.ndcg)]
            + [f"{stage.ndcg_ci[0]:.4f} to {stage.ndcg_ci[1]:.4f}"]
            + [f"{stage.mrr:.4f}", f"{stage.map:.4f}", f"{stage.ms_per_user:.2f}"],
            "best" if stage is last else "",
        )
        for stage in report.stages
    ]
    return table("Means over queries, full ranking", heads, rows, text=2)


def list_table(report: Report, last: StageResult) -> str:
    """What the lists of each stage are like as a whole."""
    heads = ["stage", "coverage", "novelty (bits)", "Gini", "long-tail share"]
    rows = []
    for stage in report.stages:
        lists = stage.lists
        cells = [stage.name, share(lists.coverage), f"{lists.novelty:.2f}"]
        cells += [f"{lists.gini:.3f}", share(lists.long_tail)]
        rows.append((cells, "best" if stage is last else ""))
    return table(f"The first {report.k} places of all lists together", heads, rows)


def comparison_table(k: int, rows: Sequence[Comparison]) -> str:
    """The gain over each stage that it is held against, and how sure it is."""
    heads = ["against", f"Δ NDCG@{k}", "95 % interval", "p", "p, Holm"]
    body = []
    for row in rows:
        cells = [row.against, signed(row.delta.mean), interval(row.delta)]
        body.append(([*cells, p_value(row.p), p_value(row.p_holm)], ""))
    caption = f"“{rows[0].stage}” minus each other stage, paired over users"
    return table(caption, heads, body)


def slice_table(report: Report) -> str:
    """NDCG of every stage on every slice, the last stage first: it is the one that serves."""
    names = [stage.name for stage in reversed(report.stages)]
    heads = ["slice", "queries", *names]
    body: list[tuple[list[str], str]] = []
    for group in dict.fromkeys(part.group for part in report.slices):
        body.append(([f"by {group}"], "group"))
        for part in report.slices:
            if part.group == group:
                cells = [part.label, f"{part.n:,}"]
                body.append((cells + [f"{part.ndcg[name]:.4f}" for name in names], ""))
    return table(f"NDCG@{report.k}", heads, body)


def curve_table(report: Report) -> str:
    """Recall of each stage at some depths."""
    steps = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    depths = sorted({depth for depth in steps if depth < report.depth} | {report.depth})
    rows = [
        ([stage.name, *(f"{stage.recall_by_depth[depth - 1]:.4f}" for depth in depths)], "")
        for stage in report.stages
    ]
    return table("Recall by depth", ["stage", *(f"@{depth}" for depth in depths)], rows)


def table(
    caption: str, heads: Sequence[str], rows: Iterable[tuple[Sequence[str], str]], *, text: int = 1
) -> str:
    """A table; the first ``text`` columns are words, each row has cells and a class."""

    def head(place: int, name: str) -> str:
        return f'<th scope="col"{_words(place, text)}>{escape(name)}</th>'

    def row(cells: Sequence[str], kind: str) -> str:
        scope = "rowgroup" if kind == "group" else "row"
        span = f' colspan="{len(heads)}"' if len(cells) < len(heads) else ""
        first = f'<th scope="{scope}"{span}>{escape(cells[0])}</th>'
        rest = "".join(
            f"<td{_words(place, text)}>{escape(cell)}</td>"
            for place, cell in enumerate(cells[1:], start=1)
        )
        return f"<tr{f' class={kind!r}' if kind else ''}>{first}{rest}</tr>"

    named = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0"><table>{named}<thead><tr>'
        + "".join(head(place, name) for place, name in enumerate(heads))
        + "</tr></thead><tbody>"
        + "".join(row(cells, kind) for cells, kind in rows)
        + "</tbody></table></div>"
    )


def _words(place: int, text: int) -> str:
    return ' class="text"' if 0 < place < text else ""


def signed(value: float, form: str = "+.4f") -> str:
    """With its sign, and a true minus."""
    return format(value, form).replace("-", "\u2212")


def interval(delta: Delta) -> str:
    """Both ends, with their signs."""
    return f"{signed(delta.low)} to {signed(delta.high)}"


def share(value: float) -> str:
    """As per cent; a dash for NaN."""
    return f"{value:.1%}" if value == value else DASH


def p_value(value: float) -> str:
    """To three digits, or that it is below what these show."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def tone(delta: Delta) -> str:
    """The class of a difference: sure to be a gain, sure to be a loss, or neither."""
    if delta.low > 0:
        return "gain"
    return "loss" if delta.high < 0 else "even"
