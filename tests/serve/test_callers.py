"""The doorkeeper while the store is slow, or away."""

import asyncio
import threading
from datetime import UTC, datetime

import pytest

from hybridrec.serve.access.callers import ANYBODY, FRESH, STALE, Doorkeeper
from hybridrec.serve.access.keys import create_key
from hybridrec.serve.store.contract import StoreError
from hybridrec.serve.wire.errors import RefusalError


class Keys:
    """A store of keys that counts questions, and answers when its gate is open."""

    def __init__(self):
        self.kept = {}
        self.asked = 0
        self.away = False
        self.gate = threading.Event()
        self.gate.set()

    def add_key(self, key, digest):
        self.kept[key.id] = key, digest

    def _answer(self, found):
        self.asked += 1
        assert self.gate.wait(30)
        if self.away:
            raise StoreError("away")
        return found

    def key(self, key_id):
        return self._answer(self.kept.get(key_id))

    def keys(self):
        return self._answer([key for key, _ in self.kept.values()])


class Clock:
    """Seconds that a test lets pass."""

    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def store():
    return Keys()


@pytest.fixture
def clock():
    return Clock()


def keeping(test, store, clock, *, keyless=False):
    """Run ``test(doorkeeper)``, and close the doorkeeper behind it."""

    async def run():
        doorkeeper = Doorkeeper(store, keyless=keyless, clock=clock)
        try:
            return await asyncio.wait_for(test(doorkeeper), 60)
        finally:
            store.gate.set()
            await doorkeeper.close()

    return asyncio.run(run())


async def asked(store):
    """A question is with the store."""
    while not store.asked:
        await asyncio.sleep(0.001)


def bearer(store):
    return f"Bearer {create_key(store, 'shop', ['recommend'])}"


@pytest.mark.parametrize("keyless", [False, True])
def test_who_asks_for_the_same_shares_a_question_and_may_go(store, clock, keyless):
    given = None if keyless else bearer(store)
    store.gate.clear()

    async def test(doorkeeper):
        first, *others = [asyncio.create_task(doorkeeper.caller(given)) for _ in range(50)]
        await asked(store)
        first.cancel()  # who began the question does not wait for its answer
        await asyncio.sleep(0.01)
        store.gate.set()
        found = await asyncio.gather(*others)
        assert first.cancelled()
        assert len(set(found)) == 1
        assert store.asked == 1

    keeping(test, store, clock, keyless=keyless)


@pytest.mark.parametrize("keyless", [False, True])
def test_a_store_that_was_away_is_not_asked_for_a_moment(store, clock, keyless):
    given = None if keyless else bearer(store)

    async def test(doorkeeper):
        known = await doorkeeper.caller(given)
        assert (known is ANYBODY) is keyless
        store.away = True
        clock.now += FRESH
        for _ in range(5):
            assert await doorkeeper.caller(given) == known  # the stale answer
        assert store.asked == 2
        clock.now += STALE
        for _ in range(5):
            with pytest.raises(StoreError, match="away"):
                await doorkeeper.caller(given)
        assert store.asked == 3
        store.away = False
        clock.now += FRESH
        assert await doorkeeper.caller(given) == known

    keeping(test, store, clock, keyless=keyless)


def test_a_failure_counts_from_when_it_is_known(store, clock):
    """The store takes longer to fail than a failure is remembered."""
    given = bearer(store)
    store.gate.clear()
    store.away = True

    async def test(doorkeeper):
        task = asyncio.create_task(doorkeeper.caller(given))
        await asked(store)
        clock.now += 2 * FRESH
        store.gate.set()
        for waiting in (task, doorkeeper.caller(given)):
            with pytest.raises(StoreError):
                await waiting
        assert store.asked == 1

    keeping(test, store, clock)


def test_a_revoked_key_is_refused_when_it_is_asked_for_again(store, clock):
    given = bearer(store)

    async def test(doorkeeper):
        await doorkeeper.caller(given)
        ((key_id, (key, digest)),) = store.kept.items()
        revoked = type(key)(key.id, key.name, key.scopes, key.created, datetime.now(UTC))
        store.kept[key_id] = revoked, digest
        clock.now += FRESH
        with pytest.raises(RefusalError, match="revoked"):
            await doorkeeper.caller(given)
        store.away = True
        with pytest.raises(StoreError):  # and not let in by a stale answer
            await doorkeeper.caller(given)

    keeping(test, store, clock)


def test_strange_keys_wait_for_few_threads(store, clock):
    secrets = [bearer(store) for _ in range(40)]
    store.gate.clear()

    async def test(doorkeeper):
        tasks = [asyncio.create_task(doorkeeper.caller(secret)) for secret in secrets]
        await asyncio.sleep(0.1)
        assert 1 <= store.asked <= 4
        store.gate.set()
        assert len(set(await asyncio.gather(*tasks))) == 40

    keeping(test, store, clock)
