"""Which events teach what: the split inside ``fit`` that keeps training free of leakage.

Count a user's events from the end: position 0 is for validation (it makes choices and trains no
weight), positions 1 to K = min(8, n // 5) are learning events, the rest is the base that fit A
sees. Every learning row's candidates and signals come from fit A, and its history is what the user
did before it, so nothing a row is trained on knew its target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from hybridrec.candidates import Queries
from hybridrec.ragged import Ragged

if TYPE_CHECKING:
    from hybridrec.data.dataset import Dataset
    from hybridrec.ragged import Items, Mask

MOST_LEARNING_EVENTS = 8
EVENTS_A_LEARNING_EVENT = 5
RERANKER_SHARE = 0.75
STOPPING_SHARE = 0.1


@dataclass(frozen=True, eq=False)
class LearningRows:
    """Events to learn from, one a row.

    Attributes:
        fit: the fit that every row's candidates and signals come from: A, which saw
            :attr:`LearningPlan.base` only.
        users: (n,) int32 user codes.
        events: (n,) int64 places in ``data.histories.items``.
        positions: (n,) int64 events of the user that are newer than this one.
        targets: (n,) int32 item codes.
    """

    fit: ClassVar[str] = "A"
    users: Items
    events: NDArray[np.int64]
    positions: NDArray[np.int64]
    targets: Items

    def __len__(self) -> int:
        return len(self.users)

    @classmethod
    def together(cls, *parts: LearningRows) -> LearningRows:
        """The rows of ``parts``, one part behind the other."""
        return cls(
            *(
                np.concatenate([getattr(rows, name) for rows in parts])
                for name in ("users", "events", "positions", "targets")
            )
        )

    def select(self, chosen: NDArray[np.int64] | Mask) -> LearningRows:
        """The rows ``chosen``: places or a mask."""
        return LearningRows(
            self.users[chosen], self.events[chosen], self.positions[chosen], self.targets[chosen]
        )

    def sample(self, n: int | None, generator: np.random.Generator) -> LearningRows:
        """At most ``n`` of the rows, drawn without replacement, in their old order."""
        if n is None or len(self) <= n:
            return self
        return self.select(np.sort(generator.choice(len(self), n, replace=False)))

    def queries(self, data: Dataset, *, max_history: int = 1000) -> Queries:
        """What each user had done before the row's event; their other items are excluded.

        Items chosen after the row's event are left out of the lists too: to count what the user
        went on to choose as wrong answers would teach the opposite of what happened. The target
        itself never is, even where the user had it before (people consume again) or disliked it:
        a list without its target teaches nothing, and would count as missed by recall.
        """
        known = data.histories.select(self.users)
        start = data.histories.indptr[:-1][self.users]
        place = np.arange(len(known.items)) - known.indptr[:-1][known.row_of()]
        event = np.repeat(self.events - start, known.lengths)
        exclude = known
        if data.excluded is not None:
            exclude = exclude.merged(data.excluded.select(self.users))
        exclude = exclude.keep(exclude.items != self.targets[exclude.row_of()])
        context = {
            name: [values[event] for event in self.events] for name, values in data.context.items()
        }
        return Queries(
            known.keep(place < event).newest(max_history),
            data.n_items,
            users=self.users,
            exclude=Ragged(exclude.indptr, exclude.items),
            context=context,
            ordered=data.ordered,
        )


@dataclass(frozen=True, eq=False)
class LearningPlan:
    """The parts that ``fit`` divides the events of a data set into.

    Attributes:
        base: (nnz,) the events that fit A sees.
        validation: position 0 of each user with at least two events.
        reranker: learning rows of the users in R, less those in ``stopping``.
        stopping: learning rows of a tenth of R, for the reranker's early stopping.
        fusion: learning rows of the users in F.
        users_without_rows: users with too few events to learn from.
    """

    base: Mask
    validation: LearningRows
    reranker: LearningRows
    stopping: LearningRows
    fusion: LearningRows
    users_without_rows: int

    @property
    def taught(self) -> LearningRows:
        """The learning rows of the users in R."""
        return LearningRows.together(self.reranker, self.stopping)

    @property
    def learning(self) -> LearningRows:
        """The learning rows of every user."""
        return LearningRows.together(self.taught, self.fusion)

    @property
    def unseen(self) -> LearningRows:
        """Every event that fit A does not see, validation first."""
        return LearningRows.together(self.validation, self.learning)

    @classmethod
    def of(cls, data: Dataset, seed: int) -> LearningPlan:
        """Divide ``data`` by the rule above; a seeded hash of the user code deals users to R and F.

        Unordered histories have no newest event: their positions follow the order of the rows.
        """
        histories = data.histories
        positions = histories.from_end()
        users = histories.row_of().astype(np.int32)
        lengths = histories.lengths[users]
        learning_events = np.minimum(MOST_LEARNING_EVENTS, lengths // EVENTS_A_LEARNING_EVENT)
        is_validation = (positions == 0) & (lengths > 1)
        is_learning = (positions > 0) & (positions <= learning_events)

        def rows(mask: Mask) -> LearningRows:
            events = np.flatnonzero(mask)
            return LearningRows(users[events], events, positions[events], histories.items[events])

        draw = _hash_fraction(users, seed)
        in_r = draw < RERANKER_SHARE
        stops = draw < RERANKER_SHARE * STOPPING_SHARE
        return cls(
            base=~(is_validation | is_learning),
            validation=rows(is_validation),
            reranker=rows(is_learning & in_r & ~stops),
            stopping=rows(is_learning & stops),
            fusion=rows(is_learning & ~in_r),
            users_without_rows=int((histories.lengths < EVENTS_A_LEARNING_EVENT).sum()),
        )


def _hash_fraction(values: NDArray[np.int32], seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each value, the same on every machine (SplitMix64's finaliser)."""
    start = (seed + 1) * 0x9E3779B97F4A7C15 % 2**64
    mixed = values.astype(np.uint64) + np.uint64(start)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) / float(1 << 53)
