"""Servers under load: what is measured of one model, in which order, and what it comes to."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import numpy as np
from contract import card, scaled
from serve.alone import alone
from serve.fitted import Fitted, fitted
from serve.load import Call, Found, Plan, percentile, run
from serve.server import ENVIRONMENT, Server, counted, mean, quantile, serving

LAG = "hybridrec_event_loop_lag_seconds"
CACHE = "hybridrec_prefix_cache"
K = 10
BUDGETS = {"recall": 20.0, "two-stage": 250.0}
"""Milliseconds of a request in the runs with deadlines."""
WARM_UP = scaled(smoke=0.3, default=3.0, full=5.0)
HEALTH_SECONDS = scaled(smoke=0.5, default=3.0, full=5.0)
OVERLOAD_CLIENTS, OVERLOAD_QUEUE = 64, 16


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of one run of the bench.

    Attributes:
        data: set that the model is fitted to.
        clients: numbers of them, each of which is measured.
        batch: requests answered together at most, each of which has a server of its own.
        seconds: of every measurement.
        rounds: measurements of the same, one server after the other.
        budget_ms: of a request in the runs with deadlines; None for the model's of ``BUDGETS``.
        again: fit the model anew.
    """

    data: str = "ml-100k"
    clients: tuple[int, ...] = (1, 8, 32)
    batch: tuple[int, ...] = (32, 1)
    seconds: float = 20.0
    rounds: int = 3
    budget_ms: float | None = None
    again: bool = False


@dataclass(kw_only=True)
class Row:
    """What all rounds of one measurement found.

    Attributes:
        scene: "no deadlines", "deadlines" or "overload".
        batch: requests answered together at most.
        clients: in the closed loop.
        budget_ms: of a request; None for no deadline.
        rates: right answers a second, by round.
        milliseconds: of every right answer.
        statuses: answers by status.
        degraded: answers by what they left out.
        failed: requests without an answer.
        errors: the first of them in words.
        lag: (p50, p99) seconds of the event loop by round: bounds of the buckets they are in.
        together: requests of a batch, mean by round.
        stages: seconds of a batch by stage, mean by round.
        hits: share of prompts that the reranker had kept, by round; NaN without one.
        load_cpu: share of one core that the load took, by round.
        server_cpu: milliseconds of the server's cores a request, by round.
    """

    scene: str
    batch: int
    clients: int
    budget_ms: float | None
    rates: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    degraded: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    errors: list[str] = field(default_factory=list)
    lag: list[list[float]] = field(default_factory=list)
    together: list[float] = field(default_factory=list)
    stages: list[dict[str, float]] = field(default_factory=list)
    hits: list[float] = field(default_factory=list)
    load_cpu: list[float] = field(default_factory=list)
    server_cpu: list[float] = field(default_factory=list)

    def add(self, found: Found) -> None:
        """One more round's answers."""
        self.rates.append(found.right / found.seconds if found.seconds else 0.0)
        self.milliseconds += found.milliseconds
        self.statuses.update(found.statuses)
        self.degraded.update(found.degraded)
        self.failed += found.failed
        self.errors += found.errors[:3]

    @property
    def p(self) -> dict[str, float]:
        """p50, p95, p99 in milliseconds."""
        return {f"p{n}": percentile(self.milliseconds, n / 100) for n in (50, 95, 99)}

    @property
    def right(self) -> int:
        """Answers with a list in them."""
        return self.statuses["200"]

    def share(self, n: float) -> float:
        """``n`` of all answers."""
        total = sum(self.statuses.values())
        return n / total if total else math.nan

    def to_json(self) -> dict[str, Any]:
        """All of it, the single answers' times as percentiles."""
        kept = {name: value for name, value in vars(self).items() if name != "milliseconds"}
        shares = {
            "degraded_share": self.share(sum(self.degraded.values())),
            "refused_share": self.share(self.statuses["429"]),
        }
        return {**kept, **self.p, "answers": self.right, "rate": median(self.rates), **shares}


def calls(users: Sequence[Any], budget_ms: float | None, seed: int) -> list[Call]:
    """Requests of everybody once, in some order: nobody comes again before all others did."""
    shuffled = [users[place] for place in np.random.default_rng(seed).permutation(len(users))]
    more = {} if budget_ms is None else {"budget_ms": budget_ms}
    bodies = (json.dumps({"user": user, "k": K, **more}) for user in shuffled)
    return [Call(path="/v1/recommend", body=body) for body in bodies]


def measure(model: str, settings: Settings) -> dict[str, Any]:
    """All figures of one model, printed as they come."""
    made = fitted(model, settings.data, again=settings.again)
    print(f"\n{model}, {made.about['data']}, {made.about['fusion']}", flush=True)
    without = alone(made.folder, ENVIRONMENT)
    budget = BUDGETS[model] if settings.budget_ms is None else settings.budget_ms
    with ExitStack() as stack:
        servers = {
            batch: stack.enter_context(serving(made.folder, "--batch", str(batch)))
            for batch in settings.batch
        }
        for server in servers.values():
            _warm(server, made)
        health = _health(next(iter(servers.values())))
        print(HEAD, flush=True)
        rows = list(_rows(servers, made, settings, None))
        first = {settings.batch[0]: servers[settings.batch[0]]}
        rows += _rows(first, made, settings, budget)
    rows.append(_overload(made, settings))
    return {
        "model": made.about,
        "settings": {**asdict(settings), "k": K, "warm_up_s": WARM_UP},
        "without the service": without,
        "healthz": health,
        "rows": [row.to_json() for row in rows],
        "ratios": ratios(rows, settings),
        "machine": machine(),
    }


def _warm(server: Server, made: Fitted) -> None:
    """Kernels compile, and the pace of recall is known, before anything is measured."""
    for clients, count in ((1, 4), (32, 64)):
        found = run(Plan(port=server.port, calls=calls(made.users, None, 99), clients=clients,
                         count=count))  # fmt: skip
        if found.right != count:
            raise RuntimeError(f"the server does not answer: {found.statuses} {found.errors}")


def _health(server: Server) -> dict[str, Any]:
    """What load and server do where there is nothing to do: the load's own cost."""
    found = run(
        Plan(
            port=server.port,
            calls=[Call(path="/healthz", method="GET")],
            clients=32,
            seconds=HEALTH_SECONDS,
            warm_up=WARM_UP,
        )
    )
    told = {
        "requests_a_second": round(found.right / found.seconds, 1),
        "p50_ms": percentile(found.milliseconds, 0.5),
        "load_us_a_request": round(1e6 * found.cpu / _all(found, HEALTH_SECONDS), 1),
    }
    print(
        f"/healthz at 32 clients: {told['requests_a_second']:,.0f} requests/s; the load takes "
        f"{told['load_us_a_request']:.0f} us of one core a request",
        flush=True,
    )
    return told


def _all(found: Found, seconds: float) -> float:
    """Requests with those of the warm-up, at the same rate: the CPU time is of both."""
    return max(1.0, found.sent * (seconds + WARM_UP) / seconds)


def _rows(
    servers: dict[int, Server], made: Fitted, settings: Settings, budget: float | None
) -> Iterator[Row]:
    """A row for every number of clients and server; the servers take turns."""
    scene = "no deadlines" if budget is None else "deadlines"
    for clients in settings.clients:
        rows = {batch: Row(scene=scene, batch=batch, clients=clients, budget_ms=budget)
                for batch in servers}  # fmt: skip
        for turn in range(settings.rounds):
            for batch, server in servers.items():
                _measure(rows[batch], server, made, settings.seconds, turn)
        for row in rows.values():
            print(line(row), flush=True)
            yield row


def _measure(row: Row, server: Server, made: Fitted, seconds: float, turn: int) -> None:
    plan = Plan(
        port=server.port,
        calls=calls(made.users, row.budget_ms, turn),
        clients=row.clients,
        seconds=seconds,
        warm_up=WARM_UP,
    )
    before, cpu = server.samples(), server.cpu
    found = run(plan)
    spent, after = server.cpu - cpu, server.samples()
    row.add(found)
    row.lag.append(quantile(before, after, LAG, (0.5, 0.99)))
    row.together.append(mean(before, after, "hybridrec_batch_size"))
    row.stages.append(_stages(before, after))
    hits = counted(before, after, f"{CACHE}_hits_total")
    misses = counted(before, after, f"{CACHE}_misses_total")
    row.hits.append(hits / (hits + misses) if hits + misses else math.nan)
    row.load_cpu.append(found.cpu / (seconds + WARM_UP))
    row.server_cpu.append(1000 * spent / _all(found, seconds))


def _stages(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    begin = "hybridrec_stage_seconds_count"
    labels = [name.removeprefix(begin) for name in after if name.startswith(begin)]
    times = {
        label.partition('"')[2].partition('"')[0]: mean(
            before, after, "hybridrec_stage_seconds", label
        )
        for label in labels
    }
    return {name: seconds for name, seconds in times.items() if not math.isnan(seconds)}


def _overload(made: Fitted, settings: Settings) -> Row:
    """More clients than may wait; who is refused comes again when it was told to."""
    batch = settings.batch[0]
    row = Row(scene="overload", batch=batch, clients=OVERLOAD_CLIENTS, budget_ms=None)
    options = ("--batch", str(batch), "--queue", str(OVERLOAD_QUEUE))
    with serving(made.folder, *options) as server:
        plan = Plan(port=server.port, calls=calls(made.users, None, 99), clients=8, count=64)
        run(plan)
        for turn in range(settings.rounds):
            _measure(row, server, made, settings.seconds, turn)
    print(line(row), flush=True)
    return row


HEAD = (
    f"{'':14}{'batch':>5} {'clients':>7} {'req/s':>8} {'p50':>8} {'p95':>8} {'p99':>8} ms "
    f"{'together':>8} {'degraded':>8} {'429':>6} {'lag p50':>8} {'p99':>6} ms {'load':>5} "
    f"{'server':>8} ms/req {'failed':>6}"
)


def line(row: Row) -> str:
    """A row of the table."""
    p = row.p
    lag = [1000 * max(lags[place] for lags in row.lag) for place in (0, 1)]
    return (
        f"{row.scene:14}{row.batch:5} {row.clients:7} {median(row.rates):8.1f} "
        f"{p['p50']:8.1f} {p['p95']:8.1f} {p['p99']:8.1f}    {median(row.together):8.1f} "
        f"{row.share(sum(row.degraded.values())):8.1%} {row.share(row.statuses['429']):6.1%} "
        f"{lag[0]:8g} {lag[1]:6g}    {median(row.load_cpu):5.0%} {median(row.server_cpu):8.2f}"
        f"        {row.failed:6}{'  ' + row.errors[0][:200] if row.errors else ''}"
    )


def ratios(rows: Sequence[Row], settings: Settings) -> list[dict[str, Any]]:
    """Requests a second with batches over those without, of rounds that followed one another."""
    if len(settings.batch) != 2:
        return []
    found = []
    for clients in settings.clients:
        ours, peer = (
            next(row for row in rows if row.scene == "no deadlines" and row.clients == clients
                 and row.batch == batch)
            for batch in settings.batch
        )  # fmt: skip
        shares = [mine / other for mine, other in zip(ours.rates, peer.rates, strict=True) if other]
        if not shares:
            continue
        found.append(
            {
                "clients": clients,
                "batch": list(settings.batch),
                "median": round(median(shares), 3),
                "min": round(min(shares), 3),
                "max": round(max(shares), 3),
            }
        )
        print(
            "at {clients} clients, batches of {batch[0]} against {batch[1]}: "
            "{median:.2f} [{min:.2f}-{max:.2f}] of the requests a second".format(**found[-1]),
            flush=True,
        )
    return found


def machine() -> dict[str, Any]:
    """Where it ran, and what stands below the server besides hybridrec."""
    below = [
        f"{name} {'used' if importlib.util.find_spec(name) else 'not installed'}"
        for name in ("uvloop", "httptools")
    ]
    told = card()
    told.pop("threads")  # of this process, which computes nothing
    return {**told, "server": ENVIRONMENT, "below": below, "python": sys.version.split()[0]}
