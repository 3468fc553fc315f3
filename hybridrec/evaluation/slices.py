"""Where the gain comes from: the same figures over parts of the targets.

A slice is a part of the held-out events: those of short histories, of rare items, of new users. A
query that has targets in several parts stands in each with the targets of that part alone, so a
metric never mixes them; where a query has one target this is plain selection of queries.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from hybridrec.evaluation.compare import holm, paired_ci, paired_p
from hybridrec.evaluation.lists import HEAD_SHARE, head_items
from hybridrec.evaluation.metrics import per_user
from hybridrec.evaluation.report import Comparison, Slice

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from hybridrec.data.split import Split
    from hybridrec.evaluation.metrics import Values
    from hybridrec.evaluation.report import Kind
    from hybridrec.ragged import Items, Mask

RARE = 5
"""Training events up to which an item counts as rare."""

_HISTORIES = ((1, 5), (6, 20), (21, 100), (101, None))


def compared(
    kinds: Mapping[str, Kind], ndcg: Mapping[str, Values], users: Items
) -> list[Comparison]:
    """The last fused stage against the earlier fused ones and the best single stage.

    Args:
        kinds: stage name -> kind, in the order the stages run.
        ndcg: stage name -> (B,) NDCG of each query.
        users: (B,) the user of each query, who is what intervals and tests draw.

    Returns:
        The comparisons, ``p_holm`` still as ``p``: see :func:`corrected`.
    """
    fused = [name for name, kind in kinds.items() if kind == "fused"]
    if not fused:
        return []
    last = fused.pop()
    single = [name for name, kind in kinds.items() if kind == "single"]
    against = [*fused, max(single, key=lambda name: ndcg[name].mean())] if single else fused
    found = []
    for other in against:
        p = paired_p(ndcg[last], ndcg[other], groups=users)
        delta = paired_ci(ndcg[last], ndcg[other], groups=users)
        found.append(Comparison(last, other, delta, p, p))
    return found


def corrected(table: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """The comparisons of one table with ``p_holm`` for their number."""
    p = holm([row.p for row in table])
    return tuple(replace(row, p_holm=raised) for row, raised in zip(table, p, strict=True))


def sliced(
    split: Split, kinds: Mapping[str, Kind], lists: Mapping[str, Items], k: int
) -> tuple[Slice, ...]:
    """Every stage on every slice; a group of which only one slice has targets is left out.

    Args:
        split: the questions.
        kinds: stage name -> kind, in the order the stages run.
        lists: stage name -> (B, k) items.
        k: places that NDCG looks at.
    """
    parts: list[Slice] = []
    for group, members in _groups(split).items():
        there = {label: mask for label, mask in members if mask.any()}
        if len(there) < 2:
            continue
        for label, mask in there.items():
            parts.append(_part(group, label, mask, split, kinds, lists, k))
    table = iter(corrected([row for part in parts for row in part.deltas]))
    return tuple(replace(part, deltas=tuple(next(table) for _ in part.deltas)) for part in parts)


def _part(
    group: str,
    label: str,
    mask: Mask,
    split: Split,
    kinds: Mapping[str, Kind],
    lists: Mapping[str, Items],
    k: int,
) -> Slice:
    """The slice of the targets in ``mask`` (nnz,)."""
    targets = split.targets.keep(mask)
    rows = np.flatnonzero(targets.lengths > 0)
    targets = targets.select(rows)
    ndcg = {name: per_user(items[rows], targets, k).ndcg for name, items in lists.items()}
    means = {name: float(values.mean()) for name, values in ndcg.items()}
    deltas = compared(kinds, ndcg, split.queries.users[rows])
    return Slice(group, label, len(rows), means, tuple(deltas))


def _groups(split: Split) -> dict[str, list[tuple[str, Mask]]]:
    """Group -> the label and mask (nnz,) over targets of each of its slices."""
    row_of = split.targets.row_of()
    warm = split.warm[row_of]
    return {
        "history": list(_by_history(split.queries.histories.lengths[row_of])),
        "target": _by_popularity(split.item_events, split.targets.items),
        "user": [("warm", warm), ("cold (not in the training data)", ~warm)],
    }


def _by_history(lengths: NDArray[np.int64]) -> Iterator[tuple[str, Mask]]:
    """By events in the history; an empty one counts among the short."""
    for least, most in _HISTORIES:
        if most is None:
            yield f"over {least - 1} events", lengths >= least
        elif least == 1:
            yield f"up to {most} events", lengths <= most
        else:
            yield f"{least} to {most} events", (lengths >= least) & (lengths <= most)


def _by_popularity(events: NDArray[np.int64], targets: Items) -> list[tuple[str, Mask]]:
    """By training events of the target."""
    count, head = events[targets], head_items(events)[targets]
    cold, rare = count == 0, (count > 0) & (count <= RARE)
    parts = [
        ("cold (no training event)", cold),
        (f"rare (1 to {RARE} training events)", rare),
        (f"tail (outside the {HEAD_SHARE:.0%} head)", ~cold & ~rare & ~head),
        (f"head (items with {HEAD_SHARE:.0%} of events)", ~cold & ~rare & head),
    ]
    if cold.any():
        parts.append(("warm (any training event)", ~cold))
    return parts
