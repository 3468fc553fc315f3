"""Ways to hold events out for evaluation. Nothing is sampled away: targets are full lists."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridrec.candidates import Queries
from hybridrec.checks import InputError, InputTypeError, real_number, whole_number
from hybridrec.data.dataset import Dataset
from hybridrec.ragged import Ragged

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hybridrec.data.ids import IdMap
    from hybridrec.ragged import Mask

__all__ = ["Split", "by_time", "leave_last", "random"]

logger = logging.getLogger("hybridrec")


@dataclass(frozen=True, eq=False)
class Split:
    """What to learn from, what to ask, and what would have been right.

    Attributes:
        train: the events kept, over the same users and catalogue.
        queries: B users with their histories in ``train``, and the context of their first target.
        targets: B rows of held-out items, oldest first.
    """

    train: Dataset
    queries: Queries
    targets: Ragged

    def __post_init__(self) -> None:
        if len(self.queries) != len(self.targets):
            raise InputError(
                f"{len(self.queries)} queries and {len(self.targets)} rows of targets; wanted as "
                "many"
            )

    def for_catalogue(self, items: IdMap) -> Split:
        """The same questions in the codes of another catalogue, such as a loaded model's.

        Items it does not know are dropped from histories, and queries whose targets it does not
        know at all are left out; the log counts both.

        Raises:
            InputError: no query is left.
        """
        new = items.codes(self.train.items.ids, unknown="mark")
        size = len(items)

        def recoded(rows: Ragged) -> Ragged:
            known = rows.keep(new[rows.items] >= 0)
            return replace(known, items=new[known.items])

        targets = recoded(self.targets)
        kept = np.flatnonzero(targets.lengths > 0)
        histories = recoded(self.queries.histories)
        exclude, allow = self.queries.exclude, self.queries.allow
        if allow is not None:
            mask = np.zeros(size, dtype=np.bool_)
            mask[new[allow & (new >= 0)]] = True
            allow = mask
        logger.info(
            "for_catalogue: %d of %d queries have a target the catalogue knows; %d of %d history "
            "events are of items it does not know",
            len(kept),
            len(targets),
            len(self.queries.histories.items) - len(histories.items),
            len(self.queries.histories.items),
        )
        if not len(kept):
            raise InputError(
                "the catalogue knows none of the held-out items: evaluate on the data that the "
                "model was fitted on"
            )
        queries = replace(
            self.queries,
            histories=histories,
            n_items=size,
            exclude=None if exclude is None else recoded(exclude),
            allow=allow,
        )
        return replace(self, queries=queries.select(kept), targets=targets.select(kept))


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
    _need_order(data, "leave_last")
    held = (data.histories.from_end() == 0) & _of_users_with(data, 2)
    times = data.histories.times
    newest = np.full(data.n_users, np.iinfo(np.int64).max)
    if times is not None:
        newest[data.histories.row_of()[held]] = times[held]
    return _split("leave_last", data, held, newest, exclude_seen)


def by_time(
    data: Dataset, at: int | float | str | date | datetime, *, exclude_seen: bool = True
) -> Split:
    """Hold out every event at or after ``at``.

    Users without history before it are not asked; the log counts them.

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
    _need_order(data, "by_time")
    cut = _instant(at, dated=data.dated)
    times = data.histories.times
    held = np.zeros(data.n_events, dtype=np.bool_) if times is None else times >= cut
    if times is not None and (held.all() or not held.any()):
        raise InputError(
            f"at={at!r} leaves {'nothing to learn from' if held.all() else 'nothing to hold out'}; "
            f"times go from {times.min()} to {times.max()}"
        )
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
    _need_dataset(data)
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


def _need_dataset(data: object) -> None:
    if not isinstance(data, Dataset):
        raise InputTypeError(
            f"data is {type(data).__name__}; wanted a Dataset: build one with "
            "hybridrec.Dataset.from_frame(frame, user=, item=, time=)"
        )


def _need_order(data: Dataset, name: str) -> None:
    _need_dataset(data)
    if not data.ordered:
        raise InputError(
            f"{name} needs order, and these data have no time column: give from_frame time=, or "
            "use split.random"
        )


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
    repeats = _repeats(queries, targets)
    if repeats:
        logger.warning(
            "%d of %d held-out events repeat an item that the user has seen, so it cannot be "
            "recommended; pass exclude_seen=False where people consume again",
            repeats,
            len(targets.items),
        )
    return Split(train, queries, targets)


def _repeats(queries: Queries, targets: Ragged) -> int:
    """How many targets can never be recommended because their user has seen them."""
    if queries.exclude is None:
        return 0
    wanted = targets.row_of() * queries.n_items + targets.items
    barred = queries.exclude.row_of() * queries.n_items + queries.exclude.items
    # The few targets are sorted here; np.isin would sort the many seen items.
    ordered = np.sort(wanted)
    place = np.minimum(np.searchsorted(ordered, barred), len(ordered) - 1)
    seen = np.zeros(len(ordered), dtype=np.bool_)
    seen[place[ordered[place] == barred]] = True
    return int(seen[np.searchsorted(ordered, wanted)].sum())


def _instant(at: Any, *, dated: bool) -> int:
    """``at`` in the unit of the data's times."""
    if not dated:
        if isinstance(at, (str, date, np.datetime64)):
            raise InputTypeError(f"at is {at!r}, but the time column holds numbers: give a number")
        number = real_number("at", at)
        return int(at) if isinstance(at, (int, np.integer)) else int(np.ceil(number))
    if not isinstance(at, (str, date, np.datetime64)):
        raise InputTypeError(
            f"at is {at!r}, but the time column holds dates: give a date, a datetime or a string "
            "such as '2024-05-31'"
        )
    if isinstance(at, str):
        try:
            at = datetime.fromisoformat(at)
        except ValueError as error:
            raise InputError(f"at is {at!r}; wanted a date such as '2024-05-31'") from error
    if isinstance(at, datetime) and at.tzinfo is not None:
        at = at.astimezone(UTC).replace(tzinfo=None)
    return int(np.datetime64(at, "us").astype(np.int64))
