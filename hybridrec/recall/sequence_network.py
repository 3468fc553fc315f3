"""The transformer of :mod:`hybridrec.recall.sequence`, in torch.

Shapes: I items, D width, H heads, E width of text embeddings; B rows of a group, T events of its
longest; N events in all.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, gelu, normalize, scaled_dot_product_attention

from hybridrec.recall.sequence_windows import padded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hybridrec.ragged import Ragged, Scores
    from hybridrec.recall.sequence_config import SequenceConfig
    from hybridrec.recall.sequence_windows import Group

__all__ = [
    "Dropout",
    "SequenceNetwork",
    "as_tensors",
    "fresh",
    "initialised",
    "read",
    "ready",
    "weights_of",
    "with_weights",
]

_SPREAD = 0.02
"""Standard deviation of weights at the start, as in SASRec and BERT."""
_WAVELENGTH = 10_000.0
"""Of the slowest rotation (RoFormer, arXiv 2104.09864)."""
_TOKENS = 1 << 13
"""Events whose states are held at once when histories are read."""


class Dropout:
    """Dropout that draws from a generator of its own, so that torch's global one stays as it is.

    It draws a byte an entry, eight at once: on a CPU a draw an entry took 6 % of training.
    So the rate is one of 256: 51 / 256 for 0.2.
    """

    def __init__(self, rate: float, generator: torch.Generator) -> None:
        self._kept = round(256 * (1.0 - rate))
        self._generator = generator

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` with the rate's share of its entries at 0 and the others scaled up for them."""
        if self._kept >= 256:
            return x
        drawn = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device)
        drawn.random_(torch.iinfo(torch.int64).min, None, generator=self._generator)
        mask = drawn.view(torch.uint8)[: x.numel()].view(x.shape) < self._kept
        return x * mask.to(x.dtype).mul_(256 / self._kept)


class SequenceNetwork(nn.Module):
    """A causal transformer whose output lives where its items do (SASRec, arXiv 1808.09781).

    An item is its own embedding plus, where there are texts, the projection of its text's. The
    same vector is what the network reads when the item is in a history and, scaled to length 1,
    what its output is multiplied with.

    Args:
        n_items: I.
        text_width: E; 0 without texts.
        config: width, layers, heads.
    """

    def __init__(self, n_items: int, text_width: int, config: SequenceConfig) -> None:
        super().__init__()
        width = config.width
        self.head_width = width // config.heads
        self.ids = nn.Parameter(torch.empty(n_items, width))
        self.text = nn.Linear(text_width, width, bias=False) if text_width else None
        self.blocks = nn.ModuleList(_Block(width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)

    def items(self, texts: Tensor | None) -> Tensor:
        """(I, D) the items' vectors, of any length; ``texts`` (I, E)."""
        if self.text is None or texts is None:
            return self.ids
        placed: Tensor = self.ids + self.text(texts)
        return placed

    def states(self, items: Tensor, codes: Tensor, drop: Dropout | None = None) -> Tensor:
        """(B, T, D) of length 1: what each event of ``codes`` (B, T) and those before it say."""
        x = embedding(codes, items) * math.sqrt(items.shape[1])
        x = x if drop is None else drop(x)
        turns = _turns(codes.shape[1], self.head_width, x)
        for block in self.blocks:
            x = block(x, turns, drop)
        return normalize(self.norm(x), dim=-1)

    def last_states(self, items: Tensor, codes: Tensor, lengths: Tensor) -> Tensor:
        """(B, D), the states at the last event of each row; ``lengths`` (B,) at least 1."""
        x = embedding(codes, items) * math.sqrt(items.shape[1])
        turns = _turns(codes.shape[1], self.head_width, x)
        *blocks, last = cast("list[_Block]", list(self.blocks))
        for block in blocks:
            x = block(x, turns, None)
        return normalize(self.norm(last.at_end(x, turns, lengths - 1)), dim=-1)


class _Block(nn.Module):
    """Attention to what came before, then a feed-forward layer; both read normalised states."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.between = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, turns: Tensor, drop: Dropout | None) -> Tensor:
        """(B, T, D) from (B, T, D); ``turns`` (2, T, D / H) are the rotations of the places."""
        q, k, v = self._heads(self.queries_keys_values(self.before(x)))
        q, k = _turned(q, turns), _turned(k, turns)
        found = _attention(q, k, v)
        found = self.attended(found.transpose(1, 2).flatten(2))
        x = x + (found if drop is None else drop(found))
        found = self._feed(x)
        after: Tensor = x + (found if drop is None else drop(found))
        return after

    def at_end(self, x: Tensor, turns: Tensor, ends: Tensor) -> Tensor:
        """(B, D): the same at place ``ends`` (B,) of each row only."""
        q, k, v = self._heads(self.queries_keys_values(self.before(x)))
        rows = torch.arange(len(x))
        q = _turned(q, turns)[rows, :, ends][:, :, None]
        seen = torch.arange(x.shape[1]) <= ends[:, None]
        found = scaled_dot_product_attention(q, _turned(k, turns), v, attn_mask=seen[:, None, None])
        end: Tensor = x[rows, ends] + self.attended(found.flatten(1))
        return end + self._feed(end)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, 3 D) as three of (B, H, T, D / H)."""
        q, k, v = x.reshape(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return q, k, v

    def _feed(self, x: Tensor) -> Tensor:
        found: Tensor = self.down(gelu(self.up(self.between(x))))
        return found


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, H, T, D / H): what each place finds at the places up to it.

    In bfloat16 on a CPU by plain products: torch's fused kernel takes twice as long there (35 ms
    against 17 forth and back, B = 42, H = 2, T = 192, D = 64, one core with AVX512-BF16).
    """
    if q.dtype != torch.bfloat16 or q.device.type != "cpu":
        return scaled_dot_product_attention(q, k, v, is_causal=True)
    later = torch.full((q.shape[2], q.shape[2]), -torch.inf, dtype=q.dtype).triu_(1)
    scores = (q @ k.mT) * q.shape[3] ** -0.5
    found: Tensor = (scores + later).softmax(-1) @ v
    return found


def _turns(length: int, width: int, like: Tensor) -> Tensor:
    """(2, T, ``width``): cosines and sines by which places are told apart (RoFormer, 2104.09864).

    Only distances matter to the products of queries and keys, so a history may start anywhere.
    """
    half = width // 2
    rates = _WAVELENGTH ** -(torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates.repeat(2)
    return torch.stack([angles.cos(), angles.sin()]).to(like)


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """``x`` (B, H, T, D / H) with each pair of entries rotated by its place."""
    cos, sin = turns.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    turned: Tensor = x * cos + torch.cat([-second, first], dim=-1) * sin
    return turned


def initialised(network: SequenceNetwork, generator: torch.Generator) -> SequenceNetwork:
    """``network`` with weights drawn from ``generator``; biases 0, norms 1."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, _SPREAD, generator=generator)
            else:
                # What has one dimension and is no bias scales a norm.
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
    return network


def fresh(n_items: int, text_width: int, config: SequenceConfig) -> SequenceNetwork:
    """A network whose weights are not set yet; draws nothing from torch's global generator."""
    with torch.device("meta"):
        network = SequenceNetwork(n_items, text_width, config)
    return network.to_empty(device="cpu")


def weights_of(network: SequenceNetwork) -> dict[str, Scores]:
    """The weights as float32 arrays, by names that can be file names."""
    return {
        name.replace(".", "__"): weight.detach().float().cpu().numpy().copy()
        for name, weight in network.named_parameters()
    }


def with_weights(weights: Mapping[str, Scores], config: SequenceConfig) -> SequenceNetwork:
    """The network that :func:`weights_of` was asked of."""
    text = weights.get("text__weight")
    network = fresh(len(weights["ids"]), 0 if text is None else text.shape[1], config)
    network.load_state_dict(
        {name.replace("__", "."): torch.tensor(weight) for name, weight in weights.items()}
    )
    return network


def ready(
    weights: Mapping[str, Scores], inputs: Scores, config: SequenceConfig
) -> tuple[SequenceNetwork, Tensor]:
    """A network and its items (I, D) in float64, for :func:`read`."""
    own = {**weights, "ids": weights["ids"][:0]}
    network = with_weights(own, config).double().eval().requires_grad_(False)
    return network, torch.tensor(inputs, dtype=torch.float64)


@torch.inference_mode()
def read(
    network: SequenceNetwork, items: Tensor, histories: Ragged, config: SequenceConfig
) -> Scores:
    """(B, D) float32: the state after the newest events of each history, over the temperature.

    Zeros where a history is empty. Computed in float64 and rounded at the end: how torch sums up
    depends on how many rows it is given, and an answer must not depend on who else asks.
    """
    sizes = np.minimum(histories.lengths, config.max_length)
    starts = histories.indptr[1:] - sizes
    states = np.zeros((len(histories), config.width), dtype=np.float32)
    order = np.argsort(sizes, kind="stable")[np.count_nonzero(sizes == 0) :]
    while len(order):
        # The longest first: what is left to pad is little.
        rows = order[-max(1, _TOKENS // int(sizes[order[-1]])) :]
        order = order[: -len(rows)]
        group = padded(histories.items, starts[rows], sizes[rows])
        found = network.last_states(items, *as_tensors(group))
        states[rows] = found.numpy() / config.temperature
    return states


def as_tensors(group: Group) -> tuple[Tensor, Tensor]:
    """Codes (B, T) and lengths (B,) of a group."""
    return torch.from_numpy(group.items), torch.from_numpy(group.lengths)
