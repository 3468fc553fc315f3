"""A sample of what is asked, kept to check new models with; and who is not to be kept."""

from __future__ import annotations

import asyncio
import hashlib
import random
import secrets
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hybridrec.serve.asking import Id
    from hybridrec.serve.store import Store

_LEAST_SHARE = 0.001
_LONGEST_REQUEST = 900.0


class Sample:
    """Keeps the n-th query with probability size / n, so that a busy service rarely writes.

    Args:
        store: where they are kept.
        size: queries wanted; 0 keeps none.
        seed: of the choice.
        clock: seconds, never falling; the one of the requests' ``arrived``.
    """

    def __init__(
        self,
        store: Store,
        size: int,
        *,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._size = size
        self._random = random.Random(seed)
        self._clock = clock
        self._asked = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._forgotten: dict[bytes, float] = {}
        self._salt = secrets.token_bytes(32)

    def offer(self, user: str | None, history: Sequence[Id], arrived: float) -> None:
        """A query was answered; it may be kept, in the background."""
        if not self._size or not history:
            return
        self._asked += 1
        if self._random.random() >= max(_LEAST_SHARE, self._size / self._asked):
            return
        if user is not None and self._forgotten.get(self._mark(user), -1.0) >= arrived:
            return
        items = [str(item) for item in history]
        task = asyncio.create_task(asyncio.to_thread(self._store.keep_query, user, items))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def forget(self, user: str) -> None:
        """From now on no query of ``user`` is kept that came in before; none is being written."""
        now = self._clock()
        for other, moment in list(self._forgotten.items()):
            if moment < now - _LONGEST_REQUEST:
                del self._forgotten[other]
        self._forgotten[self._mark(user)] = now
        await self.settle()

    async def settle(self) -> None:
        """Wait for what is being written."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    def _mark(self, user: str) -> bytes:
        """Stands for a user who is not to be remembered, in what remembers that."""
        return hashlib.blake2b(user.encode(), key=self._salt, digest_size=16).digest()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        # A store that is away shows in every request; a query that was not kept harms nobody.
        if not task.cancelled():
            task.exception()
