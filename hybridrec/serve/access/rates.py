"""How many requests a second a caller may make."""

from __future__ import annotations

import math
import time


class Rates:
    """Counts the requests of every caller in this process, in a window that slides.

    The window is as long as ``rate`` needs for ``burst``, rounded up to whole seconds, and what may
    come in it is what ``rate`` makes of that: at once ``burst``, and up to a second's worth more.

    Args:
        rate: requests a second; None sets no limit.
        burst: requests at once.
    """

    def __init__(self, rate: float | None, burst: int) -> None:
        self._limiter = None
        if rate is None:
            return
        from limits import RateLimitItemPerSecond
        from limits.storage import MemoryStorage
        from limits.strategies import SlidingWindowCounterRateLimiter

        seconds = max(1, math.ceil(burst / rate))
        self._item = RateLimitItemPerSecond(max(burst, round(rate * seconds)), seconds)
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    def wait(self, caller: str) -> float | None:
        """Count a request; the seconds to wait where it is one too many, else None."""
        if self._limiter is None or self._limiter.hit(self._item, caller):
            return None
        stats = self._limiter.get_window_stats(self._item, caller)
        return max(0.1, stats.reset_time - time.time())
