"""Fewer bits for the matrix products of scoring: copies of a model that share what stays float32.

What is small and tells candidates apart (norms, attention, embeddings, the head) stays in float32.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn
from transformers.activations import GELUActivation

from hybridrec import _core

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEAST = 64
"""Inputs and outputs from which on a layer is worth fewer bits: below, it costs nothing anyway."""


class Linear8(nn.Module):
    """A linear layer in 8-bit integers on the CPU, by the compiled core.

    Weights are rounded to 255 steps an output, inputs to 256 steps a token as they come; sums are
    exact. (W8A8 with dynamic, asymmetric activations, as in ZeroQuant: arXiv 2206.01861.)

    Args:
        linear: the layer it stands for.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._layer = _rounded(linear)
        self._outputs = linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) float32 -> (..., outputs) float32; carries no gradient."""
        rows = _rows(x)
        out = torch.empty(len(rows), self._outputs)
        self._layer.apply(
            rows.numpy(), out=out.numpy(), gelu=False, threads=torch.get_num_threads()
        )
        return out.view(*x.shape[:-1], self._outputs)


class NormedLinear8(nn.Module):
    """The end of a part of a BERT layer: a linear layer, what the part was given, layer norm.

    Args:
        output: a module of ``dense``, ``dropout`` and ``LayerNorm``.
    """

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.norm = output.LayerNorm
        self._layer = _rounded(output.dense)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """(..., inputs) and (..., outputs) float32 -> (..., outputs); carries no gradient."""
        rows, other = _rows(x), _rows(residual)
        out = torch.empty_like(other)
        self._layer.apply_norm(
            rows.numpy(), other.numpy(), *_norm(self.norm),
            epsilon=self.norm.eps, out=out.numpy(), threads=torch.get_num_threads(),
        )  # fmt: skip
        return out.view_as(residual)


class FeedForward8(nn.Module):
    """The feed-forward part of a BERT layer in one pass: its wide states never reach memory.

    Args:
        first: to the wide states; the exact GELU follows.
        output: back again; see :class:`NormedLinear8`.
    """

    def __init__(self, first: nn.Linear, output: Any) -> None:
        super().__init__()
        self.norm = output.LayerNorm
        self._first, self._second = _rounded(first), _rounded(output.dense)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """(..., width) float32, given twice -> (..., width); carries no gradient."""
        rows = _rows(x)
        out = torch.empty_like(rows)
        _core.feed_forward(
            self._first, self._second, rows.numpy(), *_norm(self.norm),
            epsilon=self.norm.eps, out=out.numpy(), threads=torch.get_num_threads(),
        )  # fmt: skip
        return out.view_as(residual)


def _rounded(linear: nn.Linear) -> _core.Linear8:
    weight = linear.weight.detach().float().contiguous().numpy()
    bias = None if linear.bias is None else linear.bias.detach().float().contiguous().numpy()
    return _core.Linear8(weight, bias)


def _rows(x: Tensor) -> Tensor:
    return x.detach().reshape(-1, x.shape[-1]).contiguous()


def _norm(norm: nn.LayerNorm) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return norm.weight.detach().numpy(), norm.bias.detach().numpy()


class Linear16(nn.Module):
    """A linear layer whose product is made of bfloat16.

    Args:
        linear: the layer it stands for.
        low: whether the outputs stay bfloat16, else they are float32.
    """

    def __init__(self, linear: nn.Linear, *, low: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().bfloat16(), requires_grad=False)
        self.bias = None
        if linear.bias is not None:
            self.bias = nn.Parameter(linear.bias.detach().bfloat16(), requires_grad=False)
        self._low = low

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        y = F.linear(x.bfloat16(), self.weight, self.bias)
        return y if self._low else y.float()


def in_8_bits(model: Any) -> Any:
    """A copy of ``model`` whose body multiplies in 8-bit integers; the head stays as it is.

    Raises:
        ValueError: the core's build has no such products.
    """
    replaced: dict[int, Any] = {}
    for module in model.base_model.modules():
        if _ends_a_part(module):
            replaced[id(module)] = NormedLinear8(module)
    for layer in model.base_model.modules():
        widening: Any = getattr(layer, "intermediate", None)
        output: Any = getattr(layer, "output", None)
        act = getattr(widening, "intermediate_act_fn", None)
        # GELU(approximate="tanh") is another class.
        if _ends_a_part(output) and isinstance(act, GELUActivation | nn.GELU):
            replaced[id(widening)] = nn.Identity()
            replaced[id(output)] = FeedForward8(widening.dense, output)
    return _with(model, replaced, Linear8)


def _ends_a_part(module: Any) -> bool:
    """Whether a module is the ``dense``, ``dropout``, add and ``LayerNorm`` of BERT and its kin."""
    return (
        type(module).__name__.endswith("Output")
        and {name for name, _ in module.named_children()} == {"dense", "dropout", "LayerNorm"}
        and isinstance(module.LayerNorm, nn.LayerNorm)
        and type(module.dense) is nn.Linear
    )


def in_bf16(model: Any) -> Any:
    """A copy of ``model`` whose body multiplies in bfloat16; the head stays as it is."""
    replaced: dict[int, Any] = {}
    for module in model.base_model.modules():
        # Between its two products a feed-forward part is wide and only passes through.
        dense, act = getattr(module, "dense", None), getattr(module, "intermediate_act_fn", None)
        if act is not None and type(dense) is nn.Linear:
            replaced[id(dense)] = Linear16(dense, low=True)
    return _with(model, replaced, Linear16)


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
