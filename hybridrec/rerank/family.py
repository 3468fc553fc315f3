"""What a family of models has to say for itself, so that one forward pass serves all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["READ", "YES_NO", "Family"]

READ = "hybridrec_read"
"""Entry of a checkpoint's config.json where its head is ours: "mean" or "last", what it reads."""

YES_NO = "hybridrec_yes_no"
"""Entry of a checkpoint's config.json: ids of the two tokens whose logits are its head."""


class Family:
    """One architecture of Hugging Face models; holds no weights.

    Attributes:
        model_type: its name in config.json.
        causal: whether a token sees only what stands before it; else it sees all of its text.
        packs: whether its attention goes through transformers' attention interface and needs
            nothing but positions, so that many candidates can share a forward pass.
        head: what the names of the head's parameters start with.
        spare: what parameters start with that a checkpoint may lack, as a head of ours reads past
            them.
    """

    model_type: str = ""
    causal: bool = False
    packs: bool = True
    head: tuple[str, ...] = ("classifier.",)
    spare: tuple[str, ...] = ()

    def body(self, model: Any) -> nn.Module:
        """What returns a ``last_hidden_state``."""
        found: nn.Module = model.base_model
        return found

    def positions(self, config: Any) -> int:
        """The tokens that a text may have."""
        return int(config.max_position_embeddings)

    def inputs(
        self, model: Any, tokens: Tensor, positions: Tensor, types: Tensor
    ) -> dict[str, Any]:
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
            seen: (b, L, L) bool, which token (row) may look at which (column), windows left out.
        """
        return seen[:, None]

    def read(self, model: Any) -> str:
        """Of which states a score is made.

        "first" or "last": that token of a candidate. "mean": all of its tokens. "all": these too,
        but where prompt and candidate are one text, all tokens of that text.
        """
        own = getattr(model.config, READ, None)
        return own if own in ("mean", "last") else self.reads(model.config)

    def reads(self, config: Any) -> str:
        """What the architecture's own head reads; see :meth:`read`."""
        return "first"

    def scores(self, model: Any, states: Tensor) -> Tensor:
        """(n,) float32 scores of (n, width) states.

        In float32 under any autocast: what tells candidates apart may lie below bfloat16's two
        digits.
        """
        with torch.autocast(states.device.type, enabled=False):
            return self._scores(model, states.float())

    def _scores(self, model: Any, states: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} scores whole texts (pair_scores), not states")


def windowed(seen: Tensor, window: int | None) -> Tensor:
    """(b, 1, L, L) of ``seen`` (b, L, L), without what lies ``window`` or more tokens away."""
    if window is None:
        return seen[:, None]
    place = torch.arange(seen.shape[-1], device=seen.device)
    away = (place - place[:, None]).abs()
    # Padding sees itself at least: what sees nothing is not a number, and that spreads.
    return (seen & (away < window) | (away == 0))[:, None]
