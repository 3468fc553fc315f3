"""The recall stage's one list: the union of the recallers' lists, with every recaller's opinion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numba import njit

from hybridrec.candidates import Candidates
from hybridrec.checks import InputError, whole_number
from hybridrec.protocols import ReadsRecaller, Recaller

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hybridrec.candidates import Queries
    from hybridrec.protocols import Signal
    from hybridrec.ragged import Items, Scores

# Cormack, Clarke & Buettcher (SIGIR 2009) found fusion by reciprocal rank flat around 60.
_RANK_OFFSET = 60.0
_BATCH = 1024


class Blend:
    """Merges the lists of several recallers by weighted reciprocal rank.

    An item's place is Σ over recallers of weight / (60 + rank): ranks need no common scale, which
    recallers of such different kinds do not have. That order only decides who is on the list;
    fusion orders them by their signals.

    Args:
        recallers: fitted, with distinct names.
        weights: name -> weight >= 0 of a recaller in the order; 1 where it is not named.
        scorers: fitted scorers that only give the candidates their columns, and bring none.
    """

    def __init__(
        self,
        recallers: Sequence[Recaller],
        weights: Mapping[str, float] | None = None,
        scorers: Sequence[Signal] = (),
    ) -> None:
        self.recallers = list(recallers)
        self.scorers = list(scorers)
        names = [recaller.name for recaller in self.recallers]
        every = [*names, *(scorer.name for scorer in self.scorers)]
        if not names or len(set(every)) < len(every):
            raise InputError(
                f"recallers and signals are named {every}; wanted at least one recaller, and each "
                "with a name of its own: pass name= to those of the same kind"
            )
        self._lend()
        self.weights = dict.fromkeys(names, 1.0) | dict(weights or {})
        if set(self.weights) != set(names) or min(self.weights.values()) < 0:
            raise InputError(f"weights is {weights}; wanted weights >= 0 for some of {names}")

    def _lend(self) -> None:
        """Give every scorer that reads a recaller the one it names."""
        able = {
            scorer.name: scorer
            for scorer in (*self.recallers, *self.scorers)
            if isinstance(scorer, Recaller)
        }
        for scorer in self.scorers:
            if not isinstance(scorer, ReadsRecaller):
                continue
            if scorer.reads not in able:
                raise InputError(
                    f"the signal {scorer.name!r} reads {scorer.reads!r}, which is not among the "
                    f"recallers {sorted(able)}: name one of these"
                )
            scorer.use(able[scorer.reads])

    def lists(self, queries: Queries, depth: int) -> list[Candidates]:
        """Each recaller's own best ``depth`` items."""
        return [recaller.recall(queries, depth) for recaller in self.recallers]

    def merge(self, lists: Sequence[Candidates], depth: int) -> tuple[Items, Scores]:
        """(B, depth) items and blended scores of the union of ``lists``, best first.

        A list whose scores are all alike says nothing of order (an empty history, a cold one), so
        it takes part only in rows where no list says anything.
        """
        width = max(candidates.depth for candidates in lists)
        items = np.full((len(lists), len(lists[0]), width), -1, dtype=np.int32)
        weights = np.zeros((len(lists), len(lists[0])), dtype=np.float64)
        for place, (recaller, candidates) in enumerate(zip(self.recallers, lists, strict=True)):
            items[place, :, : candidates.depth] = candidates.items
            lowest = np.where(candidates.valid, candidates.scores, np.inf).min(
                axis=1, initial=np.inf
            )
            highest = candidates.scores.max(axis=1, initial=-np.inf)
            told = (highest > lowest) | (candidates.valid.sum(axis=1) == 1)
            weights[place] = np.where(told, self.weights[recaller.name], 0.0)
        weights[:, weights.sum(axis=0) == 0] = 1.0
        n_items = int(items.max(initial=0)) + 1
        merged: tuple[Items, Scores] = _merge(
            items, weights, whole_number("depth", depth, least=1), n_items
        )
        return merged

    def candidates(self, queries: Queries, depth: int) -> Candidates:
        """The best ``depth`` of the union, with every recaller's and scorer's column."""
        parts = []
        for _, part in queries.batches(_BATCH):
            items, scores = self.merge(self.lists(part, depth), depth)
            parts.append(Candidates.ranked(items, scores, self.signals(part, items)))
        return Candidates.stacked(parts, depth)

    def signals(self, queries: Queries, items: Items) -> dict[str, Scores]:
        """Every recaller's and scorer's column for (B, K) codes; 0 where the code is -1."""
        valid = items >= 0
        return {
            scorer.name: np.where(valid, scorer.score(queries, items), 0).astype(np.float32)
            for scorer in (*self.recallers, *self.scorers)
        }


@njit(nogil=True, cache=True)
def _merge(lists, weights, depth, n_items):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    """From lists (R, B, W) and weights (R, B): items (B, depth) int32, scores (B, depth) f32."""
    n_lists, rows, width = lists.shape
    items = np.full((rows, depth), -1, dtype=np.int32)
    scores = np.full((rows, depth), -np.inf, dtype=np.float32)
    total = np.zeros(n_items, dtype=np.float64)
    seen = np.zeros(n_items, dtype=np.bool_)
    union = np.empty(n_lists * width, dtype=np.int32)
    for row in range(rows):
        found = 0
        for source in range(n_lists):
            if weights[source, row] == 0.0:
                continue
            for rank in range(width):
                item = lists[source, row, rank]
                if item < 0:
                    break
                if not seen[item]:
                    seen[item] = True
                    union[found] = item
                    found += 1
                total[item] += weights[source, row] / (_RANK_OFFSET + rank + 1.0)
        members = np.sort(union[:found])  # stable order below: ties go to the lower item
        order = np.argsort(-total[members], kind="mergesort")
        for place in range(min(depth, found)):
            item = members[order[place]]
            items[row, place] = item
            scores[row, place] = total[item]
        for member in members:
            total[member] = 0.0
            seen[member] = False
    return items, scores
