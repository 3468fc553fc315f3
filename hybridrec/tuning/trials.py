"""Trials that outlive the process: the only door of Optuna.

A search has parts, each a study of Optuna's in one SQLite file, which its own tools read too. What
is tried next depends on the seed and on the trials that have ended, never on how often the search
was interrupted.
"""

from __future__ import annotations

import json
import logging
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from zlib import crc32

from hybridrec.checks import HybridrecError, require_extra
from hybridrec.tuning.space import Range

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from hybridrec.tuning.space import Settings

    Evaluate = Callable[[Settings], tuple[float, dict[str, Any]]]

_log = logging.getLogger("hybridrec")

_RANDOM = 6
"""Trials of a part that are drawn at random, before there is enough to learn from."""
_NOTE = "hybridrec"


@dataclass(frozen=True)
class Trial:
    """One that has ended.

    Attributes:
        params: what was tried.
        value: what it was worth; None where it failed.
        seconds: it took.
        note: what else is known of it; "error" where it failed.
    """

    params: Settings
    value: float | None
    seconds: float
    note: dict[str, Any] = field(default_factory=dict)


class TrialsFile:
    """The studies of one search.

    Args:
        path: of the SQLite file, made if it is not there.
        seed: of what is tried.
    """

    def __init__(self, path: Path, seed: int) -> None:
        optuna: Any = require_extra("optuna", "tune")
        self.seed = seed
        with chatter_logged():
            self._storage = optuna.storages.RDBStorage(f"sqlite:///{path}")

    def part(self, name: str) -> Part:
        """The part ``name``, with the trials that it has."""
        return Part(self._storage, name, self.seed)

    def names(self) -> list[str]:
        """The parts that there are."""
        optuna: Any = require_extra("optuna", "tune")
        return list(optuna.get_all_study_names(self._storage))

    def close(self) -> None:
        """Let go of the file."""
        self._storage.remove_session()
        self._storage.engine.dispose()


class Part:
    """One study: trials of one set of settings, and what to try next.

    Args:
        storage: Optuna's.
        name: the study's.
        seed: of the search.
    """

    def __init__(self, storage: Any, name: str, seed: int) -> None:
        self._optuna: Any = require_extra("optuna", "tune")
        self.name = name
        self._seed = crc32(f"{seed} {name}".encode())
        with chatter_logged():
            self._study = self._optuna.create_study(
                storage=storage, study_name=name, direction="maximize", load_if_exists=True
            )
            self._forget_interrupted()

    def _forget_interrupted(self) -> None:
        """What a killed process left half-way will never end."""
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state == self._state("RUNNING"):
                self._study.tell(trial.number, state=self._state("FAIL"))

    def ended(self) -> list[Trial]:
        """The trials that came to an end, the oldest first; those cut short are not among them."""
        found = [
            Trial(dict(trial.params), trial.value, **json.loads(trial.user_attrs[_NOTE]))
            for trial in self._study.get_trials(deepcopy=False)
            if _NOTE in trial.user_attrs
        ]
        return [trial for trial in found if trial.value is not None or "error" in trial.note]

    @property
    def seconds(self) -> float:
        """That its trials took."""
        return sum(trial.seconds for trial in self.ended())

    @property
    def best(self) -> Trial:
        """The best trial, of equal ones the oldest; the first never fails."""
        return best_of(self.ended())

    def try_next(self, space: Mapping[str, Any], fixed: Settings, evaluate: Evaluate) -> Trial:
        """One more trial: of ``fixed``, or where that is empty of what seems worth it.

        What was tried before is not computed again.

        Raises:
            HybridrecError: the very first trial fails; later ones are written down as failed.
        """
        before = self.ended()
        with chatter_logged():
            trial = self._asked(space, fixed, len(before))
        params = dict(trial.params)
        try:
            result = _repeated(before, params) or self._evaluated(params, evaluate, not before)
        except BaseException:
            self._study.tell(trial, state=self._state("FAIL"))
            raise
        note = {"seconds": result.seconds, "note": result.note}
        with chatter_logged():
            trial.set_user_attr(_NOTE, json.dumps(note))
            if result.value is None:
                self._study.tell(trial, state=self._state("FAIL"))
            else:
                self._study.tell(trial, result.value)
        return result

    def _asked(self, space: Mapping[str, Any], fixed: Settings, ended: int) -> Any:
        self._study.sampler = self._optuna.samplers.TPESampler(
            seed=(self._seed + ended) % 2**32, n_startup_trials=_RANDOM, multivariate=True
        )
        if fixed:
            self._study.enqueue_trial(fixed)
        return self._study.ask({name: self._distribution(space[name]) for name in space})

    def _evaluated(self, params: Settings, evaluate: Evaluate, first: bool) -> Trial:
        started = time.perf_counter()
        value: float | None = None
        note: dict[str, Any] = {}
        try:
            value, note = evaluate(params)
        except (HybridrecError, MemoryError) as error:
            if first:
                raise
            _log.info("%s: %s failed: %s", self.name, params, error)
            note = {"error": str(error)}
        return Trial(params, value, time.perf_counter() - started, note)

    def _distribution(self, values: Any) -> Any:
        of = self._optuna.distributions
        if not isinstance(values, Range):
            return of.CategoricalDistribution(list(values))
        kind = of.IntDistribution if values.whole else of.FloatDistribution
        return kind(values.low, values.high, log=values.log)

    def _state(self, name: str) -> Any:
        return self._optuna.trial.TrialState[name]


def best_of(trials: Sequence[Trial]) -> Trial:
    """The best of ``trials``, of equal ones the oldest."""
    return max(trials, key=lambda trial: -math.inf if trial.value is None else trial.value)


def _repeated(before: list[Trial], params: Mapping[str, Any]) -> Trial | None:
    """The trial of the same ``params``, at no cost."""
    for trial in before:
        if trial.params == params:
            return Trial(trial.params, trial.value, 0.0, trial.note)
    return None


@contextmanager
def chatter_logged() -> Iterator[None]:
    """What Optuna says goes to the log of hybridrec, as detail, and nowhere else."""
    logger = logging.getLogger("optuna")
    handlers, propagate = list(logger.handlers), logger.propagate
    logger.handlers, logger.propagate = [_Forward()], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate


class _Forward(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _log.debug("optuna: %s", record.getMessage())
