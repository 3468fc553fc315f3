"""What an event must be and what counts as the same one, whichever store keeps it."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from hybridrec.checks import InputError, InputTypeError
from hybridrec.serve.store.contract import (
    AHEAD,
    ConflictError,
    ForgottenError,
    History,
    StoredEvent,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    Content = tuple[str, str, datetime | None, bool]
    Seen = tuple[str, datetime | None, bool]

MOST_CHARACTERS = 256
"""Of an id: what an index of either store can hold of it."""
CHUNK = 2000
"""Imported events that are written together, so that other writers get their turn."""


def checked_text(name: str, value: object) -> str:
    """``value`` if both stores can hold it, or an error that calls it ``name``."""
    if not isinstance(value, str):
        raise InputTypeError(f"{name} is {value!r:.100} ({type(value).__name__}); wanted a str")
    if not 1 <= len(value) <= MOST_CHARACTERS:
        raise InputError(f"{name} has {len(value)} characters; wanted 1 to {MOST_CHARACTERS}")
    if "\0" in value:
        raise InputError(f"{name} is {value!r:.100}; wanted a text without NUL characters")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is {value!r:.100}; wanted valid Unicode ({error})") from error
    return value


def holds(text: object) -> bool:
    """Whether a store could have ``text``: what it refuses to keep, nobody need look for."""
    try:
        checked_text("id", text)
    except InputError:
        return False
    return True


def utc(name: str, time: datetime) -> datetime:
    """``time`` in UTC, or an error that calls it ``name``."""
    if not isinstance(time, datetime):
        raise InputTypeError(f"{name} is {time!r:.100}; wanted a datetime")
    if time.utcoffset() is None:
        raise InputError(f"{name} is {time.isoformat()}, without an offset; wanted one, such as Z")
    try:
        return time.astimezone(UTC)
    except OverflowError as error:
        raise InputError(f"{name} is {time.isoformat()}; wanted one in the years 1 to 9999") from (
            error
        )


def checked(events: Iterable[StoredEvent], *, imported: bool = False) -> Iterator[StoredEvent]:
    """``events`` with their times in UTC.

    Raises:
        InputError: an id is missing, too long or no text that can be kept; a time has no offset.
        InputTypeError: something is not of the type that :class:`StoredEvent` says.
    """
    for place, event in enumerate(events):
        where = f"events[{place}]"
        if not imported:
            checked_text(f"{where}.id", event.id)
        checked_text(f"{where}.user", event.user)
        checked_text(f"{where}.item", event.item)
        if event.time is not None and getattr(event.time, "tzinfo", None) is not UTC:
            event = replace(event, time=utc(f"{where}.time", event.time))
        yield event


def content(event: StoredEvent) -> Content:
    """What makes two events of one id the same; the time only where the caller gave it."""
    return event.user, event.item, event.time, event.liked


def once_each(events: Iterable[StoredEvent]) -> dict[str, StoredEvent]:
    """The events by their ids, in order.

    Raises:
        ConflictError: an id stands here twice, with different contents.
    """
    first: dict[str, StoredEvent] = {}
    for event in events:
        refuse_other(first.setdefault(str(event.id), event), content(event))
    return first


def refuse_other(event: StoredEvent, stored: Content) -> None:
    """Raise ConflictError unless what is stored under the id of ``event`` is its content."""
    if content(event) != stored:
        raise ConflictError(
            f"event id {event.id!r} was used before with another user, item, time or liked; "
            "send what you sent then, or take a new id"
        )


def forgotten_at(newest: datetime | None) -> datetime:
    """The moment of a forgetting: now, or that of a clock ahead which gave the ``newest`` event.

    No clock is further ahead than ``AHEAD``: a later event, which only an import brings, would
    have its user refused until then.
    """
    now = datetime.now(UTC)
    return now if newest is None else min(max(now, newest), now + AHEAD)


def refuse_forgotten(events: Iterable[StoredEvent], moments: Mapping[str, datetime]) -> None:
    """Raise ForgottenError if an event is no newer than the forgetting of its user.

    Args:
        events: what is to be stored; one without a time is happening now.
        moments: of the users who were forgotten.
    """
    if not moments:
        return
    for event in events:
        moment = moments.get(event.user)
        if moment is not None and event.time is not None and event.time <= moment:
            raise ForgottenError(
                f"event {event.id!r} is of {event.time.isoformat()}, and its user was forgotten at "
                f"{moment.isoformat()}: what was before is not taken again"
            )


def maybe_replayed(
    events: Iterable[StoredEvent], moments: Mapping[str, datetime], key: str, secret: bytes
) -> dict[bytes, StoredEvent]:
    """Those of ``events`` that may be from before their users were forgotten, by their tags.

    Args:
        events: that ``key`` sends; the times of those that have one tell of themselves.
        moments: of the users who were forgotten.
        key: the id of an API key.
        secret: the installation's.
    """
    return {
        event_tag(secret, key, str(event.id), event.user): event
        for event in events
        if event.time is None and event.user in moments
    }


def refuse_replayed(events: Iterable[StoredEvent]) -> None:
    """Raise ForgottenError if there is an event, which was stored before its user was forgotten."""
    for event in events:
        raise ForgottenError(
            f"event {event.id!r} was sent before its user was forgotten: what was before is not "
            "taken again"
        )


def new_to(
    known: set[Seen], events: Sequence[StoredEvent], moment: datetime | None
) -> list[StoredEvent]:
    """Those of a user's imported ``events`` that a store with ``known`` should take.

    Args:
        known: (item, time, liked) of what is stored of the user.
        events: of that user.
        moment: when the user was forgotten; only what has happened since is taken then.
    """
    if moment is not None:
        latest = datetime.now(UTC) + AHEAD
        events = [event for event in events if event.time and moment < event.time <= latest]
    return [event for event in events if (event.item, event.time, event.liked) not in known]


def chunks(events: Iterable[StoredEvent], size: int = CHUNK) -> Iterator[list[list[StoredEvent]]]:
    """Imported events, checked, some users at a time and never a part of a user's.

    So an import that was interrupted finds every user complete or not begun when it starts again.
    """
    chunk: list[list[StoredEvent]] = []
    held = 0
    for _, group in groupby(checked(events, imported=True), key=attrgetter("user")):
        chunk.append(list(group))
        held += len(chunk[-1])
        if held >= size:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def user_tag(secret: bytes, user: str) -> bytes:
    """What stays of a forgotten user: HMAC-SHA256, of no use without the installation's secret."""
    return hmac.new(secret, user.encode(), hashlib.sha256).digest()


def event_tag(secret: bytes, key: str, event_id: str, user: str) -> bytes:
    """What stays of a forgotten user's event without a time, of as little use."""
    # Of the user as well: for others the id is as good as new. No part of it has a NUL.
    return user_tag(secret, f"{key}\0{event_id}\0{user}")


def history(rows: Iterable[tuple[str, Any]]) -> History:
    """From (item, liked), oldest first."""
    liked: list[str] = []
    disliked: list[str] = []
    for item, is_liked in rows:
        (liked if is_liked else disliked).append(item)
    return History(bool(liked or disliked), tuple(liked), tuple(disliked))
