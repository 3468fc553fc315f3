"""What the service answers when it does not do what it was asked."""

from __future__ import annotations

from hybridrec.checks import HybridrecError


class ClientError(HybridrecError):
    """The service did not do it.

    Args:
        message: the service's own, if it gave one.
        status: of HTTP; None where no answer came.
        code: the service's word for programs, such as "unknown_id".
        request_id: to be found in the service's log.
        retry_after: seconds after which it may go better; None where the service did not say.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str = "unknown",
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}" + (f" [{request_id}]" if request_id else ""))
        self.message = message
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after


class RefusedError(ClientError):
    """The request was wrong; sent again it is wrong again."""


class NotAllowedError(RefusedError):
    """There was no key, or not one that may do this."""


class NotFoundError(RefusedError):
    """Nothing is known of what was asked for."""


class ContradictionError(RefusedError):
    """It contradicts what is there; ``code`` says what: conflict, forgotten, model_refused."""


class BusyError(ClientError):
    """Too many requests, of this caller or of all."""


class AwayError(ClientError):
    """The service, its model or its store cannot be reached."""


def error_of(status: int) -> type[ClientError]:
    """The class of what a status tells."""
    by_status: dict[int, type[ClientError]] = {
        401: NotAllowedError,
        403: NotAllowedError,
        404: NotFoundError,
        409: ContradictionError,
        429: BusyError,
        502: AwayError,
        503: AwayError,
        504: AwayError,
    }
    return by_status.get(status, RefusedError if 400 <= status < 500 else ClientError)
