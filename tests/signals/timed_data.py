"""Histories with times, for the tests of the signals."""

from dataclasses import dataclass, replace

import numpy as np

from hybridrec.candidates import Queries
from hybridrec.ragged import Ragged

I, B, K = 30, 9, 6  # noqa: E741


@dataclass
class Data:
    histories: Ragged
    n_items: int = I
    texts: None = None
    ordered: bool = True


def timed(rows, rng):
    histories = Ragged.from_rows(rows)
    times = np.concatenate([np.sort(rng.integers(0, 5000, len(row))) for row in rows] or [[]])
    return replace(histories, times=times.astype(np.int64))


def make_data(users=60, seed=0):
    """Histories of items 0 to 26, so that some items are cold."""
    rng = np.random.default_rng(seed)
    return Data(timed([rng.integers(0, I - 3, rng.integers(0, 12)) for _ in range(users)], rng))


def make_queries(seed=1, rows=B, n_items=I):
    """Histories with repeats, one of them empty, one of a single event."""
    rng = np.random.default_rng(seed)
    lengths = [0, 1, *rng.integers(2, 9, rows - 2)]
    return Queries(timed([rng.integers(0, n_items, n) for n in lengths], rng), n_items)


def make_items(rows=B, seed=2, n_items=I):
    rng = np.random.default_rng(seed)
    items = rng.integers(-1, n_items, (rows, K)).astype(np.int32)
    items[0] = -1
    return items
