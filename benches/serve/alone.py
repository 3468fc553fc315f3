"""What a model takes without a service around it, and the arithmetic it cannot do without.

    python benches/serve/alone.py bench-output/serve/ml-100k-two-stage-default/model

A process of its own, so that no figure of the service has these threads beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import os

import numpy as np

BATCH = 32
_SECONDS = 6.0


def alone(model: Path, environment: dict[str, str]) -> dict[str, Any]:
    """What this module prints of ``model``."""
    done = subprocess.run(
        [sys.executable, __file__, str(model)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def answering(folder: Path) -> dict[str, float]:
    """Milliseconds that :func:`hybridrec.serve.answers.answering.answer` takes, a request.

    "one": it comes alone. "of 32": it comes with others.
    """
    import hybridrec as hr
    from hybridrec.serve.answers.answering import answer
    from hybridrec.serve.answers.asking import Ask
    from hybridrec.serve.versions.models import load_model

    loaded = load_model(folder)
    data = hr.load(folder).data
    users = np.random.default_rng(0).permutation(np.flatnonzero(data.histories.lengths))
    starts, items = data.histories.indptr, data.items.ids_of(data.histories.items).tolist()
    asks = [
        Ask(user=data.users.ids[code].item(), history=tuple(items[starts[code] : starts[code + 1]]))
        for code in users
    ]
    answer(loaded, asks[-BATCH:])
    answer(loaded, asks[-1:])
    found = {}
    for name, size in (("one", 1), (f"of {BATCH}", BATCH)):
        taken, began = [], time.perf_counter()
        for first in range(0, len(asks) - size, size):
            start = time.perf_counter()
            answer(loaded, asks[first : first + size])
            taken.append(1000 * (time.perf_counter() - start) / size)
            if time.perf_counter() - began > _SECONDS:
                break
        found[name] = round(median(taken), 3)
    return found


def work(folder: Path) -> dict[str, Any]:
    """The multiply-adds of one request's packed forward pass, and what it is made of.

    Every token meets every weight of a layer; in the attention a candidate's meet its own and the
    prompt's, and the prompt's one another: a product for the scores and one for the values.
    """
    import hybridrec as hr

    engine = hr.load(folder)
    pipeline, reranker, data = engine.pipeline, engine.reranker, engine.data
    if not isinstance(reranker, hr.CrossEncoder):
        return {}
    users = np.flatnonzero(data.histories.lengths)[:256]
    known = data.histories.select(users)
    queries = hr.Queries(known, data.n_items, users=users.astype(np.int32), exclude=known)
    ordered = pipeline.ranking(queries, rerank=False).answer.head(pipeline.rerank_depth)
    prompts = reranker._reading(queries).prompts.lengths.astype(float)
    own = np.where(ordered.valid, reranker._catalogue().rows.lengths[ordered.items], 0).astype(
        float
    )
    network = reranker._network()
    shape = network.model.config
    wide, inner, layers = shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers
    tokens = prompts + own.sum(axis=1)
    weights = layers * (4 * wide * wide + 2 * wide * inner)
    pairs = prompts**2 + (own * (own + prompts[:, None])).sum(axis=1)
    dense, attention = tokens * weights, 2 * layers * wide * pairs
    return {
        "precision": network.precision,
        "candidates": float(ordered.valid.sum(axis=1).mean()),
        "prompt_tokens": float(prompts.mean()),
        "tokens": float(tokens.mean()),
        "dense_gmac": float(dense.mean() / 1e9),
        "attention_gmac": float(attention.mean() / 1e9),
        "prompt_gmac": float((prompts * weights).mean() / 1e9),
    }


def rates() -> dict[str, float]:
    """G multiply-adds a second that this machine's best library does, by precision.

    Of 8-bit integers the better of what torch does and twice its bf16: an instruction multiplies
    twice as many.
    """
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    rows, wide, inner = 2048, 384, 1536
    left, right = torch.randn(rows, wide), torch.randn(wide, inner)
    low = left.bfloat16(), right.bfloat16()
    whole = (left * 30).to(torch.int8), (right * 30).to(torch.int8)
    found = {
        "fp32": _rate(lambda: left @ right, rows * wide * inner),
        "bf16": _rate(lambda: low[0] @ low[1], rows * wide * inner),
        "int8": _rate(lambda: torch._int_mm(*whole), rows * wide * inner),
    }
    found["int8"] = max(found["int8"], 2 * found["bf16"])
    return {name: round(rate, 1) for name, rate in found.items()}


def _rate(product: Callable[[], object], macs: int) -> float:
    product()
    best = float("inf")
    for _ in range(100):
        start = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - start)
    return macs / best / 1e9


def floor(found: dict[str, Any], speed: dict[str, float]) -> dict[str, float]:
    """Milliseconds of the multiply-adds alone, each at its precision's rate; attention is fp32."""
    if not found:
        return {}
    dense = 1000 * found["dense_gmac"] / speed[found["precision"]]
    attention = 1000 * found["attention_gmac"] / speed["fp32"]
    return {
        "dense_ms": round(dense, 1),
        "attention_ms": round(attention, 1),
        "request_ms": round(dense + attention, 1),
        "requests_a_second": round(1000 / (dense + attention), 1),
    }


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    folder = parser.parse_args(given).model
    found = work(folder)
    speed = rates() if found else {}
    told = {"answer_ms": answering(folder), "work": found, "rates": speed}
    json.dump({**told, "floor": floor(found, speed)}, sys.stdout)


if __name__ == "__main__":
    main()
