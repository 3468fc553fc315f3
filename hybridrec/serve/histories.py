"""The histories beside a model: into the store once, and a forgotten user out of them."""

from __future__ import annotations

import logging
import secrets
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridrec import storage
from hybridrec.checks import StorageError
from hybridrec.persistence import SIDECAR, with_histories
from hybridrec.ragged import Ragged
from hybridrec.serve.store.contract import StoredEvent
from hybridrec.state import read_state, write_state

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from hybridrec.data.dataset import Dataset
    from hybridrec.serve.store.contract import Store

    Arrays = dict[str, NDArray[Any]]

_log = logging.getLogger("hybridrec.serve")

_1970 = datetime(1970, 1, 1, tzinfo=UTC)


class _GoneError(Exception):
    """The sidecar went while its writer was waited for."""


def import_histories(store: Store, root: str | Path, catalogue: Dataset) -> int | None:
    """Store the histories saved beside the model in ``root``, once each time that they are saved.

    Args:
        store: what takes them.
        root: the model folder.
        catalogue: the data of its current model: the ids of its items.

    Returns:
        How many events were new to the store; None where no histories are beside the model, they
        belong to another catalogue (logged), or they were imported before.

    Raises:
        StorageError: the histories are damaged.
        StoreError: they cannot be stored; what has been stays, and the next call goes on.
    """
    saved = storage.from_sidecar(
        Path(root),
        SIDECAR,
        lambda folder, manifest: (_mark(folder, manifest), with_histories(catalogue, folder)),
    )
    if saved is None or saved[1] is catalogue:
        return None
    mark, data = saved
    return store.import_once(mark, saved_events(data))


def saved_as(root: str | Path) -> str | None:
    """Names the histories beside the model in ``root``, None for none. Reads a line, no history."""
    try:
        return storage.current(Path(root) / SIDECAR)
    except StorageError:
        return None


def saved_events(data: Dataset) -> Iterator[StoredEvent]:
    """Every event of ``data``, user by user, oldest first; what is excluded was not liked.

    Where there are no times, what is excluded stands before the history. Weights are left out, and
    so are events beyond the year 9999, which no store can hold: how many is logged.
    """
    names = [str(item) for item in data.items.ids.tolist()]
    lost = 0
    sources = [(data.histories, True)]
    if data.excluded is not None:
        sources.insert(0, (data.excluded, False))
    for row, user in enumerate(data.users.ids.tolist()):
        events = [event for rows, liked in sources for event in _row(rows, row, liked)]
        if all(rows.times is not None for rows, _ in sources):
            events.sort(key=itemgetter(0))
        for time, item, liked in events:
            moment = _moment(time) if data.dated else None
            if data.dated and moment is None:
                lost += 1
            else:
                yield StoredEvent(None, str(user), names[item], moment, liked)
    if lost:
        _log.warning(
            "%d of the events beside the model are beyond the year 9999 and not imported: are "
            "their times in seconds? save the histories again",
            lost,
        )


def forget_saved(root: str | Path, user: str) -> int:
    """Take ``user`` out of the histories beside the model in ``root``; how many events he had.

    Nobody, without a history, takes his place there, so that the other users keep their codes.

    Raises:
        StorageError: the histories are damaged, or somebody else is writing the folder.
    """
    root, removed = Path(root), 0

    def fill(folder: Path) -> dict[str, Any]:
        nonlocal removed
        saved = storage.read_sidecar(root, SIDECAR)
        if saved is None:
            raise _GoneError
        settings, arrays = read_state(saved[0])
        row = _row_of(arrays["users"], user)
        if row is not None:
            removed = _erase(arrays, row)
        write_state(folder, settings, arrays)
        events = len(arrays["items"])
        return {**saved[1], "events": events, "mark": _mark(*saved)}

    # Looked at before as well: most users who are forgotten never were in a model.
    row = storage.from_sidecar(
        root, SIDECAR, lambda folder, _: _row_of(read_state(folder)[1]["users"], user)
    )
    if row is None:
        return 0
    try:
        storage.write_sidecar(root, SIDECAR, fill)
    except _GoneError:
        return 0
    return removed


def _mark(folder: Path, manifest: Mapping[str, Any]) -> str:
    """Names what was saved, before and after somebody is forgotten."""
    return str(manifest.get("mark", folder.name))


def _row(rows: Ragged, row: int, liked: bool) -> list[tuple[int, int, bool]]:
    """(time, item code, liked) of one row; the time is 0 where there is none."""
    span = slice(rows.indptr[row], rows.indptr[row + 1])
    items = rows.items[span].tolist()
    times = [0] * len(items) if rows.times is None else rows.times[span].tolist()
    return [(time, item, liked) for time, item in zip(times, items, strict=True)]


def _moment(microseconds: int) -> datetime | None:
    try:
        return _1970 + timedelta(microseconds=microseconds)
    except OverflowError:
        return None


def _row_of(ids: NDArray[Any], user: str) -> int | None:
    wanted = user if ids.dtype.kind == "U" else _number(user)
    found = np.flatnonzero(ids == wanted)
    return int(found[0]) if wanted is not None and len(found) else None


def _number(user: str) -> int | None:
    """The integer id that a store holds as ``user``: "7" is one, "07" is not."""
    try:
        number = int(user)
    except ValueError:
        return None
    return number if str(number) == user and -(2**63) <= number < 2**63 else None


def _erase(arrays: Arrays, row: int) -> int:
    """Empty the row of a user and take his id out; how many events there were."""
    removed = 0
    for prefix in ("", "excluded_"):
        names = [field.name for field in fields(Ragged)]
        parts = {name: arrays.get(prefix + name) for name in names}
        if parts["indptr"] is None or parts["items"] is None:
            continue
        rows = Ragged(parts["indptr"], parts["items"], parts["weights"], parts["times"])
        removed += int(rows.lengths[row])
        kept = rows.keep(rows.row_of() != row)
        arrays |= {prefix + n: getattr(kept, n) for n in names if parts[n] is not None}
    ids = arrays["users"].tolist()
    taken = set(ids)
    if arrays["users"].dtype.kind == "U":
        ids[row] = f"forgotten-{secrets.token_hex(16)}"
    else:
        ids[row] = next(number for number in range(-(2**63), 0) if number not in taken)
    arrays["users"] = np.array(ids)
    return removed
