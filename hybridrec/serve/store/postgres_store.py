"""The store for several processes: PostgreSQL, by psycopg and a pool of connections."""

from __future__ import annotations

import math
import secrets
import threading
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import ConnectionPool, PoolTimeout

from hybridrec.checks import InputError, whole_number
from hybridrec.serve.store import postgres_tables as table
from hybridrec.serve.store import rules
from hybridrec.serve.store.contract import (
    Appended,
    Forgotten,
    History,
    Key,
    StoredEvent,
    StoreError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager
    from typing import LiteralString

    Connection = psycopg.Connection[tuple[Any, ...]]

T = TypeVar("T")

_PING = 2.0
"""Seconds: whoever asks for readiness does not wait for long."""
_AWAY = 1.0
"""Seconds: so long after one has waited in vain for a connection, no other waits for one."""
_NOTICED = {"tcp_user_timeout": 10_000, "keepalives_idle": 10, "keepalives_interval": 5}
"""A machine that went without a word is noticed in seconds, and not when the kernel gives up."""


class PostgresStore:
    """A :class:`~hybridrec.serve.store.contract.Store` in the schema ``hybridrec`` of a database.

    Whoever writes of users shares a lock that forgetting takes alone, so that nothing of a user
    slips in between the look whether he was forgotten and the writing.

    Args:
        url: ``postgresql://user:password@host:port/database``.
        health_queries: kept at most.
        connections: open at once at most.
        wait: seconds to wait for a connection.

    Raises:
        StoreError: the server cannot be reached or refuses, or the tables are of a newer make.
    """

    shared = True

    def __init__(
        self, url: str, *, health_queries: int = 50, connections: int = 8, wait: float = 5.0
    ) -> None:
        self._limit = whole_number("health_queries", health_queries)
        whole_number("connections", connections, least=1)
        # Those who write wait for each other with a connection in hand: some are left to reads.
        self._writers = threading.BoundedSemaphore(max(1, connections * 3 // 4))
        self._wait = wait
        try:
            parts = conninfo_to_dict(url)
        except psycopg.Error:
            raise InputError(
                "the store's URL cannot be read; wanted postgresql://user:password@host:port/name"
            ) from None
        # For messages, without the password.
        self._name = f"{parts.get('host', 'localhost')}/{parts.get('dbname', '')}"
        usual = {"connect_timeout": int(wait), **_NOTICED}
        self._url = make_conninfo(url, **{name: usual[name] for name in usual if name not in parts})
        self._away_until = -math.inf
        try:
            with self._connect() as connection:
                table.prepare(connection, self._name)
        except psycopg.Error as error:
            raise self._failed("open", error) from error
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            self._url,
            kwargs={"autocommit": True, "application_name": "hybridrec"},
            min_size=1,
            max_size=connections,
            timeout=wait,
            # Longer, and the pauses between its tries would outlast the server's absence.
            reconnect_timeout=wait,
            configure=_see_what_others_wrote,
            open=True,
        )

    def close(self) -> None:
        """Close every connection. A second call does nothing."""
        self._pool.close()

    def ping(self) -> None:
        """Raise StoreError if the server does not answer."""
        self._run(lambda c: c.execute("SELECT 1"), nullcontext, "reach", timeout=_PING)

    # -- connections ------------------------------------------------------------------------

    def _connect(self) -> Connection:
        """A connection outside the pool."""
        connection = psycopg.connect(self._url, autocommit=True, application_name="hybridrec")
        _see_what_others_wrote(connection)
        return connection

    def _failed(self, what: str, error: Exception) -> StoreError:
        return StoreError(f"cannot {what} the store {self._name}: {error}")

    def _rows(self, query: LiteralString, values: Sequence[object] = ()) -> list[Any]:
        return self._run(lambda c: c.execute(query, values).fetchall(), nullcontext, "read")

    def _write(self, work: Callable[[Connection], T], *, alone: bool = False) -> T:
        """What ``work`` returns, once what it wrote is on the server's disk.

        Args:
            work: is given a connection inside a transaction; run again after a deadlock, or where
                the connection turns out to be dead.
            alone: while no other ``work`` runs, in any process.
        """

        def locked(connection: Connection) -> T:
            connection.execute(table.LOCK_ALONE if alone else table.LOCK_SHARED)
            return work(connection)

        if not self._writers.acquire(timeout=self._wait):
            raise StoreError(
                f"cannot write the store {self._name}: others are writing for too long"
            )
        try:
            return self._run(locked, psycopg.Connection.transaction, "write")
        finally:
            self._writers.release()

    def _run(
        self,
        work: Callable[[Connection], T],
        around: Callable[[Connection], AbstractContextManager[object]],
        what: str,
        *,
        timeout: float | None = None,
        tries: int = 3,
    ) -> T:
        ping = timeout is not None
        if not ping and time.monotonic() < self._away_until:
            # Of those that are queued behind who waited, each would wait as long.
            raise StoreError(f"cannot {what} the store {self._name}: there is no connection to it")
        ended, connection = False, None
        try:
            with self._pool.connection(timeout) as connection, around(connection):
                result = work(connection)
                ended = True
            return result
        except psycopg.Error as error:
            if isinstance(error, PoolTimeout) and not ping:
                self._away_until = time.monotonic() + _AWAY
            undone = isinstance(error, (errors.DeadlockDetected, errors.SerializationFailure))
            # Once the end was sent, nobody knows whether it took place.
            lost = connection is not None and connection.broken and not ended
            if tries == 1 or not (undone or lost):
                raise self._failed(what, error) from error
        # A server that was started again has left every connection of the pool dead.
        self._pool.check()
        return self._run(work, around, what, timeout=timeout, tries=tries - 1)

    # -- events -----------------------------------------------------------------------------

    def append(self, events: Sequence[StoredEvent], *, key: str) -> Appended:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        fresh = rules.once_each(rules.checked(events))
        if not fresh:
            return Appended(0, 0)
        secret, tags = self.secret(), self._tags({event.user for event in fresh.values()})

        def work(connection: Connection) -> int:
            moments = table.moments(connection, tags)
            rules.refuse_forgotten(fresh.values(), moments)
            suspects = rules.maybe_replayed(fresh.values(), moments, key, secret)
            rules.refuse_replayed(table.replayed(connection, suspects))
            new = table.insert(connection, list(fresh.values()), key)
            others = [event_id for event_id in fresh if event_id not in new]
            for event_id, stored in table.stored(connection, key, others):
                rules.refuse_other(fresh[event_id], stored)
            return len(new)

        accepted = self._write(work)
        return Appended(accepted, len(events) - accepted)

    def import_once(self, mark: str, events: Iterable[StoredEvent]) -> int | None:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        try:
            with self._connect() as guard, guard.transaction():
                # Not committed until the end: another process with this mark waits here, and where
                # this one dies, it goes on.
                # One at a time, whatever its mark: two would both find the other's events missing.
                guard.execute(table.LOCK_IMPORTING)
                took = guard.execute(
                    "INSERT INTO hybridrec.imports VALUES (%s) ON CONFLICT DO NOTHING", (mark,)
                )
                if not took.rowcount:
                    return None
                stored = 0
                for chunk in rules.chunks(events):
                    stored += self._import(chunk)
                    guard.execute("SELECT 1")  # servers may end what is idle inside a transaction
                return stored
        except psycopg.Error as error:
            raise self._failed("import into", error) from error

    def _import(self, chunk: list[list[StoredEvent]]) -> int:
        tags = self._tags({group[0].user for group in chunk})

        def work(connection: Connection) -> int:
            moments = table.moments(connection, tags)
            known = table.known(connection, list(tags.values()))
            new = [
                event
                for group in chunk
                for event in rules.new_to(known[group[0].user], group, moments.get(group[0].user))
            ]
            table.insert(connection, new, None)
            return len(new)

        return self._write(work)

    def histories(self, users: Sequence[str], *, newest: int = 1000) -> list[History]:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        asked = [user if rules.holds(user) else "" for user in users]
        found: list[list[tuple[str, bool]]] = [[] for _ in asked]
        for place, item, liked in self._rows(table.HISTORIES, (asked, newest)):
            found[place - 1].append((item, liked))
        return [rules.history(reversed(rows)) for rows in found]

    def events(self, user: str) -> list[StoredEvent]:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        rows = self._rows(table.EVENTS, (user,)) if rules.holds(user) else []
        return [
            StoredEvent(event_id, user, item, table.as_time(moment), liked)
            for event_id, item, moment, liked in rows
        ]

    def users(self, *, prefix: str = "", limit: int = 20) -> list[str]:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        if prefix and not rules.holds(prefix):
            return []
        names = [name for (name,) in self._rows(table.USERS, (prefix, limit))]
        return [name for name in names if name.startswith(prefix)]

    def forget(self, user: str) -> Forgotten:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        secret = self.secret()
        tag = rules.user_tag(secret, rules.checked_text("user", user))

        def work(connection: Connection) -> Forgotten:
            names = table.untimed(connection, user)
            replays = [rules.event_tag(secret, *name, user) for name in names]
            table.mark_replays(connection, replays)
            moment = rules.forgotten_at(table.newest(connection, user))
            table.mark_forgotten(connection, tag, moment)
            run = connection.execute
            return Forgotten(
                run("DELETE FROM hybridrec.events WHERE user_id = %s", (user,)).rowcount,
                run("DELETE FROM hybridrec.queries WHERE tag = %s", (tag,)).rowcount,
            )

        return self._write(work, alone=True)

    def _tags(self, users: Iterable[str]) -> dict[bytes, str]:
        secret = self.secret()
        return {rules.user_tag(secret, user): user for user in users}

    # -- queries ----------------------------------------------------------------------------

    def keep_query(self, user: str | None, history: Sequence[str]) -> None:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        if not self._limit:
            return
        items = [rules.checked_text("history", item) for item in history]
        tag = None
        if user is not None:
            tag = rules.user_tag(self.secret(), rules.checked_text("user", user))

        def work(connection: Connection) -> None:
            if tag and not connection.execute(table.KNOWN, (user,)).fetchone():
                return
            connection.execute(table.KEEP_QUERY, (tag, items))
            connection.execute(table.DROP_QUERIES, (self._limit,))

        self._write(work)

    def queries(self) -> list[tuple[str, ...]]:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        rows = self._rows("SELECT history FROM hybridrec.queries ORDER BY arrival")
        return [tuple(history) for (history,) in rows]

    # -- keys -------------------------------------------------------------------------------

    def add_key(self, key: Key, digest: bytes) -> None:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        row = (key.id, key.name, list(key.scopes), digest, key.created)
        if not self._write(lambda connection: connection.execute(table.ADD_KEY, row).rowcount):
            raise InputError(f"there is a key with the id {key.id!r}: take another id")

    def key(self, key_id: str) -> tuple[Key, bytes] | None:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        rows = self._rows(table.KEYS + " WHERE id = %s", (key_id,)) if rules.holds(key_id) else []
        return (table.as_key(rows[0]), bytes(rows[0][-1])) if rows else None

    def keys(self) -> list[Key]:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        return [table.as_key(row) for row in self._rows(table.KEYS + " ORDER BY created, id")]

    def revoke_key(self, key_id: str) -> bool:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        if not rules.holds(key_id):
            return False
        row = (datetime.now(UTC), key_id)
        return self._write(lambda connection: connection.execute(table.REVOKE, row).rowcount > 0)

    def secret(self) -> bytes:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        return self._secret

    @cached_property
    def _secret(self) -> bytes:
        def work(connection: Connection) -> bytes:
            connection.execute(table.MAKE_SECRET, (secrets.token_bytes(32),))
            return table.secret(connection)

        return self._write(work)


def _see_what_others_wrote(connection: Connection) -> None:
    """Let transactions read what was committed while they waited for a lock, as the usual ones do.

    Where the server, the database or the role sets another level, the look whether a user was
    forgotten would show what was before the wait.
    """
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
