"""Exact maximum inner-product search against FAISS' flat index and implicit's top-k."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import pytest
from contract import THREADS, same_ranking, scaled, timed
from implicit.cpu.als import AlternatingLeastSquares
from implicit.cpu.topk import topk
from inputs import as_csr, synthetic
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

import hybridrec as hr

ITEMS = scaled(smoke=700, default=20_000, full=20_000)
QUERIES = scaled(smoke=50, default=2_000, full=10_000)
K = 100
BLAS = "implicit's BLAS at 1 thread"

Vectors = NDArray[np.float32]


@pytest.fixture(params=[64, 128], ids="d={}".format)
def vectors(request: pytest.FixtureRequest) -> tuple[Vectors, Vectors]:
    """(B, d) queries and (I, d) items, standard normal."""
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((QUERIES, request.param), dtype=np.float32)
    return queries, rng.standard_normal((ITEMS, request.param), dtype=np.float32)


def described(vectors: tuple[Vectors, Vectors]) -> str:
    queries, items = vectors
    return f"normal, {len(queries):,} queries x {len(items):,} items, d={items.shape[1]}"


def test_arrays_in_against_implicit(duel: Any, vectors: tuple[Vectors, Vectors]) -> None:
    queries, items = vectors
    duel(
        "top-k, arrays in",
        ("top_k (packs inside)", timed(lambda: hr.top_k(queries, items, K, threads=THREADS))),
        (
            "implicit.cpu.topk",
            timed(lambda: topk(items, queries, K, num_threads=THREADS), blas_threads=1),
        ),
        check=same_ranking,
        data=described(vectors),
        parameters=f"k={K}, float32, {BLAS}",
    )


def test_index_against_faiss(duel: Any, vectors: tuple[Vectors, Vectors]) -> None:
    queries, items = vectors
    ours = hr.ExactIndex(items, threads=THREADS)
    flat = faiss.IndexFlatIP(items.shape[1])
    flat.add(items)
    duel(
        "top-k, index ready",
        ("ExactIndex.search", timed(lambda: ours.search(queries, K))),
        ("faiss.IndexFlatIP.search", timed(lambda: flat.search(queries, K))),
        check=lambda mine, other: same_ranking(mine, other[::-1]),
        data=described(vectors),
        parameters=f"k={K}, float32",
    )


def test_seen_left_out_against_implicit(duel: Any, vectors: tuple[Vectors, Vectors]) -> None:
    queries, items = vectors
    seen = synthetic(QUERIES, ITEMS, 70 * QUERIES).histories
    user_items = as_csr(seen, ITEMS)
    index = hr.ExactIndex(items, threads=THREADS)
    with threadpool_limits(1, user_api="blas"):
        model = AlternatingLeastSquares(factors=items.shape[1], num_threads=THREADS)
    model.item_factors, model.user_factors = items, queries
    everyone = np.arange(QUERIES)

    def check(mine: Any, other: Any) -> str:
        shown = as_csr(hr.Ragged.from_rows(list(mine[0])), ITEMS)
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
        data=described(vectors),
        parameters=f"k={K}, float32, {len(seen.items) / QUERIES:.0f} seen a query, {BLAS}",
    )
