"""What the store in PostgreSQL promises beyond what both do: several processes, failing servers."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime

import pytest

from hybridrec.checks import InputError
from hybridrec.serve.store import postgres_tables
from hybridrec.serve.store.by_url import open_store
from hybridrec.serve.store.contract import Appended, ForgottenError, StoredEvent, StoreError
from hybridrec.serve.store.postgres_store import PostgresStore

pytestmark = pytest.mark.service
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
def url(postgres_server):
    return postgres_server.database()


@pytest.fixture
def store(url):
    with closing(open_store(url)) as opened:
        yield opened


def event(name, user="ann", item="i1"):
    return StoredEvent(name, user, item, NOON)


def test_two_processes_share_what_they_know(store, url):
    assert store.shared is True
    with closing(open_store(url.replace("postgresql://", "postgres://"))) as other:
        assert other.secret() == store.secret()
        store.append([event("e1")], key="k")
        assert other.append([event("e1"), event("e2")], key="k") == Appended(1, 1)
        assert [each.id for each in store.events("ann")] == ["e1", "e2"]
        assert other.forget("ann").events == 2
        assert store.events("ann") == []


def test_many_may_open_it_at_once_for_the_first_time(url):
    with ThreadPoolExecutor(6) as pool:
        stores = list(pool.map(lambda _: open_store(url), range(6)))
    assert len({store.secret() for store in stores}) == 1
    for store in stores:
        store.close()


def test_one_of_two_imports_while_the_other_waits(store, url):
    events = [StoredEvent(None, f"u{n}", "i1", NOON) for n in range(50)]
    begun, go = threading.Event(), threading.Event()

    def slowly():
        yield from events[:25]
        begun.set()
        assert go.wait(30)
        yield from events[25:]

    with closing(open_store(url)) as other, ThreadPoolExecutor(2) as pool:
        first = pool.submit(store.import_once, "m1", slowly())
        assert begun.wait(30)
        second = pool.submit(other.import_once, "m1", events)
        time.sleep(0.2)
        assert not second.done()
        # Meanwhile others write.
        assert other.append([event("e1")], key="k") == Appended(1, 0)
        go.set()
        assert (first.result(), second.result()) == (50, None)
    assert len(store.users(limit=100)) == 51


def test_batches_with_the_same_ids_in_another_order_do_not_deadlock(store, postgres_server):
    events = [event(f"e{n}", user=f"u{n % 7}") for n in range(200)]
    orders = [events, events[::-1]] * 3

    def send(order):
        return [store.append(order[start:], key="k").duplicates for start in range(0, 100, 20)]

    def deadlocks():
        return (postgres_server.home / "log").read_text().count("deadlock detected")

    before = deadlocks()
    with ThreadPoolExecutor(6) as pool:
        duplicates = sum(map(sum, pool.map(send, orders)))
    assert duplicates == 6 * sum(range(120, 201, 20)) - 200
    assert deadlocks() == before
    # They came in the order of a batch, and not of their ids.
    numbers = [int(each.id[1:]) for each in store.events("u0")]
    assert numbers in (sorted(numbers), sorted(numbers, reverse=True))


def test_a_server_that_failed_and_came_back_lost_nothing(store, postgres_server):
    store.append([event("e1")], key="k")
    postgres_server.kill()
    with pytest.raises(StoreError, match="cannot"):
        store.append([event("e2")], key="k")
    started = time.monotonic()
    with pytest.raises(StoreError, match="cannot"):
        store.ping()
    assert time.monotonic() - started < 4  # whoever asks for readiness does not wait long
    postgres_server.start()
    store.ping()
    assert store.append([event("e1"), event("e2")], key="k") == Appended(1, 1)
    assert [each.id for each in store.events("ann")] == ["e1", "e2"]


def test_a_connection_that_the_server_ended_is_replaced(store, postgres_server, url):
    name = url.rpartition("/")[2]
    for ask in (lambda: store.append([event("e1")], key="k"), lambda: store.events("ann")):
        ask()
        postgres_server.run(
            "postgres",
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
        )
        ask()
    assert len(store.events("ann")) == 1


@contextmanager
def writing(store, count):
    """That many writers hold a connection each, and the lock that they share."""
    inside, go = threading.Semaphore(0), threading.Event()

    def work(connection):
        inside.release()
        assert go.wait(30)

    with ThreadPoolExecutor(count) as pool:
        for _ in range(count):
            pool.submit(store._write, work)
        try:
            for _ in range(count):
                assert inside.acquire(timeout=30)
            yield
        finally:
            go.set()


def test_after_one_waited_in_vain_the_others_do_not(url):
    with closing(PostgresStore(url, connections=1, wait=1.0)) as store:
        store.secret()
        with store._pool.connection():
            with pytest.raises(StoreError, match="cannot read"):
                store.events("ann")
            started = time.monotonic()
            for ask in (lambda: store.events("ann"), lambda: store.append([event("e1")], key="k")):
                with pytest.raises(StoreError, match="there is no connection"):
                    ask()
            assert time.monotonic() - started < 0.5
        store.ping()  # looks for itself
        time.sleep(1.1)
        assert store.append([event("e1")], key="k") == Appended(1, 0)


@pytest.mark.parametrize(("connections", "writers"), [(8, 6), (2, 1)])
def test_those_who_write_leave_connections_to_those_who_read(url, connections, writers):
    with closing(PostgresStore(url, connections=connections, wait=1.0)) as store:
        store.secret()
        with writing(store, writers), ThreadPoolExecutor(16) as pool:
            late = [pool.submit(store.append, [event("e1")], key="k") for _ in range(16)]
            time.sleep(0.3)
            started = time.monotonic()
            assert store.events("ann") == []
            assert time.monotonic() - started < 0.5
            for each in late:
                with pytest.raises(StoreError, match="others are writing"):
                    each.result()
            assert store.events("ann") == []  # that is no sign of a server that is away
        assert store.append([event("e1")], key="k") == Appended(1, 0)


def test_who_waited_for_a_forgetting_sees_it_whatever_the_server_says(postgres_server, url):
    name = url.rpartition("/")[2]
    postgres_server.run(
        "postgres", f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'"
    )
    inside, go = threading.Event(), threading.Event()
    with closing(open_store(url)) as store, ThreadPoolExecutor(2) as pool:
        (tag,) = store._tags(["ann"])

        def forget(connection):
            inside.set()
            assert go.wait(30)
            postgres_tables.mark_forgotten(connection, tag, NOON)

        forgetting = pool.submit(store._write, forget, alone=True)
        assert inside.wait(30)
        late = pool.submit(store.append, [event("e1")], key="k")
        waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while not postgres_server.run(name, waiting):
            time.sleep(0.01)
        go.set()
        forgetting.result()
        with pytest.raises(ForgottenError):
            late.result()


def test_a_machine_that_went_without_a_word_is_noticed(url):
    """Short of unplugging one: what the connections are told to do about it."""

    def told(place):
        with closing(open_store(place)) as store, store._pool.connection() as connection:
            return connection.info.get_parameters()

    usual = told(url)
    assert usual["tcp_user_timeout"] == "10000"
    assert (usual["keepalives_idle"], usual["keepalives_interval"]) == ("10", "5")
    assert told(url + "?tcp_user_timeout=3000")["tcp_user_timeout"] == "3000"


def test_commits_wait_for_the_disk_whatever_the_server_says(postgres_server, url):
    name = url.rpartition("/")[2]
    for setting, wanted in (("off", "on"), ("remote_apply", "remote_apply"), ("on", "on")):
        postgres_server.run("postgres", f"ALTER DATABASE {name} SET synchronous_commit = {setting}")
        with closing(open_store(url)) as store:
            show = "SHOW synchronous_commit"
            assert store._write(lambda c: c.execute(show).fetchone()) == (wanted,)  # noqa: B023


def test_times_are_those_of_utc_in_every_session(postgres_server, url):
    name = url.rpartition("/")[2]
    postgres_server.run("postgres", f"ALTER DATABASE {name} SET timezone = 'Asia/Kathmandu'")
    with closing(open_store(url)) as store:
        for number, moment in enumerate((datetime.min, NOON, datetime.max)):
            sent = StoredEvent(f"e{number}", "ann", "i1", moment.replace(tzinfo=UTC))
            assert store.append([sent], key="k") == Appended(1, 0)
            assert store.append([sent], key="k") == Appended(0, 1)
            assert sent in store.events("ann")


def test_messages_hold_no_password(postgres_server, url):
    wrong = [
        url.replace("s3cret", "wr0ng"),
        url + "_nowhere",
        url.replace(str(postgres_server.port), "1"),
        url.replace("s3cret", "%s3cret%"),
        url + "?no_such_option=1",
    ]
    for place in wrong:
        with pytest.raises((StoreError, InputError)) as caught:
            open_store(place)
        said = str(caught.value)
        assert "cret" not in said
        assert "wr0ng" not in said
        assert "store" in said


def test_a_database_in_another_encoding_is_refused(postgres_server):
    url = postgres_server.database("ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(StoreError, match="encoding LATIN1; wanted UTF8"):
        open_store(url)


def test_tables_of_a_newer_make_say_upgrade(postgres_server, url):
    open_store(url).close()
    open_store(url).close()
    postgres_server.run(url.rpartition("/")[2], "UPDATE hybridrec.schema_version SET version = 99")
    with pytest.raises(StoreError, match="version 99, made by a newer hybridrec"):
        open_store(url)


def test_tables_of_the_first_make_are_upgraded(url, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(postgres_tables, "MIGRATIONS", postgres_tables.MIGRATIONS[:1])
        open_store(url).close()
    untimed = StoredEvent("e1", "ann", "i1", None)
    with closing(open_store(url)) as store:
        assert store.append([untimed], key="k") == Appended(1, 0)
        store.forget("ann")
        with pytest.raises(ForgottenError):
            store.append([untimed], key="k")


def test_a_role_that_may_make_no_tables_uses_those_that_are_there(postgres_server, url):
    open_store(url).close()
    name = url.rpartition("/")[2]
    role = f"plain_{name}"
    postgres_server.run(name, f"CREATE ROLE {role} LOGIN PASSWORD 'plain'")
    for grant in (
        "USAGE ON SCHEMA",
        "ALL ON ALL TABLES IN SCHEMA",
        "ALL ON ALL SEQUENCES IN SCHEMA",
    ):
        postgres_server.run(name, f"GRANT {grant} hybridrec TO {role}")
    host = url.rpartition("@")[2]
    with closing(open_store(f"postgresql://{role}:plain@{host}")) as store:
        assert store.append([event("e1")], key="k") == Appended(1, 0)
        store.keep_query("ann", ["i1"])
        assert store.forget("ann").events == 1


def test_vacuum_takes_what_forgetting_left(store, postgres_server, url):
    """What the docs say: the rows' bytes go with the next vacuum of the tables."""
    unusual = "a-user-whose-id-nobody-else-would-have"
    store.append([event(f"e{n}", user=unusual) for n in range(200)], key="k")
    name = url.rpartition("/")[2]
    store.forget(unusual)
    postgres_server.run(name, "VACUUM FULL hybridrec.events")
    postgres_server.run(name, "CHECKPOINT")
    rows = "SELECT pg_relation_filepath('hybridrec.events')"
    file = postgres_server.home / "data" / postgres_server.run(name, rows)[0][0]
    assert unusual.encode() not in file.read_bytes()
