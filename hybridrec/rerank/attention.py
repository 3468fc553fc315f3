"""The attention of a pack: each text looks at itself and at the prefix that it shares.

Registered with transformers as an attention implementation: every linear layer of a model runs over
all tokens of a pack at once, and only the attention knows where a text ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hybridrec import _core

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hybridrec.rerank.layout import Layout
    from hybridrec.rerank.learnt_states import LearntStates
    from hybridrec.rerank.packing import Block

ATTENTION = "hybridrec_shared_prefix"


def shared_prefix_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    seen: list[tuple[torch.nn.Module, Tensor]] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over a pack; without ``layout`` it is transformers' plain attention.

    Scores are float32 under any autocast. Attention weights are not dropped out over a pack: the
    fused kernel of a CPU cannot, and the dropout of the hidden states remains.

    Args:
        module: the attention layer; what it has of learnt states, all tokens see.
        query: (1, heads, T, width).
        key: (1, key heads, T, width), and so ``value``: neighbouring heads share a key head.
        value: see ``key``.
        attention_mask: None for a pack.
        scaling: factor of the scores.
        dropout: for the plain attention.
        layout: where the texts stand.
        sliding_window: a token looks only at those less than this away.
        softcap: scores s become softcap tanh(s / softcap).
        seen: where the layer and its ``key`` are written down, without ``layout``.
        **kwargs: for the plain attention.

    Returns:
        (1, T, heads, width), and None for the weights, which are not kept.
    """
    learnt: LearntStates | None = getattr(module, "learnt_states", None)
    if layout is None:
        if seen is not None:
            seen.append((module, key))
        if learnt is not None:
            causal = getattr(module, "is_causal", False)
            key, value, attention_mask = learnt.before(key, value, attention_mask, causal)
        if softcap is not None:
            return _capped(query, key, value, attention_mask, scaling, softcap), None
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output, None
    q, k, v = (x[0].transpose(0, 1).float() for x in (query, key, value))
    states = [q, *layout.seen(k, v, learnt)]
    # One that no text is longer than hides nothing.
    window = sliding_window if sliding_window and sliding_window <= layout.farthest else 0
    learning = torch.is_grad_enabled() and any(x.requires_grad for x in states)
    # The core's windows count places, and learnt states have none.
    in_torch = learning or softcap is not None or (window and learnt is not None)
    if query.device.type == "cpu" and not in_torch:
        return _compiled(layout, states, scaling, window)[None], None
    with torch.autocast(query.device.type, enabled=False):
        return _in_torch(layout, states, scaling, window, softcap), None


def _compiled(layout: Layout, states: list[Tensor], scale: float, window: int) -> Tensor:
    """(T, heads, width) by the compiled core, without gradient.

    Args:
        layout: where the texts stand.
        states: queries (T, heads, width), keys and values (T, key heads, width), and those of the
            kept prefixes (P, key heads, width).
        scale: factor of the scores.
        window: see :meth:`Layout.masks`; 0 is none.
    """
    out = torch.empty(states[0].shape)
    q, k, v, kept_k, kept_v, to = (
        x.detach().flatten(1).contiguous().numpy() for x in (*states, out)
    )
    pack = layout.pack
    _core.attend(
        q, k, v, kept_k, kept_v, pack.asks, pack.own, pack.seen,
        heads=states[0].shape[1], key_heads=states[1].shape[1], scale=scale, causal=layout.causal,
        window=window, out=to, threads=torch.get_num_threads(),
    )  # fmt: skip
    return out


def _in_torch(
    layout: Layout, states: list[Tensor], scale: float, window: int, softcap: float | None
) -> Tensor:
    """(1, T, heads, width) by torch, block by block, on any device and with gradient."""
    query, keys, values, kept_keys, kept_values = states
    if len(kept_keys):
        keys, values = torch.cat([kept_keys, keys]), torch.cat([kept_values, values])
    blocks, learnt = layout.pack.blocks, layout.pack.learnt
    # Parts come from split, never from slices: the gradient of a split is one concatenation, that
    # of a slice is a zero tensor as large as the pack, for each slice.
    kept, own = [learnt + block.prefix for block in blocks if block.kept], _parts(blocks, learnt)
    asked = iter(torch.split(query, _parts(blocks, 0)))
    k, v = torch.split(keys, kept + own), torch.split(values, kept + own)
    before, behind = iter(zip(k, v, strict=True)), zip(k[len(kept) :], v[len(kept) :], strict=True)
    masks = iter(layout.masks(window))
    mixed = []
    for block in blocks:
        prefix = next(before) if block.kept else next(behind)
        if not block.kept:
            mixed.append(_mix(next(asked), *prefix, next(masks), scale, softcap))
        for _ in block.chunks:
            own_k, own_v = next(behind)
            seen_k, seen_v = torch.cat([prefix[0], own_k]), torch.cat([prefix[1], own_v])
            mixed.append(_mix(next(asked), seen_k, seen_v, next(masks), scale, softcap))
    return torch.cat(mixed, dim=2).transpose(1, 2)


def _parts(blocks: Sequence[Block], learnt: int) -> list[int]:
    """Sizes of the parts of a pack; ``learnt`` states more for each prefix in it."""
    return [
        n
        for block in blocks
        for n in ([] if block.kept else [learnt + block.prefix]) + [*block.chunks]
    ]


def _mix(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float,
    softcap: float | None,
) -> Tensor:  # fmt: skip
    """(1, heads, n, width) of (n, heads, width) queries over (L, key heads, width)."""
    q, k, v = (x.transpose(0, 1)[None] for x in (query, keys, values))
    if softcap is not None:
        return _capped(q, k, v, mask, scale, softcap).transpose(1, 2)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def _capped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, softcap: float
) -> Tensor:
    """(b, n, heads, width): attention whose scores go through a tanh, as in Gemma 2."""
    share = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(share, dim=1) for x in (key, value))
    scores = softcap * torch.tanh(scale * (query @ key.mT) / softcap)
    if mask is not None:
        scores = (
            scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, -torch.inf)
        )
    return (scores.softmax(dim=-1) @ value).transpose(1, 2)


def _no_mask(**kwargs: Any) -> None:
    """A pack needs no mask tensor: the attention function knows the texts."""


AttentionInterface.register(ATTENTION, shared_prefix_attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)
