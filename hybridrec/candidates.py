"""The types that travel between the stages, and the promises each kind of stage makes.

``Queries -> Candidates -> Candidates -> Recommendations``. All of them are read-only: a stage
returns a new object. Shapes in comments: B queries, K candidates, I items, U users.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hybridrec.checks import InputError, InputTypeError, codes, frozen, whole_number

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

Items = NDArray[np.int32]
Scores = NDArray[np.float32]
Mask = NDArray[np.bool_]


def integers(name: str, value: object, dtype: type[np.signedinteger[Any]]) -> NDArray[Any]:
    """``value`` as a C-contiguous array of ``dtype``; every number stays what it was.

    Raises:
        InputTypeError: not integers.
        InputError: a number that ``dtype`` cannot hold; names its position.
    """
    array = np.asarray(value)
    if array.dtype != dtype and array.size:
        if not np.issubdtype(array.dtype, np.integer):
            raise InputTypeError(
                f"{name} has dtype {array.dtype}; wanted integers: give codes, not ids or scores"
            )
        limits = np.iinfo(dtype)
        # Compared as Python numbers: NumPy would compare uint64 with int64 as floats.
        if int(array.max()) > limits.max or int(array.min()) < limits.min:
            wrong = np.argwhere((array > limits.max) | (array < limits.min))[0]
            raise InputError(
                f"{name}[{', '.join(map(str, wrong))}] is {array[tuple(wrong)]}; wanted a number "
                f"from {limits.min} to {limits.max}"
            )
    return np.ascontiguousarray(array, dtype=dtype)


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of item codes of any length (CSR), oldest event first.

    Attributes:
        indptr: (rows + 1,) int64; row r is ``items[indptr[r]:indptr[r + 1]]``.
        items: (nnz,) int32 codes.
        weights: (nnz,) float32, finite and > 0; None means 1 everywhere and takes no storage.
        times: (nnz,) int64, the caller's unit, never falling within a row; None if there are none.
    """

    indptr: NDArray[np.int64]
    items: Items
    weights: Scores | None = None
    times: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        indptr = integers("indptr", self.indptr, np.int64)
        items = integers("items", self.items, np.int32)
        if indptr.ndim != 1 or indptr.size == 0 or indptr[0] != 0 or indptr[-1] != items.size:
            raise InputError(
                f"indptr has shape {indptr.shape} for {items.size} items; wanted one dimension, "
                "from 0 to the number of items"
            )
        if (np.diff(indptr) < 0).any():
            raise InputError("indptr falls somewhere; wanted a sequence that never falls")
        object.__setattr__(self, "indptr", frozen(indptr))
        object.__setattr__(self, "items", frozen(items))
        for name in ("weights", "times"):
            values = getattr(self, name)
            if values is None:
                continue
            array: NDArray[Any] = (
                np.ascontiguousarray(values, dtype=np.float32)
                if name == "weights"
                else integers(name, values, np.int64)
            )
            if array.shape != items.shape:
                raise InputError(f"{name} has shape {array.shape}; wanted {items.shape}")
            object.__setattr__(self, name, frozen(array))
        if self.weights is not None:
            wrong = np.flatnonzero(~(np.isfinite(self.weights) & (self.weights > 0)))
            if wrong.size:
                raise InputError(
                    f"weights[{wrong[0]}] is {self.weights[wrong[0]]}; weights must be finite and "
                    "> 0: drop or clip that row first"
                )

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(rows,) events a row."""
        return np.diff(self.indptr)

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[int] | NDArray[Any]]) -> Self:
        """Unit-weight rows from a list of code lists."""
        indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        parts = [integers("items", row, np.int32) for row in rows]
        return cls(indptr, np.concatenate(parts) if parts else np.empty(0, dtype=np.int32))

    @classmethod
    def empty(cls, rows: int) -> Self:
        """``rows`` rows with nothing in them."""
        return cls(np.zeros(rows + 1, dtype=np.int64), np.empty(0, dtype=np.int32))

    def row_of(self) -> NDArray[np.int64]:
        """(nnz,) the row each event stands in."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    def from_end(self) -> NDArray[np.int64]:
        """(nnz,) how many events of its row are newer than each event: 0 is the newest."""
        return np.repeat(self.indptr[1:], self.lengths) - 1 - np.arange(len(self.items))

    def keep(self, mask: Mask) -> Self:
        """The same rows with only the events where ``mask`` (nnz,) is true."""
        kept = np.concatenate([[0], np.cumsum(mask)])[self.indptr].astype(np.int64)
        return replace(
            self,
            indptr=kept,
            items=self.items[mask],
            weights=None if self.weights is None else self.weights[mask],
            times=None if self.times is None else self.times[mask],
        )

    def select(self, rows: NDArray[Any]) -> Self:
        """Rows ``rows`` (n,), in that order, repeats allowed."""
        rows = np.asarray(rows, dtype=np.int64)
        lengths = self.lengths[rows]
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        place = np.arange(indptr[-1]) + np.repeat(self.indptr[:-1][rows] - indptr[:-1], lengths)
        return replace(
            self,
            indptr=indptr,
            items=self.items[place],
            weights=None if self.weights is None else self.weights[place],
            times=None if self.times is None else self.times[place],
        )

    def newest(self, n: int) -> Self:
        """At most the ``n`` newest events of every row."""
        if not len(self.items) or self.lengths.max() <= n:
            return self
        return self.keep(self.from_end() < n)

    def merged(self, other: Ragged) -> Ragged:
        """Row by row, the items of both; weights and times are dropped."""
        if len(other) != len(self):
            raise InputError(f"cannot merge {len(other)} rows into {len(self)}")
        rows = np.concatenate([self.row_of(), other.row_of()])
        items = np.concatenate([self.items, other.items])
        order = np.argsort(rows, kind="stable")
        return Ragged(self.indptr + other.indptr, items[order])


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
    """

    users: NDArray[Any]
    ranks: Items
    items: NDArray[Any]
    scores: Scores

    def columns(self) -> dict[str, NDArray[Any]]:
        """The four columns of the frame: user, rank, item, score."""
        return {
            "user": self.users,
            "rank": self.ranks,
            "item": self.items,
            "score": self.scores,
        }


class FitData(Protocol):
    """What a stage may read of a data set when it is fitted (``Dataset`` is one)."""

    @property
    def histories(self) -> Ragged:
        """U rows, oldest event first."""

    @property
    def n_items(self) -> int:
        """I, cold items included."""

    @property
    def texts(self) -> Sequence[str] | None:
        """(I,) the text of every item, or None where the items carry no text."""

    @property
    def ordered(self) -> bool:
        """False where the interactions had no time column."""


@runtime_checkable
class Scorer(Protocol):
    """Anything that can say how well items fit queries."""

    @property
    def name(self) -> str:
        """The column that its scores fill in ``Candidates.signals``."""

    def score(self, queries: Queries, items: Items) -> Scores:
        """(B, K) float32 for (B, K) codes; -inf where the code is -1, finite elsewhere."""


@runtime_checkable
class Recaller(Scorer, Protocol):
    """A scorer that can also search the whole catalogue, and that is fitted to interactions."""

    half_life: float | None
    """Events after which a history item counts half when asked; None weighs all alike."""

    @property
    def half_lives(self) -> tuple[float | None, ...]:
        """The values of ``half_life`` worth trying on validation events; () where it is fixed."""

    def fit(self, data: FitData) -> Self:
        """Learn from ``data``; returns itself."""

    def refit(self, data: FitData) -> Self:
        """Learn anew from more data, keeping every choice and whatever readers rely on.

        What was trained on this recaller's scores or vectors must stay valid: ALS starts from its
        factors and aligns the new ones to them.
        """

    def recall(self, queries: Queries, k: int) -> Candidates:
        """The best ``k`` items of the catalogue, those excluded and not allowed left out."""

    def add_items(self, texts: Sequence[str] | None, n: int) -> None:
        """Make room for ``n`` new, cold items behind the last code (``texts`` are theirs)."""

    def save_files(self, folder: Path) -> None:
        """Write the fitted state as plain files."""

    @classmethod
    def load_files(cls, folder: Path) -> Self:
        """Read what :meth:`save_files` wrote."""


@runtime_checkable
class VectorIndex(Protocol):
    """Maximum inner-product search over item vectors."""

    @property
    def n_items(self) -> int:
        """Vectors held."""

    def search(
        self,
        queries: Scores,
        k: int,
        *,
        exclude: Ragged | None = None,
        allow: Mask | None = None,
    ) -> tuple[Items, Scores]:
        """(B, k) items and scores for (B, d) queries: ranked, -1 / -inf padding last."""

    def add(self, vectors: Scores) -> None:
        """Append vectors (n, d); their codes follow the last one."""
