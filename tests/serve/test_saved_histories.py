"""Histories beside a model: into the store once, and a forgotten user out of the folder."""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

import hybridrec as hr
from hybridrec import storage
from hybridrec.checks import StorageError
from hybridrec.serve.answers.answering import answer
from hybridrec.serve.answers.batching import Batcher
from hybridrec.serve.config import ServeConfig
from hybridrec.serve.histories import forget_saved, import_histories, saved_events
from hybridrec.serve.people import People
from hybridrec.serve.store.by_url import open_store
from hybridrec.serve.store.contract import History, StoredEvent
from hybridrec.serve.watch.metrics import Metrics

DAY = datetime(2024, 5, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path):
    with closing(open_store(tmp_path / "service.sqlite")) as opened:
        yield opened


def ratings(times=True, number=True, more=()):
    """ann likes a, then not b, then c, c again; bob (7) likes d and, long ago, nothing."""
    rows = [("ann", "a", 5, 0), ("ann", "b", 1, 1), ("ann", "c", 4, 2), ("ann", "c", 5, 3)]
    rows += [("bob", "d", 5, 9), ("eve", "b", 2, 4), *more]
    users, items, stars, days = zip(*rows, strict=True)
    table = {"user": list(users), "item": list(items), "stars": list(stars)}
    if times:
        table["time"] = list(days) if number else [DAY + timedelta(days=day) for day in days]
    return table


def dataset(**options):
    import pyarrow as pa

    time = "time" if options.get("times", True) else None
    table = pa.table(ratings(**options))
    return hr.Dataset.from_frame(
        table, user="user", item="item", rating="stars", positive=3, time=time
    )


def save(root, data):
    """A model folder with the histories of ``data`` and no model worth the name."""
    version = storage.save_version(root, lambda folder: {})
    save_beside(root, data, version)
    return version


def save_beside(root, data, version):
    from hybridrec.persistence import write_histories

    storage.write_sidecar(
        root,
        "histories",
        lambda folder: {**write_histories(data, folder), "version": version},
    )


def contents(root):
    return b"".join(file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file())


# -- into the store -----------------------------------------------------------------------------


def test_dates_are_kept_and_what_was_disliked_is_no_history(store, tmp_path):
    data = dataset(number=False)
    save(tmp_path / "model", data)
    assert import_histories(store, tmp_path / "model", data) == 6
    assert store.events("ann") == [
        StoredEvent(None, "ann", "a", DAY, True),
        StoredEvent(None, "ann", "b", DAY + timedelta(days=1), False),
        StoredEvent(None, "ann", "c", DAY + timedelta(days=2), True),
        StoredEvent(None, "ann", "c", DAY + timedelta(days=3), True),
    ]
    assert store.histories(["eve", "bob"]) == [
        History(True, (), ("b",)),
        History(True, ("d",), ()),
    ]


def test_times_that_are_no_dates_give_the_order_alone(store, tmp_path):
    data = dataset()
    save(tmp_path / "model", data)
    assert import_histories(store, tmp_path / "model", data) == 6
    events = store.events("ann")
    assert [each.item for each in events] == ["a", "b", "c", "c"]
    assert {each.time for each in events} == {None}


def test_without_times_the_history_keeps_its_order(store, tmp_path):
    data = dataset(times=False)
    save(tmp_path / "model", data)
    assert import_histories(store, tmp_path / "model", data) == 6
    assert store.histories(["ann"]) == [History(True, ("a", "c", "c"), ("b",))]
    assert store.histories(["ann"], newest=3) == [History(True, ("a", "c", "c"), ())]


def test_numbers_become_texts(store, tmp_path):
    import pyarrow as pa

    table = pa.table({"user": [7, 7, -1], "item": [10, 2, 10]})
    data = hr.Dataset.from_frame(table, user="user", item="item")
    save(tmp_path / "model", data)
    assert import_histories(store, tmp_path / "model", data) == 3
    assert store.histories(["7", "-1"]) == [History(True, ("10", "2")), History(True, ("10",))]


def test_once_each_time_they_are_saved(store, tmp_path):
    root, data = tmp_path / "model", dataset(number=False)
    save(root, data)
    assert import_histories(store, root, data) == 6
    assert import_histories(store, root, data) is None
    later = dataset(number=False, more=[("bob", "a", 5, 11)])
    save(root, later)
    assert import_histories(store, root, later) == 1
    assert store.histories(["bob"]) == [History(True, ("d", "a"))]


def test_nothing_to_import(store, tmp_path, caplog):
    root, data = tmp_path / "model", dataset()
    storage.save_version(root, lambda folder: {})
    assert import_histories(store, root, data) is None
    save(root, data)
    import pyarrow as pa

    table = pa.table({"user": ["ann"], "item": ["another"]})
    assert import_histories(
        store, root, hr.Dataset.from_frame(table, user="user", item="item")
    ) is (None)
    assert "another catalogue" in caplog.text
    assert store.users() == []
    assert import_histories(store, root, data) == 6


def test_what_no_store_can_hold_is_left_out_and_counted(store, tmp_path, caplog):
    """One such time had ended the import, and with it the next start of the service."""
    data = dataset(number=False)
    times = data.histories.times.copy()
    times[0] = 9_000_000 * 86_400_000_000  # days
    data = replace(data, histories=replace(data.histories, times=times))
    save(tmp_path / "model", data)
    assert import_histories(store, tmp_path / "model", data) == 5
    assert store.users() == ["ann", "bob", "eve"]
    assert "1 of the events beside the model are beyond the year 9999" in caplog.text


def test_damaged_histories_are_refused(store, tmp_path):
    root, data = tmp_path / "model", dataset()
    save(root, data)
    file = next((root / "histories").rglob("items.npy"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(StorageError, match=r"items\.npy was changed"):
        import_histories(store, root, data)
    assert store.users() == []


def test_events_come_a_user_after_another(dataset):
    events = list(saved_events(dataset))
    users = [each.user for each in events]
    assert users == sorted(users, key=users.index)
    assert len(events) == dataset.n_events
    first = dataset.histories.items[: dataset.histories.indptr[1]]
    names = [str(item) for item in dataset.items.ids_of(first)]
    assert [each.item for each in events[: len(names)]] == names


def test_histories_that_are_saved_after_their_version_are_taken_over(store, tmp_path, caplog):
    """Whoever writes them anew, as forgetting does, does so beside a version that answers."""
    root, data = tmp_path / "model", dataset(number=False)
    save(root, data)
    models = SimpleNamespace(current=SimpleNamespace(version="first", data=data))
    batcher = Batcher(answer, queue=1, batch=1)

    async def looks():
        people = People(ServeConfig(model=root), store, models, batcher, Metrics())
        await people.take_over()
        yield
        models.current.version = storage.save_version(root, lambda folder: {})
        await people.take_over()
        yield
        save_beside(root, later, models.current.version)
        await people.take_over()
        # Once: a damaged file stays damaged, and is not read again until there is another one.
        next((root / "histories").rglob("items.npy")).write_bytes(b"rot")
        await people.take_over()
        yield
        await people.close()

    later = dataset(number=False, more=[("bob", "a", 5, 11)])

    async def numbers():
        return [len(store.events("bob")) async for _ in looks()]

    assert asyncio.run(numbers()) == [1, 1, 2]
    assert not caplog.records


# -- out of the folder --------------------------------------------------------------------------


def test_a_forgotten_user_is_in_no_file_of_the_model(tmp_path):
    root, data = tmp_path / "model", dataset()
    save(root, data)
    utf32 = "ann".encode("utf-32-le")
    assert utf32 in contents(root)
    assert forget_saved(root, "ann") == 4
    assert utf32 not in contents(root)
    assert b"ann" not in contents(root)
    assert forget_saved(root, "ann") == 0
    assert forget_saved(root, "nobody") == 0


def test_what_was_computed_while_a_user_went_goes_too(store, tmp_path):
    """A request may read the history before it goes and leave a prompt behind when it has gone."""
    root, order = tmp_path / "model", []
    save(root, dataset())
    models = SimpleNamespace(
        current=SimpleNamespace(user=str), forget=lambda user: order.append("kept")
    )
    batcher = SimpleNamespace(drop=lambda user: order.append("waiting"))

    async def forget():
        people = People(ServeConfig(model=root), store, models, batcher, Metrics())
        await people.forget("ann", SimpleNamespace(user=None))
        await people.close()

    asyncio.run(forget())
    assert order == ["waiting", "kept", "waiting", "kept"]
    assert forget_saved(root, "ann") == 0


def test_the_others_keep_their_histories_and_places(store, tmp_path):
    from hybridrec.persistence import with_histories

    root, data = tmp_path / "model", dataset(number=False)
    version = save(root, data)
    forget_saved(root, "ann")
    folder, manifest = storage.read_sidecar(root, "histories")
    assert (manifest["events"], manifest["version"]) == (1, version)
    left = with_histories(data, folder)
    assert left.users.codes(["bob", "eve"]).tolist() == data.users.codes(["bob", "eve"]).tolist()
    assert left.dated
    assert import_histories(store, root, data) == 2
    assert store.users() == ["bob", "eve"]
    assert store.histories(["bob", "eve"]) == [History(True, ("d",)), History(True, (), ("b",))]


@pytest.mark.parametrize(
    ("user", "events"), [("7", 2), ("-1", 1), ("07", 0), ("7.0", 0), ("\u0667", 0), ("9" * 30, 0)]
)
def test_a_number_is_forgotten_by_the_one_way_to_write_it(tmp_path, user, events):
    import pyarrow as pa

    table = pa.table({"user": [7, 7, -1], "item": [10, 2, 10]})
    save(tmp_path / "model", hr.Dataset.from_frame(table, user="user", item="item"))
    before = contents(tmp_path)
    assert forget_saved(tmp_path / "model", user) == events
    assert (contents(tmp_path) == before) == (not events)


def test_what_was_imported_is_not_imported_again_when_somebody_is_forgotten(store, tmp_path):
    root, data = tmp_path / "model", dataset()
    save(root, data)
    assert import_histories(store, root, data) == 6
    for user in ("ann", "eve"):
        store.forget(user)
        forget_saved(root, user)
        assert import_histories(store, root, data) is None
    assert store.users() == ["bob"]


def test_a_forgotten_user_does_not_come_back_with_the_next_model(store, tmp_path):
    root, data = tmp_path / "model", dataset(number=False)
    save(root, data)
    import_histories(store, root, data)
    store.forget("ann")
    save(root, data)  # from the data of the day before
    assert import_histories(store, root, data) == 0
    assert store.events("ann") == []


def test_a_saved_model_without_a_user_still_answers(store, dataset, tmp_path):
    model = hr.HybridRecommender([hr.ItemTransitions()])
    model.fit(dataset).save(tmp_path / "model", histories=True)
    before = hr.load(tmp_path / "model")
    assert import_histories(store, tmp_path / "model", before.data) == before.data.n_events
    wanted = before.recommend(["u5"], k=5)
    assert forget_saved(tmp_path / "model", "u4") == 16
    after = hr.load(tmp_path / "model")
    assert after.recommend(["u5"], k=5).equals(wanted)
    with pytest.raises(hr.UnknownIdError):
        after.recommend(["u4"])


def test_all_who_are_forgotten_at_once_are(tmp_path):
    import pyarrow as pa

    table = pa.table({"user": [f"user{n}" for n in range(12)], "item": ["a"] * 12})
    root = tmp_path / "model"
    save(root, hr.Dataset.from_frame(table, user="user", item="item"))
    threads = [
        threading.Thread(target=forget_saved, args=(root, f"user{n}")) for n in range(0, 12, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(12):
        held = f"user{n}".encode("utf-32-le") + b"\0" * 4
        assert (held in contents(root)) == (n % 2 == 1), n
    assert storage.read_sidecar(root, "histories")[1]["events"] == 6
