"""The first stage of a recommender that was told none: what did best in docs/quality.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hybridrec.recall.als import ALS
from hybridrec.recall.ease import EASE
from hybridrec.recall.linear_transitions import LinearTransitions
from hybridrec.recall.popularity import Popularity
from hybridrec.recall.transitions import ItemTransitions
from hybridrec.signals.at_half_life import AtHalfLife
from hybridrec.signals.histories import HistoryLength, HistoryStage

if TYPE_CHECKING:
    from hybridrec.data.dataset import Dataset
    from hybridrec.protocols import Recaller, Signal

_TABLE = 10_000
"""Items of a dense table at most: its fit takes the cube of them, some 20 s here."""
_SMALL = 5000
"""Items up to which two more tables, of shorter and longer memory, are cheap."""


def default_stages(
    seed: int, data: Dataset | None = None, *, factors: int = 64
) -> tuple[list[Recaller], list[Signal]]:
    """Recallers and signals that suit ``data``: those that read order only where there is one."""
    ordered = data is None or data.ordered
    items = 0 if data is None else np.count_nonzero(np.bincount(data.histories.items))
    ease = EASE(200.0, max_items=_TABLE)
    recallers: list[Recaller] = [ease, ALS(factors, seed=seed), Popularity()]
    signals: list[Signal] = [HistoryLength()]
    if not ordered:
        return recallers, signals
    recallers = [
        LinearTransitions(200.0, memory=3.0, max_items=_TABLE),
        ItemTransitions(),
        *recallers,
    ]
    signals += [
        AtHalfLife("linear transitions", 1.5),
        *(AtHalfLife("item transitions", memory) for memory in (1.0, 5.0, 15.0)),
        *(AtHalfLife("ease", memory) for memory in (2.0, 20.0, None)),
        AtHalfLife("als", None),
        HistoryStage(),
    ]
    if items <= _SMALL:
        signals += [
            LinearTransitions(200.0, memory=1.0, half_life=1.0, name="short transitions"),
            LinearTransitions(500.0, memory=9.0, half_life=9.0, name="long transitions"),
        ]
    return recallers, signals
