import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, BertConfig

from hybridrec.ragged import Ragged
from hybridrec.rerank import attention, shared_prefix
from hybridrec.rerank.attention import ATTENTION
from hybridrec.rerank.families import READ, family_of
from hybridrec.rerank.layout import Layout
from hybridrec.rerank.packing import Piece, pack
from hybridrec.rerank.prefix_cache import PrefixCache
from hybridrec.rerank.prompt import Frame, TokenTable

CLS, SEP, VOCABULARY = 1, 2, 60
FRAME = Frame.plain(CLS, SEP)


def list_scores(model, prompts, items, table, *, packed=True, budget=None, **options):
    return shared_prefix.list_scores(
        model, prompts, items, table, family=family_of(model.config),
        **{"one_way": True, "packed": packed, "budget": budget, **options},
    )  # fmt: skip


def models(layers, heads, types, seed):
    """The same random weights with our attention and with transformers' eager one."""
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=8 * heads, num_hidden_layers=layers,
        num_attention_heads=heads, intermediate_size=24, max_position_embeddings=64,
        type_vocab_size=types, initializer_range=0.4, num_labels=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ours = AutoModelForSequenceClassification.from_config(
            copy.deepcopy(config), attn_implementation=ATTENTION
        )
    plain = AutoModelForSequenceClassification.from_config(
        copy.deepcopy(config), attn_implementation="eager"
    )
    plain.load_state_dict(ours.state_dict())
    return ours.eval(), plain.eval()


def slow_score(model, prompt, text, *, one_way):
    """One pair through an unmodified model, with a mask written out token by token."""
    text = text if one_way else text[1:]
    n, middle = len(prompt) + len(text), len(prompt)
    mask = torch.zeros(1, 1, n, n)
    if one_way:
        mask[..., :middle, middle:] = torch.finfo(torch.float32).min
    types = torch.tensor([[0] * middle + [1] * len(text)])
    hidden = model.bert(
        input_ids=torch.tensor([[*prompt, *text]]),
        attention_mask=mask,
        token_type_ids=types.clamp(max=model.config.type_vocab_size - 1),
    ).last_hidden_state
    if getattr(model.config, READ, None) == "mean":
        return model.classifier(hidden[0, middle:].mean(dim=0))[0]
    head = hidden[:, middle if one_way else 0]
    return model.classifier(model.bert.pooler(head[:, None]))[0, 0]


def some_work(rng, n_queries, depth):
    table = TokenTable.framed(
        [rng.integers(3, VOCABULARY, rng.integers(0, 12)).tolist() for _ in range(9)], FRAME, 12
    )
    prompts = Ragged.from_rows(
        [rng.integers(3, VOCABULARY, rng.integers(2, 30)) for _ in range(n_queries)]
    )
    items = rng.integers(-1, 9, (n_queries, depth)).astype(np.int32)
    return prompts, items, table


def slow_scores(model, prompts, items, table, *, one_way):
    scores = torch.full(items.shape, float("-inf"))
    for row, column in np.argwhere(items >= 0):
        prompt = prompts.select(np.array([row])).items.tolist()
        text = table.rows.select(items[row, column][None]).items.tolist()
        scores[row, column] = slow_score(model, prompt, text, one_way=one_way)
    return scores


@settings(deadline=None, max_examples=15)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2**31),
    st.integers(1, 3), st.integers(0, 12), st.sampled_from([None, 1, 40, 90]),
    st.sampled_from(["cls", "mean"]),
)  # fmt: skip
def test_packed_equals_an_unmodified_model_pair_by_pair(
    layers, heads, types, seed, n_queries, depth, budget, read
):
    ours, plain = models(layers, heads, types, seed)
    for model in (ours, plain):
        setattr(model.config, READ, read)
    prompts, items, table = some_work(np.random.default_rng(seed), n_queries, depth)
    with torch.no_grad():
        wanted = slow_scores(plain, prompts, items, table, one_way=True)
        for packed in (True, False):
            found = list_scores(ours, prompts, items, table, packed=packed, budget=budget)
            assert torch.equal(found.isinf(), wanted.isinf())
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("budget", [None, 70])
def test_full_mask_is_the_usual_cross_encoder(budget):
    ours, plain = models(2, 2, 2, 0)
    prompts, items, table = some_work(np.random.default_rng(0), 3, 6)
    with torch.no_grad():
        wanted = slow_scores(plain, prompts, items, table, one_way=False)
        for packed in (True, False):
            found = list_scores(
                ours, prompts, items, table, one_way=False, packed=packed, budget=budget
            )
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("one_way", [True, False])
def test_gradients_are_those_of_the_pairs(one_way):
    ours, plain = models(2, 2, 2, 1)
    prompts, items, table = some_work(np.random.default_rng(1), 3, 8)
    for model, scores in (
        (ours, list_scores(ours, prompts, items, table, one_way=one_way)),
        (plain, slow_scores(plain, prompts, items, table, one_way=one_way)),
    ):
        finite = scores[scores.isfinite()]
        (finite * torch.arange(len(finite))).sum().backward()
        assert model.classifier.weight.grad.abs().sum() > 0
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-3)


def test_a_candidate_does_not_see_another():
    ours, _ = models(2, 2, 2, 2)
    prompts, _, table = some_work(np.random.default_rng(2), 1, 0)
    with torch.no_grad():
        together, alone, swapped = (
            list_scores(ours, prompts, np.array([row], dtype=np.int32), table)[0]
            for row in ([0, 1, 2, 3], [0], [0, 4, 5, 6, 7])
        )
    torch.testing.assert_close(together[0], alone[0])
    torch.testing.assert_close(swapped[0], alone[0])
    assert len(set(together.tolist())) == 4


@pytest.mark.parametrize("budget", [None, 40])
@pytest.mark.parametrize("compiled", [True, False])
def test_kept_prompts_change_nothing(monkeypatch, budget, compiled):
    """Half of the prompts are known from an earlier request, with other candidates."""
    if not compiled:
        monkeypatch.setattr(attention, "_compiled", in_torch)
    ours, _ = models(2, 2, 2, 3)
    prompts, items, table = some_work(np.random.default_rng(3), 6, 9)
    cache, half = PrefixCache(1), np.arange(0, 6, 2)
    with torch.no_grad():
        wanted = list_scores(ours, prompts, items, table, budget=budget)
        list_scores(ours, prompts.select(half), items[half][:, ::-1], table, cache=cache)
        assert len(cache) == 3
        for _ in range(2):
            found = list_scores(ours, prompts, items, table, budget=budget, cache=cache)
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
            assert len(cache) == 6


def in_torch(layout, states, scale, window):
    return attention._in_torch(layout, states, scale, window, None)[0]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [0, 1, 5, 100])
@pytest.mark.parametrize("kept", [True, False])
def test_the_compiled_attention_is_the_one_in_torch(causal, window, kept):
    rng = np.random.default_rng(4)
    prompts, _, table = some_work(rng, 3, 0)
    pieces = [Piece(0, 0, 4), Piece(1, 4, 5), Piece(2, 5, 30)]
    known = np.array([kept, False, kept])
    laid = pack(pieces, prompts, rng.integers(0, 9, 30).astype(np.int32), table, known)
    layout = Layout(laid, torch.device("cpu"), causal)
    states = torch.from_numpy(rng.standard_normal((3, len(laid.tokens), 4, 8))).float()
    more = int(prompts.lengths[known].sum())
    before = torch.from_numpy(rng.standard_normal((2, more, 4, 8))).float()
    states = [states[0], *states[1:, :, ::2], *before[:, :, ::2]]
    found, wanted = (
        attend(layout, states, 0.3, window) for attend in (attention._compiled, in_torch)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
