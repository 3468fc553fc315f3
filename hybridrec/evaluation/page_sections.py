"""The sections of the report page that draw what the stages are worth."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from hybridrec.evaluation import svg
from hybridrec.evaluation.compare import paired_ci
from hybridrec.evaluation.lists import HEAD_SHARE
from hybridrec.evaluation.page_tables import (
    DASH,
    comparison_table,
    curve_table,
    list_table,
    p_value,
    share,
    signed,
    slice_table,
    stage_table,
    table,
    tone,
)
from hybridrec.evaluation.report import last_stage

if TYPE_CHECKING:
    from hybridrec.evaluation.compare import Delta
    from hybridrec.evaluation.report import Report, StageResult


@dataclass(frozen=True)
class _Step:
    """What ``stage`` adds to ``before``, the stage whose order or candidates it started from."""

    stage: StageResult
    before: StageResult
    delta: Delta


def stages(report: Report) -> str:
    """The table of all metrics, NDCG with its intervals, and what the lists are like."""
    last = last_stage(report.stages)
    bars = [
        svg.Bar(stage.name, None, stage.ndcg, *stage.ndcg_ci, f"{stage.ndcg:.4f}")
        for stage in report.stages
    ]
    axis = f"NDCG@{report.k}, mean and 95 % interval"
    return section(
        "Stages",
        "Each stage as if it were all there is. Everything behind the recall stage orders the "
        "candidates that it found.",
        stage_table(report, last)
        + figure(svg.intervals("NDCG of each stage with its interval", bars, axis), "")
        + "<h3>What the lists are like</h3>"
        + list_table(report, last)
        + "<p class=soft>Coverage: the share of the catalogue that anybody is shown. Novelty: how "
        "surprising an item is by its popularity. Gini: 0 where every item is shown as often, 1 "
        "where few are shown always. Long tail: recommendations outside the most popular items "
        f"that hold {HEAD_SHARE:.0%} of the training events.</p>",
    )


def steps(report: Report) -> str:
    """What each stage adds to the one that it starts from, and the comparisons."""
    made = _steps(report)
    if not made:
        return ""
    bars = [
        svg.Bar(
            f"{step.stage.name} ← {step.before.name}",
            step.before.ndcg,
            step.stage.ndcg,
            step.before.ndcg + step.delta.low,
            step.before.ndcg + step.delta.high,
            f"{signed(step.delta.mean)} {_word(step.delta)}",
            tone(step.delta),
        )
        for step in made
    ]
    drawing = svg.intervals("What each stage adds or loses", bars, f"NDCG@{report.k}")
    body = figure(
        drawing,
        "A bar goes from the NDCG before the stage to that behind it; the "
        "whisker is the 95 % interval of the difference, paired over users.",
    )
    if report.deltas:
        body += "<h3>Comparisons</h3>" + comparison_table(report.k, report.deltas)
        body += (
            "<p class=soft>p is from a randomisation test, and “Holm” corrects it for the number "
            "of comparisons. The best single stage is chosen on these very queries, which favours "
            "it.</p>"
        )
    return section(
        "What each stage adds or loses",
        "The recall stage is held against the best recaller, what orders its candidates against "
        "its own order, and a further fusion against the one before it.",
        body,
    )


def depth(report: Report) -> str:
    """Recall over depth: what is there to be ordered."""
    shown = [stage for stage in report.stages if stage.kind in ("single", "recall")]
    series = [(stage.name, stage.recall_by_depth) for stage in shown]
    if not series:
        return ""
    drawing = svg.lines(
        "Recall of each recaller and of the recall stage by depth", series, "depth", "recall"
    )
    return section(
        "Recall ceiling",
        "The share of the targets that a list of so many candidates holds: nothing behind the "
        "recall stage can find more.",
        figure(drawing, "")
        + f"<details><summary>The same in figures</summary>{curve_table(report)}</details>",
    )


def oracle(report: Report) -> str:
    """How much of what a perfect order would give is reached."""
    rows = []
    for stage in report.stages:
        reached = share(stage.ndcg / stage.oracle) if stage.oracle else DASH
        rows.append(([stage.name, f"{stage.ndcg:.4f}", f"{stage.oracle:.4f}", reached], ""))
    bars = [
        svg.Bar(
            stage.name,
            stage.ndcg,
            stage.oracle,
            stage.oracle,
            stage.oracle,
            f"{stage.ndcg:.3f} of {stage.oracle:.3f}",
        )
        for stage in report.stages
    ]
    heads = ["stage", f"NDCG@{report.k}", "in the best order", "reached"]
    return section(
        "Oracle order",
        f"What the first {report.depth} places of each list would be worth with their targets on "
        "top: the room that is left for a better order of the same candidates.",
        figure(
            svg.intervals("NDCG, and NDCG in the best order", bars, f"NDCG@{report.k}", zero=True),
            "From what the order is worth to what the best order would be.",
        )
        + f"<details><summary>The same in figures</summary>{table('', heads, rows)}</details>",
    )


def latency(report: Report) -> str:
    """Time against NDCG, and the price of a point."""
    points = [
        svg.Point(stage.name, stage.ms_per_user, stage.ndcg, *stage.ndcg_ci)
        for stage in report.stages
    ]
    rows = []
    before = {step.stage.name: step for step in _steps(report)}
    for stage in report.stages:
        step = before.get(stage.name)
        cells = [stage.name, f"{stage.ms_per_user:.2f}", _per_point(stage.ms_per_user, stage.ndcg)]
        if step is not None:
            more = stage.ms_per_user - step.before.ms_per_user
            cells += [step.before.name, signed(more, "+.2f")]
            cells.append(_per_point(more, step.delta.mean))
        else:
            cells += [DASH] * 3
        rows.append((cells, ""))
    heads = ["stage", "ms", "ms a point", "compared with", "ms more", "ms a further point"]
    drawing = svg.scatter(
        "Time against NDCG", points, "milliseconds a query, logarithmic", f"NDCG@{report.k}"
    )
    return section(
        "Time for a point of NDCG",
        "Time of a query when many are asked at once, everything before the stage included. A "
        "point is 0.01 of NDCG.",
        figure(drawing, "") + table("", heads, rows),
    )


def slices(report: Report) -> str:
    """NDCG on each slice, and the gain there; nothing where no slices were asked for."""
    if not report.slices:
        return ""
    body = slice_table(report)
    against = max((len(part.deltas) for part in report.slices), default=0)
    for place in range(against):
        rows = [(part, part.deltas[place]) for part in report.slices if len(part.deltas) > place]
        best = place == against - 1 and any(s.kind == "single" for s in report.stages)
        name = "the best single stage of the slice" if best else f"“{rows[0][1].against}”"
        bars = [
            svg.Bar(
                f"{part.label} ({part.n:,})",
                None,
                row.delta.mean,
                row.delta.low,
                row.delta.high,
                f"{signed(row.delta.mean)}, p {p_value(row.p_holm)}"
                + (f", {row.against}" if best else ""),
                tone(row.delta),
            )
            for part, row in rows
        ]
        heading = f"“{rows[0][1].stage}” over {name}"
        drawing = svg.intervals(heading, bars, f"Δ NDCG@{report.k}, 95 % interval", zero=True)
        body += f"<h3>{escape(heading)}</h3>" + figure(drawing, "")
    return section(
        "Slices",
        "The same queries by length of history, by training events of the target, and by whether "
        "the user has training events at all. In brackets: queries. Colour tells intervals that "
        "leave 0 out; p is corrected (Holm) over all slices.",
        body,
    )


def _steps(report: Report) -> list[_Step]:
    """Each stage behind the recallers with the one that it is held against."""
    best = best_single(report)
    recall: StageResult | None = None
    fused: StageResult | None = None
    found: list[_Step] = []
    for stage in report.stages:
        before = {"single": None, "recall": best, "llm": recall, "fused": fused or recall}[
            stage.kind
        ]
        if before is not None:
            a, b = report.per_user[stage.name], report.per_user[before.name]
            found.append(_Step(stage, before, paired_ci(a, b, groups=report.users)))
        if stage.kind == "recall":
            recall = stage
        elif stage.kind == "fused":
            fused = stage
    return found


def best_single(report: Report) -> StageResult | None:
    """The recaller with the best NDCG; None without recallers."""
    single = [stage for stage in report.stages if stage.kind == "single"]
    return max(single, key=lambda stage: stage.ndcg) if single else None


def _per_point(ms: float, ndcg: float) -> str:
    """Milliseconds for 0.01 of NDCG; a dash where there is no gain, or nothing to pay."""
    return f"{ms / (100 * ndcg):.3g}" if ndcg > 0 and ms > 0 else DASH


def _word(delta: Delta) -> str:
    return {"gain": "gain", "loss": "loss", "even": "unclear"}[tone(delta)]


def section(heading: str, lead: str, body: str) -> str:
    """A card with a heading and a sentence."""
    return f"<section><h2>{escape(heading)}</h2><p class=soft>{escape(lead)}</p>{body}</section>"


def figure(drawing: str, caption: str) -> str:
    """A drawing that scrolls where the window is narrow."""
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><div class="scroll" tabindex="0">{drawing}</div>{words}</figure>'


ALL = (stages, steps, depth, oracle, latency, slices)
"""The sections, in the order of the page."""
