"""A search through FAISS: filtered, scored exactly, completed by the exact index."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from hybridrec.checks import InputError, InputTypeError, codes, float_matrix, whole_number
from hybridrec.ragged import Ragged
from hybridrec.recall.exact_index import ExactIndex, select_top_k
from hybridrec.recall.faiss_choice import Settings, rounded, widened
from hybridrec.recall.faiss_kinds import selector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hybridrec.ragged import Items, Mask, Scores
    from hybridrec.recall.faiss_kinds import Proposer

_GATHERED = 1 << 22
"""Floats of item vectors copied at once while answers are scored again: 16 MiB."""
_FEW = 0.05
"""Up to this share of the items allowed, the exact index is searched. At a twentieth of 400,000 x
64 it answers 2,700 queries a second on one core, lists, widened for the filter, 1,200 (norms of
spread 0.3) to 4,200 (all alike), a graph a hundred; and exact search does not slow down further."""
_PACKED = 0.001
"""Up to this share of the items allowed, these are packed and searched alone: packing an item costs
about a thousand times what passing over one does, so it pays from the first query."""


@dataclass(frozen=True, eq=False)
class Held:
    """All that a search reads, bound at once: readers in other threads keep what they had.

    Attributes:
        vectors: (I, d) of every code, retired ones too; read-only.
        live: (I,) false where a code is retired.
        exact: the index of ``vectors``.
        proposer: FAISS' index, or None where the exact one is used for everything.
        places: (n,) rising, the code that stands at each place of ``proposer``.
        settings: how ``proposer`` is searched.
        threads: for the search.
        chosen_at: live codes when it was last asked which kind suits them.
    """

    vectors: Scores
    live: Mask
    exact: ExactIndex
    proposer: Proposer | None
    places: Items
    settings: Settings
    threads: int
    chosen_at: int

    @property
    def tombstones(self) -> float:
        """The share of FAISS' places whose code is retired."""
        return 1.0 - float(self.live[self.places].mean()) if len(self.places) else 0.0

    def without(self, retired: NDArray[Any]) -> Self:
        """The same with the codes ``retired`` (any shape) retired as well."""
        live = self.live.copy()
        live[codes("codes", retired, len(live))] = False
        return replace(self, live=live)

    def search(
        self, queries: NDArray[Any], k: int, exclude: Ragged | None, allow: Mask | None
    ) -> tuple[Items, Scores]:
        """(B, k) items and scores for (B, d) queries; see :meth:`FaissIndex.search`."""
        queries = float_matrix("queries", queries, columns=self.vectors.shape[1])
        k = whole_number("k", k, least=1)
        _check_filters(len(queries), len(self.vectors), exclude, allow)
        allowed = self.allowed(allow)
        left = len(self.vectors) if allowed is None else np.count_nonzero(allowed)
        few = allow is not None and np.count_nonzero(allow) <= _FEW * len(allow)
        if self.proposer is None or few or k > left:
            return self._exactly(queries, k, exclude, allowed)
        items = np.full((len(queries), k), -1, dtype=np.int32)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        asked = _Asked.of(self, self.proposer, k, allowed)
        fetches = asked.fetches(len(queries), exclude)
        for fetch in np.unique(fetches[fetches <= asked.deepest]):
            for rows in _blocks(np.flatnonzero(fetches == fetch), int(fetch) * queries.shape[1]):
                part = None if exclude is None else exclude.select(rows)
                items[rows], scores[rows] = asked.best(queries[rows], int(fetch), part)
        rows = np.flatnonzero(items[:, -1] < 0)
        if rows.size:
            part = None if exclude is None else exclude.select(rows)
            items[rows], scores[rows] = self._exactly(queries[rows], k, part, allowed)
        return items, scores

    def allowed(self, allow: Mask | None) -> Mask | None:
        """(I,) the live codes of ``allow``; None where that is every code."""
        if self.live.all():
            return allow
        return self.live if allow is None else self.live & allow

    def _exactly(
        self, queries: Scores, k: int, exclude: Ragged | None, allowed: Mask | None
    ) -> tuple[Items, Scores]:
        """The exact answer, from the allowed items alone where they are few."""
        if allowed is None or np.count_nonzero(allowed) > _PACKED * len(allowed):
            return self.exact.search(queries, k, exclude=exclude, allow=allowed)
        few = np.flatnonzero(allowed).astype(np.int32)
        if exclude is not None:
            left = exclude.keep(allowed[exclude.items])
            exclude = Ragged(left.indptr, np.searchsorted(few, left.items).astype(np.int32))
        part = ExactIndex(self.vectors[few], threads=self.threads)
        found, scores = part.search(queries, k, exclude=exclude)
        return np.append(few, np.int32(-1))[found], scores  # -1 stays -1


@dataclass(frozen=True, eq=False)
class _Asked:
    """What one call asks of FAISS, the same for all of its rows.

    Attributes:
        held: what is searched.
        proposer: its FAISS index.
        k: items wanted a row.
        allowed: (I,) codes that may be answered; None for all.
        selector: FAISS' form of ``allowed`` where it can leave places out by itself.
        share: of the places, those that FAISS will propose.
        idle: places that FAISS will propose though they are not allowed.
    """

    held: Held
    proposer: Proposer
    k: int
    allowed: Mask | None
    selector: Any
    share: float
    idle: int

    @classmethod
    def of(cls, held: Held, proposer: Proposer, k: int, allowed: Mask | None) -> Self:
        if allowed is None:
            return cls(held, proposer, k, None, None, 1.0, 0)
        selected = allowed[held.places]
        left = int(np.count_nonzero(selected))
        if proposer.selects:
            return cls(held, proposer, k, allowed, selector(selected), left / len(selected), 0)
        return cls(held, proposer, k, allowed, None, 1.0, len(selected) - left)

    @property
    def deepest(self) -> int:
        """The most places to fetch; for more, looking at every item is wiser."""
        return int(self.proposer.deepest * self.share)

    def fetches(self, rows: int, exclude: Ragged | None) -> NDArray[np.int64]:
        """(rows,) how many places to fetch so that k items must remain if FAISS finds as many."""
        need = np.full(rows, self.k + self.idle, dtype=np.int64)
        if exclude is not None:
            need += exclude.lengths
        return rounded(need) * self.held.settings.slack

    def best(self, queries: Scores, fetch: int, exclude: Ragged | None) -> tuple[Items, Scores]:
        """(b, k) the best that filters leave of the ``fetch`` items proposed for each query."""
        held, settings = self.held, self.held.settings
        depth = fetch / settings.slack / self.share
        breadth = widened(self.proposer, settings.breadth, depth)
        found = self.proposer.propose(queries, fetch, breadth, self.selector, threads=held.threads)
        # In order of their codes, so that the first of equal scores is the item to take.
        items = np.sort(np.where(found >= 0, held.places[found], -1), axis=1)
        dropped = items < 0
        if self.allowed is not None:
            dropped |= ~self.allowed[items]
        if exclude is not None:
            n_items = len(held.vectors)
            seen = exclude.row_of() * n_items + exclude.items
            dropped |= np.isin(np.arange(len(items))[:, None] * n_items + items, seen)
        # einsum, not BLAS: each sum is taken alone, whatever block it stands in.
        products = np.einsum("bkd,bd->bk", held.vectors[items], queries)
        scores = np.nan_to_num(products, nan=float(np.finfo(np.float32).max))
        scores[dropped] = -np.inf
        spots, scores = select_top_k(scores, self.k, threads=held.threads)
        return np.where(spots >= 0, np.take_along_axis(items, spots, axis=1), -1), scores


def _blocks(rows: NDArray[np.int64], floats: int) -> Iterator[NDArray[np.int64]]:
    """``rows`` in parts that gather at most ``_GATHERED`` floats, ``floats`` for a row."""
    size = max(1, _GATHERED // max(1, floats))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


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
