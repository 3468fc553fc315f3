"""A recaller's scores by another half-life: one table, as many columns as there are memories."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from hybridrec.checks import InputTypeError, NotFittedError, real_number
from hybridrec.recall.promises import check_name
from hybridrec.state import config_from_json, config_to_json, read_state, write_state

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hybridrec.candidates import Queries
    from hybridrec.protocols import FitData, Recaller
    from hybridrec.ragged import Items, Scores


@dataclass(frozen=True, kw_only=True)
class AtHalfLifeConfig:
    """Settings of :class:`AtHalfLife`."""

    of: str
    half_life: float | None
    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.of, str) or not self.of:
            raise InputTypeError(f"of is {self.of!r}; wanted a recaller's name, such as 'als'")
        if self.half_life is not None:
            real_number("half_life", self.half_life, above=0.0)
        check_name(self.name)


class AtHalfLife:
    """What another recaller would say if it remembered for longer, or for less long.

    Nothing is fitted or stored twice: it reads that recaller, with another half-life. Fusion then
    weighs what a user did last against what they did most.

    Args:
        of: the name of a recaller, or of a signal that is one.
        half_life: events after which a history item counts half; None weighs all alike.
        name: the column that the scores fill; made of the others by default.
    """

    def __init__(self, of: str, half_life: float | None, *, name: str | None = None) -> None:
        if name is None:
            memory = "for ever" if half_life is None else f"for {half_life:g}"
            name = f"{of}, {memory}"
        self.config = AtHalfLifeConfig(of=of, half_life=half_life, name=name)
        self._source: Recaller | None = None

    @property
    def name(self) -> str:
        """The column that its scores fill."""
        return self.config.name

    @property
    def reads(self) -> str:
        """The name of the recaller that it reads."""
        return self.config.of

    def use(self, source: Recaller) -> Self:
        """Read ``source`` from now on."""
        self._source = source
        return self

    def fit(self, data: FitData) -> Self:
        """Nothing to learn: the recaller is fitted by whoever owns it."""
        return self

    def refit(self, data: FitData) -> Self:
        """Nothing to learn."""
        return self

    def score(self, queries: Queries, items: Items) -> Scores:
        """(B, K) float32 for (B, K) codes, as the recaller scores.

        Raises:
            NotFittedError: it was given no recaller, or one that is not fitted.
        """
        if self._source is None:
            raise NotFittedError(
                f"{self.name!r} was given no recaller to read: put {self.reads!r} beside it in a "
                "HybridRecommender"
            )
        twin = copy.copy(self._source)
        twin.half_life = self.config.half_life
        return twin.score(queries, items)

    def add_items(self, texts: Sequence[str] | None, n: int) -> None:
        """Nothing to widen."""

    def save_files(self, folder: Path) -> None:
        """Write the settings."""
        write_state(folder, config_to_json(self.config), {})

    @classmethod
    def load_files(cls, folder: Path) -> Self:
        """Read what :meth:`save_files` wrote; whoever loads it says what it reads."""
        settings, _ = read_state(folder)
        config = config_from_json(AtHalfLifeConfig, settings)
        return cls(config.of, config.half_life, name=config.name)
