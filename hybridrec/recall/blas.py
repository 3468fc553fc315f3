"""How many threads the process' BLAS may use, for as long as one of ours needs it so."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import scipy.linalg  # noqa: F401 - its BLAS is another than NumPy's, and is found only if loaded
from threadpoolctl import ThreadpoolController

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCK = threading.Lock()
"""Two settings of the process' BLAS at once would each put back what the other made."""


@contextmanager
def blas_threads(threads: int) -> Iterator[None]:
    """Hold NumPy's and SciPy's BLAS to ``threads`` threads inside.

    BLAS does not see a container's quota: left alone, it waits for threads that have no CPU.
    """
    with _LOCK, _blas().limit(limits=threads):
        yield


@cache
def _blas() -> ThreadpoolController:
    """NumPy's BLAS and SciPy's."""
    return ThreadpoolController().select(user_api="blas")
