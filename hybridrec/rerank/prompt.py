"""Which tokens a prompt and a candidate are made of; integers only, no torch.

An encoder's candidate is ``[CLS] text [SEP]`` and its prompt ``[CLS] newest [SEP] next newest [SEP]
...``: the newest items of a history, newest first. A template puts words and context columns around
them. Each text is tokenised on its own and joined by ids, so what one text says can never change
how another is cut into tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hybridrec.ragged import Ragged

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Ids = tuple[int, ...]
Segment = tuple[Ids | str, ...]
"""Token ids, and names of context columns whose values stand between them."""


@dataclass(frozen=True)
class Frame:
    """What stands around texts, as token ids.

    Attributes:
        before: at the start of a prompt.
        separator: behind each item of a history.
        nothing: in place of an empty history.
        between: behind the history, at the end of the prompt.
        first: in front of a candidate.
        last: behind a candidate.
        joint: in front of a candidate that makes one text with its prompt, instead of ``first``.
        history: whether prompts hold histories.
    """

    before: Segment
    separator: Ids
    nothing: Ids
    between: Segment
    first: Ids
    last: Ids
    joint: Ids = ()
    history: bool = True

    @classmethod
    def plain(cls, cls_id: int, sep_id: int) -> Frame:
        """That of an encoder without a template."""
        return cls(((cls_id,),), (sep_id,), (sep_id,), (), (cls_id,), (sep_id,))

    @property
    def context(self) -> tuple[str, ...]:
        """The context columns in a prompt, each once."""
        parts = (*self.before, *self.between)
        return tuple(dict.fromkeys(part for part in parts if isinstance(part, str)))

    def tokens(self, limit: int) -> int:
        """Tokens of a prompt without history whose context values have ``limit`` each."""
        parts = (*self.before, *self.between)
        around = sum(limit if isinstance(part, str) else len(part) for part in parts)
        return around + (len(self.nothing) if self.history else 0)


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Every item's text as a candidate.

    Attributes:
        rows: I rows of token ids, each of at most ``limit`` and what the frame adds.
        frame: what stands around texts.
        truncated: texts that were longer than ``limit`` and lost their end.
    """

    rows: Ragged
    frame: Frame
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def framed(cls, texts: Sequence[Sequence[int]], frame: Frame, limit: int) -> TokenTable:
        """The table of texts that are given as token ids.

        Args:
            texts: token ids of each text; an empty one becomes its frame alone.
            frame: what stands around them.
            limit: tokens of a text that are kept.
        """
        rows = Ragged.from_rows([[*frame.first, *text[:limit], *frame.last] for text in texts])
        return cls(rows, frame, sum(len(text) > limit for text in texts))

    def text(self, item: int) -> NDArray[np.int32]:
        """The token ids of an item's text alone."""
        start, stop = self.rows.indptr[item : item + 2]
        return self.rows.items[start + len(self.frame.first) : stop - len(self.frame.last)]

    def extended(self, other: TokenTable) -> TokenTable:
        """This table with the rows of ``other`` behind it."""
        indptr = np.concatenate([self.rows.indptr, self.rows.indptr[-1] + other.rows.indptr[1:]])
        items = np.concatenate([self.rows.items, other.rows.items])
        truncated = self.truncated + other.truncated
        return replace(self, rows=Ragged(indptr, items), truncated=truncated)


def prefixes(
    histories: Ragged,
    table: TokenTable,
    history: int,
    room: int,
    context: Mapping[str, Sequence[Sequence[int]]] | None = None,
) -> tuple[Ragged, int]:
    """The prompt of every query.

    Args:
        histories: B rows of item codes, oldest first.
        table: the token ids of the catalogue.
        history: newest items that a prompt holds at most.
        room: tokens that a prompt may have, enough for one without history.
        context: name -> B values as token ids, for each column that the frame names.

    Returns:
        B rows of token ids, and in how many of them items were left out for want of ``room``. Items
        go whole, oldest first; where not even the newest one fits, its end is cut.
    """
    frame, given = table.frame, context or {}
    rows: list[list[int]] = []
    cut = 0
    for row in range(len(histories)):
        before = _filled(frame.before, given, row)
        between = _filled(frame.between, given, row)
        middle: list[int] = []
        if frame.history:
            start, stop = histories.indptr[row : row + 2]
            newest_first = histories.items[max(start, stop - history) : stop][::-1]
            middle, whole = _history(newest_first, table, room - len(before) - len(between))
            cut += not whole
        rows.append(before + middle + between)
    return Ragged.from_rows(rows), cut


def _history(items: NDArray[np.int32], table: TokenTable, room: int) -> tuple[list[int], bool]:
    """Token ids of a history, newest first, in at most ``room``, and whether it is all there."""
    separator = table.frame.separator
    tokens: list[int] = []
    for place, item in enumerate(items.tolist()):
        text = table.text(item).tolist()
        left = room - len(tokens) - len(separator)
        if len(text) > left:
            if place == 0:
                tokens = [*text[: max(left, 0)], *separator]
            return tokens, False
        tokens += [*text, *separator]
    return tokens or list(table.frame.nothing), True


def _filled(
    segment: Segment, context: Mapping[str, Sequence[Sequence[int]]], row: int
) -> list[int]:
    """The token ids of a segment with the values of query ``row`` in it."""
    tokens: list[int] = []
    for part in segment:
        tokens += context[part][row] if isinstance(part, str) else part
    return tokens
