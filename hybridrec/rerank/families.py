"""What differs between families of models: how their bodies are fed and where scores are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hybridrec.checks import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["READ", "Family", "family_of"]

READ = "hybridrec_read"
"""Entry of a checkpoint's config.json: "mean" where its head was trained on means of tokens."""


class Family:
    """One architecture of Hugging Face models; holds no weights.

    Attributes:
        model_type: its name in config.json.
        causal: whether a token sees only what stands before it; else it sees all of its text.
        packs: whether its attention goes through transformers' attention interface and needs
            nothing but positions, so that many candidates can share a forward pass.
        head: what the names of the head's parameters start with.
    """

    model_type: str = ""
    causal: bool = False
    packs: bool = True
    head: tuple[str, ...] = ("classifier.",)

    def body(self, model: Any) -> nn.Module:
        """What returns a ``last_hidden_state``."""
        found: nn.Module = model.base_model
        return found

    def inputs(
        self, model: Any, tokens: Tensor, positions: Tensor, types: Tensor
    ) -> dict[str, Tensor]:
        """Keyword arguments of the body.

        Args:
            model: the model.
            tokens: (b, L) int64 token ids.
            positions: (b, L) int64, from 0.
            types: (b, L) int64, 0 on a prompt and 1 on a candidate.
        """
        return {"input_ids": tokens, "position_ids": positions}

    def masks(self, model: Any, seen: Tensor) -> Any:
        """The body's ``attention_mask`` for texts that are not packed.

        Args:
            model: the model.
            seen: (b, L, L) bool, which token (row) may look at which (column).
        """
        return seen[:, None]

    def read(self, model: Any) -> str:
        """Of which states a score is made: "first", "last" or "mean" of a candidate's tokens."""
        return "mean" if getattr(model.config, READ, None) == "mean" else "first"

    def scores(self, model: Any, states: Tensor) -> Tensor:
        """(n,) float32 scores of (n, width) states.

        In float32 under any autocast: what tells candidates apart may lie below bfloat16's two
        digits.
        """
        with torch.autocast(states.device.type, enabled=False):
            return self._scores(model, states.float())

    def _scores(self, model: Any, states: Tensor) -> Tensor:
        raise NotImplementedError


class Bert(Family):
    """BERT: a pooler and a classifier, or the classifier alone on means."""

    model_type = "bert"

    def inputs(
        self, model: Any, tokens: Tensor, positions: Tensor, types: Tensor
    ) -> dict[str, Tensor]:
        """See :meth:`Family.inputs`; a model with one token type takes all for it."""
        return {
            **super().inputs(model, tokens, positions, types),
            "token_type_ids": types.clamp(max=model.config.type_vocab_size - 1),
        }

    def _scores(self, model: Any, states: Tensor) -> Tensor:
        if self.read(model) == "first":
            states = model.base_model.pooler(states[:, None])
        scores: Tensor = model.classifier(model.dropout(states))[:, 0]
        return scores


FAMILIES: Mapping[str, Family] = {family.model_type: family for family in (Bert(),)}


def family_of(config: Any) -> Family:
    """The family of a model by its configuration.

    Raises:
        InputError: none that can rerank.
    """
    family = FAMILIES.get(config.model_type)
    if family is None or (not family.causal and getattr(config, "is_decoder", False)):
        raise InputError(
            f"the architecture is {config.model_type!r}; wanted an encoder of type "
            f"{' or '.join(map(repr, sorted(FAMILIES)))}"
        )
    return family
