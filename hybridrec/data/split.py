"""Ways to hold events out for evaluation. Nothing is sampled away: targets are full lists."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from hybridrec.checks import InputError, real_number, whole_number
from hybridrec.data.held_out import Split, instant, need_dataset, need_order, warn_of_repeats
from hybridrec.data.next_event import cold_items, cold_users, later, replay

if TYPE_CHECKING:
    from datetime import date, datetime

    from numpy.typing import NDArray

    from hybridrec.data.dataset import Dataset
    from hybridrec.ragged import Mask

__all__ = ["Split", "by_time", "cold_items", "cold_users", "leave_last", "random", "replay"]

logger = logging.getLogger("hybridrec")


def leave_last(data: Dataset, *, exclude_seen: bool = True) -> Split:
    """Hold out every user's last event; of events with one time, the last in the input.

    Users with fewer than 2 events stay in train and are not asked; the log counts them.

    Args:
        data: a data set with times.
        exclude_seen: False where people consume again, so that a target may be a repeat.

    Raises:
        InputError: the data have no order, or no user has 2 events.
        InputTypeError: ``data`` is not a Dataset.
    """
    need_order(data, "leave_last")
    held = (data.histories.from_end() == 0) & _of_users_with(data, 2)
    times = data.histories.times
    newest = np.full(data.n_users, np.iinfo(np.int64).max)
    if times is not None:
        newest[data.histories.row_of()[held]] = times[held]
    return _split("leave_last", data, held, newest, exclude_seen)


def by_time(
    data: Dataset, at: int | float | str | date | datetime, *, exclude_seen: bool = True
) -> Split:
    """Hold out every event at or after ``at``, and ask each user once for all of theirs.

    Users without history before it are not asked; the log counts them. :func:`replay` asks for the
    events one by one instead, each with what came before it.

    Args:
        data: a data set with times.
        at: a number in the unit of the time column; or, where that holds dates, a date (UTC
            unless it says otherwise).
        exclude_seen: False where people consume again, so that a target may be a repeat.

    Raises:
        InputError: the data have no order, or nothing stands on one side of ``at``.
        InputTypeError: ``at`` is a number and the times are dates, or the reverse; or ``data`` is
            not a Dataset.
    """
    need_order(data, "by_time")
    cut = instant(at, dated=data.dated)
    held = later(data, cut, at)
    return _split("by_time", data, held, np.full(data.n_users, cut), exclude_seen)


def random(
    data: Dataset, fraction: float = 0.2, *, seed: int = 0, exclude_seen: bool = True
) -> Split:
    """Hold out a random part of every user's events, wherever they stand in time.

    A user with n >= 2 events gives up round(fraction * n) of them, at least one, and keeps at
    least one. Order leaks: what came after a target can be in its history.

    Args:
        data: a data set.
        fraction: of each user's events, between 0 and 1.
        seed: of the draw.
        exclude_seen: False where people consume again, so that a target may be a repeat.

    Raises:
        InputError: ``fraction`` is not between 0 and 1, or no user has 2 events.
        InputTypeError: ``data`` is not a Dataset.
    """
    need_dataset(data)
    if real_number("fraction", fraction, above=0) >= 1:
        raise InputError(f"fraction is {fraction}; wanted a number between 0 and 1")
    generator = np.random.default_rng(whole_number("seed", seed))
    rows, lengths = data.histories.row_of(), data.histories.lengths
    shuffled = np.lexsort((generator.random(data.n_events), rows))
    place = np.empty(data.n_events, dtype=np.int64)
    place[shuffled] = np.arange(data.n_events) - np.repeat(data.histories.indptr[:-1], lengths)
    quota = np.clip(np.rint(fraction * lengths).astype(np.int64), 1, np.maximum(lengths - 1, 1))
    held = (place < quota[rows]) & _of_users_with(data, 2)
    never = np.full(data.n_users, np.iinfo(np.int64).max)
    return _split("random", data, held, never, exclude_seen)


def _of_users_with(data: Dataset, least: int) -> Mask:
    """(nnz,) true on events of users with at least ``least`` events."""
    lengths = data.histories.lengths
    if not (lengths >= least).any():
        raise InputError(f"no user has {least} events: there is nothing to hold out")
    mask: Mask = np.repeat(lengths >= least, lengths)
    return mask


def _split(
    name: str, data: Dataset, held: Mask, before: NDArray[np.int64], exclude_seen: bool
) -> Split:
    """The split that holds out ``held`` (nnz,); ``before`` (U,) is when each user is asked."""
    train = data.keep_events(~held)
    if data.excluded is not None and data.excluded.times is not None:
        # A dislike that is still to come must not take an item out of the race.
        known = data.excluded.times < before[data.excluded.row_of()]
        train = replace(train, excluded=data.excluded.keep(known))
    out = data.histories.keep(held)
    given, left = out.lengths > 0, train.histories.lengths > 0
    asked = np.flatnonzero(given & left)
    if not asked.size:
        raise InputError(f"{name}: no user has both a history and something held out")
    logger.info(
        "%s: %d of %d users are asked; %d have nothing held out, %d no history before it",
        name,
        len(asked),
        data.n_users,
        int((~given).sum()),
        int((given & ~left).sum()),
    )
    queries = train.queries(train.users.ids[asked], exclude_seen=exclude_seen)
    first = out.indptr[asked]
    context = {column: values[held][first].tolist() for column, values in data.context.items()}
    queries = replace(queries, context=context)
    targets = out.select(asked)
    warn_of_repeats(queries, targets)
    return Split(train, queries, targets)
