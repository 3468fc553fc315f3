"""Fewer bits for the matrix products of scoring: copies of a model that share what stays float32.

What is small and tells candidates apart (norms, attention, embeddings, the head) stays in float32.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn
from transformers.activations import GELUActivation

from hybridrec import _core

LEAST = 64
"""Inputs and outputs from which on a layer is worth fewer bits: below, it costs nothing anyway."""


class Linear8(nn.Module):
    """A linear layer in 8-bit integers on the CPU, by the compiled core.

    Weights are rounded to 255 steps an output, inputs to 256 steps a token as they come; sums are
    exact. (W8A8 with dynamic, asymmetric activations, as in ZeroQuant: arXiv 2206.01861.)

    Args:
        linear: the layer it stands for.
        gelu: whether the exact GELU follows, to be applied in the same pass.
    """

    def __init__(self, linear: nn.Linear, *, gelu: bool = False) -> None:
        super().__init__()
        weight = linear.weight.detach().float().contiguous().numpy()
        bias = None if linear.bias is None else linear.bias.detach().float().contiguous().numpy()
        self._layer = _core.Linear8(weight, bias)
        self._outputs = linear.out_features
        self._gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) float32 -> (..., outputs) float32; carries no gradient."""
        rows = x.detach().reshape(-1, x.shape[-1]).contiguous()
        out = torch.empty(len(rows), self._outputs)
        self._layer.apply(
            rows.numpy(), out=out.numpy(), gelu=self._gelu, threads=torch.get_num_threads()
        )
        return out.view(*x.shape[:-1], self._outputs)


class Linear16(nn.Module):
    """A linear layer whose product is made of bfloat16; float32 in and out."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().bfloat16(), requires_grad=False)
        self.bias = None
        if linear.bias is not None:
            self.bias = nn.Parameter(linear.bias.detach().bfloat16(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs) float32."""
        return F.linear(x.bfloat16(), self.weight, self.bias).float()


def in_8_bits(model: Any) -> Any:
    """A copy of ``model`` whose body multiplies in 8-bit integers; the head stays as it is.

    Raises:
        ValueError: the core's build has no such products.
    """
    replaced: dict[int, Any] = {}
    for module in model.base_model.modules():
        dense, act = getattr(module, "dense", None), getattr(module, "intermediate_act_fn", None)
        # GELU(approximate="tanh") is another class.
        if isinstance(act, GELUActivation | nn.GELU) and isinstance(dense, nn.Linear):
            replaced[id(dense)], replaced[id(act)] = Linear8(dense, gelu=True), nn.Identity()
    return _with(model, replaced, Linear8)


def in_bf16(model: Any) -> Any:
    """A copy of ``model`` whose body multiplies in bfloat16; the head stays as it is."""
    return _with(model, {}, Linear16)


def _with(model: Any, replaced: dict[int, Any], kind: type[nn.Module]) -> Any:
    """A copy of ``model`` with modules replaced by id, and every other large layer by ``kind``."""
    pooler = getattr(model.base_model, "pooler", None)
    kept = set() if pooler is None else {id(module) for module in pooler.modules()}
    for module in model.base_model.modules():
        wide = type(module) is nn.Linear and min(module.weight.shape) >= LEAST
        if wide and id(module) not in replaced and id(module) not in kept:
            replaced[id(module)] = kind(module)
    # What the copy finds in its memo it takes for copied already. Weights that stay are shared.
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, {**shared, **replaced}).eval()
