"""hybridrec: collaborative filtering and FAISS recall, reranked by a fine-tuned LLM cross-encoder.

Every public name is loaded on first use, so ``import hybridrec`` costs no torch, no FAISS and no
numba.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hybridrec.bars import progress
    from hybridrec.candidates import Candidates, Queries, Ragged, Recommendations
    from hybridrec.checks import (
        DataSourceError,
        FitError,
        HybridrecError,
        InputError,
        InputTypeError,
        MissingExtraError,
        NotFittedError,
        StorageError,
        UnknownIdError,
    )
    from hybridrec.data import public, split
    from hybridrec.data.dataset import Dataset
    from hybridrec.data.ids import IdMap
    from hybridrec.engine import HybridRecommender, load
    from hybridrec.evaluation.protocol import evaluate
    from hybridrec.evaluation.report import Report
    from hybridrec.fuse.linear import LinearFusion
    from hybridrec.recall.als import ALS
    from hybridrec.recall.exact_index import ExactIndex, top_k
    from hybridrec.recall.faiss_index import FaissIndex
    from hybridrec.recall.popularity import Popularity
    from hybridrec.recall.text import TextRecall
    from hybridrec.recall.transitions import ItemTransitions
    from hybridrec.rerank.cross_encoder import CrossEncoder

_HOME = {
    "Candidates": "candidates",
    "Queries": "candidates",
    "Ragged": "candidates",
    "Recommendations": "candidates",
    "DataSourceError": "checks",
    "FitError": "checks",
    "HybridrecError": "checks",
    "InputError": "checks",
    "InputTypeError": "checks",
    "MissingExtraError": "checks",
    "NotFittedError": "checks",
    "StorageError": "checks",
    "UnknownIdError": "checks",
    "Dataset": "data.dataset",
    "IdMap": "data.ids",
    "HybridRecommender": "engine",
    "load": "engine",
    "evaluate": "evaluation.protocol",
    "Report": "evaluation.report",
    "LinearFusion": "fuse.linear",
    "progress": "bars",
    "ALS": "recall.als",
    "ExactIndex": "recall.exact_index",
    "top_k": "recall.exact_index",
    "FaissIndex": "recall.faiss_index",
    "Popularity": "recall.popularity",
    "TextRecall": "recall.text",
    "ItemTransitions": "recall.transitions",
    "CrossEncoder": "rerank.cross_encoder",
}
_MODULES = {"public": "data.public", "split": "data.split"}

__all__ = [*_HOME, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"hybridrec.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"hybridrec.{_MODULES[name]}")
    else:
        raise AttributeError(f"module 'hybridrec' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
