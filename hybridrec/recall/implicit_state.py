"""What models of the ``implicit`` library learn, as arrays, and how it answers a query.

Nothing here needs ``implicit``. Shapes: B queries, K candidates, I items, U users, F factors.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dposv
from scipy.sparse import csr_array

from hybridrec.checks import FitError, InputError, UnknownIdError, frozen
from hybridrec.recall.promises import recall_rows, recall_vectors, score_rows, score_vectors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hybridrec.candidates import Candidates, Queries
    from hybridrec.protocols import VectorIndex
    from hybridrec.ragged import Items, Scores


@dataclass(frozen=True, eq=False)
class Learnt(ABC):
    """What a model has learnt.

    Attributes:
        name: of the recaller, for its signal and for errors.
    """

    name: str

    @property
    @abstractmethod
    def n_items(self) -> int:
        """I."""

    @property
    @abstractmethod
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is saved."""

    @abstractmethod
    def recall(self, queries: Queries, half_life: float | None, k: int) -> Candidates:
        """The best ``k`` items a query."""

    @abstractmethod
    def score(self, queries: Queries, half_life: float | None, items: Items) -> Scores:
        """(B, K) float32 for (B, K) codes; -inf where the code is -1."""

    @abstractmethod
    def grown(self, n: int) -> Self:
        """The same with ``n`` items more, as ``implicit`` leaves those that nobody has taken."""


@dataclass(frozen=True, eq=False)
class Vectors(Learnt):
    """Factor models: an item scores its inner product with a vector for the query.

    Attributes:
        items: (I, F) float32, read-only.
        index: the same, to search.
    """

    items: Scores
    index: VectorIndex

    @abstractmethod
    def of(self, queries: Queries, half_life: float | None) -> Scores:
        """(B, F) float32, the vector of each query."""

    @property
    def n_items(self) -> int:
        """I."""
        return len(self.items)

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is saved."""
        return {"items": self.items}

    def recall(self, queries: Queries, half_life: float | None, k: int) -> Candidates:
        """A search of the index."""
        of = partial(self.of, half_life=half_life)
        return recall_vectors(self.name, of, self.index, queries, k)

    def score(self, queries: Queries, half_life: float | None, items: Items) -> Scores:
        """Inner products of pairs, a block at a time."""
        return score_vectors(partial(self.of, half_life=half_life), self.items, queries, items)

    def grown(self, n: int) -> Self:
        """The same, the index too, with :attr:`_cold` rows behind the last item."""
        new = np.tile(self._cold, (n, 1))
        # A copy: a shallow copy of the recaller may share the index.
        index = copy.copy(self.index)
        index.add(new)
        return replace(self, items=frozen(np.concatenate([self.items, new])), index=index)

    @property
    def _cold(self) -> Scores:
        """(F,) the vector that ``implicit`` gives an item with no events."""
        return np.zeros(self.items.shape[1], np.float32)


@dataclass(frozen=True, eq=False)
class FoldedIn(Vectors):
    """ALS: a query's vector is solved from its history.

    Attributes:
        alpha: confidence of one unit of weight.
        regularization: λ of the objective.
    """

    alpha: float
    regularization: float

    @cached_property
    def _shared(self) -> NDArray[np.float64]:
        """(F, F) Σ y y' over the items + λ I: the part of every system that no history changes."""
        items = self.items.astype(np.float64)
        return np.asarray(items.T @ items + self.regularization * np.eye(items.shape[1]))

    def of(self, queries: Queries, half_life: float | None) -> Scores:
        """(B, F) from (Σ y y' + λ I + Σ (c - 1) y y') x = Σ c y, the last two over the history.

        c = alpha · weight, summed where an item stands twice (eq. 4 of Hu, Koren & Volinsky, ICDM
        2008, in float64). An empty history gives zeros. O(nnz·F² + B·F³) time.

        Raises:
            FitError: the matrix of a query is not positive definite.
        """
        history = _rows(queries, half_life)
        vectors = np.zeros((len(queries), self.items.shape[1]), np.float32)
        for row in np.flatnonzero(queries.histories.lengths):
            part = slice(history.indptr[row], history.indptr[row + 1])
            taken = self.items[history.indices[part]].astype(np.float64)
            # Not by FixedSide: there an item adds c on the left and t·c on the right. Here it is
            # alpha·w - 1 and alpha·w, which one t fits only while all w are equal, and c may not
            # be below 0, as this is where alpha·w < 1.
            confidence = self.alpha * history.data[part].astype(np.float64)
            system = self._shared + (taken.T * (confidence - 1.0)) @ taken
            _, solved, failure = dposv(system, confidence @ taken)
            if failure:
                raise FitError(
                    f"{self.name!r} cannot fold in the history of query {row}: its normal matrix "
                    "is not positive definite; fit a model with more regularization (now "
                    f"{self.regularization:g}) or fewer factors (now {len(solved)})"
                )
            vectors[row] = solved
        return vectors


@dataclass(frozen=True, eq=False)
class OfUsers(Vectors):
    """BPR and LMF: a query's vector is the one learnt for its user; the history is not read.

    Attributes:
        users: (U, F) float32, row u for the user with code u.
        biased: the last column of the items is 1: it multiplies the user's bias (LMF).
    """

    users: Scores
    biased: bool

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is saved."""
        return {"items": self.items, "users": self.users}

    def of(self, queries: Queries, half_life: float | None) -> Scores:
        """(B, F), those of ``queries.users``.

        Raises:
            UnknownIdError: a user that the model was not fitted on.
        """
        unknown = np.flatnonzero((queries.users < 0) | (queries.users >= len(self.users)))
        if unknown.size:
            raise UnknownIdError(
                f"queries.users[{unknown[0]}] is {queries.users[unknown[0]]}; {self.name!r} knows "
                f"users 0 to {len(self.users) - 1}, whom it was fitted on, and cannot fold the "
                "history of anyone else in: ask for those, fit it again with the others, or use "
                "ALS or an item-item model"
            )
        return self.users[queries.users]

    @property
    def _cold(self) -> Scores:
        row = super()._cold
        row[-1] = self.biased
        return row


@dataclass(frozen=True, eq=False)
class Neighbours(Learnt):
    """Item-item models: an item scores the sum of its similarities to the history.

    Attributes:
        table: (I, I) float32; row i holds the items like i.
    """

    table: csr_array

    def __post_init__(self) -> None:
        wrong = np.flatnonzero(~np.isfinite(self.table.data))
        if wrong.size:
            item = np.searchsorted(self.table.indptr, wrong[0], side="right") - 1
            raise InputError(
                f"model.similarity[{item}] has a NaN or infinite value: give item {item} more "
                "events, or take another item-item model"
            )

    @classmethod
    def from_arrays(cls, name: str, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """What :attr:`arrays` gave."""
        indptr = arrays["indptr"]
        table = (arrays["values"], arrays["indices"], indptr)
        return cls(name, csr_array(table, shape=(len(indptr) - 1,) * 2))

    @property
    def n_items(self) -> int:
        """I."""
        return int(self.table.shape[0])

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is saved."""
        table = self.table
        return {"indptr": table.indptr, "indices": table.indices, "values": table.data}

    def recall(self, queries: Queries, half_life: float | None, k: int) -> Candidates:
        """The best of the whole catalogue's scores."""
        return recall_rows(self.name, lambda batch: self._scores(batch, half_life), queries, k)

    def score(self, queries: Queries, half_life: float | None, items: Items) -> Scores:
        """The whole catalogue is scored; 0 for an item like nothing in the history."""
        return score_rows(lambda batch: self._scores(batch, half_life), queries, items)

    def grown(self, n: int) -> Self:
        """The same with ``n`` items like no other."""
        table = self.table.copy()
        table.resize(self.n_items + n, self.n_items + n)
        return replace(self, table=table)

    def _scores(self, queries: Queries, half_life: float | None) -> Scores:
        """(B, I), what every item scores."""
        return np.asarray((_rows(queries, half_life) @ self.table).toarray(), dtype=np.float32)


def _rows(queries: Queries, half_life: float | None) -> csr_array:
    """(B, I) float32: the histories weighed by recency, the weights of an item met twice added."""
    history = queries.histories
    weights = queries.recency_weights(half_life)
    # Copies, as the sums are written in place.
    arrays = (weights.copy(), history.items.copy(), history.indptr.copy())
    rows = csr_array(arrays, shape=(len(queries), queries.n_items))
    rows.sum_duplicates()
    return rows
