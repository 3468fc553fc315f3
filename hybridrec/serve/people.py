"""What users did: stored, told, imported with a model, forgotten."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from hybridrec.checks import HybridrecError, StorageError, UnknownIdError
from hybridrec.serve.answers.batching import QueueFull
from hybridrec.serve.answers.lanes import Lane
from hybridrec.serve.histories import forget_saved, import_histories, saved_as
from hybridrec.serve.remembering import Sample
from hybridrec.serve.store.contract import StoreError
from hybridrec.serve.wire import schema
from hybridrec.serve.wire.errors import HalfForgottenError, MissingError
from hybridrec.serve.wire.translating import Person, event_of, person_of, stored_events

if TYPE_CHECKING:
    from collections.abc import Callable

    from hybridrec.serve.answers.asking import Id
    from hybridrec.serve.answers.batching import Batcher
    from hybridrec.serve.config import ServeConfig
    from hybridrec.serve.store.contract import Forgotten, Store
    from hybridrec.serve.versions.loaded import Loaded
    from hybridrec.serve.versions.models import Models
    from hybridrec.serve.visits import Visit
    from hybridrec.serve.watch.metrics import Metrics

_log = logging.getLogger("hybridrec.serve")

LOCAL = "local"
"""The key of events that came without one."""


class People:
    """Everything that reads and writes the store for a user.

    Args:
        config: the settings.
        store: where events are.
        models: whose ids they have.
        batcher: where requests of users wait.
        metrics: where counts go.
        now: the wall clock, aware.
    """

    def __init__(
        self,
        config: ServeConfig,
        store: Store,
        models: Models,
        batcher: Batcher,
        metrics: Metrics,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._config = config
        self._store = store
        self._models = models
        self._batcher = batcher
        self._metrics = metrics
        self._now = now
        # Forgetting may hold up those who write for seconds: who reads is to hear nothing of it.
        self._reads = Lane("reads", threads=8, most=config.queue + 8)
        self._writes = Lane("writes", threads=32, most=config.queue + 32)
        # A probe's answer must not wait for theirs: whoever asks gives up soon.
        self._pings = Lane("pings", threads=2, most=config.queue + 2)
        self.sample = Sample(store, self._writes, config.health_queries)
        # Not what stands beside the model now: it may be newer than what was imported at the start.
        self._imported: tuple[str, str | None] | None = None

    async def close(self) -> None:
        """Write what is to be written."""
        await self.sample.settle()
        for lane in (self._reads, self._writes, self._pings):
            await asyncio.to_thread(lane.close)

    async def ping(self) -> None:
        """Raise StoreError if the store is away."""
        await self._pings.run(self._store.ping)

    async def person(self, loaded: Loaded, asked: schema.Person) -> Person:
        """Whom a request is about.

        Raises:
            UnknownIdError: the user's id cannot be one of this model's.
            StoreError: the store is away.
        """
        if asked.user is None:
            return person_of(loaded, self._store, asked)
        return await self._reads.run(person_of, loaded, self._store, asked)

    async def append(
        self, asked: schema.Event | schema.EventBatch, visit: Visit
    ) -> schema.EventsResponse:
        """Store events; when it returns they are on the disk.

        Raises:
            ConflictError: an id was used before with another content.
            ForgottenError: an event from before its user was forgotten.
            InputError: an id that cannot be the model's, or a time too far ahead.
            StoreError: it could not be written.
        """
        events = asked.events if isinstance(asked, schema.EventBatch) else [asked]
        found = stored_events(self._models.current, events, self._now())
        key = visit.caller.key or LOCAL
        done = await self._writes.run(self._store.append, found, key=key)
        self._metrics.count_events(done.accepted, done.duplicates)
        return schema.EventsResponse(
            request_id=visit.request_id, accepted=done.accepted, duplicates=done.duplicates
        )

    async def user(self, given: str, visit: Visit) -> schema.UserResponse:
        """Everything that is stored of a user.

        Raises:
            MissingError: nothing is.
        """
        loaded = self._models.current
        user = _named(loaded, given)
        visit.user = str(user)
        events = await self._reads.run(self._store.events, str(user))
        if not events:
            raise MissingError("nothing is stored of this user")
        return schema.UserResponse(user=user, events=[event_of(loaded, each) for each in events])

    async def users(self, prefix: str, limit: int) -> schema.UsersResponse:
        """Some users of whom there are events."""
        loaded = self._models.current
        found = await self._reads.run(self._store.users, prefix=prefix, limit=limit)
        return schema.UsersResponse(users=[_named(loaded, user) for user in found])

    async def forget(self, given: str, visit: Visit) -> schema.ForgottenResponse:
        """Remove all that is known of a user, wherever it is.

        Raises:
            StoreError: the store is away; ask again.
        """
        user = _named(self._models.current, given)
        visit.user = str(user)
        await self.sample.settle()
        self._batcher.drop(user)
        gone = await self._writes.run(self._forget, user)
        # Who came meanwhile may have read the history before it went, and left a prompt behind.
        self._batcher.drop(user)
        await self._writes.run(self._models.forget, user)
        return schema.ForgottenResponse(user=user, events=gone.events, queries=gone.queries)

    def _forget(self, user: Id) -> Forgotten:
        gone = self._store.forget(str(user))
        try:
            forget_saved(self._config.model, str(user))
        except StorageError as error:
            raise HalfForgottenError(f"a user is still in the model folder: {error}") from error
        self._models.forget(user)
        return gone

    async def follow(self) -> None:
        """Take over what is saved beside each version that comes to answer, until cancelled."""
        while True:
            await asyncio.sleep(self._config.watch_seconds)
            try:
                await self.take_over()
            except Exception:
                _log.exception("the histories beside the model were not looked at: tried again")

    async def take_over(self) -> None:
        """Import the histories beside the current version, if either is another one now.

        Whoever saves them does so after the version, which may answer here by then.
        """
        current = self._models.current
        found = current.version, await asyncio.to_thread(saved_as, self._config.model)
        if found == self._imported:
            return
        self._imported = found  # once: a damaged file stays damaged
        try:
            await self._writes.run(import_histories, self._store, self._config.model, current.data)
        except (StoreError, QueueFull) as error:
            self._imported = None  # the store may be back the next time
            _log.warning("the histories beside the new version have to wait: %s", error)
        except HybridrecError as error:
            _log.warning("the histories beside the new version are not taken over: %s", error)


def _named(loaded: Loaded, given: str) -> Id:
    """A stored user's id as the model has it; as the store does, where it cannot be the model's.

    Users from before a model whose ids are of another type can be seen, and forgotten.
    """
    try:
        return loaded.user(given)
    except UnknownIdError:
        return given
