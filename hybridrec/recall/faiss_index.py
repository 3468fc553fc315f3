"""Approximate search through FAISS: a graph or lists in place of a look at every item."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from hybridrec.candidates import Candidates
from hybridrec.checks import (
    FitError,
    InputError,
    InputTypeError,
    StorageError,
    codes,
    float_matrix,
    require_extra,
    thread_count,
    whole_number,
)
from hybridrec.recall.exact_index import ExactIndex

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hybridrec.protocols import VectorIndex
    from hybridrec.ragged import Items, Mask, Ragged, Scores

__all__ = ["FaissIndex", "make_index"]

_GATHERED = 1 << 22
"""Floats of item vectors copied at once while answers are scored again: 16 MiB."""


class FaissIndex:
    """Maximum inner-product search by a FAISS index of any kind, its answers scored exactly.

    FAISS proposes items; every proposal is scored again with the vectors held here, so a score is
    the true inner product whatever the index compresses. A filter is met by fetching more
    than k: where most of the catalogue would have to be fetched, or FAISS comes back with too few
    items, the row is searched exactly. So ``k`` items come back whenever ``k`` are allowed.

    A row's answer does not depend on the rows beside it. The graph is built on one thread: links
    made by several at once depend on who comes first.

    Args:
        items: (I, d) vectors, finite.
        spec: a string for ``faiss.index_factory``: "HNSW32", "IVF256,Flat", "SQ8", …
        threads: for the search; None uses every CPU this process may use.

    Raises:
        MissingExtraError: FAISS is not installed.
        InputError: FAISS does not know the spec.
        FitError: the index has to be trained and cannot be with these vectors.
    """

    def __init__(
        self, items: NDArray[Any], spec: str = "HNSW32", *, threads: int | None = None
    ) -> None:
        vectors = float_matrix("items", items)
        index = _new_index(vectors.shape[1], spec)
        with _openmp_threads(1):
            _train(index, spec, vectors)
            index.add(vectors)
        self._hold(index, vectors, spec, threads)

    def _hold(self, index: Any, vectors: Scores, spec: str, threads: int | None) -> None:
        self.spec = spec
        self._threads = thread_count(threads)
        self._index = index
        self._vectors = vectors
        self._exact = ExactIndex(vectors, threads=threads)

    @property
    def n_items(self) -> int:
        """Vectors held."""
        return len(self._vectors)

    @property
    def vectors(self) -> Scores:
        """(I, d) the vectors held."""
        return self._vectors

    def search(
        self,
        queries: NDArray[Any],
        k: int,
        *,
        exclude: Ragged | None = None,
        allow: Mask | None = None,
    ) -> tuple[Items, Scores]:
        """(B, k) items and scores for (B, d) queries: ranked, -1 / -inf padding last.

        Arguments and result are those of :func:`hybridrec.top_k`, but an item may be missed; see
        :meth:`recall_at`. Only reads.
        """
        queries = float_matrix("queries", queries, columns=self._vectors.shape[1])
        k = whole_number("k", k, least=1)
        _check_filters(len(queries), self.n_items, exclude, allow)
        items = np.full((len(queries), k), -1, dtype=np.int32)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        depth = self._depth(len(queries), k, exclude, allow)
        short = depth == 0
        for fetch in np.unique(depth[~short]):
            for rows in _blocks(np.flatnonzero(depth == fetch), int(fetch) * queries.shape[1]):
                part = None if exclude is None else exclude.select(rows)
                items[rows], scores[rows] = self._propose(queries[rows], k, int(fetch), part, allow)
        short |= items[:, -1] < 0
        rows = np.flatnonzero(short)
        if rows.size:
            part = None if exclude is None else exclude.select(rows)
            items[rows], scores[rows] = self._exact.search(
                queries[rows], k, exclude=part, allow=allow
            )
        return items, scores

    def recall_at(self, k: int, queries: NDArray[Any]) -> float:
        """The share of the exact top ``k`` that :meth:`search` finds for ``queries`` (B, d).

        1 where there is nothing to find.
        """
        wanted, _ = self._exact.search(queries, k)
        found, _ = self.search(queries, k)
        real = int((wanted >= 0).sum())
        hits = sum(np.isin(w[w >= 0], f).sum() for w, f in zip(wanted, found, strict=True))
        return float(hits / real) if real else 1.0

    def add(self, vectors: NDArray[Any]) -> None:
        """Append vectors (n, d); their codes follow the last one.

        What is held is replaced, not changed: a shallow copy of this index grows alone.
        """
        more = float_matrix("vectors", vectors, columns=self._vectors.shape[1])
        index = require_extra("faiss", "faiss").clone_index(self._index)
        with _openmp_threads(1):
            index.add(more)
        exact = copy.copy(self._exact)
        exact.add(more)
        self._index, self._exact = index, exact
        self._vectors = np.concatenate([self._vectors, more])

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The index as plain arrays: ``vectors`` (I, d) float32 and ``faiss`` (bytes,) uint8."""
        faiss = require_extra("faiss", "faiss")
        return {"vectors": self._vectors, "faiss": faiss.serialize_index(self._index)}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], spec: str, *, threads: int | None = None
    ) -> Self:
        """The index that :meth:`to_arrays` wrote; nothing is built anew.

        Raises:
            StorageError: the bytes are no FAISS index, or one of other vectors.
        """
        faiss = require_extra("faiss", "faiss")
        vectors = float_matrix("vectors", arrays["vectors"])
        try:
            index = faiss.deserialize_index(np.ascontiguousarray(arrays["faiss"]))
        except RuntimeError as error:
            raise StorageError(f"the saved FAISS index cannot be read: {error}") from error
        if (index.ntotal, index.d) != vectors.shape:
            raise StorageError(
                f"the saved FAISS index holds {index.ntotal} vectors of width {index.d}; the "
                f"array beside it has shape {vectors.shape}"
            )
        model = cls.__new__(cls)
        model._hold(index, vectors, spec, threads)
        return model

    def _depth(
        self, rows: int, k: int, exclude: Ragged | None, allow: Mask | None
    ) -> NDArray[np.int64]:
        """(rows,) how many items to fetch so that k must remain; 0 where exact search is wiser.

        Powers of two, so that rows share calls and a row's depth is its own affair.
        """
        need = np.full(rows, k, dtype=np.int64)
        if exclude is not None:
            need += exclude.lengths
        if allow is not None:
            need += self.n_items - int(np.count_nonzero(allow))
        depth = np.exp2(np.ceil(np.log2(np.maximum(need, 16)))).astype(np.int64)
        return np.where(2 * depth > self.n_items, 0, depth)

    def _propose(
        self, queries: Scores, k: int, fetch: int, exclude: Ragged | None, allow: Mask | None
    ) -> tuple[Items, Scores]:
        """(b, k) the best allowed of the ``fetch`` items that FAISS finds for each query."""
        with _openmp_threads(self._threads):
            _, found = self._index.search(
                queries, fetch, params=_search_settings(self._index, fetch)
            )
        items = found.astype(np.int32)
        dropped = items < 0
        if allow is not None:
            dropped |= ~allow[items]
        if exclude is not None:
            seen = exclude.row_of() * self.n_items + exclude.items
            dropped |= np.isin(np.arange(len(items))[:, None] * self.n_items + items, seen)
        # einsum, not BLAS: each sum is taken alone, whatever block it stands in.
        scores = np.einsum("bkd,bd->bk", self._vectors[items], queries)
        ranked = Candidates.ranked(np.where(dropped, -1, items), scores).head(k)
        return ranked.items, ranked.scores


def make_index(
    vectors: NDArray[Any], spec: str = "exact", *, threads: int | None = None
) -> VectorIndex:
    """The index that ``spec`` names: "exact", or a FAISS factory string."""
    if spec == "exact":
        return ExactIndex(vectors, threads=threads)
    return FaissIndex(vectors, spec, threads=threads)


def _new_index(width: int, spec: str) -> Any:
    """An empty FAISS index for inner products."""
    faiss = require_extra("faiss", "faiss")
    if not isinstance(spec, str):
        raise InputTypeError(f"spec is {spec!r}; wanted a FAISS factory string such as 'HNSW32'")
    try:
        return faiss.index_factory(width, spec, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        reason = str(error).rsplit(": ", 1)[-1]
        raise InputError(
            f"spec is {spec!r}, which FAISS refuses for vectors of width {width} ({reason}); "
            "wanted a factory string such as 'HNSW32' or 'IVF256,Flat'"
        ) from error


def _train(index: Any, spec: str, vectors: Scores) -> None:
    """Train what has to be trained, and let lists be probed often enough to be found."""
    faiss = require_extra("faiss", "faiss")
    if not index.is_trained:
        try:
            index.train(vectors)
        except RuntimeError as error:
            raise FitError(
                f"FAISS cannot train {spec!r} on {len(vectors)} vectors "
                f"({str(error).rsplit(': ', 1)[-1].strip()}): use 'HNSW32', which needs no "
                "training, or fewer lists"
            ) from error
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None:
        # FAISS probes a single list unless told otherwise, which misses most of the answer.
        lists.nprobe = min(lists.nlist, max(8, lists.nlist // 8))


def _search_settings(index: Any, fetch: int) -> Any:
    """How wide to search a graph: FAISS' own 16 is too narrow for lists of a hundred."""
    faiss = require_extra("faiss", "faiss")
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=max(64, 2 * fetch))
    return None


def _check_filters(rows: int, n_items: int, exclude: Ragged | None, allow: Mask | None) -> None:
    if exclude is not None:
        if len(exclude) != rows:
            raise InputError(f"exclude has {len(exclude)} rows; wanted {rows}, one a query")
        codes("exclude.items", exclude.items, n_items)
    if allow is not None and (allow.dtype != np.bool_ or allow.shape != (n_items,)):
        raise InputTypeError(
            f"allow has dtype {allow.dtype} and shape {allow.shape}; wanted a bool mask of shape "
            f"({n_items},)"
        )


def _blocks(rows: NDArray[np.int64], floats: int) -> Iterator[NDArray[np.int64]]:
    """``rows`` in parts that gather at most ``_GATHERED`` floats, ``floats`` for a row."""
    size = max(1, _GATHERED // max(1, floats))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


@contextmanager
def _openmp_threads(threads: int) -> Iterator[None]:
    """FAISS on ``threads`` threads; the setting is shared with the caller, so it is put back."""
    faiss = require_extra("faiss", "faiss")
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
