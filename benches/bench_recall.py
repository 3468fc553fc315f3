"""The recall stage: histories folded in and searched, transitions counted, an HNSW graph."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from bench_als import implicit_model, like_implicit
from contract import THREADS, same_ranking, scaled, timed
from inputs import as_csr, interactions
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csr_array, diags_array
from threadpoolctl import threadpool_limits

import hybridrec as hr

USERS = scaled(smoke=50, default=2_000, full=10_000)
FACTORS, K, WINDOW, SMOOTHING = 64, 100, 10, 20.0


@cache
def fitted() -> hr.ALS:
    return like_implicit(FACTORS, scaled(smoke=2, default=5, full=5)).fit(interactions())


def some_users() -> NDArray[Any]:
    data = interactions()
    active = np.flatnonzero(data.histories.lengths > 0)
    return np.sort(np.random.default_rng(1).choice(active, USERS, replace=False))


def test_fold_in_and_search_against_implicit(duel: Any) -> None:
    data, model, users = interactions(), fitted(), some_users()
    queries = data.queries(users)
    with threadpool_limits(1, user_api="blas"):
        peer = implicit_model(FACTORS, 1)
    peer.item_factors = model.item_factors.copy()
    user_items = as_csr(queries.histories, data.n_items)

    def ours() -> tuple[Any, Any]:
        found = model.recall(queries, K)
        return found.items, found.scores

    def theirs() -> tuple[Any, Any]:
        return peer.recommend(users, user_items, N=K, recalculate_user=True)

    duel(
        "recall, histories folded in",
        ("ALS.recall", timed(ours)),
        ("implicit recommend(recalculate_user)", timed(theirs, blas_threads=1)),
        # Two exact solvers in float32 agree to about the condition of the normal matrix.
        check=lambda mine, other: same_ranking(mine, other, tolerance=1e-3),
        data=f"{USERS:,} users of {data}",
        parameters=f"F={FACTORS}, k={K}, float32, same item factors, seen left out, implicit's "
        "BLAS at 1 thread",
    )


def test_transitions_against_scipy(duel: Any) -> None:
    data = interactions()
    picked = np.random.default_rng(2).choice(data.n_items, min(200, data.n_items), replace=False)
    asked = hr.Queries(hr.Ragged.from_rows([[item] for item in picked]), data.n_items)
    every = np.tile(np.arange(data.n_items, dtype=np.int32), (len(picked), 1))

    def ours() -> hr.ItemTransitions:
        return hr.ItemTransitions(window=WINDOW, smoothing=SMOOTHING, half_life=None).fit(data)

    def check(mine: hr.ItemTransitions, other: csr_array) -> str:
        """The score of b behind a history of a alone is T[a, b]."""
        wanted = other[picked].toarray()
        apart = float(np.abs(mine.score(asked, every) - wanted).max() / wanted.max())
        assert apart <= 1e-5, f"the tables differ by {apart:.2g} of the largest entry"
        return f"{len(picked)} rows of the table equal to {apart:.1e}"

    duel(
        "transitions fit",
        ("ItemTransitions.fit", timed(ours)),
        ("scipy.sparse, a matrix a gap", timed(lambda: by_scipy(data.histories, data.n_items))),
        check=check,
        data=str(data),
        parameters=f"window {WINDOW}, smoothing {SMOOTHING:g}, float32; each on one thread",
    )


def by_scipy(rows: hr.Ragged, n_items: int) -> csr_array:
    """The same table by sparse algebra: what one writes without a compiled loop."""
    owner = rows.row_of()
    total = csr_array((n_items, n_items), dtype=np.float32)
    for gap in range(1, WINDOW + 1):
        first, then = rows.items[:-gap], rows.items[gap:]
        kept = (owner[:-gap] == owner[gap:]) & (first != then)
        weight = np.full(int(kept.sum()), 1.0 / gap, np.float32)
        pairs = coo_matrix((weight, (first[kept], then[kept])), shape=(n_items, n_items))
        total += pairs.tocsr()
    counts = np.bincount(rows.items, minlength=n_items)
    scale = 1.0 / np.sqrt(np.maximum(counts, 1) + SMOOTHING)
    return csr_array(total @ diags_array(scale.astype(np.float32)))


def test_hnsw_against_exact(duel: Any) -> None:
    data, model, users = interactions(), fitted(), some_users()
    vectors = model.user_vectors(data.queries(users))
    graph = hr.FaissIndex(model.item_factors, "HNSW32", threads=THREADS)
    exact = hr.ExactIndex(model.item_factors, threads=THREADS)

    def check(mine: tuple[Any, Any], wanted: tuple[Any, Any]) -> str:
        pairs = zip(mine[0], wanted[0], strict=True)
        share = float(np.mean([np.isin(best, found).mean() for found, best in pairs]))
        assert share >= 0.8, f"HNSW32 finds only {share:.3f} of the exact top {K}"
        products = np.einsum("bkd,bd->bk", model.item_factors[mine[0]], vectors)
        np.testing.assert_allclose(mine[1], products, rtol=1e-4, atol=1e-5)
        return f"recall@{K} of the graph {share:.4f}, its scores exact"

    duel(
        "HNSW32 search",
        ("FaissIndex.search", timed(lambda: graph.search(vectors, K))),
        ("our ExactIndex.search", timed(lambda: exact.search(vectors, K))),
        check=check,
        data=f"ALS factors of {data.n_items:,} items, {USERS:,} users",
        parameters=f"d={FACTORS}, k={K}, float32",
    )
