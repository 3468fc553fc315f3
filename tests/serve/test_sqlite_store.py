"""What the embedded store promises about its files."""

from __future__ import annotations

import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime

import pytest

from hybridrec.checks import InputError
from hybridrec.serve.access.keys import authenticate, create_key
from hybridrec.serve.store import sqlite_file, sqlite_rows
from hybridrec.serve.store.by_url import open_store
from hybridrec.serve.store.contract import (
    Appended,
    ConflictError,
    ForgottenError,
    StoredEvent,
    StoreError,
)
from hybridrec.serve.store.sqlite_store import SQLiteStore

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store" / "service.sqlite"


@pytest.fixture(autouse=True)
def folder(path):
    path.parent.mkdir()
    return path.parent


@pytest.fixture
def store(path):
    with closing(SQLiteStore(path)) as opened:
        yield opened


def event(name, user="ann", item="i1"):
    return StoredEvent(name, user, item, NOON)


def found(folder, *texts):
    """Which of ``texts`` stand in any file of the folder."""
    files = [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
    return {text for text in texts if any(text.encode() in content for content in files)}


# -- one process --------------------------------------------------------------------------------


def test_another_process_is_told_to_use_postgres(store, path):
    code = (
        "import sys; from hybridrec.serve.store.by_url import open_store; open_store(sys.argv[1])"
    )
    for way in (path, path.with_name("link.sqlite")):
        if way != path:
            way.symlink_to(path)
        run = subprocess.run(
            [sys.executable, "-c", code, str(way)], capture_output=True, text=True, check=False
        )
        assert run.returncode == 1
        assert f"in use by process {os.getpid()}, and SQLite serves one process" in run.stderr
        assert "postgresql://" in run.stderr
    with pytest.raises(StoreError, match="SQLite serves one process"):
        SQLiteStore(path)
    assert store.append([event("e1")], key="k") == Appended(1, 0)
    assert store.shared is False


def test_keys_are_seen_to_while_a_service_has_the_store(store, path):
    """``hybridrec keys``, in a process of its own, beside a service that goes on writing."""
    code = (
        "import sys; from hybridrec.serve.store.by_url import open_store\n"
        "from hybridrec.serve.access.keys import create_key\n"
        "store = open_store(sys.argv[1], beside=True)\n"
        "print(create_key(store, 'shop', ['events']))\n"
        "print(store.revoke_key(sys.argv[2])); store.close()"
    )
    old = authenticate(store, create_key(store, "old", ["admin"]))
    stop = threading.Event()

    def send():
        for number in range(100_000):
            store.append([event(f"e{number}")], key="k")
            if stop.is_set():
                return number + 1
        return 0

    with ThreadPoolExecutor(1) as pool:
        sends = pool.submit(send)
        run = subprocess.run(
            [sys.executable, "-c", code, str(path), old.id], capture_output=True, text=True
        )
        stop.set()
        sent = sends.result()
    assert run.stderr == ""
    secret, revoked = run.stdout.split()
    assert revoked == "True"
    assert authenticate(store, secret).name == "shop"
    assert store.key(old.id)[0].revoked
    assert len(store.events("ann")) == sent > 0
    with pytest.raises(StoreError, match="SQLite serves one process"):
        SQLiteStore(path)


def test_beside_nobody_is_alone(path):
    with (
        closing(SQLiteStore(path, beside=True)),
        pytest.raises(StoreError, match="SQLite serves one process"),
    ):
        SQLiteStore(path)


def test_a_service_waits_for_a_command_that_lists_keys(path, monkeypatch):
    monkeypatch.setattr(sqlite_file, "_LOCKING", 30.0)
    command = SQLiteStore(path, beside=True)
    with ThreadPoolExecutor(1) as pool:
        service = pool.submit(SQLiteStore, path)
        time.sleep(0.2)
        assert not service.done()
        # Whoever lists keys meanwhile waits for nobody.
        SQLiteStore(path, beside=True).close()
        command.close()
        with closing(service.result()) as store:
            assert store.append([event("e1")], key="k") == Appended(1, 0)


def test_the_lock_goes_with_its_process(path):
    code = (
        "import sys, os, time; from hybridrec.serve.store.by_url import open_store\n"
        "store = open_store(sys.argv[1]); print('open', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    with process.stdout:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(StoreError, match=f"process {process.pid}"):
            SQLiteStore(path)
        process.send_signal(signal.SIGKILL)
        process.wait()
    SQLiteStore(path).close()


def test_a_forked_child_may_not_use_it(store):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        for ask in (lambda: store.append([event("e1")], key="k"), store.ping):
            try:
                ask()
                os.write(write, b"used it. ")
            except StoreError as error:
                os.write(write, f"{error}. ".encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    assert said.count(f"was opened by process {os.getpid()}") == 2
    assert store.events("ann") == []


# -- the file -----------------------------------------------------------------------------------


def test_nobody_else_may_read_it(path, folder, caplog):
    old = os.umask(0)
    try:
        with closing(SQLiteStore(path)) as store:
            store.append([event("e1")], key="k")
            store.events("ann")
            modes = {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}
    finally:
        os.umask(old)
    names = [f"service.sqlite{end}" for end in ("", "-shm", "-wal", ".lock")]
    assert modes == dict.fromkeys(names, 0o600)
    path.chmod(0o644)
    assert not caplog.records
    with closing(SQLiteStore(path)):
        assert path.stat().st_mode & 0o777 == 0o600
    assert "others could read" in caplog.text


def test_every_connection_is_durable_and_deletes_securely(store):
    def settings(connection):
        names = ("journal_mode", "synchronous", "secure_delete")
        return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    assert store._file.write(settings) == ["wal", 2, 1]
    with store._file.reading() as connection:
        assert settings(connection) == ["wal", 2, 1]
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute("DELETE FROM events")


def test_the_log_is_gone_after_closing(path, folder):
    with closing(SQLiteStore(path)) as store:
        store.append([event("e1")], key="k")
        store.events("ann")
    assert {file.name for file in folder.iterdir()} == {"service.sqlite", "service.sqlite.lock"}


def test_a_file_that_was_taken_away_takes_no_events(store, path):
    store.append([event("e1")], key="k")
    path.rename(path.with_name("moved"))
    for ask in (store.ping, lambda: store.append([event("e2")], key="k")):
        with pytest.raises(StoreError, match="was removed or replaced"):
            ask()
    path.write_bytes(b"")
    with pytest.raises(StoreError, match="was removed or replaced"):
        store.append([event("e2")], key="k")


@pytest.mark.parametrize("beside", [False, True])
def test_other_files_are_left_alone(path, folder, beside):
    def there():
        files = [file for file in folder.parent.rglob("*") if file.is_file()]
        return {file: (file.read_bytes(), file.stat().st_mode) for file in files}

    def refused(says, at=path):
        before = there()
        with pytest.raises(StoreError, match=says):
            SQLiteStore(at, beside=beside)
        assert there() == before

    table = b"user,item\n" * 1000
    for size in (2, 10, 16, 100, 512, 10_000):
        path.write_bytes(table[:size])
        path.chmod(0o644)
        refused("file is not a database")
    for settings in ("user_version=1", "journal_mode=WAL", "application_id=7"):
        path.unlink()
        with closing(sqlite3.connect(path)) as other:
            other.execute(f"PRAGMA {settings}")
            other.execute("CREATE TABLE notes (text)")
        path.chmod(0o644)
        refused("another program's database")
    refused("is a folder", at=folder)
    with pytest.raises(StoreError, match="No such file"):
        SQLiteStore(path.parent / "nowhere" / "service.sqlite")


def test_a_store_of_a_newer_make_says_upgrade(path):
    SQLiteStore(path).close()
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="version 99, made by a newer hybridrec"):
        SQLiteStore(path)


def test_a_store_of_the_first_make_is_upgraded(path, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(sqlite_rows, "MIGRATIONS", sqlite_rows.MIGRATIONS[:1])
        SQLiteStore(path).close()
    untimed = StoredEvent("e1", "ann", "i1", None)
    with closing(SQLiteStore(path)) as store:
        assert store.append([untimed], key="k") == Appended(1, 0)
        store.forget("ann")
        with pytest.raises(ForgottenError):
            store.append([untimed], key="k")


def test_a_wrong_url_is_refused_without_its_password(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="begins with 'mysql://'; wanted postgresql://") as caught:
        open_store("mysql://me:secret@host/name")
    assert "secret" not in str(caught.value)
    assert not list(tmp_path.glob("mysql*"))


def test_a_full_disk_fails_the_batch_and_nothing_else(store):
    store.append([event("e1")], key="k")
    pages = store._file.write(lambda c: c.execute("PRAGMA page_count").fetchone()[0])
    store._file.write(lambda c: c.execute(f"PRAGMA max_page_count = {pages}").fetchone())
    batch = [event(f"full{n}", user=f"u{n}") for n in range(1000)]
    with pytest.raises(StoreError, match="full"):
        store.append(batch, key="k")
    store._file.write(lambda c: c.execute("PRAGMA max_page_count = 1000000").fetchone())
    assert store.users() == ["ann"]
    assert store.append(batch, key="k") == Appended(1000, 0)


# -- one fsync for all that waits ---------------------------------------------------------------


def test_what_waits_is_written_together_and_fails_alone(store):
    store.append([event("taken")], key="k")
    batches = [[event(f"e{n}"), event(f"f{n}")] for n in range(6)]
    batches[3].append(event("taken", item="other"))
    statements = []
    store._file._writer.set_trace_callback(statements.append)
    with ThreadPoolExecutor(6) as pool:
        with store._file._turn:
            sends = [pool.submit(store.append, batch, key="k") for batch in batches]
            while len(store._file._waiting) < 6:
                time.sleep(0.001)
        errors = [send.exception() for send in sends]
    assert statements.count("COMMIT") == 1
    assert [type(error) for error in errors if error] == [ConflictError]
    assert errors[3] is not None
    ids = {each.id for each in store.events("ann")}
    assert ids == {"taken", *(f"{c}{n}" for c in "ef" for n in range(6) if n != 3)}


def test_work_that_breaks_half_way_is_undone(store):
    def broken(connection):
        connection.execute("INSERT INTO users (name) VALUES ('half')")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store._file.write(broken)
    assert store.users() == []


def test_a_writer_that_is_interrupted_lets_the_others_on(store):
    begun, go = threading.Event(), threading.Event()

    def interrupted(connection):
        begun.set()
        go.wait(10)
        raise KeyboardInterrupt

    def first():
        with pytest.raises(KeyboardInterrupt):
            store._file.write(interrupted)

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first)
        begun.wait(10)
        two = pool.submit(store.append, [event("e1")], key="k")
        go.set()
        one.result()
        assert two.result() == Appended(1, 0)


# -- forgetting ---------------------------------------------------------------------------------

LONG = "a-user-whose-id-nobody-else-would-have-0123456789"


def test_no_file_holds_a_forgotten_user(store, folder):
    rng = random.Random(0)
    ids = [f"{rng.getrandbits(64):x}-event-of-{LONG}-{n}" for n in range(300)]
    items = [f"{'x' * 240}-{n}" for n in range(10)]
    others = []
    for start in range(0, 300, 10):
        mine = [event(name, user=LONG, item=rng.choice(items)) for name in ids[start : start + 10]]
        more = [event(f"{rng.getrandbits(64):x}", user=f"u{n}") for n in range(20)]
        others += more
        store.append(mine + more, key="k")
    store.keep_query(LONG, ["only-in-the-query-of-that-user"])
    store.keep_query("u1", ["i1"])
    store.histories([LONG])
    texts = [LONG, *ids, *items, "only-in-the-query-of-that-user"]
    assert found(folder, *texts) == set(texts)
    gone = store.forget(LONG)
    assert (gone.events, gone.queries) == (300, 1)
    assert found(folder, *texts) == set()
    assert sum(len(store.events(f"u{n}")) for n in range(20)) == len(others)
    assert store.queries() == [("i1",)]
    assert (folder / "service.sqlite-wal").stat().st_size < 20_000


def test_no_file_holds_the_ids_of_events_without_a_time(store, folder):
    ids = [f"{n}-event-without-a-time-of-{LONG}" for n in range(50)]
    store.append([StoredEvent(name, LONG, "i1", None) for name in ids], key="a-key-of-its-own")
    store.forget(LONG)
    assert found(folder, LONG, "a-key-of-its-own", *ids) == set()
    with pytest.raises(ForgottenError):
        store.append([StoredEvent(ids[7], LONG, "i1", None)], key="a-key-of-its-own")


def test_copies_that_moving_rows_left_behind_go_too(store, path, folder):
    """What secure_delete alone misses: rows move to other pages, and their old bytes stay."""
    store._file._writer.execute("PRAGMA synchronous=OFF")
    rng, owners = random.Random(0), {}
    for start in range(0, 12_000, 100):
        names = [f"{rng.getrandbits(64):016x}-{number}." for number in range(start, start + 100)]
        owners |= {name: f"u{rng.randrange(400)}" for name in names}
        store.append([event(name, user=owners[name]) for name in names], key="k")
    store._file._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    # Each id stands in the table and in its index: a third time it stands where it was.
    copies = Counter(re.findall(rb"[0-9a-f]{16}-\d+\.", path.read_bytes()))
    moved = [name.decode() for name, times in copies.items() if times > 2]
    assert moved, "SQLite moved no row: take another seed"
    for name in moved[:3]:
        names = [each.id for each in store.events(owners[name])]
        if names:
            assert name in found(folder, *names)
            store.forget(owners[name])
            assert found(folder, *names) == set()


def test_forgetting_waits_for_who_reads_the_log(store, path, folder):
    store.append([event("e-unusual-name", user=LONG)], key="k")
    reader = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM users").fetchall()
    timer = threading.Timer(0.3, reader.close)
    timer.start()
    started = time.monotonic()
    store.forget(LONG)
    assert time.monotonic() - started >= 0.3
    assert found(folder, LONG, "e-unusual-name") == set()
    timer.join()


def test_forgetting_says_when_somebody_reads_on_and_ends_later(path, folder, monkeypatch):
    monkeypatch.setattr("hybridrec.serve.store.sqlite_file._WAIT", 0.05)
    with closing(SQLiteStore(path, patience=0.1)) as store:
        store.append([event("e1", user=LONG), event("e2")], key="k")
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM users").fetchall()
            with pytest.raises(StoreError, match=r"somebody is reading it .* ask again"):
                store.forget(LONG)
            assert store.events(LONG) == []
            assert found(folder, LONG) == {LONG}
            assert store.append([event("e3")], key="k") == Appended(1, 0)
        assert store.forget(LONG).events == 0
        assert found(folder, LONG) == set()


def test_what_a_crash_left_unscrubbed_is_scrubbed_at_the_next_start(path, folder, monkeypatch):
    with closing(SQLiteStore(path)) as store:
        store.append([event("e1", user=LONG)], key="k")
        with monkeypatch.context() as patch:
            patch.setattr(store._file, "_scrub", lambda: None)
            store.forget(LONG)
        assert found(folder, LONG) == {LONG}
        with store._file.reading() as connection:
            assert connection.execute("SELECT count(*) FROM unscrubbed").fetchone() == (1,)
    with closing(SQLiteStore(path)) as store:
        assert found(folder, LONG) == set()
        with store._file.reading() as connection:
            assert connection.execute("SELECT count(*) FROM unscrubbed").fetchone() == (0,)


def test_forgetting_nobody_costs_no_scrubbing(store, monkeypatch):
    store.append([event("e1")], key="k")
    scrubs = []
    scrub = store._file._scrub
    monkeypatch.setattr(store._file, "_scrub", lambda: (scrubs.append(1), scrub()))
    store.forget("nobody")
    assert not scrubs
    store.forget("ann")
    store.forget("ann")
    assert len(scrubs) == 1


def test_what_was_refused_is_not_done_later(store, path):
    """The file is away when the writer's turn comes; it comes back before the next one writes."""
    turn, failed = store._file._turn, []

    def append():
        with pytest.raises(StoreError, match="was removed or replaced"):
            store.append([event("refused")], key="k")
        failed.append(True)

    with turn:
        thread = threading.Thread(target=append)
        thread.start()
        while not store._file._waiting:
            time.sleep(0.001)
        away = path.rename(path.with_name("away"))
    thread.join()
    away.rename(path)
    assert failed
    assert store.append([event("later", item="i2")], key="k") == Appended(1, 0)
    assert [each.id for each in store.events("ann")] == ["later"]
