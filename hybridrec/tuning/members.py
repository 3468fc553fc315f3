"""Which recallers together: sensible sets first, then the best with one recaller changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybridrec.tuning.trials import best_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hybridrec.tuning.trials import Trial

GIVEN, TUNED, OUT = "given", "tuned", "out"
"""A recaller as it was, with its own best settings, or left out."""

Members = dict[str, str]


def options_of(
    changed: Mapping[str, object], offered: Sequence[str], needed: Sequence[str] | set[str]
) -> dict[str, tuple[str, ...]]:
    """What each recaller may be; what it is in the recommender that was given comes first.

    Args:
        changed: by recaller, the settings that its own search changed, which may be none.
        offered: recallers that were not there.
        needed: recallers that must stay.
    """
    options: dict[str, tuple[str, ...]] = {}
    for name, settings in changed.items():
        best = TUNED if settings else GIVEN
        if name in offered:
            options[name] = (OUT, best)
        else:
            kept = (GIVEN, TUNED) if settings else (GIVEN,)
            options[name] = kept if name in needed else (*kept, OUT)
    return options


def next_members(options: Mapping[str, Sequence[str]], ended: Sequence[Trial]) -> Members | None:
    """What to try after the trials that have ``ended``; None where nothing is left.

    Beginning with what was given; then tuned, then with all that is offered; then whatever differs
    from the best so far in one recaller.
    """
    tried = [trial.params for trial in ended]
    candidates = _first(options)
    if ended:
        best = best_of(ended).params
        candidates += [{**best, name: option} for name in options for option in options[name]]
    for members in candidates:
        if members not in tried and any(option != OUT for option in members.values()):
            return members
    return None


def _first(options: Mapping[str, Sequence[str]]) -> list[Members]:
    given = {name: each[0] for name, each in options.items()}
    tuned = {
        name: TUNED if TUNED in each and each[0] != OUT else each[0]
        for name, each in options.items()
    }
    every = {name: each[1] if each[0] == OUT else tuned[name] for name, each in options.items()}
    untuned = {name: each[1] if each[0] == OUT else each[0] for name, each in options.items()}
    return [given, tuned, every, untuned]
