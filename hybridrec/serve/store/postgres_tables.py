"""The tables of the PostgreSQL store, in a schema of their own, and what is asked of them.

Times are read in UTC whatever time zone a session has, where one of the year 1 would have no form.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from hybridrec.serve.store.contract import Key, StoredEvent, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import LiteralString

    import psycopg

    from hybridrec.serve.store.rules import Content, Seen

    Connection = psycopg.Connection[tuple[Any, ...]]

_log = logging.getLogger("hybridrec")

# Our advisory locks: "hybr", and which of them.
_LOCK_MIGRATING: LiteralString = "pg_advisory_xact_lock(1752785522, 1)"
# Where the server says that a commit need not wait for its disk, ours wait nevertheless.
_DURABLE: LiteralString = """set_config('synchronous_commit',
    coalesce(nullif(current_setting('synchronous_commit'), 'off'), 'on'), true)"""
LOCK_IMPORTING: LiteralString = "SELECT pg_advisory_xact_lock(1752785522, 3)"
LOCK_SHARED: LiteralString = "SELECT pg_advisory_xact_lock_shared(1752785522, 2), " + _DURABLE
LOCK_ALONE: LiteralString = "SELECT pg_advisory_xact_lock(1752785522, 2), " + _DURABLE

_TABLES: tuple[LiteralString, ...] = (
    "CREATE TABLE hybridrec.installation (name text PRIMARY KEY, value bytea NOT NULL)",
    "CREATE SEQUENCE hybridrec.arrivals",
    # Ids sort by their bytes, as in SQLite. timed: the caller gave the time. arrival orders
    # events of one time.
    """CREATE TABLE hybridrec.events (
        arrival bigint PRIMARY KEY,
        user_id text COLLATE "C" NOT NULL,
        item_id text COLLATE "C" NOT NULL,
        happened timestamptz,
        liked boolean NOT NULL,
        key_id text COLLATE "C",
        event_id text COLLATE "C",
        timed boolean NOT NULL
    )""",
    """CREATE UNIQUE INDEX events_by_id ON hybridrec.events (key_id, event_id)
        WHERE event_id IS NOT NULL""",
    """CREATE INDEX events_by_user ON hybridrec.events
        (user_id, happened DESC NULLS LAST, arrival DESC) INCLUDE (item_id, liked)""",
    "CREATE TABLE hybridrec.forgotten (tag bytea PRIMARY KEY, moment timestamptz NOT NULL)",
    "CREATE TABLE hybridrec.imports (mark text PRIMARY KEY)",
    """CREATE TABLE hybridrec.queries (
        arrival bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        tag bytea,
        history text[] NOT NULL
    )""",
    """CREATE TABLE hybridrec.keys (
        id text PRIMARY KEY,
        name text NOT NULL,
        scopes text[] NOT NULL,
        digest bytea NOT NULL,
        created timestamptz NOT NULL,
        revoked timestamptz
    )""",
)
_REPLAYS: tuple[LiteralString, ...] = (
    "CREATE TABLE hybridrec.forgotten_events (tag bytea PRIMARY KEY)",
)
MIGRATIONS = (_TABLES, _REPLAYS)
"""The n-th makes version n of the tables from version n - 1."""

HISTORIES: LiteralString = """
    SELECT place, item_id, liked
    FROM unnest(%s::text[]) WITH ORDINALITY AS asked (name, place), LATERAL (
        SELECT item_id, liked, happened, arrival FROM hybridrec.events WHERE user_id = name
        ORDER BY happened DESC NULLS LAST, arrival DESC LIMIT %s
    ) AS newest
    ORDER BY place, happened DESC NULLS LAST, arrival DESC"""
EVENTS: LiteralString = """
    SELECT event_id, item_id, happened AT TIME ZONE 'UTC', liked FROM hybridrec.events
    WHERE user_id = %s ORDER BY happened NULLS FIRST, arrival"""
# One step of the index a user, however many events each has.
USERS: LiteralString = """
    WITH RECURSIVE found AS (
        (SELECT user_id FROM hybridrec.events WHERE user_id >= %s ORDER BY user_id LIMIT 1)
        UNION ALL
        SELECT (SELECT user_id FROM hybridrec.events AS next WHERE next.user_id > found.user_id
                ORDER BY user_id LIMIT 1)
        FROM found WHERE found.user_id IS NOT NULL
    )
    SELECT user_id FROM found WHERE user_id IS NOT NULL LIMIT %s"""
KNOWN: LiteralString = "SELECT 1 FROM hybridrec.events WHERE user_id = %s LIMIT 1"
KEEP_QUERY: LiteralString = "INSERT INTO hybridrec.queries (tag, history) VALUES (%s, %s)"
DROP_QUERIES: LiteralString = """
    DELETE FROM hybridrec.queries WHERE arrival NOT IN
        (SELECT arrival FROM hybridrec.queries ORDER BY arrival DESC LIMIT %s)"""
KEYS: LiteralString = """
    SELECT id, name, scopes, created AT TIME ZONE 'UTC', revoked AT TIME ZONE 'UTC', digest
    FROM hybridrec.keys"""
ADD_KEY: LiteralString = """
    INSERT INTO hybridrec.keys VALUES (%s, %s, %s, %s, %s, NULL) ON CONFLICT DO NOTHING"""
REVOKE: LiteralString = """
    UPDATE hybridrec.keys SET revoked = %s WHERE id = %s AND revoked IS NULL"""
MAKE_SECRET: LiteralString = """
    INSERT INTO hybridrec.installation VALUES ('secret', %s) ON CONFLICT DO NOTHING"""


def prepare(connection: Connection, name: str) -> None:
    """Make the tables, or bring them to this version; one process at a time.

    Raises:
        StoreError: the database has another encoding, or the tables are of a newer make.
    """
    with connection.transaction():
        one = connection.execute(
            "SELECT " + _LOCK_MIGRATING + ", current_setting('server_encoding'), "
            "current_setting('fsync'), to_regnamespace('hybridrec'), "
            "to_regclass('hybridrec.schema_version')"
        ).fetchone()
        _, encoding, fsync, schema, tables = one or (None,) * 5
        if encoding != "UTF8":
            raise StoreError(f"the database {name} has the encoding {encoding}; wanted UTF8")
        if fsync != "on":
            _log.warning("the server of %s has fsync off: events can be lost when it fails", name)
        if schema is None:
            connection.execute("CREATE SCHEMA hybridrec")
        if tables is None:
            connection.execute("CREATE TABLE hybridrec.schema_version (version int NOT NULL)")
            connection.execute("INSERT INTO hybridrec.schema_version VALUES (0)")
        _migrate(connection, name)


def _migrate(connection: Connection, name: str) -> None:
    row = connection.execute("SELECT version FROM hybridrec.schema_version").fetchone()
    version = row[0] if row else 0
    if version > len(MIGRATIONS):
        raise StoreError(
            f"the store {name} has version {version}, made by a newer hybridrec; this one reads up "
            f"to {len(MIGRATIONS)}: upgrade hybridrec"
        )
    for script in MIGRATIONS[version:]:
        for statement in script:
            connection.execute(statement)
    if version < len(MIGRATIONS):
        connection.execute("UPDATE hybridrec.schema_version SET version = %s", (len(MIGRATIONS),))


def moments(connection: Connection, tags: dict[bytes, str]) -> dict[str, datetime]:
    """When those of ``tags`` who were forgotten were."""
    rows = connection.execute(
        "SELECT tag, moment AT TIME ZONE 'UTC' FROM hybridrec.forgotten WHERE tag = ANY(%s)",
        (list(tags),),
    )
    return {tags[bytes(tag)]: moment.replace(tzinfo=UTC) for tag, moment in rows}


def replayed(connection: Connection, tags: dict[bytes, StoredEvent]) -> list[StoredEvent]:
    """Those of ``tags`` that were stored when their users were forgotten."""
    if not tags:
        return []
    rows = connection.execute(
        "SELECT tag FROM hybridrec.forgotten_events WHERE tag = ANY(%s)", (list(tags),)
    )
    return [tags[bytes(tag)] for (tag,) in rows]


def untimed(connection: Connection, user: str) -> list[tuple[str, str]]:
    """(key id, event id) of those events of ``user`` that were sent without a time."""
    rows = connection.execute(
        "SELECT key_id, event_id FROM hybridrec.events "
        "WHERE user_id = %s AND event_id IS NOT NULL AND NOT timed",
        (user,),
    )
    return [(key_id, event_id) for key_id, event_id in rows]


def insert(connection: Connection, events: Sequence[StoredEvent], key: str | None) -> set[str]:
    """Store those of ``events`` whose ids ``key`` has not used; the ids of these.

    With a key, those without a time happen now. They arrive in their order and are written in that
    of their ids, so that two batches with the same ids wait for each other and cannot deadlock.
    """
    now = None if key is None else datetime.now(UTC)
    rows = connection.execute(
        """
        WITH new AS MATERIALIZED (
            SELECT nextval('hybridrec.arrivals') AS arrival, batch.* FROM (
                SELECT * FROM unnest(%s::text[], %s::text[], %s::timestamptz[], %s::boolean[],
                                     %s::text[], %s::boolean[])
                WITH ORDINALITY AS batch (user_id, item_id, happened, liked, event_id, timed, place)
                ORDER BY place
            ) AS batch
        )
        INSERT INTO hybridrec.events
            (arrival, user_id, item_id, happened, liked, key_id, event_id, timed)
        SELECT arrival, user_id, item_id, happened, liked, %s, event_id, timed
        FROM new ORDER BY event_id
        ON CONFLICT (key_id, event_id) WHERE event_id IS NOT NULL DO NOTHING
        RETURNING event_id
        """,
        (
            [event.user for event in events],
            [event.item for event in events],
            [now if event.time is None else event.time for event in events],
            [event.liked for event in events],
            [None if key is None else event.id for event in events],
            [event.time is not None for event in events],
            key,
        ),
    )
    return {event_id for (event_id,) in rows}


def stored(connection: Connection, key: str, ids: Sequence[str]) -> Iterator[tuple[str, Content]]:
    """What is stored under those of ``ids`` that ``key`` has used."""
    if not ids:
        return
    rows = connection.execute(
        "SELECT event_id, user_id, item_id, happened AT TIME ZONE 'UTC', liked, timed "
        "FROM hybridrec.events WHERE key_id = %s AND event_id = ANY(%s)",
        (key, list(ids)),
    )
    for event_id, user, item, happened, liked, timed in rows:
        yield event_id, (user, item, as_time(happened) if timed else None, liked)


def known(connection: Connection, users: Sequence[str]) -> dict[str, set[Seen]]:
    """Of each of ``users`` what is stored: (item, time, liked)."""
    found: dict[str, set[Seen]] = defaultdict(set)
    rows = connection.execute(
        "SELECT user_id, item_id, happened AT TIME ZONE 'UTC', liked FROM hybridrec.events "
        "WHERE user_id = ANY(%s)",
        (list(users),),
    )
    for user, item, happened, liked in rows:
        found[user].add((item, as_time(happened), liked))
    return found


def newest(connection: Connection, user: str) -> datetime | None:
    """The time of the newest event of ``user``."""
    row = connection.execute(
        "SELECT max(happened) AT TIME ZONE 'UTC' FROM hybridrec.events WHERE user_id = %s", (user,)
    ).fetchone()
    return as_time(row[0]) if row else None


def mark_forgotten(connection: Connection, tag: bytes, moment: datetime) -> None:
    """Remember that whoever has this tag was forgotten."""
    connection.execute(
        "INSERT INTO hybridrec.forgotten AS old VALUES (%s, %s) "
        "ON CONFLICT (tag) DO UPDATE SET moment = greatest(old.moment, excluded.moment)",
        (tag, moment),
    )


def mark_replays(connection: Connection, tags: Sequence[bytes]) -> None:
    """Remember events that were sent without a time by their tags."""
    connection.execute(
        "INSERT INTO hybridrec.forgotten_events SELECT unnest(%s::bytea[]) ON CONFLICT DO NOTHING",
        (tags,),
    )


def secret(connection: Connection) -> bytes:
    """What ``MAKE_SECRET`` kept."""
    query: LiteralString = "SELECT value FROM hybridrec.installation WHERE name = 'secret'"
    row = connection.execute(query).fetchone()
    if row is None:
        raise StoreError("hybridrec.installation has lost its secret: restore the table")
    return bytes(row[0])


def as_time(happened: datetime | None) -> datetime | None:
    """What ``AT TIME ZONE 'UTC'`` gives, aware."""
    return None if happened is None else happened.replace(tzinfo=UTC)


def as_key(row: Sequence[Any]) -> Key:
    """From a row of ``KEYS``."""
    key_id, name, scopes, created, revoked = row[:5]
    return Key(key_id, name, tuple(scopes), created.replace(tzinfo=UTC), as_time(revoked))
