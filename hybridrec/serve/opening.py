"""What has to be there before the service answers, and what forbids it to begin."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from hybridrec.checks import InputError
from hybridrec.serve.histories import import_histories
from hybridrec.serve.service import Service
from hybridrec.serve.store.by_url import open_store
from hybridrec.serve.versions.models import Models
from hybridrec.serve.watch.metrics import Metrics
from hybridrec.serve.watch.tracing import set_up_tracing

if TYPE_CHECKING:
    from hybridrec.serve.config import ServeConfig
    from hybridrec.serve.store.contract import Store

STORE = "service.sqlite"


def store_of(config: ServeConfig, *, beside: bool = False) -> Store:
    """Open the store that the settings name.

    Args:
        config: the settings.
        beside: also while a service has it, for a command about keys.

    Raises:
        StoreError: it cannot be opened.
    """
    where = config.store or str(config.model / STORE)
    return open_store(where, health_queries=config.health_queries, beside=beside)


def key_command(config: ServeConfig, scope: str) -> str:
    """The command that makes the first key; what a URL says after its scheme may be a secret."""
    if config.store is None:
        where = f"--model {config.model}"
    else:
        scheme, is_url, _ = config.store.partition("://")
        where = f"--store {scheme}://..." if is_url else f"--store {config.store}"
    return f"hybridrec keys create NAME --scope {scope} {where}"


def check_start(config: ServeConfig, store: Store) -> None:
    """Refuse settings that would let anybody in, or lose events.

    Raises:
        InputError: it listens to the network without a key, or in several processes with a store
            that serves one.
    """
    if not config.loopback and not store.keys():
        raise InputError(
            f"host is {config.host!r}, which others can reach, and there is no API key: make one "
            f"with `{key_command(config, 'recommend')}`, or listen on 127.0.0.1"
        )
    if config.workers > 1 and not store.shared:
        raise InputError(
            f"workers is {config.workers}, and SQLite serves one process: pass a postgresql:// "
            "URL as store, or one worker"
        )


async def open_service(
    config: ServeConfig, *, store: Store | None = None, models: Models | None = None
) -> Service:
    """A service that has begun to answer.

    Raises:
        InputError: as :func:`check_start`.
        StoreError: the store cannot be opened.
        StorageError: there is no model, or it is damaged.
    """
    metrics = Metrics()

    def opened() -> tuple[Store, Models]:
        kept = store or store_of(config)
        check_start(config, kept)
        versions = models or Models(config.model, kept, config, metrics)
        data = versions.load().data
        import_histories(kept, config.model, data)
        return kept, versions

    kept, versions = await asyncio.to_thread(opened)
    service = Service(config, kept, versions, metrics, tracing=set_up_tracing())
    await service.start()
    return service
