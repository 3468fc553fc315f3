"""Which settings are worth trying, and a stage with other settings."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import partial
from typing import Any, TypeVar

from hybridrec.checks import HybridrecError, InputError, InputTypeError, real_number, whole_number

S = TypeVar("S")

Settings = dict[str, Any]
"""Some settings of a stage by name; ``finetuning.epochs`` is a setting of a setting."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers to try: whole ones where both ends are, else real ones; both ends are among them.

    Attributes:
        low: the smallest.
        high: the largest.
        log: try as many between 1 and 10 as between 10 and 100; ``low`` must be above 0.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        check = partial(whole_number, least=-(2**53)) if self.whole else real_number
        check("low", self.low)
        check("high", self.high)
        if self.low > self.high or (self.log and self.low <= 0):
            least = ", from above 0" if self.log else ""
            raise InputError(f"low is {self.low} and high {self.high}; wanted low <= high{least}")

    @property
    def whole(self) -> bool:
        """Whether only whole numbers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def holding(self, value: float) -> Range:
        """The same, made wide enough for ``value``."""
        return replace(self, low=min(self.low, value), high=max(self.high, value))


Values = Range | tuple[Any, ...]
Space = dict[str, Values]
"""What to try of each setting of a stage: a range, or one of several values."""

SPACES: dict[str, Space] = {
    "ALS": {
        "factors": (32, 64, 128),
        "regularization": Range(low=1e-3, high=0.1, log=True),
    },
    "EASE": {"regularization": Range(low=10.0, high=3000.0, log=True)},
    "ItemKNN": {
        "neighbours": Range(low=50, high=800, log=True),
        "shrinkage": Range(low=1.0, high=300.0, log=True),
    },
    "ItemTransitions": {
        "window": Range(low=2, high=30, log=True),
        "smoothing": Range(low=1.0, high=500.0, log=True),
    },
    "LinearTransitions": {
        "regularization": Range(low=10.0, high=3000.0, log=True),
        "memory": Range(low=1.0, high=20.0, log=True),
    },
    "SequenceRecall": {
        "width": (64, 128),
        "dropout": Range(low=0.0, high=0.5),
        "learning_rate": Range(low=5e-4, high=5e-3, log=True),
        "epochs": (8, 12, 24, 40),
    },
    "LinearFusion": {"regularization": Range(low=1e-5, high=0.1, log=True)},
    "ReciprocalRankFusion": {"offset": Range(low=1.0, high=100.0, log=True)},
    "TreeFusion": {
        "trees": Range(low=20, high=200, log=True),
        "leaves": Range(low=4, high=63, log=True),
        "learning_rate": Range(low=0.02, high=0.2, log=True),
        "least_in_leaf": Range(low=20, high=1000, log=True),
        "l2": Range(low=0.1, high=100.0, log=True),
    },
    "CrossEncoder": {
        "history": (3, 5, 10, 20),
        "finetuning.learning_rate": Range(low=5e-5, high=5e-4, log=True),
        "finetuning.recall_share": Range(low=0.0, high=1.0),
        "finetuning.negatives": (7, 15, 31),
    },
}
"""Of each kind of stage; half-lives and blend weights are chosen by every fit anew."""


def space_of(name: str, stage: object, given: Mapping[str, Mapping[str, Any]] | None) -> Space:
    """What to try of ``stage``: what ``given`` says under ``name``, or what suits its kind.

    The settings that the stage has are always among it.

    Raises:
        InputError: a setting that it does not have, or a value that it refuses.
        InputTypeError: something that is neither a range nor a list of values.
    """
    kinds = [kind.__name__ for kind in type(stage).__mro__ if kind.__name__ in SPACES]
    wanted = (given or {}).get(name, SPACES[kinds[0]] if kinds else {})
    return {setting: _checked(name, stage, setting, wanted[setting]) for setting in wanted}


def settings_in(stage: object, space: Mapping[str, Any]) -> Settings:
    """What ``stage`` has for each setting of ``space``."""
    return {setting: _setting(stage, setting) for setting in space}


def varied(stage: S, settings: Mapping[str, Any]) -> S:
    """A copy of ``stage`` with other ``settings``, to be fitted anew.

    Raises:
        HybridrecError: the stage refuses one.
    """
    twin: Any = copy.copy(stage)
    config: Any = twin.config if settings else None
    for setting, value in settings.items():
        outer, _, inner = setting.partition(".")
        if inner:
            value = replace(getattr(config, outer), **{inner: value})
        config = replace(config, **{outer: value})
    if settings:
        twin.config = config
    return twin  # type: ignore[no-any-return]


def _checked(name: str, stage: object, setting: str, values: Any) -> Values:
    """``values`` with the setting that the stage has, once the stage takes them."""
    there = _setting(stage, setting, name)
    if setting in ("name", "half_life"):
        raise InputError(
            f"space[{name!r}] names {setting!r}, which "
            + ("is no setting to try" if setting == "name" else "every fit chooses by itself")
            + ": leave it out"
        )
    wide: Values
    if isinstance(values, Range):
        wide = values.holding(there)
        tried: Sequence[Any] = (wide.low, wide.high)
    elif isinstance(values, (list, tuple)) and values:
        tried = wide = (*values, *(() if there in values else (there,)))
    else:
        raise InputTypeError(
            f"space[{name!r}][{setting!r}] is {values!r}; wanted a hybridrec.Range or a list of "
            "values"
        )
    for value in tried:
        if not isinstance(value, (bool, int, float, str, type(None))):
            raise InputTypeError(
                f"space[{name!r}][{setting!r}] holds {value!r}; wanted numbers, strings or None"
            )
        try:
            varied(stage, {setting: value})
        except HybridrecError as error:
            raise InputError(f"space[{name!r}][{setting!r}]: {error}") from error
    return wide


def _setting(stage: object, setting: str, name: str = "") -> Any:
    value = getattr(stage, "config", None)
    for part in setting.split("."):
        if not is_dataclass(value) or not hasattr(value, part):
            raise InputError(
                f"space[{name!r}] names {setting!r}, which {stage!r:.60} does not have"
            )
        value = getattr(value, part)
    return value
