"""What the service writes down: one line a request, JSON or text, without anybody's data in it.

No line holds a title, a user's id or a key. A request is named by the template of its path, a user
by :func:`user_mark`, and an error by its kind and the lines of code it came through: its own words
may quote what a caller sent, or the password in a database's URL.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import logging
import re
import sys
import time
import traceback
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from hybridrec.checks import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TextIO

__all__ = ["JsonLines", "TextLines", "log_request", "request_id", "set_up_logs", "user_mark"]

request_id: ContextVar[str | None] = ContextVar("hybridrec_request_id", default=None)
"""Of the request that this task or thread works for; stands in every line written meanwhile."""

UVICORN: dict[str, Any] = {"log_config": None, "access_log": False}
"""What ``uvicorn.Config`` must be told, so that its lines go through here and paths are in none."""

_FIELDS = "hybridrec_fields"
_SECRET_BYTES = 16
_MARK_DIGITS = 16
_MOST_FRAMES = 40
# Of ASCII and of Unicode, so that no value can end a line and begin one of its own.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_access = logging.getLogger("hybridrec.serve.access")


def user_mark(secret: bytes, user: str | int) -> str:
    """What stands for a user in logs: 16 hex digits of HMAC-SHA256.

    Whoever lacks the installation's ``secret`` cannot try out ids; 1 and "1" are one user, as they
    are to the store.

    Raises:
        InputError: the secret is shorter than 16 bytes.
    """
    if len(secret) < _SECRET_BYTES:
        raise InputError(f"secret has {len(secret)} bytes; wanted at least {_SECRET_BYTES}")
    text = str(user).encode("utf-8", "surrogatepass")
    return hmac.new(secret, text, hashlib.sha256).hexdigest()[:_MARK_DIGITS]


def log_request(
    method: str, route: str, status: int, seconds: float, **fields: str | float | None
) -> None:
    """The line of a request.

    Args:
        method: of HTTP.
        route: the template of the path, never the path: users' ids are in some.
        status: of the answer.
        seconds: it took.
        fields: more of it, of which those that are None are left out: ``key`` (its public id),
            ``user`` (a mark), ``model``, ``degraded``, ``error`` (its code), ``trace_id``.
    """
    level = logging.WARNING if status >= 500 else logging.INFO
    if not _access.isEnabledFor(level):
        return
    told: dict[str, object] = {"method": method, "route": route, "status": status}
    told["ms"] = round(1e3 * seconds, 2)
    told.update((name, value) for name, value in fields.items() if value is not None)
    _access.log(level, "request", extra={_FIELDS: told})


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request_id, fields, error."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if (request := request_id.get()) is not None:
            line["request_id"] = request
        line |= getattr(record, _FIELDS, {})
        if record.exc_info and record.exc_info[1] is not None:
            line["error_chain"] = _errors(record.exc_info[1])
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """The same for people: one line, ``name=value`` behind the message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        words = [_time(record), record.levelname, record.name, _message(record)]
        fields = dict(getattr(record, _FIELDS, {}))
        if (request := request_id.get()) is not None:
            fields["request_id"] = request
        words += [f"{name}={value}" for name, value in fields.items()]
        if record.exc_info and record.exc_info[1] is not None:
            for error in _errors(record.exc_info[1]):
                words.append(f"{error['kind']}: {' > '.join(error['at'])}")
        return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", " ".join(words))


def set_up_logs(
    *, json_lines: bool, level: int = logging.INFO, stream: TextIO | None = None
) -> None:
    """Send every line of the process to ``stream`` (standard error) in the service's form.

    For a process that is the service: handlers that others put on the root logger are taken off.
    uvicorn's own line a request is shut off, because the path is in it.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonLines() if json_lines else TextLines())
    root = logging.getLogger()
    for other in root.handlers[:]:
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("hybridrec").setLevel(level)
    for name in ("uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(level)
    logging.getLogger("uvicorn.access").disabled = True
    logging.captureWarnings(True)
    # Where a line cannot be written, the standard library would print its arguments instead.
    logging.raiseExceptions = False


def _time(record: logging.LogRecord) -> str:
    """RFC 3339, UTC, milliseconds."""
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):
        return str(record.msg)  # arguments that do not fit its places: better than no line


def _errors(error: BaseException) -> list[dict[str, Any]]:
    """An error and what led to it, last first: kinds and places, none of their words."""
    found = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        told: dict[str, Any] = {"kind": type(error).__name__}
        if isinstance(error, OSError) and error.errno is not None:
            told["errno"] = errno.errorcode.get(error.errno, str(error.errno))
        told["at"] = list(_places(error))
        found.append(told)
        following = error.__cause__
        if following is None and not error.__suppress_context__:
            following = error.__context__
        if following is None:
            break
        error = following
    return found


def _places(error: BaseException) -> Iterable[str]:
    frames = traceback.StackSummary.extract(
        traceback.walk_tb(error.__traceback__), lookup_lines=False
    )
    for frame in frames[-_MOST_FRAMES:]:
        yield f"{frame.filename}:{frame.lineno} {frame.name}"
