"""The client for asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self, TypeVar, Unpack

import httpx2
from pydantic import BaseModel

from hybridrec.client import calls
from hybridrec.client.errors import ClientError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hybridrec.serve.answers.asking import Id
    from hybridrec.serve.wire import schema

T = TypeVar("T", bound=BaseModel)


class AsyncClient:
    """A connection to the service; tasks of one event loop may share it.

    Calls that may be sent twice are sent again where the service is busy or away; rolling back is
    sent once.

    Args:
        url: of the service.
        key: an API key; None where the service needs none.
        timeout: seconds to wait for an answer.
        retries: times to send a call again.
        transport: how requests travel; None takes the network.

    Raises:
        InputError: the URL is not one of HTTP's.

    Raises of every call:
        ClientError: :mod:`hybridrec.client.errors` tells them apart.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeout: float = 30.0,
        retries: int = 3,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._patience = calls.Patience(retries=retries)
        self._http = httpx2.AsyncClient(
            base_url=calls.checked_url(url), headers=headers, timeout=timeout, transport=transport
        )

    async def recommend(self, **asked: Unpack[calls.Recommend]) -> schema.RecommendResponse:
        """The best items for ``user=`` or ``history=``; :class:`calls.Recommend` has the rest."""
        return await self._sent(calls.recommend(**asked))

    async def rank(self, **asked: Unpack[calls.Rank]) -> schema.RecommendResponse:
        """The items ``candidates=`` in order; :class:`calls.Rank` has the rest."""
        return await self._sent(calls.rank(**asked))

    async def similar(self, item: Id, k: int = 10) -> schema.SimilarResponse:
        """The ``k`` items nearest to ``item``."""
        return await self._sent(calls.similar(item, k))

    async def find_items(self, search: str, limit: int = 10) -> list[schema.FoundItem]:
        """Items by the words of their titles, or by id."""
        return (await self._sent(calls.items(search, limit))).items

    async def send_event(self, **event: Unpack[calls.Event]) -> schema.EventsResponse:
        """Tell what a user did; :class:`calls.Event` has what can be said."""
        return await self.send_events([event])

    async def send_events(self, events: Iterable[calls.Event]) -> schema.EventsResponse:
        """Tell what users did: all of it is stored or nothing, and on the disk by then."""
        return await self._sent(calls.send_events(events))

    async def user(self, user: Id) -> schema.UserResponse:
        """Everything that is stored of a user."""
        return await self._sent(calls.user(user))

    async def forget(self, user: Id) -> schema.ForgottenResponse:
        """Remove all that is stored of a user."""
        return await self._sent(calls.forget(user))

    async def models(self) -> list[schema.LoadedModel]:
        """The versions in memory."""
        return (await self._sent(calls.models())).models

    async def load_model(self, version: str | None = None) -> list[schema.LoadedModel]:
        """Let the folder's current version answer, or the one named."""
        return (await self._sent(calls.load_model(version))).models

    async def roll_back(self) -> list[schema.LoadedModel]:
        """Let the version before answer again."""
        return (await self._sent(calls.roll_back())).models

    async def ready(self) -> schema.ReadyResponse:
        """Whether the service can answer, and with which version."""
        return await self._sent(calls.ready())

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _sent(self, call: calls.Call[T]) -> T:
        attempt = 0
        while True:
            try:
                return call.answered(await self._http.send(call.request(self._http)))
            except httpx2.RequestError as problem:
                error: ClientError = calls.unreachable(problem, self._http.base_url)
                error.__cause__ = problem
            except ClientError as problem:
                error = problem
            pause = self._patience.pause(call, error, attempt)
            if pause is None:
                raise error
            await asyncio.sleep(pause)
            attempt += 1
