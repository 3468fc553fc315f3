"""Run by test_storage.py in a process of its own: saves that race, and saves that are killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from hybridrec import storage

FILES = 3


def fill(value: int, pause: float = 0.0) -> Any:
    """Every file says ``value``, so that a mixture of two versions would show."""

    def write(folder: Path) -> dict[str, Any]:
        for number in range(FILES):
            with (folder / f"part{number}").open("w") as file:
                for _ in range(4):
                    file.write(f"{value}\n")
                    file.flush()
                    time.sleep(pause)
        return {"value": value}

    return write


def loaded(root: Path) -> int:
    """The value of the current version, proved whole."""
    folder, model = storage.open_current(root)
    for number in range(FILES):
        text = (folder / f"part{number}").read_text()
        if text != f"{model['value']}\n" * 4:
            raise SystemExit(f"{folder} is a mixture")
    return int(model["value"])


def torn(root: Path) -> bool:
    """Whether a save was cut off half-way."""
    return any(path.name.startswith(".tmp-") for path in (root / "versions").iterdir())


def save(root: Path, first: int, count: int) -> None:
    for value in range(first, first + count):
        print(storage.save_version(root, fill(value), wait=30))


def kill(root: Path, seed: int) -> None:
    """SIGKILL a process that saves without end, at random times."""
    rng = random.Random(seed)
    value, deaths, halves = 0, 0, 0
    storage.save_version(root, fill(value))
    for _ in range(40):
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            while True:
                value += 1
                storage.save_version(root, fill(value, 0.0005))
                os.write(tell, f"{value}\n".encode())
        os.close(tell)
        time.sleep(rng.uniform(0.001, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(told) as pipe:
            saved = [value, *map(int, pipe.read().split())][-1]
        deaths += 1
        halves += torn(root)
        # What save_version returned for is there; the one after it may be.
        value = loaded(root)
        if value not in (saved, saved + 1):
            raise SystemExit(f"saved {saved}, loaded {value}")
    print(deaths, halves)


def die(root: Path, _seed: int) -> None:
    """Die before the n-th call that touches the disk, for every n, in a first and a third save."""
    deaths, halves = 0, 0
    base = root.with_name("base")
    for value in (1, 2):
        storage.save_version(base, fill(value))
    for first in (True, False):
        for at in range(1, 200):
            # From the same start each time, so that no call hides behind the mess of the last.
            home = root.with_name(f"{'first' if first else 'third'}-{at}")
            if not first:
                shutil.copytree(base, home)
            if _death(home, at, value=3):
                break
            deaths += 1
            halves += (home / "versions").exists() and torn(home)
            if not first and loaded(home) not in (2, 3):
                raise SystemExit(f"death {at}: neither the old model nor the new one")
            storage.save_version(home, fill(4))
            if loaded(home) != 4 or torn(home):
                raise SystemExit(f"death {at}: the next save went wrong")
    storage.save_version(root, fill(0))
    print(deaths, halves)


def _death(root: Path, at: int, value: int) -> bool:
    """Whether a save in a child lived through, dying before its call number ``at``."""
    child = os.fork()
    if child == 0:
        left = at
        for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "open"):
            real = getattr(os, name)

            def counted(*arguments: Any, real: Any = real, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    os._exit(9)
                return real(*arguments, **options)

            setattr(os, name, counted)
        storage.save_version(root, fill(value))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, 9):
        raise SystemExit(f"the child ended with {code}")
    return code == 0


if __name__ == "__main__":
    mode, root, *numbers = sys.argv[1:]
    {"save": save, "kill": kill, "die": die}[mode](Path(root), *map(int, numbers))
