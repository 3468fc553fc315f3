"""What the batcher is asked and what it answers: ids in, ids out, no wire in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from hybridrec.deadline import Deadline

Id = str | int
Degradation = Literal["fewer_reranked", "no_reranker", "popularity"]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request for a ranked list.

    Attributes:
        user: whom it is for; None for a history of nobody's.
        history: item ids, oldest first.
        disliked: items that were seen and are no part of the history.
        k: items wanted.
        depth: candidates to recall; None takes the model's.
        exclude_seen: leave out ``history`` and ``disliked``.
        allow: the only items that may be answered; None for all.
        block: items that may not.
        candidates: rank these and no others, all of them, seen or not: those that no stage can
            place stand behind without a score. ``k``, ``depth``, ``exclude_seen``, ``allow`` and
            ``block`` are not read then. None recommends.
        lenient: ``history`` and ``disliked`` come from the store, which may know of items that the
            model does not: these are left out and no error.
        context: columns of the request.
        deadline: from when the request came in; None sets no limit.
        rerank: False leaves the reranker out.
        fuse: False leaves the fusions out.
        explain: say why each item is there.
    """

    user: Id | None = None
    history: tuple[Id, ...] = ()
    disliked: tuple[Id, ...] = ()
    k: int = 10
    depth: int | None = None
    exclude_seen: bool = True
    allow: tuple[Id, ...] | None = None
    block: tuple[Id, ...] = ()
    candidates: tuple[Id, ...] | None = None
    lenient: bool = False
    context: Mapping[str, object] = field(default_factory=dict)
    deadline: Deadline | None = None
    rerank: bool = True
    fuse: bool = True
    explain: bool = False


@dataclass(frozen=True)
class Reasons:
    """Why an item is there; see :class:`hybridrec.serve.wire.schema.Why`."""

    signals: Mapping[str, float]
    ranks: Mapping[str, int]
    because: tuple[tuple[Id, float], ...] = ()
    moved_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ranked:
    """One item of an answer; ``score`` is None where no stage could score it."""

    item: Id
    score: float | None
    title: str | None = None
    reranked: bool = False
    newcomer: bool = False
    why: Reasons | None = None


@dataclass(frozen=True)
class Answer:
    """What an :class:`Ask` gets.

    Attributes:
        version: of the model that answered.
        items: best first.
        popular: there was no history to go by.
        degraded: what was left out for want of time.
        seconds: by stage, of the batch it was part of: "queue", "recall", "fuse", "rerank", ...
        history: (item, title) as far as the catalogue knows them, oldest first; with ``explain``.
    """

    version: str
    items: tuple[Ranked, ...]
    popular: bool = False
    degraded: Degradation | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    history: tuple[tuple[Id, str | None], ...] = ()
