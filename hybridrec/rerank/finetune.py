"""Fine-tuning on the recall stage's own lists."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridrec.checks import InputError, MissingExtraError, require_extra
from hybridrec.data.pretrained import quietly
from hybridrec.rerank.sampling import check_targets, mean_ndcg
from hybridrec.state import config_to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from hybridrec.rerank.config import CrossEncoderConfig
    from hybridrec.rerank.progress import Progress
    from hybridrec.rerank.sampling import Draws

__all__ = ["TrainingLog", "check_targets", "mean_ndcg", "train"]

log = logging.getLogger("hybridrec")


@dataclass(frozen=True, kw_only=True)
class TrainingLog:
    """What a fine-tuning did.

    Attributes:
        examples: lists trained on.
        steps: optimiser steps taken.
        losses: mean training loss of each epoch.
        held_out: NDCG@10 of the held-out lists before training and after each epoch; empty where
            none were given.
        kept_epoch: the epoch whose weights were kept, from 1; 0 if no epoch beat the start.
        seconds: wall-clock time, since the last kill if there was one.
    """

    examples: int
    steps: int
    losses: tuple[float, ...]
    held_out: tuple[float, ...]
    kept_epoch: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain values for a report."""
        return asdict(self)


def train(
    model: Any,
    score_lists: Callable[..., Tensor],
    draws: Draws,
    *,
    evaluate: Callable[[], float] | None,
    config: CrossEncoderConfig,
    head: tuple[str, ...],
    told_by: Sequence[NDArray[Any]] = (),
) -> TrainingLog:
    """Fine-tune ``model`` in place and leave it, in evaluation mode, with its best weights.

    Args:
        model: a transformers model on its device.
        score_lists: (rows (b,), items (b, n), histories) -> (b, n) scores with gradient, -inf where
            the item is -1; the histories are b rows, or None where they are what they were.
        draws: the examples.
        evaluate: held-out NDCG@10 of the model as it is; the best epoch is kept. None keeps the
            last.
        config: of the fine-tuning, the seed and the device.
        head: what the names of the head's parameters start with.
        told_by: arrays that differ where a fine-tuning is another one, beside the draws' and the
            weights: checkpoints of another are not gone on from.

    Raises:
        FitError: the loss is not finite.
        InputError: the model has no such layers as ``tune`` asks for, or a tracker is unknown.
        MissingExtraError: accelerate, peft or a tracker is needed and not installed.
    """
    require_extra("accelerate", "llm")
    import torch

    from hybridrec.rerank.progress import Progress
    from hybridrec.rerank.trainer import Lists, ListTrainer
    from hybridrec.rerank.tuning import Tuning

    started, tuning = time.monotonic(), config.finetuning
    with ExitStack() as stack:
        stack.enter_context(_globals_as_they_were())
        folder = _folder(model, draws, told_by, config, stack)
        torch.manual_seed(config.seed)
        batches = -(-len(draws) // tuning.batch_size)
        steps = tuning.epochs * -(-batches // tuning.accumulation)
        tuned = Tuning(model, tuning, head, steps)
        stack.callback(tuned.finish)
        progress = Progress(tuned, tuning, evaluate)
        lists = Lists(model, score_lists, tuning.loss)
        with _tracker_errors():
            trainer = ListTrainer(
                lists, draws, tuned, progress,
                config=tuning, seed=config.seed, folder=folder, use_cpu=model.device.type == "cpu",
            )  # fmt: skip
        checkpoint = _last_checkpoint(folder)
        if checkpoint is None:
            progress.evaluate()
        else:
            log.info("cross-encoder: going on from %s", checkpoint)
            progress.load(checkpoint)
        if not progress.stops:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        progress.finish()
        taken = trainer.state.global_step
    outcome = _log_of(progress, len(draws), taken, time.monotonic() - started)
    if tuning.checkpoints is not None:
        _clear(folder)
    return outcome


def _log_of(progress: Progress, examples: int, steps: int, seconds: float) -> TrainingLog:
    outcome = TrainingLog(
        examples=examples, steps=steps, losses=tuple(progress.losses),
        held_out=tuple(progress.held_out), kept_epoch=progress.kept, seconds=seconds,
    )  # fmt: skip
    log.info(
        "cross-encoder: losses %s, held-out NDCG@10 %s, kept epoch %d",
        outcome.losses, outcome.held_out, outcome.kept_epoch,
    )  # fmt: skip
    return outcome


@contextmanager
def _globals_as_they_were() -> Iterator[None]:
    """Trainer seeds every generator there is, sets a verbosity, and leaves accelerate's state."""
    import torch
    import transformers
    from accelerate.state import AcceleratorState, GradientState, PartialState

    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - to put it back
    kinds = (AcceleratorState, GradientState, PartialState)
    states = [dict(kind._shared_state) for kind in kinds]
    environment = dict(os.environ)
    try:
        with quietly(transformers), torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        for kind, state in zip(kinds, states, strict=True):
            kind._shared_state.clear()
            kind._shared_state.update(state)
        for name in set(os.environ) - set(environment):
            if name.startswith("ACCELERATE_"):
                del os.environ[name]


@contextmanager
def _tracker_errors() -> Iterator[None]:
    """What transformers says of a tracker that it does not know or find, as errors of ours."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        kind = MissingExtraError if isinstance(error, RuntimeError) else InputError
        if "require" in str(error) or "supported" in str(error):
            raise kind(f"report_to cannot be used: {error}") from error
        raise


def _folder(
    model: Any,
    draws: Draws,
    told_by: Sequence[NDArray[Any]],
    config: CrossEncoderConfig,
    stack: ExitStack,
) -> Path:
    """Where this fine-tuning writes: a folder of its own in ``checkpoints``, or a passing one."""
    if config.finetuning.checkpoints is None:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hybridrec-")))
    nowhere = replace(config.finetuning, checkpoints=None, report_to=())
    told = hashlib.sha256(json.dumps(config_to_json(replace(config, finetuning=nowhere))).encode())
    histories = draws.histories
    for array in (draws.items, draws.targets, histories.indptr, histories.items, *told_by):
        told.update(np.ascontiguousarray(array).tobytes())
    for parameter in model.parameters():
        told.update(parameter.detach().float().cpu().numpy().tobytes())
    return Path(config.finetuning.checkpoints) / told.hexdigest()[:16]


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest one that is whole: Trainer writes its own state last."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name[11:]), reverse=True)
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return path
    return None


def _clear(folder: Path) -> None:
    """Checkpoints of a fine-tuning that is done; what trackers wrote stays."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
