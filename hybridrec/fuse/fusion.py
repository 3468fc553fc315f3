"""What fusions have in common: all but what is learned and how it scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

import numpy as np

from hybridrec.checks import FitError, NotFittedError
from hybridrec.fuse.features import lengths, stacked, target_places
from hybridrec.state import config_from_json, config_to_json, read_state, write_state

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from hybridrec.candidates import Candidates
    from hybridrec.ragged import Items, Scores

C = TypeVar("C")

Arrays = dict[str, "NDArray[Any]"]


class ListFusion(ABC, Generic[C]):
    """Orders candidates by signals that it reads list by list.

    A kind says what its settings are (``_config``) and what it learns of columns (S, B, K), the
    lists' sizes (B,) and the places (B,) of their targets.

    Attributes:
        config: its settings.
        signals: the names it was fitted on, in order; () before ``fit``.
    """

    _config: ClassVar[type]

    def __init__(self, config: C) -> None:
        self.config = config
        self.signals: tuple[str, ...] = ()

    @abstractmethod
    def _learn(self, columns: Scores, sizes: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """Learn from lists whose targets stand at ``places``."""

    @abstractmethod
    def _scored(self, columns: Scores, sizes: NDArray[np.int64]) -> NDArray[Any]:
        """(B, K) what each candidate scores; padding may be anything."""

    @abstractmethod
    def _arrays(self) -> Arrays:
        """What was learned, as arrays."""

    @abstractmethod
    def _take(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what :meth:`_arrays` gave."""

    def fit(self, candidates: Candidates, targets: Items) -> Self:
        """Learn from lists that hold their target.

        Args:
            candidates: n lists with the signals to fuse.
            targets: (n,) the item of each list that the user chose.

        Raises:
            InputError: a list does not hold its target, or a signal that was asked for is missing.
            FitError: there is no list, or nothing can be learned from these.
        """
        wanted = getattr(self.config, "signals", None)
        names = tuple(candidates.signals) if wanted is None else tuple(wanted)
        if not len(candidates) or not names:
            raise FitError(
                f"no list to learn the fusion from ({len(candidates)} lists, {len(names)} "
                "signals): the recall stage missed every learning event"
            )
        places = target_places(candidates, targets)
        self._learn(stacked(candidates, names), lengths(candidates), places)
        self.signals = names
        return self

    def score(self, candidates: Candidates) -> Scores:
        """(B, K) float32, -inf on padding.

        Raises:
            NotFittedError: before ``fit``.
            InputError: a signal it was fitted on is missing.
        """
        if not self.signals:
            raise NotFittedError("this fusion is not fitted: call fit, or load a model that is")
        fused = self._scored(stacked(candidates, self.signals), lengths(candidates))
        return np.where(candidates.valid, fused, -np.inf).astype(np.float32)

    def rank(self, candidates: Candidates) -> Candidates:
        """The candidates in the fused order."""
        return candidates.reordered(self.score(candidates))

    def save_files(self, folder: Path) -> None:
        """Write settings, signal names and what was learned.

        Raises:
            NotFittedError: before ``fit``.
        """
        if not self.signals:
            raise NotFittedError("this fusion is not fitted: there is nothing to save")
        settings = {"config": config_to_json(self.config), "signals": list(self.signals)}
        write_state(folder, settings, self._arrays())

    @classmethod
    def load_files(cls, folder: Path) -> Self:
        """Read what :meth:`save_files` wrote."""
        settings, arrays = read_state(folder)
        config: Any = config_from_json(cls._config, settings["config"])
        fusion = cls(**config_to_json(config))
        fusion._take(arrays)
        fusion.signals = tuple(settings["signals"])
        return fusion


def sampled(most: int | None, n: int, seed: int) -> NDArray[np.int64]:
    """At most ``most`` of ``n`` places, in order; the same for the same seed."""
    if most is None or n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))
