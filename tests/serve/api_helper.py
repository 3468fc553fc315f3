"""The service as tests ask it: in this process, or in a thread behind a real port."""

import threading
import time
from contextlib import contextmanager

import uvicorn
from starlette.testclient import TestClient

from hybridrec.serve.access.keys import create_key
from hybridrec.serve.app import create_app
from hybridrec.serve.config import ServeConfig
from hybridrec.serve.store.by_url import open_store

LOCAL = "http://localhost"


def settings(folder, tmp_path, **options):
    """A store of its own, no looking after the folder."""
    given = {"model": folder, "store": str(tmp_path / "store.sqlite"), "watch_seconds": 0}
    return ServeConfig(**{**given, **options})


@contextmanager
def asking(config, **options):
    """A client of an application in this process."""
    with TestClient(create_app(config, **options), base_url=LOCAL) as client:
        yield client


@contextmanager
def keyed(config):
    """The same where there are keys: a function from scopes to a client that has such a key."""
    store = open_store(config.store)
    secrets = {}
    for scopes in (("recommend",), ("events",), ("admin",)):
        secrets[scopes] = create_key(store, scopes[0], scopes)
    with asking(config, store=store) as client:

        def having(scope):
            client.headers["authorization"] = f"Bearer {secrets[(scope,)]}"
            return client

        yield client, having, store


@contextmanager
def listening(config):
    """The URL of an application behind a real port."""
    server = uvicorn.Server(
        uvicorn.Config(create_app(config), port=0, log_config=None, access_log=False, lifespan="on")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def error(response, status, code):
    """Assert that a response is an error of ours, and return its message."""
    assert response.status_code == status, response.text
    told = response.json()["error"]
    assert set(told) == {"code", "message", "request_id"}
    assert told["code"] == code
    assert told["request_id"] == response.headers["x-request-id"]
    return told["message"]
