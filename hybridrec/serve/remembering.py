"""A sample of what is asked, kept to check new models with."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import TYPE_CHECKING

from hybridrec.checks import HybridrecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hybridrec.serve.answers.asking import Id
    from hybridrec.serve.answers.lanes import Lane
    from hybridrec.serve.store.contract import Store

_LEAST_SHARE = 0.001


class Sample:
    """Keeps the n-th query with probability size / n, so that a busy service rarely writes.

    Args:
        store: where they are kept; it keeps none of a user who was forgotten meanwhile.
        lane: the threads that write there.
        size: queries wanted; 0 keeps none.
        seed: of the choice.
    """

    def __init__(self, store: Store, lane: Lane, size: int, *, seed: int = 0) -> None:
        self._store = store
        self._lane = lane
        self._size = size
        self._random = random.Random(seed)
        self._asked = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(self, user: str | None, history: Sequence[Id]) -> None:
        """A query was answered; it may be kept, in the background."""
        if not self._size or not history:
            return
        self._asked += 1
        if self._random.random() < max(_LEAST_SHARE, self._size / self._asked):
            task = asyncio.create_task(self._keep(user, [str(item) for item in history]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Wait for what is being written."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _keep(self, user: str | None, history: list[str]) -> None:
        # A store that is away shows in every request; a query that is not kept harms nobody.
        with suppress(HybridrecError):
            await self._lane.run(self._store.keep_query, user, history)
