"""The forward pass in which a prompt is read once for all of its candidates.

A prefix attends to itself; a candidate attends to the prefix and to itself; nothing attends to
another candidate. That is one function registered as an attention implementation of transformers:
every linear layer runs over all tokens of a pack at once, and only the attention knows the blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hybridrec.rerank.families import READ
from hybridrec.rerank.packing import pack, pair, plan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hybridrec.ragged import Items, Ragged
    from hybridrec.rerank.families import Family
    from hybridrec.rerank.packing import Pack, Pairs
    from hybridrec.rerank.prompt import TokenTable

ATTENTION = "hybridrec_shared_prefix"


def list_scores(
    model: Any,
    prompts: Ragged,
    items: Items,
    table: TokenTable,
    *,
    one_way: bool,
    packed: bool,
    budget: int | None,
    family: Family | None = None,
) -> Tensor:
    """(B, K) float32 scores on the model's device, -inf where the item is -1; carries gradients.

    Args:
        model: a BertForSequenceClassification with one label and :data:`ATTENTION`.
        prompts: B rows of token ids.
        items: (B, K) item codes, -1 padded.
        table: the token ids of the catalogue.
        one_way: the mask; see :class:`hybridrec.rerank.packing.Pairs`.
        packed: share each prompt among its candidates; only with ``one_way``.
        budget: tokens of one forward pass; None takes all at once.
        family: how the model is fed and read; None is that of its configuration.
    """
    rows, columns = np.nonzero(items >= 0)
    chosen = items[rows, columns]
    lengths = table.rows.lengths[chosen]
    if packed:
        indptr = np.searchsorted(rows, np.arange(len(items) + 1))
        parts = [
            _packed_scores(model, pack(pieces, prompts, chosen, table))
            for pieces in plan(prompts.lengths, indptr, lengths, budget)
        ]
    else:
        longest = int((prompts.lengths[rows] + lengths).max(initial=1))
        size = len(rows) or 1 if budget is None else max(1, budget // longest)
        parts = [
            _pair_scores(
                model,
                pair(prompts, rows[i : i + size], chosen[i : i + size], table, one_way=one_way),
            )
            for i in range(0, len(rows), size)
        ]
    scores = torch.full(items.shape, float("-inf"), device=model.device)
    if not parts:
        return scores
    return scores.masked_scatter(torch.from_numpy(items >= 0).to(model.device), torch.cat(parts))


def _packed_scores(model: Any, laid: Pack) -> Tensor:
    """(n,) float32 score of every candidate of a pack, in the order of ``heads``."""
    device = model.device
    hidden = model.base_model(
        input_ids=torch.from_numpy(laid.tokens)[None].to(device),
        position_ids=torch.from_numpy(laid.positions)[None].to(device),
        token_type_ids=_types(model, torch.from_numpy(laid.types)[None].to(device)),
        blocks=_blocks(laid, device),
    ).last_hidden_state[0]
    if reads_mean(model):
        return _linear(model, _means(hidden, torch.from_numpy(laid.owners).to(device), laid.heads))
    return _head(model, hidden[torch.from_numpy(laid.heads).to(device)])


def _pair_scores(model: Any, pairs: Pairs) -> Tensor:
    """(n,) float32 score of every pair by transformers' own forward with its own 4-d mask."""
    device = model.device
    rows = torch.arange(len(pairs.tokens), device=device)
    hidden = model.base_model(
        input_ids=torch.from_numpy(pairs.tokens).to(device),
        attention_mask=torch.from_numpy(pairs.mask.copy())[:, None].to(device),
        token_type_ids=_types(model, torch.from_numpy(pairs.types).to(device)),
    ).last_hidden_state
    if reads_mean(model):
        place = np.arange(pairs.tokens.shape[1])
        own = (place >= pairs.prefix_lengths[:, None]) & (place < pairs.lengths[:, None])
        owners = np.where(own, np.arange(len(own))[:, None], -1).ravel()
        return _linear(
            model,
            _means(hidden.flatten(0, 1), torch.from_numpy(owners).to(device), pairs.heads),
        )
    return _head(model, hidden[rows, torch.from_numpy(pairs.heads).to(device)])


def reads_mean(model: Any) -> bool:
    """Whether scores are read from the mean of a candidate's tokens, not from a [CLS]."""
    return bool(getattr(model.config, READ, None) == "mean")


def _means(hidden: Tensor, owners: Tensor, heads: NDArray[np.int64]) -> Tensor:
    """(n, width) float32: the mean state of each candidate's own tokens.

    Args:
        hidden: (T, width).
        owners: (T,) the candidate of each token, -1 for none.
        heads: (n,) one entry a candidate.
    """
    mine = owners >= 0
    own = owners[mine]
    sums = torch.zeros(len(heads), hidden.shape[1], device=hidden.device)
    counts = torch.bincount(own, minlength=len(heads)).clamp(min=1)
    return sums.index_add(0, own, hidden[mine].float()) / counts[:, None]


def _linear(model: Any, states: Tensor) -> Tensor:
    """(n,) float32 scores from (n, width) states by the classifier alone."""
    with torch.autocast(states.device.type, enabled=False):
        scores: Tensor = model.classifier(model.dropout(states))[:, 0]
    return scores


def _types(model: Any, types: Tensor) -> Tensor:
    return types.clamp(max=model.config.type_vocab_size - 1)


def _head(model: Any, hidden: Tensor) -> Tensor:
    """(n,) scores from (n, width) states: the pooler and classifier of the checkpoint.

    In float32 under any autocast: what tells candidates apart may lie below bfloat16's two digits.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        pooled = model.base_model.pooler(hidden.float()[:, None])
        scores: Tensor = model.classifier(model.dropout(pooled))[:, 0]
    return scores


def shared_prefix_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    blocks: list[Block] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over a pack; without ``blocks`` it is transformers' plain attention.

    Scores are float32 under any autocast. Attention weights are not dropped out over a pack: the
    fused kernel of a CPU cannot, and the dropout of the hidden states remains.

    Args:
        module: the attention layer.
        query: (1, heads, T, width), and so ``key`` and ``value``.
        key: see ``query``.
        value: see ``query``.
        attention_mask: None for a pack.
        scaling: factor of the scores.
        dropout: for the plain attention.
        blocks: where each query's tokens stand.
        **kwargs: for the plain attention.

    Returns:
        (1, T, heads, width), and None for the weights, which are not kept.
    """
    if blocks is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output, None
    # Parts come from split, never from slices: the gradient of a split is one concatenation, that
    # of a slice is a zero tensor as large as the pack, for each slice.
    sizes = [size for block in blocks for size in (block.prefix, *block.chunks)]
    with torch.autocast(query.device.type, enabled=False):
        parts = zip(
            *(torch.split(x.float(), sizes, dim=2) for x in (query, key, value)), strict=True
        )
        mixed = []
        for block in blocks:
            q, k_prefix, v_prefix = next(parts)
            mixed.append(F.scaled_dot_product_attention(q, k_prefix, v_prefix, scale=scaling))
            for mask, (q, k, v) in zip(block.masks, parts, strict=False):
                seen = torch.cat([k_prefix, k], dim=2), torch.cat([v_prefix, v], dim=2)
                mixed.append(
                    F.scaled_dot_product_attention(q, *seen, attn_mask=mask, scale=scaling)
                )
    return torch.cat(mixed, dim=2).transpose(1, 2), None


class Block(NamedTuple):
    """One query in a pack, as its attention sees it.

    Attributes:
        prefix: tokens of the prompt.
        chunks: tokens of each chunk of candidates.
        masks: (1, 1, c, prefix + c) float32 a chunk: 0 where a candidate may look, else -inf.
    """

    prefix: int
    chunks: tuple[int, ...]
    masks: tuple[Tensor, ...]


def _blocks(laid: Pack, device: torch.device) -> list[Block]:
    """The blocks of a pack, their masks made once for all layers."""
    owners = torch.from_numpy(laid.owners).to(device)
    blocks, place = [], 0
    for prefix, chunks in laid.blocks:
        place += prefix
        masks = []
        for size in chunks:
            own = owners[place : place + size]
            mask = torch.zeros(size, prefix + size, device=device)
            mask[:, prefix:].masked_fill_(own[:, None] != own, float("-inf"))
            masks.append(mask[None, None])
            place += size
        blocks.append(Block(prefix, chunks, tuple(masks)))
    return blocks


def _no_mask(**kwargs: Any) -> None:
    """A pack needs no mask tensor: the attention function knows the blocks."""


AttentionInterface.register(ATTENTION, shared_prefix_attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)
