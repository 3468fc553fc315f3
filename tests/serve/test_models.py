"""Versions roll forward and back under load: nobody is dropped, and a bad one never answers."""

import asyncio
import json
import logging
import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

import hybridrec as hr
from hybridrec import storage
from hybridrec.serve.answers.answering import answer, answers
from hybridrec.serve.answers.asking import Answer, Ask
from hybridrec.serve.answers.batching import Batcher
from hybridrec.serve.config import ServeConfig
from hybridrec.serve.store.contract import StoreError
from hybridrec.serve.versions.models import CheckError, Models, NoModelError, load_model

ASK = Ask(history=("i1", "i2"))


class Kept:
    """The part of a store that holds the kept queries."""

    def __init__(self, *queries):
        self.kept = list(queries)

    def queries(self):
        return self.kept


class Meter:
    def __init__(self):
        self.versions = []

    def set_model(self, version, *, items=None, cold_users=None):
        self.versions.append((version, items))


def models_of(folder, *queries, metrics=None, **options):
    config = ServeConfig(model=folder, batch=4, **options)
    return Models(folder, Kept(*queries), config, metrics)


@pytest.fixture
def versions(own_folder, save_another):
    """A folder with two versions, the second current; and their ids."""
    first = storage.current(own_folder)
    return own_folder, first, save_another(own_folder)


def test_versions_roll_forward_and_back(versions):
    folder, first, second = versions
    meter = Meter()
    models = models_of(folder, ("i1", "i2"), ("i5",), metrics=meter)
    with pytest.raises(NoModelError):
        _ = models.current
    with pytest.raises(hr.InputError, match="no version before"):
        models.roll_back()
    assert models.load(first).version == models.current.version == first
    assert models.previous is None
    assert models.load() is models.current
    assert (models.current.version, models.previous.version) == (second, first)
    assert models.load() is models.current  # nothing to do
    assert models.get(first) is models.previous
    assert models.get(second) is models.current
    with pytest.raises(hr.InputError, match="'nothing', which is not loaded"):
        models.get("nothing")
    before = models.previous
    assert models.roll_back() is models.current is before
    assert storage.current(folder) == load_model(folder).version == first
    assert models.roll_back().version == storage.current(folder) == second
    assert models.load(first) is before  # it was still in memory
    assert storage.current(folder) == second
    assert meter.versions == [(each, 30) for each in (first, second, first, second, first)]


def test_a_loaded_version_is_warm(versions):
    """The tables that the first requests would have to make are there."""
    loaded = models_of(versions[0]).load()
    assert {"_codes", "_user_codes", "titles"} <= set(vars(loaded))


def test_a_version_that_cannot_be_read_leaves_the_old_one(versions):
    folder, first, second = versions
    models = models_of(folder)
    models.load(first)
    (folder / "versions" / second / "popularity" / "scores.npy").write_bytes(b"rot")
    with pytest.raises(hr.StorageError, match="was changed"):
        models.load()
    with pytest.raises(hr.StorageError, match="holds no version"):
        models.load("20200101T000000000000Z-0123456789abcdef")
    assert models.current.version == first
    assert models.previous is None


def test_a_version_that_answers_nonsense_is_not_served(own_folder):
    models = models_of(own_folder, ("i1", "i2"))
    good = models.load()
    spoilt = hr.load(own_folder)
    spoilt.pipeline.popularity._scores = np.full(30, np.nan, np.float32)
    spoilt.save(own_folder)
    with pytest.raises(CheckError, match="cannot answer"):
        models.load()
    assert models.current is good
    with pytest.raises(CheckError):
        models_of(own_folder).load()  # the first of a service is checked, too


def test_shorter_lists_are_not_served(own_folder, dataset):
    """A model that has lost most of its catalogue is short where items are left to answer."""
    models = models_of(own_folder, ("i1", "i2"))
    models.load()
    short = hr.HybridRecommender([hr.ItemTransitions()], depth=4).fit(dataset)
    short.save(own_folder)
    new = models.load()  # whoever asks for ten gets ten, however deep the model recalls
    assert len(answer(new, [ASK])[0].items) == 10
    few = hr.load(own_folder)
    few.retire_items([f"i{n}" for n in range(3, 28)])
    few.save(own_folder)
    assert len(answer(models.load(), [ASK])[0].items) == 3  # there are no more


def test_what_has_little_in_common_with_the_old_answers_is_not_served(own_folder, save_another):
    kept = [("i1", "i2"), ("i7",), ("i20", "i21")]
    models = models_of(own_folder, *kept, health_overlap=0.9)
    old = models.load()
    save_another(own_folder, [f"i{n}" for n in range(0, 30, 2)])
    with pytest.raises(CheckError, match=r"shares 0\.\d+ of its items.*over 3 kept queries"):
        models.load()
    assert models.current is old
    assert models_of(own_folder, *kept, health_overlap=0.9).load() is not old
    again = models_of(own_folder, *kept)
    again.load(old.version)
    assert again.load().version == storage.current(own_folder)


def test_kept_queries_may_name_items_that_a_version_does_not_know(own_folder):
    assert models_of(own_folder, ("of tomorrow",), ("i1", "of tomorrow")).load()


def test_a_template_that_reads_the_request_is_warmed_and_checked(dataset, tiny_encoder, tmp_path):
    events = {"user_id": [], "item_id": [], "timestamp": [], "device": []}
    for user in range(30):
        for step in range(8):
            events["user_id"].append(f"u{user}")
            events["item_id"].append(f"i{(user + step) % 12}")
            events["timestamp"].append(step)
            events["device"].append("big" if user % 2 else "speed")
    items = {"item_id": [f"i{n}" for n in range(12)], "title": [f"heat {n}" for n in range(12)]}
    import pyarrow as pa

    data = hr.Dataset.from_frame(
        pa.table(events),
        user="user_id",
        item="item_id",
        time="timestamp",
        context=["device"],
        items=pa.table(items),
        item_text="{title}",
    )
    reranker = hr.CrossEncoder(
        tiny_encoder, history=4, max_item_tokens=12, template="{device} {history} {item}"
    )
    model = hr.HybridRecommender([hr.ALS(factors=4, epochs=2)], reranker, reranker_examples=20)
    model.fit(data).save(tmp_path / "model")
    loaded = models_of(tmp_path / "model", ("i1",)).load()
    given, missing, plain = answer(
        loaded,
        [
            Ask(history=("i1",), context={"device": "big", "of no use": 3}),
            Ask(history=("i1",), context={"page": "home"}),
            Ask(history=("i1",), rerank=False),
        ],
    )
    expected = model.recommend(histories=[["i1"]], context={"device": "big"}).to_pydict()
    assert [each.item for each in given.items] == expected["item"]
    assert isinstance(missing, hr.InputError)
    assert "context lacks 'device'" in str(missing)
    assert isinstance(plain, Answer)


def test_rolling_back_to_what_later_saves_removed_still_answers(versions, save_another, caplog):
    folder, first, second = versions
    models = models_of(folder)
    models.load(first)
    models.load()
    save_another(folder)
    third = storage.current(folder)
    assert storage.versions(folder) == [second, third]
    with caplog.at_level(logging.WARNING, "hybridrec"):
        assert models.roll_back().version == first
    assert "a restart will load another" in caplog.text
    assert storage.current(folder) == third


# -- forgetting --------------------------------------------------------------------------------


def test_what_is_kept_of_a_user_goes_and_no_more(own_folder):
    models = models_of(own_folder)
    loaded = models.load()
    assert models.forget("u1") == models.forget("nobody") == 0  # what warming left is gone
    known = Ask(user="u1", history=("i3", "i4"))
    other = Ask(user="u2", history=("i5", "i6"))
    strange = Ask(user="stranger", history=("i7", "i8"))
    answer(loaded, [known, other, strange])
    assert models.forget("u1") == 1
    assert models.forget("u1") == 0
    assert models.forget("a stranger too") == 1  # nothing tells strangers apart
    assert models.forget("u2") == 1
    answer(loaded, [known, replace(known, user="u2")])  # a prompt of two users is either's
    assert models.forget("u2") == 1
    assert models.forget("u1") == 0


def test_no_history_of_the_model_is_in_memory(own_folder):
    loaded = models_of(own_folder).load()
    assert loaded.data.n_users == 60
    assert loaded.data.n_events == 0
    expected = hr.load(own_folder).recommend(histories=[[]], k=10).to_pydict()["item"]
    (nothing,) = answer(loaded, [Ask(user="u1")])
    assert [each.item for each in nothing.items] == expected


# -- watching ----------------------------------------------------------------------------------


def until(true):
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_new_current_version_is_loaded_by_itself(own_folder, save_another, caplog):
    models = models_of(own_folder, ("i1", "i2"), watch_seconds=0.02)
    models.watch()
    try:
        until(lambda: models._held.current is not None)
        first = models.current.version
        second = save_another(own_folder)
        until(lambda: models.current.version == second)
        assert models.previous.version == first
        # What rolls back stays there: the folder was told.
        models.roll_back()
        time.sleep(0.2)
        assert models.current.version == storage.current(own_folder) == first
        # A bad one is said once and not served; the next good one is.
        spoilt = hr.load(own_folder)
        spoilt.pipeline.popularity._scores = np.full(30, np.nan, np.float32)
        with caplog.at_level(logging.ERROR, "hybridrec"):
            spoilt.save(own_folder, histories=True)
            until(lambda: "is not served" in caplog.text)
            time.sleep(0.2)
        assert caplog.text.count("is not served") == 1
        assert models.current.version == first
        storage.set_current(own_folder, first)
        third = save_another(own_folder, ("i1",))
        until(lambda: models.current.version == third)
    finally:
        models.close()
    assert not models._watcher.is_alive()


def test_what_has_nothing_to_do_with_the_version_is_tried_again(own_folder, caplog):
    models = models_of(own_folder, watch_seconds=0.02)
    kept = models._store.queries
    failures = [StoreError("away"), StoreError("still away")]

    def queries():
        if failures:
            raise failures.pop()
        return kept()

    models._store.queries = queries
    models.watch()
    try:
        until(lambda: models._held.current is not None)
    finally:
        models.close()
    assert caplog.text.count("it is tried again") == 2


def test_without_an_interval_nothing_is_watched(own_folder):
    models = models_of(own_folder, watch_seconds=0.0)
    models.watch()
    assert models._watcher is None
    models.close()


# -- under load --------------------------------------------------------------------------------


def test_nothing_in_flight_is_dropped_while_versions_change(versions):
    """Eight clients ask, 200 times at least, while versions are loaded, swapped and rolled back."""
    folder, first, second = versions
    models = models_of(folder, ("i1", "i2"))
    models.load(first)
    expected = {}
    for version in (first, second):
        held = load_model(folder, version)
        for n in range(1, 6):
            (found,) = answer(held, [Ask(history=(f"i{n}", f"i{n + 5}"))])
            expected[version, n] = [each.item for each in found.items]
    stop, switched = threading.Event(), Counter()

    def switch():
        while not stop.is_set():
            models.load(second if models.current.version == first else first)
            switched["load"] += 1
            stop.wait(0.1)
            models.roll_back()
            switched["back"] += 1
            stop.wait(0.1)

    async def client(batcher, seed):
        found, turn = [], 0
        while turn < 25 or (switched["back"] < 3 and switching.is_alive()):
            turn += 1
            n = 1 + (seed + turn) % 5
            loaded = models.current
            got = await batcher.submit(loaded, Ask(history=(f"i{n}", f"i{n + 5}")))
            assert got.version == loaded.version
            found.append((got, n))
        return found

    async def load():
        batcher = Batcher(answers, queue=64, batch=8)
        batcher.start()
        found = await asyncio.gather(*(client(batcher, seed) for seed in range(8)))
        await batcher.drain()
        return [pair for part in found for pair in part]

    switching = threading.Thread(target=switch)
    switching.start()
    try:
        given = asyncio.run(load())
    finally:
        stop.set()
        switching.join(60)
    assert not switching.is_alive()
    assert len(given) >= 200
    for found, n in given:
        assert [each.item for each in found.items] == expected[found.version, n]
    assert min(switched.values()) >= 3
    assert len({found.version for found, _ in given}) == 2


def test_users_known_by_their_place_are_those_of_their_version(tmp_path):
    """BPR's vectors are by a user's code, and another version's users have other codes."""
    implicit = pytest.importorskip("implicit.bpr")
    import pyarrow as pa

    def fitted(order):
        rows = [(f"u{u}", f"i{(u + n) % 9}", n) for u in order for n in range(5)]
        frame = pa.table(dict(zip(("user", "item", "at"), zip(*rows, strict=True), strict=True)))
        items = pa.table({"item": [f"i{n}" for n in range(9)]})
        data = hr.Dataset.from_frame(frame, user="user", item="item", time="at", items=items)
        model = implicit.BayesianPersonalizedRanking(factors=4, random_state=0)
        return hr.HybridRecommender([hr.ImplicitModel(model)]).fit(data)

    folder = tmp_path / "model"
    first = fitted(range(12)).save(folder, histories=True)
    assert load_model(folder).user_code("u11") == 11
    second = fitted(range(11, -1, -1)).save(folder, histories=True)
    assert load_model(folder).user_code("u11") == 0
    before = load_model(folder, first)
    assert before.user_code("u11") == -1
    found, known = answer(before, [Ask(user="u11", history=("i1",)), Ask()])
    assert found.popular  # rather than somebody else's items
    assert {each.item for each in found.items} <= {each.item for each in known.items}
    manifest = json.loads((folder / "versions" / second / "manifest.json").read_text())
    assert manifest["model"]["user_ids"] == "str"
    mixed = answer(load_model(folder), [Ask(user="u3", history=("i1",)), Ask(user="new")])
    assert [each.popular for each in mixed] == [False, True]
