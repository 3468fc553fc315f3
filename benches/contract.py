"""What makes a figure comparable: one process, interleaved pairs, equal threads, checked answers.

A *side* of a comparison is a function without arguments that does the work once and returns
``(seconds, answer)``. :func:`timed` makes one of a plain call, :func:`typical` of many short ones,
:func:`epoch` of a fit.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

Side = Callable[[], tuple[float, Any]]

THREADS = 2
SCALES = ("smoke", "default", "full")
SCALE = os.environ.get("HYBRIDREC_BENCH", "default")
OUTPUT = Path(__file__).resolve().parent.parent / "bench-output"

_PACKAGES = (
    "implicit", "faiss-cpu", "sentence-transformers", "transformers", "torch",
    "onnxruntime", "openvino", "nncf", "numpy", "scipy", "numba",
)  # fmt: skip


def scaled(*, smoke: Any, default: Any, full: Any) -> Any:
    """The value for the scale that HYBRIDREC_BENCH names: smoke only shows that a suite runs."""
    return {"smoke": smoke, "default": default, "full": full}[SCALE]


PAIRS = scaled(smoke=2, default=5, full=9)


class Clock:
    """pytest-benchmark's timer, moved on only by the seconds that a side measured itself.

    So its rows are those of the ratios, without the thread settings around them, and an epoch's is
    the difference of two fits.
    """

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        """Seconds measured so far."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        self._now += seconds


CLOCK = Clock()


def timed(call: Callable[[], Any], *, blas_threads: int = THREADS) -> Side:
    """A side that is one call; the thread setting is made outside the clock."""

    def side() -> tuple[float, Any]:
        with threadpool_limits(blas_threads, user_api="blas"):
            start = time.perf_counter()
            answer = call()
            return time.perf_counter() - start, answer

    return side


def typical(call: Callable[[int], Any], calls: int) -> Side:
    """A side that is the median (p50) of ``call(0)``, ``call(1)``, ...; the answer is a list."""

    def one(turn: int) -> tuple[float, Any]:
        start = time.perf_counter()
        answer = call(turn)
        return time.perf_counter() - start, answer

    def side() -> tuple[float, list[Any]]:
        seconds, answers = zip(*map(one, range(calls)), strict=True)
        return statistics.median(seconds), list(answers)

    return side


def epoch(fit: Callable[[int], Any], *, more: int = 2, blas_threads: int = THREADS) -> Side:
    """A side that is one epoch of ``fit(epochs)``: (fit(1 + more) - fit(1)) / more.

    So no fixed costs. Where an epoch takes minutes, ``more`` may be 1.
    """

    def side() -> tuple[float, Any]:
        short, _ = timed(lambda: fit(1), blas_threads=blas_threads)()
        long, model = timed(lambda: fit(1 + more), blas_threads=blas_threads)()
        # At the smoke scale noise may exceed an epoch.
        return max((long - short) / more, 1e-9), model

    return side


def other_builds() -> list[str]:
    """The core's builds that this machine can run, but for the one that it runs."""
    from hybridrec import _core

    return [name for name in _core.cpu_builds() if name != _core.build]


@contextmanager
def core_build(name: str) -> Iterator[None]:
    """Everything in hybridrec on another build of its core, as HYBRIDREC_CPU would choose it."""
    from hybridrec import _core

    kernels = [kernel for kernel in _core.__all__ if kernel != "build"]
    module = importlib.import_module(f"hybridrec._core._{name}")
    before = {kernel: getattr(_core, kernel) for kernel in kernels}
    try:
        for kernel in kernels:
            setattr(_core, kernel, getattr(module, kernel))
        yield
    finally:
        for kernel, function in before.items():
            setattr(_core, kernel, function)


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        bench: what is compared.
        data: what it runs on.
        parameters: of both sides, dtype included.
        ours: what of hybridrec was called.
        peer: what it is compared with; "" where there is nothing comparable.
        ours_s: seconds of each of the pairs' first sides, for one ``unit``.
        peer_s: seconds of their second sides.
        unit: what the seconds are for: "call", "epoch", "user", "list".
        answer: how the answers were compared, and what came out.
    """

    bench: str
    data: str
    parameters: str
    ours: str
    peer: str
    ours_s: tuple[float, ...]
    peer_s: tuple[float, ...]
    unit: str
    answer: str

    @property
    def ratio(self) -> tuple[float, float, float] | None:
        """Median, least and greatest of peer / ours over the pairs: above 1 hybridrec is faster."""
        if not self.peer_s:
            return None
        ratios = [peer / ours for ours, peer in zip(self.ours_s, self.peer_s, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)

    def to_json(self) -> dict[str, Any]:
        """The same as plain values, with the ratio."""
        ratio = self.ratio
        named = None if ratio is None else dict(zip(("median", "min", "max"), ratio, strict=True))
        return {**asdict(self), "ratio": named}


def same_ranking(ours: tuple[Any, Any], peer: tuple[Any, Any], *, tolerance: float = 1e-5) -> str:
    """Prove two (ids, scores) answers equal up to ties within rounding; says how equal.

    ``tolerance`` is relative to the largest score. An id may differ only where its score is within
    it of a neighbour's (the last place has a neighbour that is not shown), and in at most one
    place of a hundred: a wrong id beside a right score is a wrong answer.
    """
    ids, scores = (np.asarray(part) for part in ours)
    peer_ids, peer_scores = (np.asarray(part) for part in peer)
    assert ids.shape == peer_ids.shape, f"shapes {ids.shape} and {peer_ids.shape}"
    largest = float(np.abs(peer_scores).max())
    apart = float(np.abs(scores - peer_scores).max()) / largest
    assert apart <= tolerance, f"scores differ by {apart:.2g} of the largest"
    gaps = np.abs(np.diff(peer_scores, axis=1)) / largest
    tied = np.ones(ids.shape, np.bool_)
    tied[:, 0] = gaps[:, 0] <= tolerance
    tied[:, 1:-1] = np.minimum(gaps[:, :-1], gaps[:, 1:]) <= tolerance
    differ = ids != peer_ids
    assert not (differ & ~tied).any(), "ids differ where no scores are tied"
    assert differ.mean() <= 0.01, f"{differ.mean():.4f} of the ids differ"
    return f"ids {1 - differ.mean():.4%} equal, scores to {apart:.1e}"


def card() -> dict[str, Any]:
    """The machine, the versions and the threads of every library that is loaded by now."""
    import hybridrec
    from hybridrec import _core

    threads = [
        f"{Path(pool['filepath']).parent.name}/{pool['internal_api']}: {pool['num_threads']}"
        for pool in threadpool_info()
    ]
    for name, call in (("torch", "get_num_threads"), ("faiss", "omp_get_max_threads")):
        if name in sys.modules:
            threads.append(f"{name}: {getattr(sys.modules[name], call)()}")
    threads.append(f"hybridrec's core: {THREADS}")
    if "implicit" in sys.modules:
        threads.append(f"implicit: {THREADS} (its BLAS 1 while it runs)")
    return {
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "load": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "core build": _core.build,
        "versions": {
            "hybridrec": hybridrec.__version__,
            **{name: _version(name) for name in _PACKAGES},
        },
        "threads": sorted(set(threads)),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", ""),
        "scale": SCALE,
        "pairs": PAIRS,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def table(rows: Sequence[Row]) -> list[str]:
    """The lines of the table of ratios."""
    heads = ("bench", "data", "ours", "peer", "ours / peer a unit", "peer/ours [min-max]")
    cells = [heads, *(_cells(row) for row in rows)]
    wide = [max(len(line[place]) for line in cells) for place in range(len(heads))]
    lines = []
    for number, line in enumerate(cells):
        lines.append("  ".join(f"{cell:<{w}}" for cell, w in zip(line, wide, strict=True)).rstrip())
        if number:
            row = rows[number - 1]
            runs = "1 run" if len(row.ours_s) == 1 else f"{len(row.ours_s)} runs"
            lines.append(f"    {row.parameters}; {row.answer}; {runs} a side")
    return lines


def _cells(row: Row) -> tuple[str, ...]:
    ratio = row.ratio
    seconds = _seconds(row.ours_s)
    if ratio is not None:
        seconds += f" / {_seconds(row.peer_s)}"
    return (
        row.bench,
        row.data,
        row.ours,
        row.peer or "-",
        f"{seconds} a {row.unit}",
        "-" if ratio is None else "{:.2f} [{:.2f}-{:.2f}]".format(*ratio),
    )


def _seconds(values: Sequence[float]) -> str:
    seconds = statistics.median(values)
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def write(name: str, content: object) -> Path:
    """Write ``content`` as JSON into the git-ignored folder of results."""
    OUTPUT.mkdir(exist_ok=True)
    path = OUTPUT / name
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
