"""Splits that ask for one event at a time, each with what the user had done before it.

The model is fitted once, on ``train``; a query is all earlier events of its user, those after the
fit among them. A user with several held-out events is asked several times, and
:func:`hybridrec.evaluate` then draws its intervals over users, not over queries.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridrec.candidates import Queries
from hybridrec.checks import InputError, real_number, whole_number
from hybridrec.data.held_out import Split, instant, need_order, warn_of_repeats
from hybridrec.data.requests import MAX_HISTORY
from hybridrec.ragged import Ragged

if TYPE_CHECKING:
    from datetime import date, datetime

    from numpy.typing import NDArray

    from hybridrec.data.dataset import Dataset
    from hybridrec.ragged import Mask

logger = logging.getLogger("hybridrec")


def replay(
    data: Dataset,
    at: int | float | str | date | datetime,
    *,
    most: int | None = None,
    seed: int = 0,
    exclude_seen: bool = True,
) -> Split:
    """Learn from everything before ``at``, then ask for every later event in turn.

    What a system meets that was fitted at ``at`` and serves until the data end: histories grow, and
    users come whom it has not seen (``split.warm`` tells). Events without any before them, the
    first of a new user, are not asked; the log counts them.

    Args:
        data: a data set with times.
        at: a number in the unit of the time column; or, where that holds dates, a date (UTC
            unless it says otherwise).
        most: ask for at most so many events, drawn evenly; None asks for all. Time and memory grow
            with queries times the length of histories.
        seed: of that draw.
        exclude_seen: False where people consume again, so that a target may be a repeat.

    Raises:
        InputError: the data have no order, nothing stands on one side of ``at``, or no event has
            any before it.
        InputTypeError: ``at`` is a number and the times are dates, or the reverse; or ``data`` is
            not a Dataset.
    """
    need_order(data, "replay")
    cut = instant(at, dated=data.dated)
    held = later(data, cut, at)
    train = data.keep_events(~held)
    if data.excluded is not None and data.excluded.times is not None:
        train = replace(train, excluded=data.excluded.keep(data.excluded.times < cut))
    visible = np.ones(data.n_events, dtype=np.bool_)
    return _asked("replay", data, train, held, visible, _draw(most, seed), exclude_seen)


def cold_items(
    data: Dataset,
    fraction: float = 0.1,
    *,
    seed: int = 0,
    only_cold: bool = False,
    most: int | None = None,
    exclude_seen: bool = True,
) -> Split:
    """Withhold items from everything that is learnt or read, then ask for their events.

    Nothing of a withheld item is left in ``train`` or in a history: it is known by its text alone.
    Each of its events is asked for with what the user did before it; earlier withheld items are
    excluded from the answer as seen. Events without history are not asked; the log counts them.

    Args:
        data: a data set with times.
        fraction: the share to withhold of the items that have events, between 0 and 1.
        seed: of the choice of items, and of the draw of events.
        only_cold: answers may hold withheld items only; otherwise the whole catalogue competes.
            ``train`` is the same for the same seed, so one fit serves both.
        most: ask for at most so many events, drawn evenly; None asks for all.
        exclude_seen: False where people consume again, so that a target may be a repeat.

    Raises:
        InputError: the data have no order, ``fraction`` is not between 0 and 1, or nothing is left
            to learn from or to ask.
        InputTypeError: ``data`` is not a Dataset.
    """
    need_order(data, "cold_items")
    taken = np.unique(data.histories.items)
    chosen = _share("cold_items", "items with events", taken, fraction, seed)
    cold = np.zeros(data.n_items, dtype=np.bool_)
    cold[chosen] = True
    held = cold[data.histories.items]
    train = data.keep_events(~held)
    if data.excluded is not None:
        train = replace(train, excluded=data.excluded.keep(~cold[data.excluded.items]))
    logger.info("cold_items: withheld %d of %d items with events", len(chosen), len(taken))
    split = _asked("cold_items", data, train, held, ~held, _draw(most, seed), exclude_seen)
    return replace(split, queries=replace(split.queries, allow=cold)) if only_cold else split


def cold_users(
    data: Dataset, fraction: float = 0.1, *, seed: int = 0, exclude_seen: bool = True
) -> Split:
    """Withhold users with all they did, then ask for the last event of each.

    ``train`` keeps their ids, without events. The query is all they did before the last event.

    Args:
        data: a data set with times.
        fraction: the share to withhold of the users with 2 events or more, between 0 and 1.
        seed: of the choice of users.
        exclude_seen: False where people consume again, so that a target may be a repeat.

    Raises:
        InputError: the data have no order, ``fraction`` is not between 0 and 1, or there are too
            few users.
        InputTypeError: ``data`` is not a Dataset.
    """
    need_order(data, "cold_users")
    able = np.flatnonzero(data.histories.lengths > 1)
    chosen = _share("cold_users", "users with 2 events or more", able, fraction, seed)
    cold = np.zeros(data.n_users, dtype=np.bool_)
    cold[chosen] = True
    theirs = cold[data.histories.row_of()]
    train = data.keep_events(~theirs)
    if data.excluded is not None:
        train = replace(train, excluded=data.excluded.keep(~cold[data.excluded.row_of()]))
    last = theirs & (data.histories.from_end() == 0)
    visible = np.ones(data.n_events, dtype=np.bool_)
    logger.info("cold_users: withheld %d of %d users", len(chosen), data.n_users)
    return _asked("cold_users", data, train, last, visible, _draw(None, seed), exclude_seen)


def later(data: Dataset, cut: int, at: object) -> Mask:
    """(nnz,) bool, the events at or after ``cut``.

    Raises:
        InputError: these are all or none; the message calls the cut ``at``.
    """
    times = data.histories.times
    held: Mask = np.zeros(data.n_events, dtype=np.bool_) if times is None else times >= cut
    if times is not None and (held.all() or not held.any()):
        raise InputError(
            f"at={at!r} leaves {'nothing to learn from' if held.all() else 'nothing to hold out'}; "
            f"times go from {times.min()} to {times.max()}"
        )
    return held


def _share(
    name: str, what: str, members: NDArray[Any], fraction: float, seed: int
) -> NDArray[np.int64]:
    """A drawn share of ``members`` (n,) codes: at least one of them, and never all."""
    if real_number("fraction", fraction, above=0) >= 1:
        raise InputError(f"fraction is {fraction}; wanted a number between 0 and 1")
    if len(members) < 2:
        raise InputError(f"{name}: the data have {len(members)} {what}; wanted 2 at least")
    n = min(max(1, round(fraction * len(members))), len(members) - 1)
    generator = np.random.default_rng(whole_number("seed", seed))
    chosen: NDArray[np.int64] = np.sort(generator.choice(members, n, replace=False))
    return chosen


def _draw(most: int | None, seed: int) -> tuple[int | None, np.random.Generator]:
    """How many events to ask for at most, and the generator that draws them."""
    limit = None if most is None else whole_number("most", most, least=1)
    return limit, np.random.default_rng([whole_number("seed", seed), 1])


def _asked(
    name: str,
    data: Dataset,
    train: Dataset,
    held: Mask,
    visible: Mask,
    draw: tuple[int | None, np.random.Generator],
    exclude_seen: bool,
) -> Split:
    """The split that asks for every event in ``held`` (nnz,).

    A query's history is the earlier events of its user that are ``visible`` (nnz,); everything
    earlier, visible or not, is excluded from its answer.
    """
    histories = data.histories
    shown = histories.keep(visible)
    before = np.concatenate([[0], np.cumsum(visible)])
    rows = histories.row_of()
    events = np.flatnonzero(held)
    told = before[events] > shown.indptr[rows[events]]
    most, generator = draw
    logger.info(
        "%s: %d events held out, %d of them with no history before them, which are not asked",
        name,
        len(events),
        int((~told).sum()),
    )
    events = events[told]
    if not events.size:
        raise InputError(f"{name}: no held-out event has a history before it")
    if most is not None and most < len(events):
        events = np.sort(generator.choice(events, most, replace=False))
    users, stops = rows[events], before[events]
    starts = np.maximum(shown.indptr[users], stops - MAX_HISTORY)
    queries = Queries(
        shown.spans(starts, stops),
        data.n_items,
        users=users.astype(np.int32),
        exclude=_seen_before(data, users, events) if exclude_seen else None,
        context={column: values[events].tolist() for column, values in data.context.items()},
        ordered=data.ordered,
    )
    targets = histories.spans(events, events + 1)
    warn_of_repeats(queries, targets)
    return Split(train, queries, targets)


def _seen_before(data: Dataset, users: NDArray[np.int64], events: NDArray[np.int64]) -> Ragged:
    """Row by row, what ``users`` (B,) had seen before ``events`` (B,), in history or disliked."""
    histories = data.histories
    plain = Ragged(histories.indptr, histories.items)
    seen = plain.spans(histories.indptr[users], events)
    if data.excluded is None:
        return seen
    disliked = data.excluded.select(users)
    if disliked.times is not None and histories.times is not None:
        # A dislike that is still to come must not take an item out of the race.
        disliked = disliked.keep(disliked.times < histories.times[events][disliked.row_of()])
    return seen.merged(disliked)
