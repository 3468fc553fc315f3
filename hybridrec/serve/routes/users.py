"""What is stored of users."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from hybridrec.serve.routes.common import TheService, TheVisit, errors
from hybridrec.serve.wire.schema import ForgottenResponse, UserResponse, UsersQuery, UsersResponse
from hybridrec.serve.wire.schema_types import MOST_TEXT, NO_NUL

router = APIRouter(prefix="/v1/users", tags=["users"])

User = Annotated[str, Path(min_length=1, max_length=MOST_TEXT, pattern=NO_NUL)]


@router.get("", responses=errors(422))
async def users(asked: Annotated[UsersQuery, Query()], service: TheService) -> UsersResponse:
    """Some users of whom there are events, by the start of their ids."""
    return await service.people.users(asked.prefix, asked.limit)


# A user's id may hold slashes.
@router.get("/{user:path}", responses=errors(404, 422))
async def user(user: User, service: TheService, visit: TheVisit) -> UserResponse:
    """Everything that is stored of a user, oldest first."""
    return await service.people.user(user, visit)


@router.delete("/{user:path}", responses=errors(422))
async def forget(user: User, service: TheService, visit: TheVisit) -> ForgottenResponse:
    """Remove all that is stored of a user: events, history, what is cached and what waits.

    Events from before this moment are refused from now on. What a model has learned from them it
    keeps until it is fitted anew.
    """
    return await service.people.forget(user, visit)
