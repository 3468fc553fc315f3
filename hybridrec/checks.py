"""The errors hybridrec raises, and the checks that turn a caller's values into proven ones.

Every message names the argument, what was got, what was wanted, and what to do about it. Nothing
here uses ``assert``: it would vanish under ``python -O``.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import ModuleType

__all__ = [
    "DataSourceError",
    "FitError",
    "HybridrecError",
    "InputError",
    "InputTypeError",
    "MissingExtraError",
    "NotFittedError",
    "StorageError",
    "UnknownIdError",
]


class HybridrecError(Exception):
    """Base of every error that hybridrec raises on purpose."""


class InputError(HybridrecError, ValueError):
    """An argument has the right type and a wrong value."""


class InputTypeError(HybridrecError, TypeError):
    """An argument has a type that cannot be used."""


class UnknownIdError(InputError, LookupError):
    """A user or item id that the model or data set does not know."""


class NotFittedError(HybridrecError, RuntimeError):
    """Something was asked of a model before ``fit``."""


class FitError(HybridrecError, RuntimeError):
    """Training cannot go on; the message says which row or setting is at fault."""


class StorageError(HybridrecError, RuntimeError):
    """A saved model is missing, damaged, locked or newer than this version reads."""


class DataSourceError(HybridrecError, RuntimeError):
    """A known data set can be had from none of its sources, or is not what it should be."""


class MissingExtraError(HybridrecError, ImportError):
    """A stage needs a library from an extra that is not installed."""


def require_extra(module: str, extra: str) -> ModuleType:
    """Import ``module`` or say which extra brings it.

    Raises:
        MissingExtraError: the module cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"this needs {module!r}, which cannot be imported ({error}); "
            f"install it with: pip install 'hybridrec[{extra}]'"
        ) from error


def resolved_device(stage: str, device: str, *, cuda: bool) -> str:
    """What ``device`` stands for: "cpu" or "cuda". ``cuda``: torch sees a GPU. Logs an "auto".

    Raises:
        InputError: "cuda" without a GPU.
    """
    found = "cuda" if cuda else "cpu"
    if device == "auto":
        logging.getLogger("hybridrec").info("%s: device 'auto' is %r", stage, found)
        return found
    if device == "cuda" and found != "cuda":
        raise InputError("device is 'cuda', but torch sees no GPU; wanted 'auto' or 'cpu'")
    return device


def whole_number(name: str, value: object, *, least: int = 0, most: int | None = None) -> int:
    """``value`` as an int within [least, most], or an error that names the argument."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InputTypeError(
            f"{name} is {value!r} ({type(value).__name__}); wanted a whole number >= {least}"
        )
    number = int(value)
    if number < least or (most is not None and number > most):
        limit = f">= {least}" if most is None else f"from {least} to {most}"
        raise InputError(f"{name} is {number}; wanted a whole number {limit}")
    return number


def real_number(
    name: str,
    value: object,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> float:
    """``value`` as a finite float that is >= ``least``, > ``above`` and < ``below``."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InputTypeError(f"{name} is {value!r} ({type(value).__name__}); wanted a number")
    number = float(value)
    if not math.isfinite(number) or number < least or not above < number < below:
        limit = f"> {above:g}" if above > -math.inf else f">= {least:g}"
        limit += f" and < {below:g}" if below < math.inf else ""
        raise InputError(f"{name} is {number}; wanted a finite number {limit}")
    return number


def one_of(name: str, value: object, choices: Collection[str]) -> str:
    """``value`` if it is among ``choices``."""
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise InputError(f"{name} is {value!r}; wanted one of {listed}")
    return value


def distinct_names(name: str, value: object) -> tuple[str, ...] | None:
    """``value`` as a tuple of names, none twice; None, which means all, stays None."""
    if value is None:
        return None
    given = () if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else ()
    if not given or not all(isinstance(each, str) for each in given):
        raise InputTypeError(f"{name} is {value!r}; wanted a list of names, or None for all")
    if len(set(given)) < len(given):
        raise InputError(f"{name} is {given}; wanted at least one name, none twice")
    return given


def float_matrix(name: str, value: object, *, columns: int | None = None) -> NDArray[np.float32]:
    """``value`` as a C-contiguous, finite float32 matrix (rows, columns); copies only if it must.

    Raises:
        InputTypeError: not numeric.
        InputError: not two-dimensional, another width, or NaN / infinite anywhere.
    """
    try:
        matrix = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputTypeError(
            f"{name} is {type(value).__name__}; wanted a numeric matrix ({error})"
        ) from error
    if matrix.ndim != 2:
        raise InputError(f"{name} has shape {matrix.shape}; wanted (rows, columns): reshape it")
    matrix = np.ascontiguousarray(matrix)
    if columns is not None and matrix.shape[1] != columns:
        raise InputError(f"{name} has {matrix.shape[1]} columns; wanted {columns}")
    if not np.isfinite(matrix).all():
        row = int(np.flatnonzero(~np.isfinite(matrix).all(axis=1))[0])
        raise InputError(f"{name}[{row}] has a NaN or infinite value: drop or repair that row")
    return matrix


def codes(name: str, value: object, size: int, *, padded: bool = False) -> NDArray[np.int32]:
    """``value`` as C-contiguous int32 codes in [0, size), or [-1, size) where ``padded``.

    Raises:
        InputTypeError: not integers.
        InputError: a code out of range; names its position.
    """
    array = np.asarray(value)
    if array.size == 0:
        array = array.astype(np.int32)
    if not np.issubdtype(array.dtype, np.integer):
        raise InputTypeError(f"{name} has dtype {array.dtype}; wanted integer codes")
    least = -1 if padded else 0
    if array.size and (array.min() < least or array.max() >= size):
        wrong = np.argwhere((array < least) | (array >= size))[0]
        got = array[tuple(wrong)]
        raise InputError(
            f"{name}[{', '.join(map(str, wrong))}] is {got}; wanted a code from {least} to "
            f"{size - 1}"
        )
    return np.ascontiguousarray(array, dtype=np.int32)


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """A read-only view of ``array``: what travels between stages is not written to."""
    view = array.view()
    view.flags.writeable = False
    return view


def available_cpus() -> int:
    """CPUs that this process may use: its affinity mask, cut by a cgroup-v2 CPU quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()[:2]
        if quota != "max":
            cpus = min(cpus, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2 here: the affinity mask stands
    return cpus


def thread_count(threads: int | None) -> int:
    """``threads``, or every CPU this process may use where it is None."""
    if threads is None:
        return available_cpus()
    return whole_number("threads", threads, least=1, most=1024)
