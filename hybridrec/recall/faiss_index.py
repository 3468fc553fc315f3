"""Approximate search through FAISS: lists, codes or a graph in place of a look at every item."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from hybridrec.checks import (
    FitError,
    InputError,
    float_matrix,
    frozen,
    one_of,
    real_number,
    thread_count,
)
from hybridrec.recall.exact_index import ExactIndex
from hybridrec.recall.faiss_choice import (
    EXACT_ITEMS,
    JUDGED_AT,
    Settings,
    auto_kind,
    effort,
    report,
    sampled,
    tuned,
)
from hybridrec.recall.faiss_kinds import Proposer, has_gpu
from hybridrec.recall.faiss_search import Held
from hybridrec.recall.faiss_storage import restored, stored

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hybridrec.protocols import VectorIndex
    from hybridrec.ragged import Items, Mask, Ragged, Scores

__all__ = ["FaissIndex", "make_index"]

_log = logging.getLogger("hybridrec")

_TARGET = 0.95
_TOMBSTONES = 0.25
"""The share of retired places beyond which the index is built anew: until then a search looks at up
to a third more than it needs, and a build is paid for by that many retirements."""
_GROWN = 1.25
"""How many times more live items "auto" is asked again for: it costs a search, perhaps a build."""


class FaissIndex:
    """Maximum inner-product search by a FAISS index of any kind, its answers scored exactly.

    FAISS proposes items; every proposal is scored again with the vectors held here, so a score is
    the true inner product whatever the index compresses. ``allow`` and retired items are left
    out inside the search, which is widened for it; ``exclude`` is met by fetching more than k.
    (Lists keep their recall under a filter; a graph loses some.) Where few items are allowed, most
    of the catalogue would have to be fetched, or FAISS comes back with too few, the row is
    searched exactly. So ``k`` items come back whenever ``k`` are allowed.

    A row's answer does not depend on the rows beside it, and the same vectors make the same index
    for any number of threads (so a graph is built on one).

    Args:
        items: (I, d) vectors, finite; copied.
        spec: "auto" (exact search while that is the fastest, then lists of floats, then of codes,
            see :func:`hybridrec.recall.faiss_choice.auto_kind`; on a GPU a look at every item, but
            of few on the CPU unless ``device`` is "cuda"), or a string for ``faiss.index_factory``:
            "HNSW32", "IVF256,Flat", "IVF1024,PQ64x4fs", ...
        target_recall: in (0, 1]; the breadth of the search is chosen to find this share of the
            exact top 100. What was reached is :attr:`measured_recall`, and a warning is logged
            where the target cannot be.
        queries: (n, d) user vectors to measure it on, of which 256 are drawn. Without them some of
            the items stand in, which users are not: they lie between the items they like, and
            longer items are nearer to all of them, so the figure may be off. Never saved.
        threads: None uses every CPU this process may use.
        device: "cpu"; "cuda" searches on a GPU, for kinds that FAISS has there; "auto" does so
            where there is one and the kind can. Filters and exact search stay on the CPU.

    Raises:
        MissingExtraError: FAISS is not installed, and the spec needs it.
        InputError: FAISS does not know the spec, or cannot do what ``device`` asks for.
        FitError: the index has to be trained and cannot be with these vectors.
    """

    def __init__(
        self,
        items: NDArray[Any],
        spec: str = "auto",
        *,
        target_recall: float = _TARGET,
        queries: NDArray[Any] | None = None,
        threads: int | None = None,
        device: str = "auto",
    ) -> None:
        vectors = frozen(float_matrix("items", items).copy())
        self._configure(spec, target_recall, threads, device)
        self._queries: Scores | None = None
        if queries is not None:
            self._queries = sampled(float_matrix("queries", queries, columns=vectors.shape[1]))
            if not len(self._queries):
                raise InputError("queries has no row other than zero: give user vectors, or None")
        live = np.ones(len(vectors), np.bool_)
        self._held = self._built(vectors, live, ExactIndex(vectors, threads=self._threads))

    def _configure(self, spec: str, target_recall: float, threads: int | None, device: str) -> None:
        self.spec = spec
        self.target_recall = real_number("target_recall", target_recall, above=0.0)
        if self.target_recall > 1:
            raise InputError(f"target_recall is {target_recall}; wanted a share above 0, at most 1")
        self._threads = thread_count(threads)
        self._device = one_of("device", device, ("auto", "cpu", "cuda"))

    @property
    def n_items(self) -> int:
        """Codes given out, those of retired items included."""
        return len(self._held.vectors)

    @property
    def vectors(self) -> Scores:
        """(I, d) the vector of every code, those of retired items included; read-only."""
        return self._held.vectors

    @property
    def kind(self) -> str:
        """What ``spec`` came to: "exact", or a FAISS factory string."""
        return "exact" if self._held.proposer is None else self._held.proposer.kind

    @property
    def measured_recall(self) -> float:
        """The share of the exact top 100 found when the index was built; 1 where it is exact."""
        return self._held.settings.recall

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
        return self._held.search(queries, k, exclude, allow)

    def recall_at(self, k: int, queries: NDArray[Any]) -> float:
        """The share of the exact top ``k`` that :meth:`search` finds for ``queries`` (B, d).

        1 where there is nothing to find.
        """
        held = self._held
        wanted, _ = held.exact.search(queries, k, allow=held.allowed(None))
        found, _ = self.search(queries, k)
        real = int((wanted >= 0).sum())
        hits = sum(np.isin(w[w >= 0], f).sum() for w, f in zip(wanted, found, strict=True))
        return float(hits / real) if real else 1.0

    def add(self, vectors: NDArray[Any]) -> None:
        """Append vectors (n, d); their codes follow the last one.

        The index is built anew and tuned again where a vector is longer than any that its lists
        were laid out for, and where "auto", asked again whenever there are a quarter more live
        items, chooses another kind for them. What is held is replaced, not changed: a shallow copy
        of this index grows alone. O(I·d), for the copy.
        """
        held = self._held
        more = float_matrix("vectors", vectors, columns=held.vectors.shape[1])
        every = frozen(np.concatenate([held.vectors, more]))
        live = np.concatenate([held.live, np.ones(len(more), np.bool_)])
        exact = copy.copy(held.exact)
        exact.add(more)
        proposer = held.proposer
        n_live = int(np.count_nonzero(live))
        asked = n_live > _GROWN * held.chosen_at
        outgrown = asked and self._kind(every, live, exact) != self.kind
        if outgrown or (proposer is not None and not proposer.fits(more)):
            self._held = self._built(every, live, exact)
            return
        if proposer is not None:
            proposer = proposer.grown(more, threads=self._threads, device=self._device)
        new = np.arange(len(held.vectors), len(every), dtype=np.int32)
        places, settings = np.concatenate([held.places, new]), held.settings
        chosen_at = n_live if asked else held.chosen_at
        self._held = Held(every, live, exact, proposer, places, settings, held.threads, chosen_at)

    def retire(self, codes: NDArray[Any]) -> None:
        """Never answer ``codes`` (any shape, repeats allowed) again; codes are not reused.

        They stay in the index as tombstones that a search passes over. Where they are more than a
        quarter of it, it is built anew from the live vectors and tuned again. What is held is
        replaced, not changed, as by :meth:`add`.

        Raises:
            InputError, InputTypeError: a code that was never given out, or no code.
        """
        self._held = held = self._held.without(codes)
        if held.proposer is not None and held.tombstones > _TOMBSTONES:
            try:
                self._held = self._built(held.vectors, held.live, held.exact)
            except FitError as error:
                _log.info("the tombstones stay in %s: %s", self.kind, error)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The index as plain arrays, ``vectors`` (I, d) float32 and what is FAISS', by these names.

        - ``faiss``: (bytes,) uint8; none where the kind is "exact".
        - ``faiss_kind``: a string.
        - ``faiss_places``: (n,) int32, the code at each place of the FAISS index.
        - ``faiss_live``: (I,) bool, false where a code is retired.
        - ``faiss_tuned``: (6,) float64: target, measured recall, breadth, slack, radius, live items
          when the kind was chosen.
        - ``faiss_digest``: (16,) uint8, what ``vectors`` are recognised by.
        """
        return stored(self._held, self.target_recall)

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, NDArray[Any]],
        spec: str,
        *,
        threads: int | None = None,
        device: str = "auto",
    ) -> Self:
        """The index that :meth:`to_arrays` wrote; nothing is built anew.

        Raises:
            StorageError: the bytes are no FAISS index, or one of other vectors.
        """
        model = cls.__new__(cls)
        held, target = restored(arrays, spec, threads=thread_count(threads), device=device)
        model._configure(spec, _TARGET if target is None else target, threads, device)
        model._queries = None
        model._held = model._tuned(held) if target is None else held
        return model

    def _kind(self, vectors: Scores, live: Mask, exact: ExactIndex) -> str:
        """The kind that ``spec`` means for the live vectors."""
        if self.spec != "auto":
            return self.spec
        # Saves a search, which looks at no more than all; and FAISS need not be there.
        if self._device != "cuda" and np.count_nonzero(live) <= EXACT_ITEMS:
            return "exact"
        if self._device == "cuda" or (self._device == "auto" and has_gpu()):
            return "Flat"
        held = vectors[live]
        judges = self._judges(held)
        _, scores = exact.search(judges, JUDGED_AT, allow=live)
        return auto_kind(len(held), effort(held, judges, scores[:, -1]), held.shape[1])

    def _judges(self, vectors: Scores) -> Scores:
        """The queries given, or some of the vectors in their place."""
        return sampled(vectors) if self._queries is None else self._queries

    def _built(self, vectors: Scores, live: Mask, exact: ExactIndex) -> Held:
        """The live vectors in a new index of the right kind, tuned."""
        kind = self._kind(vectors, live, exact)
        proposer = None
        if kind != "exact":
            proposer = Proposer.build(
                vectors[live], kind, threads=self._threads, device=self._device
            )
        places = np.flatnonzero(live).astype(np.int32)
        held = Held(vectors, live, exact, proposer, places, Settings(), self._threads, len(places))
        return self._tuned(held)

    def _tuned(self, held: Held) -> Held:
        """``held`` with settings chosen; there are no tombstones in it."""
        if held.proposer is None:
            return held
        judges = self._judges(held.vectors[held.places])
        wanted, _ = held.exact.search(judges, JUDGED_AT, allow=held.allowed(None))
        spots = np.where(wanted >= 0, np.searchsorted(held.places, wanted), -1)
        settings = tuned(held.proposer, judges, spots, self.target_recall, threads=self._threads)
        whom = "items" if self._queries is None else "of the queries given"
        report(held.proposer.kind, settings, f"{len(judges)} {whom}", self.target_recall)
        return replace(held, settings=settings)


def make_index(
    vectors: NDArray[Any],
    spec: str = "exact",
    *,
    queries: NDArray[Any] | None = None,
    threads: int | None = None,
) -> VectorIndex:
    """The index that ``spec`` names: "exact", "auto", or a FAISS factory string.

    ``queries`` (B, d) are what FAISS is tuned to, see :class:`FaissIndex`.
    """
    if spec == "exact":
        return ExactIndex(vectors, threads=threads)
    return FaissIndex(vectors, spec, queries=queries, threads=threads)
