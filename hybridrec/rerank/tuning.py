"""Which weights learn: all, the head, the last layers, or what is added to a model.

Whatever stands in a model while it learns, the model stays the same object. Changes of low rank are
added to the weights that they change, so that a plain checkpoint comes out; adapters and learnt
states stay beside the weights.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hybridrec.checks import InputError, require_extra
from hybridrec.rerank.adapters import add_adapters, of_adapters
from hybridrec.rerank.learnt_states import add_learnt_states, of_learnt_states

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hybridrec.rerank.finetune_config import FineTuning

__all__ = ["Tuning"]

NAME = "default"
"""What peft calls the one change that a model has."""


class Tuning:
    """A model that is ready to learn, until :meth:`finish`.

    Args:
        model: a transformers model.
        config: which weights learn, the rank, and dropout.
        head: what the names of the head's parameters start with.
        steps: optimiser steps that will be taken; AdaLoRA plans by them.

    Raises:
        InputError: the model has no such layers, or no head of its own.
        MissingExtraError: peft is needed and not installed.

    Draws from torch's own generator.
    """

    def __init__(self, model: Any, config: FineTuning, head: tuple[str, ...], steps: int) -> None:
        self.model = model
        self._head = head
        self._learnt = {id(p): p.requires_grad for p in model.parameters()}
        self._dropouts = {m: m.p for m in model.modules() if isinstance(m, nn.Dropout)}
        self._peft: Any = None
        if config.tune == "adapter":
            add_adapters(model, layers(model)[1], config.rank)
        elif config.tune == "prefix":
            add_learnt_states(model, config.rank)
        chosen = self._chosen(config)
        if config.tune in ("lora", "adalora"):
            self._peft = _injected(model, config, steps)
        for name, parameter in model.named_parameters():
            if not (self._peft and "lora_" in name):
                parameter.requires_grad_(name in chosen)
        if config.dropout is not None:
            for dropout in self._dropouts:
                dropout.p = config.dropout

    def head(self) -> list[nn.Parameter]:
        """The parameters of the head that learn."""
        named = self.trainable()
        return [p for name, p in named.items() if name.startswith(self._head)]

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def penalty(self) -> Tensor | None:
        """What AdaLoRA adds to the loss: how far its factors are from orthogonal; else None."""
        if not hasattr(self._peft, "rankallocator"):
            return None
        weight = self._peft.peft_config[NAME].orth_reg_weight
        distances = []
        for name, factor in self.trainable().items():
            if "lora_A" in name or "lora_B" in name:
                product = factor @ factor.T if "lora_A" in name else factor.T @ factor
                eye = torch.eye(len(product), device=product.device)
                distances.append(torch.linalg.norm(product - eye))
        penalty: Tensor = weight * torch.stack(distances).mean()
        return penalty

    def stepped(self, step: int) -> None:
        """After the optimiser's step and before gradients go: AdaLoRA deals its ranks anew.

        Args:
            step: from 0.
        """
        if hasattr(self._peft, "rankallocator"):
            self._peft.update_and_allocate(step)

    @contextmanager
    def plain(self) -> Iterator[None]:
        """The model as it would come out now; for changes of low rank a copy of what they change.

        Nothing is added to weights and taken off again, which would leave roundings in them.
        """
        places = self._changed()
        for parent, name, layer in places:
            setattr(parent, name, _added(layer))
        try:
            yield
        finally:
            for parent, name, layer in places:
                setattr(parent, name, layer)

    def finish(self) -> None:
        """Take out changes of low rank; those that :meth:`plain` did not copy are lost.

        Dropout and which weights may learn are as they were.
        """
        for parent, name, layer in self._changed():
            setattr(parent, name, layer.get_base_layer())
        if self._peft is not None:
            del self.model.peft_config
            self._peft = None
        for parameter in self.model.parameters():
            parameter.requires_grad_(self._learnt.get(id(parameter), True))
            parameter.grad = None
        for dropout, chance in self._dropouts.items():
            dropout.p = chance

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a step needs beside the weights and the optimiser's state: tensors, and JSON."""
        if not hasattr(self._peft, "rankallocator"):
            return {}, {}
        allocator = self._peft.rankallocator
        tensors = {
            f"{kind}/{name}": tensor
            for kind in ("ipt", "exp_avg_ipt", "exp_avg_unc")
            for name, tensor in getattr(allocator, kind).items()
        }
        return tensors, {"rank_pattern": self._peft.peft_config[NAME].rank_pattern}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Go on from a :meth:`state`."""
        if not hasattr(self._peft, "rankallocator"):
            return
        for key, tensor in tensors.items():
            kind, name = key.split("/", 1)
            getattr(self._peft.rankallocator, kind)[name] = tensor.to(self.model.device)
        self._peft.peft_config[NAME].rank_pattern = values["rank_pattern"]

    def _chosen(self, config: FineTuning) -> set[str]:
        """Names of the model's parameters that learn, but for changes of low rank."""
        names = [name for name, _ in self.model.named_parameters()]
        chosen = {name for name in names if name.startswith(self._head)}
        if config.tune == "head" and not chosen:
            raise InputError(
                "tune is 'head' and the model has none of its own: its score is made of weights "
                "that do other work; wanted another tune"
            )
        if config.tune == "full":
            chosen = set(names)
        elif config.tune == "adapter":
            chosen |= {name for name in names if of_adapters(name)}
        elif config.tune == "prefix":
            chosen |= {name for name in names if of_learnt_states(name)}
        elif config.last_layers is not None:
            prefix, found = layers(self.model)
            if config.last_layers > len(found):
                raise InputError(
                    f"tune is {config.tune!r} and the model has {len(found)} layers; wanted "
                    f"'last:{len(found)}' at most"
                )
            # Parameters are named in the order in which a model uses them: what stands behind the
            # layers, a norm or a pooler, learns with them.
            first = f"{prefix}.{len(found) - config.last_layers}."
            start = next(i for i, name in enumerate(names) if name.startswith(first))
            chosen |= set(names[start:])
        return chosen

    def _changed(self) -> list[tuple[nn.Module, str, Any]]:
        """Layers that peft has wrapped, each with its parent and its name there."""
        if self._peft is None:
            return []
        return [
            (parent, name, child)
            for parent in self.model.modules()
            for name, child in parent.named_children()
            if hasattr(child, "get_base_layer") and hasattr(child, "get_delta_weight")
        ]


def layers(model: Any) -> tuple[str, list[nn.Module]]:
    """The layers of a transformer, first to last, and what their parameters' names start with.

    Raises:
        InputError: none can be told from its parts.
    """
    wanted = getattr(model.config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return name, list(module)
    raise InputError(
        f"cannot tell the layers of the model, an {type(model).__name__}; wanted tune='full' or "
        "'head'"
    )


def _injected(model: Any, config: FineTuning, steps: int) -> Any:
    """Wrap every linear layer of the layers; what peft calls a tuner, over the same model."""
    peft = require_extra("peft", "llm")
    prefix, found = layers(model)
    shared: dict[str, Any] = {
        "lora_alpha": 2 * config.rank,
        "lora_dropout": config.dropout or 0.0,
        "target_modules": [
            f"{prefix}.{i}.{name}"
            for i, layer in enumerate(found)
            for name, module in layer.named_modules()
            if type(module) is nn.Linear
        ],
    }
    if config.tune == "lora":
        return peft.LoraModel(model, peft.LoraConfig(r=config.rank, **shared), NAME)
    # A tenth of the steps at first at the full budget, a fifth in the end at the final one.
    last = min(max(1, steps // 5), steps - 1)
    plan = peft.AdaLoraConfig(
        target_r=config.rank, init_r=config.rank + (config.rank + 1) // 2,
        total_step=steps, tinit=min(steps // 10, steps - last - 1), tfinal=last,
        deltaT=max(1, steps // 50), **shared,
    )  # fmt: skip
    return peft.AdaLoraModel(model, plan, NAME)


def _added(layer: Any) -> nn.Linear:
    """A plain layer that does what a wrapped one does."""
    base = layer.get_base_layer()
    plain = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
    with torch.no_grad():
        plain.weight = nn.Parameter(base.weight + layer.get_delta_weight(NAME), False)
    plain.bias = base.bias
    return plain.eval()
