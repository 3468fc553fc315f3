"""How a cross-encoder is fine-tuned: its settings, without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hybridrec.checks import InputError, InputTypeError, one_of, real_number, whole_number

__all__ = ["FineTuning"]

LOSSES = ("listwise", "pairwise", "pointwise")
TUNES = ("full", "head", "lora", "adalora", "adapter", "prefix")
AVERAGES = ("none", "ema", "epochs")


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Settings of a fine-tuning; refuses nonsense when made, and is plain JSON.

    Attributes:
        loss: "listwise", the cross-entropy of a list's softmax; "pairwise", the logistic loss of
            every pair that should be in an order; "pointwise", each candidate's binary
            cross-entropy.
        negatives: candidates that each positive is trained against.
        recall_share: from 0 to 1, how much of each label follows the order of the list, as
            the stages before made it, rather than the item that was chosen.
        tune: which weights learn beside the head, which always does. "full"; "head", none;
            "last:2", the last two layers, or any number; "lora" and "adalora", changes of low rank
            that are added to the weights in the end; "adapter", a narrow layer behind each block,
            which stays in the model; "prefix", states that every token of every layer looks at,
            which stay too.
        rank: of "lora" and "adalora"; width of an "adapter"; number of states of a "prefix".
        epochs: passes over the examples.
        batch_size: lists of a batch; long ones are read in parts, so memory stays bounded.
        accumulation: batches of an optimiser step.
        optimizer: "adamw" or "sgd", which has a momentum of 0.9.
        learning_rate: its peak, for encoders of MiniLM's size tuned in full; linear warm-up and
            decay. The head's is ten times this.
        warmup: share of the steps in which the rate rises.
        weight_decay: of matrices; biases and norms have none.
        dropout: from 0 to below 1, of hidden states; None is the checkpoint's own.
        patience: epochs without a better NDCG@10 on the held-out lists after which to stop; None
            never stops early. The best epoch's weights are kept either way.
        drop: from 0 to below 1, the chance of each event of a prompt to be left out for one step.
        crop: from 0 to below 1, how much of a prompt's history to cut off for one step: a stretch
            at a random place stays.
        adversarial: length of a step on the word embeddings in the direction that the loss rises
            fastest (FGM); what it does to the loss is learnt too. 0 is off; else a step takes
            twice as long.
        average: of weights, which is what is evaluated and kept: "ema", over the steps, with 0.99
            a step; "epochs", over the ends of the epochs; "none".
        checkpoints: a folder where the state is kept every 200 steps and every epoch, so that the
            same fine-tuning goes on there after a kill; emptied of it in the end. Trackers that
            write files do it there. None keeps nothing.
        report_to: trackers as transformers names them: "tensorboard", "wandb", "mlflow".
    """

    loss: str = "listwise"
    negatives: int = 15
    recall_share: float = 0.7
    tune: str = "full"
    rank: int = 8
    epochs: int = 2
    batch_size: int = 8
    accumulation: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 2e-4
    warmup: float = 0.1
    weight_decay: float = 0.01
    dropout: float | None = None
    patience: int | None = None
    drop: float = 0.0
    crop: float = 0.0
    adversarial: float = 0.0
    average: str = "none"
    checkpoints: str | None = None
    report_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        one_of("loss", self.loss, LOSSES)
        one_of("optimizer", self.optimizer, ("adamw", "sgd"))
        one_of("average", self.average, AVERAGES)
        for name in ("negatives", "rank", "epochs", "batch_size", "accumulation"):
            whole_number(name, getattr(self, name), least=1)
        if self.patience is not None:
            whole_number("patience", self.patience, least=1)
        for name in ("recall_share", "warmup"):
            if not 0 <= real_number(name, getattr(self, name)) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; wanted a share from 0 to 1")
        real_number("learning_rate", self.learning_rate, above=0)
        for name in ("weight_decay", "adversarial"):
            real_number(name, getattr(self, name), least=0)
        for name in ("dropout", "drop", "crop"):
            if getattr(self, name) is not None:
                real_number(name, getattr(self, name), least=0, below=1)
        self._check_tune()
        self._check_places()

    @property
    def last_layers(self) -> int | None:
        """N of "last:n"; None for everything else."""
        return int(self.tune.removeprefix("last:")) if self.tune.startswith("last:") else None

    def _check_tune(self) -> None:
        if not isinstance(self.tune, str) or not re.fullmatch(r"last:[1-9][0-9]*", self.tune):
            one_of("tune", self.tune, (*TUNES, "last:1", "last:2"))
        if self.adversarial and self.tune != "full":
            raise InputError(
                f"adversarial is {self.adversarial} and tune is {self.tune!r}, which leaves the "
                "word embeddings as they are; wanted adversarial=0 or tune='full'"
            )

    def _check_places(self) -> None:
        if isinstance(self.checkpoints, Path):
            object.__setattr__(self, "checkpoints", str(self.checkpoints))
        if self.checkpoints is not None and (
            not isinstance(self.checkpoints, str) or not self.checkpoints
        ):
            raise InputTypeError(f"checkpoints is {self.checkpoints!r}; wanted a folder or None")
        named = [self.report_to] if isinstance(self.report_to, str) else self.report_to
        if not isinstance(named, (list, tuple)) or not all(
            isinstance(name, str) and name for name in named
        ):
            raise InputTypeError(f"report_to is {self.report_to!r}; wanted names of trackers")
        object.__setattr__(self, "report_to", tuple(named))
        if "tensorboard" in self.report_to and self.checkpoints is None:
            raise InputError(
                "report_to names 'tensorboard', whose files would be gone in the end; wanted "
                "checkpoints= beside it, the folder where they go"
            )
