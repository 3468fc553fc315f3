"""How long recall takes: what a deadline is held against before anything is begun."""

from __future__ import annotations

import threading
from collections import deque

from hybridrec.checks import real_number, whole_number


class Pace:
    """A high quantile of how long the newest batches took without their reranking; thread-safe.

    Args:
        window: batches remembered.
        quantile: of their seconds; a deadline missed costs more than one that was met early.
    """

    def __init__(self, window: int = 64, quantile: float = 0.9) -> None:
        self._seconds: deque[float] = deque(maxlen=whole_number("window", window, least=1))
        self._quantile = real_number("quantile", quantile, least=0.0, below=1.0)
        self._guard = threading.Lock()

    def observe(self, seconds: float) -> None:
        """A batch took ``seconds``."""
        with self._guard:
            self._seconds.append(seconds)

    def expected(self) -> float:
        """Seconds that the next batch will take; 0 while nothing is known."""
        with self._guard:
            known = sorted(self._seconds)
        return known[int(self._quantile * len(known))] if known else 0.0

    def clear(self) -> None:
        """Forget what was seen: the first batch of a process compiles."""
        with self._guard:
            self._seconds.clear()
