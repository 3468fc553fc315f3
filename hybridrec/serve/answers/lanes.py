"""Threads for work that blocks: each kind of it has its own, so that none can hold up another."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from hybridrec.serve.answers.batching import QueueFull

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")

_AGAIN = 1.0
"""Seconds after which who was turned away may come again."""


class Lane:
    """Some threads, and a limit to what waits for them.

    Args:
        name: what it does, in one word.
        threads: how many.
        most: calls that run and wait.
    """

    def __init__(self, name: str, *, threads: int, most: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=f"hybridrec-{name}")
        self._name = name
        self._most = most
        self._inside = 0

    async def run(self, call: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """What ``call`` returns, in one of the threads.

        Raises:
            QueueFull: too many wait already.
        """
        if self._inside >= self._most:
            raise QueueFull(
                f"{self._inside} {self._name} are waiting, which is as many as may: try again in "
                f"{_AGAIN:g} s",
                retry_after=_AGAIN,
            )
        self._inside += 1
        try:
            work = partial(copy_context().run, partial(call, *args, **named))
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        finally:
            self._inside -= 1

    def close(self) -> None:
        """Wait for what runs, and end the threads."""
        self._executor.shutdown()
