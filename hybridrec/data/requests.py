"""What a caller asks of a recommender, ids and plain lists, as queries in codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hybridrec.candidates import Queries
from hybridrec.checks import InputError, InputTypeError, UnknownIdError
from hybridrec.data.ids import id_array
from hybridrec.ragged import Ragged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hybridrec.data.dataset import Dataset
    from hybridrec.ragged import Mask

MAX_HISTORY = 1000
"""The newest events of a user that a request goes by."""


def of_users(
    data: Dataset, users: Any, *, exclude_seen: bool, unknown: str, context: Any = None
) -> tuple[NDArray[Any], Queries]:
    """The names (B,) and queries of users that ``data`` knows.

    Args:
        data: whose users and histories.
        users: one id, a list or a column of them.
        exclude_seen: leave out what the user already has.
        unknown: "raise", or "popular": then a user nobody knows has an empty history.
        context: see :func:`context_columns`.

    Raises:
        UnknownIdError: a user that is not known, or no histories at all.
        InputTypeError: no ids, or a set, which has no order to answer in.
    """
    if isinstance(users, (str, int, np.integer)):
        users = [users]
    names = id_array("users", _in_order("users", users))
    if not data.n_users and unknown == "raise":
        raise UnknownIdError(
            "this model holds no users' histories, as it was saved without them: pass "
            "histories= to recommend, or save with histories=True"
        )
    codes = data.users.codes(names, unknown="raise" if unknown == "raise" else "mark", name="users")
    known = np.flatnonzero(codes >= 0)
    # Row 0 of each is an empty one, for those nobody knows.
    rows = np.zeros(len(codes), dtype=np.int64)
    rows[known] = 1 + np.arange(len(known))
    histories = _with_empty_row(data.histories.select(codes[known])).select(rows)
    exclude = None
    if exclude_seen:
        exclude = _with_empty_row(data.seen(codes[known])).select(rows)
    columns = context_columns(context, len(codes))
    newest = histories.newest(MAX_HISTORY)
    return names, Queries(
        newest, data.n_items, codes, exclude, context=columns, ordered=data.ordered
    )


def of_histories(
    data: Dataset, histories: Any, *, exclude_seen: bool, context: Any = None
) -> tuple[NDArray[Any], Queries]:
    """The names (B,) and queries of people of whom only the history is known.

    Args:
        data: whose catalogue.
        histories: lists or columns of item ids, oldest first, in a sequence or by name; without
            names, people are called by their row.
        exclude_seen: leave out what stands in the history.
        context: see :func:`context_columns`.

    Raises:
        UnknownIdError: an item that is not in the catalogue; names the history.
        InputTypeError: something that is no list of ids where one is wanted.
    """
    keys: Sequence[Any]
    if isinstance(histories, Mapping):
        keys, rows = list(histories), list(histories.values())
        names = id_array("histories", keys)
    elif isinstance(histories, (str, bytes)) or not hasattr(histories, "__len__"):
        raise InputTypeError(
            f"histories is {histories!r:.100}; wanted lists of item ids, in a list or by name"
        )
    else:
        rows = list(_in_order("histories", histories))
        keys = range(len(rows))
        names = np.arange(len(rows))
    found = []
    for key, row in zip(keys, rows, strict=True):
        name = f"histories[{key!r}]"
        found.append(data.items.codes(_in_order(name, row), name=name))
    ragged = Ragged.from_rows(found)
    exclude = ragged if exclude_seen else None
    columns = context_columns(context, len(ragged))
    newest = ragged.newest(MAX_HISTORY)
    return names, Queries(
        newest, data.n_items, exclude=exclude, context=columns, ordered=data.ordered
    )


def context_columns(context: Any, n: int) -> dict[str, list[Any]]:
    """The columns of ``n`` requests.

    Args:
        context: name -> one value for all, or a list, tuple or array of n; None for no columns.
        n: the requests.

    Raises:
        InputTypeError: not a mapping of names, or values without order.
        InputError: another number of values.
    """
    if context is None:
        return {}
    if not isinstance(context, Mapping) or not all(isinstance(name, str) for name in context):
        raise InputTypeError(
            f"context is {context!r:.100}; wanted a mapping such as {{'device': 'phone'}}"
        )
    columns = {}
    for name, values in context.items():
        values = _in_order(f"context[{name!r}]", values)
        if isinstance(values, str) or not hasattr(values, "__len__"):
            values = [values] * n
        if len(values) != n:
            raise InputError(
                f"context[{name!r}] has {len(values)} values; wanted one for all, or {n}, one a "
                "user or history"
            )
        columns[name] = [getattr(value, "item", lambda value=value: value)() for value in values]
    return columns


def allowed(data: Dataset, retired: Mask, allow: Any, block: Any) -> Mask | None:
    """(I,) bool, what may be answered; None where everything may.

    Args:
        data: whose catalogue.
        retired: (I,) bool, what may never be.
        allow: ids of the only items that may, or None for all.
        block: ids of items that may not, or None.

    Raises:
        UnknownIdError: an item that is not in the catalogue; names the argument.
    """
    if allow is None and block is None and not retired.any():
        return None
    mask: Mask = np.full(data.n_items, allow is None)
    if allow is not None:
        mask[data.items.codes(allow, name="allow")] = True
    if block is not None:
        mask[data.items.codes(block, name="block")] = False
    return mask & ~retired


def _in_order(name: str, values: Any) -> Any:
    """``values``, unless it is a set."""
    if isinstance(values, (set, frozenset)):
        raise InputTypeError(f"{name} is a set, which has no order; wanted a list of ids")
    return values


def _with_empty_row(rows: Ragged) -> Ragged:
    """``rows`` behind one empty row."""
    return replace(rows, indptr=np.concatenate([[0], rows.indptr]))
