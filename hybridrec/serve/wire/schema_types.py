"""What values on the wire may be, and how many of them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
)

MOST_K = 1000
MOST_DEPTH = 2000
MOST_HISTORY = 1000
MOST_IDS = 10_000
"""Ids in ``allow`` and ``block``."""
MOST_CANDIDATES = 1000
MOST_EVENTS = 1000
MOST_TEXT = 256
"""Characters of an id, of a search and of a context value."""
MOST_CONTEXT = 32
MOST_FOUND = 100
"""Users or items that a search answers with."""
NO_NUL = r"^[^\x00]*$"
"""PostgreSQL's text cannot hold that character."""

Id = (
    Annotated[StrictStr, Field(min_length=1, max_length=MOST_TEXT, pattern=NO_NUL)]
    | Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)]
)
"""A user or an item: a string or an integer, coerced to the type of id that the model has."""

Value = (
    Annotated[StrictStr, Field(max_length=MOST_TEXT)]
    | StrictBool
    | StrictInt
    | Annotated[float, Field(allow_inf_nan=False)]
)
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _written_out(value: object) -> object:
    """Lets through what is RFC 3339: pydantic also takes numbers and dates, and guesses."""
    if isinstance(value, datetime) or (isinstance(value, str) and _RFC3339.fullmatch(value)):
        return value
    raise ValueError("wanted RFC 3339 with its offset, such as 2026-01-31T12:00:00Z")


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("wanted a time from year 1 to year 9999 in UTC") from error


Time = Annotated[AwareDatetime, BeforeValidator(_written_out), AfterValidator(_in_utc)]


class Strict(BaseModel):
    """Refuses fields that it does not know, so that a misspelt one is no silent default."""

    model_config = ConfigDict(extra="forbid")
