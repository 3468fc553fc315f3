"""What comes next as a linear function of what came before, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numba import njit
from scipy.linalg.blas import strsm
from scipy.linalg.lapack import spotrf

from hybridrec.checks import FitError, InputError, available_cpus, real_number, whole_number
from hybridrec.recall.blas import blas_threads
from hybridrec.recall.item_tables import DenseTable, kept_items
from hybridrec.recall.item_to_item import ItemToItem
from hybridrec.recall.promises import check_half_life, check_name
from hybridrec.recall.transitions import NEEDS_ORDER

if TYPE_CHECKING:
    from hybridrec.candidates import Queries
    from hybridrec.protocols import FitData
    from hybridrec.ragged import Items, Ragged, Scores

_REACH = 24
"""Half-lives after which an event is forgotten: what is left of it is lost in float32."""

_BYTES = 8
"""Memory a pair of items takes while fitting: S'S, and S'E that becomes B."""


@dataclass(frozen=True, kw_only=True)
class LinearTransitionsConfig:
    """Settings of :class:`LinearTransitions`."""

    regularization: float = 100.0
    memory: float = 3.0
    max_items: int | None = None
    half_life: float | Literal["auto"] | None = "auto"
    name: str = "linear transitions"

    def __post_init__(self) -> None:
        real_number("regularization", self.regularization, above=0.0)
        real_number("memory", self.memory, above=0.0)
        if self.max_items is not None:
            whole_number("max_items", self.max_items, least=1)
        check_half_life(self.half_life)
        check_name(self.name)


class LinearTransitions(ItemToItem[LinearTransitionsConfig]):
    """The linear transition model SLIT of Choi et al. (WWW 2021, arXiv 2103.16104).

    Before every event of every user stands a state s (I,): what came before, each event with
    0.5^(events since / ``memory``). B minimises the sum over all events of |e - s B|^2, e being the
    event's item as a unit vector, plus λ|B|^2; with the states as rows of S and the items as rows
    of E that is B = (S'S + λI)^-1 S'E. The score of item b is the sum of B[h, b] over the history's
    events h, each with its weight and its recency.

    Unlike the counts of :class:`~hybridrec.ItemTransitions`, B lets the items of a history explain
    a next item together: what follows two of them is not counted twice. An item without events
    scores 0.

    Fitting is O(nnz * memory + M³) for M items with events, in 8 M² bytes; the fitted model, in
    memory and saved, takes 4 M².

    Args:
        regularization: λ, in events.
        memory: events after which an event counts half in the states that B is fitted to.
        max_items: fit only this many items, those with the most events; the others score 0. None
            fits every item, and refuses a catalogue with more than 30,000 that have events.
        half_life: events after which a history item counts half when asked; "auto" starts at 3
            and lets the engine choose on validation events; None weighs all alike.
        name: the column that the scores fill.
    """

    _config = LinearTransitionsConfig
    _table = DenseTable
    _half_lives = (1.0, 2.0, 3.0, 5.0, 8.0, 15.0)
    _first_half_life = 3.0

    def __init__(
        self,
        regularization: float = 100.0,
        *,
        memory: float = 3.0,
        max_items: int | None = None,
        half_life: float | Literal["auto"] | None = "auto",
        name: str = "linear transitions",
    ) -> None:
        super().__init__(
            LinearTransitionsConfig(
                regularization=regularization,
                memory=memory,
                max_items=max_items,
                half_life=half_life,
                name=name,
            )
        )

    def fit(self, data: FitData) -> Self:
        """Solve for B; event weights are not read.

        Raises:
            FitError: the histories of ``data`` carry no order, or there are more items than fit
                (see ``max_items``).
        """
        if not data.ordered:
            raise FitError(f"{self.name!r} was given interactions without an order; {NEEDS_ORDER}")
        codes = kept_items(self.name, data, self.config.max_items, _BYTES)
        gram, follows = _moments(data.histories, codes, data.n_items, self.config.memory)
        weights = _solved(self.name, gram, follows, self.config.regularization)
        self._fitted = DenseTable(codes, weights, data.n_items)
        return self

    def _check(self, queries: Queries) -> None:
        super()._check(queries)
        if not queries.ordered:
            raise InputError(f"{self.name!r} was asked with unordered histories; {NEEDS_ORDER}")


def _moments(histories: Ragged, codes: Items, n_items: int, memory: float) -> tuple[Scores, Scores]:
    """(M, M) float32 twice: the lower triangle of S'S, and S'E.

    What two events add depends on their distance alone, but for the end of the history: the states
    are never made.
    """
    place = np.full(n_items, -1, dtype=np.int32)
    place[codes] = np.arange(len(codes))
    reach = np.arange(int(np.ceil(_REACH * memory)) + 1)
    decay = np.exp2(-reach / memory)
    # Σ decay² over the states that still hold an event, 0, 1, 2, ... states after it.
    seen = np.concatenate([[0.0], np.cumsum(decay**2)])
    gram = np.zeros((len(codes), len(codes)), dtype=np.float32)
    follows = np.zeros_like(gram)
    _add_states(histories.indptr, place[histories.items], decay, seen, gram, follows)
    return gram, follows


def _solved(name: str, gram: Scores, follows: Scores, regularization: float) -> Scores:
    """B (M, M), written over ``follows``; ``gram`` is written over, too."""
    if not len(gram):
        return follows
    gram.flat[:: len(gram) + 1] += np.float32(regularization)
    # BLAS counts by columns: it sees our matrices transposed, so B' = E'S (U'U)^-1 from the right.
    with blas_threads(available_cpus()):
        factor, failed = spotrf(gram.T, lower=0, clean=0, overwrite_a=1)
        if failed:
            raise FitError(
                f"{name!r} cannot be solved with regularization {regularization:g}: raise it"
            )
        half = strsm(1.0, factor, follows.T, side=1, lower=0, trans_a=0, overwrite_b=1)
        whole = strsm(1.0, factor, half, side=1, lower=0, trans_a=1, overwrite_b=1)
    return np.ascontiguousarray(whole.T)


@njit(nogil=True, cache=True)
def _add_states(indptr: Any, places: Any, decay: Any, seen: Any, gram: Any, follows: Any) -> None:
    """Add S'S to the lower triangle of ``gram`` and S'E to ``follows``.

    Events at p <= q of one history stand together in the states after q: they add
    decay[q - p] * (decay[0]² + decay[1]² + ...), a term a state.
    """
    for user in range(len(indptr) - 1):
        start, end = indptr[user], indptr[user + 1]
        for q in range(start, end):
            b = places[q]
            if b < 0:
                continue
            states = seen[min(end - 1 - q, len(seen) - 1)]
            gram[b, b] += states
            for p in range(max(start, q - len(decay) + 1), q):
                a = places[p]
                if a < 0:
                    continue
                follows[a, b] += decay[q - p - 1]
                both = decay[q - p] * states
                gram[max(a, b), min(a, b)] += 2 * both if a == b else both
