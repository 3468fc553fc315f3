"""What the suites run on: synthetic interactions with the skew of real ones, and MovieLens 100k."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from contract import scaled
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

import hybridrec as hr

WORDS = """
time year people way day man thing woman life child world school state family student
group country problem hand part place case week company system program question work
government number night point home water room mother area money story fact month lot
right study book eye job word business issue side kind head house service friend father
power hour game line end member law car city community name president team minute idea
body information back parent face others level office door health person art war history
party result change morning reason research girl guy moment air teacher force education
""".split()  # noqa: SIM905 - as prose, it can be read


@dataclass(frozen=True, eq=False)
class Interactions:
    """Histories alone: what a recaller may be fitted to."""

    histories: hr.Ragged
    n_items: int
    texts: Sequence[str] | None = None
    ordered: bool = True

    def __str__(self) -> str:
        users, events = len(self.histories), len(self.histories.items)
        return f"synthetic {users:,} x {self.n_items:,}, {events:,} events"

    def csr(self) -> csr_matrix:
        """(U, I) float32 ones, its columns sorted: the form that implicit works on fastest."""
        return as_csr(self.histories, self.n_items)

    def queries(self, rows: NDArray[Any]) -> hr.Queries:
        """Of users ``rows``, what they have seen left out of the answers."""
        known = self.histories.select(rows)
        return hr.Queries(known, self.n_items, users=rows.astype(np.int32), exclude=known)


def as_csr(rows: hr.Ragged, n_items: int) -> csr_matrix:
    """(B, I) float32: how often each row holds each item; columns sorted."""
    ones = np.ones(len(rows.items), np.float32)
    indices = rows.items.astype(np.int32)
    matrix = csr_matrix(
        (ones, indices, rows.indptr.astype(np.int32)), shape=(len(rows), n_items), copy=True
    )
    matrix.sum_duplicates()
    return matrix


def interactions() -> Interactions:
    """The synthetic interactions of the chosen scale."""
    shape = scaled(
        smoke=(400, 700, 12_000),
        default=(13_800, 20_000, 1_000_000),
        full=(138_000, 20_000, 10_000_000),
    )
    return synthetic(*shape)


@cache
def synthetic(users: int, items: int, draws: int, seed: int = 0) -> Interactions:
    """What :func:`drawn` draws, repeats dropped.

    The order inside a history is random: there is none to learn, but there is one to walk through.
    """
    rng = np.random.default_rng(seed)
    [(who, what)] = drawn(rng, users, items, draws, at_once=draws)
    pairs = np.unique(who.astype(np.int64) * items + what)
    pairs = rng.permutation(pairs)
    pairs = pairs[np.argsort(pairs // items, kind="stable")]
    counts = np.bincount(pairs // items, minlength=users)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    return Interactions(hr.Ragged(indptr, (pairs % items).astype(np.int32)), items)


def drawn(
    rng: np.random.Generator, users: int, items: int, draws: int, *, at_once: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The users and the items of ``draws`` events, in parts of ``at_once``; repeats happen.

    Users by lognormal(0, 1) activity, items by rank^-0.9.
    """
    activity = rng.lognormal(0.0, 1.0, users)
    fame = np.arange(1, items + 1) ** -0.9
    activity, fame = activity / activity.sum(), fame / fame.sum()
    for first in range(0, draws, at_once):
        part = min(at_once, draws - first)
        yield rng.choice(users, part, p=activity), rng.choice(items, part, p=fame)


@cache
def movielens() -> tuple[hr.Dataset, str]:
    """MovieLens 100k where it can be found, or else a table of its size; and which of the two."""
    try:
        return hr.public.movielens_100k(), "MovieLens 100k"
    except hr.DataSourceError:
        return _movielens_like(), "synthetic 943 x 1,682, 100k draws"


def _movielens_like() -> hr.Dataset:
    import pyarrow as pa

    made = synthetic(943, 1682, 150_000)
    rows = made.histories
    events = {"user": rows.row_of(), "item": rows.items, "time": -rows.from_end()}
    texts = titles(made.n_items, words=8)
    return hr.Dataset.from_frame(
        pa.table(events),
        user="user",
        item="item",
        time="time",
        items=pa.table({"item": np.arange(made.n_items, dtype=np.int32), "title": texts}),
        item_text="{title}",
    )


def titles(n: int, *, words: int, seed: int = 0) -> list[str]:
    """``n`` texts of so many English words, each of which is one token to a BERT tokeniser."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, words)) for _ in range(n)]


def ml_1m() -> hr.Dataset:
    """The interactions and films of ``$HYBRIDREC_DATA/ml-1m``; at the smoke scale a few users'."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    root = os.environ.get("HYBRIDREC_DATA")
    if not root or not (folder := Path(root) / "ml-1m").is_dir():
        raise SystemExit(f"HYBRIDREC_DATA is {root!r}; wanted the folder that holds ml-1m/")
    films = pq.read_table(folder / "movies.parquet")
    genres = pc.replace_substring(films["genres"], "|", ", ")
    films = films.set_column(films.column_names.index("genres"), "genres", genres)
    data = hr.Dataset.from_frame(
        pq.read_table(folder / "interactions.parquet"),
        user="user_id",
        item="movie_id",
        time="seq",
        items=films,
        item_text="{title}. {genres}",
    )
    users = scaled(smoke=400, default=data.n_users, full=data.n_users)
    return data.keep_events(data.histories.row_of() < users)
