"""What the service remembers between requests, and the promises of whatever remembers it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, Protocol

from hybridrec.checks import HybridrecError

if TYPE_CHECKING:
    from datetime import datetime

Scope = Literal["recommend", "events", "admin"]
SCOPES: tuple[Scope, ...] = ("recommend", "events", "admin")

AHEAD = timedelta(minutes=5)
"""That clocks may differ by: no later is an event that somebody sends."""


class StoreError(HybridrecError):
    """The store cannot do what it was asked: it is away, locked, damaged or of a newer make."""


class ConflictError(HybridrecError):
    """An event id that was used before, with another content."""


class ForgottenError(HybridrecError):
    """An event from before the moment at which its user was forgotten."""


@dataclass(frozen=True)
class StoredEvent:
    """Something a user did; ids are text here, whatever type the model has.

    Attributes:
        id: the caller's, unique per key; None for one that came with a model.
        user: text, at most 256 characters.
        item: likewise.
        time: aware, UTC; None where the data that came with a model had no dates. One that is
            appended without a time happens then; sent again without a time it is the same event.
        liked: False: seen, but no part of the history.
    """

    id: str | None
    user: str
    item: str
    time: datetime | None
    liked: bool = True


@dataclass(frozen=True)
class Appended:
    """How many events were new, and how many had been stored before with the same content."""

    accepted: int
    duplicates: int


@dataclass(frozen=True)
class History:
    """The newest of what a user did: item ids, oldest first.

    Attributes:
        known: whether anything at all is stored of the user.
        liked: the history.
        disliked: seen, and no part of it.
    """

    known: bool = False
    liked: tuple[str, ...] = ()
    disliked: tuple[str, ...] = ()


@dataclass(frozen=True)
class Forgotten:
    """What was removed of a user."""

    events: int
    queries: int


@dataclass(frozen=True)
class Key:
    """An API key, without its secret.

    Attributes:
        id: short, public: stands in logs and in the secret's prefix.
        name: what its owner calls it.
        scopes: what it may do.
        created: when.
        revoked: when, or None.
    """

    id: str
    name: str
    scopes: tuple[Scope, ...]
    created: datetime
    revoked: datetime | None = None


class Store(Protocol):
    """Events, keys and health queries. Every method may be called from any thread."""

    @property
    def shared(self) -> bool:
        """Whether several processes may use it at once."""

    def append(self, events: Sequence[StoredEvent], *, key: str) -> Appended:
        """Store all of ``events`` or none; when it returns they are on the disk.

        Raises:
            ConflictError: an id of ``key`` was used before with another content; or twice in here.
            ForgottenError: an event is no newer than the forgetting of its user, or was stored
                before it without a time.
            InputError: an id that is no text of 1 to 256 characters, a NUL in one, a time without
                an offset.
            StoreError: it could not be written. Where the connection was lost at the end, it may
                have been: send the same ids again, and they count once.
        """

    def histories(self, users: Sequence[str], *, newest: int = 1000) -> list[History]:
        """For each of ``users`` the ``newest`` events: by time, then as they came in."""

    def events(self, user: str) -> list[StoredEvent]:
        """Everything that is stored of ``user``, oldest first."""

    def forget(self, user: str) -> Forgotten:
        """Remove all that is stored of ``user``, so that no file of the store holds it any more.

        PostgreSQL removes the rows; their bytes go when it vacuums its tables. A keyed hash of the
        id stays with the moment, to refuse a replay of what was before, and one of each event that
        came without a time. The moment is now, or the time of the newest event where a clock ahead
        of this one gave it, by no more than ``AHEAD``.

        Raises:
            StoreError: it could not be done, or not to the end; ask again.
        """

    def import_once(self, mark: str, events: Iterable[StoredEvent]) -> int | None:
        """Store ``events`` that came with a model, once per ``mark``; None if that was done before.

        Left out are events that are stored already (of the same user, item, time and liking: most
        of what a model saved later brings), and, of a user who was forgotten, those no newer than
        that, those without a time and those of a time to come. What was interrupted is taken up by
        the next call.

        Args:
            mark: names what the events came with.
            events: a user's stand together, oldest first.

        Returns:
            How many were stored by this call.
        """

    def users(self, *, prefix: str = "", limit: int = 20) -> list[str]:
        """Some users of whom there are events, by the start of their ids, in order."""

    def keep_query(self, user: str | None, history: Sequence[str]) -> None:
        """Keep a query to check new models with; the oldest beyond a limit is dropped.

        One of a ``user`` of whom nothing is stored is not kept: he may just have been forgotten.
        """

    def queries(self) -> list[tuple[str, ...]]:
        """The histories of the kept queries, oldest query first."""

    def add_key(self, key: Key, digest: bytes) -> None:
        """Keep a key by the SHA-256 of its secret."""

    def key(self, key_id: str) -> tuple[Key, bytes] | None:
        """A key and its digest, revoked or not."""

    def keys(self) -> list[Key]:
        """Every key, oldest first."""

    def revoke_key(self, key_id: str) -> bool:
        """Revoke a key; False if there is none of that id that is not revoked."""

    def secret(self) -> bytes:
        """32 random bytes of this installation, made on first use: keys the hashes of user ids."""

    def ping(self) -> None:
        """Raise StoreError if it cannot be reached."""

    def close(self) -> None:
        """Let go of files and connections."""
