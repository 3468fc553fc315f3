"""One SQLite file for one process: a lock, a writer whose work shares fsyncs, and readers.

Whoever finds the writer busy waits in a queue; the next one to get it writes all that waits in one
transaction, each piece of work behind a savepoint of its own, and one fsync serves them all.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from hybridrec.serve.store.contract import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")
_log = logging.getLogger("hybridrec")

_OURS = 0x68796272
"""The application id in the file's header: "hybr"."""
_UNSCRUBBED = "SELECT count(*) FROM unscrubbed"
_WAIT = 5.0
"""Seconds to wait for another program that looks into the file."""
_LOCKING = 2.0
"""Seconds to wait for the lock: a command that lists keys has it for a moment."""


class _Job(Generic[T]):
    """Work that waits for the writer."""

    def __init__(self, work: Callable[[sqlite3.Connection], T], *, scrub: bool) -> None:
        self.work = work
        self.scrub = scrub
        self.done = False
        self.result: T
        self.error: BaseException | None = None


class SQLiteFile:
    """An SQLite database that this process alone writes and reads, from any of its threads.

    Args:
        path: of the file, made with mode 0600 where there is none.
        migrations: scripts; the n-th makes version n of the tables from version n - 1. A row in
            their table ``unscrubbed`` says that the file still holds what is deleted.
        patience: seconds to wait until nobody reads what is to be scrubbed.
        beside: open it also where another process has it; the tables must be there then.

    Raises:
        StoreError: another process has it, it is another program's, damaged, or of a newer make.
    """

    def __init__(
        self,
        path: Path,
        migrations: tuple[tuple[str, ...], ...],
        *,
        patience: float = 10.0,
        beside: bool = False,
    ) -> None:
        # Of the file itself: two links to it must meet at one lock.
        self.path = path.resolve()
        self._patience = patience
        self._process = os.getpid()
        self._waiting: deque[_Job[Any]] = deque()
        self._turn = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        try:
            _look_at(self.path)
            self._lock = _locked(self.path, or_none=beside)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"cannot open the store {self.path}: {error}") from error
        try:
            if self._lock is not None:
                _make_private(self.path)
            self._identity = _identity(self.path)
            self._writer = self._connection()
            self._prepare(migrations)
        except BaseException as error:
            self._give_up()
            if isinstance(error, (sqlite3.Error, OSError)):
                raise StoreError(f"cannot open the store {self.path}: {error}") from error
            raise

    # -- opening and closing ----------------------------------------------------------------

    def _connection(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=_WAIT, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA secure_delete=ON")
        return connection

    def _prepare(self, migrations: tuple[tuple[str, ...], ...]) -> None:
        """Turn on the log, bring the tables to this make, end what a crash cut short."""
        _check_ours(self.path, self._writer)
        version = _number(self._writer, "PRAGMA user_version")
        if version > len(migrations):
            raise StoreError(
                f"the store {self.path} has version {version}, made by a newer hybridrec; this one "
                f"reads up to {len(migrations)}: upgrade hybridrec"
            )
        mode = self._writer.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise StoreError(
                f"{self.path} has no write-ahead log (journal_mode {mode!r}): use a local disk"
            )
        if self._lock is None and version < len(migrations):
            raise StoreError(f"the store {self.path} is being made or upgraded: try again")
        for number, script in enumerate(migrations[version:], start=version + 1):
            self._writer.execute("BEGIN IMMEDIATE")
            for statement in script:
                self._writer.execute(statement)
            self._writer.execute(f"PRAGMA application_id={_OURS}")
            self._writer.execute(f"PRAGMA user_version={number}")
            self._writer.execute("COMMIT")
        if self._lock is not None and _number(self._writer, _UNSCRUBBED):
            self._scrub()

    def _give_up(self) -> None:
        if hasattr(self, "_writer"):
            self._writer.close()
        if self._lock is not None:
            os.close(self._lock)

    def close(self) -> None:
        """Close everything; the log goes into the file. A second call does nothing."""
        with self._turn:
            if self._closed:
                return
            self._closed = True
            while self._idle:
                self._idle.pop().close()
            self._give_up()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"the store {self.path} is closed")
        if os.getpid() != self._process:
            raise StoreError(
                f"the store {self.path} was opened by process {self._process}: open one of your "
                "own after a fork, in PostgreSQL"
            )
        if _identity(self.path) != self._identity:
            # What is written to a file without a name goes with its last user.
            raise StoreError(f"the store {self.path} was removed or replaced: start again")

    # -- reading ----------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for this thread, to read from until the block ends."""
        self._check_open()
        connection: sqlite3.Connection | None = None
        try:
            with suppress(IndexError):
                connection = self._idle.pop()
            if connection is None:
                connection = self._connection()
                connection.execute("PRAGMA query_only=ON")
            yield connection
        except sqlite3.Error as error:
            raise StoreError(f"cannot read the store {self.path}: {error}") from error
        finally:
            if connection is not None:
                self._idle.append(connection)
                if self._closed:
                    connection.close()

    # -- writing ----------------------------------------------------------------------------

    def write(self, work: Callable[[sqlite3.Connection], T], *, scrub: bool = False) -> T:
        """What ``work`` returns, once what it wrote is on the disk; where it raises, nothing is.

        Args:
            work: is given a connection inside a transaction; it may be that of others, too.
            scrub: where it left a row in ``unscrubbed``, return when no file holds a byte of what
                was deleted.

        Raises:
            StoreError: it cannot be written.
        """
        self._check_open()
        job = _Job(work, scrub=scrub)
        self._waiting.append(job)
        with self._turn:
            if not job.done:
                try:
                    self._check_open()
                except StoreError:
                    self._waiting.remove(job)  # or it would be done when nobody asks any more
                    raise
                self._write_all()
        if isinstance(job.error, sqlite3.Error):
            raise StoreError(f"cannot write the store {self.path}: {job.error}") from job.error
        if job.error is not None:
            raise job.error
        return job.result

    def _write_all(self) -> None:
        jobs = [self._waiting.popleft() for _ in range(len(self._waiting))]
        try:
            self._transact(jobs)
            scrubs = [job for job in jobs if job.scrub and job.error is None]
            if scrubs and _number(self._writer, _UNSCRUBBED):
                self._scrub_for(scrubs)
        except BaseException as error:
            known = isinstance(error, sqlite3.Error)
            for job in jobs:
                job.error = job.error or (error if known else StoreError("the writer was stopped"))
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            if not known:
                raise
        finally:
            for job in jobs:
                job.done = True

    def _transact(self, jobs: list[_Job[Any]]) -> None:
        run = self._writer.execute
        run("BEGIN IMMEDIATE")
        for job in jobs:
            run("SAVEPOINT job")
            try:
                job.result = job.work(self._writer)
            except Exception as error:
                job.error = error
                run("ROLLBACK TO job")
            run("RELEASE job")
        run("COMMIT")

    def _scrub_for(self, jobs: list[_Job[Any]]) -> None:
        try:
            self._scrub()
        except (sqlite3.Error, StoreError) as error:
            for job in jobs:
                job.error = error

    def _scrub(self) -> None:
        """Write the file anew and empty the log.

        secure_delete overwrites what is deleted, yet not the copies that stay in the free part of
        a page when its rows move to another one; VACUUM makes every page anew.
        """
        self._writer.execute("VACUUM")
        deadline = time.monotonic() + self._patience
        while _number(self._writer, "PRAGMA wal_checkpoint(TRUNCATE)"):
            if time.monotonic() > deadline:
                raise StoreError(
                    f"the rows are deleted, but {self.path}-wal still holds them, as somebody is "
                    f"reading it for more than {self._patience:g} s: end that program and ask again"
                )
            time.sleep(0.01)
        self._writer.execute("DELETE FROM unscrubbed")


def _look_at(path: Path) -> None:
    """Refuse what is there and not ours before anything is changed, or made beside it.

    SQLite reads it, because a file that we opened and closed would take this process's locks on it
    along. As immutable it needs no lock and no file beside it, and its log is not read yet.
    """
    if path.is_dir():
        raise StoreError(f"the store {path} is a folder; wanted the path of a file")
    if path.exists():
        uri = f"{path.as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            _check_ours(path, connection)


def _check_ours(path: Path, connection: sqlite3.Connection) -> None:
    """Refuse a database that is neither marked as ours nor empty."""
    if _number(connection, "PRAGMA application_id") != _OURS and (
        _number(connection, "PRAGMA user_version")
        or _number(connection, "SELECT count(*) FROM sqlite_master")
    ):
        raise StoreError(f"{path} is another program's database: choose another path")


def _number(connection: sqlite3.Connection, query: str) -> int:
    return int(connection.execute(query).fetchone()[0])


def _locked(path: Path, *, or_none: bool) -> int | None:
    """The handle of the lock file beside ``path``, which the system frees when we die."""
    name = path.with_name(f"{path.name}.lock")
    handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if not _taken(handle, 0.0 if or_none else _LOCKING):
        holder = os.pread(handle, 100, 0).decode(errors="replace").strip() or "another process"
        os.close(handle)
        if or_none:
            return None
        raise StoreError(
            f"the store {path} is in use by {holder}, and SQLite serves one process: for several "
            "workers or replicas give a postgresql:// URL"
        )
    os.truncate(handle, 0)
    os.pwrite(handle, f"process {os.getpid()}\n".encode(), 0)
    return handle


def _taken(handle: int, wait: float) -> bool:
    """Whether the lock was to be had within ``wait`` seconds."""
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        else:
            return True


def _make_private(path: Path) -> None:
    """Let nobody else read the file, nor its log, which SQLite makes with the file's mode."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    for file in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        if file.exists() and file.stat().st_mode & 0o077:
            _log.warning("others could read %s, which holds secrets; its mode is 600 now", file)
            file.chmod(0o600)


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file stands at ``path``; None if there is none."""
    with suppress(OSError):
        status = os.stat(path)
        return status.st_dev, status.st_ino
    return None
