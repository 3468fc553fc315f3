"""The steps of a data set's figures, each of which keeps what it found."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from contract import OUTPUT, SCALE, card
from numpy.typing import NDArray
from scenes import SCENES, Scene

import hybridrec as hr
from hybridrec.evaluation.metrics import per_user

K = 10
LLM_USERS = {"amazon-games": 5000}
"""Test users of the steps with an LLM, where not all: a seeded sample."""
_BATCH = 2048

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Step:
    """A recommender to fit and evaluate once a seed.

    Attributes:
        parts: of :meth:`scenes.Scene.engine`.
        seeds: how many of the seeds; None takes all that were asked for.
        slices: also look at parts of the users and targets.
    """

    parts: Mapping[str, Any]
    seeds: int | None = None
    slices: bool = False


def steps_of(scene: Scene) -> dict[str, Step]:
    """The steps of ``scene``, the dearest last."""
    names = [stage.name for stage in (*scene.recallers(0), *scene.signals())]
    return {
        "fast": Step({}, slices=True),
        **{f"without {name}": Step({"without": name}, seeds=1) for name in names},
        "sequence": Step({"sequence": True}, slices=True),
        "everything": Step({"sequence": True, "llm": True}, slices=True),
    }


STEPS = ("fast", "ablation", "sequence", "everything")


def run(data: str, group: str, seeds: Sequence[int]) -> None:
    """The steps of ``group`` that are not there yet."""
    scene = SCENES[data]
    for name, step in steps_of(scene).items():
        if group not in (name, "ablation" if name.startswith("without ") else name):
            continue
        for seed in seeds[: step.seeds]:
            if not (folder_of(data) / f"{name}-{seed}.json").exists():
                _run(data, name, step, seed)


def folder_of(data: str) -> Any:
    """Where the steps of ``data`` keep what they found; of the smoke scale apart."""
    return OUTPUT / "quality" / (data if SCALE != "smoke" else f"{data}-smoke")


def _run(data: str, name: str, step: Step, seed: int) -> None:
    scene = SCENES[data]
    split = hr.split.leave_last(scene.load())
    started = time.perf_counter()
    engine = scene.engine(seed, **step.parts).fit(split.train)
    trained = time.perf_counter() - started
    if "llm" in step.parts and data in LLM_USERS:
        split = _sampled(split, LLM_USERS[data])
    report = hr.evaluate(engine, split, K, slices=step.slices)
    values = {**report.per_user, **_kinds(engine, split)}
    said = {
        "step": name,
        "seed": seed,
        "training seconds": round(trained, 1),
        "training": engine.report.to_json(),
        **report.to_json(),
        f"ndcg@{K}": {stage: float(ndcg.mean()) for stage, ndcg in values.items()},
        "machine": card(),
    }
    folder = folder_of(data)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{name}-{seed}.npz", **values)
    path = folder / f"{name}-{seed}.json"
    path.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    print(f"\n{data}, {name}, seed {seed}: trained in {trained:.0f} s\n{report}", flush=True)


def _kinds(engine: hr.HybridRecommender, split: hr.split.Split) -> dict[str, Values]:
    """(B,) NDCG of every kind of fusion that was fitted, on the lists that the engine serves."""
    pipeline = engine.pipeline
    found: dict[str, list[Values]] = {}
    for place, queries in split.queries.batches(_BATCH):
        targets = split.targets.select(np.arange(place.start, place.stop))
        candidates = pipeline.blend.candidates(queries, pipeline.depth)
        for kind, fusion in pipeline.tried.items():
            ranked = fusion.rank(candidates)
            found.setdefault(kind, []).append(per_user(ranked.items, targets, K).ndcg)
    return {kind: np.concatenate(parts) for kind, parts in found.items()}


def _sampled(split: hr.split.Split, users: int) -> hr.split.Split:
    rows = np.sort(np.random.default_rng(0).permutation(len(split.queries))[:users])
    return hr.split.Split(split.train, split.queries.select(rows), split.targets.select(rows))
