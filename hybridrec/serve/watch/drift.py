"""Whether what is served still looks like what was served when the model was new."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hybridrec.checks import InputError, whole_number

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

TOP = 10
"""Places of an answer whose scores count, so that one long list does not outweigh the others."""

Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class DriftConfig:
    """How much is looked at.

    Attributes:
        reference: answers, the first ones, that later ones are compared with.
        window: answers, the newest ones, that are compared; by number and not by time, so that the
            figures of a quiet night are as good as those of a busy evening.
        step: answers between two looks; divides the other two.
        bins: of the reference's scores, equally full.
    """

    reference: int = 1000
    window: int = 10_000
    step: int = 100
    bins: int = 10

    def __post_init__(self) -> None:
        whole_number("step", self.step, least=1)
        whole_number("bins", self.bins, least=2)
        for name in ("reference", "window"):
            value = whole_number(name, getattr(self, name), least=self.step)
            if value % self.step:
                raise InputError(f"{name} is {value}; wanted a multiple of step ({self.step})")


@dataclass(frozen=True)
class Figures:
    """What the newest answers look like; NaN where too few were given.

    Attributes:
        answers: in the window.
        scores: population stability index of the window's scores against the reference's. A rule
            of thumb of credit scoring, where it comes from: below 0.1 nothing, above 0.25 a shift.
        items: distinct ones.
        cold: share of the answers that had no history to go by.
    """

    answers: int = 0
    scores: float = math.nan
    items: int = 0
    cold: float = math.nan


@dataclass(frozen=True)
class _Step:
    items: frozenset[Hashable]
    cold: int
    counts: Counts | None = None


class Drift:
    """Keeps figures of the newest answers. Not safe to share between threads without a lock.

    O(items answered) a step in time, O(window) in memory.

    Attributes:
        figures: as of the last step.
        newest: scores of the last step's answers.
    """

    def __init__(self, config: DriftConfig | None = None) -> None:
        self.config = config or DriftConfig()
        self._scores: list[float] = []
        self._items: set[Hashable] = set()
        self._answers = self._cold = 0
        self._early: list[NDArray[np.float64]] = []
        self._edges: NDArray[np.float64] | None = None
        self._expected: Counts = np.zeros(0, dtype=np.int64)
        self._steps: deque[_Step] = deque()
        self._counts: Counts = np.zeros(0, dtype=np.int64)
        self._served: Counter[Hashable] = Counter()
        self.figures = Figures()
        self.newest: NDArray[np.float64] = np.zeros(0)

    def add(self, scores: Sequence[float | None], items: Sequence[Hashable], *, cold: bool) -> bool:
        """Take one answer, best item first; True where ``figures`` were made anew.

        Scores that are None or not finite, of items that no stage could score, are left out.
        """
        self._scores += [score for score in scores[:TOP] if score is not None]
        self._items.update(items)
        self._cold += cold
        self._answers += 1
        if self._answers < self.config.step:
            return False
        self._take_step()
        return True

    def _take_step(self) -> None:
        scores = np.asarray(self._scores, dtype=np.float64)
        scores = scores[np.isfinite(scores)]
        counts = None
        if self._edges is None:
            self._learn(scores)
        else:
            counts = binned(scores, self._edges)
            self._counts += counts
        self.newest = scores
        step = _Step(frozenset(self._items), self._cold, counts)
        self._steps.append(step)
        self._served.update(step.items)
        if len(self._steps) > self.config.window // self.config.step:
            self._leave(self._steps.popleft())
        self._scores, self._items, self._answers, self._cold = [], set(), 0, 0
        self.figures = self._look()

    def _learn(self, scores: NDArray[np.float64]) -> None:
        """Add to the reference; where it is complete, the window's scores begin after it."""
        self._early.append(scores)
        if len(self._early) * self.config.step < self.config.reference:
            return
        early = np.concatenate(self._early)
        self._early = []
        self._edges = edges(early, self.config.bins)
        self._expected = binned(early, self._edges)
        self._counts = np.zeros_like(self._expected)

    def _leave(self, step: _Step) -> None:
        if step.counts is not None:
            self._counts -= step.counts
        self._served.subtract(step.items)
        for item in step.items:
            if not self._served[item]:
                del self._served[item]

    def _look(self) -> Figures:
        answers = len(self._steps) * self.config.step
        compared = sum(step.counts is not None for step in self._steps) * self.config.step
        stability = math.nan
        if compared >= min(self.config.reference, self.config.window):
            stability = population_stability(self._expected, self._counts)
        cold = sum(step.cold for step in self._steps)
        return Figures(answers, stability, len(self._served), cold / answers)


def edges(scores: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Cut points (at most ``bins`` + 2,) float64, rising, that make ``bins`` equally full bins.

    Two more bins lie outside of all that ``scores`` hold. Equal scores make fewer bins.
    """
    if not scores.size:
        return np.zeros(0)
    cuts = np.quantile(scores, np.linspace(0.0, 1.0, bins + 1))
    return np.unique(np.concatenate([[np.nextafter(cuts[0], -np.inf)], cuts]))


def binned(scores: NDArray[np.float64], cuts: NDArray[np.float64]) -> Counts:
    """How many ``scores`` are at most ``cuts[0]``, at most ``cuts[1]``, ... (len(cuts) + 1,)."""
    where = np.searchsorted(cuts, scores, side="left")
    return np.bincount(where, minlength=len(cuts) + 1).astype(np.int64)


def population_stability(expected: Counts, actual: Counts) -> float:
    """The sum over bins of (a - e) ln(a / e) for the shares e and a; 0 where they are the same.

    Kullback and Leibler's symmetric divergence (1951). Half an observation is added to every bin
    (Jeffreys' prior), so that an empty one is no infinity. NaN where there is nothing to compare.

    Raises:
        InputError: not the same bins.
    """
    if expected.shape != actual.shape:
        raise InputError(f"actual has {actual.shape} bins; wanted {expected.shape}, as expected")
    if not expected.sum() or not actual.sum():
        return math.nan
    before = (expected + 0.5) / (expected + 0.5).sum()
    now = (actual + 0.5) / (actual + 0.5).sum()
    return float(((now - before) * np.log(now / before)).sum())
