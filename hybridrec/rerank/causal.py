"""Families of causal language models: a token sees what stands before it, the last tells."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridrec.rerank.family import YES_NO, Family, windowed

__all__ = ["CAUSAL"]


class Llama(Family):
    """Llama and SmolLM2: a linear layer on the last token, or the logits of two words."""

    model_type = "llama"
    causal = True
    head = ("score.",)

    def inputs(
        self, model: Any, tokens: Tensor, positions: Tensor, types: Tensor
    ) -> dict[str, Any]:
        """See :meth:`Family.inputs`; there is nothing to be generated, so no cache."""
        return {**super().inputs(model, tokens, positions, types), "use_cache": False}

    def reads(self, config: Any) -> str:
        """See :meth:`Family.reads`."""
        return "last"

    def _scores(self, model: Any, states: Tensor) -> Tensor:
        words = getattr(model.config, YES_NO, None)
        if words is None:
            scores: Tensor = model.score(states)[:, 0]
            return scores
        # Two rows of a matrix of as many as the vocabulary has words.
        out = model.get_output_embeddings()
        logits = states @ out.weight[words].float().T
        if getattr(out, "bias", None) is not None:
            logits = logits + out.bias[words]
        cap = getattr(model.config, "final_logit_softcapping", None)
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        # Log-odds of the first word against the second: their softmax, without its rounding to 1.
        odds: Tensor = logits[:, 0] - logits[:, 1]
        return odds


class Gemma(Llama):
    """Gemma, as Llama."""

    model_type = "gemma"


class Mistral(Llama):
    """Mistral: every layer sees a window, if there is one."""

    model_type = "mistral"

    def masks(self, model: Any, seen: Tensor) -> Any:
        """See :meth:`Family.masks`."""
        return windowed(seen, getattr(model.config, "sliding_window", None))


class Qwen2(Llama):
    """Qwen 2: some layers may see a window only."""

    model_type = "qwen2"

    def masks(self, model: Any, seen: Tensor) -> Any:
        """See :meth:`Family.masks`."""
        return {
            "full_attention": windowed(seen, None),
            "sliding_attention": windowed(seen, model.config.sliding_window),
        }


class Qwen3(Qwen2):
    """Qwen 3, as Qwen 2."""

    model_type = "qwen3"


class Gemma2(Qwen2):
    """Gemma 2: windows as in Qwen, and scores capped by a tanh."""

    model_type = "gemma2"


class Gemma3(Gemma2):
    """The text model of Gemma 3."""

    model_type = "gemma3_text"


CAUSAL: tuple[Family, ...] = (Llama(), Gemma(), Mistral(), Qwen2(), Qwen3(), Gemma2(), Gemma3())
