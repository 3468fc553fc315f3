import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, BertConfig

from hybridrec.ragged import Ragged
from hybridrec.rerank.families import READ
from hybridrec.rerank.prompt import TokenTable
from hybridrec.rerank.shared_prefix import ATTENTION, list_scores

CLS, SEP, VOCABULARY = 1, 2, 60


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
        [rng.integers(3, VOCABULARY, rng.integers(0, 12)).tolist() for _ in range(9)], CLS, SEP, 12
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
            found = list_scores(
                ours, prompts, items, table, one_way=True, packed=packed, budget=budget
            )
            assert torch.equal(found.isinf(), wanted.isinf())
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("budget", [None, 70])
def test_full_mask_is_the_usual_cross_encoder(budget):
    ours, plain = models(2, 2, 2, 0)
    prompts, items, table = some_work(np.random.default_rng(0), 3, 6)
    with torch.no_grad():
        wanted = slow_scores(plain, prompts, items, table, one_way=False)
        found = list_scores(ours, prompts, items, table, one_way=False, packed=False, budget=budget)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_the_pairs():
    ours, plain = models(2, 2, 2, 1)
    prompts, items, table = some_work(np.random.default_rng(1), 3, 8)
    for model, scores in (
        (ours, list_scores(ours, prompts, items, table, one_way=True, packed=True, budget=None)),
        (plain, slow_scores(plain, prompts, items, table, one_way=True)),
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
            list_scores(
                ours, prompts, np.array([row], dtype=np.int32), table,
                one_way=True, packed=True, budget=None,
            )[0]
            for row in ([0, 1, 2, 3], [0], [0, 4, 5, 6, 7])
        )  # fmt: skip
    torch.testing.assert_close(together[0], alone[0])
    torch.testing.assert_close(swapped[0], alone[0])
    assert len(set(together.tolist())) == 4
