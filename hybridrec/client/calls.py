"""The calls of the API as values: what is sent, what comes back, and whether to send it again."""

from __future__ import annotations

import json
import random
import ssl
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, Required, TypedDict, TypeVar, Unpack
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, ValidationError

from hybridrec.checks import InputError
from hybridrec.client.errors import AwayError, BusyError, ClientError, RefusedError, error_of
from hybridrec.serve.wire.schema import (
    ErrorResponse,
    EventsResponse,
    ForgottenResponse,
    ItemsResponse,
    ModelsResponse,
    ReadyResponse,
    RecommendResponse,
    SimilarResponse,
    UserResponse,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hybridrec.serve.answers.asking import Id

    Ids = Sequence[Id] | NDArray[Any]

T = TypeVar("T", bound=BaseModel)


class Whom(TypedDict, total=False):
    """What recommending and ranking have in common; see the API for each."""

    user: Id
    history: Ids
    context: Mapping[str, str | bool | int | float]
    budget_ms: float
    explain: bool
    stages: Mapping[str, bool]
    model: str


class Recommend(Whom, total=False):
    """What to recommend."""

    k: int
    depth: int
    exclude_seen: bool
    allow: Ids
    block: Ids


class Rank(Whom, total=False):
    """What to rank."""

    candidates: Required[Ids]


class Event(TypedDict, total=False):
    """Something a user did; a time that is text is RFC 3339, such as 2026-01-31T12:00:00Z.

    Without an id it gets one, and the time of sending if it has none. With an id of the caller's
    and no time it happens when it arrives, and the caller may send it again: it counts once.
    """

    id: str
    user: Required[Id]
    item: Required[Id]
    time: datetime | str
    liked: bool


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request.

    Attributes:
        method: of HTTP.
        path: quoted.
        answer: what comes back.
        body: JSON, or None.
        params: of the query.
        again: sending it twice does no more than sending it once.
    """

    method: str
    path: str
    answer: type[T]
    body: Mapping[str, Any] | None = None
    params: Mapping[str, str | int] | None = None
    again: bool = True

    def request(self, http: httpx2.Client | httpx2.AsyncClient) -> httpx2.Request:
        """The request to send.

        Raises:
            RefusedError: JSON, or a URL, has no place for a value.
        """
        headers = None if self.body is None else {"Content-Type": "application/json"}
        try:
            content = None if self.body is None else _written(self.body)
            return http.build_request(
                self.method, self.path, content=content, headers=headers, params=self.params
            )
        except (TypeError, ValueError, httpx2.InvalidURL) as error:
            raise RefusedError(
                f"{self.method} {self.path[:100]} cannot be sent: {error}", code="invalid"
            ) from error

    def answered(self, response: httpx2.Response) -> T:
        """What the service answered.

        Raises:
            ClientError: an error, or no answer of the service's.
        """
        if response.is_success:
            try:
                return self.answer.model_validate_json(response.content)
            except ValidationError as error:
                raise ClientError(
                    f"the answer is no {self.answer.__name__}: is this a hybridrec service?",
                    status=response.status_code,
                    code="not_understood",
                ) from error
        raise _told(response)


def _written(body: Mapping[str, Any]) -> bytes:
    return json.dumps(
        body, default=_plain, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    ).encode()


def _plain(value: Any) -> object:
    """What JSON writes for a time, and for an array, a column or a number of numpy's or pandas'."""
    if isinstance(value, datetime):
        return value.isoformat()
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"it holds a {type(value).__name__}; wanted text, numbers, or lists of them")


def _told(response: httpx2.Response) -> ClientError:
    status = response.status_code
    after = response.headers.get("retry-after", "")
    retry_after = float(after) if after.isdecimal() else None
    try:
        told = ErrorResponse.model_validate_json(response.content).error
    except ValidationError:  # of something in between
        return error_of(status)(
            f"HTTP {status} {response.reason_phrase}", status=status, retry_after=retry_after
        )
    return error_of(status)(
        told.message,
        status=status,
        code=told.code,
        request_id=told.request_id,
        retry_after=retry_after,
    )


def checked_url(url: str) -> str:
    """``url``, if the service can be there.

    Raises:
        InputError: it is no URL, or not one of HTTP's.
    """
    try:
        found = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise InputError(f"url is {url!r}, which is none: {error}") from error
    if found.scheme not in ("http", "https") or not found.host:
        raise InputError(
            f"url is {url!r}; wanted http:// or https:// and a host, such as http://127.0.0.1:8000"
        )
    return url


def unreachable(error: httpx2.RequestError, url: object) -> ClientError:
    """What a connection that failed is told as; an AwayError where it may go better later."""
    kind = ClientError if _stays(error) else AwayError
    return kind(f"{url} does not answer: {error or type(error).__name__}", code="unreachable")


def _stays(error: httpx2.RequestError) -> bool:
    """Whether it fails again: a request or an answer out of form, or TLS that does not fit."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx2.ConnectError):
        # A service that stops amid the handshake may be back soon.
        return cause is not None and not isinstance(cause, ssl.SSLEOFError)
    return isinstance(error, (httpx2.LocalProtocolError, httpx2.DecodingError))


@dataclass(frozen=True)
class Patience:
    """How often a call is sent again, and how long is waited before.

    Attributes:
        retries: times.
        longest: seconds; a service that asks for more is not waited for.
    """

    retries: int = 3
    longest: float = 30.0

    def pause(self, call: Call[Any], error: ClientError, attempt: int) -> float | None:
        """Seconds to wait before sending ``call`` again; None gives up.

        Args:
            call: what failed.
            error: how.
            attempt: from 0.
        """
        if (
            not call.again
            or attempt >= self.retries
            or not isinstance(error, (BusyError, AwayError))
        ):
            return None
        # Apart from each other, or all who were turned away come back at once.
        if error.retry_after is None:
            return float(min(self.longest, 0.1 * 2**attempt) * random.uniform(0.5, 1.0))
        if error.retry_after > self.longest:
            return None
        return error.retry_after * random.uniform(1.0, 1.25)


def recommend(**asked: Unpack[Recommend]) -> Call[RecommendResponse]:
    """``POST /v1/recommend``."""
    return Call("POST", "/v1/recommend", RecommendResponse, asked)


def rank(**asked: Unpack[Rank]) -> Call[RecommendResponse]:
    """``POST /v1/rank``."""
    return Call("POST", "/v1/rank", RecommendResponse, asked)


def similar(item: Id, k: int) -> Call[SimilarResponse]:
    """``POST /v1/similar``."""
    return Call("POST", "/v1/similar", SimilarResponse, {"item": item, "k": k})


def items(search: str, limit: int) -> Call[ItemsResponse]:
    """``GET /v1/items``."""
    return Call("GET", "/v1/items", ItemsResponse, params={"search": search, "limit": limit})


def send_events(events: Iterable[Event]) -> Call[EventsResponse]:
    """``POST /v1/events``; every event gets an id, so that it can be sent again."""
    now = datetime.now(UTC)
    listed = []
    for event in events:
        named: dict[str, Any] = {**event}
        if "id" not in event:
            named = {"id": uuid.uuid4().hex, "time": now, **event}
        listed.append(named)
    return Call("POST", "/v1/events", EventsResponse, {"events": listed})


def user(user: Id) -> Call[UserResponse]:
    """``GET /v1/users/{user}``."""
    return Call("GET", _of_user(user), UserResponse)


def forget(user: Id) -> Call[ForgottenResponse]:
    """``DELETE /v1/users/{user}``."""
    return Call("DELETE", _of_user(user), ForgottenResponse)


def models() -> Call[ModelsResponse]:
    """``GET /v1/models``."""
    return Call("GET", "/v1/models", ModelsResponse)


def load_model(version: str | None) -> Call[ModelsResponse]:
    """``POST /v1/models/load``."""
    return Call("POST", "/v1/models/load", ModelsResponse, {"version": version})


def roll_back() -> Call[ModelsResponse]:
    """``POST /v1/models/rollback``; twice it would be forward again."""
    return Call("POST", "/v1/models/rollback", ModelsResponse, {}, again=False)


def ready() -> Call[ReadyResponse]:
    """``GET /readyz``."""
    return Call("GET", "/readyz", ReadyResponse)


def _of_user(user: Id) -> str:
    try:
        # A dot is safe in a path but for "." and "..", which are steps in it.
        return "/v1/users/" + quote(str(user), safe="").replace(".", "%2E")
    except UnicodeEncodeError as error:
        raise RefusedError(f"user is no valid text: {error}", code="invalid") from error
