"""A few users of the report page: what they did, took next, and were told by each stage."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from hybridrec.data.split import Split
    from hybridrec.evaluation.report import Report

_HISTORY = 8
_PLACES = 5
_TARGETS = 5
_CUT = 60


@dataclass(frozen=True)
class Example:
    """A query to show.

    Attributes:
        row: of the split.
        why: how it came to be chosen.
    """

    row: int
    why: str


def chosen(report: Report, last: str, best: str | None, n: int, seed: int) -> list[Example]:
    """The query where ``last`` gains most over ``best``, that where it loses most, and drawn ones.

    Args:
        report: of all queries.
        last: the stage whose list is served.
        best: the stage that it is held against; None leaves the first two out.
        n: how many in all.
        seed: of the draw, and of the one among equals.
    """
    generator = np.random.default_rng(seed)
    found: list[Example] = []
    if best is not None:
        gain = report.per_user[last] - report.per_user[best]
        for end, there, words in (
            (gain.max(), gain.max() > 0, "the greatest gain"),
            (gain.min(), gain.min() < 0, "the greatest loss"),
        ):
            if there:
                row = int(generator.choice(np.flatnonzero(gain == end)))
                found.append(Example(row, f"{words} of “{last}” over “{best}”"))
    rest = np.setdiff1d(np.arange(len(report.users)), [example.row for example in found])
    drawn = generator.permutation(rest)[: max(0, n - len(found))]
    return [*found, *(Example(int(row), "drawn at random") for row in drawn)][:n]


def example(
    shown: Example, report: Report, split: Split, item: Callable[[int], str], user: str
) -> str:
    """One of them as HTML.

    Args:
        shown: which, and why.
        report: of all queries.
        split: the queries.
        item: the text of an item, by code.
        user: what to call the user.
    """
    queries, targets = split.queries, split.targets
    start, stop = queries.histories.indptr[shown.row : shown.row + 2]
    history = queries.histories.items[start:stop][::-1][:_HISTORY].tolist()
    first, end = targets.indptr[shown.row : shown.row + 2]
    wanted = targets.items[first:end].tolist()
    rest = int(stop - start) - _HISTORY
    more = f"<p class=soft>and {rest} before</p>" if rest > 0 else ""
    order = "newest first" if queries.ordered else "in no order"
    return (
        f"<article><h3>{escape(user)} <span class=soft>· {escape(shown.why)}</span></h3>"
        f"<div class=ask><div><div class=soft>History, {order}</div>"
        f"<ol>{''.join(f'<li>{_named(item(code))}</li>' for code in history)}</ol>{more}</div>"
        f"<div><div class=soft>Then took</div><ol>"
        f"{''.join(f'<li><b>{_named(item(code))}</b></li>' for code in wanted[:_TARGETS])}</ol>"
        f"</div></div>{_lists(shown.row, report, set(wanted), item)}</article>"
    )


def _lists(row: int, report: Report, wanted: set[int], item: Callable[[int], str]) -> str:
    """The first places of every stage, one column a stage; targets are marked."""
    heads, columns = [], []
    for stage in reversed(report.stages):  # the answer that is served comes first
        items = report.lists[stage.name][row].tolist()
        ranks = [place for place, code in enumerate(items, start=1) if code in wanted]
        where = f"rank {ranks[0]}" if ranks else f"not in {report.k}"
        heads.append(f"<th scope=col>{escape(stage.name)}<br><span class=soft>{where}</span></th>")
        columns.append(items[:_PLACES])
    body = []
    for place in range(min(_PLACES, report.k)):
        cells = []
        for items in columns:
            code = items[place]
            text = "" if code < 0 else _named(item(code))
            hit = code in wanted
            cells.append(f"<td class=hit>✓ {text}</td>" if hit else f"<td>{text}</td>")
        body.append(f"<tr><th scope=row>{place + 1}</th>{''.join(cells)}</tr>")
    return (
        '<div class="scroll" tabindex="0"><table class=lists><thead><tr><th scope=col>rank</th>'
        f"{''.join(heads)}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _named(text: str) -> str:
    """Text from outside, escaped, in a direction of its own, cut to what a cell can hold."""
    short = text if len(text) <= _CUT else text[: _CUT - 1] + "…"
    return f"<bdi>{escape(short)}</bdi>"
