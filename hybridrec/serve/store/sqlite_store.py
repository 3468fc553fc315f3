"""The embedded store: one SQLite file, for one process."""

from __future__ import annotations

import json
import secrets
import threading
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridrec.checks import InputError, whole_number
from hybridrec.serve.store import rules
from hybridrec.serve.store import sqlite_rows as table
from hybridrec.serve.store.contract import Appended, Forgotten, History, Key, StoredEvent
from hybridrec.serve.store.sqlite_file import SQLiteFile

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence


class SQLiteStore:
    """A :class:`~hybridrec.serve.store.contract.Store` in one SQLite file.

    What is appended at once shares an fsync. Forgetting a user writes the whole file anew, which
    takes some 2 s a million events and keeps writers, not readers, waiting.

    Args:
        path: of the file; a lock file and SQLite's log stand beside it.
        health_queries: kept at most.
        patience: seconds that forgetting waits until nobody reads the log.
        beside: open it also while a service has it, to see to its keys.

    Raises:
        StoreError: another process has it, it is another program's, damaged, or of a newer make.
    """

    shared = False

    def __init__(
        self,
        path: str | Path,
        *,
        health_queries: int = 50,
        patience: float = 10.0,
        beside: bool = False,
    ) -> None:
        self._limit = whole_number("health_queries", health_queries)
        self._file = SQLiteFile(Path(path), table.MIGRATIONS, patience=patience, beside=beside)
        self._importing = threading.Lock()

    def close(self) -> None:
        """Let go of the file. A second call does nothing."""
        self._file.close()

    def ping(self) -> None:
        """Raise StoreError if the file cannot be read, or stands no longer where it did."""
        self._rows("SELECT 1 FROM sqlite_master LIMIT 1")

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[Any]:
        with self._file.reading() as connection:
            return connection.execute(query, values).fetchall()

    # -- events -----------------------------------------------------------------------------

    def append(self, events: Sequence[StoredEvent], *, key: str) -> Appended:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        fresh = rules.once_each(rules.checked(events))
        if not fresh:
            return Appended(0, 0)
        secret, tags = self.secret(), self._tags({event.user for event in fresh.values()})

        def work(connection: sqlite3.Connection) -> int:
            moments = table.moments(connection, tags)
            rules.refuse_forgotten(fresh.values(), moments)
            suspects = rules.maybe_replayed(fresh.values(), moments, key, secret)
            rules.refuse_replayed(table.replayed(connection, suspects))
            new = []
            for event in fresh.values():
                stored = table.stored(connection, key, event)
                if stored is None:
                    new.append(event)
                else:
                    rules.refuse_other(event, stored)
            table.insert(connection, new, key)
            return len(new)

        accepted = self._file.write(work)
        return Appended(accepted, len(events) - accepted)

    def import_once(self, mark: str, events: Iterable[StoredEvent]) -> int | None:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        with self._importing:
            if self._rows("SELECT 1 FROM imports WHERE mark = ?", (mark,)):
                return None
            stored = 0
            for chunk in rules.chunks(events):
                stored += self._import(chunk)
            self._file.write(
                lambda connection: connection.execute("INSERT INTO imports VALUES (?)", (mark,))
            )
            return stored

    def _import(self, chunk: list[list[StoredEvent]]) -> int:
        tags = self._tags({group[0].user for group in chunk})

        def work(connection: sqlite3.Connection) -> int:
            moments, stored = table.moments(connection, tags), 0
            for group in chunk:
                user = group[0].user
                rows = connection.execute(
                    "SELECT item, moment, liked FROM events JOIN users ON code = user "
                    "WHERE name = ?",
                    (user,),
                )
                known = {(item, table.as_time(moment), bool(liked)) for item, moment, liked in rows}
                new = rules.new_to(known, group, moments.get(user))
                table.insert(connection, new, None)
                stored += len(new)
            return stored

        return self._file.write(work)

    def histories(self, users: Sequence[str], *, newest: int = 1000) -> list[History]:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        found = []
        with self._file.reading() as connection:
            for user in users:
                rows = connection.execute(
                    "SELECT item, liked FROM events WHERE user = "
                    "(SELECT code FROM users WHERE name = ?) "
                    "ORDER BY moment DESC, arrival DESC LIMIT ?",
                    (user if rules.holds(user) else "", newest),
                ).fetchall()
                found.append(rules.history(reversed(rows)))
        return found

    def events(self, user: str) -> list[StoredEvent]:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        if not rules.holds(user):
            return []
        rows = self._rows(
            "SELECT id, item, moment, liked FROM events JOIN users ON code = user WHERE name = ? "
            "ORDER BY moment, arrival",
            (user,),
        )
        return [
            StoredEvent(event_id, user, item, table.as_time(moment), bool(liked))
            for event_id, item, moment, liked in rows
        ]

    def users(self, *, prefix: str = "", limit: int = 20) -> list[str]:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        if prefix and not rules.holds(prefix):
            return []
        rows = self._rows(
            "SELECT name FROM users WHERE name >= ? ORDER BY name LIMIT ?", (prefix, limit)
        )
        return [name for (name,) in rows if name.startswith(prefix)]

    def forget(self, user: str) -> Forgotten:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        secret = self.secret()
        tag = rules.user_tag(secret, rules.checked_text("user", user))

        def work(connection: sqlite3.Connection) -> Forgotten:
            run = connection.execute
            code = run("SELECT code FROM users WHERE name = ?", (user,)).fetchone() or (None,)
            newest = run("SELECT max(moment) FROM events WHERE user = ?", code).fetchone()[0]
            moment = table.micros(rules.forgotten_at(table.as_time(newest)))
            untimed = run(
                "SELECT key, id FROM events WHERE user = ? AND id IS NOT NULL AND NOT timed", code
            ).fetchall()
            connection.executemany(
                "INSERT OR IGNORE INTO forgotten_events VALUES (?)",
                [(rules.event_tag(secret, by, name, user),) for by, name in untimed],
            )
            gone = Forgotten(
                run("DELETE FROM events WHERE user = ?", code).rowcount,
                run("DELETE FROM queries WHERE tag = ?", (tag,)).rowcount,
            )
            run("DELETE FROM users WHERE code = ?", code)
            run(
                "INSERT INTO forgotten VALUES (?, ?) "
                "ON CONFLICT (tag) DO UPDATE SET moment = max(moment, excluded.moment)",
                (tag, moment),
            )
            if gone.events or gone.queries:
                run("INSERT OR IGNORE INTO unscrubbed VALUES (1)")
            return gone

        return self._file.write(work, scrub=True)

    def _tags(self, users: Iterable[str]) -> dict[bytes, str]:
        secret = self.secret()
        return {rules.user_tag(secret, user): user for user in users}

    # -- queries ----------------------------------------------------------------------------

    def keep_query(self, user: str | None, history: Sequence[str]) -> None:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        if not self._limit:
            return
        items = json.dumps([rules.checked_text("history", item) for item in history])
        tag = None
        if user is not None:
            tag = rules.user_tag(self.secret(), rules.checked_text("user", user))

        def work(connection: sqlite3.Connection) -> None:
            run = connection.execute
            if tag and not run("SELECT 1 FROM users WHERE name = ?", (user,)).fetchone():
                return
            run("INSERT INTO queries (tag, history) VALUES (?, ?)", (tag, items))
            run(
                "DELETE FROM queries WHERE arrival NOT IN "
                "(SELECT arrival FROM queries ORDER BY arrival DESC LIMIT ?)",
                (self._limit,),
            )

        self._file.write(work)

    def queries(self) -> list[tuple[str, ...]]:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        rows = self._rows("SELECT history FROM queries ORDER BY arrival")
        return [tuple(json.loads(history)) for (history,) in rows]

    # -- keys -------------------------------------------------------------------------------

    def add_key(self, key: Key, digest: bytes) -> None:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        row = (key.id, key.name, ",".join(key.scopes), digest, table.micros(key.created))

        def work(connection: sqlite3.Connection) -> None:
            added = connection.execute(
                "INSERT OR IGNORE INTO keys VALUES (?, ?, ?, ?, ?, NULL)", row
            )
            if not added.rowcount:
                raise InputError(f"there is a key with the id {key.id!r}: take another id")

        self._file.write(work)

    def key(self, key_id: str) -> tuple[Key, bytes] | None:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        rows = self._rows(f"{table.KEYS} WHERE id = ?", (key_id,))
        return (table.as_key(rows[0]), rows[0][-1]) if rows else None

    def keys(self) -> list[Key]:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        return [table.as_key(row) for row in self._rows(f"{table.KEYS} ORDER BY created, id")]

    def revoke_key(self, key_id: str) -> bool:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        row = (table.micros(datetime.now(UTC)), key_id)
        revoke = "UPDATE keys SET revoked = ? WHERE id = ? AND revoked IS NULL"
        return self._file.write(lambda connection: connection.execute(revoke, row).rowcount > 0)

    def secret(self) -> bytes:
        """See :class:`~hybridrec.serve.store.contract.Store`."""
        return self._secret

    @cached_property
    def _secret(self) -> bytes:
        def work(connection: sqlite3.Connection) -> bytes:
            connection.execute(
                "INSERT OR IGNORE INTO installation VALUES ('secret', ?)",
                (secrets.token_bytes(32),),
            )
            query = "SELECT value FROM installation WHERE name = 'secret'"
            return bytes(connection.execute(query).fetchone()[0])

        return self._file.write(work)
