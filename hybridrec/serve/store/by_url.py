"""Which store a path or URL means."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from hybridrec.checks import InputError, require_extra
from hybridrec.serve.store.sqlite_store import SQLiteStore

if TYPE_CHECKING:
    from os import PathLike

    from hybridrec.serve.store.contract import Store

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def is_url(where: str) -> bool:
    """Whether it is no path of an SQLite file."""
    return _SCHEME.match(where) is not None


def open_store(
    where: str | PathLike[str], *, health_queries: int = 50, beside: bool = False
) -> Store:
    """The store at ``where``, its tables made or brought to this version.

    Args:
        where: the path of an SQLite file, or a ``postgresql://`` URL.
        health_queries: kept at most to check new models with.
        beside: open an SQLite file also while a service has it: for a command that makes, lists or
            revokes keys. Not for events: a service is to be the only one that takes them.

    Raises:
        InputError: a URL of another kind.
        MissingExtraError: PostgreSQL without the extra "postgres".
        StoreError: it cannot be opened.
    """
    scheme = _SCHEME.match(where) if isinstance(where, str) else None
    if scheme is None:
        return SQLiteStore(Path(where), health_queries=health_queries, beside=beside)
    # Not the URL itself: it may hold a password.
    if scheme[1] not in ("postgresql", "postgres"):
        raise InputError(
            f"the store's URL begins with {scheme[0]!r}; wanted postgresql://user@host/database, "
            "or the path of an SQLite file"
        )
    postgres = require_extra("hybridrec.serve.store.postgres_store", "postgres")
    store: Store = postgres.PostgresStore(where, health_queries=health_queries)
    return store
