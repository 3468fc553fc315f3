"""What collaborative filtering knows of users and items, on its way into a reranker; numpy only."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from hybridrec.checks import InputError
from hybridrec.protocols import ReadsVectors, VectorSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hybridrec.candidates import Queries
    from hybridrec.ragged import Scores

__all__ = ["Vectors", "give_vectors", "source_for"]


class Vectors(NamedTuple):
    """The vectors of one call; a row of zeros stands for what nothing is known of.

    Attributes:
        users: (B, d) float32, one a query.
        items: (I, d) float32, one an item of the catalogue.
    """

    users: Scores
    items: Scores

    @classmethod
    def of(cls, source: VectorSource, queries: Queries) -> Vectors:
        """Those of a source.

        Raises:
            InputError: it knows another number of items than the queries are about, or its users
                are not as wide as its items.
        """
        items = source.item_vectors
        if len(items) != queries.n_items:
            raise InputError(
                f"the source of vectors knows {len(items)} items and the queries are about "
                f"{queries.n_items}: fit it on this catalogue, or call its add_items"
            )
        users = source.user_vectors(queries)
        if users.shape != (len(queries), items.shape[1]):
            raise InputError(
                f"the source's user_vectors have shape {users.shape}; wanted "
                f"({len(queries)}, {items.shape[1]}), as wide as its item_vectors"
            )
        return cls(np.ascontiguousarray(users, np.float32), np.asarray(items, np.float32))

    @classmethod
    def unknown(cls, rows: int, n_items: int, width: int) -> Vectors:
        """Nothing is known of anything."""
        return cls(np.zeros((rows, width), np.float32), np.zeros((n_items, width), np.float32))

    def select(self, rows: NDArray[np.int64]) -> Vectors:
        """Those of the queries in ``rows``."""
        return Vectors(self.users[rows], self.items)


def source_for(reranker: object, recallers: Sequence[object]) -> VectorSource | None:
    """The recaller whose vectors a reranker asks for by name; None where it asks for none.

    Looks at classes only, so the recallers may still have to be fitted.

    Raises:
        InputError: there is none of that name, or it has no vectors.
    """
    if not isinstance(reranker, ReadsVectors) or not reranker.vectors_from:
        return None
    wanted = reranker.vectors_from
    named = {str(getattr(recaller, "name", "")): recaller for recaller in recallers}
    able = [
        name
        for name, recaller in named.items()
        if all(hasattr(type(recaller), part) for part in ("item_vectors", "user_vectors"))
    ]
    if wanted not in able:
        what = "has no vectors" if wanted in named else f"is not among {sorted(named)}"
        remedy = f"soft_tokens={able[0]!r}" if able else "add hybridrec.ALS(), or soft_tokens=''"
        raise InputError(
            f"the reranker's soft_tokens is {wanted!r}, a recaller that {what}: use {remedy}"
        )
    return cast("VectorSource", named[wanted])


def give_vectors(reranker: object, recallers: Sequence[object]) -> None:
    """Let ``reranker`` read the vectors of the recaller that it names, if it names one.

    Raises:
        InputError: as :func:`source_for` does, or the vectors have another width than those that
            the reranker was fine-tuned with.
    """
    source = source_for(reranker, recallers)
    if source is not None:
        cast("ReadsVectors", reranker).use_vectors(source)
