"""What a fine-tuning writes down and keeps: losses, figures, averages, the best weights."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hybridrec.rerank.finetune_config import FineTuning
    from hybridrec.rerank.tuning import Tuning

__all__ = ["Average", "Progress"]

DECAY = 0.99
"""What an "ema" keeps of itself a step."""

WEIGHTS, TENSORS, VALUES = "model.safetensors", "progress.safetensors", "progress.json"


class Average:
    """An average of the weights that learn: "ema" over steps, "epochs" over ends of epochs, "none".

    Args:
        kind: which.
        tuning: whose weights.
    """

    def __init__(self, kind: str, tuning: Tuning) -> None:
        self._kind = kind
        self._tuning = tuning
        self.count = 0
        self.values: dict[str, Tensor] = {}

    def stepped(self) -> None:
        """After a step of the optimiser; counts for "ema"."""
        if self._kind == "ema":
            # As few steps as there were at first: the start would weigh for too long.
            self._take(1.0 - min(DECAY, (1 + self.count) / (10 + self.count)))

    def ended(self) -> None:
        """After an epoch; counts for "epochs"."""
        if self._kind == "epochs":
            self._take(1.0 / (self.count + 1))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The average in the place of the weights."""
        named = self._tuning.trainable()
        own = {name: named[name].data for name in self.values}
        for name, value in self.values.items():
            named[name].data = value
        try:
            yield
        finally:
            for name, value in own.items():
                named[name].data = value

    def _take(self, share: float) -> None:
        named = {name: p.detach() for name, p in self._tuning.trainable().items()}
        if not self.values:
            self.values = {name: value.clone() for name, value in named.items()}
        for name, value in self.values.items():
            value.lerp_(named[name], share)
        self.count += 1


class Progress:
    """How far a fine-tuning is.

    Args:
        tuning: whose weights.
        config: patience and the kind of average.
        evaluate: held-out NDCG@10 of the model as it is; None where there is nothing to tell by.

    Attributes:
        losses: mean training loss of each epoch.
        held_out: NDCG@10 before training and after each epoch.
        kept: the epoch of ``best``, from 1; 0 is the start.
        best: the weights to keep, of the plain model.
    """

    def __init__(
        self, tuning: Tuning, config: FineTuning, evaluate: Callable[[], float] | None
    ) -> None:
        self.losses: list[float] = []
        self.held_out: list[float] = []
        self.kept = 0
        self.best: dict[str, Tensor] = {}
        self.average = Average(config.average, tuning)
        self._tuning = tuning
        self._patience = config.patience
        self._evaluate = evaluate
        self._total, self._seen = 0.0, 0
        self._paused = False

    @property
    def evaluates(self) -> bool:
        """Whether there are held-out lists."""
        return self._evaluate is not None

    @property
    def stops(self) -> bool:
        """Whether patience is over."""
        return self._patience is not None and len(self.held_out) - 1 - self.kept >= self._patience

    def begin(self) -> None:
        """An epoch begins."""
        self._total, self._seen = 0.0, 0

    def count(self, loss: float, lists: int) -> None:
        """A batch of so many lists has been read."""
        if not self._paused:
            self._total += loss * lists
            self._seen += lists

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is read here is not counted."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def end(self) -> None:
        """An epoch has ended."""
        self.losses.append(self._total / max(1, self._seen))
        self.average.ended()

    def evaluate(self) -> float:
        """Held-out NDCG@10; the best weights are kept, of equal ones the earlier."""
        if self._evaluate is None:
            return 0.0
        model = self._tuning.model
        model.eval()
        with self.average.applied(), self._tuning.plain():
            self.held_out.append(self._evaluate())
            if self.held_out[-1] > max(self.held_out[:-1], default=-1.0):
                self.kept = len(self.held_out) - 1
                self.best = _copied(model)
        return self.held_out[-1]

    def finish(self) -> None:
        """Leave the model plain, in evaluation mode, with the weights to keep."""
        model = self._tuning.model
        if not self.evaluates:
            self.kept = len(self.losses)
            with self.average.applied(), self._tuning.plain():
                self.best = _copied(model)
        self._tuning.finish()
        model.load_state_dict(self.best)
        model.eval()

    def save(self, folder: str) -> None:
        """Write the weights that learn and everything here into a new folder."""
        from safetensors.torch import save_file

        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        # Trainer finds them under the names that they have inside of what it calls.
        named = {f"model.{name}": p.detach() for name, p in self._tuning.trainable().items()}
        save_file({name: p.contiguous() for name, p in named.items()}, path / WEIGHTS)
        tuning, values = self._tuning.state()
        kinds = {"best": self.best, "average": self.average.values, "tuning": tuning}
        tensors = {f"{kind}/{name}": t for kind, of in kinds.items() for name, t in of.items()}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / TENSORS)
        state = {
            "losses": self.losses, "held_out": self.held_out, "kept": self.kept,
            "total": self._total, "seen": self._seen, "averaged": self.average.count,
            "tuning": values,
        }  # fmt: skip
        (path / VALUES).write_text(json.dumps(state), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Go on from what :meth:`save` wrote, the weights that learn excepted."""
        from safetensors.torch import load_file

        state = json.loads((folder / VALUES).read_text(encoding="utf-8"))
        self.losses, self.held_out = state["losses"], state["held_out"]
        self.kept, self.average.count = state["kept"], state["averaged"]
        self._total, self._seen = state["total"], state["seen"]
        kinds: dict[str, dict[str, Tensor]] = {"best": {}, "average": {}, "tuning": {}}
        device = str(self._tuning.model.device)
        for key, tensor in load_file(folder / TENSORS, device=device).items():
            kind, name = key.split("/", 1)
            kinds[kind][name] = tensor
        self.best, self.average.values = kinds["best"], kinds["average"]
        self._tuning.restore(kinds["tuning"], state["tuning"])


def _copied(model: Any) -> dict[str, Tensor]:
    with torch.no_grad():
        return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
