"""Model folders that survive crashes, other writers and bit rot.

``root/versions/<id>/`` holds a sealed model: plain files, and a manifest with the size and SHA-256
of each. The one-line file ``root/CURRENT`` names the version in use. A sidecar (``root/<name>/``)
is a folder of the same make, so that it is swapped as atomically, outside the sealed version.

A version is filled under a hidden name, flushed to the disk, renamed, and only then named in
``CURRENT`` by ``os.replace``: a crash at any byte leaves the version before it loadable. Writers
hold ``root/.lock``, which the operating system frees if they die; readers need no lock.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hybridrec.checks import InputError, StorageError, real_number
from hybridrec.sealing import ID, PLAIN, flush, real_folder, seal, verified, write

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    Fill = Callable[[Path], dict[str, Any]]
    FillBeside = Callable[[Path, str], dict[str, Any]]

Read = TypeVar("Read")

_CURRENT, _LOCK, _VERSIONS = "CURRENT", ".lock", "versions"
_TEMPORARY = ".tmp-"


def save_version(
    root: Path, fill: Fill, *, beside: tuple[str, FillBeside] | None = None, wait: float = 10.0
) -> str:
    """Write a new version of the model in ``root`` and make it the current one.

    Args:
        root: a model folder, an empty one, or a path where nothing is yet.
        fill: writes files into the empty folder it is given, and returns what the manifest shall
            say about the model (JSON values). Where it raises, nothing has changed.
        beside: name and ``fill`` of a sidecar to be replaced with it, which is told the version's
            id too: who sees that the version is current finds it there.
        wait: seconds to wait for another process that is writing here.

    Returns:
        The version's id, which is the name of its folder. This version and the one that was
        current before it stay; older ones and what interrupted saves left are removed.

    Raises:
        InputError: the sidecar's name, as :func:`write_sidecar`.
        StorageError: ``root`` is somebody else's folder, another writer holds it, a file cannot
            be written, or ``fill`` left a link or a name that is not plain.
    """
    root = Path(root)
    write_beside: Callable[[str], None] | None = None
    if beside is not None:
        name, fill_beside = beside
        home = root / _sidecar(name)

        def write_beside(version: str) -> None:
            _publish_sidecar(home, lambda folder: fill_beside(folder, version))

    with _writing(root, wait):
        return _publish(root, fill, keep_previous=True, beside=write_beside)


def check_root(root: Path) -> None:
    """Refuse a path that :func:`save_version` would refuse, before the work that is to go there.

    Raises:
        StorageError: there is something at ``root`` that is neither a model nor an empty folder.
    """
    root = Path(root)
    if not os.path.lexists(root):
        return
    if not root.is_dir():
        raise StorageError(f"{root} is not a folder: choose another path")
    names = set(os.listdir(root))
    # A first save that was interrupted left no CURRENT, and nothing but these two.
    if not {_CURRENT, _VERSIONS} <= names and names - {_LOCK, _VERSIONS}:
        raise StorageError(
            f"{root} holds {min(names - {_LOCK, _VERSIONS})!r} and is not a model folder: choose a "
            "new or an empty folder"
        )


def open_current(root: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of the current version and what ``fill`` said about the model.

    Every file is proved to be the one that was saved. The folder stays until two further versions
    have been saved.

    Raises:
        StorageError: no model here, a file is missing, extra, truncated or changed (names it), a
            link, or a format that this hybridrec cannot read.
    """
    return _open(Path(root))


def open_version(root: Path, version: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a version, current or not, and what ``fill`` said about the model.

    Raises:
        StorageError: there is none of that id, or it is damaged, as :func:`open_current`.
    """
    folder = _version(Path(root), version)
    try:
        return folder, verified(folder)
    except OSError as error:
        raise StorageError(f"cannot read {folder}: {error}") from error


def current(root: Path) -> str:
    """The id of the current version. Reads one line: nothing is proved.

    Raises:
        StorageError: no model here.
    """
    return _current(Path(root))


def versions(root: Path) -> list[str]:
    """The ids of the versions that are there, oldest first.

    Raises:
        StorageError: no model here.
    """
    root = Path(root)
    _current(root)
    try:
        return sorted(path.name for path in (root / _VERSIONS).iterdir() if ID.fullmatch(path.name))
    except OSError as error:
        raise StorageError(f"cannot read {root / _VERSIONS}: {error}") from error


def set_current(root: Path, version: str, *, wait: float = 10.0) -> None:
    """Make a version that is there the current one: back to the one before, or forward again.

    Sidecars stay as they are. The next save keeps this version and no other beside its own.

    Raises:
        StorageError: there is none of that id or it is damaged, as :func:`open_version`; another
            writer holds the folder. Nothing has changed then.
    """
    root = Path(root)
    _current(root)
    with _writing(root, wait):
        open_version(root, version)
        _point(root, version)


def write_sidecar(root: Path, name: str, fill: Fill, *, wait: float = 10.0) -> None:
    """Replace the sidecar ``name`` of the model in ``root``; the one before it is erased.

    A sidecar does not know which version it was written for: where that matters, let ``fill``
    return the version's id.

    Raises:
        InputError: ``name`` is not a plain name, or one that the model folder uses itself.
        StorageError: as :func:`save_version`; or ``root`` holds no model yet.
    """
    root = Path(root)
    _current(root)
    home = root / _sidecar(name)
    with _writing(root, wait):
        _publish_sidecar(home, fill)


def read_sidecar(root: Path, name: str) -> tuple[Path, dict[str, Any]] | None:
    """The folder of the sidecar and what its ``fill`` returned; None where there is none.

    Raises:
        StorageError: it is damaged, as :func:`open_current`.
    """
    home = Path(root) / _sidecar(name)
    if not os.path.lexists(home / _CURRENT):
        return None
    real_folder(home)
    return _open(home)


def from_sidecar(
    root: Path, name: str, read: Callable[[Path, dict[str, Any]], Read]
) -> Read | None:
    """What ``read`` makes of the sidecar's folder and manifest; None where there is no sidecar.

    It is erased under its readers when another one is written: then that one is read.

    Raises:
        StorageError: as :func:`read_sidecar`; or ``read`` finds it damaged.
    """
    while True:
        saved = read_sidecar(root, name)
        if saved is None:
            return None
        try:
            return read(*saved)
        except StorageError:
            if saved[0].exists():
                raise


def remove_sidecar(root: Path, name: str, *, wait: float = 10.0) -> None:
    """Erase the sidecar ``name``, if there is one.

    Raises:
        StorageError: no model here, another writer holds it, or the folder is not a sidecar.
    """
    root = Path(root)
    home = root / _sidecar(name)
    _current(root)
    with _writing(root, wait):
        if not os.path.lexists(home):
            return
        _claim(home)
        real_folder(home)
        # Renamed first: half a sidecar must never be found under its name.
        gone = root / _VERSIONS / f"{_TEMPORARY}{secrets.token_hex(8)}"
        os.rename(home, gone)
        flush(root)
        shutil.rmtree(gone)


# -- writing ----------------------------------------------------------------------------------


@contextmanager
def _writing(root: Path, wait: float) -> Iterator[None]:
    """Alone in ``root`` until the block ends; an OSError inside becomes a StorageError."""
    wait = real_number("wait", wait, least=0.0)
    try:
        _claim(root)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(root / _LOCK, flags, 0o644), "r+", encoding="utf-8") as lock:
            _take(lock, root, wait)
            try:
                yield
            finally:
                # Not left to close(): a child forked by ``fill`` would keep the lock.
                fcntl.flock(lock, fcntl.LOCK_UN)
    except OSError as error:
        raise StorageError(
            f"cannot write {root}: {error}; a model that stood there before is still whole"
        ) from error


def _take(lock: Any, root: Path, wait: float) -> None:
    """Lock the open file ``lock`` and write into it who has it."""
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                lock.seek(0)
                raise StorageError(
                    f"{root} is being written by {lock.read().strip() or 'another process'}; "
                    f"waited {wait:g} s: try again when it is done"
                ) from error
        time.sleep(0.02)
    lock.truncate(0)
    since = datetime.now(UTC).isoformat(timespec="seconds")
    lock.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
    lock.flush()


def _claim(home: Path) -> None:
    """Make ``home``, or see that it is a folder of ours: never write into somebody else's."""
    if not os.path.lexists(home):
        home.mkdir(parents=True, exist_ok=True)
        flush(home.parent)
    check_root(home)
    if os.path.lexists(home / _VERSIONS):
        real_folder(home / _VERSIONS)


def _publish_sidecar(home: Path, fill: Fill) -> None:
    _claim(home)
    real_folder(home)
    _publish(home, fill, keep_previous=False)


def _publish(
    home: Path,
    fill: Fill,
    *,
    keep_previous: bool,
    beside: Callable[[str], None] | None = None,
) -> str:
    versions = home / _VERSIONS
    versions.mkdir(exist_ok=True)
    _sweep(versions, keep=None)
    temporary = versions / f"{_TEMPORARY}{secrets.token_hex(8)}"
    temporary.mkdir()
    try:
        model = fill(temporary)
        version = seal(temporary, model)
        os.rename(temporary, versions / version)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)
    flush(versions)
    try:
        previous: str | None = _current(home)
    except StorageError:
        previous = None
    # A first save that is interrupted has to leave what another one recognises: no sidecar.
    if beside is not None and previous is not None:
        beside(version)
    _point(home, version)
    if beside is not None and previous is None:
        beside(version)
    if not keep_previous:
        _sweep(versions, keep={version})
    elif previous is not None:
        _sweep(versions, keep={version, previous})
    # With CURRENT unreadable nothing says which of the others was good: none is removed.
    return version


def _point(home: Path, version: str) -> None:
    """Let ``CURRENT`` name ``version``, all at once."""
    pointer = home / _VERSIONS / f"{_TEMPORARY}{_CURRENT}"
    write(pointer, f"{version}\n".encode())
    os.replace(pointer, home / _CURRENT)
    flush(home)


def _sweep(versions: Path, keep: Collection[str] | None) -> None:
    """Remove what interrupted saves left, and, where ``keep`` is given, all other versions."""
    for path in list(versions.iterdir()):
        old = keep is not None and ID.fullmatch(path.name) is not None and path.name not in keep
        if not old and not path.name.startswith(_TEMPORARY):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


# -- reading ----------------------------------------------------------------------------------


def _open(home: Path) -> tuple[Path, dict[str, Any]]:
    while True:
        version = _current(home)
        folder = home / _VERSIONS / version
        try:
            real_folder(folder.parent)
            return folder, verified(folder)
        except (StorageError, OSError) as error:
            # A writer may have removed this version meanwhile; then CURRENT names another one.
            if _current(home) != version:
                continue
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"cannot read {folder}: {error}") from error


def _current(home: Path) -> str:
    """The id in ``CURRENT``."""
    pointer = home / _CURRENT
    if pointer.is_symlink():
        raise StorageError(f"{pointer} is a link; wanted the file that save() wrote: save again")
    try:
        version = pointer.read_bytes().decode("ascii").removesuffix("\n")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StorageError(
            f"{home} holds no saved model (it has no {_CURRENT}): give the folder that save() "
            "wrote; where its first save was interrupted, save again"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"cannot read {pointer}: {error}") from error
    if not PLAIN.fullmatch(version):
        raise StorageError(f"{pointer} is damaged: it names {version!r}, which is no version")
    return version


def _version(root: Path, version: str) -> Path:
    """The folder of a version that is there."""
    there = versions(root)
    if version not in there:
        raise StorageError(f"{root} holds no version {version!r}; there are {there}")
    real_folder(root / _VERSIONS)
    return root / _VERSIONS / version


def _sidecar(name: str) -> str:
    if not isinstance(name, str) or not PLAIN.fullmatch(name) or name in {_CURRENT, _VERSIONS}:
        raise InputError(f"sidecar name {name!r}; wanted a plain name that is not the model's own")
    return name
