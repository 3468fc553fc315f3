"""Which tokens a prompt and a candidate are made of; integers only, no torch.

A candidate is ``[CLS] text [SEP]``. A prompt is ``[CLS] newest [SEP] next newest [SEP] ...``: the
newest items of a history, newest first. Each text is tokenised on its own and joined by ids, so
what one text says can never change how another is cut into tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hybridrec.ragged import Ragged

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Every item's text as ``[CLS] text [SEP]``.

    Attributes:
        rows: I rows of token ids, each of at least 2 and at most ``limit + 2``.
        cls: id of the token that a text starts with.
        sep: id of the token that a text ends with.
        truncated: texts that were longer than ``limit`` and lost their end.
    """

    rows: Ragged
    cls: int
    sep: int
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def framed(
        cls, texts: Sequence[Sequence[int]], first: int, last: int, limit: int
    ) -> TokenTable:
        """The table of texts that are given as token ids without special tokens.

        Args:
            texts: token ids of each text; an empty one becomes ``[CLS] [SEP]``.
            first: the [CLS] id.
            last: the [SEP] id.
            limit: tokens of a text that are kept.
        """
        rows = Ragged.from_rows([[first, *text[:limit], last] for text in texts])
        return cls(rows, first, last, sum(len(text) > limit for text in texts))

    def extended(self, other: TokenTable) -> TokenTable:
        """This table with the rows of ``other`` behind it."""
        indptr = np.concatenate([self.rows.indptr, self.rows.indptr[-1] + other.rows.indptr[1:]])
        items = np.concatenate([self.rows.items, other.rows.items])
        truncated = self.truncated + other.truncated
        return replace(self, rows=Ragged(indptr, items), truncated=truncated)


def prefixes(histories: Ragged, table: TokenTable, history: int, room: int) -> tuple[Ragged, int]:
    """The prompt of every query.

    Args:
        histories: B rows of item codes, oldest first.
        table: the token ids of the catalogue.
        history: newest items that a prompt holds at most.
        room: tokens that a prompt may have, at least 2.

    Returns:
        B rows of token ids, and in how many of them items were left out for want of ``room``. Items
        go whole, oldest first; where not even the newest one fits, its end is cut. A query without
        history gets ``[CLS] [SEP]``.
    """
    rows: list[NDArray[np.int32]] = []
    cut = 0
    empty = np.array([table.cls, table.sep], dtype=np.int32)
    for row in range(len(histories)):
        start, stop = histories.indptr[row : row + 2]
        newest_first = histories.items[max(start, stop - history) : stop][::-1]
        texts = table.rows.select(newest_first)
        # Behind the prompt's one [CLS] each text is followed by its own [SEP].
        ends = texts.indptr[1:] - np.arange(1, len(texts) + 1) + 1
        fitting = int(np.searchsorted(ends, room, side="right"))
        cut += fitting < len(texts)
        if not len(texts):
            rows.append(empty)
        elif not fitting:
            rows.append(np.append(texts.items[: room - 1], np.int32(table.sep)))
        else:
            kept = texts.items[: texts.indptr[fitting]]
            inner_cls = texts.indptr[1:fitting]
            rows.append(np.delete(kept, inner_cls))
    return Ragged.from_rows(rows), cut
