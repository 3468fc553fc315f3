"""Places that results go to: refused before the work that they are of, not after it."""

from __future__ import annotations

import os
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from hybridrec.checks import InputError

if TYPE_CHECKING:
    from pathlib import Path


def check_file(argument: str, path: Path | None) -> None:
    """Refuse a file that cannot be written; what stands there stays, and nothing new does.

    Raises:
        InputError: it is a folder, is not ours to write, or has no folder to stand in.
    """
    if path is None:
        return
    there = os.path.lexists(path)
    try:
        with path.open("a"):
            pass
        if not there:
            path.unlink()
    except OSError as error:
        raise _refused(argument, path, error) from error


def check_folder(argument: str, path: Path) -> None:
    """Refuse a folder that cannot be written, or made.

    Raises:
        InputError: it, or the nearest folder above it that is there, is not ours to write.
    """
    nearest = next(place for place in (path, *path.parents) if os.path.lexists(place))
    try:
        with TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise _refused(argument, path, error) from error


def _refused(argument: str, path: Path, error: OSError) -> InputError:
    return InputError(f"{argument} {path} cannot be written ({error.strerror}): choose another")
