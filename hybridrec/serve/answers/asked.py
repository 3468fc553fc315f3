"""Asks in the codes of a model, and which of them one ranking can answer together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hybridrec.candidates import Queries
from hybridrec.checks import InputError, whole_number
from hybridrec.data import requests
from hybridrec.protocols import ReadsContext
from hybridrec.ragged import Ragged

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from hybridrec.deadline import Deadline
    from hybridrec.ragged import Items, Mask
    from hybridrec.serve.answers.asking import Ask
    from hybridrec.serve.versions.loaded import Loaded

_NOTHING = np.empty(0, dtype=np.int32)
_ALIKE = 2.0
"""Deadlines go together where the last leaves no more than this times what the first does: the
first of a group is everybody's."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Asked:
    """An :class:`~hybridrec.serve.answers.asking.Ask` whose ids are known, in codes.

    Attributes:
        place: of the ask among those it came with.
        ask: what it says.
        user: the user's code, -1 for whom the model does not know.
        history: the newest events to go by.
        exclude: items left out.
        allow: the only items that may be answered, rising; None for all.
        k: places wanted.
        depth: candidates to recall.
        context: the columns that the reranker reads.
    """

    place: int
    ask: Ask
    user: int
    history: Items
    exclude: Items
    allow: Items | None
    k: int
    depth: int
    context: tuple[str, ...]

    @property
    def company(self) -> Hashable:
        """What asks have in common that one ranking answers."""
        ask = self.ask
        same = self.context, ask.rerank, ask.fuse, ask.deadline is None, ask.explain
        if ask.candidates is not None:
            return same  # however deep: recall brings all that is allowed
        return *same, self.depth, None if self.allow is None else self.allow.tobytes()


def read(loaded: Loaded, place: int, ask: Ask) -> Asked:
    """An ask in the codes of ``loaded``.

    Raises:
        UnknownIdError: an item that the model does not know; names it.
        InputError: a column that the reranker reads is missing, or a number is out of range.
    """
    history, disliked = _met(loaded, ask)
    exclude = [history, disliked] if ask.exclude_seen else []
    user = loaded.user_code(ask.user)
    if user < 0 and loaded.reads_users:
        history = _NOTHING  # a stage knows nobody by it
    allow, most = None, loaded.data.n_items
    if ask.candidates is not None:
        allow = np.unique(loaded.known_items("candidates", ask.candidates))
        k = depth = max(1, len(allow))
        exclude = []
    else:
        k = whole_number("k", ask.k, least=1)
        depth = loaded.pipeline.depth if ask.depth is None else ask.depth
        # As the engine has it: a list is never shorter than what is asked of it.
        depth = min(max(k, whole_number("depth", depth, least=1)), most)
        exclude.append(loaded.known_items("block", ask.block))
        if ask.allow is not None:
            allow = np.unique(loaded.known_items("allow", ask.allow))
    return Asked(
        place=place,
        ask=ask,
        user=user,
        history=history[-requests.MAX_HISTORY :],
        exclude=np.concatenate([*exclude, _NOTHING]),
        allow=allow,
        k=min(k, most),
        depth=depth,
        context=_columns(loaded, ask) if len(history) else (),
    )


def _met(loaded: Loaded, ask: Ask) -> tuple[Items, Items]:
    """The history and what was disliked."""
    if not ask.lenient:
        history = loaded.known_items("history", ask.history)
        return history, loaded.known_items("disliked", ask.disliked)
    history, disliked = loaded.item_codes(ask.history), loaded.item_codes(ask.disliked)
    return history[history >= 0], disliked[disliked >= 0]


def _columns(loaded: Loaded, ask: Ask) -> tuple[str, ...]:
    """The columns of the request that the reranker reads; all where nothing says which."""
    reranker = loaded.pipeline.reranker
    if not loaded.pipeline.asks_reranker or not ask.rerank:
        return ()
    if not isinstance(reranker, ReadsContext):
        return tuple(sorted(ask.context))
    missing = [name for name in reranker.context_columns if name not in ask.context]
    if missing:
        raise InputError(
            f"context lacks {missing[0]!r}, which the reranker's template names; got "
            f"{sorted(ask.context)}: pass context={{{missing[0]!r}: ...}}"
        )
    return reranker.context_columns


def groups(asked: Sequence[Asked]) -> list[list[Asked]]:
    """Groups that one ranking answers: the most urgent first, those that want reasons last."""
    found: dict[Hashable, list[Asked]] = {}
    for one in asked:
        found.setdefault(one.company, []).append(one)
    urgent, patient = [], []
    for group in found.values():
        if group[0].ask.deadline is None:
            patient.append(group)
        else:
            urgent += _alike(group)
    urgent.sort(key=lambda pair: pair[0])
    patient.sort(key=lambda group: group[0].ask.explain)
    return [*(group for _, group in urgent), *patient]


def _alike(group: Sequence[Asked]) -> list[tuple[float, list[Asked]]]:
    """Parts of a group with deadlines that are near to one another, and the seconds left."""
    timed = sorted(((_left(one.ask.deadline), one) for one in group), key=lambda pair: pair[0])
    parts: list[tuple[float, list[Asked]]] = []
    for left, one in timed:
        if parts and (left <= 0 or left <= _ALIKE * parts[-1][0]):
            parts[-1][1].append(one)
        else:
            parts.append((left, [one]))
    return parts


def _left(deadline: Deadline | None) -> float:
    return np.inf if deadline is None else deadline.left()


def queries(loaded: Loaded, group: Sequence[Asked], *, told: bool = True) -> Queries:
    """What one group asks; without its histories where not ``told``."""
    columns = group[0].context if told else ()
    allow, exclude = group[0].allow, [one.exclude for one in group]
    if group[0].ask.candidates is not None:
        # Allowed is what anybody asks about; everybody leaves out what others do.
        own = [_NOTHING if one.allow is None else one.allow for one in group]
        allow = np.unique(np.concatenate(own))
        exclude = [np.setdiff1d(allow, each, assume_unique=True) for each in own]
    return Queries(
        Ragged.from_rows([one.history if told else _NOTHING for one in group]),
        loaded.data.n_items,
        users=np.array([one.user for one in group], dtype=np.int32),
        exclude=Ragged.from_rows(exclude),
        allow=_mask(loaded, allow),
        context={name: [one.ask.context[name] for one in group] for name in columns},
        ordered=loaded.data.ordered,
    )


def _mask(loaded: Loaded, allow: Items | None) -> Mask | None:
    """(I,) what may be answered; None for everything."""
    retired = loaded.engine.retired
    if allow is None:
        return ~retired if retired.any() else None
    mask = np.zeros(loaded.data.n_items, dtype=np.bool_)
    mask[allow] = True
    return mask & ~retired
