"""The service under load from another process: with batches against without, answers compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from contract import Side, same_ranking, scaled
from serve.fitted import MODELS, Fitted, fitted
from serve.load import Plan, run
from serve.runs import K, calls
from serve.server import Server, serving

CLIENTS = scaled(smoke=8, default=32, full=32)
BATCHES = (32, 1)
COUNTS = {
    "recall": scaled(smoke=64, default=1600, full=6400),
    "two-stage": scaled(smoke=16, default=96, full=320),
}
PRECISION = {"recall": "float32", "two-stage": "the reranker's auto"}


@pytest.fixture(params=MODELS)
def scene(request: pytest.FixtureRequest) -> Iterator[tuple[str, Fitted, dict[int, Server]]]:
    """A model and a server of it for each size of batch."""
    made = fitted(request.param, "ml-100k")
    with ExitStack() as stack:
        yield (
            request.param,
            made,
            {
                batch: stack.enter_context(serving(made.folder, "--batch", str(batch)))
                for batch in BATCHES
            },
        )


def side(server: Server, made: Fitted, count: int) -> Side:
    """``count`` requests, the same for every side and run."""
    plan = Plan(
        port=server.port,
        calls=calls(made.users, None, 0),
        clients=CLIENTS,
        count=count,
        keep=True,
    )

    def measured() -> tuple[float, Any]:
        found = run(plan)
        assert found.statuses == {"200": count}, found.errors
        bodies = [found.bodies[str(number)] for number in range(count)]
        return found.seconds, answer_of(bodies)

    return measured


def answer_of(bodies: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """(n, K) item ids and scores."""
    lists = [body["items"] for body in bodies]
    assert all(len(items) == K for items in lists)
    ids = np.array([[found["item"] for found in items] for items in lists])
    scores = np.array([[found["score"] for found in items] for items in lists])
    return ids, scores


def test_batches_against_none(duel: Any, scene: tuple[str, Fitted, dict[int, Server]]) -> None:
    model, made, servers = scene
    count = COUNTS[model]
    duel(
        f"service, {model}",
        ("batches of 32", side(servers[32], made, count)),
        ("batches of 1", side(servers[1], made, count)),
        check=lambda mine, other: same_ranking(mine, other, tolerance=1e-4),
        data=made.about["data"],
        parameters=(
            f"POST /v1/recommend on loopback, {CLIENTS} clients in another process, {count} users, "
            f"k={K}, {made.about['candidates']} candidates, {PRECISION[model]}"
        ),
        unit="request",
        per=count,
    )
