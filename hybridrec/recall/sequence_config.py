"""What can be set of the transformer that reads histories."""

from __future__ import annotations

from dataclasses import dataclass

from hybridrec.checks import InputError, InputTypeError, one_of, real_number, whole_number
from hybridrec.recall.promises import check_name


@dataclass(frozen=True, kw_only=True)
class SequenceConfig:
    """Settings of ``SequenceRecall``, whose docstring says what they mean."""

    width: int = 64
    layers: int = 2
    heads: int = 2
    max_length: int = 200
    dropout: float = 0.2
    temperature: float = 0.05
    epochs: int = 12
    refit_epochs: int = 4
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    batch_size: int = 8192
    precision: str = "auto"
    encoder: str | None = None
    index: str = "exact"
    seed: int = 0
    name: str = "sequence"

    def __post_init__(self) -> None:
        for setting in ("width", "layers", "heads", "max_length", "epochs", "refit_epochs"):
            whole_number(setting, getattr(self, setting), least=1)
        whole_number("batch_size", self.batch_size, least=1)
        if self.width % (2 * self.heads):
            raise InputError(
                f"width is {self.width} and heads {self.heads}; wanted a multiple of "
                f"{2 * self.heads}: an even number of entries for each head"
            )
        real_number("dropout", self.dropout, least=0.0, below=1.0)
        # exp(1 / temperature), summed over the catalogue, has to be finite.
        real_number("temperature", self.temperature, least=0.02)
        real_number("learning_rate", self.learning_rate, above=0.0)
        real_number("weight_decay", self.weight_decay, least=0.0)
        one_of("precision", self.precision, ("auto", "fp32", "bf16"))
        for setting in ("encoder", "index"):
            value = getattr(self, setting)
            if (setting, value) != ("encoder", None) and (not isinstance(value, str) or not value):
                raise InputTypeError(f"{setting} is {value!r}; wanted a word or path")
        whole_number("seed", self.seed)
        check_name(self.name)
