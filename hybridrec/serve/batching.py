"""The queue in front of the model: what waits while a batch is computed is the next batch."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hybridrec.checks import HybridrecError, whole_number
from hybridrec.serve.store import ForgottenError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hybridrec.serve.asking import Answer, Ask, Id
    from hybridrec.serve.loaded import Loaded
    from hybridrec.serve.metrics_protocol import Metrics

    Answering = Callable[[Loaded, Sequence[Ask]], list[Answer | HybridrecError]]

__all__ = ["Batcher", "ClosedError", "QueueFull"]

_NEWEST = 0.2
"""Weight of the newest batch in the running mean of what an ask takes."""
_SHORTEST = 0.05
"""Seconds after which to come again at the earliest."""


class QueueFull(HybridrecError):  # noqa: N818 - what it is, as queue.Full
    """More asks wait than may; ``retry_after`` is when to come again, in seconds."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(
            f"{waiting} requests are waiting, which is as many as may: try again in "
            f"{retry_after:.2f} s"
        )
        self.retry_after = retry_after


class ClosedError(HybridrecError):
    """The service is shutting down and takes no more."""


@dataclass(eq=False)
class _Waiting:
    """An ask in the queue, and who waits for its answer."""

    loaded: Loaded
    ask: Ask
    future: asyncio.Future[Answer]
    loop: asyncio.AbstractEventLoop
    since: float = field(default_factory=time.perf_counter)
    forgotten: bool = False


class Batcher:
    """One thread that answers whatever waits, at most ``batch`` asks at a time.

    It waits for no company: alone, an ask is answered at once; under load, batches fill themselves.
    Asks are answered in the order they came in, and none shares a batch with another version's.

    Args:
        answer: what answers a batch, in that thread.
        queue: asks that may wait.
        batch: asks answered together at most.
        metrics: told of batches, the queue and the time spent in it.
    """

    def __init__(
        self, answer: Answering, *, queue: int, batch: int, metrics: Metrics | None = None
    ) -> None:
        self._answer, self._metrics = answer, metrics
        self._room = whole_number("queue", queue, least=1)
        self._most = whole_number("batch", batch, least=1)
        self._queue: deque[_Waiting] = deque()
        self._computed: Sequence[_Waiting] = ()
        self._changed = threading.Condition()
        self._closed = False
        self._an_ask = 0.0  # seconds, a running mean; 0 while nothing is known
        self._thread = threading.Thread(target=self._work, name="hybridrec-batches", daemon=True)

    @property
    def waiting(self) -> int:
        """Asks in the queue, those being answered not among them."""
        return len(self._queue)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    async def submit(self, loaded: Loaded, ask: Ask) -> Answer:
        """What ``loaded`` answers to ``ask``, when its turn has come.

        Cancelled while it waits, it costs nothing.

        Raises:
            QueueFull: too many wait.
            ClosedError: the batcher is drained or being drained.
            ForgottenError: its user was forgotten meanwhile.
            HybridrecError: what is wrong with the ask.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(loaded, ask, loop.create_future(), loop)
        with self._changed:
            if self._closed:
                raise ClosedError("the service is shutting down: ask another one, or again later")
            if len(self._queue) >= self._room:
                raise QueueFull(len(self._queue), self._retry_after())
            self._queue.append(waiting)
            self._changed.notify()
        self._tell_queue()
        try:
            return await waiting.future
        except asyncio.CancelledError:
            self._remove(waiting)
            raise

    def drop(self, user: Id) -> int:
        """Take every ask of ``user`` out, and how many that were: they get ForgottenError.

        Those being answered just now as well; what the model kept of them is forgotten when they
        are done.
        """
        name = str(user)
        with self._changed:
            gone = [one for one in self._queue if _of(one, name)]
            for one in gone:
                self._queue.remove(one)
            running = [one for one in self._computed if _of(one, name)]
            for one in running:
                one.forgotten = True
        for one in gone:
            _settle(one, _forgotten())
        self._tell_queue()
        return len(gone) + len(running)

    async def drain(self) -> None:
        """Take no more, answer what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    # -- the thread -------------------------------------------------------------------------

    def _work(self) -> None:
        while batch := self._next():
            self._tell_queue()
            started = time.perf_counter()
            outcomes = self._outcomes(batch)
            spent = (time.perf_counter() - started) / len(batch)
            with self._changed:
                self._computed = ()
                known = self._an_ask
                self._an_ask = spent if not known else known + _NEWEST * (spent - known)
            for one, outcome in zip(batch, outcomes, strict=True):
                self._finish(one, outcome, started)

    def _next(self) -> list[_Waiting]:
        """The next batch; empty when there will be none."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            batch: list[_Waiting] = []
            while self._queue and len(batch) < self._most:
                if batch and self._queue[0].loaded is not batch[0].loaded:
                    break
                batch.append(self._queue.popleft())
            self._computed = batch
            return batch

    def _outcomes(self, batch: Sequence[_Waiting]) -> Sequence[Answer | Exception]:
        if self._metrics is not None:
            self._metrics.observe_batch(len(batch))
        try:
            return self._answer(batch[0].loaded, [one.ask for one in batch])
        except Exception as error:
            # Whatever it is, it is told to those who asked; the next batch is not to blame.
            return [error] * len(batch)

    def _finish(self, one: _Waiting, outcome: Answer | Exception, started: float) -> None:
        if one.forgotten:
            if one.ask.user is not None:
                one.loaded.forget(one.ask.user)
            outcome = _forgotten()
        elif not isinstance(outcome, Exception):
            queued = started - one.since
            outcome = replace(outcome, seconds={"queue": queued, **outcome.seconds})
            if self._metrics is not None:
                self._metrics.observe_stage("queue", queued)
        _settle(one, outcome)

    # -- small things -----------------------------------------------------------------------

    def _remove(self, waiting: _Waiting) -> None:
        with self._changed:
            if waiting in self._queue:
                self._queue.remove(waiting)
        self._tell_queue()

    def _retry_after(self) -> float:
        """Seconds until those who wait now will have been answered."""
        return max(_SHORTEST, self._an_ask * (len(self._queue) + len(self._computed)))

    def _tell_queue(self) -> None:
        if self._metrics is not None:
            self._metrics.set_queue(len(self._queue))


def _of(one: _Waiting, user: str) -> bool:
    return one.ask.user is not None and str(one.ask.user) == user


def _forgotten() -> ForgottenError:
    return ForgottenError("the user was forgotten while the request was waiting")


def _settle(one: _Waiting, outcome: Answer | Exception) -> None:
    """Tell the one who waits, in the loop it waits in."""

    def settle() -> None:
        if one.future.done():
            return
        if isinstance(outcome, Exception):
            one.future.set_exception(outcome)
        else:
            one.future.set_result(outcome)

    try:
        one.loop.call_soon_threadsafe(settle)
    except RuntimeError:
        pass  # its loop is closed: nobody waits any more
