"""FaissIndex against the exact answer, whatever the spec."""

import copy
import logging
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridrec import (
    ExactIndex,
    FaissIndex,
    FitError,
    InputError,
    InputTypeError,
    MissingExtraError,
    Ragged,
    StorageError,
)
from hybridrec.protocols import VectorIndex
from hybridrec.recall import faiss_choice, faiss_index, faiss_kinds, faiss_search
from hybridrec.recall.faiss_index import make_index

faiss = pytest.importorskip("faiss")

# Every way a search goes: no breadth, a graph, lists on a sphere, codes, lists of codes, inside of
# a transform and a refinement; "PQ8x4fs" is a kind in which FAISS cannot leave items out.
SPECS = [
    "Flat",
    "HNSW32",
    "IVF4,Flat",
    "SQ4",
    "PCA8,HNSW16",
    "IVF4,PQ16x4fsr",
    "PQ8x4fs",
    "PCA12,IVF4,SQ8,RFlat",
]
N, D = 600, 16


def vectors(n=N, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, D)) * rng.lognormal(0, 0.3, (n, 1))).astype(np.float32)


@pytest.fixture(scope="module")
def built():
    return {spec: FaissIndex(vectors(), spec, threads=1) for spec in SPECS}


@pytest.fixture(params=SPECS)
def index(request, built):
    """A shallow copy: what a test adds or retires stays its own."""
    return copy.copy(built[request.param])


@pytest.fixture
def no_few(monkeypatch):
    """Filters go through FAISS however few items they leave."""
    monkeypatch.setattr(faiss_search, "_FEW", 0.0)


def check(index, queries, k, exclude, allow, retired=()):
    """Every promise of a search that does not depend on what the index missed."""
    items, scores = index.search(queries, k, exclude=exclude, allow=allow)
    assert items.shape == scores.shape == (len(queries), k)
    assert items.dtype == np.int32
    assert scores.dtype == np.float32
    for row, (found, score) in enumerate(zip(items, scores, strict=True)):
        barred = set() if exclude is None else set(exclude.select(np.array([row])).items)
        allowed = set(range(index.n_items)) if allow is None else set(np.flatnonzero(allow))
        allowed -= set(retired)
        real = found >= 0
        assert real.sum() == min(k, len(allowed - barred))
        assert real[: real.sum()].all()
        assert set(found[real]) <= allowed - barred
        assert len(set(found[real])) == real.sum()
        assert (score[~real] == -np.inf).all()
        np.testing.assert_allclose(
            score[real], index.vectors[found[real]] @ queries[row], rtol=1e-4, atol=1e-4
        )
        order = np.lexsort((found[real], -score[real]))
        np.testing.assert_array_equal(order, np.arange(real.sum()))
    return items, scores


@settings(max_examples=12, deadline=None)
@given(
    k=st.sampled_from([1, 10, 40, N - 1, N + 5]),
    barred=st.lists(st.integers(0, 250), min_size=3, max_size=3),
    share=st.sampled_from([None, 0.0, 0.01, 0.5, 0.97, 1.0]),
    few=st.sampled_from([0.0, 1.0]),
    packed=st.sampled_from([0.0, 1.0]),
    gone=st.sampled_from([0, 5, 140]),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("spec", SPECS)
def test_k_items_come_back_whenever_k_are_allowed(
    spec, k, barred, share, few, packed, gone, seed, built
):
    rng = np.random.default_rng(seed)
    exclude = Ragged.from_rows([rng.integers(0, N, n) for n in barred])
    allow = None if share is None else rng.random(N) < share
    index, retired = copy.copy(built[spec]), rng.choice(N, gone, replace=False)
    index.retire(retired)
    queries = rng.standard_normal((3, D)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faiss_search, "_FEW", few)
        patch.setattr(faiss_search, "_PACKED", packed)
        check(index, queries, k, exclude, allow, retired)


def test_it_is_a_vector_index(index):
    assert isinstance(index, VectorIndex)
    assert index.n_items == N


def test_recall_at_is_the_share_found(index):
    queries = vectors(40, seed=1)
    wanted, _ = ExactIndex(vectors()).search(queries, 10)
    found, _ = index.search(queries, 10)
    shares = [len(set(w) & set(f)) / 10 for w, f in zip(wanted, found, strict=True)]
    assert index.recall_at(10, queries) == pytest.approx(np.mean(shares))


@pytest.mark.parametrize("spec", ["HNSW32", "IVF32,Flat", "IVF16,PQ16x4fsr", "SQ4"])
@pytest.mark.parametrize("target", [0.6, 0.99])
def test_the_target_is_reached_where_it_is_measured(spec, target):
    queries = vectors(200, seed=1)
    index = FaissIndex(vectors(3000), spec, target_recall=target, queries=queries, threads=1)
    assert index.measured_recall >= target
    assert index.recall_at(100, queries) == pytest.approx(index.measured_recall, abs=1e-9)


def test_no_wider_than_the_target_needs():
    items, queries = vectors(3000), vectors(200, seed=1)
    low = FaissIndex(items, "IVF64,Flat", target_recall=0.5, queries=queries, threads=1)
    high = FaissIndex(items, "IVF64,Flat", target_recall=0.99, queries=queries, threads=1)
    assert low._held.settings.breadth < high._held.settings.breadth <= 64
    assert low.measured_recall < 0.75


def test_a_target_out_of_reach_is_warned_of(caplog):
    with caplog.at_level(logging.INFO, "hybridrec"):
        FaissIndex(vectors(3000), "PCA2,Flat", target_recall=0.9)
        FaissIndex(vectors(), "Flat", queries=vectors(30, seed=1))
    short, ample = [r for r in caplog.records if "proposed" in r.message]
    (warning,) = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert warning.startswith("FAISS PCA2,Flat finds 0.")
    assert "target_recall is 0.9: take another kind" in warning
    assert "on 256 items" in short.message
    assert "recall@100 1.000 on 30 of the queries given" in ample.message


def test_without_queries_items_stand_in_and_zeros_do_not():
    items = np.concatenate([np.zeros((500, D), np.float32), vectors(100)])
    assert faiss_choice.sampled(items).any(axis=1).all()
    assert len(faiss_choice.sampled(items)) == 100
    assert len(faiss_choice.sampled(vectors(3000))) == faiss_choice.SAMPLE
    assert FaissIndex(np.zeros((50, D), np.float32), "HNSW32").measured_recall == 1.0


def test_a_filter_widens_the_search(no_few):
    index = FaissIndex(vectors(5000), "IVF64,Flat", queries=vectors(100, seed=1), threads=1)
    queries = vectors(60, seed=2)
    for share in (0.5, 0.1):
        allow = np.random.default_rng(3).random(5000) < share
        wanted, _ = ExactIndex(vectors(5000)).search(queries, 50, allow=allow)
        found, _ = index.search(queries, 50, allow=allow)
        shares = [len(set(w) & set(f)) / 50 for w, f in zip(wanted, found, strict=True)]
        assert np.mean(shares) >= 0.9


@pytest.mark.parametrize("spec", ["HNSW32", "IVF4,Flat", "IVF4,PQ16x4fsr", "Flat", "SQ4"])
def test_faiss_itself_leaves_out_what_is_not_allowed(spec, built, no_few):
    """So no more is fetched than without a filter, however much the filter takes."""
    proposer = built[spec]._held.proposer
    mask = np.arange(N) % 3 == 0
    spots = proposer.propose(
        vectors(5, seed=1), 32, proposer.widest, faiss_kinds.selector(mask), threads=1
    )
    assert (spots % 3 == 0).all()


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_more_than_there_are_to_answer_are_searched_for_exactly(share, index, monkeypatch):
    monkeypatch.setattr(faiss_search, "_Asked", None)  # FAISS is not so much as asked
    index.retire(np.arange(50))
    allow = None if share == 1 else np.random.default_rng(3).random(N) < share
    left = N - 50 if allow is None else allow[50:].sum()
    check(index, vectors(4, seed=1), left + 1, None, allow, range(50))


@pytest.mark.parametrize("packed", [0.0, 1.0])
def test_few_allowed_are_searched_exactly(packed, monkeypatch):
    monkeypatch.setattr(faiss_search, "_PACKED", packed)
    index = FaissIndex(vectors(), "PCA2,Flat", target_recall=0.1)
    queries, allow = vectors(8, seed=1), np.arange(N) % 20 == 0
    exclude = Ragged.from_rows([range(40 * row) for row in range(8)])
    got = index.search(queries, 20, exclude=exclude, allow=allow)
    wanted = ExactIndex(vectors()).search(queries, 20, exclude=exclude, allow=allow)
    np.testing.assert_array_equal(got[0], wanted[0])
    np.testing.assert_array_equal(got[1], wanted[1])


def test_an_answer_does_not_depend_on_its_neighbours_or_on_threads(index):
    rng = np.random.default_rng(3)
    queries = vectors(48, seed=2)  # FAISS turns to BLAS from 20 queries
    exclude = Ragged.from_rows([rng.integers(0, N, n) for n in range(0, 240, 5)])
    items, scores = index.search(queries, 20, exclude=exclude)
    for row in range(len(queries)):
        rows = np.array([row])
        alone = index.search(queries[rows], 20, exclude=exclude.select(rows))
        np.testing.assert_array_equal(alone[0][0], items[row])
        np.testing.assert_array_equal(alone[1][0], scores[row])
    several = FaissIndex.from_arrays(index.to_arrays(), index.spec, threads=3)
    again = several.search(queries, 20, exclude=exclude)
    np.testing.assert_array_equal(again[0], items)
    np.testing.assert_array_equal(again[1], scores)


def test_the_same_vectors_make_the_same_index(index):
    again = FaissIndex(vectors(), index.spec, threads=3)
    np.testing.assert_array_equal(again.to_arrays()["faiss"], index.to_arrays()["faiss"])


def test_arrays_round_trip_to_the_same_bits(index):
    loaded = FaissIndex.from_arrays(index.to_arrays(), index.spec)
    queries = vectors(9, seed=4)
    for got, wanted in zip(loaded.search(queries, 30), index.search(queries, 30), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_vectors_added_later_are_found(index):
    before = index.search(vectors(4, seed=6), 20)
    grown = copy.copy(index)
    loud = 50 * np.eye(3, D, dtype=np.float32)  # beyond the sphere of lists: these are laid anew
    grown.add(loud)
    grown.add(0.1 * loud)
    assert grown.n_items == N + 6
    if not index._held.proposer.compressed:  # codes were not trained on anything so long
        items, _ = grown.search(loud, 1)
        np.testing.assert_array_equal(items[:, 0], [N, N + 1, N + 2])
    check(grown, vectors(4, seed=6), 20, None, None)
    check(grown, vectors(4, seed=6), 9, None, np.arange(N + 6) >= N)

    assert index.n_items == N
    for old, new in zip(before, index.search(vectors(4, seed=6), 20), strict=True):
        np.testing.assert_array_equal(old, new)


def test_retired_codes_are_never_answered_again(index):
    queries = vectors(12, seed=5)
    before, _ = index.search(queries, 20)
    index.retire(before[:, :5])
    index.retire(before[0, :5])  # twice is no harm
    check(index, queries, 20, None, None, before[:, :5].ravel())
    assert index.n_items == N
    index.retire(np.arange(N))
    check(index, queries, 20, None, None, range(N))
    index.add(vectors(3, seed=9))
    items, _ = index.search(queries, 3)
    assert (np.sort(items) == [N, N + 1, N + 2]).all()


def test_a_shallow_copy_retires_alone(index):
    other = copy.copy(index)
    other.retire([3, 4])
    assert {3, 4} <= set(index.search(vectors(1), N)[0][0])
    assert not {3, 4} & set(other.search(vectors(1), N)[0][0])


def test_many_tombstones_are_cleared_and_codes_stay():
    index = FaissIndex(vectors(), "HNSW32", threads=1)
    gone = np.random.default_rng(1).permutation(N)
    index.retire(gone[:150])
    assert index._held.proposer.size == N  # a quarter: not yet
    index.retire(gone[150:160])
    assert index._held.proposer.size == N - 160
    index.add(vectors(7, seed=3))
    check(index, vectors(9, seed=4), 30, None, None, gone[:160])
    late = index.search(vectors(7, seed=3), 1)[0]
    assert set(late[:, 0]) & set(range(N, N + 7))
    wanted, _ = ExactIndex(index.vectors).search(
        vectors(9, seed=4), 30, allow=~np.isin(np.arange(N + 7), gone[:160])
    )
    found, _ = index.search(vectors(9, seed=4), 30)
    assert np.isin(wanted, found).mean() > 0.95


def test_lists_that_too_few_are_left_for_keep_their_tombstones():
    index = FaissIndex(vectors(), "IVF16,Flat", threads=1)
    index.retire(np.arange(10, N))
    assert index._held.proposer.size == N
    check(index, vectors(3, seed=1), 8, None, None, range(10, N))


def test_tombstones_and_tuning_are_kept_on_disk(index):
    index.retire(np.arange(0, 200))
    index.add(vectors(5, seed=8))
    index.retire([300, N + 1])
    loaded = FaissIndex.from_arrays(index.to_arrays(), index.spec)
    queries = vectors(9, seed=4)
    for got, wanted in zip(loaded.search(queries, 30), index.search(queries, 30), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert loaded.measured_recall == index.measured_recall
    assert loaded.target_recall == index.target_recall
    for side in (index, loaded):
        side.retire(np.arange(200, 420))  # built anew
        side.add(vectors(2, seed=9))
    for got, wanted in zip(loaded.search(queries, 30), index.search(queries, 30), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_nothing_is_built_on_load(index, monkeypatch):
    arrays = index.to_arrays()
    assert all(array.dtype != object for array in arrays.values())
    monkeypatch.setattr(faiss_kinds.Proposer, "build", None)
    monkeypatch.setattr(faiss_index, "tuned", None)
    assert FaissIndex.from_arrays(arrays, index.spec).n_items == N


def test_what_the_first_version_wrote_is_read_and_tuned():
    plain = faiss.index_factory(D, "IVF16,Flat", faiss.METRIC_INNER_PRODUCT)
    plain.train(vectors())
    plain.add(vectors())
    arrays = {"vectors": vectors(), "faiss": faiss.serialize_index(plain)}
    index = FaissIndex.from_arrays(arrays, "IVF16,Flat")
    assert index.measured_recall >= index.target_recall == 0.95
    assert index.recall_at(100, vectors(50, seed=1)) > 0.9


def test_auto_searches_exactly_until_that_is_slower(monkeypatch):
    index = FaissIndex(vectors(), threads=1)
    assert (index.kind, index.measured_recall) == ("exact", 1.0)
    assert FaissIndex.from_arrays(index.to_arrays(), "auto").kind == "exact"
    monkeypatch.setattr(faiss_choice, "EXACT_ITEMS", 300)
    monkeypatch.setattr(faiss_index, "EXACT_ITEMS", 300)
    index.add(vectors(151, seed=2))
    assert index.kind == "IVF128,Flat"
    check(index, vectors(5, seed=3), 10, None, None)
    loaded = FaissIndex.from_arrays(index.to_arrays(), "auto")
    assert (loaded.spec, loaded.kind) == ("auto", "IVF128,Flat")
    monkeypatch.setattr(faiss_choice, "CODED_ITEMS", N)
    assert FaissIndex(vectors(800), threads=1).kind == f"IVF128,PQ{D}x4fsr"
    # Norms that fall fast let exact search stop early, however many items there are.
    steep = vectors(800) * np.exp(-np.arange(800) / 20)[:, None]
    assert FaissIndex(steep, threads=1).kind == "exact"
    index.retire(np.arange(460))  # built anew, by then from few
    assert index.kind == "exact"
    check(index, vectors(5, seed=3), 10, None, None, range(460))


def test_auto_is_asked_again_for_a_quarter_more_live_items(monkeypatch):
    index, asked = FaissIndex(vectors(400), threads=1), []
    monkeypatch.setattr(index, "_kind", lambda _, live, __: asked.append(live.sum()) or "exact")
    index.retire(np.arange(40))
    for n in (50, 50, 40):  # 500 live codes are a quarter more than 400, no more than that
        index.add(vectors(n, seed=2))
    assert not asked
    index.add(vectors(1, seed=3))
    assert asked == [501]
    index = FaissIndex.from_arrays(index.to_arrays(), "auto", threads=1)
    monkeypatch.setattr(index, "_kind", lambda _, live, __: asked.append(live.sum()) or "exact")
    index.add(vectors(125, seed=4))
    index.add(vectors(1, seed=5))
    assert asked == [501, 627]


def test_effort_is_what_no_norm_rules_out():
    items, queries = vectors(), vectors(7, seed=1)
    last = ExactIndex(items).search(queries, 100)[1][:, -1]
    reach = np.linalg.norm(items, axis=1) * np.linalg.norm(queries, axis=1)[:, None]
    wanted = (reach >= last[:, None] * (1 - 1e-6)).sum(axis=1).mean()
    assert faiss_choice.effort(items, queries, last) == pytest.approx(wanted)


def test_a_search_reads_one_state():
    """What a reader took up before a change answers as before: nothing of it is written to."""
    index = FaissIndex(vectors(), "HNSW32", threads=1)
    held, queries = index._held, vectors(5, seed=1)
    before = held.search(queries, 10, None, None)
    index.add(vectors(20, seed=2))
    index.retire(np.arange(300))
    for old, new in zip(before, held.search(queries, 10, None, None), strict=True):
        np.testing.assert_array_equal(old, new)


def test_where_faiss_finds_too_few_the_exact_answer_is_given():
    index = FaissIndex(vectors(), "IVF16,Flat", target_recall=0.01)
    assert index._held.settings.breadth == 1  # some 40 of 600 are looked at
    queries = vectors(8, seed=7)
    items, _ = check(index, queries, 200, None, None)
    wanted, _ = ExactIndex(vectors()).search(queries, 200)
    np.testing.assert_array_equal(items, wanted)


@pytest.mark.skipif(faiss_kinds.has_gpu(), reason="FAISS sees a GPU")
def test_a_gpu_that_is_not_there_is_an_error():
    for spec in ("Flat", "auto"):
        with pytest.raises(InputError, match="device is 'cuda', and FAISS sees no GPU"):
            FaissIndex(vectors(), spec, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not faiss_kinds.has_gpu(), reason="FAISS sees no GPU")
@pytest.mark.parametrize("spec", ["Flat", "IVF16,Flat", "auto"])
def test_a_gpu_gives_the_same_promises(spec):
    index = FaissIndex(vectors(), spec, device="cuda")
    exclude = Ragged.from_rows([range(20 * row) for row in range(5)])
    check(index, vectors(5, seed=1), 10, exclude, None)
    index.retire(np.arange(50))
    check(index, vectors(5, seed=1), 10, exclude, None, range(50))
    assert index.recall_at(100, vectors(50, seed=1)) > 0.9
    loaded = FaissIndex.from_arrays(index.to_arrays(), spec, device="cpu")
    check(loaded, vectors(5, seed=1), 10, exclude, None, range(50))
    with pytest.raises(InputError, match="cannot hold 'HNSW32'"):
        FaissIndex(vectors(), "HNSW32", device="cuda")


class OnGpu:
    """Stands in for the copy on a GPU: FAISS does not see lists in it, and nothing filters."""

    def __init__(self, index):
        self.index, self.breadths, self.depths = index, [], []

    def search(self, queries, fetch, params=None):
        assert faiss_kinds._GPU_TURN.locked()
        assert params.sel is None
        self.breadths.append(params.nprobe)
        self.depths.append(fetch)
        return self.index.search(queries, fetch, params=params)


def test_lists_on_a_gpu_are_searched_in_turn_and_within_its_limits(monkeypatch):
    monkeypatch.setattr(faiss_kinds, "_MOST_GPU", 64)
    index = FaissIndex(vectors(5000), "IVF128,Flat", target_recall=1.0, threads=1)
    held = index._held
    assert held.settings.breadth > 64
    searched = OnGpu(held.proposer.index)
    index._held = replace(held, proposer=replace(held.proposer, searched=searched))
    queries = vectors(5, seed=1)
    check(index, queries, 10, None, np.arange(5000) % 50 > 0)
    check(index, queries, 10, Ragged.from_rows([range(20 * row) for row in range(5)]), None)
    check(index, queries, 10, None, None)
    assert set(searched.breadths) == {64}
    assert max(searched.depths) == 64
    assert not faiss_kinds._GPU_TURN.locked()


def test_ties_are_broken_by_code():
    index = FaissIndex(np.ones((200, 2), np.float32), "Flat")
    items, _ = index.search(np.ones((1, 2), np.float32), 5)
    assert (np.diff(items[0]) > 0).all()


def test_products_beyond_float32_are_the_largest_of_their_sign():
    items = np.zeros((200, 2), np.float32)
    items[7], items[8] = [3e38, 0], [-3e38, 0]
    index = FaissIndex(items, "Flat")
    found, scores = index.search(np.array([[1e5, 0]], np.float32), 5)
    assert found[0, 0] == 7
    assert scores[0, 0] == np.finfo(np.float32).max
    assert np.isfinite(scores).all()


def test_the_callers_openmp_setting_is_put_back():
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(3)
        FaissIndex(vectors(), "HNSW32", threads=1).search(vectors(2), 5)
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_tiny_catalogues(n):
    index = FaissIndex(vectors(n), "HNSW32")
    check(index, vectors(2), 8, Ragged.from_rows([[], [0] if n else []]), None)
    assert index.recall_at(3, vectors(2)) == 1.0


def test_no_queries():
    items, scores = FaissIndex(vectors()).search(np.empty((0, D), np.float32), 4)
    assert items.shape == scores.shape == (0, 4)


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="spec is 'HNWS32'"):
        FaissIndex(vectors(), "HNWS32")
    with pytest.raises(InputTypeError, match="spec is 32"):
        FaissIndex(vectors(), 32)
    with pytest.raises(FitError, match=r"cannot train 'IVF64,Flat' on 10 vectors.*'HNSW32'"):
        FaissIndex(vectors(10), "IVF64,Flat")
    with pytest.raises(InputError, match="NaN"):
        FaissIndex(np.full((3, D), np.nan))
    for target in (0.0, 1.5, np.nan):
        with pytest.raises(InputError, match="target_recall is"):
            FaissIndex(vectors(), target_recall=target)
    with pytest.raises(InputError, match="device is 'gpu'"):
        FaissIndex(vectors(), device="gpu")
    with pytest.raises(InputError, match="queries has no row"):
        FaissIndex(vectors(), queries=np.zeros((3, D)))
    with pytest.raises(InputError, match="queries has 17 columns"):
        FaissIndex(vectors(), queries=np.ones((3, D + 1)))
    index = FaissIndex(vectors(), "HNSW32")
    with pytest.raises(InputError, match=r"codes\[1\] is 600"):
        index.retire([0, N])
    with pytest.raises(InputError, match=r"codes\[0\] is -1"):
        index.retire([-1])
    with pytest.raises(InputTypeError, match="codes has dtype bool"):
        index.retire(np.ones(N, bool))
    assert 0 in index.search(vectors(1), N)[0]  # what was refused changed nothing
    with pytest.raises(InputError, match="columns"):
        index.search(np.ones((1, D + 1)), 3)
    with pytest.raises(InputError, match="columns"):
        index.add(np.ones((1, D + 1)))
    with pytest.raises(InputError, match="k is 0"):
        index.search(vectors(1), 0)
    with pytest.raises(InputError, match="exclude has 2 rows"):
        index.search(vectors(1), 3, exclude=Ragged.empty(2))
    with pytest.raises(InputTypeError, match="allow"):
        index.search(vectors(1), 3, allow=np.ones(3, bool))


def test_damaged_arrays_are_refused():
    arrays = FaissIndex(vectors(), "HNSW32").to_arrays()
    with pytest.raises(StorageError, match="cannot be read"):
        FaissIndex.from_arrays({**arrays, "faiss": arrays["faiss"][:500]}, "HNSW32")
    with pytest.raises(StorageError, match="belongs to other vectors"):
        FaissIndex.from_arrays({**arrays, "vectors": vectors(seed=1)}, "HNSW32")
    with pytest.raises(StorageError, match="holds 600 vectors"):
        FaissIndex.from_arrays({"vectors": vectors(10), "faiss": arrays["faiss"]}, "HNSW32")


def test_without_faiss_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    for spec, device in (("HNSW32", "cpu"), ("auto", "cuda")):
        with pytest.raises(MissingExtraError, match=r"hybridrec\[faiss\]"):
            FaissIndex(vectors(), spec, device=device)
    assert make_index(vectors()).n_items == N
    index = FaissIndex(vectors())  # "auto": few items are searched exactly
    index.add(vectors(300, seed=1))
    index.retire([3])
    loaded = FaissIndex.from_arrays(index.to_arrays(), "auto")
    check(loaded, vectors(4, seed=2), 10, None, None, [3])
    monkeypatch.setattr(faiss_index, "EXACT_ITEMS", N - 1)
    with pytest.raises(MissingExtraError, match=r"hybridrec\[faiss\]"):
        FaissIndex(vectors())


def test_make_index_reads_the_spec():
    assert isinstance(make_index(vectors(), "exact"), ExactIndex)
    index = make_index(vectors(), "HNSW16")
    assert isinstance(index, FaissIndex)
    assert (index.spec, index.kind) == ("HNSW16", "HNSW16")
    assert make_index(vectors(), "auto").kind == "exact"
