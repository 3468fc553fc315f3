"""What every recaller promises, written once: fitted first, the right catalogue, bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from hybridrec.candidates import Candidates
from hybridrec.checks import (
    InputError,
    InputTypeError,
    NotFittedError,
    codes,
    real_number,
    whole_number,
)
from hybridrec.recall.exact_index import select_top_k

if TYPE_CHECKING:
    from collections.abc import Callable

    from hybridrec.candidates import Queries
    from hybridrec.protocols import VectorIndex
    from hybridrec.ragged import Items, Scores

    Rows = Callable[[Queries], Scores]
    """(B, I) float32: what every item of the catalogue scores for each query."""
    Pairs = Callable[[Queries, Items], Scores]
    """(B, K) float32: what items (B, K) score for each query; anything at code -1."""
    QueryVectors = Callable[[Queries], Scores]
    """(B, F) float32: what items' vectors are multiplied with for each query."""

T = TypeVar("T")

_VECTORS = 4096
"""Queries whose vectors are held at once."""
_BATCH = 1024
"""Queries worked on at once, at most."""
_CELLS = 1 << 24
"""Scores held at once while the whole catalogue is scored: 64 MiB of float32."""
_GATHERED = 1 << 22
"""Floats of item vectors gathered at once to score pairs: 16 MiB."""


def check_name(name: object) -> None:
    """Refuse a recaller's name that cannot be a column."""
    if not isinstance(name, str) or not name:
        raise InputTypeError(f"name is {name!r}; wanted a word, such as 'transitions'")


def check_half_life(half_life: object) -> None:
    """Refuse a half-life that is not ``"auto"``, None or a number of events above 0."""
    if half_life is None or (isinstance(half_life, str) and half_life == "auto"):
        return
    if isinstance(half_life, str):
        raise InputError(f"half_life is {half_life!r}; wanted 'auto', None or a number above 0")
    real_number("half_life", half_life, above=0.0)


def fitted(name: str, state: T | None) -> T:
    """``state``, which ``fit`` sets.

    Raises:
        NotFittedError: it is None.
    """
    if state is None:
        raise NotFittedError(f"{name!r} is not fitted: call fit(data) first")
    return state


def check_queries(name: str, n_items: int, queries: Queries) -> None:
    """Refuse queries whose codes belong to a catalogue of another size."""
    if queries.n_items != n_items:
        raise InputError(
            f"queries.n_items is {queries.n_items}; {name!r} knows {n_items} items: make the "
            "queries from the catalogue it was fitted on, or call add_items first"
        )


def recall_rows(name: str, rows: Rows, queries: Queries, k: int) -> Candidates:
    """The best ``k`` items a query of a recaller that scores the whole catalogue with ``rows``.

    O(I) memory a query of a batch, at most 64 MiB (or one row) at a time.
    """

    def best(batch: Queries, k: int) -> tuple[Items, Scores]:
        return select_top_k(rows(batch), k, exclude=batch.exclude, allow=batch.allow)

    return _recalled(name, best, queries, k, _batch_size(queries.n_items))


def score_rows(rows: Rows, queries: Queries, items: Items) -> Scores:
    """(B, K) float32, the scores of ``rows`` at ``items`` (B, K); -inf where the code is -1."""

    def pairs(batch: Queries, items: Items) -> Scores:
        return np.take_along_axis(rows(batch), items.astype(np.int64), axis=1)

    return _scored(pairs, queries, check_pairs(queries, items), _batch_size(queries.n_items))


def score_pairs(pairs: Pairs, queries: Queries, items: Items) -> Scores:
    """(B, K) float32, what ``pairs`` gives at ``items`` (B, K); -inf where the code is -1."""
    return _scored(pairs, queries, check_pairs(queries, items), _BATCH)


def recall_vectors(
    name: str, vectors: QueryVectors, index: VectorIndex, queries: Queries, k: int
) -> Candidates:
    """The best ``k`` items a query of a recaller that searches ``index`` with ``vectors``.

    O(F + k) memory a query, of the vectors 4,096 rows at a time.
    """

    def best(batch: Queries, k: int) -> tuple[Items, Scores]:
        return index.search(vectors(batch), k, exclude=batch.exclude, allow=batch.allow)

    return _recalled(name, best, queries, k, _VECTORS)


def score_vectors(
    vectors: QueryVectors, item_vectors: Scores, queries: Queries, items: Items
) -> Scores:
    """(B, K) float32, what ``vectors`` and ``item_vectors`` (I, F) make at ``items`` (B, K).

    Inner products; -inf where the code is -1. Gathers at most 16 MiB of item vectors (or those of
    one query) at a time.
    """
    items = check_pairs(queries, items)

    def pairs(batch: Queries, items: Items) -> Scores:
        return np.asarray(np.einsum("bf,bkf->bk", vectors(batch), item_vectors[items]))

    gathered = max(1, items.shape[1] * item_vectors.shape[1])
    return _scored(pairs, queries, items, max(1, min(_VECTORS, _GATHERED // gathered)))


def check_pairs(queries: Queries, items: Items) -> Items:
    """``items`` as (B, K) int32 codes in range, -1 for padding."""
    items = codes("items", items, queries.n_items, padded=True)
    if items.ndim != 2 or len(items) != len(queries):
        raise InputError(f"items has shape {items.shape}; wanted ({len(queries)}, K)")
    return items


def _recalled(
    name: str,
    best: Callable[[Queries, int], tuple[Items, Scores]],
    queries: Queries,
    k: int,
    size: int,
) -> Candidates:
    """What ``best`` finds for each batch of ``size`` queries."""
    k = whole_number("k", k, least=1)
    found = np.full((len(queries), k), -1, dtype=np.int32)
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    for part, batch in queries.batches(size):
        found[part], scores[part] = best(batch, k)
    return Candidates(found, scores, {name: np.where(found >= 0, scores, 0)})


def _scored(pairs: Pairs, queries: Queries, items: Items, size: int) -> Scores:
    """What ``pairs`` gives for each batch of ``size`` queries; -inf where the code is -1."""
    scores = np.empty(items.shape, dtype=np.float32)
    for part, batch in queries.batches(size):
        # Code -1 reads the last item; it is written over below.
        scores[part] = pairs(batch, items[part])
    scores[items < 0] = -np.inf
    return scores


def _batch_size(n_items: int) -> int:
    return max(1, min(_BATCH, _CELLS // max(1, n_items)))
