"""What a split of the data is, however it was made: what to learn from, and what to ask."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridrec.checks import InputError, InputTypeError, frozen, real_number, whole_number
from hybridrec.data.dataset import Dataset
from hybridrec.ragged import Ragged

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hybridrec.candidates import Queries
    from hybridrec.data.ids import IdMap
    from hybridrec.ragged import Mask

logger = logging.getLogger("hybridrec")


@dataclass(frozen=True, eq=False)
class Split:
    """What to learn from, what to ask, and what would have been right.

    Attributes:
        train: the events kept, over the same users and catalogue.
        queries: B requests, each with the user's history up to it and the context of its first
            target. A user may be asked more than once.
        targets: B rows of held-out items, oldest first.
        item_events: (I,) int64, the events of every item in ``train``, in the codes of ``queries``;
            counted where they are not given.
    """

    train: Dataset
    queries: Queries
    targets: Ragged
    item_events: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def __post_init__(self) -> None:
        if len(self.queries) != len(self.targets):
            raise InputError(
                f"{len(self.queries)} queries and {len(self.targets)} rows of targets; wanted as "
                "many"
            )
        events = self.item_events
        if not events.size:
            events = np.bincount(self.train.histories.items, minlength=self.queries.n_items)
        if len(events) != self.queries.n_items:
            raise InputError(
                f"item_events has {len(events)} counts; wanted {self.queries.n_items}, one an item"
            )
        object.__setattr__(self, "item_events", frozen(events.astype(np.int64)))

    @property
    def warm(self) -> Mask:
        """(B,) bool, whether the user of each query has events in ``train``."""
        known = self.queries.users >= 0
        warm: Mask = np.zeros(len(self.queries), dtype=np.bool_)
        warm[known] = self.train.histories.lengths[self.queries.users[known]] > 0
        return warm

    def sample(self, n: int, *, seed: int = 0) -> Split:
        """The same split with at most ``n`` of the queries, drawn evenly, in their old order."""
        n = whole_number("n", n, least=1)
        if n >= len(self.queries):
            return self
        rows = np.random.default_rng(seed).choice(len(self.queries), n, replace=False)
        rows.sort()
        return replace(self, queries=self.queries.select(rows), targets=self.targets.select(rows))

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
        events = np.zeros(size, dtype=np.int64)
        events[new[new >= 0]] = self.item_events[new >= 0]
        return replace(
            self,
            queries=queries.select(kept),
            targets=targets.select(kept),
            item_events=events,
        )


def warn_of_repeats(queries: Queries, targets: Ragged) -> None:
    """Say how many targets no stage may recommend, as their user has seen them."""
    count = repeats(queries, targets)
    if count:
        logger.warning(
            "%d of %d held-out events repeat an item that the user has seen, so it cannot be "
            "recommended; pass exclude_seen=False where people consume again",
            count,
            len(targets.items),
        )


def repeats(queries: Queries, targets: Ragged) -> int:
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


def need_dataset(data: object) -> None:
    """Refuse what is no Dataset."""
    if not isinstance(data, Dataset):
        raise InputTypeError(
            f"data is {type(data).__name__}; wanted a Dataset: build one with "
            "hybridrec.Dataset.from_frame(frame, user=, item=, time=)"
        )


def need_order(data: Dataset, name: str) -> None:
    """Refuse data without times, on behalf of the split called ``name``."""
    need_dataset(data)
    if not data.ordered:
        raise InputError(
            f"{name} needs order, and these data have no time column: give from_frame time=, or "
            "use split.random"
        )


def instant(at: Any, *, dated: bool) -> int:
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
