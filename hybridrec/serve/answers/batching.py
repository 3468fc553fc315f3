"""The queue in front of the model: what waits while a batch is computed is the next batch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hybridrec.checks import HybridrecError, whole_number
from hybridrec.serve.answers.asking import Answer
from hybridrec.serve.store.contract import ForgottenError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from hybridrec.serve.answers.asking import Ask, Id
    from hybridrec.serve.versions.loaded import Loaded
    from hybridrec.serve.watch.metrics_protocol import Meter

    Answering = Callable[
        [Loaded, Sequence[Ask]], Iterable[list[tuple[int, Answer | HybridrecError]]]
    ]

_log = logging.getLogger("hybridrec")

__all__ = ["Batcher", "ClosedError", "QueueFull"]

_NEWEST = 0.2
"""Weight of the newest batch in the running mean of what an ask takes."""
_SHORTEST = 0.05
"""Seconds after which to come again at the earliest."""


class QueueFull(HybridrecError):  # noqa: N818 - what it is, as queue.Full
    """More asks wait than may; ``retry_after`` is when to come again, in seconds."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
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
        answers: what answers a batch, in that thread: parts of (place, answer), each told at once.
        queue: asks that may wait.
        batch: asks answered together at most.
        metrics: told of batches, stages, the queue, degradations and the reranker's cache.
    """

    def __init__(
        self, answers: Answering, *, queue: int, batch: int, metrics: Meter | None = None
    ) -> None:
        self._answers, self._metrics = answers, metrics
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
                raise _closing()
            if len(self._queue) >= self._room:
                raise self._full()
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
        _settle([(one, _forgotten()) for one in gone])
        self._tell_queue()
        return len(gone) + len(running)

    async def drain(self) -> None:
        """Take no more, answer what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)
        with self._changed:
            left = list(self._queue)  # of a batcher that was never started
            self._queue.clear()
        _settle([(one, _closing()) for one in left])

    # -- the thread -------------------------------------------------------------------------

    def _work(self) -> None:
        while self._round():
            pass

    def _round(self) -> bool:
        """Answer one batch, of which nothing is held then; False when there will be none."""
        batch = self._next()
        self._tell_queue()
        try:
            if batch:
                self._compute(batch)
        except Exception as error:
            # Whatever it is, it is told to those who asked; the next batch is not to blame.
            _log.exception("a batch of %d requests failed", len(batch))
            _settle([(one, _finished(one, error, 0.0)) for one in batch])
        finally:
            self._computed = ()
        return bool(batch)

    def _next(self) -> list[_Waiting]:
        """The next batch; empty when there will be none."""
        with self._changed:
            while not (batch := self._taken()):
                if self._closed and not self._queue:
                    break
                self._changed.wait()
            self._computed = batch
            return batch

    def _taken(self) -> list[_Waiting]:
        """The first of the queue that one version can answer together, the cancelled dropped."""
        batch: list[_Waiting] = []
        while self._queue and len(batch) < self._most:
            if batch and self._queue[0].loaded is not batch[0].loaded:
                break
            one = self._queue.popleft()
            if not one.future.cancelled():
                batch.append(one)
        return batch

    def _compute(self, batch: Sequence[_Waiting]) -> None:
        started = time.perf_counter()
        outcomes: list[Answer | HybridrecError] = []
        begun = started
        try:
            for part in self._answers(batch[0].loaded, [one.ask for one in batch]):
                pairs = [(batch[place], outcome) for place, outcome in part]
                done = [one for one, _ in pairs]
                now = time.perf_counter()
                spent, begun = (now - begun) / len(part), now
                self._an_ask = (
                    self._an_ask + _NEWEST * (spent - self._an_ask) if self._an_ask else spent
                )
                with self._changed:  # from here on none of these is flagged as forgotten
                    self._computed = [one for one in self._computed if one not in done]
                _settle([(one, _finished(one, outcome, started)) for one, outcome in pairs])
                outcomes += [outcome for _, outcome in pairs]
        finally:  # whatever becomes of the rest, these have been told
            if self._metrics is not None:
                _tell(self._metrics, batch, outcomes, started)
                self._tell_queue()

    # -- small things -----------------------------------------------------------------------

    def _remove(self, waiting: _Waiting) -> None:
        with self._changed:
            if waiting in self._queue:
                self._queue.remove(waiting)
        self._tell_queue()

    def _full(self) -> QueueFull:
        """The refusal that says when those who wait now will have been answered."""
        waiting = len(self._queue)
        wait = max(_SHORTEST, self._an_ask * (waiting + len(self._computed)))
        return QueueFull(
            f"{waiting} requests are waiting, which is as many as may: try again in {wait:.2f} s",
            retry_after=wait,
        )

    def _tell_queue(self) -> None:
        if self._metrics is not None:
            with self._changed:  # or an older length may be told last
                self._metrics.set_queue(len(self._queue))


def _of(one: _Waiting, user: str) -> bool:
    return one.ask.user is not None and str(one.ask.user) == user


def _forgotten() -> ForgottenError:
    return ForgottenError("the user was forgotten while the request was waiting")


def _closing() -> ClosedError:
    return ClosedError("the service is shutting down: ask another one, or again later")


def _tell(
    metrics: Meter, batch: Sequence[_Waiting], outcomes: Sequence[object], started: float
) -> None:
    """Count a batch: what was computed together, once."""
    metrics.observe_batch(len(batch))
    for one in batch:
        metrics.observe_stage("queue", started - one.since)
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    for seconds in {id(answer.seconds): answer.seconds for answer in answers}.values():
        for name, spent in seconds.items():
            metrics.observe_stage(name, spent)
    for answer in answers:
        if answer.degraded is not None:
            metrics.count_degraded(answer.degraded)
    metrics.count_cache(*batch[0].loaded.cache_counts())


def _finished(one: _Waiting, outcome: Answer | Exception, started: float) -> Answer | Exception:
    """What one who waited is told, whose batch was begun at ``started``."""
    if one.forgotten:
        if one.ask.user is not None:
            one.loaded.forget(one.ask.user)
        return _forgotten()
    if isinstance(outcome, Exception):
        return outcome
    return replace(outcome, seconds={"queue": started - one.since, **outcome.seconds})


def _settle(pairs: Sequence[tuple[_Waiting, Answer | Exception]]) -> None:
    """Tell those who wait, in the loops they wait in."""

    def settle(told: Sequence[tuple[_Waiting, Answer | Exception]]) -> None:
        for one, outcome in told:
            if one.future.done():
                continue
            if isinstance(outcome, Exception):
                one.future.set_exception(outcome)
            else:
                one.future.set_result(outcome)

    for loop in {one.loop for one, _ in pairs}:
        told = [pair for pair in pairs if pair[0].loop is loop]
        with contextlib.suppress(RuntimeError):  # it is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, told)
