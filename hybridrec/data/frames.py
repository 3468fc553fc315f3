"""Any data frame or table file as pyarrow columns, and columns as the few types we work with.

Everything enters here: pandas, polars, pyarrow, duckdb (through narwhals), CSV, TSV and Parquet.
Rows are counted from 0 in messages.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import narwhals as nw
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hybridrec.checks import InputError, InputTypeError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

MAX_ID_LENGTH = 256
"""Characters; numpy stores every string at the width of the longest."""

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


class Table:
    """Named pyarrow columns of one length, and the kind of frame they came from.

    Attributes:
        name: the argument, for messages.
        kind: "pandas", "polars", "pyarrow", "duckdb", ...: what an answer should come back as.
        columns: the names there are.
    """

    def __init__(self, name: str, frame: object, *, verbatim: Collection[str] = ()) -> None:
        """Open ``frame``; ``verbatim`` columns of a CSV file are read as the text they are."""
        self.name = name
        self._as_text = False
        if isinstance(frame, (str, Path)):
            self._as_text = is_text_file(frame)
            frame = _read_file(name, Path(frame), verbatim)
        self._frame: Any = _eager(name, frame)
        self.kind = _kind(frame)
        self.columns: list[str] = list(self._frame.columns)

    def __len__(self) -> int:
        return len(self._frame)

    def column(self, argument: str, column: object) -> pa.ChunkedArray | pa.Array:
        """The column that ``argument`` names, dictionaries decoded.

        Raises:
            InputTypeError: ``column`` is no string, or its values have no common type.
            InputError: there is no such column; lists those there are.
        """
        if not isinstance(column, str):
            raise InputTypeError(f"{argument} is {column!r}; wanted a column name of {self.name}")
        if column not in self.columns:
            raise InputError(
                f"{argument}={column!r} is not a column of {self.name}; it has {self.columns}"
            )
        series = self._frame.get_column(column)
        where = f"{self.name}[{column!r}]"
        try:
            # polars would hand over the addresses of its Python objects
            objects = series.dtype == nw.Object
            values = pa.array(series.to_list(), from_pandas=True) if objects else series.to_arrow()
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise no_common_type(where, series.to_list(), error) from error
        return plain(values)

    def ids(self, argument: str, column: object) -> pa.Array:
        """The ids in a column; those of a text file are integers only if all of them read so."""
        values = ids(f"{self.name}[{column!r}]", self.column(argument, column))
        return numbers_if_canonical(values) if self._as_text else values


def _eager(name: str, frame: Any) -> Any:
    try:
        wrapped: Any = nw.from_native(frame)
        if isinstance(wrapped, nw.LazyFrame):
            wrapped = wrapped.collect(backend="pyarrow")
        _ = wrapped.columns
    except nw.exceptions.DuplicateError as error:
        raise InputError(f"{name} has two columns of one name ({error}): rename one") from error
    except TypeError as error:
        raise InputTypeError(
            f"{name} is {type(frame).__name__}; wanted a data frame (pandas, polars, pyarrow, "
            "duckdb) or the path of a .csv, .tsv or .parquet file"
        ) from error
    return wrapped


def _kind(frame: Any) -> str:
    return str(nw.from_native(frame).implementation.value)


def _read_file(name: str, path: Path, verbatim: Collection[str]) -> pa.Table:
    """A table file; only an empty CSV field is null, so an item titled "NA" keeps its title."""
    if not path.is_file():
        raise InputError(f"{name}={str(path)!r} is not a file; wanted .csv, .tsv or .parquet")
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            import pyarrow.parquet as pq

            return pq.read_table(path)
        if suffix in _DELIMITERS:
            from pyarrow import csv

            return csv.read_csv(
                path,
                parse_options=csv.ParseOptions(
                    delimiter=_DELIMITERS[suffix], newlines_in_values=True
                ),
                convert_options=csv.ConvertOptions(
                    null_values=[""],
                    strings_can_be_null=True,
                    column_types=dict.fromkeys(verbatim, pa.string()),
                ),
            )
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{name}={str(path)!r} cannot be read: {error}") from error
    raise InputError(f"{name}={str(path)!r} ends in {suffix!r}; wanted .csv, .tsv or .parquet")


def plain(values: Any) -> Any:
    """Categories as their values, anything string-like as ``large_string``."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_string(values.type) or pa.types.is_string_view(values.type):
        values = values.cast(pa.large_string())
    return values


def no_common_type(where: str, values: Iterable[object], cause: Exception) -> InputTypeError:
    """The error for a column of Python objects that Arrow cannot read as one type."""
    first: str | None = None
    for row, value in enumerate(values):
        if value is None or (isinstance(value, float) and np.isnan(value)):
            continue
        kind = "int" if isinstance(value, np.integer) else type(value).__name__
        if first is None:
            first = kind
        elif kind != first:
            return InputTypeError(
                f"{where} mixes types: row {row} is {value!r} ({kind}) where earlier rows are "
                f"{first}; make them all strings or all integers"
            )
    return InputTypeError(f"{where} holds {first} values that cannot be used as they are: {cause}")


def ids(where: str, values: Any) -> pa.Array:
    """(n,) ids as one int64 or ``large_string`` array without nulls.

    Raises:
        InputTypeError: floats, booleans, dates or anything else that is neither.
        InputError: a null, an integer beyond int64, or a string that is too long.
    """
    values = plain(values)
    if values.null_count:
        row = _first(pc.is_null(values))
        raise InputError(
            f"{where} row {row} is missing ({values.null_count} are): drop those rows or give "
            "them an id"
        )
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
        if isinstance(values, pa.ChunkedArray):
            values = pa.concat_arrays(values.chunks)
    kind = values.type
    if pa.types.is_integer(kind):
        try:
            return values.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise InputError(f"{where} has an integer beyond int64: use strings") from error
    if pa.types.is_null(kind):
        return values.cast(pa.int64())
    if not pa.types.is_large_string(kind):
        remedy = ".astype('int64') if they are whole numbers" if pa.types.is_floating(kind) else ""
        raise InputTypeError(
            f"{where} has type {kind}; ids are integers or strings: convert them first"
            + (f", e.g. {remedy}" if remedy else "")
        )
    unfit = pc.or_(
        pc.greater(pc.utf8_length(values), MAX_ID_LENGTH), pc.match_substring(values, "\0")
    )
    if pc.any(unfit).as_py():
        row = _first(unfit)
        raise InputError(
            f"{where} row {row} is {str(values[row])[:40]!r}...; an id has at most {MAX_ID_LENGTH} "
            "characters and no NUL"
        )
    return values


def numbers_if_canonical(values: pa.Array) -> pa.Array:
    """Ids of a CSV file: integers where every one is written as Python would ("7", not "007")."""
    if not pa.types.is_large_string(values.type):
        return values
    if not pc.all(pc.match_substring_regex(values, r"^(0|-?[1-9][0-9]{0,17})$")).as_py():
        return values
    return values.cast(pa.int64())


def is_text_file(frame: object) -> bool:
    """Whether ``frame`` is the path of a .csv or .tsv file, whose columns have no types."""
    return isinstance(frame, (str, Path)) and Path(frame).suffix.lower() in _DELIMITERS


def as_written(ids: NDArray[Any], frame: object, like: NDArray[Any]) -> NDArray[Any]:
    """``ids``, as the strings that stand in the text file ``frame`` where ``like`` holds strings.

    A text file gives its ids no type, so that what one file says must not clash with another.
    """
    if ids.dtype.kind == "i" and like.dtype.kind == "U" and is_text_file(frame):
        return ids.astype(np.str_)
    return ids


def id_numpy(values: pa.Array) -> NDArray[Any]:
    """int64, or fixed-width ``str`` as long as the longest id."""
    if pa.types.is_integer(values.type):
        return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.int64)
    return np.asarray(values.to_pylist(), dtype=np.str_)


def encode(values: pa.Array) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """The distinct ids in order of first appearance, and (n,) int32 positions among them."""
    encoded = values.dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    return id_numpy(encoded.dictionary), codes


def weights(where: str, values: Any) -> NDArray[np.float32] | None:
    """(n,) finite float32 > 0; None where all are 1.

    Raises:
        InputTypeError: not numbers.
        InputError: missing, NaN, infinite, zero or negative; names the row.
    """
    given = real(where, values)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        array = given.astype(np.float32)
    wrong = np.flatnonzero(~(np.isfinite(array) & (array > 0)))
    if wrong.size:
        raise InputError(
            f"{where} row {wrong[0]} is {given[wrong[0]]} ({wrong.size} such rows); weights must "
            "be finite and > 0: drop or clip those rows first"
        )
    return None if (array == 1).all() else array


def real(where: str, values: Any) -> NDArray[np.float64]:
    """(n,) float64, missing as NaN.

    Raises:
        InputTypeError: not numbers.
    """
    kind = values.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise InputTypeError(f"{where} has type {kind}; wanted numbers: convert it first")
    array = values.cast(pa.float64()).to_numpy(zero_copy_only=False)  # nulls become NaN
    return np.asarray(array, dtype=np.float64)


def times(where: str, values: Any) -> tuple[NDArray[np.int64], bool]:
    """(n,) int64 times, and whether they are dates (then microseconds since 1970, UTC).

    Raises:
        InputTypeError: neither numbers nor dates.
        InputError: missing, or a number that is not whole; names the row.
    """
    if values.null_count:
        row = _first(pc.is_null(values))
        raise InputError(
            f"{where} row {row} is missing ({values.null_count} are): drop those rows, or leave "
            "time= out"
        )
    kind = values.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        # Through the column's own tick: nanoseconds are cut, not refused.
        micro = values.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False)
        return micro.cast(pa.int64()).to_numpy(zero_copy_only=False), True
    if pa.types.is_integer(kind):
        return values.cast(pa.int64()).to_numpy(zero_copy_only=False), False
    if not pa.types.is_floating(kind):
        raise InputTypeError(f"{where} has type {kind}; wanted integers or dates: parse it first")
    array = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(~((np.abs(array) < 2**63) & (array == np.floor(array))))
    if wrong.size:
        raise InputError(
            f"{where} row {wrong[0]} is {array[wrong[0]]}; times are whole numbers or dates: "
            "scale to a finer unit and round first"
        )
    return array.astype(np.int64), False


def _first(mask: Any) -> int:
    """Position of the first true value."""
    return int(pc.index(mask, pa.scalar(True)).as_py())
