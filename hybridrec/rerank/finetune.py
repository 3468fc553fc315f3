"""Fine-tuning on the recall stage's own lists: a listwise softmax over a positive and negatives."""

from __future__ import annotations

import copy
import logging
import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hybridrec.bars import track
from hybridrec.checks import FitError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from hybridrec.candidates import Items, Scores
    from hybridrec.rerank.config import CrossEncoderConfig

log = logging.getLogger("hybridrec")

WEIGHT_DECAY = 0.01
MAX_GRADIENT = 1.0


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
        seconds: wall-clock time.
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


def check_targets(items: Items, targets: NDArray[Any]) -> Items:
    """``targets`` as (B,) int32 where each stands in its row of ``items`` (B, K).

    Raises:
        InputError: another shape, or a list without its target; names the first.
    """
    targets = np.ascontiguousarray(targets, dtype=np.int32)
    if targets.shape != (len(items),):
        raise InputError(f"targets has shape {targets.shape}; wanted ({len(items)},)")
    missed = np.flatnonzero(~((items == targets[:, None]) & (items >= 0)).any(axis=1))
    if missed.size:
        raise InputError(
            f"targets[{missed[0]}] is {targets[missed[0]]}, which its list of candidates lacks, as "
            f"do {missed.size - 1} others: drop these rows before fine-tuning, and count them"
        )
    return targets


def sample_lists(items: Items, targets: Items, negatives: int, rng: np.random.Generator) -> Items:
    """(B, 1 + negatives) int32: each target, then negatives drawn from its row without repeats.

    Rows with fewer than ``negatives`` other candidates are padded with -1.
    """
    keys = rng.random(items.shape)
    keys[(items < 0) | (items == targets[:, None])] = np.inf
    width = min(negatives, items.shape[1])
    order = np.argsort(keys, axis=1, kind="stable")[:, :width]
    drawn = np.where(
        np.isfinite(np.take_along_axis(keys, order, axis=1)),
        np.take_along_axis(items, order, axis=1),
        -1,
    )
    lists = np.full((len(items), 1 + negatives), -1, dtype=np.int32)
    lists[:, 0] = targets
    lists[:, 1 : 1 + width] = drawn
    return lists


def mean_ndcg(items: Items, scores: Scores, targets: Items, k: int = 10) -> float:
    """Mean NDCG@k of (B, K) lists with one relevant item each; ties go to the smaller item."""
    mine = items == targets[:, None]
    own = np.where(mine, scores, -np.inf).max(axis=1, keepdims=True)
    ahead = (scores > own) | ((scores == own) & (items < targets[:, None]))
    rank = (ahead & (items >= 0)).sum(axis=1)
    gain = np.where(rank < k, 1.0 / np.log2(rank + 2.0), 0.0)
    return float(gain.mean()) if len(gain) else 0.0


def train(
    model: Any,
    score_lists: Callable[[NDArray[np.int64], Items], Tensor],
    items: Items,
    targets: Items,
    *,
    evaluate: Callable[[], float] | None,
    config: CrossEncoderConfig,
) -> TrainingLog:
    """Fine-tune ``model`` in place and leave it, in evaluation mode, with its best weights.

    Args:
        model: a torch module on its device.
        score_lists: (rows, items (b, n)) -> (b, n) scores with gradient, -inf where the item is -1.
        items: (B, K) candidates, -1 padded.
        targets: (B,) the item each list should put first.
        evaluate: held-out NDCG@10 of the model as it is; the best epoch is kept. None keeps the
            last.
        config: epochs, batch size, negatives, learning rate, warm-up and seed.

    Raises:
        FitError: the loss is not finite.
    """
    import torch

    started = time.monotonic()
    rng = np.random.default_rng(config.seed)
    per_epoch = math.ceil(len(items) / config.batch_size)
    optimiser = _optimiser(model, config.learning_rate)
    schedule = _schedule(optimiser, config.warmup, per_epoch * config.epochs)
    losses: list[float] = []
    held_out = [evaluate()] if evaluate else []
    best, kept = (copy.deepcopy(model.state_dict()) if evaluate else None), 0
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(config.seed)
        for epoch in range(1, config.epochs + 1):
            model.train()
            total = 0.0
            batches = _batches(items, targets, config, rng)
            label = f"fine-tuning, epoch {epoch} of {config.epochs}"
            for rows, lists in track(batches, label, per_epoch):
                loss = _step(model, score_lists(rows, lists), optimiser)
                if not math.isfinite(loss):
                    raise FitError(
                        f"the loss of the cross-encoder is {loss} in epoch {epoch}; lower "
                        f"learning_rate, which is {config.learning_rate:g}"
                    )
                schedule.step()
                total += loss * len(rows)
            losses.append(total / len(items))
            model.eval()
            if evaluate is None:
                kept = epoch
                continue
            held_out.append(evaluate())
            if held_out[-1] > max(held_out[:-1]):
                best, kept = copy.deepcopy(model.state_dict()), epoch
    if best is not None:
        model.load_state_dict(best)
    steps = per_epoch * config.epochs
    log.info("cross-encoder: losses %s, held-out NDCG@10 %s, kept epoch %d", losses, held_out, kept)
    return TrainingLog(
        examples=len(items), steps=steps, losses=tuple(losses), held_out=tuple(held_out),
        kept_epoch=kept, seconds=time.monotonic() - started,
    )  # fmt: skip


def _batches(
    items: Items, targets: Items, config: CrossEncoderConfig, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.int64], Items]]:
    """One epoch in random order: rows (b,) and their lists (b, 1 + negatives), drawn anew."""
    order = rng.permutation(len(items))
    for start in range(0, len(order), config.batch_size):
        rows = order[start : start + config.batch_size]
        yield rows, sample_lists(items[rows], targets[rows], config.negatives, rng)


def _optimiser(model: Any, learning_rate: float) -> Any:
    import torch

    # Biases and layer norms are not decayed: they do not overfit, they set the scale.
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": others},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=0.0, fused=True)


def _schedule(optimiser: Any, warmup: float, steps: int) -> Any:
    """Linear warm-up over the share ``warmup`` of all steps, then linear decay to 0."""
    import torch

    rising = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        return min((step + 1) / rising, (steps - step) / max(1, steps - rising + 1))

    return torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def _step(model: Any, scores: Tensor, optimiser: Any) -> float:
    """One optimiser step on (b, 1 + negatives) scores whose first column is the positive."""
    import torch

    loss = torch.nn.functional.cross_entropy(
        scores, torch.zeros(len(scores), dtype=torch.long, device=scores.device)
    )
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT)
    optimiser.step()
    return float(loss.detach())
