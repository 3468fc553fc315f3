"""The data set: two id maps, a history a user, and what is known of the items."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from hybridrec.candidates import Queries
from hybridrec.checks import InputError, InputTypeError, codes, frozen, real_number, whole_number
from hybridrec.data.ids import IdMap
from hybridrec.ragged import Ragged

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hybridrec.data.items import ItemTable
    from hybridrec.ragged import Mask

__all__ = ["Dataset"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Interactions and items, encoded. Make one with :meth:`from_frame`.

    Attributes:
        users: U ids, in order of first appearance in the interactions.
        items: I ids: the items table in its order, then items that only interactions mention.
            An item without interactions keeps its code: it is a cold item.
        histories: U rows, sorted by time; events of one time keep their order in the input.
        excluded: U rows of what was rated below ``positive``: seen, so not recommended, yet no
            history. None where there is nothing of the kind.
        texts: (I,) item texts, "" where an item has none; None without a template.
        item_columns: name -> (I,) values.
        context: name -> (nnz,) values aligned with the events of ``histories``.
        ordered: False without a time column: then histories carry no order.
        dated: times are microseconds since 1970 (UTC), because dates came in.
        item_id: the id column of the items table.
        item_template: the template that made ``texts``.
        frame: the kind of frame that came in ("pandas", "polars", ...), for answers.
    """

    users: IdMap
    items: IdMap
    histories: Ragged
    excluded: Ragged | None = None
    texts: tuple[str, ...] | None = None
    item_columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    context: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    ordered: bool = True
    dated: bool = False
    item_id: str = "item"
    item_template: str | None = None
    frame: str = "pyarrow"

    def __post_init__(self) -> None:
        for name in ("histories", "excluded"):
            rows = getattr(self, name)
            if rows is not None and len(rows) != self.n_users:
                raise InputError(f"{name} has {len(rows)} rows; wanted {self.n_users}, one a user")
            if rows is not None:
                codes(f"{name}.items", rows.items, self.n_items)
        if self.texts is not None and len(self.texts) != self.n_items:
            raise InputError(f"texts has {len(self.texts)} entries; wanted {self.n_items}")
        for label, size, columns in (
            ("item_columns", self.n_items, self.item_columns),
            ("context", self.n_events, self.context),
        ):
            for name, values in columns.items():
                if len(values) != size:
                    raise InputError(f"{label}[{name!r}] has {len(values)} values; wanted {size}")

    def __repr__(self) -> str:
        return f"Dataset({self.n_users} users, {self.n_items} items, {self.n_events} events)"

    @property
    def n_users(self) -> int:
        """U."""
        return len(self.users)

    @property
    def n_items(self) -> int:
        """I, cold items included."""
        return len(self.items)

    @property
    def n_events(self) -> int:
        """Events in the histories."""
        return len(self.histories.items)

    @classmethod
    def from_frame(
        cls,
        interactions: object,
        *,
        user: str,
        item: str,
        weight: str | None = None,
        time: str | None = None,
        rating: str | None = None,
        positive: float | None = None,
        context: Sequence[str] = (),
        items: object | None = None,
        item_id: str | None = None,
        item_text: str | None = None,
        item_columns: Sequence[str] = (),
    ) -> Self:
        """A data set from one table of events and, if there is one, a table of items.

        Args:
            interactions: pandas, polars, pyarrow or duckdb frame, or the path of a .csv, .tsv or
                .parquet file. One row an event, in any order.
            user: column of user ids: integers or strings.
            item: column of item ids: integers or strings.
            weight: column of finite weights > 0; every event weighs 1 without it.
            time: column of integers, whole floats or dates. Without it histories have no order.
            rating: column of ratings, together with ``positive``.
            positive: events rated at least this make history; the rest are only seen.
            context: columns that describe the event (a device, a page).
            items: table of the catalogue, any of the kinds above.
            item_id: id column of ``items``; the name given as ``item`` by default.
            item_text: template over columns of ``items``: ``"{title} ({year}). {genres}"``.
            item_columns: columns of ``items`` to keep.

        Raises:
            InputError: a column is missing, a table is empty, or a value cannot be used; names
                the column and the row (counted from 0) and says what to do.
            InputTypeError: something of the wrong type, ids that mix types among it.

        O(n log n) time for n events.
        """
        from hybridrec.data.build import build

        return cls(
            **build(
                interactions,
                {"user": user, "item": item, "weight": weight, "time": time, "rating": rating},
                positive=None if positive is None else real_number("positive", positive),
                context=column_names("context", context),
                items=items,
                item_id=item_id,
                item_text=item_text,
                item_columns=column_names("item_columns", item_columns),
            )
        )

    def queries(
        self,
        users: object | None = None,
        *,
        max_history: int = 1000,
        exclude_seen: bool = True,
        allow: object | None = None,
        block: object | None = None,
    ) -> Queries:
        """What to ask of a recaller for these users.

        Args:
            users: ids; None means every user, in code order.
            max_history: the newest events of each user to go by.
            exclude_seen: leave out everything the user has seen, however long ago.
            allow: ids of the items that may be answered; None means all, [] none.
            block: ids of items that must not be answered.

        Raises:
            UnknownIdError: a user or item that the data do not know.
        """
        if users is None:
            rows = np.arange(self.n_users, dtype=np.int32)
        else:
            rows = self.users.codes(users, name="users")
        histories = self.histories.select(rows)
        exclude = self.seen(rows) if exclude_seen else None
        if block is not None:
            blocked = np.unique(self.items.codes(block, name="block"))
            everyone = Ragged(np.arange(len(rows) + 1) * len(blocked), np.tile(blocked, len(rows)))
            exclude = everyone if exclude is None else exclude.merged(everyone)
        mask: Mask | None = None
        if allow is not None:
            mask = np.zeros(self.n_items, dtype=np.bool_)
            mask[self.items.codes(allow, name="allow")] = True
        return Queries(
            histories.newest(whole_number("max_history", max_history)),
            self.n_items,
            users=rows,
            exclude=exclude,
            allow=mask,
            ordered=self.ordered,
        )

    def seen(self, rows: NDArray[Any]) -> Ragged:
        """Everything that the users with codes ``rows`` (n,) have seen, history or not."""
        seen = self.histories.select(rows)
        seen = Ragged(seen.indptr, seen.items)
        return seen if self.excluded is None else seen.merged(self.excluded.select(rows))

    def keep_events(self, mask: Mask) -> Self:
        """The same users and catalogue with only the events where ``mask`` (nnz,) is true."""
        mask = np.asarray(mask)
        if mask.dtype != np.bool_ or mask.shape != self.histories.items.shape:
            raise InputTypeError(
                f"mask has dtype {mask.dtype} and shape {mask.shape}; wanted bool of shape "
                f"{self.histories.items.shape}, one value an event"
            )
        return replace(
            self,
            histories=self.histories.keep(mask),
            context={name: frozen(values[mask]) for name, values in self.context.items()},
        )

    def without_events(self) -> Self:
        """The same users and catalogue, and nothing of what anybody did."""
        return replace(self, histories=Ragged.empty(self.n_users), excluded=None, context={})

    def item_text(self, item_codes: object) -> list[str]:
        """The texts of ``item_codes`` (n,).

        Raises:
            InputError: this data set has no texts, or a code is out of range.
        """
        if self.texts is None:
            raise InputError("the items have no text; give from_frame items= and item_text=")
        return [self.texts[code] for code in codes("codes", item_codes, self.n_items)]

    def read_items(self, frame: object) -> ItemTable:
        """New items from a table with the columns of the one this data set was made with.

        Raises:
            InputError: an item that is already in the catalogue, or a table that does not fit.
        """
        from hybridrec.data.frames import as_written
        from hybridrec.data.items import read_items

        table = read_items(frame, self.item_id, self.item_template, tuple(self.item_columns))
        table = replace(table, ids=as_written(table.ids, frame, self.items.ids))
        self.items.extended(table.ids)
        return table

    def with_items(self, table: ItemTable) -> Self:
        """The same events over the catalogue with the items of ``table`` behind it."""
        texts = self.texts
        if texts is not None:
            texts += table.texts if table.texts is not None else ("",) * len(table.ids)
        return replace(
            self,
            items=self.items.extended(table.ids),
            texts=texts,
            item_columns={
                name: _joined(name, values, table.columns[name])
                for name, values in self.item_columns.items()
            },
        )


def _joined(name: str, old: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
    """An item column with the values of new items behind it."""
    import pyarrow as pa

    try:
        both = np.concatenate([old, new])
        if both.dtype.hasobject:
            pa.array(both, from_pandas=True)  # what has no common type could not be saved
    except (TypeError, pa.ArrowException) as error:
        raise InputTypeError(
            f"items[{name!r}] has type {new.dtype}, which does not fit the catalogue's "
            f"({old.dtype}): convert it first ({error})"
        ) from error
    return both


def column_names(argument: str, names: object) -> tuple[str, ...]:
    """``names`` as a tuple, or an error: a lone string would be read letter by letter."""
    if isinstance(names, str) or not isinstance(names, (list, tuple)):
        raise InputTypeError(f"{argument} is {names!r}; wanted a list of column names")
    return tuple(names)
