"""What goes over the wire, both ways: the models of the API and of its client."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    Tag,
    model_validator,
)

from hybridrec.serve.schema_types import (
    MOST_CANDIDATES,
    MOST_CONTEXT,
    MOST_DEPTH,
    MOST_EVENTS,
    MOST_FOUND,
    MOST_HISTORY,
    MOST_IDS,
    MOST_K,
    MOST_TEXT,
    NO_NUL,
    Id,
    Strict,
    Time,
    Value,
)

Degraded = Literal["fewer_reranked", "no_reranker", "popularity"]
"""What was left out for want of time, least first."""


class Stages(Strict):
    """Stages to leave out, for looking at the others."""

    rerank: StrictBool = True
    fuse: StrictBool = True


class Person(Strict):
    """Whom the answer is for: a user the service has a history of, or a history."""

    user: Id | None = None
    history: Annotated[list[Id], Field(max_length=MOST_HISTORY)] | None = Field(
        None, description="Item ids, oldest first, in place of a user."
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Person:
        if (self.user is None) == (self.history is None):
            got = "both" if self.user is not None else "neither"
            raise ValueError(f"give either user or history, got {got}")
        return self


class Asking(Person):
    """What recommending and ranking have in common."""

    context: Annotated[dict[str, Value], Field(max_length=MOST_CONTEXT)] = Field(
        default_factory=dict, description="Columns that the reranker's template names."
    )
    budget_ms: Annotated[float, Field(gt=0, le=600_000, allow_inf_nan=False)] | None = Field(
        None, description="Milliseconds to answer in; the service's own limit where it is less."
    )
    explain: StrictBool = Field(
        False, description="Say of every item why it is there; of a stored user this needs admin."
    )
    stages: Stages = Field(default_factory=Stages)
    model: Annotated[StrictStr, Field(max_length=MOST_TEXT)] | None = Field(
        None, description="A loaded version other than the current one; needs admin."
    )


class RecommendRequest(Asking):
    """``POST /v1/recommend``."""

    k: Annotated[StrictInt, Field(ge=1, le=MOST_K)] = 10
    depth: Annotated[StrictInt, Field(ge=1, le=MOST_DEPTH)] | None = Field(
        None, description="Candidates to recall; default the model's, at least k."
    )
    exclude_seen: StrictBool = True
    allow: Annotated[list[Id], Field(max_length=MOST_IDS)] | None = Field(
        None, description="Only these items."
    )
    block: Annotated[list[Id], Field(max_length=MOST_IDS)] = Field(
        default_factory=list, description="Never these items."
    )


class RankRequest(Asking):
    """``POST /v1/rank``: the caller's own candidates, all of them in the answer."""

    candidates: Annotated[list[Id], Field(min_length=1, max_length=MOST_CANDIDATES)]


class Reason(BaseModel):
    """An item of the history that speaks for a recommended one."""

    item: Id
    title: str | None = None
    share: float = Field(description="Of what all of the history says for it, 0 to 1.")


class Why(BaseModel):
    """How an item came to its place."""

    signals: dict[str, float] = Field(description="What every scorer said, by its name.")
    ranks: dict[str, int] = Field(
        description="The place, from 1, that each stage gave it: recall, fused, reranked, answer."
    )
    because: list[Reason] = Field(default_factory=list)
    moved_by: list[str] = Field(
        default_factory=list,
        description="Rules that placed it: newcomers, reranker, popularity, degraded.",
    )


class RankedItem(BaseModel):
    """One recommendation."""

    rank: int
    item: Id
    score: float | None = Field(
        description="Falls along the list; null for a candidate that no stage could score."
    )
    title: str | None = None
    reranked: bool = False
    newcomer: bool = False
    why: Why | None = None


class HistoryItem(BaseModel):
    """One event of whom the answer is for, as ``explain`` shows it."""

    item: Id
    title: str | None = None


class RecommendResponse(BaseModel):
    """The answer to recommending and ranking."""

    request_id: str
    model: str = Field(description="The version that answered.")
    user: Id | None = None
    unknown_user: bool = Field(False, description="Nothing is known of the user.")
    popular: bool = Field(False, description="There was no history to go by: popular items.")
    degraded: Degraded | None = None
    items: list[RankedItem]
    history: list[HistoryItem] | None = Field(None, description="With explain: oldest first.")
    seconds: dict[str, float] | None = Field(None, description="With explain: by stage.")


class SimilarRequest(Strict):
    """``POST /v1/similar``."""

    item: Id
    k: Annotated[StrictInt, Field(ge=1, le=MOST_K)] = 10


class SimilarItem(BaseModel):
    """A neighbour."""

    rank: int
    item: Id
    score: float
    title: str | None = None


class SimilarResponse(BaseModel):
    """Items nearest by the cosine of their vectors."""

    request_id: str
    model: str
    item: Id
    items: list[SimilarItem]


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


class ItemsQuery(Strict):
    """What ``GET /v1/items`` is asked."""

    search: Annotated[str, Field(max_length=MOST_TEXT)] = Field(
        description="Words of a title, or an id."
    )
    limit: Annotated[int, Field(ge=1, le=MOST_FOUND)] = 10


class FoundItem(BaseModel):
    """An item of the catalogue."""

    item: Id
    title: str | None = None


class ItemsResponse(BaseModel):
    """``GET /v1/items?search=``: by what their titles hold, and by id."""

    items: list[FoundItem]


class LoadedModel(BaseModel):
    """One version in memory."""

    version: str
    role: Literal["current", "previous"]
    loaded: datetime
    stages: list[str] = Field(description="Names of recallers, signals, reranker, in order.")
    items: int


class ModelsResponse(BaseModel):
    """``GET /v1/models``, and the answer to switching them."""

    models: list[LoadedModel]


class LoadRequest(Strict):
    """``POST /v1/models/load``: the folder's current version, or a named one."""

    version: Annotated[StrictStr, Field(max_length=MOST_TEXT)] | None = None


class HealthResponse(BaseModel):
    """``GET /healthz``: the process answers."""

    status: Literal["ok"] = "ok"


class ReadyResponse(BaseModel):
    """``GET /readyz``: it has a model, and its store can be reached."""

    status: Literal["ready"] = "ready"
    model: str


class ErrorBody(BaseModel):
    """What went wrong."""

    code: str = Field(description="A word for programs, such as unknown_item.")
    message: str
    request_id: str


class ErrorResponse(BaseModel):
    """Every error's body."""

    error: ErrorBody
