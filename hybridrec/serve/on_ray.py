"""The service on more than one machine: a Ray Serve deployment of the same application.

``serve.run(deployment(config, replicas=4), name="hybridrec")``, or in a file for ``serve deploy``::

    applications:
      - name: hybridrec
        route_prefix: /
        import_path: hybridrec.serve.on_ray:application
        args:
          model: /models/films
          store: postgresql://hybridrec@db/hybridrec
          replicas: 4

Ray starts the processes, and its proxies listen, at the address ``serve.start`` was told, in plain
HTTP. The model folder must be readable on every machine, under one path.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hybridrec.checks import InputError, require_extra, whole_number
from hybridrec.serve.app import create_app
from hybridrec.serve.config import ServeConfig
from hybridrec.serve.opening import key_command, store_of
from hybridrec.serve.watch.logs import set_up_logs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["application", "deployment"]

NAME = "hybridrec"
DRAIN_SECONDS = 30.0
"""For answers that are on their way when a replica is told to stop."""

_ANYWHERE = "0.0.0.0"
"""Nothing listens here: it tells the application that it is others who reach it."""


def deployment(config: ServeConfig, *, replicas: int = 1, **options: Any) -> Any:
    """The service as an application that ``ray.serve.run`` takes.

    Every replica answers as ``hybridrec serve`` does, with a queue, batches and rate limits of its
    own. A new version of the model is taken over by each when it sees the folder change. Of
    ``/metrics`` a replica tells its own; with ``PROMETHEUS_MULTIPROC_DIR`` in the environment of
    the replicas, an empty folder on each machine, that of all on its machine.

    Args:
        config: the settings. ``host`` and ``port`` are Ray's to listen on.
        replicas: processes; more than one need PostgreSQL.
        options: of ``ray.serve.deployment``, such as ``ray_actor_options`` or, in place of
            ``replicas``, ``autoscaling_config``.

    Returns:
        A ``ray.serve.Application``, to be served under the prefix ``/``.

    Raises:
        InputError: several replicas and a store that serves one process; no API key; settings that
            are Ray's to decide.
        StoreError: the store cannot be opened.
        MissingExtraError: Ray Serve is not installed.
    """
    serve = require_extra("ray.serve", extra="ray")
    whole_number("replicas", replicas, least=1)
    if "num_replicas" in options:
        raise InputError("num_replicas is told by replicas= here: pass that instead")
    _check(config, replicas, several=replicas > 1 or "autoscaling_config" in options)
    # Whoever reaches a proxy reaches it: no door is open because the machine is one's own.
    reached = replace(config, host=_ANYWHERE, hosts=(*config.hosts, config.host))

    def app() -> FastAPI:
        set_up_logs(json_lines=reached.log_json)
        made = create_app(reached)
        made.add_middleware(_WithoutRequestId)
        return made

    # What is too much is for the service to say, with 429: beyond these Ray would let it wait.
    waiting = 2 * (config.queue + config.batch)
    settings: dict[str, Any] = {
        "name": NAME,
        "max_ongoing_requests": waiting,
        "graceful_shutdown_timeout_s": DRAIN_SECONDS,
        "logging_config": {"enable_access_log": False},  # it has paths, and so users' ids
    }
    if "autoscaling_config" not in options:
        settings["num_replicas"] = replicas
    return serve.deployment(serve.ingress(app)(), **{**settings, **options}).bind()


def application(args: Mapping[str, Any]) -> Any:
    """:func:`deployment` from the ``args`` of a Serve config file.

    Args:
        args: fields of :class:`~hybridrec.serve.config.ServeConfig`, and ``replicas``.

    Raises:
        InputError: an argument that neither knows; what :func:`deployment` refuses.
    """
    given = dict(args)
    replicas = given.pop("replicas", 1)
    known = ServeConfig.__dataclass_fields__
    for name in given:
        if name not in known:
            raise InputError(f"args has {name!r}; wanted replicas or one of {', '.join(known)}")
    if "model" not in given:
        raise InputError("args lacks model, the folder that `hybridrec fit` wrote")
    if isinstance(given.get("hosts"), list):
        given["hosts"] = tuple(given["hosts"])
    return deployment(ServeConfig(**given), replicas=replicas)


class _WithoutRequestId:
    """Leaves the request's id in the answer's head to Ray's proxy, which puts the same there."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.get("headers", ())
                message["headers"] = [pair for pair in headers if pair[0] != b"x-request-id"]
            await send(message)

        await self._app(scope, receive, told)


def _check(config: ServeConfig, replicas: int, *, several: bool) -> None:
    """Refuse what could not hold once requests come from other machines."""
    if config.workers != 1:
        raise InputError(
            f"workers is {config.workers}, and on Ray there is one a replica: pass replicas="
        )
    if config.certificate is not None:
        raise InputError(
            "certificate is set, and Ray's proxies speak plain HTTP: end TLS before them"
        )
    with closing(store_of(config)) as store:
        if several and not store.shared:
            many = f"replicas is {replicas}" if replicas > 1 else "autoscaling_config is set"
            raise InputError(
                f"{many}, and SQLite serves one process: pass a postgresql:// URL as store, or "
                "one replica"
            )
        if not store.keys():
            raise InputError(
                "there is no API key, and whoever reaches Ray's proxies could do everything: make "
                f"one with `{key_command(config, 'recommend')}`"
            )
