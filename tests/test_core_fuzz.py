"""The compiled boundary with wrong arrays: an error, and never a read out of bounds.

`make asan` runs this file against a build under AddressSanitizer and UBSan.
"""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hybridrec._core as core

BUILDS = {name: importlib.import_module(f"hybridrec._core._{name}") for name in core.cpu_builds()}
every_build = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())
BIG = 2**62


def sane():
    """Arguments of every function that are right, by name."""
    rng = np.random.default_rng(0)
    floats = rng.standard_normal((50, 6)).astype(np.float32)
    system = {
        "indptr": np.array([0, 2, 2, 5], np.int64),
        "items": np.array([0, 49, 3, 3, 7], np.int32),
        "weights": np.ones(5, np.float32),
        "other": floats,
        "shared": np.ones(6, np.float32),
        "ridge": np.ones(3, np.float32),
        "alpha": 1.0,
        "target": 1.0,
        "threads": 2,
    }
    filters = {
        "exclude_indptr": np.array([0, 2, 2, 5], np.int64),
        "exclude_items": np.array([0, 49, 3, 3, 7], np.int32),
        "allow": np.ones(50, bool),
        "threads": 2,
    }
    changed = np.zeros((3, 6), np.float32)
    return {
        "gram": {"factors": floats, "threads": 2},
        "rotate": {"factors": floats, "axes": np.eye(6, dtype=np.float32), "threads": 2},
        "transpose": {
            **{name: system[name] for name in ("indptr", "items", "weights")},
            "n_items": 50,
        },
        "solve_exact": {**system, "out": changed},
        "solve_cg": {**system, "x": changed, "steps": 2, "relaxation": 1.5},
        "Catalogue": {"items": floats, "threads": 2},
        "top_k": {"queries": floats[:3], "items": floats, "k": 5, **filters},
        "select_top_k": {"scores": rng.random((3, 50), np.float32), "k": 5, **filters},
    }


def misaligned(array):
    room = np.zeros(array.nbytes + 1, np.uint8)
    room[1:] = np.frombuffer(array.tobytes(), np.uint8)
    return room[1:].view(array.dtype).reshape(array.shape)


def strided(array):
    return np.repeat(array, 2, axis=-1)[..., ::2]


# What is wrong in any array argument, whichever it is.
SPOIL = {
    "another dtype": lambda array: array.astype(np.float64 if array.dtype != bool else np.uint8),
    "swapped bytes": lambda array: array.astype(array.dtype.newbyteorder()),
    "a list": lambda array: array.tolist(),
    "one dimension more": lambda array: array[None],
    "no dimension": lambda array: array.reshape(-1)[0],
    "one row less": lambda array: array[:-1],
    "one row more": lambda array: np.concatenate([array, array[-1:]]),
    "nothing": lambda array: array[:0],
    "strided": strided,
    "reversed": lambda array: array[::-1],
    "misaligned": misaligned,
}
# These leave a right value, or one that another argument would have to contradict.
ANY_ROWS = ("one row less", "one row more", "nothing")
FREE = {
    ("gram", "factors"): ANY_ROWS,
    ("rotate", "factors"): ANY_ROWS,
    ("transpose", "indptr"): ("one row more",),
    ("solve_exact", "other"): ("one row more",),
    ("solve_cg", "other"): ("one row more",),
    ("Catalogue", "items"): ANY_ROWS,
    ("top_k", "items"): ("one row more",),
}
HARMLESS = {"swapped bytes": ("allow",), "misaligned": ("allow",)}
ARRAYS = [
    (function, name, fault)
    for function, given_ in sane().items()
    for name, value in given_.items()
    if isinstance(value, np.ndarray)
    for fault in SPOIL
    if fault not in FREE.get((function, name), ()) and name not in HARMLESS.get(fault, ())
]


def call(build, function, values):
    if function == "top_k":
        values = dict(values)
        catalogue = build.Catalogue(values.pop("items"), threads=2)
        return build.top_k(catalogue=catalogue, **values)
    return getattr(build, function)(**values)


@every_build
@pytest.mark.parametrize("function", sane())
def test_right_arguments_are_taken(build, function):
    call(build, function, sane()[function])


@every_build
@pytest.mark.parametrize(("function", "name", "fault"), ARRAYS)
def test_a_wrong_array_is_refused(build, function, name, fault):
    values = sane()[function]
    values[name] = SPOIL[fault](values[name])
    with pytest.raises((ValueError, TypeError)):
        call(build, function, values)


@every_build
@pytest.mark.parametrize(
    "indptr",
    [
        [1, 2, 2, 5],
        [0, 2, 2, 4],
        [0, 2, 2, 6],
        [0, 3, 2, 5],
        [0, BIG, 2, 5],
        [0, -1, 2, 5],
        [-BIG, 2, 2, 5],
        [0, 2, 5],
    ],
)
@pytest.mark.parametrize(
    ("function", "name"),
    [
        ("solve_exact", "indptr"),
        ("solve_cg", "indptr"),
        ("top_k", "exclude_indptr"),
        ("select_top_k", "exclude_indptr"),
    ],
)
def test_a_wrong_indptr_is_refused(build, function, name, indptr):
    values = sane()[function]
    values[name] = np.array(indptr, np.int64)
    with pytest.raises(ValueError, match=r"indptr|rows|ridge"):
        call(build, function, values)


@every_build
@pytest.mark.parametrize("code", [-1, 50, 64, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        ("solve_exact", "items"),
        ("solve_cg", "items"),
        ("transpose", "items"),
        ("top_k", "exclude_items"),
        ("select_top_k", "exclude_items"),
    ],
)
def test_a_code_out_of_range_is_named(build, function, name, code):
    values = sane()[function]
    values[name] = values[name].copy()
    values[name][3] = code
    with pytest.raises(ValueError, match=rf"items\[3\] is {code}; wanted a code from 0 to 49"):
        call(build, function, values)


@every_build
@pytest.mark.parametrize(
    ("function", "change"),
    [
        ("top_k", {"k": 0}),
        ("top_k", {"k": 51}),
        ("top_k", {"k": -BIG}),
        ("top_k", {"queries": np.zeros((3, 5), np.float32)}),
        ("transpose", {"n_items": 49}),
        ("transpose", {"n_items": -1}),
        ("transpose", {"n_items": BIG}),
        ("transpose", {"n_items": 2**64}),
        ("top_k", {"exclude_items": None}),
        ("select_top_k", {"exclude_indptr": None}),
        ("select_top_k", {"k": 51}),
        ("gram", {"threads": 0}),
        ("gram", {"threads": 10**6}),
        ("gram", {"threads": None}),
        ("solve_cg", {"steps": 0}),
        ("solve_cg", {"relaxation": 0.0}),
        ("solve_cg", {"relaxation": 2.0}),
        ("solve_cg", {"relaxation": float("nan")}),
        ("solve_cg", {"weights": 1.0}),
        ("solve_exact", {"alpha": "1"}),
    ],
)
def test_a_wrong_number_is_refused(build, function, change):
    with pytest.raises((ValueError, TypeError)):
        call(build, function, {**sane()[function], **change})


extremes = st.sampled_from([-BIG, -1, 0, 1, 2, 3, 5, 6, 49, 50, 2**31, BIG])
wild = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, -1e38, np.nan, np.inf, -np.inf])


@st.composite
def spoiled(draw):
    """A function, and its arguments after up to three random changes."""
    function = draw(st.sampled_from(sorted(sane())))
    values = sane()[function]
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(values)))
        value = values[name]
        if isinstance(value, np.ndarray) and value.size and value.dtype != bool:
            value = value.copy()
            whole = value.dtype.kind in "iu"
            element = extremes if whole else wild
            for place in draw(st.lists(st.integers(0, value.size - 1), max_size=3)):
                new = draw(element)
                if whole:
                    new = np.clip(new, np.iinfo(value.dtype).min, np.iinfo(value.dtype).max)
                value.reshape(-1)[place] = new
            if draw(st.integers(0, 4)) == 0:
                value = SPOIL[draw(st.sampled_from(sorted(SPOIL)))](value)
            values[name] = value
        elif isinstance(value, np.ndarray):
            values[name] = draw(st.sampled_from([None, value, value[:-1], value.view(np.uint8)]))
        elif name == "threads":
            values[name] = draw(st.sampled_from([-1, 1, 3, 2**40]))
        else:
            values[name] = draw(extremes if isinstance(value, int) else wild)
    # Many steps are many, not wrong: keep the test quick.
    if values.get("steps", 0) > 50:
        values["steps"] = 50
    return function, values


@every_build
@given(spoiled())
@settings(max_examples=400, deadline=None)
def test_random_faults_end_in_an_error_or_an_answer(build, case):
    function, values = case
    try:
        answer = call(build, function, values)
    except (ValueError, TypeError, OverflowError, build.NotPositiveDefiniteError):
        return
    if function in ("top_k", "select_top_k"):
        ids, scores = answer
        n_items = len(values["items"]) if function == "top_k" else values["scores"].shape[1]
        assert ids.min(initial=0) >= -1
        assert ids.max(initial=0) < n_items
        assert np.array_equal(ids == -1, scores == -np.inf)
        for row in ids:
            real = row[row >= 0]
            assert len(set(real.tolist())) == len(real)


@every_build
def test_a_mask_with_other_bytes_than_0_and_1(build):
    values = sane()["select_top_k"]
    values["allow"] = np.full(50, 255, np.uint8).view(bool)
    ids, _ = call(build, "select_top_k", values)
    assert (ids >= 0).all()


@every_build
@pytest.mark.parametrize("k", [1, 2])
def test_no_queries_and_no_factors(build, k):
    rows = np.array([0], np.int64), np.array([], np.int32)
    two = build.Catalogue(np.zeros((2, 3), np.float32), threads=2)
    none = np.zeros((0, 3), np.float32)
    ids, scores = build.top_k(none, two, k, *rows, None, threads=2)
    assert ids.shape == scores.shape == (0, k)
    flat = build.Catalogue(np.zeros((2, 0), np.float32), threads=2)
    asked = np.zeros((2, 0), np.float32)
    ids, scores = build.top_k(asked, flat, k, None, None, None, threads=2)
    assert ids.tolist() == [list(range(k))] * 2
    assert not scores.any()
    assert build.gram(np.zeros((4, 0), np.float32), threads=2).shape == (0, 0)
    build.solve_exact(
        *rows,
        None,
        np.zeros((4, 0), np.float32),
        np.zeros(0, np.float32),
        np.zeros(0, np.float32),
        alpha=1.0,
        target=1.0,
        out=np.zeros((0, 0), np.float32),
        threads=2,
    )


@every_build
@pytest.mark.parametrize(
    ("function", "name"), [("rotate", "factors"), ("solve_exact", "out"), ("solve_cg", "x")]
)
def test_what_may_not_be_changed_is_refused(build, function, name):
    values = sane()[function]
    values[name].setflags(write=False)
    with pytest.raises(ValueError, match=f"{name} is read-only"):
        call(build, function, values)
