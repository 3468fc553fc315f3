"""One suite of promises that every vector index keeps, and what ExactIndex adds to them."""

import copy
import importlib.util

import numpy as np
import pytest
import reference
from scipy.sparse import csc_array, csr_array

from hybridrec import ExactIndex, FaissIndex, InputError, InputTypeError, Ragged, top_k
from hybridrec.protocols import VectorIndex
from hybridrec.recall.exact_index import select_top_k

ITEMS, WIDTH, QUERIES = 70, 6, 9
needs_faiss = pytest.mark.skipif(
    importlib.util.find_spec("faiss") is None, reason="faiss is not installed"
)
EVERY = {
    "exact": ExactIndex,
    "faiss flat": lambda vectors: FaissIndex(vectors, "Flat"),
    "faiss hnsw": lambda vectors: FaissIndex(vectors, "HNSW32"),
    "faiss auto": FaissIndex,
}


@pytest.fixture(
    params=[
        pytest.param(make, id=name, marks=needs_faiss if "faiss" in name else ())
        for name, make in EVERY.items()
    ]
)
def make(request):
    return request.param


def integers(rows, seed):
    """Inner products of these are exact, and equal ones common."""
    return np.random.default_rng(seed).integers(-3, 4, (rows, WIDTH)).astype(np.float32)


def exclusions(seed=0, most=40):
    rng = np.random.default_rng(seed)
    return Ragged.from_rows([rng.integers(0, ITEMS, rng.integers(0, most)) for _ in range(QUERIES)])


def lists(exclude):
    return np.split(exclude.items, exclude.indptr[1:-1])


@pytest.fixture
def vectors():
    return integers(ITEMS, 1)


@pytest.fixture
def queries():
    return integers(QUERIES, 2)


@pytest.mark.parametrize("k", [1, 10, ITEMS, ITEMS + 30])
@pytest.mark.parametrize("filtered", [False, True])
def test_ranked_padded_unseen_and_truly_scored(make, vectors, queries, k, filtered):
    exclude = exclusions() if filtered else None
    allow = np.random.default_rng(3).random(ITEMS) < 0.5 if filtered else None
    ids, scores = make(vectors).search(queries, k, exclude=exclude, allow=allow)
    assert ids.shape == scores.shape == (QUERIES, k)
    assert (ids.dtype, scores.dtype) == (np.int32, np.float32)
    for b, (row, said) in enumerate(zip(ids, scores, strict=True)):
        n = (row >= 0).sum()
        assert (row[n:] == -1).all()
        assert (said[n:] == -np.inf).all()
        real = row[:n].tolist()
        left = ITEMS if allow is None else allow.sum()
        if filtered:
            seen = set(lists(exclude)[b].tolist())
            assert not seen & set(real)
            assert allow[real].all()
            left = sum(allow[i] and i not in seen for i in range(ITEMS))
        assert len(set(real)) == n == min(k, left)
        np.testing.assert_array_equal(said[:n], vectors[real] @ queries[b])
        assert real == [i for _, i in sorted(zip(-said[:n], real, strict=True))]


def test_a_search_changes_nothing_and_repeats_itself(make, vectors, queries):
    index = make(vectors.copy())
    exclude = exclusions()
    first = index.search(queries, 10, exclude=exclude)
    before = queries.copy(), index.vectors.copy()
    index.search(queries[:2], 3)
    index.search(queries, 10, allow=np.zeros(ITEMS, bool))
    again = index.search(queries, 10, exclude=exclude)
    for old, new in zip(first, again, strict=True):
        assert old.tobytes() == new.tobytes()
    np.testing.assert_array_equal(before[0], queries)
    np.testing.assert_array_equal(before[1], index.vectors)


def test_read_only_arrays_will_do(make, vectors, queries):
    vectors.flags.writeable = queries.flags.writeable = False
    assert make(vectors).search(queries, 3)[0].shape == (QUERIES, 3)


def test_what_becomes_of_the_callers_array_is_its_own_affair(make, vectors, queries):
    mine, more = vectors.copy(), integers(3, 5)
    grown = np.concatenate([vectors, more])
    index = make(mine)
    mine *= 2
    for held in (vectors, grown):
        np.testing.assert_array_equal(index.vectors, held)
        wanted = top_k(queries, held, len(held))
        for got, want in zip(index.search(queries, len(held)), wanted, strict=True):
            np.testing.assert_array_equal(got, want)
        if held is vectors:
            index.add(more)
            more *= 2


@needs_faiss
@pytest.mark.parametrize("spec", ["auto", "Flat"])
def test_the_vectors_of_a_faiss_index_are_read_only(spec, vectors, queries):
    index = FaissIndex(vectors, spec)
    arrays = {name: array.copy() for name, array in index.to_arrays().items()}
    loaded = FaissIndex.from_arrays(arrays, spec)
    arrays["vectors"] *= 2
    np.testing.assert_array_equal(loaded.vectors, vectors)
    index.add(vectors[:2])
    for one in (index, loaded):
        with pytest.raises(ValueError, match="read-only"):
            one.vectors[0] = 0


def test_nothing_allowed_is_nothing_answered(make, vectors, queries):
    ids, scores = make(vectors).search(queries, 4, allow=np.zeros(ITEMS, bool))
    assert (ids == -1).all()
    assert (scores == -np.inf).all()


def test_everything_seen_is_nothing_answered(make, vectors, queries):
    seen = Ragged.from_rows([range(ITEMS)] * QUERIES)
    assert (make(vectors).search(queries, 4, exclude=seen)[0] == -1).all()


def test_no_query_is_an_empty_answer(make, vectors):
    ids, scores = make(vectors).search(np.empty((0, WIDTH), np.float32), 4)
    assert ids.shape == scores.shape == (0, 4)


def test_added_items_are_found_behind_the_last_code(make, vectors, queries):
    index = make(vectors)
    more = 10 * np.ones((3, WIDTH), np.float32)
    index.add(more)
    assert index.n_items == ITEMS + 3
    np.testing.assert_array_equal(index.vectors, np.concatenate([vectors, more]))
    ids, _ = index.search(np.ones((1, WIDTH), np.float32), 3)
    assert ids.tolist() == [[ITEMS, ITEMS + 1, ITEMS + 2]]
    ids, _ = index.search(queries, ITEMS + 3)
    assert (np.sort(ids, axis=1) == np.arange(ITEMS + 3)).all()


def test_retired_items_are_never_answered_again(make, vectors, queries):
    index = make(vectors)
    before = copy.copy(index)
    index.retire(np.array([3, 5, 5, 69]))
    index.retire(np.array([3]))
    assert index.n_items == ITEMS
    ids, _ = index.search(queries, ITEMS, exclude=exclusions())
    assert not np.isin(ids, [3, 5, 69]).any()
    ids, _ = index.search(queries, ITEMS)
    assert (np.sort(ids)[:, 3:] == np.delete(np.arange(ITEMS), [3, 5, 69])).all()
    only = np.zeros(ITEMS, bool)
    only[[3, 4]] = True
    assert set(index.search(queries, 2, allow=only)[0].ravel()) == {4, -1}
    assert (np.sort(before.search(queries, ITEMS)[0]) == np.arange(ITEMS)).all()
    index.add(10 * np.ones((1, WIDTH), np.float32))
    ids, _ = index.search(np.ones((1, WIDTH), np.float32), ITEMS)
    assert ids[0, 0] == ITEMS
    assert not np.isin(ids, [3, 5, 69]).any()


@pytest.mark.parametrize("wrong", [[ITEMS], [-1]])
def test_retiring_a_code_never_given_is_refused(make, vectors, wrong):
    with pytest.raises(InputError, match="wanted a code from 0 to 69"):
        make(vectors).retire(np.array(wrong))


def test_a_catalogue_of_one(make):
    index = make(np.ones((1, WIDTH), np.float32))
    ids, scores = index.search(np.ones((2, WIDTH), np.float32), 3)
    assert ids.tolist() == [[0, -1, -1]] * 2
    assert scores[0].tolist() == [WIDTH, -np.inf, -np.inf]


def test_it_is_a_vector_index(make, vectors):
    assert isinstance(make(vectors), VectorIndex)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"k": 0}, InputError, r"k is 0"),
        ({"k": 2.5}, InputTypeError, r"k is 2\.5"),
        ({"queries": np.ones((2, WIDTH + 1))}, InputError, r"queries has 7 columns; wanted 6"),
        ({"queries": np.ones(WIDTH)}, InputError, r"queries has shape"),
        ({"queries": np.full((QUERIES, WIDTH), np.nan)}, InputError, r"queries\[0\] has a NaN"),
        ({"exclude": Ragged.from_rows([[0]])}, InputError, r"exclude has 1 rows; wanted 9"),
        ({"exclude": Ragged.from_rows([[ITEMS]] * QUERIES)}, InputError, r"is 70; wanted a code"),
        ({"allow": np.ones(3, bool)}, InputTypeError, r"allow has dtype bool and shape \(3,\)"),
        ({"allow": np.ones(ITEMS)}, InputTypeError, r"allow has dtype float64"),
    ],
)
def test_what_is_wrong_is_named(make, vectors, queries, change, error, words):
    given = {"queries": queries, "k": 3, **change}
    with pytest.raises(error, match=words):
        make(vectors).search(given.pop("queries"), given.pop("k"), **given)


def test_top_k_and_exact_index_are_exact(vectors, queries):
    exclude, allow = exclusions(), np.random.default_rng(4).random(ITEMS) < 0.7
    expected = reference.top_k(queries @ vectors.T, 12, lists(exclude), allow)
    index = ExactIndex(vectors, threads=1)
    for got in (
        top_k(queries, vectors, 12, exclude=exclude, allow=allow),
        index.search(queries, 12, exclude=exclude, allow=allow),
        select_top_k(queries @ vectors.T, 12, exclude=exclude, allow=allow),
    ):
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_array_equal(got[1], expected[1])


def test_a_csr_matrix_excludes_what_it_stores(vectors, queries):
    exclude = exclusions()
    # Explicit zeros: only the structure counts.
    matrix = csr_array(
        (np.zeros(len(exclude.items)), exclude.items, exclude.indptr), shape=(QUERIES, ITEMS)
    )
    got = top_k(queries, vectors, 12, exclude=matrix)
    expected = top_k(queries, vectors, 12, exclude=exclude)
    np.testing.assert_array_equal(got[0], expected[0])
    for wrong in (csc_array(matrix), matrix.toarray()):
        with pytest.raises(InputTypeError, match=r"wanted a hybridrec\.Ragged or a SciPy CSR"):
            top_k(queries, vectors, 12, exclude=wrong)


def test_any_number_of_threads_any_layout_the_same_answer(vectors, queries):
    expected = top_k(queries, vectors, 5, threads=1)
    for threads in (2, 3, 8):
        got = top_k(np.asfortranarray(queries), vectors.astype(np.float64), 5, threads=threads)
        assert got[0].tobytes() == expected[0].tobytes()
        assert got[1].tobytes() == expected[1].tobytes()


def test_select_top_k_names_what_cannot_be_ranked():
    with pytest.raises(InputError, match=r"scores\[0, 1\] is NaN or infinite"):
        select_top_k(np.array([[0.0, np.nan]]), 1)
    with pytest.raises(InputError, match=r"scores has shape \(3,\)"):
        select_top_k(np.zeros(3), 1)
    ids, scores = select_top_k(np.array([[1.0, -np.inf, 2.0]]), 3)
    assert ids.tolist() == [[2, 0, -1]]
    assert scores.tolist() == [[2.0, 1.0, -np.inf]]


def test_an_empty_catalogue_answers_with_padding():
    ids, scores = ExactIndex(np.empty((0, WIDTH))).search(np.ones((2, WIDTH)), 2)
    assert ids.tolist() == [[-1, -1]] * 2
    assert (scores == -np.inf).all()
    assert select_top_k(np.empty((1, 0)), 2)[0].tolist() == [[-1, -1]]


def test_an_exact_index_is_copied_and_restored(vectors, queries):
    index = ExactIndex(vectors)
    index.retire([3])
    wanted = index.search(queries, 10)
    twin, restored = copy.copy(index), copy.deepcopy(index)
    twin.add(vectors[:2])
    assert (index.n_items, twin.n_items) == (ITEMS, ITEMS + 2)
    for again in (index.search(queries, 10), restored.search(queries, 10)):
        np.testing.assert_array_equal(again[0], wanted[0])
        np.testing.assert_array_equal(again[1], wanted[1])
