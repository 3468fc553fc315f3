"""What stays is not walked through again, and is let go of when it is replaced."""

import asyncio
import gc
import weakref

import pytest

from hybridrec.serve.config import ServeConfig
from hybridrec.serve.opening import open_service
from hybridrec.serve.versions.collecting import keep_what_is_there


class Ring:
    """Only the collector can free it."""

    def __init__(self):
        self.me = self


@pytest.fixture(autouse=True)
def thawed():
    yield
    gc.unfreeze()


def test_what_was_there_is_left_out_of_collections_until_the_next_call():
    ring = Ring()
    gone = weakref.ref(ring)
    keep_what_is_there()
    assert gc.get_freeze_count() > 10_000
    del ring
    gc.collect()
    assert gone() is not None
    keep_what_is_there()
    assert gone() is None


def test_what_comes_later_is_collected():
    keep_what_is_there()
    gone = weakref.ref(Ring())
    gc.collect()
    assert gone() is None


def test_a_model_that_was_replaced_twice_is_collected(own_folder, tmp_path, save_another):
    """Also if it was searched; only the one before the current one is kept to go back to."""
    config = ServeConfig(model=own_folder, store=str(tmp_path / "store.sqlite"), watch_seconds=0)

    async def replace_twice():
        service = await open_service(config)
        try:
            assert (await service.find_items("", 3)).items
            loaded = service.models.current
            loaded.engine.ring = Ring()
            parts = [loaded, loaded.engine, loaded.engine.ring, loaded.pipeline.reranker]
            gone = [weakref.ref(part) for part in parts]
            del loaded, parts
            save_another(own_folder)
            await service.load_model(None)
            assert all(each() is not None for each in gone)
            save_another(own_folder, ["i1"])
            await service.load_model(None)
            return [each() for each in gone if each() is not None]
        finally:
            await service.close()

    assert asyncio.run(replace_twice()) == []


def test_loading_a_model_does_it(own_folder, tmp_path):
    from contextlib import closing

    from hybridrec.serve.store.by_url import open_store
    from hybridrec.serve.versions.models import Models

    config = ServeConfig(model=own_folder, watch_seconds=0)
    with closing(open_store(tmp_path / "store.sqlite")) as store:
        gc.unfreeze()
        Models(own_folder, store, config).load()
        assert gc.get_freeze_count() > 10_000
