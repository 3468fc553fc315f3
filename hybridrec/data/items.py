"""The items table: ids, texts and columns of a catalogue, or of what is added to one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hybridrec.checks import InputError
from hybridrec.data import frames
from hybridrec.data.text import render_texts, template_fields

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ItemTable", "read_items"]


@dataclass(frozen=True, eq=False)
class ItemTable:
    """Items in the order of their table.

    Attributes:
        ids: (n,) int64 or fixed-width str, each once.
        texts: (n,) rendered texts, "" where nothing is known; None without a template.
        columns: name -> (n,) values.
    """

    ids: NDArray[Any]
    texts: tuple[str, ...] | None = None
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def read_items(
    items: object,
    item_id: str,
    item_text: str | None = None,
    item_columns: Sequence[str] = (),
) -> ItemTable:
    """Read an items table.

    Args:
        items: data frame or path, as for ``Dataset.from_frame``.
        item_id: its id column.
        item_text: template over its columns, or None.
        item_columns: columns to keep.

    Raises:
        InputError: no rows, a missing column, an id missing or there twice; names the row.
        InputTypeError: ids that are neither integers nor strings, or mix both.
    """
    fields = template_fields(item_text) if item_text is not None else []
    table = frames.Table("items", items, verbatim=[item_id, *fields])
    if not len(table):
        raise InputError("items has no rows; give a catalogue, or leave items= out")
    keys = table.ids("item_id", item_id)
    unique, positions = frames.encode(keys)
    if len(unique) != len(keys):
        # Codes are handed out in order, so the first row that brings no new one is a repeat.
        row = int(np.argmax(np.maximum.accumulate(positions) != np.arange(len(positions))))
        raise InputError(
            f"items[{item_id!r}] row {row} is {unique[positions[row]].item()!r} again "
            f"({len(keys) - len(unique)} repeats); wanted every item once: drop the duplicates"
        )
    texts = None
    if item_text is not None:
        rows = {name: table.column("item_text", name).to_pylist() for name in fields}
        texts = tuple(render_texts(item_text, rows))
    columns = {
        name: table.column("item_columns", name).to_numpy(zero_copy_only=False)
        for name in item_columns
    }
    return ItemTable(unique, texts, columns)
