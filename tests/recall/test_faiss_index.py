"""FaissIndex against the exact answer, whatever the spec."""

import sys

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
from hybridrec.recall.faiss_index import make_index

faiss = pytest.importorskip("faiss")

SPECS = ["Flat", "HNSW32", "IVF4,Flat", "SQ4", "PCA8,HNSW16"]
N, D = 600, 16


def vectors(n=N, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, D)) * rng.lognormal(0, 0.3, (n, 1))).astype(np.float32)


@pytest.fixture(scope="module", params=SPECS)
def index(request):
    return FaissIndex(vectors(), request.param, threads=1)


def check(index, queries, k, exclude, allow):
    """Every promise of a search that does not depend on what the index missed."""
    items, scores = index.search(queries, k, exclude=exclude, allow=allow)
    assert items.shape == scores.shape == (len(queries), k)
    assert items.dtype == np.int32
    assert scores.dtype == np.float32
    for row, (found, score) in enumerate(zip(items, scores, strict=True)):
        barred = set() if exclude is None else set(exclude.select(np.array([row])).items)
        allowed = set(range(index.n_items)) if allow is None else set(np.flatnonzero(allow))
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


@settings(max_examples=15, deadline=None)
@given(
    k=st.sampled_from([1, 10, 40, N - 1, N + 5]),
    barred=st.lists(st.integers(0, 250), min_size=3, max_size=3),
    share=st.sampled_from([None, 0.0, 0.01, 0.5, 0.97, 1.0]),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("spec", SPECS)
def test_k_items_come_back_whenever_k_are_allowed(spec, k, barred, share, seed, built):
    rng = np.random.default_rng(seed)
    exclude = Ragged.from_rows([rng.integers(0, N, n) for n in barred])
    allow = None if share is None else rng.random(N) < share
    check(built[spec], rng.standard_normal((3, D)).astype(np.float32), k, exclude, allow)


@pytest.fixture(scope="module")
def built():
    return {spec: FaissIndex(vectors(), spec, threads=1) for spec in SPECS}


def test_it_is_a_vector_index(index):
    assert isinstance(index, VectorIndex)
    assert index.n_items == N


def test_most_of_the_exact_answer_is_found(index):
    least = {"Flat": 1.0, "HNSW32": 0.97, "SQ4": 0.9, "IVF4,Flat": 0.9}.get(index.spec, 0.3)
    assert index.recall_at(10, vectors(50, seed=1)) >= least


def test_recall_at_is_the_share_found():
    index = FaissIndex(vectors(), "IVF16,Flat")
    queries = vectors(40, seed=1)
    faiss.extract_index_ivf(index._index).nprobe = 1
    wanted, _ = ExactIndex(vectors()).search(queries, 10)
    found, _ = index.search(queries, 10)
    shares = [len(set(w) & set(f)) / 10 for w, f in zip(wanted, found, strict=True)]
    assert 0.1 < np.mean(shares) < 0.9
    assert index.recall_at(10, queries) == pytest.approx(np.mean(shares))


def test_an_answer_does_not_depend_on_its_neighbours_or_on_threads(index):
    rng = np.random.default_rng(3)
    queries = vectors(12, seed=2)
    exclude = Ragged.from_rows([rng.integers(0, N, n) for n in range(0, 240, 20)])
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
    again = FaissIndex(vectors(), index.spec, threads=2)
    np.testing.assert_array_equal(again.to_arrays()["faiss"], index.to_arrays()["faiss"])


def test_arrays_round_trip_to_the_same_bits(index):
    loaded = FaissIndex.from_arrays(index.to_arrays(), index.spec)
    queries = vectors(9, seed=4)
    for got, wanted in zip(loaded.search(queries, 30), index.search(queries, 30), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_vectors_added_later_are_found():
    index = FaissIndex(vectors(), "HNSW32")
    loud = 50 * np.eye(3, D, dtype=np.float32)
    index.add(loud)
    assert index.n_items == N + 3
    items, _ = index.search(loud, 1)
    np.testing.assert_array_equal(items[:, 0], [N, N + 1, N + 2])
    check(index, vectors(4, seed=6), 20, None, None)

    allow = np.arange(N + 3) >= N  # so few that they are searched exactly
    items, _ = index.search(loud, 3, allow=allow)
    assert (np.sort(items) == [N, N + 1, N + 2]).all()


def test_where_faiss_finds_too_few_the_exact_answer_is_given():
    index = FaissIndex(vectors(), "IVF16,Flat")
    faiss.extract_index_ivf(index._index).nprobe = 1  # some 40 of 600 are looked at
    queries = vectors(8, seed=7)
    items, _ = check(index, queries, 200, None, None)
    wanted, _ = ExactIndex(vectors()).search(queries, 200)
    np.testing.assert_array_equal(items, wanted)


def test_ties_are_broken_by_code():
    index = FaissIndex(np.ones((200, 2), np.float32), "Flat")
    items, _ = index.search(np.ones((1, 2), np.float32), 5)
    assert (np.diff(items[0]) > 0).all()


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
    index = FaissIndex(vectors())
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
    arrays = FaissIndex(vectors()).to_arrays()
    with pytest.raises(StorageError, match="cannot be read"):
        FaissIndex.from_arrays({**arrays, "faiss": arrays["faiss"][:500]}, "HNSW32")
    with pytest.raises(StorageError, match="holds 600 vectors"):
        FaissIndex.from_arrays({**arrays, "vectors": vectors(10)}, "HNSW32")


def test_without_faiss_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"hybridrec\[faiss\]"):
        FaissIndex(vectors())
    assert make_index(vectors()).n_items == N


def test_make_index_reads_the_spec():
    assert isinstance(make_index(vectors(), "exact"), ExactIndex)
    index = make_index(vectors(), "HNSW16")
    assert isinstance(index, FaissIndex)
    assert index.spec == "HNSW16"
