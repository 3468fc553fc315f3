"""What stands before every route: plain ASGI, so that it costs next to nothing.

In this order: a request id; the Host header; the key and its scope; the rate; the content type;
the body, read here up to its cap. Whatever goes wrong, here or behind, is answered in one shape.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from hybridrec.checks import HybridrecError
from hybridrec.serve.access.callers import NOBODY, Caller, needed
from hybridrec.serve.access.hosts import Hosts
from hybridrec.serve.access.rates import Rates
from hybridrec.serve.store.contract import StoreError
from hybridrec.serve.visits import VISIT, Visit
from hybridrec.serve.watch.logs import request_id
from hybridrec.serve.wire.errors import GONE, RefusalError, refusal_of

if TYPE_CHECKING:
    from starlette.datastructures import State
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from hybridrec.serve.config import ServeConfig
    from hybridrec.serve.service import Service

_log = logging.getLogger("hybridrec.serve")

BODY_SECONDS = 30.0
"""In which a body must have come in whole."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
}
_RAW = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
_REASONS = {401: "key", 403: "scope", 408: "body", 413: "body", 415: "content_type", 421: "host"}


class Guard:
    """The middleware.

    Args:
        app: what it stands before.
        config: the settings.
        state: of the application: holds the service as soon as it has begun.
    """

    def __init__(self, app: ASGIApp, *, config: ServeConfig, state: State) -> None:
        self._app = app
        self._state = state
        self._hosts = Hosts(config)
        self._rates = Rates(config.rate, config.burst)
        self._most = config.body_bytes

    @property
    def _service(self) -> Service:
        service: Service = self._state.service
        return service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        visit = Visit(_request_id(headers), time.monotonic())
        scope[VISIT] = visit
        request_id.set(visit.request_id)  # of this task, and so of this request alone

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                _add_headers(message, visit)
            await send(message)

        try:
            visit.caller = await self._admitted(scope, headers)
            body = await self._body(headers, receive)
            await self._app(scope, _replayed(body, receive), answer)
        except Exception as error:
            refusal = self._refusal(error, visit)
            if visit.status:
                raise  # half an answer is out: the connection has to break
            self._count(refusal)
            await send_refusal(refusal, visit, answer)
        finally:
            self._service.observer.saw(visit, scope["method"], _route(scope), headers)

    async def _admitted(self, scope: Scope, headers: Headers) -> Caller:
        """Who sends it, if he may; nothing of the body has been read."""
        method, path = scope["method"], scope["path"]
        scope_needed = needed(method, path)
        probe = path in ("/healthz", "/readyz")
        if not probe and not self._hosts.allow(headers.get("host", "")):
            raise RefusalError(
                421,
                "wrong_host",
                f"Host {headers.get('host', '')[:100]!r} is not a name of this service: start it "
                "with --hosts NAME",
            )
        caller = NOBODY
        if scope_needed is not None:
            try:
                caller = await self._service.doorkeeper.caller(headers.get("authorization"))
            except RefusalError:
                self._paced(scope, None)
                raise
            caller.require(scope_needed, f"{method} {_template(path)}")
        if not probe:
            self._paced(scope, caller.key)
        # Nothing else that changes something goes without asking first from another site's page.
        if (method == "POST" or _has_body(headers)) and not _is_json(headers):
            raise RefusalError(
                415, "content_type", "send JSON with the header Content-Type: application/json"
            )
        return caller

    def _paced(self, scope: Scope, key: str | None) -> None:
        client = scope.get("client") or ("unknown", 0)
        wait = self._rates.wait(f"address:{client[0]}" if key is None else f"key:{key}")
        if wait is not None:
            raise RefusalError(
                429, "rate", f"too many requests: wait {wait:.1f} seconds", retry_after=wait
            )

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        if not _has_body(headers):
            return b""
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and len(declared) < 19 and int(declared) > self._most:
            raise self._too_large()
        parts: list[bytes] = []
        size, more = 0, True
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RefusalError(GONE, "gone", "the client is gone")
                    part = message.get("body", b"")
                    size += len(part)
                    if size > self._most:
                        raise self._too_large()
                    parts.append(part)
                    more = message.get("more_body", False)
        except TimeoutError as error:
            raise RefusalError(
                408,
                "slow_body",
                f"the body did not come within {BODY_SECONDS:g} seconds",
                headers={"Connection": "close"},
            ) from error
        return b"".join(parts)

    def _too_large(self) -> RefusalError:
        return RefusalError(
            413,
            "too_large",
            f"the body is larger than {self._most} bytes: send it in parts",
            headers={"Connection": "close"},
        )

    def _refusal(self, error: Exception, visit: Visit) -> RefusalError:
        if isinstance(error, StoreError):
            _log.warning("the store failed: %s", error)
        if isinstance(error, HybridrecError):
            return refusal_of(error)
        self._service.observer.failed(error)
        return RefusalError(
            500, "internal", f"something is broken here; the log has it as {visit.request_id}"
        )

    def _count(self, refusal: RefusalError) -> None:
        reason = refusal.code if refusal.status == 429 else _REASONS.get(refusal.status)
        if reason is not None:
            self._service.observer.rejected(reason)


async def send_refusal(refusal: RefusalError, visit: Visit, send: Send) -> None:
    """Answer with an error."""
    visit.code = refusal.code
    body = refusal.body(visit.request_id)
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    headers |= refusal.headers
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def _add_headers(message: Message, visit: Visit) -> None:
    given = list(message.get("headers", ()))
    names = {name for name, _ in given}
    given += [header for header in _RAW if header[0] not in names]
    message["headers"] = [*given, (b"x-request-id", visit.request_id.encode())]


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _is_json(headers: Headers) -> bool:
    kind = headers.get("content-type", "").partition(";")[0]
    return kind.strip().lower() == "application/json"


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body that was read, once, then whatever else comes."""
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _route(scope: Scope) -> str:
    """The template of the path."""
    return getattr(scope.get("route"), "path_format", None) or "none"


def _template(path: str) -> str:
    """The path without the user that it may name."""
    return "/v1/users/..." if path.startswith("/v1/users/") else path[:100]
