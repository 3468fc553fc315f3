"""How much memory a fit takes beside its events and factors: ``python benches/bench_memory.py``.

For each size, each step in a process of its own: events are written to Parquet, read by
``Dataset.from_frame`` (reported apart), and an ALS is fitted to the histories that came out. What
counts is the peak while it is fitted, less what was resident after the imports: the data set, the
events once more by item, the factors, and whatever else the fit needs. It is held against

    index of both orientations: events x 2 x int32 + (users + 1 + items + 1) x int64
    factors: (users + items) x F x float32.

The ratio has to be at most 2.5 for 100 million events. Unit weights, no times; users and items
drawn with the skew of the other suites, repeats kept. Everything goes to
``bench-output/memory.json``. Linux only: it reads and resets VmHWM in /proc.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from contract import THREADS, card, scaled, write
from inputs import drawn

from hybridrec import ALS, Dataset, IdMap, Ragged

FACTORS, EPOCHS = 64, 2
ITEMS = scaled(smoke=1_000, default=100_000, full=100_000)
EVENTS_A_USER = 100
ROW_GROUP = 1 << 20
MIB = 1 << 20


@dataclass(frozen=True)
class Use:
    """Seconds and bytes of one step; ``bytes`` is the peak above what the imports left."""

    seconds: float
    bytes: int


@dataclass(frozen=True)
class Size:
    """What one number of events took.

    Attributes:
        events: and users, items: what the data set came to hold.
        needed: bytes of the index of both orientations and of the factors.
        ingestion: Parquet to data set.
        fit: data set to model, the data set included.
    """

    events: int
    users: int
    items: int
    needed: int
    ingestion: Use
    fit: Use

    @property
    def ratio(self) -> float:
        """Peak of the fit over what is needed."""
        return self.fit.bytes / self.needed


def resident(field: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" at most since :func:`measured` began."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}: run this on Linux")


def measured(call: Callable[[], Any], baseline: int) -> tuple[Use, Any]:
    """What ``call()`` took, above ``baseline`` bytes, and its answer."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    start = time.perf_counter()
    answer = call()
    return Use(time.perf_counter() - start, resident("VmHWM") - baseline), answer


def alone(step: Callable[..., Any], *arguments: Any) -> Any:
    """``step(*arguments)`` in a fresh process, so that no step pays for another's leavings."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(step, *arguments).result()


def draw(events: int, folder: Path) -> None:
    """``events.parquet``, a row group at a time."""
    rng = np.random.default_rng(0)
    schema = pa.schema({"user": pa.int32(), "item": pa.int32()})
    users = max(1, events // EVENTS_A_USER)
    with pq.ParquetWriter(folder / "events.parquet", schema) as file:
        for who, what in drawn(rng, users, ITEMS, events, at_once=ROW_GROUP):
            columns = {"user": who.astype(np.int32), "item": what.astype(np.int32)}
            file.write_table(pa.table(columns, schema))


def ingest(folder: Path) -> Use:
    """From Parquet to a data set, whose histories are left for :func:`fit`."""
    path, baseline = folder / "events.parquet", resident("VmRSS")
    use, data = measured(lambda: Dataset.from_frame(path, user="user", item="item"), baseline)
    rows = data.histories
    np.savez(
        folder / "data.npz",
        users=data.users.ids,
        items=data.items.ids,
        indptr=rows.indptr,
        codes=rows.items,
    )
    return use


def fit(folder: Path) -> tuple[Use, int, int, int]:
    """The fit, and how many events, users and items the data set holds."""
    baseline = resident("VmRSS")
    with np.load(folder / "data.npz") as saved:
        data = Dataset(
            users=IdMap(saved["users"]),
            items=IdMap(saved["items"]),
            histories=Ragged(saved["indptr"], saved["codes"]),
            ordered=False,
        )
    als = ALS(factors=FACTORS, epochs=EPOCHS, threads=THREADS)
    use, _ = measured(lambda: als.fit(data), baseline)
    return use, data.n_events, data.n_users, data.n_items


def measure(events: int) -> Size:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone(draw, events, folder)
        ingestion = alone(ingest, folder)
        (folder / "events.parquet").unlink()
        use, n_events, users, items = alone(fit, folder)
    index = 2 * 4 * n_events + 8 * (users + 1 + items + 1)
    needed = index + 4 * FACTORS * (users + items)
    return Size(n_events, users, items, needed, ingestion, use)


def show(line: str) -> None:
    """Print at once, piped or not: a run takes a while."""
    print(line, flush=True)


def run(events: Sequence[int], say: Callable[[str], None] = show) -> list[Size]:
    """Measure every size and the law between them; write the table."""
    say(f"ALS(factors={FACTORS}, epochs={EPOCHS}), {THREADS} threads, float32, unit weights")
    sizes = []
    for size in map(measure, events):
        sizes.append(size)
        say(
            f"{size.events:,} events, {size.users:,} users x {size.items:,} items: "
            f"from_frame {size.ingestion.seconds:.1f} s, peak {size.ingestion.bytes / MIB:,.0f} "
            f"MiB; fit {size.fit.seconds:.1f} s, peak {size.fit.bytes / MIB:,.1f} MiB = "
            f"{size.ratio:.2f} x {size.needed / MIB:,.1f} MiB of index and factors"
        )
    for small, large in pairwise(sizes):
        slope = (large.fit.bytes - small.fit.bytes) / (large.needed - small.needed)
        fixed = small.fit.bytes - slope * small.needed
        say(
            f"from {small.events:,} to {large.events:,} events: peak = {slope:.2f} x (index and "
            f"factors) {'+' if fixed >= 0 else '-'} {abs(fixed) / MIB:,.0f} MiB"
        )
    content = {"machine": card(), "sizes": [{**asdict(s), "ratio": s.ratio} for s in sizes]}
    path = write("memory.json", content)
    say(f"written to {path.parent.name}/{path.name}")
    return sizes


def test_memory_of_a_fit(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Small sizes, to show that it runs: the imports' leavings weigh too much to judge a ratio."""
    events = scaled(smoke=[20_000], default=[1_000_000], full=[1_000_000, 10_000_000])
    with capsys.disabled():
        sizes = benchmark.pedantic(run, (events,), rounds=1)
    for size in sizes:
        held = size.events * 4 + FACTORS * 4 * (size.users + size.items)
        assert size.fit.bytes > held, "less than what the fit cannot do without"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--events", type=int, nargs="+", default=[10_000_000, 100_000_000], metavar="N"
    )
    run(parser.parse_args().events)
