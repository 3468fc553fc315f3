"""Which kind of FAISS index suits a catalogue, and how wide it must be searched."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable

    from hybridrec.ragged import Scores
    from hybridrec.recall.faiss_kinds import Proposer

_log = logging.getLogger("hybridrec")

EXACT_ITEMS = 250_000
"""Up to so many items that exact search cannot rule out by their norm, "auto" takes exact search.
One core of a Zen 4 works off some 0.9e9 of them a second (64 wide, k = 100, batches), so 3,600
queries at the boundary; lists at recall@100 0.95 answer 1,400 to 6,000 a second of 200,000 items,
4,000 to 5,000 of 400,000, 1,400 to 1,700 of a million. Exact, then lists, for norms of the spread
0, 0.3 and 0.6 of their logarithm: 4,500, 5,900 / 8,300, 6,000 / 16,500, 4,700 of 200,000 items;
4,400, 4,600 of 400,000 with 0.3; 6,800, 1,700 of a million with 0.6."""
CODED_ITEMS = 4_000_000
"""From here "auto" holds codes of half a byte a dimension: floats would take 1 GiB more at 64
wide, and are the faster choice while there is room."""
JUDGED_AT = 100
"""Recall is measured at this length: recall@100."""
JUDGED_DEPTH = 128
"""How many are fetched for 100: see :func:`rounded`."""
SAMPLE = 256
"""Queries that recall is measured on: a standard error of about half a point."""

_SLACK = (1, 2, 4, 8, 16)
"""How many times the wanted number codes may have to propose for the vectors to choose from."""
_ABSENT = np.iinfo(np.int64).max
_STEPS = 4
"""Bisections between a breadth that is enough and its half: to within a sixteenth."""


@dataclass(frozen=True)
class Settings:
    """How an index is searched.

    Attributes:
        breadth: efSearch or nprobe while 100 items are wanted; 0 where there is neither.
        slack: places proposed for each item wanted.
        recall: recall@100 measured with these.
    """

    breadth: int = 0
    slack: int = 1
    recall: float = 1.0


def rounded(need: NDArray[np.int64]) -> NDArray[np.int64]:
    """``need`` (B,) up to powers of two: rows share calls, and each one's is its own affair."""
    return np.exp2(np.ceil(np.log2(np.maximum(need, 16)))).astype(np.int64)


def widened(proposer: Proposer, breadth: int, depth: float) -> int:
    """The breadth for a search ``depth`` places deep where ``breadth`` is enough for 100.

    In proportion for a graph, by the root for lists. Of 200,000 x 64, tuned to .95 and filtered to
    a half, a fifth and a twentieth, lists then find .98 to 1 of the exact answer, a graph .94, .91
    and .84: what lies deep is poorly linked.
    """
    if depth <= JUDGED_DEPTH:
        return breadth
    growth = depth / JUDGED_AT
    return min(proposer.widest, int(np.ceil(breadth * growth**proposer.growth)))


def auto_kind(n_items: int, looked_at: float, width: int) -> str:
    """The kind for a catalogue: "exact", then lists of floats, then lists of codes.

    ``looked_at`` is the :func:`effort` of exact search. A graph is never chosen: on vectors of the
    kind that factorisation makes it took three times as long as lists for the same recall, and six
    times as long to build (docs/negative-results.md).
    """
    if looked_at <= EXACT_ITEMS:
        return "exact"
    lists = 1 << round(np.log2(4 * np.sqrt(n_items)))
    return f"IVF{lists},Flat" if n_items < CODED_ITEMS else f"IVF{lists},PQ{width}x4fsr"


def effort(vectors: Scores, queries: Scores, last: Scores) -> float:
    """How many of ``vectors`` (n, d) exact search cannot rule out by their norm, on average.

    ``last`` (S,) is the score that an item has to beat for each of ``queries`` (S, d); by
    Cauchy-Schwarz it takes a norm of last / |query|.
    """
    norms = np.sort(np.linalg.norm(vectors, axis=1))
    needed = last / np.linalg.norm(queries, axis=1)
    return float((len(norms) - np.searchsorted(norms, needed)).mean())


def sampled(vectors: Scores) -> Scores:
    """At most ``SAMPLE`` rows of ``vectors`` (n, d), drawn by a fixed seed, none of them zero."""
    rows = np.flatnonzero(vectors.any(axis=1))
    if len(rows) > SAMPLE:
        rows = np.sort(np.random.default_rng(0).choice(rows, SAMPLE, replace=False))
    return vectors[rows]


def tuned(
    proposer: Proposer, queries: Scores, wanted: NDArray[np.int64], target: float, *, threads: int
) -> Settings:
    """The least breadth and slack with which recall@100 reaches ``target``, or else the largest.

    Args:
        proposer: what is tuned.
        queries: (S, d).
        wanted: (S, K) the places of each query's exact answer, -1 for padding.
        target: in (0, 1].
        threads: for the search.

    A place proposed is scored exactly afterwards, so recall is the share of ``wanted`` that is
    proposed. Where codes propose, half of the misses allowed are left to the breadth and half to
    the slack; then the breadth is chosen again with that slack.
    """
    if not (wanted >= 0).any():
        return Settings(proposer.widest)

    def ranks(breadth: int, slack: int) -> NDArray[np.int64]:
        fetch = min(slack * JUDGED_DEPTH, proposer.size)
        return _ranks(wanted, proposer.propose(queries, fetch, breadth, None, threads=threads))

    def least(slack: int, share: float) -> int:
        return _least(lambda breadth: _share(ranks(breadth, slack)) >= share, proposer.widest)

    slack = 1
    if proposer.compressed:
        deepest = _SLACK[-1]
        found = ranks(least(deepest, (1 + target) / 2), deepest)
        enough = (s for s in _SLACK if _share(found, s * JUDGED_DEPTH) >= target)
        slack = next(enough, deepest)
    breadth = least(slack, target)
    return Settings(breadth, slack, _share(ranks(breadth, slack)))


def report(kind: str, settings: Settings, judges: str, target: float) -> None:
    """Log what tuning came to, and warn where it is below ``target``."""
    _log.info(
        "FAISS %s: recall@100 %.3f on %s, breadth %d, %d proposed for each item wanted",
        kind, settings.recall, judges, settings.breadth, settings.slack,
    )  # fmt: skip
    if settings.recall < target:
        _log.warning(
            "FAISS %s finds %.3f of the exact top 100, target_recall is %g: take another kind "
            "(longer codes, more links), spec='auto' or 'exact', or a lower target",
            kind, settings.recall, target,
        )  # fmt: skip


def _least(enough: Callable[[int], bool], most: int) -> int:
    """About the least number up to ``most`` that is ``enough``; ``most`` where none is.

    Doubled from one until it is enough, then halved back towards the last that was not.
    """
    low, high = 0, min(1, most)
    while high < most and not enough(high):
        low, high = high, min(2 * high, most)
    for _ in range(_STEPS):
        middle = (low + high) // 2
        if middle in (low, high):
            break
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _ranks(wanted: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """(m,) where each real place of ``wanted`` (S, K) stands in its row of ``places`` (S, n).

    ``_ABSENT`` where it is not there.
    """
    ranks = []
    for targets, row in zip(wanted, places, strict=True):
        order = np.argsort(row, kind="stable")
        spots = np.searchsorted(row, targets[targets >= 0], sorter=order)
        spots = order[np.minimum(spots, len(row) - 1)]
        ranks.append(np.where(row[spots] == targets[targets >= 0], spots, _ABSENT))
    return np.concatenate(ranks)


def _share(ranks: NDArray[np.int64], depth: int = _ABSENT) -> float:
    """The share of ``ranks`` before ``depth``."""
    return float((ranks < depth).mean())
