"""A hundred known users, from their ids to a frame of ids, without and with the LLM."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from bench_als import ALPHA, REGULARIZATION, implicit_model
from contract import THREADS, same_ranking, scaled, timed
from inputs import as_csr, movielens
from threadpoolctl import threadpool_limits

import hybridrec as hr
from hybridrec.evaluation.metrics import per_user

USERS, K, FACTORS = scaled(smoke=10, default=100, full=100), 10, 64


@cache
def split() -> hr.split.Split:
    return hr.split.leave_last(movielens()[0])


def asked() -> np.ndarray:
    """Codes of the users in question, who are the same for both sides."""
    users = split().queries.users
    return np.sort(np.random.default_rng(0).choice(users, USERS, replace=False))


def read(frame: Any) -> tuple[np.ndarray, np.ndarray]:
    """(B, K) item codes and scores of an answer in which everybody got K items."""
    items = split().train.items.codes(frame["item"].to_numpy(zero_copy_only=False))
    scores = frame["score"].to_numpy(zero_copy_only=False)
    return items.reshape(-1, K), scores.reshape(-1, K)


def ndcg(items: np.ndarray, rows: np.ndarray) -> float:
    return float(per_user(items, split().targets.select(rows), K).ndcg.mean())


def check_seen(items: np.ndarray, users: np.ndarray) -> None:
    train = split().train
    seen = as_csr(train.histories.select(users), train.n_items)
    shown = as_csr(hr.Ragged.from_rows(list(items)), train.n_items)
    assert shown.multiply(seen).nnz == 0, "an item the user has seen came back"


def ids_of(users: np.ndarray) -> Any:
    return split().train.users.ids_of(users)


def compare(
    duel: Any, bench: str, name: str, engine: hr.HybridRecommender, peer: Any, check: Any
) -> None:
    """``peer``: (name, call) or None."""
    ids = ids_of(asked())
    duel(
        bench,
        (name, timed(lambda: engine.recommend(ids, k=K, frame="pyarrow"))),
        None if peer is None else (peer[0], timed(peer[1], blas_threads=1)),
        check=check,
        data=f"{USERS} users of {movielens()[1]}",
        parameters=f"k={K}, F={FACTORS}, float32, seen left out",
        unit="user",
        per=USERS,
    )


def test_als_alone_against_implicit(duel: Any) -> None:
    """The same factors on both sides, so that the difference is the engine's own cost."""
    als = hr.ALS.like_implicit(
        alpha=ALPHA,
        regularization=REGULARIZATION,
        factors=FACTORS,
        half_life=None,
        threads=THREADS,
    )
    engine = hr.HybridRecommender([als], depth=K).fit(split().train)
    als = engine.recallers[0]  # what the engine fitted; its argument stays as it was
    users = asked()
    with threadpool_limits(1, user_api="blas"):
        peer = implicit_model(FACTORS, 1)
    peer.item_factors = als.item_factors.copy()
    user_items = as_csr(split().train.histories, split().train.n_items)

    def theirs() -> tuple[Any, Any]:
        return peer.recommend(users, user_items[users], N=K, recalculate_user=True)

    def check(mine: Any, other: tuple[Any, Any]) -> str:
        items, _ = read(mine)
        check_seen(items, users)
        train = split().train
        queries = hr.Queries(train.histories.select(users), train.n_items, users)
        # The engine's scores are the blend's: the recaller's own stand in for them.
        return same_ranking((items, als.score(queries, items)), other, tolerance=1e-3)

    name = ("implicit recommend(recalculate_user)", theirs)
    compare(duel, "engine, ALS alone", "recommend", engine, name, check)


def test_without_llm_against_implicit(duel: Any) -> None:
    recallers = [hr.Popularity(), hr.ALS(factors=FACTORS, threads=THREADS), hr.ItemTransitions()]
    engine = hr.HybridRecommender(recallers, fusion=hr.LinearFusion()).fit(split().train)
    users = asked()
    train = split().train
    user_items = as_csr(train.histories, train.n_items)
    with threadpool_limits(1, user_api="blas"):
        peer = implicit_model(FACTORS, 15)
        peer.fit(user_items, show_progress=False)

    def theirs() -> tuple[Any, Any]:
        return peer.recommend(users, user_items[users], N=K)

    def check(_: Any, __: Any) -> str:
        """Different models: what can be compared is what the answers are worth."""
        every = split().queries.users
        items, _ = read(engine.recommend(ids_of(every), k=K, frame="pyarrow"))
        check_seen(items, every)
        mine = ndcg(items, np.arange(len(every)))
        found, _ = peer.recommend(every, user_items[every], N=K)
        theirs = ndcg(found, np.arange(len(every)))
        if movielens()[1].startswith("MovieLens"):
            assert mine > theirs, f"NDCG@{K} {mine:.4f}, the peer's {theirs:.4f}"
        return f"other models: NDCG@{K} {mine:.4f} / {theirs:.4f} over {len(every)} users"

    name = ("implicit recommend", theirs)
    compare(duel, "engine, no LLM", "recommend (3 recallers, fusion)", engine, name, check)


def test_with_llm(duel: Any) -> None:
    """How long it takes does not depend on what was learned, so it learns little."""
    few = scaled(smoke=8, default=32, full=32)
    depth = scaled(smoke=10, default=50, full=50)
    engine = hr.HybridRecommender(
        [hr.Popularity(), hr.ALS(factors=FACTORS, threads=THREADS), hr.ItemTransitions()],
        hr.CrossEncoder(history=10, device="cpu"),
        hr.LinearFusion(),
        rerank_depth=depth,
        reranker_examples=few,
        fusion_examples=few,
    ).fit(split().train)
    users = asked()

    def check(mine: Any, _: None) -> str:
        items, scores = read(mine)
        check_seen(items, users)
        assert (np.diff(scores, axis=1) <= 0).all()
        return f"no peer; {depth} candidates reranked by MiniLM-L6, histories of 10"

    compare(duel, "engine, with LLM", "recommend (+ cross-encoder)", engine, None, check)
