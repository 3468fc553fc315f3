"""The one object that knows the store, the models, the batcher and the counts; no HTTP in it."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from hybridrec.deadline import Deadline
from hybridrec.serve.access.callers import Doorkeeper
from hybridrec.serve.answers.answering import answers
from hybridrec.serve.answers.batching import Batcher
from hybridrec.serve.answers.lanes import Lane
from hybridrec.serve.people import People
from hybridrec.serve.versions.catalogue import search
from hybridrec.serve.watch.observing import Observer
from hybridrec.serve.wire import schema
from hybridrec.serve.wire.errors import NothingBeforeError
from hybridrec.serve.wire.translating import (
    Person,
    rank_ask,
    recommend_ask,
    response_of,
    title_of,
    told_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from hybridrec.serve.answers.asking import Ask
    from hybridrec.serve.config import ServeConfig
    from hybridrec.serve.store.contract import Store
    from hybridrec.serve.versions.loaded import Loaded
    from hybridrec.serve.versions.models import Models
    from hybridrec.serve.visits import Visit
    from hybridrec.serve.watch.metrics import Metrics
    from hybridrec.serve.watch.tracing import Tracing


class Service:
    """Answers what the routes ask.

    Args:
        config: its settings.
        store: open; it is closed with the service.
        models: loaded; likewise.
        metrics: where counts go.
        tracing: where spans go; None writes none.
        now: the wall clock, aware.
    """

    def __init__(
        self,
        config: ServeConfig,
        store: Store,
        models: Models,
        metrics: Metrics,
        *,
        tracing: Tracing | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.config = config
        self.store = store
        self.models = models
        self.metrics = metrics
        self.observer = Observer(metrics, store.secret(), tracing)
        self.doorkeeper = Doorkeeper(store, keyless=config.loopback)
        self.batcher = Batcher(answers, queue=config.queue, batch=config.batch, metrics=metrics)
        self.people = People(config, store, models, self.batcher, metrics, now=now)
        self._searches = Lane("searches", threads=2, most=config.queue + 2)
        self._switches = Lane("switches", threads=1, most=8)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to answer; on the loop that the requests come in on."""
        self.batcher.start()
        self._tasks.append(asyncio.create_task(self.observer.watch_lag()))
        self.models.watch()
        if self.config.watch_seconds:
            self._tasks.append(asyncio.create_task(self.people.follow()))

    async def close(self) -> None:
        """Answer what has come in, then let go of everything."""
        await self.batcher.drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.people.close()
        await self.doorkeeper.close()
        for lane in (self._searches, self._switches):
            await asyncio.to_thread(lane.close)
        await asyncio.to_thread(self.models.close)
        await asyncio.to_thread(self.store.close)
        if self.observer.tracing is not None:
            await asyncio.to_thread(self.observer.tracing.close)

    # -- recommending -------------------------------------------------------------------------

    async def recommend(
        self, asked: schema.RecommendRequest, visit: Visit
    ) -> schema.RecommendResponse:
        """The best items for a user or a history.

        Raises:
            HybridrecError: what :func:`hybridrec.serve.wire.errors.refusal_of` tells of.
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
        person = await self.people.person(loaded, asked)
        visit.user = None if person.user is None else str(person.user)
        found = await self.batcher.submit(loaded, ask(person))
        usual = isinstance(asked, schema.RecommendRequest) and asked.stages == schema.Stages()
        self.observer.answered(visit, found, usual=usual and loaded is self.models.current)
        self.people.sample.offer(visit.user, person.liked)
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
        found = await self._searches.run(
            loaded.engine.similar_items, [item], asked.k, frame="pyarrow"
        )
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
        codes = await self._searches.run(search, loaded, text, limit)
        return schema.ItemsResponse(
            items=[
                schema.FoundItem(item=loaded.item_id(code), title=loaded.title(code))
                for code in codes
            ]
        )

    # -- models -------------------------------------------------------------------------------

    def loaded_models(self) -> schema.ModelsResponse:
        """The versions in memory."""
        found = [told_of(self.models.current, "current")]
        if self.models.previous is not None:
            found.append(told_of(self.models.previous, "previous"))
        return schema.ModelsResponse(models=found)

    async def load_model(self, version: str | None) -> schema.ModelsResponse:
        """Let another version answer: the folder's current one, or one by its id.

        Raises:
            StorageError: there is none, or it did not pass the check; the old one goes on.
        """
        await self._switches.run(self.models.load, version)
        await self.people.take_over()
        return self.loaded_models()

    async def roll_back(self) -> schema.ModelsResponse:
        """Let the version before answer again.

        Raises:
            NothingBeforeError: there is none.
        """
        if self.models.previous is None:
            raise NothingBeforeError(
                "no version was loaded before this one since the service began: load one by its "
                "id, or use `hybridrec rollback`"
            )
        await self._switches.run(self.models.roll_back)
        return self.loaded_models()

    async def ready(self) -> schema.ReadyResponse:
        """Whether it can answer.

        Raises:
            NotReadyError: there is no model.
            StoreError: the store is away.
        """
        loaded = self._loaded()
        await self.people.ping()
        return schema.ReadyResponse(model=loaded.version)

    def _loaded(self, version: str | None = None) -> Loaded:
        return self.models.current if version is None else self.models.get(version)
