"""What fewer bits cost: NDCG@10 on ml-1m of one fine-tuned cross-encoder, scored in each precision.

In pieces, each of which keeps what it made in bench-output/precision/:

    python benches/quality_precision.py tune
    python benches/quality_precision.py score fp32      # and bf16, int8: goes on where it was;
                                                        # --lists 1500 for the first so many
    python benches/quality_precision.py report

Leave-last-out. Every precision orders the same lists of the blend, by the cross-encoder alone: what
a fusion has beside it would only hide a difference. The gate: the lower end of the 95 % interval of
the paired change is above -1 % of NDCG@10 in fp32. Fewer users than all widen the interval.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import numpy as np
from contract import OUTPUT, scaled, write
from inputs import ml_1m
from numpy.typing import NDArray

import hybridrec as hr
from hybridrec.evaluation.compare import paired_ci
from hybridrec.evaluation.metrics import per_user
from hybridrec.state import config_to_json

K = 10
GATE = -0.01
PRECISIONS = ("fp32", "bf16", "int8")
FOLDER = OUTPUT / "precision"
EXAMPLES = scaled(smoke=24, default=3000, full=6000)
USERS = scaled(smoke=40, default=6040, full=6040)
DEPTH = scaled(smoke=20, default=100, full=100)
PART = scaled(smoke=16, default=256, full=256)


def tune(*, examples: int, users: int, depth: int, seed: int) -> None:
    """Fit recall, fine-tune the cross-encoder on its lists, and keep both with the test's lists."""
    data = ml_1m()
    split = hr.split.leave_last(data)
    engine = hr.HybridRecommender(
        [hr.Popularity(), hr.ALS(factors=64, seed=seed), hr.ItemTransitions()],
        hr.CrossEncoder(seed=seed, device="cpu"),
        depth=depth,
        reranker_examples=examples,
        seed=seed,
    )
    started = time.perf_counter()
    engine.fit(split.train)
    reranker = engine.pipeline.reranker
    assert isinstance(reranker, hr.CrossEncoder)
    reranker.save_files(FOLDER / "model")
    chosen = np.random.default_rng(seed).permutation(len(split.queries))[:users]
    lists = engine.pipeline.blend.candidates(split.queries.select(chosen), depth)
    np.savez(FOLDER / "lists.npz", rows=chosen, items=lists.items, scores=lists.scores)
    for old in FOLDER.glob("scores-*.npy"):
        old.unlink()
    said = {
        "data": str(data),
        "settings": {"examples": examples, "users": len(chosen), "depth": depth, "seed": seed},
        "training": engine.report.to_json(),
        "seconds": round(time.perf_counter() - started, 1),
    }
    (FOLDER / "tuned.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(said, indent=1), flush=True)


def score(precision: str, *, lists: int | None) -> None:
    """Score the first ``lists`` in one precision, part by part; what was scored before stays."""
    saved = _lists()
    tuned = hr.CrossEncoder.load_files(FOLDER / "model")
    settings = config_to_json(tuned.config)
    settings |= {"model": str(FOLDER / "model"), "precision": precision, "prefix_cache": 0}
    data = ml_1m()
    queries = hr.split.leave_last(data).queries.select(saved["rows"])
    encoder = hr.CrossEncoder(**settings).prepare(data.item_text(np.arange(data.n_items)))
    path = FOLDER / f"scores-{precision}.npy"
    items = saved["items"]
    scores = np.load(path) if path.exists() else np.full(items.shape, np.nan, np.float32)
    for start in range(0, len(items) if lists is None else lists, PART):
        part = np.arange(start, min(start + PART, len(items)))
        if not np.isnan(scores[part]).any():
            continue
        started = time.perf_counter()
        scores[part] = encoder.score(queries.select(part), items[part])
        np.save(path, scores)
        seconds = (time.perf_counter() - started) / len(part)
        print(
            f"{precision}: {part[-1] + 1} of {len(items)} lists, {seconds:.3f} s each", flush=True
        )


def report() -> bool:
    """The change against fp32 of every precision that was scored; whether all pass the gate.

    Each on the lists that both have scored: their order is random, so the first are a sample.
    """
    saved = _lists()
    found = {name: scores for name in PRECISIONS if (scores := _scored(name)) is not None}
    if "fp32" not in found or len(found) < 2:
        raise SystemExit(f"scored are {sorted(found)}; wanted fp32 and one more: score them first")
    targets = hr.split.leave_last(ml_1m()).targets.select(saved["rows"])
    result: dict[str, Any] = json.loads((FOLDER / "tuned.json").read_text(encoding="utf-8"))
    result["changes"] = [
        _change(name, saved, found[name], found["fp32"], targets)
        for name in found
        if name != "fp32"
    ]
    write("quality-precision.json", result)
    return all(change["passes"] for change in result["changes"])


def _change(
    name: str,
    saved: dict[str, NDArray[Any]],
    scores: NDArray[np.float32],
    exact: NDArray[np.float32],
    targets: hr.Ragged,
) -> dict[str, Any]:
    """What ordering by ``scores`` instead of ``exact`` (B, K) costs; NaN where there are none."""
    both = np.flatnonzero(~(np.isnan(scores) | np.isnan(exact)).any(axis=1))
    lists = hr.Candidates(saved["items"][both], saved["scores"][both])
    orders = [lists.reordered(given[both]).items for given in (scores, exact)]
    ndcg = [per_user(items, targets.select(both), K).ndcg for items in (*orders, lists.items)]
    delta, whole = paired_ci(ndcg[0], ndcg[1]), ndcg[1].mean()
    mean, low, high = (float(value / whole) for value in (delta.mean, delta.low, delta.high))
    apart = np.abs(scores[both] - exact[both])[lists.items >= 0]
    same = [len(np.intersect1d(a[:K], b[:K])) / K for a, b in zip(*orders, strict=True)]
    change = {
        "precision": name, "users": len(both), "mean": mean, "low": low, "high": high,
        "passes": low > GATE, f"ndcg@{K}": dict(zip((name, "fp32", "blend"),
                                                    (float(v.mean()) for v in ndcg), strict=True)),
        "largest difference": float(apart.max()), "mean difference": float(apart.mean()),
        f"same top {K}": float(np.mean(same)),
    }  # fmt: skip
    print(f"{name} against fp32: {mean:+.2%} [{low:+.2%}, {high:+.2%}], gate {GATE:+.0%}: "
          f"{'passes' if low > GATE else 'FAILS'}; {change}")  # fmt: skip
    return change


def _lists() -> dict[str, NDArray[Any]]:
    path = FOLDER / "lists.npz"
    if not path.exists():
        raise SystemExit("nothing is tuned yet: python benches/quality_precision.py tune")
    with np.load(path) as saved:
        return dict(saved)


def _scored(precision: str) -> NDArray[np.float32] | None:
    path = FOLDER / f"scores-{precision}.npy"
    return np.load(path) if path.exists() else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(dest="step", required=True)
    tuning = steps.add_parser("tune", help="recall, lists and a fine-tuned model")
    for name, default in (("examples", EXAMPLES), ("users", USERS), ("depth", DEPTH), ("seed", 0)):
        tuning.add_argument(f"--{name}", type=int, default=default)
    scoring = steps.add_parser("score", help="the lists in one precision")
    scoring.add_argument("precision", choices=PRECISIONS)
    scoring.add_argument("--lists", type=int, help="only the first so many")
    steps.add_parser("report", help="the change and its interval; 1 if the gate fails")
    chosen = vars(parser.parse_args())
    step = chosen.pop("step")
    FOLDER.mkdir(parents=True, exist_ok=True)
    if step == "report":
        sys.exit(not report(**chosen))
    {"tune": tune, "score": score}[step](**chosen)


if __name__ == "__main__":
    main()
