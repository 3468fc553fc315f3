"""The one object that knows the store, the models, the batcher and the counts; no HTTP in it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from hybridrec.deadline import Deadline
from hybridrec.serve import schema
from hybridrec.serve.answering import answer
from hybridrec.serve.batching import Batcher, QueueFull
from hybridrec.serve.callers import Doorkeeper
from hybridrec.serve.catalogue import Catalogue
from hybridrec.serve.errors import MissingError, NothingBeforeError
from hybridrec.serve.remembering import Sample
from hybridrec.serve.translating import (
    Person,
    event_of,
    person_of,
    rank_ask,
    recommend_ask,
    response_of,
    stored_events,
    title_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from hybridrec.serve.asking import Ask
    from hybridrec.serve.config import ServeConfig
    from hybridrec.serve.loaded import Loaded
    from hybridrec.serve.metrics import Metrics
    from hybridrec.serve.models import Models
    from hybridrec.serve.security import Visit
    from hybridrec.serve.store import Store

LOCAL = "local"
"""The key of events that came without one."""
_AT_ONCE = 2
"""Searches for neighbours at a time: each of them uses every core."""
_LAG_SECONDS = 0.1


class Service:
    """Answers what the routes ask.

    Args:
        config: its settings.
        store: open; it is closed with the service.
        models: loaded; likewise.
        metrics: where counts go.
        now: the wall clock, aware.
    """

    def __init__(
        self,
        config: ServeConfig,
        store: Store,
        models: Models,
        metrics: Metrics,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.config = config
        self.store = store
        self.models = models
        self.metrics = metrics
        self.doorkeeper = Doorkeeper(store, keyless=config.loopback)
        self.batcher = Batcher(answer, queue=config.queue, batch=config.batch, metrics=metrics)
        self._now = now
        self._sample = Sample(store, config.health_queries)
        self._similar = asyncio.Semaphore(_AT_ONCE)
        self._similar_waiting = 0
        self._catalogue: Catalogue | None = None
        self._lag: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to answer; on the loop that the requests come in on."""
        self.batcher.start()
        self._lag = asyncio.create_task(self._sample_lag())
        if self.config.watch_seconds:
            self.models.watch()

    async def close(self) -> None:
        """Answer what has come in, then let go of everything."""
        await self.batcher.drain()
        if self._lag is not None:
            self._lag.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._lag
        await self._sample.settle()
        await asyncio.to_thread(self.models.close)
        await asyncio.to_thread(self.store.close)

    # -- recommending -------------------------------------------------------------------------

    async def recommend(
        self, asked: schema.RecommendRequest, visit: Visit
    ) -> schema.RecommendResponse:
        """The best items for a user or a history.

        Raises:
            HybridrecError: what :func:`hybridrec.serve.errors.refusal_of` tells of.
        """

        def ask(person: Person) -> Ask:
            return recommend_ask(asked, person, self._deadline(asked, visit))

        return await self._answered(asked, visit, ask)

    async def rank(self, asked: schema.RankRequest, visit: Visit) -> schema.RecommendResponse:
        """The caller's own candidates, in order.

        Raises:
            HybridrecError: as :meth:`recommend`.
        """

        def ask(person: Person) -> Ask:
            return rank_ask(asked, person, self._deadline(asked, visit))

        return await self._answered(asked, visit, ask)

    async def _answered(
        self, asked: schema.Asking, visit: Visit, ask: Callable[[Person], Ask]
    ) -> schema.RecommendResponse:
        if asked.model is not None:
            visit.caller.require("admin", "naming a model")
        if asked.explain and asked.user is not None:
            visit.caller.require("admin", "explaining a stored user")
        loaded = self._loaded(asked.model)
        if asked.user is None:
            person = person_of(loaded, self.store, asked)
        else:
            person = await asyncio.to_thread(person_of, loaded, self.store, asked)
        found = await self.batcher.submit(loaded, ask(person))
        if loaded is self.models.current:
            scores = [] if found.degraded else [each.score for each in found.items]
            items = [each.item for each in found.items]
            self.metrics.observe_answer(scores, items, int(not person.liked))
        user = None if person.user is None else str(person.user)
        self._sample.offer(user, person.liked, visit.arrived)
        return response_of(loaded, found, person, visit.request_id, explain=asked.explain)

    def _deadline(self, asked: schema.Asking, visit: Visit) -> Deadline | None:
        """From when the request came in."""
        limits = [limit for limit in (asked.budget_ms, self.config.budget_ms) if limit is not None]
        if not limits:
            return None
        return Deadline(min(limits) - 1000 * (time.monotonic() - visit.arrived))

    async def similar(self, asked: schema.SimilarRequest, visit: Visit) -> schema.SimilarResponse:
        """The items nearest to one.

        Raises:
            UnknownIdError: the model does not know it.
            QueueFull: too many wait for theirs.
        """
        loaded = self._loaded()
        loaded.known_items("item", [asked.item])
        item = loaded.item(asked.item)
        if self._similar_waiting >= self.config.queue:
            raise QueueFull(f"{self._similar_waiting} requests wait already", retry_after=1.0)
        self._similar_waiting += 1
        try:
            async with self._similar:
                found = await asyncio.to_thread(
                    loaded.engine.similar_items, [item], asked.k, frame="pyarrow"
                )
        finally:
            self._similar_waiting -= 1
        items = [
            schema.SimilarItem(
                rank=row["rank"],
                item=row["similar_item"],
                score=row["score"],
                title=title_of(loaded, row["similar_item"]),
            )
            for row in found.to_pylist()
        ]
        return schema.SimilarResponse(
            request_id=visit.request_id, model=loaded.version, item=item, items=items
        )

    async def find_items(self, text: str, limit: int) -> schema.ItemsResponse:
        """Items by title or id."""
        loaded = self._loaded()
        catalogue = self._catalogue
        if catalogue is None or catalogue.version != loaded.version:
            catalogue = self._catalogue = Catalogue(loaded)
        codes = await asyncio.to_thread(catalogue.search, text, limit)
        return schema.ItemsResponse(
            items=[
                schema.FoundItem(item=loaded.item_id(code), title=loaded.title(code))
                for code in codes
            ]
        )

    # -- users --------------------------------------------------------------------------------

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
        found = stored_events(self._loaded(), events, self._now())
        key = visit.caller.key or LOCAL
        done = await asyncio.to_thread(self.store.append, found, key=key)
        self.metrics.count_events(done.accepted, done.duplicates)
        return schema.EventsResponse(
            request_id=visit.request_id, accepted=done.accepted, duplicates=done.duplicates
        )

    async def user(self, given: str) -> schema.UserResponse:
        """Everything that is stored of a user.

        Raises:
            MissingError: nothing is.
        """
        loaded = self._loaded()
        user = loaded.user(given)
        events = await asyncio.to_thread(self.store.events, str(user))
        if not events:
            raise MissingError("nothing is stored of this user")
        return schema.UserResponse(user=user, events=[event_of(loaded, each) for each in events])

    async def users(self, prefix: str, limit: int) -> schema.UsersResponse:
        """Some users of whom there are events."""
        loaded = self._loaded()
        found = await asyncio.to_thread(self.store.users, prefix=prefix, limit=limit)
        return schema.UsersResponse(users=[loaded.user(user) for user in found])

    async def forget(self, given: str) -> schema.ForgottenResponse:
        """Remove all that is known of a user, wherever it is.

        Raises:
            StoreError: the store is away; ask again.
        """
        user = self._loaded().user(given)
        await self._sample.forget(str(user))
        self.batcher.drop(user)
        gone = await asyncio.to_thread(self._forget, str(user))
        return schema.ForgottenResponse(user=user, events=gone.events, queries=gone.queries)

    # -- models -------------------------------------------------------------------------------

    def loaded_models(self) -> schema.ModelsResponse:
        """The versions in memory."""
        found = [(self.models.current, "current"), (self.models.previous, "previous")]
        return schema.ModelsResponse(
            models=[_told(loaded, role) for loaded, role in found if loaded is not None]
        )

    async def load_model(self, version: str | None) -> schema.ModelsResponse:
        """Let another version answer: the folder's current one, or one by its id.

        Raises:
            StorageError: there is none, or it did not pass the check; the old one goes on.
        """
        await asyncio.to_thread(self.models.load, version)
        return self.loaded_models()

    async def roll_back(self) -> schema.ModelsResponse:
        """Let the version before answer again.

        Raises:
            NothingBeforeError: there is none.
        """
        if self.models.previous is None:
            raise NothingBeforeError("no version was loaded before this one: load one by its id")
        await asyncio.to_thread(self.models.roll_back)
        return self.loaded_models()

    async def ready(self) -> schema.ReadyResponse:
        """Whether it can answer.

        Raises:
            NotReadyError: there is no model.
            StoreError: the store is away.
        """
        loaded = self._loaded()
        await asyncio.to_thread(self.store.ping)
        return schema.ReadyResponse(model=loaded.version)

    def _loaded(self, version: str | None = None) -> Loaded:
        return self.models.current if version is None else self.models.get(version)

    # -- what the middleware tells --------------------------------------------------------------

    def saw(self, visit: Visit, method: str, route: str) -> None:
        """A request was answered."""

    def rejected(self, reason: str) -> None:
        """A request was turned away."""
        self.metrics.count_rejected(reason)

    def failed(self, visit: Visit, error: Exception) -> None:
        """A request met something that is broken."""

    async def _sample_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LAG_SECONDS
            await asyncio.sleep(_LAG_SECONDS)
            self.metrics.observe_lag(max(0.0, loop.time() - due))


def _told(loaded: Loaded, role: Any) -> schema.LoadedModel:
    pipeline = loaded.pipeline
    stages = [*pipeline.blend.recallers, *pipeline.blend.scorers]
    names = [stage.name for stage in stages]
    if pipeline.reranker is not None:
        names.append(pipeline.reranker.name)
    return schema.LoadedModel(
        version=loaded.version,
        role=role,
        loaded=loaded.loaded,
        stages=names,
        items=loaded.data.n_items,
    )
