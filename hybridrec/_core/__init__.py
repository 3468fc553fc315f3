"""The compiled core: one build is picked for this CPU when the package is imported.

The same C++ is compiled for several instruction sets. ``HYBRIDREC_CPU=baseline|avx2|avx512``
forces one of them; ``build`` names the one picked. Results have the same bits for any thread
count, but may differ in the last bits between builds.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridrec._core._baseline import (
        Catalogue,
        Linear8,
        Linear16,
        Linear32,
        NotPositiveDefiniteError,
        attend,
        cpu_builds,
        feed_forward,
        gram,
        has_linear8,
        has_linear16,
        has_linear32,
        rotate,
        select_top_k,
        solve_cg,
        solve_exact,
        top_k,
        transpose,
    )

__all__ = [
    "Catalogue",
    "Linear8",
    "Linear16",
    "Linear32",
    "NotPositiveDefiniteError",
    "attend",
    "feed_forward",
    "build",
    "cpu_builds",
    "gram",
    "has_linear8",
    "has_linear16",
    "has_linear32",
    "rotate",
    "select_top_k",
    "solve_cg",
    "solve_exact",
    "top_k",
    "transpose",
]

_NAMES = ("baseline", "avx2", "avx512")


def _load(name: str) -> Any:
    try:
        return importlib.import_module(f"hybridrec._core._{name}")
    except ImportError as error:
        raise ImportError(
            f"the compiled core hybridrec._core._{name} cannot be imported ({error}); build it "
            "with `pip install -e .` in the source folder, or install hybridrec again"
        ) from error


def _pick(runnable: tuple[str, ...], wanted: str | None) -> str:
    """The build to use: ``wanted``, or else the first of ``runnable`` (best first)."""
    if not wanted:
        return runnable[0]
    if wanted not in _NAMES:
        raise ImportError(
            f"HYBRIDREC_CPU is {wanted!r}; wanted one of {', '.join(_NAMES)}, or unset"
        )
    if wanted not in runnable:
        raise ImportError(
            f"HYBRIDREC_CPU is {wanted!r}, which this machine cannot run; it runs "
            f"{', '.join(runnable)}: choose one of these, or unset it"
        )
    return wanted


build = _pick(_load("baseline").cpu_builds(), os.environ.get("HYBRIDREC_CPU"))
_module = _load(build)
for _name in __all__:
    if _name != "build":
        globals()[_name] = getattr(_module, _name)
