"""Which weights learn, what comes out, and that it comes back from a file."""

import numpy as np
import pytest
from colours import colour_work, encoder

from hybridrec.checks import InputError, StorageError
from hybridrec.rerank.cross_encoder import CrossEncoder

TUNES = ["full", "head", "last:1", "last:2", "lora", "adalora", "adapter", "prefix"]
ADDED = {"adapter", "prefix"}
FAST = {"learning_rate": 1e-2, "dropout": 0.1}


def state(model):
    return {name: t.clone() for name, t in model._network().model.state_dict().items()}


def moved(before, after):
    return {name for name in before if not before[name].equal(after[name])}


@pytest.mark.parametrize("tune", TUNES)
def test_it_trains_what_it_says_and_comes_back(tiny_model, tmp_path, tune):
    from torch import nn

    model = encoder(tiny_model, tune=tune, epochs=2, rank=4, **FAST)
    network = model._network().model
    kind, before = type(network), state(model)
    queries, candidates, _ = colour_work(20, 1)
    untrained = model.score(queries, candidates.items)
    model.finetune(*colour_work(32, 0))
    scores, after = model.score(queries, candidates.items), state(model)
    assert type(model._network().model) is kind
    assert model._network().model is network
    assert not hasattr(network, "peft_config")
    assert all(p.requires_grad for p in network.parameters())
    assert np.abs(scores - untrained).max() > 1e-3

    changed = moved(before, after) if tune not in ADDED else set()
    layer = "bert.encoder.layer."
    if tune == "head":
        assert changed == {"classifier.weight", "classifier.bias"}
    elif tune == "last:1":
        assert not any(name.startswith((f"{layer}0", "bert.embeddings")) for name in changed)
    elif tune == "last:2":
        assert not any(name.startswith("bert.embeddings") for name in changed)
    elif tune in ("lora", "adalora"):
        body = {name for name in changed if not name.startswith("classifier.")}
        assert {f"{layer}0.output.dense.weight", f"{layer}1.attention.self.key.weight"} <= body
        assert all(name.startswith(layer) and name.endswith(".weight") for name in body)
        assert not any("LayerNorm" in name for name in body)
        assert set(before) == set(after)
    elif tune == "adapter":
        own = {name for name in after if "adapter_down" in name or "adapter_up" in name}
        assert len(own) == 2 * 4
        plain = {name.replace("adapter_base.", ""): t for name, t in after.items()}
        body = moved(before, plain)
        assert body == {"classifier.weight", "classifier.bias"}
        assert all(after[name].any() for name in own)
    elif tune == "prefix":
        states = {f"{layer}{i}.attention.self.learnt_states" for i in (0, 1)}
        assert set(after) - set(before) == {
            f"{name}.{part}" for name in states for part in ("keys", "values")
        }
        assert all(after[f"{name}.keys"].shape == (4, 4, 8) for name in states)
        assert moved(before, {name: after[name] for name in before}) == {
            "classifier.weight", "classifier.bias",
        }  # fmt: skip

    model.save_files(tmp_path / "model")
    loaded = CrossEncoder.load_files(tmp_path / "model")
    np.testing.assert_allclose(
        loaded.score(queries, candidates.items), scores, rtol=1e-5, atol=1e-6
    )  # fmt: skip
    assert moved(after, state(loaded)) == set()
    assert type(loaded._network().model.classifier) is nn.Linear
    if tune != "adapter":
        from transformers import AutoModelForSequenceClassification

        folder = tmp_path / "model"
        _, report = AutoModelForSequenceClassification.from_pretrained(
            folder, output_loading_info=True
        )
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]


@pytest.mark.parametrize("tune", ["adalora", "adapter", "prefix"])
def test_the_loss_falls(tiny_model, tune):
    model = encoder(tiny_model, tune=tune, rank=8, epochs=4, learning_rate=1e-2, dropout=0.0)
    log = model.finetune(*colour_work(80, 0))
    assert log.losses[-1] < log.losses[0]


@pytest.mark.parametrize("tune", ["lora", "last:1"])
def test_it_learns(tiny_model, tune):
    model = encoder(tiny_model, tune=tune, rank=8, epochs=8, learning_rate=1e-2, dropout=0.0)
    log = model.finetune(*colour_work(120, 0), held_out=colour_work(40, 1))
    assert log.losses[-1] < log.losses[0]
    assert log.kept_epoch > 0
    assert max(log.held_out) > log.held_out[0] + 0.1


@pytest.mark.parametrize("tune", ["lora", "adalora"])
def test_what_is_merged_scores_as_what_was_trained(tiny_model, tune):
    import torch

    from hybridrec.rerank.finetune_config import FineTuning
    from hybridrec.rerank.tuning import Tuning

    network = encoder(tiny_model)._network().model
    tokens = torch.arange(5, 13)[None]
    plain = network(tokens).logits
    tuning = Tuning(network, FineTuning(tune=tune, rank=3), ("classifier.",), 10)
    for name, parameter in tuning.trainable().items():
        if "lora_" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(1), std=0.3)
    learnt = network(tokens).logits
    weights = {name: p.clone() for name, p in network.named_parameters()}
    with tuning.plain():
        merged = network(tokens).logits
        assert not any("lora" in name for name, _ in network.named_parameters())
    assert (merged - plain).abs().max() > 1e-2
    torch.testing.assert_close(merged, learnt, rtol=1e-4, atol=1e-5)
    assert all(weights[name].equal(p) for name, p in network.named_parameters())
    tuning.finish()
    assert network(tokens).logits.equal(plain)


def test_adalora_deals_its_ranks_by_importance(tiny_model):
    from hybridrec.rerank import tuning as module

    seen = {}
    finish = module.Tuning.finish

    def watched(self):
        if self._peft is not None:
            pattern = self._peft.peft_config["default"].rank_pattern
            seen["kept"] = sum(sum(kept) for kept in pattern.values())
            seen["layers"] = len(pattern)
            ranks = [p for name, p in self.trainable().items() if "lora_E" in name]
            seen["values"] = sum(int((p != 0).sum()) for p in ranks)
        finish(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.Tuning, "finish", watched)
        encoder(tiny_model, tune="adalora", rank=2, epochs=3).finetune(*colour_work(40, 0))
    assert seen["layers"] == 12
    assert seen["values"] <= seen["kept"] == 2 * 12  # of 3 * 12 at first


def test_adapters_can_be_trained_on_and_not_lost(tiny_model, tmp_path):
    model = encoder(tiny_model, tune="adapter", rank=4, epochs=1, **FAST)
    model.finetune(*colour_work(16, 0))
    first = state(model)
    model.finetune(*colour_work(16, 2))
    assert set(state(model)) == set(first)
    assert moved(first, state(model))
    model.save_files(tmp_path)
    (tmp_path / "adapters.safetensors").unlink()
    with pytest.raises(StorageError, match="lacks their file adapters"):
        CrossEncoder.load_files(tmp_path)


def test_more_layers_than_there_are_is_an_error(tiny_model):
    model = encoder(tiny_model, tune="last:3")
    with pytest.raises(InputError, match=r"'last:3' and the model has 2 layers"):
        model.finetune(*colour_work(8, 0))
