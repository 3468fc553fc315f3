"""hybridrec: collaborative filtering and FAISS recall, reranked by a fine-tuned LLM cross-encoder.

Every public name is loaded on first use, so ``import hybridrec`` costs no torch, no FAISS and no
numba.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hybridrec import client as client
    from hybridrec.bars import progress as progress
    from hybridrec.candidates import Candidates as Candidates
    from hybridrec.candidates import Queries as Queries
    from hybridrec.candidates import Recommendations as Recommendations
    from hybridrec.checks import DataSourceError as DataSourceError
    from hybridrec.checks import FitError as FitError
    from hybridrec.checks import HybridrecError as HybridrecError
    from hybridrec.checks import InputError as InputError
    from hybridrec.checks import InputTypeError as InputTypeError
    from hybridrec.checks import MissingExtraError as MissingExtraError
    from hybridrec.checks import NotFittedError as NotFittedError
    from hybridrec.checks import StorageError as StorageError
    from hybridrec.checks import UnknownIdError as UnknownIdError
    from hybridrec.data import public as public
    from hybridrec.data import split as split
    from hybridrec.data.dataset import Dataset as Dataset
    from hybridrec.data.ids import IdMap as IdMap
    from hybridrec.engine import HybridRecommender as HybridRecommender
    from hybridrec.evaluation.page import report_page as report_page
    from hybridrec.evaluation.protocol import evaluate as evaluate
    from hybridrec.evaluation.report import Report as Report
    from hybridrec.fuse.baselines import ConvexFusion as ConvexFusion
    from hybridrec.fuse.baselines import ReciprocalRankFusion as ReciprocalRankFusion
    from hybridrec.fuse.linear import LinearFusion as LinearFusion
    from hybridrec.fuse.trees import TreeFusion as TreeFusion
    from hybridrec.loading import load as load
    from hybridrec.newcomers import Newcomers as Newcomers
    from hybridrec.ragged import Ragged as Ragged
    from hybridrec.recall.als import ALS as ALS
    from hybridrec.recall.ease import EASE as EASE
    from hybridrec.recall.exact_index import ExactIndex as ExactIndex
    from hybridrec.recall.exact_index import top_k as top_k
    from hybridrec.recall.faiss_index import FaissIndex as FaissIndex
    from hybridrec.recall.implicit_model import ImplicitModel as ImplicitModel
    from hybridrec.recall.item_knn import ItemKNN as ItemKNN
    from hybridrec.recall.linear_transitions import LinearTransitions as LinearTransitions
    from hybridrec.recall.popularity import Popularity as Popularity
    from hybridrec.recall.sequence import SequenceRecall as SequenceRecall
    from hybridrec.recall.text import TextRecall as TextRecall
    from hybridrec.recall.transitions import ItemTransitions as ItemTransitions
    from hybridrec.recipe import from_settings as from_settings
    from hybridrec.recipe import settings_of as settings_of
    from hybridrec.rerank.cross_encoder import CrossEncoder as CrossEncoder
    from hybridrec.rerank.finetune_config import FineTuning as FineTuning
    from hybridrec.signals.at_half_life import AtHalfLife as AtHalfLife
    from hybridrec.signals.histories import HistoryLength as HistoryLength
    from hybridrec.signals.histories import HistoryStage as HistoryStage
    from hybridrec.signals.times import ItemAge as ItemAge
    from hybridrec.signals.times import NewestGap as NewestGap
    from hybridrec.signals.times import RecentPopularity as RecentPopularity
    from hybridrec.tuning.found import Tuned as Tuned
    from hybridrec.tuning.space import Range as Range
    from hybridrec.tuning.tune import tune as tune

_HOME = {
    "Candidates": "candidates",
    "Queries": "candidates",
    "Ragged": "ragged",
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
    "load": "loading",
    "report_page": "evaluation.page",
    "evaluate": "evaluation.protocol",
    "Report": "evaluation.report",
    "ConvexFusion": "fuse.baselines",
    "ReciprocalRankFusion": "fuse.baselines",
    "LinearFusion": "fuse.linear",
    "TreeFusion": "fuse.trees",
    "progress": "bars",
    "Newcomers": "newcomers",
    "ALS": "recall.als",
    "EASE": "recall.ease",
    "ExactIndex": "recall.exact_index",
    "top_k": "recall.exact_index",
    "FaissIndex": "recall.faiss_index",
    "ImplicitModel": "recall.implicit_model",
    "ItemKNN": "recall.item_knn",
    "LinearTransitions": "recall.linear_transitions",
    "Popularity": "recall.popularity",
    "SequenceRecall": "recall.sequence",
    "TextRecall": "recall.text",
    "ItemTransitions": "recall.transitions",
    "from_settings": "recipe",
    "settings_of": "recipe",
    "CrossEncoder": "rerank.cross_encoder",
    "FineTuning": "rerank.finetune_config",
    "AtHalfLife": "signals.at_half_life",
    "HistoryLength": "signals.histories",
    "HistoryStage": "signals.histories",
    "ItemAge": "signals.times",
    "NewestGap": "signals.times",
    "RecentPopularity": "signals.times",
    "Range": "tuning.space",
    "Tuned": "tuning.found",
    "tune": "tuning.tune",
}
_MODULES = {"client": "client", "public": "data.public", "split": "data.split"}

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
