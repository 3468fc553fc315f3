"""What a search has measured of whole recommenders, and the best of it on the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from hybridrec import __version__
from hybridrec.recipe import settings_of
from hybridrec.tuning.folder import write_json
from hybridrec.tuning.stages import Choice

if TYPE_CHECKING:
    from pathlib import Path

    from hybridrec.tuning.stages import Stages
    from hybridrec.tuning.trials import TrialsFile
    from hybridrec.tuning.workbench import Measured


class Scored(NamedTuple):
    """A choice, its NDCG@10 on validation events, and the standard error of that."""

    value: float
    error: float
    choice: Choice


class Ledger:
    """Choices and what they are worth, those of earlier runs included.

    Args:
        stages: that choices are made from.
        file: the trials of earlier runs.
        path: where the settings of the best are written, whenever there is a better one.
        mark: of the data.
    """

    def __init__(self, stages: Stages, file: TrialsFile, path: Path, mark: str) -> None:
        self._stages, self._path, self._mark = stages, path, mark
        self._served = _known(file, "given", "recallers", "fusion")
        self._reranked = _known(file, "reranker")

    @property
    def best(self) -> Scored:
        """With the reranker where it has been tried; of equal ones the oldest."""
        return max(self._reranked or self._served, key=lambda scored: scored.value)

    @property
    def best_served(self) -> Choice:
        """The best that needs no reranker."""
        return max(self._served, key=lambda scored: scored.value).choice

    def noted(
        self, measured: Measured, choice: Choice, *, reranked: bool = False
    ) -> dict[str, Any]:
        """Remember what ``choice`` is worth; returns what its trial has to keep for that."""
        scored = Scored(*measured, choice)
        (self._reranked if reranked else self._served).append(scored)
        if self.best is scored:
            told = {
                "hybridrec": __version__,
                "data": self._mark,
                "ndcg@10": scored.value,
                "recommender": settings_of(self._stages.made(choice)),
            }
            write_json(self._path, told)
        return {"choice": choice.to_json(), "standard error": scored.error}


def _known(file: TrialsFile, *kinds: str) -> list[Scored]:
    return [
        Scored(trial.value, trial.note["standard error"], Choice.from_json(trial.note["choice"]))
        for name in file.names()
        if name.split(" ")[0] in kinds
        for trial in file.part(name).ended()
        if trial.value is not None
    ]
