"""The compiled core against tests/reference.py, in every build that this CPU can run."""

import importlib
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

import hybridrec._core as core
from hybridrec.ragged import Ragged

BUILDS = {name: importlib.import_module(f"hybridrec._core._{name}") for name in core.cpu_builds()}
THREADS = (1, 2, 3, 8)
every_build = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())
seeds = st.integers(0, 2**32 - 1)


def small_integers(rng, *shape):
    """Sums of products of these are exact in float32, so == is legal and ties are common."""
    return rng.integers(-3, 4, shape).astype(np.float32)


def ragged(rng, rows, n_items, most, weighted=True):
    lengths = rng.integers(0, most + 1, rows) if n_items else np.zeros(rows, np.int64)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    items = rng.integers(0, max(1, n_items), indptr[-1]).astype(np.int32)
    weights = rng.uniform(0.1, 3.0, indptr[-1]).astype(np.float32) if weighted else None
    return Ragged(indptr, items, weights)


def problem(rng, rows, others, factors, most=20, weighted=True):
    """A well-posed half-sweep: the positional arguments of both solvers."""
    other = rng.standard_normal((others, factors)).astype(np.float32)
    shared = rng.uniform(0.0, 0.6 * others, factors).astype(np.float32)
    ridge = rng.uniform(0.5, 2.0, rows).astype(np.float32)
    return ragged(rng, rows, others, most, weighted), other, shared, ridge


def arguments(history, *rest):
    return (history.indptr, history.items, history.weights, *rest)


def solve_exact(build, history, *system, **settings):
    out = np.full((len(history), system[0].shape[1]), np.nan, np.float32)
    build.solve_exact(*arguments(history, *system), out=out, **settings)
    return out


def solve_cg(build, history, *system, start, **settings):
    x = start.copy()
    build.solve_cg(*arguments(history, *system), x=x, **{"relaxation": 1.0, **settings})
    return x


def top_k(build, queries, items, k, *filters, threads):
    catalogue = build.Catalogue(items, threads=threads)
    return build.top_k(queries, catalogue, k, *(filters or (None,) * 3), threads=threads)


@every_build
@given(
    seed=seeds,
    rows=st.integers(0, 40),
    n_items=st.integers(1, 100),
    factors=st.integers(0, 20),
    k=st.integers(1, 100),
    excluded=st.booleans(),
    allowed=st.sampled_from([None, 0.0, 0.2, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_top_k_is_the_sorted_scores(build, seed, rows, n_items, factors, k, excluded, allowed):
    rng = np.random.default_rng(seed)
    queries, items = small_integers(rng, rows, factors), small_integers(rng, n_items, factors)
    exclude = ragged(rng, rows, n_items, 2 * n_items, weighted=False) if excluded else None
    allow = None if allowed is None else rng.random(n_items) < allowed
    filters = (exclude.indptr, exclude.items, allow) if excluded else (None, None, allow)
    k = min(k, n_items)
    lists = None if exclude is None else np.split(exclude.items, exclude.indptr[1:-1])
    scores = queries @ items.T
    expected = reference.top_k(scores, k, lists, allow)
    got = top_k(build, queries, items, k, *filters, threads=2)
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])
    scores[rng.random(scores.shape) < 0.2] = -np.inf
    expected = reference.top_k(scores, k, lists, allow)
    got = build.select_top_k(scores, k, *filters, threads=2)
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])


@every_build
def test_a_score_does_not_depend_on_the_company_it_keeps(build):
    rng = np.random.default_rng(1)
    queries = rng.standard_normal((37, 33)).astype(np.float32)
    items = rng.standard_normal((130, 33)).astype(np.float32)
    ids, scores = top_k(build, queries, items, 130, threads=1)
    for b in range(len(queries)):
        alone = top_k(build, queries[b : b + 1].copy(), items, 130, threads=1)
        np.testing.assert_array_equal(alone[0][0], ids[b])
        assert alone[1].tobytes() == scores[b].tobytes()


@every_build
def test_products_beyond_float32_are_clipped_and_ordered(build):
    big = np.float32(3e38)
    queries = np.array([[big, big]], np.float32)
    items = np.array([[0, 0], [big, big], [-big, -big], [1, 0]], np.float32)
    most = np.finfo(np.float32).max
    ids, scores = top_k(build, queries, items, 4, threads=1)
    assert ids.tolist() == [[1, 3, 0, 2]]
    assert scores.tolist() == [[most, big, 0.0, -most]]
    # Overflow both ways within one sum: which end it counts as is the build's choice, NaN is not.
    both = np.array([[big, -big]], np.float32)
    ids, scores = top_k(build, queries, both, 1, threads=1)
    assert (ids[0, 0], abs(scores[0, 0])) == (0, most)


@every_build
def test_a_product_that_leaves_float32_on_its_way_is_not_lost(build):
    """Its true value is 0, but what is computed is infinity less infinity: the largest float32."""
    items = np.zeros((3000, 128), np.float32)
    items[:, 0] = 1e18
    items[7, [0, 2, 3]] = 0, 9e14, -9e14
    queries = np.zeros((1, 128), np.float32)
    queries[0, [0, 2, 3]] = 1e20, 1e24, 1e24
    ids, scores = top_k(build, queries, items, 5, threads=1)
    assert (ids[0, 0], scores[0, 0]) == (7, np.finfo(np.float32).max)


@every_build
def test_items_too_wide_for_the_8_bit_pass_are_refused(build):
    with pytest.raises(ValueError, match="70000 wide; wanted at most 65536"):
        build.Catalogue(np.zeros((1, 70_000), np.float32), threads=1)
    items = np.tile(np.array([1.01, -1.01], np.float32), (300, 32_768))
    items[256] = 1.0
    ids, scores = top_k(build, np.ones((1, 65_536), np.float32), items, 1, threads=1)
    assert (ids[0, 0], scores[0, 0]) == (256, 65_536)


@every_build
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_cannot_be_ranked_is_refused_unless_left_out(build, bad):
    scores = np.zeros((3, 70), np.float32)
    scores[1, 64] = bad
    with pytest.raises(ValueError, match=r"scores\[1, 64\]"):
        build.select_top_k(scores, 2, None, None, None, threads=2)
    allow = np.ones(70, bool)
    allow[64] = False
    build.select_top_k(scores, 2, None, None, allow, threads=2)


@every_build
@given(seed=seeds, rows=st.integers(0, 300), factors=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_gram_is_the_product(build, seed, rows, factors):
    matrix = small_integers(np.random.default_rng(seed), rows, factors)
    np.testing.assert_array_equal(build.gram(matrix, threads=2), matrix.T @ matrix)


@every_build
@given(
    seed=seeds,
    rows=st.integers(0, 20),
    factors=st.integers(1, 70),
    most=st.sampled_from([3, 30, 200]),
    weighted=st.booleans(),
    target=st.sampled_from([1.0, 1.25]),
)
@settings(max_examples=40, deadline=None)
def test_the_exact_solver_solves_the_normal_equations(
    build, seed, rows, factors, most, weighted, target
):
    rng = np.random.default_rng(seed)
    history, *system = problem(rng, rows, 50, factors, most, weighted)
    got = solve_exact(build, history, *system, alpha=1.5, target=target, threads=2)
    expected = reference.half_sweep(history, *system, 1.5, target)
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-4)
    assert not got[history.lengths == 0].any()


@every_build
@given(
    seed=seeds,
    factors=st.integers(1, 40),
    steps=st.integers(1, 4),
    warm=st.booleans(),
    relaxation=st.sampled_from([0.5, 1.0, 1.5]),
)
@settings(max_examples=60, deadline=None)
def test_cg_takes_the_textbook_steps(build, seed, factors, steps, warm, relaxation):
    """And goes on from there, but where a row starts from nothing."""
    rng = np.random.default_rng(seed)
    history, *system = problem(rng, 12, 30, factors)
    start = (rng.standard_normal((12, factors)) * warm).astype(np.float32)
    start[::3] = 0.0
    common = {"alpha": 1.5, "target": 1.25, "start": start, "threads": 2}
    got = solve_cg(build, history, *system, steps=steps, relaxation=relaxation, **common)
    expected = reference.conjugate_gradient(history, *system, 1.5, 1.25, start, steps)
    moved = start.any(axis=1) & (history.lengths > 0)
    expected += (relaxation - 1) * (expected - start) * moved[:, None]
    np.testing.assert_allclose(got, expected, rtol=5e-3, atol=2e-3)
    assert not got[history.lengths == 0].any()


@every_build
def test_cg_arrives_at_the_exact_solution(build):
    history, *system = problem(np.random.default_rng(2), 40, 60, 24)
    common = {"alpha": 2.0, "target": 1.0, "threads": 2}
    exact = solve_exact(build, history, *system, **common)
    steps = solve_cg(build, history, *system, start=np.zeros_like(exact), steps=200, **common)
    np.testing.assert_allclose(steps, exact, rtol=1e-3, atol=1e-4)


@every_build
@pytest.mark.parametrize(("factors", "long"), [(64, 5000), (1100, 300)])
def test_a_row_too_long_to_be_kept_is_solved_as_any_other(build, factors, long):
    """Its events are gathered anew at every pass: more floats than a thread keeps."""
    rng = np.random.default_rng(8)
    _, other, shared, ridge = problem(rng, 2, 700, factors)
    items = rng.integers(0, 700, long + 3).astype(np.int32)
    weights = rng.uniform(0.1, 3.0, long + 3).astype(np.float32)
    history = Ragged(np.array([0, long, long + 3]), items, weights)
    start = rng.standard_normal((2, factors)).astype(np.float32)
    common = {"alpha": 0.5, "target": 1.0}
    got = solve_cg(build, history, other, shared, ridge, start=start, steps=2, threads=1, **common)
    wanted = reference.conjugate_gradient(history, other, shared, ridge, 0.5, 1.0, start, 2)
    assert np.linalg.norm(got - wanted) <= 1e-3 * np.linalg.norm(wanted)


@every_build
@pytest.mark.parametrize("factors", [40, 64])
def test_long_sorted_rows_are_solved_side_by_side_as_any_other(build, factors):
    """Three groups of rows share their passes; the order of events matters to rounding alone."""
    rng = np.random.default_rng(10)
    lengths = [3400, 10, 3600, 0, 4200, 3300, 3500]
    _, other, shared, ridge = problem(rng, 7, 1500, factors)
    rows = [np.sort(rng.integers(0, 1500, n)).astype(np.int32) for n in lengths]
    sorted_ = Ragged.from_rows(rows)
    shuffled = Ragged.from_rows([rng.permutation(row) for row in rows])
    start = rng.standard_normal((7, factors)).astype(np.float32)
    common = {"start": start, "alpha": 0.5, "target": 1.0, "steps": 2}
    got = solve_cg(build, sorted_, other, shared, ridge, threads=1, **common)
    alone = solve_cg(build, shuffled, other, shared, ridge, threads=1, **common)
    wanted = reference.conjugate_gradient(sorted_, other, shared, ridge, 0.5, 1.0, start, 2)
    assert np.linalg.norm(got - wanted) <= 1e-3 * np.linalg.norm(wanted)
    assert np.linalg.norm(alone - wanted) <= 1e-3 * np.linalg.norm(wanted)
    for threads in THREADS[1:]:
        again = solve_cg(build, sorted_, other, shared, ridge, threads=threads, **common)
        assert again.tobytes() == got.tobytes()


@every_build
def test_a_row_beyond_float32_is_named_and_leaves_no_trace(build):
    history = Ragged([0, 1, 2, 3], [0, 1, 2], np.array([3e38, 1.0, 1.0], np.float32))
    other = np.eye(3, dtype=np.float32)
    system = other, np.ones(3, np.float32), np.ones(3, np.float32)
    start = np.zeros((3, 3), np.float32)
    common = {"start": start, "alpha": 10.0, "target": 1.0, "steps": 2, "threads": 1}
    with pytest.raises(OverflowError, match="row 0 are beyond float32"):
        solve_cg(build, history, *system, **common)
    tame = Ragged(history.indptr, history.items, np.array([1e8, 1.0, 1.0], np.float32))
    alone = Ragged([0, 0, 1, 2], [1, 2])
    got = solve_cg(build, tame, *system, **common)
    wanted = solve_cg(build, alone, *system, **common)
    assert got[1:].tobytes() == wanted[1:].tobytes()


@every_build
def test_an_axis_that_nothing_holds_moves_by_its_events(build):
    """No Gramian and no regularisation there: the equations have a solution all the same."""
    history = Ragged.from_rows([[0, 1, 2]])
    other = np.eye(3, dtype=np.float32)
    nothing = np.zeros(3, np.float32), np.zeros(1, np.float32)
    common = {"alpha": 1.0, "target": 1.0, "threads": 1}
    exact = solve_exact(build, history, other, *nothing, **common)
    np.testing.assert_allclose(exact, np.ones((1, 3)), rtol=1e-6)
    start = np.zeros((1, 3), np.float32)
    steps = solve_cg(build, history, other, *nothing, start=start, steps=3, **common)
    np.testing.assert_allclose(steps, exact, rtol=1e-6)


@every_build
def test_repeated_items_add_up_their_weights(build):
    _, *system = problem(np.random.default_rng(3), 1, 10, 8)
    twice = Ragged([0, 3], [4, 7, 4], np.array([1.0, 2.0, 0.5], np.float32))
    once = Ragged([0, 2], [4, 7], np.array([1.5, 2.0], np.float32))
    common = {"alpha": 1.0, "target": 1.0, "threads": 1}
    np.testing.assert_allclose(
        solve_exact(build, twice, *system, **common),
        solve_exact(build, once, *system, **common),
        rtol=1e-4,
    )


@every_build
@given(seed=seeds, rows=st.integers(0, 200), factors=st.integers(0, 70))
@settings(max_examples=30, deadline=None)
def test_rotating_is_the_product_in_place(build, seed, rows, factors):
    rng = np.random.default_rng(seed)
    matrix, axes = small_integers(rng, rows, factors), small_integers(rng, factors, factors)
    expected = matrix @ axes
    build.rotate(matrix, axes, threads=2)
    np.testing.assert_array_equal(matrix, expected)


@every_build
@given(seed=seeds, rows=st.integers(0, 30), n_items=st.integers(0, 20), weighted=st.booleans())
@settings(max_examples=40, deadline=None)
def test_transposing_twice_sorts_every_row(build, seed, rows, n_items, weighted):
    history = ragged(np.random.default_rng(seed), rows, n_items, 10, weighted)
    takers = build.transpose(*arguments(history), n_items)
    indptr, items, weights = build.transpose(*takers, rows)
    assert indptr.tolist() == history.indptr.tolist()
    for row in range(rows):
        part = slice(indptr[row], indptr[row + 1])
        order = np.argsort(history.items[part], kind="stable")
        assert items[part].tolist() == history.items[part][order].tolist()
        if weighted:
            assert weights[part].tolist() == history.weights[part][order].tolist()
    assert (weights is None) == (not weighted)


@every_build
@given(
    seed=seeds,
    n_items=st.integers(1, 3000),
    factors=st.sampled_from([1, 3, 8, 33]),
    k=st.integers(1, 40),
    spread=st.sampled_from([0.0, 1.0, 8.0]),
    shift=st.sampled_from([0.0, 5.0]),
)
@settings(max_examples=60, deadline=None)
def test_no_item_is_lost_to_the_first_pass(build, seed, n_items, factors, k, spread, shift):
    """Norms far apart, all scores alike, most items closed: what a bound could get wrong."""
    rng = np.random.default_rng(seed)
    items = rng.standard_normal((n_items, factors)).astype(np.float32) + np.float32(shift)
    items *= np.exp(spread * rng.standard_normal((n_items, 1))).astype(np.float32)
    queries = rng.standard_normal((7, factors)).astype(np.float32) - np.float32(shift)
    queries[3] = 0.0
    exclude = ragged(rng, 7, n_items, min(n_items, 50), weighted=False)
    allow = rng.random(n_items) < rng.choice([0.02, 0.5, 1.0])
    k = min(k, n_items)
    got = top_k(build, queries, items, k, exclude.indptr, exclude.items, allow, threads=3)
    every = top_k(build, queries, items, n_items, threads=1)
    scores = np.empty((7, n_items), np.float32)
    np.put_along_axis(scores, every[0], every[1], axis=1)
    np.testing.assert_allclose(
        scores, queries.astype(float) @ items.T.astype(float), rtol=1e-4,
        atol=1e-5 * float(np.abs(scores).max()),
    )  # fmt: skip
    lists = np.split(exclude.items, exclude.indptr[1:-1])
    expected = reference.top_k(scores, k, lists, allow)
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])


@every_build
def test_a_catalogue_gives_its_vectors_back(build):
    items = np.random.default_rng(9).standard_normal((300, 5)).astype(np.float32)
    catalogue = build.Catalogue(items, threads=2)
    assert (len(catalogue), catalogue.width) == (300, 5)
    assert catalogue.vectors().tobytes() == items.tobytes()


@every_build
@pytest.mark.parametrize("factors", [7, 64])
def test_the_same_bits_for_any_number_of_threads(build, factors):
    rng = np.random.default_rng(4)
    history, *system = problem(rng, 333, 200, factors)
    start = rng.standard_normal((333, factors)).astype(np.float32)
    axes = rng.standard_normal((factors, factors)).astype(np.float32)
    scores = rng.standard_normal((333, 200)).astype(np.float32)
    filters = (history.indptr, history.items, rng.random(200) < 0.7)
    common = {"alpha": 1.1, "target": 1.0}

    def everything(threads):
        turned = start.copy()
        build.rotate(turned, axes, threads=threads)
        return [
            turned,
            build.gram(start, threads=threads),
            solve_exact(build, history, *system, threads=threads, **common),
            solve_cg(build, history, *system, start=start, steps=3, threads=threads, **common),
            *top_k(build, start, system[0], 20, *filters, threads=threads),
            *build.select_top_k(scores, 20, *filters, threads=threads),
        ]

    expected = [part.tobytes() for part in everything(1)]
    for threads in THREADS[1:]:
        assert [part.tobytes() for part in everything(threads)] == expected


@every_build
@pytest.mark.parametrize("threads", THREADS)
def test_the_first_row_that_cannot_be_solved_is_named(build, threads):
    rows, factors = 1000, 4
    history = Ragged.from_rows([[0, 1]] * rows)
    ridge = np.ones(rows, np.float32)
    ridge[[300, 301, 700, 999]] = 0.0  # two events cannot fix four factors
    other = np.eye(2, factors, dtype=np.float32)
    shared = np.zeros(factors, np.float32)
    common = {"alpha": 1.0, "target": 1.0, "threads": threads}
    with pytest.raises(build.NotPositiveDefiniteError, match=r"row 300 "):
        solve_exact(build, history, other, shared, ridge, **common)


@every_build
def test_python_goes_on_while_the_core_works(build):
    rng = np.random.default_rng(5)
    items = rng.standard_normal((50_000, 64)).astype(np.float32)
    catalogue = build.Catalogue(items, threads=1)
    queries = rng.standard_normal((1000, 64)).astype(np.float32)
    worker = threading.Thread(
        target=build.top_k,
        args=(queries, catalogue, 10, None, None, None),
        kwargs={"threads": 1},
    )
    ticks, started = 0, time.perf_counter()
    worker.start()
    while worker.is_alive():
        time.sleep(0.001)
        ticks += 1
    elapsed = time.perf_counter() - started
    # Holding the lock would let through one tick or two, however long it takes.
    assert ticks > 5, f"{ticks} ticks in {elapsed:.3f} s"


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("name", BUILDS)
def test_a_build_can_be_forced(name):
    done = run_python("import hybridrec._core as c; print(c.build)", HYBRIDREC_CPU=name)
    assert (done.stdout.strip(), done.returncode) == (name, 0), done.stderr


def test_an_unknown_build_is_an_error():
    done = run_python("import hybridrec._core", HYBRIDREC_CPU="sse9")
    assert "ImportError: HYBRIDREC_CPU is 'sse9'; wanted one of baseline, avx2, avx512" in (
        done.stderr
    )


def test_a_build_that_the_cpu_lacks_is_an_error():
    with pytest.raises(ImportError, match=r"cannot run; it runs avx2, baseline"):
        core._pick(("avx2", "baseline"), "avx512")
    assert core._pick(("avx2", "baseline"), None) == "avx2"
    assert core._pick(("avx2", "baseline"), "") == "avx2"
