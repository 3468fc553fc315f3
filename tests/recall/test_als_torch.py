"""ALS in torch operations: on the CPU it must be the compiled core to rounding, whatever is asked.

The tests marked ``gpu`` hold the same code on CUDA against the same core.
"""

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridrec import FitError, InputError, Ragged
from hybridrec.recall.als_solver import ALSConfig, loss, transposed
from hybridrec.recall.als_solver import factorise as by_core

torch = pytest.importorskip("torch")

from hybridrec.recall import als_torch  # noqa: E402

U, I, F = 120, 70, 12  # noqa: E741
OBJECTIVES = {
    "default": {},
    "like implicit": {
        "alpha": 9.0,
        "target": 10 / 9,
        "unobserved_weight": 1.0,
        "regularization": 0.05,
        "regularization_power": 0.0,
    },
    "observed only": {"unobserved_weight": 0.0, "regularization": 0.1},
}


def histories(seed=0, weighted=False, users=U, most=30):
    """Repeats, empty rows, one row that is long, and ten items nobody took.

    A row longer than all others together would make float32 itself the difference: then the core is
    no nearer to the same steps in float64.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, most, users)
    lengths[[0, -1]] = 0
    lengths[users // 2] = 250
    plain = Ragged.from_rows([rng.integers(0, I - 10, n) for n in lengths])
    weights = rng.uniform(0.3, 3.0, len(plain.items)).astype(np.float32) if weighted else None
    return Ragged(plain.indptr, plain.items, weights)


def start(seed=0, factors=F):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((I, factors)) * 0.1 / np.sqrt(factors)).astype(np.float32)


def apart(got, wanted):
    """The relative difference of the whole and that of the worst row."""
    gap, size = np.linalg.norm(got - wanted, axis=1), np.linalg.norm(wanted, axis=1)
    assert not got[size == 0].any()
    return np.linalg.norm(gap) / np.linalg.norm(size), (gap[size > 0] / size[size > 0]).max()


def check_agreement(device, solver, objective, weighted):
    config = ALSConfig(factors=F, epochs=5, solver=solver, **OBJECTIVES[objective])
    rows = histories(weighted=weighted)
    wanted = by_core(rows, start(), config, threads=1)
    got = als_torch.factorise(rows, start(), config, device=device)
    assert got.dtype == np.float32
    whole, worst = apart(got, wanted)
    assert whole < 1e-4
    assert worst < 1e-3


@pytest.mark.parametrize("solver", ["cg", "cholesky"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("weighted", [False, True])
def test_five_epochs_agree_with_the_core(solver, objective, weighted):
    check_agreement("cpu", solver, objective, weighted)


@pytest.mark.parametrize("factors", [1, 7, 40])
@pytest.mark.parametrize("steps", [1, 3])
def test_any_width_and_number_of_steps_agree_with_the_core(factors, steps):
    config = ALSConfig(factors=factors, epochs=3, user_steps=steps, item_steps=4 - steps)
    rows, first = histories(seed=1), start(factors=factors)
    wanted = by_core(rows, first, config, threads=1)
    assert max(apart(als_torch.factorise(rows, first, config, device="cpu"), wanted)) < 1e-4


@given(
    seed=st.integers(0, 1000),
    power=st.sampled_from([0.0, 0.5, 1.0]),
    unobserved=st.sampled_from([0.0, 0.3, 1.0]),
    target=st.sampled_from([1.0, 1.5]),
    weighted=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_an_exact_epoch_solves_the_normal_equations(seed, power, unobserved, target, weighted):
    config = ALSConfig(
        factors=4,
        alpha=1.7,
        target=target,
        unobserved_weight=unobserved,
        regularization=0.2,
        regularization_power=power,
        epochs=1,
        solver="cholesky",
    )
    rows = histories(seed, weighted, users=20, most=6)
    wanted = start(seed, factors=4)
    got = als_torch.factorise(rows, wanted, config, device="cpu")

    def solved(rows, other):
        ridge = config.ridge(rows.lengths, len(other))
        gram = unobserved * other.T.astype(float) @ other
        return reference.half_sweep(rows, other, gram, ridge, config.alpha, target)

    wanted = solved(transposed(rows, I), solved(rows, wanted))
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)


def test_many_conjugate_gradient_steps_are_the_exact_solution():
    rows = histories(seed=2)
    exact = ALSConfig(factors=4, epochs=2, solver="cholesky")
    many = ALSConfig(factors=4, epochs=2, user_steps=30, item_steps=30, relaxation=1.0)
    got, wanted = (
        als_torch.factorise(rows, start(factors=4), config, device="cpu")
        for config in (many, exact)
    )
    assert max(apart(got, wanted)) < 1e-4


def test_epochs_lower_the_loss():
    rows, losses = histories(seed=3), []
    for epochs in (1, 3, 9):
        config = ALSConfig(factors=F, epochs=epochs)
        items = als_torch.factorise(rows, start(), config, device="cpu")
        gram = config.everywhere * items.T.astype(float) @ items
        ridge = config.ridge(rows.lengths, I)
        users = reference.half_sweep(rows, items, gram, ridge, config.alpha, config.target)
        losses.append(loss(rows, users, items, config))
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("solver", ["cg", "cholesky"])
@pytest.mark.parametrize("budget", [1, 3000, 20_000])
def test_a_small_budget_changes_rounding_alone(solver, budget):
    config = ALSConfig(factors=F, epochs=3, solver=solver)
    rows = histories(weighted=True)
    wanted = als_torch.factorise(rows, start(), config, device="cpu", budget=1 << 30)
    got = als_torch.factorise(rows, start(), config, device="cpu", budget=budget)
    assert max(apart(got, wanted)) < 1e-5


@pytest.mark.parametrize("solver", ["cg", "cholesky"])
@pytest.mark.parametrize("budget", [1, 10_000, 100_000, 1 << 30])
def test_blocks_hold_every_row_once_within_the_budget(solver, budget):
    config, rows = ALSConfig(factors=F, solver=solver), histories()
    blocks = als_torch._Side("user", rows, I, config, "cpu").blocks(config, budget)
    every = np.concatenate([block.rows.numpy() for block in blocks])
    assert sorted(every) == np.flatnonzero(rows.lengths).tolist()
    event, row = als_torch._bytes(config)
    for block in blocks:
        lengths = rows.lengths[block.rows.numpy()]
        assert block.length == lengths.max() <= 1.25 * lengths.min()
        if len(lengths) > 1:
            assert block.width == block.length
            assert len(lengths) * (block.length * event + row) <= budget
        elif block.width < block.length:
            assert block.width == 1 or 2 * block.width * event + row <= budget
    small = [block for block in blocks if block.width < block.length]
    assert bool(small) == (budget <= 10_000)


def test_the_start_is_left_alone_and_may_be_read_only():
    first = start()
    first.flags.writeable = False
    kept = first.copy()
    als_torch.factorise(histories(), first, ALSConfig(factors=F, epochs=1), device="cpu")
    np.testing.assert_array_equal(first, kept)


def test_a_row_that_cannot_be_solved_is_named():
    rows = Ragged.from_rows([range(I), [], [3, 4], [5]])
    config = ALSConfig(
        factors=2, regularization=0.0, unobserved_weight=0.0, solver="cholesky", epochs=1
    )
    with pytest.raises(FitError, match=r"user side: the normal matrix of row 3 .*raise regulariz"):
        als_torch.factorise(rows, start(factors=2), config, device="cpu")


def test_factors_that_outgrow_float32_are_an_error():
    config = ALSConfig(factors=F, epochs=2)
    with pytest.raises(FitError, match="factors are not finite: scale the weights down"):
        als_torch.factorise(histories(), start() * np.float32(1e30), config, device="cpu")


def test_every_epoch_is_a_step_of_progress(monkeypatch):
    seen = []
    monkeypatch.setattr(
        als_torch,
        "track",
        lambda steps, label: (seen.append((label, step)) or step for step in steps),
    )
    als_torch.factorise(histories(), start(), ALSConfig(factors=F, epochs=3), device="cpu")
    assert seen == [("ALS", 0), ("ALS", 1), ("ALS", 2)]


def test_a_device_that_is_not_there_is_an_error(caplog):
    assert als_torch.resolved("cpu") == "cpu"
    with pytest.raises(InputError, match="device is 'tpu'; wanted one of 'auto', 'cpu', 'cuda'"):
        als_torch.resolved("tpu")
    with caplog.at_level("INFO", logger="hybridrec"):
        found = als_torch.resolved("auto")
    assert f"ALS: device 'auto' is '{found}'" in caplog.text
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert found == "cpu"
    with pytest.raises(InputError, match="device is 'cuda', but torch sees no GPU"):
        als_torch.factorise(histories(), start(), ALSConfig(factors=F), device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("solver", ["cg", "cholesky"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("weighted", [False, True])
def test_five_epochs_on_a_gpu_agree_with_the_core(solver, objective, weighted):
    check_agreement("cuda", solver, objective, weighted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("solver", ["cg", "cholesky"])
def test_a_gpu_holds_the_budget(solver):
    rng, users, budget = np.random.default_rng(0), 30_000, 1 << 24
    lengths = np.minimum(1 + rng.geometric(0.03, users), 1000)
    lengths[7] = 200_000
    rows = Ragged.from_rows([rng.integers(0, I, n) for n in lengths])
    config = ALSConfig(factors=64, epochs=1, solver=solver)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    als_torch.factorise(rows, start(factors=64), config, device="cuda", budget=budget)
    always = 4 * 64 * (users + I) + 8 * len(rows.items) + 64 * users
    # Beside the budget: a part of the factors while it is turned, and what the libraries take.
    assert torch.cuda.max_memory_allocated() - before < always + 2 * budget + (1 << 26)
