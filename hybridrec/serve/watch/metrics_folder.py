"""The folder in which the workers of one service add up their metrics."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hybridrec.checks import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client looks at it once, when it is imported: set it before there are workers."""


def shared_folder() -> Path | None:
    """The folder that this process shares with others; None where it is alone."""
    named = os.environ.get(VARIABLE)
    return None if named is None else Path(named)


def check_shared(folder: Path) -> None:
    """Make sure that the metrics that this process has just made are in ``folder``.

    Raises:
        InputError: they are not.
    """
    if not any(folder.glob(f"*_{os.getpid()}.db")):
        raise InputError(
            f"{VARIABLE} is {str(folder)!r}, but prometheus_client was imported before it was set: "
            "start the workers within metrics_folder(), as processes of their own"
        )


@contextmanager
def metrics_folder() -> Iterator[Path]:
    """A folder that the workers started in the block share; gone after it.

    Where ``PROMETHEUS_MULTIPROC_DIR`` names one already, that one is emptied of what an earlier
    service has left, and stays.
    """
    given = os.environ.get(VARIABLE)
    with tempfile.TemporaryDirectory(prefix="hybridrec-metrics-") as made:
        folder = Path(given or made)
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.db"):
            left.unlink()
        os.environ[VARIABLE] = str(folder)
        try:
            yield folder
        finally:
            if given is None:
                del os.environ[VARIABLE]
