"""``hybridrec serve | keys | rollback``: the service and what keeps it."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridrec.bars import progress
from hybridrec.checks import InputError

if TYPE_CHECKING:
    from hybridrec.serve.store.contract import Store

_SCOPES = ("recommend", "events", "admin")


def add_serve_parsers(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add the commands ``serve``, ``keys`` and ``rollback``."""
    _serve_parser(commands, shared)
    _keys_parser(commands, shared)
    back = commands.add_parser(
        "rollback",
        parents=[shared],
        help="make the version before the current one of a model current again",
        description="Name the other version on the disk in CURRENT. Services that watch the "
        "folder follow within seconds.",
    )
    back.add_argument("model", type=Path, help="a folder that `hybridrec fit` wrote")
    back.set_defaults(run=_roll_back)


def _serve_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    serve = commands.add_parser(
        "serve",
        parents=[shared],
        help="answer over HTTP",
        epilog="Example: hybridrec serve model/ --port 8000; then open http://127.0.0.1:8000",
        argument_default=argparse.SUPPRESS,  # what is not given is the settings' own default
    )
    serve.add_argument("model", type=Path, help="a folder that `hybridrec fit` wrote")
    for flag, kind, text in (
        (
            "--host",
            str,
            "address to listen on; other than loopback only with an API key (127.0.0.1)",
        ),
        ("--port", int, "0 takes a free one (8000)"),
        ("--store", str, "SQLite file or postgresql:// URL (service.sqlite in the model folder)"),
        ("--workers", int, "processes; more than one needs PostgreSQL (1)"),
        ("--queue", int, "requests that may wait (256)"),
        ("--batch", int, "requests answered together at most (32)"),
        ("--budget-ms", float, "the most time a request has (no limit)"),
        ("--rate", float, "requests a second that a key may make (no limit)"),
        ("--burst", int, "and at once (50)"),
        ("--body-bytes", int, "of a request at most (1048576)"),
        ("--watch-seconds", float, "how often to look for a new version; 0 never (5)"),
        ("--health-queries", int, "requests kept to check new versions with (50)"),
        ("--health-overlap", float, "share of their items that new answers must keep (0)"),
        ("--certificate", Path, "PEM file for TLS"),
        ("--private-key", Path, "its key"),
    ):
        serve.add_argument(flag, type=kind, help=text)
    serve.add_argument(
        "--hosts",
        type=lambda given: tuple(name.strip() for name in given.split(",") if name.strip()),
        metavar="NAME,...",
        help="names it is reached by, beside loopback's and --host",
    )
    serve.add_argument(
        "--log-text",
        dest="log_json",
        action="store_false",
        help="log for people rather than in JSON lines",
    )
    serve.set_defaults(run=_serve)


def _keys_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    keys = commands.add_parser("keys", help="create, revoke or list API keys of the service")
    actions = keys.add_subparsers(title="actions", metavar="ACTION", required=True)
    where = argparse.ArgumentParser(add_help=False)
    either = where.add_mutually_exclusive_group(required=True)
    either.add_argument("--model", type=Path, help="the model folder whose own store it is")
    either.add_argument("--store", help="SQLite file or postgresql:// URL")
    create = actions.add_parser(
        "create",
        parents=[shared, where],
        help="make a key; its secret is printed once",
        epilog="Example: hybridrec keys create shop --scope recommend --model model/",
    )
    create.add_argument("name", help="what it is for")
    create.add_argument(
        "--scope",
        action="append",
        required=True,
        choices=_SCOPES,
        help="what it may do; may be given several times; admin may do everything",
    )
    create.set_defaults(run=_create)
    revoke = actions.add_parser("revoke", parents=[shared, where], help="let a key open nothing")
    revoke.add_argument("id", help="as `hybridrec keys list` has it")
    revoke.set_defaults(run=_revoke)
    listed = actions.add_parser("list", parents=[shared, where], help="print every key")
    listed.set_defaults(run=_list)


def _serve(chosen: argparse.Namespace) -> None:
    from hybridrec.serve.config import ServeConfig
    from hybridrec.serve.running import run

    names = {field.name for field in fields(ServeConfig)}
    given = {name: value for name, value in vars(chosen).items() if name in names}
    with progress(shown=False):  # bars in a log are noise
        run(ServeConfig(**given), lambda line: print(line, flush=True))


def _create(chosen: argparse.Namespace) -> None:
    from hybridrec.serve.access.keys import create_key

    store = _store(chosen, make=True)
    try:
        secret = create_key(store, chosen.name, tuple(dict.fromkeys(chosen.scope)))
    finally:
        store.close()
    print(secret)


def _revoke(chosen: argparse.Namespace) -> None:
    store = _store(chosen)
    try:
        if not store.revoke_key(chosen.id):
            raise InputError(f"id is {chosen.id!r}; there is no such key, or it was revoked before")
    finally:
        store.close()
    print(f"Revoked {chosen.id}")


def _list(chosen: argparse.Namespace) -> None:
    store = _store(chosen)
    try:
        keys = store.keys()
    finally:
        store.close()
    if not keys:
        print("There is no API key: `hybridrec keys create` makes one", file=sys.stderr)
    for key in keys:
        made = key.created.isoformat(timespec="seconds")
        state = "" if key.revoked is None else f"\trevoked {key.revoked:%Y-%m-%dT%H:%M:%SZ}"
        print(f"{key.id}\t{key.name}\t{','.join(key.scopes)}\t{made}{state}")


def _store(chosen: argparse.Namespace, *, make: bool = False) -> Store:
    from hybridrec import storage
    from hybridrec.serve.opening import STORE
    from hybridrec.serve.store.by_url import is_url, open_store

    where = chosen.store
    if where is None:
        storage.current(chosen.model)  # no store in a folder that is no model's
        where = str(chosen.model / STORE)
    if not make and not is_url(where) and not Path(where).exists():
        raise InputError(
            f"there is no store {where}: `hybridrec serve` or `hybridrec keys create` makes one"
        )
    return open_store(where, beside=True)


def _roll_back(chosen: argparse.Namespace) -> None:
    from hybridrec import storage

    current = storage.current(chosen.model)
    others = [version for version in storage.versions(chosen.model) if version != current]
    if not others:
        raise InputError(
            f"{chosen.model} holds no version but {current}: there is nothing before it"
        )
    storage.set_current(chosen.model, others[-1])
    print(f"{chosen.model} is at version {others[-1]} now, no longer {current}")
