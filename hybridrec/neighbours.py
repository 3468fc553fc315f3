"""Which items are near each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hybridrec.candidates import Candidates
from hybridrec.checks import InputError
from hybridrec.protocols import HasItemVectors
from hybridrec.ragged import Ragged
from hybridrec.recall.exact_index import top_k
from hybridrec.recall.text_encoder import unit_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hybridrec.protocols import Recaller
    from hybridrec.ragged import Items, Mask


class ItemNeighbours:
    """Nearest items by cosine of the vectors that recallers have of them.

    Args:
        recallers: fitted ones; of an item the first of them that has a vector is asked. What they
            learn afterwards is not seen.

    Raises:
        InputError: none of them has item vectors.
    """

    def __init__(self, recallers: Sequence[Recaller]) -> None:
        sources = [recaller for recaller in recallers if isinstance(recaller, HasItemVectors)]
        if not sources:
            raise InputError(
                "similar_items needs a recaller with item vectors (ALS, TextRecall); this "
                f"recommender has {[recaller.name for recaller in recallers]}"
            )
        # Kept, as to make them takes longer than to look for one item's neighbours.
        self._unit = [unit_rows(source.item_vectors) for source in sources]
        self._known = [(unit != 0).any(axis=1) for unit in self._unit]

    def nearest(self, items: Items, k: int, allow: Mask | None = None) -> Candidates:
        """The ``k`` items nearest to each of ``items`` (n,), itself left out.

        An item without a vector is no one's neighbour, and has none.
        """
        found = np.full((len(items), k), -1, dtype=np.int32)
        scores = np.full((len(items), k), -np.inf, dtype=np.float32)
        left = np.ones(len(items), dtype=bool)
        for unit, known in zip(self._unit, self._known, strict=True):
            rows = np.flatnonzero(left & known[items])
            found[rows], scores[rows] = top_k(
                unit[items[rows]],
                unit,
                k,
                exclude=Ragged.from_rows([[item] for item in items[rows]]),
                allow=known if allow is None else known & allow,
            )
            left[rows] = False
        return Candidates(found, scores)
