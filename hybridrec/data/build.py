"""From tables to the fields of a ``Dataset``: validate, encode the ids, sort."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hybridrec.checks import InputError, InputTypeError, frozen
from hybridrec.data import frames
from hybridrec.data.ids import IdMap
from hybridrec.data.items import ItemTable, read_items
from hybridrec.ragged import Ragged

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

logger = logging.getLogger("hybridrec")


def build(
    interactions: object,
    names: Mapping[str, str | None],
    *,
    positive: float | None,
    context: Sequence[str],
    items: object | None,
    item_id: str | None,
    item_text: str | None,
    item_columns: Sequence[str],
) -> dict[str, Any]:
    """The fields of a ``Dataset``; arguments and errors as in ``Dataset.from_frame``.

    ``names`` holds what is called user, item, weight, time and rating there.
    """
    _check_pair(names["rating"], positive)
    if items is None:
        _refuse_without_items(item_id=item_id, item_text=item_text, item_columns=item_columns)
    ids_as_text = [str(names[name]) for name in ("user", "item")]
    table = frames.Table("interactions", interactions, verbatim=ids_as_text)
    if not len(table):
        raise InputError("interactions has no rows; wanted at least one event")
    users, user_codes = frames.encode(table.ids("user", names["user"]))
    mentioned, item_codes = frames.encode(table.ids("item", names["item"]))
    item_id = item_id or str(names["item"])
    catalogue = None if items is None else read_items(items, item_id, item_text, item_columns)
    if catalogue is not None:
        listed_ids = frames.as_written(catalogue.ids, items, mentioned)
        mentioned = frames.as_written(mentioned, interactions, catalogue.ids)
        catalogue = replace(catalogue, ids=listed_ids)
    ids, item_codes, listed = _catalogue(catalogue, mentioned, item_codes)
    events = _read_events(table, names, user_codes, item_codes)
    columns = {
        name: table.column("context", name).to_numpy(zero_copy_only=False) for name in context
    }
    liked = _liked(table, names["rating"], positive)
    history, order = events.ragged(len(users), liked)
    return {
        "users": IdMap(users),
        "items": IdMap(ids),
        "histories": history,
        "excluded": None if liked is None or liked.all() else events.ragged(len(users), ~liked)[0],
        **listed,
        "context": {name: frozen(values[order]) for name, values in columns.items()},
        "ordered": events.times is not None,
        "dated": events.dated,
        "item_id": item_id,
        "item_template": item_text,
        "frame": table.kind,
    }


@dataclass
class _Events:
    """Columns of the interactions, a row an event, as they stand in the input."""

    rows: NDArray[np.int32]
    items: NDArray[np.int32]
    weights: NDArray[np.float32] | None
    times: NDArray[np.int64] | None
    dated: bool

    def ragged(
        self, users: int, mask: NDArray[np.bool_] | None
    ) -> tuple[Ragged, NDArray[np.int64]]:
        """The events where ``mask`` is true, a row a user, and the input rows they came from."""
        # Both sorts are stable: events of one user and time keep the order of the input.
        if self.times is None:
            order = np.argsort(self.rows, kind="stable")
        else:
            order = np.lexsort((self.times, self.rows))
        if mask is not None:
            order = order[mask[order]]
        counts = np.bincount(self.rows[order], minlength=users)
        ragged = Ragged(
            np.concatenate([[0], np.cumsum(counts)]),
            self.items[order],
            None if self.weights is None else self.weights[order],
            None if self.times is None else self.times[order],
        )
        return ragged, order


def _read_events(
    table: frames.Table,
    names: Mapping[str, str | None],
    user_codes: NDArray[np.int32],
    item_codes: NDArray[np.int32],
) -> _Events:
    weights, times, dated = None, None, False
    if names["weight"] is not None:
        column = table.column("weight", names["weight"])
        weights = frames.weights(f"interactions[{names['weight']!r}]", column)
    if names["time"] is not None:
        column = table.column("time", names["time"])
        times, dated = frames.times(f"interactions[{names['time']!r}]", column)
    return _Events(user_codes, item_codes, weights, times, dated)


def _check_pair(rating: str | None, positive: float | None) -> None:
    """Neither of the two means anything alone."""
    if positive is None and rating is not None:
        raise InputError(
            f"rating={rating!r} without positive=: give the rating from which an event counts as "
            "liked, or leave rating= out to count every event"
        )
    if positive is not None and rating is None:
        raise InputError(
            f"positive={positive:g} without rating=: name the column it is compared with"
        )


def _refuse_without_items(**arguments: object) -> None:
    for name, value in arguments.items():
        if value:
            raise InputError(f"{name}={value!r} without items=: give the items table too")


def _catalogue(
    table: ItemTable | None, mentioned: NDArray[Any], item_codes: NDArray[np.int32]
) -> tuple[NDArray[Any], NDArray[np.int32], dict[str, Any]]:
    """All item ids, the events' codes among them, and the texts and columns that go with them."""
    if table is None:
        return mentioned, item_codes, {}
    if table.ids.dtype.kind != mentioned.dtype.kind:
        words = {"i": "integers", "U": "strings"}
        raise InputTypeError(
            f"item ids are {words[mentioned.dtype.kind]} in interactions and "
            f"{words[table.ids.dtype.kind]} in items; convert one of the two"
        )
    listed = IdMap(table.ids)
    codes = listed.codes(mentioned, "mark")
    unlisted = codes < 0
    extra = mentioned[unlisted]
    if len(extra):
        logger.warning(
            "%d of %d items occur only in interactions (first: %r): they join the catalogue "
            "without text or columns",
            len(extra),
            len(mentioned),
            extra[0].item(),
        )
    codes[unlisted] = len(listed) + np.arange(len(extra), dtype=np.int32)
    fields = {
        "texts": None if table.texts is None else table.texts + ("",) * len(extra),
        "item_columns": {
            name: frozen(_lengthened(values, len(extra))) for name, values in table.columns.items()
        },
    }
    return np.concatenate([table.ids, extra]), codes[item_codes], fields


def _lengthened(values: NDArray[Any], n: int) -> NDArray[Any]:
    """``values`` and ``n`` missing ones behind them: NaN for numbers, None for the rest."""
    if not n:
        return values
    if values.dtype.kind in "iuf":
        return np.concatenate([values.astype(np.float64), np.full(n, np.nan)])
    if values.dtype.kind in "mM":
        return np.concatenate([values, np.full(n, "NaT", dtype=values.dtype)])
    return np.concatenate([values.astype(object), np.full(n, None, dtype=object)])


def _liked(
    table: frames.Table, rating: str | None, positive: float | None
) -> NDArray[np.bool_] | None:
    """(n,) which events make history; None where all do."""
    if rating is None or positive is None:
        return None
    where = f"interactions[{rating!r}]"
    values = frames.real(where, table.column("rating", rating))
    wrong = np.flatnonzero(np.isnan(values))
    if wrong.size:
        raise InputError(
            f"{where} row {wrong[0]} is missing ({wrong.size} are): drop those rows or rate them"
        )
    liked: NDArray[np.bool_] = values >= positive
    if not liked.any():
        raise InputError(
            f"positive={positive:g} leaves no event: the highest rating is {values.max():g}"
        )
    return liked
