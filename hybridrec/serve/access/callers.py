"""Who asks, and what they may: API keys and their scopes."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hybridrec.serve.access.keys import authenticate
from hybridrec.serve.answers.batching import QueueFull
from hybridrec.serve.answers.lanes import Lane
from hybridrec.serve.store.contract import SCOPES, Scope, StoreError
from hybridrec.serve.wire.errors import RefusalError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from hybridrec.serve.store.contract import Store

FRESH = 2.0
"""Seconds for which the store is not asked again: so long a revoked key goes on."""
STALE = 60.0
"""And so long where the store cannot be asked: who needs nothing else of it goes on, too."""
MOST_KNOWN = 1000
MOST_ASKED = 256
"""Questions to the store that run and wait; whoever shares one adds none."""

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
    """Looks keys up in the store, and remembers for a moment what it said, or that it was away.

    Whoever comes while the same is being asked shares that question.

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
        self._lane = Lane("keys", threads=4, most=MOST_ASKED)
        self._asking: dict[bytes, asyncio.Task[Caller | None]] = {}
        self._failure = ""
        self._away_until = -math.inf

    async def close(self) -> None:
        """Let what is being asked end."""
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        await asyncio.to_thread(self._lane.close)

    async def caller(self, authorization: str | None) -> Caller:
        """Who sends ``Authorization: Bearer ...``.

        Raises:
            RefusalError: 401: there is no such key, or it was revoked, or one is needed.
            StoreError: the store is away.
            QueueFull: too many other keys are being looked up.
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
        caller, until = self._known.get(digest, (NOBODY, -math.inf))
        if self._clock() < until:
            return caller
        try:
            found = await self._once(digest, partial(self._look_up, digest, secret))
        except (StoreError, QueueFull):
            if self._clock() < until + STALE - FRESH:
                return caller
            raise
        if found is None:
            raise _unauthorized("this API key is not known, or was revoked")
        return found

    async def _look_up(self, digest: bytes, secret: str) -> Caller | None:
        now = self._clock()
        key = await self._lane.run(authenticate, self._store, secret)
        self._known.pop(digest, None)
        if key is None:
            return None
        while len(self._known) >= MOST_KNOWN:
            del self._known[next(iter(self._known))]
        caller = Caller(key.id, key.scopes)
        self._known[digest] = (caller, now + FRESH)
        return caller

    async def _keyless(self) -> bool:
        """Whether no key was ever made; a revoked one counts, or revoking would open the door."""
        if self._open and self._clock() >= self._open_until:
            try:
                await self._once(b"", self._look_for_keys)
            except (StoreError, QueueFull):
                if self._clock() >= self._open_until + STALE - FRESH:
                    raise
        return self._open

    async def _look_for_keys(self) -> None:
        now = self._clock()
        self._open = not await self._lane.run(self._store.keys)
        self._open_until = now + FRESH

    async def _once(
        self, name: bytes, look: Callable[[], Coroutine[Any, Any, Caller | None]]
    ) -> Caller | None:
        """What ``look`` finds, for all who ask under this name meanwhile.

        Raises:
            StoreError: the store is away, or was a moment ago: then it is not asked.
        """
        task = self._asking.get(name)
        if task is None:
            if self._clock() < self._away_until:
                raise StoreError(self._failure)
            task = self._asking[name] = asyncio.create_task(look())
            task.add_done_callback(partial(self._asked, name))
        return await asyncio.shield(task)  # one of those who wait for it may go

    def _asked(self, name: bytes, task: asyncio.Task[Caller | None]) -> None:
        del self._asking[name]
        if not task.cancelled() and isinstance(error := task.exception(), StoreError):
            self._failure = str(error)
            self._away_until = self._clock() + FRESH


def _unauthorized(message: str) -> RefusalError:
    return RefusalError(401, "unauthorized", message, headers={"WWW-Authenticate": "Bearer"})
