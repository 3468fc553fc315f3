"""What the stages made of some queries on the way to an answer."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hybridrec.candidates import Candidates
    from hybridrec.ragged import Mask


@dataclass(frozen=True, eq=False)
class Ranking:
    """An answer to B queries, and how it came to be. T of them had a history to rank by.

    Attributes:
        answer: (B, K) what is served.
        reranked: (B, K) bool, which of it the reranker has read.
        newcomers: (B, K) bool, which of it are items nobody has met, in places of their own.
        told: (B,) bool, the T queries with a history; the others got the popular items.
        recalled: (T, .) what recall brought, every signal on it; None where T is 0.
        ordered: (T, .) the same in the order that needs no reranker; None where T is 0.
        head: (T, .) the top of it with the reranker's score; None where it read nothing.
        seconds: wall time by stage: "recall", "fuse", "rerank", "newcomers".
    """

    answer: Candidates
    reranked: Mask
    newcomers: Mask
    told: Mask
    recalled: Candidates | None = None
    ordered: Candidates | None = None
    head: Candidates | None = None
    seconds: dict[str, float] = field(default_factory=dict)


class Stopwatch:
    """Adds up wall time by name.

    Attributes:
        seconds: name -> seconds so far.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """The block belongs to ``name``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            passed = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + passed
