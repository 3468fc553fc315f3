"""Queries as a network reads them: prompts, vectors and the tokens of the catalogue."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hybridrec.bars import track
from hybridrec.rerank.prefix_cache import PrefixCache

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from hybridrec.deadline import Deadline
    from hybridrec.ragged import Items, Ragged, Scores
    from hybridrec.rerank.network import Network
    from hybridrec.rerank.prompt import TokenTable
    from hybridrec.rerank.vectors import Vectors

__all__ = ["Reading"]

QUERIES_A_PART = 64
"""Queries laid out at a time when scoring; a step of the progress bar."""

STEP_COLUMNS, STEP_QUERIES = 8, 16
"""Candidates of the first step, and queries, between two looks at the clock with a deadline."""

STEP_SHARE = 0.5
"""Of the time that is left, what a later step may be expected to take."""

STEP_MEGABYTES = 256
"""Memory for the prompts of a request with a deadline where no cache is kept between requests."""


@dataclass(frozen=True, eq=False)
class Reading:
    """B queries laid out for a network.

    Attributes:
        network: the weights.
        table: token ids of the catalogue.
        prompts: B rows of token ids.
        users: (B,) their codes, -1 unknown.
        vectors: of the queries and of the catalogue; None where the network reads none.
    """

    network: Network
    table: TokenTable
    prompts: Ragged
    users: NDArray[np.int32]
    vectors: Vectors | None

    def scores(self, items: Items, *, plain: bool = False) -> Scores:
        """(B, K) float32 scores of (B, K) codes, -inf where the code is -1.

        ``plain`` scores pair by pair in float32, to check by.
        """
        scores = np.full(items.shape, -np.inf, dtype=np.float32)
        for start in track(range(0, len(items), QUERIES_A_PART), "reranking"):
            part = np.arange(start, min(start + QUERIES_A_PART, len(items)))
            scores[part] = self._part(part, items[part], None, plain=plain)
        return scores

    def scores_within(self, items: Items, deadline: Deadline) -> Scores:
        """(B, reached) scores of the first columns, as many as there is time for.

        A step that is expected to end late is not begun, and one found to be late on its way is
        thrown away. What is expected of the first, which reads the prompts, is what first steps
        took of late; of a later one, what a column of the one before took. Many small steps cost
        up to twice what few wide ones do, so they grow with the time left.
        """
        # Every step reads the same prompts.
        cache = None if self.network.keeps_prompts else PrefixCache(STEP_MEGABYTES)
        scores = np.full(items.shape, -np.inf, dtype=np.float32)
        first, width = 0, STEP_COLUMNS
        left, expected = deadline.left(), len(items) * self.network.pace.expected()
        while first < items.shape[1] and expected < left:
            step = slice(first, first + width)
            for start in range(0, len(items), STEP_QUERIES):
                if deadline.left() <= 0:
                    return scores[:, :first]
                part = np.arange(start, min(start + STEP_QUERIES, len(items)))
                began = time.perf_counter()
                scores[part, step] = self._part(part, items[part, step], cache)
                if not first:
                    self.network.pace.observe((time.perf_counter() - began) / len(part))
            first, began_with, left = first + width, left, deadline.left()
            a_column = (began_with - left) / width
            width = _next_width(a_column, left, items.shape[1] - first)
            expected = a_column * width
        return scores[:, :first]

    def trainable_scores(
        self, rows: NDArray[np.int64], lists: Items, prompts: Ragged | None = None
    ) -> Tensor:
        """(b, n) scores with gradients of lists (b, n) of the queries ``rows`` (b,).

        Args:
            rows: which queries.
            lists: item codes, -1 padded.
            prompts: b prompts instead of their own.
        """
        read = self.prompts.select(rows) if prompts is None else prompts
        vectors = None if self.vectors is None else self.vectors.select(rows)
        return self.network.trainable_scores(read, lists, self.table, vectors)

    def tokens(self, rows: NDArray[np.int64], lists: Items) -> NDArray[np.int64]:
        """(b,) the tokens that a forward pass over lists (b, n) of the queries ``rows`` reads."""
        read = self.prompts.lengths[rows]
        if self.network.mask == "full":
            read = read * (lists >= 0).sum(axis=1)
        own = np.where(lists >= 0, self.table.rows.lengths[lists], 0).sum(axis=1)
        return np.asarray(read + own, dtype=np.int64)

    def _part(
        self,
        rows: NDArray[np.int64],
        items: Items,
        cache: PrefixCache | None,
        *,
        plain: bool = False,
    ) -> Scores:
        return self.network.scores(
            self.prompts.select(rows), items, self.table,
            users=self.users[rows], cache=cache, plain=plain,
            vectors=None if self.vectors is None else self.vectors.select(rows),
        )  # fmt: skip


def _next_width(a_column: float, left: float, rest: int) -> int:
    """Columns of the next step: of the ``rest`` what a share of the seconds left allows."""
    allowed = STEP_SHARE * left / a_column if a_column > 0 else rest
    return min(rest, max(STEP_COLUMNS, int(allowed)))
