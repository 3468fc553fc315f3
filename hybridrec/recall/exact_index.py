"""Exact search: the best inner products over the whole catalogue, or the best of ready scores.

A first pass over all items in 8-bit integers (float32 where the build has no such products), whose
error is bounded, leaves few to be scored in float32; no score matrix is ever written
(csrc/catalogue.h, csrc/topk.cpp).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from hybridrec import _core
from hybridrec.checks import (
    InputError,
    InputTypeError,
    codes,
    float_matrix,
    thread_count,
    whole_number,
)

if TYPE_CHECKING:
    from hybridrec.ragged import Items, Mask, Ragged, Scores

__all__ = ["ExactIndex", "select_top_k", "top_k"]


def top_k(
    queries: NDArray[Any],
    items: NDArray[Any],
    k: int,
    *,
    exclude: Ragged | Any = None,
    allow: Mask | None = None,
    threads: int | None = None,
) -> tuple[Items, Scores]:
    """The ``k`` items with the largest inner product, for each query.

    Args:
        queries: (B, d), finite.
        items: (I, d), finite. To search the same items again, keep an :class:`ExactIndex`.
        k: width of the answer; may be larger than I.
        exclude: B rows of items left out: a Ragged, or a SciPy CSR matrix (B, I) of which only
            the structure is read.
        allow: (I,) bool, the items that may be answered; None allows all.
        threads: None uses every CPU this process may use. The result has the same bits for any.

    Returns:
        (B, k) int32 items and float32 scores: score descending, then item ascending; -1 and -inf
        where a query has no more items. A product beyond float32 counts as the largest finite
        float32 of its sign, one that overflows both ways as either.

    Raises:
        InputError, InputTypeError: a wrong shape, dtype, value or code.

    O(B·I·d) time, O(I·d) memory for the packed items.
    """
    return ExactIndex(items, threads=threads).search(queries, k, exclude=exclude, allow=allow)


def select_top_k(
    scores: NDArray[Any],
    k: int,
    *,
    exclude: Ragged | Any = None,
    allow: Mask | None = None,
    threads: int | None = None,
) -> tuple[Items, Scores]:
    """The ``k`` best of ready scores (B, I), for recallers that are not vectors.

    Arguments and result are those of :func:`top_k`. A score of -inf leaves its item out.

    Raises:
        InputError: a score that could be answered is NaN or +inf.
    """
    scores = np.ascontiguousarray(scores, dtype=np.float32)
    if scores.ndim != 2:
        raise InputError(f"scores has shape {scores.shape}; wanted (queries, items)")
    rows, n_items = scores.shape
    k = whole_number("k", k, least=1)
    filters = (*_exclusions(exclude, rows, n_items), _allowed(allow, n_items))
    workers = thread_count(threads)
    if n_items == 0:
        return _nothing(rows, k)
    try:
        best = _core.select_top_k(scores, min(k, n_items), *filters, threads=workers)
    except ValueError as error:
        raise InputError(str(error)) from error
    return _widened(*best, k)


class ExactIndex:
    """Maximum inner-product search that looks at every item; the items are packed once.

    Args:
        items: (I, d) vectors, finite.
        threads: None uses every CPU this process may use.

    O(I·d) memory: a copy of the vectors and a packed one, of a quarter of its size where the
    build has 8-bit products.
    """

    def __init__(self, items: NDArray[Any], *, threads: int | None = None) -> None:
        self._threads = thread_count(threads)
        self._items = _core.Catalogue(float_matrix("items", items), threads=self._threads)
        self._live: Mask | None = None  # (I,), None while nothing is retired

    @property
    def n_items(self) -> int:
        """Vectors held, those retired included."""
        return len(self._items)

    @property
    def vectors(self) -> Scores:
        """(I, d) a copy of the vectors held."""
        return self._items.vectors()

    def search(
        self,
        queries: NDArray[Any],
        k: int,
        *,
        exclude: Ragged | Any = None,
        allow: Mask | None = None,
    ) -> tuple[Items, Scores]:
        """(B, k) items and scores for (B, d) queries; see :func:`top_k`. Only reads."""
        queries = float_matrix("queries", queries, columns=self._items.width)
        k = whole_number("k", k, least=1)
        allow = _allowed(allow, self.n_items)
        if self._live is not None:
            allow = self._live if allow is None else allow & self._live
        exclude = _exclusions(exclude, len(queries), self.n_items)
        if self.n_items == 0:
            return _nothing(len(queries), k)
        width = min(k, self.n_items)
        found = _core.top_k(queries, self._items, width, *exclude, allow, threads=self._threads)
        return _widened(*found, k)

    def add(self, vectors: NDArray[Any]) -> None:
        """Append vectors (n, d); their codes follow the last one. O((I + n)·d).

        What is held is replaced, not changed: a shallow copy of this index grows alone.
        """
        more = float_matrix("vectors", vectors, columns=self._items.width)
        every = np.concatenate([self.vectors, more])
        self._items = _core.Catalogue(every, threads=self._threads)
        if self._live is not None:
            self._live = np.concatenate([self._live, np.ones(len(more), np.bool_)])

    def __copy__(self) -> Self:
        twin = type(self).__new__(type(self))
        twin.__dict__ |= self.__dict__  # what it holds is never changed
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_items": self.vectors}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Packed anew: another machine may run another build.
        self.__dict__ |= state
        self._items = _core.Catalogue(state["_items"], threads=self._threads)

    def retire(self, retired: NDArray[Any]) -> None:
        """Never answer these codes again. They keep their places: codes are not used twice."""
        gone = codes("retired", retired, self.n_items)
        live = np.ones(self.n_items, np.bool_) if self._live is None else self._live.copy()
        live[gone] = False
        self._live = live


def _exclusions(
    exclude: Ragged | Any, rows: int, n_items: int
) -> tuple[NDArray[np.int64] | None, Items | None]:
    """The indptr and items of a Ragged or of a CSR matrix, proved in range."""
    if exclude is None:
        return None, None
    # A CSR matrix calls its columns `indices`; duck typing spares the import of SciPy.
    listed = getattr(exclude, "items", getattr(exclude, "indices", None))
    if (
        listed is None
        or not hasattr(exclude, "indptr")
        or getattr(exclude, "format", "csr") != "csr"
    ):
        raise InputTypeError(
            f"exclude is {type(exclude).__name__}; wanted a hybridrec.Ragged or a SciPy CSR matrix "
            "(call .tocsr() on another sparse format)"
        )
    indptr = np.ascontiguousarray(exclude.indptr, dtype=np.int64)
    if len(indptr) != rows + 1:
        raise InputError(f"exclude has {len(indptr) - 1} rows; wanted {rows}, one a query")
    return indptr, codes("exclude", listed, n_items)


def _allowed(allow: Mask | None, n_items: int) -> Mask | None:
    if allow is None:
        return None
    mask = np.ascontiguousarray(allow)
    if mask.dtype != np.bool_ or mask.shape != (n_items,):
        raise InputTypeError(
            f"allow has dtype {mask.dtype} and shape {mask.shape}; wanted a bool mask of shape "
            f"({n_items},)"
        )
    return mask


def _nothing(rows: int, k: int) -> tuple[Items, Scores]:
    return np.full((rows, k), -1, np.int32), np.full((rows, k), -np.inf, np.float32)


def _widened(items: Items, scores: Scores, k: int) -> tuple[Items, Scores]:
    """The same answer with padding up to ``k`` columns."""
    found = items.shape[1]
    if found == k:
        return items, scores
    wide = _nothing(len(items), k)
    wide[0][:, :found], wide[1][:, :found] = items, scores
    return wide
