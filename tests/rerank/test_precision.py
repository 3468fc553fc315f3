"""Copies of a model that multiply in fewer bits: near the original, and not the original."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from hybridrec import _core  # noqa: E402
from hybridrec.rerank import precision  # noqa: E402


@pytest.fixture(scope="module")
def model():
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=128, num_labels=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.BertForSequenceClassification(config).eval()


def hidden(model):
    with torch.inference_mode():
        return model.base_model(input_ids=torch.arange(40)[None]).last_hidden_state


def apart(got, wanted):
    return float((got - wanted).norm() / wanted.norm())


LOW = [
    pytest.param(
        precision.in_8_bits, _core.Linear8,
        marks=pytest.mark.skipif(not _core.has_linear8, reason="no 8-bit products here"),
    ),
    pytest.param(
        precision.in_bf16, _core.Linear16,
        marks=pytest.mark.skipif(not _core.has_linear16, reason="no compiled bfloat16 here"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "kind"), LOW)
def test_fewer_bits_are_near_the_original_and_leave_it_alone(model, make, kind):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted = hidden(model)
    low = make(model)
    assert 1e-5 < apart(hidden(low), wanted) < 0.05
    # Two layers, each of query, key, value, the attention's output and a feed-forward part.
    kinds = [type(module) for module in low.modules()]
    assert kinds.count(precision.LowLinear) == 6
    assert kinds.count(precision.NormedLinear) == kinds.count(precision.FeedForward) == 2
    assert torch.nn.Linear not in {type(module) for module in low.base_model.encoder.modules()}
    layers = [module._layer for module in low.modules() if hasattr(module, "_layer")]
    assert {type(layer) for layer in layers} == {kind}
    assert type(low.base_model.pooler.dense) is torch.nn.Linear
    assert low.classifier.weight is model.classifier.weight
    torch.testing.assert_close(hidden(model), wanted, rtol=0, atol=0)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@pytest.mark.skipif(not _core.has_linear32, reason="no fused float32 here")
def test_fused_float32_is_the_original_to_its_rounding(model):
    wanted = hidden(model)
    fused = precision.in_fp32(model)
    assert apart(hidden(fused), wanted) < 1e-6
    kinds = [type(module) for module in fused.modules()]
    assert kinds.count(precision.NormedLinear) == kinds.count(precision.FeedForward) == 2
    # What is not fused is not copied: query, key and value.
    assert kinds.count(precision.LowLinear) == 0
    layers = [model.base_model.encoder.layer[0], fused.base_model.encoder.layer[0]]
    assert layers[0].attention.self.query.weight is layers[1].attention.self.query.weight


def test_float32_is_the_model_itself_where_nothing_is_fused(model, monkeypatch):
    monkeypatch.setattr(_core, "has_linear32", False)
    assert precision.in_fp32(model) is model


def test_bfloat16_by_torch_where_the_core_cannot(model, monkeypatch):
    wanted = hidden(model)
    monkeypatch.setattr(_core, "has_linear16", False)
    low = precision.in_bf16(model)
    assert 1e-5 < apart(hidden(low), wanted) < 0.05
    assert sum(isinstance(module, precision.TorchLinear16) for module in low.modules()) == 12


@pytest.mark.parametrize(("make", "kind"), LOW)
def test_another_gelu_is_not_taken_for_the_exact_one(model, make, kind):
    config = transformers.BertConfig(**{**model.config.to_dict(), "hidden_act": "gelu_new"})
    other = transformers.BertForSequenceClassification(config).eval()
    low = make(other)
    assert apart(hidden(low), hidden(other)) < 0.05
    # The two hardly differ, so being near is not enough: none was fused.
    kinds = [type(module) for module in low.modules()]
    assert sum("GELU" in kind.__name__ for kind in kinds) == 2
    assert kinds.count(precision.FeedForward) == 0
    assert kinds.count(precision.NormedLinear) == 4
