"""Every option of a fine-tuning does what it says, on a rule that only the pair tells."""

import os

import numpy as np
import pytest
from colours import colour_work, encoder
from hypothesis import given
from hypothesis import strategies as st

from hybridrec.checks import InputError, MissingExtraError
from hybridrec.ragged import Ragged
from hybridrec.rerank.finetune_config import FineTuning
from hybridrec.rerank.sampling import Draws, mean_ndcg, shortened


def weights(model):
    return {name: t.clone() for name, t in model._network().model.state_dict().items()}


def distance(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def tuned(tiny_model, n=32, **settings):
    model = encoder(tiny_model, **settings)
    return model, model.finetune(*colour_work(n, 0))


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "pairwise"},
        {"loss": "pointwise"},
        {"average": "ema"},
        {"drop": 0.3, "crop": 0.3},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_it_learns_with(tiny_model, settings):
    model = encoder(tiny_model, **settings)
    queries, candidates, targets = colour_work(40, 1)
    before = mean_ndcg(candidates.items, model.score(queries, candidates.items), targets)
    log = model.finetune(*colour_work(160, 0))
    after = mean_ndcg(candidates.items, model.score(queries, candidates.items), targets)
    assert log.steps == 120
    assert log.losses[-1] < log.losses[0]
    assert after > max(0.8, before + 0.1)


def test_accumulated_batches_are_one_larger_batch(tiny_model):
    # 20 lists: the last step has 4, which is one batch of 4 or two of 2.
    one, log = tuned(tiny_model, 20, optimizer="sgd", dropout=0.0, batch_size=8, epochs=2)
    two, other = tuned(
        tiny_model, 20, optimizer="sgd", dropout=0.0, batch_size=4, accumulation=2, epochs=2
    )  # fmt: skip
    assert log.steps == other.steps == 6
    assert (
        distance(weights(one), weights(two))
        < 1e-5
        < distance(weights(one), weights(encoder(tiny_model)))
    )
    np.testing.assert_allclose(log.losses, other.losses, rtol=1e-4)


def test_weight_decay_spares_biases_and_norms_and_the_head_is_faster(tiny_model):
    from pathlib import Path

    from hybridrec.rerank.progress import Progress
    from hybridrec.rerank.trainer import Lists, ListTrainer
    from hybridrec.rerank.tuning import Tuning

    model = encoder(tiny_model)._network().model
    config = FineTuning(weight_decay=0.3, learning_rate=1e-3)
    tuning = Tuning(model, config, ("classifier.",), 10)
    queries, candidates, targets = colour_work(4, 0)
    draws = Draws(
        candidates.items, targets, queries.histories,
        history=4, tuning=config, seed=0, tokens=None,
    )  # fmt: skip
    trainer = ListTrainer(
        Lists(model, None, "listwise"), draws, tuning, Progress(tuning, config, None),
        config=config, seed=0, folder=Path("unused-folder"), use_cpu=True,
    )  # fmt: skip
    os.rmdir("unused-folder")
    names = {id(p): name for name, p in model.named_parameters()}
    seen = set()
    for group in trainer.create_optimizer().param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.add(name)
            spared = name.endswith("bias") or "LayerNorm" in name
            assert group["weight_decay"] == (0.0 if spared else 0.3), name
            assert group["lr"] == pytest.approx(1e-2 if "classifier" in name else 1e-3), name
    assert seen == set(names.values())
    trainer.create_scheduler(100)
    rates = []
    for _ in range(100):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert np.argmax(rates) == 9
    assert rates[0] == pytest.approx(rates[9] / 10)
    assert np.diff(rates[9:]).max() < 0 < rates[-1] < rates[9] / 50
    tuning.finish()


def test_an_average_is_what_it_says(tiny_model):
    from hybridrec.rerank.progress import Average
    from hybridrec.rerank.tuning import Tuning

    model = encoder(tiny_model)._network().model
    tuning = Tuning(model, FineTuning(tune="head"), ("classifier.",), 10)
    kinds = {kind: Average(kind, tuning) for kind in ("ema", "epochs", "none")}
    values, ema = [2.0, 5.0, 11.0], 0.0
    for count, value in enumerate(values):
        for parameter in tuning.trainable().values():
            parameter.data.fill_(value)
        for average in kinds.values():
            average.stepped()
            average.ended()
        kept = min(0.99, (1 + count) / (10 + count)) if count else 0.0
        ema = kept * ema + (1 - kept) * value
    for kind, wanted in (("ema", ema), ("epochs", np.mean(values)), ("none", 11.0)):
        with kinds[kind].applied():
            assert float(model.classifier.bias.detach()) == pytest.approx(wanted, rel=1e-6), kind
        assert float(model.classifier.bias.detach()) == 11.0


def test_the_average_is_what_is_kept(tiny_model):
    plain, _ = tuned(tiny_model, epochs=2)
    ends, _ = tuned(tiny_model, epochs=2, average="epochs")
    first, _ = tuned(tiny_model, epochs=1)
    assert distance(weights(plain), weights(ends)) > 1e-4
    assert distance(weights(first), weights(ends)) > 1e-4


def test_fgm_steps_up_the_gradient_and_back(tiny_model, monkeypatch):
    from hybridrec.rerank.network import Network

    met, trainable = [], Network.trainable_scores

    def watched(self, *args):
        met.append(self.model.get_input_embeddings().weight.detach().clone())
        return trainable(self, *args)

    monkeypatch.setattr(Network, "trainable_scores", watched)
    _, log = tuned(tiny_model, 16, adversarial=0.5, epochs=1, learning_rate=1e-6, dropout=0.0)
    assert len(met) == 2 * log.steps == 4
    for clean, disturbed in zip(met[::2], met[1::2], strict=True):
        assert float((disturbed - clean).norm()) == pytest.approx(0.5, rel=1e-4)
    assert float((met[2] - met[0]).abs().max()) < 1e-4  # a step of the optimiser, no more
    _, plain = tuned(tiny_model, 16, epochs=1, learning_rate=1e-6, dropout=0.0)
    np.testing.assert_allclose(log.losses, plain.losses, rtol=1e-4)  # of clean batches alone


def test_dropout_is_set_for_the_training_only(tiny_model):
    from torch import nn

    model = encoder(tiny_model, dropout=0.5, epochs=1)
    network = model._network().model
    chances = [m.p for m in network.modules() if isinstance(m, nn.Dropout)]
    same = [encoder(tiny_model, dropout=chance, epochs=1) for chance in (0.0, 0.5)]
    for other in (model, *same):
        other.finetune(*colour_work(16, 0))
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == chances
    assert distance(weights(model), weights(same[1])) == 0
    assert distance(weights(model), weights(same[0])) > 1e-4


def test_it_stops_when_patience_is_over(tiny_model):
    queries, candidates, _ = colour_work(40, 1)
    model = encoder(tiny_model, patience=2)
    untrained = model.score(queries, candidates.items)
    first = candidates.reordered(untrained).items[:, 0]
    log = model.finetune(*colour_work(80, 0), held_out=(queries, candidates, first))
    assert log.held_out[0] == 1.0
    assert len(log.held_out) == 3
    assert log.steps == 20  # two of six epochs
    assert log.kept_epoch == 0
    np.testing.assert_array_equal(model.score(queries, candidates.items), untrained)


@given(
    st.integers(0, 12), st.floats(0, 0.99), st.floats(0, 0.99), st.integers(0, 5)
)  # fmt: skip
def test_a_shortened_history_keeps_its_order_and_an_event(n, drop, crop, seed):
    events = np.arange(n, dtype=np.int32)
    left = shortened(events, drop, crop, np.random.default_rng(seed))
    assert (np.diff(left) > 0).all()
    assert len(left) >= min(n, 1)
    assert np.isin(left, events).all()
    if len(left):
        assert left[-1] - left[0] < n - int(crop * n)  # a stretch, however much is dropped of it
    if not drop:
        assert len(left) == n - int(crop * n) or n == 0
        assert (np.diff(left) == 1).all()


def test_crops_are_anywhere_and_drops_hit_every_event():
    rng, events = np.random.default_rng(0), np.arange(8, dtype=np.int32)
    starts = {int(shortened(events, 0.0, 0.5, rng)[0]) for _ in range(200)}
    assert starts == {0, 1, 2, 3, 4}
    counts = np.zeros(8)
    for _ in range(4000):
        counts[shortened(events, 0.25, 0.0, rng)] += 1
    np.testing.assert_allclose(counts / 4000, 0.75, atol=0.04)


def test_draws_follow_from_seed_epoch_and_row_alone():
    _, candidates, targets = colour_work(9, 0)
    histories = Ragged.from_rows([np.arange(9)] * 9)

    def draws(seed=0, **settings):
        tuning = FineTuning(negatives=2, drop=0.5, **settings)
        return Draws(
            candidates.items, targets, histories,
            history=6, tuning=tuning, seed=seed, tokens=lambda rows, lists: 10 * (rows + 1),
        )  # fmt: skip

    whole, parts = draws(), draws()
    together = whole.batch([3, 4, 5])
    parts.batch([8])
    apart = [parts.batch([row]) for row in (3, 4, 5)]
    for name in ("lists", "labels"):
        np.testing.assert_array_equal(
            together[name], np.concatenate([part[name] for part in apart])
        )  # fmt: skip
    rows = [part["histories"].items.tolist() for part in apart]
    assert together["histories"].items.tolist() == [item for row in rows for item in row]
    assert min(together["histories"].items) >= 3  # the newest six count
    np.testing.assert_array_equal(together["lists"][:, 0], targets[[3, 4, 5]])
    assert sorted(whole) == list(range(9))
    first = list(whole)
    whole.epoch = 1
    assert list(whole) != first
    assert not np.array_equal(whole.batch([3, 4, 5])["lists"], together["lists"])
    assert list(draws(seed=1)) != first


def test_parts_hold_at_most_so_many_tokens():
    _, candidates, targets = colour_work(9, 0)
    histories = Ragged.from_rows([np.arange(9)] * 9)
    for drop in (0.0, 0.5):
        draws = Draws(
            candidates.items, targets, histories, history=6, seed=0,
            tuning=FineTuning(drop=drop), tokens=lambda rows, lists: 10 * (rows + 1),
        )  # fmt: skip
        batch = draws.batch([0, 1, 2, 8, 3])
        parts = draws.parts(batch, 60)
        assert [part["rows"].tolist() for part in parts] == [[0, 1, 2], [8], [3]]
        assert [part["share"] for part in parts] == [0.6, 0.2, 0.2]
        for name in ("lists", "labels"):
            joined = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(joined, batch[name])
        assert (batch["histories"] is None) == (not drop)
        if drop:
            rows = np.concatenate([part["histories"].items for part in parts])
            np.testing.assert_array_equal(rows, batch["histories"].items)
        assert len(draws.parts(batch, 1000)) == 1


def test_parts_of_a_batch_add_up_to_it(tiny_model, monkeypatch):
    from hybridrec.rerank import trainer

    settings = {"optimizer": "sgd", "dropout": 0.0, "epochs": 2, "adversarial": 0.1}
    one, log = tuned(tiny_model, 20, **settings)
    monkeypatch.setitem(trainer.FORWARD_TOKENS, "cpu", 50)
    two, other = tuned(tiny_model, 20, **settings)
    assert log.steps == other.steps == 6
    assert (
        distance(weights(one), weights(two))
        < 1e-5
        < distance(weights(one), weights(encoder(tiny_model)))
    )
    np.testing.assert_allclose(log.losses, other.losses, rtol=1e-4)


def test_trackers_hear_of_losses_and_figures(tiny_model, monkeypatch):
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    heard = []

    class Recorder(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            heard.append(dict(logs))

    known = {**integration_utils.INTEGRATION_TO_CALLBACK, "recorder": Recorder}
    monkeypatch.setattr(integration_utils, "INTEGRATION_TO_CALLBACK", known)
    model = encoder(tiny_model, report_to="recorder", epochs=2)
    log = model.finetune(*colour_work(80, 0), held_out=colour_work(20, 1))
    assert [logs["eval_ndcg"] for logs in heard if "eval_ndcg" in logs] == list(log.held_out[1:])
    losses = [logs["loss"] for logs in heard if "loss" in logs]
    np.testing.assert_allclose(losses, log.losses, rtol=1e-5)  # an epoch is ten steps
    assert all({"learning_rate", "grad_norm"} <= set(logs) for logs in heard if "loss" in logs)


def test_a_tracker_that_is_not_there_is_named(tiny_model):
    model = encoder(tiny_model, report_to="tensorbored")
    with pytest.raises(InputError, match="report_to cannot be used: tensorbored"):
        model.finetune(*colour_work(8, 0))
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        model = encoder(tiny_model, report_to="tensorboard", checkpoints="runs")
        with pytest.raises(MissingExtraError, match="report_to cannot be used: TensorBoard"):
            model.finetune(*colour_work(8, 0))


def test_nothing_is_printed_left_behind_or_changed(tiny_model, tmp_path, monkeypatch, capfd):
    import random
    import tempfile

    from accelerate.state import PartialState
    from transformers.utils import logging as hf_logging

    monkeypatch.chdir(tmp_path)
    (tmp_path / "passing").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "passing"))
    model = encoder(tiny_model, epochs=1)
    model.score(colour_work(1, 0)[0], np.array([[0]]))
    random.seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), dict(os.environ)  # noqa: NPY002
    shared, level = dict(PartialState._shared_state), hf_logging.get_verbosity()
    capfd.readouterr()
    model.finetune(*colour_work(16, 0), held_out=colour_work(8, 1))
    assert capfd.readouterr() == ("", "")
    assert before == (
        random.getstate(), np.random.get_state()[1].tolist(), dict(os.environ)  # noqa: NPY002
    )  # fmt: skip
    assert PartialState._shared_state == shared
    assert hf_logging.get_verbosity() == level
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "passing"]
