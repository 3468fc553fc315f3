"""What each stage is worth on MovieLens 100k: not a race but the figures that the README quotes.

``HYBRIDREC_BENCH=full make bench`` runs it, and so does ``python benches/bench_quality.py --help``.
Leave-last-out, full ranking, NDCG@10; everything goes to ``bench-output/quality.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from contract import SCALE, write
from numpy.typing import NDArray

import hybridrec as hr
from hybridrec.demo import recommender
from hybridrec.evaluation.compare import paired_ci
from hybridrec.evaluation.metrics import per_user
from hybridrec.evaluation.protocol import evaluate

K = 10
WITH, WITHOUT, ALONE = "fused, with LLM", "fused, no LLM", "llm alone"
UNTUNED, POPULAR = "llm before fine-tuning, same lists", "popularity, same lists"

Values = NDArray[np.float64]


def show(line: str) -> None:
    """Print at once, piped or not: a run takes a while."""
    print(line, flush=True)


def run(
    *,
    seeds: int = 3,
    depth: int = 100,
    shuffles: int = 5,
    users: int | None = None,
    examples: int = 1500,
    fusion_examples: int = 600,
    say: Callable[[str], None] = show,
) -> dict[str, Any]:
    """Both parts; returns what ``quality.json`` holds.

    Args:
        seeds: fits of the whole recommender, each with a seed of its own.
        depth: candidates recalled and reranked.
        shuffles: orders of tied timestamps to try beside the canonical one.
        users: only the first so many; None takes all.
        examples: lists that the cross-encoder is fine-tuned on.
        fusion_examples: lists that the fusions learn from.
        say: takes each line that a reader should see.
    """
    data = _first_users(hr.public.movielens_100k(download=True), users)
    settings = {
        "users": users,
        "depth": depth,
        "examples": examples,
        "fusion_examples": fusion_examples,
    }
    say(f"{data}; {settings}")
    result: dict[str, Any] = {"data": str(data), "settings": settings}
    result["llm"] = _llm(data, range(seeds), depth, (examples, fusion_examples), say)
    write("quality.json", result)  # the part that takes longest is safe whatever comes
    result["ties"] = _ties(data, shuffles, depth, fusion_examples, say)
    path = write("quality.json", result)
    say(f"written to {path.parent.name}/{path.name}")
    return result


def _llm(
    data: hr.Dataset,
    seeds: Sequence[int],
    depth: int,
    examples: tuple[int, int],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The recommender of the demo, once a seed: its table, and what the LLM adds to it."""
    split = hr.split.leave_last(data)
    reports: list[dict[str, Any]] = []
    ndcg: list[dict[str, Values]] = []
    for seed in seeds:
        engine = _engine(depth, examples, seed).fit(split.train)
        report = evaluate(engine, split, K, depth=max(K, depth))
        ndcg.append({**report.per_user, **_references(engine, split, depth)})
        reports.append({**report.to_json(), "training": engine.report.to_json(), "seed": seed})
        say(f"\nseed {seed}\n{report}")
        for name in (UNTUNED, POPULAR):
            say(f"{name:<36} NDCG@{K} {ndcg[-1][name].mean():.4f}")
        for line in _lines(_deltas(ndcg[-1:])):
            say(line)
    # A user's mean over the seeds is one draw of that user: bootstrapping users, not runs.
    pooled = _deltas(ndcg)
    means = {name: [float(run[name].mean()) for run in ndcg] for name in ndcg[0]}
    say(f"\nover {len(ndcg)} seeds, NDCG@{K}")
    for name, values in means.items():
        say(f"{name:<36} {_spread(values)}")
    for line in _lines(pooled):
        say(line)
    return {"seeds": reports, f"ndcg@{K}": means, "pooled": pooled}


def _engine(depth: int, examples: tuple[int, int], seed: int) -> hr.HybridRecommender:
    demo = recommender(seed=seed)
    return hr.HybridRecommender(
        demo.recallers,
        demo.reranker,
        demo.fusion,
        depth=depth,
        rerank_depth=depth,
        reranker_examples=examples[0],
        fusion_examples=examples[1],
        seed=seed,
    )


def _references(
    engine: hr.HybridRecommender, split: hr.split.Split, depth: int
) -> dict[str, Values]:
    """(B,) NDCG of the blend's own list, ordered by what the fine-tuned LLM has to beat."""
    pipeline = engine.pipeline
    candidates = pipeline.blend.candidates(split.queries, depth)
    orders: dict[str, Any] = {POPULAR: pipeline.popularity}
    if isinstance(pipeline.reranker, hr.CrossEncoder):
        orders[UNTUNED] = pipeline.reranker.untuned()
    return {
        name: _ndcg(candidates.reordered(scorer.score(split.queries, candidates.items)), split)
        for name, scorer in orders.items()
    }


def _ndcg(candidates: hr.Candidates, split: hr.split.Split) -> Values:
    return per_user(candidates.items, split.targets, K).ndcg


def _deltas(ndcg: Sequence[dict[str, Values]]) -> list[dict[str, Any]]:
    """The comparisons, paired over users, of the mean over runs."""
    pairs = ((ALONE, UNTUNED), (ALONE, POPULAR), (WITH, WITHOUT))
    mean = {
        name: np.mean([run[name] for run in ndcg], axis=0) for name in {n for p in pairs for n in p}
    }
    return [{"stage": a, "against": b, **asdict(paired_ci(mean[a], mean[b]))} for a, b in pairs]


def _lines(deltas: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f"{row['stage']} against {row['against']}: {row['mean']:+.4f} "
        f"[{row['low']:+.4f}, {row['high']:+.4f}]"
        for row in deltas
    ]


def _spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation of the values, which are a sample of runs."""
    if len(values) < 2:
        return " ".join(f"{value:.4f}" for value in values)
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


def _ties(
    data: hr.Dataset,
    shuffles: int,
    depth: int,
    fusion_examples: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The stages without the LLM, for the canonical order of tied events and for others."""
    canonical = _without_llm(data, depth, fusion_examples)
    others = [
        _without_llm(_ties_shuffled(data, seed), depth, fusion_examples) for seed in range(shuffles)
    ]
    result: dict[str, Any] = {}
    say(f"\ncanonical order of ties; mean ± standard deviation over {shuffles} others")
    for name, value in canonical.items():
        drawn = [other[name] for other in others]
        result[name] = {"canonical": value, "shuffled": drawn}
        say(f"{name:<36} {value:.4f}   {_spread(drawn)}")
    return result


def _without_llm(data: hr.Dataset, depth: int, fusion_examples: int) -> dict[str, float]:
    split = hr.split.leave_last(data)
    plain = hr.ALS(factors=64, half_life=None).fit(split.train).recall(split.queries, 100)
    recalled = per_user(plain.items, split.targets, 100).recall
    engine = hr.HybridRecommender(
        recommender().recallers,
        fusion=hr.LinearFusion(),
        depth=depth,
        fusion_examples=fusion_examples,
    )
    report = evaluate(engine.fit(split.train), split, K, depth=max(K, depth))
    return {
        f"als (plain history), NDCG@{K}": float(_ndcg(plain, split).mean()),
        "als (plain history), Recall@100": float(recalled.mean()),
        **{f"{stage.name}, NDCG@{K}": stage.ndcg for stage in report.stages},
    }


def _ties_shuffled(data: hr.Dataset, seed: int) -> hr.Dataset:
    """The data set that the same table gives with rows of one user and time in another order."""
    rows = data.histories
    assert rows.times is not None
    assert rows.weights is None
    draw = np.random.default_rng(seed).random(len(rows.items))
    order = np.lexsort((draw, rows.times, rows.row_of()))
    return replace(data, histories=hr.Ragged(rows.indptr, rows.items[order], None, rows.times))


def _first_users(data: hr.Dataset, users: int | None) -> hr.Dataset:
    return data if users is None else data.keep_events(data.histories.row_of() < users)


@pytest.mark.skipif(SCALE != "full", reason="tens of minutes: HYBRIDREC_BENCH=full runs it")
def test_quality(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        benchmark.pedantic(run, rounds=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("seeds", 3),
        ("depth", 100),
        ("shuffles", 5),
        ("users", None),
        ("examples", 1500),
        ("fusion-examples", 600),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    with hr.progress():
        run(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
