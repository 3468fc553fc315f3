"""What every route needs: the service, who asks, and which errors its answer may be."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import Depends, Request

from hybridrec.serve.service import Service
from hybridrec.serve.visits import VISIT, Visit
from hybridrec.serve.wire.errors import GONE, RefusalError
from hybridrec.serve.wire.schema import ErrorResponse

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

_ERRORS = {
    400: "The body is no JSON.",
    401: "No key, or one that is not known or was revoked.",
    403: "The key lacks a scope.",
    404: "Nothing is known of what the path names.",
    408: "The body did not come in time.",
    409: "It contradicts what is there; the code says how.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    421: "The Host header names somebody else.",
    422: "The schema or the model refuses what was sent; the message says why.",
    429: "Too many requests; Retry-After says when to come back.",
    503: "There is no model, or the store is away.",
}
_WITH_BODY = (400, 408, 413, 415, 422)


def errors(*more: int, body: bool = False, key: bool = True) -> dict[int | str, dict[str, Any]]:
    """The errors of a route for its OpenAPI description.

    Args:
        more: statuses beyond those that any request may get.
        body: whether it takes one.
        key: whether it needs one.
    """
    found = {421, 429, *more}
    if body:
        found.update(_WITH_BODY)
    if key:
        found.update((401, 403, 503))
    return {
        status: {"model": ErrorResponse, "description": _ERRORS[status]} for status in sorted(found)
    }


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _visit(request: Request) -> Visit:
    visit: Visit = request.scope[VISIT]
    return visit


TheService = Annotated[Service, Depends(_service)]
TheVisit = Annotated[Visit, Depends(_visit)]


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns; it is cancelled as soon as nobody waits for it any more.

    Raises:
        RefusalError: the client has gone.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RefusalError(GONE, "gone", "the client is gone")
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
