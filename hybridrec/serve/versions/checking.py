"""What a version has to show before it may answer: lists as long as they were, of sound scores."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

import numpy as np

from hybridrec.checks import HybridrecError, StorageError
from hybridrec.protocols import ReadsContext
from hybridrec.serve.answers.answering import answer
from hybridrec.serve.answers.asking import Answer, Ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hybridrec.serve.config import ServeConfig
    from hybridrec.serve.versions.loaded import Loaded

__all__ = ["CheckError", "check", "warm"]

_K = 10
_WARM = 8
"""Queries that a new version is warmed with."""


class CheckError(StorageError):
    """A saved model is whole, and its answers are not fit to be served."""


def warm(loaded: Loaded, queries: Sequence[Sequence[str]], batch: int) -> None:
    """Answer a few real queries, one at a time and together, so that nobody waits for compilers.

    Args:
        loaded: the version.
        queries: histories that were asked; where there are none, popular items make some.
        batch: as many as are answered together at most.

    Raises:
        CheckError: it cannot answer one.
    """
    asks = _asks(loaded, [*queries[:_WARM]] or _histories(loaded))
    together = [asks[place % len(asks)] for place in range(batch)]
    _answers(loaded, [*asks[:1], *_asks(loaded, [()])], batch)
    _answers(loaded, together, batch)
    loaded.user_code("")  # makes the table of users
    # What has been compiled and read by now is not what recall takes from now on.
    loaded.pace.clear()
    _answers(loaded, asks[:1], batch)
    _answers(loaded, together, batch)


def _histories(loaded: Loaded) -> list[tuple[str, ...]]:
    """Histories made of the popular items, longer and longer."""
    (popular,) = _answers(loaded, _asks(loaded, [()]), batch=1)
    items = [str(each.item) for each in popular.items[:_WARM]]
    return [tuple(items[: place + 1]) for place in range(len(items))]


def _asks(loaded: Loaded, histories: Sequence[Sequence[str]]) -> list[Ask]:
    """Asks for lists by these histories; of what the reranker reads beside them, nothing."""
    reranker = loaded.pipeline.reranker
    columns = reranker.context_columns if isinstance(reranker, ReadsContext) else ()
    context: dict[str, object] = dict.fromkeys(columns, "")
    return [
        Ask(history=tuple(history), k=_K, lenient=True, context=context) for history in histories
    ]


def check(
    new: Loaded, old: Loaded | None, queries: Sequence[Sequence[str]], config: ServeConfig
) -> None:
    """Hold the answers of a new version to the kept queries against the old one's.

    Every list holds different items that are not retired, with finite scores, and is no shorter
    than the old one's, as far as there are items. On average as many of the old one's items are on
    it as ``config.health_overlap`` says.

    Raises:
        CheckError: one of that is not so; says which.
    """
    histories = [(), *(queries or _histories(new))]
    asks = _asks(new, histories)
    answers = _answers(new, asks, config.batch)
    before = None
    if old is not None:
        with contextlib.suppress(CheckError):  # one that cannot answer is no measure
            before = _answers(old, _asks(old, histories), config.batch)
    for place, found in enumerate(answers):
        least = 1 if before is None else len(before[place].items)
        _check_list(new, found, min(least, _possible(new, asks[place])), place)
    if before is None or not queries:
        return
    shared = [_overlap(now, then) for now, then in zip(answers[1:], before[1:], strict=True)]
    overlap = float(np.mean(shared))
    if overlap < config.health_overlap:
        raise CheckError(
            f"version {new.version} shares {overlap:.3f} of its items with the one before over "
            f"{len(queries)} kept queries; wanted health_overlap = {config.health_overlap:g}: "
            "look at it, then load it with a lower health_overlap, or save a better one"
        )


def _answers(loaded: Loaded, asks: Sequence[Ask], batch: int) -> list[Answer]:
    found: list[Answer] = []
    for start in range(0, len(asks), batch):
        try:
            outcomes = answer(loaded, asks[start : start + batch])
        except Exception as error:  # whatever it is, requests would meet it too
            raise CheckError(f"version {loaded.version} cannot answer: {error!r}") from error
        for outcome in outcomes:
            if isinstance(outcome, HybridrecError):
                raise CheckError(
                    f"version {loaded.version} cannot answer a kept query: {outcome}"
                ) from outcome
            found.append(outcome)
    return found


def _possible(loaded: Loaded, ask: Ask) -> int:
    """Items that can be answered at all."""
    taken = loaded.engine.retired.copy()
    codes = loaded.item_codes(ask.history)
    taken[codes[codes >= 0]] = True
    return int((~taken).sum())


def _check_list(loaded: Loaded, found: Answer, least: int, place: int) -> None:
    """Refuse a list that is short, holds an item twice, or has scores that are none."""
    scores = [each.score for each in found.items]
    items = [each.item for each in found.items]
    wrong = None
    if len(items) < least:
        wrong = f"has {len(items)} items; wanted {least}"
    elif len(set(items)) < len(items):
        wrong = "holds an item twice"
    elif loaded.engine.retired[loaded.item_codes(items)].any():
        wrong = "holds a retired item"
    elif any(score is None or not math.isfinite(score) for score in scores):
        wrong = f"has a score that is no finite number, among {scores}"
    if wrong is not None:
        raise CheckError(f"version {loaded.version}: the answer to kept query {place} {wrong}")


def _overlap(now: Answer, then: Answer) -> float:
    """The share of the shorter list's items that both hold; 1 where it is empty."""
    ours, theirs = ({each.item for each in found.items} for found in (now, then))
    return len(ours & theirs) / max(1, min(len(ours), len(theirs))) if ours and theirs else 1.0
