"""How much of a search each of its parts may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from hybridrec.checks import InputError, real_number, whole_number

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST = {"given": 1, "recaller": 60, "recallers": 60, "fusion": 60, "reranker": 30}
"""Trials of a part however much time there is: more would fit the chance in the events."""
_RERANKER_SHARE = 4
"""A reranker gets one trial for so many of any other part."""


@dataclass(frozen=True)
class Limits:
    """What the caller allows.

    Attributes:
        minutes: for all trials together; None for no limit.
        trials: of each part at most; None for no limit but our own.
    """

    minutes: float | None
    trials: int | None

    @classmethod
    def checked(cls, minutes: object, trials: object) -> Self:
        """The limits that a caller gave.

        Raises:
            InputError: none, or one that is not above 0.
        """
        if minutes is None and trials is None:
            raise InputError("give minutes= or trials=, or both: a search has no end of its own")
        return cls(
            None if minutes is None else real_number("minutes", minutes, above=0),
            None if trials is None else whole_number("trials", trials, least=1),
        )

    def trials_of(self, part: str) -> int:
        """How many trials ``part`` may have at most."""
        kind = part.split(" ")[0]
        if self.trials is None:
            return _MOST[kind]
        few = -(-self.trials // _RERANKER_SHARE) if kind == "reranker" else self.trials
        return min(few, _MOST[kind])


class Clock:
    """Deals time to parts in turn; what one leaves over goes to all that follow.

    What counts is what trials took, in this process and in those before it: so a search that was
    interrupted goes on with what was left.

    Args:
        minutes: of all parts together; None sets no limit.
        weights: of the parts, in the order of their turns.
    """

    def __init__(self, minutes: float | None, weights: Mapping[str, float]) -> None:
        self._left = None if minutes is None else 60.0 * minutes
        self._weights = dict(weights)

    def share(self, part: str) -> float | None:
        """Seconds for ``part``, which is next; None for no limit."""
        total = sum(self._weights.values())
        if self._left is None:
            return None
        return self._left * self._weights[part] / total if total else 0.0

    def ended(self, part: str, seconds: float) -> None:
        """``part`` has had its turn, and its trials took so many ``seconds``."""
        del self._weights[part]
        if self._left is not None:
            self._left = max(0.0, self._left - seconds)


def weights_of(recallers: list[str], fusions: list[str], *, reranker: bool) -> dict[str, float]:
    """How the time is to be divided among the parts, in the order of their turns.

    A recaller's own settings decide most where there is no reranker; one trial of a reranker takes
    as long as dozens of the others.
    """
    alone, together, fusing = (0.25, 0.1, 0.1) if reranker else (0.5, 0.25, 0.25)
    weights = {"given": 0.0}
    weights |= {name: alone / len(recallers) for name in recallers}
    weights["recallers"] = together
    weights |= {name: fusing / len(fusions) for name in fusions}
    return weights | ({"reranker": 0.55} if reranker else {})
