"""Families of encoders: tokens of a text see all of it, and a classifier reads the first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from hybridrec.rerank.family import READ, Family, windowed

__all__ = ["ENCODERS"]


class _Encoder(Family, ABC):
    """A classifier over means where the head is ours, else the architecture's own head."""

    def _scores(self, model: Any, states: Tensor) -> Tensor:
        # A new head may as well read what plain encoders are trained to put their meaning into, the
        # mean of the tokens; their [CLS] and pooler hardly differ between candidates at first.
        ours = getattr(model.config, READ, None) == "mean"
        return (self._linear(model, states) if ours else self._own(model, states))[:, 0]

    def _linear(self, model: Any, states: Tensor) -> Tensor:
        scores: Tensor = model.classifier(model.dropout(states))
        return scores

    @abstractmethod
    def _own(self, model: Any, states: Tensor) -> Tensor:
        """(n, 1) what the architecture's own head makes of (n, width) states."""


class Bert(_Encoder):
    """BERT: a pooler and a classifier."""

    model_type = "bert"
    spare: tuple[str, ...] = ("bert.pooler.",)

    def inputs(
        self, model: Any, tokens: Tensor, positions: Tensor, types: Tensor
    ) -> dict[str, Any]:
        """See :meth:`Family.inputs`; a model with one token type takes all for it."""
        return {
            **super().inputs(model, tokens, positions, types),
            "token_type_ids": types.clamp(max=model.config.type_vocab_size - 1),
        }

    def _own(self, model: Any, states: Tensor) -> Tensor:
        return self._linear(model, model.base_model.pooler(states[:, None]))


class Electra(Bert):
    """ELECTRA: two layers on the first token."""

    model_type = "electra"
    spare = ()

    def _linear(self, model: Any, states: Tensor) -> Tensor:
        scores: Tensor = model.classifier.out_proj(model.classifier.dropout(states))
        return scores

    def _own(self, model: Any, states: Tensor) -> Tensor:
        scores: Tensor = model.classifier(states[:, None])
        return scores


class Roberta(Electra):
    """RoBERTa: positions count from behind the padding's id."""

    model_type = "roberta"

    def positions(self, config: Any) -> int:
        """See :meth:`Family.positions`."""
        return super().positions(config) - self._first(config)

    def inputs(
        self, model: Any, tokens: Tensor, positions: Tensor, types: Tensor
    ) -> dict[str, Any]:
        """See :meth:`Family.inputs`."""
        return super().inputs(model, tokens, positions + self._first(model.config), types)

    def _first(self, config: Any) -> int:
        return int(config.pad_token_id) + 1


class XLMRoberta(Roberta):
    """XLM-RoBERTa, as RoBERTa."""

    model_type = "xlm-roberta"


class Camembert(Roberta):
    """CamemBERT, as RoBERTa."""

    model_type = "camembert"


class DistilBert(_Encoder):
    """DistilBERT: two layers on the first token, and no token types."""

    model_type = "distilbert"
    head = ("pre_classifier.", "classifier.")

    def _own(self, model: Any, states: Tensor) -> Tensor:
        return self._linear(model, model.pre_classifier(states).relu())


class ModernBert(_Encoder):
    """ModernBERT: most layers see a window only; the head reads the first token or the mean."""

    model_type = "modernbert"
    head = ("head.", "classifier.")

    def masks(self, model: Any, seen: Tensor) -> Any:
        """See :meth:`Family.masks`; the window of the configuration is inclusive."""
        return {
            "full_attention": windowed(seen, None),
            "sliding_attention": windowed(seen, model.config.sliding_window + 1),
        }

    def reads(self, config: Any) -> str:
        """See :meth:`Family.reads`."""
        return "all" if config.classifier_pooling == "mean" else "first"

    def _linear(self, model: Any, states: Tensor) -> Tensor:
        scores: Tensor = model.classifier(model.drop(states))
        return scores

    def _own(self, model: Any, states: Tensor) -> Tensor:
        return self._linear(model, model.head(states))


ENCODERS: tuple[Family, ...] = (
    Bert(),
    Electra(),
    Roberta(),
    XLMRoberta(),
    Camembert(),
    DistilBert(),
    ModernBert(),
)
