"""The wire into what the batcher is asked, and what it answers back into the wire."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from hybridrec.checks import InputError
from hybridrec.serve.answers.asking import Answer, Ask, Id, Ranked, Reasons
from hybridrec.serve.store import contract as store
from hybridrec.serve.wire import schema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hybridrec.deadline import Deadline
    from hybridrec.serve.versions.loaded import Loaded


@dataclass(frozen=True)
class Person:
    """Whom an answer is for.

    Attributes:
        user: in the type that the model has; None for a history.
        known: whether anything is stored of the user.
        liked: the history, oldest first.
        disliked: likewise.
    """

    user: Id | None
    known: bool
    liked: tuple[Id, ...]
    disliked: tuple[Id, ...] = ()


def person_of(loaded: Loaded, kept: store.Store, asked: schema.Person) -> Person:
    """Look up whom a request is about; asks the store, so never on the event loop.

    Raises:
        UnknownIdError: the user's id cannot be one of this model's.
        StoreError: the store is away.
    """
    if asked.user is None:
        return Person(None, True, tuple(asked.history or ()))
    user = loaded.user(asked.user)
    history = kept.histories([str(user)])[0]
    return Person(user, history.known, history.liked, history.disliked)


def recommend_ask(asked: schema.RecommendRequest, person: Person, deadline: Deadline | None) -> Ask:
    """What ``POST /v1/recommend`` asks of the batcher."""
    return replace(
        _ask(asked, person, deadline),
        k=asked.k,
        depth=asked.depth,
        exclude_seen=asked.exclude_seen,
        allow=None if asked.allow is None else tuple(asked.allow),
        block=tuple(asked.block),
    )


def rank_ask(asked: schema.RankRequest, person: Person, deadline: Deadline | None) -> Ask:
    """What ``POST /v1/rank`` asks of the batcher."""
    return replace(
        _ask(asked, person, deadline),
        k=len(asked.candidates),
        exclude_seen=False,
        candidates=tuple(asked.candidates),
    )


def _ask(
    asked: schema.RecommendRequest | schema.RankRequest, person: Person, deadline: Deadline | None
) -> Ask:
    """What both ask: who, and how it is to be answered."""
    return Ask(
        user=person.user,
        history=person.liked,
        disliked=person.disliked,
        lenient=person.user is not None,
        context=asked.context,
        deadline=deadline,
        rerank=asked.stages.rerank,
        fuse=asked.stages.fuse,
        explain=asked.explain,
    )


def response_of(
    loaded: Loaded, answer: Answer, person: Person, request_id: str, *, explain: bool
) -> schema.RecommendResponse:
    """What the caller gets."""
    return schema.RecommendResponse(
        request_id=request_id,
        model=answer.version,
        user=person.user,
        unknown_user=not person.known,
        popular=answer.popular,
        degraded=answer.degraded,
        items=[_item(loaded, rank, found) for rank, found in enumerate(answer.items, start=1)],
        history=[schema.HistoryItem(item=item, title=title) for item, title in answer.history]
        if explain
        else None,
        seconds=dict(answer.seconds) if explain else None,
    )


def _item(loaded: Loaded, rank: int, found: Ranked) -> schema.RankedItem:
    return schema.RankedItem(
        rank=rank,
        item=found.item,
        score=found.score,
        title=found.title,
        reranked=found.reranked,
        newcomer=found.newcomer,
        why=None if found.why is None else _why(loaded, found.why),
    )


def _why(loaded: Loaded, why: Reasons) -> schema.Why:
    return schema.Why(
        signals=dict(why.signals),
        ranks=dict(why.ranks),
        because=[
            schema.Reason(item=item, title=title_of(loaded, item), share=share)
            for item, share in why.because
        ],
        moved_by=list(why.moved_by),
    )


def title_of(loaded: Loaded, item: Id) -> str | None:
    """What people call an item; None for one that the model does not know."""
    code = int(loaded.item_codes([item])[0])
    return None if code < 0 else loaded.title(code)


def stored_events(
    loaded: Loaded, events: Sequence[schema.Event], now: datetime
) -> list[store.StoredEvent]:
    """Events as the store keeps them.

    Raises:
        UnknownIdError: an id that cannot be one of this model's; an item it merely does not know
            may come with the next one.
        InputError: a time that is too far ahead.
    """
    found = []
    for place, event in enumerate(events):
        if event.time is not None and event.time > now + store.AHEAD:
            raise InputError(
                f"events[{place}].time is {event.time.isoformat()}, and it is "
                f"{now.astimezone(UTC).isoformat(timespec='seconds')}: wanted no later than in 5 "
                "minutes; set the sender's clock"
            )
        user, item = str(loaded.user(event.user)), str(loaded.item(event.item))
        found.append(store.StoredEvent(event.id, user, item, event.time, event.liked))
    return found


def event_of(loaded: Loaded, event: store.StoredEvent) -> schema.StoredEvent:
    """An event as it is told of a user; of an item the model does not know the id is text."""
    code = int(loaded.item_codes([event.item])[0])
    return schema.StoredEvent(
        id=event.id,
        item=event.item if code < 0 else loaded.item_id(code),
        time=event.time,
        liked=event.liked,
        title=None if code < 0 else loaded.title(code),
    )


def told_of(loaded: Loaded, role: Literal["current", "previous"]) -> schema.LoadedModel:
    """A version in memory."""
    pipeline = loaded.pipeline
    stages = [*pipeline.blend.recallers, *pipeline.blend.scorers]
    names = [stage.name for stage in stages]
    if pipeline.reranker is not None and pipeline.asks_reranker:
        names.append(pipeline.reranker.name)
    return schema.LoadedModel(
        version=loaded.version,
        role=role,
        loaded=loaded.loaded,
        stages=names,
        items=loaded.data.n_items,
    )
