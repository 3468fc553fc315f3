"""``hybridrec serve`` as a process: started, looked at from outside, stopped."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from contract import THREADS

STARTS = 300.0
"""Seconds in which a server must be up: it loads a model, and its kernels may have to compile."""
STOPS = 60.0
ENVIRONMENT = {"OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "passive"}

_LISTENING = re.compile(r"Listening on http://[^\s:]+:(\d+)")
_SAMPLE = re.compile(r"^(\w+)(\{[^}]*\})? (\S+)$", re.MULTILINE)
_BOUND = re.compile(r'le="([^"]+)"')
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

Samples = dict[str, float]


@dataclass(frozen=True)
class Server:
    """One that is up.

    Attributes:
        port: of 127.0.0.1.
        process: it.
        log: what it has written.
    """

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def get(self, path: str) -> str:
        """The body of ``path``."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            text: str = answer.read().decode()
        return text

    def samples(self) -> Samples:
        """What ``/metrics`` says, by name and labels."""
        return {
            name + labels: float(value)
            for name, labels, value in _SAMPLE.findall(self.get("/metrics"))
        }

    @property
    def megabytes(self) -> float:
        """Resident."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * _PAGE / 2**20

    @property
    def cpu(self) -> float:
        """Seconds of it so far, of all of its threads."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / _TICKS


@contextmanager
def serving(model: Path, *options: str) -> Iterator[Server]:
    """A server of ``model``; its store is new and gone afterwards.

    Args:
        model: the folder.
        options: of ``hybridrec serve``.

    Raises:
        RuntimeError: it did not start, or stopped with an error; says what it wrote.
    """
    with tempfile.TemporaryDirectory(prefix="hybridrec-bench-") as made:
        folder = Path(made)
        log, said = folder / "log", folder / "said"
        command = [sys.executable, "-m", "hybridrec.cli", "serve", str(model), "--port", "0"]
        command += ["--store", str(folder / "service.sqlite"), *options]
        with log.open("wb") as errors, said.open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=errors, env={**os.environ, **ENVIRONMENT}
            )
        try:
            yield Server(_port(process, said, log), process, log)
            _stop(process, log)
        finally:
            process.kill()
            process.wait()


def _port(process: subprocess.Popen[bytes], said: Path, log: Path) -> int:
    """Where it listens, as soon as it does."""
    until = time.monotonic() + STARTS
    while time.monotonic() < until and process.poll() is None:
        found = _LISTENING.search(said.read_text(errors="replace"))
        if found is not None:
            return int(found[1])
        time.sleep(0.1)
    raise RuntimeError(f"`hybridrec serve` is not up: {_tail(said)}{_tail(log)}")


def _stop(process: subprocess.Popen[bytes], log: Path) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(STOPS)
    except subprocess.TimeoutExpired:
        raise RuntimeError(
            f"it does not stop within {STOPS:g} s of SIGTERM: {_tail(log)}"
        ) from None
    # Told to stop by a signal, it may say so.
    if code not in (0, -signal.SIGTERM):
        raise RuntimeError(f"it stopped with {code}: {_tail(log)}")


def _tail(path: Path) -> str:
    return path.read_text(errors="replace")[-3000:]


# -- what the counts of two moments say ---------------------------------------------------------


def counted(before: Samples, after: Samples, name: str) -> float:
    """How much a counter rose."""
    return after.get(name, 0.0) - before.get(name, 0.0)


def mean(before: Samples, after: Samples, name: str, labels: str = "") -> float:
    """Of what a histogram saw in between; NaN of nothing."""
    n = counted(before, after, f"{name}_count{labels}")
    return counted(before, after, f"{name}_sum{labels}") / n if n else math.nan


def quantile(before: Samples, after: Samples, name: str, shares: Sequence[float]) -> list[float]:
    """The upper bound of each quantile's bucket; NaN of nothing, inf above the last."""
    bounds = sorted(
        (float(bound[1]), counted(before, after, sample))
        for sample in after
        if sample.startswith(f"{name}_bucket") and (bound := _BOUND.search(sample)) is not None
    )
    total = bounds[-1][1] if bounds else 0.0
    if not total:
        return [math.nan] * len(shares)
    return [
        next(bound for bound, below in bounds if below >= share * total - 1e-9) for share in shares
    ]
