"""The compiled layers of the cross-encoder against slow, obvious numpy, in every build."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf

import hybridrec._core as core

BUILDS = {name: importlib.import_module(f"hybridrec._core._{name}") for name in core.cpu_builds()}
THREADS = (1, 2, 3, 8)
every_build = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())
LOW = [
    pytest.param(build, kind, id=f"{name}-{kind}")
    for name, build in BUILDS.items()
    for kind in ("Linear8", "Linear16", "Linear32")
    if getattr(build, f"has_{kind.lower()}")
]
# Empty where the CPU has neither: pytest then skips, and says so.
every_low = pytest.mark.parametrize(("build", "kind"), LOW)
seeds = st.integers(0, 2**32 - 1)


def apply(layer, x, outputs, *, gelu=False, threads=2):
    out = np.full((len(x), outputs), np.nan, np.float32)
    layer.apply(x, out=out, gelu=gelu, threads=threads)
    return out


def in_8_bits(x, weight, bias):
    """The same arithmetic in float64 and exact integers: 255 steps an output, 256 a row."""
    scale = np.abs(weight).max(axis=1) / np.float32(127)
    scale[scale == 0] = 1
    codes = np.rint(weight / scale[:, None])
    low, high = np.minimum(x.min(axis=1), 0), np.maximum(x.max(axis=1), 0)
    step = (high - low) / np.float32(255)
    step[step == 0] = 1
    inverse = np.float32(1) / step
    zero = np.rint(-low * inverse)
    asked = np.clip(np.rint(x * inverse[:, None]) + zero[:, None], 0, 255)
    sums = (asked - zero[:, None]).astype(float) @ codes.T.astype(float)
    # A value on the edge of two codes may fall to either.
    edge = np.abs(x).max(axis=1, initial=0)[:, None] / 127 * np.abs(weight).max(axis=1)
    return sums * step[:, None].astype(float) * scale.astype(float) + bias, 1.01 * edge


def bfloat16(x):
    """float32 with the lower half of its bits rounded away, to nearest and then to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def in_bfloat16(x, weight, bias):
    """The same in float64, of inputs and weights that were rounded."""
    x, weight = bfloat16(x).astype(float), bfloat16(weight).astype(float)
    return x @ weight.T + bias, 1e-6 * (np.abs(x) @ np.abs(weight).T)


def in_float32(x, weight, bias):
    x, weight = x.astype(float), weight.astype(float)
    return x @ weight.T + bias, 1e-6 * (np.abs(x) @ np.abs(weight).T)


SLOW = {"Linear8": in_8_bits, "Linear16": in_bfloat16, "Linear32": in_float32}


@every_low
@given(
    seed=seeds,
    rows=st.integers(0, 120),
    inputs=st.integers(1, 130),
    outputs=st.integers(1, 200),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 50.0]),
)
@settings(max_examples=60, deadline=None)
def test_a_layer_rounds_as_it_says(build, kind, seed, rows, inputs, outputs, spread):
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((outputs, inputs)) * rng.random((outputs, 1))).astype(np.float32)
    weight[rng.random(outputs) < 0.1] = 0
    bias = rng.standard_normal(outputs).astype(np.float32)
    x = (rng.standard_normal((rows, inputs)) * spread + rng.random()).astype(np.float32)
    got = apply(getattr(build, kind)(weight, bias), x, outputs)
    if not rows:
        return
    wanted, edge = SLOW[kind](x, weight, bias)
    assert (np.abs(got - wanted) <= 1e-5 * np.abs(wanted).max() + edge).all()
    assert np.mean(np.abs(got - wanted) <= 1e-5 * (1 + np.abs(wanted))) > 0.9


@every_low
def test_a_layer_is_near_the_product_it_stands_for(build, kind):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((96, 384)).astype(np.float32)
    x = rng.standard_normal((50, 384)).astype(np.float32)
    exact = x @ weight.T
    got = apply(getattr(build, kind)(weight, None), x, 96)
    assert np.abs(got - exact).mean() < 0.02 * exact.std()


@every_low
def test_a_row_has_the_same_bits_in_any_company_and_thread(build, kind):
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((70, 33)).astype(np.float32)
    x = rng.standard_normal((131, 33)).astype(np.float32)
    layer = getattr(build, kind)(weight, None)
    whole = apply(layer, x, 70, gelu=True, threads=1)
    for threads in THREADS[1:]:
        assert apply(layer, x, 70, gelu=True, threads=threads).tobytes() == whole.tobytes()
    for row in (0, 5, 47, 48, 130):
        alone = apply(layer, x[row : row + 1], 70, gelu=True)
        assert alone.tobytes() == whole[row].tobytes()


def layer_norm(x, gain, shift, epsilon):
    x = x.astype(float)
    x = x - x.mean(axis=1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + epsilon) * gain + shift


@every_low
@pytest.mark.parametrize(("rows", "width", "wide"), [(1, 5, 7), (47, 64, 130), (131, 50, 256)])
def test_what_is_fused_is_what_its_parts_say(build, kind, rows, width, wide):
    rng = np.random.default_rng(2)
    first, second = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((wide, width), (width, wide))
    )
    x, residual = rng.standard_normal((2, rows, width)).astype(np.float32)
    gain, shift = rng.standard_normal((2, width)).astype(np.float32)
    layer = getattr(build, kind)
    widen, narrow = layer(first, None), layer(second, shift)
    states = apply(widen, x, wide, gelu=True)
    wanted = apply(narrow, states, width)
    for threads in THREADS:
        normed, fused = np.full((2, rows, width), np.nan, np.float32)
        narrow.apply_norm(states, residual, gain, shift, epsilon=1e-3, out=normed, threads=threads)
        build.feed_forward(widen, narrow, x, gain, shift, epsilon=1e-3, out=fused, threads=threads)
        for got, other in ((normed, residual), (fused, x)):
            right = layer_norm(wanted + other, gain, shift, 1e-3)
            np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-5)
        if threads == THREADS[0]:
            before = normed.tobytes(), fused.tobytes()
        assert (normed.tobytes(), fused.tobytes()) == before


@every_low
def test_fused_layers_of_other_widths_are_refused(build, kind):
    x, wide, one = (np.zeros(shape, np.float32) for shape in ((2, 3), (2, 4), 3))
    layer = getattr(build, kind)
    first = layer(np.ones((4, 3), np.float32), None)
    second = layer(np.ones((3, 4), np.float32), None)
    good = {"epsilon": 1e-5, "out": x.copy(), "threads": 1}
    build.feed_forward(first, second, x, one, one, **good)
    second.apply_norm(wide, x, one, one, **good)
    fused, normed = build.feed_forward, second.apply_norm
    for call, arrays, change, message in (
        (fused, (first, first, x, one, one), {}, "second is 3 to 4"),
        (fused, (first, second, wide, one, one), {}, "x has extent 4"),
        (fused, (first, second, x, one[:2], one), {}, "gain has extent"),
        (normed, (wide, wide, one, one), {}, "residual has extent 4"),
        (normed, (wide, x, one, one[:1]), {}, "shift has extent 1"),
        (normed, (wide, x, one, one), {"epsilon": 0.0}, "epsilon is"),
        (normed, (wide, x, one, one), {"out": wide}, "out has"),
    ):
        with pytest.raises(ValueError, match=message):
            call(*arrays, **{**good, **change})


@every_low
def test_gelu_is_the_exact_one(build, kind):
    x = bfloat16(np.linspace(-12, 12, 2001))[:, None]
    layer = getattr(build, kind)(np.ones((1, 1), np.float32), None)
    before, got = apply(layer, x, 1), apply(layer, x, 1, gelu=True)
    wanted = before * 0.5 * (1 + erf(before.astype(float) / np.sqrt(2)))
    assert np.abs(got - wanted).max() < 1e-6


@every_build
@pytest.mark.parametrize("kind", ["Linear8", "Linear16", "Linear32"])
def test_a_layer_is_refused_where_it_cannot_be(build, kind):
    weight = np.ones((3, 4), np.float32)
    layer = getattr(build, kind)
    if not getattr(build, f"has_{kind.lower()}"):
        with pytest.raises(ValueError, match="wanted AVX-512"):
            layer(weight, None)
        return
    with pytest.raises(ValueError, match=r"weight holds .*nan; wanted finite"):
        layer(np.full((3, 4), np.nan, np.float32), None)
    with pytest.raises(ValueError, match="bias has extent 4 on axis 0; wanted 3"):
        layer(weight, np.ones(4, np.float32))
    made = layer(weight, None)
    out = np.zeros((2, 3), np.float32)
    for x, to in ((np.ones((2, 5)), out), (np.ones((1, 4)), out), (np.ones((2, 4)), out[:, :2])):
        with pytest.raises((ValueError, TypeError)):
            made.apply(x.astype(np.float32), out=to, gelu=False, threads=1)


def texts(rng, prompts, most, longest):
    """Prompts with their candidates: asks (S + 1,), own (S, 2), seen (S, 2)."""
    lengths, seen, place = [], [], 0
    for _ in range(prompts):
        prefix = int(rng.integers(1, longest))
        lengths.append(prefix)
        seen.append((0, 0))
        begin, place = place, place + prefix
        for length in rng.integers(1, longest, rng.integers(0, most + 1)):
            lengths.append(int(length))
            seen.append((begin, begin + prefix))
            place += int(length)
    asks = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    own = np.stack([asks[:-1], asks[1:]], axis=1)
    return asks, own, np.array(seen, np.int64).reshape(-1, 2)


def attention(q, k, v, asks, own, seen, heads, key_heads, scale, causal, window=0):
    """Text by text and head by head, in float64."""
    width = q.shape[1] // heads
    out = np.zeros(q.shape)
    for s in range(len(asks) - 1):
        for h in range(heads):
            mine = slice(h * width, (h + 1) * width)
            theirs = h * key_heads // heads
            theirs = slice(theirs * width, (theirs + 1) * width)
            rows = np.r_[slice(*seen[s]), slice(*own[s])]
            asked = q[asks[s] : asks[s + 1], mine].astype(float)
            scores = scale * asked @ k[rows, theirs].astype(float).T
            place = len(rows) - len(asked) + np.arange(len(asked))[:, None]
            if causal:
                scores[np.arange(len(rows)) > place] = -np.inf
            if window:
                scores[np.abs(np.arange(len(rows)) - place) >= window] = -np.inf
            shares = np.exp(scores - scores.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
            out[asks[s] : asks[s + 1], mine] = shares @ v[rows, theirs].astype(float)
    return out


@every_build
@given(
    seed=seeds,
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    width=st.sampled_from([1, 8, 20, 32, 64]),
    causal=st.booleans(),
    window=st.sampled_from([0, 1, 7, 200]),
    sharp=st.sampled_from([0.1, 1.0, 30.0]),
)
@settings(max_examples=40, deadline=None)
def test_attention_is_that_of_each_text_alone(build, seed, heads, width, causal, window, sharp):
    rng = np.random.default_rng(seed)
    asks, own, seen = texts(rng, 3, 5, 40)
    q = (sharp * rng.standard_normal((asks[-1], heads[0] * width))).astype(np.float32)
    k, v = rng.standard_normal((2, asks[-1], heads[1] * width)).astype(np.float32)
    scale = 1 / np.sqrt(width)
    out = np.full_like(q, np.nan)
    build.attend(
        q, k, v, k[:0], v[:0], asks, own, seen,
        heads=heads[0], key_heads=heads[1], scale=scale, causal=causal, window=window, out=out,
        threads=2,
    )  # fmt: skip
    wanted = attention(q, k, v, asks, own, seen, *heads, scale, causal, window)
    # A score of a hundred has an error of 1e-5 in float32, and the share that it stands for too.
    np.testing.assert_allclose(out, wanted, rtol=2e-4, atol=2e-5 * max(1.0, sharp))


@every_build
def test_attention_over_keys_that_were_kept(build):
    """The prefix's keys come from an earlier call; only the candidates ask."""
    rng = np.random.default_rng(5)
    asks = np.array([0, 4, 9], np.int64)
    own = np.array([[30, 34], [34, 39]], np.int64)
    seen = np.array([[0, 30], [0, 30]], np.int64)
    q = rng.standard_normal((9, 64)).astype(np.float32)
    k, v = rng.standard_normal((2, 39, 64)).astype(np.float32)
    shape = {"heads": 2, "key_heads": 2, "scale": 0.2, "causal": True, "window": 0}
    out = np.zeros_like(q)
    split = k[30:], v[30:], k[:30], v[:30]
    build.attend(q, *split, asks, own, seen, out=out, threads=1, **shape)
    wanted = attention(q, k, v, asks, own, seen, 2, 2, 0.2, True)
    np.testing.assert_allclose(out, wanted, rtol=2e-4, atol=2e-5)
    for threads in THREADS[1:]:
        again = np.zeros_like(q)
        build.attend(q, *split, asks, own, seen, out=again, threads=threads, **shape)
        assert again.tobytes() == out.tobytes()


@every_build
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "heads is 3; wanted a multiple of key_heads, 2"),
        ({"key_heads": 0}, "heads is 2; wanted a multiple"),
        ({"heads": 4}, "wanted heads and key_heads of one width"),
        ({"asks": np.array([0, 5, 4, 9])}, r"asks\[2\] is below"),
        ({"asks": np.array([0, 4, 5, 8])}, "asks must run from 0 to the rows of q, 9"),
        ({"own": np.array([[0, 4], [4, 5], [5, 10]])}, r"own\[2\] is 5 to 10; wanted rows"),
        ({"own": np.array([[0, 4], [4, 5]])}, "own has extent 2 on axis 0; wanted 3"),
        ({"seen": np.array([[0, 4], [4, 5], [-1, 2]])}, r"seen\[2\] is -1 to 2"),
        ({"seen": np.array([[0, 4], [4, 3], [0, 2]])}, r"seen\[1\] is 4 to 3"),
        ({"kept_v": np.zeros((1, 8), np.float32)}, "kept_v has extent 1 on axis 0; wanted 0"),
        ({"window": -1}, "window is -1; wanted at least 0"),
    ],
)
def test_wrong_texts_are_refused(build, change, message):
    rows = np.zeros((9, 8), np.float32)
    asks = np.array([0, 4, 5, 9])
    given_ = {
        "asks": asks, "own": np.stack([asks[:-1], asks[1:]], 1), "seen": np.zeros((3, 2), int),
        "heads": 2, "key_heads": 2, "scale": 1.0, "causal": False, "window": 0, "threads": 1,
    }  # fmt: skip
    keys = {"k": rows, "v": rows, "kept_k": rows[:0], "kept_v": rows[:0]}
    build.attend(rows, out=rows.copy(), **keys, **given_)
    with pytest.raises(ValueError, match=message):
        build.attend(rows, out=rows.copy(), **{**keys, **given_, **change})


@every_build
def test_a_text_without_keys_gets_zeros(build):
    rows = np.ones((3, 8), np.float32)
    out = np.full_like(rows, np.nan)
    build.attend(
        rows, rows, rows, rows[:0], rows[:0],
        np.array([0, 1, 3]), np.array([[0, 0], [1, 3]]), np.zeros((2, 2), int),
        heads=1, key_heads=1, scale=1.0, causal=False, window=0, out=out, threads=1,
    )  # fmt: skip
    assert not out[0].any()
    np.testing.assert_allclose(out[1:], 1, rtol=1e-6)
