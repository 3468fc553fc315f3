"""SequenceRecall: its arithmetic against the plain one, what it learns, what it refuses."""

import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest

import hybridrec as hr
from hybridrec import (
    FitError,
    InputError,
    InputTypeError,
    LinearFusion,
    MissingExtraError,
    Queries,
    Ragged,
    SequenceRecall,
)
from hybridrec.recall.sequence_config import SequenceConfig

torch = pytest.importorskip("torch")

from hybridrec.recall import sequence_network, sequence_training  # noqa: E402

I = 20  # noqa: E741
TINY = {"layers": 2, "heads": 2, "max_length": 8, "batch_size": 64, "precision": "fp32"}


@dataclass
class Data:
    histories: Ragged
    n_items: int = I
    texts: list[str] | None = None
    ordered: bool = True


def circles(users=60, n_items=I, events=12, seed=0):
    """Histories in which i + 1 follows i, from anywhere."""
    starts = np.random.default_rng(seed).integers(0, n_items, users)
    return Ragged.from_rows([(start + np.arange(events)) % n_items for start in starts])


def every_score(model, queries):
    catalogue = np.tile(np.arange(queries.n_items, dtype=np.int32), (len(queries), 1))
    return model.score(queries, catalogue)


@pytest.fixture(scope="module")
def model():
    """Two epochs of next to nothing: for what does not depend on learning."""
    return SequenceRecall(8, epochs=2, **TINY).fit(Data(circles()))


@pytest.fixture(scope="module")
def learnt():
    return SequenceRecall(16, epochs=30, learning_rate=1e-2, **TINY).fit(Data(circles()))


# The loss


def plain_loss(users, items, targets):
    return torch.nn.functional.cross_entropy(users @ items.T, targets)


def loss_inputs(rows=37, items=11, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    users = torch.randn(rows, width, generator=generator).mul_(2).requires_grad_()
    vectors = torch.randn(items, width, generator=generator).requires_grad_()
    return users, vectors, torch.randint(0, items, (rows,), generator=generator)


@pytest.mark.parametrize("cells", [1, 32 * 11, 1 << 20])
@pytest.mark.parametrize(("low", "near"), [(False, 1e-5), (True, 2e-2)])
def test_the_loss_is_the_cross_entropy_and_so_are_its_gradients(monkeypatch, cells, low, near):
    monkeypatch.setattr(sequence_training, "_CELLS", cells)
    users, items, targets = loss_inputs()
    wanted = plain_loss(users, items, targets)
    gradients = torch.autograd.grad(3.0 * wanted, [users, items])
    got = sequence_training.cross_entropy(users, items, targets, low=low)
    assert got.item() == pytest.approx(wanted.item(), rel=near)
    for one, other in zip(torch.autograd.grad(3.0 * got, [users, items]), gradients, strict=True):
        assert (one - other).norm() < near * other.norm()


def test_the_loss_stays_finite_at_the_lowest_temperature():
    config = SequenceConfig(temperature=0.02)
    users = torch.nn.functional.normalize(torch.ones(4, 3), dim=1) / config.temperature
    items = torch.nn.functional.normalize(torch.ones(5, 3), dim=1)
    for low in (False, True):
        loss = sequence_training.cross_entropy(users, items, torch.zeros(4).long(), low=low)
        assert loss.item() == pytest.approx(np.log(5), abs=1e-2)


# The network


def slow_state(network, items, codes, heads):
    """What the network says after ``codes``, one place at a time, in numpy."""
    weights = {n: w.detach().numpy() for n, w in network.named_parameters()}

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def turned(vector, place):
        half = len(vector) // 2
        rate = 10_000.0 ** -(np.arange(half) / half)
        whole = (vector[:half] + 1j * vector[half:]) * np.exp(1j * place * rate)
        return np.concatenate([whole.real, whole.imag])

    erf = np.vectorize(__import__("math").erf)
    x = items[codes] * np.sqrt(items.shape[1])
    for number in range(len(network.blocks)):
        here = f"blocks.{number}"
        q, k, v = np.split(linear(norm(x, f"{here}.before"), f"{here}.queries_keys_values"), 3, 1)
        found = np.zeros_like(x)
        for part in np.split(np.arange(items.shape[1]), heads):
            for t in range(len(codes)):
                query = turned(q[t, part], t)
                logits = [query @ turned(k[s, part], s) for s in range(t + 1)]
                share = np.exp(np.array(logits) / np.sqrt(len(part)))
                found[t, part] = share @ v[: t + 1, part] / share.sum()
        x = x + linear(found, f"{here}.attended")
        up = linear(norm(x, f"{here}.between"), f"{here}.up")
        x = x + linear(up * (1 + erf(up / np.sqrt(2))) / 2, f"{here}.down")
    x = norm(x, "norm")
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("layers", [1, 3])
def test_the_network_is_a_transformer(heads, layers):
    config = SequenceConfig(width=8, heads=heads, layers=layers)
    network = sequence_network.fresh(9, 0, config)
    sequence_network.initialised(network, torch.Generator().manual_seed(0))
    network = network.double().requires_grad_(False)
    for weight in network.parameters():  # far from the start, where all is nearly linear
        weight.mul_(8).add_(0.1)
    codes = np.array([3, 1, 4, 1, 5, 8, 2])
    items = network.items(None)
    wanted = slow_state(network, items.numpy(), codes, heads)
    rows = torch.tensor(np.stack([codes, codes]))
    np.testing.assert_allclose(network.states(items, rows)[0].numpy(), wanted, atol=1e-10)
    lengths = torch.tensor([7, 4])
    got = network.last_states(items, rows, lengths).numpy()
    np.testing.assert_allclose(got, wanted[[6, 3]], atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_the_mean_and_draws_from_its_own_generator(dtype):
    before = torch.random.get_rng_state()
    drop = sequence_network.Dropout(0.25, torch.Generator().manual_seed(0))
    x = torch.ones(3, 33_333, dtype=dtype)
    got = drop(x)
    assert got.dtype == dtype
    assert got.shape == x.shape
    kept = torch.tensor(4 / 3).to(dtype).item()
    assert set(got.unique().tolist()) == {0.0, kept}
    assert (got > 0).float().mean(1).tolist() == pytest.approx([0.75] * 3, abs=0.01)
    assert (drop(x) != got).any()
    assert (torch.random.get_rng_state() == before).all()
    assert sequence_network.Dropout(0.0, torch.Generator())(x) is x


# What it learns


def test_it_learns_what_comes_next(learnt):
    queries = Queries(circles(20, events=5, seed=1), I)
    wanted = (queries.histories.items[queries.histories.indptr[1:] - 1] + 1) % I
    np.testing.assert_array_equal(learnt.recall(queries, 1).items[:, 0], wanted)


def test_only_the_newest_events_are_read(learnt):
    long = circles(10, events=15, seed=2)
    short = replace(long, items=long.items)
    wanted = learnt.user_vectors(Queries(short.newest(8), I))
    np.testing.assert_array_equal(learnt.user_vectors(Queries(long, I)), wanted)
    assert (learnt.user_vectors(Queries(long.newest(7), I)) != wanted).any()


def test_scores_are_products_of_the_vectors(model):
    queries = Queries(circles(5, events=4), I)
    users = model.user_vectors(queries)
    np.testing.assert_allclose(
        np.linalg.norm(users, axis=1), 1 / model.config.temperature, rtol=1e-6
    )
    np.testing.assert_allclose(np.linalg.norm(model.item_vectors, axis=1), 1, rtol=1e-6)
    wanted = users.astype(np.float64) @ model.item_vectors.T.astype(np.float64)
    np.testing.assert_allclose(every_score(model, queries), wanted, atol=1e-5)


def test_nothing_is_known_of_an_empty_history_and_of_items_without_events():
    histories = Ragged.from_rows([*([row[row != 7] for row in np.split(circles().items, 60)]), []])
    model = SequenceRecall(8, epochs=1, **TINY).fit(Data(histories))
    assert not model.item_vectors[7].any()
    assert model.item_vectors[np.arange(I) != 7].any(axis=1).all()
    queries = Queries(Ragged.from_rows([[], [7], [1, 7]]), I)
    assert not model.user_vectors(queries)[0].any()
    assert not every_score(model, queries)[:, 7].any()


def test_seeds_decide_and_torch_is_left_as_it_was():
    torch.manual_seed(123)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    one = SequenceRecall(8, epochs=1, threads=1, **TINY).fit(Data(circles()))
    torch.rand(3)
    two = SequenceRecall(8, epochs=1, threads=1, **TINY).fit(Data(circles()))
    other = SequenceRecall(8, epochs=1, threads=1, seed=1, **TINY).fit(Data(circles()))
    np.testing.assert_array_equal(one.item_vectors, two.item_vectors)
    assert (one.item_vectors != other.item_vectors).any()
    torch.random.set_rng_state(before)
    SequenceRecall(8, epochs=1, threads=1, **TINY).fit(Data(circles()))
    assert (torch.random.get_rng_state() == before).all()
    assert torch.get_num_threads() == threads


def test_low_precision_learns_the_same():
    settings = {**TINY, "precision": "bf16"}
    model = SequenceRecall(16, epochs=30, learning_rate=1e-2, **settings).fit(Data(circles()))
    queries = Queries(circles(20, events=5, seed=1), I)
    wanted = (queries.histories.items[queries.histories.indptr[1:] - 1] + 1) % I
    assert (model.recall(queries, 1).items[:, 0] == wanted).mean() > 0.9


# Refit


def test_a_refit_goes_on_from_where_it_was(learnt):
    model = SequenceRecall(16, epochs=30, learning_rate=1e-2, refit_epochs=1, **TINY)
    model.fit(Data(circles()))
    old = model.item_vectors
    np.testing.assert_array_equal(old, learnt.item_vectors)
    model.refit(Data(circles(80, seed=4)))
    assert (model.item_vectors != old).any()
    assert (model.item_vectors * old).sum(axis=1).min() > 0.9


def test_a_refit_learns_items_that_were_new():
    histories = Ragged.from_rows([row[row < 15] for row in np.split(circles().items, 60)])
    model = SequenceRecall(16, epochs=5, refit_epochs=30, learning_rate=2e-2, **TINY)
    model.fit(Data(histories, 15))
    model.add_items(None, 3)
    model.refit(Data(circles()))
    queries = Queries(circles(20, events=5, seed=1), I)
    wanted = (queries.histories.items[queries.histories.indptr[1:] - 1] + 1) % I
    assert (model.recall(queries, 1).items[:, 0] == wanted).mean() > 0.9
    with pytest.raises(InputError, match=r"data has 19 items; 'sequence' knows 20"):
        model.refit(Data(Ragged.from_rows([[0, 1]]), 19))


def test_a_refit_keeps_items_whose_events_are_gone(learnt):
    model = SequenceRecall(16, epochs=2, refit_epochs=1, **TINY).fit(Data(circles()))
    old = model.item_vectors
    model.refit(Data(Ragged.from_rows([[0, 1, 2]] * 5)))
    np.testing.assert_array_equal(model.item_vectors[3:], old[3:])
    assert (model.item_vectors[:3] != old[:3]).any()


def test_a_failed_refit_changes_nothing(model):
    before = model.item_vectors
    with pytest.raises(InputError, match="two events"):
        model.refit(Data(Ragged.from_rows([[1], []])))
    assert model.item_vectors is before


# Texts


@pytest.fixture(scope="module")
def reads(tiny_encoder):
    """Items 15 to 19 have no events; the last has no text either."""
    texts = [f"heat {item}" if item % 2 else f"fargo {item}" for item in range(I - 1)] + [""]
    histories = Ragged.from_rows([row[row < 15] for row in np.split(circles().items, 60)])
    model = SequenceRecall(8, epochs=2, encoder=tiny_encoder, **TINY)
    return model.fit(Data(histories, I, texts)), texts, histories


def test_a_cold_item_has_the_place_of_its_text(reads):
    model, texts, _ = reads
    assert model.item_vectors[15:19].any(axis=1).all()
    assert not model.item_vectors[19].any()
    grown = __import__("copy").copy(model)
    grown.add_items([texts[16], "", texts[3]], 3)
    np.testing.assert_array_equal(grown.item_vectors[20], model.item_vectors[16])
    assert not grown.item_vectors[21].any()
    # An item that was met is more than its text.
    assert (grown.item_vectors[22] != model.item_vectors[3]).any()
    assert len(model.item_vectors) == I


def test_a_cold_item_in_a_history_is_read(reads):
    model, _, _ = reads
    one, two = model.user_vectors(Queries(Ragged.from_rows([[1, 16], [1, 17]]), I))
    assert (one != two).any()


def test_texts_known_already_are_not_read_again(reads, monkeypatch, tmp_path):
    model, texts, histories = reads
    model.save_files(tmp_path / "stage")
    loaded = SequenceRecall.load_files(tmp_path / "stage")
    monkeypatch.setattr("hybridrec.recall.text.encode_texts", None)
    loaded.refit(Data(histories, I, texts))
    with pytest.raises(TypeError):
        loaded.refit(Data(histories, I + 1, [*texts, "new"]))


def test_an_encoder_needs_texts_and_texts_need_an_encoder(tiny_encoder):
    with pytest.raises(InputError, match=r"'sequence' has an encoder and the data has no item"):
        SequenceRecall(8, encoder=tiny_encoder).fit(Data(circles()))
    model = SequenceRecall(8, epochs=1, **TINY).fit(Data(circles(), I, ["heat"] * I))
    model.add_items(["heat"], 1)
    assert not model.item_vectors[I].any()


# Refusals


def test_unordered_histories_are_refused(model):
    with pytest.raises(FitError, match=r"'sequence' was given interactions without an order.*time"):
        SequenceRecall().fit(Data(circles(), ordered=False))
    queries = Queries(circles(2), I, ordered=False)
    for ask in (
        lambda: model.recall(queries, 3),
        lambda: model.score(queries, np.zeros((2, 1), np.int32)),
        lambda: model.user_vectors(queries),
    ):
        with pytest.raises(InputError, match="'sequence' was asked with unordered histories"):
            ask()


def test_nothing_to_learn_from_is_said():
    for rows in ([[], []], [[1], [2]]):
        with pytest.raises(InputError, match=r"no history of data has two events: 'sequence'"):
            SequenceRecall().fit(Data(Ragged.from_rows(rows)))


def test_a_loss_that_is_lost_is_said():
    with pytest.raises(
        FitError, match=r"loss of epoch \d is nan; lower learning_rate \(now 1e\+30"
    ):
        SequenceRecall(8, epochs=5, learning_rate=1e30, **TINY).fit(Data(circles()))


@pytest.mark.parametrize(
    ("setting", "value", "kind", "message"),
    [
        ("width", 0, InputError, "width is 0; wanted a whole number >= 1"),
        ("width", 6, InputError, "width is 6 and heads 2; wanted a multiple of 4"),
        ("layers", 1.5, InputTypeError, r"layers is 1\.5"),
        ("heads", 0, InputError, "heads is 0"),
        ("max_length", 0, InputError, "max_length is 0"),
        ("dropout", 1.0, InputError, r"dropout is 1\.0; wanted a finite number"),
        ("temperature", 0.01, InputError, r"temperature is 0\.01; wanted a finite number >= 0\.02"),
        ("epochs", 0, InputError, "epochs is 0"),
        ("refit_epochs", 0, InputError, "refit_epochs is 0"),
        ("learning_rate", 0, InputError, "learning_rate is 0"),
        ("weight_decay", -1, InputError, "weight_decay is -1"),
        ("batch_size", 0, InputError, "batch_size is 0"),
        ("precision", "int8", InputError, "precision is 'int8'; wanted one of 'auto'"),
        ("encoder", "", InputTypeError, "encoder is ''; wanted a word or path"),
        ("index", None, InputTypeError, "index is None; wanted a word or path"),
        ("device", "gpu", InputError, "device is 'gpu'; wanted one of 'cpu'"),
        ("threads", 0, InputError, "threads is 0"),
        ("seed", -1, InputError, "seed is -1"),
        ("name", "", InputTypeError, "name is ''"),
    ],
)
def test_wrong_settings_are_refused(setting, value, kind, message):
    with pytest.raises(kind, match=message):
        SequenceRecall(**{setting: value})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="device is 'cuda', but torch sees no GPU"):
        SequenceRecall(device="cuda").fit(Data(circles()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_it_learns_on_a_gpu():
    model = SequenceRecall(16, epochs=30, learning_rate=1e-2, device="cuda", **TINY)
    model.fit(Data(circles()))
    queries = Queries(circles(20, events=5, seed=1), I)
    wanted = (queries.histories.items[queries.histories.indptr[1:] - 1] + 1) % I
    np.testing.assert_array_equal(model.recall(queries, 1).items[:, 0], wanted)


def test_without_torch_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"'torch'.*hybridrec\[llm\]"):
        SequenceRecall().fit(Data(circles()))


def test_a_model_is_loaded_and_its_items_known_without_torch(model, tmp_path):
    model.save_files(tmp_path / "stage")
    code = (
        "import sys, pathlib; from hybridrec import SequenceRecall\n"
        f"model = SequenceRecall.load_files(pathlib.Path({str(tmp_path / 'stage')!r}))\n"
        "print(model.item_vectors.shape, 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "(20, 8) False"


# In an engine


def test_in_an_engine_saved_and_loaded(dataset, tmp_path):
    recallers = [SequenceRecall(8, epochs=2, refit_epochs=1, **TINY), hr.ItemTransitions()]
    engine = hr.HybridRecommender(recallers, fusion=LinearFusion()).fit(dataset)
    wanted = engine.recommend(["u1", "u2"], k=5)
    engine.save(tmp_path / "model", histories=True)
    found = hr.load(tmp_path / "model").recommend(["u1", "u2"], k=5)
    assert found.equals(wanted)


def test_torch_stands_behind_two_doors():
    code = "import sys, hybridrec; hybridrec.SequenceRecall(); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
