"""Exact maximum inner-product search against FAISS' flat index and implicit's top-k."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
import pytest
from contract import THREADS, core_build, other_builds, same_ranking, scaled, timed, typical
from implicit.cpu.als import AlternatingLeastSquares
from implicit.cpu.topk import topk
from inputs import as_csr, synthetic
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

import hybridrec as hr

WIDTHS = [64, 128]
MANY = scaled(smoke=(50, 700), default=(2_000, 20_000), full=(10_000, 20_000))
SHAPES = scaled(
    smoke=[MANY, (20, 900)],
    default=[MANY, (256, 100_000), (256, 20_000)],
    full=[MANY, (1_000, 200_000), (256, 20_000)],
)
"""(queries, items); ``MANY`` where one shape is enough."""
SINGLE_ITEMS = scaled(smoke=700, default=100_000, full=100_000)
SINGLE_CALLS = scaled(smoke=5, default=50, full=300)
K = 100
BLAS = "implicit's BLAS at 1 thread"

Vectors = NDArray[np.float32]


def normal(n_queries: int, n_items: int, width: int) -> tuple[Vectors, Vectors]:
    """(B, d) queries and (I, d) items, standard normal."""
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((n_queries, width), dtype=np.float32)
    return queries, rng.standard_normal((n_items, width), dtype=np.float32)


def described(queries: Vectors, items: Vectors) -> str:
    return f"normal, {len(queries):,} queries x {len(items):,} items, d={items.shape[1]}"


def flat_index(items: Vectors) -> Any:
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items)
    return index


@contextmanager
def faiss_threads(threads: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@pytest.mark.parametrize("width", WIDTHS)
def test_arrays_in_against_implicit(duel: Any, width: int) -> None:
    queries, items = normal(*MANY, width)
    duel(
        "top-k, arrays in",
        ("top_k (packs inside)", timed(lambda: hr.top_k(queries, items, K, threads=THREADS))),
        (
            "implicit.cpu.topk",
            timed(lambda: topk(items, queries, K, num_threads=THREADS), blas_threads=1),
        ),
        check=same_ranking,
        data=described(queries, items),
        parameters=f"k={K}, float32, {BLAS}",
    )


def against_faiss(duel: Any, shape: tuple[int, int], width: int, ours: str) -> None:
    queries, items = normal(*shape, width)
    index, flat = hr.ExactIndex(items, threads=THREADS), flat_index(items)
    duel(
        "top-k, index ready",
        (ours, timed(lambda: index.search(queries, K))),
        ("faiss.IndexFlatIP.search", timed(lambda: flat.search(queries, K))),
        check=lambda mine, other: same_ranking(mine, other[::-1]),
        data=described(queries, items),
        parameters=f"k={K}, float32",
    )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shape", SHAPES, ids="{0[0]}x{0[1]}".format)
def test_index_against_faiss(duel: Any, shape: tuple[int, int], width: int) -> None:
    against_faiss(duel, shape, width, "ExactIndex.search")


@pytest.mark.parametrize("build", other_builds())
def test_index_of_other_builds_against_faiss(duel: Any, build: str) -> None:
    """What a CPU without AVX-512 would run; the peer still picks its code for this one."""
    with core_build(build):
        against_faiss(duel, MANY, 64, f"ExactIndex.search, {build} build")


@pytest.mark.parametrize("threads", [1, THREADS])
def test_single_query_against_faiss(duel: Any, threads: int) -> None:
    queries, items = normal(SINGLE_CALLS, SINGLE_ITEMS, 128)
    index, flat = hr.ExactIndex(items, threads=threads), flat_index(items)

    def check(mine: list[Any], other: list[Any]) -> str:
        ours, theirs = (
            tuple(np.concatenate(parts) for parts in zip(*answers, strict=True))
            for answers in (mine, other)
        )
        return same_ranking(ours, theirs[::-1])

    with faiss_threads(threads):
        duel(
            f"top-k, 1 query a call, threads={threads}",
            (
                "ExactIndex.search",
                typical(lambda i: index.search(queries[i : i + 1], K), len(queries)),
            ),
            (
                "faiss.IndexFlatIP.search",
                typical(lambda i: flat.search(queries[i : i + 1], K), len(queries)),
            ),
            check=check,
            data=described(queries, items),
            parameters=f"k={K}, float32, both at {threads}, p50 of the calls",
        )


@pytest.mark.parametrize("width", WIDTHS)
def test_seen_left_out_against_implicit(duel: Any, width: int) -> None:
    queries, items = normal(*MANY, width)
    seen = synthetic(len(queries), len(items), 70 * len(queries)).histories
    user_items = as_csr(seen, len(items))
    index = hr.ExactIndex(items, threads=THREADS)
    with threadpool_limits(1, user_api="blas"):
        model = AlternatingLeastSquares(factors=width, num_threads=THREADS)
    model.item_factors, model.user_factors = items, queries
    everyone = np.arange(len(queries))

    def check(mine: Any, other: Any) -> str:
        shown = as_csr(hr.Ragged.from_rows(list(mine[0])), len(items))
        assert shown.multiply(user_items).nnz == 0, "an item the user has seen came back"
        return same_ranking(mine, other) + ", none seen"

    duel(
        "top-k, seen left out",
        ("ExactIndex.search(exclude=)", timed(lambda: index.search(queries, K, exclude=seen))),
        (
            "implicit recommend",
            timed(lambda: model.recommend(everyone, user_items, N=K), blas_threads=1),
        ),
        check=check,
        data=described(queries, items),
        parameters=f"k={K}, float32, {len(seen.items) / len(queries):.0f} seen a query, {BLAS}",
    )
