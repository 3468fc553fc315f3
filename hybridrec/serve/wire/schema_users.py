"""Users and what they did, over the wire; :mod:`hybridrec.serve.wire.schema` has it all."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Discriminator, Field, StrictBool, StrictStr, Tag

from hybridrec.serve.wire.schema_types import (
    MOST_EVENTS,
    MOST_FOUND,
    MOST_TEXT,
    NO_NUL,
    Id,
    Strict,
    Time,
)


class Event(Strict):
    """Something a user did."""

    id: Annotated[StrictStr, Field(min_length=1, max_length=128, pattern=NO_NUL)] = Field(
        description="Of the caller's choice, unique per key: sent twice, it counts once."
    )
    user: Id
    item: Id
    time: Time | None = Field(
        None, description="RFC 3339 with its offset; default now. No later than in 5 minutes."
    )
    liked: StrictBool = Field(
        True, description="False: seen, so not recommended, but no part of the history."
    )


class EventBatch(Strict):
    """All of them are stored or none."""

    events: Annotated[list[Event], Field(min_length=1, max_length=MOST_EVENTS)]


def _one_or_many(value: object) -> str:
    many = "events" in value if isinstance(value, dict) else isinstance(value, EventBatch)
    return "batch" if many else "event"


Events = Annotated[
    Annotated[Event, Tag("event")] | Annotated[EventBatch, Tag("batch")],
    Discriminator(_one_or_many),
]
"""``POST /v1/events``."""


class EventsResponse(BaseModel):
    """``POST /v1/events``; what it counts is on the disk."""

    request_id: str
    accepted: int
    duplicates: int = Field(description="Had been stored before, with the same content.")


class StoredEvent(BaseModel):
    """One event of a user."""

    id: str | None = Field(description="null for one that came with the model.")
    item: Id
    time: datetime | None
    liked: bool
    title: str | None = None


class UserResponse(BaseModel):
    """``GET /v1/users/{user}``: everything that is stored of a user, oldest first."""

    user: Id
    events: list[StoredEvent]


class ForgottenResponse(BaseModel):
    """``DELETE /v1/users/{user}``: what was removed."""

    user: Id
    events: int
    queries: int = Field(description="Stored for checking new models.")


class UsersQuery(Strict):
    """What ``GET /v1/users`` is asked."""

    prefix: Annotated[str, Field(max_length=MOST_TEXT, pattern=NO_NUL)] = ""
    limit: Annotated[int, Field(ge=1, le=MOST_FOUND)] = 20


class UsersResponse(BaseModel):
    """``GET /v1/users?prefix=``: some of whom there are events, in order."""

    users: list[Id]
