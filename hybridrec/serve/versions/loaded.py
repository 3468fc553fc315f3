"""A version of the model in memory: its stages, its catalogue in the ids of the wire, its pace."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from hybridrec import storage
from hybridrec.checks import StorageError, UnknownIdError
from hybridrec.deadline import Pace
from hybridrec.loading import load
from hybridrec.persistence import id_type
from hybridrec.protocols import CountsCache, Forgets

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from hybridrec.data.dataset import Dataset
    from hybridrec.engine import HybridRecommender
    from hybridrec.pipeline import Pipeline
    from hybridrec.ragged import Items
    from hybridrec.serve.answers.asking import Id

IdType = Literal["int", "str"]

_TITLES = ("title", "name")
"""Columns of the items that a title is taken from, the first that there is."""
_LONGEST = 120
"""Characters of a title."""
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A version of the model, ready to answer. What users did is the store's: it holds none of it.

    Attributes:
        version: its id.
        engine: its stages and its catalogue.
        loaded: when it was.
        user_ids: the type of the users' ids.
        item_ids: the type of the items' ids.
        pace: how long a batch takes but for reranking; high, as who waits too long is worse off
            than who is told less.
    """

    version: str
    engine: HybridRecommender
    loaded: datetime
    user_ids: IdType
    item_ids: IdType
    pace: Pace = field(default_factory=partial(Pace, quantile=0.9, memory=1.0))

    @property
    def data(self) -> Dataset:
        """The catalogue, and the users by their codes."""
        return self.engine.data

    @property
    def pipeline(self) -> Pipeline:
        """The fitted stages."""
        return self.engine.pipeline

    @cached_property
    def reads_users(self) -> bool:
        """Whether a stage knows users by their codes alone, and has nothing to say of others."""
        return any(getattr(stage, "reads_users", False) for stage in self._stages)

    def item(self, given: Id) -> Id:
        """An item's id of the wire or of the store in the type that the model has.

        Raises:
            UnknownIdError: it cannot be one of this model's, such as a word where ids are numbers.
        """
        return _coerced("item", given, self.item_ids)

    def user(self, given: Id) -> Id:
        """The same for a user's id.

        Raises:
            UnknownIdError: as :meth:`item`.
        """
        return _coerced("user", given, self.user_ids)

    def item_codes(self, given: Iterable[Id]) -> Items:
        """(n,) codes of items; -1 for what the model does not know."""
        codes = self._codes  # of every request's every id: a table, no sorted array
        return np.fromiter((codes.get(str(item), -1) for item in given), dtype=np.int32)

    def known_items(self, name: str, given: Sequence[Id]) -> Items:
        """(n,) codes of items that must be known.

        Args:
            name: what messages call them.
            given: ids.

        Raises:
            UnknownIdError: one is not; names the first.
        """
        codes = self.item_codes(given)
        missing = np.flatnonzero(codes < 0)
        if missing.size:
            raise UnknownIdError(
                f"{name}[{missing[0]}] is {given[missing[0]]!r}, an item that model {self.version} "
                f"does not know ({missing.size} of {len(given)} are unknown)"
            )
        return codes

    def user_code(self, given: Id | None) -> int:
        """The code of a user; -1 for whom the model does not know."""
        return -1 if given is None else self._user_codes.get(str(given), -1)

    def item_id(self, code: int) -> Id:
        """The id of an item, as JSON has it."""
        item: Id = self.data.items.ids[code].item()
        return item

    def title(self, code: int) -> str | None:
        """What people call an item: its title, its name or what its text begins with.

        None where there is none of them.
        """
        return self.titles[code] or None

    @cached_property
    def titles(self) -> Sequence[str]:
        """(I,) the titles of the catalogue, "" where there is none."""
        data = self.data
        for name in _TITLES:
            if name in data.item_columns:
                return [_title(title) for title in data.item_columns[name].tolist()]
        return [_title(text) for text in data.texts or [None] * data.n_items]

    @cached_property
    def folded_titles(self) -> Sequence[str]:
        """(I,) the same as a search compares them; the first one makes them."""
        return [title.casefold() for title in self.titles]

    def forget(self, user: Id | None) -> int:
        """Drop what the stages keep of a user, and how many things that were.

        Of a user whom the model does not know, and of nobody (None), nothing tells what is theirs:
        then what is kept of all such users goes.
        """
        code = self.user_code(user)
        return sum(stage.forget(code) for stage in self._stages if isinstance(stage, Forgets))

    def cache_counts(self) -> tuple[int, int]:
        """How often what stages keep was at hand and how often not, since this was asked last."""
        counts = [
            stage.take_cache_counts() for stage in self._stages if isinstance(stage, CountsCache)
        ]
        return sum(hits for hits, _ in counts), sum(misses for _, misses in counts)

    @property
    def _stages(self) -> list[object]:
        blend = self.pipeline.blend
        return [*blend.recallers, *blend.scorers, self.pipeline.reranker]

    @cached_property
    def _codes(self) -> dict[str, int]:
        # By text: "7" and 7 of the wire are one item, whichever type the model's ids have.
        return {str(item): code for code, item in enumerate(self.data.items.ids.tolist())}

    @cached_property
    def _user_codes(self) -> dict[str, int]:
        return {str(user): code for code, user in enumerate(self.data.users.ids.tolist())}


def load_model(root: Path, version: str | None = None) -> Loaded:
    """The current version of the model in the folder ``root``, or one by its id.

    Raises:
        StorageError: there is none, or it is damaged.
    """
    while True:
        wanted = storage.current(root) if version is None else version
        try:
            engine = load(root, version=wanted, histories=False)
            break
        except StorageError:
            # Writers may have removed it meanwhile; then CURRENT names another one.
            if version is not None or storage.current(root) == wanted:
                raise
    return Loaded(
        version=wanted,
        engine=engine,
        loaded=datetime.now(UTC),
        user_ids=engine.user_ids,
        item_ids="int" if id_type(engine.data.items.ids) == "int" else "str",
    )


def _title(text: object) -> str:
    title = " ".join("" if text is None else str(text)[: 4 * _LONGEST].split())
    return title if len(title) <= _LONGEST else title[: _LONGEST - 1] + "…"


def _coerced(kind: str, given: Id, wanted: IdType) -> Id:
    if wanted == "str":
        return str(given)
    if isinstance(given, int):
        number = given
    else:
        # int() also takes "007", "1_000" and " 7", each of which would be a second name of an id.
        plain = given.removeprefix("-")
        number = int(given) if plain.isdecimal() and plain.isascii() and len(plain) < 20 else 2**63
        if str(number) != given:
            number = 2**63
    if number not in _INT64:
        raise UnknownIdError(
            f"{kind} {given!r} is unknown: the model's {kind}s have numbers as ids"
        )
    return number
