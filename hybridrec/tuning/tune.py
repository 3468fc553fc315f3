"""``hybridrec.tune``: settings that suit a data set, by its validation events."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridrec.checks import InputTypeError, whole_number
from hybridrec.data.dataset import Dataset
from hybridrec.engine import HybridRecommender
from hybridrec.recipe import entry_of, further_stages, settings_of
from hybridrec.tuning.clock import Limits
from hybridrec.tuning.folder import TRIALS, opened
from hybridrec.tuning.search import Search
from hybridrec.tuning.stages import Stages
from hybridrec.tuning.trials import TrialsFile
from hybridrec.tuning.workbench import Workbench

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hybridrec.tuning.found import Tuned

__all__ = ["tune"]

_log = logging.getLogger("hybridrec")


def tune(
    data: Dataset,
    engine: HybridRecommender | None = None,
    *,
    folder: str | Path,
    minutes: float | None = None,
    trials: int | None = None,
    offered: Sequence[object] | None = None,
    space: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> Tuned:
    """Search settings for ``data`` by NDCG@10 on its validation events.

    These are the events that every fit makes its choices by, the last of each user; what is tried
    is fitted to the events before. Pass ``split.train``, and the test has no part in it.

    Args:
        data: what the recommender will be fitted to.
        engine: what to start from; every part begins with its settings. None starts from
            ``HybridRecommender()``.
        folder: where the search is kept, made if it is not there: every trial, and the best
            settings so far (``best.json``). Called again with the same arguments it goes on.
        minutes: for all trials together, those of interrupted runs included. A trial begins where
            it is likely to end in time; the first one of each part always does.
        trials: of each part at most; of the reranker a quarter as many.
        offered: recallers and fusions to take in where they help; None offers
            :class:`~hybridrec.ItemKNN` if no ``engine`` is given, and nothing otherwise.
        space: what to try, by the name of a recaller or reranker or the class of a fusion, and by
            setting: a :class:`~hybridrec.Range` or a list of values. Stages that it does not name
            keep what suits their kind; ``{}`` leaves one as it is.
        seed: of what is tried. The same seed tries the same, interrupted or not.

    Raises:
        InputError: no limit, or something in ``space`` or ``offered`` that cannot be used.
        StorageError: the folder is somebody else's, or holds a search on other data or with other
            arguments.
        FitError: no user has two events, or the recommender that was given cannot be fitted.
        MissingExtraError: Optuna is not installed.
        KeyboardInterrupt: it was interrupted; what was found is in the folder.
    """
    if not isinstance(data, Dataset):
        remedy = "pass split.train" if hasattr(data, "train") else "make one with from_frame"
        raise InputTypeError(f"data is {type(data).__name__}; wanted a Dataset: {remedy}")
    limits = Limits.checked(minutes, trials)
    if not data.ordered:
        _log.warning(
            "the events have no time, so the validation event of a user is the last of their rows: "
            "give the interactions a time column if there is one"
        )
    if engine is None:
        engine = HybridRecommender()
        offered = further_stages(engine) if offered is None else offered
    if not isinstance(engine, HybridRecommender):
        raise InputTypeError(
            f"engine is {type(engine).__name__}; wanted a HybridRecommender to start from"
        )
    stages = Stages(engine, data, offered or ())
    spaces = stages.spaces(space)
    bench = Workbench(data, stages.engine)
    about = {
        "data": bench.mark,
        "shape": repr(data),
        "seed": whole_number("seed", seed),  # said first: the recommender is often of it, too
        "recommender": settings_of(stages.engine),
        "offered": [entry_of(stage) for stage in offered or ()],
        "space": repr(spaces),
    }
    folder = Path(folder)
    with opened(folder, about):
        file = TrialsFile(folder / TRIALS, seed)
        try:
            return Search(stages, spaces, bench, file, limits, folder).run()
        finally:
            file.close()
