"""The queue: bounded, first in first out, one version a batch; nobody's trouble is another's."""

import asyncio
import gc
import threading
import time
import weakref
from collections import Counter
from dataclasses import replace

import pytest

import hybridrec as hr
from hybridrec.deadline import Deadline
from hybridrec.serve.answers.answering import answer, answers
from hybridrec.serve.answers.asking import Answer, Ask
from hybridrec.serve.answers.batching import Batcher, ClosedError, QueueFull
from hybridrec.serve.store.contract import ForgottenError

ASK = Ask(history=("i1", "i2"))


class Gate:
    """The real answers, held back until the gate opens; notes what came in which batch."""

    def __init__(self, *, is_open=False):
        self.batches = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        if is_open:
            self.gate.set()

    def __call__(self, loaded, asks):
        self.batches.append((loaded, list(asks)))
        self.entered.release()
        assert self.gate.wait(30)
        return answers(loaded, asks)


class Counts:
    """Counts what it is told, by name."""

    def __init__(self):
        self.told = Counter()
        self.cache = Counter()

    def observe_stage(self, name, seconds):
        assert seconds >= 0
        self.told[name] += 1

    def observe_batch(self, size):
        self.told["batch", size] += 1

    def set_queue(self, n):
        self.told["queue length"] = n

    def count_degraded(self, kind):
        self.told[kind] += 1

    def count_cache(self, hits, misses):
        self.cache.update(hits=hits, misses=misses)


def running(test, make=Gate, **options):
    """Run ``test(batcher, gate)`` with a batcher that is drained behind it."""
    gate = make()

    async def run():
        batcher = Batcher(gate, **{"queue": 100, "batch": 4, **options})
        batcher.start()
        try:
            return await asyncio.wait_for(test(batcher, gate), 60)
        finally:
            gate.gate.set()
            await batcher.drain()

    return asyncio.run(run())


async def entered(gate):
    """A batch is being computed."""
    assert await asyncio.to_thread(gate.entered.acquire, timeout=30)


async def held(batcher, gate, loaded, asks, first=ASK):
    """Tasks of ``asks``, all of them in the queue behind ``first``, which is being answered."""
    busy = asyncio.create_task(batcher.submit(loaded, first))
    await entered(gate)
    tasks = []
    for ask in asks:
        tasks.append(asyncio.create_task(batcher.submit(loaded, ask)))
        await asyncio.sleep(0)
    return busy, tasks


def asks(n):
    return [Ask(history=("i1",), k=1 + place) for place in range(n)]


def test_one_alone_is_answered_at_once_and_says_how_long_it_waited(loaded):
    async def test(batcher, gate):
        gate.gate.set()
        found = await batcher.submit(loaded, ASK)
        assert isinstance(found, Answer)
        assert [each.item for each in found.items] == [
            each.item for each in answer(loaded, [ASK])[0].items
        ]
        assert 0 <= found.seconds["queue"] < 5
        assert "recall" in found.seconds

    running(test)


def test_what_waits_is_the_next_batch_in_the_order_it_came(loaded):
    async def test(batcher, gate):
        busy, tasks = await held(batcher, gate, loaded, asks(7))
        assert batcher.waiting == 7
        gate.gate.set()
        found = await asyncio.gather(busy, *tasks)
        assert [len(each.items) for each in found[1:]] == [1, 2, 3, 4, 5, 6, 7]
        assert [len(batch) for _, batch in gate.batches] == [1, 4, 3]
        assert [ask.k for _, batch in gate.batches[1:] for ask in batch] == [1, 2, 3, 4, 5, 6, 7]
        assert batcher.waiting == 0

    running(test)


def test_a_batch_holds_one_version(loaded):
    other = replace(loaded, version="other")

    async def test(batcher, gate):
        busy, first = await held(batcher, gate, loaded, asks(2))
        second = [asyncio.create_task(batcher.submit(other, ask)) for ask in asks(2)]
        await asyncio.sleep(0)
        third = asyncio.create_task(batcher.submit(loaded, ASK))
        await asyncio.sleep(0)
        gate.gate.set()
        found = await asyncio.gather(busy, *first, *second, third)
        versions = [loaded.version] * 3 + ["other"] * 2 + [loaded.version]
        assert [each.version for each in found] == versions
        assert [len(batch) for _, batch in gate.batches] == [1, 2, 2, 1]

    running(test)


def test_beyond_the_queue_it_says_when_to_come_again(loaded):
    async def test(batcher, gate):
        batcher._an_ask = 0.5
        busy, tasks = await held(batcher, gate, loaded, asks(3))
        with pytest.raises(QueueFull, match="3 requests are waiting") as refused:
            await batcher.submit(loaded, ASK)
        assert refused.value.retry_after == pytest.approx(0.5 * 4)
        tasks[0].cancel()
        await asyncio.gather(tasks[0], return_exceptions=True)
        replaced = asyncio.create_task(batcher.submit(loaded, ASK))  # there is room again
        gate.gate.set()
        await asyncio.gather(busy, *tasks[1:], replaced)

    running(test, queue=3)


def test_throughput_is_learnt_from_what_was_answered(loaded):
    async def test(batcher, gate):
        gate.gate.set()
        assert batcher._an_ask == 0.0
        await batcher.submit(loaded, ASK)
        first = batcher._an_ask
        assert 0 < first < 30
        await asyncio.gather(*(batcher.submit(loaded, ASK) for _ in range(4)))
        assert batcher._an_ask != first

    running(test)


def test_who_has_gone_costs_nothing(loaded):
    async def test(batcher, gate):
        busy, tasks = await held(batcher, gate, loaded, asks(4))
        for task in tasks[:3]:
            task.cancel()
        gate.gate.set()  # before the loop has told the batcher
        outcomes = await asyncio.gather(busy, *tasks, return_exceptions=True)
        assert [isinstance(each, asyncio.CancelledError) for each in outcomes] == [
            False,
            True,
            True,
            True,
            False,
        ]
        assert [[ask.k for ask in batch] for _, batch in gate.batches] == [[10], [4]]

    running(test)


def test_an_error_of_one_is_raised_to_that_one(loaded):
    async def test(batcher, gate):
        wrong = Ask(history=("nothing like it",))
        busy, tasks = await held(batcher, gate, loaded, [ASK, wrong, ASK])
        gate.gate.set()
        _, first, error, last = await asyncio.gather(busy, *tasks, return_exceptions=True)
        assert isinstance(error, hr.UnknownIdError)
        assert isinstance(first, Answer)
        assert isinstance(last, Answer)

    running(test)


def test_a_batch_that_breaks_takes_nobody_else_with_it(loaded, caplog):
    class Breaking(Gate):
        def __call__(self, loaded, asks):
            found = super().__call__(loaded, asks)
            if any(ask.k == 3 for ask in asks):
                raise ZeroDivisionError("broken")
            return found

    async def test(batcher, gate):
        busy, tasks = await held(batcher, gate, loaded, asks(8))
        gate.gate.set()
        outcomes = await asyncio.gather(busy, *tasks, return_exceptions=True)
        broken = [isinstance(each, ZeroDivisionError) for each in outcomes]
        assert broken == [False, *[True] * 4, *[False] * 4]
        assert isinstance(await batcher.submit(loaded, ASK), Answer)

    running(test, make=Breaking)
    assert "a batch of 4 requests failed" in caplog.text


def test_what_was_told_of_a_batch_that_broke_is_counted(loaded):
    class Breaking(Gate):
        def __call__(self, loaded, asks):
            yield next(iter(super().__call__(loaded, asks[:1])))
            if len(asks) > 1:
                raise ZeroDivisionError

    counts = Counts()

    async def test(batcher, gate):
        late = replace(ASK, deadline=Deadline(-1.0))
        busy, tasks = await held(batcher, gate, loaded, [late, ASK])
        gate.gate.set()
        outcomes = await asyncio.gather(busy, *tasks, return_exceptions=True)
        assert [type(each) for each in outcomes] == [Answer, Answer, ZeroDivisionError]
        await batcher.drain()

    running(test, make=Breaking, metrics=counts)
    assert counts.told["batch", 1] == counts.told["batch", 2] == 1
    assert counts.told["popularity"] == 1


def test_nobody_waits_for_whom_he_shares_no_ranking_with(loaded):
    class Slow(Gate):
        def __call__(self, loaded, asks):
            self.batches.append((loaded, list(asks)))
            for part in answers(loaded, asks):
                self.entered.release()
                assert self.gate.wait(30)
                yield part
                self.gate.clear()

    urgent = Ask(history=("i3",), deadline=Deadline(60))

    async def test(batcher, gate):
        busy, tasks = await held(batcher, gate, loaded, [ASK, replace(ASK, explain=True), urgent])
        for done in (busy, tasks[2], tasks[0], tasks[1]):
            assert not done.done()
            gate.gate.set()
            assert isinstance(await done, Answer)
            await entered(gate) if done is not tasks[1] else None

    running(test, make=Slow)


def test_a_forgotten_user_is_taken_out_wherever_he_waits(loaded):
    mine = Ask(user="u7", history=("i8", "i9", "i11"))
    ours = Ask(user=7, history=("i1",))

    async def test(batcher, gate):
        busy, tasks = await held(batcher, gate, loaded, [ours, mine, Ask(user="u70"), mine], mine)
        assert batcher.drop("u7") == 3
        assert batcher.waiting == 2
        gate.gate.set()
        outcomes = await asyncio.gather(busy, *tasks, return_exceptions=True)
        gone = [isinstance(each, ForgottenError) for each in outcomes]
        assert gone == [True, False, True, False, True]
        # What the batch that was under way kept of him is gone with it.
        assert loaded.forget("u7") == 0
        assert batcher.drop("u7") == 0

    running(test)


def test_draining_answers_what_waits_and_takes_no_more(loaded):
    async def test(batcher, gate):
        busy, tasks = await held(batcher, gate, loaded, asks(6))
        draining = asyncio.create_task(batcher.drain())
        await asyncio.sleep(0.01)
        with pytest.raises(ClosedError, match="shutting down"):
            await batcher.submit(loaded, ASK)
        gate.gate.set()
        found = await asyncio.gather(busy, *tasks)
        assert all(isinstance(each, Answer) for each in found)
        await draining
        await batcher.drain()
        assert not batcher._thread.is_alive()

    running(test)


def test_a_batcher_that_was_never_started_leaves_nobody_waiting(loaded):
    async def test():
        batcher = Batcher(answers, queue=4, batch=2)
        waiting = asyncio.create_task(batcher.submit(loaded, ASK))
        await asyncio.sleep(0)
        await batcher.drain()
        with pytest.raises(ClosedError):
            await asyncio.wait_for(waiting, 10)

    asyncio.run(test())


def test_a_loop_that_is_gone_breaks_nothing(loaded):
    gate = Gate()
    batcher = Batcher(gate, queue=4, batch=2)
    batcher.start()

    async def leave():
        task = asyncio.create_task(batcher.submit(loaded, ASK))
        await entered(gate)
        return task

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(leave())
    task._log_destroy_pending = False
    loop.close()
    gate.gate.set()

    async def ask():
        found = await batcher.submit(loaded, ASK)
        await batcher.drain()
        return found

    assert isinstance(asyncio.run(ask()), Answer)


def test_an_idle_batcher_holds_no_version(loaded):
    async def test(batcher, gate):
        gate.gate.set()
        other = replace(loaded, version="other")
        await batcher.submit(other, ASK)
        gate.batches.clear()
        there = weakref.ref(other)
        del other
        for _ in range(100):  # the thread may not have let go yet
            gc.collect()
            if there() is None:
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the version is still held")

    running(test)


def test_what_batches_cost_is_told_once(loaded):
    counts = Counts()
    loaded.cache_counts()

    async def test(batcher, gate):
        late = replace(ASK, deadline=Deadline(-1.0))
        busy, tasks = await held(batcher, gate, loaded, [ASK, ASK, late, Ask(history=("x",))])
        gate.gate.set()
        await asyncio.gather(busy, *tasks, return_exceptions=True)
        await batcher.drain()

    running(test, metrics=counts)
    assert counts.told["batch", 1] == counts.told["batch", 4] == 1
    assert counts.told["queue"] == 5
    assert counts.told["recall"] == counts.told["rerank"] == 2
    assert counts.told["popularity"] == 1
    assert counts.told["queue length"] == 0
    assert counts.cache["hits"] + counts.cache["misses"] == 3


def test_many_threads_and_loops_may_ask_at_once(loaded):
    gate = Gate(is_open=True)
    batcher = Batcher(gate, queue=1000, batch=16)
    batcher.start()
    outcomes = []

    def ask_some(seed):
        async def some():
            return await asyncio.gather(
                *(batcher.submit(loaded, Ask(history=(f"i{seed}",), k=k)) for k in range(1, 9))
            )

        outcomes.append((seed, asyncio.run(some())))

    threads = [threading.Thread(target=ask_some, args=(seed,)) for seed in range(6)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert time.monotonic() - started < 60
    asyncio.run(batcher.drain())
    assert len(outcomes) == 6
    for seed, found in outcomes:
        (expected,) = answer(loaded, [Ask(history=(f"i{seed}",), k=8)])
        ids = [each.item for each in expected.items]
        for k, each in enumerate(found, start=1):
            assert [item.item for item in each.items] == ids[:k]
