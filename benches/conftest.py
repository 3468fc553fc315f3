"""Holds every suite to the contract of contract.py, and prints one table of ratios at the end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from contract import CLOCK, PAIRS, SCALE, SCALES, THREADS, Row, Side, card, table, write

ROWS = pytest.StashKey[list[Row]]()
Duel = Callable[..., Row]


def pytest_configure(config: pytest.Config) -> None:
    """Refuse settings under which a figure means nothing: they cannot be mended from here."""
    wrong = []
    wanted = {"OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "passive"}
    wrong += [f"{name}={value} is not set" for name, value in wanted.items()
              if os.environ.get(name, "").lower() != value]  # fmt: skip
    # Some machines set these, and they slow the peers down.
    unwanted = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS")
    wrong += [f"{name} is set" for name in unwanted if name in os.environ]
    if SCALE not in SCALES:
        wrong.append(f"HYBRIDREC_BENCH is {SCALE!r}, wanted one of {', '.join(SCALES)}")
    if wrong:
        raise pytest.UsageError(f"{'; '.join(wrong)}: run the suites by `make bench`")
    # Whatever takes "every CPU this process may use" takes as many as its peer.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    config.stash[ROWS] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A bench takes the time it takes: the tests' limit is not for it."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(0))
        if "duel" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=CLOCK))


@pytest.fixture
def duel(benchmark: Any, request: pytest.FixtureRequest) -> Duel:
    """Run a comparison: a warm-up of both sides that is checked, then interleaved pairs."""

    def run(
        bench: str,
        ours: tuple[str, Side],
        peer: tuple[str, Side] | None,
        *,
        check: Callable[[Any, Any], str],
        data: str,
        parameters: str,
        unit: str = "call",
        per: int = 1,
        pairs: int = PAIRS,
        warm_up: bool = True,
    ) -> Row:
        """A row of the table.

        ``per``: how many of ``unit`` one run of a side works off. ``pairs`` and ``warm_up`` are for
        what takes minutes; without a warm-up the answers of the last pair are checked.
        """
        answers: list[Any] = [None, None]
        seconds: tuple[list[float], list[float]] = ([], [])

        def run_ours() -> None:
            taken, answers[0] = ours[1]()
            seconds[0].append(taken / per)
            CLOCK.advance(seconds[0][-1])

        def run_peer() -> None:
            if peer is not None:
                taken, answers[1] = peer[1]()
                seconds[1].append(taken / per)

        if warm_up:
            run_ours()
            run_peer()
            answer = check(*answers)
            for measured in seconds:
                measured.clear()
        benchmark.group = f"{bench}, {data}"
        benchmark.pedantic(run_ours, setup=run_peer, rounds=pairs)
        if not warm_up:
            answer = check(*answers)
        names = (ours[0], "" if peer is None else peer[0])
        row = Row(bench, data, parameters, *names, *map(tuple, seconds), unit, answer)
        benchmark.extra_info.update(row.to_json())
        request.config.stash[ROWS].append(row)
        return row

    return run


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    machine = card()
    terminalreporter.section("ratios")
    for line in table(rows):
        terminalreporter.write_line(line)
    terminalreporter.write_line("")
    terminalreporter.write_line(
        "peer/ours above 1: hybridrec is faster. Medians over interleaved pairs, after a warm-up "
        "whose answers were compared; float32 where a row names no other."
    )
    for name, value in machine.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {entry}" for key, entry in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        terminalreporter.write_line(f"{name}: {value}")
    path = write("ratios.json", {"machine": machine, "rows": [row.to_json() for row in rows]})
    terminalreporter.write_line(f"written to {path.parent.name}/{path.name}")
