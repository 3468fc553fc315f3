"""The steps of a data set's figures, each of which keeps what it found."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from contract import OUTPUT, SCALE, card
from kept import KeptSequence
from numpy.typing import NDArray
from scenes import SCENES, Scene

import hybridrec as hr
from hybridrec.evaluation.metrics import TargetRanks, per_user

K = 10
LLM_USERS = {"amazon-games": 5000}
"""Test users of the steps with an LLM, where not all: a seeded sample."""
_BATCH = 2048

USERS = "users of the queries"
COLD_EVENTS = 5000
"""Events of withheld items that are asked for, a seeded sample."""

Values = NDArray[np.float64]
Found = tuple[dict[str, Any], dict[str, Values]]
"""What a report says, and a value a query of every stage."""


@dataclass(frozen=True)
class Step:
    """A recommender to fit and evaluate once a seed.

    Attributes:
        parts: of :meth:`scenes.Scene.engine`.
        seeds: how many of the seeds; None takes all that were asked for.
        measure: what is asked of it.
    """

    parts: Mapping[str, Any]
    seeds: int | None = None
    measure: str = "next event"


def steps_of(scene: Scene) -> dict[str, Step]:
    """The steps of ``scene``, the dearest last."""
    names = [stage.name for stage in (*scene.recallers(0), *scene.signals())]
    sequence = {"sequence": Step({"sequence": True})} if scene.sequence else {}
    return {
        "plain": Step({"plain": True}),
        "fast": Step({"newcomers": True}),
        "candidates": Step({"depth": 200}, seeds=1, measure="candidates"),
        "cold": Step({"newcomers": True}, seeds=1, measure="cold"),
        **{f"without {name}": Step({"without": name}, seeds=1) for name in names},
        **sequence,
        "everything": Step({"sequence": True, "llm": True}),
    }


STEPS = ("plain", "fast", "candidates", "cold", "ablation", "sequence", "everything")


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
    engine, split, trained = _fitted(scene, step, seed)
    if "llm" in step.parts and data in LLM_USERS:
        split = split.sample(LLM_USERS[data])
    found, values = MEASURES[step.measure](engine, split)
    said = {
        "step": name,
        "seed": seed,
        "training seconds": round(trained, 1),
        "training": engine.report.to_json(),
        **found,
        "means": {stage: float(each.mean()) for stage, each in values.items()},
        "machine": card(),
    }
    folder = folder_of(data)
    folder.mkdir(parents=True, exist_ok=True)
    users = {USERS: split.queries.users}
    np.savez_compressed(folder / f"{name}-{seed}.npz", **values, **users)
    path = folder / f"{name}-{seed}.json"
    path.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    print(f"{data}, {name}, seed {seed}: trained in {trained:.0f} s", flush=True)


def _fitted(
    scene: Scene, step: Step, seed: int
) -> tuple[hr.HybridRecommender, hr.split.Split, float]:
    """The recommender, what it is asked, and the seconds that fitting takes."""
    split = hr.split.leave_last(scene.load())
    if step.measure == "candidates":  # a choice: made on the events before the last ones
        split = hr.split.leave_last(split.train)
    if step.measure == "cold":
        split = hr.split.cold_items(scene.load(), most=COLD_EVENTS)
    kept = len(KeptSequence.seconds)
    started = time.perf_counter()
    engine = scene.engine(seed, **step.parts)
    engine.fit(split.train)
    # A fit that was read from disk takes next to nothing: what it took once is added.
    trained = time.perf_counter() - started + sum(KeptSequence.seconds[kept:])
    return engine, split, trained


def _next_event(engine: hr.HybridRecommender, split: hr.split.Split) -> Found:
    """NDCG@10 of every stage and every kind of fusion."""
    report = hr.evaluate(engine, split, K, slices=True)
    print(report, flush=True)
    return report.to_json(), {**report.per_user, **_kinds(engine, split)}


def _cold(engine: hr.HybridRecommender, split: hr.split.Split) -> Found:
    """Recall@20 of withheld items, among all items and among the withheld ones only."""
    withheld = split.item_events == 0
    withheld &= np.bincount(split.targets.items, minlength=len(withheld)) > 0
    alone = replace(split, queries=replace(split.queries, allow=withheld))
    texts = [signal for signal in engine.signals if isinstance(signal, hr.TextRecall)]
    found, values = {}, {}
    for kind, asked in (("", split), (", cold only", alone)):
        report = hr.evaluate(engine, asked, 20, depth=20)
        print(f"{kind}\n{report}", flush=True)
        found[f"evaluation{kind}"] = report.to_json()
        values |= {f"{name}{kind}": each.recall for name, each in report.metrics.items()}
        for text in texts:
            items = text.recall(asked.queries, 20).items
            values[f"{text.name}{kind}"] = per_user(items, asked.targets, 20).recall
    return found, values


def _candidates(engine: hr.HybridRecommender, split: hr.split.Split) -> Found:
    """How many candidates in the fused order hold as many targets as 150 of the best recaller."""
    report = hr.evaluate(engine, split, K, depth=150)
    curves = {stage.name: stage.recall_by_depth for stage in report.stages}
    candidates = engine.pipeline.blend.candidates(split.queries, engine.pipeline.depth)
    for kind, fusion in engine.pipeline.tried.items():
        ranks = TargetRanks.of(fusion.rank(candidates).items, split.targets)
        curves[kind] = tuple(ranks.recall_by_depth(150).tolist())
    single = max(
        (stage for stage in report.stages if stage.kind == "single"), key=lambda s: s.recall
    )
    needed = {
        name: int(np.searchsorted(curve, single.recall)) + 1
        for name, curve in curves.items()
        if curve[-1] >= single.recall
    }
    print(f"Recall@150 of {single.name}: {single.recall:.4f}; candidates needed: {needed}")
    return {**report.to_json(), "recall by depth": curves, "needed": needed}, report.per_user


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


MEASURES: Mapping[str, Callable[[hr.HybridRecommender, hr.split.Split], Found]] = {
    "next event": _next_event,
    "cold": _cold,
    "candidates": _candidates,
}
