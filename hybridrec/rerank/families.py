"""Which family a checkpoint is of, and what is done with one whose attention cannot be packed."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hybridrec.checks import InputError
from hybridrec.rerank.causal import CAUSAL
from hybridrec.rerank.encoders import ENCODERS
from hybridrec.rerank.family import READ, YES_NO, Family

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hybridrec.rerank.soft_tokens import Soft

__all__ = ["FAMILIES", "READ", "YES_NO", "Family", "Unpackable", "family_of"]

FAMILIES: Mapping[str, Family] = {family.model_type: family for family in (*ENCODERS, *CAUSAL)}

_MOVING_ROPE = ("dynamic", "longrope")
"""Kinds of rotary embedding that depend on how long the longest text of a forward pass is."""


class Unpackable(Family):
    """An encoder whose attention is its own: scored pair by pair by its unmodified forward."""

    packs = False

    def __init__(self, model_type: str) -> None:
        self.model_type = model_type

    def positions(self, config: Any) -> int:
        """See :meth:`Family.positions`; some count from behind the padding's id."""
        return super().positions(config) - int(config.pad_token_id or 0) - 1

    def read(self, model: Any) -> str:
        """See :meth:`Family.read`; the forward itself reads."""
        return "first"

    def pair_scores(
        self, model: Any, tokens: Tensor, types: Tensor, real: Tensor, soft: Soft | None = None
    ) -> Tensor:
        """(n,) float32 scores of joined pairs (n, L); ``real`` is false on padding."""
        given = {
            "input_ids": tokens.masked_fill(~real, int(model.config.pad_token_id or 0)),
            "attention_mask": real.long(),
        }
        if "token_type_ids" in inspect.signature(model.forward).parameters:
            most = max(getattr(model.config, "type_vocab_size", 1), 1) - 1
            given["token_type_ids"] = types.clamp(max=most)
        if soft is not None:
            given = soft.into(model, given)
        with torch.autocast(tokens.device.type, enabled=False):
            scores: Tensor = model(**given).logits[:, 0].float()
        return scores


def family_of(config: Any, unpackable: str = "refuse") -> Family:
    """The family of a model by its configuration.

    Args:
        config: transformers' configuration of the model.
        unpackable: "refuse" or "pairs": what to do with an encoder whose attention cannot be
            packed.

    Raises:
        InputError: none that can rerank.
    """
    name = config.model_type
    family = FAMILIES.get(name)
    other = "use_bidirectional_attention" if family and family.causal else "is_decoder"
    if family is not None and getattr(config, other, False):
        raise InputError(
            f"this checkpoint of architecture {name!r} has {other!r} set in its config.json; "
            "wanted one without"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    moving = rope.get("rope_type") in _MOVING_ROPE
    if family is not None and not moving:
        return family
    remedy = f"wanted one of {sorted(FAMILIES)}"
    if moving:
        remedy = (
            f"its positions are of kind {rope['rope_type']!r}, which cannot be packed: {remedy}"
        )
    elif getattr(config, "is_encoder_decoder", False):
        remedy = f"it has a decoder: {remedy}"
    elif unpackable == "pairs":
        return Unpackable(name)
    else:
        remedy += ", or, for another encoder, unpackable='pairs', which scores pair by pair, slowly"
    raise InputError(f"the architecture is {name!r}; {remedy}")
