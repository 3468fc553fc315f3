"""What a setting of the second stage is worth: NDCG@10 on ml-1m, each variant beside the plain one.

A variant and a seed at a time, each of which keeps what it found in bench-output/variants/:

    python benches/quality_variants.py run one_way full --seeds 0 1 2
    python benches/quality_variants.py run drop crop fgm ema epochs soft
    python benches/quality_variants.py report

The last event of every user is left out altogether: what is asked for is the one before, so that
whoever chooses by these figures has not seen a test event. Every variant learns from as many lists,
in as many steps, and orders the same lists of the blend by the cross-encoder alone: what a fusion
has beside it would only hide a difference.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
from contract import OUTPUT, scaled, write
from inputs import ml_1m

import hybridrec as hr
from hybridrec.evaluation.compare import paired_ci
from hybridrec.evaluation.metrics import per_user

K = 10
FOLDER = OUTPUT / "variants"
EXAMPLES = scaled(smoke=24, default=300, full=3000)
USERS = scaled(smoke=40, default=1000, full=6040)
DEPTH = scaled(smoke=20, default=20, full=100)
HISTORY = scaled(smoke=3, default=5, full=10)

PLAIN = "one_way"
VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "full": {"mask": "full"},
    "drop": {"finetuning": {"drop": 0.2}},
    "crop": {"finetuning": {"crop": 0.4}},
    "fgm": {"finetuning": {"adversarial": 0.5}},
    "ema": {"finetuning": {"average": "ema"}},
    "epochs": {"finetuning": {"average": "epochs"}},
    "soft": {"soft_tokens": "als"},
    "hard_labels": {"finetuning": {"recall_share": 0.0}},
}


def run(variant: str, seed: int) -> None:
    """Fit recall and one cross-encoder, and keep every user's NDCG."""
    split = hr.split.leave_last(hr.split.leave_last(ml_1m()).train)
    changed = VARIANTS[variant]
    settings = {"mask": "one_way", "history": HISTORY, "seed": seed, "device": "cpu", **changed}
    engine = hr.HybridRecommender(
        [hr.Popularity(), hr.ALS(factors=64, seed=seed), hr.ItemTransitions()],
        hr.CrossEncoder(**settings),
        depth=DEPTH,
        reranker_examples=EXAMPLES,
        seed=seed,
    ).fit(split.train)
    rows = np.sort(np.random.default_rng(0).permutation(len(split.queries))[:USERS])
    queries, targets = split.queries.select(rows), split.targets.select(rows)
    lists = engine.pipeline.blend.candidates(queries, DEPTH)
    reranker = engine.pipeline.reranker
    assert reranker is not None
    started = time.perf_counter()
    scores = reranker.score(queries, lists.items)
    seconds = time.perf_counter() - started
    ndcg = per_user(lists.reordered(scores).items, targets, K).ndcg
    np.save(FOLDER / f"{variant}-{seed}.npy", ndcg)
    said = {
        "variant": variant,
        "seed": seed,
        "settings": settings,
        "training": engine.report.reranker,
        "scoring seconds": round(seconds, 1),
        f"ndcg@{K}": float(ndcg.mean()),
        "blend": float(per_user(lists.items, targets, K).ndcg.mean()),
        "ceiling": float(per_user(lists.items, targets, DEPTH).recall.mean()),
    }
    (FOLDER / f"{variant}-{seed}.json").write_text(json.dumps(said) + "\n", encoding="utf-8")
    print(json.dumps(said), flush=True)


def report() -> None:
    """Every variant's mean, and its paired change from the plain one over the same seeds.

    A user's mean over the seeds is one draw of that user: users are bootstrapped, not runs.
    """
    found: dict[str, dict[int, Any]] = {name: {} for name in VARIANTS}
    for path in sorted(FOLDER.glob("*.npy")):
        name, _, seed = path.stem.rpartition("-")
        found[name][int(seed)] = np.load(path)
    result = []
    for name, runs in found.items():
        seeds = sorted(set(runs) & set(found[PLAIN]))
        if not seeds:
            continue
        mine = np.mean([runs[seed] for seed in seeds], axis=0)
        plain = np.mean([found[PLAIN][seed] for seed in seeds], axis=0)
        said = [json.loads((FOLDER / f"{name}-{seed}.json").read_text("utf-8")) for seed in seeds]
        delta = paired_ci(mine, plain)
        row = {
            "variant": name,
            "seeds": seeds,
            f"ndcg@{K}": [run[f"ndcg@{K}"] for run in said],
            "change": [delta.mean, delta.low, delta.high],
            "fine-tuning seconds": [run["training"]["seconds"] for run in said],
            "scoring seconds": [run["scoring seconds"] for run in said],
        }
        result.append(row)
        print(
            f"{name:<12} seeds {seeds} NDCG@{K} {mine.mean():.4f} against {plain.mean():.4f}: "
            f"{delta.mean:+.4f} [{delta.low:+.4f}, {delta.high:+.4f}]; fine-tuning "
            f"{np.mean(row['fine-tuning seconds']):.0f} s, scoring "
            f"{np.mean(row['scoring seconds']):.0f} s"
        )
    settings = {"examples": EXAMPLES, "users": USERS, "depth": DEPTH, "history": HISTORY}
    write("quality-variants.json", {"settings": settings, "variants": result})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(dest="step", required=True)
    running = steps.add_parser("run", help="fine-tune variants and order the lists by them")
    running.add_argument("variants", nargs="+", choices=VARIANTS)
    running.add_argument("--seeds", nargs="+", type=int, default=[0])
    steps.add_parser("report", help="means and paired changes of what has been run")
    chosen = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    if chosen.step == "report":
        return report()
    for seed in chosen.seeds:
        for variant in chosen.variants:
            if not (FOLDER / f"{variant}-{seed}.json").exists():
                run(variant, seed)
    return None


if __name__ == "__main__":
    main()
