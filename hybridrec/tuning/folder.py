"""The folder of a search: its trials, what it is about, and the best settings so far."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridrec import __version__
from hybridrec.checks import StorageError
from hybridrec.sealing import write

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from hybridrec.data.dataset import Dataset

TRIALS, BEST = "trials.db", "best.json"
_ABOUT, _LOCK = "search.json", ".lock"
_REMEDY = "choose another folder, or go on there with what it was begun with"


@contextmanager
def opened(folder: Path, about: Mapping[str, Any]) -> Iterator[None]:
    """Hold ``folder`` for a search that is about ``about``, made if it is not there.

    Raises:
        StorageError: it is somebody else's, of a search about something else, or another process
            is searching there.
    """
    _check(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(
                f"another process is searching in {folder}: wait for it, or choose another folder"
            ) from error
        _compare(folder, json.loads(json.dumps(about)))
        yield


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Put ``values`` at ``path`` at once: a reader sees all of it or what was there before."""
    new = path.with_name(f".{path.name}.new")
    write(new, (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())
    os.replace(new, path)


def mark_of(data: Dataset) -> str:
    """A digest of all that a fit reads: who did what, when and how, and the items' texts."""
    digest = hashlib.sha256()
    for ids in (data.users.ids, data.items.ids):
        digest.update(json.dumps(ids.tolist()).encode())
    for rows in (data.histories, data.excluded):
        for values in () if rows is None else (rows.indptr, rows.items, rows.weights, rows.times):
            digest.update(b"|" if values is None else np.ascontiguousarray(values).data)
    digest.update(json.dumps(data.texts).encode())
    for name in sorted(data.context):
        digest.update(f"{name}: {data.context[name].tolist()!r}".encode())
    return digest.hexdigest()


def _check(folder: Path) -> None:
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise StorageError(f"{folder} is not a folder: choose another path")
    names = set(os.listdir(folder)) - {_LOCK}
    if names and _ABOUT not in names:
        raise StorageError(
            f"{folder} holds {min(names)!r} and no search: choose a new or an empty folder"
        )


def _compare(folder: Path, about: dict[str, Any]) -> None:
    path = folder / _ABOUT
    about = {"hybridrec": __version__, **about}
    if not path.exists():
        write_json(path, about)
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name in about if there[name] != about[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path} is damaged ({error!r}): choose another folder") from error
    if other:
        raise StorageError(f"{folder} holds a search {_differs(other[0], there, about)}: {_REMEDY}")


def _differs(name: str, there: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    if name == "hybridrec":
        return f"of hybridrec {there[name]}, whose figures mean nothing to {about[name]}"
    if name == "data":
        return f"on other data: {there['shape']}, and these are {about['shape']}"
    if name == "seed":
        return f"with the seed {there[name]}, and this one's is {about[name]}"
    return f"with another {name}"
