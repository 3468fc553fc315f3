"""Answers as the caller's kind of data frame: pandas, polars or pyarrow.

Anything else that data may come in as (duckdb, a file) is answered in pyarrow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hybridrec.checks import one_of, require_extra

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

KINDS = ("pandas", "polars", "pyarrow")


def as_frame(columns: Mapping[str, NDArray[Any]], kind: str) -> Any:
    """The columns as a pandas or polars frame or a pyarrow table.

    Raises:
        InputError: another kind.
        MissingExtraError: the library of that kind is not installed.
    """
    one_of("frame", kind, KINDS)
    if kind == "pyarrow":
        import pyarrow as pa

        return pa.table({name: pa.array(values) for name, values in columns.items()})
    library = require_extra(kind, "all")
    return library.DataFrame(dict(columns))


def answer_kind(came_in: str) -> str:
    """The kind to answer in, given the kind that came in; "pyarrow" where it is none of KINDS."""
    return came_in if came_in in KINDS else "pyarrow"
