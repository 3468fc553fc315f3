"""What goes over the wire, both ways: the models of the API and of its client."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    model_validator,
)

from hybridrec.serve.wire.schema_types import (
    MOST_CANDIDATES,
    MOST_CONTEXT,
    MOST_DEPTH,
    MOST_FOUND,
    MOST_HISTORY,
    MOST_IDS,
    MOST_K,
    MOST_TEXT,
    Id,
    Strict,
    Value,
)
from hybridrec.serve.wire.schema_users import Event as Event
from hybridrec.serve.wire.schema_users import EventBatch as EventBatch
from hybridrec.serve.wire.schema_users import Events as Events
from hybridrec.serve.wire.schema_users import EventsResponse as EventsResponse
from hybridrec.serve.wire.schema_users import ForgottenResponse as ForgottenResponse
from hybridrec.serve.wire.schema_users import StoredEvent as StoredEvent
from hybridrec.serve.wire.schema_users import UserResponse as UserResponse
from hybridrec.serve.wire.schema_users import UsersQuery as UsersQuery
from hybridrec.serve.wire.schema_users import UsersResponse as UsersResponse

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
