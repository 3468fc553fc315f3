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

    from hybridrec.ragged import Items, Scores
    from hybridrec.rerank.config import CrossEncoderConfig
    from hybridrec.rerank.finetune_config import FineTuning

log = logging.getLogger("hybridrec")

WEIGHT_DECAY = 0.01
MAX_GRADIENT = 1.0
HEAD = "classifier."
HEAD_RATE = 10.0


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


def sample_places(
    items: Items, targets: Items, negatives: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """(B, 1 + negatives) places in ``items``: each target's, then others without repeats.

    Rows with fewer than ``negatives`` other candidates are padded with -1.
    """
    keys = rng.random(items.shape)
    keys[(items < 0) | (items == targets[:, None])] = np.inf
    width = min(negatives, items.shape[1])
    order = np.argsort(keys, axis=1, kind="stable")[:, :width]
    places = np.full((len(items), 1 + negatives), -1, dtype=np.int64)
    places[:, 0] = (items == targets[:, None]).argmax(axis=1)
    drawn = np.isfinite(np.take_along_axis(keys, order, axis=1))
    places[:, 1 : 1 + width] = np.where(drawn, order, -1)
    return places


def soft_labels(places: NDArray[np.int64], recall_share: float) -> Scores:
    """(B, n) float32 shares that the softmax should have; each row sums to 1, 0 on padding.

    ``1 - recall_share`` goes to the first column, the item that was chosen; the rest follows the
    recall stage's order, in proportion to 1 / (place + 2). One chosen item a list is a faint signal
    against negatives that recall already thinks alike: on it alone the encoder settles on the same
    score for everything (docs/negative-results.md). The order of the list tells something of every
    candidate (distillation of a ranking: Tang & Wang, KDD 2018).
    """
    shares = np.where(places >= 0, 1.0 / (places + 2.0), 0.0)
    shares *= recall_share / shares.sum(axis=1, keepdims=True)
    shares[:, 0] += 1.0 - recall_share
    return shares.astype(np.float32)


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
        items: (B, K) candidates in the recall stage's order, -1 padded.
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
    tuning = config.finetuning
    per_epoch = math.ceil(len(items) / tuning.batch_size)
    optimiser = _optimiser(model, tuning.learning_rate)
    schedule = _schedule(optimiser, tuning.warmup, per_epoch * tuning.epochs)
    losses: list[float] = []
    held_out = [evaluate()] if evaluate else []
    best, kept = (copy.deepcopy(model.state_dict()) if evaluate else None), 0
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(config.seed)
        for epoch in range(1, tuning.epochs + 1):
            model.train()
            total = 0.0
            batches = _batches(items, targets, tuning, rng)
            label = f"fine-tuning, epoch {epoch} of {tuning.epochs}"
            for rows, lists, labels in track(batches, label, per_epoch):
                loss = _step(model, score_lists(rows, lists), labels, optimiser)
                if not math.isfinite(loss):
                    raise FitError(
                        f"the loss of the cross-encoder is {loss} in epoch {epoch}; lower "
                        f"learning_rate, which is {tuning.learning_rate:g}"
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
    steps = per_epoch * tuning.epochs
    log.info("cross-encoder: losses %s, held-out NDCG@10 %s, kept epoch %d", losses, held_out, kept)
    return TrainingLog(
        examples=len(items), steps=steps, losses=tuple(losses), held_out=tuple(held_out),
        kept_epoch=kept, seconds=time.monotonic() - started,
    )  # fmt: skip


def _batches(
    items: Items, targets: Items, config: FineTuning, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.int64], Items, Scores]]:
    """One epoch in random order: rows (b,), their lists (b, 1 + negatives) drawn anew, labels."""
    order = rng.permutation(len(items))
    for start in range(0, len(order), config.batch_size):
        rows = order[start : start + config.batch_size]
        places = sample_places(items[rows], targets[rows], config.negatives, rng)
        lists = np.where(places >= 0, np.take_along_axis(items[rows], places, axis=1), -1)
        yield rows, lists.astype(np.int32), soft_labels(places, config.recall_share)


def _optimiser(model: Any, learning_rate: float) -> Any:
    import torch

    # Biases and layer norms are not decayed: they do not overfit, they set the scale. The head is
    # new where the body is not, so it moves faster.
    groups: list[dict[str, Any]] = []
    for is_head in (False, True):
        rate = learning_rate * (HEAD_RATE if is_head else 1.0)
        chosen = [p for name, p in model.named_parameters() if name.startswith(HEAD) == is_head]
        decayed = [p for p in chosen if p.ndim > 1]
        others = [p for p in chosen if p.ndim <= 1]
        groups.append({"params": decayed, "lr": rate, "weight_decay": WEIGHT_DECAY})
        groups.append({"params": others, "lr": rate})
    return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=0.0, fused=True)


def _schedule(optimiser: Any, warmup: float, steps: int) -> Any:
    """Linear warm-up over the share ``warmup`` of all steps, then linear decay to 0."""
    import torch

    rising = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        return min((step + 1) / rising, (steps - step) / max(1, steps - rising + 1))

    return torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def _step(model: Any, scores: Tensor, labels: Scores, optimiser: Any) -> float:
    """One optimiser step on (b, n) scores whose softmax should be ``labels``."""
    import torch

    wanted = torch.from_numpy(labels).to(scores.device)
    # A padded score is -inf and its label 0: their product is left out, not NaN.
    log_shares = scores.log_softmax(dim=1).masked_fill(torch.isneginf(scores), 0.0)
    loss = -(wanted * log_shares).sum(dim=1).mean()
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT)
    optimiser.step()
    return float(loss.detach())
