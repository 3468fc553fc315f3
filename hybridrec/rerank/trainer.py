"""``transformers.Trainer`` on lists: our batches, loss, optimiser and best weights in its loop.

Steps, clipping, gradient accumulation, checkpoints, trackers and several processes are Trainer's.
"""

from __future__ import annotations

import logging
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from hybridrec.bars import track
from hybridrec.checks import FitError
from hybridrec.rerank.losses import LOSSES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from hybridrec.rerank.finetune_config import FineTuning
    from hybridrec.rerank.progress import Progress
    from hybridrec.rerank.sampling import Draws
    from hybridrec.rerank.tuning import Tuning

__all__ = ["Lists", "ListTrainer"]

log = logging.getLogger("hybridrec")

MAX_GRADIENT = 1.0
HEAD_RATE = 10.0
MOMENTUM = 0.9
LOG_STEPS = 10
CHECKPOINT_STEPS = 200

FORWARD_TOKENS = {"cpu": 1024, "cuda": 32768}
"""Tokens of a forward pass; a batch with more is read in parts, whose gradients add up.

What a token leaves behind for the backward pass is 0.2 MB for a MiniLM-L6, and a CPU is a little
faster where that stays small.
"""


class Lists(nn.Module):
    """What Trainer calls: a batch of lists in, its loss out.

    The weights are inside it and the forward pass goes through it, which is what several processes
    need to put their gradients together.

    Args:
        model: the weights.
        score_lists: (rows, items (b, n), histories) -> (b, n) scores with gradient.
        loss: of :data:`hybridrec.rerank.losses.LOSSES`.
    """

    accepts_loss_kwargs = False
    _keys_to_ignore_on_save = None  # Trainer asks for it when a checkpoint lacks frozen weights

    def __init__(self, model: Any, score_lists: Callable[..., Tensor], loss: str) -> None:
        super().__init__()
        self.model = model
        self._score_lists = score_lists
        self._loss = LOSSES[loss]

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """The mean loss of a batch that :meth:`hybridrec.rerank.sampling.Draws.batch` drew."""
        scores = self._score_lists(batch["rows"], batch["lists"], batch["histories"])
        return self._loss(scores, torch.from_numpy(batch["labels"]).to(scores.device))


class ListTrainer(Trainer):
    """One fine-tuning.

    Args:
        lists: the model.
        draws: the examples.
        tuning: which weights learn.
        progress: what is written down and kept.
        config: the settings.
        seed: of dropout.
        folder: where checkpoints and trackers write.
        use_cpu: even where there is a GPU.
    """

    def __init__(
        self,
        lists: Lists,
        draws: Draws,
        tuning: Tuning,
        progress: Progress,
        *,
        config: FineTuning,
        seed: int,
        folder: Path,
        use_cpu: bool,
    ) -> None:
        arguments = TrainingArguments(
            output_dir=str(folder), use_cpu=use_cpu, seed=seed, disable_tqdm=True,
            per_device_train_batch_size=config.batch_size, num_train_epochs=config.epochs,
            gradient_accumulation_steps=config.accumulation, max_grad_norm=MAX_GRADIENT,
            learning_rate=config.learning_rate, save_strategy="no", save_total_limit=2,
            report_to=list(config.report_to) or "none", logging_steps=LOG_STEPS,
            logging_strategy="steps" if config.report_to else "no", logging_nan_inf_filter=False,
            remove_unused_columns=False, label_names=[], dataloader_pin_memory=False,
        )  # fmt: skip
        if not use_cpu:
            _ = arguments.device
            arguments._n_gpu = min(1, arguments.n_gpu)  # several GPUs: a process each, not threads
        self.draws = draws
        self.tuning = tuning
        self.progress = progress
        self.config = config
        super().__init__(lists, arguments, train_dataset=range(len(draws)))
        self.remove_callback(PrinterCallback)
        self.add_callback(_Watch(self))

    def get_train_dataloader(self) -> Any:
        """Batches of :class:`~hybridrec.rerank.sampling.Draws`."""
        rows: Any = range(len(self.draws))  # a data set is what has a length and items
        loader = torch.utils.data.DataLoader(
            rows, batch_size=self.config.batch_size,
            sampler=self.draws, collate_fn=self.draws.batch,
        )  # fmt: skip
        return self.accelerator.prepare(loader)

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW or SGD over the weights that learn."""
        rate, decay = self.config.learning_rate, self.config.weight_decay
        head = {id(parameter) for parameter in self.tuning.head()}
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for parameter in self.tuning.trainable().values():
            groups.setdefault((id(parameter) in head, parameter.ndim > 1), []).append(parameter)
        # Biases and layer norms are not decayed: they do not overfit, they set the scale. The head
        # is new where the body is not, so it moves faster.
        settings = [
            {
                "params": chosen,
                "lr": rate * (HEAD_RATE if in_head else 1.0),
                "weight_decay": decay if is_matrix else 0.0,
            }
            for (in_head, is_matrix), chosen in groups.items()
        ]
        if self.config.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(settings, lr=rate, momentum=MOMENTUM)
        else:
            self.optimizer = torch.optim.AdamW(settings, lr=rate, fused=True)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Linear warm-up over a share of all steps, then linear decay to 0."""
        rising = max(1, round(self.config.warmup * num_training_steps))

        def factor(step: int) -> float:
            falling = max(1, num_training_steps - rising + 1)
            return min((step + 1) / rising, (num_training_steps - step) / falling)

        moved: Any = optimizer or self.optimizer
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(moved, factor)
        return self.lr_scheduler

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """The loss of a batch, written down.

        Raises:
            FitError: it is not finite.
        """
        loss: Tensor = model(inputs)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FitError(
                f"the loss of the cross-encoder is {value} in epoch {self.draws.epoch + 1}; lower "
                f"learning_rate, which is {self.config.learning_rate:g}"
            )
        self.progress.count(value, len(inputs["rows"]))
        penalty = self.tuning.penalty()
        whole: Tensor = loss if penalty is None else loss + penalty
        weighed: Tensor = whole * inputs["share"]
        return weighed

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Gradients of a batch, and of the same batch with disturbed word embeddings if asked."""
        parts = self.draws.parts(inputs, FORWARD_TOKENS[self.args.device.type])
        losses = [super(ListTrainer, self).training_step(model, part) for part in parts]
        if self.config.adversarial:
            with self._disturbed(), self.progress.paused():
                for part in parts:
                    super().training_step(model, part)
        return torch.stack(losses).sum()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Held-out NDCG@10, after which training may stop."""
        metrics = {"eval_ndcg": self.progress.evaluate()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        self.control.should_training_stop |= self.progress.stops
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights that learn and what :class:`Progress` has, nothing pickled."""
        if self.args.should_save and output_dir is not None:
            self.progress.save(output_dir)

    @contextmanager
    def _disturbed(self) -> Iterator[None]:
        """A step on the word embeddings up the loss's gradient (FGM: Miyato et al., 1605.07725)."""
        weight = self.tuning.model.get_input_embeddings().weight
        with torch.no_grad():
            before = weight.clone()
            weight += self.config.adversarial * weight.grad / (weight.grad.norm() + 1e-12)
        try:
            yield
        finally:
            with torch.no_grad():
                weight.copy_(before)


class _Watch(TrainerCallback):
    """Tells the parts of a fine-tuning where Trainer is."""

    def __init__(self, trainer: ListTrainer) -> None:
        self._trainer = trainer
        self._bar: Iterator[int] = iter(())

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        per_epoch = self._per_epoch(args, state)
        epoch, done = divmod(state.global_step, per_epoch)
        self._trainer.draws.epoch = epoch
        if not done:  # else the epoch was begun before a kill
            self._trainer.progress.begin()
        label = f"fine-tuning, epoch {epoch + 1} of {int(args.num_train_epochs)}"
        self._bar = iter(track(range(done, per_epoch), label, per_epoch - done))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.tuning.stepped(state.global_step)
        self._trainer.progress.average.stepped()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        next(self._bar, None)
        # At the end of an epoch on_epoch_end decides, when the epoch has been evaluated.
        if self._saves() and state.global_step % self._per_epoch(args, state):
            control.should_save |= state.global_step % CHECKPOINT_STEPS == 0

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        next(self._bar, None)
        self._trainer.progress.end()
        control.should_evaluate = self._trainer.progress.evaluates
        control.should_save = self._saves()

    def _saves(self) -> bool:
        return self._trainer.config.checkpoints is not None

    def _per_epoch(self, args: Any, state: Any) -> int:
        return int(state.max_steps) // int(args.num_train_epochs)
