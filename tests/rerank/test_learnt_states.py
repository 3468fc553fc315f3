"""Prefix-tuning: every token of every text looks at the learnt states, however texts are read."""

import json

import numpy as np
import pytest
import torch
from colours import colour_work, encoder
from model_zoo import (
    CAUSALS,
    ENCODERS,
    ITEMS,
    NAMES,
    ROBERTA,
    TEXTS,
    agree,
    checkpoint,
    differ,
    plain_pairs,
    queries,
    reranker,
    tokenizer,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, DynamicCache, MPNetConfig

import hybridrec as hr
from hybridrec import _core
from hybridrec.checks import InputError, StorageError
from hybridrec.ragged import Ragged
from hybridrec.rerank import attention
from hybridrec.rerank.cross_encoder import CrossEncoder
from hybridrec.rerank.layout import Layout
from hybridrec.rerank.learnt_states import FILE, LearntStates, add_learnt_states, of_learnt_states
from hybridrec.rerank.packing import Piece, pack, pack_pairs, pair
from hybridrec.rerank.prompt import Frame, TokenTable

COUNT = 5
MASKS = [("one_way", name) for name in NAMES] + [("full", name) for name in ENCODERS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints with heads of their own, each made once."""
    made = {}

    def folder(name, **settings):
        key = (name, *settings)
        if key not in made:
            made[key] = checkpoint(tmp_path_factory.mktemp(name), name, **settings)
        return made[key]

    return folder


def led(model, count=COUNT):
    """The same model with learnt states that nobody could overlook."""
    network = model._network()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        add_learnt_states(network.model, count)
        for parameter in states_of(network.model).values():
            parameter.data.normal_()
    network.weights_changed()
    return model


def states_of(network):
    return {name: p for name, p in network.named_parameters() if of_learnt_states(name)}


@pytest.mark.parametrize(("mask", "name"), MASKS)
def test_however_texts_are_read_they_are_seen(folders, mask, name):
    """Compiled, kept, in torch, and pair by pair under the masks and windows of the family."""
    model = reranker(folders(name), mask=mask).prepare(TEXTS)
    plain = model.score(queries(), ITEMS)
    found = led(model).score(queries(), ITEMS)
    assert differ(found, plain)
    pairs = model.score_pairs(queries(), ITEMS)
    agree(found, pairs)
    assert len(model._network()._cache) == (len(ITEMS) if mask == "one_way" else 0)
    np.testing.assert_allclose(model.score(queries(), ITEMS), found, rtol=1e-5, atol=1e-5)
    learning = model._reading(queries()).trainable_scores(np.arange(len(ITEMS)), ITEMS)
    agree(learning.detach().numpy(), pairs)


@pytest.mark.parametrize("name", CAUSALS)
def test_it_is_what_a_cache_of_that_many_tokens_would_be(folders, name):
    """As peft does it: the unmodified forward behind past keys and values, no position moved."""
    # A cache behind a window would lose what the window hides: here there is none.
    mistral = {"mistral": {"sliding_window": None}, "mistral-open": {}}
    open_ = mistral.get(name, {"layer_types": ["full_attention"] * 3})
    folder = folders(name, **open_)
    model = led(reranker(folder).prepare(TEXTS))
    plain = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    learnt = [m for m in model._network().model.modules() if isinstance(m, LearntStates)]

    def score(ids):
        past = DynamicCache()
        for layer, own in enumerate(learnt):
            past.update(*(x.detach().transpose(0, 1)[None] for x in (own.keys, own.values)), layer)
        places = torch.arange(ids.shape[1])[None]
        body = plain.model(input_ids=ids, position_ids=places, past_key_values=past)
        return plain.score(body.last_hidden_state[0, -1])[0]

    agree(model.score(queries(), ITEMS), plain_pairs(model, score, queries()))


def slow_attention(texts, learnt, scale, causal, window, softcap):
    """Each token's mix, one by one: (query, places, keys, values, what the token stands at)."""
    mixed = []
    for query, places, keys, values, at in texts:
        away = places - at
        seen = np.ones(len(places), bool) if not causal else away <= 0
        if window:
            seen &= np.abs(away) < window
        k, v = (
            np.concatenate([own.detach().numpy(), theirs[seen]])
            for own, theirs in ((learnt.keys, keys), (learnt.values, values))
        )
        share = query.shape[0] // k.shape[1]
        k, v = (np.repeat(x, share, axis=1).astype(np.float64) for x in (k, v))
        scores = scale * np.einsum("hd,jhd->hj", query, k)
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        mixed.append(np.einsum("hj,jhd->hd", weights / weights.sum(axis=1, keepdims=True), v))
    return np.stack(mixed)


def token_by_token(laid, q, k, v, kept_k, kept_v):
    """What :func:`slow_attention` reads, from the blocks of a pack and what was kept."""
    start = before = 0
    for block in laid.blocks:
        if block.kept:
            stop = before + block.prefix
            prompt_k, prompt_v = kept_k[before:stop], kept_v[before:stop]
            before = stop
        else:
            prompt_k, prompt_v = (x[start : start + block.prefix] for x in (k, v))
            for place in range(block.prefix):
                yield q[start + place], np.arange(block.prefix), prompt_k, prompt_v, place
            start += block.prefix
        stop = start + sum(block.chunks)
        while start < stop:
            own = laid.asks[np.searchsorted(laid.asks, start, "right")] - start
            places = np.arange(block.prefix + own)
            keys, values = (
                np.concatenate([prompt, x[start : start + own]])
                for prompt, x in ((prompt_k, k), (prompt_v, v))
            )
            for i in range(own):
                yield q[start + i], places, keys, values, block.prefix + i
            start += own


def some_pack(kind, rng):
    table = TokenTable.framed(
        [rng.integers(3, 50, rng.integers(0, 9)).tolist() for _ in range(9)], Frame.plain(1, 2), 12
    )
    prompts = Ragged.from_rows([rng.integers(3, 50, n) for n in (9, 3, 14)])
    codes = rng.integers(0, 9, 40).astype(np.int32)
    if kind == "pairs":
        rows = np.repeat([0, 1, 2], [10, 1, 29])
        return pack_pairs(pair(prompts, rows, codes, table, one_way=False), COUNT), 0
    known = np.array([kind == "kept", False, kind == "kept"])
    pieces = [Piece(0, 0, 10), Piece(1, 10, 11), Piece(2, 11, 40)]
    laid = pack(pieces, prompts, codes, table, known, COUNT)
    return laid, int(prompts.lengths[known].sum())


@pytest.mark.parametrize("kind", ["pairs", "whole", "kept"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_no_mask_or_window_hides_them(monkeypatch, kind, causal, window, softcap):
    rng = np.random.default_rng(5)
    laid, more = some_pack(kind, rng)
    n = len(laid.tokens)
    q, k, v = (rng.standard_normal((n, heads, 8)).astype(np.float32) for heads in (4, 2, 2))
    before = rng.standard_normal((2, more, 2, 8)).astype(np.float32)
    layer = torch.nn.Module()
    layer.learnt_states = LearntStates(*(torch.randn(2, COUNT, 2, 8)))
    ends = np.cumsum([b.prefix for b in laid.blocks if b.kept])[:-1]
    kept = iter(zip(*(np.split(x, ends) for x in before), strict=True))
    states = [
        (tuple(map(torch.from_numpy, next(kept))),) if b.kept and more else None
        for b in laid.blocks
    ]  # fmt: skip
    wanted = slow_attention(
        token_by_token(laid, q, k, v, *before), layer.learnt_states, 0.3, causal, window, softcap
    )  # fmt: skip
    given = [torch.from_numpy(x).transpose(0, 1)[None] for x in (q, k, v)]
    compiled = []
    attend = _core.attend
    monkeypatch.setattr(_core, "attend", lambda *a, **o: compiled.append(1) or attend(*a, **o))
    for learning in (False, True):
        layout = Layout(laid, torch.device("cpu"), causal, kept=states)
        with torch.set_grad_enabled(learning):
            found, _ = attention.shared_prefix_attention(
                layer, *given, None, scaling=0.3, layout=layout,
                sliding_window=window, softcap=softcap,
            )  # fmt: skip
        np.testing.assert_allclose(found[0].detach().numpy(), wanted, rtol=1e-4, atol=1e-5)
        assert found.requires_grad == learning
    # A window that hides nothing is none, and one that does is torch's.
    assert len(compiled) == (softcap is None and window in (None, 100))


@pytest.mark.parametrize("name", ["bert", "modernbert", "qwen3", "gemma2"])
def test_gradients_are_those_of_the_pairs(folders, name):
    from hybridrec.rerank.shared_prefix import list_scores

    model = led(reranker(folders(name), mask="one_way").prepare(TEXTS))
    network, prompts = model._network(), model._reading(queries()).prompts
    found = []
    for packed in (True, False):
        network.model.zero_grad()
        scores = list_scores(
            network.model, prompts, ITEMS, model._table,
            family=network.family, one_way=True, packed=packed, budget=None,
        )  # fmt: skip
        real = scores[torch.from_numpy(ITEMS >= 0)]
        (real * torch.arange(1.0, len(real) + 1)).sum().backward()
        found.append({n: p.grad.clone() for n, p in states_of(network.model).items()})
    for label, grad in found[0].items():
        assert grad.abs().max() > 1e-3
        torch.testing.assert_close(grad, found[1][label], rtol=1e-3, atol=1e-3)


def test_a_forward_of_transformers_own_sees_them_causally(folders):
    """Without a mask the layer is causal by itself."""
    network = led(reranker(folders("llama")).prepare(TEXTS))._network().model
    ids = torch.arange(20, 30)[None]
    with torch.no_grad():
        whole = network.model(ids).last_hidden_state
        part = network.model(ids[:, :6]).last_hidden_state
        for own in (m for m in network.modules() if isinstance(m, LearntStates)):
            own.values.zero_()
        other = network.model(ids).last_hidden_state
    torch.testing.assert_close(whole[:, :6], part, rtol=1e-4, atol=1e-4)
    assert ((whole - other).abs().amax(dim=-1) > 1e-2).all()


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_fewer_bits_read_them(folders, name, precision):
    if precision == "int8" and not _core.has_linear8:
        pytest.skip("no 8-bit products here")
    # Layers narrower than 64 are not worth fewer bits.
    folder = folders(name, hidden_size=64, intermediate_size=96, initializer_range=0.1)
    scores = {}
    for kind in ("fp32", precision):
        model = hr.CrossEncoder(folder, device="cpu", precision=kind, mask="one_way").prepare(TEXTS)
        scores[kind, 0] = model.score(queries(), ITEMS)[ITEMS >= 0]
        scores[kind, 1] = led(model).score(queries(), ITEMS)[ITEMS >= 0]
    effect = np.abs(scores["fp32", 1] - scores["fp32", 0]).max()
    error = np.abs(scores[precision, 1] - scores["fp32", 1]).max()
    assert 0 < error < 0.2 * effect


@pytest.mark.parametrize("name", ["bert", "modernbert", "distilbert", "qwen2", "gemma2"])
def test_every_kind_of_family_learns_them_and_they_come_back(folders, tmp_path, name):
    tuning = {"tune": "prefix", "rank": 3, "epochs": 2, "learning_rate": 1e-2}
    model = reranker(folders(name), mask="one_way", finetuning=tuning).prepare(TEXTS)
    network = model._network().model
    body = {n: p.clone() for n, p in network.base_model.named_parameters()}
    asked = hr.Queries(Ragged.from_rows([[3], [0]]), len(TEXTS))
    lists = hr.Candidates.ranked(np.array([[0, 1, 5], [1, 3, 5]]), np.zeros((2, 3), np.float32))
    before = model.score(queries(), ITEMS)
    model.finetune(asked, lists, np.array([1, 5]))
    scores = model.score(queries(), ITEMS)
    assert differ(scores, before)
    agree(scores, model.score_pairs(queries(), ITEMS))
    for label, parameter in network.base_model.named_parameters():
        assert of_learnt_states(label) or parameter.equal(body[label])
    model.save_files(tmp_path)
    assert {tuple(x.shape[:1]) for x in load_file(tmp_path / FILE).values()} == {(3,)}
    loaded = CrossEncoder.load_files(tmp_path)
    np.testing.assert_allclose(loaded.score(queries(), ITEMS), scores, rtol=1e-5, atol=1e-5)


def test_they_start_small_and_drawn_from_the_seed(tiny_model):
    networks = [encoder(tiny_model)._network().model for _ in range(3)]
    for network, seed in zip(networks, (0, 0, 1), strict=True):
        torch.manual_seed(seed)
        add_learnt_states(network, 200)  # more than the model has positions
    first, again, other = (states_of(network) for network in networks)
    assert len(first) == 4
    for name, states in first.items():
        assert states.shape == (200, 4, 8)
        assert states.equal(again[name])
        if name.endswith("values"):
            assert not states.any()
            continue
        assert not states.equal(other[name])
        assert 0.019 < float(states.detach().std()) < 0.021
        assert len(states.flatten(1).unique(dim=0)) == 200  # else they would learn alike


def test_they_can_be_trained_on_and_are_left_alone_by_other_tunes(tiny_model, tmp_path):
    settings = {"rank": 4, "epochs": 1, "learning_rate": 1e-2}
    model = encoder(tiny_model, tune="prefix", **settings)
    model.finetune(*colour_work(16, 0))
    first = {name: p.clone() for name, p in states_of(model._network().model).items()}
    model.finetune(*colour_work(16, 2))
    second = {name: p.clone() for name, p in states_of(model._network().model).items()}
    assert set(first) == set(second)
    assert not any(first[name].equal(second[name]) for name in first)
    for tune, moves in (("lora", False), ("full", True)):
        model.save_files(tmp_path / tune)
        path = tmp_path / tune / "state.json"
        state = json.loads(path.read_text())
        state["settings"]["config"]["finetuning"]["tune"] = tune
        path.write_text(json.dumps(state))
        other = CrossEncoder.load_files(tmp_path / tune)
        other.finetune(*colour_work(16, 3))
        after = states_of(other._network().model)
        assert [after[name].equal(second[name]) for name in second] == [not moves] * len(second)
        asked, lists, _ = colour_work(8, 4)
        agree(other.score(asked, lists.items), other.score_pairs(asked, lists.items))


def test_another_number_of_them_is_refused(tiny_model, tmp_path):
    model = encoder(tiny_model, tune="prefix", rank=4, epochs=1)
    model.finetune(*colour_work(8, 0))
    model.save_files(tmp_path)
    other = encoder(str(tmp_path), tune="prefix", rank=5)
    with pytest.raises(
        InputError, match=r"rank is 5 and the model has 4 learnt states.*use rank=4"
    ):
        other.finetune(*colour_work(8, 0))


def test_a_file_that_is_missing_or_of_another_model_is_named(tiny_model, tmp_path):
    model = encoder(tiny_model, tune="prefix", rank=4, epochs=1)
    model.finetune(*colour_work(8, 0))
    model.save_files(tmp_path)
    path = tmp_path / FILE
    own = load_file(path)
    name = "bert.encoder.layer.1.attention.self.learnt_states.values"
    for found, words in (
        (
            {n: t for n, t in own.items() if n != name},
            rf"{name}' has shape None; wanted \(4, 4, 8\)",
        ),
        ({**own, name: own[name][:3]}, rf"{name}' has shape \(3, 4, 8\); wanted \(4, 4, 8\)"),
        ({**own, "x.learnt_states.keys": own[name].clone()}, r"\(4, 4, 8\); wanted None"),
    ):
        save_file({n: t.contiguous() for n, t in found.items()}, path)
        with pytest.raises(StorageError, match=f"are not of this model.*{words}"):
            CrossEncoder.load_files(tmp_path)
    path.write_bytes(b"nothing")
    with pytest.raises(StorageError, match="cannot"):
        CrossEncoder.load_files(tmp_path)
    path.unlink()
    with pytest.raises(StorageError, match=f"has learnt states and lacks their file {FILE}"):
        CrossEncoder.load_files(tmp_path)


def test_a_model_without_them_leaves_no_file_of_another(tiny_model, tmp_path):
    model = encoder(tiny_model, tune="prefix", rank=4, epochs=1)
    model.finetune(*colour_work(8, 0))
    model.save_files(tmp_path)
    assert (tmp_path / FILE).is_file()
    encoder(tiny_model).save_files(tmp_path)
    assert not (tmp_path / FILE).exists()
    CrossEncoder.load_files(tmp_path)


def test_an_attention_that_is_not_ours_is_refused_by_name(tmp_path):
    settings = MPNetConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=130, num_labels=1,
    )  # fmt: skip
    AutoModelForSequenceClassification.from_config(settings).save_pretrained(tmp_path)
    tokenizer(ROBERTA).save_pretrained(tmp_path)
    model = reranker(
        str(tmp_path), unpackable="pairs", finetuning={"tune": "prefix"}
    ).prepare([f"film {i}" for i in range(9)])  # fmt: skip
    with pytest.raises(InputError, match="architecture 'mpnet' takes no learnt states; wanted a"):
        model.finetune(*colour_work(8, 0))


def test_prompts_that_were_kept_are_read_anew_after_training(tiny_model):
    model = encoder(tiny_model, tune="prefix", rank=4, epochs=1, learning_rate=1e-2)
    asked, lists, _ = colour_work(8, 4)
    before = model.score(asked, lists.items)
    for seed in range(2):
        model.finetune(*colour_work(16, seed))
        scores = model.score(asked, lists.items)
        assert np.abs(scores - before).max() > 1e-3
        for _ in range(2):
            agree(model.score(asked, lists.items), model.score_pairs(asked, lists.items))
        before = scores
