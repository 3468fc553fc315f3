"""The caller's ids and the codes (int32 row numbers) that stand for them inside."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from hybridrec.checks import InputError, InputTypeError, UnknownIdError, codes, frozen, one_of

if TYPE_CHECKING:
    from hybridrec.ragged import Items

__all__ = ["IdMap", "id_array"]


def id_array(name: str, values: Any) -> NDArray[Any]:
    """``values`` as an (n,) int64 or fixed-width str array.

    Args:
        name: the argument, for messages.
        values: a list, a numpy array, or a pandas, polars or pyarrow series.

    Raises:
        InputTypeError: a single id, mixed types, floats, booleans, or no ids at all.
        InputError: a missing id, or one that does not fit; names the row.
    """
    if isinstance(values, np.ndarray) and values.ndim == 1:
        if values.dtype.kind == "i":
            return values.astype(np.int64, copy=False)
        if values.dtype.kind in "UT":
            values = values.tolist()
    single = isinstance(values, (str, bytes, dict)) or not hasattr(values, "__len__")
    if single or getattr(values, "ndim", 1) != 1:
        raise InputTypeError(f"{name} is {values!r:.100}; wanted a list of ids or a column of them")
    if len(values) == 0:
        return np.empty(0, dtype=np.int64)
    import pyarrow as pa

    from hybridrec.data import frames

    if hasattr(values, "to_arrow"):  # polars
        values = values.to_arrow()
    try:
        column = (
            values
            if isinstance(values, (pa.Array, pa.ChunkedArray))
            else pa.array(values, from_pandas=True)
        )
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise frames.no_common_type(name, values, error) from error
    return frames.id_numpy(frames.ids(name, column))


@dataclass(frozen=True, eq=False)
class IdMap:
    """Distinct ids; an id's position is its code, for good: codes are never reused.

    Attributes:
        ids: (n,) int64 or fixed-width str, read-only. This array is also the saved form.
    """

    ids: NDArray[Any]
    _order: NDArray[np.int64] = field(init=False, repr=False)  # positions of the sorted ids

    def __post_init__(self) -> None:
        ids = id_array("ids", self.ids).copy()
        order = np.argsort(ids, kind="stable")
        again = np.flatnonzero(ids[order[1:]] == ids[order[:-1]])
        if again.size:
            first, second = order[again[0]], order[again[0] + 1]
            raise InputError(
                f"ids[{second}] is {ids[first].item()!r} again, as ids[{first}] ({again.size} "
                "repeats); wanted every id once: drop the duplicates"
            )
        object.__setattr__(self, "ids", frozen(ids))
        object.__setattr__(self, "_order", order)

    def __len__(self) -> int:
        return len(self.ids)

    def codes(self, ids: object, unknown: str = "raise", *, name: str = "ids") -> Items:
        """(n,) int32 codes of ``ids``; O(n log size).

        Args:
            ids: list or array of ids, of the type that this map holds.
            unknown: "raise", or "mark" to give an unknown id the code -1.
            name: how messages call ``ids``.

        Raises:
            UnknownIdError: an id that is not here; names the first and counts them.
            InputTypeError: integers asked of a map of strings, or the reverse.
        """
        one_of("unknown", unknown, ("raise", "mark"))
        wanted = id_array(name, ids)
        if not len(wanted):
            return np.empty(0, dtype=np.int32)
        if not len(self):
            found = np.full(len(wanted), -1, dtype=np.int32)
        else:
            self._same_type(name, wanted)
            # At this map's width, or numpy would widen every id it holds; an id cut short by that
            # differs from what it lands on, and so stays unknown.
            place = np.searchsorted(self.ids, wanted.astype(self.ids.dtype), sorter=self._order)
            position = self._order[np.minimum(place, len(self) - 1)]
            found = np.where(self.ids[position] == wanted, position, -1).astype(np.int32)
        missing = np.flatnonzero(found < 0)
        if unknown == "raise" and missing.size:
            raise UnknownIdError(
                f"{name}[{missing[0]}] is {wanted[missing[0]].item()!r}, which is unknown "
                f"({missing.size} of {len(wanted)} are); wanted ids from the data"
            )
        return found

    def ids_of(self, item_codes: object) -> NDArray[Any]:
        """The ids of codes of any shape, in the type they came in."""
        ids: NDArray[Any] = self.ids[codes("codes", item_codes, len(self))]
        return ids

    def extended(self, new_ids: object) -> Self:
        """A map with ``new_ids`` behind the ids of this one, whose codes stay.

        Raises:
            InputError: an id that is already here, or twice among the new ones.
        """
        new = id_array("new_ids", new_ids)
        if not len(new):
            return self
        if not len(self):
            return type(self)(new)
        self._same_type("new_ids", new)
        known = np.flatnonzero(self.codes(new, "mark") >= 0)
        if known.size:
            raise InputError(
                f"new_ids[{known[0]}] is {new[known[0]].item()!r}, which is already here "
                f"({known.size} of {len(new)} are): leave those out"
            )
        return type(self)(np.concatenate([self.ids, new]))

    def _same_type(self, name: str, other: NDArray[Any]) -> None:
        if self.ids.dtype.kind != other.dtype.kind:
            words = {"i": "integers", "U": "strings"}
            raise InputTypeError(
                f"{name} holds {words[other.dtype.kind]}, but ids here are "
                f"{words[self.ids.dtype.kind]}; convert one of the two"
            )
