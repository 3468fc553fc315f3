"""The report as one HTML page that needs nothing else: no script, no font, no network."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from hybridrec.checks import InputError, InputTypeError, whole_number
from hybridrec.evaluation import page_sections as sections
from hybridrec.evaluation.page_examples import chosen, example
from hybridrec.evaluation.page_style import STYLE
from hybridrec.evaluation.page_tables import interval, p_value, signed
from hybridrec.evaluation.report import Report, last_stage

if TYPE_CHECKING:
    from hybridrec.data.dataset import Dataset
    from hybridrec.data.split import Split

# Nothing may be loaded and nothing run, whatever a title holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def report_page(
    report: Report,
    split: Split,
    *,
    catalogue: Dataset | None = None,
    title: str = "Evaluation",
    examples: int = 6,
    seed: int = 0,
) -> str:
    """The report as an HTML page: tables, plots, and a few users with what each stage told them.

    Args:
        report: what :func:`hybridrec.evaluate` found, best with ``slices=True``.
        split: what it was asked about.
        catalogue: whose ids and texts name the items; ``split.train`` where it is None.
        title: of the page.
        examples: users to show by name, with their histories; 0 leaves all user data out.
        seed: of the draw of these.

    Raises:
        InputTypeError: ``report`` is no Report.
        InputError: ``split`` or ``catalogue`` is about other queries or items.
    """
    if not isinstance(report, Report):
        raise InputTypeError(f"report is {type(report).__name__}; wanted what evaluate() returns")
    if len(split.queries) != len(report.users):
        raise InputError(
            f"split has {len(split.queries)} queries and the report is about {len(report.users)}; "
            "wanted the split that was evaluated"
        )
    catalogue = split.train if catalogue is None else catalogue
    if catalogue.n_items != split.queries.n_items:
        raise InputError(
            f"catalogue has {catalogue.n_items} items and the queries are about "
            f"{split.queries.n_items}: pass the data set that the model was fitted on"
        )
    number = whole_number("examples", examples)
    parts = [_subject(report), _summary(report)]
    parts += [draw(report) for draw in sections.ALL]
    if number:
        parts.append(_examples(report, split, catalogue, number, seed))
    parts.append(_footer(report))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<header><h1>{escape(title)}</h1></header>"
        + "\n".join(part for part in parts if part)
        + "</main></body></html>\n"
    )


def _subject(report: Report) -> str:
    data = report.data
    words = (
        f"{data['queries']:,} queries of {data['users']:,} users over {data['items']:,} items; "
        f"trained on {data['train_events']:,} events of {data['train_users']:,} users. Full "
        f"ranking over the catalogue, lists {report.depth} deep."
    )
    if lost := data["unreachable"]:
        words += (
            f" For {lost:,} queries no target may be recommended: a miss for every stage, counted."
        )
    return f"<p class=soft>{words}</p>"


def _summary(report: Report) -> str:
    """The figures that matter most, as tiles."""
    last, best = last_stage(report.stages), sections.best_single(report)
    low, high = last.ndcg_ci
    tiles = [(f"NDCG@{report.k} of “{last.name}”", f"{last.ndcg:.4f}", f"{low:.4f} to {high:.4f}")]
    for row in report.deltas:
        base = next(stage.ndcg for stage in report.stages if stage.name == row.against)
        gain = signed(row.delta.mean / base, "+.1%") if base else signed(row.delta.mean)
        note = f"{signed(row.delta.mean)} [{interval(row.delta)}], p {p_value(row.p_holm)}"
        label = f"over “{row.against}”"
        if best is not None and row.against == best.name:
            label += ", the best single stage"
        tiles.append((label, gain, note))
    tiles.append((f"Recall@{report.depth}, the ceiling", f"{last.recall:.4f}", ""))
    tiles.append(("time a query", f"{last.ms_per_user:.2f} ms", "recall included"))
    return (
        "<dl class=tiles>"
        + "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>"
            for name, value, note in tiles
        )
        + "</dl>"
    )


def _examples(report: Report, split: Split, catalogue: Dataset, n: int, seed: int) -> str:
    last, best = last_stage(report.stages), sections.best_single(report)
    rival = None if best is None or best is last else best.name

    def item(code: int) -> str:
        text = "" if catalogue.texts is None else catalogue.texts[code]
        return text or f"item {catalogue.items.ids[code]}"

    def user(row: int) -> str:
        code = split.queries.users[row]
        return "Somebody unknown" if code < 0 else f"User {split.train.users.ids[code]}"

    return sections.section(
        "Example users",
        f"The first places of every stage; ✓ marks what the user then took. Seed {seed}.",
        "".join(
            example(shown, report, split, item, user(shown.row))
            for shown in chosen(report, last.name, rival, n, seed)
        ),
    )


def _footer(report: Report) -> str:
    from hybridrec import __version__

    return (
        f"<footer>hybridrec {escape(__version__)}. Intervals: percentile bootstrap over users, "
        "2,000 draws. Tests: two-sided, signs of the paired differences drawn user by user. "
        f"HR, NDCG, MRR and MAP look at {report.k} places and are defined as in trec_eval.</footer>"
    )
