"""Prefix-tuning: keys and values in every layer that are no token's and that every token sees.

A model with learnt states is saved as the plain checkpoint that it came from and a file beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from hybridrec.checks import InputError, require_extra
from hybridrec.rerank.attention import ATTENTION

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "LearntStates",
    "add_learnt_states",
    "count_of",
    "load_learnt_states",
    "of_learnt_states",
    "save_learnt_states",
]

NAME = "learnt_states"
"""What they are called in an attention layer."""

MARK = "hybridrec_learnt_states"
"""Entry of the checkpoint's config.json: how many lie beside it for each layer."""

FILE = "learnt_states.safetensors"

START = 0.02
"""Standard deviation of the keys at first; values start as zeros.

What a token makes of the others is then diluted and otherwise as it was. Keys and values of real
words, which the paper starts from, moved MiniLM's scores about five times as far (eight states), a
causal model's about as far, and learnt no faster.
"""


class LearntStates(nn.Module):
    """Keys and values that stand before those of every text (Li & Liang, arXiv 2101.00190).

    They have no position: they come behind the rotary embedding, no window or causal mask hides
    them, and the tokens' own positions stay what they were. They learn as they are, without the
    network that the paper makes them by, which later work found to help on some tasks only
    (P-Tuning v2, arXiv 2110.07602).

    Args:
        keys: (n, key heads, width) float32, and so ``values``.
        values: see ``keys``.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys = nn.Parameter(keys)
        self.values = nn.Parameter(values)

    def __len__(self) -> int:
        return len(self.keys)

    def before(
        self, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What texts that are not packed look at, these states first, and a mask that shows them.

        Args:
            key: (b, key heads, L, width), and so ``value``.
            value: see ``key``.
            mask: broadcast to (b, heads, L, L), bool or additive; None hides nothing, or what
                ``causal`` says.
            causal: whether, without a mask, a token looks at none behind it.
        """
        if mask is None and causal:
            mask = torch.ones(1, 1, *[key.shape[2]] * 2, dtype=torch.bool, device=key.device).tril()
        if mask is not None:
            open_ = 0.0 if mask.is_floating_point() else True
            mask = F.pad(mask, (len(self), 0), value=open_)
        own = (x.transpose(0, 1).expand(len(key), -1, -1, -1) for x in (self.keys, self.values))
        keys, values = (
            torch.cat([mine.to(theirs.dtype), theirs], dim=2)
            for mine, theirs in zip(own, (key, value), strict=True)
        )
        return keys, values, mask


class _Layer(NamedTuple):
    """An attention layer; a key of it is (heads, width)."""

    name: str
    module: nn.Module
    heads: int
    width: int


def add_learnt_states(model: Any, count: int) -> None:
    """Put ``count`` states into each attention layer; their keys are drawn by torch.

    Raises:
        InputError: the model has another number of them, or an attention of its own.
    """
    has = count_of(model)
    if has and has != count:
        raise InputError(f"rank is {count} and the model has {has} learnt states: use rank={has}")
    if has:
        return
    for _, module, heads, width in _layers(model):
        keys = START * torch.randn(count, heads, width, device=model.device)
        module.add_module(NAME, LearntStates(keys, torch.zeros_like(keys)))
    setattr(model.config, MARK, count)


def count_of(model: Any) -> int:
    """How many learnt states each layer of ``model`` has."""
    return int(getattr(model.config, MARK, 0))


def save_learnt_states(model: Any, folder: Path) -> None:
    """Write the learnt states' own file, if ``model`` has some."""
    own = {n: t.contiguous() for n, t in model.state_dict().items() if of_learnt_states(n)}
    if not own:
        (folder / FILE).unlink(missing_ok=True)
        return
    require_extra("safetensors.torch", "llm").save_file(own, folder / FILE)


def load_learnt_states(model: Any, source: str) -> None:
    """Put the states that lie in the folder ``source`` into ``model``; none do nothing.

    Raises:
        InputError: they are not of this model.
    """
    count = getattr(model.config, MARK, None)
    if count is None:
        return
    path = Path(source) / FILE
    if not path.is_file():
        raise InputError(f"the model {source!r} has learnt states and lacks their file {FILE}")
    found = require_extra("safetensors.torch", "llm").load_file(path)
    layers = _layers(model)
    wanted = {
        f"{name}.{NAME}.{part}": (count, heads, width)
        for name, _, heads, width in layers
        for part in ("keys", "values")
    }
    _check(path, {name: tuple(states.shape) for name, states in found.items()}, wanted)
    for name, module, _, _ in layers:
        own = (found[f"{name}.{NAME}.{part}"].float() for part in ("keys", "values"))
        module.add_module(NAME, LearntStates(*own).to(model.device).eval())


def of_learnt_states(name: str) -> bool:
    """Whether a parameter of this name is a layer's learnt states."""
    return f".{NAME}." in name


def _check(
    path: Path, got: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    for name in sorted({*got, *wanted}):
        if got.get(name) != wanted.get(name):
            raise InputError(
                f"the learnt states in {path} are not of this model: {name!r} has shape "
                f"{got.get(name)}; wanted {wanted.get(name)}"
            )


@torch.no_grad()
def _layers(model: Any) -> list[_Layer]:
    """The attention layers of ``model``, found by what reads a text of one token.

    Raises:
        InputError: their attention is not ours.
    """
    if getattr(model.config, "_attn_implementation", None) != ATTENTION:
        raise InputError(
            f"the attention of an architecture {model.config.model_type!r} takes no learnt states; "
            "wanted a tune other than 'prefix'"
        )
    names = {id(module): name for name, module in model.named_modules()}
    seen: list[tuple[nn.Module, Tensor]] = []
    model.base_model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), seen=seen)
    return [_Layer(names[id(module)], module, key.shape[1], key.shape[3]) for module, key in seen]
