"""How long an answer may take, and how long a part of it is expected to."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from hybridrec.checks import real_number, whole_number

if TYPE_CHECKING:
    from collections.abc import Callable


class Deadline:
    """A moment from which on nothing more is begun.

    Args:
        milliseconds: from now.
        clock: seconds, never falling.
    """

    def __init__(self, milliseconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + milliseconds / 1000

    def left(self) -> float:
        """Seconds; negative when it is over."""
        return self._end - self._clock()


class Pace:
    """How long a thing is expected to take by how long things of its size took; thread-safe.

    Sizes are told apart by powers of two: who comes alone is not told what a crowd waited. What is
    not begun because it would take too long teaches nothing new: so what was seen is
    forgotten after a while, and then it is tried again.

    Args:
        window: times of a size remembered at most.
        quantile: of them.
        least: times of a size seen before anything is expected.
        memory: seconds after which a time is forgotten.
        clock: seconds, never falling.
    """

    def __init__(
        self,
        *,
        window: int = 64,
        quantile: float = 0.5,
        least: int = 1,
        memory: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._window = whole_number("window", window, least=1)
        self._seen: dict[int, deque[tuple[float, float]]] = {}
        self._quantile = real_number("quantile", quantile, least=0.0, below=1.0)
        self._least = whole_number("least", least, least=1)
        self._memory = real_number("memory", memory, above=0.0)
        self._clock = clock
        self._guard = threading.Lock()

    def observe(self, seconds: float, size: int = 1) -> None:
        """It took ``seconds``."""
        with self._guard:
            seen = self._seen.setdefault(size.bit_length(), deque(maxlen=self._window))
            seen.append((self._clock(), seconds))

    def expected(self, size: int = 1) -> float:
        """Seconds that it will take: what its size took, or else the next smaller one known.

        0 while too little is known.
        """
        with self._guard:
            for place in range(size.bit_length(), -1, -1):
                known = self._known(place)
                if len(known) >= self._least:
                    return known[int(self._quantile * len(known))]
        return 0.0

    def clear(self) -> None:
        """Forget what was seen: the first of a process compiles."""
        with self._guard:
            self._seen.clear()

    def _known(self, place: int) -> list[float]:
        """The times of a size that are not forgotten, in order."""
        seen, since = self._seen.get(place, deque()), self._clock() - self._memory
        while seen and seen[0][0] < since:
            seen.popleft()
        return sorted(seconds for _, seconds in seen)
