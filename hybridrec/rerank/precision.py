"""Models for scoring: copies that multiply in fewer bits or passes, and share what stays as it is.

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
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    Low = type[_core.Linear8] | type[_core.Linear16] | type[_core.Linear32]

LEAST = 64
"""Inputs and outputs from which on a layer is worth fewer bits: below, it costs nothing anyway."""


def in_8_bits(model: Any) -> Any:
    """A copy of ``model`` whose body multiplies in 8-bit integers; the head stays as it is.

    Weights are rounded to 255 steps an output, inputs to 256 steps a token as they come; sums are
    exact. (W8A8 with dynamic, asymmetric activations, as in ZeroQuant: arXiv 2206.01861.)

    Args:
        model: on the CPU.

    Raises:
        ValueError: the CPU has no such products.
    """
    return _compiled(model, _core.Linear8)


def in_bf16(model: Any) -> Any:
    """A copy of ``model`` whose body multiplies in bfloat16; the head stays as it is."""
    if model.device.type == "cpu" and _core.has_linear16:
        return _compiled(model, _core.Linear16)
    return _with(model, {}, TorchLinear16)


def in_fp32(model: Any) -> Any:
    """A copy of ``model`` whose fused parts take one pass each; itself where there are none.

    A copy holds the weights of these parts once more, in the order in which they are read.
    """
    if model.device.type == "cpu" and _core.has_linear32:
        return _compiled(model, _core.Linear32)
    return model


class LowLinear(nn.Module):
    """A linear layer in fewer bits on the CPU, by the compiled core.

    Args:
        linear: the layer it stands for.
        low: the core's layer.
    """

    def __init__(self, linear: nn.Linear, low: Low) -> None:
        super().__init__()
        self._layer = _rounded(linear, low)
        self._outputs = linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) float32 -> (..., outputs) float32; carries no gradient."""
        rows = _rows(x)
        out = torch.empty(len(rows), self._outputs)
        self._layer.apply(
            rows.numpy(), out=out.numpy(), gelu=False, threads=torch.get_num_threads()
        )
        return out.view(*x.shape[:-1], self._outputs)


class NormedLinear(nn.Module):
    """The end of a part of a BERT layer: a linear layer, what the part was given, layer norm.

    Args:
        output: a module of ``dense``, ``dropout`` and ``LayerNorm``.
        low: the core's layer.
    """

    def __init__(self, output: Any, low: Low) -> None:
        super().__init__()
        self.norm = output.LayerNorm
        self._layer = _rounded(output.dense, low)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """(..., inputs) and (..., outputs) float32 -> (..., outputs); carries no gradient."""
        rows, other = _rows(x), _rows(residual)
        out = torch.empty_like(other)
        self._layer.apply_norm(
            rows.numpy(), other.numpy(), *_norm(self.norm),
            epsilon=self.norm.eps, out=out.numpy(), threads=torch.get_num_threads(),
        )  # fmt: skip
        return out.view_as(residual)


class FeedForward(nn.Module):
    """The feed-forward part of a BERT layer in one pass: its wide states never reach memory.

    Args:
        first: to the wide states; the exact GELU follows.
        output: back again; see :class:`NormedLinear`.
        low: the core's layer.
    """

    def __init__(self, first: nn.Linear, output: Any, low: Low) -> None:
        super().__init__()
        self.norm = output.LayerNorm
        self._first, self._second = _rounded(first, low), _rounded(output.dense, low)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """(..., width) float32, given twice -> (..., width); carries no gradient."""
        rows = _rows(x)
        out = torch.empty_like(rows)
        _core.feed_forward(
            self._first, self._second, rows.numpy(), *_norm(self.norm),
            epsilon=self.norm.eps, out=out.numpy(), threads=torch.get_num_threads(),
        )  # fmt: skip
        return out.view_as(residual)


class TorchLinear16(nn.Module):
    """A linear layer in bfloat16 by torch, on any device; float32 in and out."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().bfloat16(), requires_grad=False)
        self.bias = None
        if linear.bias is not None:
            self.bias = nn.Parameter(linear.bias.detach().bfloat16(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs) float32."""
        return F.linear(x.bfloat16(), self.weight, self.bias).float()


def _rounded(linear: nn.Linear, low: Low) -> Any:
    weight = linear.weight.detach().float().contiguous().numpy()
    bias = None if linear.bias is None else linear.bias.detach().float().contiguous().numpy()
    return low(weight, bias)


def _rows(x: Tensor) -> Tensor:
    return x.detach().reshape(-1, x.shape[-1]).contiguous()


def _norm(norm: nn.LayerNorm) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return norm.weight.detach().numpy(), norm.bias.detach().numpy()


def _compiled(model: Any, low: Low) -> Any:
    replaced: dict[int, Any] = {}
    for module in model.base_model.modules():
        if _ends_a_part(module):
            replaced[id(module)] = NormedLinear(module, low)
    for layer in model.base_model.modules():
        widening: Any = getattr(layer, "intermediate", None)
        output: Any = getattr(layer, "output", None)
        act = getattr(widening, "intermediate_act_fn", None)
        # GELU(approximate="tanh") is another class.
        if _ends_a_part(output) and isinstance(act, GELUActivation | nn.GELU):
            replaced[id(widening)] = nn.Identity()
            replaced[id(output)] = FeedForward(widening.dense, output, low)
    if low is _core.Linear32:  # Alone a layer is torch's: nothing is gained by another.
        return _with(model, replaced, None) if replaced else model
    return _with(model, replaced, lambda linear: LowLinear(linear, low))


def _ends_a_part(module: Any) -> bool:
    """Whether a module is the ``dense``, ``dropout``, add and ``LayerNorm`` of BERT and its kin."""
    return (
        type(module).__name__.endswith("Output")
        and {name for name, _ in module.named_children()} == {"dense", "dropout", "LayerNorm"}
        and isinstance(module.LayerNorm, nn.LayerNorm)
        and type(module.dense) is nn.Linear
    )


def _with(
    model: Any, replaced: dict[int, Any], make: Callable[[nn.Linear], nn.Module] | None
) -> Any:
    """A copy of ``model``, modules replaced by id, and other large layers by ``make`` if given."""
    pooler = getattr(model.base_model, "pooler", None)
    kept = set() if pooler is None else {id(module) for module in pooler.modules()}
    for module in model.base_model.modules():
        wide = type(module) is nn.Linear and min(module.weight.shape) >= LEAST
        if make and wide and id(module) not in replaced and id(module) not in kept:
            replaced[id(module)] = make(module)
    # What the copy finds in its memo it takes for copied already. Weights that stay are shared.
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, {**shared, **replaced}).eval()
