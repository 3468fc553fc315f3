"""The types that travel between the stages.

``Queries -> Candidates -> Candidates -> Recommendations``. All of them are read-only: a stage
returns a new object. Shapes in comments: B queries, K candidates, I items, U users.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hybridrec.checks import InputError, InputTypeError, codes, frozen, whole_number
from hybridrec.ragged import Ragged, integers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from hybridrec.ragged import Items, Mask, Scores


_FORGOTTEN = 24
"""Half-lives after which an event is forgotten."""


@dataclass(frozen=True, eq=False)
class Queries:
    """B requests: what each user did, and what may be recommended.

    Attributes:
        histories: B rows of codes in [0, n_items), oldest first.
        n_items: I, the size of the catalogue that the codes belong to.
        users: (B,) int32 user codes; -1 for somebody the model has never seen.
        exclude: B rows of items left out of each answer, or None.
        allow: (I,) bool, items that may be answered at all; None means every item.
        context: event columns of the request, each with B values.
        ordered: False where histories carry no order; then recency is off.
    """

    histories: Ragged
    n_items: int
    users: Items = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    exclude: Ragged | None = None
    allow: Mask | None = None
    context: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    ordered: bool = True

    def __post_init__(self) -> None:
        rows = len(self.histories)
        whole_number("n_items", self.n_items)
        codes("histories.items", self.histories.items, self.n_items)
        users = integers("users", self.users, np.int32)
        if users.size == 0:
            users = np.full(rows, -1, dtype=np.int32)
        if users.shape != (rows,):
            raise InputError(f"users has shape {users.shape}; wanted ({rows},)")
        object.__setattr__(self, "users", frozen(users))
        if self.exclude is not None:
            if len(self.exclude) != rows:
                raise InputError(f"exclude has {len(self.exclude)} rows; wanted {rows}")
            codes("exclude.items", self.exclude.items, self.n_items)
        if self.allow is not None:
            allow = np.ascontiguousarray(self.allow)
            if allow.dtype != np.bool_ or allow.shape != (self.n_items,):
                raise InputTypeError(
                    f"allow has dtype {allow.dtype} and shape {allow.shape}; wanted a bool mask of "
                    f"shape ({self.n_items},)"
                )
            object.__setattr__(self, "allow", frozen(allow))
        for name, values in self.context.items():
            if len(values) != rows:
                raise InputError(f"context[{name!r}] has {len(values)} values; wanted {rows}")

    def __len__(self) -> int:
        return len(self.histories)

    def recency_weights(self, half_life: float | None) -> Scores:
        """(nnz,) weight x 0.5^(events since / half_life); plain weights where it is None.

        The newest event counts in full, so ``half_life`` is in events. Unordered histories have
        no recency: they keep their plain weights.
        """
        weights = self.histories.weights
        plain = np.ones(len(self.histories.items), np.float32) if weights is None else weights
        if half_life is None or not self.ordered:
            return plain
        decay = np.exp2(-self.histories.from_end() / half_life)
        # A float32 underflow to 0 would make a weight that the kernels rightly refuse.
        return np.maximum(plain * decay, np.finfo(np.float32).tiny).astype(np.float32)

    def remembered(self, half_life: float | None) -> tuple[Ragged, Scores]:
        """The histories, less what float32 has forgotten, and (nnz,) their recency weights.

        An event 24 half-lives back weighs 2^-24 of the newest one, which is less than the last bit
        of a sum with it.
        """
        histories = self.histories
        if half_life is not None and self.ordered:
            histories = histories.newest(math.ceil(_FORGOTTEN * half_life) + 1)
        return histories, replace(self, histories=histories).recency_weights(half_life)

    def select(self, rows: NDArray[Any]) -> Self:
        """The queries ``rows`` (n,), in that order."""
        rows = np.asarray(rows, dtype=np.int64)
        return replace(
            self,
            histories=self.histories.select(rows),
            users=self.users[rows],
            exclude=None if self.exclude is None else self.exclude.select(rows),
            context={name: [values[r] for r in rows] for name, values in self.context.items()},
        )

    def batches(self, size: int) -> Iterator[tuple[slice, Self]]:
        """Consecutive parts of at most ``size`` queries, each with the slice it came from."""
        if 0 < len(self) <= size:
            yield slice(0, len(self)), self  # nothing to copy: a request of one feels it
            return
        for start in range(0, len(self), size):
            part = slice(start, min(start + size, len(self)))
            yield part, self.select(np.arange(part.start, part.stop))


@dataclass(frozen=True, eq=False)
class Candidates:
    """Ranked items for B queries.

    A row is in order: score descending, then item ascending, no item twice; where it holds fewer
    than K items the rest, on the right, is item -1 with score -inf.

    Attributes:
        items: (B, K) int32.
        scores: (B, K) float32.
        signals: name -> (B, K) float32, finite on every real candidate: what each scorer said.
    """

    items: Items
    scores: Scores
    signals: Mapping[str, Scores] = field(default_factory=dict)

    def __post_init__(self) -> None:
        items = integers("items", self.items, np.int32)
        scores = np.ascontiguousarray(self.scores, dtype=np.float32)
        if items.ndim != 2 or scores.shape != items.shape:
            raise InputError(f"items {items.shape} and scores {scores.shape}; wanted (B, K) twice")
        signals = {}
        for name, values in self.signals.items():
            array = np.ascontiguousarray(values, dtype=np.float32)
            if array.shape != items.shape:
                raise InputError(f"signal {name!r} has shape {array.shape}; wanted {items.shape}")
            if not np.isfinite(array[items >= 0]).all():
                raise InputError(f"signal {name!r} is not finite on a real candidate")
            signals[name] = frozen(array)
        object.__setattr__(self, "items", frozen(items))
        object.__setattr__(self, "scores", frozen(scores))
        object.__setattr__(self, "signals", signals)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def depth(self) -> int:
        """K, the width of the lists."""
        return int(self.items.shape[1])

    @property
    def valid(self) -> Mask:
        """(B, K) true on real candidates, false on the padding."""
        return self.items >= 0

    @classmethod
    def ranked(
        cls, items: Items, scores: Scores, signals: Mapping[str, Scores] | None = None
    ) -> Self:
        """Candidates put in order: score descending, then item ascending, padding last."""
        scores = np.where(items >= 0, scores, -np.inf).astype(np.float32)
        # Padding has code -1, which would sort first among ties: send it behind every real item.
        tie = np.where(items >= 0, items, np.iinfo(np.int32).max)
        order = np.lexsort((tie, -scores), axis=-1)
        return cls(
            np.take_along_axis(items, order, axis=1),
            np.take_along_axis(scores, order, axis=1),
            {
                name: np.take_along_axis(values, order, axis=1)
                for name, values in (signals or {}).items()
            },
        )

    @classmethod
    def stacked(cls, parts: Sequence[Candidates], depth: int) -> Self:
        """Lists of consecutive batches as one, each padded to ``depth`` columns."""

        def stack(arrays: list[NDArray[Any]], fill: float, dtype: type) -> NDArray[Any]:
            whole: NDArray[Any] = np.full((sum(map(len, arrays)), depth), fill, dtype=dtype)
            row = 0
            for array in arrays:
                whole[row : row + len(array), : array.shape[1]] = array
                row += len(array)
            return whole

        return cls(
            stack([part.items for part in parts], -1, np.int32),
            stack([part.scores for part in parts], -np.inf, np.float32),
            {
                name: stack([part.signals[name] for part in parts], 0.0, np.float32)
                for name in (parts[0].signals if parts else ())
            },
        )

    def reordered(self, scores: Scores) -> Self:
        """The same candidates ranked by other scores (B, K), aligned with ``items``."""
        return type(self).ranked(self.items, scores, self.signals)

    def with_signal(self, name: str, values: Scores) -> Self:
        """The same list with one more column."""
        filled = np.where(self.valid, values, 0).astype(np.float32)
        return replace(self, signals={**self.signals, name: filled})

    def head(self, k: int) -> Self:
        """The first ``k`` columns."""
        return self._columns(slice(0, k))

    def tail(self, k: int) -> Self:
        """What stands behind the first ``k`` columns."""
        return self._columns(slice(k, None))

    def _columns(self, part: slice) -> Self:
        return type(self)(
            self.items[:, part],
            self.scores[:, part],
            {name: values[:, part] for name, values in self.signals.items()},
        )

    def select(self, rows: NDArray[Any]) -> Self:
        """The lists ``rows`` (n,), in that order."""
        return type(self)(
            self.items[rows],
            self.scores[rows],
            {name: values[rows] for name, values in self.signals.items()},
        )

    def followed_by(self, tail: Candidates) -> Candidates:
        """These lists with those of ``tail`` behind them; signals that both carry are kept.

        The tail's scores are shifted below the head's, row by row, so that the promise of falling
        scores holds for the whole list.
        """
        items = np.concatenate([self.items, tail.items], axis=1)
        low = np.where(self.valid, self.scores, np.inf).min(axis=1, initial=np.inf)
        high = np.where(tail.valid, tail.scores, -np.inf).max(axis=1, initial=-np.inf)
        both = np.isfinite(low) & np.isfinite(high)
        shift = np.where(both, np.where(both, low, 0) - np.where(both, high, 0) - 1.0, 0.0)
        scores = np.concatenate([self.scores, tail.scores + shift[:, None]], axis=1)
        signals = {
            name: np.concatenate([values, tail.signals[name]], axis=1)
            for name, values in self.signals.items()
            if name in tail.signals
        }
        return Candidates.ranked(items, scores.astype(np.float32), signals)


@dataclass(frozen=True, eq=False)
class Recommendations:
    """The answer in the caller's ids, tidy: one entry a recommended item.

    Attributes:
        users: (n,) ids, or row numbers of the request where people were given by their histories.
        ranks: (n,) int32, from 1.
        items: (n,) ids.
        scores: (n,) float32, falling within a user.
        reranked: (n,) bool, whether there was time for the reranker to read the item; None where
            no time was set.
    """

    users: NDArray[Any]
    ranks: Items
    items: NDArray[Any]
    scores: Scores
    reranked: Mask | None = None

    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns of the frame: user, rank, item, score and, if it is known, reranked."""
        found = {"user": self.users, "rank": self.ranks, "item": self.items, "score": self.scores}
        return found if self.reranked is None else {**found, "reranked": self.reranked}
