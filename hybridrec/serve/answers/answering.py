"""Asks to answers: one recall and one packed rerank for all that can share them.

A wrong ask is an error of its own, what a model cannot answer in time it answers with less, and
none of this changes what its neighbours in the batch are told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hybridrec.checks import HybridrecError
from hybridrec.fuse.calibration import PROBABILITY
from hybridrec.ranking import Stopwatch
from hybridrec.serve.answers.asked import groups, queries, read
from hybridrec.serve.answers.asking import Answer, Ranked, Reasons
from hybridrec.serve.answers.explaining import Explaining

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hybridrec.ragged import Items
    from hybridrec.ranking import Ranking
    from hybridrec.serve.answers.asked import Asked
    from hybridrec.serve.answers.asking import Ask, Degradation, Id
    from hybridrec.serve.versions.loaded import Loaded

__all__ = ["answer", "answers"]


def answer(loaded: Loaded, asks: Sequence[Ask]) -> list[Answer | HybridrecError]:
    """For each of ``asks`` an answer, or the error that says what is wrong with it."""
    found = dict(pair for part in answers(loaded, asks) for pair in part)
    return [found[place] for place in range(len(asks))]


def answers(
    loaded: Loaded, asks: Sequence[Ask]
) -> Iterator[list[tuple[int, Answer | HybridrecError]]]:
    """What ``loaded`` answers: the same that each ask would get if it came alone.

    Asks with a deadline come first. What is left of it when their turn comes decides: where recall
    would take longer they get popular items, and reranking ends when it has to.

    Yields:
        (place in ``asks``, answer) of those that are done by then, so that nobody waits for whom
        he shares no ranking with.
    """
    asked, wrong = [], []
    for place, ask in enumerate(asks):
        try:
            asked.append(read(loaded, place, ask))
        except HybridrecError as error:
            wrong.append((place, error))
    if wrong:
        yield [*wrong]
    for group in groups(asked):
        yield [
            (one.place, found) for one, found in zip(group, _answered(loaded, group), strict=True)
        ]


def _answered(loaded: Loaded, group: Sequence[Asked]) -> list[Answer | HybridrecError]:
    """Answers to a group, in its order."""
    expected = loaded.pace.expected(_work(group))
    late = [_late(one, expected) for one in group]
    found: dict[int, Answer | HybridrecError] = {}
    for too_late in (True, False):
        part = [one for one, is_late in zip(group, late, strict=True) if is_late is too_late]
        if part:
            answers = _popular(loaded, part) if too_late else _ranked(loaded, part)
            found.update(zip((one.place for one in part), answers, strict=True))
    return [found[one.place] for one in group]


def _work(group: Sequence[Asked]) -> int:
    """How much recall is asked for: rows that have a history, times how deep."""
    return sum(len(one.history) > 0 for one in group) * max(one.depth for one in group)


def _late(one: Asked, expected: float) -> bool:
    """Whether there is less time left than recall takes; without a history there is no recall."""
    deadline = one.ask.deadline
    return deadline is not None and len(one.history) > 0 and deadline.left() < expected


def _ranked(loaded: Loaded, group: Sequence[Asked]) -> list[Answer | HybridrecError]:
    """What the stages say."""
    try:
        ranking = _ranking(loaded, group)
        found = _answers(loaded, group, ranking)
    except HybridrecError as error:
        if len(group) == 1:
            return [error]
        # Somebody's fault, and nobody else's.
        return [found for one in group for found in _ranked(loaded, [one])]
    if ranking.told.any():
        spent = sum(ranking.seconds.values()) - ranking.seconds.get("rerank", 0.0)
        loaded.pace.observe(spent, _work(group))
    return [*found]


def _ranking(loaded: Loaded, group: Sequence[Asked]) -> Ranking:
    first = group[0].ask
    deadlines = [one.ask.deadline for one in group if one.ask.deadline is not None]
    return loaded.pipeline.ranking(
        queries(loaded, group),
        max(one.depth for one in group),
        deadline=min(deadlines, key=lambda deadline: deadline.left(), default=None),
        k=max(one.k for one in group),
        rerank=first.rerank,
        fuse=first.fuse,
    )


def _popular(loaded: Loaded, group: Sequence[Asked]) -> list[Answer]:
    """The popular items, as those get them of whom nothing is known."""
    asked = queries(loaded, group, told=False)
    ranking = loaded.pipeline.ranking(asked, max(one.depth for one in group))
    return _answers(loaded, group, ranking, "popularity")


def _answers(
    loaded: Loaded, group: Sequence[Asked], ranking: Ranking, degraded: Degradation | None = None
) -> list[Answer]:
    """A ranking in ids; ``degraded`` is what is known of all of the group."""
    lacking = [degraded] * len(group) if degraded else _lacking(loaded, group, ranking)
    seconds, watch, found = dict(ranking.seconds), Stopwatch(), []
    for row, (one, less) in enumerate(zip(group, lacking, strict=True)):
        codes = ranking.answer.items[row, : one.k]
        codes = codes[codes >= 0]
        why: Sequence[Reasons | None] = [None] * len(codes)
        history: tuple[tuple[Id, str | None], ...] = ()
        if one.ask.explain:
            with watch.timing("explain"):
                why = Explaining(loaded, one, ranking, row, less).reasons(codes)
            history = _history(loaded, one)
        items = [*_placed(loaded, ranking, row, codes, why), *_unplaced(loaded, one, codes)]
        found.append(
            Answer(
                version=loaded.version,
                items=tuple(items),
                popular=not ranking.told[row] and degraded is None,
                degraded=less,
                seconds=seconds,
                history=history,
            )
        )
    seconds |= watch.seconds
    return found


def _placed(
    loaded: Loaded, ranking: Ranking, row: int, codes: Items, why: Sequence[Reasons | None]
) -> list[Ranked]:
    """The first of a row, whose ``codes`` these are."""
    shown, best = slice(0, len(codes)), ranking.answer
    columns = zip(
        loaded.data.items.ids[codes].tolist(),
        best.signals.get(PROBABILITY, best.scores)[row, shown].tolist(),
        (loaded.title(code) for code in codes.tolist()),
        ranking.reranked[row, shown].tolist(),
        ranking.newcomers[row, shown].tolist(),
        why,
        strict=True,
    )
    return [Ranked(*values) for values in columns]


def _lacking(loaded: Loaded, group: Sequence[Asked], ranking: Ranking) -> list[Degradation | None]:
    """What the reranker had no time for, by row."""
    lacking: list[Degradation | None] = [None] * len(group)
    pipeline, ordered = loaded.pipeline, ranking.ordered
    if not pipeline.asks_reranker or ordered is None or not group[0].ask.rerank:
        return lacking
    reached = 0 if ranking.head is None else ranking.head.depth
    wanted = np.minimum(ordered.valid.sum(axis=1), pipeline.rerank_depth)
    for row, most in zip(np.flatnonzero(ranking.told).tolist(), wanted.tolist(), strict=True):
        if reached < most:
            lacking[row] = "fewer_reranked" if reached else "no_reranker"
    return lacking


def _unplaced(loaded: Loaded, one: Asked, codes: Items) -> list[Ranked]:
    """The candidates that no stage could place, each once, in the order they were given in."""
    if one.ask.candidates is None or one.allow is None or len(codes) == len(one.allow):
        return []
    given = loaded.item_codes(one.ask.candidates)
    left = [code for code in dict.fromkeys(given.tolist()) if code not in set(codes.tolist())]
    why = Reasons({}, {}) if one.ask.explain else None
    return [Ranked(loaded.item_id(code), None, loaded.title(code), why=why) for code in left]


def _history(loaded: Loaded, one: Asked) -> tuple[tuple[Id, str | None], ...]:
    """The history that was given, ids and titles."""
    known = [code for code in loaded.item_codes(one.ask.history).tolist() if code >= 0]
    return tuple((loaded.item_id(code), loaded.title(code)) for code in known)
