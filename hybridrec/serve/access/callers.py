"""Who asks, and what they may: API keys and their scopes."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hybridrec.serve.access.keys import authenticate
from hybridrec.serve.store.contract import SCOPES, Scope, StoreError
from hybridrec.serve.wire.errors import RefusalError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hybridrec.serve.store.contract import Store

FRESH = 2.0
"""Seconds for which the store is not asked again: so long a revoked key goes on."""
STALE = 60.0
"""And so long where the store cannot be asked: who needs nothing else of it goes on, too."""
MOST_KNOWN = 1000

_OPEN = frozenset({"/", "/healthz", "/readyz", "/openapi.json"})
_PAGE = "/page/"
_NEEDS: dict[tuple[str, str], Scope] = {
    ("POST", "/v1/recommend"): "recommend",
    ("POST", "/v1/similar"): "recommend",
    ("POST", "/v1/rank"): "recommend",
    ("GET", "/v1/items"): "recommend",
    ("POST", "/v1/events"): "events",
}


def needed(method: str, path: str) -> Scope | None:
    """The scope that a request needs; None where everybody may. What is not listed needs admin."""
    if path in _OPEN or path.startswith(_PAGE):
        return None
    return _NEEDS.get((method, path), "admin")


@dataclass(frozen=True)
class Caller:
    """Who sent a request.

    Attributes:
        key: id of the key; None without keys.
        scopes: what it may do.
    """

    key: str | None
    scopes: tuple[Scope, ...]

    def may(self, scope: Scope) -> bool:
        """Whether that is allowed; admin includes the others."""
        return scope in self.scopes or "admin" in self.scopes

    def require(self, scope: Scope, what: str) -> None:
        """Refuse ``what`` without ``scope``.

        Raises:
            RefusalError: 403.
        """
        if not self.may(scope):
            has = ", ".join(self.scopes) or "none"
            raise RefusalError(
                403,
                "not_allowed",
                f"{what} needs the scope {scope}; this key has {has}: make another with "
                "`hybridrec keys create`",
            )


NOBODY = Caller(None, ())
ANYBODY = Caller(None, SCOPES)
"""On loopback, as long as there is no key: whoever is on this machine may do everything."""


class Doorkeeper:
    """Looks keys up in the store, and remembers for a moment what it said.

    Args:
        store: where keys are.
        keyless: let everybody do everything as long as no key was ever made.
        clock: seconds, never falling.
    """

    def __init__(
        self, store: Store, *, keyless: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._clock = clock
        self._open = keyless
        self._open_until = -math.inf
        self._known: dict[bytes, tuple[Caller, float]] = {}

    async def caller(self, authorization: str | None) -> Caller:
        """Who sends ``Authorization: Bearer ...``.

        Raises:
            RefusalError: 401: there is no such key, or it was revoked, or one is needed.
            StoreError: the store is away.
        """
        if await self._keyless():
            return ANYBODY
        if authorization is None:
            raise _unauthorized("this needs an API key: send Authorization: Bearer KEY")
        kind, _, secret = authorization.partition(" ")
        secret = secret.strip()
        if kind.lower() != "bearer" or not secret:
            raise _unauthorized("Authorization is of another kind; wanted Bearer KEY")
        # Not the secret itself: what lies in memory for long should open no door.
        digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
        now = self._clock()
        caller, until = self._known.get(digest, (NOBODY, -math.inf))
        if now < until:
            return caller
        try:
            key = await asyncio.to_thread(authenticate, self._store, secret)
        except StoreError:
            if now < until + STALE - FRESH:
                return caller
            raise
        if key is None:
            self._known.pop(digest, None)
            raise _unauthorized("this API key is not known, or was revoked")
        while len(self._known) >= MOST_KNOWN:
            del self._known[next(iter(self._known))]
        caller = Caller(key.id, key.scopes)
        self._known[digest] = (caller, now + FRESH)
        return caller

    async def _keyless(self) -> bool:
        """Whether no key was ever made; a revoked one counts, or revoking would open the door."""
        now = self._clock()
        if self._open and now >= self._open_until:
            try:
                self._open = not await asyncio.to_thread(self._store.keys)
            except StoreError:
                if now >= self._open_until + STALE - FRESH:
                    raise
            else:
                self._open_until = now + FRESH
        return self._open


def _unauthorized(message: str) -> RefusalError:
    return RefusalError(401, "unauthorized", message, headers={"WWW-Authenticate": "Bearer"})
