"""Items that nobody has met: a list of their own, and the places it is given among the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from hybridrec.candidates import Candidates
from hybridrec.checks import InputError, NotFittedError, distinct_names, real_number, whole_number
from hybridrec.fuse.linear import LinearFusion
from hybridrec.recall.blend import Blend
from hybridrec.recall.text import TextRecall
from hybridrec.recall.text_bridge import TextBridge
from hybridrec.state import config_from_json, config_to_json, read_state, write_state

if TYPE_CHECKING:
    from pathlib import Path

    from hybridrec.candidates import Queries
    from hybridrec.protocols import FitData, Fusion, Recaller, Signal
    from hybridrec.ragged import Items, Mask, Scores


_POOLS = 10
"""That met items are dealt to at most, for the fusion to learn on."""
_LISTS_A_POOL = 4
"""Lists that a pool has items for at least: a list must have something to choose from."""


@dataclass(frozen=True, kw_only=True)
class NewcomersConfig:
    """Settings of :class:`Newcomers`."""

    reads: Sequence[str] | None = None
    first: int = 11
    every: int = 3
    depth: int = 50
    lists: int = 4000
    regularization: float = 3.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "reads", distinct_names("reads", self.reads))
        for name in ("first", "depth", "lists"):
            whole_number(name, getattr(self, name), least=1)
        whole_number("every", self.every, least=2)
        real_number("regularization", self.regularization, above=0.0)


class Newcomers:
    """Finds the items without events that suit a user, and gives them places of their own.

    Interactions say nothing of such an item, so it cannot stand in one order with the others: it
    would never rise, and nobody would ever meet it. What recallers would say of it is predicted
    from its text (:class:`~hybridrec.recall.text_bridge.TextBridge`); a linear fusion of these
    predictions with text recall, learned on items with events, orders newcomers among themselves.
    In an answer they get the places ``first``, ``first + every``, ...; the places before are
    never touched, and an answer that ends before ``first`` holds none. Needs a
    :class:`~hybridrec.TextRecall` among the recallers or the signals.

    Args:
        reads: names of the recallers whose scores are predicted, each of which takes its time; None
            for all but text recall.
        first: the first place of an answer that a newcomer gets, from 1.
        every: the distance from there to the next one's place, and so on.
        depth: newcomers that the fusion learns on, and that are found for a request at least.
        lists: lists that the fusion of the predictions learns from at most.
        regularization: of the prediction from texts, in items.
    """

    def __init__(
        self,
        *,
        reads: Sequence[str] | None = None,
        first: int = 11,
        every: int = 3,
        depth: int = 50,
        lists: int = 4000,
        regularization: float = 3.0,
    ) -> None:
        self.config = NewcomersConfig(
            reads=reads,
            first=first,
            every=every,
            depth=depth,
            lists=lists,
            regularization=regularization,
        )
        self.fusion: Fusion | None = None
        self._events: NDArray[np.int64] | None = None
        self._known: Mask | None = None
        self._told: Mask | None = None
        self._blend: Blend | None = None

    @property
    def events(self) -> NDArray[np.int64]:
        """(I,) how often each item has been met.

        Raises:
            NotFittedError: before ``fit``.
        """
        if self._events is None:
            raise NotFittedError("these newcomers are not fitted: call fit(data)")
        return self._events

    @property
    def unmet(self) -> Mask:
        """(I,) bool, the items that nobody has met: those that were disliked are no newcomers."""
        if self._known is None:
            raise NotFittedError("these newcomers are not fitted: call fit(data)")
        return ~self._known

    @property
    def _findable(self) -> Mask:
        """(I,) bool, the unmet items that have a text to be found by."""
        return self.unmet if self._told is None else self.unmet & self._told

    def fit(self, data: FitData) -> Self:
        """Count the events of every item, and see which were met without making history."""
        self._events = np.bincount(data.histories.items, minlength=data.n_items)
        self._known = self._events > 0
        excluded = getattr(data, "excluded", None)
        if excluded is not None:
            self._known[excluded.items] = True
        return self

    def use(self, recallers: Sequence[Recaller], signals: Sequence[Signal] = ()) -> Self:
        """Read these stages, which are fitted, from now on: of the signals, text recall alone.

        Raises:
            InputError: there is no TextRecall among them, or no other recaller.
        """
        events = self.events
        read = self.read(recallers, signals)
        texts: list[Any] = [
            stage for stage in (*recallers, *signals) if isinstance(stage, TextRecall)
        ]
        vectors = texts[0].item_vectors
        if len(vectors) != len(events):
            raise InputError(f"{texts[0].name!r} knows {len(vectors)} items; wanted {len(events)}")
        self._told = (vectors != 0).any(axis=1)
        regularization = self.config.regularization
        bridges: list[Any] = [
            TextBridge(recaller, vectors, events, regularization=regularization)
            for recaller in read
        ]
        self._blend = Blend([*texts, *bridges])
        return self

    def read(self, recallers: Sequence[Recaller], signals: Sequence[Signal]) -> list[Recaller]:
        """The recallers whose scores are predicted.

        Raises:
            InputError: one that is named is not there, none is, or no TextRecall is among all.
        """
        names, reads = [recaller.name for recaller in recallers], self.config.reads
        missing = [name for name in reads or () if name not in names]
        if missing:
            raise InputError(
                f"newcomers read {missing[0]!r}, which is not among the recallers {names}"
            )
        if not any(isinstance(stage, TextRecall) for stage in (*recallers, *signals)):
            raise InputError(
                f"newcomers are known by their texts, and no stage reads any; the recallers are "
                f"{names}: add hybridrec.TextRecall(encoder) to them or to the signals, or leave "
                "newcomers out"
            )
        others = [recaller for recaller in recallers if not isinstance(recaller, TextRecall)]
        others = [recaller for recaller in others if reads is None or recaller.name in reads]
        if not others:
            raise InputError(
                f"newcomers read at least one recaller of interactions; the recallers are {names}, "
                f"of which they read {'all' if reads is None else list(reads)}: add one, such as "
                "hybridrec.ALS()"
            )
        return others

    def candidates(self, queries: Queries, depth: int | None = None) -> Candidates:
        """What texts and predictions bring, of any item that ``queries`` allow."""
        if self._blend is None:
            raise NotFittedError("these newcomers read no recallers: call use(recallers)")
        return self._blend.candidates(queries, self.config.depth if depth is None else depth)

    def pools(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """(I,) which pool each item is dealt to; -1 for the unmet.

        Newcomers compete with each other, who are few; among all items other ones would stand on
        top, and a fusion would learn to tell those apart (ml-1m, cold items alone: NDCG@10 .208
        from tenths of the catalogue, .196 from all of it).
        """
        met = ~self.unmet
        pools = max(1, min(_POOLS, int(met.sum()) // (_LISTS_A_POOL * self.config.depth)))
        return np.where(met, generator.integers(pools, size=len(met)), -1)

    def among(
        self, queries: Queries, pools: NDArray[np.int64], chosen: NDArray[np.int64]
    ) -> Candidates:
        """What texts and predictions bring of one pool a query: what the fusion learns from.

        Args:
            queries: B of them.
            pools: (I,) the pool of each item.
            chosen: (B,) the pool of each query.
        """
        order, parts = np.argsort(chosen, kind="stable"), []
        for pool in np.unique(chosen):
            asked = queries.select(np.flatnonzero(chosen == pool))
            parts.append(self.candidates(replace(asked, allow=pools == pool)))
        return Candidates.stacked(parts, self.config.depth).select(np.argsort(order))

    def learn(self, candidates: Candidates, targets: Items) -> Self:
        """Fit the fusion to lists that hold their target."""
        self.fusion = LinearFusion().fit(candidates, targets)
        return self

    def rank(self, queries: Queries, depth: int | None = None) -> Candidates:
        """The newcomers that suit each query, best first."""
        allow = self._findable if queries.allow is None else self._findable & queries.allow
        candidates = self.candidates(replace(queries, allow=allow), depth)
        return candidates if self.fusion is None else self.fusion.rank(candidates)

    def score(self, queries: Queries, items: Items) -> Candidates:
        """Items (B, K) with what texts and predictions say of them, by the fusion of these.

        They stay where they are, whatever they score; code -1 has -inf.
        """
        if self._blend is None:
            raise NotFittedError("these newcomers read no recallers: call use(recallers)")
        signals = self._blend.signals(queries, items)
        total = np.where(items >= 0, sum(signals.values()), -np.inf).astype(np.float32)
        candidates = Candidates(items, total, signals)
        if self.fusion is None:
            return candidates
        return replace(candidates, scores=self.fusion.score(candidates))

    def wanted(self, queries: Queries, ranked: Candidates, depth: int, k: int) -> Candidates | None:
        """The newcomers for the first ``k`` places of ``ranked``; None where they have none.

        How many are looked for depends on no other query: who else asks changes no answer.
        """
        full = self.config.first > k and bool((ranked.valid.sum(axis=1) >= k).all())
        return None if full or not self._findable.any() else self.rank(queries, self.most(depth))

    def most(self, depth: int) -> int:
        """How many are looked for where an answer is ``depth`` deep."""
        return max(self.config.depth, depth)

    def others(self, queries: Queries) -> Queries:
        """``queries`` with the newcomers left out."""
        others = ~self._findable
        return replace(queries, allow=others if queries.allow is None else others & queries.allow)

    def beside(self, ranked: Candidates, found: Candidates, width: int) -> tuple[Candidates, Mask]:
        """``ranked`` with ``found`` at their places, ``width`` in all, and which those are.

        What is found beyond the places follows where ``ranked`` ends early.
        """
        first, every = self.config.first - 1, self.config.every
        column = np.arange(ranked.depth)
        before = np.where(column < first, 0, (column - first) // (every - 1) + 1)
        places = np.concatenate([column + before, first + every * np.arange(found.depth)])
        items = np.concatenate([ranked.items, found.items], axis=1)
        scores = np.concatenate([ranked.scores, found.scores], axis=1)
        new = np.arange(items.shape[1]) >= ranked.depth
        order = np.argsort(np.where(items >= 0, places, np.iinfo(np.int64).max), axis=1)
        order = order[:, :width]
        items = np.take_along_axis(items, order, axis=1)
        scores = _falling(items, np.take_along_axis(scores, order, axis=1), new[order])
        return Candidates(items, scores), new[order] & (items >= 0)

    def add_items(self, texts: Sequence[str] | None, n: int) -> None:
        """``n`` newcomers behind the last code."""
        known = ~self.unmet
        self._events = np.concatenate([self.events, np.zeros(n, dtype=np.int64)])
        self._known = np.concatenate([known, np.zeros(n, dtype=np.bool_)])
        self._blend = None

    def unfitted(self) -> Newcomers:
        """New ones of the same settings."""
        return Newcomers(**config_to_json(self.config))

    def save_files(self, folder: Path) -> None:
        """Write settings, counts and the fusion."""
        settings = {"config": config_to_json(self.config), "fused": self.fusion is not None}
        write_state(folder, settings, {"events": self.events, "known": ~self.unmet})
        if self.fusion is not None:
            self.fusion.save_files(folder / "fusion")

    @classmethod
    def load_files(cls, folder: Path) -> Self:
        """Read what :meth:`save_files` wrote; the pipeline then gives it recallers to read."""
        settings, arrays = read_state(folder)
        config = config_from_json(NewcomersConfig, settings["config"])
        loaded = cls(**config_to_json(config))
        loaded._events, loaded._known = arrays["events"], arrays["known"]
        if settings["fused"]:
            loaded.fusion = LinearFusion.load_files(folder / "fusion")
        return loaded


def _falling(items: Items, scores: Scores, new: Mask) -> Scores:
    """``scores`` in which a new one follows what stands before it: its own are of another scale.

    Strictly below, where equal scores would stand in another order (by item).
    """
    scores = scores.copy()
    if scores.shape[1]:
        # Whoever stands on top without a score of this scale stands above all of them.
        highest = np.where(new, -np.inf, scores).max(axis=1)
        top = np.nextafter(highest.astype(np.float32), np.float32(np.inf))
        scores[:, 0] = np.where(new[:, 0] & np.isfinite(highest), top, scores[:, 0])
    for column in range(1, scores.shape[1]):
        above = scores[:, column - 1]
        here = np.where(new[:, column], above, scores[:, column])
        wrong = (here > above) | ((here == above) & (items[:, column] < items[:, column - 1]))
        lower = np.nextafter(above, np.float32(-np.inf))
        scores[:, column] = np.where(wrong & (items[:, column] >= 0), lower, here)
    scores[items < 0] = -np.inf
    return scores


__all__ = ["Newcomers", "NewcomersConfig"]
