"""Progress bars for work that takes a while; off unless a program switches them on.

A library must not write to its user's terminal, so :func:`track` is silent until the caller
enters ``with hybridrec.progress():``, as the command line and the demo do.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

T = TypeVar("T")

_shown: ContextVar[bool] = ContextVar("hybridrec_progress", default=False)


@contextmanager
def progress(shown: bool = True) -> Iterator[None]:
    """Show a bar on standard error for every step inside that lasts longer than two seconds."""
    token = _shown.set(shown)
    try:
        yield
    finally:
        _shown.reset(token)


def track(steps: Iterable[T], label: str, total: int | None = None) -> Iterable[T]:
    """``steps``, with a bar named ``label`` where :func:`progress` is on."""
    if not _shown.get():
        return steps
    from tqdm import tqdm

    bar: Iterable[T] = tqdm(
        steps, desc=label, total=total, delay=2, leave=False, dynamic_ncols=True
    )
    return bar
