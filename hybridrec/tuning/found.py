"""What a search has found, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from hybridrec.recipe import settings_of
from hybridrec.tuning.trials import best_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from hybridrec.engine import HybridRecommender
    from hybridrec.tuning.space import Settings
    from hybridrec.tuning.stages import Choice, Stages
    from hybridrec.tuning.trials import Trial


@dataclass(frozen=True)
class TunedPart:
    """One part of a search.

    Attributes:
        name: "recaller als", "recallers", "fusion LinearFusion", "reranker".
        trials: that have ended.
        failed: of them, those that failed.
        given: NDCG@10 of the settings that the part started from.
        best: NDCG@10 of the best.
        settings: of the best, those that are not what was given.
        seconds: all of them took.
    """

    name: str
    trials: int
    failed: int
    given: float
    best: float
    settings: Settings
    seconds: float

    @classmethod
    def of(cls, name: str, trials: Sequence[Trial]) -> Self:
        """What ``trials`` came to; the first, of what was given, succeeded."""
        first, best = trials[0], best_of(trials)
        return cls(
            name=name,
            trials=len(trials),
            failed=sum(trial.value is None for trial in trials),
            given=first.value or 0.0,
            best=best.value or 0.0,
            settings={
                key: value for key, value in best.params.items() if value != first.params[key]
            },
            seconds=round(sum(trial.seconds for trial in trials), 1),
        )

    def __str__(self) -> str:
        """In a line."""
        failed = f" ({self.failed} failed)" if self.failed else ""
        return (
            f"{self.name}: {self.trials} trials{failed} in {self.seconds:.0f} s; NDCG@10 "
            f"{self.best:.4f}, {self.given:.4f} as given; {told(self.settings) or 'as given'}"
        )


@dataclass(frozen=True, eq=False)
class Tuned:
    """The best recommender of a search, unfitted.

    Attributes:
        folder: where the search is kept, ``best.json`` among it.
        given: NDCG@10 of the order that the recommender would have served as it was given.
        best: the same of what was found.
        error: the standard error of ``best``, from the validation events being as few as they are.
        events: validation events that these are means over.
        parts: what was tried. Those of a recaller alone are measured on more events.

    The figures are of the events that the choice was made on, so ``best`` promises too much: ask
    :func:`hybridrec.evaluate` what the gain is worth on events that had no say.
    """

    folder: Path
    given: float
    best: float
    error: float
    events: int
    parts: tuple[TunedPart, ...]
    _stages: Stages = field(repr=False)
    _choice: Choice = field(repr=False)

    def recommender(self) -> HybridRecommender:
        """A new one with the best settings, to be fitted."""
        return self._stages.made(self._choice)

    @property
    def settings(self) -> dict[str, Any]:
        """Its settings as JSON values, which :func:`hybridrec.from_settings` reads."""
        return settings_of(self.recommender())

    def __str__(self) -> str:
        """A table of the parts, and what they came to."""
        width = max((len(part.name) for part in self.parts), default=0)
        lines = [f"{'part':{width}}  trials   given    best  best settings"]
        for part in self.parts:
            figures = f"{part.trials:6}  {_figure(part.given)}  {_figure(part.best)}"
            lines.append(f"{part.name:{width}}  {figures}  {told(part.settings) or 'as given'}")
        lines.append(
            f"NDCG@10 of the served order on {self.events} validation events: "
            f"{_figure(self.given)} as given, {_figure(self.best)} tuned "
            f"(standard error{_figure(self.error)})"
        )
        return "\n".join(lines)


def told(settings: Mapping[str, Any]) -> str:
    """``settings`` in a line."""
    return ", ".join(f"{name} {_short(value)}" for name, value in settings.items())


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _figure(value: float) -> str:
    return f"{value:.4f}".removeprefix("0").rjust(6)
