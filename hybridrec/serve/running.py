"""``hybridrec serve``: the application in uvicorn, from the first check to a clean stop."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import ssl
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from hybridrec import storage
from hybridrec.checks import HybridrecError, InputError
from hybridrec.serve.app import create_app
from hybridrec.serve.config import ServeConfig
from hybridrec.serve.opening import check_start, key_command, store_of
from hybridrec.serve.watch.logs import UVICORN, set_up_logs
from hybridrec.serve.watch.metrics_folder import metrics_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI

SETTINGS = "HYBRIDREC_SERVE"
"""The environment variable that tells workers their settings, as JSON."""
WATCH_SECONDS = 1.0
"""Between a worker's looks whether the process that started it is still there."""
DRAIN_SECONDS = 30
"""For answers that are on their way when it is told to stop."""


def run(config: ServeConfig, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; answers what has come in by then.

    Args:
        config: the settings.
        say: told where it listens, and what its owner should know.

    Raises:
        InputError: what :func:`hybridrec.serve.opening.check_start` refuses; no such host; files
            that are no certificate and its key.
        StoreError: the store cannot be opened.
        StorageError: there is no model, or it is damaged.
        OSError: the port is taken.
        HybridrecError: one of several workers cannot start.
    """
    _check_tls(config)
    storage.current(config.model)  # no store in a folder that is no model's
    store = store_of(config)
    try:
        check_start(config, store)
        open_to_all = not store.keys()
        listener = _listener(config)
    except BaseException:
        store.close()
        raise
    set_up_logs(json_lines=config.log_json)
    scheme = "http" if config.certificate is None else "https"
    host = f"[{config.host}]" if ":" in config.host else config.host
    told = f"Listening on {scheme}://{host}:{listener.getsockname()[1]}"
    if open_to_all:
        told += (
            f"\nThere is no API key: whoever is on this machine may do everything, until "
            f"`{key_command(config, 'admin')}`"
        )
    # uvicorn stops by itself and then sends the signal again, to whoever was there before it.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: None)
    with listener:
        if config.workers == 1:
            _serve(create_app(config, store=store), config, listener, lambda: say(told))
        else:
            store.close()  # each worker opens its own
            say(told)
            _serve_many(config, listener)


def worker() -> FastAPI:
    """The application of one of several workers."""
    config = ServeConfig(**json.loads(os.environ[SETTINGS]))
    set_up_logs(json_lines=config.log_json)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    return create_app(config)


def _end_with(parent: int) -> None:
    """Stop when ``parent`` has gone: killed, it stops nobody, and the port would stay taken."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


class _Server(uvicorn.Server):
    """Says when it is up."""

    def __init__(self, config: uvicorn.Config, up: Callable[[], None]) -> None:
        super().__init__(config)
        self._up = up

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._up()


def _serve(
    app: FastAPI, config: ServeConfig, listener: socket.socket, up: Callable[[], None]
) -> None:
    server = _Server(_uvicorn(app, config), up)

    def failed() -> HybridrecError | None:
        error = getattr(app.state, "failed", None)
        return error if isinstance(error, HybridrecError) else None

    # Who starts it is told in one line: the framework would log a traceback before.
    logging.getLogger("uvicorn.error").addFilter(lambda _: failed() is None)
    try:
        server.run(sockets=[listener])
    except SystemExit:
        error = failed()
        if error is not None:
            raise error from None
        raise


def _serve_many(config: ServeConfig, listener: socket.socket) -> None:
    os.environ[SETTINGS] = json.dumps(asdict(config), default=str)
    where = f"{__name__}:{worker.__name__}"
    with metrics_folder():
        inner = _uvicorn(where, config, workers=config.workers, factory=True)
        several = Multiprocess(inner, sockets=[listener])
        several.run()
    # Below 0 stands the signal that stopped one.
    if any((each.process.exitcode or 0) > 0 for each in several.processes):
        raise HybridrecError("a worker cannot start, or failed to stop: its log above says why")


def _uvicorn(app: FastAPI | str, config: ServeConfig, **more: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        ssl_certfile=config.certificate,
        ssl_keyfile=config.private_key,
        lifespan="on",
        # An address that a header claims is nobody's: limits go by keys, or by who connects.
        proxy_headers=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=DRAIN_SECONDS,
        **UVICORN,
        **more,
    )


def _check_tls(config: ServeConfig) -> None:
    """Refuse files that are no certificate and its key."""
    if config.certificate is None or config.private_key is None:
        return
    for name in ("certificate", "private_key"):
        file = getattr(config, name)
        try:
            open(file, "rb").close()
        except OSError as error:
            raise InputError(
                f"{name} is {file}, which cannot be read: {error.strerror}; wanted a PEM file"
            ) from error
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            config.certificate, config.private_key
        )
    except ssl.SSLError as error:
        raise InputError(
            f"certificate is {config.certificate} and private_key {config.private_key}; wanted PEM "
            f"files of a certificate and its own key: {error}"
        ) from error


def _listener(config: ServeConfig) -> socket.socket:
    """A socket that waits for connections."""
    try:
        family, *_, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise InputError(f"host is {config.host!r}, which has no address: {error}") from error
    listener = socket.create_server(address[:2], family=family, backlog=2048)
    listener.set_inheritable(True)
    return listener
