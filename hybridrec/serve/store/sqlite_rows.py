"""The tables of the SQLite store, and how events and keys become rows and come back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from hybridrec.serve.store.contract import Key, StoredEvent

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from hybridrec.serve.store.rules import Content

TABLES = (
    "CREATE TABLE installation (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE unscrubbed (one INTEGER PRIMARY KEY)",
    "CREATE TABLE users (code INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    # moment: microseconds since 1970, UTC. timed: the caller gave it. arrival orders equal ones.
    "CREATE TABLE events (arrival INTEGER PRIMARY KEY, user INTEGER NOT NULL, item TEXT NOT NULL, "
    "moment INTEGER, liked INTEGER NOT NULL, key TEXT, id TEXT, timed INTEGER NOT NULL)",
    "CREATE UNIQUE INDEX events_by_id ON events (key, id) WHERE id IS NOT NULL",
    # Holds all that a history needs, so that reading one touches no other page.
    "CREATE INDEX events_by_user ON events (user, moment, arrival, item, liked)",
    "CREATE TABLE forgotten (tag BLOB PRIMARY KEY, moment INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE imports (mark TEXT PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE queries (arrival INTEGER PRIMARY KEY, tag BLOB, history TEXT NOT NULL)",
    "CREATE TABLE keys (id TEXT PRIMARY KEY, name TEXT NOT NULL, scopes TEXT NOT NULL, "
    "digest BLOB NOT NULL, created INTEGER NOT NULL, revoked INTEGER)",
)
REPLAYS = ("CREATE TABLE forgotten_events (tag BLOB PRIMARY KEY) WITHOUT ROWID",)
MIGRATIONS = (TABLES, REPLAYS)
KEYS = "SELECT id, name, scopes, created, revoked, digest FROM keys"
_1970 = datetime(1970, 1, 1, tzinfo=UTC)


def moments(connection: sqlite3.Connection, tags: dict[bytes, str]) -> dict[str, datetime]:
    """When those of ``tags`` who were forgotten were."""
    found = {}
    for tag, user in tags.items():
        row = connection.execute("SELECT moment FROM forgotten WHERE tag = ?", (tag,)).fetchone()
        if row:
            found[user] = _1970 + timedelta(microseconds=row[0])
    return found


def replayed(connection: sqlite3.Connection, tags: dict[bytes, StoredEvent]) -> list[StoredEvent]:
    """Those of ``tags`` that were stored when their users were forgotten."""
    find = "SELECT 1 FROM forgotten_events WHERE tag = ?"
    return [event for tag, event in tags.items() if connection.execute(find, (tag,)).fetchone()]


def stored(connection: sqlite3.Connection, key: str, event: StoredEvent) -> Content | None:
    """What is stored under the id of ``event``."""
    row = connection.execute(
        "SELECT name, item, moment, liked, timed FROM events JOIN users ON code = user "
        "WHERE key = ? AND id = ?",
        (key, event.id),
    ).fetchone()
    if row is None:
        return None
    user, item, moment, liked, timed = row
    return user, item, as_time(moment) if timed else None, bool(liked)


def insert(connection: sqlite3.Connection, events: list[StoredEvent], key: str | None) -> None:
    """Store ``events``; with a key, those without a time happen now."""
    names = {event.user for event in events}
    connection.executemany("INSERT OR IGNORE INTO users (name) VALUES (?)", [(n,) for n in names])
    find = "SELECT code FROM users WHERE name = ?"
    codes = {name: connection.execute(find, (name,)).fetchone()[0] for name in names}
    now = None if key is None else micros(datetime.now(UTC))
    connection.executemany(
        "INSERT INTO events (user, item, moment, liked, key, id, timed) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (
                codes[event.user],
                event.item,
                now if event.time is None else micros(event.time),
                event.liked,
                key,
                event.id if key is not None else None,
                event.time is not None,
            )
            for event in events
        ],
    )


def micros(time: datetime) -> int:
    """As the tables hold times: microseconds since 1970, UTC."""
    return (time - _1970) // timedelta(microseconds=1)


def as_time(moment: int | None) -> datetime | None:
    """What :func:`micros` made."""
    return None if moment is None else _1970 + timedelta(microseconds=moment)


def as_key(row: Sequence[Any]) -> Key:
    """From a row of ``KEYS``."""
    key_id, name, scopes, created, revoked = row[:5]
    # No time of a key is None but that of its revoking.
    return Key(key_id, name, tuple(scopes.split(",")), as_time(created) or _1970, as_time(revoked))
