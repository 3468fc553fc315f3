"""Half an hour of everything: does memory stay, does anything fail, do answers slow down?"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from contract import scaled
from serve.fitted import Fitted, fitted
from serve.load import NUMBER, Call, Plan, run
from serve.runs import K, machine
from serve.server import Server, counted, serving

FLAT = 0.05
"""That resident memory may move by after the warm-up, either way."""
SETTLED = 0.2
"""Of the time, in which caches fill and allocators find their size."""
_CALLS = scaled(smoke=200, default=5000, full=5000)


@dataclass(frozen=True)
class Sample:
    """A moment of the server: seconds since the beginning, resident megabytes."""

    at: float
    megabytes: float


def soak(model: str, data: str, *, minutes: float, clients: int, again: bool) -> dict[str, Any]:
    """What the server did under everything it offers, and whether that was in order."""
    made = fitted(model, data, again=again)
    seconds = 60 * minutes
    window = max(1.0, seconds / 30)
    plan_calls = mixed(made)
    with serving(made.folder, "--batch", "32") as server:
        before = server.samples()
        with _Watch(server, every=max(0.5, window / 10)) as watch:
            plan = Plan(port=server.port, calls=plan_calls, clients=clients, seconds=seconds,
                        warm_up=0.0, window=window)  # fmt: skip
            found = run(plan)
        after = server.samples()
        size = sum(path.stat().st_size for path in server.log.parent.glob("service.sqlite*"))
    told = {
        "model": made.about,
        "minutes": minutes,
        "clients": clients,
        "answers": found.sent,
        "statuses": found.statuses,
        "failed": found.failed,
        "errors": found.errors,
        "events": counted(before, after, 'hybridrec_events_total{result="accepted"}'),
        "store_mb": round(size / 2**20, 1),
        "memory": memory(watch.samples, seconds),
        "windows": found.windows,
        "machine": machine(),
    }
    told["in order"] = bool(
        not found.failed and set(found.statuses) == {"200"} and told["memory"]["flat"]
    )
    _print(told)
    return told


def mixed(made: Fitted) -> list[Call]:
    """Nine in ten ask for recommendations; the rest tell events, look, rank and search."""
    draw = np.random.default_rng(0)
    items = _items(made)

    def user() -> Any:
        return made.users[draw.integers(len(made.users))]

    def some(n: int) -> list[Any]:
        return [items[place] for place in draw.integers(len(items), size=n)]

    def post(path: str, **body: Any) -> Call:
        return Call(path=path, body=json.dumps(body))

    kinds = [
        (0.60, lambda: post("/v1/recommend", user=user(), k=K)),
        (0.15, lambda: post("/v1/recommend", history=some(8), k=K)),
        (0.05, lambda: post("/v1/recommend", user=user(), k=K, block=some(50), budget_ms=500)),
        (0.05, lambda: post("/v1/recommend", history=some(8), k=K, explain=True)),
        (0.03, lambda: post("/v1/rank", user=user(), candidates=list(dict.fromkeys(some(30))))),
        (0.02, lambda: post("/v1/similar", item=some(1)[0], k=K)),
        (0.06, lambda: post("/v1/events", id=f"soak-{NUMBER}", user=user(), item=some(1)[0])),
        (0.02, lambda: Call(method="GET", path=f"/v1/users/{user()}")),
        (0.02, lambda: Call(method="GET", path="/metrics")),
    ]
    shares = np.array([share for share, _ in kinds])
    chosen = draw.choice(len(kinds), size=_CALLS, p=shares / shares.sum())
    return [kinds[kind][1]() for kind in chosen]


def _items(made: Fitted) -> list[Any]:
    import hybridrec as hr

    ids: list[Any] = hr.load(made.folder).data.items.ids.tolist()
    return ids


def memory(samples: list[Sample], seconds: float) -> dict[str, Any]:
    """What became of the resident megabytes after the warm-up, by the medians of 20 parts."""
    begin = SETTLED * seconds
    width = (seconds - begin) / 20
    parts: dict[int, list[float]] = {}
    for sample in samples:
        if begin <= sample.at < seconds:
            parts.setdefault(int((sample.at - begin) / width), []).append(sample.megabytes)
    medians = [median(part) for _, part in sorted(parts.items())]
    if not medians:
        return {"flat": False, "megabytes": []}
    first = medians[0]
    most, least = max(medians) / first - 1, min(medians) / first - 1
    slope = (
        np.polyfit(np.arange(len(medians)) * width / 3600, medians, 1)[0] if medians[1:] else 0.0
    )
    return {
        "flat": bool(most <= FLAT and -least <= FLAT),
        "first_mb": round(first, 1),
        "last_mb": round(medians[-1], 1),
        "most": round(most, 4),
        "least": round(least, 4),
        "mb_an_hour": round(float(slope), 1),
        "megabytes": [round(value, 1) for value in medians],
    }


class _Watch:
    """Samples a server from a thread of its own while the block runs."""

    def __init__(self, server: Server, every: float) -> None:
        self.samples: list[Sample] = []
        self._server, self._every = server, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        began = time.monotonic()
        while not self._over.wait(self._every):
            self.samples.append(Sample(time.monotonic() - began, self._server.megabytes))


def _print(told: dict[str, Any]) -> None:
    kept = told["memory"]
    print(
        f"{told['minutes']:g} minutes, {told['clients']} clients: {told['answers']:,} answers "
        f"{told['statuses']}, {told['failed']} failed, {told['events']:.0f} events stored"
    )
    for error in told["errors"][:5]:
        print(f"  {error[:300]}")
    if kept["megabytes"]:
        print(
            f"memory after {SETTLED:.0%} of the time: {kept['first_mb']} MB, then between "
            f"{kept['least']:+.1%} and {kept['most']:+.1%}, at the end {kept['last_mb']} MB "
            f"({kept['mb_an_hour']:+.0f} MB an hour)"
        )
    for window in told["windows"]:
        print(
            "  {from:7.0f} s  {answers:7} answers  p50 {p50:8.1f}  p99 {p99:8.1f} ms".format(
                **window
            )
        )
    print("in order" if told["in order"] else "NOT in order")
