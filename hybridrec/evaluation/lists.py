"""What a set of lists is like as a whole: how much of the catalogue it shows, and how known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridrec.checks import InputError, codes, whole_number

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hybridrec.ragged import Items, Mask

HEAD_SHARE = 0.8
"""The share of the training events that the head of the catalogue holds."""


@dataclass(frozen=True)
class ListMetrics:
    """The first k places of all lists together.

    Attributes:
        coverage: the share of the catalogue that stands in at least one list.
        novelty: mean self-information of the recommended items in bits, -log2 of their share of
            the training events (Zhou et al., PNAS 2010). Each item counts as if it had one event
            more, so that a cold one is very novel and not infinitely so.
        gini: how unevenly the catalogue is shown: 0 where every item stands in as many lists, near
            1 where a few stand in all.
        long_tail: the share of the recommendations that lie outside the head, the most popular
            items that hold ``HEAD_SHARE`` of the training events.
    """

    coverage: float
    novelty: float
    gini: float
    long_tail: float


def list_metrics(items: Items, events: NDArray[Any], k: int) -> ListMetrics:
    """Describe the first ``k`` places of ``items``.

    Args:
        items: (B, K) integer codes, best first, -1 where there is no item.
        events: (I,) whole numbers >= 0, the training events of every item of the catalogue.
        k: places that count, at least 1.

    Returns:
        NaN for novelty and long_tail, and 0 for the others, where nothing is recommended.

    Raises:
        InputError: a code that the catalogue lacks, or negative events.

    O(B * k + I * log(I)) time.
    """
    k = whole_number("k", k, least=1)
    events = np.asarray(events)
    if events.ndim != 1 or (events < 0).any():
        raise InputError("events has a negative value, or is no (I,) array; wanted counts >= 0")
    shown = codes("items", items, len(events), padded=True)[:, :k]
    shown = shown[shown >= 0]
    exposure = np.bincount(shown, minlength=len(events)).astype(np.float64)
    if not shown.size:
        return ListMetrics(0.0, float("nan"), 0.0, float("nan"))
    bits = -np.log2((events + 1) / (events.sum() + len(events)))
    return ListMetrics(
        coverage=float((exposure > 0).mean()),
        novelty=float(bits @ exposure / len(shown)),
        gini=gini(exposure),
        long_tail=float(exposure[~head_items(events)].sum() / len(shown)),
    )


def head_items(events: NDArray[Any]) -> Mask:
    """(I,) bool, the fewest items that hold ``HEAD_SHARE`` of ``events`` (I,); ties: lower code."""
    order = np.argsort(-events, kind="stable")
    before = np.cumsum(events[order]) - events[order]
    head: Mask = np.zeros(len(events), dtype=np.bool_)
    head[order[before < HEAD_SHARE * events.sum()]] = True
    return head


def gini(exposure: NDArray[Any]) -> float:
    """The Gini coefficient of ``exposure`` (I,).

    The mean absolute difference of two items, over twice the mean: 0 where all are equal or nothing
    is shown, 1 - 1 / I where one item has everything.
    """
    total = exposure.sum()
    if not total:
        return 0.0
    n = len(exposure)
    weights = 2 * np.arange(1, n + 1) - n - 1
    return float(weights @ np.sort(exposure) / (n * total))
