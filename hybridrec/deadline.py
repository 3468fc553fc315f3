"""How long an answer may take."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

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
