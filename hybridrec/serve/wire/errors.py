"""What went wrong, as a status, a word for programs and a sentence for people."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from hybridrec.checks import (
    HybridrecError,
    InputError,
    InputTypeError,
    StorageError,
    UnknownIdError,
)
from hybridrec.serve.answers.batching import ClosedError, QueueFull
from hybridrec.serve.store.contract import ConflictError, ForgottenError, StoreError
from hybridrec.serve.versions.models import NoModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

GONE = 499
"""The status of a request whose client did not wait for the answer: for the log and the counts."""
LONGEST = 2000
"""Characters of a message; what a caller sent may stand in it."""

_CODES = {400: "malformed", 404: "not_found", 405: "method_not_allowed", 422: "invalid"}


class RefusalError(HybridrecError):
    """A request that gets an error for its answer.

    Args:
        status: of HTTP.
        code: a word for programs.
        message: what was got, what was wanted, what to do.
        retry_after: seconds after which it may go better; None where it will not.
        headers: more of them.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))

    def body(self, request_id: str) -> bytes:
        """JSON of the shape of :class:`hybridrec.serve.wire.schema.ErrorResponse`."""
        message = self.message[:LONGEST]
        error = {"code": self.code, "message": message, "request_id": request_id}
        return json.dumps({"error": error}).encode()


class MissingError(HybridrecError):
    """Nothing is known of what the path names."""


class HalfForgottenError(StoreError):
    """A user is gone from the store, and not from the model folder."""


class NothingBeforeError(HybridrecError):
    """There is no version to go back to."""


def refusal_of(error: HybridrecError) -> RefusalError:
    """How an error of the library is told over the wire."""
    if isinstance(error, RefusalError):
        return error
    if isinstance(error, QueueFull):
        return RefusalError(429, "queue_full", str(error), retry_after=error.retry_after)
    if isinstance(error, StoreError):
        # Its own words name the server, and may be the server's: they are for the log.
        said = _HALF_FORGOTTEN if isinstance(error, HalfForgottenError) else _AWAY
        return RefusalError(503, "store_away", said, retry_after=1.0)
    for kind, status, code in _BY_KIND:
        if isinstance(error, kind):
            again = 1.0 if status == 503 else None
            return RefusalError(status, code, str(error), retry_after=again)
    return RefusalError(422, "refused", str(error))


_AWAY = "the store is away: try again; the log says why"
_HALF_FORGOTTEN = "the user is gone from the store, and not from the model folder: ask again"
_BY_KIND: tuple[tuple[type[HybridrecError], int, str], ...] = (
    (UnknownIdError, 422, "unknown_id"),
    (InputError, 422, "invalid"),
    (InputTypeError, 422, "invalid"),
    (ConflictError, 409, "conflict"),
    (ForgottenError, 409, "forgotten"),
    (NothingBeforeError, 409, "nothing_before"),
    (StorageError, 409, "model_refused"),
    (MissingError, 404, "not_found"),
    (NoModelError, 503, "no_model"),
    (ClosedError, 503, "closing"),
)


def of_status(status: int, detail: str, headers: Mapping[str, str] | None = None) -> RefusalError:
    """What the framework refuses by a status alone."""
    return RefusalError(status, _CODES.get(status, "refused"), detail, headers=headers)
