"""Bottleneck adapters: a narrow layer behind each block, which stays in the model.

A model with adapters is saved as the plain checkpoint that it came from and a file beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from hybridrec.checks import InputError, require_extra
from hybridrec.rerank.learnt_states import of_learnt_states
from hybridrec.rerank.soft_tokens import of_soft_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Adapted", "add_adapters", "load_adapters", "of_adapters", "save_with_adapters"]

MARK = "hybridrec_adapters"
"""Entry of the checkpoint's config.json: the width of the adapters that lie beside it."""

FILE = "adapters.safetensors"
BASE, DOWN = "adapter_base.", ".adapter_down.weight"


class Adapted(nn.Module):
    """A linear layer and what an adapter adds to its outputs (Houlsby et al., arXiv 1902.00751).

    One behind the feed-forward part of each layer (Pfeiffer et al., arXiv 2005.00247); at first it
    adds nothing.

    Args:
        base: the layer.
        width: of the adapter.
    """

    def __init__(self, base: nn.Linear, width: int) -> None:
        super().__init__()
        device = base.weight.device
        self.adapter_base = base
        self.adapter_down = nn.Linear(base.out_features, width, device=device)
        self.adapter_up = nn.Linear(width, base.out_features, device=device)
        nn.init.zeros_(self.adapter_up.weight)
        nn.init.zeros_(self.adapter_up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        hidden: Tensor = self.adapter_base(x)
        added: Tensor = self.adapter_up(F.gelu(self.adapter_down(hidden)))
        return hidden + added


def add_adapters(model: Any, layers: Sequence[nn.Module], width: int) -> None:
    """Put an adapter behind the last linear layer of each of ``layers``.

    Raises:
        InputError: the model has adapters of another width.
    """
    there = [module for module in model.modules() if isinstance(module, Adapted)]
    if there:
        has = there[0].adapter_down.out_features
        if has != width:
            raise InputError(
                f"rank is {width} and the model has adapters {has} wide: use rank={has}"
            )
        return
    for layer in layers:
        linear = [name for name, module in layer.named_modules() if type(module) is nn.Linear]
        _put(layer, linear[-1], width)
    setattr(model.config, MARK, width)


def save_with_adapters(model: Any, folder: Path) -> None:
    """Write config.json and model.safetensors, and the adapters' file where there are any.

    Learnt states and soft tokens are left out: they have files of their own.
    """
    from safetensors.torch import save_file

    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not (of_learnt_states(name) or of_soft_tokens(name))
    }
    own = {name: tensor for name, tensor in state.items() if of_adapters(name)}
    if not own:
        (folder / FILE).unlink(missing_ok=True)
        model.save_pretrained(folder, state_dict=state)
        return
    rest = {name.replace(BASE, ""): tensor for name, tensor in state.items() if name not in own}
    model.save_pretrained(folder, state_dict=rest)
    save_file({name: tensor.contiguous() for name, tensor in own.items()}, folder / FILE)


def load_adapters(model: Any, source: str) -> None:
    """Put the adapters that lie in the folder ``source`` into ``model``; none do nothing.

    Raises:
        InputError: they are not of this model.
    """
    width = getattr(model.config, MARK, None)
    if width is None:
        return
    path = Path(source) / FILE
    if not path.is_file():
        raise InputError(f"the model {source!r} has adapters and lacks their file {FILE}")
    found = require_extra("safetensors.torch", "llm").load_file(path)
    try:
        for name in found:
            if name.endswith(DOWN):
                _put(model, name.removesuffix(DOWN), width)
        missed = model.load_state_dict(found, strict=False).unexpected_keys
    except (AttributeError, RuntimeError) as error:
        raise InputError(f"cannot use the adapters in {path}: {error}") from error
    wanted = {name for name in model.state_dict() if of_adapters(name)}
    if missed or wanted != set(found):
        raise InputError(f"the adapters in {path} are not of this model: {sorted(found)[0]!r}")


def of_adapters(name: str) -> bool:
    """Whether a parameter of this name is an adapter's own."""
    return ".adapter_down." in name or ".adapter_up." in name


def _put(module: nn.Module, name: str, width: int) -> None:
    """Wrap the linear layer of this name."""
    parent, _, own = name.rpartition(".")
    holder = module.get_submodule(parent)
    setattr(holder, own, Adapted(getattr(holder, own), width))
