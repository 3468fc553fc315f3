"""Exact search: the best inner products over the whole catalogue, or the best of ready scores.

The items are packed in panels, factor by factor, so that the kernel streams them once for a block
of queries and no score matrix is ever written (csrc/topk.cpp).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

    O(I·d) memory: the packed copy is the only one it keeps.
    """

    def __init__(self, items: NDArray[Any], *, threads: int | None = None) -> None:
        vectors = float_matrix("items", items)
        self._threads = thread_count(threads)
        self._n_items, self._width = vectors.shape
        self._packed = _pack(vectors)

    @property
    def n_items(self) -> int:
        """Vectors held."""
        return int(self._n_items)

    @property
    def vectors(self) -> Scores:
        """(I, d) a copy of the vectors held."""
        rows = self._packed.transpose(0, 2, 1).reshape(-1, self._width)
        return np.ascontiguousarray(rows[: self._n_items])

    def search(
        self,
        queries: NDArray[Any],
        k: int,
        *,
        exclude: Ragged | Any = None,
        allow: Mask | None = None,
    ) -> tuple[Items, Scores]:
        """(B, k) items and scores for (B, d) queries; see :func:`top_k`. Only reads."""
        queries = float_matrix("queries", queries, columns=self._width)
        k = whole_number("k", k, least=1)
        rows = len(queries)
        filters = (*_exclusions(exclude, rows, self.n_items), _allowed(allow, self.n_items))
        if self.n_items == 0:
            return _nothing(rows, k)
        return _widened(
            *_core.top_k(
                queries,
                self._packed,
                self.n_items,
                min(k, self.n_items),
                *filters,
                threads=self._threads,
            ),
            k,
        )

    def add(self, vectors: NDArray[Any]) -> None:
        """Append vectors (n, d); their codes follow the last one. O((I + n)·d).

        What is held is replaced, not changed: a shallow copy of this index grows alone.
        """
        more = float_matrix("vectors", vectors, columns=self._width)
        every = np.concatenate([self.vectors, more])
        self._packed = _pack(every)
        self._n_items = len(every)


def _pack(vectors: Scores) -> Scores:
    """(I, d) -> (panels, d, panel): the layout that csrc/topk.h reads."""
    n, width = vectors.shape
    panels = -(-n // _core.panel)
    filled = np.zeros((panels * _core.panel, width), dtype=np.float32)
    filled[:n] = vectors
    return np.ascontiguousarray(filled.reshape(panels, _core.panel, width).transpose(0, 2, 1))


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
