"""A folder of plain files under seal: a manifest with the size and SHA-256 of each.

The folder's name carries the hash of the manifest, so that no byte below it can change unseen.
Where sealed folders stand and which one is in use is :mod:`hybridrec.storage`'s business.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridrec import __version__
from hybridrec.checks import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Manifest = dict[str, Any]

FORMAT = 1
MIGRATIONS: dict[int, Callable[[Manifest], Manifest]] = {}
"""Format n -> what turns its manifest into one of format n + 1 (in memory; files stay sealed)."""

PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
ID = re.compile(r"\d{8}T\d{12}Z-([0-9a-f]{16})")  # UTC to the microsecond, hash of the manifest
_MANIFEST = "manifest.json"


def seal(folder: Path, model: dict[str, Any]) -> str:
    """Make every byte of ``folder`` durable, write its manifest, and return its id.

    The folder is sealed once it bears the id as its name; ids sort by time.

    Raises:
        StorageError: a link, a name that is not plain, or a ``model`` that is not JSON.
    """
    now = datetime.now(UTC)
    files = {}
    for name, path in _files(folder):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
            files[name] = {"size": os.fstat(file.fileno()).st_size, "sha256": digest}
    if _MANIFEST in files:
        raise StorageError(f"fill wrote {_MANIFEST}, which is the folder's own: use another name")
    manifest = {
        "format": FORMAT,
        "hybridrec": __version__,
        "created": now.isoformat(),
        "model": model,
        "files": files,
    }
    try:
        content = (json.dumps(manifest, indent=1, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise StorageError(f"what fill returned cannot be written as JSON: {error}") from error
    write(folder / _MANIFEST, content)
    for parent, _, _ in os.walk(folder, topdown=False):
        flush(Path(parent))
    return f"{now:%Y%m%dT%H%M%S%fZ}-{_hash(content)}"


def verified(folder: Path) -> dict[str, Any]:
    """The ``model`` that was sealed in, once every file is proved to be the one that was.

    Raises:
        StorageError: a file is missing, extra, truncated or changed (names it), a link, or a
            format that this hybridrec cannot read.
    """
    real_folder(folder)
    manifest = _manifest(folder)
    found = dict(_files(folder))
    del found[_MANIFEST]
    try:
        model: dict[str, Any] = manifest["model"]
        listed = {name: (file["size"], file["sha256"]) for name, file in manifest["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise StorageError(f"{folder / _MANIFEST} is damaged: {error!r}") from error
    for name in sorted(listed.keys() ^ found.keys()):
        what = "is missing" if name in listed else "does not belong to the model"
        raise StorageError(f"{folder / name} {what}: restore the folder or save the model again")
    for name, path in found.items():
        size, digest = listed[name]
        with path.open("rb") as file:
            got = os.fstat(file.fileno()).st_size
            if got != size or hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise StorageError(
                    f"{path} was changed ({got} bytes; wanted {size} bytes with the hash in the "
                    "manifest): restore it or save the model again"
                )
    return model


def _manifest(folder: Path) -> Manifest:
    """The manifest, proved by the folder's name and brought to the format of today."""
    path = folder / _MANIFEST
    if path.is_symlink() or not path.is_file():
        raise StorageError(f"{path} is missing or a link: restore it or save the model again")
    try:
        content = path.read_bytes()
        manifest: Manifest = json.loads(content)
        number = int(manifest["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path} is damaged: {error!r}") from error
    # Before the hash is looked at: a newer format may seal its manifest another way.
    if number > FORMAT:
        raise StorageError(
            f"{folder} has format {number}, made by a newer hybridrec "
            f"({manifest.get('hybridrec')}); this one reads up to {FORMAT}: upgrade hybridrec"
        )
    sealed = ID.fullmatch(folder.name)
    if sealed is None or _hash(content) != sealed[1]:
        raise StorageError(
            f"{path} was changed, or its folder renamed: the folder's name holds its hash; restore "
            "it or save the model again"
        )
    for step in range(number, FORMAT):
        if step not in MIGRATIONS:
            raise StorageError(f"{folder} has format {number}, which this hybridrec cannot read")
        manifest = MIGRATIONS[step](manifest)
    return manifest


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _files(folder: Path, under: str = "") -> Iterator[tuple[str, Path]]:
    """(name relative to ``folder``, path) of every file in it; refuses all but plain ones."""
    for path in sorted(folder.iterdir()):
        if not PLAIN.fullmatch(path.name):
            raise StorageError(
                f"{path} is not a plain name; wanted letters, digits, '_', '-' and '.', the first "
                "a letter, digit or '_'"
            )
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise StorageError(f"{path} is a link or a device; wanted plain files: copy it")
        if path.is_dir():
            yield from _files(path, f"{under}{path.name}/")
        else:
            yield f"{under}{path.name}", path


def real_folder(folder: Path) -> None:
    """Refuse anything but a folder that stands here itself.

    Raises:
        StorageError: it is missing, a file or a link.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise StorageError(f"{folder} is missing, a file or a link; wanted a folder save() made")


def write(path: Path, content: bytes) -> None:
    """Write a file and make its content durable (its name is the folder's: :func:`flush`)."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def flush(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
